//! Which rows of a statement belong to a page, where rows may share a place in its order.
//!
//! The database gives rows that share a place in whatever order it likes, another one each time. A page that has all
//! of them or none of them is exact all the same; so rows are kept until one of another place has come, and the page
//! learns at its end whether it would cut through some that share theirs.

use crate::bridge::BridgeError;
use crate::bridge::keys::{KeyValue, Tie};

/// How much of rows that share a place is kept; where there is more, their order decides at once.
const MOST_HELD: usize = 1024 * 1024;

/// A row that can be kept.
pub(in crate::bridge) trait Held {
    /// How much memory it takes, in bytes.
    fn size(&self) -> usize;
}

/// What the rows of a statement are.
#[derive(Debug)]
pub(super) enum Kind {
    /// All are the page's.
    Whole,
    /// Ordered by the columns alone, with one row more than the page may have.
    Spread,
    /// Rows that share a place, ordered by their digest.
    Among {
        digest: Option<Vec<u8>>,
        repeated: u64,
        early: Option<Vec<u8>>,
    },
}

impl Kind {
    /// The rows that share a place, from where a page came to among them.
    pub(super) fn among(tie: &Tie) -> Self {
        let bytes = |value: &KeyValue| {
            let mut out = Vec::new();
            value.write(&mut out);
            out
        };
        Self::Among {
            digest: tie.digest.as_ref().map(bytes),
            repeated: tie.repeated,
            early: tie.early.as_ref().map(bytes),
        }
    }
}

/// How a statement ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As any does.
    Whole,
    /// Behind all rows that share the place of the last one, which has this key; `None`: without rows.
    At(Option<Vec<Vec<u8>>>),
    /// Before rows that share a place, one of which may have been given.
    Tied {
        key: Vec<Vec<u8>>,
        early: Option<Vec<u8>>,
    },
    /// Among rows that share a place, or behind them.
    Among {
        exhausted: bool,
        digest: Option<Vec<u8>>,
        repeated: u64,
        early: Option<Vec<u8>>,
    },
}

/// The rows of one statement on their way into a page.
#[derive(Debug)]
pub(in crate::bridge) struct Leg<R> {
    kind: Kind,
    /// Where the key of a row begins among its columns, and how many values it has; its digest is behind it.
    at: usize,
    keys: usize,
    /// How many rows the page can have, and how many were asked for among those that share a place.
    limit: u64,
    asked: u64,
    read: u64,
    given: u64,
    key: Option<Vec<Vec<u8>>>,
    digest: Vec<u8>,
    held: Vec<R>,
    held_bytes: usize,
    /// Whether one of the rows that share the place of the last was given, and its digest.
    early: Option<Vec<u8>>,
    /// Whether the page cannot have all rows that share the place of the last.
    tied: bool,
    ready: Vec<R>,
}

impl<R: Held> Leg<R> {
    /// Takes a row, and gives those that are certain now; `value` reads one of its columns as a key.
    pub(in crate::bridge) fn take(
        &mut self,
        row: R,
        mut value: impl FnMut(&R, usize, &mut Vec<u8>) -> Result<(), BridgeError>,
    ) -> Result<impl Iterator<Item = R> + '_, BridgeError> {
        self.read += 1;
        if let Kind::Whole = self.kind {
            self.ready.push(row);
            return Ok(self.ready.drain(..));
        }
        let mut read = |i: usize| {
            let mut bytes = Vec::new();
            value(&row, i, &mut bytes).map(|()| bytes)
        };
        let digest = read(self.at + self.keys)?;
        if let Kind::Spread = self.kind {
            let key = (self.at..self.at + self.keys)
                .map(read)
                .collect::<Result<_, _>>()?;
            self.spread(row, key, digest);
        } else {
            self.among(row, digest);
        }
        Ok(self.ready.drain(..))
    }

    fn spread(&mut self, row: R, key: Vec<Vec<u8>>, digest: Vec<u8>) {
        let is_surplus = self.read > self.limit;
        if self.key.as_ref() == Some(&key) {
            self.held_bytes += row.size();
            if is_surplus || self.held_bytes > MOST_HELD {
                self.tied = true;
                self.held.clear();
            } else {
                self.held.push(row);
            }
            return;
        }
        self.let_go();
        if !is_surplus {
            self.held_bytes = row.size();
            self.held.push(row);
            self.key = Some(key);
            self.digest = digest;
            self.early = None;
        }
    }

    fn among(&mut self, row: R, digest: Vec<u8>) {
        let Kind::Among {
            digest: last,
            repeated,
            early,
        } = &mut self.kind
        else {
            return;
        };
        let was_given = early.as_deref() == Some(&digest[..]);
        if !was_given && self.given == self.limit {
            // Asked for in case that one had been given.
            return;
        }
        match last.as_deref() == Some(&digest[..]) {
            true => *repeated += 1,
            false => (*last, *repeated) = (Some(digest), 1),
        }
        match was_given {
            true => *early = None,
            false => {
                self.given += 1;
                self.ready.push(row);
            }
        }
    }

    fn let_go(&mut self) {
        self.given += self.held.len() as u64;
        self.ready.append(&mut self.held);
    }

    /// Whether no further row of the statement is wanted.
    pub(in crate::bridge) fn is_done(&self) -> bool {
        self.tied
    }

    /// Whether a row is kept that could be given if the next one takes its time.
    pub(in crate::bridge) fn is_undecided(&self) -> bool {
        self.held.len() == 1 && self.early.is_none()
    }

    /// That row, before it is known whether others share its place.
    pub(in crate::bridge) fn early(&mut self) -> Option<R> {
        let row = self.is_undecided().then(|| self.held.pop()).flatten()?;
        self.early = Some(self.digest.clone());
        self.given += 1;
        Some(row)
    }

    /// The rows that were kept, when there are no more.
    pub(in crate::bridge) fn rest(&mut self) -> impl Iterator<Item = R> + '_ {
        if !self.tied {
            self.let_go();
        }
        self.ready.drain(..)
    }
}

impl<R> Leg<R> {
    /// For rows with `keys` values of a key behind `at` others, and a digest behind them; `limit`: of the page.
    pub(super) fn new(kind: Kind, at: usize, keys: usize, limit: u64) -> Self {
        let was_given = matches!(&kind, Kind::Among { early: Some(_), .. });
        Self {
            kind,
            at,
            keys,
            limit,
            asked: limit.saturating_add(u64::from(was_given)),
            read: 0,
            given: 0,
            key: None,
            digest: Vec::new(),
            held: Vec::new(),
            held_bytes: 0,
            early: None,
            tied: false,
            ready: Vec::new(),
        }
    }

    /// How many rows the page got, and how the statement ended.
    pub(super) fn ended(self) -> (u64, Ended) {
        let ended = match (self.kind, self.key) {
            (Kind::Whole, _) => Ended::Whole,
            (Kind::Spread, Some(key)) if self.tied => Ended::Tied {
                key,
                early: self.early,
            },
            (Kind::Spread, key) => Ended::At(key),
            (
                Kind::Among {
                    digest,
                    repeated,
                    early,
                },
                _,
            ) => Ended::Among {
                exhausted: self.read < self.asked,
                digest,
                repeated,
                early,
            },
        };
        (self.given, ended)
    }
}
