//! `ClaimSweeper`: the pass that makes every promise about a job true in the end, whatever crashed.
//!
//! A claim says "this gateway is about to send this job". One that is 30 s old and was never marked as
//! sent belongs to a gateway that died in between: the job certainly did not leave and goes back to
//! `pending`. Thirty seconds is longer than any lease of a living gateway. A job that is unfinished long
//! after its deadline has nobody left who would finish it, and expires. What a gateway claimed after it was
//! declared lost is settled as what it held before that. Two sweepers at once do no harm:
//! every update repeats its condition. It owns no state; each pass asks the store for everything.

use std::time::Duration;

use actix::prelude::*;

use super::vital::Vital;
use crate::clock::Clock;
use crate::storage::{Store, StoreError};
use crate::timing::Timing;

/// How many rows one statement touches at most, so that none holds its locks for long.
const BATCH: u32 = 1000;
/// How many such statements of a kind one pass makes at most; what is left then is the next pass's.
const MAX_ROUNDS: u32 = 200;
/// How long history is kept.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many jobs of history are kept.
const KEEP_ROWS: u64 = 10_000_000;

/// How long it is remembered what was deleted: longer than any gateway goes without reading everything.
const REMEMBER: Duration = Duration::from_secs(3600);

/// Do one pass. Sent by its own timer, and by tests.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Sweep;

/// The actor.
pub struct ClaimSweeper {
    store: Store,
    clock: Clock,
    timing: Timing,
    sweeping: bool,
    _vital: Vital,
}

impl ClaimSweeper {
    /// A sweeper that starts with its first tick.
    pub fn new(store: Store, clock: Clock, timing: Timing, vital: Vital) -> Self {
        Self {
            store,
            clock,
            timing,
            sweeping: false,
            _vital: vital,
        }
    }
}

impl Actor for ClaimSweeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.notify(Sweep);
        ctx.run_interval(self.timing.sweep, |_, ctx| ctx.notify(Sweep));
    }
}

impl Handler<Sweep> for ClaimSweeper {
    type Result = ();

    fn handle(&mut self, _: Sweep, ctx: &mut Self::Context) {
        if std::mem::replace(&mut self.sweeping, true) {
            return;
        }
        sweep(self.store.clone(), self.clock.clone(), self.timing.clone())
            .into_actor(self)
            .map(|swept, act, _| {
                act.sweeping = false;
                if let Err(error) = swept {
                    log::warn!(error:% = error; "the sweep did not finish, the next one will");
                }
            })
            .spawn(ctx);
    }
}

async fn sweep(store: Store, clock: Clock, timing: Timing) -> Result<(), StoreError> {
    let now = clock.now();
    let (stale, late) = (
        now.minus(timing.stale_claim),
        now.minus(timing.deadline_grace),
    );
    let (mut requeued, mut expired) = (0, 0);
    let swept = while_full(async || {
        let swept = store.job_sweep(now, stale, late, BATCH).await?;
        requeued += swept.requeued;
        expired += swept.expired;
        Ok(swept.requeued.max(swept.expired))
    })
    .await;
    if requeued + expired > 0 {
        log::info!(requeued, expired; "gave back {requeued} stale claims and expired {expired} jobs");
    }
    swept?;
    let orphans = store.job_settle_orphans(now, stale).await?;
    if orphans.requeued + orphans.failed > 0 {
        log::info!(
            requeued = orphans.requeued, failed = orphans.failed;
            "gave back {} jobs and failed {} that gateways claimed after they were declared lost",
            orphans.requeued, orphans.failed
        );
    }
    while_full(async || store.job_result_prune(now, BATCH).await).await?;
    store.tombstone_prune(now.minus(REMEMBER)).await?;
    while_full(async || store.job_prune(now.minus(KEEP), KEEP_ROWS, BATCH).await).await
}

/// Repeats a step for as long as it fills its batch, and lets others at the store in between.
async fn while_full(
    mut step: impl AsyncFnMut() -> Result<usize, StoreError>,
) -> Result<(), StoreError> {
    for _ in 0..MAX_ROUNDS {
        if step().await? < BATCH as usize {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UtcTime;
    use crate::control::testing::World;
    use crate::domain::job::JobStatus;
    use crate::ids::JobId;
    use crate::storage::{JobFilter, NewJob, Page, SyncClaim};

    /// More than two batches.
    const JOBS: u32 = 2500;

    /// Has that many jobs claimed and never finished, all accepted at that time with a deadline soon after.
    async fn abandon_jobs(world: &World, created_at: UtcTime) {
        let millis = u64::try_from(created_at.get().timestamp_millis()).unwrap();
        let id = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            let unique = [0, 0, 0, 0, 0, 0, a, b, c, d];
            JobId::from_uuid(uuid::Builder::from_unix_timestamp_millis(millis, &unique).into_uuid())
        };
        let claim = |n| SyncClaim {
            job: NewJob {
                id: id(n),
                organisation_id: world.organisation(),
                environment_id: world.environment.id,
                source_id: world.source,
                lens: None,
                kind: "query".into(),
                attempt: 1,
                detached: false,
                retry: false,
                created_at,
                deadline_at: created_at.plus(Duration::from_secs(30)),
                key_id: None,
                request: None,
                routing: None,
            },
            holder: world.gateway,
            placement: None,
        };
        let won = world
            .store
            .job_claim_sync((0..JOBS).map(claim).collect(), created_at)
            .await
            .unwrap();
        assert_eq!(won.len(), JOBS as usize);
    }

    async fn count(world: &World, status: JobStatus) -> usize {
        let filter = JobFilter {
            status: Some(status),
            ..JobFilter::default()
        };
        world
            .store
            .job_list(world.organisation(), filter, Page::first(2 * JOBS))
            .await
            .unwrap()
            .len()
    }

    #[actix::test]
    async fn one_pass_expires_however_many_are_late() {
        let world = World::new().await;
        abandon_jobs(&world, world.clock.now().minus(Duration::from_secs(600))).await;
        sweep(world.store.clone(), world.clock.clone(), Timing::default())
            .await
            .unwrap();
        assert_eq!(count(&world, JobStatus::Expired).await, JOBS as usize);
    }

    #[actix::test]
    async fn one_pass_forgets_however_many_are_old() {
        let world = World::new().await;
        let (now, timing) = (world.clock.now(), Timing::default());
        abandon_jobs(&world, now.minus(KEEP + Duration::from_secs(600))).await;
        world
            .store
            .job_sweep(now, now, now, 2 * JOBS)
            .await
            .unwrap();
        assert_eq!(count(&world, JobStatus::Expired).await, JOBS as usize);
        sweep(world.store.clone(), world.clock.clone(), timing)
            .await
            .unwrap();
        assert_eq!(count(&world, JobStatus::Expired).await, 0);
    }

    #[actix::test]
    async fn a_pass_comes_to_an_end_whatever_arrives_meanwhile() {
        let mut rounds = 0;
        while_full(async || {
            rounds += 1;
            Ok(BATCH as usize)
        })
        .await
        .unwrap();
        assert_eq!(rounds, MAX_ROUNDS);
    }
}
