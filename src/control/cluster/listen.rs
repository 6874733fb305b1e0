//! Listens for announcements of changes, for as long as the cluster actor lives. An announcement only wakes: a
//! lost one, or a lost connection, costs time and nothing else.

use std::convert::Infallible;
use std::time::Duration;

use actix::Recipient;

use super::Announced;
use crate::storage::{Store, StoreError};

/// How soon a lost connection is opened again, and how long it takes at most while the store is away.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Reports each announcement, and each new connection: what was changed before it was heard by nobody.
pub(super) async fn run(store: Store, announced: Recipient<Announced>) {
    let mut pause = FIRST_PAUSE;
    while announced.connected() {
        let Err(error) = listen(&store, &announced, &mut pause).await;
        log::warn!(error:% = error; "announcements of changes are not heard, listening again in {pause:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn listen(
    store: &Store,
    announced: &Recipient<Announced>,
    pause: &mut Duration,
) -> Result<Infallible, StoreError> {
    let mut listener = store.listen().await?;
    *pause = FIRST_PAUSE;
    log::debug!("listening for announcements of changes");
    loop {
        // Awaited, so that a burst of announcements waits here and not in a mailbox.
        announced
            .send(Announced)
            .await
            .map_err(|closed| StoreError::Unavailable(closed.into()))?;
        listener.next().await?;
    }
}
