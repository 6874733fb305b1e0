//! One session between probes: what it says to its socket, the ledger, the dispatcher and the picker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::control::error::{Delivery, JobError};
use crate::control::job::Held;
use crate::control::reply::{Reply, ReplyStream};
use crate::control::testing::{Heard, World, eventually, probe};
use crate::domain::sealing::Sealer;
use crate::protocol::{RowsFrame, close};
use crate::storage::StoreError;

/// A session whose surroundings are probes.
struct Rig {
    world: World,
    session: Addr<RunnerSession>,
    to_runner: Heard<SocketCommand>,
    claims: Heard<ClaimJob>,
    finishes: Heard<FinishJob>,
    requeues: Heard<RequeueJob>,
    /// Whether the ledger finds what it is to requeue.
    requeued: Arc<AtomicBool>,
    returned: Heard<JobReturned>,
    settled: Heard<JobSettled>,
    changed: Heard<SessionChanged>,
    seen: Heard<SessionSeen>,
    removed: Heard<RemoveSession>,
    own_id: GatewayIdentity,
    presences: Heard<SessionPresence>,
    /// Whether the socket writes nothing of what it is handed.
    frozen: Arc<AtomicBool>,
    shutdown: Shutdown,
    cut: Arc<AtomicBool>,
}

impl Rig {
    async fn new() -> Self {
        Self::with_claims(|_| Ok(true)).await
    }

    /// One more, in a test whose time stands already.
    async fn another() -> Self {
        Self::build(|_| Ok(true)).await
    }

    async fn with_claims(
        answer: impl FnMut(&ClaimJob) -> Result<bool, StoreError> + Unpin + 'static,
    ) -> Self {
        tokio::time::pause();
        Self::build(answer).await
    }

    async fn build(
        answer: impl FnMut(&ClaimJob) -> Result<bool, StoreError> + Unpin + 'static,
    ) -> Self {
        let world = World::new().await;
        let (claim, claims) = probe::<ClaimJob, _>(answer);
        let (finish, finishes) = probe::<FinishJob, _>(|_| ());
        let requeued = Arc::new(AtomicBool::new(true));
        let answer = requeued.clone();
        let (requeue, requeues) =
            probe::<RequeueJob, _>(move |_| Ok(answer.load(Ordering::Acquire)));
        let (return_to, returned) = probe::<JobReturned, _>(|_| ());
        let (settle, settled) = probe::<JobSettled, _>(|_| ());
        let (change, changed) = probe::<SessionChanged, _>(|_| ());
        let (watched, _) = probe::<SessionWatched, _>(|_| ());
        let (seen, sightings) = probe::<SessionSeen, _>(|_| ());
        let (unwatched, _) = probe::<SessionUnwatched, _>(|_| ());
        let (remove, removed) = probe::<RemoveSession, _>(|_| ());
        let own_id = GatewayIdentity::new(world.gateway);
        let (presence, presences) = probe::<SessionPresence, _>(|_| ());
        let (written, frozen) = (WrittenGauge::default(), Arc::new(AtomicBool::new(false)));
        let (gauge, stuck) = (written.clone(), frozen.clone());
        let (commands, to_runner) = probe::<SocketCommand, _>(move |command| {
            if matches!(command, SocketCommand::Send(_)) && !stuck.load(Ordering::Acquire) {
                gauge.advance();
            }
        });
        let cut = Arc::new(AtomicBool::new(false));
        let shutdown = Shutdown::default();
        let cx = SessionContext {
            links: SessionLinks {
                claim,
                finish,
                requeue,
                returned: return_to,
                settled: settle,
                changed: change,
                watched,
                seen,
                unwatched,
                remove,
                presence,
            },
            store: world.store.clone(),
            catalogue: world.catalogue.clone(),
            credentials: Credentials::new(Arc::new(Sealer::for_tests())),
            identity: own_id.clone(),
            timing: Timing::default(),
            clock: world.clock.clone(),
            compress: true,
            shutdown: shutdown.clone(),
        };
        let identity = Identity {
            runner_id: world.runner,
            organisation_id: world.organisation(),
            key_id: world.key,
            remote_addr: None,
        };
        let flag = cut.clone();
        let socket = SocketLink {
            commands,
            queued: ByteGauge::default(),
            written,
            received: ByteGauge::default(),
            cut: Box::new(move || flag.store(true, Ordering::Release)),
        };
        let session = RunnerSession::new(identity, socket, cx).start();
        Self {
            world,
            session,
            to_runner,
            claims,
            finishes,
            requeues,
            requeued,
            returned,
            settled,
            changed,
            seen: sightings,
            removed,
            own_id,
            presences,
            frozen,
            shutdown,
            cut,
        }
    }

