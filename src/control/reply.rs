//! The way back of one job: from whoever executes it to whoever asked, bounded in bytes and in messages.
//!
//! Rows are handed over encoded. What the reader takes is reported to the executor, which turns it into
//! credit for the runner; a reader that goes away before the end is reported to the dispatcher.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::mpsc;

use super::error::JobError;
use crate::bridge::RowBatch;
use crate::ids::{JobId, RunnerId};

/// How many unread messages one job may have. Rows come in batches of some 64 KiB; only a runner that
/// sends a row at a time to a reader that does not read gets here.
const MAX_UNREAD_MESSAGES: usize = 4096;

/// One step of an answer.
#[derive(Debug)]
pub enum Reply {
    /// Some more rows.
    Rows(RowBatch),
    /// The end; nothing comes after it.
    End(Result<Finished, JobError>),
}

/// How a job ended well.
#[derive(Debug, Clone, Default)]
pub struct Finished {
    /// How many rows there were.
    pub count: u64,
    /// How long the executor worked on it, in milliseconds.
    pub duration_ms: u64,
    /// The count that was asked for.
    pub total: Option<u64>,
    /// Whether `total` is an estimate.
    pub approximate: bool,
    /// The values of the job's keys in the last row.
    pub last: Option<Vec<Value>>,
    /// Where the next `read` goes on.
    pub next_cursor: Option<String>,
    /// Aggregate buckets, as JSON.
    pub agg: Option<Vec<Box<serde_json::value::RawValue>>>,
    /// Who executed it; none: the gateway itself.
    pub runner_id: Option<RunnerId>,
}

/// Hears of every byte that the reader took.
pub trait Consumption: Send + Sync {
    /// The reader took a batch of that many payload bytes.
    fn consumed(&self, bytes: usize);
}

/// Hears that the reader went away before the end.
pub trait Abandonment: Send + Sync {
    /// Nobody waits for this job any more.
    fn abandoned(&self, job_id: JobId);
}

/// Why rows were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// More is unread than may be.
    Overflow,
    /// The reader is gone, or the answer has ended.
    Gone,
}

#[derive(Default)]
struct Shared {
    unread_bytes: AtomicUsize,
    executor: Mutex<Option<Arc<dyn Consumption>>>,
}

/// The executor's end.
pub struct ReplySender {
    rows: mpsc::Sender<Reply>,
    // Reserved at the start, so that the end of an answer always finds room.
    end: Mutex<Option<mpsc::OwnedPermit<Reply>>>,
    shared: Arc<Shared>,
}

/// The caller's end. Dropped before the end, it has the job cancelled.
pub struct ReplyStream {
    job_id: JobId,
    rows: mpsc::Receiver<Reply>,
    shared: Arc<Shared>,
    abandonment: Option<Box<dyn Abandonment>>,
}

/// Makes the two ends of the answer to one job.
pub fn reply_channel(
    job_id: JobId,
    abandonment: Box<dyn Abandonment>,
) -> (ReplySender, ReplyStream) {
    let (rows, receiver) = mpsc::channel(MAX_UNREAD_MESSAGES);
    let end = rows.clone().try_reserve_owned().ok();
    let shared = Arc::new(Shared::default());
    (
        ReplySender {
            rows,
            end: Mutex::new(end),
            shared: shared.clone(),
        },
        ReplyStream {
            job_id,
            rows: receiver,
            shared,
            abandonment: Some(abandonment),
        },
    )
}

impl ReplySender {
    /// From now on `executor` hears what the reader takes.
    pub fn attach(&self, executor: Arc<dyn Consumption>) {
        *self
            .shared
            .executor
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(executor);
    }

    /// Hands over rows unless more than `max_unread` bytes would then be unread; one batch always fits.
    ///
    /// # Errors
    ///
    /// When the reader is too far behind or gone. The answer is then to be ended.
    pub fn rows(&self, batch: RowBatch, max_unread: usize) -> Result<(), NotTaken> {
        let size = batch.payload.len();
        let unread = self.shared.unread_bytes.fetch_add(size, Ordering::AcqRel);
        if unread > 0 && unread + size > max_unread {
            self.shared.unread_bytes.fetch_sub(size, Ordering::AcqRel);
            return Err(NotTaken::Overflow);
        }
        self.rows.try_send(Reply::Rows(batch)).map_err(|refused| {
            self.shared.unread_bytes.fetch_sub(size, Ordering::AcqRel);
            match refused {
                mpsc::error::TrySendError::Full(_) => NotTaken::Overflow,
                mpsc::error::TrySendError::Closed(_) => NotTaken::Gone,
            }
        })
    }

