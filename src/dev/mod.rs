//! `semilayer dev`: what turns a gateway on the embedded store into something to try at once.
//!
//! A demo database, a source, lenses, keys and a runner, which is a child process that dials the gateway
//! as any other would. It has a folder of its own because none of it is part of a gateway: everything here
//! is done from outside, over the REST API, but for the first admin key, which nobody could ask for.

mod child;
mod demo;
mod furnish;
mod greeting;
mod keys;
mod state;

use std::future::Future;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::cli::Client;
use crate::config::{ConfigError, GatewayArgs, GatewayConfig};
use crate::gateway::Gateway;

pub use child::is_runner;

use child::Runner;
use furnish::Demo;
use greeting::Greeting;
use state::State;

/// How long the demo may take until it answers its first query.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What `semilayer dev` can be told.
#[derive(Debug, clap::Args)]
pub struct DevArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Start empty: no demo database, source, lenses or runner
    #[arg(long)]
    no_demo: bool,
    /// Print one line of JSON when everything answers, and nothing else
    #[arg(long)]
    json: bool,
}

/// The settings of one start of `semilayer dev`.
#[derive(Debug)]
pub struct Dev {
    /// The gateway's own settings.
    pub config: GatewayConfig,
    state: State,
    demo: bool,
    json: bool,
}

impl Dev {
    /// Reads the settings, and what an earlier start has left in the data directory.
    pub fn resolve(args: DevArgs) -> anyhow::Result<Self> {
        let state = State::load(args.gateway.data_dir())?;
        let config = args
            .gateway
            .resolve_dev(SecretString::from(state.internal_token.clone()))?;
        if config.tls.is_some() {
            return Err(ConfigError::no_tls_in_dev().into());
        }
        Ok(Self {
            config,
            state,
            demo: !args.no_demo,
            json: args.json,
        })
    }

    /// Furnishes the running gateway, says how to use it, and keeps its runner alive until `stop`.
    ///
    /// # Errors
    ///
    /// When the demo cannot be set up, or does not answer within a minute.
    pub async fn run(
        self,
        gateway: &Gateway,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let Self {
            config,
            mut state,
            demo,
            json,
        } = self;
        let url = reachable(gateway.public())?;
        let internal_url = reachable(
            gateway
                .internal()
                .context("the internal listener does not run")?,
        )?;
        if keys::ensure_admin_key(&mut state, gateway).await? {
            state.save(&config.data_dir)?;
        }
        let client = Client::new(url.clone(), Some(state.admin_key.clone().into()), None)?;
        furnish::ensure_secret_key(&mut state, &client).await?;
        state.save(&config.data_dir)?;

        tokio::pin!(stop);
        let mut runner = None;
        let mut furnished = None;
        if demo {
            let demo = Demo::ensure(&mut state, &client, &config.data_dir).await?;
            state.save(&config.data_dir)?;
            runner = Some(Runner::start(&demo.runner, &url, config.tag_sql)?);
            let ready = tokio::time::timeout(READY_TIMEOUT, demo.until_it_answers(&client, &state));
            tokio::select! {
                ready = ready => ready.context("the demo does not answer; the log above says why")??,
                () = &mut stop => return stop_runner(runner).await,
            }
            furnished = Some(demo);
        }
        let internal_token = config
            .internal
            .as_ref()
            .and_then(|internal| internal.token.as_ref())
            .map_or("", |token| token.expose_secret());
        let greeting = Greeting {
            url: &url,
            internal_url: &internal_url,
            state: &state,
            internal_token,
            demo: furnished.as_ref(),
            config: &config,
        };
        let page = if json {
            format!("{}\n", greeting.json())
        } else {
            greeting.text()
        };
        io::stdout()
            .write_all(page.as_bytes())
            .context("cannot write to standard output")?;
        stop.await;
        stop_runner(runner).await
    }
}

async fn stop_runner(runner: Option<Runner>) -> anyhow::Result<()> {
    match runner {
        Some(runner) => runner.stop().await,
        None => Ok(()),
    }
}

/// A listener's URL from this machine, also when it listens on every address.
fn reachable(mut address: SocketAddr) -> anyhow::Result<Url> {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(Url::parse(&format!("http://{address}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        for (address, url) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8080/"),
            ("0.0.0.0:8080", "http://127.0.0.1:8080/"),
            ("[::]:8080", "http://[::1]:8080/"),
            ("10.0.0.7:80", "http://10.0.0.7/"),
        ] {
            assert_eq!(reachable(address.parse().unwrap()).unwrap().as_str(), url);
        }
    }
}
