//! The picker over sessions here and on other gateways: who gets a job, and how it gets there.

use std::time::Duration;

use super::*;
use crate::control::testing::{Heard, World, eventually, probe};
use crate::control::vital::{Shutdown, Stage};
use crate::storage::Gateway;

struct Rig {
    world: World,
    picker: Addr<Picker>,
    stands: Heard<SessionStands>,
}

impl Rig {
    async fn new() -> Self {
        tokio::time::pause();
        Self::build(false).await
    }

    async fn build(prefer_local: bool) -> Self {
        let world = World::new().await;
        let (stands, published) = probe::<SessionStands, _>(|_| ());
        let cx = PickerContext {
            catalogue: world.catalogue.clone(),
            identity: GatewayIdentity::new(world.gateway),
            stands,
            prefer_local,
            moving_grace: Duration::from_secs(5),
        };
        // The probes of a test may stop in any order.
        let shutdown = Shutdown::default();
        shutdown.advance(Stage::Draining);
        let picker = Picker::new(cx, Vital::new("Picker", &shutdown)).start();
        Self {
            world,
            picker,
            stands: published,
        }
    }

    /// A session of the world's runner on this gateway, and the jobs that it gets.
    async fn here(&self) -> (SessionId, Heard<Execute>) {
        let (execute, jobs) = probe::<Execute, _>(|_| ());
        let (cancel, _) = probe::<CancelExecution, _>(|_| ());
        let session_id = SessionId::new();
        let registration = Registration {
            session_id,
            gateway_id: self.world.gateway,
            runner_id: self.world.runner,
            instance_id: None,
            capabilities: vec!["sqlite".into()],
            capacity: 4,
            load: LoadGauge::default(),
            version: None,
            execute,
            cancel,
        };
        self.picker
            .send(SessionChanged::Opened(Box::new(registration)))
            .await
            .unwrap();
        (session_id, jobs)
    }

    /// Another gateway that is up.
    async fn peer(&self) -> GatewayId {
        let now = self.world.clock.now();
        let row = Gateway {
            id: GatewayId::new(),
            renewals: 0,
            internal_url: Some("http://peer".into()),
            started_at: now,
            seen_at: now,
        };
        self.world
            .store
            .gateway_register(row.clone())
            .await
            .unwrap();
        self.world.refresh().await;
        row.id
    }

    /// The way to it, and the jobs that go there.
    async fn way_to(&self, gateway_id: GatewayId) -> Heard<Execute> {
        let (execute, jobs) = probe::<Execute, _>(|_| ());
        let (cancel, _) = probe::<CancelExecution, _>(|_| ());
        let up = PeerChanged::Up {
            gateway_id,
            execute,
            cancel,
        };
        self.picker.send(up).await.unwrap();
        jobs
    }

    /// A session of the world's runner on another gateway, as it is written down.
    async fn there(&self, gateway_id: GatewayId) -> SessionId {
        let id = self.world.session_on(gateway_id).await;
        self.world.refresh().await;
        id
    }

    async fn mark(&self, gateway: GatewayId, session: SessionId, state: SessionState) {
        let now = self.world.clock.now();
        self.world
            .store
            .session_mark(gateway, vec![(session, state)], now)
            .await
            .unwrap();
        self.world.refresh().await;
    }

    /// Who is chosen for a job.
    async fn place(&self) -> Result<SessionId, Unplaceable> {
        self.place_for(None).await
    }

    async fn place_for(&self, only: Option<SessionId>) -> Result<SessionId, Unplaceable> {
        let (job, _reply) = self.world.job_for(Duration::from_secs(5), only);
        let place = Place {
            job,
            attempt: 1,
            declined: Vec::new(),
        };
        let placed = self.picker.send(place).await.unwrap();
        placed.map(|placement| placement.session_id)
    }

    async fn says(&self, said: PeerSaid) {
        self.picker.send(said).await.unwrap();
    }

