//! The statements of one page, and where it ended.
//!
//! Mostly it is one statement. Where rows may share a place in the order ([`Ties::Grouped`]) they are first asked for
//! in the order of the columns alone, with one row more than the page may have, and only if that shows that the page
//! ends among rows that share a place, those are asked for in the order of their digests. The page behind it begins
//! with the rest of them. All of that happens in one transaction, so that it is about the same rows.

use sea_query::{Expr, SelectStatement};
use sha2::{Digest as _, Sha256};

use super::legs::{Ended, Kind, Leg};
use super::order::{Ordering, Term, Ties};
use super::shape::Column;
use super::watch::{Watch, null_of};
use super::{Builder, Statement};
use crate::bridge::encode::Columns;
use crate::bridge::keys::{KeyValue, Position, Tie, stale};
use crate::bridge::request::{Query, invalid};
use crate::bridge::{BridgeError, Execution, Outcome};

/// How long what stands in a cursor may be, in bytes: it comes back in a request, and in a header.
const MOST_LAST: usize = 32 * 1024;

/// What is asked for next.
#[derive(Debug)]
enum Next {
    /// The rows behind a place, or all.
    Behind(Option<Position>),
    /// The rows that share a place.
    Among(Vec<KeyValue>, Tie),
    /// Nothing more.
    Nothing,
}

/// One page of a query.
pub(in crate::bridge) struct Page<'a> {
    builder: Builder<'a>,
    query: &'a Query,
    ordering: Ordering,
    /// What stands for the columns that digests are of.
    of: String,
    pub(in crate::bridge) columns: Columns,
    /// The columns that are written, in order.
    pub(in crate::bridge) written: Vec<String>,
    /// What the types of a result tell.
    pub(in crate::bridge) watch: Watch,
    after: Option<Position>,
    next: Next,
    /// How many rows it may still have, and where the last one stands, if statements are chosen by that.
    remaining: u64,
    place: Option<Position>,
}

impl<'a> Page<'a> {
    /// Plans the page of a query.
    pub(in crate::bridge) fn new(
        mut builder: Builder<'a>,
        query: &'a Query,
        execution: &Execution,
    ) -> Result<Self, BridgeError> {
        let (written, names) = builder.written(query, execution);
        let mut read: Vec<_> = written.iter().map(|name| builder.column(name)).collect();
        read.sort_by(|a, b| a.name.cmp(&b.name));
        builder.read = read;
        let ordering = builder.ordering(query, &execution.paging)?;
        let after = match (&execution.paging.after, &ordering.not_pageable) {
            (None, _) => None,
            (Some(_), Some(reason)) => return Err(invalid("cursor", reason)),
            (Some(after), None) => Some(Position::from_json(after, ordering.columns().len())?),
        };
        let of = fingerprint(&builder.read);
        let tie = after.as_ref().and_then(|after| after.tie.as_ref());
        if tie.is_some_and(|tie| tie.of.as_ref() != Some(&of)) {
            return Err(invalid(
                "cursor",
                "this cursor stands among rows that share a key, which are told apart by what is read of them: go on with the same `select`",
            ));
        }
        let next = match &after {
            Some(Position {
                values,
                tie: Some(tie),
            }) if ordering.ties == Ties::Grouped => Next::Among(values.clone(), tie.clone()),
            after => Next::Behind(after.clone()),
        };
        let types = written
            .iter()
            .map(|column| execution.types.get(column).copied());
        let tells_place = ordering.is_paged && ordering.not_pageable.is_none();
        let columns = Columns {
            types: types.collect(),
            names,
            // What is grouped says so by itself.
            keys: match tells_place && ordering.ties != Ties::Grouped {
                true => ordering.terms.len(),
                false => 0,
            },
        };
        Ok(Self {
            builder,
            query,
            ordering,
            of,
            columns,
            written,
            watch: Watch::default(),
            after,
            next,
            remaining: query.limit.unwrap_or(u64::MAX),
            place: None,
        })
    }

    /// How many long texts rows are ordered by.
    pub(in crate::bridge) fn long_keys(&self) -> usize {
        self.ordering.long_keys()
    }

