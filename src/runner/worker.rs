//! What all sessions of the process share: the configuration, the bridges, the places for jobs that run at
//! once, the tasks that execute them, and what `/health` says about it all.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::config::Config;
use super::credentials::Credentials;
use super::executor::Executor;
use crate::ids::InstanceId;
use crate::protocol::{AssignedSource, CURRENT_VERSION, Hello, Stats};

/// The runner's version, as operators see it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How the process stands with its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Dialling, or waiting to dial again.
    Connecting,
    /// Connected, awaiting jobs or working on them.
    Connected,
    /// Told to stop; finishing what runs.
    Draining,
}

/// What `/health` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// How the process stands with its gateway.
    pub status: State,
    /// The runner.
    pub runner_id: String,
    /// The gateway's address.
    pub gateway: String,
    /// The runner's version.
    pub version: String,
    /// The protocol version of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    /// Jobs that run at this moment.
    pub active_jobs: u32,
    /// The names of the sources that the runner serves.
    pub sources: Vec<String>,
    /// Why the last attempt to connect failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

#[derive(Debug)]
struct Standing {
    state: State,
    protocol: Option<u32>,
    sources: Vec<String>,
    last_error: Option<String>,
}

/// What all sessions of the process share.
pub struct Worker {
    config: Config,
    executor: Arc<dyn Executor>,
    instance_id: InstanceId,
    hostname: Option<String>,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    standing: Mutex<Standing>,
}

impl Worker {
    /// A worker that is not connected yet.
    pub fn new(config: Config, executor: Arc<dyn Executor>) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(config.max_concurrent_jobs as usize)),
            config,
            executor,
            instance_id: InstanceId::new(),
            hostname: hostname(),
            tasks: TaskTracker::new(),
            standing: Mutex::new(Standing {
                state: State::Connecting,
                protocol: None,
                sources: Vec::new(),
                last_error: None,
            }),
        }
    }

    /// What the runner is told from outside.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The first frame of every session.
    pub(super) fn hello(&self) -> Hello {
        Hello {
            version: Some(CURRENT_VERSION),
            runner_id: self.config.runner_id.clone(),
            capabilities: self.executor.capabilities(),
            runtime_version: Some(VERSION.to_owned()),
            instance_id: Some(self.instance_id),
            hostname: self.hostname.clone(),
            max_concurrent_jobs: Some(self.config.max_concurrent_jobs),
            labels: self.config.labels.clone(),
            compression: vec!["zstd".to_owned()],
        }
    }

    /// The figures of a heartbeat.
    pub(super) fn stats(&self) -> Stats {
        Stats {
            active_jobs: self.active_jobs(),
            memory_mb: memory_mb(),
        }
    }

    fn active_jobs(&self) -> u32 {
        let free = u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX);
        self.config.max_concurrent_jobs.saturating_sub(free)
    }

    pub(super) fn slots(&self) -> Arc<Semaphore> {
        Arc::clone(&self.slots)
    }

    pub(super) fn executor(&self) -> Arc<dyn Executor> {
        Arc::clone(&self.executor)
    }

    pub(super) fn credentials(&self) -> Credentials {
        self.config.credentials.clone()
    }

    /// Runs a job beside its session: a session that ends does not drop its jobs half-way, it cancels them,
    /// and they tell the database.
    pub(super) fn spawn(&self, job: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(job);
    }

    /// Waits for the jobs that are still ending, `at_most` so long.
    pub(super) async fn jobs_ended(&self, at_most: Duration) {
        self.tasks.close();
        if timeout(at_most, self.tasks.wait()).await.is_err() {
            log::warn!("{} jobs did not end in time", self.tasks.len());
        }
    }

    /// Notes how the process stands with its gateway.
    pub(super) fn connecting(&self, last_error: Option<String>) {
        let mut standing = self.standing();
        // A drain is not undone by a connection that breaks meanwhile.
        if standing.state != State::Draining {
            standing.state = State::Connecting;
        }
        standing.protocol = None;
        standing.last_error = last_error.or(standing.last_error.take());
    }

    /// Notes that a session stands.
    pub(super) fn connected(&self, protocol: u32, assigned: &[AssignedSource]) {
        let mut standing = self.standing();
        standing.state = State::Connected;
        standing.protocol = Some(protocol);
        standing.last_error = None;
        drop(standing);
        self.assigned(assigned);
    }

    /// Notes that the process is on its way out.
    pub(super) fn draining(&self) {
        self.standing().state = State::Draining;
    }

    /// Notes what the runner serves.
    pub(super) fn assigned(&self, assigned: &[AssignedSource]) {
        let names: Vec<_> = assigned.iter().map(|source| source.name.clone()).collect();
        log::info!("serving {} sources: {}", names.len(), names.join(", "));
        self.standing().sources = names;
    }

    /// What `/health` answers.
    pub fn health(&self) -> Health {
        let standing = self.standing();
        Health {
            status: standing.state,
            runner_id: self.config.runner_id.clone(),
            gateway: self.config.gateway.to_string(),
            version: VERSION.to_owned(),
            protocol: standing.protocol,
            active_jobs: self.active_jobs(),
            sources: standing.sources.clone(),
            last_error: standing.last_error.clone(),
        }
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hostname() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Resident memory in MiB, where the system tells.
fn memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some((kib / 1024.0 * 10.0).round() / 10.0)
}
