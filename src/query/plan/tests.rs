use std::cmp::Ordering;

use proptest::prelude::*;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::*;
use crate::query::filter::{self, Comparison};
use crate::query::grants::Caller;

fn lens(primary_key: Value) -> Lens {
    Lens::parse(&json!({
        "name": "products", "source": "shop", "table": "shop.products", "primaryKey": primary_key,
        "fields": {
            "id": {"type": "number"},
            "group": {"type": "number", "from": "group_no"},
            "title": {"type": "text", "from": "product_title"},
            "price": {"type": "number", "from": "price_cents"},
            "tenant": {"type": "text", "from": "tenant_id"},
        },
        "grants": {"query": {"filter": {"tenant": "$claims.tenant"}}},
    }))
    .unwrap()
}

fn cursors() -> CursorKeys {
    CursorKeys::new(Zeroizing::new([1; 32]), None)
}

/// A lens with one caller on it.
struct Fixture {
    environment: EnvironmentId,
    lens_id: LensId,
    lens: Lens,
    access: Access,
    cursors: CursorKeys,
}

impl Fixture {
    fn new(primary_key: Value) -> Self {
        let lens = lens(primary_key);
        let access = lens.admit(&Caller::Secret).unwrap();
        Self {
            environment: EnvironmentId::new(),
            lens_id: LensId::new(),
            lens,
            access,
            cursors: cursors(),
        }
    }

    fn for_tenant(mut self, tenant: &str) -> Self {
        let claims = json!({ "tenant": tenant });
        self.access = self
            .lens
            .admit(&Caller::Publishable {
                claims: claims.as_object(),
            })
            .unwrap();
        self
    }

    fn planner(&self) -> Planner<'_> {
        Planner {
            environment: self.environment,
            lens_id: self.lens_id,
            lens: &self.lens,
            access: &self.access,
            cursors: &self.cursors,
        }
    }

    fn query(&self, body: &Value) -> Result<Plan, GrammarError> {
        self.planner().query(QueryRequest::parse(body, &self.lens)?)
    }

    /// The plan of the page behind `last`.
    fn second_page(&self, mut body: Value, last: &[Value]) -> Plan {
        let plan = self.query(&body).unwrap();
        body["cursor"] = plan
            .next_cursor(plan.limit, Some(last), &self.cursors)
            .unwrap()
            .into();
        self.query(&body).unwrap()
    }
}

#[test]
fn a_plain_request_is_planned_in_the_sources_names() {
    let fixture = Fixture::new(json!("id"));
    let plan = fixture
        .query(&json!({"where": {"price": 5}, "select": ["title"]}))
        .unwrap();
    assert_eq!(plan.operation.kind, Kind::Query);
    assert_eq!(plan.operation.target.as_deref(), Some("shop.products"));
    assert_eq!(
        Value::Object(plan.operation.options),
        json!({
            "where": {"price_cents": 5},
            "orderBy": [{"field": "id", "dir": "asc"}],
            "limit": 100,
            "select": ["product_title", "id"],
        })
    );
    assert_eq!(
        plan.fields,
        [("product_title".to_owned(), "title".to_owned())]
    );
    assert_eq!(plan.paging.keys, ["id"]);
}

#[test]
fn order_offset_and_total_are_passed_on_and_the_primary_key_breaks_ties() {
    let fixture = Fixture::new(json!(["group", "id"]));
    let body = json!({"orderBy": [{"field": "title"}, {"field": "id", "dir": "desc"}], "offset": 5, "limit": 2, "total": true});
    let plan = fixture.query(&body).unwrap();
    assert_eq!(
        Value::Object(plan.operation.options),
        json!({
            "orderBy": [
                {"field": "product_title", "dir": "asc"},
                {"field": "id", "dir": "desc"},
                {"field": "group_no", "dir": "asc"},
            ],
            "limit": 2,
            "offset": 5,
            "select": ["id", "group_no", "product_title", "price_cents", "tenant_id"],
            "total": true,
        })
    );
    assert_eq!(plan.paging.keys, ["product_title", "id", "group_no"]);
}

