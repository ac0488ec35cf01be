//! Reassembly of fragmented ESP and AH packets (RFC 791 §3.2, RFC 8200 §4.5): what a fragment is part of, whether the
//! parts make a whole, and the whole.
//!
//! Not included: fragments behind IPv4 options or behind IPv6 extension headers other than the Fragment header, and UDP.
//! Where fragments are kept and for how long is decided elsewhere.
//!
//! As the kernel since 4.19 and RFC 5722: parts that overlap make no packet; one that is within another one is ignored
//! (`inet_frag_queue_insert`, which ignores also one within several that arrived in order).

use std::net::IpAddr;

use crate::wire::ipv6_ext::{FRAGMENT_HEADER_LEN, FragmentHeader};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, ipv4, ipv6};

/// Fragments of a packet, at most: with the smallest MTU of IPv4 that is in use, 576 octets, a packet of one frame has
/// eight.
pub const FRAGMENTS_MAX: usize = 8;

/// Octets in front of an SPI in an AH header. In ESP it is at the start.
const AH_SPI_AT: usize = 4;
/// The longest packet, octets: lengths have 16 bits.
const PACKET_LEN_MAX: usize = u16::MAX as usize;
/// First octet of an IPv4 header without options.
const VERSION_4_NO_OPTIONS: u8 = 0x45;

/// ECN field: Congestion Experienced.
const ECN_CE: u8 = 3;
/// Set of ECN fields, a bit each, without the one of a transport that does not support ECN.
const ECN_CAPABLE: u8 = 0b1110;
/// The set that has nothing but that one.
const ECN_NOT_CAPABLE: u8 = 0b0001;

/// What the fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Identification; that of IPv4 has 16 bits.
    pub ident: u32,
    /// ESP or AH.
    pub protocol: Protocol,
}

/// A fragment of an ESP or AH packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What it is a fragment of.
    pub key: FragmentKey,
    /// Where its payload starts in the payload of the whole packet, octets.
    pub offset: usize,
    /// Length of its payload, octets.
    pub len: usize,
    /// Whether there are more behind it.
    pub more: bool,
    /// Its ECN field.
    pub ecn: u8,
    /// Whether it must not be fragmented (IPv4).
    dont_frag: bool,
    /// Where its payload starts in the fragment itself, octets.
    header_len: usize,
    /// Length of the whole packet's header, octets.
    whole_header_len: usize,
}

impl Fragment {
    /// Reads a packet, which starts with its IP header. `None`: it is no fragment, not of ESP or AH, has other headers in
    /// between, or is cut off. Checksums are not verified, and what is behind the stated length is ignored.
    #[must_use]
    pub fn of_packet(packet: &[u8]) -> Option<Fragment> {
        let fragment = match packet.first()? >> 4 {
            4 => Fragment::of_ipv4(packet),
            6 => Fragment::of_ipv6(packet),
            _ => None,
        };
        fragment.filter(|it| matches!(it.key.protocol, Protocol::ESP | Protocol::AH))
    }

    fn of_ipv4(packet: &[u8]) -> Option<Fragment> {
        let ip = Ipv4Packet::new_checked(packet).ok()?;
        let total_len = usize::from(ip.total_len());
        if packet.first() != Some(&VERSION_4_NO_OPTIONS)
            || !ip.is_fragment()
            || total_len > packet.len()
        {
            return None;
        }
        let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
        let key = FragmentKey { src, dst, ident: ip.ident().into(), protocol: ip.protocol() };
        Some(Fragment {
            key,
            offset: ip.frag_offset().into(),
            len: total_len.checked_sub(ipv4::HEADER_LEN_MIN)?,
            more: ip.more_frags(),
            ecn: ip.ecn(),
            dont_frag: ip.dont_frag(),
            header_len: ipv4::HEADER_LEN_MIN,
            whole_header_len: ipv4::HEADER_LEN_MIN,
        })
    }

