//! The handshake of a session: hello, hello-ack, and what both sides agreed on; and the way out of a
//! session in which nothing was done.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::core::{Agreement, Core};
use super::{CLOSE_TIMEOUT, Session, SessionEnd, SessionLinks, closed, short, told};
use crate::protocol::{AssignedSource, GatewayFrame, HelloAck, RunnerFrame, close};
use crate::runner::dial::{DialError, Dialer, Socket};
use crate::runner::reconnect;
use crate::runner::worker::Worker;

/// How long the gateway may take to answer the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a job that could not be refused (protocol 1) may run in a session that is being left.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::runner) enum ConnectError {
    /// Coming back with this configuration is pointless.
    #[error("{0}")]
    Fatal(String),
    /// It may work later.
    #[error("{message}")]
    Retry {
        /// What happened and what to do about it.
        message: String,
        /// How long the gateway asked to wait.
        after: Option<Duration>,
    },
}

impl From<DialError> for ConnectError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::TokenRefused(message) => Self::Fatal(message),
            DialError::Retry { message, after } => Self::Retry { message, after },
        }
    }
}

impl Session {
    /// Dials and shakes hands. May be dropped at any moment: once the hello is out, the gateway may count on this
    /// session, so a handshake that nobody waits for any more is finished and the session left in order.
    pub(in crate::runner) async fn connect(
        dialer: &Dialer,
        worker: &Arc<Worker>,
    ) -> Result<Self, ConnectError> {
        let socket = dialer.dial().await?;
        let (hand_over, handed_over) = oneshot::channel();
        let greeter = Arc::clone(worker);
        worker.spawn(async move {
            let greeted = Self::greet(socket, &greeter).await;
            if let Err(Ok(session)) = hand_over.send(greeted) {
                session.leave(greeter).await;
            }
        });
        let mut greeting = Greeting {
            handed_over,
            worker: Arc::clone(worker),
        };
        (&mut greeting.handed_over).await.unwrap_or_else(|_| {
            Err(ConnectError::Retry {
                message: "the handshake failed".to_owned(),
                after: None,
            })
        })
    }

    /// Says hello on a fresh socket and waits for the answer.
    pub(in crate::runner) async fn greet(
        mut socket: Socket,
        worker: &Worker,
    ) -> Result<Self, ConnectError> {
        let retry = |message: String| ConnectError::Retry {
            message,
            after: None,
        };
        let hello = RunnerFrame::Hello(worker.hello()).to_text();
        let answer = timeout(HELLO_TIMEOUT, async {
            socket
                .send(Message::text(hello))
                .await
                .map_err(|e| retry(format!("the gateway hung up: {e}")))?;
            hello_ack(&mut socket).await
        });
        let ack = match answer.await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(retry(format!(
                    "the gateway did not answer the hello within {} s",
                    HELLO_TIMEOUT.as_secs()
                )));
            }
        };
        match Agreement::new(&ack) {
            Ok(agreement) => {
                let core = Core::new(agreement, ack.assigned_sources, worker.slots());
                Ok(Self {
                    socket,
                    core,
                    gateway_id: ack.gateway_id,
                })
            }
            Err(message) => {
                close_now(&mut socket, close::PROTOCOL_ERROR, &message).await;
                Err(retry(message))
            }
        }
    }

    /// The session's protocol version.
    pub(in crate::runner) fn version(&self) -> u32 {
        self.core.agreement().version
    }

    /// What the gateway says that this runner serves.
    pub(in crate::runner) fn assigned(&self) -> Arc<[AssignedSource]> {
        self.core.assigned()
    }

    /// Leaves in order without having taken anything. The gateway may have sent jobs already: they are
    /// answered like those of any session that retires.
    pub(in crate::runner) async fn leave(self, worker: Arc<Worker>) {
        let (_retire, retire) = watch::channel(Some(Instant::now() + LEAVE_TIMEOUT));
        let (drains, _nobody_goes_elsewhere) = mpsc::channel(1);
        self.run(worker, SessionLinks { retire, drains }).await;
    }
}

/// A handshake under way. Dropped when its session has just been handed over, it leaves that session.
struct Greeting {
    handed_over: oneshot::Receiver<Result<Session, ConnectError>>,
    worker: Arc<Worker>,
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.handed_over.close();
        if let Ok(Ok(session)) = self.handed_over.try_recv() {
            let worker = Arc::clone(&self.worker);
            self.worker.spawn(session.leave(worker));
        }
    }
}

async fn hello_ack(socket: &mut Socket) -> Result<HelloAck, ConnectError> {
    let retry = |message: String| ConnectError::Retry {
        message,
        after: None,
    };
    loop {
        let problem = match socket.next().await {
            Some(Ok(Message::Text(text))) => match GatewayFrame::parse(text.as_str()) {
                Ok(GatewayFrame::HelloAck(ack)) => return Ok(ack),
                Ok(_) => "the gateway sent something before its hello-ack".to_owned(),
                Err(e) => e.to_string(),
            },
            Some(Ok(Message::Binary(_))) => "a binary frame before the hello-ack".to_owned(),
            Some(Ok(Message::Close(frame))) => {
                let SessionEnd::Closed { code, reason } = closed(frame) else {
                    return Err(retry("closed".into()));
                };
                return Err(match code.and_then(reconnect::fatal) {
                    Some(why) => ConnectError::Fatal(why.to_owned()),
                    None => retry(format!(
                        "the gateway closed the session in the handshake{}",
                        told(code, &reason)
                    )),
                });
            }
            Some(Ok(_)) => continue,
            Some(Err(e)) => {
                return Err(retry(format!("the connection broke in the handshake: {e}")));
            }
            None => return Err(retry("the gateway hung up in the handshake".into())),
        };
        close_now(socket, close::PROTOCOL_ERROR, &problem).await;
        return Err(retry(problem));
    }
}

async fn close_now(socket: &mut Socket, code: u16, reason: &str) {
    let frame = CloseFrame {
        code: code.into(),
        reason: short(reason).into(),
    };
    let _ = timeout(CLOSE_TIMEOUT, async {
        // The session is over either way; that the goodbye did not arrive changes nothing.
        let _ = socket.close(Some(frame)).await;
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
}
