//! How a session opens, stays and closes: registration, liveness, assignments, the close itself.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::{
    LetGo, MAILBOX_BASE, MAX_CAPACITY, PROTOCOL_1_CAPACITY, Phase, RunnerSession, STUCK_BYTES,
    SocketCommand,
};
use crate::control::catalogue::Catalogue;
use crate::control::drain::SessionPresence;
use crate::control::heartbeat::{SessionSeen, SessionUnwatched, SessionWatched};
use crate::control::picker::{Registration, SessionChanged};
use crate::control::registrar::RemoveSession;
use crate::protocol::{self, GatewayFrame, Hello, HelloAck, Limits, close};
use crate::storage::{Session, SessionState, StoreError};

/// How long a runner gets to answer a close frame before its connection is cut.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// The longest reason in a close frame, in bytes.
const MAX_REASON: usize = 120;
/// The longest text in a hello, in bytes, and the most entries of a list.
const MAX_TEXT: usize = 256;
const MAX_LIST: usize = 64;
/// How often liveness is told on to the monitor at most.
const SEEN_EVERY: Duration = Duration::from_millis(500);

impl RunnerSession {
    /// How often the session looks after itself: once a second, or faster where a test asks for it.
    pub(super) fn tick_period(&self) -> Duration {
        Duration::from_secs(1)
            .min(self.cx.timing.ping / 2)
            .min(self.cx.timing.hello / 2)
    }

    fn heartbeat(&self) -> Duration {
        if self.version >= 2 {
            self.cx.timing.heartbeat_v2
        } else {
            self.cx.timing.heartbeat_v1
        }
    }

    /// Handles the hello: checks it, then registers; the answer goes out once the registration stands.
    pub(super) fn on_hello(&mut self, hello: Hello, ctx: &mut Context<Self>) -> Result<(), String> {
        let Some(version) = hello.version else {
            return Err("hello names no protocol version".to_owned());
        };
        if version < protocol::OLDEST_VERSION {
            return Err(format!("protocol version {version} is not served any more"));
        }
        check_texts(&hello)?;
        let catalogue = self.cx.catalogue.current();
        let Some(runner) = catalogue.runner(self.runner_id()) else {
            self.close(close::TOKEN_REVOKED, "this runner has been deleted");
            return Ok(());
        };
        if hello.runner_id != self.runner_id().to_string() && hello.runner_id != runner.name {
            self.close(close::WRONG_RUNNER, "the token belongs to another runner");
            return Ok(());
        }
        self.version = version.min(protocol::CURRENT_VERSION);
        self.capacity = match hello.max_concurrent_jobs {
            Some(jobs) if self.version >= 2 => jobs.clamp(1, MAX_CAPACITY),
            _ => PROTOCOL_1_CAPACITY,
        };
        ctx.set_mailbox_capacity(2 * self.capacity as usize + MAILBOX_BASE);
        self.phase = Phase::Registering;
        self.registered = true;
        self.registering = true;
        let row = self.registration_row(&hello);
        let store = self.cx.store.clone();
        async move { store.session_open(row).await }
            .into_actor(self)
            .map(move |opened, session, ctx| session.on_registered(opened, &hello, ctx))
            .spawn(ctx);
        Ok(())
    }

    fn registration_row(&self, hello: &Hello) -> Session {
        let now = self.now();
        Session {
            id: self.id,
            runner_id: self.runner_id(),
            organisation_id: self.identity.organisation_id,
            gateway_id: self.gateway_id,
            instance_id: hello.instance_id,
            protocol: i32::try_from(self.version).unwrap_or(i32::MAX),
            version: hello.runtime_version.clone(),
            hostname: hello.hostname.clone(),
            capabilities: serde_json::json!(hello.capabilities),
            labels: serde_json::json!(hello.labels),
            max_jobs: i32::try_from(self.capacity).unwrap_or(i32::MAX),
            remote_addr: self.identity.remote_addr.clone(),
            connected_at: now,
            last_seen_at: now,
            state: SessionState::Ready,
            changed_at: now,
        }
    }

