//! What is written down about one attempt at a detached job. Every step is guarded by the claim that the
//! attempt was taken with: if that is gone, nothing is changed. So each may be repeated, and is, for as long
//! as the store does not answer and the job has time.

use std::sync::Arc;
use std::time::Duration;

use super::DetachedContext;
use super::result::KeptResult;
use super::verdict::{Verdict, may_try_again, verdict};
use crate::clock::UtcTime;
use crate::control::error::JobError;
use crate::control::ledger::{Claimed, ended};
use crate::control::reply::Finished;
use crate::domain::sealing::Owner;
use crate::ids::{EnvironmentId, GatewayId, JobId, OrganisationId};
use crate::storage::{self, Finish, NewResult, Release, Requeue, StoreError};

/// How long to wait for a store that does not answer before it is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// What every result is kept as.
const CONTENT_TYPE: &str = "application/vnd.semilayer.result";

/// What was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// Its end.
    Ended,
    /// That it is pending again, at the next attempt.
    Retried,
    /// That it is pending again, at the same attempt.
    Released,
    /// Nothing: it is not ours any more, or the store did not answer in time and the others will settle it.
    Left,
}

/// One attempt at one job, as the store knows it.
#[derive(Clone)]
pub(super) struct Record {
    cx: Arc<DetachedContext>,
    id: JobId,
    organisation_id: OrganisationId,
    environment_id: EnvironmentId,
    attempt: i32,
    holder: GatewayId,
    created_at: UtcTime,
    deadline_at: UtcTime,
}

impl Record {
    pub(super) fn of(row: &storage::Job, cx: Arc<DetachedContext>) -> Self {
        Self {
            id: row.id,
            organisation_id: row.organisation_id,
            environment_id: row.environment_id,
            attempt: row.attempt,
            holder: row.claimed_by.unwrap_or_else(|| cx.identity.current()),
            created_at: row.created_at,
            deadline_at: row.deadline_at,
            cx,
        }
    }

    pub(super) fn id(&self) -> JobId {
        self.id
    }

    pub(super) fn attempt(&self) -> u32 {
        self.attempt.unsigned_abs()
    }

    pub(super) fn holder(&self) -> GatewayId {
        self.holder
    }

    /// Writes down the result, sealed, together with the job's end.
    pub(super) async fn complete(
        &self,
        count: u64,
        rows: Vec<u8>,
        finished: Finished,
        rendering: serde_json::Value,
    ) -> Recorded {
        let end = self.finish(count, &Ok(finished.clone()));
        let (id, sealer) = (self.id, self.cx.sealer.clone());
        let sealing = self.cx.runtime.spawn_blocking(move || {
            let packed = KeptResult::pack(rows, finished, rendering)?;
            anyhow::Ok(sealer.seal_bytes(Owner::job_result(id), &packed)?)
        });
        let sealed = match sealing.await.map_err(anyhow::Error::from).flatten() {
            Ok(sealed) => sealed,
            Err(error) => {
                log::error!(job_id:% = id, error:% = error; "the result of detached job {id} cannot be sealed, the job fails");
                return self.end(count, JobError::Internal).await;
            }
        };
        let result = self.result(sealed);
        let write = async || {
            self.cx
                .store
                .job_complete(end.clone(), result.clone())
                .await
        };
        match self.persist("its result", write).await {
            Some(true) => Recorded::Ended,
            Some(false) => Recorded::Left,
            None => self.end(count, JobError::Internal).await,
        }
    }

    /// Writes down what follows from an attempt that did not end well.
    pub(super) async fn fail(&self, count: u64, error: JobError) -> Recorded {
        match verdict(&error, self.attempt()) {
            Verdict::Leave => Recorded::Left,
            Verdict::Release => self.release().await,
            Verdict::Retry => self.retry().await,
            // The attempt counts, so that nobody can send it again; its source rests like one that nobody serves.
            Verdict::Refused => match self.retry().await {
                Recorded::Retried => Recorded::Released,
                recorded => recorded,
            },
            Verdict::Recover => match self.release().await {
                // The mark was written, and only its answer was lost.
                Recorded::Left if may_try_again(self.attempt()) => self.retry().await,
                Recorded::Left => self.end(count, error).await,
                recorded => recorded,
            },
            Verdict::End => self.end(count, error).await,
        }
    }

    /// Gives the job back as it was taken.
    pub(super) async fn release(&self) -> Recorded {
        let release = Release {
            id: self.id,
            attempt: self.attempt,
            holder: self.holder,
        };
        let write = async || self.cx.store.job_release(vec![release]).await;
        self.changed("that nobody took it", write, Recorded::Released)
            .await
    }

    async fn retry(&self) -> Recorded {
        let requeue = Requeue {
            id: self.id,
            attempt: self.attempt,
            holder: self.holder,
        };
        log::info!(job_id:% = self.id, attempt = self.attempt; "attempt {} at detached job {} was lost, it is tried again", self.attempt, self.id);
        let write = async || self.cx.store.job_requeue(vec![requeue]).await;
        self.changed("that it is to be tried again", write, Recorded::Retried)
            .await
    }

    /// Ends the job.
    pub(super) async fn end(&self, count: u64, error: JobError) -> Recorded {
        let end = self.finish(count, &Err(error));
        let write = async || self.cx.store.job_finish(vec![end.clone()]).await;
        self.changed("its end", write, Recorded::Ended).await
    }

    fn finish(&self, count: u64, result: &Result<Finished, JobError>) -> Finish {
        let claimed = Claimed {
            id: self.id,
            attempt: self.attempt,
            holder: self.holder,
            created_at: self.created_at,
        };
        ended(claimed, count, result, self.cx.clock.now())
    }

    fn result(&self, sealed: Vec<u8>) -> NewResult {
        let now = self.cx.clock.now();
        NewResult {
            job_id: self.id,
            organisation_id: self.organisation_id,
            environment_id: self.environment_id,
            sealed,
            content_type: CONTENT_TYPE.to_owned(),
            created_at: now,
            expires_at: now.plus(self.cx.timing.keep_result),
        }
    }

    /// Takes a step; `done` if it changed the row, which it does not if the claim is gone.
    async fn changed(
        &self,
        what: &str,
        write: impl AsyncFn() -> Result<Vec<JobId>, StoreError>,
        done: Recorded,
    ) -> Recorded {
        match self.persist(what, write).await {
            Some(changed) if !changed.is_empty() => done,
            _ => Recorded::Left,
        }
    }

    /// Repeats a step until the store answers, or the sweeper has settled the job.
    async fn persist<T>(
        &self,
        what: &str,
        write: impl AsyncFn() -> Result<T, StoreError>,
    ) -> Option<T> {
        let until = self.deadline_at.plus(self.cx.timing.deadline_grace);
        loop {
            match write().await {
                Ok(answer) => return Some(answer),
                Err(error) if error.is_connection() && self.cx.clock.now() < until => {
                    log::warn!(job_id:% = self.id, error:% = error; "of detached job {} could not yet be recorded: {what}", self.id);
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => {
                    log::error!(job_id:% = self.id, error:% = error; "of detached job {} cannot be recorded: {what}", self.id);
                    return None;
                }
            }
        }
    }
}
