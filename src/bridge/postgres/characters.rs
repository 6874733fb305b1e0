//! Databases that do not have all characters: a text that they cannot hold equals nothing in them, where PostgreSQL
//! itself would refuse to read it. In a database in UTF-8 nothing here does anything.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::Value;

use super::session::{Complaint, Session};
use crate::bridge::BridgeError;
use crate::bridge::request::Target;
use crate::query::filter::{Comparison, Filter};

impl Session<'_> {
    /// The filter without texts that the database cannot hold.
    pub(super) async fn with_known_characters<'f>(
        &self,
        target: &Target,
        filter: &'f Filter,
    ) -> Result<Cow<'f, Filter>, BridgeError> {
        let mut characters = BTreeSet::new();
        collect(filter, &mut characters);
        // The shape is asked for next anyway, and remembered.
        if characters.is_empty() || self.shape(target).await?.is_utf8 {
            return Ok(Cow::Borrowed(filter));
        }
        let mut unknown = BTreeSet::new();
        // Half and half, until it is one that is refused.
        let mut asked = vec![characters.into_iter().collect::<Vec<_>>()];
        while let Some(some) = asked.pop() {
            let text: String = some.iter().collect();
            match self.rows("SELECT CAST($1 AS text) IS NULL", &[&text]).await {
                Ok(_) => {}
                Err(BridgeError::QueryFailed(_)) if self.complains(Complaint::Character) => {
                    self.begin_again().await?;
                    match some.as_slice() {
                        [one] => {
                            unknown.insert(*one);
                        }
                        _ => {
                            let (left, right) = some.split_at(some.len() / 2);
                            asked.extend([left.to_vec(), right.to_vec()]);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Cow::Owned(without(filter, &unknown)))
    }

    pub(super) fn complains(&self, of: Complaint) -> bool {
        self.complaint.load(std::sync::atomic::Ordering::Relaxed) == of as u8
    }
}

/// The characters of a filter's texts that a database may not have.
fn collect(filter: &Filter, characters: &mut BTreeSet<char>) {
    match filter {
        Filter::All(filters) | Filter::Any(filters) => {
            filters
                .iter()
                .for_each(|filter| collect(filter, characters));
        }
        Filter::Not(filter) => collect(filter, characters),
        Filter::Compare { value, .. } | Filter::Contains { value, .. } => {
            in_value(value, &mut |c| characters.extend([c]));
        }
        Filter::In { values, .. } => {
            for value in values {
                in_value(value, &mut |c| characters.extend([c]));
            }
        }
        Filter::Matches { text, .. } => {
            characters.extend(text.chars().filter(|c| !c.is_ascii()));
        }
        Filter::IsNull { .. } | Filter::Nothing => {}
    }
}

/// Says each character beyond ASCII that is somewhere in a value.
fn in_value(value: &Value, say: &mut dyn FnMut(char)) {
    match value {
        Value::String(text) => text.chars().filter(|c| !c.is_ascii()).for_each(say),
        Value::Array(values) => values.iter().for_each(|value| in_value(value, say)),
        Value::Object(members) => {
            for (name, value) in members {
                name.chars().filter(|c| !c.is_ascii()).for_each(&mut *say);
                in_value(value, say);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The same filter where nothing is, has or matches a text with one of these characters.
fn without(filter: &Filter, unknown: &BTreeSet<char>) -> Filter {
    let is_unknown = |value: &Value| {
        let mut found = false;
        in_value(value, &mut |c| found |= unknown.contains(&c));
        found
    };
    // Of no value at all: false for every value, and unknown for null.
    let none_of = |field: &str, negated| Filter::In {
        field: field.to_owned(),
        values: Vec::new(),
        negated,
    };
    match filter {
        Filter::All(filters) => Filter::All(filters.iter().map(|f| without(f, unknown)).collect()),
        Filter::Any(filters) => Filter::Any(filters.iter().map(|f| without(f, unknown)).collect()),
        Filter::Not(filter) => Filter::Not(Box::new(without(filter, unknown))),
        Filter::Compare { field, op, value } if is_unknown(value) => {
            none_of(field, *op == Comparison::Ne)
        }
        Filter::Contains { field, value } if is_unknown(value) => none_of(field, false),
        Filter::Matches { field, text, .. } if text.chars().any(|c| unknown.contains(&c)) => {
            none_of(field, false)
        }
        Filter::In {
            field,
            values,
            negated,
        } => Filter::In {
            field: field.clone(),
            values: values
                .iter()
                .filter(|value| !is_unknown(value))
                .cloned()
                .collect(),
            negated: *negated,
        },
        other => other.clone(),
    }
}
