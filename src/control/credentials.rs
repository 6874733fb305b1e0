//! Opens the managed credentials of a source, in memory and just before they are used.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::domain::sealing::{SealError, Sealer};
use crate::storage::{Source, StoredCredentials};

/// The means to open sealed configurations; clones share the key.
#[derive(Clone)]
pub struct Credentials(Arc<Sealer>);

impl Credentials {
    /// Opens with this sealer.
    pub fn new(sealer: Arc<Sealer>) -> Self {
        Self(sealer)
    }

    /// The configuration of a managed source; `None` where the runner has it.
    ///
    /// # Errors
    ///
    /// When it was sealed under a key that is not here, or has been tampered with.
    pub fn open(&self, source: &Source) -> Result<Option<Map<String, Value>>, SealError> {
        match (source.credentials_location, &source.config_sealed) {
            (StoredCredentials::RunnerLocal, _) => Ok(None),
            (StoredCredentials::Managed, None) => Ok(Some(Map::new())),
            (StoredCredentials::Managed, Some(sealed)) => {
                self.0.open_config(source.id, sealed).map(Some)
            }
        }
    }
}
