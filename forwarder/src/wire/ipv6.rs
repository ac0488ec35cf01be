//! The IPv6 fixed header (RFC 8200 §3) and address types (RFC 4291).
//!
//! Extension headers are in [`ipv6_ext`](super::ipv6_ext).

use std::net::Ipv6Addr;

use super::error::require;
use super::ipv6_ext::{ExtOptions, HopByHop, UpperLayer, upper_layer};
use super::octets::{array, get_u8, get_u16, get_u32, put, put_u8, put_u16, put_u32};
use super::octets::{slice, slice_mut};
use super::{Error, Protocol};

/// Length of the fixed header, in octets.
pub const HEADER_LEN: usize = 40;
/// Minimum MTU of every link (RFC 8200 §5), in octets.
pub const MTU_MIN: u32 = 1280;

mod field {
    use crate::wire::octets::Field;

    pub const VERSION_CLASS_FLOW: Field = 0..4;
    pub const PAYLOAD_LEN: Field = 4..6;
    pub const NEXT_HEADER: usize = 6;
    pub const HOP_LIMIT: usize = 7;
    pub const SRC_ADDR: Field = 8..24;
    pub const DST_ADDR: Field = 24..40;
}

/// Offset of the Next Header field, for a Parameter Problem's pointer.
pub const NEXT_HEADER_OFFSET: usize = field::NEXT_HEADER;
/// Offset of the Payload Length field, for a Parameter Problem's pointer.
pub const PAYLOAD_LEN_OFFSET: usize = field::PAYLOAD_LEN.start;

view! {
    /// An IPv6 packet. `check_len` requires only the 40 octets of the fixed header; it does not check the
    /// version or the payload length.
    Ipv6Packet
}

impl<T: AsRef<[u8]>> Ipv6Packet<T> {
    /// Whether the buffer has the fixed header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)
    }

    /// IP version; 6 in a valid header.
    #[inline]
    pub fn version(&self) -> u8 {
        get_u8(self.as_octets(), 0) >> 4
    }

    /// DSCP and ECN in one octet.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        (get_u16(self.as_octets(), 0..2) >> 4) as u8
    }

    /// Differentiated services code point, 0–63.
    #[inline]
    pub fn dscp(&self) -> u8 {
        self.traffic_class() >> 2
    }

    /// Explicit congestion notification, 0–3.
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.traffic_class() & 0x03
    }

    /// Flow label, 20 bits.
    #[inline]
    pub fn flow_label(&self) -> u32 {
        get_u32(self.as_octets(), field::VERSION_CLASS_FLOW) & 0x000f_ffff
    }

    /// Payload length field: everything after the fixed header, in octets.
    #[inline]
    pub fn payload_len(&self) -> u16 {
        get_u16(self.as_octets(), field::PAYLOAD_LEN)
    }

    /// Length of the fixed header and the stated payload, in octets.
    #[inline]
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(self.payload_len())
    }

    /// Next Header field: an extension header or the upper layer.
    #[inline]
    pub fn next_header(&self) -> Protocol {
        Protocol(get_u8(self.as_octets(), field::NEXT_HEADER))
    }

    /// Hop limit, in hops.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        get_u8(self.as_octets(), field::HOP_LIMIT)
    }

    /// Source address.
    #[inline]
    pub fn src_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.as_octets(), field::SRC_ADDR))
    }

    /// Destination address.
    #[inline]
    pub fn dst_addr(&self) -> Ipv6Addr {
        Ipv6Addr::from(array::<16>(self.as_octets(), field::DST_ADDR))
    }

    /// The payload, up to the payload length or the end of the buffer.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, self.total_len())
    }

    /// The Hop-by-Hop Options header, if it is first, the only position where it is valid (RFC 8200
    /// §4.1).
    ///
    /// # Errors
    /// [`Error::Truncated`] if the packet ends within it.
    #[inline]
    pub fn hop_by_hop(&self) -> Result<Option<HopByHop<'_>>, Error> {
        if self.next_header() != Protocol::HOP_BY_HOP {
            return Ok(None);
        }
        ExtOptions::new_checked(self.payload(), HEADER_LEN).map(Some)
    }

    /// Parses the extension headers up to the upper layer; see [`upper_layer`].
    #[inline]
    pub fn upper_layer(&self) -> Result<UpperLayer, Error> {
        upper_layer(self.next_header(), slice(self.as_octets(), 0, self.total_len()))
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv6Packet<T> {
    /// Writes version 6, traffic class and flow label; bits of `flow_label` above 20 are ignored.
    #[inline]
    pub fn set_version_class_flow(&mut self, traffic_class: u8, flow_label: u32) {
        let word = 6 << 28 | u32::from(traffic_class) << 20 | (flow_label & 0x000f_ffff);
        put_u32(self.buffer.as_mut(), field::VERSION_CLASS_FLOW, word);
    }

    /// Sets the payload length, in octets.
    #[inline]
    pub fn set_payload_len(&mut self, octets: u16) {
        put_u16(self.buffer.as_mut(), field::PAYLOAD_LEN, octets);
    }

    /// Sets the Next Header field.
    #[inline]
    pub fn set_next_header(&mut self, protocol: Protocol) {
        put_u8(self.buffer.as_mut(), field::NEXT_HEADER, protocol.0);
    }

    /// Sets the hop limit.
    #[inline]
    pub fn set_hop_limit(&mut self, hop_limit: u8) {
        put_u8(self.buffer.as_mut(), field::HOP_LIMIT, hop_limit);
    }

    /// Decrements the hop limit and returns the new one; 0 is not changed.
    #[inline]
    pub fn decrease_hop_limit(&mut self) -> u8 {
        let hop_limit = self.hop_limit().saturating_sub(1);
        self.set_hop_limit(hop_limit);
        hop_limit
    }

    /// Sets the source address.
    #[inline]
    pub fn set_src_addr(&mut self, addr: Ipv6Addr) {
        put(self.buffer.as_mut(), field::SRC_ADDR, &addr.octets());
    }

    /// Sets the destination address.
    #[inline]
    pub fn set_dst_addr(&mut self, addr: Ipv6Addr) {
        put(self.buffer.as_mut(), field::DST_ADDR, &addr.octets());
    }

    /// The payload, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let end = self.total_len();
        slice_mut(self.buffer.as_mut(), HEADER_LEN, end)
    }
}

