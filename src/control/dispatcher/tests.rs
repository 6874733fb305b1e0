//! The dispatcher between probes: placement, deadlines, cancellation, what callers are told.

use std::sync::Mutex;

use super::*;
use crate::control::reply::{Finished, Reply, ReplyStream};
use crate::control::testing::{Heard, World, eventually, probe};
use crate::control::vital::Shutdown;

struct Rig {
    world: World,
    dispatcher: Addr<Dispatcher>,
    places: Heard<Place>,
    inline: Heard<Execute>,
    cancels: Heard<CancelExecution>,
    unplaced: Heard<RecordUnplaced>,
    session: SessionId,
}

/// What the picker answers, in turn; the last answer stays.
type Answers = Vec<Option<Unplaceable>>;

impl Rig {
    async fn new(answers: Answers) -> Self {
        tokio::time::pause();
        Self::another(answers).await
    }

    /// One more, in a test whose time stands already.
    async fn another(answers: Answers) -> Self {
        let world = World::new().await;
        let session = SessionId::new();
        let (cancel, cancels) = probe::<CancelExecution, _>(|_| ());
        let answers = Mutex::new(answers);
        let place_cancel = cancel.clone();
        let (place, places) = probe::<Place, _>(move |_| {
            let mut answers = answers.lock().unwrap();
            let answer = if answers.len() > 1 {
                answers.remove(0)
            } else {
                answers[0].clone()
            };
            answer.map_or_else(
                || {
                    Ok(Placement {
                        session_id: session,
                        cancel: place_cancel.clone(),
                    })
                },
                Err,
            )
        });
        let (inline, inlined) = probe::<Execute, _>(|_| ());
        let (record_unplaced, unplaced) = probe::<RecordUnplaced, _>(|_| ());
        let links = DispatcherLinks {
            place,
            inline,
            cancel_inline: cancel,
            record_unplaced,
        };
        // The probes of a test may stop in any order.
        let shutdown = Shutdown::default();
        shutdown.advance(crate::control::vital::Stage::Draining);
        let vital = Vital::new("Dispatcher", &shutdown);
        let dispatcher = Dispatcher::new(
            links,
            world.catalogue.clone(),
            Timing::default(),
            world.clock.clone(),
            vital,
        )
        .start();
        Self {
            world,
            dispatcher,
            places,
            inline: inlined,
            cancels,
            unplaced,
            session,
        }
    }

    async fn dispatch(&self, timeout: Duration) -> (Arc<Job>, ReplyStream) {
        let (job, reply) = self.world.job(timeout);
        self.dispatcher.send(first(&job)).await.unwrap();
        (job, reply)
    }

    /// A job whose caller would wait that long.
    async fn dispatch_patient(&self, wait: u64, timeout: u64) -> (Arc<Job>, ReplyStream) {
        let (job, reply) = self.world.job_with(Duration::from_secs(timeout), |spec| {
            spec.wait = Duration::from_secs(wait);
        });
        self.dispatcher.send(first(&job)).await.unwrap();
        (job, reply)
    }

    async fn returned(&self, job: &Job, attempt: u32, why: Return) {
        let returned = JobReturned {
            job_id: job.id,
            session_id: self.session,
            attempt,
            why,
        };
        self.dispatcher.send(returned).await.unwrap();
    }

    async fn live(&self) -> usize {
        self.dispatcher.send(LiveJobCount).await.unwrap()
    }

    async fn placed(&self, times: usize) {
        eventually("the job is offered", || self.places.len() == times).await;
    }
}

fn first(job: &Arc<Job>) -> Dispatch {
    Dispatch {
        job: job.clone(),
        attempt: 1,
    }
}

async fn end(reply: &mut ReplyStream) -> Result<Finished, JobError> {
    match reply.next().await {
        Some(Reply::End(end)) => end,
        other => panic!("not the end: {other:?}"),
    }
}

