//! `PeerLink`: this gateway's way to one other, for jobs whose runner is connected there.
//!
//! Owns the jobs that it has handed over and not yet seen end. It is started by the cluster actor when a peer
//! appears and told when it is gone; which job goes where is the picker's decision, and what becomes of one that
//! came back the dispatcher's. The record of a job is written by the gateway that executes it: here is only made
//! sure that an attempt which may have been lost with a peer can never begin any more before another one does.

mod client;
mod forward;
#[cfg(test)]
mod tests;
pub mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

pub use self::client::{PeerClient, PeerTokens};
use self::forward::{Forward, Outcome, Signal};
use super::dispatcher::{Declined, JobReturned, JobSettled, Return};
use super::error::{Delivery, JobError};
use super::job::Job;
use super::ledger::{RecordUnplaced, SupersedeJob};
use super::picker::PeerSaid;
use super::reply::Finished;
use super::session::{CancelCause, CancelExecution, Execute};
use crate::clock::Clock;
use crate::ids::{GatewayId, JobId, SessionId};

/// How many jobs may wait to be handed over.
const MAILBOX: usize = 4096;
/// How long a link to a peer that is gone stays, for what was sent to it before everybody knew.
const LINGER: Duration = Duration::from_secs(5);

/// The peer was declared lost or has left: whatever it says no more is lost too. Sent by the cluster actor.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct PeerGone;

#[derive(Message)]
#[rtype(result = "()")]
struct Concluded {
    job_id: JobId,
    outcome: Outcome,
}

/// Whom a link talks to.
#[derive(Clone)]
pub struct PeerLinks {
    /// To the dispatcher: place this job elsewhere.
    pub returned: Recipient<JobReturned>,
    /// To the dispatcher: this job has ended.
    pub settled: Recipient<JobSettled>,
    /// To the ledger: may this job be tried again?
    pub supersede: Recipient<SupersedeJob>,
    /// To the ledger: this job ended, and maybe nobody recorded it.
    pub record_unplaced: Recipient<RecordUnplaced>,
    /// To the picker: what the peer says of its sessions.
    pub said: Recipient<PeerSaid>,
}

/// What links are made of, beside the peer.
#[derive(Clone)]
pub struct PeerContext {
    /// Whom they talk to.
    pub links: PeerLinks,
    /// The connections.
    pub client: PeerClient,
    /// Where answers are passed on, beside the actors' threads.
    pub runtime: tokio::runtime::Handle,
    /// The time.
    pub clock: Clock,
}

struct Running {
    job: Arc<Job>,
    attempt: u32,
    session_id: SessionId,
    signal: watch::Sender<Signal>,
}

/// The actor.
pub struct PeerLink {
    peer: GatewayId,
    url: String,
    cx: PeerContext,
    running: HashMap<JobId, Running>,
    gone: bool,
    /// Whether everybody has heard by now that it is.
    lingered: bool,
}

impl PeerLink {
    /// A link to the peer whose internal listener is there.
    pub fn new(peer: GatewayId, url: String, cx: PeerContext) -> Self {
        Self {
            peer,
            url,
            cx,
            running: HashMap::new(),
            gone: false,
            lingered: false,
        }
    }
}

impl Actor for PeerLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Execute> for PeerLink {
    type Result = ();

    fn handle(&mut self, execute: Execute, ctx: &mut Self::Context) {
        let Execute {
            job,
            attempt,
            session_id,
        } = execute;
        let Some(session_id) = session_id else {
            log::error!(job_id:% = job.id; "a job without a session cannot be handed to a peer");
            return;
        };
        if self.gone || self.running.contains_key(&job.id) {
            return self.give_back(job.id, session_id, attempt, Return::Gone);
        }
        self.forward(job, attempt, session_id, ctx);
    }
}

impl Handler<CancelExecution> for PeerLink {
    type Result = ();

