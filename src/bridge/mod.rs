//! One database each behind one trait. Used by the runner, and by the gateway for inline execution; it
//! knows nothing of sockets, sessions or HTTP.
//!
//! Rows leave a bridge already encoded, batch by batch, into a [`RowSink`] that pushes back: a bridge
//! reads no further from its database than its caller has room for.
//!
//! [`Bridges`] holds the pools and picks the database of a source; [`manifest`] says which settings each has.
//! All of it must be called on a multi-thread tokio runtime: a pooled connection belongs to the runtime that
//! opened it.

mod catalogue;
mod config;
mod dial;
mod encode;
mod keys;
pub mod manifest;
mod mysql;
mod pool;
mod postgres;
mod registry;
mod request;
mod secure;
mod sql;
mod sqlite;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ids::{JobId, SourceId};
use crate::query::operation::{ColumnTypes, Paging};

pub use manifest::{package_name, short_name};
pub use registry::{AddressCheck, BridgeOptions, Bridges};

/// A source as a bridge needs it, credentials included.
#[derive(Clone)]
pub struct Source {
    /// Its id, part of the pool's identity.
    pub id: SourceId,
    /// Its name, for messages.
    pub name: String,
    /// Its bridge, `postgres` or `@semilayer/bridge-postgres`.
    pub bridge: String,
    /// Its configuration by the keys of the bridge's manifest; holds credentials.
    pub config: Map<String, Value>,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// Objects joined by commas, without brackets; no comma at either end of a batch.
    Json,
    /// One object per line, each line ended.
    Ndjson,
}

/// Everything about one execution that is not the operation itself.
#[derive(Debug, Clone)]
pub struct Execution {
    /// The job, for the tag in the SQL.
    pub job_id: JobId,
    /// Which attempt it is, from 1, for the tag in the SQL.
    pub attempt: u32,
    /// When to give up; also the statement timeout of the database.
    pub deadline: Instant,
    /// Fires when nobody wants the answer any more; reaches the database.
    pub cancel: CancellationToken,
    /// How to write rows.
    pub format: RowFormat,
    /// Column → output name, in output order; `None`: columns as they are.
    pub fields: Option<Vec<(String, String)>>,
    /// The ordering columns, and where the page before ended.
    pub paging: Paging,
    /// What the lens says of columns, where it says more than they do.
    pub types: ColumnTypes,
    /// The largest batch in bytes; one row that is larger is a batch of its own.
    pub max_batch_bytes: usize,
    /// The largest row in bytes; one that is larger fails with [`BridgeError::ResultOverflow`].
    pub max_row_bytes: usize,
}

/// Some encoded rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowBatch {
    /// How many.
    pub rows: u32,
    /// The rows in the execution's format.
    pub payload: Bytes,
}

impl RowBatch {
    /// The batch as it travels: whole, or a row that is larger than `max` in parts of at most that.
    pub fn parts(self, max: usize) -> impl Iterator<Item = RowsPart> {
        let Self { rows, mut payload } = self;
        let mut whole = Some(rows);
        std::iter::from_fn(move || {
            if rows == 1 && payload.len() > max.max(1) {
                return Some(RowsPart {
                    rows: 0,
                    more: true,
                    payload: payload.split_to(max.max(1)),
                });
            }
            Some(RowsPart {
                rows: whole.take()?,
                more: false,
                payload: std::mem::take(&mut payload),
            })
        })
    }
}

/// Some encoded rows on their way, or a part of one row that is too large to travel in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowsPart {
    /// How many rows end in it; none in a part of which more follows.
    pub rows: u32,
    /// Whether it is a part of one row, of which the next one is the next part.
    pub more: bool,
    /// The rows, or their part, in the execution's format.
    pub payload: Bytes,
}

impl From<RowBatch> for RowsPart {
    fn from(RowBatch { rows, payload }: RowBatch) -> Self {
        Self {
            rows,
            more: false,
            payload,
        }
    }
}

/// Nobody takes rows any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkClosed;

/// Takes rows; waits while its reader has no room.
#[async_trait]
pub trait RowSink: Send {
    /// Hands over one batch, once there is room for it.
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed>;
}

