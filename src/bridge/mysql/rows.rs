//! The rows of a query, on their way from the database to their writer.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Row, Value};

use super::decode::{Decoder, is_still};
use super::session::{Session, failure, params};
use crate::bridge::encode::RowWriter;
use crate::bridge::keys::KeyValue;
use crate::bridge::request::Query;
use crate::bridge::sql::{
    By, Class, Held, Leg, Page, Shape, Statement, Term, Watch, changed, placed,
};
use crate::bridge::{BridgeError, Outcome};
use crate::query::lens::FieldType;

impl Session<'_> {
    pub(super) async fn query(
        &mut self,
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
            let watch = remembered.then_some(&page.watch);
            self.copy(&statement, &page, watch, &shape, &mut leg, rows)
                .await?;
            page.ended(leg, key_value)?;
        }
        let outcome = Outcome {
            total,
            ..rows.finish().await?
        };
        page.conclude(outcome, rows.place(), key_value)
    }

    /// Copies the rows of a statement that are the page's.
    async fn copy(
        &mut self,
        statement: &Statement,
        page: &Page<'_>,
        watch: Option<&Watch>,
        shape: &Shape,
        leg: &mut Leg<Row>,
        rows: &mut RowWriter<'_>,
    ) -> Result<(), BridgeError> {
        let job = self.job;
        let sql = self.limited(&statement.sql, page.long_keys());
        let result = self.connection.conn.exec_iter(sql, params(statement)).await;
        let mut result = result.map_err(|error| failure(job, error))?;
        if let Some(watch) = watch.filter(|_| !rows.has_begun())
            && watch.sees_change(|at, kind| is_still(result.columns_ref(), at, kind))
        {
            result
                .drop_result()
                .await
                .map_err(|error| failure(job, error))?;
            return Err(changed());
        }
        let is_json = |i: usize| {
            let column = page.written.get(i).and_then(|name| shape.column(name));
            let declared = page.columns.types.get(i) == Some(&Some(FieldType::Json));
            column.is_some_and(|column| {
                column.class == Class::Json || (declared && column.class == Class::Text)
            })
        };
        let decoders: Vec<_> = result
            .columns_ref()
            .iter()
            .enumerate()
            .map(|(i, c)| Decoder::of(c, is_json(i)))
            .collect();
        let written = page.columns.names.len();
        rows.begin(&page.columns);
        let mut next = result.next().await.map_err(|error| failure(job, error))?;
        while let Some(row) = next {
            let key = |row: &Row, i: usize, out: &mut Vec<u8>| {
                decoders[i].write_key(out, value_of(row, i));
                Ok(())
            };
            for row in leg.take(row, key)? {
                write(&row, &decoders, written, rows).await?;
            }
            if leg.is_done() {
                return result
                    .drop_result()
                    .await
                    .map_err(|error| failure(job, error));
            }
            let mut following = std::pin::pin!(result.next());
            let in_time = match leg.is_undecided() {
                true => rows.wait_briefly(&mut following).await?,
                false => Some(rows.wait(&mut following).await?),
            };
            let following = match in_time {
                Some(following) => following,
                None => {
                    if let Some(row) = leg.early() {
                        write(&row, &decoders, written, rows).await?;
                    }
                    rows.wait(following).await?
                }
            };
            next = following.map_err(|error| failure(job, error))?;
        }
        for row in leg.rest() {
            write(&row, &decoders, written, rows).await?;
        }
        Ok(())
    }
}

/// Where a row stands in one term of its order, as the next page takes it.
fn key_value(term: &Term, bytes: &[u8]) -> Option<KeyValue> {
    let value = KeyValue::read(bytes)?;
    Some(match &term.by {
        By::Column(by) => placed(by, value),
        By::RowDigest => value,
    })
}

impl Held for Row {
    fn size(&self) -> usize {
        let bytes = |i| match value_of(self, i) {
            Value::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        let values: usize = (0..self.len()).map(bytes).sum();
        values + self.len() * size_of::<Value>()
    }
}

fn value_of(row: &Row, i: usize) -> &Value {
    row.as_ref(i).unwrap_or(&Value::NULL)
}

async fn write(
    row: &Row,
    decoders: &[Decoder],
    written: usize,
    rows: &mut RowWriter<'_>,
) -> Result<(), BridgeError> {
    rows.row(|i, out| {
        match i < written {
            true => decoders[i].write(out, value_of(row, i)),
            false => decoders[i].write_key(out, value_of(row, i)),
        }
        Ok(())
    })
    .await
}
