//! The settings that each bridge has: forms are rendered from them, configurations checked against them,
//! and values from the environment typed by them.

use serde::Serialize;
use serde_json::{Map, Value};

use super::BridgeError;
use super::config::Config;
use super::mysql::MySql;
use super::postgres::Postgres;
use super::request::invalid;

/// What the package name of a bridge starts with.
const PACKAGE_PREFIX: &str = "@semilayer/bridge-";

/// The settings of one bridge.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "gateway", derive(utoipa::ToSchema), schema(as = BridgeManifest))]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// `@semilayer/bridge-<name>`.
    pub package_name: &'static str,
    /// The database's name for people.
    pub display_name: &'static str,
    /// Whether a `url` can stand for the fields.
    pub supports_url: bool,
    /// What such a URL looks like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_placeholder: Option<&'static str>,
    /// The settings, in the order of the form.
    pub fields: &'static [Field],
}

/// One setting of a bridge.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(feature = "gateway", derive(utoipa::ToSchema), schema(as = BridgeField))]
pub struct Field {
    /// Its key in the configuration.
    pub key: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// What its value is.
    #[serde(rename = "type")]
    pub kind: FieldType,
    /// Whether it must be there, unless there is a `url`.
    pub required: bool,
    /// Its value when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<Default>,
    /// An example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<&'static str>,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'static str>,
    /// Where in the form it is.
    pub group: Group,
    /// Other keys that configurations in the field use for it.
    #[serde(skip)]
    aliases: &'static [&'static str],
}

/// What a setting's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "gateway", derive(utoipa::ToSchema), schema(as = BridgeFieldType))]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// A text.
    String,
    /// A text that nobody may read.
    Password,
    /// A number.
    Number,
    /// True or false.
    Boolean,
}

/// A setting's value when there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "gateway", derive(utoipa::ToSchema), schema(as = BridgeFieldDefault))]
#[serde(untagged)]
pub enum Default {
    /// A number.
    Number(u32),
    /// True or false.
    Boolean(bool),
}

/// Where in the form a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "gateway", derive(utoipa::ToSchema), schema(as = BridgeFieldGroup))]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Shown at once.
    Primary,
    /// Shown on demand.
    Advanced,
}

/// The implementations behind the manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Postgres,
    MySql,
    Sqlite,
}

impl Kind {
    /// What only the bridge itself knows of its settings: what is in a URL, and what goes with what.
    fn check(self, config: &Map<String, Value>) -> Result<(), BridgeError> {
        match self {
            Self::Postgres => Postgres::check(config),
            Self::MySql => MySql::check(config),
            Self::Sqlite => Ok(()),
        }
    }

    /// The implementation of a bridge, by its short name or its package name.
    pub(super) fn of(bridge: &str) -> Result<Self, BridgeError> {
        let manifest = of(bridge)?;
        Ok(
            match manifest.package_name.trim_start_matches(PACKAGE_PREFIX) {
                "postgres" => Self::Postgres,
                "sqlite" => Self::Sqlite,
                _ => Self::MySql,
            },
        )
    }
}

/// A bridge's name without the prefix of its package.
pub fn short_name(bridge: &str) -> &str {
    bridge.strip_prefix(PACKAGE_PREFIX).unwrap_or(bridge)
}

/// A bridge's name with the prefix of its package.
pub fn package_name(bridge: &str) -> String {
    format!("{PACKAGE_PREFIX}{}", short_name(bridge))
}

/// The manifests of all bridges.
pub fn all() -> &'static [Manifest] {
    MANIFESTS
}

/// The manifest of a bridge, by its short name or its package name.
pub fn of(bridge: &str) -> Result<&'static Manifest, BridgeError> {
    let short = bridge.strip_prefix(PACKAGE_PREFIX).unwrap_or(bridge);
    let found = MANIFESTS
        .iter()
        .find(|manifest| manifest.short_name() == short);
    found.ok_or_else(|| {
        let available: Vec<_> = MANIFESTS.iter().map(Manifest::short_name).collect();
        invalid(
            "bridge",
            format!(
                "unknown bridge `{bridge}`: available are {}",
                available.join(", ")
            ),
        )
    })
}

