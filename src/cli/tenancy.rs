//! `semilayer organisations …`, `semilayer environments …`, `semilayer whoami` and `semilayer health`.

use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::input;
use super::output::{ago, names, text};
use super::{CliError, Connection, Session};

/// What to do with organisations.
#[derive(Debug, Subcommand)]
pub enum OrganisationVerb {
    /// List the organisations on this gateway
    List {
        #[command(flatten)]
        operator: Operator,
    },
    /// Create an organisation; prints its first admin key once
    Create {
        /// Lower-case letters, digits and hyphens; part of its keys
        slug: String,
        /// A name for people
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        operator: Operator,
    },
}

/// Who may create organisations.
#[derive(Debug, Args)]
pub struct Operator {
    /// The token that the gateway was started with
    #[arg(long, env = "SEMILAYER_OPERATOR_TOKEN", value_name = "TOKEN", value_parser = input::secret, hide_env_values = true)]
    operator_token: Option<SecretString>,
}

/// What to do with environments.
#[derive(Debug, Subcommand)]
pub enum EnvironmentVerb {
    /// List the environments of the organisation
    List,
    /// Show one environment
    Get {
        /// Its slug or id
        #[arg(id = "which", value_name = "ENVIRONMENT")]
        environment: String,
    },
    /// Create an environment
    Create {
        /// Lower-case letters, digits and hyphens; part of its keys
        slug: String,
    },
    /// Delete an environment with its sources, lenses and keys
    Delete {
        /// Its slug or id
        #[arg(id = "which", value_name = "ENVIRONMENT")]
        environment: String,
    },
}

/// Tells whose key this is.
#[derive(Debug, Args)]
pub struct Whoami {
    #[command(flatten)]
    connection: Connection,
}

/// Tells whether the server is ready.
#[derive(Debug, Args)]
pub struct Health {
    #[command(flatten)]
    connection: Connection,
}

/// Carries out one verb about organisations.
pub(super) async fn organisations(
    connection: Connection,
    verb: OrganisationVerb,
) -> Result<(), CliError> {
    match verb {
        OrganisationVerb::List { operator } => {
            let session = operator_session(connection, operator)?;
            let organisations = session
                .client
                .list(&["v1", "organisations"], &[], usize::MAX)
                .await?;
            session.output.list(
                organisations,
                &[
                    ("ID", |organisation| text(organisation, "id")),
                    ("SLUG", |organisation| text(organisation, "slug")),
                    ("NAME", |organisation| text(organisation, "name")),
                    ("CREATED", |organisation| ago(organisation, "createdAt")),
                ],
                "no organisations",
            )
        }
        OrganisationVerb::Create {
            slug,
            name,
            operator,
        } => {
            let session = operator_session(connection, operator)?;
            let mut body = Map::from_iter([("slug".into(), json!(slug))]);
            body.extend(name.map(|name| ("name".into(), json!(name))));
            let created = session
                .client
                .post(&["v1", "organisations"], &[], &Value::Object(body))
                .await?;
            if !session.output.json {
                eprintln!("organisation {slug} created; its first admin key is shown once:");
            }
            session.output.done(
                &format!("SEMILAYER_ADMIN_KEY={}", text(&created, "key")),
                &created,
            )
        }
    }
}

fn operator_session(connection: Connection, operator: Operator) -> Result<Session, CliError> {
    let missing = || {
        CliError::usage(
            "SEMILAYER_OPERATOR_TOKEN (--operator-token) is required: the token that the gateway was started with",
        )
    };
    let token = operator.operator_token.ok_or_else(missing)?;
    Session::with_key(connection, Some(token))
}

/// Carries out one verb about environments.
pub(super) async fn environments(
    connection: Connection,
    verb: EnvironmentVerb,
) -> Result<(), CliError> {
    let session = Session::new(connection)?;
    match verb {
        EnvironmentVerb::List => {
            let environments = session
                .client
                .list(&["v1", "environments"], &[], usize::MAX)
                .await?;
            session.output.list(
                environments,
                &[
                    ("ID", |environment| text(environment, "id")),
                    ("SLUG", |environment| text(environment, "slug")),
                    ("CREATED", |environment| ago(environment, "createdAt")),
                ],
                "no environments",
            )
        }
        EnvironmentVerb::Get { environment } => session.output.value(
            &session
                .client
                .get(&["v1", "environments", &environment], &[])
                .await?,
        ),
        EnvironmentVerb::Create { slug } => {
            let created = session
                .client
                .post(&["v1", "environments"], &[], &json!({ "slug": slug }))
                .await?;
            session
                .output
                .done(&format!("environment {slug} created"), &created)
        }
        EnvironmentVerb::Delete { environment } => {
            let deleted = session
                .client
                .delete(&["v1", "environments", &environment], &[])
                .await?;
            session
                .output
                .done(&format!("environment {environment} deleted"), &deleted)
        }
    }
}

/// Tells whose key this is.
pub(super) async fn whoami(whoami: Whoami) -> Result<(), CliError> {
    let session = Session::new(whoami.connection)?;
    let answer = session.client.get(&["v1", "whoami"], &[]).await?;
    if session.output.json {
        return session.output.value(&answer);
    }
    for (field, value) in answer.as_object().into_iter().flatten() {
        let value = match value {
            Value::Object(_) => text(value, "name"),
            Value::Array(_) => names(&answer, field),
            value => super::output::plain(value),
        };
        session.output.line(&format!("{field}: {value}"))?;
    }
    Ok(())
}

/// Tells whether the server takes requests; fails when it does not, or drains.
pub(super) async fn health(health: Health) -> Result<(), CliError> {
    let session = Session::with_key(health.connection, None)?;
    let answer = session.client.get(&["ready"], &[]).await?;
    session.output.done("ready", &answer)
}
