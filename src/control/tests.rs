//! The control plane as a whole: how it stops.

use super::job::Held;
use super::ledger::{ClaimJob, Executor, FinishJob};
use super::testing::World;
use super::*;
use crate::domain::job::JobStatus;

/// Enough that some ends wait while others are being written.
const JOBS: usize = 50;

async fn start(world: &World) -> ControlPlane {
    let config = ControlConfig {
        store: world.store.clone(),
        runtime: tokio::runtime::Handle::current(),
        sealer: Arc::new(Sealer::for_tests()),
        clock: world.clock.clone(),
        timing: Timing::default(),
        advertise_url: None,
        prefer_local: false,
        inline_allow: Vec::new(),
        tag_sql: false,
        ca_file: None,
        compress: false,
    };
    ControlPlane::start(config).await.unwrap()
}

#[actix::test]
async fn a_gateway_signs_off_after_the_ends_of_its_jobs_are_written_down() {
    let world = World::new().await;
    let plane = start(&world).await;
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        let (job, reply) = world.job(Duration::from_secs(30));
        let claim = ClaimJob {
            job: job.clone(),
            attempt: 1,
            holder: plane.gateway_id(),
            executor: Executor::Inline,
        };
        assert!(plane.ledger.send(claim).await.unwrap().unwrap());
        jobs.push((job, reply));
    }
    for (job, _) in &jobs {
        let (ended, now) = (Ok(Finished::default()), world.clock.now());
        let finish = FinishJob::of(job, plane.gateway_id(), 1, 1, &ended, now);
        plane.ledger.do_send(finish.unwrap());
    }
    plane.drain().await;
    for (job, _) in &jobs {
        let row = world
            .store
            .job_get(world.organisation(), job.id)
            .await
            .unwrap();
        assert_eq!(row.status, JobStatus::Completed);
    }
}

#[actix::test]
async fn a_detached_job_is_marked_once_and_only_under_its_own_claim() {
    let world = World::new().await;
    let plane = start(&world).await;
    // Nobody is there to take it but this test.
    let (job, _) = world.job(Duration::from_secs(30));
    let submission = Submission {
        spec: job.spec.clone(),
        rendering: serde_json::Value::Null,
        idempotency: None,
    };
    let Accepted::New(id) = plane.submit(submission).await.unwrap() else {
        panic!("it is new")
    };
    let now = world.clock.now();
    let taken = world
        .store
        .job_take_pending(world.gateway, world.source, 1, now);
    assert_eq!(taken.await.unwrap()[0].id, id);
    let mark = async |holder, attempt| {
        let held = Held { holder, attempt };
        let (mut job, _) = world.detached_job(Duration::from_secs(30), held);
        Arc::get_mut(&mut job).unwrap().id = id;
        let claim = ClaimJob {
            job,
            attempt,
            holder,
            executor: Executor::Inline,
        };
        plane.ledger.send(claim).await.unwrap().unwrap()
    };
    assert!(
        !mark(plane.gateway_id(), 1).await,
        "claimed by somebody else"
    );
    assert!(!mark(world.gateway, 2).await, "there is no such attempt");
    assert!(mark(world.gateway, 1).await);
    assert!(!mark(world.gateway, 1).await, "it may have been sent");
    let row = world.store.job_get(world.organisation(), id).await.unwrap();
    assert_eq!(
        (row.status, row.claimed_by),
        (JobStatus::Dispatched, Some(world.gateway))
    );
    plane.drain().await;
}

#[actix::test]
async fn a_ledger_with_nothing_to_write_is_flushed_at_once() {
    let world = World::new().await;
    let plane = start(&world).await;
    tokio::time::timeout(Duration::from_secs(1), plane.ledger.send(Flush))
        .await
        .unwrap()
        .unwrap();
    plane.drain().await;
}

/// The world's job as another gateway would hand it over, for a session that it believes to be here.
fn handed_over(world: &World) -> peer::wire::ExecuteRequest {
    let (job, _reply) = world.job(Duration::from_secs(30));
    peer::wire::ExecuteRequest {
        job_id: job.id,
        attempt: 3,
        session_id: crate::ids::SessionId::new(),
        spec: job.spec.clone(),
        created_at: job.created_at,
        deadline_at: job.deadline_at,
        remaining_ms: 30_000,
    }
}

async fn answer(mut reply: ReplyStream) -> Result<Finished, JobError> {
    match reply.next().await {
        Some(Reply::End(end)) => end,
        other => panic!("not the end: {other:?}"),
    }
}

#[actix::test]
async fn what_another_gateway_hands_over_is_checked_again_and_given_back_unrecorded() {
    use dispatcher::{Declined, Return};
    let world = World::new().await;
    let plane = start(&world).await;
    let not_here = handed_over(&world);
    let mut other_source = handed_over(&world);
    other_source.spec.source_id = crate::ids::SourceId::new();
    let mut other_environment = handed_over(&world);
    other_environment.spec.environment_id = crate::ids::EnvironmentId::new();
    let mut other_tenant = handed_over(&world);
    other_tenant.spec.organisation_id = crate::ids::OrganisationId::new();
    for (request, why) in [
        (not_here, Return::NotHere),
        (other_source, Return::Unassigned),
        (other_environment, Return::Unassigned),
        (other_tenant, Return::Unassigned),
    ] {
        let id = request.job_id;
        let declined = answer(plane.execute_for_peer(request)).await.unwrap_err();
        assert_eq!(declined, JobError::Returned(Declined { why, attempt: 3 }));
        plane.ledger.send(Flush).await.unwrap();
        let recorded = world.store.job_get(world.organisation(), id).await;
        assert!(matches!(recorded, Err(StoreError::NotFound)));
    }
    plane.drain().await;
}
