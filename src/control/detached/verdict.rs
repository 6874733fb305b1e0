//! What becomes of a detached job when an attempt at it is over: a table.

use crate::bridge::BridgeError;
use crate::control::error::{Delivery, JobError};
use crate::domain::job::MAX_ATTEMPTS;

/// What is written down when an attempt did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody took it, so the attempt is still to be made: by whoever comes next.
    Release,
    /// It was not sent, but the store may say that it was.
    Recover,
    /// It was certainly not executed, though the store says that it was sent: its runner refused it, or its
    /// database could not answer. It is to be tried again, after a while.
    Refused,
    /// It may have been executed in part; all that it does is read, so it is tried once more.
    Retry,
    /// That is the end of it.
    End,
    /// It is somebody else's by now, who decides.
    Leave,
}

/// Judges an attempt by how it ended.
pub(super) fn verdict(error: &JobError, attempt: u32) -> Verdict {
    match error {
        JobError::NoRunnersOnline { .. } | JobError::RunnersBusy { .. } | JobError::Returned(_) => {
            Verdict::Release
        }
        JobError::StoreUnavailable => Verdict::Recover,
        JobError::RunnerFailed {
            delivery: Delivery::NotDelivered,
            ..
        } => Verdict::Refused,
        JobError::Source(BridgeError::Unavailable(_)) if may_try_again(attempt) => Verdict::Refused,
        JobError::RunnerFailed { .. } if may_try_again(attempt) => Verdict::Retry,
        JobError::ClaimLost => Verdict::Leave,
        JobError::RunnerFailed { .. }
        | JobError::Source(_)
        | JobError::Rejected { .. }
        | JobError::Timeout
        | JobError::Cancelled
        | JobError::ResultOverflow(_)
        | JobError::Internal => Verdict::End,
    }
}

/// Whether there is an attempt after this one.
pub(super) fn may_try_again(attempt: u32) -> bool {
    i32::try_from(attempt).is_ok_and(|attempt| attempt < MAX_ATTEMPTS)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_lost_runner_is_worth_another_attempt_and_only_nobody_s_job_is_given_back() {
        let retry_after = Duration::from_secs(1);
        let lost = JobError::RunnerFailed {
            message: String::new(),
            delivery: Delivery::Started,
        };
        let refused = JobError::RunnerFailed {
            message: String::new(),
            delivery: Delivery::NotDelivered,
        };
        let unavailable = JobError::Source(BridgeError::Unavailable(String::new()));
        let offline = JobError::NoRunnersOnline {
            reason: String::new(),
            retry_after,
        };
        let table = [
            (offline, 1, Verdict::Release),
            (JobError::RunnersBusy { retry_after }, 3, Verdict::Release),
            (JobError::StoreUnavailable, 1, Verdict::Recover),
            (refused.clone(), 1, Verdict::Refused),
            (refused, 3, Verdict::Refused),
            (lost.clone(), 1, Verdict::Retry),
            (lost.clone(), 2, Verdict::Retry),
            (lost.clone(), 3, Verdict::End),
            (lost, u32::MAX, Verdict::End),
            (JobError::ClaimLost, 1, Verdict::Leave),
            (unavailable.clone(), 1, Verdict::Refused),
            (unavailable, 3, Verdict::End),
            (
                JobError::Source(BridgeError::QueryFailed(String::new())),
                1,
                Verdict::End,
            ),
            (
                JobError::Source(BridgeError::Unreachable(String::new())),
                1,
                Verdict::End,
            ),
            (
                JobError::Rejected {
                    code: "invalid_request",
                    message: String::new(),
                },
                1,
                Verdict::End,
            ),
            (JobError::Timeout, 1, Verdict::End),
            (JobError::Cancelled, 1, Verdict::End),
            (JobError::ResultOverflow(String::new()), 1, Verdict::End),
            (JobError::Internal, 1, Verdict::End),
        ];
        for (error, attempt, expected) in table {
            assert_eq!(verdict(&error, attempt), expected, "{error:?} at {attempt}");
        }
    }
}
