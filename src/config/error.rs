//! Why a configuration is not usable. Every message names the variable, and never shows a secret.

use std::io;
use std::path::PathBuf;

use super::Variable;

/// Why the process cannot start with what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is needed here was not given.
    #[error("{variable} is required: {hint}")]
    Missing {
        /// Which one.
        variable: Variable,
        /// What it is and where to get it.
        hint: &'static str,
    },
    /// A value is not of the right form.
    #[error("{variable} is not valid: {reason}")]
    Invalid {
        /// Which one.
        variable: Variable,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The file of the generated master key cannot be read or written.
    #[error("cannot read or write the master key in {}", .path.display())]
    MasterKeyFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file of the generated master key holds something else.
    #[error(
        "{} does not hold a master key (32 bytes in base64): restore it from your backup; stored credentials cannot be read without it",
        .path.display()
    )]
    MasterKeyDamaged {
        /// The file.
        path: PathBuf,
    },
}

impl ConfigError {
    /// `semilayer dev` was given a certificate.
    pub fn no_tls_in_dev() -> Self {
        Self::invalid(
            Variable::TLS_CERT,
            "`semilayer dev` speaks plain HTTP; leave this unset, or start `semilayer gateway`",
        )
    }

    /// A value of the wrong form.
    pub(super) fn invalid(variable: Variable, reason: impl Into<String>) -> Self {
        Self::Invalid {
            variable,
            reason: reason.into(),
        }
    }
}
