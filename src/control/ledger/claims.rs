//! The lane of claims: one transaction per batch, and the truth about a commit that nobody saw the end of.

use std::collections::{HashMap, HashSet};

use tokio::sync::oneshot;

use super::entries;
use crate::clock::Clock;
use crate::ids::{GatewayId, JobId};
use crate::storage::{Store, StoreError, SyncClaim};

/// One claim and whoever waits for it.
pub(super) struct Claim {
    pub(super) claim: SyncClaim,
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
/// One entry that the store refuses must not stall the others: a refused batch is halved until the
/// culprit is alone.
pub(super) async fn commit(store: Store, clock: Clock, batch: Vec<Claim>) {
    let mut batches = vec![batch];
    while let Some(mut batch) = batches.pop() {
        let claims: Vec<_> = batch.iter().map(|claim| claim.claim.clone()).collect();
        match write(&store, &clock, claims).await {
            Ok(won) => {
                for Claim { claim, answer } in batch {
                    let _ = answer.send(Ok(won.contains(&claim.job.id)));
                }
            }
            Err(error) if error.is_connection() || batch.len() == 1 => {
                let cause = error.to_string();
                let mut batch = batch.into_iter();
                if let Some(first) = batch.next() {
                    let _ = first.answer.send(Err(error));
                }
                for Claim { answer, .. } in batch {
                    let _ = answer.send(Err(StoreError::Unavailable(cause.clone().into())));
                }
            }
            Err(_) => {
                let second = batch.split_off(batch.len() / 2);
                batches.push(second);
                batches.push(batch);
            }
        }
    }
}

/// Writes once; after an uncertain commit asks the store who holds the jobs, and nothing is sent before
/// that answer.
async fn write(
    store: &Store,
    clock: &Clock,
    claims: Vec<SyncClaim>,
) -> Result<HashSet<JobId>, StoreError> {
    match store.job_claim_sync(claims.clone(), clock.now()).await {
        Ok(won) => Ok(won.into_iter().collect()),
        Err(StoreError::Uncertain(cause)) => {
            log::warn!(error:% = cause; "a commit of {} claims has no known end, reading them back", claims.len());
            read_back(store, clock, claims).await
        }
        Err(error) => Err(error),
    }
}

/// Repeats the claims, which wins what was not committed, and looks up what was. Reading back locks the
/// rows, so a backend that is still busy with the lost commit is waited out.
async fn read_back(
    store: &Store,
    clock: &Clock,
    claims: Vec<SyncClaim>,
) -> Result<HashSet<JobId>, StoreError> {
    let wanted: HashMap<JobId, (i32, GatewayId)> = claims
        .iter()
        .map(|claim| (claim.job.id, (claim.job.attempt, claim.holder)))
        .collect();
    let mut won: HashSet<JobId> = store
        .job_claim_sync(claims, clock.now())
        .await?
        .into_iter()
        .collect();
    let held = store
        .job_read_back(wanted.keys().copied().collect())
        .await?;
    won.extend(
        held.into_iter()
            .filter(|job| {
                let held = job.claimed_by.map(|holder| (job.attempt, holder));
                held.as_ref() == wanted.get(&job.id)
            })
            .map(|job| job.id),
    );
    Ok(won)
}
