//! Netlink below the protocols: messages and attributes, and the sockets that ask and listen.
//!
//! - [`message`]: messages and attributes, written and read;
//! - [`socket`]: one request and the messages that answer it, dumps included;
//! - [`query`]: a socket of any protocol that asks for what is known by its errno alone;
//! - [`rtnl`]: rtnetlink for the mirror: its events, and its requests;
//! - [`events`]: a socket that only listens.
//!
//! A socket belongs to the network namespace of the thread that opens it. Left out: what messages
//! mean.

pub mod events;
pub mod message;
pub mod query;
pub mod rtnl;
pub mod socket;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;

/// A datagram of a dump is at most 32 KiB; an event with a full RTA_MULTIPATH at most 64 KiB and
/// some.
const BUFFER_OCTETS: usize = 256 * 1024;
