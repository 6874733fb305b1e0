//! How the values of other modules are stored: ids and states as text, times in UTC to the microsecond.
//!
//! It owns no state. What cannot be read back is an error of the row, never a panic.

use std::io::Write;

use chrono::NaiveDateTime;
use diesel::backend::Backend;
use diesel::deserialize::{self, FromSql};
use diesel::pg::Pg;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{Text, Timestamp};
use diesel::sqlite::Sqlite;
use serde::{Serialize, Serializer};

use crate::clock::UtcTime;
use crate::domain::job::JobStatus;
use crate::ids::{
    AttemptId, EnvironmentId, GatewayId, GroupId, InstanceId, JobId, KeyId, LensId, OrganisationId,
    RunnerId, SessionId, SourceId,
};

/// Stores a type as text: `$write` turns a reference into something that displays, `$read` parses.
macro_rules! stored_as_text {
    ($type:ty, $write:expr, $read:expr) => {
        impl ToSql<Text, Pg> for $type {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
                write!(out, "{}", $write(self))?;
                Ok(IsNull::No)
            }
        }

        impl ToSql<Text, Sqlite> for $type {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
                out.set_value($write(self).to_string());
                Ok(IsNull::No)
            }
        }

        impl<DB: Backend> FromSql<Text, DB> for $type
        where
            String: FromSql<Text, DB>,
        {
            fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
                let text = String::from_sql(bytes)?;
                $read(text.as_str())
            }
        }
    };
}

macro_rules! stored_ids {
    ($($id:ty),+ $(,)?) => {$(
        stored_as_text!($id, |id: &$id| *id, |text: &str| Ok(text.parse()?));
    )+};
}

stored_ids!(
    AttemptId,
    EnvironmentId,
    GatewayId,
    GroupId,
    InstanceId,
    JobId,
    KeyId,
    LensId,
    OrganisationId,
    RunnerId,
    SessionId,
    SourceId,
);

stored_as_text!(
    JobStatus,
    |status: &JobStatus| status.as_str(),
    |text: &str| JobStatus::parse(text)
        .ok_or_else(|| format!("`{text}` is not a state of a job").into())
);

/// Declares an enum that is stored, shown and parsed by its names.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
        #[derive(diesel::expression::AsExpression, diesel::deserialize::FromSqlRow, utoipa::ToSchema)]
        #[diesel(sql_type = Text)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant),+
        }

        impl $type {
            /// The name by which it is stored and shown.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// The one of that name.
            pub fn parse(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        stored_as_text!($type, |value: &$type| value.as_str(), |text: &str| $type::parse(text)
            .ok_or_else(|| format!(concat!("`{}` is not a ", stringify!($type)), text).into()));
    };
}

named! {
    /// Who operates a runner.
    Deployment {
        /// The customer, in their own network.
        Customer = "customer",
        /// The operator of the gateway.
        Saas = "saas",
    }
}

named! {
    /// What a key is for; the name is the prefix of its text.
    KeyKind {
        /// An organisation's admin API.
        Admin = "ak",
        /// An environment's server-side callers.
        Secret = "sk",
        /// An environment's browser callers.
        Publishable = "pk",
        /// One runner.
        Runner = "rk",
    }
}

named! {
    /// What the holder of an admin key may do.
    Role {
        /// Everything, other admin keys included.
        Owner = "owner",
        /// Everything but admin keys.
        Admin = "admin",
        /// Look.
        Viewer = "viewer",
    }
}

named! {
    /// Where a source's credentials are.
    StoredCredentials {
        /// In the store, sealed.
        Managed = "managed",
        /// In the runner's environment.
        RunnerLocal = "runner-local",
    }
}

named! {
    /// How a group hands jobs to its members.
    GroupDispatch {
        /// Any healthy member.
        All = "all",
        /// Its leader alone.
        Leader = "leader",
    }
}

named! {
    /// Whether a session can be given jobs.
    SessionState {
        /// It can.
        Ready = "ready",
        /// It has not been heard of for too long.
        Unhealthy = "unhealthy",
        /// It ends what it has and takes no more.
        Draining = "draining",
    }
}

named! {
    /// What has been deleted.
    TombstoneKind {
        /// An organisation, and its keys with it.
        Organisation = "organisation",
        /// An environment, and its keys with it.
        Environment = "environment",
        /// A group of runners.
        Group = "group",
        /// A runner, and its keys, assignments and sessions with it.
        Runner = "runner",
        /// A source, and its assignments with it.
        Source = "source",
        /// A lens.
        Lens = "lens",
        /// An assignment; its id is `<runner>/<source>`.
        Assignment = "assignment",
        /// A session.
        Session = "session",
    }
}

/// Always six digits: SQLite keeps times as text, which must compare as the times do.
const STAMP: &str = "%Y-%m-%d %H:%M:%S%.6f";

/// The time as both stores read it from text.
pub(super) fn stamp(time: UtcTime) -> String {
    time.get().naive_utc().format(STAMP).to_string()
}

/// For times in a batch that travels as JSON.
pub(super) fn serialize_stamp<S: Serializer>(
    time: &UtcTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    stamp(*time).serialize(serializer)
}

impl ToSql<Timestamp, Pg> for UtcTime {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        ToSql::<Timestamp, Pg>::to_sql(&self.get().naive_utc(), &mut out.reborrow())
    }
}

impl ToSql<Timestamp, Sqlite> for UtcTime {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(stamp(*self));
        Ok(IsNull::No)
    }
}

impl<DB: Backend> FromSql<Timestamp, DB> for UtcTime
where
    NaiveDateTime: FromSql<Timestamp, DB>,
{
    fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
        Ok(UtcTime::new(NaiveDateTime::from_sql(bytes)?.and_utc()))
    }
}
