//! One job from the frame that brought it to the frame that ends it: what to execute, where, with which
//! credentials, and what to answer. Every job is answered exactly once, whatever happens to it.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use secrecy::zeroize::Zeroize;
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::credentials::Credentials;
use super::executor::Executor;
use super::session::{Credit, Start};
use super::sink::{Framing, SocketSink};
use crate::bridge::{BridgeError, Execution, Outcome, RowFormat, RowSink, Source};
use crate::ids::{AttemptId, JobId};
use crate::protocol::{
    AssignedSource, Chunk, CredentialsLocation, Done, DoneMeta, Encoding, Job, JobRequest,
    JobSource, Limits, MAX_MESSAGE_BYTES, ROWS_HEADER_BYTES, RunnerFrame,
};
use crate::query::lens::FieldType;
use crate::query::operation::{ColumnTypes, Kind, Operation, Paging};

/// How long a bridge that does not notice its deadline or its cancellation is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room in a rows frame for its header, compressed or not.
const HEADER_ROOM: u32 = ROWS_HEADER_BYTES as u32 + 4;
/// Room in a protocol 1 chunk for what stands around its rows.
const CHUNK_ROOM: u32 = 1024;

/// What a job has of its session.
pub(super) struct JobLinks {
    /// The session's protocol version.
    pub(super) version: u32,
    /// Whether rows are compressed.
    pub(super) zstd: bool,
    /// What the gateway accepts.
    pub(super) limits: Limits,
    /// The session's queue for rows and what follows them.
    pub(super) rows: mpsc::Sender<Message>,
    /// What the job may still send (protocol 2).
    pub(super) credit: Arc<Credit>,
    /// Fires when the job is to stop.
    pub(super) cancel: CancellationToken,
    /// What the runner serves, for the names of variables.
    pub(super) assigned: Arc<[AssignedSource]>,
    /// The credentials of runner-local sources.
    pub(super) credentials: Credentials,
    /// Executes it.
    pub(super) executor: Arc<dyn Executor>,
    /// Places among the jobs that run at once, for a job that came without one.
    pub(super) slots: Arc<Semaphore>,
}

/// Why a job failed: the code and the message of its `error` frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    code: &'static str,
    message: String,
    /// Where in the request the mistake is.
    path: Option<String>,
}

impl Failure {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            path: None,
        }
    }
}

impl From<BridgeError> for Failure {
    fn from(error: BridgeError) -> Self {
        let code = error.code();
        match error {
            BridgeError::Invalid { path, message } => Self {
                code,
                message,
                path: Some(path),
            },
            other => Self::new(code, other.to_string()),
        }
    }
}

/// A source whose credentials are wiped when the job is over.
struct Wiped(Source);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.config.values_mut().for_each(wipe);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Executes one job and sends its answer.
pub(super) async fn run(start: Start, links: JobLinks) {
    let id = start.job.id;
    let started = Instant::now();
    let answer = AssertUnwindSafe(answer(start, &links))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            // The panic's own message went to the log; it may hold anything, so it goes no further.
            log::error!(attempt_id:% = id; "job {id} panicked");
            Err(Failure::new(
                "runner_failed",
                "the runner failed while it executed the job; its log says more",
            ))
        });
    let frames = match answer {
        Ok((kind, outcome)) => {
            log::debug!(attempt_id:% = id, rows = outcome.rows; "job {id} done in {:?}", started.elapsed());
            done(id, kind, outcome, started.elapsed(), links.version)
        }
        Err(failure) => {
            log::debug!(attempt_id:% = id; "job {id} failed: {}", failure.code);
            vec![failed(id, failure, links.version)]
        }
    };
    for frame in frames {
        if links
            .rows
            .send(Message::text(frame.to_text()))
            .await
            .is_err()
        {
            log::debug!(attempt_id:% = id; "the answer of job {id} has nowhere to go: its session is gone");
        }
    }
}

async fn answer(start: Start, links: &JobLinks) -> Result<(Kind, Outcome), Failure> {
    let Start {
        job,
        received,
        slot,
        ..
    } = start;
    let Job {
        id,
        params,
        deadline_ms,
        job_id,
        attempt,
        encoding,
        fields,
        keys,
        asked,
        after,
        types,
        ..
    } = *job;
    let keys = keys.unwrap_or_default();
    let deadline = received + Duration::from_millis(deadline_ms);
    let operation = operation(params.job)?;
    let execution = Execution {
        // A protocol 1 gateway tells no job; the attempt's id finds it all the same.
        job_id: job_id.unwrap_or_else(|| JobId::from_uuid(id.as_uuid())),
        attempt: attempt.unwrap_or(1),
        deadline,
        cancel: links.cancel.clone(),
        format: format(encoding.unwrap_or_default(), links.version)?,
        fields,
        paging: Paging {
            asked: asked.unwrap_or(keys.len()),
            keys,
            after,
        },
        types: known(types),
        max_batch_bytes: max_payload(links),
        max_row_bytes: max_row(links),
    };
    let source = Wiped(source(params.source, links)?);
    let _slot = place(slot, links, deadline).await?;
    let framing = if links.version == 1 {
        Framing::Chunks {
            aggregate: operation.kind == Kind::Aggregate,
        }
    } else {
        Framing::Binary {
            credit: Arc::clone(&links.credit),
            zstd: links.zstd,
            max_payload: max_payload(links),
        }
    };
    let mut sink = SocketSink {
        id,
        framing,
        rows: links.rows.clone(),
        cancel: links.cancel.clone(),
    };
    let outcome = execute(&source.0, &operation, &execution, &mut sink, links).await?;
    Ok((operation.kind, outcome))
}

