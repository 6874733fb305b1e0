//! `semilayer keys …`: the keys of callers and administrators.

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::output::{ago, text};
use super::{CliError, Connection, Session};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the keys, without their secrets
    List,
    /// Create a key; it is shown once
    Create {
        /// `sk`: server-side callers; `pk`: browsers, within grants; `ak`: administrators
        #[arg(long = "type", value_enum)]
        kind: Kind,
        /// What it is for
        #[arg(long)]
        name: Option<String>,
        /// What an `ak` key may do: `owner`, `admin` or `viewer`
        #[arg(long)]
        role: Option<String>,
    },
    /// Make a key invalid
    Revoke {
        /// Its id
        key: String,
    },
}

/// The kinds of keys that are handed out here; a runner's comes with the runner.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Kind {
    /// Server-side callers of an environment.
    Sk,
    /// Browser callers of an environment.
    Pk,
    /// Administrators of the organisation.
    Ak,
}

/// Carries out one verb.
pub(super) async fn run(connection: Connection, verb: Verb) -> Result<(), CliError> {
    let session = Session::new(connection)?;
    let environment = session.in_environment();
    match verb {
        Verb::List => {
            let keys = session
                .client
                .list(&["v1", "keys"], &environment, usize::MAX)
                .await?;
            session.output.list(
                keys,
                &[
                    ("ID", |key| text(key, "id")),
                    ("TYPE", |key| text(key, "kind")),
                    ("NAME", |key| text(key, "name")),
                    ("KEY", |key| text(key, "prefix")),
                    ("CREATED", |key| ago(key, "createdAt")),
                    ("REVOKED", |key| ago(key, "revokedAt")),
                ],
                "no keys",
            )
        }
        Verb::Create { kind, name, role } => {
            let kind = match kind {
                Kind::Sk => "sk",
                Kind::Pk => "pk",
                Kind::Ak => "ak",
            };
            let mut body = Map::from_iter([("kind".into(), json!(kind))]);
            body.extend(name.map(|name| ("name".into(), json!(name))));
            body.extend(role.map(|role| ("role".into(), json!(role))));
            let created = session
                .client
                .post(&["v1", "keys"], &environment, &Value::Object(body))
                .await?;
            if !session.output.json {
                eprintln!("The key is shown once:");
            }
            session.output.done(&text(&created, "key"), &created)
        }
        Verb::Revoke { key } => {
            let revoked = session
                .client
                .post(&["v1", "keys", &key, "revoke"], &environment, &json!({}))
                .await?;
            session.output.done(&format!("key {key} revoked"), &revoked)
        }
    }
}
