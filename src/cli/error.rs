//! Why a command failed, in a sentence on stderr, and the exit code that goes with it.

use std::fmt;
use std::process::ExitCode;

use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::process::{EXIT_FAILED, EXIT_USAGE};

/// Nobody answered, or the server asks to come back later.
const EXIT_UNAVAILABLE: u8 = 3;
/// The key is missing, wrong, or not enough.
const EXIT_DENIED: u8 = 4;

/// Why a command failed.
#[derive(Debug)]
pub enum CliError {
    /// The command itself cannot be carried out as it was typed.
    Usage(String),
    /// The server refused.
    Refused(Box<Refusal>),
    /// The server did not answer, or not as a gateway does.
    Unreachable(String),
    /// The command did what it could, and the answer is that something does not work.
    Failed(String),
    /// Whoever reads standard output has left, which is not worth a word.
    OutputClosed,
}

/// An error as the server puts it.
#[derive(Debug, Deserialize)]
pub struct Refusal {
    /// The HTTP status.
    #[serde(skip)]
    pub status: StatusCode,
    /// A sentence a person can act on.
    pub error: String,
    /// The machine code.
    #[serde(default)]
    pub code: Option<String>,
    /// What finds the request in the server's log.
    #[serde(rename = "requestId", default)]
    pub request_id: Option<String>,
    /// Whatever else the server said, e.g. the path of a wrong field.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

impl CliError {
    /// The command cannot be carried out as typed.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// The HTTP status, when the server refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status.as_u16()),
            _ => None,
        }
    }

    /// Prints the error to stderr.
    pub fn print(&self) {
        if !matches!(self, Self::OutputClosed) {
            eprintln!("error: {self}");
        }
    }

    /// The exit code of a command that failed this way.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Unreachable(_) => EXIT_UNAVAILABLE,
            Self::Failed(_) => EXIT_FAILED,
            Self::OutputClosed => 0,
            Self::Refused(refusal) => match refusal.status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => EXIT_DENIED,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => EXIT_UNAVAILABLE,
                _ => EXIT_FAILED,
            },
        })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::Unreachable(message) | Self::Failed(message) => {
                f.write_str(message)
            }
            Self::OutputClosed => f.write_str("standard output was closed"),
            Self::Refused(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for CliError {}

impl From<reqwest::Error> for CliError {
    fn from(error: reqwest::Error) -> Self {
        let server = error.url().map_or_else(String::new, |url| {
            format!(" {}", url.origin().ascii_serialization())
        });
        let mut reason = String::new();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
        while let Some(inner) = cause {
            reason = inner.to_string();
            cause = inner.source();
        }
        let reason = if reason.is_empty() {
            error.without_url().to_string()
        } else {
            reason
        };
        Self::Unreachable(format!(
            "no answer from the server{server}: {reason}. Is SEMILAYER_URL (--server) right?"
        ))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        if let Some(path) = self.details.get("path").and_then(Value::as_str) {
            write!(f, " (at `{path}`)")?;
        }
        let mut separator = " [";
        if let Some(code) = &self.code {
            write!(f, "{separator}{code}")?;
            separator = ", ";
        }
        if let Some(id) = &self.request_id {
            write!(f, "{separator}request {id}")?;
            separator = ", ";
        }
        if separator == ", " {
            f.write_str("]")
        } else {
            Ok(())
        }
    }
}
