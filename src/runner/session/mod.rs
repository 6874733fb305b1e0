//! One session with one gateway: the handshake, then frames in both directions until one side closes. It
//! owns the socket and the jobs of the session; when it ends, whatever way, those jobs are cancelled.
//! Which gateway to dial, and when again, is decided elsewhere.

mod core;
mod credit;
mod handshake;
mod writer;

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::SplitStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

pub(super) use self::core::Start;
use self::core::{Action, Core};
pub(super) use self::credit::Credit;
pub(super) use self::handshake::ConnectError;
use self::writer::Outbox;
use super::dial::Socket;
use super::jobs::{self, JobLinks};
use super::worker::Worker;
use crate::ids::{AttemptId, GatewayId};
use crate::protocol::{GatewayFrame, RunnerFrame, close};

/// How long the last frames and the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long jobs that were cancelled at the end of a drain may take to say so.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after `draining` a session stays to answer the jobs that crossed it on their way.
const LINGER: Duration = Duration::from_secs(1);
/// How many frames are handled before the jobs among them are started, however many more there are.
const BATCH: usize = 256;

/// A session after its handshake.
pub(super) struct Session {
    socket: Socket,
    core: Core,
    /// The gateway's process (protocol 2).
    pub(super) gateway_id: Option<GatewayId>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// The gateway closed it.
    Closed {
        /// With this code, if any.
        code: Option<u16>,
        /// And these words.
        reason: String,
    },
    /// The connection broke, or nothing came for too long.
    Lost(String),
    /// The gateway sent what it may not; closed with 4002.
    Protocol(String),
    /// It was retired and everything in it is finished.
    Retired,
}

/// A gateway's wish that the runner goes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DrainWish {
    /// Why, for the log.
    pub(super) reason: String,
    /// Until when what runs may go on.
    pub(super) deadline: Instant,
}

/// How a session talks with whoever started it.
pub(super) struct SessionLinks {
    /// Until when to finish what runs, once it is to end.
    pub(super) retire: watch::Receiver<Option<Instant>>,
    /// Where the gateway's wish to drain goes.
    pub(super) drains: mpsc::Sender<DrainWish>,
}

