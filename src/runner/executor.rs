//! What the runner needs of the bridges, as a trait: tests put a database in its place that streams,
//! waits and fails on command.

use async_trait::async_trait;
use serde_json::Value;

use crate::bridge::{
    BridgeError, BridgeOptions, Bridges, Execution, Outcome, RowSink, Source, manifest,
};
use crate::query::operation::Operation;

use super::config::Config;

/// Executes operations on sources.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// The packages of the bridges there are.
    fn capabilities(&self) -> Vec<String>;

    /// The value that a variable's text has for a key of a bridge's configuration.
    ///
    /// # Errors
    ///
    /// When the text is not of the key's type; the message holds no value.
    fn typed_value(&self, bridge: &str, key: &str, text: &str) -> Result<Value, String>;

    /// Executes one operation; rows go to `sink`.
    async fn execute(
        &self,
        source: &Source,
        operation: &Operation,
        execution: &Execution,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, BridgeError>;
}

#[async_trait]
impl Executor for Bridges {
    fn capabilities(&self) -> Vec<String> {
        Self::capabilities()
    }

    fn typed_value(&self, bridge: &str, key: &str, text: &str) -> Result<Value, String> {
        manifest::typed_value(bridge, key, text).map_err(|e| e.to_string())
    }

    async fn execute(
        &self,
        source: &Source,
        operation: &Operation,
        execution: &Execution,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, BridgeError> {
        self.execute(source, operation, execution, sink).await
    }
}

/// The bridges as this runner's configuration allows them.
pub fn bridges(config: &Config) -> Bridges {
    Bridges::new(BridgeOptions {
        tag_sql: config.tag_sql,
        max_rows: config.caps.rows,
        max_bytes: config.caps.bytes,
        ca_file: config.ca_file.clone(),
        ..BridgeOptions::default()
    })
}
