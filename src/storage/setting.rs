//! Settings that every gateway of a store must agree on. There is one: the id of the master key, so that a
//! gateway with another key is noticed when it starts, and not by the first source that it cannot open.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::settings;
use super::{Store, StoreError, unit};

const MASTER_KEY_ID: &str = "master_key_id";

/// How a gateway's master key stands to the store's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasterKeyCheck {
    /// It is the store's; a store that had none yet, or had the previous one, has it from now on.
    Agreed,
    /// The store's is another one, of this id.
    Other(String),
}

impl Store {
    /// Compares the id of a gateway's master key with the store's. During a rotation `previous` is the id of the
    /// key before, which the current one replaces.
    pub async fn master_key_check(
        &self,
        current: String,
        previous: Option<String>,
    ) -> Result<MasterKeyCheck, StoreError> {
        unit!(self, Transaction, connection => {
            diesel::insert_into(settings::table)
                .values((settings::name.eq(MASTER_KEY_ID), settings::value.eq(&current)))
                .on_conflict_do_nothing()
                .execute(connection)
                .await?;
            if let Some(previous) = previous {
                // Of several gateways that rotate at once the first does it; the others find it done.
                diesel::update(settings::table.find(MASTER_KEY_ID).filter(settings::value.eq(previous)))
                    .set(settings::value.eq(&current))
                    .execute(connection)
                    .await?;
            }
            let found: String =
                settings::table.find(MASTER_KEY_ID).select(settings::value).first(connection).await?;
            Ok(if found == current { MasterKeyCheck::Agreed } else { MasterKeyCheck::Other(found) })
        })
    }
}
