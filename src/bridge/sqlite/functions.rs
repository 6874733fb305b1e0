//! The functions that SQLite is given, because its own know no Unicode, no dates in two spellings and no JSON
//! containment. They are for our statements only: nothing in a schema can call them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bridge::encode::{write_base64, write_f64, write_int, write_raw_json};
use crate::query::filter::Pattern;
use crate::query::like::Like;
use crate::query::moment::Moment;
use crate::query::numeral::Numeral;

/// Adds them to a connection.
/// `stop` says that nobody wants the answer any more: SQLite itself does not look while a function runs.
pub(super) fn add(db: &Connection, stop: &Arc<AtomicBool>) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY;
    rusqlite::vtab::array::load_module(db)?;
    let stop = Arc::clone(stop);
    db.create_scalar_function("semilayer_matches", 3, flags, move |context| {
        matches(context, &stop)
    })?;
    db.create_scalar_function("semilayer_instant", 1, flags, |context| {
        let text = context.get_raw(0).as_str().ok();
        let moment = text.and_then(Moment::parse);
        Ok(moment.map(|moment| moment.sortable()))
    })?;
    db.create_scalar_function("semilayer_moment", 1, flags, moment)?;
    db.create_scalar_function("semilayer_digest", -1, flags, digest)?;
    db.create_scalar_function("semilayer_json_equals", 2, flags, |context| {
        with_json(context, equals)
    })?;
    db.create_scalar_function("semilayer_json_contains", 2, flags, |context| {
        with_json(context, |held, asked| contains(held, asked, true))
    })
}

/// The text of a value as the string operators see it; bytes have none.
fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null | ValueRef::Blob(_) => None,
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
    }
}

/// `(value, operator, pattern)`: whether the value matches; null for null.
fn matches(context: &Context<'_>, stop: &AtomicBool) -> Result<Option<bool>> {
    let value = context.get_raw(0);
    if value == ValueRef::Null {
        return Ok(None);
    }
    // The pattern is the same for every row, so it is compiled once.
    let like = context.get_or_create_aux(2, |pattern| {
        let operator = context.get_raw(1).as_str().unwrap_or_default();
        let operator = Pattern::ALL
            .into_iter()
            .find(|known| known.as_str() == operator);
        let text = pattern.as_str().map_err(|error| error.to_string())?;
        Like::parse(operator.unwrap_or(Pattern::Contains), text)
    })?;
    let Some(text) = text(value) else {
        return Ok(Some(false));
    };
    match like.matches_unless(&text, &|| stop.load(Ordering::Relaxed)) {
        Some(matches) => Ok(Some(matches)),
        None => Err(Error::UserFunctionError("the query was given up".into())),
    }
}

/// A date in a form that compares as dates do; what is none stays what it is.
fn moment(context: &Context<'_>) -> Result<rusqlite::types::Value> {
    let value = context.get_raw(0);
    match value.as_str().ok().and_then(Moment::parse) {
        Some(moment) => Ok(moment.sortable().into()),
        None => Ok(value.try_into()?),
    }
}

/// A digest of all arguments, each with its type.
fn digest(context: &Context<'_>) -> Result<Vec<u8>> {
    let mut hash = Sha256::new();
    for at in 0..context.len() {
        let (kind, bytes) = match context.get_raw(at) {
            ValueRef::Null => (0, Vec::new()),
            ValueRef::Integer(number) => (1, number.to_be_bytes().to_vec()),
            ValueRef::Real(number) => (2, number.to_be_bytes().to_vec()),
            ValueRef::Text(text) => (3, text.to_vec()),
            ValueRef::Blob(bytes) => (4, bytes.to_vec()),
        };
        hash.update([kind]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    Ok(hash.finalize().to_vec())
}

/// The document of a row, as rows show it, and the one that was asked for; null for null.
fn with_json(
    context: &Context<'_>,
    holds: impl FnOnce(&Value, &Value) -> bool,
) -> Result<Option<bool>> {
    let mut shown = Vec::new();
    match context.get_raw(0) {
        ValueRef::Null => return Ok(None),
        ValueRef::Integer(number) => write_int(&mut shown, number),
        ValueRef::Real(number) => write_f64(&mut shown, number),
        ValueRef::Blob(bytes) => write_base64(&mut shown, bytes),
        ValueRef::Text(text) => write_raw_json(&mut shown, text),
    }
    // A document that is nested too deeply to be compared equals nothing.
    let Ok(held) = serde_json::from_slice(&shown) else {
        return Ok(Some(false));
    };
    let asked = context.get_or_create_aux(1, |asked| {
        let text = asked.as_str().map_err(|error| error.to_string())?;
        serde_json::from_str::<Value>(text).map_err(|error| error.to_string())
    });
    let asked = asked.map_err(|error| Error::UserFunctionError(error.to_string().into()))?;
    Ok(Some(holds(&held, &asked)))
}

/// Equality of documents: the order of members does not count, and numbers are compared as numbers.
fn equals(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(_), Value::Number(_)) => Numeral::of(left) == Numeral::of(right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| equals(l, r))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .all(|(name, value)| right.get(name).is_some_and(|other| equals(value, other)))
        }
        (left, right) => left == right,
    }
}

/// Containment as PostgreSQL has it: an object's members and an array's elements are found in the other, in
/// whatever order; an array at the top also contains a single value.
fn contains(held: &Value, asked: &Value, top: bool) -> bool {
    match (held, asked) {
        (Value::Object(held), Value::Object(asked)) => asked.iter().all(|(name, value)| {
            held.get(name)
                .is_some_and(|other| contains(other, value, false))
        }),
        (Value::Array(held), Value::Array(asked)) => asked
            .iter()
            .all(|value| held.iter().any(|other| contains(other, value, false))),
        (Value::Array(held), single) if top && !single.is_object() => {
            held.iter().any(|other| equals(other, single))
        }
        (held, asked) => equals(held, asked),
    }
}
