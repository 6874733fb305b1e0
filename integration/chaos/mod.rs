//! Chaos: everything dies at random moments while callers ask, and nothing that was accepted is lost, done twice
//! or answered with somebody else's rows.
//!
//! `SEMILAYER_CHAOS_SECONDS` makes it a long run with the product's own intervals, `SEMILAYER_CHAOS_SEED` repeats
//! the choices of another run, and `SEMILAYER_CHAOS_LOGS` names a directory for the logs of every process.

mod callers;
mod dice;
mod events;
mod invariants;
mod report;
mod revocations;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::cluster::node::setting;
use crate::support::cluster::{Cluster, Plan, one_at_a_time};
use callers::Callers;
use dice::Dice;
use events::Chaos;

/// How a run differs from another.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    /// Intervals of the gateways; empty: the product's own.
    pub(crate) timing: &'static str,
    pub(crate) callers: u64,
    /// The longest that a caller rests between two questions.
    pub(crate) rest: Duration,
    /// The longest pause between two events.
    pub(crate) pause: Duration,
    /// For how long a gateway is stopped: longer than its lease.
    pub(crate) stopped: Duration,
    /// How soon a change is known without being announced.
    pub(crate) unannounced: Duration,
    /// How long a session's row may outlive its socket.
    pub(crate) session_row: Duration,
    /// How long a process that was told to stop may take.
    pub(crate) drain: Duration,
}

impl Profile {
    fn of_this_run() -> Self {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let seed = setting("SEMILAYER_CHAOS_SEED").map_or(u64::from(now.subsec_micros()), |seed| {
            seed.parse().expect("SEMILAYER_CHAOS_SEED is a number")
        });
        match long_run() {
            Some(length) => Self::long(seed, length),
            None => Self::short(seed),
        }
    }

    /// For the test command: half a minute, with a failover every few seconds.
    fn short(seed: u64) -> Self {
        let s = Duration::from_secs;
        Self {
            seed,
            length: s(30),
            timing: QUICK,
            callers: 8,
            rest: Duration::from_millis(60),
            pause: s(2),
            stopped: s(7),
            unannounced: s(8),
            session_row: s(30),
            drain: s(30),
        }
    }

    /// The product's own intervals.
    fn long(seed: u64, length: Duration) -> Self {
        let s = Duration::from_secs;
        Self {
            seed,
            length,
            timing: "",
            callers: 16,
            rest: Duration::from_millis(40),
            pause: s(5),
            stopped: s(22),
            unannounced: s(30),
            session_row: s(60),
            drain: s(60),
        }
    }
}

/// Intervals with which a gateway is lost after four seconds.
pub(crate) const QUICK: &str = "gateway_lease=4s,gateway_renewal=1s,sweep=2s,stale_claim=5s,catalogue_poll=4s,\
    heartbeat_v2=1s,ping=1s,cut_off_v2=3s,close_after_unroutable=2s,persist_heartbeats=2s,default_deadline=10s,\
    deadline_grace=5s,max_deadline=60s,drain=10s,serve_on=3s,moving_grace=3s,pending_poll=300ms";

/// In a run of this length everything happens.
const LONG_ENOUGH: Duration = Duration::from_secs(500);

/// How long the long run shall be, if this is one.
pub(crate) fn long_run() -> Option<Duration> {
    setting("SEMILAYER_CHAOS_SECONDS").map(|seconds| {
        let seconds = seconds.parse();
        Duration::from_secs(seconds.expect("SEMILAYER_CHAOS_SECONDS is a number"))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_dies_nothing_is_lost_or_done_twice() {
    let _alone = one_at_a_time().await;
    let profile = Profile::of_this_run();
    println!("SEMILAYER_CHAOS_SEED={}", profile.seed);
    let plan = Plan {
        gateways: 3,
        runners: 4,
        timing: profile.timing.to_owned(),
        store_options: "",
        audit: true,
    };
    let cluster = Arc::new(Cluster::start(plan).await);
    let callers = Callers::start(&cluster, &profile);
    let watch = invariants::Watch::start(&cluster, &callers.ledger, &profile);
    let chaos = Chaos::new(&cluster, &callers.ledger, &profile);
    let begun = Instant::now();
    chaos.run(Dice::new(profile.seed)).await;
    println!("chaos ends after {:?}", begun.elapsed());

    // Whoever is connected can be reached within ten seconds, while callers go on asking.
    let routable = invariants::every_connected_runner_is_routable(&cluster).await;
    let ledger = callers.finish().await;
    let ended = invariants::every_job_ends(&cluster).await;
    let sessions = invariants::sessions_are_those_of_open_sockets(&cluster, &profile).await;
    watch.stop().await;
    for late in [routable, ended, sessions]
        .into_iter()
        .filter_map(Result::err)
    {
        ledger.wrong(late);
    }
    let found = invariants::inspect(&cluster, &ledger).await;
    if profile.length >= LONG_ENOUGH && !chaos.never_happened().is_empty() {
        ledger.wrong(format!("never happened: {:?}", chaos.never_happened()));
    }
    report::print(&profile, &chaos, &ledger, &found);
    let wrong = ledger.wrong.lock().unwrap().clone();
    assert!(
        wrong.is_empty(),
        "{} violations with SEMILAYER_CHAOS_SEED={}, among them {:#?}",
        wrong.len(),
        profile.seed,
        &wrong[..wrong.len().min(10)]
    );
}
