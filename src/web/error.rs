//! What went wrong, as an HTTP client is told: [`ApiError`], the only place that decides a status.
//!
//! Lower layers state facts; the conversions here give them a code. The default is 500, which says
//! nothing but the request's id; its cause is logged once, by the middleware in `request_id`.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpResponse, ResponseError};
use serde_json::{Map, Value};

use super::request_id::{REQUEST_ID, RequestId};
use crate::bridge::BridgeError;
use crate::query::grammar::{GrammarCode, GrammarError};
use crate::query::lens::Lens;
use crate::storage::StoreError;

/// How long a client should wait after a 503 that names no time of its own.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// How long a client should wait for a database that cannot answer at the moment.
const SOURCE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// All that a client learns of a fault of ours.
const INTERNAL: &str = "something went wrong on our side; tell us the request id";

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $status:ident;)+) => {
        /// The machine code of an error; it decides the status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// The code of that name.
            pub fn parse(code: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == code)
            }

            /// The status that goes with it.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)+ }
            }

            /// When it is answered, for the API's description of itself.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_start(),)+ }
            }
        }
    };
}

codes! {
    /// The request is not of the right form; `path` names what is wrong.
    InvalidRequest = "invalid_request", BAD_REQUEST;
    /// The source's bridge does not have this operator.
    UnsupportedOperator = "unsupported_operator", BAD_REQUEST;
    /// The source's bridge does not have this kind of operation.
    UnsupportedKind = "unsupported_kind", BAD_REQUEST;
    /// The lens has no such field.
    UnknownField = "unknown_field", BAD_REQUEST;
    /// The organisation has several environments and the request names none of them.
    EnvironmentRequired = "environment_required", BAD_REQUEST;
    /// The key is missing, unknown, revoked or has expired.
    InvalidKey = "invalid_key", UNAUTHORIZED;
    /// The key is good, but not for this.
    AccessDenied = "access_denied", FORBIDDEN;
    /// There is no such thing, or it belongs to somebody else.
    NotFound = "not_found", NOT_FOUND;
    /// The address exists, but not with this method; `Allow` lists those that do.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// What is there now stands in the way.
    Conflict = "conflict", CONFLICT;
    /// The job was cancelled while its caller waited.
    JobCancelled = "job_cancelled", CONFLICT;
    /// The job's result was kept for as long as results are, and is gone.
    ResultExpired = "result_expired", GONE;
    /// The body is over the limit.
    TooLarge = "too_large", PAYLOAD_TOO_LARGE;
    /// The database rejected the query.
    SourceQueryFailed = "SOURCE_QUERY_FAILED", UNPROCESSABLE_ENTITY;
    /// Too many failed authentications from this address.
    RateLimited = "rate_limited", TOO_MANY_REQUESTS;
    /// The runner was lost while it executed the query.
    RunnerFailed = "runner_failed", BAD_GATEWAY;
    /// The database could not be reached.
    SourceUnreachable = "SOURCE_UNREACHABLE", BAD_GATEWAY;
    /// More was produced than may be sent.
    ResultOverflow = "result_overflow", BAD_GATEWAY;
    /// No runner that serves the source is online.
    NoRunnersOnline = "no_runners_online", SERVICE_UNAVAILABLE;
    /// The database cannot answer at the moment: a lock, too many connections, a restart.
    SourceUnavailable = "SOURCE_UNAVAILABLE", SERVICE_UNAVAILABLE;
    /// Every runner that serves the source is at its capacity.
    RunnersBusy = "runners_busy", SERVICE_UNAVAILABLE;
    /// The gateway's own store could not be reached.
    StoreUnavailable = "store_unavailable", SERVICE_UNAVAILABLE;
    /// This gateway is about to stop.
    Draining = "draining", SERVICE_UNAVAILABLE;
    /// The query did not finish before its deadline.
    QueryTimeout = "QUERY_TIMEOUT", GATEWAY_TIMEOUT;
    /// A fault of the gateway; the request id finds it in the log.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

/// An error on its way to an HTTP client.
#[derive(Debug)]
pub struct ApiError(Box<Parts>);

// Boxed, because every result of a handler has room for one and hardly any holds one.
#[derive(Debug)]
struct Parts {
    code: Code,
    message: Cow<'static, str>,
    details: Map<String, Value>,
    retry_after: Option<Duration>,
    allow: Vec<Method>,
    cause: Option<anyhow::Error>,
}

/// What handlers answer.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with a sentence that a person can act on.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (code.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER);
        Self(Box::new(Parts {
            code,
            message: message.into(),
            details: Map::new(),
            retry_after,
            allow: Vec::new(),
            cause: None,
        }))
    }

    /// A fault of ours: the client learns nothing but the request's id, the log gets `cause`.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        let mut error = Self::new(Code::Internal, INTERNAL);
        error.0.cause = Some(cause.into());
        error
    }

    /// A field of the request is wrong; `path` says which, e.g. `fields.price.type`.
    pub fn invalid(path: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        let path: String = path.into();
        let error = Self::new(Code::InvalidRequest, message);
        if path.is_empty() {
            error
        } else {
            error.with("path", path)
        }
    }

    /// The database cannot answer at the moment; all that is asked of it reads, so asking again does no harm.
    pub fn source_unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::SourceUnavailable, message)
            .retry_after(SOURCE_RETRY_AFTER)
            .with("retryable", true)
    }

    /// There is no `kind` of that id or name, or it belongs to somebody else.
    pub fn not_found(kind: &str, reference: &str) -> Self {
        // What was asked for comes back, but never a novel.
        let reference: String = reference.chars().take(80).collect();
        Self::new(
            Code::NotFound,
            format!("there is no {kind} `{reference}` here"),
        )
    }

    /// What the HTTP library itself complains of; its own texts are for programmers, not for clients.
    pub fn foreign(error: &actix_web::Error) -> Self {
        let status = error.as_response_error().status_code();
        match status {
            StatusCode::NOT_FOUND => Self::new(Code::NotFound, "there is nothing at this address"),
            StatusCode::METHOD_NOT_ALLOWED => Self::new(
                Code::MethodNotAllowed,
                "this address does not have that method",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(Code::TooLarge, "the body is too large"),
            status if status.is_client_error() => Self::new(
                Code::InvalidRequest,
                format!("the request cannot be read: {error}"),
            ),
            _ => Self::internal(anyhow::anyhow!("{error}")),
        }
    }

    /// Adds a field to the body.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(key.to_owned(), value.into());
        self
    }

    /// Tells of a column under `where` by the name that the caller has for it.
    #[must_use]
    pub fn in_the_names_of(mut self, lens: &Lens) -> Self {
        let path = self.0.details.get("path").and_then(Value::as_str);
        let column = path.and_then(|path| path.strip_prefix("where."));
        let field =
            column.and_then(|column| lens.fields.iter().find(|field| field.column == column));
        if let (Some(column), Some(field)) = (column, field) {
            let (old, new) = (format!("`{column}`"), format!("`{}`", field.output));
            self.0.message = self.0.message.replace(&old, &new).into();
            self.with("path", format!("where.{}", field.output))
        } else {
            self
        }
    }

    /// Tells the client when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Names the methods that the address does have.
    #[must_use]
    pub fn allowing(mut self, methods: Vec<Method>) -> Self {
        self.0.allow = methods;
        self
    }

    /// Keeps what caused it, for the log only.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The machine code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The sentence for the client.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What caused it, for the log.
    pub fn cause(&self) -> Option<&anyhow::Error> {
        self.0.cause.as_ref()
    }

    /// The body, in the one shape that every error has.
    pub fn body(&self, id: &RequestId) -> Value {
        let mut body = Map::with_capacity(3 + self.0.details.len());
        body.insert("error".into(), self.0.message.as_ref().into());
        body.insert("code".into(), self.0.code.as_str().into());
        body.insert("requestId".into(), id.as_str().into());
        for (key, value) in &self.0.details {
            body.entry(key).or_insert_with(|| value.clone());
        }
        Value::Object(body)
    }

    /// The whole response.
    pub fn respond(&self, id: &RequestId) -> HttpResponse {
        let mut response = HttpResponse::build(self.0.code.status());
        response.insert_header((REQUEST_ID, id.header()));
        if let Some(after) = self.0.retry_after {
            let seconds = after.as_secs_f64().ceil().max(1.0);
            response.insert_header((header::RETRY_AFTER, format!("{seconds:.0}")));
        }
        if self.0.code == Code::InvalidKey {
            response.insert_header((
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"semilayer\""),
            ));
        }
        if !self.0.allow.is_empty() {
            let methods: Vec<&str> = self.0.allow.iter().map(Method::as_str).collect();
            response.insert_header((header::ALLOW, methods.join(", ")));
        }
        response.json(self.body(id))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::new(Code::NotFound, "there is no such thing here"),
            StoreError::Conflict(what) => Self::new(Code::Conflict, what),
            StoreError::Unavailable(_) | StoreError::Uncertain(_) => Self::new(
                Code::StoreUnavailable,
                "the gateway cannot reach its store; try again shortly",
            )
            .caused_by(error),
            StoreError::Corrupt(_) | StoreError::Internal(_) => Self::internal(error),
        }
    }
}

