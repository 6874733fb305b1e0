//! Jobs over a real socket: answers, credit, cancellation, capacity, protocol 1.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::support::*;
use crate::ids::AttemptId;
use crate::protocol::{GatewayFrame, RefusedReason, RunnerFrame};

async fn runner(variables: &[(&str, &str)]) -> (Gateway, Arc<Script>, Runner) {
    let gateway = Gateway::start().await;
    let script = Arc::new(Script::default());
    let runner = Runner::start(config(&gateway.url(), variables), script.clone());
    (gateway, script, runner)
}

#[tokio::test]
async fn a_job_is_accepted_streamed_and_done() {
    let (gateway, _script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (id, job) = session.job("rows 3 100");
    session.send(job).await;
    session.accepted(id).await;
    for _ in 0..3 {
        let rows = session.rows().await;
        assert_eq!((rows.id, rows.rows, rows.payload.len()), (id, 1, 100));
    }
    let meta = session.done().await;
    assert_eq!((meta.count, meta.bytes), (Some(3), Some(300)));
    assert!(meta.duration_ms.is_some());
}

#[tokio::test]
async fn rows_are_compressed_when_the_gateway_chose_so() {
    let (gateway, _script, _runner) = runner(&[]).await;
    let mut session = gateway.accept().await;
    assert_eq!(session.hello.compression, ["zstd"]);
    let source = session.source.clone();
    session
        .send(json!({"type": "hello-ack", "serverVersion": 2, "assignedSources": [source], "compression": "zstd"}))
        .await;
    let (id, job) = session.job("rows 1 5000");
    session.send(job).await;
    session.accepted(id).await;
    let raw = futures_util::StreamExt::next(&mut session.socket)
        .await
        .unwrap()
        .unwrap()
        .into_data();
    assert!(raw.len() < 200 && raw[1] == 1, "{} bytes", raw.len());
    assert_eq!(
        crate::protocol::RowsFrame::decode(raw, 1 << 20)
            .unwrap()
            .payload
            .len(),
        5000
    );
}

#[tokio::test]
async fn a_stream_stops_at_its_credit_and_goes_on_when_it_gets_more() {
    let (gateway, script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (id, mut job) = session.job("rows 4 100");
    job["window"] = json!(150);
    session.send(job).await;
    session.accepted(id).await;
    session.rows().await;
    session.rows().await; // with 50 bytes left one more frame may go, and overdraws
    session.silence().await;
    assert_eq!(
        script.sent.load(Ordering::SeqCst),
        2,
        "the database is read no further"
    );
    session
        .send(GatewayFrame::Credit { id, bytes: 50 }.json())
        .await;
    session.silence().await; // the debt is paid, no more
    session
        .send(GatewayFrame::Credit { id, bytes: 200 }.json())
        .await;
    session.rows().await;
    session.rows().await;
    session.done().await;
}

#[tokio::test]
async fn a_row_larger_than_a_frame_travels_in_parts_each_under_its_credit() {
    let (gateway, _script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (id, job) = session.job("rows 1 2500000");
    session.send(job).await;
    session.accepted(id).await;
    // The most that fits into a frame with its header; the window is 26 bytes larger.
    let frame = (1 << 20) - 26;
    let mut row = Vec::new();
    for _ in 0..2 {
        let part = session.rows().await;
        assert!((part.payload.len(), part.more, part.rows) == (frame, true, 0));
        row.extend_from_slice(&part.payload);
    }
    session.silence().await; // the second part has overdrawn the window
    let bytes = u32::try_from(frame).unwrap();
    session
        .send(GatewayFrame::Credit { id, bytes }.json())
        .await;
    let last = session.rows().await;
    assert!((last.more, last.rows) == (false, 1));
    row.extend_from_slice(&last.payload);
    assert_eq!(row.len(), 2_500_000);
    assert!(serde_json::from_slice::<serde_json::Value>(&row).is_ok());
    let meta = session.done().await;
    assert_eq!((meta.count, meta.bytes), (Some(1), Some(2_500_000)));
}

#[tokio::test]
async fn a_job_out_of_credit_does_not_stop_the_others() {
    let (gateway, _script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (stalled, mut job) = session.job("rows 2 100");
    job["window"] = json!(1);
    session.send(job).await;
    session.accepted(stalled).await;
    session.rows().await;
    let (id, job) = session.job("rows 1 100");
    session.send(job).await;
    session.accepted(id).await;
    assert_eq!(session.rows().await.id, id);
    session.done().await;
}

#[tokio::test]
async fn a_cancel_reaches_the_database_and_is_answered() {
    let (gateway, script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    for target in ["hang", "rows 1000 1000"] {
        let (id, mut job) = session.job(target);
        job["window"] = json!(1);
        session.send(job).await;
        session.accepted(id).await;
        if target != "hang" {
            session.rows().await;
        }
        session.send(GatewayFrame::Cancel { id }.json()).await;
        assert_eq!(session.error().await.0, "job_cancelled");
    }
    assert_eq!(script.cancelled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_cancel_that_arrives_with_its_job_keeps_the_database_untouched() {
    let (gateway, script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (id, job) = session.job("hang");
    session
        .send_together(vec![job, GatewayFrame::Cancel { id }.json()])
        .await;
    session.accepted(id).await;
    assert_eq!(session.error().await.0, "job_cancelled");
    assert_eq!(script.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_full_runner_refuses_and_takes_again_when_there_is_room() {
    let gateway = Gateway::start().await;
    let script = Arc::new(Script::default());
    let mut config = config(&gateway.url(), &[]);
    config.max_concurrent_jobs = 1;
    let _runner = Runner::start(config, script.clone());
    let mut session = gateway.session().await;
    assert_eq!(session.hello.max_concurrent_jobs, Some(1));
    let (first, job) = session.job("wait");
    session.send(job).await;
    session.accepted(first).await;
    let (second, job) = session.job("rows 1 10");
    session.send(job.clone()).await;
    let Received::Frame(RunnerFrame::Refused { id, reason }) = session.next().await else {
        panic!("not refused")
    };
    assert_eq!((id, reason), (second, RefusedReason::Busy));
    script.go.notify_one();
    session.done().await;
    let (third, job) = session.job("rows 1 10");
    session.send(job).await;
    session.accepted(third).await;
}

#[tokio::test]
async fn a_panic_is_answered_and_the_session_goes_on() {
    let (gateway, _script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (id, job) = session.job("panic");
    session.send(job).await;
    session.accepted(id).await;
    assert_eq!(session.error().await.0, "runner_failed");
    let (id, job) = session.job("rows 1 10");
    session.send(job).await;
    session.accepted(id).await;
    session.rows().await;
    session.done().await;
}

#[tokio::test]
async fn runner_local_credentials_come_from_the_environment() {
    let (gateway, script, _runner) = runner(&[
        ("SEMILAYER_SOURCE_DB_URL", "file.db"),
        ("SEMILAYER_SOURCE_DB_X_Y", "1"),
    ])
    .await;
    let mut session = gateway.accept().await;
    session.source["credentialsLocation"] = json!("runner-local");
    let mut other = session.source.clone();
    other["name"] = json!("other");
    other["id"] = json!(AttemptId::new());
    let sources = json!([session.source, other]);
    session
        .send(json!({"type": "hello-ack", "serverVersion": 2, "assignedSources": sources}))
        .await;
    let (id, job) = session.job("rows 1 10");
    session.send(job).await;
    session.accepted(id).await;
    session.rows().await;
    session.done().await;
    assert_eq!(
        script.configs.lock().unwrap()["db"],
        json!({"url": "file.db", "xY": "1"})
    );
    session.source = other;
    let (id, job) = session.job("rows 1 10");
    session.send(job).await;
    session.accepted(id).await;
    let (code, message) = session.error().await;
    assert_eq!(code, "SOURCE_UNREACHABLE");
    assert!(message.contains("SEMILAYER_SOURCE_OTHER_URL"), "{message}");
}

#[tokio::test]
async fn protocol_1_gets_chunks_without_credit() {
    let (gateway, _script, runner) = runner(&[]).await;
    let mut session = gateway.accept().await;
    let source = session.source.clone();
    session
        .send(json!({"type": "hello-ack", "serverVersion": 1, "assignedSources": [source]}))
        .await;
    let (id, mut job) = session.job("rows 3 200000");
    for key in ["encoding", "window"] {
        job.as_object_mut().unwrap().remove(key);
    }
    session.send(job).await;
    for _ in 0..3 {
        let Received::Frame(RunnerFrame::Chunk(chunk)) = session.next().await else {
            panic!("not a chunk")
        };
        assert_eq!((chunk.id, chunk.rows.len()), (id, 1));
    }
    let meta = session.done().await;
    assert_eq!((meta.count, meta.bytes), (Some(3), None));
    assert_eq!(runner.worker.health().protocol, Some(1));
}

#[tokio::test]
async fn a_gateway_that_does_not_read_stops_the_database_and_not_the_control_frames() {
    let (gateway, script, _runner) = runner(&[]).await;
    let mut session = gateway.session().await;
    let (id, mut job) = session.job("rows 200 1000000");
    job["window"] = json!(u32::MAX);
    session.send(job).await;
    session.accepted(id).await;
    let mut before = usize::MAX;
    // It stands still once what the kernel holds for both sides is full.
    while before != script.sent.load(Ordering::SeqCst) {
        before = script.sent.load(Ordering::SeqCst);
        sleep(Duration::from_millis(300)).await;
    }
    assert!(
        before < 40,
        "{before} MB are on their way to a gateway that does not read"
    );
    let (small, job) = session.job("rows 1 10");
    session.send(job).await;
    sleep(A_WHILE).await;
    let mut rows_before = 0;
    loop {
        match session.next().await {
            Received::Rows(_) => rows_before += 1,
            Received::Frame(RunnerFrame::Accepted { id }) if id == small => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        rows_before <= before,
        "the answer overtook the queue: {rows_before} of {before} frames before it"
    );
}
