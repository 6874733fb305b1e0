//! The request grammar, lenses and cursors: from a request to an operation on a source. Pure: no I/O, no
//! clock, no database dialect.

pub mod filter;
pub mod operation;
