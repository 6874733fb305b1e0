//! Runners: their life, their tokens, their sessions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, delete, get, patch, post};
use utoipa_actix_web::service_config::ServiceConfig;

use super::created_with_secret;
use crate::clock::UtcTime;
use crate::control::{Catalogue, RunnerLive};
use crate::ids::RunnerId;
use crate::storage::{self, Changed, KeyKind, NewRunner, Rotation, RunnerChange};
use crate::web::Front;
use crate::web::auth::Admin;
use crate::web::body::{Body, OptionalBody, Params};
use crate::web::error::{ApiError, ApiResult, Code};
use crate::web::lookup::{self, Missing as _, check_name};
use crate::web::minting::{Minted, Opens};
use crate::web::paging::Paging;
use crate::web::types::{
    ErrorBody, Named, Page, PageQuery, Runner, RunnerCreate, RunnerRotate, RunnerSession,
    RunnerStatus, RunnerUpdate, RunnerWithToken,
};

/// The longest time that a rotated token may still work, in seconds.
const MAX_GRACE_SECONDS: u32 = 24 * 60 * 60;

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(runner_create)
        .service(runner_list)
        .service(runner_get)
        .service(runner_update)
        .service(runner_delete)
        .service(runner_rotate)
        .service(runner_revoke)
        .service(runner_drain)
        .service(runner_resume)
        .service(runner_sessions);
}

/// Creates a runner with its first token.
#[utoipa::path(
    tag = "runners",
    request_body = RunnerCreate,
    security(("adminKey" = [])),
    responses(
        (status = 201, description = "The runner and its token, shown this once.", body = RunnerWithToken),
        (status = 409, description = "`conflict`: the name is taken.", body = ErrorBody),
    ),
)]
#[post("/v1/runners")]
async fn runner_create(
    front: Data<Front>,
    admin: Admin,
    Body(request): Body<RunnerCreate>,
) -> ApiResult<HttpResponse> {
    check_name("name", &request.name)?;
    let gateway = &front.gateway;
    let now = gateway.clock.now();
    let id = RunnerId::new();
    let minted = mint(&front, &admin, id, now)?;
    let new = NewRunner {
        id,
        name: request.name,
        deployment: request.deployment,
        group_id: request.group_id,
    };
    let row = gateway
        .store
        .runner_create(admin.organisation_id, new, minted.row, now)
        .await;
    let row = row.missing(
        "group",
        &request
            .group_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
    )?;
    gateway.refresh().await?;
    let runner = RunnerView::now(&front).await.show(row);
    Ok(created_with_secret(
        format!("/v1/runners/{id}"),
        &with_token(runner, minted.text),
    ))
}

/// The runners, oldest first.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page.", body = Page<Runner>)),
)]
#[get("/v1/runners")]
async fn runner_list(
    front: Data<Front>,
    admin: Admin,
    query: Params<PageQuery>,
) -> ApiResult<Json<Page<Runner>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let rows = front
        .gateway
        .store
        .runner_list(admin.organisation_id, paging.page())
        .await?;
    let page = paging.cut(rows, |row| row.id);
    let view = RunnerView::now(&front).await;
    Ok(Json(page.map(|row| view.show(row))))
}

/// One runner.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses((status = 200, description = "The runner.", body = Runner)),
)]
#[get("/v1/runners/{runner}")]
async fn runner_get(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<Json<Runner>> {
    let row = find(&front, &admin, &path).await?;
    Ok(Json(RunnerView::now(&front).await.show(row)))
}

/// Changes a runner; what is absent stays.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses(
        (status = 200, description = "The runner.", body = Runner),
        (status = 409, description = "`conflict`: the name is taken.", body = ErrorBody),
    ),
)]
#[patch("/v1/runners/{runner}")]
async fn runner_update(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
    Body(request): Body<RunnerUpdate>,
) -> ApiResult<Json<Runner>> {
    let id = find(&front, &admin, &path).await?.id;
    if let Some(name) = &request.name {
        check_name("name", name)?;
    }
    let group = request.group_id.flatten();
    let change = RunnerChange {
        name: request.name,
        group_id: request.group_id,
        ..RunnerChange::default()
    };
    let missing = group.map_or(("runner", path.to_string()), |group| {
        ("group", group.to_string())
    });
    change_runner(&front, &admin, id, change, (missing.0, &missing.1)).await
}

