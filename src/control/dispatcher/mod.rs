//! `Dispatcher`: owns the jobs that this gateway has accepted, until each has ended.
//!
//! It keeps the deadline, hears of cancellations and of callers that went away, and has a job placed again
//! that somebody did not take. Who takes it is the picker's decision; how it runs is the session's.
//!
//! A job that is with nobody is ended here; one that is with a session is ended there, so that exactly one
//! place decides its outcome. One that nobody can take may be held for a while; see `holding`.

mod held;
mod holding;
mod live;

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::held::HeldJobs;
use self::holding::busy;
use self::live::{Call, LiveJobs, Next};
use super::catalogue::{CatalogueReader, location};
use super::error::{Delivery, JobError};
use super::job::Job;
use super::ledger::RecordUnplaced;
use super::picker::{Place, Placement, Unplaceable};
use super::reply::Abandonment;
use super::session::{CancelCause, CancelExecution, Execute};
use super::vital::Vital;
use crate::clock::Clock;
use crate::ids::{JobId, RunnerId, SessionId};
use crate::protocol::CredentialsLocation;
use crate::timing::Timing;

/// How many jobs one gateway has under way at most; more are told that it is busy.
const MAX_LIVE_JOBS: usize = 20_000;
/// How often deadlines are looked at.
const DEADLINE_RESOLUTION: Duration = Duration::from_millis(50);
/// How long after its deadline a job may still be ended by whoever executes it.
const LAST_CALL: Duration = Duration::from_secs(10);
/// When to come back while nobody is there.
const RETRY_OFFLINE: Duration = Duration::from_secs(5);

/// Take this job to somebody. Sent by the web layer, for a caller or for another gateway.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Dispatch {
    /// The job; everything that becomes of it is said through its reply.
    pub job: Arc<Job>,
    /// Which attempt at it comes next, from 1.
    pub attempt: u32,
}

/// End this job early. Sent by the web layer and by a caller's end that was dropped.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "bool")]
pub struct CancelJob {
    /// The job.
    pub job_id: JobId,
    /// Why.
    pub cause: CancelCause,
}

/// Why a session did not take a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Return {
    /// It works on as many as it can.
    Busy,
    /// Its runner is on its way out.
    Draining,
    /// Its runner does not serve that source.
    Unassigned,
    /// It closed before the frame left.
    Gone,
    /// It is not on the gateway that was asked.
    NotHere,
    /// It closed after the frame had left. The job wants to be executed once more in that case, and its
    /// caller has seen nothing of this execution.
    Lost {
        /// The runner whose session it was.
        runner_id: RunnerId,
        /// How far the job had come.
        delivery: Delivery,
    },
    /// The gateway that it was on was lost. As for [`Return::Lost`].
    PeerLost {
        /// How far the job had come.
        delivery: Delivery,
    },
}

/// A job from another gateway was not taken here: it was certainly not executed, or may be executed once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declined {
    /// Why not.
    pub why: Return,
    /// Which attempt comes next.
    pub attempt: u32,
}

/// Somebody else is to have this job: it was not taken and certainly not executed, or may be executed once
/// more. Sent by a session.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct JobReturned {
    /// The job.
    pub job_id: JobId,
    /// Who did not take it.
    pub session_id: SessionId,
    /// Which attempt comes next.
    pub attempt: u32,
    /// Why not.
    pub why: Return,
}

/// This gateway executes as many jobs itself as it can. Sent by the inline executor.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct InlineFull {
    /// The job, which was not taken.
    pub job_id: JobId,
}

/// This job has ended, and its caller knows. Sent by a session and by the inline executor.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct JobSettled {
    /// The job.
    pub job_id: JobId,
}

/// How much there is to do.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "usize")]
pub struct LiveJobCount;

#[derive(Message)]
#[rtype(result = "()")]
struct ExpireOverdue;

/// Nobody will be found any more: end the jobs that wait, and let none wait from now on. Sent as the gateway
/// closes.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct EndHeld;

