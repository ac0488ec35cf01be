//! The octets that the ICV of AH covers (RFC 4302 §3.3.3): those of the packet, with zeros for the fields
//! that change in transit, and predictable ones as they will arrive.
//!
//! Which IPv4 options are immutable follows the kernel's `ip_clear_mutable_options`, which follows RFC 4302
//! appendix A1. Not included: GMAC for AH (RFC 4543 §5), which the kernel has not either, and the options of
//! mobile IPv6.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use super::tunnel::Kept;
use crate::wire::ipv4_option::OptionKind;
use crate::wire::ipv6_ext::{ExtOptions, Ipv6OptionKind, MAX_EXT_HEADERS};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, ah, ipv4, ipv6};

/// Zeros for the longest ICV and the longest option of IPv6.
const ZEROS: [u8; 256] = [0; 256];

/// IPv6 Routing headers that name the last destination in their last address: types 0 (RFC 2460 §4.4) and 2
/// (RFC 6275 §6.4).
const ROUTING_TYPES: [u8; 2] = [0, 2];

/// Which end computes the ICV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The packet will change as source routes demand.
    Sender,
    /// The packet is as it arrived.
    Receiver,
}

/// Where AH is in a packet that starts with its IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covered {
    /// Offset of AH.
    pub at: usize,
    /// Length of the ICV, without padding.
    pub icv_len: usize,
}

impl Covered {
    /// Where the ICV is.
    pub fn icv_range(&self) -> Range<usize> {
        let start = self.at + ah::HEADER_LEN;
        start..start + self.icv_len
    }

    /// Gives all covered octets in their order, without the high half of the sequence number. `None`: a
    /// header cannot be read.
    pub fn feed(&self, packet: &[u8], role: Role, update: &mut dyn FnMut(&[u8])) -> Option<()> {
        feed_headers(packet.get(..self.at)?, role, update)?;
        let icv = self.icv_range();
        update(packet.get(self.at..icv.start)?);
        update(ZEROS.get(..icv.len())?);
        // The padding of the ICV is covered as it is (RFC 4302 §3.3.3.2.1).
        update(packet.get(icv.end..)?);
        Some(())
    }
}

/// Whether a sender can cover these headers before AH: [`Covered::feed`] succeeds, whatever follows them.
pub(super) fn check_headers(headers: &[u8]) -> Option<()> {
    feed_headers(headers, Role::Sender, &mut |_| {})
}

/// What is before AH.
fn feed_headers(headers: &[u8], role: Role, update: &mut dyn FnMut(&[u8])) -> Option<()> {
    match headers.first()? >> 4 {
        4 => feed_ipv4(headers, role, update),
        _ => feed_ipv6(headers, role, update),
    }
}

/// The IPv4 header.
fn feed_ipv4(header: &[u8], role: Role, update: &mut dyn FnMut(&[u8])) -> Option<()> {
    let mut copy = [0; ipv4::HEADER_LEN_MAX];
    let copy = copy.get_mut(..header.len())?;
    copy.copy_from_slice(header);
    let mut last_hop = None;
    for option in Ipv4Packet::new_checked(header).ok()?.options() {
        let option = option.ok()?;
        if is_immutable(option.kind) {
            continue;
        }
        if option.kind.is_source_route() {
            // Kind, length, pointer and one address at least.
            last_hop = Some(*option.octets.get(3..)?.last_chunk::<4>()?);
        }
        copy.get_mut(option.offset..option.offset + option.octets.len())?.fill(0);
    }
    let mut ip = Ipv4Packet::new_unchecked(copy);
    ip.set_tos(0);
    ip.set_frag(false, false, 0);
    ip.set_ttl(0);
    ip.set_checksum(0);
    if let (Role::Sender, Some(last_hop)) = (role, last_hop) {
        ip.set_dst_addr(Ipv4Addr::from(last_hop));
    }
    update(ip.as_octets());
    Some(())
}

/// Whether an option does not change in transit: padding, security (RFC 1108, also extended, and CIPSO), router
/// alert (RFC 2113), and selective directed broadcast (RFC 1770).
fn is_immutable(kind: OptionKind) -> bool {
    const EXTENDED_SECURITY: OptionKind = OptionKind(0x85);
    const SELECTIVE_BROADCAST: OptionKind = OptionKind(0x95);
    matches!(
        kind,
        OptionKind::EOL
            | OptionKind::NOP
            | OptionKind::SEC
            | EXTENDED_SECURITY
            | OptionKind::CIPSO
            | OptionKind::RA
            | SELECTIVE_BROADCAST
    )
}

