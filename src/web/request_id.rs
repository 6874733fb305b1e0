//! The request's id: made (or taken over) once, in every answer, every error's body and the log line.
//!
//! The middleware also gives errors their final form, because only it knows the id, and logs what a
//! person must look at. It never logs a query string (runners in the field send their token in one), a
//! header or a body.

use std::future::{Ready, ready};
use std::rc::Rc;
use std::time::Instant;

use actix_http::ConnectionType;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::http::{StatusCode, Version};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, FromRequest, HttpMessage, HttpRequest, HttpResponse};
use uuid::Uuid;

use super::Front;
use super::error::{ApiError, Code};
use super::prefer::{Applied, PREFERENCE_APPLIED};

/// The header that carries the id, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken over from a client or a proxy.
const MAX_LEN: usize = 64;

/// One request's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Rc<str>);

impl RequestId {
    /// A fresh id.
    #[expect(
        clippy::new_without_default,
        reason = "a fresh id is not a default value"
    )]
    pub fn new() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// The id that the client or a proxy gave the request, if it is short and plain; else a fresh one.
    fn of(request: &ServiceRequest) -> Self {
        let given = request
            .headers()
            .get(&REQUEST_ID)
            .and_then(|value| value.to_str().ok());
        match given {
            Some(id) if is_plain(id) => Self(id.into()),
            _ => Self::new(),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as a header's value.
    pub(super) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
    }
}

/// Whether an id can stand in a header, a log line and a JSON text without disguise.
fn is_plain(id: &str) -> bool {
    (1..=MAX_LEN).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl FromRequest for RequestId {
    type Error = Error;
    type Future = Ready<Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_else(Self::new)))
    }
}

/// Gives the request its id, gives errors their form, and writes the access log.
///
/// # Errors
///
/// Passes on what the services below it fail with, in the form that all errors have.
pub async fn middleware(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let started = Instant::now();
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let front = request.app_data::<Data<Front>>().cloned();
    // A gateway that stops sends its clients away, the load balancer's kept connections above all: the next
    // request goes to another gateway. Asked when the answer is there, which may take a while.
    let going = || {
        front
            .as_ref()
            .is_some_and(|front| front.gateway.is_stopping())
    };
    let access = Access {
        method: request.method().to_string(),
        path: request.path().to_owned(),
        started,
    };

    let response = match next.call(request).await {
        Ok(response) => response,
        Err(error) => {
            let mut answer = access.answer(&error, &id);
            if going() {
                answer.head_mut().set_connection_type(ConnectionType::Close);
            }
            return Err(InternalError::from_response(error, answer).into());
        }
    };
    let applied = response.request().extensions().get::<Applied>().cloned();
    let answer = response
        .response()
        .error()
        .map(|error| access.answer(error, &id));
    let mut response = match answer {
        Some(answer) => response.into_response(answer),
        None => {
            access.log(&id, response.status(), None);
            let mut response = response.map_into_boxed_body();
            response.headers_mut().insert(REQUEST_ID, id.header());
            response
        }
    };
    if let Some(Applied(preferences)) = applied.filter(|_| !response.status().is_client_error()) {
        response
            .headers_mut()
            .insert(PREFERENCE_APPLIED, preferences);
    }
    let is_old = response.request().version() < Version::HTTP_11;
    let head = response.response_mut().head_mut();
    if is_old {
        // Chunks came with HTTP/1.1; a body of unknown length ends there with its connection.
        head.no_chunking(true);
    }
    if is_old || going() {
        head.set_connection_type(ConnectionType::Close);
    }
    Ok(response)
}

/// What the log says of a request once it is answered.
struct Access {
    method: String,
    path: String,
    started: Instant,
}

impl Access {
    /// Logs an error and gives it its form.
    fn answer(&self, error: &Error, id: &RequestId) -> HttpResponse {
        let foreign;
        let error = match error.as_error::<ApiError>() {
            Some(error) => error,
            None => {
                foreign = ApiError::foreign(error);
                &foreign
            }
        };
        if let Some(cause) = error.cause() {
            log::error!(request_id = id.as_str(); "request {} failed: {} {}: {cause:#}", id.as_str(), self.method, self.path);
        }
        self.log(id, error.code().status(), Some(error.code()));
        error.respond(id)
    }

    fn log(&self, id: &RequestId, status: StatusCode, code: Option<Code>) {
        let (method, path, status) = (&self.method, &self.path, status.as_u16());
        let level = if matches!(path.as_str(), "/health" | "/ready") {
            log::Level::Debug
        } else {
            log::Level::Info
        };
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let code = code.map_or("", Code::as_str);
        log::log!(level, request_id = id.as_str(), status, ms, code; "{method} {path} {status}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_are_taken_over() {
        assert!(is_plain("0af7-65_1.x"));
        for bad in ["", "a b", "a\nb", "ü", &"x".repeat(65)] {
            assert!(!is_plain(bad), "{bad}");
        }
    }
}
