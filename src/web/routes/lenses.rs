//! Lenses. Their definitions are read by `query::lens`, which names the path of what is wrong.

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, delete, get, patch, post};
use serde_json::{Map, Value, json};
use utoipa_actix_web::service_config::ServiceConfig;

use super::created;
use super::lens_warnings::warnings;
use crate::ids::{LensId, SourceId};
use crate::query::lens::Lens as Definition;
use crate::storage::{self, LensChange, NewLens};
use crate::web::Front;
use crate::web::auth::Scope;
use crate::web::body::{Body, Params};
use crate::web::error::ApiResult;
use crate::web::lookup::{self, Missing as _, check_name};
use crate::web::paging::Paging;
use crate::web::types::{
    EnvironmentQuery, ErrorBody, Lens, LensCreate, LensUpdate, Named, Page, ScopedPageQuery,
};

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(lens_create)
        .service(lens_list)
        .service(lens_get)
        .service(lens_update)
        .service(lens_delete);
}

/// Creates a lens. In force when it is answered.
#[utoipa::path(
    tag = "lenses",
    request_body = LensCreate,
    security(("adminKey" = [])),
    params(EnvironmentQuery),
    responses(
        (status = 201, description = "The lens.", body = Lens),
        (status = 404, description = "`not_found`: there is no such source.", body = ErrorBody),
        (status = 409, description = "`conflict`: the name is taken.", body = ErrorBody),
    ),
)]
#[post("/v1/lenses")]
async fn lens_create(
    front: Data<Front>,
    scope: Scope,
    _: Params<EnvironmentQuery>,
    Body(request): Body<LensCreate>,
) -> ApiResult<HttpResponse> {
    let gateway = &front.gateway;
    check_name("name", &request.name)?;
    let source_id = source(&front, &scope, &request.source_id)?;
    let id = LensId::new();
    let definition = Definition::parse(&json!({
        "name": request.name,
        "sourceId": source_id,
        "table": request.table,
        "primaryKey": request.primary_key,
        "fields": request.fields,
        "grants": request.grants,
        "relations": request.relations,
        "onRunnerFailure": request.on_runner_failure,
    }))?;
    let columns = Columns::of(&definition);
    let new = NewLens {
        id,
        name: request.name,
        source_id,
        target: columns.target,
        primary_key: columns.primary_key,
        fields: columns.fields,
        grants: columns.grants,
        relations: columns.relations,
        on_runner_failure: columns.on_runner_failure,
    };
    let row = gateway
        .store
        .lens_create(scope.environment.id, new, gateway.clock.now())
        .await;
    let row = row.missing("source", &request.source_id)?;
    gateway.refresh().await?;
    let warnings = warnings(&front, &scope, source_id, &definition).await;
    let lens = Lens {
        warnings,
        ..shown(&front, &scope, row)
    };
    Ok(created(format!("/v1/lenses/{id}"), &lens))
}

/// The lenses of an environment, oldest first.
#[utoipa::path(
    tag = "lenses",
    security(("adminKey" = [])),
    params(ScopedPageQuery),
    responses((status = 200, description = "One page.", body = Page<Lens>)),
)]
#[get("/v1/lenses")]
async fn lens_list(
    front: Data<Front>,
    scope: Scope,
    query: Params<ScopedPageQuery>,
) -> ApiResult<Json<Page<Lens>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let rows = front
        .gateway
        .store
        .lens_list(scope.environment.id, paging.page())
        .await?;
    Ok(Json(
        paging
            .cut(rows, |row| row.id)
            .map(|row| shown(&front, &scope, row)),
    ))
}

