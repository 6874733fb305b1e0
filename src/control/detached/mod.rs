//! `DetachedJobs`: jobs that nobody waits for, from `pending` to their result.
//!
//! They lie in the store until a gateway that can execute them takes them. Each gateway looks every second,
//! and takes only jobs of sources that its own sessions (or it itself) could serve at that moment, as many as
//! there is room for: whoever claims first executes. A job that found nobody after all goes back at the
//! same attempt, and its source rests; one that nobody takes expires at its deadline, with the reason.
//!
//! A job that was taken goes the way of every other: dispatcher, picker, session. Its claim is in the store
//! already; what the session has written before the frame leaves is the mark, guarded by the attempt. The
//! reader of its reply is here, and here alone it is decided what becomes of the job: sessions write down
//! nothing of a detached job but that mark. So at every moment its row tells what may have happened: `claimed`
//! was certainly not sent and is given back if this gateway dies, `dispatched` is tried again as the next
//! attempt, and the result is written together with `completed` or not at all.

mod budget;
mod collect;
mod record;
mod result;
mod share_out;
mod submit;
mod verdict;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::budget::Budget;
use self::collect::collect;
use self::record::{Record, Recorded};
pub use self::result::KeptResult;
use self::share_out::{Resting, Waiting, share_out};
pub(in crate::control) use self::submit::submit;
pub use self::submit::{Accepted, Submission};
use super::catalogue::{CatalogueReader, location};
use super::dispatcher::{CancelJob, CancelWhenAbandoned, Dispatch};
use super::error::JobError;
use super::identity::GatewayIdentity;
use super::job::{Held, Job, JobSpec};
use super::picker::{Outlook, Outlooks, Unplaceable};
use super::reply::{ReplyStream, reply_channel};
use super::vital::{Shutdown, Vital};
use crate::clock::{Clock, UtcTime};
use crate::domain::sealing::Sealer;
use crate::ids::{JobId, SourceId};
use crate::protocol::CredentialsLocation;
use crate::storage::{self, Store, StoreError};
use crate::timing::Timing;

/// How many detached jobs one gateway executes at once.
const MAX_EXECUTING: usize = 64;
/// How much their results may take together in memory; one more result has room beside it.
const MEMORY: usize = 64 * 1024 * 1024;
/// How many results are sealed at once, which takes a multiple of their size.
const MAX_SEALING: usize = 1;
/// How many jobs of one source this gateway executes itself at once.
const INLINE_ROOM: u32 = 16;

/// What is recorded of a detached job that has not ended, for whoever executes it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    /// What is asked.
    pub(super) spec: JobSpec,
    /// What the web layer wants to know again when it shows the result.
    pub(super) rendering: Value,
}

/// Look for pending jobs. Sent by its own timer, and when one was submitted here.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct LookForJobs;

/// How many jobs are executed or being written down.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "usize")]
pub struct ExecutingCount;

/// Whom the actor talks to.
#[derive(Clone)]
pub struct DetachedLinks {
    /// To the dispatcher: have this job executed.
    pub dispatch: Recipient<Dispatch>,
    /// To the dispatcher: end this job, its result is not wanted.
    pub cancel: Recipient<CancelJob>,
    /// To the picker: for which sources is there room?
    pub outlooks: Recipient<Outlooks>,
}

/// What the actor is built from.
pub struct DetachedContext {
    /// Whom it talks to.
    pub links: DetachedLinks,
    /// Where the jobs are.
    pub store: Store,
    /// Sources by id.
    pub catalogue: CatalogueReader,
    /// Seals results.
    pub sealer: Arc<Sealer>,
    /// Where work is done that would hold up others.
    pub runtime: tokio::runtime::Handle,
    /// Under which name jobs are claimed.
    pub identity: GatewayIdentity,
    /// The time.
    pub clock: Clock,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// Whether the process is on its way out.
    pub shutdown: Shutdown,
}

/// The actor.
pub struct DetachedJobs {
    cx: Arc<DetachedContext>,
    budget: Budget,
    sealing: Arc<Semaphore>,
    /// The jobs that are executed, until everything about them is written down.
    executing: HashSet<JobId>,
    resting: Resting,
    looking: bool,
    /// Whether somebody asked for a look during the one under way.
    again: bool,
    _vital: Vital,
}

impl DetachedJobs {
    /// An actor that looks with its first tick.
    pub fn new(cx: DetachedContext, vital: Vital) -> Self {
        Self {
            cx: Arc::new(cx),
            budget: Budget::new(MEMORY),
            sealing: Arc::new(Semaphore::new(MAX_SEALING)),
            executing: HashSet::new(),
            resting: Resting::default(),
            looking: false,
            again: false,
            _vital: vital,
        }
    }
}