#[test]
fn the_row_filter_joins_every_where_and_count() {
    let fixture = Fixture::new(json!("id")).for_tenant("t1");
    let plan = fixture
        .query(&json!({"where": {"$or": [{"tenant": "t2"}, {"price": 1}]}}))
        .unwrap();
    assert_eq!(
        plan.operation.options["where"],
        json!({"$or": [{"tenant_id": "t2"}, {"price_cents": 1}], "tenant_id": "t1"})
    );
    let request = CountRequest::parse(&json!({"where": {"price": 1}}), &fixture.lens).unwrap();
    let count = fixture.planner().count(request);
    assert_eq!(count.operation.kind, Kind::Count);
    assert_eq!(
        Value::Object(count.operation.options),
        json!({"where": {"price_cents": 1, "tenant_id": "t1"}})
    );
}

#[test]
fn only_a_full_page_is_followed_by_another() {
    let fixture = Fixture::new(json!("id"));
    let plan = fixture.query(&json!({"limit": 2})).unwrap();
    let last = [json!(7)];
    assert!(plan.next_cursor(2, Some(&last), &fixture.cursors).is_some());
    assert!(plan.next_cursor(1, Some(&last), &fixture.cursors).is_none());
    assert!(plan.next_cursor(2, None, &fixture.cursors).is_none());
    assert!(plan.next_cursor(2, Some(&[]), &fixture.cursors).is_none());
    let none = fixture.query(&json!({"limit": 0})).unwrap();
    assert!(none.next_cursor(0, Some(&last), &fixture.cursors).is_none());
}

#[test]
fn a_cursor_becomes_a_condition_for_a_runner_that_knows_no_pages() {
    let fixture = Fixture::new(json!("id"));
    let page = |order: Value, last: &[Value]| {
        let plan = fixture.second_page(json!({"where": {"tenant": "t"}, "orderBy": order}), last);
        assert_eq!(plan.operation.options["where"], json!({"tenant_id": "t"}));
        continued_by_filter(&plan.operation, &plan.paging)
            .unwrap()
            .options["where"]
            .clone()
    };
    assert_eq!(
        page(json!([]), &[json!(7)]),
        json!({"tenant_id": "t", "$or": [{"id": {"$gt": 7}}, {"id": null}]}),
        "nobody here knows that a key is never null"
    );
    assert_eq!(
        page(json!({"price": "asc"}), &[json!(5), json!(7)]),
        json!({"tenant_id": "t", "$or": [{"price_cents": {"$gt": 5}}, {"price_cents": null}, {"price_cents": 5, "$or": [{"id": {"$gt": 7}}, {"id": null}]}]})
    );
    assert_eq!(
        page(json!({"price": "asc"}), &[json!(null), json!(7)]),
        json!({"tenant_id": "t", "price_cents": null, "$or": [{"id": {"$gt": 7}}, {"id": null}]})
    );
    assert_eq!(
        page(json!({"price": "desc"}), &[json!(5), json!(7)]),
        json!({
            "tenant_id": "t",
            "price_cents": {"$lte": 5},
            "$or": [{"price_cents": {"$lt": 5}}, {"price_cents": 5, "$or": [{"id": {"$gt": 7}}, {"id": null}]}],
        })
    );
    assert_eq!(
        page(json!({"price": "desc"}), &[json!(null), json!(7)]),
        json!({"tenant_id": "t", "$or": [{"price_cents": {"$ne": null}}, {"price_cents": null, "$or": [{"id": {"$gt": 7}}, {"id": null}]}]})
    );
}

