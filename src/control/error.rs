//! Why a job did not end well: facts, from which the web layer makes a status and the ledger a record.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::dispatcher::Declined;
use crate::bridge::BridgeError;
use crate::ids::RunnerId;

/// How far a job had come when its runner was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// The frame never left the gateway, or the runner refused it: certainly not executed.
    NotDelivered,
    /// The frame was written; nothing came back.
    Unknown,
    /// The runner had accepted it, or sent rows.
    Started,
    /// Rows had reached the caller.
    Partial,
}

impl Delivery {
    /// The name in errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotDelivered => "not_delivered",
            Self::Unknown => "unknown",
            Self::Started => "started",
            Self::Partial => "partial",
        }
    }
}

/// Why a job did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Nobody can take it; nothing was claimed.
    #[error("no runner can take this query: {reason}")]
    NoRunnersOnline {
        /// Why not: never seen, offline, drained, lacks the bridge, …
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Everybody who could take it is at capacity.
    #[error("every runner of this source is at its capacity, try again shortly")]
    RunnersBusy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The runner was lost on the way.
    #[error("{message}")]
    RunnerFailed {
        /// `Runner <id> disconnected mid-job`, or what else happened to it.
        message: String,
        /// How far the job had come.
        delivery: Delivery,
    },
    /// The database, or the bridge before it, said no.
    #[error("{0}")]
    Source(BridgeError),
    /// The runner found the request itself wrong.
    #[error("{message}")]
    Rejected {
        /// `unsupported_operator`, `unsupported_kind` or `invalid_request`.
        code: &'static str,
        /// The runner's words.
        message: String,
    },
    /// The deadline passed.
    #[error("the query did not finish before its deadline")]
    Timeout,
    /// Somebody cancelled it.
    #[error("the job was cancelled")]
    Cancelled,
    /// It was claimed here and is not any more: whoever settled it meanwhile, or has it now, decides.
    #[error("the job was settled elsewhere")]
    ClaimLost,
    /// The caller does not read, or a row is too large.
    #[error("{0}")]
    ResultOverflow(String),
    /// The job could not be recorded, so it was not sent.
    #[error("the gateway cannot reach its store, the query was not sent")]
    StoreUnavailable,
    /// The session that another gateway had chosen for it did not take it; no caller is told so, that gateway
    /// places it again.
    #[error("the job was given back")]
    Returned(Declined),
    /// The gateway is not able to do what it should; the log says why.
    #[error("the gateway failed to process the job")]
    Internal,
}

impl JobError {
    /// The machine code of the REST error and of the job's record.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRunnersOnline { .. } => "no_runners_online",
            Self::RunnersBusy { .. } => "runners_busy",
            Self::RunnerFailed { .. } => "runner_failed",
            Self::Source(error) => error.code(),
            Self::Rejected { code, .. } => code,
            Self::Timeout => "QUERY_TIMEOUT",
            Self::Cancelled | Self::ClaimLost => "job_cancelled",
            Self::ResultOverflow(_) => "result_overflow",
            Self::StoreUnavailable => "store_unavailable",
            Self::Returned(_) => "returned",
            Self::Internal => "internal",
        }
    }
}

impl JobError {
    /// The runner's session has ended with the job in it.
    pub fn lost(runner: RunnerId, delivery: Delivery) -> Self {
        Self::RunnerFailed {
            message: format!("Runner {runner} disconnected mid-job"),
            delivery,
        }
    }

    /// This gateway stood still before the job was sent, and the others took it for lost.
    pub fn settled_before() -> Self {
        Self::RunnerFailed {
            message: "the gateway was taken for lost before the query was sent".to_owned(),
            delivery: Delivery::NotDelivered,
        }
    }

    /// The gateway that held the runner's session has gone with the job.
    pub fn lost_peer(delivery: Delivery) -> Self {
        Self::RunnerFailed {
            message: "the gateway that the runner is connected to was lost mid-job".to_owned(),
            delivery,
        }
    }

    /// How far the job had come, where its runner was lost on the way.
    pub fn delivery(&self) -> Option<Delivery> {
        match self {
            Self::RunnerFailed { delivery, .. } => Some(*delivery),
            _ => None,
        }
    }
}

impl From<BridgeError> for JobError {
    fn from(error: BridgeError) -> Self {
        match error {
            BridgeError::Timeout => Self::Timeout,
            BridgeError::Cancelled => Self::Cancelled,
            BridgeError::ResultOverflow(message) => Self::ResultOverflow(message),
            other => Self::Source(other),
        }
    }
}

/// What a runner reported, as the fact that it names. A code that this gateway does not know comes from
/// a runner that somebody else wrote, and is the database's "no" in that runner's words.
pub fn from_runner(code: &str, message: String, path: Option<String>) -> JobError {
    match code {
        "SOURCE_UNREACHABLE" => JobError::Source(BridgeError::Unreachable(message)),
        "SOURCE_UNAVAILABLE" => JobError::Source(BridgeError::Unavailable(message)),
        "QUERY_TIMEOUT" => JobError::Timeout,
        "job_cancelled" => JobError::Cancelled,
        "result_overflow" => JobError::ResultOverflow(message),
        // Its own fault, not the database's: the runner had the job and could not do it.
        "runner_failed" => JobError::RunnerFailed {
            message,
            delivery: Delivery::Started,
        },
        "invalid_request" if let Some(path) = path => {
            JobError::Source(BridgeError::Invalid { path, message })
        }
        "unsupported_operator" | "unsupported_kind" | "invalid_request" => JobError::Rejected {
            code: known(code),
            message,
        },
        _ => JobError::Source(BridgeError::QueryFailed(message)),
    }
}

fn known(code: &str) -> &'static str {
    match code {
        "unsupported_operator" => "unsupported_operator",
        "unsupported_kind" => "unsupported_kind",
        _ => "invalid_request",
    }
}
