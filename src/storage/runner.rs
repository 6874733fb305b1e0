//! Runners, their keys and the sources that they serve.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::Violation;
use super::key::{KEY_TAKEN, Key, NewKey};
use super::organisation::found;
use super::schema::{environments, keys, runner_assignments, runner_groups, runners, sources};
use super::tombstone::{TombstoneKind, bury, unbury};
use super::types::{Deployment, KeyKind};
use super::{Changed, Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{GroupId, OrganisationId, RunnerId, SourceId};

/// A runner: an identity with a token, of which several processes may run.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = runners)]
pub struct Runner {
    pub id: RunnerId,
    pub organisation_id: OrganisationId,
    /// Unique in its organisation.
    pub name: String,
    pub deployment: Deployment,
    pub group_id: Option<GroupId>,
    /// Since when it is used only if no other runner is left.
    pub tainted_at: Option<UtcTime>,
    /// Since when it gets no new jobs.
    pub drained_at: Option<UtcTime>,
    /// Since when it may not connect.
    pub revoked_at: Option<UtcTime>,
    pub created_at: UtcTime,
    /// When anything but what it reports itself changed.
    pub changed_at: UtcTime,
    /// When it was last heard of, as of the last time that was written down.
    pub last_seen_at: Option<UtcTime>,
    /// The version that it last connected with.
    pub last_version: Option<String>,
}

/// A runner to add.
#[derive(Debug, Clone)]
pub struct NewRunner {
    pub id: RunnerId,
    pub name: String,
    pub deployment: Deployment,
    pub group_id: Option<GroupId>,
}

/// What to change about a runner; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct RunnerChange {
    pub name: Option<String>,
    /// `Some(None)` takes it out of its group.
    pub group_id: Option<Option<GroupId>>,
    /// `Some(None)` untaints.
    pub tainted_at: Option<Option<UtcTime>>,
    /// `Some(None)` resumes.
    pub drained_at: Option<Option<UtcTime>>,
}

#[derive(AsChangeset)]
#[diesel(table_name = runners)]
struct RunnerColumns {
    name: Option<String>,
    group_id: Option<Option<GroupId>>,
    tainted_at: Option<Option<UtcTime>>,
    drained_at: Option<Option<UtcTime>>,
    changed_at: UtcTime,
}

/// A new key for a runner, and how long the old ones stay good.
#[derive(Debug, Clone)]
pub struct Rotation {
    pub key: NewKey,
    /// When the old keys end; `None` is at once.
    pub old_keys_expire_at: Option<UtcTime>,
}

/// That a runner serves a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = runner_assignments)]
pub struct Assignment {
    pub runner_id: RunnerId,
    pub source_id: SourceId,
    pub created_at: UtcTime,
}

const NAME_TAKEN: &str = "a runner of this name exists already";

/// What a tombstone calls an assignment; the only thing that may come back under the name of a deleted one.
fn pair(runner: RunnerId, source: SourceId) -> String {
    format!("{runner}/{source}")
}

/// The runner, if it belongs to the organisation.
macro_rules! own {
    ($organisation:expr, $id:expr) => {
        runners::table
            .find($id)
            .filter(runners::organisation_id.eq($organisation))
    };
}

/// Fails unless the group belongs to the organisation.
macro_rules! check_group {
    ($connection:expr, $organisation:expr, $group:expr) => {
        if let Some(group) = $group {
            let found = runner_groups::table
                .find(group)
                .filter(runner_groups::organisation_id.eq($organisation));
            found
                .select(runner_groups::id)
                .first::<GroupId>($connection)
                .await?;
        }
    };
}

impl Store {
    /// Adds a runner together with its first key.
    pub async fn runner_create(
        &self,
        organisation: OrganisationId,
        new: NewRunner,
        key: NewKey,
        now: UtcTime,
    ) -> Result<Runner, StoreError> {
        unit!(self, Change, connection => {
            check_group!(connection, organisation, new.group_id);
            let runner = diesel::insert_into(runners::table)
                .values((
                    runners::id.eq(new.id),
                    runners::organisation_id.eq(organisation),
                    runners::name.eq(new.name),
                    runners::deployment.eq(new.deployment),
                    runners::group_id.eq(new.group_id),
                    runners::created_at.eq(now),
                    runners::changed_at.eq(now),
                ))
                .returning(Runner::as_returning())
                .get_result(connection)
                .await
                .if_taken(NAME_TAKEN)?;
            let key = NewKey { organisation_id: organisation, runner_id: Some(new.id), kind: KeyKind::Runner, ..key };
            diesel::insert_into(keys::table).values(&key).execute(connection).await.if_taken(KEY_TAKEN)?;
            Ok(runner)
        })
    }