/// The keys of a bridge whose values are secret: passwords, and URLs, which may hold one.
pub fn secret_keys(bridge: &str) -> Result<Vec<&'static str>, BridgeError> {
    let manifest = of(bridge)?;
    let passwords = manifest
        .fields
        .iter()
        .filter(|field| field.kind == FieldType::Password);
    let mut keys: Vec<_> = passwords
        .flat_map(|field| std::iter::once(&field.key).chain(field.aliases))
        .copied()
        .collect();
    if manifest.supports_url {
        keys.extend(URL_KEYS);
    }
    Ok(keys)
}

/// Checks a configuration: every key known, every value of its type, everything there that must be.
pub fn validate(bridge: &str, config: &Map<String, Value>) -> Result<(), BridgeError> {
    let manifest = of(bridge)?;
    for (key, value) in config.iter().filter(|(_, value)| !value.is_null()) {
        manifest.check(key, value)?;
    }
    Config(config).max_connections()?;
    let present =
        |key: &str| !matches!(config.get(key), None | Some(Value::Null)) && config[key] != "";
    if manifest.supports_url && URL_KEYS.iter().any(|key| present(key)) {
        return Kind::of(bridge)?.check(config);
    }
    check_required(manifest, &present)?;
    Kind::of(bridge)?.check(config)
}

fn check_required(manifest: &Manifest, present: &dyn Fn(&str) -> bool) -> Result<(), BridgeError> {
    for field in manifest.fields.iter().filter(|field| field.required) {
        if !present(field.key) && !field.aliases.iter().any(|key| present(key)) {
            let or_url = if manifest.supports_url {
                ", or a `url`"
            } else {
                ""
            };
            let name = manifest.display_name;
            return Err(invalid(
                format!("config.{}", field.key),
                format!("{name} needs `{}`{or_url}", field.key),
            ));
        }
    }
    Ok(())
}

/// The value that a text from the environment has for a key of a bridge.
pub fn typed_value(bridge: &str, key: &str, text: &str) -> Result<Value, BridgeError> {
    let manifest = of(bridge)?;
    let kind = match manifest.field(key) {
        Some(field) => field.kind,
        None if manifest.supports_url && URL_KEYS.contains(&key) => FieldType::String,
        None => {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = text.parse::<u64>().ok().filter(|_| digits);
            return Ok(number.map_or_else(|| Value::from(text), Value::from));
        }
    };
    match kind {
        FieldType::String | FieldType::Password => Ok(Value::from(text)),
        FieldType::Number => match text.trim().parse::<u64>() {
            Ok(number) => Ok(Value::from(number)),
            Err(_) => Err(invalid(
                format!("config.{key}"),
                format!("`{key}` must be a whole number"),
            )),
        },
        FieldType::Boolean => match text.trim() {
            "true" | "1" => Ok(Value::from(true)),
            "false" | "0" => Ok(Value::from(false)),
            _ => Err(invalid(
                format!("config.{key}"),
                format!("`{key}` must be true or false"),
            )),
        },
    }
}

/// The keys that stand for all fields.
const URL_KEYS: [&str; 2] = ["url", "connectionString"];

