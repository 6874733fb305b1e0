//! Who is asking: extractors that turn `Authorization: Bearer …` into what the key's holder is. Keys are
//! looked up in the catalogue by their SHA-256; nothing is read from the store.
//!
//! A catalogue that has not agreed with the store for long may hold keys that were revoked since, and then none
//! is believed.

use std::future::{Ready, ready};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, web};

use super::Front;
use super::error::{ApiError, ApiResult, Code};
use crate::control::Catalogue;
use crate::domain::tokens;
use crate::ids::{EnvironmentId, KeyId, OrganisationId};
use crate::storage::{Environment, Key, KeyKind, Role};

/// The holder of any good key.
#[derive(Debug, Clone)]
pub struct Holder(pub Key);

/// The holder of an admin key, who may do what the request's method means.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The organisation that the key opens.
    pub organisation_id: OrganisationId,
    /// The key.
    pub key_id: KeyId,
    /// What the holder may do.
    pub role: Role,
}

/// An admin in one environment of the organisation: the one that the request names, or the only one.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The organisation.
    pub organisation_id: OrganisationId,
    /// The environment.
    pub environment: Environment,
    /// The key.
    pub key_id: KeyId,
}

/// The holder of a secret or publishable key.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The organisation.
    pub organisation_id: OrganisationId,
    /// The environment that the key opens.
    pub environment_id: EnvironmentId,
    /// The key.
    pub key_id: KeyId,
    /// Which of the two: [`KeyKind::Secret`] or [`KeyKind::Publishable`].
    pub kind: KeyKind,
}

/// The operator of the platform.
#[derive(Debug, Clone, Copy)]
pub struct Operator;

impl Admin {
    /// Refuses everybody but an owner.
    ///
    /// # Errors
    ///
    /// `access_denied` for every other role.
    pub fn require_owner(&self, what: &str) -> ApiResult<()> {
        match self.role {
            Role::Owner => Ok(()),
            _ => Err(denied(format!("only a key with role `owner` may {what}"))),
        }
    }

    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let Holder(key) = Holder::of(request)?;
        if key.kind != KeyKind::Admin {
            return Err(denied(format!(
                "this needs an organisation's admin key (`ak_…`); {}",
                purpose(key.kind)
            )));
        }
        let role = key.role.ok_or_else(|| {
            ApiError::internal(anyhow::anyhow!("admin key {} has no role", key.id))
        })?;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if role == Role::Viewer && !reads {
            return Err(denied("a key with role `viewer` may only read".into()));
        }
        Ok(Self {
            organisation_id: key.organisation_id,
            key_id: key.id,
            role,
        })
    }
}

impl Scope {
    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let Admin {
            organisation_id,
            key_id,
            ..
        } = Admin::of(request)?;
        let named = named_environment(request);
        let catalogue = front(request)?.gateway.catalogue.current();
        let environment = environment(&catalogue, organisation_id, named.as_deref())?;
        Ok(Self {
            organisation_id,
            environment,
            key_id,
        })
    }
}

impl Caller {
    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let Holder(key) = Holder::of(request)?;
        match (key.kind, key.environment_id) {
            (kind @ (KeyKind::Secret | KeyKind::Publishable), Some(environment_id)) => Ok(Self {
                organisation_id: key.organisation_id,
                environment_id,
                key_id: key.id,
                kind,
            }),
            (kind, _) => Err(denied(format!(
                "this needs an environment's key (`sk_…` or `pk_…`); {}",
                purpose(kind)
            ))),
        }
    }
}

impl Operator {
    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let front = front(request)?;
        let token = bearer(request)?;
        match &front.operator {
            Some(expected) if tokens::same_hash(expected, &tokens::hash(token)) => Ok(Self),
            _ if front
                .gateway
                .catalogue
                .current()
                .key_by_hash(&tokens::hash(token))
                .is_some() =>
            {
                Err(denied(
                    "this needs the operator's token (SEMILAYER_OPERATOR_TOKEN)".into(),
                ))
            }
            Some(_) => Err(front.refuse(request, token, "the operator's token is wrong")),
            None => Err(front.refuse(
                request,
                token,
                "this gateway has no operator: SEMILAYER_OPERATOR_TOKEN is not set",
            )),
        }
    }
}

