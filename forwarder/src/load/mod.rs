//! Load generation: packets sent as fast as a port accepts them, and sinks that receive and count them.
//!
//! - [`traffic`]: what is sent and how fast, in the vocabulary of the kernel's pktgen;
//! - [`Place`]: an interface, optionally in another network namespace;
//! - [`Circuit`]: generators and sinks that are XDP programs and share counters, for closed loops with at
//!   most a window of packets in flight;
//! - [`af_xdp`]: the generator's other engine, the forwarder's AF_XDP driver;
//! - [`capture`]: frames of a capture file instead of generated ones;
//! - [`receiver`], [`tracker`]: a sink in userspace, which follows sequence numbers.
//! - [`rfc2544`]: trials and searches between two ports.
//!
//! ```no_run
//! use std::time::Duration;
//! use ferroute::load::{Circuit, Pace, Place, Traffic};
//!
//! let circuit = Circuit::new()?;
//! let sink = circuit.sink(&Place::within("fr-right", "right"))?;
//! let traffic = Traffic::new(
//!     [0x02, 0xf0, 0, 0, 1, 1],
//!     "198.18.1.2".parse().expect("an address"),
//!     "198.18.2.2".parse().expect("an address"),
//! );
//! let pace = Pace { window: Some(512), ..Pace::default() };
//! let generator = circuit.generator(&Place::within("fr-left", "left"), &traffic, &pace)?;
//! std::thread::sleep(Duration::from_secs(1));
//! let sent = generator.stop()?;
//! println!("{} sent, {} received", sent.packets, sink.counts()?.received);
//! # Ok::<(), ferroute::load::LoadError>(())
//! ```

pub mod af_xdp;
pub mod capture;
mod circuit;
mod error;
mod frame;
mod generator;
mod live_frames;
pub mod next_hop;
mod object;
mod place;
pub mod receiver;
pub mod rfc2544;
#[cfg(test)]
mod tests;
pub mod tracker;
pub mod traffic;

pub use circuit::{Circuit, Counts, Sink};
pub use error::LoadError;
pub use generator::{Generator, Sent};
pub use place::Place;
pub use traffic::{Pace, Sizes, Span, Traffic, TrafficError, Vlan};
