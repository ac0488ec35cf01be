//! `nf_conntrack_in`: finds the flow of a received packet (net/netfilter/nf_conntrack_core.c).

use super::table::FlowTable;
use super::tuple::{FlowKey, IPPROTO_TCP, IPPROTO_UDP};
use super::{Ct, CtInfo, Direction};
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

/// The connection of a packet of a flow that is carried. `None`: the packet is left to the kernel. So are
/// packets with IP options or extension headers, fragments, and packets that open or close a connection.
/// `now_ns`: CLOCK_MONOTONIC.
///
/// Laxer than the kernel, as `nf_flow_table` is: transport checksums are not verified, and sequence numbers
/// not compared with windows. As in the kernel, a RST from before what its receiver has acknowledged is
/// invalid.
#[inline]
pub fn nf_conntrack_in(
    skb: &SkBuff,
    at: &HookState<'_>,
    flows: &FlowTable,
    now_ns: u64,
) -> Option<Ct> {
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
    match protocol {
        IPPROTO_TCP => {
            let ct = tcp(header.first_chunk()?, payload_len, &key, flows, now_ns)?;
            if let Ct::Established(info) = ct {
                flows.seen(info.flow, info.direction, skb.network_len() as u64, now_ns);
            }
            Some(ct)
        }
        IPPROTO_UDP => {
            let udp = header.first_chunk::<UDP_HLEN>()?;
            let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            // `udp_error`.
            if len < UDP_HLEN || len > payload_len {
                return None;
            }
            let info = find(flows, &key, now_ns)?;
            flows.seen(info.flow, info.direction, skb.network_len() as u64, now_ns);
            Some(Ct::Established(info))
        }
        _ => None,
    }
}

/// The connection of a packet with this key, if its entry has not expired.
#[inline]
fn find(flows: &FlowTable, key: &FlowKey, now_ns: u64) -> Option<CtInfo> {
    let info = flows.find(key)?;
    if flows.has_expired(info.flow, now_ns) {
        flows.close(info.flow);
        return None;
    }
    Some(info)
}

/// `nf_conntrack_tcp_packet`, for an established connection.
#[inline]
fn tcp(
    tcp: &[u8; TCP_HLEN],
    len: usize,
    key: &FlowKey,
    flows: &FlowTable,
    now_ns: u64,
) -> Option<Ct> {
    let header_len = usize::from(tcp[12] >> 4) * 4;
    let flags = tcp[13];
    // `tcp_error`.
    if header_len < TCP_HLEN || header_len > len {
        return None;
    }
    let info = find(flows, key, now_ns)?;
    let direction: Direction = info.direction;
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    if flags & TCP_RST != 0 && flows.is_before_ack(info.flow, direction, number(4)) {
        return Some(Ct::Null);
    }
    if flags & (TCP_FIN | TCP_RST) != 0 {
        flows.close(info.flow);
        return None;
    }
    if flags & (TCP_SYN | TCP_ACK) != TCP_ACK {
        return None;
    }
    flows.acked(info.flow, direction, number(8));
    Some(Ct::Established(info))
}
