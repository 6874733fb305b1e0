//! Who may execute a job: exactly one.

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::domain::job::JobStatus;
use crate::storage::jobs::claim_statements;

contract!(
    one_of_two_claimers_wins,
    a_claim_that_is_rolled_back_leaves_the_job_to_the_other,
    a_claim_at_another_attempt_wins_nothing,
    two_batches_of_the_same_jobs_share_them_out,
    a_claim_can_be_read_back,
);

/// What the first claimer does once the second has begun.
#[derive(Clone, Copy)]
enum Then {
    Commit,
    RollBack,
}

/// Has a first claimer hold its claim open until a second one has begun; returns who won.
async fn race(fixture: &Fixture, then: Then) -> (Vec<JobId>, Vec<JobId>, JobId) {
    let world = world(&fixture.store, "acme").await;
    let (first, second) = (gateway(&fixture.store).await, gateway(&fixture.store).await);
    let job = world.job();
    let (insert, claim) = claim_statements(vec![world.claim(first, &job)], at(1)).unwrap();
    let (holds, mut held) = mpsc::channel(1);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let store = fixture.store.clone();
    let first_claimer = tokio::spawn(async move {
        unit!(store, Transaction, connection => {
            insert.execute(connection).await?;
            let won: Vec<JobId> = claim.load(connection).await?;
            holds.send(()).await.unwrap();
            may_go_on.await.unwrap();
            match then {
                Then::Commit => Ok(won),
                Then::RollBack => Err(StoreError::Conflict("rolled back")),
            }
        })
    });
    held.recv().await.unwrap();
    let other = fixture.second().await;
    let (claims, waiting) = (vec![world.claim(second, &job)], fixture.second().await);
    let second_claimer = tokio::spawn(async move { other.job_claim_sync(claims, at(1)).await });
    if !waiting.is_embedded() {
        // SQLite lets nobody ask; there, the second claimer may begin a little later, which changes nothing.
        hosted::until_one_waits_for_a_lock(&waiting).await;
    }
    go_on.send(()).unwrap();
    let won_first = first_claimer.await.unwrap().unwrap_or_default();
    (won_first, second_claimer.await.unwrap().unwrap(), job.id)
}

async fn one_of_two_claimers_wins(fixture: Fixture) {
    let (first, second, job) = race(&fixture, Then::Commit).await;
    assert_eq!((first, second), (vec![job], vec![]));
}

async fn a_claim_that_is_rolled_back_leaves_the_job_to_the_other(fixture: Fixture) {
    let (first, second, job) = race(&fixture, Then::RollBack).await;
    assert_eq!((first, second), (vec![], vec![job]));
}

async fn a_claim_at_another_attempt_wins_nothing(fixture: Fixture) {
    let world = world(&fixture.store, "acme").await;
    let gateway = gateway(&fixture.store).await;
    let job = world.job();
    assert_eq!(
        fixture
            .store
            .job_claim_sync(vec![world.claim(gateway, &job)], at(1))
            .await
            .unwrap(),
        [job.id]
    );
    let back = Requeue {
        id: job.id,
        attempt: 1,
        holder: gateway,
    };
    assert_eq!(
        fixture.store.job_requeue(vec![back]).await.unwrap(),
        [job.id]
    );
    assert!(
        fixture
            .store
            .job_claim_sync(vec![world.claim(gateway, &job)], at(1))
            .await
            .unwrap()
            .is_empty()
    );
    let next = NewJob {
        attempt: 2,
        ..job.clone()
    };
    assert_eq!(
        fixture
            .store
            .job_claim_sync(vec![world.claim(gateway, &next)], at(1))
            .await
            .unwrap(),
        [job.id]
    );
    let row = fixture
        .store
        .job_get(world.organisation, job.id)
        .await
        .unwrap();
    assert_eq!((row.attempt, row.status), (2, JobStatus::Dispatched));
}

async fn two_batches_of_the_same_jobs_share_them_out(fixture: Fixture) {
    let world = world(&fixture.store, "acme").await;
    let (store, other) = (fixture.store.clone(), fixture.second().await);
    let (first, second) = (gateway(&store).await, gateway(&store).await);
    for _ in 0..5 {
        let claims: Vec<SyncClaim> = (0..40).map(|_| world.claim(first, &world.job())).collect();
        let of_second = |claim: &SyncClaim| SyncClaim {
            holder: second,
            ..claim.clone()
        };
        let reversed = claims.iter().rev().map(of_second).collect();
        let expected = claims.len();
        let (a, b) = tokio::join!(
            store.job_claim_sync(claims, at(1)),
            other.job_claim_sync(reversed, at(1))
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a.len() + b.len(), expected);
        assert!(a.iter().all(|id| !b.contains(id)));
    }
}

async fn a_claim_can_be_read_back(fixture: Fixture) {
    let world = world(&fixture.store, "acme").await;
    let gateway = gateway(&fixture.store).await;
    let (won, never) = (world.job(), world.job());
    fixture
        .store
        .job_claim_sync(vec![world.claim(gateway, &won)], at(1))
        .await
        .unwrap();
    let read = fixture
        .store
        .job_read_back(vec![never.id, won.id])
        .await
        .unwrap();
    let expected = ReadBack {
        id: won.id,
        attempt: 1,
        status: JobStatus::Dispatched,
        claimed_by: Some(gateway),
    };
    assert_eq!(read, [expected]);
}
