//! What a caller gets who would rather wait: for a runner (`Prefer: wait`), or for a second try when the runner is
//! lost (`onRunnerFailure: retry`).

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::fake_runner::rows_frame_of;
use crate::support::rest::text;
use crate::support::{Answer, Engine, FakeRunner, PATIENCE, RunnerProcess, Stage, eventually};

/// A query that would wait, under way.
fn ask(stage: &Stage, path: &str, prefer: &str) -> tokio::task::JoinHandle<Answer> {
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, path)
        .header("prefer", prefer)
        .json(&json!({}));
    tokio::spawn(Answer::of(request))
}

fn row(title: &str) -> Value {
    json!({"id": 1, "title": title, "price": 1, "category": null})
}

async fn insist(stage: &Stage, lens: &str) {
    stage
        .gateway
        .admin()
        .patch(
            &format!("/v1/lenses/{lens}"),
            json!({"onRunnerFailure": "retry"}),
        )
        .await
        .expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_waits_is_answered_when_a_runner_comes() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("late").await;
    let query = ask(&stage, "/v1/query/products", "respond-later, wait=30");
    let count = ask(&stage, "/v1/query/products/count", "wait=99");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!query.is_finished() && !count.is_finished());
    let none = stage.gateway.admin().queries("limit=10").await;
    assert!(none.is_empty(), "nothing is claimed meanwhile: {none:?}");
    let _process = RunnerProcess::start(&stage.gateway, &runner).await;
    let answer = query.await.unwrap();
    assert_eq!(answer.rows().len(), 100);
    assert_eq!(answer.header("preference-applied"), "wait=30");
    let answer = count.await.unwrap();
    assert_eq!(answer.expect(200)["count"], 250);
    assert_eq!(answer.header("preference-applied"), "wait=60");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_in_vain_is_503_with_the_reason() {
    let stage = Stage::inline(Engine::Sqlite).await;
    stage.add_identity("never").await;
    let started = Instant::now();
    let answer = ask(&stage, "/v1/query/products", "wait=2").await.unwrap();
    let body = answer.expect_error(503, "no_runners_online");
    assert!(text(&body, "error").contains("never"), "{body}");
    assert!(started.elapsed() >= Duration::from_secs(2));
    assert_eq!(answer.header("preference-applied"), "wait=2");
    assert!(answer.retry_after() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_waits_gets_the_place_that_becomes_free() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("narrow").await;
    let mut hello = crate::support::fake_runner::hello_v2(&runner.id);
    hello["maxConcurrentJobs"] = json!(1);
    let mut session = FakeRunner::open(&stage.gateway, &runner.token, hello).await;
    let first = ask(&stage, "/v1/query/products", "wait=1");
    let (id, _) = session.job().await;
    session.accept(&id).await;
    let second = ask(&stage, "/v1/query/products", "wait=30");
    session.assert_silent(Duration::from_millis(600)).await;
    session.send_rows(&id, &[row("first")]).await;
    session.send_done(&id, 1).await;
    assert_eq!(first.await.unwrap().rows(), [row("first")]);
    let (id, _) = session.job().await;
    session.accept(&id).await;
    session.send_rows(&id, &[row("second")]).await;
    session.send_done(&id, 1).await;
    assert_eq!(second.await.unwrap().rows(), [row("second")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_goes_away_while_waiting_leaves_nothing_behind() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("late").await;
    let query = ask(&stage, "/v1/query/products", "wait=30");
    tokio::time::sleep(Duration::from_millis(300)).await;
    query.abort();
    let admin = stage.gateway.admin();
    eventually("the job is cancelled", PATIENCE, async || {
        let jobs = admin.jobs("state=cancelled").await;
        holds(jobs.len() == 1, jobs)
    })
    .await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    session.assert_silent(Duration::from_millis(500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_makes_no_sense_is_400() {
    let stage = Stage::inline(Engine::Sqlite).await;
    for prefer in ["wait=0", "wait=soon", "wait=-1", "wait"] {
        for path in ["/v1/query/products", "/v1/query/products/count"] {
            let answer = ask(&stage, path, prefer).await.unwrap();
            let body = answer.expect_error(400, "invalid_request");
            assert!(text(&body, "error").contains("`Prefer`"), "{body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lens_says_what_becomes_of_a_lost_query() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let admin = stage.gateway.admin();
    let choice = async || {
        let lens = admin.get("/v1/lenses/products").await.expect(200);
        text(&lens, "onRunnerFailure")
    };
    assert_eq!(choice().await, "fail");
    insist(&stage, "products").await;
    assert_eq!(choice().await, "retry");
    admin
        .patch("/v1/lenses/products", json!({"grants": {}}))
        .await
        .expect(200);
    assert_eq!(choice().await, "retry", "what is absent stays");
    let body = admin
        .patch("/v1/lenses/products", json!({"onRunnerFailure": "always"}))
        .await
        .expect_error(400, "invalid_request");
    assert_eq!(body["path"], "onRunnerFailure");
    stage
        .add_lens(json!({
            "name": "insistent", "sourceId": stage.source, "table": "products", "primaryKey": "id",
            "fields": {"id": {"type": "number"}}, "onRunnerFailure": "retry",
        }))
        .await;
    let lens = admin.get("/v1/lenses/insistent").await.expect(200);
    assert_eq!(lens["onRunnerFailure"], "retry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_query_that_insists_is_answered_by_another_runner() {
    for version in [1, 2] {
        let stage = Stage::inline(Engine::Sqlite).await;
        insist(&stage, "products").await;
        let (one, other) = (
            stage.add_identity("one").await,
            stage.add_identity("other").await,
        );
        let open = async |runner| match version {
            1 => FakeRunner::v1(&stage.gateway, runner).await,
            _ => FakeRunner::v2(&stage.gateway, runner).await,
        };
        let send = async |session: &mut FakeRunner, id: &str, title: &str| {
            if version == 1 {
                let rows = [json!({"id": 1, "title": title, "price_cents": 1, "category": null})];
                session.send_chunk(id, &rows).await;
            } else {
                session.accept(id).await;
                session.send_rows(id, &[row(title)]).await;
            }
        };
        let mut lost = open(&one).await;
        let query = ask(&stage, "/v1/query/products", "nothing");
        let (id, _) = lost.job().await;
        let mut willing = open(&other).await;
        send(&mut lost, &id, "held back").await;
        lost.until_heard().await;
        drop(lost);
        let (again, job) = willing.job().await;
        assert_ne!(again, id, "a fresh id per attempt");
        if version == 2 {
            assert_eq!(job["attempt"], 2, "{job}");
        }
        send(&mut willing, &again, "answered").await;
        willing.send_done(&again, 1).await;
        let answer = query.await.unwrap();
        assert_eq!(answer.rows(), [row("answered")], "protocol {version}");
        let meta = &answer.json()["meta"];
        assert_eq!(
            (&meta["runnerId"], &meta["count"]),
            (&json!(other.id), &json!(1))
        );
        let job = stage
            .gateway
            .until_job_is(&text(meta, "jobId"), "completed")
            .await;
        assert_eq!(job["attempt"], 2, "{job}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_is_executed_twice_at_most() {
    let stage = Stage::inline(Engine::Sqlite).await;
    insist(&stage, "products").await;
    let mut sessions = Vec::new();
    for name in ["one", "two", "three"] {
        let runner = stage.add_identity(name).await;
        sessions.push((FakeRunner::v2(&stage.gateway, &runner).await, runner));
    }
    let query = ask(&stage, "/v1/query/products", "nothing");
    let mut executions = 0;
    // Whoever gets it is lost.
    let mut tasks = tokio::task::JoinSet::new();
    for (mut session, _) in sessions {
        tasks.spawn(async move {
            let (id, _) = session.job().await;
            session.accept(&id).await;
            session.until_heard().await;
        });
    }
    let answer = query.await.unwrap();
    while let Some(task) = tasks.try_join_next() {
        task.unwrap();
        executions += 1;
    }
    assert_eq!(executions, 2);
    let body = answer.expect_error(502, "runner_failed");
    assert_eq!(
        (&body["delivery"], &body["retryable"]),
        (&json!("started"), &json!(true))
    );
    let job = stage
        .gateway
        .until_job_is(&text(&body, "jobId"), "failed")
        .await;
    assert_eq!(
        (&job["attempt"], &job["routing"]["delivery"]),
        (&json!(2), &json!("started"))
    );
    tasks.abort_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reached_the_caller_is_never_tried_again() {
    let stage = Stage::inline(Engine::Sqlite).await;
    insist(&stage, "products").await;
    let runner = stage.add_identity("one").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/products")
        .header("accept", "application/x-ndjson")
        .json(&json!({"limit": 1_000_000}));
    let query = tokio::spawn(Answer::of(request));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    let line = format!("{}\n", json!({"id": 1, "title": "x".repeat(1000)}));
    let lines = line.repeat(600);
    // Two frames are more than is held back.
    for _ in 0..2 {
        session
            .send_binary(rows_frame_of(&id, 600, lines.as_bytes()))
            .await;
        session.frame("credit").await;
    }
    let other = stage.add_identity("other").await;
    let mut bystander = FakeRunner::v2(&stage.gateway, &other).await;
    session.until_heard().await;
    drop(session);
    let answer = query.await.unwrap();
    let last: Value = serde_json::from_str(answer.text.lines().last().unwrap()).unwrap();
    let last = &last["$error"];
    assert_eq!(
        (&last["code"], &last["delivery"]),
        (&json!("runner_failed"), &json!("partial"))
    );
    bystander.assert_silent(Duration::from_millis(500)).await;
    let job = stage
        .gateway
        .until_job_is(&text(last, "jobId"), "failed")
        .await;
    assert_eq!(job["routing"]["delivery"], "partial", "{job}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_in_the_middle_of_a_query_that_insists_is_not_noticed() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    stage.database.add_slow_view(3).await;
    stage.add_titles_lens("slow", &stage.source, "slow").await;
    insist(&stage, "slow").await;
    let mut runners = Vec::new();
    for name in ["one", "two"] {
        let tagged =
            |builder: crate::support::runner::RunnerBuilder| builder.env("SEMILAYER_TAG_SQL", "1");
        runners.push(stage.add_runner_as(name, tagged).await);
    }
    let query = ask(&stage, "/v1/query/slow", "nothing");
    let job_id = stage.gateway.until_dispatched().await;
    let runs = async |attempt: u32| {
        let tag = format!("/* semilayer {job_id}/{attempt} */");
        eventually("the attempt runs at the database", PATIENCE, async || {
            let running = stage.database.running().await;
            let count = running.iter().filter(|sql| sql.contains(&tag)).count();
            holds(count == 1, running)
        })
        .await;
    };
    runs(1).await;
    let job = stage.gateway.admin().job(&job_id).await;
    let has_it = runners
        .iter()
        .position(|runner| job["runner"]["id"] == runner.id)
        .unwrap_or_else(|| panic!("no runner in {job}"));
    stage.runners[has_it].process.signal("KILL");
    runs(2).await;
    let answer = query.await.unwrap();
    assert_eq!(answer.rows(), [json!({"id": 1, "title": "late"})]);
    assert_eq!(
        answer.json()["meta"]["runnerId"],
        runners[1 - has_it].id,
        "the other one"
    );
    let job = stage.gateway.until_job_is(&job_id, "completed").await;
    assert_eq!(job["attempt"], 2, "{job}");
    let running = stage.database.running().await;
    assert!(
        running.iter().all(|sql| !sql.contains("/3 */")),
        "{running:?}"
    );
}
