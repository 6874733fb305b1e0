//! The gateway itself: whether it lives, whether it wants work, who is asking, what bridges there are.

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, get};
use utoipa_actix_web::service_config::ServiceConfig;

use crate::bridge::manifest::{self, Manifest};
use crate::ids::EnvironmentId;
use crate::storage::{Environment, KeyKind};
use crate::web::Front;
use crate::web::auth::{Holder, fresh};
use crate::web::error::{ApiError, ApiResult, Code};
use crate::web::openapi;
use crate::web::types::{Health, Named, Page, Whoami};

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(health)
        .service(ready)
        .service(whoami)
        .service(bridge_manifests)
        .service(openapi::openapi_document);
}

/// Whether the process lives. Says nothing about the store or the runners.
#[utoipa::path(tag = "about", responses((status = 200, description = "It does.", body = Health)))]
#[get("/health")]
async fn health() -> Json<Health> {
    Json(well())
}

/// Whether the gateway wants requests: its store answers and it is not about to stop.
#[utoipa::path(
    tag = "about",
    responses(
        (status = 200, description = "It does.", body = Health),
        (status = 503, description = "`store_unavailable` or `draining`.", body = crate::web::types::ErrorBody),
    ),
)]
#[get("/ready")]
async fn ready(front: Data<Front>) -> ApiResult<HttpResponse> {
    if front.gateway.is_stopping() {
        return Err(ApiError::new(
            Code::Draining,
            "this gateway is about to stop",
        ));
    }
    front.gateway.store.ping().await?;
    fresh(&front)?;
    Ok(HttpResponse::Ok()
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(well()))
}

fn well() -> Health {
    Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

/// What the key of this request is.
#[utoipa::path(
    tag = "about",
    security(("adminKey" = []), ("secretKey" = []), ("publishableKey" = [])),
    responses((status = 200, description = "The key and what it opens.", body = Whoami)),
)]
#[get("/v1/whoami")]
async fn whoami(front: Data<Front>, Holder(key): Holder) -> ApiResult<Json<Whoami>> {
    let catalogue = front.gateway.catalogue.current();
    let gone = || ApiError::new(Code::InvalidKey, "what this key opened is gone");
    let organisation = catalogue
        .organisation(key.organisation_id)
        .ok_or_else(gone)?;
    let environments: Vec<_> = match (key.kind, key.environment_id) {
        (KeyKind::Admin, _) => catalogue.environments_of(key.organisation_id).collect(),
        (_, Some(id)) => catalogue.environment(id).into_iter().collect(),
        (_, None) => Vec::new(),
    };
    let runner = key.runner_id.and_then(|id| catalogue.runner(id));
    Ok(Json(Whoami {
        kind: key.kind,
        key_id: key.id,
        role: key.role,
        organisation: Named {
            id: organisation.id,
            name: organisation.slug.clone(),
        },
        environments: environments.into_iter().map(named).collect(),
        runner: runner.map(|runner| Named {
            id: runner.id,
            name: runner.name.clone(),
        }),
    }))
}

fn named(environment: &Environment) -> Named<EnvironmentId> {
    Named {
        id: environment.id,
        name: environment.slug.clone(),
    }
}

/// What each bridge can be configured with. Forms are rendered from it; needs no key.
#[utoipa::path(
    tag = "about",
    responses((status = 200, description = "The manifests.", body = Page<Manifest>)),
)]
#[get("/v1/bridge-manifests")]
async fn bridge_manifests() -> Json<Page<Manifest>> {
    Json(Page {
        items: manifest::all().to_vec(),
        next_cursor: None,
    })
}
