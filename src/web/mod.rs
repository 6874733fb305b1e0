//! HTTP: routes, extractors, errors and the request's id. Decides nothing about jobs or data: it reads a
//! request, calls the store or the control plane, and gives the answer its form.

pub mod auth;
pub mod body;
pub mod client;
mod connect;
mod detached;
mod dispatch;
pub mod error;
mod fallback;
mod frame_guard;
mod internal;
pub mod job_error;
mod lookup;
pub(crate) mod minting;
mod openapi;
mod paging;
mod prefer;
mod query;
mod reader;
mod reply;
pub mod request_id;
pub mod routes;
mod secrets;
pub mod server;
mod socket;
pub mod types;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use actix_web::HttpRequest;
use secrecy::{ExposeSecret as _, SecretString};

use self::client::{FailureThrottle, TrustedProxies};
use self::error::{ApiError, Code};
use crate::control::ControlPlane;
use crate::domain::sealing::label;
use crate::domain::tokens;
use crate::query::cursor::CursorKeys;

/// Who may do what at the front door, from the configuration.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The operator's token, `SEMILAYER_OPERATOR_TOKEN`; without it nobody is the operator.
    pub operator_token: Option<SecretString>,
    /// The proxies whose `X-Forwarded-For` is believed, `SEMILAYER_TRUSTED_PROXIES`.
    pub trusted_proxies: TrustedProxies,
}

/// What the routes of the public listener work with; one for all of its workers.
pub struct Front {
    /// The control plane.
    pub gateway: ControlPlane,
    /// What cursors are sealed with.
    pub cursors: CursorKeys,
    operator: Option<[u8; 32]>,
    proxies: TrustedProxies,
    throttle: FailureThrottle,
}

impl Front {
    /// Puts the front door before a control plane.
    pub fn new(gateway: ControlPlane, access: Access) -> Self {
        let cursors = CursorKeys::new(
            gateway.sealer.derive(label::CURSORS),
            gateway.sealer.derive_previous(label::CURSORS),
        );
        Self {
            gateway,
            cursors,
            operator: access
                .operator_token
                .map(|token| tokens::hash(token.expose_secret())),
            proxies: access.trusted_proxies,
            throttle: FailureThrottle::default(),
        }
    }

    /// The client's address, through the proxies that are trusted.
    pub fn client(&self, request: &HttpRequest) -> IpAddr {
        self.proxies.client(request)
    }

    /// Answers a token that is not good: 401, or 429 after too many of them. A good token never gets here.
    pub fn refuse(&self, request: &HttpRequest, token: &str, reason: &'static str) -> ApiError {
        self.throttle.count(
            self.client(request),
            token,
            ApiError::new(Code::InvalidKey, reason),
        )
    }
}
