//! Tables that change while their shape is remembered.

use serde_json::{Value, json};

use super::support::{ENGINES, Engine, TestDb, execution, field, operation, parse, query, run};
use crate::bridge::{BridgeOptions, Bridges};
use crate::query::operation::{Kind, Operation, Paging};

async fn ids(bridges: &Bridges, db: &TestDb, operation: &Operation) -> Vec<Value> {
    let (batches, _) = run(bridges, &db.source, operation, &execution())
        .await
        .unwrap();
    field(&parse(&batches), "id")
}

async fn total(bridges: &Bridges, db: &TestDb, operation: &Operation) -> Option<u64> {
    let ran = run(bridges, &db.source, operation, &execution()).await;
    ran.unwrap().1.total
}

/// `$gt: 1.5` means `> 1` among integers, and no longer when they have become decimals.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_is_noticed_by_what_comes_back() {
    for engine in ENGINES {
        let table = "CREATE TABLE t (id INT NOT NULL PRIMARY KEY, n INT NULL);
            INSERT INTO t VALUES (1, 1), (2, 2), (3, 1);";
        let db = TestDb::new(engine, table).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let order = json!([{"field": "id", "dir": "asc"}]);
        let filter = json!({"n": {"$gt": 1.5}});
        let unread = query(
            "t",
            json!({"where": filter, "select": ["id"], "orderBy": order}),
        );
        let read = query("t", json!({"where": filter, "orderBy": order}));
        let count = operation(Kind::Count, "t", json!({"where": filter}));
        let change = match engine {
            Engine::Postgres => "ALTER TABLE t ALTER n TYPE numeric(5, 2)",
            Engine::MySql => "ALTER TABLE t MODIFY n DECIMAL(5, 2) NULL",
            Engine::Sqlite => {
                "CREATE TABLE u (id INT NOT NULL PRIMARY KEY, n NUMERIC(5, 2)); DROP TABLE t; \
                ALTER TABLE u RENAME TO t; INSERT INTO t VALUES (1, 1), (2, 2), (3, 1)"
            }
        };
        let back = match engine {
            Engine::Postgres => "UPDATE t SET n = 1 WHERE id <> 2; ALTER TABLE t ALTER n TYPE int",
            Engine::MySql => "UPDATE t SET n = 1 WHERE id <> 2; ALTER TABLE t MODIFY n INT NULL",
            Engine::Sqlite => "UPDATE t SET n = 1 WHERE id <> 2",
        };
        let fractions = "UPDATE t SET n = 1.25 WHERE id = 1; UPDATE t SET n = 1.75 WHERE id = 3";
        for asked in [&unread, &read] {
            assert_eq!(ids(&bridges, &db, asked).await, [2], "{engine:?}");
            db.run(change).await;
            db.run(fractions).await;
            assert_eq!(ids(&bridges, &db, asked).await, [2, 3], "{engine:?}");
            db.run(back).await;
        }
        assert_eq!(total(&bridges, &db, &count).await, Some(1), "{engine:?}");
        db.run(change).await;
        db.run(fractions).await;
        assert_eq!(total(&bridges, &db, &count).await, Some(2), "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_come_go_and_get_other_names_are_noticed() {
    for engine in ENGINES {
        let db = TestDb::new(
            engine,
            "CREATE TABLE t (id INT NOT NULL PRIMARY KEY, a VARCHAR(9)); INSERT INTO t VALUES (1, 'x');",
        )
        .await;
        let bridges = Bridges::new(BridgeOptions::default());
        let of = |name: &str| query("t", json!({"where": {name: "x"}, "select": ["id", name]}));
        assert_eq!(ids(&bridges, &db, &of("a")).await, [1], "{engine:?}");
        db.run("ALTER TABLE t RENAME COLUMN a TO b").await;
        assert_eq!(ids(&bridges, &db, &of("b")).await, [1], "{engine:?}");
        let gone = run(&bridges, &db.source, &of("a"), &execution()).await;
        assert_eq!(
            gone.unwrap_err().code(),
            "SOURCE_QUERY_FAILED",
            "{engine:?}"
        );
        db.run("ALTER TABLE t ADD COLUMN c VARCHAR(9) DEFAULT 'x'")
            .await;
        assert_eq!(ids(&bridges, &db, &of("c")).await, [1], "{engine:?}");
    }
}

/// Promises that a page relies on and nothing that comes back tells of.
#[tokio::test(flavor = "multi_thread")]
async fn promises_that_are_taken_back_are_noticed() {
    let db = TestDb::new(
        Engine::Postgres,
        "CREATE TABLE m (id int PRIMARY KEY, v text NOT NULL); INSERT INTO m SELECT i, 'v' || i FROM generate_series(1, 4) i;
         CREATE TABLE n (id int NOT NULL, v text, CONSTRAINT one UNIQUE (id)); INSERT INTO n SELECT i, 'a' FROM generate_series(1, 4) i;
         CREATE TABLE a (id int PRIMARY KEY, v text NOT NULL); INSERT INTO a SELECT i, 'a' || i FROM generate_series(1, 6) i;
         CREATE TABLE b (id int, v text); INSERT INTO b SELECT i / 2, NULL FROM generate_series(1, 6) i;",
    )
    .await;
    let bridges = Bridges::new(BridgeOptions::default());
    for (table, key, change, count) in [
        (
            "m",
            "v",
            "ALTER TABLE m ALTER v DROP NOT NULL; INSERT INTO m VALUES (9, NULL), (10, NULL)",
            6,
        ),
        (
            "n",
            "id",
            "ALTER TABLE n DROP CONSTRAINT one; INSERT INTO n SELECT i, 'b' FROM generate_series(1, 4) i",
            8,
        ),
        (
            "a",
            "v",
            "ALTER TABLE a RENAME TO gone; ALTER TABLE b RENAME TO a",
            6,
        ),
    ] {
        let mut execution = execution();
        execution.paging = Paging {
            keys: vec![key.into(), "id".into()],
            asked: 1,
            after: None,
        };
        let options = json!({"orderBy": [{"field": key}, {"field": "id"}], "limit": 1});
        let operation = query(table, options);
        run(&bridges, &db.source, &operation, &execution)
            .await
            .unwrap();
        db.run(change).await;
        let mut rows = 0;
        loop {
            let ran = run(&bridges, &db.source, &operation, &execution).await;
            let (batches, outcome) = ran.unwrap();
            match parse(&batches).len() {
                0 => break,
                more => rows += more,
            }
            execution.paging.after = outcome.last;
            assert!(rows <= count, "{table}: too many");
        }
        assert_eq!(rows, count, "{table}");
    }
}

/// What MySQL's texts become: the pages behind are right, or the cursor is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_mysql_says_what_it_depends_on() {
    let bridges = Bridges::new(BridgeOptions::default());
    for (before, after) in [
        (
            "VARCHAR(9) CHARACTER SET latin1",
            "VARCHAR(9) CHARACTER SET utf8mb4",
        ),
        (
            "VARCHAR(9) CHARACTER SET utf8mb4",
            "VARCHAR(9) CHARACTER SET latin1",
        ),
        ("ENUM('d','c','b','a')", "VARCHAR(9) CHARACTER SET utf8mb4"),
        ("VARCHAR(9) CHARACTER SET utf8mb4", "ENUM('d','c','b','a')"),
    ] {
        let table = format!(
            "CREATE TABLE t (id INT PRIMARY KEY, e {before}); INSERT INTO t VALUES (1,'a'),(2,'b'),(3,'c'),(4,'d')"
        );
        let db = TestDb::new(Engine::MySql, &table).await;
        for dir in ["asc", "desc"] {
            let order = json!([{"field": "e", "dir": dir}, {"field": "id"}]);
            let mut execution = execution();
            execution.paging = Paging {
                keys: vec!["e".into(), "id".into()],
                asked: 1,
                after: None,
            };
            let page = |limit: u64| {
                query(
                    "t",
                    json!({"orderBy": order, "limit": limit, "select": ["id"]}),
                )
            };
            let (first, outcome) = run(&bridges, &db.source, &page(2), &execution)
                .await
                .unwrap();
            db.run(&format!("ALTER TABLE t MODIFY e {after}")).await;
            // A first page in the new order is right at once.
            let (whole, _) = run(&bridges, &db.source, &page(9), &execution)
                .await
                .unwrap();
            let whole = field(&parse(&whole), "id");
            let sorted = db
                .texts(&format!("SELECT id FROM t ORDER BY e {dir}, id"))
                .await;
            assert_eq!(
                whole.iter().map(Value::to_string).collect::<Vec<_>>(),
                sorted,
                "{before} to {after} {dir}"
            );
            execution.paging.after = outcome.last;
            match run(&bridges, &db.source, &page(9), &execution).await {
                Err(error) => {
                    assert_eq!(error.code(), "invalid_request", "{before} to {after} {dir}")
                }
                Ok((rest, _)) => {
                    let last = field(&parse(&first), "id").pop();
                    let at = whole
                        .iter()
                        .position(|id| Some(id) == last.as_ref())
                        .unwrap();
                    assert_eq!(
                        field(&parse(&rest), "id"),
                        whole[at + 1..],
                        "{before} to {after} {dir}"
                    );
                }
            }
            db.run(&format!("ALTER TABLE t MODIFY e {before}")).await;
        }
    }
}
