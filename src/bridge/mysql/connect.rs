//! Connecting to MySQL and MariaDB: configuration, TLS, and the connection that kills a query.

use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder, SslOpts};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use url::Url;

use super::{Connection, failure};
use crate::bridge::BridgeError;
use crate::bridge::config::Config;
use crate::bridge::dial::{self, Family, Verify};
use crate::bridge::registry::AddressCheck;
use crate::bridge::request::invalid;
use crate::bridge::sql::Dialect;

/// What every session is told before its first statement; resetting the connection, as pools of others do, undoes it.
/// The mode makes `\` the escape in patterns whatever the server's setting, and takes zero dates for dates.
const SESSION: &str = "SET NAMES utf8mb4, SESSION time_zone = '+00:00', \
    SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'";

/// Opens connections to one database.
pub(super) struct Connector {
    options: OptsBuilder,
    host: String,
    port: u16,
    family: Family,
    timeout: Duration,
    may_dial: Option<AddressCheck>,
}

/// What a URL or the fields say.
#[derive(Default)]
struct Settings {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    tls: Option<Option<Verify>>,
}

impl Connector {
    /// Reads the configuration.
    pub(super) fn new(
        config: &Map<String, Value>,
        may_dial: Option<AddressCheck>,
    ) -> Result<Self, BridgeError> {
        let config = Config(config);
        let url = config.text(&["url", "connectionString"])?;
        let settings = url
            .as_deref()
            .map(from_url)
            .transpose()?
            .unwrap_or_default();
        let database = settings.database.or(config.text(&["database", "db"])?);
        let host = settings.host.or(config.text(&["host"])?);
        let (Some(host), true) = (host, database.is_some() || url.is_some()) else {
            return Err(invalid(
                "config.host",
                "a MySQL source needs `url`, or `host` and `database`",
            ));
        };
        let port = settings.port.map_or_else(|| config.port(3306), Ok)?;
        let ssl = config.flag("ssl")?.unwrap_or(false).then_some(Verify::Full);
        let tls = settings.tls.unwrap_or(ssl);
        let options = OptsBuilder::default()
            .ip_or_hostname(host.clone())
            .tcp_port(port)
            .user(settings.user.or(config.text(&["user", "username"])?))
            .pass(settings.password.or(config.text(&["password", "pass"])?))
            .db_name(database)
            // Else a server on this machine may send us to a socket, whose address nobody checked.
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .ssl_opts(tls.map(ssl_options));
        let (family, timeout) = (Family::of(&config)?, config.connect_timeout()?);
        Ok(Self {
            options,
            host,
            port,
            family,
            timeout,
            may_dial,
        })
    }

    /// Opens one connection.
    pub(super) async fn connect(&self) -> Result<Connection, BridgeError> {
        dial::connect_within(self.timeout, async {
            let mut conn = self.open().await?;
            let session = async {
                conn.query_drop(SESSION).await?;
                conn.query_first::<(u64, String), _>("SELECT CONNECTION_ID(), VERSION()")
                    .await
            };
            let (id, version) = session
                .await
                .map_err(failure::of_connecting)?
                .unwrap_or_default();
            let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
            let dialect = if is_mariadb {
                Dialect::MariaDb
            } else {
                Dialect::MySql
            };
            Ok(Connection {
                conn,
                id,
                version,
                dialect,
                at_rest: true,
            })
        })
        .await
    }

    async fn open(&self) -> Result<Conn, BridgeError> {
        let address =
            dial::resolve(&self.host, self.port, self.family, self.may_dial.as_ref()).await?;
        let options = Opts::from(self.options.clone().resolved_ips(Some(vec![address])));
        Conn::new(options).await.map_err(failure::of_connecting)
    }

    /// Stops what another connection is doing.
    pub(super) async fn kill(&self, id: u64) -> Result<(), BridgeError> {
        let mut conn = self.open().await?;
        conn.query_drop(format!("KILL QUERY {id}"))
            .await
            .map_err(failure::of_connecting)?;
        // What was to be done is done.
        let _ = conn.disconnect().await;
        Ok(())
    }
}

fn ssl_options(verify: Verify) -> SslOpts {
    let roots = dial::native_roots().iter().map(|root| root.to_vec().into());
    let options = SslOpts::default()
        .with_disable_built_in_roots(true)
        .with_root_certs(roots.collect());
    match verify {
        Verify::Full => options,
        Verify::Nothing => options.with_danger_accept_invalid_certs(true),
    }
}

fn from_url(text: &str) -> Result<Settings, BridgeError> {
    let broken = |why: &str| {
        invalid(
            "config.url",
            format!("the source's `url` is not a MySQL URL: {why}"),
        )
    };
    let url = Url::parse(text).map_err(|error| broken(&error.to_string()))?;
    if !matches!(url.scheme(), "mysql" | "mariadb") {
        return Err(broken("it must start with mysql:// or mariadb://"));
    }
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .or(Err(broken("it is not UTF-8")))
    };
    let mut settings = Settings {
        port: url.port(),
        ..Settings::default()
    };
    settings.host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .map(&decode)
        .transpose()?;
    settings.user = Some(url.username())
        .filter(|user| !user.is_empty())
        .map(&decode)
        .transpose()?;
    settings.password = url.password().map(&decode).transpose()?;
    settings.database = Some(url.path().trim_start_matches('/'))
        .filter(|db| !db.is_empty())
        .map(&decode)
        .transpose()?;
    for (key, value) in url.query_pairs() {
        let mode = value.to_ascii_lowercase().replace('_', "-");
        settings.tls = Some(match (key.as_ref(), mode.as_str()) {
            ("ssl-mode" | "sslmode" | "ssl", "disabled" | "disable" | "false" | "0") => None,
            ("ssl-mode" | "sslmode", "required" | "require" | "no-verify") => Some(Verify::Nothing),
            ("ssl-mode" | "sslmode", "verify-ca" | "verify-identity" | "verify-full") => {
                Some(Verify::Full)
            }
            ("ssl", "true" | "1") => Some(Verify::Full),
            _ => {
                let known = "ssl-mode=disabled, required, verify-ca or verify-identity";
                return Err(broken(&format!(
                    "parameter `{key}` with that value is not known; there is {known}"
                )));
            }
        });
    }
    Ok(settings)
}
