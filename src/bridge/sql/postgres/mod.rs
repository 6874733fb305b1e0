//! What PostgreSQL is told: values go out as text, which the named type reads: exact for every type there is.

mod array;
mod bound;
mod checks;
mod place;

use sea_query::{Expr, ExprTrait};
use serde_json::Value;

use self::array::{array, literal};
use self::bound::{Bound, Left, Side, bound};
pub(super) use self::bound::{moment, numeral, special};
pub(in crate::bridge) use self::checks::checks;
pub(super) use self::place::{compared, key, key_value, row_digest, sorted_by};
use super::condition::{always, comparison, never, wrong};
use super::shape::{Class, Column, Shape};
use super::{column, join};
use crate::bridge::BridgeError;
use crate::query::filter::Comparison;
use crate::query::like::{Flavour, Like};

/// JSON that `json` takes and `jsonb` does not: a NUL or half a surrogate pair, where backslashes that are escaped are
/// out of the way, and a number with an absurd exponent or as many digits, where strings are gone.
const NOT_JSONB: &str = r"\\u0000|\\u[dD][89aAbB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB][0-9a-fA-F]{2})\\u[dD][c-fC-F]";
/// In a database that is not in UTF-8 it may not have the character.
const NOT_ASCII: &str = r"|\\u(?!00[0-7])";
const ESCAPED_BACKSLASH: &str = r"\\";
const STRINGS: &str = r#""([^"\\]|\\.)*""#;
const ABSURD_NUMBER: &str = "[0-9][eE][+-]?0*[1-9][0-9]{4,}";
/// A document that is shorter has no number with too many digits.
const MANY_DIGITS: &str = "[0-9]{255}";

pub(super) fn compare(
    shape: &Shape,
    by: &Column,
    op: Comparison,
    value: &Value,
) -> Result<Expr, BridgeError> {
    Ok(match bound(by, op, value)? {
        Bound::Never => never(by),
        Bound::Always => always(by),
        Bound::Compare(side) if side.left == Left::Json => {
            json_condition(shape, by, op == Comparison::Ne, |json| {
                comparison(json, op, side.right())
            })
        }
        Bound::Compare(side) if side.left == Left::Column => {
            compare_as(by, compared(by), side.op, side.right())
        }
        Bound::Compare(side) => comparison(left(by, side.left), side.op, side.right()),
    })
}

/// Compares a column with what is of its own type, by the operators that rows are ordered by: those of an extension
/// have names of their own, or are in a schema that is not searched.
pub(super) fn compare_as(by: &Column, left: Expr, op: Comparison, right: Expr) -> Expr {
    let Some(operators) = &by.operators else {
        return comparison(left, op, right);
    };
    let [lt, lte, eq, gte, gt] = &**operators;
    let (operator, negated) = match op {
        Comparison::Lt => (lt, false),
        Comparison::Lte => (lte, false),
        Comparison::Eq => (eq, false),
        Comparison::Ne => (eq, true),
        Comparison::Gte => (gte, false),
        Comparison::Gt => (gt, false),
    };
    let compared = Expr::cust_with_exprs(format!("($1 {operator} $2)"), [left, right]);
    if negated { compared.not() } else { compared }
}

fn left(by: &Column, left: Left) -> Expr {
    match left {
        Left::Column => compared(by),
        Left::Cast(to) => column(&by.name).cast_as(to),
        Left::Json => column(&by.name).cast_as("jsonb"),
    }
}

/// A condition on a column as `jsonb`; what `jsonb` cannot hold equals nothing that can be asked for.
fn json_condition(
    shape: &Shape,
    by: &Column,
    otherwise: bool,
    condition: impl FnOnce(Expr) -> Expr,
) -> Expr {
    let json = condition(left(by, Left::Json));
    if by.type_name == "jsonb" {
        return json;
    }
    let text = column(&by.name).cast_as("text");
    let otherwise = Expr::cust(if otherwise { "TRUE" } else { "FALSE" });
    let lacking = match shape.is_utf8 {
        true => NOT_JSONB.to_owned(),
        false => format!("{NOT_JSONB}{NOT_ASCII}"),
    };
    let bare = "regexp_replace($1, $2, '', 'g')";
    let bare = |regex: &str| {
        let template = format!("({bare} ~ $3)");
        Expr::cust_with_exprs(
            template,
            [text.clone(), Expr::val(STRINGS), Expr::val(regex)],
        )
    };
    Expr::cust_with_exprs(
        "(CASE WHEN replace($1, $2, '??') ~ $3 OR $4 OR (length($5) > 16000 AND $6) THEN $7 ELSE $8 END)",
        [
            text.clone(),
            Expr::val(ESCAPED_BACKSLASH),
            Expr::val(lacking),
            bare(ABSURD_NUMBER),
            text.clone(),
            bare(MANY_DIGITS),
            otherwise,
            json,
        ],
    )
}

