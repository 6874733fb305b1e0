//! What can go wrong in the store, told apart by what a caller can do about it. Which HTTP status that
//! makes is decided elsewhere.

use std::error::Error;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

/// The cause of a [`StoreError`], for the log.
pub type Cause = Box<dyn Error + Send + Sync + 'static>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such thing, or it belongs to another tenant.
    #[error("not found")]
    NotFound,
    /// It contradicts something that is there; the text says what.
    #[error("{0}")]
    Conflict(&'static str),
    /// The store cannot be reached, is too busy, or is about to stop; nothing was written.
    #[error("the store is unavailable")]
    Unavailable(#[source] Cause),
    /// The connection was lost while it committed: everything or nothing was written.
    #[error("the store's connection was lost during a commit")]
    Uncertain(#[source] Cause),
    /// A row holds what this program never writes.
    #[error("the store holds a value that cannot be read")]
    Corrupt(#[source] Cause),
    /// The store refused a statement; nothing was written.
    #[error("the store refused a statement")]
    Internal(#[source] Cause),
}

impl StoreError {
    /// Whether trying again later may help, as opposed to trying something else.
    pub const fn is_connection(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Uncertain(_))
    }

    /// Whether the server gave a statement up because of what others had locked. It is otherwise well, and fewer
    /// rows at a time may get through.
    pub fn is_contention(&self) -> bool {
        let Self::Unavailable(cause) = self else {
            return false;
        };
        match cause.downcast_ref() {
            Some(DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)) => true,
            Some(DieselError::DatabaseError(DatabaseErrorKind::Unknown, said)) => CONTENTION
                .iter()
                .any(|words| said.message().starts_with(words)),
            _ => false,
        }
    }

    /// Keeps the words of a connection's error together with their causes.
    pub(super) fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable(cause.into())
    }
}

/// How PostgreSQL begins to say that it is not the statement's fault. The code that it sends along is what
/// should be looked at, and diesel drops it. A server that says it in another language is taken at its word
/// only when the connection ends; the rest is an internal error there.
const PASSING: [&str; 9] = [
    // Limits of time, and whoever cancels a statement by hand.
    "canceling statement due to",
    "could not obtain lock",
    "deadlock detected",
    // Limits of space.
    "could not extend file",
    "could not write to file",
    "out of memory",
    "out of shared memory",
    // The server or its administrator ends the connection.
    "terminating connection",
    "the database system is",
];

/// Those of them that are about locks.
const CONTENTION: [&str; 3] = [
    "canceling statement due to lock timeout",
    "could not obtain lock",
    "deadlock detected",
];

fn is_passing(message: &str) -> bool {
    PASSING.iter().any(|words| message.starts_with(words))
}

impl From<DieselError> for StoreError {
    fn from(error: DieselError) -> Self {
        use DatabaseErrorKind::{
            ClosedConnection, ForeignKeyViolation, ReadOnlyTransaction, SerializationFailure,
            UnableToSendCommand, UniqueViolation, Unknown,
        };
        match error {
            DieselError::NotFound => Self::NotFound,
            DieselError::DatabaseError(UniqueViolation, _) => Self::Conflict("it already exists"),
            DieselError::DatabaseError(ForeignKeyViolation, _) => Self::Conflict(
                "something that it refers to does not exist, or something still refers to it",
            ),
            DieselError::DatabaseError(
                UnableToSendCommand | ClosedConnection | SerializationFailure | ReadOnlyTransaction,
                _,
            )
            | DieselError::BrokenTransactionManager => Self::Unavailable(error.into()),
            DieselError::DatabaseError(Unknown, ref said) if is_passing(said.message()) => {
                Self::Unavailable(error.into())
            }
            DieselError::DeserializationError(_) => Self::Corrupt(error.into()),
            other => Self::Internal(other.into()),
        }
    }
}

/// Gives a violated constraint the words of the statement that violated it.
pub(super) trait Violation<T> {
    /// What a second one of the same name or key means.
    fn if_taken(self, what: &'static str) -> Result<T, StoreError>;

    /// What a missing or a left-over reference means.
    fn if_bound(self, what: &'static str) -> Result<T, StoreError>;
}

impl<T> Violation<T> for Result<T, DieselError> {
    fn if_taken(self, what: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| match error {
            DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _) => {
                StoreError::Conflict(what)
            }
            other => other.into(),
        })
    }

    fn if_bound(self, what: &'static str) -> Result<T, StoreError> {
        self.map_err(|error| match error {
            DieselError::DatabaseError(
                DatabaseErrorKind::ForeignKeyViolation | DatabaseErrorKind::RestrictViolation,
                _,
            ) => StoreError::Conflict(what),
            other => other.into(),
        })
    }
}
