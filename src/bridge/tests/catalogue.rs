//! `test`, `listTargets` and `introspectTarget`.

use serde_json::json;

use super::support::{ENGINES, Engine, TestDb, operation};
use crate::bridge::BridgeError;
use crate::query::operation::Kind;

const SHOP: &str =
    "CREATE TABLE orders (id INT PRIMARY KEY NOT NULL, note VARCHAR(20), customer INT NOT NULL);
    CREATE UNIQUE INDEX orders_by_customer ON orders (customer, id);
    INSERT INTO orders VALUES (1, 'a', 5), (2, NULL, 5);
    CREATE VIEW open_orders AS SELECT id FROM orders;";

#[tokio::test(flavor = "multi_thread")]
async fn test_answers_version_and_latency() {
    for engine in ENGINES {
        let db = TestDb::new(engine, "").await;
        let rows = db.rows(operation(Kind::Test, "", json!({}))).await;
        assert_eq!(rows.len(), 1);
        assert!(
            rows[0]["version"]
                .as_str()
                .unwrap()
                .contains(|c: char| c.is_ascii_digit()),
            "{engine:?}: {rows:?}"
        );
        assert!(rows[0]["latencyMs"].as_f64().unwrap() < 10_000.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_views_are_listed() {
    for engine in ENGINES {
        let db = TestDb::new(engine, SHOP).await;
        let rows = db.rows(operation(Kind::ListTargets, "", json!({}))).await;
        let expected = [
            json!({"name": "open_orders", "kind": "view"}),
            json!({"name": "orders", "kind": "table"}),
        ];
        assert_eq!(rows, expected, "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_schemas_are_listed_qualified_and_can_be_queried() {
    let setup =
        "CREATE SCHEMA app; CREATE TABLE app.things (id INT); INSERT INTO app.things VALUES (7)";
    let db = TestDb::new(Engine::Postgres, setup).await;
    let rows = db.rows(operation(Kind::ListTargets, "", json!({}))).await;
    assert_eq!(rows, [json!({"name": "app.things", "kind": "table"})]);
    assert_eq!(
        db.rows(super::support::query("app.things", json!({})))
            .await,
        [json!({"id": 7})]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_described() {
    for engine in ENGINES {
        let db = TestDb::new(engine, SHOP).await;
        let rows = db
            .rows(operation(Kind::IntrospectTarget, "orders", json!({})))
            .await;
        assert_eq!(rows.len(), 1);
        let (int, text) = match engine {
            Engine::Postgres => ("integer", "character varying(20)"),
            Engine::MySql => ("int(11)", "varchar(20)"),
            Engine::Sqlite => ("INT", "VARCHAR(20)"),
        };
        let expected = json!([
            {"name": "id", "type": int, "nullable": false, "primaryKey": true},
            {"name": "note", "type": text, "nullable": true, "primaryKey": false},
            {"name": "customer", "type": int, "nullable": false, "primaryKey": false},
        ]);
        assert_eq!(rows[0]["columns"], expected, "{engine:?}");
        assert_eq!(rows[0]["name"], "orders");
        assert_eq!(rows[0]["rowCount"], 2, "{engine:?}");
        let index =
            json!({"name": "orders_by_customer", "columns": ["customer", "id"], "unique": true});
        assert!(
            rows[0]["indexes"].as_array().unwrap().contains(&index),
            "{engine:?}: {}",
            rows[0]["indexes"]
        );

        let view = db
            .rows(operation(Kind::IntrospectTarget, "open_orders", json!({})))
            .await;
        assert_eq!(view[0]["columns"][0]["name"], "id", "{engine:?}");
        assert_eq!(view[0]["rowCount"], json!(null), "{engine:?}");
        let error = db
            .try_rows(operation(Kind::IntrospectTarget, "nowhere", json!({})))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, BridgeError::QueryFailed(text) if text.contains("nowhere")),
            "{engine:?}: {error:?}"
        );
    }
}
