//! What each frame of the runner means, by the phase that the session is in.
//!
//! A frame for an attempt that is not in the table (superseded, somebody else's, long done) is ignored:
//! the runner may not know yet. What breaks the protocol closes the session, and touches no other.

use actix::prelude::*;
use bytes::Bytes;

use super::attempts::Unfit;
use super::{PROTOCOL_1_BUFFER, Phase, RunnerSession};
use crate::bridge::{RowBatch, RowsPart};
use crate::control::error::{self, JobError};
use crate::control::picker::SessionChanged;
use crate::control::reply::{Finished, NotTaken};
use crate::ids::AttemptId;
use crate::protocol::{Chunk, Done, MAX_FRAME_BYTES, MAX_ROW_BYTES, RowsFrame, RunnerFrame};
use crate::query::plan::not_continued_by_filter;
use crate::query::rows::NotEncoded;

/// What a frame may hold unread beyond its window: one frame may overdraw it.
const UNREAD_LIMIT: usize = (crate::protocol::DEFAULT_WINDOW_BYTES + MAX_FRAME_BYTES) as usize;

/// What a bucket costs beside its text.
const BUCKET_COST: usize = 32;

impl RunnerSession {
    pub(super) fn on_text(&mut self, text: &str, ctx: &mut Context<Self>) -> Result<(), String> {
        let frame = RunnerFrame::parse(text).map_err(|e| e.to_string())?;
        match (self.phase, frame) {
            (Phase::AwaitingHello, RunnerFrame::Hello(hello)) => self.on_hello(hello, ctx),
            (Phase::AwaitingHello, _) => Err("the first frame must be a hello".to_owned()),
            (Phase::Registering | Phase::Ready, RunnerFrame::Heartbeat { .. }) => Ok(()),
            (Phase::Ready, frame) => self.on_job_frame(frame),
            (Phase::Registering, _) => {
                Err("nothing but heartbeats may come before the hello-ack".to_owned())
            }
            (Phase::Closing, _) => Ok(()),
        }
    }

    fn on_job_frame(&mut self, frame: RunnerFrame) -> Result<(), String> {
        match frame {
            RunnerFrame::Hello(_) => return Err("a second hello".to_owned()),
            RunnerFrame::Chunk(chunk) => self.on_chunk(chunk),
            RunnerFrame::Done(done) => return self.on_done(done),
            RunnerFrame::Error {
                id,
                code,
                message,
                path,
            } => self.settle(id, Err(error::from_runner(&code, message, path))),
            RunnerFrame::Accepted { id } => self.on_accepted(id),
            RunnerFrame::Refused { id, reason } => self.on_refused(id, reason),
            RunnerFrame::Draining => self.on_runner_draining(),
            RunnerFrame::Heartbeat { .. } => {}
        }
        Ok(())
    }

    /// Rows in binary: passed on as they are.
    pub(super) fn on_binary(&mut self, frame: Bytes) -> Result<(), String> {
        match self.phase {
            Phase::Ready => {}
            Phase::Closing => return Ok(()),
            Phase::AwaitingHello | Phase::Registering => {
                return Err("binary before the hello-ack".to_owned());
            }
        }
        if self.version < 2 {
            return Err("binary frames are not part of protocol 1".to_owned());
        }
        let frame = RowsFrame::decode(frame, MAX_FRAME_BYTES).map_err(|e| e.to_string())?;
        let Some(attempt) = self.attempts.get(frame.id) else {
            return Ok(());
        };
        match attempt.receive(&frame) {
            Ok(()) => {}
            Err(Unfit::NoCredit) => {
                return Err(format!("rows without credit for job {}", frame.id));
            }
            Err(Unfit::Mixed) => {
                return Err(format!(
                    "other rows in the middle of one, for job {}",
                    frame.id
                ));
            }
            Err(Unfit::TooLarge) => {
                let message = format!(
                    "a row of the result is larger than {MAX_ROW_BYTES} bytes, the most that one row may have; \
                     ask for fewer of its fields with `select`"
                );
                self.overflow(frame.id, &message);
                return Ok(());
            }
        }
        let part = RowsPart {
            rows: frame.rows,
            more: frame.more,
            payload: frame.payload,
        };
        let taken = attempt.job.reply.rows(part, UNREAD_LIMIT);
        self.after_rows(frame.id, taken);
        Ok(())
    }

