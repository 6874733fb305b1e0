//! Queries on a lens, as the API describes them. The bodies are read by `query::request`, which names the path
//! of what is wrong; these types say the same to people and to generators.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::ids::{JobId, RunnerId};

/// Which rows of a lens, by its output names.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryBody {
    /// Which rows: `{field: value}`, `{field: {$gt: value}}`, `{$or: […]}` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!({"total": {"$gte": 100}}))]
    pub r#where: Option<Value>,
    /// In which order: `{field, dir?}`, an array of those, or `{field: "asc" | "desc"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>, example = json!({"placedAt": "desc"}))]
    pub order_by: Option<Value>,
    /// How many rows at most, 100 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// How many rows to leave out at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The `nextCursor` of the page before, with the same `where` and `orderBy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Which fields, all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Vec<String>>,
    /// Whether to count all rows that match, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<bool>,
}

/// One page of rows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryAnswer {
    /// The rows, by the lens's output names.
    #[schema(value_type = Vec<Object>)]
    pub rows: Vec<Map<String, Value>>,
    /// What there is to say about them.
    pub meta: QueryMeta,
}

/// What there is to say about a page of rows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryMeta {
    /// The lens.
    pub lens: String,
    /// How many rows there are on this page.
    pub count: u64,
    /// How long the database's side took, in milliseconds.
    pub duration_ms: u64,
    /// How many rows match, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Why no page can follow in this order, if none can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_pageable: Option<String>,
    /// What there is to know of the lens or its table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The job that this was.
    pub job_id: JobId,
    /// The runner that executed it; absent: the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_id: Option<RunnerId>,
}

/// Which rows of a lens to count.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountBody {
    /// Which rows, as in a query; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub r#where: Option<Value>,
}

/// How many rows there are.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountAnswer {
    /// The exact number.
    pub count: u64,
    /// What there is to say about it.
    pub meta: QueryMeta,
}

/// A query that was taken in and that nobody waits for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedJob {
    /// The job, to ask for under `/v1/jobs/{jobId}` and `/v1/jobs/{jobId}/result`.
    pub job_id: JobId,
}
