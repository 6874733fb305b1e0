//! PostgreSQL, by tokio-postgres.
//!
//! An execution is one read-only transaction with a statement timeout of what is left of the deadline. A pooler may
//! give each transaction another server connection and hand it to the customer's own application afterwards, so
//! every setting is the transaction's own, and no statement has a name.
//! Values go out as text, so that the column's own type reads them; rows come back in binary and are
//! decoded by `decode.rs`, except for columns of types that it does not know, which are read as text.

mod catalogue;
mod characters;
mod connect;
mod decode;
mod failure;
mod settings;
mod shape;

use std::borrow::Cow;
use std::error::Error as _;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::TryStreamExt as _;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};
use tokio_postgres::{Client, RowStream};

use self::connect::{Connector, Tls};
use self::decode::Decoder;
use self::settings::Settings;
use super::catalogue::{Shapes, write_test};
use super::dial::Dial;
use super::encode::RowWriter;
use super::keys::{self, KeyValue};
use super::pool::{Database, Job};
use super::request::{Query, Request, Target};
use super::sql::{Builder, By, Class, Dialect, Param, Prepared, Shape, Statement, Term, checks};
use super::{BridgeError, Outcome};
use crate::query::filter::Filter;

/// How long a cancel request may take to get through.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// So many values are tried to find out which one was not taken.
const MAX_CHECKS: usize = 100;

/// A PostgreSQL database.
pub(super) struct Postgres {
    connector: Connector,
    shapes: Shapes,
}

/// One connection to it.
pub(super) struct Connection {
    client: Client,
    tls: Tls,
    task: tokio::task::JoinHandle<()>,
    /// Whether nothing is under way on it.
    at_rest: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.at_rest {
            // Else the task would read what still comes to its end.
            self.task.abort();
        }
    }
}

impl Postgres {
    /// Says what is wrong with a configuration, without connecting.
    pub(super) fn check(config: &Map<String, Value>) -> Result<(), BridgeError> {
        Settings::read(config).map(|_| ())
    }

    /// Reads the configuration.
    pub(super) fn new(config: &Map<String, Value>, dial: Dial) -> Result<Self, BridgeError> {
        Ok(Self {
            connector: Connector::new(config, dial)?,
            shapes: Shapes::default(),
        })
    }
}

#[async_trait]
impl Database for Postgres {
    type Connection = Connection;

    const NAME: &'static str = "postgres";

    async fn connect(&self) -> Result<Connection, BridgeError> {
        self.connector.connect().await
    }

    fn at_rest(&self, connection: &Connection) -> bool {
        connection.at_rest && !connection.client.is_closed()
    }

    async fn ping(&self, connection: &mut Connection) -> bool {
        connection.client.batch_execute("").await.is_ok()
    }

    async fn run(
        &self,
        connection: &mut Connection,
        request: &Request,
        job: &Job<'_>,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        connection.at_rest = false;
        let session = Session {
            client: &connection.client,
            job,
            shapes: &self.shapes,
            complaint: AtomicU8::new(Complaint::None as u8),
        };
        // Sent together: the server answers in order.
        let begin = job.tagged(&begin(job));
        let begun = async {
            let begun = session.simple(&begin).await;
            if begun.is_ok() {
                job.begins();
            }
            begun
        };
        let (begun, result) = tokio::join!(biased; begun, session.request(request, rows));
        let stopped_early = matches!(
            &result,
            Err(BridgeError::Cancelled | BridgeError::ResultOverflow(_))
        );
        if begun.is_ok() && !stopped_early && session.simple(&job.tagged("ROLLBACK")).await.is_ok()
        {
            connection.at_rest = true;
        }
        begun.map_err(of_pooler).and(result)
    }

    async fn abort(&self, connection: Connection) {
        if !connection.client.is_closed() {
            let cancel = connection.client.cancel_token();
            let cancelled = self.connector.cancel(cancel, &connection.tls);
            if !matches!(
                tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await,
                Ok(Ok(()))
            ) {
                log::warn!("a cancel request did not reach the database; its connection is closed");
            }
        }
        connection.task.abort();
    }
}

/// A pooler that gives each statement another connection can serve no transaction, and says so in words only.
fn of_pooler(error: BridgeError) -> BridgeError {
    if error.to_string().contains("statement pooling mode") {
        return BridgeError::Unreachable(
            "a pooler in statement mode is in front of this database: reads need a transaction of their own, so give this \
             source session or transaction pooling"
                .into(),
        );
    }
    error
}

