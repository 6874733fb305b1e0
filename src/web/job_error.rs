//! What becomes of a job that did not end well, as its caller is told.

use std::time::Duration;

use super::error::{ApiError, Code};
use crate::bridge::BridgeError;
use crate::control::JobError;
use crate::ids::JobId;
use crate::storage::{self, KeyKind};

/// How much of what a database said its caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A server of the tenant: the database's own words.
    Trusted,
    /// A browser: a fixed sentence, because messages leak schema and values.
    Public,
}

impl Audience {
    /// Who holds a key of that kind.
    pub fn of(kind: KeyKind) -> Self {
        if kind == KeyKind::Publishable {
            Self::Public
        } else {
            Self::Trusted
        }
    }
}

/// What a browser is told instead of a database's words.
const HIDDEN: &str = "the data source could not answer this query";

/// The error of a job, with the job's id.
pub fn job_error(error: &JobError, job_id: JobId, audience: Audience) -> ApiError {
    let api = match error {
        JobError::NoRunnersOnline {
            reason,
            retry_after,
        } => with_retry(Code::NoRunnersOnline, error, *retry_after).with("reason", reason.as_str()),
        JobError::RunnersBusy { retry_after } => with_retry(Code::RunnersBusy, error, *retry_after),
        JobError::RunnerFailed { message, delivery } => {
            ApiError::new(Code::RunnerFailed, message.clone())
                .with("delivery", delivery.as_str())
                // Everything that a job can ask only reads, so asking again does no harm however far it came.
                .with("retryable", true)
        }
        JobError::Source(error) => source_error(error, audience),
        JobError::Rejected { code, message } => match audience {
            Audience::Trusted => ApiError::new(rejected(code), message.clone()),
            Audience::Public => ApiError::new(rejected(code), HIDDEN),
        },
        JobError::Timeout => ApiError::new(Code::QueryTimeout, error.to_string()),
        JobError::Cancelled | JobError::ClaimLost => {
            ApiError::new(Code::JobCancelled, error.to_string())
        }
        JobError::ResultOverflow(message) => ApiError::new(Code::ResultOverflow, message.clone()),
        JobError::StoreUnavailable => ApiError::new(Code::StoreUnavailable, error.to_string()),
        JobError::Internal | JobError::Returned(_) => {
            ApiError::internal(anyhow::anyhow!("job {job_id}: {error}"))
        }
    };
    api.with("jobId", job_id.to_string())
}

/// The error of a job that nobody waited for, from its record: what its caller would have been told.
pub fn recorded_error(job: &storage::Job, audience: Audience) -> ApiError {
    let id = job.id;
    let known = job.error_code.as_deref().and_then(Code::parse);
    let api = match known {
        None | Some(Code::Internal) => ApiError::internal(anyhow::anyhow!("job {id} failed")),
        Some(Code::SourceUnavailable) => {
            ApiError::source_unavailable(recorded_message(job, audience))
        }
        Some(code) => ApiError::new(code, recorded_message(job, audience)),
    };
    let api = match known {
        Some(Code::RunnerFailed) => {
            let routing = job.routing.as_ref();
            match routing.and_then(|routing| routing.get("delivery")) {
                Some(delivery) => api.with("delivery", delivery.clone()),
                None => api,
            }
            .with("retryable", true)
        }
        _ => api,
    };
    api.with("jobId", id.to_string())
}

/// The recorded sentence, as far as it is for them.
pub fn recorded_message(job: &storage::Job, audience: Audience) -> String {
    let code = job.error_code.as_deref().and_then(Code::parse);
    let words_of_others = matches!(
        code,
        Some(
            Code::SourceUnreachable
                | Code::SourceUnavailable
                | Code::SourceQueryFailed
                | Code::UnsupportedOperator
                | Code::UnsupportedKind
                | Code::InvalidRequest
        )
    );
    match (audience, words_of_others) {
        (Audience::Public, true) => HIDDEN.to_owned(),
        _ => job.error_message.clone().unwrap_or_else(|| {
            let status = job.status;
            format!("the job is {status}")
        }),
    }
}

fn with_retry(code: Code, error: &JobError, after: Duration) -> ApiError {
    ApiError::new(code, error.to_string()).retry_after(after)
}

fn source_error(error: &BridgeError, audience: Audience) -> ApiError {
    match (audience, error) {
        (Audience::Public, BridgeError::Unreachable(_)) => {
            ApiError::new(Code::SourceUnreachable, HIDDEN)
        }
        (Audience::Public, BridgeError::Unavailable(_)) => ApiError::source_unavailable(HIDDEN),
        (Audience::Public, BridgeError::QueryFailed(_)) => {
            ApiError::new(Code::SourceQueryFailed, HIDDEN)
        }
        // What else the column could hold is not for a browser either.
        (Audience::Public, BridgeError::Invalid { path, .. }) => {
            ApiError::invalid(path, "this cannot be compared with the field")
        }
        _ => error.clone().into(),
    }
}

fn rejected(code: &str) -> Code {
    match code {
        "unsupported_operator" => Code::UnsupportedOperator,
        "unsupported_kind" => Code::UnsupportedKind,
        _ => Code::InvalidRequest,
    }
}
