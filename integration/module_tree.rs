//! The direction of dependencies inside `src/`, as the module documentation of the library states it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module may use beside itself and the small ones that everybody may ([`EVERYBODY`]).
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "bin",
        &[
            "cli", "config", "dev", "gateway", "logging", "process", "runner",
        ],
    ),
    ("dev", &["cli", "config", "domain", "gateway", "storage"]),
    (
        "gateway",
        &["config", "control", "domain", "storage", "web"],
    ),
    (
        "web",
        &[
            "bridge", "config", "control", "domain", "protocol", "query", "storage",
        ],
    ),
    (
        "control",
        &["bridge", "domain", "protocol", "query", "storage"],
    ),
    (
        "runner",
        &["bridge", "logging", "no_proxy", "protocol", "query"],
    ),
    ("bridge", &["query", "tls"]),
    ("storage", &["domain", "tls"]),
    ("cli", &["no_proxy", "process", "web"]),
    ("config", &[]),
    ("domain", &[]),
    ("query", &[]),
    ("protocol", &[]),
];

const EVERYBODY: &[&str] = &["clock", "ids", "timing"];

#[test]
fn modules_use_only_what_lies_below_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut forbidden = BTreeSet::new();
    let mut edges = 0;
    for file in rust_files(&source) {
        let of = module(file.strip_prefix(&source).unwrap());
        // Small files at the top (ids, clock, …) have rules of their own: they use nothing of the rest.
        let allowed = ALLOWED
            .iter()
            .find(|(name, _)| *name == of)
            .map_or(&[][..], |(_, allowed)| allowed);
        for used in uses(&fs::read_to_string(&file).unwrap()) {
            edges += 1;
            if used != of
                && !EVERYBODY.contains(&used.as_str())
                && !allowed.contains(&used.as_str())
            {
                forbidden.insert(format!("{} uses `{used}`", file.display()));
            }
        }
    }
    assert!(
        edges > 100,
        "only {edges} uses were found, the reader is broken"
    );
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

/// The top-level module that a file belongs to.
fn module(file: &Path) -> String {
    let first = file.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The top-level modules of this crate that a text names in a path.
fn uses(text: &str) -> BTreeSet<String> {
    // Unit tests may name anything in their strings.
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for root in ["crate::", "semilayer::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            if let Some(group) = rest.strip_prefix('{') {
                let group = group.split('}').next().unwrap_or_default();
                found.extend(group.split(',').map(|item| {
                    item.trim()
                        .split("::")
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                }));
            } else if !name.is_empty() {
                found.insert(name);
            }
        }
    }
    found.retain(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    });
    found
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
