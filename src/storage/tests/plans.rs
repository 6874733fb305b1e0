//! How PostgreSQL gets at the rows: by the indexes that are there for it, over tables as large as they are in
//! use. Counted while the real statements run, plans of prepared statements included, and shown as the planner
//! words it where it fails.

use std::collections::BTreeMap;

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::SimpleAsyncConnection;

use super::hosted::{execute, number};
use super::*;
use crate::domain::job::JobStatus;

/// More often than a connection plans a statement anew.
const TIMES: u64 = 8;

#[derive(Debug, diesel::QueryableByName)]
struct Scan {
    #[diesel(sql_type = Text)]
    relation: String,
    /// None: the whole table was read.
    #[diesel(sql_type = Nullable<Text>)]
    index: Option<String>,
    #[diesel(sql_type = BigInt)]
    scans: i64,
    #[diesel(sql_type = BigInt)]
    rows: i64,
}

/// How often what was scanned, by the index or `table: all`, and how many entries were read there.
type Scans = BTreeMap<String, (i64, i64)>;

/// A store with one connection, so that what it has done can be counted at once.
async fn alone(fixture: &Fixture) -> Store {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let hosted = postgres::Postgres::open(&fixture.url, limits, fixture.runtime.clone());
    Store {
        backend: Backend::Hosted(hosted.await.unwrap()),
    }
}

async fn run(store: &Store, sql: String) {
    unit!(store, Transaction, connection => {
        connection.batch_execute("SET LOCAL statement_timeout = 0").await?;
        Ok(connection.batch_execute(&sql).await?)
    })
    .unwrap();
}

/// What was scanned since the last time.
async fn scans(store: &Store) -> Scans {
    let sql = "SELECT relname AS relation, NULL AS index, seq_scan AS scans, seq_tup_read AS rows \
               FROM pg_stat_user_tables WHERE seq_scan > 0 UNION ALL \
               SELECT relname, indexrelname, idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE idx_scan > 0";
    execute(store, "SELECT pg_stat_force_next_flush()")
        .await
        .unwrap();
    let found: Vec<Scan> = unit!(store, Read, connection => {
        Ok(diesel::sql_query(sql).load(connection).await?)
    })
    .unwrap();
    execute(store, "SELECT pg_stat_reset()").await.unwrap();
    let named = |scan: Scan| {
        let name = scan
            .index
            .unwrap_or_else(|| format!("{}: all", scan.relation));
        (name, (scan.scans, scan.rows))
    };
    found.into_iter().map(named).collect()
}

/// Fails unless these were used, nothing was read as a whole but `whole`, and few entries were looked at.
fn check(what: &str, scans: &Scans, used: &[&str], whole: &[&str], most: i64) {
    for index in used {
        assert!(scans.contains_key(*index), "{what}: {index} in {scans:#?}");
    }
    for name in scans.keys().filter(|name| name.ends_with(": all")) {
        assert!(whole.contains(&name.as_str()), "{what}: {scans:#?}");
    }
    let read: i64 = scans.values().map(|(_, rows)| rows).sum();
    assert!(read <= most, "{what}: {read} entries in {scans:#?}");
}

/// A long history, and the few jobs that there are at any moment.
async fn with_history(fixture: &Fixture) -> (Store, World, GatewayId) {
    let store = alone(fixture).await;
    let acme = world(&store, "acme").await;
    let own = gateway(&store).await;
    let history = format!(
        "INSERT INTO runner_jobs (id, organisation_id, environment_id, source_id, kind, status, attempt, detached, \
           retry, claimed_by, created_at, deadline_at, finished_at) \
         SELECT lpad(to_hex(n), 8, '0') || '-0000-7000-8000-000000000000', '{}', \
           CASE n % 20 WHEN 0 THEN '{}' ELSE 'another' END, '{}', 'query', 'completed', 1, true, true, '{own}', \
           timestamp '2026-01-01' + n * interval '1 second', timestamp '2026-01-01' + n * interval '1 second', \
           timestamp '2026-01-01' FROM generate_series(1, 100000) n; ANALYZE runner_jobs",
        acme.organisation, acme.environment, acme.source
    );
    run(&store, history).await;
    (store, acme, own)
}

/// Submits that many.
async fn submit(store: &Store, world: &World, jobs: u64) -> Vec<NewJob> {
    let mut submitted = Vec::new();
    for _ in 0..jobs {
        let job = NewJob {
            deadline_at: at(1000),
            ..super::detached::detached(world)
        };
        let new = NewSubmission {
            job: job.clone(),
            idempotency: None,
        };
        store.job_submit(new).await.unwrap();
        submitted.push(job);
    }
    submitted
}

