//! What passes by itself is told from what the caller must correct, by databases that are really in that state.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::support::{Engine, TestDb, execution, operation, postgres_client, query, run};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, Source};
use crate::query::operation::Kind;

/// A name that no other test has.
fn account() -> String {
    format!("sl_{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// The source with somebody else's credentials.
fn as_user(db: &TestDb, user: &str) -> Source {
    let mut url = url::Url::parse(db.source.config["url"].as_str().unwrap()).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some("pw")).unwrap();
    let mut source = db.source.clone();
    source.config.insert("url".into(), json!(url.as_str()));
    source
}

async fn failure(bridges: &Bridges, source: &Source) -> BridgeError {
    run(bridges, source, &query("t", json!({})), &execution())
        .await
        .unwrap_err()
}

fn is_unavailable(error: &BridgeError, words: &str) {
    let said = matches!(error, BridgeError::Unavailable(text) if text.contains(words));
    assert!(said, "{error:?} instead of {words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_not_to_be_had_is_no_fault_of_the_query() {
    let user = account();
    let setup = format!(
        "CREATE TABLE t (n int); INSERT INTO t VALUES (1); CREATE ROLE {user} LOGIN PASSWORD 'pw'; \
         ALTER ROLE {user} SET lock_timeout = '150ms'; GRANT SELECT ON t TO {user}"
    );
    let db = TestDb::new(Engine::Postgres, &setup).await;
    let source = as_user(&db, &user);
    let bridges = Bridges::new(BridgeOptions::default());
    let all = query("t", json!({}));
    run(&bridges, &source, &all, &execution()).await.unwrap();
    let mut other = postgres_client(db.source.config["url"].as_str().unwrap()).await;
    let lock = other.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    is_unavailable(&failure(&bridges, &source).await, "lock timeout");
    lock.rollback().await.unwrap();
    run(&bridges, &source, &all, &execution()).await.unwrap();
    drop(bridges);
    db.run(&format!("DROP OWNED BY {user}; DROP ROLE {user}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_pass_by_themselves() {
    let user = account();
    let postgres = format!(
        "CREATE TABLE t (n int); CREATE ROLE {user} LOGIN PASSWORD 'pw' CONNECTION LIMIT 1; \
         GRANT SELECT ON t TO {user}"
    );
    let mysql = format!(
        "CREATE TABLE t (n INT); CREATE USER {user} IDENTIFIED BY 'pw' WITH MAX_USER_CONNECTIONS 1; \
         GRANT SELECT ON *.* TO {user}"
    );
    for (engine, setup, words, end) in [
        (
            Engine::Postgres,
            postgres,
            "too many connections",
            format!("DROP OWNED BY {user}; DROP ROLE {user}"),
        ),
        (
            Engine::MySql,
            mysql,
            "max_user_connections",
            format!("DROP USER {user}"),
        ),
    ] {
        let db = TestDb::new(engine, &setup).await;
        let source = as_user(&db, &user);
        let first = Bridges::new(BridgeOptions::default());
        let all = query("t", json!({}));
        run(&first, &source, &all, &execution()).await.unwrap();
        // The first keeps its connection for the next query.
        let second = Bridges::new(BridgeOptions::default());
        is_unavailable(&failure(&second, &source).await, words);
        // A refused login is no matter of waiting.
        let mut stranger = as_user(&db, "nobody_of_that_name");
        stranger.id = crate::ids::SourceId::new();
        let refused = failure(&second, &stranger).await;
        assert!(
            matches!(refused, BridgeError::Unreachable(_)),
            "{refused:?}"
        );
        drop((first, second));
        db.run(&end).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_writes_is_unavailable() {
    let db = TestDb::new(Engine::Sqlite, "CREATE TABLE t (n INT);").await;
    let bridges = Bridges::new(BridgeOptions::default());
    let test = operation(Kind::Test, "", json!({}));
    run(&bridges, &db.source, &test, &execution())
        .await
        .unwrap();
    let writer = rusqlite::Connection::open(db.source.config["path"].as_str().unwrap()).unwrap();
    writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
    is_unavailable(&failure(&bridges, &db.source).await, "locked");
    writer.execute_batch("ROLLBACK").unwrap();
    run(&bridges, &db.source, &query("t", json!({})), &execution())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_never_got_a_connection_says_so() {
    let setup = "CREATE VIEW slow AS SELECT pg_sleep(2)::text AS s; CREATE TABLE t (n int)";
    let mut db = TestDb::new(Engine::Postgres, setup).await;
    db.source.config.insert("maxConnections".into(), json!(2));
    let bridges = Bridges::new(BridgeOptions::default());
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let (bridges, source) = (bridges.clone(), db.source.clone());
        slow.spawn(
            async move { run(&bridges, &source, &query("slow", json!({})), &execution()).await },
        );
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut execution = execution();
    execution.deadline = Instant::now() + Duration::from_millis(300);
    let waiting = run(&bridges, &db.source, &query("t", json!({})), &execution).await;
    let error = waiting.unwrap_err();
    is_unavailable(&error, "all 2 connections");
    is_unavailable(&error, "never began");
    is_unavailable(&error, "maxConnections");
    while let Some(done) = slow.join_next().await {
        done.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_of_connections_out_of_range_names_the_setting() {
    let mut db = TestDb::new(Engine::Sqlite, "CREATE TABLE t (n INT);").await;
    let bridges = Bridges::new(BridgeOptions::default());
    for connections in [0, 101] {
        db.source
            .config
            .insert("maxConnections".into(), json!(connections));
        let error = failure(&bridges, &db.source).await;
        assert!(
            matches!(&error, BridgeError::Invalid { path, .. } if path == "config.maxConnections"),
            "{error:?}"
        );
    }
}
