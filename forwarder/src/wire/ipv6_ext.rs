//! IPv6 extension headers (RFC 8200 §4): finding the upper layer, and the options of Hop-by-Hop and
//! Destination Options headers.
//!
//! Parsing skips extension headers as defined by the kernel's `ipv6_ext_hdr`, and the Authentication
//! Header. It does not check order or repetition, which is left to hosts. All offsets count octets from
//! the start of the IPv6 header.

use super::error::require;
use super::ipv6::{HEADER_LEN, NEXT_HEADER_OFFSET};
use super::octets::{get_u8, get_u16, get_u32, put_u8, put_u16, put_u32, slice};
use super::{Error, Protocol};

/// Maximum number of extension headers that are parsed. RFC 8200 §4.1 expects seven; a packet with more
/// than this is likely meant to cost time.
pub const MAX_EXT_HEADERS: usize = 16;
/// Length of a Fragment header, in octets.
pub const FRAGMENT_HEADER_LEN: usize = 8;

/// The header after the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperLayer {
    /// Its protocol: not an extension header, unless [`later_fragment`](Self::later_fragment).
    pub protocol: Protocol,
    /// Its offset.
    pub offset: usize,
    /// Offset of the Next Header field that identifies it, for a Parameter Problem's pointer.
    pub next_header_offset: usize,
    /// The last Fragment header before it, if there was one.
    pub fragment: Option<FragmentInfo>,
    /// Whether a Hop-by-Hop Options header follows the fixed header.
    pub hop_by_hop: bool,
}

impl UpperLayer {
    /// Whether [`offset`](Self::offset) is in the middle of the upper layer, after its header.
    #[inline]
    #[must_use]
    pub fn later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }
}

/// The contents of a Fragment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentInfo {
    /// Offset of the Fragment header.
    pub header_offset: usize,
    /// Offset of the fragment in the fragmentable part, in octets: 0–65,528.
    pub offset: u16,
    /// The M flag.
    pub more_frags: bool,
    /// Identification: fragments of one packet share it.
    pub ident: u32,
}

/// Parses from `next_header`, the fixed header's, to the first header that is not an extension header.
/// `packet` starts with the fixed header and ends with the payload. Parsing ends after the Fragment
/// header of a later fragment, which no header follows.
///
/// # Errors
/// [`Error::Truncated`] if the packet ends within an extension header, and
/// [`Error::TooManyHeaders`] after [`MAX_EXT_HEADERS`].
pub fn upper_layer(next_header: Protocol, packet: &[u8]) -> Result<UpperLayer, Error> {
    let mut at = UpperLayer {
        protocol: next_header,
        offset: HEADER_LEN,
        next_header_offset: NEXT_HEADER_OFFSET,
        fragment: None,
        hop_by_hop: next_header == Protocol::HOP_BY_HOP,
    };
    for _ in 0..MAX_EXT_HEADERS {
        if !is_ext_header(at.protocol) {
            return Ok(at);
        }
        // Every extension header takes at least 8 octets, and the first two have the same meaning.
        let header = slice(packet, at.offset, packet.len());
        require(header, 8).map_err(|_| truncated(packet, at.offset + 8))?;
        let len = match at.protocol {
            Protocol::FRAGMENT => {
                let fragment = FragmentHeader::new_unchecked(header);
                at.fragment = Some(FragmentInfo {
                    header_offset: at.offset,
                    offset: fragment.frag_offset(),
                    more_frags: fragment.more_frags(),
                    ident: fragment.ident(),
                });
                FRAGMENT_HEADER_LEN
            }
            // RFC 4302 §2.2: in 32-bit words, less two.
            Protocol::AH => (usize::from(get_u8(header, 1)) + 2) * 4,
            // RFC 8200 §4.2: in 8-octet units, less the first.
            _ => (usize::from(get_u8(header, 1)) + 1) * 8,
        };
        require(header, len).map_err(|_| truncated(packet, at.offset + len))?;
        at.protocol = Protocol(get_u8(header, 0));
        at.next_header_offset = at.offset;
        at.offset += len;
        if at.later_fragment() {
            return Ok(at);
        }
    }
    if is_ext_header(at.protocol) {
        return Err(Error::TooManyHeaders { pointer: at.offset });
    }
    Ok(at)
}

/// Whether parsing continues after this header. No Next Header, ESP and all others end it.
#[inline]
#[must_use]
pub const fn is_ext_header(protocol: Protocol) -> bool {
    matches!(
        protocol,
        Protocol::HOP_BY_HOP
            | Protocol::ROUTING
            | Protocol::FRAGMENT
            | Protocol::AH
            | Protocol::DEST_OPTS
    )
}

