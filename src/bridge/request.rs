//! What an operation asks for, read from its JSON options once and before anything is sent.

use serde_json::{Map, Value};

use super::{BridgeError, Execution};
use crate::query::filter::{Filter, Limits, parse_with};
use crate::query::grammar::GrammarCode;
use crate::query::operation::{Kind, Operation};
pub(super) use crate::query::table::{Table, Target};

/// One term of an `orderBy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) column: String,
    pub(super) descending: bool,
}

/// The rows that a `query` asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Query {
    pub(super) target: Target,
    pub(super) filter: Filter,
    pub(super) order: Vec<Order>,
    pub(super) limit: Option<u64>,
    pub(super) offset: Option<u64>,
    /// The columns, `None` for all of them.
    pub(super) select: Option<Vec<String>>,
    /// Whether the number of all matches is wanted too.
    pub(super) total: bool,
}

impl Query {
    /// All columns that it names.
    pub(super) fn columns<'a>(&'a self, execution: &'a Execution) -> Vec<&'a str> {
        let selected = self.select.iter().flatten().map(String::as_str);
        let fields = execution.fields.iter().flatten();
        let order = self.order.iter().map(|order| order.column.as_str());
        let mut columns = self.filter.fields();
        columns.extend(selected.chain(order));
        columns.extend(fields.map(|(column, _)| column.as_str()));
        columns
    }
}

/// An operation with its options read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    Test,
    ListTargets,
    IntrospectTarget(Target),
    Count { target: Target, filter: Filter },
    Query(Query),
}

impl Request {
    /// Reads an operation; `bridge` is the name for messages.
    pub(super) fn parse(operation: &Operation, bridge: &str) -> Result<Self, BridgeError> {
        let options = Options(&operation.options);
        match operation.kind {
            Kind::Test => Ok(Self::Test),
            Kind::ListTargets => Ok(Self::ListTargets),
            Kind::IntrospectTarget => Ok(Self::IntrospectTarget(target(operation)?)),
            Kind::Count => Ok(Self::Count {
                target: target(operation)?,
                filter: options.filter(bridge)?,
            }),
            Kind::Query => Ok(Self::Query(Query {
                target: target(operation)?,
                filter: options.filter(bridge)?,
                order: options.order()?,
                limit: options.whole("limit")?,
                offset: options.whole("offset")?,
                select: options.select()?,
                total: options.flag("total")?,
            })),
            kind => Err(BridgeError::UnsupportedKind {
                kind: kind.as_str().into(),
                bridge: bridge.into(),
            }),
        }
    }
}

/// Says what is wrong and where.
pub(super) fn invalid(path: impl Into<String>, message: impl Into<String>) -> BridgeError {
    BridgeError::Invalid {
        path: path.into(),
        message: message.into(),
    }
}

fn target(operation: &Operation) -> Result<Target, BridgeError> {
    match operation.target.as_deref() {
        Some(text) => Target::parse(text)
            .map_err(|message| invalid("target", format!("the name of a table {message}"))),
        None => Err(invalid(
            "target",
            format!("`{}` needs a target", operation.kind.as_str()),
        )),
    }
}

/// A column's name as it may be quoted: anything but nothing and NUL.
fn column(path: &str, value: &Value) -> Result<String, BridgeError> {
    match value.as_str() {
        Some(name) if !name.is_empty() && !name.contains('\0') => Ok(name.to_owned()),
        _ => Err(invalid(
            path,
            format!("{path} must be the name of a column"),
        )),
    }
}

struct Options<'a>(&'a Map<String, Value>);

impl Options<'_> {
    /// The option, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn filter(&self, bridge: &str) -> Result<Filter, BridgeError> {
        let Some(value) = self.get("where") else {
            return Ok(Filter::everything());
        };
        let parsed = parse_with(
            value,
            "where",
            Limits::OPERATION,
            &mut |field: &str| match field {
                "" => Err("a column must have a name".into()),
                name if name.contains('\0') => Err("a column's name cannot hold a NUL".into()),
                name => Ok(name.to_owned()),
            },
        );
        parsed.map_err(|error| match error.code {
            GrammarCode::UnsupportedOperator => {
                let operator = error.path.rsplit('.').next().unwrap_or_default().to_owned();
                BridgeError::UnsupportedOperator {
                    operator,
                    bridge: bridge.to_owned(),
                }
            }
            _ => invalid(error.path, error.message),
        })
    }

    fn whole(&self, key: &str) -> Result<Option<u64>, BridgeError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            // The databases count in signed 64 bits.
            Some(number) if i64::try_from(number).is_ok() => Ok(Some(number)),
            _ => Err(invalid(
                key,
                format!("`{key}` must be a whole number from 0"),
            )),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, BridgeError> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(invalid(key, format!("`{key}` must be true or false"))),
        }
    }

    fn select(&self) -> Result<Option<Vec<String>>, BridgeError> {
        match self.get("select") {
            None => Ok(None),
            Some(Value::String(all)) if all == "*" => Ok(None),
            Some(Value::Array(names)) => {
                let names = names.iter().enumerate();
                names
                    .map(|(i, name)| column(&format!("select.{i}"), name))
                    .collect::<Result<_, _>>()
                    .map(Some)
            }
            Some(_) => Err(invalid(
                "select",
                "`select` must be an array of column names",
            )),
        }
    }

    /// `{field, dir}`, an array of those, or `{column: dir}`.
    fn order(&self) -> Result<Vec<Order>, BridgeError> {
        match self.get("orderBy") {
            None => Ok(Vec::new()),
            Some(Value::Array(terms)) => {
                let mut order = Vec::with_capacity(terms.len());
                for (i, term) in terms.iter().enumerate() {
                    order.extend(order_terms(&format!("orderBy.{i}"), term)?);
                }
                Ok(order)
            }
            Some(term) => order_terms("orderBy", term),
        }
    }
}

fn order_terms(path: &str, term: &Value) -> Result<Vec<Order>, BridgeError> {
    let Some(object) = term.as_object() else {
        return Err(invalid(
            path,
            format!("{path} must be {{field, dir}} or {{column: \"asc\"|\"desc\"}}"),
        ));
    };
    // `{"field": "asc"}` orders by a column of that name; `{"field": "price"}` by the column `price`.
    let named = object
        .get("field")
        .filter(|_| object.keys().all(|key| key == "field" || key == "dir"));
    if let Some(field) =
        named.filter(|field| object.len() == 2 || !matches!(field.as_str(), Some("asc" | "desc")))
    {
        let descending = match object.get("dir") {
            None | Some(Value::Null) => false,
            Some(dir) => direction(&format!("{path}.dir"), dir)?,
        };
        return Ok(vec![Order {
            column: column(&format!("{path}.field"), field)?,
            descending,
        }]);
    }
    object
        .iter()
        .map(|(name, dir)| {
            let path = format!("{path}.{name}");
            Ok(Order {
                column: column(&path, &Value::from(name.as_str()))?,
                descending: direction(&path, dir)?,
            })
        })
        .collect()
}

fn direction(path: &str, value: &Value) -> Result<bool, BridgeError> {
    match value.as_str() {
        Some("asc") => Ok(false),
        Some("desc") => Ok(true),
        _ => Err(invalid(path, format!("{path} must be \"asc\" or \"desc\""))),
    }
}
