//! The REST API over a real store, without sockets: what is the same for all routes, and what each promises.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::header::HeaderMap;
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, Error, test};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::minting::{Minted, Opens};
use super::routes::PublicRoutes;
use super::types::MASK;
use super::{Access, Front, request_id};
use crate::clock::Clock;
use crate::control::{ControlConfig, ControlPlane, JobError, JobSpec, Reply};
use crate::domain::sealing::Sealer;
use crate::ids::{EnvironmentId, GatewayId, JobId, OrganisationId};
use crate::protocol::Encoding;
use crate::query::operation::{Kind, Operation};
use crate::storage::{Environment, KeyKind, NewJob, Organisation, Role, Store, SyncClaim};
use crate::timing::Timing;

const OPERATOR: &str = "operator-token-for-tests";

/// The runtime on which stores live; one for all tests, as it is one for a whole process.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    })
}

/// A gateway's front with a store of its own, without listeners.
struct Fixture {
    front: Data<Front>,
    owner: String,
    admin: String,
    viewer: String,
    _dir: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("test.db").display());
        let store = Store::open(&url, runtime().handle()).await.unwrap();
        store.migrate().await.unwrap();
        let config = ControlConfig {
            store,
            runtime: runtime().handle().clone(),
            sealer: Arc::new(Sealer::for_tests()),
            clock: Clock::system(),
            timing: Timing::default(),
            advertise_url: None,
            prefer_local: false,
            inline_allow: Vec::new(),
            tag_sql: false,
            ca_file: None,
            compress: false,
        };
        let control = ControlPlane::start(config).await.unwrap();
        let access = Access {
            operator_token: Some(SecretString::from(OPERATOR)),
            ..Access::default()
        };
        let front = Data::new(Front::new(control, access));
        let organisation = front
            .gateway
            .store
            .organisation_list(crate::storage::Page::first(1))
            .await
            .unwrap()[0]
            .clone();
        let [owner, admin, viewer] = [
            admin_key(&front, &organisation, Role::Owner).await,
            admin_key(&front, &organisation, Role::Admin).await,
            admin_key(&front, &organisation, Role::Viewer).await,
        ];
        Self {
            front,
            owner,
            admin,
            viewer,
            _dir: dir,
        }
    }

    /// The organisation of its keys.
    async fn organisation(&self) -> Organisation {
        let first = crate::storage::Page::first(1);
        let store = &self.front.gateway.store;
        store.organisation_list(first).await.unwrap().remove(0)
    }

    /// Another organisation with one environment and an owner's key.
    async fn another_organisation(&self) -> String {
        let store = &self.front.gateway.store;
        let now = self.front.gateway.clock.now();
        let organisation = Organisation {
            id: OrganisationId::new(),
            slug: "other".into(),
            name: "Other".into(),
            created_at: now,
        };
        store
            .organisation_create(organisation.clone())
            .await
            .unwrap();
        let environment = Environment {
            id: EnvironmentId::new(),
            organisation_id: organisation.id,
            slug: "development".into(),
            created_at: now,
        };
        store.environment_create(environment).await.unwrap();
        admin_key(&self.front, &organisation, Role::Owner).await
    }

    async fn app(
        &self,
    ) -> impl Service<actix_http::Request, Response = ServiceResponse<impl MessageBody>, Error = Error>
    {
        let routes = PublicRoutes::new(self.front.clone());
        test::init_service(
            App::new()
                .wrap(from_fn(request_id::middleware))
                .configure(move |it| routes.configure(it)),
        )
        .await
    }
}

async fn admin_key(front: &Front, organisation: &Organisation, role: Role) -> String {
    let opens = Opens::organisation(organisation.id, role);
    let minted = Minted::new(
        KeyKind::Admin,
        &organisation.slug,
        opens,
        None,
        None,
        front.gateway.clock.now(),
    );
    front.gateway.store.key_create(minted.row).await.unwrap();
    front.gateway.refresh().await.unwrap();
    minted.text
}

/// One answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    /// Asserts the status and the shape that every error has, and gives its sentence.
    #[track_caller]
    fn error(&self, status: u16, code: &str) -> &str {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{}",
            self.body
        );
        let id = self
            .headers
            .get("x-request-id")
            .expect("a request id")
            .to_str()
            .unwrap();
        assert_eq!(self.body["requestId"], id);
        self.body["error"].as_str().expect("a sentence")
    }

    #[track_caller]
    fn ok(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }
}

async fn call<S, B>(
    app: &S,
    method: Method,
    path: &str,
    key: &str,
    body: impl Into<Option<Value>>,
) -> Answer
where
    S: Service<actix_http::Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let text = body.into().map(|body| body.to_string()).unwrap_or_default();
    call_text(app, method, path, key, text).await
}

