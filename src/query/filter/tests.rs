use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::query::grammar::{GrammarCode, GrammarError};

fn compare(field: &str, op: Comparison, value: Value) -> Filter {
    Filter::Compare {
        field: field.into(),
        op,
        value,
    }
}

fn eq(field: &str, value: Value) -> Filter {
    compare(field, Comparison::Eq, value)
}

fn list(field: &str, values: Value, negated: bool) -> Filter {
    Filter::In {
        field: field.into(),
        values: values.as_array().unwrap().clone(),
        negated,
    }
}

fn null(field: &str, negated: bool) -> Filter {
    Filter::IsNull {
        field: field.into(),
        negated,
    }
}

fn matches(field: &str, pattern: Pattern, text: &str) -> Filter {
    Filter::Matches {
        field: field.into(),
        pattern,
        text: text.into(),
    }
}

#[test]
fn every_form_of_the_grammar_parses() {
    use Comparison::*;
    let cases = [
        (json!({}), Filter::everything()),
        (json!({"a": 1}), eq("a", json!(1))),
        (
            json!({"a": "x", "b": true}),
            Filter::All(vec![eq("a", json!("x")), eq("b", json!(true))]),
        ),
        (json!({"a": null}), null("a", false)),
        (json!({"a": {"$eq": null}}), null("a", false)),
        (json!({"a": {"$ne": null}}), null("a", true)),
        (json!({"a": {"$exists": true}}), null("a", true)),
        (json!({"a": {"$exists": false}}), null("a", false)),
        (json!({"a": [1, 2]}), list("a", json!([1, 2]), false)),
        (json!({"a": {"$in": [1]}}), list("a", json!([1]), false)),
        (json!({"a": {"$nin": ["x"]}}), list("a", json!(["x"]), true)),
        (
            json!({"a": {"$eq": {"k": [1]}}}),
            eq("a", json!({"k": [1]})),
        ),
        (json!({"a": {"$eq": [1]}}), eq("a", json!([1]))),
        (json!({"a": {"$ne": 1}}), compare("a", Ne, json!(1))),
        (
            json!({"a": {"$gt": 1, "$lte": 2.5}}),
            Filter::All(vec![
                compare("a", Gt, json!(1)),
                compare("a", Lte, json!(2.5)),
            ]),
        ),
        (
            json!({"a": {"$gte": "x", "$lt": "y"}}),
            Filter::All(vec![
                compare("a", Gte, json!("x")),
                compare("a", Lt, json!("y")),
            ]),
        ),
        (
            json!({"a": {"$like": "x%"}}),
            matches("a", Pattern::Like, "x%"),
        ),
        (
            json!({"a": {"$ilike": "x_"}}),
            matches("a", Pattern::Ilike, "x_"),
        ),
        (
            json!({"a": {"$contains": "50%"}}),
            matches("a", Pattern::Contains, "50%"),
        ),
        (
            json!({"a": {"$startsWith": ""}}),
            matches("a", Pattern::StartsWith, ""),
        ),
        (
            json!({"a": {"$endsWith": "\\"}}),
            matches("a", Pattern::EndsWith, "\\"),
        ),
        (
            json!({"$or": [{"a": 1}, {"b": 2}]}),
            Filter::Any(vec![eq("a", json!(1)), eq("b", json!(2))]),
        ),
        (
            json!({"c": 3, "$and": [{"a": 1}, {"b": 2}]}),
            Filter::All(vec![
                eq("c", json!(3)),
                eq("a", json!(1)),
                eq("b", json!(2)),
            ]),
        ),
        (
            json!({"$not": {"a": 1}}),
            Filter::Not(Box::new(eq("a", json!(1)))),
        ),
    ];
    for (json, expected) in cases {
        assert_eq!(parse(&json), Ok(expected), "{json}");
    }
}

#[test]
fn clauses_without_conditions_are_ignored_wherever_they_stand() {
    let a = || eq("a", json!(1));
    for (json, expected) in [
        (json!({"$and": []}), Filter::everything()),
        (json!({"$or": []}), Filter::everything()),
        (json!({"$not": {}}), Filter::everything()),
        (json!({"$not": {"$and": []}}), Filter::everything()),
        (json!({"b": {}}), Filter::everything()),
        (json!({"a": 1, "$or": [], "$not": {"$or": [{}]}}), a()),
        (json!({"$or": [{}, {"a": 1}]}), a()),
        (json!({"$and": [{}, {"a": 1}, {"b": {}}]}), a()),
        (json!({"$or": [{}, {}]}), Filter::everything()),
    ] {
        assert_eq!(parse(&json), Ok(expected), "{json}");
    }
}

