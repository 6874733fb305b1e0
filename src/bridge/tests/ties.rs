//! Pages of views, of which no catalogue says that two rows cannot have the same key.

use serde_json::{Value, json};

use super::support::{ENGINES, Engine, TestDb, execution, field, parse, query, run};
use crate::bridge::{BridgeOptions, Bridges, Execution};
use crate::query::operation::Paging;

/// How many rows the views have.
const ROWS: i64 = 40;

/// A view with groups of keys of all sizes, some of them null, and pairs of rows that are alike.
const VIEW: &str = "CREATE TABLE n (id INT NOT NULL PRIMARY KEY, k INT NULL, word VARCHAR(20));
    CREATE VIEW v AS SELECT k, word, id / 2 * 0 + id AS id, k + 0 AS twice FROM n;
    CREATE VIEW alike AS SELECT k, word FROM n;";

/// Puts rows in, in an order that is none.
async fn fill(db: &TestDb) {
    let mut rows: Vec<String> = Vec::new();
    for id in 0..ROWS {
        // 1, 2, 3 … rows of a key; of the last ones it is null.
        let k = (0..).find(|k| (k + 1) * (k + 2) / 2 > id).unwrap();
        let k = if id > 32 {
            "NULL".to_owned()
        } else {
            k.to_string()
        };
        rows.push(format!("({id}, {k}, 'word {}')", id / 3));
    }
    rows.sort_by_key(|row| row.len() * 31 + row.bytes().map(usize::from).sum::<usize>() % 17);
    db.run(&format!("INSERT INTO n VALUES {}", rows.join(", ")))
        .await;
}

fn paged(keys: &[&str]) -> Execution {
    let mut execution = execution();
    execution.paging = Paging {
        keys: keys.iter().map(|&key| key.to_owned()).collect(),
        asked: keys.len(),
        after: None,
    };
    execution
}

fn order(keys: &[&str], dir: &str) -> Value {
    keys.iter()
        .map(|key| json!({"field": key, "dir": dir}))
        .collect()
}

/// All rows of a view, page by page.
async fn pages(db: &TestDb, view: &str, order: &Value, keys: &[&str], limit: u64) -> Vec<Value> {
    let bridges = Bridges::new(BridgeOptions::default());
    let mut execution = paged(keys);
    let mut all = Vec::new();
    loop {
        let options = json!({"orderBy": order, "limit": limit});
        let (batches, outcome) = run(&bridges, &db.source, &query(view, options), &execution)
            .await
            .unwrap();
        let rows = parse(&batches);
        assert_eq!(outcome.rows, rows.len() as u64);
        assert!(all.len() < 10 * ROWS as usize, "the pages never end");
        let is_last = (rows.len() as u64) < limit;
        all.extend(rows);
        if is_last {
            return all;
        }
        execution.paging.after = outcome.last;
    }
}

