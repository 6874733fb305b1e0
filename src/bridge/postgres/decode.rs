//! PostgreSQL's binary values into JSON, by type.
//!
//! A decoder answers `None` when the bytes are not what their type says; nothing here can panic on what a
//! server sends.

use std::net::{Ipv4Addr, Ipv6Addr};

use tokio_postgres::types::{FromSql, Kind, Type};
use uuid::Uuid;

use crate::bridge::encode::{
    write_base64, write_f32, write_f64, write_int, write_plain, write_raw_json, write_str,
    write_text,
};
use crate::query::moment::civil_from_days;

/// The bytes of a value as they came; `None` is NULL.
pub(super) struct Raw<'a>(pub(super) Option<&'a [u8]>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Some(raw)))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// How the values of one column are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decoder {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Bytea,
    Json,
    Jsonb,
    Uuid,
    Date,
    Time,
    TimeTz,
    Timestamp { zone: bool },
    Interval,
    Inet,
    Mac,
    Bits,
    Array(Box<Decoder>),
}

impl Decoder {
    /// The decoder of a type, if there is one.
    pub(super) fn of(ty: &Type) -> Option<Self> {
        Some(match *ty {
            Type::BOOL => Self::Bool,
            Type::INT2 => Self::Int2,
            Type::INT4 => Self::Int4,
            Type::INT8 => Self::Int8,
            Type::OID | Type::XID | Type::CID => Self::Oid,
            Type::FLOAT4 => Self::Float4,
            Type::FLOAT8 => Self::Float8,
            Type::NUMERIC => Self::Numeric,
            Type::TEXT
            | Type::VARCHAR
            | Type::BPCHAR
            | Type::NAME
            | Type::UNKNOWN
            | Type::XML
            | Type::CHAR => Self::Text,
            Type::BYTEA => Self::Bytea,
            Type::JSON => Self::Json,
            Type::JSONB => Self::Jsonb,
            Type::UUID => Self::Uuid,
            Type::DATE => Self::Date,
            Type::TIME => Self::Time,
            Type::TIMETZ => Self::TimeTz,
            Type::TIMESTAMP => Self::Timestamp { zone: false },
            Type::TIMESTAMPTZ => Self::Timestamp { zone: true },
            Type::INTERVAL => Self::Interval,
            Type::INET | Type::CIDR => Self::Inet,
            Type::MACADDR | Type::MACADDR8 => Self::Mac,
            Type::BIT | Type::VARBIT => Self::Bits,
            // These two are arrays only to the catalogue.
            Type::INT2_VECTOR | Type::OID_VECTOR => return None,
            _ => match ty.kind() {
                Kind::Enum(_) => Self::Text,
                Kind::Domain(inner) => return Self::of(inner),
                Kind::Array(element) => Self::Array(Box::new(Self::of(element)?)),
                _ => return None,
            },
        })
    }

    /// The decoder of a type; without one its bytes are taken for text.
    pub(super) fn or_text(ty: &Type) -> Self {
        Self::of(ty).unwrap_or(Self::Text)
    }

    /// Writes one value.
    pub(super) fn write(&self, out: &mut Vec<u8>, raw: Option<&[u8]>) -> Option<()> {
        let Some(raw) = raw else {
            out.extend_from_slice(b"null");
            return Some(());
        };
        match self {
            Self::Bool => out.extend_from_slice(if *raw.first()? == 0 {
                b"false"
            } else {
                b"true"
            }),
            Self::Int2 => write_int(out, i16::from_be_bytes(raw.try_into().ok()?).into()),
            Self::Int4 => write_int(out, i32::from_be_bytes(raw.try_into().ok()?).into()),
            Self::Int8 => write_int(out, i64::from_be_bytes(raw.try_into().ok()?)),
            Self::Oid => write_int(out, u32::from_be_bytes(raw.try_into().ok()?).into()),
            Self::Float4 => write_f32(out, f32::from_be_bytes(raw.try_into().ok()?)),
            Self::Float8 => write_f64(out, f64::from_be_bytes(raw.try_into().ok()?)),
            Self::Numeric => write_numeric(out, raw)?,
            Self::Text => write_text(out, raw),
            Self::Bytea => write_base64(out, raw),
            Self::Json => write_raw_json(out, raw),
            // The first byte is the version of the format.
            Self::Jsonb => write_raw_json(out, raw.get(1..)?),
            Self::Uuid => write_plain(out, format_args!("{}", Uuid::from_slice(raw).ok()?)),
            Self::Date => write_date(out, i32::from_be_bytes(raw.try_into().ok()?)),
            Self::Time => write_time(out, i64::from_be_bytes(raw.try_into().ok()?)),
            Self::TimeTz => write_timetz(out, raw)?,
            Self::Timestamp { zone } => {
                write_timestamp(out, i64::from_be_bytes(raw.try_into().ok()?), *zone)
            }
            Self::Interval => write_interval(out, raw)?,
            Self::Inet => write_inet(out, raw)?,
            Self::Mac => write_mac(out, raw),
            Self::Bits => write_bits(out, raw)?,
            Self::Array(element) => write_array(out, raw, element)?,
        }
        Some(())
    }
}

