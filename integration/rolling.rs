//! A rolling restart of all gateways and then of all runners, under load: nobody notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::chaos::long_run;
use crate::support::cluster::load::{Ids, Ledger, Question};
use crate::support::cluster::{Cluster, Plan, one_at_a_time};

/// How it is done in the test command, where it shall not take minutes.
const QUICK: &str = "drain=10s,catalogue_poll=5s,serve_on=3s";
/// For how long a process may drain.
const PATIENCE: Duration = Duration::from_secs(60);

struct Totals {
    asked: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    let _alone = one_at_a_time().await;
    let long = long_run().is_some();
    let (callers, at_least) = if long { (16, 20_000) } else { (6, 2_000) };
    let plan = Plan {
        gateways: 3,
        runners: 4,
        timing: if long {
            String::new()
        } else {
            QUICK.to_owned()
        },
        store_options: "",
        audit: false,
    };
    let cluster = Arc::new(Cluster::start(plan).await);
    let ledger = Arc::new(Ledger::default());
    let totals = Arc::new(Totals {
        asked: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let ids = Arc::new(Ids::default());
    let tasks: Vec<_> = (0..callers)
        .map(|n| {
            let caller = cluster.caller();
            let (ledger, totals, ids) =
                (Arc::clone(&ledger), Arc::clone(&totals), Arc::clone(&ids));
            tokio::spawn(async move {
                let mut turn = n;
                while !totals.stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let question = question(turn, &ids);
                    totals.asked.fetch_add(1, Ordering::Relaxed);
                    if !ledger.ask(question.lens, &caller, &question).await {
                        totals.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();

    let begun = Instant::now();
    let say = |what: &str| {
        println!(
            "{:>6.1} s  {what}; {} asked, {} failed",
            begun.elapsed().as_secs_f64(),
            totals.asked.load(Ordering::Relaxed),
            totals.failed.load(Ordering::Relaxed)
        );
    };
    // Round after round, so that all of it is asked while something restarts.
    let mut rounds = 0;
    while rounds == 0 || totals.asked.load(Ordering::Relaxed) < at_least {
        rounds += 1;
        for (n, node) in cluster.gateways.iter().enumerate() {
            let mut node = node.lock().await;
            node.stop(PATIENCE).await.unwrap();
            node.start();
            node.until_ready(PATIENCE).await;
            drop(node);
            // The next one goes when this one does its part again, as an orchestrator waits for readiness; runners have to
            // be reachable through it before it counts.
            cluster
                .all_runners_serve(n, &cluster.runner_ids, PATIENCE)
                .await
                .unwrap();
            say(&format!("gateway {n} restarted"));
        }
        for (n, node) in cluster.runners.iter().enumerate() {
            let mut node = node.lock().await;
            node.stop(PATIENCE).await.unwrap();
            node.restart();
            drop(node);
            cluster.until_everything_is_reachable(PATIENCE).await;
            say(&format!("runner {n} restarted"));
        }
    }
    totals.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    say("done");
    let (asked, failed) = (
        totals.asked.load(Ordering::Relaxed),
        totals.failed.load(Ordering::Relaxed),
    );
    println!(
        "{rounds} rolling restarts of 3 gateways and 4 runners: {asked} requests, {failed} failed; latency p50 {:?}, p90 {:?}, \
         p99 {:?}, longest {:?}",
        ledger.percentile(0.5),
        ledger.percentile(0.9),
        ledger.percentile(0.99),
        ledger.percentile(1.0)
    );
    assert_eq!(failed, 0, "of {asked}: {:#?}", ledger.outcomes.counts());
}

/// Mostly small ones; one in sixteen takes a second, which is shorter than the drain.
fn question(turn: u64, ids: &Ids) -> Question {
    match turn % 16 {
        7 => Question {
            lens: "slow",
            ids: ids.take(4),
            ndjson: false,
        },
        11 => Question {
            lens: "items",
            ids: ids.take(2_000),
            ndjson: true,
        },
        _ => Question {
            lens: "items",
            ids: ids.take(10),
            ndjson: false,
        },
    }
}
