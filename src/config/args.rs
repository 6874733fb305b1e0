//! The flags and variables of a gateway, and the way from their text to a [`GatewayConfig`]. Values are
//! taken as text and parsed here rather than by clap, so that every error names the variable.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{
    ConfigError, Database, GatewayConfig, InternalListener, MasterKey, TlsFiles, parse_timing,
};
use crate::timing::Timing;

/// One setting, by the names people know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// The environment variable.
    pub name: &'static str,
    /// The flag.
    pub flag: &'static str,
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (--{})", self.name, self.flag)
    }
}

macro_rules! variables {
    ($($constant:ident = $name:literal, $flag:literal;)+) => {
        impl Variable {
            $(#[doc = concat!("`", $name, "`.")] pub const $constant: Self = Self { name: $name, flag: $flag };)+
        }
    };
}

variables! {
    DATABASE_URL = "SEMILAYER_DATABASE_URL", "database-url";
    DATA_DIR = "SEMILAYER_DATA_DIR", "data-dir";
    LISTEN = "SEMILAYER_LISTEN", "listen";
    INTERNAL_LISTEN = "SEMILAYER_INTERNAL_LISTEN", "internal-listen";
    ADVERTISE_URL = "SEMILAYER_ADVERTISE_URL", "advertise-url";
    PREFER_LOCAL = "SEMILAYER_PREFER_LOCAL", "prefer-local";
    MASTER_KEY = "SEMILAYER_MASTER_KEY", "master-key";
    MASTER_KEY_PREVIOUS = "SEMILAYER_MASTER_KEY_PREVIOUS", "master-key-previous";
    INTERNAL_TOKEN = "SEMILAYER_INTERNAL_TOKEN", "internal-token";
    OPERATOR_TOKEN = "SEMILAYER_OPERATOR_TOKEN", "operator-token";
    TLS_CERT = "SEMILAYER_TLS_CERT", "tls-cert";
    TLS_KEY = "SEMILAYER_TLS_KEY", "tls-key";
    CA_FILE = "SEMILAYER_CA_FILE", "ca-file";
    TRUSTED_PROXIES = "SEMILAYER_TRUSTED_PROXIES", "trusted-proxies";
    INLINE_ALLOW = "SEMILAYER_INLINE_ALLOW", "inline-allow";
    TAG_SQL = "SEMILAYER_TAG_SQL", "tag-sql";
    COMPRESS = "SEMILAYER_COMPRESS", "compress";
    TIMING = "SEMILAYER_TIMING", "timing";
}

/// The settings of a gateway as they were typed.
#[derive(Debug, clap::Args)]
pub struct GatewayArgs {
    /// Where state lives: `sqlite://<file>`, or `postgres://…` for several gateways. `DATABASE_URL` is
    /// read too [default: sqlite://<data dir>/semilayer.db]
    #[arg(long, env = Variable::DATABASE_URL.name, value_name = "URL", value_parser = secret, hide_env_values = true)]
    database_url: Option<SecretString>,
    /// Directory of the embedded database and its generated master key
    #[arg(long, env = Variable::DATA_DIR.name, value_name = "DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// Address of the public listener: runners and REST
    #[arg(long, env = Variable::LISTEN.name, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    listen: String,
    /// Address of the internal listener: /dispatch, and other gateways [default: it does not start]
    #[arg(long, env = Variable::INTERNAL_LISTEN.name, value_name = "ADDR")]
    internal_listen: Option<String>,
    /// URL at which the internal listener is reached from other machines
    #[arg(long, env = Variable::ADVERTISE_URL.name, value_name = "URL")]
    advertise_url: Option<String>,
    /// Give queries to runners that are connected here, if one can take them, before those of other
    /// gateways (1 or 0)
    #[arg(long, env = Variable::PREFER_LOCAL.name, value_name = "BOOL", num_args = 0..=1, default_missing_value = "1")]
    prefer_local: Option<String>,
    /// 32 bytes in base64 that wrap the keys of stored credentials; embedded: generated once
    #[arg(long, env = Variable::MASTER_KEY.name, value_name = "BASE64", value_parser = secret, hide_env_values = true)]
    master_key: Option<SecretString>,
    /// The old master key during a rotation: it unseals and never seals
    #[arg(long, env = Variable::MASTER_KEY_PREVIOUS.name, value_name = "BASE64", value_parser = secret, hide_env_values = true)]
    master_key_previous: Option<SecretString>,
    /// Bearer token of /dispatch, which is not served without it
    #[arg(long, env = Variable::INTERNAL_TOKEN.name, value_name = "TOKEN", value_parser = secret, hide_env_values = true)]
    internal_token: Option<SecretString>,
    /// Bearer token that creates organisations and their first keys
    #[arg(long, env = Variable::OPERATOR_TOKEN.name, value_name = "TOKEN", value_parser = secret, hide_env_values = true)]
    operator_token: Option<SecretString>,
    /// Certificate chain of the public listener (PEM)
    #[arg(long, env = Variable::TLS_CERT.name, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the public listener (PEM)
    #[arg(long, env = Variable::TLS_KEY.name, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificate authorities that count for databases beside the system's (PEM)
    #[arg(long, env = Variable::CA_FILE.name, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Networks whose X-Forwarded-For is believed, e.g. `10.0.0.0/8,127.0.0.1`
    #[arg(long, env = Variable::TRUSTED_PROXIES.name, value_name = "NETS")]
    trusted_proxies: Option<String>,
    /// Private networks that the hosted gateway may dial for sources without a runner
    #[arg(long, env = Variable::INLINE_ALLOW.name, value_name = "NETS")]
    inline_allow: Option<String>,
    /// Start every SQL statement with a comment that names its job (1 or 0)
    #[arg(long, env = Variable::TAG_SQL.name, value_name = "BOOL", num_args = 0..=1, default_missing_value = "1")]
    tag_sql: Option<String>,
    /// Have runners compress rows on their way here (1 or 0)
    #[arg(long, env = Variable::COMPRESS.name, value_name = "BOOL", default_value = "1")]
    compress: String,
    /// Intervals and deadlines for tests, e.g. `sweep=200ms,gateway_lease=2s`
    #[arg(long, env = Variable::TIMING.name, value_name = "NAME=DURATION,…", hide = true)]
    timing: Option<String>,
}

fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

impl GatewayArgs {
    /// The configuration of `semilayer gateway`.
    pub fn resolve(self) -> Result<GatewayConfig, ConfigError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the configuration is where the environment is read"
        )]
        let fallback = std::env::var("DATABASE_URL").ok().map(SecretString::from);
        self.resolve_with(fallback)
    }

    /// The configuration of `semilayer dev`: the embedded store whatever `DATABASE_URL` is meant for, and
    /// the internal listener on loopback with `internal_token` unless another was given.
    pub fn resolve_dev(
        mut self,
        internal_token: SecretString,
    ) -> Result<GatewayConfig, ConfigError> {
        self.internal_listen = given(self.internal_listen).or_else(|| Some("127.0.0.1:0".into()));
        self.internal_token = given_secret(self.internal_token).or(Some(internal_token));
        let config = self.resolve_with(None)?;
        match config.database {
            Database::Embedded(_) => Ok(config),
            Database::Hosted(_) => Err(ConfigError::invalid(
                Variable::DATABASE_URL,
                "`semilayer dev` keeps its state in SQLite; leave this unset, or start `semilayer gateway`",
            )),
        }
    }

    /// The directory that was asked for.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn resolve_with(
        self,
        database_url: Option<SecretString>,
    ) -> Result<GatewayConfig, ConfigError> {
        let url = given_secret(self.database_url).or_else(|| given_secret(database_url));
        let database = database(url, &self.data_dir)?;
        if matches!(database, Database::Embedded(_)) {
            create_private_directory(&self.data_dir)?;
        }
        Ok(GatewayConfig {
            listen: address(Variable::LISTEN, &self.listen)?,
            internal: internal(self.internal_listen, self.internal_token, &database)?,
            advertise_url: given(self.advertise_url)
                .map(|text| http_url(Variable::ADVERTISE_URL, &text))
                .transpose()?,
            prefer_local: given(self.prefer_local)
                .map(|text| boolean(Variable::PREFER_LOCAL, &text))
                .transpose()?
                .unwrap_or(false),
            master_key: master_key(self.master_key, &database, &self.data_dir)?,
            master_key_previous: given_secret(self.master_key_previous)
                .map(|text| MasterKey::parse(Variable::MASTER_KEY_PREVIOUS, text.expose_secret()))
                .transpose()?,
            operator_token: given_secret(self.operator_token),
            tls: tls(self.tls_cert, self.tls_key)?,
            ca_file: self.ca_file.filter(|path| !path.as_os_str().is_empty()),
            trusted_proxies: networks(Variable::TRUSTED_PROXIES, self.trusted_proxies)?,
            inline_allow: networks(Variable::INLINE_ALLOW, self.inline_allow)?,
            tag_sql: given(self.tag_sql)
                .map(|text| boolean(Variable::TAG_SQL, &text))
                .transpose()?
                .unwrap_or(false),
            compress: boolean(Variable::COMPRESS, self.compress.trim())?,
            timing: timing(self.timing)?,
            database,
            data_dir: self.data_dir,
        })
    }
}

