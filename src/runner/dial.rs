//! From a configuration to an open WebSocket: proxy, TCP, TLS, upgrade. Owns nothing afterwards; says of
//! every failure what happened and what to do about it.

use std::error::Error as StdError;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use secrecy::ExposeSecret;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config, tungstenite};

use super::config::{Config, ConfigError};
use super::proxy::{self, BoxedIo};
use super::tls;
use crate::protocol::MAX_FRAME_BYTES;

/// The WebSocket of a session.
pub type Socket = WebSocketStream<BoxedIo>;

/// How long reaching the gateway (proxy and TLS included) may take, and then the upgrade.
const STEP_TIMEOUT: Duration = Duration::from_secs(15);
/// The largest message that is accepted: the largest frame plus what JSON escaping may add to it.
const MAX_INCOMING_BYTES: usize = 4 * MAX_FRAME_BYTES as usize;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nothing that waiting could not cure.
    #[error("{message}")]
    Retry {
        /// What happened and what to do about it.
        message: String,
        /// How long the gateway asked to wait.
        after: Option<Duration>,
    },
    /// The gateway does not know this token, or no longer.
    #[error("{0}")]
    TokenRefused(String),
}

impl DialError {
    fn retry(message: impl Into<String>) -> Self {
        Self::Retry {
            message: message.into(),
            after: None,
        }
    }
}

/// Opens connections to one gateway address.
#[derive(Clone)]
pub struct Dialer {
    config: Config,
    tls: TlsConnector,
    destination: Uri,
}

impl Dialer {
    /// Prepares TLS once, so that a bad CA file is found at the start.
    ///
    /// # Errors
    ///
    /// When there are no usable certificate authorities.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let host = config.gateway.host_str().unwrap_or_default();
        let scheme = if config.uses_tls() { "https" } else { "http" };
        let destination = format!("{scheme}://{host}:{}/", config.gateway_port());
        let destination = destination.parse().map_err(|e| {
            ConfigError::new(format!(
                "SEMILAYER_GATEWAY_URL has a host that cannot be used: {e}"
            ))
        })?;
        Ok(Self {
            config: config.clone(),
            tls: tls::connector(config.ca_file.as_deref())?,
            destination,
        })
    }

    /// Opens a connection that could carry any HTTP request to the gateway.
    ///
    /// # Errors
    ///
    /// When the gateway, or the proxy on the way, cannot be reached or its certificate does not please.
    pub async fn open(&self) -> Result<BoxedIo, DialError> {
        match timeout(STEP_TIMEOUT, self.open_unbounded()).await {
            Ok(result) => result,
            Err(_) => Err(DialError::retry(format!(
                "{} did not answer within {} s{}; is outbound traffic to port {} allowed?",
                self.host(),
                STEP_TIMEOUT.as_secs(),
                self.via(),
                self.config.gateway_port(),
            ))),
        }
    }

    async fn open_unbounded(&self) -> Result<BoxedIo, DialError> {
        let proxy = self.config.proxies.for_destination(&self.destination);
        let stream = proxy::open(&self.destination, proxy.as_ref(), &self.tls).await.map_err(|e| {
            let advice = if proxy.is_some() {
                "; does the proxy allow this destination (and does it want a user and password in its address)?"
            } else {
                "; is the address right, and outbound traffic allowed (or is there a proxy, for HTTPS_PROXY)?"
            };
            DialError::retry(format!("cannot reach {}{}: {}{advice}", self.authority(), self.via(), chain(&*e)))
        })?;
        if !self.config.uses_tls() {
            return Ok(stream);
        }
        let name = tls::server_name(self.host()).map_err(DialError::retry)?;
        match self.tls.connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(e) => Err(DialError::retry(tls::explain(self.host(), &e))),
        }
    }

    /// Turns a connection into a WebSocket, showing the token.
    ///
    /// # Errors
    ///
    /// When the gateway, or something in between, answers anything but the upgrade.
    pub async fn upgrade(&self, stream: BoxedIo) -> Result<Socket, DialError> {
        let request = self.request()?;
        let limits = WebSocketConfig::default()
            .read_buffer_size(16 * 1024)
            .write_buffer_size(64 * 1024)
            .max_message_size(Some(MAX_INCOMING_BYTES))
            .max_frame_size(Some(MAX_INCOMING_BYTES));
        match timeout(
            STEP_TIMEOUT,
            client_async_with_config(request, stream, Some(limits)),
        )
        .await
        {
            Ok(Ok((socket, _))) => Ok(socket),
            Ok(Err(tungstenite::Error::Http(answer))) => {
                let body = answer.body().as_deref().unwrap_or_default();
                Err(explain_answer(
                    self.config.gateway.as_str(),
                    answer.status(),
                    answer.headers(),
                    body,
                ))
            }
            Ok(Err(e)) => Err(DialError::retry(format!(
                "the WebSocket upgrade at {} failed: {e}",
                self.config.gateway
            ))),
            Err(_) => Err(DialError::retry(format!(
                "{} did not answer the WebSocket upgrade within {} s; does something in between hold it back?",
                self.config.gateway,
                STEP_TIMEOUT.as_secs(),
            ))),
        }
    }

    /// Opens a WebSocket.
    ///
    /// # Errors
    ///
    /// As [`Dialer::open`] and [`Dialer::upgrade`].
    pub async fn dial(&self) -> Result<Socket, DialError> {
        self.upgrade(self.open().await?).await
    }

    fn request(&self) -> Result<http::Request<()>, DialError> {
        let bad = |e: &dyn StdError| {
            DialError::retry(format!(
                "no request can be made for {}: {e}",
                self.config.gateway
            ))
        };
        let mut request = self
            .config
            .gateway
            .as_str()
            .into_client_request()
            .map_err(|e| bad(&e))?;
        let bearer = format!("Bearer {}", self.config.token.expose_secret());
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|e| bad(&e))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, bearer);
        let agent = concat!("semilayer-runner/", env!("CARGO_PKG_VERSION"));
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(agent));
        Ok(request)
    }

    /// Host and port, for messages and the `Host` header.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host(), self.config.gateway_port())
    }

    fn host(&self) -> &str {
        self.config.gateway.host_str().unwrap_or_default()
    }

    fn via(&self) -> String {
        match self.config.proxies.for_destination(&self.destination) {
            Some(proxy) => format!(
                " through the proxy {}",
                proxy.uri().authority().map_or("", |a| a.as_str())
            ),
            None => String::new(),
        }
    }
}

