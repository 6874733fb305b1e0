//! The tables, and what PostgreSQL is told about them beyond the portable part.
//!
//! Migrations use diesel's synchronous harness inside `spawn_blocking`: diesel-async's own uses
//! `block_in_place`, which panics on actix's runtimes.

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::error::{Cause, StoreError};
use super::{Backend, Store};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// Held while migrating, so that gateways that start at once do so one after the other.
const LOCK: i64 = 0x5e31_1a7e;

/// A job's row is written three times within seconds and its table is the largest: room for the new
/// versions beside the old, and a vacuum that does not wait for a fifth of the table to be dead.
const TUNE: &str = "ALTER TABLE runner_jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, \
                    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02); \
                    ALTER TABLE runner_sessions SET (fillfactor = 50); \
                    ALTER TABLE runners SET (fillfactor = 70); \
                    ALTER TABLE job_results SET (autovacuum_vacuum_scale_factor = 0.02); \
                    ALTER TABLE job_results ALTER COLUMN sealed SET STORAGE EXTERNAL; \
                    ALTER TABLE gateways SET (fillfactor = 50)";

/// Which way to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

impl Store {
    /// Brings the tables to what this program needs; several may do so at once.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.run_migrations(Direction::Up).await
    }

    /// Takes all tables away, with everything in them.
    pub async fn revert_migrations(&self) -> Result<(), StoreError> {
        self.run_migrations(Direction::Down).await
    }

    async fn run_migrations(&self, direction: Direction) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Embedded(store) => {
                store
                    .run_sync(move |connection| {
                        // All of them or none; a savepoint inside is what each one then is.
                        connection.immediate_transaction(|connection| step(connection, direction))
                    })
                    .await
            }
            Backend::Hosted(store) => {
                let mut connection: AsyncConnectionWrapper<_> = store.connect().await?.into();
                let work = store
                    .runtime()
                    .spawn_blocking(move || -> Result<(), MigrationError> {
                        connection
                            .batch_execute("SET statement_timeout = 0; SET lock_timeout = 0")?;
                        connection.transaction(|connection| {
                            connection
                                .batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})"))?;
                            step(connection, direction)?;
                            if direction == Direction::Up {
                                connection.batch_execute(TUNE)?;
                            }
                            Ok(())
                        })
                    });
                Ok(work.await.map_err(StoreError::unavailable)??)
            }
        }
    }
}

/// Either of the two errors that migrating can end with.
struct MigrationError(Cause);

impl From<diesel::result::Error> for MigrationError {
    fn from(error: diesel::result::Error) -> Self {
        Self(error.into())
    }
}

impl From<MigrationError> for StoreError {
    fn from(MigrationError(cause): MigrationError) -> Self {
        Self::Internal(cause)
    }
}

fn step<C: MigrationHarness<DB>, DB: diesel::backend::Backend>(
    connection: &mut C,
    direction: Direction,
) -> Result<(), MigrationError> {
    let done = match direction {
        Direction::Up => connection.run_pending_migrations(MIGRATIONS),
        Direction::Down => connection.revert_all_migrations(MIGRATIONS),
    };
    done.map(|_| ()).map_err(MigrationError)
}
