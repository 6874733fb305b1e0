//! Jobs that nobody waits for: taken by one gateway, marked before they are sent, given up while they lie.

use super::*;
use crate::domain::job::JobStatus::*;

contract!(
    only_sources_with_pending_jobs_are_named_and_only_their_own_are_taken,
    what_nobody_took_in_time_ends_with_the_reason,
    a_detached_job_is_taken_by_one_gateway,
    the_nearest_deadline_is_taken_first_and_a_late_one_never,
    a_job_is_marked_once_and_by_its_holder_alone,
    a_claim_that_was_given_back_can_not_be_marked,
    only_a_pending_job_of_ones_own_is_given_up,
    a_released_job_is_anybodys_again_at_the_same_attempt,
);

/// Takes them in, one by one.
async fn submit(store: &Store, jobs: impl IntoIterator<Item = &NewJob>) {
    for job in jobs {
        let new = NewSubmission {
            job: job.clone(),
            idempotency: None,
        };
        assert_eq!(store.job_submit(new).await.unwrap(), Submitted::New);
    }
}

pub(super) fn detached(world: &World) -> NewJob {
    NewJob {
        detached: true,
        retry: true,
        request: Some(json!({"kind": "query"})),
        ..world.job()
    }
}

fn mark(holder: GatewayId, job: &NewJob, runner: RunnerId) -> Mark {
    let placement = Some(Placement {
        runner,
        session: SessionId::new(),
    });
    Mark {
        id: job.id,
        attempt: job.attempt,
        holder,
        placement,
        dispatched_at: at(3),
    }
}

async fn a_detached_job_is_taken_by_one_gateway(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let other = fixture.second().await;
    let (first, second) = (gateway(store).await, gateway(store).await);
    let jobs: Vec<NewJob> = (0..50).map(|_| detached(&acme)).collect();
    submit(store, &jobs).await;
    // A synchronous job is nobody's to take.
    let waited_for = acme.job();
    store
        .job_claim_sync(vec![acme.claim(first, &waited_for)], at(1))
        .await
        .unwrap();
    store
        .job_requeue(vec![Requeue {
            id: waited_for.id,
            attempt: 1,
            holder: first,
        }])
        .await
        .unwrap();
    let (a, b) = tokio::join!(
        store.job_take_pending(first, acme.source, 40, at(1)),
        other.job_take_pending(second, acme.source, 40, at(1))
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.len() <= 40 && b.len() <= 40);
    assert!(a.iter().all(|job| b.iter().all(|other| other.id != job.id)));
    let rest = store
        .job_take_pending(first, acme.source, 40, at(1))
        .await
        .unwrap();
    assert_eq!(a.len() + b.len() + rest.len(), 50);
    let taken = &a[0];
    assert_eq!(
        (taken.status, taken.claimed_by, taken.claimed_at),
        (Claimed, Some(first), Some(at(1)))
    );
    assert_eq!(
        (taken.dispatched_at, taken.request.as_ref()),
        (None, jobs[0].request.as_ref())
    );
    assert_eq!(
        *taken,
        store.job_get(acme.organisation, taken.id).await.unwrap()
    );
}

async fn the_nearest_deadline_is_taken_first_and_a_late_one_never(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let jobs = [30, 10, 20, 5].map(|deadline| NewJob {
        deadline_at: at(deadline),
        ..detached(&acme)
    });
    submit(store, &jobs).await;
    let mut taken = Vec::new();
    for _ in 0..4 {
        taken.extend(
            store
                .job_take_pending(own, acme.source, 1, at(5))
                .await
                .unwrap()
                .into_iter()
                .map(|job| job.deadline_at),
        );
    }
    assert_eq!(taken, [at(10), at(20), at(30)]);
}

async fn a_job_is_marked_once_and_by_its_holder_alone(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (own, other) = (gateway(store).await, gateway(store).await);
    let job = detached(&acme);
    submit(store, [&job]).await;
    assert!(
        store
            .job_mark(vec![mark(own, &job, acme.runner)])
            .await
            .unwrap()
            .is_empty()
    );
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    let later = NewJob {
        attempt: 2,
        ..job.clone()
    };
    assert!(
        store
            .job_mark(vec![mark(own, &later, acme.runner)])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        store
            .job_mark(vec![mark(other, &job, acme.runner)])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store
            .job_mark(vec![mark(own, &job, acme.runner)])
            .await
            .unwrap(),
        [job.id]
    );
    assert!(
        store
            .job_mark(vec![mark(own, &job, acme.runner)])
            .await
            .unwrap()
            .is_empty()
    );
    let row = store.job_get(acme.organisation, job.id).await.unwrap();
    assert_eq!(
        (row.status, row.runner_id, row.dispatched_at),
        (Dispatched, Some(acme.runner), Some(at(3)))
    );
    assert!(row.session_id.is_some());
}

async fn a_claim_that_was_given_back_can_not_be_marked(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let job = NewJob {
        deadline_at: at(1000),
        ..detached(&acme)
    };
    submit(store, [&job]).await;
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    let swept = store.job_sweep(at(40), at(10), at(10), 10).await.unwrap();
    assert_eq!(
        swept,
        Settled {
            requeued: 1,
            failed: 0,
            expired: 0
        }
    );
    assert!(
        store
            .job_mark(vec![mark(own, &job, acme.runner)])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        store
            .job_take_pending(own, acme.source, 1, at(41))
            .await
            .unwrap()[0]
            .attempt,
        1
    );
}

