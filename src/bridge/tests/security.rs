//! Nothing of a request becomes SQL, and nothing can be written.

use serde_json::json;

use super::support::{ENGINES, Engine, TestDb, config, operation, query};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, Source};
use crate::query::operation::Kind;

const ITEMS: &str = "CREATE TABLE items (id INT, name VARCHAR(200));
    INSERT INTO items VALUES (1, 'a'), (2, '%'), (3, 'x_y'), (4, 'back\\\\slash');";

const ATTACKS: [&str; 9] = [
    "'; DROP TABLE items; --",
    "\" OR 1=1 --",
    "` OR 1=1 #",
    "\\' OR 1=1 --",
    "1; DELETE FROM items",
    "$1",
    "?",
    "{\"a\",NULL}",
    "*/ OR 1=1 /*",
];

#[tokio::test(flavor = "multi_thread")]
async fn attacks_in_values_are_only_values() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        for attack in ATTACKS {
            for filter in [
                json!({"name": attack}),
                json!({"name": {"$in": [attack, "zzz"]}}),
                json!({"name": {"$contains": attack}}),
                json!({"name": {"$startsWith": attack}}),
                json!({"name": {"$like": attack.replace('\\', "")}}),
            ] {
                let rows = db.rows(query("items", json!({"where": filter}))).await;
                assert!(rows.is_empty(), "{engine:?} {filter}: {rows:?}");
            }
        }
        assert_eq!(db.rows(query("items", json!({}))).await.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attacks_in_identifiers_are_only_names() {
    for engine in ENGINES {
        let db = TestDb::new(engine, ITEMS).await;
        for attack in ATTACKS {
            for options in [
                json!({"where": {attack: 1}}),
                json!({"orderBy": [{"field": attack}]}),
                json!({"select": [attack]}),
            ] {
                let error = db
                    .try_rows(query("items", options.clone()))
                    .await
                    .unwrap_err();
                let refused = matches!(
                    error,
                    BridgeError::QueryFailed(_)
                        | BridgeError::Invalid { .. }
                        | BridgeError::UnsupportedOperator { .. }
                );
                assert!(refused, "{engine:?} {options}: {error:?}");
            }
            for kind in [Kind::Query, Kind::Count, Kind::IntrospectTarget] {
                let error = db
                    .try_rows(operation(kind, attack, json!({})))
                    .await
                    .unwrap_err();
                // Any text may be the name of a table; there is none of that name.
                let refused = match &error {
                    BridgeError::Invalid { path, .. } => path == "target",
                    BridgeError::QueryFailed(_) => true,
                    _ => false,
                };
                assert!(refused, "{engine:?} {attack}: {error:?}");
            }
        }
        for target in [
            "items\"", "a.b.c", ".items", "items.", "1items", "items x", "",
        ] {
            let operation = crate::query::operation::Operation {
                target: Some(target.into()),
                ..query("x", json!({}))
            };
            let error = db.try_rows(operation).await.unwrap_err();
            let refused = matches!(
                error,
                BridgeError::Invalid { .. } | BridgeError::QueryFailed(_)
            );
            assert!(refused, "{target}: {error:?}");
        }
        assert_eq!(db.rows(query("items", json!({}))).await.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quoted_columns_can_have_any_name() {
    for engine in ENGINES {
        let (quote, inner) = if engine == Engine::MySql {
            ('`', "we``ird")
        } else {
            ('"', "we\"\"ird")
        };
        let setup =
            format!("CREATE TABLE t ({quote}{inner}{quote} INT); INSERT INTO t VALUES (1), (2);");
        let db = TestDb::new(engine, &setup).await;
        let name = if engine == Engine::MySql {
            "we`ird"
        } else {
            "we\"ird"
        };
        let options =
            json!({"where": {name: {"$gt": 1}}, "orderBy": {name: "asc"}, "select": [name]});
        assert_eq!(
            db.rows(query("t", options)).await,
            [json!({name: 2})],
            "{engine:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_are_literal() {
    for engine in ENGINES {
        let db = TestDb::new(engine, "CREATE TABLE t (s VARCHAR(20));").await;
        let quote = if engine == Engine::MySql {
            "'a\\\\b'"
        } else {
            "'a\\b'"
        };
        db.run(&format!(
            "INSERT INTO t VALUES ('a%b'), ('a_b'), ({quote}), ('axb'), ('A*B'), ('a[b]')"
        ))
        .await;
        for (needle, expected) in [
            ("%", "a%b"),
            ("_", "a_b"),
            ("\\", "a\\b"),
            ("*", "A*B"),
            ("a*b", "A*B"),
            ("[B]", "a[b]"),
        ] {
            let rows = db
                .rows(query("t", json!({"where": {"s": {"$contains": needle}}})))
                .await;
            assert_eq!(rows, [json!({"s": expected})], "{engine:?} {needle}");
        }
        let likes = [
            ("a\\%b", "a%b"),
            ("a\\_b", "a_b"),
            ("a\\\\b", "a\\b"),
            ("A*B", "A*B"),
            ("a[b]", "a[b]"),
        ];
        for (pattern, expected) in likes {
            let rows = db
                .rows(query("t", json!({"where": {"s": {"$like": pattern}}})))
                .await;
            assert_eq!(rows, [json!({"s": expected})], "{engine:?} {pattern}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_cannot_write() {
    let postgres = "CREATE TABLE log (n int);
        CREATE FUNCTION note() RETURNS int LANGUAGE plpgsql VOLATILE AS
            $$ BEGIN INSERT INTO log VALUES (1); RETURN 1; END $$;
        CREATE FUNCTION unlock() RETURNS text LANGUAGE sql VOLATILE AS
            $$ SELECT set_config('default_transaction_read_only', 'off', false) $$;
        CREATE VIEW writes AS SELECT note();
        CREATE VIEW unlocks AS SELECT unlock();";
    let db = TestDb::new(Engine::Postgres, postgres).await;
    let bridges = Bridges::new(BridgeOptions {
        pool_size: 1,
        ..BridgeOptions::default()
    });
    let run = async |target| {
        super::support::run(
            &bridges,
            &db.source,
            &query(target, json!({})),
            &super::support::execution(),
        )
        .await
    };
    let refused = |result: Result<_, _>| {
        let error = result.map(|_: (Vec<_>, _)| ()).unwrap_err();
        assert!(
            matches!(&error, BridgeError::QueryFailed(text) if text.contains("read-only")),
            "{error:?}"
        );
    };
    refused(run("writes").await);
    run("unlocks").await.unwrap();
    refused(run("writes").await);
    assert_eq!(db.texts("SELECT count(*) FROM log").await, ["0"]);

    let mysql = "CREATE TABLE log (n INT);
        CREATE FUNCTION note() RETURNS INT MODIFIES SQL DATA BEGIN INSERT INTO log VALUES (1); RETURN 1; END;
        CREATE VIEW writes AS SELECT note() AS n;";
    let db = TestDb::new(Engine::MySql, mysql).await;
    let error = db.try_rows(query("writes", json!({}))).await.unwrap_err();
    assert!(
        matches!(&error, BridgeError::QueryFailed(text) if text.contains("READ ONLY")),
        "{error:?}"
    );
    assert_eq!(db.texts("SELECT COUNT(*) FROM log").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_may_not_be_dialled_are_refused() {
    let options = BridgeOptions {
        may_dial: Some(std::sync::Arc::new(|address| !address.is_loopback())),
        ..BridgeOptions::default()
    };
    let bridges = Bridges::new(options);
    for (bridge, settings) in [
        (
            "postgres",
            json!({"url": "postgres://postgres@localhost/test"}),
        ),
        (
            "postgres",
            json!({"url": "postgres://postgres@%2Fvar%2Frun%2Fpostgresql/test"}),
        ),
        ("mysql", json!({"url": "mysql://root@127.0.0.1/test"})),
        ("sqlite", json!({"path": "/etc/passwd"})),
    ] {
        let source = Source {
            id: crate::ids::SourceId::new(),
            name: "s".into(),
            bridge: bridge.into(),
            config: config(settings),
        };
        let test = operation(Kind::Test, "", json!({}));
        let result =
            super::support::run(&bridges, &source, &test, &super::support::execution()).await;
        assert!(
            matches!(result, Err(BridgeError::Unreachable(_))),
            "{bridge}"
        );
    }
}
