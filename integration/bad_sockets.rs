//! Runners that misbehave on the wire: each loses its own session, and nobody else notices.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::fake_runner::{TokenIn, hello_v1, hello_v2, rows_frame};
use crate::support::proc::resident_mib;
use crate::support::raw_socket::{RawSocket, frame, header, opcode, unmasked_frame};
use crate::support::rest::Runner;
use crate::support::{Engine, FakeRunner, Gateway, PATIENCE, Stage};

const PROTOCOL_ERROR: u16 = 4002;

/// A stage with an honest runner that serves, and the identity of another one that will not behave.
async fn beside_an_honest_runner(gateway: Gateway) -> (Stage, Runner) {
    let mut stage = Stage::on(gateway, Engine::Sqlite).await;
    stage.add_runner("honest").await;
    let villain = stage.gateway.admin().create_runner("villain").await;
    (stage, villain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_without_a_hello_is_closed() {
    let gateway = Gateway::builder().timing("hello=700ms").start().await;
    let (stage, villain) = beside_an_honest_runner(gateway).await;
    let opened = Instant::now();
    let mut session = FakeRunner::dial(&stage.gateway, &villain.token, TokenIn::Header)
        .await
        .unwrap();
    assert_eq!(session.closed().await, PROTOCOL_ERROR);
    let took = opened.elapsed();
    assert!(
        took >= Duration::from_millis(650) && took < Duration::from_secs(4),
        "took {took:?}"
    );
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_closes_the_session_that_sent_it_and_no_other() {
    let (stage, villain) = beside_an_honest_runner(Gateway::start().await).await;
    for garbage in [
        "",
        "garbage",
        "{",
        "[]",
        "null",
        "{}",
        "{\"type\":7}",
        "{\"type\":\"job\"}",
        "{\"type\":\"done\"}",
    ] {
        // As the first word …
        let mut session = FakeRunner::dial(&stage.gateway, &villain.token, TokenIn::Header)
            .await
            .unwrap();
        session.send_text(garbage.to_owned()).await;
        assert_eq!(
            session.closed().await,
            PROTOCOL_ERROR,
            "before hello: {garbage}"
        );
        // … and in an open session.
        for hello in [hello_v1(&villain.id), hello_v2(&villain.id)] {
            let mut session = FakeRunner::open(&stage.gateway, &villain.token, hello).await;
            session.send_text(garbage.to_owned()).await;
            assert_eq!(
                session.closed().await,
                PROTOCOL_ERROR,
                "after hello: {garbage}"
            );
        }
    }
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_out_of_turn_close_the_session() {
    let (stage, villain) = beside_an_honest_runner(Gateway::start().await).await;
    // Before hello: anything but a hello.
    let id = uuid::Uuid::now_v7().to_string();
    for early in [
        json!({"type": "heartbeat"}),
        json!({"type": "done", "id": id}),
        json!({"type": "draining"}),
    ] {
        let mut session = FakeRunner::dial(&stage.gateway, &villain.token, TokenIn::Header)
            .await
            .unwrap();
        session.send(early).await;
        assert_eq!(session.closed().await, PROTOCOL_ERROR);
    }
    let mut session = FakeRunner::dial(&stage.gateway, &villain.token, TokenIn::Header)
        .await
        .unwrap();
    session
        .send_binary(rows_frame(&id, &[json!({"id": 1})]))
        .await;
    assert_eq!(
        session.closed().await,
        PROTOCOL_ERROR,
        "binary before hello"
    );
    // A second hello.
    let mut session = FakeRunner::v2(&stage.gateway, &villain).await;
    session.send(hello_v2(&villain.id)).await;
    assert_eq!(session.closed().await, PROTOCOL_ERROR, "a second hello");
    // Binary frames that are no rows frames, or in a protocol that has none.
    for bytes in [vec![], vec![0; 5], vec![9; 100]] {
        let mut session = FakeRunner::v2(&stage.gateway, &villain).await;
        session.send_binary(bytes).await;
        assert_eq!(session.closed().await, PROTOCOL_ERROR);
    }
    let mut session = FakeRunner::v1(&stage.gateway, &villain).await;
    session
        .send_binary(rows_frame(&id, &[json!({"id": 1})]))
        .await;
    assert_eq!(
        session.closed().await,
        PROTOCOL_ERROR,
        "binary in protocol 1"
    );
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_announces_a_terabyte_takes_no_memory() {
    let (stage, villain) = beside_an_honest_runner(Gateway::start().await).await;
    stage.assert_serves().await;
    let pid = stage.gateway.process.pid();
    for hello_first in [false, true] {
        let before = resident_mib(pid);
        let mut socket = RawSocket::connect(&stage.gateway, &villain.token).await;
        if hello_first {
            socket.send_text(&hello_v2(&villain.id).to_string()).await;
            socket.frame("hello-ack").await;
        }
        let announced = Instant::now();
        socket
            .send(&header(opcode::BINARY, true, true, 1 << 40))
            .await;
        let filler = vec![0x55; 1 << 20];
        for _ in 0..100 {
            socket.send(&filler).await;
            let grown = resident_mib(pid) - before;
            assert!(grown < 20.0, "the gateway grew by {grown} MiB");
        }
        socket.closed().await;
        let took = announced.elapsed();
        assert!(took < Duration::from_secs(5), "closed only after {took:?}");
        stage.assert_serves().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_fragments_are_bounded_together() {
    let (stage, villain) = beside_an_honest_runner(Gateway::start().await).await;
    let pid = stage.gateway.process.pid();
    let before = resident_mib(pid);
    let mut socket = RawSocket::connect(&stage.gateway, &villain.token).await;
    socket.send_text(&hello_v2(&villain.id).to_string()).await;
    socket.frame("hello-ack").await;
    socket
        .send(&frame(opcode::TEXT, false, b"{\"type\":\""))
        .await;
    let fragment = frame(opcode::CONTINUATION, false, &vec![b'x'; 256 << 10]);
    for _ in 0..400 {
        socket.send(&fragment).await;
        let grown = resident_mib(pid) - before;
        assert!(grown < 20.0, "the gateway grew by {grown} MiB");
    }
    socket.closed().await;
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragmented_message_with_a_ping_in_the_middle_is_one_message() {
    let (stage, runner) = beside_an_honest_runner(Gateway::start().await).await;
    let mut socket = RawSocket::connect(&stage.gateway, &runner.token).await;
    let hello = hello_v2(&runner.id).to_string();
    let (start, rest) = hello.as_bytes().split_at(20);
    let (middle, end) = rest.split_at(rest.len() / 2);
    socket.send(&frame(opcode::TEXT, false, start)).await;
    socket
        .send(&frame(opcode::PING, true, b"are you there"))
        .await;
    assert_eq!(
        socket.next().await,
        Some((opcode::PONG, b"are you there".to_vec()))
    );
    socket
        .send(&frame(opcode::CONTINUATION, false, middle))
        .await;
    socket.send(&frame(opcode::CONTINUATION, true, end)).await;
    assert_eq!(socket.frame("hello-ack").await["serverVersion"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_break_the_websocket_itself_end_the_session() {
    let (stage, villain) = beside_an_honest_runner(Gateway::start().await).await;
    let hello = hello_v2(&villain.id).to_string();
    let mut reserved = frame(opcode::TEXT, true, hello.as_bytes());
    reserved[0] |= 0x70;
    let broken = [
        ("not masked", unmasked_frame(opcode::TEXT, hello.as_bytes())),
        (
            "bad UTF-8",
            frame(opcode::TEXT, true, b"{\"type\":\"\xff\xfe\"}"),
        ),
        (
            "a continuation of nothing",
            frame(opcode::CONTINUATION, true, b"x"),
        ),
        ("an unknown opcode", frame(5, true, b"x")),
        (
            "a ping of more than 125 bytes",
            frame(opcode::PING, true, &[b'x'; 200]),
        ),
        ("reserved bits", reserved),
    ];
    for (what, bytes) in broken {
        let mut socket = RawSocket::connect(&stage.gateway, &villain.token).await;
        socket.send(&bytes).await;
        let ended = tokio::time::timeout(PATIENCE, socket.closed()).await;
        assert!(ended.is_ok(), "{what}");
    }
    // A message begun inside another one.
    let mut socket = RawSocket::connect(&stage.gateway, &villain.token).await;
    socket.send(&frame(opcode::TEXT, false, b"{")).await;
    socket
        .send(&frame(opcode::TEXT, true, hello.as_bytes()))
        .await;
    socket.closed().await;
    stage.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_stops_reading_is_closed_and_only_its_jobs_fail() {
    let gateway = Gateway::builder()
        .timing(
            "heartbeat_v2=1s,close_after_unroutable=1s,stuck_output=2s,ping=300ms,cut_off_v2=900ms",
        )
        .start()
        .await;
    let (stage, villain) = beside_an_honest_runner(gateway).await;
    // A source of its own, whose jobs are large, so that what sockets buffer is soon full.
    let source = crate::support::stage::managed("deaf", &stage.database);
    let source = stage.gateway.admin().create_source(source).await;
    stage.gateway.admin().assign(&villain, &[&source]).await;
    let session = FakeRunner::v2(&stage.gateway, &villain).await;
    let _unread = session.into_socket();

    let started = Instant::now();
    let filler: Vec<String> = (0..900)
        .map(|n| format!("{n}{}", "x".repeat(400)))
        .collect();
    let jobs: Vec<_> = (0..60)
        .map(|_| {
            let (internal, source, filler) =
                (stage.gateway.internal(), source.clone(), filler.clone());
            tokio::spawn(async move {
                let options = json!({"where": {"title": {"$in": filler}}});
                let job = json!({"kind": "query", "target": "products", "options": options});
                internal
                    .post("/dispatch", json!({"sourceId": source, "job": job}))
                    .await
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    while !jobs.iter().all(tokio::task::JoinHandle::is_finished) {
        let asked = Instant::now();
        stage.assert_serves().await;
        slowest = slowest.max(asked.elapsed());
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the deaf runner keeps its jobs"
        );
    }
    for job in jobs {
        let answer = job.await.unwrap();
        assert!([502, 503].contains(&answer.status.as_u16()), "{answer:?}");
    }
    assert!(
        slowest < Duration::from_secs(2),
        "another session's job took {slowest:?}"
    );
    stage.gateway.until_runner_is(&villain, "offline").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_larger_than_a_row_may_be_ends_its_job_and_the_runner_goes_on() {
    // MariaDB does not make a text that long by itself.
    for engine in [Engine::Postgres, Engine::Sqlite] {
        let mut stage = Stage::inline(engine).await;
        let large = if engine == Engine::Sqlite {
            "printf('%.17000000c', 'x')"
        } else {
            "repeat('x', 17000000)"
        };
        let sql = format!(
            "CREATE TABLE huge (id INTEGER PRIMARY KEY, title TEXT); INSERT INTO huge VALUES (1, {large})"
        );
        stage.database.execute(&sql).await;
        stage.add_titles_lens("huge", &stage.source, "huge").await;
        stage.add_runner("primary").await;
        stage
            .gateway
            .caller()
            .query("huge", json!({}))
            .await
            .expect_error(502, "result_overflow");
        stage.assert_serves().await;
    }
}
