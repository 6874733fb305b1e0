//! States, rules and decisions. No I/O, no clock, no actors: everything here is a function of its arguments.

#[cfg(feature = "gateway")]
pub mod addresses;
pub mod job;
pub mod liveness;
pub mod names;
pub mod picking;
pub mod presence;
#[cfg(feature = "gateway")]
pub mod sealing;
#[cfg(feature = "gateway")]
pub mod tokens;
