//! The actors, and the one place where they are wired: [`ControlPlane::start`].
//!
//! Each is a thin shell around a plain struct; each may say only what its links allow. Nothing is looked
//! up, and data flows one way: from the dispatcher over the picker to a session, and back through the reply.

pub mod catalogue;
pub mod cluster;
pub mod credentials;
pub mod dispatcher;
pub mod error;
pub mod heartbeat;
pub mod inline;
pub mod job;
pub mod ledger;
pub mod picker;
pub mod reply;
pub mod session;
pub mod sweeper;
#[cfg(test)]
mod testing;
pub mod vital;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use ipnet::IpNet;
use tokio::time::Instant;

use self::catalogue::CatalogueWriter;
pub use self::catalogue::{Catalogue, CatalogueReader};
use self::cluster::{Cluster, RefreshCatalogue};
use self::credentials::Credentials;
use self::dispatcher::{
    CancelJob, CancelWhenAbandoned, Dispatch, Dispatcher, DispatcherLinks, LiveJobCount,
};
pub use self::error::{Delivery, JobError};
use self::heartbeat::HeartbeatMonitor;
use self::inline::{InlineContext, InlineExecutor, InlineLinks};
pub use self::job::{Job, JobSpec};
use self::ledger::{Flush, JobLedger};
pub use self::picker::RunnerLive;
use self::picker::{LiveRunners, Picker};
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
use crate::storage::{Gateway, Store, StoreError};
use crate::timing::Timing;

/// How long closing sessions get to settle what still ran there.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the ends of jobs may take to be written down before a gateway signs off without them.
const FLUSH: Duration = Duration::from_secs(5);

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
    /// Private networks that inline execution may reach on the hosted store.
    pub inline_allow: Vec<IpNet>,
    /// Whether statements of inline execution carry the job in a comment.
    pub tag_sql: bool,
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
    /// This gateway's process.
    pub gateway_id: GatewayId,
    cluster: Addr<Cluster>,
    dispatcher: Addr<Dispatcher>,
    picker: Addr<Picker>,
    ledger: Addr<JobLedger>,
    sessions: SessionContext,
    session_arbiter: ArbiterHandle,
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
            inline_allow,
            tag_sql,
            compress,
        } = config;
        // On a hosted store the gateway dials where a tenant says; on an embedded one, where its owner does.
        let may_dial = (!store.is_embedded()).then(|| -> AddressCheck {
            Arc::new(move |address| addresses::may_dial(address, &inline_allow))
        });
        let gateway_id = GatewayId::new();
        let (catalogue_writer, catalogue) =
            register(&store, gateway_id, advertise_url, &clock).await?;
        let shutdown = Shutdown::default();
        let vital = |name| Vital::new(name, &shutdown);
        let credentials = Credentials::new(sealer.clone());

        let cluster = Cluster::new(
            gateway_id,
            catalogue_writer,
            store.clone(),
            clock.clone(),
            timing.clone(),
            vital("Cluster"),
        )
        .start();
        let ledger = JobLedger::new(gateway_id, &store, clock.clone(), vital("JobLedger"))?.start();
        let picker = Picker::new(catalogue.clone(), vital("Picker")).start();
        let monitor = HeartbeatMonitor::new(
            picker.clone().recipient(),
            store.clone(),
            clock.clone(),
            timing.clone(),
            vital("HeartbeatMonitor"),
        )
        .start();
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
                    record_unplaced: ledger.clone().recipient(),
                    settled: dispatcher.clone().recipient(),
                },
                bridges: Bridges::new(BridgeOptions {
                    tag_sql,
                    may_dial,
                    ..BridgeOptions::default()
                }),
                runtime,
                catalogue: catalogue.clone(),
                credentials: credentials.clone(),
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
            clock.clone(),
            vital("Dispatcher"),
        ));

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
            },
            store: store.clone(),
            catalogue: catalogue.clone(),
            credentials,
            gateway_id,
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
            gateway_id,
            cluster,
            dispatcher,
            picker,
            ledger,
            sessions,
            session_arbiter,
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

    /// Has a job executed; everything that becomes of it comes through the stream. Dropping the stream
    /// cancels the job.
    pub fn dispatch(&self, spec: JobSpec) -> ReplyStream {
        let id = JobId::new();
        let abandonment = CancelWhenAbandoned(self.dispatcher.clone().recipient());
        let (reply, stream) = reply_channel(id, Box::new(abandonment));
        let timeout = self.timeout(&spec);
        let created_at = self.clock.now();
        let job = Arc::new(Job {
            id,
            spec,
            only_session: None,
            created_at,
            deadline: Instant::now() + timeout,
            deadline_at: created_at.plus(timeout),
            reply,
        });
        if self
            .dispatcher
            .try_send(Dispatch { job: job.clone() })
            .is_err()
        {
            job.reply.end(Err(JobError::RunnersBusy {
                retry_after: Duration::from_secs(1),
            }));
        }
        stream
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

    /// What is connected at this moment, by runner.
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

    /// Lets runners go elsewhere and running jobs finish, closes what is left, and signs off once the ends of
    /// all of them are written down: what has none by then counts as lost with this gateway.
    pub async fn drain(&self) {
        self.shutdown.advance(Stage::Draining);
        self.settle_within(self.timing.drain).await;
        self.shutdown.advance(Stage::Closing);
        self.settle_within(SETTLE).await;
        let flushed = tokio::time::timeout(FLUSH, self.ledger.send(Flush)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            log::warn!("the ends of some jobs could not be recorded, they will count as failed");
        }
        if let Err(error) = self
            .store
            .gateway_leave(self.gateway_id, self.clock.now())
            .await
        {
            log::warn!(error:% = error; "this gateway could not sign off, the others will notice");
        }
    }

    /// Waits until no job is under way, for that long at most.
    async fn settle_within(&self, time: Duration) {
        let until = Instant::now() + time;
        while self.live_jobs().await > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Makes this gateway known, and reads the first catalogue.
async fn register(
    store: &Store,
    id: GatewayId,
    advertise_url: Option<String>,
    clock: &Clock,
) -> Result<(CatalogueWriter, CatalogueReader), StoreError> {
    let now = clock.now();
    let gateway = Gateway {
        id,
        renewals: 0,
        internal_url: advertise_url,
        started_at: now,
        seen_at: now,
    };
    store.gateway_register(gateway).await?;
    if store.is_embedded() {
        // One gateway per file: whoever was here before is gone, and its jobs are settled.
        store.gateway_take_over(id, now).await?;
    }
    store.bootstrap(now).await?;
    let first = Catalogue::new(store.catalogue_load(now).await?);
    Ok(CatalogueWriter::new(first))
}

#[cfg(test)]
mod tests;
