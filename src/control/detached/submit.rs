//! Taking in a job that nobody waits for: it is recorded, and that is all.

use serde_json::Value;

use super::Request;
use crate::clock::UtcTime;
use crate::control::job::JobSpec;
use crate::ids::JobId;
use crate::storage::{Idempotency, NewJob, NewSubmission, Store, StoreError, Submitted};
use crate::timing::Timing;

/// What the web layer asks to have executed without waiting.
#[derive(Debug)]
pub struct Submission {
    /// What is asked.
    pub spec: JobSpec,
    /// What the web layer wants to know again when it shows the result.
    pub rendering: Value,
    /// By what a repetition is recognised.
    pub idempotency: Option<Idempotency>,
}

/// What became of a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is recorded under this id.
    New(JobId),
    /// It was known already, as this job.
    Known(JobId),
    /// Its key was used for another request.
    OtherRequest,
}

/// Records a job. It has until its deadline to be over, however often it is tried: what was asked for, or
/// the longest that there is.
pub(in crate::control) async fn submit(
    store: &Store,
    timing: &Timing,
    now: UtcTime,
    submission: Submission,
) -> Result<Accepted, StoreError> {
    let Submission {
        spec,
        rendering,
        idempotency,
    } = submission;
    let id = JobId::new();
    let time = spec.timeout.unwrap_or(timing.max_deadline);
    let job = NewJob {
        id,
        organisation_id: spec.organisation_id,
        environment_id: spec.environment_id,
        source_id: spec.source_id,
        lens: spec.lens.clone(),
        kind: spec.operation.kind.as_str().to_owned(),
        attempt: 1,
        detached: true,
        retry: true,
        created_at: now,
        deadline_at: now.plus(time.min(timing.max_deadline)),
        key_id: spec.key_id,
        request: Some(
            serde_json::to_value(Request { spec, rendering })
                .map_err(|error| StoreError::Internal(error.into()))?,
        ),
        routing: None,
    };
    let new = NewSubmission { job, idempotency };
    let submitted = match store.job_submit(new.clone()).await {
        // Saying it again tells whether it was recorded, and records it if not.
        Err(StoreError::Uncertain(_)) => store.job_submit(new).await?,
        submitted => submitted?,
    };
    Ok(match submitted {
        Submitted::New => Accepted::New(id),
        Submitted::Known(job) if job.id == id => Accepted::New(id),
        Submitted::Known(job) => Accepted::Known(job.id),
        Submitted::OtherRequest => Accepted::OtherRequest,
    })
}
