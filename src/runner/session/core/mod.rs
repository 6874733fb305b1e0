//! What a session does with each frame from the gateway. Pure: frames in, actions out; no socket, no
//! clock, no database. It owns the assignments and the table of the session's jobs.
//!
//! Jobs are not started one by one: [`Core::take_starts`] hands them out once every frame that has
//! arrived was read, so that a cancel right behind a job is seen before a database is touched.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Duration, Instant};

use crate::ids::AttemptId;
use crate::protocol::{
    AssignedSource, CURRENT_VERSION, DEFAULT_WINDOW_BYTES, GatewayFrame, HelloAck, Job, Limits,
    MAX_FRAME_BYTES, OLDEST_VERSION, RefusedReason, RunnerFrame,
};

/// The heartbeat of protocol 1, which announces none.
const HEARTBEAT_V1: Duration = Duration::from_secs(25);
/// The silence after which a protocol 1 gateway is lost.
const LOST_AFTER_V1: Duration = Duration::from_secs(60);
/// The silence after which a protocol 2 gateway that announces nothing is lost.
const LOST_AFTER_V2: Duration = Duration::from_secs(12);
/// The heartbeat of a protocol 2 gateway that announces none.
const HEARTBEAT_V2: Duration = Duration::from_secs(10);

/// What both sides agreed on in the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::runner) struct Agreement {
    /// The protocol version of the session.
    pub(in crate::runner) version: u32,
    /// How often to send a heartbeat.
    pub(in crate::runner) heartbeat: Duration,
    /// After which silence the gateway is lost.
    pub(in crate::runner) lost_after: Duration,
    /// Whether rows are compressed with zstd.
    pub(in crate::runner) zstd: bool,
    /// What the gateway accepts.
    pub(in crate::runner) limits: Limits,
}

impl Agreement {
    /// Reads the answer to the hello.
    ///
    /// # Errors
    ///
    /// When the gateway chose a version that this runner does not speak, or figures that cannot be.
    pub(in crate::runner) fn new(ack: &HelloAck) -> Result<Self, String> {
        let version = ack.server_version;
        if !(OLDEST_VERSION..=CURRENT_VERSION).contains(&version) {
            return Err(format!(
                "the gateway speaks protocol {version}, this runner {OLDEST_VERSION} to {CURRENT_VERSION}"
            ));
        }
        let defaults = Limits {
            max_frame_bytes: MAX_FRAME_BYTES,
            window_bytes: DEFAULT_WINDOW_BYTES,
            max_row_bytes: None,
        };
        if version == 1 {
            let (heartbeat, lost_after) = (HEARTBEAT_V1, LOST_AFTER_V1);
            return Ok(Self {
                version,
                heartbeat,
                lost_after,
                zstd: false,
                limits: defaults,
            });
        }
        let millis = |given: Option<u64>, default| {
            given
                .filter(|ms| *ms > 0)
                .map_or(default, Duration::from_millis)
        };
        let limits = ack.limits.unwrap_or(defaults);
        if limits.max_frame_bytes < 1024 || limits.window_bytes == 0 {
            return Err(format!(
                "the gateway announces limits that no row fits into: {limits:?}"
            ));
        }
        Ok(Self {
            version,
            heartbeat: millis(ack.heartbeat_ms, HEARTBEAT_V2),
            lost_after: millis(ack.lost_after_ms, LOST_AFTER_V2),
            zstd: ack.compression.as_deref() == Some("zstd"),
            limits,
        })
    }
}

/// What the session is to do.
#[derive(Debug)]
pub(in crate::runner) enum Action {
    /// Send this.
    Send(RunnerFrame),
    /// Tell the running job to stop.
    Cancel(AttemptId),
    /// Let the running job send more.
    Credit(AttemptId, u32),
    /// Look for another gateway, then finish here.
    Drain {
        /// Why, for the log.
        reason: String,
        /// How long what runs may still take.
        within: Duration,
    },
}

/// A job that was taken and is to be executed.
#[derive(Debug)]
pub(in crate::runner) struct Start {
    /// The job.
    pub(in crate::runner) job: Box<Job>,
    /// When it arrived: its deadline counts from here.
    pub(in crate::runner) received: Instant,
    /// Its place among the jobs that run at once; `None` (protocol 1 only): it has to wait for one.
    pub(in crate::runner) slot: Option<OwnedSemaphorePermit>,
    /// How many payload bytes it may have outstanding.
    pub(in crate::runner) window: u64,
}

/// The state of one session.
#[derive(Debug)]
pub(in crate::runner) struct Core {
    agreement: Agreement,
    assigned: Arc<[AssignedSource]>,
    /// Taken, not yet handed out.
    waiting: Vec<Start>,
    /// Handed out, not yet finished.
    running: HashSet<AttemptId>,
    draining: bool,
    slots: Arc<Semaphore>,
}

