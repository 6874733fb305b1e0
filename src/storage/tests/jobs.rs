//! The other steps of a job's life, and what happens to it when nobody takes them.

use super::*;
use crate::domain::job::JobStatus::{self, *};

contract!(
    a_job_is_written_down_as_it_was_given,
    a_job_ends_once,
    only_the_holder_at_that_attempt_may_end_a_job,
    a_batch_applies_what_fits_and_says_which,
    an_unplaced_job_is_recorded_as_failed_unless_somebody_has_it,
    a_poison_entry_fails_its_batch_and_nothing_of_it_is_kept,
    the_sweep_gives_back_stale_claims_and_ends_late_jobs,
    history_is_pruned_by_age_and_by_number_in_small_batches,
    jobs_are_listed_latest_first_and_by_every_filter,
    a_large_batch_is_one_step,
);

async fn status(fixture: &Fixture, world: &World, job: &NewJob) -> JobStatus {
    fixture
        .store
        .job_get(world.organisation, job.id)
        .await
        .unwrap()
        .status
}

async fn a_job_is_written_down_as_it_was_given(fixture: Fixture) {
    let world = world(&fixture.store, "acme").await;
    let gateway = gateway(&fixture.store).await;
    let request = json!({"where": {"name": {"eq": "O'Hara \"ü\" 🦀 \\"}}, "limit": 10});
    let job = NewJob {
        request: Some(request.clone()),
        retry: true,
        ..world.job()
    };
    let claim = world.claim(gateway, &job);
    let placement = claim.placement.unwrap();
    fixture
        .store
        .job_claim_sync(vec![claim], at(1))
        .await
        .unwrap();
    let row = fixture
        .store
        .job_get(world.organisation, job.id)
        .await
        .unwrap();
    let expected = Job {
        id: job.id,
        organisation_id: world.organisation,
        environment_id: world.environment,
        source_id: world.source,
        lens: job.lens.clone(),
        kind: "query".into(),
        status: Dispatched,
        attempt: 1,
        detached: false,
        retry: true,
        runner_id: Some(world.runner),
        session_id: Some(placement.session),
        claimed_by: Some(gateway),
        claimed_at: Some(at(1)),
        dispatched_at: Some(at(1)),
        created_at: at(0),
        deadline_at: at(30),
        finished_at: None,
        error_code: None,
        error_message: None,
        row_count: None,
        duration_ms: None,
        key_id: Some(world.key),
        request: Some(request),
        routing: job.routing.clone(),
        idempotency_key: None,
        request_hash: None,
    };
    assert_eq!(row, expected);
}

async fn a_job_ends_once(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    for terminal in [Completed, Failed, Cancelled, Expired] {
        let job = NewJob {
            request: Some(json!({"q": 1})),
            ..world.job()
        };
        let inline = SyncClaim {
            job: job.clone(),
            holder: gateway,
            placement: None,
        };
        store.job_claim_sync(vec![inline], at(1)).await.unwrap();
        assert_eq!(
            store
                .job_finish(vec![end(gateway, &job, terminal)])
                .await
                .unwrap(),
            [job.id]
        );
        for again in [Completed, Failed, Cancelled, Expired] {
            assert!(
                store
                    .job_finish(vec![end(gateway, &job, again)])
                    .await
                    .unwrap()
                    .is_empty()
            );
        }
        assert!(
            store
                .job_requeue(vec![Requeue {
                    id: job.id,
                    attempt: 1,
                    holder: gateway
                }])
                .await
                .unwrap()
                .is_empty()
        );
        let row = store.job_get(world.organisation, job.id).await.unwrap();
        assert_eq!(
            (row.status, row.finished_at, row.row_count, row.runner_id),
            (terminal, Some(at(2)), Some(3), None)
        );
        assert_eq!((row.request, row.routing), (None, job.routing));
    }
    let job = world.job();
    assert!(matches!(
        store.job_finish(vec![end(gateway, &job, Pending)]).await,
        Err(StoreError::Internal(_))
    ));
}

