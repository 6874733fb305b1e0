//! When to dial again. Pure: it is told how long the last connection lived and how it ended.

use std::time::Duration;

use rand::RngExt;

use crate::protocol::close;

/// The ceiling of the first wait.
const FIRST: Duration = Duration::from_millis(500);
/// The ceiling of every later wait.
const LONGEST: Duration = Duration::from_secs(30);
/// A connection that lived this long starts the waits over.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// A connection that lived shorter than this is not reconnected at once, whatever the gateway says: one
/// that accepts and goes away again would otherwise be dialled in a tight loop.
const AT_ONCE_AFTER: Duration = Duration::from_secs(1);

/// Full-jitter exponential backoff: a random wait below a ceiling that doubles.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait before the next try; each call raises the ceiling.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    /// The longest that the next wait can be.
    fn ceiling(&self) -> Duration {
        FIRST
            .saturating_mul(2_u32.saturating_pow(self.failures))
            .min(LONGEST)
    }

    /// How long to wait after a connection that lived for `lived` and was closed with `code`, if any.
    pub fn wait_after(&mut self, lived: Duration, code: Option<u16>) -> Duration {
        if lived >= HEALTHY_AFTER {
            self.failures = 0;
        }
        if code == Some(close::GOING_AWAY) && lived >= AT_ONCE_AFTER {
            return Duration::ZERO;
        }
        self.next_wait()
    }
}

/// Whether a close code says that coming back with this token is pointless, and why.
pub fn fatal(code: u16) -> Option<&'static str> {
    match code {
        close::TOKEN_REVOKED => {
            Some("the token was rotated, revoked or has expired; start the runner with the new one")
        }
        close::WRONG_RUNNER => Some(
            "SEMILAYER_RUNNER_ID names another runner than SEMILAYER_RUNNER_TOKEN belongs to; use the two that were \
             shown together",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_from_half_a_second_to_thirty_seconds() {
        let mut backoff = Backoff::default();
        let mut ceilings = Vec::new();
        for _ in 0..9 {
            ceilings.push(backoff.ceiling().as_millis());
            let ceiling = backoff.ceiling();
            assert!(backoff.next_wait() <= ceiling);
        }
        assert_eq!(
            ceilings,
            [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]
        );
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let waits: Vec<_> = (0..200)
            .map(|_| Backoff { failures: 10 }.next_wait())
            .collect();
        assert!(waits.iter().any(|w| *w < Duration::from_secs(10)));
        assert!(waits.iter().any(|w| *w > Duration::from_secs(20)));
    }

    #[test]
    fn only_a_healthy_connection_starts_over() {
        let mut backoff = Backoff { failures: 6 };
        backoff.wait_after(Duration::from_secs(59), Some(4008));
        assert_eq!(backoff.failures, 7);
        backoff.wait_after(Duration::from_secs(60), Some(4008));
        assert_eq!(backoff.failures, 1);
    }

    #[test]
    fn a_gateway_that_goes_away_is_reconnected_at_once_but_not_in_a_tight_loop() {
        let mut backoff = Backoff { failures: 10 };
        assert_eq!(
            backoff.wait_after(Duration::from_secs(5), Some(close::GOING_AWAY)),
            Duration::ZERO
        );
        let spun: Duration = (0..50)
            .map(|_| backoff.wait_after(Duration::ZERO, Some(close::GOING_AWAY)))
            .sum();
        assert!(spun > Duration::ZERO);
    }

    #[test]
    fn two_codes_are_final() {
        assert!(fatal(4001).is_some() && fatal(4004).is_some());
        for code in [1000, 1001, 1006, 4002, 4008, 4009] {
            assert_eq!(fatal(code), None);
        }
    }
}
