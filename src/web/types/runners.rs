//! Runners, their sessions and assignments.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Named;
use crate::clock::UtcTime;
use crate::ids::{GatewayId, GroupId, InstanceId, RunnerId, SessionId, SourceId};
use crate::storage::Deployment;

/// Whether a runner can be given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunnerStatus {
    /// It has a healthy session.
    Online,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It has been here, and is not.
    Offline,
    /// It has never connected.
    NeverConnected,
    /// It was revoked, for good.
    Revoked,
}

impl RunnerStatus {
    /// The status on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Draining => "draining",
            Self::Offline => "offline",
            Self::NeverConnected => "never_connected",
            Self::Revoked => "revoked",
        }
    }
}

/// A runner: an identity with a token, of which several processes may run.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    /// Its id.
    pub id: RunnerId,
    /// Its name, unique in the organisation.
    pub name: String,
    /// Who operates it.
    pub deployment: Deployment,
    /// The group that it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<GroupId>,
    /// Whether it can be given work.
    pub status: RunnerStatus,
    /// The version that it told when it last connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The sources that it serves.
    pub sources: Vec<Named<SourceId>>,
    /// How many of its processes are connected.
    pub sessions: u32,
    /// How many jobs it runs right now.
    pub jobs: u32,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<UtcTime>,
    /// When it was created.
    pub created_at: UtcTime,
}

/// Creates a runner.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunnerCreate {
    /// Its name, unique in the organisation.
    #[schema(example = "primary-prod")]
    pub name: String,
    /// Who operates it; the customer by default.
    #[serde(default = "customer")]
    pub deployment: Deployment,
    /// The group that it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<GroupId>,
}

fn customer() -> Deployment {
    Deployment::Customer
}

/// Changes a runner; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunnerUpdate {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its new group; null: none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(value_type = Option<GroupId>)]
    pub group_id: Option<Option<GroupId>>,
}

/// A runner with a new token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerWithToken {
    /// The runner.
    #[serde(flatten)]
    pub runner: Runner,
    /// Its token, shown this once.
    pub token: String,
    /// The lines to paste into the runner's environment.
    pub env: String,
}

/// Gives a runner a new token.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunnerRotate {
    /// How long the old token still works, a day at most; not at all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_seconds: Option<u32>,
}

/// Which sources a runner serves, all of them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AssignmentsPut {
    /// The sources, by id or by name.
    pub source_ids: Vec<String>,
}

/// One connection of one process of a runner.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerSession {
    /// Its id.
    pub id: SessionId,
    /// The gateway that holds the socket.
    pub gateway_id: GatewayId,
    /// The process on the other end, where the runner tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The version of the protocol that is spoken.
    pub protocol: u32,
    /// The runner's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The machine that it runs on, where the runner tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The bridges that it has.
    pub capabilities: Vec<String>,
    /// How many jobs it takes at a time.
    pub capacity: u32,
    /// When it connected.
    pub connected_at: UtcTime,
    /// When it was last heard of, as far as it is stored.
    pub last_seen: UtcTime,
}