/// The largest payload of a rows frame.
fn max_payload(links: &JobLinks) -> usize {
    (links.limits.max_frame_bytes - HEADER_ROOM) as usize
}

/// The largest row that can be sent.
fn max_row(links: &JobLinks) -> usize {
    match links.limits.max_row_bytes {
        // A chunk holds whole rows.
        _ if links.version == 1 => (MAX_MESSAGE_BYTES - CHUNK_ROOM) as usize,
        Some(bytes) => bytes as usize,
        None => max_payload(links),
    }
}

/// Executes within the deadline, even when the bridge does not notice it.
async fn execute(
    source: &Source,
    operation: &Operation,
    execution: &Execution,
    sink: &mut dyn RowSink,
    links: &JobLinks,
) -> Result<Outcome, BridgeError> {
    let cancelled = async {
        execution.cancel.cancelled().await;
        sleep(PATIENCE).await;
    };
    tokio::select! {
        biased;
        result = links.executor.execute(source, operation, execution, sink) => result,
        () = cancelled => Err(BridgeError::Cancelled),
        () = sleep_until(execution.deadline + PATIENCE) => Err(BridgeError::Timeout),
    }
}

/// The job's place among those that run at once; waits for one if it came without (protocol 1).
async fn place(
    slot: Option<OwnedSemaphorePermit>,
    links: &JobLinks,
    deadline: Instant,
) -> Result<Option<OwnedSemaphorePermit>, Failure> {
    if slot.is_some() {
        return Ok(slot);
    }
    tokio::select! {
        biased;
        () = links.cancel.cancelled() => Err(BridgeError::Cancelled.into()),
        slot = Arc::clone(&links.slots).acquire_owned() => Ok(slot.ok()),
        () = sleep_until(deadline) => {
            Err(Failure::new("QUERY_TIMEOUT", "the runner was busy with other jobs until the deadline"))
        }
    }
}

fn operation(request: JobRequest) -> Result<Operation, Failure> {
    let Some(kind) = Kind::parse(&request.kind) else {
        let message = format!("operation `{}` is not known to this runner", request.kind);
        return Err(Failure::new("unsupported_kind", message));
    };
    let options = match request.options {
        Value::Object(options) => options,
        Value::Null => Map::new(),
        _ => {
            return Err(Failure::new(
                "invalid_request",
                "options: must be an object",
            ));
        }
    };
    Ok(Operation {
        kind,
        target: request.target,
        options,
    })
}

fn format(encoding: Encoding, version: u32) -> Result<RowFormat, Failure> {
    match encoding {
        _ if version == 1 => Ok(RowFormat::Json),
        Encoding::Json => Ok(RowFormat::Json),
        Encoding::Ndjson => Ok(RowFormat::Ndjson),
        Encoding::Arrow => Err(Failure::new(
            "unsupported_kind",
            "this runner cannot encode rows as Arrow",
        )),
    }
}

fn source(source: JobSource, links: &JobLinks) -> Result<Source, Failure> {
    let config = match source.credentials_location {
        CredentialsLocation::RunnerLocal => local_config(&source.name, &source.bridge, links)?,
        CredentialsLocation::Managed => match source.config {
            Some(Value::Object(config)) => config,
            _ => {
                let message = format!(
                    "the gateway sent no configuration for source `{}`",
                    source.name
                );
                return Err(Failure::new("SOURCE_UNREACHABLE", message));
            }
        },
    };
    Ok(Source {
        id: source.id,
        name: source.name,
        bridge: source.bridge,
        config,
    })
}

fn local_config(name: &str, bridge: &str, links: &JobLinks) -> Result<Map<String, Value>, Failure> {
    let local = links
        .assigned
        .iter()
        .filter(|source| source.credentials_location == CredentialsLocation::RunnerLocal)
        .map(|source| source.name.as_str());
    let typed = |bridge: &str, key: &str, text: &str| links.executor.typed_value(bridge, key, text);
    let config = links.credentials.config_of(name, bridge, local, &typed);
    config.map_err(|e| Failure::new("SOURCE_UNREACHABLE", e.to_string()))
}

/// The types that this runner knows; of others it says nothing.
fn known(types: BTreeMap<String, String>) -> ColumnTypes {
    let known = |(column, name): (String, String)| {
        let kind = FieldType::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name);
        Some((column, kind?))
    };
    types.into_iter().filter_map(known).collect()
}

