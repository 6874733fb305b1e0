//! Which value of a filter a database did not take.

use serde_json::Value;

use super::bound::{Bound, bound};
use crate::bridge::BridgeError;
use crate::bridge::sql::condition::wrong;
use crate::bridge::sql::shape::{Class, Column, Shape};
use crate::query::filter::{Comparison, Filter, Pattern};

/// A value of a filter as it was bound, to find out which one a database did not take.
pub(in crate::bridge) struct Check {
    pub(in crate::bridge) text: String,
    pub(in crate::bridge) type_name: String,
    by: Column,
    value: Value,
}

impl Check {
    /// What to say when it is this one.
    pub(in crate::bridge) fn failed(&self, words: &str) -> BridgeError {
        wrong(
            &self.by,
            &format!("values of type {} ({words})", self.type_name),
            &self.value,
        )
    }
}

/// The first values of a filter, as many as are worth trying.
pub(in crate::bridge) fn checks(shape: &Shape, filter: &Filter, most: usize) -> Vec<Check> {
    let mut found = Vec::new();
    collect(shape, filter, most, &mut found);
    found
}

fn collect(shape: &Shape, filter: &Filter, most: usize, found: &mut Vec<Check>) {
    let room = most.saturating_sub(found.len());
    match filter {
        Filter::All(filters) | Filter::Any(filters) => {
            for filter in filters {
                if found.len() < most {
                    collect(shape, filter, most, found);
                }
            }
        }
        Filter::Not(filter) => collect(shape, filter, most, found),
        Filter::Compare { field, value, .. } => found.extend(check(shape, field, value)),
        Filter::Contains { field, value } => match value {
            // A single value is looked for as an array of it.
            Value::Array(_) => found.extend(check(shape, field, value)),
            single => {
                found.extend(check(shape, field, &Value::from(vec![single.clone()])));
            }
        },
        Filter::In { field, values, .. } => {
            let values = values.iter().take(room);
            found.extend(values.filter_map(|value| check(shape, field, value)));
        }
        Filter::Matches {
            field,
            pattern: Pattern::Contains,
            text,
        } if shape
            .column(field)
            .is_some_and(|by| matches!(by.class, Class::Array(_))) =>
        {
            let element = Value::from(vec![text.as_str()]);
            found.extend(check(shape, field, &element));
        }
        Filter::IsNull { .. } | Filter::Matches { .. } | Filter::Nothing => {}
    }
}

fn check(shape: &Shape, field: &str, value: &Value) -> Option<Check> {
    let by = shape.column(field)?;
    match bound(by, Comparison::Eq, value) {
        Ok(Bound::Compare(side)) => Some(Check {
            text: side.text,
            type_name: side.type_name,
            by: by.clone(),
            value: value.clone(),
        }),
        _ => None,
    }
}
