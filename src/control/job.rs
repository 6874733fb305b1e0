//! A job on its way through the actors: what is asked, of which source, until when, and the way back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::dispatcher::{Declined, Return};
use super::error::JobError;
use super::reply::ReplySender;
use crate::clock::UtcTime;
use crate::domain::job::may_retry;
use crate::ids::{
    EnvironmentId, GatewayId, JobId, KeyId, OrganisationId, RunnerId, SessionId, SourceId,
};
use crate::protocol::Encoding;
use crate::query::operation::{ColumnTypes, Operation, Paging};

/// What the web layer asks of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// The tenant.
    pub organisation_id: OrganisationId,
    /// The tenant's environment.
    pub environment_id: EnvironmentId,
    /// The source to query.
    pub source_id: SourceId,
    /// The lens it was asked through, for the record.
    pub lens: Option<String>,
    /// The key that asked, for the record.
    pub key_id: Option<KeyId>,
    /// What to do, in column names.
    pub operation: Operation,
    /// How the rows are wanted.
    pub encoding: Encoding,
    /// Column → output name, in output order; `None`: columns as they are.
    pub fields: Option<Vec<(String, String)>>,
    /// The ordering columns, and where the page before ended.
    pub paging: Paging,
    /// What the lens says of columns, where it says more than they do.
    pub types: ColumnTypes,
    /// How long it may take; `None`: the source's own timeout, or the default.
    pub timeout: Option<Duration>,
    /// Only this runner will do (to test a source through each of its runners).
    pub only_runner: Option<RunnerId>,
    /// How long it may wait for a runner that can take it, before its caller is told that there is none.
    pub wait: Duration,
    /// Whether it may be tried once more, on another runner, when its runner is lost before the caller was
    /// sent anything.
    pub retry: bool,
}

/// The claim under which a gateway executes a detached job. What does not carry it changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The id under which the gateway claimed it.
    pub holder: GatewayId,
    /// The attempt that it claimed, the only one that it makes.
    pub attempt: u32,
}

/// One job that this gateway has accepted.
#[derive(Debug)]
pub struct Job {
    /// Its id, in the store and for the caller.
    pub id: JobId,
    /// What was asked.
    pub spec: JobSpec,
    /// Another gateway accepted it and chose this session: it is executed there or given back.
    pub only_session: Option<SessionId>,
    /// Nobody waits for it: it is recorded, and a gateway has claimed it.
    pub detached: Option<Held>,
    /// When it was accepted.
    pub created_at: UtcTime,
    /// When it is given up.
    pub deadline: Instant,
    /// The same on the wall clock, for the record.
    pub deadline_at: UtcTime,
    /// The way back.
    pub reply: ReplySender,
}

impl Job {
    /// Says to the gateway that accepted it that it was not taken here.
    pub fn hand_back(&self, why: Return, attempt: u32) {
        self.reply
            .end(Err(JobError::Returned(Declined { why, attempt })));
    }

    /// Whether it may be executed once more if it is lost now, as far as that depends on what it asked for and what
    /// became of it before. Of a detached job that is decided by whoever reads its reply.
    pub fn may_be_executed_again(&self) -> bool {
        self.detached.is_none() && may_retry(self.spec.retry, self.reply.restarts())
    }
}
