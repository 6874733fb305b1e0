//! What crosses the runner's socket: text frames in each direction and the binary rows frame. Serde and
//! bytes only; who sends what when is decided elsewhere.
//!
//! `docs/protocol.md` says the same to those who write runners in other languages.

mod frames;
mod rows;

pub use frames::{
    AssignedSource, Chunk, ChunkRow, CredentialsLocation, Done, DoneMeta, Encoding, GatewayFrame,
    Hello, HelloAck, Job, JobParams, JobRequest, JobSource, Limits, RefusedReason, RunnerFrame,
    Stats,
};
pub use rows::{ROWS_HEADER_BYTES, RowsFrame};

/// The highest protocol version that this code speaks.
pub const CURRENT_VERSION: u32 = 2;
/// The lowest protocol version that a gateway still serves.
pub const OLDEST_VERSION: u32 = 1;
/// The largest frame, in bytes, that either side accepts (rows are counted uncompressed).
pub const MAX_FRAME_BYTES: u32 = 1024 * 1024;
/// The largest row, in bytes; one that is larger than a frame is continued in further ones.
pub const MAX_ROW_BYTES: u32 = 16 * 1024 * 1024;
/// The largest message, in bytes, that a gateway takes off a runner's socket: a frame with its header, or a text
/// frame of rows.
pub const MAX_MESSAGE_BYTES: u32 = 4 * MAX_FRAME_BYTES;
/// How many uncompressed payload bytes a job may have outstanding unless the gateway says otherwise.
pub const DEFAULT_WINDOW_BYTES: u32 = 1024 * 1024;

/// Close codes of the runner's socket.
pub mod close {
    /// The gateway is going away: reconnect at once.
    pub const GOING_AWAY: u16 = 1001;
    /// The token was rotated, revoked or has expired: do not come back with it.
    pub const TOKEN_REVOKED: u16 = 4001;
    /// Unknown frame, bad JSON, wrong version: reconnect with backoff.
    pub const PROTOCOL_ERROR: u16 = 4002;
    /// The hello names another runner than the token does: do not come back.
    pub const WRONG_RUNNER: u16 = 4004;
    /// Heartbeats were missed: reconnect.
    pub const HEARTBEAT_MISSED: u16 = 4008;
    /// The peer does not read what it is sent: reconnect.
    pub const NOT_READING: u16 = 4009;
}

/// A frame that this protocol does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The text is not a JSON object with a `type`, or a field is missing or of the wrong type.
    #[error("bad frame: {0}")]
    BadJson(String),
    /// The `type` is not one that this side receives.
    #[error("unknown frame type `{0}`")]
    UnknownType(String),
    /// A binary frame that is not a rows frame, or a rows frame that contradicts itself.
    #[error("bad rows frame: {0}")]
    BadRows(&'static str),
}