impl Actor for DetachedJobs {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.cx.timing.pending_poll, |_, ctx| {
            ctx.notify(LookForJobs)
        });
    }
}

impl Handler<LookForJobs> for DetachedJobs {
    type Result = ();

    fn handle(&mut self, _: LookForJobs, ctx: &mut Self::Context) {
        let room = MAX_EXECUTING.saturating_sub(self.executing.len());
        if room == 0 || self.cx.shutdown.has_begun() {
            return;
        }
        if std::mem::replace(&mut self.looking, true) {
            self.again = true;
            return;
        }
        take(self.cx.clone(), room, self.resting.at(Instant::now()))
            .into_actor(self)
            .map(|taken, act, ctx| act.on_taken(taken, ctx))
            .spawn(ctx);
    }
}

impl Handler<ExecutingCount> for DetachedJobs {
    type Result = usize;

    fn handle(&mut self, _: ExecutingCount, _: &mut Self::Context) -> usize {
        self.executing.len()
    }
}

impl DetachedJobs {
    fn on_taken(&mut self, taken: Vec<storage::Job>, ctx: &mut Context<Self>) {
        self.looking = false;
        for row in taken {
            self.start(row, ctx);
        }
        if std::mem::take(&mut self.again) {
            ctx.notify(LookForJobs);
        }
    }

    /// Hands a job that was taken to the dispatcher, and reads its reply until everything is written down.
    fn start(&mut self, row: storage::Job, ctx: &mut Context<Self>) {
        let (id, source) = (row.id, row.source_id);
        let record = Record::of(&row, self.cx.clone());
        // Its claim went stale here and was given back, and is ours once more: two must not write at a time.
        if self.executing.contains(&id) {
            actix::spawn(async move { record.release().await });
            return;
        }
        let request = row.request.map(serde_json::from_value::<Request>);
        let Some(Ok(Request { spec, rendering })) = request else {
            log::error!(job_id:% = id; "the request of detached job {id} cannot be read, the job fails");
            actix::spawn(async move { record.end(0, JobError::Internal).await });
            return;
        };
        let (job, reply) = self.job(&record, spec, row.created_at, row.deadline_at);
        log::debug!(job_id:% = id, attempt = record.attempt(); "detached job {id} taken");
        let dispatch = Dispatch {
            job: job.clone(),
            attempt: record.attempt(),
        };
        if self.cx.links.dispatch.try_send(dispatch).is_err() {
            // Its reader is told so, and gives the job back.
            job.reply.end(Err(busy()));
        }
        self.executing.insert(id);
        execute(
            record,
            job,
            rendering,
            reply,
            self.budget.clone(),
            self.sealing.clone(),
        )
        .into_actor(self)
        .map(move |recorded, act, ctx| act.on_recorded(id, source, recorded, ctx))
        .spawn(ctx);
    }

    /// The job as the other actors see it. The source's own timeout holds for each attempt.
    fn job(
        &self,
        record: &Record,
        spec: JobSpec,
        created_at: UtcTime,
        deadline_at: UtcTime,
    ) -> (Arc<Job>, ReplyStream) {
        let abandonment = CancelWhenAbandoned(self.cx.links.cancel.clone());
        let (reply, stream) = reply_channel(record.id(), Box::new(abandonment));
        let left = (deadline_at.get() - self.cx.clock.now().get()).to_std();
        let left = left.unwrap_or(Duration::ZERO);
        let own = source_timeout(&self.cx.catalogue, spec.source_id);
        let job = Job {
            id: record.id(),
            spec,
            only_session: None,
            detached: Some(Held {
                holder: record.holder(),
                attempt: record.attempt(),
            }),
            created_at,
            deadline: Instant::now() + own.map_or(left, |own| own.min(left)),
            deadline_at,
            reply,
        };
        (Arc::new(job), stream)
    }

    fn on_recorded(
        &mut self,
        id: JobId,
        source: SourceId,
        recorded: Recorded,
        ctx: &mut Context<Self>,
    ) {
        self.executing.remove(&id);
        match recorded {
            Recorded::Released => self.resting.failed(source, Instant::now()),
            Recorded::Retried => {
                self.resting.succeeded(source);
                ctx.notify(LookForJobs);
            }
            Recorded::Ended => {
                self.resting.succeeded(source);
                // There may be more than there was room for.
                if self.executing.len() + 1 == MAX_EXECUTING {
                    ctx.notify(LookForJobs);
                }
            }
            Recorded::Left => {}
        }
    }
}

