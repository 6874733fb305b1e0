//! Random filters mean on every database what they mean to a plain reading of the grammar, and no value of
//! one ever stands in the SQL.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::support::{ENGINES, TestDb, execution, field, parse, query, run};
use crate::bridge::request::{Query, Target};
use crate::bridge::sql::{Builder, Class, Column, Dialect, Page, Shape};
use crate::bridge::{BridgeOptions, Bridges};
use crate::query::filter::{Comparison, Filter, Pattern};

/// A row of the table: an integer, a text and a number with a fraction, each of which may be null.
type Item = (Option<i64>, Option<&'static str>, Option<f64>);

const ITEMS: [Item; 12] = [
    (Some(0), Some(""), Some(0.5)),
    (Some(1), Some("a"), None),
    (Some(2), Some("A"), Some(-1.25)),
    (Some(3), Some("ab%c"), Some(3.0)),
    (Some(-4), Some("ab_c"), Some(1e10)),
    (Some(5), Some("a\\b"), Some(0.5)),
    (None, Some("it's"), Some(2.0)),
    (Some(7), None, Some(7.75)),
    (None, None, None),
    (Some(70_000), Some("\"q\""), Some(-0.5)),
    (Some(2_147_483_647), Some("Ab%C"), Some(100.0)),
    (Some(-2_147_483_648), Some("zz"), Some(0.0)),
];

fn setup(engine: super::support::Engine) -> String {
    use super::support::Engine;
    let text = match engine {
        Engine::Postgres => "text COLLATE \"C\"",
        Engine::MySql => "VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin",
        Engine::Sqlite => "TEXT",
    };
    let double = if engine == Engine::Postgres {
        "double precision"
    } else {
        "DOUBLE"
    };
    let mut sql = format!("CREATE TABLE items (id INT PRIMARY KEY, n INT, s {text}, f {double});");
    for (id, (n, s, f)) in ITEMS.iter().enumerate() {
        let n = n.map_or("NULL".into(), |n| n.to_string());
        let f = f.map_or("NULL".into(), |f| f.to_string());
        let s = s.map_or("NULL".into(), |s| {
            let s = s.replace('\'', "''");
            format!(
                "'{}'",
                if engine == Engine::MySql {
                    s.replace('\\', "\\\\")
                } else {
                    s
                }
            )
        });
        sql.push_str(&format!("INSERT INTO items VALUES ({id}, {n}, {s}, {f});"));
    }
    sql
}

fn integers() -> impl Strategy<Value = Value> {
    let known =
        proptest::sample::select(ITEMS.iter().filter_map(|item| item.0).collect::<Vec<_>>());
    prop_oneof![
        known.prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-10..10_i64).prop_map(|n| json!(n as f64 + 0.5)),
    ]
}

fn texts() -> impl Strategy<Value = String> {
    let known =
        proptest::sample::select(ITEMS.iter().filter_map(|item| item.1).collect::<Vec<_>>());
    prop_oneof![known.prop_map(str::to_owned), "[aAbBz%_\\\\'\"`$?]{0,3}"]
}

fn numbers() -> impl Strategy<Value = Value> {
    let known =
        proptest::sample::select(ITEMS.iter().filter_map(|item| item.2).collect::<Vec<_>>());
    prop_oneof![
        known.prop_map(Value::from),
        (-1000..1000_i64).prop_map(|n| json!(n as f64 / 8.0))
    ]
}

fn operand() -> impl Strategy<Value = (&'static str, Value)> {
    prop_oneof![
        integers().prop_map(|value| ("n", value)),
        texts().prop_map(|value| ("s", Value::from(value))),
        numbers().prop_map(|value| ("f", value)),
    ]
}

fn operands() -> impl Strategy<Value = (&'static str, Vec<Value>)> {
    prop_oneof![
        prop::collection::vec(integers(), 1..4).prop_map(|values| ("n", values)),
        prop::collection::vec(texts().prop_map(Value::from), 1..4).prop_map(|values| ("s", values)),
        prop::collection::vec(numbers(), 1..4).prop_map(|values| ("f", values)),
    ]
}

