//! Several gateways on one PostgreSQL store, which reach each other over their internal listeners.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use super::databases::{Database, Engine};
use super::eventually;
use super::gateway::Gateway;
use super::process::Process;
use super::rest::{Api, text};

const OPERATOR: &str = "operator-of-these-gateways";
const INTERNAL: &str = "internal-token-of-these-gateways";
const MASTER_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A store that any number of gateways can be started on. Dropped last, it takes the database along.
pub(crate) struct Hosted {
    pub(crate) store: Database,
    timing: String,
    /// Keys of the one organisation, once there is one.
    keys: Option<(String, String)>,
}

impl Hosted {
    /// A new store, for gateways with these intervals.
    pub(crate) async fn new(timing: &str) -> Self {
        Self {
            store: Database::create(Engine::Postgres).await,
            timing: timing.to_owned(),
            keys: None,
        }
    }

    /// Starts one more gateway on it.
    pub(crate) async fn gateway(&mut self, name: &str) -> Gateway {
        self.gateway_with(name, &[]).await
    }

    /// The same with further arguments.
    pub(crate) async fn gateway_with(&mut self, name: &str, arguments: &[&str]) -> Gateway {
        let (public, internal) = (free_address(), free_address());
        let internal_url = format!("http://{internal}");
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
        command
            .arg("gateway")
            .args(["--listen", &public, "--internal-listen", &internal])
            .args(["--advertise-url", &internal_url])
            .args(arguments)
            .env("SEMILAYER_DATABASE_URL", self.store.url().as_str())
            .env("SEMILAYER_MASTER_KEY", MASTER_KEY)
            .env("SEMILAYER_OPERATOR_TOKEN", OPERATOR)
            .env("SEMILAYER_INTERNAL_TOKEN", INTERNAL)
            .env("SEMILAYER_TIMING", &self.timing);
        let mut process = Process::start(name, command);
        let url = format!("http://{public}");
        let api = Api::new(&url, None);
        eventually(
            &format!("{name} is ready"),
            Duration::from_secs(60),
            async || {
                if let Some(status) = process.ended() {
                    panic!("{name} ended with {status}:\n{}", process.log());
                }
                let ready = api.request(reqwest::Method::GET, "/ready").send().await;
                let status = ready.map_err(|error| error.to_string())?.status();
                if status.is_success() {
                    Ok(())
                } else {
                    Err(status.to_string())
                }
            },
        )
        .await;
        let (admin, secret) = self.keys(&api).await;
        let ready = json!({
            "url": url, "internalUrl": internal_url, "internalToken": INTERNAL,
            "adminKey": admin, "secretKey": secret,
        });
        Gateway::of(process, ready)
    }

    /// The keys, made through this gateway if there are none.
    async fn keys(&mut self, api: &Api) -> (String, String) {
        if self.keys.is_none() {
            let organisation = api
                .with_key(OPERATOR)
                .post("/v1/organisations", json!({"slug": "acme"}))
                .await
                .expect(201);
            let admin = text(&organisation, "key");
            let secret = api
                .with_key(&admin)
                .post("/v1/keys", json!({"kind": "sk"}))
                .await
                .expect(201);
            self.keys = Some((admin, text(&secret, "key")));
        }
        let keys = self.keys.clone().unwrap();
        // Another gateway may have made them a moment ago.
        let key = api.with_key(&keys.1);
        eventually("the keys are known", Duration::from_secs(5), async || {
            let answer = key.get("/v1/whoami").await;
            if answer.status.is_success() {
                Ok(())
            } else {
                Err(answer.text)
            }
        })
        .await;
        keys
    }

    /// The rows that a statement on the store answers, each column as JSON.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Value> {
        self.store.query(sql).await
    }

    /// Cuts all gateways off from the store, or lets them in again.
    pub(crate) async fn cut_off(&self, cut_off: bool) {
        self.store.allow_connections(!cut_off).await;
    }
}

/// An address that nobody listens on.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}
