//! `HeartbeatMonitor`: owns when each session of this gateway was last heard of.
//!
//! It says which sessions are healthy (to the picker), closes those that stay silent (4008), and writes
//! last-seen times to the store in one statement every 20 s. It does not know what sessions do.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::picker::SessionChanged;
use super::session::CloseSession;
use super::vital::Vital;
use crate::clock::Clock;
use crate::domain::liveness::{Liveness, Verdict};
use crate::ids::SessionId;
use crate::protocol::close;
use crate::storage::{Store, Touch};
use crate::timing::Timing;

/// A session exists and can be closed here. Sent once, as it registers.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionWatched {
    /// The session.
    pub session_id: SessionId,
    /// How often it is to be heard of.
    pub heartbeat: Duration,
    /// How to close it.
    pub close: Recipient<CloseSession>,
}

/// A session was heard of. Sent by the session, at most twice a second.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionSeen {
    /// The session.
    pub session_id: SessionId,
}

/// A session is gone. Sent by the session.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionUnwatched {
    /// The session.
    pub session_id: SessionId,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Judge;

#[derive(Message)]
#[rtype(result = "()")]
struct Persist;

/// The actor.
pub struct HeartbeatMonitor {
    liveness: Liveness,
    close: HashMap<SessionId, Recipient<CloseSession>>,
    changed: Recipient<SessionChanged>,
    store: Store,
    clock: Clock,
    timing: Timing,
    persisting: bool,
    _vital: Vital,
}

impl HeartbeatMonitor {
    /// A monitor of no session yet.
    pub fn new(
        changed: Recipient<SessionChanged>,
        store: Store,
        clock: Clock,
        timing: Timing,
        vital: Vital,
    ) -> Self {
        let liveness = Liveness::new(timing.close_after_unroutable);
        Self {
            liveness,
            close: HashMap::new(),
            changed,
            store,
            clock,
            timing,
            persisting: false,
            _vital: vital,
        }
    }
}

impl Actor for HeartbeatMonitor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A late verdict costs routing quality, so the table is judged often compared with any heartbeat.
        let often = Duration::from_secs(1).min(self.timing.heartbeat_v2 / 4);
        ctx.run_interval(often, |_, ctx| ctx.notify(Judge));
        ctx.run_interval(self.timing.persist_heartbeats, |_, ctx| ctx.notify(Persist));
    }
}

impl Handler<SessionWatched> for HeartbeatMonitor {
    type Result = ();

    fn handle(&mut self, watched: SessionWatched, _: &mut Self::Context) {
        self.liveness
            .watch(watched.session_id, watched.heartbeat, Instant::now());
        self.close.insert(watched.session_id, watched.close);
    }
}

impl Handler<SessionSeen> for HeartbeatMonitor {
    type Result = ();

    fn handle(&mut self, SessionSeen { session_id }: SessionSeen, _: &mut Self::Context) {
        if self.liveness.seen(session_id, Instant::now()) {
            self.changed.do_send(SessionChanged::Health {
                session_id,
                healthy: true,
            });
        }
    }
}

impl Handler<SessionUnwatched> for HeartbeatMonitor {
    type Result = ();

    fn handle(&mut self, SessionUnwatched { session_id }: SessionUnwatched, _: &mut Self::Context) {
        self.liveness.forget(session_id);
        self.close.remove(&session_id);
    }
}

impl Handler<Judge> for HeartbeatMonitor {
    type Result = ();

    fn handle(&mut self, _: Judge, _: &mut Self::Context) {
        for (session_id, verdict) in self.liveness.judge(Instant::now()) {
            match verdict {
                Verdict::Unroutable => {
                    log::warn!(session_id:% = session_id; "session {session_id} missed two heartbeats, it gets no jobs");
                    self.changed.do_send(SessionChanged::Health {
                        session_id,
                        healthy: false,
                    });
                }
                Verdict::Close => {
                    if let Some(close) = self.close.get(&session_id) {
                        close.do_send(CloseSession {
                            code: close::HEARTBEAT_MISSED,
                            reason: "heartbeats were missed",
                        });
                    }
                }
            }
        }
    }
}

impl Handler<Persist> for HeartbeatMonitor {
    type Result = ();

    fn handle(&mut self, _: Persist, ctx: &mut Self::Context) {
        if std::mem::replace(&mut self.persisting, true) {
            return;
        }
        let (now, wall) = (Instant::now(), self.clock.now());
        let seen: Vec<_> = self
            .liveness
            .last_seen(now)
            .map(|(session, ago)| Touch {
                session,
                seen_at: wall.minus(ago),
            })
            .collect();
        let store = self.store.clone();
        async move { store.session_touch(seen).await }
            .into_actor(self)
            .map(|written, act, _| {
                act.persisting = false;
                if let Err(error) = written {
                    log::warn!(error:% = error; "last-seen times could not be written, the next pass will");
                }
            })
            .spawn(ctx);
    }
}
