//! What is shown of a source's configuration instead of its secrets, and what comes back of that.

use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};
use super::types::MASK;
use crate::bridge::manifest;

/// Puts the mask over the secrets of a configuration. Of a bridge that is not known, all is secret.
pub(super) fn mask(bridge: &str, mut config: Map<String, Value>) -> Map<String, Value> {
    let secret = manifest::secret_keys(bridge).ok();
    for (key, value) in &mut config {
        let hidden = secret
            .as_ref()
            .is_none_or(|secret| secret.contains(&key.as_str()));
        if hidden && !value.is_null() {
            *value = MASK.into();
        }
    }
    config
}

/// Puts the secrets that are known where a configuration holds only their mask.
pub(super) fn unmask(
    bridge: &str,
    mut config: Map<String, Value>,
    known: &Map<String, Value>,
) -> ApiResult<Map<String, Value>> {
    let secret = manifest::secret_keys(bridge)?;
    for (key, value) in &mut config {
        if *value == MASK && secret.contains(&key.as_str()) {
            let message = || {
                format!(
                    "`config.{key}` is masked, and there is no stored value that it could stand for"
                )
            };
            *value = known
                .get(key)
                .ok_or_else(|| ApiError::invalid(format!("config.{key}"), message()))?
                .clone();
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn secrets_are_masked_and_come_back_unchanged() {
        let config = map(json!({"host": "db", "user": "u", "password": "hunter2"}));
        let shown = mask("postgres", config.clone());
        assert_eq!(
            Value::Object(shown.clone()),
            json!({"host": "db", "user": "u", "password": MASK})
        );
        assert_eq!(unmask("postgres", shown, &config).unwrap(), config);
        let url = mask("postgres", map(json!({"url": "postgres://u:p@h/d"})));
        assert_eq!(url["url"], MASK, "a URL may hold a password");
    }

    #[test]
    fn a_mask_without_a_secret_behind_it_is_refused() {
        let error = unmask("postgres", map(json!({"password": MASK})), &Map::new()).unwrap_err();
        assert!(
            error.message().contains("config.password"),
            "{}",
            error.message()
        );
    }

    #[test]
    fn nothing_of_an_unknown_bridge_is_shown() {
        assert_eq!(mask("gone", map(json!({"host": "db"})))["host"], MASK);
    }
}
