//! The states of a job and the steps between them. Who may take a step, and how it is written down, is
//! decided elsewhere; that a step exists is decided here.

use std::fmt;

/// How often a detached job is tried at most.
pub const MAX_ATTEMPTS: i32 = 3;

/// Whether a job whose runner was lost while it may have been executing may be executed once more: only if it
/// opted into that, and a caller who waits is given one more execution, not many.
pub const fn may_retry(opted_in: bool, retried: u32) -> bool {
    opted_in && retried == 0
}

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "gateway",
    derive(diesel::expression::AsExpression, diesel::deserialize::FromSqlRow)
)]
#[cfg_attr(feature = "gateway", diesel(sql_type = diesel::sql_types::Text))]
pub enum JobStatus {
    /// Nobody works on it.
    Pending,
    /// One gateway has it, and has certainly not sent it.
    Claimed,
    /// One gateway has it, and may have sent it.
    Dispatched,
    /// It ended with a result.
    Completed,
    /// It ended with an error.
    Failed,
    /// Its caller gave it up.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl JobStatus {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 7] = [
        Self::Pending,
        Self::Claimed,
        Self::Dispatched,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The name by which the state is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Claimed => "claimed",
            Self::Dispatched => "dispatched",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether the state is never left again.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Expired
        )
    }

    /// Whether a job in this state may go on to `next` in one step.
    pub const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            // Claiming; a synchronous job is claimed and marked in one step.
            (Self::Pending, Self::Claimed | Self::Dispatched) => true,
            // The mark, or the claim given back because it was certainly not sent.
            (Self::Claimed, Self::Dispatched | Self::Pending) => true,
            // The runner refused it, or it opted into a second attempt.
            (Self::Dispatched, Self::Pending | Self::Completed) => true,
            (from, Self::Failed | Self::Cancelled | Self::Expired) => !from.is_terminal(),
            _ => false,
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::JobStatus::{self, *};

    #[test]
    fn only_who_asked_for_it_is_retried_and_only_once() {
        use super::may_retry;
        for (opted_in, retried, may) in [
            (false, 0, false),
            (true, 0, true),
            (true, 1, false),
            (false, 1, false),
        ] {
            assert_eq!(may_retry(opted_in, retried), may, "{opted_in} {retried}");
        }
    }

    #[test]
    fn only_these_steps_exist() {
        let steps: [(JobStatus, &[JobStatus]); 7] = [
            (Pending, &[Claimed, Dispatched, Failed, Cancelled, Expired]),
            (Claimed, &[Pending, Dispatched, Failed, Cancelled, Expired]),
            (
                Dispatched,
                &[Pending, Completed, Failed, Cancelled, Expired],
            ),
            (Completed, &[]),
            (Failed, &[]),
            (Cancelled, &[]),
            (Expired, &[]),
        ];
        for (from, allowed) in steps {
            for next in JobStatus::ALL {
                assert_eq!(
                    from.may_become(next),
                    allowed.contains(&next),
                    "{from} -> {next}"
                );
            }
            assert_eq!(from.is_terminal(), allowed.is_empty(), "{from}");
        }
    }

    #[test]
    fn every_name_leads_back_to_its_state() {
        for status in JobStatus::ALL {
            assert_eq!(JobStatus::parse(status.as_str()), Some(status));
        }
        assert_eq!(JobStatus::parse("running"), None);
    }
}
