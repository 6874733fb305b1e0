//! The hosted store: PostgreSQL, through a pool on the one shared runtime.
//!
//! It owns the pool's connections. A connection is bound to the runtime that opened it, and an actix worker's
//! runtime serves that worker alone, so units of work are spawned on the shared one: a worker that drops
//! its request does not tear a connection out of a transaction.

use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::Runtime;
use diesel::ConnectionError;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{
    AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection, TransactionManager,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use url::Url;

use super::error::StoreError;
use super::run::Mode;
use super::tls::Tls;

/// How many connections serve everything that has no lane of its own.
const CONNECTIONS: usize = 16;
/// How long a unit of work may wait for a connection.
const WAIT: Duration = Duration::from_secs(5);
/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(4);
/// How long a unit of work may take: a server that was stopped still acknowledges what it is sent, so
/// only a clock of our own notices.
const UNIT: Duration = Duration::from_secs(20);
/// Limits that the server keeps, so that a gateway that was stopped holds nothing for long.
const SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '4s'; \
                       SET idle_in_transaction_session_timeout = '10s'; SET application_name = 'semilayer'";

/// What every pool of this store opens its connections with.
struct Target {
    config: tokio_postgres::Config,
    tls: Tls,
}

impl Target {
    fn parse(url: &str) -> Result<Self, StoreError> {
        let mut url = Url::parse(url).map_err(StoreError::unavailable)?;
        let tls = Tls::take_from(&mut url)?;
        let mut config =
            tokio_postgres::Config::from_str(url.as_str()).map_err(StoreError::unavailable)?;
        config
            .ssl_mode(tls.mode)
            .connect_timeout(CONNECT)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(8));
        Ok(Self { config, tls })
    }

    async fn connect(&self) -> Result<AsyncPgConnection, ConnectionError> {
        let opening = async {
            let mut connection = if self.tls.mode == SslMode::Disable {
                let (client, driver) = self.config.connect(NoTls).await.map_err(bad_connection)?;
                AsyncPgConnection::try_from_client_and_connection(client, driver).await?
            } else {
                let (client, driver) = self
                    .config
                    .connect(self.tls.connector.clone())
                    .await
                    .map_err(bad_connection)?;
                AsyncPgConnection::try_from_client_and_connection(client, driver).await?
            };
            connection
                .batch_execute(SESSION)
                .await
                .map_err(ConnectionError::CouldntSetupConfiguration)?;
            Ok(connection)
        };
        match tokio::time::timeout(CONNECT, opening).await {
            Ok(opened) => opened,
            Err(elapsed) => Err(ConnectionError::BadConnection(elapsed.to_string())),
        }
    }
}

/// Keeps the whole chain of causes: `error connecting to server` alone helps nobody.
fn bad_connection(error: tokio_postgres::Error) -> ConnectionError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    ConnectionError::BadConnection(text)
}

/// The hosted store's pool.
#[derive(Clone)]
pub(super) struct Postgres {
    target: Arc<Target>,
    pool: Pool<AsyncPgConnection>,
    runtime: Handle,
}

impl Postgres {
    /// Connects once, so that a wrong URL is noticed here.
    pub(super) async fn open(url: &str, runtime: Handle) -> Result<Self, StoreError> {
        let target = Arc::new(Target::parse(url)?);
        let pool = pool_of(&target, CONNECTIONS)?;
        let store = Self {
            target,
            pool,
            runtime,
        };
        store.run(Mode::Read, |_| async { Ok(()) }.boxed()).await?;
        Ok(store)
    }

    /// The same store over one connection that nobody else uses.
    pub(super) fn lane(&self) -> Result<Self, StoreError> {
        let pool = pool_of(&self.target, 1)?;
        Ok(Self {
            pool,
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
        let pool = self.pool.clone();
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
            match tokio::time::timeout(UNIT, work).await {
                Ok(Ok(ended)) => ended,
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

fn pool_of(target: &Arc<Target>, size: usize) -> Result<Pool<AsyncPgConnection>, StoreError> {
    let mut config = ManagerConfig::default();
    // Nothing to ask per use: a dead connection is known as such, and one that dies later can die any time.
    config.recycling_method = RecyclingMethod::Fast;
    let target = target.clone();
    config.custom_setup = Box::new(move |_| {
        let target = target.clone();
        async move { target.connect().await }.boxed()
    });
    Pool::builder(AsyncDieselConnectionManager::new_with_config("", config))
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(WAIT))
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
                Err(StoreError::Unavailable(cause)) => Err(StoreError::Uncertain(cause)),
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

/// Asks: what a server says on its way down looks like any other refusal.
async fn is_alive(connection: &mut AsyncPgConnection) -> bool {
    diesel::sql_query("SELECT 1")
        .execute(connection)
        .await
        .is_ok()
}
