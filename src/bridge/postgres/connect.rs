//! Connecting to PostgreSQL: configuration, TLS, and the cancel request, which needs a connection too.

use std::str::FromStr as _;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{CancelToken, Config as PgConfig, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Connection, failure};
use crate::bridge::BridgeError;
use crate::bridge::config::Config;
use crate::bridge::dial::{self, Family, Verify};
use crate::bridge::registry::AddressCheck;
use crate::bridge::request::invalid;

/// The TLS of a connection.
#[derive(Clone)]
pub(super) enum Tls {
    None,
    Rustls(MakeRustlsConnect),
}

/// Opens connections to one database.
pub(super) struct Connector {
    config: PgConfig,
    tls: Tls,
    family: Family,
    timeout: Duration,
    may_dial: Option<AddressCheck>,
}

impl Connector {
    /// Reads the configuration.
    pub(super) fn new(
        config: &Map<String, Value>,
        may_dial: Option<AddressCheck>,
    ) -> Result<Self, BridgeError> {
        let config = Config(config);
        let (mut pg, sslmode) = match config.text(&["url", "connectionString"])? {
            Some(url) => from_url(&url)?,
            None => (PgConfig::new(), None),
        };
        fill(&mut pg, &config)?;
        let sslmode = match config.flag("ssl")? {
            Some(true) if sslmode.is_none() => Some("verify-full".to_owned()),
            _ => sslmode,
        };
        let tls = tls(&mut pg, sslmode.as_deref())?;
        pg.application_name("semilayer")
            .keepalives_idle(Duration::from_secs(30));
        let family = Family::of(&config)?;
        Ok(Self {
            config: pg,
            tls,
            family,
            timeout: config.connect_timeout()?,
            may_dial,
        })
    }

    /// Opens one connection.
    pub(super) async fn connect(&self) -> Result<Connection, BridgeError> {
        dial::connect_within(self.timeout, self.open()).await
    }

    async fn open(&self) -> Result<Connection, BridgeError> {
        let config = self.resolved().await?;
        let (client, task) = match &self.tls {
            Tls::None => {
                let (client, connection) = config
                    .connect(NoTls)
                    .await
                    .map_err(|error| failure::of_connecting(&error))?;
                (client, tokio::spawn(drive(connection)))
            }
            Tls::Rustls(tls) => {
                let (client, connection) = config
                    .connect(tls.clone())
                    .await
                    .map_err(|error| failure::of_connecting(&error))?;
                (client, tokio::spawn(drive(connection)))
            }
        };
        // The session is told nothing: a pooler may hand it to somebody else after any transaction.
        Ok(Connection {
            client,
            tls: self.tls.clone(),
            task,
            at_rest: true,
        })
    }

    /// The configuration with the address to dial; the host's name stays, for TLS.
    async fn resolved(&self) -> Result<PgConfig, BridgeError> {
        let mut config = self.config.clone();
        let port = config.get_ports().first().copied().unwrap_or(5432);
        match config.get_hosts() {
            [Host::Tcp(host)] => {
                let address =
                    dial::resolve(host, port, self.family, self.may_dial.as_ref()).await?;
                config.hostaddr(address);
            }
            // A check of the address is a check of one address.
            _ if self.may_dial.is_some() => {
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

/// Reads a URL, and its `sslmode` apart, which has more values than the driver knows.
fn from_url(url: &str) -> Result<(PgConfig, Option<String>), BridgeError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut sslmode = None;
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", mode)) => sslmode = Some(mode.to_owned()),
            Some(("ssl", "true" | "1")) => sslmode = Some("verify-full".to_owned()),
            Some(("ssl", "false" | "0")) => sslmode = Some("disable".to_owned()),
            _ => rest.push(pair),
        }
    }
    let rest = if rest.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", rest.join("&"))
    };
    let config = PgConfig::from_str(&rest).map_err(|error| {
        // The cause names what is wrong; the URL itself holds a password.
        let cause = std::error::Error::source(&error)
            .map_or_else(String::new, |cause| format!(": {cause}"));
        invalid(
            "config.url",
            format!("the source's `url` is not a PostgreSQL URL{cause}"),
        )
    })?;
    Ok((config, sslmode))
}

/// Adds what the fields say and the URL did not.
fn fill(pg: &mut PgConfig, config: &Config<'_>) -> Result<(), BridgeError> {
    if pg.get_hosts().is_empty() {
        let Some(host) = config.text(&["host"])? else {
            return Err(invalid(
                "config.host",
                "a PostgreSQL source needs `url`, or `host` and `database`",
            ));
        };
        pg.host(&host);
    }
    if pg.get_ports().is_empty() {
        pg.port(config.port(5432)?);
    }
    if let (None, Some(user)) = (pg.get_user(), config.text(&["user", "username"])?) {
        pg.user(user);
    }
    if let (None, Some(password)) = (pg.get_password(), config.text(&["password", "pass"])?) {
        pg.password(password);
    }
    if pg.get_dbname().is_none() {
        match config.text(&["database", "db"])? {
            Some(database) => {
                pg.dbname(database);
            }
            None if config.text(&["url", "connectionString"])?.is_none() => {
                return Err(invalid(
                    "config.database",
                    "a PostgreSQL source needs `url`, or `host` and `database`",
                ));
            }
            None => {}
        }
    }
    if pg.get_user().is_none() {
        return Err(invalid("config.user", "a PostgreSQL source needs a `user`"));
    }
    Ok(())
}

/// Reads `sslmode`: without one there is no TLS, and only the `verify` ones check certificates.
fn tls(pg: &mut PgConfig, sslmode: Option<&str>) -> Result<Tls, BridgeError> {
    let (mode, verify) = match sslmode {
        None | Some("disable") => {
            pg.ssl_mode(SslMode::Disable);
            return Ok(Tls::None);
        }
        Some("allow" | "prefer") => (SslMode::Prefer, Verify::Nothing),
        Some("require" | "no-verify") => (SslMode::Require, Verify::Nothing),
        Some("verify-ca" | "verify-full") => (SslMode::Require, Verify::Full),
        Some(_) => {
            let modes = "disable, allow, prefer, require, no-verify, verify-ca or verify-full";
            return Err(invalid("config.url", format!("`sslmode` must be {modes}")));
        }
    };
    pg.ssl_mode(mode);
    Ok(Tls::Rustls(MakeRustlsConnect::new(dial::tls(verify)?)))
}
