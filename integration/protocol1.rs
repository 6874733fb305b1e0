//! Runners that this project did not write: protocol 1, spoken by a runner made from the published table.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::fake_runner::{TokenIn, hello_v1};
use crate::support::rest::{Runner, text};
use crate::support::stage::managed;
use crate::support::{Answer, Engine, FakeRunner, Gateway, PATIENCE, Stage, eventually};

/// A stage with one identity and one protocol 1 session for it.
async fn field_runner() -> (Stage, Runner, FakeRunner) {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    let session = FakeRunner::v1(&stage.gateway, &runner).await;
    (stage, runner, session)
}

fn ask(stage: &Stage, body: Value) -> tokio::task::JoinHandle<Answer> {
    let caller = stage.gateway.caller();
    tokio::spawn(async move { caller.query("products", body).await })
}

fn dispatch(stage: &Stage, job: Value) -> tokio::task::JoinHandle<Answer> {
    let (internal, source) = (stage.gateway.internal(), stage.source.clone());
    tokio::spawn(async move {
        internal
            .post("/dispatch", json!({"sourceId": source, "job": job}))
            .await
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handshake_names_the_sources_without_their_credentials() {
    let (stage, runner, session) = field_runner().await;
    assert_eq!(session.ack["serverVersion"], 1);
    let expected = json!([{
        "id": stage.source, "name": "warehouse", "bridge": "@semilayer/bridge-sqlite",
        "credentialsLocation": "managed",
    }]);
    assert_eq!(session.ack["assignedSources"], expected);
    stage.gateway.until_runner_is(&runner, "online").await;
    let shown = stage
        .gateway
        .admin()
        .get(&format!("/v1/runners/{}", runner.id))
        .await
        .expect(200);
    assert_eq!(shown["version"], "0.9.0", "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_the_fields_of_the_table_and_its_rows_are_mapped_to_the_lens() {
    let (stage, _, mut session) = field_runner().await;
    let query = ask(
        &stage,
        json!({"where": {"price": {"$gt": 5}}, "limit": 2, "orderBy": {"field": "id"}}),
    );
    let (id, frame) = session.job().await;
    let source = &frame["params"]["source"];
    assert_eq!(source["id"], stage.source);
    assert_eq!(source["name"], "warehouse");
    assert_eq!(
        source["config"],
        stage.database.config(),
        "managed credentials come with the job"
    );
    let job = &frame["params"]["job"];
    assert_eq!(
        (&job["kind"], &job["target"]),
        (&json!("query"), &json!("products"))
    );
    assert_eq!(
        job["options"]["where"],
        json!({"price_cents": {"$gt": 5}}),
        "in the source's names"
    );
    assert!(frame["deadlineMs"].as_u64().unwrap() <= 30_000);
    for field in ["encoding", "window", "fields", "keys"] {
        assert_eq!(frame.get(field), None, "`{field}` is not of protocol 1");
    }
    let raw = |id: u64| json!({"id": id, "title": format!("t{id}"), "price_cents": 10 * id, "category": null});
    session.send_chunk(&id, &[raw(1)]).await;
    session.send_chunk(&id, &[raw(2)]).await;
    session.send_done(&id, 2).await;
    let mapped =
        |id: u64| json!({"id": id, "title": format!("t{id}"), "price": 10 * id, "category": null});
    assert_eq!(query.await.unwrap().rows(), [mapped(1), mapped(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_a_field_runner_have_cursors_that_lead_on() {
    let (stage, _, session) = field_runner().await;
    // A runner that knows `where`, `orderBy` by id and `limit`, as far as this test needs them.
    session.serve_v1(|job| {
        let after = smallest_id_above(&job["options"]["where"]);
        let limit = job["options"]["limit"].as_u64().unwrap();
        let ids = (after + 1)..=(after + limit).min(10);
        ids.map(|id| json!({"id": id, "title": "t", "price_cents": 1, "category": null}))
            .collect()
    });
    let mut seen = Vec::new();
    let mut body = json!({"limit": 4, "orderBy": {"field": "id"}});
    loop {
        let page = stage
            .gateway
            .caller()
            .query("products", body.clone())
            .await
            .expect(200);
        seen.extend(
            page["rows"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["id"].as_u64().unwrap()),
        );
        match page["meta"].get("nextCursor") {
            Some(cursor) => body["cursor"] = cursor.clone(),
            None => break,
        }
        assert!(seen.len() <= 12, "the cursor does not lead on: {seen:?}");
    }
    assert_eq!(seen, (1..=10).collect::<Vec<u64>>());
}

/// The bound of the one `$gt` on `id` somewhere in a `where`; 0 without one.
fn smallest_id_above(filter: &Value) -> u64 {
    match filter {
        Value::Object(members) => {
            let here = members
                .get("id")
                .and_then(|id| id.get("$gt"))
                .and_then(Value::as_u64);
            here.unwrap_or_else(|| members.values().map(smallest_id_above).max().unwrap_or(0))
        }
        Value::Array(items) => items.iter().map(smallest_id_above).max().unwrap_or(0),
        _ => 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_buckets_and_totals_travel_in_chunks() {
    let (stage, _, mut session) = field_runner().await;
    let count = dispatch(
        &stage,
        json!({"kind": "count", "target": "products", "options": {}}),
    );
    let (id, _) = session.job().await;
    session
        .send(json!({"type": "chunk", "id": id, "rows": [], "total": 41, "approximate": true}))
        .await;
    session.send(json!({"type": "done", "id": id})).await;
    let answer = count.await.unwrap().expect(200);
    assert_eq!(
        (&answer["meta"]["total"], &answer["meta"]["approximate"]),
        (&json!(41), &json!(true))
    );

    let options =
        json!({"dimensions": [{"field": "category"}], "measures": {"n": {"agg": "count"}}});
    let aggregate = dispatch(
        &stage,
        json!({"kind": "aggregate", "target": "products", "options": options}),
    );
    let (id, job) = session.job().await;
    assert_eq!(job["params"]["job"]["options"], options);
    let buckets = json!([{"dims": {"category": "tools"}, "measures": {"n": 3}, "count": 3}]);
    session
        .send(json!({"type": "chunk", "id": id, "rows": [], "agg": buckets}))
        .await;
    session.send(json!({"type": "done", "id": id})).await;
    assert_eq!(aggregate.await.unwrap().expect(200)["agg"], buckets);

    let query = ask(&stage, json!({"limit": 1, "total": true}));
    let (id, _) = session.job().await;
    let row = json!({"id": 1, "title": "t", "price_cents": 1, "category": null});
    session
        .send(json!({"type": "chunk", "id": id, "rows": [row], "total": 99}))
        .await;
    session.send(json!({"type": "done", "id": id})).await;
    assert_eq!(query.await.unwrap().expect(200)["meta"]["total"], 99);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_are_rows_in_chunks() {
    let (stage, _, session) = field_runner().await;
    session.serve_v1(|job| match job["kind"].as_str().unwrap() {
        "listTargets" => vec![
            json!({"name": "a", "kind": "table"}),
            json!({"name": "b", "kind": "view"}),
        ],
        "introspectTarget" => {
            let column =
                json!({"name": "id", "type": "int", "nullable": false, "primaryKey": true});
            vec![json!({"name": "a", "columns": [column]})]
        }
        other => panic!("not asked for: {other}"),
    });
    let admin = stage.gateway.admin();
    let targets = admin.get("/v1/sources/warehouse/targets").await.expect(200);
    assert_eq!(
        targets["items"],
        json!([{"name": "a", "kind": "table"}, {"name": "b", "kind": "view"}])
    );
    let details = admin
        .get("/v1/sources/warehouse/targets/a")
        .await
        .expect(200);
    assert_eq!(details["columns"][0]["primaryKey"], true, "{details}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_frame_becomes_the_status_of_its_code() {
    let (stage, _, mut session) = field_runner().await;
    for (code, status) in [
        ("SOURCE_QUERY_FAILED", 422),
        ("SOURCE_UNREACHABLE", 502),
        ("QUERY_TIMEOUT", 504),
    ] {
        let query = ask(&stage, json!({}));
        let (id, _) = session.job().await;
        session
            .send_error(&id, code, "the database's own words")
            .await;
        let body = query.await.unwrap().expect_error(status, code);
        // That it took too long is all there is to say of a timeout.
        assert!(
            status == 504 || text(&body, "error").contains("the database's own words"),
            "{body}"
        );
    }
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    session.send_error(&id, "SOMETHING_OF_ITS_OWN", "odd").await;
    let body = query
        .await
        .unwrap()
        .expect_error(422, "SOURCE_QUERY_FAILED");
    assert!(text(&body, "error").contains("odd"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_in_the_url_works_as_well() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    let mut session = FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Url)
        .await
        .unwrap();
    session.say_hello(hello_v1(&runner.id)).await;
    assert_eq!(session.ack["serverVersion"], 1);
    assert_eq!(
        FakeRunner::dial(&stage.gateway, "rk_default_wrong", TokenIn::Url)
            .await
            .err(),
        Some(401)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runner_may_call_itself_by_its_name_and_by_nobody_elses() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    let other = stage.add_identity("other").await;
    let session = FakeRunner::open(&stage.gateway, &runner.token, hello_v1("field")).await;
    assert_eq!(session.ack["serverVersion"], 1);
    for wrong in [other.id.as_str(), "other", "nobody"] {
        let mut session = FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
            .await
            .unwrap();
        session.send(hello_v1(wrong)).await;
        assert_eq!(session.closed().await, 4004, "as {wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_negotiated_and_has_to_be_named() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    for (spoken, used) in [(1, 1), (2, 2), (7, 2)] {
        let mut hello = hello_v1(&runner.id);
        hello["version"] = json!(spoken);
        let session = FakeRunner::open(&stage.gateway, &runner.token, hello).await;
        assert_eq!(session.ack["serverVersion"], used);
    }
    for version in [Value::Null, json!(0)] {
        let mut hello = hello_v1(&runner.id);
        hello["version"] = version;
        let mut session = FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
            .await
            .unwrap();
        session.send(hello).await;
        assert_eq!(session.closed().await, 4002);
    }
    let mut hello = hello_v1(&runner.id);
    hello.as_object_mut().unwrap().remove("version");
    let mut session = FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
        .await
        .unwrap();
    session.send(hello).await;
    assert_eq!(session.closed().await, 4002);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assignments_are_pushed_when_they_change() {
    let (stage, runner, mut session) = field_runner().await;
    let mut second = managed("annex", &stage.database);
    second["credentialsLocation"] = json!("runner-local");
    second["config"] = json!({});
    let second = stage.gateway.admin().create_source(second).await;
    stage
        .gateway
        .admin()
        .assign(&runner, &[&stage.source, &second])
        .await;
    let mut changed = session.frame("assignments-changed").await;
    let sources = changed["assignedSources"].as_array_mut().unwrap();
    sources.sort_by_key(|source| text(source, "name"));
    let expected = json!([
        {"id": second, "name": "annex", "bridge": "@semilayer/bridge-sqlite", "credentialsLocation": "runner-local"},
        {"id": stage.source, "name": "warehouse", "bridge": "@semilayer/bridge-sqlite", "credentialsLocation": "managed"},
    ]);
    assert_eq!(json!(sources), expected);
    stage.gateway.admin().assign(&runner, &[]).await;
    assert_eq!(
        session.frame("assignments-changed").await["assignedSources"],
        json!([])
    );
    // Local credentials stay where they are: the job says nothing of them.
    stage.gateway.admin().assign(&runner, &[&second]).await;
    session.frame("assignments-changed").await;
    let job = json!({"sourceId": second, "job": {"kind": "test", "options": {}}});
    let internal = stage.gateway.internal();
    let test = tokio::spawn(async move { internal.post("/dispatch", job).await });
    let (id, frame) = session.job().await;
    assert!(
        frame["params"]["source"]
            .get("config")
            .is_none_or(|config| *config == json!({})),
        "{frame}"
    );
    session.send_chunk(&id, &[json!({"version": "1"})]).await;
    session.send_done(&id, 1).await;
    test.await.unwrap().expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_sends_a_cancel() {
    let (stage, _, mut session) = field_runner().await;
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    query.abort();
    assert_eq!(session.frame("cancel").await["id"], json!(id));
    // What it still says about the job is of no interest to anybody.
    session.send_error(&id, "cancelled", "stopped").await;
    let query = ask(&stage, json!({"limit": 1}));
    let (id, _) = session.job().await;
    session.send_done(&id, 0).await;
    assert_eq!(query.await.unwrap().rows(), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_after_done_is_ignored() {
    let (stage, _, mut session) = field_runner().await;
    let row = |title: &str| json!({"id": 1, "title": title, "price_cents": 1, "category": null});
    let query = ask(&stage, json!({}));
    let (first, _) = session.job().await;
    session.send_chunk(&first, &[row("first")]).await;
    session.send_done(&first, 1).await;
    session.send_chunk(&first, &[row("late")]).await;
    session.send_done(&first, 2).await;
    session
        .send_error(&first, "SOURCE_QUERY_FAILED", "late")
        .await;
    assert_eq!(query.await.unwrap().rows()[0]["title"], "first");
    let query = ask(&stage, json!({}));
    let (second, _) = session.job().await;
    session.send_chunk(&first, &[row("later still")]).await;
    session.send_chunk(&second, &[row("second")]).await;
    session.send_done(&second, 1).await;
    let rows = query.await.unwrap().rows();
    assert_eq!((rows.len(), &rows[0]["title"]), (1, &json!("second")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_for_somebody_elses_job_reach_nobody() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let victim = stage.add_identity("victim").await;
    let mut honest = FakeRunner::v1(&stage.gateway, &victim).await;
    let query = ask(&stage, json!({}));
    let (id, _) = honest.job().await;
    let intruder = stage.add_identity("intruder").await;
    let mut other = FakeRunner::v1(&stage.gateway, &intruder).await;
    let row = |title: &str| json!({"id": 1, "title": title, "price_cents": 1, "category": null});
    other.send_chunk(&id, &[row("forged")]).await;
    other.send_done(&id, 1).await;
    // It is heard: what it sends next is answered, or its session has ended.
    other
        .send(json!({"type": "heartbeat", "stats": {"activeJobs": 0}}))
        .await;
    honest.send_chunk(&id, &[row("true")]).await;
    honest.send_done(&id, 1).await;
    let rows = query.await.unwrap().rows();
    assert_eq!((rows.len(), &rows[0]["title"]), (1, &json!("true")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_without_heartbeats_gets_no_jobs_and_is_closed() {
    let gateway = Gateway::builder()
        .timing("heartbeat_v1=400ms,close_after_unroutable=1500ms")
        .start()
        .await;
    let stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    let mut session = FakeRunner::v1(&stage.gateway, &runner).await;
    let opened = Instant::now();
    eventually("the silent runner gets no jobs", PATIENCE, async || {
        let shown = stage
            .gateway
            .admin()
            .get(&format!("/v1/runners/{}", runner.id))
            .await
            .expect(200);
        holds(shown["status"] == "offline", shown)
    })
    .await;
    stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await
        .expect_error(503, "no_runners_online");
    assert_eq!(session.closed().await, 4008);
    assert!(opened.elapsed() >= Duration::from_millis(800 + 1500));

    // One that keeps its heartbeat stays.
    let mut session = FakeRunner::v1(&stage.gateway, &runner).await;
    let opened = Instant::now();
    while opened.elapsed() < Duration::from_secs(4) {
        session
            .send(json!({"type": "heartbeat", "stats": {"activeJobs": 0, "memoryMb": 41.5}}))
            .await;
        session.assert_silent(Duration::from_millis(300)).await;
    }
    stage.gateway.until_runner_is(&runner, "online").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_the_gateway_does_not_know_are_ignored() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    let mut hello = hello_v1(&runner.id);
    hello["mood"] = json!({"today": "fine"});
    let mut session = FakeRunner::open(&stage.gateway, &runner.token, hello).await;
    session.send(json!({"type": "heartbeat", "mood": 1})).await;
    let query = ask(&stage, json!({}));
    let (id, _) = session.job().await;
    session
        .send(
            json!({"type": "done", "id": id, "meta": {"count": 0, "durationMs": 0.25, "mood": 1}}),
        )
        .await;
    assert_eq!(query.await.unwrap().rows(), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_lost_after_rows_were_streamed_never_leaves_a_complete_looking_answer() {
    let (stage, _, mut session) = field_runner().await;
    for accept in ["application/json", "application/x-ndjson"] {
        let request = stage
            .gateway
            .caller()
            .request(Method::POST, "/v1/query/products");
        let request = request
            .header("accept", accept)
            .json(&json!({"limit": 100_000}));
        let response = tokio::spawn(async move { request.send().await.unwrap() });
        let (id, _) = session.job().await;
        let row = json!({"id": 1, "title": "x".repeat(1000), "price_cents": 1, "category": null});
        let rows = vec![row; 500];
        for _ in 0..5 {
            session.send_chunk(&id, &rows).await;
        }
        let response = response.await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "past the first megabyte");
        session
            .send_error(&id, "SOURCE_QUERY_FAILED", "broke in the middle")
            .await;
        let body = response.text().await;
        if accept.ends_with("ndjson") {
            let body = body.unwrap();
            let last: Value = serde_json::from_str(body.lines().last().unwrap()).unwrap();
            assert!(last["$error"]["error"].is_string(), "{last}");
        } else {
            assert!(body.is_err(), "a short body that looks complete");
        }
    }
}
