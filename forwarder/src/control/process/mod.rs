//! The process itself: what it may do, and what it says.
//!
//! - [`privilege`]: the capabilities that `run` needs;
//! - [`log`]: messages on standard error, without waiting for whoever reads them;
//! - [`threads`]: how they end.

pub mod log;
pub mod privilege;
pub mod threads;
