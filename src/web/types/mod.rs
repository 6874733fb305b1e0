//! What the REST API takes and answers, as types; the CLI uses the same ones. Data only: rules about it
//! live in `routes` and below.

mod jobs;
mod keys;
mod lenses;
mod organisations;
mod queries;
mod runners;
mod sources;

pub use jobs::*;
pub use keys::*;
pub use lenses::*;
pub use organisations::*;
pub use queries::*;
pub use runners::*;
pub use sources::*;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How many items a page holds when the request does not say.
pub const DEFAULT_PAGE: u32 = 50;
/// How many items a page holds at most.
pub const MAX_PAGE: u32 = 500;

/// One page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items, in a fixed order.
    pub items: Vec<T>,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub next_cursor: Option<String>,
}

/// Every error's body; some have more fields.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// A sentence that a person can act on.
    #[schema(example = "there is no field `nmae`; did you mean `name`?")]
    pub error: String,
    /// The machine code.
    #[schema(example = "invalid_request")]
    pub code: String,
    /// The request's id, also in the header `x-request-id` and in the gateway's log.
    pub request_id: String,
    /// The JSON path of what is wrong, where one field is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub path: Option<String>,
}

/// Which page of a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// How many items, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
    /// The `nextCursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub cursor: Option<String>,
}

/// Which environment of the organisation.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EnvironmentQuery {
    /// The environment's slug or id; may be left out when the organisation has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub environment: Option<String>,
}

/// Which page of a list of one environment's things.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ScopedPageQuery {
    /// The environment's slug or id; may be left out when the organisation has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub environment: Option<String>,
    /// How many items, 500 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
    /// The `nextCursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(nullable = false)]
    pub cursor: Option<String>,
}

/// Reads a field that may be absent (leave as it is), null (clear) or a value (set).
pub(crate) fn present<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}
