//! `JobLedger`: all writes to the record of jobs, by group commit.
//!
//! Whatever arrives while a transaction is under way goes into the next, so that the number of durable
//! commits is bounded by the store's speed and not by the number of jobs. Two lanes, on connections of
//! their own: claims, for which callers wait, and everything else. What a transition means is decided in
//! `domain::job` and guarded by the store.

mod claims;
mod entries;
mod lane;
mod marks;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;

use self::claims::Claim;
pub(super) use self::entries::{Claimed, ended};
use self::lane::Lane;
use self::marks::Mark;
use super::error::JobError;
use super::identity::GatewayIdentity;
use super::job::Job;
use super::reply::Finished;
use super::vital::Vital;
use crate::clock::{Clock, UtcTime};
use crate::ids::{GatewayId, JobId, RunnerId, SessionId};
use crate::storage::{self, NewJob, Store, StoreError};

/// How many entries may wait for their transaction; each job makes two.
const MAX_WAITING: usize = 50_000;
/// How long the lane of marks waits for a store that does not answer before it tries again.
const RETRY: Duration = Duration::from_millis(500);

/// Who wants to execute a job.
#[derive(Debug, Clone, Copy)]
pub enum Executor {
    /// A session of this gateway.
    Session {
        /// The session.
        session_id: SessionId,
        /// Its runner.
        runner_id: RunnerId,
    },
    /// This gateway itself.
    Inline,
}

/// Record this job, claim it and mark it as dispatched, in one transaction; answers whether it was won.
///
/// A detached one, which is recorded and claimed, is only marked. Sent by sessions and by the inline executor;
/// nothing leaves before the answer.
#[derive(Message)]
#[rtype(result = "Result<bool, StoreError>")]
pub struct ClaimJob {
    /// The job.
    pub job: Arc<Job>,
    /// Which attempt is claimed.
    pub attempt: u32,
    /// The id of this gateway under which it is held.
    pub holder: GatewayId,
    /// For whom.
    pub executor: Executor,
}

/// A claimed job has ended. Sent by sessions and by the inline executor.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishJob(storage::Finish);

impl FinishJob {
    /// The record of how an attempt ended; none of a detached job, whose end is written down by whoever reads its
    /// reply, with the result.
    pub fn of(
        job: &Job,
        holder: GatewayId,
        attempt: u32,
        rows: u64,
        result: &Result<Finished, JobError>,
        at: UtcTime,
    ) -> Option<Self> {
        let waited_for = job.detached.is_none();
        waited_for.then(|| Self(entries::finish(job, attempt, holder, rows, result, at)))
    }
}

/// A claimed job certainly did not leave: make it pending again, one attempt on; answers whether it is.
/// Sent by sessions.
#[derive(Message)]
#[rtype(result = "Result<bool, StoreError>")]
pub struct RequeueJob {
    /// The job.
    pub job_id: JobId,
    /// The attempt that did not leave.
    pub attempt: u32,
    /// The id of this gateway under which it is held.
    pub holder: GatewayId,
}

/// A job was lost with the peer that it was handed to: make it pending for a next attempt. Sent by links.
///
/// Answers whether it is: not if the peer had begun it and it may not be tried again. From then on the peer
/// cannot begin the earlier attempt.
#[derive(Message)]
#[rtype(result = "Result<bool, StoreError>")]
pub struct SupersedeJob {
    /// The job.
    pub job: Arc<Job>,
    /// The attempt that comes next.
    pub attempt: u32,
    /// The peer.
    pub lost: GatewayId,
    /// Whether it may be executed once more if the peer has begun it.
    pub once_more: bool,
}

/// A job found nobody: record it as failed. Sent by the dispatcher.
#[derive(Message)]
#[rtype(result = "()")]
pub struct RecordUnplaced {
    /// The job.
    pub job: Arc<Job>,
    /// Which attempt would have come next.
    pub attempt: u32,
    /// What its caller was told.
    pub error: JobError,
    /// When.
    pub at: UtcTime,
}

/// Answer once everything that was sent before is in the store. Sent as the gateway stops.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Flush;

#[derive(Message)]
#[rtype(result = "()")]
struct RetryMarks;

/// The actor.
pub struct JobLedger {
    identity: GatewayIdentity,
    claim_store: Store,
    mark_store: Store,
    clock: Clock,
    claims: Lane<Claim>,
    marks: Lane<Mark>,
    /// Who waits for both lanes to be idle.
    flushes: Vec<oneshot::Sender<()>>,
    _vital: Vital,
}

