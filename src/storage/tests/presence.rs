//! Gateways and the sessions that they hold.

use super::*;
use crate::domain::job::JobStatus::{self, *};

contract!(
    a_session_is_closed_by_its_own_gateway_alone,
    a_session_that_was_overtaken_closes_nothing_but_itself,
    a_gateway_that_was_declared_lost_learns_it,
    a_gateway_that_renewed_is_not_lost,
    the_jobs_of_a_lost_gateway_are_settled,
    what_a_lost_gateway_claims_afterwards_is_settled_too,
    taking_over_leaves_only_what_is_ones_own,
    touches_move_times_forward_only,
    a_revoked_or_foreign_runner_opens_no_session,
);

async fn a_session_is_closed_by_its_own_gateway_alone(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (own, other) = (gateway(store).await, gateway(store).await);
    let session = acme.session(own);
    store.session_open(session.clone()).await.unwrap();
    assert!(!store.session_close(other, session.id, at(2)).await.unwrap());
    assert_eq!(
        store
            .session_list(acme.organisation, acme.runner)
            .await
            .unwrap(),
        std::slice::from_ref(&session)
    );
    assert!(store.session_close(own, session.id, at(2)).await.unwrap());
    assert!(!store.session_close(own, session.id, at(2)).await.unwrap());
    let runner = store
        .runner_get(acme.organisation, acme.runner)
        .await
        .unwrap();
    assert_eq!(
        (runner.last_seen_at, runner.last_version.as_deref()),
        (Some(at(1)), Some("0.1.0"))
    );
}

async fn a_session_that_was_overtaken_closes_nothing_but_itself(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let (old, new) = (acme.session(own), acme.session(own));
    store.session_open(old.clone()).await.unwrap();
    store.session_open(new.clone()).await.unwrap();
    assert!(store.session_close(own, old.id, at(2)).await.unwrap());
    assert_eq!(store.session_list_all().await.unwrap(), [new]);
}

async fn a_gateway_that_was_declared_lost_learns_it(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let lost = gateway(store).await;
    store.session_open(acme.session(lost)).await.unwrap();
    assert!(store.gateway_renew(lost, at(5)).await.unwrap().is_some());
    let row = store.gateway_list().await.unwrap().remove(0);
    assert_eq!((row.renewals, row.seen_at), (1, at(5)));
    assert!(
        store
            .gateway_declare_lost(lost, 1, at(20))
            .await
            .unwrap()
            .is_some()
    );
    assert_eq!(
        store.gateway_declare_lost(lost, 1, at(20)).await.unwrap(),
        None
    );
    assert!(store.session_list_all().await.unwrap().is_empty());
    assert_eq!(store.gateway_renew(lost, at(21)).await.unwrap(), None);
    let refused = store.session_open(acme.session(lost)).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Conflict("this gateway has been declared lost"))
        ),
        "{refused:?}"
    );
}

async fn a_gateway_that_renewed_is_not_lost(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let alive = gateway(store).await;
    store.session_open(acme.session(alive)).await.unwrap();
    store.gateway_renew(alive, at(5)).await.unwrap();
    assert_eq!(
        store.gateway_declare_lost(alive, 0, at(20)).await.unwrap(),
        None
    );
    assert_eq!(store.session_list_all().await.unwrap().len(), 1);
}

/// Jobs in every state that a gateway can leave them in, with what becomes of them.
async fn abandoned(
    store: &Store,
    world: &World,
    holder: GatewayId,
) -> Vec<(NewJob, JobStatus, i32)> {
    use diesel::{ExpressionMethods as _, QueryDsl as _};
    use schema::runner_jobs;
    let kinds = [
        // detached, retry, attempt, left as, becomes, at attempt
        (true, true, 1, Claimed, Pending, 1),
        (true, false, 1, Claimed, Pending, 1),
        (true, true, 1, Dispatched, Pending, 2),
        (true, true, 3, Dispatched, Failed, 3),
        (true, false, 1, Dispatched, Failed, 1),
        (false, true, 1, Dispatched, Failed, 1),
        (false, false, 1, Dispatched, Failed, 1),
        (false, false, 1, Claimed, Failed, 1),
    ];
    let mut jobs = Vec::new();
    for (detached, retry, attempt, left, becomes, next) in kinds {
        let job = NewJob {
            detached,
            retry,
            attempt,
            request: detached.then(|| json!({"q": 1})),
            ..world.job()
        };
        store
            .job_claim_sync(vec![world.claim(holder, &job)], at(1))
            .await
            .unwrap();
        let id = job.id;
        unit!(store, Write, connection => {
            diesel::update(runner_jobs::table.find(id)).set(runner_jobs::status.eq(left)).execute(connection).await?;
            Ok(())
        })
        .unwrap();
        jobs.push((job, becomes, next));
    }
    jobs
}

async fn check(store: &Store, world: &World, jobs: &[(NewJob, JobStatus, i32)]) {
    for (n, (job, status, attempt)) in jobs.iter().enumerate() {
        let row = store.job_get(world.organisation, job.id).await.unwrap();
        assert_eq!((row.status, row.attempt), (*status, *attempt), "case {n}");
        assert_eq!(
            row.finished_at.is_some(),
            row.status.is_terminal(),
            "case {n}"
        );
        assert_eq!(row.request.is_some(), row.status == Pending, "case {n}");
        assert_eq!(
            row.error_code.as_deref(),
            (row.status == Failed).then_some("runner_failed"),
            "case {n}"
        );
    }
}

