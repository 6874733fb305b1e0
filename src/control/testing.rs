//! What the actors' tests share: probes in place of the actors around one, a real store in a file, and
//! waiting for a condition. Time is tokio's, paused, and moves on when nobody has anything to do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::dev::{MessageResponse, ToEnvelope};
use actix::prelude::*;
use serde_json::json;

use super::catalogue::{Catalogue, CatalogueReader, CatalogueWriter};
use super::job::{Held, Job, JobSpec};
use super::peer::{PeerClient, PeerTokens};
use super::reply::{Abandonment, ReplyStream, reply_channel};
use crate::clock::Clock;
use crate::domain::sealing::Sealer;
use crate::ids::{GatewayId, JobId, KeyId, LensId, OrganisationId, RunnerId, SessionId, SourceId};
use crate::protocol::Encoding;
use crate::query::operation::{Kind, Operation};
use crate::storage::{
    Deployment, Environment, Gateway, KeyKind, NewKey, NewLens, NewRunner, NewSource, Session,
    SessionState, Store, StoredCredentials,
};

/// Everything that a probe was told, in order.
#[derive(Debug)]
pub(super) struct Heard<M>(Arc<Mutex<Vec<M>>>);

impl<M> Heard<M> {
    /// Takes what was heard so far.
    pub(super) fn take(&self) -> Vec<M> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// How much was heard and not taken.
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub(super) struct Probe<M: Message, F> {
    heard: Arc<Mutex<Vec<M>>>,
    answer: F,
}

impl<M, F> Actor for Probe<M, F>
where
    M: Message + Unpin + 'static,
    F: Unpin + 'static,
{
    type Context = Context<Self>;
}

impl<M, F> Handler<M> for Probe<M, F>
where
    M: Message + Unpin + 'static,
    M::Result: MessageResponse<Self, M>,
    F: FnMut(&M) -> M::Result + Unpin + 'static,
{
    type Result = M::Result;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> M::Result {
        let answer = (self.answer)(&message);
        self.heard.lock().unwrap().push(message);
        answer
    }
}

/// An actor that notes what it is told and answers as the closure says.
pub(super) fn probe<M, F>(answer: F) -> (Recipient<M>, Heard<M>)
where
    M: Message + Send + Unpin + 'static,
    M::Result: Send + MessageResponse<Probe<M, F>, M>,
    F: FnMut(&M) -> M::Result + Unpin + 'static,
    Context<Probe<M, F>>: ToEnvelope<Probe<M, F>, M>,
{
    let heard = Arc::new(Mutex::new(Vec::new()));
    let address = Probe {
        heard: heard.clone(),
        answer,
    }
    .start();
    (address.recipient(), Heard(heard))
}

/// A client for peers that a test plays.
pub(super) fn peer_client() -> PeerClient {
    // A second call finds the same provider in place, which is what it wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    PeerClient::new(PeerTokens::new(&Sealer::for_tests())).unwrap()
}

/// Waits until the condition holds, in virtual time.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

/// A store with one organisation, one source, one lens and one runner that serves the source.
pub(super) struct World {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) writer: CatalogueWriter,
    pub(super) catalogue: CatalogueReader,
    pub(super) gateway: GatewayId,
    pub(super) environment: Environment,
    pub(super) source: SourceId,
    pub(super) runner: RunnerId,
    pub(super) key: KeyId,
    _files: tempfile::TempDir,
}

