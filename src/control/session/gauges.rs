//! What a session shares with its socket and with the picker: counters, each written by one side.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// How many bytes are between a session and its socket in one direction: the sender adds, the receiver
/// takes away.
#[derive(Debug, Clone, Default)]
pub struct ByteGauge(Arc<AtomicUsize>);

impl ByteGauge {
    /// These bytes are on their way.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// These bytes have arrived.
    pub fn take_off(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// The bytes on their way.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// How many frames a socket was handed and took out of its mailbox to write them. A socket that is frozen by its
/// peer takes none.
#[derive(Debug, Clone, Default)]
pub struct WrittenGauge(Arc<AtomicU64>);

impl WrittenGauge {
    /// One more is about to be written.
    pub fn advance(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// How many jobs a session works on; written by the session, read by the picker.
#[derive(Debug, Clone, Default)]
pub struct LoadGauge(Arc<AtomicU32>);

impl LoadGauge {
    pub(super) fn set(&self, jobs: usize) {
        self.0
            .store(u32::try_from(jobs).unwrap_or(u32::MAX), Ordering::Release);
    }

    /// The jobs at this moment.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}
