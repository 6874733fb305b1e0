//! `Cluster`: this gateway's presence in the store, its view of the others, and the one place that reads the
//! catalogue.
//!
//! **Presence.** Each renewal moves this gateway's counter, measures the store's clock and reads the counters of
//! the others; one that stands still for a lease of this observer's own good reads is declared lost, which the
//! store allows only if it still stands there. A gateway whose renewal finds no row was declared lost itself,
//! and its jobs are settled: it closes its sessions and goes on under a new id. One that cannot reach the store
//! declares nobody lost and goes on serving what it has.
//!
//! **Catalogue.** What has changed is read after each change that this gateway makes, before the change is
//! confirmed; soon after another gateway announces one; and every few seconds whatever was announced. Everything
//! is read now and then. Times are written before they are committed, so each pass begins some time before the
//! last good one did.
//!
//! **Peers.** There is a link to each of the other gateways that says where it is reached.

mod links;
mod listen;
mod passes;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use actix::prelude::*;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::passes::{Pass, Passes};
use super::catalogue::CatalogueWriter;
use super::identity::GatewayIdentity;
use super::peer::{PeerContext, PeerLink};
use super::picker::PeerChanged;
use super::vital::Vital;
use crate::clock::{Clock, UtcTime};
use crate::domain::presence::{Lost, Presence};
use crate::ids::{GatewayId, JobId};
use crate::storage::{self, Changes, Gateway, Store, StoreError};
use crate::timing::Timing;

/// How far each pass goes back behind the last one: longer than a unit of work takes from its first statement to
/// its commit, and than clocks differ that follow the store's.
const OVERLAP: Duration = Duration::from_secs(60);

/// Read what has changed in the catalogue. Sent by the web layer after a change; answered once it is in force.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Result<(), StoreError>")]
pub struct RefreshCatalogue;

/// End this job, which another gateway executes; answers whether it was under way there. Sent by the web layer.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "bool")]
pub struct CancelElsewhere {
    /// Who executes it.
    pub gateway_id: GatewayId,
    /// The job.
    pub job_id: JobId,
}

/// Somebody has changed something. Sent by whoever listens.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub(super) struct Announced;

/// This gateway is about to sign off: renew its presence no more, and think nothing of it when it is gone. Sent as
/// the gateway closes.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct StopRenewing;

#[derive(Message)]
#[rtype(result = "()")]
struct Poll;

#[derive(Message)]
#[rtype(result = "()")]
struct ReadAll;

#[derive(Message)]
#[rtype(result = "()")]
struct Renew;

/// What the actor is built from.
pub struct ClusterContext {
    /// This gateway's id.
    pub identity: GatewayIdentity,
    /// Where it is reached by the others.
    pub advertise_url: Option<String>,
    /// The catalogue's writing end.
    pub catalogue: CatalogueWriter,
    /// When the catalogue in place was read.
    pub read_at: UtcTime,
    /// The store.
    pub store: Store,
    /// Where the store's connections live.
    pub runtime: tokio::runtime::Handle,
    /// To the picker: a way to a peer opened or closed.
    pub peer_changed: Recipient<PeerChanged>,
    /// What links are made of.
    pub peers: PeerContext,
    /// The time; it follows the store's.
    pub clock: Clock,
    /// Intervals and deadlines.
    pub timing: Timing,
}

struct Peer {
    url: String,
    link: Addr<PeerLink>,
}

type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// What one renewal found.
struct Renewed {
    /// The store's time; `None`: this gateway has been declared lost.
    store_time: Option<UtcTime>,
    round_trip: Duration,
    gateways: Vec<Gateway>,
}

enum Read {
    All(storage::Catalogue),
    Changes(Changes),
}

/// The actor.
pub struct Cluster {
    cx: ClusterContext,
    presence: Presence,
    peers: HashMap<GatewayId, Peer>,
    /// Peers that do not say where they are reached, about which was warned.
    hidden: HashSet<GatewayId>,
    passes: Passes<Waiter>,
    /// When the last good pass began, by the store's clock.
    read_until: UtcTime,
    collecting: bool,
    renewing: bool,
    signing_off: bool,
    _vital: Vital,
}

impl Cluster {
    /// The presence of a gateway that is registered already.
    pub fn new(cx: ClusterContext, vital: Vital) -> Self {
        Self {
            presence: Presence::new(cx.timing.gateway_lease, cx.timing.gateway_renewal),
            peers: HashMap::new(),
            hidden: HashSet::new(),
            passes: Passes::default(),
            read_until: cx.read_at,
            collecting: false,
            renewing: false,
            signing_off: false,
            cx,
            _vital: vital,
        }
    }
}

