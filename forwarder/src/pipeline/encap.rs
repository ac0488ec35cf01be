//! Finds the packets inside tunnels whose partial checksums a router has to complete: IP in IP, GRE, VXLAN (also with GBP
//! and GPE) and Geneve, each with an IP packet or an Ethernet frame.
//!
//! UDP tunnels have no fixed port; they are recognised by their headers. A packet that only looks like one is not changed
//! unless it has a partial checksum at the place where a tunnel would have it. Not recognised are FOU, GUE and others without a
//! header of their own, ERSPAN, MPLS, and frames with two tags.

use crate::skb::SkBuff;
use crate::wire::{EtherType, Protocol, ethernet};

/// Tunnels in tunnels that are looked into; the kernel permits seven (`IPV6_DEFAULT_TNL_ENCAP_LIMIT`), and completes the
/// checksums of all but the innermost packets itself.
pub(super) const DEPTH_MAX: usize = 4;

/// Lengths of headers, octets.
const UDP_LEN: usize = 8;
const GRE_LEN: usize = 4;
const TUNNEL_LEN: usize = 8;
const TAG_LEN: usize = 4;

/// GRE flags (RFC 2784, RFC 2890): each of these adds four octets.
const GRE_FIELDS: [u16; 3] = [0x8000, 0x2000, 0x1000];
/// Bits that are 0 in packets that are looked into: routing, recursion, reserved, version.
const GRE_MUST_BE_ZERO: u16 = 0x4fff;
/// Transparent Ethernet bridging.
const ETH_P_TEB: u16 = 0x6558;

/// Whether the payload of a UDP datagram, whose header is at `transport`, begins as that of a tunnel does.
#[inline]
pub(super) fn may_be_udp_tunnel(skb: &SkBuff, transport: usize) -> bool {
    let header = skb.network_chunk_at::<TUNNEL_LEN>(transport + UDP_LEN);
    header.is_some_and(|header| udp_tunnel(header).is_some())
}

/// Whether the payload of a protocol other than TCP and UDP may have a partial checksum.
#[inline]
pub(super) fn may_have_transport(protocol: Protocol) -> bool {
    let is_tunnel = matches!(protocol, Protocol::IPIP | Protocol::IPV6 | Protocol::GRE);
    is_tunnel || protocol == Protocol::SCTP || crate::wire::ipv6_ext::is_ext_header(protocol)
}

/// Whether the XDP program leaves a packet that it received on a port with partial checksums to workers
/// (`check_for` of xdp-prog): it does not look into tunnels.
#[inline]
pub(super) fn is_left_to_workers(skb: &SkBuff, protocol: Protocol, transport: usize) -> bool {
    match protocol {
        Protocol::TCP => false,
        Protocol::UDP => may_be_udp_tunnel(skb, transport),
        _ => may_have_transport(protocol),
    }
}

/// A packet inside a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inner {
    /// Offset of its IP header.
    pub at: usize,
    /// The tunnel's header has a checksum of all that follows it (GRE).
    pub is_summed: bool,
}

/// What a tunnel contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    Ip,
    Ethernet,
}

/// Length of the tunnel's header after the UDP header, octets, and what follows it.
#[inline]
fn udp_tunnel(header: &[u8; TUNNEL_LEN]) -> Option<(usize, Contents)> {
    let protocol = u16::from_be_bytes([header[2], header[3]]);
    match *header {
        // It is reserved in all of them.
        [.., last] if last != 0 => None,
        // VXLAN (RFC 7348 §5), of which the octets after the first are reserved. Geneve with as many options (8 words) has
        // a protocol there.
        [0x08, 0, 0, 0, ..] => Some((TUNNEL_LEN, Contents::Ethernet)),
        // With a group policy, and two more flags.
        [0x88, flags, ..] if flags & !0x48 == 0 => Some((TUNNEL_LEN, Contents::Ethernet)),
        // VXLAN-GPE: the next protocol is IPv4, IPv6 or Ethernet.
        [0x0c, 0, 0, 1 | 2, ..] => Some((TUNNEL_LEN, Contents::Ip)),
        [0x0c, 0, 0, 3, ..] => Some((TUNNEL_LEN, Contents::Ethernet)),
        // Geneve (RFC 8926 §3.4): version 0, the length of options in words, and two flags.
        [length @ 0..0x40, flags, ..] if flags & 0x3f == 0 => {
            Some((TUNNEL_LEN + 4 * usize::from(length), contents(protocol)?))
        }
        _ => None,
    }
}

/// What an EtherType stands for in a tunnel.
fn contents(protocol: u16) -> Option<Contents> {
    match EtherType(protocol) {
        EtherType::IPV4 | EtherType::IPV6 => Some(Contents::Ip),
        EtherType(ETH_P_TEB) => Some(Contents::Ethernet),
        _ => None,
    }
}

/// The packet inside a tunnel; `transport`: the offset of the header after the outer IP header.
pub(super) fn inner(head: &[u8], protocol: Protocol, transport: usize) -> Option<Inner> {
    let mut is_summed = false;
    let (at, contents) = match protocol {
        Protocol::IPIP | Protocol::IPV6 => (transport, Contents::Ip),
        Protocol::GRE => {
            let [a, b, c, d] = *head.get(transport..)?.first_chunk::<GRE_LEN>()?;
            let flags = u16::from_be_bytes([a, b]);
            let fields = GRE_FIELDS.iter().filter(|field| flags & **field != 0).count();
            let contents = contents(u16::from_be_bytes([c, d]))?;
            if flags & GRE_MUST_BE_ZERO != 0 {
                return None;
            }
            is_summed = flags & GRE_FIELDS[0] != 0;
            (transport + GRE_LEN + 4 * fields, contents)
        }
        Protocol::UDP => {
            let at = transport + UDP_LEN;
            let (len, contents) = udp_tunnel(head.get(at..)?.first_chunk()?)?;
            (at + len, contents)
        }
        _ => return None,
    };
    let at = match contents {
        Contents::Ip => at,
        Contents::Ethernet => after_ethernet(head, at)?,
    };
    Some(Inner { at, is_summed })
}

/// The offset of the IP header in an Ethernet frame with at most one tag.
fn after_ethernet(head: &[u8], at: usize) -> Option<usize> {
    let ethertype = |at: usize| {
        let octets = head.get(at..)?.first_chunk::<2>()?;
        Some(EtherType(u16::from_be_bytes(*octets)))
    };
    let mut next = at + ethernet::HEADER_LEN;
    let mut kind = ethertype(next - 2)?;
    if matches!(kind, EtherType::VLAN | EtherType::QINQ) {
        next += TAG_LEN;
        kind = ethertype(next - 2)?;
    }
    matches!(kind, EtherType::IPV4 | EtherType::IPV6).then_some(next)
}
