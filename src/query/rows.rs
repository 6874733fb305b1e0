//! Rows of a protocol 1 runner, mapped to the lens's output names and written in the encoding of the answer.
//!
//! Values are passed on as the runner wrote them, so that no number loses a digit. Runners of protocol 2 do
//! all of this themselves; their rows never come here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de::DeserializeSeed};
use serde_json::Value;
use serde_json::value::RawValue;

use super::lens::FieldType;
use super::operation::ColumnTypes;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowEncoding {
    /// Objects joined by commas, without brackets; no comma at either end.
    Json,
    /// One object per line, each line ended.
    Ndjson,
}

/// Some rows, written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EncodedRows {
    /// The rows in the encoding asked for.
    pub payload: Vec<u8>,
    /// The values of the key columns in the last row, if there was a row.
    pub last: Option<Vec<Value>>,
}

/// A row that is not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the runner sent a row that is not a JSON object")]
pub struct BadRow;

/// Why rows were not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotEncoded {
    /// The runner's fault.
    #[error(transparent)]
    BadRow(#[from] BadRow),
    /// A lens can name a column many times, so rows can become far larger than they came.
    #[error("the rows are larger than the limit once they are mapped")]
    TooLarge,
}

/// One member of a row that is written.
#[derive(Debug, Clone)]
struct Output {
    /// Its name as the start of a JSON member (`"name":`).
    name: String,
    /// Which column it is read from.
    column: usize,
    /// What the lens says that it holds.
    kind: Option<FieldType>,
}

/// Maps and writes the rows of one job.
#[derive(Debug, Clone)]
pub struct RowMapper {
    encoding: RowEncoding,
    /// The columns that are read, each once.
    columns: HashMap<String, usize>,
    outputs: Option<Vec<Output>>,
    keys: Vec<usize>,
}

impl RowMapper {
    /// Prepares for rows of which `fields` (column → output name) are wanted, shown as what the lens says that they
    /// are, or all as they are, and whose values of `keys` are wanted back.
    pub fn new(
        fields: Option<&[(String, String)]>,
        keys: &[String],
        types: &ColumnTypes,
        encoding: RowEncoding,
    ) -> Self {
        let mut columns = HashMap::new();
        let mut index = |column: &String| {
            let next = columns.len();
            *columns.entry(column.clone()).or_insert(next)
        };
        let outputs = fields.map(|fields| {
            let output = |(column, output): &(String, String)| Output {
                name: format!("{}:", Value::from(output.as_str())),
                column: index(column),
                kind: types.get(column).copied(),
            };
            fields.iter().map(output).collect()
        });
        let keys = keys.iter().map(&mut index).collect();
        Self {
            encoding,
            columns,
            outputs,
            keys,
        }
    }

    /// Writes some rows, in `limit` bytes at most; a column that a row does not have is null.
    ///
    /// # Errors
    ///
    /// When a row is not an object, or when they do not fit.
    pub fn encode(&self, rows: &[Box<RawValue>], limit: usize) -> Result<EncodedRows, NotEncoded> {
        let mut encoded = EncodedRows::default();
        for (index, row) in rows.iter().enumerate() {
            if index > 0 && self.encoding == RowEncoding::Json {
                encoded.payload.push(b',');
            }
            let is_last = index + 1 == rows.len();
            let cells = if self.outputs.is_some() || is_last {
                self.read(row)?
            } else {
                Vec::new()
            };
            match &self.outputs {
                Some(outputs) => write_mapped(&mut encoded.payload, outputs, &cells, limit)?,
                None => write_whole(&mut encoded.payload, row)?,
            }
            if self.encoding == RowEncoding::Ndjson {
                encoded.payload.push(b'\n');
            }
            if encoded.payload.len() > limit {
                return Err(NotEncoded::TooLarge);
            }
            if is_last {
                encoded.last = Some(self.keys.iter().map(|key| value(cells[*key])).collect());
            }
        }
        Ok(encoded)
    }

    /// The cells of a row in the order of `columns`.
    fn read<'a>(&self, row: &'a RawValue) -> Result<Vec<Option<&'a RawValue>>, BadRow> {
        let mut json = serde_json::Deserializer::from_str(row.get());
        // What the parser says of a wrong row helps nobody who has to fix the runner.
        Cells {
            columns: &self.columns,
        }
        .deserialize(&mut json)
        .or(Err(BadRow))
    }
}

