//! What is wrong with a request: where in the JSON, which code, and a sentence that says what to do. Also
//! the small readers of JSON that all parts of the grammar share.

use serde_json::{Map, Value};

use super::suggest::{clip, did_you_mean};

/// The kind of mistake, as the `code` of an error answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrammarCode {
    /// The request does not have the right form.
    InvalidRequest,
    /// There is no such operator.
    UnsupportedOperator,
    /// There is no such field.
    UnknownField,
}

impl GrammarCode {
    /// The machine code in an error answer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::UnsupportedOperator => "unsupported_operator",
            Self::UnknownField => "unknown_field",
        }
    }
}

/// A mistake in a request, or in the definition of a lens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}`: {message}")]
pub struct GrammarError {
    /// Where it is, as a JSON path, e.g. `where.price.$gt`.
    pub path: String,
    /// Which kind of mistake it is.
    pub code: GrammarCode,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl GrammarError {
    /// A request that does not have the right form.
    pub fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            code: GrammarCode::InvalidRequest,
            message: message.into(),
        }
    }

    /// A field that does not exist; names the closest one that does.
    pub fn unknown_field<'a>(
        path: impl Into<String>,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let message = format!(
            "unknown field `{}`{}",
            clip(name),
            did_you_mean(name, known)
        );
        Self {
            path: path.into(),
            code: GrammarCode::UnknownField,
            message,
        }
    }
}

/// What a JSON value is, for messages.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Complains that a value is of another type than it must be.
pub(crate) fn wrong_type(path: impl Into<String>, expected: &str, found: &Value) -> GrammarError {
    GrammarError::invalid(
        path,
        format!("must be {expected}, not {}", type_name(found)),
    )
}

/// The members of an object.
pub(crate) fn object<'a>(
    value: &'a Value,
    path: &str,
) -> Result<&'a Map<String, Value>, GrammarError> {
    value
        .as_object()
        .ok_or_else(|| wrong_type(path, "an object", value))
}

/// The text of a string without NUL bytes, which databases refuse.
pub(crate) fn text<'a>(value: &'a Value, path: &str) -> Result<&'a str, GrammarError> {
    let text = value
        .as_str()
        .ok_or_else(|| wrong_type(path, "a string", value))?;
    if text.contains('\0') {
        return Err(GrammarError::invalid(path, "must not contain a NUL byte"));
    }
    Ok(text)
}

/// Refuses members that are not among `known`, by name.
pub(crate) fn only_known(
    members: &Map<String, Value>,
    path: &str,
    known: &[&str],
) -> Result<(), GrammarError> {
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(GrammarError::invalid(
            join(path, name),
            format!(
                "unknown member `{}`{}",
                clip(name),
                did_you_mean(name, known.iter().copied())
            ),
        )),
    }
}

/// The path of a member.
pub(crate) fn join(path: &str, name: &str) -> String {
    let name = clip(name);
    if path.is_empty() {
        name
    } else {
        format!("{path}.{name}")
    }
}
