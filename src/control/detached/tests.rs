//! The actor between probes, over a real store: what is taken, when, and what is written down.

use std::sync::Mutex;

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::bridge::{BridgeError, RowBatch};
use crate::control::error::Delivery;
use crate::control::reply::Finished;
use crate::control::testing::{Heard, World, eventually, probe};
use crate::control::vital::Stage;
use crate::domain::job::JobStatus;
use crate::storage::Mark;

struct Rig {
    world: World,
    actor: Addr<DetachedJobs>,
    dispatched: Heard<Dispatch>,
    cancels: Heard<CancelJob>,
    outlook: Arc<Mutex<Outlook>>,
    shutdown: Shutdown,
}

impl Rig {
    async fn new() -> Self {
        tokio::time::pause();
        Self::another().await
    }

    /// One more, in a test whose time stands already.
    async fn another() -> Self {
        let world = World::new().await;
        let outlook = Arc::new(Mutex::new(Outlook::Room(1000)));
        let (dispatch, dispatched) = probe::<Dispatch, _>(|_| ());
        let (cancel, cancels) = probe::<CancelJob, _>(|_| true);
        let answer = outlook.clone();
        let (outlooks, _) = probe::<Outlooks, _>(move |asked: &Outlooks| {
            vec![answer.lock().unwrap().clone(); asked.sources.len()]
        });
        let shutdown = Shutdown::default();
        let ended = Shutdown::default();
        // The probes of a test may stop in any order.
        ended.advance(Stage::Draining);
        let cx = DetachedContext {
            links: DetachedLinks {
                dispatch,
                cancel,
                outlooks,
            },
            store: world.store.clone(),
            catalogue: world.catalogue.clone(),
            sealer: Arc::new(Sealer::for_tests()),
            runtime: tokio::runtime::Handle::current(),
            identity: GatewayIdentity::new(world.gateway),
            clock: world.clock.clone(),
            timing: Timing::default(),
            shutdown: shutdown.clone(),
        };
        let actor = DetachedJobs::new(cx, Vital::new("DetachedJobs", &ended)).start();
        Self {
            world,
            actor,
            dispatched,
            cancels,
            outlook,
            shutdown,
        }
    }

    async fn submit(&self, timeout: Duration) -> JobId {
        let (job, _) = self.world.job(timeout);
        let submission = Submission {
            spec: job.spec.clone(),
            rendering: json!("as it was"),
            idempotency: None,
        };
        let now = self.world.clock.now();
        let timing = Timing::default();
        match submit(&self.world.store, &timing, now, submission).await {
            Ok(Accepted::New(id)) => id,
            other => panic!("not taken in: {other:?}"),
        }
    }

    async fn taken(&self) -> Arc<Job> {
        eventually("a job is dispatched", || self.dispatched.len() > 0).await;
        self.dispatched.take().remove(0).job
    }

    /// What a session does between the claim and the frame.
    async fn mark(&self, job: &Job) {
        let held = job.detached.unwrap();
        let mark = Mark {
            id: job.id,
            attempt: held.attempt.try_into().unwrap(),
            holder: held.holder,
            placement: None,
            dispatched_at: self.world.clock.now(),
        };
        assert_eq!(
            self.world.store.job_mark(vec![mark]).await.unwrap(),
            [job.id]
        );
    }

    async fn row(&self, id: JobId) -> storage::Job {
        let organisation = self.world.organisation();
        self.world.store.job_get(organisation, id).await.unwrap()
    }

