//! Binding the values of a filter to columns, so that a value means the same in every database: the form
//! that a value has in a row is the form in which it is taken here.

use base64::Engine as _;
use sea_query::{Expr, ExprTrait, Value as Bound};
use serde_json::Value;

use super::{Builder, Class, Dialect, column};
use crate::bridge::BridgeError;
use crate::bridge::request::invalid;
use crate::query::filter::Comparison;

impl Builder<'_> {
    pub(super) fn compare(
        &self,
        field: &str,
        op: Comparison,
        value: &Value,
    ) -> Result<Expr, BridgeError> {
        let class = self.shape.class(field);
        if class == Class::Json || value.is_object() || (value.is_array() && class != Class::Array)
        {
            return self.compare_json(field, op, value);
        }
        let bound = match self.dialect {
            Dialect::Postgres => postgres(field, class, value)?.expr(),
            Dialect::MySql | Dialect::MariaDb => mysql(field, class, value)?,
            Dialect::Sqlite => Expr::val(sqlite(field, class, value)?),
        };
        Ok(compare(column(field), op, bound))
    }

    pub(super) fn is_in(
        &self,
        field: &str,
        values: &[Value],
        negated: bool,
    ) -> Result<Expr, BridgeError> {
        let class = self.shape.class(field);
        let by_one = class == Class::Json
            || values
                .iter()
                .any(|value| value.is_object() || value.is_array());
        if by_one {
            let any = values
                .iter()
                .map(|value| self.compare(field, Comparison::Eq, value));
            let any = any
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .reduce(Expr::or);
            let any = any.unwrap_or_else(|| super::truth(false));
            return Ok(if negated { any.not() } else { any });
        }
        match self.dialect {
            Dialect::Postgres => postgres_in(field, class, values, negated),
            Dialect::MySql | Dialect::MariaDb => {
                let values = values
                    .iter()
                    .map(|value| mysql(field, class, value))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(if negated {
                    column(field).is_not_in(values)
                } else {
                    column(field).is_in(values)
                })
            }
            Dialect::Sqlite => {
                let values = values
                    .iter()
                    .map(|value| sqlite(field, class, value).map(Expr::val));
                let values = values.collect::<Result<Vec<_>, _>>()?;
                Ok(if negated {
                    column(field).is_not_in(values)
                } else {
                    column(field).is_in(values)
                })
            }
        }
    }

    /// Compares as JSON, where the database can.
    fn compare_json(
        &self,
        field: &str,
        op: Comparison,
        value: &Value,
    ) -> Result<Expr, BridgeError> {
        let json = Expr::val(value.to_string());
        match self.dialect {
            Dialect::Postgres => Ok(compare(
                column(field).cast_as("jsonb"),
                op,
                json.cast_as("jsonb"),
            )),
            Dialect::MySql => Ok(compare(
                column(field).cast_as("JSON"),
                op,
                json.cast_as("JSON"),
            )),
            Dialect::MariaDb if matches!(op, Comparison::Eq | Comparison::Ne) => {
                let equal = Expr::cust_with_exprs("JSON_EQUALS(?, ?)", [column(field), json]);
                Ok(equal.eq(i64::from(op == Comparison::Eq)))
            }
            Dialect::Sqlite if !value.is_object() && !value.is_array() => Ok(compare(
                column(field),
                op,
                Expr::val(sqlite(field, Class::Other, value)?),
            )),
            _ => Err(BridgeError::UnsupportedOperator {
                operator: format!("{} with JSON", op.as_str()),
                bridge: if self.dialect == Dialect::Sqlite {
                    "sqlite"
                } else {
                    "mysql"
                }
                .into(),
            }),
        }
    }
}

fn compare(left: Expr, op: Comparison, right: Expr) -> Expr {
    match op {
        Comparison::Eq => left.eq(right),
        Comparison::Ne => left.ne(right),
        Comparison::Gt => left.gt(right),
        Comparison::Gte => left.gte(right),
        Comparison::Lt => left.lt(right),
        Comparison::Lte => left.lte(right),
    }
}

/// A value as text.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The bytes of a bytes column, which are base64 in rows.
fn bytes(field: &str, value: &Value) -> Result<Vec<u8>, BridgeError> {
    let decoded = value
        .as_str()
        .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
    decoded.ok_or_else(|| wrong(field, "bytes: its values are base64", value))
}

fn wrong(field: &str, holds: &str, value: &Value) -> BridgeError {
    invalid(
        format!("where.{field}"),
        format!("`{field}` holds {holds}, not {value}"),
    )
}

/// A text for PostgreSQL and the type that it must be read as, if not the column's own.
struct PgText {
    text: String,
    cast: Option<&'static str>,
}

impl PgText {
    fn expr(self) -> Expr {
        let value = Expr::val(self.text);
        match self.cast {
            Some(cast) => value.cast_as(cast),
            None => value,
        }
    }
}

