//! A link and a peer that a test plays: real HTTP, and probes around the link.

use std::sync::Mutex;
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::wire::{EXECUTE_PATH, ExecuteRequest, PeerFrame};
use super::*;
use crate::bridge::RowsPart;
use crate::control::reply::{Reply, ReplyStream};
use crate::control::testing::{Heard, World, peer_client, probe};

/// How the peer answers one request.
type Answer = mpsc::UnboundedReceiver<Bytes>;

/// A peer that answers as it is told, one request after the other.
struct Peer {
    url: String,
    requests: mpsc::UnboundedReceiver<ExecuteRequest>,
    answers: mpsc::UnboundedSender<Answer>,
}

impl Peer {
    fn start() -> Self {
        let (heard, requests) = mpsc::unbounded_channel();
        let (answers, queue) = mpsc::unbounded_channel::<Answer>();
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        let server = HttpServer::new(move || {
            let (heard, queue) = (heard.clone(), queue.clone());
            App::new().route(
                EXECUTE_PATH,
                web::post().to(move |request: web::Json<ExecuteRequest>| {
                    let (heard, queue) = (heard.clone(), queue.clone());
                    async move {
                        heard.send(request.into_inner()).unwrap();
                        let answer = queue.lock().await.recv().await.unwrap();
                        let pieces = UnboundedReceiverStream::new(answer);
                        HttpResponse::Ok().streaming(pieces.map(Ok::<_, actix_web::Error>))
                    }
                }),
            )
        })
        .workers(1)
        .h1_allow_half_closed(false)
        .disable_signals()
        .bind("127.0.0.1:0")
        .unwrap();
        let url = format!("http://{}", server.addrs()[0]);
        actix_web::rt::spawn(server.run());
        Self {
            url,
            requests,
            answers,
        }
    }

    /// The next answer, which goes on until what is returned is dropped.
    fn answer(&self) -> mpsc::UnboundedSender<Bytes> {
        let (pieces, answer) = mpsc::unbounded_channel();
        self.answers.send(answer).unwrap();
        pieces
    }
}

fn say(answer: &mpsc::UnboundedSender<Bytes>, frame: PeerFrame) {
    for piece in frame.encode() {
        // The other side may have hung up, which is what some tests are about.
        let _ = answer.send(piece);
    }
}

fn rows(payload: Vec<u8>) -> PeerFrame {
    PeerFrame::Rows(RowsPart {
        rows: 1,
        more: false,
        payload: payload.into(),
    })
}

struct Rig {
    world: World,
    link: Addr<PeerLink>,
    returned: Heard<JobReturned>,
    settled: Heard<JobSettled>,
    superseded: Heard<SupersedeJob>,
    unplaced: Heard<RecordUnplaced>,
    said: Heard<PeerSaid>,
}

impl Rig {
    async fn new(url: &str, may_be_tried_again: bool) -> Self {
        let world = World::new().await;
        let (return_to, returned) = probe::<JobReturned, _>(|_| ());
        let (settle, settled) = probe::<JobSettled, _>(|_| ());
        let (supersede, superseded) = probe::<SupersedeJob, _>(move |_| Ok(may_be_tried_again));
        let (record_unplaced, unplaced) = probe::<RecordUnplaced, _>(|_| ());
        let (tell, said) = probe::<PeerSaid, _>(|_| ());
        let cx = PeerContext {
            links: PeerLinks {
                returned: return_to,
                settled: settle,
                supersede,
                record_unplaced,
                said: tell,
            },
            client: peer_client(),
            runtime: tokio::runtime::Handle::current(),
            clock: world.clock.clone(),
        };
        let link = PeerLink::new(GatewayId::new(), url.to_owned(), cx).start();
        Self {
            world,
            link,
            returned,
            settled,
            superseded,
            unplaced,
            said,
        }
    }

    async fn execute(&self, timeout: Duration) -> (Arc<Job>, ReplyStream, SessionId) {
        let (job, reply) = self.world.job(timeout);
        let session = SessionId::new();
        let execute = Execute {
            job: job.clone(),
            attempt: 1,
            session_id: Some(session),
        };
        self.link.send(execute).await.unwrap();
        (job, reply, session)
    }

    async fn cancel(&self, job: &Job, cause: CancelCause) {
        let cancel = CancelExecution {
            job_id: job.id,
            cause,
        };
        self.link.send(cancel).await.unwrap();
    }

    async fn one<M>(&self, heard: &Heard<M>) -> M {
        until("one message", || heard.len() == 1).await;
        heard.take().remove(0)
    }
}

/// Waits in real time, which HTTP takes.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

