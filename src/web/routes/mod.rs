//! The routes of the public listener, and what all of them share: the description that is generated from
//! them, the form of their answers, the fallback. Each file has the calls of one resource.

mod about;
mod assignments;
mod environments;
mod jobs;
mod keys;
mod lens_warnings;
mod lenses;
mod organisations;
mod runners;
mod sources;
mod targets;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, LOCATION};
use actix_web::web::{self, Data, PathConfig, ServiceConfig};
use actix_web::{App, HttpResponse};
use serde::Serialize;
use utoipa_actix_web::AppExt as _;
use utoipa_actix_web::service_config::ServiceConfig as Documented;

use super::connect::connect;
use super::error::ApiError;
use super::fallback::{Addresses, fallback, only};
use super::openapi::{self, Description};
use super::{Front, query};

/// Everything behind the public listener that HTTP workers share; configures each worker's application.
#[derive(Clone)]
pub struct PublicRoutes {
    front: Data<Front>,
    addresses: Data<Addresses>,
    description: Data<Description>,
}

impl PublicRoutes {
    /// The routes in front of this control plane.
    pub fn new(front: Data<Front>) -> Self {
        let api = description();
        Self {
            front,
            addresses: Data::new(Addresses::of(&api)),
            description: Data::new(Description::of(&api)),
        }
    }

    /// Adds the routes to an application. Its `default_service` is taken: what no route takes is answered here.
    pub fn configure(&self, config: &mut ServiceConfig) {
        config
            .app_data(self.front.clone())
            .app_data(self.addresses.clone())
            .app_data(self.description.clone())
            .app_data(PathConfig::default().error_handler(|_, _| {
                ApiError::invalid("", "the path has a part that cannot be read").into()
            }));
        documented(&mut Documented::new(config));
        config
            .service(
                web::resource("/connect")
                    .get(connect)
                    .default_service(only(Method::GET)),
            )
            .service(web::redirect("/docs", "/docs/"))
            .service(openapi::page())
            .default_service(web::to(fallback));
    }
}

/// The API's description of itself.
pub fn description() -> utoipa::openapi::OpenApi {
    let (_, api) = App::new()
        .into_utoipa_app()
        .openapi(openapi::base())
        .configure(documented)
        .split_for_parts();
    openapi::complete(api)
}

/// Every route that the description has.
fn documented(config: &mut Documented<'_>) {
    about::configure(config);
    organisations::configure(config);
    environments::configure(config);
    runners::configure(config);
    assignments::configure(config);
    sources::configure(config);
    targets::configure(config);
    lenses::configure(config);
    keys::configure(config);
    jobs::configure(config);
    config.service(query::query).service(query::count);
}

/// 201 with the new thing and where it is from now on.
fn created(location: String, thing: &impl Serialize) -> HttpResponse {
    HttpResponse::Created()
        .insert_header((LOCATION, location))
        .json(thing)
}

/// The same with a secret in it, which no cache may keep.
fn created_with_secret(location: String, thing: &impl Serialize) -> HttpResponse {
    HttpResponse::Created()
        .insert_header((LOCATION, location))
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(thing)
}
