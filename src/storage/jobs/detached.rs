//! The steps that only detached jobs take: nobody waits for them, so they lie pending in the store until a
//! gateway that has room takes them, and the claim and the mark are two transactions.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::batch::{Batch, Texts};
use super::super::schema::runner_jobs;
use super::super::types::serialize_stamp;
use super::super::{Changed, Store, StoreError, unit};
use super::Job;
use super::steps::Placement;
use crate::clock::UtcTime;
use crate::domain::job::JobStatus;
use crate::ids::{GatewayId, JobId, OrganisationId, SourceId};

/// A claimed job that is about to be sent.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    pub id: JobId,
    pub attempt: i32,
    /// The gateway that holds it.
    pub holder: GatewayId,
    /// None for inline execution.
    pub placement: Option<Placement>,
    #[serde(serialize_with = "serialize_stamp")]
    pub dispatched_at: UtcTime,
}

/// A claimed job that nobody could take.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Release {
    pub id: JobId,
    /// The attempt that it stays at.
    pub attempt: i32,
    /// The gateway that holds it.
    pub holder: GatewayId,
}

#[derive(Serialize)]
struct Taking {
    gateway: GatewayId,
    source: SourceId,
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
    batch: u32,
}

/// Those with the nearest deadline first, which is also the index of the unfinished. Several gateways take
/// at once, and each leaves alone what another one has its hands on.
const TAKE: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t \
               (gateway text, source text, now timestamp, batch integer)), \
               next AS (SELECT j.id FROM runner_jobs j WHERE j.finished_at IS NULL AND j.status = 'pending' \
               AND j.detached AND j.source_id = (SELECT source FROM p) AND j.deadline_at > (SELECT now FROM p) \
               ORDER BY j.deadline_at LIMIT (SELECT batch FROM p) FOR UPDATE SKIP LOCKED) \
               UPDATE runner_jobs SET status = 'claimed', claimed_by = p.gateway, claimed_at = p.now \
               FROM p WHERE runner_jobs.id = ANY (ARRAY(SELECT id FROM next)) AND runner_jobs.status = 'pending' \
               RETURNING runner_jobs.*",
    sqlite: "WITH p AS (SELECT d ->> '$.gateway' AS gateway, d ->> '$.source' AS source, \
             d ->> '$.now' AS now, d ->> '$.batch' AS batch FROM (SELECT $batch AS d)) \
             UPDATE runner_jobs SET status = 'claimed', claimed_by = (SELECT gateway FROM p), \
             claimed_at = (SELECT now FROM p) WHERE id IN (SELECT j.id FROM runner_jobs j \
             WHERE j.finished_at IS NULL AND j.status = 'pending' AND j.detached \
             AND j.source_id = (SELECT source FROM p) AND j.deadline_at > (SELECT now FROM p) ORDER BY j.deadline_at LIMIT (SELECT batch FROM p)) \
             AND status = 'pending' RETURNING *",
};

const MARK: Texts = Texts {
    postgres: "WITH b AS (SELECT t.* FROM json_to_recordset($batch::json) AS t \
               (id text, attempt integer, holder text, placement json, dispatched_at timestamp) \
               JOIN runner_jobs j ON j.id = t.id WHERE j.status = 'claimed' \
               AND j.attempt = t.attempt AND j.claimed_by = t.holder ORDER BY j.id FOR UPDATE OF j) \
               UPDATE runner_jobs SET status = 'dispatched', dispatched_at = b.dispatched_at, \
               runner_id = b.placement ->> 'runner', session_id = b.placement ->> 'session' FROM b \
               WHERE runner_jobs.id = b.id AND runner_jobs.status = 'claimed' \
               AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
    sqlite: "UPDATE runner_jobs SET status = 'dispatched', dispatched_at = b.dispatched_at, \
             runner_id = b.runner, session_id = b.session \
             FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempt' AS attempt, \
             value ->> '$.holder' AS holder, value ->> '$.dispatched_at' AS dispatched_at, \
             value ->> '$.placement.runner' AS runner, value ->> '$.placement.session' AS session \
             FROM json_each($batch)) AS b \
             WHERE runner_jobs.id = b.id AND runner_jobs.status = 'claimed' \
             AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
};

