//! The `where` grammar: parsed once into [`Filter`], from which each bridge builds its SQL.

use serde_json::Value;

/// A parsed `where`.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All of these hold; empty: no condition.
    All(Vec<Filter>),
    /// One of these holds; never empty.
    Any(Vec<Filter>),
    /// This does not hold (with SQL's three-valued logic).
    Not(Box<Filter>),
    /// The field compares so with a value that is not null.
    Compare {
        /// The field, or column.
        field: String,
        /// How.
        op: Comparison,
        /// With what: a string, number or boolean (an array or object: JSON equality where a database has it).
        value: Value,
    },
    /// The field is (or is not) one of these; never empty.
    In {
        /// The field, or column.
        field: String,
        /// The values, none of them null.
        values: Vec<Value>,
        /// Whether it must not be among them.
        negated: bool,
    },
    /// The field is (or is not) NULL.
    IsNull {
        /// The field, or column.
        field: String,
        /// Whether it must not be NULL.
        negated: bool,
    },
    /// The field, a text, matches a pattern.
    Matches {
        /// The field, or column.
        field: String,
        /// Which kind of pattern.
        pattern: Pattern,
        /// The pattern's text, as given.
        text: String,
    },
    /// Nothing matches, e.g. `$in: []`, or a string operator on something that is not a string.
    Nothing,
}

/// An ordering comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `$eq`
    Eq,
    /// `$ne`
    Ne,
    /// `$gt`
    Gt,
    /// `$gte`
    Gte,
    /// `$lt`
    Lt,
    /// `$lte`
    Lte,
}

/// A string operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// `$like`: the pattern as given, case-sensitive.
    Like,
    /// `$ilike`: the pattern as given, case-insensitive.
    Ilike,
    /// `$contains`: literal, case-insensitive.
    Contains,
    /// `$startsWith`: literal, case-insensitive.
    StartsWith,
    /// `$endsWith`: literal, case-insensitive.
    EndsWith,
}
