//! A gateway that terminates TLS itself: runners and callers arrive over wss:// and https://.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::eventually::holds;
use crate::support::process::Process;
use crate::support::rest::text;
use crate::support::stage::managed;
use crate::support::{Answer, Database, Engine, PATIENCE, eventually};

/// An authority and a certificate for 127.0.0.1 that it signed, in files.
struct Pki {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Pki {
    fn new(dir: &Path) -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let issuer = Issuer::from_params(&authority, &authority_key);
        let certificate = server.signed_by(&key, &issuer).unwrap();
        let write = |name: &str, pem: String| {
            let path = dir.join(name);
            fs::write(&path, pem).unwrap();
            path
        };
        Self {
            authority: write(
                "ca.pem",
                authority.self_signed(&authority_key).unwrap().pem(),
            ),
            certificate: write("server.pem", certificate.pem()),
            key: write("server.key", key.serialize_pem()),
        }
    }
}

/// `semilayer gateway` with a certificate, and a client that trusts its authority.
struct Gateway {
    // Both end before their files do.
    process: Process,
    client: Client,
    address: String,
    admin_key: String,
    pki: Pki,
    _dir: TempDir,
}

impl Gateway {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path());
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
        command
            .args(["gateway", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(dir.path().join("data"));
        command
            .arg("--tls-cert")
            .arg(&pki.certificate)
            .arg("--tls-key")
            .arg(&pki.key);
        let mut process = Process::start("gateway", command);
        let (admin_key, address) = eventually("the gateway runs", PATIENCE, async || {
            if let Some(status) = process.ended() {
                panic!("the gateway ended with {status}:\n{}", process.log());
            }
            let out = process.stdout();
            let key = out
                .lines()
                .find_map(|line| line.strip_prefix("SEMILAYER_ADMIN_KEY="))
                .ok_or("no key yet")?;
            let log = process.log();
            let address = log
                .lines()
                .find_map(|line| line.split_once("listening on "))
                .ok_or("no address yet")?
                .1;
            Ok((key.to_owned(), address.trim().to_owned()))
        })
        .await;
        // A second call finds the same provider in place, which is what it wanted.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let authority = Certificate::from_pem(&fs::read(&pki.authority).unwrap()).unwrap();
        let client = Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .tls_certs_only([authority])
            .build()
            .unwrap();
        Self {
            process,
            client,
            address,
            admin_key,
            pki,
            _dir: dir,
        }
    }

    fn request(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        self.client
            .request(method, format!("https://{}{path}", self.address))
            .bearer_auth(key)
    }

    async fn get(&self, path: &str) -> Value {
        Answer::of(self.request(Method::GET, path, &self.admin_key))
            .await
            .expect(200)
    }

    async fn send(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = Answer::of(self.request(method, path, &self.admin_key).json(&body)).await;
        answer.expect_success();
        answer.json()
    }

    fn start_runner(&self, id: &str, token: &str) -> Process {
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer-runner"));
        command
            .arg("start")
            .env("SEMILAYER_RUNNER_ID", id)
            .env("SEMILAYER_RUNNER_TOKEN", token)
            .env("SEMILAYER_GATEWAY_URL", format!("wss://{}", self.address))
            .env("SEMILAYER_CA_FILE", &self.pki.authority);
        Process::start("runner", command)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_connects_over_tls_and_serves() {
    let mut gateway = Gateway::start().await;
    let database = Database::with_products(Engine::Sqlite).await;
    let source = text(
        &gateway
            .send(Method::POST, "/v1/sources", managed("warehouse", &database))
            .await,
        "id",
    );
    let fields = json!({"id": {"type": "number"}, "title": {"type": "text"}});
    let lens = json!({
        "name": "products", "sourceId": source, "table": "products", "primaryKey": "id", "fields": fields, "grants": {},
    });
    gateway.send(Method::POST, "/v1/lenses", lens).await;
    let runner = json!({"name": "primary", "deployment": "customer"});
    let runner = gateway.send(Method::POST, "/v1/runners", runner).await;
    let (id, token) = (text(&runner, "id"), text(&runner, "token"));
    gateway
        .send(
            Method::PUT,
            &format!("/v1/runners/{id}/assignments"),
            json!({"sourceIds": [source]}),
        )
        .await;

    let _runner = gateway.start_runner(&id, &token);
    eventually("the runner is online", PATIENCE, async || {
        let status = text(&gateway.get(&format!("/v1/runners/{id}")).await, "status");
        holds(status == "online", status)
    })
    .await;

    let key = text(
        &gateway
            .send(Method::POST, "/v1/keys", json!({"kind": "sk"}))
            .await,
        "key",
    );
    let query = gateway
        .request(Method::POST, "/v1/query/products", &key)
        .json(&json!({"where": {"id": 7}}));
    let rows = Answer::of(query).await.rows();
    assert_eq!((rows.len(), &rows[0]["id"]), (1, &json!(7)));
    let jobs = gateway.get("/v1/jobs").await;
    assert_eq!(jobs["items"][0]["runner"]["id"], id, "{jobs}");
    assert!(gateway.process.ended().is_none());
}
