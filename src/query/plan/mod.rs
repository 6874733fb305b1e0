//! From a request and a lens to one operation on the source, in the source's names, with everything that is
//! needed to answer from its rows and to go on behind the last of them.
//!
//! Every page is ordered by the request's `orderBy` and then by the primary key, also when the request has no
//! order, so that a page can always be followed by the next. A page that is as long as its limit gets a cursor;
//! if it happened to be the last one, the next is empty. (Asking for one row more would tell, but rows are
//! passed on as they come, and the extra one could not be taken back.)
//!
//! Where a page ended is said, and understood, by whoever executes: only a bridge knows by what its database has
//! ordered. What it said is sealed into the cursor and handed back as it was ([`Paging::after`]).

mod keyset;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use self::keyset::{NotOnThisRunner, continued_by_filter, not_continued_by_filter};
use super::cursor::{CursorKeys, Scope};
use super::filter::Filter;
use super::grammar::GrammarError;
use super::lens::{Access, FieldType, Lens};
use super::operation::{ColumnTypes, Kind, Operation, Paging};
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
    /// The ordering columns, and where the page before ended.
    pub paging: Paging,
    /// What the lens says of the columns that are read or compared.
    pub types: ColumnTypes,
    /// The most rows of this page.
    pub limit: u64,
    scope: Scope,
}

/// A count to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct CountPlan {
    /// What the source is asked.
    pub operation: Operation,
    /// What the lens says of the columns that are compared.
    pub types: ColumnTypes,
}

impl Planner<'_> {
    /// Plans a page.
    ///
    /// # Errors
    ///
    /// When the cursor is not one of this query.
    pub fn query(&self, request: QueryRequest) -> Result<Plan, GrammarError> {
        let order = self.complete_order(&request.order);
        let order_json = order::to_json(&order);
        let access = self.access.filter();
        let scope = Scope::new(
            self.environment,
            self.lens_id,
            [&request.filter.to_json(), &order_json, &access.to_json()],
        );
        let keys: Vec<String> = order.into_iter().map(|by| by.field).collect();
        let after = match &request.cursor {
            None => None,
            Some(_) if request.total => {
                let message = "`total` is counted with the first page; leave it out with a cursor";
                return Err(GrammarError::invalid("total", message));
            }
            Some(cursor) => Some(self.cursors.open(&scope, cursor)?),
        };
        let filter = request.filter.and(access.clone());
        let types = self.types(
            request.fields.iter().map(|(column, _)| column.as_str()),
            &filter,
            &keys,
        );
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
            paging: Paging {
                keys,
                asked: request.order.len(),
                after,
            },
            types,
            limit: request.limit,
            scope,
        })
    }

    /// Plans a count.
    pub fn count(&self, request: CountRequest) -> CountPlan {
        let filter = request.filter.and(self.access.filter().clone());
        CountPlan {
            types: self.types(std::iter::empty(), &filter, &[]),
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
    fn complete_order(&self, order: &[OrderBy]) -> Vec<OrderBy> {
        let mut order = order.to_vec();
        for field in self.lens.key_columns() {
            if order.iter().all(|by| by.field != field) {
                order.push(OrderBy {
                    field,
                    dir: Direction::Asc,
                });
            }
        }
        order
    }

    /// The types of the columns in question that say more than the column itself does.
    fn types<'c>(
        &'c self,
        fields: impl Iterator<Item = &'c str>,
        filter: &'c Filter,
        keys: &'c [String],
    ) -> ColumnTypes {
        let compared = filter
            .fields()
            .into_iter()
            .chain(keys.iter().map(String::as_str));
        let mut types = ColumnTypes::new();
        for column in fields.chain(compared) {
            let declared = self.lens.fields.iter().find(|field| field.column == column);
            let telling = declared.map(|field| field.kind).filter(|kind| {
                matches!(
                    kind,
                    FieldType::Number
                        | FieldType::Boolean
                        | FieldType::Decimal
                        | FieldType::Date
                        | FieldType::Enum
                        | FieldType::Json
                )
            });
            if let Some(kind) = telling {
                types.insert(column.to_owned(), kind);
            }
        }
        types
    }
}

impl Plan {
    /// The cursor behind a page of `rows` rows that ended at `last`; none if the page was not full.
    pub fn next_cursor(
        &self,
        rows: u64,
        last: Option<&[Value]>,
        cursors: &CursorKeys,
    ) -> Option<String> {
        let last = last.filter(|last| !last.is_empty())?;
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

#[cfg(test)]
mod tests;
