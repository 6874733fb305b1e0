//! What the customer's database saw: how often each attempt of each job was executed.

use std::collections::BTreeMap;

use super::Cluster;

/// How often the database executed each attempt, by job.
#[derive(Debug, Default)]
pub(crate) struct Executions(pub(crate) BTreeMap<String, BTreeMap<u32, u32>>);

impl Executions {
    /// Reads the log of the customer's server.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self::in_log(&cluster.customer.log())
    }

    /// Counts the tags of queries. PostgreSQL writes one such line when it begins to execute one; what follows while
    /// more rows are fetched says `execute fetch from`, errors repeat the text as `STATEMENT`, the transaction around
    /// it, which the runner begins and ends without parameters, is a `statement`, and what a table looks like is read
    /// from the catalogue.
    fn in_log(log: &str) -> Self {
        let mut found = Self::default();
        for line in log.lines() {
            let Some((before, tag)) = line.split_once("/* semilayer ") else {
                continue;
            };
            let begins =
                before.contains("LOG:  execute ") && !before.contains("execute fetch from");
            if !begins || tag.contains("pg_catalog.") {
                continue;
            }
            let tag = tag.split(' ').next().unwrap_or_default();
            let (job, attempt) = tag.split_once('/').expect("a tag is <job>/<attempt>");
            let attempts = found.0.entry(job.to_owned()).or_default();
            *attempts
                .entry(attempt.parse().expect("an attempt is a number"))
                .or_default() += 1;
        }
        found
    }

    /// How often the job was executed, in all its attempts.
    pub(crate) fn of_job(&self, job: &str) -> u32 {
        self.0
            .get(job)
            .map_or(0, |attempts| attempts.values().sum())
    }

    pub(crate) fn total(&self) -> u64 {
        self.0
            .values()
            .flat_map(BTreeMap::values)
            .map(|n| u64::from(*n))
            .sum()
    }
}

#[test]
fn only_the_beginning_of_a_statement_counts() {
    let log = "12:LOG:  execute s1: /* semilayer a/1 */ SELECT 1\n\
               12:DETAIL:  parameters: $1 = '/* semilayer a/1 */'\n\
               12:LOG:  execute fetch from s1: /* semilayer a/1 */ SELECT 1\n\
               13:LOG:  statement: /* semilayer b/2 */ BEGIN READ ONLY\n\
               13:LOG:  execute <unnamed>: /* semilayer b/2 */ SELECT 1 FROM pg_catalog.pg_class\n\
               13:LOG:  execute <unnamed>: /* semilayer b/2 */ SELECT 1\n\
               13:ERROR:  canceling statement due to user request\n\
               13:STATEMENT:  /* semilayer b/2 */ SELECT 1\n";
    let found = Executions::in_log(log);
    assert_eq!(
        (found.of_job("a"), found.of_job("b"), found.total()),
        (1, 1, 2)
    );
}
