//! What MySQL and MariaDB are told. They compare what is of two kinds by guessing (a text with a number as doubles),
//! so every value is bound as what its column is, and one that cannot be that is refused.

mod place;

use sea_query::{Expr, ExprTrait};
use serde_json::Value;

pub(in crate::bridge) use self::place::placed;
pub(super) use self::place::{key, key_value, ordered_by, row_digest, sorted_by};
use super::condition::{always, bytes, comparison, fitted, label, never, wrong};
use super::number::{Fitted, beyond, fit, is_single};
use super::postgres::{moment, numeral, special};
use super::shape::{Class, Column};
use super::{BYTES, Dialect, bytes_value, column, join, truth};
use crate::bridge::BridgeError;
use crate::query::filter::Comparison;
use crate::query::like::{Flavour, Like};
use crate::query::moment::ClockTime;
use crate::query::numeral::Numeral;

/// The digits of a decimal, before and after the point.
const DECIMAL_DIGITS: u64 = 65;
const DECIMAL_SCALE: u32 = 30;
/// The digits of the largest integer, which is unsigned.
const INTEGER_DIGITS: u64 = 20;
/// The most values that are bound one by one, of 65,535 places that a statement has.
const MAX_PLACES: usize = 5_000;
/// The hours of the longest time, which ends a second before the next one.
const MAX_HOURS: u32 = 838;

pub(super) fn compare(
    dialect: Dialect,
    by: &Column,
    op: Comparison,
    value: &Value,
) -> Result<Expr, BridgeError> {
    let ordering = !matches!(op, Comparison::Eq | Comparison::Ne);
    let left = || number_of(by);
    let plain = |right: Expr| comparison(left(), op, right);
    Ok(match &by.class {
        Class::Json => return json(dialect, by, op, value),
        Class::Integer | Class::Bool => {
            let number = match value {
                Value::Bool(flag) => Numeral::parse(if *flag { "1" } else { "0" }),
                value => Numeral::of(value),
            };
            let number = number.ok_or_else(|| wrong(by, "integers", value))?;
            fitted(by, fit(op, &number, INTEGER_DIGITS, 0), |op, number| {
                comparison(left(), op, integer(number))
            })
        }
        Class::Decimal | Class::Money => {
            let number = numeral(by, "numbers", value)?;
            let fits = fit(op, &number, DECIMAL_DIGITS, scale_beside(&number));
            fitted(by, fits, |op, number| {
                comparison(left(), op, decimal(number))
            })
        }
        Class::Single | Class::Double if special(value).is_some() => not_finite(by, op, value),
        Class::Single | Class::Double => float(by, op, &numeral(by, "numbers", value)?),
        Class::Text => match value {
            Value::String(text) => self::text(by, op, text),
            _ => return Err(wrong(by, "text", value)),
        },
        Class::Enum(labels) => {
            // What is not in the list is stored as an empty text.
            if value.as_str() == Some("") && !labels.iter().any(String::is_empty) {
                return Ok(comparison(ordered_by(by), op, Expr::val(0_i64)));
            }
            let (at, text) = label(by, labels, value)?;
            match ordering {
                true => comparison(ordered_by(by), op, Expr::val(at as u64 + 1)),
                false => self::text(by, op, text),
            }
        }
        Class::Set(labels) => {
            comparison(ordered_by(by), op, Expr::val(members(by, labels, value)?))
        }
        Class::Bytes => plain(Expr::val(bytes_value(BYTES, &bytes(by, value)?))),
        Class::Date | Class::DateTime { .. } => return date(by, op, value),
        Class::Time { .. } => {
            let (text, clock) = time(by, value)?;
            match clock.hours > MAX_HOURS {
                true => fitted(by, beyond(op, clock.negative), |_, _| never(by)),
                false => plain(Expr::val(text)),
            }
        }
        Class::Uuid => match value
            .as_str()
            .and_then(|text| text.parse::<uuid::Uuid>().ok())
        {
            Some(id) => plain(Expr::val(id.to_string())),
            None => return Err(wrong(by, "UUIDs", value)),
        },
        Class::Array(_) | Class::Any | Class::Other => match value {
            // A column that the schema does not list: the database says what is wrong with it.
            _ if by.type_name.is_empty() => plain(Expr::val(value.to_string())),
            Value::String(text) if by.has_equality => plain(Expr::val(other(by, text, value)?)),
            // As rows show it.
            Value::String(text) if !ordering => {
                let shown = Expr::cust_with_expr("ST_AsText(?)", left());
                comparison(shown, op, Expr::val(text))
            }
            _ => {
                return Err(wrong(
                    by,
                    &format!("values of type {}", by.type_name),
                    value,
                ));
            }
        },
    })
}