#[test]
fn a_cursor_is_refused_where_it_cannot_work() {
    let fixture = Fixture::new(json!("id"));
    let body = json!({"where": {"price": {"$gt": 5}}, "orderBy": {"title": "asc"}, "limit": 1});
    let cursor = |last: &[Value]| {
        fixture
            .query(&body)
            .unwrap()
            .next_cursor(1, Some(last), &fixture.cursors)
            .unwrap()
    };
    let with = |cursor: String, change: &dyn Fn(&mut Value)| {
        let mut body = body.clone();
        body["cursor"] = cursor.into();
        change(&mut body);
        fixture
            .query(&body)
            .map(|_| ())
            .map_err(|error| (error.path, error.message))
    };
    let good = || cursor(&[json!("a"), json!(1)]);
    assert_eq!(with(good(), &|_| {}), Ok(()));
    assert_eq!(with(good(), &|body| body["limit"] = json!(50)), Ok(()));
    assert_eq!(with(good(), &|body| body["select"] = json!(["id"])), Ok(()));
    let other = |change: &dyn Fn(&mut Value)| {
        let (path, message) = with(good(), change).unwrap_err();
        assert_eq!(path, "cursor");
        assert!(
            message.starts_with("cursor belongs to another query"),
            "{message}"
        );
    };
    other(&|body| body["where"]["price"]["$gt"] = json!(6));
    other(&|body| body["orderBy"]["title"] = json!("desc"));
    other(&|body| body["orderBy"] = json!([]));
    let elsewhere = Fixture {
        cursors: cursors(),
        ..Fixture::new(json!("id"))
    };
    let mut copied = body.clone();
    copied["cursor"] = good().into();
    assert!(
        elsewhere
            .query(&copied)
            .unwrap_err()
            .message
            .starts_with("cursor belongs to another query")
    );

    let (path, message) = with(good(), &|body| body["total"] = json!(true)).unwrap_err();
    assert_eq!(
        (path.as_str(), message.as_str()),
        (
            "total",
            "`total` is counted with the first page; leave it out with a cursor"
        )
    );
}

#[test]
fn an_order_whose_values_do_not_tell_it_has_no_next_page_on_a_runner_that_knows_no_pages() {
    let fixture = Fixture::new(json!("id"));
    let plan = fixture
        .query(&json!({"orderBy": {"title": "asc"}}))
        .unwrap();
    let reason = |types: &ColumnTypes, value: Value| {
        not_continued_by_filter(&plan.paging, types, &[value, json!(1)])
    };
    assert_eq!(reason(&plan.types, json!("a")), None);
    assert_eq!(
        reason(&plan.types, json!([1])).unwrap(),
        "rows ordered by column `product_title`, which holds an array, have no next page; use `offset`"
    );
    let types = ColumnTypes::from([("product_title".to_owned(), FieldType::Enum)]);
    assert!(reason(&types, json!("a")).unwrap().contains("an enum"));
    // What another kind of runner said is not for this one.
    let after = Some(vec![json!({"single": "1"}), json!(1)]);
    let paging = Paging {
        after,
        ..plan.paging.clone()
    };
    assert_eq!(
        continued_by_filter(&plan.operation, &paging),
        Err(NotOnThisRunner)
    );
}

#[test]
fn a_cursor_is_bound_to_the_row_filter() {
    let fixture = Fixture::new(json!("id")).for_tenant("t1");
    let mut body = json!({"limit": 1});
    let cursor = fixture
        .query(&body)
        .unwrap()
        .next_cursor(1, Some(&[json!(1)]), &fixture.cursors);
    body["cursor"] = cursor.into();
    assert!(fixture.query(&body).is_ok());
    assert!(fixture.for_tenant("t2").query(&body).is_err());
}

/// A database of one table: three-valued logic, nulls last ascending and first descending.
mod table {
    use super::*;

    pub(super) fn page(rows: &[Value], options: &Map<String, Value>) -> Vec<Value> {
        let filter = options
            .get("where")
            .map_or(Filter::everything(), |json| filter::parse(json).unwrap());
        let order = order::parse(&options["orderBy"]).unwrap();
        let mut rows: Vec<Value> = rows
            .iter()
            .filter(|row| holds(&filter, row) == Some(true))
            .cloned()
            .collect();
        rows.sort_by(|a, b| compare_rows(&order, a, b));
        rows.truncate(options["limit"].as_u64().unwrap() as usize);
        rows
    }

