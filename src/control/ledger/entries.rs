//! From a job on its way to the rows that record it.

use serde_json::json;

use crate::clock::UtcTime;
use crate::control::error::JobError;
use crate::control::job::Job;
use crate::control::ledger::Executor;
use crate::control::reply::Finished;
use crate::domain::job::JobStatus;
use crate::ids::GatewayId;
use crate::storage::{Finish, NewJob, Placement, StoreError, SyncClaim};

/// The longest error message that a record keeps, in characters.
const MAX_MESSAGE: usize = 2000;

pub(super) fn new_job(job: &Job, number: u32) -> NewJob {
    NewJob {
        id: job.id,
        organisation_id: job.spec.organisation_id,
        environment_id: job.spec.environment_id,
        source_id: job.spec.source_id,
        lens: job.spec.lens.clone(),
        kind: job.spec.operation.kind.as_str().to_owned(),
        attempt: attempt(number),
        detached: false,
        retry: job.spec.retry,
        created_at: job.created_at,
        deadline_at: job.deadline_at,
        key_id: job.spec.key_id,
        request: None,
        routing: None,
    }
}

pub(super) fn sync_claim(
    job: &Job,
    number: u32,
    holder: GatewayId,
    executor: Executor,
) -> SyncClaim {
    let placement = match executor {
        Executor::Session {
            session_id,
            runner_id,
        } => Some(Placement {
            runner: runner_id,
            session: session_id,
        }),
        Executor::Inline => None,
    };
    SyncClaim {
        job: new_job(job, number),
        holder,
        placement,
    }
}

pub(super) fn finish(
    job: &Job,
    number: u32,
    holder: GatewayId,
    rows: u64,
    result: &Result<Finished, JobError>,
    at: UtcTime,
) -> Finish {
    let (status, error) = match result {
        Ok(_) => (JobStatus::Completed, None),
        Err(error @ JobError::Cancelled) => (JobStatus::Cancelled, Some(error)),
        Err(error @ JobError::Timeout) => (JobStatus::Expired, Some(error)),
        Err(error) => (JobStatus::Failed, Some(error)),
    };
    let took = (at.get() - job.created_at.get()).num_milliseconds().max(0);
    Finish {
        id: job.id,
        attempt: attempt(number),
        holder,
        status,
        finished_at: at,
        error_code: error.map(|e| e.code().to_owned()),
        error_message: error.map(|e| storable(&e.to_string())),
        row_count: Some(i64::try_from(rows).unwrap_or(i64::MAX)),
        duration_ms: Some(took),
        // How far a lost one had come is what its operator asks first.
        routing: error
            .and_then(JobError::delivery)
            .map(|delivery| json!({"delivery": delivery.as_str()})),
    }
}

/// A database's words may be long, and may hold what no text column takes.
fn storable(message: &str) -> String {
    message
        .chars()
        .filter(|c| *c != '\0')
        .take(MAX_MESSAGE)
        .collect()
}

pub(super) fn attempt(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The answer to an entry that was never written.
pub(super) fn dropped() -> StoreError {
    StoreError::Unavailable("the ledger takes no more entries".into())
}
