//! SQLite's types: every storage class in a column of every affinity.

use super::super::support::{Engine, TestDb, field};
use super::{Seen, Table, bridges, document};

const TYPES: &[&str] = &[
    "",
    "INTEGER",
    "BIGINT",
    "TEXT",
    "VARCHAR(10)",
    "TEXT COLLATE NOCASE",
    "BLOB",
    "REAL",
    "DOUBLE",
    "NUMERIC",
    "DECIMAL(10,2)",
    "BOOLEAN",
    "DATE",
    "DATETIME",
    "JSON",
];

const LITERALS: &[&str] = &[
    "0",
    "1",
    "-7",
    "'1'",
    "2.5",
    "'2.5'",
    "-0.0",
    "9e999",
    "-9e999",
    "1e-20",
    "9007199254740993",
    "'9007199254740993'",
    "-9223372036854775808",
    "9223372036854775807",
    "''",
    "'a'",
    "'A'",
    "'b'",
    "'é'",
    "'É'",
    "'abc'",
    "'AQI='",
    "x''",
    "x'00'",
    "x'ff00'",
    "x'0102'",
    "CAST(x'ff41' AS TEXT)",
    "'2024-05-01'",
    "'2024-05-01 08:00:00'",
    "'2024-05-01T08:00:00Z'",
    "1714550400",
    "'{\"a\": 1.50}'",
    "'[1, 2]'",
    "'null'",
    "'true'",
    "'12345678901234567890.5'",
];

fn setup() -> String {
    let tables = TYPES.iter().enumerate().map(|(n, type_name)| {
        let rows = LITERALS.iter().enumerate().map(|(id, literal)| format!("({id}, {}, {literal})", id % 3));
        let again = LITERALS.iter().step_by(4).enumerate().map(|(id, literal)| format!("({}, {}, {literal})", id + 100, id % 3));
        let rows: Vec<_> = rows.chain(again).collect();
        format!(
            "CREATE TABLE t{n} (id INTEGER PRIMARY KEY, w INT, v {type_name}); INSERT INTO t{n} VALUES {}, (200, 0, NULL), (201, NULL, NULL);",
            rows.join(", ")
        )
    });
    tables.collect()
}

/// The ids in the database's own order.
fn ids(db: &rusqlite::Connection, table: &str, order: &str) -> Vec<i64> {
    let mut statement = db
        .prepare(&format!("SELECT id FROM {table} ORDER BY {order}, id"))
        .unwrap();
    let ids = statement.query_map([], |row| row.get(0)).unwrap();
    ids.map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_pages_and_finds_values_of_every_class_and_affinity() {
    let db = TestDb::new(Engine::Sqlite, &setup()).await;
    let path = db.source.config["path"].as_str().unwrap().to_owned();
    let bridges = bridges();
    let (mut seen, mut faults) = (Vec::new(), Vec::new());
    for (n, type_name) in TYPES.iter().enumerate() {
        let name = format!("t{n}");
        let table = Table {
            db: &db,
            bridges: &bridges,
            name: name.clone(),
            type_name: (*type_name).to_owned(),
        };
        let expected = {
            let file = rusqlite::Connection::open(&path).unwrap();
            [
                (vec![("v", "asc")], ids(&file, &name, "v NULLS LAST")),
                (vec![("v", "desc")], ids(&file, &name, "v DESC NULLS FIRST")),
                (
                    vec![("w", "desc"), ("v", "asc")],
                    ids(&file, &name, "w DESC NULLS FIRST, v NULLS LAST"),
                ),
            ]
        };
        table.check_pages(&expected, &mut faults).await;
        if let Some(shown) = table.check_values(&mut faults).await {
            seen.push(Seen {
                type_name: (*type_name).to_owned(),
                shown,
                order: "yes",
            });
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    document::keep("SQLite", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_place_of_their_own_come_once_each() {
    for (engine, setup) in [
        (
            Engine::Sqlite,
            "CREATE TABLE t (code TEXT PRIMARY KEY, n INT); INSERT INTO t VALUES ('a',1),('b',2),(NULL,3),(NULL,4),(NULL,4);",
        ),
        (
            Engine::Postgres,
            "CREATE TABLE b (code text, n int); INSERT INTO b VALUES ('a',1),('b',2),(NULL,3),(NULL,4),(NULL,4); CREATE VIEW t AS SELECT * FROM b",
        ),
        (
            Engine::MySql,
            "CREATE TABLE b (code varchar(9), n int); INSERT INTO b VALUES ('a',1),('b',2),(NULL,3),(NULL,4),(NULL,4); CREATE VIEW t AS SELECT * FROM b",
        ),
    ] {
        let db = TestDb::new(engine, setup).await;
        let bridges = bridges();
        for size in 1..=5_u64 {
            let operation = super::query(
                "t",
                serde_json::json!({"orderBy": {"code": "asc"}, "limit": size, "select": ["n"]}),
            );
            let mut execution = super::execution();
            execution.paging.keys = vec!["code".into()];
            let mut seen = Vec::new();
            loop {
                let (batches, outcome) = super::run(&bridges, &db.source, &operation, &execution)
                    .await
                    .unwrap();
                let page = field(&super::parse(&batches), "n");
                assert!(
                    outcome.warnings[0].contains("primary key (code)"),
                    "{engine:?}"
                );
                seen.extend(page.iter().filter_map(serde_json::Value::as_i64));
                if (page.len() as u64) < size {
                    break;
                }
                execution.paging.after = outcome.last;
            }
            seen.sort_unstable();
            assert_eq!(seen, [1, 2, 3, 4, 4], "{engine:?} in pages of {size}");
        }
    }
}
