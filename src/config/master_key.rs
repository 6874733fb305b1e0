//! The key that wraps the data keys of stored credentials: from the environment, or on the embedded
//! store generated once into a file that only its owner reads.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretBox};
use zeroize::Zeroizing;

use super::{ConfigError, Variable};

/// 32 secret bytes that wrap data keys.
pub struct MasterKey(SecretBox<[u8; 32]>);

impl MasterKey {
    /// The bytes, for the code that seals and unseals.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }

    /// Takes over bytes from elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(SecretBox::new(Box::new(bytes)))
    }

    /// Reads a variable's value: 32 bytes in base64.
    pub(super) fn parse(variable: Variable, text: &str) -> Result<Self, ConfigError> {
        decode(text).ok_or_else(|| {
            ConfigError::invalid(
                variable,
                "it must be 32 bytes in base64; `openssl rand -base64 32` makes one",
            )
        })
    }

    /// Reads the key from `path`, or makes one and keeps it there, readable by its owner only.
    pub(super) fn load_or_create(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::MasterKeyFile {
            path: path.to_owned(),
            source,
        };
        match fs::read_to_string(path) {
            Ok(text) => return Self::from_file(path, text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        create(path).map_err(failed)?;
        Self::from_file(path, fs::read_to_string(path).map_err(failed)?)
    }

    fn from_file(path: &Path, text: String) -> Result<Self, ConfigError> {
        let text = Zeroizing::new(text);
        decode(&text).ok_or_else(|| ConfigError::MasterKeyDamaged {
            path: path.to_owned(),
        })
    }
}

impl Clone for MasterKey {
    fn clone(&self) -> Self {
        Self::from_bytes(*self.expose())
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey([REDACTED])")
    }
}

fn decode(text: &str) -> Option<MasterKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    bytes.as_slice().try_into().ok().map(MasterKey::from_bytes)
}

/// Writes a fresh key whole or not at all: a process that dies half-way leaves no half key behind, and
/// of two that start at once one wins and the other reads what it wrote.
fn create(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let bytes = Zeroizing::new(rand::random::<[u8; 32]>());
    let text = Zeroizing::new(STANDARD.encode(*bytes));
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let written =
        write_private(&fresh, text.as_bytes()).and_then(|()| match fs::hard_link(&fresh, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    fs::remove_file(&fresh)?;
    written
}

/// Creates a file that only its owner can read, and waits until it is on the disk.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}