#[actix::test]
async fn a_job_that_nobody_can_take_is_answered_and_recorded() {
    let rig = Rig::new(vec![Some(Unplaceable::Offline {
        reason: "offline".into(),
    })])
    .await;
    let (job, mut reply) = rig.dispatch(Duration::from_secs(5)).await;
    assert!(
        matches!(end(&mut reply).await, Err(JobError::NoRunnersOnline { reason, .. }) if reason == "offline")
    );
    eventually("it is recorded", || rig.unplaced.len() == 1).await;
    assert_eq!(rig.unplaced.take()[0].job.id, job.id);
    assert_eq!(rig.dispatcher.send(LiveJobCount).await.unwrap(), 0);
}

#[actix::test]
async fn a_declined_job_is_offered_to_others_and_never_to_the_same_again() {
    let rig = Rig::new(vec![
        None,
        Some(Unplaceable::Offline {
            reason: "nobody else".into(),
        }),
    ])
    .await;
    let (job, mut reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    let why = Return::Busy;
    rig.dispatcher
        .send(JobReturned {
            job_id: job.id,
            session_id: rig.session,
            attempt: 2,
            why,
        })
        .await
        .unwrap();
    rig.placed(2).await;
    let second = rig.places.take().remove(1);
    assert_eq!((second.attempt, second.declined), (2, vec![rig.session]));
    assert!(
        matches!(end(&mut reply).await, Err(JobError::RunnersBusy { .. })),
        "the one there was, was busy"
    );
}

#[actix::test]
async fn a_deadline_ends_the_job_where_it_runs_and_only_there() {
    let rig = Rig::new(vec![None]).await;
    let (job, _reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    assert_eq!(rig.cancels.len(), 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cancels = rig.cancels.take();
    assert!(
        matches!(cancels[..], [CancelExecution { job_id, cause: CancelCause::Deadline }] if job_id == job.id)
    );
    assert_eq!(
        rig.dispatcher.send(LiveJobCount).await.unwrap(),
        1,
        "until the session says that it has ended"
    );
    rig.dispatcher
        .send(JobSettled { job_id: job.id })
        .await
        .unwrap();
    assert_eq!(rig.dispatcher.send(LiveJobCount).await.unwrap(), 0);
}

#[actix::test]
async fn a_cancel_while_the_job_is_being_placed_follows_it() {
    let rig = Rig::new(vec![None]).await;
    let (job, mut reply) = rig.world.job(Duration::from_secs(5));
    rig.dispatcher.do_send(first(&job));
    let cancel = CancelJob {
        job_id: job.id,
        cause: CancelCause::Requested,
    };
    assert!(rig.dispatcher.send(cancel).await.unwrap());
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::Cancelled);
    eventually("the session hears of it", || rig.cancels.len() == 1).await;
}

#[actix::test]
async fn a_cancelled_job_that_comes_back_is_not_placed_again() {
    let rig = Rig::new(vec![None]).await;
    let (job, _reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    let gone = JobReturned {
        job_id: job.id,
        session_id: rig.session,
        attempt: 2,
        why: Return::Gone,
    };
    rig.dispatcher.do_send(gone);
    rig.dispatcher.do_send(CancelJob {
        job_id: job.id,
        cause: CancelCause::Requested,
    });
    let again = JobReturned {
        job_id: job.id,
        session_id: SessionId::new(),
        attempt: 3,
        why: Return::Gone,
    };
    rig.dispatcher.send(again).await.unwrap();
    eventually("it is over", || rig.unplaced.len() == 1).await;
    assert_eq!(rig.unplaced.take()[0].error, JobError::Cancelled);
}

#[actix::test]
async fn a_managed_source_without_runners_is_executed_inline_and_a_runner_local_one_cannot_be() {
    let rig = Rig::new(vec![None]).await;
    let (organisation, now) = (rig.world.organisation(), rig.world.clock.now());
    rig.world
        .store
        .assignment_remove(organisation, rig.world.runner, rig.world.source, now)
        .await
        .unwrap();
    rig.world.refresh().await;
    let (_, mut reply) = rig.dispatch(Duration::from_secs(5)).await;
    assert!(
        matches!(end(&mut reply).await, Err(JobError::NoRunnersOnline { .. })),
        "its credentials are elsewhere"
    );

    let managed = crate::storage::SourceChange {
        credentials_location: Some(crate::storage::StoredCredentials::Managed),
        ..Default::default()
    };
    rig.world
        .store
        .source_update(rig.world.environment.id, rig.world.source, managed, now)
        .await
        .unwrap();
    rig.world.refresh().await;
    let (job, _reply) = rig.dispatch(Duration::from_secs(5)).await;
    eventually("it runs here", || rig.inline.len() == 1).await;
    assert_eq!(rig.inline.take()[0].job.id, job.id);
    assert_eq!(rig.places.len(), 0);
}

#[actix::test]
async fn a_caller_that_left_an_earlier_try_does_not_cancel_this_one() {
    let rig = Rig::new(vec![None]).await;
    let (job, reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    let gone = || CancelJob {
        job_id: job.id,
        cause: CancelCause::CallerGone,
    };
    assert!(!rig.dispatcher.send(gone()).await.unwrap());
    drop(reply);
    assert!(rig.dispatcher.send(gone()).await.unwrap());
}

#[actix::test]
async fn a_cancel_that_crosses_a_return_is_not_forgotten() {
    let rig = Rig::new(vec![None]).await;
    let (job, _reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    let cancel = CancelJob {
        job_id: job.id,
        cause: CancelCause::Requested,
    };
    rig.dispatcher.send(cancel).await.unwrap();
    // The session had given the job back before it heard of the cancel.
    let returned = JobReturned {
        job_id: job.id,
        session_id: rig.session,
        attempt: 2,
        why: Return::Gone,
    };
    rig.dispatcher.send(returned).await.unwrap();
    eventually("it is over", || rig.unplaced.len() == 1).await;
    assert_eq!(
        (
            rig.places.len(),
            rig.dispatcher.send(LiveJobCount).await.unwrap()
        ),
        (1, 0)
    );
}

#[actix::test]
async fn a_job_whose_executor_died_gets_an_answer_all_the_same() {
    let rig = Rig::new(vec![None]).await;
    let (_job, mut reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::Timeout);
    assert_eq!(rig.dispatcher.send(LiveJobCount).await.unwrap(), 0);
}

/// How a job from another gateway came back to it.
async fn handed_back(reply: &mut ReplyStream) -> Declined {
    match end(reply).await {
        Err(JobError::Returned(declined)) => declined,
        other => panic!("not handed back: {other:?}"),
    }
}

#[actix::test]
async fn a_job_from_another_gateway_that_its_session_does_not_take_is_handed_back_unrecorded() {
    let rig = Rig::new(vec![Some(Unplaceable::Declined(Return::NotHere)), None]).await;
    let session = Some(rig.session);
    let (job, mut reply) = rig.world.job_for(Duration::from_secs(5), session);
    rig.dispatcher.do_send(Dispatch { job, attempt: 2 });
    let declined = handed_back(&mut reply).await;
    assert_eq!((declined.why, declined.attempt), (Return::NotHere, 2));

    let (job, mut reply) = rig.world.job_for(Duration::from_secs(5), session);
    rig.dispatcher.do_send(Dispatch {
        job: job.clone(),
        attempt: 2,
    });
    rig.placed(2).await;
    rig.dispatcher.do_send(JobReturned {
        job_id: job.id,
        session_id: rig.session,
        attempt: 3,
        why: Return::Draining,
    });
    let declined = handed_back(&mut reply).await;
    assert_eq!((declined.why, declined.attempt), (Return::Draining, 3));
    assert_eq!(rig.places.take().last().unwrap().attempt, 2);
    assert_eq!(rig.unplaced.len(), 0);
    assert_eq!(rig.dispatcher.send(LiveJobCount).await.unwrap(), 0);
}

#[actix::test]
async fn a_job_from_another_gateway_never_runs_inline() {
    let rig = Rig::new(vec![Some(Unplaceable::Declined(Return::Unassigned))]).await;
    rig.world
        .store
        .assignment_remove(
            rig.world.organisation(),
            rig.world.runner,
            rig.world.source,
            rig.world.clock.now(),
        )
        .await
        .unwrap();
    rig.world.refresh().await;
    let (job, mut reply) = rig.world.job_for(Duration::from_secs(5), Some(rig.session));
    rig.dispatcher.do_send(Dispatch { job, attempt: 1 });
    assert_eq!(handed_back(&mut reply).await.why, Return::Unassigned);
    assert_eq!(rig.inline.len(), 0);
}

#[actix::test]
async fn a_job_that_is_under_way_here_is_not_taken_a_second_time() {
    let rig = Rig::new(vec![None]).await;
    let (job, _reply) = rig.world.job_for(Duration::from_secs(5), Some(rig.session));
    rig.dispatcher.send(first(&job)).await.unwrap();
    rig.placed(1).await;
    let (again, mut reply) = rig.world.job_for(Duration::from_secs(5), Some(rig.session));
    let mut again = Arc::into_inner(again).unwrap();
    again.id = job.id;
    rig.dispatcher.do_send(Dispatch {
        job: Arc::new(again),
        attempt: 2,
    });
    assert_eq!(handed_back(&mut reply).await.why, Return::Busy);
    assert_eq!(rig.dispatcher.send(LiveJobCount).await.unwrap(), 1);
}

fn offline() -> Option<Unplaceable> {
    Some(Unplaceable::Offline {
        reason: "offline".into(),
    })
}

fn moving() -> Option<Unplaceable> {
    Some(Unplaceable::Moving {
        reason: "shutting down".into(),
    })
}

/// Lets time pass and asserts that nothing was said to the caller.
async fn nothing_for(reply: &mut ReplyStream, millis: u64) {
    let said = tokio::time::timeout(Duration::from_millis(millis), reply.next()).await;
    assert!(said.is_err(), "{said:?}");
}

#[actix::test]
async fn a_job_that_may_wait_is_offered_again_until_somebody_takes_it() {
    let rig = Rig::new(vec![offline(), Some(Unplaceable::Busy), None]).await;
    let (job, mut reply) = rig.dispatch_patient(10, 30).await;
    rig.placed(1).await;
    nothing_for(&mut reply, 200).await;
    assert_eq!(
        rig.places.len(),
        1,
        "not more often than every `hold_retry`"
    );
    rig.placed(3).await;
    nothing_for(&mut reply, 20_000).await;
    assert_eq!((rig.places.len(), rig.unplaced.len()), (3, 0));
    assert_eq!(rig.places.take()[2].job.id, job.id);
    assert_eq!(rig.live().await, 1, "it is with a session now");
}

#[actix::test]
async fn a_wait_that_is_over_ends_with_the_reason_and_is_recorded_once() {
    let rig = Rig::new(vec![Some(Unplaceable::Busy), offline()]).await;
    let start = Instant::now();
    let (_job, mut reply) = rig.dispatch_patient(3, 30).await;
    let error = end(&mut reply).await.unwrap_err();
    assert!(
        matches!(&error, JobError::NoRunnersOnline { reason, .. } if reason == "offline"),
        "{error:?}"
    );
    let waited = start.elapsed();
    assert!(
        (Duration::from_secs(3)..Duration::from_millis(3_200)).contains(&waited),
        "{waited:?}"
    );
    eventually("it is recorded", || rig.unplaced.len() == 1).await;
    assert_eq!(rig.live().await, 0);
    let offers = rig.places.len();
    assert!((10..=14).contains(&offers), "{offers}");
}

#[actix::test]
async fn a_wait_ends_with_the_deadline() {
    let rig = Rig::new(vec![offline()]).await;
    let start = Instant::now();
    let (_job, mut reply) = rig.dispatch_patient(60, 2).await;
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::NoRunnersOnline { .. })
    ));
    assert!(start.elapsed() < Duration::from_millis(2_200));
    assert_eq!((rig.unplaced.len(), rig.live().await), (1, 0));
}

#[actix::test]
async fn who_was_busy_is_asked_again_after_a_while() {
    let rig = Rig::new(vec![None, Some(Unplaceable::Busy), None]).await;
    let (job, _reply) = rig.dispatch_patient(10, 30).await;
    rig.placed(1).await;
    rig.returned(&job, 1, Return::Busy).await;
    rig.placed(3).await;
    let offers = rig.places.take();
    assert_eq!(offers[1].declined, [rig.session]);
    assert!(offers[2].declined.is_empty());
}

#[actix::test]
async fn a_cancel_ends_a_job_that_waits() {
    let rig = Rig::new(vec![offline()]).await;
    let (job, mut reply) = rig.dispatch_patient(10, 30).await;
    rig.placed(1).await;
    nothing_for(&mut reply, 100).await;
    let cancel = CancelJob {
        job_id: job.id,
        cause: CancelCause::Requested,
    };
    assert!(rig.dispatcher.send(cancel).await.unwrap());
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::Cancelled);
    let offers = rig.places.len();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.places.len(), offers, "it is offered no more");
    assert_eq!((rig.unplaced.len(), rig.live().await), (1, 0));
}

