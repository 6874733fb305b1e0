//! Jobs: the record of every query, and the way to stop one.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, get, post};
use tokio::time::Instant;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::control::Catalogue;
use crate::domain::job::JobStatus;
use crate::ids::JobId;
use crate::storage::{self, Changed, JobFilter};
use crate::web::auth::{Admin, environment};
use crate::web::body::Params;
use crate::web::error::{ApiError, ApiResult, Code};
use crate::web::job_error::{Audience, recorded_error, recorded_message};
use crate::web::lookup;
use crate::web::paging::Paging;
use crate::web::reader::Reader;
use crate::web::types::{
    ErrorBody, Failure, Job, JobParty, JobState, JobsQuery, Page, QueryAnswer,
};
use crate::web::{Front, detached};

/// How long a caller waits at most for the end of the job that it cancels, and how often that is looked at.
const CANCEL_WAIT: Duration = Duration::from_secs(3);
const CANCEL_POLL: Duration = Duration::from_millis(50);
/// How often a job is looked for that is neither here nor with nobody.
const CANCEL_TRIES: u32 = 3;
/// When to ask again for the result of a job that is not over.
const RESULT_POLL: Duration = Duration::from_secs(1);

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(job_list)
        .service(job_get)
        .service(job_result)
        .service(job_cancel);
}

/// The jobs of an environment, newest first.
#[utoipa::path(
    tag = "jobs",
    security(("adminKey" = [])),
    params(JobsQuery),
    responses((status = 200, description = "One page.", body = Page<Job>)),
)]
#[get("/v1/jobs")]
async fn job_list(
    front: Data<Front>,
    admin: Admin,
    query: Params<JobsQuery>,
) -> ApiResult<Json<Page<Job>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let catalogue = front.gateway.catalogue.current();
    let environment = environment(
        &catalogue,
        admin.organisation_id,
        query.environment.as_deref(),
    )?;
    let source = query
        .source
        .as_deref()
        .map(|name| lookup::source(&catalogue, environment.id, name))
        .transpose()?;
    let runner = query
        .runner
        .as_deref()
        .map(|name| lookup::runner(&catalogue, admin.organisation_id, name))
        .transpose()?;
    let filter = JobFilter {
        environment: Some(environment.id),
        status: query.state.map(JobStatus::from),
        source,
        runner,
        from: query.since,
        until: query.until,
    };
    let rows = front
        .gateway
        .store
        .job_list(admin.organisation_id, filter, paging.page())
        .await?;
    Ok(Json(
        paging
            .cut(rows, |row| row.id)
            .map(|row| shown(&catalogue, row)),
    ))
}

/// One job. A caller sees those that it asked itself.
#[utoipa::path(
    tag = "jobs",
    security(("adminKey" = []), ("secretKey" = []), ("publishableKey" = [])),
    params(("job" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The job.", body = Job)),
)]
#[get("/v1/jobs/{job}")]
async fn job_get(front: Data<Front>, reader: Reader, path: Path<String>) -> ApiResult<Json<Job>> {
    let row = reader.job(&front, &path).await?;
    Ok(Json(shown_to(&front, &reader, row)))
}

