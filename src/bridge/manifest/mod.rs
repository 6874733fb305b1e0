//! The settings that each bridge has: forms are rendered from them, configurations checked against them,
//! and values from the environment typed by them.

mod fields;

use serde::Serialize;
use serde_json::{Map, Value};

use self::fields::MANIFESTS;
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
        None => return Err(manifest.unknown(key)),
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

    fn unknown(&self, key: &str) -> BridgeError {
        let mut known: Vec<_> = self.fields.iter().map(|field| field.key).collect();
        known.extend(self.supports_url.then_some("url"));
        let message = format!(
            "{} has no setting `{key}`: there are {}",
            self.display_name,
            known.join(", ")
        );
        invalid(format!("config.{key}"), message)
    }

    fn check(&self, key: &str, value: &Value) -> Result<(), BridgeError> {
        let kind = match self.field(key) {
            Some(field) => field.kind,
            None if self.supports_url && URL_KEYS.contains(&key) => FieldType::String,
            None => return Err(self.unknown(key)),
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

#[cfg(test)]
mod tests;
