//! What two gateways say to each other about one job: the request, and the frames of its answer.
//!
//! A frame is one byte of kind, four bytes of length (big endian) and that many bytes. Rows travel as the
//! runner encoded them. Ids and the operation are all that is sent: credentials are opened by whoever sends the
//! job to its runner.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::bridge::{BridgeError, RowsPart};
use crate::clock::UtcTime;
use crate::control::dispatcher::Declined;
use crate::control::error::{self, Delivery, JobError};
use crate::control::job::JobSpec;
use crate::control::reply::{Finished, Reply, ReplyStream};
use crate::ids::{JobId, SessionId};

/// Where a job is handed over.
pub const EXECUTE_PATH: &str = "/internal/execute";
/// Where a job is cancelled.
pub const CANCEL_PATH: &str = "/internal/cancel";
/// The largest request: the largest operation that a caller can ask for, in column names.
pub const MAX_REQUEST: usize = 8 * 1024 * 1024;

/// The largest frame: what the largest message of a runner can become.
const MAX_FRAME: usize = 16 * 1024 * 1024;
const HEADER: usize = 1 + 4;

const ROWS: u8 = 1;
const DONE: u8 = 2;
const ERROR: u8 = 3;
const DECLINED: u8 = 4;
/// Rows as well: a part of one row, of which more follows.
const PART: u8 = 5;

/// Executes this job by that session.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecuteRequest {
    /// The job, under the id that its origin chose.
    pub job_id: JobId,
    /// Which attempt at it this is.
    pub attempt: u32,
    /// The session that was chosen.
    pub session_id: SessionId,
    /// What was asked.
    pub spec: JobSpec,
    /// When it was accepted.
    pub created_at: UtcTime,
    /// When it is given up, for the record.
    pub deadline_at: UtcTime,
    /// How long that is from now: what counts, because clocks differ.
    pub remaining_ms: u64,
}

/// Ends this job early.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelRequest {
    /// The job.
    pub job_id: JobId,
}

/// Whether the job was under way there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CancelAnswer {
    /// It was, and is told to end.
    pub cancelled: bool,
}

/// One step of the answer.
#[derive(Debug)]
pub enum PeerFrame {
    /// Some more rows, or a part of one.
    Rows(RowsPart),
    /// The job has ended, well or not; nothing comes after it.
    End(Result<Finished, JobError>),
    /// It was not taken; nothing comes after it.
    Declined(Declined),
}

/// What came is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Of an unknown kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// Larger than any frame is.
    #[error("a frame of {0} bytes")]
    TooLarge(usize),
    /// With contents that cannot be read.
    #[error("a frame that cannot be read")]
    Contents,
}

impl PeerFrame {
    /// The next step of a reply, as it is told to the gateway that has accepted the job. What was sent there
    /// cannot be taken back from here.
    pub async fn next_of(reply: &mut ReplyStream) -> Option<Self> {
        loop {
            match reply.next().await? {
                Reply::Rows(batch) if reply.commit() => return Some(Self::Rows(batch)),
                Reply::Rows(_) | Reply::Restarted => {}
                Reply::End(Err(JobError::Returned(declined))) => {
                    return Some(Self::Declined(declined));
                }
                Reply::End(end) => return Some(Self::End(end)),
            }
        }
    }

    /// Its bytes: a header, and what follows it as it is.
    pub fn encode(self) -> [Bytes; 2] {
        match self {
            Self::Rows(RowsPart {
                rows,
                more,
                payload,
            }) => {
                let kind = if more { PART } else { ROWS };
                let mut head = header(kind, 4 + payload.len());
                head.put_u32(rows);
                [head.freeze(), payload]
            }
            Self::End(Ok(finished)) => json(DONE, &finished),
            Self::End(Err(error)) => json(ERROR, &WireError::from(error)),
            Self::Declined(declined) => json(DECLINED, &declined),
        }
    }

    fn decode(kind: u8, mut body: Bytes) -> Result<Self, BadFrame> {
        match kind {
            ROWS | PART if body.len() >= 4 => {
                let rows = body.get_u32();
                Ok(Self::Rows(RowsPart {
                    rows,
                    more: kind == PART,
                    payload: body,
                }))
            }
            DONE => Ok(Self::End(Ok(read(&body)?))),
            ERROR => Ok(Self::End(Err(read::<WireError>(&body)?.into()))),
            DECLINED => Ok(Self::Declined(read(&body)?)),
            ROWS | PART => Err(BadFrame::Contents),
            other => Err(BadFrame::Kind(other)),
        }
    }
}

fn header(kind: u8, length: usize) -> BytesMut {
    let mut head = BytesMut::with_capacity(HEADER + 4);
    head.put_u8(kind);
    // A frame that is too long to be announced is too long to be read, and refused there.
    head.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    head
}

fn json(kind: u8, value: &impl Serialize) -> [Bytes; 2] {
    // Plain structs of texts and numbers always serialise; nothing at all would be refused by the reader.
    let body = serde_json::to_vec(value).unwrap_or_default();
    [header(kind, body.len()).freeze(), body.into()]
}