    async fn says(&self, frame: Value) {
        self.session
            .send(FrameReceived::Text(frame.to_string().into()))
            .await
            .unwrap();
    }

    /// Frames that went to the runner, without pings.
    fn frames(&self) -> Vec<Value> {
        let sent = self
            .to_runner
            .take()
            .into_iter()
            .filter_map(|command| match command {
                SocketCommand::Send(text) => serde_json::from_str::<Value>(&text).ok(),
                SocketCommand::Ping => None,
                SocketCommand::Close { code, reason } => {
                    Some(json!({"type": "closed", "code": code, "reason": reason}))
                }
            });
        sent.filter(|frame| frame["type"] != "ping").collect()
    }

    async fn frame(&self, kind: &str) -> Value {
        let mut found = Value::Null;
        eventually(&format!("the runner gets `{kind}`"), || {
            found = self
                .frames()
                .into_iter()
                .find(|frame| frame["type"] == kind)
                .unwrap_or_default();
            !found.is_null()
        })
        .await;
        found
    }

    async fn hello(&self, version: u32, jobs: u32) -> Value {
        self.says(json!({"type": "hello", "version": version, "runnerId": self.world.runner.to_string(),
            "capabilities": ["@semilayer/bridge-sqlite"], "maxConcurrentJobs": jobs, "compression": ["zstd"]}))
            .await;
        self.frame("hello-ack").await
    }

    /// Hands the session a job and answers the attempt that the runner was sent.
    async fn execute(&self) -> (Arc<Job>, ReplyStream, AttemptId) {
        self.execute_job(self.world.job(Duration::from_secs(30)))
            .await
    }

    /// The same with a job that wants to be executed once more when its runner is lost.
    async fn execute_insistent(&self) -> (Arc<Job>, ReplyStream, AttemptId) {
        let timeout = Duration::from_secs(30);
        self.execute_job(self.world.job_with(timeout, |spec| spec.retry = true))
            .await
    }

    async fn execute_job(
        &self,
        (job, reply): (Arc<Job>, ReplyStream),
    ) -> (Arc<Job>, ReplyStream, AttemptId) {
        self.session
            .send(Execute {
                job: job.clone(),
                attempt: 1,
                session_id: None,
            })
            .await
            .unwrap();
        let frame = self.frame("job").await;
        (job, reply, frame["id"].as_str().unwrap().parse().unwrap())
    }

    async fn rows(&self, id: AttemptId, bytes: usize) {
        let rows = RowsFrame {
            id,
            rows: 1,
            more: false,
            payload: vec![b'1'; bytes].into(),
        };
        self.binary(rows).await;
    }

    /// Sends a part of a row, of which more follows.
    async fn part(&self, id: AttemptId, bytes: usize) {
        let part = RowsFrame {
            id,
            rows: 0,
            more: true,
            payload: vec![b'1'; bytes].into(),
        };
        self.binary(part).await;
    }

    async fn binary(&self, rows: RowsFrame) {
        self.session
            .send(FrameReceived::Binary(rows.encode()))
            .await
            .unwrap();
    }
}

async fn end(reply: &mut ReplyStream) -> Result<crate::control::Finished, JobError> {
    loop {
        match reply.next().await {
            Some(Reply::Rows(_) | Reply::Restarted) => {}
            Some(Reply::End(end)) => return end,
            None => panic!("a reply without an end"),
        }
    }
}

#[actix::test]
async fn a_hello_is_answered_in_the_version_that_both_speak() {
    let rig = Rig::new().await;
    let ack = rig.hello(7, 8).await;
    assert_eq!(
        (ack["serverVersion"].as_u64(), ack["compression"].as_str()),
        (Some(2), Some("zstd"))
    );
    assert_eq!(ack["assignedSources"][0]["name"], "db");
    assert_eq!(
        ack["assignedSources"][0].get("config"),
        None,
        "credentials never go with assignments"
    );
    assert!(matches!(&rig.changed.take()[..], [SessionChanged::Opened(r)] if r.capacity == 8));

    let rig = Rig::another().await;
    let ack = rig.hello(1, 8).await;
    assert_eq!(ack["serverVersion"], 1);
    assert_eq!(
        ack.get("sessionId"),
        None,
        "protocol 1 knows nothing of protocol 2"
    );
    assert!(matches!(&rig.changed.take()[..], [SessionChanged::Opened(r)] if r.capacity == 64));
}

