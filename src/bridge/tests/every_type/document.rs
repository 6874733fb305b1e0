//! `docs/types.md`, one section per database, held against what was seen.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

use super::Seen;

/// One section at a time, since the tests of the databases run at once.
static WRITING: Mutex<()> = Mutex::new(());

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/types.md")
}

/// Checks that the document says of each type what was seen; types that it does not list are another version's.
pub(super) fn keep(database: &str, seen: &[Seen]) {
    let _guard = WRITING
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    let heading = format!("## {database}\n");
    if std::env::var_os("SEMILAYER_WRITE_DOCS").is_some() {
        let (before, after) = text.split_once(&heading).unwrap_or((&text, ""));
        let rest = after.find("\n## ").map_or("", |at| &after[at..]);
        let section = section(&heading, seen);
        std::fs::write(path(), format!("{before}{section}{rest}")).unwrap();
        return;
    }
    let (_, section) = text
        .split_once(&heading)
        .expect("docs/types.md has no section of this database");
    for seen in seen {
        let listed = section
            .lines()
            .find(|line| line.starts_with(&format!("| `{}` |", cell(&seen.type_name))));
        if let Some(listed) = listed {
            assert_eq!(
                listed,
                line(seen),
                "docs/types.md is old: SEMILAYER_WRITE_DOCS=1 writes it anew"
            );
        }
    }
}

fn section(heading: &str, seen: &[Seen]) -> String {
    let mut section = format!(
        "{heading}\n| type | a value in rows and filters | ordered and paged |\n|---|---|---|\n"
    );
    for seen in seen {
        let _ = writeln!(section, "{}", line(seen));
    }
    section
}

fn line(seen: &Seen) -> String {
    let shown: String = seen.shown.chars().take(60).collect();
    format!(
        "| `{}` | `{}` | {} |",
        cell(&seen.type_name),
        cell(&shown),
        seen.order
    )
}

fn cell(text: &str) -> String {
    match text {
        "" => " ".to_owned(),
        text => text.replace('|', "\\|").replace('`', "'"),
    }
}
