//! How a process of the product starts and ends: TLS provider, runtime, signals, exit codes.
//!
//! Knows nothing of what runs in between.

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use actix::System;
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// A failure while running.
pub const EXIT_FAILED: u8 = 1;
/// Flags, variables or input that cannot be used.
pub const EXIT_USAGE: u8 = 2;

/// Signals that come within this time of the first mean the same.
const ONE_WISH: Duration = Duration::from_millis(500);

/// Installs the process's TLS provider; first thing in every `main`, because building any TLS
/// configuration without one panics.
pub fn install_tls_provider() {
    // A second call finds the same provider in place, which is what it wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Runs `main` inside an actix system on one shared multi-thread runtime, until it returns or a core
/// actor takes the system down; answers with the exit code of whichever came first.
///
/// Actors keep to the main thread; storage spawns onto the runtime's own threads, which no actix worker
/// would offer.
pub fn run_system<F>(main: F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>> + 'static,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("semilayer")
        .build()
        .context("cannot start the runtime")?;
    let runtime = Arc::new(runtime);
    let shared = runtime.clone();
    let system = System::with_tokio_rt(move || shared);
    let (done, mut outcome) = oneshot::channel();
    system.runtime().spawn(async move {
        let outcome = main.await;
        if done.send(outcome).is_ok() {
            System::current().stop();
        }
    });
    let stopped_with = system.run_with_code().context("the runtime failed")?;
    // What still runs on the shared runtime must not hold up the exit.
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_background();
    }
    match outcome.try_recv() {
        Ok(outcome) if stopped_with == 0 => outcome,
        _ => Ok(ExitCode::from(
            u8::try_from(stopped_with).unwrap_or(EXIT_FAILED),
        )),
    }
}

/// The signals that ask the process to stop, caught from the moment this is made.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Starts to catch SIGTERM and SIGINT.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the first signal. From then on a second one ends the process at once, with 128 + its
    /// number as shells expect.
    pub async fn requested(mut self) {
        let (name, _) = self.next().await;
        log::info!("{name}: stopping; a second signal stops at once");
        tokio::spawn(async {
            // `timeout` and process managers signal the process and its group: that is one wish, not two.
            tokio::time::sleep(ONE_WISH).await;
            let Ok(mut again) = Self::catch() else { return };
            let (name, number) = again.next().await;
            log::warn!("{name} again: not waiting any longer");
            std::process::exit(128 + number);
        });
    }

    async fn next(&mut self) -> (&'static str, i32) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 15),
            _ = self.interrupt.recv() => ("SIGINT", 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(main: impl Future<Output = anyhow::Result<ExitCode>> + 'static) -> String {
        format!("{:?}", run_system(main).unwrap())
    }

    #[test]
    fn the_exit_code_is_that_of_main() {
        assert_eq!(
            code(async { Ok(ExitCode::from(7)) }),
            format!("{:?}", ExitCode::from(7))
        );
    }

    #[test]
    fn an_error_of_main_comes_out() {
        let error = run_system(async { anyhow::bail!("no such port") }).unwrap_err();
        assert_eq!(error.to_string(), "no such port");
    }

    #[test]
    fn an_actor_that_stops_the_system_ends_the_process_with_its_code() {
        let main = async {
            System::current().stop_with_code(70);
            std::future::pending().await
        };
        assert_eq!(code(main), format!("{:?}", ExitCode::from(70)));
    }

    #[test]
    fn main_sees_the_shared_runtime() {
        let main = async {
            let spawned = tokio::spawn(async { std::thread::current().name().map(str::to_owned) });
            assert_eq!(spawned.await?.as_deref(), Some("semilayer"));
            Ok(ExitCode::SUCCESS)
        };
        assert_eq!(code(main), format!("{:?}", ExitCode::SUCCESS));
    }
}
