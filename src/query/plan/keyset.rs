//! The rows behind a given one, as a filter: what a cursor means to a protocol 1 runner, which knows nothing of
//! pages. It is as exact as the values in its rows are; where they do not tell the order (an array, an enum whose
//! order is not that of its texts), there is no next page.

use serde_json::Value;

use crate::query::filter::{Comparison, Filter, parse};
use crate::query::grammar::{GrammarError, type_name};
use crate::query::lens::FieldType;
use crate::query::operation::{ColumnTypes, Operation, Paging};
use crate::query::order::{self, Direction, OrderBy};

/// A page that a runner of another kind began, and that this one cannot go on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cursor: the page before came from a runner of another kind, which this one cannot continue; start again without the cursor"
)]
pub struct NotOnThisRunner;

/// The operation with the place where the page before ended as part of its `where`.
///
/// # Errors
///
/// When the place is not in values that a `where` can hold.
pub fn continued_by_filter(
    operation: &Operation,
    paging: &Paging,
) -> Result<Operation, NotOnThisRunner> {
    let Some(after) = &paging.after else {
        return Ok(operation.clone());
    };
    let order = operation.options.get("orderBy").map(order::parse);
    let order = order.transpose().map_err(not_here)?.unwrap_or_default();
    let plain = after.len() == order.len()
        && !after
            .iter()
            .any(|value| value.is_object() || value.is_array());
    if !plain {
        return Err(NotOnThisRunner);
    }
    let filter = operation.options.get("where").map(parse);
    let filter = filter
        .transpose()
        .map_err(not_here)?
        .unwrap_or_else(Filter::everything);
    let mut operation = operation.clone();
    let filter = filter.and(self::after(&order, after));
    operation.options.insert("where".into(), filter.to_json());
    Ok(operation)
}

fn not_here(_: GrammarError) -> NotOnThisRunner {
    NotOnThisRunner
}

/// Why rows that ended at `last` cannot be continued by a filter, if they cannot.
pub fn not_continued_by_filter(
    paging: &Paging,
    types: &ColumnTypes,
    last: &[Value],
) -> Option<String> {
    paging.keys.iter().zip(last).find_map(|(column, value)| match value {
        Value::Array(_) | Value::Object(_) => Some(format!(
            "rows ordered by column `{column}`, which holds {}, have no next page; use `offset`",
            type_name(value)
        )),
        _ if types.get(column) == Some(&FieldType::Enum) => Some(format!(
            "rows ordered by column `{column}`, an enum, have no next page with this runner; use `offset`"
        )),
        _ => None,
    })
}

/// The rows that come after the one with these values, nulls being last ascending and first descending.
///
/// A row comes after when it is equal in the first columns and behind in the next one; so there is one
/// alternative per column. Where the first column alone bounds all of them, the bound is said too: it is
/// implied, but without it databases do not see that an index can start there. Every column may be null: nobody
/// here knows that it is not.
fn after(order: &[OrderBy], values: &[Value]) -> Filter {
    let mut equal = Vec::with_capacity(order.len());
    let mut alternatives = Vec::with_capacity(order.len());
    for (by, value) in order.iter().zip(values) {
        let alternative = equal.iter().cloned().chain([behind(by, value)]);
        alternatives.push(Filter::all(alternative));
        equal.push(Filter::compare(
            by.field.as_str(),
            Comparison::Eq,
            value.clone(),
        ));
    }
    Filter::all(
        bound(order, values)
            .into_iter()
            .chain([Filter::any(alternatives)]),
    )
}

fn behind(by: &OrderBy, value: &Value) -> Filter {
    let field = by.field.as_str();
    let null = |negated| Filter::IsNull {
        field: field.to_owned(),
        negated,
    };
    match (by.dir, value) {
        (Direction::Asc, Value::Null) => Filter::Nothing,
        (Direction::Asc, value) => Filter::any([
            Filter::compare(field, Comparison::Gt, value.clone()),
            null(false),
        ]),
        (Direction::Desc, Value::Null) => null(true),
        (Direction::Desc, value) => Filter::compare(field, Comparison::Lt, value.clone()),
    }
}

fn bound(order: &[OrderBy], values: &[Value]) -> Option<Filter> {
    let (by, value) = (order.first()?, values.first()?);
    (by.dir == Direction::Desc && order.len() > 1 && !value.is_null())
        .then(|| Filter::compare(by.field.as_str(), Comparison::Lte, value.clone()))
}
