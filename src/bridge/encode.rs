//! Rows into JSON: one encoder for every bridge, writing values straight into the batch under way.
//!
//! [`RowEncoder`] is the plain part, which SQLite runs on its own thread; [`RowWriter`] adds the sink, and
//! hands over what there is when rows only trickle in.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use super::{BridgeError, Execution, Outcome, RowBatch, RowFormat, RowSink};
use crate::query::lens::FieldType;
use crate::query::rows::shown_as;

/// A batch is handed over when it has this size,
const BATCH_BYTES: usize = 64 * 1024;
/// or when its first row has waited for this long.
pub(super) const BATCH_DELAY: Duration = Duration::from_millis(20);
/// What is kept back for the sake of a right answer is kept for this long.
const MOMENT: Duration = Duration::from_millis(250);

/// Limits on one answer that whoever runs the bridge has set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Caps {
    pub(super) rows: Option<u64>,
    pub(super) bytes: Option<u64>,
}

/// What the columns of a statement are for: the first are written, the others say where the row stands in the order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Columns {
    /// The output name of each that is written.
    pub(super) names: Vec<String>,
    /// What the lens says that each holds, where that changes how it is shown; missing ones say nothing.
    pub(super) types: Vec<Option<FieldType>>,
    /// How many values say where a row stands.
    pub(super) keys: usize,
}

/// The values that say where a row stands in the order, as [`super::keys::KeyValue::write`] has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    bytes: Vec<u8>,
    /// Where each value ends.
    ends: Vec<usize>,
}

impl Place {
    fn of(keys: usize) -> Self {
        Self {
            bytes: Vec::new(),
            ends: vec![0; keys],
        }
    }

    fn values(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        let spans = starts.zip(&self.ends);
        spans.map(|(from, to)| &self.bytes[*from..*to]).collect()
    }
}

/// Writes rows into batches; knows nothing of where they go.
#[derive(Debug)]
pub(super) struct RowEncoder {
    format: RowFormat,
    max_batch_bytes: usize,
    max_row_bytes: usize,
    caps: Caps,
    /// What stands before each written value: brace or comma, name, colon.
    prefixes: Vec<Vec<u8>>,
    types: Vec<Option<FieldType>>,
    buffer: Vec<u8>,
    rows: u32,
    /// Where the last row stands in the order, and the one before it.
    place: Place,
    before: Place,
    /// How many rows, the last one included, stand at its place one after the other.
    repeated: u64,
    started: Instant,
    total_rows: u64,
    total_bytes: u64,
}

impl RowEncoder {
    /// Makes the encoder of one answer.
    pub(super) fn new(execution: &Execution, caps: Caps, columns: &Columns) -> Self {
        let prefixes = columns.names.iter().enumerate().map(|(i, name)| {
            let mut prefix = vec![if i == 0 { b'{' } else { b',' }];
            write_str(&mut prefix, name);
            prefix.push(b':');
            prefix
        });
        Self {
            format: execution.format,
            max_batch_bytes: execution.max_batch_bytes,
            max_row_bytes: execution.max_row_bytes,
            caps,
            prefixes: prefixes.collect(),
            types: columns.types.clone(),
            buffer: Vec::new(),
            rows: 0,
            place: Place::of(columns.keys),
            before: Place::of(columns.keys),
            repeated: 0,
            started: Instant::now(),
            total_rows: 0,
            total_bytes: 0,
        }
    }

    /// Writes one row: `value` is asked for each column in turn, first for those that are written, then for the
    /// values that say where the row stands. Answers a batch when one is full.
    ///
    /// After an error there is no more of this answer: a row that was begun is none, and whoever fetches what
    /// has waited long finds nothing.
    pub(super) fn row(
        &mut self,
        value: impl FnMut(usize, &mut Vec<u8>) -> Result<(), BridgeError>,
    ) -> Result<Option<RowBatch>, BridgeError> {
        let written = self.try_row(value);
        if written.is_err() {
            self.rows = 0;
            self.buffer.clear();
        }
        written
    }