async fn end(reply: &mut ReplyStream) -> Result<Finished, JobError> {
    loop {
        match reply.next().await {
            Some(Reply::Rows(_) | Reply::Restarted) => {}
            Some(Reply::End(end)) => return end,
            None => panic!("a reply without an end"),
        }
    }
}

const LONG: Duration = Duration::from_secs(30);

#[actix::test]
async fn a_job_is_handed_over_without_credentials_and_its_answer_passed_on() {
    let mut peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let answer = peer.answer();
    let (job, mut reply, session) = rig.execute(LONG).await;
    let request = peer.requests.recv().await.unwrap();
    assert_eq!((request.job_id, request.session_id), (job.id, session));
    assert_eq!((request.attempt, request.created_at), (1, job.created_at));
    assert!(request.remaining_ms <= 30_000 && request.remaining_ms > 20_000);
    say(&answer, rows(b"{\"id\":1}".to_vec()));
    say(
        &answer,
        PeerFrame::End(Ok(Finished {
            count: 1,
            ..Finished::default()
        })),
    );
    let Some(Reply::Rows(batch)) = reply.next().await else {
        panic!("no rows");
    };
    assert_eq!(batch.payload.as_ref(), b"{\"id\":1}");
    assert_eq!(end(&mut reply).await.unwrap().count, 1);
    assert_eq!(rig.one(&rig.settled).await.job_id, job.id);
}

#[actix::test]
async fn an_error_there_is_the_same_error_here() {
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let answer = peer.answer();
    let (_, mut reply, _) = rig.execute(LONG).await;
    let error = JobError::Source(crate::bridge::BridgeError::QueryFailed(
        "no such column".into(),
    ));
    say(&answer, PeerFrame::End(Err(error.clone())));
    assert_eq!(end(&mut reply).await.unwrap_err(), error);
}

#[actix::test]
async fn rows_that_are_held_back_here_have_not_reached_the_caller() {
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let answer = peer.answer();
    let (_, mut reply, _) = rig.execute(LONG).await;
    let lost = |delivery| JobError::RunnerFailed {
        message: "gone".into(),
        delivery,
    };
    say(&answer, rows(vec![b'1'; 100]));
    say(&answer, PeerFrame::End(Err(lost(Delivery::Partial))));
    assert_eq!(end(&mut reply).await.unwrap_err(), lost(Delivery::Started));
}

#[actix::test]
async fn what_the_peer_does_not_take_goes_back_to_be_placed() {
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    for (why, attempt) in [
        (Return::NotHere, 1),
        (Return::Draining, 2),
        (Return::Busy, 1),
    ] {
        let answer = peer.answer();
        let (job, _reply, session) = rig.execute(LONG).await;
        say(&answer, PeerFrame::Declined(Declined { why, attempt }));
        let returned = rig.one(&rig.returned).await;
        assert_eq!((returned.job_id, returned.session_id), (job.id, session));
        assert_eq!((returned.why, returned.attempt), (why, attempt));
        let said = rig.one(&rig.said).await;
        assert!(
            matches!(said, PeerSaid::Declined { session_id, why: told } if session_id == session && told == why)
        );
    }
    assert_eq!(rig.superseded.len(), 0, "nobody was lost");
}

#[actix::test]
async fn a_peer_that_is_not_there_never_got_the_job() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let rig = Rig::new(&url, false).await;
    let (_job, _reply, _) = rig.execute(LONG).await;
    let returned = rig.one(&rig.returned).await;
    assert_eq!((returned.why, returned.attempt), (Return::Gone, 1));
    assert_eq!(rig.superseded.len(), 0);
    assert!(matches!(rig.one(&rig.said).await, PeerSaid::Silent { .. }));
}

#[actix::test]
async fn a_job_that_was_lost_before_anything_came_is_tried_again_if_the_store_allows_it() {
    let peer = Peer::start();
    for allowed in [true, false] {
        let rig = Rig::new(&peer.url, allowed).await;
        let answer = peer.answer();
        let (job, mut reply, _) = rig.execute(LONG).await;
        drop(answer);
        let superseded = rig.one(&rig.superseded).await;
        assert_eq!((superseded.job.id, superseded.attempt), (job.id, 2));
        if allowed {
            let returned = rig.one(&rig.returned).await;
            assert_eq!((returned.why, returned.attempt), (Return::Gone, 2));
        } else {
            let error = end(&mut reply).await.unwrap_err();
            let JobError::RunnerFailed { message, delivery } = error else {
                panic!("{error:?}");
            };
            assert_eq!(delivery, Delivery::Unknown);
            assert!(!message.contains("127.0.0.1"), "{message}");
            assert_eq!(rig.one(&rig.settled).await.job_id, job.id);
        }
    }
}

