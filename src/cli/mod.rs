//! The admin CLI: every command is a few REST calls and a table, or the server's JSON with `--json`.
//!
//! Exit codes: 0 done, 1 the server said no or something failed, 2 wrong usage, 3 nobody answered or the
//! server asks to come back later, 4 the key is missing, wrong or not enough.

mod client;
mod error;
mod input;
mod jobs;
mod keys;
mod lenses;
mod output;
mod query;
mod runners;
mod settings;
mod sources;
mod stream;
mod tenancy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use secrecy::SecretString;
use url::Url;

pub use client::Client;
pub use error::CliError;
pub use lenses::lens_of_target;

use output::Output;

/// Where the server is and who asks.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The server
    #[arg(
        long,
        env = "SEMILAYER_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        global = true,
        help_heading = "Connection"
    )]
    pub server: String,
    /// An organisation's admin key (`ak_…`)
    #[arg(long, env = "SEMILAYER_ADMIN_KEY", value_name = "KEY", value_parser = input::secret, hide_env_values = true, global = true, help_heading = "Connection")]
    pub admin_key: Option<SecretString>,
    /// The environment, when the organisation has several
    #[arg(
        long,
        env = "SEMILAYER_ENVIRONMENT",
        value_name = "SLUG",
        global = true,
        help_heading = "Connection"
    )]
    pub environment: Option<String>,
    /// A file with further certificate authorities to trust (PEM)
    #[arg(
        long,
        env = "SEMILAYER_CA_FILE",
        value_name = "FILE",
        global = true,
        help_heading = "Connection"
    )]
    pub ca_file: Option<PathBuf>,
    /// Print the server's JSON instead of tables and sentences
    #[arg(long, global = true, help_heading = "Connection")]
    pub json: bool,
}

/// A resource, and what to do with it.
#[derive(Debug, Args)]
pub struct Resource<V: Subcommand> {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    verb: V,
}

/// The commands that talk to a running gateway.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runners: the processes that dial out of a network and query its databases
    Runners(Resource<runners::Verb>),
    /// Sources: databases that can be queried
    Sources(Resource<sources::Verb>),
    /// Lenses: named, typed views of one table of a source
    Lenses(Resource<lenses::Verb>),
    /// API keys of an environment or the organisation
    Keys(Resource<keys::Verb>),
    /// Jobs: queries under way and past ones
    Jobs(Resource<jobs::Verb>),
    /// Environments of the organisation
    Environments(Resource<tenancy::EnvironmentVerb>),
    /// Organisations (for the operator of the gateway)
    Organisations(Resource<tenancy::OrganisationVerb>),
    /// Query a lens: a table on a terminal, one JSON object per line when piped
    Query(query::Query),
    /// Tell whose key this is
    Whoami(tenancy::Whoami),
    /// Tell whether the server is ready; for health checks of containers
    Health(tenancy::Health),
}

/// What a command works with.
struct Session {
    client: Client,
    output: Output,
    environment: Option<String>,
}

impl Session {
    fn new(connection: Connection) -> Result<Self, CliError> {
        let key = connection.admin_key.clone();
        Self::with_key(connection, key)
    }

    fn with_key(connection: Connection, key: Option<SecretString>) -> Result<Self, CliError> {
        let url = server_url(&connection.server)?;
        let client = Client::new(url, key, connection.ca_file.as_deref())?;
        Ok(Self {
            client,
            output: Output::new(connection.json),
            environment: connection.environment,
        })
    }

    /// The query string of calls about an environment's things.
    fn in_environment(&self) -> Vec<(&'static str, String)> {
        self.environment
            .iter()
            .map(|slug| ("environment", slug.clone()))
            .collect()
    }
}

fn server_url(text: &str) -> Result<Url, CliError> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| CliError::usage(format!("SEMILAYER_URL (--server): `{text}` is not a URL such as `https://semilayer.example.com`")))
}

/// Runs one command and answers with the process's exit code; errors have been printed to stderr by then.
pub async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Runners(Resource { connection, verb }) => runners::run(connection, verb).await,
        Command::Sources(Resource { connection, verb }) => sources::run(connection, verb).await,
        Command::Lenses(Resource { connection, verb }) => lenses::run(connection, verb).await,
        Command::Keys(Resource { connection, verb }) => keys::run(connection, verb).await,
        Command::Jobs(Resource { connection, verb }) => jobs::run(connection, verb).await,
        Command::Environments(Resource { connection, verb }) => {
            tenancy::environments(connection, verb).await
        }
        Command::Organisations(Resource { connection, verb }) => {
            tenancy::organisations(connection, verb).await
        }
        Command::Query(query) => query::run(query).await,
        Command::Whoami(whoami) => tenancy::whoami(whoami).await,
        Command::Health(health) => tenancy::health(health).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            error.exit_code()
        }
    }
}

#[cfg(test)]
mod tests;
