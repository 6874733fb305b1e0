//! The demo's runner: a child process that is started again when it ends, and that ends with this one.
//!
//! The child is this same program under the name of the runner, so that it is always there and never of
//! another version. It holds the reading end of a pipe as its standard input and stops when that closes:
//! when it is told to, and also when this process is killed, since the system closes its pipes then.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

use super::state::RunnerIdentity;

/// The name by which this program acts as a runner.
const RUNNER: &str = "semilayer-runner";
/// Has the runner stop when its standard input closes.
const STOP_WITH_STDIN: &str = "--stop-with-stdin";

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A little longer than a runner gives its running jobs.
const STOP_TIMEOUT: Duration = Duration::from_secs(35);
/// What the child sees of this process's environment; proxies and ports are not for it.
const FORWARDED: &[&str] = &[
    "PATH",
    "HOME",
    "LD_LIBRARY_PATH",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "NO_COLOR",
];

/// Whether this process was started as the demo's runner.
pub fn is_runner() -> bool {
    std::env::args_os()
        .next()
        .is_some_and(|name| name == RUNNER)
}

/// A runner that is kept alive.
pub(super) struct Runner {
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Runner {
    /// Starts the runner, and starts it again whenever it ends.
    pub(super) fn start(
        identity: &RunnerIdentity,
        gateway: &Url,
        tag_sql: bool,
    ) -> anyhow::Result<Self> {
        let program = Program {
            executable: std::env::current_exe().context("cannot find this program's own file")?,
            identity: identity.clone(),
            gateway_url: gateway.as_str().replacen("http", "ws", 1),
            tag_sql,
        };
        let first = program.spawn().with_context(|| {
            format!(
                "cannot start a runner from {}",
                program.executable.display()
            )
        })?;
        let (stop, stopped) = oneshot::channel();
        let keeper = tokio::spawn(keep(program, first, stopped));
        Ok(Self { stop, keeper })
    }

    /// Lets the runner finish its jobs and waits for its end.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        // A keeper that is gone has nothing left to stop.
        let _ = self.stop.send(());
        self.keeper
            .await
            .context("the runner was not kept to its end")
    }
}

struct Program {
    executable: PathBuf,
    identity: RunnerIdentity,
    gateway_url: String,
    tag_sql: bool,
}

impl Program {
    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.executable);
        command
            .arg0(RUNNER)
            .args(["start", STOP_WITH_STDIN])
            .env_clear()
            .envs(
                std::env::vars_os()
                    .filter(|(name, _)| FORWARDED.iter().any(|forwarded| name == forwarded)),
            )
            .env("SEMILAYER_RUNNER_ID", self.identity.id.to_string())
            .env("SEMILAYER_RUNNER_TOKEN", &self.identity.token)
            .env("SEMILAYER_GATEWAY_URL", &self.gateway_url)
            .stdin(Stdio::piped())
            // Standard output is for what `semilayer dev` itself has to say.
            .stdout(std::io::stderr())
            // Ctrl-C at a terminal goes to the whole group; this one ends in its own time.
            .process_group(0)
            .kill_on_drop(true);
        if self.tag_sql {
            command.env("SEMILAYER_TAG_SQL", "1");
        }
        command.spawn()
    }
}

async fn keep(program: Program, first: Child, mut stopped: oneshot::Receiver<()>) {
    let mut child = Some(first);
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(mut running) = child.take() {
            let started = Instant::now();
            // Held here: `wait` would close it first, and with it the runner.
            let stdin = running.stdin.take();
            tokio::select! {
                ended = running.wait() => match ended {
                    Ok(status) => log::warn!("the demo's runner ended with {status}; starting it again in {pause:?}"),
                    Err(error) => log::warn!("cannot wait for the demo's runner: {error}"),
                },
                _ = &mut stopped => {
                    drop(stdin);
                    return end(running).await;
                }
            }
            if started.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stopped => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
        match program.spawn() {
            Ok(next) => child = Some(next),
            Err(error) => log::error!("cannot start the demo's runner: {error}"),
        }
    }
}

/// Waits for a runner that was told to stop, and no longer than it may take.
async fn end(mut child: Child) {
    match tokio::time::timeout(STOP_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) => log::debug!("the demo's runner ended with {status}"),
        Ok(Err(error)) => log::warn!("cannot wait for the demo's runner: {error}"),
        Err(_) => {
            log::warn!("the demo's runner does not stop; killing it");
            if let Err(error) = child.kill().await {
                log::warn!("cannot kill the demo's runner: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use crate::ids::RunnerId;

    /// A program that appends to the file `log` beside it.
    struct Script(tempfile::TempDir);

    impl Script {
        fn new(body: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("runner");
            let log = directory.path().join("log");
            fs::write(
                &path,
                format!("#!/bin/sh\nexec 3>>'{}'\n{body}\n", log.display()),
            )
            .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            Self(directory)
        }

        fn program(&self) -> Program {
            Program {
                executable: self.0.path().join("runner"),
                identity: RunnerIdentity {
                    id: RunnerId::new(),
                    token: "rk_default_x".into(),
                },
                gateway_url: "ws://127.0.0.1:1/".into(),
                tag_sql: true,
            }
        }

        async fn until_log_has(&self, wanted: &str) {
            let read = || fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
            // Processes take real time, also where tokio's is paused.
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while std::time::Instant::now() < deadline {
                if read().contains(wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("no {wanted:?} in {:?}", read());
        }
    }

    fn kept(program: Program) -> Runner {
        let first = program.spawn().unwrap();
        let (stop, stopped) = oneshot::channel();
        Runner {
            stop,
            keeper: tokio::spawn(keep(program, first, stopped)),
        }
    }

    #[tokio::test]
    async fn a_runner_is_told_who_it_is_and_where_to_dial() {
        let script = Script::new(
            "echo \"$1 $2 $SEMILAYER_RUNNER_TOKEN $SEMILAYER_GATEWAY_URL $SEMILAYER_TAG_SQL\" >&3; cat",
        );
        let runner = kept(script.program());
        script
            .until_log_has("start --stop-with-stdin rk_default_x ws://127.0.0.1:1/ 1\n")
            .await;
        runner.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_runner_that_is_told_to_stop_may_finish() {
        let script = Script::new("echo started >&3; cat >/dev/null; echo finished >&3");
        let runner = kept(script.program());
        script.until_log_has("started").await;
        runner.stop().await.unwrap();
        script.until_log_has("finished").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_runner_that_ends_is_started_again() {
        let script = Script::new("echo started >&3; exit 1");
        let runner = kept(script.program());
        script.until_log_has("started\nstarted\nstarted").await;
        runner.stop().await.unwrap();
    }
}
