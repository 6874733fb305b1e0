//! The runner's commands: what each does with the parts, what it prints, and its exit code.
//! 0: done. 1: something is not as it should be. 2: the configuration is missing something.
//! 3: the gateway will not have this runner with this token. 128 + n: ended at once by signal n.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::args::{Cli, Command, DoctorArgs, StartArgs, StatusArgs, TestSourceArgs};
use super::config::{Config, ConfigError, Environment, health_port};
use super::credentials::Credentials;
use super::dial::Dialer;
use super::executor::{self, Executor};
use super::probe::{self, Probe};
use super::session::Session;
use super::supervisor::{Exit, Schedule, Supervisor};
use super::worker::{State, Worker};
use super::{doctor, health, tls};
use crate::bridge::{BridgeOptions, Bridges};
use crate::clock::Clock;
use crate::logging;
use crate::protocol::CredentialsLocation;

const FAILED: u8 = 1;
const MISCONFIGURED: u8 = 2;
const REFUSED: u8 = 3;

/// The whole of `semilayer-runner`: arguments, log, runtime, exit code.
pub fn main() -> ExitCode {
    tls::install_crypto();
    let cli = Cli::parse();
    logging::start("info");
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            log::error!("no threads to run on: {e}");
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(run(cli, Environment::of_process()));
    // Whatever still sits in a blocking call is not waited for: what had to end in order has.
    runtime.shutdown_background();
    code
}

/// Does what the command line says.
pub async fn run(cli: Cli, environment: Environment) -> ExitCode {
    let done = match cli.command {
        Command::Start(args) => start(&args, &environment).await,
        Command::Status(args) => status(&args).await,
        Command::Doctor(args) => Ok(doctor(&args, &environment).await),
        Command::TestSource(args) => test_source(&args, &environment).await,
    };
    done.unwrap_or_else(|e| {
        say_error(&e.to_string());
        ExitCode::from(MISCONFIGURED)
    })
}

async fn start(args: &StartArgs, environment: &Environment) -> Result<ExitCode, ConfigError> {
    let config = Config::resolve(&args.settings, environment)?;
    let dialer = Dialer::new(&config)?;
    let stop =
        stop_signals().map_err(|e| ConfigError::new(format!("cannot listen for signals: {e}")))?;
    if args.stop_with_stdin {
        stop_with_stdin(stop.clone());
    }
    let port = config.port;
    log::info!(
        "semilayer-runner {} starts as {}",
        super::worker::VERSION,
        config.runner_id
    );
    let worker = Arc::new(Worker::new(
        config.clone(),
        Arc::new(executor::bridges(&config)),
    ));
    if let Some(port) = port {
        // Orchestrators ask from outside the container, so loopback would not do.
        let listener = TcpListener::bind(("0.0.0.0", port)).await;
        let listener = listener
            .map_err(|e| ConfigError::new(format!("PORT: /health cannot listen on {port}: {e}")))?;
        tokio::spawn(health::serve(listener, Arc::clone(&worker)));
    }
    match Supervisor::new(worker, dialer, Schedule::moving_after(config.move_after))
        .run(stop)
        .await
    {
        Exit::Stopped => {
            log::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        Exit::Refused(why) => {
            say_error(&why);
            Ok(ExitCode::from(REFUSED))
        }
    }
}

/// Fires at the first SIGTERM or SIGINT; the second ends the process at once.
fn stop_signals() -> io::Result<CancellationToken> {
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        loop {
            let signal = tokio::select! {
                _ = term.recv() => SignalKind::terminate(),
                _ = int.recv() => SignalKind::interrupt(),
            };
            if told.is_cancelled() {
                log::warn!("told twice to stop: ending at once");
                std::process::exit(128 + signal.as_raw_value());
            }
            log::info!("told to stop: running jobs may finish");
            told.cancel();
        }
    });
    Ok(stop)
}

/// Fires `stop` when standard input ends: whoever holds the other end is gone, or wants an end.
fn stop_with_stdin(stop: CancellationToken) {
    // A thread of its own: reading standard input cannot be given up, and would hold up a runtime's end.
    std::thread::spawn(move || {
        // An error is an end, too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        log::info!("standard input has ended: running jobs may finish");
        stop.cancel();
    });
}