    fn on_registered(
        &mut self,
        opened: Result<(), StoreError>,
        hello: &Hello,
        ctx: &mut Context<Self>,
    ) {
        self.registering = false;
        if self.phase != Phase::Registering {
            // It closed meanwhile, and its row may have come after the attempt to remove it.
            self.remove_row();
            return self.stop_when_idle(ctx);
        }
        if let Err(error) = opened {
            log::warn!(runner_id:% = self.runner_id(), error:% = error; "session of runner {} could not be recorded", self.runner_id());
            return match error {
                StoreError::NotFound => {
                    self.close(close::TOKEN_REVOKED, "this runner was revoked or deleted")
                }
                StoreError::Conflict(_) => self.close(
                    close::GOING_AWAY,
                    "the gateway starts afresh, connect again",
                ),
                _ => self.close(close::GOING_AWAY, "the gateway cannot reach its store"),
            };
        }
        self.phase = Phase::Ready;
        self.announced = self.cx.catalogue.current().assigned_to(self.runner_id());
        self.announce_registration(hello, ctx);
        self.send(&GatewayFrame::HelloAck(self.hello_ack(hello)));
        log::info!(runner_id:% = self.runner_id(), session_id:% = self.id, protocol = self.version;
            "runner {} connected", self.runner_id());
        if self.cx.shutdown.has_begun() {
            self.on_drain();
        }
        // A revocation may have overtaken the registration.
        let catalogue = self.cx.catalogue.current();
        self.on_catalogue(&catalogue);
    }

    fn announce_registration(&mut self, hello: &Hello, ctx: &Context<Self>) {
        self.cx
            .links
            .changed
            .do_send(SessionChanged::Opened(Box::new(Registration {
                session_id: self.id,
                gateway_id: self.gateway_id,
                runner_id: self.runner_id(),
                instance_id: hello.instance_id,
                capabilities: hello
                    .capabilities
                    .iter()
                    .map(|c| crate::bridge::short_name(c).to_owned())
                    .collect(),
                capacity: self.capacity,
                load: self.load.clone(),
                version: hello.runtime_version.clone(),
                execute: ctx.address().recipient(),
                cancel: ctx.address().recipient(),
            })));
        self.cx.links.presence.do_send(SessionPresence::Here {
            session_id: self.id,
            runner_id: self.runner_id(),
            // A runner of a later protocol goes by itself when it is asked to.
            release: (self.version < 2).then(|| ctx.address().recipient()),
        });
        self.cx.links.watched.do_send(SessionWatched {
            session_id: self.id,
            heartbeat: self.heartbeat(),
            close: ctx.address().recipient(),
        });
    }

    fn hello_ack(&self, hello: &Hello) -> HelloAck {
        let two = self.version >= 2;
        let zstd = || {
            hello
                .compression
                .iter()
                .any(|c| c == "zstd")
                .then(|| "zstd".to_owned())
        };
        HelloAck {
            server_version: self.version,
            assigned_sources: self.announced.clone(),
            session_id: two.then_some(self.id),
            gateway_id: two.then_some(self.gateway_id),
            heartbeat_ms: two.then(|| millis(self.cx.timing.heartbeat_v2)),
            lost_after_ms: two.then(|| millis(self.cx.timing.cut_off_v2)),
            compression: if two && self.cx.compress {
                zstd()
            } else {
                None
            },
            limits: two.then_some(Limits {
                max_frame_bytes: protocol::MAX_FRAME_BYTES,
                window_bytes: protocol::DEFAULT_WINDOW_BYTES,
                max_row_bytes: Some(protocol::MAX_ROW_BYTES),
            }),
        }
    }

