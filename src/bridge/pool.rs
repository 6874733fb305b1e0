//! The connections to one database, and the life of one execution on them: the deadline and the
//! cancellation reach it at every point, and reach the database with it.
//!
//! A connection goes back to the pool only when its database says that it is at rest. In every other case
//! it is aborted: stopped at the database, then closed. So a late cancel can hit nobody else.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::encode::{Caps, RowWriter};
use super::request::Request;
use super::{Bridge, BridgeError, Execution, Outcome, RowSink};
use crate::query::operation::Operation;

/// A connection that was used this recently is taken for alive; if it is not, the execution finds out.
const TRUSTED: Duration = Duration::from_secs(10);
/// How long one that was not has to answer.
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer waits for its cancellation to have reached the database.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// A query that still has no connection so shortly before its deadline is not begun.
const NO_TIME_LEFT: Duration = Duration::from_millis(100);

/// A database as the pool needs it.
#[async_trait]
pub(super) trait Database: Send + Sync + 'static {
    /// One connection.
    type Connection: Send + 'static;

    /// The bridge's name in messages.
    const NAME: &'static str;

    /// Opens a connection.
    async fn connect(&self) -> Result<Self::Connection, BridgeError>;

    /// Whether the connection is alive and at rest.
    fn at_rest(&self, connection: &Self::Connection) -> bool;

    /// Whether the other end still answers.
    async fn ping(&self, connection: &mut Self::Connection) -> bool;

    /// Executes one request.
    async fn run(
        &self,
        connection: &mut Self::Connection,
        request: &Request,
        job: &Job<'_>,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError>;

    /// Stops at the database what the connection is doing, and closes it.
    async fn abort(&self, connection: Self::Connection);
}

/// What a statement needs to know of its execution.
pub(super) struct Job<'a> {
    pub(super) execution: &'a Execution,
    tag: Option<String>,
    /// Whether the database has answered to anything of this execution.
    began: AtomicBool,
}

impl Job<'_> {
    /// The statement, behind the job's tag if statements are tagged.
    pub(super) fn tagged(&self, sql: &str) -> String {
        self.tag
            .as_ref()
            .map_or_else(|| sql.to_owned(), |tag| format!("{tag}{sql}"))
    }

    /// Says that the database has answered: from now on the statement may have run.
    pub(super) fn begins(&self) {
        self.began.store(true, Ordering::Relaxed);
    }

    /// How long the statement may still take, in milliseconds, at least one.
    pub(super) fn remaining_ms(&self) -> u64 {
        let remaining = self
            .execution
            .deadline
            .saturating_duration_since(Instant::now());
        u64::try_from(remaining.as_millis())
            .unwrap_or(u64::MAX)
            .clamp(1, i32::MAX as u64)
    }

    /// Whether a statement that the database stopped was stopped by this job's deadline.
    pub(super) fn is_due(&self) -> bool {
        // The database counts from when it got the statement, and in milliseconds.
        self.execution.deadline <= Instant::now() + Duration::from_millis(50)
    }
}

/// What a pool is allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolLimits {
    pub(super) size: usize,
    pub(super) caps: Caps,
    pub(super) tag_sql: bool,
}

/// The connections to one database with one configuration.
pub(super) struct Pool<D: Database> {
    database: Arc<D>,
    limits: PoolLimits,
    slots: Arc<Semaphore>,
    idle: Arc<Mutex<Idle<D::Connection>>>,
}

struct Idle<C> {
    connections: Vec<(C, Instant)>,
    last_used: Instant,
    closed: bool,
}

/// A pool of whatever database.
pub(super) trait AnyPool: Bridge {
    /// Closes the connections that were idle for `limit`; answers whether nobody used the pool for that long.
    fn reap(&self, limit: Duration) -> bool;

    /// Closes the idle connections now, and the others when they come back.
    fn close(&self);
}

