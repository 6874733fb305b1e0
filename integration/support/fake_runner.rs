//! A runner written from the table of the published protocol alone, versions 1 and 2, that does what the
//! test tells it to: nothing of it comes from the product's code.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use uuid::Uuid;

use super::PATIENCE;
use super::gateway::Gateway;
use super::rest::{Runner, text};

/// How a token travels.
#[derive(Clone, Copy)]
pub(crate) enum TokenIn {
    Header,
    Url,
}

/// What came from the gateway.
#[derive(Debug)]
pub(crate) enum Incoming {
    Frame(Value),
    /// The close code; 1005 stands for none, 1006 for an end without a close frame.
    Closed(u16),
}

/// One open session.
pub(crate) struct FakeRunner {
    socket: WebSocketStream<TcpStream>,
    /// The gateway's answer to the hello.
    pub(crate) ack: Value,
}

impl FakeRunner {
    /// Opens the socket without saying hello; `Err` is the status of the refusal.
    pub(crate) async fn dial(gateway: &Gateway, token: &str, place: TokenIn) -> Result<Self, u16> {
        Self::dial_at(&gateway.address(), token, place).await
    }

    /// The same at `host:port`.
    async fn dial_at(address: &str, token: &str, place: TokenIn) -> Result<Self, u16> {
        let query = match place {
            TokenIn::Header => String::new(),
            TokenIn::Url => format!("?token={token}"),
        };
        let mut request = format!("ws://{address}/connect{query}")
            .into_client_request()
            .unwrap();
        if matches!(place, TokenIn::Header) {
            request
                .headers_mut()
                .insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let config = WebSocketConfig::default()
            .max_message_size(None)
            .max_frame_size(None);
        match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(Self {
                socket,
                ack: Value::Null,
            }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("no WebSocket: {error}"),
        }
    }

    /// Opens a session with this hello and waits for its acknowledgement.
    pub(crate) async fn open(gateway: &Gateway, token: &str, hello: Value) -> Self {
        let mut runner = Self::dial(gateway, token, TokenIn::Header)
            .await
            .expect("the token is good");
        runner.say_hello(hello).await;
        runner
    }

    /// Opens a protocol 2 session at `host:port`; `Err` is the status of the refusal.
    pub(crate) async fn open_at(address: &str, runner: &Runner) -> Result<Self, u16> {
        let mut session = Self::dial_at(address, &runner.token, TokenIn::Header).await?;
        session.say_hello(hello_v2(&runner.id)).await;
        Ok(session)
    }

    /// Says hello and waits for the acknowledgement.
    pub(crate) async fn say_hello(&mut self, hello: Value) {
        self.send(hello).await;
        self.ack = self.frame("hello-ack").await;
    }

    /// Opens a protocol 1 session as the runners in the field do.
    pub(crate) async fn v1(gateway: &Gateway, runner: &Runner) -> Self {
        Self::open(gateway, &runner.token, hello_v1(&runner.id)).await
    }

    /// Opens a protocol 2 session.
    pub(crate) async fn v2(gateway: &Gateway, runner: &Runner) -> Self {
        Self::open(gateway, &runner.token, hello_v2(&runner.id)).await
    }

    /// Sends a text frame.
    pub(crate) async fn send(&mut self, frame: Value) {
        self.send_text(frame.to_string()).await;
    }

    /// Sends any text.
    pub(crate) async fn send_text(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// Sends a frame if the session is still there; `false` if it is not.
    pub(crate) async fn try_send(&mut self, message: Message) -> bool {
        self.socket.send(message).await.is_ok()
    }

    /// Sends rows of a protocol 1 job.
    pub(crate) async fn send_chunk(&mut self, id: &str, rows: &[Value]) {
        self.send(json!({"type": "chunk", "id": id, "rows": rows}))
            .await;
    }

    /// Sends rows of a protocol 2 job.
    pub(crate) async fn send_rows(&mut self, id: &str, rows: &[Value]) {
        let frame = rows_frame(id, rows);
        self.send_binary(frame).await;
    }

    /// Sends any bytes.
    pub(crate) async fn send_binary(&mut self, bytes: Vec<u8>) {
        self.socket.send(Message::binary(bytes)).await.unwrap();
    }

    /// Ends a job well.
    pub(crate) async fn send_done(&mut self, id: &str, count: usize) {
        self.send(json!({"type": "done", "id": id, "meta": {"count": count, "durationMs": 1.5}}))
            .await;
    }

    /// Fails a job.
    pub(crate) async fn send_error(&mut self, id: &str, code: &str, message: &str) {
        self.send(json!({"type": "error", "id": id, "code": code, "message": message}))
            .await;
    }

    /// Takes a job (protocol 2).
    pub(crate) async fn accept(&mut self, id: &str) {
        self.send(json!({"type": "accepted", "id": id})).await;
    }

    /// Whatever comes next.
    pub(crate) async fn next(&mut self) -> Incoming {
        let incoming = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return Incoming::Frame(
                            serde_json::from_str(&text).expect("gateways send JSON"),
                        );
                    }
                    Some(Ok(Message::Close(frame))) => {
                        return Incoming::Closed(frame.map_or(1005, |frame| frame.code.into()));
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(other)) => panic!("gateways send no such message: {other:?}"),
                    Some(Err(_)) | None => return Incoming::Closed(1006),
                }
            }
        };
        timeout(PATIENCE, incoming)
            .await
            .expect("the gateway sends something")
    }

    /// The next frame of this type; pings, credit and changed assignments that come before it are passed over.
    pub(crate) async fn frame(&mut self, kind: &str) -> Value {
        loop {
            match self.next().await {
                Incoming::Frame(frame) if frame["type"] == kind => return frame,
                Incoming::Frame(frame)
                    if ["ping", "credit", "assignments-changed"]
                        .iter()
                        .any(|passed| frame["type"] == *passed) => {}
                other => panic!("waiting for `{kind}`, got {other:?}"),
            }
        }
    }

    /// The next job, its id and its frame.
    pub(crate) async fn job(&mut self) -> (String, Value) {
        let job = self.frame("job").await;
        (text(&job, "id"), job)
    }

    /// Waits for the end of the session and answers with its close code.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            if let Incoming::Closed(code) = self.next().await {
                return code;
            }
        }
    }

    /// Waits for the end of the session, whatever comes before, and however long it takes.
    pub(crate) async fn closed_somehow(&mut self) {
        while let Some(Ok(message)) = self.socket.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
    }

    /// Waits until the gateway has taken in what was sent: it answers a ping after it.
    pub(crate) async fn until_heard(&mut self) {
        self.socket
            .send(Message::Ping(b"heard".to_vec().into()))
            .await
            .unwrap();
        let pong = async {
            while !matches!(
                self.socket.next().await.expect("the session is open"),
                Ok(Message::Pong(_))
            ) {}
        };
        timeout(PATIENCE, pong)
            .await
            .expect("the gateway answers pings");
    }

    /// Asserts that nothing but pings and credit comes for a while: a silence cannot be waited for.
    pub(crate) async fn assert_silent(&mut self, duration: Duration) {
        let _ = timeout(duration, async {
            loop {
                match self.next().await {
                    Incoming::Frame(frame)
                        if frame["type"] == "ping" || frame["type"] == "credit" => {}
                    other => panic!("expected nothing, got {other:?}"),
                }
            }
        })
        .await;
    }

    /// Answers every job with what `reply` makes of it, as protocol 1, until the session ends.
    pub(crate) fn serve_v1(
        mut self,
        mut reply: impl FnMut(&Value) -> Vec<Value> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(Ok(message)) = self.socket.next().await {
                let Message::Text(text) = message else {
                    continue;
                };
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["type"] != "job" {
                    continue;
                }
                let rows = reply(&frame["params"]["job"]);
                for answer in [
                    json!({"type": "chunk", "id": frame["id"], "rows": rows}),
                    json!({"type": "done", "id": frame["id"]}),
                ] {
                    if !self.try_send(Message::text(answer.to_string())).await {
                        return;
                    }
                }
            }
        })
    }

    /// Splits off the raw socket, for one that stops reading.
    pub(crate) fn into_socket(self) -> WebSocketStream<TcpStream> {
        self.socket
    }
}