#[actix::test]
async fn thousands_that_wait_cost_one_question_at_a_time_and_go_oldest_first() {
    let rig = Rig::new(vec![Some(Unplaceable::Busy)]).await;
    let mut waiting = Vec::new();
    for _ in 0..2_000 {
        waiting.push(rig.dispatch_patient(10, 30).await);
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    rig.places.take();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let offers = rig.places.take();
    assert!((6..=9).contains(&offers.len()), "{}", offers.len());
    assert!(offers.iter().all(|offer| offer.job.id == waiting[0].0.id));
}

#[actix::test]
async fn when_a_place_is_free_those_who_wait_go_in_the_order_in_which_they_came() {
    let rig = Rig::new(vec![
        None,
        Some(Unplaceable::Busy),
        None,
        None,
        Some(Unplaceable::Busy),
    ])
    .await;
    let (running, _reply) = rig.dispatch(Duration::from_secs(30)).await;
    rig.placed(1).await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(rig.dispatch_patient(10, 30).await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.placed(2).await;
    let job_id = running.id;
    rig.dispatcher.send(JobSettled { job_id }).await.unwrap();
    rig.placed(5).await;
    let offered: Vec<_> = rig.places.take().iter().map(|place| place.job.id).collect();
    let ids: Vec<_> = waiting.iter().map(|(job, _)| job.id).collect();
    assert_eq!(
        offered,
        [job_id, ids[0], ids[0], ids[1], ids[2]],
        "at once, and no further than the first that nobody takes"
    );
}

#[actix::test]
async fn a_job_whose_runners_are_moving_waits_unasked_and_one_whose_runners_are_offline_does_not() {
    let rig = Rig::new(vec![moving(), moving(), offline(), None]).await;
    let (_job, mut reply) = rig.dispatch(Duration::from_secs(30)).await;
    rig.placed(4).await;
    nothing_for(&mut reply, 10_000).await;

    let rig = Rig::another(vec![moving()]).await;
    let start = Instant::now();
    let (_job, mut reply) = rig.dispatch(Duration::from_secs(30)).await;
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::NoRunnersOnline { .. })
    ));
    let grace = Timing::default().moving_grace;
    assert!((grace..grace + Duration::from_millis(200)).contains(&start.elapsed()));

    let rig = Rig::another(vec![offline()]).await;
    let start = Instant::now();
    let (_job, mut reply) = rig.dispatch(Duration::from_secs(30)).await;
    assert!(end(&mut reply).await.is_err());
    assert!(start.elapsed() < Duration::from_millis(10));
}

