//! Pages through rows that share places, from a database that gives those in another order each time.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::bridge::RowFormat;
use crate::bridge::request::Target;
use crate::bridge::sql::{Class, Column, Dialect, Held, Shape};
use crate::query::operation::Paging;

/// A row: its key, and what stands for all of its columns.
type Row = (i64, u8);

impl Held for Row {
    fn size(&self) -> usize {
        300 * 1024
    }
}

/// The rows that the next statement asks for, in an order that it allows; `any` chooses which.
fn rows_of(next: &Next, limit: u64, table: &[Row], any: &mut impl FnMut() -> u64) -> Vec<Row> {
    let number = |value: &KeyValue| match value {
        KeyValue::Int(number) => *number,
        KeyValue::Bytes(bytes) => bytes[0].into(),
        other => panic!("{other:?}"),
    };
    match next {
        Next::Nothing => Vec::new(),
        Next::Behind(place) => {
            let behind = |row: &&Row| {
                place
                    .as_ref()
                    .is_none_or(|place| row.0 > number(&place.values[0]))
            };
            let mut rows: Vec<_> = table
                .iter()
                .filter(behind)
                .map(|row| (row.0, any(), *row))
                .collect();
            rows.sort_unstable();
            rows.into_iter()
                .map(|(_, _, row)| row)
                .take(limit as usize + 1)
                .collect()
        }
        Next::Among(key, tie) => {
            let from = tie.digest.as_ref().map_or(i64::MIN, number);
            let same = |row: &&Row| row.0 == number(&key[0]) && i64::from(row.1) >= from;
            let mut rows: Vec<_> = table.iter().filter(same).copied().collect();
            rows.sort_unstable();
            let limit = limit + u64::from(tie.early.is_some());
            rows.into_iter()
                .skip(tie.repeated as usize)
                .take(limit as usize)
                .collect()
        }
    }
}

fn key(row: &Row, i: usize, out: &mut Vec<u8>) -> Result<(), BridgeError> {
    match i {
        1 => KeyValue::Int(row.0).write(out),
        _ => KeyValue::Bytes(vec![row.1]).write(out),
    }
    Ok(())
}

/// One page from `after` on, and where it ended.
fn page(
    table: &[Row],
    limit: u64,
    after: Option<Vec<Value>>,
    any: &mut impl FnMut() -> u64,
) -> (Vec<Row>, Option<Vec<Value>>) {
    let column = Column {
        class: Class::Integer,
        ..Column::unknown("k")
    };
    let target = Target::parse("v").unwrap();
    let shape = Shape::new(
        target.readings()[0].clone(),
        vec![column],
        Vec::new(),
        false,
    );
    let execution = Execution {
        paging: Paging {
            keys: vec!["k".into()],
            asked: 1,
            after,
        },
        job_id: crate::ids::JobId::new(),
        attempt: 1,
        deadline: tokio::time::Instant::now(),
        cancel: Default::default(),
        format: RowFormat::Json,
        fields: None,
        types: Default::default(),
        max_batch_bytes: 0,
        max_row_bytes: 0,
    };
    let query = Query {
        target,
        filter: crate::query::filter::Filter::All(Vec::new()),
        order: vec![crate::bridge::request::Order {
            column: "k".into(),
            descending: false,
        }],
        limit: Some(limit),
        offset: None,
        select: None,
        total: false,
    };
    let builder = Builder {
        dialect: Dialect::Postgres,
        shape: &shape,
        types: &execution.types,
        read: Vec::new(),
    };
    let mut page = Page::new(builder, &query, &execution).unwrap();
    let mut given = Vec::new();
    loop {
        let rows = rows_of(&page.next, page.remaining, table, any);
        let Some((_, mut leg)) = page.next::<Row>().unwrap() else {
            break;
        };
        for row in rows {
            given.extend(leg.take(row, key).unwrap());
            if leg.is_done() {
                break;
            }
            if any().is_multiple_of(3) {
                given.extend(leg.early());
            }
        }
        given.extend(leg.rest());
        page.ended(leg, |_, bytes| KeyValue::read(bytes)).unwrap();
    }
    let outcome = page
        .conclude(Outcome::default(), None, |_, _| None)
        .unwrap();
    (given, outcome.last)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_row_comes_once_in_any_order_of_those_that_share_a_place(
        mut table in prop::collection::vec((0_i64..4, 0_u8..4), 0..24),
        limit in 1_u64..8,
        noise in prop::collection::vec(any::<u64>(), 97),
    ) {
        let mut noise = noise.into_iter().cycle();
        let mut any = || noise.next().unwrap_or_default();
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (rows, last) = page(&table, limit, after, &mut any);
            prop_assert!(rows.len() as u64 <= limit);
            prop_assert!(rows.is_sorted_by_key(|row| row.0));
            let is_last = (rows.len() as u64) < limit;
            all.extend(rows);
            prop_assert!(all.len() <= table.len());
            if is_last {
                break;
            }
            after = last;
        }
        prop_assert!(all.is_sorted_by_key(|row| row.0));
        all.sort_unstable();
        table.sort_unstable();
        prop_assert_eq!(all, table);
    }
}
