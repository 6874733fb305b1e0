//! Group commit: whatever arrived while the last transaction was under way goes into the next. Pure.

/// How many entries one transaction carries at most.
pub(super) const MAX_BATCH: usize = 512;

/// One lane: entries wait while a transaction is under way.
pub(super) struct Lane<T> {
    waiting: Vec<T>,
    committing: bool,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            committing: false,
        }
    }
}

impl<T> Lane<T> {
    /// How many entries wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether everything that was added has been written.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.committing
    }

    /// Adds an entry; answers the next transaction's entries if none is under way.
    pub(super) fn push(&mut self, entry: T) -> Option<Vec<T>> {
        self.waiting.push(entry);
        if self.committing { None } else { self.next() }
    }

    /// The transaction under way has ended; answers the entries of the next one, if any wait.
    pub(super) fn committed(&mut self) -> Option<Vec<T>> {
        self.committing = false;
        self.next()
    }

    /// The transaction under way did not happen; its entries go first again, when [`Self::committed`] is called.
    pub(super) fn put_back(&mut self, mut entries: Vec<T>) {
        entries.append(&mut self.waiting);
        self.waiting = entries;
    }

    fn next(&mut self) -> Option<Vec<T>> {
        if self.waiting.is_empty() {
            return None;
        }
        self.committing = true;
        let rest = self.waiting.split_off(self.waiting.len().min(MAX_BATCH));
        Some(std::mem::replace(&mut self.waiting, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrives_during_a_transaction_goes_into_the_next() {
        let mut lane = Lane::default();
        assert_eq!(lane.push(1), Some(vec![1]));
        assert_eq!(lane.push(2), None);
        assert_eq!(lane.push(3), None);
        assert_eq!(lane.committed(), Some(vec![2, 3]));
        assert!(!lane.is_idle());
        assert_eq!(lane.committed(), None);
        assert!(lane.is_idle());
        assert_eq!(lane.push(4), Some(vec![4]));
    }

    #[test]
    fn a_transaction_is_bounded_and_the_rest_waits_in_order() {
        let mut lane = Lane::default();
        lane.push(0);
        for n in 1..=MAX_BATCH + 5 {
            lane.push(n);
        }
        let batch = lane.committed().expect("entries wait");
        assert_eq!((batch.len(), batch[0]), (MAX_BATCH, 1));
        assert_eq!(lane.committed().map(|rest| rest.len()), Some(5));
    }

    #[test]
    fn entries_of_a_failed_transaction_go_first_again() {
        let mut lane = Lane::default();
        let batch = lane.push(1).expect("idle");
        lane.push(2);
        lane.put_back(batch);
        assert!(!lane.is_idle());
        assert_eq!(lane.committed(), Some(vec![1, 2]));
    }
}
