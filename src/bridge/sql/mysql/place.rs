//! Where rows stand in an order: how a column is ordered by, read as a key, and compared with one.

use sea_query::{Expr, ExprTrait};
use serde_json::Value;

use super::{decimal, members};
use crate::bridge::BridgeError;
use crate::bridge::keys::{KeyValue, stale};
use crate::bridge::sql::condition::label;
use crate::bridge::sql::shape::{Class, Column, Order};
use crate::bridge::sql::{BYTES, bytes_value, column};
use crate::query::numeral::Numeral;

/// How many characters of a long text rows are ordered by.
const LONG_TEXT: u32 = 8_000;

/// The column in the form in which it is compared with later: a text of another character set byte by byte, since not
/// all that is stored there survives a conversion.
pub(in crate::bridge::sql) fn key(by: &Column) -> Expr {
    match foreign(by) {
        Some(_) => Expr::cust_with_expr("HEX(?)", ordered_by(by)),
        None => ordered_by(by),
    }
}

/// Says in a cursor that a value is the number of a label.
const ORDINAL: &str = "ordinal";

/// A value of a term as it goes into a cursor, with what it depends on: after a migration it is another's.
pub(in crate::bridge) fn placed(by: &Column, value: KeyValue) -> KeyValue {
    let typed = |type_name: &str, text: String| KeyValue::Typed {
        type_name: type_name.to_owned(),
        bytes: text.into_bytes(),
    };
    match (foreign(by), by.order, value) {
        (Some((charset, _)), _, KeyValue::Text(hex)) => KeyValue::Typed {
            type_name: charset.to_owned(),
            bytes: hex,
        },
        (None, Order::Ordinal, KeyValue::UInt(number)) => typed(ORDINAL, number.to_string()),
        (None, Order::Ordinal, KeyValue::Int(number)) => typed(ORDINAL, number.to_string()),
        (_, _, value) => value,
    }
}

/// The character set and collation of a text that the connection's own may not hold.
fn foreign(by: &Column) -> Option<(&str, &str)> {
    let (charset, collation) = by.charset.as_ref()?;
    (by.class == Class::Text && charset != "utf8mb4").then_some((charset, collation))
}

/// The column as it is compared in an order.
pub(in crate::bridge::sql) fn ordered_by(by: &Column) -> Expr {
    match by.order {
        Order::Ordinal => column(&by.name).cast_as("UNSIGNED"),
        _ => sorted_by(by),
    }
}

/// The column as rows are ordered by it. Of a long text so much as the server is sure to look at, with up to eight
/// bytes of weight for each character; what is alike so far has its place by the terms that follow.
pub(in crate::bridge::sql) fn sorted_by(by: &Column) -> Expr {
    match by.is_long {
        true => Expr::cust_with_expr(format!("LEFT(?, {LONG_TEXT})"), column(&by.name)),
        false => column(&by.name),
    }
}

/// The value of a term of the order; without a column, of the digest.
pub(in crate::bridge::sql) fn key_value(
    by: Option<&Column>,
    value: &KeyValue,
) -> Result<Expr, BridgeError> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).or(Err(stale()));
    let Some(by) = by else {
        return match value {
            KeyValue::Text(digest) => Ok(Expr::val(text(digest)?)),
            _ => Err(stale()),
        };
    };
    if let (Some((charset, collation)), KeyValue::Text(plain)) = (foreign(by), value) {
        return Ok(super::converted(charset, collation, &text(plain)?));
    }
    Ok(match (&by.class, value) {
        (_, KeyValue::Typed { type_name, bytes }) => match (foreign(by), by.order) {
            (Some((charset, collation)), _) if charset == type_name => {
                let template = format!("CONVERT(UNHEX(?) USING {charset}) COLLATE {collation}");
                Expr::cust_with_expr(template, Expr::val(text(bytes)?))
            }
            (None, Order::Ordinal) if type_name == ORDINAL => {
                Expr::val(text(bytes)?.parse::<u64>().or(Err(stale()))?)
            }
            _ => return Err(stale()),
        },
        (Class::Enum(labels) | Class::Set(labels), KeyValue::Text(shown)) => {
            // From a runner that knows no numbers.
            let shown = Value::from(text(shown)?);
            let number = match &by.class {
                Class::Enum(_) => label(by, labels, &shown).map(|(at, _)| at as u64 + 1),
                _ => members(by, labels, &shown),
            };
            Expr::val(number.or(Err(stale()))?)
        }
        (Class::Decimal, KeyValue::Text(number)) => {
            decimal(&Numeral::parse(&text(number)?).ok_or_else(stale)?)
        }
        (_, KeyValue::Int(number)) => Expr::val(*number),
        (_, KeyValue::UInt(number)) => Expr::val(*number),
        (_, KeyValue::Single(number)) => Expr::val(*number),
        (_, KeyValue::Double(number)) => Expr::val(*number),
        (_, KeyValue::Bytes(bytes)) => Expr::val(bytes_value(BYTES, bytes)),
        (_, KeyValue::Text(bytes)) => Expr::val(text(bytes)?),
        (Class::Single | Class::Double, KeyValue::Shown(value)) => {
            Expr::val(value.as_f64().ok_or_else(stale)?)
        }
        _ => return Err(stale()),
    })
}

/// A digest of what these columns say.
pub(in crate::bridge::sql) fn row_digest(columns: &[Column]) -> Expr {
    let each = |by: &Column| match by.class {
        Class::Single | Class::Double => "COALESCE(MD5(CAST(? AS DOUBLE)), '-')",
        Class::Text | Class::Bytes => "COALESCE(MD5(?), '-')",
        Class::Integer | Class::Enum(_) | Class::Set(_) => "COALESCE(MD5(? + 0), '-')",
        Class::Other if !by.has_equality => "COALESCE(MD5(ST_AsBinary(?)), '-')",
        _ => "COALESCE(MD5(CAST(? AS CHAR)), '-')",
    };
    let each: Vec<_> = columns.iter().map(each).collect();
    // CONCAT wants something.
    let template = format!("MD5(CONCAT({}))", [vec!["''"], each].concat().join(", "));
    Expr::cust_with_exprs(template, columns.iter().map(|by| column(&by.name)))
}