async fn call_text<S, B>(app: &S, method: Method, path: &str, key: &str, body: String) -> Answer
where
    S: Service<actix_http::Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let mut request = test::TestRequest::default()
        .method(method)
        .uri(path)
        .set_payload(body);
    if !key.is_empty() {
        request = request.insert_header(("authorization", format!("Bearer {key}")));
    }
    let response = test::call_service(app, request.to_request()).await;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = test::read_body(response).await;
    let body = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).unwrap_or_default()
    };
    Answer {
        status,
        headers,
        body,
    }
}

#[actix_web::test]
async fn every_error_has_the_same_shape() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.owner.as_str());

    call(&app, Method::GET, "/nowhere", key, None)
        .await
        .error(404, "not_found");
    let answer = call(&app, Method::PUT, "/v1/runners", key, None).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.headers.get("allow").unwrap(), "GET, POST");
    let answer = call(&app, Method::DELETE, "/v1/runners/a/sessions", key, None).await;
    answer.error(405, "method_not_allowed");

    let answer = call_text(
        &app,
        Method::POST,
        "/v1/runners",
        key,
        "{\"name\": }".into(),
    )
    .await;
    assert!(
        answer
            .error(400, "invalid_request")
            .contains("line 1, column 10")
    );
    assert_eq!(answer.body["path"], "name");
    let answer = call(&app, Method::POST, "/v1/runners", key, json!({"name": 5})).await;
    answer.error(400, "invalid_request");
    assert_eq!(answer.body["path"], "name");
    let answer = call(&app, Method::POST, "/v1/runners", key, json!({"nam": "a"})).await;
    assert!(
        answer
            .error(400, "invalid_request")
            .contains("did you mean `name`?")
    );
    let answer = call(
        &app,
        Method::POST,
        "/v1/runners",
        key,
        json!({"name": "a\u{0}"}),
    )
    .await;
    assert!(answer.error(400, "invalid_request").contains("NUL"));
    let answer = call(&app, Method::GET, "/v1/runners?limt=1", key, None).await;
    assert!(
        answer
            .error(400, "invalid_request")
            .contains("did you mean `limit`?")
    );
    let deep = format!("{{\"name\": {}", "[".repeat(100_000));
    call_text(&app, Method::POST, "/v1/runners", key, deep)
        .await
        .error(400, "invalid_request");
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(2 * 1024 * 1024));
    call_text(&app, Method::POST, "/v1/runners", key, large)
        .await
        .error(413, "too_large");
}

#[actix_web::test]
async fn a_request_keeps_its_own_id_if_it_is_plain() {
    let fixture = Fixture::new().await;
    let app = fixture.app().await;
    for (given, kept) in [("abc-1", true), ("a b", false)] {
        let request = test::TestRequest::get()
            .uri("/health")
            .insert_header(("x-request-id", given))
            .to_request();
        let response = test::call_service(&app, request).await;
        assert_eq!(
            response
                .headers()
                .get("x-request-id")
                .unwrap()
                .to_str()
                .unwrap()
                == given,
            kept
        );
    }
}

#[actix_web::test]
async fn keys_open_what_they_are_for_and_nothing_else() {
    let fixture = Fixture::new().await;
    let app = fixture.app().await;
    let answer = call(&app, Method::GET, "/v1/runners", "", None).await;
    answer.error(401, "invalid_key");
    assert!(answer.headers.contains_key("www-authenticate"));
    call(&app, Method::GET, "/v1/runners", "ak_default_wrong", None)
        .await
        .error(401, "invalid_key");

    let created = call(
        &app,
        Method::POST,
        "/v1/keys",
        &fixture.admin,
        json!({"kind": "sk"}),
    )
    .await
    .ok(201);
    let secret = created["key"].as_str().unwrap();
    assert!(secret.starts_with("sk_development_"), "{secret}");
    let answer = call(&app, Method::GET, "/v1/runners", secret, None).await;
    assert!(answer.error(403, "access_denied").contains("`ak_…`"));
    let runner = call(
        &app,
        Method::POST,
        "/v1/runners",
        &fixture.admin,
        json!({"name": "r"}),
    )
    .await
    .ok(201);
    let answer = call(
        &app,
        Method::GET,
        "/v1/jobs",
        runner["token"].as_str().unwrap(),
        None,
    )
    .await;
    assert!(
        answer
            .error(403, "access_denied")
            .contains("for one runner to connect")
    );

    call(&app, Method::GET, "/v1/runners", &fixture.viewer, None)
        .await
        .ok(200);
    let answer = call(
        &app,
        Method::POST,
        "/v1/runners",
        &fixture.viewer,
        json!({"name": "v"}),
    )
    .await;
    assert!(answer.error(403, "access_denied").contains("may only read"));
    let answer = call(
        &app,
        Method::POST,
        "/v1/keys",
        &fixture.admin,
        json!({"kind": "ak"}),
    )
    .await;
    assert!(answer.error(403, "access_denied").contains("`owner`"));
    call(
        &app,
        Method::POST,
        "/v1/keys",
        &fixture.owner,
        json!({"kind": "ak"}),
    )
    .await
    .ok(201);

    let id = created["id"].as_str().unwrap();
    let revoked = call(
        &app,
        Method::POST,
        &format!("/v1/keys/{id}/revoke"),
        &fixture.admin,
        None,
    )
    .await
    .ok(200);
    assert!(revoked["revokedAt"].is_string());
    call(&app, Method::GET, "/v1/whoami", secret, None)
        .await
        .error(401, "invalid_key");
}

