//! The admin key of `semilayer dev`, kept in the state file because the store has only its hash.

use anyhow::Context;

use super::state::State;
use crate::domain::tokens::hash;
use crate::gateway::Gateway;

/// Makes sure that the state holds an admin key that is good; answers whether a new one was made.
pub(super) async fn ensure_admin_key(state: &mut State, gateway: &Gateway) -> anyhow::Result<bool> {
    let control = &gateway.control;
    let catalogue = control.catalogue.current();
    let known = catalogue.key_by_hash(&hash(&state.admin_key));
    if known.is_some_and(|key| key.is_live(control.clock.now())) {
        return Ok(false);
    }
    state.admin_key = gateway
        .make_admin_key("semilayer dev")
        .await
        .context("cannot make the first admin key")?;
    Ok(true)
}