#[actix::test]
async fn what_breaks_the_protocol_closes_with_4002() {
    tokio::time::pause();
    for frame in [
        json!({"type": "hello", "runnerId": "primary"}),
        json!({"type": "hello", "version": 0, "runnerId": "primary"}),
        json!({"type": "done", "id": AttemptId::new()}),
        json!({"type": "nonsense"}),
    ] {
        let rig = Rig::another().await;
        rig.says(frame.clone()).await;
        assert_eq!(
            rig.frame("closed").await["code"],
            close::PROTOCOL_ERROR,
            "{frame}"
        );
    }
    let rig = Rig::another().await;
    rig.rows(AttemptId::new(), 5).await;
    assert_eq!(
        rig.frame("closed").await["code"],
        close::PROTOCOL_ERROR,
        "binary before hello"
    );
}

#[actix::test]
async fn a_hello_of_another_runner_closes_with_4004() {
    let rig = Rig::new().await;
    rig.says(json!({"type": "hello", "version": 2, "runnerId": RunnerId::new().to_string()}))
        .await;
    assert_eq!(rig.frame("closed").await["code"], close::WRONG_RUNNER);
}

#[actix::test]
async fn a_silent_socket_is_closed_after_ten_seconds_and_then_cut() {
    let rig = Rig::new().await;
    tokio::time::sleep(Duration::from_millis(9_500)).await;
    assert_eq!(rig.frames().len(), 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.frame("closed").await["code"], close::PROTOCOL_ERROR);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        rig.cut.load(Ordering::Acquire),
        "a peer that does not answer the close is cut"
    );
}

#[actix::test]
async fn a_revoked_token_closes_with_4001_as_soon_as_the_catalogue_says_so() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    rig.world
        .store
        .runner_revoke(
            rig.world.organisation(),
            rig.world.runner,
            rig.world.clock.now(),
        )
        .await
        .unwrap();
    rig.world.refresh().await;
    assert_eq!(rig.frame("closed").await["code"], close::TOKEN_REVOKED);
}

#[actix::test]
async fn changed_assignments_are_pushed() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (organisation, now) = (rig.world.organisation(), rig.world.clock.now());
    rig.world
        .store
        .assignment_remove(organisation, rig.world.runner, rig.world.source, now)
        .await
        .unwrap();
    rig.world.refresh().await;
    assert_eq!(
        rig.frame("assignments-changed").await["assignedSources"],
        json!([])
    );
}

#[actix::test]
async fn a_job_is_claimed_before_it_is_sent_and_its_rows_reach_the_caller() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, mut reply, id) = rig.execute().await;
    assert_eq!(rig.claims.take()[0].job.id, job.id);
    rig.says(json!({"type": "accepted", "id": id})).await;
    rig.rows(id, 100).await;
    rig.says(json!({"type": "done", "id": id, "meta": {"count": 9, "total": 5, "last": [1]}}))
        .await;
    let Some(Reply::Rows(batch)) = reply.next().await else {
        panic!("no rows")
    };
    assert_eq!(batch.payload.len(), 100);
    let finished = end(&mut reply).await.unwrap();
    assert_eq!(
        (finished.count, finished.total, finished.last),
        (1, Some(5), Some(vec![json!(1)]))
    );
    eventually("the end is recorded", || rig.finishes.len() == 1).await;
    assert_eq!(rig.settled.take()[0].job_id, job.id);
}

#[actix::test]
async fn a_lost_socket_fails_what_was_sent_with_how_far_it_came() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut sent, _) = rig.execute().await;
    let (_, mut accepted, id) = rig.execute().await;
    rig.says(json!({"type": "accepted", "id": id})).await;
    rig.session.send(SocketClosed).await.unwrap();
    let message = format!("Runner {} disconnected mid-job", rig.world.runner);
    for (reply, delivery) in [
        (&mut sent, Delivery::Unknown),
        (&mut accepted, Delivery::Started),
    ] {
        assert_eq!(
            end(reply).await.unwrap_err(),
            JobError::RunnerFailed {
                message: message.clone(),
                delivery
            }
        );
    }
    eventually("the session is gone", || !rig.session.connected()).await;
    assert_eq!(rig.finishes.len(), 2);
    assert!(
        rig.changed
            .take()
            .iter()
            .any(|change| matches!(change, SessionChanged::Closed { .. }))
    );
}

#[actix::test]
async fn a_job_whose_frame_never_left_goes_back_for_a_next_attempt() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, _reply) = rig.world.job(Duration::from_secs(30));
    // The claim's answer comes through a mailbox, so the close that is sent next overtakes it.
    rig.session.do_send(Execute {
        job: job.clone(),
        attempt: 1,
        session_id: None,
    });
    rig.session.do_send(SocketClosed);
    eventually("the job comes back", || rig.returned.len() == 1).await;
    let returned = rig.returned.take().remove(0);
    assert_eq!(
        (returned.job_id, returned.attempt, returned.why),
        (job.id, 2, crate::control::dispatcher::Return::Gone)
    );
    assert_eq!(rig.requeues.take()[0].attempt, 1);
    assert!(
        rig.frames().iter().all(|frame| frame["type"] != "job"),
        "nothing was sent"
    );
}

