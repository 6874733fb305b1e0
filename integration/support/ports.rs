//! Ports for servers that are restarted on the same address.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below where the kernel takes the ports of outgoing connections from (32768), so that none of them
/// occupies the address of a server that is down for a moment.
const RANGE: std::ops::Range<u16> = 10_000..30_000;

/// A port that nobody listens on, and that is not handed out again by this process.
pub(crate) fn stable_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let room = RANGE.end - RANGE.start;
    // Test processes that run side by side begin in different places.
    let start = u16::try_from(std::process::id() * 97 % u32::from(room)).unwrap();
    for _ in 0..room {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = RANGE.start + start.wrapping_add(step) % room;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {RANGE:?} is free");
}
