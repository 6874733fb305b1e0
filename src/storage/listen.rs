//! Hearing that another gateway has changed something. An announcement only wakes: what has changed is read
//! from the tables, so that losing one costs time and nothing else.

use std::fmt;
use std::time::Duration;

use diesel_async::{AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::StreamExt;
use tokio::time::timeout;

use super::{Backend, Store, StoreError};

/// How long nothing need be said.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it has to answer.
const ANSWER: Duration = Duration::from_secs(4);

/// A connection on which changes are announced.
pub struct Listener {
    /// None on the embedded store, where nobody else changes anything.
    connection: Option<AsyncPgConnection>,
    /// After this much of it the server is asked whether it is still there.
    pub(super) silence: Duration,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.connection.is_some() {
            "Listener(hosted)"
        } else {
            "Listener(embedded)"
        })
    }
}

impl Store {
    /// Starts to listen for changes, on a connection of its own: each one that is committed from here on is heard.
    ///
    /// What was changed before is heard by nobody, so whoever listens reads once when it has begun.
    pub async fn listen(&self) -> Result<Listener, StoreError> {
        let connection = match &self.backend {
            Backend::Embedded(_) => None,
            Backend::Hosted(store) => {
                let mut connection = store.connect().await?;
                let listening = connection.batch_execute("LISTEN semilayer_changes");
                timeout(ANSWER, listening)
                    .await
                    .map_err(StoreError::unavailable)?
                    .map_err(StoreError::unavailable)?;
                Some(connection)
            }
        };
        Ok(Listener {
            connection,
            silence: SILENCE,
        })
    }
}

impl Listener {
    /// Waits for the next change. An error says that the connection is lost, and announcements with it.
    ///
    /// Can be dropped and called again without missing one.
    pub async fn next(&mut self) -> Result<(), StoreError> {
        let Some(connection) = &mut self.connection else {
            return std::future::pending().await;
        };
        loop {
            let heard = {
                let mut announcements = std::pin::pin!(connection.notifications_stream());
                timeout(self.silence, announcements.next()).await
            };
            match heard {
                Ok(Some(Ok(_))) => return Ok(()),
                Ok(Some(Err(error))) => return Err(StoreError::unavailable(error)),
                Ok(None) => {
                    return Err(StoreError::unavailable("the server closed the connection"));
                }
                // A connection that is cut without a word looks like one on which nothing is said.
                Err(_) => {
                    let asking = diesel::sql_query("SELECT 1").execute(connection);
                    timeout(ANSWER, asking)
                        .await
                        .map_err(StoreError::unavailable)?
                        .map_err(StoreError::unavailable)?;
                }
            }
        }
    }
}
