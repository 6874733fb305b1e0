//! One gateway, from its settings to running listeners and back: store, control plane, web.
//!
//! Used by `semilayer gateway` and `semilayer dev`; what comes before (arguments, signals) and beside it (a
//! demo) is theirs.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::ExposeSecret as _;
use tokio::runtime::Handle;

use crate::clock::Clock;
use crate::config::{Database, GatewayConfig};
use crate::control::{ControlConfig, ControlPlane};
use crate::domain::sealing::Sealer;
use crate::storage::{KeyKind, MasterKeyCheck, Organisation, Page, Role, Store};
use crate::web::minting::{Minted, Opens};
use crate::web::server::Listeners;

/// A running gateway.
pub struct Gateway {
    /// Its control plane.
    pub control: ControlPlane,
    listeners: Listeners,
    _lock: Option<File>,
}

impl Gateway {
    /// Opens and migrates the store, starts the actors and serves. To be called on the actix system's thread;
    /// `runtime` is the one multi-thread runtime that the store and the bridges live on.
    ///
    /// # Errors
    ///
    /// When the store cannot be opened or an address cannot be bound.
    pub async fn start(config: &GatewayConfig, runtime: &Handle) -> anyhow::Result<Self> {
        let lock = lock(&config.database)?;
        let store = Store::open(&url(&config.database), runtime)
            .await
            .context("cannot open the store")?;
        store
            .migrate()
            .await
            .context("cannot bring the store up to date")?;
        let previous = config.master_key_previous.as_ref().map(|key| key.expose());
        let sealer = Sealer::new(config.master_key.expose(), previous);
        check_master_key(&store, &sealer).await?;
        let control = ControlPlane::start(ControlConfig {
            store,
            runtime: runtime.clone(),
            sealer: Arc::new(sealer),
            clock: Clock::system(),
            timing: config.timing.clone(),
            advertise_url: config.advertise_url.as_ref().map(ToString::to_string),
            prefer_local: config.prefer_local,
            inline_allow: config.inline_allow.clone(),
            tag_sql: config.tag_sql,
            ca_file: config.ca_file.clone(),
            compress: config.compress,
        })
        .await
        .context("cannot start the control plane")?;
        let listeners = match Listeners::start(config, &control) {
            Ok(listeners) => listeners,
            Err(error) => {
                // The actors end with the process, and in good order: this is no failure of theirs.
                control.close().await;
                return Err(error);
            }
        };
        log::info!("listening on {}", listeners.public);
        Ok(Self {
            control,
            listeners,
            _lock: lock,
        })
    }

    /// Makes an admin key of the organisation that every store begins with, and puts it into force. For
    /// whoever starts the process: over REST nobody could ask for the first one.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn make_admin_key(&self, name: &str) -> anyhow::Result<String> {
        let control = &self.control;
        let organisation = self.first_organisation().await?;
        let opens = Opens::organisation(organisation.id, Role::Owner);
        let now = control.clock.now();
        let Minted { text, row } = Minted::new(
            KeyKind::Admin,
            &organisation.slug,
            opens,
            Some(name.to_owned()),
            None,
            now,
        );
        control
            .store
            .key_create(row)
            .await
            .context("cannot store the admin key")?;
        control
            .refresh()
            .await
            .context("cannot put the admin key into force")?;
        Ok(text)
    }

    /// Whether that organisation has no key at all yet, so that nobody can manage it.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn is_unclaimed(&self) -> anyhow::Result<bool> {
        let organisation = self.first_organisation().await?;
        let keys = self
            .control
            .store
            .key_list(organisation.id, Page::first(1))
            .await
            .context("cannot read the store")?;
        Ok(keys.is_empty())
    }

    /// The organisation that every store begins with.
    async fn first_organisation(&self) -> anyhow::Result<Organisation> {
        let found = self
            .control
            .store
            .organisation_list(Page::first(1))
            .await
            .context("cannot read the store")?;
        found
            .into_iter()
            .next()
            .context("the store has no organisation")
    }

    /// Where runners and REST callers arrive.
    pub fn public(&self) -> SocketAddr {
        self.listeners.public
    }

    /// Where `/dispatch` is, if it is served.
    pub fn internal(&self) -> Option<SocketAddr> {
        self.listeners.internal
    }

    /// Lets runners go elsewhere and running jobs finish, then closes everything.
    pub async fn stop(self) {
        self.control.drain().await;
        self.listeners.stop().await;
        log::info!("stopped");
    }
}

/// Refuses a master key that is not the store's: with it nothing that is stored could be opened, and other
/// gateways would not know this one.
async fn check_master_key(store: &Store, sealer: &Sealer) -> anyhow::Result<()> {
    let (own, previous) = (sealer.key_id(), sealer.previous_key_id());
    match store
        .master_key_check(own.clone(), previous)
        .await
        .context("cannot read the store")?
    {
        MasterKeyCheck::Agreed => Ok(()),
        MasterKeyCheck::Other(other) => anyhow::bail!(
            "the store was set up with another master key (its id is {other}, this one's is {own}): give this gateway the same \
             SEMILAYER_MASTER_KEY as the others, or to rotate it, the old one as SEMILAYER_MASTER_KEY_PREVIOUS"
        ),
    }
}

/// Claims the file of an embedded store for this process. It has room for one gateway: a second one would
/// take the first for a leftover and settle its jobs. The kernel lets go of the lock when the process ends.
fn lock(database: &Database) -> anyhow::Result<Option<File>> {
    let Database::Embedded(path) = database else {
        return Ok(None);
    };
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let file = File::create(&name).with_context(|| format!("cannot write {}", name.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "another gateway uses {}: stop it, or choose another SEMILAYER_DATA_DIR (--data-dir)",
            path.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", name.display()))
        }
    }
}

fn url(database: &Database) -> String {
    match database {
        Database::Embedded(path) => format!("sqlite://{}", path.display()),
        Database::Hosted(url) => url.expose_secret().to_owned(),
    }
}
