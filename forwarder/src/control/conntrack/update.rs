//! Changes of entries that exist.

use std::io;
use std::net::IpAddr;

use super::entry::{
    Entry, IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_MAXACK_SET, IPS_ASSURED, IPS_CONFIRMED,
    IPS_EXPECTED, IPS_SEEN_REPLY, Tuple,
};
use super::parse;
use super::uapi::*;
use crate::control::netlink::message::{Message, Request};
use crate::control::netlink::query::NlSock;
use crate::wire::Protocol;

/// The change of an entry in the default zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The entry's tuple of the original direction. The kernel takes that of the reply direction as well,
    /// and does not compare ids: if another entry has this tuple by now, that one is changed.
    pub tuple: Tuple,
    /// Sets the remaining time in seconds, at most i32::MAX jiffies; with 0 the entry expires.
    pub timeout_s: Option<u32>,
    /// Sets IPS_SEEN_REPLY and IPS_ASSURED.
    pub is_assured: bool,
    /// The entry has IPS_EXPECTED; needed for `is_assured` only.
    pub is_expected: bool,
    /// Sets IP_CT_TCP_FLAG_BE_LIBERAL of both directions; with `false`, unsets it. Ignored unless the protocol is TCP.
    pub is_liberal: Option<bool>,
    /// With `is_liberal`: unsets IP_CT_TCP_FLAG_MAXACK_SET of both directions.
    pub forgets_max_ack: bool,
}

/// Changes entries, many with one system call; the results are in the order of the changes. An entry that
/// does not exist is not added. `socket`: of NETLINK_NETFILTER.
///
/// The kernel applies timeout, status and flags of a change in this order, and stops at an error
/// (`ctnetlink_change_conntrack`). It sends an event to [`super::Events`], also to the caller's.
///
/// # Errors
/// Of each change: ENOENT if there is no such entry in the default zone; EPERM for a timeout of an entry with
/// IPS_FIXED_TIMEOUT; ETIME for one that is being removed; EBUSY if `is_expected` is wrong; for all
/// changes without an answer, the error of the socket.
pub fn update(socket: &mut NlSock, changes: &[Change]) -> Vec<io::Result<()>> {
    socket.change_all(changes, 0, request, |_| {})
}

/// Changes entries as [`update()`] does, and returns what they are afterwards. `None`: the kernel sends no events of
/// the entry.
///
/// # Errors
/// As of [`update()`].
pub fn update_and_read(socket: &mut NlSock, changes: &[Change]) -> Vec<io::Result<Option<Entry>>> {
    let mut events = Vec::with_capacity(changes.len());
    // The kernel sends its event to the socket, too, before it takes the next request.
    let results = socket.change_all(changes, NLM_F_ECHO, request, |message| {
        events.extend(parse::entry(message).filter(|_| message.kind == IPCTNL_MSG_CT_NEW));
    });
    let mut events = events.into_iter().peekable();
    let with_event = |(change, result): (&Change, io::Result<()>)| {
        let is_its = |entry: &Entry| entry.original == change.tuple && entry.zone == 0;
        let entry = events.next_if(is_its);
        result.map(|()| entry)
    };
    changes.iter().zip(results).map(with_event).collect()
}

/// The entry that has this tuple of the original direction, in the default zone, if there is one: also if the kernel sends no events of
/// it. `socket`: of NETLINK_NETFILTER.
///
/// # Errors
/// The kernel's errno.
pub fn read(socket: &mut NlSock, tuple: &Tuple) -> io::Result<Option<Entry>> {
    let request = |flags| {
        Request::new(IPCTNL_MSG_CT_GET, flags, &[tuple.family(), 0, 0, 0])
            .nested(CTA_TUPLE_ORIG, |attrs| append_tuple(attrs, tuple))
    };
    // The kernel finds an entry by the tuple of either direction.
    let parse = |message: &Message<'_>| {
        let is_entry = message.kind == IPCTNL_MSG_CT_NEW;
        parse::entry(message).filter(|entry| is_entry && entry.original == *tuple)
    };
    match socket.get(request, parse) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        entry => entry,
    }
}

