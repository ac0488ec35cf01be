//! The mirror's two rtnetlink sockets: one for events and one for requests, so that events are not
//! interleaved with the parts of a dump.

use netlink_sys::constants::NETLINK_ROUTE;

use super::events::{Events, Group};
use super::message::{Message, Request};
use super::socket::{AskSocket, DumpEnd, SockError};
use super::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

/// ARPHRD_ETHER of include/uapi/linux/if_arp.h: the type of Ethernet interfaces.
pub const ARPHRD_ETHER: u16 = 1;

/// RTNLGRP_*: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE,
/// IPV4_NETCONF, IPV6_NETCONF; and NEXTHOP (since Linux 5.3; without it there are no nexthop
/// objects).
const GROUPS: [Group; 11] = [
    Group::Required(1),
    Group::Required(3),
    Group::Required(5),
    Group::Required(7),
    Group::Required(8),
    Group::Required(9),
    Group::Required(11),
    Group::Required(19),
    Group::Required(24),
    Group::Required(25),
    Group::Optional(32),
];

/// Subscribes to everything that is mirrored; see [`Events::open`].
///
/// # Errors
/// The kernel's error.
pub fn events(rcvbuf_octets: usize) -> Result<Events, SockError> {
    Events::open(NETLINK_ROUTE, &GROUPS, rcvbuf_octets)
}

/// The socket for requests.
#[derive(Debug)]
pub struct Requests(AskSocket);

impl Requests {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn open() -> Result<Requests, SockError> {
        let mut socket = AskSocket::open(NETLINK_ROUTE)?;
        socket.set_strict();
        Ok(Requests(socket))
    }

    /// A socket whose requests are always refused.
    #[cfg(test)]
    pub fn refused() -> Requests {
        let socket = AskSocket::open(netlink_sys::constants::NETLINK_GENERIC);
        Requests(socket.expect("opens"))
    }

    /// Dumps all objects of a kind: RTM_GET* `kind` with its fixed `header`.
    ///
    /// # Errors
    /// [`SockError::Refused`] if the kernel replies with an error.
    pub fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        header: &[u8],
        each: impl FnMut(&Message<'_>),
    ) -> Result<DumpEnd, SockError> {
        self.0.exchange(what, Request::new(kind, NLM_F_REQUEST | NLM_F_DUMP, header), each)
    }

    /// Sends a request that changes something, and waits for the acknowledgement.
    ///
    /// # Errors
    /// [`SockError::Refused`] if the kernel replies with an error.
    pub fn change(
        &mut self,
        what: &'static str,
        request: impl FnOnce(u16) -> Request,
    ) -> Result<(), SockError> {
        self.0.exchange(what, request(NLM_F_REQUEST | NLM_F_ACK), |_| {}).map(drop)
    }
}

/// Octets as `aa:bb:cc:dd:ee:ff`.
pub fn lladdr(octets: &[u8]) -> String {
    let hex: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    hex.join(":")
}
