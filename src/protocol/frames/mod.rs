//! The JSON text frames, two enums named by direction, tagged by `type`.
//!
//! Unknown fields are ignored, an unknown `type` is an error. Parsing reads the tag first and then the one
//! struct that it names, so that raw JSON in a frame (a row, a request) is never taken apart on the way.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::ProtocolError;
use crate::ids::{AttemptId, GatewayId, InstanceId, JobId, SessionId, SourceId};

/// What a runner sends.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum RunnerFrame {
    /// The first frame: who it is and what it can do.
    Hello(Hello),
    /// "Still here", with an optional look inside.
    Heartbeat {
        /// The runner's own figures.
        #[serde(skip_serializing_if = "Option::is_none")]
        stats: Option<Stats>,
    },
    /// Some rows of a job (protocol 1).
    Chunk(Chunk),
    /// The job ended well.
    Done(Done),
    /// The job failed.
    Error {
        /// The attempt that failed.
        id: AttemptId,
        /// A machine code, e.g. `SOURCE_QUERY_FAILED`.
        code: String,
        /// What the database said.
        message: String,
        /// Where in the request the mistake is (protocol 2).
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
    /// The job was taken; the database has not been touched yet (protocol 2).
    Accepted {
        /// The attempt that was taken.
        id: AttemptId,
    },
    /// The job was not taken; another runner may have it (protocol 2).
    Refused {
        /// The attempt that was not taken.
        id: AttemptId,
        /// Why.
        reason: RefusedReason,
    },
    /// "Send nothing new" (protocol 2).
    Draining,
}

/// What a gateway sends.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum GatewayFrame {
    /// The answer to a hello.
    HelloAck(HelloAck),
    /// The runner's sources are now these.
    AssignmentsChanged {
        /// All of them, without credentials.
        #[serde(rename = "assignedSources")]
        assigned_sources: Vec<AssignedSource>,
    },
    /// Work.
    Job(Box<Job>),
    /// Stop working on this one.
    Cancel {
        /// The attempt to stop.
        id: AttemptId,
    },
    /// "Still here".
    Ping,
    /// That many more payload bytes may be sent for this job (protocol 2).
    Credit {
        /// The attempt that may go on.
        id: AttemptId,
        /// How many uncompressed payload bytes.
        bytes: u32,
    },
    /// "Open a session elsewhere, finish what runs, then close" (protocol 2).
    Drain {
        /// Why, for the log.
        reason: String,
        /// How long what runs may still take, in milliseconds.
        #[serde(rename = "deadlineMs")]
        deadline_ms: u64,
    },
}

/// Who the runner is and what it can do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The highest protocol version that the runner speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The runner's UUID, or its name.
    pub runner_id: String,
    /// Bridge packages, e.g. `@semilayer/bridge-postgres`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The runner's own version, for the operator's eyes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_version: Option<String>,
    /// The runner's process, stable over reconnects (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// Where it runs (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// How many jobs the process takes at once (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_jobs: Option<u32>,
    /// Free labels to route by (protocol 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Compressions of rows frames that it can send (protocol 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compression: Vec<String>,
}

/// The gateway's answer to a hello.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HelloAck {
    /// The protocol version of this session.
    pub server_version: u32,
    /// What the runner serves, without credentials.
    pub assigned_sources: Vec<AssignedSource>,
    /// This session (protocol 2, as all that follows).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// This gateway's process; a drained runner looks for another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_id: Option<GatewayId>,
    /// How often to send a heartbeat, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// A runner that has heard nothing for this many milliseconds is cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_after_ms: Option<u64>,
    /// The compression that the gateway chose for rows frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// What the gateway accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// What the gateway accepts from a protocol 2 runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// The largest frame in bytes, rows counted uncompressed.
    pub max_frame_bytes: u32,
    /// The window of a job that names none, in bytes.
    pub window_bytes: u32,
    /// The largest row in bytes, continued from frame to frame; without it, a row has to fit into a frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_row_bytes: Option<u32>,
}

