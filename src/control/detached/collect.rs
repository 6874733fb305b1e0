//! From the steps of a job's reply to one piece of memory, bounded.

use tokio::time::{Instant, timeout_at};

use super::budget::Share;
use crate::control::error::JobError;
use crate::control::reply::{Finished, Reply, ReplyStream, Seams};
use crate::protocol::Encoding;

/// The largest result that is kept.
pub(super) const MAX_RESULT: usize = 16 * 1024 * 1024;

/// What came of an attempt.
#[derive(Debug)]
pub(super) struct Collected {
    /// How many rows came, also if it did not end well.
    pub(super) count: u64,
    /// The rows as one text, and how the job ended.
    pub(super) end: Result<(Vec<u8>, Finished), JobError>,
}

/// Takes everything that comes; a result that gets too large is left, which cancels the job.
pub(super) async fn collect(
    mut reply: ReplyStream,
    share: &mut Share,
    encoding: Encoding,
    deadline: Instant,
) -> Collected {
    let (mut rows, mut count, mut seams) = (Vec::new(), 0, Seams::default());
    let end = loop {
        let batch = match reply.next().await {
            Some(Reply::Rows(batch)) => batch,
            // Each execution has a reply of its own; should one start over all the same, so does this.
            Some(Reply::Restarted) => {
                (rows, count, seams) = (Vec::new(), 0, Seams::default());
                continue;
            }
            Some(Reply::End(Ok(finished))) => break Ok((rows, finished)),
            Some(Reply::End(Err(error))) => break Err(error),
            None => break Err(JobError::Internal),
        };
        count += u64::from(batch.rows);
        let size = rows.len() + 1 + batch.payload.len();
        if size > MAX_RESULT {
            break Err(JobError::ResultOverflow(format!(
                "the result is larger than {} MiB, the most that is kept of a detached job; ask for less \
                 at a time with `limit` or `select`",
                MAX_RESULT / 1024 / 1024
            )));
        }
        // The runner waits meanwhile: it gets credit for what was taken only with the next step.
        if timeout_at(deadline, share.grow_to(size)).await.is_err() {
            break Err(JobError::Timeout);
        }
        if seams.comma_before(&batch) && encoding != Encoding::Ndjson {
            rows.push(b',');
        }
        rows.extend_from_slice(&batch.payload);
    };
    Collected { count, end }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::bridge::RowBatch;
    use crate::control::detached::budget::Budget;
    use crate::control::reply::{Abandonment, ReplySender, reply_channel};
    use crate::ids::JobId;

    #[derive(Clone, Default)]
    struct Left(Arc<AtomicBool>);

    impl Abandonment for Left {
        fn abandoned(&self, _: JobId) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn send(sender: &ReplySender, payload: &[u8]) {
        let payload = payload.to_vec().into();
        sender
            .rows(RowBatch { rows: 1, payload }, usize::MAX)
            .unwrap();
    }

    /// What is collected of these batches and that end, and whether the reader left early.
    async fn collected(
        batches: &[&[u8]],
        end: Result<Finished, JobError>,
        encoding: Encoding,
    ) -> (Collected, bool) {
        let left = Left::default();
        let (sender, stream) = reply_channel(JobId::new(), Box::new(left.clone()));
        for batch in batches {
            send(&sender, batch);
        }
        sender.end(end);
        let mut share = Budget::new(MAX_RESULT).share();
        let deadline = Instant::now() + Duration::from_secs(5);
        let collected = collect(stream, &mut share, encoding, deadline).await;
        (collected, left.0.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn batches_become_one_text_in_the_job_s_encoding() {
        let batches: [&[u8]; 2] = [b"{\"a\":1}", b"{\"a\":2},{\"a\":3}"];
        for (encoding, expected) in [
            (Encoding::Json, "{\"a\":1},{\"a\":2},{\"a\":3}"),
            (Encoding::Ndjson, "{\"a\":1}{\"a\":2},{\"a\":3}"),
        ] {
            let (collected, left) = collected(&batches, Ok(Finished::default()), encoding).await;
            assert_eq!((collected.count, left), (2, false));
            assert_eq!(collected.end.unwrap().0, expected.as_bytes());
        }
        let (empty, _) = collected(&[], Ok(Finished::default()), Encoding::Json).await;
        assert!(empty.end.unwrap().0.is_empty());
    }

    #[tokio::test]
    async fn a_failure_keeps_the_number_of_rows_and_nothing_of_them() {
        let (collected, left) = collected(&[b"{}"], Err(JobError::Timeout), Encoding::Json).await;
        assert_eq!((collected.count, left), (1, false));
        assert_eq!(collected.end.unwrap_err(), JobError::Timeout);
    }

    #[tokio::test]
    async fn a_result_that_is_too_large_is_left_before_it_is_all_there() {
        let large = vec![b'x'; MAX_RESULT / 2];
        let fits = [&large[..], &large[..large.len() - 2]];
        let (collected_, left) = collected(&fits, Ok(Finished::default()), Encoding::Json).await;
        assert!(collected_.end.is_ok() && !left);
        let (collected, left) = collected(
            &[&large, &large, b"{}"],
            Ok(Finished::default()),
            Encoding::Json,
        )
        .await;
        assert!(matches!(collected.end, Err(JobError::ResultOverflow(_))));
        assert_eq!((collected.count, left), (2, true));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_memory_gives_up_at_the_deadline() {
        let budget = Budget::new(0);
        let mut other = budget.share();
        other.grow_to(MAX_RESULT).await;
        let (sender, stream) = reply_channel(JobId::new(), Box::new(Left::default()));
        send(&sender, b"{}");
        let deadline = Instant::now() + Duration::from_secs(5);
        let collected = collect(stream, &mut budget.share(), Encoding::Json, deadline).await;
        assert_eq!(collected.end.unwrap_err(), JobError::Timeout);
        assert_eq!(Instant::now(), deadline);
    }
}
