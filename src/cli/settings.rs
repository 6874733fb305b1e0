//! The settings of a source: where a person gives them, and the types that the bridge's manifest asks for.

use clap::Args;
use serde_json::{Map, Value, json};

use super::input::{self, Hidden};
use super::output::text;
use super::{CliError, Session};

/// How to reach a database. Passwords do not belong on a command line, which every user of the machine can see.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// The connection URL; `-` reads it from standard input
    #[arg(long)]
    url: Option<String>,
    /// One setting, e.g. `--set host=db.internal`
    #[arg(long, value_name = "KEY=VALUE", value_parser = input::pair)]
    set: Vec<(String, String)>,
    /// One setting from an environment variable, e.g. `--set-env password=PGPASSWORD`
    #[arg(long, value_name = "KEY=VARIABLE", value_parser = input::pair)]
    set_env: Vec<(String, String)>,
    /// One setting read from standard input, e.g. `--set-stdin password`
    #[arg(long, value_name = "KEY", conflicts_with = "config")]
    set_stdin: Option<String>,
    /// All settings as a JSON object in a file; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
}

impl ConfigArgs {
    /// What was given, each value still as typed.
    pub(super) fn read(self) -> Result<Map<String, Value>, CliError> {
        let mut config = match &self.config {
            Some(file) => match input::json_file(file)? {
                Value::Object(config) => config,
                _ => {
                    return Err(CliError::usage(format!(
                        "{file}: it must hold a JSON object"
                    )));
                }
            },
            None => Map::new(),
        };
        match self.url.as_deref() {
            Some("-") if self.set_stdin.is_some() || self.config.as_deref() == Some("-") => {
                return Err(CliError::usage(
                    "standard input can be read for one setting only",
                ));
            }
            Some("-") => {
                config.insert("url".into(), input::standard_input()?.trim().into());
            }
            Some(url) => {
                config.insert("url".into(), url.into());
            }
            None => {}
        }
        config.extend(self.set.into_iter().map(|(key, value)| (key, value.into())));
        for (key, name) in self.set_env {
            config.insert(key, input::variable(&name)?.into());
        }
        if let Some(key) = self.set_stdin {
            let value = input::standard_input()?;
            config.insert(key, value.trim_end_matches(['\r', '\n']).into());
        }
        Ok(config)
    }
}

/// What the bridge says about its settings; `None` for a bridge that the server does not describe.
pub(super) async fn manifest(session: &Session, bridge: &str) -> Result<Option<Value>, CliError> {
    let answer = session.client.get(&["v1", "bridge-manifests"], &[]).await?;
    let manifests = answer["items"].as_array().cloned().unwrap_or_default();
    let short = |name: &str| name.trim_start_matches("@semilayer/bridge-").to_owned();
    Ok(manifests
        .into_iter()
        .find(|manifest| short(&text(manifest, "packageName")) == short(bridge)))
}

fn fields(manifest: Option<&Value>) -> impl Iterator<Item = &Value> {
    manifest
        .and_then(|manifest| manifest["fields"].as_array())
        .into_iter()
        .flatten()
}

/// Asks for the required settings that are still missing, when there is somebody to ask.
pub(super) async fn ask_for_missing(
    config: &mut Map<String, Value>,
    manifest: Option<&Value>,
) -> Result<(), CliError> {
    if !input::can_ask() || config.contains_key("url") {
        return Ok(());
    }
    for field in fields(manifest).filter(|field| field["required"] == json!(true)) {
        let key = text(field, "key");
        if config.contains_key(&key) || !field["default"].is_null() {
            continue;
        }
        let hidden = if field["type"] == json!("password") {
            Hidden::Yes
        } else {
            Hidden::No
        };
        config.insert(key, input::ask(&text(field, "label"), hidden).await?.into());
    }
    Ok(())
}

/// Gives each text the type that the bridge's manifest names; the server judges the rest.
pub(super) fn typed(
    config: Map<String, Value>,
    manifest: Option<&Value>,
) -> Result<Map<String, Value>, CliError> {
    let typed = |(key, value): (String, Value)| {
        let Value::String(given) = &value else {
            return Ok((key, value));
        };
        let kind = fields(manifest)
            .find(|field| field["key"] == json!(key))
            .map(|field| text(field, "type"));
        let value = match kind.as_deref() {
            Some("number") => serde_json::from_str::<serde_json::Number>(given)
                .map(Value::Number)
                .ok(),
            Some("boolean") => match given.as_str() {
                "true" | "1" => Some(true.into()),
                "false" | "0" => Some(false.into()),
                _ => None,
            },
            _ => Some(value.clone()),
        };
        match (value, kind) {
            (Some(value), _) => Ok((key, value)),
            (None, kind) => Err(CliError::usage(format!(
                "setting `{key}` must be a {}, not `{given}`",
                kind.unwrap_or_default()
            ))),
        }
    };
    config.into_iter().map(typed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Map<String, Value>, CliError> {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            config: ConfigArgs,
        }
        let flags: Flags = clap::Parser::parse_from([&["sources"], args].concat());
        flags.config.read()
    }

    #[test]
    fn settings_take_the_types_of_the_manifest() {
        let manifest = json!({ "fields": [
            { "key": "port", "type": "number" },
            { "key": "ssl", "type": "boolean" },
            { "key": "password", "type": "password" },
        ]});
        let given = config(&[
            "--set",
            "port=5432",
            "--set",
            "ssl=true",
            "--set",
            "password=0042",
            "--set",
            "extra=7",
        ]);
        let typed = typed(given.unwrap(), Some(&manifest)).unwrap();
        assert_eq!(
            Value::Object(typed),
            json!({ "port": 5432, "ssl": true, "password": "0042", "extra": "7" })
        );
    }

    #[test]
    fn a_setting_of_the_wrong_type_is_named() {
        let manifest = json!({ "fields": [{ "key": "port", "type": "number" }] });
        let error = typed(config(&["--set", "port=five"]).unwrap(), Some(&manifest))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "setting `port` must be a number, not `five`");
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let error = config(&["--set-env", "password=SEMILAYER_TEST_UNSET"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("SEMILAYER_TEST_UNSET"), "{error}");
    }
}