fn truncated(packet: &[u8], needed: usize) -> Error {
    Error::Truncated { needed, available: packet.len() }
}

view! {
    /// A Fragment header (RFC 8200 §4.5) and its payload.
    FragmentHeader
}

mod field {
    use crate::wire::octets::Field;

    pub const NEXT_HEADER: usize = 0;
    pub const RESERVED: usize = 1;
    pub const OFFSET_FLAGS: Field = 2..4;
    pub const IDENT: Field = 4..8;
}

impl<T: AsRef<[u8]>> FragmentHeader<T> {
    /// Whether the buffer has the 8 octets of the header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), FRAGMENT_HEADER_LEN)
    }

    /// Next Header field: the first header of the fragmentable part.
    #[inline]
    pub fn next_header(&self) -> Protocol {
        Protocol(get_u8(self.as_octets(), field::NEXT_HEADER))
    }

    /// Offset of the fragment in the fragmentable part, in octets: 0–65,528.
    #[inline]
    pub fn frag_offset(&self) -> u16 {
        get_u16(self.as_octets(), field::OFFSET_FLAGS) & 0xfff8
    }

    /// The M flag.
    #[inline]
    pub fn more_frags(&self) -> bool {
        get_u16(self.as_octets(), field::OFFSET_FLAGS) & 1 != 0
    }

    /// Identification: fragments of one packet share it.
    #[inline]
    pub fn ident(&self) -> u32 {
        get_u32(self.as_octets(), field::IDENT)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> FragmentHeader<T> {
    /// Writes the whole header; `offset`, in octets, is rounded down to a multiple of 8.
    pub fn set(&mut self, next_header: Protocol, offset: u16, more_frags: bool, ident: u32) {
        let octets = self.buffer.as_mut();
        put_u8(octets, field::NEXT_HEADER, next_header.0);
        put_u8(octets, field::RESERVED, 0);
        put_u16(octets, field::OFFSET_FLAGS, offset & 0xfff8 | u16::from(more_frags));
        put_u32(octets, field::IDENT, ident);
    }
}

/// A Hop-by-Hop Options or Destination Options header, which have the same format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtOptions<'a> {
    octets: &'a [u8],
    offset: usize,
}

/// A Hop-by-Hop Options header.
pub type HopByHop<'a> = ExtOptions<'a>;

impl<'a> ExtOptions<'a> {
    /// The header at the start of `octets`, which is at offset `offset` in the packet.
    ///
    /// # Errors
    /// [`Error::Truncated`] if `octets` ends within it; its numbers count from the start of the packet.
    pub fn new_checked(octets: &'a [u8], offset: usize) -> Result<Self, Error> {
        let len = (usize::from(get_u8(octets, 1)) + 1) * 8;
        match octets.get(..len) {
            Some(octets) => Ok(Self { octets, offset }),
            None => {
                Err(Error::Truncated { needed: offset + len, available: offset + octets.len() })
            }
        }
    }

    /// Next Header field.
    #[inline]
    #[must_use]
    pub fn next_header(&self) -> Protocol {
        Protocol(get_u8(self.octets, 0))
    }

    /// Length of this header, in octets: 8–2048.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        self.octets.len()
    }

    /// Iterates over the options, padding included.
    #[inline]
    #[must_use]
    pub fn options(&self) -> Ipv6Options<'a> {
        Ipv6Options { rest: slice(self.octets, 2, self.octets.len()), offset: self.offset + 2 }
    }
}

/// An option's type, RFC 8200 §4.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv6OptionKind(pub u8);

impl Ipv6OptionKind {
    /// One octet of padding: no length, no data.
    pub const PAD1: Self = Self(0x00);
    /// Two octets of padding or more.
    pub const PADN: Self = Self(0x01);
    /// Tunnel encapsulation limit (RFC 2473).
    pub const TUNNEL_ENCAP_LIMIT: Self = Self(0x04);
    /// Router alert (RFC 2711).
    pub const ROUTER_ALERT: Self = Self(0x05);
    /// Jumbo payload (RFC 2675).
    pub const JUMBO: Self = Self(0xc2);

    /// The action for unknown options: the two highest bits.
    #[inline]
    #[must_use]
    pub const fn action_if_unknown(self) -> UnknownAction {
        match self.0 >> 6 {
            0b00 => UnknownAction::Skip,
            0b01 => UnknownAction::Discard,
            0b10 => UnknownAction::DiscardAndReport,
            _ => UnknownAction::DiscardAndReportUnicast,
        }
    }

