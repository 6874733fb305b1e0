//! What PostgreSQL's error codes mean to whoever asked: a table from SQLSTATE.
//!
//! The codes are those of the manual's appendix A. What is not in the table is for the caller to correct.

use tokio_postgres::error::DbError;

use crate::bridge::BridgeError;

/// Whom an error is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It passes by itself: the same question may be answered in a moment.
    Passes,
    /// Only whoever runs the database or the source's credentials can mend it.
    Operator,
    /// The caller can correct the question.
    Caller,
}

/// Whole codes, or classes by their first two letters; the first line that fits counts.
const TABLE: &[(&str, Meaning)] = &[
    // A query that needs more temporary files than its role may have needs as many the next time.
    ("53400", Meaning::Caller),
    // Too many connections, out of memory, disk full.
    ("53", Meaning::Passes),
    // Serialization failure, which is what a conflict with recovery on a standby is too; deadlock.
    ("40001", Meaning::Passes),
    ("40P01", Meaning::Passes),
    ("40003", Meaning::Passes),
    // A lock that was not to be had in time; an object that is in use.
    ("55P03", Meaning::Passes),
    ("55006", Meaning::Passes),
    // The server stops, has crashed, or is starting; a session was ended for being idle.
    ("57P01", Meaning::Passes),
    ("57P02", Meaning::Passes),
    ("57P03", Meaning::Passes),
    ("57P05", Meaning::Passes),
    ("25P03", Meaning::Passes),
    // The database was dropped.
    ("57P04", Meaning::Operator),
    // Connection exceptions, also those of a pooler in between or of a server behind a foreign table.
    ("08", Meaning::Operator),
    ("HV00N", Meaning::Operator),
    // The role may not log in; there is no such database.
    ("28", Meaning::Operator),
    ("3D", Meaning::Operator),
    // Broken configuration, files that cannot be read, broken data.
    ("F0", Meaning::Operator),
    ("58", Meaning::Operator),
    ("XX", Meaning::Operator),
];

fn meaning(code: &str) -> Meaning {
    let line = TABLE.iter().find(|(known, _)| code.starts_with(known));
    line.map_or(Meaning::Caller, |(_, meaning)| *meaning)
}

/// What the database answered to a statement.
pub(super) fn of_statement(error: &DbError) -> BridgeError {
    let message = message(error);
    match meaning(error.code().code()) {
        Meaning::Passes => BridgeError::Unavailable(message),
        Meaning::Operator => BridgeError::Unreachable(message),
        Meaning::Caller => BridgeError::QueryFailed(message),
    }
}

/// Why there is no connection: nothing that a caller could correct.
pub(super) fn of_connecting(error: &tokio_postgres::Error) -> BridgeError {
    let Some(database) = error.as_db_error() else {
        let cause = std::error::Error::source(error);
        return BridgeError::Unreachable(
            cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
        );
    };
    let message = message(database);
    match meaning(database.code().code()) {
        Meaning::Passes => BridgeError::Unavailable(message),
        Meaning::Operator | Meaning::Caller => BridgeError::Unreachable(message),
    }
}

/// The database's own words, with what it says beside.
fn message(error: &DbError) -> String {
    let mut message = error.message().to_owned();
    for more in [error.detail(), error.hint()].into_iter().flatten() {
        message.push_str(&format!(" ({more})"));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_somebody_must_mend() {
        for (codes, expected) in [
            (
                "40001 40P01 53000 53100 53200 53300 55P03 55006 57P01 57P02 57P03 57P05 25P03",
                Meaning::Passes,
            ),
            (
                "08000 08006 08P01 28000 28P01 3D000 57P04 58030 F0000 HV00N XX000 XX001",
                Meaning::Operator,
            ),
            // A statement that somebody else cancelled (57014) is no promise that the next one goes through.
            (
                "22P02 22003 42601 42P01 42703 42501 25006 0A000 57014 53400 23505 40002 P0001 54001 21000",
                Meaning::Caller,
            ),
        ] {
            for code in codes.split(' ') {
                assert_eq!(meaning(code), expected, "{code}");
            }
        }
    }

    #[test]
    fn no_line_of_the_table_is_hidden_by_an_earlier_one() {
        for (i, (code, _)) in TABLE.iter().enumerate() {
            let hidden = TABLE[..i].iter().any(|(known, _)| code.starts_with(known));
            assert!(!hidden && matches!(code.len(), 2 | 5), "{code}");
        }
    }
}
