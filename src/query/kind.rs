//! Which values a field of a lens can have, as far as its type says: what can never be one of its values is a mistake
//! in the request, and is said before any database is asked.

use serde_json::Value;

use super::grammar::type_name;
use super::lens::FieldType;
use super::moment::{ClockTime, Moment};
use super::numeral::Numeral;
use super::suggest::clip;

/// Checks a value that a field is compared with, null not among them.
///
/// A text or enum passes what is no text, because a lens may say so little of a column of numbers; what the column
/// itself holds is known where it is queried, and checked there.
///
/// # Errors
///
/// What would be right.
pub fn check(kind: FieldType, value: &Value) -> Result<(), String> {
    match (kind, value) {
        (FieldType::Json, _) => Ok(()),
        (FieldType::Text | FieldType::Enum, _) => Ok(()),
        (FieldType::Boolean, Value::Bool(_)) => Ok(()),
        (FieldType::Boolean, other) => Err(wrong("true or false", other)),
        (FieldType::Number | FieldType::Decimal, Value::Number(_)) => Ok(()),
        (FieldType::Number | FieldType::Decimal, Value::String(text)) => {
            let special = matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity");
            match special || Numeral::parse(text).is_some() {
                true => Ok(()),
                false => Err(wrong("a number", value)),
            }
        }
        (FieldType::Number | FieldType::Decimal, other) => Err(wrong("a number", other)),
        // A column may hold times as numbers.
        (FieldType::Date, Value::Number(_)) => Ok(()),
        (FieldType::Date, Value::String(text)) => {
            let endless = matches!(text.as_str(), "infinity" | "-infinity");
            match endless || Moment::parse(text).is_some() || ClockTime::parse(text).is_some() {
                true => Ok(()),
                false => Err(wrong(
                    "a date or time as in ISO 8601, e.g. `2024-05-01` or `2024-05-01T12:00:00Z`",
                    value,
                )),
            }
        }
        (FieldType::Date, other) => Err(wrong("a date or time as in ISO 8601", other)),
    }
}

fn wrong(expected: &str, found: &Value) -> String {
    match found {
        Value::String(text) => format!("must be {expected}, not `{}`", clip(text)),
        other => format!("must be {expected}, not {}", type_name(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_fits_its_type_or_is_told_what_would() {
        use FieldType::{Boolean, Date, Decimal, Enum, Json, Number, Text};
        for (kind, fits, does_not) in [
            (
                Number,
                vec![
                    json!(1),
                    json!(-1.5e9),
                    json!("9007199254740993"),
                    json!("NaN"),
                ],
                vec![
                    json!("abc"),
                    json!(""),
                    json!(true),
                    json!("1 000"),
                    json!("1,5"),
                ],
            ),
            (
                Decimal,
                vec![json!("1.10"), json!(5)],
                vec![json!("x"), json!(false)],
            ),
            (Boolean, vec![json!(true)], vec![json!(1), json!("true")]),
            (
                Date,
                vec![
                    json!("2024-05-01"),
                    json!("2024-05-01 12:00:00+02"),
                    json!("0000-00-00"),
                    json!("10:30:00"),
                    json!("-infinity"),
                    json!(1_714_521_600),
                ],
                vec![json!("yesterday"), json!("01.05.2024"), json!(true)],
            ),
            (Text, vec![json!("x"), json!(5), json!(true)], vec![]),
            (Enum, vec![json!("x")], vec![]),
            (Json, vec![json!("x"), json!({"a": 1}), json!([1])], vec![]),
        ] {
            for value in fits {
                assert_eq!(check(kind, &value), Ok(()), "{kind:?} {value}");
            }
            for value in does_not {
                let message = check(kind, &value).unwrap_err();
                assert!(
                    message.starts_with("must be "),
                    "{kind:?} {value}: {message}"
                );
            }
        }
    }
}
