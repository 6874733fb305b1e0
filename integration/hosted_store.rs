//! The hosted store goes away and comes back, and its connections are cut: callers are told the truth, and
//! nothing has to be started again.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::eventually::holds;
use crate::support::pg_server::PgServer;
use crate::support::process::Process;
use crate::support::rest::{Api, text};
use crate::support::{Answer, Engine, Gateway, PATIENCE, Stage, databases, eventually};

const OPERATOR: &str = "operator-of-this-gateway";
const MASTER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
/// A caller is never left waiting longer than this because of the store.
const A_FEW_SECONDS: Duration = Duration::from_secs(8);

/// A gateway on a database of a server of its own, as a role that is allowed no more than it needs.
async fn gateway_on(server: &PgServer) -> Gateway {
    server
        .execute("postgres", "CREATE ROLE gateway LOGIN")
        .await;
    server
        .execute("postgres", "CREATE DATABASE semilayer OWNER gateway")
        .await;
    let store = server.url("semilayer").replace("postgres@", "gateway@");
    let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
    command
        .args(["gateway", "--listen", "127.0.0.1:0"])
        .env("SEMILAYER_DATABASE_URL", store)
        .env("SEMILAYER_MASTER_KEY", MASTER_KEY)
        .env("SEMILAYER_OPERATOR_TOKEN", OPERATOR)
        .env("SEMILAYER_INLINE_ALLOW", "127.0.0.0/8")
        .env("SEMILAYER_TIMING", "sweep=500ms,deadline_grace=1s");
    let mut process = Process::start("gateway", command);
    let patience = Duration::from_secs(60);
    let address = eventually("the gateway listens", patience, async || {
        if let Some(status) = process.ended() {
            panic!("the gateway ended with {status}:\n{}", process.log());
        }
        let log = process.log();
        let (_, after) = log.split_once("listening on ").ok_or("not yet")?;
        let (address, _) = after.split_once(char::is_whitespace).ok_or("not yet")?;
        Ok(address.to_owned())
    })
    .await;
    let url = format!("http://{address}");
    let operator = Api::new(&url, Some(OPERATOR));
    let made = operator.post("/v1/organisations", json!({"slug": "acme"}));
    let admin = text(&made.await.expect(201), "key");
    let made = operator.with_key(&admin);
    let made = made.post("/v1/keys", json!({"kind": "sk"})).await;
    let secret = text(&made.expect(201), "key");
    Gateway::of(
        process,
        json!({"url": url, "adminKey": admin, "secretKey": secret}),
    )
}

/// Stops the server without starting it again, in `pg_ctl`'s words.
fn stop(server: &PgServer, mode: &str) {
    let dir = server.log_file().parent().unwrap().to_owned();
    let bin = std::fs::read_dir("/usr/lib/postgresql").unwrap();
    let mut bins: Vec<_> = bin.flatten().map(|bin| bin.path().join("bin")).collect();
    bins.sort();
    let script = r#"
        run() { if [ "$(id -u)" = 0 ]; then runuser -u nobody -- "$@"; else "$@"; fi; }
        cd / && run "$1/pg_ctl" -D "$2/data" -m "$3" -w stop >/dev/null
    "#;
    let stopped = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(bins.last().expect("PostgreSQL is installed"))
        .arg(dir)
        .arg(mode)
        .status();
    assert!(stopped.unwrap().success(), "the server did not stop");
}

/// What callers that never stop asking were told.
struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Vec<(Answer, Duration)>>>,
}

impl Load {
    fn start(api: &Api) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..4)
            .map(|n| {
                let (api, stop) = (api.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut told = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let id = told.len() as u64 % databases::PRODUCTS + 1;
                        let asked = Instant::now();
                        let answer = api.query("products", json!({"where": {"id": id}})).await;
                        if answer.status.is_success() {
                            assert_eq!(answer.rows(), [databases::product(id)]);
                        } else {
                            // As a caller does that was told when to come back, only sooner.
                            tokio::time::sleep(Duration::from_millis(20 + n)).await;
                        }
                        told.push((answer, asked.elapsed()));
                    }
                    told
                })
            })
            .collect();
        Self { stop, callers }
    }

    /// Ends it. Everybody got their rows, or was told in time that it is the store; returns how often what
    /// was said, and the jobs that were answered.
    async fn end(self) -> (BTreeMap<String, usize>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut said, mut answered) = (BTreeMap::<String, usize>::new(), Vec::new());
        for caller in self.callers {
            for (answer, took) in caller.await.unwrap() {
                assert!(took < A_FEW_SECONDS, "{took:?} until {answer:?}");
                if answer.status.is_success() {
                    answered.push(text(&answer.json()["meta"], "jobId"));
                    *said.entry("rows".to_owned()).or_default() += 1;
                } else {
                    answer.expect_error(503, "store_unavailable");
                    assert!(answer.retry_after() > 0);
                    *said.entry("store_unavailable".to_owned()).or_default() += 1;
                }
            }
        }
        (said, answered)
    }
}

