//! The credentials of runner-local sources: `SEMILAYER_SOURCE_<NAME>_<KEY>`, taken apart with the help of
//! the names of the assigned sources. They never leave this process but towards the database itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};

use super::config::Environment;

const PREFIX: &str = "SEMILAYER_SOURCE_";

/// Why a source has no credentials here; the message goes to the caller as `SOURCE_UNREACHABLE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Two assigned sources have the same variables.
    #[error(
        "sources {} have the same variables {PREFIX}{variable}_*; rename one of them",
        quoted(names)
    )]
    Collision {
        /// The sources.
        names: Vec<String>,
        /// What their names become.
        variable: String,
    },
    /// No variable is set.
    #[error(
        "the runner has no credentials for source `{name}`: set {PREFIX}{variable}_URL (or one variable per field, \
         e.g. {PREFIX}{variable}_HOST) where the runner runs"
    )]
    Missing {
        /// The source.
        name: String,
        /// What its name becomes.
        variable: String,
    },
    /// A value is not of its field's type.
    #[error("{PREFIX}{variable}_{key}: {message}")]
    BadValue {
        /// What the source's name becomes.
        variable: String,
        /// The rest of the variable's name.
        key: String,
        /// What is wrong; never the value.
        message: String,
    },
}

/// Types the text of a variable as its bridge wants it: (bridge, config key, text).
pub type Typed<'a> = &'a dyn Fn(&str, &str, &str) -> Result<Value, String>;

/// Every `SEMILAYER_SOURCE_*` variable, without the prefix.
#[derive(Clone, Default)]
pub struct Credentials(Arc<BTreeMap<String, SecretString>>);

impl Credentials {
    /// Takes the variables over.
    pub fn from_environment(environment: &Environment) -> Self {
        let variables = environment
            .with_prefix(PREFIX)
            .map(|(rest, value)| (rest.to_owned(), value.clone()));
        Self(Arc::new(variables.collect()))
    }

    /// The configuration of `source`, by the keys of its bridge's manifest.
    ///
    /// `assigned` are the names of all sources that the runner serves: the longest that fits owns a
    /// variable, so that `a` does not take what belongs to `a-b`.
    ///
    /// # Errors
    ///
    /// When two assigned sources share their variables, none is set, or a value is of the wrong type.
    pub fn config_of<'a>(
        &self,
        source: &str,
        bridge: &str,
        assigned: impl Iterator<Item = &'a str> + Clone,
        typed: Typed<'_>,
    ) -> Result<Map<String, Value>, CredentialsError> {
        let variable = variable_of(source);
        let mut names: Vec<String> = assigned
            .clone()
            .filter(|name| variable_of(name) == variable && *name != source)
            .map(str::to_owned)
            .collect();
        if !names.is_empty() {
            names.push(source.to_owned());
            names.sort();
            return Err(CredentialsError::Collision { names, variable });
        }
        let longer: Vec<String> = assigned
            .map(|name| format!("{}_", variable_of(name)))
            .filter(|other| {
                other.len() > variable.len() + 1 && other.starts_with(&format!("{variable}_"))
            })
            .collect();
        let mut config = Map::new();
        for (name, value) in self.0.iter() {
            let Some(key) = name
                .strip_prefix(&variable)
                .and_then(|rest| rest.strip_prefix('_'))
            else {
                continue;
            };
            if key.is_empty() || longer.iter().any(|other| name.starts_with(other)) {
                continue;
            }
            let config_key = camel_case(key);
            let text = value.expose_secret();
            if text.is_empty() {
                continue;
            }
            match typed(bridge, &config_key, text) {
                Ok(value) => {
                    config.insert(config_key, value);
                }
                // What would be a setting of a longer name is that source's, whoever serves it.
                Err(_) if is_anothers(key, |key| typed(bridge, key, text).is_ok()) => {}
                Err(message) => {
                    return Err(CredentialsError::BadValue {
                        variable,
                        key: key.to_owned(),
                        message,
                    });
                }
            }
        }
        if config.is_empty() {
            return Err(CredentialsError::Missing {
                name: source.to_owned(),
                variable,
            });
        }
        Ok(config)
    }
}

