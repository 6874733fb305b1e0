//! `Drainer`: owns which sessions of this gateway are let go, and when, once it is told to stop.
//!
//! A runner that speaks protocol 2 is asked to open a session elsewhere and goes by itself. One that speaks
//! protocol 1 knows no such thing: it comes back elsewhere only after its session here was closed. So those
//! are closed one per runner at a time, each once nothing runs in it, and while another session of the same
//! runner takes the jobs. A runner's only session serves until load balancers had time to notice that this
//! gateway is going, so that the runner does not come back here; its jobs are held for the moment that it
//! needs.
//!
//! The drainer says who may go. How a session goes is the session's.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use super::picker::{LiveRunners, RunnerLive};
use super::session::ReleaseSession;
use super::vital::Vital;
use crate::ids::{RunnerId, SessionId};

/// How often the drainer looks who may go.
const LOOK: Duration = Duration::from_millis(200);

/// A session of this gateway came or went. Sent by the session.
#[derive(Message)]
#[rtype(result = "()")]
pub enum SessionPresence {
    /// It is registered.
    Here {
        /// The session.
        session_id: SessionId,
        /// Its runner.
        runner_id: RunnerId,
        /// How to let it go, if somebody has to: it does not go by itself.
        release: Option<Recipient<ReleaseSession>>,
    },
    /// It is gone.
    Gone {
        /// The session.
        session_id: SessionId,
    },
}

/// Let sessions go. Sent once, as the gateway is told to stop and others are there to go to.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct BeginDrain {
    /// When runners are let go whose only session is here.
    pub sole_sessions_at: Instant,
}

/// How many sessions this gateway has.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "usize")]
pub struct SessionsHere;

#[derive(Message)]
#[rtype(result = "()")]
struct Look;

/// The sessions of this gateway: a plain table.
#[derive(Default)]
struct Departures {
    here: HashMap<SessionId, Here>,
}

struct Here {
    runner: RunnerId,
    release: Option<Recipient<ReleaseSession>>,
    released: bool,
}

impl Departures {
    /// The sessions to let go now: at most one per runner is on its way out, and it is not the last one that takes
    /// jobs unless `sole` ones are to go too.
    fn next(&mut self, live: &HashMap<RunnerId, RunnerLive>, sole: SoleSessions) -> Vec<SessionId> {
        let mut taken: HashSet<RunnerId> = self
            .here
            .values()
            .filter(|here| here.released)
            .map(|here| here.runner)
            .collect();
        let mut next = Vec::new();
        for (id, here) in &mut self.here {
            let takers = live.get(&here.runner).map_or(0, |live| live.healthy);
            let may_go = sole == SoleSessions::Go || takers > 1;
            if here.release.is_some() && !here.released && may_go && taken.insert(here.runner) {
                here.released = true;
                next.push(*id);
            }
        }
        next
    }
}

/// What becomes of a runner's only session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SoleSessions {
    /// It serves on.
    Stay,
    /// It is let go like others.
    Go,
}

/// The actor.
pub struct Drainer {
    departures: Departures,
    live: Recipient<LiveRunners>,
    sole_sessions_at: Option<Instant>,
    _vital: Vital,
}

impl Drainer {
    /// A drainer of a gateway without sessions.
    pub fn new(live: Recipient<LiveRunners>, vital: Vital) -> Self {
        Self {
            departures: Departures::default(),
            live,
            sole_sessions_at: None,
            _vital: vital,
        }
    }

    fn look(&mut self, live: &HashMap<RunnerId, RunnerLive>) {
        let Some(at) = self.sole_sessions_at else {
            return;
        };
        let sole = if Instant::now() < at {
            SoleSessions::Stay
        } else {
            SoleSessions::Go
        };
        for id in self.departures.next(live, sole) {
            let here = self.departures.here.get(&id);
            if let Some(release) = here.and_then(|here| here.release.as_ref()) {
                // Once per session.
                release.do_send(ReleaseSession);
            }
        }
    }
}

impl Actor for Drainer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Handler<SessionPresence> for Drainer {
    type Result = ();

    fn handle(&mut self, presence: SessionPresence, _: &mut Self::Context) {
        match presence {
            SessionPresence::Here {
                session_id,
                runner_id,
                release,
            } => {
                let here = Here {
                    runner: runner_id,
                    release,
                    released: false,
                };
                self.departures.here.insert(session_id, here);
            }
            SessionPresence::Gone { session_id } => {
                self.departures.here.remove(&session_id);
            }
        }
    }
}

