//! Queries that nobody waits for: the result is the query's own answer, each attempt is sent at most once, and
//! neither a lost runner nor a lost gateway loses the job.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::gateway::OPERATOR;
use crate::support::rest::{Api, Runner, text};
use crate::support::{Answer, Database, Engine, FakeRunner, Gateway, PATIENCE, Stage, eventually};

on_every_database! {
    the_result_is_what_the_query_would_have_answered,
    what_the_database_refuses_is_refused_later_in_the_same_words,
}

/// Asks for a query or a count without waiting.
async fn submit_to(api: &Api, path: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
    let path = format!("/v1/query/{path}");
    let mut request = api.request(Method::POST, &path).json(&body);
    request = request.header("prefer", "respond-async");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(request).await
}

/// Has a query taken in, and answers with its job.
async fn submit(api: &Api, path: &str, body: Value) -> String {
    let answer = submit_to(api, path, body, &[]).await;
    text(&answer.expect(202), "jobId")
}

async fn result(api: &Api, job: &str) -> Answer {
    api.get(&format!("/v1/jobs/{job}/result")).await
}

/// Waits until the job is over, and answers with its result, whatever it is.
async fn until_over(api: &Api, job: &str) -> Answer {
    eventually("the job is over", PATIENCE, async || {
        let answer = result(api, job).await;
        if answer.status == StatusCode::CONFLICT && answer.json()["code"] == "conflict" {
            return Err(answer.text);
        }
        Ok(answer)
    })
    .await
}

/// A stage with one runner, `FakeRunner`, that does what the test says.
async fn with_identity(gateway: Gateway) -> (Stage, Runner) {
    let stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("primary").await;
    (stage, runner)
}

/// The next job: its id on the wire, the job's id and which attempt it is.
async fn next_attempt(session: &mut FakeRunner) -> (String, String, u64) {
    let (wire, frame) = session.job().await;
    let attempt = frame["attempt"].as_u64().unwrap();
    (wire, text(&frame, "jobId"), attempt)
}

async fn answer_one_row(session: &mut FakeRunner, wire: &str) {
    session.accept(wire).await;
    let row = json!({"id": 7, "title": "seven", "price": 1, "category": null});
    session.send_rows(wire, &[row]).await;
    session.send_done(wire, 1).await;
}

/// The same without what differs from one execution to the next.
fn essence(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(meta) = body["meta"].as_object_mut() {
        for varies in ["jobId", "durationMs"] {
            assert!(meta.remove(varies).is_some(), "no {varies}");
        }
        // Sealed with a fresh nonce; where it leads is looked at.
        let cursor = meta.remove("nextCursor").is_some();
        meta.insert("hasNext".to_owned(), cursor.into());
    }
    body
}

async fn the_result_is_what_the_query_would_have_answered(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    for with_runner in [false, true] {
        if with_runner {
            stage.add_runner("primary").await;
        }
        let caller = stage.gateway.caller();
        let page = json!({"where": {"price": {"$gt": 100}}, "orderBy": {"title": "desc"}, "limit": 20, "total": true});
        for (path, body) in [
            ("products", page.clone()),
            ("products", json!({"where": {"id": -1}})),
            ("products/count", json!({"where": {"category": "tools"}})),
        ] {
            let waited = caller
                .post(&format!("/v1/query/{path}"), body.clone())
                .await;
            let accepted = submit_to(&caller, path, body, &[]).await;
            let job = text(&accepted.expect(202), "jobId");
            assert_eq!(accepted.header("location"), format!("/v1/jobs/{job}"));
            assert_eq!(accepted.header("preference-applied"), "respond-async");
            let answer = until_over(&caller, &job).await;
            let (detached, waited_) = (answer.expect(200), waited.expect(200));
            assert_eq!(essence(&detached), essence(&waited_), "{path}");
            assert_eq!(detached["meta"]["jobId"], job.as_str());
            assert_eq!(answer.header("content-type"), waited.header("content-type"));
            assert_eq!(answer.header("cache-control"), "no-store");
            assert_eq!(answer.header("x-semilayer-job-id"), job);
            let record = stage.gateway.until_job_is(&job, "completed").await;
            assert_eq!(
                (&record["attempt"], record["runner"].is_object()),
                (&json!(1), with_runner)
            );
            // A page can be followed by the next, whoever asked for it and how.
            let next = |body: &Value| {
                let mut next = page.clone();
                next["cursor"] = body["meta"]["nextCursor"].clone();
                next.as_object_mut().unwrap().remove("total");
                next
            };
            if detached["meta"]["nextCursor"].is_string() {
                let after = caller.query("products", next(&detached)).await.rows();
                assert_eq!(after, caller.query("products", next(&waited_)).await.rows());
                assert!(!after.is_empty());
            }
        }

        let lines = ("accept", "application/x-ndjson");
        let body = json!({"orderBy": {"id": "asc"}, "limit": 3});
        let answer = submit_to(&caller, "products", body.clone(), &[lines]).await;
        let job = text(&answer.expect(202), "jobId");
        let detached = until_over(&caller, &job).await;
        let request = caller
            .request(Method::POST, "/v1/query/products")
            .json(&body);
        let waited = Answer::of(request.header(lines.0, lines.1)).await;
        // The cursors in the last line differ: each is sealed for itself.
        let (rows, next) = detached.text.trim_end().rsplit_once('\n').unwrap();
        let (waited_rows, waited_next) = waited.text.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(rows, waited_rows);
        for (next, answer) in [(next, &detached), (waited_next, &waited)] {
            let next: Value = serde_json::from_str(next).unwrap();
            assert_eq!(
                next["$next"]["cursor"],
                answer.header("x-semilayer-next-cursor")
            );
        }
        assert_eq!(detached.header("content-type"), "application/x-ndjson");
    }
}

