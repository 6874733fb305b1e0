//! The admin CLI against a real gateway: the steps of the README, as a person types them.

use std::process::Output;

use serde_json::Value;

use crate::support::databases::{Database, Engine, PRODUCTS};
use crate::support::process::Process;
use crate::support::rest::{Runner, text};
use crate::support::{Gateway, RunnerProcess, Stage};

/// What a command printed, and how it ended.
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// Standard output, if the command succeeded.
    #[track_caller]
    fn out(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        &self.out
    }

    /// The error, if the command ended with this code.
    #[track_caller]
    fn err(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        &self.err
    }
}

/// Runs `semilayer` with the gateway's admin key and these variables.
pub(crate) fn semilayer(gateway: &Gateway, args: &[&str], env: &[(&str, &str)]) -> Done {
    let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
    command
        .args(args)
        .env("SEMILAYER_URL", gateway.url())
        .env("SEMILAYER_ADMIN_KEY", text(&gateway.ready, "adminKey"))
        .envs(env.iter().copied());
    Done::of(command.output().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_runner_to_rows_by_command_line() {
    let gateway = Gateway::start().await;
    let database = Database::with_products(Engine::Postgres).await;
    let run = |args: &[&str]| semilayer(&gateway, args, &[]);

    let created = run(&["runners", "create", "primary-prod"]);
    let lines: Vec<&str> = created.out().lines().collect();
    let runner = Runner {
        id: lines[0]
            .strip_prefix("SEMILAYER_RUNNER_ID=")
            .unwrap()
            .to_owned(),
        token: lines[1]
            .strip_prefix("SEMILAYER_RUNNER_TOKEN=")
            .unwrap()
            .to_owned(),
    };
    assert!(
        created.out().contains("shown once") && created.out().contains("semilayer-runner start")
    );
    let list = run(&["runners", "list"]);
    let titles = list
        .out()
        .lines()
        .next()
        .unwrap()
        .split("  ")
        .map(str::trim)
        .filter(|title| !title.is_empty());
    assert_eq!(
        titles.collect::<Vec<_>>(),
        [
            "ID",
            "NAME",
            "STATUS",
            "VERSION",
            "SOURCES",
            "JOBS",
            "LAST SEEN"
        ]
    );
    assert!(list.out().contains("never_connected"), "{}", list.out());

    let _process = RunnerProcess::start(&gateway, &runner).await;
    let config = database.config();
    let settings: Vec<String> = config
        .as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| *key != "password")
        .flat_map(|(key, value)| {
            [
                "--set".to_owned(),
                format!(
                    "{key}={}",
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                ),
            ]
        })
        .collect();
    let mut create = vec![
        "sources",
        "create",
        "shop",
        "--bridge",
        "postgres",
        "--set-env",
        "password=PGPASSWORD",
    ];
    create.extend(settings.iter().map(String::as_str));
    semilayer(&gateway, &create, &[("PGPASSWORD", database.password())]).out();
    let shown = run(&["sources", "get", "shop"]);
    assert!(
        !shown.out().contains(database.password()),
        "{}",
        shown.out()
    );
    run(&["runners", "assign", "primary-prod", "shop"]).out();
    let tested = run(&["sources", "test", "shop"]);
    assert!(
        tested.out().starts_with("✓ primary-prod: "),
        "{}",
        tested.out()
    );
    assert!(
        run(&["sources", "targets", "shop"])
            .out()
            .contains("products")
    );

    run(&[
        "lenses",
        "create",
        "--source",
        "shop",
        "--table",
        "public.products",
        "--introspect",
    ])
    .out();
    let key = run(&["keys", "create", "--type", "sk", "--name", "backend"]);
    let key = key.out().trim();
    assert!(key.starts_with("sk_development_"), "{key}");
    let query = |args: &[&str]| {
        semilayer(
            &gateway,
            &[&["query", "products"], args].concat(),
            &[("SEMILAYER_KEY", key)],
        )
    };
    let rows = query(&[
        "--where",
        r#"{"category": "tools"}"#,
        "--order-by",
        "id:desc",
        "--select",
        "id,title",
        "--limit",
        "2",
    ]);
    let rows: Vec<Value> = rows
        .out()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        rows,
        [
            serde_json::json!({"id": 249, "title": "Product 249"}),
            serde_json::json!({"id": 245, "title": "Product 245"}),
        ]
    );
    assert_eq!(query(&["--count"]).out().trim(), PRODUCTS.to_string());
    let whole: Value = serde_json::from_str(query(&["--limit", "1", "--json"]).out()).unwrap();
    assert_eq!(whole["meta"]["runnerId"], runner.id);

    let jobs: Value =
        serde_json::from_str(run(&["jobs", "list", "--json", "--state", "completed"]).out())
            .unwrap();
    let job = text(&jobs["items"][0], "id");
    assert!(run(&["jobs", "get", &job]).out().contains(&job));
    assert!(run(&["jobs", "list"]).out().contains("primary-prod"));
    assert!(run(&["runners", "list"]).out().contains("online"));
    assert!(
        run(&["runners", "sessions", "primary-prod"])
            .out()
            .lines()
            .count()
            == 2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_a_sentence_a_code_and_a_request() {
    let gateway = Gateway::start().await;
    let run = |args: &[&str]| semilayer(&gateway, args, &[]);
    let missing = run(&["runners", "get", "nobody"]);
    let error = missing.err(1);
    assert!(
        error.starts_with("error: ") && error.contains("nobody"),
        "{error}"
    );
    assert!(
        error.contains("not_found") && error.contains("request "),
        "{error}"
    );
    let taken = ["environments", "create", "development"];
    assert!(run(&taken).err(1).contains("conflict"));
    let wrong = semilayer(
        &gateway,
        &["runners", "list"],
        &[("SEMILAYER_ADMIN_KEY", "ak_default_wrong")],
    );
    assert!(wrong.err(4).contains("invalid_key"), "{}", wrong.err);
    run(&["runners", "list", "--no-such-flag"]).err(2);
    let nobody = semilayer(
        &gateway,
        &["whoami"],
        &[("SEMILAYER_URL", "http://127.0.0.1:1")],
    );
    assert!(nobody.err(3).contains("SEMILAYER_URL"), "{}", nobody.err);
    assert_eq!(run(&["health"]).out().trim(), "ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switching_where_credentials_are_kept_needs_a_yes() {
    let gateway = Gateway::start().await;
    let run = |args: &[&str]| semilayer(&gateway, args, &[]);
    run(&[
        "sources",
        "create",
        "files",
        "--bridge",
        "sqlite",
        "--set",
        "path=/nonexistent/x.db",
    ])
    .out();
    let switch = [
        "sources",
        "update",
        "files",
        "--credentials-location",
        "runner-local",
    ];
    let refused = run(&switch);
    assert!(
        refused.err(2).contains("wipes") && refused.err(2).contains("--yes"),
        "{}",
        refused.err
    );
    let kept: Value = serde_json::from_str(run(&["sources", "get", "files"]).out()).unwrap();
    assert_eq!(kept["config"]["path"], "/nonexistent/x.db");
    run(&[&switch[..], &["--yes"]].concat()).out();
    let wiped: Value = serde_json::from_str(run(&["sources", "get", "files"]).out()).unwrap();
    assert_eq!(
        (&wiped["credentialsLocation"], &wiped["config"]),
        (&"runner-local".into(), &serde_json::json!({}))
    );
    let tested = run(&["sources", "test", "files"]);
    assert_ne!(
        tested.code,
        Some(0),
        "nobody has its credentials: {}",
        tested.out
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_revoked_by_command_line_opens_nothing() {
    let gateway = Gateway::start().await;
    let run = |args: &[&str]| semilayer(&gateway, args, &[]);
    let created = run(&["keys", "create", "--type", "sk", "--name", "x", "--json"]);
    let key: Value = serde_json::from_str(created.out()).unwrap();
    run(&["keys", "revoke", &text(&key, "id")]).out();
    let query = semilayer(
        &gateway,
        &["query", "x"],
        &[("SEMILAYER_KEY", &text(&key, "key"))],
    );
    assert!(query.err(4).contains("invalid_key"), "{}", query.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_need_not_be_waited_for() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let key = text(&stage.gateway.ready, "secretKey");
    let run = |args: &[&str]| semilayer(&stage.gateway, args, &[("SEMILAYER_KEY", &key)]);
    let query = ["query", "products", "--limit", "2", "--order-by", "id"];
    let detached = [&query[..], &["--detach", "--idempotency-key", "two"]].concat();
    let job = run(&detached).out().trim().to_owned();
    assert_eq!(run(&detached).out().trim(), job);
    stage.gateway.until_job_is(&job, "completed").await;
    let result = run(&["jobs", "result", &job]);
    assert_eq!(
        result.out(),
        run(&query).out(),
        "a line per row, as when it is waited for"
    );
    let json = [&detached[..], &["--json"]].concat();
    assert!(
        run(&json).err(1).contains("Idempotency-Key"),
        "in another form it is another request"
    );
    assert!(
        run(&["query", "products", "--idempotency-key", "x"])
            .err(2)
            .contains("--detach")
    );
}
