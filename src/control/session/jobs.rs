//! How a job is taken, claimed, sent, cancelled and settled by one session.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::prelude::*;
use tokio::time::Instant;

use super::attempts::{Attempt, CancelCause, Stage};
use super::{Phase, RowsConsumed, RunnerSession, SessionLinks};
use crate::bridge::BridgeError;
use crate::clock::UtcTime;
use crate::control::catalogue::{Catalogue, location};
use crate::control::dispatcher::{JobReturned, JobSettled, Return};
use crate::control::error::{Delivery, JobError};
use crate::control::job::Job;
use crate::control::ledger::{ClaimJob, Executor, FinishJob, RequeueJob};
use crate::control::picker::SessionChanged;
use crate::control::reply::{Consumption, Finished};
use crate::ids::{AttemptId, GatewayId};
use crate::protocol::{self, GatewayFrame, JobParams, JobRequest, JobSource, RefusedReason};
use crate::query::plan::continued_by_filter;
use crate::storage::StoreError;

/// Reports to the session what the caller of one attempt took.
struct ToSession {
    session: Recipient<RowsConsumed>,
    attempt: AttemptId,
}

impl Consumption for ToSession {
    fn consumed(&self, bytes: usize) {
        // Bounded by the window: there is one message per batch, and batches cost credit.
        self.session.do_send(RowsConsumed {
            attempt: self.attempt,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        });
    }
}

impl RunnerSession {
    /// Takes a job in, or says at once why not; nothing is claimed for a job that is not taken.
    pub(super) fn on_execute(&mut self, job: Arc<Job>, number: u32, ctx: &mut Context<Self>) {
        let declined = if self.phase != Phase::Ready {
            Some(Return::Gone)
        } else if self.draining {
            Some(Return::Draining)
        } else if self.attempts.len() >= self.capacity as usize {
            Some(Return::Busy)
        } else {
            None
        };
        if let Some(why) = declined {
            self.give_back(&job, number, why);
            return;
        }
        let id = self.attempts.begin(job.clone(), number, Instant::now());
        self.load.set(self.attempts.len());
        let claim = ClaimJob {
            job: job.clone(),
            attempt: number,
            holder: self.gateway_id,
            executor: Executor::Session {
                session_id: self.id,
                runner_id: self.runner_id(),
            },
        };
        self.cx
            .links
            .claim
            .send(claim)
            .into_actor(self)
            .map(move |answer, session, ctx| {
                session.on_claimed(
                    id,
                    answer.unwrap_or_else(|closed| Err(StoreError::Unavailable(closed.into()))),
                    ctx,
                )
            })
            .spawn(ctx);
    }

    /// The ledger's answer: the job is this session's, is somebody else's, or nobody knows.
    fn on_claimed(
        &mut self,
        id: AttemptId,
        answer: Result<bool, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        let Some(attempt) = self.attempts.get(id) else {
            return;
        };
        match answer {
            Err(StoreError::Conflict(_)) => self.settle_unclaimed(id, JobError::settled_before()),
            Err(error) => {
                log::warn!(job_id:% = attempt.job.id, error:% = error; "job {} could not be claimed", attempt.job.id);
                // Should the claim have been written all the same, its end is written down behind it.
                self.settle(id, Err(JobError::StoreUnavailable));
            }
            // Cancelled elsewhere in the meantime, or a detached one that somebody else has by now.
            Ok(false) => self.settle_unclaimed(id, JobError::ClaimLost),
            Ok(true) => match attempt.cancelled {
                Some(cause) => self.settle(id, Err(cause.into())),
                None if self.phase != Phase::Ready => self.return_claimed(id, Return::Gone),
                // A runner that has said so would only refuse it. One that is let go does not know, and its
                // session stays until this job is done.
                None if self.draining && !self.released => {
                    self.return_claimed(id, Return::Draining)
                }
                None => self.send_job(id, ctx),
            },
        }
        self.stop_when_idle(ctx);
    }

