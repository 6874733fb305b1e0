//! `InlineExecutor`: executes at this gateway what a source without runners is asked.
//!
//! The same bridges, the same claim, the same reply as over a runner; only the socket is missing. It owns
//! the running executions and their cancellation, nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::prelude::*;
use async_trait::async_trait;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::catalogue::CatalogueReader;
use super::credentials::Credentials;
use super::dispatcher::{InlineFull, JobSettled};
use super::error::{Delivery, JobError};
use super::identity::GatewayIdentity;
use super::job::Job;
use super::ledger::{ClaimJob, Executor, FinishJob};
use super::reply::{Consumption, Finished, NotTaken};
use super::session::{CancelCause, CancelExecution, Execute, unclaimed};
use super::vital::Vital;
use crate::bridge::{
    BridgeError, Bridges, Execution, Outcome, RowBatch, RowFormat, RowSink, RowsPart, SinkClosed,
    Source,
};
use crate::clock::Clock;
use crate::ids::{GatewayId, JobId};
use crate::protocol::{DEFAULT_WINDOW_BYTES, Encoding, MAX_FRAME_BYTES, MAX_ROW_BYTES};
use crate::storage::StoreError;

/// How many jobs a gateway executes itself at once.
const CAPACITY: usize = 64;

/// Whom the executor talks to.
pub struct InlineLinks {
    /// To the ledger: claim a job for this gateway.
    pub claim: Recipient<ClaimJob>,
    /// To the ledger: a job has ended.
    pub finish: Recipient<FinishJob>,
    /// To the dispatcher: there is no room for a job.
    pub full: Recipient<InlineFull>,
    /// To the dispatcher: this job has ended.
    pub settled: Recipient<JobSettled>,
}

/// What the executor is built from.
pub struct InlineContext {
    /// Whom it talks to.
    pub links: InlineLinks,
    /// The bridges, shared with nobody.
    pub bridges: Bridges,
    /// Where bridges run: their connections are bound to the runtime that opened them.
    pub runtime: tokio::runtime::Handle,
    /// Sources by id.
    pub catalogue: CatalogueReader,
    /// Opens managed credentials, just before they are used.
    pub credentials: Credentials,
    /// This gateway.
    pub identity: GatewayIdentity,
    /// The time.
    pub clock: Clock,
}

struct Running {
    job: Arc<Job>,
    attempt: u32,
    /// The id of this gateway under which the job is claimed.
    holder: GatewayId,
    cancel: CancellationToken,
    cause: Option<CancelCause>,
    /// Whether its claim was answered.
    claimed: bool,
    started: Instant,
    /// Rows sent so far; counted by the sink, for the record of a job that fails half-way.
    rows: Arc<AtomicU64>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Claimed {
    job: Arc<Job>,
    attempt: u32,
    answer: Result<bool, StoreError>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Executed {
    job_id: JobId,
    /// The outer error: the execution panicked.
    result: Result<Result<Outcome, BridgeError>, String>,
}

/// The actor.
pub struct InlineExecutor {
    cx: InlineContext,
    running: HashMap<JobId, Running>,
    _vital: Vital,
}

impl InlineExecutor {
    /// An executor with nothing to do.
    pub fn new(cx: InlineContext, vital: Vital) -> Self {
        Self {
            cx,
            running: HashMap::new(),
            _vital: vital,
        }
    }
}

impl Actor for InlineExecutor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(2 * CAPACITY + 64);
        ctx.add_stream(self.cx.identity.changes());
    }
}

impl Handler<Execute> for InlineExecutor {
    type Result = ();

    fn handle(&mut self, Execute { job, attempt, .. }: Execute, ctx: &mut Self::Context) {
        if self.running.len() >= CAPACITY {
            self.cx.links.full.do_send(InlineFull { job_id: job.id });
            return;
        }
        let holder = self.cx.identity.current();
        let running = Running {
            job: job.clone(),
            attempt,
            holder,
            cancel: CancellationToken::new(),
            cause: None,
            claimed: false,
            started: Instant::now(),
            rows: Arc::default(),
        };
        self.running.insert(job.id, running);
        let claim = ClaimJob {
            job: job.clone(),
            attempt,
            holder,
            executor: Executor::Inline,
        };
        self.cx
            .links
            .claim
            .send(claim)
            .into_actor(self)
            .map(move |answer, _, ctx| {
                let answer =
                    answer.unwrap_or_else(|closed| Err(StoreError::Unavailable(closed.into())));
                ctx.notify(Claimed {
                    job,
                    attempt,
                    answer,
                });
            })
            .spawn(ctx);
    }
}