/// Reads big-endian numbers off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn i16(&mut self) -> Option<i16> {
        self.bytes().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.bytes().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.bytes().map(i64::from_be_bytes)
    }

    fn slice(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }
}

/// Digits in base 10000 with a weight and a display scale, as a decimal in a string.
fn write_numeric(out: &mut Vec<u8>, raw: &[u8]) -> Option<()> {
    use std::io::Write as _;
    let mut reader = Reader(raw);
    let (digits, weight, sign, scale) =
        (reader.i16()?, reader.i16()?, reader.i16()?, reader.i16()?);
    let special = match sign.cast_unsigned() {
        0xC000 => Some("NaN"),
        0xD000 => Some("Infinity"),
        0xF000 => Some("-Infinity"),
        _ => None,
    };
    if let Some(special) = special {
        write_str(out, special);
        return Some(());
    }
    let mut groups = Vec::with_capacity(digits.unsigned_abs().into());
    for _ in 0..digits {
        groups.push(reader.i16().filter(|group| (0..10_000).contains(group))?);
    }
    let group = |position: i32| {
        let index = i32::from(weight) - position;
        usize::try_from(index)
            .ok()
            .and_then(|index| groups.get(index))
            .copied()
            .unwrap_or(0)
    };
    out.push(b'"');
    if sign.cast_unsigned() == 0x4000 {
        out.push(b'-');
    }
    let mut position = i32::from(weight.max(0));
    let _ = write!(out, "{}", group(position));
    while position > 0 {
        position -= 1;
        let _ = write!(out, "{:04}", group(position));
    }
    let mut scale = usize::try_from(scale).ok()?;
    if scale > 0 {
        out.push(b'.');
    }
    while scale > 0 {
        position -= 1;
        let text = format!("{:04}", group(position));
        out.extend_from_slice(&text.as_bytes()[..scale.min(4)]);
        scale = scale.saturating_sub(4);
    }
    out.push(b'"');
    Some(())
}

/// From the epoch of PostgreSQL, 2000-01-01, to that of the calendar, 0000-03-01, in days.
const EPOCH_DAYS: i64 = 730_425;
const DAY_MICROS: i64 = 86_400_000_000;

fn push_digits(out: &mut Vec<u8>, number: i64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    while rest > 0 || at > digits.len() - width {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
    }
    out.extend_from_slice(&digits[at..]);
}

fn push_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil_from_days(days + EPOCH_DAYS);
    if year < 0 {
        out.push(b'-');
    }
    push_digits(out, year, 4);
    out.push(b'-');
    push_digits(out, month.into(), 2);
    out.push(b'-');
    push_digits(out, day.into(), 2);
}

fn push_time(out: &mut Vec<u8>, micros: i64) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    push_digits(out, seconds / 3600, 2);
    out.push(b':');
    push_digits(out, seconds / 60 % 60, 2);
    out.push(b':');
    push_digits(out, seconds % 60, 2);
    push_fraction(out, fraction);
}

