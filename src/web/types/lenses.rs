//! Lenses. What is inside `primaryKey`, `fields`, `grants` and `relations` is read and checked by
//! `query::lens`; here it passes as JSON, so that an error there can name the path in the request.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Named;
use crate::clock::UtcTime;
use crate::ids::{EnvironmentId, LensId, SourceId};

/// A named, typed view of one table of a source.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lens {
    /// Its id.
    pub id: LensId,
    /// Its name, unique in the environment: the last part of `/v1/query/{lens}`.
    pub name: String,
    /// The environment that it belongs to.
    pub environment: Named<EnvironmentId>,
    /// The source's id.
    pub source_id: SourceId,
    /// The source's name.
    pub source: String,
    /// The table, `table` or `schema.table`.
    pub table: String,
    /// The output fields that identify a row.
    pub primary_key: Vec<String>,
    /// The fields by output name: `{type, from}`.
    #[schema(value_type = Object)]
    pub fields: Map<String, Value>,
    /// Who may query it.
    #[schema(value_type = Object)]
    pub grants: Map<String, Value>,
    /// Its relations to other lenses of the environment.
    #[schema(value_type = Object)]
    pub relations: Map<String, Value>,
    /// What happens to a query whose runner is lost: `fail` or `retry`.
    #[schema(example = "fail")]
    pub on_runner_failure: String,
    /// When it was created.
    pub created_at: UtcTime,
    /// When it was last changed.
    pub updated_at: UtcTime,
    /// What it and its table do not agree on, when it was just created or changed and its source could be asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<LensWarning>,
}

/// Something about a lens that is allowed and probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LensWarning {
    /// Where in the definition it is.
    #[schema(example = "primaryKey")]
    pub path: String,
    /// What it is.
    pub message: String,
}

/// Creates a lens.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LensCreate {
    /// Its name, unique in the environment.
    #[schema(example = "orders")]
    pub name: String,
    /// The source, by id or name.
    #[serde(alias = "source")]
    #[schema(example = "shop")]
    pub source_id: String,
    /// The table, `table` or `schema.table`.
    #[schema(example = "public.orders")]
    pub table: String,
    /// The output field that identifies a row, or several.
    #[schema(value_type = Vec<String>)]
    pub primary_key: Value,
    /// The fields by output name: `{type: text|number|decimal|boolean|date|json|enum, from?: column}`.
    #[schema(value_type = Object, example = json!({"id": {"type": "number"}, "placedAt": {"type": "date", "from": "placed_at"}}))]
    pub fields: Value,
    /// Who may query it: `{query?: "public" | "authenticated" | {claims?, filter?}}`. Nobody but `sk_` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub grants: Option<Value>,
    /// Its relations to other lenses of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub relations: Option<Value>,
    /// What happens to a query whose runner is lost before its caller was sent anything: `fail` tells the caller
    /// (502, the default), `retry` executes it once more, on another runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "retry")]
    pub on_runner_failure: Option<Value>,
}

/// Changes a lens; what is absent stays, what is there is replaced whole.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LensUpdate {
    /// Its new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another source, by id or name.
    #[serde(default, alias = "source", skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// Another table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Another primary key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    pub primary_key: Option<Value>,
    /// Other fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub fields: Option<Value>,
    /// Other grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub grants: Option<Value>,
    /// Other relations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub relations: Option<Value>,
    /// What happens to a query whose runner is lost: `fail` or `retry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub on_runner_failure: Option<Value>,
}
