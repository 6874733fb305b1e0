//! The request grammar, lenses and cursors: from a request to an operation on a source. Pure: no I/O, no
//! clock, no database dialect.
//!
//! A query goes through it in one direction: [`lens::Lens::admit`] judges the caller,
//! [`request::QueryRequest::parse`] reads the body in the lens's names, [`plan::Planner`] makes an
//! [`operation::Operation`] in the source's names of it, and [`rows`] maps what a protocol 1 runner sends
//! back. Runners use [`filter`], [`order`] and [`operation`] only.

#[cfg(feature = "gateway")]
pub mod cursor;
pub mod filter;
pub mod grammar;
pub mod grants;
pub mod lens;
pub mod like;
pub mod moment;
pub mod numeral;
pub mod operation;
pub mod order;
#[cfg(feature = "gateway")]
pub mod plan;
pub mod request;
pub mod rows;
pub mod suggest;
pub mod table;
