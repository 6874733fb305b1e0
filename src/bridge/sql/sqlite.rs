//! What SQLite is told. A column's type there is a recommendation, and every value has a type of its own: a value
//! is bound as what it is, and as all that a row could show in that form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sea_query::{Expr, ExprTrait};
use serde_json::Value;

use super::condition::{MAX_SINGLE_VALUES, comparison, wrong};
use super::shape::{Class, Column};
use super::{BYTES, LIST, Param, RAW_TEXT, bytes_value, column, join};
use crate::bridge::BridgeError;
use crate::bridge::keys::{KeyValue, stale};
use crate::query::filter::{Comparison, Pattern};
use crate::query::lens::FieldType;
use crate::query::moment::Moment;
use crate::query::numeral::Numeral;

/// Up to here an integer is shown as a number.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

pub(super) fn compare(
    by: &Column,
    kind: Option<FieldType>,
    op: Comparison,
    value: &Value,
) -> Result<Expr, BridgeError> {
    match op {
        Comparison::Eq => return is_in(by, kind, std::slice::from_ref(value), false),
        Comparison::Ne => return is_in(by, kind, std::slice::from_ref(value), true),
        _ => {}
    }
    match value.as_str().and_then(Moment::parse) {
        // What is no date is neither before one nor after it.
        Some(moment) if kind == Some(FieldType::Date) => {
            let instant = Expr::cust_with_expr("semilayer_instant(?)", column(&by.name));
            Ok(comparison(instant, op, Expr::val(moment.sortable())))
        }
        _ => match values(by, kind, value)?.into_iter().next() {
            Some(first) => Ok(comparison(column(&by.name), op, expr(&first))),
            None => Err(wrong(by, "values without an order", value)),
        },
    }
}

/// A date in whatever way it is written, in a form that compares as dates do.
fn moment_of(by: &Column) -> Expr {
    Expr::cust_with_expr("semilayer_moment(?)", column(&by.name))
}

