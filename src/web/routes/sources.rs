//! Sources: what they are and how they are reached. Configurations are checked against the bridge's
//! manifest, sealed before they are stored, and never shown with their secrets.

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, delete, get, patch, post};
use serde_json::{Map, Value};
use utoipa_actix_web::service_config::ServiceConfig;

use super::created;
use crate::bridge::manifest;
use crate::ids::SourceId;
use crate::storage::{self, NewSource, SourceChange, StoredCredentials};
use crate::web::Front;
use crate::web::auth::Scope;
use crate::web::body::{Body, Params};
use crate::web::error::{ApiError, ApiResult};
use crate::web::lookup::{self, Missing as _, check_name};
use crate::web::paging::Paging;
use crate::web::secrets::{mask, unmask};
use crate::web::types::{
    EnvironmentQuery, ErrorBody, Named, Page, ScopedPageQuery, Source, SourceCreate, SourceUpdate,
};

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(source_create)
        .service(source_list)
        .service(source_get)
        .service(source_update)
        .service(source_delete);
}

/// Creates a source.
#[utoipa::path(
    tag = "sources",
    request_body = SourceCreate,
    security(("adminKey" = [])),
    params(EnvironmentQuery),
    responses(
        (status = 201, description = "The source.", body = Source),
        (status = 409, description = "`conflict`: the name is taken.", body = ErrorBody),
    ),
)]
#[post("/v1/sources")]
async fn source_create(
    front: Data<Front>,
    scope: Scope,
    _: Params<EnvironmentQuery>,
    Body(request): Body<SourceCreate>,
) -> ApiResult<HttpResponse> {
    let gateway = &front.gateway;
    check_name("name", &request.name)?;
    check_timeout(&front, request.timeout_ms)?;
    let bridge = manifest::of(&request.bridge)?.package_name;
    let id = SourceId::new();
    let config = unmask(bridge, request.config, &Map::new())?;
    let config_sealed = seal(&front, id, bridge, request.credentials_location, &config)?;
    let new = NewSource {
        id,
        name: request.name,
        bridge: bridge.into(),
        credentials_location: request.credentials_location,
        config_sealed,
        timeout_ms: request.timeout_ms.map(i64::from),
    };
    let row = gateway
        .store
        .source_create(scope.environment.id, new, gateway.clock.now())
        .await?;
    gateway.refresh().await?;
    Ok(created(
        format!("/v1/sources/{id}"),
        &shown(&front, &scope, row)?,
    ))
}

/// The sources of an environment, oldest first.
#[utoipa::path(
    tag = "sources",
    security(("adminKey" = [])),
    params(ScopedPageQuery),
    responses((status = 200, description = "One page.", body = Page<Source>)),
)]
#[get("/v1/sources")]
async fn source_list(
    front: Data<Front>,
    scope: Scope,
    query: Params<ScopedPageQuery>,
) -> ApiResult<Json<Page<Source>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let rows = front
        .gateway
        .store
        .source_list(scope.environment.id, paging.page())
        .await?;
    let page = paging.cut(rows, |row| row.id);
    let items = page
        .items
        .into_iter()
        .map(|row| shown(&front, &scope, row))
        .collect::<ApiResult<_>>()?;
    Ok(Json(Page {
        items,
        next_cursor: page.next_cursor,
    }))
}

