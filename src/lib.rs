//! semilayer: query databases behind a firewall through runners that dial out.

pub mod bridge;
pub mod clock;
pub mod ids;
pub mod protocol;
pub mod query;
pub mod timing;
