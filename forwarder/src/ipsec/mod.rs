//! IPsec: ESP and AH on packets in memory, security associations, and policies.
//!
//! A pure library: functions take octets and the time, and change the octets in place. There is no I/O, no
//! clock, no random number, and on the path of packets no allocation and no lock; what connects it with the
//! kernel's SAs and policies and with the data path is elsewhere. Names and counters are those of the
//! kernel's XFRM (`net/xfrm/`), whose behaviour it follows; differences are documented at the items.
//!
//! | item | what it does | source |
//! | --- | --- | --- |
//! | [`OutboundState::seal`] | protects a packet | RFC 4303, RFC 4302, RFC 3948 |
//! | [`Sad::open`], [`InboundState::open`] | removes the protection | the same |
//! | [`Sequence`] | gives each number once, from reserved ranges | RFC 4303 §3.3.3 |
//! | [`ReplayWindow`] | accepts each number once | RFC 4303 §3.4.3 |
//! | [`Spd::lookup`], [`Spd::policy_check`] | which packets must be protected, and were | RFC 4301 §4.4 |
//! | [`Fragment`], [`Parts`] | fragments of a packet, and the packet | RFC 791, RFC 8200 §4.5, RFC 5722 |
//! | [`State::packet_len_max`] | what fits a path | `xfrm_state_mtu` |
//!
//! A packet is at a range of a larger buffer. Sending needs room on both sides ([`State::overhead`]); receiving
//! leaves room.
//!
//! **Differences from the kernel.**
//!
//! - Padding is verified (RFC 4303 §2.4), and a dummy packet is no error.
//! - A tunnel whose selector has a family carries only that family inbound, too; the kernel removes the
//!   protection and then drops the packet if its selector does not match.
//! - ECN follows RFC 6040 unless [`EcnRules::Xfrm`] is chosen; CE around a packet without ECN drops it.
//! - Sequence numbers never wrap, and numbers are not sent twice over a change of owner ([`Sequence`]).
//! - AH with a Routing header that has addresses left is not opened.
//! - A packet that no SA may open because a host would not get as far as its IPsec header is not found
//!   ([`locate`]); padding in IPv6 options is limited as by the kernel's defaults, whatever the sysctls say.
//! - A limit of seconds acts on the next packet or the next choice of an SA, not by a timer.
//! - Several workers do not exceed a hard limit inbound, either: the kernel counts a packet only after it has
//!   decrypted it, and others pass meanwhile.
//! - A selector with a family of its own is compared with the prefixes of that family only; the kernel
//!   compares the octets of any.
//!
//! Not included: IPComp, BEET, IP-TFS, fragmentation, marks that an SA gives to packets
//! (XFRMA_SET_MARK), SAs of one CPU, offload, security contexts, the algorithms that [`algorithm`] lists, and
//! everything that negotiates.

mod ah;
pub mod algorithm;
mod config;
mod crypto;
mod error;
mod input;
mod key;
mod mac;
mod output;
mod overhead;
mod policy;
mod reassembly;
mod replay;
mod sad;
mod selector;
mod sequence;
mod spd;
mod state;
mod tunnel;

pub use algorithm::{Aead, Auth, BadKey, Cipher, EspAlgorithm, EspKeys};
pub use config::{
    EcnRules, Family, KmState, Lifetime, Mode, Order, StateConfig, StateFlags, UdpPorts, Usage,
};
pub use crypto::IvSeed;
pub use error::{Counters, Error};
pub use input::{Decapsulated, Located, locate};
pub use key::Secret;
pub use output::OutputParams;
pub use overhead::Overhead;
pub use policy::{Action, Direction, MAX_DEPTH, Policy, Received, Template};
pub use reassembly::{Added, FRAGMENTS_MAX, Fragment, FragmentKey, Parts};
pub use replay::{BadWindow, ReplaySnapshot, ReplayWindow, WINDOW_MAX};
pub use sad::{LookedAhead, Opened, Sad};
pub use selector::{Flow, Mark, Prefix, Selector};
pub use sequence::{BadRange, Sequence};
pub use spd::Spd;
pub use state::{Algorithm, BadState, InboundState, Keys, OutboundState, State};

#[cfg(test)]
mod tests;