    fn handle(
        &mut self,
        CancelExecution { job_id, cause }: CancelExecution,
        _: &mut Self::Context,
    ) {
        if let Some(running) = self.running.get(&job_id) {
            running.signal.send_modify(|signal| {
                signal.cancel.get_or_insert(cause);
            });
        }
    }
}

impl Handler<PeerGone> for PeerLink {
    type Result = ();

    fn handle(&mut self, _: PeerGone, ctx: &mut Self::Context) {
        self.gone = true;
        // The picker may have sent a job before it heard that the peer is gone: it is given back, not dropped.
        ctx.run_later(LINGER, |act, ctx| {
            act.lingered = true;
            act.stop_when_idle(ctx);
        });
        for running in self.running.values() {
            running.signal.send_modify(|signal| signal.lost = true);
        }
    }
}

impl Handler<Concluded> for PeerLink {
    type Result = ();

    fn handle(&mut self, Concluded { job_id, outcome }: Concluded, ctx: &mut Self::Context) {
        let Some(running) = self.running.remove(&job_id) else {
            return;
        };
        match outcome {
            Outcome::Ended(end) => self.end(
                &running,
                end.map_err(|error| as_seen_here(&running.job, error)),
            ),
            Outcome::Declined(declined) => self.declined(&running, declined),
            Outcome::NotReceived => self.not_received(&running),
            Outcome::Lost { answered, rows } => {
                // One answer that breaks off says nothing of the others; the next one to connect will know.
                if !answered {
                    self.lost_sight();
                }
                return self.lost(running, rows, ctx);
            }
            Outcome::Cancelled(cause) => self.cancelled(&running, cause),
        }
        self.stop_when_idle(ctx);
    }
}

impl PeerLink {
    fn forward(
        &mut self,
        job: Arc<Job>,
        attempt: u32,
        session_id: SessionId,
        ctx: &mut Context<Self>,
    ) {
        let (signal, signals) = watch::channel(Signal::default());
        let job_id = job.id;
        log::debug!(job_id:% = job_id, gateway_id:% = self.peer, session_id:% = session_id; "job {job_id} goes to a peer");
        let forward = Forward {
            job: job.clone(),
            attempt,
            session_id,
            client: self.cx.client.clone(),
            url: self.url.clone(),
            signals,
        };
        self.running.insert(
            job_id,
            Running {
                job,
                attempt,
                session_id,
                signal,
            },
        );
        self.cx
            .runtime
            .spawn(forward.run())
            .into_actor(self)
            .map(move |outcome, _, ctx| {
                let outcome = outcome.unwrap_or_else(|panicked| {
                    log::error!(job_id:% = job_id, error:% = panicked; "handing over job {job_id} panicked");
                    Outcome::Ended(Err(JobError::Internal))
                });
                ctx.notify(Concluded { job_id, outcome });
            })
            .spawn(ctx);
    }

    fn end(&self, running: &Running, end: Result<Finished, JobError>) {
        running.job.reply.end(end);
        self.cx.links.settled.do_send(JobSettled {
            job_id: running.job.id,
        });
    }

    fn give_back(&self, job_id: JobId, session_id: SessionId, attempt: u32, why: Return) {
        self.cx.links.returned.do_send(JobReturned {
            job_id,
            session_id,
            attempt,
            why,
        });
    }

    fn declined(&self, running: &Running, Declined { why, attempt }: Declined) {
        let Running {
            job, session_id, ..
        } = running;
        log::debug!(job_id:% = job.id, gateway_id:% = self.peer, why:? = why; "a peer did not take job {}", job.id);
        // What the peer says next cannot be before what was asked of it.
        let next = attempt.max(running.attempt);
        self.cx.links.said.do_send(PeerSaid::Declined {
            session_id: *session_id,
            why,
        });
        if let Return::Lost {
            runner_id,
            delivery,
        } = why
            && !job.reply.restart()
        {
            let error = as_seen_here(job, JobError::lost(runner_id, delivery));
            self.record_unclaimed(job, next, error.clone());
            return self.end(running, Err(error));
        }
        self.give_back(job.id, *session_id, next, why);
    }

