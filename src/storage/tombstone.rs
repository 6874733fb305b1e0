//! Tombstones: what was deleted and when, for gateways that read only what has changed.
//!
//! Only what is deleted by name gets one. What goes along with it (a runner's keys, a source's assignments,
//! the sessions of a gateway) is recognised by its parent being gone.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::tombstones;
pub(super) use super::types::TombstoneKind;
use super::{Store, StoreError, unit};
use crate::clock::UtcTime;

/// Something that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = tombstones)]
pub struct Tombstone {
    pub kind: TombstoneKind,
    /// The id that it had; of an assignment, `<runner>/<source>`.
    pub id: String,
}

/// Expands to writing down, in a unit of work, that something was deleted; a function would have to name
/// the bounds that diesel infers.
macro_rules! bury {
    ($connection:expr, $kind:expr, $id:expr, $now:expr) => {{
        use $crate::storage::schema::tombstones;
        diesel::insert_into(tombstones::table)
            .values((
                tombstones::kind.eq($kind),
                tombstones::id.eq($id.to_string()),
                tombstones::deleted_at.eq($now),
            ))
            .on_conflict((tombstones::kind, tombstones::id))
            .do_update()
            .set(tombstones::deleted_at.eq($now))
            .execute($connection)
            .await?;
    }};
}
pub(super) use bury;

/// Expands to forgetting that something was deleted, because it is there again.
macro_rules! unbury {
    ($connection:expr, $kind:expr, $id:expr) => {{
        use $crate::storage::schema::tombstones;
        diesel::delete(tombstones::table.find(($kind, $id)))
            .execute($connection)
            .await?;
    }};
}
pub(super) use unbury;

impl Store {
    /// Forgets what was deleted before `before`; returns how many.
    ///
    /// Whoever last read before that must read everything again.
    pub async fn tombstone_prune(&self, before: UtcTime) -> Result<usize, StoreError> {
        unit!(self, Write, connection => {
            let old = tombstones::table.filter(tombstones::deleted_at.lt(before));
            Ok(diesel::delete(old).execute(connection).await?)
        })
    }
}
