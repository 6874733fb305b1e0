//! Connections that died in the pool: whoever comes next notices nothing.

use serde_json::json;

use super::support::{Engine, TestDb, execution, field, parse, query, run};
use crate::bridge::{BridgeOptions, Bridges};

const TABLE: &str = "CREATE TABLE t (id INT NOT NULL PRIMARY KEY); INSERT INTO t VALUES (1), (2);";

/// Ends every connection to the database but the one that does it.
async fn kill_all(db: &TestDb) {
    match db.engine {
        Engine::Postgres => {
            db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()").await;
        }
        _ => {
            let ids = "SELECT CAST(id AS CHAR) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()";
            for id in db.texts(ids).await {
                db.try_run(&format!("KILL CONNECTION {id}")).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_killed_while_idle_cost_nobody_an_answer() {
    for engine in [Engine::Postgres, Engine::MySql] {
        let db = TestDb::new(engine, TABLE).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let operation = query("t", json!({"orderBy": {"id": "asc"}}));
        for _ in 0..3 {
            // Several at once, so that the pool has several that die.
            let execution = execution();
            let ask = || async {
                let mut sink = super::support::Collect::default();
                bridges
                    .execute(&db.source, &operation, &execution, &mut sink)
                    .await?;
                Ok::<_, crate::bridge::BridgeError>(sink.0)
            };
            let (a, b, c) = tokio::join!(ask(), ask(), ask());
            for batches in [a, b, c] {
                let batches = batches.unwrap_or_else(|error| panic!("{engine:?}: {error}"));
                assert_eq!(field(&parse(&batches), "id"), [1, 2], "{engine:?}");
            }
            kill_all(&db).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_replaced_is_the_new_one_at_the_next_query() {
    let (old, new) = (
        TestDb::new(Engine::Sqlite, TABLE).await,
        TestDb::new(
            Engine::Sqlite,
            "CREATE TABLE t (id INT); INSERT INTO t VALUES (7);",
        )
        .await,
    );
    let path = |db: &TestDb| db.source.config["path"].as_str().unwrap().to_owned();
    let bridges = Bridges::new(BridgeOptions::default());
    let operation = query("t", json!({"select": ["id"], "orderBy": {"id": "asc"}}));
    let ids = async || {
        let (batches, _) = run(&bridges, &old.source, &operation, &execution())
            .await
            .unwrap();
        field(&parse(&batches), "id")
    };
    assert_eq!(ids().await, [1, 2]);
    std::fs::rename(path(&new), path(&old)).unwrap();
    assert_eq!(ids().await, [7]);
    std::fs::remove_file(path(&old)).unwrap();
    let error = run(&bridges, &old.source, &operation, &execution())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("there is no database file"),
        "{error}"
    );
}
