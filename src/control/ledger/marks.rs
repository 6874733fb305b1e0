//! The lane of everything but claims: ends, returns and refusals, one statement per kind and batch.

use std::collections::HashSet;

use tokio::sync::oneshot;

use super::entries;
use crate::ids::JobId;
use crate::storage::{Finish, NewJob, Requeue, Store, StoreError};

/// One transition other than a claim.
pub(super) enum Mark {
    /// A claimed job has ended.
    Finish(Finish),
    /// A claimed job certainly did not leave.
    Requeue {
        requeue: Requeue,
        answer: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// A job found nobody.
    Unplaced(Box<(NewJob, Finish)>),
}

impl Mark {
    pub(super) fn refuse(self) {
        if let Self::Requeue { answer, .. } = self {
            // Whoever waited may be gone.
            let _ = answer.send(Err(entries::dropped()));
        }
    }
}

/// Writes a batch; answers what could not be written because the store does not answer.
pub(super) async fn commit(store: Store, batch: Vec<Mark>) -> Vec<Mark> {
    let (mut finishes, mut requeues, mut unplaced) = (Vec::new(), Vec::new(), Vec::new());
    for mark in batch {
        match mark {
            Mark::Finish(finish) => finishes.push(finish),
            Mark::Requeue { requeue, answer } => requeues.push((requeue, answer)),
            Mark::Unplaced(ended) => unplaced.push(*ended),
        }
    }
    let mut left = Vec::new();
    commit_requeues(&store, requeues).await;
    left.extend(
        commit_finishes(&store, finishes)
            .await
            .into_iter()
            .map(Mark::Finish),
    );
    let unwritten = commit_unplaced(&store, unplaced).await;
    left.extend(
        unwritten
            .into_iter()
            .map(|ended| Mark::Unplaced(Box::new(ended))),
    );
    left
}

type Waiting = (Requeue, oneshot::Sender<Result<bool, StoreError>>);

/// A return is not tried again later: somebody waits for it, and an unreturned job fails truthfully.
async fn commit_requeues(store: &Store, requeues: Vec<Waiting>) {
    if requeues.is_empty() {
        return;
    }
    let written = store
        .job_requeue(requeues.iter().map(|(requeue, _)| *requeue).collect())
        .await;
    let written: Result<HashSet<JobId>, String> = written
        .map(|ids| ids.into_iter().collect())
        .map_err(|error| error.to_string());
    for (requeue, answer) in requeues {
        let answered = match &written {
            Ok(ids) => Ok(ids.contains(&requeue.id)),
            Err(cause) => Err(StoreError::Unavailable(cause.clone().into())),
        };
        let _ = answer.send(answered);
    }
}

async fn commit_finishes(store: &Store, finishes: Vec<Finish>) -> Vec<Finish> {
    halving(finishes, async |batch: Vec<Finish>| {
        store.job_finish(batch).await.map(|_| ())
    })
    .await
}

async fn commit_unplaced(store: &Store, unplaced: Vec<(NewJob, Finish)>) -> Vec<(NewJob, Finish)> {
    halving(unplaced, async |batch: Vec<(NewJob, Finish)>| {
        store.job_record_unplaced(batch).await.map(|_| ())
    })
    .await
}

/// Writes entries, halving a batch that the store refuses until the culprit is alone and left out.
/// Answers what the store did not answer for; writing an end twice does nothing the second time.
async fn halving<T: Clone>(
    entries: Vec<T>,
    write: impl AsyncFn(Vec<T>) -> Result<(), StoreError>,
) -> Vec<T> {
    let (mut batches, mut unwritten) = (vec![entries], Vec::new());
    while let Some(mut batch) = batches.pop() {
        if batch.is_empty() {
            continue;
        }
        match write(batch.clone()).await {
            Ok(()) => {}
            Err(error) if error.is_connection() => {
                log::warn!(error:% = error; "{} ends of jobs could not be recorded yet", batch.len());
                unwritten.append(&mut batch);
            }
            Err(error) if batch.len() == 1 => {
                log::error!(error:% = error; "the store refuses the record of a job's end, it is left out");
            }
            Err(_) => {
                let second = batch.split_off(batch.len() / 2);
                batches.push(second);
                batches.push(batch);
            }
        }
    }
    unwritten
}
