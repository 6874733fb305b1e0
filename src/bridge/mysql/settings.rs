//! What a URL and the fields of a MySQL source say, read without connecting.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use url::Url;

use crate::bridge::BridgeError;
use crate::bridge::config::Config;
use crate::bridge::dial::Family;
use crate::bridge::request::invalid;
use crate::bridge::secure::{Mode, Secure, UrlTls, one_host, said_once, unsupported};

const MODES: &str = "DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY";

/// The parameters of a URL that are understood.
const PARAMETERS: &str = "ssl-mode, ssl-ca, ssl-cert, ssl-key";

/// What there is to know before connecting.
pub(super) struct Settings {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: Option<String>,
    pub(super) secure: Secure,
    pub(super) family: Family,
    pub(super) timeout: Duration,
}

/// What a URL says.
#[derive(Default)]
struct FromUrl {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    tls: UrlTls,
}

impl Settings {
    /// Reads the configuration.
    pub(super) fn read(config: &Map<String, Value>) -> Result<Self, BridgeError> {
        let config = Config(config);
        let url = config.text(&["url", "connectionString"])?;
        let said = url
            .as_deref()
            .map(from_url)
            .transpose()?
            .unwrap_or_default();
        said_once(
            &config,
            &[
                (&["url", "connectionString"], false),
                (&["host"], said.host.is_some()),
                (&["port"], said.port.is_some()),
                (&["user", "username"], said.user.is_some()),
                (&["password", "pass"], said.password.is_some()),
                (&["database", "db"], said.database.is_some()),
                (&["sslMode", "ssl"], said.tls.mode.is_some()),
                (&["caCertificate"], said.tls.authority.is_some()),
                (&["clientCertificate"], said.tls.certificate.is_some()),
                (&["clientKey"], said.tls.key.is_some()),
            ],
        )?;
        let database = said.database.or(config.text(&["database", "db"])?);
        let field = config.text(&["host"])?;
        one_host(field.as_deref())?;
        let host = said.host.or(field);
        let (Some(host), true) = (host, database.is_some() || url.is_some()) else {
            return Err(invalid(
                "config.host",
                "a MySQL source needs `url`, or `host` and `database`",
            ));
        };
        let secure = Secure::of(&config, said.tls, MODES)?;
        if secure.mode == Mode::Allow {
            let message = format!("`sslMode` must be {MODES}");
            return Err(invalid("config.sslMode", message));
        }
        Ok(Self {
            host,
            port: said.port.map_or_else(|| config.port(3306), Ok)?,
            user: said.user.or(config.text(&["user", "username"])?),
            password: said.password.or(config.text(&["password", "pass"])?),
            database,
            secure,
            family: Family::of(&config)?,
            timeout: config.connect_timeout()?,
        })
    }
}

fn broken(why: &str) -> BridgeError {
    invalid(
        "config.url",
        format!("the source's `url` is not a MySQL URL: {why}"),
    )
}

fn from_url(text: &str) -> Result<FromUrl, BridgeError> {
    let url = Url::parse(text).map_err(|error| broken(&error.to_string()))?;
    if !matches!(url.scheme(), "mysql" | "mariadb") {
        return Err(broken("it must start with mysql:// or mariadb://"));
    }
    if url.port() == Some(0) {
        return Err(broken("the port must not be 0"));
    }
    let decode = |text: &str| {
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .or(Err(broken("it is not UTF-8")))
    };
    let some = |text: &str| match text {
        "" => Ok(None),
        text => decode(text).map(Some),
    };
    let mut said = FromUrl {
        host: some(url.host_str().unwrap_or_default())?,
        port: url.port(),
        user: some(url.username())?,
        password: url.password().map(&decode).transpose()?,
        database: some(url.path().trim_start_matches('/'))?,
        tls: UrlTls::default(),
    };
    if said.host.as_deref().is_some_and(|host| host.contains(',')) {
        return Err(broken(
            "several hosts are not supported: name one, or make a source of each",
        ));
    }
    for (key, value) in url.query_pairs() {
        match (key.as_ref(), value.as_ref()) {
            ("ssl-mode" | "sslmode" | "ssl_mode", word) => {
                let mode = Mode::parse(word).filter(|mode| *mode != Mode::Allow);
                let mode = mode.ok_or_else(|| broken(&format!("`{key}` must be {MODES}")))?;
                said.tls.mode = Some(mode);
            }
            ("ssl", "true" | "1") => said.tls.mode = Some(Mode::VerifyFull),
            ("ssl", "false" | "0" | "disabled" | "disable") => said.tls.mode = Some(Mode::Disable),
            ("ssl-ca", _) => said.tls.authority = Some(value.into_owned()),
            ("ssl-cert", _) => said.tls.certificate = Some(value.into_owned()),
            ("ssl-key", _) => said.tls.key = Some(value.into_owned()),
            (key, _) => return Err(unsupported(key, PARAMETERS)),
        }
    }
    Ok(said)
}
