//! What the hosted store does when its server does not do its part: connections that are cut, a pool that is
//! used up, statements that the server gives up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_async::SimpleAsyncConnection;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::hosted::{execute, number, until_one_waits_for_a_lock};
use super::*;

/// The fixture's store, with less patience.
async fn impatient(fixture: &Fixture, limits: Limits) -> Store {
    let hosted = postgres::Postgres::open(&fixture.url, limits, fixture.runtime.clone());
    Store {
        backend: Backend::Hosted(hosted.await.unwrap()),
    }
}

fn is_unavailable<T>(ended: &Result<T, StoreError>) -> bool {
    matches!(ended, Err(StoreError::Unavailable(_)))
}

/// One unit of work that waits in the middle.
struct Held<T> {
    go_on: oneshot::Sender<()>,
    unit: JoinHandle<Result<T, StoreError>>,
}

impl<T> Held<T> {
    async fn end(self) -> Result<T, StoreError> {
        self.go_on.send(()).unwrap();
        self.unit.await.unwrap()
    }
}

/// Runs one statement in a transaction, and another one when it is told to.
async fn hold(store: &Store, first: &'static str, then: &'static str) -> Held<()> {
    let store = store.clone();
    let (begun, mut has_begun) = mpsc::channel(1);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let unit = tokio::spawn(async move {
        unit!(store, Transaction, connection => {
            connection.batch_execute(first).await?;
            begun.send(()).await.unwrap();
            may_go_on.await.unwrap();
            connection.batch_execute(then).await?;
            Ok(())
        })
    });
    has_begun.recv().await.unwrap();
    Held { go_on, unit }
}

/// Ends every other connection to this database, as an administrator or a server that stops does.
async fn cut_everybody(observer: &Store) {
    let cut = "SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let left = "SELECT count(*) AS n FROM pg_stat_activity \
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    number(observer, cut).await;
    let gone = async { while number(observer, left).await > 0 {} };
    tokio::time::timeout(Duration::from_secs(4), gone)
        .await
        .expect("a backend stayed");
}

const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL); \
                     INSERT INTO t VALUES (1, 0), (2, 0)";

async fn make_table(store: &Store) {
    unit!(store, Transaction, connection => { Ok(connection.batch_execute(TABLE).await?) })
        .unwrap();
}

const ROWS: &str = "SELECT count(*) AS n FROM t";

#[test]
fn all_connections_can_be_cut_at_once() {
    on_postgres(async |fixture| {
        let (store, observer) = (&fixture.store, fixture.second().await.lane().unwrap());
        make_table(store).await;
        for round in 0..5 {
            // Idle ones, one in the middle of a transaction, and one that has only its commit to go.
            for ping in futures_util::future::join_all((0..16).map(|_| store.ping())).await {
                ping.unwrap();
            }
            let in_the_middle = hold(store, "INSERT INTO t VALUES (10, 0)", "SELECT 1").await;
            let (written, mut was_written) = mpsc::channel(1);
            let (commit, may_commit) = oneshot::channel::<()>();
            let its_store = store.clone();
            let before_its_commit = tokio::spawn(async move {
                unit!(its_store, Transaction, connection => {
                    connection.batch_execute("INSERT INTO t VALUES (11, 0)").await?;
                    written.send(()).await.unwrap();
                    may_commit.await.unwrap();
                    Ok(())
                })
            });
            was_written.recv().await.unwrap();
            cut_everybody(&observer).await;
            let ended = in_the_middle.end().await;
            assert!(is_unavailable(&ended), "round {round}: {ended:?}");
            commit.send(()).unwrap();
            let ended = before_its_commit.await.unwrap();
            assert!(
                ended.as_ref().is_err_and(StoreError::is_connection),
                "round {round}: {ended:?}"
            );
            // A connection may learn of its end only now; nobody is told anything worse than that.
            let mut failed = 0;
            for _ in 0..32 {
                match store.ping().await {
                    Ok(()) => {}
                    Err(error) => {
                        assert!(error.is_connection(), "round {round}: {error:?}");
                        failed += 1;
                    }
                }
            }
            assert!(failed <= 16, "round {round}: {failed} failed");
            store.ping().await.unwrap();
            assert_eq!(number(store, ROWS).await, 2);
        }
    });
}

