//! The bodies of `POST /v1/query/{lens}` and `…/count`, read against the lens: what comes out names columns,
//! and every mistake is reported at its JSON path. A member that is null counts as absent.

use serde_json::{Map, Value};

use super::filter::{self, Fields, Filter, Limits};
use super::grammar::{self, GrammarError};
use super::kind;
use super::lens::{FieldType, Lens};
use super::order::{self, OrderBy};

/// How many rows a request gets that does not say.
pub const DEFAULT_LIMIT: u64 = 100;
/// The most rows that one request may ask for; rows stream, so this bounds time, not memory.
pub const MAX_LIMIT: u64 = 1_000_000;
/// The greatest offset: what databases take.
pub const MAX_OFFSET: u64 = i64::MAX as u64;

const QUERY_MEMBERS: &[&str] = &[
    "where", "orderBy", "limit", "offset", "cursor", "select", "include", "total",
];

/// A request for rows, in the source's names.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryRequest {
    /// Which rows.
    pub filter: Filter,
    /// In which order, as far as the caller cares.
    pub order: Vec<OrderBy>,
    /// How many; 0 gives none.
    pub limit: u64,
    /// How many to skip.
    pub offset: u64,
    /// Where an earlier page ended, sealed.
    pub cursor: Option<String>,
    /// Column → output name, in output order.
    pub fields: Vec<(String, String)>,
    /// Whether to count all matches too.
    pub total: bool,
}

/// A request for a number of rows, in the source's names.
#[derive(Debug, Clone, PartialEq)]
pub struct CountRequest {
    /// Which rows.
    pub filter: Filter,
}

impl QueryRequest {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// When a member is unknown or of the wrong form, or names a field that the lens does not have.
    pub fn parse(body: &Value, lens: &Lens) -> Result<Self, GrammarError> {
        let members = members(body, QUERY_MEMBERS)?;
        let member = |name: &str| members.get(name).filter(|value| !value.is_null());
        if member("include").is_some() {
            let message =
                "relations are not served here; query the related lens by its key instead";
            return Err(GrammarError::invalid("include", message));
        }
        let number = |name: &str, default, max| {
            member(name).map_or(Ok(default), |value| whole_number(value, name, max))
        };
        let cursor = member("cursor")
            .map(|value| grammar::text(value, "cursor"))
            .transpose()?;
        if cursor.is_some() && member("offset").is_some() {
            let message = "a cursor already says where to go on; leave `offset` out";
            return Err(GrammarError::invalid("offset", message));
        }
        let total = match member("total") {
            None => false,
            Some(Value::Bool(total)) => *total,
            Some(other) => return Err(grammar::wrong_type("total", "true or false", other)),
        };
        Ok(Self {
            filter: read_filter(member("where"), lens)?,
            order: read_order(member("orderBy"), lens)?,
            limit: number("limit", DEFAULT_LIMIT, MAX_LIMIT)?,
            offset: number("offset", 0, MAX_OFFSET)?,
            cursor: cursor.map(str::to_owned),
            fields: read_select(member("select"), lens)?,
            total,
        })
    }
}

impl CountRequest {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// As [`QueryRequest::parse`].
    pub fn parse(body: &Value, lens: &Lens) -> Result<Self, GrammarError> {
        let members = members(body, &["where"])?;
        let filter = read_filter(members.get("where").filter(|value| !value.is_null()), lens)?;
        Ok(Self { filter })
    }
}

fn members<'a>(body: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, GrammarError> {
    let members = grammar::object(body, "body")?;
    grammar::only_known(members, "", known)?;
    Ok(members)
}

fn whole_number(value: &Value, path: &str, max: u64) -> Result<u64, GrammarError> {
    match value {
        Value::Number(number) => number
            .as_u64()
            .filter(|number| *number <= max)
            .ok_or_else(|| {
                GrammarError::invalid(path, format!("must be a whole number from 0 to {max}"))
            }),
        other => Err(grammar::wrong_type(path, "a number", other)),
    }
}