/// Looks at the limit before each cell, because one row alone can become too large.
fn write_mapped(
    payload: &mut Vec<u8>,
    outputs: &[Output],
    cells: &[Option<&RawValue>],
    limit: usize,
) -> Result<(), NotEncoded> {
    payload.push(b'{');
    for (index, output) in outputs.iter().enumerate() {
        if index > 0 {
            payload.push(b',');
        }
        payload.extend_from_slice(output.name.as_bytes());
        match cells[output.column] {
            Some(cell) if payload.len().saturating_add(cell.get().len()) > limit => {
                return Err(NotEncoded::TooLarge);
            }
            Some(cell) => {
                let shown = output
                    .kind
                    .and_then(|kind| shown_as(kind, cell.get().as_bytes()));
                match shown {
                    Some(shown) => payload.extend_from_slice(&shown),
                    None => write_raw(payload, cell),
                }
            }
            None => payload.extend_from_slice(b"null"),
        }
    }
    payload.push(b'}');
    Ok(())
}

fn write_whole(payload: &mut Vec<u8>, row: &RawValue) -> Result<(), BadRow> {
    if !row.get().starts_with('{') {
        return Err(BadRow);
    }
    write_raw(payload, row);
    Ok(())
}

/// JSON text has line ends only between its tokens, where a blank does as well and breaks no NDJSON line.
fn write_raw(payload: &mut Vec<u8>, raw: &RawValue) {
    payload.extend(raw.get().bytes().map(|byte| {
        if matches!(byte, b'\n' | b'\r') {
            b' '
        } else {
            byte
        }
    }));
}

fn value(cell: Option<&RawValue>) -> Value {
    cell.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// A value as JSON in the form that a lens's type gives it, if that is another: databases without booleans have
/// 0 and 1, and an exact number is a string, so that no reader takes it for a double.
pub fn shown_as(kind: FieldType, json: &[u8]) -> Option<Cow<'static, [u8]>> {
    match (kind, json) {
        (FieldType::Boolean, b"0") => Some(Cow::Borrowed(b"false")),
        (FieldType::Boolean, b"1") => Some(Cow::Borrowed(b"true")),
        (FieldType::Decimal, [b'-' | b'0'..=b'9', ..]) => {
            Some(Cow::Owned([b"\"", json, b"\""].concat()))
        }
        _ => None,
    }
}

/// Reads the wanted members of an object and skips the others.
struct Cells<'m> {
    columns: &'m HashMap<String, usize>,
}

