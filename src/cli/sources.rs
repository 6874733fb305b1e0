//! `semilayer sources …`: connect databases, test them, and look at what is in them.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::input::{self, Hidden};
use super::output::{names, table, text};
use super::settings::{ConfigArgs, ask_for_missing, manifest, typed};
use super::{CliError, Connection, Session};

/// What to do with sources.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the sources of the environment
    List,
    /// Show one source; its secrets stay hidden
    Get {
        /// Its name or id
        source: String,
    },
    /// Connect a database
    Create(Create),
    /// Change a source
    Update(Update),
    /// Delete a source
    Delete {
        /// Its name or id
        source: String,
    },
    /// Connect to the database from every assigned runner; exits with 1 when one of them cannot
    Test {
        /// Its name or id
        source: String,
    },
    /// List the tables of a source, or the columns of one table
    Targets {
        /// Its name or id
        source: String,
        /// A table, `table` or `schema.table`
        table: Option<String>,
    },
}

/// A new source.
#[derive(Debug, Args)]
pub struct Create {
    /// A name, unique in the environment
    name: String,
    /// The kind of database: `postgres`, `mysql`, `mariadb`, `sqlite`
    #[arg(long)]
    bridge: String,
    /// `managed`: the gateway keeps the credentials, encrypted; `runner-local`: only the runner has them
    #[arg(long, default_value = "managed")]
    credentials_location: String,
    #[command(flatten)]
    config: ConfigArgs,
    /// The deadline of its jobs in milliseconds
    #[arg(long)]
    timeout_ms: Option<u64>,
}

/// A change to a source.
#[derive(Debug, Args)]
pub struct Update {
    /// Its name or id
    source: String,
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// `managed` or `runner-local`; switching wipes the stored configuration
    #[arg(long)]
    credentials_location: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
    /// The deadline of its jobs in milliseconds
    #[arg(long)]
    timeout_ms: Option<u64>,
    /// Do not ask before the stored configuration is wiped
    #[arg(long)]
    yes: bool,
}

/// Carries out one verb.
pub(super) async fn run(connection: Connection, verb: Verb) -> Result<(), CliError> {
    let session = Session::new(connection)?;
    let environment = session.in_environment();
    match verb {
        Verb::List => list(&session).await,
        Verb::Get { source } => session.output.value(
            &session
                .client
                .get(&["v1", "sources", &source], &environment)
                .await?,
        ),
        Verb::Create(create) => self::create(&session, create).await,
        Verb::Update(update) => self::update(&session, update).await,
        Verb::Delete { source } => {
            let deleted = session
                .client
                .delete(&["v1", "sources", &source], &environment)
                .await?;
            session
                .output
                .done(&format!("source {source} deleted"), &deleted)
        }
        Verb::Test { source } => test(&session, &source).await,
        Verb::Targets {
            source,
            table: None,
        } => targets(&session, &source).await,
        Verb::Targets {
            source,
            table: Some(table),
        } => columns(&session, &source, &table).await,
    }
}

async fn list(session: &Session) -> Result<(), CliError> {
    let sources = session
        .client
        .list(&["v1", "sources"], &session.in_environment(), usize::MAX)
        .await?;
    session.output.list(
        sources,
        &[
            ("ID", |source| text(source, "id")),
            ("NAME", |source| text(source, "name")),
            ("BRIDGE", |source| text(source, "bridge")),
            ("CREDENTIALS", |source| text(source, "credentialsLocation")),
            ("RUNNERS", |source| names(source, "runners")),
        ],
        "no sources yet: `semilayer sources create <name> --bridge postgres --url -` connects one",
    )
}

async fn create(session: &Session, create: Create) -> Result<(), CliError> {
    let manifest = manifest(session, &create.bridge).await?;
    let mut config = create.config.read()?;
    if create.credentials_location == "managed" {
        ask_for_missing(&mut config, manifest.as_ref()).await?;
    }
    let mut body = Map::from_iter([
        ("name".into(), json!(create.name)),
        ("bridge".into(), json!(create.bridge)),
        (
            "credentialsLocation".into(),
            json!(create.credentials_location),
        ),
        (
            "config".into(),
            Value::Object(typed(config, manifest.as_ref())?),
        ),
    ]);
    body.extend(
        create
            .timeout_ms
            .map(|timeout| ("timeoutMs".into(), json!(timeout))),
    );
    let created = session
        .client
        .post(
            &["v1", "sources"],
            &session.in_environment(),
            &Value::Object(body),
        )
        .await?;
    let next = if create.credentials_location == "managed" {
        format!(
            "`semilayer sources test {}` shows whether it answers",
            create.name
        )
    } else {
        format!(
            "its runner reads the credentials from {}*",
            variable_prefix(&create.name)
        )
    };
    session
        .output
        .done(&format!("source {} created; {next}", create.name), &created)
}

