//! PostgreSQL, by tokio-postgres.
//!
//! An execution is one read-only transaction with a statement timeout of what is left of the deadline.
//! Values go out as text, so that the column's own type reads them; rows come back in binary and are
//! decoded by `decode.rs`, except for columns of types that it does not know, which are read as text.

mod catalogue;
mod connect;
mod decode;

use std::error::Error as _;
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
use super::catalogue::{Shapes, write_test};
use super::encode::{Columns, RowWriter};
use super::pool::{Database, Job};
use super::registry::AddressCheck;
use super::request::{Query, Request, Target};
use super::sql::{Builder, Dialect, Param, Shape, Statement, hex};
use super::{BridgeError, Outcome};

/// How long a cancel request may take to get through.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Reads the configuration.
    pub(super) fn new(
        config: &Map<String, Value>,
        may_dial: Option<AddressCheck>,
    ) -> Result<Self, BridgeError> {
        Ok(Self {
            connector: Connector::new(config, may_dial)?,
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
        };
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = {}",
            job.remaining_ms()
        );
        // Sent together: the server answers in order.
        let begin = job.tagged(&begin);
        let (begun, result) =
            tokio::join!(biased; session.simple(&begin), session.request(request, rows));
        let stopped_early = matches!(
            &result,
            Err(BridgeError::Cancelled | BridgeError::ResultOverflow(_))
        );
        if begun.is_ok() && !stopped_early && session.simple(&job.tagged("ROLLBACK")).await.is_ok()
        {
            connection.at_rest = true;
        }
        begun.and(result)
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

/// One execution on a connection.
struct Session<'a> {
    client: &'a Client,
    job: &'a Job<'a>,
    shapes: &'a Shapes,
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
                let shape = self.shape(target).await?;
                let statement = builder(&shape).count(target, filter)?;
                let total = self.settle(target, self.number(&statement).await)?;
                Ok(Outcome {
                    total: Some(total),
                    ..Outcome::default()
                })
            }
            Request::Query(query) => {
                let result = self.query(query, rows).await;
                self.settle(&query.target, result)
            }
        }
    }

    /// Forgets the columns of a table on which something failed: they may have changed.
    fn settle<T>(&self, target: &Target, result: Result<T, BridgeError>) -> Result<T, BridgeError> {
        if matches!(result, Err(BridgeError::QueryFailed(_))) {
            self.shapes.forget(target);
        }
        result
    }

    async fn query(&self, query: &Query, rows: &mut RowWriter<'_>) -> Result<Outcome, BridgeError> {
        let shape = self.shape(&query.target).await?;
        let total = match query.total {
            true => {
                let statement = builder(&shape).count(&query.target, &query.filter)?;
                Some(self.number(&statement).await?)
            }
            false => None,
        };
        let columns = Columns::of(self.job.execution, &shape.names(), query.select.as_deref());
        let statement = builder(&shape).query(query, &columns)?;
        let stream = self.stream(&statement).await?;
        rows.begin(&columns);
        self.copy(stream, rows).await?;
        Ok(Outcome {
            total,
            ..rows.finish().await?
        })
    }

    /// Copies all rows of a statement.
    async fn copy(&self, stream: RowStream, rows: &mut RowWriter<'_>) -> Result<(), BridgeError> {
        let mut stream = std::pin::pin!(stream);
        let mut decoders: Option<Vec<Decoder>> = None;
        while let Some(row) = rows
            .wait(stream.try_next())
            .await?
            .map_err(|error| self.error(error))?
        {
            let decoders = decoders.get_or_insert_with(|| {
                row.columns()
                    .iter()
                    .map(|column| Decoder::or_text(column.type_()))
                    .collect()
            });
            rows.row(|i, out| {
                let raw: decode::Raw<'_> = row.try_get(i).map_err(|error| self.error(error))?;
                decoders[i].write(out, raw.0).ok_or_else(|| {
                    let name = row.columns()[i].name();
                    BridgeError::QueryFailed(format!(
                        "the database sent a value of column `{name}` that is malformed"
                    ))
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn stream(&self, statement: &Statement) -> Result<RowStream, BridgeError> {
        let params = statement
            .values
            .iter()
            .map(|value| (Text::of(value), Type::UNKNOWN));
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
        match error.as_db_error() {
            Some(database) if *database.code() == SqlState::QUERY_CANCELED && self.job.is_due() => {
                BridgeError::Timeout
            }
            Some(database) => {
                let lost = ["08", "57P"]
                    .iter()
                    .any(|class| database.code().code().starts_with(class));
                let message = connect::database_message(database);
                if lost {
                    BridgeError::Unreachable(message)
                } else {
                    BridgeError::QueryFailed(message)
                }
            }
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

fn builder(shape: &Shape) -> Builder<'_> {
    Builder {
        dialect: Dialect::Postgres,
        shape,
    }
}

fn no_answer() -> BridgeError {
    BridgeError::QueryFailed("the database answered without a value".into())
}

/// A value that PostgreSQL is to read as text; its column says as what type.
#[derive(Debug)]
struct Text(String);

impl Text {
    fn of(value: &Param) -> Self {
        Self(match value {
            Param::Text(text) => text.clone(),
            Param::Int(number) => number.to_string(),
            Param::UInt(number) => number.to_string(),
            Param::Float(number) => number.to_string(),
            Param::Bytes(bytes) => hex(bytes),
        })
    }
}

impl ToSql for Text {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}