#[test]
fn what_cannot_match_is_nothing_and_what_must_match_is_no_condition() {
    for (json, expected) in [
        (json!({"a": {"$in": []}}), Filter::Nothing),
        (json!({"a": []}), Filter::Nothing),
        (json!({"a": {"$nin": []}}), Filter::everything()),
        (json!({"a": {"$contains": null}}), Filter::Nothing),
        (json!({"a": {"$startsWith": 5}}), Filter::Nothing),
        (json!({"a": {"$like": null}}), Filter::Nothing),
        (json!({"b": 1, "a": {"$in": []}}), Filter::Nothing),
        (
            json!({"$or": [{"b": 1}, {"a": {"$in": []}}]}),
            eq("b", json!(1)),
        ),
        (
            json!({"$or": [{"b": 1}, {"a": {"$nin": []}}]}),
            Filter::everything(),
        ),
        (
            json!({"$or": [{"a": []}, {"a": {"$ilike": 1}}]}),
            Filter::Nothing,
        ),
        (json!({"$not": {"a": {"$in": []}}}), Filter::everything()),
        (json!({"$not": {"a": {"$nin": []}}}), Filter::Nothing),
        (json!({"$not": {"$not": {"a": []}}}), Filter::Nothing),
    ] {
        assert_eq!(parse(&json), Ok(expected), "{json}");
    }
}

#[test]
fn a_null_in_a_list_is_sqls_null() {
    let not = |filter| Filter::Not(Box::new(filter));
    for (json, expected) in [
        (json!({"a": [1, null]}), list("a", json!([1]), false)),
        (json!({"a": {"$in": [null]}}), Filter::Nothing),
        (json!({"a": {"$nin": [1, null]}}), Filter::Nothing),
        (json!({"a": {"$nin": [null]}}), Filter::Nothing),
        (json!({"$not": {"a": {"$in": [1, null]}}}), Filter::Nothing),
        (json!({"$not": {"a": {"$in": [null]}}}), Filter::Nothing),
        (
            json!({"$not": {"a": {"$nin": [1, null]}}}),
            not(list("a", json!([1]), true)),
        ),
        (
            json!({"$not": {"$not": {"a": [1, null]}}}),
            not(not(list("a", json!([1]), false))),
        ),
    ] {
        assert_eq!(parse(&json), Ok(expected), "{json}");
    }
}

#[test]
fn mistakes_name_their_path_and_what_to_do() {
    use GrammarCode::*;
    let cases = [
        (
            json!(5),
            "where",
            InvalidRequest,
            "must be an object of conditions, not a number",
        ),
        (
            json!({"$or": {"a": 1}}),
            "where.$or",
            InvalidRequest,
            "must be an array of conditions, not an object",
        ),
        (
            json!({"$or": [{}, 1]}),
            "where.$or[1]",
            InvalidRequest,
            "must be an object of conditions, not a number",
        ),
        (
            json!({"$not": []}),
            "where.$not",
            InvalidRequest,
            "must be an object of conditions, not an array",
        ),
        (
            json!({"a": {"$gt": null}}),
            "where.a.$gt",
            InvalidRequest,
            "null has no order; use `$eq`, `$ne` or `$exists`",
        ),
        (
            json!({"a": {"$lte": [1]}}),
            "where.a.$lte",
            InvalidRequest,
            "must be a string, a number or a boolean, not an array",
        ),
        (
            json!({"a": {"$in": 1}}),
            "where.a.$in",
            InvalidRequest,
            "must be an array, not a number",
        ),
        (
            json!({"a": [1, [2]]}),
            "where.a[1]",
            InvalidRequest,
            "must be a string, a number, a boolean or null, not an array",
        ),
        (
            json!({"a": {"$exists": 1}}),
            "where.a.$exists",
            InvalidRequest,
            "must be true or false, not a number",
        ),
        (
            json!({"a": {"$gtt": 1}}),
            "where.a.$gtt",
            UnsupportedOperator,
            "unknown operator `$gtt`; did you mean `$gt`?",
        ),
        (
            json!({"a": {"$startswith": "x"}}),
            "where.a.$startswith",
            UnsupportedOperator,
            "unknown operator `$startswith`; did you mean `$startsWith`?",
        ),
        (
            json!({"a": {"$regex": "x"}}),
            "where.a.$regex",
            UnsupportedOperator,
            "unknown operator `$regex`",
        ),
        (
            json!({"$nor": []}),
            "where.$nor",
            UnsupportedOperator,
            "unknown operator `$nor`; did you mean `$or`?",
        ),
        (
            json!({"$gt": 5}),
            "where.$gt",
            InvalidRequest,
            "`$gt` belongs under a field: {\"field\": {\"$gt\": …}}",
        ),
        (
            json!({"a": {"$not": {"$gt": 1}}}),
            "where.a.$not",
            InvalidRequest,
            "`$not` stands beside fields, not under one: {\"$not\": …} with the field inside",
        ),
        (
            json!({"a": {"b": 1}}),
            "where.a.b",
            InvalidRequest,
            "an object under a field holds operators; to compare with a JSON object use `$eq`",
        ),
        (
            json!({"": 1}),
            "where.",
            InvalidRequest,
            "a field name must not be empty or contain a NUL byte",
        ),
        (
            json!({"a\0": 1}),
            "where.a",
            InvalidRequest,
            "a field name must not be empty or contain a NUL byte",
        ),
        (
            json!({"a": "\0"}),
            "where.a",
            InvalidRequest,
            "a value must not contain a NUL byte",
        ),
        (
            json!({"a": ["x", "\0"]}),
            "where.a",
            InvalidRequest,
            "a value must not contain a NUL byte",
        ),
        (
            json!({"a": {"$eq": {"\0": 1}}}),
            "where.a.$eq",
            InvalidRequest,
            "a value must not contain a NUL byte",
        ),
        (
            json!({"a": {"$contains": "\0"}}),
            "where.a.$contains",
            InvalidRequest,
            "a value must not contain a NUL byte",
        ),
    ];
    for (json, path, code, message) in cases {
        let expected = GrammarError {
            path: path.into(),
            code,
            message: message.into(),
        };
        assert_eq!(parse(&json), Err(expected), "{json}");
    }
}