fn sorted(rows: &[Value]) -> Vec<String> {
    let mut texts: Vec<_> = rows.iter().map(Value::to_string).collect();
    texts.sort();
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_a_view_comes_once_whatever_the_page_cuts_through() {
    for engine in ENGINES {
        let db = TestDb::new(engine, VIEW).await;
        fill(&db).await;
        for view in ["v", "alike"] {
            let whole = sorted(&db.rows(query(view, json!({}))).await);
            assert_eq!(whole.len(), ROWS as usize);
            for (keys, dir) in [
                (&["k"][..], "asc"),
                (&["k"], "desc"),
                (&["k", "word"], "asc"),
                (&["word", "k"], "desc"),
            ] {
                let order = order(keys, dir);
                let in_order = db.rows(query(view, json!({"orderBy": order}))).await;
                for limit in [1, 2, 3, 5, 7, 39, 40, 41] {
                    let rows = pages(&db, view, &order, keys, limit).await;
                    let context = format!("{engine:?} {view} {keys:?} {dir} by {limit}");
                    assert_eq!(sorted(&rows), whole, "{context}");
                    assert_eq!(
                        field(&rows, keys[0]),
                        field(&in_order, keys[0]),
                        "{context}"
                    );
                }
            }
        }
    }
}

/// Pages by offset go through the same rows as pages by cursor.
#[tokio::test(flavor = "multi_thread")]
async fn an_offset_goes_on_where_a_first_page_ended() {
    for engine in ENGINES {
        let db = TestDb::new(engine, VIEW).await;
        fill(&db).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let whole = sorted(&db.rows(query("v", json!({}))).await);
        let mut rows = Vec::new();
        for offset in (0..ROWS).step_by(4) {
            let options = json!({"orderBy": order(&["k"], "asc"), "limit": 4, "offset": offset});
            let operation = query("v", options);
            let page = run(&bridges, &db.source, &operation, &paged(&["k"]))
                .await
                .unwrap();
            rows.extend(parse(&page.0));
        }
        assert_eq!(sorted(&rows), whole, "{engine:?}");
    }
}

/// Rows that come slowly are given before it is known whether the next one shares their place.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_given_early_comes_no_second_time() {
    for (engine, pause) in [
        (Engine::Postgres, "pg_sleep(0.2)::text"),
        (Engine::MySql, "sleep(0.2)"),
    ] {
        let view = format!(
            "CREATE TABLE m (id INT NOT NULL PRIMARY KEY, k INT NOT NULL);
             INSERT INTO m VALUES (1, 1), (2, 2), (3, 2), (4, 2), (5, 3);
             CREATE VIEW slow AS SELECT k, id, concat('', {pause}) AS pause FROM m;"
        );
        let db = TestDb::new(engine, &view).await;
        let order = order(&["k"], "asc");
        let rows = pages(&db, "slow", &order, &["k"], 2).await;
        let mut ids: Vec<_> = field(&rows, "id")
            .iter()
            .filter_map(Value::as_i64)
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3, 4, 5], "{engine:?}");
        assert_eq!(field(&rows, "k"), [1, 2, 2, 2, 3], "{engine:?}");
    }
}

