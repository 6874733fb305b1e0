//! The credit of one job: how many payload bytes it may still send. The session adds, the job takes.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

/// Uncompressed payload bytes that may be sent; below zero after a frame that overdrew.
#[derive(Debug)]
pub(in crate::runner) struct Credit {
    left: AtomicI64,
    more: Notify,
}

impl Credit {
    /// Starts with a whole window.
    pub(in crate::runner) fn new(window: u64) -> Self {
        Self {
            left: AtomicI64::new(i64::try_from(window).unwrap_or(i64::MAX)),
            more: Notify::new(),
        }
    }

    /// Adds what the gateway granted.
    pub(in crate::runner) fn add(&self, bytes: u32) {
        self.left.fetch_add(i64::from(bytes), Ordering::AcqRel);
        self.more.notify_one();
    }

    /// Waits until any credit is left, then takes `bytes` of it, overdrawing if need be. One job has one
    /// taker, so nothing can take the credit between the look and the taking.
    pub(in crate::runner) async fn take(&self, bytes: usize) {
        while self.left.load(Ordering::Acquire) <= 0 {
            self.more.notified().await;
        }
        self.left
            .fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn any_credit_allows_one_frame_which_may_overdraw() {
        let credit = Credit::new(10);
        assert!(credit.take(9).now_or_never().is_some());
        assert!(
            credit.take(100).now_or_never().is_some(),
            "one byte is left, so one more frame may go"
        );
        assert!(credit.take(1).now_or_never().is_none());
        credit.add(99);
        assert!(
            credit.take(1).now_or_never().is_none(),
            "the debt is paid, nothing is left"
        );
        credit.add(1);
        assert!(credit.take(1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_grant_wakes_the_waiting_job() {
        let credit = Credit::new(0);
        let (waited, ()) = tokio::join!(credit.take(5).map(|()| true), async {
            tokio::task::yield_now().await;
            credit.add(1);
        });
        assert!(waited);
    }
}
