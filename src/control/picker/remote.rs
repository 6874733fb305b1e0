//! What the picker knows of the other gateways: how each is reached, and what they said lately of sessions that
//! the catalogue still lists. A plain table; times are passed in.

use std::collections::HashMap;
use std::time::Duration;

use actix::Recipient;
use tokio::time::Instant;

use super::PeerSaid;
use crate::control::catalogue::KnownSession;
use crate::control::dispatcher::Return;
use crate::control::session::{CancelExecution, Execute};
use crate::domain::picking::CandidateSession;
use crate::ids::{GatewayId, SessionId};
use crate::storage::SessionState;

/// How long what a peer said counts against what is written down. It writes down what has changed, and that is
/// read within a second; what it does not write down was of the moment.
const SAID_FOR: Duration = Duration::from_secs(2);

/// The way to one peer.
pub(super) struct Way {
    /// How to hand it a job.
    pub(super) execute: Recipient<Execute>,
    /// How to take one back.
    pub(super) cancel: Recipient<CancelExecution>,
}

/// The other gateways.
#[derive(Default)]
pub(super) struct Remote {
    ways: HashMap<GatewayId, Way>,
    silent: HashMap<GatewayId, Instant>,
    said: HashMap<SessionId, (Return, Instant)>,
}

impl Remote {
    pub(super) fn up(&mut self, gateway: GatewayId, way: Way) {
        self.ways.insert(gateway, way);
        self.silent.remove(&gateway);
    }

    pub(super) fn down(&mut self, gateway: GatewayId) {
        self.ways.remove(&gateway);
        self.silent.remove(&gateway);
    }

    /// The way to a peer, if it has one.
    pub(super) fn way(&self, gateway: GatewayId) -> Option<&Way> {
        self.ways.get(&gateway)
    }

    /// Notes what a peer said, or that it did not say anything.
    pub(super) fn note(&mut self, said: PeerSaid, now: Instant) {
        self.said
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < SAID_FOR);
        match said {
            PeerSaid::Silent { gateway_id } => {
                self.silent.insert(gateway_id, now);
            }
            // How busy it is changes with every job, and what it serves is in the catalogue.
            PeerSaid::Declined {
                why: Return::Busy | Return::Unassigned,
                ..
            } => {}
            PeerSaid::Declined { session_id, why } => {
                self.said.insert(session_id, (why, now));
            }
        }
    }

    /// A session of a peer as a candidate.
    pub(super) fn candidate<'a>(
        &self,
        session: &'a KnownSession,
        now: Instant,
    ) -> CandidateSession<'a> {
        let lately = |at: &Instant| now.saturating_duration_since(*at) < SAID_FOR;
        let said = self.said.get(&session.id).filter(|(_, at)| lately(at));
        let said = said.map(|(why, _)| *why);
        CandidateSession {
            session: session.id,
            instance: session.instance_id,
            healthy: session.state != SessionState::Unhealthy
                && !matches!(said, Some(Return::NotHere | Return::Gone)),
            draining: session.state == SessionState::Draining || said == Some(Return::Draining),
            reachable: self.ways.contains_key(&session.gateway_id)
                && !self.silent.get(&session.gateway_id).is_some_and(lately),
            bridges: &session.bridges,
            // Its gateway knows, and says so.
            active: 0,
            capacity: session.capacity,
        }
    }
}
