//! Shared code of the end-to-end tests: namespaces, the lab, a running `ferroute`, raw packets, streams
//! that count losses, and the kernel's own counters.
//!
//! Everything here needs root. Expectations of a router are left out; they belong to the tests.
//!
//! With `FERROUTE_BIN=kernel` no `ferroute` is started and the kernel forwards: most of the tests must then
//! succeed as well, which verifies their expectations.

#![forbid(unsafe_code)]

pub mod account;
pub mod bpf;
pub mod conversation;
pub mod counters;
pub mod ferroute;
pub mod freeze;
pub mod http;
pub mod lab;
pub mod netns;
pub mod packet;
pub mod ping;
pub mod rng;
pub mod source;
pub mod stream;
pub mod tap;
pub mod threads;
pub mod tmux;

pub use ferroute::Ferroute;
pub use lab::Lab;
pub use netns::Netns;

use std::time::{Duration, Instant};

/// How long any required event may take on a busy machine.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Polls until `answer` is true, for at most [`EVENT_TIMEOUT`].
pub fn eventually(mut answer: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + EVENT_TIMEOUT;
    while !answer() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}
