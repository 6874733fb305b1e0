//! Rows that are larger than a frame, up to the limit and beyond it.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::ask_for_lines;
use crate::support::eventually::holds;
use crate::support::fake_runner::{rows_frame_of, zstd_frame};
use crate::support::proc::resident_mib;
use crate::support::rest::{Api, text};
use crate::support::{
    Answer, Engine, FakeRunner, Hosted, PATIENCE, RunnerProcess, Stage, eventually,
};

on_every_database! {
    rows_of_every_size_arrive_inline_and_through_a_runner,
    large_rows_of_a_detached_job_are_kept,
}

const MEBIBYTE: usize = 1 << 20;
/// The rows of the table: how large each is as JSON.
const SIZES: [usize; 8] = [
    40,
    MEBIBYTE - 1,
    MEBIBYTE,
    MEBIBYTE + 1,
    3_000_000,
    40,
    15_000_000,
    40,
];
/// The id of a row that is larger than any may be.
const TOO_LARGE: u64 = 100;
/// What stands around a title: `{"id":1,"title":""}`.
const AROUND: usize = 19;

/// Adds the table `big` and a lens on it.
async fn add_big(stage: &Stage) {
    let fill = |fill: &str, length: usize| match stage.database.engine {
        Engine::Sqlite => format!("replace(hex(zeroblob({length})), '00', '{fill}')"),
        _ => format!("repeat('{fill}', {length})"),
    };
    let kind = match stage.database.engine {
        Engine::Mysql => "LONGTEXT",
        _ => "TEXT",
    };
    stage
        .database
        .execute(&format!(
            "CREATE TABLE big (id INTEGER PRIMARY KEY, title {kind})"
        ))
        .await;
    for (id, size) in (1..).zip(SIZES) {
        let title = fill("x", size - AROUND);
        let sql = format!("INSERT INTO big VALUES ({id}, {title})");
        stage.database.execute(&sql).await;
    }
    // Each of these takes two bytes as JSON.
    let title = fill("\"", 8_500_000);
    let sql = format!("INSERT INTO big VALUES ({TOO_LARGE}, {title})");
    stage.database.execute(&sql).await;
    stage.add_titles_lens("big", &stage.source, "big").await;
}

fn good() -> Value {
    json!({"where": {"id": {"$lt": TOO_LARGE}}, "orderBy": {"id": "asc"}, "limit": 1000})
}

fn assert_good(rows: &[Value], count: usize) {
    assert_eq!(rows.len(), count);
    for ((id, row), size) in (1..).zip(rows).zip(SIZES) {
        assert_eq!(row["id"], id);
        let title = row["title"].as_str().unwrap();
        assert_eq!(title.len(), size - AROUND, "row {id}");
        assert!(title.bytes().all(|byte| byte == b'x'), "row {id}");
    }
}

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// Asks for the rows that can be sent as a document and as lines, and for the one that cannot.
async fn assert_served(caller: &Api, way: &str) {
    let document = caller.query("big", good()).await;
    assert_good(&document.rows(), SIZES.len());
    let lines = ask_for_lines(caller, "big", &good(), None).await;
    let lines = lines.text().await.unwrap();
    let rows: Vec<Value> = lines.lines().map(parse).collect();
    assert_good(&rows, SIZES.len());

    let alone = caller
        .query("big", json!({"where": {"id": TOO_LARGE}}))
        .await;
    let error = alone.expect_error(502, "result_overflow");
    let sentence = error["error"].as_str().unwrap();
    assert!(
        sentence.contains("16777216 bytes") && sentence.contains("`select`"),
        "{way}: {sentence}"
    );
    let narrow = json!({"where": {"id": TOO_LARGE}, "select": ["id"]});
    assert_eq!(
        caller.query("big", narrow).await.rows(),
        [json!({"id": TOO_LARGE})]
    );
    // Behind rows that were sent already it is a line of its own.
    let all = json!({"orderBy": {"id": "asc"}, "limit": 1000});
    let lines = ask_for_lines(caller, "big", &all, None).await;
    let lines = lines.text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(parse).collect();
    let (failure, rows) = lines.split_last().unwrap();
    assert_eq!(failure["$error"]["code"], "result_overflow", "{way}");
    assert_eq!(failure["$error"]["delivery"], "partial", "{way}");
    assert_good(rows, rows.len());
}