    async fn until(&self, id: JobId, status: JobStatus) -> storage::Job {
        for _ in 0..10_000 {
            let row = self.row(id).await;
            if row.status == status {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never {status}, but {:?}", self.row(id).await);
    }
}

const LONG: Duration = Duration::from_secs(300);

fn lost() -> JobError {
    JobError::RunnerFailed {
        message: "Runner x disconnected mid-job".into(),
        delivery: Delivery::Started,
    }
}

fn rows(payload: &'static str) -> RowBatch {
    RowBatch {
        rows: 1,
        payload: Bytes::from_static(payload.as_bytes()),
    }
}

#[actix::test]
async fn a_pending_job_is_claimed_executed_and_kept_with_its_result() {
    let rig = Rig::new().await;
    let id = rig.submit(LONG).await;
    let job = rig.taken().await;
    let held = Held {
        holder: rig.world.gateway,
        attempt: 1,
    };
    assert_eq!((job.id, job.detached), (id, Some(held)));
    assert_eq!(rig.row(id).await.status, JobStatus::Claimed);
    rig.mark(&job).await;
    job.reply.rows(rows("{\"a\":1}"), usize::MAX).unwrap();
    job.reply.rows(rows("{\"a\":2}"), usize::MAX).unwrap();
    job.reply.end(Ok(Finished {
        count: 2,
        ..Finished::default()
    }));
    let row = rig.until(id, JobStatus::Completed).await;
    assert_eq!((row.row_count, row.request), (Some(2), None));
    let now = rig.world.clock.now();
    let kept = rig.world.store.job_result_get(row.organisation_id, id, now);
    let sealed = kept.await.unwrap().unwrap().sealed;
    assert!(
        !sealed.windows(5).any(|bytes| bytes == b"{\"a\":"),
        "in the clear"
    );
    let kept = KeptResult::open(&Sealer::for_tests(), id, &sealed).unwrap();
    assert_eq!(&kept.rows[..], b"{\"a\":1},{\"a\":2}");
    assert_eq!(
        (kept.finished.count, kept.rendering),
        (2, json!("as it was"))
    );
    assert_eq!(rig.actor.send(ExecutingCount).await.unwrap(), 0);
}

#[actix::test]
async fn a_job_that_found_nobody_goes_back_as_it_was_and_its_source_rests() {
    let rig = Rig::new().await;
    let id = rig.submit(LONG).await;
    let mut last: Option<Instant> = None;
    for pause in [0, 1, 2, 4] {
        let job = rig.taken().await;
        let now = Instant::now();
        if let Some(last) = last {
            let rested = now - last;
            assert!(
                rested >= Duration::from_secs(pause),
                "{rested:?} of {pause} s"
            );
        }
        last = Some(now);
        assert_eq!(job.detached.unwrap().attempt, 1);
        job.reply.end(Err(busy()));
        rig.until(id, JobStatus::Pending).await;
    }
}

#[actix::test]
async fn a_lost_runner_is_another_attempt_and_the_third_is_the_last() {
    let rig = Rig::new().await;
    let id = rig.submit(LONG).await;
    for attempt in [1, 2, 3] {
        let job = rig.taken().await;
        assert_eq!(job.detached.unwrap().attempt, attempt);
        rig.mark(&job).await;
        job.reply.rows(rows("{}"), usize::MAX).unwrap();
        job.reply.end(Err(lost()));
    }
    let row = rig.until(id, JobStatus::Failed).await;
    assert_eq!(
        (row.attempt, row.error_code.as_deref()),
        (3, Some("runner_failed"))
    );
}

#[actix::test]
async fn what_the_database_or_the_caller_said_is_final() {
    tokio::time::pause();
    let refused = JobError::Source(BridgeError::QueryFailed("no such table".into()));
    for (error, status, code) in [
        (refused, JobStatus::Failed, "SOURCE_QUERY_FAILED"),
        (JobError::Cancelled, JobStatus::Cancelled, "job_cancelled"),
        (JobError::Timeout, JobStatus::Expired, "QUERY_TIMEOUT"),
    ] {
        let rig = Rig::another().await;
        let id = rig.submit(LONG).await;
        let job = rig.taken().await;
        rig.mark(&job).await;
        job.reply.end(Err(error));
        let row = rig.until(id, status).await;
        assert_eq!((row.attempt, row.error_code.as_deref()), (1, Some(code)));
        assert_eq!(row.request, None);
    }
}

#[actix::test]
async fn a_job_that_nobody_here_can_execute_is_not_touched_until_its_deadline_passes() {
    let rig = Rig::new().await;
    let reason = "the runner of this source is offline".to_owned();
    *rig.outlook.lock().unwrap() = Outlook::Nobody(Unplaceable::Offline { reason });
    let id = rig.submit(Duration::from_secs(30)).await;
    let before = rig.row(id).await;
    // The wall clock of this world is real, tokio's time is not: the row decides.
    for _ in 0..20 {
        rig.actor.send(LookForJobs).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(rig.row(id).await, before);
    *rig.outlook.lock().unwrap() = Outlook::Room(1);
    rig.taken().await;
}

#[actix::test]
async fn a_job_that_nobody_came_for_expires_with_the_reason() {
    let rig = Rig::new().await;
    let reason = "the runner of this source is offline".to_owned();
    *rig.outlook.lock().unwrap() = Outlook::Nobody(Unplaceable::Offline { reason });
    let id = rig.submit(Duration::from_nanos(1)).await;
    let row = rig.until(id, JobStatus::Expired).await;
    assert_eq!(row.error_code.as_deref(), Some("QUERY_TIMEOUT"));
    assert!(
        row.error_message
            .unwrap()
            .contains("the runner of this source is offline")
    );
    assert_eq!((row.claimed_by, row.request), (None, None));
}

#[actix::test]
async fn a_lost_claim_changes_nothing_and_the_job_is_taken_again() {
    let rig = Rig::new().await;
    let id = rig.submit(LONG).await;
    let job = rig.taken().await;
    // As a sweeper would that finds the claim stale.
    let later = rig.world.clock.now().plus(Duration::from_secs(60));
    let early = rig.world.clock.now().minus(Duration::from_secs(60));
    rig.world
        .store
        .job_sweep(later, later, early, 10)
        .await
        .unwrap();
    // It is taken once more, but while the first reader is still there nobody else gets it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.dispatched.len(), 0);
    job.reply.end(Err(JobError::ClaimLost));
    let again = rig.taken().await;
    assert_eq!((again.id, again.detached.unwrap().attempt), (id, 1));
    assert_eq!(rig.row(id).await.status, JobStatus::Claimed);
}

#[actix::test]
async fn a_mark_of_which_nothing_was_heard_is_given_back_either_way() {
    tokio::time::pause();
    for marked in [false, true] {
        let rig = Rig::another().await;
        let id = rig.submit(LONG).await;
        let job = rig.taken().await;
        if marked {
            rig.mark(&job).await;
        }
        job.reply.end(Err(JobError::StoreUnavailable));
        let again = rig.taken().await;
        assert_eq!(again.id, id);
        assert_eq!(again.detached.unwrap().attempt, 1 + u32::from(marked));
    }
}

#[actix::test]
async fn a_result_that_is_too_large_is_cancelled_where_it_comes_from() {
    let rig = Rig::new().await;
    let id = rig.submit(LONG).await;
    let job = rig.taken().await;
    rig.mark(&job).await;
    let payload = Bytes::from(vec![b'x'; collect::MAX_RESULT]);
    job.reply
        .rows(RowBatch { rows: 1, payload }, usize::MAX)
        .unwrap();
    let row = rig.until(id, JobStatus::Failed).await;
    assert_eq!(row.error_code.as_deref(), Some("result_overflow"));
    assert_eq!(rig.cancels.take()[0].job_id, id);
}

#[actix::test]
async fn no_more_are_taken_than_there_is_room_for_and_none_by_a_gateway_that_stops() {
    let rig = Rig::new().await;
    for _ in 0..MAX_EXECUTING + 5 {
        rig.submit(LONG).await;
    }
    eventually("as many as fit", || rig.dispatched.len() == MAX_EXECUTING).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.dispatched.len(), MAX_EXECUTING);
    rig.shutdown.advance(Stage::Draining);
    for dispatch in rig.dispatched.take() {
        dispatch.job.reply.end(Err(JobError::Cancelled));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.dispatched.len(), 0);
}

#[actix::test]
async fn the_source_s_own_timeout_holds_for_an_attempt() {
    let rig = Rig::new().await;
    let change = storage::SourceChange {
        timeout_ms: Some(Some(5_000)),
        ..Default::default()
    };
    let now = rig.world.clock.now();
    rig.world
        .store
        .source_update(rig.world.environment.id, rig.world.source, change, now)
        .await
        .unwrap();
    rig.world.refresh().await;
    rig.submit(LONG).await;
    let job = rig.taken().await;
    assert!(job.deadline <= Instant::now() + Duration::from_secs(5));
    assert!(job.deadline_at >= now.plus(LONG));
}
