//! `RunnerSocket`: the bytes of one WebSocket, and nothing but I/O.
//!
//! A peer that stops reading freezes this actor whole, timers and mailbox included, because actix polls it
//! from inside the response body. So nothing that must go on lives here: the session beside it watches the
//! output and cuts the connection. Frames in are handed over one by one; while the session's mailbox is
//! full, no more are read, which the runner's TCP feels.

use actix::prelude::*;
use actix_http::ws::{CloseCode, CloseReason, Item};
use actix_web_actors::ws::{Message, ProtocolError, WebsocketContext};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;

use crate::control::session::{
    ByteGauge, FrameReceived, RunnerSession, SocketClosed, SocketCommand, WrittenGauge,
};

/// The most fragments of one message.
const MAX_FRAGMENTS: usize = 1024;
/// How many bytes from the runner may wait to be handled before no more are read.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;
/// How many commands may wait while the peer does not read.
const MAX_COMMANDS: usize = 8192 + 64;

/// A message that arrives in fragments.
struct Fragments {
    text: bool,
    bytes: BytesMut,
    count: usize,
}

/// Starts the session of a socket, once the socket's address is known.
pub(super) type OpenSession =
    Box<dyn FnOnce(Recipient<SocketCommand>, Gauges) -> Addr<RunnerSession>>;

/// What is between the socket and its session, in bytes.
#[derive(Clone, Default)]
pub(super) struct Gauges {
    /// From the session, to be written.
    pub(super) queued: ByteGauge,
    /// Which frames the socket has got to.
    pub(super) written: WrittenGauge,
    /// From the runner, to be handled.
    pub(super) received: ByteGauge,
}

/// The actor.
pub(super) struct RunnerSocket {
    open: Option<OpenSession>,
    session: Option<Addr<RunnerSession>>,
    gauges: Gauges,
    fragments: Option<Fragments>,
    max_message: usize,
}

impl RunnerSocket {
    /// A socket whose messages are at most `max_message` bytes.
    pub(super) fn new(open: OpenSession, max_message: usize) -> Self {
        Self {
            open: Some(open),
            session: None,
            gauges: Gauges::default(),
            fragments: None,
            max_message,
        }
    }

    /// Hands a frame to the session; reads no further while too many bytes or frames wait there.
    fn deliver(&self, frame: FrameReceived, ctx: &mut WebsocketContext<Self>) {
        let Some(session) = &self.session else { return };
        let waiting = self.gauges.received.get();
        self.gauges.received.add(frame.size());
        let frame = if waiting < MAX_WAITING_BYTES {
            match session.try_send(frame) {
                Ok(()) => return,
                Err(SendError::Full(frame)) => frame,
                // A session that died leaves nobody to talk to the runner.
                Err(SendError::Closed(_)) => return ctx.stop(),
            }
        } else {
            frame
        };
        session
            .send(frame)
            .into_actor(self)
            .map(|_, _, _| ())
            .wait(ctx);
    }

    /// Puts fragments together, within the limits of a whole message.
    fn continuation(&mut self, item: Item) -> Result<Option<FrameReceived>, &'static str> {
        match (item, self.fragments.take()) {
            (Item::FirstText(bytes), None) => self.collect(
                Fragments {
                    text: true,
                    bytes: BytesMut::new(),
                    count: 0,
                },
                &bytes,
            ),
            (Item::FirstBinary(bytes), None) => self.collect(
                Fragments {
                    text: false,
                    bytes: BytesMut::new(),
                    count: 0,
                },
                &bytes,
            ),
            (Item::Continue(bytes), Some(fragments)) => self.collect(fragments, &bytes),
            (Item::Last(bytes), Some(fragments)) => {
                self.collect(fragments, &bytes)?;
                Ok(self.fragments.take().map(whole))
            }
            _ => Err("fragments out of order"),
        }
    }

    fn collect(
        &mut self,
        mut fragments: Fragments,
        bytes: &Bytes,
    ) -> Result<Option<FrameReceived>, &'static str> {
        if fragments.bytes.len() + bytes.len() > self.max_message
            || fragments.count >= MAX_FRAGMENTS
        {
            return Err("a fragmented message over the limit");
        }
        fragments.bytes.extend_from_slice(bytes);
        fragments.count += 1;
        self.fragments = Some(fragments);
        Ok(None)
    }
}

fn whole(fragments: Fragments) -> FrameReceived {
    let bytes = fragments.bytes.freeze();
    if !fragments.text {
        return FrameReceived::Binary(bytes);
    }
    match ByteString::try_from(bytes) {
        Ok(text) => FrameReceived::Text(text),
        Err(_not_utf8) => FrameReceived::Invalid("a text frame that is not UTF-8".to_owned()),
    }
}

impl Actor for RunnerSocket {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAX_COMMANDS);
        if let Some(open) = self.open.take() {
            self.session = Some(open(ctx.address().recipient(), self.gauges.clone()));
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        if let Some(session) = &self.session {
            // Once per socket.
            session.do_send(SocketClosed);
        }
    }
}

impl StreamHandler<Result<Message, ProtocolError>> for RunnerSocket {
    fn handle(&mut self, message: Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        let frame = match message {
            Ok(Message::Text(text)) => FrameReceived::Text(text),
            Ok(Message::Binary(bytes)) => FrameReceived::Binary(bytes),
            Ok(Message::Continuation(item)) => match self.continuation(item) {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(why) => FrameReceived::Invalid(why.to_owned()),
            },
            Ok(Message::Ping(payload)) => return ctx.pong(&payload),
            Ok(Message::Pong(_)) => FrameReceived::Pong,
            Ok(Message::Nop) => return,
            Ok(Message::Close(reason)) => {
                ctx.close(reason);
                return ctx.stop();
            }
            Err(error) => FrameReceived::Invalid(error.to_string()),
        };
        self.deliver(frame, ctx);
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl Handler<SocketCommand> for RunnerSocket {
    type Result = ();

    fn handle(&mut self, command: SocketCommand, ctx: &mut Self::Context) {
        match command {
            SocketCommand::Send(text) => {
                self.gauges.queued.take_off(text.len());
                self.gauges.written.advance();
                ctx.text(text);
            }
            SocketCommand::Ping => ctx.ping(b""),
            SocketCommand::Close { code, reason } => {
                ctx.close(Some(CloseReason {
                    code: CloseCode::from(code),
                    description: Some(reason),
                }));
                ctx.stop();
            }
        }
    }
}
