//! A query costs the store writes that many queries share, and no read.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::support::cluster::load::{Ids, Ledger, Question};
use crate::support::cluster::{Cluster, Plan, one_at_a_time};

/// What runs in the background is put off until after the test, except for a gateway's presence.
const NOTHING_ELSE: &str = "gateway_renewal=2s,gateway_lease=60s,sweep=10m,catalogue_poll=10m,key_freshness=60m,\
    full_pass=60m,pending_poll=10m,persist_heartbeats=10m";
const QUERIES: u64 = 600;

/// What a statement of the store's log does, by its first word and its table.
fn kind(statement: &str) -> Option<String> {
    let words: Vec<&str> = statement.split_whitespace().collect();
    let first = words.first()?.to_uppercase();
    let after = |word: &str| {
        let at = words.iter().position(|w| w.eq_ignore_ascii_case(word))?;
        words.get(at + 1).map(|table| {
            table
                .trim_matches(|c: char| !c.is_alphanumeric() && c != '_')
                .to_owned()
        })
    };
    // What locks its rows in order before it writes them is a write.
    if first == "WITH" && words.contains(&"UPDATE") && words.contains(&"SET") {
        let table = words.windows(3).find(|w| w[0] == "UPDATE" && w[2] == "SET");
        return table.map(|w| format!("UPDATE {}", w[1]));
    }
    let table = match first.as_str() {
        "SELECT" | "DELETE" | "WITH" => after("FROM"),
        "INSERT" => after("INTO"),
        "UPDATE" => words.get(1).map(|table| table.trim_matches('"').to_owned()),
        _ => None,
    };
    Some(match table {
        Some(table) => format!("{first} {table}"),
        None => first,
    })
}

/// The statements in a log.
fn statements(log: &str) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for line in log.lines() {
        let executed = line.split_once("LOG:  statement: ").or_else(|| {
            line.split_once("LOG:  execute ")
                .and_then(|(_, rest)| rest.split_once(": "))
        });
        if let Some((_, statement)) = executed
            && let Some(kind) = kind(statement)
        {
            *found.entry(kind).or_default() += 1;
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_read_nothing_from_the_store() {
    let _alone = one_at_a_time().await;
    let plan = Plan {
        gateways: 2,
        runners: 2,
        timing: NOTHING_ELSE.to_owned(),
        store_options: "-c log_statement=all",
        audit: false,
    };
    let cluster = Cluster::start(plan).await;
    let (ledger, ids) = (Ledger::default(), Ids::default());
    let caller = cluster.caller();
    let ask = async |queries: u64| {
        stream::iter(0..queries)
            .map(|_| {
                let question = Question {
                    lens: "items",
                    ids: ids.take(3),
                    ndjson: false,
                };
                let (ledger, caller) = (&ledger, &caller);
                async move {
                    assert!(
                        ledger.ask("small", caller, &question).await,
                        "{:?}",
                        ledger.wrong
                    )
                }
            })
            .buffer_unordered(16)
            .for_each(async |()| {})
            .await;
    };
    // Pools fill up first: a new connection sets itself up.
    ask(100).await;
    let before = cluster.store.lock().await.log().len();
    let begun = std::time::Instant::now();
    ask(QUERIES).await;
    let took = begun.elapsed();
    // The last jobs are recorded as finished a moment later.
    crate::support::eventually(
        "every job is recorded",
        Duration::from_secs(20),
        async || {
            let open = cluster
                .store_rows("SELECT count(*) FROM runner_jobs WHERE finished_at IS NULL")
                .await;
            crate::support::eventually::holds(open[0][0] == "0", &open)
        },
    )
    .await;
    let log = cluster.store.lock().await.log();
    // The test's own connections count as well, so its questions are left out.
    let during = statements(&log[before..].replace("SELECT count(*) FROM runner_jobs", "OWN"));
    println!(
        "statements at the store during {QUERIES} queries through two gateways, in {took:.1?}:"
    );
    for (kind, times) in &during {
        println!("{times:>7}  {kind}");
    }
    let reads: BTreeMap<_, _> = during
        .iter()
        .filter(|(kind, _)| kind.starts_with("SELECT") || kind.starts_with("WITH"))
        .collect();
    // Presence is renewed every two seconds by each, with what belongs to it.
    let renewals = (took.as_secs() / 2 + 3) * 2;
    for (kind, times) in &reads {
        let presence = kind.contains("gateways") || !kind.contains(' ');
        assert!(
            presence && **times <= renewals * 3,
            "{times} × {kind} while {QUERIES} queries ran: {during:#?}"
        );
    }
    let writes: u64 = during
        .iter()
        .filter(|(kind, _)| kind.contains("runner_jobs"))
        .map(|(_, times)| times)
        .sum();
    println!(
        "writes to runner_jobs: {:.2} statements per query",
        count(writes) / count(QUERIES)
    );
    // Record, claim and mark; finish. With anything under way at the same time, they share transactions.
    assert!(writes <= QUERIES * 4, "{during:#?}");
}

fn count(n: u64) -> f64 {
    f64::from(u32::try_from(n).unwrap())
}