async fn the_jobs_of_a_lost_gateway_are_settled(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (lost, other) = (gateway(store).await, gateway(store).await);
    let jobs = abandoned(store, &acme, lost).await;
    let theirs = acme.job();
    store
        .job_claim_sync(vec![acme.claim(other, &theirs)], at(1))
        .await
        .unwrap();
    let settled = store
        .gateway_declare_lost(lost, 0, at(20))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        settled,
        Settled {
            requeued: 3,
            failed: 5,
            expired: 0
        }
    );
    check(store, &acme, &jobs).await;
    assert_eq!(
        store
            .job_get(acme.organisation, theirs.id)
            .await
            .unwrap()
            .status,
        Dispatched
    );
    // What the lost gateway says now changes nothing.
    let ends = jobs
        .iter()
        .map(|(job, ..)| end(lost, job, Completed))
        .collect();
    assert!(store.job_finish(ends).await.unwrap().is_empty());
}

async fn what_a_lost_gateway_claims_afterwards_is_settled_too(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (lost, own) = (gateway(store).await, gateway(store).await);
    store.gateway_declare_lost(lost, 0, at(0)).await.unwrap();
    let jobs = abandoned(store, &acme, lost).await;
    let [fresh, silent, mine] = [(); 3].map(|()| NewJob {
        routing: None,
        ..acme.job()
    });
    for (job, holder, claimed_at) in [(&fresh, lost, 10), (&silent, lost, 1), (&mine, own, 1)] {
        store
            .job_claim_sync(vec![acme.claim(holder, job)], at(claimed_at))
            .await
            .unwrap();
    }
    let settle = || store.job_settle_orphans(at(20), at(5));
    let settled = Settled {
        requeued: 3,
        failed: 6,
        expired: 0,
    };
    assert_eq!(settle().await.unwrap(), settled);
    assert_eq!(settle().await.unwrap(), Settled::default());
    check(store, &acme, &jobs).await;
    for (job, status, routing) in [
        (&fresh, Dispatched, None),
        (&silent, Failed, Some(json!({"delivery": "unknown"}))),
        (&mine, Dispatched, None),
    ] {
        let row = store.job_get(acme.organisation, job.id).await.unwrap();
        assert_eq!((row.status, row.routing), (status, routing));
    }
}

async fn taking_over_leaves_only_what_is_ones_own(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let (old, older, own) = (gateway(store).await, GatewayId::new(), gateway(store).await);
    let jobs = abandoned(store, &acme, old).await;
    // One whose gateway is not even in the table any more.
    let orphans = abandoned(store, &acme, older).await;
    let mine = acme.job();
    store
        .job_claim_sync(vec![acme.claim(own, &mine)], at(1))
        .await
        .unwrap();
    store.session_open(acme.session(old)).await.unwrap();
    let kept = acme.session(own);
    store.session_open(kept.clone()).await.unwrap();
    let settled = store.gateway_take_over(own, at(20)).await.unwrap();
    assert_eq!(
        settled,
        Settled {
            requeued: 6,
            failed: 10,
            expired: 0
        }
    );
    check(store, &acme, &jobs).await;
    check(store, &acme, &orphans).await;
    assert_eq!(
        store
            .job_get(acme.organisation, mine.id)
            .await
            .unwrap()
            .status,
        Dispatched
    );
    assert_eq!(store.session_list_all().await.unwrap(), [kept]);
    assert_eq!(store.gateway_list().await.unwrap().len(), 1);
    let left = store.gateway_leave(own, at(30)).await.unwrap();
    assert_eq!(
        left,
        Settled {
            requeued: 0,
            failed: 1,
            expired: 0
        }
    );
    assert!(store.session_list_all().await.unwrap().is_empty());
}

async fn touches_move_times_forward_only(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    let (one, two) = (acme.session(own), acme.session(own));
    store.session_open(one.clone()).await.unwrap();
    store.session_open(two.clone()).await.unwrap();
    let gone = Touch {
        session: SessionId::new(),
        seen_at: at(99),
    };
    let touches = vec![
        gone,
        Touch {
            session: one.id,
            seen_at: at(20),
        },
        Touch {
            session: two.id,
            seen_at: at(30),
        },
    ];
    store.session_touch(touches).await.unwrap();
    store
        .session_touch(vec![Touch {
            session: two.id,
            seen_at: at(10),
        }])
        .await
        .unwrap();
    store.session_touch(vec![]).await.unwrap();
    let seen: Vec<UtcTime> = store
        .session_list_all()
        .await
        .unwrap()
        .iter()
        .map(|s| s.last_seen_at)
        .collect();
    assert_eq!(seen, [at(20), at(30)]);
    assert_eq!(
        store
            .runner_get(acme.organisation, acme.runner)
            .await
            .unwrap()
            .last_seen_at,
        Some(at(30))
    );
}

async fn a_revoked_or_foreign_runner_opens_no_session(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let other = world(store, "other").await;
    let own = gateway(store).await;
    let foreign = Session {
        organisation_id: other.organisation,
        ..acme.session(own)
    };
    assert!(matches!(
        store.session_open(foreign).await,
        Err(StoreError::NotFound)
    ));
    store
        .runner_revoke(acme.organisation, acme.runner, at(1))
        .await
        .unwrap();
    assert!(matches!(
        store.session_open(acme.session(own)).await,
        Err(StoreError::NotFound)
    ));
}