impl Holder {
    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let front = front(request)?;
        let token = bearer(request)?;
        fresh(front)?;
        let catalogue = front.gateway.catalogue.current();
        let key = catalogue
            .key_by_hash(&tokens::hash(token))
            .filter(|key| key.is_live(front.gateway.clock.now()));
        match key {
            Some(key) => Ok(Self(key.clone())),
            None => Err(front.refuse(
                request,
                token,
                "this key is unknown, was revoked or has expired",
            )),
        }
    }
}

/// Refuses while what is known here is too old to be believed.
///
/// # Errors
///
/// `store_unavailable`.
pub(super) fn fresh(front: &Front) -> ApiResult<()> {
    if front.gateway.is_stale() {
        return Err(ApiError::new(
            Code::StoreUnavailable,
            "the gateway has not reached its store for a while and cannot tell whether this key is still good",
        ));
    }
    Ok(())
}

/// What a key of that kind is for, for whoever took it for another.
fn purpose(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Admin => "an `ak_` key manages an organisation and queries nothing",
        KeyKind::Secret => {
            "an `sk_` key is for an environment's server-side callers, who only query"
        }
        KeyKind::Publishable => {
            "a `pk_` key is for an environment's browser callers, who only query"
        }
        KeyKind::Runner => "an `rk_` token is for one runner to connect with, and for nothing else",
    }
}

fn denied(message: String) -> ApiError {
    ApiError::new(Code::AccessDenied, message)
}

fn front(request: &HttpRequest) -> ApiResult<&Arc<Front>> {
    match request.app_data::<web::Data<Front>>() {
        Some(front) => Ok(front),
        None => Err(ApiError::internal(anyhow::anyhow!(
            "the routes were configured without their state"
        ))),
    }
}

/// The token of the request. Who brings none guesses none, so that is not counted as a failure.
pub(super) fn bearer(request: &HttpRequest) -> ApiResult<&str> {
    let missing = || {
        ApiError::new(
            Code::InvalidKey,
            "a key is missing; send it as `Authorization: Bearer <key>`",
        )
    };
    let value = request.headers().get(AUTHORIZATION).ok_or_else(missing)?;
    let value = value.to_str().ok().ok_or_else(missing)?;
    match value.split_once(' ') {
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() =>
        {
            Ok(token.trim())
        }
        _ => Err(missing()),
    }
}

/// The `environment` of the query string. That there are no other parameters is checked by the routes.
fn named_environment(request: &HttpRequest) -> Option<String> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string()).ok()?;
    pairs
        .into_inner()
        .into_iter()
        .find_map(|(key, value)| (key == "environment").then_some(value))
}

/// The environment that is named by slug or id, or the only one.
///
/// # Errors
///
/// `not_found` when there is none of that name, `environment_required` when one must be named.
pub fn environment(
    catalogue: &Catalogue,
    organisation: OrganisationId,
    named: Option<&str>,
) -> ApiResult<Environment> {
    let mut all: Vec<&Environment> = catalogue.environments_of(organisation).collect();
    let found = match named {
        Some(name) => {
            let id = name.parse().ok();
            all.into_iter()
                .find(|environment| environment.slug == name || Some(environment.id) == id)
        }
        None if all.len() == 1 => all.pop(),
        None => {
            all.sort_by(|a, b| a.slug.cmp(&b.slug));
            let slugs: Vec<&str> = all
                .iter()
                .map(|environment| environment.slug.as_str())
                .collect();
            let message = match slugs.as_slice() {
                [] => "the organisation has no environment; create one with POST /v1/environments"
                    .to_owned(),
                _ => format!(
                    "say which environment: ?environment=<slug>, one of {}",
                    slugs.join(", ")
                ),
            };
            return Err(
                ApiError::new(Code::EnvironmentRequired, message).with("environments", slugs)
            );
        }
    };
    found
        .cloned()
        .ok_or_else(|| ApiError::not_found("environment", named.unwrap_or_default()))
}

macro_rules! extractors {
    ($($extractor:ident),+) => {$(
        impl FromRequest for $extractor {
            type Error = ApiError;
            type Future = Ready<ApiResult<Self>>;

            fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
                ready(Self::of(request))
            }
        }
    )+};
}

extractors!(Holder, Admin, Scope, Caller, Operator);