/// A column as numbers are compared with it. A year would take `70` for 1970.
fn number_of(by: &Column) -> Expr {
    match by.type_name.as_str() {
        "year" => Expr::cust_with_expr("(? + 0)", column(&by.name)),
        _ => column(&by.name),
    }
}

/// How many digits there can be after the point beside those before it.
fn scale_beside(number: &Numeral) -> u32 {
    let room = DECIMAL_DIGITS.saturating_sub(number.integer_digits());
    u32::try_from(room).map_or(0, |room| std::cmp::min(DECIMAL_SCALE, room))
}

fn integer(number: &Numeral) -> Expr {
    match (number.as_i64(), number.as_u64()) {
        (Some(number), _) => Expr::val(number),
        (None, Some(number)) => Expr::val(number),
        (None, None) => decimal(number),
    }
}

/// An exact number; a number in a text would be compared as a double.
fn decimal(number: &Numeral) -> Expr {
    let (before, after) = (number.integer_digits(), number.fraction_digits());
    let digits = (before + after).clamp(1, DECIMAL_DIGITS);
    let text = number
        .plain(DECIMAL_DIGITS as usize + 3)
        .unwrap_or_default();
    Expr::val(text).cast_as(format!("DECIMAL({digits},{after})"))
}

fn float(by: &Column, op: Comparison, number: &Numeral) -> Expr {
    let single = number.nearest_f32();
    if by.class == Class::Single && is_single(number, single) {
        return comparison(column(&by.name), op, Expr::val(single));
    }
    let double = number.nearest_f64();
    match double.is_finite() {
        true => comparison(column(&by.name), op, Expr::val(double)),
        false => fitted(by, beyond(op, number.is_negative()), |_, _| never(by)),
    }
}

/// There is neither infinity nor NaN here.
fn not_finite(by: &Column, op: Comparison, value: &Value) -> Expr {
    match (special(value), op) {
        (Some("NaN"), Comparison::Ne) => always(by),
        (Some("NaN"), _) => never(by),
        (special, op) => fitted(by, beyond(op, special == Some("-Infinity")), |_, _| {
            never(by)
        }),
    }
}

/// A text. What the column's character set does not have equals nothing in it.
fn text(by: &Column, op: Comparison, text: &str) -> Expr {
    let Some((charset, collation)) = by
        .charset
        .as_ref()
        .filter(|(charset, _)| !holds(charset, text))
    else {
        return comparison(column(&by.name), op, Expr::val(text));
    };
    if matches!(op, Comparison::Eq | Comparison::Ne) {
        let same = column(&by.name).eq(converted(charset, collation, text));
        let there = is_there(charset, text);
        // Unknown for null also where nothing can be equal.
        let equal = same.and(there).or(never(by));
        return match op {
            Comparison::Eq => equal,
            _ => equal.not(),
        };
    }
    // What the character set has is compared as rows are ordered; what it lacks has no place in that order.
    let own = format!("(? COLLATE {collation})");
    let own = comparison(
        Expr::cust_with_expr(own, column(&by.name)),
        op,
        converted(charset, collation, text),
    );
    let wide = comparison(
        Expr::cust_with_expr(wide(collation), column(&by.name)),
        op,
        Expr::val(text),
    );
    let cases = [is_there(charset, text), own, wide];
    Expr::cust_with_exprs("(CASE WHEN ? THEN ? ELSE ? END)", cases)
}

/// A text in the character set of a column.
fn converted(charset: &str, collation: &str, text: &str) -> Expr {
    let template = format!("(CONVERT(? USING {charset}) COLLATE {collation})");
    Expr::cust_with_expr(template, Expr::val(text))
}

/// Whether a character set has all characters of a text.
fn is_there(charset: &str, text: &str) -> Expr {
    let template = format!("(BINARY CONVERT(CONVERT(? USING {charset}) USING utf8mb4) = BINARY ?)");
    Expr::cust_with_exprs(template, [Expr::val(text), Expr::val(text)])
}

