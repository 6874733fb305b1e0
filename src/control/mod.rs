//! The actors, and the one place where they are wired: [`ControlPlane::start`].
//!
//! Each is a thin shell around a plain struct; each may say only what its links allow. Nothing is looked
//! up, and data flows one way: from the dispatcher over the picker to a session, and back through the reply.

pub mod catalogue;
pub mod cluster;
pub mod credentials;
pub mod detached;
pub mod dispatcher;
pub mod drain;
pub mod error;
mod forwarded;
pub mod heartbeat;
pub mod identity;
pub mod inline;
pub mod job;
pub mod ledger;
pub mod peer;
pub mod picker;
pub mod registrar;
pub mod reply;
pub mod session;
pub mod sweeper;
#[cfg(test)]
mod testing;
pub mod vital;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::catalogue::CatalogueWriter;
pub use self::catalogue::{Catalogue, CatalogueReader};
use self::cluster::{Cluster, ClusterContext, RefreshCatalogue, StopRenewing, registration};
use self::credentials::Credentials;
pub use self::detached::{Accepted, KeptResult, Submission};
use self::detached::{DetachedContext, DetachedJobs, DetachedLinks, ExecutingCount, LookForJobs};
use self::dispatcher::{
    CancelJob, CancelWhenAbandoned, Dispatch, Dispatcher, DispatcherLinks, EndHeld, LiveJobCount,
};
use self::drain::{BeginDrain, Drainer, SessionsHere};
pub use self::error::{Delivery, JobError};
use self::heartbeat::HeartbeatMonitor;
use self::identity::GatewayIdentity;
use self::inline::{InlineContext, InlineExecutor, InlineLinks};
pub use self::job::{Job, JobSpec};
use self::ledger::{Flush, JobLedger};
pub use self::peer::PeerTokens;
use self::peer::{PeerClient, PeerContext, PeerLinks};
pub use self::picker::RunnerLive;
use self::picker::{LiveRunners, Picker, PickerContext};
use self::registrar::Registrar;
use self::reply::reply_channel;
pub use self::reply::{Finished, Reply, ReplyStream};
use self::session::{
    CancelCause, Identity, RunnerSession, SessionContext, SessionLinks, SocketLink,
};
use self::sweeper::ClaimSweeper;
use self::vital::{Shutdown, Stage, Vital};
use crate::bridge::{AddressCheck, BridgeOptions, Bridges};
use crate::clock::Clock;
use crate::domain::addresses;
use crate::domain::sealing::Sealer;
use crate::ids::{GatewayId, JobId, RunnerId};
use crate::storage::{self, Store, StoreError};
use crate::timing::Timing;

/// How long a gateway that stops asks for others.
const ASK_FOR_PEERS: Duration = Duration::from_secs(2);
/// How long closing sessions get to settle what still ran there.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the ends of jobs may take to be written down before a gateway signs off without them.
const FLUSH: Duration = Duration::from_secs(5);

/// How many kept results are in memory at once to be shown. Each may be large, and is there several times while
/// it is opened and written.
const RESULTS_AT_ONCE: usize = 4;

/// What a control plane is started from.
pub struct ControlConfig {
    /// The store, migrated.
    pub store: Store,
    /// The one multi-thread runtime: store and bridges live on it.
    pub runtime: tokio::runtime::Handle,
    /// Seals and opens credentials.
    pub sealer: Arc<Sealer>,
    /// The time.
    pub clock: Clock,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// Where peers reach this gateway.
    pub advertise_url: Option<String>,
    /// Whether sessions of this gateway get jobs before those of others.
    pub prefer_local: bool,
    /// Private networks that inline execution may reach on the hosted store.
    pub inline_allow: Vec<IpNet>,
    /// Whether statements of inline execution carry the job in a comment.
    pub tag_sql: bool,
    /// A file with authorities that count for databases beside the machine's.
    pub ca_file: Option<PathBuf>,
    /// Whether runners are asked to compress rows.
    pub compress: bool,
}

