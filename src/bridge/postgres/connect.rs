//! Connecting to PostgreSQL: configuration, TLS, and the cancel request, which needs a connection too.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Config as PgConfig, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::Settings;
use super::{Connection, failure};
use crate::bridge::BridgeError;
use crate::bridge::dial::{self, Dial, Family};
use crate::bridge::secure::{Mode, Secure};

/// The TLS of a connection.
#[derive(Clone)]
pub(super) enum Tls {
    None,
    Rustls(MakeRustlsConnect),
}

/// Opens connections to one database.
pub(super) struct Connector {
    config: PgConfig,
    /// The ways to connect, in the order in which they are tried.
    ways: Vec<(SslMode, Tls)>,
    family: Family,
    timeout: Duration,
    dial: Dial,
}

impl Connector {
    /// Reads the configuration.
    pub(super) fn new(config: &Map<String, Value>, dial: Dial) -> Result<Self, BridgeError> {
        let Settings {
            mut pg,
            secure,
            family,
            timeout,
        } = Settings::read(config)?;
        pg.application_name("semilayer")
            .keepalives_idle(Duration::from_secs(30));
        Ok(Self {
            config: pg,
            ways: ways(&secure, &dial)?,
            family,
            timeout,
            dial,
        })
    }

    /// Opens one connection.
    pub(super) async fn connect(&self) -> Result<Connection, BridgeError> {
        dial::connect_within(self.timeout, self.open()).await
    }

    async fn open(&self) -> Result<Connection, BridgeError> {
        let mut config = self.resolved().await?;
        let mut last = None;
        for (mode, tls) in &self.ways {
            config.ssl_mode(*mode);
            match connect_with(&config, tls).await {
                Ok(connection) => return Ok(connection),
                // A server that lets in only one of the two says so when it is asked who may log in.
                Err(error) if error.code() == Some(&NOT_LIKE_THIS) => last = Some(error),
                Err(error) => return Err(failure::of_connecting(&error)),
            }
        }
        Err(last.map_or_else(
            || BridgeError::Unreachable("there is no way to connect".into()),
            |error| failure::of_connecting(&error),
        ))
    }

    /// The configuration with the address to dial; the host's name stays, for TLS.
    async fn resolved(&self) -> Result<PgConfig, BridgeError> {
        let mut config = self.config.clone();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        match config.get_hosts() {
            [Host::Tcp(host)] => {
                let address =
                    dial::resolve(host, port, self.family, self.dial.may_dial.as_ref()).await?;
                config.hostaddr(address);
            }
            // A check of the address is a check of one address.
            _ if self.dial.may_dial.is_some() => {
                return Err(BridgeError::Unreachable(
                    "this service connects to one host by TCP only".into(),
                ));
            }
            _ => {}
        }
        Ok(config)
    }

    /// Asks the database to stop what a connection is doing.
    pub(super) async fn cancel(
        &self,
        token: CancelToken,
        tls: &Tls,
    ) -> Result<(), tokio_postgres::Error> {
        match tls {
            Tls::None => token.cancel_query(NoTls).await,
            Tls::Rustls(tls) => token.cancel_query(tls.clone()).await,
        }
    }
}

/// What a server answers whose `pg_hba.conf` has no line for connections with TLS, or without.
const NOT_LIKE_THIS: SqlState = SqlState::INVALID_AUTHORIZATION_SPECIFICATION;

/// The ways to connect that a mode means, as libpq tries them.
fn ways(secure: &Secure, dial: &Dial) -> Result<Vec<(SslMode, Tls)>, BridgeError> {
    let plain = (SslMode::Disable, Tls::None);
    if secure.mode == Mode::Disable {
        return Ok(vec![plain]);
    }
    let tls = Tls::Rustls(MakeRustlsConnect::new(dial::tls(secure, dial)?));
    Ok(match secure.mode {
        Mode::Allow => vec![plain, (SslMode::Require, tls)],
        Mode::Prefer => vec![(SslMode::Prefer, tls), plain],
        _ => vec![(SslMode::Require, tls)],
    })
}

async fn connect_with(config: &PgConfig, tls: &Tls) -> Result<Connection, tokio_postgres::Error> {
    let (client, task) = match tls {
        Tls::None => {
            let (client, connection) = config.connect(NoTls).await?;
            (client, tokio::spawn(drive(connection)))
        }
        Tls::Rustls(tls) => {
            let (client, connection) = config.connect(tls.clone()).await?;
            (client, tokio::spawn(drive(connection)))
        }
    };
    // The session is told nothing: a pooler may hand it to somebody else after any transaction.
    Ok(Connection {
        client,
        tls: tls.clone(),
        task,
        at_rest: true,
    })
}

/// Moves the bytes of one connection until it ends; what ends it is seen by the client.
async fn drive<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if let Err(error) = connection.await {
        log::debug!("a connection to a database ended: {error}");
    }
}