/// A member's name, borrowed unless it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Cells<'_> {
    type Value = Vec<Option<&'de RawValue>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Cells<'_> {
    type Value = Vec<Option<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut cells = vec![None; self.columns.len()];
        while let Some(Name(name)) = map.next_key()? {
            let cell: &'de RawValue = map.next_value()?;
            if let Some(column) = self.columns.get(name.as_ref()) {
                cells[*column] = Some(cell);
            }
        }
        Ok(cells)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(texts: &[&str]) -> Vec<Box<RawValue>> {
        texts
            .iter()
            .map(|text| RawValue::from_string((*text).to_owned()).unwrap())
            .collect()
    }

    fn encode(
        fields: Option<&[(&str, &str)]>,
        keys: &[&str],
        encoding: RowEncoding,
        texts: &[&str],
    ) -> Result<(String, Option<Vec<Value>>), NotEncoded> {
        encode_within(fields, keys, encoding, texts, usize::MAX)
    }

    fn encode_within(
        fields: Option<&[(&str, &str)]>,
        keys: &[&str],
        encoding: RowEncoding,
        texts: &[&str],
        limit: usize,
    ) -> Result<(String, Option<Vec<Value>>), NotEncoded> {
        let fields: Option<Vec<(String, String)>> = fields.map(|fields| {
            fields
                .iter()
                .map(|(c, o)| ((*c).into(), (*o).into()))
                .collect()
        });
        let keys: Vec<String> = keys.iter().map(|key| (*key).into()).collect();
        let mapper = RowMapper::new(fields.as_deref(), &keys, &ColumnTypes::new(), encoding);
        let encoded = mapper.encode(&rows(texts), limit)?;
        Ok((String::from_utf8(encoded.payload).unwrap(), encoded.last))
    }

    const FIELDS: Option<&[(&str, &str)]> =
        Some(&[("price_cents", "price"), ("id", "id"), ("id", "a\"b")]);

    #[test]
    fn rows_are_mapped_in_output_order_and_keep_every_digit() {
        let texts = [
            r#"{"id":1,"price_cents":12345678901234567890.10,"secret":"x"}"#,
            r#"{"price_cents" : {"a": [1, 2]}, "id":"\u00e9"}"#,
        ];
        let (json, last) = encode(FIELDS, &["id", "rank"], RowEncoding::Json, &texts).unwrap();
        assert_eq!(
            json,
            r#"{"price":12345678901234567890.10,"id":1,"a\"b":1},{"price":{"a": [1, 2]},"id":"\u00e9","a\"b":"\u00e9"}"#
        );
        assert_eq!(last, Some(vec![json!("é"), Value::Null]));
        let (ndjson, _) = encode(FIELDS, &[], RowEncoding::Ndjson, &texts).unwrap();
        assert_eq!(ndjson.lines().count(), 2);
        assert!(ndjson.ends_with("}\n"));
    }

    #[test]
    fn a_missing_column_is_null_and_an_escaped_name_is_found() {
        let (json, last) = encode(
            FIELDS,
            &["id"],
            RowEncoding::Json,
            &[r#"{"i\u0064":5}"#, "{}"],
        )
        .unwrap();
        assert_eq!(
            json,
            r#"{"price":null,"id":5,"a\"b":5},{"price":null,"id":null,"a\"b":null}"#
        );
        assert_eq!(last, Some(vec![Value::Null]));
    }

    #[test]
    fn without_fields_rows_pass_as_they_are() {
        let (json, last) = encode(
            None,
            &["b"],
            RowEncoding::Json,
            &[r#"{"a": 1.0}"#, r#"{"b":2}"#],
        )
        .unwrap();
        assert_eq!(json, r#"{"a": 1.0},{"b":2}"#);
        assert_eq!(last, Some(vec![json!(2)]));
    }

    #[test]
    fn no_line_end_inside_a_row_breaks_ndjson() {
        let texts = ["{\n  \"a\": [\r\n1],\n\"b\": \"x\\ny\"}"];
        let fields: Option<&[_]> = Some(&[("a", "a"), ("b", "b")]);
        for fields in [None, fields] {
            let (ndjson, _) = encode(fields, &[], RowEncoding::Ndjson, &texts).unwrap();
            assert_eq!(ndjson.lines().count(), 1);
            let row: Value = serde_json::from_str(&ndjson).unwrap();
            assert_eq!(row, json!({"a": [1], "b": "x\ny"}));
        }
    }

    #[test]
    fn no_rows_are_no_bytes() {
        assert_eq!(
            encode(FIELDS, &["id"], RowEncoding::Json, &[]),
            Ok((String::new(), None))
        );
    }

    #[test]
    fn a_row_that_is_not_an_object_is_refused() {
        for text in ["5", "[1]", "null", "\"x\""] {
            assert_eq!(
                encode(FIELDS, &[], RowEncoding::Json, &[text, "{}"]),
                Err(NotEncoded::BadRow(BadRow)),
                "{text}"
            );
            assert_eq!(
                encode(None, &[], RowEncoding::Json, &[text, "{}"]),
                Err(NotEncoded::BadRow(BadRow)),
                "{text}"
            );
            assert_eq!(
                encode(None, &[], RowEncoding::Json, &["{}", text]),
                Err(NotEncoded::BadRow(BadRow)),
                "{text}"
            );
        }
    }

    #[test]
    fn rows_stop_at_the_limit_however_often_a_column_is_named() {
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(1000));
        let outputs: Vec<String> = (0..100).map(|n| format!("o{n}")).collect();
        let many: Vec<(&str, &str)> = outputs
            .iter()
            .map(|output| ("a", output.as_str()))
            .collect();
        let within = |fields, texts: &[&str], limit| {
            encode_within(fields, &[], RowEncoding::Ndjson, texts, limit)
                .map(|(text, _)| text.len())
        };
        let whole = within(Some(many.as_slice()), &[large.as_str()], usize::MAX).unwrap();
        assert!(whole > 100_000);
        for (fields, texts, size) in [
            (Some(many.as_slice()), vec![large.as_str()], whole),
            (None, vec![large.as_str(); 3], 3 * (large.len() + 1)),
        ] {
            assert_eq!(within(fields, &texts, size), Ok(size));
            assert_eq!(within(fields, &texts, size - 1), Err(NotEncoded::TooLarge));
        }
        assert_eq!(
            within(Some(many.as_slice()), &["5"], 0),
            Err(NotEncoded::BadRow(BadRow))
        );
    }
}
