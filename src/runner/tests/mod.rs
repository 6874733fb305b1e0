//! The runner against real sockets: a gateway that does as the test says, and a database that streams,
//! waits and fails on command.

mod database;
mod dialing;
mod jobs;
mod sessions;
mod support;
