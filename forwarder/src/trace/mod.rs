//! The way of single packets through the data path, for `ferroute trace`: recorded by the workers, read by
//! other threads.
//!
//! - [`step`]: what is recorded: stages, rules, verdicts, and how the packet ended;
//! - [`record`]: the steps of one packet;
//! - [`ring`]: transfer of the records, bounded and allocated at start;
//! - [`traces`]: the worker's side: selection of packets, and recording.
//!
//! Records are plain data. Names of interfaces and the text of rules are added by the reader, which has the
//! tables and the ruleset.
//!
//! The data path takes no lock, allocates nothing and never waits: packets for which no record is free are not
//! traced, and are counted.

pub mod record;
pub mod ring;
pub mod step;
pub mod traces;

pub use record::Record;
pub use ring::{Counts, RecordReader, Session, ring};
pub use step::{FinalDisposition, Step, Value};
pub use traces::Traces;

/// Receives the steps of a packet. Code that is generic over it is compiled without tracing for [`NoTrace`].
pub trait Tracer {
    /// Whether the current packet is traced.
    fn is_traced(&self) -> bool;

    /// Records a step of the current packet.
    fn step(&mut self, step: Step);
}

/// No packet is traced.
#[derive(Debug, Clone, Copy)]
pub struct NoTrace;

impl Tracer for NoTrace {
    #[inline(always)]
    fn is_traced(&self) -> bool {
        false
    }

    #[inline(always)]
    fn step(&mut self, _: Step) {}
}

#[cfg(test)]
mod tests;