impl<D: Database> Pool<D> {
    /// Makes an empty pool.
    pub(super) fn new(database: D, limits: PoolLimits) -> Self {
        let idle = Idle {
            connections: Vec::new(),
            last_used: Instant::now(),
            closed: false,
        };
        Self {
            database: Arc::new(database),
            limits,
            slots: Arc::new(Semaphore::new(limits.size)),
            idle: Arc::new(Mutex::new(idle)),
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle<D::Connection>> {
        lock(&self.idle)
    }

    /// Waits for one of the source's connections to come free.
    async fn permit(&self, execution: &Execution) -> Result<OwnedSemaphorePermit, BridgeError> {
        // Early enough to say so before whoever asked gives up by itself.
        let until = execution.deadline - NO_TIME_LEFT;
        let size = self.limits.size;
        tokio::select! {
            biased;
            () = execution.cancel.cancelled() => Err(BridgeError::Cancelled),
            permit = Arc::clone(&self.slots).acquire_owned() => permit.or(Err(
                BridgeError::Unreachable("the connection pool was closed".into()),
            )),
            () = tokio::time::sleep_until(until) => Err(BridgeError::Unavailable(format!(
                "all {size} connections of the source were in use until the deadline, so the query never \
                 began; `maxConnections` sets how many there are"
            ))),
        }
    }

    /// A connection of the pool, or a new one; whether it is one of the pool.
    async fn acquire(&self, permit: OwnedSemaphorePermit) -> Result<(Lease<D>, bool), BridgeError> {
        let pooled = loop {
            let Some((mut connection, since)) = self.idle().connections.pop() else {
                break None;
            };
            if !self.database.at_rest(&connection) {
                continue;
            }
            if self.answers(&mut connection, since).await {
                break Some(connection);
            }
            // The others have been idle for longer, and each would take as long to find out.
            self.idle().connections.clear();
        };
        let is_pooled = pooled.is_some();
        let connection = match pooled {
            Some(connection) => connection,
            None => self.database.connect().await?,
        };
        Ok((self.lease(connection, permit), is_pooled))
    }

    /// Whether a connection that nobody used for long is still one: what is between may have forgotten it.
    async fn answers(&self, connection: &mut D::Connection, since: Instant) -> bool {
        if since.elapsed() < TRUSTED {
            return true;
        }
        let ping = tokio::time::timeout(PING_PATIENCE, self.database.ping(connection));
        ping.await.unwrap_or(false)
    }

    fn lease(&self, connection: D::Connection, permit: OwnedSemaphorePermit) -> Lease<D> {
        Lease {
            database: Arc::clone(&self.database),
            idle: Arc::clone(&self.idle),
            inner: Some((connection, permit)),
        }
    }

    async fn run(
        &self,
        lease: &mut Lease<D>,
        request: &Request,
        job: &Job<'_>,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        match &mut lease.inner {
            Some((connection, _)) => {
                let run = self.database.run(connection, request, job, rows);
                within(job.execution, run).await
            }
            None => Err(BridgeError::Unreachable("the connection is gone".into())),
        }
    }

    /// Whether an execution found nothing but a dead connection in the pool: nothing of it was answered, so nothing of
    /// it ran, and it may run on a new one.
    fn found_dead(is_pooled: bool, job: &Job<'_>, result: &Result<Outcome, BridgeError>) -> bool {
        is_pooled
            && !job.began.load(Ordering::Relaxed)
            && matches!(
                result,
                Err(BridgeError::Unreachable(_) | BridgeError::Unavailable(_))
            )
    }
}

#[async_trait]
impl<D: Database> Bridge for Pool<D> {
    async fn execute(
        &self,
        operation: &Operation,
        execution: &Execution,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, BridgeError> {
        let request = Request::parse(operation, D::NAME)?;
        let tag = self.limits.tag_sql.then(|| {
            format!(
                "/* semilayer {}/{} */ ",
                execution.job_id, execution.attempt
            )
        });
        let job = Job {
            execution,
            tag,
            began: AtomicBool::new(false),
        };
        let mut rows = RowWriter::new(execution, self.limits.caps, sink);
        let permit = self.permit(execution).await?;
        let (mut lease, is_pooled) = within(execution, self.acquire(permit)).await?;
        let mut result = self.run(&mut lease, &request, &job, &mut rows).await;
        if Self::found_dead(is_pooled, &job, &result) {
            // Whatever ended this one has ended the others.
            self.idle().connections.clear();
            lease.end().await;
            let permit = self.permit(execution).await?;
            let fresh = within(execution, self.database.connect()).await?;
            lease = self.lease(fresh, permit);
            result = self.run(&mut lease, &request, &job, &mut rows).await;
        }
        lease.end().await;
        result
    }
}

impl<D: Database> AnyPool for Pool<D> {
    fn reap(&self, limit: Duration) -> bool {
        let now = Instant::now();
        let mut idle = self.idle();
        idle.connections
            .retain(|(_, since)| now.duration_since(*since) < limit);
        let in_use = self.slots.available_permits() < self.limits.size;
        !in_use && idle.connections.is_empty() && now.duration_since(idle.last_used) >= limit
    }

    fn close(&self) {
        let mut idle = self.idle();
        idle.closed = true;
        idle.connections.clear();
    }
}

/// One connection on loan, with its slot. Dropped before its end, it is aborted all the same.
struct Lease<D: Database> {
    database: Arc<D>,
    idle: Arc<Mutex<Idle<D::Connection>>>,
    inner: Option<(D::Connection, OwnedSemaphorePermit)>,
}

impl<D: Database> Lease<D> {
    /// Gives the connection back, or aborts it, whichever is right.
    async fn end(mut self) {
        let abort = self.settle();
        if let Some(abort) = abort {
            // Goes on by itself if it takes longer than the caller should wait.
            let _ = tokio::time::timeout(ABORT_PATIENCE, abort).await;
        }
    }

    fn settle(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        let (connection, permit) = self.inner.take()?;
        let mut idle = lock(&self.idle);
        idle.last_used = Instant::now();
        if self.database.at_rest(&connection) {
            if !idle.closed {
                idle.connections.push((connection, Instant::now()));
            }
            return None;
        }
        drop(idle);
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let database = Arc::clone(&self.database);
        Some(runtime.spawn(async move {
            database.abort(connection).await;
            drop(permit);
        }))
    }
}

impl<D: Database> Drop for Lease<D> {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Runs `future` until it is done, the deadline passes, or nobody wants it any more.
async fn within<T>(
    execution: &Execution,
    future: impl Future<Output = Result<T, BridgeError>>,
) -> Result<T, BridgeError> {
    tokio::select! {
        biased;
        () = execution.cancel.cancelled() => Err(BridgeError::Cancelled),
        () = tokio::time::sleep_until(execution.deadline) => Err(BridgeError::Timeout),
        result = future => result,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds the lock can leave it half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
