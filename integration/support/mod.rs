//! What the tests stand on: real databases, child processes, a REST client, and runners and sockets that
//! misbehave on command. Holds no test and no knowledge of the product's code but its published contract.

pub(crate) mod cluster;
pub(crate) mod databases;
pub(crate) mod eventually;
pub(crate) mod fake_runner;
pub(crate) mod fault_proxy;
pub(crate) mod gateway;
pub(crate) mod hosted;
pub(crate) mod pg_server;
mod ports;
pub(crate) mod proc;
pub(crate) mod process;
pub(crate) mod raw_socket;
pub(crate) mod rest;
pub(crate) mod runner;
mod servers;
pub(crate) mod stage;

pub(crate) use databases::{Database, Engine};
pub(crate) use eventually::eventually;
pub(crate) use fake_runner::FakeRunner;
pub(crate) use gateway::Gateway;
pub(crate) use hosted::Hosted;
pub(crate) use rest::Answer;
pub(crate) use runner::RunnerProcess;
pub(crate) use stage::Stage;

use std::time::Duration;

/// How long something may take that only has to happen at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
