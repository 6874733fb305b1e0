//! [`GatewayIdentity`]: the id under which this gateway is known, which changes when the others have taken
//! it for lost.
//!
//! Whoever began something under an id ends it under that id: others may have settled it meanwhile, and a
//! write under the new id must not touch it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use crate::ids::GatewayId;

/// This gateway's id at the moment; clones share it.
#[derive(Debug, Clone)]
pub struct GatewayIdentity(Arc<watch::Sender<GatewayId>>);

impl GatewayIdentity {
    /// A gateway that is known under this id.
    pub fn new(id: GatewayId) -> Self {
        Self(Arc::new(watch::Sender::new(id)))
    }

    /// The id now.
    pub fn current(&self) -> GatewayId {
        *self.0.borrow()
    }

    /// Goes on under another id. Said by the cluster actor alone.
    pub fn assume(&self, id: GatewayId) {
        self.0.send_replace(id);
    }

    /// The id now, and every later one.
    pub fn changes(&self) -> WatchStream<GatewayId> {
        WatchStream::new(self.0.subscribe())
    }
}
