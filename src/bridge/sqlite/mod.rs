//! SQLite, by rusqlite, on a thread of the blocking pool for each execution.
//!
//! The file is opened read-only. What is cancelled is interrupted: a flag that SQLite asks for every few
//! thousand steps, so that there is no moment at which an interrupt could be missed.

mod failure;
mod functions;
mod shape;
mod work;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::config::DbConfig;
use rusqlite::{Connection as Db, InterruptHandle, OpenFlags};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use self::work::{Answer, Work};
use super::catalogue::{write_target, write_targets, write_test};
use super::config::Config;
use super::encode::{BATCH_DELAY, RowEncoder, RowWriter};
use super::pool::{Database, Job};
use super::request::{Request, invalid};
use super::{BridgeError, Outcome, RowBatch};

/// How often the flag is looked at, in steps of SQLite's virtual machine.
const STEPS: i32 = 2_000;
/// How long to wait for a writer.
const BUSY: Duration = Duration::from_secs(5);

/// A SQLite file.
pub(super) struct Sqlite {
    path: PathBuf,
}

/// One connection to it.
pub(super) struct Connection {
    /// Away while a statement is under way.
    db: Option<Db>,
    stop: Arc<AtomicBool>,
    interrupt: InterruptHandle,
    /// Which file it is.
    file: Option<(u64, u64)>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The thread that has the file ends by itself, and closes it.
        self.stop.store(true, Ordering::Relaxed);
        self.interrupt.interrupt();
    }
}

impl Sqlite {
    /// Reads the configuration.
    pub(super) fn new(
        config: &Map<String, Value>,
        files_refused: bool,
    ) -> Result<Self, BridgeError> {
        if files_refused {
            return Err(BridgeError::Unreachable(
                "this service opens no files: a SQLite source needs a runner".into(),
            ));
        }
        let path = Config(config).text(&["path"])?;
        let path = path.ok_or_else(|| invalid("config.path", "a SQLite source needs `path`"))?;
        Ok(Self { path: path.into() })
    }
}

#[async_trait]
impl Database for Sqlite {
    type Connection = Connection;

    const NAME: &'static str = "sqlite";

    async fn connect(&self) -> Result<Connection, BridgeError> {
        let path = self.path.clone();
        blocking(move || open(&path)).await?
    }

    /// A file that was replaced under its name is another database, whose rows are wanted from now on.
    fn at_rest(&self, connection: &Connection) -> bool {
        connection.db.is_some() && identity(&self.path) == connection.file
    }

    async fn ping(&self, _: &mut Connection) -> bool {
        true
    }

    async fn run(
        &self,
        connection: &mut Connection,
        request: &Request,
        job: &Job<'_>,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        job.begins();
        let db = connection.db.take();
        let db = db.ok_or_else(|| BridgeError::Unreachable("the connection is in use".into()))?;
        let (batches, received) = mpsc::channel(1);
        let encoder = Arc::new(Mutex::new(None));
        let work = Work {
            request: request.clone(),
            execution: job.execution.clone(),
            caps: rows.caps(),
            tag: job.tagged(""),
            encoder: Arc::clone(&encoder),
            batches,
        };
        let task = tokio::spawn(blocking(move || {
            let answer = work.run(&db);
            (db, answer)
        }));
        forward(received, &encoder, rows).await?;
        let (db, answer) = task
            .await
            .map_err(|error| BridgeError::QueryFailed(error.to_string()))??;
        // One that could not leave its transaction is not used again.
        connection.db = Some(db).filter(Db::is_autocommit);
        match answer? {
            Answer::Rows(outcome) => Ok(outcome),
            Answer::Version(version, latency) => write_test(rows, version, latency).await,
            Answer::Targets(targets) => write_targets(rows, targets).await,
            Answer::Target {
                table,
                columns,
                primary_key,
                count,
                indexes,
            } => write_target(rows, &table, &columns, &primary_key, count, &indexes).await,
        }
    }

    async fn abort(&self, connection: Connection) {
        drop(connection);
    }
}

/// Takes batches from the thread to the sink; rows that have waited long are fetched from its encoder.
async fn forward(
    mut received: mpsc::Receiver<RowBatch>,
    encoder: &Mutex<Option<RowEncoder>>,
    rows: &mut RowWriter<'_>,
) -> Result<(), BridgeError> {
    loop {
        match tokio::time::timeout(BATCH_DELAY, received.recv()).await {
            Ok(Some(batch)) => rows.send(batch).await?,
            Ok(None) => return Ok(()),
            Err(_) => {
                // The thread holds the lock while it hands over a batch, so these two are in order.
                let waiting = encoder.try_lock().ok().map(|mut encoder| {
                    let earlier = received.try_recv().ok();
                    earlier
                        .into_iter()
                        .chain(encoder.as_mut().and_then(RowEncoder::take))
                        .collect::<Vec<_>>()
                });
                for batch in waiting.into_iter().flatten() {
                    rows.send(batch).await?;
                }
            }
        }
    }
}

fn open(path: &Path) -> Result<Connection, BridgeError> {
    if !path.is_file() {
        return Err(BridgeError::Unreachable(format!(
            "there is no database file {}",
            path.display()
        )));
    }
    let unreachable = |error: rusqlite::Error| failure::of_opening(path, &error);
    let file = identity(path);
    let db = Db::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    );
    let db = db.map_err(unreachable)?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    let prepare = || {
        db.busy_timeout(BUSY)?;
        db.progress_handler(STEPS, Some(move || asked.load(Ordering::Relaxed)))?;
        // Else a misspelt column is a text.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        functions::add(&db, &stop)?;
        db.execute_batch("PRAGMA query_only = ON; SELECT 1 FROM sqlite_schema LIMIT 1")
    };
    prepare().map_err(unreachable)?;
    let interrupt = db.get_interrupt_handle();
    Ok(Connection {
        db: Some(db),
        stop,
        interrupt,
        file,
    })
}

/// Which file a path leads to at this moment: its device and number.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None
}

/// Runs something that blocks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BridgeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| BridgeError::QueryFailed(format!("the query broke off: {error}")))
}
