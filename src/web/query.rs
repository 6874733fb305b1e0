//! `POST /v1/query/{lens}` and `/count`: from a request on a lens to a job, and from its reply to a page.

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Data, Path};
use actix_web::{HttpRequest, HttpResponse, post};
use serde_json::{Map, Value, json};

use super::auth::Caller;
use super::body::Body;
use super::detached::{Rendering, Shape};
use super::error::{ApiError, ApiResult, Code};
use super::job_error::{Audience, job_error};
use super::prefer::Preferences;
use super::reply::{self, wanted_encoding};
use super::request_id::RequestId;
use super::types::{AcceptedJob, CountAnswer, CountBody, ErrorBody, QueryAnswer, QueryBody};
use super::{Front, detached};
use crate::control::catalogue::Lens;
use crate::control::{Finished, JobError, JobSpec, Reply, ReplyStream};
use crate::ids::JobId;
use crate::protocol::Encoding;
use crate::query::grants;
use crate::query::lens::{Access, OnRunnerFailure};
use crate::query::operation::Operation;
use crate::query::plan::{Plan, Planner};
use crate::query::request::{CountRequest, QueryRequest};
use crate::query::suggest::did_you_mean;
use crate::storage::KeyKind;

/// A lens and what the caller may see of it.
struct Admitted {
    lens: std::sync::Arc<Lens>,
    access: Access,
    caller: Caller,
}

impl Admitted {
    fn planner<'a>(&'a self, front: &'a Front) -> Planner<'a> {
        Planner {
            environment: self.caller.environment_id,
            lens_id: self.lens.row.id,
            lens: &self.lens.definition,
            access: &self.access,
            cursors: &front.cursors,
        }
    }

    fn spec(&self, operation: Operation, encoding: Encoding) -> JobSpec {
        JobSpec {
            organisation_id: self.caller.organisation_id,
            environment_id: self.caller.environment_id,
            source_id: self.lens.row.source_id,
            lens: Some(self.lens.row.name.clone()),
            key_id: Some(self.caller.key_id),
            operation,
            encoding,
            fields: None,
            paging: Default::default(),
            types: Default::default(),
            timeout: None,
            only_runner: None,
            wait: std::time::Duration::ZERO,
            retry: self.lens.definition.on_runner_failure == OnRunnerFailure::Retry,
        }
    }

    fn audience(&self) -> Audience {
        Audience::of(self.caller.kind)
    }
}

/// Queries a lens.
///
/// Answers the rows of one page, or with `Accept: application/x-ndjson` a line per row, as they arrive. Lines that begin
/// with `{"$` are no rows: `{"$next": {"cursor": …}}` behind a page that another may follow, `{"$error": …}` behind an
/// answer that broke off. An empty line breaks a long silence. With `Prefer:
/// respond-async` it answers 202 at once, and keeps the result for an hour.
#[utoipa::path(
    tag = "query",
    params(
        ("lens" = String, Path, description = "The lens's name"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: instead of a 503, wait up to N (1 to 60) seconds for a runner. `respond-async`: do not wait, answer 202 and keep the result. `keep-alive=off`: no empty lines in NDJSON."),
        ("Idempotency-Key" = Option<String>, Header, description = "With `respond-async`: the same request under the same key starts nothing new."),
    ),
    request_body = QueryBody,
    responses(
        (status = 200, description = "One page of rows", body = QueryAnswer, headers(
            ("x-semilayer-next-cursor" = String, description = "Where the next page begins, if there may be one and it is known by then."),
        )),
        (status = 202, description = "With `Prefer: respond-async`: the job is recorded; `Location` says where to ask for it.", body = AcceptedJob),
        (status = 409, description = "`conflict`: the Idempotency-Key was used for another request. `job_cancelled`: the job was cancelled while its caller waited.", body = ErrorBody),
    ),
    security(("secretKey" = []), ("publishableKey" = []))
)]
#[post("/v1/query/{lens}")]
pub(super) async fn query(
    request: HttpRequest,
    front: Data<Front>,
    name: Path<String>,
    caller: Caller,
    request_id: RequestId,
    preferences: Preferences,
    body: Body<Value>,
) -> ApiResult<HttpResponse> {
    let encoding = wanted_encoding(&request)?;
    let admitted = admit(&front, caller, &name)?;
    let asked = QueryRequest::parse(&body.0, &admitted.lens.definition)?;
    let mut plan = admitted.planner(&front).query(asked)?;
    let operation = std::mem::replace(&mut plan.operation, nothing());
    let mut spec = admitted.spec(operation, encoding);
    spec.fields = Some(plan.fields.clone());
    spec.paging.clone_from(&plan.paging);
    spec.types.clone_from(&plan.types);
    if preferences.respond_async {
        let rendering = Rendering {
            lens: admitted.lens.row.name.clone(),
            encoding,
            shape: Shape::Page(Box::new(plan)),
        };
        return detached::submit(&request, &front, spec, &rendering, &body.0).await;
    }
    spec.wait = preferences.wait;
    let reply = front.gateway.dispatch(spec);
    let job_id = reply.job_id().to_string();
    let (lens, audience) = (admitted.lens.row.name.clone(), admitted.audience());
    let meta =
        Box::new(move |finished: &Finished| Ok(page_meta(&front, &plan, lens, finished, &job_id)));
    let answer = reply::respond(
        reply,
        reply::Rendering {
            encoding,
            audience,
            request_id,
            keep_alive: preferences.keep_alive,
            meta,
        },
    );
    let answer = answer.await;
    answer.map_err(|error| error.in_the_names_of(&admitted.lens.definition))
}

