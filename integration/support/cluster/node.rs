//! The processes of a cluster that die and come back: gateways and runners.

use std::path::Path;
use std::time::Duration;

use super::super::process::Process;
use super::super::rest::{Api, Runner};
use super::super::{PATIENCE, eventually, ports};

/// 32 bytes, base64: all gateways share it.
const MASTER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A program that is started with the same settings again and again.
struct Node {
    name: String,
    program: &'static str,
    argument: &'static str,
    env: Vec<(String, String)>,
    process: Option<Process>,
    starts: usize,
}

impl Node {
    fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let mut command = Process::command(self.program);
        // What is logged for each job would be most of what these tests do.
        command.arg(self.argument).env("RUST_LOG", "info");
        if let Some(level) = setting("SEMILAYER_CHAOS_LOG") {
            command.env("RUST_LOG", level);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::start(&self.name, command));
        self.starts += 1;
    }

    fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    async fn end(&mut self, signal: &str, patience: Duration) -> std::process::ExitStatus {
        self.process().signal(signal);
        let status = self.process().end(patience).await;
        self.retire();
        status
    }

    async fn stop(&mut self, patience: Duration) -> Result<(), String> {
        self.process().signal("TERM");
        let status = self.process().end(patience).await;
        let how = self.ended();
        self.retire();
        if status.success() {
            Ok(())
        } else {
            Err(format!("told to drain: {}", how.unwrap_or_default()))
        }
    }

    /// How it ended, with the last of its log, if it did so by itself.
    fn ended(&mut self) -> Option<String> {
        let process = self.process.as_mut()?;
        let status = process.ended()?;
        let log = process.log();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        Some(format!(
            "{} ended with {status}:\n{}",
            self.name,
            tail.join("\n")
        ))
    }

    /// Starts it again if it has ended by itself.
    fn revive(&mut self) {
        if self
            .process
            .as_mut()
            .is_some_and(|process| process.ended().is_some())
        {
            self.retire();
            self.start();
        }
    }

    /// Puts its log where `SEMILAYER_CHAOS_LOGS` says, if it does, and lets it go.
    fn retire(&mut self) {
        if let (Some(dir), Some(process)) = (setting("SEMILAYER_CHAOS_LOGS"), &self.process) {
            let file = Path::new(&dir).join(format!("{}-{}.log", self.name, self.starts));
            // For whoever looks into a failure; a directory that is not there must not be one.
            let _ = std::fs::write(file, process.log());
        }
        self.process = None;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.retire();
    }
}

/// A variable that adapts a run.
#[expect(
    clippy::disallowed_methods,
    reason = "where a run of the tests is told how long and how"
)]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// One gateway; it keeps its addresses and its way to the store.
pub(crate) struct GatewayNode {
    node: Node,
    /// `host:port` of the public listener.
    pub(crate) address: String,
}

impl GatewayNode {
    pub(super) fn new(name: &str, env: Vec<(&str, String)>) -> Self {
        let address = format!("127.0.0.1:{}", ports::stable_port());
        let internal = format!("127.0.0.1:{}", ports::stable_port());
        let mut env: Vec<(String, String)> = env
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        for (name, value) in [
            ("SEMILAYER_LISTEN", address.clone()),
            ("SEMILAYER_INTERNAL_LISTEN", internal.clone()),
            ("SEMILAYER_ADVERTISE_URL", format!("http://{internal}")),
            (
                "SEMILAYER_INTERNAL_TOKEN",
                "token-of-the-cluster".to_owned(),
            ),
            ("SEMILAYER_MASTER_KEY", MASTER_KEY.to_owned()),
            ("SEMILAYER_TRUSTED_PROXIES", "127.0.0.0/8".to_owned()),
        ] {
            env.push((name.to_owned(), value));
        }
        let node = Node {
            name: name.to_owned(),
            program: env!("CARGO_BIN_EXE_semilayer"),
            argument: "gateway",
            env,
            process: None,
            starts: 0,
        };
        Self { node, address }
    }

    /// Starts it, or starts it again.
    pub(crate) fn start(&mut self) {
        self.node.start();
    }

    /// Waits until it wants requests. One that finds no store when it starts ends, and is started again as any
    /// orchestrator would.
    pub(crate) async fn until_ready(&mut self, patience: Duration) {
        let api = Api::new(&format!("http://{}", self.address), None);
        let node = &mut self.node;
        eventually("a gateway is ready", patience, async || {
            if let Some(how) = node.ended() {
                assert!(
                    how.contains("cannot start the control plane: the store"),
                    "{how}"
                );
                node.revive();
                return Err(how);
            }
            let request = api.request(reqwest::Method::GET, "/ready");
            let answer = request.timeout(Duration::from_secs(2)).send().await;
            let status = answer.map_err(|error| format!("{error:?}"))?.status();
            super::super::eventually::holds(status.is_success(), status)
        })
        .await;
    }

    pub(crate) async fn kill(&mut self) {
        self.node.end("KILL", PATIENCE).await;
    }

    /// SIGTERM, and waits for its end; `Err` if that was not as it should be.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Result<(), String> {
        self.node.stop(patience).await
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&mut self, name: &str) {
        self.node.process().signal(name);
    }

    /// Starts it again if it has ended by itself.
    pub(crate) fn revive(&mut self) {
        self.node.revive();
    }

    /// How it ended, with the last of its log, if it did so by itself.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.node.ended()
    }
}

/// One runner; it keeps its line to the balancer, and its identity unless its token changes.
pub(crate) struct RunnerNode {
    node: Node,
    pub(crate) identity: Runner,
}

impl RunnerNode {
    pub(super) fn start(name: &str, identity: Runner, port: u16) -> Self {
        let env = [
            ("SEMILAYER_RUNNER_ID", identity.id.clone()),
            ("SEMILAYER_RUNNER_TOKEN", identity.token.clone()),
            ("SEMILAYER_GATEWAY_URL", format!("ws://127.0.0.1:{port}")),
            // The witness counts by these tags.
            ("SEMILAYER_TAG_SQL", "1".to_owned()),
        ];
        let node = Node {
            name: name.to_owned(),
            program: env!("CARGO_BIN_EXE_semilayer-runner"),
            argument: "start",
            env: env
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            process: None,
            starts: 0,
        };
        let mut runner = Self { node, identity };
        runner.node.start();
        runner
    }

    /// Starts it again.
    pub(crate) fn restart(&mut self) {
        self.node.start();
    }

    /// From its next start on it uses this token.
    pub(crate) fn use_token(&mut self, token: &str) {
        token.clone_into(&mut self.identity.token);
        for (name, value) in &mut self.node.env {
            if name == "SEMILAYER_RUNNER_TOKEN" {
                token.clone_into(value);
            }
        }
    }

    pub(crate) async fn kill(&mut self) {
        self.node.end("KILL", PATIENCE).await;
    }

    /// SIGTERM, and waits for its end; `Err` if that was not as it should be.
    pub(crate) async fn stop(&mut self, patience: Duration) -> Result<(), String> {
        self.node.stop(patience).await
    }

    /// Waits until it has ended by itself, and answers with its exit code.
    pub(crate) async fn until_ended(&mut self, patience: Duration) -> Option<i32> {
        let status = self.node.process().end(patience).await;
        self.node.retire();
        status.code()
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn signal(&mut self, name: &str) {
        self.node.process().signal(name);
    }

    /// Starts it again if it has ended by itself.
    pub(crate) fn revive(&mut self) {
        self.node.revive();
    }

    /// Whether it ended by itself.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.node.ended()
    }
}
