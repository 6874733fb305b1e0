//! A query that nobody waits for any more ends in the database, proven by asking the database.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::proc::cpu_ticks;
use crate::support::{Answer, Engine, PATIENCE, Stage, eventually};

on_every_database! {
    a_client_that_leaves_before_the_first_row_ends_the_query,
    cancelling_a_job_ends_the_query_and_tells_its_caller,
    a_deadline_ends_the_query,
}

/// How soon the database has to be idle again.
const SOON: Duration = Duration::from_secs(5);

/// A stage whose lens `slow` takes a minute.
async fn slow_stage(engine: Engine) -> Stage {
    let stage = Stage::inline(engine).await;
    stage.add_slow_lens().await;
    stage
}

fn ask_slowly(stage: &Stage) -> tokio::task::JoinHandle<Answer> {
    let caller = stage.gateway.caller();
    tokio::spawn(async move { caller.query("slow", json!({})).await })
}

/// The process that talks to the database.
fn worker(stage: &Stage) -> u32 {
    stage
        .runners
        .first()
        .map_or(stage.gateway.process.pid(), |runner| runner.process.pid())
}

async fn until_the_database_works(stage: &Stage) {
    match stage.database.engine {
        Engine::Sqlite => {
            let (pid, before) = (worker(stage), cpu_ticks(worker(stage)));
            eventually("the query uses the processor", PATIENCE, async || {
                holds(cpu_ticks(pid) > before + 30, cpu_ticks(pid) - before)
            })
            .await;
        }
        Engine::Postgres | Engine::Mysql => {
            eventually("the query runs", PATIENCE, async || {
                let running = stage.database.running().await;
                holds(running.iter().any(|sql| sql.contains("slow")), running)
            })
            .await;
        }
    }
}

/// For SQLite, which has no server to ask, the witness is the processor time of the process it runs in.
async fn until_the_database_is_idle(stage: &Stage) {
    match stage.database.engine {
        Engine::Sqlite => {
            let pid = worker(stage);
            eventually("the query stops using the processor", SOON, async || {
                let before = cpu_ticks(pid);
                tokio::time::sleep(Duration::from_millis(500)).await;
                holds(cpu_ticks(pid) - before < 15, cpu_ticks(pid) - before)
            })
            .await;
        }
        Engine::Postgres | Engine::Mysql => {
            eventually("the query is gone from the database", SOON, async || {
                let running = stage.database.running().await;
                holds(!running.iter().any(|sql| sql.contains("slow")), running)
            })
            .await;
        }
    }
}

async fn inline_and_through_a_runner(engine: Engine, check: impl AsyncFn(&Stage)) {
    let mut stage = slow_stage(engine).await;
    check(&stage).await;
    stage.assert_serves().await;
    stage.add_runner("primary").await;
    check(&stage).await;
    stage.assert_serves().await;
}

async fn a_client_that_leaves_before_the_first_row_ends_the_query(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let query = ask_slowly(stage);
        let job = stage.gateway.until_dispatched().await;
        until_the_database_works(stage).await;
        // Dropping the request closes its connection.
        query.abort();
        until_the_database_is_idle(stage).await;
        stage.gateway.until_job_is(&job, "cancelled").await;
    })
    .await;
}

async fn cancelling_a_job_ends_the_query_and_tells_its_caller(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let query = ask_slowly(stage);
        let job = stage.gateway.until_dispatched().await;
        until_the_database_works(stage).await;
        let cancelled = Instant::now();
        let answer = stage
            .gateway
            .admin()
            .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
            .await
            .expect(200);
        assert_eq!(answer["state"], "cancelled", "{answer}");
        query.await.unwrap().expect_error(409, "job_cancelled");
        assert!(
            cancelled.elapsed() < Duration::from_secs(2),
            "took {:?}",
            cancelled.elapsed()
        );
        until_the_database_is_idle(stage).await;
        let again = stage
            .gateway
            .admin()
            .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
            .await;
        let over = again.expect_error(409, "conflict");
        assert_eq!(over["state"], "cancelled", "{over}");
    })
    .await;
}

async fn a_deadline_ends_the_query(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let body = json!({
            "sourceId": stage.source, "deadlineMs": 1500,
            "job": {"kind": "query", "target": "slow", "options": {}},
        });
        let internal = stage.gateway.internal();
        let query = tokio::spawn(async move { internal.post("/dispatch", body).await });
        until_the_database_works(stage).await;
        query.await.unwrap().expect_error(504, "QUERY_TIMEOUT");
        until_the_database_is_idle(stage).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_loses_its_gateway_ends_its_queries() {
    let mut stage = slow_stage(Engine::Postgres).await;
    stage.add_runner("primary").await;
    let query = ask_slowly(&stage);
    until_the_database_works(&stage).await;
    stage.gateway.process.signal("KILL");
    until_the_database_is_idle(&stage).await;
    query.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelling_one_job_leaves_the_others_alone() {
    let mut stage = slow_stage(Engine::Postgres).await;
    stage.add_runner("primary").await;
    let queries: Vec<_> = (0..3).map(|_| ask_slowly(&stage)).collect();
    let admin = stage.gateway.admin();
    let jobs: Vec<Value> = eventually("three queries run", PATIENCE, async || {
        let running = stage.database.running().await;
        holds(
            running.iter().filter(|sql| sql.contains("slow")).count() == 3,
            running,
        )?;
        Ok(admin.jobs("state=dispatched").await)
    })
    .await;
    let id = jobs[1]["id"].as_str().unwrap();
    let answer = admin
        .post(&format!("/v1/jobs/{id}/cancel"), json!({}))
        .await
        .expect(200);
    assert_eq!(answer["state"], "cancelled", "{answer}");
    eventually("one query is gone", SOON, async || {
        let running = stage.database.running().await;
        holds(
            running.iter().filter(|sql| sql.contains("slow")).count() == 2,
            running,
        )
    })
    .await;
    eventually("one caller is answered", SOON, async || {
        let answered = queries.iter().filter(|query| query.is_finished()).count();
        holds(answered == 1, answered)
    })
    .await;
    stage.assert_serves().await;
}
