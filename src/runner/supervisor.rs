//! Keeps the runner connected.
//!
//! Dials, dials again, moves to another gateway when asked to or when it has been with one for an hour, and
//! ends in order when it is told to stop. It owns the sessions, not what happens in them.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::dial::Dialer;
use super::reconnect::{self, Backoff};
use super::session::{ConnectError, DrainWish, Session, SessionEnd, SessionLinks, told};
use super::worker::Worker;
use crate::ids::GatewayId;

/// The longest wait that a gateway's `Retry-After` can ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// When the supervisor does what it does of its own accord.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// How long jobs may go on after the process was told to stop.
    pub drain: Duration,
    /// How long the runner stays with one gateway, on average.
    pub move_after: Duration,
    /// By how much that varies, so that a fleet does not move at once.
    pub move_jitter: Duration,
    /// How long jobs may go on at the gateway that was left for no reason but load.
    pub moved_jobs: Duration,
    /// How often to look for another gateway than the one that drains before that one will do again.
    pub tries: u32,
    /// How long to wait between those tries.
    pub between_tries: Duration,
}

impl Schedule {
    /// Moves after `after` on average, give or take a sixth.
    pub fn moving_after(after: Duration) -> Self {
        Self {
            move_after: after,
            move_jitter: after / 6,
            ..Self::default()
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            drain: Duration::from_secs(30),
            move_after: Duration::from_secs(60 * 60),
            move_jitter: Duration::from_secs(10 * 60),
            // No job's deadline is further away than this.
            moved_jobs: Duration::from_secs(10 * 60),
            tries: 5,
            between_tries: Duration::from_millis(500),
        }
    }
}

/// How the runner ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop, and has.
    Stopped,
    /// The gateway will not have it with this token and id; says why.
    Refused(String),
}

/// Keeps one runner connected.
pub struct Supervisor {
    worker: Arc<Worker>,
    dialer: Dialer,
    schedule: Schedule,
    backoff: Backoff,
    /// Sessions that only finish what runs in them.
    retired: Vec<Running>,
}

/// A session at work.
struct Running {
    since: Instant,
    session: JoinHandle<SessionEnd>,
    retire: watch::Sender<Option<Instant>>,
    drains: mpsc::Receiver<DrainWish>,
    gateway: Option<GatewayId>,
}

/// What to do after a session was served.
enum Next {
    /// Serve this one.
    Serve(Running),
    /// Dial again after this long.
    Dial(Duration),
    /// End.
    End(Exit),
}

impl Supervisor {
    /// Prepares to dial; nothing is connected yet.
    pub fn new(worker: Arc<Worker>, dialer: Dialer, schedule: Schedule) -> Self {
        Self {
            worker,
            dialer,
            schedule,
            backoff: Backoff::default(),
            retired: Vec::new(),
        }
    }

    /// Works until `stop` fires or the gateway refuses for good.
    pub async fn run(mut self, stop: CancellationToken) -> Exit {
        let mut next = Next::Dial(Duration::ZERO);
        loop {
            next = match next {
                Next::Dial(wait) => {
                    tokio::select! {
                        () = stop.cancelled() => Next::End(Exit::Stopped),
                        next = self.dial(wait) => next,
                    }
                }
                Next::Serve(running) => self.serve(running, &stop).await,
                Next::End(exit) => {
                    self.end().await;
                    return exit;
                }
            }
        }
    }

