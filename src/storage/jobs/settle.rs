//! What becomes of jobs that nobody looks after any more: those of a gateway that is gone, claims that
//! were never marked, deadlines that passed, and history that nobody will read.
//!
//! Several gateways may do this at once. On PostgreSQL each takes the rows that it gets a lock on at once and
//! leaves the rest to the others or to its next pass, so none ever waits for another.

use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::super::batch::{Batch, Texts};
use super::super::types::serialize_stamp;
use super::super::{Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::domain::job::MAX_ATTEMPTS;
use crate::ids::{GatewayId, JobId};

/// How many jobs were dealt with, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    /// Given back, to be placed again.
    pub requeued: usize,
    /// Ended as failed.
    pub failed: usize,
    /// Ended as expired.
    pub expired: usize,
}

/// Whose jobs to settle.
#[derive(Serialize)]
struct Holders {
    /// This one's; of everybody, if none is named.
    lost: Option<GatewayId>,
    /// But not this one's.
    own: Option<GatewayId>,
    /// Only of those that are not up, and only what was claimed before that time.
    orphans: bool,
    #[serde(serialize_with = "serialize_stamp")]
    claimed_before: UtcTime,
    max_attempts: i32,
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
}

/// A claim was certainly not sent, so it goes back as it was; what may have been sent is tried again only
/// if it asked for that. Nobody would answer a synchronous job.
const GIVE_BACK: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t \
               (lost text, own text, orphans boolean, claimed_before timestamp, max_attempts integer)), \
               mine AS (SELECT j.id FROM runner_jobs j, p WHERE j.finished_at IS NULL AND j.detached \
               AND (p.lost IS NULL OR j.claimed_by = p.lost) AND (p.own IS NULL OR j.claimed_by <> p.own) \
               AND (NOT p.orphans OR (j.claimed_at < p.claimed_before \
               AND NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = j.claimed_by))) \
               AND (j.status = 'claimed' OR (j.status = 'dispatched' AND j.retry AND j.attempt < p.max_attempts)) \
               ORDER BY j.id FOR UPDATE OF j SKIP LOCKED) \
               UPDATE runner_jobs SET attempt = attempt + CASE status WHEN 'dispatched' THEN 1 ELSE 0 END, \
               status = 'pending', claimed_by = NULL, claimed_at = NULL, dispatched_at = NULL, runner_id = NULL, \
               session_id = NULL FROM mine WHERE runner_jobs.id = mine.id",
    sqlite: "WITH p AS (SELECT d ->> '$.lost' AS lost, d ->> '$.own' AS own, d ->> '$.orphans' AS orphans, \
             d ->> '$.claimed_before' AS claimed_before, d ->> '$.max_attempts' AS max_attempts FROM (SELECT $batch AS d)) \
             UPDATE runner_jobs SET attempt = attempt + CASE status WHEN 'dispatched' THEN 1 ELSE 0 END, \
             status = 'pending', claimed_by = NULL, claimed_at = NULL, dispatched_at = NULL, runner_id = NULL, \
             session_id = NULL FROM p WHERE finished_at IS NULL AND detached \
             AND (p.lost IS NULL OR claimed_by = p.lost) AND (p.own IS NULL OR claimed_by <> p.own) \
             AND (NOT p.orphans OR (claimed_at < p.claimed_before \
             AND NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = claimed_by))) \
             AND (status = 'claimed' OR (status = 'dispatched' AND retry AND attempt < p.max_attempts))",
};

/// Everything else that the gateway held. How far what it had sent came, nobody can say.
const FAIL: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t \
               (lost text, own text, orphans boolean, claimed_before timestamp, now timestamp)), \
               mine AS (SELECT j.id FROM runner_jobs j, p WHERE j.finished_at IS NULL \
               AND j.status IN ('claimed', 'dispatched') \
               AND (p.lost IS NULL OR j.claimed_by = p.lost) AND (p.own IS NULL OR j.claimed_by <> p.own) \
               AND (NOT p.orphans OR (j.claimed_at < p.claimed_before \
               AND NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = j.claimed_by))) \
               ORDER BY j.id FOR UPDATE OF j SKIP LOCKED) \
               UPDATE runner_jobs SET status = 'failed', finished_at = p.now, request = NULL, \
               error_code = 'runner_failed', error_message = 'The gateway that held the job was lost', \
               routing = CASE runner_jobs.status WHEN 'dispatched' \
               THEN coalesce(runner_jobs.routing, '{\"delivery\":\"unknown\"}'::json) ELSE runner_jobs.routing END \
               FROM mine, p WHERE runner_jobs.id = mine.id",
    sqlite: "WITH p AS (SELECT d ->> '$.lost' AS lost, d ->> '$.own' AS own, d ->> '$.orphans' AS orphans, \
             d ->> '$.claimed_before' AS claimed_before, d ->> '$.now' AS now \
             FROM (SELECT $batch AS d)) \
             UPDATE runner_jobs SET status = 'failed', finished_at = p.now, request = NULL, \
             error_code = 'runner_failed', error_message = 'The gateway that held the job was lost', \
             routing = CASE status WHEN 'dispatched' \
             THEN coalesce(routing, '{\"delivery\":\"unknown\"}') ELSE routing END \
             FROM p WHERE finished_at IS NULL AND status IN ('claimed', 'dispatched') \
             AND (p.lost IS NULL OR claimed_by = p.lost) AND (p.own IS NULL OR claimed_by <> p.own) \
             AND (NOT p.orphans OR (claimed_at < p.claimed_before \
             AND NOT EXISTS (SELECT 1 FROM gateways g WHERE g.id = claimed_by)))",
};