/// What a detached job answered, as the query would have: the same body, or the same error.
#[utoipa::path(
    tag = "jobs",
    security(("adminKey" = []), ("secretKey" = []), ("publishableKey" = [])),
    params(("job" = String, Path, description = "Its id.")),
    responses(
        (status = 200, description = "The rows or the count, in the format that the query asked for.", body = QueryAnswer),
        (status = 404, description = "`not_found`: there is no such job, it is somebody else's, or its caller waited for it.", body = ErrorBody),
        (status = 409, description = "`conflict`: it is not over yet; `state` says how far it is, `Retry-After` when to ask again. `job_cancelled`: it was cancelled.", body = ErrorBody),
        (status = 410, description = "`result_expired`: its result is not kept any more.", body = ErrorBody),
        (status = 422, description = "`SOURCE_QUERY_FAILED`: the database rejected the query.", body = ErrorBody),
        (status = 502, description = "`SOURCE_UNREACHABLE`, `runner_failed` or `result_overflow`.", body = ErrorBody),
        (status = 504, description = "`QUERY_TIMEOUT`: it did not finish before its deadline.", body = ErrorBody),
    ),
)]
#[get("/v1/jobs/{job}/result")]
async fn job_result(
    front: Data<Front>,
    reader: Reader,
    path: Path<String>,
) -> ApiResult<HttpResponse> {
    let row = reader.job(&front, &path).await?;
    if !row.detached {
        let message = "its caller waited for this job and got its result; only that of a query with \
                       `Prefer: respond-async` is kept";
        return Err(ApiError::new(Code::NotFound, message).with("jobId", row.id.to_string()));
    }
    match row.status {
        JobStatus::Completed => match front.gateway.kept_result(&row).await? {
            // The permit is held until the answer is built.
            Some((kept, _permit)) => detached::show(&front, row.id, kept, reader.audience()),
            None => Err(ApiError::new(
                Code::ResultExpired,
                "the result of this job is not kept any more; ask the query again",
            )
            .with("jobId", row.id.to_string())),
        },
        status if status.is_terminal() => Err(recorded_error(&row, reader.audience())),
        status => Err(not_over(row.id, status)),
    }
}

fn not_over(job_id: JobId, status: JobStatus) -> ApiError {
    let state = status.as_str();
    ApiError::new(
        Code::Conflict,
        format!("the job is not over yet, it is {state}"),
    )
    .with("state", state)
    .with("jobId", job_id.to_string())
    .retry_after(RESULT_POLL)
}

/// Stops a job, at the database too. Its caller gets 409 `job_cancelled`.
#[utoipa::path(
    tag = "jobs",
    security(("adminKey" = []), ("secretKey" = []), ("publishableKey" = [])),
    params(("job" = String, Path, description = "Its id.")),
    responses(
        (status = 200, description = "The job, cancelled.", body = Job),
        (status = 202, description = "The job, told to stop but not yet recorded as cancelled.", body = Job),
        (status = 409, description = "`conflict`: the job is over already, or whoever has it cannot be told.", body = ErrorBody),
    ),
)]
#[post("/v1/jobs/{job}/cancel")]
async fn job_cancel(
    front: Data<Front>,
    reader: Reader,
    path: Path<String>,
) -> ApiResult<(Json<Job>, StatusCode)> {
    let row = reader.job(&front, &path).await?;
    if row.status.is_terminal() {
        return Err(over(&row));
    }
    let (row, was_under_way) = stop(&front, row).await?;
    // One that has just ended here is not under way any more, and its end may not be written down yet.
    let row = if was_under_way || row.claimed_by == Some(front.gateway.gateway_id()) {
        until_over(&front, &reader, &path).await?
    } else {
        row
    };
    let status = match row.status {
        JobStatus::Cancelled => StatusCode::OK,
        // It may have ended of its own accord meanwhile; what counts is what was written down.
        status if status.is_terminal() => return Err(over(&row)),
        _ if was_under_way => StatusCode::ACCEPTED,
        _ => return Err(elsewhere(&row)),
    };
    Ok((Json(shown_to(&front, &reader, row)), status))
}

/// Has a job ended by whoever has it, or ends it if nobody does; answers how it stands, and whether it was
/// under way. One that is taken or given back at this very moment is looked for again.
async fn stop(front: &Front, mut row: storage::Job) -> ApiResult<(storage::Job, bool)> {
    let store = &front.gateway.store;
    for _ in 0..CANCEL_TRIES {
        if cancel(front, &row).await {
            return Ok((row, true));
        }
        let now = front.gateway.clock.now();
        match store
            .job_cancel_pending(row.organisation_id, row.id, now)
            .await?
        {
            Changed::Done(cancelled) => return Ok((cancelled, false)),
            Changed::OtherState(now) => row = now,
            Changed::Absent => break,
        }
        if row.status.is_terminal() {
            break;
        }
        tokio::time::sleep(CANCEL_POLL).await;
    }
    Ok((row, false))
}

