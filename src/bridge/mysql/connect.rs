//! Connecting to MySQL and MariaDB: configuration, TLS, and the connection that kills a query.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Opts, OptsBuilder};
use rustls::pki_types::ServerName;
use serde_json::{Map, Value};
use tokio_rustls::TlsConnector;

use super::settings::Settings;
use super::tunnel::{self, Tunnel};
use super::{Connection, failure};
use crate::bridge::BridgeError;
use crate::bridge::dial::{self, Dial, Family, Refusal};
use crate::bridge::secure::{Authorities, Mode};
use crate::bridge::sql::Dialect;

/// What every session is told before its first statement; resetting the connection, as pools of others do, undoes it.
/// The mode makes `\` the escape in patterns whatever the server's setting, and takes zero dates for dates.
const SESSION: &str = "SET NAMES utf8mb4, SESSION time_zone = '+00:00', \
    SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', \
    SESSION sql_select_limit = 18446744073709551615, SESSION sql_auto_is_null = 0, SESSION sql_big_selects = 1";
/// Which server it is: behind one name there may be several, each with its own numbers for connections.
const SERVER: &str = "CONCAT_WS(':', @@hostname, @@port, @@server_id)";

/// How long nothing is said before the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Opens connections to one database.
pub(super) struct Connector {
    options: OptsBuilder,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    /// Whether a server without TLS is as welcome.
    or_plain: bool,
    family: Family,
    timeout: Duration,
    dial: Dial,
}

impl Connector {
    /// Reads the configuration.
    pub(super) fn new(config: &Map<String, Value>, dial: Dial) -> Result<Self, BridgeError> {
        let mut settings = Settings::read(config)?;
        if settings.secure.mode == Mode::Require {
            // Its own clients check nothing then, whatever authority is named.
            settings.secure.authorities = Authorities::System;
        }
        let tls = match settings.secure.mode {
            Mode::Disable => None,
            _ => Some(TlsConnector::from(Arc::new(dial::tls(
                &settings.secure,
                &dial,
            )?))),
        };
        let options = OptsBuilder::default()
            .ip_or_hostname(settings.host.clone())
            .tcp_port(settings.port)
            .user(settings.user)
            .pass(settings.password)
            .db_name(settings.database)
            // Else a server on this machine may send us to a socket, whose address nobody checked.
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE));
        Ok(Self {
            options,
            host: settings.host,
            port: settings.port,
            tls,
            or_plain: settings.secure.mode == Mode::Prefer,
            family: settings.family,
            timeout: settings.timeout,
            dial,
        })
    }

    /// Opens one connection.
    pub(super) async fn connect(&self) -> Result<Connection, BridgeError> {
        let host = (self.host.as_str(), self.port, self.family);
        let may_dial = self.dial.may_dial.as_ref();
        dial::connect(host, may_dial, self.timeout, |address| async move {
            self.session(address).await.map_err(refusal)
        })
        .await
    }

    async fn session(&self, address: IpAddr) -> Result<Connection, Error> {
        let mut conn = self.open(address).await?;
        conn.query_drop(SESSION).await?;
        let who = format!("SELECT CONNECTION_ID(), VERSION(), {SERVER}");
        let known = conn.query_first::<(u64, String, String), _>(who).await?;
        let (id, version, server) = known.unwrap_or_default();
        let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
        let dialect = if is_mariadb {
            Dialect::MariaDb
        } else {
            Dialect::MySql
        };
        Ok(Connection {
            conn,
            id,
            server,
            address,
            version,
            dialect,
            at_rest: true,
        })
    }

    async fn open(&self, address: IpAddr) -> Result<Conn, Error> {
        if let Some(tls) = &self.tls {
            let name = ServerName::try_from(self.host.trim_matches(['[', ']']).to_owned())
                .map_err(io::Error::other)?;
            let tunnel = Tunnel::open((address, self.port).into(), name, tls.clone(), KEEPALIVE)?;
            let path = tunnel.path().to_string_lossy().into_owned();
            let through = self.options.clone().socket(Some(path));
            match Conn::new(Opts::from(through)).await {
                Ok(conn) => {
                    tunnel.leave();
                    return Ok(conn);
                }
                Err(error) => match tunnel.failure().await {
                    Some(tunnel::Failure::NoTls) if self.or_plain => {}
                    Some(why) => return Err(io::Error::other(why).into()),
                    None => return Err(error),
                },
            }
        }
        let options = self.options.clone().resolved_ips(Some(vec![address]));
        Conn::new(Opts::from(options)).await
    }

    /// Stops what another connection is doing, if this way leads to its server: on another one that number is
    /// somebody else's.
    pub(super) async fn kill(&self, other: &Connection) -> Result<(), BridgeError> {
        let kill = async {
            let mut conn = self.open(other.address).await?;
            let reached: Option<String> = conn.query_first(format!("SELECT {SERVER}")).await?;
            let is_same = reached.as_ref() == Some(&other.server);
            if is_same {
                conn.query_drop(format!("KILL QUERY {}", other.id)).await?;
                // What was to be done is done.
                let _ = conn.disconnect().await;
            }
            Ok(is_same)
        };
        match kill.await.map_err(failure::of_connecting)? {
            true => Ok(()),
            false => Err(BridgeError::Unreachable(
                "another server answers under this name".into(),
            )),
        }
    }
}

fn refusal(error: Error) -> Refusal {
    let is_server = matches!(error, Error::Server(_));
    let error = failure::of_connecting(error);
    Refusal {
        is_final: is_server && !matches!(error, BridgeError::Unavailable(_)),
        error,
    }
}
