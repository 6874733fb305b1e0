//! Where a row stands in the order of its query: the values of the ordering columns, as the database's own driver
//! gives and takes them. What the database ordered by is what the next page compares with; the form in which rows
//! show a value would not do (an enum is ordered by its number, a single is not the double that it is written as).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde_json::{Value, json};

use super::BridgeError;
use super::request::invalid;

/// One value, in the driver's terms.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum KeyValue {
    Null,
    Int(i64),
    UInt(u64),
    Single(f32),
    Double(f64),
    /// Text, in whatever encoding the database has it.
    Text(Vec<u8>),
    Bytes(Vec<u8>),
    /// The binary form of a type that only its database knows.
    Typed {
        type_name: String,
        bytes: Vec<u8>,
    },
    /// As a row shows it: from a runner that knows no other form.
    Shown(Value),
}

/// The member of a `last` that says how many rows like the last one the pages so far have had.
const REPEATED: &str = "repeated";
const DIGEST: &str = "digest";
const EARLY: &str = "early";
const OF: &str = "of";

/// Where a page ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Position {
    /// The values of the columns that rows are ordered by.
    pub(super) values: Vec<KeyValue>,
    /// How far the page came among the rows that share these values; `None`: it had them all.
    pub(super) tie: Option<Tie>,
}

/// How far pages have come among rows that share a place; those are ordered by a digest of what is read of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tie {
    /// The digest of the last one in that order.
    pub(super) digest: Option<KeyValue>,
    /// How many rows of that digest the pages so far have had.
    pub(super) repeated: u64,
    /// The digest of one that was given before its turn.
    pub(super) early: Option<KeyValue>,
    /// What stands for the columns that the digests are of.
    pub(super) of: Option<String>,
}

impl Tie {
    fn to_json(&self) -> Value {
        let mut members = serde_json::Map::new();
        members.insert(REPEATED.to_owned(), self.repeated.into());
        for (name, digest) in [(DIGEST, &self.digest), (EARLY, &self.early)] {
            if let Some(digest) = digest {
                members.insert(name.to_owned(), digest.to_json());
            }
        }
        if let Some(of) = &self.of {
            members.insert(OF.to_owned(), of.as_str().into());
        }
        members.into()
    }

    fn from_json(value: &Value) -> Option<Self> {
        let digest = |name: &str| match value.get(name) {
            None => Some(None),
            Some(digest) => KeyValue::from_json(digest).map(Some),
        };
        Some(Self {
            digest: digest(DIGEST)?,
            repeated: value[REPEATED].as_u64()?,
            early: digest(EARLY)?,
            of: value.get(OF).and_then(Value::as_str).map(str::to_owned),
        })
    }
}

impl Position {
    /// As it goes into a cursor.
    pub(super) fn to_json(&self) -> Vec<Value> {
        let values = self.values.iter().map(KeyValue::to_json);
        values.chain(self.tie.as_ref().map(Tie::to_json)).collect()
    }

    /// From a cursor that belongs to an order of `columns` columns.
    pub(super) fn from_json(values: &[Value], columns: usize) -> Result<Self, BridgeError> {
        let (values, tie) = match values.split_last() {
            Some((last, others)) if last.get(REPEATED).is_some() => {
                (others, Some(Tie::from_json(last).ok_or_else(stale)?))
            }
            _ => (values, None),
        };
        let values: Option<Vec<_>> = values.iter().map(KeyValue::from_json).collect();
        match values.filter(|values| values.len() == columns) {
            Some(values) => Ok(Self { values, tie }),
            None => Err(stale()),
        }
    }
}

/// A cursor that does not fit the table any more.
pub(super) fn stale() -> BridgeError {
    invalid(
        "cursor",
        "the table has changed since this cursor was handed out; start again without it",
    )
}

