//! What becomes of a synchronous job when the gateway that it was forwarded to is lost: its caller waits at
//! another one, which takes it back.
//!
//! Taking it back moves the record to the next attempt. The lost gateway may be back at any time and still
//! claim: it claims the attempt that it was sent, and finds the record at a later one.

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::batch::{Batch, Texts};
use super::super::{Store, StoreError, unit};
use super::NewJob;
use crate::ids::{GatewayId, JobId};

/// A job to take back from a gateway that was lost.
#[derive(Debug, Clone, Serialize)]
pub struct Supersede {
    /// At its next attempt.
    #[serde(flatten)]
    pub job: NewJob,
    /// The gateway that was sent the attempt before.
    pub lost: GatewayId,
}

/// One statement: whether the lost gateway had got as far as its claim is looked at and fenced in one.
const SUPERSEDE: Texts = Texts {
    postgres: "INSERT INTO runner_jobs (status, \
               id, organisation_id, environment_id, source_id, lens, kind, attempt, detached, retry, created_at, \
               deadline_at, key_id, request, routing) \
               SELECT 'pending', \
               id, organisation_id, environment_id, source_id, lens, kind, attempt, detached, retry, created_at, \
               deadline_at, key_id, request, routing \
               FROM json_to_recordset($batch::json) AS t (\
               id text, organisation_id text, environment_id text, source_id text, lens text, kind text, \
               attempt integer, detached boolean, retry boolean, created_at timestamp, deadline_at timestamp, \
               key_id text, request json, routing json) \
               ON CONFLICT (id) DO UPDATE SET status = 'pending', attempt = excluded.attempt, claimed_by = NULL, \
               claimed_at = NULL, dispatched_at = NULL, runner_id = NULL, session_id = NULL \
               WHERE runner_jobs.attempt = excluded.attempt - 1 AND (runner_jobs.status = 'pending' \
               OR (runner_jobs.status = 'dispatched' AND excluded.retry \
               AND (runner_jobs.id, runner_jobs.claimed_by) IN (SELECT b.id, b.lost \
               FROM json_to_recordset($batch::json) AS b (id text, lost text)))) \
               RETURNING runner_jobs.id",
    sqlite: "INSERT INTO runner_jobs (status, \
             id, organisation_id, environment_id, source_id, lens, kind, attempt, detached, retry, created_at, \
             deadline_at, key_id, request, routing) \
             SELECT 'pending', \
             value ->> '$.id', value ->> '$.organisation_id', value ->> '$.environment_id', value ->> '$.source_id', \
             value ->> '$.lens', value ->> '$.kind', value ->> '$.attempt', value ->> '$.detached', \
             value ->> '$.retry', value ->> '$.created_at', value ->> '$.deadline_at', value ->> '$.key_id', \
             value ->> '$.request', value ->> '$.routing' \
             FROM json_each($batch) WHERE true \
             ON CONFLICT (id) DO UPDATE SET status = 'pending', attempt = excluded.attempt, claimed_by = NULL, \
             claimed_at = NULL, dispatched_at = NULL, runner_id = NULL, session_id = NULL \
             WHERE runner_jobs.attempt = excluded.attempt - 1 AND (runner_jobs.status = 'pending' \
             OR (runner_jobs.status = 'dispatched' AND excluded.retry \
             AND (runner_jobs.id, runner_jobs.claimed_by) IN (SELECT value ->> '$.id', value ->> '$.lost' \
             FROM json_each($batch)))) \
             RETURNING id",
};

impl Store {
    /// Takes jobs back from gateways that were lost with them; returns those that may be placed again, which
    /// are pending at the attempt that was given.
    ///
    /// One is taken back if the lost gateway had not claimed it, or if it may be tried again after it may
    /// have been sent. The others have ended, or will be ended as their holder's are.
    pub async fn job_supersede(
        &self,
        mut entries: Vec<Supersede>,
    ) -> Result<Vec<JobId>, StoreError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        entries.sort_by_key(|entry| entry.job.id);
        let supersede: Batch<Text> = Batch::new(SUPERSEDE, &entries)?;
        unit!(self, Write, connection => { Ok(supersede.load(connection).await?) })
    }
}
