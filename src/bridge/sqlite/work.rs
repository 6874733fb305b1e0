//! One execution on SQLite's own thread.

use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection as Db, Params, Row, params_from_iter};
use tokio::sync::mpsc;

use super::failure::of_statement as failure;
use crate::bridge::catalogue::{ColumnInfo, IndexInfo, Listed};
use crate::bridge::encode::{
    Caps, Columns, RowEncoder, write_base64, write_f64, write_int, write_plain, write_raw_json,
    write_text,
};
use crate::bridge::keys::{self, KeyValue};
use crate::bridge::request::{Query, Request, Table};
use crate::bridge::sql::{Builder, Dialect, Page, Param, Shape, Statement};
use crate::bridge::{BridgeError, Execution, Outcome, RowBatch};
use crate::query::lens::FieldType;

/// What the thread needs.
pub(super) struct Work {
    pub(super) request: Request,
    pub(super) execution: Execution,
    pub(super) caps: Caps,
    pub(super) tag: String,
    /// Shared, so that rows that wait can be fetched; held while a batch is handed over.
    pub(super) encoder: Arc<Mutex<Option<RowEncoder>>>,
    pub(super) batches: mpsc::Sender<RowBatch>,
}

/// What it found, beside the rows.
pub(super) enum Answer {
    Rows(Outcome),
    Version(String, Duration),
    Targets(Vec<Listed>),
    Target {
        table: Table,
        columns: Vec<ColumnInfo>,
        primary_key: Vec<String>,
        count: Option<u64>,
        indexes: Vec<IndexInfo>,
    },
}

impl Work {
    /// Executes the request.
    pub(super) fn run(&self, db: &Db) -> Result<Answer, BridgeError> {
        // One transaction, so that a total fits its rows.
        db.execute_batch("BEGIN").map_err(failure)?;
        let answer = self.request(db);
        // Some failures have ended it already; what they say is the answer.
        if !db.is_autocommit()
            && let Err(error) = db.execute_batch("ROLLBACK")
        {
            log::debug!("a transaction could not be left: {error}");
        }
        answer
    }

    fn request(&self, db: &Db) -> Result<Answer, BridgeError> {
        match &self.request {
            Request::Test => {
                let started = Instant::now();
                let version = self
                    .rows(db, "SELECT sqlite_version()", [], |row| {
                        row.get::<_, String>(0)
                    })?
                    .concat();
                Ok(Answer::Version(version, started.elapsed()))
            }
            Request::ListTargets => {
                let sql = "SELECT name, type = 'view' FROM sqlite_schema WHERE type IN ('table', 'view') \
                    AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";
                let listed = self.rows(db, sql, [], |row| {
                    let table = Table {
                        schema: None,
                        name: row.get(0)?,
                    };
                    Ok(Listed {
                        name: table.to_string(),
                        is_view: row.get(1)?,
                    })
                });
                Ok(Answer::Targets(listed?))
            }
            Request::IntrospectTarget(target) => self.introspect(db, target),
            Request::Count { target, filter } => {
                let shape = self.shape(db, target)?;
                let total = self.number(db, &self.builder(&shape).count(filter)?.0)?;
                Ok(Answer::Rows(Outcome {
                    total: Some(total),
                    ..Outcome::default()
                }))
            }
            Request::Query(query) => self.query(db, query).map(Answer::Rows),
        }
    }

    fn builder<'a>(&'a self, shape: &'a Shape) -> Builder<'a> {
        Builder {
            dialect: Dialect::Sqlite,
            shape,
            types: &self.execution.types,
            read: Vec::new(),
        }
    }

    fn query(&self, db: &Db, query: &Query) -> Result<Outcome, BridgeError> {
        let shape = self.shape(db, &query.target)?;
        let builder = self.builder(&shape);
        let total = match query.total {
            true => Some(self.number(db, &builder.count(&query.filter)?.0)?),
            false => None,
        };
        let mut page = Page::new(builder, query, &self.execution)?;
        let encoder = RowEncoder::new(&self.execution, self.caps, &page.columns);
        *self.encoder() = Some(encoder);
        let mut outcome = Outcome::default();
        // Never more than one: rows that share a place are always ordered.
        while let Some((statement, _)) = page.next::<()>()? {
            outcome = self.copy(db, &statement, &page.columns)?;
        }
        let encoder = self.encoder();
        let place = encoder.as_ref().and_then(RowEncoder::place);
        let outcome = Outcome { total, ..outcome };
        page.conclude(outcome, place, |_, bytes| KeyValue::read(bytes))
    }