    /// The next statement, and which of its rows are the page's; `None` when it is complete.
    pub(in crate::bridge) fn next<R>(
        &mut self,
    ) -> Result<Option<(Statement, Leg<R>)>, BridgeError> {
        let grouped = self.ordering.ties == Ties::Grouped;
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        let mut select = self.builder.from(&self.query.filter)?;
        let (kind, limit, offset) = match &next {
            Next::Nothing => return Ok(None),
            Next::Behind(place) => {
                if let Some(place) = place {
                    select.and_where(self.builder.behind(&self.ordering, place)?);
                }
                let tie = place.as_ref().and_then(|place| place.tie.as_ref());
                let repeated = tie.map_or(0, |tie| tie.repeated);
                let offset = self.query.offset.unwrap_or(0).saturating_add(repeated);
                match grouped {
                    // One more, to see whether it shares its place with the last.
                    true => (Kind::Spread, Some(self.remaining.saturating_add(1)), offset),
                    false => (Kind::Whole, self.query.limit, offset),
                }
            }
            Next::Among(key, tie) => {
                select.and_where(self.builder.among(&self.ordering, key, tie)?);
                // One that was given before comes again, and is left out then.
                let again = u64::from(tie.early.is_some());
                let limit = self.remaining.saturating_add(again);
                (Kind::among(tie), Some(limit), tie.repeated)
            }
        };
        self.columns_of(&mut select, matches!(next, Next::Among(..)));
        self.builder.cut(&mut select, limit, offset);
        let leg = Leg::new(
            kind,
            self.columns.names.len(),
            self.ordering.columns().len(),
            self.remaining,
        );
        if let Next::Among(key, _) = next {
            self.next = Next::Among(key, Tie::default());
        }
        Ok(Some((self.builder.build(&select), leg)))
    }

    fn columns_of(&mut self, select: &mut SelectStatement, among: bool) {
        for name in &self.written {
            select.expr(self.builder.read(name));
        }
        let digest = Term::row_digest();
        let grouped = self.ordering.ties == Ties::Grouped;
        let keys = match grouped || self.columns.keys > 0 {
            true => self.ordering.terms.as_slice(),
            false => &[],
        };
        for term in keys.iter().chain(grouped.then_some(&digest)) {
            select.expr(self.builder.key(term));
        }
        let columns = self.written.len() + keys.len() + usize::from(grouped);
        if self.builder.is_watched() {
            let mut watch = self.builder.watch_written(&self.written);
            for (i, term) in keys.iter().enumerate() {
                watch.add(self.written.len() + i, term);
            }
            let ordered = self.query.order.iter().map(|order| order.column.as_str());
            let names = self.query.filter.fields().into_iter().chain(ordered);
            self.builder
                .watch_compared(names, &mut watch, columns, select, null_of);
            self.watch = watch;
        }
        if columns == 0 {
            // Rows of nothing are rows all the same.
            select.expr(Expr::cust("1"));
        }
        match among {
            true => self.builder.order_by(select, &digest),
            false => {
                for term in &self.ordering.terms {
                    self.builder.order_by(select, term);
                }
            }
        }
    }

