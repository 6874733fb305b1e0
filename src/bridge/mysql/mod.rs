//! MySQL and MariaDB, by `mysql_async`.
//!
//! An execution is one read-only transaction with a statement timeout of what is left of the deadline.
//! A result that nobody wants any more is never read to its end: a second connection kills the query.

mod catalogue;
mod connect;
mod decode;
mod failure;
mod settings;
mod shape;

use std::time::Duration;

use async_trait::async_trait;
use mysql_async::Params;
use mysql_async::prelude::Queryable as _;
use serde_json::{Map, Value};
use tokio::time::Instant;

use self::connect::Connector;
use self::decode::Decoder;
use self::settings::Settings;
use super::catalogue::{Shapes, write_test};
use super::dial::Dial;
use super::encode::RowWriter;
use super::keys::KeyValue;
use super::pool::{Database, Job};
use super::request::{Query, Request, Target};
use super::sql::{Builder, Class, Dialect, Param, Prepared, Shape, Statement};
use super::{BridgeError, Outcome};
use crate::query::filter::Filter;

/// What begins the transaction of an execution. Only at this level is there a snapshot to be consistent with.
const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
/// How many bytes of a value count when rows are ordered by it. The server's own limit may be a few, and rows that are
/// alike so far would come in any order; `LONG_TEXT` in the dialect's SQL keeps within this one.
const MAX_SORT_LENGTH: u32 = 65_535;
/// How long a kill may take to get through.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A MySQL or MariaDB database.
pub(super) struct MySql {
    connector: Connector,
    shapes: Shapes,
}

/// One connection to it.
pub(super) struct Connection {
    conn: mysql_async::Conn,
    /// The server's own number for it; a proxy's greeting may say another.
    id: u64,
    /// Which server that is.
    server: String,
    version: String,
    dialect: Dialect,
    /// Whether nothing is under way on it.
    at_rest: bool,
}

impl MySql {
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
impl Database for MySql {
    type Connection = Connection;

    const NAME: &'static str = "mysql";

    async fn connect(&self) -> Result<Connection, BridgeError> {
        self.connector.connect().await
    }

    fn at_rest(&self, connection: &Connection) -> bool {
        connection.at_rest && !connection.conn.is_disconnected()
    }

    async fn ping(&self, connection: &mut Connection) -> bool {
        connection.conn.ping().await.is_ok()
    }

    async fn run(
        &self,
        connection: &mut Connection,
        request: &Request,
        job: &Job<'_>,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        connection.at_rest = false;
        let mut session = Session {
            connection,
            job,
            shapes: &self.shapes,
        };
        session.simple(BEGIN).await?;
        job.begins();
        let result = session.request(request, rows).await;
        let stopped_early = matches!(
            &result,
            Err(BridgeError::Cancelled | BridgeError::ResultOverflow(_))
        );
        if !stopped_early && session.simple("ROLLBACK").await.is_ok() {
            connection.at_rest = true;
        }
        result
    }

    async fn abort(&self, connection: Connection) {
        if connection.conn.is_disconnected() {
            return;
        }
        let killed = tokio::time::timeout(
            KILL_TIMEOUT,
            self.connector.kill(connection.id, &connection.server),
        )
        .await;
        if !matches!(killed, Ok(Ok(()))) {
            log::warn!("a query could not be killed at the database; its connection is closed");
        }
    }
}

/// One execution on a connection.
struct Session<'a> {
    connection: &'a mut Connection,
    job: &'a Job<'a>,
    shapes: &'a Shapes,
}