    async fn reason(&self) -> String {
        match self.place().await {
            Err(Unplaceable::Offline { reason } | Unplaceable::Moving { reason }) => reason,
            other => panic!("somebody is there, or busy: {other:?}"),
        }
    }
}

#[actix::test]
async fn a_session_of_another_gateway_gets_its_job_through_the_way_there() {
    let rig = Rig::new().await;
    let peer = rig.peer().await;
    let session = rig.there(peer).await;
    assert_eq!(
        rig.reason().await,
        "the runner of this source is behind a gateway that cannot be reached"
    );
    let jobs = rig.way_to(peer).await;
    assert_eq!(rig.place().await, Ok(session));
    eventually("the link gets the job", || jobs.len() == 1).await;
    assert_eq!(jobs.take()[0].session_id, Some(session));
    rig.picker
        .send(PeerChanged::Down { gateway_id: peer })
        .await
        .unwrap();
    rig.reason().await;
}

#[actix::test]
async fn jobs_are_spread_over_the_whole_cluster_unless_local_ones_are_preferred() {
    tokio::time::pause();
    for prefer_local in [false, true] {
        let rig = Rig::build(prefer_local).await;
        let peer = rig.peer().await;
        let there = rig.there(peer).await;
        let _jobs = rig.way_to(peer).await;
        let (here, _) = rig.here().await;
        let mut local = 0;
        for _ in 0..60 {
            match rig.place().await {
                Ok(session) if session == here => local += 1,
                Ok(session) => assert_eq!(session, there),
                Err(error) => panic!("{error:?}"),
            }
        }
        if prefer_local {
            assert_eq!(local, 60);
        } else {
            assert!((5..=55).contains(&local), "{local} of 60 stayed here");
        }
        rig.picker
            .send(SessionChanged::Closed { session_id: here })
            .await
            .unwrap();
        assert_eq!(rig.place().await, Ok(there), "rather there than nowhere");
    }
}

#[actix::test]
async fn how_a_session_of_another_gateway_stands_is_believed() {
    let rig = Rig::new().await;
    let peer = rig.peer().await;
    let session = rig.there(peer).await;
    let _jobs = rig.way_to(peer).await;
    rig.mark(peer, session, SessionState::Unhealthy).await;
    assert_eq!(rig.reason().await, "the runner of this source is offline");
    rig.mark(peer, session, SessionState::Draining).await;
    assert_eq!(
        rig.reason().await,
        "the runner of this source is shutting down"
    );
    rig.mark(peer, session, SessionState::Ready).await;
    assert_eq!(rig.place().await, Ok(session));
}

#[actix::test]
async fn a_runner_that_went_in_good_order_from_another_gateway_is_on_the_move() {
    let rig = Rig::new().await;
    let peer = rig.peer().await;
    let _jobs = rig.way_to(peer).await;
    for (state, moving) in [(SessionState::Draining, true), (SessionState::Ready, false)] {
        let session = rig.there(peer).await;
        rig.mark(peer, session, state).await;
        // The picker follows every catalogue, and may be told of two at once.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (store, now) = (&rig.world.store, rig.world.clock.now());
        assert!(store.session_close(peer, session, now).await.unwrap());
        rig.world.refresh().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let found = rig.place().await;
        let is_moving = matches!(found, Err(Unplaceable::Moving { .. }));
        assert_eq!(is_moving, moving, "{state:?}: {found:?}");
    }
}

