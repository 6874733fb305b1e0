//! One job on its way through another gateway: sends it there and passes its answer on, no faster than the
//! caller reads.
//!
//! The body of the answer is read only while the caller has room, so TCP holds the peer back, and the peer its
//! runner: what is in memory here is a window and a frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::client::{PeerClient, PeerError};
use super::wire::{ExecuteRequest, Frames, PeerFrame};
use crate::control::dispatcher::Declined;
use crate::control::error::JobError;
use crate::control::job::Job;
use crate::control::reply::{Consumption, Finished, NotTaken};
use crate::control::session::CancelCause;
use crate::ids::SessionId;
use crate::protocol::DEFAULT_WINDOW_BYTES;

/// How many bytes of one job may be here unread.
const WINDOW: usize = DEFAULT_WINDOW_BYTES as usize;
/// What a batch costs beside its bytes, so that many small ones are bounded too.
const BATCH_COST: usize = 512;
/// How long a peer may take to say that it is at work; it says so before it looks at the job.
const HEAD: Duration = Duration::from_secs(5);
/// How long a peer gets to end a job itself at its deadline, which it does with better knowledge.
const LAST_CALL: Duration = Duration::from_millis(500);
/// How long the answer of a peer that is gone may stand still: what it sent before is still read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the link has to say to a forward under way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signal {
    /// The job is to end.
    pub(super) cancel: Option<CancelCause>,
    /// The peer is gone.
    pub(super) lost: bool,
}

/// How a forward ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The peer said how the job ended.
    Ended(Result<Finished, JobError>),
    /// The peer did not take it.
    Declined(Declined),
    /// The peer certainly never got it.
    NotReceived,
    /// The peer was lost, and may have executed it.
    Lost {
        /// Whether it had begun to answer.
        answered: bool,
        /// Whether rows had come.
        rows: bool,
    },
    /// The job was to end here.
    Cancelled(CancelCause),
}

/// One forward.
pub(super) struct Forward {
    pub(super) job: Arc<Job>,
    pub(super) attempt: u32,
    pub(super) session_id: SessionId,
    pub(super) client: PeerClient,
    pub(super) url: String,
    pub(super) signals: watch::Receiver<Signal>,
}

impl Forward {
    /// Sends the job and passes its answer on, until it ends or is to end. Dropped, it hangs up on the peer,
    /// which cancels the job at its database.
    pub(super) async fn run(self) -> Outcome {
        let pace = Arc::new(Pace::default());
        self.job.reply.attach(pace.clone());
        tokio::select! {
            outcome = self.exchange(&pace) => outcome,
            cause = cancelled(self.signals.clone()) => Outcome::Cancelled(cause),
            () = fell_silent(self.signals.clone(), &pace) => pace.lost(),
        }
    }

