//! The name of a table, as lenses and requests write it: `table`, `schema.table`, or with a part in double quotes
//! where it has characters that would mean something here: `"my.schema"."stock ""levels"""`.
//!
//! Without quotes a dot may separate or belong to a name. All that it can mean is kept, in the order in which it is
//! tried: the first dot that separates, the next one, and at last none. So every name that a database allows can be
//! written as it is, unless another table has the better claim to it; then quotes tell.

use std::fmt;

/// The longest name, in bytes; no database has longer ones in its catalogue.
const MAX_BYTES: usize = 1024;

/// What the name of a table may mean.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Never empty.
    readings: Vec<Table>,
}

/// One table or view.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Table {
    /// The schema (MySQL: the database), when it was named.
    pub schema: Option<String>,
    /// The table or view.
    pub name: String,
}

impl Target {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// When it is empty, has a NUL or an unfinished quote; the message says so.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("must not be empty");
        }
        if text.len() > MAX_BYTES || text.contains('\0') {
            return Err("must be at most 1024 bytes long, without NUL bytes");
        }
        let readings = match quoted_parts(text)? {
            Some((Some(schema), name)) => vec![Table {
                schema: Some(schema),
                name,
            }],
            Some((None, name)) => vec![Table { schema: None, name }],
            None => plain_readings(text),
        };
        Ok(Self { readings })
    }

    /// What it may mean, the likeliest first.
    pub fn readings(&self) -> &[Table] {
        &self.readings
    }
}

impl Table {
    /// The name as it stands in SQL, each part in `quote`s.
    pub fn quoted(&self, quote: char) -> String {
        let parts = self.schema.iter().chain(std::iter::once(&self.name));
        let parts = parts.map(|part| quote_part(part, quote));
        parts.collect::<Vec<_>>().join(".")
    }
}

/// Written so that [`Target::parse`] finds this very table.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &str| match part.contains(['.', '"']) {
            true => quote_part(part, '"'),
            false => part.to_owned(),
        };
        if let Some(schema) = &self.schema {
            write!(f, "{}.", part(schema))?;
        }
        f.write_str(&part(&self.name))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.readings[0].fmt(f)
    }
}

fn quote_part(part: &str, quote: char) -> String {
    format!(
        "{quote}{}{quote}",
        part.replace(quote, &format!("{quote}{quote}"))
    )
}

fn plain_readings(text: &str) -> Vec<Table> {
    let separated = text.match_indices('.').filter_map(|(at, _)| {
        let (schema, name) = (&text[..at], &text[at + 1..]);
        (!schema.is_empty() && !name.is_empty()).then(|| Table {
            schema: Some(schema.to_owned()),
            name: name.to_owned(),
        })
    });
    let whole = Table {
        schema: None,
        name: text.to_owned(),
    };
    separated.chain([whole]).collect()
}

type Parts = (Option<String>, String);

/// The parts of a name of which one at least is in quotes; `None` if none is.
fn quoted_parts(text: &str) -> Result<Option<Parts>, &'static str> {
    const UNFINISHED: &str = "a part in double quotes must end with one, and only a dot and one more part may follow; a quote within is doubled";
    if text.starts_with('"') {
        let Some((first, rest)) = quoted(text) else {
            return Err(UNFINISHED);
        };
        return match (rest.strip_prefix('.'), rest) {
            (None, "") => Ok(Some((None, first))),
            (Some(rest), _) => match quoted(rest) {
                Some((name, "")) => Ok(Some((Some(first), name))),
                None if !rest.is_empty() && !rest.contains('"') => {
                    Ok(Some((Some(first), rest.to_owned())))
                }
                _ => Err(UNFINISHED),
            },
            (None, _) => Err(UNFINISHED),
        };
    }
    match text.split_once(".\"") {
        Some((schema, _)) => match quoted(&text[schema.len() + 1..]) {
            Some((name, "")) => Ok(Some((Some(schema.to_owned()), name))),
            _ => Err(UNFINISHED),
        },
        None => Ok(None),
    }
}

/// A part in quotes at the start of a text, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let (before, after) = rest.split_once('"')?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None if name.is_empty() => return None,
            None => return Some((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(schema: Option<&str>, name: &str) -> Table {
        Table {
            schema: schema.map(str::to_owned),
            name: name.into(),
        }
    }

    fn readings(text: &str) -> Vec<Table> {
        Target::parse(text).unwrap().readings
    }

    #[test]
    fn names_mean_all_that_they_can() {
        assert_eq!(readings("orders"), [table(None, "orders")]);
        assert_eq!(readings("stock levels"), [table(None, "stock levels")]);
        assert_eq!(readings("a.b"), [table(Some("a"), "b"), table(None, "a.b")]);
        assert_eq!(
            readings("a.b.c"),
            [
                table(Some("a"), "b.c"),
                table(Some("a.b"), "c"),
                table(None, "a.b.c")
            ]
        );
        assert_eq!(readings("\"a.b\""), [table(None, "a.b")]);
        assert_eq!(readings("\"a.b\".c"), [table(Some("a.b"), "c")]);
        assert_eq!(readings("a.\"b.c\""), [table(Some("a"), "b.c")]);
        assert_eq!(readings("\"a\"\"b\".\"c\""), [table(Some("a\"b"), "c")]);
        assert_eq!(readings(".a"), [table(None, ".a")]);
        for bad in ["", "\"", "\"a", "\"\"", "\"a\"b", "\"a\".", "a.\"b", "a\0"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_listed_is_found(schema in prop::option::of("[a. \"é]{1,4}"), name in "[a. \"é]{1,6}") {
            let table = Table { schema, name };
            prop_assert_eq!(&readings(&table.to_string())[0], &table);
        }
    }
}
