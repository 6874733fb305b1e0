//! End-to-end tests: real gateway and runner processes, real PostgreSQL, MariaDB and SQLite.
//!
//! Each test has its own gateway, data directory and database. Servers are those of
//! `SEMILAYER_TEST_POSTGRES` and `SEMILAYER_TEST_MYSQL`, else those on the usual local ports, else fresh
//! ones on free ports that end with the tests. Run with `cargo test --test integration`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

#[macro_use]
mod macros;
mod support;

mod bad_input;
mod bad_sockets;
mod balance;
mod cancel;
mod chaos;
mod cli;
mod delivery;
mod detached;
mod dev;
mod drain;
mod failures;
mod ground;
mod happy_paths;
mod hosted_store;
mod hot_path;
mod many_gateways;
mod memory;
mod module_tree;
mod poolers;
mod protocol1;
mod protocol2;
mod rolling;
mod tls;
mod tokens;
mod topology;
mod waiting;
