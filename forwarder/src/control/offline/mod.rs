//! The data path without a kernel to follow: captures replayed through a network that a file describes.
//!
//! - [`replay`]: sends the packets of a capture through it.

pub mod replay;

#[cfg(test)]
mod ipsec_tests;