/// The hello of a field runner.
pub(crate) fn hello_v1(runner: &str) -> Value {
    json!({
        "type": "hello", "version": 1, "runnerId": runner,
        "capabilities": [
            "@semilayer/bridge-postgres", "@semilayer/bridge-mysql", "@semilayer/bridge-sqlite",
        ],
        "runtimeVersion": "0.9.0",
    })
}

/// The hello of a protocol 2 runner.
pub(crate) fn hello_v2(runner: &str) -> Value {
    let mut hello = hello_v1(runner);
    let more = json!({
        "version": 2, "instanceId": Uuid::new_v4(), "hostname": "fake", "maxConcurrentJobs": 64,
        "labels": [], "compression": ["zstd"],
    });
    hello
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    hello
}

/// A binary rows frame: kind, flags, id, row count, payload.
pub(crate) fn rows_frame(id: &str, rows: &[Value]) -> Vec<u8> {
    let payload: Vec<String> = rows.iter().map(Value::to_string).collect();
    rows_frame_of(
        id,
        u32::try_from(rows.len()).unwrap(),
        payload.join(",").as_bytes(),
    )
}

/// A binary rows frame around any payload.
pub(crate) fn rows_frame_of(id: &str, rows: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = rows_header(id, 0, rows);
    frame.extend_from_slice(payload);
    frame
}

/// A zstd frame that announces `announced` bytes.
pub(crate) fn zstd_frame(id: &str, rows: u32, announced: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = rows_header(id, 1, rows);
    frame.extend_from_slice(&announced.to_be_bytes());
    frame.extend_from_slice(&zstd::bulk::compress(payload, 1).unwrap());
    frame
}

fn rows_header(id: &str, flags: u8, rows: u32) -> Vec<u8> {
    let mut header = vec![1, flags];
    header.extend_from_slice(Uuid::parse_str(id).unwrap().as_bytes());
    header.extend_from_slice(&rows.to_be_bytes());
    header
}
