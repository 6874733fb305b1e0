//! MySQL's values into JSON, by the type that the result says its column has.

use std::sync::Arc;

use mysql_async::Column;
use mysql_async::Value;
use mysql_async::consts::{ColumnFlags, ColumnType};

use crate::bridge::encode::{
    write_base64, write_f32, write_f64, write_int, write_plain, write_raw_json, write_text,
    write_uint,
};
use crate::bridge::keys::{self, KeyValue};
use crate::bridge::sql::Class;

/// The character set of what is bytes and not text.
pub(super) const BINARY: u16 = 63;

/// Whether a column of a result may hold values of that kind. What a null is typed as is not always as fine as its
/// column: a single may have become a double, a timestamp a datetime.
pub(super) fn is_still(columns: &[Column], at: usize, kind: &Class) -> bool {
    let family = |class: &Class| match class {
        Class::Single => std::mem::discriminant(&Class::Double),
        class => std::mem::discriminant(class),
    };
    let found = columns.get(at).and_then(class);
    found.is_none_or(|found| family(&found) == family(kind))
}

/// What kind of values a column of a result has, where its type tells.
fn class(column: &Column) -> Option<Class> {
    use ColumnType as T;
    if column
        .flags()
        .intersects(ColumnFlags::ENUM_FLAG | ColumnFlags::SET_FLAG)
    {
        return Some(Class::Enum(Arc::default()));
    }
    Some(match column.column_type() {
        T::MYSQL_TYPE_TINY
        | T::MYSQL_TYPE_SHORT
        | T::MYSQL_TYPE_INT24
        | T::MYSQL_TYPE_LONG
        | T::MYSQL_TYPE_LONGLONG
        | T::MYSQL_TYPE_YEAR
        | T::MYSQL_TYPE_BIT => Class::Integer,
        T::MYSQL_TYPE_DECIMAL | T::MYSQL_TYPE_NEWDECIMAL => Class::Decimal,
        T::MYSQL_TYPE_FLOAT | T::MYSQL_TYPE_DOUBLE => Class::Double,
        T::MYSQL_TYPE_DATE | T::MYSQL_TYPE_NEWDATE => Class::Date,
        T::MYSQL_TYPE_DATETIME
        | T::MYSQL_TYPE_DATETIME2
        | T::MYSQL_TYPE_TIMESTAMP
        | T::MYSQL_TYPE_TIMESTAMP2 => Class::DateTime { zone: false },
        T::MYSQL_TYPE_TIME | T::MYSQL_TYPE_TIME2 => Class::Time { zone: false },
        T::MYSQL_TYPE_VARCHAR
        | T::MYSQL_TYPE_VAR_STRING
        | T::MYSQL_TYPE_STRING
        | T::MYSQL_TYPE_TINY_BLOB
        | T::MYSQL_TYPE_BLOB
        | T::MYSQL_TYPE_MEDIUM_BLOB
        | T::MYSQL_TYPE_LONG_BLOB => match is_bytes(column) {
            true => Class::Bytes,
            false => Class::Text,
        },
        _ => return None,
    })
}

/// How the values of one column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// As the value itself says; bytes are text.
    Text,
    /// Bytes as base64.
    Bytes,
    /// Bytes as a big-endian number.
    Bits,
    /// Bytes as JSON.
    Json,
    Date,
    DateTime,
    /// A time in UTC.
    Timestamp,
}

impl Decoder {
    /// The decoder of a column; MariaDB's JSON columns do not say so themselves.
    pub(super) fn of(column: &Column, is_json: bool) -> Self {
        use ColumnType as T;
        match column.column_type() {
            _ if is_json => Self::Json,
            T::MYSQL_TYPE_JSON => Self::Json,
            T::MYSQL_TYPE_BIT => Self::Bits,
            T::MYSQL_TYPE_DATE | T::MYSQL_TYPE_NEWDATE => Self::Date,
            T::MYSQL_TYPE_DATETIME | T::MYSQL_TYPE_DATETIME2 => Self::DateTime,
            T::MYSQL_TYPE_TIMESTAMP | T::MYSQL_TYPE_TIMESTAMP2 => Self::Timestamp,
            _ if is_bytes(column) => Self::Bytes,
            _ => Self::Text,
        }
    }

    /// Writes one value.
    pub(super) fn write(self, out: &mut Vec<u8>, value: &Value) {
        match value {
            Value::NULL => out.extend_from_slice(b"null"),
            Value::Int(number) => write_int(out, *number),
            Value::UInt(number) => write_uint(out, *number),
            Value::Float(number) => write_f32(out, *number),
            Value::Double(number) => write_f64(out, *number),
            Value::Bytes(bytes) => match self {
                Self::Json => write_raw_json(out, bytes),
                Self::Bytes => write_base64(out, bytes),
                Self::Bits => write_uint(out, bits(bytes)),
                _ => write_text(out, bytes),
            },
            Value::Date(year, month, day, ..) if self == Self::Date => {
                write_plain(out, format_args!("{year:04}-{month:02}-{day:02}"));
            }
            Value::Date(year, month, day, hour, minute, second, micros) => {
                let zone = if self == Self::Timestamp { "Z" } else { "" };
                let fraction = fraction(*micros);
                let time = format_args!("{hour:02}:{minute:02}:{second:02}{fraction}{zone}");
                write_plain(out, format_args!("{year:04}-{month:02}-{day:02}T{time}"));
            }
            Value::Time(negative, days, hours, minutes, seconds, micros) => {
                let sign = if *negative { "-" } else { "" };
                let hours = u64::from(*days) * 24 + u64::from(*hours);
                let fraction = fraction(*micros);
                write_plain(
                    out,
                    format_args!("{sign}{hours:02}:{minutes:02}:{seconds:02}{fraction}"),
                );
            }
        }
    }

    /// Writes one value as the next page takes it.
    pub(super) fn write_key(self, out: &mut Vec<u8>, value: &Value) {
        match value {
            Value::NULL => KeyValue::Null.write(out),
            Value::Int(number) => KeyValue::Int(*number).write(out),
            Value::UInt(number) => KeyValue::UInt(*number).write(out),
            Value::Float(number) => KeyValue::Single(*number).write(out),
            Value::Double(number) => KeyValue::Double(*number).write(out),
            Value::Bytes(bytes) => match self {
                Self::Bytes => keys::write_bytes(out, bytes),
                Self::Bits => KeyValue::UInt(bits(bytes)).write(out),
                _ => keys::write_text(out, bytes),
            },
            Value::Date(..) | Value::Time(..) => {
                // As in a row, but with a blank and without a zone, which is how the server writes it.
                let mut text = Vec::new();
                self.write(&mut text, value);
                let text = String::from_utf8_lossy(&text);
                let text = text.trim_matches('"').trim_end_matches('Z');
                keys::write_text(out, text.replace('T', " ").as_bytes());
            }
        }
    }
}

/// The number that bits are.
fn bits(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |bits, byte| (bits << 8) | u64::from(*byte))
}

/// Whether a column holds bytes and no text.
pub(super) fn is_bytes(column: &Column) -> bool {
    let textual = column.column_type().is_character_type()
        || column.column_type() == ColumnType::MYSQL_TYPE_VECTOR;
    textual && column.character_set() == BINARY && column.flags().contains(ColumnFlags::BINARY_FLAG)
}

/// Microseconds as a fraction without the zeros at its end.
fn fraction(micros: u32) -> String {
    match micros {
        0 => String::new(),
        _ => format!(".{micros:06}").trim_end_matches('0').to_owned(),
    }
}
