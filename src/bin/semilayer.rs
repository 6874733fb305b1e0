//! `semilayer`: the gateway, a whole system for development, and the admin CLI. Arguments become a
//! configuration, and the configuration is run; nothing else happens here.

use std::pin::pin;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use semilayer::config::{ConfigError, GatewayArgs, GatewayConfig};
use semilayer::dev::{self, Dev, DevArgs};
use semilayer::gateway::Gateway;
use semilayer::process::{self, EXIT_FAILED, EXIT_USAGE, Shutdown};
use semilayer::{cli, logging};
use tokio::runtime::Handle;

/// Query databases behind a firewall through runners that dial out.
#[derive(Debug, Parser)]
#[command(name = "semilayer", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane
    Gateway(GatewayCommand),
    /// Run everything in one go, with a demo database to query
    Dev(DevArgs),
    #[command(flatten)]
    Admin(cli::Command),
}

#[derive(Debug, clap::Args)]
struct GatewayCommand {
    #[command(flatten)]
    settings: GatewayArgs,
    /// Print the settings, without their secrets, and exit
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    // `semilayer dev` starts this very program again as its runner.
    #[cfg(feature = "runner")]
    if dev::is_runner() {
        return semilayer::runner::main();
    }
    process::install_tls_provider();
    let arguments = Arguments::parse();
    logging::start(match arguments.command {
        Command::Admin(_) => "warn",
        Command::Gateway(_) | Command::Dev(_) => "info",
    });
    let done = match arguments.command {
        Command::Gateway(gateway) => run_gateway(gateway),
        Command::Dev(args) => run_dev(args),
        Command::Admin(command) => process::run_system(async { Ok(cli::run(command).await) }),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(if error.is::<ConfigError>() {
            EXIT_USAGE
        } else {
            EXIT_FAILED
        })
    })
}

fn run_gateway(command: GatewayCommand) -> anyhow::Result<ExitCode> {
    let config = command.settings.resolve()?;
    if command.print_config {
        for line in config.redacted() {
            println!("{line}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    process::run_system(async move {
        let mut stop = pin!(Shutdown::catch()?.requested());
        let Some(gateway) = start(&config, stop.as_mut()).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        // On a hosted store the operator's token makes organisations and their keys.
        if gateway.control.store.is_embedded() && gateway.is_unclaimed().await? {
            let key = gateway.make_admin_key("first").await?;
            println!("SEMILAYER_ADMIN_KEY={key}");
            println!(
                "# the admin key of organisation `default`, shown this once; the store has only its hash"
            );
        }
        stop.await;
        gateway.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}

fn run_dev(args: DevArgs) -> anyhow::Result<ExitCode> {
    let dev = Dev::resolve(args)?;
    process::run_system(async move {
        let mut stop = pin!(Shutdown::catch()?.requested());
        let Some(gateway) = start(&dev.config, stop.as_mut()).await? else {
            return Ok(ExitCode::SUCCESS);
        };
        let done = dev.run(&gateway, stop).await;
        gateway.stop().await;
        done.map(|()| ExitCode::SUCCESS)
    })
}

/// Starts a gateway, unless the process is told to stop before it runs.
async fn start(
    config: &GatewayConfig,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Option<Gateway>> {
    let runtime = Handle::current();
    tokio::select! {
        gateway = Gateway::start(config, &runtime) => gateway.map(Some),
        () = stop => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_and_flag_is_declared_without_contradiction() {
        Arguments::command().debug_assert();
    }
}
