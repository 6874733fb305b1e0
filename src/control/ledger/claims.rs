//! The lane of claims: one transaction per batch, and the truth about a commit that nobody saw the end of.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use super::entries;
use crate::clock::Clock;
use crate::domain::job::JobStatus;
use crate::ids::{GatewayId, JobId};
use crate::storage::{Mark, Store, StoreError, SyncClaim};

/// Why a claim was not won that nobody cancelled.
const SETTLED: &str = "the job was settled before it was claimed";
/// How many batches of one commit may be halved because of locks.
const PATIENCE: u32 = 3;

/// What has to be written before a job may be sent.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// Of one whose caller waits: everything.
    Claim(Box<SyncClaim>),
    /// Of a detached one, which is claimed already: the mark.
    Mark(Mark),
}

impl Entry {
    fn id(&self) -> JobId {
        match self {
            Self::Claim(claim) => claim.job.id,
            Self::Mark(mark) => mark.id,
        }
    }
}

/// One entry and whoever waits for it.
pub(super) struct Claim {
    pub(super) entry: Entry,
    pub(super) answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl Claim {
    pub(super) fn refuse(self) {
        // Whoever waited may be gone.
        let _ = self.answer.send(Err(entries::dropped()));
    }
}

/// Writes a batch and answers each of its claims.
///
/// Claims and marks are transactions of their own: what becomes of the one says nothing about the other.
/// One entry that the store refuses must not stall the others: a refused batch is halved until the
/// culprit is alone. One that met with locks is halved a few times only, because each may have waited for them.
pub(super) async fn commit(store: Store, clock: Clock, batch: Vec<Claim>) {
    let (claims, marks): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .partition(|claim| matches!(claim.entry, Entry::Claim(_)));
    let mut batches = vec![marks, claims];
    let mut patience = PATIENCE;
    while let Some(mut batch) = batches.pop() {
        let entries: Vec<_> = batch.iter().map(|claim| claim.entry.clone()).collect();
        match write(&store, &clock, entries).await {
            Ok(won) => {
                let cancelled = cancelled(&store, &batch, &won).await;
                for Claim { entry, answer } in batch {
                    let id = entry.id();
                    let settled = matches!(entry, Entry::Claim(_)) && !cancelled.contains(&id);
                    let _ = answer.send(match won.contains(&id) {
                        false if settled => Err(StoreError::Conflict(SETTLED)),
                        won => Ok(won),
                    });
                }
            }
            Err(error) if batch.len() == 1 || is_final(&error, patience) => {
                let cause = error.to_string();
                let mut batch = batch.into_iter();
                if let Some(first) = batch.next() {
                    let _ = first.answer.send(Err(error));
                }
                for Claim { answer, .. } in batch {
                    let _ = answer.send(Err(StoreError::Unavailable(cause.clone().into())));
                }
            }
            Err(error) => {
                if error.is_contention() {
                    patience -= 1;
                }
                let second = batch.split_off(batch.len() / 2);
                batches.push(second);
                batches.push(batch);
            }
        }
    }
}

/// Those of the claims that were not won which somebody has cancelled. Any other was settled because this gateway
/// stood still for so long that the others took it for lost.
async fn cancelled(store: &Store, batch: &[Claim], won: &HashSet<JobId>) -> HashSet<JobId> {
    let claims = batch
        .iter()
        .filter(|claim| matches!(claim.entry, Entry::Claim(_)));
    let lost: Vec<_> = claims
        .map(|claim| claim.entry.id())
        .filter(|id| !won.contains(id))
        .collect();
    match store.job_read_back(lost).await {
        Ok(found) => found
            .into_iter()
            .filter(|job| job.status == JobStatus::Cancelled)
            .map(|job| job.id)
            .collect(),
        Err(error) => {
            log::warn!(error:% = error; "why claims were not won cannot be read");
            HashSet::new()
        }
    }
}

/// Whether halving the batch would not help.
fn is_final(error: &StoreError, patience: u32) -> bool {
    error.is_connection() && (patience == 0 || !error.is_contention())
}

/// Writes once; after an uncertain commit asks the store how the jobs stand, and nothing is sent before
/// that answer. The entries are of one kind.
async fn write(
    store: &Store,
    clock: &Clock,
    entries: Vec<Entry>,
) -> Result<HashSet<JobId>, StoreError> {
    let (mut claims, mut marks) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Claim(claim) => claims.push(*claim),
            Entry::Mark(mark) => marks.push(mark),
        }
    }
    let wanted: HashMap<JobId, (i32, GatewayId)> = (claims.iter())
        .map(|claim| (claim.job.id, (claim.job.attempt, claim.holder)))
        .chain(
            marks
                .iter()
                .map(|mark| (mark.id, (mark.attempt, mark.holder))),
        )
        .collect();
    let write = async || {
        if marks.is_empty() {
            store.job_claim_sync(claims.clone(), clock.now()).await
        } else {
            store.job_mark(marks.clone()).await
        }
    };
    match write().await {
        Ok(won) => Ok(won.into_iter().collect()),
        Err(StoreError::Uncertain(cause)) => {
            log::warn!(error:% = cause; "a commit of {} claims has no known end, reading them back", wanted.len());
            let again = write().await?;
            read_back(store, wanted, again).await
        }
        Err(error) => Err(error),
    }
}

/// Looks up what was committed and not heard of; what was not, the repetition has won. Reading back locks the
/// rows, so a backend that is still busy with the lost commit is waited out.
async fn read_back(
    store: &Store,
    wanted: HashMap<JobId, (i32, GatewayId)>,
    again: Vec<JobId>,
) -> Result<HashSet<JobId>, StoreError> {
    let mut won: HashSet<JobId> = again.into_iter().collect();
    let held = store
        .job_read_back(wanted.keys().copied().collect())
        .await?;
    let ours = held.into_iter().filter(|job| {
        let held = job.claimed_by.map(|holder| (job.attempt, holder));
        // A detached job is claimed before it is marked, and only the mark lets it go out.
        job.status == JobStatus::Dispatched && held.as_ref() == wanted.get(&job.id)
    });
    won.extend(ours.map(|job| job.id));
    Ok(won)
}
