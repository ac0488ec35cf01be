//! `nf_conntrack_in`: finds the flow of a received packet (net/netfilter/nf_conntrack_core.c).

use super::flow::{Carried, FoundFlow, Reset};
use super::table::FlowTable;
use super::tuple::{FlowKey, IPPROTO_GRE, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP};
use super::{Ct, NatTarget, TupleKind};
use crate::netfilter::hook::HookState;
use crate::netfilter::nft::Family;
use crate::skb::SkBuff;
use crate::wire::checksum::{is_valid as is_valid_sum, ones_complement_sum, pseudo_header_v6};
use crate::wire::{Ipv6Packet, Protocol};

/// How old the last sign that the table agrees with the kernel's may be, nanoseconds. Before that, the control
/// thread withholds its heartbeat, and the XDP program passes all packets.
const VALID_NS: u64 = 2_000_000_000;
/// First octet of an IPv4 header without options.
const VERSION_4_NO_OPTIONS: u8 = 0x45;
/// Length of an IPv4 header without options, and of the fixed IPv6 header, octets.
pub const IPV4_HLEN: usize = 20;
pub const IPV6_HLEN: usize = 40;
const TCP_HLEN: usize = 20;
const UDP_HLEN: usize = 8;
/// Length of the ports, octets.
const PORTS: usize = 4;
/// Length of the header of echo, octets.
const ECHO_HLEN: usize = 8;
/// The version in the second octet of a GRE header.
const GRE_VERSION: u8 = 0x07;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
const TCP_URG: u8 = 0x20;
/// What `tcp_valid_flags` looks at.
const FLAGS: u8 = TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK | TCP_URG;
/// `tcp_valid_flags`, of segments that close a connection.
const CLOSING_FLAGS: [u8; 4] =
    [TCP_FIN | TCP_ACK, TCP_FIN | TCP_ACK | TCP_URG, TCP_RST, TCP_RST | TCP_ACK];

/// What is known of a packet that is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    /// Its connection.
    pub ct: Ct,
    /// What NAT makes of it; `None`: it is not translated.
    pub target: Option<NatTarget>,
    /// Its flow.
    pub of: FoundFlow,
    /// It neither opens nor closes the connection: what happens to it can be remembered for others.
    pub is_plain: bool,
}

/// The key of an IPv4 packet, given from its header on. `None`: its protocol has no [`TupleKind`], it is a fragment, has
/// options, or is too short.
#[inline]
pub fn flow_key4(packet: &[u8]) -> Option<FlowKey> {
    let header = packet.first_chunk::<{ IPV4_HLEN + PORTS }>()?;
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if header[0] != VERSION_4_NO_OPTIONS || is_fragment {
        return None;
    }
    let &[from, to, mut ports] = header.last_chunk::<12>()?.as_chunks::<4>().0 else { return None };
    if !has_ports(header[9]) {
        ports = instead_of_ports(header[9], 4, packet.get(IPV4_HLEN..)?)?;
    }
    Some(FlowKey::ipv4(from, to, header[9], ports))
}

/// The key of an IPv6 packet, given from its header on. `None`: its protocol has no [`TupleKind`], it has extension
/// headers, or is too short.
#[inline]
pub fn flow_key6(packet: &[u8]) -> Option<FlowKey> {
    let header = packet.first_chunk::<{ IPV6_HLEN + PORTS }>()?;
    let mut ports = *header.last_chunk()?;
    if !has_ports(header[6]) {
        ports = instead_of_ports(header[6], 6, packet.get(IPV6_HLEN..)?)?;
    }
    let [from, to] = header[8..40].as_chunks::<16>().0 else { return None };
    Some(FlowKey::ipv6(from, to, header[6], ports))
}

/// The key of a packet.
#[inline]
pub fn flow_key_of(packet: &[u8], pf: Family) -> Option<FlowKey> {
    match pf {
        Family::Ip => flow_key4(packet),
        _ => flow_key6(packet),
    }
}

#[inline]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, IPPROTO_TCP | IPPROTO_UDP)
}

/// What the key of a packet has instead of ports, given from its transport header on, of a family (4 or 6). `None`: it
/// has none.
#[inline(never)]
fn instead_of_ports(protocol: u8, family: u8, header: &[u8]) -> Option<[u8; PORTS]> {
    match TupleKind::of(protocol, family)? {
        TupleKind::Echo => {
            let &[kind, code, _, _, id0, id1, ..] = header.first_chunk::<ECHO_HLEN>()?;
            let is_echo = TupleKind::echo_types(family).contains(&kind) && code == 0;
            is_echo.then_some([id0, id1, kind, code])
        }
        // Other versions have keys (`gre_pkt_to_tuple`).
        TupleKind::Addresses if protocol == IPPROTO_GRE => {
            (header.get(1)? & GRE_VERSION == 0).then_some([0; PORTS])
        }
        TupleKind::Addresses => Some([0; PORTS]),
        TupleKind::Ports => None,
    }
}

/// Whether the table may be believed at `now_ns`, CLOCK_MONOTONIC.
#[inline]
pub fn is_valid(flows: &FlowTable, now_ns: u64) -> bool {
    now_ns.saturating_sub(flows.valid_ns()) <= VALID_NS
}

