//! Several runners, many jobs: who gets them, and that every answer finds its caller.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::support::databases::{PRODUCTS, product};
use crate::support::rest::text;
use crate::support::{Engine, FakeRunner, PATIENCE, RunnerProcess, Stage};

/// Asks for one product after the other, `at_once` at a time; answers with how many each runner served.
async fn ask_for_products(stage: &Stage, queries: u64, at_once: usize) -> HashMap<String, u64> {
    let caller = stage.gateway.caller();
    let answers = stream::iter(0..queries).map(|n| {
        let caller = caller.clone();
        let id = n % PRODUCTS + 1;
        async move {
            let answer = caller.query("products", json!({"where": {"id": id}})).await;
            assert_eq!(
                answer.rows(),
                [product(id)],
                "the answer to somebody else's question"
            );
            text(&answer.json()["meta"], "runnerId")
        }
    });
    answers
        .buffer_unordered(at_once)
        .fold(HashMap::new(), async |mut served, runner| {
            *served.entry(runner).or_default() += 1;
            served
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_runners_share_a_thousand_jobs_evenly() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    let runners = [stage.add_runner("one").await, stage.add_runner("two").await];
    let served = ask_for_products(&stage, 1000, 16).await;
    for runner in &runners {
        // A fair coin is outside of this once in ten million runs.
        let jobs = served.get(&runner.id).copied().unwrap_or(0);
        assert!((415..=585).contains(&jobs), "{served:?}");
    }
    let sessions = stage
        .gateway
        .admin()
        .get(&format!("/v1/runners/{}/sessions", runners[0].id))
        .await
        .expect(200);
    assert_eq!(sessions["items"].as_array().unwrap().len(), 1, "{sessions}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_concurrent_jobs_on_one_runner_find_their_callers() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    let runner = stage
        .add_runner_as("wide", |builder| builder.capacity(256))
        .await;
    let served = ask_for_products(&stage, 200, 200).await;
    assert_eq!(served, HashMap::from([(runner.id, 200)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_of_one_runner_share_its_jobs() {
    let stage = Stage::inline(Engine::Sqlite).await;
    stage
        .add_titles_lens("replica", &stage.source, "replica")
        .await;
    let runner = stage.add_identity("deployment").await;
    for name in ["one", "two"] {
        let replica = FakeRunner::v1(&stage.gateway, &runner).await;
        replica.serve_v1(move |_| vec![json!({"id": 1, "title": name})]);
    }
    let sessions = stage
        .gateway
        .admin()
        .get(&format!("/v1/runners/{}/sessions", runner.id))
        .await
        .expect(200);
    assert_eq!(sessions["items"].as_array().unwrap().len(), 2, "{sessions}");
    let mut served: HashMap<String, u64> = HashMap::new();
    for _ in 0..100 {
        let rows = stage
            .gateway
            .caller()
            .query("replica", json!({}))
            .await
            .rows();
        *served.entry(text(&rows[0], "title")).or_default() += 1;
    }
    assert!(
        served.len() == 2 && served.values().all(|jobs| *jobs >= 20),
        "{served:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_runner_with_the_same_token_takes_over() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_runner("primary").await;
    stage.assert_serves().await;
    let mut first = stage.runners.remove(0);
    first.process.signal("TERM");
    assert!(first.process.end(PATIENCE).await.success());
    stage.gateway.until_runner_is(&runner, "offline").await;
    stage
        .runners
        .push(RunnerProcess::start(&stage.gateway, &runner).await);
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_go_only_to_runners_that_have_the_source() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    let assigned = stage.add_runner("assigned").await;
    let other = stage.add_runner("other").await;
    stage.gateway.admin().assign(&other, &[]).await;
    assert_eq!(
        ask_for_products(&stage, 50, 4).await,
        HashMap::from([(assigned.id.clone(), 50)])
    );
    // Moved to the other one, and that is known at once.
    stage.gateway.admin().assign(&other, &[&stage.source]).await;
    stage.gateway.admin().assign(&assigned, &[]).await;
    assert_eq!(
        ask_for_products(&stage, 50, 4).await,
        HashMap::from([(other.id, 50)])
    );
}
