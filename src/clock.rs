//! The wall clock, passed to whoever needs it, and [`UtcTime`], the only form in which a time is stored.
//!
//! Durations and deadlines are measured with `tokio::time::Instant`; the wall clock only stamps records.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
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

/// Tells the wall-clock time. Built once in `main` and passed; in tests it follows tokio's paused time.
#[derive(Debug, Clone)]
pub struct Clock(Source);

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
        Self(Source::System)
    }

    /// A clock that starts at `start` and moves as tokio's time does, also when that is paused.
    pub fn following_tokio(start: DateTime<Utc>) -> Self {
        Self(Source::Tokio {
            start,
            since: Instant::now(),
        })
    }

    /// The current time.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    pub fn now(&self) -> UtcTime {
        UtcTime::new(match &self.0 {
            Source::System => Utc::now(),
            Source::Tokio { start, since } => *start + since.elapsed(),
        })
    }
}