/// Values that are compared alike go as one array.
pub(super) fn is_in(
    shape: &Shape,
    by: &Column,
    values: &[Value],
    negated: bool,
) -> Result<Expr, BridgeError> {
    let mut groups: Vec<(Side, Vec<Value>)> = Vec::new();
    for value in values {
        let Bound::Compare(side) = bound(by, Comparison::Eq, value)? else {
            continue;
        };
        let text = Value::from(side.text.as_str());
        let alike = |(other, _): &&mut (Side, _)| {
            other.left == side.left && other.type_name == side.type_name
        };
        match groups.iter_mut().find(alike) {
            Some((_, texts)) => texts.push(text),
            None => groups.push((side, vec![text])),
        }
    }
    let conditions = groups.into_iter().map(|(side, texts)| {
        let list = Expr::val(literal(&texts, ','));
        let list = match side.type_name.as_str() {
            "" => list,
            type_name => list.cast_as(format!("{type_name}[]")),
        };
        let list = match side.left {
            Left::Cast("text") => list.cast_as("text[]"),
            _ => list,
        };
        let own = by.operators.as_ref().filter(|_| side.left == Left::Column);
        let equal = own.map_or("=", |operators| operators[2].as_str());
        let template = match (negated, own) {
            (true, None) => "($1 <> ALL ($2))".to_owned(),
            (true, Some(_)) => format!("(NOT ($1 {equal} ANY ($2)))"),
            (false, _) => format!("($1 {equal} ANY ($2))"),
        };
        let listed = |left| Expr::cust_with_exprs(template, [left, list]);
        match side.left {
            Left::Json => json_condition(shape, by, negated, listed),
            other => listed(left(by, other)),
        }
    });
    let with = if negated { Expr::and } else { Expr::or };
    let all = join(conditions.collect(), with);
    Ok(all.unwrap_or_else(|| if negated { always(by) } else { never(by) }))
}

/// The string operators. Without case it is a regular expression that names both cases of each letter, so that no
/// locale of the server decides which letters there are. A database that does not have all letters could not even
/// read it; there its locale decides.
pub(super) fn matches(shape: &Shape, by: &Column, like: &Like, pattern: &str) -> Expr {
    // An extension's text has operators of its own, which may mind no case.
    let text = match (&by.class, &by.send) {
        (Class::Text, None) => column(&by.name),
        _ => column(&by.name).cast_as("text"),
    };
    if like.is_folded() && !shape.is_utf8 {
        return Expr::cust_with_exprs("($1 ILIKE $2)", [text, Expr::val(like.pattern())]);
    }
    if like.is_folded() {
        let regex = Expr::val(like.regex(Flavour::Postgres));
        return Expr::cust_with_exprs("(($1) COLLATE \"C\" ~ $2)", [text, regex]);
    }
    let template = if by.is_loose || by.send.is_some() {
        "(($1) COLLATE \"C\" LIKE $2)"
    } else {
        "($1 LIKE $2)"
    };
    Expr::cust_with_exprs(template, [text, Expr::val(pattern)])
}

pub(super) fn array_contains(by: &Column, value: &Value) -> Result<Expr, BridgeError> {
    let Class::Array(class) = &by.class else {
        return Ok(never(by));
    };
    if !by.has_equality {
        return Err(wrong(by, "arrays whose elements cannot be compared", value));
    }
    let one = std::slice::from_ref(value);
    let elements = value.as_array().map_or(one, Vec::as_slice);
    let list = Expr::val(array(by, class, elements)?).cast_as(by.type_name.clone());
    Ok(Expr::cust_with_exprs(
        "($1 @> $2)",
        [column(&by.name), list],
    ))
}

pub(super) fn json_contains(shape: &Shape, by: &Column, value: &Value) -> Expr {
    let value = Expr::val(value.to_string()).cast_as("jsonb");
    json_condition(shape, by, false, |json| {
        Expr::cust_with_exprs("($1 @> $2)", [json, value])
    })
}