#[actix::test]
async fn a_refused_job_goes_back_and_one_that_was_accepted_cannot_be_refused() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, _reply, id) = rig.execute().await;
    rig.says(json!({"type": "refused", "id": id, "reason": "busy"}))
        .await;
    eventually("the job comes back", || rig.returned.len() == 1).await;
    assert_eq!(rig.returned.take()[0].attempt, 2);

    let (_, _reply, id) = rig.execute().await;
    rig.says(json!({"type": "accepted", "id": id})).await;
    rig.says(json!({"type": "refused", "id": id, "reason": "busy"}))
        .await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(rig.returned.len(), 0);
}

#[actix::test]
async fn a_full_session_declines_and_claims_nothing() {
    let rig = Rig::new().await;
    rig.hello(2, 1).await;
    let (_, _reply, _) = rig.execute().await;
    rig.claims.take();
    let (job, _second) = rig.world.job(Duration::from_secs(30));
    rig.session
        .send(Execute {
            job,
            attempt: 1,
            session_id: None,
        })
        .await
        .unwrap();
    eventually("the job comes back", || rig.returned.len() == 1).await;
    let returned = rig.returned.take().remove(0);
    assert_eq!(
        (returned.attempt, returned.why),
        (1, crate::control::dispatcher::Return::Busy)
    );
    assert_eq!(rig.claims.len(), 0);
}

#[actix::test]
async fn a_claim_that_somebody_else_won_is_not_sent() {
    let rig = Rig::with_claims(|_| Ok(false)).await;
    rig.hello(2, 8).await;
    let (job, _reply) = rig.world.job(Duration::from_secs(30));
    rig.session
        .send(Execute {
            job,
            attempt: 1,
            session_id: None,
        })
        .await
        .unwrap();
    eventually("the job is settled", || rig.settled.len() == 1).await;
    assert!(rig.frames().iter().all(|frame| frame["type"] != "job"));
}

#[actix::test]
async fn a_claim_without_an_answer_is_never_sent_and_the_caller_hears_503() {
    let rig = Rig::with_claims(|_| Err(StoreError::Unavailable("gone".into()))).await;
    rig.hello(2, 8).await;
    let (job, mut reply) = rig.world.job(Duration::from_secs(30));
    rig.session
        .send(Execute {
            job,
            attempt: 1,
            session_id: None,
        })
        .await
        .unwrap();
    assert_eq!(
        end(&mut reply).await.unwrap_err(),
        JobError::StoreUnavailable
    );
    assert!(rig.frames().iter().all(|frame| frame["type"] != "job"));
}

#[actix::test]
async fn a_cancel_reaches_the_runner_and_one_during_the_claim_sends_nothing() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, mut reply, id) = rig.execute().await;
    rig.session
        .send(CancelExecution {
            job_id: job.id,
            cause: CancelCause::Requested,
        })
        .await
        .unwrap();
    assert_eq!(rig.frame("cancel").await["id"], id.to_string());
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::Cancelled);

    let (job, mut reply) = rig.world.job(Duration::from_secs(30));
    rig.session.do_send(Execute {
        job: job.clone(),
        attempt: 1,
        session_id: None,
    });
    rig.session.do_send(CancelExecution {
        job_id: job.id,
        cause: CancelCause::Deadline,
    });
    assert_eq!(
        end(&mut reply).await.unwrap_err(),
        JobError::StoreUnavailable,
        "never sent"
    );
    eventually("the claim is settled in the record", || {
        rig.finishes.len() == 2
    })
    .await;
    assert!(rig.frames().iter().all(|frame| frame["type"] != "job"));
}

#[actix::test]
async fn what_the_caller_takes_becomes_credit_in_steps_of_half_a_window() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    let half = crate::protocol::DEFAULT_WINDOW_BYTES as usize / 2;
    rig.rows(id, half - 1).await;
    rig.rows(id, 1).await;
    reply.next().await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(rig.frames().iter().all(|frame| frame["type"] != "credit"));
    reply.next().await;
    let credit = rig.frame("credit").await;
    assert_eq!(
        (credit["id"].as_str(), credit["bytes"].as_u64()),
        (Some(id.to_string().as_str()), Some(half as u64))
    );
}

#[actix::test]
async fn rows_without_credit_close_the_session_and_one_frame_may_overdraw() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    let window = crate::protocol::DEFAULT_WINDOW_BYTES as usize;
    rig.rows(id, window - 1).await;
    rig.rows(id, window).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(rig.frames().is_empty(), "one byte of credit was left");
    rig.rows(id, 1).await;
    assert_eq!(rig.frame("closed").await["code"], close::PROTOCOL_ERROR);
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::RunnerFailed {
            delivery: Delivery::Started,
            ..
        })
    ));
}

