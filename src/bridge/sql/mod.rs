//! Statements in the three dialects, built with sea-query: every value bound, every identifier quoted.
//!
//! What a condition means must not depend on the database: nulls have one place, the string operators take `% _ \`
//! literally and ignore case, and a value is bound as what its column is. The last needs the columns of the table,
//! its [`Shape`]. `condition.rs` is what filters mean, `order.rs` in which order rows come and how pages go on,
//! `page.rs` the statements of one page and `legs.rs` which of their rows are its own; `postgres.rs`, `mysql.rs` and `sqlite.rs` are how each database is told.

mod condition;
mod legs;
mod mysql;
mod number;
mod order;
mod page;
mod postgres;
mod shape;
mod sqlite;
mod watch;

use sea_query::{
    Expr, ExprTrait, IntoTableRef, MysqlQueryBuilder, PostgresQueryBuilder, SelectStatement,
    SqliteQueryBuilder, TableRef,
};

pub(super) use self::legs::{Held, Leg};
pub(super) use self::mysql::placed;
pub(super) use self::order::{By, Term};
pub(super) use self::page::Page;
pub(super) use self::postgres::checks;
pub(super) use self::shape::{Class, Column, Order, Read, Shape};
pub(super) use self::watch::{Watch, changed};
use super::BridgeError;
use super::Execution;
use super::request::{Query, Table};
use crate::query::filter::Filter;
use crate::query::lens::FieldType;
use crate::query::operation::ColumnTypes;

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    MySql,
    MariaDb,
    Sqlite,
}

/// A statement and the values that are bound to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) values: Vec<Param>,
}

impl Statement {
    /// A statement of our own making with texts bound to it.
    pub(super) fn fixed(sql: impl Into<String>, values: &[&str]) -> Self {
        Self {
            sql: sql.into(),
            values: values
                .iter()
                .map(|&value| Param::Text(value.to_owned()))
                .collect(),
        }
    }
}

/// A value that is bound to a statement.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Param {
    Text(String),
    Int(i64),
    UInt(u64),
    Single(f32),
    Double(f64),
    Bytes(Vec<u8>),
    /// Text in whatever encoding the database has it (SQLite).
    RawText(Vec<u8>),
    /// Many values as one (SQLite).
    List(Vec<Param>),
}

/// Values of kinds that sea-query does not have travel through it as bytes behind one of these.
const RAW_TEXT: u8 = 1;
const LIST: u8 = 2;
const BYTES: u8 = 0;

impl Param {
    fn of(value: sea_query::Value) -> Self {
        use sea_query::Value as V;
        match value {
            V::String(Some(text)) => Self::Text(text),
            V::Bool(Some(flag)) => Self::Int(flag.into()),
            V::TinyInt(Some(number)) => Self::Int(number.into()),
            V::SmallInt(Some(number)) => Self::Int(number.into()),
            V::Int(Some(number)) => Self::Int(number.into()),
            V::BigInt(Some(number)) => Self::Int(number),
            V::BigUnsigned(Some(number)) => Self::UInt(number),
            V::Float(Some(number)) => Self::Single(number),
            V::Double(Some(number)) => Self::Double(number),
            V::Bytes(Some(bytes)) => match bytes.split_first() {
                Some((&RAW_TEXT, text)) => Self::RawText(text.to_vec()),
                Some((&LIST, list)) => Self::List(sqlite::read_list(list)),
                Some((_, bytes)) => Self::Bytes(bytes.to_vec()),
                None => Self::Bytes(bytes),
            },
            // Nothing else is bound here; as text it would at least be refused by the database.
            other => Self::Text(format!("{other:?}")),
        }
    }
}

/// Bytes as a value of sea-query.
fn bytes_value(kind: u8, bytes: &[u8]) -> sea_query::Value {
    let mut value = Vec::with_capacity(bytes.len() + 1);
    value.push(kind);
    value.extend_from_slice(bytes);
    value.into()
}

/// Builds the statements on one table.
pub(super) struct Builder<'a> {
    pub(super) dialect: Dialect,
    pub(super) shape: &'a Shape,
    pub(super) types: &'a ColumnTypes,
    /// What is read of each row, for its digest.
    pub(super) read: Vec<Column>,
}

