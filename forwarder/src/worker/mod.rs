//! One worker: one pinned thread, its queues on every port, one UMEM.
//!
//! - [`poll`]: the loop: receive a burst, forward it, send, kick;
//! - [`handle`], [`ask`]: commands of other threads, and their timeouts;
//! - [`handoff`]: packets for a port on which their worker has no queue;
//! - [`slow_path`]: packets and requests to other threads, through bounded rings;
//! - [`liveness`]: heartbeats, and the permission to forward;
//! - [`residence`]: how long frames stay with a worker, sampled;
//! - [`clock`], [`affinity`].
//!
//! Nothing here allocates, locks or logs once the loop runs. System calls are the driver's kicks, the
//! sleep when idle, and one eventfd write to wake the control thread or another worker.

pub mod affinity;
pub mod ask;
pub mod clock;
pub mod handle;
pub mod handoff;
pub mod liveness;
pub mod poll;
pub mod residence;
pub mod slow_path;
pub mod trace_handle;

pub use ask::{CallTimeouts, NoAnswer};
pub use handle::{Command, TapHandle, WorkerHandle};
pub use handoff::Handoffs;
pub use liveness::{HeartbeatTimeouts, Liveness};
pub use poll::Worker;
pub use residence::Residence;
pub use slow_path::{NeighRequests, PuntQueue, SlowPath};
pub use trace_handle::TraceHandle;

#[cfg(test)]
mod tests;
