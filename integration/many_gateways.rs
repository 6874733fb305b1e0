//! Several gateways on one store: a query is answered through the one that holds the runner, with the same errors,
//! the same pace and the same end as anywhere; what is changed through one is in force on all; and a gateway that
//! is lost, or was taken for lost, harms nobody.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::json;

use crate::support::databases::{PRODUCTS, product};
use crate::support::eventually::holds;
use crate::support::fake_runner::TokenIn;
use crate::support::proc::resident_mib;
use crate::support::rest::{Runner, text};
use crate::support::{
    Answer, Engine, FakeRunner, Gateway, Hosted, PATIENCE, RunnerProcess, Stage, eventually,
};

/// A whole failover in a few seconds.
const FAST: &str = "gateway_lease=3s,gateway_renewal=500ms,sweep=1s,catalogue_poll=2s,heartbeat_v2=2s,ping=1s,\
                    cut_off_v2=2500ms,persist_heartbeats=1s";
/// How soon a change is in force everywhere.
const SOON: Duration = Duration::from_secs(1);

/// Two gateways: callers ask the one on the stage, the runner is connected to the other.
struct Scene {
    stage: Stage,
    other: Gateway,
    runner: Runner,
    // Dropped last: the gateways' database.
    hosted: Hosted,
}

impl Scene {
    async fn new() -> Self {
        Self::with(FAST).await
    }

    async fn with(timing: &str) -> Self {
        let mut scene = Self::without_runner(timing).await;
        let process = RunnerProcess::start(&scene.other, &scene.runner).await;
        scene.stage.runners.push(process);
        scene.until_served().await;
        scene
    }

    async fn without_runner(timing: &str) -> Self {
        let mut hosted = Hosted::new(timing).await;
        let asked = hosted.gateway("asked").await;
        let other = hosted.gateway("other").await;
        let stage = Stage::on(asked, Engine::Postgres).await;
        let runner = stage.add_identity("far").await;
        Self {
            stage,
            other,
            runner,
            hosted,
        }
    }

    /// Waits until the runner is reached through the gateway that does not hold it.
    async fn until_served(&self) {
        let caller = self.stage.gateway.caller();
        eventually("queries are served", PATIENCE, async || {
            let answer = caller.query("products", json!({"where": {"id": 7}})).await;
            holds(answer.status.is_success(), answer.text)
        })
        .await;
    }

    fn ask_slowly(&self) -> tokio::task::JoinHandle<Answer> {
        let caller = self.stage.gateway.caller();
        tokio::spawn(async move { caller.query("slow", json!({})).await })
    }

    async fn until_slow_runs(&self, runs: bool) {
        eventually("the slow query runs or not", PATIENCE, async || {
            let running = self.stage.database.running().await;
            holds(
                running.iter().any(|sql| sql.contains("slow")) == runs,
                running,
            )
        })
        .await;
    }

    /// The ids of the gateways that have a row.
    async fn gateways(&self) -> Vec<String> {
        let rows = self
            .hosted
            .rows("SELECT id FROM gateways ORDER BY id")
            .await;
        rows.iter().map(|row| text(row, "id")).collect()
    }

    /// The gateways that hold a session of the runner.
    async fn holders(&self) -> Vec<String> {
        let sql = format!(
            "SELECT gateway_id FROM runner_sessions WHERE runner_id = '{}'",
            self.runner.id
        );
        let rows = self.hosted.rows(&sql).await;
        rows.iter().map(|row| text(row, "gateway_id")).collect()
    }