#[actix::test]
async fn a_row_in_parts_takes_credit_for_each_and_counts_once() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    let frame = crate::protocol::MAX_FRAME_BYTES as usize;
    rig.rows(id, 10).await;
    for _ in 0..3 {
        rig.part(id, frame).await;
        while reply.unread_bytes() > 0 {
            reply.next().await;
        }
        rig.frame("credit").await;
    }
    rig.rows(id, 10).await;
    rig.says(json!({"type": "done", "id": id})).await;
    assert_eq!(end(&mut reply).await.unwrap().count, 2);

    let (_, mut reply, id) = rig.execute().await;
    rig.part(id, frame).await;
    rig.part(id, frame).await;
    assert_eq!(
        rig.frame("closed").await["code"],
        close::PROTOCOL_ERROR,
        "the first frame had used up the window"
    );
    assert!(end(&mut reply).await.is_err());
}

#[actix::test]
async fn other_rows_in_the_middle_of_one_close_the_session() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    rig.part(id, 10).await;
    let payload = b"2},{3}".as_slice().into();
    rig.binary(RowsFrame {
        id,
        rows: 2,
        more: false,
        payload,
    })
    .await;
    assert_eq!(rig.frame("closed").await["code"], close::PROTOCOL_ERROR);
    assert!(end(&mut reply).await.is_err());
}

#[actix::test]
async fn a_job_that_is_done_in_the_middle_of_a_row_closes_the_session() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    rig.part(id, 10).await;
    rig.says(json!({"type": "done", "id": id})).await;
    assert_eq!(rig.frame("closed").await["code"], close::PROTOCOL_ERROR);
    assert!(end(&mut reply).await.is_err());
}

#[actix::test]
async fn a_row_in_parts_that_gets_too_large_ends_its_job_and_no_other() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    let (_, mut other, other_id) = rig.execute().await;
    let frame = crate::protocol::MAX_FRAME_BYTES as usize;
    let parts = crate::protocol::MAX_ROW_BYTES as usize / frame;
    for _ in 0..parts {
        rig.part(id, frame).await;
        reply.next().await;
        rig.frame("credit").await;
    }
    rig.rows(id, 1).await;
    let Err(JobError::ResultOverflow(message)) = end(&mut reply).await else {
        panic!("a row of any size");
    };
    assert!(message.contains("16777216 bytes"), "{message}");
    assert_eq!(rig.frame("cancel").await["id"], id.to_string());
    rig.rows(other_id, 10).await;
    rig.says(json!({"type": "done", "id": other_id})).await;
    assert_eq!(end(&mut other).await.unwrap().count, 1);
}

#[actix::test]
async fn a_slow_caller_of_a_protocol_1_runner_overflows_alone() {
    let rig = Rig::new().await;
    rig.hello(1, 8).await;
    let (_, mut slow, id) = rig.execute().await;
    let (_, mut other, other_id) = rig.execute().await;
    let big = "x".repeat(1 << 20);
    for _ in 0..10 {
        rig.says(json!({"type": "chunk", "id": id, "rows": [{"a": big}]}))
            .await;
    }
    assert!(matches!(
        end(&mut slow).await,
        Err(JobError::ResultOverflow(_))
    ));
    assert_eq!(rig.frame("cancel").await["id"], id.to_string());
    rig.says(json!({"type": "chunk", "id": other_id, "rows": [{"a": 1}]}))
        .await;
    rig.says(json!({"type": "done", "id": other_id})).await;
    assert_eq!(end(&mut other).await.unwrap().count, 1);
}

#[actix::test]
async fn a_chunk_of_a_protocol_1_runner_that_maps_to_too_much_ends_its_job() {
    let rig = Rig::new().await;
    rig.hello(1, 8).await;
    let often = (0..9).map(|n| ("a".to_owned(), format!("o{n}"))).collect();
    let timeout = Duration::from_secs(30);
    let job = rig
        .world
        .job_with(timeout, |spec| spec.fields = Some(often));
    let (_, mut reply, id) = rig.execute_job(job).await;
    let big = "x".repeat(1 << 20);
    rig.says(json!({"type": "chunk", "id": id, "rows": [{"a": big}]}))
        .await;
    let Err(JobError::ResultOverflow(message)) = end(&mut reply).await else {
        panic!("it was taken");
    };
    assert!(message.contains("mapped to the lens"), "{message}");
    assert_eq!(rig.frame("cancel").await["id"], id.to_string());
}

