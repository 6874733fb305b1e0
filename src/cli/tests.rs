//! The commands against a server of this test's own that answers as the REST API does.

use std::sync::{Arc, Mutex};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[derive(Parser)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

/// Answers every request with the next of `answers`, and keeps what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answers: Vec<(u16, Value)>) -> Self {
        crate::process::install_tls_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            for (status, body) in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 64 * 1024];
                let mut length = 0;
                let whole = loop {
                    length += socket.read(&mut request[length..]).await.unwrap();
                    let text = String::from_utf8_lossy(&request[..length]).into_owned();
                    let Some((head, sent)) = text.split_once("\r\n\r\n") else {
                        continue;
                    };
                    let expected = head
                        .lines()
                        .find_map(|line| line.strip_prefix("content-length: "));
                    if sent.len() >= expected.map_or(0, |length| length.parse().unwrap()) {
                        break text;
                    }
                };
                log.lock().unwrap().push(whole);
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                socket.write_all((head + &body).as_bytes()).await.unwrap();
            }
        });
        Self { url, asked }
    }

    async fn run(&self, args: &[&str]) -> String {
        let server = ["--server", &self.url, "--admin-key", "ak_acme_x"];
        let flags = Flags::parse_from([&["semilayer"], args, &server[..]].concat());
        format!("{:?}", run(flags.command).await)
    }

    fn asked(&self, index: usize) -> String {
        self.asked.lock().unwrap()[index].clone()
    }
}

fn code(code: u8) -> String {
    format!("{:?}", ExitCode::from(code))
}

#[test]
fn every_command_and_flag_is_declared_without_contradiction() {
    use clap::CommandFactory;
    Flags::command().debug_assert();
}

#[tokio::test]
async fn a_runner_is_created_with_the_key_and_the_name_that_were_given() {
    let server = Server::start(vec![(
        201,
        json!({ "id": "0190", "name": "a", "token": "rk_acme_y" }),
    )])
    .await;
    assert_eq!(
        server.run(&["runners", "create", "primary-prod"]).await,
        code(0)
    );
    let asked = server.asked(0);
    assert!(asked.starts_with("POST /v1/runners HTTP/1.1"), "{asked}");
    assert!(asked.contains("authorization: Bearer ak_acme_x"), "{asked}");
    assert!(
        asked.ends_with(r#"{"name":"primary-prod","deployment":"customer"}"#),
        "{asked}"
    );
}

#[tokio::test]
async fn a_list_is_read_to_its_last_page() {
    let pages = vec![
        (200, json!({ "items": [{}], "nextCursor": "c/1" })),
        (200, json!({ "items": [{}] })),
    ];
    let server = Server::start(pages).await;
    assert_eq!(
        server
            .run(&["sources", "list", "--environment", "staging"])
            .await,
        code(0)
    );
    assert!(
        server
            .asked(0)
            .starts_with("GET /v1/sources?environment=staging&limit=100 "),
        "{}",
        server.asked(0)
    );
    assert!(
        server
            .asked(1)
            .starts_with("GET /v1/sources?environment=staging&limit=100&cursor=c%2F1 "),
        "{}",
        server.asked(1)
    );
}

#[tokio::test]
async fn names_cannot_leave_their_place_in_the_path() {
    let server = Server::start(vec![(200, json!({}))]).await;
    server.run(&["runners", "get", "a/../b?x=1#y"]).await;
    assert!(
        server
            .asked(0)
            .starts_with("GET /v1/runners/a%2F..%2Fb%3Fx=1%23y "),
        "{}",
        server.asked(0)
    );
}

#[tokio::test]
async fn the_exit_code_tells_what_kind_of_no_it_was() {
    let refusal = json!({ "error": "no", "code": "x", "requestId": "r" });
    for (status, expected) in [
        (400, 1),
        (401, 4),
        (403, 4),
        (404, 1),
        (409, 1),
        (429, 3),
        (500, 1),
        (503, 3),
    ] {
        let server = Server::start(vec![(status, refusal.clone())]).await;
        assert_eq!(
            server.run(&["runners", "list"]).await,
            code(expected),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_has_an_exit_code_of_its_own() {
    crate::process::install_tls_provider();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let flags = Flags::parse_from([
        "semilayer",
        "whoami",
        "--server",
        &url,
        "--admin-key",
        "ak_x",
    ]);
    assert_eq!(format!("{:?}", run(flags.command).await), code(3));
    let flags = Flags::parse_from([
        "semilayer",
        "whoami",
        "--server",
        "localhost:8080",
        "--admin-key",
        "ak_x",
    ]);
    assert_eq!(format!("{:?}", run(flags.command).await), code(2));
}

#[tokio::test]
async fn a_refusal_is_told_with_its_path_code_and_request() {
    let body = json!({ "error": "no such field", "code": "unknown_field", "requestId": "0199", "path": "where.nmae" });
    let server = Server::start(vec![(400, body)]).await;
    let client = Client::new(server.url.parse().unwrap(), None, None).unwrap();
    let error = client.get(&["v1", "x"], &[]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no such field (at `where.nmae`) [unknown_field, request 0199]"
    );
}

#[tokio::test]
async fn something_else_than_a_gateway_is_recognised() {
    let server = Server::start(vec![(200, json!("hello")), (502, json!("<html>"))]).await;
    let client = Client::new(server.url.parse().unwrap(), None, None).unwrap();
    let error = client.list(&["v1", "runners"], &[], 10).await.unwrap_err();
    assert!(
        error.to_string().contains("is it a semilayer gateway?"),
        "{error}"
    );
    let error = client.get(&["v1", "runners"], &[]).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not as a semilayer gateway does"),
        "{error}"
    );
}

#[tokio::test]
async fn a_test_of_a_source_fails_when_one_runner_fails() {
    let results = json!({ "ok": false, "results": [
        { "runner": { "name": "a" }, "ok": true, "version": "15", "latencyMs": 1.5 },
        { "runner": { "name": "b" }, "ok": false, "error": { "code": "SOURCE_UNREACHABLE", "message": "refused" } },
    ]});
    let server = Server::start(vec![(200, results)]).await;
    assert_eq!(server.run(&["sources", "test", "shop"]).await, code(1));
}

#[tokio::test]
async fn a_switch_of_credentials_is_not_made_without_being_asked_for() {
    let current = json!({ "id": "0190", "bridge": "postgres", "credentialsLocation": "managed", "config": {} });
    let manifests = json!({ "items": [] });
    let server = Server::start(vec![(200, current), (200, manifests), (200, json!({}))]).await;
    let switch = [
        "sources",
        "update",
        "shop",
        "--credentials-location",
        "runner-local",
    ];
    assert_eq!(
        server.run(&[&switch[..], &["--yes"]].concat()).await,
        code(0)
    );
    assert!(
        server
            .asked(2)
            .ends_with(r#"{"credentialsLocation":"runner-local"}"#),
        "{}",
        server.asked(2)
    );
}

#[tokio::test]
async fn a_query_goes_to_its_lens_with_the_callers_key() {
    let server = Server::start(vec![(200, json!({ "count": 7 }))]).await;
    let done = server
        .run(&[
            "query",
            "orders",
            "--key",
            "sk_dev_z",
            "--count",
            "--where",
            r#"{"paid":true}"#,
        ])
        .await;
    assert_eq!(done, code(0));
    let asked = server.asked(0);
    assert!(asked.starts_with("POST /v1/query/orders/count "), "{asked}");
    assert!(
        asked.contains("authorization: Bearer sk_dev_z")
            && asked.ends_with(r#"{"where":{"paid":true}}"#),
        "{asked}"
    );
}
