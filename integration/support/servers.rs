//! The database servers of one test run: those named by the environment, else those that answer on the
//! usual ports, else (or if the variable says `start`) fresh ones on free ports, which end with the test
//! process however it ends.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use url::Url;

/// Initialises and runs PostgreSQL in `$1` on port `$2` from the binaries in `$3`, until standard input ends.
const POSTGRES: &str = r#"
run "$3/initdb" -D "$1/data" -U postgres -A trust -E UTF8 --locale=C -N >"$1/log" 2>&1 || exit 1
run "$3/pg_ctl" -D "$1/data" -l "$1/server.log" -w start >>"$1/log" 2>&1 \
  -o "-p $2 -c listen_addresses=127.0.0.1 -c unix_socket_directories='$1' -c fsync=off -c max_connections=200" || exit 1
echo ready
cat >/dev/null
run "$3/pg_ctl" -D "$1/data" -m immediate stop >/dev/null 2>&1
"#;

/// The same for MariaDB; `$3` is the server's binary.
const MARIADB: &str = r#"
run mariadb-install-db --no-defaults --datadir="$1/data" --auth-root-authentication-method=normal \
  --skip-test-db >"$1/log" 2>&1 || exit 1
run "$3" --no-defaults --datadir="$1/data" --port="$2" --bind-address=127.0.0.1 --skip-networking=0 \
  --socket="$1/socket" --pid-file="$1/pid" --innodb-flush-log-at-trx-commit=0 >>"$1/log" 2>&1 &
echo ready
cat >/dev/null
kill "$(cat "$1/pid")" 2>/dev/null
wait
"#;

/// Runs before either: no server starts as root, and Ctrl-C must not skip the cleaning up.
pub(super) const PREAMBLE: &str = r#"
trap : INT TERM HUP
run() { if [ "$(id -u)" = 0 ]; then runuser -u nobody -- "$@"; else "$@"; fi; }
if [ "$(id -u)" = 0 ]; then chown nobody "$1"; fi
"#;

/// The URL of a PostgreSQL server and its superuser.
pub(crate) fn postgres() -> &'static Url {
    static SERVER: OnceLock<Url> = OnceLock::new();
    SERVER.get_or_init(|| {
        find(
            "SEMILAYER_TEST_POSTGRES",
            "postgres://postgres@127.0.0.1:5432/postgres",
            postgres_answers,
        )
        .unwrap_or_else(|| {
            let port = start(POSTGRES, &postgres_binaries());
            wait_for(
                format!("postgres://postgres@127.0.0.1:{port}/postgres"),
                postgres_answers,
            )
        })
    })
}

/// The URL of a MariaDB or MySQL server and its superuser.
pub(crate) fn mysql() -> &'static Url {
    static SERVER: OnceLock<Url> = OnceLock::new();
    SERVER.get_or_init(|| {
        find(
            "SEMILAYER_TEST_MYSQL",
            "mysql://root@127.0.0.1:3306/mysql",
            mysql_answers,
        )
        .unwrap_or_else(|| {
            let port = start(MARIADB, &mariadb_binary());
            wait_for(
                format!("mysql://root@127.0.0.1:{port}/mysql"),
                mysql_answers,
            )
        })
    })
}

fn find(variable: &str, usual: &str, answers: fn(&Url) -> Result<(), String>) -> Option<Url> {
    #[expect(
        clippy::disallowed_methods,
        reason = "where the tests are told which servers to use"
    )]
    if let Ok(given) = std::env::var(variable) {
        if given == "start" {
            return None;
        }
        let url =
            Url::parse(&given).unwrap_or_else(|error| panic!("{variable} is not a URL: {error}"));
        answers(&url)
            .unwrap_or_else(|error| panic!("the server of {variable} does not answer: {error}"));
        return Some(url);
    }
    let url = Url::parse(usual).unwrap();
    answers(&url).ok().map(|()| url)
}

fn wait_for(url: String, answers: fn(&Url) -> Result<(), String>) -> Url {
    let url = Url::parse(&url).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match answers(&url) {
            Ok(()) => return url,
            Err(error) if Instant::now() > deadline => panic!("{url} does not answer: {error}"),
            #[expect(
                clippy::disallowed_methods,
                reason = "on the thread that starts the server, once per run"
            )]
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn postgres_answers(url: &Url) -> Result<(), String> {
    let mut config: tokio_postgres::Config =
        url.as_str().parse().map_err(|error| format!("{error}"))?;
    config.connect_timeout(Duration::from_secs(2));
    alone(async move {
        let (_client, _connection) = config
            .connect(tokio_postgres::NoTls)
            .await
            .map_err(|error| format!("{error}"))?;
        Ok(())
    })
}

fn mysql_answers(url: &Url) -> Result<(), String> {
    let url = url.to_string();
    alone(async move {
        let connect = mysql_async::Conn::from_url(url);
        let connected = tokio::time::timeout(Duration::from_secs(2), connect).await;
        let conn = connected
            .map_err(|late| format!("no answer in two seconds: {late}"))?
            .map_err(|error| error.to_string())?;
        conn.disconnect().await.map_err(|error| error.to_string())
    })
}

/// Drives a future on a thread and runtime of its own, so that it can be waited for anywhere, `Drop` included.
pub(super) fn alone<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    })
    .join()
    .unwrap()
}

/// Runs the script, whose standard input this process holds open for as long as it lives, on a free port.
fn start(script: &str, binary: &str) -> u16 {
    let dir = tempfile::tempdir().unwrap().keep();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{PREAMBLE}{script}rm -rf \"$1\"\n"), "sh"])
        .arg(&dir)
        .args([&port.to_string(), binary])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(
        line.trim(),
        "ready",
        "the server did not start, see {}",
        dir.join("log").display()
    );
    // Dropping the handle would close the script's standard input and end the server.
    std::mem::forget(child);
    port
}

pub(super) fn postgres_binaries() -> String {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    let bin = found
        .pop()
        .expect("PostgreSQL is installed, or SEMILAYER_TEST_POSTGRES names a server");
    bin.display().to_string()
}

fn mariadb_binary() -> String {
    let places = [
        "/usr/sbin/mariadbd",
        "/usr/bin/mariadbd",
        "/usr/libexec/mariadbd",
    ];
    let found = places
        .into_iter()
        .find(|place| std::path::Path::new(place).exists());
    found
        .expect("MariaDB is installed, or SEMILAYER_TEST_MYSQL names a server")
        .to_owned()
}
