//! The rows behind a given one: what a cursor means, as a filter.

use serde_json::Value;

use crate::query::filter::{Comparison, Filter};
use crate::query::order::{Direction, OrderBy};

/// One column of a complete order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) by: OrderBy,
    /// Whether it may be null; the columns of a primary key are not.
    pub(super) nullable: bool,
}

/// The rows that come after the one with these values, nulls being last ascending and first descending.
///
/// A row comes after when it is equal in the first columns and behind in the next one; so there is one
/// alternative per column. Where the first column alone bounds all of them, the bound is said too: it is
/// implied, but without it databases do not see that an index can start there.
pub(super) fn after(keys: &[Key], values: &[Value]) -> Filter {
    let mut equal = Vec::with_capacity(keys.len());
    let mut alternatives = Vec::with_capacity(keys.len());
    for (key, value) in keys.iter().zip(values) {
        let alternative = equal.iter().cloned().chain([behind(key, value)]);
        alternatives.push(Filter::all(alternative));
        equal.push(Filter::compare(
            key.by.field.as_str(),
            Comparison::Eq,
            value.clone(),
        ));
    }
    Filter::all(
        bound(keys, values)
            .into_iter()
            .chain([Filter::any(alternatives)]),
    )
}

fn behind(key: &Key, value: &Value) -> Filter {
    let field = key.by.field.as_str();
    let null = |negated| Filter::IsNull {
        field: field.to_owned(),
        negated,
    };
    match (key.by.dir, value) {
        (Direction::Asc, Value::Null) => Filter::Nothing,
        (Direction::Asc, value) => {
            let greater = Filter::compare(field, Comparison::Gt, value.clone());
            if key.nullable {
                Filter::any([greater, null(false)])
            } else {
                greater
            }
        }
        (Direction::Desc, Value::Null) => null(true),
        (Direction::Desc, value) => Filter::compare(field, Comparison::Lt, value.clone()),
    }
}

fn bound(keys: &[Key], values: &[Value]) -> Option<Filter> {
    let (key, value) = (keys.first()?, values.first()?);
    let op = match key.by.dir {
        Direction::Desc => Comparison::Lte,
        Direction::Asc if !key.nullable => Comparison::Gte,
        Direction::Asc => return None,
    };
    (keys.len() > 1 && !value.is_null())
        .then(|| Filter::compare(key.by.field.as_str(), op, value.clone()))
}
