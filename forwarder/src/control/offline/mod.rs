//! The same pipeline without a kernel to follow: captures replayed through a network that a file
//! describes.
//!
//! - [`static_network`]: interfaces, routes, rules and neighbours of a TOML file, as tables;
//! - [`replay`]: packets of a capture through them.

pub mod replay;
pub mod static_network;
