//! The bridges there are and their pools: one per source and configuration, opened when it is first
//! needed, closed when nobody has needed it for a while or its source's configuration has changed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::config::Config;
use super::dial::Dial;
use super::encode::Caps;
use super::manifest::{self, Kind};
use super::mysql::MySql;
use super::pool::{AnyPool, Pool, PoolLimits};
use super::postgres::Postgres;
use super::sqlite::Sqlite;
use super::{BridgeError, Execution, Outcome, RowSink, Source};
use crate::ids::SourceId;
use crate::query::operation::Operation;

/// Says whether an address may be dialled.
pub type AddressCheck = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// What whoever runs the bridges allows them.
#[derive(Clone)]
pub struct BridgeOptions {
    /// Whether every statement starts with `/* semilayer <job>/<attempt> */`.
    pub tag_sql: bool,
    /// How many connections a source may have that does not say so itself.
    pub pool_size: usize,
    /// How long a connection is kept without being used.
    pub idle_timeout: Duration,
    /// The most rows that one operation may answer.
    pub max_rows: Option<u64>,
    /// The most payload bytes that one operation may answer.
    pub max_bytes: Option<u64>,
    /// A file with certificates of authorities that count for databases beside the machine's.
    pub ca_file: Option<PathBuf>,
    /// Which addresses may be dialled; with a check, files and unix sockets are refused altogether.
    pub may_dial: Option<AddressCheck>,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self {
            tag_sql: false,
            pool_size: 4,
            idle_timeout: Duration::from_secs(60),
            max_rows: None,
            max_bytes: None,
            ca_file: None,
            may_dial: None,
        }
    }
}

/// Every bridge, and the pools of the sources that were used lately. Cheap to clone.
#[derive(Clone)]
pub struct Bridges {
    inner: Arc<Inner>,
}

struct Inner {
    options: BridgeOptions,
    pools: Mutex<Pools>,
}

#[derive(Default)]
struct Pools {
    by_source: HashMap<SourceId, (Fingerprint, Arc<dyn AnyPool>)>,
    reaping: bool,
}

/// Tells one configuration from another without keeping its secrets.
type Fingerprint = [u8; 32];

impl Bridges {
    /// Makes the bridges; nothing is connected yet.
    pub fn new(options: BridgeOptions) -> Self {
        Self {
            inner: Arc::new(Inner {
                options,
                pools: Mutex::default(),
            }),
        }
    }

    /// The package names of the bridges there are.
    pub fn capabilities() -> Vec<String> {
        manifest::all()
            .iter()
            .map(|manifest| manifest.package_name.to_owned())
            .collect()
    }

    /// Executes one operation on a source; rows go to `sink`. Must be called on a multi-thread runtime.
    pub async fn execute(
        &self,
        source: &Source,
        operation: &Operation,
        execution: &Execution,
        sink: &mut dyn RowSink,
    ) -> Result<Outcome, BridgeError> {
        let pool = self.pool(source)?;
        pool.execute(operation, execution, sink).await
    }

    fn pool(&self, source: &Source) -> Result<Arc<dyn AnyPool>, BridgeError> {
        let kind = Kind::of(&source.bridge)?;
        let fingerprint = fingerprint(kind, source);
        let mut pools = self
            .inner
            .pools
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((known, pool)) = pools.by_source.get(&source.id)
            && *known == fingerprint
        {
            return Ok(Arc::clone(pool));
        }
        let pool = self.open(kind, source)?;
        if let Some((_, old)) = pools
            .by_source
            .insert(source.id, (fingerprint, Arc::clone(&pool)))
        {
            old.close();
        }
        if !pools.reaping {
            pools.reaping = true;
            tokio::spawn(reap(
                Arc::downgrade(&self.inner),
                self.inner.options.idle_timeout,
            ));
        }
        Ok(pool)
    }

    fn open(&self, kind: Kind, source: &Source) -> Result<Arc<dyn AnyPool>, BridgeError> {
        let options = &self.inner.options;
        let limits = PoolLimits {
            size: Config(&source.config)
                .max_connections()?
                .unwrap_or(options.pool_size.max(1)),
            caps: Caps {
                rows: options.max_rows,
                bytes: options.max_bytes,
            },
            tag_sql: options.tag_sql,
        };
        let dial = Dial {
            may_dial: options.may_dial.clone(),
            ca_file: options.ca_file.clone(),
        };
        Ok(match kind {
            Kind::Postgres => Arc::new(Pool::new(Postgres::new(&source.config, dial)?, limits)),
            Kind::MySql => Arc::new(Pool::new(MySql::new(&source.config, dial)?, limits)),
            Kind::Sqlite => Arc::new(Pool::new(
                Sqlite::new(&source.config, options.may_dial.is_some())?,
                limits,
            )),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let pools = self.pools.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, pool) in pools.by_source.values() {
            pool.close();
        }
    }
}

/// Closes what is idle for as long as there are pools.
async fn reap(inner: Weak<Inner>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / 2).await;
        let Some(inner) = inner.upgrade() else { return };
        let mut pools = inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools
            .by_source
            .retain(|_, (_, pool)| !pool.reap(idle_timeout));
        if pools.by_source.is_empty() {
            pools.reaping = false;
            return;
        }
    }
}

fn fingerprint(kind: Kind, source: &Source) -> Fingerprint {
    let mut entries: Vec<_> = source.config.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    let mut hash = Sha256::new();
    hash.update([kind as u8]);
    hash.update(serde_json::to_vec(&entries).unwrap_or_default());
    hash.finalize().into()
}
