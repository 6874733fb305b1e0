//! Tokens and keys: what they open, when they stop to, and that they show up in no log.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::fake_runner::{TokenIn, hello_v2};
use crate::support::rest::{Api, Runner, text};
use crate::support::stage::managed;
use crate::support::{
    Database, Engine, FakeRunner, Gateway, PATIENCE, RunnerProcess, Stage, eventually,
};

const TOKEN_REVOKED: u16 = 4001;

async fn post(stage: &Stage, runner: &Runner, verb: &str, body: Value) -> Value {
    let answer = stage
        .gateway
        .admin()
        .post(&format!("/v1/runners/{}/{verb}", runner.id), body)
        .await;
    answer.expect_success();
    if answer.text.is_empty() {
        Value::Null
    } else {
        answer.json()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotating_a_token_closes_its_sessions_within_a_second() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let mut process = RunnerProcess::builder(&stage.gateway, &runner).spawn();
    let sessions = format!("/v1/runners/{}/sessions", runner.id);
    eventually("both are connected", PATIENCE, async || {
        let listed = stage.gateway.admin().get(&sessions).await.expect(200);
        holds(listed["items"].as_array().unwrap().len() == 2, listed)
    })
    .await;

    let rotated = Instant::now();
    let new = text(&post(&stage, &runner, "rotate", json!({})).await, "token");
    assert_eq!(session.closed().await, TOKEN_REVOKED);
    assert!(
        rotated.elapsed() < Duration::from_secs(1),
        "took {:?}",
        rotated.elapsed()
    );
    assert_eq!(
        process.process.end(PATIENCE).await.code(),
        Some(3),
        "{}",
        process.process.log()
    );
    assert!(
        [401, 403].contains(
            &FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
                .await
                .err()
                .unwrap()
        )
    );

    assert_ne!(new, runner.token);
    let runner = Runner {
        token: new,
        ..runner
    };
    let _process = RunnerProcess::start(&stage.gateway, &runner).await;
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_with_grace_lets_the_old_token_work_until_then() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let mut old = FakeRunner::v2(&stage.gateway, &runner).await;
    let rotated = Instant::now();
    let new = text(
        &post(&stage, &runner, "rotate", json!({"graceSeconds": 3})).await,
        "token",
    );
    // Both work now, the old one for new sessions too.
    let mut late = FakeRunner::v2(&stage.gateway, &runner).await;
    let mut renewed = FakeRunner::open(&stage.gateway, &new, hello_v2(&runner.id)).await;
    assert!(
        rotated.elapsed() < Duration::from_secs(2),
        "too slow a machine for this test"
    );
    assert_eq!(old.closed().await, TOKEN_REVOKED);
    assert_eq!(late.closed().await, TOKEN_REVOKED);
    let took = rotated.elapsed();
    assert!(
        took >= Duration::from_millis(2900) && took < Duration::from_millis(4500),
        "after {took:?}"
    );
    assert_eq!(
        FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
            .await
            .err(),
        Some(403)
    );
    renewed.send(json!({"type": "heartbeat"})).await;
    renewed.assert_silent(Duration::from_millis(200)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoking_a_token_closes_its_sessions_and_fails_their_jobs_within_a_second() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let caller = stage.gateway.caller();
    let query = tokio::spawn(async move { caller.query("products", json!({})).await });
    let (id, _) = session.job().await;
    session.accept(&id).await;
    let revoked = Instant::now();
    post(&stage, &runner, "revoke", json!({})).await;
    assert_eq!(session.closed().await, TOKEN_REVOKED);
    query.await.unwrap().expect_error(502, "runner_failed");
    assert!(
        revoked.elapsed() < Duration::from_secs(1),
        "took {:?}",
        revoked.elapsed()
    );
    stage.gateway.until_runner_is(&runner, "revoked").await;
    for place in [TokenIn::Header, TokenIn::Url] {
        let refused = FakeRunner::dial(&stage.gateway, &runner.token, place).await;
        assert_eq!(refused.err(), Some(403), "before the upgrade");
    }
    // Revoked is revoked: a new token needs a new runner.
    let again = stage
        .gateway
        .admin()
        .post(&format!("/v1/runners/{}/rotate", runner.id), json!({}))
        .await;
    again.expect_error(409, "conflict");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_runner_is_gone_at_once() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let path = format!("/v1/runners/{}", runner.id);
    stage.gateway.admin().delete(&path).await.expect_success();
    assert_eq!(session.closed().await, TOKEN_REVOKED);
    assert!(
        [401, 403].contains(
            &FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
                .await
                .err()
                .unwrap()
        )
    );
    stage
        .gateway
        .admin()
        .get(&path)
        .await
        .expect_error(404, "not_found");
    // Nothing is assigned any more, so the gateway executes it itself.
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_is_refused_before_the_upgrade_without_a_good_token() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let admin_key = text(&stage.gateway.ready, "adminKey");
    let secret_key = text(&stage.gateway.ready, "secretKey");
    let mut cut = runner.token.clone();
    cut.pop();
    for wrong in [
        "",
        "rk_",
        "nonsense",
        "rk_default_0000000000000000000000000000000000000000000",
        &cut,
    ] {
        assert_eq!(
            FakeRunner::dial(&stage.gateway, wrong, TokenIn::Header)
                .await
                .err(),
            Some(401),
            "{wrong}"
        );
    }
    for key in [&admin_key, &secret_key] {
        let refused = FakeRunner::dial(&stage.gateway, key, TokenIn::Header)
            .await
            .err();
        assert!([Some(401), Some(403)].contains(&refused), "{refused:?}");
    }
    // Failures are throttled; a valid token never is.
    let mut seen = Vec::new();
    for _ in 0..200 {
        seen.push(
            FakeRunner::dial(&stage.gateway, "rk_default_guess", TokenIn::Header)
                .await
                .err(),
        );
    }
    assert!(seen.contains(&Some(429)), "guessing goes on unhindered");
    FakeRunner::v2(&stage.gateway, &runner).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runners_token_opens_the_socket_and_nothing_else() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    let api = stage.gateway.admin().with_key(&runner.token);
    for path in ["/v1/runners", "/v1/sources", "/v1/jobs", "/v1/keys"] {
        let status = api.get(path).await.status.as_u16();
        assert!([401, 403].contains(&status), "{path}: {status}");
    }
    let status = api.query("products", json!({})).await.status.as_u16();
    assert!([401, 403].contains(&status), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_missing_and_revoked_keys_are_401_everywhere() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let created = stage
        .gateway
        .admin()
        .post("/v1/keys", json!({"kind": "sk"}))
        .await
        .expect(201);
    let key = stage.gateway.caller().with_key(&text(&created, "key"));
    key.query("products", json!({"limit": 1})).await.expect(200);
    stage
        .gateway
        .admin()
        .post(
            &format!("/v1/keys/{}/revoke", text(&created, "id")),
            json!({}),
        )
        .await
        .expect_success();
    eventually(
        "the revoked key is refused",
        Duration::from_secs(1),
        async || {
            let answer = key.query("products", json!({"limit": 1})).await;
            holds(answer.status.as_u16() == 401, answer)
        },
    )
    .await;
    let apis = [
        key,
        stage.gateway.admin().anonymous(),
        stage.gateway.admin().with_key("ak_default_guessed"),
        stage.gateway.admin().with_key("sk_development_guessed"),
        stage.gateway.admin().with_key("Grüße"),
    ];
    for api in apis {
        let query = api.query("products", json!({})).await;
        query.expect_error(401, "invalid_key");
        api.get("/v1/runners")
            .await
            .expect_error(401, "invalid_key");
    }
    stage
        .gateway
        .internal()
        .with_key("guessed")
        .post("/dispatch", json!({}))
        .await
        .expect_error(401, "invalid_key");
    stage
        .gateway
        .internal()
        .anonymous()
        .post("/dispatch", json!({}))
        .await
        .expect_error(401, "invalid_key");
    let with_secret_key = stage
        .gateway
        .internal()
        .with_key(&text(&stage.gateway.ready, "secretKey"));
    with_secret_key
        .post("/dispatch", json!({}))
        .await
        .expect_error(401, "invalid_key");
    let caller = stage.gateway.caller();
    caller
        .get("/v1/runners")
        .await
        .expect_error(403, "access_denied");
    caller
        .post("/v1/keys", json!({"kind": "ak"}))
        .await
        .expect_error(403, "access_denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_organisations_key_finds_nothing() {
    let gateway = Gateway::builder()
        .env("SEMILAYER_OPERATOR_TOKEN", "operator-of-the-test")
        .start()
        .await;
    let stage = Stage::on(gateway, Engine::Sqlite).await;
    stage.assert_serves().await;
    let runner = stage.add_identity("primary").await;
    let operator = Api::new(&stage.gateway.url(), Some("operator-of-the-test"));
    let other = operator
        .post("/v1/organisations", json!({"slug": "globex"}))
        .await
        .expect(201);
    let other = stage.gateway.admin().with_key(&text(&other, "key"));
    let job = text(&stage.gateway.admin().jobs("limit=1").await[0], "id");
    for path in [
        format!("/v1/runners/{}", runner.id),
        "/v1/runners/primary".to_owned(),
        format!("/v1/runners/{}/sessions", runner.id),
        format!("/v1/sources/{}", stage.source),
        "/v1/sources/warehouse".to_owned(),
        format!("/v1/sources/{}/targets", stage.source),
        "/v1/lenses/products".to_owned(),
        format!("/v1/jobs/{job}"),
    ] {
        other.get(&path).await.expect_error(404, "not_found");
    }
    for list in ["/v1/runners", "/v1/sources", "/v1/lenses", "/v1/jobs"] {
        assert_eq!(
            other.get(list).await.expect(200)["items"],
            json!([]),
            "{list}"
        );
    }
    for verb in ["rotate", "revoke", "drain"] {
        let path = format!("/v1/runners/{}/{verb}", runner.id);
        other
            .post(&path, json!({}))
            .await
            .expect_error(404, "not_found");
    }
    other
        .delete(&format!("/v1/sources/{}", stage.source))
        .await
        .expect_error(404, "not_found");
    other
        .post(&format!("/v1/jobs/{job}/cancel"), json!({}))
        .await
        .expect_error(404, "not_found");
    // Its runners cannot be given the source of somebody else.
    let theirs = other.create_runner("theirs").await;
    let path = format!("/v1/runners/{}/assignments", theirs.id);
    other
        .put(&path, json!({"sourceIds": [stage.source]}))
        .await
        .expect_error(404, "not_found");
    let key = other
        .post("/v1/keys", json!({"kind": "sk"}))
        .await
        .expect(201);
    let caller = other.with_key(&text(&key, "key"));
    caller
        .query("products", json!({}))
        .await
        .expect_error(404, "not_found");
    let created = stage
        .gateway
        .admin()
        .post("/v1/organisations", json!({"slug": "initech"}))
        .await;
    assert!([401, 403].contains(&created.status.as_u16()), "{created:?}");
    stage
        .gateway
        .until_runner_is(&runner, "never_connected")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_secret_is_never_returned_and_survives_being_sent_back_masked() {
    let stage = Stage::inline(Engine::Mysql).await;
    let admin = stage.gateway.admin();
    let path = format!("/v1/sources/{}", stage.source);
    let shown = admin.get(&path).await;
    assert!(!shown.text.contains(stage.database.password()), "{shown:?}");
    let mut config = shown.expect(200)["config"].clone();
    assert_eq!(config["password"], "••••");
    config["user"] = stage.database.config()["user"].clone();
    admin
        .patch(&path, json!({"config": config}))
        .await
        .expect_success();
    stage.assert_serves().await;
    assert!(
        !admin
            .get("/v1/sources")
            .await
            .text
            .contains(stage.database.password())
    );
    // Nothing of it is readable in the store either.
    for file in std::fs::read_dir(&stage.gateway.data_dir)
        .unwrap()
        .flatten()
    {
        if file.file_type().unwrap().is_file() {
            let bytes = std::fs::read(file.path()).unwrap();
            let needle = stage.database.password().as_bytes();
            assert!(
                !bytes.windows(needle.len()).any(|found| found == needle),
                "in {:?}",
                file.path()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_shows_up_in_any_log_at_trace() {
    let gateway = Gateway::builder()
        .env("RUST_LOG", "trace")
        .env("SEMILAYER_OPERATOR_TOKEN", "operator-token-of-the-test")
        .start()
        .await;
    let mut stage = Stage::on(gateway, Engine::Postgres).await;
    let mysql = Database::with_products(Engine::Mysql).await;
    let admin = stage.gateway.admin();
    let mut secrets = vec![
        ("operator token", "operator-token-of-the-test".to_owned()),
        ("admin key", text(&stage.gateway.ready, "adminKey")),
        ("secret key", text(&stage.gateway.ready, "secretKey")),
        (
            "internal token",
            text(&stage.gateway.ready, "internalToken"),
        ),
        ("PostgreSQL password", stage.database.password().to_owned()),
        ("MariaDB password", mysql.password().to_owned()),
    ];
    for file in std::fs::read_dir(&stage.gateway.data_dir)
        .unwrap()
        .flatten()
    {
        if file
            .path()
            .extension()
            .is_some_and(|extension| extension == "key")
        {
            secrets.push((
                "master key",
                std::fs::read_to_string(file.path())
                    .unwrap()
                    .trim()
                    .to_owned(),
            ));
        }
    }
    let operator = Api::new(&stage.gateway.url(), Some("operator-token-of-the-test"));
    let organisation = operator
        .post("/v1/organisations", json!({"slug": "globex"}))
        .await
        .expect(201);
    secrets.push(("first key of an organisation", text(&organisation, "key")));

    // Managed, runner-local, by fields and by URL; inline and through a runner; right and wrong.
    let second = admin.create_source(managed("second", &mysql)).await;
    let by_url = json!({
        "name": "by-url", "bridge": "postgres", "credentialsLocation": "managed",
        "config": {"url": stage.database.url().as_str()},
    });
    let by_url = admin.create_source(by_url).await;
    let local = json!({"name": "local", "bridge": "mysql", "credentialsLocation": "runner-local", "config": {}});
    let local = admin.create_source(local).await;
    let mut wrong = managed("wrong", &mysql);
    wrong["config"]["password"] = json!("wrong-password-of-the-test");
    secrets.push(("wrong password", "wrong-password-of-the-test".to_owned()));
    let wrong = admin.create_source(wrong).await;
    let all = [stage.source.clone(), second, by_url, local, wrong];
    let job = json!({"kind": "count", "target": "products", "options": {"where": {"title": "value-in-a-where"}}});
    secrets.push(("value of a query", "value-in-a-where".to_owned()));
    for source in &all {
        stage.gateway.dispatch(source, job.clone()).await;
    }
    let runner = stage
        .add_runner_as("primary", |mut builder| {
            builder = builder.env("RUST_LOG", "trace");
            for (key, value) in mysql.config().as_object().unwrap() {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                builder = builder.env(
                    &format!("SEMILAYER_SOURCE_LOCAL_{}", key.to_uppercase()),
                    &value,
                );
            }
            builder
        })
        .await;
    secrets.push(("runner token", runner.token.clone()));
    let sources: Vec<&str> = all.iter().map(String::as_str).collect();
    admin.assign(&runner, &sources).await;
    let mut answered = 0;
    for source in &all {
        answered += u32::from(
            stage
                .gateway
                .dispatch(source, job.clone())
                .await
                .status
                .is_success(),
        );
    }
    assert_eq!(answered, 4, "all but the wrong one");

    // Tokens on the way in: in the URL, wrong ones, after a rotation.
    let mut field = FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Url)
        .await
        .unwrap();
    field
        .say_hello(crate::support::fake_runner::hello_v1(&runner.id))
        .await;
    let guess = "rk_default_GuessGuessGuessGuessGuessGuessGuessGuess123";
    FakeRunner::dial(&stage.gateway, guess, TokenIn::Url)
        .await
        .err();
    secrets.push(("guessed token", guess.to_owned()));
    let guess = "sk_development_GuessGuessGuessGuessGuessGuessGuess456";
    admin.with_key(guess).query("products", json!({})).await;
    secrets.push(("guessed key", guess.to_owned()));
    let key = admin
        .post("/v1/keys", json!({"kind": "pk"}))
        .await
        .expect(201);
    secrets.push(("new key", text(&key, "key")));
    let path = format!("/v1/runners/{}/rotate", runner.id);
    let rotated = admin.post(&path, json!({})).await;
    secrets.push(("rotated token", text(&rotated.json(), "token")));
    assert_eq!(field.closed().await, TOKEN_REVOKED);
    assert_eq!(stage.runners[0].process.end(PATIENCE).await.code(), Some(3));
    stage.gateway.process.signal("TERM");
    stage.gateway.process.end(PATIENCE).await;

    let said = stage.runners[0].process.log();
    assert!(
        said.contains("DEBUG"),
        "the runner is not as talkative as it was told to be: {said}"
    );
    for (whose, log) in [
        ("gateway", stage.gateway.process.log()),
        ("runner", stage.runners[0].process.log()),
        ("runner's output", stage.runners[0].process.stdout()),
    ] {
        for (name, secret) in &secrets {
            let line = log.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "the log of the {whose} shows the {name}");
        }
    }
}
