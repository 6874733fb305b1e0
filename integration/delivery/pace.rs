//! When rows arrive that the database, or the runner, gives one at a time.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::ask_for_lines;
use crate::support::fake_runner::rows_frame_of;
use crate::support::{Engine, FakeRunner, Hosted, Stage};

on_every_database! {
    rows_arrive_as_the_database_gives_them,
}

/// How many rows the slow view has.
const ROWS: u32 = 6;
/// What is held back for the sake of a truthful status, and what the machine may take on top.
const SOON: Duration = Duration::from_millis(250 + 650);

/// The lines of a body with the moment at which each was complete.
async fn timed_lines(response: Response) -> Vec<(Instant, String)> {
    let (mut body, mut rest, mut lines) = (response.bytes_stream(), Vec::new(), Vec::new());
    while let Some(piece) = body.next().await {
        rest.extend_from_slice(&piece.unwrap());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = rest.drain(..=end).collect::<Vec<_>>();
            let line = String::from_utf8(line).unwrap().trim_end().to_owned();
            lines.push((Instant::now(), line));
        }
    }
    assert!(rest.is_empty(), "a body that ends within a line");
    lines
}

/// Adds the lens `drip`, which gives a row about every second.
///
/// Rows are of some 40 KB because servers keep small ones back: PostgreSQL sends when 8 KiB are together, MariaDB at
/// 16 KiB, and what is left of a row waits for the next one.
async fn add_drip(stage: &Stage) {
    let sql = match stage.database.engine {
        Engine::Postgres => format!(
            "CREATE TABLE n AS SELECT g AS id FROM generate_series(1, {ROWS}) g; \
             CREATE VIEW drip AS SELECT id, repeat('x', 40000) || pg_sleep(1)::text AS title FROM n ORDER BY id"
        ),
        Engine::Mysql => format!(
            "CREATE TABLE n (id INTEGER PRIMARY KEY) SELECT seq AS id FROM seq_1_to_{ROWS}; \
             CREATE VIEW drip AS SELECT id, concat(repeat('x', 40000), sleep(1)) AS title FROM n"
        ),
        Engine::Sqlite => format!(
            "CREATE TABLE n (id INTEGER PRIMARY KEY); \
             WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {ROWS}) \
             INSERT INTO n SELECT n FROM c; \
             CREATE VIEW drip AS SELECT id, (WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c \
             WHERE n < 1500000 + n.id) SELECT count(*) FROM c) || 'x' AS title FROM n"
        ),
    };
    stage.database.execute(&sql).await;
    stage.add_titles_lens("drip", &stage.source, "drip").await;
}

async fn rows_arrive_as_the_database_gives_them(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    add_drip(&stage).await;
    for way in ["inline", "through a runner"] {
        let started = Instant::now();
        let body = json!({"limit": 100});
        let response = ask_for_lines(&stage.gateway.caller(), "drip", &body, None).await;
        let head = started.elapsed();
        let lines = timed_lines(response).await;
        assert_eq!(lines.len(), ROWS as usize, "{lines:?}");
        let whole = started.elapsed();
        let each = whole / ROWS;
        // The rest of a row may come with the next one.
        for (nth, (at, _)) in (1..).zip(&lines) {
            let due = each * (nth + 1) + SOON;
            let came = *at - started;
            assert!(
                came < due || nth + 1 >= ROWS,
                "{engine:?} {way}: row {nth} after {came:?} of {whole:?}"
            );
        }
        assert!(head < each * 2 + SOON, "{engine:?} {way}: {head:?}");
        if stage.runners.is_empty() {
            stage.add_runner("primary").await;
        }
    }
}

/// A stage with one session, and a query of `products` under way in it.
struct Asked {
    stage: Stage,
    session: FakeRunner,
    id: String,
    lines: JoinHandle<Vec<(Instant, String)>>,
}

impl Asked {
    async fn new(version: u32) -> Self {
        let stage = Stage::inline(Engine::Sqlite).await;
        let runner = stage.add_identity("paced").await;
        let mut session = match version {
            1 => FakeRunner::v1(&stage.gateway, &runner).await,
            _ => FakeRunner::v2(&stage.gateway, &runner).await,
        };
        let lines = ask(&stage, None);
        let (id, _) = session.job().await;
        if version == 2 {
            session.accept(&id).await;
        }
        Self {
            stage,
            session,
            id,
            lines,
        }
    }
}

