//! What holds whatever happened, seen from outside: from the store's tables, the database's log, the sockets, and
//! what callers were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::Profile;
use crate::support::cluster::Cluster;
use crate::support::cluster::load::{Ledger, Seen};
use crate::support::cluster::witness::Executions;
use crate::support::eventually::{holds, within};

/// A runner is routable this long after its socket opened.
const ROUTABLE: Duration = Duration::from_secs(10);
/// The longest pause between two attempts of a runner to connect, and some.
const RECONNECT: Duration = Duration::from_secs(45);
/// Jobs end this long after their deadline at the latest.
const AFTER_DEADLINE: Duration = Duration::from_secs(60);

/// Watches sessions and processes while everything dies.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn start(cluster: &Arc<Cluster>, ledger: &Arc<Ledger>, profile: &Profile) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, limit) = (Arc::clone(&stop), profile.session_row);
        let (cluster, ledger) = (Arc::clone(cluster), Arc::clone(ledger));
        let task = tokio::spawn(async move {
            let mut reported = vec![false; cluster.lines.len()];
            while !stopped.load(Ordering::Relaxed) {
                rows_do_not_outlive_sockets(&cluster, &ledger, limit, &mut reported).await;
                nobody_ended_by_itself(&cluster, &ledger).await;
                sleep(Duration::from_millis(500)).await;
            }
        });
        Self { stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// No runner has more rows in the store than it had sockets at any time within the limit.
async fn rows_do_not_outlive_sockets(
    cluster: &Cluster,
    ledger: &Ledger,
    limit: Duration,
    reported: &mut [bool],
) {
    // While the store is down nobody can tell.
    let Some(rows) = session_rows(cluster).await else {
        return;
    };
    for (n, id) in cluster.runner_ids.iter().enumerate() {
        let sockets = cluster.lines[n].open_within(limit);
        let rows = rows.get(id).copied().unwrap_or(0);
        if rows > sockets && !reported[n] {
            reported[n] = true;
            ledger.wrong(format!(
                "runner-{n} has {rows} session rows, and had {sockets} sockets in the last {limit:?}"
            ));
        }
    }
}

async fn session_rows(cluster: &Cluster) -> Option<BTreeMap<String, usize>> {
    let client = cluster.store_client().await.ok()?;
    let sql = "SELECT runner_id, count(*) FROM runner_sessions GROUP BY 1";
    let rows = client.query(sql, &[]).await.ok()?;
    let row = |row: &tokio_postgres::Row| {
        let count: i64 = row.get(1);
        (row.get(0), usize::try_from(count).unwrap())
    };
    Some(rows.iter().map(row).collect())
}

/// Processes end when they are told to, and only then.
async fn nobody_ended_by_itself(cluster: &Cluster, ledger: &Ledger) {
    // Whoever is being tormented is looked at later.
    for node in &cluster.gateways {
        let ended = node.try_lock().ok().and_then(|mut node| node.ended());
        if let Some(how) = ended {
            ledger.wrong(how);
            let mut node = node.lock().await;
            node.revive();
        }
    }
    for node in &cluster.runners {
        let ended = node.try_lock().ok().and_then(|mut node| node.ended());
        if let Some(how) = ended {
            ledger.wrong(how);
            node.lock().await.revive();
        }
    }
}

/// Every connected runner answers queries that enter at any gateway.
pub(crate) async fn every_connected_runner_is_routable(cluster: &Cluster) -> Result<(), String> {
    within("every runner is connected", RECONNECT, async || {
        let open: Vec<usize> = cluster.lines.iter().map(|line| line.open()).collect();
        holds(open.iter().all(|open| *open > 0), open)
    })
    .await?;
    cluster.everything_is_reachable(ROUTABLE).await
}

/// No job is left in a state that is not an end.
pub(crate) async fn every_job_ends(cluster: &Cluster) -> Result<(), String> {
    let open = "SELECT id, status, attempt, detached, deadline_at FROM runner_jobs WHERE status NOT IN \
                ('completed', 'failed', 'cancelled', 'expired') LIMIT 5";
    let longest = "SELECT coalesce(ceil(extract(epoch FROM max(deadline_at) - (now() AT TIME ZONE 'UTC'))), 0) \
                   FROM runner_jobs WHERE finished_at IS NULL";
    let left = cluster.store_rows(longest).await;
    let left: f64 = left[0][0].parse().unwrap();
    let patience = AFTER_DEADLINE + Duration::from_secs_f64(left.max(0.0));
    within("every job ends", patience, async || {
        let open = cluster.store_rows(open).await;
        holds(open.is_empty(), open)
    })
    .await
}

/// Each row of a session belongs to a socket that is open, and each socket has one.
pub(crate) async fn sessions_are_those_of_open_sockets(
    cluster: &Cluster,
    profile: &Profile,
) -> Result<(), String> {
    within(
        "the store's sessions are those of open sockets",
        profile.session_row,
        async || {
            let rows = session_rows(cluster).await.ok_or("the store is down")?;
            let open: BTreeMap<String, usize> = cluster
                .runner_ids
                .iter()
                .cloned()
                .zip(cluster.lines.iter().map(|line| line.open()))
                .collect();
            let of_runners: BTreeMap<String, usize> = rows
                .into_iter()
                .filter(|(id, _)| open.contains_key(id))
                .collect();
            holds(of_runners == open, (of_runners, open))
        },
    )
    .await
}

/// What was found in the end, for the table.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) jobs: BTreeMap<String, u64>,
    pub(crate) facts: Vec<(&'static str, u64)>,
}

struct Job {
    status: String,
    attempt: u32,
    retry: bool,
    late: f64,
}

/// Compares what callers saw, what the store says, and what the database executed.
pub(crate) async fn inspect(cluster: &Cluster, ledger: &Ledger) -> Found {
    let jobs = jobs(cluster).await;
    let executions = Executions::of(cluster);
    let mut found = Found::default();
    let mut latest = 0.0_f64;
    for (id, job) in &jobs {
        let kind = if job.retry {
            "may be repeated"
        } else {
            "never repeated"
        };
        *found
            .jobs
            .entry(format!("{}, {kind}", job.status))
            .or_default() += 1;
        latest = latest.max(job.late);
        if job.late > AFTER_DEADLINE.as_secs_f64() {
            ledger.wrong(format!("job {id} ended {} s after its deadline", job.late));
        }
        executed_as_allowed(id, job, &executions, ledger);
    }
    one_end_each(cluster, ledger).await;
    let (lost, otherwise) = answered_jobs(&jobs, &executions, ledger);
    for id in executions.0.keys().filter(|id| !jobs.contains_key(*id)) {
        ledger.wrong(format!("job {id} was executed and is not recorded"));
    }
    let repeated = jobs.values().filter(|job| job.attempt > 1).count();
    found.facts = vec![
        ("jobs recorded", jobs.len() as u64),
        ("jobs with more than one attempt", repeated as u64),
        ("executions at the database", executions.total()),
        ("notifications lost", lost_notifications(cluster)),
        (
            "answered, but the gateway died before it could record that",
            otherwise,
        ),
        ("accepted jobs that were lost", lost),
    ];
    found
}

fn lost_notifications(cluster: &Cluster) -> u64 {
    let wires = cluster.wires.iter();
    wires.map(|wire| wire.lost_notifications() as u64).sum()
}

async fn jobs(cluster: &Cluster) -> BTreeMap<String, Job> {
    let sql = "SELECT id, status, attempt, retry, \
               coalesce(extract(epoch FROM finished_at - deadline_at), 0) FROM runner_jobs";
    let rows = cluster.store_rows(sql).await;
    rows.into_iter()
        .map(|row| {
            let job = Job {
                status: row[1].clone(),
                attempt: row[2].parse().unwrap(),
                retry: row[3] == "t",
                late: row[4].parse().unwrap(),
            };
            (row[0].clone(), job)
        })
        .collect()
}

/// Each attempt at most once, no attempt that was not recorded, and only one unless the job may be repeated.
fn executed_as_allowed(id: &str, job: &Job, executions: &Executions, ledger: &Ledger) {
    let Some(attempts) = executions.0.get(id) else {
        return;
    };
    for (attempt, times) in attempts {
        if *times > 1 {
            ledger.wrong(format!(
                "attempt {attempt} of job {id} was executed {times} times"
            ));
        }
        if *attempt > job.attempt {
            ledger.wrong(format!(
                "job {id} is at attempt {}, but {attempt} was executed",
                job.attempt
            ));
        }
    }
    let times = executions.of_job(id);
    if !job.retry && times > 1 {
        ledger.wrong(format!(
            "job {id} may not be repeated and was executed {times} times: {attempts:?}"
        ));
    }
}

/// A terminal state is entered exactly once and never left.
async fn one_end_each(cluster: &Cluster, ledger: &Ledger) {
    let terminal = "('completed', 'failed', 'cancelled', 'expired')";
    let twice = format!(
        "SELECT job, string_agg(coalesce(was, '-') || '→' || became || '/' || attempt, ' ' ORDER BY n) FROM audit \
         GROUP BY job HAVING count(*) FILTER (WHERE became IN {terminal}) <> 1 \
         OR bool_or(was IN {terminal})"
    );
    for row in cluster.store_rows(&twice).await {
        ledger.wrong(format!(
            "job {} did not end exactly once: {}",
            row[0], row[1]
        ));
    }
}

/// What callers were told is what is recorded and what was executed. Answers with how many jobs were lost, and how
/// many were answered by a gateway that did not live to record it.
fn answered_jobs(
    jobs: &BTreeMap<String, Job>,
    executions: &Executions,
    ledger: &Ledger,
) -> (u64, u64) {
    let (mut lost, mut otherwise) = (0, 0);
    for (id, seen) in ledger.seen.lock().unwrap().clone() {
        let Some(job) = jobs.get(&id) else {
            lost += 1;
            ledger.wrong(format!("job {id} was {seen:?} and is not recorded"));
            continue;
        };
        if seen == Seen::Answered && job.status != "completed" {
            otherwise += 1;
        }
        if seen == Seen::Answered && executions.of_job(&id) == 0 {
            ledger.wrong(format!("job {id} was answered and never executed"));
        }
    }
    (lost, otherwise)
}
