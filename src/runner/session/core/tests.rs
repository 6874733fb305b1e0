//! The session's decisions, as tables.

use serde_json::json;

use super::*;
use crate::ids::SourceId;
use crate::protocol::{CredentialsLocation, JobParams, JobRequest, JobSource};

fn source(name: &str) -> AssignedSource {
    AssignedSource {
        id: SourceId::new(),
        name: name.into(),
        bridge: "sqlite".into(),
        credentials_location: CredentialsLocation::Managed,
    }
}

fn ack(version: u32) -> HelloAck {
    serde_json::from_value(json!({"serverVersion": version, "assignedSources": []})).unwrap()
}

fn core(version: u32, slots: usize) -> (Core, AssignedSource) {
    let source = source("db");
    let agreement = Agreement::new(&ack(version)).unwrap();
    (
        Core::new(
            agreement,
            vec![source.clone()],
            Arc::new(Semaphore::new(slots)),
        ),
        source,
    )
}

fn job(source: &AssignedSource) -> Box<Job> {
    Box::new(Job {
        id: AttemptId::new(),
        params: JobParams {
            source: JobSource {
                id: source.id,
                name: source.name.clone(),
                bridge: source.bridge.clone(),
                credentials_location: source.credentials_location,
                config: None,
            },
            job: JobRequest {
                kind: "test".into(),
                target: None,
                options: json!({}),
            },
        },
        deadline_ms: 1000,
        job_id: None,
        attempt: None,
        encoding: None,
        window: Some(100),
        fields: None,
        keys: None,
        asked: None,
        after: None,
        types: Default::default(),
        traceparent: None,
    })
}

impl Core {
    fn feed(&mut self, frame: GatewayFrame) -> Option<Action> {
        self.on_frame(frame, Instant::now()).unwrap()
    }
}

fn refused(action: Option<Action>) -> Option<RefusedReason> {
    match action {
        Some(Action::Send(RunnerFrame::Refused { reason, .. })) => Some(reason),
        _ => None,
    }
}

#[test]
fn a_job_is_accepted_at_once_and_started_after_the_batch() {
    let (mut core, db) = core(2, 1);
    let job = job(&db);
    let id = job.id;
    assert!(matches!(
        core.feed(GatewayFrame::Job(job)),
        Some(Action::Send(RunnerFrame::Accepted { .. }))
    ));
    assert!(!core.is_idle());
    let starts = core.take_starts();
    assert_eq!(starts.len(), 1);
    assert!(core.take_starts().is_empty());
    core.finished(id);
    assert!(core.is_idle());
}

#[test]
fn a_cancel_behind_a_job_is_seen_before_the_job_starts() {
    let (mut core, db) = core(2, 1);
    let job = job(&db);
    let id = job.id;
    core.feed(GatewayFrame::Job(job));
    let answer = core.feed(GatewayFrame::Cancel { id });
    assert!(
        matches!(answer, Some(Action::Send(RunnerFrame::Error { code, .. })) if code == "job_cancelled")
    );
    assert!(core.take_starts().is_empty());
    assert_eq!(core.slots.available_permits(), 1, "its place is free again");
}

#[test]
fn a_cancel_or_credit_for_a_running_job_reaches_it_and_for_another_nobody() {
    let (mut core, db) = core(2, 1);
    let job = job(&db);
    let id = job.id;
    core.feed(GatewayFrame::Job(job));
    let _running = core.take_starts();
    assert!(
        matches!(core.feed(GatewayFrame::Credit { id, bytes: 5 }), Some(Action::Credit(i, 5)) if i == id)
    );
    assert!(matches!(core.feed(GatewayFrame::Cancel { id }), Some(Action::Cancel(i)) if i == id));
    let other = AttemptId::new();
    assert!(core.feed(GatewayFrame::Cancel { id: other }).is_none());
    assert!(
        core.feed(GatewayFrame::Credit {
            id: other,
            bytes: 5
        })
        .is_none()
    );
}

