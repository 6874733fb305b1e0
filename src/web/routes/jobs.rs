//! Jobs: the record of every query, and the way to stop one.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Json, Path};
use actix_web::{get, post};
use tokio::time::Instant;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::control::Catalogue;
use crate::domain::job::JobStatus;
use crate::ids::JobId;
use crate::storage::{self, JobFilter};
use crate::web::Front;
use crate::web::auth::{Admin, environment};
use crate::web::body::Params;
use crate::web::error::{ApiError, ApiResult, Code};
use crate::web::lookup::{self, Missing as _};
use crate::web::paging::Paging;
use crate::web::types::{ErrorBody, Failure, Job, JobParty, JobState, JobsQuery, Page};

/// How long a caller waits at most for the end of the job that it cancels, and how often that is looked at.
const CANCEL_WAIT: Duration = Duration::from_secs(3);
const CANCEL_POLL: Duration = Duration::from_millis(50);

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(job_list)
        .service(job_get)
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

/// One job.
#[utoipa::path(
    tag = "jobs",
    security(("adminKey" = [])),
    params(("job" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The job.", body = Job)),
)]
#[get("/v1/jobs/{job}")]
async fn job_get(front: Data<Front>, admin: Admin, path: Path<String>) -> ApiResult<Json<Job>> {
    let row = find(&front, &admin, &path).await?;
    Ok(Json(shown(&front.gateway.catalogue.current(), row)))
}

/// Stops a job, at the database too. Its caller gets 409 `job_cancelled`.
#[utoipa::path(
    tag = "jobs",
    security(("adminKey" = [])),
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
    admin: Admin,
    path: Path<String>,
) -> ApiResult<(Json<Job>, StatusCode)> {
    let row = find(&front, &admin, &path).await?;
    if row.status.is_terminal() {
        return Err(over(&row));
    }
    let was_under_way = cancel(&front, &row).await;
    // One that has just ended here is not under way any more, and its end may not be written down yet.
    let row = if was_under_way || row.claimed_by == Some(front.gateway.gateway_id()) {
        until_over(&front, &admin, &path).await?
    } else {
        find(&front, &admin, &path).await?
    };
    let status = match row.status {
        JobStatus::Cancelled => StatusCode::OK,
        // It may have ended of its own accord meanwhile; what counts is what was written down.
        status if status.is_terminal() => return Err(over(&row)),
        _ if was_under_way => StatusCode::ACCEPTED,
        _ => return Err(elsewhere(&row)),
    };
    Ok((Json(shown(&front.gateway.catalogue.current(), row)), status))
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
async fn until_over(front: &Front, admin: &Admin, reference: &str) -> ApiResult<storage::Job> {
    let until = Instant::now() + CANCEL_WAIT;
    loop {
        let row = find(front, admin, reference).await?;
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

async fn find(front: &Front, admin: &Admin, reference: &str) -> ApiResult<storage::Job> {
    let id: JobId = reference
        .parse()
        .ok()
        .ok_or_else(|| ApiError::not_found("job", reference))?;
    front
        .gateway
        .store
        .job_get(admin.organisation_id, id)
        .await
        .missing("job", reference)
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
