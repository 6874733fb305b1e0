//! The rows behind a catalogue, by id, and how a pass over what has changed is applied to them. Pure.
//!
//! What was deleted along with something else (a runner's keys, a gateway's sessions) is not told: such rows
//! may stay here until everything is read again, and whoever indexes them leaves them out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::clock::UtcTime;
use crate::ids::{
    EnvironmentId, GatewayId, InstanceId, KeyId, LensId, OrganisationId, RunnerId, SessionId,
    SourceId,
};
use crate::storage::{
    self, Assignment, Changes, Environment, Key, Lens, Organisation, Runner, Session, SessionState,
    Source, Tombstone, TombstoneKind,
};

/// A session somewhere in the cluster, as its gateway has written it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSession {
    /// The session.
    pub id: SessionId,
    /// Its runner.
    pub runner_id: RunnerId,
    /// Who holds its socket.
    pub gateway_id: GatewayId,
    /// Its runner's process, if it tells.
    pub instance_id: Option<InstanceId>,
    /// Short names of its bridges.
    pub bridges: Vec<String>,
    /// How many jobs its process takes at once.
    pub capacity: u32,
    /// What the runner says its version is.
    pub version: Option<String>,
    /// Whether it can be given jobs.
    pub state: SessionState,
    /// When it was opened.
    pub connected_at: UtcTime,
    changed_at: UtcTime,
}

impl From<Session> for KnownSession {
    fn from(row: Session) -> Self {
        let bridges = row.capabilities.as_array().into_iter().flatten();
        Self {
            id: row.id,
            runner_id: row.runner_id,
            gateway_id: row.gateway_id,
            instance_id: row.instance_id,
            bridges: bridges
                .filter_map(|name| name.as_str())
                .map(|name| crate::bridge::short_name(name).to_owned())
                .collect(),
            capacity: row.max_jobs.unsigned_abs(),
            version: row.version,
            state: row.state,
            connected_at: row.connected_at,
            changed_at: row.changed_at,
        }
    }
}

type Table<Id, Row> = HashMap<Id, Arc<Row>>;

/// Everything that was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    pub(super) organisations: Table<OrganisationId, Organisation>,
    pub(super) environments: Table<EnvironmentId, Environment>,
    pub(super) runners: Table<RunnerId, Runner>,
    pub(super) keys: Table<KeyId, Key>,
    pub(super) sources: Table<SourceId, Source>,
    pub(super) lenses: Table<LensId, Lens>,
    pub(super) assignments: HashMap<(RunnerId, SourceId), Assignment>,
    pub(super) sessions: Table<SessionId, KnownSession>,
    /// Where each gateway's internal listener is.
    pub(super) gateways: HashMap<GatewayId, Option<String>>,
}

impl Rows {
    /// All of them, read at one moment.
    pub(super) fn new(all: storage::Catalogue) -> Self {
        let mut rows = Self::default();
        rows.add(all);
        rows
    }

    /// Applies what was read since; answers whether that makes a difference.
    pub(super) fn apply(&mut self, changes: Changes) -> bool {
        // What was deleted and is there all the same was added again.
        let removed = changes
            .removed
            .iter()
            .filter(|tombstone| self.remove(tombstone))
            .count();
        self.add(changes.changed) || removed > 0
    }

    fn add(&mut self, all: storage::Catalogue) -> bool {
        let mut changed = false;
        for row in all.organisations {
            changed |= put(&mut self.organisations, row.id, row, PartialEq::eq);
        }
        for row in all.environments {
            changed |= put(&mut self.environments, row.id, row, PartialEq::eq);
        }
        // When a runner or a session was last heard of is no news.
        for row in all.runners {
            changed |= put(&mut self.runners, row.id, row, |a, b| {
                a.changed_at == b.changed_at
            });
        }
        for row in all.sessions {
            changed |= put(&mut self.sessions, row.id, row.into(), |a, b| {
                a.changed_at == b.changed_at
            });
        }
        for row in all.keys {
            if row.revoked_at.is_some() {
                changed |= self.keys.remove(&row.id).is_some();
            } else {
                changed |= put(&mut self.keys, row.id, row, PartialEq::eq);
            }
        }
        for row in all.sources {
            changed |= put(&mut self.sources, row.id, row, PartialEq::eq);
        }
        for row in all.lenses {
            changed |= put(&mut self.lenses, row.id, row, PartialEq::eq);
        }
        for row in all.assignments {
            let id = (row.runner_id, row.source_id);
            changed |= self.assignments.insert(id, row).is_none();
        }
        // Always complete, and renewals are no news.
        let gateways = all
            .gateways
            .into_iter()
            .map(|row| (row.id, row.internal_url))
            .collect();
        changed |= self.gateways != gateways;
        self.gateways = gateways;
        changed
    }

    fn remove(&mut self, Tombstone { kind, id, .. }: &Tombstone) -> bool {
        match kind {
            TombstoneKind::Organisation => take(&mut self.organisations, id),
            TombstoneKind::Environment => take(&mut self.environments, id),
            TombstoneKind::Runner => take(&mut self.runners, id),
            TombstoneKind::Source => take(&mut self.sources, id),
            TombstoneKind::Lens => take(&mut self.lenses, id),
            TombstoneKind::Session => take(&mut self.sessions, id),
            TombstoneKind::Assignment => id
                .split_once('/')
                .and_then(|(runner, source)| Some((runner.parse().ok()?, source.parse().ok()?)))
                .is_some_and(|id| self.assignments.remove(&id).is_some()),
            TombstoneKind::Group => false,
        }
    }
}

fn put<Id: Eq + Hash, Row>(
    table: &mut Table<Id, Row>,
    id: Id,
    row: Row,
    same: impl FnOnce(&Row, &Row) -> bool,
) -> bool {
    if table.get(&id).is_some_and(|known| same(known, &row)) {
        return false;
    }
    table.insert(id, Arc::new(row));
    true
}

fn take<Id: Eq + Hash + std::str::FromStr, Row>(table: &mut Table<Id, Row>, id: &str) -> bool {
    id.parse().is_ok_and(|id: Id| table.remove(&id).is_some())
}
