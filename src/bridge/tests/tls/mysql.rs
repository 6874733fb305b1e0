//! The words for TLS on a MariaDB server of its own, and what else there is to logging in.

use mysql_async::prelude::Queryable as _;
use serde_json::json;

use super::super::support::{Engine, TestDb, execution, query, run};
use super::{Server, to_version_1};
use crate::bridge::{BridgeError, BridgeOptions, Bridges};

/// Runs MariaDB in `$1` on port `$2` until standard input ends; no server starts as root.
const SERVER: &str = r#"
dir=$1; port=$2; binary=$(PATH=$PATH:/usr/sbin:/usr/libexec command -v mariadbd)
run() { if [ "$(id -u)" = 0 ]; then runuser -u nobody -- "$@"; else "$@"; fi; }
if [ "$(id -u)" = 0 ]; then chown -R nobody "$dir"; fi
run mariadb-install-db --no-defaults --datadir="$dir/data" --auth-root-authentication-method=normal \
  --skip-test-db >"$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
run "$binary" --no-defaults --datadir="$dir/data" --port="$port" --bind-address=127.0.0.1 --socket="$dir/socket" \
  --pid-file="$dir/pid" --innodb-flush-log-at-trx-commit=0 --ssl-cert="$dir/server.pem" --ssl-key="$dir/server.key" \
  --ssl-ca="$dir/ca.pem" >>"$dir/log" 2>&1 &
for i in $(seq 300); do
  mariadb-admin --no-defaults -uroot -h127.0.0.1 -P"$port" ping >/dev/null 2>&1 && break
  sleep 0.1
done
echo ready
cat >/dev/null
kill "$(cat "$dir/pid")" 2>/dev/null
wait
"#;

async fn start() -> Server {
    let settings = json!({"database": "d", "user": "root"});
    let server = Server::start(SERVER, "mysql", settings, |row| {
        assert_eq!(row["wide"], "x".repeat(100_000));
        row["tls"] == 1
    });
    execute(
        &server,
        "CREATE DATABASE d; CREATE VIEW d.me AS SELECT VARIABLE_VALUE <> '' AS tls, REPEAT('x', 100000) AS wide \
           FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'SSL_CIPHER'; \
         CREATE USER certified REQUIRE X509; CREATE USER tls_only REQUIRE SSL; \
         CREATE USER secret IDENTIFIED BY 'pw'; GRANT SELECT ON d.* TO certified, tls_only, secret",
    )
    .await;
    server
}

