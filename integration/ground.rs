//! The ground that the other tests stand on: what the support code says of a database is true.

use crate::support::eventually::holds;
use crate::support::{Database, Engine, PATIENCE, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_runs_is_seen_and_a_database_ends_with_its_handle() {
    for engine in [Engine::Postgres, Engine::Mysql] {
        let database = Database::with_products(engine).await;
        database.add_wide_table(1000).await;
        database.add_slow_view(2).await;
        assert_eq!(database.running().await, Vec::<String>::new());
        let seen = eventually("the statement is seen", PATIENCE, async || {
            let running = database.running().await;
            holds(running.iter().any(|sql| sql.contains("slow")), running)
        });
        tokio::join!(database.execute("SELECT * FROM slow"), seen);
        let url = database.url();
        drop(database);
        let gone = match engine {
            Engine::Postgres => tokio_postgres::connect(url.as_str(), tokio_postgres::NoTls)
                .await
                .is_err(),
            _ => mysql_async::Conn::from_url(url).await.is_err(),
        };
        assert!(gone, "{}", engine.name());
    }
}
