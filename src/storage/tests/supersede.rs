//! Taking a job back from a gateway that was lost with it.

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::domain::job::JobStatus::{self, *};
use crate::storage::jobs::claim_statements;

contract!(
    a_job_that_the_lost_gateway_never_recorded_is_taken_back,
    a_job_that_lies_pending_is_taken_back_once,
    what_may_have_been_sent_is_taken_back_only_if_it_may_be_tried_again,
    what_somebody_else_has_or_has_ended_is_left_alone,
    a_claim_that_commits_first_is_not_overtaken,
    a_claim_that_is_rolled_back_does_not_count,
    a_claim_that_comes_after_it_wins_nothing,
    a_batch_is_taken_back_as_far_as_it_can_be,
);

/// The same job at that attempt.
fn at_attempt(job: &NewJob, attempt: i32) -> NewJob {
    NewJob {
        attempt,
        ..job.clone()
    }
}

fn taken_back(job: &NewJob, lost: GatewayId) -> Supersede {
    Supersede {
        job: at_attempt(job, job.attempt + 1),
        lost,
    }
}

async fn state(store: &Store, world: &World, job: &NewJob) -> (JobStatus, i32, Option<GatewayId>) {
    let row = store.job_get(world.organisation, job.id).await.unwrap();
    (row.status, row.attempt, row.claimed_by)
}

async fn a_job_that_the_lost_gateway_never_recorded_is_taken_back(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (lost, own) = (gateway(store).await, gateway(store).await);
    let job = acme.job();
    let won = store
        .job_supersede(vec![taken_back(&job, lost)])
        .await
        .unwrap();
    assert_eq!(won, [job.id]);
    assert_eq!(state(store, &acme, &job).await, (Pending, 2, None));
    let row = store.job_get(acme.organisation, job.id).await.unwrap();
    assert_eq!(
        (row.deadline_at, row.lens),
        (job.deadline_at, job.lens.clone())
    );
    // The lost one is back, and then it is placed again.
    let late = vec![acme.claim(lost, &job)];
    assert!(store.job_claim_sync(late, at(3)).await.unwrap().is_empty());
    let next = vec![acme.claim(own, &at_attempt(&job, 2))];
    assert_eq!(store.job_claim_sync(next, at(4)).await.unwrap(), [job.id]);
    assert!(store.job_supersede(vec![]).await.unwrap().is_empty());
}

async fn a_job_that_lies_pending_is_taken_back_once(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let lost = gateway(store).await;
    let job = acme.job();
    store
        .job_claim_sync(vec![acme.claim(lost, &job)], at(1))
        .await
        .unwrap();
    // The lost gateway gave it back itself: it lies pending at its second attempt.
    let back = Requeue {
        id: job.id,
        attempt: 1,
        holder: lost,
    };
    store.job_requeue(vec![back]).await.unwrap();
    let second = at_attempt(&job, 2);
    let again = |job: &NewJob| store.job_supersede(vec![taken_back(job, lost)]);
    assert!(again(&job).await.unwrap().is_empty(), "the wrong attempt");
    assert_eq!(again(&second).await.unwrap(), [job.id]);
    assert!(again(&second).await.unwrap().is_empty(), "done already");
    assert_eq!(state(store, &acme, &job).await, (Pending, 3, None));
}

async fn what_may_have_been_sent_is_taken_back_only_if_it_may_be_tried_again(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (lost, other) = (gateway(store).await, gateway(store).await);
    for (retry, named, wins) in [
        (false, lost, false),
        (true, other, false),
        (true, lost, true),
    ] {
        let job = NewJob {
            retry,
            ..acme.job()
        };
        store
            .job_claim_sync(vec![acme.claim(lost, &job)], at(1))
            .await
            .unwrap();
        let won = store
            .job_supersede(vec![taken_back(&job, named)])
            .await
            .unwrap();
        assert_eq!(won == [job.id], wins, "retry: {retry}");
        let expected = if wins {
            (Pending, 2, None)
        } else {
            (Dispatched, 1, Some(lost))
        };
        assert_eq!(state(store, &acme, &job).await, expected);
        // What the lost gateway says afterwards counts only if it still has the job.
        let ended = store.job_finish(vec![end(lost, &job, Completed)]).await;
        assert_eq!(ended.unwrap().is_empty(), wins);
        if wins {
            let row = store.job_get(acme.organisation, job.id).await.unwrap();
            assert_eq!(
                (
                    row.runner_id,
                    row.session_id,
                    row.claimed_at,
                    row.dispatched_at
                ),
                (None, None, None, None)
            );
        }
    }
}

