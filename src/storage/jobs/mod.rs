//! Jobs as they are written down: the rows, and reading them. The steps of a job's life are in [`steps`],
//! those that only detached jobs take in `submit`, `pending`, `detached` and `results`, what becomes of one whose gateway
//! was lost while somebody waits for it in `supersede`, and what is done for those that nobody looks after any
//! more in `settle`.
//!
//! Every step is guarded by the state that it starts from, the attempt and, once there is one, the gateway that
//! holds the claim. A statement that finds no such row changes nothing and says so.

mod detached;
mod pending;
mod results;
mod settle;
mod steps;
mod submit;
mod supersede;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::Value;

pub use detached::{Mark, Release};
pub use pending::PendingSource;
pub use results::{JobResult, NewResult};
pub use settle::Settled;
pub(super) use settle::{Settling, settle};
#[cfg(test)]
pub(super) use steps::claim_statements;
pub use steps::{Finish, Placement, ReadBack, Requeue, SyncClaim};
pub use submit::{Idempotency, NewSubmission, Submitted};
pub use supersede::Supersede;

use super::schema::runner_jobs;
use super::types::serialize_stamp;
use super::{Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::domain::job::JobStatus;
use crate::ids::{
    EnvironmentId, GatewayId, JobId, KeyId, OrganisationId, RunnerId, SessionId, SourceId,
};

/// One job, as far as it has come.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable)]
#[diesel(table_name = runner_jobs)]
pub struct Job {
    pub id: JobId,
    pub organisation_id: OrganisationId,
    pub environment_id: EnvironmentId,
    pub source_id: SourceId,
    /// The name of the lens, if it came through one.
    pub lens: Option<String>,
    pub kind: String,
    pub status: JobStatus,
    /// Starts at 1.
    pub attempt: i32,
    /// Whether nobody waits for it.
    pub detached: bool,
    /// Whether it may be tried again after it may have been sent.
    pub retry: bool,
    /// Who executes it; none while pending and for inline execution.
    pub runner_id: Option<RunnerId>,
    pub session_id: Option<SessionId>,
    pub claimed_by: Option<GatewayId>,
    pub claimed_at: Option<UtcTime>,
    pub dispatched_at: Option<UtcTime>,
    pub created_at: UtcTime,
    pub deadline_at: UtcTime,
    pub finished_at: Option<UtcTime>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub row_count: Option<i64>,
    pub duration_ms: Option<i64>,
    /// The key of the caller.
    pub key_id: Option<KeyId>,
    /// What is asked, of a detached job that has not ended.
    pub request: Option<Value>,
    /// Why it went where it went.
    pub routing: Option<Value>,
    /// What its caller called the request, unique in the environment.
    pub idempotency_key: Option<String>,
    /// Tells a repetition of that request from another one.
    pub request_hash: Option<String>,
}

/// A job to write down.
#[derive(Debug, Clone, Serialize)]
pub struct NewJob {
    pub id: JobId,
    pub organisation_id: OrganisationId,
    pub environment_id: EnvironmentId,
    pub source_id: SourceId,
    pub lens: Option<String>,
    pub kind: String,
    pub attempt: i32,
    pub detached: bool,
    pub retry: bool,
    #[serde(serialize_with = "serialize_stamp")]
    pub created_at: UtcTime,
    #[serde(serialize_with = "serialize_stamp")]
    pub deadline_at: UtcTime,
    pub key_id: Option<KeyId>,
    pub request: Option<Value>,
    pub routing: Option<Value>,
}

/// Which jobs to list; what is `None` does not matter.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    pub environment: Option<EnvironmentId>,
    pub status: Option<JobStatus>,
    pub source: Option<SourceId>,
    pub runner: Option<RunnerId>,
    /// Created at this time or later.
    pub from: Option<UtcTime>,
    /// Created before this time.
    pub until: Option<UtcTime>,
}

impl Store {
    /// One job of an organisation.
    pub async fn job_get(
        &self,
        organisation: OrganisationId,
        id: JobId,
    ) -> Result<Job, StoreError> {
        unit!(self, Read, connection => {
            let found = runner_jobs::table.find(id).filter(runner_jobs::organisation_id.eq(organisation));
            Ok(found.select(Job::as_select()).first(connection).await?)
        })
    }

    /// The jobs of some environments of an organisation, latest first: a page is what came *before* an id.
    ///
    /// The environments are named because the index goes by them.
    pub async fn job_list(
        &self,
        organisation: OrganisationId,
        filter: JobFilter,
        page: Page<JobId>,
    ) -> Result<Vec<Job>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = runner_jobs::table
                .filter(runner_jobs::organisation_id.eq(organisation))
                .select(Job::as_select())
                .into_boxed();
            if let Some(environment) = filter.environment {
                found = found.filter(runner_jobs::environment_id.eq(environment));
            }
            if let Some(status) = filter.status {
                found = found.filter(runner_jobs::status.eq(status));
            }
            if let Some(source) = filter.source {
                found = found.filter(runner_jobs::source_id.eq(source));
            }
            if let Some(runner) = filter.runner {
                found = found.filter(runner_jobs::runner_id.eq(runner));
            }
            if let Some(from) = filter.from {
                found = found.filter(runner_jobs::created_at.ge(from));
            }
            if let Some(until) = filter.until {
                found = found.filter(runner_jobs::created_at.lt(until));
            }
            if let Some(before) = page.after {
                found = found.filter(runner_jobs::id.lt(before));
            }
            Ok(found.order(runner_jobs::id.desc()).limit(page.limit.into()).load(connection).await?)
        })
    }
}