    /// Tells the monitor that the runner was heard of, at most every half second.
    pub(super) fn note_seen(&mut self) {
        let now = Instant::now();
        if self.phase == Phase::Ready && self.seen_reported.is_none_or(|at| now - at >= SEEN_EVERY)
        {
            self.seen_reported = Some(now);
            self.cx.links.seen.do_send(SessionSeen {
                session_id: self.id,
            });
        }
    }

    /// Follows the catalogue: a token that no longer counts closes, changed assignments are pushed.
    pub(super) fn on_catalogue(&mut self, catalogue: &Catalogue) {
        if !matches!(self.phase, Phase::Ready | Phase::Registering) {
            return;
        }
        if !catalogue.token_is_live(self.identity.key_id, self.now()) {
            self.close(
                close::TOKEN_REVOKED,
                "the token was rotated, revoked or has expired",
            );
            return;
        }
        let assigned = catalogue.assigned_to(self.runner_id());
        if self.phase == Phase::Ready && assigned != self.announced {
            self.announced = assigned;
            self.send(&GatewayFrame::AssignmentsChanged {
                assigned_sources: self.announced.clone(),
            });
        }
    }

    pub(super) fn on_tick(&mut self, now: Instant) {
        match self.phase {
            Phase::AwaitingHello if now - self.opened >= self.cx.timing.hello => {
                self.close(close::PROTOCOL_ERROR, "no hello in time");
            }
            Phase::Closing
                if self
                    .closing_since
                    .is_some_and(|since| now - since >= CLOSE_GRACE) =>
            {
                (self.socket.cut)()
            }
            Phase::Ready => {
                let catalogue = self.cx.catalogue.current();
                self.on_catalogue(&catalogue);
                self.ping(now);
                self.look_for_stuck_output(now);
                self.finish_release();
            }
            _ => {}
        }
    }

    /// Pings the runner, and closes on one that has not answered a ping for as long as a heartbeat may
    /// be missing: it may still talk, but it no longer reads.
    fn ping(&mut self, now: Instant) {
        if self.phase != Phase::Ready || now - self.last_ping < self.cx.timing.ping {
            return;
        }
        let patience = self.cx.timing.unroutable_after(self.heartbeat())
            + self.cx.timing.close_after_unroutable;
        if self
            .unanswered_since
            .is_some_and(|since| now - since >= patience)
        {
            self.close(close::NOT_READING, "pings are not answered");
            return;
        }
        self.last_ping = now;
        self.unanswered_since.get_or_insert(now);
        self.send(&GatewayFrame::Ping);
        if self.socket.commands.try_send(SocketCommand::Ping).is_err() {
            self.close(close::NOT_READING, "not reading what it is sent");
        }
    }

    fn look_for_stuck_output(&mut self, now: Instant) {
        let queued = self.socket.queued.get();
        match self.output_stands {
            Some((stood_at, since)) if queued >= stood_at && queued > STUCK_BYTES => {
                if now - since >= self.cx.timing.stuck_output {
                    self.close(close::NOT_READING, "not reading what it is sent");
                }
            }
            _ => self.output_stands = Some((queued, now)),
        }
    }

    /// Sends a frame; a socket that takes no more is stuck, and closed. Answers whether it was taken.
    pub(super) fn send(&mut self, frame: &GatewayFrame) -> bool {
        let text = frame.to_text();
        let bytes = text.len();
        self.socket.queued.add(bytes);
        if self
            .socket
            .commands
            .try_send(SocketCommand::Send(text))
            .is_err()
        {
            self.socket.queued.take_off(bytes);
            self.close(close::NOT_READING, "not reading what it is sent");
            return false;
        }
        self.frames_sent += 1;
        true
    }

