//! `Picker`: owns the table of this gateway's sessions, and hands each job to one session of the cluster.
//!
//! Sessions of other gateways are those that the catalogue lists; a job for one of them goes to the link with
//! its gateway. Who is eligible, and why nobody is, is decided in `domain::picking`. The picker knows neither
//! jobs in flight nor the store; a session that has no room says so itself. How the sessions here stand is
//! told to whoever writes it down for the other gateways.

mod placing;
mod remote;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;

use self::remote::{Remote, Way};
use super::catalogue::{Catalogue, CatalogueReader};
use super::dispatcher::Return;
use super::identity::GatewayIdentity;
use super::job::Job;
use super::registrar::SessionStands;
use super::session::{CancelExecution, Execute, LoadGauge};
use super::vital::Vital;
use crate::domain::picking::{CandidateSession, NoCandidate};
use crate::ids::{GatewayId, InstanceId, RunnerId, SessionId, SourceId};
use crate::storage::SessionState;

/// A session as the picker knows it.
#[derive(Clone)]
pub struct Registration {
    /// The session.
    pub session_id: SessionId,
    /// The id of this gateway under which it was opened.
    pub gateway_id: GatewayId,
    /// Its runner.
    pub runner_id: RunnerId,
    /// Its runner's process, if it tells.
    pub instance_id: Option<InstanceId>,
    /// Short names of its bridges.
    pub capabilities: Vec<String>,
    /// How many jobs the process takes at once.
    pub capacity: u32,
    /// How many it works on.
    pub load: LoadGauge,
    /// What the runner says its version is.
    pub version: Option<String>,
    /// How to hand it a job.
    pub execute: Recipient<Execute>,
    /// How to take one back.
    pub cancel: Recipient<CancelExecution>,
}

/// A session came, changed or went. Sent by sessions, and by the heartbeat monitor for health.
#[derive(Message)]
#[rtype(result = "()")]
pub enum SessionChanged {
    /// It is ready for jobs.
    Opened(Box<Registration>),
    /// It was heard of again, or missed two heartbeats.
    Health {
        /// The session.
        session_id: SessionId,
        /// Whether it may get jobs.
        healthy: bool,
    },
    /// It takes nothing new.
    Draining {
        /// The session.
        session_id: SessionId,
    },
    /// It is gone.
    Closed {
        /// The session.
        session_id: SessionId,
    },
}

/// A way to another gateway opened or closed. Sent by the cluster actor.
#[derive(Message)]
#[rtype(result = "()")]
pub enum PeerChanged {
    /// Jobs can be handed to it.
    Up {
        /// The peer.
        gateway_id: GatewayId,
        /// How to hand it a job.
        execute: Recipient<Execute>,
        /// How to take one back.
        cancel: Recipient<CancelExecution>,
    },
    /// It is gone, or cannot be reached any more.
    Down {
        /// The peer.
        gateway_id: GatewayId,
    },
}

/// What another gateway said when it was handed a job. Sent by the links.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub enum PeerSaid {
    /// A session there did not take it.
    Declined {
        /// The session.
        session_id: SessionId,
        /// Why not.
        why: Return,
    },
    /// Nothing.
    Silent {
        /// The peer.
        gateway_id: GatewayId,
    },
}

/// Hand this job to somebody. Sent by the dispatcher.
#[derive(Message)]
#[rtype(result = "Result<Placement, Unplaceable>")]
pub struct Place {
    /// The job.
    pub job: Arc<Job>,
    /// Which attempt it is.
    pub attempt: u32,
    /// Sessions that did not take it.
    pub declined: Vec<SessionId>,
}

/// Who was handed a job.
#[derive(Debug)]
pub struct Placement {
    /// The session.
    pub session_id: SessionId,
    /// How to take the job back.
    pub cancel: Recipient<CancelExecution>,
}

/// Why a job could be handed to nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unplaceable {
    /// All that could are at capacity.
    Busy,
    /// Those there are take nothing new, or went in good order a moment ago: some of them may come back.
    Moving {
        /// In words.
        reason: String,
    },
    /// There is nobody.
    Offline {
        /// Never seen, offline, drained, lacks the bridge, …
        reason: String,
    },
    /// The one session that another gateway has chosen does not take it.
    Declined(Return),
}

