//! One child process: its output in files, signals, and its end. The log is printed when the test fails.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::eventually;

/// A child process that does not outlive its handle.
pub(crate) struct Process {
    name: String,
    child: Child,
    output: TempDir,
}

impl Process {
    /// Starts `program` with nothing of this process's environment but `PATH`, logging at `debug`.
    pub(crate) fn command(program: &str) -> Command {
        let mut command = Command::new(program);
        #[expect(
            clippy::disallowed_methods,
            reason = "a child needs the path of the tests, and no more"
        )]
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", path)
            .env("RUST_LOG", "semilayer=debug,info")
            .env("RUST_BACKTRACE", "1");
        command
    }

    /// Starts the command under a name for messages.
    pub(crate) fn start(name: &str, mut command: Command) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(output.path().join(name)).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            output,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has printed so far.
    pub(crate) fn stdout(&self) -> String {
        read(&self.output.path().join("stdout"))
    }

    /// Everything that it has logged so far.
    pub(crate) fn log(&self) -> String {
        read(&self.output.path().join("stderr"))
    }

    /// Sends a signal by name, e.g. `KILL`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "{}: cannot send {name}", self.name);
    }

    /// `Some` once it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, timeout, async || {
            self.ended().ok_or_else(|| "it runs".to_owned())
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(120).collect();
            eprintln!("---- log of {} ({ended:?}), its last lines ----", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}