/// One source.
#[utoipa::path(
    tag = "sources",
    security(("adminKey" = [])),
    params(("source" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses((status = 200, description = "The source.", body = Source)),
)]
#[get("/v1/sources/{source}")]
async fn source_get(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<Json<Source>> {
    let row = find(&front, &scope, &path).await?;
    Ok(Json(shown(&front, &scope, row)?))
}

/// Changes a source; what is absent stays. Another `credentialsLocation` or `bridge` wipes the stored
/// configuration, which must then be given again, whole.
#[utoipa::path(
    tag = "sources",
    request_body = SourceUpdate,
    security(("adminKey" = [])),
    params(("source" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses(
        (status = 200, description = "The source.", body = Source),
        (status = 409, description = "`conflict`: the name is taken.", body = ErrorBody),
    ),
)]
#[patch("/v1/sources/{source}")]
async fn source_update(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
    Body(request): Body<SourceUpdate>,
) -> ApiResult<Json<Source>> {
    let gateway = &front.gateway;
    let row = find(&front, &scope, &path).await?;
    if let Some(name) = &request.name {
        check_name("name", name)?;
    }
    check_timeout(&front, request.timeout_ms.flatten())?;
    let bridge = request
        .bridge
        .as_deref()
        .map(manifest::of)
        .transpose()?
        .map(|manifest| manifest.package_name);
    let change = SourceChange {
        config_sealed: changed_config(&front, &row, bridge, &request)?,
        name: request.name,
        bridge: bridge.map(str::to_owned),
        credentials_location: request.credentials_location,
        timeout_ms: request.timeout_ms.map(|timeout| timeout.map(i64::from)),
    };
    let row = gateway
        .store
        .source_update(scope.environment.id, row.id, change, gateway.clock.now())
        .await;
    let row = row.missing("source", &path)?;
    gateway.refresh().await?;
    Ok(Json(shown(&front, &scope, row)?))
}

/// Removes a source that has no lenses left; what was asked of it stays on record.
#[utoipa::path(
    tag = "sources",
    security(("adminKey" = [])),
    params(("source" = String, Path, description = "Its id or name."), EnvironmentQuery),
    responses(
        (status = 204, description = "It is gone."),
        (status = 409, description = "`conflict`: it still has lenses.", body = ErrorBody),
    ),
)]
#[delete("/v1/sources/{source}")]
async fn source_delete(
    front: Data<Front>,
    scope: Scope,
    path: Path<String>,
    _: Params<EnvironmentQuery>,
) -> ApiResult<HttpResponse> {
    let id = lookup::source(
        &front.gateway.catalogue.current(),
        scope.environment.id,
        &path,
    )?;
    front
        .gateway
        .store
        .source_delete(scope.environment.id, id, front.gateway.clock.now())
        .await
        .missing("source", &path)?;
    front.gateway.refresh().await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The source of that id or name, as it is stored.
pub(super) async fn find(
    front: &Front,
    scope: &Scope,
    reference: &str,
) -> ApiResult<storage::Source> {
    let id = lookup::source(
        &front.gateway.catalogue.current(),
        scope.environment.id,
        reference,
    )?;
    front
        .gateway
        .store
        .source_get(scope.environment.id, id)
        .await
        .missing("source", reference)
}

fn check_timeout(front: &Front, timeout_ms: Option<u32>) -> ApiResult<()> {
    let max = front.gateway.timing.max_deadline.as_millis();
    match timeout_ms {
        Some(ms) if ms == 0 || u128::from(ms) > max => Err(ApiError::invalid(
            "timeoutMs",
            format!("`timeoutMs` must be between 1 and {max}"),
        )),
        _ => Ok(()),
    }
}

/// What becomes of the stored configuration: `None` leaves it, `Some(None)` wipes it.
fn changed_config(
    front: &Front,
    row: &storage::Source,
    bridge: Option<&str>,
    request: &SourceUpdate,
) -> ApiResult<Option<Option<String>>> {
    let location = request
        .credentials_location
        .unwrap_or(row.credentials_location);
    let bridge = bridge.unwrap_or(&row.bridge);
    let wiped = location != row.credentials_location || bridge != row.bridge;
    let given = match (&request.config, location) {
        (Some(config), _) => config.clone(),
        (None, _) if !wiped => return Ok(None),
        (None, StoredCredentials::RunnerLocal) => Map::new(),
        (None, StoredCredentials::Managed) => {
            let message =
                "the stored configuration does not survive this change; send `config` with it";
            return Err(ApiError::invalid("config", message));
        }
    };
    let known = if wiped { Map::new() } else { open(front, row)? };
    let config = unmask(bridge, given, &known)?;
    seal(front, row.id, bridge, location, &config).map(Some)
}

/// Checks a configuration and seals it; where the runner has it, nothing may be here.
fn seal(
    front: &Front,
    id: SourceId,
    bridge: &str,
    location: StoredCredentials,
    config: &Map<String, Value>,
) -> ApiResult<Option<String>> {
    match location {
        StoredCredentials::RunnerLocal if config.is_empty() => Ok(None),
        StoredCredentials::RunnerLocal => {
            let message = "with `runner-local` credentials nothing is stored here: leave `config` out, and set \
                SEMILAYER_SOURCE_<NAME>_<KEY> where the runner runs";
            Err(ApiError::invalid("config", message))
        }
        StoredCredentials::Managed => {
            manifest::validate(bridge, config)?;
            front
                .gateway
                .sealer
                .seal_config(id, config)
                .map(Some)
                .map_err(ApiError::internal)
        }
    }
}

/// The configuration as it was given.
fn open(front: &Front, row: &storage::Source) -> ApiResult<Map<String, Value>> {
    match &row.config_sealed {
        Some(sealed) => front
            .gateway
            .sealer
            .open_config(row.id, sealed)
            .map_err(ApiError::internal),
        None => Ok(Map::new()),
    }
}

/// The source as it is shown: its secrets masked.
fn shown(front: &Front, scope: &Scope, row: storage::Source) -> ApiResult<Source> {
    let catalogue = front.gateway.catalogue.current();
    let assigned = catalogue
        .runners_of(row.id)
        .iter()
        .filter_map(|id| catalogue.runner(*id));
    let mut runners: Vec<_> = assigned
        .map(|runner| Named {
            id: runner.id,
            name: runner.name.clone(),
        })
        .collect();
    runners.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Source {
        config: mask(&row.bridge, open(front, &row)?),
        id: row.id,
        name: row.name,
        environment: Named {
            id: scope.environment.id,
            name: scope.environment.slug.clone(),
        },
        bridge: row.bridge,
        credentials_location: row.credentials_location,
        timeout_ms: row.timeout_ms.and_then(|ms| u32::try_from(ms).ok()),
        runners,
        created_at: row.created_at,
        updated_at: row.changed_at,
    })
}
