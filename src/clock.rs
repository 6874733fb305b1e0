//! The wall clock, passed to whoever needs it, and [`UtcTime`], the only form in which a time is stored.
//!
//! Durations and deadlines are measured with `tokio::time::Instant`; the wall clock only stamps records.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A point in time at microsecond precision, which is what both stores keep.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(
    feature = "gateway",
    derive(
        diesel::expression::AsExpression,
        diesel::deserialize::FromSqlRow,
        utoipa::ToSchema
    )
)]
#[cfg_attr(feature = "gateway", diesel(sql_type = diesel::sql_types::Timestamp))]
pub struct UtcTime(DateTime<Utc>);

impl UtcTime {
    /// Truncates to microseconds, so that a stored time compares equal to the one in memory.
    pub fn new(time: DateTime<Utc>) -> Self {
        Self(time.trunc_subsecs(6))
    }

    /// The time as chrono knows it.
    pub fn get(self) -> DateTime<Utc> {
        self.0
    }

    /// This time moved forward.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self::new(self.0 + by)
    }

    /// This time moved back.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self::new(self.0 - by)
    }
}

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl fmt::Debug for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A measurement that took longer says too little about when it was made.
const LONGEST_ROUND_TRIP: Duration = Duration::from_secs(1);

/// Tells the wall-clock time. Built once in `main` and passed; in tests it follows tokio's paused time.
///
/// Machines disagree about the time. Where several write to one store, each keeps the distance between its
/// own clock and the store's in here, and all of them tell the store's time. Clones share the distance.
#[derive(Debug, Clone)]
pub struct Clock {
    source: Source,
    /// Microseconds by which the store's clock is ahead of the machine's.
    offset: Arc<AtomicI64>,
}

#[derive(Debug, Clone)]
enum Source {
    System,
    Tokio {
        start: DateTime<Utc>,
        since: Instant,
    },
}

impl Clock {
    /// The machine's own clock.
    pub fn system() -> Self {
        Self::of(Source::System)
    }

    /// A clock that starts at `start` and moves as tokio's time does, also when that is paused.
    pub fn following_tokio(start: DateTime<Utc>) -> Self {
        Self::of(Source::Tokio {
            start,
            since: Instant::now(),
        })
    }

    fn of(source: Source) -> Self {
        Self {
            source,
            offset: Arc::default(),
        }
    }

    /// The current time.
    pub fn now(&self) -> UtcTime {
        let offset = TimeDelta::microseconds(self.offset.load(Ordering::Relaxed));
        UtcTime::new(self.unadjusted() + offset)
    }

    /// From now on this clock and its clones tell the time of another one, which said `theirs` half a
    /// `round_trip` ago. A measurement that took long is ignored.
    pub fn follow(&self, theirs: UtcTime, round_trip: Duration) {
        if round_trip > LONGEST_ROUND_TRIP {
            return;
        }
        let then = self.unadjusted() - round_trip / 2;
        let ahead = theirs.get() - then;
        self.offset.store(
            ahead.num_microseconds().unwrap_or_default(),
            Ordering::Relaxed,
        );
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn unadjusted(&self) -> DateTime<Utc> {
        match &self.source {
            Source::System => Utc::now(),
            Source::Tokio { start, since } => *start + since.elapsed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_clock_tells_the_time_of_the_store_once_it_was_measured() {
        let start = DateTime::UNIX_EPOCH;
        let clock = Clock::following_tokio(start);
        let clone = clock.clone();
        let ahead = UtcTime::new(start).plus(Duration::from_secs(90));
        // The answer took 200 ms, so it is 100 ms old.
        clock.follow(ahead, Duration::from_millis(200));
        assert_eq!(clone.now(), ahead.plus(Duration::from_millis(100)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clone.now(), ahead.plus(Duration::from_millis(5100)));
        let behind = UtcTime::new(start).minus(Duration::from_secs(3));
        clone.follow(behind, Duration::ZERO);
        assert_eq!(clock.now(), behind);
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_during_a_measurement_ignores_it() {
        let clock = Clock::following_tokio(DateTime::UNIX_EPOCH);
        let (before, wrong) = (clock.now(), clock.now().plus(Duration::from_secs(60)));
        clock.follow(wrong, Duration::from_secs(20));
        assert_eq!(clock.now(), before);
    }
}
