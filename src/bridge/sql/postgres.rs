//! What PostgreSQL is told: values go out as text, which the named type reads: exact for every type there is.

use sea_query::{Expr, ExprTrait};
use serde_json::Value;

use super::condition::{always, bytes, comparison, label, never, wrong};
use super::number::{Fitted, beyond, fit, is_single};
use super::shape::{Class, Column, Read, Shape};
use super::{BYTES, bytes_value, column, join};
use crate::bridge::BridgeError;
use crate::bridge::keys::{KeyValue, stale};
use crate::query::filter::{Comparison, Filter};
use crate::query::like::{Flavour, Like};
use crate::query::moment::{ClockTime, Moment};
use crate::query::numeral::Numeral;

/// The digits that its integers have at most, and a numeric before and after the point.
const INTEGER_DIGITS: u64 = 19;
const NUMERIC_DIGITS: u64 = 131_072;
const NUMERIC_SCALE: u32 = 16_383;
/// The years of a date and of a timestamp.
const DATE_YEARS: std::ops::RangeInclusive<i64> = -4_712..=5_874_897;
const TIMESTAMP_YEARS: std::ops::RangeInclusive<i64> = -4_712..=294_276;

/// JSON that `json` takes and `jsonb` does not: a NUL, half a surrogate pair, a number with an absurd exponent.
const NOT_JSONB: &str = r"(?<!\\)(\\\\)*\\u0000|\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB][0-9a-fA-F]{2})\\u[dD][c-fC-F]|[0-9][eE][+-]?0*[0-9]{6,}";

/// How the column stands in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Column,
    Cast(&'static str),
    /// As `jsonb`, where that can be.
    Json,
}

/// A comparison of a column with a value.
#[derive(Debug, Clone, PartialEq)]
enum Bound {
    Never,
    Always,
    Compare(Side),
}

#[derive(Debug, Clone, PartialEq)]
struct Side {
    left: Left,
    op: Comparison,
    text: String,
    /// The type that reads the text.
    type_name: String,
}

impl Side {
    fn new(op: Comparison, text: impl Into<String>, type_name: impl Into<String>) -> Self {
        Self {
            left: Left::Column,
            op,
            text: text.into(),
            type_name: type_name.into(),
        }
    }

    fn cast(self, to: &'static str) -> Self {
        Self {
            left: Left::Cast(to),
            ..self
        }
    }

    /// The value, in the type that is compared.
    fn right(&self) -> Expr {
        let value = Expr::val(self.text.clone());
        if self.type_name.is_empty() {
            // A column that the catalogue does not list, such as `ctid`: it says itself what it is compared with.
            return value;
        }
        let value = value.cast_as(self.type_name.clone());
        match self.left {
            Left::Cast("text") if self.type_name != "text" => value.cast_as("text"),
            _ => value,
        }
    }
}

impl From<Side> for Bound {
    fn from(side: Side) -> Self {
        Self::Compare(side)
    }
}

pub(super) fn compare(by: &Column, op: Comparison, value: &Value) -> Result<Expr, BridgeError> {
    Ok(match bound(by, op, value)? {
        Bound::Never => never(by),
        Bound::Always => always(by),
        Bound::Compare(side) if side.left == Left::Json => {
            json_condition(by, op == Comparison::Ne, |json| {
                comparison(json, op, side.right())
            })
        }
        Bound::Compare(side) => comparison(left(by, side.left), side.op, side.right()),
    })
}

fn left(by: &Column, left: Left) -> Expr {
    match left {
        Left::Column => compared(by),
        Left::Cast(to) => column(&by.name).cast_as(to),
        Left::Json => column(&by.name).cast_as("jsonb"),
    }
}

/// A condition on a column as `jsonb`; what `jsonb` cannot hold equals nothing that can be asked for.
fn json_condition(by: &Column, otherwise: bool, condition: impl FnOnce(Expr) -> Expr) -> Expr {
    let json = condition(left(by, Left::Json));
    if by.type_name == "jsonb" {
        return json;
    }
    let text = column(&by.name).cast_as("text");
    let otherwise = Expr::cust(if otherwise { "TRUE" } else { "FALSE" });
    Expr::cust_with_exprs(
        "(CASE WHEN $1 ~ $2 THEN $3 ELSE $4 END)",
        [text, Expr::val(NOT_JSONB), otherwise, json],
    )
}

