//! `orderBy`, in its three forms: `{field, dir?}`, an array of those, or `{name: "asc" | "desc"}`.
//!
//! Nulls come last ascending and first descending, in every database. An object that has a member `field`
//! and nothing else but `dir` is the first form, so a field that is called `field` is ordered by as
//! `{"field": "field"}`. A field that is named again is ignored: it can no longer change the order.

use serde_json::{Map, Value, json};

use super::grammar::{self, GrammarCode, GrammarError, join};

/// The most fields that rows can be ordered by; what a cursor costs grows with their square.
pub const MAX_FIELDS: usize = 16;

/// Which way to order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Smallest first, nulls last.
    Asc,
    /// Greatest first, nulls first.
    Desc,
}

impl Direction {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        }
    }
}

/// One field to order by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderBy {
    /// The field, or column.
    pub field: String,
    /// Which way.
    pub dir: Direction,
}

/// Parses an `orderBy` as a source gets it, names as they are.
///
/// # Errors
///
/// When it is in none of the three forms; the path begins with `orderBy`.
pub fn parse(value: &Value) -> Result<Vec<OrderBy>, GrammarError> {
    parse_with(value, "orderBy", &mut |field| Ok(field.to_owned()))
}

/// Parses an `orderBy` that stands at `path`, each field renamed by `rename`, whose error is the message.
///
/// # Errors
///
/// When it is in none of the three forms, or `rename` refuses a field.
pub fn parse_with(
    value: &Value,
    path: &str,
    rename: &mut dyn FnMut(&str) -> Result<String, String>,
) -> Result<Vec<OrderBy>, GrammarError> {
    let mut parser = Parser {
        order: Vec::new(),
        rename,
    };
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                let members = item
                    .as_object()
                    .ok_or_else(|| grammar::wrong_type(&path, "an object", item))?;
                parser.object(members, &path)?;
            }
        }
        Value::Object(members) => parser.object(members, path)?,
        other => {
            return Err(grammar::wrong_type(
                path,
                "an object or an array of objects",
                other,
            ));
        }
    }
    if parser.order.len() > MAX_FIELDS {
        return Err(GrammarError::invalid(
            path,
            format!("more than {MAX_FIELDS} fields"),
        ));
    }
    Ok(parser.order)
}

/// The order in the form that every runner takes.
pub fn to_json(order: &[OrderBy]) -> Value {
    order
        .iter()
        .map(|by| json!({ "field": by.field, "dir": by.dir.as_str() }))
        .collect()
}

struct Parser<'a> {
    order: Vec<OrderBy>,
    rename: &'a mut dyn FnMut(&str) -> Result<String, String>,
}

impl Parser<'_> {
    fn object(&mut self, members: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
        let Some(field) = members
            .get("field")
            .filter(|_| members.keys().all(|k| k == "field" || k == "dir"))
        else {
            return members.iter().try_for_each(|(name, dir)| {
                let path = join(path, name);
                self.push(name, direction(dir, &path)?, path)
            });
        };
        let dir = match members.get("dir") {
            None => Direction::Asc,
            Some(dir) => direction(dir, &join(path, "dir"))?,
        };
        let path = join(path, "field");
        self.push(grammar::text(field, &path)?, dir, path)
    }

    fn push(&mut self, name: &str, dir: Direction, path: String) -> Result<(), GrammarError> {
        if name.is_empty() || name.contains('\0') {
            return Err(GrammarError::invalid(
                path,
                "a field name must not be empty or contain a NUL byte",
            ));
        }
        let field = (self.rename)(name).map_err(|message| GrammarError {
            path,
            code: GrammarCode::UnknownField,
            message,
        })?;
        if self.order.iter().all(|by| by.field != field) {
            self.order.push(OrderBy { field, dir });
        }
        Ok(())
    }
}

fn direction(value: &Value, path: &str) -> Result<Direction, GrammarError> {
    match value.as_str() {
        Some("asc") => Ok(Direction::Asc),
        Some("desc") => Ok(Direction::Desc),
        Some(_) => Err(GrammarError::invalid(path, "must be `asc` or `desc`")),
        None => Err(grammar::wrong_type(path, "`asc` or `desc`", value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(field: &str, dir: Direction) -> OrderBy {
        OrderBy {
            field: field.into(),
            dir,
        }
    }

    #[test]
    fn the_three_forms_parse() {
        use Direction::{Asc, Desc};
        for (json, expected) in [
            (json!({"field": "a"}), vec![by("a", Asc)]),
            (json!({"field": "a", "dir": "desc"}), vec![by("a", Desc)]),
            (
                json!([{"field": "a"}, {"field": "b", "dir": "desc"}]),
                vec![by("a", Asc), by("b", Desc)],
            ),
            (
                json!({"b": "desc", "a": "asc"}),
                vec![by("b", Desc), by("a", Asc)],
            ),
            (
                json!([{"b": "desc"}, {"field": "a"}]),
                vec![by("b", Desc), by("a", Asc)],
            ),
            (json!({"field": "field"}), vec![by("field", Asc)]),
            (
                json!({"field": "asc", "a": "desc"}),
                vec![by("field", Asc), by("a", Desc)],
            ),
            (json!([{"a": "asc"}, {"a": "desc"}]), vec![by("a", Asc)]),
            (json!([]), vec![]),
            (json!({}), vec![]),
        ] {
            assert_eq!(parse(&json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn mistakes_name_their_path() {
        for (json, path, message) in [
            (
                json!("a"),
                "orderBy",
                "must be an object or an array of objects, not a string",
            ),
            (
                json!(["a"]),
                "orderBy[0]",
                "must be an object, not a string",
            ),
            (json!({"a": "up"}), "orderBy.a", "must be `asc` or `desc`"),
            (
                json!({"a": 1}),
                "orderBy.a",
                "must be `asc` or `desc`, not a number",
            ),
            (
                json!([{"field": 1}]),
                "orderBy[0].field",
                "must be a string, not a number",
            ),
            (
                json!([{"field": "a", "dir": null}]),
                "orderBy[0].dir",
                "must be `asc` or `desc`, not null",
            ),
            (
                json!({"field": "a\0"}),
                "orderBy.field",
                "must not contain a NUL byte",
            ),
            (
                json!({"": "asc"}),
                "orderBy.",
                "a field name must not be empty or contain a NUL byte",
            ),
        ] {
            assert_eq!(
                parse(&json),
                Err(GrammarError::invalid(path, message)),
                "{json}"
            );
        }
        let many: Vec<_> = (0..17)
            .map(|n| json!({ "field": format!("f{n}") }))
            .collect();
        assert_eq!(
            parse(&many.into()).unwrap_err().message,
            "more than 16 fields"
        );
        let refuse = &mut |_: &str| Err("unknown field `b`".to_owned());
        let error = parse_with(&json!([{"field": "b"}]), "orderBy", refuse).unwrap_err();
        assert_eq!(
            (error.path.as_str(), error.code),
            ("orderBy[0].field", GrammarCode::UnknownField)
        );
    }

    #[test]
    fn the_written_form_parses_to_the_same_order() {
        let order = vec![by("a", Direction::Desc), by("field", Direction::Asc)];
        assert_eq!(parse(&to_json(&order)), Ok(order));
    }
}
