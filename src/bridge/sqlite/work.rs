//! One execution on SQLite's own thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection as Db, ErrorCode, Params, Row, params_from_iter};
use tokio::sync::mpsc;

use crate::bridge::catalogue::{ColumnInfo, IndexInfo, Listed, add_index_column};
use crate::bridge::encode::{
    Caps, Columns, RowEncoder, write_base64, write_f64, write_int, write_plain, write_raw_json,
    write_text,
};
use crate::bridge::request::{Query, Request, Target};
use crate::bridge::sql::{Builder, Class, Column, Dialect, Param, Read, Shape, Statement};
use crate::bridge::{BridgeError, Execution, Outcome, RowBatch};

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
        target: Target,
        columns: Vec<ColumnInfo>,
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
        db.execute_batch("ROLLBACK").map_err(failure)?;
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
                    Ok(Listed {
                        name: row.get(0)?,
                        is_view: row.get(1)?,
                    })
                });
                Ok(Answer::Targets(listed?))
            }
            Request::IntrospectTarget(target) => self.introspect(db, target),
            Request::Count { target, filter } => {
                let shape = self.shape(db, target)?;
                let builder = Builder {
                    dialect: Dialect::Sqlite,
                    shape: &shape,
                };
                let total = self.number(db, &builder.count(target, filter)?)?;
                Ok(Answer::Rows(Outcome {
                    total: Some(total),
                    ..Outcome::default()
                }))
            }
            Request::Query(query) => self.query(db, query).map(Answer::Rows),
        }
    }

    fn query(&self, db: &Db, query: &Query) -> Result<Outcome, BridgeError> {
        let shape = self.shape(db, &query.target)?;
        let builder = Builder {
            dialect: Dialect::Sqlite,
            shape: &shape,
        };
        let total = match query.total {
            true => Some(self.number(db, &builder.count(&query.target, &query.filter)?)?),
            false => None,
        };
        let columns = Columns::of(&self.execution, &shape.names(), query.select.as_deref());
        let statement = builder.query(query, &columns)?;
        *self.encoder() = Some(RowEncoder::new(&self.execution, self.caps, &columns));
        let outcome = self.copy(db, &statement)?;
        Ok(Outcome { total, ..outcome })
    }

    /// Copies all rows of a statement.
    fn copy(&self, db: &Db, statement: &Statement) -> Result<Outcome, BridgeError> {
        let mut prepared = db
            .prepare_cached(&self.tagged(&statement.sql))
            .map_err(failure)?;
        let kinds: Vec<_> = prepared
            .columns()
            .iter()
            .map(|column| Declared::of(column.decl_type()))
            .collect();
        let mut rows = prepared.query(params(statement)).map_err(failure)?;
        while let Some(row) = rows.next().map_err(failure)? {
            let mut encoder = self.encoder();
            let Some(encoder) = encoder.as_mut() else {
                break;
            };
            let batch = encoder.row(|i, out| {
                kinds[i].write(out, row.get_ref(i).map_err(failure)?);
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

    fn introspect(&self, db: &Db, target: &Target) -> Result<Answer, BridgeError> {
        let columns = self.columns(db, target)?;
        let sql = "SELECT l.name, i.name, l.\"unique\" FROM pragma_index_list(?1, ?2) AS l, \
            pragma_index_info(l.name, ?2) AS i ORDER BY l.name, i.seqno";
        let found = self.rows(db, sql, (&target.table, schema(target)), |row| {
            Ok((
                row.get(0)?,
                row.get::<_, Option<String>>(1)?.unwrap_or_default(),
                row.get(2)?,
            ))
        })?;
        let mut indexes = Vec::new();
        for (name, column, unique) in found {
            add_index_column(&mut indexes, name, column, unique);
        }
        let schema_table = format!("\"{}\".sqlite_schema", schema(target).replace('"', "\"\""));
        let sql = format!(
            "SELECT 1 FROM {schema_table} WHERE type = 'table' AND name = ?1 COLLATE NOCASE"
        );
        let is_table = !self.rows(db, &sql, [&target.table], |_| Ok(()))?.is_empty();
        let count = match is_table {
            true => {
                let sql = format!("SELECT COUNT(*) FROM {}", target.quoted('"'));
                Some(self.number(db, &Statement::fixed(sql, &[]))?)
            }
            false => None,
        };
        Ok(Answer::Target {
            target: target.clone(),
            columns,
            count,
            indexes,
        })
    }

    fn shape(&self, db: &Db, target: &Target) -> Result<Shape, BridgeError> {
        let columns = self.columns(db, target)?.into_iter().map(|column| {
            let bytes = column.type_name.to_ascii_uppercase().contains("BLOB");
            let class = if bytes { Class::Bytes } else { Class::Other };
            Column {
                name: column.name,
                class,
                nullable: column.nullable,
                read: Read::Plain,
            }
        });
        Ok(Shape::new(columns.collect()))
    }

    fn columns(&self, db: &Db, target: &Target) -> Result<Vec<ColumnInfo>, BridgeError> {
        // Preparing it says in SQLite's own words what is wrong with the target.
        db.prepare_cached(&self.tagged(&format!("SELECT * FROM {}", target.quoted('"'))))
            .map_err(failure)?;
        let sql = "SELECT name, type, \"notnull\", pk FROM pragma_table_xinfo(?1, ?2) WHERE hidden <> 1 ORDER BY cid";
        self.rows(db, sql, (&target.table, schema(target)), |row| {
            let (declared, not_null, key): (String, bool, i64) =
                (row.get(1)?, row.get(2)?, row.get(3)?);
            let type_name = if declared.is_empty() {
                "TEXT".to_owned()
            } else {
                declared
            };
            // Of the keys only a rowid is never null by itself.
            let rowid = key == 1 && type_name.eq_ignore_ascii_case("INTEGER");
            Ok(ColumnInfo {
                name: row.get(0)?,
                type_name,
                nullable: !not_null && !rowid,
                primary_key: key > 0,
            })
        })
    }

    /// All rows of a statement.
    fn rows<T>(
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
    fn number(&self, db: &Db, statement: &Statement) -> Result<u64, BridgeError> {
        let mut prepared = db
            .prepare_cached(&self.tagged(&statement.sql))
            .map_err(failure)?;
        let number: i64 = prepared
            .query_row(params(statement), |row| row.get(0))
            .map_err(failure)?;
        Ok(number.unsigned_abs())
    }

    fn tagged(&self, sql: &str) -> String {
        format!("{}{sql}", self.tag)
    }
}

fn schema(target: &Target) -> &str {
    target.schema.as_deref().unwrap_or("main")
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
            Param::Float(number) => ValueRef::Real(*number),
            Param::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
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

/// SQLite's own words.
pub(super) fn message(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}

fn failure(error: rusqlite::Error) -> BridgeError {
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => BridgeError::Cancelled,
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::NotADatabase
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy,
        ) => BridgeError::Unreachable(message(&error)),
        _ => BridgeError::QueryFailed(message(&error)),
    }
}
