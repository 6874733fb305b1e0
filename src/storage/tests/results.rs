//! What detached jobs answered.

use super::detached::detached;
use super::*;
use crate::domain::job::JobStatus::*;

contract!(
    a_job_ends_together_with_its_answer,
    an_answer_belongs_to_whoever_holds_the_job,
    an_answer_that_can_not_be_kept_ends_nothing,
    answers_are_forgotten_when_their_time_is_over,
);

/// A job that this gateway has dispatched.
async fn dispatched(store: &Store, world: &World, holder: GatewayId) -> NewJob {
    let job = detached(world);
    store
        .job_claim_sync(vec![world.claim(holder, &job)], at(1))
        .await
        .unwrap();
    job
}

fn answer(job: &NewJob, expires: u64) -> NewResult {
    NewResult {
        job_id: job.id,
        organisation_id: job.organisation_id,
        environment_id: job.environment_id,
        sealed: vec![0, 1, 255, 0, b'{'],
        content_type: "application/json".into(),
        created_at: at(2),
        expires_at: at(expires),
    }
}

async fn a_job_ends_together_with_its_answer(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (other, own) = (world(store, "other").await, gateway(store).await);
    let job = dispatched(store, &acme, own).await;
    let get = |organisation, second| async move {
        store
            .job_result_get(organisation, job.id, at(second))
            .await
            .unwrap()
    };
    assert_eq!(get(acme.organisation, 2).await, None);
    let new = NewResult {
        sealed: (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect(),
        ..answer(&job, 100)
    };
    assert!(
        store
            .job_complete(end(own, &job, Completed), new.clone())
            .await
            .unwrap()
    );
    let kept = get(acme.organisation, 99).await.unwrap();
    assert_eq!(
        (kept.job_id, kept.environment_id, kept.content_type.as_str()),
        (job.id, acme.environment, "application/json")
    );
    assert_eq!((kept.created_at, kept.expires_at), (at(2), at(100)));
    assert!(kept.sealed == new.sealed);
    assert_eq!(get(other.organisation, 99).await, None);
    assert_eq!(get(acme.organisation, 100).await, None);
    let row = store.job_get(acme.organisation, job.id).await.unwrap();
    assert_eq!((row.status, row.request), (Completed, None));
}

async fn an_answer_belongs_to_whoever_holds_the_job(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (own, other) = (gateway(store).await, gateway(store).await);
    let job = dispatched(store, &acme, own).await;
    let later = NewJob {
        attempt: 2,
        ..job.clone()
    };
    let complete = |end: Finish, byte: u8| {
        let new = NewResult {
            sealed: vec![byte],
            ..answer(&job, 100)
        };
        async { store.job_complete(end, new).await.unwrap() }
    };
    assert!(!complete(end(other, &job, Completed), 1).await);
    assert!(!complete(end(own, &later, Completed), 2).await);
    assert!(complete(end(own, &job, Completed), 3).await);
    assert!(!complete(end(own, &job, Completed), 4).await);
    let kept = store
        .job_result_get(acme.organisation, job.id, at(3))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(kept.sealed, [3]);
    let no_end = store
        .job_complete(end(own, &job, Pending), answer(&job, 100))
        .await;
    assert!(matches!(no_end, Err(StoreError::Internal(_))));
}

async fn an_answer_that_can_not_be_kept_ends_nothing(fixture: Fixture) {
    use diesel::{ExpressionMethods as _, QueryDsl as _};
    use schema::runner_jobs;
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let job = dispatched(store, &acme, own).await;
    let complete = || store.job_complete(end(own, &job, Completed), answer(&job, 100));
    assert!(complete().await.unwrap());
    let id = job.id;
    // As if it had not ended; its answer is there, so another one is refused.
    unit!(store, Write, connection => {
        diesel::update(runner_jobs::table.find(id))
            .set(runner_jobs::status.eq(Dispatched))
            .execute(connection)
            .await?;
        Ok(())
    })
    .unwrap();
    assert!(complete().await.is_err());
    let row = store.job_get(acme.organisation, job.id).await.unwrap();
    assert_eq!(row.status, Dispatched);
}

async fn answers_are_forgotten_when_their_time_is_over(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let mut jobs = Vec::new();
    for expires in [10, 11, 12, 50] {
        let job = dispatched(store, &acme, own).await;
        store
            .job_complete(end(own, &job, Completed), answer(&job, expires))
            .await
            .unwrap();
        jobs.push(job);
    }
    assert_eq!(store.job_result_prune(at(9), 10).await.unwrap(), 0);
    assert_eq!(store.job_result_prune(at(12), 2).await.unwrap(), 2);
    assert_eq!(store.job_result_prune(at(12), 2).await.unwrap(), 1);
    assert_eq!(store.job_result_prune(at(12), 2).await.unwrap(), 0);
    let left = store
        .job_result_get(acme.organisation, jobs[3].id, at(12))
        .await
        .unwrap();
    assert!(left.is_some());
}