/// Reads the reply of one job and writes down what became of it.
async fn execute(
    record: Record,
    job: Arc<Job>,
    rendering: Value,
    reply: ReplyStream,
    budget: Budget,
    sealing: Arc<Semaphore>,
) -> Recorded {
    let mut share = budget.share();
    let collected = collect(reply, &mut share, job.spec.encoding, job.deadline).await;
    match collected.end {
        Ok((rows, finished)) => {
            // Only the semaphore's end would be an error, and it has none.
            let _one_at_a_time = sealing.acquire().await;
            record
                .complete(collected.count, rows, finished, rendering)
                .await
        }
        Err(error) => record.fail(collected.count, error).await,
    }
}

/// Claims pending jobs that can be executed here; ends those that nobody came for.
async fn take(
    cx: Arc<DetachedContext>,
    room: usize,
    resting: HashSet<SourceId>,
) -> Vec<storage::Job> {
    let mut taken = Vec::new();
    if let Err(error) = try_take(&cx, room, &resting, &mut taken).await {
        log::warn!(error:% = error; "pending jobs could not be looked for, the next look will find them");
    }
    taken
}

async fn try_take(
    cx: &DetachedContext,
    room: usize,
    resting: &HashSet<SourceId>,
    taken: &mut Vec<storage::Job>,
) -> Result<(), StoreError> {
    let pending = cx.store.job_pending_sources().await?;
    if pending.is_empty() {
        return Ok(());
    }
    let sources = pending.iter().map(|source| source.source_id).collect();
    let outlooks = cx.links.outlooks.send(Outlooks { sources }).await;
    // A picker that does not answer is busy with jobs whose callers wait.
    let outlooks = outlooks.unwrap_or_default();
    let now = cx.clock.now();
    let mut waiting = Vec::new();
    for (source, outlook) in pending.into_iter().zip(outlooks) {
        let outlook = here(cx, source.source_id, outlook);
        if source.first_deadline <= now {
            let why = too_late(&outlook);
            cx.store
                .job_expire_pending(source.source_id, why, now)
                .await?;
        }
        if let Outlook::Room(room) = outlook
            && !resting.contains(&source.source_id)
        {
            waiting.push(Waiting {
                source: source.source_id,
                jobs: usize::try_from(source.jobs).unwrap_or(usize::MAX),
                // Half of what is left, so that callers who wait find room too.
                room: usize::try_from(room.div_ceil(2)).unwrap_or(usize::MAX),
            });
        }
    }
    for (source, jobs) in share_out(&waiting, room) {
        taken.extend(
            cx.store
                .job_take_pending(cx.identity.current(), source, jobs, now)
                .await?,
        );
    }
    Ok(())
}

/// How things look for a source, as the picker sees it; one that nobody is assigned to is executed by the
/// gateway itself.
fn here(cx: &DetachedContext, source: SourceId, outlook: Outlook) -> Outlook {
    let nobody = |reason: &str| {
        Outlook::Nobody(Unplaceable::Offline {
            reason: reason.to_owned(),
        })
    };
    let catalogue = cx.catalogue.current();
    let Some(row) = catalogue.source(source) else {
        return nobody("its source has been deleted");
    };
    if !catalogue.runners_of(row.id).is_empty() {
        return outlook;
    }
    match location(row) {
        CredentialsLocation::Managed => Outlook::Room(INLINE_ROOM),
        CredentialsLocation::RunnerLocal => {
            nobody("its credentials stay with a runner, and no runner is assigned to the source")
        }
    }
}

fn source_timeout(catalogue: &CatalogueReader, id: SourceId) -> Option<Duration> {
    let ms = catalogue.current().source(id)?.timeout_ms?;
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// Why a job's deadline passed while it lay there.
fn too_late(outlook: &Outlook) -> String {
    let why = match outlook {
        Outlook::Room(_) | Outlook::Elsewhere => "no gateway came to it in time",
        Outlook::Nobody(Unplaceable::Busy | Unplaceable::Declined(_)) => {
            "every runner of this source is at its capacity"
        }
        Outlook::Nobody(Unplaceable::Offline { reason } | Unplaceable::Moving { reason }) => reason,
    };
    format!("the deadline passed before the job could be executed: {why}")
}

fn busy() -> JobError {
    JobError::RunnersBusy {
        retry_after: Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests;