fn read<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, BadFrame> {
    serde_json::from_slice(body).or(Err(BadFrame::Contents))
}

/// Puts frames together from the pieces in which they arrive.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Takes a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next frame, if it is complete.
    ///
    /// # Errors
    ///
    /// When what came is not a frame; nothing that comes after it can be read.
    pub fn next_frame(&mut self) -> Result<Option<PeerFrame>, BadFrame> {
        let Some((head, _)) = self.buffer.split_at_checked(HEADER) else {
            return Ok(None);
        };
        let mut head = head;
        let kind = head.get_u8();
        let length = head.get_u32() as usize;
        if !(ROWS..=PART).contains(&kind) {
            return Err(BadFrame::Kind(kind));
        }
        if length > MAX_FRAME {
            return Err(BadFrame::TooLarge(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let body = self.buffer.split_to(length).freeze();
        PeerFrame::decode(kind, body).map(Some)
    }
}

/// An error of a job as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireError {
    NoRunnersOnline { reason: String, retry_after_ms: u64 },
    RunnersBusy { retry_after_ms: u64 },
    RunnerFailed { message: String, delivery: Delivery },
    Unreachable { message: String },
    Unavailable { message: String },
    QueryFailed { message: String },
    UnsupportedOperator { operator: String, bridge: String },
    UnsupportedKind { kind: String, bridge: String },
    Invalid { path: String, message: String },
    Rejected { code: String, message: String },
    Timeout,
    Cancelled,
    ResultOverflow { message: String },
    StoreUnavailable,
    ClaimLost,
    Internal,
}

impl From<JobError> for WireError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::NoRunnersOnline {
                reason,
                retry_after,
            } => Self::NoRunnersOnline {
                reason,
                retry_after_ms: millis(retry_after),
            },
            JobError::RunnersBusy { retry_after } => Self::RunnersBusy {
                retry_after_ms: millis(retry_after),
            },
            JobError::RunnerFailed { message, delivery } => {
                Self::RunnerFailed { message, delivery }
            }
            JobError::Source(error) => Self::of_source(error),
            JobError::Rejected { code, message } => Self::Rejected {
                code: code.to_owned(),
                message,
            },
            JobError::Timeout => Self::Timeout,
            JobError::Cancelled => Self::Cancelled,
            JobError::ResultOverflow(message) => Self::ResultOverflow { message },
            JobError::StoreUnavailable => Self::StoreUnavailable,
            JobError::ClaimLost => Self::ClaimLost,
            // A return travels as a frame of its own.
            JobError::Internal | JobError::Returned(_) => Self::Internal,
        }
    }
}

impl WireError {
    fn of_source(error: BridgeError) -> Self {
        match error {
            BridgeError::Unreachable(message) => Self::Unreachable { message },
            BridgeError::Unavailable(message) => Self::Unavailable { message },
            BridgeError::QueryFailed(message) => Self::QueryFailed { message },
            BridgeError::Timeout => Self::Timeout,
            BridgeError::Cancelled => Self::Cancelled,
            BridgeError::UnsupportedOperator { operator, bridge } => {
                Self::UnsupportedOperator { operator, bridge }
            }
            BridgeError::UnsupportedKind { kind, bridge } => Self::UnsupportedKind { kind, bridge },
            BridgeError::Invalid { path, message } => Self::Invalid { path, message },
            BridgeError::ResultOverflow(message) => Self::ResultOverflow { message },
        }
    }
}

