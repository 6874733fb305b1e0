//! One unit of work, written once for both stores: how it is begun and ended, and the macro that expands
//! its body for both connection types, so that everything is checked on both.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::error::StoreError;

/// What holds a unit of work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// One statement that changes nothing.
    Read,
    /// One statement that is its own transaction, so that its end can be as uncertain as a commit's.
    Write,
    /// Several statements that happen together or not at all.
    Transaction,
    /// The same, of what other gateways keep in memory: on PostgreSQL they are told, in the same transaction.
    ///
    /// Telling makes commits wait for each other, so nothing that happens once per job does it.
    Change,
    /// Several reads of the same moment.
    Snapshot,
}

/// Gives a body the type that both arms expect, and with it the type of its errors.
pub(super) fn body<'c, T>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'c,
) -> BoxFuture<'c, Result<T, StoreError>> {
    work.boxed()
}

/// Runs `$work` with `$connection` on whichever store this is.
///
/// The body owns what it captures, because it goes on when its caller has gone away.
macro_rules! unit {
    ($store:expr, $mode:ident, $connection:ident => $work:block) => {
        match &$store.backend {
            $crate::storage::Backend::Embedded(store) => {
                store
                    .run(
                        $crate::storage::run::Mode::$mode,
                        move |$connection: &mut $crate::storage::sqlite::SqliteConn| {
                            $crate::storage::run::body(async move { $work })
                        },
                    )
                    .await
            }
            $crate::storage::Backend::Hosted(store) => {
                store
                    .run(
                        $crate::storage::run::Mode::$mode,
                        move |$connection: &mut diesel_async::AsyncPgConnection| {
                            $crate::storage::run::body(async move { $work })
                        },
                    )
                    .await
            }
        }
    };
}
pub(super) use unit;
