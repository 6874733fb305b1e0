//! MySQL's and MariaDB's types.

use super::super::support::{Engine, TestDb};
use super::{Seen, Table, bridges, document};

/// Types that every server has, and those of MariaDB's own.
const TYPES: &[&str] = &[
    "TINYINT",
    "TINYINT UNSIGNED",
    "TINYINT(1)",
    "SMALLINT",
    "SMALLINT UNSIGNED",
    "MEDIUMINT",
    "MEDIUMINT UNSIGNED",
    "INT",
    "INT UNSIGNED",
    "INT ZEROFILL",
    "BIGINT",
    "BIGINT UNSIGNED",
    "DECIMAL(5,2)",
    "DECIMAL(36,18)",
    "DECIMAL(65,30)",
    "DECIMAL(10,0) UNSIGNED",
    "FLOAT",
    "FLOAT(7,3)",
    "DOUBLE",
    "DOUBLE(10,2)",
    "BIT(1)",
    "BIT(8)",
    "BIT(64)",
    "DATE",
    "DATETIME",
    "DATETIME(6)",
    "TIMESTAMP NULL",
    "TIMESTAMP(6) NULL",
    "TIME",
    "TIME(6)",
    "YEAR",
    "CHAR(10)",
    "CHAR(10) CHARACTER SET latin1",
    "VARCHAR(40)",
    "VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
    "VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "VARCHAR(40) CHARACTER SET utf8mb3",
    "VARCHAR(40) CHARACTER SET latin1 COLLATE latin1_swedish_ci",
    "VARCHAR(40) CHARACTER SET ucs2",
    "VARCHAR(40) CHARACTER SET ascii",
    "VARCHAR(40) CHARACTER SET cp1251",
    "BINARY(4)",
    "VARBINARY(40)",
    "TINYBLOB",
    "BLOB",
    "MEDIUMBLOB",
    "LONGBLOB",
    "TINYTEXT",
    "TEXT",
    "MEDIUMTEXT",
    "LONGTEXT",
    "ENUM('z','m','a','')",
    "ENUM('1','0','10') CHARACTER SET latin1",
    "SET('z','m','a')",
    "JSON",
    "GEOMETRY",
    "POINT",
    "POLYGON",
    "UUID",
    "INET4",
    "INET6",
];

const LITERALS: &[&str] = &[
    "0",
    "1",
    "-1",
    "5",
    "127",
    "-128",
    "255",
    "32767",
    "65535",
    "2147483647",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "-9223372036854775808",
    "0.1",
    "0.2",
    "0.3",
    "1e-20",
    "16777217",
    "3.4028234e38",
    "123456789012345678.000000000000000001",
    "123456789012345678.000000000000000002",
    "99999999999999999999999999999999999.9",
    "'2024-05-01'",
    "'0000-00-00'",
    "'2024-00-00'",
    "'9999-12-31'",
    "'2024-05-01 12:30:15.25'",
    "'0000-00-00 00:00:00'",
    "'1970-01-01 00:00:01'",
    "'10:30:00'",
    "'-838:59:59'",
    "'838:59:59.5'",
    "'00:00:00'",
    "1901",
    "2155",
    "'0000'",
    "''",
    "'a'",
    "'A'",
    "'b'",
    "'é'",
    "'e'",
    "'E '",
    "'a '",
    "'Привет'",
    "'🍔'",
    "'ß'",
    "'ss'",
    "'a''b\\\\c'",
    "x'00'",
    "x'ff00'",
    "x'41'",
    "'z'",
    "'m'",
    "'z,a'",
    "'m,z'",
    "'10'",
    "'{\"a\": 1.50}'",
    "'[1,2]'",
    "'\"x\"'",
    "'null'",
    "ST_GeomFromText('POINT(1 2)')",
    "ST_GeomFromText('POINT(3 4)')",
    "ST_GeomFromText('POLYGON((0 0,1 0,1 1,0 0))')",
    "'00000000-0000-0000-0000-000000000001'",
    "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
    "'123e4567-e89b-12d3-a456-426655440000'",
    "'127.0.0.1'",
    "'10.0.0.1'",
    "'::1'",
    "'2001:db8::ff'",
    "REPEAT('x', 3000)",
    "CONCAT(REPEAT('x', 3000), 'y')",
];