impl Handler<CancelExecution> for InlineExecutor {
    type Result = ();

    fn handle(
        &mut self,
        CancelExecution { job_id, cause }: CancelExecution,
        _: &mut Self::Context,
    ) {
        let Some(running) = self.running.get_mut(&job_id) else {
            return;
        };
        // The caller hears of it now; the slot is free once the database has let go.
        running.cause.get_or_insert(cause);
        let error = if running.claimed {
            cause.into()
        } else {
            unclaimed(cause)
        };
        running.job.reply.end(Err(error));
        running.cancel.cancel();
    }
}

impl Handler<Claimed> for InlineExecutor {
    type Result = ();

    fn handle(
        &mut self,
        Claimed {
            job,
            attempt,
            answer,
        }: Claimed,
        ctx: &mut Self::Context,
    ) {
        match answer {
            Ok(true) => self.run(&job, ctx),
            Ok(false) => self.forget(&job, JobError::ClaimLost),
            Err(StoreError::Conflict(_)) => self.forget(&job, JobError::settled_before()),
            Err(error) => {
                log::warn!(job_id:% = job.id, attempt, error:% = error; "job {} could not be claimed", job.id);
                // Should the claim have been written all the same, its end is written down behind it.
                self.end(&job, Err(JobError::StoreUnavailable));
            }
        }
    }
}

impl Handler<Executed> for InlineExecutor {
    type Result = ();

