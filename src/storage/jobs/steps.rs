//! The steps of a job's life, each over a batch, each batch one transaction.
//!
//! Batches are sorted by id before they are written, so that two gateways that insert the same ids wait for
//! each other in one order only. For the same reason an update on PostgreSQL first locks its rows by id: left to
//! itself it would take them in whatever order its plan has.

use diesel::sql_types::{Integer, Nullable, Text};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::Value;

use super::super::batch::{Batch, Texts};
use super::super::types::serialize_stamp;
use super::super::{Store, StoreError, unit};
use super::NewJob;
use crate::clock::UtcTime;
use crate::domain::job::JobStatus;
use crate::ids::{GatewayId, JobId, RunnerId, SessionId};

/// Where a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Placement {
    pub runner: RunnerId,
    pub session: SessionId,
}

/// A synchronous job that wants to be recorded, claimed and marked in one step.
#[derive(Debug, Clone, Serialize)]
pub struct SyncClaim {
    #[serde(flatten)]
    pub job: NewJob,
    /// The gateway that wants it.
    pub holder: GatewayId,
    /// None for inline execution.
    pub placement: Option<Placement>,
}

/// The end of a job.
#[derive(Debug, Clone, Serialize)]
pub struct Finish {
    pub id: JobId,
    pub attempt: i32,
    /// The gateway that holds it; does not matter for one that nobody had claimed.
    pub holder: GatewayId,
    /// A terminal state.
    #[serde(serialize_with = "serialize_status")]
    pub status: JobStatus,
    #[serde(serialize_with = "serialize_stamp")]
    pub finished_at: UtcTime,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
    pub row_count: Option<i64>,
    pub duration_ms: Option<i64>,
    /// The explanation, if there is more of it now.
    pub routing: Option<Value>,
}

/// A job that goes back to be placed again, as its next attempt.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Requeue {
    pub id: JobId,
    /// The attempt that ended.
    pub attempt: i32,
    /// The gateway that holds it.
    pub holder: GatewayId,
}

fn serialize_status<S: serde::Serializer>(
    status: &JobStatus,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    status.as_str().serialize(serializer)
}

pub(super) const INSERT_PENDING: Texts = Texts {
    postgres: "INSERT INTO runner_jobs (status, \
               id, organisation_id, environment_id, source_id, lens, kind, attempt, detached, retry, created_at, \
               deadline_at, key_id, request, routing, idempotency_key, request_hash) \
               SELECT 'pending', \
               id, organisation_id, environment_id, source_id, lens, kind, attempt, detached, retry, created_at, \
               deadline_at, key_id, request, routing, idempotency_key, request_hash \
               FROM json_to_recordset($batch::json) AS t (\
               id text, organisation_id text, environment_id text, source_id text, lens text, kind text, \
               attempt integer, detached boolean, retry boolean, created_at timestamp, deadline_at timestamp, \
               key_id text, request json, routing json, idempotency_key text, request_hash text) \
               ON CONFLICT DO NOTHING",
    // `WHERE true` keeps the parser from taking `ON CONFLICT` for the condition of a join.
    sqlite: "INSERT INTO runner_jobs (status, \
             id, organisation_id, environment_id, source_id, lens, kind, attempt, detached, retry, created_at, \
               deadline_at, key_id, request, routing, idempotency_key, request_hash) \
             SELECT 'pending', \
             value ->> '$.id', value ->> '$.organisation_id', value ->> '$.environment_id', value ->> '$.source_id', \
             value ->> '$.lens', value ->> '$.kind', value ->> '$.attempt', value ->> '$.detached', \
             value ->> '$.retry', value ->> '$.created_at', value ->> '$.deadline_at', value ->> '$.key_id', \
             value ->> '$.request', value ->> '$.routing', value ->> '$.idempotency_key', value ->> '$.request_hash' \
             FROM json_each($batch) WHERE true ON CONFLICT DO NOTHING",
};

/// The only door to the execution of a synchronous job.
const CLAIM_AND_MARK: Texts = Texts {
    postgres: "UPDATE runner_jobs SET status = 'dispatched', claimed_by = b.holder, claimed_at = b.now, \
               dispatched_at = b.now, runner_id = b.runner, session_id = b.session \
               FROM json_to_recordset($batch::json) AS b \
               (id text, attempt integer, holder text, now timestamp, runner text, session text) \
               WHERE runner_jobs.id = b.id AND runner_jobs.status = 'pending' AND runner_jobs.attempt = b.attempt \
               RETURNING runner_jobs.id",
    sqlite: "UPDATE runner_jobs SET status = 'dispatched', claimed_by = b.holder, claimed_at = b.now, \
             dispatched_at = b.now, runner_id = b.runner, session_id = b.session \
             FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempt' AS attempt, \
             value ->> '$.holder' AS holder, value ->> '$.now' AS now, \
             value ->> '$.runner' AS runner, value ->> '$.session' AS session FROM json_each($batch)) AS b \
             WHERE runner_jobs.id = b.id AND runner_jobs.status = 'pending' AND runner_jobs.attempt = b.attempt \
             RETURNING runner_jobs.id",
};