#[actix::test]
async fn a_job_that_comes_back_from_a_runner_on_its_way_waits_for_another() {
    tokio::time::pause();
    for why in [Return::Draining, Return::Gone] {
        let rig = Rig::another(vec![None, offline(), offline(), None]).await;
        let (job, mut reply) = rig.dispatch(Duration::from_secs(30)).await;
        rig.placed(1).await;
        rig.returned(&job, 2, why).await;
        rig.placed(4).await;
        nothing_for(&mut reply, 10_000).await;
        assert_eq!(rig.places.take()[3].attempt, 2);
    }
}

#[actix::test]
async fn a_lost_job_that_finds_no_other_runner_ends_as_lost() {
    let rig = Rig::new(vec![None, offline()]).await;
    let (job, mut reply) = rig.dispatch(Duration::from_secs(30)).await;
    rig.placed(1).await;
    let (runner_id, delivery) = (rig.world.runner, Delivery::Started);
    let why = Return::Lost {
        runner_id,
        delivery,
    };
    rig.returned(&job, 2, why).await;
    let error = end(&mut reply).await.unwrap_err();
    assert_eq!(error, JobError::lost(runner_id, delivery));
    eventually("it is recorded", || rig.unplaced.len() == 1).await;
    let recorded = rig.unplaced.take().remove(0);
    assert_eq!((recorded.attempt, recorded.error), (2, error));
}