impl From<BridgeError> for ApiError {
    fn from(error: BridgeError) -> Self {
        let message = error.to_string();
        match error {
            BridgeError::Unreachable(_) => Self::new(Code::SourceUnreachable, message),
            BridgeError::Unavailable(_) => Self::source_unavailable(message),
            BridgeError::QueryFailed(_) => Self::new(Code::SourceQueryFailed, message),
            BridgeError::Timeout => Self::new(Code::QueryTimeout, message),
            BridgeError::Cancelled => Self::new(Code::JobCancelled, message),
            BridgeError::UnsupportedOperator { operator, bridge } => {
                Self::new(Code::UnsupportedOperator, message)
                    .with("operator", operator)
                    .with("bridge", bridge)
            }
            BridgeError::UnsupportedKind { kind, bridge } => {
                Self::new(Code::UnsupportedKind, message)
                    .with("kind", kind)
                    .with("bridge", bridge)
            }
            BridgeError::Invalid { path, .. } => Self::invalid(path, message),
            BridgeError::ResultOverflow(_) => Self::new(Code::ResultOverflow, message),
        }
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> Self {
        let code = match error.code {
            GrammarCode::InvalidRequest => Code::InvalidRequest,
            GrammarCode::UnsupportedOperator => Code::UnsupportedOperator,
            GrammarCode::UnknownField => Code::UnknownField,
        };
        if error.path.is_empty() {
            return Self::new(code, error.message);
        }
        Self::new(code, error.to_string()).with("path", error.path)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.as_str(), self.0.message)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.0.code.status()
    }