/// A variable that is set to nothing, as compose files do, counts as not set.
fn given(value: Option<String>) -> Option<String> {
    value
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
}

fn given_secret(value: Option<SecretString>) -> Option<SecretString> {
    value.filter(|value| !value.expose_secret().trim().is_empty())
}

fn database(url: Option<SecretString>, data_dir: &Path) -> Result<Database, ConfigError> {
    let Some(url) = url else {
        return Ok(Database::Embedded(data_dir.join("semilayer.db")));
    };
    let text = url.expose_secret();
    if let Some(path) = text.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains('?') {
            return Err(ConfigError::invalid(
                Variable::DATABASE_URL,
                "after `sqlite://` comes the path of a file",
            ));
        }
        return Ok(Database::Embedded(path.into()));
    }
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        // The cause is left out: it could quote the password.
        let parsed = text.parse::<tokio_postgres::Config>();
        return parsed
            .map(|_| Database::Hosted(url))
            .or(Err(ConfigError::invalid(
                Variable::DATABASE_URL,
                "it must look like `postgres://user:password@host:5432/database`",
            )));
    }
    Err(ConfigError::invalid(
        Variable::DATABASE_URL,
        "it must start with `sqlite://` or `postgres://`",
    ))
}

fn master_key(
    value: Option<SecretString>,
    database: &Database,
    data_dir: &Path,
) -> Result<MasterKey, ConfigError> {
    match (given_secret(value), database) {
        (Some(text), _) => MasterKey::parse(Variable::MASTER_KEY, text.expose_secret()),
        (None, Database::Embedded(_)) => MasterKey::load_or_create(&data_dir.join("master.key")),
        (None, Database::Hosted(_)) => Err(ConfigError::Missing {
            variable: Variable::MASTER_KEY,
            hint: "with PostgreSQL every gateway must be given the same 32 bytes in base64; `openssl rand -base64 32` makes them",
        }),
    }
}

