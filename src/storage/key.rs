//! Keys of every kind. Only a hash is kept, so a key can be replaced but never shown again.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::Violation;
use super::schema::{environments, keys};
use super::types::{KeyKind, Role};
use super::{Changed, Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, KeyId, OrganisationId, RunnerId};

/// A key, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = keys)]
pub struct Key {
    pub id: KeyId,
    pub kind: KeyKind,
    pub organisation_id: OrganisationId,
    /// The environment of an `sk_` or `pk_`.
    pub environment_id: Option<EnvironmentId>,
    /// The runner of an `rk_`.
    pub runner_id: Option<RunnerId>,
    /// What an `ak_` may do.
    pub role: Option<Role>,
    pub name: Option<String>,
    /// SHA-256 of the whole text, in hex.
    pub hash: String,
    /// The first characters, to tell keys apart.
    pub display: String,
    pub created_at: UtcTime,
    pub expires_at: Option<UtcTime>,
    pub revoked_at: Option<UtcTime>,
    pub changed_at: UtcTime,
}

impl Key {
    /// Whether the key is still good.
    pub fn is_live(&self, now: UtcTime) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|expiry| now < expiry)
    }
}

/// A key to add.
#[derive(Debug, Clone, Insertable)]
#[diesel(table_name = keys)]
pub struct NewKey {
    pub id: KeyId,
    pub kind: KeyKind,
    pub organisation_id: OrganisationId,
    pub environment_id: Option<EnvironmentId>,
    pub runner_id: Option<RunnerId>,
    pub role: Option<Role>,
    pub name: Option<String>,
    pub hash: String,
    pub display: String,
    pub created_at: UtcTime,
    pub expires_at: Option<UtcTime>,
    pub changed_at: UtcTime,
}

pub(super) const KEY_TAKEN: &str = "this key exists already";

impl Store {
    /// Adds a key to the organisation that it names.
    ///
    /// A runner's keys come from [`Store::runner_create`] and [`Store::runner_rotate`].
    pub async fn key_create(&self, new: NewKey) -> Result<Key, StoreError> {
        unit!(self, Change, connection => {
            if let Some(environment) = new.environment_id {
                environments::table
                    .find(environment)
                    .filter(environments::organisation_id.eq(new.organisation_id))
                    .select(environments::id)
                    .first::<EnvironmentId>(connection)
                    .await?;
            }
            diesel::insert_into(keys::table)
                .values(&new)
                .returning(Key::as_returning())
                .get_result(connection)
                .await
                .if_taken(KEY_TAKEN)
        })
    }

    /// One key of an organisation.
    pub async fn key_get(
        &self,
        organisation: OrganisationId,
        id: KeyId,
    ) -> Result<Key, StoreError> {
        unit!(self, Read, connection => {
            let found = keys::table.find(id).filter(keys::organisation_id.eq(organisation));
            Ok(found.select(Key::as_select()).first(connection).await?)
        })
    }

    /// The keys of an organisation, oldest first; without those of its runners.
    pub async fn key_list(
        &self,
        organisation: OrganisationId,
        page: Page<KeyId>,
    ) -> Result<Vec<Key>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = keys::table
                .filter(keys::organisation_id.eq(organisation).and(keys::kind.ne(KeyKind::Runner)))
                .select(Key::as_select())
                .into_boxed();
            if let Some(after) = page.after {
                found = found.filter(keys::id.gt(after));
            }
            Ok(found.order(keys::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Ends a key's life; one that was revoked before stays as it is.
    pub async fn key_revoke(
        &self,
        organisation: OrganisationId,
        id: KeyId,
        now: UtcTime,
    ) -> Result<Changed<Key>, StoreError> {
        unit!(self, Change, connection => {
            let target = keys::table.find(id).filter(keys::organisation_id.eq(organisation));
            let revoked = diesel::update(target.filter(keys::revoked_at.is_null()))
                .set((keys::revoked_at.eq(now), keys::changed_at.eq(now)))
                .returning(Key::as_returning())
                .get_result(connection)
                .await
                .optional()?;
            if let Some(key) = revoked {
                return Ok(Changed::Done(key));
            }
            let found = target.select(Key::as_select()).first(connection).await.optional()?;
            Ok(found.map_or(Changed::Absent, Changed::OtherState))
        })
    }
}
