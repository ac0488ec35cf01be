//! What the end-to-end tests share: namespaces, the lab, a running `ferroute`, raw packets,
//! streams that count what is lost, and the kernel's own counters.
//!
//! Everything here needs root. Left out: what is expected of a router; that is the tests' matter.
//!
//! With `FERROUTE_BIN=kernel` no `ferroute` is started and the kernel forwards: most of the
//! tests must then hold as well, which is how their expectations are checked.

#![forbid(unsafe_code)]

pub mod account;
pub mod bpf;
pub mod counters;
pub mod ferroute;
pub mod freeze;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod ping;
pub mod rng;
pub mod source;
pub mod stream;
pub mod tap;
pub mod threads;

pub use ferroute::Ferroute;
pub use lab::Lab;
pub use netns::Netns;

use std::time::{Duration, Instant};

/// How long anything that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is yes, for [`PATIENCE`] at most.
pub fn eventually(mut answer: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !answer() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}