#[actix_web::test]
async fn failures_are_throttled_and_good_keys_are_not() {
    let fixture = Fixture::new().await;
    let app = fixture.app().await;
    let mut limited = None;
    for _ in 0..20 {
        let answer = call(&app, Method::GET, "/v1/runners", "ak_default_guess", None).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            limited = Some(answer);
        }
    }
    let limited = limited.expect("too many failures");
    limited.error(429, "rate_limited");
    assert!(limited.headers.contains_key("retry-after"));
    call(&app, Method::GET, "/v1/runners", &fixture.admin, None)
        .await
        .ok(200);
}

#[actix_web::test]
async fn another_organisation_sees_nothing() {
    let fixture = Fixture::new().await;
    let app = fixture.app().await;
    let (key, other) = (fixture.owner.as_str(), fixture.another_organisation().await);
    let runner = call(&app, Method::POST, "/v1/runners", key, json!({"name": "r"}))
        .await
        .ok(201);
    let source = json!({"name": "s", "bridge": "sqlite", "config": {"path": "/tmp/x.db"}});
    let source = call(&app, Method::POST, "/v1/sources", key, source)
        .await
        .ok(201);
    let new_lens = call(&app, Method::POST, "/v1/lenses", key, lens("l", "s"))
        .await
        .ok(201);
    let new_key = call(&app, Method::POST, "/v1/keys", key, json!({"kind": "sk"}))
        .await
        .ok(201);
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();

    for list in ["runners", "sources", "lenses", "jobs"] {
        let page = call(&app, Method::GET, &format!("/v1/{list}"), &other, None)
            .await
            .ok(200);
        assert_eq!(page["items"], json!([]), "{list}");
    }
    for thing in [
        format!("runners/{}", id(&runner)),
        "runners/r".into(),
        format!("runners/{}/sessions", id(&runner)),
        format!("sources/{}", id(&source)),
        "sources/s".into(),
        format!("sources/{}/targets", id(&source)),
        format!("lenses/{}", id(&new_lens)),
        "lenses/l".into(),
        format!("keys/{}", id(&new_key)),
    ] {
        call(&app, Method::GET, &format!("/v1/{thing}"), &other, None)
            .await
            .error(404, "not_found");
    }
    for (method, thing) in [
        (Method::DELETE, format!("runners/{}", id(&runner))),
        (Method::POST, format!("runners/{}/rotate", id(&runner))),
        (Method::POST, format!("runners/{}/revoke", id(&runner))),
        (Method::POST, format!("keys/{}/revoke", id(&new_key))),
        (Method::DELETE, format!("sources/{}", id(&source))),
        (Method::POST, format!("sources/{}/test", id(&source))),
        (Method::DELETE, format!("lenses/{}", id(&new_lens))),
    ] {
        call(&app, method, &format!("/v1/{thing}"), &other, None)
            .await
            .error(404, "not_found");
    }
    let own = call(
        &app,
        Method::POST,
        "/v1/runners",
        &other,
        json!({"name": "r"}),
    )
    .await
    .ok(201);
    let path = format!("/v1/runners/{}/assignments/{}", id(&own), id(&source));
    call(&app, Method::PUT, &path, &other, None)
        .await
        .error(404, "not_found");
    let foreign = lens("l", &id(&source));
    call(&app, Method::POST, "/v1/lenses", &other, foreign)
        .await
        .error(404, "not_found");
}

fn lens(name: &str, source: &str) -> Value {
    json!({
        "name": name, "sourceId": source, "table": "t", "primaryKey": "id",
        "fields": {"id": {"type": "number"}, "title": {"type": "text", "from": "t_title"}},
    })
}

