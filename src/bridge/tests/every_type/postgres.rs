//! PostgreSQL's types, from its catalogue.

use super::super::support::{Engine, TestDb};
use super::{Seen, Table, bridges, document};
use crate::bridge::BridgeError;

/// Texts of all sorts: each type takes those that it can read.
const LITERALS: &[&str] = &[
    "",
    "0",
    "1",
    "-1",
    "2",
    "42",
    "-32768",
    "32767",
    "2147483647",
    "-2147483648",
    "9223372036854775807",
    "-9223372036854775808",
    "9007199254740993",
    "0.1",
    "-0",
    "1.50",
    "1.5",
    "1e-20",
    "16777217",
    "3.4028235e38",
    "1.7976931348623157e308",
    "123456789012345678901234567890.123456789",
    "NaN",
    "Infinity",
    "-Infinity",
    "t",
    "f",
    "a",
    "b",
    "A",
    "B",
    "é",
    "É",
    "ab",
    "a'b\"c\\d",
    "\\x",
    "\\x00",
    "\\xff00",
    "\\x41",
    "2024-05-01",
    "0044-03-15 BC",
    "infinity",
    "-infinity",
    "2024-05-01 12:30:15.25",
    "2024-05-01 12:30:15.25+02",
    "294276-12-31 23:59:59.999999",
    "10:30:00",
    "24:00:00",
    "10:30:00+02",
    "10:30:00-11:30",
    "1 day",
    "1 mon",
    "30 days",
    "-1 year 2 days 03:04:05.6",
    "00000000-0000-0000-0000-000000000001",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "{}",
    "{\"a\": 1.50}",
    "[1, 2]",
    "\"x\"",
    "null",
    "<a>1</a>",
    "127.0.0.1",
    "10.0.0.0/8",
    "::1",
    "192.168.1.0/24",
    "08:00:2b:01:02:03",
    "08:00:2b:01:02:03:04:05",
    "101",
    "B101",
    "1010",
    "(1,2)",
    "(3,4)",
    "[(1,2),(3,4)]",
    "((1,2),(3,4))",
    "<(1,2),3>",
    "{1,2,3}",
    "[1,5)",
    "(,)",
    "empty",
    "[2024-01-01,2024-02-01)",
    "{[1,5),[7,9)}",
    "{[2024-01-01,2024-02-01)}",
    "0/16B3748",
    "16/B374D848",
    "(0,1)",
    "(1,2)",
    "10:20:10,14,15",
    "fat cat",
    "fat & rat",
    "$.a",
    "$.b[*]",
    "1 2 3",
    "pg_class",
    "pg_type",
    "integer",
    "text",
    "postgres",
    "simple",
    "english",
    "abs",
    "+",
    "C",
];

/// Fills a table with what a type can read; answers with how many rows.
fn filling(table: &str, type_name: &str) -> String {
    let literals: Vec<_> = LITERALS
        .iter()
        .map(|text| format!("'{}'", text.replace('\'', "''")))
        .collect();
    let array = [
        "{}",
        "{NULL}",
        "{{1,2},{3,4}}",
        "{a,b}",
        "{1}",
        "{1,NULL}",
        "{2024-05-01}",
        "{t,f}",
        "{\"[1,5)\"}",
        "{\"(1,2)\"}",
        "{127.0.0.1}",
        "{10:30:00}",
        "{00000000-0000-0000-0000-000000000001}",
        "{\"{\\\"a\\\": 1}\"}",
    ];
    let array: Vec<_> = array.iter().map(|text| format!("'{text}'")).collect();
    format!(
        "CREATE TABLE {table} (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, w int, v {type_name}); \
         DO $$ DECLARE lit text; n int := 0; BEGIN \
           FOREACH lit IN ARRAY ARRAY[{}, {}] LOOP BEGIN \
             EXECUTE format('INSERT INTO {table} (w, v) VALUES (%s, %L::{type_name})', n % 3, lit); n := n + 1; EXIT WHEN n > 13; \
           EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$; \
         INSERT INTO {table} (w, v) SELECT w, v FROM {table} WHERE id % 4 = 1; INSERT INTO {table} (w, v) VALUES (0, NULL), (1, NULL), (NULL, NULL);",
        literals.join(", "),
        array.join(", "),
    )
}