/// A text of another character set in the one that has all characters, in an order of the same kind.
fn wide(collation: &str) -> &'static str {
    match collation.ends_with("_bin") {
        true => "CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin",
        false => "CONVERT(? USING utf8mb4) COLLATE utf8mb4_general_ci",
    }
}

/// Whether a character set certainly has every character of a text.
fn holds(charset: &str, text: &str) -> bool {
    match charset {
        "utf8mb4" => true,
        "utf8mb3" | "utf8" => text.chars().all(|c| c <= '\u{FFFF}'),
        // It has Swedish letters in the place of some of ASCII's.
        "swe7" => text.chars().all(|c| c.is_ascii_alphanumeric() || c == ' '),
        // The wide ones do not have ASCII's bytes, but they have its characters.
        _ => text.is_ascii(),
    }
}

/// The number of a set: a bit for each of its members.
fn members(by: &Column, labels: &[String], value: &Value) -> Result<u64, BridgeError> {
    let text = value
        .as_str()
        .ok_or_else(|| wrong(by, "sets, written as texts", value))?;
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| label(by, labels, &part.into()))
        .try_fold(0, |bits, found| {
            let (at, _) = found?;
            Ok(bits
                | 1_u64
                    .checked_shl(u32::try_from(at).unwrap_or(64))
                    .unwrap_or(0))
        })
}

fn date(by: &Column, op: Comparison, value: &Value) -> Result<Expr, BridgeError> {
    if let Some(infinity @ ("infinity" | "-infinity")) = value.as_str() {
        let beyond = beyond(op, infinity.starts_with('-'));
        return Ok(fitted(by, beyond, |_, _| never(by)));
    }
    let moment = moment(by, value)?;
    let Some(text) = moment.mysql() else {
        return Ok(fitted(by, beyond(op, moment.year < 0), |_, _| never(by)));
    };
    let bound = match (&by.class, moment.is_date_only()) {
        // Else the time would be cut off.
        (Class::Date, false) => Expr::val(text).cast_as("DATETIME(6)"),
        _ => Expr::val(text),
    };
    Ok(comparison(column(&by.name), op, bound))
}

fn time<'v>(by: &Column, value: &'v Value) -> Result<(&'v str, ClockTime), BridgeError> {
    let text = value.as_str().unwrap_or_default();
    match ClockTime::parse(text) {
        Some(time) if time.offset_seconds.is_none() => Ok((text, time)),
        _ => Err(wrong(by, "times without a zone, HH:MM:SS", value)),
    }
}

/// A value of a type that is written as text; what is none of it would be compared as nothing.
fn other(by: &Column, text: &str, value: &Value) -> Result<String, BridgeError> {
    let fits = match by.type_name.as_str() {
        "inet4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "inet6" => text.parse::<std::net::IpAddr>().is_ok(),
        _ => true,
    };
    match fits {
        true => Ok(text.to_owned()),
        false => Err(wrong(by, "IP addresses", value)),
    }
}

pub(super) fn is_in(
    dialect: Dialect,
    by: &Column,
    values: &[Value],
    negated: bool,
) -> Result<Expr, BridgeError> {
    if values.len() > MAX_PLACES
        && let Some(list) = list(by, values)?
    {
        return Ok(if negated { list.not() } else { list });
    }
    let op = if negated {
        Comparison::Ne
    } else {
        Comparison::Eq
    };
    let each = values.iter().map(|value| compare(dialect, by, op, value));
    let with = if negated { Expr::and } else { Expr::or };
    let all = join(each.collect::<Result<_, _>>()?, with);
    Ok(all.unwrap_or_else(|| truth(negated)))
}

