//! Everything that the hot path needs to know, read at one moment: all of it, or what has changed.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::gateway::Gateway;
use super::group::RunnerGroup;
use super::key::Key;
use super::lens::Lens;
use super::organisation::{Environment, Organisation};
use super::runner::{Assignment, Runner};
use super::schema::{
    environments, gateways, keys, lenses, organisations, runner_assignments, runner_groups,
    runner_sessions, runners, sources, tombstones,
};
use super::session::Session;
use super::source::Source;
use super::tombstone::Tombstone;
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
    pub gateways: Vec<Gateway>,
    pub sessions: Vec<Session>,
}

/// What is different from what was read earlier.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// What was added or changed; all gateways, and of keys also those that are not live any more.
    pub changed: Catalogue,
    /// What was deleted by name. What is there all the same is in `changed`, so removals come first.
    pub removed: Vec<Tombstone>,
}

/// Expands to the rows of a table that were written after a time.
macro_rules! since {
    ($connection:expr, $table:ident :: $column:ident > $since:expr, $row:ty) => {
        $table::table
            .filter($table::$column.gt($since))
            .select(<$row>::as_select())
            .load($connection)
            .await?
    };
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
                gateways: gateways::table.select(Gateway::as_select()).load(connection).await?,
                sessions: runner_sessions::table.select(Session::as_select()).load(connection).await?,
            })
        })
    }

    /// Reads what was written after `since`, as it stood at one moment.
    ///
    /// Times are written before they are committed, and by several machines, so `since` lies before the
    /// last reading by more than a unit of work can take and clocks can differ. What goes along with
    /// something that was deleted is not listed: a row whose parent is missing is gone.
    pub async fn catalogue_changes(&self, since: UtcTime) -> Result<Changes, StoreError> {
        unit!(self, Snapshot, connection => {
            let changed = Catalogue {
                organisations: since!(connection, organisations::changed_at > since, Organisation),
                environments: since!(connection, environments::changed_at > since, Environment),
                groups: since!(connection, runner_groups::changed_at > since, RunnerGroup),
                runners: since!(connection, runners::changed_at > since, Runner),
                keys: since!(connection, keys::changed_at > since, Key),
                sources: since!(connection, sources::changed_at > since, Source),
                lenses: since!(connection, lenses::changed_at > since, Lens),
                assignments: since!(connection, runner_assignments::created_at > since, Assignment),
                gateways: gateways::table.select(Gateway::as_select()).load(connection).await?,
                sessions: since!(connection, runner_sessions::changed_at > since, Session),
            };
            let removed = since!(connection, tombstones::deleted_at > since, Tombstone);
            Ok(Changes { changed, removed })
        })
    }
}
