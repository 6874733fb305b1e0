//! One database per test, with a user and password of its own, dropped with its handle.

use mysql_async::prelude::Queryable;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_postgres::NoTls;
use url::Url;
use uuid::Uuid;

use super::servers;

/// Which kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Postgres,
    Mysql,
    Sqlite,
}

impl Engine {
    pub(crate) const ALL: [Self; 3] = [Self::Postgres, Self::Mysql, Self::Sqlite];

    /// What people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MariaDB",
            Self::Sqlite => "SQLite",
        }
    }

    /// The bridge's package.
    pub(crate) fn bridge(self) -> &'static str {
        match self {
            Self::Postgres => "@semilayer/bridge-postgres",
            Self::Mysql => "@semilayer/bridge-mysql",
            Self::Sqlite => "@semilayer/bridge-sqlite",
        }
    }
}

/// How many rows `products` has.
pub(crate) const PRODUCTS: u64 = 250;

/// A row of `products` under the output names of the lens that [`super::Stage`] declares.
pub(crate) fn product(id: u64) -> Value {
    json!({"id": id, "title": title(id), "price": price(id), "category": category(id)})
}

fn title(id: u64) -> String {
    format!("Product {id:03}")
}

fn price(id: u64) -> u64 {
    id * 37 % 1000
}

fn category(id: u64) -> Option<&'static str> {
    match id % 4 {
        0 => None,
        1 => Some("tools"),
        2 => Some("books"),
        _ => Some("toys"),
    }
}

/// One database.
pub(crate) struct Database {
    pub(crate) engine: Engine,
    /// Also the user's name.
    name: String,
    password: String,
    dir: TempDir,
}

