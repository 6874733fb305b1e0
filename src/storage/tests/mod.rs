//! The contract of the store: plain async functions, each run on both back ends. A back end is what these say
//! it is, nothing more.

mod catalogue;
mod changes;
mod claims;
mod detached;
mod hosted;
mod jobs;
mod listening;
mod outages;
mod plans;
mod presence;
mod results;
mod settings;
mod submissions;
mod supersede;
mod tenants;
mod units;

use std::panic::AssertUnwindSafe;

use chrono::DateTime;
use futures_util::FutureExt;
use serde_json::json;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::NoTls;
use uuid::Uuid;

use super::*;
use crate::clock::UtcTime;
use crate::ids::*;

/// Expands each function to one test per back end.
macro_rules! contract {
    ($($property:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $property() { $crate::storage::tests::on_sqlite(super::$property); })+
        }
        mod postgres {
            $(#[test] fn $property() { $crate::storage::tests::on_postgres(super::$property); })+
        }
    };
}
use contract;

/// A store of the test's own.
pub(super) struct Fixture {
    pub(super) store: Store,
    url: String,
    runtime: Handle,
}

impl Fixture {
    async fn open(url: String) -> Self {
        let runtime = Handle::current();
        let store = Store::open(&url, &runtime).await.unwrap();
        store.migrate().await.unwrap();
        Self {
            store,
            url,
            runtime,
        }
    }

    /// The same store, as another process would open it.
    pub(super) async fn second(&self) -> Store {
        Store::open(&self.url, &self.runtime).await.unwrap()
    }
}

fn on_sqlite(property: impl AsyncFnOnce(Fixture)) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/new/store.db", folder.path().display());
    Runtime::new()
        .unwrap()
        .block_on(async { property(Fixture::open(url).await).await });
}

