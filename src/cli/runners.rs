//! `semilayer runners …`: create, watch and retire the processes that dial out of a customer's network.

use clap::Subcommand;
use serde_json::{Value, json};
use url::Url;

use super::output::{ago, names, text};
use super::{CliError, Connection, Session};

/// What to do with runners.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the runners of the organisation
    List,
    /// Show one runner
    Get {
        /// Its name or id
        runner: String,
    },
    /// Create a runner; prints its environment once
    Create {
        /// A name, unique in the organisation
        name: String,
        /// Who runs it: `customer` or `saas`
        #[arg(long, default_value = "customer")]
        deployment: String,
    },
    /// Change a runner's name
    Update {
        /// Its name or id
        runner: String,
        /// The new name
        #[arg(long)]
        name: String,
    },
    /// Delete a runner; its sessions are closed
    Delete {
        /// Its name or id
        runner: String,
    },
    /// Give a runner a new token; prints its environment once
    Rotate {
        /// Its name or id
        runner: String,
        /// For how many seconds the old token goes on working
        #[arg(long)]
        grace_seconds: Option<u64>,
    },
    /// Make a runner's token invalid and close its sessions
    Revoke {
        /// Its name or id
        runner: String,
    },
    /// Give a runner no further jobs; those it has finish
    Drain {
        /// Its name or id
        runner: String,
    },
    /// Give a drained runner jobs again
    Resume {
        /// Its name or id
        runner: String,
    },
    /// Let a runner serve a source
    Assign {
        /// Its name or id
        runner: String,
        /// The sources, by name or id
        #[arg(required = true)]
        sources: Vec<String>,
    },
    /// Let a runner no longer serve a source
    Unassign {
        /// Its name or id
        runner: String,
        /// The sources, by name or id
        #[arg(required = true)]
        sources: Vec<String>,
    },
    /// List the open connections of a runner
    Sessions {
        /// Its name or id
        runner: String,
    },
}

/// Carries out one verb.
pub(super) async fn run(connection: Connection, verb: Verb) -> Result<(), CliError> {
    let session = Session::new(connection)?;
    match verb {
        Verb::List => list(&session).await,
        Verb::Get { runner } => session
            .output
            .value(&session.client.get(&["v1", "runners", &runner], &[]).await?),
        Verb::Create { name, deployment } => create(&session, &name, &deployment).await,
        Verb::Update { runner, name } => {
            let body = json!({ "name": name });
            let updated = session
                .client
                .patch(&["v1", "runners", &runner], &[], &body)
                .await?;
            session
                .output
                .done(&format!("runner {runner} is now called {name}"), &updated)
        }
        Verb::Delete { runner } => {
            let deleted = session
                .client
                .delete(&["v1", "runners", &runner], &[])
                .await?;
            session
                .output
                .done(&format!("runner {runner} deleted"), &deleted)
        }
        Verb::Rotate {
            runner,
            grace_seconds,
        } => rotate(&session, &runner, grace_seconds).await,
        Verb::Revoke { runner } => {
            act(
                &session,
                &runner,
                "revoke",
                "revoked: its token is invalid and its sessions are closed",
            )
            .await
        }
        Verb::Drain { runner } => {
            act(
                &session,
                &runner,
                "drain",
                "drains: it is given no further jobs",
            )
            .await
        }
        Verb::Resume { runner } => act(&session, &runner, "resume", "takes jobs again").await,
        Verb::Assign { runner, sources } => {
            for source in &sources {
                let path = ["v1", "runners", &runner, "assignments", source];
                let assigned = session.client.put(&path, &session.in_environment()).await?;
                session.output.done(
                    &format!("runner {runner} serves source {source}"),
                    &assigned,
                )?;
            }
            Ok(())
        }
        Verb::Unassign { runner, sources } => {
            for source in &sources {
                let path = ["v1", "runners", &runner, "assignments", source];
                let unassigned = session
                    .client
                    .delete(&path, &session.in_environment())
                    .await?;
                session.output.done(
                    &format!("runner {runner} no longer serves source {source}"),
                    &unassigned,
                )?;
            }
            Ok(())
        }
        Verb::Sessions { runner } => sessions(&session, &runner).await,
    }
}

