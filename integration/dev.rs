//! `semilayer dev`: one command from nothing to rows, and back again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually::holds;
use crate::support::process::Process;
use crate::support::rest::text;
use crate::support::{Gateway, PATIENCE, eventually, proc};

fn lenses(gateway: &Gateway) -> Vec<String> {
    let lenses = gateway.ready["lenses"].as_array().unwrap();
    lenses
        .iter()
        .map(|lens| lens.as_str().expect("lenses are names").to_owned())
        .collect()
}

/// Asserts that every lens of the demo answers through the runner, and counts all its rows.
async fn count_through_the_runner(gateway: &Gateway) -> u64 {
    let mut rows = 0;
    for lens in lenses(gateway) {
        let answer = gateway
            .caller()
            .query(&lens, json!({"limit": 1, "total": true}))
            .await
            .expect(200);
        assert_eq!(answer["rows"].as_array().unwrap().len(), 1, "{lens}");
        assert_eq!(
            answer["meta"]["runnerId"], gateway.ready["runnerId"],
            "{lens}"
        );
        rows += answer["meta"]["total"].as_u64().unwrap();
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_nothing_to_rows_and_again_and_ctrl_c_ends_everything() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut first = Gateway::dev(&[]).start_in(&data, None).await;
    assert_eq!(
        first.process.stdout().lines().count(),
        1,
        "one line and nothing else"
    );
    assert_eq!(first.ready["dataDir"], data.display().to_string());
    assert!(lenses(&first).len() >= 3, "{}", first.ready);
    let rows = count_through_the_runner(&first).await;
    assert!(rows >= 2000, "a few thousand rows, not {rows}");

    let children = proc::children(first.process.pid());
    assert_eq!(children.len(), 1, "the runner is a child process");
    let stopped = Instant::now();
    first.process.signal("INT");
    assert!(first.process.end(PATIENCE).await.success());
    assert!(
        stopped.elapsed() < Duration::from_secs(5),
        "idle, it takes {:?} to stop",
        stopped.elapsed()
    );
    eventually(
        "the child is gone too",
        Duration::from_secs(2),
        async || holds(!proc::is_alive(children[0]), "it runs"),
    )
    .await;

    let second = Gateway::dev(&[]).start_in(&data, None).await;
    for same in ["runnerId", "sourceId", "lenses", "dataDir"] {
        assert_eq!(second.ready[same], first.ready[same], "{same}");
    }
    assert_eq!(count_through_the_runner(&second).await, rows);
    let old_key = second.caller().with_key(&text(&first.ready, "secretKey"));
    old_key
        .query(&lenses(&second)[0], json!({"limit": 1}))
        .await
        .expect(200);
    let runners = second.admin().get("/v1/runners").await.expect(200);
    assert_eq!(runners["items"].as_array().unwrap().len(), 1, "{runners}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_demo_it_starts_empty() {
    let mut gateway = Gateway::start().await;
    assert_eq!(gateway.ready["lenses"], json!([]));
    assert_eq!(proc::children(gateway.process.pid()), Vec::<u32>::new());
    for list in ["/v1/runners", "/v1/sources", "/v1/lenses"] {
        assert_eq!(
            gateway.admin().get(list).await.expect(200)["items"],
            json!([]),
            "{list}"
        );
    }
    let whoami = gateway.admin().get("/v1/whoami").await.expect(200);
    assert_eq!(whoami["organisation"]["name"], "default", "{whoami}");
    for path in ["/health", "/ready", "/v1/bridge-manifests"] {
        gateway.admin().anonymous().get(path).await.expect_success();
    }
    let openapi = gateway
        .admin()
        .anonymous()
        .get("/v1/openapi.json")
        .await
        .expect(200);
    assert!(
        openapi["openapi"].as_str().unwrap().starts_with("3."),
        "{openapi}"
    );
    gateway
        .admin()
        .anonymous()
        .get("/docs")
        .await
        .expect_success();
    gateway.process.signal("TERM");
    assert!(gateway.process.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_gets_addresses_keys_and_a_command_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
    command
        .args(["dev", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("data"));
    let process = Process::start("dev", command);
    let curl = eventually(
        "a curl to paste is printed",
        Duration::from_secs(60),
        async || {
            let out = process.stdout();
            let start = out.find("curl ").ok_or_else(|| out.clone())?;
            let command: Vec<&str> = out[start..]
                .lines()
                .scan(true, |goes_on, line| {
                    let take = *goes_on;
                    *goes_on = line.trim_end().ends_with('\\');
                    take.then_some(line)
                })
                .collect();
            Ok(command.join("\n"))
        },
    )
    .await;
    let answer = eventually("the command returns rows", PATIENCE, async || {
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("{curl} --silent --show-error"))
            .output()
            .unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {output:?}"))?;
        if answer["rows"].is_array() {
            Ok(answer)
        } else {
            Err(answer.to_string())
        }
    })
    .await;
    assert!(!answer["rows"].as_array().unwrap().is_empty(), "{answer}");
    assert!(process.stdout().contains("ak_") && process.stdout().contains("sk_"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_runner_that_dies_is_started_again() {
    let mut gateway = Gateway::dev(&[]).start().await;
    let child = proc::children(gateway.process.pid())[0];
    std::process::Command::new("kill")
        .args(["-KILL", &child.to_string()])
        .status()
        .unwrap();
    let lens = lenses(&gateway).remove(0);
    eventually("the demo answers again", PATIENCE, async || {
        let answer = gateway.caller().query(&lens, json!({"limit": 1})).await;
        holds(
            answer.status.is_success() && proc::children(gateway.process.pid()) != [child],
            answer,
        )
    })
    .await;
    gateway.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_said_in_one_line() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer"));
    command
        .args(["dev", "--no-demo", "--listen", &address, "--data-dir"])
        .arg(dir.path().join("data"));
    let mut process = Process::start("dev", command);
    let status = process.end(PATIENCE).await;
    assert!(!status.success());
    assert!(process.log().contains(&address), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_lacks_a_variable_names_it_and_exits_2() {
    for missing in [
        "SEMILAYER_RUNNER_ID",
        "SEMILAYER_RUNNER_TOKEN",
        "SEMILAYER_GATEWAY_URL",
    ] {
        let mut command = Process::command(env!("CARGO_BIN_EXE_semilayer-runner"));
        command
            .arg("start")
            .env("SEMILAYER_RUNNER_ID", "primary")
            .env("SEMILAYER_RUNNER_TOKEN", "rk_default_x")
            .env("SEMILAYER_GATEWAY_URL", "ws://127.0.0.1:1")
            .env_remove(missing);
        let mut process = Process::start("runner", command);
        assert_eq!(process.end(PATIENCE).await.code(), Some(2));
        assert!(process.log().contains(missing), "{}", process.log());
        assert_eq!(
            process.log().trim().lines().count(),
            1,
            "one line: {}",
            process.log()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_gateway_on_the_same_files_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut first = Gateway::dev(&["--no-demo"])
        .timing("gateway_renewal=100ms")
        .start_in(&data, None)
        .await;
    let second = Process::command(env!("CARGO_BIN_EXE_semilayer"))
        .args(["gateway", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another gateway uses"), "{said}");
    assert!(!said.contains("died"), "{said}");
    // Longer than several renewals: a gateway that was taken over ends with the next one.
    let since = Instant::now();
    eventually("some renewals have passed", PATIENCE, async || {
        holds(
            since.elapsed() > Duration::from_millis(600),
            since.elapsed(),
        )
    })
    .await;
    first.assert_healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_another_master_key_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let first = Gateway::dev(&["--no-demo"]).start_in(&data, None).await;
    drop(first);
    let other_key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let second = Process::command(env!("CARGO_BIN_EXE_semilayer"))
        .args(["gateway", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .env("SEMILAYER_MASTER_KEY", other_key)
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(
        said.contains("set up with another master key") && !said.contains(other_key),
        "{said}"
    );
}