/// Is there somebody now for those who wait?
#[derive(Message)]
#[rtype(result = "()")]
struct OfferHeld;

/// Whom the dispatcher talks to.
pub struct DispatcherLinks {
    /// To the picker: who takes this job?
    pub place: Recipient<Place>,
    /// To the inline executor: do it here.
    pub inline: Recipient<Execute>,
    /// To the inline executor: stop doing it.
    pub cancel_inline: Recipient<CancelExecution>,
    /// To the ledger: this job never found anybody.
    pub record_unplaced: Recipient<RecordUnplaced>,
}

/// The actor.
pub struct Dispatcher {
    jobs: LiveJobs,
    held: HeldJobs,
    links: DispatcherLinks,
    catalogue: CatalogueReader,
    timing: Timing,
    clock: Clock,
    _vital: Vital,
}

impl Dispatcher {
    /// A dispatcher with nothing to do.
    pub fn new(
        links: DispatcherLinks,
        catalogue: CatalogueReader,
        timing: Timing,
        clock: Clock,
        vital: Vital,
    ) -> Self {
        Self {
            jobs: LiveJobs::default(),
            held: HeldJobs::default(),
            links,
            catalogue,
            timing,
            clock,
            _vital: vital,
        }
    }
}

impl Actor for Dispatcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAX_LIVE_JOBS);
        ctx.run_interval(DEADLINE_RESOLUTION, |_, ctx| ctx.notify(ExpireOverdue));
        ctx.run_interval(self.timing.hold_retry, |_, ctx| ctx.notify(OfferHeld));
    }
}

impl Handler<Dispatch> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Dispatch { job, attempt }: Dispatch, ctx: &mut Self::Context) {
        // A gateway that hands a job over again may be faster than the end of its first try here.
        if self.jobs.get(job.id).is_some() {
            return job.hand_back(Return::Busy, attempt);
        }
        if self.jobs.len() >= MAX_LIVE_JOBS {
            return match job.only_session {
                // The gateway that accepted it asks somebody else.
                Some(_) => job.hand_back(Return::Busy, attempt),
                None => self.refuse(&job, attempt, busy()),
            };
        }
        let id = job.id;
        log::debug!(job_id:% = id, source_id:% = job.spec.source_id; "job {id} accepted");
        self.jobs.accept(job, attempt, Instant::now());
        if !self.queue_up(id) {
            self.place(id, ctx);
        }
    }
}

impl Handler<CancelJob> for Dispatcher {
    type Result = bool;

    fn handle(&mut self, CancelJob { job_id, cause }: CancelJob, _: &mut Self::Context) -> bool {
        self.cancel(job_id, cause)
    }
}

impl Handler<JobReturned> for Dispatcher {
    type Result = ();

    fn handle(&mut self, returned: JobReturned, ctx: &mut Self::Context) {
        let JobReturned {
            job_id,
            session_id,
            attempt,
            why,
        } = returned;
        let next = self.jobs.returned(job_id, session_id, attempt, why);
        if let Some(cause) = self.jobs.get(job_id).and_then(|live| live.cancelled) {
            return self.end_unplaced(job_id, cause.into());
        }
        if self
            .jobs
            .get(job_id)
            .is_some_and(|live| live.job.only_session.is_some())
        {
            return self.hand_back(job_id, why);
        }
        match next {
            Some(Next::Place) => self.place(job_id, ctx),
            Some(Next::GiveUp) => self.unplaced(job_id, Unplaceable::Busy),
            None => {}
        }
    }
}

impl Handler<InlineFull> for Dispatcher {
    type Result = ();

    fn handle(&mut self, InlineFull { job_id }: InlineFull, _: &mut Self::Context) {
        let Some(live) = self.jobs.get(job_id) else {
            return;
        };
        live.executor = None;
        match live.cancelled {
            Some(cause) => self.end_unplaced(job_id, cause.into()),
            None => self.unplaced(job_id, Unplaceable::Busy),
        }
    }
}

