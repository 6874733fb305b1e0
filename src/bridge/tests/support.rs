//! Databases of their own for tests, and short ways to run an operation on them.

use std::time::Duration;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bridge::{
    BridgeError, BridgeOptions, Bridges, Execution, Outcome, RowBatch, RowFormat, RowSink,
    SinkClosed, Source,
};
use crate::ids::{JobId, SourceId};
use crate::query::operation::{Kind, Operation};

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Postgres,
    MySql,
    Sqlite,
}

pub(super) const ENGINES: [Engine; 3] = [Engine::Postgres, Engine::MySql, Engine::Sqlite];

/// A database of its own, dropped at the end.
pub(super) struct TestDb {
    pub(super) engine: Engine,
    pub(super) source: Source,
    name: String,
    file: Option<tempfile::TempDir>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "where the servers are is said in the environment"
)]
fn server(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.into())
}

fn postgres_url() -> String {
    server(
        "SEMILAYER_TEST_POSTGRES",
        "postgres://postgres@127.0.0.1:5432/test",
    )
}

fn mysql_url() -> String {
    server("SEMILAYER_TEST_MYSQL", "mysql://root@127.0.0.1:3306/test")
}

/// The URL with another database.
fn with_database(url: &str, name: &str) -> String {
    let (base, _) = url.rsplit_once('/').unwrap();
    format!("{base}/{name}")
}

impl TestDb {
    /// Makes a database in which these statements were executed.
    pub(super) async fn new(engine: Engine, setup: &str) -> Self {
        let name = format!("semilayer_bridges_{}", uuid::Uuid::new_v4().simple());
        let mut file = None;
        let (bridge, config) = match engine {
            Engine::Postgres => {
                run_postgres(&postgres_url(), &format!("CREATE DATABASE {name}")).await;
                (
                    "postgres",
                    json!({"url": with_database(&postgres_url(), &name)}),
                )
            }
            Engine::MySql => {
                run_mysql(&mysql_url(), &format!("CREATE DATABASE {name}")).await;
                ("mysql", json!({"url": with_database(&mysql_url(), &name)}))
            }
            Engine::Sqlite => {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("test.db");
                file = Some(dir);
                ("sqlite", json!({"path": path}))
            }
        };
        let Value::Object(config) = config else {
            unreachable!()
        };
        let source = Source {
            id: SourceId::new(),
            name: name.clone(),
            bridge: bridge.into(),
            config,
        };
        let db = Self {
            engine,
            source,
            name,
            file,
        };
        db.run(setup).await;
        db
    }

    /// Executes statements beside the bridge.
    pub(super) async fn run(&self, sql: &str) {
        match self.engine {
            Engine::Postgres => {
                run_postgres(&with_database(&postgres_url(), &self.name), sql).await
            }
            Engine::MySql => run_mysql(&with_database(&mysql_url(), &self.name), sql).await,
            Engine::Sqlite => {
                let path = self.file.as_ref().unwrap().path().join("test.db");
                let db = rusqlite::Connection::open(path).unwrap();
                db.execute_batch(sql).unwrap();
            }
        }
    }

    /// Executes statements of MySQL beside the bridge; whether it took them.
    pub(super) async fn try_run(&self, sql: &str) -> bool {
        let url = with_database(&mysql_url(), &self.name);
        let mut conn = mysql_async::Conn::from_url(url).await.unwrap();
        let taken = conn.query_drop(sql).await.is_ok();
        conn.disconnect().await.unwrap();
        taken
    }