    fn try_row(
        &mut self,
        mut value: impl FnMut(usize, &mut Vec<u8>) -> Result<(), BridgeError>,
    ) -> Result<Option<RowBatch>, BridgeError> {
        if self.rows == 0 {
            self.buffer
                .reserve(BATCH_BYTES.min(self.max_batch_bytes) + 1024);
            self.started = Instant::now();
        }
        let start = self.buffer.len();
        if self.rows > 0 && self.format == RowFormat::Json {
            self.buffer.push(b',');
        }
        for (i, prefix) in self.prefixes.iter().enumerate() {
            self.buffer.extend_from_slice(prefix);
            let from = self.buffer.len();
            value(i, &mut self.buffer)?;
            if let Some(Some(kind)) = self.types.get(i) {
                show_as(*kind, &mut self.buffer, from);
            }
            // Before the next value, so that no row takes more memory than one value more than it may.
            self.check_row(self.buffer.len() - start)?;
        }
        if self.prefixes.is_empty() {
            self.buffer.push(b'{');
        }
        self.buffer.push(b'}');
        if self.format == RowFormat::Ndjson {
            self.buffer.push(b'\n');
        }
        std::mem::swap(&mut self.place, &mut self.before);
        self.place.bytes.clear();
        for i in 0..self.place.ends.len() {
            value(self.prefixes.len() + i, &mut self.place.bytes)?;
            self.place.ends[i] = self.place.bytes.len();
        }
        let again = self.total_rows > 0 && self.place == self.before;
        self.repeated = if again { self.repeated + 1 } else { 1 };
        self.finish_row(start)
    }

    /// Closes the row that began at `start`: counts it, and cuts the batch before or after it if it is time.
    fn finish_row(&mut self, start: usize) -> Result<Option<RowBatch>, BridgeError> {
        self.rows += 1;
        self.total_rows += 1;
        if let Some(max) = self.caps.rows.filter(|max| self.total_rows > *max) {
            return Err(BridgeError::ResultOverflow(format!(
                "the result has more than {max} rows"
            )));
        }
        self.check_row(self.buffer.len() - start - self.comma())?;
        if self.buffer.len() > self.max_batch_bytes {
            return self.cut_before(start);
        }
        self.check_bytes()?;
        if self.buffer.len() >= BATCH_BYTES {
            Ok(self.take())
        } else {
            Ok(None)
        }
    }

    /// Ends the batch before the row at `start`, which made it too large, and begins the next with that row.
    fn cut_before(&mut self, start: usize) -> Result<Option<RowBatch>, BridgeError> {
        let comma = self.comma();
        if self.rows == 1 {
            // A row that is larger than a batch goes alone.
            self.check_bytes()?;
            return Ok(self.take());
        }
        let row = self.buffer.split_off(start + comma);
        self.buffer.truncate(start);
        self.rows -= 1;
        let full = RowBatch {
            rows: self.rows,
            payload: Bytes::from(std::mem::replace(&mut self.buffer, row)),
        };
        self.total_bytes += full.payload.len() as u64;
        self.rows = 1;
        self.started = Instant::now();
        self.check_bytes()?;
        Ok(Some(full))
    }

    /// The length of what stands between the last row and the one before it.
    fn comma(&self) -> usize {
        usize::from(self.rows > 1 && self.format == RowFormat::Json)
    }

    fn check_row(&self, size: usize) -> Result<(), BridgeError> {
        if size <= self.max_row_bytes {
            return Ok(());
        }
        Err(BridgeError::ResultOverflow(format!(
            "a row of the result is larger than {} bytes, the most that one row may have; ask for fewer of its \
             fields with `select`",
            self.max_row_bytes
        )))
    }

    fn check_bytes(&self) -> Result<(), BridgeError> {
        let bytes = self.total_bytes + self.buffer.len() as u64;
        match self.caps.bytes.filter(|max| bytes > *max) {
            Some(max) => Err(BridgeError::ResultOverflow(format!(
                "the result has more than {max} bytes"
            ))),
            None => Ok(()),
        }
    }

    /// The batch under way, if it has rows.
    pub(super) fn take(&mut self) -> Option<RowBatch> {
        if self.rows == 0 {
            return None;
        }
        let payload = Bytes::from(std::mem::take(&mut self.buffer));
        self.total_bytes += payload.len() as u64;
        let rows = std::mem::take(&mut self.rows);
        Some(RowBatch { rows, payload })
    }

    /// Since when the first row of the batch under way waits; `None` without rows.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        (self.rows > 0).then_some(self.started)
    }

    /// The figures of the whole answer, once the last batch was taken.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            rows: self.total_rows,
            bytes: self.total_bytes,
            ..Outcome::default()
        }
    }

    /// Where the last row stands in the order, and how many rows of this answer stand there; `None` without rows.
    pub(super) fn place(&self) -> Option<(Vec<&[u8]>, u64)> {
        (self.total_rows > 0).then(|| (self.place.values(), self.repeated))
    }
}

