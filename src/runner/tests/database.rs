//! The whole way with a real database: a socket on one side, an SQLite file on the other.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::executor;
use super::support::*;
use crate::protocol::RunnerFrame;

/// A runner on a file with a table of `rows` rows; protocol 2 unless `version` says 1.
async fn session(rows: u32, version: u32) -> (GatewaySession, Runner, tempfile::TempDir, Gateway) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shop.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, cents INTEGER)")
        .unwrap();
    database
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO orders SELECT i, 'customer ' || i, i * 100 FROM n",
            [rows],
        )
        .unwrap();
    let gateway = Gateway::start().await;
    let path = path.to_str().unwrap();
    let config = config(&gateway.url(), &[("SEMILAYER_SOURCE_DB_PATH", path)]);
    let bridges = Arc::new(executor::bridges(&config));
    let runner = Runner::start(config, bridges);
    let mut session = gateway.accept().await;
    assert!(
        session
            .hello
            .capabilities
            .iter()
            .any(|c| c == "@semilayer/bridge-sqlite")
    );
    session.source["credentialsLocation"] = json!("runner-local");
    let sources = json!([session.source]);
    session
        .send(json!({"type": "hello-ack", "serverVersion": version, "assignedSources": sources}))
        .await;
    (session, runner, dir, gateway)
}

/// Adds a row of that many bytes.
fn add_large(dir: &tempfile::TempDir, id: u32, bytes: u32) {
    let database = rusqlite::Connection::open(dir.path().join("shop.db")).unwrap();
    let sql = "INSERT INTO orders VALUES (?1, printf('%.*c', ?2, 'x'), 1)";
    database.execute(sql, [id, bytes]).unwrap();
}

fn request(session: &GatewaySession, kind: &str, options: Value) -> (crate::ids::AttemptId, Value) {
    let (id, mut job) = session.job("orders");
    job["params"]["job"]["kind"] = json!(kind);
    job["params"]["job"]["options"] = options;
    (id, job)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_file_arrive_mapped_and_with_the_last_keys() {
    let (mut session, _runner, _dir, _gateway) = session(10, 2).await;
    let options = json!({"where": {"cents": {"$gt": 700}}, "orderBy": {"id": "desc"}, "limit": 2, "total": true});
    let (id, mut job) = request(&session, "query", options);
    job["fields"] = json!([["id", "orderId"], ["customer", "who"]]);
    job["keys"] = json!(["id"]);
    session.send(job).await;
    session.accepted(id).await;
    let rows = session.rows().await;
    assert_eq!(
        rows.payload,
        r#"{"orderId":10,"who":"customer 10"},{"orderId":9,"who":"customer 9"}"#
    );
    let meta = session.done().await;
    assert_eq!(
        (meta.count, meta.total, meta.last),
        (Some(2), Some(3), Some(vec![json!(9)]))
    );
    assert_eq!(meta.bytes, Some(rows.payload.len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_streams_within_its_window() {
    let (mut session, _runner, _dir, _gateway) = session(50_000, 2).await;
    let (id, mut job) = request(&session, "query", json!({"limit": 50_000}));
    job["window"] = json!(65_536);
    session.send(job).await;
    session.accepted(id).await;
    let (mut rows, mut bytes) = (0, 0);
    while rows < 50_000 {
        let frame = session.rows().await;
        rows += frame.rows;
        bytes += frame.payload.len() as u64;
        let granted = u32::try_from(frame.payload.len()).unwrap();
        session
            .send(json!({"type": "credit", "id": id, "bytes": granted}))
            .await;
    }
    let meta = session.done().await;
    assert_eq!((meta.count, meta.bytes), (Some(50_000), Some(bytes)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_announced_row_limit_a_row_has_to_fit_into_a_frame() {
    let (mut session, _runner, dir, _gateway) = session(1, 2).await;
    add_large(&dir, 7, 1_100_000);
    let (id, job) = request(&session, "query", json!({"where": {"id": 7}}));
    session.send(job).await;
    session.accepted(id).await;
    let (code, message) = session.error().await;
    assert_eq!(code, "result_overflow");
    assert!(
        message.contains(&format!("{} bytes", (1 << 20) - 26)) && message.contains("`select`"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_1_takes_rows_that_fit_into_a_message_and_names_the_limit_of_others() {
    let (mut session, _runner, dir, _gateway) = session(3, 1).await;
    add_large(&dir, 7, 4_000_000);
    add_large(&dir, 8, 4_200_000);
    let (_, job) = request(&session, "query", json!({"where": {"id": {"$lte": 7}}}));
    session.send(job).await;
    let mut rows = Vec::new();
    let meta = loop {
        match session.next().await {
            Received::Frame(frame @ RunnerFrame::Chunk(_)) => {
                assert!(frame.to_text().len() <= 4 << 20);
                let RunnerFrame::Chunk(chunk) = frame else {
                    unreachable!()
                };
                rows.extend(chunk.rows.iter().map(|row| row.get().len()));
            }
            Received::Frame(RunnerFrame::Done(done)) => break done.meta.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert!(rows.len() == 4 && rows[3] > 4_000_000, "{rows:?}");
    assert_eq!(meta.count, Some(4));
    let (_, job) = request(&session, "query", json!({"where": {"id": 8}}));
    session.send(job).await;
    let (code, message) = session.error().await;
    assert_eq!(code, "result_overflow");
    assert!(message.contains("4193280 bytes"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_own_words_reach_the_caller() {
    let (mut session, _runner, _dir, _gateway) = session(1, 2).await;
    let (id, mut job) = request(&session, "query", json!({}));
    job["params"]["job"]["target"] = json!("nowhere");
    session.send(job).await;
    session.accepted(id).await;
    let (code, message) = session.error().await;
    assert_eq!(code, "SOURCE_QUERY_FAILED");
    assert!(message.contains("nowhere"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_1_counts_and_lists_in_chunks() {
    let (mut session, _runner, _dir, _gateway) = session(7, 1).await;
    for (kind, expected) in [
        ("count", json!({"rows": [], "total": 7})),
        (
            "listTargets",
            json!({"rows": [{"name": "orders", "kind": "table"}]}),
        ),
    ] {
        let (_, job) = request(&session, kind, json!({}));
        session.send(job).await;
        let Received::Frame(RunnerFrame::Chunk(chunk)) = session.next().await else {
            panic!("{kind}: not a chunk")
        };
        let mut chunk = serde_json::to_value(&chunk).unwrap();
        chunk.as_object_mut().unwrap().remove("id");
        assert_eq!(chunk, expected);
        session.done().await;
    }
}
