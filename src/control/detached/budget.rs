//! How much memory the results that are being collected take together.
//!
//! Nobody knows in advance how large a result becomes, so memory is handed out as they grow. When it is all
//! taken, the results that grow wait for one that is done; and so that they cannot all wait for each other,
//! there is one reserve that is large enough for a whole result: whoever has it can always go on.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one permit stands for.
const UNIT: usize = 16 * 1024;

/// The memory of all results, beside the reserve; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    pool: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

/// The memory of one result, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    units: usize,
    pooled: Option<OwnedSemaphorePermit>,
    reserved: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// That many bytes, and a reserve beside them.
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            pool: Arc::new(Semaphore::new(bytes / UNIT)),
            reserve: Arc::new(Semaphore::new(1)),
        }
    }

    /// An empty share.
    pub(super) fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            units: 0,
            pooled: None,
            reserved: None,
        }
    }
}

impl Share {
    /// Grows the share to that many bytes, and waits for as long as others have them.
    pub(super) async fn grow_to(&mut self, bytes: usize) {
        let units = bytes.div_ceil(UNIT);
        let more = units.saturating_sub(self.units);
        if more == 0 || self.reserved.is_some() {
            return;
        }
        let Budget { pool, reserve } = self.budget.clone();
        tokio::select! {
            biased;
            // Neither semaphore is ever closed.
            Ok(more) = pool.acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX)) => {
                match &mut self.pooled {
                    Some(pooled) => pooled.merge(more),
                    None => self.pooled = Some(more),
                }
                self.units = units;
            }
            Ok(reserve) = reserve.acquire_owned() => self.reserved = Some(reserve),
            else => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn grows(share: &mut Share, units: usize) -> bool {
        timeout(Duration::from_millis(1), share.grow_to(units * UNIT))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn one_can_always_go_on_and_the_others_wait_for_it() {
        let budget = Budget::new(4 * UNIT);
        let (mut a, mut b, mut c) = (budget.share(), budget.share(), budget.share());
        assert!(grows(&mut a, 2).await);
        assert!(grows(&mut b, 2).await);
        assert!(grows(&mut a, 100).await, "it has the reserve");
        assert!(grows(&mut a, 1000).await);
        assert!(!grows(&mut b, 3).await);
        assert!(!grows(&mut c, 1).await);
        drop(a);
        assert!(grows(&mut b, 4).await);
        assert!(grows(&mut c, 1).await, "from the reserve");
        drop((b, c));
        assert_eq!(
            (
                budget.pool.available_permits(),
                budget.reserve.available_permits()
            ),
            (4, 1)
        );
    }
}
