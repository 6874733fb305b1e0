//! A small HTTP client for the product's REST API, and answers that can be asked what they should have been.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

/// One base URL and one key.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Api {
    pub(crate) fn new(base: &str, key: Option<&str>) -> Self {
        // A second call finds the same provider in place, which is what it wanted.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(90))
            // Shorter than the patience of a balancer, which closes what is idle as a request sets out.
            .pool_idle_timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            key: key.map(str::to_owned),
        }
    }

    /// The same server with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self.clone()
        }
    }

    /// The same server without a key.
    pub(crate) fn anonymous(&self) -> Self {
        Self {
            key: None,
            ..self.clone()
        }
    }

    /// A request to be completed by the caller.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).json(&body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        Answer::of(self.request(Method::PATCH, path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    /// Asks a lens.
    pub(crate) async fn query(&self, lens: &str, body: Value) -> Answer {
        self.post(&format!("/v1/query/{lens}"), body).await
    }

    /// Creates a runner.
    pub(crate) async fn create_runner(&self, name: &str) -> Runner {
        let runner = self
            .post(
                "/v1/runners",
                json!({"name": name, "deployment": "customer"}),
            )
            .await
            .expect(201);
        Runner {
            id: text(&runner, "id"),
            token: text(&runner, "token"),
        }
    }

    /// Creates a source and answers with its id.
    pub(crate) async fn create_source(&self, body: Value) -> String {
        text(&self.post("/v1/sources", body).await.expect(201), "id")
    }

    /// Assigns exactly these sources to the runner.
    pub(crate) async fn assign(&self, runner: &Runner, sources: &[&str]) {
        let path = format!("/v1/runners/{}/assignments", runner.id);
        self.put(&path, json!({"sourceIds": sources}))
            .await
            .expect_success();
    }

    /// The jobs, newest first.
    pub(crate) async fn jobs(&self, filter: &str) -> Vec<Value> {
        let list = self.get(&format!("/v1/jobs?{filter}")).await.expect(200);
        list["items"]
            .as_array()
            .unwrap_or_else(|| panic!("no items in {list}"))
            .clone()
    }

    /// Those of callers: a new lens asks its source too.
    pub(crate) async fn queries(&self, filter: &str) -> Vec<Value> {
        let mut jobs = self.jobs(filter).await;
        jobs.retain(|job| job["kind"] != "introspectTarget");
        jobs
    }

    /// One job.
    pub(crate) async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await.expect(200)
    }
}

/// A runner's identity.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    pub(crate) id: String,
    pub(crate) token: String,
}

/// A complete HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    /// Sends the request and reads the answer to its end.
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let response = request
            .send()
            .await
            .unwrap_or_else(|error| panic!("no answer: {error:?}"));
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response
            .text()
            .await
            .unwrap_or_else(|error| panic!("answer cut short: {error:?}"));
        Self {
            status,
            headers,
            text,
        }
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The body, if the status is this one.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() {
            Value::Null
        } else {
            self.json()
        }
    }

    #[track_caller]
    pub(crate) fn expect_success(&self) {
        assert!(self.status.is_success(), "{self:?}");
    }

    /// The body of an error, if status and code are these and its shape is the published one.
    #[track_caller]
    pub(crate) fn expect_error(&self, status: u16, code: &str) -> Value {
        let body = self.expect_error_shape(status);
        assert_eq!(body["code"], code, "{body}");
        body
    }

    /// The body of an error of any code, if its status is this one and its shape the published one.
    #[track_caller]
    pub(crate) fn expect_error_shape(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        let body = self.json();
        assert!(
            body["error"]
                .as_str()
                .is_some_and(|sentence| !sentence.is_empty()),
            "no sentence in {body}"
        );
        assert!(
            body["code"].as_str().is_some_and(|code| !code.is_empty()),
            "no code in {body}"
        );
        assert_eq!(body["requestId"], self.header("x-request-id"), "{body}");
        body
    }

    /// A header's text; panics without it.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no header `{name}` in {self:?}"));
        value.to_str().unwrap()
    }

    /// The seconds after which to try again.
    #[track_caller]
    pub(crate) fn retry_after(&self) -> u64 {
        self.header("retry-after").parse().unwrap()
    }

    /// The rows of a query that succeeded.
    #[track_caller]
    pub(crate) fn rows(&self) -> Vec<Value> {
        let body = self.expect(200);
        body["rows"]
            .as_array()
            .unwrap_or_else(|| panic!("no rows in {body}"))
            .clone()
    }
}

/// A field that has to be a string.
#[track_caller]
pub(crate) fn text(value: &Value, field: &str) -> String {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("`{field}` is not a string in {value}"))
        .to_owned()
}
