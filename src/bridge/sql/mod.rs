//! Statements in the three dialects, built with sea-query: every value bound, every identifier quoted.
//!
//! What a condition means must not depend on the database: nulls have one place, the string operators
//! take `% _ \` literally and ignore case, and a value is bound as what its column is. The last needs the
//! columns of the table, its [`Shape`]. How a value is bound to a column is in `bind.rs`.

mod bind;

use std::collections::HashMap;

use sea_query::{
    Expr, ExprTrait, IntoTableRef, MysqlQueryBuilder, NullOrdering, Order as Direction,
    PostgresQueryBuilder, SelectStatement, SqliteQueryBuilder, TableRef,
};

pub(super) use self::bind::hex;
use super::BridgeError;
use super::encode::Columns;
use super::request::{Query, Target};
use crate::query::filter::{Filter, Pattern};

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    MySql,
    MariaDb,
    Sqlite,
}

/// What kind of values a column holds, as far as binding to it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Integers of up to so many bits.
    Integer(u8),
    Decimal,
    Float,
    Bool,
    Text,
    Bytes,
    DateTime,
    Json,
    /// An array, in the databases that have them.
    Array,
    /// Anything else: values are bound as text, for the database to read.
    Other,
}

/// How a column is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// As it is.
    Plain,
    /// Cast to this type.
    Cast(&'static str),
    /// Through this function.
    Function(&'static str),
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) class: Class,
    pub(super) nullable: bool,
    pub(super) read: Read,
}

/// The columns of a table, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    columns: Vec<Column>,
    by_name: HashMap<String, usize>,
}

impl Shape {
    /// Takes the columns of a table.
    pub(super) fn new(columns: Vec<Column>) -> Self {
        let by_name = columns
            .iter()
            .enumerate()
            .map(|(i, column)| (column.name.clone(), i))
            .collect();
        Self { columns, by_name }
    }

    /// The names of the columns.
    pub(super) fn names(&self) -> Vec<&str> {
        self.columns
            .iter()
            .map(|column| column.name.as_str())
            .collect()
    }

    /// The column of that name; the database has the last word on one that is not known.
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.by_name.get(name).map(|&i| &self.columns[i])
    }

    fn class(&self, name: &str) -> Class {
        self.column(name)
            .map_or(Class::Other, |column| column.class)
    }
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
    Float(f64),
    Bytes(Vec<u8>),
}

impl Param {
    fn of(value: sea_query::Value) -> Self {
        use sea_query::Value as V;
        match value {
            V::String(Some(text)) => Self::Text(text),
            V::BigInt(Some(number)) => Self::Int(number),
            V::BigUnsigned(Some(number)) => Self::UInt(number),
            V::Double(Some(number)) => Self::Float(number),
            V::Bytes(Some(bytes)) => Self::Bytes(bytes),
            // Nothing else is bound here; as text it would at least be refused by the database.
            other => Self::Text(format!("{other:?}")),
        }
    }
}

/// Builds the statements on one table.
pub(super) struct Builder<'a> {
    pub(super) dialect: Dialect,
    pub(super) shape: &'a Shape,
}