async fn what_somebody_else_has_or_has_ended_is_left_alone(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (lost, other) = (gateway(store).await, gateway(store).await);
    let retried = || NewJob {
        retry: true,
        ..acme.job()
    };
    let (ended, settled, held) = (retried(), retried(), retried());
    for (job, holder) in [(&ended, lost), (&settled, lost), (&held, other)] {
        store
            .job_claim_sync(vec![acme.claim(holder, job)], at(1))
            .await
            .unwrap();
    }
    store
        .job_finish(vec![end(lost, &ended, Completed)])
        .await
        .unwrap();
    store.gateway_declare_lost(lost, 0, at(20)).await.unwrap();
    for job in [&ended, &settled, &held] {
        let won = store.job_supersede(vec![taken_back(job, lost)]).await;
        assert!(won.unwrap().is_empty());
    }
    assert_eq!(state(store, &acme, &ended).await.0, Completed);
    assert_eq!(state(store, &acme, &settled).await.0, Failed);
    assert_eq!(
        state(store, &acme, &held).await,
        (Dispatched, 1, Some(other))
    );
}

/// Has the lost gateway hold its claim open until the job is being taken back; returns who won.
async fn race(fixture: &Fixture, commits: bool) -> (bool, bool, World, NewJob, GatewayId) {
    let acme = world(&fixture.store, "acme").await;
    let lost = gateway(&fixture.store).await;
    let job = acme.job();
    let (insert, claim) = claim_statements(vec![acme.claim(lost, &job)], at(1)).unwrap();
    let (holds, mut held) = mpsc::channel(1);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let store = fixture.store.clone();
    let claimer = tokio::spawn(async move {
        unit!(store, Transaction, connection => {
            insert.execute(connection).await?;
            let won: Vec<JobId> = claim.load(connection).await?;
            holds.send(()).await.unwrap();
            may_go_on.await.unwrap();
            if commits {
                Ok(won)
            } else {
                Err(StoreError::Conflict("rolled back"))
            }
        })
    });
    held.recv().await.unwrap();
    let (other, waiting) = (fixture.second().await, fixture.second().await);
    let entries = vec![taken_back(&job, lost)];
    let taker = tokio::spawn(async move { other.job_supersede(entries).await });
    if !waiting.is_embedded() {
        // SQLite lets nobody ask; there, it may begin a little later, which changes nothing.
        hosted::until_one_waits_for_a_lock(&waiting).await;
    }
    go_on.send(()).unwrap();
    let claimed = claimer.await.unwrap().is_ok_and(|won| won == [job.id]);
    let taken = taker.await.unwrap().unwrap() == [job.id];
    (claimed, taken, acme, job, lost)
}

async fn a_claim_that_commits_first_is_not_overtaken(fixture: Fixture) {
    let (claimed, taken, acme, job, lost) = race(&fixture, true).await;
    assert_eq!((claimed, taken), (true, false));
    let state = state(&fixture.store, &acme, &job).await;
    assert_eq!(state, (Dispatched, 1, Some(lost)));
}

async fn a_claim_that_is_rolled_back_does_not_count(fixture: Fixture) {
    let (claimed, taken, acme, job, _) = race(&fixture, false).await;
    assert_eq!((claimed, taken), (false, true));
    assert_eq!(state(&fixture.store, &acme, &job).await, (Pending, 2, None));
}

async fn a_claim_that_comes_after_it_wins_nothing(fixture: Fixture) {
    let acme = world(&fixture.store, "acme").await;
    let lost = gateway(&fixture.store).await;
    let job = acme.job();
    // The lost gateway had recorded the job, and stopped before it claimed.
    let (insert, claim) = claim_statements(vec![acme.claim(lost, &job)], at(1)).unwrap();
    unit!(fixture.store, Transaction, connection => {
        insert.execute(connection).await?;
        Ok(())
    })
    .unwrap();
    let won = fixture.second().await;
    let won = won.job_supersede(vec![taken_back(&job, lost)]).await;
    assert_eq!(won.unwrap(), [job.id]);
    let late: Vec<JobId> = unit!(fixture.store, Transaction, connection => {
        Ok(claim.load(connection).await?)
    })
    .unwrap();
    assert!(late.is_empty());
    assert_eq!(state(&fixture.store, &acme, &job).await, (Pending, 2, None));
}

async fn a_batch_is_taken_back_as_far_as_it_can_be(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let lost = gateway(store).await;
    let (absent, sent) = (acme.job(), acme.job());
    store
        .job_claim_sync(vec![acme.claim(lost, &sent)], at(1))
        .await
        .unwrap();
    let entries = [&sent, &absent].map(|job| taken_back(job, lost));
    assert_eq!(
        store.job_supersede(entries.into()).await.unwrap(),
        [absent.id]
    );
}
