//! The jobs that one session executes: a plain table with the rules of an attempt's life. No I/O, no clock.
//!
//! An attempt is known on the wire by a fresh id, looked up only here: an answer to a superseded attempt,
//! or to somebody else's job, finds nothing.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use crate::control::error::{Delivery, JobError};
use crate::control::job::Job;
use crate::ids::{AttemptId, JobId};
use crate::protocol::{Encoding, MAX_ROW_BYTES, RowsFrame};
use crate::query::rows::{RowEncoding, RowMapper};

/// How far an attempt has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its claim is on the way to the store; nothing was sent.
    Claiming,
    /// Its frame was handed to the socket.
    Sent,
    /// The runner has it: it said so, or sent rows.
    Started,
}

/// Why somebody wants a job to end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelCause {
    /// The caller went away.
    CallerGone,
    /// Somebody asked for it by name.
    Requested,
    /// Its deadline passed.
    Deadline,
}

impl From<CancelCause> for JobError {
    fn from(cause: CancelCause) -> Self {
        match cause {
            CancelCause::CallerGone | CancelCause::Requested => Self::Cancelled,
            CancelCause::Deadline => Self::Timeout,
        }
    }
}

/// One attempt at one job.
pub(super) struct Attempt {
    pub(super) job: Arc<Job>,
    pub(super) number: u32,
    pub(super) stage: Stage,
    /// Set when it is to end as soon as its claim is settled.
    pub(super) cancelled: Option<CancelCause>,
    /// Which of the session's frames it was sent with.
    pub(super) frame: Option<u64>,
    pub(super) started: Instant,
    /// Rows received so far.
    pub(super) rows: u64,
    /// What protocol 1 says in chunks: the count, whether it is an estimate, buckets, the last keys.
    pub(super) said: SaidInChunks,
    /// Maps the rows of a protocol 1 runner; made with the first of them.
    mapper: Option<RowMapper>,
    /// Payload bytes that the runner may still send (protocol 2); may go below zero by one frame.
    credit: i64,
    /// Bytes that the caller took and that were not granted again yet.
    owed: u32,
    /// How much came of the row that goes on; none does at 0.
    row_bytes: usize,
}

/// What protocol 1 says in chunks and protocol 2 in `done`.
#[derive(Default)]
pub(super) struct SaidInChunks {
    pub(super) total: Option<u64>,
    pub(super) approximate: bool,
    pub(super) agg: Option<Vec<Box<serde_json::value::RawValue>>>,
    /// What the buckets take, which is bounded.
    pub(super) agg_bytes: usize,
    pub(super) last: Option<Vec<Value>>,
}

/// Why rows of a runner are not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It had no credit for them.
    NoCredit,
    /// They come in the middle of a row that goes on.
    Mixed,
    /// They make a row larger than a row may be.
    TooLarge,
}

impl Attempt {
    /// How far it had come, for a caller whose runner was lost.
    pub(super) fn delivery(&self) -> Delivery {
        match self.stage {
            Stage::Claiming => Delivery::NotDelivered,
            // What its caller was sent is known to the gateway that accepted it.
            _ if self.job.only_session.is_none() && self.job.reply.is_committed() => {
                Delivery::Partial
            }
            Stage::Sent => Delivery::Unknown,
            Stage::Started => Delivery::Started,
        }
    }

    /// Maps the rows of a runner that does not do so itself.
    pub(super) fn mapper(&mut self) -> &RowMapper {
        let spec = &self.job.spec;
        self.mapper.get_or_insert_with(|| {
            let encoding = match spec.encoding {
                Encoding::Ndjson => RowEncoding::Ndjson,
                Encoding::Json | Encoding::Arrow => RowEncoding::Json,
            };
            RowMapper::new(
                spec.fields.as_deref(),
                &spec.paging.keys,
                &spec.types,
                encoding,
            )
        })
    }

    /// Notes rows from the runner; with any credit left one frame may overdraw it.
    pub(super) fn receive(&mut self, frame: &RowsFrame) -> Result<(), Unfit> {
        if self.credit <= 0 {
            return Err(Unfit::NoCredit);
        }
        let bytes = frame.payload.len();
        self.credit -= i64::try_from(bytes).unwrap_or(i64::MAX);
        self.stage = Stage::Started;
        if self.is_in_row() && !frame.more && frame.rows != 1 {
            return Err(Unfit::Mixed);
        }
        if self.is_in_row() || frame.more {
            self.row_bytes += bytes;
            if self.row_bytes > MAX_ROW_BYTES as usize {
                return Err(Unfit::TooLarge);
            }
        }
        if !frame.more {
            self.row_bytes = 0;
        }
        self.rows += u64::from(frame.rows);
        Ok(())
    }

    /// Whether the last that came was a part of a row of which more has to follow.
    pub(super) fn is_in_row(&self) -> bool {
        self.row_bytes > 0
    }

    /// Notes what the caller took; answers how much to grant, in steps of at least half a window.
    pub(super) fn consume(&mut self, bytes: u32, window: u32) -> Option<u32> {
        self.owed = self.owed.saturating_add(bytes);
        if self.owed < window / 2 {
            return None;
        }
        let grant = std::mem::take(&mut self.owed);
        self.credit += i64::from(grant);
        Some(grant)
    }
}

/// The attempts of one session, bounded by its capacity.
pub(super) struct Attempts {
    window: u32,
    by_id: HashMap<AttemptId, Attempt>,
    by_job: HashMap<JobId, AttemptId>,
}

impl Attempts {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            by_id: HashMap::new(),
            by_job: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Takes a job in under a fresh wire id.
    pub(super) fn begin(&mut self, job: Arc<Job>, number: u32, now: Instant) -> AttemptId {
        let id = AttemptId::new();
        self.by_job.insert(job.id, id);
        let attempt = Attempt {
            job,
            number,
            stage: Stage::Claiming,
            cancelled: None,
            frame: None,
            started: now,
            rows: 0,
            said: SaidInChunks::default(),
            mapper: None,
            credit: i64::from(self.window),
            owed: 0,
            row_bytes: 0,
        };
        self.by_id.insert(id, attempt);
        id
    }

    pub(super) fn get(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn of_job(&self, job: JobId) -> Option<AttemptId> {
        self.by_job.get(&job).copied()
    }

    /// Forgets an attempt; whatever still comes for it finds nothing.
    pub(super) fn end(&mut self, id: AttemptId) -> Option<Attempt> {
        let attempt = self.by_id.remove(&id)?;
        if self.by_job.get(&attempt.job.id) == Some(&id) {
            self.by_job.remove(&attempt.job.id);
        }
        Some(attempt)
    }

    /// The attempts whose frames may have left, which are lost with the socket.
    pub(super) fn sent(&self) -> Vec<AttemptId> {
        self.by_id
            .iter()
            .filter(|(_, a)| a.stage != Stage::Claiming)
            .map(|(id, _)| *id)
            .collect()
    }
}