/// Writes the end; what a detached job asked is no longer needed then.
pub(super) const FINISH: Texts = Texts {
    postgres: "WITH b AS (SELECT t.* FROM json_to_recordset($batch::json) AS t (id text, attempt integer, \
               holder text, status text, finished_at timestamp, error_code text, error_message text, \
               row_count bigint, duration_ms bigint, routing json) JOIN runner_jobs j ON j.id = t.id \
               WHERE j.status IN ('claimed', 'dispatched') AND j.attempt = t.attempt AND j.claimed_by = t.holder \
               ORDER BY j.id FOR UPDATE OF j) \
               UPDATE runner_jobs SET status = b.status, finished_at = b.finished_at, error_code = b.error_code, \
               error_message = b.error_message, row_count = b.row_count, duration_ms = b.duration_ms, \
               routing = coalesce(b.routing, runner_jobs.routing), request = NULL FROM b \
               WHERE runner_jobs.id = b.id AND runner_jobs.status IN ('claimed', 'dispatched') \
               AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
    sqlite: "UPDATE runner_jobs SET status = b.status, finished_at = b.finished_at, error_code = b.error_code, \
             error_message = b.error_message, row_count = b.row_count, duration_ms = b.duration_ms, \
             routing = coalesce(b.routing, runner_jobs.routing), request = NULL \
             FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempt' AS attempt, \
             value ->> '$.holder' AS holder, value ->> '$.status' AS status, \
             value ->> '$.finished_at' AS finished_at, value ->> '$.error_code' AS error_code, \
             value ->> '$.error_message' AS error_message, value ->> '$.row_count' AS row_count, \
             value ->> '$.duration_ms' AS duration_ms, value ->> '$.routing' AS routing \
             FROM json_each($batch)) AS b \
             WHERE runner_jobs.id = b.id AND runner_jobs.status IN ('claimed', 'dispatched') \
             AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
};

const REQUEUE: Texts = Texts {
    postgres: "WITH b AS (SELECT t.* FROM json_to_recordset($batch::json) AS t (id text, attempt integer, \
               holder text) JOIN runner_jobs j ON j.id = t.id \
               WHERE j.status IN ('claimed', 'dispatched') AND j.attempt = t.attempt AND j.claimed_by = t.holder \
               ORDER BY j.id FOR UPDATE OF j) \
               UPDATE runner_jobs SET status = 'pending', attempt = runner_jobs.attempt + 1, claimed_by = NULL, \
               claimed_at = NULL, dispatched_at = NULL, runner_id = NULL, session_id = NULL FROM b \
               WHERE runner_jobs.id = b.id AND runner_jobs.status IN ('claimed', 'dispatched') \
               AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
    sqlite: "UPDATE runner_jobs SET status = 'pending', attempt = runner_jobs.attempt + 1, claimed_by = NULL, \
             claimed_at = NULL, dispatched_at = NULL, runner_id = NULL, session_id = NULL \
             FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempt' AS attempt, \
             value ->> '$.holder' AS holder FROM json_each($batch)) AS b \
             WHERE runner_jobs.id = b.id AND runner_jobs.status IN ('claimed', 'dispatched') \
             AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
};

/// Writes down the end of jobs that nobody had claimed: refused, cancelled, or out of time.
const END_UNPLACED: Texts = Texts {
    postgres: "WITH b AS (SELECT t.* FROM json_to_recordset($batch::json) AS t (id text, attempt integer, \
               status text, finished_at timestamp, error_code text, error_message text, duration_ms bigint, \
               routing json) JOIN runner_jobs j ON j.id = t.id \
               WHERE j.status = 'pending' AND j.attempt = t.attempt ORDER BY j.id FOR UPDATE OF j) \
               UPDATE runner_jobs SET status = b.status, finished_at = b.finished_at, error_code = b.error_code, \
               error_message = b.error_message, duration_ms = b.duration_ms, \
               routing = coalesce(b.routing, runner_jobs.routing), request = NULL FROM b \
               WHERE runner_jobs.id = b.id AND runner_jobs.status = 'pending' AND runner_jobs.attempt = b.attempt \
               RETURNING runner_jobs.id",
    sqlite: "UPDATE runner_jobs SET status = b.status, finished_at = b.finished_at, error_code = b.error_code, \
             error_message = b.error_message, duration_ms = b.duration_ms, \
             routing = coalesce(b.routing, runner_jobs.routing), request = NULL \
             FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempt' AS attempt, value ->> '$.status' AS status, \
             value ->> '$.finished_at' AS finished_at, value ->> '$.error_code' AS error_code, \
             value ->> '$.error_message' AS error_message, value ->> '$.duration_ms' AS duration_ms, \
             value ->> '$.routing' AS routing FROM json_each($batch)) AS b \
             WHERE runner_jobs.id = b.id AND runner_jobs.status = 'pending' AND runner_jobs.attempt = b.attempt \
             RETURNING runner_jobs.id",
};

