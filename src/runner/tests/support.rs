//! The gateway and the database of these tests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};
use tokio_util::sync::CancellationToken;

use super::super::args::Settings;
use super::super::config::{Config, Environment};
use super::super::dial::Dialer;
use super::super::executor::Executor;
use super::super::proxy::BoxedIo;
use super::super::supervisor::{Exit, Schedule, Supervisor};
use super::super::tls::install_crypto;
use super::super::worker::Worker;
use crate::bridge::{BridgeError, Execution, Outcome, RowBatch, RowSink, Source};
use crate::ids::{AttemptId, GatewayId, SourceId};
use crate::protocol::{GatewayFrame, Hello, RefusedReason, RowsFrame, RunnerFrame};
use crate::query::operation::Operation;

/// How long anything may take before the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for something that must not happen to happen.
pub(super) const A_WHILE: Duration = Duration::from_millis(200);

/// A frame from the runner.
#[derive(Debug)]
pub(super) enum Received {
    Frame(RunnerFrame),
    Rows(RowsFrame),
    Closed(Option<u16>),
}

/// A gateway that does as the test says.
pub(super) struct Gateway {
    listener: TcpListener,
    pub(super) id: GatewayId,
}

impl Gateway {
    pub(super) async fn start() -> Self {
        install_crypto();
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            id: GatewayId::new(),
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub(super) fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port())
    }

    pub(super) fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Waits for the runner to come and say hello.
    pub(super) async fn accept(&self) -> GatewaySession {
        let (stream, _) = timeout(PATIENCE, self.listener.accept())
            .await
            .expect("the runner dials")
            .unwrap();
        GatewaySession::over(Box::new(stream)).await
    }

    /// Accepts a session of protocol 2 that serves the source `db`.
    pub(super) async fn session(&self) -> GatewaySession {
        let mut session = self.accept().await;
        self.acknowledge(&mut session).await;
        session
    }

    /// Answers the hello of a session.
    pub(super) async fn acknowledge(&self, session: &mut GatewaySession) {
        let source = session.source.clone();
        session.send(json!({
            "type": "hello-ack", "serverVersion": 2, "assignedSources": [source],
            "sessionId": AttemptId::new(), "gatewayId": self.id, "heartbeatMs": 10_000, "lostAfterMs": 12_000,
            "limits": {"maxFrameBytes": 1 << 20, "windowBytes": 1 << 20},
        }))
        .await;
    }
}

/// The gateway's side of one session.
pub(super) struct GatewaySession {
    pub(super) socket: WebSocketStream<BoxedIo>,
    pub(super) hello: Hello,
    pub(super) authorization: String,
    pub(super) source: Value,
}

