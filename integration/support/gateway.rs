//! A gateway process: `semilayer dev --no-demo` on free ports with a data directory of its own, or
//! `semilayer gateway` on a PostgreSQL database that it may share with others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::databases::Database;
use super::process::Process;
use super::rest::{Api, Runner, text};
use super::{PATIENCE, eventually};

/// The operator's token of hosted gateways.
pub(crate) const OPERATOR: &str = "operator-token-of-the-tests";

/// How to start a gateway.
pub(crate) struct GatewayBuilder {
    command: Command,
    listen: String,
}

impl GatewayBuilder {
    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets intervals, e.g. `hello=500ms`.
    pub(crate) fn timing(self, intervals: &str) -> Self {
        self.env("SEMILAYER_TIMING", intervals)
    }

    /// Listens on this address instead of a free port.
    pub(crate) fn listen(mut self, address: &str) -> Self {
        address.clone_into(&mut self.listen);
        self
    }

    /// Starts it on a new data directory and waits until it answers.
    pub(crate) async fn start(self) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        self.start_in(&path, Some(dir)).await
    }

    /// Starts it on a given data directory.
    pub(crate) async fn start_in(mut self, data_dir: &Path, owned: Option<TempDir>) -> Gateway {
        self.command
            .arg("--listen")
            .arg(self.listen)
            .arg("--data-dir")
            .arg(data_dir);
        let mut process = Process::start("gateway", self.command);
        let ready: Value = eventually(
            "gateway reports its addresses",
            Duration::from_secs(60),
            async || {
                if let Some(status) = process.ended() {
                    panic!("the gateway ended with {status}:\n{}", process.log());
                }
                let out = process.stdout();
                let line = out.strip_suffix('\n').ok_or("no line on stdout yet")?;
                serde_json::from_str(line).map_err(|error| format!("{error} in `{line}`"))
            },
        )
        .await;
        Gateway {
            process,
            ready,
            data_dir: data_dir.to_owned(),
            _owned: owned,
        }
    }
}

/// The master key of hosted gateways: 32 zero bytes.
const MASTER_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    /// The line that it printed.
    pub(crate) ready: Value,
    pub(crate) data_dir: PathBuf,
    _owned: Option<TempDir>,
}

impl Gateway {
    /// Starts one with the defaults.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// One that was started otherwise, with what `semilayer dev` would have printed.
    pub(crate) fn of(process: Process, ready: Value) -> Self {
        Self {
            process,
            ready,
            data_dir: PathBuf::new(),
            _owned: None,
        }
    }

    /// `semilayer dev --no-demo`, to be adapted.
    pub(crate) fn builder() -> GatewayBuilder {
        Self::dev(&["--no-demo"])
    }

    /// `semilayer dev`, with further arguments.
    pub(crate) fn dev(arguments: &[&str]) -> GatewayBuilder {
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
        command.args(["dev", "--json"]).args(arguments);
        GatewayBuilder {
            command,
            listen: "127.0.0.1:0".to_owned(),
        }
    }

    /// The first gateway on an empty PostgreSQL database, with these intervals, an organisation and its keys.
    pub(crate) async fn hosted(database: &Database, intervals: &str) -> Self {
        let mut gateway = Self::start_hosted(database, intervals).await;
        let operator = Api::new(&gateway.url(), Some(OPERATOR));
        let organisation = operator
            .post("/v1/organisations", json!({"slug": "acme"}))
            .await
            .expect(201);
        gateway.ready["adminKey"] = organisation["key"].clone();
        let key = gateway
            .admin()
            .post("/v1/keys", json!({"kind": "sk", "name": "test"}))
            .await
            .expect(201);
        gateway.ready["secretKey"] = key["key"].clone();
        gateway
    }

    /// One more gateway on the database of this one.
    pub(crate) async fn beside(&self, database: &Database, intervals: &str) -> Self {
        let mut gateway = Self::start_hosted(database, intervals).await;
        for key in ["adminKey", "secretKey"] {
            gateway.ready[key] = self.ready[key].clone();
        }
        gateway
    }

    async fn start_hosted(database: &Database, intervals: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
        command
            .args(["gateway", "--listen", "127.0.0.1:0"])
            .env("SEMILAYER_DATABASE_URL", database.url().as_str())
            .env("SEMILAYER_DATA_DIR", dir.path())
            .env("SEMILAYER_MASTER_KEY", MASTER_KEY)
            .env("SEMILAYER_OPERATOR_TOKEN", OPERATOR)
            .env("SEMILAYER_TIMING", intervals);
        let mut process = Process::start("gateway", command);
        let address = eventually(
            "gateway says where it listens",
            Duration::from_secs(60),
            async || {
                if let Some(status) = process.ended() {
                    panic!("the gateway ended with {status}:\n{}", process.log());
                }
                let log = process.log();
                let found = log
                    .lines()
                    .find_map(|line| Some(line.split_once("listening on ")?.1.to_owned()));
                found.ok_or(log)
            },
        )
        .await;
        Self {
            process,
            ready: json!({"url": format!("http://{}", address.trim())}),
            data_dir: dir.path().to_owned(),
            _owned: Some(dir),
        }
    }

