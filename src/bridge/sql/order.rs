//! In which order rows come, and how a page goes on behind another.
//!
//! Rows are ordered by what was asked for and then by the primary key of the lens. Where the table's own catalogue
//! does not say that this gives every row a place of its own (a view, a key that may be null or repeat), a digest of
//! all that is read of a row decides among those that share one: rows that are equal even in that are the same to
//! whoever reads them, so it is enough to count how many of them there were. [`Ties`] says when the digest is looked at.

use sea_query::{Expr, ExprTrait, NullOrdering, Order as Direction, SelectStatement};

use super::condition::comparison;
use super::shape::{Class, Column, Order};
use super::{Builder, Dialect, column, join, mysql, postgres, sqlite};
use crate::bridge::BridgeError;
use crate::bridge::keys::{KeyValue, Position, Tie, stale};
use crate::bridge::request::{Query, invalid};
use crate::query::filter::Comparison;
use crate::query::operation::Paging;

/// One thing that rows are ordered by.
#[derive(Debug, Clone)]
pub(in crate::bridge) struct Term {
    pub(in crate::bridge) by: By,
    descending: bool,
    nullable: bool,
}

/// What a term is.
#[derive(Debug, Clone)]
pub(in crate::bridge) enum By {
    /// A column.
    Column(Column),
    /// A digest of all that is read of the row.
    RowDigest,
}

/// Whether rows may share a place in the order of the columns, and what is done about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::bridge) enum Ties {
    /// The columns give every row a place of its own.
    #[default]
    None,
    /// The last term of the order is the digest of the row.
    Ordered,
    /// Rows come in the order of the columns alone, as an index may have them; only those that share a place at the
    /// end of a page are ordered by their digest. See [`super::legs`].
    Grouped,
}

/// A complete order.
#[derive(Debug, Default)]
pub(in crate::bridge) struct Ordering {
    pub(in crate::bridge) terms: Vec<Term>,
    pub(in crate::bridge) ties: Ties,
    /// Why no page can follow in this order.
    pub(in crate::bridge) not_pageable: Option<String>,
    /// What is to be said of the primary key.
    pub(in crate::bridge) warning: Option<String>,
    /// Whether a page may follow, so that places are wanted back.
    pub(in crate::bridge) is_paged: bool,
}

impl Ordering {
    /// How many long texts rows are ordered by.
    pub(in crate::bridge) fn long_keys(&self) -> usize {
        let long = |term: &&Term| matches!(&term.by, By::Column(column) if column.is_long);
        self.terms.iter().filter(long).count()
    }

    /// The columns that rows are ordered by.
    pub(in crate::bridge) fn columns(&self) -> &[Term] {
        match self.ties {
            Ties::Ordered => &self.terms[..self.terms.len() - 1],
            Ties::None | Ties::Grouped => &self.terms,
        }
    }
}

impl Term {
    /// Whether what the database holds for equal has the same bytes when it is read as a key. Texts under most of
    /// MySQL's collations have not, nor have numbers that keep the zeros they were written with.
    fn is_equal_in_bytes(&self) -> bool {
        let By::Column(column) = &self.by else {
            return true;
        };
        match &column.class {
            Class::Integer | Class::Bool | Class::Date | Class::Uuid => true,
            Class::DateTime { .. } | Class::Time { zone: false } => true,
            Class::Enum(_) | Class::Set(_) => true,
            Class::Bytes => !column.is_long,
            Class::Text => {
                // Not `character`, whose trailing blanks count for nothing.
                let is_exact = matches!(column.type_name.as_str(), "text" | "name")
                    || column.type_name.starts_with("character varying");
                is_exact && !column.is_loose && column.charset.is_none()
            }
            _ => false,
        }
    }

    /// The digest of the whole row as a term.
    pub(super) fn row_digest() -> Self {
        Self {
            by: By::RowDigest,
            descending: false,
            nullable: false,
        }
    }
}

