//! Protocol 2: acknowledgement, rows that nobody parses, credit, compression, drain.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::fake_runner::{Incoming, rows_frame, rows_frame_of, zstd_frame};
use crate::support::rest::{Runner, text};
use crate::support::{Answer, Engine, FakeRunner, Gateway, PATIENCE, Stage, eventually};

const WINDOW: usize = 1024 * 1024;

async fn modern_runner() -> (Stage, Runner, FakeRunner) {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("modern").await;
    let session = FakeRunner::v2(&stage.gateway, &runner).await;
    (stage, runner, session)
}

fn ask(stage: &Stage, body: Value) -> tokio::task::JoinHandle<Answer> {
    let caller = stage.gateway.caller();
    tokio::spawn(async move { caller.query("products", body).await })
}

/// A row as the lens shows it: a protocol 2 runner maps.
fn row(title: &str) -> Value {
    json!({"id": 1, "title": title, "price": 1, "category": null})
}

/// Takes the next job and answers it with one row.
async fn serve_one(session: &mut FakeRunner, title: &str) {
    let (id, _) = session.job().await;
    session.accept(&id).await;
    session.send_rows(&id, &[row(title)]).await;
    session.send_done(&id, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handshake_announces_limits_and_intervals() {
    let (_stage, _, session) = modern_runner().await;
    let ack = &session.ack;
    assert_eq!(ack["serverVersion"], 2);
    assert_eq!(
        ack["limits"],
        json!({"maxFrameBytes": 1_048_576, "windowBytes": 1_048_576, "maxRowBytes": 16_777_216})
    );
    assert_eq!(
        (&ack["heartbeatMs"], &ack["lostAfterMs"]),
        (&json!(10_000), &json!(12_000))
    );
    assert!(
        [Value::Null, json!("zstd")].contains(&ack["compression"]),
        "one of those offered, or none: {ack}"
    );
    for id in ["sessionId", "gatewayId"] {
        uuid::Uuid::parse_str(&text(ack, id)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_pass_unparsed_and_under_the_names_of_the_lens() {
    let (stage, _, mut session) = modern_runner().await;
    let query = ask(&stage, json!({"limit": 3}));
    let (id, job) = session.job().await;
    assert!(
        [Value::Null, json!("json")].contains(&job["encoding"]),
        "JSON, which is the default: {job}"
    );
    assert!(job["window"].as_u64().unwrap() >= WINDOW as u64);
    let fields = job["fields"].as_array().unwrap();
    assert!(fields.contains(&json!(["price_cents", "price"])), "{job}");
    session.accept(&id).await;
    // White space that a parser would lose.
    session
        .send_binary(rows_frame_of(&id, 2, b"{\"id\":   1},{\"id\":2}"))
        .await;
    session
        .send_binary(rows_frame_of(&id, 1, b"{\"id\":3 }"))
        .await;
    session.send_done(&id, 3).await;
    let answer = query.await.unwrap();
    assert!(
        answer.text.contains("{\"id\":   1},{\"id\":2},{\"id\":3 }"),
        "{}",
        answer.text
    );
    assert_eq!(answer.json()["meta"]["count"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_rows_are_expanded() {
    let (stage, _, mut session) = modern_runner().await;
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    let payload = row(&"z".repeat(10_000)).to_string();
    session
        .send_binary(zstd_frame(
            &id,
            1,
            u32::try_from(payload.len()).unwrap(),
            payload.as_bytes(),
        ))
        .await;
    session.send_done(&id, 1).await;
    assert_eq!(query.await.unwrap().rows(), [row(&"z".repeat(10_000))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_frame_that_lies_about_its_size_ends_the_session_only() {
    for announced in [100, u32::MAX] {
        let (stage, _, mut session) = modern_runner().await;
        let other = stage.add_identity("other").await;
        let query = ask(&stage, json!({}));
        let (id, _) = session.job().await;
        session.accept(&id).await;
        session
            .send_binary(zstd_frame(&id, 1, announced, &vec![b' '; 64 << 20]))
            .await;
        assert_eq!(session.closed().await, 4002);
        query.await.unwrap().expect_error(502, "runner_failed");
        let mut healthy = FakeRunner::v2(&stage.gateway, &other).await;
        let query = ask(&stage, json!({}));
        serve_one(&mut healthy, "fine").await;
        assert_eq!(query.await.unwrap().rows(), [row("fine")]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_job_goes_to_another_runner_and_the_caller_notices_nothing() {
    for reason in ["busy", "draining", "unassigned"] {
        let stage = Stage::inline(Engine::Sqlite).await;
        let refuser = stage.add_identity("refuser").await;
        let mut unwilling = FakeRunner::v2(&stage.gateway, &refuser).await;
        let query = ask(&stage, json!({}));
        let (id, _) = unwilling.job().await;
        let helper = stage.add_identity("helper").await;
        let mut willing = FakeRunner::v2(&stage.gateway, &helper).await;
        unwilling
            .send(json!({"type": "refused", "id": id, "reason": reason}))
            .await;
        let (again, _) = willing.job().await;
        assert_ne!(again, id, "a fresh id per attempt");
        willing.accept(&again).await;
        willing.send_rows(&again, &[row("served")]).await;
        willing.send_done(&again, 1).await;
        let answer = query.await.unwrap();
        assert_eq!(answer.rows(), [row("served")]);
        assert_eq!(answer.json()["meta"]["runnerId"], helper.id);
        let job = stage
            .gateway
            .until_job_is(&text(&answer.json()["meta"], "jobId"), "completed")
            .await;
        assert_eq!(job["attempt"], 2, "{job}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_everybody_refuses_is_503() {
    let (stage, _, mut session) = modern_runner().await;
    let query = ask(&stage, json!({}));
    let refuse = async {
        loop {
            let (id, _) = session.job().await;
            session
                .send(json!({"type": "refused", "id": id, "reason": "busy"}))
                .await;
        }
    };
    let answer = tokio::select! {
        () = refuse => unreachable!("it refuses for ever"),
        answer = query => answer.unwrap(),
    };
    answer.expect_error(503, "runners_busy");
    assert!(answer.retry_after() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_follows_what_the_client_reads() {
    let (stage, _, mut session) = modern_runner().await;
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/products")
        .json(&json!({"limit": 1_000_000}));
    let response = tokio::spawn(async move { request.send().await.unwrap() });
    let (id, job) = session.job().await;
    let window = usize::try_from(job["window"].as_u64().unwrap()).unwrap();
    session.accept(&id).await;
    let frame = rows_frame(&id, &vec![row(&"x".repeat(1000)); 500]);
    let mut credit = window.cast_signed();
    let mut sent = 0;
    // Nobody reads the body: past the window and what sockets hold, the credit runs dry.
    let dry = loop {
        if credit > 0 {
            session.send_binary(frame.clone()).await;
            credit -= frame.len().cast_signed();
            sent += frame.len();
            assert!(
                sent < 64 << 20,
                "credit was granted for {sent} bytes that nobody read"
            );
            continue;
        }
        match tokio::time::timeout(Duration::from_secs(2), session.next()).await {
            Ok(Incoming::Frame(frame)) if frame["type"] == "credit" => {
                let bytes = usize::try_from(frame["bytes"].as_u64().unwrap()).unwrap();
                assert_eq!(frame["id"], id);
                assert!(
                    bytes >= window / 2,
                    "in steps of half a window at least, not {bytes}"
                );
                credit += bytes.cast_signed();
            }
            Ok(Incoming::Frame(frame)) if frame["type"] == "ping" => {}
            Ok(other) => panic!("{other:?}"),
            Err(_) => break sent,
        }
    };
    assert!(dry >= window);
    // Once the client reads, it flows again.
    let body = tokio::spawn(async move { response.await.unwrap().bytes().await.unwrap().len() });
    let granted = session.frame("credit").await;
    assert!(granted["bytes"].as_u64().unwrap() > 0);
    session.send_done(&id, 1).await;
    let received = body.await.unwrap();
    assert!(
        received + 64 * sent / frame.len() >= sent,
        "{received} bytes received of {sent}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_runner_gets_nothing_new_and_finishes_what_it_has() {
    let (stage, runner, mut session) = modern_runner().await;
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    stage
        .gateway
        .admin()
        .post(&format!("/v1/runners/{}/drain", runner.id), json!({}))
        .await
        .expect_success();
    stage.gateway.until_runner_is(&runner, "draining").await;
    let body = stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await
        .expect_error(503, "no_runners_online");
    assert!(text(&body, "error").contains("drain"), "{body}");
    session.send_rows(&id, &[row("what runs finishes")]).await;
    session.send_done(&id, 1).await;
    assert_eq!(query.await.unwrap().rows(), [row("what runs finishes")]);
    stage
        .gateway
        .admin()
        .post(&format!("/v1/runners/{}/resume", runner.id), json!({}))
        .await
        .expect_success();
    stage.gateway.until_runner_is(&runner, "online").await;
    let query = ask(&stage, json!({}));
    serve_one(&mut session, "back again").await;
    assert_eq!(query.await.unwrap().rows(), [row("back again")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_drains_its_runners_and_answers_what_runs() {
    let (mut stage, _, mut session) = modern_runner().await;
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    stage.gateway.process.signal("TERM");
    let drain = session.frame("drain").await;
    assert!(
        drain["deadlineMs"].as_u64().unwrap() > 0 && drain["reason"].is_string(),
        "{drain}"
    );
    session.send_rows(&id, &[row("what runs finishes")]).await;
    session.send_done(&id, 1).await;
    assert_eq!(query.await.unwrap().rows(), [row("what runs finishes")]);
    assert_eq!(session.closed().await, 1001);
    assert!(stage.gateway.process.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_says_it_drains_gets_nothing_new() {
    let (stage, runner, mut session) = modern_runner().await;
    session.send(json!({"type": "draining"})).await;
    stage.gateway.until_runner_is(&runner, "draining").await;
    stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await
        .expect_error(503, "no_runners_online");
    session.assert_silent(Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_pings() {
    let gateway = Gateway::builder().timing("ping=200ms").start().await;
    let stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("modern").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let opened = Instant::now();
    for _ in 0..3 {
        session.frame("ping").await;
    }
    assert!(
        opened.elapsed() < Duration::from_secs(3),
        "three pings took {:?}",
        opened.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_runner_leaves_a_truthful_delivery() {
    let (stage, runner, mut session) = modern_runner().await;
    let message = format!("Runner {} disconnected mid-job", runner.id);
    let query = ask(&stage, json!({}));
    session.job().await;
    drop(session);
    let body = query.await.unwrap().expect_error(502, "runner_failed");
    assert_eq!(
        (text(&body, "error"), text(&body, "delivery")),
        (message.clone(), "unknown".to_owned())
    );

    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    session.send_rows(&id, &[row("held back")]).await;
    session.until_heard().await;
    drop(session);
    let body = query.await.unwrap().expect_error(502, "runner_failed");
    assert_eq!(
        (text(&body, "error"), text(&body, "delivery")),
        (message, "started".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_done_for_a_foreign_id_reach_nobody() {
    let (stage, _, mut honest) = modern_runner().await;
    let query = ask(&stage, json!({}));
    let (id, _) = honest.job().await;
    honest.accept(&id).await;
    let intruder = stage.add_identity("intruder").await;
    let mut other = FakeRunner::v2(&stage.gateway, &intruder).await;
    for frame in ["accepted", "done", "refused"] {
        other
            .send(json!({"type": frame, "id": id, "reason": "busy"}))
            .await;
    }
    other.send_rows(&id, &[row("forged")]).await;
    other.send_error(&id, "SOURCE_QUERY_FAILED", "forged").await;
    honest.send_rows(&id, &[row("true")]).await;
    honest.send_done(&id, 1).await;
    assert_eq!(query.await.unwrap().rows(), [row("true")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_follows_the_job_and_its_late_answer_harms_nobody() {
    let (stage, _, mut session) = modern_runner().await;
    let query = ask(&stage, json!({}));
    let (first, _) = session.job().await;
    session.accept(&first).await;
    query.abort();
    assert_eq!(session.frame("cancel").await["id"], json!(first));
    let query = ask(&stage, json!({}));
    let (second, _) = session.job().await;
    session.accept(&second).await;
    session.send_rows(&first, &[row("late")]).await;
    session.send_done(&first, 1).await;
    session.send_rows(&second, &[row("second")]).await;
    session.send_done(&second, 1).await;
    assert_eq!(query.await.unwrap().rows(), [row("second")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_runner_is_cut_off_at_the_deadline_and_told_to_stop() {
    let (stage, _, mut session) = modern_runner().await;
    let body = json!({
        "sourceId": stage.source, "deadlineMs": 500,
        "job": {"kind": "query", "target": "products", "options": {}},
    });
    let internal = stage.gateway.internal();
    let query = tokio::spawn(async move { internal.post("/dispatch", body).await });
    let (id, job) = session.job().await;
    assert!(job["deadlineMs"].as_u64().unwrap() <= 500, "{job}");
    session.accept(&id).await;
    // It never answers.
    query.await.unwrap().expect_error(504, "QUERY_TIMEOUT");
    assert_eq!(session.frame("cancel").await["id"], json!(id));
    let admin = stage.gateway.admin();
    eventually("the job is over in the store", PATIENCE, async || {
        let job = admin.jobs("limit=1").await.remove(0);
        holds(
            ["expired", "failed"].contains(&job["state"].as_str().unwrap()),
            job,
        )
    })
    .await;
}
