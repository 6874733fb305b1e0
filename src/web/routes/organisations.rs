//! Organisations: the operator's calls.

use actix_web::web::{Data, Json};
use actix_web::{HttpResponse, get, post};
use utoipa_actix_web::service_config::ServiceConfig;

use super::created_with_secret;
use crate::ids::{EnvironmentId, OrganisationId};
use crate::storage::{self, KeyKind, Role};
use crate::web::Front;
use crate::web::auth::Operator;
use crate::web::body::{Body, Params};
use crate::web::error::ApiResult;
use crate::web::lookup::check_slug;
use crate::web::minting::{Minted, Opens};
use crate::web::paging::Paging;
use crate::web::types::{Organisation, OrganisationCreate, OrganisationCreated, Page, PageQuery};

/// The environment that every organisation begins with.
const FIRST_ENVIRONMENT: &str = "development";

pub(super) fn configure(config: &mut ServiceConfig<'_>) {
    config
        .service(organisation_create)
        .service(organisation_list);
}

/// Creates an organisation with an environment `development` and its first admin key, an owner's.
#[utoipa::path(
    tag = "organisations",
    request_body = OrganisationCreate,
    security(("operatorToken" = [])),
    responses(
        (status = 201, description = "The organisation and its key, shown this once.", body = OrganisationCreated),
        (status = 409, description = "`conflict`: the slug is taken.", body = crate::web::types::ErrorBody),
    ),
)]
#[post("/v1/organisations")]
async fn organisation_create(
    front: Data<Front>,
    _: Operator,
    Body(request): Body<OrganisationCreate>,
) -> ApiResult<HttpResponse> {
    check_slug("slug", &request.slug)?;
    let now = front.gateway.clock.now();
    let name = request.name.unwrap_or_else(|| request.slug.clone());
    let new = storage::Organisation {
        id: OrganisationId::new(),
        slug: request.slug,
        name,
        created_at: now,
    };
    let environment = storage::Environment {
        id: EnvironmentId::new(),
        organisation_id: new.id,
        slug: FIRST_ENVIRONMENT.into(),
        created_at: now,
    };
    let opens = Opens::organisation(new.id, Role::Owner);
    let Minted { text, row } = Minted::new(
        KeyKind::Admin,
        &new.slug,
        opens,
        Some("first".into()),
        None,
        now,
    );
    let organisation = front
        .gateway
        .store
        .organisation_found(new, environment, row)
        .await?;
    front.gateway.refresh().await?;
    let location = format!("/v1/organisations/{}", organisation.id);
    Ok(created_with_secret(
        location,
        &OrganisationCreated {
            organisation: shown(organisation),
            key: text,
        },
    ))
}

/// The organisations, oldest first.
#[utoipa::path(
    tag = "organisations",
    security(("operatorToken" = [])),
    params(PageQuery),
    responses((status = 200, description = "One page.", body = Page<Organisation>)),
)]
#[get("/v1/organisations")]
async fn organisation_list(
    front: Data<Front>,
    _: Operator,
    query: Params<PageQuery>,
) -> ApiResult<Json<Page<Organisation>>> {
    let paging = Paging::of(query.limit, query.cursor.as_deref())?;
    let rows = front.gateway.store.organisation_list(paging.page()).await?;
    Ok(Json(paging.cut(rows, |row| row.id).map(shown)))
}

fn shown(row: storage::Organisation) -> Organisation {
    Organisation {
        id: row.id,
        slug: row.slug,
        name: row.name,
        created_at: row.created_at,
    }
}