#[actix::test]
async fn what_a_peer_says_counts_for_a_moment_against_what_is_written_down() {
    let rig = Rig::new().await;
    let peer = rig.peer().await;
    let session_id = rig.there(peer).await;
    let _jobs = rig.way_to(peer).await;
    let declined = |why| PeerSaid::Declined { session_id, why };
    for (said, reason) in [
        (
            declined(Return::NotHere),
            Some("the runner of this source is offline"),
        ),
        (
            declined(Return::Draining),
            Some("the runner of this source is shutting down"),
        ),
        (
            PeerSaid::Silent { gateway_id: peer },
            Some("the runner of this source is behind a gateway that cannot be reached"),
        ),
        (declined(Return::Busy), None),
        (declined(Return::Unassigned), None),
    ] {
        rig.says(said).await;
        match reason {
            Some(reason) => assert_eq!(rig.reason().await, reason),
            None => assert_eq!(rig.place().await, Ok(session_id)),
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(rig.place().await, Ok(session_id), "after {said:?}");
    }
}

#[actix::test]
async fn a_job_from_another_gateway_goes_to_the_session_that_it_chose_or_back() {
    let rig = Rig::new().await;
    let peer = rig.peer().await;
    let there = rig.there(peer).await;
    let way = rig.way_to(peer).await;
    let (here, jobs) = rig.here().await;
    let (_other, _) = rig.here().await;
    for _ in 0..10 {
        assert_eq!(rig.place_for(Some(here)).await, Ok(here));
    }
    eventually("it got them all", || jobs.len() == 10).await;
    for unknown in [there, SessionId::new()] {
        assert_eq!(
            rig.place_for(Some(unknown)).await,
            Err(Unplaceable::Declined(Return::NotHere))
        );
    }
    assert_eq!(way.len(), 0, "a job is never handed on twice");
    rig.picker
        .send(SessionChanged::Draining { session_id: here })
        .await
        .unwrap();
    assert_eq!(
        rig.place_for(Some(here)).await,
        Err(Unplaceable::Declined(Return::Draining))
    );
}

#[actix::test]
async fn a_job_from_another_gateway_is_judged_by_the_assignments_here() {
    let rig = Rig::new().await;
    let (here, _) = rig.here().await;
    let (organisation, runner, source) =
        (rig.world.organisation(), rig.world.runner, rig.world.source);
    let now = rig.world.clock.now();
    rig.world
        .store
        .assignment_remove(organisation, runner, source, now)
        .await
        .unwrap();
    rig.world.refresh().await;
    assert_eq!(
        rig.place_for(Some(here)).await,
        Err(Unplaceable::Declined(Return::Unassigned))
    );
}

#[actix::test]
async fn what_is_connected_is_told_of_the_whole_cluster() {
    let rig = Rig::new().await;
    let peer = rig.peer().await;
    let session = rig.there(peer).await;
    let _here = rig.here().await;
    let live = |runners: HashMap<RunnerId, RunnerLive>| runners[&rig.world.runner].clone();
    let now = live(rig.picker.send(LiveRunners).await.unwrap());
    assert_eq!((now.sessions, now.healthy, now.draining), (2, 2, 0));
    assert_eq!(now.version.as_deref(), Some("9.9"));
    rig.mark(peer, session, SessionState::Draining).await;
    let now = live(rig.picker.send(LiveRunners).await.unwrap());
    assert_eq!((now.sessions, now.healthy, now.draining), (2, 1, 1));
}

#[actix::test]
async fn how_sessions_here_stand_is_told_to_be_written_down() {
    let rig = Rig::new().await;
    let (session_id, _) = rig.here().await;
    for changed in [
        SessionChanged::Health {
            session_id,
            healthy: false,
        },
        SessionChanged::Health {
            session_id,
            healthy: true,
        },
        SessionChanged::Draining { session_id },
        SessionChanged::Closed { session_id },
        SessionChanged::Closed { session_id },
    ] {
        rig.picker.send(changed).await.unwrap();
    }
    eventually("all is told", || rig.stands.len() == 5).await;
    let told: Vec<_> = rig
        .stands
        .take()
        .iter()
        .map(|stands| stands.state)
        .collect();
    assert_eq!(
        told,
        [
            Some(SessionState::Ready),
            Some(SessionState::Unhealthy),
            Some(SessionState::Ready),
            Some(SessionState::Draining),
            None
        ]
    );
}
