//! When the catalogue is read, and who waits for which reading. Pure.
//!
//! One pass at a time. Whoever asks for one while another is under way waits for the next: the one under way may
//! have read already what has just been changed.

/// What a pass reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// What has changed since the last good one.
    Changes,
    /// Everything.
    All,
}

/// The pass under way and the next one, and who waits for each.
#[derive(Debug)]
pub(super) struct Passes<W> {
    under_way: Option<(Pass, Vec<W>)>,
    wanted: bool,
    all_wanted: bool,
    waiting: Vec<W>,
}

impl<W> Default for Passes<W> {
    fn default() -> Self {
        Self {
            under_way: None,
            wanted: false,
            all_wanted: false,
            waiting: Vec::new(),
        }
    }
}

impl<W> Passes<W> {
    /// Asks for a pass that begins from now on.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Asks for a pass over everything.
    pub(super) fn want_all(&mut self) {
        self.wanted = true;
        self.all_wanted = true;
    }

    /// Asks for a pass and waits for its end.
    pub(super) fn wait(&mut self, waiter: W) {
        self.wanted = true;
        self.waiting.push(waiter);
    }

    /// The pass to begin now, if one is wanted and none is under way.
    pub(super) fn begin(&mut self) -> Option<Pass> {
        if self.under_way.is_some() || !std::mem::take(&mut self.wanted) {
            return None;
        }
        let pass = if self.all_wanted {
            Pass::All
        } else {
            Pass::Changes
        };
        self.under_way = Some((pass, std::mem::take(&mut self.waiting)));
        Some(pass)
    }

    /// Notes how the pass under way has ended; answers who waited for it. One over everything that failed is
    /// made up for by the next.
    pub(super) fn ended(&mut self, well: bool) -> Vec<W> {
        let Some((pass, waiters)) = self.under_way.take() else {
            return Vec::new();
        };
        if well && pass == Pass::All {
            self.all_wanted = false;
        }
        waiters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_during_a_pass_waits_for_the_next() {
        let mut passes = Passes::default();
        assert_eq!(passes.begin(), None);
        passes.wait(1);
        passes.wait(2);
        assert_eq!(passes.begin(), Some(Pass::Changes));
        passes.wait(3);
        assert_eq!(passes.begin(), None, "one at a time");
        assert_eq!(passes.ended(true), [1, 2]);
        assert_eq!(passes.begin(), Some(Pass::Changes));
        assert_eq!(passes.ended(false), [3]);
        assert_eq!(passes.begin(), None, "who waited was told, and asks again");
    }

    #[test]
    fn a_pass_over_everything_is_made_up_for() {
        let mut passes = Passes::<()>::default();
        passes.want_all();
        assert_eq!(passes.begin(), Some(Pass::All));
        passes.ended(false);
        passes.want();
        assert_eq!(passes.begin(), Some(Pass::All));
        passes.ended(true);
        passes.want();
        assert_eq!(passes.begin(), Some(Pass::Changes));
    }
}