fn internal(
    listen: Option<String>,
    token: Option<SecretString>,
    database: &Database,
) -> Result<Option<InternalListener>, ConfigError> {
    let listen = given(listen)
        .map(|text| address(Variable::INTERNAL_LISTEN, &text))
        .transpose()?;
    match (listen, given_secret(token)) {
        (Some(listen), token @ Some(_)) => Ok(Some(InternalListener { listen, token })),
        // Gateways know each other by the master key.
        (Some(listen), None) if matches!(database, Database::Hosted(_)) => {
            Ok(Some(InternalListener {
                listen,
                token: None,
            }))
        }
        (Some(_), None) => {
            log::warn!(
                "the internal listener does not start: {} is not set",
                Variable::INTERNAL_TOKEN
            );
            Ok(None)
        }
        (None, Some(_)) => {
            log::warn!(
                "the internal listener does not start: {} is not set",
                Variable::INTERNAL_LISTEN
            );
            Ok(None)
        }
        (None, None) => Ok(None),
    }
}

fn tls(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<TlsFiles>, ConfigError> {
    let readable = |variable, file: Option<PathBuf>| -> Result<Option<PathBuf>, ConfigError> {
        let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else {
            return Ok(None);
        };
        match std::fs::File::open(&file) {
            Ok(_) => Ok(Some(file)),
            Err(error) => Err(ConfigError::invalid(
                variable,
                format!("cannot read {}: {error}", file.display()),
            )),
        }
    };
    match (
        readable(Variable::TLS_CERT, certificate)?,
        readable(Variable::TLS_KEY, key)?,
    ) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(ConfigError::Missing {
            variable: Variable::TLS_KEY,
            hint: "a certificate needs its private key",
        }),
        (None, Some(_)) => Err(ConfigError::Missing {
            variable: Variable::TLS_CERT,
            hint: "a private key needs its certificate",
        }),
    }
}

fn timing(value: Option<String>) -> Result<Timing, ConfigError> {
    let parsed = given(value).map(|text| parse_timing(&text)).transpose();
    Ok(parsed
        .map_err(|reason| ConfigError::invalid(Variable::TIMING, reason))?
        .unwrap_or_default())
}

fn address(variable: Variable, text: &str) -> Result<SocketAddr, ConfigError> {
    // The cause ("invalid socket address syntax") says less than the example.
    text.trim().parse().or(Err(ConfigError::invalid(
        variable,
        format!("`{text}` is not an address and port such as `127.0.0.1:8080` or `[::]:8080`"),
    )))
}

fn http_url(variable: Variable, text: &str) -> Result<Url, ConfigError> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| {
        ConfigError::invalid(
            variable,
            format!("`{text}` is not a URL such as `http://10.0.0.7:9090`"),
        )
    })
}

fn networks(variable: Variable, value: Option<String>) -> Result<Vec<IpNet>, ConfigError> {
    let parse = |text: &str| {
        let net = text
            .parse::<IpNet>()
            .ok()
            .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        net.ok_or_else(|| {
            ConfigError::invalid(
                variable,
                format!("`{text}` is not a network such as `10.0.0.0/8`"),
            )
        })
    };
    let value = value.unwrap_or_default();
    value
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(parse)
        .collect()
}

fn boolean(variable: Variable, text: &str) -> Result<bool, ConfigError> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(ConfigError::invalid(
            variable,
            format!("`{text}` is neither 1 nor 0"),
        )),
    }
}

fn create_private_directory(path: &Path) -> Result<(), ConfigError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|error| {
        ConfigError::invalid(
            Variable::DATA_DIR,
            format!("cannot create {}: {error}", path.display()),
        )
    })
}