#[actix_web::test]
async fn a_runner_lives_by_id_and_by_name() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let answer = call(
        &app,
        Method::POST,
        "/v1/runners",
        key,
        json!({"name": "primary-prod"}),
    )
    .await;
    assert_eq!(answer.headers.get("cache-control").unwrap(), "no-store");
    let created = answer.ok(201);
    let (id, token) = (
        created["id"].as_str().unwrap(),
        created["token"].as_str().unwrap(),
    );
    assert!(token.starts_with("rk_default_"), "{token}");
    assert_eq!(
        created["env"],
        format!("SEMILAYER_RUNNER_ID={id}\nSEMILAYER_RUNNER_TOKEN={token}\n")
    );
    assert_eq!(
        (&created["status"], &created["deployment"]),
        (&json!("never_connected"), &json!("customer"))
    );
    call(
        &app,
        Method::POST,
        "/v1/runners",
        key,
        json!({"name": "primary-prod"}),
    )
    .await
    .error(409, "conflict");
    call(&app, Method::POST, "/v1/runners", key, json!({"name": id}))
        .await
        .error(400, "invalid_request");

    for reference in [id, "primary-prod"] {
        let got = call(
            &app,
            Method::GET,
            &format!("/v1/runners/{reference}"),
            key,
            None,
        )
        .await
        .ok(200);
        assert_eq!(got["id"], id);
        assert!(got.get("token").is_none());
    }
    let renamed = call(
        &app,
        Method::PATCH,
        "/v1/runners/primary-prod",
        key,
        json!({"name": "second"}),
    )
    .await
    .ok(200);
    assert_eq!(renamed["name"], "second");
    call(&app, Method::GET, "/v1/runners/primary-prod", key, None)
        .await
        .error(404, "not_found");

    let rotated = call(&app, Method::POST, "/v1/runners/second/rotate", key, None)
        .await
        .ok(200);
    assert_ne!(rotated["token"], token);
    let graced = json!({"graceSeconds": 100_000});
    call(&app, Method::POST, "/v1/runners/second/rotate", key, graced)
        .await
        .error(400, "invalid_request");
    call(&app, Method::POST, "/v1/runners/second/drain", key, None)
        .await
        .ok(200);
    call(&app, Method::POST, "/v1/runners/second/resume", key, None)
        .await
        .ok(200);
    let sessions = call(&app, Method::GET, "/v1/runners/second/sessions", key, None)
        .await
        .ok(200);
    assert_eq!(sessions, json!({"items": []}));
    let revoked = call(&app, Method::POST, "/v1/runners/second/revoke", key, None)
        .await
        .ok(200);
    assert_eq!(revoked["status"], "revoked");
    call(&app, Method::POST, "/v1/runners/second/rotate", key, None)
        .await
        .error(409, "conflict");
    call(&app, Method::DELETE, "/v1/runners/second", key, None)
        .await
        .ok(204);
    call(&app, Method::GET, &format!("/v1/runners/{id}"), key, None)
        .await
        .error(404, "not_found");
}

#[actix_web::test]
async fn lists_page_without_gaps_or_repeats() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    for n in 0..5 {
        call(
            &app,
            Method::POST,
            "/v1/runners",
            key,
            json!({"name": format!("r{n}")}),
        )
        .await
        .ok(201);
    }
    let (mut names, mut path) = (Vec::new(), "/v1/runners?limit=2".to_owned());
    for _ in 0..3 {
        let page = call(&app, Method::GET, &path, key, None).await.ok(200);
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["name"].as_str().unwrap().to_owned()),
        );
        match page["nextCursor"].as_str() {
            Some(cursor) => path = format!("/v1/runners?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(names, ["r0", "r1", "r2", "r3", "r4"]);
    for bad in ["limit=0", "limit=501", "limit=x", "cursor=x"] {
        call(&app, Method::GET, &format!("/v1/runners?{bad}"), key, None)
            .await
            .error(400, "invalid_request");
    }
}

#[actix_web::test]
async fn a_source_keeps_its_secrets_to_itself() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let config = json!({"host": "db", "database": "d", "user": "u", "password": "hunter2"});
    let new = json!({"name": "shop", "bridge": "postgres", "config": config, "timeoutMs": 5000});
    let created = call(&app, Method::POST, "/v1/sources", key, new.clone())
        .await
        .ok(201);
    assert_eq!(created["bridge"], "@semilayer/bridge-postgres");
    assert_eq!(created["config"]["password"], MASK);
    call(&app, Method::POST, "/v1/sources", key, new)
        .await
        .error(409, "conflict");

    let mut config = created["config"].clone();
    config["host"] = json!("db2");
    let changed = call(
        &app,
        Method::PATCH,
        "/v1/sources/shop",
        key,
        json!({"config": config}),
    )
    .await
    .ok(200);
    assert_eq!(
        (&changed["config"]["host"], &changed["config"]["password"]),
        (&json!("db2"), &json!(MASK))
    );
    let id = created["id"].as_str().unwrap().parse().unwrap();
    let row = fixture
        .front
        .gateway
        .catalogue
        .current()
        .source(id)
        .unwrap()
        .clone();
    let opened = fixture
        .front
        .gateway
        .sealer
        .open_config(id, row.config_sealed.as_deref().unwrap())
        .unwrap();
    assert_eq!(
        (&opened["password"], &opened["host"]),
        (&json!("hunter2"), &json!("db2"))
    );
    assert!(!row.config_sealed.unwrap().contains("hunter2"));

    let changed = call(
        &app,
        Method::PATCH,
        "/v1/sources/shop",
        key,
        json!({"timeoutMs": null}),
    )
    .await
    .ok(200);
    assert!(changed.get("timeoutMs").is_none());
    let local = json!({"credentialsLocation": "runner-local"});
    let changed = call(&app, Method::PATCH, "/v1/sources/shop", key, local)
        .await
        .ok(200);
    assert_eq!(changed["config"], json!({}));
    let managed = json!({"credentialsLocation": "managed"});
    let answer = call(&app, Method::PATCH, "/v1/sources/shop", key, managed).await;
    assert!(
        answer
            .error(400, "invalid_request")
            .contains("does not survive")
    );
    let masked = json!({"credentialsLocation": "managed", "config": config});
    let answer = call(&app, Method::PATCH, "/v1/sources/shop", key, masked).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["path"]),
        (400, &json!("config.password"))
    );
}

