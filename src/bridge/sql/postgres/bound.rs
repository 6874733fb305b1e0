//! A value of a filter, as the text and the type that PostgreSQL reads it by.

use sea_query::{Expr, ExprTrait};
use serde_json::Value;

use super::array::array;
use crate::bridge::BridgeError;
use crate::bridge::sql::condition::{bytes, label, wrong};
use crate::bridge::sql::number::{Fitted, fit, is_single};
use crate::bridge::sql::shape::{Class, Column};
use crate::query::filter::Comparison;
use crate::query::moment::{ClockTime, Moment};
use crate::query::numeral::Numeral;

/// The digits that its integers have at most, and a numeric before and after the point.
const INTEGER_DIGITS: u64 = 19;
const NUMERIC_DIGITS: u64 = 131_072;
const NUMERIC_SCALE: u32 = 16_383;
const MOST_PLAIN_DIGITS: usize = 64;
/// The last years of a date and of a timestamp.
const LAST_DATE_YEAR: i64 = 5_874_897;
const LAST_TIMESTAMP_YEAR: i64 = 294_276;
/// Their first day, in 4714 BC.
const FIRST_DAY: (i64, u32, u32) = (-4_713, 11, 24);

/// How the column stands in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Column,
    Cast(&'static str),
    /// As `jsonb`, where that can be.
    Json,
}

