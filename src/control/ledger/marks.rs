//! The lane of everything but claims: ends, returns and refusals, one statement per kind and batch.

use std::collections::HashSet;

use tokio::sync::oneshot;

use super::entries;
use crate::ids::JobId;
use crate::storage::{Finish, NewJob, Requeue, Store, StoreError, Supersede};

/// One transition other than a claim.
pub(super) enum Mark {
    /// A claimed job has ended.
    Finish(Finish),
    /// A claimed job certainly did not leave.
    Requeue {
        requeue: Requeue,
        answer: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// A job was lost with a peer, and is to be tried again.
    Supersede {
        supersede: Box<Supersede>,
        answer: oneshot::Sender<Result<bool, StoreError>>,
    },
    /// A job found nobody.
    Unplaced(Box<(NewJob, Finish)>),
}

impl Mark {
    pub(super) fn refuse(self) {
        match self {
            Self::Requeue { answer, .. } | Self::Supersede { answer, .. } => {
                // Whoever waited may be gone.
                let _ = answer.send(Err(entries::dropped()));
            }
            Self::Finish(_) | Self::Unplaced(_) => {}
        }
    }
}

/// Writes a batch; answers what could not be written because the store does not answer.
pub(super) async fn commit(store: Store, batch: Vec<Mark>) -> Vec<Mark> {
    let (mut finishes, mut requeues) = (Vec::new(), Vec::new());
    let (mut supersedes, mut unplaced) = (Vec::new(), Vec::new());
    for mark in batch {
        match mark {
            Mark::Finish(finish) => finishes.push(finish),
            Mark::Requeue { requeue, answer } => requeues.push((requeue, answer)),
            Mark::Supersede { supersede, answer } => supersedes.push((*supersede, answer)),
            Mark::Unplaced(ended) => unplaced.push(*ended),
        }
    }
    let mut left = Vec::new();
    commit_requeues(&store, requeues).await;
    commit_supersedes(&store, supersedes).await;
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

type Waiting<T> = (T, oneshot::Sender<Result<bool, StoreError>>);

/// A return is not tried again later: somebody waits for it, and an unreturned job fails truthfully.
async fn commit_requeues(store: &Store, requeues: Vec<Waiting<Requeue>>) {
    if requeues.is_empty() {
        return;
    }
    let entries = requeues.iter().map(|(requeue, _)| *requeue).collect();
    let written = store.job_requeue(entries).await;
    answer(requeues, |requeue| requeue.id, written);
}

/// Nor is a second try at a job that was lost with a peer.
async fn commit_supersedes(store: &Store, supersedes: Vec<Waiting<Supersede>>) {
    if supersedes.is_empty() {
        return;
    }
    let entries = supersedes.iter().map(|(entry, _)| entry.clone()).collect();
    let written = store.job_supersede(entries).await;
    answer(supersedes, |supersede| supersede.job.id, written);
}

/// Tells each that waits whether its entry is among those that were written.
fn answer<T>(
    waiting: Vec<Waiting<T>>,
    id: impl Fn(&T) -> JobId,
    written: Result<Vec<JobId>, StoreError>,
) {
    let written: Result<HashSet<JobId>, String> = written
        .map(|ids| ids.into_iter().collect())
        .map_err(|error| error.to_string());
    for (entry, answer) in waiting {
        let answered = match &written {
            Ok(ids) => Ok(ids.contains(&id(&entry))),
            Err(cause) => Err(StoreError::Unavailable(cause.clone().into())),
        };
        // Whoever waited may be gone.
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