/// What a comparison with a value is.
fn bound(by: &Column, op: Comparison, value: &Value) -> Result<Bound, BridgeError> {
    let own = by.type_name.as_str();
    Ok(match &by.class {
        Class::Integer => {
            let number = numeral(by, "integers", value)?;
            // The next integer is what a comparison with a fraction means.
            number_bound(fit(op, &number, INTEGER_DIGITS, 0), |op, text| {
                Side::new(op, text, "numeric").into_integer(own)
            })
        }
        Class::Decimal | Class::Money => match special(value) {
            Some(special) if by.class == Class::Decimal => Side::new(op, special, "numeric").into(),
            _ => {
                let number = numeral(by, "numbers", value)?;
                let fitted = fit(op, &number, NUMERIC_DIGITS, NUMERIC_SCALE);
                let bound = number_bound(fitted, |op, text| Side::new(op, text, "numeric"));
                match bound {
                    // Its own text is the locale's.
                    Bound::Compare(side) if by.class == Class::Money => side.cast("numeric").into(),
                    bound => bound,
                }
            }
        },
        Class::Single => match special(value) {
            Some(special) => Side::new(op, special, "float4").into(),
            None => {
                let number = numeral(by, "numbers", value)?;
                let single = number.nearest_f32();
                match is_single(&number, single) {
                    true => Side::new(op, single.to_string(), "float4").into(),
                    false => match double(op, &number) {
                        Bound::Compare(side) => side.cast("float8").into(),
                        bound => bound,
                    },
                }
            }
        },
        Class::Double => match special(value) {
            Some(special) => Side::new(op, special, "float8").into(),
            None => double(op, &numeral(by, "numbers", value)?),
        },
        Class::Bool => match value {
            Value::Bool(flag) => Side::new(op, flag.to_string(), "bool").into(),
            _ => return Err(wrong(by, "true and false", value)),
        },
        Class::Text => match value {
            Value::String(text) => Side::new(op, text, own).into(),
            _ => return Err(wrong(by, "text", value)),
        },
        Class::Enum(labels) => Side::new(op, label(by, labels, value)?.1, own).into(),
        Class::Bytes => Side::new(op, hex(&bytes(by, value)?), own).into(),
        Class::Date => date(by, op, value)?,
        Class::DateTime { zone } => date_time(by, *zone, op, value)?,
        Class::Time { zone } => Side::new(op, time(by, *zone, value)?, own).into(),
        Class::Uuid => match value
            .as_str()
            .and_then(|text| text.parse::<uuid::Uuid>().ok())
        {
            Some(id) => Side::new(op, id.to_string(), "uuid").into(),
            None => return Err(wrong(by, "UUIDs", value)),
        },
        Class::Json => Bound::Compare(Side {
            left: Left::Json,
            ..Side::new(op, value.to_string(), "jsonb")
        }),
        Class::Array(element) => match value {
            Value::Array(elements) => {
                by_text_if_need_be(by, Side::new(op, array(by, element, elements)?, own))
            }
            _ => return Err(wrong(by, "arrays", value)),
        },
        Class::Set(_) | Class::Any | Class::Other => match value {
            Value::Array(_) | Value::Object(_) => return Err(wrong(by, "single values", value)),
            value => by_text_if_need_be(by, Side::new(op, text(value), own)),
        },
    })
}

/// Types without equality (points, XML) are compared by their text.
fn by_text_if_need_be(by: &Column, side: Side) -> Bound {
    match by.has_equality {
        true => side.into(),
        false => side.cast("text").into(),
    }
}

impl Side {
    /// Read as the column's own type where that can hold the number: an index on the column then serves.
    fn into_integer(self, own: &str) -> Self {
        let fits = match own {
            "smallint" => self.text.parse::<i16>().is_ok(),
            "integer" => self.text.parse::<i32>().is_ok(),
            _ => self.text.parse::<i64>().is_ok(),
        };
        let type_name = match (fits, own) {
            (true, "smallint" | "integer" | "bigint") => own,
            _ => "numeric",
        };
        Self {
            type_name: type_name.to_owned(),
            ..self
        }
    }
}

fn number_bound(fitted: Fitted, side: impl FnOnce(Comparison, String) -> Side) -> Bound {
    match fitted {
        Fitted::Never => Bound::Never,
        Fitted::Always => Bound::Always,
        Fitted::Compare(op, number) => match number.plain(usize::MAX) {
            Some(text) => side(op, text).into(),
            None => Bound::Never,
        },
    }
}

