//! Everything that the hot path needs to know, read at one moment.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::group::RunnerGroup;
use super::key::Key;
use super::lens::Lens;
use super::organisation::{Environment, Organisation};
use super::runner::{Assignment, Runner};
use super::schema::{
    environments, keys, lenses, organisations, runner_assignments, runner_groups, runners, sources,
};
use super::source::Source;
use super::{Store, StoreError, unit};
use crate::clock::UtcTime;

/// What can be queried, by whom, and who serves it, of all tenants.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    pub organisations: Vec<Organisation>,
    pub environments: Vec<Environment>,
    pub groups: Vec<RunnerGroup>,
    pub runners: Vec<Runner>,
    /// Those that are neither revoked nor expired.
    pub keys: Vec<Key>,
    pub sources: Vec<Source>,
    pub lenses: Vec<Lens>,
    pub assignments: Vec<Assignment>,
}

impl Store {
    /// Reads the whole catalogue as it was at one moment.
    pub async fn catalogue_load(&self, now: UtcTime) -> Result<Catalogue, StoreError> {
        unit!(self, Snapshot, connection => {
            Ok(Catalogue {
                organisations: organisations::table.select(Organisation::as_select()).load(connection).await?,
                environments: environments::table.select(Environment::as_select()).load(connection).await?,
                groups: runner_groups::table.select(RunnerGroup::as_select()).load(connection).await?,
                runners: runners::table.select(Runner::as_select()).load(connection).await?,
                keys: keys::table
                    .filter(keys::revoked_at.is_null())
                    .filter(keys::expires_at.is_null().or(keys::expires_at.gt(now)))
                    .select(Key::as_select())
                    .load(connection)
                    .await?,
                sources: sources::table.select(Source::as_select()).load(connection).await?,
                lenses: lenses::table.select(Lens::as_select()).load(connection).await?,
                assignments: runner_assignments::table.select(Assignment::as_select()).load(connection).await?,
            })
        })
    }
}