    /// Waits, then dials once.
    async fn dial(&mut self, wait: Duration) -> Next {
        sleep(wait).await;
        match Session::connect(&self.dialer, &self.worker).await {
            Ok(session) => Next::Serve(self.begin(session)),
            Err(ConnectError::Fatal(why)) => Next::End(Exit::Refused(why)),
            Err(ConnectError::Retry { message, after }) => {
                let wait = self
                    .backoff
                    .next_wait()
                    .max(after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
                log::warn!(
                    "not connected: {message}; next try in {:.1} s",
                    wait.as_secs_f64()
                );
                self.worker.connecting(Some(message));
                Next::Dial(wait)
            }
        }
    }

    fn begin(&self, session: Session) -> Running {
        self.worker
            .connected(session.version(), &session.assigned());
        log::info!(
            "connected to {} with protocol {}",
            self.worker.config().gateway,
            session.version()
        );
        // For people and for scripts that wait for it; nobody listening is no reason to stop.
        let _ = writeln!(std::io::stdout(), "connected, awaiting jobs");
        self.spawn(session, None)
    }

    /// Lets a session work, or only leave when it is given a deadline to retire by.
    fn spawn(&self, session: Session, retire_by: Option<Instant>) -> Running {
        let gateway = session.gateway_id;
        let (retire, retired) = watch::channel(retire_by);
        let (drain, drains) = mpsc::channel(1);
        let links = SessionLinks {
            retire: retired,
            drains: drain,
        };
        let session = tokio::spawn(session.run(Arc::clone(&self.worker), links));
        Running {
            since: Instant::now(),
            session,
            retire,
            drains,
            gateway,
        }
    }

    /// Waits for whatever comes first: the session's end, a wish to drain, the time to move, the order to stop.
    async fn serve(&mut self, mut running: Running, stop: &CancellationToken) -> Next {
        let mut move_at = self.time_to_move();
        loop {
            let wish = tokio::select! {
                () = stop.cancelled() => {
                    self.retired.push(running);
                    return Next::End(Exit::Stopped);
                }
                end = &mut running.session => return self.ended(running.since, end),
                Some(wish) = running.drains.recv() => Some(wish),
                () = sleep_until(move_at) => None,
            };
            if let Some(wish) = &wish {
                log::info!("the gateway asks to go elsewhere: {}", wish.reason);
            }
            // Meanwhile the session goes on serving: it is a task of its own.
            let found = tokio::select! {
                () = stop.cancelled() => continue,
                end = &mut running.session => return self.ended(running.since, end),
                found = self.replacement(running.gateway, wish.as_ref()) => found,
            };
            let deadline = wish.as_ref().map_or_else(
                || Instant::now() + self.schedule.moved_jobs,
                |wish| wish.deadline,
            );
            let next = match (found, wish) {
                (Some(session), _) => Next::Serve(self.begin(session)),
                (None, Some(_)) => Next::Dial(Duration::ZERO),
                (None, None) => {
                    move_at = self.time_to_move();
                    continue;
                }
            };
            self.retire(running, deadline);
            return next;
        }
    }

    fn time_to_move(&self) -> Instant {
        let Schedule {
            move_after,
            move_jitter,
            ..
        } = self.schedule;
        let jitter = move_jitter.mul_f64(rand::rng().random_range(0.0..=2.0));
        Instant::now() + (move_after + jitter).saturating_sub(move_jitter)
    }

    fn retire(&mut self, running: Running, deadline: Instant) {
        running.retire.send_replace(Some(deadline));
        self.keep_retired(running);
    }

    fn keep_retired(&mut self, running: Running) {
        self.retired.retain(|old| !old.session.is_finished());
        self.retired.push(running);
    }

    /// A session to go on with, on another gateway. Moving of its own accord, another gateway is the whole point,
    /// and one try has to do. Asked to drain, any gateway will do after some tries, and the search goes on for as
    /// long as the old session may stay: it ends only when there is something better.
    async fn replacement(
        &mut self,
        current: Option<GatewayId>,
        wish: Option<&DrainWish>,
    ) -> Option<Session> {
        let until = wish.map_or_else(
            || Instant::now() + self.schedule.drain,
            |wish| wish.deadline,
        );
        for tried in 1_u32.. {
            let any_will_do = wish.is_some() && tried >= self.schedule.tries;
            match timeout_at(until, Session::connect(&self.dialer, &self.worker)).await {
                Ok(Ok(session)) if session.gateway_id != current || any_will_do => {
                    return Some(session);
                }
                // It was a candidate for jobs, so it leaves like any other; the search does not wait for it.
                Ok(Ok(session)) => {
                    let leave_by = Instant::now() + self.schedule.moved_jobs;
                    let leaving = self.spawn(session, Some(leave_by));
                    self.keep_retired(leaving);
                }
                Ok(Err(e)) => log::warn!("looking for another gateway: {e}"),
                Err(_) => return None,
            }
            if wish.is_none() || Instant::now() + self.schedule.between_tries >= until {
                break;
            }
            sleep(self.schedule.between_tries).await;
        }
        None
    }

    fn ended(&mut self, since: Instant, end: Result<SessionEnd, tokio::task::JoinError>) -> Next {
        let (code, what) = match end {
            Ok(SessionEnd::Closed { code, reason }) => {
                if let Some(why) = code.and_then(reconnect::fatal) {
                    return Next::End(Exit::Refused(why.to_owned()));
                }
                (
                    code,
                    format!("the gateway closed the session{}", told(code, &reason)),
                )
            }
            Ok(SessionEnd::Lost(what)) => (None, what),
            Ok(SessionEnd::Protocol(what)) => (None, format!("protocol error: {what}")),
            Ok(SessionEnd::Retired) => (None, "the session was finished".to_owned()),
            Err(e) => (None, format!("the session failed: {e}")),
        };
        let wait = self.backoff.wait_after(since.elapsed(), code);
        log::warn!(
            "disconnected: {what}; reconnecting in {:.1} s",
            wait.as_secs_f64()
        );
        self.worker.connecting(Some(what));
        Next::Dial(wait)
    }

    /// Lets every session finish what runs in it.
    async fn end(&mut self) {
        self.worker.draining();
        let deadline = Instant::now() + self.schedule.drain;
        for running in &self.retired {
            // A session that has less time left keeps it: it told its gateway so.
            running.retire.send_if_modified(|at| {
                let sooner = at.is_none_or(|at| at > deadline);
                if sooner {
                    *at = Some(deadline);
                }
                sooner
            });
        }
        // Sessions end by themselves shortly after their deadline; this is for one that does not.
        let hard = deadline + Duration::from_secs(10);
        for running in std::mem::take(&mut self.retired) {
            let _ = timeout_at(hard, running.session).await;
        }
        // Sessions that were left in the handshake end beside the others.
        let left = hard.saturating_duration_since(Instant::now());
        self.worker
            .jobs_ended(left.max(Duration::from_secs(5)))
            .await;
    }
}