#[actix::test]
async fn answers_for_unknown_attempts_are_ignored() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    rig.says(json!({"type": "done", "id": AttemptId::new()}))
        .await;
    rig.rows(AttemptId::new(), 10).await;
    rig.says(json!({"type": "done", "id": id})).await;
    rig.rows(id, 10).await;
    rig.says(json!({"type": "error", "id": id, "code": "QUERY_TIMEOUT", "message": "late"}))
        .await;
    assert_eq!(end(&mut reply).await.unwrap().count, 0);
    assert!(rig.frames().is_empty());
}

#[actix::test]
async fn a_runner_that_talks_but_does_not_read_is_closed() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.session.do_send(FrameReceived::Text(
            json!({"type": "heartbeat"}).to_string().into(),
        ));
    }
    assert!(
        rig.cut.load(Ordering::Acquire),
        "no pong for longer than a heartbeat may be missing"
    );
}

#[actix::test]
async fn a_job_behind_the_end_of_the_socket_is_given_back_and_not_lost() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, _reply) = rig.world.job(Duration::from_secs(30));
    rig.session.do_send(SocketClosed);
    rig.session.do_send(Execute {
        job: job.clone(),
        attempt: 1,
        session_id: None,
    });
    eventually("the job comes back", || rig.returned.len() == 1).await;
    let returned = rig.returned.take().remove(0);
    assert_eq!((returned.job_id, returned.attempt), (job.id, 1));
    eventually("and then the session ends", || !rig.session.connected()).await;
}

#[actix::test]
async fn pongs_are_no_heartbeats() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let seen = rig.seen.len();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.session.send(FrameReceived::Pong).await.unwrap();
    }
    assert_eq!(rig.seen.len(), seen);
    rig.says(json!({"type": "heartbeat"})).await;
    eventually("a heartbeat is one", || rig.seen.len() > seen).await;
}

#[actix::test]
async fn buckets_of_a_runner_are_bounded() {
    let rig = Rig::new().await;
    rig.hello(1, 8).await;
    let (_, mut reply, id) = rig.execute().await;
    let big = "x".repeat(1 << 20);
    for _ in 0..10 {
        rig.says(json!({"type": "chunk", "id": id, "rows": [], "agg": [{"dims": big}]}))
            .await;
    }
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::ResultOverflow(_))
    ));
}

#[actix::test]
async fn a_reason_fits_into_a_close_frame() {
    let rig = Rig::new().await;
    rig.says(json!({"type": "ünknown".repeat(100)})).await;
    let closed = rig.frame("closed").await;
    assert_eq!(closed["code"], close::PROTOCOL_ERROR);
    assert!(closed["reason"].as_str().unwrap().len() <= 120, "{closed}");
}

#[actix::test]
async fn texts_that_no_store_takes_are_refused_at_the_hello() {
    tokio::time::pause();
    for (field, value) in [
        ("hostname", json!("a\0b")),
        ("labels", json!(["x".repeat(1000)])),
        ("capabilities", json!(vec!["a"; 100])),
    ] {
        let rig = Rig::another().await;
        let mut hello = json!({"type": "hello", "version": 2, "runnerId": "primary"});
        hello[field] = value;
        rig.says(hello).await;
        assert_eq!(
            rig.frame("closed").await["code"],
            close::PROTOCOL_ERROR,
            "{field}"
        );
    }
}

#[actix::test]
async fn a_claim_that_comes_after_the_runner_said_draining_goes_elsewhere() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, _reply) = rig.world.job(Duration::from_secs(30));
    rig.session.do_send(Execute {
        job,
        attempt: 1,
        session_id: None,
    });
    rig.session.do_send(FrameReceived::Text(
        json!({"type": "draining"}).to_string().into(),
    ));
    eventually("the job comes back", || rig.returned.len() == 1).await;
    assert_eq!(
        rig.returned.take()[0].why,
        crate::control::dispatcher::Return::Draining
    );
    assert!(
        rig.frames().iter().all(|frame| frame["type"] != "job"),
        "nothing was sent"
    );
}

#[actix::test]
async fn a_gateway_that_was_declared_lost_closes_its_sessions_and_fails_what_ran_there() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, _) = rig.execute().await;
    rig.own_id.assume(GatewayId::new());
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::RunnerFailed {
            delivery: Delivery::Unknown,
            ..
        })
    ));
    assert_eq!(rig.frame("closed").await["code"], close::GOING_AWAY);
    eventually("its row is to go", || rig.removed.len() == 1).await;
    let removed = rig.removed.take();
    assert_eq!(
        removed[0].gateway_id, rig.world.gateway,
        "under the id that it had"
    );
}

#[actix::test]
async fn a_session_that_was_opened_under_an_id_that_is_lost_by_now_closes() {
    let rig = Rig::new().await;
    rig.own_id.assume(GatewayId::new());
    assert_eq!(rig.frame("closed").await["code"], close::GOING_AWAY);
}