/// How do things look here for jobs of these sources, one after the other? Sent by whoever takes pending jobs.
#[derive(Message, Debug, Clone)]
#[rtype(result = "Vec<Outlook>")]
pub struct Outlooks {
    /// The sources.
    pub sources: Vec<SourceId>,
}

/// How things look for jobs of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// So many of them could be handed to sessions of this gateway.
    Room(u32),
    /// Only other gateways have somebody.
    Elsewhere,
    /// Not one could be handed to anybody.
    Nobody(Unplaceable),
}

/// What is connected at this moment, by runner.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "HashMap<RunnerId, RunnerLive>")]
pub struct LiveRunners;

/// What is connected of one runner at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunnerLive {
    /// Its sessions.
    pub sessions: u32,
    /// Those that get jobs.
    pub healthy: u32,
    /// Those that take nothing new.
    pub draining: u32,
    /// Jobs that it works on.
    pub active_jobs: u32,
    /// The version of one of its processes.
    pub version: Option<String>,
}

impl From<NoCandidate> for Unplaceable {
    fn from(nobody: NoCandidate) -> Self {
        let reason = nobody.to_string();
        if nobody.is_busy() {
            Self::Busy
        } else if nobody.is_moving() {
            Self::Moving { reason }
        } else {
            Self::Offline { reason }
        }
    }
}

struct Entry {
    registration: Registration,
    healthy: bool,
    draining: bool,
}

impl Entry {
    fn candidate(&self) -> CandidateSession<'_> {
        CandidateSession {
            session: self.registration.session_id,
            instance: self.registration.instance_id,
            healthy: self.healthy,
            draining: self.draining,
            reachable: true,
            bridges: &self.registration.capabilities,
            active: self.registration.load.get(),
            capacity: self.registration.capacity,
        }
    }

    /// How it stands, for the other gateways.
    fn stands(&self, state: Option<SessionState>) -> SessionStands {
        SessionStands {
            session_id: self.registration.session_id,
            gateway_id: self.registration.gateway_id,
            state,
        }
    }

    fn state(&self) -> SessionState {
        if self.draining {
            SessionState::Draining
        } else if self.healthy {
            SessionState::Ready
        } else {
            SessionState::Unhealthy
        }
    }
}

/// What a picker is made of, beside what it learns.
pub struct PickerContext {
    /// Who serves what, and the sessions of the other gateways.
    pub catalogue: CatalogueReader,
    /// Which sessions of the catalogue are this gateway's own.
    pub identity: GatewayIdentity,
    /// To the registrar: how a session here stands.
    pub stands: Recipient<SessionStands>,
    /// Whether a session of this gateway is chosen, if one can take the job, before those of others.
    pub prefer_local: bool,
    /// For how long a runner that went in good order counts as on the move.
    pub moving_grace: Duration,
}

/// The actor.
pub struct Picker {
    sessions: HashMap<SessionId, Entry>,
    remote: Remote,
    /// Runners that connected since this gateway started; the catalogue learns of it only later.
    seen: HashSet<RunnerId>,
    /// Sessions of other gateways that took nothing new when they were last heard of.
    draining_elsewhere: HashMap<SessionId, RunnerId>,
    /// When runners went in good order that have not come back since.
    left: HashMap<RunnerId, Instant>,
    cx: PickerContext,
    _vital: Vital,
}

impl Picker {
    /// A picker that knows nobody.
    pub fn new(cx: PickerContext, vital: Vital) -> Self {
        Self {
            sessions: HashMap::new(),
            remote: Remote::default(),
            seen: HashSet::new(),
            draining_elsewhere: HashMap::new(),
            left: HashMap::new(),
            cx,
            _vital: vital,
        }
    }
}

impl Actor for Picker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
        ctx.add_stream(self.cx.catalogue.changes());
    }
}

impl Handler<SessionChanged> for Picker {
    type Result = ();

    fn handle(&mut self, changed: SessionChanged, _: &mut Self::Context) {
        match changed {
            SessionChanged::Opened(registration) => self.opened(*registration),
            SessionChanged::Health {
                session_id,
                healthy,
            } => self.change(session_id, |entry| entry.healthy = healthy),
            SessionChanged::Draining { session_id } => {
                self.change(session_id, |entry| entry.draining = true);
            }
            SessionChanged::Closed { session_id } => self.closed(session_id),
        }
    }
}

impl StreamHandler<Arc<Catalogue>> for Picker {
    fn handle(&mut self, catalogue: Arc<Catalogue>, _: &mut Self::Context) {
        self.follow(&catalogue);
    }

