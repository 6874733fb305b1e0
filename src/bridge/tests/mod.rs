//! The bridges against real databases, which must be there: `SEMILAYER_TEST_POSTGRES` and
//! `SEMILAYER_TEST_MYSQL` say where, and their users may create databases.

mod answers;
mod cancel;
mod catalogue;
mod dead_connections;
mod every_type;
mod filters;
mod migrations;
mod pooling;
mod query;
mod security;
mod support;
mod ties;
mod tls;
mod unavailable;
mod values;