async fn ids(db: &TestDb, table: &str, order: &str) -> Vec<i64> {
    let sql = format!(
        "SET STATEMENT max_sort_length = 32768 FOR SELECT CAST(id AS CHAR) FROM {table} ORDER BY {order}, id"
    );
    db.texts(&sql)
        .await
        .iter()
        .map(|id| id.parse().unwrap())
        .collect()
}

/// Fills a table with what a type takes, as it takes it: values that are cut or adjusted are values too.
async fn fill(db: &TestDb, table: &str, type_name: &str) -> bool {
    if !db.try_run(&format!("CREATE TABLE {table} (id INT AUTO_INCREMENT PRIMARY KEY, w INT, v {type_name} DEFAULT NULL)")).await {
        return false;
    }
    // Documents and shapes are refused rather than adjusted, and so are values that are none of a type.
    let lenient = [
        "CHAR", "TEXT", "BLOB", "BINARY", "INT", "DECIMAL", "FLOAT", "DOUBLE", "BIT", "YEAR",
        "ENUM", "SET",
    ];
    let ignore = if lenient.iter().any(|part| type_name.contains(part)) {
        "IGNORE"
    } else {
        ""
    };
    let mut rows = 0;
    for literal in LITERALS {
        // A byte that is no character of the set is shown as a question mark, and that finds question marks.
        if type_name.ends_with("ascii") && literal.starts_with('x') {
            continue;
        }
        let sql = format!(
            "SET SESSION sql_mode = '{}', time_zone = '+00:00'; INSERT {ignore} INTO {table} (w, v) VALUES ({}, {literal})",
            if ignore.is_empty() {
                "STRICT_ALL_TABLES"
            } else {
                ""
            },
            rows % 3,
        );
        rows += usize::from(db.try_run(&sql).await);
    }
    db.run(&format!(
        "INSERT INTO {table} (w, v) SELECT w, v FROM {table} WHERE id % 5 = 1; INSERT INTO {table} (w, v) VALUES (0, NULL), (NULL, NULL)"
    ))
    .await;
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_pages_and_finds_values_of_every_type() {
    let db = TestDb::new(Engine::MySql, "").await;
    let bridges = bridges();
    let (mut seen, mut faults) = (Vec::new(), Vec::new());
    for (n, type_name) in TYPES.iter().enumerate() {
        let name = format!("t{n}");
        // A server may not have all of them.
        if !fill(&db, &name, type_name).await {
            continue;
        }
        let table = Table {
            db: &db,
            bridges: &bridges,
            name: name.clone(),
            type_name: (*type_name).to_owned(),
        };
        let order = match table.pages(&[("v", "asc")], 100).await {
            Err(error) => {
                if !error.to_string().contains("have no next page") {
                    faults.push(format!("{type_name}: {error}"));
                }
                "first page only"
            }
            Ok(_) => {
                table
                    .check_pages(
                        &[
                            (vec![("v", "asc")], ids(&db, &name, "v IS NULL, v").await),
                            (
                                vec![("v", "desc")],
                                ids(&db, &name, "v IS NOT NULL, v DESC").await,
                            ),
                            (
                                vec![("w", "desc"), ("v", "asc")],
                                ids(&db, &name, "w IS NOT NULL, w DESC, v IS NULL, v").await,
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
                type_name: (*type_name).to_owned(),
                shown,
                order,
            });
        }
    }
    assert!(seen.len() > 45, "{}", seen.len());
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    document::keep("MySQL and MariaDB", &seen);
}
