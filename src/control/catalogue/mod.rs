//! [`Catalogue`]: what can be queried, by whom, and who serves it, as one immutable snapshot in memory.
//!
//! The hot path looks everything up here and reads nothing from the store. A snapshot is replaced as a
//! whole by the cluster actor; whoever needs to follow changes watches for the next one. It holds no
//! decrypted credential. What belongs to something that is gone is not found here.

mod rows;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::WatchStream;

pub use self::rows::KnownSession;
use self::rows::Rows;
use crate::clock::UtcTime;
use crate::domain::tokens;
use crate::ids::{EnvironmentId, GatewayId, KeyId, LensId, OrganisationId, RunnerId, SourceId};
use crate::protocol::{AssignedSource, CredentialsLocation};
use crate::query::lens::Lens as LensDefinition;
use crate::storage::{
    self, Changes, Environment, Key, Organisation, Runner, Source, StoredCredentials,
};

/// A lens and what its documents mean.
#[derive(Debug)]
pub struct Lens {
    /// As it is stored.
    pub row: Arc<storage::Lens>,
    /// As it is used.
    pub definition: LensDefinition,
}

/// A snapshot of everything that the hot path needs to know.
#[derive(Debug, Default)]
pub struct Catalogue {
    rows: Rows,
    key_hashes: HashMap<[u8; 32], KeyId>,
    source_names: HashMap<(EnvironmentId, String), SourceId>,
    lenses: HashMap<LensId, Arc<Lens>>,
    lens_names: HashMap<(EnvironmentId, String), LensId>,
    runners_of: HashMap<SourceId, Vec<RunnerId>>,
    sources_of: HashMap<RunnerId, Vec<SourceId>>,
    sessions_of: HashMap<RunnerId, Vec<Arc<KnownSession>>>,
}

impl Catalogue {
    /// Indexes everything that was read from the store.
    ///
    /// A lens whose documents cannot be read is left out and logged: it must not take the others with it.
    pub fn new(all: storage::Catalogue) -> Self {
        Self::default().renewed(all)
    }

    /// The same after everything was read again; what has not changed is not worked out again.
    pub fn renewed(&self, all: storage::Catalogue) -> Self {
        Self::index(Rows::new(all), &self.lenses)
    }

    /// The same after these changes; `None` if they change nothing.
    pub fn with(&self, changes: Changes) -> Option<Self> {
        let mut rows = self.rows.clone();
        rows.apply(changes).then(|| Self::index(rows, &self.lenses))
    }

    fn index(rows: Rows, known_lenses: &HashMap<LensId, Arc<Lens>>) -> Self {
        let mut catalogue = Self {
            rows,
            ..Self::default()
        };
        catalogue.index_assignments();
        catalogue.index_keys();
        catalogue.index_sources(known_lenses);
        catalogue.index_sessions();
        catalogue
    }

    fn index_assignments(&mut self) {
        let rows = &self.rows;
        for (runner, source) in rows.assignments.keys() {
            if rows.runners.contains_key(runner) && rows.sources.contains_key(source) {
                self.runners_of.entry(*source).or_default().push(*runner);
                self.sources_of.entry(*runner).or_default().push(*source);
            }
        }
        // The table has no order of its own, and two catalogues of the same rows are to be the same.
        self.runners_of.values_mut().for_each(|ids| ids.sort());
        self.sources_of.values_mut().for_each(|ids| ids.sort());
    }

    fn index_keys(&mut self) {
        for key in self.rows.keys.values() {
            if let Some(hash) = tokens::hash_from_hex(&key.hash)
                && self.opens_something(key)
            {
                self.key_hashes.insert(hash, key.id);
            }
        }
    }

    /// Whether what a key opens is there.
    fn opens_something(&self, key: &Key) -> bool {
        let rows = &self.rows;
        rows.organisations.contains_key(&key.organisation_id)
            && key
                .environment_id
                .is_none_or(|id| rows.environments.contains_key(&id))
            && key
                .runner_id
                .is_none_or(|id| rows.runners.contains_key(&id))
    }

