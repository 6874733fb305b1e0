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
        let dispatcher =
            Dispatcher::new(links, world.catalogue.clone(), world.clock.clone(), vital).start();
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
        self.dispatcher
            .send(Dispatch { job: job.clone() })
            .await
            .unwrap();
        (job, reply)
    }

    async fn placed(&self, times: usize) {
        eventually("the job is offered", || self.places.len() == times).await;
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
    rig.dispatcher.do_send(Dispatch { job: job.clone() });
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
        cause: CancelCause::CallerGone,
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
async fn a_cancel_that_crosses_a_return_is_not_forgotten() {
    let rig = Rig::new(vec![None]).await;
    let (job, _reply) = rig.dispatch(Duration::from_secs(5)).await;
    rig.placed(1).await;
    let cancel = CancelJob {
        job_id: job.id,
        cause: CancelCause::CallerGone,
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
