//! The runner's configuration: flags and environment, read once at the start and checked here, so that
//! nothing reads the environment later. Tests construct [`Config`] directly.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::args::Settings;
use super::credentials::Credentials;
use super::proxy::Proxies;

/// How long the runner stays with one gateway, about, unless the configuration says otherwise.
pub const DEFAULT_MOVE_AFTER: Duration = Duration::from_secs(60 * 60);
/// How many jobs run at once unless the configuration says otherwise.
pub const DEFAULT_MAX_CONCURRENT_JOBS: u32 = 64;

/// A configuration that the runner cannot start with; one line that names the variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The environment as it was when the process started.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, SecretString>);

impl Environment {
    /// Reads the process environment; variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable, if it is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(ExposeSecret::expose_secret)
            .filter(|value| !value.is_empty())
    }

    /// All variables whose names start so, with the rest of their names.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &SecretString)> {
        self.0
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value)))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(
            variables
                .into_iter()
                .map(|(name, value)| (name, value.into()))
                .collect(),
        )
    }
}

impl fmt::Debug for Environment {
    /// Names only: values may be credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What one job may produce at most; what the customer sets here the cloud cannot raise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// Rows per job.
    pub rows: Option<u64>,
    /// Uncompressed payload bytes per job.
    pub bytes: Option<u64>,
}

/// Everything that the runner is told from outside.
#[derive(Debug, Clone)]
pub struct Config {
    /// The runner's UUID, or its name.
    pub runner_id: String,
    /// Its token.
    pub token: SecretString,
    /// Where `/connect` is; the scheme is `ws` or `wss`.
    pub gateway: Url,
    /// How many jobs run at once, over all sessions.
    pub max_concurrent_jobs: u32,
    /// Where to serve `/health`, if anywhere.
    pub port: Option<u16>,
    /// More certificate authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// Which connections go through which proxy.
    pub proxies: Proxies,
    /// Labels to route by.
    pub labels: Vec<String>,
    /// Whether statements carry a comment that names their job.
    pub tag_sql: bool,
    /// How long the runner stays with one gateway, about.
    pub move_after: Duration,
    /// What one job may produce.
    pub caps: Caps,
    /// The credentials of runner-local sources.
    pub credentials: Credentials,
}

impl Config {
    /// Checks flags and environment.
    ///
    /// # Errors
    ///
    /// When something is missing or malformed: one line that names the variable and says where its value
    /// comes from.
    pub fn resolve(settings: &Settings, environment: &Environment) -> Result<Self, ConfigError> {
        let runner_id = settings
            .runner_id
            .as_deref()
            .map(str::trim)
            .filter(|id| !id.is_empty())
            .ok_or_else(|| {
                missing(
                    "SEMILAYER_RUNNER_ID",
                    "`semilayer runners create <name>` shows it",
                )
            })?;
        let token = token(settings.token_file.as_deref(), environment)?;
        let gateway_url = settings
            .gateway_url
            .as_deref()
            .filter(|url| !url.trim().is_empty())
            .ok_or_else(|| {
                missing(
                    "SEMILAYER_GATEWAY_URL",
                    "it is the address of your gateway, e.g. wss://gateway.example.com",
                )
            })?;
        let max_concurrent_jobs = match number(
            "SEMILAYER_MAX_CONCURRENT_JOBS",
            settings.max_concurrent_jobs.as_deref(),
        )? {
            Some(n @ 1..=10_000) => n,
            Some(n) => {
                return Err(ConfigError(format!(
                    "SEMILAYER_MAX_CONCURRENT_JOBS is {n}; it must be between 1 and 10000"
                )));
            }
            None => DEFAULT_MAX_CONCURRENT_JOBS,
        };
        Ok(Self {
            runner_id: runner_id.to_owned(),
            token,
            gateway: gateway_url_of(gateway_url.trim(), settings.insecure)?,
            max_concurrent_jobs,
            port: health_port(settings.port.as_deref())?,
            ca_file: settings
                .ca_file
                .clone()
                .filter(|path| !path.as_os_str().is_empty()),
            proxies: Proxies::from_environment(environment)?,
            labels: labels(settings.labels.as_deref().unwrap_or_default()),
            tag_sql: settings.tag_sql,
            move_after: move_after(settings.move_after.as_deref())?,
            caps: Caps {
                rows: number(
                    "SEMILAYER_MAX_ROWS_PER_JOB",
                    settings.max_rows_per_job.as_deref(),
                )?,
                bytes: number(
                    "SEMILAYER_MAX_BYTES_PER_JOB",
                    settings.max_bytes_per_job.as_deref(),
                )?,
            },
            credentials: Credentials::from_environment(environment),
        })
    }