/// The IPv6 header and the extension headers before AH.
fn feed_ipv6(headers: &[u8], role: Role, update: &mut dyn FnMut(&[u8])) -> Option<()> {
    let packet = Ipv6Packet::new_checked(headers).ok()?;
    let mut fixed = [0; ipv6::HEADER_LEN];
    fixed.copy_from_slice(headers.get(..ipv6::HEADER_LEN)?);
    let mut ip = Ipv6Packet::new_unchecked(&mut fixed[..]);
    ip.set_version_class_flow(0, 0);
    ip.set_hop_limit(0);
    let first = Kept {
        len: ipv6::HEADER_LEN,
        next_at: ipv6::NEXT_HEADER_OFFSET,
        next: packet.next_header(),
    };
    // The fixed header is first, but a Routing header after it says which destination it will have.
    let is_sender = role == Role::Sender;
    let mut at = first;
    for _ in 0..MAX_EXT_HEADERS {
        if at.next == Protocol::ROUTING {
            let routing = Routing::of_header(headers, at)?;
            match routing.last_destination() {
                Some(last) if is_sender => ip.set_dst_addr(last),
                // Not yet at its last destination: not for this SA.
                Some(_) => return None,
                None => {}
            }
        }
        if at.len == headers.len() {
            break;
        }
        at = at.after_options(headers)?;
    }
    update(ip.as_octets());
    let mut at = first;
    for _ in 0..MAX_EXT_HEADERS {
        if at.len == headers.len() {
            return Some(());
        }
        let next = at.after_options(headers)?;
        match at.next {
            Protocol::ROUTING => {
                Routing::of_header(headers, at)?.feed(packet.dst_addr(), update)?;
            }
            Protocol::HOP_BY_HOP | Protocol::DEST_OPTS => {
                feed_options(headers.get(at.len..next.len)?, update)?;
            }
            _ => return None,
        }
        at = next;
    }
    (at.len == headers.len()).then_some(())
}

/// A header with options: the data of those that may change is zero (RFC 4302 §3.3.3.1.2.2).
fn feed_options(header: &[u8], update: &mut dyn FnMut(&[u8])) -> Option<()> {
    update(header.get(..2)?);
    for option in ExtOptions::new_checked(header, 0).ok()?.options() {
        let option = option.ok()?;
        let data_at = option.offset + 2;
        if option.kind == Ipv6OptionKind::PAD1 {
            update(header.get(option.offset..option.offset + 1)?);
            continue;
        }
        update(header.get(option.offset..data_at)?);
        if option.kind.changes_en_route() {
            update(ZEROS.get(..option.data.len())?);
        } else {
            update(option.data);
        }
    }
    Some(())
}

/// A Routing header.
struct Routing<'a> {
    header: &'a [u8],
    /// Addresses left to visit, of `addresses`.
    left: usize,
    addresses: usize,
}

impl<'a> Routing<'a> {
    /// The header at `at`. `None`: it has addresses left whose meaning is unknown.
    fn of_header(headers: &'a [u8], at: Kept) -> Option<Routing<'a>> {
        let header = headers.get(at.len..at.after_options(headers)?.len)?;
        let (&kind, &left) = (header.get(2)?, header.get(3)?);
        let (left, addresses) = (usize::from(left), header.len() / 16);
        let is_known = left == 0 || ROUTING_TYPES.contains(&kind) && left <= addresses;
        is_known.then_some(Routing { header, left, addresses })
    }

    fn address(&self, number: usize) -> Option<[u8; 16]> {
        let start = 8 + number * 16;
        self.header.get(start..start + 16)?.try_into().ok()
    }

    /// The destination after all addresses are visited, if any are left.
    fn last_destination(&self) -> Option<Ipv6Addr> {
        let last = self.addresses.checked_sub(1).filter(|_| self.left > 0)?;
        self.address(last).map(Ipv6Addr::from)
    }

    /// The header as it arrives at the last destination: the kernel's `ipv6_rearrange_rthdr`.
    fn feed(&self, destination: Ipv6Addr, update: &mut dyn FnMut(&[u8])) -> Option<()> {
        if self.left == 0 {
            update(self.header);
            return Some(());
        }
        let next = 8 + (self.addresses - self.left) * 16;
        let last = 8 + (self.addresses - 1) * 16;
        update(self.header.get(..3)?);
        update(&[0]);
        update(self.header.get(4..next)?);
        // Each router swaps the destination and the next address.
        update(&destination.octets());
        update(self.header.get(next..last)?);
        update(self.header.get(last + 16..)?);
        Some(())
    }
}
