//! A runner process: `semilayer-runner start`.

use std::process::Command;

use super::gateway::Gateway;
use super::process::Process;
use super::rest::Runner;

/// How to start a runner.
pub(crate) struct RunnerBuilder {
    command: Command,
}

impl RunnerBuilder {
    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// How many jobs it takes at once.
    pub(crate) fn capacity(self, jobs: u32) -> Self {
        self.env("SEMILAYER_MAX_CONCURRENT_JOBS", &jobs.to_string())
    }

    /// Starts it without waiting for anything.
    pub(crate) fn spawn(self) -> RunnerProcess {
        RunnerProcess {
            process: Process::start("runner", self.command),
        }
    }
}

/// A running runner.
pub(crate) struct RunnerProcess {
    pub(crate) process: Process,
}

impl RunnerProcess {
    /// One for this identity, to be adapted.
    pub(crate) fn builder(gateway: &Gateway, runner: &Runner) -> RunnerBuilder {
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer-runner"));
        command
            .arg("start")
            .env("SEMILAYER_RUNNER_ID", &runner.id)
            .env("SEMILAYER_RUNNER_TOKEN", &runner.token)
            .env(
                "SEMILAYER_GATEWAY_URL",
                gateway.url().replacen("http", "ws", 1),
            );
        RunnerBuilder { command }
    }

    /// Starts one with the defaults and waits until the gateway would use it.
    pub(crate) async fn start(gateway: &Gateway, runner: &Runner) -> Self {
        let process = Self::builder(gateway, runner).spawn();
        gateway.until_runner_is(runner, "online").await;
        process
    }
}
