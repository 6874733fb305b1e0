//! A client that reads slowly costs nobody memory and delays nobody, asserted from `/proc`.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::proc::resident_mib;
use crate::support::{Engine, FakeRunner, PATIENCE, Stage, eventually};

on_every_database! {
    a_slow_reader_of_a_million_rows_keeps_memory_flat_and_delays_nobody,
    a_large_result_arrives_whole,
}

const MILLION: u64 = 1_000_000;
/// By how much a process may grow over what it had when the result began to flow, in MiB.
const FLAT: f64 = 32.0;

/// Asks for the whole of `wide` and answers with the response once its head is there.
async fn ask_for_everything(stage: &Stage) -> reqwest::Response {
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/wide");
    let request = request
        .header("accept", "application/x-ndjson")
        .json(&json!({"limit": MILLION}));
    let response = request.send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response
}

async fn a_slow_reader_of_a_million_rows_keeps_memory_flat_and_delays_nobody(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    stage.add_wide_lens(MILLION).await;
    stage.add_runner("primary").await;
    // Warm both up, so that what pools and allocators keep is not counted as growth.
    for _ in 0..20 {
        stage.assert_serves().await;
    }
    let (gateway, runner) = (stage.gateway.process.pid(), stage.runners[0].process.pid());
    let before = (resident_mib(gateway), resident_mib(runner));

    let mut body = ask_for_everything(&stage).await.bytes_stream();
    let mut read = 0;
    let mut slowest = Duration::ZERO;
    let started = Instant::now();
    // A megabyte, then other people's queries, and so on: about 4 MB/s at most, of 120 MB.
    while read < 24 << 20 {
        let until = read + (1 << 20);
        while read < until {
            read += body
                .next()
                .await
                .expect("the result goes on")
                .unwrap()
                .len();
        }
        for _ in 0..4 {
            let asked = Instant::now();
            stage.assert_serves().await;
            slowest = slowest.max(asked.elapsed());
        }
        let grown = (
            resident_mib(gateway) - before.0,
            resident_mib(runner) - before.1,
        );
        assert!(
            grown.0 < FLAT && grown.1 < FLAT,
            "after {read} bytes gateway and runner grew by {grown:?} MiB"
        );
    }
    // Then it stops reading for good; the others still go on.
    while started.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        stage.assert_serves().await;
        slowest = slowest.max(asked.elapsed());
    }
    let grown = (
        resident_mib(gateway) - before.0,
        resident_mib(runner) - before.1,
    );
    assert!(
        grown.0 < FLAT && grown.1 < FLAT,
        "in the end gateway and runner grew by {grown:?} MiB"
    );
    assert!(
        slowest < Duration::from_secs(2),
        "another job on the same socket took {slowest:?}"
    );
    // And it leaves in the middle: the job ends with it.
    let job = stage.gateway.until_dispatched().await;
    drop(body);
    stage.gateway.until_job_is(&job, "cancelled").await;
}

