//! Groups of runners.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::error::Violation;
use super::organisation::found;
use super::schema::runner_groups;
use super::tombstone::{TombstoneKind, bury};
use super::types::GroupDispatch;
use super::{Page, Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::{GroupId, OrganisationId};

/// A group of runners.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = runner_groups)]
pub struct RunnerGroup {
    pub id: GroupId,
    pub organisation_id: OrganisationId,
    /// Unique in its organisation.
    pub name: String,
    pub dispatch: GroupDispatch,
    pub created_at: UtcTime,
    pub changed_at: UtcTime,
}

/// A group to add.
#[derive(Debug, Clone)]
pub struct NewRunnerGroup {
    pub id: GroupId,
    pub name: String,
    pub dispatch: GroupDispatch,
}

impl Store {
    /// Adds a group to an organisation.
    pub async fn group_create(
        &self,
        organisation: OrganisationId,
        new: NewRunnerGroup,
        now: UtcTime,
    ) -> Result<RunnerGroup, StoreError> {
        unit!(self, Change, connection => {
            diesel::insert_into(runner_groups::table)
                .values((
                    runner_groups::id.eq(new.id),
                    runner_groups::organisation_id.eq(organisation),
                    runner_groups::name.eq(new.name),
                    runner_groups::dispatch.eq(new.dispatch),
                    runner_groups::created_at.eq(now),
                    runner_groups::changed_at.eq(now),
                ))
                .returning(RunnerGroup::as_returning())
                .get_result(connection)
                .await
                .if_taken("a group of this name exists already")
        })
    }

    /// The groups of an organisation, oldest first.
    pub async fn group_list(
        &self,
        organisation: OrganisationId,
        page: Page<GroupId>,
    ) -> Result<Vec<RunnerGroup>, StoreError> {
        unit!(self, Read, connection => {
            let mut found = runner_groups::table
                .filter(runner_groups::organisation_id.eq(organisation))
                .select(RunnerGroup::as_select())
                .into_boxed();
            if let Some(after) = page.after {
                found = found.filter(runner_groups::id.gt(after));
            }
            Ok(found.order(runner_groups::id).limit(page.limit.into()).load(connection).await?)
        })
    }

    /// Removes a group without members.
    pub async fn group_delete(
        &self,
        organisation: OrganisationId,
        id: GroupId,
        now: UtcTime,
    ) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            let target = runner_groups::table.find(id).filter(runner_groups::organisation_id.eq(organisation));
            let deleted = diesel::delete(target).execute(connection).await;
            found(deleted.if_bound("the group still has runners")?)?;
            bury!(connection, TombstoneKind::Group, id, now);
            Ok(())
        })
    }
}