/// The ids in the database's own order, or nothing if it has none.
async fn ids(db: &TestDb, table: &str, order: &str) -> Vec<i64> {
    let sql = format!("SELECT id FROM {table} ORDER BY {order}, id");
    let ids = db.texts(&sql).await;
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_pages_and_finds_values_of_every_type() {
    let db = TestDb::new(
        Engine::Postgres,
        "CREATE TYPE mood AS ENUM ('z', 'a', 'B', 'ab'); CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
         CREATE DOMAIN grade AS mood; CREATE TYPE pair AS (x int, y text); CREATE TYPE spot AS (p point); \
         CREATE SCHEMA \"my schema\"; CREATE TYPE \"my schema\".\"odd type\" AS ENUM ('1', 'a'); \
         CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         CREATE DOMAIN anytext AS text COLLATE anycase;",
    )
    .await;
    let types = db
        .texts(
            "SELECT format_type(t.oid, -1) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace \
             WHERE (n.nspname IN ('pg_catalog', 'public', 'my schema') AND t.typtype IN ('b', 'e', 'd', 'r', 'm') \
               OR t.typname IN ('pair', 'spot')) AND t.typname NOT LIKE 'pg\\_%stat%' AND t.typrelid IN (SELECT 0 UNION SELECT oid FROM pg_class WHERE relkind = 'c') AND t.typcategory <> 'P' \
               AND t.typname NOT IN ('pg_node_tree', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list', 'gtsvector', '_gtsvector') \
               AND NOT EXISTS (SELECT FROM pg_type e WHERE e.oid = t.typelem AND (e.typrelid <> 0 OR e.typtype = 'p') AND t.typcategory = 'A') ORDER BY t.oid",
        )
        .await;
    assert!(types.len() > 120, "{}", types.len());
    let bridges = bridges();
    let (mut seen, mut faults) = (Vec::new(), Vec::new());
    for (n, type_name) in types.into_iter().enumerate() {
        let name = format!("t{n}");
        db.run(&filling(&name, &type_name)).await;
        let table = Table {
            db: &db,
            bridges: &bridges,
            name: name.clone(),
            type_name: type_name.clone(),
        };
        let order = match table.pages(&[("v", "asc")], 100).await {
            Err(BridgeError::Invalid { path, .. }) => {
                assert_eq!(path, "orderBy", "{type_name}");
                let sql = format!(
                    "DO $$ BEGIN PERFORM v FROM {name} ORDER BY v; RAISE 'it has an order'; EXCEPTION WHEN undefined_function THEN NULL; END $$"
                );
                db.run(&sql).await;
                "none"
            }
            Err(error) if error.to_string().contains("have no next page") => "first page only",
            Err(error) => {
                faults.push(format!("{type_name}: {error}"));
                continue;
            }
            Ok(_) => {
                table
                    .check_pages(
                        &[
                            (vec![("v", "asc")], ids(&db, &name, "v").await),
                            (vec![("v", "desc")], ids(&db, &name, "v DESC").await),
                            (
                                vec![("w", "desc"), ("v", "asc")],
                                ids(&db, &name, "w DESC, v").await,
                            ),
                        ],
                        &mut faults,
                    )
                    .await;
                "yes"
            }
        };
        if let Some(shown) = table.check_values(&mut faults).await {
            seen.push(Seen {
                type_name,
                shown,
                order,
            });
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    document::keep("PostgreSQL", &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_lacks_a_character_says_that_nothing_has_it() {
    use serde_json::json;

    use super::super::support::{field, query};

    let db = TestDb::new(Engine::Postgres, "").await;
    let url = db.source.config["url"].as_str().unwrap().to_owned();
    let latin = format!("{}_latin", url.rsplit('/').next().unwrap());
    db.run(&format!(
        "CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    ))
    .await;
    let mut source = db.source.clone();
    source
        .config
        .insert("url".into(), format!("{url}_latin").into());
    source.id = crate::ids::SourceId::new();
    {
        let (client, connection) =
            tokio_postgres::connect(&format!("{url}_latin"), tokio_postgres::NoTls)
                .await
                .unwrap();
        tokio::spawn(connection);
        client
            .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'Kaffee'), (2, 'é'), (3, NULL)")
            .await
            .unwrap();
    }
    let bridges = bridges();
    for (filter, expected) in [
        (json!({"v": "Привет"}), vec![]),
        (json!({"v": {"$ne": "Привет"}}), vec![1, 2]),
        (json!({"v": {"$in": ["Привет", "é"]}}), vec![2]),
        (json!({"v": {"$nin": ["🍔", "é"]}}), vec![1]),
        (json!({"$not": {"v": {"$contains": "при"}}}), vec![1, 2]),
        (json!({"v": {"$contains": "KAFF"}}), vec![1]),
        (json!({"v": {"$like": "é"}}), vec![2]),
    ] {
        let options = json!({"where": filter, "orderBy": {"id": "asc"}});
        let answer = super::run(
            &bridges,
            &source,
            &query("t", options.clone()),
            &super::execution(),
        )
        .await;
        let (batches, _) = answer.unwrap_or_else(|error| panic!("{options}: {error}"));
        assert_eq!(field(&super::parse(&batches), "id"), expected, "{options}");
    }
    drop(bridges);
    db.run(&format!("DROP DATABASE {latin} WITH (FORCE)")).await;
}
