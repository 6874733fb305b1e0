//! Deadlines and cancellations reach the database, wherever they find a job.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::time::Instant;

use super::support::{ENGINES, Engine, TestDb, eventually, execution, parse, query, run};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, RowBatch, RowSink, SinkClosed};

/// A view that answers after a very long time.
fn slow(engine: Engine) -> &'static str {
    match engine {
        Engine::Postgres => "CREATE VIEW slow AS SELECT pg_sleep(60)::text AS s",
        Engine::MySql => "CREATE VIEW slow AS SELECT SLEEP(60) AS s",
        Engine::Sqlite => {
            "CREATE VIEW slow AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
             SELECT count(*) AS s FROM n"
        }
    }
}

/// A view with a row every 40 ms, large enough that the server does not wait for more, and one of a hundred million rows.
fn many(engine: Engine) -> (&'static str, &'static str) {
    match engine {
        Engine::Postgres => (
            "CREATE VIEW trickle AS SELECT i, pg_sleep(0.04)::text, repeat('x', 20000) AS s FROM generate_series(1, 50) i",
            "CREATE VIEW many AS SELECT generate_series(1, 100000000) AS i, repeat('x', 100) AS s",
        ),
        Engine::MySql => (
            "CREATE VIEW trickle AS SELECT seq AS i, SLEEP(0.04) AS n, REPEAT('x', 20000) AS s FROM seq_1_to_50",
            "CREATE VIEW many AS SELECT seq AS i, REPEAT('x', 100) AS s FROM seq_1_to_100000000",
        ),
        Engine::Sqlite => (
            "CREATE VIEW trickle AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50) \
             SELECT i, (WITH RECURSIVE m(j) AS (SELECT i UNION ALL SELECT j + 1 FROM m LIMIT 200000) \
             SELECT count(*) FROM m) AS s FROM n",
            "CREATE VIEW many AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000000) \
             SELECT i, '0123456789012345678901234567890123456789012345678901234567890123456789' AS s FROM n",
        ),
    }
}

/// The statements that run at the database.
async fn running(db: &TestDb) -> Vec<String> {
    match db.engine {
        Engine::Postgres => {
            let sql = "SELECT query FROM pg_stat_activity WHERE datname = current_database() \
                AND application_name = 'semilayer' AND state = 'active'";
            db.texts(sql).await
        }
        Engine::MySql => {
            let sql = "SELECT info FROM information_schema.processlist WHERE db = DATABASE() \
                AND info IS NOT NULL AND id <> CONNECTION_ID()";
            db.texts(sql).await
        }
        Engine::Sqlite => Vec::new(),
    }
}

