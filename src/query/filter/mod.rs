//! The `where` grammar: parsed once into [`Filter`], from which each bridge builds its SQL, and written
//! back by [`Filter::to_json`] for the wire.
//!
//! A filter built by [`parse()`] or by the constructors here is in normal form: no `All` within an `All`, no
//! `Any` within an `Any`, none of them with a single child, and [`Filter::Nothing`] only as the whole. In that
//! form writing and parsing are inverse.
//!
//! Decisions where the grammar leaves room:
//!
//! * A clause without conditions (`{}`, `{"a": {}}`, `$and: []`, `$or: []`, `$not: {}`) is ignored wherever it
//!   stands, also inside `$or`, as runners in the field do.
//! * `$eq: null` is IS NULL and `$ne: null` IS NOT NULL, but a null in the list of `$in` or `$nin` is SQL's
//!   null: `$in: [1, null]` matches 1 only, `$nin: [1, null]` nothing, under `$not` too.
//! * `$gt`, `$gte`, `$lt` and `$lte` take strings, numbers and booleans; a null there could never match and is
//!   refused, because it is always a slip.
//! * `$in` and `$nin` take an array of strings, numbers, booleans and nulls; anything else is refused.
//! * An object under a field holds operators; equality with a JSON object is written `{"$eq": {…}}`.

mod json;
mod parse;

use serde_json::Value;

pub use parse::{Limits, parse, parse_with};

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
    /// The field, an array or JSON, contains this.
    Contains {
        /// The field, or column.
        field: String,
        /// What it contains.
        value: Value,
    },
    /// Nothing matches, e.g. `$in: []`, or a string operator on something that is not a string.
    Nothing,
}

impl Filter {
    /// The filter that every row passes.
    pub const fn everything() -> Self {
        Self::All(Vec::new())
    }

    /// Whether every row passes.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::All(children) if children.is_empty())
    }

    /// All of these hold; of none: everything passes.
    pub fn all(children: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for child in children {
            match child {
                Self::All(inner) => flat.extend(inner),
                Self::Nothing => return Self::Nothing,
                other => flat.push(other),
            }
        }
        single(flat).unwrap_or_else(Self::All)
    }

    /// One of these holds; of none: nothing passes.
    pub fn any(children: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for child in children {
            match child {
                Self::Any(inner) => flat.extend(inner),
                Self::Nothing => {}
                everything if everything.is_everything() => return everything,
                other => flat.push(other),
            }
        }
        if flat.is_empty() {
            Self::Nothing
        } else {
            single(flat).unwrap_or_else(Self::Any)
        }
    }

    /// The opposite, with SQL's three-valued logic.
    #[expect(
        clippy::should_implement_trait,
        reason = "a constructor beside `all` and `any`; `!filter` would read worse"
    )]
    pub fn not(inner: Self) -> Self {
        match inner {
            Self::Nothing => Self::everything(),
            everything if everything.is_everything() => Self::Nothing,
            other => Self::Not(Box::new(other)),
        }
    }

    /// Both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::all([self, other])
    }

    /// One comparison; with null it is IS NULL or IS NOT NULL, and ordering by null matches nothing.
    pub fn compare(field: impl Into<String>, op: Comparison, value: Value) -> Self {
        let field = field.into();
        match (op, value) {
            (Comparison::Eq, Value::Null) => Self::IsNull {
                field,
                negated: false,
            },
            (Comparison::Ne, Value::Null) => Self::IsNull {
                field,
                negated: true,
            },
            (_, Value::Null) => Self::Nothing,
            (op, value) => Self::Compare { field, op, value },
        }
    }

    /// The names of all fields, in the order of writing, repeated where they are.
    pub fn fields(&self) -> Vec<&str> {
        let mut names = Vec::new();
        self.collect_fields(&mut names);
        names
    }

    fn collect_fields<'a>(&'a self, names: &mut Vec<&'a str>) {
        match self {
            Self::All(children) | Self::Any(children) => {
                children.iter().for_each(|c| c.collect_fields(names))
            }
            Self::Not(inner) => inner.collect_fields(names),
            Self::Compare { field, .. }
            | Self::In { field, .. }
            | Self::IsNull { field, .. }
            | Self::Contains { field, .. }
            | Self::Matches { field, .. } => names.push(field),
            Self::Nothing => {}
        }
    }

    /// The same filter under other names.
    ///
    /// # Errors
    ///
    /// The first that `rename` gives.
    pub fn map_fields<E>(
        mut self,
        mut rename: impl FnMut(&str) -> Result<String, E>,
    ) -> Result<Self, E> {
        self.rename_all(&mut rename)?;
        Ok(self)
    }

    fn rename_all<E>(
        &mut self,
        rename: &mut impl FnMut(&str) -> Result<String, E>,
    ) -> Result<(), E> {
        match self {
            Self::All(children) | Self::Any(children) => {
                children.iter_mut().try_for_each(|c| c.rename_all(rename))
            }
            Self::Not(inner) => inner.rename_all(rename),
            Self::Compare { field, .. }
            | Self::In { field, .. }
            | Self::IsNull { field, .. }
            | Self::Contains { field, .. }
            | Self::Matches { field, .. } => {
                *field = rename(field)?;
                Ok(())
            }
            Self::Nothing => Ok(()),
        }
    }
}

/// The only child, or the children as they are.
fn single(mut children: Vec<Filter>) -> Result<Filter, Vec<Filter>> {
    match children.pop() {
        Some(only) if children.is_empty() => Ok(only),
        Some(last) => {
            children.push(last);
            Err(children)
        }
        None => Err(children),
    }
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

impl Comparison {
    /// Every comparison.
    pub const ALL: [Self; 6] = [Self::Eq, Self::Ne, Self::Gt, Self::Gte, Self::Lt, Self::Lte];

    /// The operator in the grammar.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eq => "$eq",
            Self::Ne => "$ne",
            Self::Gt => "$gt",
            Self::Gte => "$gte",
            Self::Lt => "$lt",
            Self::Lte => "$lte",
        }
    }
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

impl Pattern {
    /// Every string operator.
    pub const ALL: [Self; 5] = [
        Self::Like,
        Self::Ilike,
        Self::Contains,
        Self::StartsWith,
        Self::EndsWith,
    ];

    /// The operator in the grammar.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Like => "$like",
            Self::Ilike => "$ilike",
            Self::Contains => "$contains",
            Self::StartsWith => "$startsWith",
            Self::EndsWith => "$endsWith",
        }
    }
}

#[cfg(test)]
mod tests;
