//! Copies of packets for `ferroute capture`: made by the workers, read by other threads.
//!
//! - [`filter`]: selection of packets, a classic BPF program; [`compile`]: its compilation;
//! - [`tap`]: the worker's side: the capture points, and copying;
//! - [`ring`]: transfer of the copies, bounded and allocated at start;
//! - [`record`]: the format of one copy.
//!
//! The data path takes no lock, allocates nothing and never waits: a slow reader loses copies, which are
//! counted. File formats are not handled here.

mod compile;
pub mod filter;
mod probe;
pub mod record;
pub mod ring;
pub mod tap;
mod tree;

pub use compile::{CompileError, compile};
pub use filter::{Filter, FilterError, Insn, Verdict};
pub use record::{Kind, Record, Records};
pub use ring::{RingReader, ring};
pub use tap::{Session, Tap, Wanted, WantedPorts};

#[cfg(test)]
mod tests;