/// A number compared with doubles: as the nearest one, unless it is beyond all of them.
fn double(op: Comparison, number: &Numeral) -> Bound {
    let double = number.nearest_f64();
    if double.is_finite() {
        return Side::new(op, double.to_string(), "float8").into();
    }
    let negative = number.is_negative();
    let (limit, infinite) = if negative {
        (f64::MIN, "-Infinity")
    } else {
        (f64::MAX, "Infinity")
    };
    match op {
        // Only infinity itself is beyond.
        Comparison::Gt | Comparison::Gte if !negative => {
            Side::new(Comparison::Gte, infinite, "float8").into()
        }
        Comparison::Lt | Comparison::Lte if negative => {
            Side::new(Comparison::Lte, infinite, "float8").into()
        }
        Comparison::Gt | Comparison::Gte => {
            Side::new(Comparison::Gte, limit.to_string(), "float8").into()
        }
        Comparison::Lt | Comparison::Lte => {
            Side::new(Comparison::Lte, limit.to_string(), "float8").into()
        }
        Comparison::Eq => Bound::Never,
        Comparison::Ne => Bound::Always,
    }
}

pub(super) fn numeral(by: &Column, holds: &str, value: &Value) -> Result<Numeral, BridgeError> {
    Numeral::of(value).ok_or_else(|| wrong(by, holds, value))
}

/// What is no number and yet a value of a float.
pub(super) fn special(value: &Value) -> Option<&str> {
    value
        .as_str()
        .filter(|text| matches!(*text, "NaN" | "Infinity" | "-Infinity"))
}

/// A moment in UTC; what is finer than the database's microseconds is refused rather than rounded.
pub(super) fn moment(by: &Column, value: &Value) -> Result<Moment, BridgeError> {
    let moment = value.as_str().and_then(Moment::parse);
    let moment = moment.ok_or_else(|| wrong(by, "dates, written as in ISO 8601", value))?;
    if moment.is_finer_than_micros() {
        return Err(wrong(
            by,
            "times of up to six digits after the second",
            value,
        ));
    }
    Ok(moment.to_utc())
}

fn infinity(value: &Value) -> Option<&str> {
    value
        .as_str()
        .filter(|text| matches!(*text, "infinity" | "-infinity"))
}

fn date(by: &Column, op: Comparison, value: &Value) -> Result<Bound, BridgeError> {
    if let Some(infinity) = infinity(value) {
        return Ok(Side::new(op, infinity, "date").into());
    }
    let moment = real(by, value)?;
    if moment.is_date_only() {
        return Ok(match DATE_YEARS.contains(&moment.year) {
            true => Side::new(op, moment.postgres(), "date").into(),
            false => outside(op, &moment),
        });
    }
    Ok(match TIMESTAMP_YEARS.contains(&moment.year) {
        true => Side::new(op, moment.postgres(), "timestamp")
            .cast("timestamp")
            .into(),
        false => outside(op, &moment),
    })
}

fn date_time(by: &Column, zone: bool, op: Comparison, value: &Value) -> Result<Bound, BridgeError> {
    let type_name = if zone { "timestamptz" } else { "timestamp" };
    if let Some(infinity) = infinity(value) {
        return Ok(Side::new(op, infinity, type_name).into());
    }
    let moment = real(by, value)?;
    Ok(match TIMESTAMP_YEARS.contains(&moment.year) {
        // The session's own zone is UTC.
        true => Side::new(op, moment.postgres(), type_name).into(),
        false => outside(op, &moment),
    })
}

fn real(by: &Column, value: &Value) -> Result<Moment, BridgeError> {
    let moment = moment(by, value)?;
    match moment.is_real() {
        true => Ok(moment),
        false => Err(wrong(by, "days that there are", value)),
    }
}

fn outside(op: Comparison, moment: &Moment) -> Bound {
    match beyond(op, moment.year < 0) {
        Fitted::Always => Bound::Always,
        _ => Bound::Never,
    }
}

fn time(by: &Column, zone: bool, value: &Value) -> Result<String, BridgeError> {
    let text = value.as_str().unwrap_or_default();
    match ClockTime::parse(text) {
        Some(time) if time.offset_seconds.is_some() && !zone => {
            Err(wrong(by, "times of day without a zone", value))
        }
        Some(time) if zone && time.offset_seconds.is_none() => Ok(format!("{text}+00")),
        Some(_) => Ok(text.to_owned()),
        None => Err(wrong(by, "times of day", value)),
    }
}

