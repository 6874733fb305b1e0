//! Detached jobs at the front door: taking in a query that nobody waits for, and showing what it answered as
//! the query itself would have.

use actix_web::http::header::{CACHE_CONTROL, HeaderMap, LOCATION};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::{ApiError, ApiResult, Code};
use super::job_error::Audience;
use super::reply::JOB_ID;
use super::types::AcceptedJob;
use super::{Front, query, reply};
use crate::bridge::RowsPart;
use crate::control::{Accepted, JobSpec, KeptResult, Submission};
use crate::ids::{JobId, KeyId};
use crate::protocol::Encoding;
use crate::query::plan::Plan;
use crate::storage::Idempotency;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Says that a request was known by its key, and started nothing.
const REPLAYED: &str = "idempotent-replayed";
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// How a job's answer is shown: what the handler of the query knew and the job itself does not. Kept with the
/// job and then with its result.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rendering {
    /// The lens, by the name that the caller used.
    pub(super) lens: String,
    /// The format that the caller asked for.
    pub(super) encoding: Encoding,
    /// What it was.
    pub(super) shape: Shape,
}

/// What a caller asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Shape {
    /// Rows, and the way to the next ones.
    Page(Box<Plan>),
    /// Their number.
    Count,
}

/// Takes in a query that was found good: 202, and where to ask for it.
pub(super) async fn submit(
    request: &HttpRequest,
    front: &Front,
    spec: JobSpec,
    rendering: &Rendering,
    body: &Value,
) -> ApiResult<HttpResponse> {
    let key = idempotency_key(request.headers())?;
    let idempotency = key.map(|key| Idempotency {
        key,
        request_hash: request_hash(spec.key_id, rendering, body),
    });
    let submission = Submission {
        spec,
        rendering: serde_json::to_value(rendering).map_err(ApiError::internal)?,
        idempotency,
    };
    match front.gateway.submit(submission).await? {
        Accepted::New(id) => Ok(accepted(id, None)),
        Accepted::Known(id) => Ok(accepted(id, Some((REPLAYED, "true")))),
        Accepted::OtherRequest => Err(ApiError::new(
            Code::Conflict,
            "this Idempotency-Key was used for another request in this environment; repeat that request \
             exactly, or send this one with a new key",
        )),
    }
}

fn accepted(job_id: JobId, replayed: Option<(&str, &str)>) -> HttpResponse {
    let mut response = HttpResponse::Accepted();
    response.insert_header((LOCATION, format!("/v1/jobs/{job_id}")));
    response.insert_header((CACHE_CONTROL, "no-store"));
    response.insert_header((JOB_ID, job_id.to_string()));
    if let Some(replayed) = replayed {
        response.insert_header(replayed);
    }
    response.json(AcceptedJob { job_id })
}

/// Shows a result as the query would have answered it.
///
/// # Errors
///
/// When the job ended without what was asked for, as a query would say it.
pub(super) fn show(
    front: &Front,
    job_id: JobId,
    kept: KeptResult,
    audience: Audience,
) -> ApiResult<HttpResponse> {
    let KeptResult {
        rows,
        finished,
        rendering,
    } = kept;
    let rendering: Rendering = serde_json::from_value(rendering).map_err(ApiError::internal)?;
    let Rendering {
        lens,
        encoding,
        shape,
    } = rendering;
    match shape {
        Shape::Page(plan) => {
            let meta = query::page_meta(front, &plan, lens, &finished, &job_id.to_string());
            let rows = (!rows.is_empty()).then(|| RowsPart {
                rows: u32::try_from(finished.count).unwrap_or(u32::MAX),
                more: false,
                payload: rows,
            });
            Ok(reply::page(
                encoding,
                rows,
                &finished,
                meta,
                &job_id.to_string(),
            ))
        }
        Shape::Count => query::counted(lens, encoding, &finished, job_id, audience),
    }
}

/// The name that the caller gives to its request, so that it can repeat it.
fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let wrong = |message: &'static str| ApiError::invalid("Idempotency-Key", message);
    let mut values = headers.get_all(IDEMPOTENCY_KEY);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(wrong("there is more than one Idempotency-Key; send one"));
    }
    let visible = value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(key) if visible && (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) => {
            Ok(Some(key.to_owned()))
        }
        _ => Err(wrong(
            "an Idempotency-Key is 1 to 255 visible ASCII characters, a UUID for example",
        )),
    }
}

/// Tells a repetition from another request: who asks for what in which form.
fn request_hash(key: Option<KeyId>, rendering: &Rendering, body: &Value) -> String {
    let shape = match rendering.shape {
        Shape::Page(_) => "query",
        Shape::Count => "count",
    };
    let key = key.map(|key| key.to_string()).unwrap_or_default();
    let encoding = format!("{:?}", rendering.encoding);
    let mut hash = Sha256::new();
    for part in [shape, &rendering.lens, &encoding, &key, &body.to_string()] {
        // The length keeps two parts from being taken for two others.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_one_of_visible_characters() {
        let longest = "k".repeat(MAX_IDEMPOTENCY_KEY);
        let too_long = "k".repeat(MAX_IDEMPOTENCY_KEY + 1);
        let table: [(&[&str], Option<Option<&str>>); 10] = [
            (&[], Some(None)),
            (&["a"], Some(Some("a"))),
            (&["\"8e03978e-40d5\""], Some(Some("\"8e03978e-40d5\""))),
            (&[&longest], Some(Some(&longest))),
            (&[&too_long], None),
            (&[""], None),
            (&["a b"], None),
            (&["a\tb"], None),
            (&["gr\u{fc}n"], None),
            (&["a", "a"], None),
        ];
        for (values, expected) in table {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(
                    HeaderName::from_static(IDEMPOTENCY_KEY),
                    HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                );
            }
            let read = idempotency_key(&headers).ok();
            let expected = expected.map(|key| key.map(str::to_owned));
            assert_eq!(read, expected, "{values:?}");
        }
    }

    #[test]
    fn a_request_is_the_same_only_if_everything_about_it_is() {
        let rendering = |lens: &str, encoding| Rendering {
            lens: lens.to_owned(),
            encoding,
            shape: Shape::Count,
        };
        let (key, body) = (Some(KeyId::new()), json!({"where": {"id": 1}}));
        let same = || request_hash(key, &rendering("a", Encoding::Json), &body);
        assert_eq!(same(), same());
        for other in [
            request_hash(None, &rendering("a", Encoding::Json), &body),
            request_hash(Some(KeyId::new()), &rendering("a", Encoding::Json), &body),
            request_hash(key, &rendering("b", Encoding::Json), &body),
            request_hash(key, &rendering("a", Encoding::Ndjson), &body),
            request_hash(
                key,
                &rendering("a", Encoding::Json),
                &json!({"where": {"id": 2}}),
            ),
        ] {
            assert_ne!(other, same());
        }
    }
}
