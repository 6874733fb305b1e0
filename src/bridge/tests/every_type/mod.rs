//! Every column type of each database: pages have every row exactly once and in the database's own order, and every
//! value, as a row shows it, is found by a filter. PostgreSQL's types come from its own catalogue; the others have no
//! list of theirs, so theirs is here.
//!
//! `docs/types.md` is written from what is seen here: with `SEMILAYER_WRITE_DOCS=1` in the environment.

mod document;
mod mysql;
mod postgres;
mod sqlite;

use serde_json::{Value, json};

use super::support::{TestDb, execution, field, parse, query, run};
use crate::bridge::{BridgeError, BridgeOptions, Bridges};
use crate::query::operation::Paging;

/// What was seen of a type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    type_name: String,
    /// A value as rows show it.
    shown: String,
    /// Whether rows can be ordered by it, and pages go on.
    order: &'static str,
}

/// One table with the columns `id`, `w` (a few numbers) and `v`, the type in question.
struct Table<'a> {
    db: &'a TestDb,
    bridges: &'a Bridges,
    name: String,
    type_name: String,
}

/// An order, and the ids of all rows in it.
type Expected<'a> = (Vec<(&'a str, &'a str)>, Vec<i64>);

/// Rows in the order of these terms.
fn terms(order: &[(&str, &str)]) -> Value {
    let terms = order
        .iter()
        .map(|(field, dir)| json!({"field": field, "dir": dir}));
    terms.collect()
}

impl Table<'_> {
    /// The ids of all rows, fetched in pages of `size`.
    async fn pages(&self, order: &[(&str, &str)], size: u64) -> Result<Vec<i64>, BridgeError> {
        let mut complete = order.to_vec();
        complete.push(("id", "asc"));
        let options = json!({"orderBy": terms(&complete), "limit": size, "select": ["id", "v"]});
        let operation = query(&self.name, options);
        let mut execution = execution();
        execution.paging = Paging {
            keys: complete
                .iter()
                .map(|(field, _)| (*field).to_owned())
                .collect(),
            asked: order.len(),
            after: None,
        };
        let mut ids = Vec::new();
        // Twice as many pages as there can be: a page that comes again must not go on for ever.
        for _ in 0..200 {
            let (batches, outcome) =
                run(self.bridges, &self.db.source, &operation, &execution).await?;
            let page = field(&parse(&batches), "id");
            ids.extend(page.iter().filter_map(Value::as_i64));
            if let Some(reason) = outcome.not_pageable {
                return Err(BridgeError::QueryFailed(reason));
            }
            if (page.len() as u64) < size {
                return Ok(ids);
            }
            execution.paging.after = outcome.last;
        }
        panic!("{}: the pages never end: {ids:?}", self.type_name);
    }

    async fn rows(&self, options: Value) -> Result<Vec<Value>, String> {
        let operation = query(&self.name, options.clone());
        let answer = run(self.bridges, &self.db.source, &operation, &execution()).await;
        let (batches, _) =
            answer.map_err(|error| format!("{} {options}: {error}", self.type_name))?;
        Ok(parse(&batches))
    }

    /// Checks the pages against the order that the database itself gives.
    async fn check_pages(&self, expected: &[Expected<'_>], faults: &mut Vec<String>) {
        for (order, ids) in expected {
            for size in [1, 2, 3, 7] {
                match self.pages(order, size).await {
                    Ok(pages) if pages == *ids => {}
                    Ok(pages) => faults.push(format!(
                        "{} {order:?} in pages of {size}: {pages:?}, not {ids:?}",
                        self.type_name
                    )),
                    Err(error) => faults.push(format!("{} {order:?}: {error}", self.type_name)),
                }
            }
        }
    }

    /// Checks that every value finds its row by what the row shows; answers one that is shown.
    async fn check_values(&self, faults: &mut Vec<String>) -> Option<String> {
        let all = json!({"select": ["id", "v"], "orderBy": {"id": "asc"}});
        let rows = match self.rows(all).await {
            Ok(rows) => rows,
            Err(fault) => {
                faults.push(fault);
                return None;
            }
        };
        let mut shown = None;
        for row in &rows {
            let value = &row["v"];
            // No request may hold a NUL; the null of JSON is shown like SQL's, which is what a filter means by it.
            // An array of documents that are arrays is shown like an array of arrays.
            if self.type_name.starts_with("json") && self.type_name.ends_with("[]") {
                shown = Some(value.to_string())
                    .filter(|_| !value.is_null())
                    .or(shown);
                continue;
            }
            let is_json = self.type_name.to_ascii_lowercase().contains("json");
            // MariaDB compares numbers in JSON as they are written: 1e2 is not 1e+2.
            let is_written_twice = is_json && value.is_number() && value.to_string().contains('e');
            if value.to_string().contains("\\u0000")
                || (is_json && value.is_null())
                || is_written_twice
            {
                continue;
            }
            let filter = match value {
                Value::Object(_) | Value::Array(_) => json!({"v": {"$eq": value}}),
                value => json!({"v": value}),
            };
            match self.rows(json!({"where": filter, "select": ["id"]})).await {
                Ok(found) if field(&found, "id").contains(&row["id"]) => {}
                Ok(_) => faults.push(format!("{}: {value} does not find its row", self.type_name)),
                Err(fault) => faults.push(fault),
            }
            if !value.is_null() && shown.is_none() {
                shown = Some(value.to_string());
            }
        }
        shown
    }
}

fn bridges() -> Bridges {
    Bridges::new(BridgeOptions::default())
}
