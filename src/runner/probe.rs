//! Tests one runner-local source from this process, as `doctor` and `test-source` do.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Map;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::credentials::Credentials;
use super::executor::Executor;
use crate::bridge::{Execution, RowBatch, RowFormat, RowSink, SinkClosed, Source};
use crate::ids::{JobId, SourceId};
use crate::query::operation::{Kind, Operation};

/// How long a database may take to answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// A source to test.
pub(super) struct Probe<'a> {
    /// Its name, from which its variables are named.
    pub(super) name: &'a str,
    /// Its bridge.
    pub(super) bridge: &'a str,
    /// The names of all runner-local sources.
    pub(super) local: &'a [String],
}

/// Connects and runs a trivial statement; answers what to tell about it, or what went wrong.
pub(super) async fn test(
    probe: Probe<'_>,
    credentials: &Credentials,
    executor: &Arc<dyn Executor>,
) -> Result<String, String> {
    let typed = |bridge: &str, key: &str, text: &str| executor.typed_value(bridge, key, text);
    let names = probe.local.iter().map(String::as_str);
    let config = credentials
        .config_of(probe.name, probe.bridge, names, &typed)
        .map_err(|e| e.to_string())?;
    let source = Source {
        id: SourceId::new(),
        name: probe.name.to_owned(),
        bridge: probe.bridge.to_owned(),
        config,
    };
    let operation = Operation {
        kind: Kind::Test,
        target: None,
        options: Map::new(),
    };
    let execution = Execution {
        job_id: JobId::new(),
        attempt: 1,
        deadline: Instant::now() + DEADLINE,
        cancel: CancellationToken::new(),
        format: RowFormat::Json,
        fields: None,
        paging: Default::default(),
        types: Default::default(),
        max_batch_bytes: 64 * 1024,
        max_row_bytes: 64 * 1024,
    };
    let mut answer = Answer::default();
    executor
        .execute(&source, &operation, &execution, &mut answer)
        .await
        .map_err(|e| e.to_string())?;
    Ok(answer.told())
}

#[derive(Default)]
struct Answer(Vec<u8>);

#[async_trait]
impl RowSink for Answer {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        self.0.extend_from_slice(&batch.payload);
        Ok(())
    }
}

impl Answer {
    fn told(&self) -> String {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Row {
            version: String,
            latency_ms: f64,
        }
        match serde_json::from_slice::<Row>(&self.0) {
            Ok(row) => format!("{}, {} ms", row.version, row.latency_ms),
            Err(_) => "connected".to_owned(),
        }
    }
}