/// The two statements that settle what gateways held.
pub(in super::super) struct Settling {
    pub(in super::super) give_back: Batch,
    pub(in super::super) fail: Batch,
}

impl Settling {
    /// For the jobs of one gateway.
    pub(in super::super) fn of(lost: GatewayId, now: UtcTime) -> Result<Self, StoreError> {
        Self::new(&Holders {
            lost: Some(lost),
            own: None,
            orphans: false,
            claimed_before: now,
            max_attempts: MAX_ATTEMPTS,
            now,
        })
    }

    /// For the jobs of every gateway but one.
    pub(in super::super) fn of_all_but(own: GatewayId, now: UtcTime) -> Result<Self, StoreError> {
        Self::new(&Holders {
            lost: None,
            own: Some(own),
            orphans: false,
            claimed_before: now,
            max_attempts: MAX_ATTEMPTS,
            now,
        })
    }

    /// For the jobs that were claimed before that time by gateways that are not up.
    fn of_orphans(now: UtcTime, claimed_before: UtcTime) -> Result<Self, StoreError> {
        Self::new(&Holders {
            lost: None,
            own: None,
            orphans: true,
            claimed_before,
            max_attempts: MAX_ATTEMPTS,
            now,
        })
    }

    fn new(holders: &Holders) -> Result<Self, StoreError> {
        Ok(Self {
            give_back: Batch::new(GIVE_BACK, holders)?,
            fail: Batch::new(FAIL, holders)?,
        })
    }
}

/// Expands to the execution of both statements; a function would have to name the bounds that diesel infers.
macro_rules! settle {
    ($settling:expr, $connection:expr) => {{
        let settling = $settling;
        let requeued = settling.give_back.execute($connection).await?;
        let failed = settling.fail.execute($connection).await?;
        Settled {
            requeued,
            failed,
            expired: 0,
        }
    }};
}
pub(in super::super) use settle;

#[derive(Serialize)]
struct Limits {
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
    #[serde(serialize_with = "serialize_stamp")]
    before: UtcTime,
    batch: u32,
}

/// In the order of the deadlines, because that is the index of the unfinished.
const GIVE_BACK_STALE: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t (before timestamp, batch integer)), \
               stale AS (SELECT j.id FROM runner_jobs j WHERE j.finished_at IS NULL AND j.status = 'claimed' \
               AND j.claimed_at < (SELECT before FROM p) \
               ORDER BY j.deadline_at LIMIT (SELECT batch FROM p) FOR UPDATE SKIP LOCKED) \
               UPDATE runner_jobs SET status = 'pending', claimed_by = NULL, claimed_at = NULL, runner_id = NULL, \
               session_id = NULL FROM stale WHERE runner_jobs.id = stale.id",
    sqlite: "WITH p AS (SELECT d ->> '$.before' AS before, d ->> '$.batch' AS batch FROM (SELECT $batch AS d)) \
             UPDATE runner_jobs SET status = 'pending', claimed_by = NULL, claimed_at = NULL, runner_id = NULL, \
             session_id = NULL WHERE id IN (SELECT j.id FROM runner_jobs j WHERE j.finished_at IS NULL \
             AND j.status = 'claimed' AND j.claimed_at < (SELECT before FROM p) \
             ORDER BY j.deadline_at LIMIT (SELECT batch FROM p))",
};

const EXPIRE: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t \
               (now timestamp, before timestamp, batch integer)), \
               late AS (SELECT j.id FROM runner_jobs j WHERE j.finished_at IS NULL \
               AND j.deadline_at < (SELECT before FROM p) \
               ORDER BY j.deadline_at LIMIT (SELECT batch FROM p) FOR UPDATE SKIP LOCKED) \
               UPDATE runner_jobs SET status = 'expired', finished_at = p.now, request = NULL, \
               error_code = 'QUERY_TIMEOUT', error_message = 'The deadline passed' \
               FROM late, p WHERE runner_jobs.id = late.id",
    sqlite: "WITH p AS (SELECT d ->> '$.now' AS now, d ->> '$.before' AS before, d ->> '$.batch' AS batch \
             FROM (SELECT $batch AS d)) \
             UPDATE runner_jobs SET status = 'expired', finished_at = (SELECT now FROM p), request = NULL, \
             error_code = 'QUERY_TIMEOUT', error_message = 'The deadline passed' \
             WHERE id IN (SELECT j.id FROM runner_jobs j WHERE j.finished_at IS NULL \
             AND j.deadline_at < (SELECT before FROM p) ORDER BY j.deadline_at LIMIT (SELECT batch FROM p))",
};