    /// Takes what came of the last statement; `read` gives the value of a term from its bytes.
    pub(in crate::bridge) fn ended<R>(
        &mut self,
        leg: Leg<R>,
        read: impl Fn(&Term, &[u8]) -> Option<KeyValue>,
    ) -> Result<(), BridgeError> {
        let digest = |bytes: &[u8]| read(&Term::row_digest(), bytes).ok_or_else(stale);
        let (given, ended) = leg.ended();
        self.remaining -= given.min(self.remaining);
        let among = match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Among(key, _) => Some(key),
            Next::Behind(_) | Next::Nothing => None,
        };
        match ended {
            Ended::Whole | Ended::At(None) => {}
            Ended::At(Some(key)) => {
                self.place = Some(Position {
                    values: self.values(&key, &read)?,
                    tie: None,
                });
            }
            Ended::Tied { key, early } => {
                let values = self.values(&key, &read)?;
                let tie = Tie {
                    early: early.as_deref().map(digest).transpose()?,
                    of: Some(self.of.clone()),
                    ..Tie::default()
                };
                self.place = Some(Position {
                    values: values.clone(),
                    tie: Some(tie.clone()),
                });
                if self.remaining > 0 {
                    self.next = Next::Among(values, tie);
                }
            }
            Ended::Among {
                exhausted,
                digest: last,
                repeated,
                early,
            } => {
                let values = among.unwrap_or_default();
                let tie = Tie {
                    digest: last.as_deref().map(digest).transpose()?,
                    repeated,
                    early: early.as_deref().map(digest).transpose()?,
                    of: Some(self.of.clone()),
                };
                let place = Position {
                    values,
                    tie: (!exhausted).then_some(tie),
                };
                if exhausted && self.remaining > 0 {
                    self.next = Next::Behind(Some(place.clone()));
                }
                self.place = Some(place);
            }
        }
        Ok(())
    }

    fn values(
        &self,
        key: &[Vec<u8>],
        read: impl Fn(&Term, &[u8]) -> Option<KeyValue>,
    ) -> Result<Vec<KeyValue>, BridgeError> {
        let terms = self.ordering.columns().iter().zip(key);
        let values: Option<_> = terms.map(|(term, bytes)| read(term, bytes)).collect();
        values.ok_or_else(stale)
    }

    /// Says where the answer ended and what there is to be known of it. `place`: of the last row, as the encoder has
    /// it.
    pub(in crate::bridge) fn conclude(
        &self,
        outcome: Outcome,
        place: Option<(Vec<&[u8]>, u64)>,
        read: impl Fn(&Term, &[u8]) -> Option<KeyValue>,
    ) -> Result<Outcome, BridgeError> {
        let place = match &self.place {
            Some(place) => Some(place.clone()),
            None => self.place_of(outcome.rows, place, read)?,
        };
        let mut not_pageable = self.ordering.not_pageable.clone();
        let mut last = place.map(|place| place.to_json());
        if last.as_ref().is_some_and(|last| size(last) > MOST_LAST) {
            last = None;
            // A page that is not full is the last one.
            if self.query.limit.is_some_and(|limit| outcome.rows >= limit) {
                not_pageable = Some(
                    "the values that rows are ordered by are too long for a cursor; order by shorter ones, or use `offset`"
                        .to_owned(),
                );
            }
        }
        Ok(Outcome {
            not_pageable,
            warnings: self.ordering.warning.iter().cloned().collect(),
            last,
            ..outcome
        })
    }

    fn place_of(
        &self,
        rows: u64,
        place: Option<(Vec<&[u8]>, u64)>,
        read: impl Fn(&Term, &[u8]) -> Option<KeyValue>,
    ) -> Result<Option<Position>, BridgeError> {
        let Some((values, repeated)) = place.filter(|_| self.columns.keys > 0) else {
            return Ok(None);
        };
        let terms = self.ordering.terms.iter().zip(values);
        let values: Option<Vec<_>> = terms.map(|(term, value)| read(term, value)).collect();
        let mut place = Position {
            values: values.ok_or_else(stale)?,
            tie: None,
        };
        if self.ordering.ties == Ties::Ordered {
            let digest = place.values.pop();
            let goes_on = |after: &&Position| {
                let tie = after.tie.as_ref();
                repeated == rows
                    && after.values == place.values
                    && tie.is_some_and(|tie| tie.digest == digest)
            };
            let before = self.after.as_ref().filter(goes_on);
            let before = before.and_then(|after| after.tie.as_ref());
            place.tie = Some(Tie {
                repeated: repeated + before.map_or(0, |tie| tie.repeated),
                digest,
                early: None,
                of: Some(self.of.clone()),
            });
        }
        Ok(Some(place))
    }
}

fn size(last: &[serde_json::Value]) -> usize {
    last.iter().map(|value| value.to_string().len()).sum()
}

/// What stands for some columns, whatever they hold.
fn fingerprint(columns: &[Column]) -> String {
    let mut hash = Sha256::new();
    for column in columns {
        hash.update(column.name.as_bytes());
        hash.update([0]);
    }
    let hash = hash.finalize();
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
