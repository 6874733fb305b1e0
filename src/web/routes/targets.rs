//! What can be asked of a source itself: whether it is reached, and what tables it has. Answered by jobs, like
//! every other question to a database.

use std::time::{Duration, Instant};

use actix_web::web::{Data, Json, Path};
use actix_web::{get, post};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use serde_json::Map;
use utoipa_actix_web::service_config::ServiceConfig;

use super::sources::find;
use crate::control::reply::Seams;
use crate::control::{JobError, JobSpec, Reply, ReplyStream};
use crate::ids::{RunnerId, SourceId};
use crate::protocol::Encoding;
use crate::query::operation::{Kind, Operation};
use crate::web::Front;
use crate::web::auth::Scope;
use crate::web::body::Params;
use crate::web::error::{ApiError, ApiResult, Code};
use crate::web::job_error::{Audience, job_error};
use crate::web::types::{
    EnvironmentQuery, ErrorBody, Failure, Named, Page, SourceTest, SourceTestResult, Target,
    TargetDetails,
};

/// The most bytes of tables or columns that are collected for one answer.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(source_test)
        .service(source_targets)
        .service(source_target);
}

/// Tries to reach a source through every runner that serves it, or from the gateway itself where none does.
#[utoipa::path(
    tag = "sources",
    security(("adminKey" = [])),
    params(("source" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses((status = 200, description = "Who reached it, and why not.", body = SourceTest)),
)]
#[post("/v1/sources/{source}/test")]
async fn source_test(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<Json<SourceTest>> {
    let source = find(&front, &scope, &path).await?.id;
    let catalogue = front.gateway.catalogue.current();
    let assigned = catalogue
        .runners_of(source)
        .iter()
        .filter_map(|id| catalogue.runner(*id));
    let mut askable: Vec<_> = assigned
        .map(|runner| {
            Some(Named {
                id: runner.id,
                name: runner.name.clone(),
            })
        })
        .collect();
    askable.sort_by(|a, b| {
        a.as_ref()
            .map(|a| &a.name)
            .cmp(&b.as_ref().map(|b| &b.name))
    });
    if askable.is_empty() {
        askable.push(None);
    }
    let results = join_all(
        askable
            .into_iter()
            .map(|runner| test(&front, &scope, source, runner)),
    )
    .await;
    Ok(Json(SourceTest {
        ok: results.iter().all(|result| result.ok),
        results,
    }))
}

/// What a bridge answers to a test.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tested {
    version: Option<String>,
    latency_ms: Option<f64>,
}

async fn test(
    front: &Front,
    scope: &Scope,
    source: SourceId,
    runner: Option<Named<RunnerId>>,
) -> SourceTestResult {
    let question = Question {
        source,
        kind: Kind::Test,
        target: None,
        runner: runner.as_ref().map(|it| it.id),
        timeout: None,
    };
    let asked = Instant::now();
    let (tested, error) = match ask::<Tested>(front, scope, question).await {
        Ok(rows) => (rows.into_iter().next(), None),
        Err(error) => (
            None,
            Some(Failure {
                code: error.code().as_str().into(),
                message: error.message().into(),
            }),
        ),
    };
    let Tested {
        version,
        latency_ms,
    } = tested.unwrap_or_default();
    // A runner that does not measure is measured from here.
    let latency_ms = latency_ms.or_else(|| {
        error
            .is_none()
            .then(|| asked.elapsed().as_secs_f64() * 1000.0)
    });
    SourceTestResult {
        runner,
        ok: error.is_none(),
        latency_ms,
        version,
        error,
    }
}

