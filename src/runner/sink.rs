//! Rows on their way from a bridge to the socket: within the job's credit, in the frames of the session's
//! protocol. It pushes back, so that a bridge reads no further than the gateway has room for.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::session::Credit;
use crate::bridge::{RowBatch, RowSink, RowsPart, SinkClosed};
use crate::ids::AttemptId;
use crate::protocol::{Chunk, RowsFrame, RunnerFrame};

/// How large a protocol 1 chunk gets before the next one is begun.
const CHUNK_BYTES: usize = 256 * 1024;

/// How rows become frames.
pub(super) enum Framing {
    /// Protocol 2: binary frames, within the credit.
    Binary {
        /// What may still be sent.
        credit: Arc<Credit>,
        /// Whether to compress.
        zstd: bool,
        /// The largest payload of one frame.
        max_payload: usize,
    },
    /// Protocol 1: chunks, which have no flow control but the socket's own.
    Chunks {
        /// Whether the rows are the buckets of an aggregate.
        aggregate: bool,
    },
}

/// Sends one job's rows.
pub(super) struct SocketSink {
    /// The attempt that the rows belong to.
    pub(super) id: AttemptId,
    /// How rows become frames.
    pub(super) framing: Framing,
    /// The session's queue of rows.
    pub(super) rows: mpsc::Sender<Message>,
    /// Fires when nobody wants the rows any more.
    pub(super) cancel: CancellationToken,
}

#[async_trait]
impl RowSink for SocketSink {
    async fn send(&mut self, batch: RowBatch) -> Result<(), SinkClosed> {
        let cancel = self.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(SinkClosed),
            sent = self.send_frames(batch) => sent,
        }
    }
}

impl SocketSink {
    async fn send_frames(&self, batch: RowBatch) -> Result<(), SinkClosed> {
        if batch.payload.is_empty() {
            return Ok(());
        }
        match &self.framing {
            Framing::Binary {
                credit,
                zstd,
                max_payload,
            } => {
                for RowsPart {
                    rows,
                    more,
                    payload,
                } in batch.parts(*max_payload)
                {
                    credit.take(payload.len()).await;
                    let id = self.id;
                    let frame = RowsFrame {
                        id,
                        rows,
                        more,
                        payload,
                    };
                    let bytes = if *zstd {
                        frame.encode_zstd()
                    } else {
                        frame.encode()
                    };
                    self.put(Message::Binary(bytes)).await?;
                }
                Ok(())
            }
            Framing::Chunks { aggregate } => {
                for rows in split(&batch.payload, CHUNK_BYTES) {
                    let mut chunk = Chunk {
                        id: self.id,
                        rows,
                        agg: None,
                        total: None,
                        approximate: None,
                    };
                    if *aggregate {
                        chunk.agg = Some(std::mem::take(&mut chunk.rows));
                    }
                    self.put(Message::text(RunnerFrame::Chunk(chunk).to_text()))
                        .await?;
                }
                Ok(())
            }
        }
    }

    async fn put(&self, message: Message) -> Result<(), SinkClosed> {
        self.rows.send(message).await.or(Err(SinkClosed))
    }
}

/// Takes objects joined by commas apart into groups of about `size` bytes.
fn split(payload: &[u8], size: usize) -> Vec<Vec<Box<RawValue>>> {
    let mut groups = Vec::new();
    let (mut group, mut bytes) = (Vec::new(), 0);
    let mut rest = payload;
    while let Some((row, after)) = first_row(rest) {
        bytes += row.get().len();
        group.push(row);
        if bytes >= size {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        rest = after;
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

fn first_row(payload: &[u8]) -> Option<(Box<RawValue>, &[u8])> {
    let payload = payload.strip_prefix(b",").unwrap_or(payload);
    let mut rows = serde_json::Deserializer::from_slice(payload).into_iter::<Box<RawValue>>();
    let row = rows.next()?.ok()?;
    Some((row, payload.get(rows.byte_offset()..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_into_chunks_and_kept_as_they_are() {
        let payload = br#"{"a":"1,2"},{"a":9007199254740993},{"a":null}"#;
        let groups = split(payload, 20);
        let texts: Vec<Vec<_>> = groups
            .iter()
            .map(|g| g.iter().map(|r| r.get()).collect())
            .collect();
        assert_eq!(
            texts,
            [
                vec![r#"{"a":"1,2"}"#, r#"{"a":9007199254740993}"#],
                vec![r#"{"a":null}"#]
            ]
        );
        assert!(split(b"", 20).is_empty());
    }
}
