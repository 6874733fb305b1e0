//! Sessions over a real socket: handshake, loss, reconnecting, moving, stopping, `/health`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::super::supervisor::{Exit, Schedule};
use super::super::worker::State;
use super::super::{doctor, health};
use super::support::*;
use crate::clock::Clock;
use crate::protocol::{GatewayFrame, RefusedReason, RunnerFrame};

async fn runner() -> (Gateway, Arc<Script>, Runner) {
    let gateway = Gateway::start().await;
    let script = Arc::new(Script::default());
    let runner = Runner::start(config(&gateway.url(), &[]), script.clone());
    (gateway, script, runner)
}

#[tokio::test]
async fn the_hello_says_everything_and_the_token_is_in_the_header_only() {
    let (gateway, _script, runner) = runner().await;
    let session = gateway.session().await;
    assert_eq!(session.authorization, "Bearer rk_acme_hunter2");
    let hello = &session.hello;
    assert_eq!(
        (hello.version, hello.runner_id.as_str()),
        (Some(2), "primary")
    );
    assert_eq!(hello.capabilities, ["@semilayer/bridge-sqlite"]);
    assert!(
        hello.instance_id.is_some() && hello.runtime_version.is_some() && hello.hostname.is_some()
    );
    assert_eq!(hello.max_concurrent_jobs, Some(64));
    assert!(!format!("{hello:?}").contains("hunter2"));
    eventually("connected", || {
        runner.worker.health().status == State::Connected
    })
    .await;
}