/// A fraction of microseconds without the zeros at its end.
fn push_fraction(out: &mut Vec<u8>, fraction: i64) {
    if fraction != 0 {
        out.push(b'.');
        push_digits(out, fraction, 6);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

fn write_date(out: &mut Vec<u8>, days: i32) {
    match days {
        i32::MAX => write_str(out, "infinity"),
        i32::MIN => write_str(out, "-infinity"),
        _ => {
            out.push(b'"');
            push_date(out, days.into());
            out.push(b'"');
        }
    }
}

fn write_time(out: &mut Vec<u8>, micros: i64) {
    out.push(b'"');
    push_time(out, micros);
    out.push(b'"');
}

fn write_timetz(out: &mut Vec<u8>, raw: &[u8]) -> Option<()> {
    let mut reader = Reader(raw);
    let (micros, west) = (reader.i64()?, i64::from(reader.i32()?));
    out.push(b'"');
    push_time(out, micros);
    out.push(if west > 0 { b'-' } else { b'+' });
    push_digits(out, west.abs() / 3600, 2);
    out.push(b':');
    push_digits(out, west.abs() / 60 % 60, 2);
    if west % 60 != 0 {
        out.push(b':');
        push_digits(out, west.abs() % 60, 2);
    }
    out.push(b'"');
    Some(())
}

fn write_timestamp(out: &mut Vec<u8>, micros: i64, zone: bool) {
    match micros {
        i64::MAX => return write_str(out, "infinity"),
        i64::MIN => return write_str(out, "-infinity"),
        _ => {}
    }
    out.push(b'"');
    push_date(out, micros.div_euclid(DAY_MICROS));
    out.push(b'T');
    push_time(out, micros.rem_euclid(DAY_MICROS));
    if zone {
        out.push(b'Z');
    }
    out.push(b'"');
}

/// Microseconds, days and months, as an ISO 8601 duration in the form that PostgreSQL itself writes.
fn write_interval(out: &mut Vec<u8>, raw: &[u8]) -> Option<()> {
    use std::io::Write as _;
    let mut reader = Reader(raw);
    let (micros, days, months) = (reader.i64()?, reader.i32()?, reader.i32()?);
    let special = match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => Some("infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => Some("-infinity"),
        (0, 0, 0) => Some("PT0S"),
        _ => None,
    };
    if let Some(special) = special {
        write_str(out, special);
        return Some(());
    }
    out.extend_from_slice(b"\"P");
    for (number, unit) in [(months / 12, 'Y'), (months % 12, 'M'), (days, 'D')] {
        if number != 0 {
            let _ = write!(out, "{number}{unit}");
        }
    }
    if micros != 0 {
        out.push(b'T');
    }
    let seconds = micros / 1_000_000;
    for (number, unit) in [(seconds / 3600, 'H'), (seconds / 60 % 60, 'M')] {
        if number != 0 {
            let _ = write!(out, "{number}{unit}");
        }
    }
    let (seconds, fraction) = (seconds % 60, micros % 1_000_000);
    if seconds != 0 || fraction != 0 {
        if seconds < 0 || fraction < 0 {
            out.push(b'-');
        }
        push_digits(out, seconds, 1);
        push_fraction(out, fraction);
        out.push(b'S');
    }
    out.push(b'"');
    Some(())
}

fn write_inet(out: &mut Vec<u8>, raw: &[u8]) -> Option<()> {
    let mut reader = Reader(raw);
    let [family, bits, is_cidr, length] = reader.bytes()?;
    let is_v4 = family == 2;
    let full = if is_v4 { 32 } else { 128 };
    let suffix = if bits == full && is_cidr == 0 {
        String::new()
    } else {
        format!("/{bits}")
    };
    match (is_v4, length) {
        (true, 4) => write_plain(
            out,
            format_args!("{}{suffix}", Ipv4Addr::from(reader.bytes::<4>()?)),
        ),
        (false, 16) => write_plain(
            out,
            format_args!("{}{suffix}", Ipv6Addr::from(reader.bytes::<16>()?)),
        ),
        _ => return None,
    }
    Some(())
}

fn write_mac(out: &mut Vec<u8>, raw: &[u8]) {
    let parts: Vec<_> = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    write_plain(out, format_args!("{}", parts.join(":")));
}

fn write_bits(out: &mut Vec<u8>, raw: &[u8]) -> Option<()> {
    let mut reader = Reader(raw);
    let length = usize::try_from(reader.i32()?).ok()?;
    let bytes = reader.slice(length.div_ceil(8))?;
    out.push(b'"');
    out.extend((0..length).map(|i| {
        if bytes[i / 8] & (0x80 >> (i % 8)) == 0 {
            b'0'
        } else {
            b'1'
        }
    }));
    out.push(b'"');
    Some(())
}

/// An array of any depth.
fn write_array(out: &mut Vec<u8>, raw: &[u8], element: &Decoder) -> Option<()> {
    let mut reader = Reader(raw);
    let dimensions = reader.i32()?;
    let (_has_nulls, _type) = (reader.i32()?, reader.i32()?);
    let mut lengths = Vec::new();
    for _ in 0..dimensions {
        lengths.push(reader.i32()?);
        let _lower_bound = reader.i32()?;
    }
    if lengths.is_empty() {
        out.extend_from_slice(b"[]");
        return Some(());
    }
    write_dimension(out, &mut reader, &lengths, element)
}

fn write_dimension(
    out: &mut Vec<u8>,
    reader: &mut Reader<'_>,
    lengths: &[i32],
    element: &Decoder,
) -> Option<()> {
    let (length, inner) = lengths.split_first()?;
    out.push(b'[');
    for i in 0..*length {
        if i > 0 {
            out.push(b',');
        }
        if inner.is_empty() {
            let raw = match usize::try_from(reader.i32()?) {
                Ok(length) => Some(reader.slice(length)?),
                Err(_) => None,
            };
            element.write(out, raw)?;
        } else {
            write_dimension(out, reader, inner, element)?;
        }
    }
    out.push(b']');
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_of_a_server_panic(raw in prop::collection::vec(any::<u8>(), 0..64)) {
            use Decoder as D;
            let array = D::Array(Box::new(D::Numeric));
            let decoders = [
                D::Bool, D::Int2, D::Int4, D::Int8, D::Oid, D::Float4, D::Float8, D::Numeric, D::Text, D::Bytea,
                D::Json, D::Jsonb, D::Uuid, D::Date, D::Time, D::TimeTz, D::Timestamp { zone: true }, D::Interval,
                D::Inet, D::Mac, D::Bits, array,
            ];
            for decoder in decoders {
                let mut out = Vec::new();
                if decoder.write(&mut out, Some(&raw)).is_some() {
                    let valid = serde_json::from_slice::<serde_json::Value>(&out).is_ok();
                    prop_assert!(valid, "{decoder:?}: {}", String::from_utf8_lossy(&out));
                }
            }
        }
    }
}
