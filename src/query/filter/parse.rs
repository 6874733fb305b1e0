//! From JSON to a [`Filter`]. Renames fields on the way if asked to, so that a mistake is reported with the
//! path at which it stands.

use serde_json::Value;

use super::{Comparison, Filter, Pattern};
use crate::query::grammar::{self, GrammarCode, GrammarError};
use crate::query::like::Like;
use crate::query::suggest::{clip, did_you_mean};

/// How large a `where` may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How deep clauses may be nested; the outermost is at depth 1.
    pub depth: usize,
    /// How many conditions there may be, the values in a list not counted.
    pub terms: usize,
}

impl Limits {
    /// What a caller may send.
    pub const REQUEST: Self = Self {
        depth: 32,
        terms: 1000,
    };
    /// What a source may be sent: a caller's `where`, joined with a row filter and the place of a cursor.
    pub const OPERATION: Self = Self {
        depth: 40,
        terms: 4000,
    };
}

/// What is known of the fields that a `where` may name.
pub trait Fields {
    /// The name of a field that the filter is to have.
    ///
    /// # Errors
    ///
    /// Why there is none.
    fn named(&mut self, field: &str) -> Result<String, String>;

    /// Whether a value that is not null can be one of the field's.
    ///
    /// # Errors
    ///
    /// What would be right.
    fn check(&self, _field: &str, _value: &Value) -> Result<(), String> {
        Ok(())
    }
}

/// Names only: any value will do.
impl<F: FnMut(&str) -> Result<String, String>> Fields for F {
    fn named(&mut self, field: &str) -> Result<String, String> {
        self(field)
    }
}

/// Parses a `where` as a source gets it: names as they are, [`Limits::OPERATION`].
///
/// # Errors
///
/// When it is not in the grammar; the path begins with `where`.
pub fn parse(value: &Value) -> Result<Filter, GrammarError> {
    parse_with(value, "where", Limits::OPERATION, &mut |field: &str| {
        Ok(field.to_owned())
    })
}

/// Parses a `where` that stands at `path`, each field named and each value checked by `fields`.
///
/// # Errors
///
/// When it is not in the grammar, is larger than `limits`, or `fields` refuses a field or a value.
pub fn parse_with(
    value: &Value,
    path: &str,
    limits: Limits,
    fields: &mut dyn Fields,
) -> Result<Filter, GrammarError> {
    let mut parser = Parser {
        path: path.to_owned(),
        limits,
        terms: 0,
        fields,
    };
    Ok(parser
        .clause(
            value,
            Place {
                depth: 1,
                negated: false,
            },
        )?
        .unwrap_or_else(Filter::everything))
}

#[derive(Clone, Copy)]
enum Operator {
    Compare(Comparison),
    In { negated: bool },
    Exists,
    Match(Pattern),
}

impl Operator {
    const NAMES: [&'static str; 14] = [
        "$eq",
        "$ne",
        "$gt",
        "$gte",
        "$lt",
        "$lte",
        "$in",
        "$nin",
        "$exists",
        "$like",
        "$ilike",
        "$contains",
        "$startsWith",
        "$endsWith",
    ];

    fn parse(name: &str) -> Option<Self> {
        match name {
            "$in" => Some(Self::In { negated: false }),
            "$nin" => Some(Self::In { negated: true }),
            "$exists" => Some(Self::Exists),
            _ => {
                let comparison = Comparison::ALL
                    .into_iter()
                    .find(|op| op.as_str() == name)
                    .map(Self::Compare);
                comparison.or_else(|| {
                    Pattern::ALL
                        .into_iter()
                        .find(|op| op.as_str() == name)
                        .map(Self::Match)
                })
            }
        }
    }
}

/// Where a clause stands.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    /// Whether an odd number of `$not`s stands around it.
    negated: bool,
}

struct Parser<'a> {
    path: String,
    limits: Limits,
    terms: usize,
    fields: &'a mut dyn Fields,
}