impl Database {
    /// A new, empty one.
    pub(crate) async fn create(engine: Engine) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let database = Self {
            engine,
            name: format!("it_{}", &id[..16]),
            password: format!("pw-{}", &id[16..]),
            dir: tempfile::tempdir().unwrap(),
        };
        let (name, password) = (&database.name, &database.password);
        let statements = match engine {
            Engine::Postgres => vec![
                format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"),
                format!("CREATE DATABASE {name} OWNER {name}"),
            ],
            Engine::Mysql => vec![
                format!("CREATE DATABASE {name}"),
                format!("CREATE USER '{name}'@'%' IDENTIFIED BY '{password}'"),
                format!("GRANT ALL ON {name}.* TO '{name}'@'%'"),
            ],
            Engine::Sqlite => vec![],
        };
        // The first test of a run may have to start the server, which blocks.
        tokio::task::spawn_blocking(move || servers::alone(administer(engine, statements)))
            .await
            .unwrap()
            .unwrap();
        if engine == Engine::Sqlite {
            database.execute("PRAGMA journal_mode = WAL").await;
        }
        database
    }

    /// One with the table `products`.
    pub(crate) async fn with_products(engine: Engine) -> Self {
        let database = Self::create(engine).await;
        let rows: Vec<String> = (1..=PRODUCTS)
            .map(|id| {
                let category = category(id).map_or("NULL".to_owned(), |name| format!("'{name}'"));
                format!("({id}, '{}', {}, {category})", title(id), price(id))
            })
            .collect();
        database
            .execute(&format!(
                "CREATE TABLE products (id INTEGER PRIMARY KEY, title VARCHAR(100) NOT NULL, \
                 price_cents INTEGER NOT NULL, category VARCHAR(40)); \
                 INSERT INTO products VALUES {};",
                rows.join(", ")
            ))
            .await;
        database
    }

    /// Adds the view `slow` (`id`, `title`), which takes `seconds` to give its only row.
    pub(crate) async fn add_slow_view(&self, seconds: u32) {
        let one = "SELECT 1 AS id, 'late' AS title";
        let sql = match self.engine {
            Engine::Postgres => {
                format!(
                    "CREATE VIEW slow AS SELECT 1 AS id, 'late'::text AS title FROM pg_sleep({seconds})"
                )
            }
            Engine::Mysql => format!(
                "CREATE TABLE one (n INTEGER); INSERT INTO one VALUES (1); \
                 CREATE VIEW slow AS {one} FROM one WHERE sleep({seconds}) = 0"
            ),
            // SQLite cannot sleep; it counts, a few million steps in a second at most.
            Engine::Sqlite => format!(
                "CREATE VIEW slow AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c \
                 WHERE n < {}) SELECT count(*) AS id, 'late' AS title FROM c",
                u64::from(seconds) * 5_000_000
            ),
        };
        self.execute(&sql).await;
    }

    /// Adds the table `wide` (`id`, `title`) of `rows` rows of about 120 bytes each.
    pub(crate) async fn add_wide_table(&self, rows: u64) {
        let sql = match self.engine {
            Engine::Postgres => format!(
                "CREATE TABLE wide AS SELECT n AS id, repeat('x', 100) || n AS title FROM generate_series(1, {rows}) n; \
                 ALTER TABLE wide ADD PRIMARY KEY (id)"
            ),
            Engine::Mysql => format!(
                "CREATE TABLE wide (id INTEGER PRIMARY KEY, title VARCHAR(200)) \
                 SELECT seq AS id, concat(repeat('x', 100), seq) AS title FROM seq_1_to_{rows}"
            ),
            Engine::Sqlite => format!(
                "CREATE TABLE wide (id INTEGER PRIMARY KEY, title TEXT); \
                 WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) \
                 INSERT INTO wide SELECT n, printf('%.100c', 'x') || n FROM c"
            ),
        };
        self.execute(&sql).await;
    }

    /// Runs statements, separated by semicolons, as the database's own user.
    pub(crate) async fn execute(&self, sql: &str) {
        let done: Result<(), String> = match self.engine {
            Engine::Postgres => postgres(&self.url())
                .await
                .unwrap()
                .batch_execute(sql)
                .await
                .map_err(|e| format!("{e:?}")),
            Engine::Mysql => {
                let mut conn = mysql(&self.url()).await.unwrap();
                let done = conn.query_drop(sql).await.map_err(|e| e.to_string());
                conn.disconnect().await.unwrap();
                done
            }
            Engine::Sqlite => {
                let (path, sql) = (self.path(), sql.to_owned());
                let run = move || rusqlite::Connection::open(path)?.execute_batch(&sql);
                tokio::task::spawn_blocking(run)
                    .await
                    .unwrap()
                    .map_err(|e| e.to_string())
            }
        };
        done.unwrap_or_else(|error| panic!("{error} in: {}", &sql[..sql.len().min(300)]));
    }

    /// The statements that the server works on in this database at this moment (not for SQLite, which has
    /// no server to ask).
    pub(crate) async fn running(&self) -> Vec<String> {
        match self.engine {
            Engine::Postgres => {
                let client = postgres(servers::postgres()).await.unwrap();
                let sql =
                    "SELECT query FROM pg_stat_activity WHERE datname = $1 AND state <> 'idle'";
                let rows = client.query(sql, &[&self.name]).await.unwrap();
                rows.iter().map(|row| row.get(0)).collect()
            }
            Engine::Mysql => {
                let mut conn = mysql(servers::mysql()).await.unwrap();
                let sql = "SELECT info FROM information_schema.processlist \
                           WHERE db = ? AND command IN ('Query', 'Execute') AND info IS NOT NULL";
                let found = conn.exec(sql, (&self.name,)).await.unwrap();
                conn.disconnect().await.unwrap();
                found
            }
            Engine::Sqlite => panic!("SQLite has no server to ask"),
        }
    }

    /// What a query answers, each row as JSON (PostgreSQL only).
    pub(crate) async fn query(&self, sql: &str) -> Vec<Value> {
        let client = postgres(&self.url()).await.unwrap();
        let sql = format!("SELECT row_to_json(t)::text FROM ({sql}) t");
        let rows = client.query(&sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| serde_json::from_str(row.get(0)).unwrap())
            .collect()
    }

    /// Cuts everybody off from the database, or lets them in again (PostgreSQL only).
    pub(crate) async fn allow_connections(&self, allow: bool) {
        let client = postgres(servers::postgres()).await.unwrap();
        let name = &self.name;
        let sql = format!(
            "ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND NOT {allow}"
        );
        client.batch_execute(&sql).await.unwrap();
    }

    /// What a source needs to reach it.
    pub(crate) fn config(&self) -> Value {
        let server = match self.engine {
            Engine::Postgres => servers::postgres(),
            Engine::Mysql => servers::mysql(),
            Engine::Sqlite => return json!({"path": self.path()}),
        };
        let default_port = if self.engine == Engine::Postgres {
            5432
        } else {
            3306
        };
        json!({
            "host": server.host_str().unwrap(),
            "port": server.port().unwrap_or(default_port),
            "database": self.name,
            "user": self.name,
            "password": self.password,
        })
    }

    /// The password in [`Self::config`], which must show up nowhere else.
    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    fn path(&self) -> String {
        self.dir.path().join("source.db").display().to_string()
    }

    /// Where drivers find it.
    pub(crate) fn url(&self) -> Url {
        let mut url = match self.engine {
            Engine::Postgres => servers::postgres().clone(),
            Engine::Mysql => servers::mysql().clone(),
            Engine::Sqlite => return Url::from_file_path(self.path()).unwrap(),
        };
        url.set_username(&self.name).unwrap();
        url.set_password(Some(&self.password)).unwrap();
        url.set_path(&self.name);
        url
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = &self.name;
        let statements = match self.engine {
            Engine::Postgres => vec![
                format!("DROP DATABASE {name} WITH (FORCE)"),
                format!("DROP ROLE {name}"),
            ],
            Engine::Mysql => vec![
                format!("DROP DATABASE {name}"),
                format!("DROP USER '{name}'@'%'"),
            ],
            Engine::Sqlite => return,
        };
        // A panic here would hide the failure of the test behind an abort.
        if let Err(error) = servers::alone(administer(self.engine, statements)) {
            eprintln!("database {name} could not be dropped: {error}");
        }
    }
}

async fn administer(engine: Engine, statements: Vec<String>) -> Result<(), String> {
    match engine {
        Engine::Postgres => {
            let client = postgres(servers::postgres()).await?;
            for sql in statements {
                client
                    .batch_execute(&sql)
                    .await
                    .map_err(|error| format!("{error:?}"))?;
            }
        }
        Engine::Mysql => {
            let mut conn = mysql(servers::mysql()).await?;
            for sql in statements {
                conn.query_drop(sql)
                    .await
                    .map_err(|error| error.to_string())?;
            }
            conn.disconnect().await.map_err(|error| error.to_string())?;
        }
        Engine::Sqlite => {}
    }
    Ok(())
}

async fn postgres(url: &Url) -> Result<tokio_postgres::Client, String> {
    let connected = tokio_postgres::connect(url.as_str(), NoTls).await;
    let (client, connection) = connected.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    Ok(client)
}

async fn mysql(url: &Url) -> Result<mysql_async::Conn, String> {
    mysql_async::Conn::from_url(url)
        .await
        .map_err(|error| error.to_string())
}