fn on_postgres(property: impl AsyncFnOnce(Fixture)) {
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
    let server = std::env::var("SEMILAYER_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    Runtime::new().unwrap().block_on(async {
        let (admin, driver) = tokio_postgres::connect(&server, NoTls).await.unwrap_or_else(|error| {
            panic!("these tests need PostgreSQL at {server} (SEMILAYER_TEST_POSTGRES names another): {error}")
        });
        tokio::spawn(driver);
        let name = format!("semilayer_storage_{}", Uuid::now_v7().simple());
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let mut url = url::Url::parse(&server).unwrap();
        url.set_path(&name);
        let test = async { property(Fixture::open(url.into()).await).await };
        let ended = AssertUnwindSafe(test).catch_unwind().await;
        admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A fixed time and that many seconds.
pub(super) fn at(seconds: u64) -> UtcTime {
    UtcTime::new(DateTime::from_timestamp(1_790_000_000, 123_456_000).unwrap())
        .plus(Duration::from_secs(seconds))
}

/// A tenant with one of each thing.
pub(super) struct World {
    pub(super) organisation: OrganisationId,
    pub(super) environment: EnvironmentId,
    pub(super) source: SourceId,
    pub(super) runner: RunnerId,
    pub(super) lens: LensId,
    pub(super) key: KeyId,
}

pub(super) fn key_of(organisation: OrganisationId, kind: KeyKind, text: &str) -> NewKey {
    NewKey {
        id: KeyId::new(),
        kind,
        organisation_id: organisation,
        environment_id: None,
        runner_id: None,
        role: (kind == KeyKind::Admin).then_some(Role::Owner),
        name: None,
        hash: text.to_owned(),
        display: text.chars().take(6).collect(),
        created_at: at(0),
        expires_at: None,
        changed_at: at(0),
    }
}

pub(super) fn new_source(name: &str) -> NewSource {
    NewSource {
        id: SourceId::new(),
        name: name.into(),
        bridge: "postgres".into(),
        credentials_location: StoredCredentials::Managed,
        config_sealed: Some("sealed".into()),
        timeout_ms: None,
    }
}

pub(super) fn new_runner(name: &str) -> NewRunner {
    NewRunner {
        id: RunnerId::new(),
        name: name.into(),
        deployment: Deployment::Customer,
        group_id: None,
    }
}

pub(super) fn new_lens(name: &str, source: SourceId) -> NewLens {
    NewLens {
        id: LensId::new(),
        name: name.into(),
        source_id: source,
        target: "public.people".into(),
        primary_key: json!(["id"]),
        fields: json!({"id": {"column": "id", "type": "integer"}, "a": {"column": "b"}}),
        grants: json!([]),
        relations: json!({}),
        on_runner_failure: "fail".into(),
    }
}

/// Makes a tenant of that name.
pub(super) async fn world(store: &Store, slug: &str) -> World {
    let organisation = OrganisationId::new();
    let environment = EnvironmentId::new();
    store
        .organisation_create(Organisation {
            id: organisation,
            slug: slug.into(),
            name: slug.into(),
            created_at: at(0),
        })
        .await
        .unwrap();
    store
        .environment_create(Environment {
            id: environment,
            organisation_id: organisation,
            slug: "development".into(),
            created_at: at(0),
        })
        .await
        .unwrap();
    let source = store
        .source_create(environment, new_source("main"), at(0))
        .await
        .unwrap()
        .id;
    let key = key_of(organisation, KeyKind::Runner, &format!("{slug}-runner"));
    let runner = store
        .runner_create(organisation, new_runner("one"), key, at(0))
        .await
        .unwrap()
        .id;
    let lens = store
        .lens_create(environment, new_lens("people", source), at(0))
        .await
        .unwrap()
        .id;
    let key = store
        .key_create(key_of(
            organisation,
            KeyKind::Admin,
            &format!("{slug}-admin"),
        ))
        .await
        .unwrap()
        .id;
    World {
        organisation,
        environment,
        source,
        runner,
        lens,
        key,
    }
}

/// Announces a gateway.
pub(super) async fn gateway(store: &Store) -> GatewayId {
    let id = GatewayId::new();
    let row = Gateway {
        id,
        renewals: 0,
        internal_url: None,
        started_at: at(0),
        seen_at: at(0),
    };
    store.gateway_register(row).await.unwrap();
    id
}

impl World {
    pub(super) fn job(&self) -> NewJob {
        NewJob {
            id: JobId::new(),
            organisation_id: self.organisation,
            environment_id: self.environment,
            source_id: self.source,
            lens: Some("people".into()),
            kind: "query".into(),
            attempt: 1,
            detached: false,
            retry: false,
            created_at: at(0),
            deadline_at: at(30),
            key_id: Some(self.key),
            request: None,
            routing: Some(json!({"candidates": 1})),
        }
    }

    pub(super) fn claim(&self, holder: GatewayId, job: &NewJob) -> SyncClaim {
        let placement = Placement {
            runner: self.runner,
            session: SessionId::new(),
        };
        SyncClaim {
            job: job.clone(),
            holder,
            placement: Some(placement),
        }
    }

    pub(super) fn session(&self, gateway: GatewayId) -> Session {
        Session {
            id: SessionId::new(),
            runner_id: self.runner,
            organisation_id: self.organisation,
            gateway_id: gateway,
            instance_id: Some(InstanceId::new()),
            protocol: 2,
            version: Some("0.1.0".into()),
            hostname: None,
            capabilities: json!(["cancel"]),
            labels: json!({"zone": "a"}),
            max_jobs: 64,
            remote_addr: Some("127.0.0.1".into()),
            connected_at: at(1),
            last_seen_at: at(1),
            state: SessionState::Ready,
            changed_at: at(1),
        }
    }
}

/// The end of an attempt, in that state.
pub(super) fn end(
    holder: GatewayId,
    job: &NewJob,
    status: crate::domain::job::JobStatus,
) -> Finish {
    Finish {
        id: job.id,
        attempt: job.attempt,
        holder,
        status,
        finished_at: at(2),
        error_code: None,
        error_message: None,
        row_count: Some(3),
        duration_ms: Some(12),
        routing: None,
    }
}
