//! The store: everything that outlives a process, and everything diesel.
//!
//! [`Store`] has one method per unit of work, named resource first (`job_finish`, `runner_list`). Each
//! takes the tenant as an argument where tenant data is touched, and the time where one is written down. A
//! body is written once and expanded for both back ends (`run`): SQLite for one gateway, PostgreSQL for any
//! number. It caches nothing and decides nothing: what a state means, or who may see it, is said elsewhere.
//!
//! A unit of work that was begun runs to its end, whether or not somebody still waits for it: all of it
//! happens or none of it.

mod batch;
mod catalogue;
mod error;
mod gateway;
mod group;
mod jobs;
mod key;
mod lens;
mod listen;
mod migrations;
mod organisation;
mod postgres;
mod run;
mod runner;
mod schema;
mod session;
mod setting;
mod source;
mod sqlite;
mod target;
mod tls;
mod tombstone;
mod types;

#[cfg(test)]
mod tests;

use std::fmt;

use diesel_async::RunQueryDsl;
use tokio::runtime::Handle;

pub use catalogue::{Catalogue, Changes};
pub use error::{Cause, StoreError};
pub use gateway::Gateway;
pub use group::{NewRunnerGroup, RunnerGroup};
pub use jobs::{
    Finish, Idempotency, Job, JobFilter, JobResult, Mark, NewJob, NewResult, NewSubmission,
    PendingSource, Placement, ReadBack, Release, Requeue, Settled, Submitted, Supersede, SyncClaim,
};
pub use key::{Key, NewKey};
pub use lens::{Lens, LensChange, NewLens};
pub use listen::Listener;
pub use organisation::{Environment, Organisation};
pub use runner::{Assignment, NewRunner, Rotation, Runner, RunnerChange};
pub use session::{Session, Touch};
pub use setting::MasterKeyCheck;
pub use source::{NewSource, Source, SourceChange};
pub use tombstone::Tombstone;
pub use types::{
    Deployment, GroupDispatch, KeyKind, Role, SessionState, StoredCredentials, TombstoneKind,
};

use postgres::{Limits, Postgres};
use run::unit;
use sqlite::Sqlite;

/// A handle on the store; clones share its connections.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
}

#[derive(Clone)]
enum Backend {
    Embedded(Sqlite),
    Hosted(Postgres),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_embedded() {
            "Store(embedded)"
        } else {
            "Store(hosted)"
        })
    }
}

/// What became of a change that depends on the state it finds.
#[derive(Debug, Clone, PartialEq)]
pub enum Changed<T> {
    /// It was made; this is the new state.
    Done(T),
    /// It is there in a state that does not allow it, or in the wanted one already.
    OtherState(T),
    /// There is no such thing in this tenant.
    Absent,
}

/// One page of a list: what comes after an id, in the order of ids.
#[derive(Debug, Clone, Copy)]
pub struct Page<Id> {
    /// The last id of the page before.
    pub after: Option<Id>,
    /// At most this many.
    pub limit: u32,
}

impl<Id> Page<Id> {
    /// The first page.
    pub const fn first(limit: u32) -> Self {
        Self { after: None, limit }
    }
}

impl Store {
    /// Opens `sqlite://<path>` or `postgres://…`. The tables are as they were: see [`Store::migrate`].
    ///
    /// `runtime` is the one multi-thread runtime that everything shares; all statements run there.
    pub async fn open(url: &str, runtime: &Handle) -> Result<Self, StoreError> {
        let backend = match url.split_once("://") {
            Some(("sqlite", path)) if !path.is_empty() => {
                Backend::Embedded(Sqlite::open(path, runtime.clone()).await?)
            }
            Some(("postgres" | "postgresql", _)) => {
                Backend::Hosted(Postgres::open(url, Limits::default(), runtime.clone()).await?)
            }
            _ => {
                return Err(StoreError::unavailable(
                    "the store's URL is neither sqlite://<path> nor postgres://…",
                ));
            }
        };
        Ok(Self { backend })
    }

    /// The same store over a connection of its own, so that its units of work wait only for each other.
    ///
    /// On the embedded store there is one connection for all.
    pub fn lane(&self) -> Result<Self, StoreError> {
        Ok(match &self.backend {
            Backend::Embedded(_) => self.clone(),
            Backend::Hosted(store) => Self {
                backend: Backend::Hosted(store.lane()?),
            },
        })
    }

    /// Whether this is the store of one gateway, in a file.
    pub const fn is_embedded(&self) -> bool {
        matches!(self.backend, Backend::Embedded(_))
    }

    /// Says whether the store answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        unit!(self, Read, connection => {
            diesel::sql_query("SELECT 1").execute(connection).await?;
            Ok(())
        })
    }
}
