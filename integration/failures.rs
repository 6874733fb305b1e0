//! What goes wrong at runners and databases, and what the caller is told.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::rest::text;
use crate::support::stage::managed;
use crate::support::{
    Answer, Database, Engine, FakeRunner, Gateway, PATIENCE, RunnerProcess, Stage, eventually,
};

on_every_database! {
    a_database_that_is_down_is_502,
    a_missing_table_is_422_in_the_databases_words,
    a_slow_query_is_504_and_the_runner_goes_on,
}

/// Starts a query of the lens `slow` and waits until a runner works on it; answers with the job's id too.
async fn start_slow_query(stage: &Stage) -> (String, tokio::task::JoinHandle<Answer>) {
    let caller = stage.gateway.caller();
    let query = tokio::spawn(async move { caller.query("slow", json!({})).await });
    let job = stage.gateway.until_dispatched().await;
    (job, query)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_mid_job_is_502_within_a_second() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    stage.add_slow_lens().await;
    let runner = stage.add_runner("primary").await;
    let (job, query) = start_slow_query(&stage).await;
    eventually("the query runs", PATIENCE, async || {
        let running = stage.database.running().await;
        holds(running.len() == 1, running)
    })
    .await;

    let killed = Instant::now();
    stage.runners[0].process.signal("KILL");
    let answer = query.await.unwrap();
    assert!(
        killed.elapsed() < Duration::from_secs(1),
        "took {:?}",
        killed.elapsed()
    );

    let body = answer.expect_error(502, "runner_failed");
    assert_eq!(
        body["error"],
        format!("Runner {} disconnected mid-job", runner.id)
    );
    assert_eq!(body["delivery"], "started");
    assert!(body["retryable"].is_boolean(), "{body}");
    let job = stage.gateway.until_job_is(&job, "failed").await;
    assert_eq!(job["error"]["code"], "runner_failed", "{job}");
    stage.gateway.until_runner_is(&runner, "offline").await;
    stage.gateway.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_of_a_killed_runner_fails_and_only_those() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    stage.add_slow_lens().await;
    stage.add_runner("doomed").await;
    let queries: Vec<_> = (0..3)
        .map(|_| {
            let caller = stage.gateway.caller();
            tokio::spawn(async move { caller.query("slow", json!({})).await })
        })
        .collect();
    let admin = stage.gateway.admin();
    eventually("three jobs are dispatched", PATIENCE, async || {
        let jobs = admin.jobs("state=dispatched").await;
        holds(jobs.len() == 3, jobs.len())
    })
    .await;
    stage.add_runner("bystander").await;
    stage.runners[0].process.signal("KILL");
    for query in queries {
        query.await.unwrap().expect_error(502, "runner_failed");
    }
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_runner_the_caller_learns_why_and_when_to_return() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let ask = async || stage.gateway.caller().query("products", json!({})).await;

    let answer = ask().await;
    let never = answer.expect_error(503, "no_runners_online");
    assert!(answer.retry_after() > 0);
    let mut process = RunnerProcess::start(&stage.gateway, &runner).await;
    ask().await.expect(200);
    process.process.signal("TERM");
    assert!(process.process.end(PATIENCE).await.success());
    stage.gateway.until_runner_is(&runner, "offline").await;
    let answer = ask().await;
    let offline = answer.expect_error(503, "no_runners_online");
    assert!(answer.retry_after() > 0);
    assert!(text(&never, "error").contains("never"), "{never}");
    assert!(text(&offline, "error").contains("offline"), "{offline}");
    let failed = stage.gateway.admin();
    eventually("refused queries are recorded", PATIENCE, async || {
        let jobs = failed.jobs("state=failed").await;
        holds(
            jobs.len() == 2
                && jobs
                    .iter()
                    .all(|job| job["error"]["code"] == "no_runners_online"),
            jobs,
        )
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_without_the_bridge_is_no_candidate() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let mut hello = crate::support::fake_runner::hello_v2(&runner.id);
    hello["capabilities"] = json!(["@semilayer/bridge-postgres"]);
    let _session = FakeRunner::open(&stage.gateway, &runner.token, hello).await;
    let body = stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await
        .expect_error(503, "no_runners_online");
    assert!(text(&body, "error").contains("bridge"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_runner_is_at_its_capacity_the_caller_is_told_so() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    stage.add_slow_lens().await;
    stage
        .add_runner_as("narrow", |builder| builder.capacity(1))
        .await;
    let (job, query) = start_slow_query(&stage).await;
    let answer = stage.gateway.caller().query("products", json!({})).await;
    answer.expect_error(503, "runners_busy");
    assert!(answer.retry_after() > 0);
    // The one that runs was not touched, and its place is free again once it ends.
    assert!(!query.is_finished());
    stage
        .gateway
        .admin()
        .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
        .await
        .expect_success();
    query.await.unwrap().expect_error(409, "job_cancelled");
    stage.gateway.until_job_is(&job, "cancelled").await;
    eventually("the place is free", PATIENCE, async || {
        let answer = stage.gateway.caller().query("products", json!({})).await;
        holds(answer.status.is_success(), answer)
    })
    .await;
}

/// A source on the same runner whose configuration differs in these keys, and a lens of the same name on it.
async fn add_broken_source(stage: &Stage, name: &str, changes: Value) {
    let mut source = managed(name, &stage.database);
    source["config"]
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    let id = stage.gateway.admin().create_source(source).await;
    stage.add_titles_lens(name, &id, "products").await;
    let runners = stage.gateway.admin().get("/v1/runners").await.expect(200);
    for runner in runners["items"].as_array().unwrap() {
        let path = format!("/v1/runners/{}/assignments/{id}", text(runner, "id"));
        stage
            .gateway
            .admin()
            .put(&path, json!({}))
            .await
            .expect_success();
    }
}

/// The same failure through a runner, which has to go on serving, and inline.
async fn expect_failure(engine: Engine, changes: Value, check: impl Fn(&Answer)) {
    let mut stage = Stage::inline(engine).await;
    add_broken_source(&stage, "broken", changes).await;
    check(&stage.gateway.caller().query("broken", json!({})).await);
    stage.assert_serves().await;
    let runner = stage.add_runner("primary").await;
    let broken = text(
        &stage
            .gateway
            .admin()
            .get("/v1/sources/broken")
            .await
            .expect(200),
        "id",
    );
    stage
        .gateway
        .admin()
        .assign(&runner, &[&stage.source, &broken])
        .await;
    check(&stage.gateway.caller().query("broken", json!({})).await);
    stage.assert_serves().await;
    assert!(stage.runners[0].process.ended().is_none());
}

async fn a_database_that_is_down_is_502(engine: Engine) {
    let changes = match engine {
        // Port 1 refuses.
        Engine::Postgres | Engine::Mysql => json!({"port": 1}),
        Engine::Sqlite => json!({"path": "/nonexistent/shop.db"}),
    };
    expect_failure(engine, changes, |answer| {
        let body = answer.expect_error(502, "SOURCE_UNREACHABLE");
        let said = text(&body, "error").to_lowercase();
        assert!(
            said.contains("refused") || said.contains("no database file"),
            "{body}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_502_in_the_databases_words() {
    for (engine, changes, words) in [
        (
            Engine::Postgres,
            json!({"user": "nobody_by_that_name"}),
            "nobody_by_that_name",
        ),
        (
            Engine::Mysql,
            json!({"password": "guessed"}),
            "Access denied",
        ),
    ] {
        expect_failure(engine, changes, |answer| {
            let body = answer.expect_error(502, "SOURCE_UNREACHABLE");
            assert!(text(&body, "error").contains(words), "{body}");
            assert!(!body.to_string().contains("guessed"), "{body}");
        })
        .await;
    }
}

async fn a_missing_table_is_422_in_the_databases_words(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    stage
        .add_titles_lens("gone", &stage.source, "no_such_table")
        .await;
    let check = async |stage: &Stage| {
        let body = stage
            .gateway
            .caller()
            .query("gone", json!({}))
            .await
            .expect_error(422, "SOURCE_QUERY_FAILED");
        assert!(text(&body, "error").contains("no_such_table"), "{body}");
        stage.assert_serves().await;
    };
    check(&stage).await;
    stage.add_runner("primary").await;
    check(&stage).await;
}

async fn a_slow_query_is_504_and_the_runner_goes_on(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    stage.add_slow_lens().await;
    let path = format!("/v1/sources/{}", stage.source);
    stage
        .gateway
        .admin()
        .patch(&path, json!({"timeoutMs": 700}))
        .await
        .expect_success();
    let check = async |stage: &Stage| {
        let asked = Instant::now();
        stage
            .gateway
            .caller()
            .query("slow", json!({}))
            .await
            .expect_error(504, "QUERY_TIMEOUT");
        let took = asked.elapsed();
        assert!(
            took >= Duration::from_millis(700) && took < Duration::from_secs(5),
            "took {took:?}"
        );
        stage.assert_serves().await;
    };
    check(&stage).await;
    stage.add_runner("primary").await;
    check(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_key_is_not_told_what_the_database_said() {
    let stage = Stage::inline(Engine::Sqlite).await;
    stage
        .add_lens(json!({
            "name": "gone", "sourceId": stage.source, "table": "secret_table", "primaryKey": "id",
            "fields": {"id": {"type": "number"}}, "grants": {"query": "public"},
        }))
        .await;
    let key = stage
        .gateway
        .admin()
        .post("/v1/keys", json!({"kind": "pk"}))
        .await
        .expect(201);
    let browser = stage.gateway.caller().with_key(&text(&key, "key"));
    let body = browser
        .query("gone", json!({}))
        .await
        .expect_error(422, "SOURCE_QUERY_FAILED");
    assert!(!body.to_string().contains("secret_table"), "{body}");
    browser
        .query("products", json!({}))
        .await
        .expect_error(403, "access_denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_told_to_stop_finishes_what_it_runs() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    stage.database.add_slow_view(2).await;
    stage.add_titles_lens("slow", &stage.source, "slow").await;
    stage.add_runner("primary").await;
    let (_, query) = start_slow_query(&stage).await;
    stage.runners[0].process.signal("TERM");
    assert_eq!(
        query.await.unwrap().rows(),
        [json!({"id": 1, "title": "late"})]
    );
    assert!(
        stage.runners[0].process.end(PATIENCE).await.success(),
        "exit code 0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_comes_back_after_its_gateway_does() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let address = stage.gateway.address();
    let data_dir = stage.gateway.data_dir.clone();
    stage
        .runners
        .push(RunnerProcess::start(&stage.gateway, &runner).await);
    stage.gateway.process.signal("KILL");
    stage.gateway.process.end(PATIENCE).await;
    let again = Gateway::builder()
        .listen(&address)
        .start_in(&data_dir, None)
        .await;
    again.until_runner_is(&runner, "online").await;
    again
        .caller()
        .query("products", json!({"limit": 1}))
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_up_later_is_used_without_a_restart() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    stage.add_runner("primary").await;
    let late = Database::create(Engine::Sqlite).await;
    let mut source = managed("late", &late);
    source["config"]["path"] = json!(format!("{}.later", text(&late.config(), "path")));
    let id = stage.gateway.admin().create_source(source.clone()).await;
    stage.add_titles_lens("late", &id, "things").await;
    stage
        .gateway
        .caller()
        .query("late", json!({}))
        .await
        .expect_error(502, "SOURCE_UNREACHABLE");
    late.execute(
        "CREATE TABLE things (id INTEGER PRIMARY KEY, title TEXT); PRAGMA wal_checkpoint(TRUNCATE)",
    )
    .await;
    std::fs::copy(
        text(&late.config(), "path"),
        text(&source["config"], "path"),
    )
    .unwrap();
    assert_eq!(
        stage.gateway.caller().query("late", json!({})).await.rows(),
        Vec::<Value>::new()
    );
}
