//! What a value of each column type looks like in a row: the table of values, on the real servers. And that
//! a value as it stands in a row finds its row again.

use serde_json::{Value, json};

use super::support::{Engine, TestDb, query};

/// One column type: its declaration, a literal, and the value in a row.
type Case = (&'static str, &'static str, Value);

/// Makes a table with a column for each case, a row with the values and a row of nulls.
async fn check(engine: Engine, prelude: &str, cases: Vec<Case>) {
    let columns: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(i, (ty, ..))| format!("c{i} {ty}"))
        .collect();
    let literals: Vec<_> = cases.iter().map(|(_, literal, _)| *literal).collect();
    let nulls = vec!["NULL"; cases.len()];
    let table = format!(
        "{prelude} CREATE TABLE t (id INT, {}); INSERT INTO t VALUES (1, {}); INSERT INTO t VALUES (2, {});",
        columns.join(", "),
        literals.join(", "),
        nulls.join(", ")
    );
    let db = TestDb::new(engine, &table).await;
    let rows = db.rows(query("t", json!({"orderBy": {"id": "asc"}}))).await;
    for (i, (ty, literal, expected)) in cases.iter().enumerate() {
        assert_eq!(
            &rows[0][format!("c{i}")],
            expected,
            "{engine:?}: {ty} {literal}"
        );
        assert_eq!(rows[1][format!("c{i}")], Value::Null, "{engine:?}: {ty}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_numbers_and_texts() {
    let cases = vec![
        ("smallint", "-32768", json!(-32768)),
        ("integer", "2147483647", json!(2_147_483_647)),
        (
            "bigint",
            "9007199254740991",
            json!(9_007_199_254_740_991_i64),
        ),
        (
            "bigint",
            "-9007199254740991",
            json!(-9_007_199_254_740_991_i64),
        ),
        ("bigint", "9007199254740992", json!("9007199254740992")),
        (
            "bigint",
            "-9223372036854775808",
            json!("-9223372036854775808"),
        ),
        (
            "numeric",
            "12345678901234567890.123456789",
            json!("12345678901234567890.123456789"),
        ),
        ("numeric(10,2)", "-0.50", json!("-0.50")),
        ("numeric", "0", json!("0")),
        ("numeric", "0.00001", json!("0.00001")),
        ("numeric", "1e20", json!("100000000000000000000")),
        ("numeric", "10000.0001", json!("10000.0001")),
        ("numeric", "'NaN'", json!("NaN")),
        ("numeric", "'-Infinity'", json!("-Infinity")),
        ("real", "0.1", json!(0.1)),
        ("double precision", "1.5e300", json!(1.5e300)),
        ("double precision", "'NaN'", json!("NaN")),
        ("real", "'Infinity'", json!("Infinity")),
        ("double precision", "'-Infinity'", json!("-Infinity")),
        ("money", "'1234.5'", json!("1234.50")),
        ("money[]", "'{1.5,NULL}'", json!(["1.50", null])),
        ("boolean", "true", json!(true)),
        ("boolean", "false", json!(false)),
        (
            "text",
            "E'a\"b\\\\c\\n\\u00e9\\U0001F600'",
            json!("a\"b\\c\né😀"),
        ),
        ("varchar(5)", "'abc'", json!("abc")),
        ("char(5)", "'abc'", json!("abc  ")),
        ("name", "'abc'", json!("abc")),
        ("\"char\"", "'x'", json!("x")),
        ("bytea", "'\\x00ff10'", json!("AP8Q")),
        ("bytea", "''", json!("")),
        ("oid", "4294967295", json!(4_294_967_295_u32)),
    ];
    check(Engine::Postgres, "", cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_times() {
    let cases = vec![
        ("date", "'2024-02-29'", json!("2024-02-29")),
        ("date", "'1969-12-31'", json!("1969-12-31")),
        ("date", "'infinity'", json!("infinity")),
        ("date", "'0044-03-15 BC'", json!("-0043-03-15")),
        ("time", "'12:34:56.789'", json!("12:34:56.789")),
        ("time", "'24:00'", json!("24:00:00")),
        ("timetz", "'12:34:56+05:30'", json!("12:34:56+05:30")),
        ("timetz", "'12:34:56-08'", json!("12:34:56-08:00")),
        (
            "timestamp",
            "'2024-01-02 03:04:05.000001'",
            json!("2024-01-02T03:04:05.000001"),
        ),
        (
            "timestamp",
            "'1900-01-01 23:59:59.999999'",
            json!("1900-01-01T23:59:59.999999"),
        ),
        (
            "timestamptz",
            "'2024-01-02 03:04:05+02'",
            json!("2024-01-02T01:04:05Z"),
        ),
        ("timestamptz", "'infinity'", json!("infinity")),
        ("timestamp", "'-infinity'", json!("-infinity")),
        (
            "interval",
            "'1 year 2 months 3 days 04:05:06.7'",
            json!("P1Y2M3DT4H5M6.7S"),
        ),
        ("interval", "'-1 day -00:00:00.5'", json!("P-1DT-0.5S")),
        ("interval", "'0'", json!("PT0S")),
        ("interval", "'-25 months'", json!("P-2Y-1M")),
        ("interval", "'100:00:00'", json!("PT100H")),
    ];
    check(Engine::Postgres, "", cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_structures_and_the_rest() {
    let prelude = "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN price AS numeric(10,2); \
        CREATE DOMAIN tags AS text[]; CREATE TYPE pair AS (a int, b text);";
    let cases = vec![
        ("json", "'{\"a\": [1, null]}'", json!({"a": [1, null]})),
        ("json", "E'{\"a\":\\n 1}'", json!({"a": 1})),
        (
            "jsonb",
            "'{\"a\": 1.50, \"b\": \"x\"}'",
            serde_json::from_str(r#"{"a": 1.50, "b": "x"}"#).unwrap(),
        ),
        ("jsonb", "'null'", Value::Null),
        (
            "uuid",
            "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
            json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ),
        ("inet", "'192.168.0.1'", json!("192.168.0.1")),
        ("inet", "'192.168.0.1/24'", json!("192.168.0.1/24")),
        ("inet", "'::1'", json!("::1")),
        ("cidr", "'10.0.0.0/8'", json!("10.0.0.0/8")),
        ("cidr", "'2001:db8::/32'", json!("2001:db8::/32")),
        ("macaddr", "'08:00:2B:01:02:03'", json!("08:00:2b:01:02:03")),
        (
            "macaddr8",
            "'08:00:2b:01:02:03:04:05'",
            json!("08:00:2b:01:02:03:04:05"),
        ),
        ("bit(3)", "B'101'", json!("101")),
        ("bit varying(20)", "B'1111000011'", json!("1111000011")),
        ("integer[]", "'{1,2,NULL}'", json!([1, 2, null])),
        ("integer[][]", "'{{1,2},{3,4}}'", json!([[1, 2], [3, 4]])),
        (
            "integer[][][]",
            "'{{{1},{2}},{{3},{4}}}'",
            json!([[[1], [2]], [[3], [4]]]),
        ),
        ("text[]", "'{}'", json!([])),
        ("text[]", "'{\"a,b\",\"c\\\"d\"}'", json!(["a,b", "c\"d"])),
        (
            "bigint[]",
            "'{9007199254740993}'",
            json!(["9007199254740993"]),
        ),
        ("numeric[]", "'{1.10}'", json!(["1.10"])),
        (
            "timestamptz[]",
            "'{2024-01-01 00:00:00+00}'",
            json!(["2024-01-01T00:00:00Z"]),
        ),
        ("jsonb[]", "ARRAY['{\"a\":1}'::jsonb]", json!([{"a": 1}])),
        ("mood", "'happy'", json!("happy")),
        ("mood[]", "'{sad,happy}'", json!(["sad", "happy"])),
        ("price", "12.3", json!("12.30")),
        ("tags", "'{x}'", json!(["x"])),
        ("pair", "'(1,\"two words\")'", json!("(1,\"two words\")")),
        ("pair[]", "ARRAY[ROW(1,'x')::pair]", json!(["(1,x)"])),
        ("int4range", "'[1,5)'", json!("[1,5)")),
        (
            "tstzrange",
            "'[2024-01-01 00:00+00,)'",
            json!("[\"2024-01-01 00:00:00+00\",)"),
        ),
        ("int4multirange", "'{[1,2),[5,6)}'", json!("{[1,2),[5,6)}")),
        ("tsvector", "'a fat cat'", json!("'a' 'cat' 'fat'")),
        ("tsquery", "'a & b'", json!("'a' & 'b'")),
        ("point", "'(1,2.5)'", json!("(1,2.5)")),
        ("point[]", "ARRAY['(1,2)'::point]", json!(["(1,2)"])),
        ("box", "'(1,1),(0,0)'", json!("(1,1),(0,0)")),
        ("xml", "'<a/>'", json!("<a/>")),
        ("pg_lsn", "'16/B374D848'", json!("16/B374D848")),
        ("jsonpath", "'$.a'", json!("$.\"a\"")),
        ("regclass", "'pg_class'", json!("pg_class")),
        ("oidvector", "'1 2'", json!("1 2")),
    ];
    check(Engine::Postgres, prelude, cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_values() {
    let cases = vec![
        ("TINYINT", "-128", json!(-128)),
        ("BOOLEAN", "TRUE", json!(1)),
        ("SMALLINT UNSIGNED", "65535", json!(65535)),
        ("MEDIUMINT", "-8388608", json!(-8_388_608)),
        ("INT UNSIGNED", "4294967295", json!(4_294_967_295_u32)),
        (
            "BIGINT",
            "-9007199254740991",
            json!(-9_007_199_254_740_991_i64),
        ),
        ("BIGINT", "9007199254740992", json!("9007199254740992")),
        (
            "BIGINT UNSIGNED",
            "18446744073709551615",
            json!("18446744073709551615"),
        ),
        (
            "DECIMAL(30,10)",
            "12345678901234567890.5",
            json!("12345678901234567890.5000000000"),
        ),
        ("DECIMAL(5,2)", "-0.5", json!("-0.50")),
        ("FLOAT", "0.1", json!(0.1)),
        ("DOUBLE", "1.5e300", json!(1.5e300)),
        ("BIT(1)", "b'1'", json!(1)),
        ("BIT(12)", "b'101000000001'", json!(2561)),
        (
            "BIT(64)",
            "0xFFFFFFFFFFFFFFFF",
            json!("18446744073709551615"),
        ),
        ("YEAR", "2024", json!(2024)),
        ("DATE", "'2024-02-29'", json!("2024-02-29")),
        ("TIME", "'12:34:56'", json!("12:34:56")),
        ("TIME(3)", "'-123:04:05.600'", json!("-123:04:05.6")),
        (
            "DATETIME",
            "'2024-01-02 03:04:05'",
            json!("2024-01-02T03:04:05"),
        ),
        (
            "DATETIME(6)",
            "'2024-01-02 03:04:05.000001'",
            json!("2024-01-02T03:04:05.000001"),
        ),
        ("DATETIME", "'2024-01-02'", json!("2024-01-02T00:00:00")),
        (
            "TIMESTAMP NULL",
            "'2024-01-02 03:04:05'",
            json!("2024-01-02T03:04:05Z"),
        ),
        ("CHAR(5)", "'abc'", json!("abc")),
        ("VARCHAR(20)", "'a\"é😀'", json!("a\"é😀")),
        ("VARCHAR(20) CHARACTER SET latin1", "'é'", json!("é")),
        ("TEXT", "'text'", json!("text")),
        ("LONGTEXT", "'{\"no\": json'", json!("{\"no\": json")),
        ("BINARY(3)", "0x00FF10", json!("AP8Q")),
        ("VARBINARY(3)", "0x00FF", json!("AP8=")),
        ("BLOB", "0x00FF10", json!("AP8Q")),
        ("ENUM('sad','happy')", "'happy'", json!("happy")),
        ("SET('a','b','c')", "'a,c'", json!("a,c")),
        ("JSON", "'{\"a\": [1, null]}'", json!({"a": [1, null]})),
        (
            "POINT",
            "ST_GeomFromText('POINT(1 2.5)')",
            json!("POINT(1 2.5)"),
        ),
        ("INET6", "'::1'", json!("::1")),
        (
            "UUID",
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            json!("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ),
    ];
    check(Engine::MySql, "SET time_zone = '+00:00';", cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_values() {
    let cases = vec![
        (
            "INTEGER",
            "9007199254740991",
            json!(9_007_199_254_740_991_i64),
        ),
        (
            "INTEGER",
            "9223372036854775807",
            json!("9223372036854775807"),
        ),
        ("REAL", "0.1", json!(0.1)),
        ("REAL", "9e999", json!("Infinity")),
        ("TEXT", "'a\"é😀'", json!("a\"é😀")),
        ("", "1.5", json!(1.5)),
        ("", "'x'", json!("x")),
        ("INTEGER", "'not a number'", json!("not a number")),
        ("BOOLEAN", "1", json!(true)),
        ("BOOLEAN", "0", json!(false)),
        ("BOOLEAN", "7", json!(7)),
        ("DATE", "'2024-02-29'", json!("2024-02-29")),
        (
            "DATETIME",
            "'2024-01-02 03:04:05'",
            json!("2024-01-02 03:04:05"),
        ),
        ("JSON", "'{\"a\": [1, null]}'", json!({"a": [1, null]})),
        ("JSON", "'{no json'", json!("{no json")),
        ("DECIMAL(10,2)", "12.5", json!("12.5")),
        ("DECIMAL(10,2)", "12", json!("12")),
        ("NUMERIC", "'12.50'", json!("12.5")),
        ("BLOB", "x'00ff10'", json!("AP8Q")),
        ("TEXT", "x'00ff10'", json!("AP8Q")),
    ];
    check(Engine::Sqlite, "", cases).await;
}

/// Each value of a row, used as a filter on its column, finds the row: keyset paging rests on it.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_row_find_it_again() {
    let postgres = "CREATE TABLE t (a bigint, b numeric, c timestamptz, d bytea, e uuid, f real, g double precision, \
        h date, i interval, j text, k boolean, l inet, m char(4), n int[], o jsonb);
        INSERT INTO t VALUES (9007199254740993, 1.10, '2024-01-02 03:04:05.000001+02', '\\x00ff', \
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 0.1, 0.1, '2024-01-01', '1 day 2 hours', 'it''s', true, '::1', 'x', \
        '{1,2}', '{\"a\": [1]}')";
    let mysql = "SET time_zone = '+00:00';
        CREATE TABLE t (a BIGINT UNSIGNED, b DECIMAL(40,20), c TIMESTAMP(6) NULL, d VARBINARY(9), g DOUBLE, h DATE, \
        i TIME, j VARCHAR(9), k BOOLEAN, l DATETIME, m CHAR(4), n BIT(9), o JSON, p YEAR, q ENUM('x','y'));
        INSERT INTO t VALUES (18446744073709551615, 12345678901234567890.12345678901234567890, \
        '2024-01-02 03:04:05.000001', 0x00FF, 0.1, '2024-01-01', '10:00:00', 'it''s', TRUE, '2024-01-02 03:04:05', 'x', \
        257, '{\"a\": [1]}', 2024, 'y')";
    let sqlite = "CREATE TABLE t (a INTEGER, b DECIMAL(10,2), c DATETIME, d BLOB, g REAL, j TEXT, k BOOLEAN);
        INSERT INTO t VALUES (9223372036854775807, 1.1, '2024-01-02 03:04:05', x'00ff', 0.1, 'it''s', 1)";
    for (engine, setup) in [
        (Engine::Postgres, postgres),
        (Engine::MySql, mysql),
        (Engine::Sqlite, sqlite),
    ] {
        let db = TestDb::new(engine, setup).await;
        let row = db.rows(query("t", json!({}))).await.remove(0);
        for (column, value) in row.as_object().unwrap() {
            // Structures are compared for equality only.
            let mut filters = vec![json!({"$eq": value})];
            if !value.is_object() && !value.is_array() {
                filters.extend([json!({"$in": [value]}), json!({"$gte": value})]);
            }
            for filter in filters {
                let found = db
                    .rows(query("t", json!({"where": {column: filter}})))
                    .await;
                assert_eq!(found.len(), 1, "{engine:?}: {column} {filter}");
            }
        }
    }
}