/// Values are sent as text, which the column's own type reads: exact for every type. Only numbers that an
/// integer column cannot hold are read as a wider type, so that they compare instead of failing.
fn postgres(field: &str, class: Class, value: &Value) -> Result<PgText, BridgeError> {
    let cast = match (class, value) {
        (Class::Integer(bits), Value::Number(number)) => match number.as_i64() {
            Some(number) if i16::try_from(number).is_ok() || bits == 64 => None,
            Some(number) if i32::try_from(number).is_ok() && bits == 32 => None,
            Some(_) => Some("bigint"),
            None => Some("numeric"),
        },
        _ => None,
    };
    let text = match (class, value) {
        (Class::Bytes, _) => hex(&bytes(field, value)?),
        (Class::Array, Value::Array(elements)) => pg_array(elements),
        _ => text(value),
    };
    Ok(PgText { text, cast })
}

/// Bytes in PostgreSQL's own notation.
pub(in crate::bridge) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("\\x"), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn postgres_in(
    field: &str,
    class: Class,
    values: &[Value],
    negated: bool,
) -> Result<Expr, BridgeError> {
    let mut elements = Vec::with_capacity(values.len());
    let mut cast = None;
    for value in values {
        let bound = postgres(field, class, value)?;
        cast = match (cast, bound.cast) {
            (Some("numeric"), _) | (_, Some("numeric")) => Some("numeric"),
            (cast, other) => cast.or(other),
        };
        elements.push(Value::from(bound.text));
    }
    let array = Expr::val(pg_array(&elements));
    let array = match cast {
        Some("numeric") => array.cast_as("numeric[]"),
        Some(_) => array.cast_as("bigint[]"),
        None => array,
    };
    let template = if negated {
        "($1 <> ALL ($2))"
    } else {
        "($1 = ANY ($2))"
    };
    Ok(Expr::cust_with_exprs(template, [column(field), array]))
}

/// An array in PostgreSQL's own notation, each element quoted.
fn pg_array(elements: &[Value]) -> String {
    let mut out = String::from("{");
    for (i, element) in elements.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match element {
            Value::Null => out.push_str("NULL"),
            Value::Array(inner) => out.push_str(&pg_array(inner)),
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

/// MySQL compares a text with a number as doubles, and what is not a number as 0. So numbers go to text
/// columns as text, and only numbers go to number columns.
fn mysql(field: &str, class: Class, value: &Value) -> Result<Expr, BridgeError> {
    let number = |holds: &str| match value {
        Value::Bool(flag) => Ok(u8::from(*flag).to_string()),
        _ if is_number(&text(value)) => Ok(text(value)),
        _ => Err(wrong(field, holds, value)),
    };
    Ok(match class {
        Class::Integer(_) => {
            let number = number("integers")?;
            match (number.parse::<i64>(), number.parse::<u64>()) {
                (Ok(number), _) => Expr::val(number),
                (_, Ok(number)) => Expr::val(number),
                _ => decimal(number),
            }
        }
        Class::Decimal => decimal(number("decimals")?),
        Class::Float => match number("numbers")?.parse::<f64>() {
            Ok(number) => Expr::val(number),
            Err(_) => return Err(wrong(field, "numbers", value)),
        },
        Class::Bytes => Expr::val(bytes(field, value)?),
        Class::DateTime => Expr::val(mysql_time(text(value))),
        Class::Other => match value {
            Value::Bool(flag) => Expr::val(i64::from(*flag)),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(number), _, _) => Expr::val(number),
                (_, Some(number), _) => Expr::val(number),
                (_, _, number) => Expr::val(number.unwrap_or(f64::NAN)),
            },
            other => Expr::val(text(other)),
        },
        _ => Expr::val(text(value)),
    })
}

/// An exact number, unless it has more digits than a decimal can have.
fn decimal(number: String) -> Expr {
    let exponent = number.contains(['e', 'E']);
    match number.parse::<f64>() {
        Ok(double) if exponent || number.len() > 34 => Expr::val(double),
        _ => Expr::val(number).cast_as("DECIMAL(65,30)"),
    }
}

fn is_number(text: &str) -> bool {
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    plain && text.parse::<f64>().is_ok()
}

/// A time with an offset, in the UTC that the session speaks; anything else as it is.
fn mysql_time(text: String) -> String {
    match chrono::DateTime::parse_from_rfc3339(&text) {
        Ok(time) => time.to_utc().format("%Y-%m-%d %H:%M:%S%.6f").to_string(),
        Err(_) => text,
    }
}

/// SQLite applies the column's affinity itself.
fn sqlite(field: &str, class: Class, value: &Value) -> Result<Bound, BridgeError> {
    Ok(match value {
        _ if class == Class::Bytes => bytes(field, value)?.into(),
        Value::Bool(flag) => i64::from(*flag).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => number.into(),
            (None, number) => number.unwrap_or(f64::NAN).into(),
        },
        other => text(other).into(),
    })
}
