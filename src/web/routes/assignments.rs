//! Assignments: which runner serves which sources.

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, delete, put};
use utoipa_actix_web::service_config::ServiceConfig;

use super::runners::{RunnerView, find};
use crate::control::Catalogue;
use crate::ids::SourceId;
use crate::web::Front;
use crate::web::auth::{Admin, environment};
use crate::web::body::{Body, Params};
use crate::web::error::ApiResult;
use crate::web::lookup::{self, Missing as _};
use crate::web::types::{AssignmentsPut, EnvironmentQuery, Runner};

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(assignment_replace)
        .service(assignment_add)
        .service(assignment_remove);
}

/// Makes these sources, and no others, the ones that a runner serves. In force when it is answered.
#[utoipa::path(
    tag = "assignments",
    request_body = AssignmentsPut,
    security(("adminKey" = [])),
    params(("runner" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses((status = 200, description = "The runner.", body = Runner)),
)]
#[put("/v1/runners/{runner}/assignments")]
async fn assignment_replace(
    front: Data<Front>,
    admin: Admin,
    path: Path<String>,
    query: Params<EnvironmentQuery>,
    Body(request): Body<AssignmentsPut>,
) -> ApiResult<Json<Runner>> {
    let gateway = &front.gateway;
    let catalogue = gateway.catalogue.current();
    let runner = find(&front, &admin, &path).await?;
    let mut wanted = Vec::with_capacity(request.source_ids.len());
    for (at, reference) in request.source_ids.iter().enumerate() {
        let found = source(&catalogue, &admin, &query, reference);
        wanted.push(found.map_err(|error| error.with("path", format!("sourceIds[{at}]")))?);
    }
    wanted.sort_unstable();
    wanted.dedup();
    let replaced = gateway
        .store
        .assignment_replace(
            admin.organisation_id,
            runner.id,
            wanted,
            gateway.clock.now(),
        )
        .await;
    replaced.missing("source", &request.source_ids.join(", "))?;
    gateway.refresh().await?;
    Ok(Json(RunnerView::now(&front).await.show(runner)))
}

/// Has a runner serve one more source.
#[utoipa::path(
    tag = "assignments",
    security(("adminKey" = [])),
    params(
        ("runner" = String, Path, description = "Its id or name."),
        ("source" = String, Path, description = "Its id or name."),
        EnvironmentQuery,
    ),
    responses((status = 200, description = "The runner.", body = Runner)),
)]
#[put("/v1/runners/{runner}/assignments/{source}")]
async fn assignment_add(
    front: Data<Front>,
    admin: Admin,
    path: Path<(String, String)>,
    query: Params<EnvironmentQuery>,
) -> ApiResult<Json<Runner>> {
    let gateway = &front.gateway;
    let (runner, reference) = path.into_inner();
    let runner = find(&front, &admin, &runner).await?;
    let source = source(&gateway.catalogue.current(), &admin, &query, &reference)?;
    let added = gateway
        .store
        .assignment_add(
            admin.organisation_id,
            runner.id,
            source,
            gateway.clock.now(),
        )
        .await;
    added.missing("source", &reference)?;
    gateway.refresh().await?;
    Ok(Json(RunnerView::now(&front).await.show(runner)))
}

/// Has a runner serve a source no longer. What it has begun it finishes.
#[utoipa::path(
    tag = "assignments",
    security(("adminKey" = [])),
    params(
        ("runner" = String, Path, description = "Its id or name."),
        ("source" = String, Path, description = "Its id or name."),
        EnvironmentQuery,
    ),
    responses((status = 204, description = "It does not any more.")),
)]
#[delete("/v1/runners/{runner}/assignments/{source}")]
async fn assignment_remove(
    front: Data<Front>,
    admin: Admin,
    path: Path<(String, String)>,
    query: Params<EnvironmentQuery>,
) -> ApiResult<HttpResponse> {
    let gateway = &front.gateway;
    let (runner, reference) = path.into_inner();
    let runner = find(&front, &admin, &runner).await?;
    let source = source(&gateway.catalogue.current(), &admin, &query, &reference)?;
    let removed = gateway
        .store
        .assignment_remove(
            admin.organisation_id,
            runner.id,
            source,
            gateway.clock.now(),
        )
        .await;
    removed.missing("assignment of source", &reference)?;
    gateway.refresh().await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The source of that id; or of that name, which is unique only in its environment.
fn source(
    catalogue: &Catalogue,
    admin: &Admin,
    query: &EnvironmentQuery,
    reference: &str,
) -> ApiResult<SourceId> {
    if let Ok(id) = reference.parse() {
        return Ok(id);
    }
    let environment = environment(
        catalogue,
        admin.organisation_id,
        query.environment.as_deref(),
    )?;
    lookup::source(catalogue, environment.id, reference)
}
