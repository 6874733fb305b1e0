//! Databases that do not have all characters: a text that they cannot hold equals nothing in them, where PostgreSQL
//! itself would refuse to read it. In a database in UTF-8 nothing here does anything.

use std::borrow::Cow;
use std::collections::HashSet;

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
        let mut texts = HashSet::new();
        collect(filter, &mut texts);
        // The shape is asked for next anyway, and remembered.
        if texts.is_empty() || self.shape(target).await?.is_utf8 {
            return Ok(Cow::Borrowed(filter));
        }
        let mut unknown = HashSet::new();
        for text in texts {
            match self.rows("SELECT CAST($1 AS text) IS NULL", &[&text]).await {
                Ok(_) => {}
                Err(BridgeError::QueryFailed(_)) if self.complains(Complaint::Character) => {
                    unknown.insert(text);
                    self.begin_again().await?;
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

/// The texts that a database may not have the characters of.
fn collect(filter: &Filter, texts: &mut HashSet<String>) {
    let mut add = |value: &Value| {
        texts.extend(
            value
                .as_str()
                .filter(|text| !text.is_ascii())
                .map(str::to_owned),
        );
    };
    match filter {
        Filter::All(filters) | Filter::Any(filters) => {
            filters.iter().for_each(|filter| collect(filter, texts));
        }
        Filter::Not(filter) => collect(filter, texts),
        Filter::Compare { value, .. } | Filter::Contains { value, .. } => add(value),
        Filter::In { values, .. } => values.iter().for_each(add),
        Filter::Matches { text, .. } => add(&Value::from(text.as_str())),
        Filter::IsNull { .. } | Filter::Nothing => {}
    }
}

/// The same filter where nothing is, has or matches one of these texts.
fn without(filter: &Filter, unknown: &HashSet<String>) -> Filter {
    let is_unknown = |value: &Value| value.as_str().is_some_and(|text| unknown.contains(text));
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
        Filter::Matches { field, text, .. } if unknown.contains(text) => none_of(field, false),
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
