//! The body of an answer: parts of rows joined into a document or into lines, and what stands behind the last.
//!
//! Lines that are no rows begin with `{"$`, which no row does: a lens has no output name that begins with `$`.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{Rendering, next_cursor};
use crate::bridge::RowsPart;
use crate::control::reply::Seams;
use crate::control::{Finished, JobError, Reply, ReplyStream};
use crate::protocol::Encoding;
use crate::web::error::Code;
use crate::web::job_error::job_error;

/// How long a body of lines is silent before an empty one keeps the connection awake: proxies cut after 30 s or
/// 60 s of silence.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where a streamed response stands.
pub(super) struct Streaming {
    ready: VecDeque<Bytes>,
    held: VecDeque<RowsPart>,
    reply: ReplyStream,
    joiner: Joiner,
    /// Gone with the last piece.
    rendering: Option<Rendering>,
}

impl Streaming {
    /// A response that begins with what was held back.
    pub(super) fn new(held: VecDeque<RowsPart>, reply: ReplyStream, rendering: Rendering) -> Self {
        Self {
            ready: VecDeque::new(),
            held,
            reply,
            joiner: Joiner::new(rendering.encoding),
            rendering: Some(rendering),
        }
    }

    /// The next piece of the body.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            if let Some(part) = self.held.pop_front() {
                self.ready.extend(self.joiner.rows(part));
                continue;
            }
            let step = if self.stays_awake()? {
                match timeout(KEEP_ALIVE, self.reply.next()).await {
                    Ok(step) => step,
                    Err(_elapsed) => return Some(Ok(Bytes::from_static(b"\n"))),
                }
            } else {
                self.reply.next().await
            };
            match step {
                Some(Reply::Rows(part)) => self.ready.extend(self.joiner.rows(part)),
                Some(Reply::End(end)) => return self.end(end),
                // After the commit nothing starts over.
                Some(Reply::Restarted) | None => return self.end(Err(JobError::Internal)),
            }
        }
    }

    /// Whether silence is broken by an empty line, which cannot stand in the middle of a row; `None` after the
    /// end.
    fn stays_awake(&self) -> Option<bool> {
        let rendering = self.rendering.as_ref()?;
        let lines = rendering.encoding == Encoding::Ndjson;
        Some(lines && rendering.keep_alive && !self.joiner.is_in_row())
    }

    /// The last piece: the tail of a whole result, or the break of a broken one.
    fn end(&mut self, end: Result<Finished, JobError>) -> Option<Result<Bytes, BrokenOff>> {
        let rendering = self.rendering.take()?;
        let (audience, id, encoding) =
            (rendering.audience, rendering.request_id, rendering.encoding);
        let tail = match end {
            Ok(finished) => {
                (rendering.meta)(&finished).map(|meta| self.joiner.end(&finished, meta))
            }
            Err(error) => {
                Err(job_error(&error, self.reply.job_id(), audience).with("delivery", "partial"))
            }
        };
        match tail {
            Err(error) if encoding == Encoding::Ndjson => {
                let begun = if self.joiner.is_in_row() { "\n" } else { "" };
                let failure = json!({"$error": error.body(&id)});
                Some(Ok(format!("{begun}{failure}\n").into()))
            }
            other => Some(other.map_err(|error| BrokenOff(error.code()))),
        }
    }
}

/// Ends a body in the middle. The server logs it, so it says no more than why.
#[derive(Debug, thiserror::Error)]
#[error("an answer broke off: {}", .0.as_str())]
pub(super) struct BrokenOff(Code);

/// Puts parts together: with commas inside one document, or as they are.
pub(super) struct Joiner {
    encoding: Encoding,
    seams: Seams,
}

impl Joiner {
    pub(super) fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            seams: Seams::default(),
        }
    }

    /// The part with what stands before it.
    pub(super) fn rows(&mut self, part: RowsPart) -> impl Iterator<Item = Bytes> + use<> {
        let first = !self.seams.begun();
        let comma = self.seams.comma_before(&part);
        let before: &[u8] = match self.encoding {
            Encoding::Ndjson => b"",
            _ if first => b"{\"rows\":[",
            _ if comma => b",",
            _ => b"",
        };
        let before = (!before.is_empty()).then(|| Bytes::from_static(before));
        before.into_iter().chain([part.payload])
    }

    fn is_in_row(&self) -> bool {
        self.seams.in_row()
    }

    /// What stands behind the last row.
    pub(super) fn end(&self, finished: &Finished, meta: Map<String, Value>) -> Bytes {
        if self.encoding == Encoding::Ndjson {
            return next_cursor(&meta)
                .map(|cursor| format!("{}\n", json!({"$next": {"cursor": cursor}})).into())
                .unwrap_or_default();
        }
        let open = if self.seams.begun() {
            ""
        } else {
            "{\"rows\":["
        };
        let agg = finished
            .agg
            .as_ref()
            .map(|agg| format!(",\"agg\":{}", json!(agg)))
            .unwrap_or_default();
        format!("{open}]{agg},\"meta\":{}}}", Value::Object(meta)).into()
    }
}
