//! What works, on the three databases, through a runner and inline: the same question, the same answer.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::databases::{PRODUCTS, product};
use crate::support::gateway::Gateway;
use crate::support::rest::text;
use crate::support::{Answer, Database, Engine, RunnerProcess, Stage};

on_every_database! {
    a_query_means_the_same_everywhere,
    paging_with_a_cursor_visits_every_row_once,
    totals_and_counts_ignore_the_page,
    ndjson_has_one_line_per_row,
    dispatch_speaks_the_names_of_the_source,
    a_source_describes_itself,
    an_answer_names_its_job_and_the_job_is_recorded,
    credentials_can_stay_with_the_runner,
}

/// Runs the check on a source that the gateway executes itself, and then through a runner.
async fn inline_and_through_a_runner(engine: Engine, check: impl AsyncFn(&Stage)) {
    let mut stage = Stage::inline(engine).await;
    check(&stage).await;
    stage.add_runner("primary").await;
    check(&stage).await;
}

fn all_products() -> Vec<Value> {
    (1..=PRODUCTS).map(product).collect()
}

async fn a_query_means_the_same_everywhere(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let all = all_products();
        let price = |row: &Value| row["price"].as_u64().unwrap();
        let id = |row: &Value| row["id"].as_u64().unwrap();
        let category = |row: &Value| row["category"].as_str().map(str::to_owned);
        let matching = |keep: &dyn Fn(&Value) -> bool| -> Vec<Value> {
            all.iter().filter(|row| keep(row)).cloned().collect()
        };
        let by_id = json!({"field": "id"});
        for (body, expected) in [
            (json!({"where": {"id": 7}}), matching(&|row| id(row) == 7)),
            (
                json!({"where": {"category": null}}),
                matching(&|row| category(row).is_none()),
            ),
            (
                json!({"where": {"id": [3, 5, 900]}}),
                matching(&|row| [3, 5].contains(&id(row))),
            ),
            (
                json!({"where": {"price": {"$gte": 900, "$lt": 950}}}),
                matching(&|row| (900..950).contains(&price(row))),
            ),
            (
                json!({"where": {"$or": [{"price": {"$lte": 20}}, {"id": {"$gt": 245}}]}}),
                matching(&|row| price(row) <= 20 || id(row) > 245),
            ),
            (
                json!({"where": {"$not": {"id": {"$lte": 240}}}}),
                matching(&|row| id(row) > 240),
            ),
            (
                json!({"where": {"category": {"$ne": "books"}, "id": {"$lt": 20}}}),
                // Three-valued: a row without a category is not one with another category.
                matching(&|row| id(row) < 20 && category(row).is_some_and(|name| name != "books")),
            ),
            (
                json!({"where": {"category": {"$nin": ["books", "toys"]}, "id": {"$lt": 20}}}),
                matching(&|row| id(row) < 20 && category(row).is_some_and(|name| name == "tools")),
            ),
            (
                json!({"where": {"category": {"$exists": false}, "id": {"$lt": 9}}}),
                vec![product(4), product(8)],
            ),
            (
                json!({"where": {"category": {"$contains": "OY"}, "id": {"$lt": 9}}}),
                vec![product(3), product(7)],
            ),
            (
                json!({"where": {"title": {"$startsWith": "product 24"}}}),
                matching(&|row| (240..250).contains(&id(row))),
            ),
            (json!({"where": {"title": {"$endsWith": "_7"}}}), vec![]),
            (
                json!({"where": {"title": {"$like": "Product 2_7"}}}),
                vec![
                    product(207),
                    product(217),
                    product(227),
                    product(237),
                    product(247),
                ],
            ),
            (
                json!({"where": {"title": {"$ilike": "product 00%"}, "id": {"$gt": 7}}}),
                vec![product(8), product(9)],
            ),
            (json!({"where": {"id": {"$in": []}}}), vec![]),
            (json!({"where": {"title": "x' OR '1'='1"}}), vec![]),
        ] {
            let mut body = body;
            body["orderBy"] = by_id.clone();
            assert_eq!(ask(stage, &body).await.rows(), expected, "{body}");
        }

        let mut ordered = all.clone();
        ordered.sort_by_key(|row| (category(row).is_none(), category(row), id(row)));
        let body = json!({"orderBy": [{"field": "category"}, {"field": "id"}], "limit": 1000});
        assert_eq!(
            ask(stage, &body).await.rows(),
            ordered,
            "nulls are last ascending"
        );
        ordered.sort_by_key(|row| (std::cmp::Reverse(price(row)), id(row)));
        let body = json!({"orderBy": {"price": "desc"}, "limit": 7, "offset": 11});
        assert_eq!(ask(stage, &body).await.rows(), ordered[11..18]);

        let body = json!({"where": {"id": 12}, "select": ["price", "title"]});
        assert_eq!(
            ask(stage, &body).await.rows(),
            [json!({"price": 444, "title": "Product 012"})]
        );
        assert_eq!(
            ask(stage, &json!({})).await.rows().len(),
            100,
            "the default limit"
        );
    })
    .await;
}