/// A runner's figures about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Jobs that run at this moment.
    pub active_jobs: u32,
    /// Resident memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<f64>,
}

/// One row of a protocol 1 chunk, still as the runner wrote it.
pub type ChunkRow = Box<RawValue>;

/// Some rows of a job, or its count (protocol 1).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Chunk {
    /// The attempt they belong to.
    pub id: AttemptId,
    /// The rows, objects.
    #[serde(default)]
    pub rows: Vec<ChunkRow>,
    /// Aggregate buckets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agg: Option<Vec<ChunkRow>>,
    /// A count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Whether the count is an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approximate: Option<bool>,
}

/// The job ended well.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Done {
    /// The attempt that ended.
    pub id: AttemptId,
    /// Figures about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<DoneMeta>,
}

/// Figures about a job that ended well.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DoneMeta {
    /// How many rows there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// How long the runner worked on it, in milliseconds. Runners in the field send fractions too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// The answer to a count, or the count beside a query that asked for it (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Whether `total` is an estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approximate: Option<bool>,
    /// Where the last row stands in the order of the job's `keys`. The gateway seals it into a cursor and hands it
    /// back as `after`; its form is the runner's own (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Vec<Value>>,
    /// Why no page can follow in this order (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_pageable: Option<String>,
    /// What the caller should know of the answer (protocol 2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where the next `read` goes on (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// How many uncompressed payload bytes were sent (protocol 2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusedReason {
    /// The runner is on its way out.
    Draining,
    /// The runner works on as many jobs as it takes.
    Busy,
    /// The runner does not serve that source.
    Unassigned,
}

/// Where a source's credentials are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "gateway", derive(utoipa::ToSchema))]
pub enum CredentialsLocation {
    /// With the gateway, encrypted; sent along with each job.
    Managed,
    /// In the runner's environment; the gateway never has them.
    RunnerLocal,
}

/// A source that a runner serves; never carries credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedSource {
    /// The source's id.
    pub id: SourceId,
    /// Its name, from which runner-local variables are named.
    pub name: String,
    /// Its bridge package.
    pub bridge: String,
    /// Where its credentials are.
    pub credentials_location: CredentialsLocation,
}

/// The source of one job, with its credentials if they are managed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSource {
    /// The source's id.
    pub id: SourceId,
    /// Its name.
    pub name: String,
    /// Its bridge package.
    pub bridge: String,
    /// Where its credentials are.
    pub credentials_location: CredentialsLocation,
    /// The decrypted configuration; managed sources only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

impl std::fmt::Debug for JobSource {
    /// Leaves the configuration out: it holds credentials, and debug output ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobSource")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// What is to be done at the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// `query`, `count`, `test`, …
    pub kind: String,
    /// The table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The options of that kind.
    #[serde(default)]
    pub options: Value,
}

/// A job's source and request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobParams {
    /// Where.
    pub source: JobSource,
    /// What.
    pub job: JobRequest,
}

/// How rows are encoded in binary frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Objects joined by commas, without brackets.
    #[default]
    Json,
    /// One object per line, each line ended.
    Ndjson,
    /// Bytes of one Arrow IPC stream.
    Arrow,
}

/// Work for a runner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// A fresh id for this attempt.
    pub id: AttemptId,
    /// What to do and where.
    pub params: JobParams,
    /// How long it may take, in milliseconds from receipt.
    pub deadline_ms: u64,
    /// The job that this is an attempt at, for the tag in the database's log (protocol 2, as all that follows).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// Which attempt at it this is, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How to encode rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// How many payload bytes may be outstanding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Source column → output name, in output order; absent: columns as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<(String, String)>>,
    /// The ordering columns plus the primary key; where the last row stands in that order comes back in `done`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    /// How many of the first `keys` were asked for; the others only give every row a place of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<usize>,
    /// Where the page before ended: the `last` of its `done`, as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<Value>>,
    /// What columns hold where the lens says more than they do: `number`, `boolean`,
    /// `decimal`, `date`, `enum`, `json`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<String, String>,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
}

