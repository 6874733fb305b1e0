//! Jobs that nobody can take at the moment, and how long they wait for somebody.
//!
//! A job waits as long as its caller asked for (`Prefer: wait`), and for a short while unasked when its runners
//! are only on the move: connected and taking nothing new, or gone a moment ago in good order. So a rolling
//! restart shows no caller a 503, and a source whose runners are offline answers at once. Nothing is claimed
//! for a job that waits; a cancellation, a caller who goes away and the deadline end it here.
//!
//! Held jobs are offered again every `hold_retry`, and as soon as a job of the same lane has ended.

use std::time::Duration;

use actix::Context;
use tokio::time::Instant;

use super::held::{LaneId, Waiting};
use super::{Dispatcher, RETRY_OFFLINE, Return};
use crate::control::error::JobError;
use crate::control::picker::Unplaceable;
use crate::ids::JobId;

/// When to come back while everybody is busy.
const RETRY_BUSY: Duration = Duration::from_secs(1);

impl Dispatcher {
    /// A new job that may wait gets in line behind those that wait already; answers whether it did.
    pub(super) fn queue_up(&mut self, id: JobId) -> bool {
        let Some(live) = self.jobs.get(id) else {
            return false;
        };
        // Another gateway's job waits there.
        let patient = live.job.only_session.is_none() && !live.job.spec.wait.is_zero();
        let lane = live.lane();
        patient && self.held.is_waiting(lane) && self.hold(id)
    }

    /// Nobody can take this job now: it waits if it may, and is ended if not.
    pub(super) fn unplaced(&mut self, id: JobId, unplaceable: Unplaceable) {
        let Some(live) = self.jobs.get(id) else {
            return;
        };
        let came_back = matches!(
            live.last_return,
            // A gateway that was asked for a session it does not have, or does not know yet to be assigned,
            // will have heard of it in a moment.
            Some(
                Return::Draining
                    | Return::Gone
                    | Return::NotHere
                    | Return::Unassigned
                    | Return::Lost { .. }
                    | Return::PeerLost { .. }
            )
        );
        if came_back || matches!(unplaceable, Unplaceable::Moving { .. }) {
            live.moving_since.get_or_insert_with(Instant::now);
        }
        live.obstacle = Some(explain(unplaceable, live.last_return));
        if !self.hold(id) {
            self.give_up(id);
        }
    }

    /// Holds a job if it may wait any longer.
    fn hold(&mut self, id: JobId) -> bool {
        let Some(live) = self.jobs.get(id) else {
            return false;
        };
        let until = live.hold_until(self.timing.moving_grace);
        let Some(until) = until.filter(|until| *until > Instant::now()) else {
            return false;
        };
        // Who was busy may have room by then.
        live.declined.clear();
        self.held.hold(Waiting {
            id,
            lane: live.lane(),
            accepted: live.accepted,
            until,
        })
    }

    /// Offers the oldest job of a lane.
    pub(super) fn offer_next(&mut self, lane: LaneId, ctx: &mut Context<Self>) {
        if let Some(id) = self.held.next(lane) {
            self.place(id, ctx);
        }
    }

    /// An offer was answered. Where a job that had waited was taken, the next of its lane may be lucky too.
    pub(super) fn offered(&mut self, id: JobId, lane: LaneId, ctx: &mut Context<Self>) {
        if self.held.tried(id, lane) {
            self.offer_next(lane, ctx);
        }
    }

    /// Ends the jobs that have waited long enough. One that stood behind others all the time is offered once.
    pub(super) fn give_up_held(&mut self, now: Instant, ctx: &mut Context<Self>) {
        for id in self.held.run_out(now) {
            let never_offered = self
                .jobs
                .get(id)
                .is_some_and(|live| live.obstacle.is_none() && now < live.job.deadline);
            if never_offered {
                self.place(id, ctx);
            } else {
                self.give_up(id);
            }
        }
    }

    /// Ends a job for which nobody was found.
    pub(super) fn give_up(&mut self, id: JobId) {
        let verdict = self.jobs.get(id).and_then(|live| live.verdict());
        self.end_unplaced(id, verdict.unwrap_or_else(busy));
    }
}

/// What to tell a caller whose job nobody takes: a runner that declined says more than the table does.
fn explain(unplaceable: Unplaceable, last: Option<Return>) -> JobError {
    let reason = match (unplaceable, last) {
        (_, Some(Return::Unassigned)) => "its runners do not serve the source any more".to_owned(),
        (Unplaceable::Busy | Unplaceable::Declined(_), _) | (_, Some(Return::Busy)) => {
            return busy();
        }
        (Unplaceable::Offline { reason } | Unplaceable::Moving { reason }, None) => reason,
        (_, Some(Return::Draining)) => "its runners are draining".to_owned(),
        (
            _,
            Some(Return::Gone | Return::NotHere | Return::Lost { .. } | Return::PeerLost { .. }),
        ) => "its runners went offline".to_owned(),
    };
    JobError::NoRunnersOnline {
        reason,
        retry_after: RETRY_OFFLINE,
    }
}

pub(super) fn busy() -> JobError {
    JobError::RunnersBusy {
        retry_after: RETRY_BUSY,
    }
}
