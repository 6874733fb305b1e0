//! The way back of one job: from whoever executes it to whoever asked, bounded in bytes and in messages.
//!
//! Rows are handed over encoded. What the reader takes is reported to the executor, which turns it into
//! credit for the runner; a reader that goes away before the end is reported to the dispatcher.
//!
//! An answer may start over: until the reader has committed itself to what it took (its caller was sent
//! something), the executor may take everything back and let another attempt answer. Both are decided under
//! one lock, so a caller never sees rows of two attempts. Rows that were taken back and not read yet are
//! gone at once, and count neither as unread nor as taken; of those that were read the reader is told.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use super::error::JobError;
use crate::bridge::RowsPart;
use crate::ids::{JobId, RunnerId};

/// How many unread messages one job may have. Rows come in batches of some 64 KiB; only a runner that
/// sends a row at a time to a reader that does not read gets here.
const MAX_UNREAD_MESSAGES: usize = 4096;

/// One step of an answer.
#[derive(Debug)]
pub enum Reply {
    /// Some more rows, or a part of one.
    Rows(RowsPart),
    /// The answer starts over: what was read so far counts for nothing. Never after a commit.
    Restarted,
    /// The end; nothing comes after it.
    End(Result<Finished, JobError>),
}

/// How a job ended well.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Finished {
    /// How many rows there were.
    pub count: u64,
    /// How long the executor worked on it, in milliseconds.
    pub duration_ms: u64,
    /// The count that was asked for.
    pub total: Option<u64>,
    /// Whether `total` is an estimate.
    pub approximate: bool,
    /// Where the last row stands in the order, for the next page.
    pub last: Option<Vec<Value>>,
    /// Why no page can follow in this order.
    pub not_pageable: Option<String>,
    /// What the caller should know of the answer.
    pub warnings: Vec<String>,
    /// Where the next `read` goes on.
    pub next_cursor: Option<String>,
    /// Aggregate buckets, as JSON.
    pub agg: Option<Vec<Box<serde_json::value::RawValue>>>,
    /// Who executed it; none: the gateway itself.
    pub runner_id: Option<RunnerId>,
}

/// Where the commas of a JSON answer go: between its rows, and nowhere in a row that comes in parts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seams {
    begun: bool,
    in_row: bool,
}

impl Seams {
    /// Whether a comma belongs before this part, which is the next one.
    pub fn comma_before(&mut self, part: &RowsPart) -> bool {
        let comma = self.begun && !self.in_row;
        (self.begun, self.in_row) = (true, part.more);
        comma
    }

    /// Whether there was a part.
    pub fn begun(self) -> bool {
        self.begun
    }

    /// Whether the last part was one of a row that goes on.
    pub fn in_row(self) -> bool {
        self.in_row
    }
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

/// Where an answer stands, between its two ends.
#[derive(Default)]
struct State {
    unread: VecDeque<RowsPart>,
    unread_bytes: usize,
    /// What the executor said last; taken by the reader.
    end: Option<Result<Finished, JobError>>,
    /// Whether the end was said, taken or not.
    ended: bool,
    /// Whether the executor's end is gone.
    unattended: bool,
    /// Whether the reader's end is gone.
    abandoned: bool,
    /// Whether the reader has yet to hear that the answer starts over.
    restarting: bool,
    /// How often the answer has started over.
    restarts: u32,
    /// Whether what was read cannot be taken back any more.
    committed: bool,
    executor: Option<Arc<dyn Consumption>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    // One reader waits, so a permit that is stored until it does is never lost.
    news: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The executor's end.
pub struct ReplySender(Arc<Shared>);

/// The caller's end. Dropped before the end, it has the job cancelled.
pub struct ReplyStream {
    job_id: JobId,
    shared: Arc<Shared>,
    abandonment: Option<Box<dyn Abandonment>>,
}

/// Makes the two ends of the answer to one job.
pub fn reply_channel(
    job_id: JobId,
    abandonment: Box<dyn Abandonment>,
) -> (ReplySender, ReplyStream) {
    let shared = Arc::new(Shared::default());
    (
        ReplySender(shared.clone()),
        ReplyStream {
            job_id,
            shared,
            abandonment: Some(abandonment),
        },
    )
}

impl ReplySender {
    /// From now on `executor` hears what the reader takes.
    pub fn attach(&self, executor: Arc<dyn Consumption>) {
        let mut state = self.0.state();
        if !state.ended {
            state.executor = Some(executor);
        }
    }