    /// Ends the answer; the first end counts, later ones are ignored.
    pub fn end(&self, result: Result<Finished, JobError>) {
        let permit = self
            .end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(permit) = permit {
            permit.send(Reply::End(result));
        }
        // The executor is not needed any more, and it may own the job that owns this sender.
        self.shared
            .executor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }
}

impl fmt::Debug for ReplySender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplySender")
    }
}

impl ReplyStream {
    /// The job whose answer this is.
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// The next step; rows count as taken when they are returned. `None` after the end.
    pub async fn next(&mut self) -> Option<Reply> {
        match self.rows.recv().await {
            Some(Reply::Rows(batch)) => {
                self.shared
                    .unread_bytes
                    .fetch_sub(batch.payload.len(), Ordering::AcqRel);
                let executor = self
                    .shared
                    .executor
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                if let Some(executor) = executor {
                    executor.consumed(batch.payload.len());
                }
                Some(Reply::Rows(batch))
            }
            end => {
                self.abandonment = None;
                end
            }
        }
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        if let Some(abandonment) = self.abandonment.take() {
            abandonment.abandoned(self.job_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Clone)]
    struct Heard(Arc<AtomicUsize>);

    impl Abandonment for Heard {
        fn abandoned(&self, _: JobId) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Consumption for Heard {
        fn consumed(&self, bytes: usize) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn batch(bytes: usize) -> RowBatch {
        RowBatch {
            rows: 1,
            payload: vec![b'x'; bytes].into(),
        }
    }

    #[tokio::test]
    async fn unread_rows_are_bounded_in_bytes_and_taken_ones_make_room() {
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        let taken = Heard::default();
        sender.attach(Arc::new(taken.clone()));
        assert_eq!(sender.rows(batch(60), 100), Ok(()));
        assert_eq!(sender.rows(batch(60), 100), Err(NotTaken::Overflow));
        assert!(matches!(stream.next().await, Some(Reply::Rows(_))));
        assert_eq!(taken.0.load(Ordering::Relaxed), 60);
        assert_eq!(
            sender.rows(batch(600), 100),
            Ok(()),
            "one batch always fits"
        );
    }

    #[tokio::test]
    async fn the_end_finds_room_behind_a_full_queue_and_is_said_once() {
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        while sender.rows(batch(1), usize::MAX).is_ok() {}
        sender.end(Ok(Finished {
            count: 7,
            ..Finished::default()
        }));
        sender.end(Err(JobError::Timeout));
        let mut rows = 0;
        loop {
            match stream.next().await {
                Some(Reply::Rows(_)) => rows += 1,
                Some(Reply::End(end)) => break assert_eq!(end.expect("the first end").count, 7),
                None => panic!("no end"),
            }
        }
        assert_eq!(rows, MAX_UNREAD_MESSAGES - 1);
        assert_eq!(
            sender.rows(batch(1), 10),
            Ok(()),
            "nobody forbids, nobody reads"
        );
    }

    #[tokio::test]
    async fn a_reader_that_leaves_early_is_reported_and_one_that_stays_is_not() {
        let left = Heard::default();
        let (sender, stream) = reply_channel(JobId::new(), Box::new(left.clone()));
        drop(stream);
        assert_eq!(left.0.load(Ordering::Relaxed), 1);
        assert_eq!(sender.rows(batch(1), 10), Err(NotTaken::Gone));

        let stayed = Heard::default();
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(stayed.clone()));
        sender.end(Ok(Finished::default()));
        assert!(matches!(stream.next().await, Some(Reply::End(Ok(_)))));
        drop(stream);
        assert_eq!(stayed.0.load(Ordering::Relaxed), 0);
    }
}