async fn nothing_runs(db: &TestDb) {
    eventually("the statement ends at the database", async || {
        let running = running(db).await;
        (running.is_empty(), running)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_stops_the_statement_at_the_database() {
    for engine in ENGINES {
        let db = TestDb::new(engine, slow(engine)).await;
        let bridges = Bridges::new(BridgeOptions {
            pool_size: 1,
            ..BridgeOptions::default()
        });
        let execution = execution();
        let cancel = execution.cancel.clone();
        let (source, job) = (db.source.clone(), bridges.clone());
        let task =
            tokio::spawn(
                async move { run(&job, &source, &query("slow", json!({})), &execution).await },
            );
        if engine == Engine::Sqlite {
            tokio::time::sleep(Duration::from_millis(200)).await;
        } else {
            eventually("the statement runs", async || {
                let running = running(&db).await;
                (running.iter().any(|sql| sql.contains("slow")), running)
            })
            .await;
        }
        let cancelled = Instant::now();
        cancel.cancel();
        assert_eq!(
            task.await.unwrap().unwrap_err(),
            BridgeError::Cancelled,
            "{engine:?}"
        );
        assert!(cancelled.elapsed() < Duration::from_secs(2));
        nothing_runs(&db).await;
        // The one slot of the pool is free again, with a connection that nobody cancels.
        let test = super::support::operation(crate::query::operation::Kind::Test, "", json!({}));
        run(&bridges, &db.source, &test, &super::support::execution())
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_stops_the_statement_at_the_database() {
    for engine in ENGINES {
        let db = TestDb::new(engine, slow(engine)).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let mut execution = execution();
        execution.deadline = Instant::now() + Duration::from_millis(300);
        let error = run(&bridges, &db.source, &query("slow", json!({})), &execution)
            .await
            .unwrap_err();
        assert_eq!(error, BridgeError::Timeout, "{engine:?}");
        assert!(execution.deadline.elapsed() < Duration::from_secs(2));
        nothing_runs(&db).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_execution_stops_the_statement_at_the_database() {
    for engine in ENGINES {
        let db = TestDb::new(engine, slow(engine)).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let (operation, execution) = (query("slow", json!({})), execution());
        let job = run(&bridges, &db.source, &operation, &execution);
        assert!(
            tokio::time::timeout(Duration::from_millis(300), job)
                .await
                .is_err()
        );
        nothing_runs(&db).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_connection_is_never_used_again() {
    let setup = "CREATE VIEW me AS SELECT pg_backend_pid() AS pid; CREATE VIEW slow AS SELECT pg_sleep(60)::text";
    let db = TestDb::new(Engine::Postgres, setup).await;
    let bridges = Bridges::new(BridgeOptions {
        pool_size: 1,
        ..BridgeOptions::default()
    });
    let me = async || {
        parse(
            &run(&bridges, &db.source, &query("me", json!({})), &execution())
                .await
                .unwrap()
                .0,
        )
    };
    let first = me().await;
    assert_eq!(me().await, first);
    let execution = execution();
    let cancel = execution.cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel();
    });
    let error = run(&bridges, &db.source, &query("slow", json!({})), &execution)
        .await
        .unwrap_err();
    assert_eq!(error, BridgeError::Cancelled);
    assert_ne!(me().await, first);
}

/// Takes a first batch, and nothing after it.
struct Stuck {
    taken: Vec<RowBatch>,
}

#[async_trait]
impl RowSink for Stuck {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        if !self.taken.is_empty() {
            std::future::pending::<()>().await;
        }
        self.taken.push(batch);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_sink_is_stuck_ends_at_its_deadline() {
    for engine in ENGINES {
        let db = TestDb::new(engine, many(engine).1).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let mut execution = execution();
        execution.deadline = Instant::now() + Duration::from_millis(500);
        let mut sink = Stuck { taken: Vec::new() };
        let operation = query("many", json!({}));
        let error = bridges
            .execute(&db.source, &operation, &execution, &mut sink)
            .await
            .unwrap_err();
        assert_eq!(error, BridgeError::Timeout, "{engine:?}");
        assert!(
            execution.deadline.elapsed() < Duration::from_secs(2),
            "{engine:?}"
        );
        nothing_runs(&db).await;
    }
}

/// Refuses the second batch.
struct Closing(u32);

#[async_trait]
impl RowSink for Closing {
    async fn send(&mut self, _: RowBatch) -> Result<(), SinkClosed> {
        self.0 += 1;
        if self.0 > 1 { Err(SinkClosed) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_sink_cancels_without_reading_the_rest() {
    for engine in ENGINES {
        let db = TestDb::new(engine, many(engine).1).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let started = Instant::now();
        let operation = query("many", json!({}));
        let result = bridges
            .execute(&db.source, &operation, &execution(), &mut Closing(0))
            .await;
        assert_eq!(result.unwrap_err(), BridgeError::Cancelled, "{engine:?}");
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "{engine:?}: {:?}",
            started.elapsed()
        );
        nothing_runs(&db).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_slot_ends_at_the_deadline() {
    let db = TestDb::new(Engine::Postgres, slow(Engine::Postgres)).await;
    let bridges = Bridges::new(BridgeOptions {
        pool_size: 1,
        ..BridgeOptions::default()
    });
    let (job, source, first) = (bridges.clone(), db.source.clone(), execution());
    let cancel = first.cancel.clone();
    let task =
        tokio::spawn(async move { run(&job, &source, &query("slow", json!({})), &first).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut second = execution();
    second.deadline = Instant::now() + Duration::from_millis(200);
    let error = run(&bridges, &db.source, &query("slow", json!({})), &second)
        .await
        .unwrap_err();
    // It never began, so it may be asked again.
    let BridgeError::Unavailable(message) = &error else {
        panic!("{error:?}");
    };
    assert!(message.contains("maxConnections"), "{message}");
    cancel.cancel();
    task.await.unwrap().unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_ends_at_the_deadline() {
    // Takes connections and never says a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for (bridge, url) in [
        ("postgres", format!("postgres://u@127.0.0.1:{port}/d")),
        ("mysql", format!("mysql://u@127.0.0.1:{port}/d")),
    ] {
        let config = super::support::config(json!({"url": url}));
        let id = crate::ids::SourceId::new();
        let source = crate::bridge::Source {
            id,
            name: "s".into(),
            bridge: bridge.into(),
            config,
        };
        let bridges = Bridges::new(BridgeOptions::default());
        let mut execution = execution();
        execution.deadline = Instant::now() + Duration::from_millis(200);
        let error = run(&bridges, &source, &query("t", json!({})), &execution)
            .await
            .unwrap_err();
        assert_eq!(error, BridgeError::Timeout, "{bridge}");
        let mut patient = source.clone();
        patient
            .config
            .insert("connectionTimeoutMillis".into(), json!(150));
        let error = run(
            &bridges,
            &patient,
            &query("t", json!({})),
            &super::support::execution(),
        )
        .await
        .unwrap_err();
        assert!(
            matches!(error, BridgeError::Unreachable(_)),
            "{bridge}: {error:?}"
        );
    }
}

/// Notes when each batch came.
struct Timed(Vec<(Instant, u32)>);

#[async_trait]
impl RowSink for Timed {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        self.0.push((Instant::now(), batch.rows));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_trickle_do_not_wait_for_each_other() {
    for engine in ENGINES {
        let db = TestDb::new(engine, many(engine).0).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let mut sink = Timed(Vec::new());
        let operation = query("trickle", json!({"limit": 20}));
        let outcome = bridges
            .execute(&db.source, &operation, &execution(), &mut sink)
            .await
            .unwrap();
        assert_eq!(outcome.rows, 20, "{engine:?}");
        assert!(sink.0.len() > 3, "{engine:?}: {:?}", sink.0);
    }
}

/// The resident memory of this process in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

/// Counts, and looks at the memory.
#[derive(Default)]
struct Watch {
    rows: u64,
    most_mib: u64,
}

#[async_trait]
impl RowSink for Watch {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        self.rows += u64::from(batch.rows);
        self.most_mib = self.most_mib.max(resident_mib());
        Ok(())
    }
}

#[test]
fn a_million_rows_need_no_memory() {
    // In a process of its own: what other tests take would count too.
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    alone.args([
        "--exact",
        "--ignored",
        "bridge::tests::cancel::a_million_rows_alone",
    ]);
    let output = alone.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the test above runs it"]
async fn a_million_rows_alone() {
    for engine in ENGINES {
        let db = TestDb::new(engine, many(engine).1).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let before = resident_mib();
        let mut sink = Watch::default();
        let operation = query("many", json!({"limit": 1_000_000}));
        let mut execution = execution();
        execution.deadline = Instant::now() + Duration::from_secs(120);
        let outcome = bridges
            .execute(&db.source, &operation, &execution, &mut sink)
            .await
            .unwrap();
        assert_eq!(
            (outcome.rows, sink.rows),
            (1_000_000, 1_000_000),
            "{engine:?}"
        );
        // Other tests run in this process too; the answer itself has more than 80 MiB.
        assert!(
            sink.most_mib < before + 40,
            "{engine:?}: {} MiB, {before} before",
            sink.most_mib
        );
    }
}
