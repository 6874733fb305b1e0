//! From the steps of a job's reply to an HTTP response, without parsing a row.
//!
//! The status line is held back until the first MiB of rows or the end, so that a small result always gets
//! a truthful status. Past that the response streams, and a failure in the middle aborts the connection
//! (JSON) or ends with an error line (NDJSON): never a well-formed body that is short.

use std::collections::VecDeque;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderValue};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::job_error::{Audience, job_error};
use super::request_id::RequestId;
use crate::bridge::RowsPart;
use crate::control::reply::Seams;
use crate::control::{Finished, JobError, Reply, ReplyStream};
use crate::protocol::Encoding;

/// The header that names the job of an answer.
pub(super) const JOB_ID: &str = "x-semilayer-job-id";

/// How many payload bytes are held back before the status line goes out.
pub(super) const HOLD_BACK: usize = 1024 * 1024;

/// Builds `meta` from how the job ended.
pub(super) type Meta = Box<dyn FnOnce(&Finished) -> Result<Map<String, Value>, ApiError>>;

/// How a reply becomes a response.
pub(super) struct Rendering {
    /// JSON in one document, or a line per row.
    pub encoding: Encoding,
    /// How much the caller may see of a database's words.
    pub audience: Audience,
    /// Names the request in an error line.
    pub request_id: RequestId,
    /// What goes under `meta`.
    pub meta: Meta,
}

/// What every `meta` holds.
pub(super) fn common_meta(finished: &Finished, job_id: &str) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert("count".to_owned(), finished.count.into());
    meta.insert("durationMs".to_owned(), finished.duration_ms.into());
    if let Some(total) = finished.total {
        meta.insert("total".to_owned(), total.into());
        if finished.approximate {
            meta.insert("approximate".to_owned(), true.into());
        }
    }
    if let Some(cursor) = &finished.next_cursor {
        meta.insert("nextCursor".to_owned(), cursor.clone().into());
    }
    meta.insert("jobId".to_owned(), job_id.into());
    if let Some(runner) = finished.runner_id {
        meta.insert("runnerId".to_owned(), runner.to_string().into());
    }
    meta
}

/// Waits for the first MiB or the end, and answers.
///
/// # Errors
///
/// When the job failed before anything was sent.
pub(super) async fn respond(
    mut reply: ReplyStream,
    rendering: Rendering,
) -> Result<HttpResponse, ApiError> {
    let job_id = reply.job_id();
    let (mut held, mut size) = (VecDeque::new(), 0);
    // What is held back was not sent: until the head goes out another attempt may take the place of this one.
    while size < HOLD_BACK || !reply.commit() {
        match reply.next().await {
            Some(Reply::Rows(part)) => {
                size += part.payload.len();
                held.push_back(part);
            }
            Some(Reply::Restarted) => {
                held.clear();
                size = 0;
            }
            Some(Reply::End(Ok(finished))) => {
                return whole(held, &finished, rendering, job_id.to_string());
            }
            Some(Reply::End(Err(error))) => {
                return Err(job_error(&error, job_id, rendering.audience));
            }
            None => return Err(job_error(&JobError::Internal, job_id, rendering.audience)),
        }
    }
    Ok(streamed(held, reply, rendering))
}

fn head(encoding: Encoding, job_id: &str) -> HttpResponse {
    let content_type = match encoding {
        Encoding::Ndjson => "application/x-ndjson",
        Encoding::Json | Encoding::Arrow => "application/json",
    };
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CONTENT_TYPE, HeaderValue::from_static(content_type)));
    response.insert_header((header::CACHE_CONTROL, HeaderValue::from_static("no-store")));
    response.insert_header((JOB_ID, job_id));
    response.finish()
}

/// The whole result is here: one body of known length.
fn whole(
    held: VecDeque<RowsPart>,
    finished: &Finished,
    rendering: Rendering,
    job_id: String,
) -> Result<HttpResponse, ApiError> {
    let meta = (rendering.meta)(finished)?;
    Ok(page(rendering.encoding, held, finished, meta, &job_id))
}