impl Handler<BeginDrain> for Drainer {
    type Result = ();

    fn handle(&mut self, BeginDrain { sole_sessions_at }: BeginDrain, ctx: &mut Self::Context) {
        if self.sole_sessions_at.replace(sole_sessions_at).is_none() {
            ctx.notify(Look);
            ctx.run_interval(LOOK, |_, ctx| ctx.notify(Look));
        }
    }
}

impl Handler<SessionsHere> for Drainer {
    type Result = usize;

    fn handle(&mut self, _: SessionsHere, _: &mut Self::Context) -> usize {
        self.departures.here.len()
    }
}

impl Handler<Look> for Drainer {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Self::Context) {
        self.live
            .send(LiveRunners)
            .into_actor(self)
            .map(|live, act, _| act.look(&live.unwrap_or_default()))
            .spawn(ctx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{eventually, probe};
    use crate::control::vital::{Shutdown, Stage};

    fn vital() -> Vital {
        let shutdown = Shutdown::default();
        shutdown.advance(Stage::Draining);
        Vital::new("Drainer", &shutdown)
    }

    fn healthy(sessions: u32) -> RunnerLive {
        RunnerLive {
            healthy: sessions,
            ..RunnerLive::default()
        }
    }

    /// Stands for the picker.
    struct Connected(HashMap<RunnerId, RunnerLive>);

    impl Actor for Connected {
        type Context = Context<Self>;
    }

    impl Handler<LiveRunners> for Connected {
        type Result = MessageResult<LiveRunners>;

        fn handle(&mut self, _: LiveRunners, _: &mut Self::Context) -> Self::Result {
            MessageResult(self.0.clone())
        }
    }

    #[actix::test]
    async fn sessions_of_a_runner_go_one_at_a_time_and_the_last_when_it_is_time() {
        let (release, released) = probe::<ReleaseSession, _>(|_| ());
        let (runner, other) = (RunnerId::new(), RunnerId::new());
        let mut table = Departures::default();
        let mut add = |runner, release| {
            let id = SessionId::new();
            let here = Here {
                runner,
                release,
                released: false,
            };
            table.here.insert(id, here);
            id
        };
        add(runner, Some(release.clone()));
        add(runner, Some(release.clone()));
        let moves_by_itself = add(other, None);
        let live = |sessions| HashMap::from([(runner, healthy(sessions)), (other, healthy(1))]);

        let first = table.next(&live(2), SoleSessions::Stay);
        assert_eq!(first.len(), 1);
        assert!(
            table.next(&live(2), SoleSessions::Go).is_empty(),
            "one is on its way"
        );
        table.here.remove(&first[0]);
        assert!(
            table.next(&live(1), SoleSessions::Stay).is_empty(),
            "nobody else would take the runner's jobs"
        );
        assert_eq!(
            table.next(&live(2), SoleSessions::Stay).len(),
            1,
            "the first one is back, elsewhere"
        );
        table.here.retain(|_, here| !here.released);
        assert_eq!(table.here.keys().collect::<Vec<_>>(), [&moves_by_itself]);
        assert!(table.next(&live(0), SoleSessions::Go).is_empty());
        assert_eq!(released.len(), 0);
    }

    #[actix::test]
    async fn a_runners_only_session_is_released_at_the_time_that_was_set_and_once() {
        tokio::time::pause();
        let runner = RunnerId::new();
        let live = Connected(HashMap::from([(runner, healthy(1))]))
            .start()
            .recipient();
        let (release, released) = probe::<ReleaseSession, _>(|_| ());
        let drainer = Drainer::new(live, vital()).start();
        let session_id = SessionId::new();
        drainer.do_send(SessionPresence::Here {
            session_id,
            runner_id: runner,
            release: Some(release),
        });
        assert_eq!(drainer.send(SessionsHere).await.unwrap(), 1);
        let sole_sessions_at = Instant::now() + Duration::from_secs(5);
        drainer.do_send(BeginDrain { sole_sessions_at });
        tokio::time::sleep(Duration::from_millis(4_900)).await;
        assert_eq!(released.len(), 0);
        eventually("it may go", || released.len() == 1).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(released.len(), 1);
        drainer.do_send(SessionPresence::Gone { session_id });
        assert_eq!(drainer.send(SessionsHere).await.unwrap(), 0);
    }
}
