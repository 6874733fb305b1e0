//! What rows look like, and where batches are cut.

use proptest::prelude::*;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::ids::JobId;
use crate::query::operation::{ColumnTypes, Paging};

fn execution(format: RowFormat, max_batch_bytes: usize) -> Execution {
    Execution {
        job_id: JobId::new(),
        attempt: 1,
        deadline: Instant::now() + Duration::from_secs(1),
        cancel: CancellationToken::new(),
        format,
        fields: None,
        paging: Paging::default(),
        types: ColumnTypes::new(),
        max_batch_bytes,
        max_row_bytes: max_batch_bytes,
    }
}

proptest! {
    #[test]
    fn batches_hold_all_rows_in_order_within_their_limit(
        texts in prop::collection::vec(".{0,30}", 0..40),
        max in 20_usize..600,
        lines in any::<bool>(),
    ) {
        let format = if lines { RowFormat::Ndjson } else { RowFormat::Json };
        let execution = Execution { max_row_bytes: 1000, ..execution(format, max) };
        let columns = Columns { names: vec!["x".into()], keys: 2, ..Columns::default() };
        let mut encoder = RowEncoder::new(&execution, Caps::default(), &columns);
        let mut batches = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            batches.extend(encoder.row(|i, out| {
                match i {
                    0 => write_str(out, text),
                    1 => out.extend_from_slice(&(n / 2).to_be_bytes()),
                    _ => out.extend_from_slice(b"k"),
                }
                Ok(())
            }).unwrap());
        }
        batches.extend(encoder.take());
        let mut rows = Vec::new();
        for batch in &batches {
            prop_assert!(batch.payload.len() <= max || batch.rows == 1);
            let text = std::str::from_utf8(&batch.payload).unwrap();
            let text = if lines { text.trim_end().replace('\n', ",") } else { text.to_owned() };
            let parsed: Vec<Value> = serde_json::from_str(&format!("[{text}]")).unwrap();
            prop_assert_eq!(parsed.len(), batch.rows as usize);
            rows.extend(parsed);
        }
        let expected: Vec<_> = texts.iter().map(|text| serde_json::json!({"x": text})).collect();
        prop_assert_eq!(rows, expected);
        let outcome = encoder.outcome();
        let bytes: usize = batches.iter().map(|batch| batch.payload.len()).sum();
        prop_assert_eq!((outcome.rows, outcome.bytes), (texts.len() as u64, bytes as u64));
        let place = encoder.place().map(|(values, repeated)| (values.concat(), repeated));
        let last = texts.len().checked_sub(1).map(|n| ([&(n / 2).to_be_bytes()[..], b"k"].concat(), n as u64 % 2 + 1));
        prop_assert_eq!(place, last);
    }
}

#[test]
fn a_row_is_as_large_as_it_may_be_and_not_larger() {
    for (format, around) in [(RowFormat::Json, 8), (RowFormat::Ndjson, 9)] {
        let execution = Execution {
            max_row_bytes: 1000,
            ..execution(format, 100)
        };
        let columns = Columns {
            names: vec!["x".into()],
            ..Columns::default()
        };
        for before in [0, 1, 5] {
            for (length, fits) in [(1000, true), (1001, false), (3000, false)] {
                let mut encoder = RowEncoder::new(&execution, Caps::default(), &columns);
                let mut row = |length: usize| {
                    encoder.row(|_, out| {
                        write_str(out, &"x".repeat(length - around));
                        Ok(())
                    })
                };
                for _ in 0..before {
                    row(20).unwrap();
                }
                let written = row(length);
                assert_eq!(written.is_ok(), fits, "{format:?} {before} {length}");
                if let Err(error) = written {
                    assert!(error.to_string().contains("1000 bytes"), "{error}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_left_to_be_fetched_of_an_answer_that_failed() {
    for second in ["y".repeat(400), "bad".to_owned()] {
        let execution = execution(RowFormat::Json, 300);
        let columns = Columns {
            names: vec!["x".into()],
            ..Columns::default()
        };
        let mut encoder = RowEncoder::new(&execution, Caps::default(), &columns);
        let mut row = |text: &str| {
            encoder.row(|_, out| {
                write_str(out, text);
                match text {
                    "bad" => Err(BridgeError::QueryFailed("bad".into())),
                    _ => Ok(()),
                }
            })
        };
        row("x").unwrap();
        assert!(row(&second).is_err());
        assert!(encoder.take().is_none());
    }
}

#[test]
fn a_document_keeps_all_that_it_says_on_one_line() {
    let written = |json: &str| {
        let mut out = Vec::new();
        write_raw_json(&mut out, json.as_bytes());
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        written(
            "{ \"b\": 1.50,\r\n\t\"a\" : [1e400, 12345678901234567890.10],\n\"b\": \"x \\\\\" }"
        ),
        "{\"b\":1.50,\"a\":[1e400,12345678901234567890.10],\"b\":\"x \\\\\"}"
    );
    assert_eq!(
        written("{\"a\": \"\\\" \\n b\"}\n"),
        "{\"a\": \"\\\" \\n b\"}"
    );
    assert_eq!(written("{\n\"a\": \"\\\" b\"}"), "{\"a\":\"\\\" b\"}");
    let deep = format!("{}\n{}", "[".repeat(5_000), "]".repeat(5_000));
    assert_eq!(written(&deep), deep.replace('\n', ""));
    assert_eq!(written("{\n"), "\"{\\n\"");
}

#[test]
fn numbers_that_a_double_cannot_hold_are_strings() {
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        written(&|out| write_int(out, 9_007_199_254_740_991)),
        "9007199254740991"
    );
    assert_eq!(
        written(&|out| write_int(out, -9_007_199_254_740_992)),
        "\"-9007199254740992\""
    );
    assert_eq!(
        written(&|out| write_uint(out, u64::MAX)),
        "\"18446744073709551615\""
    );
    assert_eq!(written(&|out| write_f64(out, f64::NAN)), "\"NaN\"");
    assert_eq!(written(&|out| write_f32(out, 0.1)), "0.1");
}