    /// Sends the frame of a claimed job, credentials opened just now.
    fn send_job(&mut self, id: AttemptId, ctx: &mut Context<Self>) {
        let catalogue = self.cx.catalogue.current();
        let Some(attempt) = self.attempts.get(id) else {
            return;
        };
        let (job, attempt) = (attempt.job.clone(), attempt.number);
        let frame = match self.job_frame(id, &job, attempt, &catalogue) {
            Ok(frame) => frame,
            Err(error) => return self.settle(id, Err(error)),
        };
        let left = job.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return self.settle(id, Err(JobError::Timeout));
        }
        job.reply.attach(Arc::new(ToSession {
            session: ctx.address().recipient(),
            attempt: id,
        }));
        if !self.send(&frame) {
            return self.return_claimed(id, Return::Gone);
        }
        log::debug!(job_id:% = job.id, attempt_id:% = id, runner_id:% = self.runner_id(); "job {} sent", job.id);
        if let Some(attempt) = self.attempts.get(id) {
            attempt.stage = Stage::Sent;
            attempt.frame = Some(self.frames_sent);
        }
    }

    fn job_frame(
        &self,
        id: AttemptId,
        job: &Job,
        attempt: u32,
        catalogue: &Catalogue,
    ) -> Result<GatewayFrame, JobError> {
        let source = catalogue
            .source(job.spec.source_id)
            .ok_or(JobError::Cancelled)?;
        let config = self.cx.credentials.open(source).map_err(|error| {
            log::error!(source_id:% = source.id, error:% = error; "credentials of source {} cannot be opened", source.id);
            JobError::Internal
        })?;
        let two = self.version >= 2;
        // Only runners of protocol 2 know of pages.
        let folded = (!two && job.spec.paging.after.is_some())
            .then(|| continued_by_filter(&job.spec.operation, &job.spec.paging));
        let folded = folded.transpose().map_err(|error| {
            JobError::Source(BridgeError::Invalid {
                path: "cursor".to_owned(),
                message: error.to_string(),
            })
        })?;
        let operation = folded.as_ref().unwrap_or(&job.spec.operation);
        let paging = Some(&job.spec.paging).filter(|paging| two && !paging.keys.is_empty());
        let left = job.deadline.saturating_duration_since(Instant::now());
        Ok(GatewayFrame::Job(Box::new(protocol::Job {
            id,
            params: JobParams {
                source: JobSource {
                    id: source.id,
                    name: source.name.clone(),
                    bridge: crate::bridge::package_name(&source.bridge),
                    credentials_location: location(source),
                    config: config.map(serde_json::Value::Object),
                },
                job: JobRequest {
                    kind: operation.kind.as_str().to_owned(),
                    target: operation.target.clone(),
                    options: serde_json::Value::Object(operation.options.clone()),
                },
            },
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1),
            job_id: two.then_some(job.id),
            attempt: two.then_some(attempt),
            encoding: two.then_some(job.spec.encoding),
            window: two.then_some(protocol::DEFAULT_WINDOW_BYTES),
            fields: if two { job.spec.fields.clone() } else { None },
            keys: paging.map(|paging| paging.keys.clone()),
            asked: paging.map(|paging| paging.asked),
            after: paging.and_then(|paging| paging.after.clone()),
            types: if two {
                let types = job.spec.types.iter();
                types
                    .map(|(column, kind)| (column.clone(), kind.as_str().to_owned()))
                    .collect()
            } else {
                BTreeMap::new()
            },
            traceparent: None,
        })))
    }

    /// Ends a job early: at the runner if its frame left, at the claim if that is still under way.
    pub(super) fn on_cancel(&mut self, job_id: crate::ids::JobId, cause: CancelCause) {
        let Some(id) = self.attempts.of_job(job_id) else {
            return;
        };
        let Some(attempt) = self.attempts.get(id) else {
            return;
        };
        if attempt.stage == Stage::Claiming {
            attempt.cancelled = Some(cause);
            attempt.job.reply.end(Err(unclaimed(cause)));
            return;
        }
        self.cancel_at_runner(id);
        self.settle(id, Err(cause.into()));
    }

    pub(super) fn cancel_at_runner(&mut self, id: AttemptId) {
        if self.phase == Phase::Ready {
            self.send(&GatewayFrame::Cancel { id });
        }
    }

    pub(super) fn on_consumed(&mut self, id: AttemptId, bytes: u32) {
        if self.version < 2 {
            return;
        }
        let Some(attempt) = self.attempts.get(id) else {
            return;
        };
        if let Some(bytes) = attempt.consume(bytes, protocol::DEFAULT_WINDOW_BYTES) {
            self.send(&GatewayFrame::Credit { id, bytes });
        }
    }

    /// The runner did not take the job: it certainly did not execute it, so another one may.
    pub(super) fn on_refused(&mut self, id: AttemptId, reason: RefusedReason) {
        let Some(attempt) = self.attempts.get(id) else {
            return;
        };
        // Only instead of `accepted`: afterwards it may have run.
        if attempt.stage != Stage::Sent {
            return;
        }
        let why = match reason {
            RefusedReason::Draining => Return::Draining,
            RefusedReason::Busy => Return::Busy,
            RefusedReason::Unassigned => Return::Unassigned,
        };
        self.return_claimed(id, why);
    }

    /// Gives a claimed job back: first in the store, for a next attempt, and then to the dispatcher. Beside the
    /// session, which may end meanwhile.
    fn return_claimed(&mut self, id: AttemptId, why: Return) {
        let detached = self
            .attempts
            .get(id)
            .is_some_and(|a| a.job.detached.is_some());
        if detached {
            // Whoever reads its reply gives it back, or ends it.
            let runner = self.runner_id();
            return self.settle(id, Err(JobError::lost(runner, Delivery::NotDelivered)));
        }
        let Some(attempt) = self.attempts.end(id) else {
            return;
        };
        self.load.set(self.attempts.len());
        let Attempt { job, number, .. } = attempt;
        let requeue = RequeueJob {
            job_id: job.id,
            attempt: number,
            holder: self.gateway_id,
        };
        let (links, clock) = (self.cx.links.clone(), self.cx.clock.clone());
        let (session_id, runner_id, holder) = (self.id, self.runner_id(), self.gateway_id);
        actix::spawn(async move {
            if matches!(links.requeue.send(requeue).await, Ok(Ok(true))) {
                links.returned.do_send(JobReturned {
                    job_id: job.id,
                    session_id,
                    attempt: number + 1,
                    why,
                });
            } else {
                let delivery = match why {
                    Return::Lost { delivery, .. } => delivery,
                    _ => Delivery::NotDelivered,
                };
                let lost = Err(JobError::lost(runner_id, delivery));
                links.report(&job, holder, number, 0, lost, clock.now());
            }
        });
    }

    fn give_back(&self, job: &Arc<Job>, attempt: u32, why: Return) {
        self.cx.links.returned.do_send(JobReturned {
            job_id: job.id,
            session_id: self.id,
            attempt,
            why,
        });
    }

    /// Ends an attempt that was never claimed: the store has nothing to learn of it from here.
    fn settle_unclaimed(&mut self, id: AttemptId, error: JobError) {
        let Some(attempt) = self.attempts.end(id) else {
            return;
        };
        self.load.set(self.attempts.len());
        attempt.job.reply.end(Err(error));
        self.cx.links.settled.do_send(JobSettled {
            job_id: attempt.job.id,
        });
    }

    /// Ends an attempt: tells the caller, the ledger and the dispatcher, in that order.
    pub(super) fn settle(&mut self, id: AttemptId, result: Result<Finished, JobError>) {
        let Some(attempt) = self.attempts.end(id) else {
            return;
        };
        self.load.set(self.attempts.len());
        self.report(&attempt.job, attempt.number, attempt.rows, result);
    }

    fn report(&self, job: &Arc<Job>, attempt: u32, rows: u64, result: Result<Finished, JobError>) {
        let now = self.now();
        self.cx
            .links
            .report(job, self.gateway_id, attempt, rows, result, now);
    }

    /// The socket is gone: what may have left fails, what certainly did not goes elsewhere, and so does what
    /// wants to be executed once more and has not been answered yet.
    pub(super) fn lose_sent(&mut self) {
        let runner_id = self.runner_id();
        for id in self.attempts.sent() {
            let unwritten = self.is_unwritten(id);
            let Some(attempt) = self.attempts.get(id) else {
                continue;
            };
            let (reply, delivery) = (&attempt.job.reply, attempt.delivery());
            if unwritten && delivery == Delivery::Unknown {
                self.return_claimed(id, Return::Gone);
            } else if attempt.job.may_be_executed_again()
                && (attempt.job.only_session.is_some() || reply.restart())
            {
                // Another gateway's caller starts over there, or hears of it there if it is too late for that.
                log::info!(job_id:% = attempt.job.id, runner_id:% = runner_id; "job {} is executed once more, its runner was lost", attempt.job.id);
                let why = Return::Lost {
                    runner_id,
                    delivery,
                };
                self.return_claimed(id, why);
            } else {
                self.settle(id, Err(JobError::lost(runner_id, delivery)));
            }
        }
    }

    /// Whether a job's frame never left for the kernel and never will: the socket stopped, or its connection was
    /// cut, before the socket got to it.
    fn is_unwritten(&mut self, id: AttemptId) -> bool {
        let written = self.socket.written.get();
        let frame = self.attempts.get(id).and_then(|attempt| attempt.frame);
        self.socket_ended && frame.is_some_and(|frame| frame > written)
    }

    /// The gateway is about to stop: a runner that can is asked to go elsewhere. It goes on taking jobs here until it
    /// says that it takes no more, because it has opened another session by then.
    pub(super) fn on_drain(&mut self) {
        if self.version < 2 || self.phase != Phase::Ready || self.asked_to_go {
            return;
        }
        self.asked_to_go = true;
        let within = self.cx.timing.drain;
        self.send(&GatewayFrame::Drain {
            reason: "the gateway is stopping".to_owned(),
            deadline_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        });
    }

    /// Lets the runner go: it is given nothing new, and the session closes once nothing runs in it.
    pub(super) fn on_release(&mut self) {
        self.draining = true;
        self.released = true;
        self.cx.links.changed.do_send(SessionChanged::Draining {
            session_id: self.id,
        });
        self.finish_release();
    }

    /// Closes a session that is let go once nothing runs there any more.
    pub(super) fn finish_release(&mut self) {
        if self.released && self.attempts.is_empty() && self.phase == Phase::Ready {
            self.close(protocol::close::GOING_AWAY, "the gateway is stopping");
        }
    }
}

impl SessionLinks {
    /// Tells the caller, the ledger and the dispatcher how an attempt has ended, in that order.
    fn report(
        &self,
        job: &Arc<Job>,
        holder: GatewayId,
        attempt: u32,
        rows: u64,
        result: Result<Finished, JobError>,
        at: UtcTime,
    ) {
        let how = result.as_ref().map_or_else(JobError::code, |_| "completed");
        log::debug!(job_id:% = job.id, attempt, rows, how; "job {} ended: {how}", job.id);
        let finish = FinishJob::of(job, holder, attempt, rows, &result, at);
        job.reply.end(result);
        if let Some(finish) = finish {
            self.finish.do_send(finish);
        }
        self.settled.do_send(JobSettled { job_id: job.id });
    }
}

/// What a caller is told whose job ends before its claim was answered: a deadline that passes then is the
/// store's doing, not the database's, and the query was certainly not sent.
pub(in crate::control) fn unclaimed(cause: CancelCause) -> JobError {
    match cause {
        CancelCause::Deadline => JobError::StoreUnavailable,
        other => other.into(),
    }
}