/// Every job ends, those whose caller got rows ended well, and nothing stood in another's way.
async fn check_jobs(server: &PgServer, answered: &[String]) {
    let client = server.client("semilayer").await;
    let unfinished = "SELECT id, status FROM runner_jobs WHERE finished_at IS NULL";
    eventually("every job ends", Duration::from_secs(60), async || {
        let rows = client.query(unfinished, &[]).await.unwrap();
        holds(rows.is_empty(), rows)
    })
    .await;
    let rows = client
        .query("SELECT id, status FROM runner_jobs", &[])
        .await
        .unwrap();
    let states: BTreeMap<String, String> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let log = server.log();
    assert!(!log.contains("deadlock detected"), "{log}");
    for job in answered {
        assert_eq!(
            states.get(job).map(String::as_str),
            Some("completed"),
            "job {job}"
        );
    }
}

async fn until_served(stage: &Stage) {
    let caller = stage.gateway.caller();
    eventually("queries are answered", PATIENCE, async || {
        let answer = caller.query("products", json!({"limit": 1})).await;
        holds(answer.status.is_success(), answer)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_stopped_and_started_is_survived() {
    let mut server = PgServer::start("").await;
    let mut stage = Stage::on(gateway_on(&server).await, Engine::Postgres).await;
    let runner = stage.add_runner("primary").await;
    for mode in ["fast", "immediate"] {
        let load = Load::start(&stage.gateway.caller());
        until_served(&stage).await;
        stop(&server, mode);
        let (caller, admin) = (stage.gateway.caller(), stage.gateway.admin());
        for _ in 0..5 {
            let asked = Instant::now();
            let answer = caller.query("products", json!({"limit": 1})).await;
            answer.expect_error(503, "store_unavailable");
            assert!(answer.retry_after() > 0);
            let answer = admin.get("/v1/jobs").await;
            answer.expect_error(503, "store_unavailable");
            assert!(answer.retry_after() > 0);
            assert!(asked.elapsed() < A_FEW_SECONDS, "{:?}", asked.elapsed());
        }
        // Longer than presence and heartbeats go without being written down.
        tokio::time::sleep(Duration::from_secs(6)).await;
        server.restart("fast").await;
        until_served(&stage).await;
        stage.gateway.until_runner_is(&runner, "online").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (said, answered) = load.end().await;
        assert!(
            said["rows"] > 20 && said["store_unavailable"] > 4,
            "{said:?}"
        );
        check_jobs(&server, &answered).await;
        println!("{mode}: {said:?}");
    }
    // Nothing but the store was started again.
    assert!(stage.runners[0].process.ended().is_none());
    assert!(stage.gateway.process.ended().is_none());
    stage.assert_serves().await;
    // And what is changed is in force as before.
    stage
        .add_titles_lens("titles", &stage.source, "products")
        .await;
    let titles = stage.gateway.caller().query("titles", json!({})).await;
    assert!(!titles.rows().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_again_and_again_cost_single_answers() {
    let server = PgServer::start("").await;
    let mut stage = Stage::on(gateway_on(&server).await, Engine::Postgres).await;
    let runner = stage.add_runner("primary").await;
    let cutter = server.client("postgres").await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway'";
    let load = Load::start(&stage.gateway.caller());
    until_served(&stage).await;
    let (mut cut_off, mut times) = (0, 0);
    while cut_off < 100 || times < 30 {
        cut_off += cutter.query(cut, &[]).await.unwrap().len();
        times += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until_served(&stage).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (said, answered) = load.end().await;
    println!("{cut_off} connections cut: {said:?}");
    assert!(said["rows"] > 20, "{said:?}");
    check_jobs(&server, &answered).await;
    stage.gateway.until_runner_is(&runner, "online").await;
    stage.assert_serves().await;
    let sessions: Vec<Value> = stage
        .gateway
        .admin()
        .get(&format!("/v1/runners/{}/sessions", runner.id))
        .await
        .expect(200)["items"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
}
