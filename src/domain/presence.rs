//! Which gateways are still there: a table of counters that each moves while it lives, and how long each has
//! stood still.
//!
//! No clock is compared with another machine's. Silence is the observer's own time, and counts only between
//! two reads of its own that both succeeded: whoever cannot see knows nothing about the others. The table
//! judges and does nothing.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::GatewayId;

/// A gateway whose counter has stood still for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The gateway.
    pub gateway: GatewayId,
    /// Where its counter stands: it is lost only if that is so still.
    pub renewals: i64,
}

/// How long the counter of each gateway has stood still.
#[derive(Debug)]
pub struct Presence {
    lease: Duration,
    longest_gap: Duration,
    last_read: Option<Instant>,
    peers: HashMap<GatewayId, Peer>,
}

#[derive(Debug)]
struct Peer {
    renewals: i64,
    silent: Duration,
}

impl Presence {
    /// A table of nobody. A gateway is lost after a `lease` without a renewal; counters are to be read every
    /// `renewal`.
    pub fn new(lease: Duration, renewal: Duration) -> Self {
        Self {
            lease,
            // An observer that did not read for longer stood still itself, and with it maybe everybody.
            longest_gap: renewal * 2,
            last_read: None,
            peers: HashMap::new(),
        }
    }

    /// Notes the counters of all the others, read just now; answers who is lost. Who is not listed any more
    /// is forgotten.
    pub fn read(
        &mut self,
        counters: impl IntoIterator<Item = (GatewayId, i64)>,
        now: Instant,
    ) -> Vec<Lost> {
        let gap = self
            .last_read
            .replace(now)
            .map(|last| now.saturating_duration_since(last))
            .filter(|gap| *gap <= self.longest_gap)
            .unwrap_or_default();
        let mut known = std::mem::take(&mut self.peers);
        let mut lost = Vec::new();
        for (gateway, renewals) in counters {
            let silent = match known.remove(&gateway) {
                Some(peer) if peer.renewals == renewals => peer.silent + gap,
                _ => Duration::ZERO,
            };
            if silent >= self.lease {
                lost.push(Lost { gateway, renewals });
            }
            self.peers.insert(gateway, Peer { renewals, silent });
        }
        lost
    }

    /// Notes that the counters could not be read: the time since the last good read says nothing.
    pub fn read_failed(&mut self) {
        self.last_read = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What an observer with a lease of 15 s and reads every 5 s is told, second by second: the peer's counter,
    /// or that the read failed. Answers at which seconds it took the peer for lost.
    fn verdicts(reads: &[(u64, Option<i64>)]) -> Vec<u64> {
        let (start, peer) = (Instant::now(), GatewayId::new());
        let mut presence = Presence::new(s(15), s(5));
        let mut lost = Vec::new();
        for (at, counter) in reads {
            match counter {
                Some(renewals) => {
                    let verdict = presence.read([(peer, *renewals)], start + s(*at));
                    if let Some(verdict) = verdict.first() {
                        assert_eq!((verdict.gateway, verdict.renewals), (peer, *renewals));
                        lost.push(*at);
                    }
                }
                None => presence.read_failed(),
            }
        }
        lost
    }

    #[test]
    fn a_counter_that_stands_still_for_a_lease_of_good_reads_is_lost() {
        for (what, reads, expected) in [
            (
                "it moves",
                vec![
                    (0, Some(1)),
                    (5, Some(2)),
                    (10, Some(3)),
                    (15, Some(4)),
                    (20, Some(5)),
                ],
                vec![],
            ),
            (
                "it stands still",
                vec![
                    (0, Some(1)),
                    (5, Some(1)),
                    (10, Some(1)),
                    (15, Some(1)),
                    (20, Some(1)),
                ],
                vec![15, 20],
            ),
            (
                "it moves at the last moment",
                vec![
                    (0, Some(1)),
                    (5, Some(1)),
                    (10, Some(1)),
                    (14, Some(2)),
                    (20, Some(2)),
                    (25, Some(2)),
                ],
                vec![],
            ),
            (
                "own reads failed for a minute",
                vec![
                    (0, Some(1)),
                    (5, Some(1)),
                    (10, None),
                    (20, None),
                    (40, None),
                    (60, None),
                    (65, Some(1)),
                    (70, Some(1)),
                    (74, Some(1)),
                    (75, Some(1)),
                ],
                vec![75],
            ),
            (
                "every second read fails",
                vec![
                    (0, Some(1)),
                    (5, None),
                    (10, Some(1)),
                    (15, None),
                    (20, Some(1)),
                    (25, None),
                    (300, Some(1)),
                ],
                vec![],
            ),
            (
                "the observer itself stood still for a minute",
                vec![(0, Some(1)), (5, Some(1)), (65, Some(1)), (66, Some(2))],
                vec![],
            ),
            (
                "both stood still, and only the observer came back",
                vec![
                    (0, Some(1)),
                    (60, Some(1)),
                    (65, Some(1)),
                    (70, Some(1)),
                    (75, Some(1)),
                ],
                vec![75],
            ),
        ] {
            assert_eq!(verdicts(&reads), expected, "{what}");
        }
    }

    #[test]
    fn gateways_are_judged_apart_and_forgotten_once_they_are_gone() {
        let start = Instant::now();
        let (a, b) = (GatewayId::new(), GatewayId::new());
        let mut presence = Presence::new(s(15), s(5));
        presence.read([(a, 1)], start);
        presence.read([(a, 1), (b, 7)], start + s(8));
        let lost = presence.read([(a, 1), (b, 7)], start + s(16));
        assert_eq!(
            lost,
            [Lost {
                gateway: a,
                renewals: 1
            }],
            "b is silent for 8 s only"
        );
        assert_eq!(presence.read([(b, 8)], start + s(20)), []);
        assert_eq!(
            presence.read([(a, 1), (b, 9)], start + s(25)),
            [],
            "who comes back is new"
        );
    }
}
