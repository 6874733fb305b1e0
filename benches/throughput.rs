//! Rows per second through gateway and runner, beside the same query read directly in this process.
//!
//! `cargo bench --bench throughput` starts a gateway and a runner, fills one table in each of the three
//! databases, reads it both ways by turns, and prints one line of a Markdown table for each. The figure is
//! the median of the rounds. `--rows <n>` and `--rounds <n>` after `--` change the defaults.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a measurement that cannot go on has failed"
)]

#[expect(dead_code, unused_imports, reason = "the tests use what this does not")]
#[path = "../integration/support/mod.rs"]
mod support;

use std::time::Instant;

use futures_util::{StreamExt, TryStreamExt};
use mysql_async::prelude::Queryable;
use reqwest::Method;
use serde_json::json;

use support::{Database, Engine, Gateway, RunnerProcess, Stage};

const SQL: &str = "SELECT id, title FROM wide ORDER BY id";

#[tokio::main]
async fn main() {
    let rows = argument("--rows", 300_000);
    let rounds = argument("--rounds", 5);
    println!("| database | directly, rows/s | through gateway and runner, rows/s | ratio |");
    println!("|---|---:|---:|---:|");
    for engine in Engine::ALL {
        let stage = stage(engine, rows).await;
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        // The first round warms caches and pools and is not counted.
        for round in 0..=rounds {
            let (a, b) = (
                rate(rows, read_directly(&stage.database)).await,
                rate(rows, read_through(&stage, rows)).await,
            );
            if round > 0 {
                direct.push(a);
                through.push(b);
            }
        }
        let (direct, through) = (median(direct), median(through));
        println!(
            "| {} | {direct:.0} | {through:.0} | {:.2} |",
            engine.name(),
            through / direct
        );
    }
}

/// The number behind a flag, or the default; what `cargo bench` adds by itself is passed over.
fn argument(flag: &str, default: u64) -> u64 {
    let mut arguments = std::env::args()
        .skip_while(|argument| argument != flag)
        .skip(1);
    arguments.next().map_or(default, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{flag} takes a number"))
    })
}

async fn stage(engine: Engine, rows: u64) -> Stage {
    let gateway = Gateway::builder().env("RUST_LOG", "warn").start().await;
    let mut stage = Stage::on(gateway, engine).await;
    stage.add_wide_lens(rows).await;
    let runner = stage.add_identity("primary").await;
    stage.runners.push(
        RunnerProcess::builder(&stage.gateway, &runner)
            .env("RUST_LOG", "warn")
            .spawn(),
    );
    stage.gateway.until_runner_is(&runner, "online").await;
    stage
}

/// Rows per second of a way to read them, which has to find all of them.
async fn rate(rows: u64, read: impl Future<Output = u64>) -> f64 {
    let started = Instant::now();
    assert_eq!(read.await, rows);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rows = rows as f64;
    rows / started.elapsed().as_secs_f64()
}

async fn read_through(stage: &Stage, rows: u64) -> u64 {
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/wide");
    let body = json!({"limit": rows, "orderBy": {"field": "id"}});
    let response = request
        .header("accept", "application/x-ndjson")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let lines = response
        .bytes_stream()
        .try_fold(0, async |lines, part| Ok(lines + count_lines(&part)));
    lines.await.unwrap()
}

fn count_lines(part: &[u8]) -> u64 {
    part.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

/// Streams the rows with the driver that the bridge uses too, and looks at every value.
async fn read_directly(database: &Database) -> u64 {
    match database.engine {
        Engine::Postgres => {
            let url = database.url();
            let (client, connection) = tokio_postgres::connect(url.as_str(), tokio_postgres::NoTls)
                .await
                .unwrap();
            tokio::spawn(connection);
            let rows = client.query_raw(SQL, Vec::<String>::new()).await.unwrap();
            rows.try_fold(0, async |count, row| {
                Ok(count + seen(row.get::<_, i32>(0).into(), row.get(1)))
            })
            .await
            .unwrap()
        }
        Engine::Mysql => {
            let mut conn = mysql_async::Conn::from_url(database.url()).await.unwrap();
            let rows = conn
                .exec_stream::<(i64, String), _, _>(SQL, ())
                .await
                .unwrap();
            let count = rows
                .map(|row| row.map(|(id, title)| seen(id, &title)).unwrap())
                .fold(0, async |sum, n| sum + n);
            let count = count.await;
            conn.disconnect().await.unwrap();
            count
        }
        Engine::Sqlite => {
            let path = database.url().to_file_path().unwrap();
            let read = move || {
                let connection = rusqlite::Connection::open(path).unwrap();
                let mut statement = connection.prepare(SQL).unwrap();
                let mut rows = statement.query([]).unwrap();
                let mut count = 0;
                while let Some(row) = rows.next().unwrap() {
                    count += seen(
                        row.get(0).unwrap(),
                        row.get_ref(1).unwrap().as_str().unwrap(),
                    );
                }
                count
            };
            tokio::task::spawn_blocking(read).await.unwrap()
        }
    }
}

/// 1 for a row that could be one; keeps the compiler from leaving the reading out.
fn seen(id: i64, title: &str) -> u64 {
    u64::from(std::hint::black_box(id) > 0 && !std::hint::black_box(title).is_empty())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
