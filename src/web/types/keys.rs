//! API keys.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Named;
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, KeyId};
use crate::storage::{KeyKind, Role};

/// A key, without its text.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// What it is for, by the prefix of its text.
    pub kind: KeyKind,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How its text begins.
    #[schema(example = "sk_development_3fXa")]
    pub prefix: String,
    /// What an admin key may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The environment that it opens; absent for an admin key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Named<EnvironmentId>>,
    /// When it was created.
    pub created_at: UtcTime,
    /// When it stops to work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UtcTime>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<UtcTime>,
}

/// Creates a key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyCreate {
    /// What it is for: `ak`, `sk` or `pk`; a runner's token comes from its runner.
    pub kind: KeyKind,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What an admin key may do; `admin` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// When it stops to work; never by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UtcTime>,
}

/// A new key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyCreated {
    /// What is known of it from now on.
    #[serde(flatten)]
    pub details: Key,
    /// The key itself, shown this once.
    pub key: String,
}
