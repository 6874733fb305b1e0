//! Creates what the demo consists of, over the REST API, and finds it again on the next start. What
//! somebody deleted comes back; what somebody changed stays changed.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::demo;
use super::state::{RunnerIdentity, State};
use crate::cli::{CliError, Client};

/// The name of the demo's source and of its runner.
const NAME: &str = "demo";
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The demo, as far as others need to know it.
pub(super) struct Demo {
    pub(super) runner: RunnerIdentity,
    pub(super) source_id: String,
    pub(super) lenses: Vec<&'static str>,
}

/// Makes sure that the state holds a key that may query.
pub(super) async fn ensure_secret_key(state: &mut State, client: &Client) -> anyhow::Result<()> {
    if !state.secret_key.is_empty() && is_good(client, &state.secret_key).await? {
        return Ok(());
    }
    let body = json!({ "kind": "sk", "name": "semilayer dev" });
    let created = client
        .post(&["v1", "keys"], &[], &body)
        .await
        .context("cannot create a key")?;
    state.secret_key = text(&created, "key")?;
    Ok(())
}

impl Demo {
    /// Makes sure that the demo's database, source, lenses, runner and assignment are there.
    pub(super) async fn ensure(
        state: &mut State,
        client: &Client,
        data_dir: &Path,
    ) -> anyhow::Result<Self> {
        let database = std::path::absolute(data_dir.join("demo.db"))?;
        demo::create(&database)?;
        let database = database
            .to_str()
            .context("the path of the data directory is not UTF-8")?;
        let source = json!({
            "name": NAME, "bridge": "sqlite", "credentialsLocation": "managed", "config": { "path": database },
        });
        let source = text(
            &find_or_create(client, "sources", NAME, &source).await?,
            "id",
        )?;
        for table in demo::TABLES {
            find_or_create(client, "lenses", table.name, &table.lens(&source)).await?;
        }
        let runner = ensure_runner(state, client).await?;
        let assignment = ["v1", "runners", NAME, "assignments", &source];
        client
            .put(&assignment, &[])
            .await
            .context("cannot assign the demo's source to its runner")?;
        let lenses = demo::TABLES.iter().map(|table| table.name).collect();
        Ok(Self {
            runner,
            source_id: source,
            lenses,
        })
    }

    /// Waits until a query of the demo returns a row.
    pub(super) async fn until_it_answers(
        &self,
        client: &Client,
        state: &State,
    ) -> anyhow::Result<()> {
        // Asked before the runner is there, the first query would be recorded as a failure.
        while client.get(&["v1", "runners", NAME], &[]).await?["status"] != "online" {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let caller = client.with_key(state.secret_key.clone().into());
        let query = ["v1", "query", self.lenses[0]];
        loop {
            match caller.post(&query, &[], &json!({ "limit": 1 })).await {
                Ok(answer)
                    if answer["rows"]
                        .as_array()
                        .is_some_and(|rows| !rows.is_empty()) =>
                {
                    return Ok(());
                }
                Ok(_) => anyhow::bail!("the demo database has no rows"),
                // The runner is gone again, or has not yet heard of its source.
                Err(error) if error.status() == Some(503) => {
                    log::debug!("the demo is not ready: {error}");
                }
                Err(error) => return Err(error).context("the demo does not answer"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

async fn find_or_create(
    client: &Client,
    resource: &str,
    name: &str,
    body: &Value,
) -> anyhow::Result<Value> {
    if let Some(found) = find(client, resource, name).await? {
        return Ok(found);
    }
    let created = client.post(&["v1", resource], &[], body).await;
    created.with_context(|| format!("cannot create `{name}` in {resource}"))
}

async fn find(client: &Client, resource: &str, name: &str) -> anyhow::Result<Option<Value>> {
    match client.get(&["v1", resource, name], &[]).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.status() == Some(404) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look up `{name}` in {resource}")),
    }
}

/// Finds the demo's runner with a token that is known and good, or makes one.
async fn ensure_runner(state: &mut State, client: &Client) -> anyhow::Result<RunnerIdentity> {
    let found = find(client, "runners", NAME).await?;
    if let (Some(found), Some(known)) = (&found, &state.runner)
        && found["id"] == json!(known.id)
        && is_good(client, &known.token).await?
    {
        return Ok(known.clone());
    }
    let issued = match found {
        Some(_) => {
            client
                .post(&["v1", "runners", NAME, "rotate"], &[], &json!({}))
                .await
        }
        None => {
            client
                .post(&["v1", "runners"], &[], &json!({ "name": NAME }))
                .await
        }
    };
    let issued = issued.context("cannot create the demo's runner")?;
    let identity = RunnerIdentity {
        id: text(&issued, "id")?.parse()?,
        token: text(&issued, "token")?,
    };
    state.runner = Some(identity.clone());
    Ok(identity)
}

/// Whether the gateway still takes this key or token.
async fn is_good(client: &Client, key: &str) -> anyhow::Result<bool> {
    match client
        .with_key(key.to_owned().into())
        .get(&["v1", "whoami"], &[])
        .await
    {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.status(), Some(401 | 403)) => Ok(false),
        Err(error) => Err(error).context("cannot check a key of an earlier start"),
    }
}

fn text(value: &Value, field: &str) -> Result<String, CliError> {
    let text = value[field].as_str().map(str::to_owned);
    text.ok_or_else(|| CliError::Failed(format!("the gateway's answer has no `{field}`")))
}