    /// Copies all rows of a statement.
    fn copy(
        &self,
        db: &Db,
        statement: &Statement,
        columns: &Columns,
    ) -> Result<Outcome, BridgeError> {
        let written = columns.names.len();
        let mut prepared = db
            .prepare_cached(&self.tagged(&statement.sql))
            .map_err(failure)?;
        let kinds: Vec<_> = prepared
            .columns()
            .iter()
            .enumerate()
            .map(|(i, column)| match columns.types.get(i) {
                Some(Some(FieldType::Json)) => Declared::Json,
                _ => Declared::of(column.decl_type()),
            })
            .collect();
        let mut rows = prepared.query(params(statement)).map_err(failure)?;
        while let Some(row) = rows.next().map_err(failure)? {
            let mut encoder = self.encoder();
            let Some(encoder) = encoder.as_mut() else {
                break;
            };
            let batch = encoder.row(|i, out| {
                let value = row.get_ref(i).map_err(failure)?;
                match i < written {
                    true => kinds[i].write(out, value),
                    false => write_key(out, value),
                }
                Ok(())
            })?;
            if let Some(batch) = batch {
                self.send(batch)?;
            }
        }
        let mut encoder = self.encoder();
        let Some(encoder) = encoder.as_mut() else {
            return Ok(Outcome::default());
        };
        if let Some(batch) = encoder.take() {
            self.send(batch)?;
        }
        Ok(encoder.outcome())
    }

    fn encoder(&self) -> std::sync::MutexGuard<'_, Option<RowEncoder>> {
        self.encoder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, batch: RowBatch) -> Result<(), BridgeError> {
        self.batches
            .blocking_send(batch)
            .or(Err(BridgeError::Cancelled))
    }

    /// All rows of a statement.
    pub(super) fn rows<T>(
        &self,
        db: &Db,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, BridgeError> {
        let mut statement = db.prepare_cached(&self.tagged(sql)).map_err(failure)?;
        let rows = statement.query_map(params, read).map_err(failure)?;
        rows.collect::<Result<_, _>>().map_err(failure)
    }

    /// The one number that a statement answers.
    pub(super) fn number(&self, db: &Db, statement: &Statement) -> Result<u64, BridgeError> {
        let mut prepared = db
            .prepare_cached(&self.tagged(&statement.sql))
            .map_err(failure)?;
        let number: i64 = prepared
            .query_row(params(statement), |row| row.get(0))
            .map_err(failure)?;
        Ok(number.unsigned_abs())
    }

    pub(super) fn tagged(&self, sql: &str) -> String {
        format!("{}{sql}", self.tag)
    }
}

/// The values of a statement, as the driver binds them.
fn params(statement: &Statement) -> impl Params {
    params_from_iter(statement.values.iter().map(Bound))
}

struct Bound<'a>(&'a Param);

impl rusqlite::ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Param::Text(text) => ValueRef::Text(text.as_bytes()),
            Param::Int(number) => ValueRef::Integer(*number),
            Param::UInt(number) => ValueRef::Integer(i64::try_from(*number).unwrap_or(i64::MAX)),
            Param::Single(number) => ValueRef::Real((*number).into()),
            Param::Double(number) => ValueRef::Real(*number),
            Param::Bytes(bytes) => ValueRef::Blob(bytes),
            Param::RawText(text) => ValueRef::Text(text),
            // Read by the table-valued function `rarray`.
            Param::List(list) => {
                let values = list.iter().map(owned).collect::<Result<Vec<_>, _>>()?;
                return Ok(ToSqlOutput::from_rc(Rc::new(values), c"rarray"));
            }
        }))
    }
}

fn owned(value: &Param) -> rusqlite::Result<rusqlite::types::Value> {
    match rusqlite::ToSql::to_sql(&Bound(value))? {
        ToSqlOutput::Borrowed(value) => Ok(value.try_into()?),
        ToSqlOutput::Owned(value) => Ok(value),
        _ => Ok(rusqlite::types::Value::Null),
    }
}

/// A value as the next page takes it.
fn write_key(out: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => KeyValue::Null.write(out),
        ValueRef::Integer(number) => KeyValue::Int(number).write(out),
        ValueRef::Real(number) => KeyValue::Double(number).write(out),
        ValueRef::Text(text) => keys::write_text(out, text),
        ValueRef::Blob(bytes) => keys::write_bytes(out, bytes),
    }
}

/// What a column was declared as, as far as that changes how its values are written: SQLite itself has
/// only the type of each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Declared {
    Plain,
    Bool,
    Decimal,
    Json,
}

impl Declared {
    fn of(declared: Option<&str>) -> Self {
        let declared = declared.unwrap_or_default().to_ascii_uppercase();
        let has = |part| declared.contains(part);
        match () {
            () if has("BOOL") => Self::Bool,
            () if has("DEC") || has("NUMERIC") => Self::Decimal,
            () if has("JSON") => Self::Json,
            () => Self::Plain,
        }
    }

    fn write(self, out: &mut Vec<u8>, value: ValueRef<'_>) {
        match (value, self) {
            (ValueRef::Null, _) => out.extend_from_slice(b"null"),
            (ValueRef::Integer(0), Self::Bool) => out.extend_from_slice(b"false"),
            (ValueRef::Integer(1), Self::Bool) => out.extend_from_slice(b"true"),
            (ValueRef::Integer(number), Self::Decimal) => {
                write_plain(out, format_args!("{number}"))
            }
            (ValueRef::Integer(number), _) => write_int(out, number),
            (ValueRef::Real(number), Self::Decimal) if number.is_finite() => {
                write_plain(out, format_args!("{number}"))
            }
            (ValueRef::Real(number), _) => write_f64(out, number),
            (ValueRef::Text(text), Self::Json) => write_raw_json(out, text),
            (ValueRef::Text(text), _) => write_text(out, text),
            (ValueRef::Blob(bytes), _) => write_base64(out, bytes),
        }
    }
}
