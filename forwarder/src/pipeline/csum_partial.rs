//! Partial checksums, as in frames from veth and similar devices.
//!
//! With checksum offload the sender leaves the folded, uncomplemented sum of the pseudo-header in the
//! field (CHECKSUM_PARTIAL). The kernel records this in the skb; AF_XDP passes only the packet's octets.
//! Therefore, on a port where this can happen, a field that holds exactly that sum is treated as partial,
//! unless the checksum is already correct, which happens by chance once in 65,536 and then needs no
//! completion. The field of SCTP, whose checksum is a CRC, holds 0 instead.
//!
//! The partial checksum may be that of a packet in a tunnel (`encap`): the sender has computed the checksums outside it as
//! they are when it is completed (local checksum offload).
//!
//! ICMP errors quote the packet with its partial checksum, as the kernel does.

use smallvec::SmallVec;

use super::encap;
use crate::skb::{IpSummed, SkBuff};
use crate::wire::checksum::{
    fold, is_valid, ones_complement_sum, pseudo_header_v4, pseudo_header_v6,
};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol};

/// Offset of the checksum in an SCTP header, octets.
const SCTP_CHECK: usize = 8;

/// Position of a transport checksum and the octets it covers. Offsets are from the network header, octets.
struct Checksum {
    /// Of the transport header.
    transport: usize,
    /// Of the end of the packet.
    end: usize,
    /// Of the checksum field.
    field: usize,
    kind: Kind,
}

/// How a checksum is computed.
#[derive(Clone, Copy)]
enum Kind {
    /// That of TCP and UDP.
    Internet { pseudo_header: u32, is_udp: bool },
    /// That of SCTP (RFC 9260 §6.8).
    Crc32c,
}