    /// Whether its data may change in transit: the third-highest bit.
    #[inline]
    #[must_use]
    pub const fn changes_en_route(self) -> bool {
        self.0 & 0x20 != 0
    }
}

/// The action that RFC 8200 §4.2 requires for an unknown option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnknownAction {
    /// 00: skip the option and continue.
    Skip,
    /// 01: discard the packet silently.
    Discard,
    /// 10: discard it and send Parameter Problem code 2, for multicast destinations as well.
    DiscardAndReport,
    /// 11: discard it and send Parameter Problem code 2 unless the destination is multicast.
    DiscardAndReportUnicast,
}

/// One option in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Option<'a> {
    /// Its type.
    pub kind: Ipv6OptionKind,
    /// Offset of its first octet, for a Parameter Problem's pointer.
    pub offset: usize,
    /// The octets after type and length.
    pub data: &'a [u8],
}

/// Iterates over the options of one header. Nothing is returned after an error.
#[derive(Clone, Debug)]
pub struct Ipv6Options<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Iterator for Ipv6Options<'a> {
    /// The error is [`Error::BadOption`] with the offset of the option's first octet.
    type Item = Result<Ipv6Option<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let kind = Ipv6OptionKind(*self.rest.first()?);
        let len = match (kind, self.rest.get(1)) {
            (Ipv6OptionKind::PAD1, _) => 1,
            (_, Some(&data_len)) => 2 + usize::from(data_len),
            (_, None) => usize::MAX,
        };
        let offset = self.offset;
        let Some((octets, rest)) = self.rest.split_at_checked(len) else {
            self.rest = &[];
            return Some(Err(Error::BadOption { pointer: offset }));
        };
        self.rest = rest;
        self.offset += len;
        Some(Ok(Ipv6Option { kind, offset, data: octets.get(2..).unwrap_or(&[]) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Ipv6Packet;

    /// A packet with `next_header` in its fixed header, followed by `payload`.
    fn packet(next_header: Protocol, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; HEADER_LEN];
        octets.extend_from_slice(payload);
        let mut ipv6 = Ipv6Packet::new_unchecked(&mut octets);
        ipv6.set_version_class_flow(0, 0);
        ipv6.set_payload_len(payload.len() as u16);
        ipv6.set_next_header(next_header);
        octets
    }

    fn walk(octets: &[u8]) -> Result<UpperLayer, Error> {
        Ipv6Packet::new_checked(octets).unwrap().upper_layer()
    }

    #[test]
    fn without_extension_headers_the_upper_layer_is_at_40() {
        let upper = walk(&packet(Protocol::TCP, &[0; 20])).unwrap();
        assert_eq!((upper.protocol, upper.offset), (Protocol::TCP, 40));
        assert_eq!(upper.next_header_offset, 6);
        assert!(!upper.hop_by_hop && upper.fragment.is_none());
    }

    #[test]
    fn every_kind_of_extension_header_is_skipped_by_its_length() {
        #[rustfmt::skip]
        let octets = packet(Protocol::HOP_BY_HOP, &[
            43, 0, 5, 2, 0, 0, 1, 0,                                 // hop-by-hop, 8
            51, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,         // routing, 16
            44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,                     // authentication, 12
            60, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef,                     // fragment, first
            17, 0, 1, 4, 0, 0, 0, 0,                                 // destination options, 8
            0, 1, 0, 2, 0, 8, 0, 0,                                  // UDP
        ]);
        let upper = walk(&octets).unwrap();
        assert_eq!((upper.protocol, upper.offset), (Protocol::UDP, 40 + 52));
        assert_eq!(upper.next_header_offset, 40 + 44);
        assert!(upper.hop_by_hop && !upper.later_fragment());
        let fragment = FragmentInfo {
            header_offset: 40 + 36,
            offset: 0,
            more_frags: true,
            ident: 0xdead_beef,
        };
        assert_eq!(upper.fragment, Some(fragment));
    }

    #[test]
    fn the_walk_ends_behind_a_later_fragments_header() {
        // Next header 60 here is data, not a header.
        let octets = packet(Protocol::FRAGMENT, &[60, 0, 0x05, 0xa8, 0, 0, 0, 1, 0xff, 0xff]);
        let upper = walk(&octets).unwrap();
        assert_eq!((upper.protocol, upper.offset), (Protocol::DEST_OPTS, 48));
        assert!(upper.later_fragment());
        assert_eq!(upper.fragment.unwrap().offset, 1448);
    }

    #[test]
    fn esp_no_next_header_and_unknown_headers_end_parsing() {
        for protocol in [Protocol::ESP, Protocol::NO_NEXT_HEADER, Protocol(253)] {
            assert_eq!(walk(&packet(protocol, &[])).unwrap().protocol, protocol);
        }
    }

    #[test]
    fn a_header_past_the_end_is_truncated() {
        let error = |needed, available| Err(Error::Truncated { needed, available });
        assert_eq!(walk(&packet(Protocol::HOP_BY_HOP, &[])), error(48, 40));
        assert_eq!(walk(&packet(Protocol::DEST_OPTS, &[17, 1, 0, 0, 0, 0, 0, 0])), error(56, 48));
        assert_eq!(walk(&packet(Protocol::FRAGMENT, &[17, 0, 0, 0])), error(48, 44));
        let mut octets = packet(Protocol::HOP_BY_HOP, &[17, 0, 1, 4, 0, 0, 0, 0]);
        octets[5] = 7;
        assert_eq!(walk(&octets), error(48, 47), "the payload length ends the packet");
    }

    #[test]
    fn the_walk_is_bounded() {
        let mut payload = [60, 0, 1, 4, 0, 0, 0, 0].repeat(MAX_EXT_HEADERS);
        let last = payload.len() - 8;
        payload[last] = 17;
        let upper = walk(&packet(Protocol::DEST_OPTS, &payload)).unwrap();
        assert_eq!(upper.protocol, Protocol::UDP);
        payload[last] = 60;
        payload.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        let pointer = HEADER_LEN + MAX_EXT_HEADERS * 8;
        assert_eq!(
            walk(&packet(Protocol::DEST_OPTS, &payload)),
            Err(Error::TooManyHeaders { pointer })
        );
    }

    #[test]
    fn options_are_returned_in_order_with_their_offsets() {
        let octets = packet(Protocol::HOP_BY_HOP, &[17, 0, 0, 5, 2, 0, 0, 0]);
        let ipv6 = Ipv6Packet::new_unchecked(&octets);
        let header = ipv6.hop_by_hop().unwrap().unwrap();
        assert_eq!((header.next_header(), header.header_len()), (Protocol::UDP, 8));
        let options: Vec<_> = header.options().map(Result::unwrap).collect();
        let option = |kind, offset, data| Ipv6Option { kind, offset, data };
        assert_eq!(
            options,
            [
                option(Ipv6OptionKind::PAD1, 42, &[][..]),
                option(Ipv6OptionKind::ROUTER_ALERT, 43, &[0, 0][..]),
                option(Ipv6OptionKind::PAD1, 47, &[][..]),
            ]
        );
    }

    #[test]
    fn an_option_past_the_end_points_at_itself() {
        for (area, pointer) in [([17, 0, 1, 2, 0, 0, 5, 1], 46), ([17, 0, 1, 3, 0, 0, 0, 5], 47)] {
            let header = ExtOptions::new_checked(&area, 40).unwrap();
            let last = header.options().last().unwrap();
            assert_eq!(last, Err(Error::BadOption { pointer }));
        }
    }

    #[test]
    fn the_two_highest_bits_give_the_action_for_an_unknown_option() {
        for (kind, action) in [
            (0x3e, UnknownAction::Skip),
            (0x7e, UnknownAction::Discard),
            (0xbe, UnknownAction::DiscardAndReport),
            (0xfe, UnknownAction::DiscardAndReportUnicast),
        ] {
            assert_eq!(Ipv6OptionKind(kind).action_if_unknown(), action);
            assert!(Ipv6OptionKind(kind).changes_en_route());
        }
        assert!(!Ipv6OptionKind::JUMBO.changes_en_route());
    }

    #[test]
    fn a_fragment_header_is_written_as_rfc_8200_draws_it() {
        let mut octets = [0xff; 8];
        FragmentHeader::new_unchecked(&mut octets[..]).set(Protocol::UDP, 1448, true, 0x0102_0304);
        assert_eq!(octets, [17, 0, 0x05, 0xa9, 1, 2, 3, 4]);
        let header = FragmentHeader::new_checked(&octets[..]).unwrap();
        assert_eq!(header.next_header(), Protocol::UDP);
        assert_eq!((header.frag_offset(), header.more_frags()), (1448, true));
        assert_eq!(header.ident(), 0x0102_0304);
    }
}