#[test]
fn who_finds_every_connection_taken_is_told_in_time() {
    on_postgres(async |fixture| {
        let limits = Limits {
            connections: 2,
            wait: Duration::from_millis(200),
            ..Limits::default()
        };
        let store = impatient(&fixture, limits).await;
        let (stop, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let taken: Vec<_> = (0..2)
            .map(|_| {
                let (store, stop, begun) = (store.clone(), stop.clone(), begun.clone());
                tokio::spawn(async move {
                    unit!(store, Read, _connection => {
                        begun.add_permits(1);
                        stop.acquire().await.unwrap().forget();
                        Ok(())
                    })
                })
            })
            .collect();
        begun.acquire_many(2).await.unwrap().forget();
        let began = Instant::now();
        let waiting = (0..40).map(|_| store.ping());
        let told = futures_util::future::join_all(waiting).await;
        assert!(told.iter().all(is_unavailable));
        assert!(began.elapsed() < Duration::from_secs(2));
        stop.add_permits(2);
        for unit in taken {
            unit.await.unwrap().unwrap();
        }
        for ping in futures_util::future::join_all((0..40).map(|_| store.ping())).await {
            ping.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(4));
    });
}

#[test]
fn the_default_wait_for_a_connection_is_shorter_than_a_callers_patience() {
    let limits = Limits::default();
    assert!(limits.wait <= Duration::from_secs(5) && limits.unit <= Duration::from_secs(20));
}

#[test]
fn a_unit_that_takes_too_long_is_given_up_and_its_connection_with_it() {
    on_postgres(async |fixture| {
        make_table(&fixture.store).await;
        let limits = Limits {
            connections: 1,
            unit: Duration::from_millis(300),
            ..Limits::default()
        };
        let store = impatient(&fixture, limits).await;
        let began = Instant::now();
        let read = execute(&store, "SELECT pg_sleep(2)").await;
        assert!(is_unavailable(&read), "{read:?}");
        let in_a_transaction = unit!(store, Transaction, connection => {
            connection.batch_execute("INSERT INTO t VALUES (10, 0); SELECT pg_sleep(2)").await?;
            Ok(())
        });
        assert!(is_unavailable(&in_a_transaction), "{in_a_transaction:?}");
        // It may be done all the same.
        let in_a_write = unit!(store, Write, connection => {
            diesel::sql_query("SELECT pg_sleep(2)").execute(connection).await?;
            Ok(())
        });
        assert!(
            matches!(in_a_write, Err(StoreError::Uncertain(_))),
            "{in_a_write:?}"
        );
        assert_eq!(number(&store, ROWS).await, 2);
        assert!(began.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn what_the_server_gives_up_may_be_tried_again() {
    on_postgres(async |fixture| {
        let (store, observer) = (&fixture.store, fixture.second().await);
        make_table(store).await;
        let lock = "UPDATE t SET n = n + 1 WHERE id = 1";

        let slow = "SET LOCAL statement_timeout = '50ms'; SELECT pg_sleep(4)";
        let late =
            unit!(store, Transaction, connection => { Ok(connection.batch_execute(slow).await?) });
        assert!(is_unavailable(&late), "{late:?}");
        assert!(!late.is_err_and(|error| error.is_contention()));

        let holder = hold(store, lock, "SELECT 1").await;
        let impatient = "SET LOCAL lock_timeout = '50ms'; UPDATE t SET n = 9 WHERE id = 1";
        let locked = unit!(store, Transaction, connection => { Ok(connection.batch_execute(impatient).await?) });
        assert!(is_unavailable(&locked), "{locked:?}");
        assert!(locked.is_err_and(|error| error.is_contention()));
        // A statement on its own: that the server gave it up says that it was not done.
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                      WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let its_store = store.clone();
        let alone = tokio::spawn(async move {
            unit!(its_store, Write, connection => {
                diesel::sql_query("UPDATE t SET n = 9 WHERE id = 1").execute(connection).await?;
                Ok(())
            })
        });
        until_one_waits_for_a_lock(&observer).await;
        execute(&observer, cancel).await.unwrap();
        let alone = alone.await.unwrap();
        assert!(is_unavailable(&alone), "{alone:?}");
        holder.end().await.unwrap();

        // Each has what the other one wants.
        let one = hold(store, lock, "UPDATE t SET n = n + 1 WHERE id = 2").await;
        let other = hold(store, "UPDATE t SET n = n + 1 WHERE id = 2", lock).await;
        let (one, other) = tokio::join!(one.end(), other.end());
        assert!(
            is_unavailable(&one) != is_unavailable(&other),
            "{one:?} {other:?}"
        );
        assert!(one.is_ok() || other.is_ok());

        // A snapshot that has been overtaken.
        let snapshot = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT * FROM t";
        let stale = hold(store, snapshot, "UPDATE t SET n = 7 WHERE id = 1").await;
        execute(&observer, "UPDATE t SET n = 8 WHERE id = 1")
            .await
            .unwrap();
        let stale = stale.end().await;
        assert!(is_unavailable(&stale), "{stale:?}");

        // One that would be refused again is no such thing.
        let refused = execute(store, "INSERT INTO t VALUES (3, 2147483648)").await;
        assert!(
            matches!(refused, Err(StoreError::Internal(_))),
            "{refused:?}"
        );
        assert_eq!(
            number(store, "SELECT n::bigint AS n FROM t WHERE id = 1").await,
            8
        );
    });
}

#[test]
fn a_server_that_takes_no_more_connections_is_unavailable() {
    on_postgres(async |fixture| {
        let role = format!("few_{}", Uuid::now_v7().simple());
        let make = format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 1");
        unit!(fixture.store, Transaction, connection => { Ok(connection.batch_execute(&make).await?) })
            .unwrap();
        let mut url = url::Url::parse(&fixture.url).unwrap();
        url.set_username(&role).unwrap();
        let store = Store::open(url.as_str(), &fixture.runtime).await.unwrap();
        let (begun, mut has_begun) = mpsc::channel(1);
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let its_store = store.clone();
        let holder = tokio::spawn(async move {
            unit!(its_store, Read, _connection => {
                begun.send(()).await.unwrap();
                may_go_on.await.unwrap();
                Ok(())
            })
        });
        has_begun.recv().await.unwrap();
        let refused = store.ping().await;
        let listened = store.listen().await;
        go_on.send(()).unwrap();
        holder.await.unwrap().unwrap();
        assert!(is_unavailable(&refused), "{refused:?}");
        assert!(is_unavailable(&listened), "{listened:?}");
        store.ping().await.unwrap();
        drop(store);
        let forget = format!("DROP ROLE {role}");
        unit!(fixture.store, Transaction, connection => { Ok(connection.batch_execute(&forget).await?) })
            .unwrap();
    });
}

#[test]
fn a_server_that_only_follows_is_left_for_another() {
    on_postgres(async |fixture| {
        let set = async |mode: &str| {
            let sql = format!(
                "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {mode}', \
                 current_database()); END $$"
            );
            // Allowed whatever the default is.
            unit!(fixture.store, Transaction, connection => {
                connection.batch_execute("SET TRANSACTION READ WRITE").await?;
                Ok(connection.batch_execute(&sql).await?)
            })
            .unwrap();
        };
        set("on").await;
        let limits = Limits {
            connections: 1,
            ..Limits::default()
        };
        let store = impatient(&fixture, limits).await;
        let refused = store.bootstrap(at(0)).await;
        assert!(is_unavailable(&refused), "{refused:?}");
        set("off").await;
        store.bootstrap(at(0)).await.unwrap();
    });
}

#[test]
fn many_gateways_can_start_on_an_empty_database_at_once() {
    on_postgres(async |fixture| {
        fixture.store.revert_migrations().await.unwrap();
        for _ in 0..3 {
            let start = Arc::new(tokio::sync::Barrier::new(8));
            let starting: Vec<_> = (0..8)
                .map(|_| {
                    let (url, runtime) = (fixture.url.clone(), fixture.runtime.clone());
                    let start = start.clone();
                    tokio::spawn(async move {
                        let store = Store::open(&url, &runtime).await.unwrap();
                        start.wait().await;
                        store.migrate().await.unwrap();
                        store.bootstrap(at(0)).await.unwrap();
                        gateway(&store).await
                    })
                })
                .collect();
            for gateway in starting {
                gateway.await.unwrap();
            }
            let store = &fixture.store;
            let organisations = store.organisation_list(Page::first(10)).await.unwrap();
            assert_eq!(organisations.len(), 1);
            assert_eq!(store.gateway_list().await.unwrap().len(), 8);
            store.revert_migrations().await.unwrap();
        }
    });
}
