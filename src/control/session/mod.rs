//! `RunnerSession`: one runner's session, beside its socket.
//!
//! Owns the registration, the attempts that run there, and their credit. It knows frames and its own jobs;
//! which job comes here is the picker's decision, and bytes are the socket's. It never waits for the
//! database: claims and registrations are futures beside the mailbox, so a slow store delays jobs, not
//! heartbeats.

mod attempts;
mod frames;
mod gauges;
mod jobs;
mod lifecycle;

use std::sync::Arc;

use actix::prelude::*;
use bytes::Bytes;
use bytestring::ByteString;
use tokio::time::Instant;

use self::attempts::Attempts;
pub use self::attempts::CancelCause;
pub use self::gauges::{ByteGauge, LoadGauge, WrittenGauge};
pub(in crate::control) use self::jobs::unclaimed;
use super::catalogue::{Catalogue, CatalogueReader};
use super::credentials::Credentials;
use super::dispatcher::{JobReturned, JobSettled};
use super::drain::SessionPresence;
use super::heartbeat::{SessionSeen, SessionUnwatched, SessionWatched};
use super::identity::GatewayIdentity;
use super::job::Job;
use super::ledger::{ClaimJob, FinishJob, RequeueJob};
use super::picker::SessionChanged;
use super::registrar::RemoveSession;
use super::vital::{Shutdown, Stage};
use crate::clock::{Clock, UtcTime};
use crate::ids::{AttemptId, GatewayId, JobId, KeyId, OrganisationId, RunnerId, SessionId};
use crate::protocol::AssignedSource;
use crate::storage::Store;
use crate::timing::Timing;

/// The most bytes that may be queued for a runner without moving.
const STUCK_BYTES: usize = 4 * 1024 * 1024;
/// The most unread bytes of a job whose runner knows no flow control.
const PROTOCOL_1_BUFFER: usize = 8 * 1024 * 1024;
/// The capacity of a runner that does not tell its own.
const PROTOCOL_1_CAPACITY: u32 = 64;
/// The room in a session's mailbox beside two messages per job.
const MAILBOX_BASE: usize = 64;
/// The most jobs that one runner process is given, whatever it announces.
const MAX_CAPACITY: u32 = 4096;

/// One frame from the runner. Sent by the socket, which waits while this mailbox is full.
#[derive(Message)]
#[rtype(result = "()")]
pub enum FrameReceived {
    /// A JSON frame.
    Text(ByteString),
    /// A rows frame.
    Binary(Bytes),
    /// The answer to a WebSocket ping: the runner reads what it is sent.
    Pong,
    /// What came is no valid WebSocket message of this protocol.
    Invalid(String),
}

impl FrameReceived {
    /// What it holds in memory.
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Invalid(why) => why.len(),
            Self::Pong => 0,
        }
    }
}

/// The socket is gone. Sent by the socket as it stops.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SocketClosed;

/// Take this job. Sent by the picker to the session or to the link with the peer that holds it, with
/// `try_send`; and by the dispatcher to the inline executor.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Execute {
    /// The job.
    pub job: Arc<Job>,
    /// Which attempt at it this is, from 1.
    pub attempt: u32,
    /// The session that was chosen; none: the gateway itself.
    pub session_id: Option<SessionId>,
}

/// End this job early, if it is here. Sent by the dispatcher.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct CancelExecution {
    /// The job.
    pub job_id: JobId,
    /// Why.
    pub cause: CancelCause,
}

/// The caller took rows. Sent from the caller's end of the reply.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct RowsConsumed {
    pub(super) attempt: AttemptId,
    pub(super) bytes: u32,
}

/// Close this session. Sent by the heartbeat monitor.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct CloseSession {
    /// The close code.
    pub code: u16,
    /// Why, for the runner's log.
    pub reason: &'static str,
}

/// Let the runner go as soon as nothing runs here. Sent by the drainer.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct ReleaseSession;

#[derive(Message)]
#[rtype(result = "()")]
struct Tick;

/// The picker has taken this session out of its table. Notified to itself, behind every job that the
/// picker had sent before.
#[derive(Message)]
#[rtype(result = "()")]
struct LetGo;

/// What the session tells its socket.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub enum SocketCommand {
    /// Send this frame.
    Send(String),
    /// Send a WebSocket ping.
    Ping,
    /// Send a close frame and stop.
    Close {
        /// The close code.
        code: u16,
        /// Why.
        reason: String,
    },
}

