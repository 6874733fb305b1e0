//! An answer that is not all there is says so: over HTTP and in the shell.

use serde_json::{Value, json};

use super::ask_for_lines;
use crate::cli::{Done, semilayer};
use crate::support::databases::{PRODUCTS, product};
use crate::support::fake_runner::rows_frame_of;
use crate::support::rest::text;
use crate::support::{Engine, FakeRunner, Gateway, Stage};

fn parse(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// A query from the shell, as a pipe sees it.
fn query(gateway: &Gateway, args: &[&str]) -> Done {
    let key = text(&gateway.ready, "secretKey");
    let args = [&["query"], args].concat();
    semilayer(gateway, &args, &[("SEMILAYER_KEY", key.as_str())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_lead_from_page_to_page_until_there_are_no_more() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let caller = stage.gateway.caller();
    let (mut rows, mut cursor, mut pages) = (Vec::new(), Value::Null, 0);
    loop {
        let body = json!({"limit": 100, "orderBy": {"id": "asc"}, "cursor": cursor});
        let response = ask_for_lines(&caller, "products", &body, None).await;
        let header = response.headers().get("x-semilayer-next-cursor").cloned();
        let mut lines: Vec<Value> = response.text().await.unwrap().lines().map(parse).collect();
        pages += 1;
        let next = lines.pop_if(|last| last.get("$next").is_some());
        rows.extend(lines);
        match next {
            Some(next) => {
                cursor = next["$next"]["cursor"].clone();
                assert_eq!(header.unwrap().to_str().unwrap(), cursor);
            }
            None => break assert!(header.is_none()),
        }
    }
    assert_eq!(pages, 3);
    assert_eq!(rows, (1..=PRODUCTS).map(product).collect::<Vec<_>>());

    let document = caller.query("products", json!({"limit": 100})).await;
    let next = document.json()["meta"]["nextCursor"].clone();
    assert_eq!(document.header("x-semilayer-next-cursor"), next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shell_prints_rows_and_says_that_there_may_be_more() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let gateway = &stage.gateway;
    let ids = |done: &Done| -> Vec<u64> {
        assert_eq!(done.code, Some(0), "{}", done.err);
        let id = |line| parse(line)["id"].as_u64().unwrap();
        done.out.lines().map(id).collect()
    };
    let first = query(gateway, &["products", "--limit", "3"]);
    assert_eq!(ids(&first), [1, 2, 3]);
    assert!(first.err.contains("may be more rows"), "{}", first.err);
    let cursor = first.err.split_once("`--cursor ").unwrap().1;
    let cursor = cursor.split('`').next().unwrap();
    let second = query(gateway, &["products", "--limit", "3", "--cursor", cursor]);
    assert_eq!(ids(&second), [4, 5, 6]);
    let all = query(gateway, &["products", "--limit", "1000"]);
    assert_eq!(ids(&all).len() as u64, PRODUCTS);
    assert_eq!(all.err, "");
    let none = query(gateway, &["products", "--where", r#"{"id": -1}"#]);
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""));
    // Programs find it where it always was.
    let json = query(gateway, &["products", "--limit", "3", "--json"]);
    assert_eq!((json.code, json.err.as_str()), (Some(0), ""));
    assert!(parse(&json.out)["meta"]["nextCursor"].is_string());

    let job = query(gateway, &["products", "--limit", "3", "--detach"]);
    let job = job.out.trim();
    gateway.until_job_is(job, "completed").await;
    let result = semilayer(gateway, &["jobs", "result", job], &[]);
    assert_eq!(ids(&result), [1, 2, 3]);
    assert!(result.err.contains("--cursor"), "{}", result.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_looks_like_an_error_is_a_row() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let table = "CREATE TABLE log (id INTEGER PRIMARY KEY, error TEXT, code TEXT, \"requestId\" TEXT); \
                 INSERT INTO log VALUES (1, 'disk full', 'E1', 'r-1')";
    stage.database.execute(table).await;
    let field = json!({"type": "text"});
    stage
        .add_lens(json!({
            "name": "log", "sourceId": stage.source, "table": "log", "primaryKey": "id", "grants": {},
            "fields": {"id": {"type": "number"}, "error": field, "code": field, "requestId": field},
        }))
        .await;
    let done = query(&stage.gateway, &["log", "--select", "error,code,requestId"]);
    assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
    assert_eq!(
        parse(&done.out),
        json!({"error": "disk full", "code": "E1", "requestId": "r-1"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_broke_off_fails_in_the_shell_with_its_reason_and_its_job() {
    let stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_identity("flaky").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    for flags in [&[][..], &["--json"]] {
        let gateway = &stage.gateway;
        let key = text(&gateway.ready, "secretKey");
        let mut command =
            crate::support::process::Process::command(env!("CARGO_BIN_EXE_semilayer"));
        command
            .args(["query", "products"])
            .args(flags)
            .env("SEMILAYER_URL", gateway.url())
            .env("SEMILAYER_KEY", key);
        let running = tokio::task::spawn_blocking(move || Done::of(command.output().unwrap()));
        let (id, job) = session.job().await;
        session.accept(&id).await;
        let lines = job["encoding"] == "ndjson";
        let row = format!("{{\"id\":1}}{}", if lines { "\n" } else { "" });
        session
            .send_binary(rows_frame_of(&id, 1, row.as_bytes()))
            .await;
        session
            .assert_silent(std::time::Duration::from_millis(600))
            .await;
        session
            .send_error(&id, "SOURCE_QUERY_FAILED", "division by zero")
            .await;
        let done = running.await.unwrap();
        assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
        assert!(done.err.contains("division by zero"), "{}", done.err);
        if lines {
            assert_eq!(done.out, "{\"id\":1}\n");
            let job = text(&job, "jobId");
            assert!(done.err.contains(&job), "{}", done.err);
        } else {
            assert_eq!(done.out, "", "a document that small has a status");
        }
    }
}