fn filters() -> impl Strategy<Value = Filter> {
    let comparison = proptest::sample::select(Comparison::ALL.to_vec());
    // A pattern that ends within an escape is an error in one database and a match in another.
    let patterns = (proptest::sample::select(Pattern::ALL.to_vec()), texts())
        .prop_filter("ends within an escape", |(_, text)| {
            !text.replace("\\\\", "").ends_with('\\')
        });
    let leaf = prop_oneof![
        4 => (operand(), comparison).prop_map(|((field, value), op)| Filter::Compare { field: field.into(), op, value }),
        2 => (operands(), any::<bool>())
            .prop_map(|((field, values), negated)| Filter::In { field: field.into(), values, negated }),
        1 => (proptest::sample::select(vec!["n", "s", "f"]), any::<bool>())
            .prop_map(|(field, negated)| Filter::IsNull { field: field.into(), negated }),
        3 => patterns.prop_map(|(pattern, text)| Filter::Matches { field: "s".into(), pattern, text }),
        1 => Just(Filter::Nothing),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Filter::All),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Filter::Any),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}

/// The same filter in the JSON grammar.
fn to_json(filter: &Filter) -> Value {
    match filter {
        Filter::All(filters) => json!({"$and": filters.iter().map(to_json).collect::<Vec<_>>()}),
        Filter::Any(filters) => json!({"$or": filters.iter().map(to_json).collect::<Vec<_>>()}),
        Filter::Not(filter) => json!({"$not": to_json(filter)}),
        Filter::Compare { field, op, value } => json!({field: {op.as_str(): value}}),
        Filter::In {
            field,
            values,
            negated,
        } => json!({field: {if *negated { "$nin" } else { "$in" }: values}}),
        Filter::IsNull { field, negated } => json!({field: {"$exists": negated}}),
        Filter::Matches {
            field,
            pattern,
            text,
        } => json!({field: {pattern.as_str(): text}}),
        Filter::Contains { field, value } => json!({field: {"$contains": value}}),
        Filter::Nothing => json!({"n": {"$in": []}}),
    }
}

/// What the grammar says of one row, in three-valued logic.
fn holds(filter: &Filter, item: &Item) -> Option<bool> {
    match filter {
        Filter::All(filters) => decided(filters, item, false),
        Filter::Any(filters) => decided(filters, item, true),
        Filter::Not(filter) => holds(filter, item).map(|holds| !holds),
        Filter::Nothing => Some(false),
        // None of these columns holds anything that could be contained.
        Filter::Contains { field, .. } => value(field, item).map(|_| false),
        Filter::IsNull { field, negated } => Some(value(field, item).is_none() != *negated),
        Filter::Compare {
            field,
            op,
            value: operand,
        } => {
            let order = order(&value(field, item)?, operand);
            Some(match op {
                Comparison::Eq => order.is_eq(),
                Comparison::Ne => order.is_ne(),
                Comparison::Gt => order.is_gt(),
                Comparison::Gte => order.is_ge(),
                Comparison::Lt => order.is_lt(),
                Comparison::Lte => order.is_le(),
            })
        }
        Filter::In {
            field,
            values,
            negated,
        } => {
            let value = value(field, item)?;
            Some(values.iter().any(|operand| order(&value, operand).is_eq()) != *negated)
        }
        Filter::Matches { pattern, text, .. } => {
            let value = item.1?;
            let (lower, needle) = (value.to_lowercase(), text.to_lowercase());
            Some(match pattern {
                Pattern::Like => like(value, text),
                Pattern::Ilike => like(&lower, &needle),
                Pattern::Contains => lower.contains(&needle),
                Pattern::StartsWith => lower.starts_with(&needle),
                Pattern::EndsWith => lower.ends_with(&needle),
            })
        }
    }
}

/// One that is `deciding` decides; else one that is unknown leaves the whole unknown.
fn decided(filters: &[Filter], item: &Item, deciding: bool) -> Option<bool> {
    let all: Vec<_> = filters.iter().map(|filter| holds(filter, item)).collect();
    match all.contains(&Some(deciding)) {
        true => Some(deciding),
        false if all.contains(&None) => None,
        false => Some(!deciding),
    }
}

fn value(field: &str, item: &Item) -> Option<Value> {
    match field {
        "n" => item.0.map(Value::from),
        "s" => item.1.map(Value::from),
        _ => item.2.map(Value::from),
    }
}