impl Actor for Cluster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let timing = &self.cx.timing;
        ctx.run_interval(timing.delta_pass(), |_, ctx| ctx.notify(Poll));
        ctx.run_interval(timing.gateway_renewal, |_, ctx| ctx.notify(Renew));
        self.read_all_later(ctx);
        self.follow_gateways();
        if !self.cx.store.is_embedded() {
            ctx.notify(Renew);
            let announced = ctx.address().recipient();
            self.cx
                .runtime
                .spawn(listen::run(self.cx.store.clone(), announced));
        }
    }
}

impl Handler<RefreshCatalogue> for Cluster {
    type Result = ResponseFuture<Result<(), StoreError>>;

    fn handle(&mut self, _: RefreshCatalogue, ctx: &mut Self::Context) -> Self::Result {
        let (waiter, done) = oneshot::channel();
        self.passes.wait(waiter);
        self.pass(ctx);
        Box::pin(async move {
            done.await
                .unwrap_or_else(|closed| Err(StoreError::Unavailable(closed.into())))
        })
    }
}

impl Handler<CancelElsewhere> for Cluster {
    type Result = ResponseFuture<bool>;

    fn handle(&mut self, cancel: CancelElsewhere, _: &mut Self::Context) -> Self::Result {
        let CancelElsewhere { gateway_id, job_id } = cancel;
        let url = self.peers.get(&gateway_id).map(|peer| peer.url.clone());
        let client = self.cx.peers.client.clone();
        Box::pin(async move {
            let Some(url) = url else {
                return false;
            };
            client.cancel(&url, job_id).await.unwrap_or_else(|error| {
                log::warn!(job_id:% = job_id, gateway_id:% = gateway_id, error:% = error; "job {job_id} could not be cancelled where it runs: {error}");
                false
            })
        })
    }
}

impl Handler<Announced> for Cluster {
    type Result = ();

    fn handle(&mut self, _: Announced, ctx: &mut Self::Context) {
        if std::mem::replace(&mut self.collecting, true) {
            return;
        }
        ctx.run_later(self.cx.timing.coalesce, |act, ctx| {
            act.collecting = false;
            ctx.notify(Poll);
        });
    }
}

impl Handler<Poll> for Cluster {
    type Result = ();

    fn handle(&mut self, _: Poll, ctx: &mut Self::Context) {
        self.passes.want();
        self.pass(ctx);
    }
}

impl Handler<ReadAll> for Cluster {
    type Result = ();

    fn handle(&mut self, _: ReadAll, ctx: &mut Self::Context) {
        self.passes.want_all();
        self.pass(ctx);
        self.read_all_later(ctx);
    }
}

impl Handler<StopRenewing> for Cluster {
    type Result = ();

    fn handle(&mut self, _: StopRenewing, _: &mut Self::Context) {
        self.signing_off = true;
    }
}

impl Handler<Renew> for Cluster {
    type Result = ();

    fn handle(&mut self, _: Renew, ctx: &mut Self::Context) {
        if self.signing_off || std::mem::replace(&mut self.renewing, true) {
            return;
        }
        let id = self.cx.identity.current();
        renew(self.cx.store.clone(), id, self.cx.clock.now())
            .into_actor(self)
            .map(move |renewed, act, ctx| {
                act.renewing = false;
                act.on_renewed(id, renewed, ctx);
            })
            .spawn(ctx);
    }
}

async fn renew(store: Store, id: GatewayId, now: UtcTime) -> Result<Renewed, StoreError> {
    let asked = Instant::now();
    let store_time = store.gateway_renew(id, now).await?;
    let round_trip = asked.elapsed();
    let gateways = match store_time {
        Some(_) => store.gateway_list().await?,
        None => Vec::new(),
    };
    Ok(Renewed {
        store_time,
        round_trip,
        gateways,
    })
}

/// The catalogue: when it is read, and what follows.
impl Cluster {
    fn read_all_later(&self, ctx: &mut Context<Self>) {
        // Gateways that were started together need not read everything together.
        let jitter = rand::rng().random_range(0.9..1.1);
        ctx.notify_later(ReadAll, self.cx.timing.full_pass.mul_f64(jitter));
    }

    /// Begins a pass if one is wanted and none is under way.
    fn pass(&mut self, ctx: &mut Context<Self>) {
        let (began, now) = (Instant::now(), self.cx.clock.now());
        // What was deleted is remembered for a while only.
        if now.minus(self.cx.timing.full_pass) > self.read_until {
            self.passes.want_all();
        }
        let Some(pass) = self.passes.begin() else {
            return;
        };
        let (store, since) = (self.cx.store.clone(), self.read_until.minus(OVERLAP));
        async move {
            Ok(match pass {
                Pass::All => Read::All(store.catalogue_load(now).await?),
                Pass::Changes => Read::Changes(store.catalogue_changes(since).await?),
            })
        }
        .into_actor(self)
        .map(move |read, act, ctx| {
            let read = read.map(|read| act.on_read(read, began, now));
            act.pass_ended(read, ctx);
        })
        .spawn(ctx);
    }