#[test]
fn the_steps_of_a_job_do_not_read_the_history() {
    on_postgres(async |fixture| {
        let (store, acme, own) = with_history(&fixture).await;
        let other = gateway(&store).await;
        scans(&store).await;
        let primary = "runner_jobs_pkey";
        let unfinished = "runner_jobs_unfinished";

        let jobs: Vec<NewJob> = (0..TIMES).map(|_| acme.job()).collect();
        for job in &jobs {
            let claim = vec![acme.claim(own, job)];
            store.job_claim_sync(claim, at(1)).await.unwrap();
        }
        check("claim", &scans(&store).await, &[primary], &[], 60);
        for job in &jobs {
            store.job_read_back(vec![job.id]).await.unwrap();
        }
        check("read back", &scans(&store).await, &[primary], &[], 60);
        for job in &jobs {
            let end = vec![end(own, job, JobStatus::Completed)];
            assert_eq!(store.job_finish(end).await.unwrap().len(), 1);
        }
        check("finish", &scans(&store).await, &[primary], &[], 60);
        for _ in 0..TIMES {
            let entry = Supersede {
                job: acme.job(),
                lost: other,
            };
            store.job_supersede(vec![entry]).await.unwrap();
        }
        check("supersede", &scans(&store).await, &[], &[], 60);

        submit(&store, &acme, TIMES).await;
        let submitted = scans(&store).await;
        check("submit", &submitted, &[], &[], 60);
        let key = |n: u64| {
            Some(Idempotency {
                key: format!("k{n}"),
                request_hash: "h".into(),
            })
        };
        for n in 0..TIMES {
            for _ in 0..2 {
                let job = super::detached::detached(&acme);
                let new = NewSubmission {
                    job,
                    idempotency: key(n),
                };
                store.job_submit(new).await.unwrap();
            }
        }
        let keyed = "runner_jobs_idempotency_key";
        check("submit again", &scans(&store).await, &[keyed], &[], 60);

        let mut taken = Vec::new();
        for _ in 0..TIMES {
            taken.extend(
                store
                    .job_take_pending(own, acme.source, 1, at(5))
                    .await
                    .unwrap(),
            );
        }
        assert_eq!(taken.len(), TIMES as usize);
        // What lies pending for others, or is taken already, is all that it passes.
        check(
            "take",
            &scans(&store).await,
            &[unfinished, primary],
            &[],
            400,
        );
        for job in &taken {
            let mark = Mark {
                id: job.id,
                attempt: 1,
                holder: own,
                placement: None,
                dispatched_at: at(6),
            };
            assert_eq!(store.job_mark(vec![mark]).await.unwrap().len(), 1);
        }
        check("mark", &scans(&store).await, &[primary], &[], 60);
        for job in &taken {
            let requeue = Requeue {
                id: job.id,
                attempt: 1,
                holder: own,
            };
            assert_eq!(store.job_requeue(vec![requeue]).await.unwrap().len(), 1);
        }
        check("requeue", &scans(&store).await, &[primary], &[], 60);
    });
}

#[test]
fn keeping_order_reads_only_what_is_unfinished_or_old() {
    on_postgres(async |fixture| {
        let (store, acme, own) = with_history(&fixture).await;
        submit(&store, &acme, 50).await;
        store
            .job_take_pending(own, acme.source, 20, at(1))
            .await
            .unwrap();
        scans(&store).await;
        let unfinished = "runner_jobs_unfinished";

        for _ in 0..TIMES {
            store.job_sweep(at(2), at(0), at(0), 100).await.unwrap();
        }
        check("sweep", &scans(&store).await, &[unfinished], &[], 2000);
        for _ in 0..TIMES {
            store.job_settle_orphans(at(2), at(0)).await.unwrap();
        }
        let mut settled = scans(&store).await;
        settled.retain(|name, _| name.starts_with("runner_jobs"));
        check("orphans", &settled, &[unfinished], &[], 2000);
        for _ in 0..TIMES {
            let lost = gateway(&store).await;
            store.gateway_declare_lost(lost, 0, at(3)).await.unwrap();
        }
        let mut settled = scans(&store).await;
        settled.retain(|name, _| name.starts_with("runner_jobs"));
        check("settle", &settled, &[unfinished], &[], 2000);

        for _ in 0..TIMES {
            // Before anything, as usual; and then a hundred.
            store
                .job_prune(UtcTime::new(DateTime::UNIX_EPOCH), 10_000_000, 100)
                .await
                .unwrap();
        }
        check("prune nothing", &scans(&store).await, &[], &[], 60);
        for _ in 0..TIMES {
            assert_eq!(store.job_prune(at(0), 10_000_000, 100).await.unwrap(), 100);
        }
        check(
            "prune",
            &scans(&store).await,
            &["runner_jobs_pkey"],
            &[],
            6000,
        );

        let filter = JobFilter {
            environment: Some(acme.environment),
            ..JobFilter::default()
        };
        for _ in 0..TIMES {
            let listed = store.job_list(acme.organisation, filter.clone(), Page::first(50));
            assert_eq!(listed.await.unwrap().len(), 50);
        }
        let environment = "runner_jobs_environment_id";
        check("list", &scans(&store).await, &[environment], &[], 500);
    });
}