#[actix::test]
async fn a_peer_that_is_lost_in_the_middle_of_rows_fails_the_job() {
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, true).await;
    let answer = peer.answer();
    let (_, mut reply, _) = rig.execute(LONG).await;
    say(&answer, rows(vec![b'1'; 100]));
    // Half a frame, and then nothing.
    answer.send(Bytes::from_static(&[1, 0, 0, 9, 9])).unwrap();
    drop(answer);
    let error = end(&mut reply).await.unwrap_err();
    assert!(
        matches!(
            error,
            JobError::RunnerFailed {
                delivery: Delivery::Started,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(
        rig.superseded.len(),
        0,
        "rows had come, it cannot be tried again"
    );
}

#[actix::test]
async fn a_peer_that_is_declared_lost_fails_its_jobs_though_its_connections_stand() {
    let mut peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let _answer = peer.answer();
    let (_, mut reply, _) = rig.execute(LONG).await;
    peer.requests.recv().await.unwrap();
    rig.link.do_send(PeerGone);
    let error = end(&mut reply).await.unwrap_err();
    assert!(
        matches!(
            error,
            JobError::RunnerFailed {
                delivery: Delivery::Unknown,
                ..
            }
        ),
        "{error:?}"
    );
    until("the link ends", || !rig.link.connected()).await;
}

#[actix::test]
async fn what_a_peer_sent_before_it_left_is_still_read() {
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let answer = peer.answer();
    let (_, mut reply, _) = rig.execute(LONG).await;
    say(&answer, rows(vec![b'1'; 100]));
    rig.link.do_send(PeerGone);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        say(&answer, rows(vec![b'1'; 100]));
    }
    say(
        &answer,
        PeerFrame::End(Ok(Finished {
            count: 4,
            ..Finished::default()
        })),
    );
    assert_eq!(end(&mut reply).await.unwrap().count, 4);
}

#[actix::test]
async fn a_cancelled_job_hangs_up_on_the_peer_and_is_recorded_unless_the_peer_did() {
    let mut peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let answer = peer.answer();
    let (job, mut reply, _) = rig.execute(LONG).await;
    peer.requests.recv().await.unwrap();
    rig.cancel(&job, CancelCause::Requested).await;
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::Cancelled);
    // At the attempt that it has, and at the one that it may have given it back as.
    until("it is written down", || rig.unplaced.len() == 2).await;
    let recorded = rig.unplaced.take();
    let attempts: Vec<_> = recorded
        .iter()
        .map(|one| (one.job.id, one.attempt))
        .collect();
    assert_eq!(attempts, [(job.id, 1), (job.id, 2)]);
    until("the peer is hung up on", || {
        say(&answer, rows(vec![b'1'; 10]));
        answer.is_closed()
    })
    .await;
}

#[actix::test]
async fn at_the_deadline_the_peer_has_the_first_word() {
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    let answer = peer.answer();
    let (job, mut reply, _) = rig.execute(LONG).await;
    rig.cancel(&job, CancelCause::Deadline).await;
    say(&answer, PeerFrame::End(Err(JobError::StoreUnavailable)));
    assert_eq!(
        end(&mut reply).await.unwrap_err(),
        JobError::StoreUnavailable
    );

    let _silent = peer.answer();
    let (job, mut reply, _) = rig.execute(LONG).await;
    rig.cancel(&job, CancelCause::Deadline).await;
    assert_eq!(end(&mut reply).await.unwrap_err(), JobError::Timeout);
}

#[actix::test]
async fn an_answer_is_read_no_faster_than_its_caller_reads() {
    const BATCH: usize = 256 * 1024;
    const BATCHES: usize = 256;
    let taken = Arc::new(Mutex::new(0));
    let peer = Peer::start();
    let rig = Rig::new(&peer.url, false).await;
    // The peer makes rows as fast as they are taken from it.
    let (pieces, answer) = mpsc::unbounded_channel();
    peer.answers.send(answer).unwrap();
    let counter = taken.clone();
    let source = stream::iter(0..BATCHES).map(move |_| {
        *counter.lock().unwrap() += BATCH;
        rows(vec![b'1'; BATCH])
    });
    let (_, mut reply, _) = rig.execute(LONG).await;
    let feeder = actix_web::rt::spawn(async move {
        let mut source = Box::pin(source);
        while let Some(frame) = source.next().await {
            say(&pieces, frame);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        say(&pieces, PeerFrame::End(Ok(Finished::default())));
    });
    feeder.await.unwrap();
    assert_eq!(*taken.lock().unwrap(), BATCH * BATCHES);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let unread = reply.unread_bytes();
    assert!(
        unread <= 2 * 1024 * 1024,
        "{unread} bytes wait for the caller"
    );
    assert!(end(&mut reply).await.is_ok(), "and all of it comes");
}