    /// Closes: takes nothing more, fails what ran, and cuts the connection if the peer does not answer.
    pub(super) fn close(&mut self, code: u16, reason: &str) {
        if self.phase == Phase::Closing {
            return;
        }
        let reason = short(reason);
        log::info!(runner_id:% = self.runner_id(), session_id:% = self.id, code, reason = reason.as_str(); "closing session of runner {}", self.runner_id());
        self.phase = Phase::Closing;
        self.closing_since = Some(Instant::now());
        self.deregister();
        // A frozen socket takes no command any more and is cut at once.
        let polite = SocketCommand::Close {
            code,
            reason: reason.clone(),
        };
        if code == close::NOT_READING || self.socket.commands.try_send(polite).is_err() {
            (self.socket.cut)();
            self.socket_ended = true;
        }
        self.lose_sent();
    }

    /// Takes the registration back, wherever it stands; does nothing the second time.
    pub(super) fn deregister(&mut self) {
        if !std::mem::take(&mut self.registered) {
            return;
        }
        self.cx.links.changed.do_send(SessionChanged::Closed {
            session_id: self.id,
        });
        self.cx.links.unwatched.do_send(SessionUnwatched {
            session_id: self.id,
        });
        self.cx.links.presence.do_send(SessionPresence::Gone {
            session_id: self.id,
        });
        self.remove_row();
    }

    fn remove_row(&self) {
        self.cx.links.remove.do_send(RemoveSession {
            session_id: self.id,
            gateway_id: self.gateway_id,
        });
    }

    pub(super) fn on_socket_closed(&mut self, ctx: &mut Context<Self>) {
        if self.phase != Phase::Closing {
            log::info!(runner_id:% = self.runner_id(), session_id:% = self.id; "runner {} disconnected", self.runner_id());
            self.phase = Phase::Closing;
            self.deregister();
        }
        self.socket_ended = true;
        self.cut_soon();
        self.lose_sent();
        // A job may be in the mailbox that the picker sent before it knew. An actor that stops drops its
        // mailbox, so it stays until the picker has let go, and gives such a job back.
        self.cx
            .links
            .changed
            .send(SessionChanged::Closed {
                session_id: self.id,
            })
            .into_actor(self)
            .map(|_, _, ctx| ctx.notify(LetGo))
            .spawn(ctx);
    }

    /// Cuts the connection once a close frame had its time to go out: actix would keep the connection for
    /// as long as a peer goes on sending into it.
    fn cut_soon(&mut self) {
        let cut = std::mem::replace(&mut self.socket.cut, Box::new(|| ()));
        actix::spawn(async move {
            tokio::time::sleep(CLOSE_GRACE).await;
            cut();
        });
    }

    /// Ends the actor once its socket is gone, no job can come any more, and nothing is under way.
    pub(super) fn stop_when_idle(&mut self, ctx: &mut Context<Self>) {
        if self.let_go && self.attempts.is_empty() && !self.registering {
            ctx.stop();
        }
    }
}

/// A close frame has room for 123 bytes of reason, and a parser's words may be long.
fn short(reason: &str) -> String {
    let clean: String = reason.chars().filter(|c| !c.is_control()).collect();
    let end = clean
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= MAX_REASON)
        .last();
    clean[..end.unwrap_or(0)].to_owned()
}

/// Refuses what no store takes, and what nobody would want to read.
fn check_texts(hello: &Hello) -> Result<(), String> {
    let singles = [&hello.hostname, &hello.runtime_version]
        .into_iter()
        .flatten();
    let lists = hello
        .capabilities
        .iter()
        .chain(&hello.labels)
        .chain(&hello.compression);
    if hello.capabilities.len() > MAX_LIST || hello.labels.len() > MAX_LIST {
        return Err(format!(
            "hello has more than {MAX_LIST} capabilities or labels"
        ));
    }
    match singles
        .chain(lists)
        .find(|text| text.len() > MAX_TEXT || text.chars().any(char::is_control))
    {
        Some(_) => Err(format!(
            "a text in hello has control characters or more than {MAX_TEXT} bytes"
        )),
        None => Ok(()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
