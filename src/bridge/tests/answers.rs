//! Rows that a filter finds, case by case: what databases do with values that are not quite of a column's type.

use serde_json::{Value, json};

use super::support::{Engine, TestDb, execution, field, parse, query, run};
use crate::bridge::{BridgeOptions, Bridges};
use crate::query::lens::FieldType;

struct Asked {
    bridges: Bridges,
    db: TestDb,
    kinds: Vec<(&'static str, FieldType)>,
}

impl Asked {
    /// A database with the table or view `t`, whose columns are `id` and others.
    async fn of(engine: Engine, setup: &str) -> Self {
        Self {
            bridges: Bridges::new(BridgeOptions::default()),
            db: TestDb::new(engine, setup).await,
            kinds: Vec::new(),
        }
    }

    fn with(mut self, column: &'static str, kind: FieldType) -> Self {
        self.kinds.push((column, kind));
        self
    }

    async fn try_ids(&self, filter: &Value) -> Result<Vec<i64>, String> {
        let mut execution = execution();
        execution.types = self
            .kinds
            .iter()
            .map(|(column, kind)| ((*column).to_owned(), *kind))
            .collect();
        let options = json!({"where": filter, "select": ["id"], "orderBy": [{"field": "id"}]});
        let ran = run(
            &self.bridges,
            &self.db.source,
            &query("t", options),
            &execution,
        )
        .await;
        let (batches, _) = ran.map_err(|error| format!("{}: {error}", error.code()))?;
        Ok(field(&parse(&batches), "id")
            .iter()
            .filter_map(Value::as_i64)
            .collect())
    }

