//! Organisations, their environments, and who is asking.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, KeyId, OrganisationId, RunnerId};
use crate::storage::{KeyKind, Role};

/// A customer of the platform.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Organisation {
    /// Its id.
    pub id: OrganisationId,
    /// Its short name, part of its keys.
    pub slug: String,
    /// Its name for people.
    pub name: String,
    /// When it was created.
    pub created_at: UtcTime,
}

/// Creates an organisation with an environment `development` and its first admin key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrganisationCreate {
    /// Lower-case letters, digits and dashes.
    #[schema(example = "acme")]
    pub slug: String,
    /// Its name for people; the slug by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A new organisation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrganisationCreated {
    /// The organisation.
    #[serde(flatten)]
    pub organisation: Organisation,
    /// Its first admin key, shown this once.
    pub key: String,
}

/// One environment of an organisation: its own sources, lenses and keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Its short name, unique in the organisation.
    pub slug: String,
    /// When it was created.
    pub created_at: UtcTime,
}

/// Creates an environment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvironmentCreate {
    /// Lower-case letters, digits and dashes.
    #[schema(example = "staging")]
    pub slug: String,
}

/// Changes an environment; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvironmentUpdate {
    /// Its new short name; keys made before keep the old one in their text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
}

/// What the key of this request is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Whoami {
    /// Which kind of key, by the prefix of its text.
    pub kind: KeyKind,
    /// The key.
    pub key_id: KeyId,
    /// What an admin key may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The organisation that the key belongs to.
    pub organisation: Named<OrganisationId>,
    /// The environments that the key may reach.
    pub environments: Vec<Named<EnvironmentId>>,
    /// The runner, for a runner's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<Named<RunnerId>>,
}

/// Something's id beside its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Named<I> {
    /// The id.
    pub id: I,
    /// The name, or slug.
    pub name: String,
}

/// The state of the process.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: String,
    /// The gateway's version.
    #[schema(example = "0.1.0")]
    pub version: String,
}