    /// Used only where the middleware that knows the request's id is not: the id is then a fresh one.
    fn error_response(&self) -> HttpResponse {
        self.respond(&RequestId::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_unique_and_explained() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{} twice", code.as_str());
            assert!(code.meaning().ends_with('.'), "{}", code.meaning());
        }
    }

    #[test]
    fn a_detail_cannot_replace_a_fixed_field() {
        let error = ApiError::new(Code::Conflict, "no")
            .with("code", "other")
            .with("path", "a.b");
        let body = error.body(&RequestId::new());
        assert_eq!(body["code"], "conflict");
        assert_eq!(body["path"], "a.b");
    }

    #[test]
    fn an_internal_error_keeps_its_cause_to_itself() {
        let error = ApiError::internal(anyhow::anyhow!("secret detail"));
        assert!(!error.body(&RequestId::new()).to_string().contains("secret"));
        assert_eq!(error.status_code(), 500);
    }

    #[test]
    fn every_503_says_when_to_come_back_and_a_401_what_to_bring() {
        for code in Code::ALL
            .iter()
            .filter(|code| code.status() == StatusCode::SERVICE_UNAVAILABLE)
        {
            let response = ApiError::new(*code, "later").error_response();
            assert!(
                response.headers().contains_key(header::RETRY_AFTER),
                "{}",
                code.as_str()
            );
        }
        let response = ApiError::new(Code::InvalidKey, "no").error_response();
        assert!(response.headers().contains_key(header::WWW_AUTHENTICATE));
    }
}
