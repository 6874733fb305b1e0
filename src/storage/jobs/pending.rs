//! The detached jobs that nobody has: of which sources they are, and the end of those that nobody took in time.

use diesel::sql_types::{BigInt, Text, Timestamp};
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::batch::{Batch, Texts};
use super::super::types::serialize_stamp;
use super::super::{Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::SourceId;

/// A source with pending detached jobs.
#[derive(Debug, Clone, PartialEq, Eq, diesel::Queryable)]
pub struct PendingSource {
    pub source_id: SourceId,
    pub jobs: i64,
    /// The nearest deadline among them, which may have passed.
    pub first_deadline: UtcTime,
}

/// Over the index of the unfinished, of which there are few. Nothing varies: the batch is there because
/// every statement has one.
const SOURCES: Texts = Texts {
    postgres: "SELECT source_id, count(*), min(deadline_at) FROM runner_jobs \
               WHERE finished_at IS NULL AND status = 'pending' AND detached AND $batch <> '' \
               GROUP BY source_id ORDER BY min(deadline_at)",
    sqlite: "SELECT source_id, count(*), min(deadline_at) FROM runner_jobs \
             WHERE finished_at IS NULL AND status = 'pending' AND detached AND $batch <> '' \
             GROUP BY source_id ORDER BY min(deadline_at)",
};

#[derive(Serialize)]
struct Expiring {
    source: SourceId,
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
    reason: String,
}

/// Several gateways notice at once; each takes the rows that it gets a lock on.
const EXPIRE_PENDING: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t (source text, now timestamp, reason text)), \
               late AS (SELECT j.id FROM runner_jobs j, p WHERE j.finished_at IS NULL AND j.status = 'pending' \
               AND j.detached AND j.source_id = p.source AND j.deadline_at <= p.now \
               ORDER BY j.id FOR UPDATE OF j SKIP LOCKED) \
               UPDATE runner_jobs SET status = 'expired', finished_at = p.now, request = NULL, \
               error_code = 'QUERY_TIMEOUT', error_message = p.reason \
               FROM p WHERE runner_jobs.id = ANY (ARRAY(SELECT id FROM late)) AND runner_jobs.status = 'pending'",
    sqlite: "WITH p AS (SELECT d ->> '$.source' AS source, d ->> '$.now' AS now, d ->> '$.reason' AS reason \
             FROM (SELECT $batch AS d)) \
             UPDATE runner_jobs SET status = 'expired', finished_at = p.now, request = NULL, \
             error_code = 'QUERY_TIMEOUT', error_message = p.reason \
             FROM p WHERE finished_at IS NULL AND status = 'pending' AND detached \
             AND source_id = p.source AND deadline_at <= p.now",
};

impl Store {
    /// The sources that pending detached jobs ask, the most urgent first.
    pub async fn job_pending_sources(&self) -> Result<Vec<PendingSource>, StoreError> {
        let sources: Batch<(Text, BigInt, Timestamp)> = Batch::new(SOURCES, &())?;
        unit!(self, Read, connection => { Ok(sources.load(connection).await?) })
    }

    /// Ends the pending detached jobs of a source whose deadline has passed, and says why; returns how many.
    pub async fn job_expire_pending(
        &self,
        source: SourceId,
        reason: String,
        now: UtcTime,
    ) -> Result<usize, StoreError> {
        let expire: Batch = Batch::new(
            EXPIRE_PENDING,
            &Expiring {
                source,
                now,
                reason,
            },
        )?;
        unit!(self, Write, connection => { Ok(expire.execute(connection).await?) })
    }
}
