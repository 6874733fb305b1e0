//! Requests that make no sense: each is answered in the published shape and touches nothing else.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::proc::resident_mib;
use crate::support::rest::text;
use crate::support::{Answer, Engine, PATIENCE, Stage, eventually};

/// Runs the check on a source without and with a runner, and asserts that everything still works.
async fn and_nothing_is_touched(check: impl AsyncFn(&Stage)) {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    check(&stage).await;
    stage.assert_serves().await;
    stage.add_runner("primary").await;
    check(&stage).await;
    stage.assert_serves().await;
    assert!(stage.runners[0].process.ended().is_none());
    stage.gateway.assert_healthy().await;
}

async fn send_text(stage: &Stage, path: &str, body: String) -> Answer {
    let request = stage.gateway.caller().request(Method::POST, path);
    Answer::of(
        request
            .header("content-type", "application/json")
            .body(body),
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_json_is_400_and_says_where() {
    and_nothing_is_touched(async |stage| {
        for body in [
            "",
            "{",
            "[]",
            "7",
            "\"where\"",
            "{\"where\": }",
            "{\"limit\": 1,}",
            "{\"where\": {\"id\": 1}",
            "\u{0}",
        ] {
            let answer = send_text(stage, "/v1/query/products", body.to_owned()).await;
            if body.is_empty() && answer.status.is_success() {
                continue; // No body at all may stand for no conditions.
            }
            answer.expect_error(400, "invalid_request");
        }
        let answer = send_text(
            stage,
            "/v1/query/products",
            "{\"limit\": 1,\n  nonsense}".to_owned(),
        )
        .await;
        let body = answer.expect_error(400, "invalid_request");
        assert!(text(&body, "error").contains("line 2"), "{body}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_types_are_400_and_name_the_path() {
    and_nothing_is_touched(async |stage| {
        for (body, path) in [
            (json!({"limit": "ten"}), "limit"),
            (json!({"limit": -1}), "limit"),
            (json!({"limit": 1.5}), "limit"),
            (json!({"offset": true}), "offset"),
            (json!({"select": "id"}), "select"),
            (json!({"select": [7]}), "select"),
            (json!({"where": []}), "where"),
            (json!({"where": "id = 1"}), "where"),
            (json!({"where": {"$or": {"id": 1}}}), "where.$or"),
            (json!({"where": {"id": {"$in": 1}}}), "where.id.$in"),
            (json!({"orderBy": 7}), "orderBy"),
            (
                json!({"orderBy": {"field": "id", "dir": "sideways"}}),
                "orderBy",
            ),
            (json!({"total": "yes"}), "total"),
            (json!({"cursor": 5}), "cursor"),
        ] {
            let error = stage
                .gateway
                .caller()
                .query("products", body.clone())
                .await
                .expect_error(400, "invalid_request");
            assert!(error.to_string().contains(path), "{body} → {error}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_names_are_refused_and_the_closest_is_offered() {
    and_nothing_is_touched(async |stage| {
        let ask = async |body: Value| stage.gateway.caller().query("products", body).await;
        let offers = |body: &Value, name: &str| {
            assert!(text(body, "error").contains(name), "{name} in {body}")
        };
        let body = stage
            .gateway
            .caller()
            .query("prodcuts", json!({}))
            .await
            .expect_error(404, "not_found");
        offers(&body, "products");
        for body in [
            json!({"where": {"titel": "x"}}),
            json!({"select": ["titel"]}),
            json!({"orderBy": {"field": "titel"}}),
            json!({"where": {"$and": [{"$not": {"titel": 1}}]}}),
        ] {
            offers(&ask(body).await.expect_error(400, "unknown_field"), "title");
        }
        // The column behind a field is no name of the lens.
        ask(json!({"where": {"price_cents": 1}}))
            .await
            .expect_error(400, "unknown_field");
        let body = ask(json!({"where": {"price": {"$gtt": 1}}}))
            .await
            .expect_error(400, "unsupported_operator");
        offers(&body, "$gtt");
        offers(&body, "$gt");
        let body = ask(json!({"wehre": {}}))
            .await
            .expect_error(400, "invalid_request");
        offers(&body, "wehre");
        let runner = json!({"name": "x", "deployment": "customer", "colour": "red"});
        offers(
            &stage
                .gateway
                .admin()
                .post("/v1/runners", runner)
                .await
                .expect_error(400, "invalid_request"),
            "colour",
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nul_bytes_are_refused_at_the_edge() {
    and_nothing_is_touched(async |stage| {
        for body in [
            json!({"where": {"title": "a\u{0}b"}}),
            json!({"where": {"title": {"$contains": "\u{0}"}}}),
            json!({"where": {"title": {"$in": ["a", "\u{0}"]}}}),
        ] {
            stage.gateway.caller().query("products", body).await.expect_error(400, "invalid_request");
        }
        for body in [json!({"select": ["id\u{0}"]}), json!({"where": {"id\u{0}": 1}})] {
            stage.gateway.caller().query("products", body).await.expect_error_shape(400);
        }
        let admin = stage.gateway.admin();
        let runner = json!({"name": "nul\u{0}", "deployment": "customer"});
        admin.post("/v1/runners", runner).await.expect_error(400, "invalid_request");
        let source = json!({
            "name": "nul", "bridge": "sqlite", "credentialsLocation": "managed", "config": {"path": "/tmp/a\u{0}b"},
        });
        admin.post("/v1/sources", source).await.expect_error(400, "invalid_request");
        let job = json!({"kind": "query", "target": "products", "options": {"where": {"title": "\u{0}"}}});
        stage.gateway.dispatch(&stage.source, job).await.expect_error(400, "invalid_request");
        let job = json!({"kind": "query", "target": "prod\u{0}ucts", "options": {}});
        stage.gateway.dispatch(&stage.source, job).await.expect_error_shape(400);
        // In a path it is no name of anything.
        let status = admin.get("/v1/runners/a%00b").await.status.as_u16();
        assert!([400, 404].contains(&status), "{status}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_where_that_is_too_deep_or_too_long_is_400() {
    and_nothing_is_touched(async |stage| {
        for depth in [33, 1000, 100_000] {
            let body = format!(
                "{{\"where\": {}{{\"id\": 1}}{}}}",
                "{\"$not\": ".repeat(depth),
                "}".repeat(depth)
            );
            send_text(stage, "/v1/query/products", body)
                .await
                .expect_error(400, "invalid_request");
        }
        let arrays = format!(
            "{{\"where\": {{\"id\": {}1{}}}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        send_text(stage, "/v1/query/products", arrays)
            .await
            .expect_error(400, "invalid_request");
        let terms: Vec<Value> = (0..1001).map(|n| json!({"id": n})).collect();
        let answer = stage
            .gateway
            .caller()
            .query("products", json!({"where": {"$or": terms}}))
            .await;
        answer.expect_error(400, "invalid_request");
        let allowed = (0..30).fold(json!({"id": 7}), |inner, _| json!({"$and": [inner]}));
        assert_eq!(
            stage
                .gateway
                .caller()
                .query("products", json!({"where": allowed}))
                .await
                .rows()
                .len(),
            1
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_a_hundred_megabytes_is_413_and_costs_no_memory() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    stage.assert_serves().await;
    let pid = stage.gateway.process.pid();
    let before = resident_mib(pid);
    for path in ["/v1/query/products", "/v1/runners"] {
        let body = format!(
            "{{\"where\": {{\"title\": \"{}\"}}}}",
            "x".repeat(100 << 20)
        );
        let api = if path == "/v1/runners" {
            stage.gateway.admin()
        } else {
            stage.gateway.caller()
        };
        let request = api
            .request(Method::POST, path)
            .header("content-type", "application/json");
        // A server may answer and hang up while the body is still on its way; both are a refusal.
        if let Ok(response) = request.body(body).send().await {
            assert_eq!(response.status().as_u16(), 413);
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["code"], "too_large");
        }
        let grown = resident_mib(pid) - before;
        assert!(grown < 20.0, "the gateway grew by {grown} MiB");
    }
    // The same limit with a body that is small enough to be read: a certain answer.
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/products");
    let request = request
        .header("content-type", "application/json")
        .header("expect", "100-continue");
    let answer = request
        .header("content-length", "104857600")
        .body("")
        .send()
        .await;
    assert!(answer.is_err() || answer.unwrap().status().as_u16() == 413);
    stage.assert_serves().await;
    stage.gateway.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_in_names_and_values_is_only_text() {
    for engine in Engine::ALL {
        let mut stage = Stage::inline(engine).await;
        stage.add_runner("primary").await;
        let drop = "products; DROP TABLE products; --";
        for value in [
            "'; DROP TABLE products; --",
            "x' OR 1=1 --",
            "\" OR \"\"=\"",
            "\\'; SELECT 1; --",
            "%",
            "_______",
        ] {
            for operator in ["$eq", "$contains", "$in"] {
                let value = if operator == "$in" {
                    json!([value])
                } else {
                    json!(value)
                };
                let body = json!({"where": {"title": {operator: value}}});
                assert_eq!(
                    stage
                        .gateway
                        .caller()
                        .query("products", body.clone())
                        .await
                        .rows(),
                    Vec::<Value>::new(),
                    "{body}"
                );
            }
        }
        let caller = stage.gateway.caller();
        for body in [
            json!({"where": {drop: 1}}),
            json!({"select": [drop]}),
            json!({"orderBy": {"field": "id; DROP TABLE products"}}),
        ] {
            caller
                .query("products", body)
                .await
                .expect_error(400, "unknown_field");
        }
        let dispatch = async |target: &str, options: Value| {
            let job = json!({"kind": "query", "target": target, "options": options});
            stage.gateway.dispatch(&stage.source, job).await
        };
        for target in [
            drop,
            "products\"; --",
            "products`",
            "a.b.c.d",
            "",
            "prod ucts",
        ] {
            let answer = dispatch(target, json!({})).await;
            assert!(
                [400, 422].contains(&answer.status.as_u16()),
                "{target}: {answer:?}"
            );
            answer.expect_error_shape(answer.status.as_u16());
        }
        for options in [
            json!({"where": {"id\" = 1 OR \"id": 1}}),
            json!({"where": {"id` = 1 OR `id": 1}}),
            json!({"orderBy": {"field": "id\"; DROP TABLE products; --"}}),
            json!({"select": ["id\", (SELECT 1) AS \"x"]}),
        ] {
            let answer = dispatch("products", options.clone()).await;
            assert!(
                [400, 422].contains(&answer.status.as_u16()),
                "{options}: {answer:?}"
            );
        }
        // The database was asked to write nothing, and would have refused.
        stage.assert_serves().await;
        let count = json!({"kind": "count", "target": "products", "options": {}});
        assert_eq!(
            stage
                .gateway
                .dispatch(&stage.source, count)
                .await
                .expect(200)["meta"]["total"],
            250
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_works_only_where_it_came_from() {
    and_nothing_is_touched(async |stage| {
        let ask = async |body: Value| stage.gateway.caller().query("products", body).await;
        let page = ask(json!({"limit": 5, "orderBy": {"field": "title"}})).await.expect(200);
        let cursor = text(&page["meta"], "nextCursor");
        assert!(!cursor.contains("Product"), "a cursor shows nothing");
        let mut tampered = cursor.clone().into_bytes();
        let middle = tampered.len() / 2;
        tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };
        for body in [
            json!({"limit": 5, "orderBy": {"field": "title"}, "cursor": "nonsense"}),
            json!({"limit": 5, "orderBy": {"field": "title"}, "cursor": ""}),
            json!({"limit": 5, "orderBy": {"field": "title"}, "cursor": String::from_utf8(tampered).unwrap()}),
            json!({"limit": 5, "orderBy": {"field": "price"}, "cursor": cursor}),
            json!({"limit": 5, "orderBy": {"field": "title"}, "cursor": cursor, "where": {"id": 1}}),
        ] {
            let error = ask(body.clone()).await.expect_error(400, "invalid_request");
            assert!(error.to_string().contains("cursor"), "{body} → {error}");
        }
        ask(json!({"limit": 7, "orderBy": {"field": "title"}, "cursor": cursor})).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_methods_paths_and_types_have_the_same_shape() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let admin = stage.gateway.admin();
    for (method, path) in [
        (Method::GET, "/v1/query/products"),
        (Method::DELETE, "/v1/query/products"),
        (Method::PUT, "/v1/runners"),
        (Method::POST, "/v1/whoami"),
        (Method::POST, "/connect"),
    ] {
        Answer::of(admin.request(method, path))
            .await
            .expect_error_shape(405);
    }
    for path in [
        "/v1/nothing",
        "/nothing",
        "/v1/runners/nobody",
        "/v1/jobs/0190a5d0-0000-7000-8000-000000000000",
    ] {
        admin.get(path).await.expect_error(404, "not_found");
    }
    let internal = stage.gateway.internal();
    Answer::of(internal.request(Method::GET, "/dispatch"))
        .await
        .expect_error_shape(405);
    internal
        .get("/nothing")
        .await
        .expect_error(404, "not_found");
    let request = admin
        .request(Method::POST, "/v1/runners")
        .header("content-type", "text/plain")
        .body("name=x");
    let answer = Answer::of(request).await;
    answer.expect_error_shape(if answer.status.as_u16() == 415 {
        415
    } else {
        400
    });
    let request = stage
        .gateway
        .caller()
        .request(Method::POST, "/v1/query/products");
    let request = request
        .header("content-type", "application/json")
        .body(vec![b'{', 0xff, 0xfe, b'}']);
    Answer::of(request)
        .await
        .expect_error(400, "invalid_request");
    // The public listener knows nothing of what the internal one does.
    stage
        .gateway
        .caller()
        .post("/dispatch", json!({}))
        .await
        .expect_error_shape(404);
    stage
        .gateway
        .caller()
        .get("/metrics")
        .await
        .expect_error_shape(404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_no_bridge_understands_are_refused_at_dispatch() {
    and_nothing_is_touched(async |stage| {
        for body in [
            json!({}),
            json!({"sourceId": stage.source}),
            json!({"sourceId": stage.source, "job": {}}),
            json!({"sourceId": stage.source, "job": {"kind": "destroy", "target": "products", "options": {}}}),
            json!({"sourceId": stage.source, "job": {"kind": 7}}),
            json!({"sourceId": stage.source, "job": {"kind": "query", "options": {}}}),
            json!({"sourceId": stage.source, "job": {"kind": "query", "target": "products", "options": []}}),
            json!({"sourceId": stage.source, "job": {"kind": "count", "target": "products"}, "deadlineMs": -1}),
            json!({"sourceId": "not-an-id", "job": {"kind": "test", "options": {}}}),
        ] {
            let answer = stage.gateway.internal().post("/dispatch", body.clone()).await;
            assert!([400, 404].contains(&answer.status.as_u16()), "{body} → {answer:?}");
            answer.expect_error_shape(answer.status.as_u16());
        }
        let unknown = uuid::Uuid::now_v7().to_string();
        let answer = stage.gateway.dispatch(&unknown, json!({"kind": "test", "options": {}})).await;
        answer.expect_error(404, "not_found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_the_wrong_type_reach_the_database_as_values() {
    for engine in Engine::ALL {
        let mut stage = Stage::inline(engine).await;
        stage.add_runner("primary").await;
        for value in [
            json!("seven"),
            json!(true),
            json!(1e300),
            json!(-1),
            json!({"a": 1}),
            json!([[1]]),
        ] {
            let body = json!({"where": {"id": {"$eq": value}}});
            let answer = stage.gateway.caller().query("products", body.clone()).await;
            // A value that no id has, or one that the database does not compare with a number: never a 5xx.
            assert!(
                [200, 400, 422].contains(&answer.status.as_u16()),
                "{engine:?} {body} → {answer:?}"
            );
        }
        stage.assert_serves().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_in_its_request_is_nothing_to_speak_of() {
    use tokio::io::AsyncWriteExt;
    let mut stage = Stage::inline(Engine::Sqlite).await;
    for part in [
        "",
        "PO",
        "POST /v1/query/products HTTP/1.1\r\n",
        "POST /v1/query/products HTTP/1.1\r\ncontent-length: 50\r\n\r\n{\"wh",
        "\u{0}\u{1}\u{2}\r\n\r\n",
    ] {
        let mut stream = tokio::net::TcpStream::connect(stage.gateway.address())
            .await
            .unwrap();
        stream.write_all(part.as_bytes()).await.unwrap();
    }
    stage.assert_serves().await;
    stage.gateway.assert_healthy().await;
    eventually("no job was made of it", PATIENCE, async || {
        let mut jobs = stage.gateway.admin().jobs("limit=100").await;
        // Making the lens has looked at its table.
        jobs.retain(|job| job["kind"] == "query");
        if jobs.len() == 1 {
            Ok(())
        } else {
            Err(format!("{jobs:?}"))
        }
    })
    .await;
}