#[actix::test]
async fn a_lost_job_that_asked_for_it_is_given_back_once_and_its_caller_starts_over() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, mut reply, id) = rig.execute_insistent().await;
    rig.rows(id, 100).await;
    assert!(matches!(reply.next().await, Some(Reply::Rows(_))));
    rig.rows(id, 100).await;
    rig.session.send(SocketClosed).await.unwrap();
    eventually("the job comes back", || rig.returned.len() == 1).await;
    let returned = rig.returned.take().remove(0);
    assert_eq!((returned.job_id, returned.attempt), (job.id, 2));
    assert_eq!(
        returned.why,
        crate::control::dispatcher::Return::Lost {
            runner_id: rig.world.runner,
            delivery: Delivery::Started
        }
    );
    assert_eq!(rig.requeues.take()[0].attempt, 1, "the store comes first");
    assert!(matches!(reply.next().await, Some(Reply::Restarted)));
    assert_eq!((rig.finishes.len(), rig.settled.len()), (0, 0));
}

#[actix::test]
async fn a_job_that_was_lost_before_is_not_executed_a_third_time() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (job, mut reply, _) = rig.execute_insistent().await;
    assert!(job.reply.restart(), "it was lost by another session");
    rig.session.send(SocketClosed).await.unwrap();
    assert!(matches!(reply.next().await, Some(Reply::Restarted)));
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::RunnerFailed {
            delivery: Delivery::Unknown,
            ..
        })
    ));
    assert_eq!((rig.returned.len(), rig.requeues.len()), (0, 0));
}

#[actix::test]
async fn a_lost_job_whose_caller_was_sent_something_fails_as_partial() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut reply, id) = rig.execute_insistent().await;
    rig.rows(id, 100).await;
    assert!(matches!(reply.next().await, Some(Reply::Rows(_))));
    assert!(reply.commit());
    rig.session.send(SocketClosed).await.unwrap();
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::RunnerFailed {
            delivery: Delivery::Partial,
            ..
        })
    ));
    assert_eq!((rig.returned.len(), rig.requeues.len()), (0, 0));
}

#[actix::test]
async fn what_a_runner_reports_is_never_tried_again() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    for code in ["SOURCE_QUERY_FAILED", "QUERY_TIMEOUT", "runner_failed"] {
        let (_, mut reply, id) = rig.execute_insistent().await;
        rig.says(json!({"type": "error", "id": id, "code": code, "message": "no"}))
            .await;
        assert!(end(&mut reply).await.is_err(), "{code}");
    }
    assert_eq!((rig.returned.len(), rig.requeues.len()), (0, 0));
}

#[actix::test]
async fn a_job_that_the_store_does_not_give_back_fails() {
    let rig = Rig::new().await;
    rig.hello(1, 8).await;
    rig.requeued.store(false, Ordering::Release);
    let (_, mut reply, id) = rig.execute_insistent().await;
    rig.says(json!({"type": "chunk", "id": id, "rows": [{"a": 1}]}))
        .await;
    rig.session.send(SocketClosed).await.unwrap();
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::RunnerFailed {
            delivery: Delivery::Started,
            ..
        })
    ));
    assert_eq!(rig.returned.len(), 0);
    eventually("it is recorded", || rig.finishes.len() == 1).await;
}

#[actix::test]
async fn a_frame_that_a_frozen_socket_never_wrote_is_given_back() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let (_, mut written, _) = rig.execute().await;
    // Its peer stops reading.
    rig.frozen.store(true, Ordering::Release);
    let (unwritten, _reply, _) = rig.execute().await;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.session.do_send(FrameReceived::Text(
            json!({"type": "heartbeat"}).to_string().into(),
        ));
        if rig.cut.load(Ordering::Acquire) {
            break;
        }
    }
    eventually("it comes back", || rig.returned.len() == 1).await;
    let returned = rig.returned.take().remove(0);
    assert_eq!(
        (returned.job_id, returned.attempt, returned.why),
        (unwritten.id, 2, crate::control::dispatcher::Return::Gone)
    );
    assert!(matches!(
        end(&mut written).await,
        Err(JobError::RunnerFailed {
            delivery: Delivery::Unknown,
            ..
        })
    ));
}

#[actix::test]
async fn a_runner_that_can_move_takes_jobs_until_it_says_that_it_goes() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    rig.shutdown.advance(Stage::Draining);
    assert!(rig.frame("drain").await["deadlineMs"].as_u64().unwrap() > 0);
    rig.changed.take();
    let (_, mut reply, id) = rig.execute().await;
    rig.says(json!({"type": "done", "id": id})).await;
    assert!(end(&mut reply).await.is_ok(), "it is served while it moves");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(rig.frames().is_empty(), "it is not closed, nor asked again");
    rig.says(json!({"type": "draining"})).await;
    eventually("the picker hears of it", || {
        matches!(&rig.changed.take()[..], [SessionChanged::Draining { .. }])
    })
    .await;
}

