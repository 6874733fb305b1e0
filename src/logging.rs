//! The log of every program: `env_logger` to stderr, level by `RUST_LOG`, with one restriction.
//!
//! Below `warn` only this project's own modules are heard: WebSocket and HTTP libraries write headers and
//! frames (tokens, rows) at `trace`, database drivers statements with their parameters at `debug`, and
//! none of that may ever be written down.

use env_logger::{Builder, Env, Logger};
use log::{Level, Log, Metadata, Record};

struct OwnModules(Logger);

impl OwnModules {
    fn may_speak(metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn || metadata.target().starts_with("semilayer")
    }
}

impl Log for OwnModules {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Self::may_speak(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if Self::may_speak(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Starts the log at the level that `RUST_LOG` says, else at `default`.
pub fn start(default: &str) {
    let logger = Builder::from_env(Env::default().default_filter_or(default)).build();
    let level = logger.filter();
    // A logger that is there already belongs to a test.
    if log::set_boxed_logger(Box::new(OwnModules(logger))).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_heard_from_warn_upwards_only() {
        for (target, level, heard) in [
            ("semilayer::control::session", Level::Trace, true),
            ("semilayer_runner", Level::Debug, true),
            ("tungstenite::handshake::client", Level::Trace, false),
            ("tokio_postgres::prepare", Level::Debug, false),
            ("actix_server::builder", Level::Info, false),
            ("rustls::client", Level::Warn, true),
        ] {
            let metadata = Metadata::builder().target(target).level(level).build();
            assert_eq!(OwnModules::may_speak(&metadata), heard, "{target}");
        }
    }
}