impl Builder<'_> {
    /// How many rows match.
    pub(super) fn count(&self, filter: &Filter) -> Result<(Statement, Watch), BridgeError> {
        let mut select = self.from(filter)?;
        select.expr(Expr::cust("COUNT(*)"));
        let mut watch = Watch::default();
        if self.is_watched() {
            let names = filter.fields().into_iter();
            self.watch_compared(names, &mut watch, 1, &mut select, |by| {
                let mut none = SelectStatement::new();
                none.from(table(&self.shape.table)).expr(column(&by.name));
                none.and_where(truth(false));
                Expr::SubQuery(None, Box::new(none.into()))
            });
        }
        Ok((self.build(&select), watch))
    }

    /// The columns that are written, and their output names.
    fn written(&self, query: &Query, execution: &Execution) -> (Vec<String>, Vec<String>) {
        let select = query.select.as_deref();
        match &execution.fields {
            Some(fields) => {
                let wanted = |column: &String| {
                    select.is_none_or(|select| select.iter().any(|name| name == column))
                };
                let wanted = fields.iter().filter(|(column, _)| wanted(column));
                wanted.cloned().unzip()
            }
            None => {
                let all = || {
                    self.shape
                        .columns()
                        .iter()
                        .map(|column| column.name.clone())
                };
                let columns = select.map_or_else(|| all().collect(), <[String]>::to_vec);
                (columns.clone(), columns)
            }
        }
    }

    fn cut(&self, select: &mut SelectStatement, limit: Option<u64>, offset: u64) {
        let limit = match limit {
            // Neither has an OFFSET without a LIMIT.
            None if offset > 0 && self.dialect != Dialect::Postgres => {
                Some(i64::MAX.unsigned_abs())
            }
            limit => limit,
        };
        if let Some(limit) = limit {
            select.limit(limit);
        }
        if offset > 0 {
            select.offset(offset);
        }
    }

    fn from(&self, filter: &Filter) -> Result<SelectStatement, BridgeError> {
        let mut select = SelectStatement::new();
        select.from(table(&self.shape.table));
        if !filter.is_everything() {
            select.and_where(self.condition(filter)?);
        }
        Ok(select)
    }

    fn build(&self, select: &SelectStatement) -> Statement {
        let (sql, values) = match self.dialect {
            Dialect::Postgres => select.build(PostgresQueryBuilder),
            Dialect::MySql | Dialect::MariaDb => select.build(MysqlQueryBuilder),
            Dialect::Sqlite => select.build(SqliteQueryBuilder),
        };
        Statement {
            sql,
            values: values.into_iter().map(Param::of).collect(),
        }
    }

    fn read(&self, name: &str) -> Expr {
        let column = column(name);
        match self.column(name).read {
            Read::Plain => column,
            Read::Cast(to) => column.cast_as(to),
            Read::Function(function) => Expr::cust_with_expr(format!("{function}(?)"), column),
        }
    }

    fn column(&self, name: &str) -> Column {
        let known = self.shape.column(name);
        let mut column = known.map_or_else(|| Column::unknown(name), Clone::clone);
        // A text that a lens calls JSON: these two have JSON in texts, and views do not tell.
        if self.dialect != Dialect::Postgres
            && column.class == Class::Text
            && self.declared(&column) == Some(FieldType::Json)
        {
            column.class = Class::Json;
        }
        column
    }

    /// What the lens says that a column holds.
    fn declared(&self, column: &Column) -> Option<FieldType> {
        let declared = self
            .types
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(&column.name));
        declared.map(|(_, kind)| *kind)
    }
}

/// A table reference, quoted.
fn table(table: &Table) -> TableRef {
    match &table.schema {
        Some(schema) => (
            sea_query::Alias::new(schema),
            sea_query::Alias::new(&table.name),
        )
            .into_table_ref(),
        None => sea_query::Alias::new(&table.name).into_table_ref(),
    }
}

fn column(name: &str) -> Expr {
    Expr::col(sea_query::Alias::new(name))
}

fn truth(value: bool) -> Expr {
    Expr::cust(if value { "(1 = 1)" } else { "(1 = 0)" })
}

/// Joins conditions as a balanced tree.
fn join(mut conditions: Vec<Expr>, with: fn(Expr, Expr) -> Expr) -> Option<Expr> {
    while conditions.len() > 1 {
        let mut pairs = Vec::with_capacity(conditions.len().div_ceil(2));
        let mut rest = conditions.into_iter();
        while let Some(left) = rest.next() {
            pairs.push(match rest.next() {
                Some(right) => with(left, right),
                None => left,
            });
        }
        conditions = pairs;
    }
    conditions.pop()
}