/// Locks, which waits out a backend that is still busy with the commit that nobody saw the end of.
const READ_BACK: Texts = Texts {
    postgres: "SELECT j.id, j.attempt, j.status, j.claimed_by FROM runner_jobs j \
               JOIN json_to_recordset($batch::json) AS b (id text) ON b.id = j.id ORDER BY j.id FOR UPDATE OF j",
    sqlite: "SELECT j.id, j.attempt, j.status, j.claimed_by FROM runner_jobs j \
             WHERE j.id IN (SELECT value ->> '$.id' FROM json_each($batch)) ORDER BY j.id",
};

/// A job as it was found after a commit whose end nobody saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, diesel::Queryable)]
pub struct ReadBack {
    pub id: JobId,
    pub attempt: i32,
    pub status: JobStatus,
    pub claimed_by: Option<GatewayId>,
}

#[derive(Serialize)]
struct ClaimEntry {
    id: JobId,
    attempt: i32,
    holder: GatewayId,
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
    runner: Option<RunnerId>,
    session: Option<SessionId>,
}

#[derive(Serialize)]
struct Named {
    id: JobId,
}

/// The record and the claim: together they are one transaction.
pub(in super::super) fn claim_statements(
    mut claims: Vec<SyncClaim>,
    now: UtcTime,
) -> Result<(Batch, Batch<Text>), StoreError> {
    claims.sort_by_key(|claim| claim.job.id);
    let entries: Vec<ClaimEntry> = claims
        .iter()
        .map(|claim| ClaimEntry {
            id: claim.job.id,
            attempt: claim.job.attempt,
            holder: claim.holder,
            now,
            runner: claim.placement.map(|placement| placement.runner),
            session: claim.placement.map(|placement| placement.session),
        })
        .collect();

    Ok((
        Batch::new(INSERT_PENDING, &claims)?,
        Batch::new(CLAIM_AND_MARK, &entries)?,
    ))
}

/// Fails unless every entry is an end.
pub(super) fn check_ends(ends: &[Finish]) -> Result<(), StoreError> {
    if ends.iter().all(|end| end.status.is_terminal()) {
        return Ok(());
    }
    Err(StoreError::Internal(
        "a job was to end in a state that is no end".into(),
    ))
}

impl Store {
    /// Records synchronous jobs, claims them for their holders and marks them dispatched; returns those that
    /// are now theirs to send. Any other is somebody else's, or not pending at that attempt.
    pub async fn job_claim_sync(
        &self,
        claims: Vec<SyncClaim>,
        now: UtcTime,
    ) -> Result<Vec<JobId>, StoreError> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let (insert, claim) = claim_statements(claims, now)?;
        unit!(self, Transaction, connection => {
            insert.execute(connection).await?;
            Ok(claim.load(connection).await?)
        })
    }

    /// Ends jobs that are held by whom the entries say; returns those that did end.
    pub async fn job_finish(&self, mut ends: Vec<Finish>) -> Result<Vec<JobId>, StoreError> {
        ends.sort_by_key(|end| end.id);
        check_ends(&ends)?;
        self.job_step(FINISH, &ends).await
    }

    /// Gives jobs back that are held by whom the entries say, to be placed as their next attempt; returns
    /// those that it did.
    pub async fn job_requeue(&self, mut jobs: Vec<Requeue>) -> Result<Vec<JobId>, StoreError> {
        jobs.sort_by_key(|job| job.id);
        self.job_step(REQUEUE, &jobs).await
    }

    /// Records jobs that ended before anybody claimed them; returns those that did.
    pub async fn job_record_unplaced(
        &self,
        mut jobs: Vec<(NewJob, Finish)>,
    ) -> Result<Vec<JobId>, StoreError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        jobs.sort_by_key(|(job, _)| job.id);
        let (jobs, ends): (Vec<NewJob>, Vec<Finish>) = jobs.into_iter().unzip();
        let insert: Batch = Batch::new(INSERT_PENDING, &jobs)?;
        let end: Batch<Text> = Batch::new(END_UNPLACED, &ends)?;
        unit!(self, Transaction, connection => {
            insert.execute(connection).await?;
            Ok(end.load(connection).await?)
        })
    }

    /// Says how jobs stand after [`StoreError::Uncertain`]: one that is this gateway's at the attempt that it
    /// asked for was won.
    pub async fn job_read_back(&self, ids: Vec<JobId>) -> Result<Vec<ReadBack>, StoreError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Named> = ids.into_iter().map(|id| Named { id }).collect();
        let read: Batch<(Text, Integer, Text, Nullable<Text>)> = Batch::new(READ_BACK, &ids)?;
        unit!(self, Transaction, connection => { Ok(read.load(connection).await?) })
    }

    /// Runs one guarded step over a batch; returns those that took it.
    pub(super) async fn job_step(
        &self,
        texts: Texts,
        entries: &[impl Serialize],
    ) -> Result<Vec<JobId>, StoreError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let step: Batch<Text> = Batch::new(texts, &entries)?;
        unit!(self, Write, connection => { Ok(step.load(connection).await?) })
    }
}