#[test]
fn deltas_read_what_has_changed_and_no_more() {
    on_postgres(async |fixture| {
        let store = alone(&fixture).await;
        let acme = world(&store, "acme").await;
        let own = gateway(&store).await;
        let (org, env) = (acme.organisation, acme.environment);
        let many = format!(
            "INSERT INTO organisations SELECT 'o' || n, 'o' || n, '', t, t FROM many; \
             INSERT INTO environments SELECT 'e' || n, '{org}', 'e' || n, t, t FROM many; \
             INSERT INTO runner_groups SELECT 'g' || n, '{org}', 'g' || n, 'all', t, t FROM many; \
             INSERT INTO runners (id, organisation_id, name, deployment, created_at, changed_at) \
               SELECT 'r' || n, '{org}', 'r' || n, 'saas', t, t FROM many; \
             INSERT INTO sources (id, environment_id, name, bridge, credentials_location, created_at, changed_at) \
               SELECT 's' || n, '{env}', 's' || n, '', 'managed', t, t FROM many; \
             INSERT INTO runner_assignments SELECT 'r' || n, 's' || n, t FROM many; \
             INSERT INTO lenses SELECT 'l' || n, '{env}', 'l' || n, 's1', '', '[]', '{{}}', '[]', '{{}}', 'fail', t, t FROM many; \
             INSERT INTO keys (id, kind, organisation_id, hash, display, created_at, changed_at) \
               SELECT 'k' || n, 'ak', '{org}', 'k' || n, '', t, t FROM many; \
             INSERT INTO runner_sessions SELECT 'x' || n, 'r1', '{org}', '{own}', NULL, 2, NULL, NULL, '[]', '{{}}', \
               1, NULL, t, t, 'ready', t FROM many; \
             INSERT INTO tombstones SELECT 'lens', 'd' || n, t FROM many;"
        )
        .replace(
            "FROM many",
            "FROM (SELECT n, timestamp '2026-01-01' + n * interval '1 second' AS t FROM generate_series(1, 3000) n) m",
        );
        run(&store, many + "ANALYZE").await;
        scans(&store).await;
        for _ in 0..TIMES {
            let listed = store.catalogue_changes(at(10)).await.unwrap();
            assert_eq!((listed.changed.keys.len(), listed.removed.len()), (0, 0));
        }
        let used = [
            "organisations_changed_at",
            "environments_changed_at",
            "runner_groups_changed_at",
            "runners_changed_at",
            "sources_changed_at",
            "runner_assignments_created_at",
            "lenses_changed_at",
            "keys_changed_at",
            "runner_sessions_changed_at",
            "tombstones_deleted_at",
        ];
        // The planner looks at an end of each index, too.
        check(
            "delta",
            &scans(&store).await,
            &used,
            &["gateways: all"],
            200,
        );
        store
            .tombstone_prune(UtcTime::new(DateTime::UNIX_EPOCH))
            .await
            .unwrap();
        let used = ["tombstones_deleted_at"];
        check("forget", &scans(&store).await, &used, &[], 60);
    });
}