/// Very many values as the rows of one JSON document, for there are only so many places in a statement; `None` where
/// one of them has no place in such a document.
fn list(by: &Column, values: &[Value]) -> Result<Option<Expr>, BridgeError> {
    let mut texts = Vec::with_capacity(values.len());
    let scale = scale_of_list(by, values);
    for value in values {
        match listed(by, value, scale)? {
            Listed::As(text) => texts.push(text),
            Listed::Nowhere => {}
            Listed::Otherwise => return Ok(None),
        }
    }
    if texts.is_empty() {
        return Ok(Some(never(by)));
    }
    let charset = by.charset.as_ref();
    let (type_name, value) = match (&by.class, charset) {
        (Class::Integer | Class::Bool, _) => {
            ("DECIMAL(20,0)".to_owned(), "listed.value".to_owned())
        }
        (Class::Decimal | Class::Money, _) => (
            format!("DECIMAL({DECIMAL_DIGITS},{scale})"),
            "listed.value".to_owned(),
        ),
        (Class::Double, _) => ("DOUBLE".to_owned(), "listed.value".to_owned()),
        (Class::Date | Class::DateTime { .. }, _) => {
            ("DATETIME(6)".to_owned(), "listed.value".to_owned())
        }
        (Class::Time { .. }, _) => ("TIME(6)".to_owned(), "listed.value".to_owned()),
        (Class::Bytes, _) => ("LONGTEXT".to_owned(), "UNHEX(listed.value)".to_owned()),
        (Class::Enum(_), Some((charset, collation))) => (
            "LONGTEXT CHARACTER SET utf8mb4".to_owned(),
            format!("CONVERT(listed.value USING {charset}) COLLATE {collation}"),
        ),
        (Class::Text, Some((charset, collation))) if charset == "utf8mb4" => (
            format!("LONGTEXT CHARACTER SET utf8mb4 COLLATE {collation}"),
            "listed.value".to_owned(),
        ),
        (Class::Text, Some((charset, collation))) => (
            "LONGTEXT CHARACTER SET utf8mb4".to_owned(),
            format!("CONVERT(listed.value USING {charset}) COLLATE {collation}"),
        ),
        _ => ("VARCHAR(100)".to_owned(), "listed.value".to_owned()),
    };
    // What the character set lacks equals nothing, not even what it would be made into.
    let there = match (&by.class, charset) {
        (Class::Text, Some((charset, _))) if charset != "utf8mb4" => format!(
            " WHERE BINARY CONVERT(CONVERT(listed.value USING {charset}) USING utf8mb4) = BINARY listed.value"
        ),
        _ => String::new(),
    };
    let template = format!(
        "(? IN (SELECT {value} FROM JSON_TABLE(?, '$[*]' COLUMNS (value {type_name} PATH '$')) AS listed{there}))"
    );
    let document = Expr::val(Value::from(texts).to_string());
    Ok(Some(Expr::cust_with_exprs(
        template,
        [number_of(by), document],
    )))
}

/// How a value stands in a list.
enum Listed {
    As(String),
    /// Nothing in the column equals it.
    Nowhere,
    /// Only by itself.
    Otherwise,
}

/// How many digits after the point a list of decimals has, so that as many as can be are before it.
fn scale_of_list(by: &Column, values: &[Value]) -> u32 {
    if !matches!(by.class, Class::Decimal | Class::Money) {
        return 0;
    }
    let scales = values.iter().filter_map(Numeral::of);
    let most = scales.map(|number| number.fraction_digits()).max();
    std::cmp::min(
        DECIMAL_SCALE,
        u32::try_from(most.unwrap_or(0)).unwrap_or(DECIMAL_SCALE),
    )
}