fn order(left: &Value, right: &Value) -> std::cmp::Ordering {
    match (left, right) {
        (Value::String(left), Value::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        _ => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => left.as_f64().unwrap().total_cmp(&right.as_f64().unwrap()),
        },
    }
}

fn like(text: &str, pattern: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('%') => {
            (0..=text.len()).any(|i| text.is_char_boundary(i) && like(&text[i..], rest.as_str()))
        }
        Some(c) => {
            let (wanted, any) = match c {
                '_' => (None, true),
                '\\' => (rest.next(), false),
                c => (Some(c), false),
            };
            let mut chars = text.chars();
            chars.next().is_some_and(|c| any || Some(c) == wanted)
                && like(chars.as_str(), rest.as_str())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_filters_select_what_the_grammar_says() {
    for engine in ENGINES {
        let db = TestDb::new(engine, &setup(engine)).await;
        let bridges = Bridges::new(BridgeOptions::default());
        let mut runner = TestRunner::new(Config::default());
        for _ in 0..400 {
            let filter = filters().new_tree(&mut runner).unwrap().current();
            let options =
                json!({"where": to_json(&filter), "orderBy": {"id": "asc"}, "select": ["id"]});
            let answer = run(
                &bridges,
                &db.source,
                &query("items", options.clone()),
                &execution(),
            )
            .await;
            let (batches, _) =
                answer.unwrap_or_else(|error| panic!("{engine:?} {options}: {error:?}"));
            let ids = ITEMS
                .iter()
                .enumerate()
                .filter(|(_, item)| holds(&filter, item) == Some(true));
            let expected: Vec<_> = ids.map(|(id, _)| json!(id)).collect();
            assert_eq!(
                field(&parse(&batches), "id"),
                expected,
                "{engine:?} {options}"
            );
        }
    }
}

fn marked() -> impl Strategy<Value = Filter> {
    filters().prop_map(mark)
}

/// Puts a mark into every text of a filter.
fn mark(filter: Filter) -> Filter {
    match filter {
        Filter::All(filters) => Filter::All(filters.into_iter().map(mark).collect()),
        Filter::Any(filters) => Filter::Any(filters.into_iter().map(mark).collect()),
        Filter::Not(filter) => Filter::Not(Box::new(mark(*filter))),
        Filter::Compare { field, op, .. } => Filter::Compare {
            field,
            op,
            value: json!("7777777"),
        },
        Filter::In {
            field,
            values,
            negated,
        } => Filter::In {
            field,
            values: vec![json!("7777777"); values.len()],
            negated,
        },
        Filter::Matches {
            field,
            pattern,
            text,
        } => Filter::Matches {
            field,
            pattern,
            text: format!("{text}7777777"),
        },
        other => other,
    }
}

proptest! {
    #[test]
    fn no_value_stands_in_the_sql(filter in marked(), limit in 1_000_000_000_u64..) {
        let limit = limit % (1 << 62);
        let column = |name: &str, class, type_name: &str| Column { class, type_name: type_name.into(), ..Column::unknown(name) };
        let columns = [
            column("n", Class::Integer, "integer"),
            column("s", Class::Text, "text"),
            column("f", Class::Double, "double precision"),
        ];
        let table = Target::parse("items").unwrap().readings()[0].clone();
        let shape = Shape::new(table, columns.to_vec(), Vec::new(), false);
        for dialect in [Dialect::Postgres, Dialect::MySql, Dialect::MariaDb, Dialect::Sqlite] {
            let query = Query {
                target: Target::parse("items").unwrap(),
                filter: filter.clone(),
                order: Vec::new(),
                limit: Some(limit),
                offset: Some(limit),
                select: None,
                total: false,
            };
            let execution = execution();
            let builder = Builder { dialect, shape: &shape, types: &execution.types,
            read: Vec::new(), };
            let (statement, _) = Page::new(builder, &query, &execution).unwrap().next::<()>().unwrap().unwrap();
            prop_assert!(!statement.sql.contains("7777777"), "{}", statement.sql);
            prop_assert!(!statement.sql.contains(&limit.to_string()), "{}", statement.sql);
        }
    }
}