    async fn until_held_by(&self, holders: usize) -> Vec<String> {
        eventually("sessions come or go", PATIENCE, async || {
            let now = self.holders().await;
            if now.len() == holders {
                Ok(now)
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_answered_through_the_gateway_that_holds_the_runner() {
    let scene = Scene::new().await;
    let (asked, caller) = (&scene.stage.gateway, scene.stage.gateway.caller());
    asked.until_runner_is(&scene.runner, "online").await;

    let answer = caller
        .query(
            "products",
            json!({"limit": PRODUCTS, "orderBy": {"field": "id"}}),
        )
        .await;
    let rows = answer.rows();
    assert_eq!(rows.len() as u64, PRODUCTS);
    assert!(rows.iter().zip(1..).all(|(row, id)| *row == product(id)));
    let meta = answer.json()["meta"].clone();
    assert_eq!(meta["runnerId"], scene.runner.id.as_str());

    let request = caller
        .request(Method::POST, "/v1/query/products")
        .header("accept", "application/x-ndjson");
    let lines = Answer::of(request.json(&json!({"limit": 10}))).await;
    assert_eq!(lines.text.matches("\"id\":").count(), 10);
    let next = lines.text.lines().last().unwrap();
    assert!(next.starts_with("{\"$next\":"), "{next}");
    let count = caller
        .post("/v1/query/products/count", json!({}))
        .await
        .expect(200);
    assert_eq!(count["count"], PRODUCTS);
    // Pages follow each other through either gateway.
    let first = caller
        .query("products", json!({"limit": 100}))
        .await
        .expect(200);
    let next = json!({"limit": 100, "cursor": first["meta"]["nextCursor"]});
    let second = scene.other.caller().query("products", next).await.rows();
    assert_eq!(second[0]["id"], 101);

    // The one that executes writes the record, under the id that the caller was told.
    let job = text(&meta, "jobId");
    let row = asked.until_job_is(&job, "completed").await;
    assert_eq!(vec![text(&row, "gatewayId")], scene.holders().await);
    assert_eq!(row["rows"], PRODUCTS);
    assert_eq!(row["attempt"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_the_same_through_another_gateway() {
    let scene = Scene::new().await;
    let stage = &scene.stage;
    stage
        .add_titles_lens("missing", &stage.source, "no_such_table")
        .await;
    stage.add_slow_lens().await;
    eventually("the other knows the lenses", PATIENCE, async || {
        let answer = scene.other.admin().get("/v1/lenses/slow").await;
        holds(answer.status.is_success(), answer.text)
    })
    .await;
    for gateway in [&stage.gateway, &scene.other] {
        let missing = gateway.caller().query("missing", json!({})).await;
        let error = missing.expect_error(422, "SOURCE_QUERY_FAILED");
        assert!(
            error["error"].as_str().unwrap().contains("no_such_table"),
            "{error}"
        );

        let late = json!({
            "sourceId": stage.source, "deadlineMs": 1000,
            "job": {"kind": "query", "target": "slow", "options": {}},
        });
        let answer = gateway.internal().post("/dispatch", late).await;
        answer.expect_error(504, "QUERY_TIMEOUT");
        let job = answer.json()["jobId"].as_str().unwrap().to_owned();
        gateway.until_job_is(&job, "expired").await;

        let odd = json!({
            "sourceId": stage.source,
            "job": {"kind": "query", "target": "products", "options": {"where": {"id": {"$nonsense": 1}}}},
        });
        let answer = gateway.internal().post("/dispatch", odd).await;
        answer.expect_error(400, "unsupported_operator");
    }
    scene.until_slow_runs(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_through_any_gateway_and_when_its_caller_leaves() {
    let scene = Scene::new().await;
    scene.stage.add_slow_lens().await;
    let (asked, other) = (&scene.stage.gateway, &scene.other);
    for through in [asked, other] {
        let query = scene.ask_slowly();
        let job = asked.until_dispatched().await;
        scene.until_slow_runs(true).await;
        let path = format!("/v1/jobs/{job}/cancel");
        let answer = through.admin().post(&path, json!({})).await.expect(200);
        assert_eq!(answer["state"], "cancelled", "{answer}");
        query.await.unwrap().expect_error(409, "job_cancelled");
        scene.until_slow_runs(false).await;
    }
    // The gateway that was asked executes nothing: who holds the job is somebody else, and is told.
    let caller = other.caller();
    let query = tokio::spawn(async move { caller.query("slow", json!({})).await });
    let job = asked.until_dispatched().await;
    let path = format!("/v1/jobs/{job}/cancel");
    asked.admin().post(&path, json!({})).await.expect(200);
    query.await.unwrap().expect_error(409, "job_cancelled");

    let query = scene.ask_slowly();
    let job = asked.until_dispatched().await;
    scene.until_slow_runs(true).await;
    // Longer than a peer may take to begin its answer: a slow query is no lost peer.
    tokio::time::sleep(Duration::from_secs(6)).await;
    query.abort();
    scene.until_slow_runs(false).await;
    asked.until_job_is(&job, "cancelled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_a_forwarded_result_costs_neither_gateway_memory_and_delays_nobody() {
    const MILLION: u64 = 1_000_000;
    const FLAT: f64 = 32.0;
    let scene = Scene::new().await;
    scene.stage.add_wide_lens(MILLION).await;
    for _ in 0..20 {
        scene.stage.assert_serves().await;
    }
    let pids = [scene.stage.gateway.process.pid(), scene.other.process.pid()];
    let before = pids.map(resident_mib);
    let request = scene
        .stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/wide")
        .header("accept", "application/x-ndjson")
        .json(&json!({"limit": MILLION}));
    let mut body = request.send().await.unwrap().bytes_stream();
    let (mut read, mut slowest) = (0, Duration::ZERO);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        let until = read + (1 << 20);
        // Twelve megabytes, and then it stops reading.
        while read < until && read < 12 << 20 {
            read += body.next().await.expect("it goes on").unwrap().len();
        }
        let asked = Instant::now();
        scene.stage.assert_serves().await;
        slowest = slowest.max(asked.elapsed());
        let grown: Vec<f64> = pids
            .iter()
            .zip(before)
            .map(|(pid, mib)| resident_mib(*pid) - mib)
            .collect();
        assert!(
            grown.iter().all(|mib| *mib < FLAT),
            "after {read} bytes they grew by {grown:?} MiB"
        );
    }
    assert!(read >= 12 << 20, "only {read} bytes came");
    assert!(
        slowest < Duration::from_secs(2),
        "another job took {slowest:?}"
    );
    let job = scene.stage.gateway.until_dispatched().await;
    drop(body);
    scene.stage.gateway.until_job_is(&job, "cancelled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_killed_fails_what_it_executed_and_is_forgotten() {
    let mut scene = Scene::new().await;
    scene.stage.add_slow_lens().await;
    scene.stage.add_wide_lens(200_000).await;
    let query = scene.ask_slowly();
    let job = scene.stage.gateway.until_dispatched().await;
    scene.until_slow_runs(true).await;
    let request = scene
        .stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/wide")
        .json(&json!({"limit": 200_000}));
    let mut body = request.send().await.unwrap().bytes_stream();
    body.next().await.expect("it begins").unwrap();

    let killed = Instant::now();
    scene.other.process.signal("KILL");
    let error = query.await.unwrap().expect_error(502, "runner_failed");
    assert_eq!(error["delivery"], "unknown", "{error}");
    assert!(
        killed.elapsed() < Duration::from_secs(2),
        "its connections told at once"
    );
    // Never a well-formed body that is short.
    let broken = loop {
        match body.next().await {
            Some(Ok(_)) => {}
            end => break end.is_some(),
        }
    };
    assert!(broken, "the body was cut short without saying so");

    eventually("the others forget it", PATIENCE, async || {
        let gateways = scene.gateways().await;
        holds(gateways.len() == 1, gateways)
    })
    .await;
    assert_eq!(scene.holders().await, Vec::<String>::new());
    scene.stage.gateway.until_job_is(&job, "failed").await;
    let gone = scene
        .stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await;
    gone.expect_error(503, "no_runners_online");
    // A new gateway, the runner goes there, and all is well.
    let next = scene.hosted.gateway("next").await;
    scene.stage.runners.clear();
    let process = RunnerProcess::start(&next, &scene.runner).await;
    scene.stage.runners.push(process);
    scene.until_served().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stood_still_for_longer_than_its_lease_comes_back_under_a_new_id() {
    let scene = Scene::new().await;
    scene.stage.add_slow_lens().await;
    let before = scene.holders().await;
    let query = scene.ask_slowly();
    let job = scene.stage.gateway.until_dispatched().await;
    scene.other.process.signal("STOP");
    let stopped = Instant::now();
    // Its connections stand, and say nothing: its caller must not wait for its deadline.
    query.await.unwrap().expect_error(502, "runner_failed");
    assert!(
        stopped.elapsed() < Duration::from_secs(12),
        "took {:?}",
        stopped.elapsed()
    );
    scene.stage.gateway.until_job_is(&job, "failed").await;
    scene.until_held_by(0).await;
    let gone = scene
        .stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await;
    gone.expect_error(503, "no_runners_online");

    scene.other.process.signal("CONT");
    let resumed = Instant::now();
    scene.until_served().await;
    assert!(
        resumed.elapsed() < Duration::from_secs(10),
        "took {:?}",
        resumed.elapsed()
    );
    let after = scene.until_held_by(1).await;
    assert_ne!(after, before, "it is known under another id");
    assert!(scene.gateways().await.contains(&after[0]));
    scene.stage.gateway.until_job_is(&job, "failed").await;
    // It still serves what it is asked itself.
    let rows = scene
        .other
        .caller()
        .query("products", json!({"where": {"id": 7}}))
        .await
        .rows();
    assert_eq!(rows, [product(7)]);
}

/// Waits until it holds, within the time in which a change made elsewhere is in force.
async fn soon(what: &str, condition: impl AsyncFnMut() -> Result<(), String>) {
    eventually(what, SOON, condition).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_through_one_gateway_is_in_force_on_the_other_within_a_second() {
    // Nothing but announcements can be that fast.
    let scene = Scene::with("catalogue_poll=30s").await;
    let (one, two) = (&scene.stage.gateway, &scene.other);
    let admin = one.admin();
    let status_at_two =
        async |lens: &str| two.caller().query(lens, json!({})).await.status.as_u16();

    // A new lens.
    scene
        .stage
        .add_titles_lens("fresh", &scene.stage.source, "products")
        .await;
    soon("the lens is there", async || {
        let status = status_at_two("fresh").await;
        holds(status == 200, status)
    })
    .await;
    // An assignment.
    let path = format!("/v1/runners/{}/assignments", scene.runner.id);
    admin
        .put(&path, json!({"sourceIds": []}))
        .await
        .expect_success();
    soon("nobody is assigned", async || {
        // Without a runner the gateway tries itself, and may not dial loopback.
        let answer = two.caller().query("products", json!({})).await;
        holds(!answer.status.is_success(), answer.text)
    })
    .await;
    admin
        .put(&path, json!({"sourceIds": [scene.stage.source]}))
        .await
        .expect_success();
    soon("the runner is assigned again", async || {
        let status = status_at_two("products").await;
        holds(status == 200, status)
    })
    .await;
    // A drained runner.
    let path = format!("/v1/runners/{}", scene.runner.id);
    admin
        .post(&format!("{path}/drain"), json!({}))
        .await
        .expect_success();
    soon("the runner is drained", async || {
        let status = status_at_two("products").await;
        holds(status == 503, status)
    })
    .await;
    admin
        .post(&format!("{path}/resume"), json!({}))
        .await
        .expect_success();
    soon("the runner is back", async || {
        let status = status_at_two("products").await;
        holds(status == 200, status)
    })
    .await;
    // A revoked key.
    let key = admin
        .post("/v1/keys", json!({"kind": "sk"}))
        .await
        .expect(201);
    let caller = two.caller().with_key(&text(&key, "key"));
    soon("the key is known", async || {
        let answer = caller.get("/v1/whoami").await;
        holds(answer.status.is_success(), answer.text)
    })
    .await;
    admin
        .post(&format!("/v1/keys/{}/revoke", text(&key, "id")), json!({}))
        .await
        .expect_success();
    soon("the key is revoked", async || {
        let answer = caller.get("/v1/whoami").await;
        holds(answer.status.as_u16() == 401, answer.text)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_or_rotated_token_ends_its_session_and_opens_none_anywhere() {
    let scene = Scene::without_runner("catalogue_poll=30s").await;
    let mut session = FakeRunner::v2(&scene.other, &scene.runner).await;
    let path = format!("/v1/runners/{}/rotate", scene.runner.id);
    let rotated = Instant::now();
    let answer = scene
        .stage
        .gateway
        .admin()
        .post(&path, json!({}))
        .await
        .expect(200);
    for gateway in [&scene.other, &scene.stage.gateway] {
        let refused = FakeRunner::dial(gateway, &scene.runner.token, TokenIn::Header).await;
        let status = refused.err();
        // Unknown or known as revoked, but not let in, whatever was announced.
        assert!(matches!(status, Some(401 | 403)), "{status:?}");
    }
    assert_eq!(session.closed().await, 4001);
    assert!(rotated.elapsed() < SOON, "took {:?}", rotated.elapsed());
    let fresh = Runner {
        token: text(&answer, "token"),
        ..scene.runner.clone()
    };
    FakeRunner::v2(&scene.other, &fresh).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_announces_is_in_force_within_a_poll() {
    let scene = Scene::with("catalogue_poll=1500ms,coalesce=20ms").await;
    scene
        .stage
        .add_titles_lens("moving", &scene.stage.source, "products")
        .await;
    // As it would be if its announcement were lost: the same write, and nothing said.
    scene
        .hosted
        .store
        .execute(
            "UPDATE lenses SET target = 'nowhere', changed_at = clock_timestamp() AT TIME ZONE 'UTC' \
             WHERE name = 'moving'",
        )
        .await;
    for gateway in [&scene.stage.gateway, &scene.other] {
        eventually("the change is read", Duration::from_secs(3), async || {
            let answer = gateway.caller().query("moving", json!({})).await;
            holds(answer.status.as_u16() == 422, answer.text)
        })
        .await;
    }
    scene
        .hosted
        .store
        .execute(
            "DELETE FROM runner_assignments; INSERT INTO tombstones (kind, id, deleted_at) \
             SELECT 'assignment', r.id || '/' || s.id, clock_timestamp() AT TIME ZONE 'UTC' FROM runners r, sources s",
        )
        .await;
    for gateway in [&scene.stage.gateway, &scene.other] {
        eventually("the removal is read", Duration::from_secs(3), async || {
            let answer = gateway.caller().query("products", json!({})).await;
            holds(!answer.status.is_success(), answer.text)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_without_their_store_believe_no_key_and_declare_nobody_lost() {
    let timing = format!("{FAST},key_freshness=2s");
    let mut scene = Scene::with(&timing).await;
    let before = scene.gateways().await;
    scene.hosted.cut_off(true).await;
    for gateway in [&scene.stage.gateway, &scene.other] {
        eventually("keys are refused", PATIENCE, async || {
            let answer = gateway.caller().get("/v1/whoami").await;
            holds(answer.status.as_u16() == 503, answer.text)
        })
        .await;
        let refused = gateway.caller().get("/v1/whoami").await;
        refused.expect_error(503, "store_unavailable");
        assert!(refused.retry_after() > 0);
        let ready = gateway.admin().anonymous().get("/ready").await;
        ready.expect_error(503, "store_unavailable");
    }
    // Longer than a lease.
    tokio::time::sleep(Duration::from_secs(5)).await;
    scene.hosted.cut_off(false).await;
    scene.until_served().await;
    assert_eq!(scene.gateways().await, before, "nobody was declared lost");
    scene.stage.gateway.assert_healthy().await;
    scene.other.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_misses_its_heartbeats_is_left_alone_by_the_other_gateway_too() {
    let scene = Scene::without_runner(
        "heartbeat_v2=500ms,close_after_unroutable=60s,ping=10s,cut_off_v2=11s,catalogue_poll=30s",
    )
    .await;
    let session = FakeRunner::v2(&scene.other, &scene.runner).await;
    let asked = &scene.stage.gateway;
    eventually("it is written down", PATIENCE, async || {
        let states = scene.hosted.rows("SELECT state FROM runner_sessions").await;
        holds(states == [json!({"state": "unhealthy"})], states)
    })
    .await;
    asked.until_runner_is(&scene.runner, "offline").await;
    let answer = asked.caller().query("products", json!({})).await;
    answer.expect_error(503, "no_runners_online");
    drop(session);
    scene.until_held_by(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_nothing_from_the_listener_for_gateways() {
    let mut scene = Scene::without_runner(FAST).await;
    let internal = scene.stage.gateway.internal();
    for path in ["/internal/execute", "/internal/cancel"] {
        for api in [
            internal.clone(),
            internal.anonymous(),
            internal.with_key("guess"),
        ] {
            api.post(path, json!({}))
                .await
                .expect_error(401, "invalid_key");
        }
    }
    scene.stage.gateway.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_while_the_store_is_away_is_forgotten_once_it_is_back() {
    let mut scene = Scene::new().await;
    scene.hosted.cut_off(true).await;
    scene.stage.runners.clear();
    let log = "what has become of sessions could not be written yet";
    eventually("a removal fails", PATIENCE, async || {
        holds(scene.other.process.log().contains(log), "no such line")
    })
    .await;
    scene.hosted.cut_off(false).await;
    scene.until_held_by(0).await;
    scene.stage.gateway.assert_healthy().await;
    let asked = &scene.stage.gateway;
    asked.until_runner_is(&scene.runner, "offline").await;
    assert_eq!(scene.gateways().await.len(), 2);
}

/// What its caller was sent is known to the gateway that accepted a job: rows that reached only that gateway are taken
/// back when another execution follows, and are no part of an answer otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_is_lost_behind_another_gateway_is_as_lost_as_one_here() {
    let scene = Scene::without_runner(FAST).await;
    let asked = &scene.stage.gateway;
    let second = scene.stage.add_identity("second").await;
    let row = |title: &str| json!({"id": 1, "title": title, "price": 1, "category": null});
    let ask = || {
        let caller = asked.caller();
        tokio::spawn(async move { caller.query("products", json!({})).await })
    };

    let mut lost = FakeRunner::v2(&scene.other, &scene.runner).await;
    asked.until_runner_is(&scene.runner, "online").await;
    let query = ask();
    let (id, _) = lost.job().await;
    lost.accept(&id).await;
    lost.send_rows(&id, &[row("never shown")]).await;
    lost.until_heard().await;
    drop(lost);
    let failed = query.await.unwrap();
    let body = failed.expect_error(502, "runner_failed");
    assert_eq!(body["delivery"], "started", "its caller was sent nothing");

    let insist = json!({"onRunnerFailure": "retry"});
    let lens = asked.admin().patch("/v1/lenses/products", insist).await;
    lens.expect(200);
    let mut lost = FakeRunner::v2(&scene.other, &scene.runner).await;
    asked.until_runner_is(&scene.runner, "online").await;
    let query = ask();
    let (id, _) = lost.job().await;
    let mut willing = FakeRunner::v2(&scene.other, &second).await;
    asked.until_runner_is(&second, "online").await;
    lost.accept(&id).await;
    lost.send_rows(&id, &[row("taken back")]).await;
    lost.until_heard().await;
    drop(lost);
    let (again, job) = willing.job().await;
    assert_eq!(job["attempt"], 2, "{job}");
    willing.accept(&again).await;
    willing.send_rows(&again, &[row("answered")]).await;
    willing.send_done(&again, 1).await;
    let answer = query.await.unwrap();
    assert_eq!(answer.rows(), [row("answered")]);
    let id = text(&answer.json()["meta"], "jobId");
    let recorded = asked.until_job_is(&id, "completed").await;
    assert_eq!(recorded["attempt"], 2, "{recorded}");
}