impl Parser<'_> {
    /// Runs `parse` with the path extended by `segment`.
    fn within<T>(
        &mut self,
        segment: &str,
        parse: impl FnOnce(&mut Self) -> Result<T, GrammarError>,
    ) -> Result<T, GrammarError> {
        let length = self.path.len();
        self.path.push_str(segment);
        let result = parse(self);
        self.path.truncate(length);
        result
    }

    fn invalid(&self, message: impl Into<String>) -> GrammarError {
        GrammarError::invalid(self.path.as_str(), message)
    }

    fn wrong_type(&self, expected: &str, found: &Value) -> GrammarError {
        grammar::wrong_type(self.path.as_str(), expected, found)
    }

    /// An object of conditions; `None` if it has none.
    fn clause(&mut self, value: &Value, place: Place) -> Result<Option<Filter>, GrammarError> {
        if place.depth > self.limits.depth {
            return Err(self.invalid(format!("nested deeper than {} levels", self.limits.depth)));
        }
        let members = value
            .as_object()
            .ok_or_else(|| self.wrong_type("an object of conditions", value))?;
        let mut filters = Vec::new();
        for (name, value) in members {
            let filter = self.within(&format!(".{}", clip(name)), |parser| {
                parser.member(name, value, place)
            })?;
            filters.extend(filter);
        }
        Ok(if filters.is_empty() {
            None
        } else {
            Some(Filter::all(filters))
        })
    }

    fn member(
        &mut self,
        name: &str,
        value: &Value,
        place: Place,
    ) -> Result<Option<Filter>, GrammarError> {
        let inner = Place {
            depth: place.depth + 1,
            ..place
        };
        match name {
            "$and" => Ok(self.clauses(value, inner)?.map(Filter::all)),
            "$or" => Ok(self.clauses(value, inner)?.map(Filter::any)),
            "$not" => Ok(self
                .clause(
                    value,
                    Place {
                        negated: !place.negated,
                        ..inner
                    },
                )?
                .map(Filter::not)),
            _ if name.starts_with('$') => Err(self.misplaced(name)),
            _ => self.field(name, value, place.negated),
        }
    }

    /// An array of clauses; `None` if there is no condition in any.
    fn clauses(
        &mut self,
        value: &Value,
        place: Place,
    ) -> Result<Option<Vec<Filter>>, GrammarError> {
        let clauses = value
            .as_array()
            .ok_or_else(|| self.wrong_type("an array of conditions", value))?;
        let mut filters = Vec::new();
        for (index, clause) in clauses.iter().enumerate() {
            filters
                .extend(self.within(&format!("[{index}]"), |parser| parser.clause(clause, place))?);
        }
        Ok(if filters.is_empty() {
            None
        } else {
            Some(filters)
        })
    }

    fn misplaced(&self, name: &str) -> GrammarError {
        if Operator::parse(name).is_some() {
            return self.invalid(format!(
                "`{name}` belongs under a field: {{\"field\": {{\"{name}\": …}}}}"
            ));
        }
        self.unsupported(name, &["$and", "$or", "$not"])
    }

    fn unsupported(&self, name: &str, known: &[&str]) -> GrammarError {
        let hint = did_you_mean(name, known.iter().copied());
        GrammarError {
            path: self.path.clone(),
            code: GrammarCode::UnsupportedOperator,
            message: format!("unknown operator `{}`{hint}", clip(name)),
        }
    }

    /// A field with a bare value, or with an object of operators; `None` if that is empty.
    fn field(
        &mut self,
        name: &str,
        value: &Value,
        negated: bool,
    ) -> Result<Option<Filter>, GrammarError> {
        if name.is_empty() || name.contains('\0') {
            return Err(self.invalid("a field name must not be empty or contain a NUL byte"));
        }
        let column = self.fields.named(name).map_err(|message| GrammarError {
            path: self.path.clone(),
            code: GrammarCode::UnknownField,
            message,
        })?;
        let operators = match value {
            Value::Object(operators) => operators,
            Value::Array(_) => {
                return self
                    .term(
                        name,
                        column,
                        Operator::In { negated: false },
                        value,
                        negated,
                    )
                    .map(Some);
            }
            _ => {
                return self
                    .term(
                        name,
                        column,
                        Operator::Compare(Comparison::Eq),
                        value,
                        negated,
                    )
                    .map(Some);
            }
        };
        let mut filters = Vec::with_capacity(operators.len());
        for (operator, operand) in operators {
            let column = column.clone();
            filters.push(self.within(&format!(".{}", clip(operator)), |parser| {
                let operator =
                    Operator::parse(operator).ok_or_else(|| parser.not_an_operator(operator))?;
                parser.term(name, column, operator, operand, negated)
            })?);
        }
        Ok(if filters.is_empty() {
            None
        } else {
            Some(Filter::all(filters))
        })
    }

    fn not_an_operator(&self, name: &str) -> GrammarError {
        match name {
            "$and" | "$or" | "$not" => self.invalid(format!(
                "`{name}` stands beside fields, not under one: {{\"{name}\": …}} with the field inside"
            )),
            _ if name.starts_with('$') => self.unsupported(name, &Operator::NAMES),
            _ => self.invalid("an object under a field holds operators; to compare with a JSON object use `$eq`"),
        }
    }

    /// One condition on a field, known as `field` in the filter.
    fn term(
        &mut self,
        name: &str,
        field: String,
        operator: Operator,
        operand: &Value,
        negated: bool,
    ) -> Result<Filter, GrammarError> {
        self.terms += 1;
        if self.terms > self.limits.terms {
            return Err(self.invalid(format!("more than {} conditions", self.limits.terms)));
        }
        if has_nul(operand) {
            return Err(self.invalid("a value must not contain a NUL byte"));
        }
        match operator {
            Operator::Compare(op) => {
                self.check(name, operand)?;
                self.comparison(field, op, operand)
            }
            Operator::In { negated: nin } => self.list(name, field, operand, nin, negated),
            Operator::Exists => match operand {
                Value::Bool(exists) => Ok(Filter::IsNull {
                    field,
                    negated: *exists,
                }),
                other => Err(self.wrong_type("true or false", other)),
            },
            Operator::Match(pattern) => match operand {
                Value::String(text) => match Like::parse(pattern, text) {
                    Ok(_) => Ok(Filter::Matches {
                        field,
                        pattern,
                        text: text.clone(),
                    }),
                    Err(message) => Err(self.invalid(message)),
                },
                Value::Null => Ok(Filter::Nothing),
                value if pattern == Pattern::Contains => Ok(Filter::Contains {
                    field,
                    value: value.clone(),
                }),
                _ => Ok(Filter::Nothing),
            },
        }
    }

    /// Whether a value can be one of the field's.
    fn check(&self, name: &str, value: &Value) -> Result<(), GrammarError> {
        match value {
            Value::Null => Ok(()),
            value => self
                .fields
                .check(name, value)
                .map_err(|message| self.invalid(message)),
        }
    }

    fn comparison(
        &self,
        field: String,
        op: Comparison,
        operand: &Value,
    ) -> Result<Filter, GrammarError> {
        let ordering = !matches!(op, Comparison::Eq | Comparison::Ne);
        match operand {
            Value::Null if ordering => {
                Err(self.invalid("null has no order; use `$eq`, `$ne` or `$exists`"))
            }
            Value::Array(_) | Value::Object(_) if ordering => {
                Err(self.wrong_type("a string, a number or a boolean", operand))
            }
            _ => Ok(Filter::compare(field, op, operand.clone())),
        }
    }

    /// `$in` and `$nin`. A null in the list makes SQL answer "unknown" where it would have said "not in it".
    /// A row is kept only on "true", and `$and`, `$or` keep the order false < unknown < true, so "unknown" may
    /// be read as false, or as true below an odd number of `$not`s.
    fn list(
        &mut self,
        name: &str,
        field: String,
        operand: &Value,
        nin: bool,
        negated: bool,
    ) -> Result<Filter, GrammarError> {
        let list = operand
            .as_array()
            .ok_or_else(|| self.wrong_type("an array", operand))?;
        let mut values = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            match value {
                Value::Null => {}
                Value::Array(_) | Value::Object(_) => {
                    return self.within(&format!("[{index}]"), |parser| {
                        Err(parser.wrong_type("a string, a number, a boolean or null", value))
                    });
                }
                scalar => {
                    self.within(&format!("[{index}]"), |parser| parser.check(name, scalar))?;
                    values.push(scalar.clone());
                }
            }
        }
        let has_null = values.len() < list.len();
        Ok(match (nin, has_null, negated) {
            // `x IN (…, NULL)` is true or unknown.
            (false, true, true) => Filter::everything(),
            // `x NOT IN (…, NULL)` is false or unknown.
            (true, true, false) => Filter::Nothing,
            (false, ..) if values.is_empty() => Filter::Nothing,
            (true, ..) if values.is_empty() => Filter::everything(),
            _ => Filter::In {
                field,
                values,
                negated: nin,
            },
        })
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