fn listed(by: &Column, value: &Value, list_scale: u32) -> Result<Listed, BridgeError> {
    let number = |number: &Numeral, digits: u64, scale: u32| {
        let fits = fit(Comparison::Eq, number, digits, scale);
        match (
            fits,
            number.integer_digits() + u64::from(scale) > DECIMAL_DIGITS,
        ) {
            // In a column of the list there is less room than in a comparison.
            (Fitted::Compare(..), true) => Listed::Otherwise,
            (Fitted::Compare(_, number), false) => {
                number.plain(128).map_or(Listed::Otherwise, Listed::As)
            }
            _ => Listed::Nowhere,
        }
    };
    Ok(match &by.class {
        Class::Integer | Class::Bool => match value {
            Value::Bool(flag) => Listed::As(u8::from(*flag).to_string()),
            value => number(&numeral(by, "integers", value)?, INTEGER_DIGITS, 0),
        },
        Class::Decimal | Class::Money => {
            number(&numeral(by, "numbers", value)?, DECIMAL_DIGITS, list_scale)
        }
        Class::Double if special(value).is_none() => {
            let double = numeral(by, "numbers", value)?.nearest_f64();
            match double.is_finite() {
                true => Listed::As(format!("{double:e}")),
                false => Listed::Nowhere,
            }
        }
        Class::Text => {
            let text = value.as_str().ok_or_else(|| wrong(by, "text", value))?;
            Listed::As(text.to_owned())
        }
        Class::Enum(labels) if value.as_str() != Some("") => {
            Listed::As(label(by, labels, value)?.1.to_owned())
        }
        Class::Bytes => Listed::As(
            bytes(by, value)?
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
        ),
        Class::Date | Class::DateTime { .. } => match moment(by, value) {
            // Zero dates are none to a column of dates in a list.
            Ok(moment) if moment.is_real() => moment.mysql().map_or(Listed::Nowhere, Listed::As),
            Ok(_) => Listed::Otherwise,
            Err(_) if matches!(value.as_str(), Some("infinity" | "-infinity")) => Listed::Nowhere,
            Err(error) => return Err(error),
        },
        Class::Time { .. } => match time(by, value)? {
            (_, clock) if clock.hours > MAX_HOURS => Listed::Nowhere,
            (text, _) => Listed::As(text.to_owned()),
        },
        Class::Uuid => match value
            .as_str()
            .and_then(|text| text.parse::<uuid::Uuid>().ok())
        {
            Some(id) => Listed::As(id.to_string()),
            None => return Err(wrong(by, "UUIDs", value)),
        },
        _ => Listed::Otherwise,
    })
}

/// The string operators; the binary collation compares letters, not what a language holds to be alike.
pub(super) fn matches(dialect: Dialect, by: &Column, like: &Like, pattern: &str) -> Expr {
    let flavour = match dialect {
        Dialect::MySql => Flavour::Icu,
        _ => Flavour::Pcre,
    };
    let (template, pattern) = match like.is_folded() {
        true => (
            "(CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin REGEXP ?)",
            like.regex(flavour),
        ),
        false => (
            "(CONVERT(? USING utf8mb4) COLLATE utf8mb4_bin LIKE ?)",
            pattern.to_owned(),
        ),
    };
    Expr::cust_with_exprs(template, [column(&by.name), Expr::val(pattern)])
}

/// Compares as JSON, where the database can.
fn json(dialect: Dialect, by: &Column, op: Comparison, value: &Value) -> Result<Expr, BridgeError> {
    let json = Expr::val(value.to_string());
    match (dialect, op) {
        (Dialect::MySql, _) => Ok(comparison(
            column(&by.name).cast_as("JSON"),
            op,
            json.cast_as("JSON"),
        )),
        (_, Comparison::Eq | Comparison::Ne) => {
            let equal = any_spelling(value, |text| {
                let both = [column(&by.name), Expr::val(text)];
                Expr::cust_with_exprs("(JSON_EQUALS(?, ?) = 1)", both)
            });
            Ok(if op == Comparison::Eq {
                equal
            } else {
                equal.not()
            })
        }
        _ => Err(BridgeError::UnsupportedOperator {
            operator: format!("{} with JSON", op.as_str()),
            bridge: "mysql".into(),
        }),
    }
}

pub(super) fn json_contains(by: &Column, value: &Value) -> Expr {
    any_spelling(value, |text| {
        let both = [column(&by.name), Expr::val(text)];
        Expr::cust_with_exprs("(JSON_CONTAINS(?, ?) = 1)", both)
    })
}

/// A condition on a document in each of the ways in which letters beyond ASCII are written: MariaDB compares what is
/// written.
fn any_spelling(value: &Value, condition: impl Fn(String) -> Expr) -> Expr {
    let text = value.to_string();
    if text.is_ascii() {
        return condition(text);
    }
    let escaped = |upper: bool| {
        text.chars().fold(String::new(), |mut out, c| {
            match c.is_ascii() {
                true => out.push(c),
                false => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&match upper {
                            true => format!("\\u{unit:04X}"),
                            false => format!("\\u{unit:04x}"),
                        });
                    }
                }
            }
            out
        })
    };
    let [lower, upper] = [false, true].map(|upper| condition(escaped(upper)));
    condition(text.clone()).or(lower).or(upper)
}