#[test]
fn credit_that_arrives_with_the_job_widens_its_window() {
    let (mut core, db) = core(2, 1);
    let job = job(&db);
    let id = job.id;
    core.feed(GatewayFrame::Job(job));
    assert!(core.feed(GatewayFrame::Credit { id, bytes: 50 }).is_none());
    assert_eq!(core.take_starts()[0].window, 150);
}

#[test]
fn jobs_are_refused_by_reason() {
    let (mut core, db) = core(2, 1);
    assert_eq!(
        refused(core.feed(GatewayFrame::Job(job(&source("other"))))),
        Some(RefusedReason::Unassigned)
    );
    core.feed(GatewayFrame::Job(job(&db)));
    assert_eq!(
        refused(core.feed(GatewayFrame::Job(job(&db)))),
        Some(RefusedReason::Busy)
    );
    assert!(matches!(
        core.drain(),
        Some(Action::Send(RunnerFrame::Draining))
    ));
    assert!(core.drain().is_none(), "said once");
    assert_eq!(
        refused(core.feed(GatewayFrame::Job(job(&db)))),
        Some(RefusedReason::Draining)
    );
}

#[test]
fn protocol_1_never_refuses_it_waits_or_fails() {
    let (mut core, db) = core(1, 1);
    assert!(
        core.feed(GatewayFrame::Job(job(&db))).is_none(),
        "no accepted in protocol 1"
    );
    assert!(core.feed(GatewayFrame::Job(job(&db))).is_none());
    let unassigned = core.feed(GatewayFrame::Job(job(&source("other"))));
    assert!(
        matches!(unassigned, Some(Action::Send(RunnerFrame::Error { code, .. })) if code == "SOURCE_UNREACHABLE")
    );
    assert!(core.drain().is_none(), "no draining in protocol 1");
    let starts = core.take_starts();
    assert!(starts[0].slot.is_some() && starts[1].slot.is_none());
}

#[test]
fn assignments_change_what_is_accepted() {
    let (mut core, db) = core(2, 9);
    let new = source("new");
    core.feed(GatewayFrame::AssignmentsChanged {
        assigned_sources: vec![new.clone()],
    });
    assert_eq!(
        refused(core.feed(GatewayFrame::Job(job(&db)))),
        Some(RefusedReason::Unassigned)
    );
    assert_eq!(refused(core.feed(GatewayFrame::Job(job(&new)))), None);
    assert_eq!(core.take_starts().len(), 1);
}

#[test]
fn frames_that_may_not_come_are_errors() {
    let (mut core, db) = core(2, 9);
    assert!(
        core.on_frame(GatewayFrame::HelloAck(ack(2)), Instant::now())
            .is_err()
    );
    let twice = job(&db);
    core.feed(GatewayFrame::Job(twice.clone()));
    assert!(
        core.on_frame(GatewayFrame::Job(twice), Instant::now())
            .is_err()
    );
}

#[test]
fn the_agreement_follows_the_gateway_within_reason() {
    let v1 = Agreement::new(&ack(1)).unwrap();
    assert_eq!(
        (v1.heartbeat.as_secs(), v1.lost_after.as_secs(), v1.zstd),
        (25, 60, false)
    );
    let mut two = ack(2);
    two.heartbeat_ms = Some(500);
    two.lost_after_ms = Some(700);
    two.compression = Some("zstd".into());
    let v2 = Agreement::new(&two).unwrap();
    assert_eq!(
        (v2.heartbeat.as_millis(), v2.lost_after.as_millis(), v2.zstd),
        (500, 700, true)
    );
    two.heartbeat_ms = Some(0);
    assert_eq!(
        Agreement::new(&two).unwrap().heartbeat,
        HEARTBEAT_V2,
        "a heartbeat every 0 ms is none"
    );
    for bad in [0, 3] {
        assert!(Agreement::new(&ack(bad)).is_err());
    }
}
