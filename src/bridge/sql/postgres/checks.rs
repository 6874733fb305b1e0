//! Which value of a filter a database did not take.

use serde_json::Value;

use super::bound::{Bound, bound};
use crate::bridge::BridgeError;
use crate::bridge::sql::condition::wrong;
use crate::bridge::sql::shape::{Column, Shape};
use crate::query::filter::{Comparison, Filter};

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

/// The values of a filter.
pub(in crate::bridge) fn checks(shape: &Shape, filter: &Filter) -> Vec<Check> {
    let mut found = Vec::new();
    collect(shape, filter, &mut found);
    found
}

fn collect(shape: &Shape, filter: &Filter, found: &mut Vec<Check>) {
    let mut add = |field: &str, value: &Value| {
        let Some(by) = shape.column(field) else {
            return;
        };
        if let Ok(Bound::Compare(side)) = bound(by, Comparison::Eq, value) {
            found.push(Check {
                text: side.text,
                type_name: side.type_name,
                by: by.clone(),
                value: value.clone(),
            });
        }
    };
    match filter {
        Filter::All(filters) | Filter::Any(filters) => {
            filters
                .iter()
                .for_each(|filter| collect(shape, filter, found));
        }
        Filter::Not(filter) => collect(shape, filter, found),
        Filter::Compare { field, value, .. } | Filter::Contains { field, value } => {
            add(field, value)
        }
        Filter::In { field, values, .. } => values.iter().for_each(|value| add(field, value)),
        Filter::IsNull { .. } | Filter::Matches { .. } | Filter::Nothing => {}
    }
}
