//! One REST server and one key. Sends JSON, reads JSON, and turns every other answer into a
//! [`CliError`]; knows no resource.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use url::Url;

use super::error::{CliError, Refusal};
use crate::no_proxy::NoProxy;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the longest deadline that the server allows a job.
const READ_TIMEOUT: Duration = Duration::from_secs(660);
/// How many items a page of a list holds.
const PAGE: usize = 100;

/// A REST server and the key it is asked with.
#[derive(Debug, Clone)]
pub struct Client {
    url: Url,
    key: Option<SecretString>,
    http: reqwest::Client,
}

impl Client {
    /// Prepares to talk to `url`; sends nothing yet.
    pub fn new(
        url: Url,
        key: Option<SecretString>,
        ca_file: Option<&Path>,
    ) -> Result<Self, CliError> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("semilayer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        let builder = match ca_file {
            Some(file) => builder.tls_certs_merge(certificates(file)?),
            None => builder,
        };
        // A proxy of the system is for other machines, never for this one.
        let excepted =
            excepted().excepts(url.scheme(), url.host_str().unwrap_or_default(), url.port());
        let builder = if excepted {
            builder.no_proxy()
        } else {
            builder
        };
        let http = builder
            .build()
            .map_err(|error| CliError::usage(format!("cannot set up TLS: {error}")))?;
        Ok(Self { url, key, http })
    }

    /// The same server with another key.
    #[must_use]
    pub fn with_key(&self, key: SecretString) -> Self {
        Self {
            key: Some(key),
            ..self.clone()
        }
    }

    /// The server.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// `GET`.
    pub async fn get(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, CliError> {
        self.json(self.request(Method::GET, path).query(query))
            .await
    }

    /// `POST` of a JSON body.
    pub async fn post(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: &Value,
    ) -> Result<Value, CliError> {
        self.json(self.request(Method::POST, path).query(query).json(body))
            .await
    }

    /// `PATCH` of a JSON body.
    pub async fn patch(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: &Value,
    ) -> Result<Value, CliError> {
        self.json(self.request(Method::PATCH, path).query(query).json(body))
            .await
    }

    /// `PUT` without a body.
    pub async fn put(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, CliError> {
        self.json(self.request(Method::PUT, path).query(query))
            .await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, CliError> {
        self.json(self.request(Method::DELETE, path).query(query))
            .await
    }

    /// Up to `limit` items of a list, page by page.
    pub async fn list(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<Vec<Value>, CliError> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        while items.len() < limit {
            let mut page = query.to_vec();
            page.push(("limit", PAGE.min(limit - items.len()).to_string()));
            page.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let mut answer = self.get(path, &page).await?;
            match answer.get_mut("items").map(Value::take) {
                Some(Value::Array(found)) => items.extend(found),
                _ => {
                    return Err(CliError::Unreachable(
                        "the server's list has no items: is it a semilayer gateway?".into(),
                    ));
                }
            }
            match answer.get("nextCursor").and_then(Value::as_str) {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        Ok(items)
    }

    /// A request that the caller completes; the key is on it.
    pub fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let request = self.http.request(method, self.address(path));
        match &self.key {
            Some(key) => request.bearer_auth(key.expose_secret()),
            None => request,
        }
    }

    /// Sends a request; an answer that is not a success becomes an error.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(CliError::Refused(Box::new(self.refusal(response).await)))
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, CliError> {
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(json!({}));
        }
        let body = response.bytes().await?;
        if body.is_empty() {
            return Ok(json!({}));
        }
        serde_json::from_slice(&body).map_err(|error| {
            CliError::Unreachable(format!(
                "{} does not answer in JSON ({error}): is it a semilayer gateway?",
                self.url
            ))
        })
    }

    async fn refusal(&self, response: Response) -> Refusal {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let mut refusal = serde_json::from_slice(&body).unwrap_or_else(|_| Refusal {
            status,
            error: format!(
                "{} answered {status}, and not as a semilayer gateway does",
                self.url
            ),
            code: None,
            request_id: None,
            details: Map::new(),
        });
        refusal.status = status;
        if status == StatusCode::UNAUTHORIZED && self.key.is_none() {
            refusal.error = "no key: set SEMILAYER_ADMIN_KEY, or pass --admin-key".into();
        }
        refusal
    }

    fn address(&self, path: &[&str]) -> Url {
        let mut url = self.url.clone();
        // Only `mailto:` and the like have no segments, and the URL was checked to be http(s).
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

fn certificates(file: &Path) -> Result<Vec<reqwest::Certificate>, CliError> {
    let unusable = |reason: String| {
        CliError::usage(format!(
            "SEMILAYER_CA_FILE (--ca-file): {}: {reason}",
            file.display()
        ))
    };
    let pem = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let certificates =
        reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() {
        Err(unusable("it holds no certificate".into()))
    } else {
        Ok(certificates)
    }
}
/// What `NO_PROXY` excepts, which says more than the HTTP library reads out of it.
#[expect(
    clippy::disallowed_methods,
    reason = "the variables of proxies are the system's, not settings of ours"
)]
fn excepted() -> NoProxy {
    let list = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy"));
    NoProxy::parse(&list.unwrap_or_default())
}
