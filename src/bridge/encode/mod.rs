//! Rows into JSON: one encoder for every bridge, writing values straight into the batch under way.
//!
//! [`RowEncoder`] is the plain part, which SQLite runs on its own thread; [`RowWriter`] adds the sink, and
//! hands over what there is when rows only trickle in.

mod values;
mod writer;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

pub(in crate::bridge) use self::values::*;
pub(in crate::bridge) use self::writer::RowWriter;
use super::{BridgeError, Execution, Outcome, RowBatch, RowFormat};
use crate::query::lens::FieldType;
use crate::query::rows::shown_as;

/// A batch is handed over when it has this size,
const BATCH_BYTES: usize = 64 * 1024;
/// or when its first row has waited for this long.
pub(in crate::bridge) const BATCH_DELAY: Duration = Duration::from_millis(20);

/// Limits on one answer that whoever runs the bridge has set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::bridge) struct Caps {
    pub(in crate::bridge) rows: Option<u64>,
    pub(in crate::bridge) bytes: Option<u64>,
}

/// What the columns of a statement are for: the first are written, the others say where the row stands in the order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::bridge) struct Columns {
    /// The output name of each that is written.
    pub(in crate::bridge) names: Vec<String>,
    /// What the lens says that each holds, where that changes how it is shown; missing ones say nothing.
    pub(in crate::bridge) types: Vec<Option<FieldType>>,
    /// How many values say where a row stands.
    pub(in crate::bridge) keys: usize,
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
pub(in crate::bridge) struct RowEncoder {
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
    pub(in crate::bridge) fn new(execution: &Execution, caps: Caps, columns: &Columns) -> Self {
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
    pub(in crate::bridge) fn row(
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
    pub(in crate::bridge) fn take(&mut self) -> Option<RowBatch> {
        if self.rows == 0 {
            return None;
        }
        let payload = Bytes::from(std::mem::take(&mut self.buffer));
        self.total_bytes += payload.len() as u64;
        let rows = std::mem::take(&mut self.rows);
        Some(RowBatch { rows, payload })
    }

    /// Since when the first row of the batch under way waits; `None` without rows.
    pub(in crate::bridge) fn waiting_since(&self) -> Option<Instant> {
        (self.rows > 0).then_some(self.started)
    }

    /// The figures of the whole answer, once the last batch was taken.
    pub(in crate::bridge) fn outcome(&self) -> Outcome {
        Outcome {
            rows: self.total_rows,
            bytes: self.total_bytes,
            ..Outcome::default()
        }
    }

    /// Where the last row stands in the order, and how many rows of this answer stand there; `None` without rows.
    pub(in crate::bridge) fn place(&self) -> Option<(Vec<&[u8]>, u64)> {
        (self.total_rows > 0).then(|| (self.place.values(), self.repeated))
    }
}

/// Shows what was written from `from` on as what the lens says that it is.
fn show_as(kind: FieldType, out: &mut Vec<u8>, from: usize) {
    if let Some(shown) = shown_as(kind, &out[from..]) {
        out.truncate(from);
        out.extend_from_slice(&shown);
    }
}

#[cfg(test)]
mod tests;
