//! MySQL and MariaDB, by `mysql_async`.
//!
//! An execution is one read-only transaction with a statement timeout of what is left of the deadline.
//! A result that nobody wants any more is never read to its end: a second connection kills the query.

mod catalogue;
mod connect;
mod decode;
mod failure;
mod rows;
mod session;
mod settings;
mod shape;
mod tunnel;

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use mysql_async::prelude::Queryable as _;
use serde_json::{Map, Value};

use self::connect::Connector;
use self::session::Session;
use self::settings::Settings;
use super::catalogue::Shapes;
use super::dial::Dial;
use super::encode::RowWriter;
use super::pool::{Database, Job};
use super::request::Request;
use super::sql::Dialect;
use super::{BridgeError, Outcome};

/// What begins the transaction of an execution. Only at this level is there a snapshot to be consistent with.
const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
/// What ends it, on servers too that begin the next one at once or hang up.
const END: &str = "ROLLBACK AND NO CHAIN NO RELEASE";
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
    /// Which server that is, and at which address.
    server: String,
    address: IpAddr,
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
        if !stopped_early && session.simple(END).await.is_ok() {
            connection.at_rest = true;
        }
        result
    }

    async fn abort(&self, connection: Connection) {
        if connection.conn.is_disconnected() {
            return;
        }
        let killed = tokio::time::timeout(KILL_TIMEOUT, self.connector.kill(&connection)).await;
        if !matches!(killed, Ok(Ok(()))) {
            log::warn!("a query could not be killed at the database; its connection is closed");
        }
    }
}
