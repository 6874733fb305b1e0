//! The encoder with the sink that its batches go to.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use serde_json::Value;

use super::{BATCH_DELAY, Caps, Columns, RowEncoder, write_json};
use crate::bridge::{BridgeError, Execution, Outcome, RowBatch, RowSink};

/// What is kept back for the sake of a right answer is kept for this long.
const MOMENT: Duration = Duration::from_millis(250);

/// An encoder with the sink that its batches go to.
pub(in crate::bridge) struct RowWriter<'a> {
    execution: &'a Execution,
    caps: Caps,
    encoder: Option<RowEncoder>,
    sink: &'a mut dyn RowSink,
}

impl<'a> RowWriter<'a> {
    /// Makes the writer of one answer.
    pub(in crate::bridge) fn new(
        execution: &'a Execution,
        caps: Caps,
        sink: &'a mut dyn RowSink,
    ) -> Self {
        Self {
            execution,
            caps,
            encoder: None,
            sink,
        }
    }

    /// Says which columns the rows have; before the first row. The rows of further statements are of the same answer.
    pub(in crate::bridge) fn begin(&mut self, columns: &Columns) {
        let (execution, caps) = (self.execution, self.caps);
        self.encoder
            .get_or_insert_with(|| RowEncoder::new(execution, caps, columns));
    }

    /// Whether rows may have been written.
    pub(in crate::bridge) fn has_begun(&self) -> bool {
        self.encoder.is_some()
    }

    /// The limits, for rows that are encoded elsewhere and come here by [`Self::send`].
    pub(in crate::bridge) fn caps(&self) -> Caps {
        self.caps
    }

    /// Writes one row, and waits for the sink when a batch is full.
    pub(in crate::bridge) async fn row(
        &mut self,
        value: impl FnMut(usize, &mut Vec<u8>) -> Result<(), BridgeError>,
    ) -> Result<(), BridgeError> {
        let Some(encoder) = &mut self.encoder else {
            return Ok(());
        };
        match encoder.row(value)? {
            Some(batch) => self.send(batch).await,
            None => Ok(()),
        }
    }

    /// Writes rows that are few and already JSON, such as those of `listTargets`.
    pub(in crate::bridge) async fn objects(
        &mut self,
        names: &[&str],
        rows: Vec<Vec<Value>>,
    ) -> Result<(), BridgeError> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        self.begin(&Columns {
            names,
            ..Columns::default()
        });
        for row in rows {
            self.row(|i, out| {
                write_json(out, &row[i]);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Waits for the next row; if that takes long, what was written is handed over meanwhile.
    pub(in crate::bridge) async fn wait<T>(
        &mut self,
        next: impl Future<Output = T>,
    ) -> Result<T, BridgeError> {
        let Some(since) = self.encoder.as_ref().and_then(RowEncoder::waiting_since) else {
            return Ok(next.await);
        };
        let mut next = pin!(next);
        tokio::select! {
            biased;
            next = &mut next => return Ok(next),
            () = tokio::time::sleep_until(since + BATCH_DELAY) => {}
        }
        self.flush().await?;
        Ok(next.await)
    }

    /// Hands over a batch and waits until the sink took it.
    pub(in crate::bridge) async fn send(&mut self, batch: RowBatch) -> Result<(), BridgeError> {
        // A fast database and a fast sink must not keep a cancellation from being seen.
        tokio::task::yield_now().await;
        self.sink.send(batch).await.or(Err(BridgeError::Cancelled))
    }

    /// Waits for the next row, while one is kept back that it may be tied to: that one not for longer than a moment.
    /// Answers `None` when that is over.
    pub(in crate::bridge) async fn wait_briefly<T>(
        &mut self,
        next: impl Future<Output = T>,
    ) -> Result<Option<T>, BridgeError> {
        self.wait(async { tokio::time::timeout(MOMENT, next).await.ok() })
            .await
    }

    async fn flush(&mut self) -> Result<(), BridgeError> {
        match self.encoder.as_mut().and_then(RowEncoder::take) {
            Some(batch) => self.send(batch).await,
            None => Ok(()),
        }
    }

    /// Where the last row stands in the order, and how many rows of this answer stand there; `None` without rows.
    pub(in crate::bridge) fn place(&self) -> Option<(Vec<&[u8]>, u64)> {
        self.encoder.as_ref().and_then(RowEncoder::place)
    }

    /// Hands over the rest and says what there was.
    pub(in crate::bridge) async fn finish(&mut self) -> Result<Outcome, BridgeError> {
        self.flush().await?;
        Ok(self
            .encoder
            .as_ref()
            .map(RowEncoder::outcome)
            .unwrap_or_default())
    }
}
