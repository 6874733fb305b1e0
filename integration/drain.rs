//! Gateways that are told to stop while others, or load balancers, count on them; and runners that move.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::eventually::holds;
use crate::support::fake_runner::TokenIn;
use crate::support::rest::Runner;
use crate::support::{
    Answer, Database, Engine, FakeRunner, Gateway, PATIENCE, RunnerProcess, Stage, eventually,
};

/// A database for gateways to share.
async fn hosted_store() -> Database {
    Database::create(Engine::Postgres).await
}

fn row(title: &str) -> Value {
    json!({"id": 1, "title": title, "price": 1, "category": null})
}

fn ask(gateway: &Gateway, body: Value) -> tokio::task::JoinHandle<Answer> {
    let caller = gateway.caller();
    tokio::spawn(async move { caller.query("products", body).await })
}

/// Has one query answered through this session.
async fn serve(gateway: &Gateway, session: &mut FakeRunner, title: &str) -> Answer {
    let query = ask(gateway, json!({}));
    let (id, _) = session.job().await;
    session.send_rows(&id, &[row(title)]).await;
    session.send_done(&id, 1).await;
    let answer = query.await.unwrap();
    assert_eq!(answer.rows(), [row(title)]);
    answer
}

/// A load balancer that knows nothing: each connection goes to the next address.
async fn balancer(targets: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let next = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let turn = next.fetch_add(1, Ordering::Relaxed);
            let target = targets[turn % targets.len()];
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(target).await {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    address
}

fn address(gateway: &Gateway) -> SocketAddr {
    gateway.address().parse().unwrap()
}

/// A real runner behind the balancer.
fn runner_behind(balancer: SocketAddr, gateway: &Gateway, runner: &Runner) -> RunnerProcess {
    RunnerProcess::builder(gateway, runner)
        .env("SEMILAYER_GATEWAY_URL", &format!("ws://{balancer}"))
        .env("SEMILAYER_MOVE_AFTER", "2s")
        .spawn()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosted_gateway_serves_on_after_sigterm_and_sends_its_clients_away() {
    let store = hosted_store().await;
    let gateway = Gateway::hosted(&store, "serve_on=4s").await;
    let mut stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("modern").await;
    let mut session = FakeRunner::v2(&stage.gateway, &runner).await;
    let before = serve(&stage.gateway, &mut session, "before").await;
    assert!(before.headers.get("connection").is_none());

    let told = Instant::now();
    stage.gateway.process.signal("TERM");
    session.frame("drain").await;
    let mut served = 0;
    while told.elapsed() < Duration::from_millis(3_500) {
        let answer = serve(&stage.gateway, &mut session, "while it stops").await;
        assert_eq!(answer.header("connection"), "close");
        served += 1;
    }
    assert!(served > 10, "{served}");
    let anonymous = stage.gateway.admin().anonymous();
    let not_ready = anonymous.get("/ready").await;
    not_ready.expect_error(503, "draining");
    assert_eq!(not_ready.header("connection"), "close");
    let connect = Answer::of(
        stage
            .gateway
            .admin()
            .with_key(&runner.token)
            .request(Method::GET, "/connect"),
    )
    .await;
    connect.expect_error(503, "draining");
    assert_eq!(connect.retry_after(), 1);
    assert_eq!(
        FakeRunner::dial(&stage.gateway, &runner.token, TokenIn::Header)
            .await
            .err(),
        Some(503)
    );

    assert_eq!(session.closed().await, 1001);
    assert!(told.elapsed() >= Duration::from_secs(4));
    assert!(stage.gateway.process.end(PATIENCE).await.success());
    assert!(
        told.elapsed() < Duration::from_secs(15),
        "the only gateway waits for no runner to move: {:?}",
        told.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_is_closed_after_the_answer() {
    let store = hosted_store().await;
    let gateway = Gateway::hosted(&store, "serve_on=3s").await;
    let mut kept = TcpStream::connect(gateway.address()).await.unwrap();
    let request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n";
    kept.write_all(request).await.unwrap();
    let mut buffer = vec![0; 4096];
    let read = kept.read(&mut buffer).await.unwrap();
    let head = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
    assert!(
        head.starts_with("http/1.1 200") && !head.contains("connection: close"),
        "{head}"
    );
    gateway.process.signal("TERM");
    let anonymous = gateway.admin().anonymous();
    eventually("it stops", PATIENCE, async || {
        let status = anonymous.get("/ready").await.status;
        holds(status.as_u16() == 503, status)
    })
    .await;
    kept.write_all(request).await.unwrap();
    let mut rest = String::new();
    kept.read_to_string(&mut rest).await.unwrap();
    let rest = rest.to_lowercase();
    assert!(
        rest.starts_with("http/1.1 200") && rest.contains("connection: close"),
        "{rest}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_gateway_stops_at_once() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    stage.add_runner("primary").await;
    stage.assert_serves().await;
    let told = Instant::now();
    stage.gateway.process.signal("INT");
    assert!(stage.gateway.process.end(PATIENCE).await.success());
    assert!(
        told.elapsed() < Duration::from_secs(4),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let store = hosted_store().await;
    let mut gateway = Gateway::hosted(&store, "serve_on=20s").await;
    gateway.process.signal("TERM");
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert!(gateway.process.ended().is_none());
    gateway.process.signal("TERM");
    let status = gateway.process.end(Duration::from_secs(2)).await;
    assert_eq!(status.code(), Some(143));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_takes_jobs_until_its_runner_has_another() {
    let store = hosted_store().await;
    let intervals = "serve_on=1s,drain=20s,catalogue_poll=300ms";
    let gateway = Gateway::hosted(&store, intervals).await;
    let other = gateway.beside(&store, intervals).await;
    let mut stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("modern").await;
    let mut old = FakeRunner::v2(&stage.gateway, &runner).await;
    let told = Instant::now();
    stage.gateway.process.signal("TERM");
    old.frame("drain").await;
    // It has trouble finding another gateway, for longer than load balancers are given.
    while told.elapsed() < Duration::from_secs(3) {
        serve(&stage.gateway, &mut old, "still here").await;
    }
    let running = ask(&stage.gateway, json!({}));
    let (id, _) = old.job().await;
    old.accept(&id).await;
    let mut new = FakeRunner::v2(&other, &runner).await;
    assert_ne!(new.ack["gatewayId"], old.ack["gatewayId"]);
    eventually("the other gateway knows the lens", PATIENCE, async || {
        let answer = other.caller().query("nonsense", json!({})).await;
        holds(answer.text.contains("lens"), answer)
    })
    .await;
    serve(&other, &mut new, "elsewhere").await;
    old.send(json!({"type": "draining"})).await;
    old.send_rows(&id, &[row("what runs finishes")]).await;
    old.send_done(&id, 1).await;
    assert_eq!(running.await.unwrap().rows(), [row("what runs finishes")]);
    old.until_heard().await;
    drop(old);
    assert!(stage.gateway.process.end(PATIENCE).await.success());
    assert!(told.elapsed() < Duration::from_secs(15));
    serve(&other, &mut new, "and on").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runners_that_cannot_move_are_closed_one_at_a_time_when_idle() {
    let store = hosted_store().await;
    let intervals = "serve_on=4s,drain=15s";
    let gateway = Gateway::hosted(&store, intervals).await;
    let _other = gateway.beside(&store, intervals).await;
    let mut stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("field").await;
    let mut sessions = [
        FakeRunner::v1(&stage.gateway, &runner).await,
        FakeRunner::v1(&stage.gateway, &runner).await,
    ];
    // One of the two works on something.
    let running = ask(&stage.gateway, json!({}));
    let [first, second] = &mut sessions;
    let (id, busy, idle) = tokio::select! {
        (id, _) = first.job() => (id, 0, 1),
        (id, _) = second.job() => (id, 1, 0),
    };
    let told = Instant::now();
    stage.gateway.process.signal("TERM");
    let released = {
        let [first, second] = &mut sessions;
        tokio::select! {
            code = first.closed() => (code, 0),
            code = second.closed() => (code, 1),
            () = tokio::time::sleep(Duration::from_millis(1_500)) => (0, busy),
        }
    };
    if released == (1001, idle) {
        // The other one is the runner's last: it serves until load balancers had time to notice.
        assert!(told.elapsed() < Duration::from_secs(2));
    } else {
        assert_eq!(released, (0, busy), "never while something runs");
    }
    let rows = [json!({"id": 1, "title": "done", "price_cents": 1, "category": null})];
    sessions[busy].send_chunk(&id, &rows).await;
    sessions[busy].send_done(&id, 1).await;
    assert_eq!(running.await.unwrap().rows(), [row("done")]);
    if released.0 == 0 {
        assert_eq!(sessions[busy].closed().await, 1001);
        assert_eq!(sessions[idle].closed().await, 1001);
    } else {
        assert_eq!(sessions[busy].closed().await, 1001);
        assert!(told.elapsed() >= Duration::from_secs(2));
    }
    assert!(stage.gateway.process.end(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_moves_of_its_own_accord_drops_nothing() {
    let store = hosted_store().await;
    let intervals = "catalogue_poll=300ms";
    let gateway = Gateway::hosted(&store, intervals).await;
    let other = gateway.beside(&store, intervals).await;
    let stage = Stage::on(gateway, Engine::Sqlite).await;
    let runner = stage.add_identity("mover").await;
    let balancer = balancer(vec![address(&stage.gateway), address(&other)]).await;
    let process = runner_behind(balancer, &stage.gateway, &runner);
    eventually("the other gateway knows the lens", PATIENCE, async || {
        let answer = other.caller().query("products", json!({})).await;
        holds(answer.status.as_u16() != 404, answer)
    })
    .await;
    // Whoever has the runner answers; whoever has not holds the query until it comes.
    let until = Instant::now() + Duration::from_secs(10);
    let mut callers = tokio::task::JoinSet::new();
    for gateway in [&stage.gateway, &other] {
        for _ in 0..4 {
            let caller = gateway.caller();
            callers.spawn(async move {
                let mut answered = 0;
                while Instant::now() < until {
                    let request = caller
                        .request(Method::POST, "/v1/query/products")
                        .header("prefer", "wait=25")
                        .json(&json!({"where": {"id": 7}}));
                    assert_eq!(Answer::of(request).await.rows().len(), 1);
                    answered += 1;
                }
                answered
            });
        }
    }
    let answered: Vec<usize> = callers.join_all().await;
    assert!(
        answered.iter().all(|count| *count > 10),
        "both served: {answered:?}"
    );
    let connected = process.process.stdout().lines().count();
    assert!(connected >= 3, "it moved: {connected}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_restarts_is_waited_for() {
    let mut stage = Stage::inline(Engine::Sqlite).await;
    let runner = stage.add_runner("restarted").await;
    stage.assert_serves().await;
    let caller = stage.gateway.caller();
    let until = Instant::now() + Duration::from_secs(5);
    let load = tokio::spawn(async move {
        let mut answered = 0;
        while Instant::now() < until {
            caller.query("products", json!({})).await.expect(200);
            answered += 1;
        }
        answered
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.runners[0].process.signal("TERM");
    assert!(stage.runners[0].process.end(PATIENCE).await.success());
    stage
        .runners
        .push(RunnerProcess::start(&stage.gateway, &runner).await);
    assert!(load.await.unwrap() > 20);
}