/// Has the job ended by whoever executes it; answers whether it was under way.
async fn cancel(front: &Front, row: &storage::Job) -> bool {
    if front.gateway.cancel(row.id).await {
        return true;
    }
    match row.claimed_by {
        Some(holder) if holder != front.gateway.gateway_id() => {
            front.gateway.cancel_elsewhere(holder, row.id).await
        }
        _ => false,
    }
}

/// Reads the job until its end is recorded, for as long as a caller may be kept waiting.
async fn until_over(front: &Front, reader: &Reader, reference: &str) -> ApiResult<storage::Job> {
    let until = Instant::now() + CANCEL_WAIT;
    loop {
        let row = reader.job(front, reference).await?;
        if row.status.is_terminal() || Instant::now() >= until {
            return Ok(row);
        }
        tokio::time::sleep(CANCEL_POLL).await;
    }
}

fn over(row: &storage::Job) -> ApiError {
    let state = row.status.as_str();
    let message = format!("the job is over already, it is {state}");
    ApiError::new(Code::Conflict, message).with("state", state)
}

fn elsewhere(row: &storage::Job) -> ApiError {
    let state = row.status.as_str();
    let message = format!(
        "the job is {state}, and the gateway that has it could not be told to stop it; try again"
    );
    ApiError::new(Code::Conflict, message).with("state", state)
}

/// The job, without what a browser has no business to know.
fn shown_to(front: &Front, reader: &Reader, row: storage::Job) -> Job {
    let message = recorded_message(&row, reader.audience());
    let mut job = shown(&front.gateway.catalogue.current(), row);
    if reader.audience() == Audience::Public {
        job.source.name = None;
        job.gateway_id = None;
        job.routing = None;
        if let Some(runner) = &mut job.runner {
            runner.name = None;
        }
        if let Some(error) = &mut job.error {
            error.message = message;
        }
    }
    job
}

fn shown(catalogue: &Catalogue, row: storage::Job) -> Job {
    let source = catalogue
        .source(row.source_id)
        .map(|source| source.name.clone());
    let runner = |id| JobParty {
        id,
        name: catalogue.runner(id).map(|runner| runner.name.clone()),
    };
    Job {
        id: row.id,
        state: row.status.into(),
        kind: row.kind,
        source: JobParty {
            id: row.source_id,
            name: source,
        },
        lens: row.lens,
        runner: row.runner_id.map(runner),
        gateway_id: row.claimed_by,
        attempt: row.attempt.unsigned_abs(),
        rows: row.row_count.map(i64::unsigned_abs),
        error: row.error_code.map(|code| Failure {
            code,
            message: row.error_message.unwrap_or_default(),
        }),
        routing: row.routing,
        duration_ms: row.duration_ms.map(i64::unsigned_abs),
        created_at: row.created_at,
        deadline_at: row.deadline_at,
        dispatched_at: row.dispatched_at,
        finished_at: row.finished_at,
    }
}

impl From<JobStatus> for JobState {
    fn from(status: JobStatus) -> Self {
        match status {
            JobStatus::Pending => Self::Pending,
            JobStatus::Claimed => Self::Claimed,
            JobStatus::Dispatched => Self::Dispatched,
            JobStatus::Completed => Self::Completed,
            JobStatus::Failed => Self::Failed,
            JobStatus::Cancelled => Self::Cancelled,
            JobStatus::Expired => Self::Expired,
        }
    }
}

impl From<JobState> for JobStatus {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Pending => Self::Pending,
            JobState::Claimed => Self::Claimed,
            JobState::Dispatched => Self::Dispatched,
            JobState::Completed => Self::Completed,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
            JobState::Expired => Self::Expired,
        }
    }
}
