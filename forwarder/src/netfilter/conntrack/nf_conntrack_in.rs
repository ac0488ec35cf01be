//! `nf_conntrack_in`: finds the flow of a received packet (net/netfilter/nf_conntrack_core.c).

use super::table::{FlowTable, Found, Reset};
use super::tuple::{FlowKey, IPPROTO_TCP, IPPROTO_UDP};
use super::{Ct, NatTarget};
use crate::netfilter::hook::HookState;
use crate::netfilter::nft::Family;
use crate::skb::SkBuff;

/// How old the last sign that the table agrees with the kernel's may be, nanoseconds. Before that, the control
/// thread withholds its heartbeat, and the XDP program passes all packets.
const VALID_NS: u64 = 2_000_000_000;
/// Length of an IPv4 header without options, and of the fixed IPv6 header, octets.
const IPV4_HLEN: usize = 20;
const IPV6_HLEN: usize = 40;
const TCP_HLEN: usize = 20;
const UDP_HLEN: usize = 8;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
const TCP_URG: u8 = 0x20;
/// `tcp_valid_flags`, without those that open a connection.
const VALID_FLAGS: [u8; 6] = [
    TCP_ACK,
    TCP_ACK | TCP_URG,
    TCP_FIN | TCP_ACK,
    TCP_FIN | TCP_ACK | TCP_URG,
    TCP_RST,
    TCP_RST | TCP_ACK,
];

/// What is known of a packet that is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    /// Its connection.
    pub ct: Ct,
    /// What NAT makes of it; `None`: it is not translated.
    pub target: Option<NatTarget>,
    /// Changes when the connection's state does.
    pub sequence: u32,
}

/// The connection of a packet of a flow that is carried. `None`: the packet is left to the kernel. So are
/// packets with IP options or extension headers, fragments, and packets that open or close a connection.
/// `now_ns`: CLOCK_MONOTONIC.
///
/// Laxer than the kernel, as `nf_flow_table` is: transport checksums are not verified, and sequence numbers
/// not compared with windows. As in the kernel, a RST from before what its receiver has acknowledged is
/// invalid, and one that is not exact does not close the connection.
#[inline]
pub fn nf_conntrack_in(
    skb: &SkBuff,
    at: &HookState<'_>,
    flows: &FlowTable,
    now_ns: u64,
) -> Option<Tracked> {
    let age_ns = now_ns.saturating_sub(flows.valid_ns());
    if age_ns > VALID_NS {
        return None;
    }
    let (protocol, transport) = at.transport.l4?;
    let packet = skb.network_header();
    let payload_len = skb.network_len().checked_sub(transport)?;
    let header = packet.get(transport..)?;
    let ports = *header.first_chunk::<4>()?;
    let key = match at.pf {
        Family::Ip => {
            let iph = packet.first_chunk::<IPV4_HLEN>()?;
            let is_fragment = u16::from_be_bytes([iph[6], iph[7]]) & 0x3fff != 0;
            if transport != IPV4_HLEN || is_fragment {
                return None;
            }
            let [_, from, to] = iph.last_chunk::<12>()?.as_chunks::<4>().0.try_into().ok()?;
            FlowKey::ipv4(from, to, protocol, ports)
        }
        _ => {
            let hdr = packet.first_chunk::<IPV6_HLEN>()?;
            if transport != IPV6_HLEN {
                return None;
            }
            let addresses = hdr.last_chunk::<32>()?.as_chunks::<16>().0;
            FlowKey::ipv6(addresses.first()?, addresses.last()?, protocol, ports)
        }
    };
    let found = match protocol {
        IPPROTO_TCP => {
            let found = find(flows, &key, now_ns);
            match tcp(header.first_chunk()?, payload_len, found?, flows)? {
                Segment::Established(found) => found,
                Segment::Invalid => {
                    return Some(Tracked { ct: Ct::Invalid, target: None, sequence: 0 });
                }
            }
        }
        IPPROTO_UDP => {
            let udp = header.first_chunk::<UDP_HLEN>()?;
            let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            // `udp_error`.
            if len < UDP_HLEN || len > payload_len {
                return None;
            }
            find(flows, &key, now_ns)?
        }
        _ => return None,
    };
    found.seen(skb.network_len() as u64, now_ns);
    let Found { sequence, info, target, .. } = found;
    Some(Tracked { ct: Ct::Established(info), target, sequence })
}

/// The flow of a packet with this key, if its entry has not expired.
#[inline]
fn find<'a>(flows: &'a FlowTable, key: &FlowKey, now_ns: u64) -> Option<Found<'a>> {
    let found = flows.look_up(key)?;
    if found.has_expired(now_ns) {
        flows.close(found.info.flow);
        return None;
    }
    Some(found)
}

/// A TCP segment of an established connection.
enum Segment<'a> {
    Established(Found<'a>),
    Invalid,
}

/// `nf_conntrack_tcp_packet`, for an established connection.
#[inline]
fn tcp<'a>(
    tcp: &[u8; TCP_HLEN],
    len: usize,
    found: Found<'a>,
    flows: &FlowTable,
) -> Option<Segment<'a>> {
    let header_len = usize::from(tcp[12] >> 4) * 4;
    let flags = tcp[13] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK | TCP_URG);
    // `tcp_error`; and packets that open a connection.
    let is_valid = header_len >= TCP_HLEN && header_len <= len;
    if !is_valid || !VALID_FLAGS.contains(&flags) {
        return None;
    }
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let seq = number(4);
    let closes = match flags & TCP_RST {
        0 => flags & TCP_FIN != 0,
        _ => match found.reset(seq, flows.ignores_invalid_rst()) {
            Reset::Closes => true,
            Reset::Invalid => return Some(Segment::Invalid),
            Reset::Carried => {
                flows.carried_reset(found.info.flow);
                false
            }
        },
    };
    if closes {
        flows.close(found.info.flow);
        return None;
    }
    if flags & TCP_RST == 0 {
        let end = seq.wrapping_add((len - header_len) as u32);
        found.sent(end, number(8));
    }
    Some(Segment::Established(found))
}
