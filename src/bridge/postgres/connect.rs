//! Connecting to PostgreSQL: configuration, TLS, and the cancel request, which needs a connection too.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, Config as PgConfig, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::settings::Settings;
use super::{Connection, failure};
use crate::bridge::BridgeError;
use crate::bridge::dial::{self, Dial, Family, Refusal};
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
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        match self.config.get_hosts() {
            [Host::Tcp(host)] => {
                let host = (host.as_str(), port, self.family);
                let may_dial = self.dial.may_dial.as_ref();
                dial::connect(host, may_dial, self.timeout, |address| {
                    self.open(Some(address))
                })
                .await
            }
            // A check of addresses is one of this host's.
            _ if self.dial.may_dial.is_some() => Err(BridgeError::Unreachable(
                "this service connects to one host by TCP only".into(),
            )),
            _ => {
                let open = async { self.open(None).await.map_err(|refusal| refusal.error) };
                dial::within(self.timeout, open).await
            }
        }
    }

    /// Connects to an address; the host's name stays, for TLS.
    async fn open(&self, address: Option<IpAddr>) -> Result<Connection, Refusal> {
        let mut config = self.config.clone();
        if let Some(address) = address {
            config.hostaddr(address);
        }
        let mut last = None;
        for (mode, tls) in &self.ways {
            config.ssl_mode(*mode);
            match connect_with(&config, tls, address).await {
                Ok(connection) => return Ok(connection),
                // A server that lets in only one of the two says so when it is asked who may log in.
                Err(error) if error.code() == Some(&NOT_LIKE_THIS) => last = Some(error),
                Err(error) => return Err(refusal(&error)),
            }
        }
        Err(last.as_ref().map_or_else(
            || Refusal {
                error: BridgeError::Unreachable("there is no way to connect".into()),
                is_final: true,
            },
            refusal,
        ))
    }
}

impl Connection {
    /// Asks the database to stop what the connection is doing: at the address that it leads to.
    pub(super) async fn cancel(&self) -> anyhow::Result<()> {
        let token = self.client.cancel_token();
        match (&self.tls, self.address) {
            (Tls::None, Some(address)) => cancel_politely(token, address).await,
            (Tls::None, None) => Ok(token.cancel_query(NoTls).await?),
            (Tls::Rustls(tls), _) => Ok(token.cancel_query(tls.clone()).await?),
        }
    }
}

/// Cancels as libpq does, which waits for the server to hang up: PgBouncer (seen with 1.18) ends with all of its
/// connections when the client hangs up first.
async fn cancel_politely(token: CancelToken, address: SocketAddr) -> anyhow::Result<()> {
    let stream = tokio::net::TcpStream::connect(address).await?.into_std()?;
    let mut other = tokio::net::TcpStream::from_std(stream.try_clone()?)?;
    let stream = tokio::net::TcpStream::from_std(stream)?;
    token.cancel_query_raw(KeptOpen(stream), NoTls).await?;
    tokio::io::copy(&mut other, &mut tokio::io::sink()).await?;
    Ok(())
}

fn refusal(error: &tokio_postgres::Error) -> Refusal {
    let failure = failure::of_connecting(error);
    Refusal {
        is_final: error.as_db_error().is_some() && !matches!(failure, BridgeError::Unavailable(_)),
        error: failure,
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

async fn connect_with(
    config: &PgConfig,
    tls: &Tls,
    address: Option<IpAddr>,
) -> Result<Connection, tokio_postgres::Error> {
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
    let port = config.get_ports().first().copied().unwrap_or(5432);
    // The session is told nothing: a pooler may hand it to somebody else after any transaction.
    Ok(Connection {
        client,
        tls: tls.clone(),
        address: address.map(|address| (address, port).into()),
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
