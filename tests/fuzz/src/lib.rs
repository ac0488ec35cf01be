//! Shared code of the fuzz targets: the formats of their inputs, a router in memory, and invariants for
//! every input. A violated invariant is a panic, which libFuzzer reports with the input.
//!
//! - [`input`]: parses octets to steps with frames; [`packet`]: parses headers independently of Ferroute;
//! - [`lab`]: the network of the targets `frames` and `jumbo`, and its expected routes;
//! - [`bench`]: the pipeline in memory, and the invariants of frames; [`judge`]: checks of each frame that
//!   leaves;
//! - [`mirror`]: netlink messages into tables; [`filter`]: capture filters compared with the kernel's.

pub mod bench;
pub mod filter;
pub mod input;
pub mod judge;
pub mod lab;
pub mod mirror;
pub mod packet;