    /// The first column of a statement executed beside the bridge, as texts.
    pub(super) async fn texts(&self, sql: &str) -> Vec<String> {
        match self.engine {
            Engine::Postgres => {
                let client = postgres_client(&with_database(&postgres_url(), &self.name)).await;
                let rows = client.simple_query(sql).await.unwrap();
                let text = |message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => {
                        Some(row.get(0).unwrap_or_default().to_owned())
                    }
                    _ => None,
                };
                rows.into_iter().filter_map(text).collect()
            }
            Engine::MySql => {
                let mut conn = mysql_async::Conn::from_url(with_database(&mysql_url(), &self.name))
                    .await
                    .unwrap();
                conn.query(sql).await.unwrap()
            }
            Engine::Sqlite => unreachable!("SQLite has no activity to look at"),
        }
    }

    /// Executes an operation and collects its rows.
    pub(super) async fn rows(&self, operation: Operation) -> Vec<Value> {
        self.try_rows(operation).await.unwrap()
    }

    pub(super) async fn try_rows(&self, operation: Operation) -> Result<Vec<Value>, BridgeError> {
        let bridges = Bridges::new(BridgeOptions::default());
        let (batches, _) = run(&bridges, &self.source, &operation, &execution()).await?;
        Ok(parse(&batches))
    }

    pub(super) async fn outcome(&self, operation: Operation) -> Result<Outcome, BridgeError> {
        let bridges = Bridges::new(BridgeOptions::default());
        run(&bridges, &self.source, &operation, &execution())
            .await
            .map(|(_, outcome)| outcome)
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        let (engine, name) = (self.engine, self.name.clone());
        let cleanup = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                match engine {
                    Engine::Postgres => {
                        run_postgres(
                            &postgres_url(),
                            &format!("DROP DATABASE {name} WITH (FORCE)"),
                        )
                        .await;
                    }
                    Engine::MySql => {
                        run_mysql(&mysql_url(), &format!("DROP DATABASE {name}")).await
                    }
                    Engine::Sqlite => {}
                }
            });
        });
        let _ = cleanup.join();
    }
}

pub(super) async fn postgres_client(url: &str) -> tokio_postgres::Client {
    let connected = tokio_postgres::connect(url, tokio_postgres::NoTls).await;
    let (client, connection) =
        connected.expect("these tests need a PostgreSQL server, see SEMILAYER_TEST_POSTGRES");
    tokio::spawn(connection);
    client
}

async fn run_postgres(url: &str, sql: &str) {
    postgres_client(url).await.batch_execute(sql).await.unwrap();
}

async fn run_mysql(url: &str, sql: &str) {
    let conn = mysql_async::Conn::from_url(url).await;
    let mut conn =
        conn.expect("these tests need a MySQL or MariaDB server, see SEMILAYER_TEST_MYSQL");
    if !sql.is_empty() {
        conn.query_drop(sql).await.unwrap();
    }
    conn.disconnect().await.unwrap();
}

/// An execution with half a minute.
pub(super) fn execution() -> Execution {
    Execution {
        job_id: JobId::new(),
        attempt: 1,
        deadline: Instant::now() + Duration::from_secs(30),
        cancel: CancellationToken::new(),
        format: RowFormat::Json,
        fields: None,
        paging: Default::default(),
        types: Default::default(),
        max_batch_bytes: 1 << 20,
        max_row_bytes: 1 << 20,
    }
}

/// An operation with options.
pub(super) fn operation(kind: Kind, target: &str, options: Value) -> Operation {
    let options = options.as_object().cloned().unwrap_or_default();
    Operation {
        kind,
        target: Some(target.into()).filter(|target: &String| !target.is_empty()),
        options,
    }
}

pub(super) fn query(target: &str, options: Value) -> Operation {
    operation(Kind::Query, target, options)
}

/// Keeps every batch.
#[derive(Default)]
pub(super) struct Collect(pub(super) Vec<RowBatch>);

#[async_trait]
impl RowSink for Collect {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        self.0.push(batch);
        Ok(())
    }
}

pub(super) async fn run(
    bridges: &Bridges,
    source: &Source,
    operation: &Operation,
    execution: &Execution,
) -> Result<(Vec<RowBatch>, Outcome), BridgeError> {
    let mut sink = Collect::default();
    let outcome = bridges
        .execute(source, operation, execution, &mut sink)
        .await?;
    Ok((sink.0, outcome))
}

/// The rows of batches in the JSON format.
pub(super) fn parse(batches: &[RowBatch]) -> Vec<Value> {
    let mut rows = Vec::new();
    for batch in batches {
        let text = format!("[{}]", std::str::from_utf8(&batch.payload).unwrap());
        let parsed: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed.len(), batch.rows as usize);
        rows.extend(parsed);
    }
    rows
}

/// One field of every row.
pub(super) fn field(rows: &[Value], name: &str) -> Vec<Value> {
    rows.iter().map(|row| row[name].clone()).collect()
}

/// Waits until something holds, and says what it was last if it never does.
pub(super) async fn eventually<T: std::fmt::Debug>(
    what: &str,
    mut check: impl AsyncFnMut() -> (bool, T),
) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (holds, last) = check().await;
        if holds {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {last:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The configuration of a source that is not there.
pub(super) fn config(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