async fn list(session: &Session) -> Result<(), CliError> {
    let runners = session
        .client
        .list(&["v1", "runners"], &[], usize::MAX)
        .await?;
    session.output.list(
        runners,
        &[
            ("ID", |runner| text(runner, "id")),
            ("NAME", |runner| text(runner, "name")),
            ("STATUS", |runner| text(runner, "status")),
            ("VERSION", |runner| text(runner, "version")),
            ("SOURCES", |runner| names(runner, "sources")),
            ("JOBS", |runner| text(runner, "jobs")),
            ("LAST SEEN", |runner| ago(runner, "lastSeen")),
        ],
        "no runners yet: `semilayer runners create <name>` makes one",
    )
}

async fn sessions(session: &Session, runner: &str) -> Result<(), CliError> {
    let sessions = session
        .client
        .list(&["v1", "runners", runner, "sessions"], &[], usize::MAX)
        .await?;
    session.output.list(
        sessions,
        &[
            ("ID", |session| text(session, "id")),
            ("HOST", |session| text(session, "hostname")),
            ("VERSION", |session| text(session, "version")),
            ("PROTOCOL", |session| text(session, "protocol")),
            ("CAPACITY", |session| text(session, "capacity")),
            ("CONNECTED", |session| ago(session, "connectedAt")),
            ("LAST SEEN", |session| ago(session, "lastSeen")),
        ],
        "this runner has no open connection",
    )
}

async fn create(session: &Session, name: &str, deployment: &str) -> Result<(), CliError> {
    let body = json!({ "name": name, "deployment": deployment });
    let created = session.client.post(&["v1", "runners"], &[], &body).await?;
    print_token(session, &created)
}

async fn rotate(
    session: &Session,
    runner: &str,
    grace_seconds: Option<u64>,
) -> Result<(), CliError> {
    let body =
        grace_seconds.map_or_else(|| json!({}), |seconds| json!({ "graceSeconds": seconds }));
    let rotated = session
        .client
        .post(&["v1", "runners", runner, "rotate"], &[], &body)
        .await?;
    print_token(session, &rotated)
}

async fn act(session: &Session, runner: &str, verb: &str, sentence: &str) -> Result<(), CliError> {
    let changed = session
        .client
        .post(&["v1", "runners", runner, verb], &[], &json!({}))
        .await?;
    session
        .output
        .done(&format!("runner {runner} {sentence}"), &changed)
}

fn print_token(session: &Session, runner: &Value) -> Result<(), CliError> {
    if session.output.json {
        return session.output.value(runner);
    }
    // Redirected into a file, everything but the two variables is a comment, so the file can be used as is.
    let mark = if session.output.terminal { "" } else { "# " };
    session
        .output
        .line(&token_block(runner, session.client.url(), mark))
}

fn token_block(runner: &Value, server: &Url, mark: &str) -> String {
    let (id, token) = (text(runner, "id"), text(runner, "token"));
    format!(
        "SEMILAYER_RUNNER_ID={id}\n\
         SEMILAYER_RUNNER_TOKEN={token}\n\
         {mark}The token is shown once: keep these two lines where the runner will find them.\n\
         {mark}With them in its environment, start the runner inside the network of your database:\n\
         {mark}  SEMILAYER_GATEWAY_URL={} semilayer-runner start",
        gateway_url(server)
    )
}

/// Where runners dial, for a server that is reached over HTTP.
fn gateway_url(server: &Url) -> String {
    let scheme = if server.scheme() == "https" {
        "wss"
    } else {
        "ws"
    };
    let rest = server
        .as_str()
        .trim_start_matches(server.scheme())
        .trim_end_matches('/');
    format!("{scheme}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_runner_gets_two_variables_and_the_command_to_start_it() {
        let runner = json!({ "id": "0190", "name": "primary-prod", "token": "rk_acme_x" });
        let block = token_block(
            &runner,
            &Url::parse("https://gateway.example.com/").unwrap(),
            "# ",
        );
        let lines: Vec<&str> = block.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "SEMILAYER_RUNNER_ID=0190",
                "SEMILAYER_RUNNER_TOKEN=rk_acme_x"
            ]
        );
        assert!(
            lines[2..].iter().all(|line| line.starts_with("# ")),
            "{block}"
        );
        assert!(block.contains("shown once"), "{block}");
        assert!(
            block.ends_with(
                "SEMILAYER_GATEWAY_URL=wss://gateway.example.com semilayer-runner start"
            ),
            "{block}"
        );
    }

    #[test]
    fn runners_dial_where_the_cli_goes() {
        for (server, gateway) in [
            ("http://127.0.0.1:8080", "ws://127.0.0.1:8080"),
            ("https://x.io/base/", "wss://x.io/base"),
        ] {
            assert_eq!(gateway_url(&Url::parse(server).unwrap()), gateway);
        }
    }
}
