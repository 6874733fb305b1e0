//! One operation on a source, in the source's own names: what a job carries and a bridge executes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::lens::FieldType;

/// What a job asks of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Rows of a table.
    Query,
    /// Rows by primary key, page by page.
    Read,
    /// Rows for many keys at once.
    BatchRead,
    /// How many rows there are.
    Count,
    /// Grouped figures.
    Aggregate,
    /// The tables there are.
    ListTargets,
    /// The columns of one table.
    IntrospectTarget,
    /// Whether the source can be reached.
    Test,
    /// Vector search; no bridge has it.
    Search,
    /// Vector similarity; no bridge has it.
    Similar,
}

impl Kind {
    /// Every kind, in the order of the protocol's table.
    pub const ALL: [Self; 10] = [
        Self::Query,
        Self::Read,
        Self::BatchRead,
        Self::Count,
        Self::Aggregate,
        Self::ListTargets,
        Self::IntrospectTarget,
        Self::Test,
        Self::Search,
        Self::Similar,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Read => "read",
            Self::BatchRead => "batchRead",
            Self::Count => "count",
            Self::Aggregate => "aggregate",
            Self::ListTargets => "listTargets",
            Self::IntrospectTarget => "introspectTarget",
            Self::Test => "test",
            Self::Search => "search",
            Self::Similar => "similar",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One operation, its options still in the grammar of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// What to do.
    pub kind: Kind,
    /// The table, `table` or `schema.table`, for kinds that have one.
    pub target: Option<String>,
    /// The options of that kind, e.g. `where`, `orderBy`, `limit`.
    pub options: Map<String, Value>,
}

/// How the rows of a query are cut into pages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Paging {
    /// The columns that the rows are ordered by, as `orderBy` has them. Where the last row stands in that order
    /// is wanted back. Empty: no page follows.
    pub keys: Vec<String>,
    /// How many of the first `keys` the caller asked for. The others only give every row a place of its own.
    pub asked: usize,
    /// Where the page before ended, as whoever executed it said.
    pub after: Option<Vec<Value>>,
}

/// What a lens says that columns hold, where that changes how values are shown or compared.
pub type ColumnTypes = BTreeMap<String, FieldType>;
