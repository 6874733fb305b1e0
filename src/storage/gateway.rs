//! Gateways: one row per process that is up, with a counter that it moves while it lives.
//!
//! That a counter stands still is judged by whoever watches it; here is only what follows. Removing the row of
//! a gateway removes its sessions, and from then on it can neither renew nor open a session: it learns
//! that it has been declared lost.

use diesel::prelude::*;
use diesel::sql_types::Timestamp;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use super::batch::{Batch, Texts};
use super::jobs::{Settled, Settling, settle};
use super::schema::gateways;
use super::types::serialize_stamp;
use super::{Store, StoreError, unit};
use crate::clock::UtcTime;
use crate::ids::GatewayId;

/// One start of a gateway process.
#[derive(Debug, Clone, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = gateways)]
pub struct Gateway {
    pub id: GatewayId,
    /// Moves with every renewal; that it stands still is how a loss is noticed.
    pub renewals: i64,
    /// Where its peers reach it.
    pub internal_url: Option<String>,
    pub started_at: UtcTime,
    pub seen_at: UtcTime,
}

#[derive(Serialize)]
struct Renewing {
    id: GatewayId,
    #[serde(serialize_with = "serialize_stamp")]
    now: UtcTime,
}

/// PostgreSQL has a clock of its own, by which gateways can agree on the time; SQLite has this machine's.
const RENEW: Texts = Texts {
    postgres: "UPDATE gateways SET renewals = renewals + 1, seen_at = p.now \
               FROM json_to_record($batch::json) AS p (id text, now timestamp) \
               WHERE gateways.id = p.id RETURNING clock_timestamp() AT TIME ZONE 'UTC'",
    sqlite: "UPDATE gateways SET renewals = renewals + 1, seen_at = p.now \
             FROM (SELECT d ->> '$.id' AS id, d ->> '$.now' AS now FROM (SELECT $batch AS d)) AS p \
             WHERE gateways.id = p.id RETURNING seen_at",
};

impl Store {
    /// Announces a gateway.
    pub async fn gateway_register(&self, gateway: Gateway) -> Result<(), StoreError> {
        unit!(self, Change, connection => {
            diesel::insert_into(gateways::table).values(&gateway).execute(connection).await?;
            Ok(())
        })
    }

    /// Moves a gateway's counter and tells the store's time; `None` says that it has been declared lost.
    pub async fn gateway_renew(
        &self,
        id: GatewayId,
        now: UtcTime,
    ) -> Result<Option<UtcTime>, StoreError> {
        let renew: Batch<Timestamp> = Batch::new(RENEW, &Renewing { id, now })?;
        unit!(self, Write, connection => { Ok(renew.get_result(connection).await.optional()?) })
    }

    /// The gateways that are up, or were not yet declared lost.
    pub async fn gateway_list(&self) -> Result<Vec<Gateway>, StoreError> {
        unit!(self, Read, connection => {
            Ok(gateways::table.select(Gateway::as_select()).order(gateways::id).load(connection).await?)
        })
    }

    /// Removes a gateway that has ended in good order: its sessions go, and what it held is settled.
    pub async fn gateway_leave(&self, id: GatewayId, now: UtcTime) -> Result<Settled, StoreError> {
        let settling = Settling::of(id, now)?;
        unit!(self, Change, connection => {
            diesel::delete(gateways::table.find(id)).execute(connection).await?;
            Ok(settle!(settling, connection))
        })
    }

    /// Declares a gateway lost whose counter still stands at `renewals`, removes its sessions and settles its
    /// jobs. `None` says that somebody else did, or that it has renewed.
    pub async fn gateway_declare_lost(
        &self,
        id: GatewayId,
        renewals: i64,
        now: UtcTime,
    ) -> Result<Option<Settled>, StoreError> {
        let settling = Settling::of(id, now)?;
        unit!(self, Change, connection => {
            let still = gateways::table.find(id).filter(gateways::renewals.eq(renewals));
            if diesel::delete(still).execute(connection).await? == 0 {
                return Ok(None);
            }
            Ok(Some(settle!(settling, connection)))
        })
    }

    /// Makes `own` the only gateway of this store: whatever another one left is removed and settled.
    ///
    /// For the embedded store, which nobody else can be using, when a gateway starts.
    pub async fn gateway_take_over(
        &self,
        own: GatewayId,
        now: UtcTime,
    ) -> Result<Settled, StoreError> {
        let settling = Settling::of_all_but(own, now)?;
        unit!(self, Change, connection => {
            diesel::delete(gateways::table.filter(gateways::id.ne(own))).execute(connection).await?;
            Ok(settle!(settling, connection))
        })
    }
}
