//! What the error numbers of MySQL and MariaDB mean to whoever asked: a table.
//!
//! What is not in the table is for the caller to correct.

use mysql_async::{DriverError, Error};

use crate::bridge::BridgeError;

/// Whom an error is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// The statement was stopped: by a kill, or by a timeout that may be the job's own.
    Stopped,
    /// It passes by itself: the same question may be answered in a moment.
    Passes,
    /// Only whoever runs the database or the source's credentials can mend it.
    Operator,
    /// The caller can correct the question.
    Caller,
}

const fn meaning(code: u16) -> Meaning {
    match code {
        // ER_QUERY_INTERRUPTED; ER_QUERY_TIMEOUT of MySQL; ER_STATEMENT_TIMEOUT of MariaDB.
        1317 | 3024 | 1969 => Meaning::Stopped,
        // Too many connections: of all, of the account, of its quota; too many threads, too many transactions.
        1040 | 1203 | 1226 | 1135 | 1637 => Meaning::Passes,
        // Lock wait timeout, deadlocks, a lock that was not waited for.
        1205 | 1213 | 3058 | 3572 => Meaning::Passes,
        // The snapshot no longer fits: a row or a table has changed since.
        1020 | 1412 => Meaning::Passes,
        // The server was switched to read-only, or is told not to; a session setting cannot be made meanwhile.
        1290 | 1836 => Meaning::Passes,
        // Out of memory, also to sort in; disk full; too many prepared statements on the server.
        1037 | 1038 | 1041 | 1021 | 1461 => Meaning::Passes,
        // Shutdown; the connection was killed or timed out; the server or the cluster's node is not ready yet.
        1053 | 1927 | 4031 | 3168 | 1047 => Meaning::Passes,
        // A proxy has had no server to hand for a while.
        9001 => Meaning::Passes,
        // The account may not log in, or not from here, or its password is due; there is no such database.
        1044 | 1045 | 1698 | 1049 | 1129 | 1130 | 1251 | 1820 | 1862 | 3118 | 3159 | 4151 => {
            Meaning::Operator
        }
        // The network failed in between.
        1158..=1161 | 1184 | 2013 => Meaning::Operator,
        // Tables that are broken, files that cannot be read, a storage engine that failed.
        1016 | 1017 | 1030 | 1033 | 1034 | 1035 | 1194 | 1195 | 1429 | 1430 => Meaning::Operator,
        _ => Meaning::Caller,
    }
}

/// What became of a statement; `is_due` says whether its job's deadline has come.
pub(super) fn of_statement(error: Error, is_due: bool) -> BridgeError {
    match error {
        Error::Server(error) => match meaning(error.code) {
            Meaning::Stopped if is_due => BridgeError::Timeout,
            Meaning::Passes => BridgeError::Unavailable(error.message),
            Meaning::Operator => BridgeError::Unreachable(error.message),
            Meaning::Stopped | Meaning::Caller => BridgeError::QueryFailed(error.message),
        },
        Error::Io(error) => {
            BridgeError::Unreachable(format!("the connection to the database was lost: {error}"))
        }
        Error::Driver(DriverError::ConnectionClosed) => {
            BridgeError::Unreachable("the connection to the database was lost".into())
        }
        other => BridgeError::QueryFailed(other.to_string()),
    }
}

/// Why there is no connection: nothing that a caller could correct.
pub(super) fn of_connecting(error: Error) -> BridgeError {
    match error {
        Error::Server(error) if meaning(error.code) == Meaning::Passes => {
            BridgeError::Unavailable(error.message)
        }
        Error::Server(error) => BridgeError::Unreachable(error.message),
        Error::Io(error) => BridgeError::Unreachable(error.to_string()),
        other => BridgeError::Unreachable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::ServerError;

    use super::*;

    fn server(code: u16) -> Error {
        Error::Server(ServerError {
            code,
            message: "words".into(),
            state: "HY000".into(),
        })
    }

    #[test]
    fn what_passes_by_itself_is_told_from_what_somebody_must_mend() {
        let passes = || BridgeError::Unavailable("words".into());
        let operator = || BridgeError::Unreachable("words".into());
        let caller = || BridgeError::QueryFailed("words".into());
        for (codes, statement, connecting) in [
            (
                &[
                    1040, 1203, 1205, 1213, 1226, 1290, 1836, 1053, 1927, 1020, 1412, 3572,
                ][..],
                passes(),
                passes(),
            ),
            (
                &[1044, 1045, 1049, 1129, 1130, 1698, 1160, 1194][..],
                operator(),
                operator(),
            ),
            (
                &[1064, 1054, 1146, 1142, 1366, 1690, 1792][..],
                caller(),
                operator(),
            ),
            // Stopped by somebody else, which is no promise that the next one goes through.
            (&[1317, 3024, 1969][..], caller(), operator()),
        ] {
            for code in codes {
                assert_eq!(of_statement(server(*code), false), statement, "{code}");
                assert_eq!(of_connecting(server(*code)), connecting, "{code}");
            }
        }
    }

    #[test]
    fn what_was_stopped_at_the_deadline_is_a_timeout() {
        for code in [1317, 3024, 1969] {
            assert_eq!(of_statement(server(code), true), BridgeError::Timeout);
        }
        assert_ne!(of_statement(server(1205), true), BridgeError::Timeout);
    }
}