    /// The kernel takes one with offset 0 and nothing behind it (RFC 6946) as a whole packet, and so does this.
    fn of_ipv6(packet: &[u8]) -> Option<Fragment> {
        const HEADERS_LEN: usize = ipv6::HEADER_LEN + FRAGMENT_HEADER_LEN;
        let ip = Ipv6Packet::new_checked(packet).ok()?;
        if ip.next_header() != Protocol::FRAGMENT {
            return None;
        }
        let stated = packet.get(..ip.total_len())?;
        let header = FragmentHeader::new_checked(stated.get(ipv6::HEADER_LEN..)?).ok()?;
        if header.frag_offset() == 0 && !header.more_frags() {
            return None;
        }
        let payload = stated.get(HEADERS_LEN..)?;
        let lacks_upper_layer = header.next_header() == Protocol::AH
            && payload.get(1).is_none_or(|len| payload.len() <= (usize::from(*len) + 2) * 4);
        if header.frag_offset() == 0 && lacks_upper_layer {
            // The kernel answers (`ipv6frag_thdr_truncated`): it takes AH for one of the headers that the first
            // fragment has whole.
            return None;
        }
        let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
        let key = FragmentKey { src, dst, ident: header.ident(), protocol: header.next_header() };
        Some(Fragment {
            key,
            offset: header.frag_offset().into(),
            len: stated.len().checked_sub(HEADERS_LEN)?,
            more: header.more_frags(),
            ecn: ip.ecn(),
            dont_frag: false,
            header_len: HEADERS_LEN,
            whole_header_len: ipv6::HEADER_LEN,
        })
    }

    /// Where its payload ends in that of the whole packet.
    #[must_use]
    pub fn end(&self) -> usize {
        self.offset + self.len
    }

    /// Its payload in the octets that it was read from.
    #[must_use]
    pub fn payload<'a>(&self, packet: &'a [u8]) -> Option<&'a [u8]> {
        packet.get(self.header_len..self.header_len + self.len)
    }

    /// The SPI, which the first fragment has. `None`: it is another one, or too short.
    #[must_use]
    pub fn spi(&self, packet: &[u8]) -> Option<u32> {
        let at = if self.key.protocol == Protocol::AH { AH_SPI_AT } else { 0 };
        let payload = self.payload(packet).filter(|_| self.offset == 0)?;
        Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?))
    }
}

/// What a fragment is to those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It is part of the packet; others are missing.
    Part,
    /// It is the part that was missing.
    Complete,
    /// Its octets are within another one.
    Duplicate,
    /// Some of its octets are there already.
    Overlap,
    /// The fragments are not of one valid packet, or of one that is too long or in too many fragments. What was added
    /// before has not changed.
    Odd,
}

/// Where the fragments are of which a packet consists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Start and end of each, octets.
    of: [(usize, usize); FRAGMENTS_MAX],
    count: usize,
    /// The end of the packet, from its last fragment.
    end: Option<usize>,
    /// The ECN fields, a bit each.
    ecn: u8,
    /// Length of the longest, and of the longest that must not be fragmented, octets.
    longest: usize,
    longest_dont_frag: usize,
}

