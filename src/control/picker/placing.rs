//! How the picker finds somebody for one job: the candidates here and elsewhere, the choice, and the way there.

use std::sync::Arc;

use actix::prelude::*;
use tokio::time::Instant;

use super::{Entry, Outlook, Picker, Place, Placement, Registration, Unplaceable};
use crate::control::catalogue::{Catalogue, KnownSession};
use crate::control::dispatcher::Return;
use crate::control::job::Job;
use crate::control::session::{CancelExecution, Execute};
use crate::domain::picking::{self, Candidate, JobNeeds};
use crate::ids::{RunnerId, SessionId, SourceId};
use crate::storage::Runner;

impl Picker {
    /// Whether a session of the catalogue is one of this gateway, whose own table knows better.
    pub(super) fn is_own(&self, session: &KnownSession) -> bool {
        session.gateway_id == self.cx.identity.current() || self.sessions.contains_key(&session.id)
    }

    /// Chooses a session, or says why there is none. A detached job is executed by the gateway that claimed it.
    fn choose(&self, job: &Job, declined: &[SessionId]) -> Result<SessionId, Unplaceable> {
        let catalogue = self.cx.catalogue.current();
        let (source, only) = (job.spec.source_id, job.spec.only_runner);
        let needs = needs(&catalogue, source, declined);
        let candidates = self.candidates(source, only, &catalogue);
        let here_only = job.detached.is_some();
        if here_only || self.cx.prefer_local {
            let local = self.candidates_here(&candidates);
            let chosen = picking::choose(&needs, &local, &mut rand::rng());
            if here_only || chosen.is_ok() {
                return chosen.map_err(Unplaceable::from);
            }
        }
        picking::choose(&needs, &candidates, &mut rand::rng()).map_err(Unplaceable::from)
    }

    /// How things look for jobs of a source.
    pub(super) fn outlook(&self, source: SourceId) -> Outlook {
        let catalogue = self.cx.catalogue.current();
        let candidates = self.candidates(source, None, &catalogue);
        let needs = needs(&catalogue, source, &[]);
        if let Ok(room) = picking::room(&needs, &self.candidates_here(&candidates)) {
            return Outlook::Room(room);
        }
        match picking::room(&needs, &candidates) {
            Ok(_) => Outlook::Elsewhere,
            Err(nobody) => Outlook::Nobody(nobody.into()),
        }
    }

    fn candidates<'a>(
        &'a self,
        source: SourceId,
        only: Option<RunnerId>,
        catalogue: &'a Catalogue,
    ) -> Vec<Candidate<'a>> {
        let assigned = catalogue.runners_of(source).iter().copied();
        assigned
            .filter(|runner| only.is_none_or(|only| only == *runner))
            .filter_map(|runner| catalogue.runner(runner))
            .map(|runner| self.candidate(runner, catalogue))
            .collect()
    }

    fn candidate<'a>(&'a self, runner: &Runner, catalogue: &'a Catalogue) -> Candidate<'a> {
        let now = Instant::now();
        let here = self
            .sessions
            .values()
            .filter(|entry| entry.registration.runner_id == runner.id)
            .map(Entry::candidate);
        let elsewhere = catalogue
            .sessions_of(runner.id)
            .iter()
            .filter(|session| !self.is_own(session))
            .map(|session| self.remote.candidate(session, now));
        let sessions: Vec<_> = here.chain(elsewhere).collect();
        Candidate {
            runner: runner.id,
            ever_seen: runner.last_seen_at.is_some()
                || self.seen.contains(&runner.id)
                || !sessions.is_empty(),
            drained: runner.drained_at.is_some(),
            moving: self
                .left
                .get(&runner.id)
                .is_some_and(|at| at.elapsed() < self.cx.moving_grace),
            sessions,
        }
    }

    /// The same candidates with their sessions on this gateway only.
    fn candidates_here<'a>(&self, candidates: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
        let mut here = candidates.to_vec();
        for candidate in &mut here {
            candidate
                .sessions
                .retain(|session| self.sessions.contains_key(&session.session));
        }
        here
    }

    /// Chooses among the sessions of the source's runners until one has room in its mailbox.
    pub(super) fn place(&mut self, place: Place) -> Result<Placement, Unplaceable> {
        let Place {
            job,
            attempt,
            mut declined,
        } = place;
        if let Some(session_id) = job.only_session {
            return self.place_there(job, attempt, session_id);
        }
        loop {
            let session_id = self.choose(&job, &declined)?;
            let Some((execute, cancel)) = self.way_to(session_id, &job) else {
                return Err(Unplaceable::Busy);
            };
            let offer = Execute {
                job: job.clone(),
                attempt,
                session_id: Some(session_id),
            };
            match execute.try_send(offer) {
                Ok(()) => return Ok(Placement { session_id, cancel }),
                Err(SendError::Full(_)) => {}
                // It died without a word.
                Err(SendError::Closed(_)) => self.closed(session_id),
            }
            declined.push(session_id);
        }
    }

    /// How to hand a job to a session that was chosen, here or at its gateway.
    fn way_to(
        &self,
        session_id: SessionId,
        job: &Job,
    ) -> Option<(Recipient<Execute>, Recipient<CancelExecution>)> {
        if let Some(entry) = self.sessions.get(&session_id) {
            let registration = &entry.registration;
            return Some((registration.execute.clone(), registration.cancel.clone()));
        }
        let catalogue = self.cx.catalogue.current();
        let runners = catalogue.runners_of(job.spec.source_id).iter();
        let known = runners
            .flat_map(|runner| catalogue.sessions_of(*runner))
            .find(|session| session.id == session_id)?;
        let way = self.remote.way(known.gateway_id)?;
        Some((way.execute.clone(), way.cancel.clone()))
    }

    /// Hands a job that another gateway has accepted to the session that it has chosen, and to nobody else.
    fn place_there(
        &mut self,
        job: Arc<Job>,
        attempt: u32,
        session_id: SessionId,
    ) -> Result<Placement, Unplaceable> {
        let declined = |why| Err(Unplaceable::Declined(why));
        let Some(entry) = self.sessions.get(&session_id).filter(|entry| entry.healthy) else {
            return declined(Return::NotHere);
        };
        let Registration {
            runner_id,
            execute,
            cancel,
            ..
        } = entry.registration.clone();
        let catalogue = self.cx.catalogue.current();
        if !catalogue
            .runners_of(job.spec.source_id)
            .contains(&runner_id)
        {
            return declined(Return::Unassigned);
        }
        let runner = catalogue.runner(runner_id);
        if entry.draining || runner.is_none_or(|runner| runner.drained_at.is_some()) {
            return declined(Return::Draining);
        }
        let offer = Execute {
            job,
            attempt,
            session_id: Some(session_id),
        };
        match execute.try_send(offer) {
            Ok(()) => Ok(Placement { session_id, cancel }),
            Err(SendError::Full(_)) => declined(Return::Busy),
            Err(SendError::Closed(_)) => {
                self.closed(session_id);
                declined(Return::NotHere)
            }
        }
    }
}

/// What a job of that source asks of who takes it.
fn needs<'a>(
    catalogue: &'a Catalogue,
    source: SourceId,
    declined: &'a [SessionId],
) -> JobNeeds<'a> {
    JobNeeds {
        bridge: catalogue
            .source(source)
            .map_or("", |source| source.bridge.as_str()),
        declined,
    }
}