    /// `semilayer gateway` on this PostgreSQL store, which it may share with others. Whoever makes an
    /// organisation there completes `ready` with its keys.
    pub(crate) async fn on_store(store: &Database, timing: &str) -> Self {
        let free = || {
            std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
        };
        let (listen, internal) = (free(), free());
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
        command
            .arg("gateway")
            .env("SEMILAYER_DATABASE_URL", store.url().as_str())
            .env("SEMILAYER_LISTEN", listen.to_string())
            .env("SEMILAYER_INTERNAL_LISTEN", internal.to_string())
            .env("SEMILAYER_ADVERTISE_URL", format!("http://{internal}"))
            .env("SEMILAYER_INTERNAL_TOKEN", "internal-token-of-the-tests")
            .env("SEMILAYER_OPERATOR_TOKEN", OPERATOR)
            .env(
                "SEMILAYER_MASTER_KEY",
                "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            )
            .env("SEMILAYER_TIMING", timing);
        let mut gateway = Self {
            process: Process::start("gateway", command),
            ready: json!({"url": format!("http://{listen}")}),
            data_dir: PathBuf::new(),
            _owned: None,
        };
        eventually("the gateway answers", PATIENCE, async || {
            if let Some(status) = gateway.process.ended() {
                panic!(
                    "the gateway ended with {status}:\n{}",
                    gateway.process.log()
                );
            }
            let there = tokio::net::TcpStream::connect(listen).await;
            there.map(drop).map_err(|error| error.to_string())
        })
        .await;
        gateway
    }

    /// Where runners and REST callers arrive.
    pub(crate) fn url(&self) -> String {
        text(&self.ready, "url")
    }

    /// `host:port` of the public listener.
    pub(crate) fn address(&self) -> String {
        let url = self.url();
        url.trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned()
    }

    /// The admin API.
    pub(crate) fn admin(&self) -> Api {
        Api::new(&self.url(), Some(&text(&self.ready, "adminKey")))
    }

    /// What a server-side caller may do.
    pub(crate) fn caller(&self) -> Api {
        Api::new(&self.url(), Some(&text(&self.ready, "secretKey")))
    }

    /// The internal listener.
    pub(crate) fn internal(&self) -> Api {
        Api::new(
            &text(&self.ready, "internalUrl"),
            Some(&text(&self.ready, "internalToken")),
        )
    }

    /// Executes one operation in the source's own names.
    pub(crate) async fn dispatch(&self, source: &str, job: Value) -> super::Answer {
        self.internal()
            .post("/dispatch", json!({"sourceId": source, "job": job}))
            .await
    }

    /// Waits until the runner's status is this one.
    pub(crate) async fn until_runner_is(&self, runner: &Runner, status: &str) {
        let path = format!("/v1/runners/{}", runner.id);
        let admin = self.admin();
        eventually(&format!("runner is {status}"), PATIENCE, async || {
            let now = text(&admin.get(&path).await.expect(200), "status");
            if now == status { Ok(()) } else { Err(now) }
        })
        .await;
    }

    /// Waits for the only job that was given to a runner and is not finished, and answers with its id.
    pub(crate) async fn until_dispatched(&self) -> String {
        let admin = self.admin();
        eventually("a job is dispatched", PATIENCE, async || {
            let jobs = admin.jobs("state=dispatched").await;
            jobs.first()
                .map(|job| text(job, "id"))
                .ok_or_else(|| "no job is dispatched".to_owned())
        })
        .await
    }

    /// Waits until the job's state is this one, and answers with the job.
    pub(crate) async fn until_job_is(&self, id: &str, state: &str) -> Value {
        let admin = self.admin();
        eventually(&format!("job is {state}"), PATIENCE, async || {
            let job = admin.job(id).await;
            if job["state"] == state {
                Ok(job)
            } else {
                Err(job.to_string())
            }
        })
        .await
    }

    /// Asserts that it answers and still runs as the process that was started.
    pub(crate) async fn assert_healthy(&mut self) {
        self.admin()
            .anonymous()
            .get("/health")
            .await
            .expect_success();
        assert!(self.process.ended().is_none());
    }
}