impl Parts {
    /// Number of fragments.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds a fragment; they have the same key. `len_max`: length of the longest packet that is wanted, with its header.
    pub fn add(&mut self, fragment: &Fragment, len_max: usize) -> Added {
        let (start, end) = (fragment.offset, fragment.end());
        let so_far = self.of.get(..self.count).unwrap_or(&[]);
        let last = so_far.iter().map(|part| part.1).max().unwrap_or(0);
        let is_right = match (fragment.more, self.end) {
            // RFC 8200 §4.5; the kernel cuts one of IPv4.
            (true, _) if !fragment.len.is_multiple_of(8) => false,
            (true, Some(of_packet)) => end <= of_packet,
            (true, None) => true,
            (false, Some(of_packet)) => end == of_packet,
            (false, None) => end >= last,
        };
        let whole_len = fragment.whole_header_len + end.max(last);
        if !is_right || fragment.len == 0 || whole_len > len_max.min(PACKET_LEN_MAX) {
            return Added::Odd;
        }
        let common = |part: &(usize, usize)| end.min(part.1).saturating_sub(start.max(part.0));
        match so_far.iter().map(common).sum::<usize>() {
            0 => {}
            _ if so_far.iter().any(|part| part.0 <= start && end <= part.1) => {
                return Added::Duplicate;
            }
            _ => return Added::Overlap,
        }
        let ecn = self.ecn | 1 << fragment.ecn;
        let total = so_far.iter().map(|part| part.1 - part.0).sum::<usize>() + fragment.len;
        let of_packet = if fragment.more { self.end } else { Some(end) };
        // They are all within it, and none overlaps another.
        let is_complete = of_packet == Some(total);
        if is_complete && ecn != ECN_NOT_CAPABLE && ecn & ECN_NOT_CAPABLE != 0 {
            // RFC 3168 §5.3.
            return Added::Odd;
        }
        let Some(place) = self.of.get_mut(self.count) else { return Added::Odd };
        *place = (start, end);
        (self.count, self.end, self.ecn) = (self.count + 1, of_packet, ecn);
        self.longest = self.longest.max(fragment.len);
        if fragment.dont_frag {
            self.longest_dont_frag = self.longest_dont_frag.max(fragment.len);
        }
        if is_complete { Added::Complete } else { Added::Part }
    }

    /// Length of the packet with its header. `fragment`: one of its fragments. `None`: its end is not known.
    #[must_use]
    pub fn whole_len(&self, fragment: &Fragment) -> Option<usize> {
        Some(fragment.whole_header_len + self.end?)
    }

    /// The ECN field of the packet, if it is another one than that of its first fragment (RFC 3168 §5.3).
    fn whole_ecn(&self) -> Option<u8> {
        (self.ecn & 1 << ECN_CE != 0 && self.ecn & ECN_CAPABLE != 1 << ECN_CE).then_some(ECN_CE)
    }

    /// Writes the packet of these fragments, in any order, to the start of `to`. Returns its length. `None`: they are not
    /// all, or there is no room.
    pub fn assemble<'a>(
        &self,
        fragments: impl Iterator<Item = &'a [u8]>,
        to: &mut [u8],
    ) -> Option<usize> {
        let (mut len, mut copied) = (None, 0);
        for packet in fragments {
            let fragment = Fragment::of_packet(packet)?;
            let (header_len, whole_len) = (fragment.whole_header_len, self.whole_len(&fragment)?);
            let payload = fragment.payload(packet)?;
            let start = header_len + fragment.offset;
            to.get_mut(start..start + payload.len())?.copy_from_slice(payload);
            copied += payload.len();
            if fragment.offset == 0 {
                let header = to.get_mut(..header_len)?;
                header.copy_from_slice(packet.get(..header_len)?);
                self.change_header(header, &fragment, whole_len);
                len = Some(whole_len);
            }
        }
        len.filter(|_| self.end == Some(copied))
    }

    /// Makes the header of the first fragment that of the packet: `ip_frag_reasm`, `ip6_frag_reasm`.
    fn change_header(&self, header: &mut [u8], first: &Fragment, whole_len: usize) {
        let ecn = self.whole_ecn().unwrap_or(first.ecn);
        // Lengths fit: `Parts::add` has checked them.
        match header.first().map(|octet| octet >> 4) {
            Some(4) => {
                let mut ip = Ipv4Packet::new_unchecked(header);
                ip.set_total_len(whole_len as u16);
                ip.set_frag(self.longest_dont_frag == self.longest, false, 0);
                let tos = ip.tos() & !ECN_CE | ecn;
                ip.set_tos(tos);
                ip.fill_checksum();
            }
            _ => {
                let mut ip = Ipv6Packet::new_unchecked(header);
                ip.set_payload_len((whole_len - ipv6::HEADER_LEN) as u16);
                ip.set_next_header(first.key.protocol);
                let (class, label) = (ip.traffic_class() & !ECN_CE | ecn, ip.flow_label());
                ip.set_version_class_flow(class, label);
            }
        }
    }
}