    async fn exchange(&self, pace: &Pace) -> Outcome {
        let request = self.request();
        let asked = tokio::time::timeout(HEAD, self.client.execute(&self.url, &request)).await;
        let mut answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error @ (PeerError::Unreachable(_) | PeerError::Refused(_)))) => {
                log::warn!(job_id:% = self.job.id, error:% = error; "job {} could not be handed to a peer: {error}", self.job.id);
                return Outcome::NotReceived;
            }
            Ok(Err(PeerError::Broken(error))) => {
                log::warn!(job_id:% = self.job.id, error:% = error; "a peer was lost while it was handed job {}", self.job.id);
                return Outcome::Lost {
                    answered: false,
                    rows: false,
                };
            }
            Err(_) => {
                log::warn!(job_id:% = self.job.id; "a peer does not answer, it may have job {}", self.job.id);
                return Outcome::Lost {
                    answered: false,
                    rows: false,
                };
            }
        };
        pace.heard();
        let mut frames = Frames::default();
        loop {
            loop {
                match frames.next_frame() {
                    Ok(Some(frame)) => {
                        if let Some(outcome) = self.pass_on(frame, pace).await {
                            return outcome;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        log::error!(job_id:% = self.job.id, error:% = error; "the answer of a peer cannot be read");
                        return pace.lost();
                    }
                }
            }
            match answer.chunk().await {
                Ok(Some(piece)) => {
                    pace.heard();
                    frames.push(&piece);
                }
                Ok(None) => return pace.lost(),
                Err(error) => {
                    log::warn!(job_id:% = self.job.id, error:% = error.without_url(); "the answer of a peer broke off");
                    return pace.lost();
                }
            }
        }
    }

    fn request(&self) -> ExecuteRequest {
        let mut spec = self.job.spec.clone();
        // Waiting for a runner is the origin's part.
        spec.wait = Duration::ZERO;
        // The peer knows nothing of earlier executions.
        spec.retry = self.job.may_be_executed_again();
        let remaining = self.job.deadline.saturating_duration_since(Instant::now());
        ExecuteRequest {
            job_id: self.job.id,
            attempt: self.attempt,
            session_id: self.session_id,
            spec,
            created_at: self.job.created_at,
            deadline_at: self.job.deadline_at,
            remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX),
        }
    }

    async fn pass_on(&self, frame: PeerFrame, pace: &Pace) -> Option<Outcome> {
        match frame {
            PeerFrame::Rows(batch) => {
                pace.room().await;
                pace.passing(batch.payload.len());
                match self.job.reply.rows(batch, usize::MAX) {
                    Ok(()) => None,
                    Err(NotTaken::Gone) => Some(Outcome::Cancelled(CancelCause::CallerGone)),
                    Err(NotTaken::Overflow) => Some(Outcome::Ended(Err(JobError::Internal))),
                }
            }
            PeerFrame::End(end) => Some(Outcome::Ended(end)),
            PeerFrame::Declined(declined) => Some(Outcome::Declined(declined)),
        }
    }
}

/// Waits until the job is to end; at its deadline the peer gets the first word.
async fn cancelled(mut signals: watch::Receiver<Signal>) -> CancelCause {
    let asked = signals.wait_for(|signal| signal.cancel.is_some()).await;
    let cause = asked.ok().and_then(|signal| signal.cancel);
    match cause {
        Some(CancelCause::Deadline) => tokio::time::sleep(LAST_CALL).await,
        Some(_) => {}
        // The link is gone, and the system with it.
        None => std::future::pending().await,
    }
    cause.unwrap_or(CancelCause::Deadline)
}

/// Waits until the peer is gone and has nothing more to say.
async fn fell_silent(mut signals: watch::Receiver<Signal>, pace: &Pace) {
    if signals.wait_for(|signal| signal.lost).await.is_err() {
        return std::future::pending().await;
    }
    loop {
        let before = pace.heard.load(Ordering::Relaxed);
        tokio::time::sleep(LAST_WORDS).await;
        let waits = pace.waits_for_reader.load(Ordering::Relaxed);
        if !waits && pace.heard.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Keeps the pace of the answer to that of its reader.
#[derive(Default)]
struct Pace {
    unread: AtomicUsize,
    taken: Notify,
    waits_for_reader: AtomicBool,
    /// Pieces of the answer that came.
    heard: AtomicU64,
    passed: AtomicBool,
}

impl Pace {
    async fn room(&self) {
        loop {
            let taken = self.taken.notified();
            if self.unread.load(Ordering::Acquire) < WINDOW {
                return;
            }
            self.waits_for_reader.store(true, Ordering::Relaxed);
            taken.await;
            self.waits_for_reader.store(false, Ordering::Relaxed);
        }
    }

    fn passing(&self, bytes: usize) {
        self.unread.fetch_add(bytes + BATCH_COST, Ordering::AcqRel);
        self.passed.store(true, Ordering::Relaxed);
    }

    fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    fn lost(&self) -> Outcome {
        Outcome::Lost {
            answered: self.heard.load(Ordering::Relaxed) > 0,
            rows: self.passed.load(Ordering::Relaxed),
        }
    }
}

impl Consumption for Pace {
    fn consumed(&self, bytes: usize) {
        self.unread.fetch_sub(bytes + BATCH_COST, Ordering::AcqRel);
        self.taken.notify_one();
    }
}