    /// One runner of an organisation.
    pub async fn runner_get(
        &self,
        organisation: OrganisationId,
        id: RunnerId,
    ) -> Result<Runner, StoreError> {
        unit!(self, Read, connection => {
            Ok(own!(organisation, id).select(Runner::as_select()).first(connection).await?)
        })
    }

    /// The runners of an organisation, oldest first.
    pub async fn runner_list(
        &self,
        organisation: OrganisationId,
        page: Page<RunnerId>,
    ) -> Result<Vec<Runner>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = runners::table
                .filter(runners::organisation_id.eq(organisation))
                .select(Runner::as_select())
                .into_boxed();
            if let Some(after) = page.after {
                found = found.filter(runners::id.gt(after));
            }
            Ok(found.order(runners::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Changes a runner.
    pub async fn runner_update(
        &self,
        organisation: OrganisationId,
        id: RunnerId,
        change: RunnerChange,
        now: UtcTime,
    ) -> Result<Runner, StoreError> {
        unit!(self, Change, connection => {
            check_group!(connection, organisation, change.group_id.flatten());
            let RunnerChange { name, group_id, tainted_at, drained_at } = change;
            diesel::update(own!(organisation, id))
                .set(RunnerColumns { name, group_id, tainted_at, drained_at, changed_at: now })
                .returning(Runner::as_returning())
                .get_result(connection)
                .await
                .if_taken(NAME_TAKEN)
        })
    }

    /// Removes a runner with its keys, assignments and sessions; what it did stays in the history.
    pub async fn runner_delete(
        &self,
        organisation: OrganisationId,
        id: RunnerId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            found(diesel::delete(own!(organisation, id)).execute(connection).await?)?;
            bury!(connection, TombstoneKind::Runner, id, now);
            Ok(())
        })
    }

    /// Ends a runner's life and that of all its keys.
    pub async fn runner_revoke(
        &self,
        organisation: OrganisationId,
        id: RunnerId,
        now: UtcTime,
    ) -> Result<Changed<Runner>, StoreError> {
        unit!(self, Change, connection => {
            let revoked = diesel::update(own!(organisation, id).filter(runners::revoked_at.is_null()))
                .set((runners::revoked_at.eq(now), runners::changed_at.eq(now)))
                .returning(Runner::as_returning())
                .get_result(connection)
                .await
                .optional()?;
            let Some(runner) = revoked else {
                let found = own!(organisation, id).select(Runner::as_select()).first(connection).await.optional()?;
                return Ok(found.map_or(Changed::Absent, Changed::OtherState));
            };
            diesel::update(keys::table.filter(keys::runner_id.eq(id).and(keys::revoked_at.is_null())))
                .set((keys::revoked_at.eq(now), keys::changed_at.eq(now)))
                .execute(connection)
                .await?;
            Ok(Changed::Done(runner))
        })
    }

    /// Gives a runner a new key and ends the old ones, now or later; a revoked runner gets none.
    pub async fn runner_rotate(
        &self,
        organisation: OrganisationId,
        id: RunnerId,
        rotation: Rotation,
        now: UtcTime,
    ) -> Result<Changed<Runner>, StoreError> {
        unit!(self, Change, connection => {
            // An update first, so that a rotation and a revocation at the same time happen one after the other.
            let rotated = diesel::update(own!(organisation, id).filter(runners::revoked_at.is_null()))
                .set(runners::changed_at.eq(now))
                .returning(Runner::as_returning())
                .get_result(connection)
                .await
                .optional()?;
            let Some(runner) = rotated else {
                let found = own!(organisation, id).select(Runner::as_select()).first(connection).await.optional()?;
                return Ok(found.map_or(Changed::Absent, Changed::OtherState));
            };
            let old = keys::table.filter(keys::runner_id.eq(id).and(keys::revoked_at.is_null()));
            match rotation.old_keys_expire_at {
                // A key that would end before that anyway is left alone.
                Some(end) => {
                    diesel::update(old.filter(keys::expires_at.is_null().or(keys::expires_at.gt(end))))
                        .set((keys::expires_at.eq(end), keys::changed_at.eq(now)))
                        .execute(connection)
                        .await?
                }
                None => {
                    diesel::update(old)
                        .set((keys::revoked_at.eq(now), keys::changed_at.eq(now)))
                        .execute(connection)
                        .await?
                }
            };
            let key = NewKey {
                organisation_id: organisation,
                runner_id: Some(id),
                kind: KeyKind::Runner,
                ..rotation.key
            };
            diesel::insert_into(keys::table).values(&key).execute(connection).await.if_taken(KEY_TAKEN)?;
            Ok(Changed::Done(runner))
        })
    }

