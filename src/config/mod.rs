//! What `semilayer gateway` and `semilayer dev` are told at their start.
//!
//! Flags and environment variables become one plain [`GatewayConfig`], and nothing reads the environment
//! later. Every error names its variable. Nothing is opened here but the file of the master key.

mod args;
mod error;
mod master_key;
mod timing;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

use crate::timing::Timing;

pub use args::{GatewayArgs, Variable};
pub use error::ConfigError;
pub use master_key::MasterKey;
pub(crate) use master_key::write_private;
pub use timing::parse_timing;

/// Everything a gateway is told at its start.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where state lives.
    pub database: Database,
    /// Where the embedded database, the generated master key and the demo are.
    pub data_dir: PathBuf,
    /// Where runners, REST callers and browsers arrive.
    pub listen: SocketAddr,
    /// The listener for `/dispatch`, other gateways and metrics; `None`: it does not start.
    pub internal: Option<InternalListener>,
    /// How other gateways reach the internal listener.
    pub advertise_url: Option<Url>,
    /// Whether runners that are connected here get queries before those of other gateways.
    pub prefer_local: bool,
    /// Wraps the data keys of stored credentials.
    pub master_key: MasterKey,
    /// The key before a rotation: unseals, never seals.
    pub master_key_previous: Option<MasterKey>,
    /// Creates organisations and their first keys.
    pub operator_token: Option<SecretString>,
    /// Certificate and key of the public listener; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// From whom `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Where inline execution may connect although the address is private.
    pub inline_allow: Vec<IpNet>,
    /// Whether statements start with a comment that names their job.
    pub tag_sql: bool,
    /// A file with authorities that count for databases beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether runners are asked to compress rows.
    pub compress: bool,
    /// Every interval and deadline.
    pub timing: Timing,
}

/// Where a gateway keeps its state.
#[derive(Clone)]
pub enum Database {
    /// One `SQLite` file, one gateway.
    Embedded(PathBuf),
    /// `PostgreSQL`, any number of gateways; the URL holds a password.
    Hosted(SecretString),
}

impl Database {
    /// The URL by which the store is opened.
    pub fn url(&self) -> SecretString {
        match self {
            Self::Embedded(path) => format!("sqlite://{}", path.display()).into(),
            Self::Hosted(url) => url.clone(),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(path) => write!(f, "sqlite://{}", path.display()),
            Self::Hosted(_) => f.write_str("postgres://[REDACTED]"),
        }
    }
}

/// The second listener, which no customer reaches.
#[derive(Debug, Clone)]
pub struct InternalListener {
    /// Its address.
    pub listen: SocketAddr,
    /// The bearer token of `/dispatch`; `None`: that is not served.
    pub token: Option<SecretString>,
}

/// PEM files of the public listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl GatewayConfig {
    /// The settings as lines of `VARIABLE=value`, with `[set]` in place of every secret.
    pub fn redacted(&self) -> Vec<String> {
        fn or_unset<T: fmt::Display>(value: Option<T>) -> String {
            value.map_or_else(|| "[unset]".into(), |value| value.to_string())
        }
        fn joined(nets: &[IpNet]) -> String {
            let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
            nets.join(",")
        }
        let internal = self.internal.as_ref();
        let tls = self.tls.as_ref();
        let values = [
            (Variable::DATABASE_URL, format!("{:?}", self.database)),
            (Variable::DATA_DIR, self.data_dir.display().to_string()),
            (Variable::LISTEN, self.listen.to_string()),
            (
                Variable::INTERNAL_LISTEN,
                or_unset(internal.map(|internal| internal.listen)),
            ),
            (
                Variable::ADVERTISE_URL,
                or_unset(self.advertise_url.as_ref()),
            ),
            (
                Variable::PREFER_LOCAL,
                u8::from(self.prefer_local).to_string(),
            ),
            (Variable::MASTER_KEY, "[set]".into()),
            (
                Variable::MASTER_KEY_PREVIOUS,
                or_unset(self.master_key_previous.as_ref().map(|_| "[set]")),
            ),
            (
                Variable::INTERNAL_TOKEN,
                or_unset(
                    internal
                        .and_then(|internal| internal.token.as_ref())
                        .map(|_| "[set]"),
                ),
            ),
            (
                Variable::OPERATOR_TOKEN,
                or_unset(self.operator_token.as_ref().map(|_| "[set]")),
            ),
            (
                Variable::TLS_CERT,
                or_unset(tls.map(|tls| tls.certificate.display())),
            ),
            (
                Variable::TLS_KEY,
                or_unset(tls.map(|tls| tls.key.display())),
            ),
            (
                Variable::CA_FILE,
                or_unset(self.ca_file.as_ref().map(|path| path.display())),
            ),
            (Variable::TRUSTED_PROXIES, joined(&self.trusted_proxies)),
            (Variable::INLINE_ALLOW, joined(&self.inline_allow)),
            (Variable::COMPRESS, u8::from(self.compress).to_string()),
            (Variable::TAG_SQL, u8::from(self.tag_sql).to_string()),
        ];
        values
            .into_iter()
            .map(|(variable, value)| format!("{}={value}", variable.name))
            .collect()
    }
}

#[cfg(test)]
mod tests;