async fn paging_with_a_cursor_visits_every_row_once(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        for order in [
            json!({"field": "category"}),
            json!([{"field": "category", "dir": "desc"}]),
            Value::Null,
        ] {
            let mut seen = Vec::new();
            let mut cursor = None;
            loop {
                let mut body = json!({"limit": 40, "where": {"id": {"$gt": 2}}});
                if !order.is_null() {
                    body["orderBy"] = order.clone();
                }
                if let Some(cursor) = cursor {
                    body["cursor"] = cursor;
                }
                let page = ask(stage, &body).await.expect(200);
                let rows = page["rows"].as_array().unwrap();
                assert!(rows.len() <= 40);
                seen.extend(rows.iter().map(|row| row["id"].as_u64().unwrap()));
                cursor = page["meta"].get("nextCursor").cloned();
                assert!(
                    cursor.is_none() || rows.len() == 40,
                    "a short page is the last one"
                );
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(seen.len() as u64, PRODUCTS - 2, "ordered by {order}");
            assert_eq!(
                seen.into_iter().collect::<BTreeSet<u64>>(),
                (3..=PRODUCTS).collect(),
                "ordered by {order}"
            );
        }
    })
    .await;
}

async fn totals_and_counts_ignore_the_page(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let filter = json!({"price": {"$lt": 500}});
        let expected = all_products()
            .iter()
            .filter(|row| row["price"].as_u64().unwrap() < 500)
            .count();
        let page = ask(stage, &json!({"where": filter, "limit": 3, "total": true}))
            .await
            .expect(200);
        assert_eq!(page["meta"]["total"], expected);
        assert_eq!(page["meta"]["count"], 3);
        let page = ask(stage, &json!({"where": filter, "limit": 3}))
            .await
            .expect(200);
        assert_eq!(page["meta"].get("total"), None, "counted only when asked");
        let counted = stage
            .gateway
            .caller()
            .post("/v1/query/products/count", json!({"where": filter}))
            .await;
        assert_eq!(counted.expect(200)["count"], expected);
        let counted = stage
            .gateway
            .caller()
            .post("/v1/query/products/count", json!({}))
            .await;
        assert_eq!(counted.expect(200)["count"], PRODUCTS);
    })
    .await;
}

async fn ndjson_has_one_line_per_row(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let request = stage
            .gateway
            .caller()
            .request(Method::POST, "/v1/query/products");
        let request = request
            .header("accept", "application/x-ndjson")
            .json(&json!({"orderBy": {"field": "id"}, "limit": 1000}));
        let answer = Answer::of(request).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text);
        assert!(
            answer
                .header("content-type")
                .starts_with("application/x-ndjson")
        );
        assert!(answer.text.ends_with('\n'));
        let rows: Vec<Value> = answer
            .text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(rows, all_products());
    })
    .await;
}

async fn dispatch_speaks_the_names_of_the_source(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let dispatch = async |job: Value| stage.gateway.dispatch(&stage.source, job).await.expect(200);
        let rows = json!({
            "kind": "query", "target": "products",
            "options": {"where": {"price_cents": 74}, "select": ["id", "price_cents"]},
        });
        let answer = dispatch(rows).await;
        assert_eq!(answer["rows"], json!([{"id": 2, "price_cents": 74}]));
        assert_eq!(answer["meta"]["count"], 1);
        let count = json!({"kind": "count", "target": "products", "options": {"where": {"category": null}}});
        let answer = dispatch(count).await;
        assert_eq!(answer["rows"], json!([]));
        assert_eq!(answer["meta"]["total"], PRODUCTS / 4);
        let targets = dispatch(json!({"kind": "listTargets", "options": {}})).await;
        assert!(targets["rows"].as_array().unwrap().iter().any(|row| row["name"] == "products"), "{targets}");
        let details = dispatch(json!({"kind": "introspectTarget", "target": "products", "options": {}})).await;
        assert_eq!(details["rows"][0]["columns"][2]["name"], "price_cents", "{details}");
        let test = dispatch(json!({"kind": "test", "options": {}})).await;
        assert!(test["rows"][0]["version"].is_string(), "{test}");
        for kind in ["search", "similar"] {
            let refused = stage.gateway.dispatch(&stage.source, json!({"kind": kind, "target": "products", "options": {}}));
            assert!(refused.await.status.is_client_error(), "no bridge here can {kind}");
        }
    })
    .await;
}

