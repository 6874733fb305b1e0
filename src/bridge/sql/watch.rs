//! Whether a table of MySQL still is what its remembered shape says, told by the types of what comes back.
//!
//! What a value is bound as depends on the type of its column, so a filter would mean something else after a migration.
//! Columns that are compared and not read are asked for with each row, as a null that has their type.

use sea_query::{Expr, SelectStatement};

use super::order::{By, Term};
use super::shape::{Class, Column, Read};
use super::{Builder, Dialect, column, truth};
use crate::bridge::BridgeError;

/// The columns of a result whose types are known beforehand.
#[derive(Debug, Default)]
pub(in crate::bridge) struct Watch(Vec<(usize, Column)>);

impl Watch {
    /// Looks at a key, too: it is the column itself.
    pub(super) fn add(&mut self, at: usize, term: &Term) {
        match &term.by {
            By::Column(column) if is_telling(column) => self.0.push((at, column.clone())),
            By::Column(_) | By::RowDigest => {}
        }
    }

    /// Whether a column of the result has become another kind; `is_still` tells whether one may hold such values.
    pub(in crate::bridge) fn sees_change(&self, is_still: impl Fn(usize, &Class) -> bool) -> bool {
        let changed = |(at, column): &(usize, Column)| !is_still(*at, &column.class);
        self.0.iter().any(changed)
    }
}

/// What says that a table is not as it was, so that it is looked at anew.
pub(in crate::bridge) fn changed() -> BridgeError {
    BridgeError::QueryFailed("the table has changed meanwhile; ask again".into())
}

/// Whether its type alone says what values it holds.
fn is_telling(column: &Column) -> bool {
    let plain = matches!(
        column.class,
        Class::Integer
            | Class::Decimal
            | Class::Single
            | Class::Double
            | Class::Bool
            | Class::Text
            | Class::Bytes
            | Class::Date
            | Class::DateTime { .. }
            | Class::Time { .. }
    );
    plain && column.read == Read::Plain && !column.type_name.is_empty()
}

impl Builder<'_> {
    /// Whether a shape is held against the result: the other databases say by themselves that a table has changed.
    pub(super) fn is_watched(&self) -> bool {
        matches!(self.dialect, Dialect::MySql | Dialect::MariaDb)
    }

    /// What there is to be seen of the columns that are written as they are, from the first one of a result on.
    pub(super) fn watch_written(&self, written: &[String]) -> Watch {
        let columns = written.iter().map(|name| self.column(name)).enumerate();
        Watch(columns.filter(|(_, column)| is_telling(column)).collect())
    }

    /// Adds the columns that are compared and of which nothing else tells, from place `at` on; `null` makes a null of
    /// a column's type.
    pub(super) fn watch_compared<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        watch: &mut Watch,
        at: usize,
        select: &mut SelectStatement,
        null: impl Fn(&Column) -> Expr,
    ) {
        let mut at = at..;
        for name in names {
            let column = self.column(name);
            let is_seen = watch.0.iter().any(|(_, seen)| seen.name == column.name);
            if !is_seen && is_telling(&column) {
                select.expr(null(&column));
                watch.0.extend(at.next().map(|at| (at, column)));
            }
        }
    }
}

/// A null of a column's type beside its row.
pub(super) fn null_of(by: &Column) -> Expr {
    Expr::case(truth(false), column(&by.name)).into()
}
