//! The words for TLS on a PostgreSQL server of its own, with certificates of an authority of its own.

use serde_json::json;

use super::super::support::{config, execution, operation, postgres_client, run};
use super::{Server, to_version_1};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, Source};
use crate::ids::SourceId;
use crate::query::operation::Kind;

/// Runs PostgreSQL in `$1` on port `$2` until standard input ends; no server starts as root.
const SERVER: &str = r#"
dir=$1; port=$2; bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
run() { if [ "$(id -u)" = 0 ]; then runuser -u nobody -- "$@"; else "$@"; fi; }
if [ "$(id -u)" = 0 ]; then chown -R nobody "$dir"; fi
chmod 600 "$dir"/*.key
run "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C -N >"$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
cat >"$dir/data/pg_hba.conf" <<HBA
hostssl all certified 127.0.0.1/32 cert
hostssl all tls_only 127.0.0.1/32 trust
hostnossl all plain_only 127.0.0.1/32 trust
host all postgres 127.0.0.1/32 trust
HBA
run "$bin/pg_ctl" -D "$dir/data" -l "$dir/server.log" -w start -o "-p $port -c listen_addresses=127.0.0.1 \
  -c unix_socket_directories='$dir' -c fsync=off -c ssl=on -c ssl_cert_file='$dir/server.pem' \
  -c ssl_key_file='$dir/server.key' -c ssl_ca_file='$dir/ca.pem'" >>"$dir/log" 2>&1 || { cat "$dir/server.log"; exit 1; }
echo ready
cat >/dev/null
run "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null 2>&1
"#;

async fn start() -> Server {
    let settings = json!({"database": "postgres", "user": "postgres"});
    let server = Server::start(SERVER, "postgres", settings, |row| row["ssl"] == true);
    execute(
        &server,
        "CREATE ROLE certified LOGIN; CREATE ROLE tls_only LOGIN; CREATE ROLE plain_only LOGIN; \
         CREATE VIEW me AS SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid(); \
         GRANT SELECT ON me TO PUBLIC",
    )
    .await;
    server
}

async fn execute(server: &Server, sql: &str) {
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port);
    let client = postgres_client(&url).await;
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn words_for_tls_mean_what_libpq_means() {
    let server = start().await;
    let (ours, theirs) = (server.pem("ca.pem"), server.pem("stranger.pem"));
    assert!(!server.tls(json!({})).await);
    assert!(!server.tls(json!({"sslMode": "disable"})).await);
    assert!(!server.tls(json!({"sslMode": "allow"})).await);
    assert!(server.tls(json!({"sslMode": "prefer"})).await);
    assert!(server.tls(json!({"sslMode": "require"})).await);
    // The certificate is for `localhost`.
    assert!(
        server
            .tls(json!({"sslMode": "verify-ca", "caCertificate": ours}))
            .await
    );
    assert!(
        server
            .tls(json!({"host": "localhost", "caCertificate": ours}))
            .await
    );
    let path = server.path("ca.pem");
    assert!(
        server
            .tls(json!({"host": "localhost", "sslMode": "verify-full", "caCertificate": path}))
            .await
    );
    let name = server
        .refused(json!({"sslMode": "verify-full", "caCertificate": ours}))
        .await;
    assert!(name.contains("not valid for name"), "{name}");
    // An authority that is named is asked, whatever the mode.
    for mode in ["require", "verify-ca", "verify-full"] {
        let settings = json!({"host": "localhost", "sslMode": mode, "caCertificate": theirs});
        let unknown = server.refused(settings).await;
        assert!(unknown.contains("UnknownIssuer"), "{mode}: {unknown}");
    }
    for settings in [
        json!({"host": "localhost", "ssl": true}),
        json!({"host": "localhost", "sslMode": "verify-ca"}),
        json!({"host": "localhost", "caCertificate": "system"}),
    ] {
        let unknown = server.refused(settings).await;
        assert!(unknown.contains("UnknownIssuer"), "{unknown}");
    }
    let options = BridgeOptions {
        ca_file: Some(path.clone().into()),
        ..BridgeOptions::default()
    };
    let settings = json!({"host": "localhost", "ssl": true});
    assert_eq!(server.ask(options, settings).await, Ok(true));
    let inline = BridgeOptions {
        may_dial: Some(std::sync::Arc::new(|_| true)),
        ..BridgeOptions::default()
    };
    let refused = server.ask(inline, json!({"caCertificate": path})).await;
    assert!(
        matches!(&refused, Err(BridgeError::Invalid { path, .. }) if path == "config.caCertificate"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_only_one_of_tls_and_plain_gets_it_and_clients_show_certificates() {
    let server = start().await;
    for mode in ["allow", "prefer", "require"] {
        let settings = json!({"user": "tls_only", "sslMode": mode});
        assert!(server.tls(settings).await, "{mode}");
    }
    for mode in ["disable", "allow", "prefer"] {
        let settings = json!({"user": "plain_only", "sslMode": mode});
        assert!(!server.tls(settings).await, "{mode}");
    }
    server
        .refused(json!({"user": "plain_only", "sslMode": "require"}))
        .await;
    server
        .refused(json!({"user": "tls_only", "sslMode": "disable"}))
        .await;
    let (certificate, key) = (server.pem("client.pem"), server.pem("client.key"));
    let shown = json!({
        "user": "certified", "sslMode": "require", "clientCertificate": certificate, "clientKey": key
    });
    assert!(server.tls(shown).await);
    server
        .refused(json!({"user": "certified", "sslMode": "require"}))
        .await;
    let url = format!(
        "postgres://certified@localhost:{}/postgres?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        server.port,
        server.path("ca.pem"),
        server.path("client.pem"),
        server.path("client.key"),
    );
    let source = Source {
        id: SourceId::new(),
        name: "s".into(),
        bridge: "postgres".into(),
        config: config(json!({"url": url})),
    };
    let bridges = Bridges::new(BridgeOptions::default());
    let test = operation(Kind::Test, "", json!({}));
    run(&bridges, &source, &test, &execution()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_version_1_is_good_enough_where_nothing_is_checked() {
    let server = start().await;
    to_version_1(server.dir.path());
    execute(&server, "SELECT pg_reload_conf()").await;
    let ours = server.pem("ca.pem");
    let mut refused = String::new();
    for _ in 0..100 {
        let settings = json!({"sslMode": "verify-ca", "caCertificate": ours});
        match server.ask(BridgeOptions::default(), settings).await {
            Err(error) => {
                refused = error.to_string();
                break;
            }
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
    assert!(refused.contains("of X.509 version 1"), "{refused}");
    for mode in ["prefer", "require"] {
        assert!(server.tls(json!({"sslMode": mode})).await, "{mode}");
    }
}
