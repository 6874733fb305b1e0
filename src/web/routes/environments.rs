//! Environments of the organisation.

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, delete, get, patch, post};
use utoipa_actix_web::service_config::ServiceConfig;

use super::created;
use crate::ids::EnvironmentId;
use crate::storage;
use crate::web::Front;
use crate::web::auth::{Admin, environment};
use crate::web::body::{Body, Params};
use crate::web::error::ApiResult;
use crate::web::lookup::{Missing as _, check_slug};
use crate::web::paging::Paging;
use crate::web::types::{
    Environment, EnvironmentCreate, EnvironmentUpdate, ErrorBody, Page, PageQuery,
};

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(environment_create)
        .service(environment_list)
        .service(environment_get)
        .service(environment_update)
        .service(environment_delete);
}

/// Creates an environment.
#[utoipa::path(
    tag = "environments",
    request_body = EnvironmentCreate,
    security(("adminKey" = [])),
    responses(
        (status = 201, description = "The environment.", body = Environment),
        (status = 409, description = "`conflict`: the slug is taken.", body = ErrorBody),
    ),
)]
#[post("/v1/environments")]
async fn environment_create(
    front: Data<Front>,
    admin: Admin,
    Body(request): Body<EnvironmentCreate>,
) -> ApiResult<HttpResponse> {
    check_slug("slug", &request.slug)?;
    let new = storage::Environment {
        id: EnvironmentId::new(),
        organisation_id: admin.organisation_id,
        slug: request.slug,
        created_at: front.gateway.clock.now(),
    };
    let row = front.gateway.store.environment_create(new).await?;
    front.gateway.refresh().await?;
    Ok(created(format!("/v1/environments/{}", row.id), &shown(row)))
}

/// The environments, oldest first.
#[utoipa::path(
    tag = "environments",
    security(("adminKey" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page.", body = Page<Environment>)),
)]
#[get("/v1/environments")]
async fn environment_list(
    front: Data<Front>,
    admin: Admin,
    query: Params<PageQuery>,
) -> ApiResult<Json<Page<Environment>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let rows = front
        .gateway
        .store
        .environment_list(admin.organisation_id, paging.page())
        .await?;
    Ok(Json(paging.cut(rows, |row| row.id).map(shown)))
}

/// One environment.
#[utoipa::path(
    tag = "environments",
    request_body = EnvironmentUpdate,
    security(("adminKey" = [])),
    params(("environment" = String, Path, description = "Its id or slug.")),
    responses((status = 200, description = "The environment.", body = Environment)),
)]
#[get("/v1/environments/{environment}")]
async fn environment_get(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<Json<Environment>> {
    let found = environment(
        &front.gateway.catalogue.current(),
        admin.organisation_id,
        Some(&path),
    )?;
    Ok(Json(shown(found)))
}

/// Changes an environment's slug. Keys that were made before keep the old one in their text, and work on.
#[utoipa::path(
    tag = "environments",
    security(("adminKey" = [])),
    params(("environment" = String, Path, description = "Its id or slug.")),
    responses(
        (status = 200, description = "The environment.", body = Environment),
        (status = 409, description = "`conflict`: the slug is taken.", body = ErrorBody),
    ),
)]
#[patch("/v1/environments/{environment}")]
async fn environment_update(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
    Body(request): Body<EnvironmentUpdate>,
) -> ApiResult<Json<Environment>> {
    let found = environment(
        &front.gateway.catalogue.current(),
        admin.organisation_id,
        Some(&path),
    )?;
    let Some(slug) = request.slug else {
        return Ok(Json(shown(found)));
    };
    check_slug("slug", &slug)?;
    let renamed = front
        .gateway
        .store
        .environment_rename(
            admin.organisation_id,
            found.id,
            slug,
            front.gateway.clock.now(),
        )
        .await;
    let row = renamed.missing("environment", &path)?;
    front.gateway.refresh().await?;
    Ok(Json(shown(row)))
}

/// Removes an environment that has no sources left, and its keys with it.
#[utoipa::path(
    tag = "environments",
    security(("adminKey" = [])),
    params(("environment" = String, Path, description = "Its id or slug.")),
    responses(
        (status = 204, description = "It is gone."),
        (status = 409, description = "`conflict`: it still has sources.", body = ErrorBody),
    ),
)]
#[delete("/v1/environments/{environment}")]
async fn environment_delete(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
) -> ApiResult<HttpResponse> {
    let found = environment(
        &front.gateway.catalogue.current(),
        admin.organisation_id,
        Some(&path),
    )?;
    front
        .gateway
        .store
        .environment_delete(admin.organisation_id, found.id, front.gateway.clock.now())
        .await
        .missing("environment", &path)?;
    front.gateway.refresh().await?;
    Ok(HttpResponse::NoContent().finish())
}

fn shown(row: storage::Environment) -> Environment {
    Environment {
        id: row.id,
        slug: row.slug,
        created_at: row.created_at,
    }
}
