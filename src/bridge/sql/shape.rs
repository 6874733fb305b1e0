//! What a table looks like: its columns, what they hold, how they are read and ordered by, and which of them
//! identify a row. Read from the database's catalogue; statements are built from it.

use std::collections::HashMap;
use std::sync::Arc;

/// What kind of values a column holds, as far as binding to it is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bridge) enum Class {
    /// Integers.
    Integer,
    Decimal,
    /// An amount of money in a type of its own (PostgreSQL).
    Money,
    /// Floats of 32 bits.
    Single,
    /// Floats of 64 bits.
    Double,
    Bool,
    Text,
    /// One of these texts, in their order.
    Enum(Arc<[String]>),
    /// Some of these texts, each with a bit of its own (MySQL).
    Set(Arc<[String]>),
    Bytes,
    Date,
    /// A date and a time, in UTC (`zone`) or without a zone.
    DateTime {
        zone: bool,
    },
    /// A time of day, or a span of hours (MySQL).
    Time {
        zone: bool,
    },
    Uuid,
    Json,
    /// An array of these, in the databases that have them.
    Array(Box<Class>),
    /// Any of SQLite's storage classes, text and numbers among them.
    Any,
    /// Anything else: values are bound as text, for the database to read.
    Other,
}

/// How a column is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bridge) enum Read {
    /// As it is.
    Plain,
    /// Cast to this type.
    Cast(&'static str),
    /// Through this function.
    Function(&'static str),
}

/// How rows are ordered by a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bridge) enum Order {
    /// By its values.
    Value,
    /// By the number that stands for its text (MySQL's ENUM and SET).
    Ordinal,
    /// By its values, but in an order that the database cannot say again by comparing (MySQL's JSON).
    Unspoken,
    /// Not at all.
    None,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::bridge) struct Column {
    pub(in crate::bridge) name: String,
    pub(in crate::bridge) class: Class,
    pub(in crate::bridge) nullable: bool,
    pub(in crate::bridge) read: Read,
    pub(in crate::bridge) order: Order,
    /// Whether the database can say that two of its values are equal.
    pub(in crate::bridge) has_equality: bool,
    /// The database's own name of its type, as it may stand in SQL.
    pub(in crate::bridge) type_name: String,
    /// PostgreSQL: the function that gives its binary form, if the type is not one that every driver knows.
    pub(in crate::bridge) send: Option<String>,
    /// PostgreSQL: what compares values of a type of an extension: `<`, `<=`, `=`, `>=` and `>`, with their schema.
    pub(in crate::bridge) operators: Option<Arc<[String; 5]>>,
    /// PostgreSQL: whether its collation holds different texts for equal.
    pub(in crate::bridge) is_loose: bool,
    /// MySQL: whether its values can be longer than the part of them that rows are ordered by.
    pub(in crate::bridge) is_long: bool,
    /// MySQL: the character set and collation of a text.
    pub(in crate::bridge) charset: Option<(String, String)>,
}

impl Column {
    /// A column of which nothing more is known than its name.
    pub(in crate::bridge) fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            class: Class::Other,
            nullable: true,
            read: Read::Plain,
            order: Order::Value,
            has_equality: true,
            type_name: String::new(),
            send: None,
            operators: None,
            is_loose: false,
            is_long: false,
            charset: None,
        }
    }
}

/// The columns of a table, in order.
#[derive(Debug, Clone, Default)]
pub(in crate::bridge) struct Shape {
    /// The table as it stands in SQL: of the names that the request may mean, the one that there is.
    pub(in crate::bridge) table: super::Table,
    columns: Vec<Column>,
    by_name: HashMap<String, usize>,
    ignores_case: bool,
    /// PostgreSQL: whether the database has all characters there are.
    pub(in crate::bridge) is_utf8: bool,
    /// PostgreSQL: what is another when the table is.
    pub(in crate::bridge) stamp: String,
    /// Sets of columns of which no two rows have the same values, none of them null.
    unique: Vec<Vec<String>>,
}

impl Shape {
    /// Takes the columns of a table; `ignores_case`: whether the database does so in the names of columns.
    pub(in crate::bridge) fn new(
        table: super::Table,
        columns: Vec<Column>,
        unique: Vec<Vec<String>>,
        ignores_case: bool,
    ) -> Self {
        let key = |name: &str| match ignores_case {
            true => name.to_lowercase(),
            false => name.to_owned(),
        };
        let by_name = columns
            .iter()
            .enumerate()
            .map(|(i, column)| (key(&column.name), i))
            .collect();
        let mut shape = Self {
            table,
            columns,
            by_name,
            ignores_case,
            is_utf8: true,
            stamp: String::new(),
            unique: Vec::new(),
        };
        let identifies = |columns: &Vec<String>| {
            let known = columns.iter().map(|name| shape.column(name));
            !columns.is_empty()
                && known
                    .clone()
                    .all(|column| column.is_some_and(|column| !column.nullable))
        };
        shape.unique = unique.into_iter().filter(identifies).collect();
        shape
    }

    /// All columns.
    pub(in crate::bridge) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The column of that name; the database has the last word on one that is not known.
    pub(in crate::bridge) fn column(&self, name: &str) -> Option<&Column> {
        let at = match self.ignores_case {
            true => self.by_name.get(&name.to_lowercase()),
            false => self.by_name.get(name),
        };
        at.map(|&at| &self.columns[at])
    }

    /// Whether no two rows have the same values in these columns.
    pub(in crate::bridge) fn is_identified_by(&self, names: &[&str]) -> bool {
        let has = |wanted: &String| {
            names.iter().any(|name| match self.ignores_case {
                true => name.to_lowercase() == wanted.to_lowercase(),
                false => *name == wanted,
            })
        };
        self.unique.iter().any(|columns| columns.iter().all(has))
    }
}