/// The transport of one session.
pub struct SocketLink {
    /// Frames out, with `try_send`.
    pub commands: Recipient<SocketCommand>,
    /// What waits to be written.
    pub queued: ByteGauge,
    /// Which frames the socket has got to.
    pub written: WrittenGauge,
    /// What was read and waits here to be handled.
    pub received: ByteGauge,
    /// Shuts the connection down under a socket actor that is frozen by its peer.
    pub cut: Box<dyn Fn() + Send>,
}

/// Whose session it is; established before the upgrade.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The runner that the token names.
    pub runner_id: RunnerId,
    /// Its organisation.
    pub organisation_id: OrganisationId,
    /// The token, for revocation.
    pub key_id: KeyId,
    /// Where it comes from, for operators.
    pub remote_addr: Option<String>,
}

/// Everything that a session may say, and nothing else.
#[derive(Clone)]
pub struct SessionLinks {
    /// To the ledger: claim a job for this session.
    pub claim: Recipient<ClaimJob>,
    /// To the ledger: a job has ended.
    pub finish: Recipient<FinishJob>,
    /// To the ledger: a job certainly did not leave.
    pub requeue: Recipient<RequeueJob>,
    /// To the dispatcher: place this job elsewhere.
    pub returned: Recipient<JobReturned>,
    /// To the dispatcher: this job has ended.
    pub settled: Recipient<JobSettled>,
    /// To the picker: this session came, changed or went.
    pub changed: Recipient<SessionChanged>,
    /// To the heartbeat monitor: this session came.
    pub watched: Recipient<SessionWatched>,
    /// To the heartbeat monitor: this session was heard of.
    pub seen: Recipient<SessionSeen>,
    /// To the heartbeat monitor: this session went.
    pub unwatched: Recipient<SessionUnwatched>,
    /// To the registrar: what is written down of this session is to go.
    pub remove: Recipient<RemoveSession>,
    /// To the drainer: this session came or went.
    pub presence: Recipient<SessionPresence>,
}

/// What a session is built from beside its socket and its identity.
#[derive(Clone)]
pub struct SessionContext {
    /// Whom it talks to.
    pub links: SessionLinks,
    /// For its registration only.
    pub store: Store,
    /// What it is assigned, and whether its token still counts.
    pub catalogue: CatalogueReader,
    /// Opens managed credentials, just before a job is sent.
    pub credentials: Credentials,
    /// This gateway.
    pub identity: GatewayIdentity,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// The time.
    pub clock: Clock,
    /// Whether rows are compressed on the way here, if the runner can.
    pub compress: bool,
    /// Whether the process is on its way out.
    pub shutdown: Shutdown,
}

/// How far a session has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The socket is open; who is there is known from the token, what it can do is not.
    AwaitingHello,
    /// The registration is on its way to the store.
    Registering,
    /// Frames and jobs flow.
    Ready,
    /// A close frame is on its way, or the socket is gone.
    Closing,
}

/// The actor of one session.
pub struct RunnerSession {
    id: SessionId,
    /// The id of this gateway under which the session was opened; it ends with it.
    gateway_id: GatewayId,
    identity: Identity,
    cx: SessionContext,
    socket: SocketLink,
    phase: Phase,
    version: u32,
    capacity: u32,
    draining: bool,
    /// Whether the gateway lets its runner go; `draining` then too.
    released: bool,
    /// Whether the runner was asked to go elsewhere by itself.
    asked_to_go: bool,
    attempts: Attempts,
    load: LoadGauge,
    announced: Vec<AssignedSource>,
    opened: Instant,
    seen_reported: Option<Instant>,
    last_ping: Instant,
    /// Since when a ping has gone unanswered.
    unanswered_since: Option<Instant>,
    /// Since when the output has stood at this many bytes.
    output_stands: Option<(usize, Instant)>,
    closing_since: Option<Instant>,
    /// How many frames the socket was handed.
    frames_sent: u64,
    /// Whether the socket writes nothing any more: it is gone, or was cut.
    socket_ended: bool,
    /// Whether the registration is on its way to the store.
    registering: bool,
    /// Whether the picker knows that this session is gone, so that no job comes any more.
    let_go: bool,
    /// Whether others know of this session.
    registered: bool,
}

impl RunnerSession {
    /// A session that waits for its hello.
    pub fn new(identity: Identity, socket: SocketLink, cx: SessionContext) -> Self {
        let now = Instant::now();
        Self {
            id: SessionId::new(),
            gateway_id: cx.identity.current(),
            identity,
            socket,
            phase: Phase::AwaitingHello,
            version: crate::protocol::OLDEST_VERSION,
            capacity: PROTOCOL_1_CAPACITY,
            draining: false,
            released: false,
            asked_to_go: false,
            attempts: Attempts::new(crate::protocol::DEFAULT_WINDOW_BYTES),
            load: LoadGauge::default(),
            announced: Vec::new(),
            opened: now,
            seen_reported: None,
            last_ping: now,
            unanswered_since: None,
            output_stands: None,
            closing_since: None,
            frames_sent: 0,
            socket_ended: false,
            registering: false,
            let_go: false,
            registered: false,
            cx,
        }
    }

