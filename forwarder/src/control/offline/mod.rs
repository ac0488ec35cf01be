//! The same pipeline without a kernel to follow: captures replayed through a network that a file
//! describes.
//!
//! - [`replay`]: packets of a capture through them.

pub mod replay;
