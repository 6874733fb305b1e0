//! A `PgBouncer` between the product and PostgreSQL, which the customer's own application shares: whatever the product
//! does leaves nothing behind on the server's connections.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::eventually::holds;
use crate::support::stage::Stage;
use crate::support::{Database, Engine, PATIENCE, RunnerProcess, eventually};

/// A `PgBouncer` in front of one database, with that database's own role.
struct PgBouncer {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl PgBouncer {
    /// One that the stage's source leads to.
    async fn before(stage: &Stage, mode: &str, size: u32) -> Self {
        let bouncer = Self::start(&stage.database, mode, size).await;
        let mut config = stage.database.config();
        config["host"] = json!("127.0.0.1");
        config["port"] = json!(bouncer.port);
        let source = format!("/v1/sources/{}", stage.source);
        stage
            .gateway
            .admin()
            .patch(&source, json!({"config": config}))
            .await
            .expect(200);
        bouncer
    }

    async fn start(database: &Database, mode: &str, size: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = database.config();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = |name: &str| config[name].as_str().unwrap().to_owned();
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {size}\nlogfile = {}\n",
            config["port"],
            at("users"),
            at("log"),
        );
        fs::write(dir.path().join("ini"), ini).unwrap();
        fs::write(
            dir.path().join("users"),
            format!("\"{}\" \"{}\"\n", text("user"), text("password")),
        )
        .unwrap();
        let process = spawn(dir.path());
        let bouncer = Self {
            process,
            port,
            _dir: dir,
        };
        eventually("PgBouncer listens", PATIENCE, async || {
            let connected = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            holds(connected.is_ok(), connected)
        })
        .await;
        bouncer
    }

    /// The customer's own application, on a connection of its own to the same pooler.
    async fn application(&self, database: &Database) -> tokio_postgres::Client {
        let config = database.config();
        let text = |name: &str| config[name].as_str().unwrap().to_owned();
        let mut application = tokio_postgres::Config::new();
        application
            .host("127.0.0.1")
            .port(self.port)
            .user(text("user"))
            .password(text("password"))
            .dbname(text("database"));
        let (client, connection) = application.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// It refuses to run as root.
fn spawn(dir: &Path) -> Child {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let binary = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let binary = binary.expect("PgBouncer is installed: Debian's package is `pgbouncer`");
    let mut command = if root {
        Command::new("chown")
            .args(["-R", "nobody"])
            .arg(dir)
            .status()
            .unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=nobody", "--clear-groups", "--"])
            .arg(binary);
        command
    } else {
        Command::new(binary)
    };
    command.arg("-q").arg(dir.join("ini")).spawn().unwrap()
}

/// What the application sees of its session, and that it can write.
async fn seen_by(application: &tokio_postgres::Client) -> Vec<String> {
    let mut seen = Vec::new();
    for setting in [
        "default_transaction_read_only",
        "TimeZone",
        "DateStyle",
        "IntervalStyle",
        "statement_timeout",
        "extra_float_digits",
        "bytea_output",
        "transaction_isolation",
        "search_path",
    ] {
        for message in application
            .simple_query(&format!("SHOW {setting}"))
            .await
            .unwrap()
        {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                seen.push(format!("{setting}={}", row.get(0).unwrap_or_default()));
            }
        }
    }
    application
        .simple_query("INSERT INTO written (at) VALUES (now())")
        .await
        .unwrap();
    let prepared = application
        .simple_query("SELECT name FROM pg_prepared_statements")
        .await
        .unwrap();
    let names = prepared
        .iter()
        .filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_)));
    assert_eq!(names.count(), 0, "a prepared statement stayed behind");
    seen
}

/// Everything that the product does with a source.
async fn use_all(stage: &Stage) {
    let admin = stage.gateway.admin();
    let tested = admin
        .post(&format!("/v1/sources/{}/test", stage.source), json!({}))
        .await
        .expect(200);
    assert_eq!(tested["ok"], json!(true), "{tested}");
    let target = admin
        .get(&format!("/v1/sources/{}/targets/moods", stage.source))
        .await
        .expect(200);
    assert_eq!(target["columns"][1]["name"], "mood");
    let caller = stage.gateway.caller();
    let mut body = json!({"orderBy": {"mood": "asc"}, "limit": 2});
    let mut ids = Vec::new();
    loop {
        let page = caller.query("moods", body.clone()).await.expect(200);
        ids.extend(
            page["rows"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row["id"].clone()),
        );
        match &page["meta"]["nextCursor"] {
            Value::Null => break,
            cursor => body["cursor"] = cursor.clone(),
        }
    }
    assert_eq!(ids, [2, 4, 1, 3], "in the order of the enum");
    caller
        .query("broken", json!({}))
        .await
        .expect_error(422, "SOURCE_QUERY_FAILED");
    // Given up by its caller, and so at the database.
    let slow = caller
        .request(reqwest::Method::POST, "/v1/query/slow")
        .json(&json!({}));
    let given_up = slow.timeout(Duration::from_millis(300)).send().await;
    assert!(given_up.is_err());
    let (started, database) = (Instant::now(), &stage.database);
    eventually("the slow query is stopped", PATIENCE, async || {
        let running = database.running().await;
        holds(running.is_empty(), running)
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_behind_on_a_poolers_connections() {
    for (mode, size) in [("transaction", 1), ("transaction", 3), ("session", 8)] {
        let mut stage = Stage::inline(Engine::Postgres).await;
        let database = &stage.database;
        database
            .execute(
                "CREATE TABLE written (at timestamptz); CREATE TYPE mood AS ENUM ('sad', 'fine'); \
                 CREATE TABLE moods (id int PRIMARY KEY, mood mood); INSERT INTO moods VALUES (1, 'fine'), (2, 'sad'), (3, 'fine'), (4, 'sad');",
            )
            .await;
        let bouncer = PgBouncer::before(&stage, mode, size).await;
        let fields = json!({"id": {"type": "number"}, "mood": {"type": "enum"}});
        for (name, column) in [("moods", "mood"), ("broken", "nothing")] {
            let mut fields = fields.clone();
            fields["mood"]["from"] = json!(column);
            stage
                .add_lens(json!({"name": name, "sourceId": stage.source, "table": "moods", "primaryKey": "id", "fields": fields, "grants": {}}))
                .await;
        }
        stage.add_slow_lens().await;
        let application = bouncer.application(&stage.database).await;
        let before = seen_by(&application).await;
        // From the gateway itself, and then through two runners, one of which starts anew.
        use_all(&stage).await;
        assert_eq!(seen_by(&application).await, before, "{mode} {size}, inline");
        let first = stage.add_runner("one").await;
        stage.add_runner("two").await;
        for round in 0..2 {
            use_all(&stage).await;
            assert_eq!(
                seen_by(&application).await,
                before,
                "{mode} {size}, runners, round {round}"
            );
            if round == 0 {
                drop(stage.runners.remove(0));
                stage.gateway.until_runner_is(&first, "offline").await;
                stage
                    .runners
                    .push(RunnerProcess::start(&stage.gateway, &first).await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_pooling_is_refused_by_name() {
    let stage = Stage::inline(Engine::Postgres).await;
    let _bouncer = PgBouncer::before(&stage, "statement", 1).await;
    let error = stage
        .gateway
        .caller()
        .query("products", json!({}))
        .await
        .expect_error(502, "SOURCE_UNREACHABLE");
    assert!(
        error["error"].as_str().unwrap().contains("statement mode"),
        "{error}"
    );
}