/// Removes a runner, its tokens and assignments; closes its sessions. What it did stays on record.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses((status = 204, description = "It is gone.")),
)]
#[delete("/v1/runners/{runner}")]
async fn runner_delete(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<HttpResponse> {
    let id = lookup::runner(
        &front.gateway.catalogue.current(),
        admin.organisation_id,
        &path,
    )?;
    front
        .gateway
        .store
        .runner_delete(admin.organisation_id, id, front.gateway.clock.now())
        .await
        .missing("runner", &path)?;
    front.gateway.refresh().await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Gives a runner a new token. The old ones stop at once and their sessions are closed, or later with
/// `graceSeconds`. The body may be left out.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    request_body = Option<RunnerRotate>,
    responses(
        (status = 200, description = "The runner and its new token, shown this once.", body = RunnerWithToken),
        (status = 409, description = "`conflict`: the runner was revoked.", body = ErrorBody),
    ),
)]
#[post("/v1/runners/{runner}/rotate")]
async fn runner_rotate(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
    OptionalBody(request): OptionalBody<RunnerRotate>,
) -> ApiResult<HttpResponse> {
    let gateway = &front.gateway;
    let grace = request.grace_seconds.unwrap_or(0);
    if grace > MAX_GRACE_SECONDS {
        let message = format!("`graceSeconds` must be at most {MAX_GRACE_SECONDS}, a day");
        return Err(ApiError::invalid("graceSeconds", message));
    }
    let now = gateway.clock.now();
    let id = lookup::runner(&gateway.catalogue.current(), admin.organisation_id, &path)?;
    let minted = mint(&front, &admin, id, now)?;
    let old_keys_expire_at = (grace > 0).then(|| now.plus(Duration::from_secs(grace.into())));
    let rotation = Rotation {
        key: minted.row,
        old_keys_expire_at,
    };
    let row = match gateway
        .store
        .runner_rotate(admin.organisation_id, id, rotation, now)
        .await?
    {
        Changed::Done(row) => row,
        Changed::OtherState(_) => {
            return Err(ApiError::new(
                Code::Conflict,
                "the runner was revoked, for good; create a new one",
            ));
        }
        Changed::Absent => return Err(ApiError::not_found("runner", &path)),
    };
    gateway.refresh().await?;
    let runner = RunnerView::now(&front).await.show(row);
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(with_token(runner, minted.text)))
}

