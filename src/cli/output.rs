//! What a command prints: tables and sentences for people, the server's JSON for programs.

use std::io::{self, IsTerminal, Write};

use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use super::CliError;

/// Standard output, and who reads it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    /// Whether the server's JSON is wanted.
    pub(super) json: bool,
    /// Whether a person is at the other end.
    pub(super) terminal: bool,
}

/// A column: its title, and what stands in it for one item.
pub(super) type Column = (&'static str, fn(&Value) -> String);

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
        }
    }

    /// Prints a list as a table, or as `{"items": […]}`.
    pub(super) fn list(
        self,
        items: Vec<Value>,
        columns: &[Column],
        empty: &str,
    ) -> Result<(), CliError> {
        if self.json {
            return self.value(&json!({ "items": items }));
        }
        if items.is_empty() {
            eprintln!("{empty}");
            return Ok(());
        }
        let rows = items
            .iter()
            .map(|item| columns.iter().map(|(_, cell)| cell(item)).collect());
        let titles = columns
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect();
        self.line(&table(titles, rows.collect()))
    }

    /// Prints one resource as JSON, which is how its nested parts are read best.
    pub(super) fn value(self, value: &Value) -> Result<(), CliError> {
        let pretty = if self.terminal {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.line(&pretty.map_err(|error| CliError::Failed(error.to_string()))?)
    }

    /// Prints a sentence about what was done, or with `--json` the resource.
    pub(super) fn done(self, sentence: &str, resource: &Value) -> Result<(), CliError> {
        if self.json {
            self.value(resource)
        } else {
            self.line(sentence)
        }
    }

    /// Prints text and a line end.
    pub(super) fn line(self, text: &str) -> Result<(), CliError> {
        self.write(text.as_bytes()).and_then(|()| self.write(b"\n"))
    }

    /// Prints bytes as they are.
    pub(super) fn write(self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(|error| match error.kind() {
                io::ErrorKind::BrokenPipe => CliError::OutputClosed,
                _ => CliError::Failed(format!("cannot write to standard output: {error}")),
            })
    }
}

/// Lays out a table without borders, as wide as the terminal at most.
pub(super) fn table(titles: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(titles);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A field as text; absent and null are a dash.
pub(super) fn text(item: &Value, field: &str) -> String {
    plain(&item[field])
}

/// A value as it stands in a table.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// How many entries an object field has.
pub(super) fn count(item: &Value, field: &str) -> String {
    item[field]
        .as_object()
        .map_or(0, serde_json::Map::len)
        .to_string()
}

/// The names of the things in an array field.
pub(super) fn names(item: &Value, field: &str) -> String {
    let names: Vec<&str> = item[field]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    if names.is_empty() {
        "-".into()
    } else {
        names.join(", ")
    }
}

/// How long ago a time field was, e.g. `12s ago`.
pub(super) fn ago(item: &Value, field: &str) -> String {
    let Some(time) = item[field]
        .as_str()
        .and_then(|text| DateTime::parse_from_rfc3339(text).ok())
    else {
        return "-".into();
    };
    since(time.to_utc(), crate::clock::Clock::system().now().get())
}

fn since(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (now - time).num_seconds() {
        ..=0 => "now".into(),
        seconds @ 1..60 => format!("{seconds}s ago"),
        seconds @ 60..3600 => format!("{}m ago", seconds / 60),
        seconds @ 3600..86400 => format!("{}h ago", seconds / 3600),
        seconds => format!("{}d ago", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn times_are_told_in_the_largest_unit() {
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(400);
        for (seconds, text) in [
            (-5, "now"),
            (59, "59s ago"),
            (60, "1m ago"),
            (7300, "2h ago"),
            (200_000, "2d ago"),
        ] {
            assert_eq!(since(now - TimeDelta::seconds(seconds), now), text);
        }
    }

    #[test]
    fn tables_line_up_and_do_not_wrap_ids() {
        let id = "0190a1b2-0000-7000-8000-000000000000";
        let table = table(
            vec!["ID".into(), "NAME".into()],
            vec![
                vec![id.into(), "primary-prod".into()],
                vec!["short".into(), "b".into()],
            ],
        );
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1].find("primary-prod"), lines[0].find("NAME"));
        assert_eq!(lines[2].find('b'), lines[0].find("NAME"));
    }
}