// Address types, with the names of the kernel's include/net/ipv6.h.

/// ff00::/8.
#[inline]
#[must_use]
pub const fn ipv6_addr_is_multicast(addr: Ipv6Addr) -> bool {
    addr.octets()[0] == 0xff
}

/// fe80::/10: unicast of one link.
#[inline]
#[must_use]
pub const fn ipv6_addr_is_linklocal(addr: Ipv6Addr) -> bool {
    addr.to_bits() >> 118 == 0xfe80 >> 6
}

/// ::1.
#[inline]
#[must_use]
pub const fn ipv6_addr_loopback(addr: Ipv6Addr) -> bool {
    addr.to_bits() == 1
}

/// ::, the unspecified address.
#[inline]
#[must_use]
pub const fn ipv6_addr_any(addr: Ipv6Addr) -> bool {
    addr.to_bits() == 0
}

/// ::ffff:0:0/96: an IPv4 address in an IPv6 socket address, never on the wire.
#[inline]
#[must_use]
pub const fn ipv6_addr_v4mapped(addr: Ipv6Addr) -> bool {
    addr.to_bits() >> 32 == 0xffff
}

/// ff02::1:ff00:0/104: solicited-node multicast (RFC 4291 §2.7.1).
#[inline]
#[must_use]
pub const fn ipv6_addr_is_solict_mult(addr: Ipv6Addr) -> bool {
    addr.to_bits() >> 24 == 0xff02_0000_0000_0000_0000_0001_ff00_0000 >> 24
}