async fn only_a_pending_job_of_ones_own_is_given_up(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (other, own) = (world(store, "other").await, gateway(store).await);
    let (lies, runs) = (detached(&acme), detached(&acme));
    submit(store, [&runs]).await;
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    submit(store, [&lies]).await;
    assert_eq!(
        store
            .job_cancel_pending(other.organisation, lies.id, at(2))
            .await
            .unwrap(),
        Changed::Absent
    );
    let Changed::Done(job) = store
        .job_cancel_pending(acme.organisation, lies.id, at(2))
        .await
        .unwrap()
    else {
        panic!("the job was pending")
    };
    assert_eq!(
        (job.status, job.finished_at, &job.request),
        (Cancelled, Some(at(2)), &None)
    );
    let again = store
        .job_cancel_pending(acme.organisation, lies.id, at(3))
        .await
        .unwrap();
    assert_eq!(again, Changed::OtherState(job));
    let running = store
        .job_cancel_pending(acme.organisation, runs.id, at(3))
        .await
        .unwrap();
    assert!(matches!(
        running,
        Changed::OtherState(Job {
            status: Claimed,
            ..
        })
    ));
    assert!(
        store
            .job_take_pending(own, acme.source, 1, at(3))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn a_released_job_is_anybodys_again_at_the_same_attempt(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (own, other) = (gateway(store).await, gateway(store).await);
    let job = detached(&acme);
    submit(store, [&job]).await;
    let release = |holder, attempt| async move {
        let entry = Release {
            id: job.id,
            attempt,
            holder,
        };
        store.job_release(vec![entry]).await.unwrap()
    };
    assert!(release(own, 1).await.is_empty(), "nobody has it yet");
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    assert!(release(other, 1).await.is_empty(), "another one's");
    assert!(release(own, 2).await.is_empty(), "another attempt");
    assert_eq!(release(own, 1).await, [job.id]);
    assert!(release(own, 1).await.is_empty(), "given back already");
    let taken = store
        .job_take_pending(other, acme.source, 1, at(2))
        .await
        .unwrap();
    assert_eq!((taken[0].attempt, taken[0].claimed_by), (1, Some(other)));
    store
        .job_mark(vec![mark(other, &job, acme.runner)])
        .await
        .unwrap();
    assert!(release(other, 1).await.is_empty(), "it may have been sent");
}

async fn only_sources_with_pending_jobs_are_named_and_only_their_own_are_taken(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (other, own) = (world(store, "other").await, gateway(store).await);
    assert!(store.job_pending_sources().await.unwrap().is_empty());
    let jobs = [20, 10].map(|deadline| NewJob {
        deadline_at: at(deadline),
        ..detached(&acme)
    });
    submit(store, &jobs).await;
    let urgent = NewJob {
        deadline_at: at(5),
        ..detached(&other)
    };
    submit(store, [&urgent]).await;
    // Somebody waits for this one, and has lost whom it was with.
    let waited_for = acme.job();
    store
        .job_claim_sync(vec![acme.claim(own, &waited_for)], at(1))
        .await
        .unwrap();
    let requeue = Requeue {
        id: waited_for.id,
        attempt: 1,
        holder: own,
    };
    store.job_requeue(vec![requeue]).await.unwrap();
    let pending = |source, jobs, deadline| PendingSource {
        source_id: source,
        jobs,
        first_deadline: at(deadline),
    };
    assert_eq!(
        store.job_pending_sources().await.unwrap(),
        [pending(other.source, 1, 5), pending(acme.source, 2, 10)]
    );
    let taken = store.job_take_pending(own, acme.source, 9, at(1)).await;
    assert!(
        taken
            .unwrap()
            .iter()
            .all(|job| job.source_id == acme.source)
    );
    assert_eq!(
        store.job_pending_sources().await.unwrap(),
        [pending(other.source, 1, 5)]
    );
}

async fn what_nobody_took_in_time_ends_with_the_reason(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (other, own) = (world(store, "other").await, gateway(store).await);
    let of = |world: &World, deadline| NewJob {
        deadline_at: at(deadline),
        ..detached(world)
    };
    let (taken, late, early) = (of(&acme, 2), of(&acme, 5), of(&acme, 20));
    let elsewhere = of(&other, 5);
    submit(store, [&taken]).await;
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    submit(store, [&late, &early, &elsewhere]).await;
    let reason = || "nobody was there".to_owned();
    let expired = store
        .job_expire_pending(acme.source, reason(), at(10))
        .await;
    assert_eq!(expired.unwrap(), 1);
    let again = store
        .job_expire_pending(acme.source, reason(), at(11))
        .await;
    assert_eq!(again.unwrap(), 0);
    let row = store.job_get(acme.organisation, late.id).await.unwrap();
    assert_eq!(
        (row.status, row.finished_at, &row.request),
        (Expired, Some(at(10)), &None)
    );
    assert_eq!(
        (row.error_code.as_deref(), row.error_message.as_deref()),
        (Some("QUERY_TIMEOUT"), Some("nobody was there"))
    );
    for (world, job, status) in [
        (&acme, taken, Claimed),
        (&acme, early, Pending),
        (&other, elsewhere, Pending),
    ] {
        let row = store.job_get(world.organisation, job.id).await.unwrap();
        assert_eq!(row.status, status);
    }
}
