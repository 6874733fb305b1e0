//! PostgreSQL, by tokio-postgres.
//!
//! An execution is one read-only transaction with a statement timeout of what is left of the deadline. A pooler may
//! give each transaction another server connection and hand it to the customer's own application afterwards, so
//! every setting is the transaction's own, and no statement has a name.
//! Values go out as text, so that the column's own type reads them; rows come back in binary and are
//! decoded by `decode.rs`, except for columns of types that it does not know, which are read as text.

mod bind;
mod catalogue;
mod characters;
mod connect;
mod decode;
mod failure;
mod rows;
mod session;
mod settings;
mod shape;

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio_postgres::Client;

use self::connect::{Connector, Tls};
use self::session::Session;
use self::settings::Settings;
use super::catalogue::Shapes;
use super::dial::Dial;
use super::encode::RowWriter;
use super::pool::{Database, Job};
use super::request::Request;
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
    /// Where it leads to, by TCP.
    address: Option<SocketAddr>,
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
        // Given up before its answer, it is not at rest, and its task ends with it.
        connection.at_rest = false;
        connection.at_rest = connection.client.batch_execute("").await.is_ok();
        connection.at_rest
    }

    async fn run(
        &self,
        connection: &mut Connection,
        request: &Request,
        job: &Job<'_>,
        rows: &mut RowWriter<'_>,
    ) -> Result<Outcome, BridgeError> {
        connection.at_rest = false;
        let session = Session::new(&connection.client, job, &self.shapes);
        // Sent together: the server answers in order.
        let begin = job.tagged(&begin(job));
        let begun = async {
            let begun = session.simple(&begin).await;
            if begun.is_ok() {
                job.begins();
            }
            begun
        };
        let request = async { Ok(session.request(request, rows).await) };
        // Nothing goes on outside of the transaction.
        let ((), result) = tokio::try_join!(biased; begun, request).map_err(of_pooler)?;
        let stopped_early = matches!(
            &result,
            Err(BridgeError::Cancelled | BridgeError::ResultOverflow(_))
        );
        if !stopped_early && session.simple(&job.tagged("ROLLBACK")).await.is_ok() {
            connection.at_rest = true;
        }
        result
    }

    async fn abort(&self, connection: Connection) {
        if !connection.client.is_closed() {
            let cancelled = tokio::time::timeout(CANCEL_TIMEOUT, connection.cancel()).await;
            if !matches!(cancelled, Ok(Ok(()))) {
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