/// A field `n` of numbers, and others of anything.
struct Numbers;

impl Fields for Numbers {
    fn named(&mut self, field: &str) -> Result<String, String> {
        Ok(field.to_owned())
    }

    fn check(&self, field: &str, value: &Value) -> Result<(), String> {
        match field == "n" && !value.is_number() {
            true => Err("must be a number".to_owned()),
            false => Ok(()),
        }
    }
}

#[test]
fn values_are_checked_where_they_stand() {
    let error = |json: Value| {
        parse_with(&json, "where", Limits::REQUEST, &mut Numbers).map_err(|error| error.path)
    };
    for (json, path) in [
        (json!({"n": "x"}), "where.n"),
        (json!({"n": {"$gt": "x"}}), "where.n.$gt"),
        (
            json!({"$or": [{"a": 1}, {"n": {"$in": [1, null, "x"]}}]}),
            "where.$or[1].n.$in[2]",
        ),
        (json!({"n": [1, "x"]}), "where.n[1]"),
    ] {
        assert_eq!(error(json), Err(path.to_owned()));
    }
    assert!(
        error(json!({"n": {"$ne": null, "$in": [1, null], "$contains": "x"}, "a": "x"})).is_ok()
    );
}

#[test]
fn a_pattern_that_ends_within_an_escape_is_refused_at_its_path() {
    let error = parse(&json!({"a": {"$like": "C:\\"}})).unwrap_err();
    assert_eq!(
        (error.path.as_str(), error.code),
        ("where.a.$like", GrammarCode::InvalidRequest)
    );
    assert!(
        error.message.contains("single backslash"),
        "{}",
        error.message
    );
    assert!(parse(&json!({"a": {"$contains": "C:\\"}})).is_ok());
}

#[test]
fn depth_and_size_are_limited() {
    let parse_request = |json: &Value| {
        parse_with(json, "where", Limits::REQUEST, &mut |name: &str| {
            Ok(name.to_owned())
        })
    };
    let nested = |depth: usize| (1..depth).fold(json!({"a": 1}), |inner, _| json!({"$not": inner}));
    assert!(parse_request(&nested(32)).is_ok());
    let error = parse_request(&nested(33)).unwrap_err();
    assert_eq!(error.message, "nested deeper than 32 levels");
    assert_eq!(error.path, format!("where{}", ".$not".repeat(32)));
    assert!(parse(&nested(40)).is_ok());
    assert!(parse(&nested(41)).is_err());

    let wide = |terms: usize| json!({"$or": vec![json!({"a": 1}); terms]});
    assert!(parse_request(&wide(1000)).is_ok());
    assert_eq!(
        parse_request(&wide(1001)).unwrap_err().message,
        "more than 1000 conditions"
    );
    assert!(parse(&wide(4000)).is_ok());
    assert!(parse(&wide(4001)).is_err());
    assert!(
        parse_request(&json!({"a": vec![1; 5000]})).is_ok(),
        "list values are not conditions"
    );
}

#[test]
fn renaming_reports_unknown_fields_where_they_stand() {
    let mut rename = |field: &str| match field {
        "price" => Ok("price_cents".to_owned()),
        other => Err(format!("unknown field `{other}`")),
    };
    let parsed = parse_with(
        &json!({"price": {"$gt": 1}}),
        "where",
        Limits::REQUEST,
        &mut rename,
    );
    assert_eq!(parsed, Ok(compare("price_cents", Comparison::Gt, json!(1))));
    let error = parse_with(
        &json!({"$or": [{"prise": 1}]}),
        "where",
        Limits::REQUEST,
        &mut rename,
    )
    .unwrap_err();
    assert_eq!(
        (error.path.as_str(), error.code),
        ("where.$or[0].prise", GrammarCode::UnknownField)
    );
}