impl Builder<'_> {
    /// The order of a query.
    pub(in crate::bridge) fn ordering(
        &self,
        query: &Query,
        paging: &Paging,
    ) -> Result<Ordering, BridgeError> {
        let is_paged = !paging.keys.is_empty();
        let asked = if is_paged {
            paging.asked
        } else {
            query.order.len()
        };
        let mut ordering = Ordering {
            is_paged,
            ..Ordering::default()
        };
        for (at, order) in query.order.iter().enumerate() {
            let column = self.column(&order.column);
            let usable = match column.order {
                Order::Value | Order::Ordinal => true,
                _ if at >= asked => false,
                Order::Unspoken => {
                    ordering.not_pageable = Some(format!(
                        "rows ordered by column `{}` have no next page: values of type {} are not compared as they are ordered; use `offset`",
                        column.name, column.type_name
                    ));
                    true
                }
                Order::None => {
                    return Err(invalid(
                        "orderBy",
                        format!(
                            "rows cannot be ordered by `{}`: type {} has no order",
                            column.name, column.type_name
                        ),
                    ));
                }
            };
            if usable {
                ordering.terms.push(Term {
                    nullable: column.nullable,
                    by: By::Column(column),
                    descending: order.descending,
                });
            }
        }
        if is_paged && ordering.not_pageable.is_none() {
            let key = &paging.keys[asked.min(paging.keys.len())..];
            self.give_every_row_a_place(&mut ordering, key, query);
        }
        Ok(ordering)
    }

    fn give_every_row_a_place(&self, ordering: &mut Ordering, key: &[String], query: &Query) {
        let named: Vec<&str> = ordering
            .terms
            .iter()
            .filter_map(|term| match &term.by {
                By::Column(column) if !column.is_long => Some(column.name.as_str()),
                By::Column(_) | By::RowDigest => None,
            })
            .collect();
        if self.shape.is_identified_by(&named) || self.shape.columns().is_empty() {
            return;
        }
        if !key.is_empty() {
            ordering.warning = Some(format!(
                "no unique index over columns that cannot be null covers the primary key ({}): rows that share a key are told apart by all that is read of them, which takes longer, and cannot be where that changes by itself (such as `now()` in a view)",
                key.join(", ")
            ));
        }
        // SQLite sorts no more than what shares a place, and gives its rows one by one: it cannot keep some of them.
        let can_be_grouped = self.dialect != Dialect::Sqlite
            && query.limit.is_some()
            && query.offset.unwrap_or(0) == 0
            && ordering.terms.iter().all(Term::is_equal_in_bytes);
        if can_be_grouped {
            ordering.ties = Ties::Grouped;
        } else {
            ordering.ties = Ties::Ordered;
            ordering.terms.push(Term::row_digest());
        }
    }

    /// Nulls come last ascending and first descending: what PostgreSQL does by itself, also with an index.
    pub(super) fn order_by(&self, select: &mut SelectStatement, term: &Term) {
        let (direction, nulls) = if term.descending {
            (Direction::Desc, NullOrdering::First)
        } else {
            (Direction::Asc, NullOrdering::Last)
        };
        let by = match (&term.by, self.dialect) {
            (By::Column(by), Dialect::MySql | Dialect::MariaDb) => mysql::sorted_by(by),
            (By::Column(by), Dialect::Postgres) => postgres::sorted_by(self.shape, by),
            (By::Column(by), Dialect::Sqlite) => column(&by.name),
            (By::RowDigest, _) => self.row_digest(),
        };
        if term.nullable && self.dialect != Dialect::Postgres {
            select.order_by_expr_with_nulls(by, direction, nulls);
        } else {
            select.order_by_expr(by, direction);
        }
    }

    /// The term as its value is read, to be compared with later.
    pub(super) fn key(&self, term: &Term) -> Expr {
        match (&term.by, self.dialect) {
            (By::RowDigest, _) => self.row_digest(),
            (By::Column(by), Dialect::Postgres) => postgres::key(by),
            (By::Column(by), Dialect::MySql | Dialect::MariaDb) => mysql::key(by),
            (By::Column(by), Dialect::Sqlite) => column(&by.name),
        }
    }

    fn row_digest(&self) -> Expr {
        match self.dialect {
            Dialect::Postgres => postgres::row_digest(&self.read),
            Dialect::MySql | Dialect::MariaDb => mysql::row_digest(&self.read),
            Dialect::Sqlite => sqlite::row_digest(&self.read),
        }
    }

    /// The rows that come after a place; among rows that share it, those from its digest on.
    ///
    /// A row comes after when it is equal in the first terms and behind in the next one; so there is one alternative
    /// per term. The bound of the first term is said too: it is implied, but without it databases do not see that an
    /// index can start there.
    pub(super) fn behind(
        &self,
        ordering: &Ordering,
        place: &Position,
    ) -> Result<Expr, BridgeError> {
        let mut equal: Option<Expr> = None;
        let mut alternatives = Vec::new();
        let digest = match (&place.tie, ordering.ties) {
            (Some(tie), Ties::Ordered) => Some(tie.digest.as_ref().ok_or_else(stale)?),
            _ => None,
        };
        let values = place.values.iter().chain(digest);
        for (term, value) in ordering.terms.iter().zip(values) {
            let (after, same) = self.after(term, value)?;
            alternatives.extend(after.map(|after| match &equal {
                Some(equal) => equal.clone().and(after),
                None => after,
            }));
            equal = Some(match equal {
                Some(equal) => equal.and(same),
                None => same,
            });
        }
        if digest.is_some() {
            alternatives.extend(equal);
        }
        let first = match (ordering.terms.first(), place.values.first()) {
            (Some(term), Some(value)) if alternatives.len() > 1 => self.not_before(term, value)?,
            _ => None,
        };
        let any = join(alternatives, Expr::or).unwrap_or_else(|| super::truth(false));
        Ok(match first {
            Some(first) => first.and(any),
            None => any,
        })
    }

    /// The rows that share a place, from the digest of `tie` on.
    pub(super) fn among(
        &self,
        ordering: &Ordering,
        key: &[KeyValue],
        tie: &Tie,
    ) -> Result<Expr, BridgeError> {
        let mut same = Vec::new();
        for (term, value) in ordering.columns().iter().zip(key) {
            same.push(self.after(term, value)?.1);
        }
        if let Some(digest) = &tie.digest {
            let term = Term::row_digest();
            same.push(self.compare_term(&term, Comparison::Gte, self.bound(&term, digest)?));
        }
        Ok(join(same, Expr::and).unwrap_or_else(|| super::truth(true)))
    }

    /// A row behind in this term, if there can be one, and a row that is equal in it.
    fn after(&self, term: &Term, value: &KeyValue) -> Result<(Option<Expr>, Expr), BridgeError> {
        let by = self.compared(term);
        if *value == KeyValue::Null {
            let behind = term.descending.then(|| by.clone().is_not_null());
            return Ok((behind, by.is_null()));
        }
        let bound = self.bound(term, value)?;
        let than = |op| self.compare_term(term, op, bound.clone());
        let behind = if term.descending {
            than(Comparison::Lt)
        } else if term.nullable {
            than(Comparison::Gt).or(by.is_null())
        } else {
            than(Comparison::Gt)
        };
        Ok((Some(behind), than(Comparison::Eq)))
    }

    /// A row that is not before in this term, where that is one range of it.
    fn not_before(&self, term: &Term, value: &KeyValue) -> Result<Option<Expr>, BridgeError> {
        let is_range = *value != KeyValue::Null && (term.descending || !term.nullable);
        if !is_range {
            return Ok(None);
        }
        let op = if term.descending {
            Comparison::Lte
        } else {
            Comparison::Gte
        };
        Ok(Some(self.compare_term(term, op, self.bound(term, value)?)))
    }

    fn compare_term(&self, term: &Term, op: Comparison, bound: Expr) -> Expr {
        match (&term.by, self.dialect) {
            (By::Column(by), Dialect::Postgres) => {
                postgres::compare_as(by, self.compared(term), op, bound)
            }
            _ => comparison(self.compared(term), op, bound),
        }
    }

    /// The term as it is compared.
    fn compared(&self, term: &Term) -> Expr {
        match (&term.by, self.dialect) {
            (By::RowDigest, _) => self.row_digest(),
            (By::Column(by), Dialect::MySql | Dialect::MariaDb) => mysql::ordered_by(by),
            (By::Column(by), Dialect::Postgres) => postgres::compared(by),
            (By::Column(by), Dialect::Sqlite) => column(&by.name),
        }
    }

    /// The value of a term, as what the database ordered by.
    fn bound(&self, term: &Term, value: &KeyValue) -> Result<Expr, BridgeError> {
        let by = match &term.by {
            By::Column(by) => Some(by),
            By::RowDigest => None,
        };
        match self.dialect {
            Dialect::Postgres => postgres::key_value(by, value),
            Dialect::MySql | Dialect::MariaDb => mysql::key_value(by, value),
            Dialect::Sqlite => sqlite::key_value(by, value),
        }
    }
}
