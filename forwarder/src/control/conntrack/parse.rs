//! Entries in messages. `None`: a message does not have the expected form.
//!
//! Tuples identify a connection, so an attribute in one that is not known means that the tuple is not
//! understood. Other unknown attributes do not change what the known ones mean, and are ignored.

use std::net::IpAddr;

use super::entry::{Entry, TcpInfo, Tuple};
use super::uapi::*;
use crate::control::netlink::message::{Attrs, Message, ip, u8_at};
use crate::control::netlink::table::Table;
use crate::wire::Protocol;

/// Decodes the entry of IPCTNL_MSG_CT_NEW or IPCTNL_MSG_CT_DELETE.
pub fn entry(message: &Message<'_>) -> Option<Entry> {
    let table = Table::<25>::lenient(message.attrs(NFGEN_HEADER))?;
    let (original, original_zone) = tuple(table.nested(CTA_TUPLE_ORIG)?)?;
    let (reply, reply_zone) = tuple(table.nested(CTA_TUPLE_REPLY)?)?;
    let family = u8_at(message.payload, 0)?;
    if family != original.family()
        || family != reply.family()
        || original.protocol != reply.protocol
    {
        return None;
    }
    let zones = [zone(&table, CTA_ZONE)?, original_zone, reply_zone];
    Some(Entry {
        original,
        reply,
        status: table.be32(CTA_STATUS)?,
        timeout_s: optional_be32(&table, CTA_TIMEOUT)?,
        mark: table.be32_or(CTA_MARK, 0)?,
        zone: zones.into_iter().find(|zone| *zone != 0).unwrap_or_default(),
        id: optional_be32(&table, CTA_ID)?,
        tcp: match table.nested(CTA_PROTOINFO) {
            Some(attrs) => protoinfo(attrs)?,
            None => None,
        },
        has_helper: table.has(CTA_HELP),
        is_seq_adjusted: table.has(CTA_SEQ_ADJ_ORIG) || table.has(CTA_SEQ_ADJ_REPLY),
        has_synproxy: table.nested(CTA_SYNPROXY).is_some_and(has_synproxy),
        has_labels: table.has(CTA_LABELS),
        has_master: table.has(CTA_TUPLE_MASTER),
    })
}

/// Whether SYNPROXY has opened the connection: every entry that ctnetlink has added has its numbers, as zeros
/// (`ctnetlink_create_conntrack`).
fn has_synproxy(mut attrs: Attrs<'_>) -> bool {
    attrs.any(|attr| attr.value.iter().any(|octet| *octet != 0))
}

/// `Some(None)`: the attribute is missing.
fn optional_be32<const N: usize>(table: &Table<'_, N>, kind: u16) -> Option<Option<u32>> {
    if table.has(kind) { table.be32(kind).map(Some) } else { Some(None) }
}

/// A zone, which the kernel leaves out if it is 0.
pub(super) fn zone<const N: usize>(table: &Table<'_, N>, kind: u16) -> Option<u16> {
    if table.has(kind) { table.be16(kind) } else { Some(0) }
}

/// Decodes CTA_TUPLE_*: the tuple and its zone.
fn tuple(attrs: Attrs<'_>) -> Option<(Tuple, u16)> {
    let table = Table::<4>::strict(attrs)?;
    let (source, destination) = addresses(table.nested(CTA_TUPLE_IP)?)?;
    let (protocol, source_port, destination_port) = ports(table.nested(CTA_TUPLE_PROTO)?)?;
    let tuple = Tuple { source, destination, protocol, source_port, destination_port };
    Some((tuple, zone(&table, CTA_TUPLE_ZONE)?))
}

/// Decodes CTA_TUPLE_IP: source and destination of one family.
fn addresses(attrs: Attrs<'_>) -> Option<(IpAddr, IpAddr)> {
    let table = Table::<5>::strict(attrs)?;
    let of = |source, destination| Some((ip(table.get(source)?)?, ip(table.get(destination)?)?));
    let (source, destination) = match table.has(CTA_IP_V4_SRC) {
        true => of(CTA_IP_V4_SRC, CTA_IP_V4_DST).filter(|(source, _)| source.is_ipv4())?,
        false => of(CTA_IP_V6_SRC, CTA_IP_V6_DST).filter(|(source, _)| source.is_ipv6())?,
    };
    let is_one_family = source.is_ipv4() == destination.is_ipv4() && table.count() == 2;
    is_one_family.then_some((source, destination))
}

/// Decodes CTA_TUPLE_PROTO: the protocol and what [`Tuple`] has as its ports. Each protocol has its
/// attributes and no others.
fn ports(attrs: Attrs<'_>) -> Option<(u8, u16, u16)> {
    let table = Table::<10>::strict(attrs)?;
    let protocol = table.u8(CTA_PROTO_NUM)?;
    let icmp = |id, kind, code| {
        Some((table.be16(id)?, u16::from_be_bytes([table.u8(kind)?, table.u8(code)?])))
    };
    let (source, destination) = match (Protocol(protocol), table.count()) {
        (Protocol::ICMP, 4) => icmp(CTA_PROTO_ICMP_ID, CTA_PROTO_ICMP_TYPE, CTA_PROTO_ICMP_CODE)?,
        (Protocol::ICMPV6, 4) => {
            icmp(CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMPV6_TYPE, CTA_PROTO_ICMPV6_CODE)?
        }
        (Protocol::ICMP | Protocol::ICMPV6, _) => return None,
        (_, 3) => (table.be16(CTA_PROTO_SRC_PORT)?, table.be16(CTA_PROTO_DST_PORT)?),
        (protocol, 1) if !has_ports(protocol) => (0, 0),
        _ => return None,
    };
    Some((protocol, source, destination))
}

/// Whether tuples of a protocol always have ports. Those of GRE have its keys, if the kernel supports it.
pub(super) fn has_ports(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::TCP | Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP | Protocol::DCCP
    )
}

/// Decodes CTA_PROTOINFO; `Some(None)` if it is that of another protocol than TCP.
fn protoinfo(attrs: Attrs<'_>) -> Option<Option<TcpInfo>> {
    let Some(tcp) = Table::<2>::lenient(attrs)?.nested(CTA_PROTOINFO_TCP) else {
        return Some(None);
    };
    let table = Table::<6>::lenient(tcp)?;
    // `struct nf_ct_tcp_flags`: flags and mask.
    let flags = |kind| match table.get(kind) {
        Some([flags, _]) => Some(*flags),
        Some(_) => None,
        None => Some(0),
    };
    Some(Some(TcpInfo {
        state: table.u8(CTA_PROTOINFO_TCP_STATE)?,
        flags_original: flags(CTA_PROTOINFO_TCP_FLAGS_ORIGINAL)?,
        flags_reply: flags(CTA_PROTOINFO_TCP_FLAGS_REPLY)?,
    }))
}
