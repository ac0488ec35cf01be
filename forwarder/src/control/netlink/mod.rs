//! Netlink independent of the protocol: messages and attributes, and sockets for requests and
//! events.
//!
//! - [`message`]: builds and parses messages and attributes;
//! - [`table`]: attributes by their number;
//! - [`socket`]: one request and its reply messages, including dumps;
//! - [`query`]: a socket for requests of any protocol, with errors as an errno only;
//! - [`rtnl`]: the mirror's rtnetlink sockets for events and requests;
//! - [`events`]: a socket for events;
//! - [`autoload`]: modules that the kernel loads on request.
//!
//! A socket belongs to the network namespace of the thread that opens it. Left out: the contents of
//! messages.

pub mod autoload;
pub mod events;
pub mod message;
pub mod query;
pub mod rtnl;
pub mod socket;
pub mod table;
#[cfg(test)]
pub mod test_netns;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_ACK: u16 = 0x04;
const NLM_F_DUMP: u16 = 0x300;

/// A datagram of a dump has at most 32 KiB; an event with a full RTA_MULTIPATH slightly more than
/// 64 KiB.
const BUFFER_OCTETS: usize = 256 * 1024;