pub(super) fn is_in(
    by: &Column,
    kind: Option<FieldType>,
    values: &[Value],
    negated: bool,
) -> Result<Expr, BridgeError> {
    let (mut plain, mut moments, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    let dates = kind == Some(FieldType::Date);
    for value in values {
        match value.as_str().and_then(Moment::parse).filter(|_| dates) {
            Some(moment) => moments.push(Param::Text(moment.sortable())),
            None if by.class == Class::Json
                || kind == Some(FieldType::Json)
                || value.is_object()
                || value.is_array() =>
            {
                documents.push(json_equals(by, value)?);
            }
            None => plain.extend(self::values(by, kind, value)?),
        }
    }
    let mut conditions = documents;
    if !moments.is_empty() {
        conditions.push(among(moment_of(by), moments));
    }
    if !plain.is_empty() {
        conditions.push(among(column(&by.name), plain));
    }
    let any = join(conditions, Expr::or).unwrap_or_else(|| super::truth(false));
    Ok(if negated { any.not() } else { any })
}

fn among(left: Expr, mut values: Vec<Param>) -> Expr {
    match values.len() {
        1 => left.eq(expr(&values.remove(0))),
        n if n <= MAX_SINGLE_VALUES => left.is_in(values.iter().map(expr)),
        _ => {
            // A list takes no text that is not in UTF-8 but as bytes.
            let (raw, values): (Vec<_>, Vec<_>) = values
                .into_iter()
                .partition(|value| matches!(value, Param::RawText(_)));
            let list = |values: &[Param]| Expr::val(bytes_value(LIST, &write_list(values)));
            let plain = Expr::cust_with_exprs("(? IN rarray(?))", [left.clone(), list(&values)]);
            if raw.is_empty() {
                return plain;
            }
            let bytes = raw.into_iter().map(|value| match value {
                Param::RawText(text) => Param::Bytes(text),
                other => other,
            });
            let texts = list(&bytes.collect::<Vec<_>>());
            let template = "(? IN (SELECT CAST(value AS TEXT) FROM rarray(?)))";
            plain.or(Expr::cust_with_exprs(template, [left, texts]))
        }
    }
}

fn expr(value: &Param) -> Expr {
    match value {
        Param::Text(text) => Expr::val(text.as_str()),
        Param::Int(number) => Expr::val(*number),
        Param::Double(number) => Expr::val(*number),
        Param::Bytes(bytes) => Expr::val(bytes_value(BYTES, bytes)),
        Param::RawText(bytes) => Expr::val(bytes_value(RAW_TEXT, bytes)),
        Param::UInt(number) => Expr::val(*number),
        Param::Single(number) => Expr::val(f64::from(*number)),
        Param::List(list) => Expr::val(bytes_value(LIST, &write_list(list))),
    }
}

/// All values of a column that rows show as this one, the likeliest first.
fn values(by: &Column, kind: Option<FieldType>, value: &Value) -> Result<Vec<Param>, BridgeError> {
    let is_number = matches!(kind, Some(FieldType::Number | FieldType::Decimal));
    Ok(match value {
        Value::Bool(_) | Value::Number(_) if by.class == Class::Text => {
            return Err(wrong(by, "text", value));
        }
        Value::Bool(flag) => vec![Param::Int((*flag).into())],
        Value::Number(_) => vec![number(
            &Numeral::of(value).ok_or_else(|| wrong(by, "numbers", value))?,
        )],
        Value::String(text) => {
            let mut values = vec![Param::Text(text.clone())];
            // Rows show some numbers as texts; a column that declares nothing would compare them as such.
            if let Some(numeral) =
                Numeral::parse(text).filter(|_| is_number && by.class != Class::Text)
            {
                values.insert(0, number(&numeral));
            }
            if let Ok(bytes) = BASE64.decode(text) {
                // Text that is not in UTF-8 is shown like bytes.
                let is_text = std::str::from_utf8(&bytes).is_ok();
                values.extend((!is_text).then(|| Param::RawText(bytes.clone())));
                values.push(Param::Bytes(bytes));
            }
            if by.class != Class::Text {
                values.extend(number_shown_as(text));
            }
            values
        }
        Value::Null | Value::Array(_) | Value::Object(_) => {
            return Err(wrong(by, "single values", value));
        }
    })
}

fn number(number: &Numeral) -> Param {
    number
        .as_i64()
        .map_or_else(|| Param::Double(number.nearest_f64()), Param::Int)
}

/// A number that rows show as a text.
fn number_shown_as(text: &str) -> Option<Param> {
    match text {
        "Infinity" => Some(Param::Double(f64::INFINITY)),
        "-Infinity" => Some(Param::Double(f64::NEG_INFINITY)),
        _ => {
            let number: i64 = text.parse().ok()?;
            let large = number.unsigned_abs() > MAX_SAFE_INTEGER;
            (large && number.to_string() == text).then_some(Param::Int(number))
        }
    }
}

fn json_equals(by: &Column, value: &Value) -> Result<Expr, BridgeError> {
    if by.class == Class::Text {
        return Err(wrong(by, "text", value));
    }
    let value = Expr::val(value.to_string());
    Ok(Expr::cust_with_exprs(
        "semilayer_json_equals(?, ?)",
        [column(&by.name), value],
    ))
}

pub(super) fn json_contains(by: &Column, value: &Value) -> Expr {
    let value = Expr::val(value.to_string());
    Expr::cust_with_exprs("semilayer_json_contains(?, ?)", [column(&by.name), value])
}

/// The string operators, by a function of ours: SQLite's own know the case of ASCII only.
pub(super) fn matches(by: &Column, pattern: Pattern, text: &str) -> Expr {
    let values = [
        column(&by.name),
        Expr::val(pattern.as_str()),
        Expr::val(text),
    ];
    Expr::cust_with_exprs("semilayer_matches(?, ?, ?)", values)
}

/// The value of a term of the order; without a column, of the digest.
pub(super) fn key_value(_: Option<&Column>, value: &KeyValue) -> Result<Expr, BridgeError> {
    Ok(match value {
        KeyValue::Int(number) => Expr::val(*number),
        KeyValue::Double(number) => Expr::val(*number),
        KeyValue::Text(text) => Expr::val(bytes_value(RAW_TEXT, text)),
        KeyValue::Bytes(bytes) => Expr::val(bytes_value(BYTES, bytes)),
        KeyValue::Shown(value @ Value::Number(_)) => Expr::val(value.as_f64().ok_or_else(stale)?),
        KeyValue::Shown(Value::Bool(flag)) => Expr::val(i64::from(*flag)),
        _ => return Err(stale()),
    })
}

/// A digest of what these columns say.
pub(super) fn row_digest(columns: &[Column]) -> Expr {
    let template = format!("semilayer_digest({})", vec!["?"; columns.len()].join(", "));
    Expr::cust_with_exprs(template, columns.iter().map(|by| column(&by.name)))
}

/// Values as bytes, each behind its length.
fn write_list(values: &[Param]) -> Vec<u8> {
    let (mut out, mut one) = (Vec::new(), Vec::new());
    for value in values {
        one.clear();
        key_of(value).write(&mut one);
        out.extend_from_slice(&(one.len() as u64).to_be_bytes());
        out.extend_from_slice(&one);
    }
    out
}

fn key_of(value: &Param) -> KeyValue {
    match value {
        Param::Text(text) => KeyValue::Text(text.clone().into_bytes()),
        Param::RawText(text) => KeyValue::Text(text.clone()),
        Param::Int(number) => KeyValue::Int(*number),
        Param::UInt(number) => KeyValue::UInt(*number),
        Param::Single(number) => KeyValue::Double((*number).into()),
        Param::Double(number) => KeyValue::Double(*number),
        Param::Bytes(bytes) => KeyValue::Bytes(bytes.clone()),
        Param::List(_) => KeyValue::Null,
    }
}

/// Reads what [`write_list`] wrote.
pub(super) fn read_list(mut bytes: &[u8]) -> Vec<Param> {
    let mut values = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let length = usize::try_from(u64::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some((one, rest)) = rest.split_at_checked(length) else {
            break;
        };
        values.extend(KeyValue::read(one).and_then(|value| match value {
            KeyValue::Text(text) => Some(Param::RawText(text)),
            KeyValue::Int(number) => Some(Param::Int(number)),
            KeyValue::Double(number) => Some(Param::Double(number)),
            KeyValue::Bytes(bytes) => Some(Param::Bytes(bytes)),
            _ => None,
        }));
        bytes = rest;
    }
    values
}
