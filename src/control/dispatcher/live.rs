//! The jobs that this gateway has accepted and not yet seen end: a plain table. No I/O, no clock.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;
use tokio::time::Instant;

use super::Return;
use super::held::LaneId;
use crate::control::error::JobError;
use crate::control::job::Job;
use crate::control::session::{CancelCause, CancelExecution};
use crate::ids::{JobId, SessionId};

/// How often one job is handed to somebody before it is given up.
const MAX_PLACEMENTS: u32 = 16;

/// One accepted job.
pub(super) struct Live {
    pub(super) job: Arc<Job>,
    /// The attempt that comes next, or runs.
    pub(super) attempt: u32,
    /// Sessions that did not take it, which are not asked again.
    pub(super) declined: Vec<SessionId>,
    /// Why the last of them did not.
    pub(super) last_return: Option<Return>,
    /// Who has it; nobody while it is being placed.
    pub(super) executor: Option<Recipient<CancelExecution>>,
    /// When it is looked at next: its deadline, and some time later.
    due: Instant,
    /// Set when it is to end as soon as it is known where it is.
    pub(super) cancelled: Option<CancelCause>,
    /// How often it was offered or came back: an answer to an earlier offer is of no interest any more.
    pub(super) offer: u64,
    pub(super) accepted: Instant,
    /// When runners of it were first seen on the move, which earns it some patience.
    pub(super) moving_since: Option<Instant>,
    /// Why nobody could take it when it was offered last.
    pub(super) obstacle: Option<JobError>,
    /// What became of its first execution, if it is to be executed once more.
    pub(super) lost: Option<JobError>,
}

impl Live {
    /// Which jobs the same runners could take.
    pub(super) fn lane(&self) -> LaneId {
        (self.job.spec.source_id, self.job.spec.only_runner)
    }

    /// Until when it may be held: as long as its caller wants to wait, and for a while when its runners are only
    /// on the move; never beyond its deadline. Another gateway's job is held there.
    pub(super) fn hold_until(&self, moving_grace: Duration) -> Option<Instant> {
        if self.job.only_session.is_some() {
            return None;
        }
        let asked = self.accepted + self.job.spec.wait;
        let moving = self.moving_since.map(|since| since + moving_grace);
        Some(
            moving
                .map_or(asked, |moving| moving.max(asked))
                .min(self.job.deadline),
        )
    }

    /// What to tell the caller of a job that nobody takes.
    pub(super) fn verdict(&self) -> Option<JobError> {
        // That its runner was lost in the middle says more than that there is no other.
        self.lost.clone().or_else(|| self.obstacle.clone())
    }
}

/// How often a job's deadline has been called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// Whoever has it is to end it.
    First,
    /// It was not ended.
    Last,
}

/// What to do with a job that came back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Place it again.
    Place,
    /// It was handed round long enough.
    GiveUp,
}

/// The table of accepted jobs, ordered by deadline too.
#[derive(Default)]
pub(super) struct LiveJobs {
    by_id: HashMap<JobId, Live>,
    by_deadline: BTreeSet<(Instant, JobId)>,
}

impl LiveJobs {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn accept(&mut self, job: Arc<Job>, attempt: u32, now: Instant) {
        self.by_deadline.insert((job.deadline, job.id));
        let live = Live {
            attempt,
            declined: Vec::new(),
            last_return: None,
            executor: None,
            cancelled: None,
            due: job.deadline,
            offer: 0,
            accepted: now,
            moving_since: None,
            obstacle: None,
            lost: None,
            job,
        };
        self.by_id.insert(live.job.id, live);
    }

    pub(super) fn get(&mut self, id: JobId) -> Option<&mut Live> {
        self.by_id.get_mut(&id)
    }

    /// Notes that a session did not take the job, or lost it and may have it executed once more.
    pub(super) fn returned(
        &mut self,
        id: JobId,
        from: SessionId,
        attempt: u32,
        why: Return,
    ) -> Option<Next> {
        let live = self.by_id.get_mut(&id)?;
        live.executor = None;
        live.attempt = attempt;
        live.offer += 1;
        live.last_return = Some(why);
        live.declined.push(from);
        match why {
            Return::Lost {
                runner_id,
                delivery,
            } => live.lost = Some(JobError::lost(runner_id, delivery)),
            Return::PeerLost { delivery } => live.lost = Some(JobError::lost_peer(delivery)),
            _ => {}
        }
        let often = u32::try_from(live.declined.len()).unwrap_or(u32::MAX);
        Some(if often < MAX_PLACEMENTS {
            Next::Place
        } else {
            Next::GiveUp
        })
    }

    pub(super) fn end(&mut self, id: JobId) -> Option<Live> {
        let live = self.by_id.remove(&id)?;
        self.by_deadline.remove(&(live.due, id));
        Some(live)
    }

    /// What is due: each job once at its deadline, and once more if it is still here `grace` later.
    pub(super) fn overdue(&mut self, now: Instant, grace: Duration) -> Vec<(JobId, Call)> {
        let mut overdue = Vec::new();
        while let Some((due, id)) = self.by_deadline.first().copied() {
            if due > now {
                break;
            }
            self.by_deadline.pop_first();
            let Some(live) = self.by_id.get_mut(&id) else {
                continue;
            };
            if live.due == live.job.deadline {
                live.due += grace;
                self.by_deadline.insert((live.due, id));
                overdue.push((id, Call::First));
            } else {
                overdue.push((id, Call::Last));
            }
        }
        overdue
    }
}
