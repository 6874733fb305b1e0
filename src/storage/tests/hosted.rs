//! What only the hosted store can show: connections that are lost, and what it does to its tables.

use std::time::Duration;

use diesel::sql_types::{BigInt, Text};

use super::*;

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

#[derive(diesel::QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

pub(super) async fn number(store: &Store, sql: &'static str) -> i64 {
    unit!(store, Read, connection => {
        Ok(diesel::sql_query(sql).get_result::<Number>(connection).await?.n)
    })
    .unwrap()
}

pub(super) async fn execute(store: &Store, sql: &'static str) -> Result<(), StoreError> {
    unit!(store, Read, connection => {
        diesel::sql_query(sql).execute(connection).await?;
        Ok(())
    })
}

/// Waits until one backend of this database waits for a lock of another.
pub(super) async fn until_one_waits_for_a_lock(store: &Store) {
    let waiting = "SELECT count(*) AS n FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let reached = async { while number(store, waiting).await == 0 {} };
    tokio::time::timeout(Duration::from_secs(4), reached)
        .await
        .expect("nobody waited for a lock");
}

const KILL_MYSELF: &str = "SELECT pg_terminate_backend(pg_backend_pid())";

#[test]
fn a_lost_connection_is_unavailable_and_the_next_unit_has_another() {
    on_postgres(async |fixture| {
        let lost = execute(&fixture.store, KILL_MYSELF).await;
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
        let in_a_transaction = unit!(fixture.store, Transaction, connection => {
            diesel::sql_query(KILL_MYSELF).execute(connection).await?;
            Ok(())
        });
        assert!(
            matches!(in_a_transaction, Err(StoreError::Unavailable(_))),
            "{in_a_transaction:?}"
        );
        let in_a_write = unit!(fixture.store, Write, connection => {
            diesel::sql_query(KILL_MYSELF).execute(connection).await?;
            Ok(())
        });
        assert!(
            matches!(in_a_write, Err(StoreError::Uncertain(_))),
            "{in_a_write:?}"
        );
        fixture.store.ping().await.unwrap();
    });
}

#[test]
fn a_connection_lost_inside_a_commit_is_uncertain() {
    on_postgres(async |fixture| {
        let store = &fixture.store;
        let world = world(store, "acme").await;
        let gateway = gateway(store).await;
        for sql in [
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$",
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON runner_jobs DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION die()",
        ] {
            execute(store, sql).await.unwrap();
        }
        let job = world.job();
        let claimed = store
            .job_claim_sync(vec![world.claim(gateway, &job)], at(1))
            .await;
        assert!(
            matches!(claimed, Err(StoreError::Uncertain(_))),
            "{claimed:?}"
        );
        assert!(store.job_read_back(vec![job.id]).await.unwrap().is_empty());
        execute(store, "DROP TRIGGER die ON runner_jobs")
            .await
            .unwrap();
        assert_eq!(
            store
                .job_claim_sync(vec![world.claim(gateway, &job)], at(1))
                .await
                .unwrap(),
            [job.id]
        );
    });
}

#[test]
fn a_refused_statement_is_not_taken_for_a_lost_connection() {
    on_postgres(async |fixture| {
        let refused = execute(&fixture.store, "SELECT 1 / 0").await;
        assert!(
            matches!(refused, Err(StoreError::Internal(_))),
            "{refused:?}"
        );
        let in_a_transaction = unit!(fixture.store, Transaction, connection => {
            diesel::sql_query("SELECT 1 / 0").execute(connection).await?;
            Ok(())
        });
        assert!(
            matches!(in_a_transaction, Err(StoreError::Internal(_))),
            "{in_a_transaction:?}"
        );
    });
}

#[test]
fn a_lane_waits_for_nobody_else() {
    on_postgres(async |fixture| {
        let lane = fixture.store.lane().unwrap();
        // Every connection of the pool is taken.
        let stop = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let taken: Vec<_> = (0..16)
            .map(|_| {
                let (store, stop) = (fixture.store.clone(), stop.clone());
                tokio::spawn(async move {
                    unit!(store, Read, _connection => {
                        stop.acquire().await.unwrap().forget();
                        Ok(())
                    })
                })
            })
            .collect();
        lane.ping().await.unwrap();
        stop.add_permits(16);
        for unit in taken {
            unit.await.unwrap().unwrap();
        }
    });
}

#[test]
fn every_connection_has_its_limits() {
    on_postgres(async |fixture| {
        let settings = "SELECT count(*) AS n FROM pg_settings WHERE name IN \
            ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout') AND setting <> '0'";
        assert_eq!(number(&fixture.store, settings).await, 3);
        assert_eq!(number(&fixture.store.lane().unwrap(), settings).await, 3);
    });
}