impl KeyValue {
    fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Int(number) => json!(number),
            Self::UInt(number) => json!(number),
            Self::Double(number) => json!({ "double": number.to_bits().to_string() }),
            Self::Single(number) => json!({ "single": number.to_bits().to_string() }),
            Self::Text(text) => match std::str::from_utf8(text) {
                Ok(text) => json!(text),
                Err(_) => json!({ "text": BASE64.encode(text) }),
            },
            Self::Bytes(bytes) => json!({ "bytes": BASE64.encode(bytes) }),
            Self::Typed { type_name, bytes } => {
                json!({ "type": type_name, "bytes": BASE64.encode(bytes) })
            }
            Self::Shown(value) => value.clone(),
        }
    }

    fn from_json(value: &Value) -> Option<Self> {
        let Value::Object(members) = value else {
            return Some(Self::plain(value));
        };
        let text = |name: &str| members.get(name)?.as_str();
        let bytes = |name: &str| BASE64.decode(text(name)?).ok();
        match (text("type"), members.keys().next()?.as_str()) {
            (Some(type_name), _) => Some(Self::Typed {
                type_name: type_name.to_owned(),
                bytes: bytes("bytes")?,
            }),
            (None, "double") => Some(Self::Double(f64::from_bits(text("double")?.parse().ok()?))),
            (None, "single") => Some(Self::Single(f32::from_bits(text("single")?.parse().ok()?))),
            (None, "text") => bytes("text").map(Self::Text),
            (None, "bytes") => bytes("bytes").map(Self::Bytes),
            _ => None,
        }
    }

    fn plain(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::UInt(number),
                (None, None) => Self::Shown(value.clone()),
            },
            Value::String(text) => Self::Text(text.clone().into_bytes()),
            other => Self::Shown(other.clone()),
        }
    }

    /// Appends the value in a form of our own, one value after the other; what is equal has equal bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(0),
            Self::Int(number) => put(out, 1, &number.to_be_bytes()),
            Self::UInt(number) => put(out, 2, &number.to_be_bytes()),
            Self::Single(number) => put(out, 3, &number.to_be_bytes()),
            Self::Double(number) => put(out, 4, &number.to_be_bytes()),
            Self::Text(text) => write_text(out, text),
            Self::Bytes(bytes) | Self::Typed { bytes, .. } => write_bytes(out, bytes),
            Self::Shown(value) => put(out, 7, value.to_string().as_bytes()),
        }
    }

    /// Reads what [`Self::write`] wrote, as far as a database can have given it.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (tag, bytes) = bytes.split_first()?;
        Some(match tag {
            0 => Self::Null,
            1 => Self::Int(i64::from_be_bytes(bytes.try_into().ok()?)),
            2 => Self::UInt(u64::from_be_bytes(bytes.try_into().ok()?)),
            3 => Self::Single(f32::from_be_bytes(bytes.try_into().ok()?)),
            4 => Self::Double(f64::from_be_bytes(bytes.try_into().ok()?)),
            5 => Self::Text(bytes.to_vec()),
            6 => Self::Bytes(bytes.to_vec()),
            _ => return None,
        })
    }
}

fn put(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(bytes);
}

/// Writes a text without a copy, as [`KeyValue::write`] does.
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    put(out, 5, text);
}

/// Writes bytes without a copy, as [`KeyValue::write`] does.
pub(super) fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, 6, bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> impl Strategy<Value = KeyValue> {
        prop_oneof![
            Just(KeyValue::Null),
            any::<i64>().prop_map(KeyValue::Int),
            (i64::MAX as u64 + 1..).prop_map(KeyValue::UInt),
            any::<u32>().prop_map(|bits| KeyValue::Single(f32::from_bits(bits))),
            any::<u64>().prop_map(|bits| KeyValue::Double(f64::from_bits(bits))),
            any::<Vec<u8>>().prop_map(KeyValue::Text),
            any::<Vec<u8>>().prop_map(KeyValue::Bytes),
        ]
    }

    fn tie() -> impl Strategy<Value = Option<Tie>> {
        let digest = || prop::option::of(any::<Vec<u8>>().prop_map(KeyValue::Bytes));
        prop::option::of(
            (digest(), 0_u64..3, digest()).prop_map(|(digest, repeated, early)| Tie {
                digest,
                repeated,
                early,
                of: Some("x".to_owned()),
            }),
        )
    }

    fn bytes(value: &KeyValue) -> Vec<u8> {
        let mut out = Vec::new();
        value.write(&mut out);
        out
    }

    proptest! {
        #[test]
        fn a_position_survives_its_cursor_bit_by_bit(values in prop::collection::vec(value(), 1..5), tie in tie()) {
            let position = Position { values: values.clone(), tie: tie.clone() };
            let text = serde_json::to_string(&position.to_json()).unwrap();
            let json: Vec<Value> = serde_json::from_str(&text).unwrap();
            let back = Position::from_json(&json, values.len()).unwrap();
            prop_assert_eq!(back.tie, tie);
            for (back, value) in back.values.iter().zip(&values) {
                prop_assert_eq!(bytes(back), bytes(value));
                let read = KeyValue::read(&bytes(value)).unwrap();
                prop_assert_eq!(bytes(&read), bytes(value));
            }
            prop_assert!(Position::from_json(&json, values.len() + 1).is_err());
        }
    }
}