/// The running control plane, as the web layer uses it. Clones share it.
#[derive(Clone)]
pub struct ControlPlane {
    /// The store, for administration; the hot path does not use it.
    pub store: Store,
    /// What can be queried, by whom, and who serves it.
    pub catalogue: CatalogueReader,
    /// Seals credentials that arrive.
    pub sealer: Arc<Sealer>,
    /// The time.
    pub clock: Clock,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// By what gateways know each other.
    pub peer_tokens: PeerTokens,
    identity: GatewayIdentity,
    cluster: Addr<Cluster>,
    dispatcher: Addr<Dispatcher>,
    picker: Addr<Picker>,
    ledger: Addr<JobLedger>,
    drainer: Addr<Drainer>,
    detached: Addr<DetachedJobs>,
    sessions: SessionContext,
    session_arbiter: ArbiterHandle,
    results: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl ControlPlane {
    /// Registers this gateway and starts every actor; the only place that knows who talks to whom.
    ///
    /// To be called on a thread of the running actix system.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn start(config: ControlConfig) -> Result<Self, StoreError> {
        let ControlConfig {
            store,
            runtime,
            sealer,
            clock,
            timing,
            advertise_url,
            prefer_local,
            inline_allow,
            tag_sql,
            ca_file,
            compress,
        } = config;
        // On a hosted store the gateway dials where a tenant says; on an embedded one, where its owner does.
        let may_dial = (!store.is_embedded()).then(|| -> AddressCheck {
            Arc::new(move |address| addresses::may_dial(address, &inline_allow))
        });
        let peer_tokens = PeerTokens::new(&sealer);
        let client = PeerClient::new(peer_tokens.clone())
            .map_err(|error| StoreError::Internal(error.into()))?;
        let gateway_id = GatewayId::new();
        let identity = GatewayIdentity::new(gateway_id);
        register(&store, gateway_id, advertise_url.clone(), &clock).await?;
        let read_at = clock.now();
        let first = Catalogue::new(store.catalogue_load(read_at).await?);
        let (catalogue_writer, catalogue) = CatalogueWriter::new(first);
        let shutdown = Shutdown::default();
        let vital = |name| Vital::new(name, &shutdown);
        let credentials = Credentials::new(sealer.clone());

        let ledger =
            JobLedger::new(identity.clone(), &store, clock.clone(), vital("JobLedger"))?.start();
        let registrar = Registrar::new(
            store.clone(),
            clock.clone(),
            catalogue.clone(),
            identity.clone(),
            vital("Registrar"),
        )
        .start();
        let picker = Picker::new(
            PickerContext {
                catalogue: catalogue.clone(),
                identity: identity.clone(),
                stands: registrar.clone().recipient(),
                prefer_local,
                moving_grace: timing.moving_grace,
            },
            vital("Picker"),
        )
        .start();
        let monitor = HeartbeatMonitor::new(
            picker.clone().recipient(),
            store.clone(),
            clock.clone(),
            timing.clone(),
            vital("HeartbeatMonitor"),
        )
        .start();
        let drainer = Drainer::new(picker.clone().recipient(), vital("Drainer")).start();
        ClaimSweeper::new(
            store.clone(),
            clock.clone(),
            timing.clone(),
            vital("ClaimSweeper"),
        )
        .start();

        // The dispatcher and those who execute for it know each other: its address comes first.
        let dispatcher_context = Context::new();
        let dispatcher = dispatcher_context.address();
        let inline = InlineExecutor::new(
            InlineContext {
                links: InlineLinks {
                    claim: ledger.clone().recipient(),
                    finish: ledger.clone().recipient(),
                    full: dispatcher.clone().recipient(),
                    settled: dispatcher.clone().recipient(),
                },
                bridges: Bridges::new(BridgeOptions {
                    tag_sql,
                    ca_file,
                    may_dial,
                    ..BridgeOptions::default()
                }),
                runtime: runtime.clone(),
                catalogue: catalogue.clone(),
                credentials: credentials.clone(),
                identity: identity.clone(),
                clock: clock.clone(),
            },
            vital("InlineExecutor"),
        )
        .start();
        dispatcher_context.run(Dispatcher::new(
            DispatcherLinks {
                place: picker.clone().recipient(),
                inline: inline.clone().recipient(),
                cancel_inline: inline.recipient(),
                record_unplaced: ledger.clone().recipient(),
            },
            catalogue.clone(),
            timing.clone(),
            clock.clone(),
            vital("Dispatcher"),
        ));

        let detached = DetachedJobs::new(
            DetachedContext {
                links: DetachedLinks {
                    dispatch: dispatcher.clone().recipient(),
                    cancel: dispatcher.clone().recipient(),
                    outlooks: picker.clone().recipient(),
                },
                store: store.clone(),
                catalogue: catalogue.clone(),
                sealer: sealer.clone(),
                runtime: runtime.clone(),
                identity: identity.clone(),
                clock: clock.clone(),
                timing: timing.clone(),
                shutdown: shutdown.clone(),
            },
            vital("DetachedJobs"),
        )
        .start();
        let cluster = Cluster::new(
            ClusterContext {
                identity: identity.clone(),
                advertise_url,
                catalogue: catalogue_writer,
                read_at,
                store: store.clone(),
                runtime: runtime.clone(),
                peer_changed: picker.clone().recipient(),
                peers: PeerContext {
                    links: PeerLinks {
                        returned: dispatcher.clone().recipient(),
                        settled: dispatcher.clone().recipient(),
                        supersede: ledger.clone().recipient(),
                        record_unplaced: ledger.clone().recipient(),
                        said: picker.clone().recipient(),
                    },
                    client,
                    runtime,
                    clock: clock.clone(),
                },
                clock: clock.clone(),
                timing: timing.clone(),
            },
            vital("Cluster"),
        )
        .start();

        let sessions = SessionContext {
            links: SessionLinks {
                claim: ledger.clone().recipient(),
                finish: ledger.clone().recipient(),
                requeue: ledger.clone().recipient(),
                returned: dispatcher.clone().recipient(),
                settled: dispatcher.clone().recipient(),
                changed: picker.clone().recipient(),
                watched: monitor.clone().recipient(),
                seen: monitor.clone().recipient(),
                unwatched: monitor.recipient(),
                remove: registrar.recipient(),
                presence: drainer.clone().recipient(),
            },
            store: store.clone(),
            catalogue: catalogue.clone(),
            credentials,
            identity: identity.clone(),
            timing: timing.clone(),
            clock: clock.clone(),
            compress,
            shutdown: shutdown.clone(),
        };
        let session_arbiter = Arbiter::new().handle();
        log::info!(gateway_id:% = gateway_id; "gateway {gateway_id} started");
        Ok(Self {
            store,
            catalogue,
            sealer,
            clock,
            timing,
            peer_tokens,
            identity,
            cluster,
            dispatcher,
            picker,
            ledger,
            drainer,
            detached,
            sessions,
            session_arbiter,
            results: Arc::new(Semaphore::new(RESULTS_AT_ONCE)),
            shutdown,
        })
    }

