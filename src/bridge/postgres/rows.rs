//! The rows of a query, on their way from the database to their writer.

use futures_util::TryStreamExt as _;
use tokio_postgres::{Row, RowStream};

use super::decode::{self, Decoder};
use super::session::Session;
use crate::bridge::encode::{Columns, RowWriter};
use crate::bridge::keys::{self, KeyValue};
use crate::bridge::request::Query;
use crate::bridge::sql::{By, Class, Held, Leg, Page, Shape, Statement, Term, changed};
use crate::bridge::{BridgeError, Outcome};

impl Session<'_> {
    pub(super) async fn query(
        &self,
        query: &Query,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let remembered = self.shapes.get(&query.target).is_some();
        let shape = self.shape(&query.target).await?;
        let total = match query.total {
            true => Some(self.count(&query.target, &query.filter).await?),
            false => None,
        };
        let mut page = Page::new(self.builder(&shape), query, self.job.execution)?;
        while let Some((statement, mut leg)) = page.next()? {
            let stream = match remembered && !rows.has_begun() {
                true => self.stream_if_current(&shape, &statement).await,
                false => self.stream(&statement).await,
            };
            let stream = self.explain(&shape, &query.filter, stream).await?;
            let copied = self.copy(stream, &page.columns, &mut leg, rows).await;
            self.explain(&shape, &query.filter, copied).await?;
            page.ended(leg, key_value)?;
        }
        let outcome = Outcome {
            total,
            ..rows.finish().await?
        };
        page.conclude(outcome, rows.place(), key_value)
    }

    /// The rows of a statement, unless the table is not as its remembered shape says: what was asked means something
    /// else then.
    async fn stream_if_current(
        &self,
        shape: &Shape,
        statement: &Statement,
    ) -> Result<RowStream, BridgeError> {
        let (is_current, stream) =
            tokio::join!(biased; self.is_current(shape), self.stream(statement));
        match is_current? {
            true => stream,
            false => Err(changed()),
        }
    }

    /// Copies the rows of a statement that are the page's.
    async fn copy(
        &self,
        stream: RowStream,
        columns: &Columns,
        leg: &mut Leg<Row>,
        rows: &mut RowWriter<'_>,
    ) -> Result<(), BridgeError> {
        let mut stream = std::pin::pin!(stream);
        // Nothing has begun before the first row is there: what fails until then may be tried again.
        let mut next = stream.try_next().await.map_err(|error| self.error(error))?;
        let types = next.as_ref().map_or(&[][..], Row::columns);
        rows.begin(columns);
        let decoders = types.iter().map(|column| Decoder::or_text(column.type_()));
        let decoders: Vec<_> = decoders.collect();
        while let Some(row) = next {
            for row in leg.take(row, |row, i, out| self.write_key(row, i, out))? {
                self.write(&row, &decoders, columns, rows).await?;
            }
            if leg.is_done() {
                return Ok(());
            }
            let mut following = std::pin::pin!(stream.try_next());
            let in_time = match leg.is_undecided() {
                true => rows.wait_briefly(&mut following).await?,
                false => Some(rows.wait(&mut following).await?),
            };
            let following = match in_time {
                Some(following) => following,
                None => {
                    if let Some(row) = leg.early() {
                        self.write(&row, &decoders, columns, rows).await?;
                    }
                    rows.wait(following).await?
                }
            };
            next = following.map_err(|error| self.error(error))?;
        }
        for row in leg.rest() {
            self.write(&row, &decoders, columns, rows).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        row: &Row,
        decoders: &[Decoder],
        columns: &Columns,
        rows: &mut RowWriter<'_>,
    ) -> Result<(), BridgeError> {
        rows.row(|i, out| {
            if i >= columns.names.len() {
                return self.write_key(row, i, out);
            }
            let raw: decode::Raw<'_> = row.try_get(i).map_err(|error| self.error(error))?;
            decoders[i].write(out, raw.0).ok_or_else(|| {
                let name = row.columns()[i].name();
                BridgeError::QueryFailed(format!(
                    "the database sent a value of column `{name}` that is malformed"
                ))
            })
        })
        .await
    }

    /// A value as the next page takes it.
    fn write_key(&self, row: &Row, i: usize, out: &mut Vec<u8>) -> Result<(), BridgeError> {
        let raw: decode::Raw<'_> = row.try_get(i).map_err(|error| self.error(error))?;
        match raw.0 {
            Some(bytes) => keys::write_bytes(out, bytes),
            None => KeyValue::Null.write(out),
        }
        Ok(())
    }
}

impl Held for Row {
    fn size(&self) -> usize {
        self.raw_size_bytes()
    }
}

/// Where a row stands in one term of its order, as the next page takes it.
fn key_value(term: &Term, bytes: &[u8]) -> Option<KeyValue> {
    let bytes = match KeyValue::read(bytes)? {
        KeyValue::Bytes(bytes) => bytes,
        other => return Some(other),
    };
    let By::Column(by) = &term.by else {
        return Some(KeyValue::Bytes(bytes));
    };
    Some(match (&by.class, bytes.len()) {
        (Class::Integer, 2) => KeyValue::Int(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        (Class::Integer, 4) => KeyValue::Int(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        (Class::Integer, 8) => KeyValue::Int(i64::from_be_bytes(bytes.try_into().ok()?)),
        (Class::Text | Class::Enum(_), _) if std::str::from_utf8(&bytes).is_ok() => {
            KeyValue::Text(bytes)
        }
        _ => KeyValue::Typed {
            type_name: by.type_name.clone(),
            bytes,
        },
    })
}