#[actix::test]
async fn a_gateway_that_closes_holds_nobody() {
    let rig = Rig::new(vec![offline()]).await;
    let (_job, mut reply) = rig.dispatch_patient(60, 100).await;
    rig.placed(1).await;
    nothing_for(&mut reply, 100).await;
    rig.dispatcher.send(EndHeld).await.unwrap();
    assert!(end(&mut reply).await.is_err());
    let (_job, mut reply) = rig.dispatch_patient(60, 100).await;
    assert!(end(&mut reply).await.is_err());
}

#[actix::test]
async fn a_job_of_another_gateway_is_held_there_and_not_here() {
    let rig = Rig::new(vec![moving()]).await;
    let (job, mut reply) = rig.world.job_with(Duration::from_secs(30), |spec| {
        spec.wait = Duration::from_secs(10);
    });
    let mut job = Arc::into_inner(job).unwrap();
    job.only_session = Some(rig.session);
    rig.dispatcher
        .send(Dispatch {
            job: Arc::new(job),
            attempt: 1,
        })
        .await
        .unwrap();
    let start = Instant::now();
    assert!(end(&mut reply).await.is_err());
    assert!(start.elapsed() < Duration::from_millis(10));
}

#[actix::test]
async fn what_has_no_room_here_waits_like_any_other() {
    let rig = Rig::new(vec![None]).await;
    let (organisation, now) = (rig.world.organisation(), rig.world.clock.now());
    let (runner, source) = (rig.world.runner, rig.world.source);
    let store = &rig.world.store;
    store
        .assignment_remove(organisation, runner, source, now)
        .await
        .unwrap();
    let managed = crate::storage::SourceChange {
        credentials_location: Some(crate::storage::StoredCredentials::Managed),
        ..Default::default()
    };
    store
        .source_update(rig.world.environment.id, source, managed, now)
        .await
        .unwrap();
    rig.world.refresh().await;
    let (job, _reply) = rig.dispatch_patient(10, 30).await;
    eventually("it is to run here", || rig.inline.len() == 1).await;
    let job_id = job.id;
    rig.dispatcher.send(InlineFull { job_id }).await.unwrap();
    eventually("it is tried again", || rig.inline.len() == 2).await;

    let (job, mut hasty) = rig.dispatch(Duration::from_secs(30)).await;
    let job_id = job.id;
    rig.dispatcher.send(InlineFull { job_id }).await.unwrap();
    assert!(matches!(
        end(&mut hasty).await,
        Err(JobError::RunnersBusy { .. })
    ));
}

#[actix::test]
async fn a_detached_job_goes_on_at_its_own_attempt_and_is_recorded_by_nobody_here() {
    let nobody = Unplaceable::Offline {
        reason: "offline".into(),
    };
    let rig = Rig::new(vec![None, Some(nobody)]).await;
    let held = crate::control::job::Held {
        holder: rig.world.gateway,
        attempt: 3,
    };
    let (job, mut reply) = rig.world.detached_job(Duration::from_secs(5), held);
    rig.dispatcher
        .send(Dispatch {
            job: job.clone(),
            attempt: 3,
        })
        .await
        .unwrap();
    rig.placed(1).await;
    assert_eq!(rig.places.take()[0].attempt, 3);
    let declined = JobReturned {
        job_id: job.id,
        session_id: rig.session,
        attempt: 3,
        why: Return::Draining,
    };
    rig.dispatcher.send(declined).await.unwrap();
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::NoRunnersOnline { .. })
    ));
    assert_eq!(rig.dispatcher.send(LiveJobCount).await.unwrap(), 0);
    assert_eq!(rig.unplaced.len(), 0);
}