impl Session {
    /// Works until the session ends.
    pub(super) async fn run(self, worker: Arc<Worker>, links: SessionLinks) -> SessionEnd {
        let agreement = self.core.agreement().clone();
        let (sink, stream) = self.socket.split();
        let (outbox, queues) = writer::queues();
        let mut writer = tokio::spawn(writer::write(sink, queues));
        let (finished, mut finishing) = mpsc::unbounded_channel();
        let all = CancellationToken::new();
        let _cancel_all = all.clone().drop_guard();
        let mut open = Open {
            core: self.core,
            stream,
            outbox,
            worker,
            links,
            jobs: HashMap::new(),
            finished,
            all,
            heard: Instant::now(),
            retire_at: None,
            linger_until: None,
        };
        // Before anything is read: a session that is not to be used takes no job.
        let retired_at = *open.links.retire.borrow_and_update();
        let begun = retired_at.map_or(Ok(()), |deadline| open.on_retire(deadline));
        if let Err(end) = begun {
            open.finish(&end, writer).await;
            return end;
        }
        let mut heartbeat = interval_at(Instant::now() + agreement.heartbeat, agreement.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            let step = tokio::select! {
                message = open.stream.next() => open.on_messages(message).await,
                Some(id) = finishing.recv() => open.on_finished(id),
                _ = heartbeat.tick() => open.send(RunnerFrame::Heartbeat { stats: Some(open.worker.stats()) }),
                deadline = retired(&mut open.links.retire) => open.on_retire(deadline),
                () = until(open.retire_at) => open.on_retire_deadline(),
                () = until(open.linger_until) => open.on_lingered().await,
                () = sleep_until(open.heard + agreement.lost_after) => {
                    Err(SessionEnd::Lost(format!("nothing heard from the gateway for {:?}", agreement.lost_after)))
                }
                wrote = &mut writer => Err(SessionEnd::Lost(write_error(wrote))),
            };
            match step {
                Ok(()) if open.is_retired() => break SessionEnd::Retired,
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        open.finish(&end, writer).await;
        end
    }
}

/// A session in full swing.
struct Open {
    core: Core,
    stream: SplitStream<Socket>,
    outbox: Outbox,
    worker: Arc<Worker>,
    links: SessionLinks,
    jobs: HashMap<AttemptId, (CancellationToken, Arc<Credit>)>,
    finished: mpsc::UnboundedSender<AttemptId>,
    /// Cancels every job of the session.
    all: CancellationToken,
    heard: Instant,
    /// When what runs is cancelled, once the session is to end.
    retire_at: Option<Instant>,
    /// Until when it stays although nothing runs; `None` before it is retired and after it has stayed.
    linger_until: Option<Instant>,
}

type Step = Result<(), SessionEnd>;

impl Open {
    /// Handles a message and all that arrived with it, then starts the jobs among them.
    async fn on_messages(&mut self, first: Option<Result<Message, tungstenite::Error>>) -> Step {
        self.on_message(first)?;
        self.on_arrived().await
    }

    /// Handles what has arrived, then starts the jobs among it.
    async fn on_arrived(&mut self) -> Step {
        let mut looked_again = false;
        for _ in 0..BATCH {
            // Unconstrained: tokio's budget must not make a frame that is there look as if it was not.
            match tokio::task::unconstrained(self.stream.next()).now_or_never() {
                Some(message) => self.on_message(message)?,
                None if looked_again => break,
                None => {
                    // Dry as far as tokio knows: it learns of bytes that came meanwhile when we yield.
                    looked_again = true;
                    tokio::task::yield_now().await;
                }
            }
        }
        self.start_jobs();
        Ok(())
    }

    fn on_message(&mut self, message: Option<Result<Message, tungstenite::Error>>) -> Step {
        self.heard = Instant::now();
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
            Some(Ok(Message::Binary(_))) => {
                return Err(SessionEnd::Protocol(
                    "a binary frame from the gateway".into(),
                ));
            }
            // Pongs are sent by the WebSocket itself.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Err(e)) => return Err(read_error(e)),
            None => return Err(SessionEnd::Lost("the gateway hung up".into())),
        };
        let frame =
            GatewayFrame::parse(text.as_str()).map_err(|e| SessionEnd::Protocol(e.to_string()))?;
        let assignments = matches!(frame, GatewayFrame::AssignmentsChanged { .. });
        let action = self
            .core
            .on_frame(frame, self.heard)
            .map_err(SessionEnd::Protocol)?;
        if assignments {
            self.worker.assigned(&self.core.assigned());
        }
        match action {
            Some(action) => self.act(action),
            None => Ok(()),
        }
    }

    fn act(&mut self, action: Action) -> Step {
        match action {
            Action::Send(frame) => return self.send(frame),
            Action::Cancel(id) => {
                if let Some((cancel, _)) = self.jobs.get(&id) {
                    cancel.cancel();
                }
            }
            Action::Credit(id, bytes) => {
                if let Some((_, credit)) = self.jobs.get(&id) {
                    credit.add(bytes);
                }
            }
            Action::Drain { reason, within } => {
                // A second wish while the first is being granted changes nothing.
                let _ = self.links.drains.try_send(DrainWish {
                    reason,
                    deadline: Instant::now() + within,
                });
            }
        }
        Ok(())
    }

    fn start_jobs(&mut self) {
        for start in self.core.take_starts() {
            let id = start.job.id;
            let cancel = self.all.child_token();
            let credit = Arc::new(Credit::new(start.window));
            self.jobs.insert(id, (cancel.clone(), Arc::clone(&credit)));
            let agreement = self.core.agreement();
            let links = JobLinks {
                version: agreement.version,
                zstd: agreement.zstd,
                limits: agreement.limits,
                rows: self.outbox.rows.clone(),
                credit,
                cancel,
                assigned: self.core.assigned(),
                credentials: self.worker.credentials(),
                executor: self.worker.executor(),
                slots: self.worker.slots(),
            };
            let finished = self.finished.clone();
            self.worker.spawn(async move {
                jobs::run(start, links).await;
                // The session may be gone already; then nobody counts its jobs any more.
                let _ = finished.send(id);
            });
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the shape of every step")]
    fn on_finished(&mut self, id: AttemptId) -> Step {
        self.jobs.remove(&id);
        self.core.finished(id);
        Ok(())
    }

    fn on_retire(&mut self, deadline: Instant) -> Step {
        if self.retire_at.is_none() {
            self.linger_until = Some(Instant::now() + LINGER);
        }
        self.retire_at = Some(deadline);
        match self.core.drain() {
            Some(action) => self.act(action),
            None => Ok(()),
        }
    }

    fn on_retire_deadline(&mut self) -> Step {
        if self.all.is_cancelled() {
            return Err(SessionEnd::Retired);
        }
        if !self.jobs.is_empty() {
            log::warn!(
                "{} jobs did not finish in time and are cancelled",
                self.jobs.len()
            );
        }
        self.all.cancel();
        self.retire_at = Some(Instant::now() + CANCEL_TIMEOUT);
        Ok(())
    }

    /// The gateway knows by now that nothing more is taken; what it sent before is still to be answered.
    async fn on_lingered(&mut self) -> Step {
        self.linger_until = None;
        self.on_arrived().await
    }

    fn is_retired(&self) -> bool {
        self.retire_at.is_some() && self.linger_until.is_none() && self.core.is_idle()
    }

    fn send(&self, frame: RunnerFrame) -> Step {
        let full = |_| SessionEnd::Lost("the gateway does not read what it is sent".into());
        self.outbox
            .control
            .try_send(Message::text(frame.to_text()))
            .map_err(full)
    }

    /// Says goodbye as the end demands, and lets the last frames go out.
    async fn finish(mut self, end: &SessionEnd, mut writer: Writer) {
        self.all.cancel();
        let goodbye = |code: u16, reason: &str| {
            Message::Close(Some(CloseFrame {
                code: code.into(),
                reason: short(reason).into(),
            }))
        };
        let sent = match end {
            // Behind the rows, so that everything that was promised is delivered first.
            SessionEnd::Retired => timeout(
                CLOSE_TIMEOUT,
                self.outbox.rows.send(goodbye(1000, "finished")),
            )
            .await
            .is_ok_and(|sent| sent.is_ok()),
            SessionEnd::Protocol(reason) => self
                .outbox
                .control
                .try_send(goodbye(close::PROTOCOL_ERROR, reason))
                .is_ok(),
            SessionEnd::Closed { .. } | SessionEnd::Lost(_) => false,
        };
        if sent {
            let _ = timeout(CLOSE_TIMEOUT, &mut writer).await;
        }
        writer.abort();
        if !matches!(end, SessionEnd::Lost(_)) {
            // Reading to the end answers the gateway's close, and keeps the kernel from resetting the
            // connection over unread bytes, which would destroy our last frames on their way.
            let rest = async move { while let Some(Ok(_)) = self.stream.next().await {} };
            let rest = timeout(CLOSE_TIMEOUT, rest);
            if matches!(end, SessionEnd::Closed { .. }) {
                // Dialling again does not wait for the old gateway to hang up.
                tokio::spawn(rest);
            } else {
                let _ = rest.await;
            }
        }
    }
}

type Writer = tokio::task::JoinHandle<Result<(), tungstenite::Error>>;

fn closed(frame: Option<CloseFrame>) -> SessionEnd {
    match frame {
        Some(frame) => SessionEnd::Closed {
            code: Some(frame.code.into()),
            reason: frame.reason.to_string(),
        },
        None => SessionEnd::Closed {
            code: None,
            reason: String::new(),
        },
    }
}

/// A close code and reason as they stand in a message.
pub(super) fn told(code: Option<u16>, reason: &str) -> String {
    match (code, reason) {
        (None, _) => String::new(),
        (Some(code), "") => format!(" ({code})"),
        (Some(code), reason) => format!(" ({code}: {reason})"),
    }
}

fn read_error(error: tungstenite::Error) -> SessionEnd {
    match error {
        tungstenite::Error::Capacity(_) | tungstenite::Error::Utf8(_) => {
            SessionEnd::Protocol(error.to_string())
        }
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => SessionEnd::Lost("the connection was cut".into()),
        other => SessionEnd::Lost(other.to_string()),
    }
}

fn write_error(wrote: Result<Result<(), tungstenite::Error>, tokio::task::JoinError>) -> String {
    match wrote {
        Ok(Err(e)) => format!("sending failed: {e}"),
        Ok(Ok(())) => "the connection was closed".to_owned(),
        Err(e) => format!("the writer failed: {e}"),
    }
}

/// The reason of a close frame: 123 bytes at most.
fn short(reason: &str) -> String {
    let mut end = reason.len().min(120);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

async fn retired(retire: &mut watch::Receiver<Option<Instant>>) -> Instant {
    loop {
        if retire.changed().await.is_err() {
            return pending().await;
        }
        if let Some(deadline) = *retire.borrow_and_update() {
            return deadline;
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