impl fmt::Debug for Credentials {
    /// Names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A source's name as it stands in variables.
fn variable_of(source: &str) -> String {
    source
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

/// Whether the end of a variable's name, behind one of its underscores, is a setting.
fn is_anothers(key: &str, is_setting: impl Fn(&str) -> bool) -> bool {
    key.match_indices('_')
        .any(|(at, _)| is_setting(&camel_case(&key[at + 1..])))
}

/// `ACCESS_KEY_ID` → `accessKeyId`.
fn camel_case(key: &str) -> String {
    let mut words = key.split('_').filter(|word| !word.is_empty());
    let mut out = words.next().unwrap_or_default().to_lowercase();
    for word in words {
        let (first, rest) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
        out.push_str(&first.to_uppercase());
        out.push_str(&rest.to_lowercase());
    }
    out
}

fn quoted(names: &[String]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the shape of Typed")]
    fn text(_: &str, _: &str, text: &str) -> Result<Value, String> {
        Ok(Value::from(text))
    }

    fn config(
        variables: &[(&str, &str)],
        source: &str,
        assigned: &[&str],
    ) -> Result<Value, CredentialsError> {
        let environment = variables
            .iter()
            .map(|(k, v)| (format!("{PREFIX}{k}"), (*v).to_owned()))
            .collect();
        Credentials::from_environment(&environment)
            .config_of(source, "postgres", assigned.iter().copied(), &text)
            .map(Value::Object)
    }

    #[test]
    fn keys_become_camel_case() {
        for (key, camel) in [
            ("URL", "url"),
            ("ACCESS_KEY_ID", "accessKeyId"),
            ("SERVICE_ACCOUNT_EMAIL", "serviceAccountEmail"),
            ("_X__Y_", "xY"),
        ] {
            assert_eq!(camel_case(key), camel);
        }
    }

    #[test]
    fn names_become_upper_case_with_underscores() {
        assert_eq!(variable_of("primary-db.eu 1"), "PRIMARY_DB_EU_1");
        assert_eq!(
            variable_of("größe"),
            "GR__E",
            "one underscore for each character that is not A-Z or 0-9"
        );
    }

    #[test]
    fn the_longest_assigned_name_owns_a_variable() {
        let variables = [("A_URL", "a"), ("A_B_URL", "b"), ("A_B_HOST", "h")];
        let both = ["a", "a-b"];
        assert_eq!(
            config(&variables, "a", &both),
            Ok(serde_json::json!({"url": "a"}))
        );
        assert_eq!(
            config(&variables, "a-b", &both),
            Ok(serde_json::json!({"host": "h", "url": "b"}))
        );
        assert_eq!(
            config(&variables, "a", &["a"]),
            Ok(serde_json::json!({"bHost": "h", "bUrl": "b", "url": "a"})),
            "nobody else claims them"
        );
    }

    #[test]
    fn sources_that_share_their_variables_both_fail_and_the_others_go_on() {
        let variables = [("A_B_URL", "x"), ("C_URL", "c")];
        let assigned = ["a-b", "a_b", "c"];
        for name in ["a-b", "a_b"] {
            let error = config(&variables, name, &assigned).unwrap_err().to_string();
            assert!(
                error.contains("`a-b` and `a_b`") && error.contains("SEMILAYER_SOURCE_A_B_"),
                "{error}"
            );
        }
        assert_eq!(
            config(&variables, "c", &assigned),
            Ok(serde_json::json!({"url": "c"}))
        );
    }

    #[test]
    fn a_source_without_variables_says_which_to_set() {
        let error = config(&[("OTHER_URL", "x")], "primary-db", &["primary-db"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("SEMILAYER_SOURCE_PRIMARY_DB_URL"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_variable() {
        let environment = [(format!("{PREFIX}A_SSL"), "perhaps".to_owned())]
            .into_iter()
            .collect();
        let typed = |_: &str, _: &str, _: &str| Err("must be true or false".to_owned());
        let error = Credentials::from_environment(&environment).config_of(
            "a",
            "postgres",
            ["a"].into_iter(),
            &typed,
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "SEMILAYER_SOURCE_A_SSL: must be true or false"
        );
    }
}
