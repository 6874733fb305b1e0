//! The jobs that nobody can take at the moment and that wait for somebody: a plain table. No I/O, no clock.
//!
//! Jobs that the same runners could take wait in one lane, oldest first. A lane is tried one job at a time
//! and no further than the first that fails, so that thousands of held jobs cost one question each time.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio::time::Instant;

use crate::ids::{JobId, RunnerId, SourceId};

/// What jobs have in common that the same runners could take.
pub(super) type LaneId = (SourceId, Option<RunnerId>);

/// One job that waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) id: JobId,
    pub(super) lane: LaneId,
    /// By which it is ordered.
    pub(super) accepted: Instant,
    /// How long it waits.
    pub(super) until: Instant,
}

/// The table of held jobs.
#[derive(Default)]
pub(super) struct HeldJobs {
    by_id: HashMap<JobId, Waiting>,
    lanes: HashMap<LaneId, BTreeSet<(Instant, JobId)>>,
    by_end: BTreeSet<(Instant, JobId)>,
    /// Which lanes have a job under way to somebody, and which job it is.
    tried: HashMap<LaneId, JobId>,
    closed: bool,
}

impl HeldJobs {
    /// Holds a job; one that was just tried goes back to where it stood. Answers whether it is held.
    pub(super) fn hold(&mut self, job: Waiting) -> bool {
        if self.closed {
            return false;
        }
        self.tried(job.id, job.lane);
        self.by_end.insert((job.until, job.id));
        self.lanes
            .entry(job.lane)
            .or_default()
            .insert((job.accepted, job.id));
        self.by_id.insert(job.id, job);
        true
    }

    /// Lets all jobs go and holds none from now on.
    pub(super) fn close(&mut self) -> Vec<JobId> {
        self.closed = true;
        self.lanes.clear();
        self.by_end.clear();
        self.by_id.drain().map(|(id, _)| id).collect()
    }

    /// Whether somebody waits there already, whom a new job must not overtake.
    pub(super) fn is_waiting(&self, lane: LaneId) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// Lets a job go: it is held no longer. Answers whether it was.
    pub(super) fn release(&mut self, id: JobId) -> bool {
        let Some(Waiting {
            lane,
            accepted,
            until,
            ..
        }) = self.by_id.remove(&id)
        else {
            return false;
        };
        self.by_end.remove(&(until, id));
        if let Some(waiting) = self.lanes.get_mut(&lane) {
            waiting.remove(&(accepted, id));
            if waiting.is_empty() {
                self.lanes.remove(&lane);
            }
        }
        true
    }

    /// The oldest job of a lane, to be offered now; none while another one of it is.
    pub(super) fn next(&mut self, lane: LaneId) -> Option<JobId> {
        if self.tried.contains_key(&lane) {
            return None;
        }
        let (_, id) = *self.lanes.get(&lane)?.first()?;
        self.release(id);
        self.tried.insert(lane, id);
        Some(id)
    }

    /// What was offered has an answer; answers whether it came from here.
    pub(super) fn tried(&mut self, id: JobId, lane: LaneId) -> bool {
        let ours = self.tried.get(&lane) == Some(&id);
        if ours {
            self.tried.remove(&lane);
        }
        ours
    }

    /// The lanes in which somebody waits.
    pub(super) fn lanes(&self) -> HashSet<LaneId> {
        self.lanes.keys().copied().collect()
    }

    /// The jobs that have waited long enough; they are held no longer.
    pub(super) fn run_out(&mut self, now: Instant) -> Vec<JobId> {
        let mut run_out = Vec::new();
        while let Some((until, id)) = self.by_end.first().copied()
            && until <= now
        {
            self.release(id);
            run_out.push(id);
        }
        run_out
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Table {
        held: HeldJobs,
        start: Instant,
        lane: LaneId,
    }

    impl Table {
        fn new() -> Self {
            Self {
                held: HeldJobs::default(),
                start: Instant::now(),
                lane: (SourceId::new(), None),
            }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn hold(&mut self, lane: LaneId, accepted: u64, until: u64) -> JobId {
            let id = JobId::new();
            self.hold_again(id, lane, accepted, until);
            id
        }

        fn hold_again(&mut self, id: JobId, lane: LaneId, accepted: u64, until: u64) {
            let (accepted, until) = (self.at(accepted), self.at(until));
            self.held.hold(Waiting {
                id,
                lane,
                accepted,
                until,
            });
        }
    }

    #[test]
    fn a_lane_is_tried_oldest_first_and_one_at_a_time() {
        let mut table = Table::new();
        let lane = table.lane;
        let young = table.hold(lane, 2, 60);
        let old = table.hold(lane, 1, 60);
        assert_eq!(table.held.next(lane), Some(old));
        assert_eq!(table.held.next(lane), None, "one is under way");
        table.hold_again(old, lane, 1, 60);
        assert_eq!(
            table.held.next(lane),
            Some(old),
            "it did not lose its place"
        );
        assert!(table.held.tried(old, lane));
        assert_eq!(table.held.next(lane), Some(young));
        assert!(!table.held.tried(old, lane), "another one is");
        assert!(table.held.tried(young, lane));
        assert!(!table.held.is_waiting(lane));
        assert!(table.held.lanes().is_empty());
    }

    #[test]
    fn one_lane_does_not_wait_for_another() {
        let mut table = Table::new();
        let (lane, other) = (table.lane, (table.lane.0, Some(RunnerId::new())));
        table.hold(lane, 1, 60);
        let there = table.hold(other, 2, 60);
        assert!(table.held.next(lane).is_some());
        assert_eq!(table.held.next(other), Some(there));
    }

    #[test]
    fn jobs_run_out_when_their_own_time_is_over() {
        let mut table = Table::new();
        let lane = table.lane;
        let patient = table.hold(lane, 1, 60);
        let hasty = table.hold(lane, 2, 5);
        assert!(table.held.run_out(table.at(4)).is_empty());
        assert_eq!(table.held.run_out(table.at(5)), [hasty]);
        assert!(!table.held.release(hasty), "it is not held any more");
        assert_eq!(table.held.next(lane), Some(patient));
        assert!(
            table.held.run_out(table.at(100)).is_empty(),
            "what is offered may be taken at this moment"
        );
    }

    #[test]
    fn a_closed_table_has_let_all_go_and_holds_none() {
        let mut table = Table::new();
        let lane = table.lane;
        let held = table.hold(lane, 1, 60);
        assert_eq!(table.held.close(), [held]);
        table.hold(lane, 2, 60);
        assert!(table.held.lanes().is_empty());
        assert!(table.held.run_out(table.at(100)).is_empty());
    }

    #[test]
    fn a_job_that_is_let_go_leaves_nothing_behind() {
        let mut table = Table::new();
        let lane = table.lane;
        let gone = table.hold(lane, 1, 60);
        let next = table.hold(lane, 2, 60);
        assert!(table.held.release(gone));
        assert_eq!(table.held.next(lane), Some(next));
        assert!(table.held.run_out(table.at(100)).is_empty());
    }
}
