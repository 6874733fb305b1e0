//! One execution on a connection: what is asked, and what the answers mean.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Params, Row};
use tokio::time::Instant;

use super::decode::is_still;
use super::{Connection, failure};
use crate::bridge::catalogue::{Shapes, write_test};
use crate::bridge::encode::RowWriter;
use crate::bridge::pool::Job;
use crate::bridge::request::{Request, Target};
use crate::bridge::sql::{Builder, Dialect, Param, Shape, Statement, changed};
use crate::bridge::{BridgeError, Outcome};
use crate::query::filter::Filter;

/// How many bytes of a value count when rows are ordered by it. The server's own limit may be a few, and rows that are
/// alike so far would come in any order; `LONG_TEXT` in the dialect's SQL keeps within this one.
const MAX_SORT_LENGTH: u32 = 65_535;

/// One execution on a connection.
pub(super) struct Session<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) job: &'a Job<'a>,
    pub(super) shapes: &'a Shapes,
}

impl Session<'_> {
    pub(super) async fn request(
        &mut self,
        request: &Request,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        self.shapes.expect(request, self.job.execution);
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

    pub(super) fn builder<'b>(&self, shape: &'b Shape) -> Builder<'b>
    where
        Self: 'b,
    {
        Builder {
            dialect: self.connection.dialect,
            shape,
            types: &self.job.execution.types,
            read: Vec::new(),
        }
    }

    pub(super) async fn count(
        &mut self,
        target: &Target,
        filter: &Filter,
    ) -> Result<u64, BridgeError> {
        let remembered = self.shapes.get(target).is_some();
        let shape = self.shape(target).await?;
        let (statement, watch) = self.builder(&shape).count(filter)?;
        let row = self.one_row(&statement).await?;
        let columns = row.columns();
        match remembered && watch.sees_change(|at, kind| is_still(&columns, at, kind)) {
            true => Err(changed()),
            false => number_in(&row),
        }
    }

    /// The one number that a statement answers.
    pub(super) async fn number(&mut self, statement: &Statement) -> Result<u64, BridgeError> {
        number_in(&self.one_row(statement).await?)
    }

    async fn one_row(&mut self, statement: &Statement) -> Result<Row, BridgeError> {
        let sql = self.limited(&statement.sql, 0);
        let conn = &mut self.connection.conn;
        let row: Option<Row> = conn
            .exec_first(sql, params(statement))
            .await
            .map_err(|error| failure(self.job, error))?;
        row.ok_or_else(no_answer)
    }

    /// The statement with its settings, which are its own: a pooler may hand the session to somebody else afterwards.
    /// The time is in whole seconds, so that the text is the same again and again and is prepared once.
    /// Each long text that rows are ordered by needs room for some keys, which a server may not give by itself.
    pub(super) fn limited(&self, select: &str, long_keys: usize) -> String {
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

    pub(super) async fn simple(&mut self, sql: &str) -> Result<(), BridgeError> {
        let done = self.connection.conn.query_drop(self.job.tagged(sql)).await;
        done.map_err(|error| failure(self.job, error))
    }
}

fn number_in(row: &Row) -> Result<u64, BridgeError> {
    row.get_opt(0).and_then(Result::ok).ok_or_else(no_answer)
}

fn no_answer() -> BridgeError {
    BridgeError::QueryFailed("the database answered without a value".into())
}

/// The values of a statement, as the driver binds them.
pub(super) fn params(statement: &Statement) -> Params {
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

pub(super) fn failure(job: &Job<'_>, error: mysql_async::Error) -> BridgeError {
    failure::of_statement(error, job.is_due())
}