    fn compare_rows(order: &[OrderBy], a: &Value, b: &Value) -> Ordering {
        order
            .iter()
            .map(|by| {
                let (a, b) = (&a[&by.field], &b[&by.field]);
                let ascending = a
                    .is_null()
                    .cmp(&b.is_null())
                    .then_with(|| compare(a, b).unwrap_or(Ordering::Equal));
                if by.dir == Direction::Desc {
                    ascending.reverse()
                } else {
                    ascending
                }
            })
            .find(|ordering| ordering.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    fn compare(a: &Value, b: &Value) -> Option<Ordering> {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// Three-valued: false < unknown < true, so that AND is the least and OR the greatest.
    fn rank(held: Option<bool>) -> u8 {
        held.map_or(1, |held| u8::from(held) * 2)
    }

    fn holds(filter: &Filter, row: &Value) -> Option<bool> {
        let held = |child| holds(child, row);
        match filter {
            Filter::All(children) => children
                .iter()
                .map(held)
                .min_by_key(|held| rank(*held))
                .unwrap_or(Some(true)),
            Filter::Any(children) => children
                .iter()
                .map(held)
                .max_by_key(|held| rank(*held))
                .unwrap_or(Some(false)),
            Filter::Not(inner) => holds(inner, row).map(|held| !held),
            Filter::Compare { field, op, value } => {
                compare(&row[field], value).map(|ordering| match op {
                    Comparison::Eq => ordering.is_eq(),
                    Comparison::Ne => ordering.is_ne(),
                    Comparison::Gt => ordering.is_gt(),
                    Comparison::Gte => ordering.is_ge(),
                    Comparison::Lt => ordering.is_lt(),
                    Comparison::Lte => ordering.is_le(),
                })
            }
            Filter::IsNull { field, negated } => Some(row[field].is_null() != *negated),
            other => panic!("not made by paging: {other:?}"),
        }
    }
}

fn rows() -> impl Strategy<Value = Vec<Value>> {
    let number = prop_oneof![
        Just(Value::Null),
        (0..3).prop_map(Value::from),
        Just(json!(0.5))
    ];
    let text = prop_oneof![Just(Value::Null), "[ab]{0,2}".prop_map(Value::from)];
    prop::collection::vec((0..2i64, number, text), 0..30).prop_map(|rows| {
        let rows = rows.into_iter().enumerate().map(|(id, (group, price, title))| {
            json!({"id": id, "group_no": group, "price_cents": price, "product_title": title, "tenant_id": "t"})
        });
        rows.collect()
    })
}

fn order_by() -> impl Strategy<Value = Value> {
    let field = prop::sample::select(vec!["price", "title", "group", "id"]);
    let dir = prop::sample::select(vec!["asc", "desc"]);
    prop::collection::vec(
        (field, dir).prop_map(|(field, dir)| json!({"field": field, "dir": dir})),
        0..4,
    )
    .prop_map(Value::from)
}

proptest! {
    #[test]
    fn pages_visit_every_row_exactly_once_and_in_order(
        rows in rows(),
        order in order_by(),
        limit in 1..7u64,
        primary_key in prop::sample::select(vec![json!("id"), json!(["group", "id"])]),
    ) {
        let fixture = Fixture::new(primary_key);
        let mut body = json!({"orderBy": order, "limit": limit, "where": {"tenant": "t"}});
        let mut all = fixture.query(&body).unwrap().operation.options;
        all.insert("limit".into(), 1000.into());

        let mut visited = Vec::new();
        for _ in 0..=rows.len() {
            let plan = fixture.query(&body).unwrap();
            let operation = continued_by_filter(&plan.operation, &plan.paging).unwrap();
            let page = table::page(&rows, &operation.options);
            let last: Option<Vec<Value>> =
                page.last().map(|row| plan.paging.keys.iter().map(|key| row[key].clone()).collect());
            let cursor = plan.next_cursor(page.len() as u64, last.as_deref(), &fixture.cursors);
            visited.extend(page);
            match cursor {
                Some(cursor) => body["cursor"] = cursor.into(),
                None => break,
            }
        }
        prop_assert_eq!(visited, table::page(&rows, &all));
    }
}
