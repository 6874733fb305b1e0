//! From a job on its way to the rows that record it.

use serde_json::json;

use crate::clock::UtcTime;
use crate::control::error::JobError;
use crate::control::job::Job;
use crate::control::ledger::Executor;
use crate::control::ledger::claims::Entry;
use crate::control::reply::Finished;
use crate::domain::job::JobStatus;
use crate::ids::{GatewayId, JobId};
use crate::storage::{Finish, Mark, NewJob, Placement, StoreError, SyncClaim};

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

/// What has to be written before the attempt may be sent.
pub(super) fn claim(
    job: &Job,
    number: u32,
    holder: GatewayId,
    executor: Executor,
    now: UtcTime,
) -> Entry {
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
    match job.detached {
        None => Entry::Claim(Box::new(SyncClaim {
            job: new_job(job, number),
            holder,
            placement,
        })),
        Some(held) => Entry::Mark(Mark {
            id: job.id,
            attempt: attempt(number),
            holder: held.holder,
            placement,
            dispatched_at: now,
        }),
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
    let held = Claimed {
        id: job.id,
        attempt: attempt(number),
        holder,
        created_at: job.created_at,
    };
    ended(held, rows, result, at)
}

/// A claim, as far as the record of its end needs it.
#[derive(Debug, Clone, Copy)]
pub(in crate::control) struct Claimed {
    pub(in crate::control) id: JobId,
    pub(in crate::control) attempt: i32,
    pub(in crate::control) holder: GatewayId,
    /// When the job was accepted.
    pub(in crate::control) created_at: UtcTime,
}

/// How a job ended, as it is recorded.
pub(in crate::control) fn ended(
    claimed: Claimed,
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
    let took = (at.get() - claimed.created_at.get())
        .num_milliseconds()
        .max(0);
    Finish {
        id: claimed.id,
        attempt: claimed.attempt,
        holder: claimed.holder,
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
