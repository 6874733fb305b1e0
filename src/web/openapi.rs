//! The API's description of itself: collected from the handlers, completed with what is the same for all
//! of them (security schemes, the errors that follow from what an operation takes), served as
//! `/v1/openapi.json` and as a page at `/docs` that needs no network.

use actix_web::http::header;
use actix_web::{HttpResponse, get, web};
use bytes::Bytes;
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi, PathItem, Ref, RefOr};
use utoipa::{Modify, OpenApi as _, ToSchema as _};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::error::Code;
use super::types::ErrorBody;

/// Where the description is.
const ADDRESS: &str = "/v1/openapi.json";

/// What the description says before any handler has spoken.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "semilayer",
        description = "Query databases behind a firewall through runners that dial out. Every error has the shape \
            `{error, code, requestId, …}`; lists page with `limit` and `cursor`; where a path takes an id, a unique name \
            works too.",
    ),
    components(schemas(ErrorBody)),
    modifiers(&SecuritySchemes),
)]
struct Base;

struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, api: &mut OpenApi) {
        let bearer = |description: &str, format: &str| {
            let http = HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .bearer_format(format);
            SecurityScheme::Http(http.description(Some(description)).build())
        };
        let components = api.components.get_or_insert_default();
        for (name, description, format) in [
            (
                "adminKey",
                "An organisation's admin key; a `viewer` may only read.",
                "ak_…",
            ),
            (
                "secretKey",
                "An environment's secret key, for servers.",
                "sk_…",
            ),
            (
                "publishableKey",
                "An environment's publishable key, for browsers.",
                "pk_…",
            ),
            (
                "operatorToken",
                "The operator's token, `SEMILAYER_OPERATOR_TOKEN`.",
                "token",
            ),
        ] {
            components.add_security_scheme(name, bearer(description, format));
        }
    }
}

/// The description without any paths: what the handlers are collected onto.
pub(super) fn base() -> OpenApi {
    Base::openapi()
}

/// Adds the errors that follow from what each operation takes, where its handler does not say more.
pub(super) fn complete(mut api: OpenApi) -> OpenApi {
    for item in api.paths.paths.values_mut() {
        for operation in operations(item) {
            let errors = errors(operation);
            for (status, codes) in errors {
                operation
                    .responses
                    .responses
                    .entry(status)
                    .or_insert_with(|| RefOr::T(error_response(&codes)));
            }
        }
    }
    api
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.patch,
        &mut item.delete,
    ]
    .into_iter()
    .flatten()
}

/// The errors of an operation by status.
fn errors(operation: &Operation) -> Vec<(String, Vec<Code>)> {
    let secured = operation
        .security
        .as_ref()
        .is_some_and(|needed| !needed.is_empty());
    let parameters = || {
        operation
            .parameters
            .iter()
            .flatten()
            .filter_map(|parameter| match parameter {
                RefOr::T(parameter) => Some(parameter),
                RefOr::Ref(_) => None,
            })
    };
    let has = |place: ParameterIn| {
        parameters().any(|parameter: &Parameter| parameter.parameter_in == place)
    };

    let mut codes = vec![Code::Internal];
    if operation.request_body.is_some() {
        codes.extend([Code::InvalidRequest, Code::TooLarge]);
    } else if has(ParameterIn::Query) {
        codes.push(Code::InvalidRequest);
    }
    if parameters().any(|it| it.name == "environment" && it.parameter_in == ParameterIn::Query) {
        codes.push(Code::EnvironmentRequired);
    }
    if has(ParameterIn::Path) {
        codes.push(Code::NotFound);
    }
    if secured {
        codes.extend([
            Code::InvalidKey,
            Code::AccessDenied,
            Code::RateLimited,
            Code::StoreUnavailable,
        ]);
    }

    let mut by_status: Vec<(String, Vec<Code>)> = Vec::new();
    for code in codes {
        let status = code.status().as_u16().to_string();
        match by_status.iter_mut().find(|(known, _)| *known == status) {
            Some((_, codes)) => codes.push(code),
            None => by_status.push((status, vec![code])),
        }
    }
    by_status
}

fn error_response(codes: &[Code]) -> Response {
    let sentences: Vec<String> = codes
        .iter()
        .map(|code| format!("`{}`: {}", code.as_str(), code.meaning()))
        .collect();
    let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name(ErrorBody::name()))));
    ResponseBuilder::new()
        .description(sentences.join(" "))
        .content("application/json", body)
        .build()
}

/// The description as it is served, written once.
pub(super) struct Description(Bytes);

impl Description {
    pub(super) fn of(api: &OpenApi) -> Self {
        Self(api.to_json().unwrap_or_default().into())
    }
}

/// The API's description of itself, OpenAPI 3.1.
#[utoipa::path(
    tag = "about",
    responses((status = 200, description = "The description.", content_type = "application/json", body = Object)),
)]
#[get("/v1/openapi.json")]
pub(super) async fn openapi_document(description: web::Data<Description>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(header::ContentType::json())
        .body(description.0.clone())
}

/// The page that shows the description.
pub(super) fn page() -> SwaggerUi {
    SwaggerUi::new("/docs/{_:.*}").config(Config::new([ADDRESS]))
}