#[derive(Serialize)]
struct Pruning {
    before: JobId,
    keep: u64,
    batch: u32,
}

/// Ids sort by time, so both limits are a place in the primary key. The place of the row limit takes a
/// walk along all the rows that are kept, made only when a cheap upper bound says that there may be too many.
/// The array has PostgreSQL look up what it deletes; a join, whose size it cannot guess, would read it all.
const PRUNE: Texts = Texts {
    postgres: "WITH p AS (SELECT * FROM json_to_record($batch::json) AS t (before text, keep bigint, batch integer)), \
               size AS (SELECT reltuples FROM pg_class WHERE oid = 'runner_jobs'::regclass), \
               cut AS (SELECT greatest(p.before, (SELECT id FROM runner_jobs \
               WHERE size.reltuples < 0 OR size.reltuples > p.keep * 0.9 \
               ORDER BY id DESC OFFSET p.keep - 1 LIMIT 1)) AS id FROM p, size), \
               old AS (SELECT j.id FROM runner_jobs j WHERE j.finished_at IS NOT NULL \
               AND j.id < (SELECT id FROM cut) ORDER BY j.id LIMIT (SELECT batch FROM p) FOR UPDATE SKIP LOCKED) \
               DELETE FROM runner_jobs WHERE id = ANY (ARRAY(SELECT id FROM old))",
    // A limit cannot name a column of an outer row, hence the subqueries.
    sqlite: "WITH p AS (SELECT d ->> '$.before' AS before, d ->> '$.keep' AS keep, d ->> '$.batch' AS batch \
             FROM (SELECT $batch AS d)), \
             cut AS (SELECT max(p.before, coalesce((SELECT id FROM runner_jobs \
             WHERE (SELECT max(rowid) FROM runner_jobs) - (SELECT min(rowid) FROM runner_jobs) >= p.keep \
             ORDER BY id DESC LIMIT 1 OFFSET (SELECT keep - 1 FROM p)), '')) AS id FROM p) \
             DELETE FROM runner_jobs WHERE id IN (SELECT j.id FROM runner_jobs j \
             WHERE j.finished_at IS NOT NULL AND j.id < (SELECT id FROM cut) \
             ORDER BY j.id LIMIT (SELECT batch FROM p))",
};

impl Store {
    /// Gives back claims made before `stale_before` that were never marked, and ends jobs whose deadline
    /// was before `deadline_before`; at most `limit` of each.
    pub async fn job_sweep(
        &self,
        now: UtcTime,
        stale_before: UtcTime,
        deadline_before: UtcTime,
        limit: u32,
    ) -> Result<Settled, StoreError> {
        let give_back: Batch = Batch::new(
            GIVE_BACK_STALE,
            &Limits {
                now,
                before: stale_before,
                batch: limit,
            },
        )?;
        let expire: Batch = Batch::new(
            EXPIRE,
            &Limits {
                now,
                before: deadline_before,
                batch: limit,
            },
        )?;
        unit!(self, Transaction, connection => {
            // What is late is ended, not given back to be ended by the next pass.
            let expired = expire.execute(connection).await?;
            let requeued = give_back.execute(connection).await?;
            Ok(Settled { requeued, failed: 0, expired })
        })
    }

    /// Settles what was claimed before that time by gateways that are not up: a gateway that does not know yet
    /// that it was declared lost may still claim, when what it held has been settled already.
    pub async fn job_settle_orphans(
        &self,
        now: UtcTime,
        claimed_before: UtcTime,
    ) -> Result<Settled, StoreError> {
        let settling = Settling::of_orphans(now, claimed_before)?;
        unit!(self, Transaction, connection => { Ok(settle!(settling, connection)) })
    }

    /// Removes at most `batch` ended jobs: those created before `before`, and the oldest of more than `keep`.
    ///
    /// Returns how many; as many as `batch` means that there may be more.
    pub async fn job_prune(
        &self,
        before: UtcTime,
        keep: u64,
        batch: u32,
    ) -> Result<usize, StoreError> {
        let prune: Batch = Batch::new(
            PRUNE,
            &Pruning {
                before: earliest_id(before),
                keep: keep.max(1),
                batch,
            },
        )?;
        unit!(self, Write, connection => { Ok(prune.execute(connection).await?) })
    }
}

/// The least id that a job created at that time or later can have.
fn earliest_id(time: UtcTime) -> JobId {
    let millis = u64::try_from(time.get().timestamp_millis()).unwrap_or(0);
    JobId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid())
}