impl Manifest {
    /// The bridge's short name, such as `postgres`.
    pub fn short_name(&self) -> &'static str {
        self.package_name.trim_start_matches(PACKAGE_PREFIX)
    }

    fn field(&self, key: &str) -> Option<&Field> {
        self.fields
            .iter()
            .find(|field| field.key == key || field.aliases.contains(&key))
    }

    fn check(&self, key: &str, value: &Value) -> Result<(), BridgeError> {
        let kind = match self.field(key) {
            Some(field) => field.kind,
            None if self.supports_url && URL_KEYS.contains(&key) => FieldType::String,
            None => {
                let mut known: Vec<_> = self.fields.iter().map(|field| field.key).collect();
                known.extend(self.supports_url.then_some("url"));
                let message = format!(
                    "{} has no setting `{key}`: there are {}",
                    self.display_name,
                    known.join(", ")
                );
                return Err(invalid(format!("config.{key}"), message));
            }
        };
        let (fits, what) = match kind {
            FieldType::String | FieldType::Password => (value.is_string(), "a text"),
            FieldType::Number => (value.is_u64(), "a whole number"),
            FieldType::Boolean => (value.is_boolean(), "true or false"),
        };
        if fits {
            Ok(())
        } else {
            Err(invalid(
                format!("config.{key}"),
                format!("`{key}` must be {what}"),
            ))
        }
    }
}

const fn field(key: &'static str, label: &'static str, kind: FieldType, required: bool) -> Field {
    Field {
        key,
        label,
        kind,
        required,
        default: None,
        placeholder: None,
        hint: None,
        group: Group::Primary,
        aliases: &[],
    }
}

const fn server_fields(port: u32, host: &'static str) -> [Field; 5] {
    [
        Field {
            placeholder: Some(host),
            ..field("host", "Host", FieldType::String, true)
        },
        Field {
            default: Some(Default::Number(port)),
            ..field("port", "Port", FieldType::Number, false)
        },
        Field {
            aliases: &["db"],
            ..field("database", "Database", FieldType::String, true)
        },
        Field {
            aliases: &["username"],
            ..field("user", "User", FieldType::String, true)
        },
        Field {
            aliases: &["pass"],
            ..field("password", "Password", FieldType::Password, true)
        },
    ]
}

const SSL: Field = Field {
    default: Some(Default::Boolean(false)),
    hint: Some("Encrypts the connection and checks the server's certificate"),
    group: Group::Advanced,
    ..field("ssl", "TLS", FieldType::Boolean, false)
};

const SSL_MODE: Field = Field {
    hint: Some("disable, allow, prefer, require, verify-ca or verify-full"),
    group: Group::Advanced,
    ..field("sslMode", "TLS mode", FieldType::String, false)
};

const CA_CERTIFICATE: Field = Field {
    hint: Some("PEM text, or the path of a file where the query runs; alone it means verify-full"),
    group: Group::Advanced,
    ..field(
        "caCertificate",
        "Certificate authority",
        FieldType::String,
        false,
    )
};

const CLIENT_CERTIFICATE: Field = Field {
    hint: Some("PEM text, or the path of a file where the query runs"),
    group: Group::Advanced,
    ..field(
        "clientCertificate",
        "Client certificate",
        FieldType::String,
        false,
    )
};

const CLIENT_KEY: Field = Field {
    hint: Some("PEM text, or the path of a file where the query runs"),
    group: Group::Advanced,
    ..field(
        "clientKey",
        "Key of the client certificate",
        FieldType::Password,
        false,
    )
};

const IP_FAMILY: Field = Field {
    default: Some(Default::Number(4)),
    hint: Some("4, 6, or 0 for whatever the name has"),
    group: Group::Advanced,
    ..field("ipFamily", "IP version", FieldType::Number, false)
};

const CONNECTION_TIMEOUT: Field = Field {
    default: Some(Default::Number(10_000)),
    hint: Some("0 waits until the query's deadline"),
    group: Group::Advanced,
    ..field(
        "connectionTimeoutMillis",
        "Connection timeout (ms)",
        FieldType::Number,
        false,
    )
};

const POSTGRES_FIELDS: [Field; 13] = {
    let [host, port, database, user, password] = server_fields(5432, "db.internal");
    [
        host,
        port,
        database,
        user,
        password,
        SSL,
        SSL_MODE,
        CA_CERTIFICATE,
        CLIENT_CERTIFICATE,
        CLIENT_KEY,
        IP_FAMILY,
        CONNECTION_TIMEOUT,
        MAX_CONNECTIONS,
    ]
};