fn read_filter(value: Option<&Value>, lens: &Lens) -> Result<Filter, GrammarError> {
    match value {
        None => Ok(Filter::everything()),
        Some(value) => filter::parse_with(value, "where", Limits::REQUEST, &mut LensFields(lens)),
    }
}

/// The fields of a lens, with their columns and types.
struct LensFields<'a>(&'a Lens);

impl Fields for LensFields<'_> {
    fn named(&mut self, output: &str) -> Result<String, String> {
        self.0.field(output).map(|field| field.column.clone())
    }

    fn check(&self, output: &str, value: &Value) -> Result<(), String> {
        kind::check(self.0.field(output)?.kind, value)
    }
}

fn read_order(value: Option<&Value>, lens: &Lens) -> Result<Vec<OrderBy>, GrammarError> {
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    let order = order::parse_with(value, "orderBy", &mut |output| {
        lens.field(output).map(|field| field.column.clone())
    })?;
    // Databases differ in what order JSON has, if any.
    let json = |by: &&OrderBy| {
        lens.fields
            .iter()
            .any(|f| f.column == by.field && f.kind == FieldType::Json)
    };
    match order.iter().find(json) {
        None => Ok(order),
        Some(_) => Err(GrammarError::invalid(
            "orderBy",
            "rows cannot be ordered by a json field",
        )),
    }
}

