//! The command line of `semilayer-runner`. Only parsed here; what the values must look like is decided in
//! [`super::config`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Executes queries next to your databases; dials out, never listens to the network.
#[derive(Debug, Parser)]
#[command(name = "semilayer-runner", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The runner's commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connects to the gateway and works until it is told to stop.
    Start(StartArgs),
    /// Says whether the runner on this machine is connected (asks its /health).
    Status(StatusArgs),
    /// Checks everything that the runner needs, line by line, and says what to do about what fails.
    Doctor(DoctorArgs),
    /// Connects to one source with the credentials in this environment.
    TestSource(TestSourceArgs),
}

/// How the runner is configured; every flag has a variable. The token has only variables:
/// `SEMILAYER_RUNNER_TOKEN`, or a file named by `SEMILAYER_RUNNER_TOKEN_FILE`.
#[derive(Debug, Clone, Default, Args)]
pub struct Settings {
    /// The runner's UUID, or its name.
    #[arg(long, env = "SEMILAYER_RUNNER_ID", value_name = "ID")]
    pub runner_id: Option<String>,
    /// A file that holds the runner's token (instead of `SEMILAYER_RUNNER_TOKEN`).
    #[arg(long, env = "SEMILAYER_RUNNER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The gateway, e.g. <wss://gateway.example.com>.
    #[arg(
        long,
        env = "SEMILAYER_GATEWAY_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub gateway_url: Option<String>,
    /// Allows an unencrypted connection to a gateway that is not on this machine.
    #[arg(long, env = "SEMILAYER_INSECURE", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub insecure: bool,
    /// How many jobs run at once [default: 64].
    #[arg(long, env = "SEMILAYER_MAX_CONCURRENT_JOBS", value_name = "N")]
    pub max_concurrent_jobs: Option<String>,
    /// Serves /health on this port, for the orchestrator.
    #[arg(long, env = "PORT")]
    pub port: Option<String>,
    /// More certificate authorities to trust (PEM), e.g. of a proxy that inspects TLS.
    #[arg(long, env = "SEMILAYER_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Labels to route by, separated by commas.
    #[arg(long, env = "SEMILAYER_LABELS", value_name = "LABELS")]
    pub labels: Option<String>,
    /// Moves to another gateway after about this long, e.g. `90m`, so that load spreads again [default: 60m].
    #[arg(long, env = "SEMILAYER_MOVE_AFTER", value_name = "DURATION")]
    pub move_after: Option<String>,
    /// Starts every statement with a comment that names the job.
    #[arg(long, env = "SEMILAYER_TAG_SQL", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub tag_sql: bool,
    /// Ends a job that produces more rows than this.
    #[arg(long, env = "SEMILAYER_MAX_ROWS_PER_JOB", value_name = "N")]
    pub max_rows_per_job: Option<String>,
    /// Ends a job that produces more bytes than this.
    #[arg(long, env = "SEMILAYER_MAX_BYTES_PER_JOB", value_name = "N")]
    pub max_bytes_per_job: Option<String>,
}

/// What `start` needs.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// The runner's own settings.
    #[command(flatten)]
    pub settings: Settings,
    /// Stops in order when standard input ends, as it does when the parent process dies.
    #[arg(long, hide = true)]
    pub stop_with_stdin: bool,
}

/// What `status` needs.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The port of the runner's /health.
    #[arg(long, env = "PORT")]
    pub port: Option<String>,
    /// Prints the runner's answer as it is.
    #[arg(long)]
    pub json: bool,
}

/// What `doctor` needs.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The runner's own settings.
    #[command(flatten)]
    pub settings: Settings,
    /// Prints one JSON document instead of lines.
    #[arg(long)]
    pub json: bool,
}

/// What `test-source` needs.
#[derive(Debug, Args)]
pub struct TestSourceArgs {
    /// The source's name.
    pub name: String,
    /// Its bridge, e.g. `postgres`; without it, the gateway is asked.
    #[arg(long)]
    pub bridge: Option<String>,
    /// The runner's own settings.
    #[command(flatten)]
    pub settings: Settings,
}