impl From<WireError> for JobError {
    fn from(error: WireError) -> Self {
        let ms = std::time::Duration::from_millis;
        match error {
            WireError::NoRunnersOnline {
                reason,
                retry_after_ms,
            } => Self::NoRunnersOnline {
                reason,
                retry_after: ms(retry_after_ms),
            },
            WireError::RunnersBusy { retry_after_ms } => Self::RunnersBusy {
                retry_after: ms(retry_after_ms),
            },
            WireError::RunnerFailed { message, delivery } => {
                Self::RunnerFailed { message, delivery }
            }
            WireError::Unreachable { message } => Self::Source(BridgeError::Unreachable(message)),
            WireError::Unavailable { message } => Self::Source(BridgeError::Unavailable(message)),
            WireError::QueryFailed { message } => Self::Source(BridgeError::QueryFailed(message)),
            WireError::UnsupportedOperator { operator, bridge } => {
                Self::Source(BridgeError::UnsupportedOperator { operator, bridge })
            }
            WireError::UnsupportedKind { kind, bridge } => {
                Self::Source(BridgeError::UnsupportedKind { kind, bridge })
            }
            WireError::Invalid { path, message } => {
                Self::Source(BridgeError::Invalid { path, message })
            }
            WireError::Rejected { code, message } => error::from_runner(&code, message, None),
            WireError::Timeout => Self::Timeout,
            WireError::Cancelled => Self::Cancelled,
            WireError::ResultOverflow { message } => Self::ResultOverflow(message),
            WireError::StoreUnavailable => Self::StoreUnavailable,
            WireError::ClaimLost => Self::ClaimLost,
            WireError::Internal => Self::Internal,
        }
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::control::dispatcher::Return;
    use crate::ids::RunnerId;

    fn bytes(frame: PeerFrame) -> Vec<u8> {
        frame.encode().concat()
    }

    /// All the frames of these bytes, which arrive in pieces of that size.
    fn decoded(bytes: &[u8], piece: usize) -> Vec<PeerFrame> {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            frames.push(piece);
            while let Some(frame) = frames.next_frame().unwrap() {
                found.push(frame);
            }
        }
        found
    }

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let rows = |payload: &'static [u8], more| {
            PeerFrame::Rows(RowsPart {
                rows: 3,
                more,
                payload: payload.into(),
            })
        };
        let finished = Finished {
            count: 6,
            last: Some(vec![serde_json::json!(1.5), serde_json::json!(null)]),
            runner_id: Some(RunnerId::new()),
            agg: Some(vec![
                serde_json::value::RawValue::from_string("{\"n\":1.00}".into()).unwrap(),
            ]),
            ..Finished::default()
        };
        let runner = finished.runner_id;
        let all = [
            bytes(rows(b"{\"a\":1},{\"a\":2}", false)),
            bytes(rows(b"x", true)),
            bytes(PeerFrame::End(Ok(finished))),
        ]
        .concat();
        for piece in [1, 2, 3, 5, 7, 64, all.len()] {
            let frames = decoded(&all, piece);
            let [
                PeerFrame::Rows(first),
                PeerFrame::Rows(second),
                PeerFrame::End(Ok(end)),
            ] = frames.as_slice()
            else {
                panic!("{frames:?} in pieces of {piece}");
            };
            assert_eq!(
                (first.rows, first.payload.as_ref()),
                (3, b"{\"a\":1},{\"a\":2}".as_slice())
            );
            assert_eq!((first.more, second.more), (false, true));
            assert_eq!(second.payload.as_ref(), b"x");
            assert_eq!((end.count, end.runner_id), (6, runner));
            assert_eq!(
                end.agg.as_ref().unwrap()[0].get(),
                "{\"n\":1.00}",
                "as it was written"
            );
        }
    }

    #[test]
    fn every_error_arrives_as_it_was_sent() {
        let text = || "the database's own words".to_owned();
        let wait = Duration::from_millis(1500);
        for error in [
            JobError::NoRunnersOnline {
                reason: text(),
                retry_after: wait,
            },
            JobError::RunnersBusy { retry_after: wait },
            JobError::RunnerFailed {
                message: text(),
                delivery: Delivery::NotDelivered,
            },
            JobError::RunnerFailed {
                message: text(),
                delivery: Delivery::Started,
            },
            JobError::Source(BridgeError::Unreachable(text())),
            JobError::Source(BridgeError::Unavailable(text())),
            JobError::Source(BridgeError::QueryFailed(text())),
            JobError::Source(BridgeError::UnsupportedOperator {
                operator: "$x".into(),
                bridge: "mysql".into(),
            }),
            JobError::Source(BridgeError::UnsupportedKind {
                kind: "read".into(),
                bridge: "mysql".into(),
            }),
            JobError::Source(BridgeError::Invalid {
                path: "where".into(),
                message: text(),
            }),
            JobError::Rejected {
                code: "unsupported_kind",
                message: text(),
            },
            JobError::Rejected {
                code: "invalid_request",
                message: text(),
            },
            JobError::Timeout,
            JobError::Cancelled,
            JobError::ResultOverflow(text()),
            JobError::StoreUnavailable,
            JobError::Internal,
        ] {
            let frames = decoded(&bytes(PeerFrame::End(Err(error.clone()))), 1024);
            let [PeerFrame::End(Err(arrived))] = frames.as_slice() else {
                panic!("{frames:?}");
            };
            assert_eq!(*arrived, error);
        }
    }

    #[test]
    fn a_return_says_why_and_what_comes_next() {
        let declined = Declined {
            why: Return::NotHere,
            attempt: 3,
        };
        let frames = decoded(&bytes(PeerFrame::Declined(declined)), 4);
        assert!(
            matches!(frames.as_slice(), [PeerFrame::Declined(arrived)] if *arrived == declined)
        );
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_is_buffered() {
        for (bytes, error) in [
            (vec![9, 0, 0, 0, 0], BadFrame::Kind(9)),
            (vec![PART, 0, 0, 0, 2, 0, 0], BadFrame::Contents),
            (vec![0, 0, 0, 0, 0], BadFrame::Kind(0)),
            (vec![ROWS, 0xff, 0, 0, 0], BadFrame::TooLarge(0xff00_0000)),
            (vec![ROWS, 0, 0, 0, 2, 0, 0], BadFrame::Contents),
            (vec![DONE, 0, 0, 0, 1, b'{'], BadFrame::Contents),
            (vec![ERROR, 0, 0, 0, 0], BadFrame::Contents),
        ] {
            let mut frames = Frames::default();
            frames.push(&bytes);
            assert_eq!(frames.next_frame().unwrap_err(), error, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::default();
            frames.push(&bytes);
            while let Ok(Some(_)) = frames.next_frame() {}
        }
    }
}
