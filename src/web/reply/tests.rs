//! When the pieces of an answer leave, and what stands around them, with time under control.

use actix_web::body::MessageBody;
use actix_web::http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use super::body::KEEP_ALIVE;
use super::*;
use crate::control::reply::{Abandonment, ReplySender, reply_channel};
use crate::ids::JobId;

struct Nobody;

impl Abandonment for Nobody {
    fn abandoned(&self, _: JobId) {}
}

fn rendering(encoding: Encoding, keep_alive: bool) -> Rendering {
    let meta = |finished: &Finished| {
        let mut meta = Map::new();
        meta.extend(
            finished
                .next_cursor
                .clone()
                .map(|cursor| ("nextCursor".to_owned(), cursor.into())),
        );
        Ok(meta)
    };
    Rendering {
        encoding,
        audience: Audience::Trusted,
        request_id: RequestId::new(),
        keep_alive,
        meta: Box::new(meta),
    }
}

fn part(text: &str, more: bool) -> RowsPart {
    RowsPart {
        rows: u32::from(!more),
        more,
        payload: Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn say(sender: &ReplySender, text: &str) {
    sender.rows(part(text, false), usize::MAX).unwrap();
}

fn after(seconds: f64) -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_secs_f64(seconds))
}

/// The pieces of a response with the moment of each, in milliseconds; an abort is `None`.
async fn pieces(response: HttpResponse, started: Instant) -> Vec<(u128, Option<String>)> {
    let mut body = Box::pin(response.into_body());
    let mut pieces = Vec::new();
    while let Some(piece) = std::future::poll_fn(|cx| body.as_mut().poll_next(cx)).await {
        let text = piece.ok().map(|it| String::from_utf8(it.to_vec()).unwrap());
        pieces.push((started.elapsed().as_millis(), text));
    }
    pieces
}

async fn body(response: HttpResponse) -> String {
    let pieces = pieces(response, Instant::now()).await;
    pieces.into_iter().map(|(_, text)| text.unwrap()).collect()
}

fn cursor(finished_at: &str) -> Finished {
    Finished {
        next_cursor: Some(finished_at.to_owned()),
        ..Finished::default()
    }
}