/// Tables of PostgreSQL whose catalogue promises less than it seems to: all rows come, whatever the page.
#[tokio::test(flavor = "multi_thread")]
async fn a_promise_counts_for_the_rows_that_it_is_made_of() {
    let db = TestDb::new(
        Engine::Postgres,
        "CREATE EXTENSION citext; CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION postgres_fdw;
         CREATE TABLE p (id int PRIMARY KEY, v text NOT NULL); CREATE TABLE c () INHERITS (p); ALTER TABLE c ALTER v DROP NOT NULL;
         INSERT INTO p SELECT i, 'p' || i FROM generate_series(1, 5) i; INSERT INTO c SELECT i, nullif('c' || i, 'c4') FROM generate_series(1, 5) i;
         CREATE TABLE ops (v citext NOT NULL, n int); CREATE UNIQUE INDEX ON ops (v text_ops);
         INSERT INTO ops VALUES ('a', 1), ('A', 2), ('b', 3), ('B', 4), ('C', 5);
         CREATE TABLE hs (id int PRIMARY KEY, h ext.hstore); INSERT INTO hs SELECT i, ('a=>' || i % 3)::ext.hstore FROM generate_series(1, 7) i;
         CREATE TABLE named (sha256 text, \"case\" int, n int); INSERT INTO named SELECT i % 3, i, i FROM generate_series(1, 7) i;
         CREATE TABLE far (id int, v text); INSERT INTO far VALUES (1, 'a'), (2, NULL), (3, NULL), (NULL, 'x'), (NULL, 'y');",
    )
    .await;
    let database = db.texts("SELECT current_database()").await.concat();
    let port = db.texts("SHOW port").await.concat();
    db.run(&format!(
        "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{port}', dbname '{database}');
         CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (user '{}');
         CREATE FOREIGN TABLE ft (id int NOT NULL, v text NOT NULL) SERVER s OPTIONS (table_name 'far')",
        db.texts("SELECT current_user").await.concat()
    ))
    .await;
    for (table, keys) in [
        ("p", &["id"][..]),
        ("p", &["v"]),
        ("ops", &["v"]),
        ("hs", &["h", "id"]),
        ("named", &["sha256"]),
        ("named", &["case"]),
        ("ft", &["v"]),
        ("ft", &["id"]),
    ] {
        let whole = sorted(&db.rows(query(table, json!({}))).await);
        for dir in ["asc", "desc"] {
            for limit in [1, 2, 3] {
                let rows = pages(&db, table, &order(keys, dir), keys, limit).await;
                assert_eq!(sorted(&rows), whole, "{table} {keys:?} {dir} by {limit}");
            }
        }
    }
}

/// What is not read does not count, however it changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_changes_by_itself_does_not_matter_unless_it_is_read() {
    let db = TestDb::new(
        Engine::Postgres,
        "CREATE TABLE o (id int, k int); INSERT INTO o SELECT i, i % 2 FROM generate_series(1, 20) i;
         CREATE VIEW v AS SELECT id, k, clock_timestamp() AS seen FROM o",
    )
    .await;
    let bridges = Bridges::new(BridgeOptions::default());
    let mut execution = paged(&["k"]);
    execution.fields = Some(vec![("id".into(), "id".into()), ("k".into(), "k".into())]);
    let mut ids = Vec::new();
    loop {
        let options = json!({"orderBy": order(&["k"], "asc"), "limit": 3});
        let ran = run(&bridges, &db.source, &query("v", options), &execution).await;
        let (batches, outcome) = ran.unwrap();
        let rows = parse(&batches);
        ids.extend(field(&rows, "id").iter().filter_map(Value::as_i64));
        execution.paging.after = outcome.last;
        if rows.len() < 3 {
            break;
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=20).collect::<Vec<_>>());
    // Another selection tells other rows apart.
    let first = json!({"orderBy": order(&["k"], "asc"), "limit": 3});
    let mut execution = paged(&["k"]);
    execution.fields = Some(vec![("id".into(), "id".into())]);
    let ran = run(&bridges, &db.source, &query("v", first.clone()), &execution).await;
    execution.paging.after = ran.unwrap().1.last;
    execution.fields = Some(vec![("k".into(), "k".into())]);
    let refused = run(&bridges, &db.source, &query("v", first), &execution).await;
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("the same `select`"), "{words}");
}

/// A cursor has a length that a request can carry.
#[tokio::test(flavor = "multi_thread")]
async fn values_too_long_for_a_cursor_say_so_on_the_first_page() {
    for engine in ENGINES {
        let kind = match engine {
            Engine::MySql => "LONGTEXT",
            Engine::Postgres | Engine::Sqlite => "TEXT",
        };
        let db = TestDb::new(
            engine,
            &format!("CREATE TABLE t (id INT NOT NULL PRIMARY KEY, v {kind})"),
        )
        .await;
        let long = "x".repeat(50_000);
        db.run(&format!(
            "INSERT INTO t VALUES (1, '{long}'), (2, '{long}')"
        ))
        .await;
        let bridges = Bridges::new(BridgeOptions::default());
        let options = json!({"orderBy": order(&["v", "id"], "asc"), "limit": 1, "select": ["id"]});
        let ran = run(
            &bridges,
            &db.source,
            &query("t", options),
            &paged(&["v", "id"]),
        )
        .await;
        let (_, outcome) = ran.unwrap();
        // Of a text that is so long MySQL is asked for its beginning only.
        let is_short = engine == Engine::MySql;
        assert_eq!(outcome.last.is_some(), is_short, "{engine:?}");
        assert_eq!(outcome.not_pageable.is_none(), is_short, "{engine:?}");
    }
}