async fn update(session: &Session, update: Update) -> Result<(), CliError> {
    let environment = session.in_environment();
    let path = ["v1", "sources", &update.source];
    let current = session.client.get(&path, &environment).await?;
    let switches = update
        .credentials_location
        .as_ref()
        .is_some_and(|to| current["credentialsLocation"] != json!(to));
    if switches && !update.yes {
        confirm_wipe(&update.source).await?;
    }
    let manifest = manifest(session, &text(&current, "bridge")).await?;
    let changes = typed(update.config.read()?, manifest.as_ref())?;
    let mut body = Map::new();
    body.extend(update.name.map(|name| ("name".into(), json!(name))));
    body.extend(
        update
            .credentials_location
            .map(|location| ("credentialsLocation".into(), json!(location))),
    );
    body.extend(
        update
            .timeout_ms
            .map(|timeout| ("timeoutMs".into(), json!(timeout))),
    );
    if !changes.is_empty() {
        // What is not named stays: a hidden secret that is sent back as it was shown is left unchanged.
        let kept = if switches {
            None
        } else {
            current["config"].as_object().cloned()
        };
        let mut config = kept.unwrap_or_default();
        config.extend(changes);
        body.insert("config".into(), Value::Object(config));
    }
    if body.is_empty() {
        return Err(CliError::usage(
            "nothing to change: name at least one of --name, --set, --url, --credentials-location, --timeout-ms",
        ));
    }
    let updated = session
        .client
        .patch(&path, &environment, &Value::Object(body))
        .await?;
    session
        .output
        .done(&format!("source {} updated", update.source), &updated)
}

async fn confirm_wipe(source: &str) -> Result<(), CliError> {
    let warning = format!(
        "switching where the credentials of {source} are kept wipes its stored configuration"
    );
    if !input::can_ask() {
        return Err(CliError::usage(format!("{warning}; pass --yes to do it")));
    }
    let answer = input::ask(&format!("{warning}. Go on? [y/N]"), Hidden::No).await?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::Failed("nothing was changed".into())),
    }
}

async fn test(session: &Session, source: &str) -> Result<(), CliError> {
    let path = ["v1", "sources", source, "test"];
    let tested = session
        .client
        .post(&path, &session.in_environment(), &json!({}))
        .await?;
    let results = tested["results"].as_array().cloned().unwrap_or_default();
    let failed = results
        .iter()
        .filter(|result| result["ok"] != json!(true))
        .count();
    if session.output.json {
        session.output.value(&tested)?;
    } else {
        for result in &results {
            session.output.line(&verdict(result))?;
        }
    }
    match (failed, results.len()) {
        (0, _) => Ok(()),
        (failed, all) => Err(CliError::Failed(format!(
            "{failed} of {all} could not reach the database of {source}"
        ))),
    }
}

fn verdict(result: &Value) -> String {
    let by = result["runner"]["name"]
        .as_str()
        .unwrap_or("the gateway itself");
    if result["ok"] == json!(true) {
        format!(
            "✓ {by}: {} in {} ms",
            text(result, "version"),
            text(result, "latencyMs")
        )
    } else {
        format!(
            "✗ {by}: {}",
            result["error"]["message"]
                .as_str()
                .unwrap_or("no reason given")
        )
    }
}

async fn targets(session: &Session, source: &str) -> Result<(), CliError> {
    let path = ["v1", "sources", source, "targets"];
    let found = session.client.get(&path, &session.in_environment()).await?;
    let items = found["items"].as_array().cloned().unwrap_or_default();
    session.output.list(
        items,
        &[
            ("NAME", |target| text(target, "name")),
            ("KIND", |target| text(target, "kind")),
        ],
        "the user of this source can read no tables",
    )
}

async fn columns(session: &Session, source: &str, target: &str) -> Result<(), CliError> {
    let path = ["v1", "sources", source, "targets", target];
    let found = session.client.get(&path, &session.in_environment()).await?;
    if session.output.json {
        return session.output.value(&found);
    }
    let yes = |column: &Value, field: &str| {
        if column[field] == json!(true) {
            "yes".into()
        } else {
            String::new()
        }
    };
    let rows = found["columns"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|column| {
            vec![
                text(column, "name"),
                text(column, "type"),
                yes(column, "nullable"),
                yes(column, "primaryKey"),
            ]
        });
    let titles = ["COLUMN", "TYPE", "NULLABLE", "PRIMARY KEY"]
        .map(str::to_owned)
        .to_vec();
    session.output.line(&table(titles, rows.collect()))
}

/// The variables from which a runner takes the credentials of a source that are kept with it.
fn variable_prefix(source: &str) -> String {
    let name: String = source
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    format!("SEMILAYER_SOURCE_{name}_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_local_source_says_where_its_credentials_come_from() {
        assert_eq!(
            variable_prefix("primary-db"),
            "SEMILAYER_SOURCE_PRIMARY_DB_"
        );
    }

    #[test]
    fn a_verdict_says_who_tried_and_what_happened() {
        let good = json!({ "runner": { "name": "a" }, "ok": true, "version": "PostgreSQL 15.8", "latencyMs": 3 });
        assert_eq!(verdict(&good), "✓ a: PostgreSQL 15.8 in 3 ms");
        let bad = json!({ "ok": false, "error": { "message": "connection refused" } });
        assert_eq!(verdict(&bad), "✗ the gateway itself: connection refused");
    }
}
