//! Taking in detached jobs: once for each key, however often and from however many sides it is said.

use super::detached::detached;
use super::*;
use crate::domain::job::JobStatus;

contract!(
    a_submitted_job_is_recorded_once,
    a_key_stands_for_one_request,
    a_key_is_its_environments_own,
    jobs_without_a_key_never_meet,
    of_two_submissions_at_once_one_is_new,
    only_a_detached_job_with_its_request_is_taken_in,
);

fn keyed(job: &NewJob, key: &str, hash: &str) -> NewSubmission {
    NewSubmission {
        job: job.clone(),
        idempotency: Some(Idempotency {
            key: key.into(),
            request_hash: hash.into(),
        }),
    }
}

fn plain(job: &NewJob) -> NewSubmission {
    NewSubmission {
        job: job.clone(),
        idempotency: None,
    }
}

async fn count(store: &Store, world: &World) -> usize {
    let listed = store.job_list(world.organisation, JobFilter::default(), Page::first(100));
    listed.await.unwrap().len()
}

async fn a_submitted_job_is_recorded_once(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let job = detached(&acme);
    assert_eq!(store.job_submit(plain(&job)).await.unwrap(), Submitted::New);
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    let Submitted::Known(known) = store.job_submit(plain(&job)).await.unwrap() else {
        panic!("it is recorded already")
    };
    assert_eq!((known.id, known.status), (job.id, JobStatus::Claimed));
    assert_eq!(known.request, job.request);
}

async fn a_key_stands_for_one_request(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let first = detached(&acme);
    assert_eq!(
        store.job_submit(keyed(&first, "k", "h")).await.unwrap(),
        Submitted::New
    );
    let again = store
        .job_submit(keyed(&detached(&acme), "k", "h"))
        .await
        .unwrap();
    assert!(matches!(again, Submitted::Known(known) if known.id == first.id));
    let other = store
        .job_submit(keyed(&detached(&acme), "k", "other"))
        .await
        .unwrap();
    assert_eq!(other, Submitted::OtherRequest);
    // However far the job has come.
    store
        .job_take_pending(own, acme.source, 1, at(1))
        .await
        .unwrap();
    store
        .job_finish(vec![end(own, &first, JobStatus::Completed)])
        .await
        .unwrap();
    let ended = store
        .job_submit(keyed(&detached(&acme), "k", "h"))
        .await
        .unwrap();
    assert!(matches!(ended, Submitted::Known(known) if known.status == JobStatus::Completed));
    assert_eq!(
        store
            .job_submit(keyed(&detached(&acme), "l", "h"))
            .await
            .unwrap(),
        Submitted::New
    );
    assert_eq!(count(store, &acme).await, 2);
}

async fn a_key_is_its_environments_own(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let other = world(store, "other").await;
    for world in [&acme, &other] {
        assert_eq!(
            store
                .job_submit(keyed(&detached(world), "k", "h"))
                .await
                .unwrap(),
            Submitted::New
        );
    }
}

async fn jobs_without_a_key_never_meet(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    for _ in 0..3 {
        assert_eq!(
            store.job_submit(plain(&detached(&acme))).await.unwrap(),
            Submitted::New
        );
    }
    assert_eq!(count(store, &acme).await, 3);
}

async fn of_two_submissions_at_once_one_is_new(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let other = fixture.second().await;
    for round in 0..10 {
        let key = format!("k{round}");
        let (a, b) = (detached(&acme), detached(&acme));
        let (first, second) = tokio::join!(
            store.job_submit(keyed(&a, &key, "h")),
            other.job_submit(keyed(&b, &key, "h"))
        );
        match (first.unwrap(), second.unwrap()) {
            (Submitted::New, Submitted::Known(known)) => assert_eq!(known.id, a.id),
            (Submitted::Known(known), Submitted::New) => assert_eq!(known.id, b.id),
            both => panic!("{both:?}"),
        }
    }
    assert_eq!(count(store, &acme).await, 10);
}

async fn only_a_detached_job_with_its_request_is_taken_in(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let without = NewJob {
        request: None,
        ..detached(&acme)
    };
    for job in [acme.job(), without] {
        let refused = store.job_submit(plain(&job)).await;
        assert!(matches!(refused, Err(StoreError::Internal(_))));
    }
}