async fn rows_of_every_size_arrive_inline_and_through_a_runner(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    add_big(&stage).await;
    let caller = stage.gateway.caller();
    assert_served(&caller, "inline").await;
    stage.add_runner("primary").await;
    assert_served(&caller, "through a runner").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_every_size_arrive_through_another_gateway() {
    let mut hosted = Hosted::new("").await;
    let asked = hosted.gateway("asked").await;
    let other = hosted.gateway("other").await;
    let stage = Stage::on(asked, Engine::Postgres).await;
    add_big(&stage).await;
    let runner = stage.add_identity("far").await;
    let _process = RunnerProcess::start(&other, &runner).await;
    let caller = stage.gateway.caller();
    eventually("queries are served from afar", PATIENCE, async || {
        let answer = caller.query("products", json!({"where": {"id": 7}})).await;
        let by = answer.text.contains(&runner.id);
        holds(answer.status.is_success() && by, answer.text)
    })
    .await;
    assert_served(&caller, "through another gateway").await;
}

async fn large_rows_of_a_detached_job_are_kept(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    add_big(&stage).await;
    stage.add_runner("primary").await;
    let caller = stage.gateway.caller();
    let first = json!({"where": {"id": {"$lte": 6}}, "orderBy": {"id": "asc"}, "limit": 1000});
    for accept in ["application/json", "application/x-ndjson"] {
        for (body, count) in [(&first, 6), (&json!({"where": {"id": 7}}), 1)] {
            let request = caller
                .request(reqwest::Method::POST, "/v1/query/big")
                .header("prefer", "respond-async")
                .header("accept", accept)
                .json(body);
            let job = text(&Answer::of(request).await.expect(202), "jobId");
            stage.gateway.until_job_is(&job, "completed").await;
            let result = caller.get(&format!("/v1/jobs/{job}/result")).await;
            let rows = if accept.ends_with("ndjson") {
                result.text.lines().map(parse).collect()
            } else {
                result.rows()
            };
            if count > 1 {
                assert_good(&rows, count);
            } else {
                let title = rows[0]["title"].as_str().unwrap();
                assert_eq!(title.len(), SIZES[6] - AROUND);
            }
        }
    }
}

/// One part of a row: the flag says that more follows.
fn part(id: &str, payload: &[u8]) -> Vec<u8> {
    let mut frame = rows_frame_of(id, 0, payload);
    frame[1] |= 0b10;
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_parts_of_a_row_are_joined_as_the_protocol_says() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("other-language").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    assert_eq!(session.ack["limits"]["maxRowBytes"], 16_777_216);
    let caller = stage.gateway.caller();
    let query = tokio::spawn(async move { caller.query("products", json!({})).await });
    let (id, _) = session.job().await;
    session.accept(&id).await;
    session
        .send_binary(rows_frame_of(&id, 1, b"{\"id\":1}"))
        .await;
    session.send_binary(part(&id, b"{\"id\":2,\"ti")).await;
    let mut middle = zstd_frame(&id, 0, 1003, &[b"tle", [b'x'; 1000].as_slice()].concat());
    middle[1] |= 0b10;
    // A cut within a name, another within a text: parts are bytes.
    let first = part(&id, b"\":0,\"");
    session.send_binary(first).await;
    session.send_binary(middle).await;
    session.send_binary(rows_frame_of(&id, 1, b"\":3}")).await;
    session
        .send_binary(rows_frame_of(&id, 1, b"{\"id\":4}"))
        .await;
    session.send_done(&id, 3).await;
    let rows = query.await.unwrap().rows();
    assert_eq!(rows.len(), 3);
    assert_eq!(
        (&rows[0]["id"], &rows[1]["id"], &rows[2]["id"]),
        (&json!(1), &json!(2), &json!(4))
    );
    assert_eq!(rows[1][format!("tle{}", "x".repeat(1000))], 3);

    // Other rows within a row are a breach, and the session's end.
    let caller = stage.gateway.caller();
    let query = tokio::spawn(async move { caller.query("products", json!({})).await });
    let (id, _) = session.job().await;
    session.accept(&id).await;
    session.send_binary(part(&id, b"{\"id\":1")).await;
    session
        .send_binary(rows_frame_of(&id, 2, b"{\"id\":2},{\"id\":3}"))
        .await;
    assert_eq!(session.closed().await, 4002);
    query.await.unwrap().expect_error(502, "runner_failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_large_rows_keeps_the_gateways_memory_flat() {
    /// What the process may grow by, in MiB.
    const GATEWAY: f64 = 32.0;
    let mut stage = Stage::inline(Engine::Postgres).await;
    let sql = "CREATE VIEW huge AS SELECT n AS id, repeat('x', 12000000) AS title FROM generate_series(1, 40) n";
    stage.database.execute(sql).await;
    stage.add_titles_lens("huge", &stage.source, "huge").await;
    stage.add_runner("primary").await;
    for _ in 0..20 {
        stage.assert_serves().await;
    }
    let gateway = stage.gateway.process.pid();
    let before = resident_mib(gateway);
    let response = ask_for_lines(
        &stage.gateway.caller(),
        "huge",
        &json!({"limit": 1000}),
        None,
    )
    .await;
    let mut body = response.bytes_stream();
    let (mut read, started) = (0, Instant::now());
    while read < 60 << 20 && started.elapsed() < Duration::from_secs(20) {
        let until = read + (4 << 20);
        while read < until {
            read += body.next().await.unwrap().unwrap().len();
        }
        stage.assert_serves().await;
        let grown = resident_mib(gateway) - before;
        assert!(
            grown < GATEWAY,
            "after {read} bytes the gateway grew by {grown} MiB"
        );
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = resident_mib(gateway) - before;
    assert!(grown < GATEWAY, "in the end it grew by {grown} MiB");
    stage.assert_serves().await;
}