/// The connection of a packet with this key, of a flow that is carried. `None`: the packet is left to the kernel. So are
/// packets with IP options or extension headers, fragments, and packets that open or close a connection. The packet is
/// counted when it is known that it does not become the kernel's. `now_ns`: CLOCK_MONOTONIC.
///
/// Laxer than the kernel, as `nf_flow_table` is: transport checksums of TCP and UDP are not verified, and sequence numbers
/// not compared with windows. As in the kernel, a RST from before what its receiver has acknowledged is
/// invalid, and one that is not exact does not close the connection.
#[inline]
pub fn nf_conntrack_in(
    skb: &SkBuff,
    at: &HookState<'_>,
    key: &FlowKey,
    flows: &FlowTable,
    now_ns: u64,
) -> Option<Tracked> {
    if !is_valid(flows, now_ns) {
        return None;
    }
    let packet = skb.network_header();
    let found = flows.look_up(key, flows.hash(key))?;
    let Carried { number, sequence, .. } = found;
    if found.has_expired(now_ns) {
        flows.close(number.flow());
        return None;
    }
    let (protocol, transport) = at.transport.l4?;
    let of = FoundFlow { number, sequence };
    let plain = match Segment::of(protocol, (packet, skb.network_len()), transport)? {
        Segment::Plain(plain) => Some(plain),
        Segment::Closing { is_reset, seq } => {
            let ignores = flows.ignores_invalid_rst();
            if is_reset {
                flows.learn_elsewhere(&found);
            }
            match if is_reset { found.reset(seq, ignores) } else { Reset::Closes } {
                Reset::Carried => flows.carried_reset(number.flow()),
                Reset::Invalid => {
                    return Some(Tracked { ct: Ct::Invalid, target: None, of, is_plain: false });
                }
                Reset::Closes => {
                    flows.close(number.flow());
                    return None;
                }
            }
            None
        }
    };
    let (info, target) = found.read()?;
    if let Some(plain) = plain {
        plain.pass(&found);
    }
    let is_plain = plain.is_some();
    Some(Tracked { ct: Ct::Established(info), target, of, is_plain })
}

/// A packet of an established connection (`nf_conntrack_tcp_packet`, `nf_conntrack_udp_packet`,
/// `nf_conntrack_icmp_packet`, `nf_conntrack_icmpv6_packet`, `nf_conntrack_gre_packet`, `generic_packet`).
#[derive(Debug, Clone, Copy)]
pub enum Segment {
    /// It neither opens nor closes the connection.
    Plain(Plain),
    /// FIN or RST.
    Closing {
        /// RST.
        is_reset: bool,
        /// Its sequence number.
        seq: u32,
    },
}

/// What a packet that neither opens nor closes its connection says about it.
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    is_tcp: bool,
    /// TCP: the sequence number after its last octet, and the acknowledgement number.
    end: u32,
    ack: u32,
}

impl Plain {
    /// The packet is carried.
    #[inline]
    pub fn pass(self, found: &Carried<'_>) {
        if self.is_tcp {
            found.sent(self.end, self.ack);
        }
    }
}

impl Segment {
    /// Of a packet, given as its head from the network header on, and its length; its transport header is at `transport`;
    /// octets. `None`: only the kernel judges such packets.
    #[inline(always)]
    pub fn of(protocol: u8, packet: (&[u8], usize), transport: usize) -> Option<Segment> {
        let len = packet.1.checked_sub(transport)?;
        let header = packet.0.get(transport..)?;
        const PLAIN: Segment = Segment::Plain(Plain { is_tcp: false, end: 0, ack: 0 });
        if protocol == IPPROTO_UDP {
            // `udp_error`.
            let udp = header.first_chunk::<UDP_HLEN>()?;
            let in_header = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
            return (in_header >= UDP_HLEN && in_header <= len).then_some(PLAIN);
        }
        if protocol != IPPROTO_TCP {
            return is_valid_without_ports(protocol, packet, transport).then_some(PLAIN);
        }
        let tcp = header.first_chunk::<TCP_HLEN>()?;
        let header_len = usize::from(tcp[12] >> 4) * 4;
        // `tcp_error`.
        if header_len < TCP_HLEN || header_len > len {
            return None;
        }
        let number =
            |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let (flags, seq) = (tcp[13] & FLAGS, number(4));
        if flags & !TCP_URG == TCP_ACK {
            let end = seq.wrapping_add((len - header_len) as u32);
            return Some(Segment::Plain(Plain { is_tcp: true, end, ack: number(8) }));
        }
        let is_reset = flags & TCP_RST != 0;
        CLOSING_FLAGS.contains(&flags).then_some(Segment::Closing { is_reset, seq })
    }
}

/// Whether connection tracking takes a packet of a protocol without ports for valid. The checksum of ICMP is verified as
/// `nf_conntrack_icmpv4_error` and `nf_conntrack_icmpv6_error` do, whatever nf_conntrack_checksum is; a packet that has
/// more than one buffer is not.
#[inline(never)]
fn is_valid_without_ports(protocol: u8, (packet, len): (&[u8], usize), transport: usize) -> bool {
    let family = packet.first().map_or(0, |octet| octet >> 4);
    match TupleKind::of(protocol, family) {
        Some(TupleKind::Echo) => {
            let Some(message) = packet.get(transport..len) else { return false };
            let pseudo_header = match protocol {
                IPPROTO_ICMPV6 => {
                    let ip = Ipv6Packet::new_unchecked(packet);
                    let len = message.len() as u32;
                    pseudo_header_v6(ip.src_addr(), ip.dst_addr(), Protocol::ICMPV6, len)
                }
                _ => 0,
            };
            is_valid_sum(pseudo_header + ones_complement_sum(message))
        }
        Some(TupleKind::Addresses) => true,
        Some(TupleKind::Ports) | None => false,
    }
}
