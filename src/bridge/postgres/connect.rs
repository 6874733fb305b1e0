//! Connecting to PostgreSQL: configuration, TLS, and the cancel request, which needs a connection too.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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
    pub(super) async fn cancel(&self, token: CancelToken, tls: &Tls) -> anyhow::Result<()> {
        match (tls, self.config.get_hosts()) {
            (Tls::None, [Host::Tcp(_)]) => self.cancel_politely(token).await,
            (Tls::None, _) => Ok(token.cancel_query(NoTls).await?),
            (Tls::Rustls(tls), _) => Ok(token.cancel_query(tls.clone()).await?),
        }
    }

    /// Cancels as libpq does, which waits for the server to hang up: PgBouncer (seen with 1.18) ends with all of its
    /// connections when the client hangs up first.
    async fn cancel_politely(&self, token: CancelToken) -> anyhow::Result<()> {
        let config = self.resolved().await?;
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let address = config.get_hostaddrs().first().copied();
        let address = address.context("the database's address is not known")?;
        let stream = tokio::net::TcpStream::connect((address, port))
            .await?
            .into_std()?;
        let mut other = tokio::net::TcpStream::from_std(stream.try_clone()?)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        token.cancel_query_raw(KeptOpen(stream), NoTls).await?;
        tokio::io::copy(&mut other, &mut tokio::io::sink()).await?;
        Ok(())
    }
}

/// A stream that its user does not shut down.
struct KeptOpen(tokio::net::TcpStream);

impl AsyncRead for KeptOpen {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for KeptOpen {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
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