/// Counts the rows of a lens.
#[utoipa::path(
    tag = "query",
    params(
        ("lens" = String, Path, description = "The lens's name"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: instead of a 503, wait up to N (1 to 60) seconds for a runner. `respond-async`: do not wait, answer 202 and keep the result."),
        ("Idempotency-Key" = Option<String>, Header, description = "With `respond-async`: the same request under the same key starts nothing new."),
    ),
    request_body = CountBody,
    responses(
        (status = 200, description = "The exact number of rows", body = CountAnswer),
        (status = 202, description = "With `Prefer: respond-async`: the job is recorded; `Location` says where to ask for it.", body = AcceptedJob),
        (status = 409, description = "`conflict`: the Idempotency-Key was used for another request. `job_cancelled`: the job was cancelled while its caller waited.", body = ErrorBody),
    ),
    security(("secretKey" = []), ("publishableKey" = []))
)]
#[post("/v1/query/{lens}/count")]
pub(super) async fn count(
    request: HttpRequest,
    front: Data<Front>,
    name: Path<String>,
    caller: Caller,
    preferences: Preferences,
    body: Body<Value>,
) -> ApiResult<HttpResponse> {
    let encoding = wanted_encoding(&request)?;
    let admitted = admit(&front, caller, &name)?;
    let asked = CountRequest::parse(&body.0, &admitted.lens.definition)?;
    let plan = admitted.planner(&front).count(asked);
    let mut spec = admitted.spec(plan.operation, Encoding::Json);
    spec.types = plan.types;
    let (lens, audience) = (admitted.lens.row.name.clone(), admitted.audience());
    if preferences.respond_async {
        let rendering = Rendering {
            lens,
            encoding,
            shape: Shape::Count,
        };
        return detached::submit(&request, &front, spec, &rendering, &body.0).await;
    }
    spec.wait = preferences.wait;
    let reply = front.gateway.dispatch(spec);
    let job_id = reply.job_id();
    let finished = finish(reply, audience).await;
    let finished = finished.map_err(|error| error.in_the_names_of(&admitted.lens.definition))?;
    counted(lens, encoding, &finished, job_id, audience)
}

/// The answer to a count.
pub(super) fn counted(
    lens: String,
    encoding: Encoding,
    finished: &Finished,
    job_id: JobId,
    audience: Audience,
) -> ApiResult<HttpResponse> {
    let Some(total) = finished.total else {
        // A runner that somebody else wrote: it said it was done and never said how many.
        let error = JobError::Source(crate::bridge::BridgeError::QueryFailed(
            "the runner sent no count".to_owned(),
        ));
        return Err(job_error(&error, job_id, audience));
    };
    let mut response = HttpResponse::Ok();
    response.insert_header((reply::JOB_ID, job_id.to_string()));
    response.insert_header((CACHE_CONTROL, "no-store"));
    if encoding == Encoding::Ndjson {
        return Ok(response
            .content_type("application/x-ndjson")
            .body(format!("{}\n", json!({"count": total}))));
    }
    let mut meta = Map::new();
    meta.insert("lens".to_owned(), lens.into());
    meta.extend(reply::common_meta(finished, &job_id.to_string()));
    Ok(response.json(json!({"count": total, "meta": meta})))
}

fn nothing() -> Operation {
    Operation {
        kind: crate::query::operation::Kind::Query,
        target: None,
        options: Map::new(),
    }
}

/// Finds the lens and judges its grants.
fn admit(front: &Front, caller: Caller, name: &str) -> ApiResult<Admitted> {
    let catalogue = front.gateway.catalogue.current();
    let lens = catalogue
        .lens_named(caller.environment_id, name)
        .cloned()
        .ok_or_else(|| {
            let close = did_you_mean(name, catalogue.lens_names(caller.environment_id));
            let name: String = name.chars().take(80).collect();
            ApiError::new(
                Code::NotFound,
                format!("there is no lens `{name}` in this environment{close}"),
            )
        })?;
    let judged = match caller.kind {
        KeyKind::Secret => grants::Caller::Secret,
        _ => grants::Caller::Publishable { claims: None },
    };
    let access = lens
        .definition
        .admit(&judged)
        .map_err(|denied| ApiError::new(Code::AccessDenied, denied.reason))?;
    Ok(Admitted {
        lens,
        access,
        caller,
    })
}

/// What stands under `meta` of a page.
pub(super) fn page_meta(
    front: &Front,
    plan: &Plan,
    lens: String,
    finished: &Finished,
    job_id: &str,
) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert("lens".to_owned(), lens.into());
    meta.extend(reply::common_meta(finished, job_id));
    if let Some(cursor) = plan.next_cursor(finished.count, finished.last.as_deref(), &front.cursors)
    {
        meta.insert("nextCursor".to_owned(), cursor.into());
    }
    if let Some(reason) = &finished.not_pageable {
        meta.insert("notPageable".to_owned(), reason.as_str().into());
    }
    if !finished.warnings.is_empty() {
        meta.insert("warnings".to_owned(), json!(finished.warnings));
    }
    meta
}

/// Waits for the end of a job whose rows do not matter.
async fn finish(mut reply: ReplyStream, audience: Audience) -> ApiResult<Finished> {
    let job_id = reply.job_id();
    loop {
        match reply.next().await {
            Some(Reply::Rows(_) | Reply::Restarted) => {}
            Some(Reply::End(end)) => {
                return end.map_err(|error| job_error(&error, job_id, audience));
            }
            None => return Err(job_error(&JobError::Internal, job_id, audience)),
        }
    }
}