impl World {
    pub(super) async fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", files.path().join("store.db").display());
        let store = Store::open(&url, &tokio::runtime::Handle::current())
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let clock = Clock::system();
        let now = clock.now();
        let gateway = GatewayId::new();
        let row = Gateway {
            id: gateway,
            renewals: 0,
            internal_url: None,
            started_at: now,
            seen_at: now,
        };
        store.gateway_register(row).await.unwrap();
        store.bootstrap(now).await.unwrap();
        let environment = store
            .catalogue_load(now)
            .await
            .unwrap()
            .environments
            .remove(0);
        let (source, runner, key) = populate(&store, &environment, &clock).await;
        let (writer, catalogue) =
            CatalogueWriter::new(Catalogue::new(store.catalogue_load(now).await.unwrap()));
        Self {
            store,
            clock,
            writer,
            catalogue,
            gateway,
            environment,
            source,
            runner,
            key,
            _files: files,
        }
    }

    /// Puts what the store holds now into force.
    pub(super) async fn refresh(&self) {
        self.writer.replace(Catalogue::new(
            self.store.catalogue_load(self.clock.now()).await.unwrap(),
        ));
    }

    /// A job on the world's source, and the caller's end of its reply.
    pub(super) fn job(&self, timeout: Duration) -> (Arc<Job>, ReplyStream) {
        self.job_with(timeout, |_| ())
    }

    /// The same, with something else asked for.
    pub(super) fn job_with(
        &self,
        timeout: Duration,
        adapt: impl FnOnce(&mut JobSpec),
    ) -> (Arc<Job>, ReplyStream) {
        struct Nobody;
        impl Abandonment for Nobody {
            fn abandoned(&self, _: JobId) {}
        }
        let id = JobId::new();
        let (reply, stream) = reply_channel(id, Box::new(Nobody));
        let now = self.clock.now();
        let mut spec = JobSpec {
            organisation_id: self.environment.organisation_id,
            environment_id: self.environment.id,
            source_id: self.source,
            lens: None,
            key_id: None,
            operation: Operation {
                kind: Kind::Query,
                target: Some("t".into()),
                options: serde_json::Map::new(),
            },
            encoding: Encoding::Json,
            fields: None,
            paging: Default::default(),
            types: Default::default(),
            timeout: Some(timeout),
            only_runner: None,
            wait: std::time::Duration::ZERO,
            retry: false,
        };
        adapt(&mut spec);
        let deadline = tokio::time::Instant::now() + timeout;
        (
            Arc::new(Job {
                id,
                spec,
                only_session: None,
                detached: None,
                created_at: now,
                deadline,
                deadline_at: now.plus(timeout),
                reply,
            }),
            stream,
        )
    }

    /// One that is held under that claim.
    pub(super) fn detached_job(&self, timeout: Duration, held: Held) -> (Arc<Job>, ReplyStream) {
        let (job, stream) = self.job(timeout);
        // Nobody else has it yet.
        let mut job = Arc::into_inner(job).unwrap();
        job.detached = Some(held);
        (Arc::new(job), stream)
    }

    /// The same from another gateway, which has chosen the session, if there is one.
    pub(super) fn job_for(
        &self,
        timeout: Duration,
        only_session: Option<SessionId>,
    ) -> (Arc<Job>, ReplyStream) {
        let (job, stream) = self.job(timeout);
        // Nobody else has it yet.
        let mut job = Arc::into_inner(job).unwrap();
        job.only_session = only_session;
        (Arc::new(job), stream)
    }

    /// A session of the world's runner on that gateway, as it is written down.
    pub(super) fn session_row(&self, gateway_id: GatewayId) -> Session {
        let now = self.clock.now();
        Session {
            id: SessionId::new(),
            runner_id: self.runner,
            organisation_id: self.organisation(),
            gateway_id,
            instance_id: None,
            protocol: 2,
            version: Some("9.9".into()),
            hostname: None,
            capabilities: json!(["@semilayer/bridge-sqlite", "postgres"]),
            labels: json!([]),
            max_jobs: 4,
            remote_addr: None,
            connected_at: now,
            last_seen_at: now,
            state: SessionState::Ready,
            changed_at: now,
        }
    }

    /// The same, written down.
    pub(super) async fn session_on(&self, gateway_id: GatewayId) -> SessionId {
        let row = self.session_row(gateway_id);
        self.store.session_open(row.clone()).await.unwrap();
        row.id
    }

    pub(super) fn organisation(&self) -> OrganisationId {
        self.environment.organisation_id
    }
}

async fn populate(
    store: &Store,
    environment: &Environment,
    clock: &Clock,
) -> (SourceId, RunnerId, KeyId) {
    let now = clock.now();
    let (source, runner, key) = (SourceId::new(), RunnerId::new(), KeyId::new());
    let organisation = environment.organisation_id;
    let new_source = NewSource {
        id: source,
        name: "db".into(),
        bridge: "sqlite".into(),
        credentials_location: StoredCredentials::RunnerLocal,
        config_sealed: None,
        timeout_ms: None,
    };
    store
        .source_create(environment.id, new_source, now)
        .await
        .unwrap();
    let new_key = NewKey {
        id: key,
        kind: KeyKind::Runner,
        organisation_id: organisation,
        environment_id: None,
        runner_id: Some(runner),
        role: None,
        name: None,
        hash: "00".repeat(32),
        display: "rk_x".into(),
        created_at: now,
        expires_at: None,
        changed_at: now,
    };
    let new_runner = NewRunner {
        id: runner,
        name: "primary".into(),
        deployment: Deployment::Customer,
        group_id: None,
    };
    store
        .runner_create(organisation, new_runner, new_key, now)
        .await
        .unwrap();
    store
        .assignment_add(organisation, runner, source, now)
        .await
        .unwrap();
    let lens = NewLens {
        id: LensId::new(),
        name: "things".into(),
        source_id: source,
        target: "t".into(),
        primary_key: json!("id"),
        fields: json!({"id": {"type": "number"}}),
        grants: json!({}),
        relations: json!({}),
        on_runner_failure: "fail".into(),
    };
    store.lens_create(environment.id, lens, now).await.unwrap();
    (source, runner, key)
}
