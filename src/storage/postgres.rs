//! The hosted store: PostgreSQL, through a pool on the one shared runtime.
//!
//! It owns the pool's connections. A connection is bound to the runtime that opened it, and an actix worker's
//! runtime serves that worker alone, so units of work are spawned on the shared one: a worker that drops
//! its request does not tear a connection out of a transaction.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Runtime;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, TransactionManager};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use super::error::StoreError;
use super::run::Mode;
use super::target::Target;

/// What a store that does not answer is given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How many connections serve everything that has no lane of its own.
    pub(super) connections: usize,
    /// How long a unit of work may wait for a connection.
    pub(super) wait: Duration,
    /// How long a unit of work may take: a server that was stopped still acknowledges what it is sent, so
    /// only a clock of our own notices.
    pub(super) unit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            wait: Duration::from_secs(5),
            unit: Duration::from_secs(20),
        }
    }
}

/// The hosted store's pool.
#[derive(Clone)]
pub(super) struct Postgres {
    target: Arc<Target>,
    pool: Pool<AsyncPgConnection>,
    limits: Limits,
    runtime: Handle,
}

impl Postgres {
    /// Connects once, so that a wrong URL is noticed here.
    pub(super) async fn open(
        url: &str,
        limits: Limits,
        runtime: Handle,
    ) -> Result<Self, StoreError> {
        let target = Arc::new(Target::parse(url)?);
        let pool = pool_of(&target, limits)?;
        let store = Self {
            target,
            pool,
            limits,
            runtime,
        };
        store.run(Mode::Read, |_| async { Ok(()) }.boxed()).await?;
        Ok(store)
    }

    /// The same store over one connection that nobody else uses.
    pub(super) fn lane(&self) -> Result<Self, StoreError> {
        let limits = Limits {
            connections: 1,
            ..self.limits
        };
        Ok(Self {
            pool: pool_of(&self.target, limits)?,
            limits,
            ..self.clone()
        })
    }

    /// Opens a connection that belongs to no pool, for listening and for migrations.
    pub(super) async fn connect(&self) -> Result<AsyncPgConnection, StoreError> {
        let target = self.target.clone();
        let opening = self.runtime.spawn(async move { target.connect().await });
        opening
            .await
            .map_err(StoreError::unavailable)?
            .map_err(StoreError::unavailable)
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Runs one unit of work to its end, even if the caller does not wait for it.
    pub(super) async fn run<T, F>(&self, mode: Mode, body: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
    {
        let (pool, limit) = (self.pool.clone(), self.limits.unit);
        let work = self.runtime.spawn(async move {
            let mut connection = pool
                .get()
                .await
                .map_err(|error| StoreError::unavailable(error.to_string()))?;
            // A transaction that was left open would keep its locks until somebody took the connection
            // from the pool again, hence it leaves the pool unless the unit came to its own end.
            let mut committing = false;
            let work =
                AssertUnwindSafe(unit(&mut connection, mode, &mut committing, body)).catch_unwind();
            match tokio::time::timeout(limit, work).await {
                Ok(Ok(ended)) => {
                    if ended.as_ref().is_err_and(is_of_a_standby) {
                        drop(Object::take(connection));
                    }
                    ended
                }
                Ok(Err(_panic)) => {
                    drop(Object::take(connection));
                    Err(StoreError::Internal("a unit of work panicked".into()))
                }
                Err(elapsed) => {
                    drop(Object::take(connection));
                    Err(if committing {
                        StoreError::Uncertain(elapsed.into())
                    } else {
                        StoreError::unavailable(elapsed)
                    })
                }
            }
        });
        work.await.map_err(StoreError::unavailable)?
    }
}

fn pool_of(target: &Arc<Target>, limits: Limits) -> Result<Pool<AsyncPgConnection>, StoreError> {
    let mut config = ManagerConfig::default();
    // Nothing to ask per use: a dead connection is known as such, and one that dies later can die any time.
    config.recycling_method = RecyclingMethod::Fast;
    let target = target.clone();
    config.custom_setup = Box::new(move |_| {
        let target = target.clone();
        async move { target.connect().await }.boxed()
    });
    Pool::builder(AsyncDieselConnectionManager::new_with_config("", config))
        .max_size(limits.connections)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.wait))
        .build()
        .map_err(|error| StoreError::Internal(error.into()))
}

/// Begins, runs the body, and ends as the body did. `committing` is up while nobody can know the end.
async fn unit<T, F>(
    connection: &mut AsyncPgConnection,
    mode: Mode,
    committing: &mut bool,
    body: F,
) -> Result<T, StoreError>
where
    F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
{
    type Transactions = <AsyncPgConnection as AsyncConnection>::TransactionManager;
    let begin = match mode {
        Mode::Read => return alone(connection, body).await,
        Mode::Write => {
            *committing = true;
            return match alone(connection, body).await {
                // A server that still answers has said that it did not do it.
                Err(StoreError::Unavailable(cause)) if !is_alive(connection).await => {
                    Err(StoreError::Uncertain(cause))
                }
                ended => ended,
            };
        }
        Mode::Transaction => "BEGIN",
        // Delivered when it commits, and never if it does not.
        Mode::Change => "BEGIN; NOTIFY semilayer_changes",
        Mode::Snapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    };
    Transactions::begin_transaction_sql(connection, begin).await?;
    let value = match body(connection).await {
        Ok(value) => value,
        Err(error) => {
            // That the rollback fails says that the connection is gone, and with it the transaction.
            return match (Transactions::rollback_transaction(connection).await, error) {
                (Err(_), StoreError::Internal(cause)) => Err(StoreError::Unavailable(cause)),
                (_, error) => Err(error),
            };
        }
    };
    *committing = true;
    let committed = Transactions::commit_transaction(connection).await;
    *committing = false;
    match committed {
        Ok(()) => Ok(value),
        Err(error) if is_lost(&error) || !is_alive(connection).await => {
            Err(StoreError::Uncertain(error.into()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs a body outside a transaction.
async fn alone<T, F>(connection: &mut AsyncPgConnection, body: F) -> Result<T, StoreError>
where
    F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
{
    match body(connection).await {
        Err(StoreError::Internal(cause)) if !is_alive(connection).await => {
            Err(StoreError::Unavailable(cause))
        }
        ended => ended,
    }
}

fn is_lost(error: &DieselError) -> bool {
    use DatabaseErrorKind::{ClosedConnection, UnableToSendCommand};
    matches!(
        error,
        DieselError::DatabaseError(UnableToSendCommand | ClosedConnection, _)
    )
}

/// Whether a server that only follows another one refused to write: a new connection may lead to the other.
fn is_of_a_standby(error: &StoreError) -> bool {
    let StoreError::Unavailable(cause) = error else {
        return false;
    };
    matches!(
        cause.downcast_ref(),
        Some(DieselError::DatabaseError(
            DatabaseErrorKind::ReadOnlyTransaction,
            _
        ))
    )
}

/// Asks: what a server says on its way down looks like any other refusal.
async fn is_alive(connection: &mut AsyncPgConnection) -> bool {
    diesel::sql_query("SELECT 1")
        .execute(connection)
        .await
        .is_ok()
}