    fn not_received(&self, running: &Running) {
        self.lost_sight();
        self.give_back(
            running.job.id,
            running.session_id,
            running.attempt,
            Return::Gone,
        );
    }

    /// The picker is to leave this peer alone for a moment.
    fn lost_sight(&self) {
        self.cx.links.said.do_send(PeerSaid::Silent {
            gateway_id: self.peer,
        });
    }

    /// Ends a job whose caller has heard, or hears now, that it ended. If the peer has it, the peer records that;
    /// if nobody has, this does, and then it can never begin.
    fn cancelled(&self, running: &Running, cause: CancelCause) {
        self.end(running, Err(cause.into()));
        // The peer may have given it back meanwhile, as its next attempt.
        for attempt in [running.attempt, running.attempt + 1] {
            self.record_unclaimed(&running.job, attempt, cause.into());
        }
    }

    /// Has the end of a job written down if nobody has claimed that attempt.
    fn record_unclaimed(&self, job: &Arc<Job>, attempt: u32, error: JobError) {
        let record = RecordUnplaced {
            job: job.clone(),
            attempt,
            error,
            at: self.cx.clock.now(),
        };
        if self.cx.links.record_unplaced.try_send(record).is_err() {
            log::warn!(job_id:% = job.id; "the end of job {} is not recorded here, the ledger is behind", job.id);
        }
    }

    /// The peer was lost with a job. It may be tried again if the peer had not begun it, and then cannot begin it
    /// any more; or if it may be executed once more and its caller was sent nothing.
    fn lost(&mut self, running: Running, rows: bool, ctx: &mut Context<Self>) {
        let job = &running.job;
        let once_more = job.may_be_executed_again() && job.reply.restart();
        let came = if rows {
            Delivery::Started
        } else {
            Delivery::Unknown
        };
        let delivery = delivered(job, came);
        if rows && !once_more {
            self.end(&running, Err(JobError::lost_peer(delivery)));
            return self.stop_when_idle(ctx);
        }
        let supersede = SupersedeJob {
            job: job.clone(),
            attempt: running.attempt + 1,
            lost: self.peer,
            once_more,
        };
        let job_id = job.id;
        self.running.insert(job_id, running);
        self.cx
            .links
            .supersede
            .send(supersede)
            .into_actor(self)
            .map(move |won, act, ctx| {
                let again = once_more.then_some(Return::PeerLost { delivery });
                let won = matches!(won, Ok(Ok(true))).then_some(again.unwrap_or(Return::Gone));
                act.superseded(job_id, won, delivery, ctx);
            })
            .spawn(ctx);
    }

    fn superseded(
        &mut self,
        job_id: JobId,
        won: Option<Return>,
        delivery: Delivery,
        ctx: &mut Context<Self>,
    ) {
        let Some(running) = self.running.remove(&job_id) else {
            return;
        };
        match won {
            Some(why) => {
                let next = running.attempt + 1;
                self.give_back(job_id, running.session_id, next, why);
            }
            None => self.end(&running, Err(JobError::lost_peer(delivery))),
        }
        self.stop_when_idle(ctx);
    }

    fn stop_when_idle(&self, ctx: &mut Context<Self>) {
        if self.lingered && self.running.is_empty() {
            ctx.stop();
        }
    }
}

/// An end as the caller saw it.
fn as_seen_here(job: &Job, error: JobError) -> JobError {
    match error {
        JobError::RunnerFailed { message, delivery } => JobError::RunnerFailed {
            message,
            delivery: delivered(job, delivery),
        },
        error => error,
    }
}

/// How far a job had come as its caller saw it: the peer knows what it passed on, and not what of that is held
/// back here.
fn delivered(job: &Job, delivery: Delivery) -> Delivery {
    match (delivery, job.reply.is_committed()) {
        (Delivery::Unknown | Delivery::Started, true) => Delivery::Partial,
        (Delivery::Partial, false) => Delivery::Started,
        (delivery, _) => delivery,
    }
}
