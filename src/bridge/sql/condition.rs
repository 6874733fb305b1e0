//! What a filter means, in the SQL of each database.

use sea_query::{Expr, ExprTrait};
use serde_json::Value;

use super::number::Fitted;
use super::shape::{Class, Column};
use super::{Builder, Dialect, column, mysql, postgres, sqlite, truth};
use crate::bridge::BridgeError;
use crate::bridge::request::invalid;
use crate::query::filter::{Comparison, Filter, Pattern};
use crate::query::like::Like;

/// The most values that are bound one by one; more go as one list.
pub(super) const MAX_SINGLE_VALUES: usize = 200;

impl Builder<'_> {
    /// The condition that a filter stands for.
    pub(super) fn condition(&self, filter: &Filter) -> Result<Expr, BridgeError> {
        Ok(match filter {
            Filter::All(filters) => self
                .fold(filters, Expr::and)?
                .unwrap_or_else(|| truth(true)),
            Filter::Any(filters) => self
                .fold(filters, Expr::or)?
                .unwrap_or_else(|| truth(false)),
            Filter::Not(filter) => self.condition(filter)?.not(),
            Filter::Nothing => truth(false),
            Filter::IsNull { field, negated } => {
                let null = self.is_null(&self.column(field));
                if *negated { null.not() } else { null }
            }
            Filter::Compare { field, op, value } => {
                self.compare(&self.column(field), *op, value)?
            }
            Filter::In {
                field,
                values,
                negated,
            } => self.is_in(&self.column(field), values, *negated)?,
            Filter::Matches {
                field,
                pattern,
                text,
            } => self.matches(&self.column(field), *pattern, text)?,
            Filter::Contains { field, value } => self.contains(&self.column(field), value)?,
        })
    }

    fn is_null(&self, by: &Column) -> Expr {
        match (self.dialect, &by.class) {
            // Of a composite `IS NULL` asks whether all of its parts are.
            (Dialect::Postgres, Class::Other) => {
                Expr::cust_with_expr("($1 IS NOT DISTINCT FROM NULL)", column(&by.name))
            }
            _ => column(&by.name).is_null(),
        }
    }

    /// Joins conditions as a balanced tree: a chain of a thousand would be too deep for SQLite.
    fn fold(
        &self,
        filters: &[Filter],
        join: fn(Expr, Expr) -> Expr,
    ) -> Result<Option<Expr>, BridgeError> {
        let conditions = filters.iter().map(|filter| self.condition(filter));
        Ok(super::join(conditions.collect::<Result<_, _>>()?, join))
    }

    fn compare(&self, column: &Column, op: Comparison, value: &Value) -> Result<Expr, BridgeError> {
        let ordering = !matches!(op, Comparison::Eq | Comparison::Ne);
        if ordering && !column.has_equality {
            return Err(wrong(column, "values without an order", value));
        }
        match self.dialect {
            Dialect::Postgres => postgres::compare(self.shape, column, op, value),
            Dialect::MySql | Dialect::MariaDb => mysql::compare(self.dialect, column, op, value),
            Dialect::Sqlite => sqlite::compare(column, self.declared(column), op, value),
        }
    }

    fn is_in(&self, column: &Column, values: &[Value], negated: bool) -> Result<Expr, BridgeError> {
        match self.dialect {
            Dialect::Postgres => postgres::is_in(self.shape, column, values, negated),
            Dialect::MySql | Dialect::MariaDb => {
                mysql::is_in(self.dialect, column, values, negated)
            }
            Dialect::Sqlite => sqlite::is_in(column, self.declared(column), values, negated),
        }
    }

    /// The string operators; `$contains` on what holds values of its own is containment.
    fn matches(&self, column: &Column, pattern: Pattern, text: &str) -> Result<Expr, BridgeError> {
        match column.class {
            Class::Json | Class::Array(_) if pattern == Pattern::Contains => {
                return self.contains(column, &Value::from(text));
            }
            Class::Bytes => {
                return Err(invalid(
                    format!("where.{}", column.name),
                    format!("`{}` holds bytes, which are no text to match", column.name),
                ));
            }
            _ => {}
        }
        let like = Like::parse(pattern, text).map_err(|message| {
            invalid(
                format!("where.{}.{}", column.name, pattern.as_str()),
                message,
            )
        })?;
        Ok(match self.dialect {
            Dialect::Postgres => postgres::matches(self.shape, column, &like, text),
            Dialect::MySql | Dialect::MariaDb => mysql::matches(self.dialect, column, &like, text),
            Dialect::Sqlite => sqlite::matches(column, pattern, text),
        })
    }

    /// `$contains` as containment: in an array, or in JSON. A text has nothing but texts in it.
    fn contains(&self, column: &Column, value: &Value) -> Result<Expr, BridgeError> {
        match (&column.class, self.dialect) {
            (Class::Array(_), Dialect::Postgres) => postgres::array_contains(column, value),
            (Class::Json, Dialect::Postgres) => {
                Ok(postgres::json_contains(self.shape, column, value))
            }
            (Class::Json, Dialect::MySql | Dialect::MariaDb) => {
                Ok(mysql::json_contains(column, value))
            }
            (Class::Json | Class::Any, Dialect::Sqlite) => Ok(sqlite::json_contains(column, value)),
            _ => Ok(never(column)),
        }
    }
}

