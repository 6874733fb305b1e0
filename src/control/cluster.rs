//! `Cluster`: this gateway's presence in the store, and the one place that reads the catalogue from it.
//!
//! The catalogue is read again after each change that this gateway makes, before the change is confirmed,
//! and every 30 s whatever was announced. Owns the catalogue's writing end and nothing else.

use actix::prelude::*;

use super::catalogue::{Catalogue, CatalogueWriter};
use super::vital::{CORE_ACTOR_DIED, Vital};
use crate::clock::Clock;
use crate::ids::GatewayId;
use crate::storage::{Store, StoreError};
use crate::timing::Timing;

/// Read the catalogue again. Sent by the web layer after a change; answered once it is in force.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Result<(), StoreError>")]
pub struct RefreshCatalogue;

#[derive(Message)]
#[rtype(result = "()")]
struct Poll;

#[derive(Message)]
#[rtype(result = "()")]
struct Renew;

/// The actor.
pub struct Cluster {
    gateway_id: GatewayId,
    catalogue: CatalogueWriter,
    store: Store,
    clock: Clock,
    timing: Timing,
    _vital: Vital,
}

impl Cluster {
    /// The presence of a gateway that is registered already.
    pub fn new(
        gateway_id: GatewayId,
        catalogue: CatalogueWriter,
        store: Store,
        clock: Clock,
        timing: Timing,
        vital: Vital,
    ) -> Self {
        Self {
            gateway_id,
            catalogue,
            store,
            clock,
            timing,
            _vital: vital,
        }
    }
}

impl Actor for Cluster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.timing.catalogue_poll, |_, ctx| ctx.notify(Poll));
        ctx.run_interval(self.timing.gateway_renewal, |_, ctx| ctx.notify(Renew));
    }
}

impl Handler<RefreshCatalogue> for Cluster {
    // Atomic: of two refreshes at once, the one that read later must be the one that is put in place later.
    type Result = AtomicResponse<Self, Result<(), StoreError>>;

    fn handle(&mut self, _: RefreshCatalogue, _: &mut Self::Context) -> Self::Result {
        let (store, now) = (self.store.clone(), self.clock.now());
        AtomicResponse::new(Box::pin(
            async move { store.catalogue_load(now).await }
                .into_actor(self)
                .map(|read, act, _| {
                    act.catalogue.replace(Catalogue::new(read?));
                    Ok(())
                }),
        ))
    }
}

impl Handler<Poll> for Cluster {
    type Result = ();

    fn handle(&mut self, _: Poll, ctx: &mut Self::Context) {
        ctx.address()
            .send(RefreshCatalogue)
            .into_actor(self)
            .map(|read, _, _| {
                if let Ok(Err(error)) = read {
                    log::warn!(error:% = error; "the catalogue could not be read, the last one stays in force");
                }
            })
            .spawn(ctx);
    }
}

impl Handler<Renew> for Cluster {
    type Result = ();

    fn handle(&mut self, _: Renew, ctx: &mut Self::Context) {
        let (store, id, now) = (self.store.clone(), self.gateway_id, self.clock.now());
        async move { store.gateway_renew(id, now).await }
            .into_actor(self)
            .map(|renewed, act, _| match renewed {
                Ok(Some(_)) => {}
                // Others have settled what this gateway held. It starts afresh, under a new id.
                Ok(None) => {
                    log::error!(gateway_id:% = act.gateway_id; "this gateway has been declared lost, the process ends");
                    System::current().stop_with_code(CORE_ACTOR_DIED);
                }
                Err(error) => {
                    log::warn!(gateway_id:% = act.gateway_id, error:% = error; "this gateway's presence could not be renewed");
                }
            })
            .spawn(ctx);
    }
}
