//! The script that starts the hosted topology as plain processes, and the files it shares with the containers.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;

use crate::support::cluster::one_at_a_time;
use crate::support::process::Process;
use crate::support::rest::Api;

fn topology(command: &str, dir: &Path) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/topology");
    let bin = Path::new(env!("CARGO_BIN_EXE_semilayer")).parent().unwrap();
    let mut run = Process::command(script);
    run.arg(command).arg(dir).env("TOPOLOGY_BIN", bin);
    run.output().unwrap()
}

/// Takes the topology down however the test ends.
struct Up<'d>(&'d Path);

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let down = topology("down", self.0);
        if !down.status.success() {
            eprintln!("topology down: {}", String::from_utf8_lossy(&down.stderr));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_starts_a_topology_that_answers_and_takes_it_down_again() {
    let _alone = one_at_a_time().await;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("topology");
    let up = Up(&dir);
    let started = topology("up", &dir);
    let said = String::from_utf8(started.stdout).unwrap();
    assert!(
        started.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&started.stderr)
    );
    let variable = |name: &str| {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(&format!("export {name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {said}"))
            .to_owned()
    };
    let caller = Api::new(&variable("SEMILAYER_URL"), Some(&variable("SEMILAYER_KEY")));
    for _ in 0..20 {
        let body = json!({"where": {"id": [7, 8]}, "select": ["id", "status"]});
        let rows = caller.query("orders", body).await.rows();
        assert_eq!(
            rows,
            [
                json!({"id": 7, "status": "returned"}),
                json!({"id": 8, "status": "new"})
            ]
        );
    }
    // The query that it prints is one that a shell can run.
    let printed: Vec<&str> = said
        .lines()
        .skip_while(|line| !line.starts_with("curl "))
        .collect();
    let pasted = Command::new("sh")
        .args(["-c", &printed.join("\n")])
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&pasted.stdout).unwrap();
    assert_eq!(answer["rows"].as_array().map(Vec::len), Some(3), "{answer}");
    assert!(topology("status", &dir).status.success());
    drop(up);
    assert!(!dir.exists());
    let refused = caller.request(reqwest::Method::GET, "/ready").send().await;
    assert!(refused.is_err(), "the balancer has ended");
}

#[test]
fn what_is_not_a_topology_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "precious").unwrap();
    for command in ["up", "down"] {
        let refused = topology(command, dir.path());
        assert!(!refused.status.success());
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.starts_with("topology: "), "{said}");
    }
    assert!(dir.path().join("file").exists());
}