#[test]
fn fields_are_listed_and_renamed_everywhere() {
    let filter =
        parse(&json!({"a": 1, "$or": [{"b": [1]}, {"$not": {"c": null}}], "d": {"$like": "x"}}))
            .unwrap();
    assert_eq!(filter.fields(), ["a", "b", "c", "d"]);
    let renamed = filter
        .clone()
        .map_fields(|name| Ok::<_, ()>(format!("{name}_")));
    assert_eq!(renamed.unwrap().fields(), ["a_", "b_", "c_", "d_"]);
    assert_eq!(
        filter.map_fields(|name| if name == "c" {
            Err("c")
        } else {
            Ok(name.into())
        }),
        Err("c")
    );
}

#[test]
fn the_written_form_is_as_flat_as_it_can_be() {
    for (json, written) in [
        (
            json!({"a": {"$gt": 1, "$lt": 5}, "b": "x"}),
            json!({"a": {"$gt": 1, "$lt": 5}, "b": "x"}),
        ),
        (
            json!({"a": {"$exists": true}, "b": [1]}),
            json!({"a": {"$ne": null}, "b": {"$in": [1]}}),
        ),
        (
            json!({"$and": [{"a": 1}, {"b": 2}]}),
            json!({"a": 1, "b": 2}),
        ),
        (
            json!({"$and": [{"a": {"$gt": 1}}, {"a": {"$gt": 2}}]}),
            json!({"$and": [{"a": {"$gt": 1}}, {"a": {"$gt": 2}}]}),
        ),
        (json!({"a": {"$eq": [1]}}), json!({"a": {"$eq": [1]}})),
        (json!({"a": []}), json!({"_": {"$in": []}})),
        (
            json!({"$or": [{"a": 1, "b": 2}, {"c": null}]}),
            json!({"$or": [{"a": 1, "b": 2}, {"c": null}]}),
        ),
    ] {
        assert_eq!(parse(&json).unwrap().to_json(), written);
    }
}

#[test]
fn and_adds_conditions_and_nothing_wins() {
    let (a, b) = (eq("a", json!(1)), eq("b", json!(2)));
    assert_eq!(Filter::everything().and(a.clone()), a);
    assert_eq!(a.clone().and(b.clone()), Filter::All(vec![a.clone(), b]));
    assert_eq!(a.and(Filter::Nothing), Filter::Nothing);
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>()
            .prop_filter("JSON has no others", |n| n.is_finite())
            .prop_map(Value::from),
        "[^\0]{0,6}".prop_map(Value::from),
    ]
}

fn leaf() -> impl Strategy<Value = Filter> {
    let field = || "[a-c_%. é]{1,3}".prop_map(String::from);
    prop_oneof![
        (
            field(),
            prop::sample::select(Comparison::ALL.to_vec()),
            scalar()
        )
            .prop_map(|(field, op, value)| Filter::Compare { field, op, value }),
        (field(), prop::collection::vec(scalar(), 0..3)).prop_map(|(field, values)| {
            Filter::Compare {
                field,
                op: Comparison::Eq,
                value: values.into(),
            }
        }),
        (
            field(),
            prop::collection::vec(scalar(), 1..4),
            any::<bool>()
        )
            .prop_map(|(field, values, negated)| Filter::In {
                field,
                values,
                negated
            }),
        (field(), any::<bool>()).prop_map(|(field, negated)| Filter::IsNull { field, negated }),
        (
            field(),
            prop::sample::select(Pattern::ALL.to_vec()),
            "[^\0]{0,4}"
        )
            .prop_filter("ends within an escape", |(_, pattern, text)| {
                crate::query::like::Like::parse(*pattern, text).is_ok()
            })
            .prop_map(|(field, pattern, text)| Filter::Matches {
                field,
                pattern,
                text
            }),
        (field(), prop::collection::vec(scalar(), 0..3)).prop_map(|(field, values)| {
            Filter::Contains {
                field,
                value: values.into(),
            }
        }),
        Just(Filter::Nothing),
    ]
}

fn filter() -> impl Strategy<Value = Filter> {
    leaf().prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Filter::all),
            prop::collection::vec(inner.clone(), 0..5).prop_map(Filter::any),
            inner.prop_map(Filter::not),
        ]
    })
}

proptest! {
    #[test]
    fn writing_and_parsing_are_inverse(filter in filter()) {
        let text = filter.to_json().to_string();
        let json: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(parse(&json), Ok(filter), "{}", text);
    }
}