#[tokio::test]
async fn heartbeats_come_as_announced_and_pings_are_answered() {
    let (gateway, _script, _runner) = runner().await;
    let mut session = gateway.accept().await;
    session
        .send(json!({"type": "hello-ack", "serverVersion": 2, "assignedSources": [], "heartbeatMs": 20, "lostAfterMs": 10_000}))
        .await;
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    session
        .socket
        .send(Message::Ping("x".into()))
        .await
        .unwrap();
    let (mut heartbeats, mut pongs) = (0, 0);
    while heartbeats < 3 || pongs < 1 {
        match tokio::time::timeout(PATIENCE, session.socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    (&frame["type"], &frame["stats"]["activeJobs"]),
                    (&json!("heartbeat"), &json!(0))
                );
                heartbeats += 1;
            }
            Message::Pong(_) => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_silent_gateway_is_lost_and_its_jobs_are_cancelled() {
    let (gateway, script, _runner) = runner().await;
    let mut session = gateway.accept().await;
    let source = session.source.clone();
    session
        .send(json!({"type": "hello-ack", "serverVersion": 2, "assignedSources": [source], "lostAfterMs": 300}))
        .await;
    let (id, job) = session.job("hang");
    session.send(job).await;
    session.accepted(id).await;
    eventually("cancelled", || script.cancelled.load(Ordering::SeqCst) == 1).await;
    gateway.session().await;
}

#[tokio::test]
async fn losing_the_socket_cancels_its_jobs_and_reconnects() {
    let (gateway, script, _runner) = runner().await;
    let mut session = gateway.session().await;
    let (id, job) = session.job("hang");
    session.send(job).await;
    session.accepted(id).await;
    drop(session);
    eventually("cancelled", || script.cancelled.load(Ordering::SeqCst) == 1).await;
    gateway.session().await;
}

#[tokio::test]
async fn a_gateway_that_goes_away_is_dialled_again_at_once() {
    let (gateway, _script, _runner) = runner().await;
    let mut session = gateway.session().await;
    // Long enough not to look like a gateway that sends everybody away.
    tokio::time::sleep(Duration::from_millis(1050)).await;
    session.close(1001).await;
    let closed = Instant::now();
    gateway.session().await;
    assert!(
        closed.elapsed() < Duration::from_millis(250),
        "{:?}",
        closed.elapsed()
    );
}

#[tokio::test]
async fn a_revoked_token_or_a_foreign_id_ends_the_runner() {
    for (code, word) in [(4001, "rotated"), (4004, "SEMILAYER_RUNNER_ID")] {
        let (gateway, _script, runner) = runner().await;
        gateway.session().await.close(code).await;
        assert!(matches!(runner.exit().await, Exit::Refused(why) if why.contains(word)));
        let (gateway, _script, runner) = self::runner().await;
        gateway.accept().await.close(code).await; // instead of a hello-ack
        assert!(matches!(runner.exit().await, Exit::Refused(why) if why.contains(word)));
    }
}

#[tokio::test]
async fn other_close_codes_lead_back() {
    let (gateway, _script, _runner) = runner().await;
    for code in [4008, 4009, 4002] {
        gateway.session().await.close(code).await;
    }
    gateway.session().await;
}

#[tokio::test]
async fn what_the_gateway_may_not_send_closes_with_4002_and_leads_back() {
    let (gateway, _script, _runner) = runner().await;
    for bad in [
        json!({"type": "dance"}),
        json!([]),
        json!({"type": "done", "id": "x"}),
    ] {
        let mut session = gateway.session().await;
        session.send(bad).await;
        assert!(matches!(session.next().await, Received::Closed(Some(4002))));
    }
    let mut session = gateway.accept().await;
    session
        .send(json!({"type": "hello-ack", "serverVersion": 9, "assignedSources": []}))
        .await;
    assert!(matches!(session.next().await, Received::Closed(Some(4002))));
    gateway.session().await;
}

#[tokio::test]
async fn told_to_drain_it_goes_elsewhere_and_finishes_what_runs() {
    let (mut gateway, script, runner) = runner().await;
    let mut old = gateway.session().await;
    let (id, job) = old.job("wait");
    old.send(job).await;
    old.accepted(id).await;
    old.send(
        GatewayFrame::Drain {
            reason: "restart".into(),
            deadline_ms: 10_000,
        }
        .json(),
    )
    .await;
    // The load balancer leads back to the same gateway twice before it finds another.
    for _ in 0..2 {
        let mut same = gateway.session().await;
        same.draining().await;
        same.refuses_late_job().await;
        assert!(matches!(same.next().await, Received::Closed(_)));
    }
    gateway.id = crate::ids::GatewayId::new();
    let mut new = gateway.session().await;
    assert!(matches!(
        old.next().await,
        Received::Frame(RunnerFrame::Draining)
    ));
    let (_, job) = old.job("wait");
    old.send(job).await;
    let refused = old.next().await;
    assert!(
        matches!(
            refused,
            Received::Frame(RunnerFrame::Refused {
                reason: RefusedReason::Draining,
                ..
            })
        ),
        "{refused:?}"
    );
    let (id, mut job) = new.job("rows 1 10");
    new.source = old.source.clone();
    job["params"]["source"] = new.source.clone();
    job["params"]["source"]["config"] = json!({});
    new.send(json!({"type": "assignments-changed", "assignedSources": [new.source]}))
        .await;
    new.send(job).await;
    new.accepted(id).await;
    new.rows().await;
    new.done().await;
    script.go.notify_one();
    old.done().await;
    assert!(matches!(old.next().await, Received::Closed(Some(1000))));
    assert_eq!(runner.worker.health().status, State::Connected);
}

#[tokio::test]
async fn with_one_gateway_only_a_drain_ends_there_again() {
    let (gateway, _script, _runner) = runner().await;
    let mut old = gateway.session().await;
    old.send(
        GatewayFrame::Drain {
            reason: "rebalance".into(),
            deadline_ms: 10_000,
        }
        .json(),
    )
    .await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(gateway.session().await);
    }
    assert!(matches!(
        old.next().await,
        Received::Frame(RunnerFrame::Draining)
    ));
    assert!(matches!(old.next().await, Received::Closed(Some(1000))));
    sessions.last_mut().unwrap().silence().await;
}