impl Session<'_> {
    async fn request(
        &mut self,
        request: &Request,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        match request {
            Request::Test => {
                let started = Instant::now();
                self.simple("SELECT 1").await?;
                write_test(rows, self.connection.version.clone(), started.elapsed()).await
            }
            Request::ListTargets => self.list_targets(rows).await,
            Request::IntrospectTarget(target) => self.introspect(target, rows).await,
            Request::Count { target, filter } => {
                let remembered = self.shapes.get(target).is_some();
                let mut total = self.count(target, filter).await;
                if remembered && self.shapes.are_stale(target, &total) {
                    total = self.count(target, filter).await;
                }
                Ok(Outcome {
                    total: Some(total?),
                    ..Outcome::default()
                })
            }
            Request::Query(query) => {
                let remembered = self.shapes.get(&query.target).is_some();
                let result = self.query(query, rows).await;
                if remembered && !rows.has_begun() && self.shapes.are_stale(&query.target, &result)
                {
                    return self.query(query, rows).await;
                }
                result
            }
        }
    }

    fn builder<'b>(&self, shape: &'b Shape) -> Builder<'b>
    where
        Self: 'b,
    {
        Builder {
            dialect: self.connection.dialect,
            shape,
            types: &self.job.execution.types,
        }
    }

    async fn count(&mut self, target: &Target, filter: &Filter) -> Result<u64, BridgeError> {
        let shape = self.shape(target).await?;
        let statement = self.builder(&shape).count(filter)?;
        self.number(&statement).await
    }

    async fn query(
        &mut self,
        query: &Query,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        let shape = self.shape(&query.target).await?;
        let total = match query.total {
            true => Some(self.count(&query.target, &query.filter).await?),
            false => None,
        };
        let prepared = self.builder(&shape).query(query, self.job.execution)?;
        self.copy(&prepared, &shape, rows).await?;
        let outcome = Outcome {
            total,
            ..rows.finish().await?
        };
        prepared.conclude(outcome, rows.place(), |_, bytes| KeyValue::read(bytes))
    }

    /// Copies all rows of a statement.
    async fn copy(
        &mut self,
        query: &Prepared,
        shape: &Shape,
        rows: &mut RowWriter<'_>,
    ) -> Result<(), BridgeError> {
        let job = self.job;
        let params = params(&query.statement);
        let sql = self.limited(&query.statement.sql, query.ordering.long_keys());
        let result = self.connection.conn.exec_iter(sql, params).await;
        let mut result = result.map_err(|error| failure(job, error))?;
        let is_json = |i: usize| {
            let column = query.written.get(i).and_then(|name| shape.column(name));
            column.is_some_and(|column| column.class == Class::Json)
        };
        let decoders: Vec<_> = result
            .columns_ref()
            .iter()
            .enumerate()
            .map(|(i, c)| Decoder::of(c, is_json(i)))
            .collect();
        rows.begin(&query.columns);
        let written = query.columns.names.len();
        while let Some(row) = rows
            .wait(result.next())
            .await?
            .map_err(|error| failure(job, error))?
        {
            rows.row(|i, out| {
                let value = row.as_ref(i).unwrap_or(&mysql_async::Value::NULL);
                match i < written {
                    true => decoders[i].write(out, value),
                    false => decoders[i].write_key(out, value),
                }
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// The one number that a statement answers.
    async fn number(&mut self, statement: &Statement) -> Result<u64, BridgeError> {
        let sql = self.limited(&statement.sql, 0);
        let number = self
            .connection
            .conn
            .exec_first(sql, params(statement))
            .await;
        let number: Option<u64> = number.map_err(|error| failure(self.job, error))?;
        number
            .ok_or_else(|| BridgeError::QueryFailed("the database answered without a value".into()))
    }

    /// The statement with its settings, which are its own: a pooler may hand the session to somebody else afterwards.
    /// The time is in whole seconds, so that the text is the same again and again and is prepared once.
    /// Each long text that rows are ordered by needs room for some keys, which a server may not give by itself.
    fn limited(&self, select: &str, long_keys: usize) -> String {
        let seconds = self.job.remaining_ms().div_ceil(1000);
        let room = 16 * MAX_SORT_LENGTH as usize * long_keys;
        let buffer = |before: &str| match long_keys {
            0 => String::new(),
            _ => format!("{before}sort_buffer_size = {room}"),
        };
        self.job.tagged(&match self.connection.dialect {
            Dialect::MariaDb => format!(
                "SET STATEMENT max_statement_time = {seconds}, max_sort_length = {MAX_SORT_LENGTH}{} FOR {select}",
                buffer(", ")
            ),
            _ => select.replacen(
                "SELECT",
                &format!(
                    "SELECT /*+ MAX_EXECUTION_TIME({}) SET_VAR(max_sort_length = {MAX_SORT_LENGTH}) {}*/",
                    seconds * 1000,
                    match long_keys {
                        0 => String::new(),
                        _ => format!("SET_VAR({}) ", buffer("")),
                    }
                ),
                1,
            ),
        })
    }

    async fn simple(&mut self, sql: &str) -> Result<(), BridgeError> {
        let done = self.connection.conn.query_drop(self.job.tagged(sql)).await;
        done.map_err(|error| failure(self.job, error))
    }
}

/// The values of a statement, as the driver binds them.
fn params(statement: &Statement) -> Params {
    let value = |value: &Param| match value {
        Param::Text(text) => text.as_str().into(),
        Param::Int(number) => (*number).into(),
        Param::UInt(number) => (*number).into(),
        Param::Single(number) => (*number).into(),
        Param::Double(number) => (*number).into(),
        Param::Bytes(bytes) | Param::RawText(bytes) => bytes.as_slice().into(),
        Param::List(_) => mysql_async::Value::NULL,
    };
    match statement.values.is_empty() {
        true => Params::Empty,
        false => Params::Positional(statement.values.iter().map(value).collect()),
    }
}

fn failure(job: &Job<'_>, error: mysql_async::Error) -> BridgeError {
    failure::of_statement(error, job.is_due())
}