/// Ends a runner for good: its tokens stop and its sessions are closed. Doing so twice changes nothing.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses((status = 200, description = "The runner.", body = Runner)),
)]
#[post("/v1/runners/{runner}/revoke")]
async fn runner_revoke(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<Json<Runner>> {
    let gateway = &front.gateway;
    let id = lookup::runner(&gateway.catalogue.current(), admin.organisation_id, &path)?;
    let row = match gateway
        .store
        .runner_revoke(admin.organisation_id, id, gateway.clock.now())
        .await?
    {
        Changed::Done(row) | Changed::OtherState(row) => row,
        Changed::Absent => return Err(ApiError::not_found("runner", &path)),
    };
    gateway.refresh().await?;
    Ok(Json(RunnerView::now(&front).await.show(row)))
}

/// Lets a runner finish what it has and gives it nothing new, until it is resumed.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses((status = 200, description = "The runner.", body = Runner)),
)]
#[post("/v1/runners/{runner}/drain")]
async fn runner_drain(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<Json<Runner>> {
    let row = find(&front, &admin, &path).await?;
    let since = row.drained_at.unwrap_or_else(|| front.gateway.clock.now());
    let change = RunnerChange {
        drained_at: Some(Some(since)),
        ..RunnerChange::default()
    };
    change_runner(&front, &admin, row.id, change, ("runner", &path)).await
}

/// Gives a drained runner work again.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses((status = 200, description = "The runner.", body = Runner)),
)]
#[post("/v1/runners/{runner}/resume")]
async fn runner_resume(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<Json<Runner>> {
    let id = find(&front, &admin, &path).await?.id;
    let change = RunnerChange {
        drained_at: Some(None),
        ..RunnerChange::default()
    };
    change_runner(&front, &admin, id, change, ("runner", &path)).await
}

/// The runner's connections, oldest first, all on one page.
#[utoipa::path(
    tag = "runners",
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name.")),
    responses((status = 200, description = "The sessions.", body = Page<RunnerSession>)),
)]
#[get("/v1/runners/{runner}/sessions")]
async fn runner_sessions(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<Json<Page<RunnerSession>>> {
    let id = find(&front, &admin, &path).await?.id;
    let rows = front
        .gateway
        .store
        .session_list(admin.organisation_id, id)
        .await?;
    Ok(Json(Page {
        items: rows.into_iter().map(session).collect(),
        next_cursor: None,
    }))
}

/// The runner of that id or name, as it is stored.
pub(super) async fn find(
    front: &Front,
    admin: &Admin,
    reference: &str,
) -> ApiResult<storage::Runner> {
    let id = lookup::runner(
        &front.gateway.catalogue.current(),
        admin.organisation_id,
        reference,
    )?;
    front
        .gateway
        .store
        .runner_get(admin.organisation_id, id)
        .await
        .missing("runner", reference)
}

async fn change_runner(
    front: &Front,
    admin: &Admin,
    id: RunnerId,
    change: RunnerChange,
    missing: (&str, &str),
) -> ApiResult<Json<Runner>> {
    let gateway = &front.gateway;
    let row = gateway
        .store
        .runner_update(admin.organisation_id, id, change, gateway.clock.now())
        .await;
    let row = row.missing(missing.0, missing.1)?;
    gateway.refresh().await?;
    Ok(Json(RunnerView::now(front).await.show(row)))
}

fn mint(front: &Front, admin: &Admin, runner: RunnerId, now: UtcTime) -> ApiResult<Minted> {
    let catalogue = front.gateway.catalogue.current();
    let organisation = catalogue.organisation(admin.organisation_id);
    let slug = &organisation
        .ok_or_else(|| ApiError::not_found("organisation", ""))?
        .slug;
    Ok(Minted::new(
        KeyKind::Runner,
        slug,
        Opens::runner(admin.organisation_id, runner),
        None,
        None,
        now,
    ))
}

fn with_token(runner: Runner, token: String) -> RunnerWithToken {
    let env = format!(
        "SEMILAYER_RUNNER_ID={}\nSEMILAYER_RUNNER_TOKEN={token}\n",
        runner.id
    );
    RunnerWithToken { runner, token, env }
}

/// What runners are shown by: what is stored, with what this gateway knows of their sessions.
pub(super) struct RunnerView {
    catalogue: Arc<Catalogue>,
    live: HashMap<RunnerId, RunnerLive>,
}

impl RunnerView {
    /// The view at this moment.
    pub(super) async fn now(front: &Front) -> Self {
        Self {
            catalogue: front.gateway.catalogue.current(),
            live: front.gateway.live_runners().await,
        }
    }

    /// One runner.
    pub(super) fn show(&self, row: storage::Runner) -> Runner {
        let live = self.live.get(&row.id).cloned().unwrap_or_default();
        let assigned = self
            .catalogue
            .sources_of(row.id)
            .iter()
            .filter_map(|id| self.catalogue.source(*id));
        let mut sources: Vec<_> = assigned
            .map(|source| Named {
                id: source.id,
                name: source.name.clone(),
            })
            .collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        Runner {
            status: status(&row, &live),
            id: row.id,
            name: row.name,
            deployment: row.deployment,
            group_id: row.group_id,
            version: live.version.or(row.last_version),
            sources,
            sessions: live.sessions,
            jobs: live.active_jobs,
            last_seen: row.last_seen_at,
            created_at: row.created_at,
        }
    }
}

fn status(row: &storage::Runner, live: &RunnerLive) -> RunnerStatus {
    if row.revoked_at.is_some() {
        RunnerStatus::Revoked
    } else if live.draining > 0 && live.healthy == 0 || live.healthy > 0 && row.drained_at.is_some()
    {
        RunnerStatus::Draining
    } else if live.healthy > 0 {
        RunnerStatus::Online
    } else if row.last_seen_at.is_none() {
        RunnerStatus::NeverConnected
    } else {
        RunnerStatus::Offline
    }
}

fn session(row: storage::Session) -> RunnerSession {
    let capabilities = row.capabilities.as_array().into_iter().flatten();
    RunnerSession {
        id: row.id,
        gateway_id: row.gateway_id,
        instance_id: row.instance_id,
        protocol: row.protocol.unsigned_abs(),
        version: row.version,
        hostname: row.hostname,
        capabilities: capabilities
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        capacity: row.max_jobs.unsigned_abs(),
        connected_at: row.connected_at,
        last_seen: row.last_seen_at,
    }
}
