//! The runner: dials out to a gateway, executes what comes over the socket next to the databases, and
//! streams rows back. It listens to nothing but its own optional `/health`.
//!
//! ```text
//!  args ─► config ─► Supervisor ─dial─► Session ─Start─► jobs ─► bridge ─► database
//!                        ▲   (proxy, tls)   │ ▲            │
//!                        └── ended, drain ──┘ └─ writer ◄──┴─ SocketSink: rows within the credit
//! ```
//!
//! * [`supervisor`] decides which gateway to be connected to and when to dial again;
//! * `session` is one connection: a pure core that turns frames into actions, and the I/O around it;
//! * `jobs` is one job from its frame to its answer, `sink` its rows on their way to the socket;
//! * [`worker`] is what all sessions of the process share.
//!
//! A session that ends, for whatever reason, cancels its jobs, and their databases are told.

pub mod args;
pub mod config;
pub mod credentials;
pub mod dial;
pub mod doctor;
pub mod executor;
pub mod health;
mod jobs;
mod probe;
pub mod proxy;
pub mod reconnect;
mod session;
mod sink;
pub mod supervisor;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod worker;

mod commands;

pub use commands::{main, run};