    /// The runner's key of that hash, live or not: why a token is refused is worth saying.
    ///
    /// Revoking a runner revokes its keys, so the key alone says whether it may connect.
    pub async fn runner_key_by_hash(&self, hash: &str) -> Result<Key, StoreError> {
        let hash = hash.to_owned();
        unit!(self, Read, connection => {
            let found = keys::table.filter(keys::hash.eq(hash).and(keys::kind.eq(KeyKind::Runner)));
            Ok(found.select(Key::as_select()).first(connection).await?)
        })
    }

    /// Makes these the sources that a runner serves, and says which they are.
    pub async fn assignment_replace(
        &self,
        organisation: OrganisationId,
        runner: RunnerId,
        wanted: Vec<SourceId>,
        now: UtcTime,
    ) -> Result<Vec<Assignment>, StoreError> {
        unit!(self, Change, connection => {
            diesel::update(own!(organisation, runner))
                .set(runners::changed_at.eq(now))
                .returning(runners::id)
                .get_result::<RunnerId>(connection)
                .await?;
            let known = sources::table
                .inner_join(environments::table)
                .filter(environments::organisation_id.eq(organisation).and(sources::id.eq_any(wanted.clone())))
                .select(sources::id)
                .load::<SourceId>(connection)
                .await?;
            if wanted.iter().any(|id| !known.contains(id)) {
                return Err(StoreError::NotFound);
            }
            let assigned = runner_assignments::table.filter(runner_assignments::runner_id.eq(runner));
            let gone = diesel::delete(assigned.filter(runner_assignments::source_id.ne_all(known.clone())))
                .returning(runner_assignments::source_id)
                .get_results::<SourceId>(connection)
                .await?;
            for source in gone {
                bury!(connection, TombstoneKind::Assignment, pair(runner, source), now);
            }
            for source_id in known {
                unbury!(connection, TombstoneKind::Assignment, pair(runner, source_id));
                diesel::insert_into(runner_assignments::table)
                    .values(Assignment { runner_id: runner, source_id, created_at: now })
                    .on_conflict_do_nothing()
                    .execute(connection)
                    .await?;
            }
            Ok(assigned.select(Assignment::as_select()).order(runner_assignments::source_id).load(connection).await?)
        })
    }

    /// Has a runner serve one more source; says whether it did not before.
    pub async fn assignment_add(
        &self,
        organisation: OrganisationId,
        runner: RunnerId,
        source: SourceId,
        now: UtcTime,
    ) -> Result<bool, StoreError> {
        unit!(self, Change, connection => {
            own!(organisation, runner).select(runners::id).first::<RunnerId>(connection).await?;
            sources::table
                .inner_join(environments::table)
                .filter(environments::organisation_id.eq(organisation).and(sources::id.eq(source)))
                .select(sources::id)
                .first::<SourceId>(connection)
                .await?;
            let added = diesel::insert_into(runner_assignments::table)
                .values(Assignment { runner_id: runner, source_id: source, created_at: now })
                .on_conflict_do_nothing()
                .execute(connection)
                .await?;
            if added == 0 {
                return Ok(false);
            }
            unbury!(connection, TombstoneKind::Assignment, pair(runner, source));
            diesel::update(own!(organisation, runner)).set(runners::changed_at.eq(now)).execute(connection).await?;
            Ok(true)
        })
    }

    /// Has a runner serve a source no longer.
    pub async fn assignment_remove(
        &self,
        organisation: OrganisationId,
        runner: RunnerId,
        source: SourceId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            let changed = diesel::update(own!(organisation, runner)).set(runners::changed_at.eq(now));
            found(changed.execute(connection).await?)?;
            found(diesel::delete(runner_assignments::table.find((runner, source))).execute(connection).await?)?;
            bury!(connection, TombstoneKind::Assignment, pair(runner, source), now);
            Ok(())
        })
    }

    /// The sources that a runner serves.
    pub async fn assignment_list(
        &self,
        organisation: OrganisationId,
        runner: RunnerId,
    ) -> Result<Vec<Assignment>, StoreError> {
        unit!(self, Read, connection => {
            Ok(runner_assignments::table
                .inner_join(runners::table)
                .filter(runners::organisation_id.eq(organisation).and(runners::id.eq(runner)))
                .select(Assignment::as_select())
                .order(runner_assignments::source_id)
                .load(connection)
                .await?)
        })
    }
}
