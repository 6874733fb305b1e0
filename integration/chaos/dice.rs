//! Choices that a seed repeats.

use std::time::Duration;

/// A small generator (SplitMix64): the same in every version of every crate.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    /// An index into a list of that many.
    pub(crate) fn index(&mut self, of: usize) -> usize {
        usize::try_from(self.below(of as u64)).unwrap()
    }

    pub(crate) fn duration(&mut self, from: Duration, to: Duration) -> Duration {
        let room = to.saturating_sub(from);
        from + Duration::from_micros(self.below(u64::try_from(room.as_micros()).unwrap()))
    }

    /// Another generator for somebody who rolls at a time of their own.
    pub(crate) fn split(&mut self) -> Self {
        Self(self.roll())
    }
}
