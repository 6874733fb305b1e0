//! The control plane as a whole: how it stops.

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
        inline_allow: Vec::new(),
        tag_sql: false,
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
            executor: Executor::Inline,
        };
        assert!(plane.ledger.send(claim).await.unwrap().unwrap());
        jobs.push((job, reply));
    }
    for (job, _) in &jobs {
        plane.ledger.do_send(FinishJob::new(
            job,
            1,
            1,
            &Ok(Finished::default()),
            world.clock.now(),
        ));
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
async fn a_ledger_with_nothing_to_write_is_flushed_at_once() {
    let world = World::new().await;
    let plane = start(&world).await;
    tokio::time::timeout(Duration::from_secs(1), plane.ledger.send(Flush))
        .await
        .unwrap()
        .unwrap();
    plane.drain().await;
}