#[tokio::test(start_paused = true)]
async fn lines_leave_a_moment_after_the_first_and_then_as_they_come() {
    let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
    let started = Instant::now();
    let database = async {
        after(2.0).await;
        say(&sender, "{1}\n");
        after(0.1).await;
        say(&sender, "{2}\n");
        after(5.0).await;
        say(&sender, "{3}\n");
        after(5.0).await;
        sender.end(Ok(Finished::default()));
    };
    let caller = async {
        let response = respond(reply, rendering(Encoding::Ndjson, true))
            .await
            .unwrap();
        assert_eq!(started.elapsed().as_millis(), 2250);
        pieces(response, started).await
    };
    let ((), pieces) = tokio::join!(database, caller);
    let lines = |text: &str| Some(text.to_owned());
    assert_eq!(
        pieces,
        [
            (2250, lines("{1}\n")),
            (2250, lines("{2}\n")),
            (7100, lines("{3}\n"))
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_document_waits_for_its_end_or_its_first_mebibyte() {
    let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
    let started = Instant::now();
    let database = async {
        say(&sender, "{1}");
        after(60.0).await;
        say(&sender, &"x".repeat(HOLD_BACK));
        after(1.0).await;
        sender.end(Ok(Finished::default()));
    };
    let caller = async {
        let response = respond(reply, rendering(Encoding::Json, true)).await;
        assert_eq!(started.elapsed().as_millis(), 60_000);
        pieces(response.unwrap(), started).await.len()
    };
    let ((), count) = tokio::join!(database, caller);
    assert_eq!(count, 5, "opening, row, comma, row, end: and no empty line");
}

#[tokio::test(start_paused = true)]
async fn what_another_attempt_took_the_place_of_was_never_sent() {
    let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
    let database = async {
        say(&sender, "{\"attempt\":1}\n");
        after(0.2).await;
        assert!(sender.restart());
        after(3.0).await;
        say(&sender, "{\"attempt\":2}\n");
        after(0.3).await;
        assert!(!sender.restart(), "the caller was sent something");
        sender.end(Ok(Finished::default()));
    };
    let caller = async {
        let answer = respond(reply, rendering(Encoding::Ndjson, true)).await;
        body(answer.unwrap()).await
    };
    let ((), text) = tokio::join!(database, caller);
    assert_eq!(text, "{\"attempt\":2}\n");
}

#[tokio::test(start_paused = true)]
async fn an_empty_line_breaks_a_long_silence_unless_it_is_not_wanted() {
    for (keep_alive, empty) in [(true, 2), (false, 0)] {
        let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
        let started = Instant::now();
        let database = async {
            say(&sender, "{1}\n");
            tokio::time::sleep(KEEP_ALIVE * 5 / 2).await;
            say(&sender, "{2}\n");
            sender.end(Ok(Finished::default()));
        };
        let caller = async {
            let answer = respond(reply, rendering(Encoding::Ndjson, keep_alive)).await;
            pieces(answer.unwrap(), started).await
        };
        let ((), pieces) = tokio::join!(database, caller);
        let blank = pieces
            .iter()
            .filter(|(_, text)| text.as_deref() == Some("\n"));
        assert_eq!(blank.count(), empty, "{pieces:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_in_parts_stays_one_row_however_long_it_takes() {
    for (encoding, ends, expected) in [
        (Encoding::Json, "", "{\"rows\":[{1},{22},{3}],\"meta\":{}}"),
        (Encoding::Ndjson, "\n", "{1}\n{22}\n{3}\n"),
    ] {
        let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
        let database = async {
            say(&sender, &format!("{{1}}{ends}"));
            sender.rows(part("{2", true), usize::MAX).unwrap();
            tokio::time::sleep(KEEP_ALIVE * 2).await;
            say(&sender, &format!("2}}{ends}"));
            say(&sender, &format!("{{3}}{ends}"));
            sender.end(Ok(Finished::default()));
        };
        let caller = async {
            let answer = respond(reply, rendering(encoding, true)).await;
            body(answer.unwrap()).await
        };
        let ((), text) = tokio::join!(database, caller);
        assert_eq!(text, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_that_is_followed_by_another_says_where_it_begins() {
    for encoding in [Encoding::Json, Encoding::Ndjson] {
        for cursor_length in [20, LONGEST_HEADER, LONGEST_HEADER + 1] {
            let text = "c".repeat(cursor_length);
            let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
            say(&sender, "{}");
            sender.end(Ok(cursor(&text)));
            let response = respond(reply, rendering(encoding, true)).await.unwrap();
            let header = response.headers().get(&NEXT_CURSOR).cloned();
            assert_eq!(
                header.is_some_and(|header| header == text.as_str()),
                cursor_length <= LONGEST_HEADER
            );
            let expected = match encoding {
                Encoding::Ndjson => format!("{{}}{}\n", json!({"$next": {"cursor": text}})),
                _ => format!("{{\"rows\":[{{}}],\"meta\":{{\"nextCursor\":\"{text}\"}}}}"),
            };
            assert_eq!(body(response).await, expected);
        }
    }
    let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
    sender.end(Ok(Finished::default()));
    let last = respond(reply, rendering(Encoding::Ndjson, true))
        .await
        .unwrap();
    assert!(last.headers().get(&NEXT_CURSOR).is_none());
    assert_eq!(body(last).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_middle_is_a_line_that_no_row_can_be() {
    for (begun, more) in [("{1}\n", false), ("{\"a\":\"half", true)] {
        let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
        let database = async {
            sender.rows(part(begun, more), usize::MAX).unwrap();
            after(1.0).await;
            sender.end(Err(JobError::Timeout));
        };
        let caller = async {
            let answer = respond(reply, rendering(Encoding::Ndjson, true)).await;
            body(answer.unwrap()).await
        };
        let ((), text) = tokio::join!(database, caller);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines.len()), (begun.trim_end(), 2));
        let failure: Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(failure["$error"]["code"], "QUERY_TIMEOUT");
        assert_eq!(failure["$error"]["delivery"], "partial");
        assert!(failure["$error"]["requestId"].is_string() && text.ends_with('\n'));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_first_row_is_sent_has_its_status() {
    for encoding in [Encoding::Json, Encoding::Ndjson] {
        let (sender, reply) = reply_channel(JobId::new(), Box::new(Nobody));
        let database = async {
            after(10.0).await;
            say(&sender, "{}");
            after(0.2).await;
            sender.end(Err(JobError::Timeout));
        };
        let caller = respond(reply, rendering(encoding, true));
        let ((), answer) = tokio::join!(database, caller);
        assert_eq!(
            answer.unwrap_err().code().status(),
            StatusCode::GATEWAY_TIMEOUT
        );
    }
}
