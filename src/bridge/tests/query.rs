//! What `query` and `count` answer, the same on every database.

use serde_json::{Value, json};

use super::support::{ENGINES, Engine, TestDb, execution, field, operation, parse, query, run};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, RowFormat};
use crate::query::operation::{Kind, Paging};

const ITEMS: &str = "CREATE TABLE items (id INT NOT NULL PRIMARY KEY, name VARCHAR(50), price INT NULL);
    INSERT INTO items VALUES (1, 'Apple', 10), (2, 'banana', NULL), (3, 'Cherry', 30), (4, 'apple pie', 20);";

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_filtered_ordered_and_cut() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        let ids = async |options: Value| field(&db.rows(query("items", options)).await, "id");
        let by_id = |where_: Value| json!({"where": where_, "orderBy": {"field": "id"}});
        assert_eq!(ids(by_id(json!({}))).await, [1, 2, 3, 4], "{engine:?}");
        assert_eq!(
            ids(by_id(json!({"price": {"$gte": 20}}))).await,
            [3, 4],
            "{engine:?}"
        );
        assert_eq!(ids(by_id(json!({"price": null}))).await, [2], "{engine:?}");
        assert_eq!(
            ids(by_id(json!({"price": {"$ne": 10}}))).await,
            [3, 4],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"$not": {"price": 10}}))).await,
            [3, 4],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"id": [1, 3, 9]}))).await,
            [1, 3],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"id": {"$nin": [1, 3]}}))).await,
            [2, 4],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"id": {"$in": []}}))).await,
            Vec::<Value>::new(),
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"name": {"$contains": "APPLE"}}))).await,
            [1, 4],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"name": {"$like": "%pple"}}))).await,
            [1],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"name": {"$like": "apple%"}}))).await,
            [4],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"name": {"$ilike": "a_ple"}}))).await,
            [1],
            "{engine:?}"
        );
        assert_eq!(
            ids(by_id(json!({"$or": [{"id": 1}, {"name": "banana"}]}))).await,
            [1, 2],
            "{engine:?}"
        );
        let page = json!({"orderBy": {"id": "desc"}, "limit": 2, "offset": 1});
        assert_eq!(ids(page).await, [3, 2], "{engine:?}");
        assert_eq!(
            ids(json!({"orderBy": {"id": "asc"}, "offset": 3})).await,
            [4],
            "{engine:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_come_last_ascending_and_first_descending() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        let asc = db
            .rows(query("items", json!({"orderBy": [{"field": "price"}]})))
            .await;
        assert_eq!(field(&asc, "id"), [1, 4, 3, 2], "{engine:?}");
        let desc = db
            .rows(query(
                "items",
                json!({"orderBy": [{"field": "price", "dir": "desc"}]}),
            ))
            .await;
        assert_eq!(field(&desc, "id"), [2, 3, 4, 1], "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_rename_and_keys_of_the_last_row_come_back() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let mut execution = execution();
        execution.fields = Some(vec![
            ("name".into(), "label \"x\"".into()),
            ("price".into(), "cost".into()),
        ]);
        execution.paging = Paging {
            keys: vec!["id".into()],
            asked: 1,
            after: None,
        };
        let operation = query(
            "items",
            json!({"orderBy": {"id": "asc"}, "limit": 3, "total": true}),
        );
        let (batches, outcome) = run(&bridges, &db.source, &operation, &execution)
            .await
            .unwrap();
        let rows = parse(&batches);
        assert_eq!(
            rows[0],
            json!({"label \"x\"": "Apple", "cost": 10}),
            "{engine:?}"
        );
        assert_eq!(
            rows[1],
            json!({"label \"x\"": "banana", "cost": null}),
            "{engine:?}"
        );
        assert_eq!(outcome.last, Some(vec![json!(3)]), "{engine:?}");
        assert_eq!((outcome.rows, outcome.total), (3, Some(4)), "{engine:?}");
        assert_eq!(
            outcome.bytes,
            batches
                .iter()
                .map(|batch| batch.payload.len() as u64)
                .sum::<u64>()
        );
        execution.format = RowFormat::Ndjson;
        execution.paging.keys.clear();
        let operation = query(
            "items",
            json!({"orderBy": {"id": "asc"}, "select": ["name"], "limit": 2}),
        );
        let (batches, outcome) = run(&bridges, &db.source, &operation, &execution)
            .await
            .unwrap();
        assert_eq!(
            &batches[0].payload[..],
            b"{\"label \\\"x\\\"\":\"Apple\"}\n{\"label \\\"x\\\"\":\"banana\"}\n"
        );
        assert_eq!(outcome.last, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn count_is_exact() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        let count = operation(
            Kind::Count,
            "items",
            json!({"where": {"price": {"$gt": 5}}}),
        );
        let outcome = db.outcome(count).await.unwrap();
        assert_eq!(
            (outcome.total, outcome.rows, outcome.approximate),
            (Some(3), 0, false),
            "{engine:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_queries_say_why_in_the_databases_own_words() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        let error = db.try_rows(query("nowhere", json!({}))).await.unwrap_err();
        assert!(
            matches!(&error, BridgeError::QueryFailed(text) if text.contains("nowhere")),
            "{engine:?}: {error:?}"
        );
        for options in [
            json!({"where": {"nothing": 1}}),
            json!({"orderBy": {"nothing": "asc"}}),
            json!({"select": ["nothing"]}),
        ] {
            let error = db.try_rows(query("items", options)).await.unwrap_err();
            let named =
                matches!(&error, BridgeError::QueryFailed(text) if text.contains("nothing"));
            assert!(named, "{engine:?}: {error:?}");
        }
        // The connection was not left in a failed state.
        assert_eq!(db.rows(query("items", json!({}))).await.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_options_are_refused_with_their_path() {
    let db = TestDb::new(Engine::Sqlite, ITEMS).await;
    for (options, path) in [
        (json!({"limit": -1}), "limit"),
        (json!({"limit": 1.5}), "limit"),
        (json!({"limit": "10"}), "limit"),
        (json!({"offset": u64::MAX}), "offset"),
        (json!({"total": "yes"}), "total"),
        (json!({"select": "id"}), "select"),
        (json!({"select": ["id", 3]}), "select.1"),
        (json!({"orderBy": "id"}), "orderBy"),
        (
            json!({"orderBy": [{"field": "id", "dir": "up"}]}),
            "orderBy.0.dir",
        ),
        (json!({"orderBy": {"id": "down"}}), "orderBy.id"),
        (json!({"where": []}), "where"),
    ] {
        let error = db
            .try_rows(query("items", options.clone()))
            .await
            .unwrap_err();
        let BridgeError::Invalid { path: found, .. } = &error else {
            panic!("{options}: {error:?}")
        };
        assert_eq!(found, path, "{options}");
    }
    let error = db
        .try_rows(operation(Kind::Query, "", json!({})))
        .await
        .unwrap_err();
    assert!(matches!(error, BridgeError::Invalid { path, .. } if path == "target"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_a_bridge_lacks_are_unsupported() {
    let db = TestDb::new(Engine::Sqlite, ITEMS).await;
    for kind in [
        Kind::Read,
        Kind::BatchRead,
        Kind::Aggregate,
        Kind::Search,
        Kind::Similar,
    ] {
        let error = db
            .try_rows(operation(kind, "items", json!({})))
            .await
            .unwrap_err();
        let expected = BridgeError::UnsupportedKind {
            kind: kind.as_str().into(),
            bridge: "sqlite".into(),
        };
        assert_eq!(error, expected);
    }
}