/// A claim was certainly not sent, so the attempt is still to be made.
const RELEASE: Texts = Texts {
    postgres: "WITH b AS (SELECT t.* FROM json_to_recordset($batch::json) AS t \
               (id text, attempt integer, holder text) \
               JOIN runner_jobs j ON j.id = t.id WHERE j.status = 'claimed' \
               AND j.attempt = t.attempt AND j.claimed_by = t.holder ORDER BY j.id FOR UPDATE OF j) \
               UPDATE runner_jobs SET status = 'pending', claimed_by = NULL, claimed_at = NULL, \
               runner_id = NULL, session_id = NULL FROM b \
               WHERE runner_jobs.id = b.id AND runner_jobs.status = 'claimed' \
               AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
    sqlite: "UPDATE runner_jobs SET status = 'pending', claimed_by = NULL, claimed_at = NULL, \
             runner_id = NULL, session_id = NULL \
             FROM (SELECT value ->> '$.id' AS id, value ->> '$.attempt' AS attempt, \
             value ->> '$.holder' AS holder FROM json_each($batch)) AS b \
             WHERE runner_jobs.id = b.id AND runner_jobs.status = 'claimed' \
             AND runner_jobs.attempt = b.attempt AND runner_jobs.claimed_by = b.holder RETURNING runner_jobs.id",
};

impl Store {
    /// Claims at most `limit` pending detached jobs of a source for a gateway.
    pub async fn job_take_pending(
        &self,
        gateway: GatewayId,
        source: SourceId,
        limit: u32,
        now: UtcTime,
    ) -> Result<Vec<Job>, StoreError> {
        let take: Batch<runner_jobs::SqlType> = Batch::new(
            TAKE,
            &Taking {
                gateway,
                source,
                now,
                batch: limit,
            },
        )?;
        unit!(self, Write, connection => { Ok(take.load(connection).await?) })
    }

    /// Marks claimed jobs as dispatched; only those that are returned may be sent.
    pub async fn job_mark(&self, mut marks: Vec<Mark>) -> Result<Vec<JobId>, StoreError> {
        marks.sort_by_key(|mark| mark.id);
        self.job_step(MARK, &marks).await
    }

    /// Gives claimed jobs back as they were, for any gateway to take; returns those that it did.
    pub async fn job_release(&self, mut jobs: Vec<Release>) -> Result<Vec<JobId>, StoreError> {
        jobs.sort_by_key(|job| job.id);
        self.job_step(RELEASE, &jobs).await
    }

    /// Gives up a job that nobody has claimed yet; one that is further is cancelled by who holds it.
    pub async fn job_cancel_pending(
        &self,
        organisation: OrganisationId,
        id: JobId,
        now: UtcTime,
    ) -> Result<Changed<Job>, StoreError> {
        unit!(self, Transaction, connection => {
            let target = runner_jobs::table.find(id).filter(runner_jobs::organisation_id.eq(organisation));
            let cancelled = diesel::update(target.filter(runner_jobs::status.eq(JobStatus::Pending)))
                .set((
                    runner_jobs::status.eq(JobStatus::Cancelled),
                    runner_jobs::finished_at.eq(now),
                    runner_jobs::request.eq(None::<serde_json::Value>),
                    runner_jobs::error_code.eq("job_cancelled"),
                ))
                .returning(Job::as_returning())
                .get_result(connection)
                .await
                .optional()?;
            if let Some(job) = cancelled {
                return Ok(Changed::Done(job));
            }
            let found = target.select(Job::as_select()).first(connection).await.optional()?;
            Ok(found.map_or(Changed::Absent, Changed::OtherState))
        })
    }
}
