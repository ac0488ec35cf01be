//! The process itself: what it may do, and what it says.
//!
//! - [`privilege`]: the capabilities that `run` needs;
//! - [`log`]: messages on standard error, without waiting for whoever reads them;
//! - [`terminal`]: text without control characters;
//! - [`threads`]: how they end.

pub mod log;
pub mod privilege;
pub mod terminal;
pub mod threads;