    fn on_read(&mut self, read: Read, began: Instant, now: UtcTime) {
        let catalogue = self.cx.catalogue.current();
        let newer = match read {
            Read::All(all) => Some(catalogue.renewed(all)),
            Read::Changes(changes) => catalogue.with(changes),
        };
        if let Some(newer) = newer {
            self.cx.catalogue.replace(newer);
            self.follow_gateways();
        }
        self.cx.catalogue.read_began(began);
        self.read_until = now;
    }

    fn pass_ended(&mut self, read: Result<(), StoreError>, ctx: &mut Context<Self>) {
        let cause = read.as_ref().err().map(ToString::to_string);
        if let Some(cause) = &cause {
            log::warn!(error = cause.as_str(); "the catalogue could not be read, the last one stays in force");
        }
        for waiter in self.passes.ended(read.is_ok()) {
            let told = cause.clone();
            // Whoever waited may be gone.
            let _ = waiter
                .send(told.map_or(Ok(()), |cause| Err(StoreError::Unavailable(cause.into()))));
        }
        self.pass(ctx);
    }
}

/// Presence: this gateway's own, and what that of the others comes to.
impl Cluster {
    fn on_renewed(
        &mut self,
        id: GatewayId,
        renewed: Result<Renewed, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        match renewed {
            Ok(Renewed {
                store_time: Some(time),
                round_trip,
                gateways,
            }) => {
                // The embedded store has this machine's clock.
                if !self.cx.store.is_embedded() {
                    self.cx.clock.follow(time, round_trip);
                }
                self.judge(&gateways, ctx);
            }
            Ok(Renewed {
                store_time: None, ..
            }) => self.start_afresh(id, ctx),
            Err(error) => {
                self.presence.read_failed();
                log::warn!(gateway_id:% = id, error:% = error; "this gateway's presence could not be renewed");
            }
        }
    }

    /// Judges the others by their counters.
    fn judge(&mut self, gateways: &[Gateway], ctx: &mut Context<Self>) {
        let own = self.cx.identity.current();
        let others = gateways.iter().filter(|gateway| gateway.id != own);
        let counters = others.map(|gateway| (gateway.id, gateway.renewals));
        for lost in self.presence.read(counters, Instant::now()) {
            self.declare_lost(lost, ctx);
        }
        let known: HashSet<_> = self
            .cx
            .catalogue
            .current()
            .gateways()
            .map(|(id, _)| id)
            .collect();
        let there: HashSet<_> = gateways.iter().map(|gateway| gateway.id).collect();
        if known != there {
            ctx.notify(Poll);
        }
    }

    fn declare_lost(&self, Lost { gateway, renewals }: Lost, ctx: &mut Context<Self>) {
        let (store, now) = (self.cx.store.clone(), self.cx.clock.now());
        async move { store.gateway_declare_lost(gateway, renewals, now).await }
            .into_actor(self)
            .map(move |declared, act, ctx| match declared {
                Ok(Some(settled)) => {
                    log::warn!(gateway_id:% = gateway, failed = settled.failed, requeued = settled.requeued; "gateway {gateway} is lost, its sessions and jobs are settled");
                    act.peer_gone(gateway);
                    ctx.notify(Poll);
                }
                // It has renewed after all, or somebody else was faster.
                Ok(None) => ctx.notify(Poll),
                Err(error) => {
                    log::warn!(gateway_id:% = gateway, error:% = error; "gateway {gateway} could not be declared lost, the next renewal tries again");
                }
            })
            .spawn(ctx);
    }

    /// The others have taken this gateway for lost and settled what it held: whatever it holds under that id ends,
    /// and it goes on under a new one. If that cannot be registered, the next renewal finds no row and comes here
    /// again.
    fn start_afresh(&mut self, lost: GatewayId, ctx: &mut Context<Self>) {
        if self.signing_off || self.cx.identity.current() != lost {
            return;
        }
        let id = GatewayId::new();
        log::error!(gateway_id:% = lost; "this gateway was declared lost, it closes its sessions and goes on as {id}");
        self.cx.identity.assume(id);
        let row = registration(id, self.cx.advertise_url.clone(), self.cx.clock.now());
        let store = self.cx.store.clone();
        async move { store.gateway_register(row).await }
            .into_actor(self)
            .map(move |registered, _, ctx| match registered {
                Ok(()) => ctx.notify(Poll),
                Err(error) => {
                    log::warn!(gateway_id:% = id, error:% = error; "gateway {id} could not be registered, the next renewal tries again");
                }
            })
            .spawn(ctx);
    }
}

/// A gateway's row as it starts.
pub(super) fn registration(id: GatewayId, internal_url: Option<String>, now: UtcTime) -> Gateway {
    Gateway {
        id,
        renewals: 0,
        internal_url,
        started_at: now,
        seen_at: now,
    }
}
