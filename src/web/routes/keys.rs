//! API keys of the organisation and its environments.

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, get, post};
use utoipa_actix_web::service_config::ServiceConfig;

use super::created_with_secret;
use crate::control::Catalogue;
use crate::ids::KeyId;
use crate::storage::{self, Changed, KeyKind, Role};
use crate::web::Front;
use crate::web::auth::{Admin, environment};
use crate::web::body::{Body, Params};
use crate::web::error::{ApiError, ApiResult};
use crate::web::lookup::Missing as _;
use crate::web::minting::{Minted, Opens};
use crate::web::paging::Paging;
use crate::web::types::{
    EnvironmentQuery, Key, KeyCreate, KeyCreated, Named, Page, ScopedPageQuery,
};

/// The longest name of a key, in characters.
const MAX_NAME: usize = 200;

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(key_create)
        .service(key_list)
        .service(key_get)
        .service(key_revoke);
}

/// Creates a key. Only an owner creates admin keys.
#[utoipa::path(
    tag = "keys",
    request_body = KeyCreate,
    security(("adminKey" = [])),
    params(EnvironmentQuery),
    responses((status = 201, description = "The key, shown this once.", body = KeyCreated)),
)]
#[post("/v1/keys")]
async fn key_create(
    front: Data<Front>,
    admin: Admin,
    query: Params<EnvironmentQuery>,
    Body(request): Body<KeyCreate>,
) -> ApiResult<HttpResponse> {
    let gateway = &front.gateway;
    let catalogue = gateway.catalogue.current();
    let now = gateway.clock.now();
    if request.expires_at.is_some_and(|end| end <= now) {
        return Err(ApiError::invalid("expiresAt", "`expiresAt` is in the past"));
    }
    if request
        .name
        .as_ref()
        .is_some_and(|name| name.chars().count() > MAX_NAME)
    {
        return Err(ApiError::invalid(
            "name",
            format!("`name` must have at most {MAX_NAME} characters"),
        ));
    }
    let (slug, opens) = opens(&catalogue, &admin, &query, &request)?;
    let minted = Minted::new(
        request.kind,
        &slug,
        opens,
        request.name,
        request.expires_at,
        now,
    );
    let row = gateway.store.key_create(minted.row).await?;
    gateway.refresh().await?;
    let details = shown(&catalogue, row);
    Ok(created_with_secret(
        format!("/v1/keys/{}", details.id),
        &KeyCreated {
            details,
            key: minted.text,
        },
    ))
}

/// What the new key opens, and the slug that stands in its text.
fn opens(
    catalogue: &Catalogue,
    admin: &Admin,
    query: &EnvironmentQuery,
    request: &KeyCreate,
) -> ApiResult<(String, Opens)> {
    let organisation = admin.organisation_id;
    match request.kind {
        KeyKind::Admin => {
            admin.require_owner("create admin keys")?;
            let found = catalogue.organisation(organisation);
            let slug = found
                .ok_or_else(|| ApiError::not_found("organisation", &organisation.to_string()))?
                .slug
                .clone();
            Ok((
                slug,
                Opens::organisation(organisation, request.role.unwrap_or(Role::Admin)),
            ))
        }
        KeyKind::Secret | KeyKind::Publishable if request.role.is_some() => Err(ApiError::invalid(
            "role",
            "`role` is for admin keys (`ak`) only",
        )),
        KeyKind::Secret | KeyKind::Publishable => {
            let environment = environment(catalogue, organisation, query.environment.as_deref())?;
            Ok((
                environment.slug,
                Opens::environment(organisation, environment.id),
            ))
        }
        KeyKind::Runner => {
            let message =
                "a runner's token comes from POST /v1/runners or POST /v1/runners/{runner}/rotate";
            Err(ApiError::invalid("kind", message))
        }
    }
}

/// The keys, oldest first, without those of runners; with `environment` only those of that environment.
#[utoipa::path(
    tag = "keys",
    security(("adminKey" = [])),
    params(ScopedPageQuery),
    responses((status = 200, description = "One page.", body = Page<Key>)),
)]
#[get("/v1/keys")]
async fn key_list(
    front: Data<Front>,
    admin: Admin,
    query: Params<ScopedPageQuery>,
) -> ApiResult<Json<Page<Key>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let catalogue = front.gateway.catalogue.current();
    let wanted = match query.environment.as_deref() {
        Some(name) => Some(environment(&catalogue, admin.organisation_id, Some(name))?.id),
        None => None,
    };
    let mut rows = Vec::new();
    let mut page = paging.page();
    // An organisation has few keys, and a page of them is asked for by a person: read on until it is full.
    loop {
        let read = front
            .gateway
            .store
            .key_list(admin.organisation_id, page)
            .await?;
        let last = read.len() < page.limit as usize;
        page.after = read.last().map(|key| key.id);
        rows.extend(
            read.into_iter()
                .filter(|key| wanted.is_none() || key.environment_id == wanted),
        );
        if last || rows.len() >= page.limit as usize {
            break;
        }
    }
    Ok(Json(
        paging
            .cut(rows, |row| row.id)
            .map(|row| shown(&catalogue, row)),
    ))
}

/// One key, without its text.
#[utoipa::path(
    tag = "keys",
    security(("adminKey" = [])),
    params(("key" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The key.", body = Key)),
)]
#[get("/v1/keys/{key}")]
async fn key_get(front: Data<Front>, admin: Admin, path: Path<String>) -> ApiResult<Json<Key>> {
    let row = find(&front, &admin, &path).await?;
    Ok(Json(shown(&front.gateway.catalogue.current(), row)))
}

/// Stops a key, for good. Doing so twice changes nothing. Only an owner revokes admin keys.
#[utoipa::path(
    tag = "keys",
    security(("adminKey" = [])),
    params(("key" = String, Path, description = "Its id.")),
    responses((status = 200, description = "The key.", body = Key)),
)]
#[post("/v1/keys/{key}/revoke")]
async fn key_revoke(front: Data<Front>, admin: Admin, path: Path<String>) -> ApiResult<Json<Key>> {
    let gateway = &front.gateway;
    let found = find(&front, &admin, &path).await?;
    if found.kind == KeyKind::Admin {
        admin.require_owner("revoke admin keys")?;
    }
    let row = match gateway
        .store
        .key_revoke(admin.organisation_id, found.id, gateway.clock.now())
        .await?
    {
        Changed::Done(row) | Changed::OtherState(row) => row,
        Changed::Absent => return Err(ApiError::not_found("key", &path)),
    };
    gateway.refresh().await?;
    Ok(Json(shown(&gateway.catalogue.current(), row)))
}

/// The key of that id; a runner's token is its runner's business.
async fn find(front: &Front, admin: &Admin, reference: &str) -> ApiResult<storage::Key> {
    let missing = || ApiError::not_found("key", reference);
    let id: KeyId = reference.parse().ok().ok_or_else(missing)?;
    let row = front
        .gateway
        .store
        .key_get(admin.organisation_id, id)
        .await
        .missing("key", reference)?;
    if row.kind == KeyKind::Runner {
        Err(missing())
    } else {
        Ok(row)
    }
}

fn shown(catalogue: &Catalogue, row: storage::Key) -> Key {
    let environment = row.environment_id.and_then(|id| catalogue.environment(id));
    Key {
        id: row.id,
        kind: row.kind,
        name: row.name,
        prefix: row.display,
        role: row.role,
        environment: environment.map(|found| Named {
            id: found.id,
            name: found.slug.clone(),
        }),
        created_at: row.created_at,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
    }
}