async fn what_the_database_refuses_is_refused_later_in_the_same_words(engine: Engine) {
    let mut stage = Stage::inline(engine).await;
    stage.add_lens(json!({
        "name": "missing", "sourceId": stage.source, "table": "no_such_table", "primaryKey": "id",
        "fields": {"id": {"type": "number"}}, "grants": {"query": "public"},
    })).await;
    stage.add_runner("primary").await;
    let (caller, admin) = (stage.gateway.caller(), stage.gateway.admin());
    let waited = caller.query("missing", json!({})).await;
    let waited = waited.expect_error(422, "SOURCE_QUERY_FAILED");
    let job = submit(&caller, "missing", json!({})).await;
    let refused = until_over(&caller, &job).await;
    let refused = refused.expect_error(422, "SOURCE_QUERY_FAILED");
    assert_eq!(refused["error"], waited["error"]);
    assert_eq!(refused["jobId"], job.as_str());
    assert_eq!(
        admin.job(&job).await["attempt"],
        1,
        "what is refused is not tried again"
    );

    // A browser learns no more than it would have from the query, and reads only what it asked.
    let key = admin.post("/v1/keys", json!({"kind": "pk"})).await;
    let browser = caller.with_key(&text(&key.expect(201), "key"));
    result(&browser, &job).await.expect_error(404, "not_found");
    let waited = browser.query("missing", json!({})).await;
    let waited = waited.expect_error(422, "SOURCE_QUERY_FAILED");
    let job = submit(&browser, "missing", json!({})).await;
    let refused = until_over(&browser, &job).await;
    let refused = refused.expect_error(422, "SOURCE_QUERY_FAILED");
    assert_eq!(refused["error"], waited["error"]);
    assert!(!refused.to_string().contains("no_such_table"), "{refused}");
    let shown = browser.job(&job).await;
    assert!(!shown.to_string().contains("no_such_table"), "{shown}");
    assert!(admin.job(&job).await.to_string().contains("no_such_table"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_waits_for_a_runner_and_is_then_executed_once() {
    let (stage, runner) = with_identity(Gateway::start().await).await;
    let caller = stage.gateway.caller();
    let jobs: Vec<String> = [
        submit(&caller, "products", json!({})).await,
        submit(&caller, "products/count", json!({})).await,
    ]
    .into();
    // Two looks later nobody has it.
    tokio::time::sleep(Duration::from_millis(2200)).await;
    for job in &jobs {
        let early = result(&caller, job).await;
        assert_eq!(early.expect_error(409, "conflict")["state"], "pending");
        assert!(early.retry_after() > 0);
    }

    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let mut sent = Vec::new();
    for _ in &jobs {
        let (wire, job, attempt) = next_attempt(&mut session).await;
        assert_eq!(attempt, 1);
        session.accept(&wire).await;
        let meta = json!({"count": 0, "durationMs": 1.5, "total": 250});
        session
            .send(json!({"type": "done", "id": wire, "meta": meta}))
            .await;
        sent.push(job);
    }
    sent.sort();
    assert_eq!(sent, jobs, "each once");
    assert_eq!(
        until_over(&caller, &jobs[0]).await.rows(),
        Vec::<Value>::new()
    );
    assert_eq!(
        until_over(&caller, &jobs[1]).await.expect(200)["count"],
        250
    );
    session.assert_silent(Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_runner_is_lost_is_tried_three_times_and_no_more() {
    let (stage, runner) = with_identity(Gateway::start().await).await;
    let caller = stage.gateway.caller();
    let saved = submit(&caller, "products", json!({})).await;
    for attempt in 1..=3 {
        let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
        let (wire, job, number) = next_attempt(&mut session).await;
        assert_eq!((&job, number), (&saved, attempt));
        session.accept(&wire).await;
        if attempt == 3 {
            answer_one_row(&mut session, &wire).await;
            let answer = until_over(&caller, &saved).await;
            assert_eq!(answer.rows()[0]["title"], "seven");
        } else {
            // Half a result, of which nothing may be seen.
            session
                .send_rows(&wire, &[json!({"id": 1, "title": "lost"})])
                .await;
            session.until_heard().await;
        }
    }
    assert_eq!(stage.gateway.admin().job(&saved).await["attempt"], 3);

    let doomed = submit(&caller, "products", json!({})).await;
    for attempt in 1..=3 {
        let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
        let (wire, job, number) = next_attempt(&mut session).await;
        assert_eq!((&job, number), (&doomed, attempt));
        session.accept(&wire).await;
        session.until_heard().await;
    }
    let lost = until_over(&caller, &doomed).await;
    let lost = lost.expect_error(502, "runner_failed");
    assert_eq!(lost["retryable"], true);
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    session.assert_silent(Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_loses_neither_a_running_job_nor_a_pending_one_nor_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::builder()
        .start_in(&dir.path().join("data"), None)
        .await;
    let (mut stage, runner) = with_identity(gateway).await;
    let (caller, address) = (stage.gateway.caller(), stage.gateway.address());
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let done = submit(&caller, "products", json!({})).await;
    let (wire, ..) = next_attempt(&mut session).await;
    answer_one_row(&mut session, &wire).await;
    until_over(&caller, &done).await.expect(200);
    let running = submit(&caller, "products", json!({})).await;
    let (wire, job, attempt) = next_attempt(&mut session).await;
    assert_eq!((&job, attempt), (&running, 1));
    session.accept(&wire).await;
    session.until_heard().await;

    stage.gateway.process.signal("KILL");
    stage.gateway.process.end(PATIENCE).await;
    stage.gateway = Gateway::builder()
        .listen(&address)
        .start_in(&dir.path().join("data"), None)
        .await;
    let caller = stage.gateway.caller();
    assert_eq!(result(&caller, &done).await.rows().len(), 1);
    let early = result(&caller, &running).await;
    assert_eq!(early.expect_error(409, "conflict")["state"], "pending");
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let (wire, job, attempt) = next_attempt(&mut session).await;
    assert_eq!((&job, attempt), (&running, 2));
    answer_one_row(&mut session, &wire).await;
    until_over(&caller, &running).await.expect(200);
    session.assert_silent(Duration::from_millis(1500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_gives_back_what_it_could_not_finish() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let gateway = Gateway::builder()
        .timing("drain=500ms")
        .start_in(&data, None)
        .await;
    let (mut stage, runner) = with_identity(gateway).await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let job = submit(&stage.gateway.caller(), "products", json!({})).await;
    let (wire, ..) = next_attempt(&mut session).await;
    session.accept(&wire).await;
    session.until_heard().await;
    stage.gateway.process.signal("TERM");
    stage.gateway.process.end(PATIENCE).await;
    stage.gateway = Gateway::builder().start_in(&data, None).await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let (wire, again, attempt) = next_attempt(&mut session).await;
    assert_eq!((&again, attempt), (&job, 2));
    answer_one_row(&mut session, &wire).await;
    until_over(&stage.gateway.caller(), &job).await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_where_it_is() {
    let (stage, runner) = with_identity(Gateway::start().await).await;
    let caller = stage.gateway.caller();
    let cancel = async |job: &str| {
        let path = format!("/v1/jobs/{job}/cancel");
        let cancelled = caller.post(&path, json!({})).await.expect(200);
        assert_eq!(cancelled["state"], "cancelled");
        result(&caller, job)
            .await
            .expect_error(409, "job_cancelled");
        caller
            .post(&path, json!({}))
            .await
            .expect_error(409, "conflict");
    };
    let pending = submit(&caller, "products", json!({})).await;
    cancel(&pending).await;

    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let running = submit(&caller, "products", json!({})).await;
    let (wire, job, _) = next_attempt(&mut session).await;
    assert_eq!(job, running, "the cancelled one is gone");
    session.accept(&wire).await;
    session.until_heard().await;
    cancel(&running).await;
    assert_eq!(session.frame("cancel").await["id"], wire);
    // What comes too late changes nothing.
    session.send_done(&wire, 0).await;
    session.until_heard().await;
    result(&caller, &running)
        .await
        .expect_error(409, "job_cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_under_the_same_key_is_one_job() {
    let (stage, runner) = with_identity(Gateway::start().await).await;
    let caller = stage.gateway.caller();
    let key = ("idempotency-key", "report-2026");
    let same = async || {
        let answer = submit_to(&caller, "products", json!({"limit": 5}), &[key]).await;
        let job = text(&answer.expect(202), "jobId");
        (job, answer.headers.contains_key("idempotent-replayed"))
    };
    // All at once, one of them is the first.
    let (a, b, c, d) = tokio::join!(same(), same(), same(), same());
    let all = [a, b, c, d];
    assert!(all.iter().all(|(job, _)| *job == all[0].0), "{all:?}");
    assert_eq!(
        all.iter().filter(|(_, replayed)| !replayed).count(),
        1,
        "{all:?}"
    );

    let admin = stage.gateway.admin();
    let other_key = admin.post("/v1/keys", json!({"kind": "sk"})).await;
    let other = caller.with_key(&text(&other_key.expect(201), "key"));
    let ndjson = ("accept", "application/x-ndjson");
    for conflicting in [
        submit_to(&caller, "products", json!({"limit": 6}), &[key]).await,
        submit_to(&caller, "products/count", json!({}), &[key]).await,
        submit_to(&caller, "products", json!({"limit": 5}), &[key, ndjson]).await,
        submit_to(&other, "products", json!({"limit": 5}), &[key]).await,
    ] {
        conflicting.expect_error(409, "conflict");
    }
    let second = ("idempotency-key", "report-2027");
    let answer = submit_to(&caller, "products", json!({"limit": 5}), &[second]).await;
    assert_ne!(text(&answer.expect(202), "jobId"), all[0].0);

    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    for _ in 0..2 {
        let (wire, ..) = next_attempt(&mut session).await;
        answer_one_row(&mut session, &wire).await;
    }
    until_over(&caller, &all[0].0).await.expect(200);
    assert_eq!(
        same().await,
        (all[0].0.clone(), true),
        "also when it is over"
    );
    session.assert_silent(Duration::from_millis(1500)).await;
    assert_eq!(admin.queries("").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_at_once_and_recorded_nowhere() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let caller = stage.gateway.caller();
    let long = "k".repeat(256);
    for (path, body, headers, status, code) in [
        ("product", json!({}), vec![], 404, "not_found"),
        (
            "products",
            json!({"where": {"nmae": 1}}),
            vec![],
            400,
            "unknown_field",
        ),
        (
            "products",
            json!({"where": {"title": "a\0b"}}),
            vec![],
            400,
            "invalid_request",
        ),
        (
            "products",
            json!({}),
            vec![("idempotency-key", "")],
            400,
            "invalid_request",
        ),
        (
            "products",
            json!({}),
            vec![("idempotency-key", "a b")],
            400,
            "invalid_request",
        ),
        (
            "products",
            json!({}),
            vec![("idempotency-key", long.as_str())],
            400,
            "invalid_request",
        ),
        (
            "products",
            json!({}),
            vec![("accept", "image/png")],
            400,
            "invalid_request",
        ),
    ] {
        let answer = submit_to(&caller, path, body, &headers).await;
        answer.expect_error(status, code);
    }
    let admin = stage.gateway.admin();
    let key = admin.post("/v1/keys", json!({"kind": "pk"})).await;
    let browser = caller.with_key(&text(&key.expect(201), "key"));
    let denied = submit_to(&browser, "products", json!({}), &[]).await;
    denied.expect_error(403, "access_denied");
    assert_eq!(admin.queries("").await, Vec::<Value>::new());

    // Without the preference the key means nothing, and the answer is not kept.
    let request = caller
        .request(Method::POST, "/v1/query/products")
        .json(&json!({"limit": 1}));
    let waited = Answer::of(request.header("idempotency-key", "a")).await;
    let job = text(&waited.expect(200)["meta"], "jobId");
    stage.gateway.until_job_is(&job, "completed").await;
    result(&caller, &job).await.expect_error(404, "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_read_by_who_asked_and_by_the_organisation_s_admin() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let (caller, admin) = (stage.gateway.caller(), stage.gateway.admin());
    let job = submit(&caller, "products", json!({"limit": 2})).await;
    until_over(&caller, &job).await.expect(200);
    assert_eq!(result(&admin, &job).await.rows().len(), 2);
    let key = admin.post("/v1/keys", json!({"kind": "sk"})).await;
    let other = caller.with_key(&text(&key.expect(201), "key"));
    for path in [format!("/v1/jobs/{job}"), format!("/v1/jobs/{job}/result")] {
        other.get(&path).await.expect_error(404, "not_found");
        caller.get(&path).await.expect(200);
    }
    let cancel = format!("/v1/jobs/{job}/cancel");
    other
        .post(&cancel, json!({}))
        .await
        .expect_error(404, "not_found");
    let runner = stage.add_identity("primary").await;
    let runner = caller.with_key(&runner.token);
    result(&runner, &job)
        .await
        .expect_error(403, "access_denied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_kept_for_its_time_and_no_longer() {
    let gateway = Gateway::builder()
        .timing("keep_result=1s,sweep=200ms")
        .start()
        .await;
    let stage = Stage::on(gateway, Engine::Sqlite).await;
    let caller = stage.gateway.caller();
    let job = submit(&caller, "products", json!({"limit": 2})).await;
    until_over(&caller, &job).await.expect(200);
    eventually("the result is gone", PATIENCE, async || {
        let answer = result(&caller, &job).await;
        holds(answer.status == StatusCode::GONE, answer.status)
    })
    .await;
    result(&caller, &job)
        .await
        .expect_error(410, "result_expired");
    assert_eq!(caller.job(&job).await["state"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_too_large_is_an_error_and_ends_at_the_database() {
    let mut stage = Stage::inline(Engine::Postgres).await;
    // Some 18 MB, where 16 MiB are kept; and a part of it.
    stage.add_wide_lens(150_000).await;
    for with_runner in [false, true] {
        if with_runner {
            stage.add_runner("primary").await;
        }
        let caller = stage.gateway.caller();
        let large = submit(&caller, "wide", json!({"limit": 150_000})).await;
        until_over(&caller, &large)
            .await
            .expect_error(502, "result_overflow");
        let fits = submit(&caller, "wide", json!({"limit": 20_000})).await;
        let rows = until_over(&caller, &fits).await.rows();
        assert_eq!(rows.len(), 20_000);
        eventually("the database is idle", PATIENCE, async || {
            let running = stage.database.running().await;
            holds(running.is_empty(), running)
        })
        .await;
    }
    stage.gateway.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_nobody_takes_expires_with_the_reason() {
    let gateway = Gateway::builder()
        .timing("max_deadline=1500ms,default_deadline=1s")
        .start()
        .await;
    let (stage, _runner) = with_identity(gateway).await;
    let caller = stage.gateway.caller();
    let job = submit(&caller, "products", json!({})).await;
    let late = until_over(&caller, &job).await;
    let late = late.expect_error(504, "QUERY_TIMEOUT");
    assert!(text(&late, "error").contains("never connected"), "{late}");
    assert_eq!(caller.job(&job).await["state"], "expired");
}

/// Several gateways on one PostgreSQL, an organisation with the lens `products`, and a runner's identity.
async fn hosted(gateways: usize, timing: &str) -> (Vec<Gateway>, Runner, Database) {
    let store = Database::create(Engine::Postgres).await;
    let timing = format!("catalogue_poll=200ms,{timing}");
    let mut started = Vec::new();
    for _ in 0..gateways {
        started.push(Gateway::on_store(&store, &timing).await);
    }
    let operator = Api::new(&started[0].url(), Some(OPERATOR));
    let acme = operator
        .post("/v1/organisations", json!({"slug": "acme"}))
        .await;
    let admin_key = text(&acme.expect(201), "key");
    let admin = operator.with_key(&admin_key);
    let source = json!({
        "name": "warehouse", "bridge": "postgres", "credentialsLocation": "managed",
        "config": {"host": "db.internal", "database": "d", "user": "u", "password": "p"},
    });
    let source = admin.create_source(source).await;
    let fields = json!({"id": {"type": "number"}, "title": {"type": "text"}});
    let lens = json!({
        "name": "products", "sourceId": source, "table": "products", "primaryKey": "id", "fields": fields, "grants": {},
    });
    admin.post("/v1/lenses", lens).await.expect(201);
    let key = admin
        .post("/v1/keys", json!({"kind": "sk"}))
        .await
        .expect(201);
    let runner = admin.create_runner("primary").await;
    admin.assign(&runner, &[&source]).await;
    for gateway in &mut started {
        gateway.ready["adminKey"] = admin_key.clone().into();
        gateway.ready["secretKey"] = text(&key, "key").into();
        let caller = gateway.caller();
        eventually(
            "the gateway knows the lens and its runner",
            PATIENCE,
            async || {
                let answer = caller.query("products", json!({})).await;
                holds(answer.text.contains("never connected"), answer)
            },
        )
        .await;
    }
    (started, runner, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_gateway_can_executes_and_every_one_shows_the_result() {
    let (gateways, runner, _store) = hosted(2, "pending_poll=100ms").await;
    let (a, b) = (gateways[0].caller(), gateways[1].caller());
    let job = submit(&a, "products", json!({})).await;
    assert_eq!(b.job(&job).await["state"], "pending");
    // Only the other gateway has a runner.
    let mut session = FakeRunner::v2(&gateways[1], &runner).await;
    let (wire, sent, attempt) = next_attempt(&mut session).await;
    assert_eq!((&sent, attempt), (&job, 1));
    answer_one_row(&mut session, &wire).await;
    let (first, second) = (until_over(&a, &job).await, until_over(&b, &job).await);
    assert_eq!(first.rows().len(), 1);
    assert_eq!(first.text, second.text);

    // Repeated at another gateway, it is the same job.
    let key = [("idempotency-key", "once")];
    let (one, two) = tokio::join!(
        submit_to(&a, "products", json!({"limit": 1}), &key),
        submit_to(&b, "products", json!({"limit": 1}), &key)
    );
    assert_eq!(one.expect(202), two.expect(202));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_gateways_one_executes_each_job_once() {
    let (gateways, runner, _store) = hosted(3, "pending_poll=50ms").await;
    let (sent, mut seen) = tokio::sync::mpsc::unbounded_channel();
    for gateway in &gateways {
        let mut session = FakeRunner::v2(gateway, &runner).await;
        let sent = sent.clone();
        tokio::spawn(async move {
            loop {
                let (wire, job, attempt) = next_attempt(&mut session).await;
                answer_one_row(&mut session, &wire).await;
                if sent.send((job, attempt)).is_err() {
                    return;
                }
            }
        });
    }
    let mut jobs = Vec::new();
    for turn in 0..60 {
        let caller = gateways[turn % gateways.len()].caller();
        jobs.push(submit(&caller, "products", json!({"limit": turn + 1})).await);
    }
    for job in &jobs {
        until_over(&gateways[0].caller(), job).await.expect(200);
    }
    let mut executed = Vec::new();
    while let Ok(execution) = seen.try_recv() {
        executed.push(execution);
    }
    executed.sort();
    let mut expected: Vec<_> = jobs.into_iter().map(|job| (job, 1)).collect();
    expected.sort();
    assert_eq!(executed, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_gateway_executed_another_one_finishes() {
    let timing =
        "pending_poll=100ms,gateway_lease=1500ms,gateway_renewal=300ms,stale_claim=2s,sweep=300ms";
    let (mut gateways, runner, _store) = hosted(2, timing).await;
    let mut session = FakeRunner::v2(&gateways[0], &runner).await;
    let job = submit(&gateways[0].caller(), "products", json!({})).await;
    let (wire, sent, attempt) = next_attempt(&mut session).await;
    assert_eq!((&sent, attempt), (&job, 1));
    session.accept(&wire).await;
    session.until_heard().await;
    gateways[0].process.signal("KILL");
    gateways[0].process.end(PATIENCE).await;
    let mut session = FakeRunner::v2(&gateways[1], &runner).await;
    let (wire, sent, attempt) = next_attempt(&mut session).await;
    assert_eq!((&sent, attempt), (&job, 2));
    answer_one_row(&mut session, &wire).await;
    until_over(&gateways[1].caller(), &job).await.expect(200);
    session.assert_silent(Duration::from_millis(500)).await;
}
