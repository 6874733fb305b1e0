//! Waiting for a condition with a deadline, the one way in which a test waits.

use std::time::Duration;

use tokio::time::Instant;

/// Polls `condition` until it answers `Ok`, and panics with its last `Err` once `timeout` has passed.
pub(crate) async fn eventually<T>(
    what: &str,
    timeout: Duration,
    condition: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let came = within(what, timeout, condition).await;
    came.unwrap_or_else(|late| panic!("{late}"))
}

/// The same for those who go on without it.
pub(crate) async fn within<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + timeout;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(status) if Instant::now() >= deadline => {
                return Err(format!(
                    "not within {timeout:?}: {what}; last seen: {status}"
                ));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// `Ok` if it holds, else what was seen instead: the usual end of a condition.
pub(crate) fn holds(condition: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(format!("{seen:?}"))
    }
}