async fn a_source_describes_itself(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let admin = stage.gateway.admin();
        let targets = admin.get("/v1/sources/warehouse/targets").await.expect(200);
        assert!(
            targets["items"]
                .as_array()
                .unwrap()
                .iter()
                .any(|target| target["name"] == "products"),
            "{targets}"
        );
        let details = admin
            .get("/v1/sources/warehouse/targets/products")
            .await
            .expect(200);
        let columns: Vec<(String, bool, bool)> = details["columns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| {
                (
                    text(c, "name"),
                    c["nullable"].as_bool().unwrap(),
                    c["primaryKey"].as_bool().unwrap(),
                )
            })
            .collect();
        let expected = [
            ("id", true),
            ("title", false),
            ("price_cents", false),
            ("category", false),
        ];
        assert_eq!(
            columns
                .iter()
                .map(|c| (c.0.as_str(), c.2))
                .collect::<Vec<_>>(),
            expected
        );
        assert!(columns[3].1 && !columns[1].1, "nullability: {columns:?}");
        let test = admin
            .post("/v1/sources/warehouse/test", json!({}))
            .await
            .expect(200);
        assert_eq!(test["ok"], true, "{test}");
        let results = test["results"].as_array().unwrap();
        assert_eq!(results.len(), 1);
        assert!(results[0]["latencyMs"].as_f64().unwrap() > 0.0, "{test}");
        assert_eq!(
            results[0].get("runner").is_some_and(Value::is_object),
            !stage.runners.is_empty(),
            "{test}"
        );
    })
    .await;
}

async fn an_answer_names_its_job_and_the_job_is_recorded(engine: Engine) {
    inline_and_through_a_runner(engine, async |stage| {
        let meta = ask(stage, &json!({"limit": 5})).await.expect(200)["meta"].clone();
        assert_eq!(meta["lens"], "products");
        assert_eq!(meta["count"], 5);
        assert!(meta["durationMs"].as_f64().unwrap() >= 0.0);
        let job = stage
            .gateway
            .until_job_is(&text(&meta, "jobId"), "completed")
            .await;
        assert_eq!(job["rows"], 5);
        assert_eq!(job["source"]["id"], stage.source);
        assert_eq!(
            meta.get("runnerId").is_some(),
            !stage.runners.is_empty(),
            "{meta}"
        );
        assert_eq!(job["runner"]["id"], meta["runnerId"], "{job}");
    })
    .await;
}

async fn credentials_can_stay_with_the_runner(engine: Engine) {
    let gateway = Gateway::start().await;
    let database = Database::with_products(engine).await;
    let admin = gateway.admin();
    let source = json!({
        "name": "edge-db.2", "bridge": engine.bridge(), "credentialsLocation": "runner-local", "config": {},
    });
    let source = admin.create_source(source).await;
    let runner = admin.create_runner("edge").await;
    admin.assign(&runner, &[&source]).await;
    let mut builder = RunnerProcess::builder(&gateway, &runner);
    for (key, value) in database.config().as_object().unwrap() {
        let name = format!("SEMILAYER_SOURCE_EDGE_DB_2_{}", key.to_uppercase());
        builder = builder.env(
            &name,
            &value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        );
    }
    let _runner = builder.spawn();
    gateway.until_runner_is(&runner, "online").await;
    let job = json!({"kind": "count", "target": "products", "options": {}});
    assert_eq!(
        gateway.dispatch(&source, job).await.expect(200)["meta"]["total"],
        PRODUCTS
    );
}

async fn ask(stage: &Stage, body: &Value) -> Answer {
    stage.gateway.caller().query("products", body.clone()).await
}
