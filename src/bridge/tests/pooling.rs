//! Connections: how many, how long, whose; and what is said when there is none.

use std::time::Duration;

use serde_json::json;

use super::support::{
    ENGINES, Engine, TestDb, config, eventually, execution, operation, query, run,
};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, Source};
use crate::ids::SourceId;
use crate::query::operation::Kind;

const ACTIVITY: &str = "SELECT pid::text FROM pg_stat_activity \
    WHERE datname = current_database() AND application_name = 'semilayer'";

const BACKEND: &str = "CREATE VIEW me AS SELECT pg_backend_pid() AS pid";

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reused_and_closed_when_idle() {
    let db = TestDb::new(Engine::Postgres, BACKEND).await;
    let options = BridgeOptions {
        idle_timeout: Duration::from_millis(400),
        ..BridgeOptions::default()
    };
    let bridges = Bridges::new(options);
    let (first, _) = run(&bridges, &db.source, &query("me", json!({})), &execution())
        .await
        .unwrap();
    let (second, _) = run(&bridges, &db.source, &query("me", json!({})), &execution())
        .await
        .unwrap();
    assert_eq!(first, second);
    assert_eq!(db.texts(ACTIVITY).await.len(), 1);
    eventually("idle connections are closed", async || {
        let open = db.texts(ACTIVITY).await;
        (open.is_empty(), open)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_at_most_its_pools_connections() {
    let db = TestDb::new(
        Engine::Postgres,
        "CREATE VIEW slow AS SELECT pg_sleep(0.3)::text AS s",
    )
    .await;
    let bridges = Bridges::new(BridgeOptions {
        pool_size: 2,
        ..BridgeOptions::default()
    });
    let mut jobs = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (bridges, source) = (bridges.clone(), db.source.clone());
        jobs.spawn(
            async move { run(&bridges, &source, &query("slow", json!({})), &execution()).await },
        );
    }
    let mut most = 0;
    while !jobs.is_empty() {
        most = most.max(db.texts(ACTIVITY).await.len());
        while let Some(job) = jobs.try_join_next() {
            job.unwrap().unwrap();
        }
    }
    assert!((1..=2).contains(&most), "{most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_closes_the_old_connections() {
    let db = TestDb::new(Engine::Postgres, BACKEND).await;
    let bridges = Bridges::new(BridgeOptions::default());
    run(&bridges, &db.source, &query("me", json!({})), &execution())
        .await
        .unwrap();
    let old = db.texts(ACTIVITY).await;
    let mut changed = db.source.clone();
    changed
        .config
        .insert("connectionTimeoutMillis".into(), json!(5000));
    run(&bridges, &changed, &query("me", json!({})), &execution())
        .await
        .unwrap();
    eventually("the old connection is closed", async || {
        let open = db.texts(ACTIVITY).await;
        (open.len() == 1 && open != old, open)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_database_closed_is_replaced() {
    let db = TestDb::new(Engine::Postgres, BACKEND).await;
    let bridges = Bridges::new(BridgeOptions::default());
    run(&bridges, &db.source, &query("me", json!({})), &execution())
        .await
        .unwrap();
    db.texts(&format!("SELECT pg_terminate_backend(pid)::text FROM ({ACTIVITY}) AS a(p), pg_stat_activity WHERE pid::text = p"))
        .await;
    eventually("the connection is gone", async || {
        let open = db.texts(ACTIVITY).await;
        (open.is_empty(), open)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    run(&bridges, &db.source, &query("me", json!({})), &execution())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_are_tagged_with_their_job() {
    let bridges = Bridges::new(BridgeOptions {
        tag_sql: true,
        ..BridgeOptions::default()
    });
    let postgres =
        "CREATE VIEW me AS SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let mysql = "CREATE VIEW me AS SELECT info AS query FROM information_schema.processlist WHERE id = CONNECTION_ID()";
    for (engine, setup) in [(Engine::Postgres, postgres), (Engine::MySql, mysql)] {
        let db = TestDb::new(engine, setup).await;
        let execution = execution();
        let (batches, _) = run(&bridges, &db.source, &query("me", json!({})), &execution)
            .await
            .unwrap();
        let rows = super::support::parse(&batches);
        let tag = format!("/* semilayer {}/1 */ S", execution.job_id);
        let statement = rows[0]["query"].as_str().unwrap();
        assert!(
            statement.starts_with(&tag) && statement.contains("SELECT"),
            "{engine:?}: {rows:?}"
        );
    }
}

async fn test_source(bridge: &str, settings: serde_json::Value) -> BridgeError {
    let source = Source {
        id: SourceId::new(),
        name: "s".into(),
        bridge: bridge.into(),
        config: config(settings),
    };
    let bridges = Bridges::new(BridgeOptions::default());
    let result = run(
        &bridges,
        &source,
        &operation(Kind::Test, "", json!({})),
        &execution(),
    )
    .await;
    match result {
        Ok(_) => panic!("{:?} was reached", source.config),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_says_why() {
    for (bridge, settings, words) in [
        (
            "postgres",
            json!({"url": "postgres://u@127.0.0.1:1/db"}),
            "refused",
        ),
        (
            "postgres",
            json!({"url": "postgres://postgres@127.0.0.1/no_such_db"}),
            "no_such_db",
        ),
        (
            "postgres",
            json!({"url": "postgres://no_such_user@127.0.0.1/test"}),
            "no_such_user",
        ),
        (
            "postgres",
            json!({"url": "postgres://u@no-such-host.invalid/db"}),
            "no-such-host.invalid",
        ),
        (
            "mysql",
            json!({"url": "mysql://u@127.0.0.1:1/db"}),
            "refused",
        ),
        (
            "mysql",
            json!({"url": "mysql://root@127.0.0.1/no_such_db"}),
            "no_such_db",
        ),
        (
            "mysql",
            json!({"url": "mysql://no_such_user:pw@127.0.0.1/test"}),
            "no_such_user",
        ),
        (
            "sqlite",
            json!({"path": "/no/such/file.db"}),
            "/no/such/file.db",
        ),
        (
            "sqlite",
            json!({"path": concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")}),
            "not a database",
        ),
    ] {
        let error = test_source(bridge, settings.clone()).await;
        let said = matches!(&error, BridgeError::Unreachable(text) if text.contains(words));
        assert!(said, "{bridge} {settings}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_configurations_name_the_setting() {
    for (bridge, settings, path) in [
        ("postgres", json!({}), "config.host"),
        (
            "postgres",
            json!({"host": "h", "user": "u"}),
            "config.database",
        ),
        (
            "postgres",
            json!({"host": "h", "database": "d"}),
            "config.user",
        ),
        ("postgres", json!({"url": "mysql://h/d"}), "config.url"),
        (
            "postgres",
            json!({"url": "postgres://u@h/d?sslmode=maybe"}),
            "config.url",
        ),
        (
            "postgres",
            json!({"host": "h", "database": "d", "user": "u", "port": 70000}),
            "config.port",
        ),
        (
            "postgres",
            json!({"url": "postgres://u@h/d", "ipFamily": 5}),
            "config.ipFamily",
        ),
        ("mysql", json!({"url": "postgres://h/d"}), "config.url"),
        (
            "mysql",
            json!({"url": "mysql://h/d?ssl-mode=maybe"}),
            "config.url",
        ),
        ("mysql", json!({"host": "h"}), "config.host"),
        ("sqlite", json!({}), "config.path"),
        ("oracle", json!({}), "bridge"),
    ] {
        let error = test_source(bridge, settings.clone()).await;
        let BridgeError::Invalid { path: found, .. } = &error else {
            panic!("{settings}: {error:?}")
        };
        assert_eq!(found, path, "{bridge} {settings}");
    }
    let error = test_source("oracle", json!({})).await.to_string();
    assert!(
        error.contains("oracle") && error.contains("postgres, mysql, mariadb, sqlite"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_and_aliases_stand_for_the_url() {
    for (bridge, settings) in [
        (
            "@semilayer/bridge-postgres",
            json!({"host": "127.0.0.1", "db": "test", "username": "postgres", "port": 5432}),
        ),
        (
            "postgres",
            json!({"connectionString": "postgres://127.0.0.1/test", "user": "postgres", "ssl": false}),
        ),
        (
            "mariadb",
            json!({"host": "127.0.0.1", "database": "test", "username": "root", "pass": ""}),
        ),
    ] {
        let source = Source {
            id: SourceId::new(),
            name: "s".into(),
            bridge: bridge.into(),
            config: config(settings),
        };
        let bridges = Bridges::new(BridgeOptions::default());
        run(
            &bridges,
            &source,
            &operation(Kind::Test, "", json!({})),
            &execution(),
        )
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_end_a_result() {
    let setup = "CREATE TABLE t (n INT); INSERT INTO t VALUES (1), (2), (3);";
    for engine in ENGINES {
        let db = TestDb::new(engine, setup).await;
        let rows = BridgeOptions {
            max_rows: Some(2),
            ..BridgeOptions::default()
        };
        let bytes = BridgeOptions {
            max_bytes: Some(10),
            ..BridgeOptions::default()
        };
        for options in [rows, bytes] {
            let bridges = Bridges::new(options);
            let error = run(&bridges, &db.source, &query("t", json!({})), &execution())
                .await
                .unwrap_err();
            assert!(
                matches!(error, BridgeError::ResultOverflow(_)),
                "{engine:?}: {error:?}"
            );
            run(
                &bridges,
                &db.source,
                &query("t", json!({"limit": 1})),
                &execution(),
            )
            .await
            .unwrap();
        }
        let mut execution = execution();
        execution.max_batch_bytes = 8;
        let bridges = Bridges::new(BridgeOptions::default());
        let (batches, _) = run(&bridges, &db.source, &query("t", json!({})), &execution)
            .await
            .unwrap();
        assert_eq!(batches.len(), 3, "{engine:?}");
        execution.max_row_bytes = 5;
        let error = run(&bridges, &db.source, &query("t", json!({})), &execution)
            .await
            .unwrap_err();
        assert!(
            matches!(error, BridgeError::ResultOverflow(_)),
            "{engine:?}: {error:?}"
        );
    }
}

/// The servers' certificates are their own; a server without TLS says so instead.
#[tokio::test(flavor = "multi_thread")]
async fn only_verifying_modes_check_certificates() {
    let db = TestDb::new(Engine::Postgres, "").await;
    let has_tls = db.texts("SHOW ssl").await == ["on"];
    let url = db.source.config["url"].as_str().unwrap().to_owned();
    let bridges = Bridges::new(BridgeOptions::default());
    let try_mode = async |mode: &str| {
        let mut source = db.source.clone();
        source
            .config
            .insert("url".into(), json!(format!("{url}?sslmode={mode}")));
        let test = operation(Kind::Test, "", json!({}));
        run(&bridges, &source, &test, &execution())
            .await
            .map(|_| ())
    };
    for mode in ["disable", "allow", "prefer"] {
        try_mode(mode).await.unwrap();
    }
    for mode in ["require", "no-verify"] {
        assert_eq!(try_mode(mode).await.is_ok(), has_tls, "{mode}");
    }
    // A machine may trust its own server's certificate, so `verify-ca` is tried on a server of its own.
    let error = try_mode("verify-full").await.unwrap_err();
    assert!(
        matches!(&error, BridgeError::Unreachable(text) if text.contains("TLS")),
        "{error:?}"
    );
}