async fn a_large_result_arrives_whole(engine: Engine) {
    const ROWS: u64 = 50_000;
    let mut stage = Stage::inline(engine).await;
    stage.add_wide_lens(ROWS).await;
    for _ in ["inline", "through a runner"] {
        let body = json!({"limit": ROWS, "orderBy": {"field": "id"}});
        let answer = stage.gateway.caller().query("wide", body).await.expect(200);
        let rows = answer["rows"].as_array().unwrap();
        assert_eq!(rows.len() as u64, ROWS);
        assert!(
            rows.iter().zip(1..).all(|(row, id)| row["id"] == id),
            "each once, in order"
        );
        assert_eq!(answer["meta"]["count"], ROWS);
        if stage.runners.is_empty() {
            stage.add_runner("primary").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_overflows_a_protocol_1_job_and_the_socket_goes_on() {
    let stage = Stage::inline(Engine::Sqlite).await;
    stage.add_titles_lens("flood", &stage.source, "flood").await;
    let runner = stage.add_identity("field").await;
    let mut session = FakeRunner::v1(&stage.gateway, &runner).await;
    let before = resident_mib(stage.gateway.process.pid());

    let caller = stage.gateway.caller();
    let request = caller
        .request(Method::POST, "/v1/query/flood")
        .json(&json!({"limit": MILLION}));
    let response = tokio::spawn(async move { request.send().await.unwrap() });
    let (id, _) = session.job().await;
    let rows: Vec<Value> = (0..1000)
        .map(|n| json!({"id": n, "title": "x".repeat(100)}))
        .collect();
    // 8 MiB may wait in the gateway; what is sent beyond that, socket buffers and all, is too much.
    for _ in 0..400 {
        session.send_chunk(&id, &rows).await;
    }
    // The client has not read a byte of the body.
    let response = response.await.unwrap();
    assert_eq!(
        response.status().as_u16(),
        200,
        "the first megabyte was good"
    );
    let cancel = session.frame("cancel").await;
    assert_eq!(cancel["id"], id);
    let job = stage
        .gateway
        .until_job_is(&latest_job(&stage).await, "failed")
        .await;
    assert_eq!(job["error"]["code"], "result_overflow", "{job}");
    let grown = resident_mib(stage.gateway.process.pid()) - before;
    assert!(grown < 2.0 * FLAT, "the gateway grew by {grown} MiB");
    assert!(
        response.bytes().await.is_err(),
        "a body that was cut short must not look complete"
    );

    // The same session answers the next one.
    let caller = stage.gateway.caller();
    let next = tokio::spawn(async move { caller.query("flood", json!({})).await });
    let (id, _) = session.job().await;
    session
        .send_chunk(&id, &[json!({"id": 1, "title": "fine"})])
        .await;
    session.send_done(&id, 1).await;
    assert_eq!(
        next.await.unwrap().rows(),
        [json!({"id": 1, "title": "fine"})]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_ignores_its_window_cannot_fill_the_gateways_memory() {
    let stage = Stage::inline(Engine::Sqlite).await;
    stage.add_titles_lens("flood", &stage.source, "flood").await;
    let (greedy, modest) = (
        stage.add_identity("greedy").await,
        stage.add_identity("modest").await,
    );
    let mut session = FakeRunner::v2(&stage.gateway, &greedy).await;
    let pid = stage.gateway.process.pid();
    let before = resident_mib(pid);
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/flood")
        .json(&json!({"limit": MILLION}));
    let response = tokio::spawn(async move { request.send().await });
    let (id, _) = session.job().await;
    session.accept(&id).await;
    let rows: Vec<Value> = (0..1000)
        .map(|n| json!({"id": n, "title": "x".repeat(200)}))
        .collect();
    let frame = crate::support::fake_runner::rows_frame(&id, &rows);
    // 100 MB against a window of one; sending stops short when the gateway has had enough of it.
    for _ in 0..450 {
        let message = tokio_tungstenite::tungstenite::Message::binary(frame.clone());
        let sent = tokio::time::timeout(Duration::from_secs(2), session.try_send(message)).await;
        let grown = resident_mib(pid) - before;
        assert!(grown < FLAT, "the gateway grew by {grown} MiB");
        if sent != Ok(true) {
            break;
        }
    }
    let job = latest_job(&stage).await;
    eventually(
        "the job of the greedy runner has failed",
        PATIENCE,
        async || {
            let job = stage.gateway.admin().job(&job).await;
            holds(job["state"] == "failed", job)
        },
    )
    .await;
    drop(response);
    let _session = FakeRunner::v1(&stage.gateway, &modest)
        .await
        .serve_v1(|_| vec![json!({"id": 1, "title": "t"})]);
    drop(session);
    stage.gateway.until_runner_is(&greedy, "offline").await;
    assert_eq!(
        stage
            .gateway
            .caller()
            .query("flood", json!({}))
            .await
            .rows()
            .len(),
        1
    );
}

async fn latest_job(stage: &Stage) -> String {
    crate::support::rest::text(&stage.gateway.admin().jobs("limit=1").await[0], "id")
}