    /// Rows as JSON objects: mapped to the lens here, because a protocol 1 runner does not.
    fn on_chunk(&mut self, chunk: Chunk) {
        let Some(attempt) = self.attempts.get(chunk.id) else {
            return;
        };
        attempt.stage = super::attempts::Stage::Started;
        if let Some(total) = chunk.total {
            attempt.said.total = Some(total);
            attempt.said.approximate = chunk.approximate.unwrap_or(false);
        }
        if let Some(agg) = chunk.agg {
            attempt.said.agg_bytes += agg
                .iter()
                .map(|bucket| bucket.get().len() + BUCKET_COST)
                .sum::<usize>();
            attempt.said.agg.get_or_insert_with(Vec::new).extend(agg);
            if attempt.said.agg_bytes > PROTOCOL_1_BUFFER {
                return self.after_rows(chunk.id, Err(NotTaken::Overflow));
            }
        }
        if chunk.rows.is_empty() {
            return;
        }
        let mapped = match attempt.mapper().encode(&chunk.rows, PROTOCOL_1_BUFFER) {
            Ok(mapped) => mapped,
            Err(NotEncoded::TooLarge) => {
                return self.overflow(
                    chunk.id,
                    "a chunk of rows is larger than 8 MiB once it is mapped to the lens",
                );
            }
            Err(NotEncoded::BadRow(bad_row)) => {
                self.cancel_at_runner(chunk.id);
                self.settle(
                    chunk.id,
                    Err(error::from_runner(
                        "SOURCE_QUERY_FAILED",
                        bad_row.to_string(),
                        None,
                    )),
                );
                return;
            }
        };
        let rows = u32::try_from(chunk.rows.len()).unwrap_or(u32::MAX);
        attempt.rows += u64::from(rows);
        attempt.said.last = mapped.last;
        let batch = RowBatch {
            rows,
            payload: mapped.payload.into(),
        };
        let taken = attempt.job.reply.rows(batch, PROTOCOL_1_BUFFER);
        self.after_rows(chunk.id, taken);
    }

    fn after_rows(&mut self, id: AttemptId, taken: Result<(), NotTaken>) {
        match taken {
            Ok(()) => {}
            Err(NotTaken::Gone) => {
                self.cancel_at_runner(id);
                self.settle(id, Err(JobError::Cancelled));
            }
            Err(NotTaken::Overflow) => self.overflow(
                id,
                "the caller reads too slowly for a runner without flow control, or rows came one at a time faster \
                 than they were read; the rest was dropped",
            ),
        }
    }

    /// Ends a job whose rows there is no room for.
    fn overflow(&mut self, id: AttemptId, message: &str) {
        self.cancel_at_runner(id);
        self.settle(id, Err(JobError::ResultOverflow(message.to_owned())));
    }

    fn on_done(&mut self, done: Done) -> Result<(), String> {
        let runner_id = self.runner_id();
        let Some(attempt) = self.attempts.get(done.id) else {
            return Ok(());
        };
        if attempt.is_in_row() {
            return Err(format!("job {} is done in the middle of a row", done.id));
        }
        let meta = done.meta.unwrap_or_default();
        let said = std::mem::take(&mut attempt.said);
        let elapsed = attempt.started.elapsed();
        let spec = &attempt.job.spec;
        let not_pageable = meta.not_pageable.or_else(|| {
            let last = said.last.as_deref()?;
            not_continued_by_filter(&spec.paging, &spec.types, last)
        });
        let last = meta.last.or(said.last).filter(|_| not_pageable.is_none());
        let finished = Finished {
            // What was counted here is what the caller gets; the runner's own figure may be another.
            count: attempt.rows,
            duration_ms: meta
                .duration_ms
                .map_or(elapsed.as_millis(), whole_millis)
                .try_into()
                .unwrap_or(u64::MAX),
            total: meta.total.or(said.total),
            approximate: meta.approximate.unwrap_or(said.approximate),
            last,
            not_pageable,
            warnings: meta.warnings,
            next_cursor: meta.next_cursor,
            agg: said.agg,
            runner_id: Some(runner_id),
        };
        self.settle(done.id, Ok(finished));
        Ok(())
    }

    fn on_accepted(&mut self, id: AttemptId) {
        if let Some(attempt) = self.attempts.get(id) {
            attempt.stage = super::attempts::Stage::Started;
        }
    }

    fn on_runner_draining(&mut self) {
        self.draining = true;
        self.cx.links.changed.do_send(SessionChanged::Draining {
            session_id: self.id,
        });
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float cast saturates, and NaN is 0"
)]
fn whole_millis(ms: f64) -> u128 {
    ms.round() as u128
}
