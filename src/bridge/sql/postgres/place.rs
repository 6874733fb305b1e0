//! Where rows stand in an order: how a column is ordered by, read as a key, and compared with one.

use sea_query::{Alias, Expr, ExprTrait};
use serde_json::Value;

use super::bound::{Bound, Left, bound};
use crate::bridge::BridgeError;
use crate::bridge::keys::{KeyValue, stale};
use crate::bridge::sql::shape::{Class, Column, Read, Shape};
use crate::bridge::sql::{BYTES, bytes_value, column};
use crate::query::filter::Comparison;

/// A column as it is compared. What enums, arrays and ranges have in common is not for domains of them, so it is
/// named by the type behind; for the type itself that says nothing.
pub(in crate::bridge::sql) fn compared(by: &Column) -> Expr {
    let generic = by.send.is_some() || matches!(by.class, Class::Enum(_) | Class::Array(_));
    match generic && !by.type_name.is_empty() {
        true => column(&by.name).cast_as(by.type_name.clone()),
        false => column(&by.name),
    }
}

/// A column as rows are ordered by it. A bare name would mean the output column of that name, which may be a text that
/// stands for the column, or a function of ours.
pub(in crate::bridge::sql) fn sorted_by(shape: &Shape, by: &Column) -> Expr {
    let table = Alias::new(&shape.table.name);
    match by.read {
        Read::Plain => Expr::col((table, Alias::new(&by.name))),
        _ => column(&by.name).cast_as(by.type_name.clone()),
    }
}

/// A column in the binary form in which it is compared with later.
pub(in crate::bridge::sql) fn key(by: &Column) -> Expr {
    match &by.send {
        // Functions for all enums, arrays or ranges do not take a domain of one.
        Some(send) => {
            let based = column(&by.name).cast_as(by.type_name.clone());
            Expr::cust_with_expr(format!("{send}($1)"), based)
        }
        None => column(&by.name),
    }
}

/// The value of a term of the order; without a column, of the digest.
pub(in crate::bridge::sql) fn key_value(
    by: Option<&Column>,
    value: &KeyValue,
) -> Result<Expr, BridgeError> {
    let binary = |bytes: &[u8], type_name: &str| {
        Expr::val(bytes_value(BYTES, bytes)).cast_as(type_name.to_owned())
    };
    let shown = |by, value: Value| match bound(by, Comparison::Eq, &value)? {
        Bound::Compare(side) if side.left == Left::Column => Ok(side.right()),
        _ => Err(stale()),
    };
    match (by, value) {
        (None, KeyValue::Bytes(bytes)) => Ok(binary(bytes, "bytea")),
        (Some(by), KeyValue::Typed { type_name, bytes }) if *type_name == by.type_name => {
            Ok(binary(bytes, type_name))
        }
        (Some(by), KeyValue::Int(number)) => shown(by, (*number).into()),
        (Some(by), KeyValue::Shown(value)) => shown(by, value.clone()),
        (Some(by), KeyValue::Text(text)) => {
            shown(by, String::from_utf8(text.clone()).or(Err(stale()))?.into())
        }
        _ => Err(stale()),
    }
}

/// A digest of what these columns say.
pub(in crate::bridge::sql) fn row_digest(columns: &[Column]) -> Expr {
    let places: Vec<_> = (1..=columns.len()).map(|n| format!("${n}")).collect();
    let template = format!("sha256(textsend(CAST(ROW({}) AS text)))", places.join(", "));
    Expr::cust_with_exprs(template, columns.iter().map(|by| column(&by.name)))
}
