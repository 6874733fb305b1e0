//! From the steps of a job's reply to an HTTP response, without parsing a row.
//!
//! The status line is held back until the first MiB of rows or the end, so that a small result always gets
//! a truthful status; whoever reads line by line (NDJSON) waits a moment after the first row at most. Past that the
//! response streams, and a failure in the middle aborts the connection (JSON) or ends with an error line
//! (NDJSON): never a well-formed body that is short.

mod body;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::{BodyStream, BoxBody};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use self::body::{Joiner, Streaming};
use super::error::ApiError;
use super::job_error::{Audience, job_error};
use super::request_id::RequestId;
use crate::bridge::RowsPart;
use crate::control::{Finished, JobError, Reply, ReplyStream};
use crate::protocol::Encoding;

/// The header that names the job of an answer.
pub(super) const JOB_ID: &str = "x-semilayer-job-id";

/// The header that says where the next page begins, if that is known before the body begins.
pub(super) const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-semilayer-next-cursor");

/// The longest cursor that goes into a header: proxies have little room for all of them.
const LONGEST_HEADER: usize = 2048;

/// How many payload bytes are held back before the status line goes out.
pub(super) const HOLD_BACK: usize = 1024 * 1024;

/// How long a row that is read line by line is held back.
const HOLD_ROWS: Duration = Duration::from_millis(250);

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
    /// Whether an empty line goes out now and then while rows are waited for (NDJSON).
    pub keep_alive: bool,
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

/// What came and was not sent yet.
struct Held {
    parts: VecDeque<RowsPart>,
    size: usize,
    /// When it is sent, whatever there is.
    due: Option<Instant>,
    encoding: Encoding,
}

impl Held {
    fn new(encoding: Encoding) -> Self {
        Self {
            parts: VecDeque::new(),
            size: 0,
            due: None,
            encoding,
        }
    }

    fn push(&mut self, part: RowsPart) {
        if self.encoding == Encoding::Ndjson {
            self.due.get_or_insert_with(|| Instant::now() + HOLD_ROWS);
        }
        self.size += part.payload.len();
        self.parts.push_back(part);
    }

    fn is_due(&self) -> bool {
        self.size >= HOLD_BACK || self.due.is_some_and(|due| due <= Instant::now())
    }
}

/// Waits for the end, or until what came is to be sent, and answers.
///
/// # Errors
///
/// When the job failed before anything was sent.
pub(super) async fn respond(
    mut reply: ReplyStream,
    rendering: Rendering,
) -> Result<HttpResponse, ApiError> {
    let job_id = reply.job_id();
    let mut held = Held::new(rendering.encoding);
    // What is held back was not sent: until the head goes out another attempt may take the place of this one.
    while !held.is_due() || !reply.commit() {
        let step = match held.due {
            Some(due) => match timeout_at(due, reply.next()).await {
                Ok(step) => step,
                Err(_elapsed) => continue,
            },
            None => reply.next().await,
        };
        match step {
            Some(Reply::Rows(part)) => held.push(part),
            Some(Reply::Restarted) => held = Held::new(rendering.encoding),
            Some(Reply::End(Ok(finished))) => {
                return whole(held.parts, &finished, rendering, job_id.to_string());
            }
            Some(Reply::End(Err(error))) => {
                return Err(job_error(&error, job_id, rendering.audience));
            }
            None => return Err(job_error(&JobError::Internal, job_id, rendering.audience)),
        }
    }
    Ok(streamed(held.parts, reply, rendering))
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
    let mut head = head(encoding, job_id);
    if let Some(cursor) = next_cursor(&meta).filter(|cursor| cursor.len() <= LONGEST_HEADER)
        && let Ok(cursor) = HeaderValue::from_str(cursor)
    {
        head.headers_mut().insert(NEXT_CURSOR, cursor);
    }
    let mut joiner = Joiner::new(encoding);
    let mut pieces: Vec<Bytes> = Vec::new();
    for part in rows {
        pieces.extend(joiner.rows(part));
    }
    pieces.push(joiner.end(finished, meta));
    let body = pieces.concat();
    head.set_body(BoxBody::new(body))
}

/// Where the page after this one begins, if there may be one.
fn next_cursor(meta: &Map<String, Value>) -> Option<&str> {
    meta.get("nextCursor").and_then(Value::as_str)
}

fn streamed(held: VecDeque<RowsPart>, reply: ReplyStream, rendering: Rendering) -> HttpResponse {
    let head = head(rendering.encoding, &reply.job_id().to_string());
    let state = Streaming::new(held, reply, rendering);
    let body = stream::unfold(state, |mut state| async move {
        state.next().await.map(|piece| (piece, state))
    });
    head.set_body(BoxBody::new(BodyStream::new(Box::pin(body))))
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