/// IPCTNL_MSG_CT_NEW without NLM_F_CREATE, with which an entry that does not exist would be added.
fn request(change: &Change, flags: u16) -> Request {
    let tuple = &change.tuple;
    let header = [tuple.family(), 0, 0, 0];
    let mut request = Request::new(IPCTNL_MSG_CT_NEW, flags, &header)
        .nested(CTA_TUPLE_ORIG, |attrs| append_tuple(attrs, tuple));
    if change.is_assured {
        // `nf_ct_change_status_common`: EBUSY if IPS_EXPECTED, IPS_CONFIRMED or IPS_DYING differ from the
        // entry's, or if IPS_SEEN_REPLY or IPS_ASSURED are set there and not here. Bits that are missing
        // here are otherwise kept. Entries in the table are confirmed.
        let expected = if change.is_expected { IPS_EXPECTED } else { 0 };
        let status = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED | expected;
        request = request.attr(CTA_STATUS, &status.to_be_bytes());
    }
    if let Some(is_liberal) = change.is_liberal
        && Protocol(tuple.protocol) == Protocol::TCP
    {
        // `struct nf_ct_tcp_flags`: flags and mask.
        // As in `flow_offload_fixup_tcp`.
        let forgotten = if change.forgets_max_ack { IP_CT_TCP_FLAG_MAXACK_SET } else { 0 };
        let liberal = if is_liberal { IP_CT_TCP_FLAG_BE_LIBERAL } else { 0 };
        let flags = [liberal, IP_CT_TCP_FLAG_BE_LIBERAL | forgotten];
        request = request.nested(CTA_PROTOINFO, |attrs| {
            attrs.nested(CTA_PROTOINFO_TCP, |tcp| {
                tcp.attr(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, &flags)
                    .attr(CTA_PROTOINFO_TCP_FLAGS_REPLY, &flags)
            })
        });
    }
    match change.timeout_s {
        Some(timeout_s) => request.attr(CTA_TIMEOUT, &timeout_s.to_be_bytes()),
        None => request,
    }
}

/// Appends CTA_TUPLE_IP and CTA_TUPLE_PROTO.
pub(super) fn append_tuple(attrs: Request, tuple: &Tuple) -> Request {
    let attrs = attrs.nested(CTA_TUPLE_IP, |attrs| match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            attrs.attr(CTA_IP_V4_SRC, &source.octets()).attr(CTA_IP_V4_DST, &destination.octets())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            attrs.attr(CTA_IP_V6_SRC, &source.octets()).attr(CTA_IP_V6_DST, &destination.octets())
        }
        // No such tuple exists; the kernel refuses it (EINVAL).
        _ => attrs,
    });
    attrs.nested(CTA_TUPLE_PROTO, |attrs| append_ports(attrs, tuple))
}

fn append_ports(attrs: Request, tuple: &Tuple) -> Request {
    let attrs = attrs.attr(CTA_PROTO_NUM, &[tuple.protocol]);
    let source = tuple.source_port.to_be_bytes();
    let destination = tuple.destination_port.to_be_bytes();
    let [kind, code] = destination;
    match Protocol(tuple.protocol) {
        Protocol::ICMP => attrs
            .attr(CTA_PROTO_ICMP_ID, &source)
            .attr(CTA_PROTO_ICMP_TYPE, &[kind])
            .attr(CTA_PROTO_ICMP_CODE, &[code]),
        Protocol::ICMPV6 => attrs
            .attr(CTA_PROTO_ICMPV6_ID, &source)
            .attr(CTA_PROTO_ICMPV6_TYPE, &[kind])
            .attr(CTA_PROTO_ICMPV6_CODE, &[code]),
        // Protocols without ports ignore them.
        _ => attrs.attr(CTA_PROTO_SRC_PORT, &source).attr(CTA_PROTO_DST_PORT, &destination),
    }
}