/// PostgreSQL counts the condition of an index as part of it, so the one step that leaves the index of the
/// unfinished cannot be in place; every other can.
#[test]
fn every_step_but_the_last_is_an_update_in_place() {
    on_postgres(async |fixture| {
        let (store, acme, own) = with_history(&fixture).await;
        let updates = async |what: &str| {
            let (all, hot) = (
                "SELECT n_tup_upd AS n FROM pg_stat_user_tables WHERE relname = 'runner_jobs'",
                "SELECT n_tup_hot_upd AS n FROM pg_stat_user_tables WHERE relname = 'runner_jobs'",
            );
            execute(&store, "SELECT pg_stat_force_next_flush()")
                .await
                .unwrap();
            let counted = (number(&store, all).await, number(&store, hot).await);
            execute(&store, "SELECT pg_stat_reset()").await.unwrap();
            println!(
                "{what}: {} updates, {} of them in place",
                counted.0, counted.1
            );
            counted
        };
        updates("before").await;
        let jobs: Vec<NewJob> = (0..100).map(|_| acme.job()).collect();
        for job in &jobs {
            let claim = vec![acme.claim(own, job)];
            store.job_claim_sync(claim, at(1)).await.unwrap();
        }
        let (all, hot) = updates("claims").await;
        assert!(all == 100 && hot >= 95);
        for job in &jobs {
            let end = vec![end(own, job, JobStatus::Completed)];
            store.job_finish(end).await.unwrap();
        }
        let (all, hot) = updates("ends").await;
        assert!(all == 100 && hot == 0);

        submit(&store, &acme, 20).await;
        for _ in 0..20 {
            let taken = store
                .job_take_pending(own, acme.source, 1, at(5))
                .await
                .unwrap();
            let (id, attempt, holder) = (taken[0].id, taken[0].attempt, own);
            let release = Release {
                id,
                attempt,
                holder,
            };
            assert_eq!(store.job_release(vec![release]).await.unwrap(), [id]);
            let mut again = store
                .job_take_pending(own, acme.source, 1, at(5))
                .await
                .unwrap();
            let id = again.remove(0).id;
            let mark = Mark {
                id,
                attempt,
                holder,
                placement: None,
                dispatched_at: at(6),
            };
            assert_eq!(store.job_mark(vec![mark]).await.unwrap(), [id]);
        }
        let (all, hot) = updates("steps of detached jobs").await;
        // A page that is full of what was just written, and may still be looked at, has no room for all.
        assert!(all == 80 && 2 * hot > all);

        // Presence is written all the time, and is in no index either.
        let session = acme.session(own);
        store.session_open(session.clone()).await.unwrap();
        execute(&store, "SELECT pg_stat_reset()").await.unwrap();
        for second in 10..30 {
            let seen = Touch {
                session: session.id,
                seen_at: at(second),
            };
            store.session_touch(vec![seen]).await.unwrap();
            store.gateway_renew(own, at(second)).await.unwrap();
        }
        execute(&store, "SELECT pg_stat_force_next_flush()")
            .await
            .unwrap();
        for (table, sql) in [
            (
                "runners",
                "SELECT n_tup_hot_upd AS n FROM pg_stat_user_tables WHERE relname = 'runners'",
            ),
            (
                "runner_sessions",
                "SELECT n_tup_hot_upd AS n FROM pg_stat_user_tables WHERE relname = 'runner_sessions'",
            ),
            (
                "gateways",
                "SELECT n_tup_hot_upd AS n FROM pg_stat_user_tables WHERE relname = 'gateways'",
            ),
        ] {
            let hot = number(&store, sql).await;
            assert!(hot >= 18, "{table}: {hot} of 20");
        }
    });
}

#[test]
fn tables_are_tuned_for_what_is_done_to_them() {
    on_postgres(async |fixture| {
        let tuned = "SELECT count(*) AS n FROM pg_class WHERE (relname, reloptions) IN (\
            ('runner_jobs', ARRAY['fillfactor=70', 'autovacuum_vacuum_scale_factor=0.02', \
             'autovacuum_vacuum_insert_scale_factor=0.05', 'autovacuum_analyze_scale_factor=0.02']), \
            ('runner_sessions', ARRAY['fillfactor=50']), ('runners', ARRAY['fillfactor=70']), \
            ('gateways', ARRAY['fillfactor=50']), ('job_results', ARRAY['autovacuum_vacuum_scale_factor=0.02']))";
        assert_eq!(number(&fixture.store, tuned).await, 5);
        // Sealed bytes do not compress.
        let external = "SELECT count(*) AS n FROM pg_attribute WHERE attrelid = 'job_results'::regclass \
                        AND attname = 'sealed' AND attstorage = 'e'";
        assert_eq!(number(&fixture.store, external).await, 1);
    });
}