/// Parses the one struct that the tag named.
fn body<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ProtocolError> {
    serde_json::from_str(text).map_err(|e| ProtocolError::BadJson(e.to_string()))
}

#[derive(Deserialize)]
struct WithId {
    id: AttemptId,
}

impl RunnerFrame {
    /// Reads a text frame from a runner.
    ///
    /// # Errors
    ///
    /// When the text is not a frame that a runner may send; the session is then closed with 4002.
    pub fn parse(text: &str) -> Result<Self, ProtocolError> {
        #[derive(Deserialize)]
        struct Heartbeat {
            #[serde(default)]
            stats: Option<Stats>,
        }
        #[derive(Deserialize)]
        struct Failed {
            id: AttemptId,
            code: String,
            message: String,
            #[serde(default)]
            path: Option<String>,
        }
        #[derive(Deserialize)]
        struct Refused {
            id: AttemptId,
            reason: RefusedReason,
        }
        let tag: Tag<'_> = body(text)?;
        Ok(match tag.kind.as_ref() {
            "hello" => Self::Hello(body(text)?),
            "heartbeat" => Self::Heartbeat {
                stats: body::<Heartbeat>(text)?.stats,
            },
            "chunk" => Self::Chunk(body(text)?),
            "done" => Self::Done(body(text)?),
            "error" => {
                let Failed {
                    id,
                    code,
                    message,
                    path,
                } = body(text)?;
                Self::Error {
                    id,
                    code,
                    message,
                    path,
                }
            }
            "accepted" => Self::Accepted {
                id: body::<WithId>(text)?.id,
            },
            "refused" => {
                let Refused { id, reason } = body(text)?;
                Self::Refused { id, reason }
            }
            "draining" => Self::Draining,
            other => return Err(ProtocolError::UnknownType(other.chars().take(64).collect())),
        })
    }

    /// The frame as the text that is sent.
    pub fn to_text(&self) -> String {
        to_text(self)
    }
}

impl GatewayFrame {
    /// Reads a text frame from a gateway.
    ///
    /// # Errors
    ///
    /// When the text is not a frame that a gateway may send.
    pub fn parse(text: &str) -> Result<Self, ProtocolError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Assignments {
            assigned_sources: Vec<AssignedSource>,
        }
        #[derive(Deserialize)]
        struct Credit {
            id: AttemptId,
            bytes: u32,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Drain {
            #[serde(default)]
            reason: String,
            deadline_ms: u64,
        }
        let tag: Tag<'_> = body(text)?;
        Ok(match tag.kind.as_ref() {
            "hello-ack" => Self::HelloAck(body(text)?),
            "assignments-changed" => Self::AssignmentsChanged {
                assigned_sources: body::<Assignments>(text)?.assigned_sources,
            },
            "job" => Self::Job(Box::new(body(text)?)),
            "cancel" => Self::Cancel {
                id: body::<WithId>(text)?.id,
            },
            "ping" => Self::Ping,
            "credit" => {
                let Credit { id, bytes } = body(text)?;
                Self::Credit { id, bytes }
            }
            "drain" => {
                let Drain {
                    reason,
                    deadline_ms,
                } = body(text)?;
                Self::Drain {
                    reason,
                    deadline_ms,
                }
            }
            other => return Err(ProtocolError::UnknownType(other.chars().take(64).collect())),
        })
    }

    /// The frame as the text that is sent.
    pub fn to_text(&self) -> String {
        to_text(self)
    }
}

#[expect(
    clippy::expect_used,
    reason = "frames hold strings, numbers and JSON values only, which always serialise"
)]
fn to_text(frame: &impl Serialize) -> String {
    serde_json::to_string(frame).expect("a frame has string keys only")
}

#[cfg(test)]
mod tests;