#[tokio::test]
async fn while_it_looks_for_another_gateway_it_serves_here_however_long_that_takes() {
    let (mut gateway, _script, _runner) = runner().await;
    let mut old = gateway.session().await;
    old.send(
        GatewayFrame::Drain {
            reason: "restart".into(),
            deadline_ms: 10_000,
        }
        .json(),
    )
    .await;
    // More often than it would be content with any gateway: nobody takes it.
    for _ in 0..8 {
        let (stream, _) = gateway.listener().accept().await.unwrap();
        answer_http(
            stream,
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n",
        )
        .await;
    }
    let (id, job) = old.job("rows 1 10");
    old.send(job).await;
    old.accepted(id).await;
    old.rows().await;
    old.done().await;
    gateway.id = crate::ids::GatewayId::new();
    let _new = gateway.session().await;
    old.draining().await;
    assert!(matches!(old.next().await, Received::Closed(Some(1000))));
}

#[tokio::test]
async fn told_to_stop_in_the_handshake_it_leaves_in_order_and_refuses_what_it_was_sent() {
    let (gateway, script, runner) = runner().await;
    let mut session = gateway.accept().await;
    // The gateway counts on the session from now on; the runner does not know yet.
    runner.stop.cancel();
    tokio::time::sleep(A_WHILE).await;
    gateway.acknowledge(&mut session).await;
    let (id, job) = session.job("rows 1 10");
    session.send(job).await;
    session.draining().await;
    session.refused(id, RefusedReason::Draining).await;
    assert!(matches!(session.next().await, Received::Closed(Some(1000))));
    assert_eq!(runner.exit().await, Exit::Stopped);
    assert_eq!(script.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_session_that_comes_when_it_is_not_needed_any_more_is_left_in_order() {
    let (gateway, _script, _runner) = runner().await;
    let mut old = gateway.session().await;
    old.send(
        GatewayFrame::Drain {
            reason: "restart".into(),
            deadline_ms: 10_000,
        }
        .json(),
    )
    .await;
    let mut late = gateway.accept().await;
    // Meanwhile the old one breaks, and the runner dials afresh.
    old.close(1001).await;
    let _fresh = gateway.session().await;
    gateway.acknowledge(&mut late).await;
    let (id, job) = late.job("rows 1 10");
    late.send(job).await;
    late.draining().await;
    late.refused(id, RefusedReason::Draining).await;
    assert!(matches!(late.next().await, Received::Closed(Some(1000))));
}

#[tokio::test]
async fn after_its_hour_it_moves_to_another_gateway_or_stays() {
    let mut gateway = Gateway::start().await;
    let schedule = Schedule {
        move_after: Duration::from_millis(300),
        move_jitter: Duration::from_millis(50),
        ..Schedule::default()
    };
    let _runner = Runner::scheduled(
        config(&gateway.url(), &[]),
        Arc::new(Script::default()),
        schedule,
    );
    let mut old = gateway.session().await;
    let mut same = gateway.session().await;
    assert!(
        matches!(same.next().await, Received::Frame(RunnerFrame::Draining)),
        "it stays with the old one"
    );
    same.refuses_late_job().await;
    gateway.id = crate::ids::GatewayId::new();
    let _new = gateway.session().await;
    old.draining().await;
    old.refuses_late_job().await;
    assert!(matches!(old.next().await, Received::Closed(Some(1000))));
}

#[tokio::test]
async fn told_to_stop_it_finishes_what_runs_and_ends() {
    let (gateway, script, runner) = runner().await;
    let mut session = gateway.session().await;
    let (id, job) = session.job("wait");
    session.send(job).await;
    session.accepted(id).await;
    runner.stop.cancel();
    assert!(matches!(
        session.next().await,
        Received::Frame(RunnerFrame::Draining)
    ));
    assert_eq!(runner.worker.health().status, State::Draining);
    script.go.notify_one();
    session.done().await;
    assert!(matches!(session.next().await, Received::Closed(Some(1000))));
    assert_eq!(runner.exit().await, Exit::Stopped);
}

#[tokio::test]
async fn told_to_stop_while_idle_it_refuses_what_was_on_its_way() {
    let (gateway, script, runner) = runner().await;
    let mut session = gateway.session().await;
    eventually("connected", || {
        runner.worker.health().status == State::Connected
    })
    .await;
    runner.stop.cancel();
    session.draining().await;
    session.refuses_late_job().await;
    session.refuses_late_job().await;
    assert!(matches!(session.next().await, Received::Closed(Some(1000))));
    assert_eq!(runner.exit().await, Exit::Stopped);
    assert_eq!(script.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_gateway_that_closes_after_draining_is_not_waited_for() {
    let (gateway, _script, runner) = runner().await;
    let mut session = gateway.session().await;
    eventually("connected", || {
        runner.worker.health().status == State::Connected
    })
    .await;
    let told = Instant::now();
    runner.stop.cancel();
    session.draining().await;
    session.close(1000).await;
    assert_eq!(runner.exit().await, Exit::Stopped);
    assert!(told.elapsed() < Duration::from_millis(900));
}

#[tokio::test]
async fn protocol_1_cannot_refuse_so_what_was_on_its_way_is_executed() {
    let (gateway, _script, runner) = runner().await;
    let mut session = gateway.accept().await;
    let source = session.source.clone();
    session
        .send(json!({"type": "hello-ack", "serverVersion": 1, "assignedSources": [source]}))
        .await;
    eventually("connected", || {
        runner.worker.health().status == State::Connected
    })
    .await;
    runner.stop.cancel();
    eventually("draining", || {
        runner.worker.health().status == State::Draining
    })
    .await;
    let (_, job) = session.job("rows 1 10");
    session.send(job).await;
    let chunk = session.next().await;
    assert!(
        matches!(chunk, Received::Frame(RunnerFrame::Chunk(_))),
        "{chunk:?}"
    );
    session.done().await;
    assert!(matches!(session.next().await, Received::Closed(Some(1000))));
    assert_eq!(runner.exit().await, Exit::Stopped);
}

#[tokio::test]
async fn jobs_that_do_not_finish_in_time_are_cancelled_at_the_end() {
    let gateway = Gateway::start().await;
    let script = Arc::new(Script::default());
    let schedule = Schedule {
        drain: Duration::from_millis(200),
        ..Schedule::default()
    };
    let runner = Runner::scheduled(config(&gateway.url(), &[]), script.clone(), schedule);
    let mut session = gateway.session().await;
    let (id, job) = session.job("hang");
    session.send(job).await;
    session.accepted(id).await;
    runner.stop.cancel();
    assert!(matches!(
        session.next().await,
        Received::Frame(RunnerFrame::Draining)
    ));
    assert_eq!(session.error().await.0, "job_cancelled");
    assert_eq!(runner.exit().await, Exit::Stopped);
    assert_eq!(script.cancelled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn told_to_stop_while_it_dials_it_just_ends() {
    let gateway = Gateway::start().await;
    let url = gateway.url();
    drop(gateway);
    let runner = Runner::start(config(&url, &[]), Arc::new(Script::default()));
    eventually("a failed dial", || {
        runner.worker.health().last_error.is_some()
    })
    .await;
    runner.stop.cancel();
    assert_eq!(runner.exit().await, Exit::Stopped);
}

#[tokio::test]
async fn health_says_whether_it_is_connected() {
    let (gateway, _script, runner) = runner().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(health::serve(listener, Arc::clone(&runner.worker)));
    assert_eq!(health::ask(port).await.unwrap().status, State::Connecting);
    let _session = gateway.session().await;
    eventually("connected", || {
        runner.worker.health().status == State::Connected
    })
    .await;
    let health = health::ask(port).await.unwrap();
    assert_eq!(
        (health.status, health.sources, health.protocol),
        (State::Connected, vec!["db".into()], Some(2))
    );
    assert!(health::ask(1).await.is_err());
}

#[tokio::test]
async fn doctor_goes_through_everything_and_takes_no_jobs() {
    let gateway = Gateway::start().await;
    let config = config(&gateway.url(), &[("SEMILAYER_SOURCE_DB_URL", "x")]);
    let serve = async {
        let (plain, _) = gateway.listener().accept().await.unwrap();
        answer_http(plain, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n").await;
        let mut session = gateway.accept().await;
        session.source["credentialsLocation"] = json!("runner-local");
        let sources = json!([session.source]);
        session
            .send(json!({"type": "hello-ack", "serverVersion": 2, "assignedSources": sources}))
            .await;
        session.draining().await;
        session.refuses_late_job().await;
        assert!(matches!(session.next().await, Received::Closed(Some(1000))));
    };
    let clock = Clock::system();
    let (report, ()) = tokio::join!(doctor::examine(Ok(config), Arc::new(Tested), &clock), serve);
    let lines: Vec<_> = report
        .checks
        .iter()
        .map(|c| (c.check.as_str(), c.verdict))
        .collect();
    use doctor::Verdict::{Ok as Tick, Skipped};
    let reachable = format!("reachable http://127.0.0.1:{}/health → 404", gateway.port());
    assert_eq!(
        lines,
        [
            ("config loaded", Tick),
            (reachable.as_str(), Tick),
            ("token accepted", Tick),
            ("clock skew", Skipped),
            ("WebSocket upgrade", Tick),
            ("session", Tick),
            ("source db", Tick),
        ]
    );
    assert!(
        report.ok && report.checks[6].detail.contains("SQLite 3, 1.5 ms"),
        "{report}"
    );
}

#[tokio::test]
async fn doctor_says_what_to_do_about_a_refused_token_and_a_closed_port() {
    let gateway = Gateway::start().await;
    let serve = async {
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n",
            "HTTP/1.1 401 Unauthorized\r\nx-request-id: 1\r\ncontent-length: 0\r\n",
        ] {
            let (stream, _) = gateway.listener().accept().await.unwrap();
            answer_http(stream, head).await;
        }
    };
    let clock = Clock::system();
    let examined = doctor::examine(
        Ok(config(&gateway.url(), &[])),
        Arc::new(Script::default()),
        &clock,
    );
    let (report, ()) = tokio::join!(examined, serve);
    assert!(
        !report.ok
            && report
                .to_string()
                .contains("✗ token accepted — the gateway does not know this token"),
        "{report}"
    );
    let url = gateway.url();
    drop(gateway);
    let report = doctor::examine(
        Ok(config(&url, &[])),
        Arc::new(Script::default()),
        &Clock::system(),
    )
    .await;
    assert!(
        report.to_string().contains("✗ reachable") && report.to_string().contains("efused"),
        "{report}"
    );
}

/// A database of which only `test` is asked.
struct Tested;

#[async_trait::async_trait]
impl super::super::executor::Executor for Tested {
    fn capabilities(&self) -> Vec<String> {
        Vec::new()
    }

    fn typed_value(&self, _bridge: &str, _key: &str, text: &str) -> Result<Value, String> {
        Ok(text.into())
    }

    async fn execute(
        &self,
        source: &crate::bridge::Source,
        operation: &crate::query::operation::Operation,
        _execution: &crate::bridge::Execution,
        sink: &mut dyn crate::bridge::RowSink,
    ) -> Result<crate::bridge::Outcome, crate::bridge::BridgeError> {
        assert_eq!(
            (operation.kind.as_str(), &source.config["url"]),
            ("test", &json!("x"))
        );
        let payload = r#"{"version":"SQLite 3","latencyMs":1.5}"#.into();
        sink.send(crate::bridge::RowBatch { rows: 1, payload })
            .await
            .unwrap();
        Ok(crate::bridge::Outcome::default())
    }
}
