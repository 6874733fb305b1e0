//! [`Catalogue`]: what can be queried, by whom, and who serves it, as one immutable snapshot in memory.
//!
//! The hot path looks everything up here and reads nothing from the store. A snapshot is replaced as a
//! whole by the cluster actor; whoever needs to follow changes watches for the next one. It holds no
//! decrypted credential.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::clock::UtcTime;
use crate::domain::tokens;
use crate::ids::{EnvironmentId, KeyId, LensId, OrganisationId, RunnerId, SourceId};
use crate::protocol::{AssignedSource, CredentialsLocation};
use crate::query::lens::Lens as LensDefinition;
use crate::storage::{self, Environment, Key, Organisation, Runner, Source, StoredCredentials};

/// A lens and what its documents mean.
#[derive(Debug)]
pub struct Lens {
    /// As it is stored.
    pub row: storage::Lens,
    /// As it is used.
    pub definition: LensDefinition,
}

/// A snapshot of everything that the hot path needs to know.
#[derive(Debug, Default)]
pub struct Catalogue {
    organisations: HashMap<OrganisationId, Organisation>,
    environments: HashMap<EnvironmentId, Environment>,
    runners: HashMap<RunnerId, Runner>,
    keys: HashMap<KeyId, Key>,
    key_hashes: HashMap<[u8; 32], KeyId>,
    sources: HashMap<SourceId, Source>,
    source_names: HashMap<(EnvironmentId, String), SourceId>,
    lenses: HashMap<LensId, Arc<Lens>>,
    lens_names: HashMap<(EnvironmentId, String), LensId>,
    runners_of: HashMap<SourceId, Vec<RunnerId>>,
    sources_of: HashMap<RunnerId, Vec<SourceId>>,
}

impl Catalogue {
    /// Indexes what was read from the store.
    ///
    /// A lens whose documents cannot be read is left out and logged: it must not take the others with it.
    pub fn new(rows: storage::Catalogue) -> Self {
        let mut catalogue = Self::default();
        for assignment in &rows.assignments {
            catalogue
                .runners_of
                .entry(assignment.source_id)
                .or_default()
                .push(assignment.runner_id);
            catalogue
                .sources_of
                .entry(assignment.runner_id)
                .or_default()
                .push(assignment.source_id);
        }
        catalogue.organisations = rows
            .organisations
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        catalogue.environments = rows
            .environments
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        catalogue.runners = rows.runners.into_iter().map(|row| (row.id, row)).collect();
        for key in rows.keys {
            if let Some(hash) = tokens::hash_from_hex(&key.hash) {
                catalogue.key_hashes.insert(hash, key.id);
            }
            catalogue.keys.insert(key.id, key);
        }
        for source in rows.sources {
            catalogue
                .source_names
                .insert((source.environment_id, source.name.clone()), source.id);
            catalogue.sources.insert(source.id, source);
        }
        for row in rows.lenses {
            catalogue.add_lens(row);
        }
        catalogue
    }

    fn add_lens(&mut self, row: storage::Lens) {
        let definition = json!({
            "name": row.name,
            "source": row.source_id,
            "table": row.target,
            "primaryKey": row.primary_key,
            "fields": row.fields,
            "grants": row.grants,
            "relations": row.relations,
        });
        match LensDefinition::parse(&definition) {
            Ok(definition) => {
                self.lens_names
                    .insert((row.environment_id, row.name.clone()), row.id);
                self.lenses
                    .insert(row.id, Arc::new(Lens { row, definition }));
            }
            Err(error) => {
                log::error!(lens_id:% = row.id, error:% = error; "lens {} cannot be read and is not served", row.id)
            }
        }
    }

    /// The key of that hash (SHA-256), if it was live when the catalogue was read.
    pub fn key_by_hash(&self, hash: &[u8; 32]) -> Option<&Key> {
        self.keys.get(self.key_hashes.get(hash)?)
    }

    /// Whether a key still opens anything.
    pub fn token_is_live(&self, key: KeyId, now: UtcTime) -> bool {
        self.keys.get(&key).is_some_and(|key| key.is_live(now))
    }

    /// One organisation.
    pub fn organisation(&self, id: OrganisationId) -> Option<&Organisation> {
        self.organisations.get(&id)
    }

    /// One environment.
    pub fn environment(&self, id: EnvironmentId) -> Option<&Environment> {
        self.environments.get(&id)
    }

    /// The environments of an organisation, in no order.
    pub fn environments_of(
        &self,
        organisation: OrganisationId,
    ) -> impl Iterator<Item = &Environment> {
        self.environments
            .values()
            .filter(move |environment| environment.organisation_id == organisation)
    }

    /// One runner that is not revoked.
    pub fn runner(&self, id: RunnerId) -> Option<&Runner> {
        self.runners.get(&id)
    }

    /// A runner by its name.
    pub fn runner_named(&self, organisation: OrganisationId, name: &str) -> Option<&Runner> {
        self.runners
            .values()
            .find(|runner| runner.organisation_id == organisation && runner.name == name)
    }

    /// One source.
    pub fn source(&self, id: SourceId) -> Option<&Source> {
        self.sources.get(&id)
    }

    /// A source by its name.
    pub fn source_named(&self, environment: EnvironmentId, name: &str) -> Option<&Source> {
        self.sources
            .get(self.source_names.get(&(environment, name.to_owned()))?)
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

    /// The runners that serve a source.
    pub fn runners_of(&self, source: SourceId) -> &[RunnerId] {
        self.runners_of.get(&source).map_or(&[], Vec::as_slice)
    }

    /// The sources that a runner serves.
    pub fn sources_of(&self, runner: RunnerId) -> &[SourceId] {
        self.sources_of.get(&runner).map_or(&[], Vec::as_slice)
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

/// Reads the newest catalogue, and can watch for the next.
#[derive(Debug, Clone)]
pub struct CatalogueReader(watch::Receiver<Arc<Catalogue>>);

impl CatalogueReader {
    /// The newest catalogue.
    pub fn current(&self) -> Arc<Catalogue> {
        self.0.borrow().clone()
    }

    /// The newest catalogue and every later one; some in between may be left out.
    pub fn changes(&self) -> WatchStream<Arc<Catalogue>> {
        WatchStream::new(self.0.clone())
    }
}

/// Replaces the catalogue; there is one of these.
#[derive(Debug)]
pub struct CatalogueWriter(watch::Sender<Arc<Catalogue>>);

impl CatalogueWriter {
    /// The two ends, with a first catalogue in place.
    pub fn new(first: Catalogue) -> (Self, CatalogueReader) {
        let (writer, reader) = watch::channel(Arc::new(first));
        (Self(writer), CatalogueReader(reader))
    }

    /// Puts a newer catalogue in place.
    pub fn replace(&self, newer: Catalogue) {
        self.0.send_replace(Arc::new(newer));
    }
}