/// The settings of a transaction: the formats make text of what is read as text, the others keep the usual meaning of
/// what is asked on a server, a database or a role with settings of its own.
const SETTINGS: [(&str, &str); 12] = [
    ("TimeZone", "'UTC'"),
    ("DateStyle", "'ISO, YMD'"),
    ("IntervalStyle", "'iso_8601'"),
    ("extra_float_digits", "1"),
    ("bytea_output", "'hex'"),
    ("xmlbinary", "'base64'"),
    ("xmloption", "'content'"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("quote_all_identifiers", "off"),
    // Any other limit answers with some of the rows that an index has.
    ("gin_fuzzy_search_limit", "0"),
];

/// What begins the transaction of an execution. Nothing of it is left when the transaction ends.
fn begin(job: &Job<'_>) -> String {
    let mut sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}",
        job.remaining_ms()
    );
    for (name, value) in SETTINGS {
        sql.push_str(&format!("; SET LOCAL {name} = {value}"));
    }
    sql
}

/// What a failure says of the values of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complaint {
    None,
    /// One of them is none of its type.
    Value,
    /// One of them has a character that the database does not have.
    Character,
}

impl Complaint {
    fn of(code: Option<&SqlState>) -> Self {
        match code {
            Some(code) if *code == SqlState::UNTRANSLATABLE_CHARACTER => Self::Character,
            Some(code) if code.code().starts_with("22") => Self::Value,
            _ => Self::None,
        }
    }
}

/// One execution on a connection.
struct Session<'a> {
    client: &'a Client,
    job: &'a Job<'a>,
    shapes: &'a Shapes,
    /// What the SQLSTATE of the last failure says of the values.
    complaint: AtomicU8,
}