#[test]
fn the_table_of_jobs_has_room_for_its_updates_and_no_index_on_what_they_write() {
    on_postgres(async |fixture| {
        let store = &fixture.store;
        let sql = "SELECT indexdef AS line FROM pg_indexes WHERE tablename = 'runner_jobs' ORDER BY indexname";
        let lines: Vec<Line> = unit!(store, Read, connection => {
            Ok(diesel::sql_query(sql).load(connection).await?)
        })
        .unwrap();
        let columns: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.line.split_once(" USING btree "))
            .map(|(_, c)| c)
            .collect();
        assert_eq!(
            columns,
            [
                "(environment_id, id)",
                "(environment_id, idempotency_key) WHERE (idempotency_key IS NOT NULL)",
                "(id)",
                "(deadline_at) WHERE (finished_at IS NULL)"
            ]
        );

        let world = world(store, "acme").await;
        let gateway = gateway(store).await;
        let jobs: Vec<NewJob> = (0..200).map(|_| world.job()).collect();
        for job in &jobs {
            store
                .job_claim_sync(vec![world.claim(gateway, job)], at(1))
                .await
                .unwrap();
        }
        let updates = "SELECT coalesce(sum(n_tup_upd), 0)::bigint AS n FROM pg_stat_user_tables WHERE relname = 'runner_jobs'";
        let hot = "SELECT coalesce(sum(n_tup_hot_upd), 0)::bigint AS n FROM pg_stat_user_tables WHERE relname = 'runner_jobs'";
        let counted = async {
            while number(store, updates).await < 200 {
                execute(store, "SELECT pg_stat_force_next_flush()")
                    .await
                    .unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(15), counted)
            .await
            .expect("the updates were not counted");
        assert!(
            number(store, hot).await >= 190,
            "claims are updates in place"
        );
    });
}

#[test]
fn gateways_that_start_at_once_migrate_one_after_the_other() {
    on_postgres(async |fixture| {
        fixture.store.revert_migrations().await.unwrap();
        let other = fixture.second().await;
        let (a, b, c) = tokio::join!(fixture.store.migrate(), other.migrate(), other.migrate());
        a.and(b).and(c).unwrap();
        let (a, b) = tokio::join!(fixture.store.bootstrap(at(0)), other.bootstrap(at(0)));
        a.and(b).unwrap();
        assert_eq!(
            fixture
                .store
                .organisation_list(Page::first(10))
                .await
                .unwrap()
                .len(),
            1
        );
    });
}

#[test]
fn encryption_is_as_the_url_says() {
    let of = |query: &str| {
        let mut url = url::Url::parse(&format!("postgres://db.example/x{query}")).unwrap();
        tls::Tls::take_from(&mut url).map(|tls| (tls.mode, url.query().map(str::to_owned)))
    };
    use tokio_postgres::config::SslMode::{Disable, Prefer, Require};
    assert_eq!(of("").unwrap(), (Prefer, None));
    assert_eq!(
        of("?sslmode=disable&application_name=a").unwrap(),
        (Disable, Some("application_name=a".into()))
    );
    assert_eq!(of("?sslmode=require").unwrap(), (Require, None));
    for query in [
        "?sslmode=odd",
        "?sslmode=verify-full&sslrootcert=/nowhere.pem",
    ] {
        assert!(of(query).is_err(), "{query}");
    }
}

/// Whether the server of these tests offers encryption at all is its administrator's choice.
#[test]
fn a_certificate_is_believed_or_checked_as_the_url_says() {
    on_postgres(async |fixture| {
        let offered = number(
            &fixture.store,
            "SELECT (current_setting('ssl') = 'on')::int::bigint AS n",
        )
        .await
            == 1;
        let open = async |mode: &str| {
            let url = format!("{}?sslmode={mode}", fixture.url);
            Store::open(&url, &fixture.runtime).await
        };
        let encrypted =
            "SELECT ssl::int::bigint AS n FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert_eq!(number(&open("disable").await.unwrap(), encrypted).await, 0);
        assert_eq!(
            number(&open("prefer").await.unwrap(), encrypted).await,
            i64::from(offered)
        );
        match open("require").await {
            Ok(store) => assert_eq!(number(&store, encrypted).await, 1),
            Err(error) => assert!(!offered, "{error:?}"),
        }
        // No public authority vouches for the certificate of a test's server.
        assert!(matches!(
            open("verify-full").await,
            Err(StoreError::Unavailable(_))
        ));
    });
}