fn ask(stage: &Stage, prefer: Option<&'static str>) -> JoinHandle<Vec<(Instant, String)>> {
    let caller = stage.gateway.caller();
    tokio::spawn(async move {
        let response = ask_for_lines(&caller, "products", &json!({}), prefer).await;
        let applied = response.headers().get("preference-applied");
        assert_eq!(applied.and_then(|value| value.to_str().ok()), prefer);
        timed_lines(response).await
    })
}

async fn send_row(session: &mut FakeRunner, version: u32, id: &str, n: u32) -> Instant {
    if version == 1 {
        session.send_chunk(id, &[json!({"id": n})]).await;
    } else {
        let line = format!("{}\n", json!({"id": n}));
        session
            .send_binary(rows_frame_of(id, 1, line.as_bytes()))
            .await;
    }
    Instant::now()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_with_the_caller_a_moment_after_its_runner_sent_it() {
    for version in [1, 2] {
        let mut asked = Asked::new(version).await;
        let mut sent = Vec::new();
        for n in 0..4 {
            sent.push(send_row(&mut asked.session, version, &asked.id, n).await);
            asked.session.assert_silent(Duration::from_secs(1)).await;
        }
        asked.session.send_done(&asked.id, 4).await;
        let lines = asked.lines.await.unwrap();
        assert_eq!(lines.len(), 4);
        for (sent, (came, line)) in sent.iter().zip(&lines) {
            let took = *came - *sent;
            assert!(took < SOON, "protocol {version}: {line} took {took:?}");
        }
        drop(asked.stage);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_lingers_no_longer_on_its_way_through_another_gateway() {
    let mut hosted = Hosted::new("").await;
    let asked = hosted.gateway("asked").await;
    let other = hosted.gateway("other").await;
    let stage = Stage::on(asked, Engine::Sqlite).await;
    let runner = stage.add_identity("far").await;
    // What one gateway was told the other knows a moment later.
    let path = format!("/v1/runners/{}", runner.id);
    crate::support::eventually(
        "the other knows the runner",
        crate::support::PATIENCE,
        async || {
            let answer = other.admin().get(&path).await;
            crate::support::eventually::holds(answer.status.is_success(), answer.text)
        },
    )
    .await;
    let mut session = FakeRunner::v2(&other, &runner).await;
    stage.gateway.until_runner_is(&runner, "online").await;
    let lines = ask(&stage, Some("wait=20"));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    let mut sent = Vec::new();
    for n in 0..3 {
        sent.push(send_row(&mut session, 2, &id, n).await);
        session.assert_silent(Duration::from_secs(1)).await;
    }
    session.send_done(&id, 3).await;
    let lines = lines.await.unwrap();
    assert_eq!(lines.len(), 3);
    for (sent, (came, line)) in sent.iter().zip(&lines) {
        let took = *came - *sent;
        assert!(took < SOON, "{line} took {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_soon_after_the_first_row_still_has_its_status() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("paced").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let request = stage
        .gateway
        .caller()
        .request(reqwest::Method::POST, "/v1/query/products")
        .header("accept", "application/x-ndjson")
        .json(&json!({}));
    let answer = tokio::spawn(crate::support::Answer::of(request));
    let (id, _) = session.job().await;
    session.accept(&id).await;
    send_row(&mut session, 2, &id, 1).await;
    session
        .send_error(&id, "SOURCE_QUERY_FAILED", "division by zero")
        .await;
    let error = answer.await.unwrap();
    error.expect_error(422, "SOURCE_QUERY_FAILED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_line_breaks_a_long_silence_unless_it_is_not_wanted() {
    let mut asked = Asked::new(2).await;
    let quiet = ask(&asked.stage, Some("keep-alive=off"));
    let (second, _) = asked.session.job().await;
    asked.session.accept(&second).await;
    for id in [&asked.id, &second] {
        send_row(&mut asked.session, 2, id, 1).await;
    }
    asked.session.assert_silent(Duration::from_secs(16)).await;
    for id in [&asked.id, &second] {
        send_row(&mut asked.session, 2, id, 2).await;
        asked.session.send_done(id, 2).await;
    }
    let texts = |lines: Vec<(Instant, String)>| -> Vec<String> {
        lines.into_iter().map(|(_, line)| line).collect()
    };
    let row = |n: u32| -> String { Value::to_string(&json!({"id": n})) };
    assert_eq!(
        texts(asked.lines.await.unwrap()),
        [row(1), String::new(), row(2)]
    );
    assert_eq!(texts(quiet.await.unwrap()), [row(1), row(2)]);
}
