//! Which sessions are still there: a table of when each was last heard of, and what its silence means.
//!
//! Two heartbeats missed: the session gets no more jobs. Some seconds more: it is closed. The table judges and
//! does nothing; times are passed in.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::SessionId;

/// How many heartbeats a session may miss before it gets no more jobs.
const MISSED: u32 = 2;

/// What a session's silence has come to mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It gets no more jobs until it is heard of again.
    Unroutable,
    /// It is to be closed.
    Close,
}

/// When each session was last heard of.
#[derive(Debug)]
pub struct Liveness {
    close_after_unroutable: Duration,
    sessions: HashMap<SessionId, Entry>,
}

#[derive(Debug)]
struct Entry {
    heartbeat: Duration,
    seen: Instant,
    verdict: Option<Verdict>,
}

impl Liveness {
    /// A table of no sessions; a session is closed that long after it stopped getting jobs.
    pub fn new(close_after_unroutable: Duration) -> Self {
        Self {
            close_after_unroutable,
            sessions: HashMap::new(),
        }
    }

    /// Starts to watch a session that is to be heard of every `heartbeat`; it counts as heard of now.
    pub fn watch(&mut self, session: SessionId, heartbeat: Duration, now: Instant) {
        self.sessions.insert(
            session,
            Entry {
                heartbeat,
                seen: now,
                verdict: None,
            },
        );
    }

    /// Notes that a session was heard of; answers whether that makes it fit for jobs again. A session that was
    /// to be closed stays so: its close is under way.
    pub fn seen(&mut self, session: SessionId, now: Instant) -> bool {
        let Some(entry) = self.sessions.get_mut(&session) else {
            return false;
        };
        entry.seen = entry.seen.max(now);
        entry
            .verdict
            .take_if(|verdict| *verdict == Verdict::Unroutable)
            .is_some()
    }

    /// Stops watching a session.
    pub fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// What has changed for the worse since the last time; each verdict is given once per silence.
    pub fn judge(&mut self, now: Instant) -> Vec<(SessionId, Verdict)> {
        let mut verdicts = Vec::new();
        for (session, entry) in &mut self.sessions {
            let silence = now.saturating_duration_since(entry.seen);
            let unroutable_after = entry.heartbeat * MISSED;
            let verdict = match entry.verdict {
                Some(Verdict::Close) => continue,
                _ if silence >= unroutable_after + self.close_after_unroutable => Verdict::Close,
                None if silence >= unroutable_after => Verdict::Unroutable,
                _ => continue,
            };
            // A table that was not judged for long goes through both, so that who listens sees each step.
            if entry.verdict.is_none() && verdict == Verdict::Close {
                verdicts.push((*session, Verdict::Unroutable));
            }
            entry.verdict = Some(verdict);
            verdicts.push((*session, verdict));
        }
        verdicts
    }

    /// How long ago each session was heard of.
    pub fn last_seen(&self, now: Instant) -> impl Iterator<Item = (SessionId, Duration)> {
        self.sessions
            .iter()
            .map(move |(session, entry)| (*session, now.saturating_duration_since(entry.seen)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_is_judged_in_two_steps_each_told_once() {
        use Verdict::{Close, Unroutable};
        let (start, session) = (Instant::now(), SessionId::new());
        let mut table = Liveness::new(s(10));
        table.watch(session, s(25), start);
        for (at, expected) in [
            (0, vec![]),
            (49, vec![]),
            (50, vec![Unroutable]),
            (51, vec![]),
            (59, vec![]),
            (60, vec![Close]),
            (61, vec![]),
            (500, vec![]),
        ] {
            let verdicts: Vec<_> = table
                .judge(start + s(at))
                .into_iter()
                .map(|(_, verdict)| verdict)
                .collect();
            assert_eq!(verdicts, expected, "after {at} s");
        }
    }

    #[test]
    fn a_session_that_is_heard_of_again_gets_jobs_again() {
        let (start, session) = (Instant::now(), SessionId::new());
        let mut table = Liveness::new(s(10));
        table.watch(session, s(10), start);
        assert!(
            !table.seen(session, start + s(5)),
            "it never stopped being healthy"
        );
        assert_eq!(table.judge(start + s(24)), []);
        assert_eq!(table.judge(start + s(25)), [(session, Verdict::Unroutable)]);
        assert!(table.seen(session, start + s(26)));
        assert!(!table.seen(session, start + s(27)));
        assert_eq!(table.judge(start + s(46)), []);
        assert_eq!(table.judge(start + s(47)), [(session, Verdict::Unroutable)]);
    }

    #[test]
    fn a_session_that_is_being_closed_does_not_come_back() {
        let (start, session) = (Instant::now(), SessionId::new());
        let mut table = Liveness::new(s(10));
        table.watch(session, s(10), start);
        assert_eq!(
            table.judge(start + s(100)),
            [(session, Verdict::Unroutable), (session, Verdict::Close)],
            "both steps, though nobody looked between them"
        );
        assert!(!table.seen(session, start + s(101)));
        assert_eq!(table.judge(start + s(300)), []);
    }

    #[test]
    fn sessions_are_judged_apart_and_forgotten() {
        let start = Instant::now();
        let (a, b) = (SessionId::new(), SessionId::new());
        let mut table = Liveness::new(s(10));
        table.watch(a, s(10), start);
        table.watch(b, s(25), start);
        assert_eq!(table.judge(start + s(20)), [(a, Verdict::Unroutable)]);
        assert_eq!(table.last_seen(start + s(20)).count(), 2);
        table.forget(a);
        assert!(!table.seen(a, start + s(20)));
        assert_eq!(table.judge(start + s(49)), []);
        assert_eq!(
            table.last_seen(start + s(49)).collect::<Vec<_>>(),
            [(b, s(49))]
        );
    }

    #[test]
    fn time_that_arrives_out_of_order_does_no_harm() {
        let (start, session) = (Instant::now(), SessionId::new());
        let mut table = Liveness::new(s(10));
        table.watch(session, s(10), start + s(5));
        table.seen(session, start);
        assert_eq!(table.judge(start), []);
        assert_eq!(table.last_seen(start).next(), Some((session, s(0))));
        assert_eq!(table.judge(start + s(24)), []);
    }
}
