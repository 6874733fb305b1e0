//! The one task that writes to a session's socket. Control frames overtake rows, so that a heartbeat
//! waits behind what is in the socket's buffers and at most one frame of rows, never behind a queue of them.

use futures_util::stream::SplitSink;
use futures_util::{FutureExt, SinkExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::runner::dial::Socket;

/// How many control frames may wait; more means that the gateway does not read.
const CONTROL_QUEUE: usize = 4096;
/// How many frames of all jobs may wait; the jobs wait for room.
const ROWS_QUEUE: usize = 2;

/// Where frames are put to be sent.
pub(super) struct Outbox {
    /// Small frames that must not wait: heartbeats, `accepted`, `refused`.
    pub(super) control: mpsc::Sender<Message>,
    /// Rows, and what must come after a job's rows: its `done` or `error`.
    pub(super) rows: mpsc::Sender<Message>,
}

/// The other end of an [`Outbox`].
pub(super) struct Queues {
    control: mpsc::Receiver<Message>,
    rows: mpsc::Receiver<Message>,
}

/// Makes the queues of a session.
pub(super) fn queues() -> (Outbox, Queues) {
    let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
    let (rows, rows_queue) = mpsc::channel(ROWS_QUEUE);
    (
        Outbox { control, rows },
        Queues {
            control: control_queue,
            rows: rows_queue,
        },
    )
}

/// Writes until a close frame has been written, or both queues have ended.
pub(super) async fn write(
    mut socket: SplitSink<Socket, Message>,
    mut queues: Queues,
) -> Result<(), tungstenite::Error> {
    loop {
        let Some(mut message) = queues.next().await else {
            return socket.flush().await;
        };
        loop {
            let last = message.is_close();
            socket.feed(message).await?;
            if last {
                return socket.flush().await;
            }
            match queues.next().now_or_never() {
                Some(Some(next)) => message = next,
                _ => break,
            }
        }
        socket.flush().await?;
    }
}

impl Queues {
    async fn next(&mut self) -> Option<Message> {
        tokio::select! {
            biased;
            Some(message) = self.control.recv() => Some(message),
            Some(message) = self.rows.recv() => Some(message),
            else => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn control_overtakes_rows_and_everything_is_written_before_the_end() {
        let (outbox, mut queues) = queues();
        outbox.rows.send(Message::binary("rows")).await.unwrap();
        outbox
            .control
            .send(Message::text("heartbeat"))
            .await
            .unwrap();
        drop(outbox);
        assert_eq!(queues.next().await, Some(Message::text("heartbeat")));
        assert_eq!(queues.next().await, Some(Message::binary("rows")));
        assert_eq!(queues.next().await, None);
    }
}
