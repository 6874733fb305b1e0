//! Sources: the databases of an environment. Their credentials arrive here sealed and are never looked into.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::Violation;
use super::organisation::found;
use super::schema::sources;
use super::tombstone::{TombstoneKind, bury};
use super::types::StoredCredentials;
use super::{Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, SourceId};

/// A database that can be queried.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = sources)]
pub struct Source {
    pub id: SourceId,
    pub environment_id: EnvironmentId,
    /// Unique in its environment.
    pub name: String,
    pub bridge: String,
    pub credentials_location: StoredCredentials,
    /// Its configuration, sealed; none where the runner has it.
    pub config_sealed: Option<String>,
    /// The deadline of its jobs, unless they name one.
    pub timeout_ms: Option<i64>,
    pub created_at: UtcTime,
    pub changed_at: UtcTime,
}

/// A source to add.
#[derive(Debug, Clone)]
pub struct NewSource {
    pub id: SourceId,
    pub name: String,
    pub bridge: String,
    pub credentials_location: StoredCredentials,
    pub config_sealed: Option<String>,
    pub timeout_ms: Option<i64>,
}

/// What to change about a source; what is `None` stays, `Some(None)` clears.
#[derive(Debug, Clone, Default)]
pub struct SourceChange {
    pub name: Option<String>,
    pub bridge: Option<String>,
    pub credentials_location: Option<StoredCredentials>,
    pub config_sealed: Option<Option<String>>,
    pub timeout_ms: Option<Option<i64>>,
}

#[derive(AsChangeset)]
#[diesel(table_name = sources)]
struct SourceColumns {
    name: Option<String>,
    bridge: Option<String>,
    credentials_location: Option<StoredCredentials>,
    config_sealed: Option<Option<String>>,
    timeout_ms: Option<Option<i64>>,
    changed_at: UtcTime,
}

const NAME_TAKEN: &str = "a source of this name exists already";

/// The source, if it belongs to the environment.
macro_rules! own {
    ($environment:expr, $id:expr) => {
        sources::table
            .find($id)
            .filter(sources::environment_id.eq($environment))
    };
}

impl Store {
    /// Adds a source to an environment.
    pub async fn source_create(
        &self,
        environment: EnvironmentId,
        new: NewSource,
        now: UtcTime,
    ) -> Result<Source, StoreError> {
        unit!(self, Change, connection => {
            diesel::insert_into(sources::table)
                .values((
                    sources::id.eq(new.id),
                    sources::environment_id.eq(environment),
                    sources::name.eq(new.name),
                    sources::bridge.eq(new.bridge),
                    sources::credentials_location.eq(new.credentials_location),
                    sources::config_sealed.eq(new.config_sealed),
                    sources::timeout_ms.eq(new.timeout_ms),
                    sources::created_at.eq(now),
                    sources::changed_at.eq(now),
                ))
                .returning(Source::as_returning())
                .get_result(connection)
                .await
                .if_taken(NAME_TAKEN)
        })
    }

    /// One source of an environment.
    pub async fn source_get(
        &self,
        environment: EnvironmentId,
        id: SourceId,
    ) -> Result<Source, StoreError> {
        unit!(self, Read, connection => {
            Ok(own!(environment, id).select(Source::as_select()).first(connection).await?)
        })
    }

    /// The sources of an environment, oldest first.
    pub async fn source_list(
        &self,
        environment: EnvironmentId,
        page: Page<SourceId>,
    ) -> Result<Vec<Source>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = sources::table
                .filter(sources::environment_id.eq(environment))
                .select(Source::as_select())
                .into_boxed();
            if let Some(after) = page.after {
                found = found.filter(sources::id.gt(after));
            }
            Ok(found.order(sources::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Changes a source.
    pub async fn source_update(
        &self,
        environment: EnvironmentId,
        id: SourceId,
        change: SourceChange,
        now: UtcTime,
    ) -> Result<Source, StoreError> {
        let SourceChange {
            name,
            bridge,
            credentials_location,
            config_sealed,
            timeout_ms,
        } = change;
        let columns = SourceColumns {
            name,
            bridge,
            credentials_location,
            config_sealed,
            timeout_ms,
            changed_at: now,
        };
        unit!(self, Change, connection => {
            diesel::update(own!(environment, id))
                .set(columns)
                .returning(Source::as_returning())
                .get_result(connection)
                .await
                .if_taken(NAME_TAKEN)
        })
    }

    /// Removes a source without lenses, and its assignments.
    pub async fn source_delete(
        &self,
        environment: EnvironmentId,
        id: SourceId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            let deleted = diesel::delete(own!(environment, id)).execute(connection).await;
            found(deleted.if_bound("the source still has lenses")?)?;
            bury!(connection, TombstoneKind::Source, id, now);
            Ok(())
        })
    }
}