fn read_select(value: Option<&Value>, lens: &Lens) -> Result<Vec<(String, String)>, GrammarError> {
    let Some(value) = value else {
        return Ok(lens
            .fields
            .iter()
            .map(|field| (field.column.clone(), field.output.clone()))
            .collect());
    };
    let names = value
        .as_array()
        .ok_or_else(|| grammar::wrong_type("select", "an array of field names", value))?;
    if names.is_empty() {
        return Err(GrammarError::invalid(
            "select",
            "must name at least one field",
        ));
    }
    let mut fields: Vec<(String, String)> = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let path = format!("select[{index}]");
        let name = grammar::text(name, &path)?;
        let Ok(field) = lens.field(name) else {
            return Err(GrammarError::unknown_field(path, name, lens.outputs()));
        };
        if fields.iter().all(|(_, output)| *output != field.output) {
            fields.push((field.column.clone(), field.output.clone()));
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::query::grammar::GrammarCode;
    use crate::query::order::Direction;

    fn lens() -> Lens {
        Lens::parse(&json!({
            "name": "products", "source": "shop", "table": "products", "primaryKey": "id",
            "fields": {
                "id": {"type": "number"},
                "price": {"type": "number", "from": "price_cents"},
                "extra": {"type": "json"},
            },
        }))
        .unwrap()
    }

    fn pair(column: &str, output: &str) -> (String, String) {
        (column.into(), output.into())
    }

    #[test]
    fn an_empty_body_asks_for_the_first_page_of_everything() {
        let request =
            QueryRequest::parse(&json!({"where": null, "cursor": null}), &lens()).unwrap();
        assert_eq!(
            request,
            QueryRequest {
                filter: Filter::everything(),
                order: vec![],
                limit: 100,
                offset: 0,
                cursor: None,
                fields: vec![
                    pair("id", "id"),
                    pair("price_cents", "price"),
                    pair("extra", "extra")
                ],
                total: false,
            }
        );
    }

    #[test]
    fn every_member_is_read_in_the_sources_names() {
        let body = json!({
            "where": {"price": {"$gt": 5}}, "orderBy": {"price": "desc"}, "limit": 0, "offset": 7,
            "select": ["price", "id", "price"], "total": true,
        });
        let request = QueryRequest::parse(&body, &lens()).unwrap();
        assert_eq!(request.filter.to_json(), json!({"price_cents": {"$gt": 5}}));
        assert_eq!(
            request.order,
            [OrderBy {
                field: "price_cents".into(),
                dir: Direction::Desc
            }]
        );
        assert_eq!((request.limit, request.offset, request.total), (0, 7, true));
        assert_eq!(
            request.fields,
            [pair("price_cents", "price"), pair("id", "id")]
        );
        let count = CountRequest::parse(&json!({"where": {"price": null}}), &lens()).unwrap();
        assert_eq!(count.filter.to_json(), json!({"price_cents": null}));
    }

    #[test]
    fn mistakes_name_their_path() {
        use GrammarCode::{InvalidRequest, UnknownField, UnsupportedOperator};
        for (body, path, code, message) in [
            (
                json!([]),
                "body",
                InvalidRequest,
                "must be an object, not an array",
            ),
            (
                json!({"limt": 5}),
                "limt",
                InvalidRequest,
                "unknown member `limt`; did you mean `limit`?",
            ),
            (
                json!({"limit": -1}),
                "limit",
                InvalidRequest,
                "must be a whole number from 0 to 1000000",
            ),
            (
                json!({"limit": 1_000_001}),
                "limit",
                InvalidRequest,
                "must be a whole number from 0 to 1000000",
            ),
            (
                json!({"limit": 1.5}),
                "limit",
                InvalidRequest,
                "must be a whole number from 0 to 1000000",
            ),
            (
                json!({"limit": "5"}),
                "limit",
                InvalidRequest,
                "must be a number, not a string",
            ),
            (
                json!({"offset": u64::MAX}),
                "offset",
                InvalidRequest,
                "must be a whole number from 0 to 9223372036854775807",
            ),
            (
                json!({"cursor": 5}),
                "cursor",
                InvalidRequest,
                "must be a string, not a number",
            ),
            (
                json!({"cursor": "x", "offset": 0}),
                "offset",
                InvalidRequest,
                "a cursor already says where to go on; leave `offset` out",
            ),
            (
                json!({"total": 1}),
                "total",
                InvalidRequest,
                "must be true or false, not a number",
            ),
            (
                json!({"include": {"reviews": true}}),
                "include",
                InvalidRequest,
                "relations are not served here; query the related lens by its key instead",
            ),
            (
                json!({"select": "id"}),
                "select",
                InvalidRequest,
                "must be an array of field names, not a string",
            ),
            (
                json!({"select": []}),
                "select",
                InvalidRequest,
                "must name at least one field",
            ),
            (
                json!({"select": ["id", 1]}),
                "select[1]",
                InvalidRequest,
                "must be a string, not a number",
            ),
            (
                json!({"select": ["prise"]}),
                "select[0]",
                UnknownField,
                "unknown field `prise`; did you mean `price`?",
            ),
            (
                json!({"select": ["price_cents"]}),
                "select[0]",
                UnknownField,
                "unknown field `price_cents`",
            ),
            (
                json!({"where": {"prise": 1}}),
                "where.prise",
                UnknownField,
                "unknown field `prise`; did you mean `price`?",
            ),
            (
                json!({"where": {"price": {"$gte ": 1}}}),
                "where.price.$gte ",
                UnsupportedOperator,
                "unknown operator `$gte `; did you mean `$gte`?",
            ),
            (
                json!({"orderBy": [{"field": "prise"}]}),
                "orderBy[0].field",
                UnknownField,
                "unknown field `prise`; did you mean `price`?",
            ),
            (
                json!({"orderBy": {"extra": "asc"}}),
                "orderBy",
                InvalidRequest,
                "rows cannot be ordered by a json field",
            ),
        ] {
            let error = QueryRequest::parse(&body, &lens()).unwrap_err();
            assert_eq!(
                (error.path.as_str(), error.code, error.message.as_str()),
                (path, code, message),
                "{body}"
            );
        }
        let error = CountRequest::parse(&json!({"limit": 1}), &lens()).unwrap_err();
        assert_eq!(
            (error.path.as_str(), error.message.as_str()),
            ("limit", "unknown member `limit`")
        );
    }
}