/// The frame of a job that failed. Protocol 1 has no place for the path but the message.
fn failed(id: AttemptId, failure: Failure, version: u32) -> RunnerFrame {
    let Failure {
        code,
        mut message,
        mut path,
    } = failure;
    if version == 1
        && let Some(path) = path.take().filter(|path| !message.contains(path))
    {
        message = format!("{path}: {message}");
    }
    RunnerFrame::Error {
        id,
        code: code.into(),
        message,
        path,
    }
}

fn done(
    id: AttemptId,
    kind: Kind,
    outcome: Outcome,
    took: Duration,
    version: u32,
) -> Vec<RunnerFrame> {
    // A microsecond is as fine as it needs to be, and keeps the JSON short.
    let duration_ms = Some((took.as_secs_f64() * 1e6).round() / 1e3);
    let approximate = outcome.total.is_some().then_some(outcome.approximate);
    let mut meta = DoneMeta {
        count: Some(outcome.rows),
        duration_ms,
        ..DoneMeta::default()
    };
    if version == 1 {
        let total = outcome.total.map(|total| {
            let approximate = approximate.filter(|approximate| *approximate);
            RunnerFrame::Chunk(Chunk {
                id,
                rows: Vec::new(),
                agg: None,
                total: Some(total),
                approximate,
            })
        });
        if kind == Kind::Count {
            meta.count = outcome.total;
        }
        return total
            .into_iter()
            .chain([RunnerFrame::Done(Done {
                id,
                meta: Some(meta),
            })])
            .collect();
    }
    meta.total = outcome.total;
    meta.approximate = approximate;
    meta.last = outcome.last;
    meta.not_pageable = outcome.not_pageable;
    meta.warnings = outcome.warnings;
    meta.next_cursor = outcome.next_cursor;
    meta.bytes = Some(outcome.bytes);
    vec![RunnerFrame::Done(Done {
        id,
        meta: Some(meta),
    })]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kind: &str, options: Value) -> JobRequest {
        JobRequest {
            kind: kind.into(),
            target: None,
            options,
        }
    }

    #[test]
    fn what_is_not_an_operation_is_refused_by_code() {
        assert_eq!(
            operation(request("dance", Value::Null)).unwrap_err().code,
            "unsupported_kind"
        );
        assert_eq!(
            operation(request("query", Value::from(1)))
                .unwrap_err()
                .code,
            "invalid_request"
        );
        assert_eq!(
            operation(request("test", Value::Null)).unwrap().kind,
            Kind::Test
        );
        assert_eq!(
            format(Encoding::Arrow, 2).unwrap_err().code,
            "unsupported_kind"
        );
        assert_eq!(
            format(Encoding::Ndjson, 1),
            Ok(RowFormat::Json),
            "protocol 1 knows no encodings"
        );
    }

    #[test]
    fn an_invalid_option_is_named_by_its_path() {
        let invalid = |path: &str, message: &str, version| {
            let failure = Failure::from(BridgeError::Invalid {
                path: path.into(),
                message: message.into(),
            });
            let frame = failed(AttemptId::from_uuid(uuid::Uuid::nil()), failure, version);
            frame.to_text().replace(r#""type":"error","id":"00000000-0000-0000-0000-000000000000","code":"invalid_request","#, "")
        };
        assert_eq!(
            invalid("where.a.$gt", "must be a number", 2),
            r#"{"message":"must be a number","path":"where.a.$gt"}"#
        );
        assert_eq!(
            invalid("where.a.$gt", "must be a number", 1),
            r#"{"message":"where.a.$gt: must be a number"}"#
        );
        assert_eq!(
            invalid("limit", "limit must be a number", 1),
            r#"{"message":"limit must be a number"}"#
        );
    }

    #[test]
    fn a_count_is_told_in_the_words_of_each_protocol() {
        let outcome = || Outcome {
            total: Some(7),
            ..Outcome::default()
        };
        let id = AttemptId::new();
        let took = Duration::from_micros(1500);
        let v1: Vec<_> = done(id, Kind::Count, outcome(), took, 1)
            .iter()
            .map(RunnerFrame::to_text)
            .collect();
        assert_eq!(
            v1[0],
            format!(r#"{{"type":"chunk","id":"{id}","rows":[],"total":7}}"#)
        );
        assert_eq!(
            v1[1],
            format!(r#"{{"type":"done","id":"{id}","meta":{{"count":7,"durationMs":1.5}}}}"#)
        );
        let v2 = done(id, Kind::Count, outcome(), took, 2);
        assert!(
            matches!(&v2[..], [RunnerFrame::Done(Done { meta: Some(meta), .. })] if meta.total == Some(7))
        );
    }

    #[test]
    fn credentials_are_wiped_when_the_job_is_over() {
        let mut config =
            serde_json::json!({"password": "hunter2", "nested": {"keys": ["a"]}, "port": 1});
        wipe(&mut config);
        assert_eq!(
            config,
            serde_json::json!({"password": "", "nested": {"keys": [""]}, "port": 1})
        );
    }
}