const MYSQL_FIELDS: [Field; 13] = {
    let [host, port, database, user, password] = server_fields(3306, "db.internal");
    [
        host,
        port,
        database,
        user,
        password,
        SSL,
        Field {
            hint: Some("DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY"),
            ..SSL_MODE
        },
        CA_CERTIFICATE,
        CLIENT_CERTIFICATE,
        CLIENT_KEY,
        IP_FAMILY,
        CONNECTION_TIMEOUT,
        MAX_CONNECTIONS,
    ]
};

const MAX_CONNECTIONS: Field = Field {
    default: Some(Default::Number(4)),
    hint: Some("How many queries run at once from each runner, 1 to 100; others wait their turn"),
    group: Group::Advanced,
    ..field("maxConnections", "Connections", FieldType::Number, false)
};

const SQLITE_FIELDS: [Field; 2] = [
    Field {
        placeholder: Some("/var/lib/app/data.db"),
        hint: Some("A file on the machine that runs the query; it is opened read-only"),
        ..field("path", "Path", FieldType::String, true)
    },
    MAX_CONNECTIONS,
];

const MANIFESTS: &[Manifest] = &[
    Manifest {
        package_name: "@semilayer/bridge-postgres",
        display_name: "PostgreSQL",
        supports_url: true,
        url_placeholder: Some("postgres://user:password@host:5432/database?sslmode=verify-full"),
        fields: &POSTGRES_FIELDS,
    },
    Manifest {
        package_name: "@semilayer/bridge-mysql",
        display_name: "MySQL",
        supports_url: true,
        url_placeholder: Some("mysql://user:password@host:3306/database"),
        fields: &MYSQL_FIELDS,
    },
    Manifest {
        package_name: "@semilayer/bridge-mariadb",
        display_name: "MariaDB",
        supports_url: true,
        url_placeholder: Some("mysql://user:password@host:3306/database"),
        fields: &MYSQL_FIELDS,
    },
    Manifest {
        package_name: "@semilayer/bridge-sqlite",
        display_name: "SQLite",
        supports_url: false,
        url_placeholder: None,
        fields: &SQLITE_FIELDS,
    },
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: &Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn manifests_serialise_in_the_documented_form() {
        let postgres = serde_json::to_value(of("postgres").unwrap()).unwrap();
        assert_eq!(postgres["packageName"], "@semilayer/bridge-postgres");
        assert_eq!(postgres["supportsUrl"], true);
        let port = json!({
            "key": "port", "label": "Port", "type": "number", "required": false, "default": 5432, "group": "primary"
        });
        assert_eq!(postgres["fields"][1], port);
        let password = json!({
            "key": "password", "label": "Password", "type": "password", "required": true, "group": "primary"
        });
        assert_eq!(postgres["fields"][4], password);
    }

    #[test]
    fn configurations_are_checked_key_by_key() {
        let fields = json!({"host": "h", "database": "d", "user": "u", "password": "007", "port": 5432, "ssl": true});
        assert_eq!(validate("postgres", &map(&fields)), Ok(()));
        assert_eq!(
            validate("mariadb", &map(&json!({"url": "mysql://h/d"}))),
            Ok(())
        );
        assert_eq!(
            validate("@semilayer/bridge-sqlite", &map(&json!({"path": "/x"}))),
            Ok(())
        );
        let aliases = json!({"host": "h", "db": "d", "username": "u", "pass": "p"});
        assert_eq!(validate("mysql", &map(&aliases)), Ok(()));
        for (bridge, config, wrong) in [
            (
                "postgres",
                json!({"host": "h", "database": "d", "user": "u"}),
                "config.password",
            ),
            ("postgres", json!({"url": "u", "hots": "h"}), "config.hots"),
            (
                "postgres",
                json!({"url": "u", "port": "5432"}),
                "config.port",
            ),
            ("postgres", json!({"url": "u", "ssl": "true"}), "config.ssl"),
            ("postgres", json!({"url": 5}), "config.url"),
            ("sqlite", json!({}), "config.path"),
            ("sqlite", json!({"path": "/x", "url": "u"}), "config.url"),
            ("oracle", json!({}), "bridge"),
        ] {
            let error = validate(bridge, &map(&config)).unwrap_err();
            assert!(
                matches!(&error, BridgeError::Invalid { path, .. } if path == wrong),
                "{config}: {error:?}"
            );
        }
    }

    /// The settings as the documentation lists them.
    fn table(bridge: &str) -> String {
        let mut out = "| setting | type | default | what it is |\n|---|---|---|---|\n".to_owned();
        for field in of(bridge).unwrap().fields {
            let keys = std::iter::once(&field.key).chain(field.aliases);
            let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
            let kind = serde_json::to_value(field.kind).unwrap();
            let default = match field.default {
                Some(Default::Number(number)) => format!("`{number}`"),
                Some(Default::Boolean(flag)) => format!("`{flag}`"),
                None if field.required => "required".to_owned(),
                None => String::new(),
            };
            let hint = field
                .hint
                .map_or_else(String::new, |hint| format!(": {hint}"));
            out.push_str(&format!(
                "| {} | {} | {default} | {}{hint} |\n",
                keys.join(", "),
                kind.as_str().unwrap(),
                field.label
            ));
        }
        out
    }

    #[test]
    fn the_documentation_lists_every_setting() {
        let documented = include_str!("../../docs/databases.md");
        for bridge in ["postgres", "mysql", "mariadb", "sqlite"] {
            let table = table(bridge);
            assert!(
                documented.contains(&table),
                "{bridge}: docs/databases.md must contain\n{table}"
            );
        }
    }

    #[test]
    fn what_a_url_says_is_checked_before_anything_is_stored() {
        let postgres = |rest: &str| json!({"url": format!("postgres://u:p@h/d{rest}")});
        let mysql = |rest: &str| json!({"url": format!("mysql://u:p@h/d{rest}")});
        for (bridge, config) in [
            ("postgres", postgres("?sslmode=verify-ca&connect_timeout=5")),
            (
                "postgres",
                postgres("?target_session_attrs=any&channel_binding=prefer"),
            ),
            (
                "postgres",
                json!({"url": "postgres://h/d", "user": "u", "port": 1, "sslMode": "allow"}),
            ),
            ("mysql", mysql("?ssl-mode=VERIFY_CA")),
            (
                "mysql",
                json!({"url": "mysql://h/d", "user": "u", "port": 1, "sslMode": "PREFERRED"}),
            ),
            (
                "postgres",
                json!({"url": "postgres://u@h/d", "caCertificate": "/etc/ca.pem"}),
            ),
            ("sqlite", json!({"path": "/x", "maxConnections": 100})),
        ] {
            assert_eq!(validate(bridge, &map(&config)), Ok(()), "{config}");
        }
        let both = |bridge: &str, key: &str, value: Value| {
            let url = format!("{bridge}://u:p@h:1/d?ssl=true");
            json!({"url": url, key: value})
        };
        let mut wrong = vec![
            (
                "postgres",
                json!({"url": "postgres://u@a,b/d"}),
                "config.url",
                "several hosts",
            ),
            (
                "postgres",
                json!({"url": "postgres://u@h:0/d"}),
                "config.url",
                "port",
            ),
            (
                "postgres",
                json!({"url": "postgres://u@h:70000/d"}),
                "config.url",
                "port",
            ),
            (
                "postgres",
                postgres("?sslmode=maybe"),
                "config.url",
                "verify-full",
            ),
            ("mysql", mysql("?ssl-mode=maybe"), "config.url", "VERIFY_CA"),
            (
                "mysql",
                json!({"url": "mysql://a,b/d"}),
                "config.url",
                "several hosts",
            ),
            (
                "postgres",
                json!({"url": "postgres://u@h/d", "port": 70000}),
                "config.port",
                "port",
            ),
            (
                "postgres",
                json!({"url": "postgres://u@h/d", "sslMode": "x"}),
                "config.sslMode",
                "prefer",
            ),
            (
                "mysql",
                json!({"url": "mysql://h/d", "sslMode": "allow"}),
                "config.sslMode",
                "PREFERRED",
            ),
            (
                "mysql",
                json!({"url": "mysql://h/d", "caCertificate": "x"}),
                "config.caCertificate",
                "PEM",
            ),
            (
                "mysql",
                json!({"url": "mysql://h/d", "clientKey": "/k"}),
                "config.clientCertificate",
                "clientKey",
            ),
            (
                "sqlite",
                json!({"path": "/x", "maxConnections": 0}),
                "config.maxConnections",
                "100",
            ),
        ];
        for parameter in [
            "options=x",
            "service=x",
            "target_session_attrs=primary",
            "channel_binding=require",
            "gssencmode=require",
            "sslnegotiation=direct",
            "sslcrl=x",
            "passfile=x",
        ] {
            let name = parameter.split('=').next().unwrap();
            wrong.push((
                "postgres",
                postgres(&format!("?{parameter}")),
                "config.url",
                name,
            ));
        }
        for parameter in ["socket=/x", "compression=zstd", "charset=utf8"] {
            let name = parameter.split('=').next().unwrap();
            wrong.push(("mysql", mysql(&format!("?{parameter}")), "config.url", name));
        }
        for bridge in ["postgres", "mysql"] {
            for (key, path) in [
                ("host", "config.host"),
                ("user", "config.user"),
                ("username", "config.username"),
                ("password", "config.password"),
                ("database", "config.database"),
                ("db", "config.db"),
                ("sslMode", "config.sslMode"),
            ] {
                wrong.push((
                    bridge,
                    both(bridge, key, json!("disable")),
                    path,
                    "given in `url` already",
                ));
            }
            wrong.push((
                bridge,
                both(bridge, "port", json!(1)),
                "config.port",
                "given in `url` already",
            ));
            wrong.push((
                bridge,
                both(bridge, "ssl", json!(true)),
                "config.ssl",
                "given in `url` already",
            ));
        }
        for (bridge, config, path, words) in wrong {
            match validate(bridge, &map(&config)).unwrap_err() {
                BridgeError::Invalid {
                    path: found,
                    message,
                } => {
                    assert_eq!(found, path, "{config}: {message}");
                    assert!(message.contains(words), "{config}: {message}");
                }
                other => panic!("{config}: {other:?}"),
            }
        }
    }

    #[test]
    fn texts_of_the_environment_are_typed_by_the_manifest() {
        for (key, text, value) in [
            ("password", "007", json!("007")),
            ("username", "42", json!("42")),
            ("url", "1", json!("1")),
            ("port", "5433", json!(5433)),
            ("ssl", "1", json!(true)),
            ("ssl", "false", json!(false)),
            ("unheardOf", "12", json!(12)),
            ("unheardOf", "12a", json!("12a")),
            ("unheardOf", "-1", json!("-1")),
            (
                "unheardOf",
                "99999999999999999999",
                json!("99999999999999999999"),
            ),
            ("unheardOf", "", json!("")),
        ] {
            assert_eq!(
                typed_value("postgres", key, text),
                Ok(value),
                "{key}={text}"
            );
        }
        for (key, text) in [("ssl", "yes"), ("port", "5432x")] {
            assert!(typed_value("postgres", key, text).is_err(), "{key}={text}");
        }
    }

    #[test]
    fn secrets_are_passwords_and_urls() {
        assert_eq!(
            secret_keys("postgres").unwrap(),
            ["password", "pass", "clientKey", "url", "connectionString"]
        );
        assert_eq!(secret_keys("sqlite").unwrap(), Vec::<&str>::new());
    }
}