    fn index_sources(&mut self, known_lenses: &HashMap<LensId, Arc<Lens>>) {
        for source in self.rows.sources.values() {
            self.source_names
                .insert((source.environment_id, source.name.clone()), source.id);
        }
        for row in self.rows.lenses.values() {
            let known = known_lenses.get(&row.id).filter(|known| known.row == *row);
            let Some(lens) = known.cloned().or_else(|| read_lens(row)) else {
                continue;
            };
            self.lens_names
                .insert((row.environment_id, row.name.clone()), row.id);
            self.lenses.insert(row.id, lens);
        }
    }

    fn index_sessions(&mut self) {
        let rows = &self.rows;
        for session in rows.sessions.values() {
            if rows.gateways.contains_key(&session.gateway_id)
                && rows.runners.contains_key(&session.runner_id)
            {
                self.sessions_of
                    .entry(session.runner_id)
                    .or_default()
                    .push(session.clone());
            }
        }
    }

    /// The key of that hash (SHA-256), if it was live when the catalogue was read.
    pub fn key_by_hash(&self, hash: &[u8; 32]) -> Option<&Key> {
        let id = self.key_hashes.get(hash)?;
        self.rows.keys.get(id).map(Arc::as_ref)
    }

    /// Whether a key still opens anything.
    pub fn token_is_live(&self, key: KeyId, now: UtcTime) -> bool {
        let key = self.rows.keys.get(&key);
        key.is_some_and(|key| key.is_live(now) && self.opens_something(key))
    }

    /// One organisation.
    pub fn organisation(&self, id: OrganisationId) -> Option<&Organisation> {
        self.rows.organisations.get(&id).map(Arc::as_ref)
    }

    /// One environment.
    pub fn environment(&self, id: EnvironmentId) -> Option<&Environment> {
        self.rows.environments.get(&id).map(Arc::as_ref)
    }

    /// The environments of an organisation, in no order.
    pub fn environments_of(
        &self,
        organisation: OrganisationId,
    ) -> impl Iterator<Item = &Environment> {
        self.rows
            .environments
            .values()
            .map(Arc::as_ref)
            .filter(move |environment| environment.organisation_id == organisation)
    }

    /// One runner, and be it revoked: that one is still shown, and opens no session.
    pub fn runner(&self, id: RunnerId) -> Option<&Runner> {
        self.rows.runners.get(&id).map(Arc::as_ref)
    }

    /// A runner by its name.
    pub fn runner_named(&self, organisation: OrganisationId, name: &str) -> Option<&Runner> {
        self.rows
            .runners
            .values()
            .map(Arc::as_ref)
            .find(|runner| runner.organisation_id == organisation && runner.name == name)
    }

    /// One source.
    pub fn source(&self, id: SourceId) -> Option<&Source> {
        self.rows.sources.get(&id).map(Arc::as_ref)
    }

    /// A source by its name.
    pub fn source_named(&self, environment: EnvironmentId, name: &str) -> Option<&Source> {
        self.source(*self.source_names.get(&(environment, name.to_owned()))?)
    }

    /// A lens by its name.
    pub fn lens_named(&self, environment: EnvironmentId, name: &str) -> Option<&Arc<Lens>> {
        self.lenses
            .get(self.lens_names.get(&(environment, name.to_owned()))?)
    }

    /// The names of an environment's lenses, to suggest one.
    pub fn lens_names(&self, environment: EnvironmentId) -> impl Iterator<Item = &str> {
        self.lens_names
            .keys()
            .filter(move |(of, _)| *of == environment)
            .map(|(_, name)| name.as_str())
    }

    /// The runners that a source is assigned to. Revoked ones count: a source whose only runner was revoked is
    /// answered by nobody, and is not one that the gateway itself may query.
    pub fn runners_of(&self, source: SourceId) -> &[RunnerId] {
        self.runners_of.get(&source).map_or(&[], Vec::as_slice)
    }

    /// The sources that a runner serves.
    pub fn sources_of(&self, runner: RunnerId) -> &[SourceId] {
        self.sources_of.get(&runner).map_or(&[], Vec::as_slice)
    }

