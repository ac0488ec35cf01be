//! The process itself: what it may do.
//!
//! - [`privilege`]: the capabilities that `run` needs.

pub mod privilege;
