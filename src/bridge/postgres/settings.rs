//! What a URL and the fields of a PostgreSQL source say, read without connecting.

use std::str::FromStr as _;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use tokio_postgres::Config as PgConfig;

use crate::bridge::BridgeError;
use crate::bridge::config::Config;
use crate::bridge::dial::Family;
use crate::bridge::request::invalid;
use crate::bridge::secure::{Mode, Secure, UrlTls, one_host, said_once, unsupported};

const MODES: &str = "disable, allow, prefer, require, no-verify, verify-ca or verify-full";

/// The parameters of a URL that are understood.
const PARAMETERS: &str = "sslmode, sslrootcert, sslcert, sslkey, connect_timeout, tcp_user_timeout, keepalives, \
    keepalives_idle, keepalives_interval, keepalives_retries, host, port, user, password, dbname";

/// What there is to know before connecting.
pub(super) struct Settings {
    pub(super) pg: PgConfig,
    pub(super) secure: Secure,
    pub(super) family: Family,
    pub(super) timeout: Duration,
}

impl Settings {
    /// Reads the configuration.
    pub(super) fn read(config: &Map<String, Value>) -> Result<Self, BridgeError> {
        let config = Config(config);
        let url = config.text(&["url", "connectionString"])?;
        let port = config.has("port").then(|| config.port(5432)).transpose()?;
        let has_port = url.as_deref().is_some_and(has_port);
        let (mut pg, tls) = match &url {
            Some(url) => from_url(url, port)?,
            None => (PgConfig::new(), UrlTls::default()),
        };
        said_once(
            &config,
            &[
                (&["url", "connectionString"], false),
                (&["host"], !pg.get_hosts().is_empty()),
                (&["port"], has_port),
                (&["user", "username"], pg.get_user().is_some()),
                (&["password", "pass"], pg.get_password().is_some()),
                (&["database", "db"], pg.get_dbname().is_some()),
                (&["sslMode", "ssl"], tls.mode.is_some()),
                (&["caCertificate"], tls.authority.is_some()),
                (&["clientCertificate"], tls.certificate.is_some()),
                (&["clientKey"], tls.key.is_some()),
                (
                    &["connectionTimeoutMillis"],
                    pg.get_connect_timeout().is_some(),
                ),
            ],
        )?;
        fill(&mut pg, &config, url.is_some())?;
        let secure = Secure::of(&config, tls, MODES)?;
        let timeout = match pg.get_connect_timeout() {
            Some(timeout) => *timeout,
            None => config.connect_timeout()?,
        };
        Ok(Self {
            secure,
            family: Family::of(&config)?,
            timeout,
            pg,
        })
    }
}

/// Reads a URL, and what it says of TLS apart, which is more than the driver knows.
fn from_url(url: &str, port: Option<u16>) -> Result<(PgConfig, UrlTls), BridgeError> {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let base = match (port, host_of(base)) {
        // The driver takes a host without a port for one with its default.
        (Some(port), Some(end)) if !has_port(url) => {
            let (before, after) = base.split_at(end.end);
            format!("{before}:{port}{after}")
        }
        _ => base.to_owned(),
    };
    let mut tls = UrlTls::default();
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
        match (key, value.as_str()) {
            ("sslmode", word) => {
                let mode = Mode::parse(word)
                    .ok_or_else(|| invalid("config.url", format!("`sslmode` must be {MODES}")))?;
                tls.mode = Some(mode);
            }
            ("ssl", "true" | "1") => tls.mode = Some(Mode::VerifyFull),
            ("ssl", "false" | "0") => tls.mode = Some(Mode::Disable),
            ("sslrootcert", _) => tls.authority = Some(value),
            ("sslcert", _) => tls.certificate = Some(value),
            ("sslkey", _) => tls.key = Some(value),
            // What these ask for is how it is.
            ("target_session_attrs", "any")
            | ("channel_binding", "disable" | "prefer")
            | ("gssencmode", "disable" | "prefer")
            | ("sslnegotiation", "postgres")
            | ("load_balance_hosts", "disable")
            | ("application_name", _) => {}
            (key, _) if PARAMETERS.split(", ").any(|known| known == key) => rest.push(pair),
            (key, _) => return Err(unsupported(key, PARAMETERS)),
        }
    }
    let rest = match rest.is_empty() {
        true => base,
        false => format!("{base}?{}", rest.join("&")),
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
    if config.get_hosts().len() > 1 || config.get_ports().len() > 1 {
        let message = "several hosts in the source's `url` are not supported: name one, or make a source of each";
        return Err(invalid("config.url", message));
    }
    if config.get_ports().contains(&0) {
        return Err(invalid(
            "config.url",
            "the port in the source's `url` must not be 0",
        ));
    }
    Ok((config, tls))
}

/// Where in a URL the host is, with its port; `None` if there is none.
fn host_of(base: &str) -> Option<std::ops::Range<usize>> {
    let start = base.find("://")? + 3;
    let end = base[start..].find('/').map_or(base.len(), |at| start + at);
    let start = base[start..end]
        .rfind('@')
        .map_or(start, |at| start + at + 1);
    (start < end).then_some(start..end)
}

/// Whether a URL names a port.
fn has_port(url: &str) -> bool {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let host = host_of(base).map_or("", |host| &base[host]);
    let after_address = host.rsplit(']').next().unwrap_or(host);
    after_address.contains(':') || query.split('&').any(|pair| pair.starts_with("port="))
}

/// Adds what the fields say and the URL did not.
fn fill(pg: &mut PgConfig, config: &Config<'_>, has_url: bool) -> Result<(), BridgeError> {
    let needed = "a PostgreSQL source needs `url`, or `host` and `database`";
    if pg.get_hosts().is_empty() {
        let host = config.text(&["host"])?;
        one_host(host.as_deref())?;
        pg.host(host.ok_or_else(|| invalid("config.host", needed))?);
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
            None if !has_url => return Err(invalid("config.database", needed)),
            None => {}
        }
    }
    if pg.get_user().is_none() {
        return Err(invalid("config.user", "a PostgreSQL source needs a `user`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_beside_a_url_that_has_none_counts() {
        for (url, port, expected) in [
            ("postgres://u@h/d", Some(5433), 5433),
            ("postgres://u:p%40@h?sslmode=require", Some(5433), 5433),
            ("postgres://u@[::1]/d", Some(5433), 5433),
            ("postgres://u@h/d", None, 5432),
            ("postgres://u@h:5434/d", None, 5434),
            ("postgres://u@[::1]:5434", None, 5434),
        ] {
            let mut config = Map::new();
            config.insert("url".into(), json!(url));
            config.extend(port.map(|port| ("port".to_owned(), json!(port))));
            let settings = Settings::read(&config).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(settings.pg.get_ports(), [expected], "{url}");
            assert_eq!(settings.pg.get_hosts().len(), 1, "{url}");
        }
    }
}
