//! What detached jobs answered: kept, sealed, until it is fetched or its time is over.

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::batch::{Batch, Texts};
use super::super::schema::job_results;
use super::super::types::serialize_stamp;
use super::super::{Store, StoreError, unit};
use super::Finish;
use super::steps::{FINISH, check_ends};
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, JobId, OrganisationId};

/// An answer to keep.
#[derive(Debug, Clone, PartialEq, Eq, Insertable)]
#[diesel(table_name = job_results)]
pub struct NewResult {
    pub job_id: JobId,
    pub organisation_id: OrganisationId,
    pub environment_id: EnvironmentId,
    pub sealed: Vec<u8>,
    pub content_type: String,
    pub created_at: UtcTime,
    /// From then on it is as if it were not there.
    pub expires_at: UtcTime,
}

/// An answer that was kept.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = job_results)]
pub struct JobResult {
    pub job_id: JobId,
    pub environment_id: EnvironmentId,
    pub sealed: Vec<u8>,
    pub content_type: String,
    pub created_at: UtcTime,
    pub expires_at: UtcTime,
}

#[derive(Serialize)]
struct Expired {
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
    batch: u32,
}

/// The array has PostgreSQL look up what it deletes.
const PRUNE: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t (now timestamp, batch integer)), \
               old AS (SELECT r.job_id FROM job_results r WHERE r.expires_at <= (SELECT now FROM p) \
               ORDER BY r.expires_at LIMIT (SELECT batch FROM p) FOR UPDATE SKIP LOCKED) \
               DELETE FROM job_results WHERE job_id = ANY (ARRAY(SELECT job_id FROM old))",
    sqlite: "WITH p AS (SELECT d ->> '$.now' AS now, d ->> '$.batch' AS batch FROM (SELECT $batch AS d)) \
             DELETE FROM job_results WHERE job_id IN (SELECT r.job_id FROM job_results r \
             WHERE r.expires_at <= (SELECT now FROM p) ORDER BY r.expires_at LIMIT (SELECT batch FROM p))",
};

impl Store {
    /// Ends a job together with what it answered: both or neither. Says whether it did; a job that had
    /// ended before, or that somebody else holds, keeps what it has.
    pub async fn job_complete(
        &self,
        finish: Finish,
        result: NewResult,
    ) -> Result<bool, StoreError> {
        let ends = [finish];
        check_ends(&ends)?;
        let finish: Batch<Text> = Batch::new(FINISH, &ends)?;
        unit!(self, Transaction, connection => {
            let ended: Vec<JobId> = finish.load(connection).await?;
            if !ended.contains(&result.job_id) {
                return Ok(false);
            }
            diesel::insert_into(job_results::table).values(&result).execute(connection).await?;
            Ok(true)
        })
    }

    /// What a job of an organisation answered, if it is still kept.
    pub async fn job_result_get(
        &self,
        organisation: OrganisationId,
        id: JobId,
        now: UtcTime,
    ) -> Result<Option<JobResult>, StoreError> {
        unit!(self, Read, connection => {
            let kept = job_results::table
                .find(id)
                .filter(job_results::organisation_id.eq(organisation))
                .filter(job_results::expires_at.gt(now));
            Ok(kept.select(JobResult::as_select()).first(connection).await.optional()?)
        })
    }

    /// Removes at most `limit` answers whose time is over; returns how many.
    pub async fn job_result_prune(&self, now: UtcTime, limit: u32) -> Result<usize, StoreError> {
        let prune: Batch = Batch::new(PRUNE, &Expired { now, batch: limit })?;
        unit!(self, Write, connection => { Ok(prune.execute(connection).await?) })
    }
}