/// The comparison itself.
pub(super) fn comparison(left: Expr, op: Comparison, right: Expr) -> Expr {
    match op {
        Comparison::Eq => left.eq(right),
        Comparison::Ne => left.ne(right),
        Comparison::Gt => left.gt(right),
        Comparison::Gte => left.gte(right),
        Comparison::Lt => left.lt(right),
        Comparison::Lte => left.lte(right),
    }
}

/// False for every value, and unknown for null, as any comparison is.
pub(super) fn never(by: &Column) -> Expr {
    column(&by.name).is_null().and(Expr::cust("NULL"))
}

/// True for every value, and unknown for null.
pub(super) fn always(by: &Column) -> Expr {
    column(&by.name).is_not_null().or(Expr::cust("NULL"))
}

/// A comparison whose number was fitted to the column.
pub(super) fn fitted(
    by: &Column,
    fitted: Fitted,
    compare: impl FnOnce(Comparison, &crate::query::numeral::Numeral) -> Expr,
) -> Expr {
    match fitted {
        Fitted::Never => never(by),
        Fitted::Always => always(by),
        Fitted::Compare(op, number) => compare(op, &number),
    }
}

/// Says that a value cannot be one of the column's.
pub(super) fn wrong(by: &Column, holds: &str, value: &Value) -> BridgeError {
    let name = &by.name;
    let mut shown = value.to_string();
    if shown.chars().count() > 80 {
        shown = shown.chars().take(80).chain(['…']).collect();
    }
    invalid(
        format!("where.{name}"),
        format!("`{name}` holds {holds}, not {shown}"),
    )
}

/// The bytes of a bytes column, which are base64 in rows.
pub(super) fn bytes(by: &Column, value: &Value) -> Result<Vec<u8>, BridgeError> {
    use base64::Engine as _;
    let decoded = value
        .as_str()
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
    decoded.ok_or_else(|| wrong(by, "bytes: its values are base64", value))
}

/// One of the texts of an enum.
pub(super) fn label<'l>(
    by: &Column,
    labels: &'l [String],
    value: &Value,
) -> Result<(usize, &'l str), BridgeError> {
    let found = value
        .as_str()
        .and_then(|text| labels.iter().position(|label| label == text));
    found.map(|at| (at, labels[at].as_str())).ok_or_else(|| {
        let some = labels.iter().take(20).map(|label| format!("`{label}`"));
        let more = if labels.len() > 20 { ", …" } else { "" };
        let some = some.collect::<Vec<_>>().join(", ");
        wrong(by, &format!("one of {some}{more}"), value)
    })
}