    fn handle(&mut self, Executed { job_id, result }: Executed, _: &mut Self::Context) {
        let Some(running) = self.running.remove(&job_id) else {
            return;
        };
        let elapsed = u64::try_from(running.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let rows = running.rows.load(Ordering::Relaxed);
        let result = match (running.cause, result) {
            (Some(cause), _) => Err(cause.into()),
            (None, Ok(Ok(outcome))) => Ok(finished(outcome, elapsed)),
            (None, Ok(Err(error))) => Err(error.into()),
            (None, Err(panicked)) => {
                log::error!(job_id:% = job_id, panicked; "the execution of job {job_id} panicked");
                Err(JobError::Internal)
            }
        };
        self.report(&running, rows, result);
    }
}

impl StreamHandler<GatewayId> for InlineExecutor {
    /// The others have taken this gateway for lost and settled what it held: that ends here too.
    fn handle(&mut self, current: GatewayId, _: &mut Self::Context) {
        let lost = self.running.values_mut();
        for running in lost.filter(|running| running.holder != current) {
            running.cause.get_or_insert(CancelCause::Requested);
            running.job.reply.end(Err(JobError::RunnerFailed {
                message: "the gateway was taken for lost mid-job".to_owned(),
                delivery: if running.claimed {
                    Delivery::Started
                } else {
                    Delivery::NotDelivered
                },
            }));
            running.cancel.cancel();
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl InlineExecutor {
    /// Executes a claimed job where bridges live, and comes back here with the outcome.
    fn run(&mut self, job: &Arc<Job>, ctx: &mut Context<Self>) {
        let Some(running) = self.running.get_mut(&job.id) else {
            return;
        };
        running.claimed = true;
        if let Some(cause) = running.cause {
            return self.end(job, Err(cause.into()));
        }
        let source = match self.source(job) {
            Ok(source) => source,
            Err(error) => return self.end(job, Err(error)),
        };
        let Some(running) = self.running.get(&job.id) else {
            return;
        };
        let execution = execution(job, running);
        let mut sink = ReplySink::new(job.clone(), running.rows.clone());
        let (bridges, job_id, job) = (self.cx.bridges.clone(), job.id, job.clone());
        let task = self.cx.runtime.spawn(async move {
            bridges
                .execute(&source, &job.spec.operation, &execution, &mut sink)
                .await
        });
        task.into_actor(self)
            .map(move |result, _, ctx| {
                let result = result.map_err(|panicked| panicked.to_string());
                ctx.notify(Executed { job_id, result });
            })
            .spawn(ctx);
    }

    fn source(&self, job: &Job) -> Result<Source, JobError> {
        let catalogue = self.cx.catalogue.current();
        let row = catalogue
            .source(job.spec.source_id)
            .ok_or(JobError::Cancelled)?;
        let config = self.cx.credentials.open(row).map_err(|error| {
            log::error!(source_id:% = row.id, error:% = error; "credentials of source {} cannot be opened", row.id);
            JobError::Internal
        })?;
        let (id, name, bridge) = (row.id, row.name.clone(), row.bridge.clone());
        Ok(Source {
            id,
            name,
            bridge,
            config: config.unwrap_or_default(),
        })
    }

    fn end(&mut self, job: &Arc<Job>, result: Result<Finished, JobError>) {
        if let Some(running) = self.running.remove(&job.id) {
            self.report(&running, 0, result);
        }
    }

    /// Ends a job that was never claimed; the store has nothing to learn of it from here.
    fn forget(&mut self, job: &Arc<Job>, error: JobError) {
        self.running.remove(&job.id);
        job.reply.end(Err(error));
        self.cx.links.settled.do_send(JobSettled { job_id: job.id });
    }

    fn report(&self, running: &Running, rows: u64, result: Result<Finished, JobError>) {
        let (job, now) = (&running.job, self.cx.clock.now());
        let (holder, attempt) = (running.holder, running.attempt);
        let finish = FinishJob::of(job, holder, attempt, rows, &result, now);
        job.reply.end(result);
        if let Some(finish) = finish {
            self.cx.links.finish.do_send(finish);
        }
        self.cx.links.settled.do_send(JobSettled { job_id: job.id });
    }
}

fn execution(job: &Job, running: &Running) -> Execution {
    Execution {
        job_id: job.id,
        attempt: running.attempt,
        deadline: job.deadline,
        cancel: running.cancel.clone(),
        format: if job.spec.encoding == Encoding::Ndjson {
            RowFormat::Ndjson
        } else {
            RowFormat::Json
        },
        fields: job.spec.fields.clone(),
        paging: job.spec.paging.clone(),
        types: job.spec.types.clone(),
        max_batch_bytes: MAX_FRAME_BYTES as usize,
        max_row_bytes: MAX_ROW_BYTES as usize,
    }
}

fn finished(outcome: Outcome, duration_ms: u64) -> Finished {
    Finished {
        count: outcome.rows,
        duration_ms,
        total: outcome.total,
        approximate: outcome.approximate,
        last: outcome.last,
        not_pageable: outcome.not_pageable,
        warnings: outcome.warnings,
        next_cursor: outcome.next_cursor,
        agg: None,
        runner_id: None,
    }
}

/// Puts rows into the job's reply, waiting while a window of them is unread.
struct ReplySink {
    job: Arc<Job>,
    window: Arc<Semaphore>,
    rows: Arc<AtomicU64>,
}

struct Refill(Arc<Semaphore>);

impl Consumption for Refill {
    fn consumed(&self, bytes: usize) {
        self.0.add_permits(bytes);
    }
}

impl ReplySink {
    fn new(job: Arc<Job>, rows: Arc<AtomicU64>) -> Self {
        let window = Arc::new(Semaphore::new(DEFAULT_WINDOW_BYTES as usize));
        job.reply.attach(Arc::new(Refill(window.clone())));
        Self { job, window, rows }
    }

    async fn send_part(&mut self, part: RowsPart) -> Result<(), SinkClosed> {
        // A part may be as large as the window but not larger, so this always comes to an end.
        let bytes = u32::try_from(part.payload.len())
            .unwrap_or(u32::MAX)
            .min(DEFAULT_WINDOW_BYTES);
        let permit = self
            .window
            .acquire_many(bytes)
            .await
            .map_err(|_closed| SinkClosed)?;
        permit.forget();
        self.rows.fetch_add(part.rows.into(), Ordering::Relaxed);
        match self.job.reply.rows(part, usize::MAX) {
            Ok(()) => Ok(()),
            Err(NotTaken::Gone | NotTaken::Overflow) => Err(SinkClosed),
        }
    }
}

#[async_trait]
impl RowSink for ReplySink {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        for part in batch.parts(MAX_FRAME_BYTES.min(DEFAULT_WINDOW_BYTES) as usize) {
            self.send_part(part).await?;
        }
        Ok(())
    }
}
