//! A PostgreSQL server of one test, which may restart it, and whose log is a witness.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_postgres::{Client, NoTls};

use super::servers::{PREAMBLE, postgres_binaries};
use super::{eventually, ports};

/// Initialises and runs a server in `$1` on port `$2` from the binaries in `$3` with the options `$4`; restarts it
/// for every line of standard input, which is the mode, and ends it with standard input.
///
/// Only processes are killed here, never the machine, so nothing is lost by not waiting for the disk.
const SCRIPT: &str = r#"
run "$3/initdb" -D "$1/data" -U postgres -A trust -E UTF8 --locale=C -N >"$1/log" 2>&1 || exit 1
run "$3/pg_ctl" -D "$1/data" -l "$1/server.log" -w start >>"$1/log" 2>&1 \
  -o "-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories='$1' -c fsync=off -c max_connections=400 $4" || exit 1
echo ready
while read -r mode; do
  run "$3/pg_ctl" -D "$1/data" -l "$1/server.log" -m "$mode" -w restart >>"$1/log" 2>&1 && echo ready || echo failed
done
run "$3/pg_ctl" -D "$1/data" -m immediate stop >/dev/null 2>&1
rm -rf "$1"
"#;

/// A running server; it ends with its handle.
pub(crate) struct PgServer {
    pub(crate) port: u16,
    dir: PathBuf,
    control: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
    _script: Child,
}

impl PgServer {
    /// Starts a fresh one with further `-c name=value` options.
    pub(crate) async fn start(options: &str) -> Self {
        // The script removes it.
        let dir = TempDir::new().unwrap().keep();
        let port = ports::stable_port();
        let mut script = Command::new("sh")
            .args(["-c", &format!("{PREAMBLE}{SCRIPT}"), "sh"])
            .arg(&dir)
            .args([&port.to_string(), &postgres_binaries(), options])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self {
            port,
            dir,
            control: script.stdin.take().unwrap(),
            said: BufReader::new(script.stdout.take().unwrap()).lines(),
            _script: script,
        };
        server.expect_ready("start").await;
        server
    }

    async fn expect_ready(&mut self, what: &str) {
        let line = tokio::time::timeout(Duration::from_secs(90), self.said.next_line()).await;
        let said = line.ok().and_then(Result::ok).flatten();
        assert_eq!(
            said.as_deref(),
            Some("ready"),
            "PostgreSQL did not {what}, see {}",
            self.dir.display()
        );
    }

    /// Restarts it; `mode` is `pg_ctl`'s: `immediate` is a crash of the server, `fast` cuts connections only.
    pub(crate) async fn restart(&mut self, mode: &str) {
        self.control
            .write_all(format!("{mode}\n").as_bytes())
            .await
            .unwrap();
        self.expect_ready("restart").await;
    }

    /// Where a database of it is found; its superuser needs no password.
    pub(crate) fn url(&self, database: &str) -> String {
        url_at(self.port, database)
    }

    /// A connection to one of its databases.
    pub(crate) async fn client(&self, database: &str) -> Client {
        let url = self.url(database);
        eventually("PostgreSQL answers", super::PATIENCE, async || {
            connect(&url).await
        })
        .await
    }

    /// Runs statements in a database.
    pub(crate) async fn execute(&self, database: &str, sql: &str) {
        let client = self.client(database).await;
        client.batch_execute(sql).await.unwrap();
    }

    /// The file that it logs to.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// Everything that it has logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap()).into_owned()
    }
}

/// Where a database of a server on this port is found. Not encrypted, so that a proxy can read along.
pub(crate) fn url_at(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}?sslmode=disable")
}

/// Opens a connection and drives it in the background.
pub(crate) async fn connect(url: &str) -> Result<Client, String> {
    let connected = tokio_postgres::connect(url, NoTls).await;
    let (client, connection) = connected.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    Ok(client)
}