/// The tables and views that the source's user may read, all on one page.
#[utoipa::path(
    tag = "sources",
    security(("adminKey" = [])),
    params(("source" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses(
        (status = 200, description = "The tables and views.", body = Page<Target>),
        (status = 422, description = "`SOURCE_QUERY_FAILED`.", body = ErrorBody),
        (status = 502, description = "`SOURCE_UNREACHABLE` or `runner_failed`.", body = ErrorBody),
        (status = 503, description = "`SOURCE_UNAVAILABLE`, `no_runners_online`, `runners_busy` or `store_unavailable`.", body = ErrorBody),
        (status = 504, description = "`QUERY_TIMEOUT`.", body = ErrorBody),
    ),
)]
#[get("/v1/sources/{source}/targets")]
async fn source_targets(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<Json<Page<Target>>> {
    let source = find(&front, &scope, &path).await?.id;
    let question = Question {
        source,
        kind: Kind::ListTargets,
        target: None,
        runner: None,
        timeout: None,
    };
    let items = ask(&front, &scope, question).await?;
    Ok(Json(Page {
        items,
        next_cursor: None,
    }))
}

/// The columns of a table or view.
#[utoipa::path(
    tag = "sources",
    security(("adminKey" = [])),
    params(
        ("source" = String, Path, description = "Its id or name."),
        ("target" = String, Path, description = "`table` or `schema.table`."),
        EnvironmentQuery,
    ),
    responses(
        (status = 200, description = "The columns.", body = TargetDetails),
        (status = 422, description = "`SOURCE_QUERY_FAILED`: there is no such table.", body = ErrorBody),
        (status = 502, description = "`SOURCE_UNREACHABLE` or `runner_failed`.", body = ErrorBody),
        (status = 503, description = "`SOURCE_UNAVAILABLE`, `no_runners_online`, `runners_busy` or `store_unavailable`.", body = ErrorBody),
        (status = 504, description = "`QUERY_TIMEOUT`.", body = ErrorBody),
    ),
)]
#[get("/v1/sources/{source}/targets/{target}")]
async fn source_target(
    front: Data<Front>,
    scope: Scope,
    path: Path<(String, String)>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<Json<TargetDetails>> {
    let (reference, target) = path.into_inner();
    let source = find(&front, &scope, &reference).await?.id;
    let question = Question {
        source,
        kind: Kind::IntrospectTarget,
        target: Some(target.clone()),
        runner: None,
        timeout: None,
    };
    let rows: Vec<TargetDetails> = ask(&front, &scope, question).await?;
    Ok(Json(
        rows.into_iter()
            .next()
            .ok_or_else(|| ApiError::not_found("table", &target))?,
    ))
}

/// One question to a source.
pub(super) struct Question {
    pub(super) source: SourceId,
    pub(super) kind: Kind,
    pub(super) target: Option<String>,
    /// Whom to ask; `None`: whoever would be asked for a query.
    pub(super) runner: Option<RunnerId>,
    /// How long to wait; `None`: as long as for a query.
    pub(super) timeout: Option<Duration>,
}

/// Asks, and collects the whole answer.
pub(super) async fn ask<T: DeserializeOwned>(
    front: &Front,
    scope: &Scope,
    question: Question,
) -> ApiResult<Vec<T>> {
    let spec = JobSpec {
        organisation_id: scope.organisation_id,
        environment_id: scope.environment.id,
        source_id: question.source,
        lens: None,
        key_id: Some(scope.key_id),
        operation: Operation {
            kind: question.kind,
            target: question.target,
            options: Map::new(),
        },
        encoding: Encoding::Json,
        fields: None,
        paging: Default::default(),
        types: Default::default(),
        timeout: question.timeout,
        only_runner: question.runner,
        wait: Duration::ZERO,
        retry: false,
    };
    let mut stream = front.gateway.dispatch(spec);
    let failed = |error: &JobError, stream: &ReplyStream| {
        job_error(error, stream.job_id(), Audience::Trusted)
    };
    let (mut rows, mut seams) = (vec![b'['], Seams::default());
    loop {
        match stream.next().await {
            Some(Reply::Rows(batch)) => {
                if seams.comma_before(&batch) {
                    rows.push(b',');
                }
                rows.extend_from_slice(&batch.payload);
                if rows.len() > MAX_ANSWER {
                    let error =
                        JobError::ResultOverflow("there are too many tables to list".into());
                    return Err(failed(&error, &stream));
                }
            }
            Some(Reply::Restarted) => {
                rows.truncate(1);
                seams = Seams::default();
            }
            Some(Reply::End(Ok(_))) => break,
            Some(Reply::End(Err(error))) => return Err(failed(&error, &stream)),
            None => return Err(failed(&JobError::Internal, &stream)),
        }
    }
    rows.push(b']');
    serde_json::from_slice(&rows).map_err(|error| {
        ApiError::new(
            Code::RunnerFailed,
            format!("the runner's answer cannot be read: {error}"),
        )
    })
}
