//! Partial TCP and UDP checksums, as in frames from veth and similar devices.
//!
//! With checksum offload the sender leaves the folded, uncomplemented sum of the pseudo-header in the
//! field (CHECKSUM_PARTIAL). The kernel records this in the skb; AF_XDP passes only the packet's octets.
//! Therefore, on a port where this can happen, a field that holds exactly that sum is treated as partial,
//! unless the checksum is already correct, which happens by chance once in 65,536 and then needs no
//! completion.
//!
//! ICMP errors quote the packet with its partial checksum, as the kernel does. Not recognised: checksums
//! of packets inside a tunnel, and SCTP checksums.

use super::headers::{Iphdr, Ipv6hdr};
use crate::skb::{IpSummed, SkBuff};
use crate::wire::checksum::{
    fold, is_valid, ones_complement_sum, pseudo_header_v4, pseudo_header_v6,
};
use crate::wire::ipv6_ext::is_ext_header;
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, ipv6};

/// Position of a transport checksum and the octets it covers.
struct Checksum {
    /// Offset of the transport header from the network header, octets.
    transport: usize,
    /// Offset of the end of the packet from the network header, octets.
    end: usize,
    /// Offset of the checksum field from the network header, octets.
    field: usize,
    pseudo_header: u32,
    udp: bool,
}

/// Marks an IPv4 packet whose transport checksum is partial. For other packets one comparison of the
/// field is enough.
#[inline]
pub(super) fn recognise4(skb: &mut SkBuff, iph: &Iphdr) {
    let header_len = usize::from(iph.header_len);
    let len = iph.tot_len.saturating_sub(u16::from(iph.header_len));
    let (src, dst) = (iph.saddr.into(), iph.daddr.into());
    let partial_value = || fold(pseudo_header_v4(src, dst, iph.protocol, len));
    if field_of(iph.protocol).is_some_and(|field| holds(skb, header_len + field, partial_value)) {
        recognise(skb);
    }
}

/// As [`recognise4`] for IPv6. With extension headers the whole header chain is parsed.
#[inline]
pub(super) fn recognise6(skb: &mut SkBuff, hdr: &Ipv6hdr) {
    let len = hdr.len.saturating_sub(ipv6::HEADER_LEN) as u32;
    let partial_value = || fold(pseudo_header_v6(hdr.saddr, hdr.daddr, hdr.next_header, len));
    let maybe = match field_of(hdr.next_header) {
        Some(field) => holds(skb, ipv6::HEADER_LEN + field, partial_value),
        None => is_ext_header(hdr.next_header),
    };
    if maybe {
        recognise(skb);
    }
}

/// Offset of the checksum in a transport header, octets.
#[inline]
fn field_of(protocol: Protocol) -> Option<usize> {
    match protocol {
        Protocol::TCP => Some(16),
        Protocol::UDP => Some(6),
        _ => None,
    }
}

/// Whether the two octets at offset `at` from the network header are `value`.
#[inline]
fn holds(skb: &SkBuff, at: usize, value: impl FnOnce() -> u16) -> bool {
    skb.network_chunk_at(at).is_some_and(|field| u16::from_be_bytes(*field) == value())
}

#[cold]
fn recognise(skb: &mut SkBuff) {
    let Some(checksum) = find(skb) else { return };
    if holds(skb, checksum.field, || fold(checksum.pseudo_header))
        && !is_valid(checksum.pseudo_header + sum(skb, &checksum))
    {
        skb.ip_summed = IpSummed::Partial;
    }
}

/// `skb_checksum`: the sum of the octets that the checksum covers, in all buffers of the packet.
fn sum(skb: &SkBuff, checksum: &Checksum) -> u32 {
    let covered = checksum.end - checksum.transport;
    let (mut sum, mut at) = (0, 0);
    for slice in skb.slices(skb.network_offset() + checksum.transport, covered) {
        let part = ones_complement_sum(slice);
        // A slice that begins at an odd octet has the octets of its words swapped (RFC 1071 §2(B)).
        sum += if at % 2 == 0 { part } else { u32::from((part as u16).swap_bytes()) };
        at += slice.len();
    }
    sum
}

/// `skb_checksum_help`: completes a partial checksum; does nothing to other packets.
#[inline]
pub(super) fn skb_checksum_help(skb: &mut SkBuff) {
    if skb.ip_summed == IpSummed::Partial {
        complete(skb);
    }
}

#[cold]
fn complete(skb: &mut SkBuff) {
    skb.ip_summed = IpSummed::None;
    let Some(checksum) = find(skb) else { return };
    // The field holds the sum of the pseudo-header.
    let mut value = !fold(sum(skb, &checksum));
    if checksum.udp && value == 0 {
        // RFC 768: zero would mean that there is no checksum (CSUM_MANGLED_0).
        value = 0xffff;
    }
    let packet = skb.network_header_mut();
    if let Some(field) = packet.get_mut(checksum.field..checksum.field + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// The checksum of a packet that is a whole TCP segment or UDP datagram.
fn find(skb: &SkBuff) -> Option<Checksum> {
    let packet = skb.network_header();
    let (transport, end, protocol, pseudo_header) = match packet.first()? >> 4 {
        4 => {
            let ipv4 = Ipv4Packet::new_checked(packet).ok().filter(|ipv4| !ipv4.is_fragment())?;
            let (src, dst, protocol) = (ipv4.src_addr(), ipv4.dst_addr(), ipv4.protocol());
            let end = usize::from(ipv4.total_len());
            let len = end.checked_sub(ipv4.header_len())?;
            let pseudo_header = pseudo_header_v4(src, dst, protocol, len as u16);
            (ipv4.header_len(), end, protocol, pseudo_header)
        }
        6 => {
            let ipv6 = Ipv6Packet::new_checked(packet).ok()?;
            let upper = ipv6.upper_layer().ok().filter(|upper| upper.fragment.is_none())?;
            let end = ipv6.total_len();
            let len = end.checked_sub(upper.offset)? as u32;
            let (src, dst) = (ipv6.src_addr(), ipv6.dst_addr());
            let pseudo_header = pseudo_header_v6(src, dst, upper.protocol, len);
            (upper.offset, end, upper.protocol, pseudo_header)
        }
        _ => return None,
    };
    let (field, udp) = (transport + field_of(protocol)?, protocol == Protocol::UDP);
    let is_there = field + 2 <= end.min(packet.len()) && end <= packet.len() + skb.data_len();
    is_there.then_some(Checksum { transport, end, field, pseudo_header, udp })
}