/// A value as text.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Bytes in PostgreSQL's own notation.
pub(in crate::bridge) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("\\x"), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Values that are compared alike go as one array.
pub(super) fn is_in(by: &Column, values: &[Value], negated: bool) -> Result<Expr, BridgeError> {
    let mut groups: Vec<(Side, Vec<Value>)> = Vec::new();
    for value in values {
        let Bound::Compare(side) = bound(by, Comparison::Eq, value)? else {
            continue;
        };
        let text = Value::from(side.text.as_str());
        let alike = |(other, _): &&mut (Side, _)| {
            other.left == side.left && other.type_name == side.type_name
        };
        match groups.iter_mut().find(alike) {
            Some((_, texts)) => texts.push(text),
            None => groups.push((side, vec![text])),
        }
    }
    let conditions = groups.into_iter().map(|(side, texts)| {
        let list = Expr::val(literal(&texts));
        let list = match side.type_name.as_str() {
            "" => list,
            type_name => list.cast_as(format!("{type_name}[]")),
        };
        let list = match side.left {
            Left::Cast("text") => list.cast_as("text[]"),
            _ => list,
        };
        let template = if negated {
            "($1 <> ALL ($2))"
        } else {
            "($1 = ANY ($2))"
        };
        let listed = |left| Expr::cust_with_exprs(template, [left, list]);
        match side.left {
            Left::Json => json_condition(by, negated, listed),
            other => listed(left(by, other)),
        }
    });
    let with = if negated { Expr::and } else { Expr::or };
    let all = join(conditions.collect(), with);
    Ok(all.unwrap_or_else(|| if negated { always(by) } else { never(by) }))
}

/// An array in PostgreSQL's own notation, from elements as rows show them.
fn array(by: &Column, class: &Class, elements: &[Value]) -> Result<String, BridgeError> {
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
fn literal(elements: &[Value]) -> String {
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

/// The string operators. Without case it is a regular expression that names both cases of each letter, so that no
/// locale of the server decides which letters there are. A database that does not have all letters could not even
/// read it; there its locale decides.
pub(super) fn matches(shape: &Shape, by: &Column, like: &Like, pattern: &str) -> Expr {
    let text = match by.class {
        Class::Text => column(&by.name),
        _ => column(&by.name).cast_as("text"),
    };
    if like.is_folded() && !shape.is_utf8 {
        return Expr::cust_with_exprs("($1 ILIKE $2)", [text, Expr::val(like.pattern())]);
    }
    if like.is_folded() {
        let regex = Expr::val(like.regex(Flavour::Postgres));
        return Expr::cust_with_exprs("(($1) COLLATE \"C\" ~ $2)", [text, regex]);
    }
    let template = if by.is_loose {
        "(($1) COLLATE \"C\" LIKE $2)"
    } else {
        "($1 LIKE $2)"
    };
    Expr::cust_with_exprs(template, [text, Expr::val(pattern)])
}

pub(super) fn array_contains(by: &Column, value: &Value) -> Result<Expr, BridgeError> {
    let Class::Array(class) = &by.class else {
        return Ok(never(by));
    };
    if !by.has_equality {
        return Err(wrong(by, "arrays whose elements cannot be compared", value));
    }
    let one = std::slice::from_ref(value);
    let elements = value.as_array().map_or(one, Vec::as_slice);
    let list = Expr::val(array(by, class, elements)?).cast_as(by.type_name.clone());
    Ok(Expr::cust_with_exprs(
        "($1 @> $2)",
        [column(&by.name), list],
    ))
}

pub(super) fn json_contains(by: &Column, value: &Value) -> Expr {
    let value = Expr::val(value.to_string()).cast_as("jsonb");
    json_condition(by, false, |json| {
        Expr::cust_with_exprs("($1 @> $2)", [json, value])
    })
}

/// A column as it is compared. What enums, arrays and ranges have in common is not for domains of them, so it is
/// named by the type behind; for the type itself that says nothing.
pub(super) fn compared(by: &Column) -> Expr {
    let generic = by.send.is_some() || matches!(by.class, Class::Enum(_) | Class::Array(_));
    match generic && !by.type_name.is_empty() {
        true => column(&by.name).cast_as(by.type_name.clone()),
        false => column(&by.name),
    }
}

/// A column as rows are ordered by it. A bare name would mean the output column of that name, which for a column that
/// is read as text is the text.
pub(super) fn sorted_by(by: &Column) -> Expr {
    match by.read {
        Read::Plain => column(&by.name),
        _ => column(&by.name).cast_as(by.type_name.clone()),
    }
}

/// A column in the binary form in which it is compared with later.
pub(super) fn key(by: &Column) -> Expr {
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
pub(super) fn key_value(by: Option<&Column>, value: &KeyValue) -> Result<Expr, BridgeError> {
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

/// A digest of what all columns say.
pub(super) fn row_digest(shape: &Shape) -> Expr {
    let columns = shape.columns();
    let places: Vec<_> = (1..=columns.len()).map(|n| format!("${n}")).collect();
    let template = format!("sha256(textsend(CAST(ROW({}) AS text)))", places.join(", "));
    Expr::cust_with_exprs(template, columns.iter().map(|by| column(&by.name)))
}

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
