//! `dev.json` in the data directory: the keys of the demo in plain text, since a gateway keeps only their
//! hashes and a second start could not print them otherwise. Only its owner can read the file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::ids::RunnerId;

/// What `semilayer dev` remembers from one start to the next.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// Opens `/dispatch`.
    pub(super) internal_token: String,
    /// The organisation's admin key, empty before the first start.
    #[serde(default)]
    pub(super) admin_key: String,
    /// A key for queries, empty before the first start.
    #[serde(default)]
    pub(super) secret_key: String,
    /// The demo's runner.
    #[serde(default)]
    pub(super) runner: Option<RunnerIdentity>,
}

/// Who a runner is, and how it proves that.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct RunnerIdentity {
    pub(super) id: RunnerId,
    pub(super) token: String,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State([REDACTED])")
    }
}

impl State {
    /// What an earlier start has left, or a fresh state.
    pub(super) fn load(data_dir: &Path) -> anyhow::Result<Self> {
        let path = path(data_dir);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| {
                format!(
                    "{} is damaged; delete it, and new keys are made",
                    path.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::fresh()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    fn fresh() -> Self {
        let token = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        Self {
            internal_token: token,
            admin_key: String::new(),
            secret_key: String::new(),
            runner: None,
        }
    }

    /// Writes the state, whole or not at all.
    pub(super) fn save(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = path(data_dir);
        let text = serde_json::to_string_pretty(self)?;
        let fresh = path.with_extension("json.new");
        let written = remove_if_there(&fresh)
            .and_then(|()| crate::config::write_private(&fresh, text.as_bytes()))
            .and_then(|()| fs::rename(&fresh, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A start that was killed while it wrote has left its file behind.
fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where the state of a data directory is.
pub(super) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("dev.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_start_finds_the_keys_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = State::load(directory.path()).unwrap();
        assert!(first.internal_token.len() > 40);
        first.admin_key = "ak_default_x".into();
        first.runner = Some(RunnerIdentity {
            id: RunnerId::new(),
            token: "rk_default_x".into(),
        });
        first.save(directory.path()).unwrap();
        first.save(directory.path()).unwrap();
        let second = State::load(directory.path()).unwrap();
        assert_eq!(second.internal_token, first.internal_token);
        assert_eq!(second.admin_key, "ak_default_x");
        assert_eq!(second.runner.unwrap().token, "rk_default_x");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_reads_the_keys() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let state = State::load(directory.path()).unwrap();
        state.save(directory.path()).unwrap();
        let mode = fs::metadata(path(directory.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{state:?}").contains(&state.internal_token));
    }

    #[test]
    fn a_damaged_state_is_named_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(path(directory.path()), "{").unwrap();
        let error = State::load(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("dev.json") && error.contains("delete it"),
            "{error}"
        );
        assert!(path(directory.path()).exists());
    }
}
