//! From a request and a lens to one operation on the source, in the source's names, with everything that is
//! needed to answer from its rows and to go on behind the last of them.
//!
//! Every page is ordered by the request's `orderBy` and then by the primary key, also when the request has no
//! order, so that a page can always be followed by the next. A page that is as long as its limit gets a cursor;
//! if it happened to be the last one, the next is empty. (Asking for one row more would tell, but rows are
//! passed on as they come, and the extra one could not be taken back.)

mod keyset;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::keyset::Key;
use super::cursor::{CursorKeys, Scope};
use super::filter::Filter;
use super::grammar::{GrammarError, type_name};
use super::lens::{Access, Lens};
use super::operation::{Kind, Operation};
use super::order::{self, Direction, OrderBy};
use super::request::{CountRequest, QueryRequest};
use crate::ids::{EnvironmentId, LensId};

/// Makes plans for one caller on one lens.
#[derive(Debug, Clone, Copy)]
pub struct Planner<'a> {
    /// The environment of the lens.
    pub environment: EnvironmentId,
    /// The lens's id.
    pub lens_id: LensId,
    /// The lens.
    pub lens: &'a Lens,
    /// What the caller may see of it.
    pub access: &'a Access,
    /// What cursors are sealed with.
    pub cursors: &'a CursorKeys,
}

/// One page to be fetched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What the source is asked.
    pub operation: Operation,
    /// Column → output name, in output order.
    pub fields: Vec<(String, String)>,
    /// The ordering columns, whose values in the last row make a cursor. Read also if they are not output.
    pub keys: Vec<String>,
    /// The most rows of this page.
    pub limit: u64,
    scope: Scope,
}

/// A count to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct CountPlan {
    /// What the source is asked.
    pub operation: Operation,
}

impl Planner<'_> {
    /// Plans a page.
    ///
    /// # Errors
    ///
    /// When the cursor is not one of this query.
    pub fn query(&self, request: QueryRequest) -> Result<Plan, GrammarError> {
        let keys = self.complete_order(&request.order);
        let order: Vec<OrderBy> = keys.iter().map(|key| key.by.clone()).collect();
        let order_json = order::to_json(&order);
        let access = self.access.filter();
        let scope = Scope::new(
            self.environment,
            self.lens_id,
            [&request.filter.to_json(), &order_json, &access.to_json()],
        );
        let mut filter = request.filter.and(access.clone());
        if let Some(cursor) = &request.cursor {
            if request.total {
                let message = "`total` is counted with the first page; leave it out with a cursor";
                return Err(GrammarError::invalid("total", message));
            }
            let values = self.cursors.open(&scope, cursor)?;
            check_values(&keys, &values)?;
            filter = filter.and(keyset::after(&keys, &values));
        }

        let keys: Vec<String> = order.into_iter().map(|by| by.field).collect();
        let mut options = where_option(&filter);
        options.insert("orderBy".into(), order_json);
        options.insert("limit".into(), request.limit.into());
        if request.offset > 0 {
            options.insert("offset".into(), request.offset.into());
        }
        options.insert("select".into(), columns(&request.fields, &keys));
        if request.total {
            options.insert("total".into(), true.into());
        }
        Ok(Plan {
            operation: self.operation(Kind::Query, options),
            fields: request.fields,
            keys,
            limit: request.limit,
            scope,
        })
    }

    /// Plans a count.
    pub fn count(&self, request: CountRequest) -> CountPlan {
        let filter = request.filter.and(self.access.filter().clone());
        CountPlan {
            operation: self.operation(Kind::Count, where_option(&filter)),
        }
    }

    fn operation(&self, kind: Kind, options: Map<String, Value>) -> Operation {
        Operation {
            kind,
            target: Some(self.lens.table.clone()),
            options,
        }
    }

    /// The order with the primary key behind it, which makes every row's place its own.
    fn complete_order(&self, order: &[OrderBy]) -> Vec<Key> {
        let primary = self.lens.key_columns();
        let mut keys: Vec<Key> = order
            .iter()
            .map(|by| Key {
                by: by.clone(),
                nullable: !primary.contains(&by.field),
            })
            .collect();
        for field in primary {
            if keys.iter().all(|key| key.by.field != field) {
                keys.push(Key {
                    by: OrderBy {
                        field,
                        dir: Direction::Asc,
                    },
                    nullable: false,
                });
            }
        }
        keys
    }
}

impl Plan {
    /// The cursor behind a page of `rows` rows whose last one has the values `last` in the columns `keys`; none
    /// if the page was not full.
    pub fn next_cursor(
        &self,
        rows: u64,
        last: Option<&[Value]>,
        cursors: &CursorKeys,
    ) -> Option<String> {
        let last = last.filter(|last| last.len() == self.keys.len())?;
        (self.limit > 0 && rows >= self.limit).then(|| cursors.seal(&self.scope, last))
    }
}

fn where_option(filter: &Filter) -> Map<String, Value> {
    let mut options = Map::new();
    if !filter.is_everything() {
        options.insert("where".into(), filter.to_json());
    }
    options
}

/// The columns that are output and those that only make cursors, each once.
fn columns(fields: &[(String, String)], keys: &[String]) -> Value {
    let mut columns: Vec<&str> = Vec::with_capacity(fields.len() + keys.len());
    for column in fields.iter().map(|(column, _)| column).chain(keys) {
        if !columns.contains(&column.as_str()) {
            columns.push(column);
        }
    }
    json!(columns)
}

fn check_values(keys: &[Key], values: &[Value]) -> Result<(), GrammarError> {
    if keys.len() != values.len() {
        return Err(GrammarError::invalid(
            "cursor",
            "cursor belongs to another query",
        ));
    }
    match keys
        .iter()
        .zip(values)
        .find(|(_, value)| value.is_array() || value.is_object())
    {
        None => Ok(()),
        Some((key, value)) => Err(GrammarError::invalid(
            "cursor",
            format!(
                "rows ordered by column `{}`, which holds {}, cannot be paged by cursor; use `offset`",
                key.by.field,
                type_name(value)
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