#[actix_web::test]
async fn a_configuration_is_checked_against_its_manifest() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let good = json!({"host": "db", "database": "d", "user": "u", "password": "p"});
    for (name, bridge, config, location, path) in [
        ("s", "oracle", good.clone(), "managed", "bridge"),
        (
            "s",
            "postgres",
            json!({"host": "db"}),
            "managed",
            "config.database",
        ),
        (
            "s",
            "postgres",
            json!({"host": 5}),
            "managed",
            "config.host",
        ),
        (
            "s",
            "postgres",
            json!({"hots": "db"}),
            "managed",
            "config.hots",
        ),
        ("s", "postgres", good.clone(), "runner-local", "config"),
        ("", "postgres", good.clone(), "managed", "name"),
    ] {
        let new = json!({"name": name, "bridge": bridge, "config": config, "credentialsLocation": location});
        let answer = call(&app, Method::POST, "/v1/sources", key, new).await;
        answer.error(400, "invalid_request");
        assert_eq!(answer.body["path"], path);
    }
    let new = json!({"name": "s", "bridge": "postgres", "config": good, "timeoutMs": 700_000});
    call(&app, Method::POST, "/v1/sources", key, new)
        .await
        .error(400, "invalid_request");
    let manifests = call(&app, Method::GET, "/v1/bridge-manifests", "", None)
        .await
        .ok(200);
    let names: Vec<_> = manifests["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["packageName"].clone())
        .collect();
    assert!(
        names.contains(&json!("@semilayer/bridge-mysql")),
        "{names:?}"
    );
}

#[actix_web::test]
async fn assignments_are_in_force_when_they_are_answered() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    call(&app, Method::POST, "/v1/runners", key, json!({"name": "r"}))
        .await
        .ok(201);
    for name in ["a", "b"] {
        let new = json!({"name": name, "bridge": "sqlite", "config": {"path": "/tmp/x.db"}});
        call(&app, Method::POST, "/v1/sources", key, new)
            .await
            .ok(201);
    }
    let names = |runner: &Value| -> Vec<String> {
        runner["sources"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let both = json!({"sourceIds": ["b", "a"]});
    let runner = call(&app, Method::PUT, "/v1/runners/r/assignments", key, both)
        .await
        .ok(200);
    assert_eq!(names(&runner), ["a", "b"]);
    call(
        &app,
        Method::DELETE,
        "/v1/runners/r/assignments/a",
        key,
        None,
    )
    .await
    .ok(204);
    call(
        &app,
        Method::DELETE,
        "/v1/runners/r/assignments/a",
        key,
        None,
    )
    .await
    .error(404, "not_found");
    let runner = call(&app, Method::GET, "/v1/runners/r", key, None)
        .await
        .ok(200);
    assert_eq!(names(&runner), ["b"]);
    let runner = call(&app, Method::PUT, "/v1/runners/r/assignments/a", key, None)
        .await
        .ok(200);
    assert_eq!(names(&runner), ["a", "b"]);
    let source = call(&app, Method::GET, "/v1/sources/a", key, None)
        .await
        .ok(200);
    assert_eq!(source["runners"][0]["name"], "r");
    let answer = call(
        &app,
        Method::PUT,
        "/v1/runners/r/assignments",
        key,
        json!({"sourceIds": ["a", "z"]}),
    )
    .await;
    answer.error(404, "not_found");
    assert_eq!(answer.body["path"], "sourceIds[1]");
}

#[actix_web::test]
async fn an_environment_must_be_named_once_there_are_several() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    call(&app, Method::GET, "/v1/sources", key, None)
        .await
        .ok(200);
    call(
        &app,
        Method::POST,
        "/v1/environments",
        key,
        json!({"slug": "staging"}),
    )
    .await
    .ok(201);
    call(
        &app,
        Method::POST,
        "/v1/environments",
        key,
        json!({"slug": "staging"}),
    )
    .await
    .error(409, "conflict");
    let answer = call(&app, Method::GET, "/v1/sources", key, None).await;
    assert!(
        answer
            .error(400, "environment_required")
            .contains("development, staging")
    );
    call(
        &app,
        Method::GET,
        "/v1/sources?environment=staging",
        key,
        None,
    )
    .await
    .ok(200);
    call(&app, Method::GET, "/v1/sources?environment=gone", key, None)
        .await
        .error(404, "not_found");
    let secret = call(
        &app,
        Method::POST,
        "/v1/keys?environment=staging",
        key,
        json!({"kind": "sk"}),
    )
    .await
    .ok(201);
    assert_eq!(secret["environment"]["name"], "staging");
    let keys = call(
        &app,
        Method::GET,
        "/v1/keys?environment=development",
        key,
        None,
    )
    .await
    .ok(200);
    assert_eq!(keys["items"], json!([]));
    let renamed = call(
        &app,
        Method::PATCH,
        "/v1/environments/staging",
        key,
        json!({"slug": "test"}),
    )
    .await
    .ok(200);
    assert_eq!(renamed["slug"], "test");
    call(&app, Method::DELETE, "/v1/environments/test", key, None)
        .await
        .ok(204);
    call(&app, Method::GET, "/v1/environments/test", key, None)
        .await
        .error(404, "not_found");
}

