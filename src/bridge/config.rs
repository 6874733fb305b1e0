//! Reading the values of a source's configuration, with the aliases that configurations in the field use.

use std::time::Duration;

use serde_json::{Map, Value};

use super::BridgeError;
use super::request::invalid;

/// A source's configuration.
#[derive(Clone, Copy)]
pub(super) struct Config<'a>(pub(super) &'a Map<String, Value>);

impl Config<'_> {
    /// The first of `keys` that has a value, as text; a number is one too, since environment variables
    /// made only of digits arrive as numbers.
    pub(super) fn text(&self, keys: &[&str]) -> Result<Option<String>, BridgeError> {
        let Some((key, value)) = self.first(keys) else {
            return Ok(None);
        };
        match value {
            Value::String(text) if text.is_empty() => Ok(None),
            Value::String(text) => Ok(Some(text.clone())),
            Value::Number(number) => Ok(Some(number.to_string())),
            _ => Err(wrong(key, "a text")),
        }
    }

    /// Whether there is a value for that key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.first(&[key]).is_some_and(|(_, value)| *value != "")
    }

    /// A whole number.
    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>, BridgeError> {
        let Some((key, value)) = self.first(&[key]) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .or_else(|| value.as_str()?.trim().parse().ok());
        number.map(Some).ok_or_else(|| wrong(key, "a whole number"))
    }

    /// The port.
    pub(super) fn port(&self, default: u16) -> Result<u16, BridgeError> {
        match self.whole("port")? {
            None => Ok(default),
            Some(port) => u16::try_from(port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| wrong("port", "a port")),
        }
    }

    /// A boolean.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, BridgeError> {
        let Some((key, value)) = self.first(&[key]) else {
            return Ok(None);
        };
        match value {
            Value::Bool(flag) => Ok(Some(*flag)),
            Value::String(text) if matches!(text.as_str(), "true" | "1") => Ok(Some(true)),
            Value::String(text) if matches!(text.as_str(), "false" | "0" | "") => Ok(Some(false)),
            Value::Number(number) if number.as_u64() == Some(1) => Ok(Some(true)),
            Value::Number(number) if number.as_u64() == Some(0) => Ok(Some(false)),
            _ => Err(wrong(key, "true or false")),
        }
    }

    /// How long connecting may take; 0 means as long as it takes.
    pub(super) fn connect_timeout(&self) -> Result<Duration, BridgeError> {
        Ok(match self.whole("connectionTimeoutMillis")? {
            None => Duration::from_secs(10),
            Some(0) => Duration::from_secs(24 * 3600),
            Some(millis) => Duration::from_millis(millis),
        })
    }

    /// How many connections the source may have at once.
    pub(super) fn max_connections(&self) -> Result<Option<usize>, BridgeError> {
        let Some(connections) = self.whole("maxConnections")? else {
            return Ok(None);
        };
        let connections = usize::try_from(connections).ok();
        let connections = connections.filter(|connections| (1..=100).contains(connections));
        connections
            .map(Some)
            .ok_or_else(|| wrong("maxConnections", "between 1 and 100"))
    }

    fn first<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &Value)> {
        keys.iter()
            .find_map(|key| Some((*key, self.0.get(*key).filter(|value| !value.is_null())?)))
    }
}

fn wrong(key: &str, what: &str) -> BridgeError {
    invalid(
        format!("config.{key}"),
        format!("the source's `{key}` must be {what}"),
    )
}
