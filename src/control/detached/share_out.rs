//! Which pending jobs a gateway takes: decisions without I/O and without a clock.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::SourceId;

/// How long a source rests after one of its jobs found nobody, the first time and at most.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(15);

/// A source with pending jobs that can be executed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) source: SourceId,
    /// How many are pending.
    pub(super) jobs: usize,
    /// How many could be executed here at this moment.
    pub(super) room: usize,
}

/// Shares `room` out among sources, one job each in turn, so that none keeps the others waiting.
pub(super) fn share_out(waiting: &[Waiting], mut room: usize) -> Vec<(SourceId, u32)> {
    let mut shares = vec![0; waiting.len()];
    let mut gave = true;
    while room > 0 && gave {
        gave = false;
        for (share, source) in shares.iter_mut().zip(waiting) {
            if room > 0 && *share < source.jobs.min(source.room) {
                *share += 1;
                room -= 1;
                gave = true;
            }
        }
    }
    let shares = shares.into_iter().zip(waiting);
    shares
        .filter(|(share, _)| *share > 0)
        .map(|(share, source)| (source.source, u32::try_from(share).unwrap_or(u32::MAX)))
        .collect()
}

/// Sources whose jobs were taken and found nobody after all: they are left alone for a while, longer each
/// time, so that a job does not go back and forth.
#[derive(Debug, Default)]
pub(super) struct Resting(HashMap<SourceId, Rest>);

#[derive(Debug)]
struct Rest {
    times: u32,
    until: Instant,
}

impl Resting {
    /// One of its jobs found nobody.
    pub(super) fn failed(&mut self, source: SourceId, now: Instant) {
        // What has not failed for long is forgotten, so that this holds few.
        self.0.retain(|_, rest| now < rest.until + 2 * LONGEST_REST);
        let rest = self.0.entry(source).or_insert(Rest {
            times: 0,
            until: now,
        });
        // Many at once are one failure.
        if rest.times == 0 || rest.until <= now {
            let pause = FIRST_REST * 2u32.saturating_pow(rest.times.min(8));
            rest.until = now + pause.min(LONGEST_REST);
            rest.times += 1;
        }
    }

    /// One of its jobs found somebody.
    pub(super) fn succeeded(&mut self, source: SourceId) {
        self.0.remove(&source);
    }

    /// The sources to leave alone.
    pub(super) fn at(&self, now: Instant) -> HashSet<SourceId> {
        let resting = self.0.iter().filter(|(_, rest)| now < rest.until);
        resting.map(|(source, _)| *source).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_goes_round_and_nobody_gets_more_than_there_is_to_do_or_to_do_it() {
        type Case = (&'static [(usize, usize)], usize, &'static [u32]);
        let table: [Case; 7] = [
            (&[], 8, &[]),
            (&[(3, 9)], 8, &[3]),
            (&[(9, 3)], 8, &[3]),
            (&[(9, 9), (9, 9)], 8, &[4, 4]),
            (&[(1000, 64), (1, 64), (2, 64)], 8, &[5, 1, 2]),
            (&[(9, 0), (9, 9)], 4, &[0, 4]),
            (&[(9, 9), (9, 9), (9, 9)], 2, &[1, 1, 0]),
        ];
        for (sources, room, expected) in table {
            let waiting: Vec<_> = sources
                .iter()
                .map(|&(jobs, room)| Waiting {
                    source: SourceId::new(),
                    jobs,
                    room,
                })
                .collect();
            let shares: HashMap<_, _> = share_out(&waiting, room).into_iter().collect();
            let shares: Vec<_> = waiting
                .iter()
                .map(|waiting| shares.get(&waiting.source).copied().unwrap_or(0))
                .collect();
            assert_eq!(shares, expected, "{sources:?} in {room}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_rests_longer_each_time_and_not_for_ever() {
        let (source, mut resting) = (SourceId::new(), Resting::default());
        let mut now = Instant::now();
        for pause in [1, 2, 4, 8, 15, 15] {
            resting.failed(source, now);
            resting.failed(source, now);
            let end = now + Duration::from_secs(pause);
            assert!(
                resting.at(end - Duration::from_millis(1)).contains(&source),
                "{pause}"
            );
            assert!(resting.at(end).is_empty(), "{pause}");
            now = end;
        }
        resting.succeeded(source);
        resting.failed(source, now);
        assert!(resting.at(now + FIRST_REST).is_empty());
        resting.failed(SourceId::new(), now + 4 * LONGEST_REST);
        assert_eq!(resting.0.len(), 1, "the other one is forgotten");
    }
}