    fn runner_id(&self) -> RunnerId {
        self.identity.runner_id
    }

    fn now(&self) -> UtcTime {
        self.cx.clock.now()
    }
}

impl Actor for RunnerSession {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_BASE);
        ctx.run_interval(self.tick_period(), |_, ctx| ctx.notify(Tick));
        ctx.add_stream(self.cx.catalogue.changes());
        ctx.add_stream(self.cx.shutdown.stages());
        ctx.add_stream(self.cx.identity.changes());
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.deregister();
    }
}

impl Handler<FrameReceived> for RunnerSession {
    type Result = ();

    fn handle(&mut self, frame: FrameReceived, ctx: &mut Self::Context) {
        self.socket.received.take_off(frame.size());
        if self.phase == Phase::Closing {
            return;
        }
        let handled = match frame {
            FrameReceived::Text(text) => {
                self.note_seen();
                self.on_text(&text, ctx)
            }
            FrameReceived::Binary(bytes) => {
                self.note_seen();
                self.on_binary(bytes)
            }
            FrameReceived::Invalid(why) => Err(why),
            // Any WebSocket library answers pings by itself: a pong says that the runner reads, not that
            // it works. That is what heartbeats are for.
            FrameReceived::Pong => {
                self.unanswered_since = None;
                Ok(())
            }
        };
        if let Err(why) = handled {
            self.close(crate::protocol::close::PROTOCOL_ERROR, &why);
        }
    }
}

impl Handler<SocketClosed> for RunnerSession {
    type Result = ();

    fn handle(&mut self, _: SocketClosed, ctx: &mut Self::Context) {
        self.on_socket_closed(ctx);
    }
}

impl Handler<Execute> for RunnerSession {
    type Result = ();

    fn handle(&mut self, Execute { job, attempt, .. }: Execute, ctx: &mut Self::Context) {
        self.on_execute(job, attempt, ctx);
    }
}

impl Handler<CancelExecution> for RunnerSession {
    type Result = ();

    fn handle(
        &mut self,
        CancelExecution { job_id, cause }: CancelExecution,
        _: &mut Self::Context,
    ) {
        self.on_cancel(job_id, cause);
    }
}

impl Handler<RowsConsumed> for RunnerSession {
    type Result = ();

    fn handle(&mut self, RowsConsumed { attempt, bytes }: RowsConsumed, _: &mut Self::Context) {
        self.on_consumed(attempt, bytes);
    }
}

impl Handler<CloseSession> for RunnerSession {
    type Result = ();

    fn handle(&mut self, CloseSession { code, reason }: CloseSession, _: &mut Self::Context) {
        self.close(code, reason);
    }
}

impl Handler<ReleaseSession> for RunnerSession {
    type Result = ();

    fn handle(&mut self, _: ReleaseSession, _: &mut Self::Context) {
        self.on_release();
    }
}

impl Handler<Tick> for RunnerSession {
    type Result = ();

    fn handle(&mut self, _: Tick, _: &mut Self::Context) {
        self.on_tick(Instant::now());
    }
}

impl Handler<LetGo> for RunnerSession {
    type Result = ();

    fn handle(&mut self, _: LetGo, ctx: &mut Self::Context) {
        self.let_go = true;
        self.stop_when_idle(ctx);
    }
}

impl StreamHandler<Arc<Catalogue>> for RunnerSession {
    fn handle(&mut self, catalogue: Arc<Catalogue>, _: &mut Self::Context) {
        self.on_catalogue(&catalogue);
    }

    // The stream ends when the gateway stops; the session ends with its socket, not with it.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl StreamHandler<Stage> for RunnerSession {
    fn handle(&mut self, stage: Stage, _: &mut Self::Context) {
        match stage {
            Stage::Running => {}
            Stage::Draining => self.on_drain(),
            Stage::Closing => self.close(
                crate::protocol::close::GOING_AWAY,
                "the gateway is stopping",
            ),
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl StreamHandler<GatewayId> for RunnerSession {
    fn handle(&mut self, current: GatewayId, _: &mut Self::Context) {
        // The others have taken this gateway for lost and settled what runs here.
        if current != self.gateway_id {
            self.close(
                crate::protocol::close::GOING_AWAY,
                "the gateway starts afresh",
            );
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

#[cfg(test)]
mod tests;
