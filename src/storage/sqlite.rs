//! The embedded store: one SQLite file and one connection, which is one more writer than SQLite can use
//! at a time and exactly enough for one gateway.
//!
//! It owns the file's connection. A unit of work runs from its first statement to its commit inside one
//! `spawn_blocking`: it cannot be dropped half-way, whoever waited for it. diesel-async's own wrapper hops to
//! a blocking thread for each statement instead, and panics when it is dropped in flight on a
//! current-thread runtime, which is what actix's are.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use diesel_async::sync_connection_wrapper::{SpawnBlocking, SyncConnectionWrapper};
use diesel_async::{AsyncConnection, TransactionManager};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::error::StoreError;
use super::run::Mode;

/// How long a unit of work may wait for the one connection.
const WAIT: Duration = Duration::from_secs(5);

/// The connection that bodies of units of work see.
pub(super) type SqliteConn = SyncConnectionWrapper<SqliteConnection, Inline>;

/// Runs what should be spawned in place: the whole unit of work is on a blocking thread already.
pub(super) struct Inline;

impl SpawnBlocking for Inline {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync + 'static>>>
    where
        R: Send + 'static,
    {
        std::future::ready(Ok(task())).boxed()
    }

    fn get_runtime() -> Self {
        Self
    }
}

/// Opens connections to the file and says whether one is still fit for use.
#[derive(Debug)]
struct Manager {
    path: String,
}

impl Manager {
    fn open(&self) -> Result<SqliteConnection, diesel::ConnectionError> {
        let mut connection = SqliteConnection::establish(&self.path)?;
        connection
            .batch_execute(
                "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
                 PRAGMA foreign_keys = ON;",
            )
            .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
        Ok(connection)
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = SqliteConn;
    type Error = diesel::ConnectionError;

    fn connect(&self) -> Result<SqliteConn, Self::Error> {
        self.open().map(SyncConnectionWrapper::new)
    }

    fn is_valid(&self, _connection: &mut SqliteConn) -> Result<(), Self::Error> {
        Ok(())
    }

    /// A connection that a panic tore out of a transaction is closed, which rolls back.
    fn has_broken(&self, connection: &mut SqliteConn) -> bool {
        std::thread::panicking()
            || <SqliteConn as AsyncConnection>::TransactionManager::is_broken_transaction_manager(
                connection,
            )
    }
}

/// The embedded store's connection.
#[derive(Clone)]
pub(super) struct Sqlite {
    pool: r2d2::Pool<Manager>,
    /// Waiting happens here, where it costs no thread.
    turn: Arc<Semaphore>,
    runtime: Handle,
}

impl Sqlite {
    /// Opens or makes the file, and the folder that it is in.
    pub(super) async fn open(path: &str, runtime: Handle) -> Result<Self, StoreError> {
        let manager = Manager {
            path: path.to_owned(),
        };
        let opening = runtime.spawn_blocking(move || {
            if let Some(folder) = Path::new(&manager.path).parent() {
                std::fs::create_dir_all(folder).map_err(StoreError::unavailable)?;
            }
            // The pool would retry for as long as it may wait and then forget why.
            manager.open().map_err(StoreError::unavailable)?;
            r2d2::Pool::builder()
                .max_size(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_on_check_out(false)
                .connection_timeout(WAIT)
                .error_handler(Box::new(r2d2::NopErrorHandler))
                .build(manager)
                .map_err(StoreError::unavailable)
        });
        let pool = opening.await.map_err(StoreError::unavailable)??;
        Ok(Self {
            pool,
            turn: Arc::new(Semaphore::new(1)),
            runtime,
        })
    }

    /// Runs one unit of work to its end, even if the caller does not wait for it.
    pub(super) async fn run<T, F>(&self, mode: Mode, body: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConn) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let turn = tokio::time::timeout(WAIT, self.turn.clone().acquire_owned());
        let turn = turn
            .await
            .map_err(StoreError::unavailable)?
            .map_err(StoreError::unavailable)?;
        let (pool, runtime) = (self.pool.clone(), self.runtime.clone());
        let work = self.runtime.spawn_blocking(move || {
            let _turn = turn;
            let mut connection = pool.get().map_err(StoreError::unavailable)?;
            runtime.block_on(unit(&mut connection, mode, body))
        });
        work.await
            .map_err(|panic| StoreError::Internal(panic.into()))?
    }
}

impl Sqlite {
    /// Runs diesel's own, synchronous code on the connection.
    pub(super) async fn run_sync<T, E, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        E: Into<StoreError> + Send + 'static,
        F: FnOnce(&mut SqliteConnection) -> Result<T, E> + Send + 'static,
    {
        self.run(Mode::Read, |connection| {
            // The inner closure may fail with a query's error only, so its own travels as a value.
            let work = connection.spawn_blocking(move |inner| Ok(work(inner)));
            async move { work.await?.map_err(Into::into) }.boxed()
        })
        .await
    }
}

/// Begins, runs the body, and ends as the body did.
async fn unit<T, F>(connection: &mut SqliteConn, mode: Mode, body: F) -> Result<T, StoreError>
where
    F: for<'c> FnOnce(&'c mut SqliteConn) -> BoxFuture<'c, Result<T, StoreError>>,
{
    type Transactions = <SqliteConn as AsyncConnection>::TransactionManager;
    let begin = match mode {
        Mode::Read => return body(connection).await,
        Mode::Snapshot => "BEGIN",
        // A transaction that reads first and then wants to write may find that it cannot, which
        // waiting does not cure.
        Mode::Write | Mode::Transaction | Mode::Change => "BEGIN IMMEDIATE",
    };
    connection
        .spawn_blocking(move |inner| begin_with(inner, begin))
        .await
        // Another process has the file, and had it for longer than one may wait.
        .map_err(StoreError::unavailable)?;
    match body(connection).await {
        Ok(value) => {
            Transactions::commit_transaction(connection).await?;
            Ok(value)
        }
        Err(error) => {
            Transactions::rollback_transaction(connection).await?;
            Err(error)
        }
    }
}

fn begin_with(connection: &mut SqliteConnection, sql: &str) -> diesel::QueryResult<()> {
    diesel::connection::AnsiTransactionManager::begin_transaction_sql(connection, sql)
}