    async fn finds(&self, filter: Value, expected: &[i64]) {
        let found = self.try_ids(&filter).await;
        let shown: String = filter.to_string().chars().take(200).collect();
        assert_eq!(
            found.as_deref(),
            Ok(expected),
            "{:?} {shown}",
            self.db.engine
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_postgres_is_found_whatever_its_strings_look_like() {
    let table = r#"CREATE TABLE t (id int PRIMARY KEY, d json);
        INSERT INTO t VALUES (1, '{"sha":"ab1e204980cd","k":1}'), (2, '{"k":1,"re":"[\\ud800-\\udfff]"}'), (3, '{"k":1}'),
            (4, '{"k":1,"nul":"\u0000"}'), (5, '{"k":1,"n":1e9999999}'), (6, '{"k":1,"half":"\ud800"}'), (7, '{"k":1,"x":1e-20000}'),
            (8, '{"k":1,"s":"\ud83d\\\ude00"}'), (9, '{"k":1,"x":1E+00000000000005}'), (10, ('{"k":1,"x":' || repeat('9', 140000) || '}')::json)"#;
    let asked = Asked::of(Engine::Postgres, table).await;
    asked
        .finds(json!({"d": {"$contains": {"k": 1}}}), &[1, 2, 3, 9])
        .await;
    asked
        .finds(json!({"d": {"$eq": {"sha": "ab1e204980cd", "k": 1}}}), &[1])
        .await;
    asked
        .finds(
            json!({"d": {"$ne": {"k": 1}}}),
            &[1, 2, 4, 5, 6, 7, 8, 9, 10],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dates_of_postgres_are_compared_as_days_to_both_ends_of_time() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, d date, t timestamp);
        INSERT INTO t VALUES (1, '4714-11-24 BC', '4714-11-24 BC'), (2, '2024-01-01', '2024-01-01'), (3, '5874897-12-31', '294276-12-31'),
            (4, 'infinity', 'infinity'), (5, '-infinity', '-infinity')";
    let asked = Asked::of(Engine::Postgres, table).await;
    for column in ["d", "t"] {
        asked
            .finds(json!({column: {"$eq": "-4713-11-24"}}), &[1])
            .await;
        asked
            .finds(json!({column: {"$lt": "-4713-11-23"}}), &[5])
            .await;
        asked
            .finds(json!({column: {"$gt": "-9999-01-01"}}), &[1, 2, 3, 4])
            .await;
        asked
            .finds(json!({column: {"$lt": "6000000-01-01"}}), &[1, 2, 3, 5])
            .await;
        asked
            .finds(json!({column: {"$gte": "6000000-01-01"}}), &[4])
            .await;
    }
    asked
        .finds(json!({"d": {"$gt": "2023-12-31T12:00:00"}}), &[2, 3, 4])
        .await;
    asked
        .finds(json!({"d": {"$lte": "2024-01-01T12:00:00"}}), &[1, 2, 5])
        .await;
    asked
        .finds(json!({"d": {"$gte": "2024-01-01T00:00:00Z"}}), &[2, 3, 4])
        .await;
    asked
        .finds(json!({"d": {"$eq": "2024-01-01T12:00:00"}}), &[])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn elements_of_arrays_are_of_their_type() {
    let table = r#"CREATE TABLE t (id int PRIMARY KEY, s text[], b bool[], n int[], m timestamp[], d date[], x box[]);
        INSERT INTO t VALUES (1, '{5,a}', '{t}', '{1,2}', '{2024-05-01 00:30}', '{0044-03-15 BC}', '{(1,1),(0,0);(2,2),(0,0)}'),
            (2, '{b}', '{f}', '{3}', '{2024-04-30 22:30}', '{2024-01-01}', '{(1,1),(0,0)}')"#;
    let asked = Asked::of(Engine::Postgres, table).await;
    asked.finds(json!({"s": {"$contains": "5"}}), &[1]).await;
    asked
        .finds(
            json!({"m": {"$contains": ["2024-05-01T00:30:00+02:00"]}}),
            &[2],
        )
        .await;
    asked
        .finds(json!({"d": {"$eq": ["-0043-03-15"]}}), &[1])
        .await;
    asked.finds(json!({"n": {"$contains": [1.0]}}), &[1]).await;
    asked
        .finds(json!({"x": {"$eq": ["(1,1),(0,0)", "(2,2),(0,0)"]}}), &[1])
        .await;
    for wrong in [
        json!({"s": {"$contains": [5]}}),
        json!({"b": {"$contains": ["yes"]}}),
        json!({"n": {"$contains": [1.5]}}),
        json!({"n": {"$contains": [99_999_999_999_i64]}}),
    ] {
        let error = asked.try_ids(&wrong).await.unwrap_err();
        assert!(error.starts_with("invalid_request: "), "{wrong}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_bytes_booleans_and_composites_of_postgres_are_not_cut_or_guessed() {
    let table = "CREATE TYPE pair AS (a int, b text);
        CREATE TABLE t (id int PRIMARY KEY, n name, c \"char\", b int, p pair);
        INSERT INTO t VALUES (1, repeat('x', 63), 'a', 1, '(1,x)'), (2, 'y', 'b', 0, '(,)'), (3, NULL, NULL, NULL, NULL)";
    let asked = Asked::of(Engine::Postgres, table).await;
    asked.finds(json!({"n": "x".repeat(63)}), &[1]).await;
    asked
        .finds(json!({"n": {"$in": ["x".repeat(70), "y"]}}), &[2])
        .await;
    asked
        .finds(json!({"n": {"$ne": "x".repeat(70)}}), &[1, 2])
        .await;
    asked.finds(json!({"c": "a"}), &[1]).await;
    asked.finds(json!({"c": "abc"}), &[]).await;
    asked.finds(json!({"b": true}), &[1]).await;
    asked.finds(json!({"p": null}), &[3]).await;
    asked.finds(json!({"p": {"$exists": true}}), &[1, 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_an_extension_are_compared_by_their_own_operators() {
    let table =
        "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext;
        CREATE TABLE t (id int PRIMARY KEY, v ext.citext, h ext.hstore);
        INSERT INTO t VALUES (1, 'a', 'a=>1'), (2, 'B', 'b=>2'), (3, 'A', 'c=>3')";
    let asked = Asked::of(Engine::Postgres, table).await;
    asked.finds(json!({"v": "a"}), &[1, 3]).await;
    asked.finds(json!({"v": {"$ne": "a"}}), &[2]).await;
    asked
        .finds(json!({"v": {"$in": ["A", "x"]}}), &[1, 3])
        .await;
    asked.finds(json!({"v": {"$nin": ["A", "x"]}}), &[2]).await;
    asked.finds(json!({"v": {"$like": "a%"}}), &[1]).await;
    asked.finds(json!({"v": {"$ilike": "a%"}}), &[1, 3]).await;
    asked.finds(json!({"h": "\"b\"=>\"2\""}), &[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_mysql_are_exact_at_every_length() {
    let table = "CREATE TABLE t (id INT PRIMARY KEY, v DECIMAL(65,0), y YEAR);
        INSERT INTO t VALUES (1, 7, 1970), (2, 1000000000000000000000000000000000000000, 2001), (3, NULL, 0)";
    let asked = Asked::of(Engine::MySql, table).await;
    let fine = "1000000000000000000000000000000000000000.000000000000000000000000000001";
    asked.finds(json!({"v": {"$gt": fine}}), &[]).await;
    asked.finds(json!({"v": {"$lt": fine}}), &[1, 2]).await;
    asked.finds(json!({"v": {"$lt": "500000000000000000000000000000000000000000000000000000000000.0000000001"}}), &[1, 2]).await;
    let mut many: Vec<_> = (100..6_100).map(|n| json!(n)).collect();
    asked
        .finds(json!({"v": {"$nin": many.clone()}}), &[1, 2])
        .await;
    many.push(json!("1000000000000000000000000000000000000000"));
    asked.finds(json!({"v": {"$in": many.clone()}}), &[2]).await;
    asked.finds(json!({"v": {"$nin": many}}), &[1]).await;
    let fractions: Vec<_> = (0..6_000).map(|n| json!(format!("{n}.5"))).collect();
    asked
        .finds(json!({"v": {"$nin": fractions}}), &[1, 2])
        .await;
    asked.finds(json!({"y": 70}), &[]).await;
    asked.finds(json!({"y": {"$lt": 99}}), &[3]).await;
    asked
        .finds(json!({"y": {"$in": [70, 1, 2001]}}), &[2])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_of_mysql_are_ordered_by_their_own_collation() {
    let table = "CREATE TABLE t (id INT PRIMARY KEY, v VARCHAR(9) CHARACTER SET latin1 COLLATE latin1_swedish_ci, w VARCHAR(9) CHARACTER SET swe7);
        INSERT INTO t VALUES (1, 'b', 'b'), (2, 'ö', 'c'), (3, 'å', 'd'), (4, 'z', 'e')";
    let asked = Asked::of(Engine::MySql, table).await;
    asked.finds(json!({"v": {"$gt": "å"}}), &[2]).await;
    asked.finds(json!({"v": {"$lt": "å"}}), &[1, 4]).await;
    asked
        .finds(json!({"v": {"$lt": "日"}}), &[1, 2, 3, 4])
        .await;
    asked.finds(json!({"w": "{["}), &[]).await;
    asked.finds(json!({"w": "b"}), &[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_mysql_may_be_longer_than_a_statement_has_places() {
    let table = "CREATE TABLE t (id INT PRIMARY KEY, d DATE, f DOUBLE, b VARBINARY(9), c TIME(6), l VARCHAR(9) CHARACTER SET latin1, e ENUM('a\\\\b', 'l\\nb'));
        INSERT INTO t VALUES (1, '2024-01-01', 1.5, 'ab', '838:59:59.999999', 'test', 'a\\\\b'), (2, '2023-01-01', 2.5, 'cd', '01:00:00', 'x', 'l\\nb')";
    let asked = Asked::of(Engine::MySql, table).await;
    let many = |one: Value, other: &dyn Fn(usize) -> Value| -> Value {
        std::iter::once(one).chain((0..70_000).map(other)).collect()
    };
    asked
        .finds(
            json!({"d": {"$in": many(json!("2024-01-01"), &|_| json!("1999-01-01"))}}),
            &[1],
        )
        .await;
    asked
        .finds(
            json!({"f": {"$in": many(json!(2.5), &|n| json!(n as f64 + 0.25))}}),
            &[2],
        )
        .await;
    asked
        .finds(
            json!({"b": {"$nin": many(json!("YWI="), &|_| json!("eHg="))}}),
            &[2],
        )
        .await;
    asked
        .finds(
            json!({"l": {"$in": many(json!("test"), &|_| json!("😀"))}}),
            &[1],
        )
        .await;
    asked
        .finds(
            json!({"c": {"$in": many(json!("01:00:00"), &|_| json!("900:00:00"))}}),
            &[2],
        )
        .await;
    asked.finds(json!({"c": {"$eq": "900:00:00"}}), &[]).await;
    asked
        .finds(json!({"c": {"$lt": "900:00:00"}}), &[1, 2])
        .await;
    asked.finds(json!({"e": "a\\b"}), &[1]).await;
    asked.finds(json!({"e": {"$in": ["l\nb"]}}), &[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_change_places_are_not_confused() {
    let table = "CREATE TABLE t (id INT PRIMARY KEY, s SET('x','y'), e ENUM('a','b','c'));
        INSERT INTO t VALUES (1, 'x', 'a'), (2, 'y', 'b')";
    let asked = Asked::of(Engine::MySql, table).await;
    asked.finds(json!({"s": "x"}), &[1]).await;
    asked.finds(json!({"e": {"$gt": "a"}}), &[2]).await;
    asked
        .db
        .run("ALTER TABLE t MODIFY s SET('y','x'), MODIFY e ENUM('c','b','a')")
        .await;
    asked.finds(json!({"s": "x"}), &[1]).await;
    asked.finds(json!({"e": {"$gt": "a"}}), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_in_a_text_is_json_where_the_lens_says_so() {
    for (engine, setup) in [
        (
            Engine::MySql,
            r#"CREATE TABLE n (id INT PRIMARY KEY, j JSON); INSERT INTO n VALUES (1, '{"a":1}'), (2, '[1]'); CREATE VIEW t AS SELECT * FROM n"#,
        ),
        (
            Engine::Sqlite,
            r#"CREATE TABLE t (id INTEGER PRIMARY KEY, j TEXT); INSERT INTO t VALUES (1, '{"a":1}'), (2, '[1]')"#,
        ),
    ] {
        let asked = Asked::of(engine, setup).await.with("j", FieldType::Json);
        asked.finds(json!({"j": {"$contains": 1}}), &[2]).await;
        asked
            .finds(json!({"j": {"$contains": {"a": 1}}}), &[1])
            .await;
        asked
            .finds(json!({"$not": {"j": {"$contains": 1}}}), &[1])
            .await;
        asked.finds(json!({"j": {"$eq": [1]}}), &[2]).await;
        let mut execution = execution();
        execution.fields = Some(vec![("j".into(), "j".into())]);
        execution.types.insert("j".into(), FieldType::Json);
        let options = json!({"orderBy": [{"field": "id"}]});
        let ran = run(
            &asked.bridges,
            &asked.db.source,
            &query("t", options),
            &execution,
        )
        .await;
        assert_eq!(
            field(&parse(&ran.unwrap().0), "j"),
            [json!({"a": 1}), json!([1])],
            "{engine:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_sqlite_without_a_declared_type_are_what_the_lens_says() {
    let setup = "CREATE TABLE o (id INTEGER PRIMARY KEY, q INTEGER, p REAL, d, code TEXT);
        INSERT INTO o VALUES (1, 3, 0.5, '2024-01-02 10:00:00', 'test'), (2, 9007199254740993, 1, 'unknown', 'b'), (3, 2, 1, 1700000000, 'c');
        CREATE VIEW t AS SELECT id, q + 0 AS n, q * p AS total, d, code FROM o";
    let asked = Asked::of(Engine::Sqlite, setup)
        .await
        .with("n", FieldType::Number)
        .with("total", FieldType::Decimal)
        .with("d", FieldType::Date);
    asked.finds(json!({"total": "1.5"}), &[1]).await;
    asked.finds(json!({"total": {"$lt": "1"}}), &[]).await;
    asked
        .finds(json!({"n": {"$gt": "9007199254740992"}}), &[2])
        .await;
    asked
        .finds(json!({"n": {"$in": ["3", "2"]}}), &[1, 3])
        .await;
    asked.finds(json!({"d": {"$lt": "2030-01-01"}}), &[1]).await;
    asked.finds(json!({"d": {"$gt": "2000-01-01"}}), &[1]).await;
    asked
        .finds(json!({"d": {"$ne": "2024-01-02T10:00:00"}}), &[2, 3])
        .await;
    let many: Value = std::iter::once(json!("test"))
        .chain((0..250).map(|n| json!(format!("c{n}!"))))
        .collect();
    asked.finds(json!({"code": {"$in": many}}), &[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_in_json_of_mysql_are_the_same_however_they_are_written() {
    let table = r#"CREATE TABLE t (id INT PRIMARY KEY, j JSON);
        INSERT INTO t VALUES (1, '["\\u00e9"]'), (2, '["é"]'), (3, '["\\u00E9"]'), (4, '["e"]'), (5, NULL), (6, '{"a":"\\ud83d\\ude00"}')"#;
    let asked = Asked::of(Engine::MySql, table).await;
    asked.finds(json!({"j": {"$eq": ["é"]}}), &[1, 2, 3]).await;
    asked.finds(json!({"j": {"$ne": ["é"]}}), &[4, 6]).await;
    asked
        .finds(json!({"j": {"$contains": "é"}}), &[1, 2, 3])
        .await;
    asked
        .finds(json!({"j": {"$contains": {"a": "😀"}}}), &[6])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_postgres_are_compared_beyond_all_that_their_types_hold() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, n numeric, x xid8, o oid);
        INSERT INTO t VALUES (1, 'Infinity', '5', 4294967295), (2, 'NaN', '18446744073709551615', 1), (3, 1, '1', 1), (4, '-Infinity', '7', 2)";
    let asked = Asked::of(Engine::Postgres, table).await;
    asked
        .finds(json!({"n": {"$gt": "1e131072"}}), &[1, 2])
        .await;
    asked
        .finds(json!({"n": {"$lte": "1e131072"}}), &[3, 4])
        .await;
    asked
        .finds(json!({"n": {"$gt": "-1e131072"}}), &[1, 2, 3])
        .await;
    asked.finds(json!({"n": {"$lte": "-1e131072"}}), &[4]).await;
    asked.finds(json!({"x": {"$gt": "1e1"}}), &[2]).await;
    asked.finds(json!({"o": 4_294_967_295_u32}), &[1]).await;
    for wrong in [
        json!({"x": "-1"}),
        json!({"o": -1}),
        json!({"o": 4_294_967_296_u64}),
        json!({"x": "abc"}),
    ] {
        let error = asked.try_ids(&wrong).await.unwrap_err();
        assert!(error.starts_with("invalid_request: "), "{wrong}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_type_of_postgres_cannot_read_is_the_callers() {
    let table = "CREATE EXTENSION hstore; CREATE TABLE t (id int PRIMARY KEY, h hstore, u uuid[]);
        INSERT INTO t VALUES (1, 'a=>1', '{}')";
    let asked = Asked::of(Engine::Postgres, table).await;
    for wrong in [
        json!({"h": "a=b"}),
        json!({"u": {"$contains": "zz"}}),
        json!({"u": {"$contains": ["zz"]}}),
    ] {
        let error = asked.try_ids(&wrong).await.unwrap_err();
        assert!(error.starts_with("invalid_request: "), "{wrong}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_sqlite_is_what_rows_show_whatever_is_declared() {
    let setup = r#"CREATE TABLE t (id INTEGER PRIMARY KEY, j);
        INSERT INTO t VALUES (1, 'true'), (2, 1), (3, '5'), (4, 5), (5, '"x"'), (6, 'x'), (7, 1.5), (8, '1.50')"#;
    let asked = Asked::of(Engine::Sqlite, setup)
        .await
        .with("j", FieldType::Json);
    asked.finds(json!({"j": true}), &[1]).await;
    asked.finds(json!({"j": 5}), &[3, 4]).await;
    asked.finds(json!({"j": "x"}), &[5, 6]).await;
    asked
        .finds(json!({"j": {"$in": [1.5, 5]}}), &[3, 4, 7, 8])
        .await;
    asked
        .finds(json!({"j": {"$ne": 5}}), &[1, 2, 5, 6, 7, 8])
        .await;
}