/// The solicited-node multicast address of `addr`: the kernel's `addrconf_addr_solict_mult`.
#[inline]
#[must_use]
pub const fn addrconf_addr_solict_mult(addr: Ipv6Addr) -> Ipv6Addr {
    let low = addr.to_bits() & 0x00ff_ffff;
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// The scope of an address (RFC 4007, multicast values of RFC 4291 §2.7). Ordered from narrow to wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(pub u8);

impl Scope {
    /// One interface: ::1 and ff01::/16.
    pub const INTERFACE_LOCAL: Self = Self(1);
    /// One link: fe80::/10 and ff02::/16.
    pub const LINK_LOCAL: Self = Self(2);
    /// One site: ff05::/16 and the deprecated fec0::/10.
    pub const SITE_LOCAL: Self = Self(5);
    /// Global.
    pub const GLOBAL: Self = Self(14);
}

/// The scope of an address; a packet must not leave the zone of its source or destination.
#[inline]
#[must_use]
pub const fn ipv6_addr_scope(addr: Ipv6Addr) -> Scope {
    let [first, second, ..] = addr.octets();
    match (first, second) {
        (0xff, flags_scope) => Scope(flags_scope & 0x0f),
        (0xfe, 0x80..=0xbf) => Scope::LINK_LOCAL,
        (0xfe, 0xc0..=0xff) => Scope::SITE_LOCAL,
        _ if ipv6_addr_loopback(addr) => Scope::INTERFACE_LOCAL,
        _ => Scope::GLOBAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const PACKET: [u8; 44] = [
        0x6b, 0x91, 0x23, 0x45, 0x00, 0x04, 17, 64,
        0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        0x20, 0x01, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
        0xca, 0xfe, 0xba, 0xbe,
    ];

    fn addr(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn fields_are_read_at_the_headers_offsets() {
        let packet = Ipv6Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!(packet.version(), 6);
        assert_eq!((packet.traffic_class(), packet.dscp(), packet.ecn()), (0xb9, 46, 1));
        assert_eq!(packet.flow_label(), 0x12345);
        assert_eq!((packet.payload_len(), packet.total_len()), (4, 44));
        assert_eq!(packet.next_header(), Protocol::UDP);
        assert_eq!(packet.hop_limit(), 64);
        assert_eq!(packet.src_addr(), addr("2001:db8:1::2"));
        assert_eq!(packet.dst_addr(), addr("2001:db8:2::2"));
        assert_eq!(packet.payload(), [0xca, 0xfe, 0xba, 0xbe]);
        assert_eq!(packet.hop_by_hop(), Ok(None));
    }

    #[test]
    fn setters_write_what_the_getters_read() {
        let mut octets = [0u8; 44];
        let mut packet = Ipv6Packet::new_unchecked(&mut octets[..]);
        packet.set_version_class_flow(0xb9, 0xfff1_2345);
        packet.set_payload_len(4);
        packet.set_next_header(Protocol::UDP);
        packet.set_hop_limit(65);
        packet.set_src_addr(addr("2001:db8:1::2"));
        packet.set_dst_addr(addr("2001:db8:2::2"));
        packet.payload_mut().copy_from_slice(&[0xca, 0xfe, 0xba, 0xbe]);
        assert_eq!(packet.decrease_hop_limit(), 64);
        assert_eq!(octets, PACKET);
    }

    #[test]
    fn a_hop_limit_of_zero_does_not_wrap() {
        let mut octets = PACKET;
        octets[7] = 0;
        assert_eq!(Ipv6Packet::new_unchecked(&mut octets[..]).decrease_hop_limit(), 0);
        assert_eq!(octets[7], 0);
    }

    #[test]
    fn payload_ends_with_the_packet_or_the_buffer() {
        assert!(Ipv6Packet::new_checked(&PACKET[..39]).is_err());
        assert_eq!(Ipv6Packet::new_unchecked(&PACKET[..42]).payload().len(), 2);
        let padded = [&PACKET[..], &[0; 6]].concat();
        assert_eq!(Ipv6Packet::new_unchecked(&padded).payload().len(), 4);
    }

    #[test]
    fn kinds_of_address() {
        assert!(ipv6_addr_is_multicast(addr("ff02::1")));
        assert!(!ipv6_addr_is_multicast(addr("fe80::1")));
        for inside in ["fe80::1", "febf:ffff::1"] {
            assert!(ipv6_addr_is_linklocal(addr(inside)), "{inside}");
        }
        for outside in ["fe7f::1", "fec0::1", "::1"] {
            assert!(!ipv6_addr_is_linklocal(addr(outside)), "{outside}");
        }
        assert!(ipv6_addr_loopback(addr("::1")) && !ipv6_addr_loopback(addr("::")));
        assert!(ipv6_addr_any(addr("::")) && !ipv6_addr_any(addr("::1")));
        assert!(ipv6_addr_v4mapped(addr("::ffff:192.0.2.1")));
        assert!(!ipv6_addr_v4mapped(addr("::192.0.2.1")));
        let solicited = addrconf_addr_solict_mult(addr("2001:db8::12:3456"));
        assert_eq!(solicited, addr("ff02::1:ff12:3456"));
        assert!(ipv6_addr_is_solict_mult(solicited));
        assert!(!ipv6_addr_is_solict_mult(addr("ff02::1")));
    }

    #[test]
    fn scopes() {
        for (text, scope) in [
            ("::1", Scope::INTERFACE_LOCAL),
            ("ff01::1", Scope::INTERFACE_LOCAL),
            ("fe80::1", Scope::LINK_LOCAL),
            ("ff02::5", Scope::LINK_LOCAL),
            ("ff32::5", Scope::LINK_LOCAL),
            ("fec0::1", Scope::SITE_LOCAL),
            ("ff05::2", Scope::SITE_LOCAL),
            ("2001:db8::1", Scope::GLOBAL),
            ("fd00::1", Scope::GLOBAL),
            ("ff0e::1", Scope::GLOBAL),
        ] {
            assert_eq!(ipv6_addr_scope(addr(text)), scope, "{text}");
        }
        assert!(Scope::LINK_LOCAL < Scope::GLOBAL);
    }
}
