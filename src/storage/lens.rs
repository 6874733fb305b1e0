//! Lenses: named, typed views of one table of a source. What their documents mean is said elsewhere.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::error::Violation;
use super::organisation::found;
use super::schema::{lenses, sources};
use super::tombstone::{TombstoneKind, bury};
use super::{Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, LensId, SourceId};

/// A named, typed view of one table of a source.
#[derive(Debug, Clone, PartialEq, Queryable, Selectable)]
#[diesel(table_name = lenses)]
pub struct Lens {
    pub id: LensId,
    pub environment_id: EnvironmentId,
    /// Unique in its environment.
    pub name: String,
    pub source_id: SourceId,
    /// The table, in the source's own words.
    pub target: String,
    pub primary_key: Value,
    pub fields: Value,
    pub grants: Value,
    pub relations: Value,
    /// What happens to a query whose runner is lost, in the words of the definition.
    pub on_runner_failure: String,
    pub created_at: UtcTime,
    pub changed_at: UtcTime,
}

/// A lens to add.
#[derive(Debug, Clone)]
pub struct NewLens {
    pub id: LensId,
    pub name: String,
    pub source_id: SourceId,
    pub target: String,
    pub primary_key: Value,
    pub fields: Value,
    pub grants: Value,
    pub relations: Value,
    pub on_runner_failure: String,
}

/// What to change about a lens; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct LensChange {
    pub name: Option<String>,
    pub source_id: Option<SourceId>,
    pub target: Option<String>,
    pub primary_key: Option<Value>,
    pub fields: Option<Value>,
    pub grants: Option<Value>,
    pub relations: Option<Value>,
    pub on_runner_failure: Option<String>,
}

#[derive(AsChangeset)]
#[diesel(table_name = lenses)]
struct LensColumns {
    name: Option<String>,
    source_id: Option<SourceId>,
    target: Option<String>,
    primary_key: Option<Value>,
    fields: Option<Value>,
    grants: Option<Value>,
    relations: Option<Value>,
    on_runner_failure: Option<String>,
    changed_at: UtcTime,
}

const NAME_TAKEN: &str = "a lens of this name exists already";

/// The lens, if it belongs to the environment.
macro_rules! own {
    ($environment:expr, $id:expr) => {
        lenses::table
            .find($id)
            .filter(lenses::environment_id.eq($environment))
    };
}

/// Fails unless the source belongs to the environment.
macro_rules! check_source {
    ($connection:expr, $environment:expr, $source:expr) => {
        sources::table
            .find($source)
            .filter(sources::environment_id.eq($environment))
            .select(sources::id)
            .first::<SourceId>($connection)
            .await?;
    };
}

impl Store {
    /// Adds a lens to an environment.
    pub async fn lens_create(
        &self,
        environment: EnvironmentId,
        new: NewLens,
        now: UtcTime,
    ) -> Result<Lens, StoreError> {
        unit!(self, Change, connection => {
            check_source!(connection, environment, new.source_id);
            diesel::insert_into(lenses::table)
                .values((
                    lenses::id.eq(new.id),
                    lenses::environment_id.eq(environment),
                    lenses::name.eq(new.name),
                    lenses::source_id.eq(new.source_id),
                    lenses::target.eq(new.target),
                    lenses::primary_key.eq(new.primary_key),
                    lenses::fields.eq(new.fields),
                    lenses::grants.eq(new.grants),
                    lenses::relations.eq(new.relations),
                    lenses::on_runner_failure.eq(new.on_runner_failure),
                    lenses::created_at.eq(now),
                    lenses::changed_at.eq(now),
                ))
                .returning(Lens::as_returning())
                .get_result(connection)
                .await
                .if_taken(NAME_TAKEN)
        })
    }

    /// One lens of an environment.
    pub async fn lens_get(
        &self,
        environment: EnvironmentId,
        id: LensId,
    ) -> Result<Lens, StoreError> {
        unit!(self, Read, connection => {
            Ok(own!(environment, id).select(Lens::as_select()).first(connection).await?)
        })
    }

    /// The lenses of an environment, oldest first.
    pub async fn lens_list(
        &self,
        environment: EnvironmentId,
        page: Page<LensId>,
    ) -> Result<Vec<Lens>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = lenses::table
                .filter(lenses::environment_id.eq(environment))
                .select(Lens::as_select())
                .into_boxed();
            if let Some(after) = page.after {
                found = found.filter(lenses::id.gt(after));
            }
            Ok(found.order(lenses::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Changes a lens.
    pub async fn lens_update(
        &self,
        environment: EnvironmentId,
        id: LensId,
        change: LensChange,
        now: UtcTime,
    ) -> Result<Lens, StoreError> {
        let LensChange {
            name,
            source_id,
            target,
            primary_key,
            fields,
            grants,
            relations,
            on_runner_failure,
        } = change;
        let columns = LensColumns {
            name,
            source_id,
            target,
            primary_key,
            fields,
            grants,
            relations,
            on_runner_failure,
            changed_at: now,
        };
        unit!(self, Change, connection => {
            if let Some(source) = columns.source_id {
                check_source!(connection, environment, source);
            }
            diesel::update(own!(environment, id))
                .set(columns)
                .returning(Lens::as_returning())
                .get_result(connection)
                .await
                .if_taken(NAME_TAKEN)
        })
    }

    /// Removes a lens.
    pub async fn lens_delete(
        &self,
        environment: EnvironmentId,
        id: LensId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            found(diesel::delete(own!(environment, id)).execute(connection).await?)?;
            bury!(connection, TombstoneKind::Lens, id, now);
            Ok(())
        })
    }
}