impl Session<'_> {
    async fn request(
        &self,
        request: &Request,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        match request {
            Request::Test => {
                let started = Instant::now();
                let version = self.text("SELECT version()").await?;
                write_test(rows, version, started.elapsed()).await
            }
            Request::ListTargets => self.list_targets(rows).await,
            Request::IntrospectTarget(target) => self.introspect(target, rows).await,
            Request::Count { target, filter } => {
                let filter = &self.with_known_characters(target, filter).await?;
                let remembered = self.shapes.get(target).is_some();
                let mut total = self.count(target, filter).await;
                if remembered && self.shapes.are_stale(target, &total) {
                    self.begin_again().await?;
                    total = self.count(target, filter).await;
                }
                Ok(Outcome {
                    total: Some(total?),
                    ..Outcome::default()
                })
            }
            Request::Query(query) => {
                let known = self
                    .with_known_characters(&query.target, &query.filter)
                    .await?;
                let changed = match known {
                    Cow::Borrowed(_) => None,
                    Cow::Owned(filter) => Some(Query {
                        filter,
                        ..query.clone()
                    }),
                };
                let query = changed.as_ref().unwrap_or(query);
                let remembered = self.shapes.get(&query.target).is_some();
                let result = self.query(query, rows).await;
                if remembered && !rows.has_begun() && self.shapes.are_stale(&query.target, &result)
                {
                    self.begin_again().await?;
                    return self.query(query, rows).await;
                }
                result
            }
        }
    }

    /// Leaves a transaction that has failed for a new one of the same kind.
    async fn begin_again(&self) -> Result<(), BridgeError> {
        let again = format!("ROLLBACK; {}", begin(self.job));
        self.simple(&self.job.tagged(&again)).await
    }

    fn builder<'a>(&'a self, shape: &'a Shape) -> Builder<'a> {
        Builder {
            dialect: Dialect::Postgres,
            shape,
            types: &self.job.execution.types,
        }
    }

    async fn count(&self, target: &Target, filter: &Filter) -> Result<u64, BridgeError> {
        let shape = self.shape(target).await?;
        let statement = self.builder(&shape).count(filter)?;
        let total = self.number(&statement).await;
        self.explain(&shape, filter, total).await
    }

    async fn query(&self, query: &Query, rows: &mut RowWriter<'_>) -> Result<Outcome, BridgeError> {
        let shape = self.shape(&query.target).await?;
        let total = match query.total {
            true => Some(self.count(&query.target, &query.filter).await?),
            false => None,
        };
        let prepared = self.builder(&shape).query(query, self.job.execution)?;
        let stream = self.stream(&prepared.statement).await;
        let stream = self.explain(&shape, &query.filter, stream).await?;
        let copied = self.copy(stream, &prepared, rows).await;
        self.explain(&shape, &query.filter, copied).await?;
        let outcome = Outcome {
            total,
            ..rows.finish().await?
        };
        prepared.conclude(outcome, rows.place(), key_value)
    }

    /// Finds out which value of a filter a database did not take, if it was one.
    async fn explain<T>(
        &self,
        shape: &Shape,
        filter: &Filter,
        result: Result<T, BridgeError>,
    ) -> Result<T, BridgeError> {
        let Some(BridgeError::QueryFailed(_)) = result.as_ref().err() else {
            return result;
        };
        if !self.complains(Complaint::Value) {
            return result;
        }
        for check in checks(shape, filter).iter().take(MAX_CHECKS) {
            self.begin_again().await?;
            let sql = format!("SELECT CAST($1 AS {}) IS NULL", check.type_name);
            match self.rows(&sql, &[&check.text]).await {
                Err(BridgeError::QueryFailed(words)) => return Err(check.failed(&words)),
                Err(other) => return Err(other),
                Ok(_) => {}
            }
        }
        result
    }

    /// Copies all rows of a statement.
    async fn copy(
        &self,
        stream: RowStream,
        prepared: &Prepared,
        rows: &mut RowWriter<'_>,
    ) -> Result<(), BridgeError> {
        let written = prepared.columns.names.len();
        let mut stream = std::pin::pin!(stream);
        // Nothing has begun before the first row is there: what fails until then may be tried again.
        let mut next = stream.try_next().await.map_err(|error| self.error(error))?;
        rows.begin(&prepared.columns);
        let columns = next.as_ref().map_or(&[][..], tokio_postgres::Row::columns);
        let decoders = columns
            .iter()
            .map(|column| Decoder::or_text(column.type_()));
        let decoders: Vec<_> = decoders.collect();
        while let Some(row) = next {
            rows.row(|i, out| {
                let raw: decode::Raw<'_> = row.try_get(i).map_err(|error| self.error(error))?;
                if i >= written {
                    match raw.0 {
                        Some(bytes) => keys::write_bytes(out, bytes),
                        None => KeyValue::Null.write(out),
                    }
                    return Ok(());
                }
                decoders[i].write(out, raw.0).ok_or_else(|| {
                    let name = row.columns()[i].name();
                    BridgeError::QueryFailed(format!(
                        "the database sent a value of column `{name}` that is malformed"
                    ))
                })
            })
            .await?;
            let following = rows.wait(stream.try_next()).await?;
            next = following.map_err(|error| self.error(error))?;
        }
        Ok(())
    }

    async fn stream(&self, statement: &Statement) -> Result<RowStream, BridgeError> {
        let params = statement
            .values
            .iter()
            .map(|value| (Sent::of(value), Type::UNKNOWN));
        let stream = self
            .client
            .query_typed_raw(&self.job.tagged(&statement.sql), params)
            .await;
        stream.map_err(|error| self.error(error))
    }

    /// The one number that a statement answers.
    async fn number(&self, statement: &Statement) -> Result<u64, BridgeError> {
        let rows = self
            .stream(statement)
            .await?
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error| self.error(error))?;
        let number = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok());
        number
            .and_then(|number| u64::try_from(number).ok())
            .ok_or_else(no_answer)
    }

    /// The one text that a statement without values answers.
    async fn text(&self, sql: &str) -> Result<String, BridgeError> {
        let rows = self.rows(sql, &[]).await?;
        rows.first()
            .and_then(|row| row.try_get(0).ok())
            .ok_or_else(no_answer)
    }

    /// All rows of a statement with text values.
    async fn rows(
        &self,
        sql: &str,
        values: &[&str],
    ) -> Result<Vec<tokio_postgres::Row>, BridgeError> {
        let stream = self.stream(&Statement::fixed(sql, values)).await?;
        stream
            .try_collect()
            .await
            .map_err(|error| self.error(error))
    }

    async fn simple(&self, sql: &str) -> Result<(), BridgeError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|error| self.error(error))
    }

    fn error(&self, error: tokio_postgres::Error) -> BridgeError {
        let complaint = Complaint::of(error.code());
        self.complaint.store(complaint as u8, Ordering::Relaxed);
        match error.as_db_error() {
            Some(database) if *database.code() == SqlState::QUERY_CANCELED && self.job.is_due() => {
                BridgeError::Timeout
            }
            Some(database) => failure::of_statement(database),
            None if error.is_closed() => {
                BridgeError::Unreachable("the connection to the database was lost".into())
            }
            None => {
                let cause = error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string);
                match error
                    .source()
                    .is_some_and(|cause| cause.is::<std::io::Error>())
                {
                    true => BridgeError::Unreachable(format!(
                        "the connection to the database was lost: {cause}"
                    )),
                    false => BridgeError::QueryFailed(cause),
                }
            }
        }
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

fn no_answer() -> BridgeError {
    BridgeError::QueryFailed("the database answered without a value".into())
}

/// A value that PostgreSQL reads as text, or in the binary form of a type that the statement names.
#[derive(Debug)]
enum Sent {
    Text(String),
    Binary(Vec<u8>),
}

impl Sent {
    fn of(value: &Param) -> Self {
        Self::Text(match value {
            Param::Bytes(bytes) | Param::RawText(bytes) => return Self::Binary(bytes.clone()),
            Param::Text(text) => text.clone(),
            Param::Int(number) => number.to_string(),
            Param::UInt(number) => number.to_string(),
            Param::Single(number) => number.to_string(),
            Param::Double(number) => number.to_string(),
            Param::List(_) => String::new(),
        })
    }
}

impl ToSql for Sent {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        });
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self {
            Self::Text(_) => Format::Text,
            Self::Binary(_) => Format::Binary,
        }
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}