#[actix::test]
async fn a_runner_that_comes_while_the_gateway_stops_is_asked_to_go_elsewhere() {
    let rig = Rig::new().await;
    rig.shutdown.advance(Stage::Draining);
    tokio::time::sleep(Duration::from_millis(1)).await;
    rig.says(json!({"type": "hello", "version": 2, "runnerId": rig.world.runner.to_string(), "capabilities": []}))
        .await;
    rig.frame("drain").await;
}

#[actix::test]
async fn a_session_that_is_let_go_finishes_what_it_has_even_if_that_is_only_being_claimed() {
    let rig = Rig::new().await;
    rig.hello(1, 8).await;
    assert!(matches!(
        &rig.presences.take()[..],
        [SessionPresence::Here {
            release: Some(_),
            ..
        }]
    ));
    let (job, mut reply) = rig.world.job(Duration::from_secs(30));
    rig.session.do_send(Execute {
        job,
        attempt: 1,
        session_id: None,
    });
    rig.session.do_send(ReleaseSession);
    let (late, _reply) = rig.world.job(Duration::from_secs(30));
    rig.session.do_send(Execute {
        job: late.clone(),
        attempt: 1,
        session_id: None,
    });
    let frame = rig.frame("job").await;
    eventually("what comes later goes elsewhere", || {
        rig.returned.len() == 1
    })
    .await;
    let returned = rig.returned.take().remove(0);
    assert_eq!(
        (returned.job_id, returned.why),
        (late.id, crate::control::dispatcher::Return::Draining)
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(rig.frames().is_empty(), "not while something runs");
    rig.says(json!({"type": "done", "id": frame["id"]})).await;
    assert!(end(&mut reply).await.is_ok());
    assert_eq!(rig.frame("closed").await["code"], close::GOING_AWAY);
    eventually("it is gone", || {
        matches!(&rig.presences.take()[..], [SessionPresence::Gone { .. }])
    })
    .await;
}

#[actix::test]
async fn a_runner_that_can_move_is_not_the_drainers_business() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    assert!(matches!(
        &rig.presences.take()[..],
        [SessionPresence::Here { release: None, .. }]
    ));
}

#[actix::test]
async fn of_a_detached_job_nothing_is_written_down_here_but_its_claim() {
    let rig = Rig::new().await;
    rig.hello(2, 8).await;
    let held = Held {
        holder: rig.world.gateway,
        attempt: 2,
    };
    let execute = async || {
        let (job, reply) = rig.world.detached_job(Duration::from_secs(30), held);
        let execute = Execute {
            job,
            attempt: 2,
            session_id: None,
        };
        rig.session.send(execute).await.unwrap();
        let frame = rig.frame("job").await;
        (reply, frame["id"].clone())
    };
    // It ends well, it is refused, it is lost: whoever reads its reply is told, and decides.
    let (mut reply, id) = execute().await;
    rig.says(json!({"type": "done", "id": id, "meta": {"count": 0}}))
        .await;
    assert!(end(&mut reply).await.is_ok());
    let (mut reply, id) = execute().await;
    rig.says(json!({"type": "refused", "id": id, "reason": "busy"}))
        .await;
    let refused = end(&mut reply).await.unwrap_err();
    assert!(matches!(
        refused,
        JobError::RunnerFailed {
            delivery: Delivery::NotDelivered,
            ..
        }
    ));
    let (mut reply, _) = execute().await;
    rig.session.send(SocketClosed).await.unwrap();
    assert!(matches!(
        end(&mut reply).await,
        Err(JobError::RunnerFailed { .. })
    ));
    eventually("all are over", || rig.settled.len() == 3).await;
    assert_eq!((rig.claims.len(), rig.finishes.len()), (3, 0));
    assert_eq!((rig.requeues.len(), rig.returned.len()), (0, 0));
}

#[actix::test]
async fn a_detached_job_whose_claim_is_gone_is_not_sent() {
    let rig = Rig::with_claims(|_| Ok(false)).await;
    rig.hello(2, 8).await;
    let held = Held {
        holder: rig.world.gateway,
        attempt: 1,
    };
    let (job, mut reply) = rig.world.detached_job(Duration::from_secs(30), held);
    let execute = Execute {
        job,
        attempt: 1,
        session_id: None,
    };
    rig.session.send(execute).await.unwrap();
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::ClaimLost);
    assert!(rig.frames().iter().all(|frame| frame["type"] != "job"));
}
