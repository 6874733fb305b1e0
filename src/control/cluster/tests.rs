//! Presence and the catalogue over a real store: who is declared lost, and how a lost gateway goes on.

use super::*;
use crate::control::catalogue::{Catalogue, CatalogueReader};
use crate::control::ledger::{RecordUnplaced, SupersedeJob};
use crate::control::peer::PeerLinks;
use crate::control::picker::PeerSaid;
use crate::control::testing::{Heard, World, eventually, peer_client, probe};
use crate::control::vital::{Shutdown, Stage};
use crate::storage::NewLens;

struct Rig {
    world: World,
    cluster: Addr<Cluster>,
    catalogue: CatalogueReader,
    identity: GatewayIdentity,
    peers: Heard<PeerChanged>,
}

impl Rig {
    async fn new() -> Self {
        tokio::time::pause();
        let world = World::new().await;
        let now = world.clock.now();
        let all = world.store.catalogue_load(now).await.unwrap();
        let (writer, catalogue) = CatalogueWriter::new(Catalogue::new(all));
        let identity = GatewayIdentity::new(world.gateway);
        let (peer_changed, peers) = probe::<PeerChanged, _>(|_| ());
        let cx = ClusterContext {
            identity: identity.clone(),
            advertise_url: Some("http://here".into()),
            catalogue: writer,
            read_at: now,
            store: world.store.clone(),
            runtime: tokio::runtime::Handle::current(),
            peer_changed,
            peers: PeerContext {
                links: PeerLinks {
                    returned: probe(|_: &crate::control::dispatcher::JobReturned| ()).0,
                    settled: probe(|_: &crate::control::dispatcher::JobSettled| ()).0,
                    supersede: probe(|_: &SupersedeJob| Ok(false)).0,
                    record_unplaced: probe(|_: &RecordUnplaced| ()).0,
                    said: probe(|_: &PeerSaid| ()).0,
                },
                client: peer_client(),
                runtime: tokio::runtime::Handle::current(),
                clock: world.clock.clone(),
            },
            clock: world.clock.clone(),
            timing: Timing::default(),
        };
        // The probes of a test may stop in any order.
        let shutdown = Shutdown::default();
        shutdown.advance(Stage::Draining);
        let cluster = Cluster::new(cx, Vital::new("Cluster", &shutdown)).start();
        Self {
            world,
            cluster,
            catalogue,
            identity,
            peers,
        }
    }

    async fn another_gateway(&self) -> GatewayId {
        let id = GatewayId::new();
        let row = registration(id, Some("http://there".into()), self.world.clock.now());
        self.world.store.gateway_register(row).await.unwrap();
        id
    }

    async fn gateways(&self) -> Vec<GatewayId> {
        let rows = self.world.store.gateway_list().await.unwrap();
        rows.into_iter().map(|row| row.id).collect()
    }

    async fn seconds(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

#[actix::test]
async fn a_gateway_whose_counter_stands_still_for_a_lease_is_declared_lost() {
    let rig = Rig::new().await;
    let (silent, living) = (rig.another_gateway().await, rig.another_gateway().await);
    let session = rig.world.session_on(silent).await;
    for _ in 0..2 {
        rig.seconds(5).await;
        rig.world
            .store
            .gateway_renew(living, rig.world.clock.now())
            .await
            .unwrap();
    }
    eventually("both are known", || {
        rig.catalogue.current().gateways().count() == 3
    })
    .await;
    assert_eq!(rig.peers.take().len(), 2);
    assert!(rig.gateways().await.contains(&silent), "within its lease");
    for _ in 0..2 {
        rig.seconds(5).await;
        rig.world
            .store
            .gateway_renew(living, rig.world.clock.now())
            .await
            .unwrap();
    }
    eventually("it is gone", || {
        rig.catalogue.current().gateways().count() == 2
    })
    .await;
    let left = rig.gateways().await;
    assert!(left.contains(&living) && !left.contains(&silent));
    assert!(
        rig.catalogue
            .current()
            .sessions()
            .all(|known| known.id != session)
    );
    let told = rig.peers.take();
    assert!(
        told.iter()
            .any(|told| matches!(told, PeerChanged::Down { gateway_id } if *gateway_id == silent)),
        "the picker and the link know"
    );
}

#[actix::test]
async fn a_gateway_that_was_declared_lost_goes_on_under_a_new_id() {
    let rig = Rig::new().await;
    let before = rig.identity.current();
    rig.seconds(6).await;
    assert_eq!(rig.identity.current(), before);
    let row = rig.world.store.gateway_list().await.unwrap().remove(0);
    rig.world
        .store
        .gateway_declare_lost(before, row.renewals, rig.world.clock.now())
        .await
        .unwrap()
        .unwrap();
    eventually("it goes on", || rig.identity.current() != before).await;
    rig.seconds(1).await;
    let after = rig.identity.current();
    assert_eq!(rig.gateways().await, [after]);
    rig.seconds(30).await;
    assert_eq!(rig.identity.current(), after, "and stays who it is");
    assert_eq!(rig.gateways().await, [after]);
    assert_eq!(rig.peers.len(), 0, "it is no peer of itself");
}

#[actix::test]
async fn a_change_is_in_force_once_it_is_confirmed_and_soon_after_it_is_announced() {
    let rig = Rig::new().await;
    let lens = |name: &str| NewLens {
        id: crate::ids::LensId::new(),
        name: name.into(),
        source_id: rig.world.source,
        target: "t".into(),
        primary_key: serde_json::json!("id"),
        fields: serde_json::json!({"id": {"type": "number"}}),
        grants: serde_json::json!({}),
        relations: serde_json::json!({}),
        on_runner_failure: "fail".into(),
    };
    let environment = rig.world.environment.id;
    let add = async |name: &str| {
        let now = rig.world.clock.now();
        rig.world
            .store
            .lens_create(environment, lens(name), now)
            .await
            .unwrap();
    };
    let knows = |name: &str| {
        rig.catalogue
            .current()
            .lens_named(environment, name)
            .is_some()
    };
    add("confirmed").await;
    assert!(!knows("confirmed"));
    rig.cluster.send(RefreshCatalogue).await.unwrap().unwrap();
    assert!(knows("confirmed"));

    add("announced").await;
    let announced = Instant::now();
    for _ in 0..5 {
        rig.cluster.send(Announced).await.unwrap();
    }
    eventually("it is read", || knows("announced")).await;
    assert!(announced.elapsed() < Duration::from_secs(1));

    add("unannounced").await;
    let written = Instant::now();
    eventually("it is read", || knows("unannounced")).await;
    assert!(written.elapsed() <= Timing::default().catalogue_poll);
}

#[actix::test]
async fn the_catalogue_stays_fresh_while_the_store_answers() {
    let rig = Rig::new().await;
    let freshness = Timing::default().key_freshness;
    for _ in 0..60 {
        rig.seconds(1).await;
        assert!(rig.catalogue.age() < freshness / 2 + Duration::from_secs(1));
    }
}

#[actix::test]
async fn two_changes_at_once_are_both_in_force_when_they_are_confirmed() {
    let rig = Rig::new().await;
    let (first, second) = (rig.another_gateway(), rig.another_gateway());
    let refresh = async |id| {
        rig.cluster.send(RefreshCatalogue).await.unwrap().unwrap();
        assert!(
            rig.catalogue
                .current()
                .gateways()
                .any(|(known, _)| known == id)
        );
    };
    let (first, second) = (first.await, second.await);
    futures_util::join!(refresh(first), refresh(second));
}