    /// Hands over rows unless more than `max_unread` bytes would then be unread; one batch always fits.
    ///
    /// # Errors
    ///
    /// When the reader is too far behind or gone. The answer is then to be ended.
    pub fn rows(&self, batch: impl Into<RowsPart>, max_unread: usize) -> Result<(), NotTaken> {
        let batch = batch.into();
        let mut state = self.0.state();
        if state.abandoned || state.ended {
            return Err(NotTaken::Gone);
        }
        let size = batch.payload.len();
        let overflows = state.unread_bytes > 0 && state.unread_bytes + size > max_unread;
        if overflows || state.unread.len() >= MAX_UNREAD_MESSAGES {
            return Err(NotTaken::Overflow);
        }
        state.unread_bytes += size;
        state.unread.push_back(batch);
        drop(state);
        self.0.news.notify_one();
        Ok(())
    }

    /// Takes everything back that was answered so far, for another attempt to answer; `false` when it is too
    /// late for that: the caller was sent something, is gone, or knows the end.
    #[must_use]
    pub fn restart(&self) -> bool {
        let mut state = self.0.state();
        if state.committed || state.ended || state.abandoned {
            return false;
        }
        state.unread.clear();
        state.unread_bytes = 0;
        state.executor = None;
        state.restarting = true;
        state.restarts += 1;
        drop(state);
        self.0.news.notify_one();
        true
    }

    /// How often the answer has started over.
    pub fn restarts(&self) -> u32 {
        self.0.state().restarts
    }

    /// Whether the caller was sent something.
    pub fn is_committed(&self) -> bool {
        self.0.state().committed
    }

    /// Whether the reader went away.
    pub fn is_abandoned(&self) -> bool {
        self.0.state().abandoned
    }

