//! Identifiers: one newtype per kind of thing, each a UUIDv7, so that ids of different kinds cannot be
//! mixed up and sort by creation time. Parsed once at the edge; below it no id is a string.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A string that should have been an id and is not.
#[derive(Debug, Clone, thiserror::Error)]
#[error("not a valid {kind} id")]
pub struct InvalidId {
    /// What the string should have named, e.g. `runner`.
    pub kind: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "gateway", derive(diesel::expression::AsExpression, diesel::deserialize::FromSqlRow, utoipa::ToSchema))]
        #[cfg_attr(feature = "gateway", diesel(sql_type = diesel::sql_types::Text))]
        pub struct $name(Uuid);

        impl $name {
            /// Makes a new id that sorts after every id made before it.
            #[expect(clippy::new_without_default, reason = "a fresh id is not a default value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// Takes over an id that came from elsewhere.
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// The bare UUID, for binary frames.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // The cause says nothing that the kind does not.
                Uuid::parse_str(text).map(Self).or(Err(InvalidId { kind: $kind }))
            }
        }
    )+};
}

ids! {
    /// A customer of the platform.
    OrganisationId = "organisation",
    /// One environment of an organisation.
    EnvironmentId = "environment",
    /// A runner: an identity with a token, of which several processes may run.
    RunnerId = "runner",
    /// A group of runners.
    GroupId = "group",
    /// A database that can be queried.
    SourceId = "source",
    /// A named, typed view of one table of a source.
    LensId = "lens",
    /// An API key or a runner's token.
    KeyId = "key",
    /// One query on its way through the system.
    JobId = "job",
    /// One attempt at a job: the `id` in the frames of the runner's socket.
    AttemptId = "attempt",
    /// One connection of one runner.
    SessionId = "session",
    /// One start of a gateway process.
    GatewayId = "gateway",
    /// One start of a runner process.
    InstanceId = "instance",
}
