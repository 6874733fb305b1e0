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