#[actix_web::test]
async fn a_lens_is_checked_as_a_whole() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let source = json!({"name": "s", "bridge": "sqlite", "config": {"path": "/tmp/x.db"}});
    let source = call(&app, Method::POST, "/v1/sources", key, source)
        .await
        .ok(201);
    let created = call(&app, Method::POST, "/v1/lenses", key, lens("l", "s"))
        .await
        .ok(201);
    assert_eq!(created["sourceId"], source["id"]);
    assert_eq!(
        created["fields"]["title"],
        json!({"type": "text", "from": "t_title"})
    );
    assert_eq!(created["primaryKey"], json!(["id"]));
    call(&app, Method::POST, "/v1/lenses", key, lens("l", "s"))
        .await
        .error(409, "conflict");
    call(&app, Method::POST, "/v1/lenses", key, lens("m", "gone"))
        .await
        .error(404, "not_found");
    let mut bad = lens("m", "s");
    bad["fields"]["id"]["type"] = json!("nubmer");
    let answer = call(&app, Method::POST, "/v1/lenses", key, bad).await;
    assert!(
        answer
            .error(400, "invalid_request")
            .contains("did you mean `number`?")
    );
    assert_eq!(answer.body["path"], "fields.id.type");

    let only_title = json!({"fields": {"title": {"type": "text"}}});
    let answer = call(&app, Method::PATCH, "/v1/lenses/l", key, only_title).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["path"]),
        (400, &json!("primaryKey[0]"))
    );
    let granted = json!({"grants": {"query": "public"}});
    let changed = call(&app, Method::PATCH, "/v1/lenses/l", key, granted)
        .await
        .ok(200);
    assert_eq!(changed["grants"], json!({"query": "public"}));
    call(&app, Method::DELETE, "/v1/sources/s", key, None)
        .await
        .error(409, "conflict");
    call(&app, Method::DELETE, "/v1/lenses/l", key, None)
        .await
        .ok(204);
    call(&app, Method::DELETE, "/v1/sources/s", key, None)
        .await
        .ok(204);
}