impl GatewaySession {
    pub(super) async fn over(stream: BoxedIo) -> Self {
        let seen = Arc::new(Mutex::new(String::new()));
        let note = Arc::clone(&seen);
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is the library's"
        )]
        let callback = move |request: &Request, response: Response| {
            assert_eq!(request.uri().path(), "/connect");
            let header = request.headers().get("authorization").unwrap();
            *note.lock().unwrap() = header.to_str().unwrap().to_owned();
            Ok(response)
        };
        let socket = accept_hdr_async(stream, callback).await.unwrap();
        let authorization = seen.lock().unwrap().clone();
        let source = json!({"id": SourceId::new(), "name": "db", "bridge": "@semilayer/bridge-sqlite",
            "credentialsLocation": "managed"});
        let mut session = Self {
            socket,
            hello: Hello::default(),
            authorization,
            source,
        };
        match session.next().await {
            Received::Frame(RunnerFrame::Hello(hello)) => session.hello = hello,
            other => panic!("not a hello: {other:?}"),
        }
        session
    }

    pub(super) async fn send(&mut self, frame: Value) {
        self.socket
            .send(Message::text(frame.to_string()))
            .await
            .unwrap();
    }

    /// Sends several frames so that they arrive together.
    pub(super) async fn send_together(&mut self, frames: Vec<Value>) {
        for frame in frames {
            self.socket
                .feed(Message::text(frame.to_string()))
                .await
                .unwrap();
        }
        self.socket.flush().await.unwrap();
    }

    pub(super) async fn close(&mut self, code: u16) {
        let frame = CloseFrame {
            code: code.into(),
            reason: "".into(),
        };
        self.socket.send(Message::Close(Some(frame))).await.unwrap();
    }

    /// The next frame that is not a heartbeat.
    pub(super) async fn next(&mut self) -> Received {
        timeout(PATIENCE, self.next_unbounded())
            .await
            .expect("a frame from the runner")
    }

    async fn next_unbounded(&mut self) -> Received {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(_)) | None => return Received::Closed(None),
            };
            match message {
                Message::Text(text) => match RunnerFrame::parse(&text).unwrap() {
                    RunnerFrame::Heartbeat { .. } => {}
                    frame => return Received::Frame(frame),
                },
                Message::Binary(bytes) => {
                    return Received::Rows(RowsFrame::decode(bytes, 1 << 20).unwrap());
                }
                Message::Close(frame) => return Received::Closed(frame.map(|f| f.code.into())),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Nothing but heartbeats for a while.
    pub(super) async fn silence(&mut self) {
        if let Ok(received) = timeout(A_WHILE, self.next_unbounded()).await {
            panic!("unexpected: {received:?}");
        }
    }

    pub(super) async fn accepted(&mut self, id: AttemptId) {
        let received = self.next().await;
        assert!(
            matches!(received, Received::Frame(RunnerFrame::Accepted { id: i }) if i == id),
            "{received:?}"
        );
    }

    pub(super) async fn refused(&mut self, id: AttemptId, reason: RefusedReason) {
        let received = self.next().await;
        assert!(
            matches!(received, Received::Frame(RunnerFrame::Refused { id: i, reason: r }) if i == id && r == reason),
            "{received:?}"
        );
    }

    pub(super) async fn draining(&mut self) {
        let received = self.next().await;
        assert!(
            matches!(received, Received::Frame(RunnerFrame::Draining)),
            "{received:?}"
        );
    }

    /// Sends a job that crossed `draining` on its way: it is refused, so that it is placed elsewhere.
    pub(super) async fn refuses_late_job(&mut self) {
        let (id, job) = self.job("rows 1 10");
        self.send(job).await;
        self.refused(id, RefusedReason::Draining).await;
    }

    pub(super) async fn rows(&mut self) -> RowsFrame {
        match self.next().await {
            Received::Rows(rows) => rows,
            other => panic!("not rows: {other:?}"),
        }
    }

    pub(super) async fn done(&mut self) -> crate::protocol::DoneMeta {
        match self.next().await {
            Received::Frame(RunnerFrame::Done(done)) => done.meta.unwrap(),
            other => panic!("not done: {other:?}"),
        }
    }

    pub(super) async fn error(&mut self) -> (String, String) {
        match self.next().await {
            Received::Frame(RunnerFrame::Error { code, message, .. }) => (code, message),
            other => panic!("not an error: {other:?}"),
        }
    }

    /// A job whose target is the script of the [`Script`] database.
    pub(super) fn job(&self, script: &str) -> (AttemptId, Value) {
        let id = AttemptId::new();
        let mut source = self.source.clone();
        source["config"] = json!({"path": "x"});
        let job = json!({
            "type": "job", "id": id, "deadlineMs": 30_000, "encoding": "json", "window": 1 << 20,
            "params": {"source": source, "job": {"kind": "query", "target": script, "options": {}}},
        });
        (id, job)
    }
}

/// A database that does what a job's target says: `rows <batches> <bytes>`, `hang`, `deaf`, `wait`, `panic`.
#[derive(Default)]
pub(super) struct Script {
    pub(super) started: AtomicUsize,
    pub(super) sent: AtomicUsize,
    pub(super) cancelled: AtomicUsize,
    /// What a `wait` waits for.
    pub(super) go: Notify,
    pub(super) configs: Mutex<HashMap<String, Value>>,
}

#[async_trait]
impl Executor for Script {
    fn capabilities(&self) -> Vec<String> {
        vec!["@semilayer/bridge-sqlite".into()]
    }

