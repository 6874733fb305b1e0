//! Arrays in PostgreSQL's own notation.

use serde_json::Value;

use super::bound::{hex, infinity, real, text};
use crate::bridge::BridgeError;
use crate::bridge::sql::condition::{bytes, wrong};
use crate::bridge::sql::shape::{Class, Column};
use crate::query::moment::{Moment, Time};
use crate::query::numeral::Numeral;

/// An array in PostgreSQL's own notation, from elements as rows show them.
pub(super) fn array(by: &Column, class: &Class, elements: &[Value]) -> Result<String, BridgeError> {
    let elements = elements.iter().map(|value| element(by, class, value));
    let delimiter = if by.type_name == "box[]" { ';' } else { ',' };
    Ok(literal(
        &elements.collect::<Result<Vec<_>, _>>()?,
        delimiter,
    ))
}

/// An element, as it is written within an array.
fn element(by: &Column, class: &Class, value: &Value) -> Result<Value, BridgeError> {
    Ok(match (class, value) {
        (_, Value::Null) => Value::Null,
        (Class::Json, json) => Value::from(json.to_string()),
        (_, Value::Array(inner)) => {
            let inner = inner.iter().map(|value| element(by, class, value));
            inner.collect::<Result<Vec<_>, _>>()?.into()
        }
        (_, Value::Object(_)) => return Err(wrong(by, "arrays of single values", value)),
        (Class::Bytes, value) => Value::from(hex(&bytes(by, value)?)),
        (Class::Text, Value::String(_)) | (Class::Bool, Value::Bool(_)) => Value::from(text(value)),
        (Class::Text, _) => return Err(wrong(by, "arrays of texts", value)),
        (Class::Bool, _) => return Err(wrong(by, "arrays of true and false", value)),
        (Class::Integer, value) => {
            let number = Numeral::of(value).filter(Numeral::is_integer);
            let digits = number.and_then(|number| number.plain(20));
            Value::from(digits.ok_or_else(|| wrong(by, "arrays of integers", value))?)
        }
        (Class::Date | Class::DateTime { .. }, value) if infinity(value).is_none() => {
            moment_text(by, class, value)?.into()
        }
        (_, value) => Value::from(text(value)),
    })
}

/// A date or time of an element: in UTC, as for columns of such.
fn moment_text(by: &Column, class: &Class, value: &Value) -> Result<String, BridgeError> {
    let moment = real(by, value)?;
    match (class, moment.time) {
        (Class::Date, Some(time)) if time != Time::default() => {
            Err(wrong(by, "arrays of dates without a time of day", value))
        }
        (Class::Date, _) => Ok(Moment {
            time: None,
            ..moment
        }
        .postgres()),
        _ => Ok(moment.postgres()),
    }
}

/// Texts, nulls and arrays of them as an array literal, each text quoted.
pub(super) fn literal(elements: &[Value], delimiter: char) -> String {
    let mut out = String::from("{");
    for (i, element) in elements.iter().enumerate() {
        if i > 0 {
            out.push(delimiter);
        }
        match element {
            Value::Null => out.push_str("NULL"),
            Value::Array(inner) => out.push_str(&literal(inner, delimiter)),
            other => {
                out.push('"');
                for c in text(other).chars() {
                    if matches!(c, '"' | '\\') {
                        out.push('\\');
                    }
                    out.push(c);
                }
                out.push('"');
            }
        }
    }
    out.push('}');
    out
}