    /// The sessions of a runner on all gateways that are up, as they were written down.
    pub fn sessions_of(&self, runner: RunnerId) -> &[Arc<KnownSession>] {
        self.sessions_of.get(&runner).map_or(&[], Vec::as_slice)
    }

    /// The sessions of the whole cluster.
    pub fn sessions(&self) -> impl Iterator<Item = &KnownSession> {
        self.sessions_of.values().flatten().map(Arc::as_ref)
    }

    /// The gateways that are up, or were not yet declared lost, and where each one's internal listener is.
    pub fn gateways(&self) -> impl Iterator<Item = (GatewayId, Option<&str>)> {
        let gateways = self.rows.gateways.iter();
        gateways.map(|(id, url)| (*id, url.as_deref()))
    }

    /// The same as it is told to the runner, in a fixed order.
    pub fn assigned_to(&self, runner: RunnerId) -> Vec<AssignedSource> {
        let mut assigned: Vec<_> = self
            .sources_of(runner)
            .iter()
            .filter_map(|id| self.source(*id))
            .map(|source| AssignedSource {
                id: source.id,
                name: source.name.clone(),
                bridge: crate::bridge::package_name(&source.bridge),
                credentials_location: location(source),
            })
            .collect();
        assigned.sort_by_key(|source| source.id);
        assigned
    }
}

/// Where a source's credentials are, in the protocol's words.
pub fn location(source: &Source) -> CredentialsLocation {
    match source.credentials_location {
        StoredCredentials::Managed => CredentialsLocation::Managed,
        StoredCredentials::RunnerLocal => CredentialsLocation::RunnerLocal,
    }
}

fn read_lens(row: &Arc<storage::Lens>) -> Option<Arc<Lens>> {
    let definition = json!({
        "name": row.name,
        "source": row.source_id,
        "table": row.target,
        "primaryKey": row.primary_key,
        "fields": row.fields,
        "grants": row.grants,
        "relations": row.relations,
        "onRunnerFailure": row.on_runner_failure,
    });
    match LensDefinition::parse(&definition) {
        Ok(definition) => Some(Arc::new(Lens {
            row: row.clone(),
            definition,
        })),
        Err(error) => {
            log::error!(lens_id:% = row.id, error:% = error; "lens {} cannot be read and is not served", row.id);
            None
        }
    }
}

/// Reads the newest catalogue, and can watch for the next.
#[derive(Debug, Clone)]
pub struct CatalogueReader {
    catalogue: watch::Receiver<Arc<Catalogue>>,
    read_at: watch::Receiver<Instant>,
}

impl CatalogueReader {
    /// The newest catalogue.
    pub fn current(&self) -> Arc<Catalogue> {
        self.catalogue.borrow().clone()
    }

    /// The newest catalogue and every later one; some in between may be left out.
    pub fn changes(&self) -> WatchStream<Arc<Catalogue>> {
        WatchStream::new(self.catalogue.clone())
    }

    /// How long ago the catalogue agreed with the store.
    pub fn age(&self) -> Duration {
        self.read_at.borrow().elapsed()
    }
}

/// Replaces the catalogue; there is one of these.
#[derive(Debug)]
pub struct CatalogueWriter {
    catalogue: watch::Sender<Arc<Catalogue>>,
    read_at: watch::Sender<Instant>,
}

impl CatalogueWriter {
    /// The two ends, with a first catalogue in place.
    pub fn new(first: Catalogue) -> (Self, CatalogueReader) {
        let (catalogue, newest) = watch::channel(Arc::new(first));
        let (read_at, read) = watch::channel(Instant::now());
        (
            Self { catalogue, read_at },
            CatalogueReader {
                catalogue: newest,
                read_at: read,
            },
        )
    }

    /// The catalogue that is in place.
    pub fn current(&self) -> Arc<Catalogue> {
        self.catalogue.borrow().clone()
    }

    /// Puts a newer catalogue in place.
    pub fn replace(&self, newer: Catalogue) {
        self.catalogue.send_replace(Arc::new(newer));
    }

    /// Notes that a read which began then found everything that there is in the catalogue.
    pub fn read_began(&self, at: Instant) {
        self.read_at.send_replace(at);
    }
}