/// An encoder with the sink that its batches go to.
pub(super) struct RowWriter<'a> {
    execution: &'a Execution,
    caps: Caps,
    encoder: Option<RowEncoder>,
    sink: &'a mut dyn RowSink,
}

impl<'a> RowWriter<'a> {
    /// Makes the writer of one answer.
    pub(super) fn new(execution: &'a Execution, caps: Caps, sink: &'a mut dyn RowSink) -> Self {
        Self {
            execution,
            caps,
            encoder: None,
            sink,
        }
    }

    /// Says which columns the rows have; before the first row. The rows of further statements are of the same answer.
    pub(super) fn begin(&mut self, columns: &Columns) {
        let (execution, caps) = (self.execution, self.caps);
        self.encoder
            .get_or_insert_with(|| RowEncoder::new(execution, caps, columns));
    }

    /// Whether rows may have been written.
    pub(super) fn has_begun(&self) -> bool {
        self.encoder.is_some()
    }

    /// The limits, for rows that are encoded elsewhere and come here by [`Self::send`].
    pub(super) fn caps(&self) -> Caps {
        self.caps
    }

    /// Writes one row, and waits for the sink when a batch is full.
    pub(super) async fn row(
        &mut self,
        value: impl FnMut(usize, &mut Vec<u8>) -> Result<(), BridgeError>,
    ) -> Result<(), BridgeError> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(());
        };
        match encoder.row(value)? {
            Some(batch) => self.send(batch).await,
            None => Ok(()),
        }
    }

    /// Writes rows that are few and already JSON, such as those of `listTargets`.
    pub(super) async fn objects(
        &mut self,
        names: &[&str],
        rows: Vec<Vec<Value>>,
    ) -> Result<(), BridgeError> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        self.begin(&Columns {
            names,
            ..Columns::default()
        });
        for row in rows {
            self.row(|i, out| {
                write_json(out, &row[i]);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for the next row; if that takes long, what was written is handed over meanwhile.
    pub(super) async fn wait<T>(
        &mut self,
        next: impl Future<Output = T>,
    ) -> Result<T, BridgeError> {
        let Some(since) = self.encoder.as_ref().and_then(RowEncoder::waiting_since) else {
            return Ok(next.await);
        };
        let mut next = pin!(next);
        tokio::select! {
            biased;
            next = &mut next => return Ok(next),
            () = tokio::time::sleep_until(since + BATCH_DELAY) => {}
        }
        self.flush().await?;
        Ok(next.await)
    }

    /// Hands over a batch and waits until the sink took it.
    pub(super) async fn send(&mut self, batch: RowBatch) -> Result<(), BridgeError> {
        // A fast database and a fast sink must not keep a cancellation from being seen.
        tokio::task::yield_now().await;
        self.sink.send(batch).await.or(Err(BridgeError::Cancelled))
    }

    /// Waits for the next row, while one is kept back that it may be tied to: that one not for longer than a moment.
    /// Answers `None` when that is over.
    pub(super) async fn wait_briefly<T>(
        &mut self,
        next: impl Future<Output = T>,
    ) -> Result<Option<T>, BridgeError> {
        self.wait(async { tokio::time::timeout(MOMENT, next).await.ok() })
            .await
    }

    async fn flush(&mut self) -> Result<(), BridgeError> {
        match self.encoder.as_mut().and_then(RowEncoder::take) {
            Some(batch) => self.send(batch).await,
            None => Ok(()),
        }
    }

    /// Where the last row stands in the order, and how many rows of this answer stand there; `None` without rows.
    pub(super) fn place(&self) -> Option<(Vec<&[u8]>, u64)> {
        self.encoder.as_ref().and_then(RowEncoder::place)
    }

    /// Hands over the rest and says what there was.
    pub(super) async fn finish(&mut self) -> Result<Outcome, BridgeError> {
        self.flush().await?;
        Ok(self
            .encoder
            .as_ref()
            .map(RowEncoder::outcome)
            .unwrap_or_default())
    }
}

/// Shows what was written from `from` on as what the lens says that it is.
fn show_as(kind: FieldType, out: &mut Vec<u8>, from: usize) {
    if let Some(shown) = shown_as(kind, &out[from..]) {
        out.truncate(from);
        out.extend_from_slice(&shown);
    }
}

/// The largest integer that a JSON reader may take for a double without losing digits.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Writes a string.
pub(super) fn write_str(out: &mut Vec<u8>, text: &str) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// Writes any JSON.
pub(super) fn write_json(out: &mut Vec<u8>, value: &Value) {
    let _ = serde_json::to_writer(out, value);
}

/// Writes a text that needs no escaping, such as a date.
pub(super) fn write_plain(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    out.push(b'"');
    let _ = out.write_fmt(text);
    out.push(b'"');
}

/// Writes an integer: a number where every reader keeps its digits, else a string.
pub(super) fn write_int(out: &mut Vec<u8>, number: i64) {
    write_digits(
        out,
        itoa::Buffer::new().format(number),
        number.unsigned_abs(),
    );
}

/// Writes an unsigned integer like [`write_int`].
pub(super) fn write_uint(out: &mut Vec<u8>, number: u64) {
    write_digits(out, itoa::Buffer::new().format(number), number);
}

fn write_digits(out: &mut Vec<u8>, digits: &str, magnitude: u64) {
    let quote = magnitude > MAX_SAFE_INTEGER;
    if quote {
        out.push(b'"');
    }
    out.extend_from_slice(digits.as_bytes());
    if quote {
        out.push(b'"');
    }
}

/// Writes a double; what is not finite is a string.
pub(super) fn write_f64(out: &mut Vec<u8>, number: f64) {
    if number.is_finite() {
        let _ = serde_json::to_writer(out, &number);
    } else {
        write_not_finite(out, number);
    }
}

/// Writes a single with the digits that a single has.
pub(super) fn write_f32(out: &mut Vec<u8>, number: f32) {
    if number.is_finite() {
        let _ = serde_json::to_writer(out, &number);
    } else {
        write_not_finite(out, number.into());
    }
}

fn write_not_finite(out: &mut Vec<u8>, number: f64) {
    out.extend_from_slice(match number {
        _ if number.is_nan() => b"\"NaN\"".as_slice(),
        _ if number > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    });
}

/// Writes bytes as base64.
pub(super) fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    use base64::Engine as _;
    out.push(b'"');
    out.extend_from_slice(
        base64::engine::general_purpose::STANDARD
            .encode(bytes)
            .as_bytes(),
    );
    out.push(b'"');
}

/// Writes text that may not be UTF-8 after all, in which case it is base64.
pub(super) fn write_text(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => write_str(out, text),
        Err(_) => write_base64(out, bytes),
    }
}