/// A comparison of a column with a value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bound {
    Never,
    Always,
    Compare(Side),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Side {
    pub(super) left: Left,
    pub(super) op: Comparison,
    pub(super) text: String,
    /// The type that reads the text.
    pub(super) type_name: String,
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
    pub(super) fn right(&self) -> Expr {
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

/// What a comparison with a value is.
pub(super) fn bound(by: &Column, op: Comparison, value: &Value) -> Result<Bound, BridgeError> {
    let own = by.type_name.as_str();
    Ok(match &by.class {
        Class::Integer => {
            let number = match value {
                // A lens may call them booleans.
                Value::Bool(flag) => numeral(by, "integers", &i64::from(*flag).into())?,
                value => numeral(by, "integers", value)?,
            };
            // The next integer is what a comparison with a fraction means.
            number_bound(fit(op, &number, INTEGER_DIGITS, 0), |op, text| {
                Side::new(op, text, "numeric").into_integer(own)
            })
        }
        Class::Decimal | Class::Money => match special(value) {
            Some(special) if by.class == Class::Decimal => Side::new(op, special, "numeric").into(),
            _ => {
                let number = numeral(by, "numbers", value)?;
                if by.class == Class::Decimal && number.integer_digits() > NUMERIC_DIGITS {
                    return Ok(beyond_all(op, number.is_negative(), "Infinity", "numeric"));
                }
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
            // As a name it would be cut to the length of names.
            Value::String(text) if own == "name" => Side::new(op, text, "text").into(),
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
        Class::Other if matches!(own, "oid" | "xid" | "xid8" | "cid") => {
            Side::new(op, unsigned(by, value)?, own).into()
        }
        Class::Set(_) | Class::Any | Class::Other => match value {
            Value::Array(_) | Value::Object(_) => return Err(wrong(by, "single values", value)),
            // As a byte it would be cut to its first one.
            Value::String(text) if own == "\"char\"" && text.len() != 1 => {
                Side::new(op, text, "text").cast("text").into()
            }
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
        // Of a number with a large exponent the plain form would be a thousand times what was sent.
        Fitted::Compare(op, number) => match number.plain(MOST_PLAIN_DIGITS) {
            Some(text) => side(op, text).into(),
            None => side(op, number.scientific()).into(),
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

pub(in crate::bridge::sql) fn numeral(
    by: &Column,
    holds: &str,
    value: &Value,
) -> Result<Numeral, BridgeError> {
    Numeral::of(value).ok_or_else(|| wrong(by, holds, value))
}

/// What is no number and yet a value of a float.
pub(in crate::bridge::sql) fn special(value: &Value) -> Option<&str> {
    value
        .as_str()
        .filter(|text| matches!(*text, "NaN" | "Infinity" | "-Infinity"))
}

/// A moment in UTC; what is finer than the database's microseconds is refused rather than rounded.
pub(in crate::bridge::sql) fn moment(by: &Column, value: &Value) -> Result<Moment, BridgeError> {
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

pub(super) fn infinity(value: &Value) -> Option<&str> {
    value
        .as_str()
        .filter(|text| matches!(*text, "infinity" | "-infinity"))
}

fn date(by: &Column, op: Comparison, value: &Value) -> Result<Bound, BridgeError> {
    if let Some(infinity) = infinity(value) {
        return Ok(Side::new(op, infinity, "date").into());
    }
    let moment = real(by, value)?;
    let day = Moment {
        time: None,
        ..moment
    };
    if !has(&day, LAST_DATE_YEAR) {
        return Ok(outside(op, &day, "date"));
    }
    let midnight = moment.time.unwrap_or_default() == crate::query::moment::Time::default();
    // A day is at its midnight: between that and the next one there is none.
    let op = match op {
        op if midnight => op,
        Comparison::Gt | Comparison::Gte => Comparison::Gt,
        Comparison::Lt | Comparison::Lte => Comparison::Lte,
        Comparison::Eq => return Ok(Bound::Never),
        Comparison::Ne => return Ok(Bound::Always),
    };
    Ok(Side::new(op, day.postgres(), "date").into())
}

fn date_time(by: &Column, zone: bool, op: Comparison, value: &Value) -> Result<Bound, BridgeError> {
    let type_name = if zone { "timestamptz" } else { "timestamp" };
    if let Some(infinity) = infinity(value) {
        return Ok(Side::new(op, infinity, type_name).into());
    }
    let moment = real(by, value)?;
    Ok(match has(&moment, LAST_TIMESTAMP_YEAR) {
        // The session's own zone is UTC.
        true => Side::new(op, moment.postgres(), type_name).into(),
        false => outside(op, &moment, type_name),
    })
}

/// Whether a type whose last year this is has the day.
fn has(moment: &Moment, last_year: i64) -> bool {
    (moment.year, moment.month, moment.day) >= FIRST_DAY && moment.year <= last_year
}

pub(super) fn real(by: &Column, value: &Value) -> Result<Moment, BridgeError> {
    let moment = moment(by, value)?;
    match moment.is_real() {
        true => Ok(moment),
        false => Err(wrong(by, "days that there are", value)),
    }
}

/// A comparison with a day that the type does not have.
fn outside(op: Comparison, moment: &Moment, type_name: &str) -> Bound {
    beyond_all(op, moment.year < 0, "infinity", type_name)
}

/// A comparison with what is beyond all that a type has, but for its infinities.
fn beyond_all(op: Comparison, is_low: bool, infinity: &str, type_name: &str) -> Bound {
    let sign = if is_low { "-" } else { "" };
    let side = |op| Side::new(op, format!("{sign}{infinity}"), type_name).into();
    match (op, is_low) {
        (Comparison::Eq, _) => Bound::Never,
        (Comparison::Ne, _) => Bound::Always,
        (Comparison::Gt | Comparison::Gte, true) => side(Comparison::Gt),
        (Comparison::Lt | Comparison::Lte, true) => side(Comparison::Lte),
        (Comparison::Gt | Comparison::Gte, false) => side(Comparison::Gte),
        (Comparison::Lt | Comparison::Lte, false) => side(Comparison::Lt),
    }
}

/// A number of a type that reads whatever begins with digits, and takes the negative ones around to the other end.
fn unsigned(by: &Column, value: &Value) -> Result<String, BridgeError> {
    let most = if by.type_name == "xid8" {
        u64::MAX
    } else {
        u32::MAX.into()
    };
    let number = Numeral::of(value).and_then(|number| number.as_u64());
    match number.filter(|number| *number <= most) {
        Some(number) => Ok(number.to_string()),
        None => Err(wrong(by, &format!("whole numbers from 0 to {most}"), value)),
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
pub(in crate::bridge::sql) fn text(value: &Value) -> String {
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
