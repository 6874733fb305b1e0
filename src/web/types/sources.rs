//! Sources, their tests and their tables.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Named;
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, RunnerId, SourceId};
use crate::storage::StoredCredentials;

/// What stands for a secret that is stored and never shown; sent back, it leaves the secret as it is.
pub const MASK: &str = "••••";

/// A database that can be queried.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// Its id.
    pub id: SourceId,
    /// Its name, unique in the environment.
    pub name: String,
    /// The environment that it belongs to.
    pub environment: Named<EnvironmentId>,
    /// The package of its bridge.
    #[schema(example = "@semilayer/bridge-postgres")]
    pub bridge: String,
    /// Where its credentials are.
    pub credentials_location: StoredCredentials,
    /// Its configuration by the fields of the bridge's manifest; secrets are masked.
    #[schema(value_type = Object)]
    pub config: Map<String, Value>,
    /// How long a query may take, in milliseconds, where the source has a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// The runners that serve it; none: the gateway connects itself.
    pub runners: Vec<Named<RunnerId>>,
    /// When it was created.
    pub created_at: UtcTime,
    /// When it was last changed.
    pub updated_at: UtcTime,
}

/// Creates a source.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceCreate {
    /// Its name, unique in the environment; part of the variables that hold runner-local credentials.
    #[schema(example = "orders-db")]
    pub name: String,
    /// Its bridge, `postgres` or `@semilayer/bridge-postgres`.
    #[schema(example = "postgres")]
    pub bridge: String,
    /// Where its credentials are; stored here by default.
    #[serde(default = "managed")]
    pub credentials_location: StoredCredentials,
    /// Its configuration by the fields of the bridge's manifest; empty for runner-local credentials.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: Map<String, Value>,
    /// How long a query may take, in milliseconds, ten minutes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
}

fn managed() -> StoredCredentials {
    StoredCredentials::Managed
}

/// Changes a source; what is absent stays. Another `credentialsLocation` or `bridge` wipes the stored configuration.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceUpdate {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Where its credentials are from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_location: Option<StoredCredentials>,
    /// The whole configuration; a masked secret stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub config: Option<Map<String, Value>>,
    /// Null: the default.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "super::present"
    )]
    #[schema(value_type = Option<u32>)]
    pub timeout_ms: Option<Option<u32>>,
}

/// Whether a source can be reached.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceTest {
    /// Whether everybody who was asked reached it.
    pub ok: bool,
    /// Everybody who was asked.
    pub results: Vec<SourceTestResult>,
}

/// Whether one runner, or the gateway itself, reaches a source.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceTestResult {
    /// The runner; absent: the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Named<RunnerId>>,
    /// Whether it was reached.
    pub ok: bool,
    /// How long the database took to answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// The database's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it was not reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// Why something failed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The machine code.
    pub code: String,
    /// A sentence, or the database's own words.
    pub message: String,
}

/// A table or view of a source.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its name, `table` or `schema.table`.
    pub name: String,
    /// `table` or `view`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// What a table or view looks like.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetDetails {
    /// Its name.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<TargetColumn>,
    /// The columns of its primary key, in the order of the key, where the bridge tells it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub primary_key: Vec<String>,
    /// About how many rows it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_count: Option<i64>,
    /// Its indexes, where the bridge tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub indexes: Vec<Value>,
}

/// One column.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetColumn {
    /// Its name.
    pub name: String,
    /// Its type, in the database's own words.
    pub r#type: String,
    /// Whether it can be null.
    #[serde(default)]
    pub nullable: bool,
    /// Whether it is part of the primary key.
    #[serde(default)]
    pub primary_key: bool,
}
