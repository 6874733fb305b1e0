//! Where the hosted store is, and how one of its connections is opened: encryption, and the limits that both
//! ends keep.

use std::str::FromStr;
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use url::Url;

use super::error::StoreError;
use super::tls::Tls;

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(4);
/// Limits that the server keeps, so that a gateway that was stopped holds nothing for long; and the language
/// in which it complains, which it lets superusers choose and which is English unless its administrator chose.
const SESSION: &str = "SET statement_timeout = '10s'; SET lock_timeout = '4s'; \
                       SET idle_in_transaction_session_timeout = '10s'; SET application_name = 'semilayer'; \
                       SELECT set_config('lc_messages', 'C', false) FROM pg_roles \
                       WHERE rolname = current_user AND rolsuper";

/// What every pool of this store opens its connections with.
pub(super) struct Target {
    config: tokio_postgres::Config,
    tls: Tls,
}

impl Target {
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let mut url = Url::parse(url).map_err(StoreError::unavailable)?;
        let tls = Tls::take_from(&mut url)?;
        let mut config =
            tokio_postgres::Config::from_str(url.as_str()).map_err(StoreError::unavailable)?;
        config
            .ssl_mode(tls.mode)
            .connect_timeout(CONNECT)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3)
            .tcp_user_timeout(Duration::from_secs(8));
        Ok(Self { config, tls })
    }

    pub(super) async fn connect(&self) -> Result<AsyncPgConnection, ConnectionError> {
        let opening = async {
            let mut connection = if self.tls.mode == SslMode::Disable {
                let (client, driver) = self.config.connect(NoTls).await.map_err(bad_connection)?;
                AsyncPgConnection::try_from_client_and_connection(client, driver).await?
            } else {
                let (client, driver) = self
                    .config
                    .connect(self.tls.connector.clone())
                    .await
                    .map_err(bad_connection)?;
                AsyncPgConnection::try_from_client_and_connection(client, driver).await?
            };
            connection
                .batch_execute(SESSION)
                .await
                .map_err(ConnectionError::CouldntSetupConfiguration)?;
            Ok(connection)
        };
        match tokio::time::timeout(CONNECT, opening).await {
            Ok(opened) => opened,
            Err(elapsed) => Err(ConnectionError::BadConnection(elapsed.to_string())),
        }
    }
}

/// Keeps the whole chain of causes: `error connecting to server` alone helps nobody.
fn bad_connection(error: tokio_postgres::Error) -> ConnectionError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    ConnectionError::BadConnection(text)
}
