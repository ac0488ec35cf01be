//! Copies of packets for `ferroute capture`: taken by the workers, read by other threads.
//!
//! - [`filter`]: which packets, as a classic BPF program; [`compile`]: where that comes from;
//! - [`tap`]: the worker's side: where packets are looked at, and what is copied;
//! - [`ring`]: the copies on their way, bounded and allocated at start;
//! - [`record`]: one copy.
//!
//! The data path takes no lock, allocates nothing and waits for nobody: a reader that does not
//! follow loses copies, which are counted. Left out: formats of files.

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