    /// Ends the answer; the first end counts, later ones are ignored.
    pub fn end(&self, result: Result<Finished, JobError>) {
        let mut state = self.0.state();
        // The executor is not needed any more, and it may own the job that owns this sender.
        let executor = state.executor.take();
        if !std::mem::replace(&mut state.ended, true) {
            state.end = Some(result);
        }
        drop(state);
        drop(executor);
        self.0.news.notify_one();
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        self.0.state().unattended = true;
        self.0.news.notify_one();
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

    /// How many bytes of rows wait to be read.
    #[cfg(test)]
    pub(super) fn unread_bytes(&self) -> usize {
        self.shared.state().unread_bytes
    }

    /// The next step; rows count as taken when they are returned. `None` after the end.
    pub async fn next(&mut self) -> Option<Reply> {
        loop {
            if let Poll::Ready(step) = self.step() {
                return step;
            }
            self.shared.news.notified().await;
        }
    }

    /// The next step if there is one, or none if there will never be one again.
    fn step(&mut self) -> Poll<Option<Reply>> {
        let mut state = self.shared.state();
        if std::mem::take(&mut state.restarting) {
            return Poll::Ready(Some(Reply::Restarted));
        }
        if let Some(batch) = state.unread.pop_front() {
            let bytes = batch.payload.len();
            state.unread_bytes -= bytes;
            // Who is to hear of it is looked up with the rows: after a restart it is somebody else.
            let executor = state.executor.clone();
            drop(state);
            if let Some(executor) = executor {
                executor.consumed(bytes);
            }
            return Poll::Ready(Some(Reply::Rows(batch)));
        }
        let end = state.end.take();
        let over = end.is_some() || state.ended || state.unattended;
        drop(state);
        if over {
            self.abandonment = None;
            return Poll::Ready(end.map(Reply::End));
        }
        Poll::Pending
    }

    /// Says that what was read cannot be taken back any more: from now on the caller is sent something. `false`
    /// when the answer has started over meanwhile: read on, [`Reply::Restarted`] comes next.
    #[must_use]
    pub fn commit(&mut self) -> bool {
        let mut state = self.shared.state();
        state.committed = !state.restarting;
        state.committed
    }
}

impl Drop for ReplyStream {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.abandoned = true;
        state.unread.clear();
        let executor = state.executor.take();
        drop(state);
        drop(executor);
        if let Some(abandonment) = self.abandonment.take() {
            abandonment.abandoned(self.job_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::bridge::RowBatch;

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

    #[test]
    fn commas_stand_between_rows_and_not_in_them() {
        let mut seams = Seams::default();
        let mut joined = String::new();
        for (text, more) in [
            ("{1},{2}", false),
            ("{3", true),
            ("3", true),
            ("3}", false),
            ("{4}", false),
            ("{5", true),
            ("}", false),
        ] {
            let part = RowsPart {
                rows: u32::from(!more),
                more,
                payload: text.into(),
            };
            if seams.comma_before(&part) {
                joined.push(',');
            }
            joined.push_str(text);
            assert_eq!((seams.begun(), seams.in_row()), (true, more));
        }
        assert_eq!(joined, "{1},{2},{333},{4},{5}");
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
                other => panic!("no end but {other:?}"),
            }
        }
        assert_eq!(rows, MAX_UNREAD_MESSAGES);
        assert_eq!(sender.rows(batch(1), 10), Err(NotTaken::Gone));
        assert!(stream.next().await.is_none());
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

    #[tokio::test]
    async fn an_answer_that_starts_over_takes_back_what_was_read_and_what_was_not() {
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        let (first, second) = (Heard::default(), Heard::default());
        sender.attach(Arc::new(first.clone()));
        sender.rows(batch(60), 100).unwrap();
        sender.rows(batch(40), 100).unwrap();
        assert!(matches!(stream.next().await, Some(Reply::Rows(_))));
        assert!(sender.restart());
        assert!(!stream.commit(), "a restart is on its way to the reader");
        sender.attach(Arc::new(second.clone()));
        assert_eq!(
            sender.rows(batch(90), 100),
            Ok(()),
            "the unread rows of the first attempt take no room"
        );
        assert!(matches!(stream.next().await, Some(Reply::Restarted)));
        let Some(Reply::Rows(again)) = stream.next().await else {
            panic!("no rows of the second attempt");
        };
        assert_eq!(again.payload.len(), 90);
        assert_eq!(
            (
                first.0.load(Ordering::Relaxed),
                second.0.load(Ordering::Relaxed)
            ),
            (60, 90),
            "each attempt has credit for its own rows only"
        );
        sender.end(Ok(Finished::default()));
        assert!(matches!(stream.next().await, Some(Reply::End(Ok(_)))));
        assert_eq!(sender.restarts(), 1);
    }

    #[tokio::test]
    async fn a_reader_that_waits_hears_that_the_answer_starts_over() {
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        let waiting = tokio::spawn(async move { stream.next().await });
        tokio::task::yield_now().await;
        assert!(sender.restart());
        assert!(matches!(waiting.await.unwrap(), Some(Reply::Restarted)));
    }

    #[tokio::test]
    async fn what_the_caller_was_sent_is_never_taken_back() {
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        sender.rows(batch(1), 100).unwrap();
        assert!(matches!(stream.next().await, Some(Reply::Rows(_))));
        assert!(!sender.is_committed() && stream.commit() && sender.is_committed());
        sender.rows(batch(2), 100).unwrap();
        assert!(!sender.restart(), "committed");
        assert!(matches!(stream.next().await, Some(Reply::Rows(_))));
        drop(stream);

        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        sender.end(Err(JobError::Timeout));
        assert!(!sender.restart(), "the caller may know the end already");
        assert!(matches!(stream.next().await, Some(Reply::End(Err(_)))));
        drop(stream);

        let (sender, stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        drop(stream);
        assert!(!sender.restart(), "nobody waits");
    }

    #[tokio::test]
    async fn an_answer_may_end_right_after_it_started_over() {
        let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
        sender.rows(batch(1), 100).unwrap();
        assert!(sender.restart());
        sender.end(Err(JobError::Timeout));
        assert!(matches!(stream.next().await, Some(Reply::Restarted)));
        assert!(matches!(stream.next().await, Some(Reply::End(Err(_)))));
        assert!(stream.next().await.is_none());
    }

    /// Both sides at once, many times: whenever the reader has committed, what it holds is of one attempt.
    #[test]
    fn restart_and_commit_exclude_each_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for round in 0..2_000 {
            let (sender, mut stream) = reply_channel(JobId::new(), Box::new(Heard::default()));
            let attempt = std::thread::spawn(move || {
                for _ in 0..round % 7 {
                    sender.rows(batch(1), 100).unwrap();
                }
                if sender.restart() {
                    sender.rows(batch(2), 100).unwrap();
                }
                sender.end(Ok(Finished::default()));
            });
            let (mut held, mut committed) = (Vec::new(), false);
            runtime.block_on(async {
                while let Some(step) = stream.next().await {
                    match step {
                        Reply::Rows(batch) => held.push(batch.payload.len()),
                        Reply::Restarted => {
                            assert!(!committed, "taken back after the commit");
                            held.clear();
                        }
                        Reply::End(_) => break,
                    }
                    committed = committed || (held.len() >= 3 && stream.commit());
                }
            });
            attempt.join().unwrap();
            held.dedup();
            assert!(held.len() <= 1, "rows of two attempts: {held:?}");
        }
    }
}
