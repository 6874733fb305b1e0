//! Jobs: the record of every query.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Failure, Named};
use crate::clock::UtcTime;
use crate::ids::{GatewayId, JobId, RunnerId, SourceId};

/// Where a job is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum JobState {
    /// Nobody has it.
    Pending,
    /// A gateway has it and has certainly not sent it.
    Claimed,
    /// It was sent to a runner, or is executed by the gateway.
    Dispatched,
    /// It was answered.
    Completed,
    /// It failed; `error` says why.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

/// One query on its way through the system.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Where it is on its way.
    pub state: JobState,
    /// What was asked: `query`, `count`, `test` …
    pub kind: String,
    /// The source that it asks; the name is absent when the source is gone.
    pub source: JobParty<SourceId>,
    /// The lens that it came through, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lens: Option<String>,
    /// The runner that has or had it; absent: the gateway itself, or nobody yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<JobParty<RunnerId>>,
    /// The gateway that has or had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_id: Option<GatewayId>,
    /// How often it was sent.
    pub attempt: u32,
    /// How many rows were answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// Why it went where it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub routing: Option<Value>,
    /// How long its execution took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// When it was accepted.
    pub created_at: UtcTime,
    /// When it must be over.
    pub deadline_at: UtcTime,
    /// When it was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatched_at: Option<UtcTime>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<UtcTime>,
}

/// Something that a job remembers and that may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobParty<I> {
    /// Its id.
    pub id: I,
    /// Its name, while it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl<I> From<Named<I>> for JobParty<I> {
    fn from(named: Named<I>) -> Self {
        Self {
            id: named.id,
            name: Some(named.name),
        }
    }
}

/// Which jobs, newest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct JobsQuery {
    /// The environment's slug or id; may be left out when the organisation has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub environment: Option<String>,
    /// Only jobs in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub state: Option<JobState>,
    /// Only jobs of this source, by id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub source: Option<String>,
    /// Only jobs of this runner, by id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub runner: Option<String>,
    /// Only jobs accepted at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub since: Option<UtcTime>,
    /// Only jobs accepted before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub until: Option<UtcTime>,
    /// How many items, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
    /// The `nextCursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub cursor: Option<String>,
}