#[actix_web::test]
async fn the_gateway_tests_and_describes_a_source_that_nobody_serves() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let path = fixture._dir.path().join("shop.db");
    let shop = rusqlite::Connection::open(&path).unwrap();
    shop.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, total REAL NOT NULL)")
        .unwrap();
    let new = json!({"name": "s", "bridge": "sqlite", "config": {"path": path}});
    call(&app, Method::POST, "/v1/sources", key, new)
        .await
        .ok(201);
    let tested = call(&app, Method::POST, "/v1/sources/s/test", key, None)
        .await
        .ok(200);
    assert_eq!(tested["ok"], true, "{tested}");
    assert!(tested["results"][0]["latencyMs"].is_number(), "{tested}");
    let targets = call(&app, Method::GET, "/v1/sources/s/targets", key, None)
        .await
        .ok(200);
    assert_eq!(targets["items"][0]["name"], "orders");
    let orders = call(&app, Method::GET, "/v1/sources/s/targets/orders", key, None)
        .await
        .ok(200);
    assert_eq!(orders["columns"][0]["name"], "id");
    assert_eq!(orders["columns"][0]["primaryKey"], true);

    let jobs = call(&app, Method::GET, "/v1/jobs?source=s&limit=2", key, None)
        .await
        .ok(200);
    assert_eq!(jobs["items"].as_array().unwrap().len(), 2);
    let job = &jobs["items"][0];
    assert_eq!(
        (&job["kind"], &job["source"]["name"]),
        (&json!("introspectTarget"), &json!("s"))
    );
    let id = job["id"].as_str().unwrap();
    call(&app, Method::GET, &format!("/v1/jobs/{id}"), key, None)
        .await
        .ok(200);
    call(
        &app,
        Method::POST,
        &format!("/v1/jobs/{id}/cancel"),
        key,
        None,
    )
    .await
    .error(409, "conflict");

    let gone = json!({"config": {"path": "/nonexistent/gone.db"}});
    call(&app, Method::PATCH, "/v1/sources/s", key, gone)
        .await
        .ok(200);
    let tested = call(&app, Method::POST, "/v1/sources/s/test", key, None)
        .await
        .ok(200);
    assert_eq!(
        (&tested["ok"], &tested["results"][0]["error"]["code"]),
        (&json!(false), &json!("SOURCE_UNREACHABLE"))
    );
    call(&app, Method::GET, "/v1/sources/s/targets", key, None)
        .await
        .error(502, "SOURCE_UNREACHABLE");
}

#[actix_web::test]
async fn a_job_that_is_cancelled_is_shown_as_cancelled() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let path = fixture._dir.path().join("slow.db");
    let slow = rusqlite::Connection::open(&path).unwrap();
    slow.execute_batch(
        "CREATE VIEW slow AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000000) \
         SELECT count(*) AS id FROM c",
    )
    .unwrap();
    let new = json!({"name": "s", "bridge": "sqlite", "config": {"path": path}});
    let source = call(&app, Method::POST, "/v1/sources", key, new)
        .await
        .ok(201);
    let source_id = source["id"].as_str().unwrap().parse().unwrap();
    let catalogue = fixture.front.gateway.catalogue.current();
    let mut reply = fixture.front.gateway.dispatch(JobSpec {
        organisation_id: fixture.organisation().await.id,
        environment_id: catalogue.source(source_id).unwrap().environment_id,
        source_id,
        lens: None,
        key_id: None,
        operation: Operation {
            kind: Kind::Query,
            target: Some("slow".into()),
            options: serde_json::Map::new(),
        },
        encoding: Encoding::Json,
        fields: None,
        paging: Default::default(),
        types: Default::default(),
        timeout: None,
        only_runner: None,
        wait: std::time::Duration::ZERO,
        retry: false,
    });
    let id = reply.job_id();
    let path = format!("/v1/jobs/{id}");
    let dispatched = async {
        while call(&app, Method::GET, &path, key, None).await.body["state"] != "dispatched" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), dispatched)
        .await
        .expect("the job is under way");
    let cancel = format!("{path}/cancel");
    let job = call(&app, Method::POST, &cancel, key, None).await.ok(200);
    assert_eq!(job["state"], "cancelled", "{job}");
    assert!(matches!(
        reply.next().await,
        Some(Reply::End(Err(JobError::Cancelled)))
    ));
    let again = call(&app, Method::POST, &cancel, key, None).await;
    assert!(again.error(409, "conflict").contains("it is cancelled"));
    assert_eq!(again.body["state"], "cancelled");
}

#[actix_web::test]
async fn a_job_of_another_gateway_is_not_cancelled_here() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    let new = json!({"name": "s", "bridge": "postgres", "credentialsLocation": "runner-local"});
    let source = call(&app, Method::POST, "/v1/sources", key, new)
        .await
        .ok(201);
    let gateway = &fixture.front.gateway;
    let source_id = source["id"].as_str().unwrap().parse().unwrap();
    let (id, now) = (JobId::new(), gateway.clock.now());
    let job = NewJob {
        id,
        organisation_id: fixture.organisation().await.id,
        environment_id: gateway
            .catalogue
            .current()
            .source(source_id)
            .unwrap()
            .environment_id,
        source_id,
        lens: None,
        kind: "query".into(),
        attempt: 1,
        detached: false,
        retry: false,
        created_at: now,
        deadline_at: now.plus(Duration::from_secs(30)),
        key_id: None,
        request: None,
        routing: None,
    };
    let claim = SyncClaim {
        job,
        holder: GatewayId::new(),
        placement: None,
    };
    gateway
        .store
        .job_claim_sync(vec![claim], now)
        .await
        .unwrap();
    let answer = call(
        &app,
        Method::POST,
        &format!("/v1/jobs/{id}/cancel"),
        key,
        None,
    )
    .await;
    let sentence = answer.error(409, "conflict");
    assert!(
        sentence.contains("could not be told to stop it"),
        "{sentence}"
    );
    assert_eq!(answer.body["state"], "dispatched");
}