impl JobLedger {
    /// A ledger that writes through connections of its own.
    ///
    /// # Errors
    ///
    /// When those connections cannot be set up.
    pub fn new(
        identity: GatewayIdentity,
        store: &Store,
        clock: Clock,
        vital: Vital,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            identity,
            claim_store: store.lane()?,
            mark_store: store.lane()?,
            clock,
            claims: Lane::default(),
            marks: Lane::default(),
            flushes: Vec::new(),
            _vital: vital,
        })
    }

    fn claim(&mut self, claim: Claim, ctx: &mut Context<Self>) {
        if self.claims.waiting() >= MAX_WAITING {
            claim.refuse();
            return;
        }
        if let Some(batch) = self.claims.push(claim) {
            self.commit_claims(batch, ctx);
        }
    }

    fn commit_claims(&mut self, batch: Vec<Claim>, ctx: &mut Context<Self>) {
        claims::commit(self.claim_store.clone(), self.clock.clone(), batch)
            .into_actor(self)
            .map(|(), act, ctx| match act.claims.committed() {
                Some(next) => act.commit_claims(next, ctx),
                None => act.answer_flushes(),
            })
            .spawn(ctx);
    }

    fn mark(&mut self, mark: Mark, ctx: &mut Context<Self>) {
        if self.marks.waiting() >= MAX_WAITING {
            log::error!(
                "the store is far behind: a job's end is not recorded, the sweeper will expire the job"
            );
            mark.refuse();
            return;
        }
        if let Some(batch) = self.marks.push(mark) {
            self.commit_marks(batch, ctx);
        }
    }

    fn commit_marks(&mut self, batch: Vec<Mark>, ctx: &mut Context<Self>) {
        marks::commit(self.mark_store.clone(), batch)
            .into_actor(self)
            .map(|unwritten, act, ctx| {
                if unwritten.is_empty() {
                    act.marked(ctx);
                } else {
                    // A mark is worth keeping: without it the job would only ever expire.
                    act.marks.put_back(unwritten);
                    ctx.notify_later(RetryMarks, RETRY);
                }
            })
            .spawn(ctx);
    }

    fn marked(&mut self, ctx: &mut Context<Self>) {
        match self.marks.committed() {
            Some(next) => self.commit_marks(next, ctx),
            None => self.answer_flushes(),
        }
    }

    fn answer_flushes(&mut self) {
        if self.claims.is_idle() && self.marks.is_idle() {
            for flush in self.flushes.drain(..) {
                // Whoever waited may have given up.
                let _ = flush.send(());
            }
        }
    }
}

impl Actor for JobLedger {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(4096);
    }
}

impl Handler<ClaimJob> for JobLedger {
    type Result = ResponseFuture<Result<bool, StoreError>>;

    fn handle(
        &mut self,
        ClaimJob {
            job,
            attempt,
            holder,
            executor,
        }: ClaimJob,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let (answer, claimed) = oneshot::channel();
        let now = self.clock.now();
        let entry = entries::claim(&job, attempt, holder, executor, now);
        self.claim(Claim { entry, answer }, ctx);
        Box::pin(async move { claimed.await.unwrap_or_else(|_| Err(entries::dropped())) })
    }
}

impl Handler<FinishJob> for JobLedger {
    type Result = ();

    fn handle(&mut self, FinishJob(finish): FinishJob, ctx: &mut Self::Context) {
        self.mark(Mark::Finish(finish), ctx);
    }
}

impl Handler<RequeueJob> for JobLedger {
    type Result = ResponseFuture<Result<bool, StoreError>>;

    fn handle(&mut self, requeue: RequeueJob, ctx: &mut Self::Context) -> Self::Result {
        let (answer, requeued) = oneshot::channel();
        let requeue = storage::Requeue {
            id: requeue.job_id,
            attempt: entries::attempt(requeue.attempt),
            holder: requeue.holder,
        };
        self.mark(Mark::Requeue { requeue, answer }, ctx);
        Box::pin(async move { requeued.await.unwrap_or_else(|_| Err(entries::dropped())) })
    }
}

impl Handler<SupersedeJob> for JobLedger {
    type Result = ResponseFuture<Result<bool, StoreError>>;

    fn handle(&mut self, supersede: SupersedeJob, ctx: &mut Self::Context) -> Self::Result {
        let (answer, superseded) = oneshot::channel();
        let supersede = Box::new(storage::Supersede {
            job: NewJob {
                retry: supersede.once_more,
                ..entries::new_job(&supersede.job, supersede.attempt)
            },
            lost: supersede.lost,
        });
        self.mark(Mark::Supersede { supersede, answer }, ctx);
        Box::pin(async move { superseded.await.unwrap_or_else(|_| Err(entries::dropped())) })
    }
}

impl Handler<RecordUnplaced> for JobLedger {
    type Result = ();

    fn handle(&mut self, unplaced: RecordUnplaced, ctx: &mut Self::Context) {
        let RecordUnplaced {
            job,
            attempt,
            error,
            at,
        } = unplaced;
        let finish = entries::finish(&job, attempt, self.identity.current(), 0, &Err(error), at);
        self.mark(
            Mark::Unplaced(Box::new((entries::new_job(&job, attempt), finish))),
            ctx,
        );
    }
}

impl Handler<Flush> for JobLedger {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Flush, _: &mut Self::Context) -> Self::Result {
        let (answer, flushed) = oneshot::channel();
        self.flushes.push(answer);
        self.answer_flushes();
        Box::pin(async move {
            // A ledger that stops has nothing left to write.
            let _ = flushed.await;
        })
    }
}

impl Handler<RetryMarks> for JobLedger {
    type Result = ();

    fn handle(&mut self, _: RetryMarks, ctx: &mut Self::Context) {
        self.marked(ctx);
    }
}