/// What an answer other than the upgrade means.
fn explain_answer(url: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> DialError {
    // Only the gateway's own refusal ends the process; a firewall's page may be gone in a minute.
    let json = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.starts_with("application/json"));
    let from_gateway = json || headers.contains_key("x-request-id");
    let said = said(body);
    let message = match status {
        StatusCode::UNAUTHORIZED if from_gateway => {
            return DialError::TokenRefused(format!(
                "the gateway does not know this token{said}; check SEMILAYER_RUNNER_TOKEN, or make a new one with \
                 `semilayer runners rotate`"
            ));
        }
        StatusCode::FORBIDDEN if from_gateway => {
            return DialError::TokenRefused(format!(
                "this token was revoked, rotated or has expired{said}; make a new one with `semilayer runners rotate`"
            ));
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!(
                "{url} answered {status}, but not in the gateway's words: something in between refuses"
            )
        }
        StatusCode::NOT_FOUND => format!(
            "{url} answered 404: there is no gateway at this address; check SEMILAYER_GATEWAY_URL"
        ),
        StatusCode::TOO_MANY_REQUESTS => format!("the gateway asks to slow down (429){said}"),
        StatusCode::SERVICE_UNAVAILABLE => {
            format!("the gateway is starting, stopping or without its store (503){said}")
        }
        status if status.is_redirection() => {
            let to = headers
                .get(LOCATION)
                .and_then(|v| v.to_str().ok())
                .unwrap_or("somewhere else");
            format!("{url} redirects to {to}: set SEMILAYER_GATEWAY_URL to the address behind it")
        }
        status if status.is_success() => {
            format!(
                "{url} answered {status} instead of upgrading: something in between does not pass WebSockets on"
            )
        }
        status => format!("{url} answered {status} to the WebSocket upgrade{said}"),
    };
    let after = headers
        .get(RETRY_AFTER)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse().ok());
    DialError::Retry {
        message,
        after: after.map(Duration::from_secs),
    }
}

/// The gateway's own sentence, if its error body arrived whole.
fn said(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        error: String,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => format!(
            " (it says: {})",
            body.error.chars().take(200).collect::<String>()
        ),
        Err(_) => String::new(),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> DialError {
        let headers = headers
            .iter()
            .map(|(k, v)| (k.parse().unwrap(), HeaderValue::from_static(v)))
            .collect();
        explain_answer(
            "wss://g/connect",
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body.as_bytes(),
        )
    }

    #[test]
    fn only_the_gateways_own_refusal_is_final() {
        let json = [("content-type", "application/json; charset=utf-8")];
        let body = r#"{"error":"unknown token","code":"invalid_key","requestId":"1"}"#;
        assert!(
            matches!(answer(401, &json, body), DialError::TokenRefused(m) if m.contains("unknown token"))
        );
        assert!(matches!(
            answer(403, &[("x-request-id", "1")], ""),
            DialError::TokenRefused(_)
        ));
        assert!(matches!(
            answer(403, &[("content-type", "text/html")], "<html>"),
            DialError::Retry { .. }
        ));
    }

    #[test]
    fn other_answers_say_what_to_do() {
        for (status, headers, expected) in [
            (404, vec![], "check SEMILAYER_GATEWAY_URL"),
            (
                301,
                vec![("location", "https://new/")],
                "redirects to https://new/",
            ),
            (200, vec![], "does not pass WebSockets on"),
            (500, vec![], "500"),
        ] {
            let DialError::Retry {
                message,
                after: None,
            } = answer(status, &headers, "")
            else {
                panic!("{status}")
            };
            assert!(message.contains(expected), "{message}");
        }
        for status in [429, 503] {
            let DialError::Retry { after, .. } = answer(status, &[("retry-after", "7")], "") else {
                panic!("{status}")
            };
            assert_eq!(after, Some(Duration::from_secs(7)));
        }
    }
}