impl Handler<JobSettled> for Dispatcher {
    type Result = ();

    fn handle(&mut self, JobSettled { job_id }: JobSettled, ctx: &mut Self::Context) {
        if let Some(live) = self.jobs.end(job_id) {
            // Its place is free for somebody who waits.
            self.offer_next(live.lane(), ctx);
        }
    }
}

impl Handler<LiveJobCount> for Dispatcher {
    type Result = usize;

    fn handle(&mut self, _: LiveJobCount, _: &mut Self::Context) -> usize {
        self.jobs.len()
    }
}

impl Handler<ExpireOverdue> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: ExpireOverdue, ctx: &mut Self::Context) {
        let now = Instant::now();
        self.give_up_held(now, ctx);
        for (job_id, call) in self.jobs.overdue(now, LAST_CALL) {
            match call {
                Call::First => {
                    self.cancel(job_id, CancelCause::Deadline);
                }
                Call::Last => self.write_off(job_id),
            }
        }
    }
}

impl Handler<EndHeld> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: EndHeld, _: &mut Self::Context) {
        for id in self.held.close() {
            self.give_up(id);
        }
    }
}

impl Handler<OfferHeld> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: OfferHeld, ctx: &mut Self::Context) {
        for lane in self.held.lanes() {
            self.offer_next(lane, ctx);
        }
    }
}

impl Dispatcher {
    /// Finds somebody for the job: a runner where the source has any, else this gateway itself.
    fn place(&mut self, id: JobId, ctx: &mut Context<Self>) {
        let Some(live) = self.jobs.get(id) else {
            return;
        };
        live.offer += 1;
        let lane = live.lane();
        let (job, attempt, declined) = (live.job.clone(), live.attempt, live.declined.clone());
        if job.only_session.is_some() {
            let place = Place {
                job,
                attempt,
                declined,
            };
            return self.ask_picker(id, place, ctx);
        }
        let catalogue = self.catalogue.current();
        let Some(source) = catalogue.source(job.spec.source_id) else {
            self.held.tried(id, lane);
            let reason = "its source has been deleted".to_owned();
            return self.end_unplaced(
                id,
                JobError::NoRunnersOnline {
                    reason,
                    retry_after: RETRY_OFFLINE,
                },
            );
        };
        if job.spec.only_runner.is_none() && catalogue.runners_of(source.id).is_empty() {
            return match location(source) {
                CredentialsLocation::Managed => {
                    self.run_inline(id, job, attempt);
                    self.offered(id, lane, ctx);
                }
                CredentialsLocation::RunnerLocal => {
                    let reason = "its credentials stay with a runner, and no runner is assigned to the source".to_owned();
                    self.held.tried(id, lane);
                    self.unplaced(id, Unplaceable::Offline { reason });
                }
            };
        }
        let place = Place {
            job,
            attempt,
            declined,
        };
        self.ask_picker(id, place, ctx);
    }

    fn ask_picker(&mut self, id: JobId, place: Place, ctx: &mut Context<Self>) {
        let Some((offer, lane)) = self.jobs.get(id).map(|live| (live.offer, live.lane())) else {
            return;
        };
        self.links
            .place
            .send(place)
            .into_actor(self)
            .map(move |found, act, ctx| {
                act.on_placed(id, offer, found);
                act.offered(id, lane, ctx);
            })
            .spawn(ctx);
    }

    fn run_inline(&mut self, id: JobId, job: Arc<Job>, attempt: u32) {
        if self
            .links
            .inline
            .try_send(Execute {
                job,
                attempt,
                session_id: None,
            })
            .is_err()
        {
            return self.unplaced(id, Unplaceable::Busy);
        }
        if let Some(live) = self.jobs.get(id) {
            live.executor = Some(self.links.cancel_inline.clone());
        }
    }

