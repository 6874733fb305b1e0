//! `Picker`: owns the table of sessions that jobs can go to, and hands each job to one of them.
//!
//! Who is eligible, and why nobody is, is decided in `domain::picking`. The picker knows neither jobs in
//! flight nor the store; a session that has no room says so itself.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use actix::prelude::*;

use super::catalogue::CatalogueReader;
use super::job::Job;
use super::session::{CancelExecution, Execute, LoadGauge};
use super::vital::Vital;
use crate::domain::picking::{self, Candidate, CandidateSession, JobNeeds};
use crate::ids::{InstanceId, RunnerId, SessionId};
use crate::storage::Runner;

/// A session as the picker knows it.
#[derive(Clone)]
pub struct Registration {
    /// The session.
    pub session_id: SessionId,
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
    /// There is nobody.
    Offline {
        /// Never seen, offline, drained, lacks the bridge, …
        reason: String,
    },
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
            bridges: &self.registration.capabilities,
            active: self.registration.load.get(),
            capacity: self.registration.capacity,
        }
    }
}

/// The actor.
pub struct Picker {
    sessions: HashMap<SessionId, Entry>,
    /// Runners that connected since this gateway started; the catalogue learns of it only later.
    seen: HashSet<RunnerId>,
    catalogue: CatalogueReader,
    _vital: Vital,
}

impl Picker {
    /// A picker that knows nobody.
    pub fn new(catalogue: CatalogueReader, vital: Vital) -> Self {
        Self {
            sessions: HashMap::new(),
            seen: HashSet::new(),
            catalogue,
            _vital: vital,
        }
    }
}

impl Actor for Picker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Handler<SessionChanged> for Picker {
    type Result = ();

    fn handle(&mut self, changed: SessionChanged, _: &mut Self::Context) {
        match changed {
            SessionChanged::Opened(registration) => {
                let entry = Entry {
                    registration: *registration,
                    healthy: true,
                    draining: false,
                };
                self.seen.insert(entry.registration.runner_id);
                self.sessions.insert(entry.registration.session_id, entry);
            }
            SessionChanged::Health {
                session_id,
                healthy,
            } => {
                self.sessions
                    .entry(session_id)
                    .and_modify(|entry| entry.healthy = healthy);
            }
            SessionChanged::Draining { session_id } => {
                self.sessions
                    .entry(session_id)
                    .and_modify(|entry| entry.draining = true);
            }
            SessionChanged::Closed { session_id } => {
                self.sessions.remove(&session_id);
            }
        }
    }
}

impl Handler<Place> for Picker {
    type Result = Result<Placement, Unplaceable>;

    fn handle(&mut self, place: Place, _: &mut Self::Context) -> Self::Result {
        self.place(place)
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
        MessageResult(runners)
    }
}

impl Picker {
    /// Chooses a session, or says why there is none.
    fn choose(&mut self, job: &Job, declined: &[SessionId]) -> Result<SessionId, Unplaceable> {
        let catalogue = self.catalogue.current();
        let source = catalogue.source(job.spec.source_id);
        let needs = JobNeeds {
            bridge: source.map_or("", |source| source.bridge.as_str()),
            declined,
        };
        let assigned = catalogue.runners_of(job.spec.source_id).iter().copied();
        let candidates: Vec<_> = assigned
            .filter(|runner| job.spec.only_runner.is_none_or(|only| only == *runner))
            .filter_map(|runner| catalogue.runner(runner))
            .map(|runner| self.candidate(runner))
            .collect();
        picking::choose(&needs, &candidates, &mut rand::rng()).map_err(|nobody| {
            if nobody.is_busy() {
                Unplaceable::Busy
            } else {
                Unplaceable::Offline {
                    reason: nobody.to_string(),
                }
            }
        })
    }

    fn candidate(&self, runner: &Runner) -> Candidate<'_> {
        let sessions = self
            .sessions
            .values()
            .filter(|entry| entry.registration.runner_id == runner.id);
        Candidate {
            runner: runner.id,
            ever_seen: runner.last_seen_at.is_some() || self.seen.contains(&runner.id),
            drained: runner.drained_at.is_some(),
            sessions: sessions.map(Entry::candidate).collect(),
        }
    }

    /// Chooses among the sessions of the source's runners until one has room in its mailbox.
    fn place(
        &mut self,
        Place {
            job,
            attempt,
            mut declined,
        }: Place,
    ) -> Result<Placement, Unplaceable> {
        loop {
            let session_id = self.choose(&job, &declined)?;
            let Some(entry) = self.sessions.get(&session_id) else {
                return Err(Unplaceable::Busy);
            };
            let Registration {
                execute, cancel, ..
            } = &entry.registration;
            let offer = Execute {
                job: job.clone(),
                attempt,
                session_id: Some(session_id),
            };
            match execute.try_send(offer) {
                Ok(()) => {
                    return Ok(Placement {
                        session_id,
                        cancel: cancel.clone(),
                    });
                }
                Err(SendError::Full(_)) => {}
                // It died without a word.
                Err(SendError::Closed(_)) => {
                    self.sessions.remove(&session_id);
                }
            }
            declined.push(session_id);
        }
    }
}