#[actix_web::test]
async fn a_source_whose_runner_is_away_says_so() {
    let fixture = Fixture::new().await;
    let (app, key) = (fixture.app().await, fixture.admin.as_str());
    call(&app, Method::POST, "/v1/runners", key, json!({"name": "r"}))
        .await
        .ok(201);
    let new = json!({"name": "s", "bridge": "postgres", "credentialsLocation": "runner-local"});
    call(&app, Method::POST, "/v1/sources", key, new)
        .await
        .ok(201);
    call(&app, Method::PUT, "/v1/runners/r/assignments/s", key, None)
        .await
        .ok(200);
    let tested = call(&app, Method::POST, "/v1/sources/s/test", key, None)
        .await
        .ok(200);
    let result = &tested["results"][0];
    assert_eq!(
        (&result["runner"]["name"], &result["error"]["code"]),
        (&json!("r"), &json!("no_runners_online"))
    );
    let answer = call(&app, Method::GET, "/v1/sources/s/targets", key, None).await;
    answer.error(503, "no_runners_online");
    assert!(answer.headers.contains_key("retry-after"));
}

#[actix_web::test]
async fn the_operator_creates_organisations() {
    let fixture = Fixture::new().await;
    let app = fixture.app().await;
    let new = json!({"slug": "acme"});
    let answer = call(
        &app,
        Method::POST,
        "/v1/organisations",
        OPERATOR,
        new.clone(),
    )
    .await;
    assert_eq!(answer.headers.get("cache-control").unwrap(), "no-store");
    let created = answer.ok(201);
    let key = created["key"].as_str().unwrap();
    let me = call(&app, Method::GET, "/v1/whoami", key, None)
        .await
        .ok(200);
    assert_eq!(
        (&me["kind"], &me["role"], &me["organisation"]["name"]),
        (&json!("ak"), &json!("owner"), &json!("acme"))
    );
    assert_eq!(me["environments"][0]["name"], "development");
    call(
        &app,
        Method::POST,
        "/v1/organisations",
        OPERATOR,
        new.clone(),
    )
    .await
    .error(409, "conflict");
    call(
        &app,
        Method::POST,
        "/v1/organisations",
        "wrong",
        new.clone(),
    )
    .await
    .error(401, "invalid_key");
    call(&app, Method::POST, "/v1/organisations", &fixture.owner, new)
        .await
        .error(403, "access_denied");
    let page = call(
        &app,
        Method::GET,
        "/v1/organisations?limit=1",
        OPERATOR,
        None,
    )
    .await
    .ok(200);
    assert_eq!(page["items"][0]["slug"], "default");
    assert!(page["nextCursor"].is_string());
}

#[actix_web::test]
async fn the_api_describes_itself_without_a_key() {
    let fixture = Fixture::new().await;
    let app = fixture.app().await;
    let api = call(&app, Method::GET, "/v1/openapi.json", "", None)
        .await
        .ok(200);
    let rotate = &api["paths"]["/v1/runners/{runner}/rotate"]["post"];
    for status in [
        "200", "400", "401", "403", "404", "409", "413", "429", "500", "503",
    ] {
        assert!(
            rotate["responses"][status].is_object(),
            "{status}: {rotate}"
        );
    }
    assert_eq!(rotate["security"], json!([{"adminKey": []}]));
    let schemas = api["components"]["schemas"].as_object().unwrap();
    for name in [
        "Runner",
        "RunnerWithToken",
        "ErrorBody",
        "SourceCreate",
        "LensCreate",
        "Job",
    ] {
        assert!(
            schemas.contains_key(name),
            "{name} is missing: {:?}",
            schemas.keys()
        );
    }
    every_reference_leads_somewhere(&api, &api);
    let page = test::call_service(&app, test::TestRequest::get().uri("/docs/").to_request()).await;
    assert_eq!(page.status(), 200);
    let page = String::from_utf8(test::read_body(page).await.to_vec()).unwrap();
    assert!(!page.contains("https://"), "the page needs the network");
    for path in ["/health", "/ready"] {
        assert_eq!(
            call(&app, Method::GET, path, "", None).await.ok(200)["status"],
            "ok"
        );
    }
}

fn every_reference_leads_somewhere(value: &Value, api: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                assert!(api.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
            members
                .values()
                .for_each(|member| every_reference_leads_somewhere(member, api));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| every_reference_leads_somewhere(item, api)),
        _ => {}
    }
}