    fn on_placed(
        &mut self,
        id: JobId,
        offer: u64,
        found: Result<Result<Placement, Unplaceable>, MailboxError>,
    ) {
        // It may have come back already; then somebody else is being looked for.
        let Some(live) = self.jobs.get(id).filter(|live| live.offer == offer) else {
            return;
        };
        match found {
            Ok(Ok(placement)) => {
                if let Some(cause) = live.cancelled {
                    placement
                        .cancel
                        .do_send(CancelExecution { job_id: id, cause });
                }
                live.executor = Some(placement.cancel);
            }
            Ok(Err(unplaceable)) => match (live.cancelled, unplaceable) {
                (Some(cause), _) => self.end_unplaced(id, cause.into()),
                (None, Unplaceable::Declined(why)) => self.hand_back(id, why),
                (None, unplaceable) => self.unplaced(id, unplaceable),
            },
            Err(_) => self.end_unplaced(id, JobError::Internal),
        }
    }

    /// Ends a job early, wherever it is; answers whether it was still under way.
    fn cancel(&mut self, id: JobId, cause: CancelCause) -> bool {
        let Some(live) = self.jobs.get(id) else {
            return false;
        };
        // A gateway that handed the job over again hung up on its first try, of which this one may hear late.
        if matches!(cause, CancelCause::CallerGone) && !live.job.reply.is_abandoned() {
            return false;
        }
        if self.held.release(id) {
            match cause {
                CancelCause::Deadline => self.give_up(id),
                cause => self.end_unplaced(id, cause.into()),
            }
            return true;
        }
        // Noted in any case: should it come back at this moment, it is not placed again.
        live.cancelled.get_or_insert(cause);
        match &live.executor {
            Some(executor) => executor.do_send(CancelExecution { job_id: id, cause }),
            // It is being placed: the caller hears of it now, whoever gets it as soon as that is known.
            None => live.job.reply.end(Err(cause.into())),
        }
        true
    }

    /// Gives a job back to the gateway that has accepted it, which places it again.
    fn hand_back(&mut self, id: JobId, why: Return) {
        if let Some(live) = self.jobs.end(id) {
            live.job.hand_back(why, live.attempt);
        }
    }

    /// Ends a job that its executor should have ended and has not: whatever became of that actor, the
    /// caller gets an answer. Its record is left to the sweeper.
    fn write_off(&mut self, id: JobId) {
        let Some(live) = self.jobs.end(id) else {
            return;
        };
        log::error!(job_id:% = id; "job {id} was not ended by whoever executes it, its caller is told that it timed out");
        live.job.reply.end(Err(JobError::Timeout));
    }

    /// Ends a job that nobody took, and has that recorded beside the hot path.
    fn end_unplaced(&mut self, id: JobId, error: JobError) {
        self.held.release(id);
        let Some(live) = self.jobs.end(id) else {
            return;
        };
        self.refuse(&live.job, live.attempt, error);
    }

    fn refuse(&self, job: &Arc<Job>, attempt: u32, error: JobError) {
        if job.detached.is_some() {
            // It is recorded, and whoever reads its reply decides what becomes of it.
            return job.reply.end(Err(error));
        }
        let record = RecordUnplaced {
            job: job.clone(),
            attempt,
            error: error.clone(),
            at: self.clock.now(),
        };
        job.reply.end(Err(error));
        // A lost record of a refusal is better than a refusal that waits for its record.
        if self.links.record_unplaced.try_send(record).is_err() {
            log::warn!(job_id:% = job.id; "refused job {} is not recorded, the ledger is behind", job.id);
        }
    }
}

/// A caller's end that was dropped cancels its job.
pub struct CancelWhenAbandoned(pub Recipient<CancelJob>);

impl Abandonment for CancelWhenAbandoned {
    fn abandoned(&self, job_id: JobId) {
        // At most once per accepted job, so bounded by the number of those.
        self.0.do_send(CancelJob {
            job_id,
            cause: CancelCause::CallerGone,
        });
    }
}

#[cfg(test)]
mod tests;
