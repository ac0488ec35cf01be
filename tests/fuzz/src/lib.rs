//! What the fuzz targets share: the forms of their inputs, a router on a bench, and the laws that
//! hold whatever goes in. A broken law is a panic, which libFuzzer reports with the input.
//!
//! - [`input`]: steps with frames, as octets say them; [`packet`]: headers, read without Ferroute;
//! - [`lab`]: the network of the targets `frames` and `jumbo`, and where its routes lead;
//! - [`bench`]: the pipeline over memory, and the law of frames; [`judge`]: each frame that leaves;
//! - [`mirror`]: netlink messages into tables; [`filter`]: capture filters beside the kernel's.

pub mod bench;
pub mod filter;
pub mod input;
pub mod judge;
pub mod lab;
pub mod mirror;
pub mod packet;