impl Builder<'_> {
    /// The rows of a query, with these columns read.
    pub(super) fn query(&self, query: &Query, columns: &Columns) -> Result<Statement, BridgeError> {
        let mut select = self.from(&query.target, &query.filter)?;
        for name in &columns.read {
            select.expr(self.read(name));
        }
        if columns.read.is_empty() {
            select.expr(Expr::cust("1"));
        }
        for order in &query.order {
            self.order(&mut select, &order.column, order.descending);
        }
        let limit = match (query.limit, query.offset) {
            // Neither has an OFFSET without a LIMIT.
            (None, Some(_)) if self.dialect != Dialect::Postgres => Some(i64::MAX.unsigned_abs()),
            (limit, _) => limit,
        };
        if let Some(limit) = limit {
            select.limit(limit);
        }
        if let Some(offset) = query.offset {
            select.offset(offset);
        }
        Ok(self.build(&select))
    }

    /// How many rows match.
    pub(super) fn count(&self, target: &Target, filter: &Filter) -> Result<Statement, BridgeError> {
        let mut select = self.from(target, filter)?;
        select.expr(Expr::cust("COUNT(*)"));
        Ok(self.build(&select))
    }

    fn from(&self, target: &Target, filter: &Filter) -> Result<SelectStatement, BridgeError> {
        let mut select = SelectStatement::new();
        select.from(table(target));
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
        match self
            .shape
            .column(name)
            .map_or(Read::Plain, |column| column.read)
        {
            Read::Plain => column,
            Read::Cast(to) => column.cast_as(to),
            Read::Function(function) => Expr::cust_with_expr(format!("{function}(?)"), column),
        }
    }

    /// Nulls come last ascending and first descending: what PostgreSQL does by itself, also with an index.
    fn order(&self, select: &mut SelectStatement, name: &str, descending: bool) {
        let (direction, nulls) = if descending {
            (Direction::Desc, NullOrdering::First)
        } else {
            (Direction::Asc, NullOrdering::Last)
        };
        let nullable = self.shape.column(name).is_none_or(|column| column.nullable);
        if nullable && self.dialect != Dialect::Postgres {
            select.order_by_expr_with_nulls(column(name), direction, nulls);
        } else {
            select.order_by_expr(column(name), direction);
        }
    }

    /// The condition that a filter stands for.
    fn condition(&self, filter: &Filter) -> Result<Expr, BridgeError> {
        Ok(match filter {
            Filter::All(filters) => self
                .fold(filters, Expr::and)?
                .unwrap_or_else(|| truth(true)),
            Filter::Any(filters) => self
                .fold(filters, Expr::or)?
                .unwrap_or_else(|| truth(false)),
            Filter::Not(filter) => self.condition(filter)?.not(),
            Filter::Nothing => truth(false),
            Filter::IsNull {
                field,
                negated: false,
            } => column(field).is_null(),
            Filter::IsNull {
                field,
                negated: true,
            } => column(field).is_not_null(),
            Filter::Compare { field, op, value } => self.compare(field, *op, value)?,
            Filter::In {
                field,
                values,
                negated,
            } => self.is_in(field, values, *negated)?,
            Filter::Matches {
                field,
                pattern,
                text,
            } => self.matches(field, *pattern, text),
        })
    }

    /// Joins conditions as a balanced tree: a chain of a thousand would be too deep for SQLite.
    fn fold(
        &self,
        filters: &[Filter],
        join: fn(Expr, Expr) -> Expr,
    ) -> Result<Option<Expr>, BridgeError> {
        match filters {
            [] => Ok(None),
            [filter] => self.condition(filter).map(Some),
            _ => {
                let (left, right) = filters.split_at(filters.len() / 2);
                let (left, right) = (self.fold(left, join)?, self.fold(right, join)?);
                Ok(left.into_iter().chain(right).reduce(join))
            }
        }
    }

    /// The string operators; a column that is no text is matched by its text.
    fn matches(&self, field: &str, pattern: Pattern, text: &str) -> Expr {
        let literal = || {
            text.replace('\\', "\\\\")
                .replace('%', "\\%")
                .replace('_', "\\_")
        };
        let like = match pattern {
            Pattern::Like | Pattern::Ilike => text.to_owned(),
            Pattern::Contains => format!("%{}%", literal()),
            Pattern::StartsWith => format!("{}%", literal()),
            Pattern::EndsWith => format!("%{}", literal()),
        };
        let sensitive = pattern == Pattern::Like;
        match self.dialect {
            Dialect::Postgres => {
                let text = match self.shape.class(field) {
                    Class::Text => column(field),
                    _ => column(field).cast_as("text"),
                };
                let template = if sensitive {
                    "($1 LIKE $2)"
                } else {
                    "($1 ILIKE $2)"
                };
                Expr::cust_with_exprs(template, [text, Expr::val(like)])
            }
            // The binary collation compares letters, not what a language holds to be alike.
            Dialect::MySql | Dialect::MariaDb => {
                let template = if sensitive {
                    "(CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin LIKE ?)"
                } else {
                    "(LOWER(CONVERT(? USING utf8mb4)) COLLATE utf8mb4_bin LIKE LOWER(?))"
                };
                Expr::cust_with_exprs(template, [column(field), Expr::val(like)])
            }
            Dialect::Sqlite if sensitive => {
                // LIKE ignores case there, and the switch for it is the whole connection's.
                Expr::cust_with_exprs("(? GLOB ?)", [column(field), Expr::val(glob(text))])
            }
            Dialect::Sqlite => {
                let values = [column(field), Expr::val(like), Expr::val("\\")];
                Expr::cust_with_exprs("(? LIKE ? ESCAPE ?)", values)
            }
        }
    }
}

/// A table reference, quoted.
pub(super) fn table(target: &Target) -> TableRef {
    match &target.schema {
        Some(schema) => (
            sea_query::Alias::new(schema),
            sea_query::Alias::new(&target.table),
        )
            .into_table_ref(),
        None => sea_query::Alias::new(&target.table).into_table_ref(),
    }
}

fn column(name: &str) -> Expr {
    Expr::col(sea_query::Alias::new(name))
}

fn truth(value: bool) -> Expr {
    Expr::cust(if value { "(1 = 1)" } else { "(1 = 0)" })
}

/// The GLOB pattern that means what a LIKE pattern means.
fn glob(like: &str) -> String {
    let mut out = String::with_capacity(like.len());
    let mut chars = like.chars();
    while let Some(c) = chars.next() {
        let (c, literal) = match c {
            '\\' => (chars.next().unwrap_or('\\'), true),
            c => (c, false),
        };
        match c {
            '%' if !literal => out.push('*'),
            '_' if !literal => out.push('?'),
            '*' | '?' | '[' => out.extend(['[', c, ']']),
            c => out.push(c),
        }
    }
    out
}