    /// The port of the gateway, explicit or by scheme.
    pub fn gateway_port(&self) -> u16 {
        self.gateway.port_or_known_default().unwrap_or(443)
    }

    /// Whether the connection is encrypted.
    pub fn uses_tls(&self) -> bool {
        self.gateway.scheme() == "wss"
    }
}

fn missing(variable: &str, hint: &str) -> ConfigError {
    ConfigError(format!("{variable} is not set: {hint}"))
}

fn token(file: Option<&Path>, environment: &Environment) -> Result<SecretString, ConfigError> {
    let text = match (
        environment.get("SEMILAYER_RUNNER_TOKEN"),
        file.filter(|path| !path.as_os_str().is_empty()),
    ) {
        (Some(token), _) => token.to_owned(),
        (None, Some(path)) => std::fs::read_to_string(path).map_err(|e| {
            ConfigError(format!(
                "SEMILAYER_RUNNER_TOKEN_FILE: cannot read {}: {e}",
                path.display()
            ))
        })?,
        (None, None) => {
            return Err(missing(
                "SEMILAYER_RUNNER_TOKEN",
                "it is shown once when the runner is created (`semilayer runners create <name>`); \
                 `semilayer runners rotate <name>` makes a new one",
            ));
        }
    };
    let token = text.trim();
    // Anything else could not be sent in a header, and is a file or a variable that was cut or mixed up.
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ConfigError::new(
            "SEMILAYER_RUNNER_TOKEN is not a token: it starts with rk_ and has no spaces",
        ));
    }
    Ok(token.into())
}

/// The gateway's `/connect`, from whatever form of its address was given.
fn gateway_url_of(text: &str, insecure: bool) -> Result<Url, ConfigError> {
    let bad = |why: &str| {
        ConfigError(format!(
            "SEMILAYER_GATEWAY_URL {why}; it should look like wss://gateway.example.com"
        ))
    };
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("wss://{text}")
    };
    let mut url = Url::parse(&with_scheme).map_err(|e| bad(&format!("is not a URL ({e})")))?;
    let scheme = match url.scheme() {
        "wss" | "https" => "wss",
        "ws" | "http" => "ws",
        other => return Err(bad(&format!("has the scheme {other}"))),
    };
    // Setting a scheme fails only between the web's and others; all four are the web's.
    url.set_scheme(scheme)
        .or(Err(bad("has a scheme that cannot be used")))?;
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(bad(
            "must hold no user, query or fragment (the token has a variable of its own)",
        ));
    }
    let local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => return Err(bad("has no host")),
    };
    if scheme == "ws" && !local && !insecure {
        return Err(ConfigError::new(
            "SEMILAYER_GATEWAY_URL is not encrypted (ws://), and the gateway is not on this machine; \
             use wss://, or --insecure if the network in between is yours",
        ));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&if path.ends_with("/connect") {
        path
    } else {
        format!("{path}/connect")
    });
    Ok(url)
}

fn number<T: FromStr>(variable: &str, text: Option<&str>) -> Result<Option<T>, ConfigError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // What the parser says adds nothing to what the number must be.
    text.parse().map(Some).or(Err(ConfigError(format!(
        "{variable} is `{text}`; it must be a whole number"
    ))))
}

/// A duration such as `90m`; a day at most, a tenth of a second at least.
fn move_after(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(DEFAULT_MOVE_AFTER);
    };
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60 * 1_000),
        "h" => Some(60 * 60 * 1_000),
        _ => None,
    };
    let number: Option<u64> = number.parse().ok();
    number
        .zip(unit)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .filter(|ms| (100..=24 * 60 * 60 * 1_000).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            ConfigError(format!(
                "SEMILAYER_MOVE_AFTER is `{text}`; it must be a duration such as `90m` or `2h`, 24h at most"
            ))
        })
}

/// The port of `/health`.
///
/// # Errors
///
/// When it is not a port.
pub fn health_port(text: Option<&str>) -> Result<Option<u16>, ConfigError> {
    match number::<u16>("PORT", text) {
        Ok(port) => Ok(port),
        Err(_) => Err(ConfigError(format!(
            "PORT is `{}`; it must be a port, 1 to 65535",
            text.unwrap_or_default()
        ))),
    }
}