/// Marks a packet that has a partial checksum. For TCP a comparison of the field is enough, for UDP also one of its payload.
///
/// Neither inlined nor given the header that the caller has read: packets of other ports would then have that in memory
/// instead of registers.
#[inline(never)]
pub(super) fn recognise(skb: &mut SkBuff) {
    skb.ip_summed = match find(skb) {
        None => IpSummed::None,
        Some((Kind::Internet { .. }, 0)) => IpSummed::Partial,
        Some((_, depth)) => IpSummed::PartialOther { depth },
    };
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

/// A checksum outside of a packet in a tunnel, which covers that packet.
struct Outer {
    /// Offset of what it covers.
    from: usize,
    pseudo_header: u32,
}

/// The kind of the partial checksum of a packet, and in how many tunnels it is: the innermost one of which the checksums
/// outside take account.
fn find(skb: &SkBuff) -> Option<(Kind, u8)> {
    let head = skb.network_header();
    let mut outer: SmallVec<[Outer; 2]> = SmallVec::new();
    let mut found = None;
    for (depth, level) in levels(skb).enumerate() {
        if let Some(checksum) = level.checksum.filter(|checksum| checksum.is_whole(skb)) {
            if checksum.is_partial(skb) && outer.iter().all(|outer| checksum.is_within(outer, skb))
            {
                found = Some((checksum.kind, depth as u8));
            }
            if let Kind::Internet { pseudo_header, is_udp: true } = checksum.kind
                && !holds(skb, checksum.field, || 0)
            {
                outer.push(Outer { from: checksum.transport, pseudo_header });
            }
        }
        if encap::inner(head, level.protocol, level.transport).is_some_and(|it| it.is_summed) {
            outer.push(Outer { from: level.transport, pseudo_header: 0 });
        }
    }
    found
}

/// A packet, or one in a tunnel.
struct Level {
    protocol: Protocol,
    transport: usize,
    end: usize,
    checksum: Option<Checksum>,
}

/// A packet and those inside it, each of which ends with the one that it is in.
fn levels(skb: &SkBuff) -> impl Iterator<Item = Level> {
    let head = skb.network_header();
    let first = level_at(head, 0, head.len() + skb.data_len());
    let levels = std::iter::successors(first, |level| {
        let inner = encap::inner(head, level.protocol, level.transport)?;
        level_at(head, inner.at, level.end)
    });
    levels.take(1 + encap::DEPTH_MAX)
}

/// The packet whose IP header is at `network`, if it ends before `end`.
fn level_at(head: &[u8], network: usize, end: usize) -> Option<Level> {
    transport_of(head, network).filter(|level| level.end <= end)
}

/// The packet whose IP header is at `network` in `head`.
fn transport_of(head: &[u8], network: usize) -> Option<Level> {
    let packet = head.get(network..)?;
    let (protocol, offset, len, pseudo_header) = match packet.first()? >> 4 {
        4 => {
            let ipv4 = Ipv4Packet::new_checked(packet).ok().filter(|ipv4| !ipv4.is_fragment())?;
            let (src, dst, protocol) = (ipv4.src_addr(), ipv4.dst_addr(), ipv4.protocol());
            let len = usize::from(ipv4.total_len());
            let covered = len.checked_sub(ipv4.header_len())?;
            let pseudo_header = pseudo_header_v4(src, dst, protocol, covered as u16);
            (protocol, ipv4.header_len(), len, pseudo_header)
        }
        6 => {
            let ipv6 = Ipv6Packet::new_checked(packet).ok()?;
            let upper = ipv6.upper_layer().ok().filter(|upper| upper.fragment.is_none())?;
            let len = ipv6.total_len();
            let covered = len.checked_sub(upper.offset)? as u32;
            let (src, dst) = (ipv6.src_addr(), ipv6.dst_addr());
            let pseudo_header = pseudo_header_v6(src, dst, upper.protocol, covered);
            (upper.protocol, upper.offset, len, pseudo_header)
        }
        _ => return None,
    };
    let (transport, end) = (network + offset, network + len);
    let of = |field: usize, kind| Checksum { transport, end, field: transport + field, kind };
    let checksum = match (protocol, field_of(protocol)) {
        (Protocol::SCTP, _) => Some(of(SCTP_CHECK, Kind::Crc32c)),
        (_, Some(field)) => {
            let is_udp = protocol == Protocol::UDP;
            Some(of(field, Kind::Internet { pseudo_header, is_udp }))
        }
        _ => None,
    };
    Some(Level { protocol, transport, end, checksum })
}

impl Checksum {
    /// Length of the field, octets.
    fn field_len(&self) -> usize {
        match self.kind {
            Kind::Internet { .. } => 2,
            Kind::Crc32c => 4,
        }
    }

    /// Whether the packet has the field and all octets that it covers.
    fn is_whole(&self, skb: &SkBuff) -> bool {
        let (head, field_end) = (skb.network_header().len(), self.field + self.field_len());
        field_end <= self.end.min(head) && self.end <= head + skb.data_len()
    }

    fn is_partial(&self, skb: &SkBuff) -> bool {
        match self.kind {
            Kind::Internet { pseudo_header, .. } => {
                holds(skb, self.field, || fold(pseudo_header))
                    && !is_valid(pseudo_header + self.sum(skb))
            }
            Kind::Crc32c => {
                skb.network_chunk_at(self.field) == Some(&[0; 4]) && self.crc32c(skb) != 0
            }
        }
    }

    /// Whether a checksum outside will be right when this partial one is completed (`lco_csum`): what this one covers then
    /// adds up to the complement of its pseudo-header, which the field holds. Another is of the packet as it is.
    fn is_within(&self, outer: &Outer, skb: &SkBuff) -> bool {
        let Kind::Internet { pseudo_header, .. } = self.kind else { return false };
        let head = skb.network_header();
        let Some(between) = head.get(outer.from..self.transport) else { return false };
        let inside = !fold(pseudo_header);
        is_valid(outer.pseudo_header + ones_complement_sum(between) + u32::from(inside))
    }

    /// `skb_checksum`: the sum of the octets that the checksum covers, in all buffers of the packet.
    fn sum(&self, skb: &SkBuff) -> u32 {
        let (mut sum, mut at) = (0, 0);
        for slice in self.covered(skb) {
            let part = ones_complement_sum(slice);
            // A slice that begins at an odd octet has the octets of its words swapped (RFC 1071 §2(B)).
            sum += if at % 2 == 0 { part } else { u32::from((part as u16).swap_bytes()) };
            at += slice.len();
        }
        sum
    }

    /// The CRC of the octets that it covers, of which its own field is 0.
    fn crc32c(&self, skb: &SkBuff) -> u32 {
        self.covered(skb).fold(0, crc32c::crc32c_append)
    }

    fn covered<'s>(&self, skb: &'s SkBuff) -> impl Iterator<Item = &'s [u8]> {
        skb.slices(skb.network_offset() + self.transport, self.end - self.transport)
    }

    /// What belongs into the field.
    fn value(&self, skb: &SkBuff) -> [u8; 4] {
        let mut octets = [0; 4];
        match self.kind {
            // The field holds the sum of the pseudo-header.
            Kind::Internet { is_udp, .. } => {
                let value = match !fold(self.sum(skb)) {
                    // RFC 768: zero would mean that there is no checksum (CSUM_MANGLED_0).
                    0 if is_udp => 0xffff,
                    value => value,
                };
                octets[..2].copy_from_slice(&value.to_be_bytes());
            }
            // RFC 9260 appendix A: the CRC is sent with the octets in this order.
            Kind::Crc32c => octets = self.crc32c(skb).to_le_bytes(),
        }
        octets
    }
}

/// `skb_checksum_help`: completes a partial checksum; does nothing to other packets.
#[inline]
pub(super) fn skb_checksum_help(skb: &mut SkBuff) {
    if skb.ip_summed != IpSummed::None {
        complete(skb);
    }
}

#[cold]
fn complete(skb: &mut SkBuff) {
    // Where it was found when the packet was received: hook functions may have changed the field since.
    let depth = match std::mem::take(&mut skb.ip_summed) {
        IpSummed::None => return,
        IpSummed::Partial => 0,
        IpSummed::PartialOther { depth } => usize::from(depth),
    };
    let checksum = levels(skb).nth(depth).and_then(|level| level.checksum);
    let Some(checksum) = checksum.filter(|checksum| checksum.is_whole(skb)) else { return };
    let value = checksum.value(skb);
    let (field, len) = (checksum.field, checksum.field_len());
    if let Some(field) = skb.network_header_mut().get_mut(field..field + len) {
        field.copy_from_slice(&value[..len]);
    }
}