    fn typed_value(&self, _bridge: &str, _key: &str, text: &str) -> Result<Value, String> {
        Ok(Value::from(text))
    }

    async fn execute(
        &self,
        source: &Source,
        operation: &Operation,
        execution: &Execution,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, BridgeError> {
        self.started.fetch_add(1, Ordering::SeqCst);
        self.configs
            .lock()
            .unwrap()
            .insert(source.name.clone(), Value::Object(source.config.clone()));
        let target = operation.target.as_deref().unwrap_or_default();
        let words: Vec<_> = target.split(' ').collect();
        match words[..] {
            ["rows", batches, bytes] => {
                let row = format!(
                    r#"{{"a":"{}"}}"#,
                    "x".repeat(bytes.parse::<usize>().unwrap() - 8)
                );
                let mut outcome = Outcome::default();
                for _ in 0..batches.parse().unwrap() {
                    let batch = RowBatch {
                        rows: 1,
                        payload: Bytes::from(row.clone()),
                    };
                    sink.send(batch).await.or(Err(BridgeError::Cancelled))?;
                    self.sent.fetch_add(1, Ordering::SeqCst);
                    outcome.rows += 1;
                    outcome.bytes += row.len() as u64;
                }
                Ok(outcome)
            }
            ["wait"] => {
                self.go.notified().await;
                Ok(Outcome::default())
            }
            ["panic"] => panic!("as the test said"),
            _ => {
                execution.cancel.cancelled().await;
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                Err(BridgeError::Cancelled)
            }
        }
    }
}

/// A configuration for that gateway; `variables` as in the environment.
pub(super) fn config(url: &str, variables: &[(&str, &str)]) -> Config {
    let environment: Environment = variables
        .iter()
        .chain(&[("SEMILAYER_RUNNER_TOKEN", "rk_acme_hunter2")])
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let settings = Settings {
        runner_id: Some("primary".into()),
        gateway_url: Some(url.into()),
        ..Settings::default()
    };
    Config::resolve(&settings, &environment).unwrap()
}

/// A runner at work.
pub(super) struct Runner {
    pub(super) worker: Arc<Worker>,
    pub(super) stop: CancellationToken,
    pub(super) exit: JoinHandle<Exit>,
}

impl Runner {
    pub(super) fn start(config: Config, executor: Arc<dyn Executor>) -> Self {
        let schedule = Schedule {
            between_tries: Duration::from_millis(20),
            ..Schedule::default()
        };
        Self::scheduled(config, executor, schedule)
    }

    pub(super) fn scheduled(
        config: Config,
        executor: Arc<dyn Executor>,
        schedule: Schedule,
    ) -> Self {
        install_crypto();
        let dialer = Dialer::new(&config).unwrap();
        let worker = Arc::new(Worker::new(config, executor));
        let stop = CancellationToken::new();
        let exit =
            tokio::spawn(Supervisor::new(Arc::clone(&worker), dialer, schedule).run(stop.clone()));
        Self { worker, stop, exit }
    }

    pub(super) async fn exit(self) -> Exit {
        timeout(PATIENCE, self.exit)
            .await
            .expect("the runner ends")
            .unwrap()
    }
}

/// Waits until something holds.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Passes bytes on in both directions until one side ends.
pub(super) async fn splice(
    mut a: impl AsyncRead + AsyncWrite + Unpin,
    mut b: impl AsyncRead + AsyncWrite + Unpin,
) {
    let _ = tokio::io::copy_bidirectional(&mut a, &mut b).await;
}

impl GatewayFrame {
    /// The frame as JSON, for [`GatewaySession::send`].
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.to_text()).unwrap()
    }
}

/// Reads the head of an HTTP request.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Answers one HTTP request with that head, and body if it holds one.
pub(super) async fn answer_http(mut stream: TcpStream, answer: &str) {
    read_head(&mut stream).await;
    let end = if answer.contains("\r\n\r\n") {
        ""
    } else {
        "\r\n"
    };
    stream
        .write_all(format!("{answer}{end}").as_bytes())
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
}
