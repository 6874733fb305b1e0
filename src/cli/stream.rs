//! An answer on its way to standard output as it arrives: rows are printed, the lines between and behind them are
//! understood.

use futures_util::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde::Deserialize;

use super::error::Refusal;
use super::{CliError, Session};

/// The header that says where the next page begins.
const NEXT_CURSOR: &str = "x-semilayer-next-cursor";
/// What every line begins with that is no row.
const NO_ROW: &[u8] = b"{\"$";

/// Prints the answer; says on stderr if there may be more rows, and fails if it broke off.
pub(super) async fn print(
    session: &Session,
    request: reqwest::RequestBuilder,
) -> Result<(), CliError> {
    let response = session.client.send(request).await?;
    let is_lines = header(response.headers(), CONTENT_TYPE.as_str())
        .is_some_and(|kind| kind.starts_with("application/x-ndjson"));
    let announced = header(response.headers(), NEXT_CURSOR).map(str::to_owned);
    let mut chunks = response.bytes_stream();
    let (mut lines, mut ended) = (Lines::default(), true);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            CliError::Failed(format!("the answer broke off: {}", error.without_url()))
        })?;
        let rows = if is_lines {
            lines.push(&chunk)
        } else {
            Vec::new()
        };
        // Programs get what the server said, as it said it.
        let printed = if is_lines && !session.output.json {
            &rows
        } else {
            chunk.as_ref()
        };
        if let Some(last) = printed.last() {
            ended = *last == b'\n';
            session.output.write(printed)?;
        }
    }
    if !ended {
        session.output.write(b"\n")?;
    }
    let Said { next, error } = lines.said;
    if let Some(refusal) = error {
        return Err(CliError::Failed(incomplete(&refusal)));
    }
    let cursor = next.map(|next| next.cursor).or(announced);
    if let Some(cursor) = cursor.filter(|_| !session.output.json) {
        say_more(&cursor);
    }
    Ok(())
}

/// Says that the page is not all there is, as far as anybody knows.
pub(super) fn say_more(cursor: &str) {
    eprintln!(
        "there may be more rows: ask again with `--cursor {cursor}` to go on after these, or with a larger `--limit`"
    );
}

fn incomplete(refusal: &Refusal) -> String {
    let job = refusal
        .details
        .get("jobId")
        .and_then(serde_json::Value::as_str)
        .map(|id| format!("; `semilayer jobs get {id}` shows how the job ended"))
        .unwrap_or_default();
    format!("the answer is incomplete: {refusal}{job}")
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What stands in the lines that are no rows.
#[derive(Debug, Default, Deserialize)]
struct Said {
    /// Where the next page begins.
    #[serde(rename = "$next")]
    next: Option<Next>,
    /// Why the answer broke off.
    #[serde(rename = "$error")]
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Next {
    cursor: String,
}

/// Tells rows from what is none, however the bytes are cut.
#[derive(Debug, Default)]
struct Lines {
    line: Line,
    said: Said,
}

/// What the current line is, as far as it is known.
#[derive(Debug)]
enum Line {
    /// Its beginning, while it may become either.
    Begins(Vec<u8>),
    /// A row, which is passed on.
    Row,
    /// No row; all of it so far.
    Other(Vec<u8>),
}

impl Default for Line {
    fn default() -> Self {
        Self::Begins(Vec::new())
    }
}

impl Lines {
    /// No line of the server's own is longer.
    const LONGEST: usize = 1024 * 1024;

    /// Takes some bytes, and answers those that belong to rows.
    fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut rows = Vec::with_capacity(chunk.len());
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.part(part, &mut rows);
        }
        rows
    }

    /// Takes a part of one line.
    fn part(&mut self, part: &[u8], rows: &mut Vec<u8>) {
        if let Line::Begins(begin) = &mut self.line {
            begin.extend_from_slice(part);
            if begin.starts_with(NO_ROW) {
                self.line = Line::Other(std::mem::take(begin));
            } else if begin.as_slice() == b"\n" {
                // An empty line only keeps the connection awake.
                begin.clear();
            } else if !NO_ROW.starts_with(begin) {
                rows.append(begin);
                self.line = Line::Row;
            }
        } else if let Line::Other(line) = &mut self.line {
            let room = Self::LONGEST - line.len().min(Self::LONGEST);
            line.extend_from_slice(&part[..part.len().min(room)]);
        } else {
            rows.extend_from_slice(part);
        }
        if !part.ends_with(b"\n") {
            return;
        }
        if let Line::Other(line) = std::mem::take(&mut self.line) {
            // What a later server may say beyond this is not for this client.
            let said: Said = serde_json::from_slice(&line).unwrap_or_default();
            self.said.next = said.next.or(self.said.next.take());
            self.said.error = said.error.or(self.said.error.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], cuts: &[usize]) -> (String, Said) {
        let mut lines = Lines::default();
        let mut rows = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&text.len()]) {
            rows.extend(lines.push(&text[from..cut]));
            from = cut;
        }
        (String::from_utf8(rows).unwrap(), lines.said)
    }

    #[test]
    fn rows_are_printed_as_they_are_and_nothing_else_however_it_is_cut() {
        let text = b"{\"id\":1}\n\n{\"error\":\"x\",\"code\":\"c\",\"requestId\":\"r\"}\n{\n{}\n\n{\"$next\":{\"cursor\":\"abc\"}}\n";
        let rows = "{\"id\":1}\n{\"error\":\"x\",\"code\":\"c\",\"requestId\":\"r\"}\n{\n{}\n";
        for first in 0..text.len() {
            for second in first..text.len() {
                let (printed, said) = read(text, &[first, second]);
                assert_eq!(printed, rows, "cut at {first} and {second}");
                assert_eq!(said.next.unwrap().cursor, "abc");
                assert!(
                    said.error.is_none(),
                    "a row with the fields of an error is a row"
                );
            }
        }
    }

    #[test]
    fn an_answer_that_broke_off_says_why_and_which_job_it_was() {
        let text = b"{\"id\":1}\n{\"$error\":{\"error\":\"runner lost\",\"code\":\"runner_failed\",\"requestId\":\"r\",\"jobId\":\"j\"}}\n";
        for cut in 0..text.len() {
            let (printed, said) = read(text, &[cut]);
            assert_eq!(printed, "{\"id\":1}\n", "cut at {cut}");
            let message = incomplete(&said.error.unwrap());
            for part in ["runner lost", "runner_failed", "request r", "jobs get j"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn what_a_later_server_says_is_no_row_either() {
        let (printed, said) = read(b"{\"a\":1}\n{\"$mood\":\"fine\"}\n{\"$next\":7}\n", &[]);
        assert_eq!(printed, "{\"a\":1}\n");
        assert!(said.next.is_none() && said.error.is_none());
    }
}