/// A page of rows that are all here.
pub(super) fn page(
    encoding: Encoding,
    rows: impl IntoIterator<Item = RowsPart>,
    finished: &Finished,
    meta: Map<String, Value>,
    job_id: &str,
) -> HttpResponse {
    let mut joiner = Joiner::new(encoding);
    let mut pieces: Vec<Bytes> = Vec::new();
    for part in rows {
        pieces.extend(joiner.rows(part));
    }
    pieces.push(joiner.end(finished, meta));
    let body = pieces.concat();
    head(encoding, job_id).set_body(actix_web::body::BoxBody::new(body))
}

/// Where a streamed response stands.
struct Streaming {
    ready: VecDeque<Bytes>,
    held: VecDeque<RowsPart>,
    reply: ReplyStream,
    joiner: Joiner,
    rendering: Option<Rendering>,
}

fn streamed(held: VecDeque<RowsPart>, reply: ReplyStream, rendering: Rendering) -> HttpResponse {
    let head = head(rendering.encoding, &reply.job_id().to_string());
    let joiner = Joiner::new(rendering.encoding);
    let state = Streaming {
        ready: VecDeque::new(),
        held,
        reply,
        joiner,
        rendering: Some(rendering),
    };
    let body = stream::unfold(state, |mut state| async move {
        state.next().await.map(|piece| (piece, state))
    });
    head.set_body(actix_web::body::BoxBody::new(
        actix_web::body::BodyStream::new(Box::pin(body)),
    ))
}

impl Streaming {
    async fn next(&mut self) -> Option<Result<Bytes, ApiError>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(Ok(piece));
            }
            self.rendering.as_ref()?;
            let step = match self.held.pop_front() {
                Some(part) => {
                    self.ready.extend(self.joiner.rows(part));
                    continue;
                }
                None => self.reply.next().await,
            };
            match step {
                Some(Reply::Rows(part)) => self.ready.extend(self.joiner.rows(part)),
                Some(Reply::End(end)) => return self.end(end),
                // After the commit nothing starts over.
                Some(Reply::Restarted) | None => return self.end(Err(JobError::Internal)),
            }
        }
    }

    /// The last piece: the tail of a whole result, or the break of a broken one.
    fn end(&mut self, end: Result<Finished, JobError>) -> Option<Result<Bytes, ApiError>> {
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
            Err(error) if encoding == Encoding::Ndjson => Some(Ok(line(&error.body(&id)))),
            other => Some(other),
        }
    }
}

fn line(value: &Value) -> Bytes {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line.into()
}

/// Puts payloads together: with commas inside one document, or as they are.
struct Joiner {
    encoding: Encoding,
    seams: Seams,
}

impl Joiner {
    fn new(encoding: Encoding) -> Self {
        Self {
            encoding,
            seams: Seams::default(),
        }
    }

    fn rows(&mut self, part: RowsPart) -> impl Iterator<Item = Bytes> + use<> {
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

    fn end(&mut self, finished: &Finished, meta: Map<String, Value>) -> Bytes {
        if self.encoding == Encoding::Ndjson {
            return Bytes::new();
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

/// The format that the `Accept` header asks for.
///
/// # Errors
///
/// When it allows none that there is.
pub(super) fn wanted_encoding(request: &actix_web::HttpRequest) -> Result<Encoding, ApiError> {
    let Some(accept) = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(Encoding::Json);
    };
    let mut types = accept
        .split(',')
        .map(|part| part.split(';').next().unwrap_or_default().trim());
    types
        .find_map(|kind| match kind {
            "application/x-ndjson" => Some(Encoding::Ndjson),
            "application/json" | "application/*" | "*/*" | "" => Some(Encoding::Json),
            _ => None,
        })
        .ok_or_else(|| {
            ApiError::invalid("", "this address answers `application/json` or `application/x-ndjson`; ask for one in Accept")
        })
}