impl Core {
    /// A session right after its handshake; `slots` are shared by all sessions of the process.
    pub(in crate::runner) fn new(
        agreement: Agreement,
        assigned: Vec<AssignedSource>,
        slots: Arc<Semaphore>,
    ) -> Self {
        Self {
            agreement,
            assigned: assigned.into(),
            waiting: Vec::new(),
            running: HashSet::new(),
            draining: false,
            slots,
        }
    }

    /// The sources that the runner serves.
    pub(in crate::runner) fn assigned(&self) -> Arc<[AssignedSource]> {
        Arc::clone(&self.assigned)
    }

    /// What both sides agreed on.
    pub(in crate::runner) fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Whether no job is left.
    pub(in crate::runner) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Handles one frame that arrived at `now`.
    ///
    /// # Errors
    ///
    /// When the gateway may not send that frame now; the session is then closed with 4002.
    pub(in crate::runner) fn on_frame(
        &mut self,
        frame: GatewayFrame,
        now: Instant,
    ) -> Result<Option<Action>, String> {
        match frame {
            GatewayFrame::HelloAck(_) => Err("a second hello-ack".into()),
            // That something arrived is all that a ping says, and that was noted already.
            GatewayFrame::Ping => Ok(None),
            GatewayFrame::AssignmentsChanged { assigned_sources } => {
                self.assigned = assigned_sources.into();
                Ok(None)
            }
            GatewayFrame::Job(job) => self.on_job(job, now),
            GatewayFrame::Cancel { id } => Ok(self.on_cancel(id)),
            GatewayFrame::Credit { id, bytes } => {
                if let Some(start) = self.waiting.iter_mut().find(|start| start.job.id == id) {
                    start.window = start.window.saturating_add(u64::from(bytes));
                    return Ok(None);
                }
                // Credit for a job that ended meanwhile is normal: the two cross on the wire.
                Ok(self
                    .running
                    .contains(&id)
                    .then_some(Action::Credit(id, bytes)))
            }
            GatewayFrame::Drain {
                reason,
                deadline_ms,
            } => Ok(Some(Action::Drain {
                reason,
                within: Duration::from_millis(deadline_ms),
            })),
        }
    }

    fn on_job(&mut self, job: Box<Job>, now: Instant) -> Result<Option<Action>, String> {
        let id = job.id;
        if self.running.contains(&id) || self.waiting.iter().any(|start| start.job.id == id) {
            return Err(format!("job {id} came twice"));
        }
        let window = u64::from(job.window.unwrap_or(self.agreement.limits.window_bytes));
        let assigned = self
            .assigned
            .iter()
            .any(|source| source.id == job.params.source.id);
        if self.agreement.version == 1 {
            return Ok(if assigned {
                // Protocol 1 cannot refuse: over the maximum, the job waits for its place.
                let slot = Arc::clone(&self.slots).try_acquire_owned().ok();
                self.waiting.push(Start {
                    job,
                    received: now,
                    slot,
                    window,
                });
                None
            } else {
                let message = format!(
                    "source `{}` is not assigned to this runner",
                    job.params.source.name
                );
                Some(Action::Send(RunnerFrame::Error {
                    id,
                    code: "SOURCE_UNREACHABLE".into(),
                    message,
                    path: None,
                }))
            });
        }
        let refused = |reason| Ok(Some(Action::Send(RunnerFrame::Refused { id, reason })));
        if self.draining {
            return refused(RefusedReason::Draining);
        }
        if !assigned {
            return refused(RefusedReason::Unassigned);
        }
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return refused(RefusedReason::Busy);
        };
        self.waiting.push(Start {
            job,
            received: now,
            slot: Some(slot),
            window,
        });
        Ok(Some(Action::Send(RunnerFrame::Accepted { id })))
    }

    fn on_cancel(&mut self, id: AttemptId) -> Option<Action> {
        if let Some(at) = self.waiting.iter().position(|start| start.job.id == id) {
            self.waiting.remove(at);
            let (code, message) = (
                "job_cancelled".into(),
                "the query was cancelled before it started".into(),
            );
            return Some(Action::Send(RunnerFrame::Error {
                id,
                code,
                message,
                path: None,
            }));
        }
        // A cancel for a job that ended meanwhile is normal: the two cross on the wire.
        self.running.contains(&id).then_some(Action::Cancel(id))
    }

    /// The jobs to start now that every frame that has arrived was handled.
    pub(in crate::runner) fn take_starts(&mut self) -> Vec<Start> {
        let starts = std::mem::take(&mut self.waiting);
        self.running.extend(starts.iter().map(|start| start.job.id));
        starts
    }

    /// A job has sent its last frame.
    pub(in crate::runner) fn finished(&mut self, id: AttemptId) {
        self.running.remove(&id);
    }

    /// From now on nothing new is taken; what to tell the gateway, once.
    pub(in crate::runner) fn drain(&mut self) -> Option<Action> {
        let first = !std::mem::replace(&mut self.draining, true);
        (first && self.agreement.version > 1).then_some(Action::Send(RunnerFrame::Draining))
    }
}

#[cfg(test)]
mod tests;
