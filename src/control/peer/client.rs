//! The HTTP side of talking to other gateways: one client for all of them, and the token by which gateways know
//! each other.

use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::wire::{CANCEL_PATH, CancelAnswer, CancelRequest, EXECUTE_PATH, ExecuteRequest};
use crate::domain::sealing::{Sealer, label};
use crate::domain::tokens;
use crate::ids::JobId;

/// How long a connection to a peer may take. It is a machine next door.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer to a cancellation may take.
const CANCEL: Duration = Duration::from_secs(2);
/// A connection is kept for the next job for less time than the other side keeps it.
const IDLE: Duration = Duration::from_secs(20);
/// After this much silence the network is asked whether the peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The tokens of this cluster: the one that is sent, and the one before a rotation of the master key.
#[derive(Debug, Clone)]
pub struct PeerTokens {
    current: SecretString,
    previous: Option<SecretString>,
}

impl PeerTokens {
    /// Derives them from the master key, the same on every gateway.
    pub fn new(sealer: &Sealer) -> Self {
        let text = |key: &[u8]| SecretString::from(hex(key));
        Self {
            current: text(&*sealer.derive(label::PEERS)),
            previous: sealer.derive_previous(label::PEERS).map(|key| text(&*key)),
        }
    }

    /// Whether this is a token of this cluster.
    pub fn admit(&self, token: &str) -> bool {
        let given = tokens::hash(token);
        self.all()
            .any(|known| tokens::same_hash(&tokens::hash(known.expose_secret()), &given))
    }

    fn all(&self) -> impl Iterator<Item = &SecretString> {
        std::iter::once(&self.current).chain(&self.previous)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a peer did not take a request.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection came about: it was certainly not received.
    #[error("no connection to the peer")]
    Unreachable(#[source] reqwest::Error),
    /// It was refused as a request, and not looked at any further.
    #[error("the peer answered {0}")]
    Refused(StatusCode),
    /// The connection broke, or something in between says so: it may have been received.
    #[error("the connection to the peer broke")]
    Broken(#[source] reqwest::Error),
}

/// Talks to other gateways; clones share the connections.
#[derive(Debug, Clone)]
pub struct PeerClient {
    http: Client,
    tokens: PeerTokens,
}

impl PeerClient {
    /// A client with no connection yet.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(tokens: PeerTokens) -> Result<Self, reqwest::Error> {
        let http = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .connect_timeout(CONNECT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE)
            .build()?;
        Ok(Self { http, tokens })
    }

    /// Hands a job over; its answer is the body, to be read frame by frame.
    ///
    /// # Errors
    ///
    /// As [`PeerError`] says.
    pub async fn execute(
        &self,
        url: &str,
        request: &ExecuteRequest,
    ) -> Result<Response, PeerError> {
        self.post(url, EXECUTE_PATH, request, None).await
    }

    /// Has a job ended early; answers whether it was under way there.
    ///
    /// # Errors
    ///
    /// As [`PeerError`] says.
    pub async fn cancel(&self, url: &str, job_id: JobId) -> Result<bool, PeerError> {
        let request = CancelRequest { job_id };
        let answer = self.post(url, CANCEL_PATH, &request, Some(CANCEL)).await?;
        let answer: CancelAnswer = answer.json().await.map_err(PeerError::Broken)?;
        Ok(answer.cancelled)
    }

    /// Sends a request; with the token before a rotation too, if the peer does not know the current one yet.
    async fn post(
        &self,
        url: &str,
        path: &str,
        body: &impl Serialize,
        timeout: Option<Duration>,
    ) -> Result<Response, PeerError> {
        let address = format!("{}{path}", url.trim_end_matches('/'));
        let mut refused = StatusCode::UNAUTHORIZED;
        for token in self.tokens.all() {
            let mut request = self
                .http
                .post(&address)
                .bearer_auth(token.expose_secret())
                .json(body);
            if let Some(timeout) = timeout {
                request = request.timeout(timeout);
            }
            let response = request.send().await.map_err(|error| {
                // The address is the operator's business, and this may end up in front of a caller.
                let error = error.without_url();
                if error.is_connect() {
                    PeerError::Unreachable(error)
                } else {
                    PeerError::Broken(error)
                }
            })?;
            // A peer that refuses says 4xx. 5xx may be from a proxy that lost the peer after the request was
            // passed on.
            let response = if response.status().is_server_error() {
                response
                    .error_for_status()
                    .map_err(|error| PeerError::Broken(error.without_url()))?
            } else {
                response
            };
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::UNAUTHORIZED => refused = StatusCode::UNAUTHORIZED,
                other => {
                    refused = other;
                    break;
                }
            }
        }
        Err(PeerError::Refused(refused))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{App, HttpResponse, HttpServer, http, web};

    use super::*;
    use crate::control::testing::peer_client;

    #[actix::test]
    async fn only_a_4xx_says_that_a_request_was_not_looked_at() {
        let client = peer_client();
        for (status, refused) in [
            (400, true),
            (401, true),
            (404, true),
            (500, false),
            (502, false),
            (504, false),
        ] {
            let answer = move || async move {
                let status = http::StatusCode::from_u16(status).unwrap();
                HttpResponse::build(status).finish()
            };
            let server = HttpServer::new(move || App::new().default_service(web::to(answer)))
                .workers(1)
                .disable_signals()
                .bind("127.0.0.1:0")
                .unwrap();
            let url = format!("http://{}", server.addrs()[0]);
            actix_web::rt::spawn(server.run());
            let error = client.cancel(&url, JobId::new()).await.unwrap_err();
            assert_eq!(
                matches!(error, PeerError::Refused(_)),
                refused,
                "{status}: {error}"
            );
            assert_eq!(
                matches!(error, PeerError::Broken(_)),
                !refused,
                "{status}: {error}"
            );
        }
    }

    #[test]
    fn gateways_know_each_other_during_a_rotation_of_the_master_key() {
        let (old, new) = ([1; 32], [2; 32]);
        let before = PeerTokens::new(&Sealer::new(&old, None));
        let during = PeerTokens::new(&Sealer::new(&new, Some(&old)));
        let after = PeerTokens::new(&Sealer::new(&new, None));
        let sent = |tokens: &PeerTokens| tokens.current.expose_secret().to_owned();
        for (sender, receiver, expected) in [
            (&before, &before, true),
            (&before, &during, true),
            (&during, &during, true),
            (&during, &after, true),
            (&during, &before, false),
            (&before, &after, false),
        ] {
            assert_eq!(receiver.admit(&sent(sender)), expected);
        }
        let previous = during.previous.as_ref().unwrap().expose_secret();
        assert!(before.admit(previous), "which is why both are tried");
        assert!(!before.admit(""));
        assert!(!format!("{before:?}").contains(&sent(&before)));
    }
}