/// What an operation answered, beside its rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// How many rows were sent.
    pub rows: u64,
    /// How many payload bytes were sent.
    pub bytes: u64,
    /// The answer to `count`, or the count that a `query` asked for.
    pub total: Option<u64>,
    /// Whether `total` is an estimate.
    pub approximate: bool,
    /// Where the last row stands in the order, for [`Paging::after`] of the next page.
    pub last: Option<Vec<Value>>,
    /// Why no page can follow in this order.
    pub not_pageable: Option<String>,
    /// What the caller should know of the answer.
    pub warnings: Vec<String>,
    /// Where the next `read` goes on.
    pub next_cursor: Option<String>,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BridgeError {
    /// The database could not be reached, or did not let us in; its own words.
    #[error("{0}")]
    Unreachable(String),
    /// The database cannot answer at the moment, which passes by itself; its own words.
    #[error("{0}")]
    Unavailable(String),
    /// The database rejected the statement; its own words.
    #[error("{0}")]
    QueryFailed(String),
    /// The deadline passed first.
    #[error("the query did not finish before its deadline")]
    Timeout,
    /// Nobody wants the answer any more.
    #[error("the query was cancelled")]
    Cancelled,
    /// The bridge does not have this operator.
    #[error("operator `{operator}` is not supported by bridge `{bridge}`")]
    UnsupportedOperator {
        /// The operator, with its `$`.
        operator: String,
        /// The bridge's short name.
        bridge: String,
    },
    /// The bridge does not have this kind of operation.
    #[error("operation `{kind}` is not supported by bridge `{bridge}`")]
    UnsupportedKind {
        /// The kind's name on the wire.
        kind: String,
        /// The bridge's short name.
        bridge: String,
    },
    /// The options or the configuration are not of the right form.
    #[error("{message}")]
    Invalid {
        /// The JSON path of what is wrong, e.g. `where.price.$gt`.
        path: String,
        /// What is wrong and what to do about it.
        message: String,
    },
    /// More was produced than may be sent.
    #[error("{0}")]
    ResultOverflow(String),
}

impl BridgeError {
    /// The machine code in `error` frames and REST errors.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "SOURCE_UNREACHABLE",
            Self::Unavailable(_) => "SOURCE_UNAVAILABLE",
            Self::QueryFailed(_) => "SOURCE_QUERY_FAILED",
            Self::Timeout => "QUERY_TIMEOUT",
            Self::Cancelled => "job_cancelled",
            Self::UnsupportedOperator { .. } => "unsupported_operator",
            Self::UnsupportedKind { .. } => "unsupported_kind",
            Self::Invalid { .. } => "invalid_request",
            Self::ResultOverflow(_) => "result_overflow",
        }
    }
}

/// One kind of database, connected lazily. Implementations own their pools.
#[async_trait]
pub trait Bridge: Send + Sync {
    /// Executes one operation; rows go to `sink`, `test`, `listTargets` and `introspectTarget` included
    /// (one row `{version, latencyMs}`; rows `{name, kind}`; one row `{name, columns, rowCount, indexes}`).
    async fn execute(
        &self,
        operation: &crate::query::operation::Operation,
        execution: &Execution,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, BridgeError>;
}

#[cfg(test)]
mod part_tests {
    use super::*;

    #[test]
    fn a_row_travels_in_parts_only_if_it_is_too_large_for_one() {
        let parts = |rows, length: usize, max| {
            let payload: Bytes = (0..length).map(|i| i as u8).collect::<Vec<_>>().into();
            let batch = RowBatch {
                rows,
                payload: payload.clone(),
            };
            let parts: Vec<_> = batch.parts(max).collect();
            let joined: Vec<u8> = parts.iter().flat_map(|part| part.payload.clone()).collect();
            assert_eq!(joined, payload);
            parts
                .iter()
                .map(|part| (part.rows, part.more, part.payload.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(parts(1, 10, 10), [(1, false, 10)]);
        assert_eq!(parts(1, 11, 10), [(0, true, 10), (1, false, 1)]);
        assert_eq!(
            parts(1, 30, 10),
            [(0, true, 10), (0, true, 10), (1, false, 10)]
        );
        assert_eq!(parts(3, 10, 10), [(3, false, 10)]);
    }
}