/// Writes what a JSON column holds as it is, digits, order and repetitions included; what is no JSON after all is a
/// string.
pub(super) fn write_raw_json(out: &mut Vec<u8>, bytes: &[u8]) {
    match serde_json::from_slice::<&serde_json::value::RawValue>(bytes) {
        // A line break between tokens would end a row of NDJSON.
        Ok(json) if json.get().contains(['\n', '\r']) => write_without_space(out, json.get()),
        Ok(json) => out.extend_from_slice(json.get().as_bytes()),
        Err(_) => write_text(out, bytes),
    }
}

/// Copies a JSON document without the white space between its tokens.
fn write_without_space(out: &mut Vec<u8>, json: &str) {
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        if !in_string && byte.is_ascii_whitespace() {
            continue;
        }
        out.push(byte);
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::ids::JobId;
    use crate::query::operation::{ColumnTypes, Paging};

    fn execution(format: RowFormat, max_batch_bytes: usize) -> Execution {
        Execution {
            job_id: JobId::new(),
            attempt: 1,
            deadline: Instant::now() + Duration::from_secs(1),
            cancel: CancellationToken::new(),
            format,
            fields: None,
            paging: Paging::default(),
            types: ColumnTypes::new(),
            max_batch_bytes,
            max_row_bytes: max_batch_bytes,
        }
    }

    proptest! {
        #[test]
        fn batches_hold_all_rows_in_order_within_their_limit(
            texts in prop::collection::vec(".{0,30}", 0..40),
            max in 20_usize..600,
            lines in any::<bool>(),
        ) {
            let format = if lines { RowFormat::Ndjson } else { RowFormat::Json };
            let execution = Execution { max_row_bytes: 1000, ..execution(format, max) };
            let columns = Columns { names: vec!["x".into()], keys: 2, ..Columns::default() };
            let mut encoder = RowEncoder::new(&execution, Caps::default(), &columns);
            let mut batches = Vec::new();
            for (n, text) in texts.iter().enumerate() {
                batches.extend(encoder.row(|i, out| {
                    match i {
                        0 => write_str(out, text),
                        1 => out.extend_from_slice(&(n / 2).to_be_bytes()),
                        _ => out.extend_from_slice(b"k"),
                    }
                    Ok(())
                }).unwrap());
            }
            batches.extend(encoder.take());
            let mut rows = Vec::new();
            for batch in &batches {
                prop_assert!(batch.payload.len() <= max || batch.rows == 1);
                let text = std::str::from_utf8(&batch.payload).unwrap();
                let text = if lines { text.trim_end().replace('\n', ",") } else { text.to_owned() };
                let parsed: Vec<Value> = serde_json::from_str(&format!("[{text}]")).unwrap();
                prop_assert_eq!(parsed.len(), batch.rows as usize);
                rows.extend(parsed);
            }
            let expected: Vec<_> = texts.iter().map(|text| serde_json::json!({"x": text})).collect();
            prop_assert_eq!(rows, expected);
            let outcome = encoder.outcome();
            let bytes: usize = batches.iter().map(|batch| batch.payload.len()).sum();
            prop_assert_eq!((outcome.rows, outcome.bytes), (texts.len() as u64, bytes as u64));
            let place = encoder.place().map(|(values, repeated)| (values.concat(), repeated));
            let last = texts.len().checked_sub(1).map(|n| ([&(n / 2).to_be_bytes()[..], b"k"].concat(), n as u64 % 2 + 1));
            prop_assert_eq!(place, last);
        }
    }

    #[test]
    fn a_row_is_as_large_as_it_may_be_and_not_larger() {
        for (format, around) in [(RowFormat::Json, 8), (RowFormat::Ndjson, 9)] {
            let execution = Execution {
                max_row_bytes: 1000,
                ..execution(format, 100)
            };
            let columns = Columns {
                names: vec!["x".into()],
                ..Columns::default()
            };
            for before in [0, 1, 5] {
                for (length, fits) in [(1000, true), (1001, false), (3000, false)] {
                    let mut encoder = RowEncoder::new(&execution, Caps::default(), &columns);
                    let mut row = |length: usize| {
                        encoder.row(|_, out| {
                            write_str(out, &"x".repeat(length - around));
                            Ok(())
                        })
                    };
                    for _ in 0..before {
                        row(20).unwrap();
                    }
                    let written = row(length);
                    assert_eq!(written.is_ok(), fits, "{format:?} {before} {length}");
                    if let Err(error) = written {
                        assert!(error.to_string().contains("1000 bytes"), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_left_to_be_fetched_of_an_answer_that_failed() {
        for second in ["y".repeat(400), "bad".to_owned()] {
            let execution = execution(RowFormat::Json, 300);
            let columns = Columns {
                names: vec!["x".into()],
                ..Columns::default()
            };
            let mut encoder = RowEncoder::new(&execution, Caps::default(), &columns);
            let mut row = |text: &str| {
                encoder.row(|_, out| {
                    write_str(out, text);
                    match text {
                        "bad" => Err(BridgeError::QueryFailed("bad".into())),
                        _ => Ok(()),
                    }
                })
            };
            row("x").unwrap();
            assert!(row(&second).is_err());
            assert!(encoder.take().is_none());
        }
    }

    #[test]
    fn a_document_keeps_all_that_it_says_on_one_line() {
        let written = |json: &str| {
            let mut out = Vec::new();
            write_raw_json(&mut out, json.as_bytes());
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(
                "{ \"b\": 1.50,\r\n\t\"a\" : [1e400, 12345678901234567890.10],\n\"b\": \"x \\\\\" }"
            ),
            "{\"b\":1.50,\"a\":[1e400,12345678901234567890.10],\"b\":\"x \\\\\"}"
        );
        assert_eq!(
            written("{\"a\": \"\\\" \\n b\"}\n"),
            "{\"a\": \"\\\" \\n b\"}"
        );
        assert_eq!(written("{\n\"a\": \"\\\" b\"}"), "{\"a\":\"\\\" b\"}");
        let deep = format!("{}\n{}", "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(written(&deep), deep.replace('\n', ""));
        assert_eq!(written("{\n"), "\"{\\n\"");
    }

    #[test]
    fn numbers_that_a_double_cannot_hold_are_strings() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(&|out| write_int(out, 9_007_199_254_740_991)),
            "9007199254740991"
        );
        assert_eq!(
            written(&|out| write_int(out, -9_007_199_254_740_992)),
            "\"-9007199254740992\""
        );
        assert_eq!(
            written(&|out| write_uint(out, u64::MAX)),
            "\"18446744073709551615\""
        );
        assert_eq!(written(&|out| write_f64(out, f64::NAN)), "\"NaN\"");
        assert_eq!(written(&|out| write_f32(out, 0.1)), "0.1");
    }
}
