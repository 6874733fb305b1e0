//! What a bridge knows and tells of tables: the cached shapes that statements are built from, and the rows
//! of `listTargets`, `introspectTarget` and `test`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::encode::RowWriter;
use super::request::{Request, Table, Target};
use super::sql::{Class, Order, Shape};
use super::{BridgeError, Execution, Outcome};

/// How long a table's columns are believed to be as they were.
const SHAPE_TTL: Duration = Duration::from_secs(30);
/// So many tables are remembered.
const MAX_SHAPES: usize = 1000;
/// Up to so many rows are counted; beyond, the database's estimate does.
pub(super) const COUNT_UP_TO: i64 = 10_000;

/// The shapes of the tables of one database.
#[derive(Default)]
pub(super) struct Shapes(Mutex<HashMap<Target, (Arc<Shape>, Instant)>>);

impl Shapes {
    /// The table's shape, if it was seen lately.
    pub(super) fn get(&self, target: &Target) -> Option<Arc<Shape>> {
        let shapes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shapes
            .get(target)
            .filter(|(_, seen)| seen.elapsed() < SHAPE_TTL)
            .map(|(shape, _)| Arc::clone(shape))
    }

    /// Remembers a shape.
    pub(super) fn put(&self, target: &Target, shape: Shape) -> Arc<Shape> {
        let shape = Arc::new(shape);
        let mut shapes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shapes.len() >= MAX_SHAPES {
            shapes.clear();
        }
        shapes.insert(target.clone(), (Arc::clone(&shape), Instant::now()));
        shape
    }

    /// Whether something failed that may be because a table is not as it was; it is looked at anew then.
    pub(super) fn are_stale<T>(&self, target: &Target, result: &Result<T, BridgeError>) -> bool {
        let stale = matches!(
            result,
            Err(BridgeError::QueryFailed(_) | BridgeError::Invalid { .. })
        );
        if stale {
            self.forget(target);
        }
        stale
    }

    /// Looks at a table anew if one of its columns that are asked for is not known, as it may have come since, or if
    /// one is compared by numbers that may have changed.
    pub(super) fn expect(&self, request: &Request, execution: &Execution) {
        let (target, filter, columns) = match request {
            Request::Count { target, filter } => (target, filter, filter.fields()),
            Request::Query(query) => (&query.target, &query.filter, query.columns(execution)),
            _ => return,
        };
        let Some(shape) = self.get(target) else {
            return;
        };
        // The numbers of labels and the character set of a text are others after a migration, and nothing that comes
        // back tells.
        let is_mute = |name: &str| {
            shape.column(name).is_some_and(|column| {
                let foreign = column
                    .charset
                    .as_ref()
                    .is_some_and(|(set, _)| set != "utf8mb4");
                column.order == Order::Ordinal || (foreign && column.class == Class::Text)
            })
        };
        let ordered = match request {
            Request::Query(query) => query.order.as_slice(),
            _ => &[],
        };
        let mut compared = filter.fields();
        compared.extend(ordered.iter().map(|order| order.column.as_str()));
        let is_unknown = |name: &&str| shape.column(name).is_none();
        if columns.iter().any(is_unknown) || compared.into_iter().any(is_mute) {
            self.forget(target);
        }
    }

    fn forget(&self, target: &Target) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(target);
    }
}

/// A table or view as `listTargets` tells of it.
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) is_view: bool,
}

/// A column as `introspectTarget` tells of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ColumnInfo {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) type_name: String,
    pub(super) nullable: bool,
    pub(super) primary_key: bool,
}

/// An index as `introspectTarget` tells of it.
#[derive(Debug, Serialize)]
pub(super) struct IndexInfo {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    pub(super) unique: bool,
}

/// Adds one row of an index listing, which has a row per column, in order.
pub(super) fn add_index_column(
    indexes: &mut Vec<IndexInfo>,
    name: String,
    column: String,
    unique: bool,
) {
    match indexes.last_mut() {
        Some(index) if index.name == name => index.columns.push(column),
        _ => indexes.push(IndexInfo {
            name,
            columns: vec![column],
            unique,
        }),
    }
}

/// Writes the rows of `listTargets`.
pub(super) async fn write_targets(
    rows: &mut RowWriter<'_>,
    targets: Vec<Listed>,
) -> Result<Outcome, BridgeError> {
    let targets = targets.into_iter().map(|target| {
        let kind = if target.is_view { "view" } else { "table" };
        vec![Value::from(target.name), Value::from(kind)]
    });
    rows.objects(&["name", "kind"], targets.collect()).await?;
    rows.finish().await
}

/// Writes the row of `introspectTarget`.
pub(super) async fn write_target(
    rows: &mut RowWriter<'_>,
    table: &Table,
    columns: &[ColumnInfo],
    primary_key: &[String],
    row_count: Option<u64>,
    indexes: &[IndexInfo],
) -> Result<Outcome, BridgeError> {
    let row = vec![
        Value::from(table.to_string()),
        serde_json::to_value(columns).unwrap_or_default(),
        Value::from(primary_key),
        Value::from(row_count),
        serde_json::to_value(indexes).unwrap_or_default(),
    ];
    rows.objects(
        &["name", "columns", "primaryKey", "rowCount", "indexes"],
        vec![row],
    )
    .await?;
    rows.finish().await
}

/// Writes the row of `test`.
pub(super) async fn write_test(
    rows: &mut RowWriter<'_>,
    version: String,
    latency: Duration,
) -> Result<Outcome, BridgeError> {
    let latency = (latency.as_secs_f64() * 100_000.0).round() / 100.0;
    rows.objects(
        &["version", "latencyMs"],
        vec![vec![Value::from(version), Value::from(latency)]],
    )
    .await?;
    rows.finish().await
}
