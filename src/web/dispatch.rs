//! `POST /dispatch` on the internal listener: one operation on a source, in the source's own names, for a
//! service that does its own front door.

use std::future::{Ready, ready};
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::web::{self, ServiceConfig};
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Front;
use super::body::Body;
use super::error::{ApiError, Code};
use super::fallback::only;
use super::job_error::Audience;
use super::reply::{self, Rendering, wanted_encoding};
use super::request_id::RequestId;
use crate::control::{Finished, JobSpec};
use crate::domain::tokens;
use crate::ids::EnvironmentId;
use crate::query::operation::{Kind, Operation};
use crate::storage::Source;

/// Who may use the internal listener.
pub(super) struct InternalAccess([u8; 32]);

impl InternalAccess {
    /// Whoever has this token (`SEMILAYER_INTERNAL_TOKEN`).
    pub(super) fn new(token: &str) -> Self {
        Self(tokens::hash(token))
    }

    fn check(&self, request: &HttpRequest) -> Result<(), ApiError> {
        let token = super::auth::bearer(request)?;
        if tokens::same_hash(&self.0, &tokens::hash(token)) {
            return Ok(());
        }
        Err(ApiError::new(
            Code::InvalidKey,
            "this is not the internal token (SEMILAYER_INTERNAL_TOKEN)",
        ))
    }
}

/// A caller who has the token. An extractor, and before the body's: what a stranger sends is not read.
struct Admitted;

impl FromRequest for Admitted {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let access = request.app_data::<web::Data<InternalAccess>>();
        let access = access.ok_or_else(|| {
            ApiError::internal(anyhow::anyhow!("no internal access in the app data"))
        });
        ready(
            access
                .and_then(|access| access.check(request))
                .map(|()| Self),
        )
    }
}

/// The route, for who has the token.
pub(super) fn configure(config: &mut ServiceConfig, access: web::Data<InternalAccess>) {
    config.app_data(access).service(
        web::resource("/dispatch")
            .post(dispatch)
            .default_service(only(Method::POST)),
    );
}

/// What is to be done where.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DispatchRequest {
    /// The source by id …
    #[serde(default)]
    source_id: Option<String>,
    /// … or by name, with its environment.
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    environment_id: Option<EnvironmentId>,
    job: DispatchJob,
    #[serde(default)]
    deadline_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DispatchJob {
    kind: String,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    options: Map<String, Value>,
}

async fn dispatch(
    request: HttpRequest,
    front: web::Data<Front>,
    _: Admitted,
    request_id: RequestId,
    body: Body<DispatchRequest>,
) -> Result<HttpResponse, ApiError> {
    let encoding = wanted_encoding(&request)?;
    let asked = body.0;
    let catalogue = front.gateway.catalogue.current();
    let source = find_source(&catalogue, &asked)?;
    let environment = catalogue
        .environment(source.environment_id)
        .ok_or_else(|| ApiError::not_found("environment", &source.environment_id.to_string()))?;
    let spec = JobSpec {
        organisation_id: environment.organisation_id,
        environment_id: environment.id,
        source_id: source.id,
        lens: None,
        key_id: None,
        operation: operation(asked.job)?,
        encoding,
        fields: None,
        paging: Default::default(),
        types: Default::default(),
        timeout: asked.deadline_ms.map(timeout).transpose()?,
        only_runner: None,
        wait: std::time::Duration::ZERO,
        retry: false,
    };
    let reply = front.gateway.dispatch(spec);
    let job_id = reply.job_id().to_string();
    let meta = Box::new(move |finished: &Finished| Ok(reply::common_meta(finished, &job_id)));
    reply::respond(
        reply,
        Rendering {
            encoding,
            audience: Audience::Trusted,
            request_id,
            keep_alive: true,
            meta,
        },
    )
    .await
}

fn find_source<'a>(
    catalogue: &'a crate::control::Catalogue,
    asked: &DispatchRequest,
) -> Result<&'a Source, ApiError> {
    match (&asked.source_id, &asked.source, asked.environment_id) {
        (Some(id), None, None) => {
            let id = id
                .parse()
                .map_err(|error| ApiError::invalid("sourceId", format!("{error}")))?;
            catalogue
                .source(id)
                .ok_or_else(|| ApiError::not_found("source", &id.to_string()))
        }
        (None, Some(name), Some(environment)) => catalogue
            .source_named(environment, name)
            .ok_or_else(|| ApiError::not_found("source", name)),
        _ => Err(ApiError::invalid(
            "sourceId",
            "name the source: either `sourceId`, or `source` with `environmentId`",
        )),
    }
}

fn operation(job: DispatchJob) -> Result<Operation, ApiError> {
    let kind = Kind::parse(&job.kind).ok_or_else(|| {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        ApiError::invalid(
            "job.kind",
            format!(
                "there is no kind `{}`; kinds are {}",
                job.kind,
                kinds.join(", ")
            ),
        )
    })?;
    Ok(Operation {
        kind,
        target: job.target,
        options: job.options,
    })
}

fn timeout(ms: u64) -> Result<Duration, ApiError> {
    if ms == 0 {
        return Err(ApiError::invalid(
            "deadlineMs",
            "a deadline is at least 1 ms",
        ));
    }
    Ok(Duration::from_millis(ms))
}
