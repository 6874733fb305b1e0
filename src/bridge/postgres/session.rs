//! One execution on a connection: what is asked, and what the answers mean.

use std::borrow::Cow;
use std::error::Error as _;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::TryStreamExt as _;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, RowStream};

use super::bind::Sent;
use super::{begin, failure};
use crate::bridge::catalogue::{Shapes, write_test};
use crate::bridge::encode::RowWriter;
use crate::bridge::pool::Job;
use crate::bridge::request::{Query, Request, Target};
use crate::bridge::sql::{Builder, Dialect, Shape, Statement, changed, checks};
use crate::bridge::{BridgeError, Outcome};
use crate::query::filter::Filter;

/// So many values are tried to find out which one was not taken.
const MAX_CHECKS: usize = 100;

/// What a failure says of the values of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Complaint {
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
            // Some types of extensions know no better code for a text that they cannot read.
            Some(code) if *code == SqlState::INTERNAL_ERROR => Self::Value,
            _ => Self::None,
        }
    }
}

/// One execution on a connection.
pub(super) struct Session<'a> {
    client: &'a Client,
    pub(super) job: &'a Job<'a>,
    pub(super) shapes: &'a Shapes,
    /// What the SQLSTATE of the last failure says of the values.
    pub(super) complaint: AtomicU8,
}

impl<'a> Session<'a> {
    pub(super) fn new(client: &'a Client, job: &'a Job<'a>, shapes: &'a Shapes) -> Self {
        Self {
            client,
            job,
            shapes,
            complaint: AtomicU8::new(Complaint::None as u8),
        }
    }
}

impl Session<'_> {
    pub(super) async fn request(
        &self,
        request: &Request,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        self.shapes.expect(request, self.job.execution);
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
    pub(super) async fn begin_again(&self) -> Result<(), BridgeError> {
        let again = format!("ROLLBACK; {}", begin(self.job));
        self.simple(&self.job.tagged(&again)).await
    }

    pub(super) fn builder<'a>(&'a self, shape: &'a Shape) -> Builder<'a> {
        Builder {
            dialect: Dialect::Postgres,
            shape,
            types: &self.job.execution.types,
            read: Vec::new(),
        }
    }

    pub(super) async fn count(&self, target: &Target, filter: &Filter) -> Result<u64, BridgeError> {
        let remembered = self.shapes.get(target).is_some();
        let shape = self.shape(target).await?;
        let (statement, _) = self.builder(&shape).count(filter)?;
        let (is_current, total) = match remembered {
            true => tokio::join!(biased; self.is_current(&shape), self.number(&statement)),
            false => (Ok(true), self.number(&statement).await),
        };
        let total = match is_current? {
            true => total,
            false => Err(changed()),
        };
        self.explain(&shape, filter, total).await
    }

    /// Finds out which value of a filter a database did not take, if it was one.
    pub(super) async fn explain<T>(
        &self,
        shape: &Shape,
        filter: &Filter,
        result: Result<T, BridgeError>,
    ) -> Result<T, BridgeError> {
        let Some(BridgeError::QueryFailed(_) | BridgeError::Unreachable(_)) = result.as_ref().err()
        else {
            return result;
        };
        if !self.complains(Complaint::Value) {
            return result;
        }
        for check in checks(shape, filter, MAX_CHECKS) {
            self.begin_again().await?;
            let sql = format!("SELECT CAST($1 AS {}) IS NULL", check.type_name);
            match self.rows(&sql, &[&check.text]).await {
                Err(BridgeError::QueryFailed(words) | BridgeError::Unreachable(words))
                    if self.complains(Complaint::Value) =>
                {
                    return Err(check.failed(&words));
                }
                Err(other) => return Err(other),
                Ok(_) => {}
            }
        }
        result
    }

    pub(super) async fn stream(&self, statement: &Statement) -> Result<RowStream, BridgeError> {
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
    pub(super) async fn number(&self, statement: &Statement) -> Result<u64, BridgeError> {
        let rows: Vec<_> = self
            .stream(statement)
            .await?
            .try_collect()
            .await
            .map_err(|error| self.error(error))?;
        let number = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok());
        number
            .and_then(|number| u64::try_from(number).ok())
            .ok_or_else(no_answer)
    }

    /// The one text that a statement without values answers.
    pub(super) async fn text(&self, sql: &str) -> Result<String, BridgeError> {
        let rows = self.rows(sql, &[]).await?;
        rows.first()
            .and_then(|row| row.try_get(0).ok())
            .ok_or_else(no_answer)
    }

    /// All rows of a statement with text values.
    pub(super) async fn rows(
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

    pub(super) async fn simple(&self, sql: &str) -> Result<(), BridgeError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|error| self.error(error))
    }

    pub(super) fn error(&self, error: tokio_postgres::Error) -> BridgeError {
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

pub(super) fn no_answer() -> BridgeError {
    BridgeError::QueryFailed("the database answered without a value".into())
}
