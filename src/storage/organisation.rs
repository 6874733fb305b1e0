//! Organisations and their environments: the tenants that everything else belongs to.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::Violation;
use super::key::{KEY_TAKEN, NewKey};
use super::schema::{environments, keys, organisations};
use super::tombstone::{TombstoneKind, bury};
use super::{Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, OrganisationId};

/// A customer of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = organisations)]
pub struct Organisation {
    pub id: OrganisationId,
    /// Part of its keys.
    pub slug: String,
    pub name: String,
    pub created_at: UtcTime,
}

/// One environment of an organisation.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = environments)]
pub struct Environment {
    pub id: EnvironmentId,
    pub organisation_id: OrganisationId,
    /// Unique in its organisation.
    pub slug: String,
    pub created_at: UtcTime,
}

const ORGANISATION_TAKEN: &str = "an organisation with this slug exists already";
const ENVIRONMENT_TAKEN: &str = "an environment with this slug exists already";

impl Store {
    /// Adds an organisation.
    pub async fn organisation_create(&self, new: Organisation) -> Result<Organisation, StoreError> {
        unit!(self, Change, connection => {
            diesel::insert_into(organisations::table)
                .values((&new, organisations::changed_at.eq(new.created_at)))
                .execute(connection)
                .await
                .if_taken(ORGANISATION_TAKEN)?;
            Ok(new)
        })
    }

    /// Adds an organisation with its first environment and its first key: all of it or nothing.
    pub async fn organisation_found(
        &self,
        new: Organisation,
        environment: Environment,
        key: NewKey,
    ) -> Result<Organisation, StoreError> {
        unit!(self, Change, connection => {
            diesel::insert_into(organisations::table)
                .values((&new, organisations::changed_at.eq(new.created_at)))
                .execute(connection)
                .await
                .if_taken(ORGANISATION_TAKEN)?;
            diesel::insert_into(environments::table)
                .values((&environment, environments::changed_at.eq(environment.created_at)))
                .execute(connection)
                .await?;
            diesel::insert_into(keys::table).values(&key).execute(connection).await.if_taken(KEY_TAKEN)?;
            Ok(new)
        })
    }

    /// One organisation.
    pub async fn organisation_get(&self, id: OrganisationId) -> Result<Organisation, StoreError> {
        unit!(self, Read, connection => {
            let found = organisations::table.find(id).select(Organisation::as_select());
            Ok(found.first(connection).await?)
        })
    }

    /// The organisations, oldest first.
    pub async fn organisation_list(
        &self,
        page: Page<OrganisationId>,
    ) -> Result<Vec<Organisation>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = organisations::table.select(Organisation::as_select()).into_boxed();
            if let Some(after) = page.after {
                found = found.filter(organisations::id.gt(after));
            }
            Ok(found.order(organisations::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Gives an organisation another name.
    pub async fn organisation_rename(
        &self,
        id: OrganisationId,
        name: String,
        now: UtcTime,
    ) -> Result<Organisation, StoreError> {
        unit!(self, Change, connection => {
            let renamed = diesel::update(organisations::table.find(id))
                .set((organisations::name.eq(name), organisations::changed_at.eq(now)));
            Ok(renamed.returning(Organisation::as_returning()).get_result(connection).await?)
        })
    }

    /// Removes an organisation that has nothing left but its keys.
    pub async fn organisation_delete(
        &self,
        id: OrganisationId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            let deleted = diesel::delete(organisations::table.find(id)).execute(connection).await;
            found(deleted.if_bound("the organisation still has environments, runners or groups")?)?;
            bury!(connection, TombstoneKind::Organisation, id, now);
            Ok(())
        })
    }

    /// Adds an environment.
    pub async fn environment_create(&self, new: Environment) -> Result<Environment, StoreError> {
        unit!(self, Change, connection => {
            // Asked, rather than left to the foreign key, whose complaint does not say which.
            organisations::table.find(new.organisation_id).select(organisations::id).first::<OrganisationId>(connection).await?;
            diesel::insert_into(environments::table)
                .values((&new, environments::changed_at.eq(new.created_at)))
                .execute(connection)
                .await
                .if_taken(ENVIRONMENT_TAKEN)?;
            Ok(new)
        })
    }

    /// One environment of an organisation.
    pub async fn environment_get(
        &self,
        organisation: OrganisationId,
        id: EnvironmentId,
    ) -> Result<Environment, StoreError> {
        unit!(self, Read, connection => {
            let found = environments::table.find(id).filter(environments::organisation_id.eq(organisation));
            Ok(found.select(Environment::as_select()).first(connection).await?)
        })
    }

    /// The environments of an organisation, oldest first.
    pub async fn environment_list(
        &self,
        organisation: OrganisationId,
        page: Page<EnvironmentId>,
    ) -> Result<Vec<Environment>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = environments::table
                .filter(environments::organisation_id.eq(organisation))
                .select(Environment::as_select())
                .into_boxed();
            if let Some(after) = page.after {
                found = found.filter(environments::id.gt(after));
            }
            Ok(found.order(environments::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Gives an environment another slug; its keys keep the old one in their text.
    pub async fn environment_rename(
        &self,
        organisation: OrganisationId,
        id: EnvironmentId,
        slug: String,
        now: UtcTime,
    ) -> Result<Environment, StoreError> {
        unit!(self, Change, connection => {
            let target = environments::table.find(id).filter(environments::organisation_id.eq(organisation));
            diesel::update(target)
                .set((environments::slug.eq(slug), environments::changed_at.eq(now)))
                .returning(Environment::as_returning())
                .get_result(connection)
                .await
                .if_taken(ENVIRONMENT_TAKEN)
        })
    }

    /// Removes an environment that has nothing left but its keys.
    pub async fn environment_delete(
        &self,
        organisation: OrganisationId,
        id: EnvironmentId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            let target = environments::table.find(id).filter(environments::organisation_id.eq(organisation));
            let deleted = diesel::delete(target).execute(connection).await;
            found(deleted.if_bound("the environment still has sources or lenses")?)?;
            bury!(connection, TombstoneKind::Environment, id, now);
            Ok(())
        })
    }

    /// Gives a store without organisations its first: `default`, with the environment `development`.
    ///
    /// Several gateways may do so at once.
    pub async fn bootstrap(&self, now: UtcTime) -> Result<(), StoreError> {
        let organisation = Organisation {
            id: OrganisationId::new(),
            slug: "default".into(),
            name: "Default".into(),
            created_at: now,
        };
        let environment = Environment {
            id: EnvironmentId::new(),
            organisation_id: organisation.id,
            slug: "development".into(),
            created_at: now,
        };
        unit!(self, Change, connection => {
            let any = organisations::table.select(organisations::id).limit(1);
            if any.first::<OrganisationId>(connection).await.optional()?.is_some() {
                return Ok(());
            }
            // Whoever comes second waits here for the first, and then has nothing to add.
            let added = diesel::insert_into(organisations::table)
                .values((&organisation, organisations::changed_at.eq(now)))
                .on_conflict(organisations::slug)
                .do_nothing()
                .execute(connection)
                .await?;
            if added == 1 {
                diesel::insert_into(environments::table)
                    .values((&environment, environments::changed_at.eq(now)))
                    .execute(connection)
                    .await?;
            }
            Ok(())
        })
    }
}

/// Turns the number of rows that a statement about one thing touched into whether it was there.
pub(super) fn found(rows: usize) -> Result<(), StoreError> {
    if rows == 0 {
        Err(StoreError::NotFound)
    } else {
        Ok(())
    }
}