    // The stream ends with the process.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<PeerChanged> for Picker {
    type Result = ();

    fn handle(&mut self, changed: PeerChanged, _: &mut Self::Context) {
        match changed {
            PeerChanged::Up {
                gateway_id,
                execute,
                cancel,
            } => self.remote.up(gateway_id, Way { execute, cancel }),
            PeerChanged::Down { gateway_id } => self.remote.down(gateway_id),
        }
    }
}

impl Handler<PeerSaid> for Picker {
    type Result = ();

    fn handle(&mut self, said: PeerSaid, _: &mut Self::Context) {
        self.remote.note(said, Instant::now());
    }
}

impl Handler<Place> for Picker {
    type Result = Result<Placement, Unplaceable>;

    fn handle(&mut self, place: Place, _: &mut Self::Context) -> Self::Result {
        self.place(place)
    }
}

impl Handler<Outlooks> for Picker {
    type Result = Vec<Outlook>;

    fn handle(&mut self, Outlooks { sources }: Outlooks, _: &mut Self::Context) -> Self::Result {
        sources.into_iter().map(|id| self.outlook(id)).collect()
    }
}

impl Handler<LiveRunners> for Picker {
    type Result = MessageResult<LiveRunners>;

    fn handle(&mut self, _: LiveRunners, _: &mut Self::Context) -> Self::Result {
        let mut runners: HashMap<RunnerId, RunnerLive> = HashMap::new();
        for entry in self.sessions.values() {
            let runner = runners.entry(entry.registration.runner_id).or_default();
            runner.sessions += 1;
            runner.healthy += u32::from(entry.healthy && !entry.draining);
            runner.draining += u32::from(entry.draining);
            runner.active_jobs += entry.registration.load.get();
            runner.version = entry.registration.version.clone().or(runner.version.take());
        }
        let catalogue = self.cx.catalogue.current();
        for session in catalogue.sessions().filter(|session| !self.is_own(session)) {
            let runner = runners.entry(session.runner_id).or_default();
            runner.sessions += 1;
            runner.healthy += u32::from(session.state == SessionState::Ready);
            runner.draining += u32::from(session.state == SessionState::Draining);
            runner.version = runner.version.take().or(session.version.clone());
        }
        MessageResult(runners)
    }
}

impl Picker {
    fn opened(&mut self, registration: Registration) {
        let entry = Entry {
            registration,
            healthy: true,
            draining: false,
        };
        self.seen.insert(entry.registration.runner_id);
        self.left.remove(&entry.registration.runner_id);
        self.publish(&entry, Some(entry.state()));
        self.sessions.insert(entry.registration.session_id, entry);
    }

    fn change(&mut self, session_id: SessionId, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.sessions.get_mut(&session_id) {
            change(entry);
        }
        if let Some(entry) = self.sessions.get(&session_id) {
            self.publish(entry, Some(entry.state()));
        }
    }

    /// A session is gone; one that had said that it would go may only be on its way to somewhere else.
    fn closed(&mut self, session_id: SessionId) {
        let Some(entry) = self.sessions.remove(&session_id) else {
            return;
        };
        self.publish(&entry, None);
        if entry.draining {
            self.left_in_order(entry.registration.runner_id);
        }
    }

    fn left_in_order(&mut self, runner: RunnerId) {
        let grace = self.cx.moving_grace;
        self.left.retain(|_, at| at.elapsed() < grace);
        self.left.insert(runner, Instant::now());
    }

    /// Notes which runners went in good order from other gateways, and which came there.
    fn follow(&mut self, catalogue: &Catalogue) {
        let elsewhere = catalogue.sessions().filter(|session| !self.is_own(session));
        let (draining, there): (Vec<_>, Vec<_>) = elsewhere
            .map(|session| (session.id, session.runner_id, session.state))
            .partition(|(_, _, state)| *state == SessionState::Draining);
        let draining = draining.into_iter().map(|(id, runner, _)| (id, runner));
        let before = std::mem::replace(&mut self.draining_elsewhere, draining.collect());
        for (session, runner) in before {
            if !self.draining_elsewhere.contains_key(&session) {
                self.left_in_order(runner);
            }
        }
        for (_, runner, _) in there {
            self.left.remove(&runner);
        }
    }

    fn publish(&self, entry: &Entry, state: Option<SessionState>) {
        self.cx.stands.do_send(entry.stands(state));
    }
}