async fn status(args: &StatusArgs) -> Result<ExitCode, ConfigError> {
    let Some(port) = health_port(args.port.as_deref())? else {
        return Err(ConfigError::new(
            "PORT is not set: start the runner with PORT=<port> so that it serves /health, and give `status` the same \
             (without it, `semilayer runners list` shows whether the runner is online)",
        ));
    };
    let health = match health::ask(port).await {
        Ok(health) => health,
        Err(e) => {
            say_error(&format!(
                "no runner answers at http://127.0.0.1:{port}/health: {e}"
            ));
            return Ok(ExitCode::from(FAILED));
        }
    };
    let connected = health.status == State::Connected;
    if args.json {
        say(&serde_json::to_string(&health).unwrap_or_default());
    } else {
        let state = match health.status {
            State::Connected => "connected to",
            State::Connecting => "not connected to",
            State::Draining => "draining, was connected to",
        };
        say(&format!(
            "{} {state} {}, {} jobs running, {} sources: {}",
            health.runner_id,
            health.gateway,
            health.active_jobs,
            health.sources.len(),
            health.sources.join(", ")
        ));
        if let Some(why) = health.last_error {
            say(&why);
        }
    }
    Ok(if connected {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    })
}

async fn doctor(args: &DoctorArgs, environment: &Environment) -> ExitCode {
    let config = Config::resolve(&args.settings, environment);
    let bridges = config.as_ref().map_or_else(
        |_| Bridges::new(BridgeOptions::default()),
        executor::bridges,
    );
    let report = doctor::examine(config, Arc::new(bridges), &Clock::system()).await;
    if args.json {
        say(&serde_json::to_string(&report).unwrap_or_default());
    } else {
        say(report.to_string().trim_end());
    }
    if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILED)
    }
}

async fn test_source(
    args: &TestSourceArgs,
    environment: &Environment,
) -> Result<ExitCode, ConfigError> {
    let executor: Arc<dyn Executor> = Arc::new(Bridges::new(BridgeOptions {
        ca_file: args.settings.ca_file.clone(),
        ..BridgeOptions::default()
    }));
    let (bridge, local) = match &args.bridge {
        Some(bridge) => (bridge.clone(), vec![args.name.clone()]),
        None => match ask_gateway(args, environment, &executor).await? {
            Ok(found) => found,
            Err(why) => {
                say_error(&why);
                return Ok(ExitCode::from(FAILED));
            }
        },
    };
    let probe = Probe {
        name: &args.name,
        bridge: &bridge,
        local: &local,
    };
    match probe::test(
        probe,
        &Credentials::from_environment(environment),
        &executor,
    )
    .await
    {
        Ok(told) => {
            say(&format!("✓ {}: {told}", args.name));
            Ok(ExitCode::SUCCESS)
        }
        Err(why) => {
            say(&format!("✗ {} — {why}", args.name));
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// The source's bridge and the names of all runner-local sources, from the gateway.
async fn ask_gateway(
    args: &TestSourceArgs,
    environment: &Environment,
    executor: &Arc<dyn Executor>,
) -> Result<Result<(String, Vec<String>), String>, ConfigError> {
    let name = &args.name;
    let hint = |e: ConfigError| {
        ConfigError::new(format!(
            "{e} (or name the bridge: test-source {name} --bridge postgres)"
        ))
    };
    let config = Config::resolve(&args.settings, environment).map_err(hint)?;
    let dialer = Dialer::new(&config)?;
    let worker = Arc::new(Worker::new(config, Arc::clone(executor)));
    let session = match Session::connect(&dialer, &worker).await {
        Ok(session) => session,
        Err(e) => {
            return Ok(Err(format!(
                "{e} (or name the bridge: test-source {name} --bridge postgres)"
            )));
        }
    };
    let assigned = session.assigned();
    session.leave(worker).await;
    let Some(source) = assigned.iter().find(|source| source.name == *name) else {
        let names: Vec<_> = assigned.iter().map(|source| source.name.as_str()).collect();
        return Ok(Err(format!(
            "source `{name}` is not assigned to this runner; it serves: {}",
            names.join(", ")
        )));
    };
    if source.credentials_location == CredentialsLocation::Managed {
        return Ok(Err(format!(
            "source `{name}` is managed: its credentials are with the gateway, which tests it with `semilayer sources test {name}`"
        )));
    }
    let local = assigned
        .iter()
        .filter(|source| source.credentials_location == CredentialsLocation::RunnerLocal);
    Ok(Ok((
        source.bridge.clone(),
        local.map(|source| source.name.clone()).collect(),
    )))
}

/// A line to stdout; nobody reading it is no reason to panic.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// A line to stderr, whatever the log level is.
fn say_error(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