/// One lens.
#[utoipa::path(
    tag = "lenses",
    security(("adminKey" = [])),
    params(("lens" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses((status = 200, description = "The lens.", body = Lens)),
)]
#[get("/v1/lenses/{lens}")]
async fn lens_get(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<Json<Lens>> {
    let row = find(&front, &scope, &path).await?;
    Ok(Json(shown(&front, &scope, row)))
}

/// Changes a lens; what is absent stays, what is there is replaced whole. In force when it is answered.
#[utoipa::path(
    tag = "lenses",
    request_body = LensUpdate,
    security(("adminKey" = [])),
    params(("lens" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses(
        (status = 200, description = "The lens.", body = Lens),
        (status = 409, description = "`conflict`: the name is taken.", body = ErrorBody),
    ),
)]
#[patch("/v1/lenses/{lens}")]
async fn lens_update(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
    Body(request): Body<LensUpdate>,
) -> ApiResult<Json<Lens>> {
    let gateway = &front.gateway;
    let row = find(&front, &scope, &path).await?;
    if let Some(name) = &request.name {
        check_name("name", name)?;
    }
    let source_id = match &request.source_id {
        Some(reference) => source(&front, &scope, reference)?,
        None => row.source_id,
    };
    // Checked as a whole: a field that goes may be one that the primary key or a grant names.
    let definition = Definition::parse(&json!({
        "name": request.name.as_ref().unwrap_or(&row.name),
        "sourceId": source_id,
        "table": request.table.unwrap_or(row.target),
        "primaryKey": request.primary_key.unwrap_or(row.primary_key),
        "fields": request.fields.unwrap_or(row.fields),
        "grants": request.grants.unwrap_or(row.grants),
        "relations": request.relations.unwrap_or(row.relations),
        "onRunnerFailure": request.on_runner_failure.unwrap_or(row.on_runner_failure.into()),
    }))?;
    let columns = Columns::of(&definition);
    let change = LensChange {
        name: request.name,
        source_id: Some(source_id),
        target: Some(columns.target),
        primary_key: Some(columns.primary_key),
        fields: Some(columns.fields),
        grants: Some(columns.grants),
        relations: Some(columns.relations),
        on_runner_failure: Some(columns.on_runner_failure),
    };
    let row = gateway
        .store
        .lens_update(scope.environment.id, row.id, change, gateway.clock.now())
        .await;
    let row = match &request.source_id {
        Some(reference) => row.missing("source", reference)?,
        None => row.missing("lens", &path)?,
    };
    gateway.refresh().await?;
    let warnings = warnings(&front, &scope, source_id, &definition).await;
    Ok(Json(Lens {
        warnings,
        ..shown(&front, &scope, row)
    }))
}

/// Removes a lens.
#[utoipa::path(
    tag = "lenses",
    security(("adminKey" = [])),
    params(("lens" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses((status = 204, description = "It is gone.")),
)]
#[delete("/v1/lenses/{lens}")]
async fn lens_delete(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<HttpResponse> {
    let id = lookup::lens(
        &front.gateway.catalogue.current(),
        scope.environment.id,
        &path,
    )?;
    front
        .gateway
        .store
        .lens_delete(scope.environment.id, id, front.gateway.clock.now())
        .await
        .missing("lens", &path)?;
    front.gateway.refresh().await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn find(front: &Front, scope: &Scope, reference: &str) -> ApiResult<storage::Lens> {
    let id = lookup::lens(
        &front.gateway.catalogue.current(),
        scope.environment.id,
        reference,
    )?;
    front
        .gateway
        .store
        .lens_get(scope.environment.id, id)
        .await
        .missing("lens", reference)
}

fn source(front: &Front, scope: &Scope, reference: &str) -> ApiResult<SourceId> {
    lookup::source(
        &front.gateway.catalogue.current(),
        scope.environment.id,
        reference,
    )
    .map_err(|error| error.with("path", "sourceId"))
}

/// A definition in normal form, as it is stored.
struct Columns {
    target: String,
    primary_key: Value,
    fields: Value,
    grants: Value,
    relations: Value,
    on_runner_failure: String,
}

impl Columns {
    fn of(definition: &Definition) -> Self {
        let mut json = definition.to_json();
        let mut take = |name: &str| json.get_mut(name).map(Value::take).unwrap_or_default();
        Self {
            primary_key: take("primaryKey"),
            fields: take("fields"),
            grants: take("grants"),
            relations: take("relations"),
            on_runner_failure: definition.on_runner_failure.as_str().to_owned(),
            target: definition.table.clone(),
        }
    }
}

fn shown(front: &Front, scope: &Scope, row: storage::Lens) -> Lens {
    let catalogue = front.gateway.catalogue.current();
    let source = catalogue
        .source(row.source_id)
        .map(|source| source.name.clone())
        .unwrap_or_default();
    let object = |value: Value| match value {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    let key = row.primary_key.as_array().into_iter().flatten();
    Lens {
        id: row.id,
        name: row.name,
        environment: Named {
            id: scope.environment.id,
            name: scope.environment.slug.clone(),
        },
        source_id: row.source_id,
        source,
        table: row.target,
        primary_key: key
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        fields: object(row.fields),
        grants: object(row.grants),
        relations: object(row.relations),
        on_runner_failure: row.on_runner_failure,
        created_at: row.created_at,
        updated_at: row.changed_at,
        warnings: Vec::new(),
    }
}