async fn only_the_holder_at_that_attempt_may_end_a_job(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (holder, other) = (gateway(store).await, gateway(store).await);
    let job = world.job();
    store
        .job_claim_sync(vec![world.claim(holder, &job)], at(1))
        .await
        .unwrap();
    let wrong_attempt = NewJob {
        attempt: 2,
        ..job.clone()
    };
    assert!(
        store
            .job_finish(vec![end(other, &job, Completed)])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        store
            .job_finish(vec![end(holder, &wrong_attempt, Completed)])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        store
            .job_requeue(vec![Requeue {
                id: job.id,
                attempt: 1,
                holder: other
            }])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        store
            .job_requeue(vec![Requeue {
                id: job.id,
                attempt: 2,
                holder
            }])
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(status(&fixture, &world, &job).await, Dispatched);
}

async fn a_batch_applies_what_fits_and_says_which(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let (mine, unknown) = (world.job(), world.job());
    store
        .job_claim_sync(vec![world.claim(gateway, &mine)], at(1))
        .await
        .unwrap();
    let ends = vec![
        end(gateway, &unknown, Failed),
        end(gateway, &mine, Completed),
    ];
    assert_eq!(store.job_finish(ends).await.unwrap(), [mine.id]);
    assert!(store.job_finish(vec![]).await.unwrap().is_empty());
    assert!(
        store
            .job_claim_sync(vec![], at(1))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn an_unplaced_job_is_recorded_as_failed_unless_somebody_has_it(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let (unplaced, held) = (world.job(), world.job());
    store
        .job_claim_sync(vec![world.claim(gateway, &held)], at(1))
        .await
        .unwrap();
    let refused = |job: &NewJob| {
        let code = Some("no_runners_online".into());
        (
            job.clone(),
            Finish {
                error_code: code,
                row_count: None,
                ..end(gateway, job, Failed)
            },
        )
    };
    let recorded = store
        .job_record_unplaced(vec![refused(&unplaced), refused(&held)])
        .await
        .unwrap();
    assert_eq!(recorded, [unplaced.id]);
    let row = store
        .job_get(world.organisation, unplaced.id)
        .await
        .unwrap();
    assert_eq!(
        (row.status, row.error_code.as_deref(), row.claimed_by),
        (Failed, Some("no_runners_online"), None)
    );
    assert_eq!(status(&fixture, &world, &held).await, Dispatched);
}

async fn a_poison_entry_fails_its_batch_and_nothing_of_it_is_kept(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let good = world.job();
    // A job without a kind is nothing that either store takes; what a tenant can send is checked before.
    let (insert, claim) = claim_statements_of_nulls(&good);
    let failed = unit!(store, Transaction, connection => {
        insert.execute(connection).await?;
        claim.execute(connection).await?;
        Ok(())
    });
    let error = failed.unwrap_err();
    assert!(!error.is_connection(), "{error:?}");
    assert!(matches!(
        store.job_get(world.organisation, good.id).await,
        Err(StoreError::NotFound)
    ));
    assert_eq!(
        store
            .job_claim_sync(vec![world.claim(gateway, &good)], at(1))
            .await
            .unwrap(),
        [good.id]
    );
}

/// A good insert, and one that violates a constraint.
fn claim_statements_of_nulls(good: &NewJob) -> (batch::Batch, batch::Batch) {
    let text = "INSERT INTO runner_jobs SELECT * FROM runner_jobs";
    let texts = batch::Texts {
        postgres: text,
        sqlite: text,
    };
    let claim = SyncClaim {
        job: good.clone(),
        holder: GatewayId::new(),
        placement: None,
    };
    let (insert, _) = super::super::jobs::claim_statements(vec![claim], at(1)).unwrap();
    (insert, batch::Batch::new(texts, &()).unwrap())
}

/// Puts jobs straight into a state that takes a whole story to get into.
async fn force(store: &Store, job: &NewJob, status: JobStatus, claimed_at: UtcTime) {
    use diesel::{ExpressionMethods as _, QueryDsl as _};
    use schema::runner_jobs;
    let (id, holder) = (job.id, GatewayId::new());
    unit!(store, Write, connection => {
        diesel::update(runner_jobs::table.find(id))
            .set((
                runner_jobs::status.eq(status),
                runner_jobs::claimed_by.eq(holder),
                runner_jobs::claimed_at.eq(claimed_at),
                runner_jobs::finished_at.eq(None::<UtcTime>),
            ))
            .execute(connection)
            .await?;
        Ok(())
    })
    .unwrap();
}

async fn the_sweep_gives_back_stale_claims_and_ends_late_jobs(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let deadline_at = at(1000);
    let [stale, fresh, sent] = [(); 3].map(|()| NewJob {
        deadline_at,
        ..world.job()
    });
    let late = NewJob {
        request: Some(json!({})),
        ..world.job()
    };
    let ended = world.job();
    let all = [&stale, &fresh, &sent, &late, &ended];
    store
        .job_claim_sync(all.map(|job| world.claim(gateway, job)).into(), at(1))
        .await
        .unwrap();
    force(store, &stale, Claimed, at(10)).await;
    force(store, &fresh, Claimed, at(70)).await;
    store
        .job_finish(vec![end(gateway, &ended, Completed)])
        .await
        .unwrap();
    let sweep = || store.job_sweep(at(100), at(70), at(40), 100);
    assert_eq!(
        sweep().await.unwrap(),
        Settled {
            requeued: 1,
            failed: 0,
            expired: 1
        }
    );
    assert_eq!(sweep().await.unwrap(), Settled::default());
    let expected = [Pending, Claimed, Dispatched, Expired, Completed];
    for (job, expected) in all.into_iter().zip(expected) {
        assert_eq!(status(&fixture, &world, job).await, expected);
    }
    let row = store.job_get(world.organisation, late.id).await.unwrap();
    assert_eq!(
        (row.finished_at, row.error_code.as_deref(), row.request),
        (Some(at(100)), Some("QUERY_TIMEOUT"), None)
    );
    let row = store.job_get(world.organisation, stale.id).await.unwrap();
    assert_eq!(
        (row.attempt, row.claimed_by, row.runner_id),
        (1, None, None)
    );
    assert_eq!(
        store
            .job_sweep(at(5000), at(100), at(4000), 2)
            .await
            .unwrap()
            .expired,
        2
    );
    assert_eq!(
        store
            .job_sweep(at(5000), at(100), at(4000), 2)
            .await
            .unwrap()
            .expired,
        1
    );
}

async fn history_is_pruned_by_age_and_by_number_in_small_batches(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let id = |second: u64, n: u8| {
        let millis = u64::try_from(at(second).get().timestamp_millis()).unwrap();
        JobId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &[n; 10]).into_uuid())
    };
    let jobs: Vec<NewJob> = (0..10)
        .map(|n| NewJob {
            id: id(u64::from(n) * 10, n),
            ..world.job()
        })
        .collect();
    store
        .job_claim_sync(
            jobs.iter().map(|job| world.claim(gateway, job)).collect(),
            at(1),
        )
        .await
        .unwrap();
    let ends = jobs
        .iter()
        .skip(1)
        .map(|job| end(gateway, job, Completed))
        .collect();
    store.job_finish(ends).await.unwrap();
    let left = || async {
        let listed = store
            .job_list(world.organisation, JobFilter::default(), Page::first(100))
            .await
            .unwrap();
        listed
            .into_iter()
            .rev()
            .map(|job| jobs.iter().position(|other| other.id == job.id).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(store.job_prune(at(0), 10, 100).await.unwrap(), 0);
    // By age: jobs 1 and 2 were created before second 30; job 0 has not ended.
    assert_eq!(store.job_prune(at(30), 1000, 1).await.unwrap(), 1);
    assert_eq!(left().await, [0, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(store.job_prune(at(30), 1000, 100).await.unwrap(), 1);
    // By number: the latest four stay.
    assert_eq!(store.job_prune(at(0), 4, 2).await.unwrap(), 2);
    assert_eq!(store.job_prune(at(0), 4, 100).await.unwrap(), 1);
    assert_eq!(left().await, [0, 6, 7, 8, 9]);
}

async fn jobs_are_listed_latest_first_and_by_every_filter(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let second = store
        .source_create(acme.environment, new_source("second"), at(0))
        .await
        .unwrap()
        .id;
    let jobs = [
        acme.job(),
        NewJob {
            source_id: second,
            ..acme.job()
        },
        NewJob {
            created_at: at(50),
            ..acme.job()
        },
    ];
    let mut claims: Vec<SyncClaim> = jobs.iter().map(|job| acme.claim(gateway, job)).collect();
    claims[2].placement = None;
    store.job_claim_sync(claims, at(1)).await.unwrap();
    store
        .job_finish(vec![end(gateway, &jobs[0], Completed)])
        .await
        .unwrap();
    let any = JobFilter::default;
    let cases = [
        (any(), vec![2, 1, 0]),
        (
            JobFilter {
                status: Some(Completed),
                ..any()
            },
            vec![0],
        ),
        (
            JobFilter {
                source: Some(second),
                ..any()
            },
            vec![1],
        ),
        (
            JobFilter {
                runner: Some(acme.runner),
                ..any()
            },
            vec![1, 0],
        ),
        (
            JobFilter {
                from: Some(at(50)),
                ..any()
            },
            vec![2],
        ),
        (
            JobFilter {
                until: Some(at(50)),
                ..any()
            },
            vec![1, 0],
        ),
        (
            JobFilter {
                environment: Some(acme.environment),
                ..any()
            },
            vec![2, 1, 0],
        ),
        (
            JobFilter {
                environment: Some(EnvironmentId::new()),
                ..any()
            },
            vec![],
        ),
    ];
    for (filter, expected) in cases {
        let found = store
            .job_list(acme.organisation, filter.clone(), Page::first(10))
            .await
            .unwrap();
        let expected: Vec<JobId> = expected.into_iter().map(|n: usize| jobs[n].id).collect();
        assert_eq!(
            found.iter().map(|job| job.id).collect::<Vec<_>>(),
            expected,
            "{filter:?}"
        );
    }
    let page = Page {
        after: Some(jobs[2].id),
        limit: 1,
    };
    let found = store
        .job_list(acme.organisation, any(), page)
        .await
        .unwrap();
    assert_eq!(
        found.iter().map(|job| job.id).collect::<Vec<_>>(),
        [jobs[1].id]
    );
}

async fn a_large_batch_is_one_step(fixture: Fixture) {
    let (world, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let gateway = gateway(store).await;
    let jobs: Vec<NewJob> = (0..5000).map(|_| world.job()).collect();
    let claims = jobs.iter().map(|job| world.claim(gateway, job)).collect();
    assert_eq!(
        store.job_claim_sync(claims, at(1)).await.unwrap().len(),
        5000
    );
    let ends = jobs
        .iter()
        .map(|job| end(gateway, job, Completed))
        .collect();
    assert_eq!(store.job_finish(ends).await.unwrap().len(), 5000);
}
