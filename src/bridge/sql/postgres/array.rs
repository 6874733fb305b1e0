//! Arrays in PostgreSQL's own notation.

use serde_json::Value;

use super::bound::{hex, text};
use crate::bridge::BridgeError;
use crate::bridge::sql::condition::{bytes, wrong};
use crate::bridge::sql::shape::{Class, Column};

/// An array in PostgreSQL's own notation, from elements as rows show them.
pub(super) fn array(by: &Column, class: &Class, elements: &[Value]) -> Result<String, BridgeError> {
    fn converted(by: &Column, class: &Class, element: &Value) -> Result<Value, BridgeError> {
        Ok(match (class, element) {
            (_, Value::Null) => Value::Null,
            (Class::Json, json) => Value::from(json.to_string()),
            (_, Value::Array(inner)) => {
                let inner = inner.iter().map(|element| converted(by, class, element));
                inner.collect::<Result<Vec<_>, _>>()?.into()
            }
            (Class::Bytes, element) => Value::from(hex(&bytes(by, element)?)),
            (_, Value::Object(_)) => return Err(wrong(by, "arrays of single values", element)),
            (_, element) => Value::from(text(element)),
        })
    }
    let elements = elements.iter().map(|element| converted(by, class, element));
    Ok(literal(&elements.collect::<Result<Vec<_>, _>>()?))
}

/// Texts, nulls and arrays of them as an array literal, each text quoted.
pub(super) fn literal(elements: &[Value]) -> String {
    let mut out = String::from("{");
    for (i, element) in elements.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match element {
            Value::Null => out.push_str("NULL"),
            Value::Array(inner) => out.push_str(&literal(inner)),
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