async fn execute(server: &Server, sql: &str) {
    let url = format!("mysql://root@127.0.0.1:{}", server.port);
    let mut conn = mysql_async::Conn::from_url(url).await.unwrap();
    conn.query_drop(sql).await.unwrap();
    conn.disconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn words_for_tls_mean_what_the_own_client_means() {
    let server = start().await;
    let (ours, theirs) = (server.pem("ca.pem"), server.pem("stranger.pem"));
    assert!(!server.tls(json!({"sslMode": "DISABLED"})).await);
    assert!(server.tls(json!({"sslMode": "PREFERRED"})).await);
    assert!(server.tls(json!({"sslMode": "REQUIRED"})).await);
    assert!(
        server
            .tls(json!({"sslMode": "REQUIRED", "user": "secret", "password": "pw"}))
            .await
    );
    let wrong = json!({"sslMode": "REQUIRED", "user": "secret", "password": "no"});
    let denied = server.refused(wrong).await;
    assert!(
        denied.contains("Access denied for user 'secret'"),
        "{denied}"
    );
    // Without a check there is nobody to ask.
    assert!(
        server
            .tls(json!({"sslMode": "REQUIRED", "caCertificate": theirs}))
            .await
    );
    // The certificate is for `localhost`.
    assert!(
        server
            .tls(json!({"sslMode": "VERIFY_CA", "caCertificate": ours}))
            .await
    );
    let identity =
        json!({"host": "localhost", "sslMode": "VERIFY_IDENTITY", "caCertificate": ours});
    assert!(server.tls(identity).await);
    let other_name = json!({"sslMode": "VERIFY_IDENTITY", "caCertificate": ours});
    let name = server.refused(other_name).await;
    assert!(name.contains("not valid for name"), "{name}");
    for mode in ["VERIFY_CA", "VERIFY_IDENTITY"] {
        let settings = json!({"host": "localhost", "sslMode": mode, "caCertificate": theirs});
        let unknown = server.refused(settings).await;
        assert!(unknown.contains("UnknownIssuer"), "{mode}: {unknown}");
    }
    let unknown = server
        .refused(json!({"host": "localhost", "ssl": true}))
        .await;
    assert!(unknown.contains("UnknownIssuer"), "{unknown}");
    let options = BridgeOptions {
        ca_file: Some(server.dir.path().join("ca.pem")),
        ..BridgeOptions::default()
    };
    let settings = json!({"host": "localhost", "ssl": true});
    assert_eq!(server.ask(options, settings).await, Ok(true));

    server
        .refused(json!({"user": "tls_only", "sslMode": "DISABLED"}))
        .await;
    assert!(
        server
            .tls(json!({"user": "tls_only", "sslMode": "PREFERRED"}))
            .await
    );
    server
        .refused(json!({"user": "certified", "sslMode": "REQUIRED"}))
        .await;
    let (certificate, key) = (server.pem("client.pem"), server.pem("client.key"));
    let shown = json!({
        "user": "certified", "sslMode": "REQUIRED", "clientCertificate": certificate, "clientKey": key
    });
    assert!(server.tls(shown).await);

    to_version_1(server.dir.path());
    execute(&server, "FLUSH SSL").await;
    for mode in ["PREFERRED", "REQUIRED"] {
        assert!(server.tls(json!({"sslMode": mode})).await, "{mode}");
    }
    let checked = json!({"sslMode": "VERIFY_CA", "caCertificate": ours});
    let refused = server.refused(checked).await;
    assert!(refused.contains("of X.509 version 1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_of_mariadb_may_log_in_by_ed25519() {
    let db = TestDb::new(Engine::MySql, "CREATE TABLE me (n INT)").await;
    let version = db.texts("SELECT VERSION()").await.concat();
    if !version.to_lowercase().contains("mariadb") {
        return;
    }
    let user = format!("sl_{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    db.run("INSTALL PLUGIN IF NOT EXISTS ed25519 SONAME 'auth_ed25519'")
        .await;
    db.run(&format!(
        "CREATE USER {user} IDENTIFIED VIA ed25519 USING PASSWORD('pw'); GRANT SELECT ON *.* TO {user}"
    ))
    .await;
    let mut url = url::Url::parse(db.source.config["url"].as_str().unwrap()).unwrap();
    url.set_username(&user).unwrap();
    let bridges = Bridges::new(BridgeOptions::default());
    let mut outcomes = Vec::new();
    for password in ["pw", "wrong"] {
        url.set_password(Some(password)).unwrap();
        let mut source = db.source.clone();
        source.config.insert("url".into(), json!(url.as_str()));
        outcomes.push(run(&bridges, &source, &query("me", json!({})), &execution()).await);
    }
    db.run(&format!("DROP USER {user}")).await;
    assert!(outcomes[0].is_ok(), "{:?}", outcomes[0]);
    assert!(
        matches!(outcomes[1], Err(BridgeError::Unreachable(_))),
        "{:?}",
        outcomes[1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_prefers_tls_and_does_without_where_there_is_none() {
    let db = TestDb::new(Engine::MySql, "CREATE TABLE me (n INT)").await;
    let has_tls = db.texts("SELECT @@have_ssl").await == ["YES"];
    for (mode, expected) in [
        ("DISABLED", true),
        ("PREFERRED", true),
        ("REQUIRED", has_tls),
    ] {
        let mut source = db.source.clone();
        source.config.insert("sslMode".into(), json!(mode));
        let bridges = Bridges::new(BridgeOptions::default());
        let asked = run(&bridges, &source, &query("me", json!({})), &execution()).await;
        assert_eq!(asked.is_ok(), expected, "{mode}: {asked:?}");
    }
}