    /// Puts what was just written into force on this gateway; answers once it is.
    ///
    /// # Errors
    ///
    /// When the store does not answer; the change is written and will be in force with the next poll.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        self.cluster
            .send(RefreshCatalogue)
            .await
            .unwrap_or_else(|closed| Err(StoreError::Unavailable(closed.into())))
    }

    /// The id under which this gateway is known at the moment.
    pub fn gateway_id(&self) -> GatewayId {
        self.identity.current()
    }

    /// Whether the catalogue is so old that no key in it can be believed.
    pub fn is_stale(&self) -> bool {
        self.catalogue.age() > self.timing.key_freshness
    }

    /// Has a job executed; everything that becomes of it comes through the stream. Dropping the stream
    /// cancels the job.
    pub fn dispatch(&self, spec: JobSpec) -> ReplyStream {
        let id = JobId::new();
        let (reply, stream) = self.reply_channel(id);
        let timeout = self.timeout(&spec);
        let created_at = self.clock.now();
        let job = Arc::new(Job {
            id,
            spec,
            only_session: None,
            detached: None,
            created_at,
            deadline: Instant::now() + timeout,
            deadline_at: created_at.plus(timeout),
            reply,
        });
        let dispatch = Dispatch {
            job: job.clone(),
            attempt: 1,
        };
        if self.dispatcher.try_send(dispatch).is_err() {
            job.reply.end(Err(JobError::RunnersBusy {
                retry_after: Duration::from_secs(1),
            }));
        }
        stream
    }

    /// Records a job that nobody waits for; whichever gateway comes to it first executes it.
    ///
    /// # Errors
    ///
    /// When the store does not answer; the job may be recorded then, if the connection was lost in a commit.
    pub async fn submit(&self, submission: Submission) -> Result<Accepted, StoreError> {
        let now = self.clock.now();
        let accepted = detached::submit(&self.store, &self.timing, now, submission).await?;
        if let Accepted::New(_) = accepted {
            // One that finds no room is found by the next look.
            let _ = self.detached.try_send(LookForJobs);
        }
        Ok(accepted)
    }

    /// What a detached job answered, while it is kept; with the permit to have it in memory, to be held until it
    /// is written. Waits for one if others are read.
    ///
    /// # Errors
    ///
    /// When the store does not answer, or what it holds cannot be opened.
    pub async fn kept_result(
        &self,
        job: &storage::Job,
    ) -> Result<Option<(KeptResult, OwnedSemaphorePermit)>, StoreError> {
        let waiting = self.results.clone().acquire_owned();
        let permit = waiting
            .await
            .map_err(|closed| StoreError::Internal(closed.into()))?;
        let (id, now) = (job.id, self.clock.now());
        let kept = self.store.job_result_get(job.organisation_id, id, now);
        let Some(kept) = kept.await? else {
            return Ok(None);
        };
        let sealer = self.sealer.clone();
        let opened =
            tokio::task::spawn_blocking(move || KeptResult::open(&sealer, id, &kept.sealed)).await;
        match opened {
            Ok(Ok(result)) => Ok(Some((result, permit))),
            Ok(Err(error)) => Err(StoreError::Corrupt(error.into())),
            Err(error) => Err(StoreError::Internal(error.into())),
        }
    }

    fn reply_channel(&self, id: JobId) -> (reply::ReplySender, ReplyStream) {
        let abandonment = CancelWhenAbandoned(self.dispatcher.clone().recipient());
        reply_channel(id, Box::new(abandonment))
    }

    /// The request's own timeout, else the source's, else the default; never above the maximum.
    fn timeout(&self, spec: &JobSpec) -> Duration {
        let of_source = || {
            let catalogue = self.catalogue.current();
            let ms = catalogue.source(spec.source_id)?.timeout_ms?;
            u64::try_from(ms).ok().map(Duration::from_millis)
        };
        spec.timeout
            .or_else(of_source)
            .unwrap_or(self.timing.default_deadline)
            .min(self.timing.max_deadline)
    }

    /// Ends a job early; answers whether it was under way on this gateway.
    pub async fn cancel(&self, job_id: JobId) -> bool {
        let cancel = CancelJob {
            job_id,
            cause: CancelCause::Requested,
        };
        self.dispatcher.send(cancel).await.unwrap_or(false)
    }

    /// How many jobs are under way on this gateway.
    pub async fn live_jobs(&self) -> usize {
        self.dispatcher.send(LiveJobCount).await.unwrap_or(0)
    }

    /// What is connected at this moment to the whole cluster, by runner.
    pub async fn live_runners(&self) -> HashMap<RunnerId, RunnerLive> {
        self.picker.send(LiveRunners).await.unwrap_or_default()
    }

    /// Starts the session of a socket that has just been opened.
    pub fn open_session(&self, identity: Identity, socket: SocketLink) -> Addr<RunnerSession> {
        let session = RunnerSession::new(identity, socket, self.sessions.clone());
        RunnerSession::start_in_arbiter(&self.session_arbiter, |_| session)
    }

    /// Whether this gateway is on its way out.
    pub fn is_stopping(&self) -> bool {
        self.shutdown.has_begun()
    }

    /// Lets runners go elsewhere and running jobs finish, then closes as [`Self::close`] does.
    ///
    /// Where there can be other gateways, requests are served for a while even if nothing is left to do, so that
    /// load balancers turn away before this gateway is gone.
    pub async fn drain(&self) {
        let begun = Instant::now();
        let peers = self.peers().await;
        self.shutdown.advance(Stage::Draining);
        let serve_on = if self.store.is_embedded() {
            Duration::ZERO
        } else {
            self.timing.serve_on
        };
        if peers == Peers::Some {
            self.drainer.do_send(BeginDrain {
                sole_sessions_at: begun + serve_on / 2,
            });
        }
        tokio::time::sleep_until(begun + serve_on).await;
        self.settled_by(begun + self.timing.drain.max(serve_on), peers)
            .await;
        self.close().await;
    }

    /// Closes what is left, and signs off once the ends of all jobs are written down: what has none by then
    /// counts as lost with this gateway.
    pub async fn close(&self) {
        self.shutdown.advance(Stage::Closing);
        self.dispatcher.do_send(EndHeld);
        self.settled_by(Instant::now() + SETTLE, Peers::None).await;
        self.record_within(FLUSH).await;
        let flushed = tokio::time::timeout(FLUSH, self.ledger.send(Flush)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            log::warn!("the ends of some jobs could not be recorded, they will count as failed");
        }
        // A renewal that finds no row would take this gateway for one that was declared lost.
        let _ = self.cluster.send(StopRenewing).await;
        let leave = self
            .store
            .gateway_leave(self.gateway_id(), self.clock.now());
        match tokio::time::timeout(FLUSH, leave).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                log::warn!(error:% = error; "this gateway could not sign off, the others will notice");
            }
            Err(_) => log::warn!("this gateway could not sign off in time, the others will notice"),
        }
    }

    /// Waits until everything about detached jobs is written down, for that long at most. What is not by then
    /// is given back by whoever settles what this gateway held.
    async fn record_within(&self, time: Duration) {
        let until = Instant::now() + time;
        while self.detached.send(ExecutingCount).await.unwrap_or(0) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no job is under way, nor a runner that has somewhere else to go; not beyond `until`.
    async fn settled_by(&self, until: Instant, peers: Peers) {
        while Instant::now() < until {
            let runners = match peers {
                Peers::Some => self.drainer.send(SessionsHere).await.unwrap_or(0),
                Peers::None => 0,
            };
            if runners == 0 && self.live_jobs().await == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether runners have somewhere else to go. A store that does not answer is no reason to keep them.
    async fn peers(&self) -> Peers {
        if self.store.is_embedded() {
            return Peers::None;
        }
        let asked = tokio::time::timeout(ASK_FOR_PEERS, self.store.gateway_list()).await;
        match asked {
            Ok(Ok(gateways)) if gateways.iter().all(|other| other.id == self.gateway_id()) => {
                Peers::None
            }
            _ => Peers::Some,
        }
    }
}

/// Whether there are other gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peers {
    None,
    Some,
}

/// Makes this gateway known, and learns the store's time: whatever is written or read from now on goes by it.
async fn register(
    store: &Store,
    id: GatewayId,
    advertise_url: Option<String>,
    clock: &Clock,
) -> Result<(), StoreError> {
    let row = registration(id, advertise_url, clock.now());
    store.gateway_register(row).await?;
    if !store.is_embedded() {
        let asked = Instant::now();
        if let Some(time) = store.gateway_renew(id, clock.now()).await? {
            clock.follow(time, asked.elapsed());
        }
    }
    let now = clock.now();
    if store.is_embedded() {
        // One gateway per file: whoever was here before is gone, and its jobs are settled.
        store.gateway_take_over(id, now).await?;
    }
    store.bootstrap(now).await
}

#[cfg(test)]
mod tests;