fn labels(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|label| !label.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn settings() -> Settings {
        Settings {
            runner_id: Some("primary-prod".into()),
            gateway_url: Some("wss://gateway.example.com".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn the_time_to_move_has_a_unit() {
        for (text, expected) in [
            (None, Ok(60 * 60_000)),
            (Some(" "), Ok(60 * 60_000)),
            (Some("90m"), Ok(90 * 60_000)),
            (Some("2h"), Ok(120 * 60_000)),
            (Some("500ms"), Ok(500)),
            (Some("90"), Err(())),
            (Some("m"), Err(())),
            (Some("1ms"), Err(())),
            (Some("25h"), Err(())),
            (Some("99999999999999999999h"), Err(())),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(move_after(text).ok(), expected.ok(), "{text:?}");
        }
    }

    fn error(settings: &Settings, variables: &[(&str, &str)]) -> String {
        Config::resolve(settings, &environment(variables))
            .map(|_| ())
            .unwrap_err()
            .to_string()
    }

    const TOKEN: (&str, &str) = ("SEMILAYER_RUNNER_TOKEN", "rk_acme_abc");

    #[test]
    fn what_is_missing_is_named_in_one_line_with_where_to_find_it() {
        for (settings, variables, name) in [
            (
                Settings {
                    runner_id: None,
                    ..settings()
                },
                vec![TOKEN],
                "SEMILAYER_RUNNER_ID is not set",
            ),
            (
                Settings {
                    runner_id: Some(" ".into()),
                    ..settings()
                },
                vec![TOKEN],
                "SEMILAYER_RUNNER_ID is not set",
            ),
            (settings(), vec![], "SEMILAYER_RUNNER_TOKEN is not set"),
            (
                settings(),
                vec![("SEMILAYER_RUNNER_TOKEN", "")],
                "SEMILAYER_RUNNER_TOKEN is not set",
            ),
            (
                Settings {
                    gateway_url: None,
                    ..settings()
                },
                vec![TOKEN],
                "SEMILAYER_GATEWAY_URL is not set",
            ),
        ] {
            let message = error(&settings, &variables);
            assert!(message.starts_with(name), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn numbers_are_checked_and_named() {
        let jobs = |n: &str| Settings {
            max_concurrent_jobs: Some(n.into()),
            ..settings()
        };
        assert!(error(&jobs("0"), &[TOKEN]).contains("SEMILAYER_MAX_CONCURRENT_JOBS is 0"));
        assert!(error(&jobs("many"), &[TOKEN]).contains("SEMILAYER_MAX_CONCURRENT_JOBS is `many`"));
        assert!(
            error(
                &Settings {
                    port: Some("70000".into()),
                    ..settings()
                },
                &[TOKEN]
            )
            .contains("PORT is `70000`")
        );
        let config = Config::resolve(&jobs("3"), &environment(&[TOKEN])).unwrap();
        assert_eq!(config.max_concurrent_jobs, 3);
        assert_eq!(
            Config::resolve(&settings(), &environment(&[TOKEN]))
                .unwrap()
                .max_concurrent_jobs,
            64
        );
    }

    #[test]
    fn every_form_of_the_gateways_address_leads_to_connect() {
        for (given, used) in [
            ("wss://g.example.com", "wss://g.example.com/connect"),
            ("wss://g.example.com/", "wss://g.example.com/connect"),
            ("wss://g.example.com/connect", "wss://g.example.com/connect"),
            (
                "https://g.example.com:8443/semi/",
                "wss://g.example.com:8443/semi/connect",
            ),
            ("g.example.com", "wss://g.example.com/connect"),
            ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/connect"),
            ("http://[::1]:8080", "ws://[::1]:8080/connect"),
            ("http://localhost:8080", "ws://localhost:8080/connect"),
        ] {
            assert_eq!(gateway_url_of(given, false).unwrap().as_str(), used);
        }
    }

    #[test]
    fn an_unencrypted_gateway_elsewhere_needs_insecure() {
        assert!(
            gateway_url_of("ws://g.example.com", false)
                .unwrap_err()
                .to_string()
                .contains("--insecure")
        );
        assert_eq!(
            gateway_url_of("ws://g.example.com", true).unwrap().as_str(),
            "ws://g.example.com/connect"
        );
        for bad in [
            "wss://u:p@g.example.com",
            "wss://g.example.com/connect?token=rk_x",
            "ftp://g",
            "wss://",
            "wss://a b",
        ] {
            assert!(gateway_url_of(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_comes_from_a_file_too_and_never_shows() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "rk_acme_secret\n").unwrap();
        let config = Config::resolve(
            &Settings {
                token_file: Some(file.path().into()),
                ..settings()
            },
            &Environment::default(),
        );
        let config = config.unwrap();
        assert_eq!(config.token.expose_secret(), "rk_acme_secret");
        assert!(!format!("{config:?}").contains("rk_acme_secret"));
        assert!(!format!("{:?}", environment(&[TOKEN])).contains("rk_acme_abc"));
        assert!(
            error(&settings(), &[("SEMILAYER_RUNNER_TOKEN", "rk a")]).contains("is not a token")
        );
    }

    #[test]
    fn labels_are_split_and_trimmed() {
        assert_eq!(labels(" eu, ,gpu "), ["eu", "gpu"]);
    }
}
