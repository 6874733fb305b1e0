//! What SQLite's result codes mean to whoever asked: a table.

use rusqlite::{Error, ErrorCode};

use crate::bridge::BridgeError;

/// Whom an error is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It was interrupted, which only the job itself does.
    Interrupted,
    /// It passes by itself: the same question may be answered in a moment.
    Passes,
    /// Only whoever has the file can mend it.
    Operator,
    /// The caller can correct the question.
    Caller,
}

const fn meaning(code: Option<ErrorCode>) -> Meaning {
    match code {
        Some(ErrorCode::OperationInterrupted) => Meaning::Interrupted,
        // Somebody writes; the lock on the file could not be had; the schema changed once too often.
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::SchemaChanged,
        ) => Meaning::Passes,
        // Memory, and the disk that is sorted on.
        Some(ErrorCode::OutOfMemory | ErrorCode::DiskFull) => Meaning::Passes,
        // The file is not there, may not be read, is no database or broken, or needs a writer to recover it.
        Some(
            ErrorCode::CannotOpen
            | ErrorCode::NotADatabase
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::SystemIoFailure
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly,
        ) => Meaning::Operator,
        _ => Meaning::Caller,
    }
}

/// What became of a statement.
pub(super) fn of_statement(error: Error) -> BridgeError {
    match meaning(error.sqlite_error_code()) {
        Meaning::Interrupted => BridgeError::Cancelled,
        Meaning::Passes => BridgeError::Unavailable(message(&error)),
        Meaning::Operator => BridgeError::Unreachable(message(&error)),
        Meaning::Caller => BridgeError::QueryFailed(message(&error)),
    }
}

/// Why a file could not be opened: nothing that a caller could correct.
pub(super) fn of_opening(path: &std::path::Path, error: &Error) -> BridgeError {
    let message = format!("{}: {}", path.display(), message(error));
    match meaning(error.sqlite_error_code()) {
        Meaning::Passes => BridgeError::Unavailable(message),
        Meaning::Interrupted | Meaning::Operator | Meaning::Caller => {
            BridgeError::Unreachable(message)
        }
    }
}

/// SQLite's own words.
fn message(error: &Error) -> String {
    match error {
        Error::SqliteFailure(_, Some(message)) => message.clone(),
        Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::ffi;

    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_somebody_must_mend() {
        let error = |code| Error::SqliteFailure(ffi::Error::new(code), Some("words".into()));
        let passes = [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_BUSY_SNAPSHOT,
            ffi::SQLITE_LOCKED,
            ffi::SQLITE_LOCKED_SHAREDCACHE,
            ffi::SQLITE_PROTOCOL,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_FULL,
            ffi::SQLITE_SCHEMA,
        ];
        for code in passes {
            let words = BridgeError::Unavailable("words".into());
            assert_eq!(of_statement(error(code)), words, "{code}");
            let words = BridgeError::Unavailable("f: words".into());
            assert_eq!(of_opening(Path::new("f"), &error(code)), words, "{code}");
        }
        let operator = [
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_IOERR_READ,
            ffi::SQLITE_PERM,
            ffi::SQLITE_READONLY_CANTINIT,
        ];
        for code in operator {
            let words = BridgeError::Unreachable("words".into());
            assert_eq!(of_statement(error(code)), words, "{code}");
        }
        for code in [
            ffi::SQLITE_ERROR,
            ffi::SQLITE_TOOBIG,
            ffi::SQLITE_MISMATCH,
            ffi::SQLITE_RANGE,
        ] {
            let words = BridgeError::QueryFailed("words".into());
            assert_eq!(of_statement(error(code)), words, "{code}");
        }
        let interrupted = of_statement(error(ffi::SQLITE_INTERRUPT));
        assert_eq!(interrupted, BridgeError::Cancelled);
    }
}
