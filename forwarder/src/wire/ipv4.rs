//! The IPv4 header (RFC 791, DS field of RFC 2474, ECN of RFC 3168) and address types.
//!
//! Options are in [`ipv4_option`](super::ipv4_option).

use std::net::Ipv4Addr;

use super::error::require;
use super::ipv4_option::Ipv4Options;
use super::octets::{array, get_u8, get_u16, put, put_u8, put_u16, slice, slice_mut};
use super::{Error, Protocol, checksum};

/// Length of a header without options, in octets.
pub const HEADER_LEN_MIN: usize = 20;
/// Length of the longest header, in octets.
pub const HEADER_LEN_MAX: usize = 60;
/// Minimum MTU of every link (RFC 791), in octets.
pub const MTU_MIN: u16 = 68;

mod field {
    use crate::wire::octets::Field;

    pub const VERSION_IHL: usize = 0;
    pub const DSCP_ECN: usize = 1;
    pub const TOTAL_LEN: Field = 2..4;
    pub const IDENT: Field = 4..6;
    pub const FLAGS_FRAG_OFFSET: Field = 6..8;
    pub const TTL: usize = 8;
    pub const PROTOCOL: usize = 9;
    pub const CHECKSUM: Field = 10..12;
    pub const SRC_ADDR: Field = 12..16;
    pub const DST_ADDR: Field = 16..20;
}

/// Offset of the version and header length octet, for a Parameter Problem's pointer.
pub const VERSION_IHL_OFFSET: usize = field::VERSION_IHL;
/// Offset of the Protocol field.
pub const PROTOCOL_OFFSET: usize = field::PROTOCOL;

const FLAG_DF: u16 = 0x4000;
const FLAG_MF: u16 = 0x2000;
const FRAG_OFFSET_MASK: u16 = 0x1fff;

view! {
    /// An IPv4 packet. `check_len` requires the 20 octets of the fixed header, a header length of 20 or
    /// more, and as many octets; it does not check the version or the total length.
    Ipv4Packet
}

impl<T: AsRef<[u8]>> Ipv4Packet<T> {
    /// Whether the buffer has the whole header, options included.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN_MIN)?;
        let len = self.header_len();
        if len < HEADER_LEN_MIN {
            return Err(Error::BadHeaderLen { pointer: field::VERSION_IHL, len });
        }
        require(self.as_octets(), len)
    }

    /// IP version; 4 in a valid header.
    #[inline]
    pub fn version(&self) -> u8 {
        get_u8(self.as_octets(), field::VERSION_IHL) >> 4
    }

    /// Length of the header with its options, in octets: 0–60 and a multiple of 4. (The field,
    /// IHL, counts 32-bit words.)
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(get_u8(self.as_octets(), field::VERSION_IHL) & 0x0f) * 4
    }

    /// DSCP and ECN in one octet, formerly type of service.
    #[inline]
    pub fn tos(&self) -> u8 {
        get_u8(self.as_octets(), field::DSCP_ECN)
    }

    /// Differentiated services code point, 0–63.
    #[inline]
    pub fn dscp(&self) -> u8 {
        self.tos() >> 2
    }

    /// Explicit congestion notification, 0–3.
    #[inline]
    pub fn ecn(&self) -> u8 {
        self.tos() & 0x03
    }

    /// Total length field: header and payload, in octets.
    #[inline]
    pub fn total_len(&self) -> u16 {
        get_u16(self.as_octets(), field::TOTAL_LEN)
    }

    /// Identification: fragments of one packet share it.
    #[inline]
    pub fn ident(&self) -> u16 {
        get_u16(self.as_octets(), field::IDENT)
    }

    /// The DF flag.
    #[inline]
    pub fn dont_frag(&self) -> bool {
        self.flags_frag_offset() & FLAG_DF != 0
    }

    /// The MF flag.
    #[inline]
    pub fn more_frags(&self) -> bool {
        self.flags_frag_offset() & FLAG_MF != 0
    }

    /// Offset of this fragment's payload in the original one, in octets: 0–65,528.
    #[inline]
    pub fn frag_offset(&self) -> u16 {
        (self.flags_frag_offset() & FRAG_OFFSET_MASK) << 3
    }

    /// Whether this is one fragment of several: the kernel's `ip_is_fragment`.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_frag_offset() & (FLAG_MF | FRAG_OFFSET_MASK) != 0
    }

    /// Whether the payload starts with the upper-layer header: true for all packets but later fragments.
    #[inline]
    pub fn is_first_fragment(&self) -> bool {
        self.flags_frag_offset() & FRAG_OFFSET_MASK == 0
    }

    #[inline]
    fn flags_frag_offset(&self) -> u16 {
        get_u16(self.as_octets(), field::FLAGS_FRAG_OFFSET)
    }

    /// Time to live, in hops.
    #[inline]
    pub fn ttl(&self) -> u8 {
        get_u8(self.as_octets(), field::TTL)
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> Protocol {
        Protocol(get_u8(self.as_octets(), field::PROTOCOL))
    }

    /// The header checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.as_octets(), field::CHECKSUM)
    }

    /// Source address.
    #[inline]
    pub fn src_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.as_octets(), field::SRC_ADDR))
    }

    /// Destination address.
    #[inline]
    pub fn dst_addr(&self) -> Ipv4Addr {
        Ipv4Addr::from(array::<4>(self.as_octets(), field::DST_ADDR))
    }

    /// Whether the checksum of the header, options included, is valid.
    #[inline]
    pub fn verify_checksum(&self) -> bool {
        checksum::is_valid(checksum::ones_complement_sum(self.header()))
    }

    /// The octets of the header, options included.
    #[inline]
    pub fn header(&self) -> &[u8] {
        slice(self.as_octets(), 0, self.header_len())
    }

    /// The octets of the options; empty if there are none.
    #[inline]
    pub fn option_octets(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN_MIN, self.header_len())
    }

    /// Iterates over the options.
    #[inline]
    pub fn options(&self) -> Ipv4Options<'_> {
        Ipv4Options::new(self.option_octets())
    }

    /// The payload, up to the total length or the end of the buffer.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), self.header_len(), usize::from(self.total_len()))
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> Ipv4Packet<T> {
    /// Sets the version to 4 and the header length; `octets` is a multiple of 4 up to 60.
    #[inline]
    pub fn set_version_and_header_len(&mut self, octets: usize) {
        put_u8(self.buffer.as_mut(), field::VERSION_IHL, 0x40 | (octets / 4) as u8 & 0x0f);
    }

    /// Sets DSCP and ECN together.
    #[inline]
    pub fn set_tos(&mut self, tos: u8) {
        put_u8(self.buffer.as_mut(), field::DSCP_ECN, tos);
    }

    /// Sets the length of header and payload, in octets.
    #[inline]
    pub fn set_total_len(&mut self, octets: u16) {
        put_u16(self.buffer.as_mut(), field::TOTAL_LEN, octets);
    }

    /// Sets the identification.
    #[inline]
    pub fn set_ident(&mut self, ident: u16) {
        put_u16(self.buffer.as_mut(), field::IDENT, ident);
    }

    /// Sets DF and MF and the fragment offset in octets, rounded down to a multiple of 8. Clears the
    /// reserved flag.
    #[inline]
    pub fn set_frag(&mut self, dont_frag: bool, more_frags: bool, offset: u16) {
        let mut word = offset >> 3;
        if dont_frag {
            word |= FLAG_DF;
        }
        if more_frags {
            word |= FLAG_MF;
        }
        put_u16(self.buffer.as_mut(), field::FLAGS_FRAG_OFFSET, word);
    }

    /// Sets the time to live without updating the checksum; for forwarding, see
    /// [`decrease_ttl`](Self::decrease_ttl).
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        put_u8(self.buffer.as_mut(), field::TTL, ttl);
    }

    /// Sets the protocol of the payload.
    #[inline]
    pub fn set_protocol(&mut self, protocol: Protocol) {
        put_u8(self.buffer.as_mut(), field::PROTOCOL, protocol.0);
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, checksum);
    }

    /// Sets the source address without updating the checksum.
    #[inline]
    pub fn set_src_addr(&mut self, addr: Ipv4Addr) {
        put(self.buffer.as_mut(), field::SRC_ADDR, &addr.octets());
    }

    /// Sets the destination address without updating the checksum.
    #[inline]
    pub fn set_dst_addr(&mut self, addr: Ipv4Addr) {
        put(self.buffer.as_mut(), field::DST_ADDR, &addr.octets());
    }

    /// Computes and writes the header checksum.
    #[inline]
    pub fn fill_checksum(&mut self) {
        self.set_checksum(0);
        let checksum = checksum::checksum(self.header());
        self.set_checksum(checksum);
    }

    /// Decrements the time to live, updates the checksum and returns the new TTL, as the kernel's
    /// `ip_decrease_ttl`. A TTL of 0 and its checksum are not changed.
    #[inline]
    pub fn decrease_ttl(&mut self) -> u8 {
        let Some(ttl) = self.ttl().checked_sub(1) else { return 0 };
        self.set_checksum(checksum::decrease_ttl(self.checksum()));
        self.set_ttl(ttl);
        ttl
    }

    /// The octets of the options, writable.
    #[inline]
    pub fn option_octets_mut(&mut self) -> &mut [u8] {
        let end = self.header_len();
        slice_mut(self.buffer.as_mut(), HEADER_LEN_MIN, end)
    }

    /// The payload, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.header_len(), usize::from(self.total_len()));
        slice_mut(self.buffer.as_mut(), start, end)
    }
}

// Address types, with the names of the kernel's include/linux/in.h. Each is one mask and compare.

/// 127.0.0.0/8.
#[inline]
#[must_use]
pub const fn ipv4_is_loopback(addr: Ipv4Addr) -> bool {
    addr.to_bits() >> 24 == 127
}

/// 0.0.0.0, "this host on this network" (RFC 1122 §3.2.1.3). Since 5.3 the kernel treats the rest of 0/8
/// as ordinary addresses.
#[inline]
#[must_use]
pub const fn ipv4_is_zeronet(addr: Ipv4Addr) -> bool {
    addr.to_bits() == 0
}

/// 224.0.0.0/4.
#[inline]
#[must_use]
pub const fn ipv4_is_multicast(addr: Ipv4Addr) -> bool {
    addr.to_bits() >> 28 == 0xe
}

/// 224.0.0.0/24, multicast that routers do not forward (RFC 5771 §4).
#[inline]
#[must_use]
pub const fn ipv4_is_local_multicast(addr: Ipv4Addr) -> bool {
    addr.to_bits() >> 8 == 0x00e0_0000
}

/// 255.255.255.255, the limited broadcast.
#[inline]
#[must_use]
pub const fn ipv4_is_lbcast(addr: Ipv4Addr) -> bool {
    addr.to_bits() == u32::MAX
}

/// 240.0.0.0/4 except the limited broadcast: class E, reserved (RFC 1112 §4). The kernel has no such
/// function and forwards these.
#[inline]
#[must_use]
pub const fn ipv4_is_class_e(addr: Ipv4Addr) -> bool {
    addr.to_bits() >> 28 == 0xf && !ipv4_is_lbcast(addr)
}

/// 169.254.0.0/16 (RFC 3927).
#[inline]
#[must_use]
pub const fn ipv4_is_linklocal_169(addr: Ipv4Addr) -> bool {
    addr.to_bits() >> 16 == 0xa9fe
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 198.18.1.2 > 198.18.2.2, UDP, DF, TTL 64, one Router Alert and four octets of payload.
    #[rustfmt::skip]
    const PACKET: [u8; 28] = [
        0x46, 0xb9, 0x00, 0x1c, 0x12, 0x34, 0x40, 0x00,
        0x40, 0x11, 0x03, 0xb7, 198, 18, 1, 2,
        198, 18, 2, 2, 0x94, 0x04, 0x00, 0x00,
        0xca, 0xfe, 0xba, 0xbe,
    ];

    #[test]
    fn fields_are_read_at_the_headers_offsets() {
        let packet = Ipv4Packet::new_checked(&PACKET[..]).unwrap();
        assert_eq!(packet.version(), 4);
        assert_eq!(packet.header_len(), 24);
        assert_eq!((packet.dscp(), packet.ecn(), packet.tos()), (46, 1, 0xb9));
        assert_eq!(packet.total_len(), 28);
        assert_eq!(packet.ident(), 0x1234);
        assert!(packet.dont_frag() && !packet.more_frags());
        assert_eq!(packet.frag_offset(), 0);
        assert_eq!(packet.ttl(), 64);
        assert_eq!(packet.protocol(), Protocol::UDP);
        assert_eq!(packet.src_addr(), Ipv4Addr::new(198, 18, 1, 2));
        assert_eq!(packet.dst_addr(), Ipv4Addr::new(198, 18, 2, 2));
        assert_eq!(packet.option_octets(), [0x94, 4, 0, 0]);
        assert_eq!(packet.payload(), [0xca, 0xfe, 0xba, 0xbe]);
    }

    #[test]
    fn setters_write_what_the_getters_read() {
        let mut octets = [0u8; 28];
        let mut packet = Ipv4Packet::new_unchecked(&mut octets[..]);
        packet.set_version_and_header_len(24);
        packet.set_tos(0xb9);
        packet.set_total_len(28);
        packet.set_ident(0x1234);
        packet.set_frag(true, false, 0);
        packet.set_ttl(64);
        packet.set_protocol(Protocol::UDP);
        packet.set_src_addr(Ipv4Addr::new(198, 18, 1, 2));
        packet.set_dst_addr(Ipv4Addr::new(198, 18, 2, 2));
        packet.option_octets_mut().copy_from_slice(&[0x94, 4, 0, 0]);
        packet.payload_mut().copy_from_slice(&[0xca, 0xfe, 0xba, 0xbe]);
        packet.fill_checksum();
        assert!(packet.verify_checksum());
        assert_eq!(octets, PACKET);
    }

    #[test]
    fn fragment_fields() {
        let mut octets = PACKET;
        let mut packet = Ipv4Packet::new_unchecked(&mut octets[..]);
        assert!(!packet.is_fragment() && packet.is_first_fragment());
        packet.set_frag(false, true, 0);
        assert!(packet.is_fragment() && packet.is_first_fragment());
        packet.set_frag(false, false, 1480);
        assert!(packet.is_fragment() && !packet.is_first_fragment());
        assert_eq!(packet.frag_offset(), 1480);
        packet.set_frag(false, true, 65_528);
        assert!(packet.more_frags());
        assert_eq!(packet.frag_offset(), 65_528);
        assert_eq!(octets[6..8], [0x3f, 0xff]);
    }

    #[test]
    fn decrease_ttl_leaves_the_octets_a_full_recomputation_does() {
        for ttl in 1..=255 {
            for ident in (0..=0xffff).step_by(251) {
                let mut octets = PACKET;
                let mut packet = Ipv4Packet::new_unchecked(&mut octets[..]);
                packet.set_ttl(ttl);
                packet.set_ident(ident);
                packet.fill_checksum();
                assert_eq!(packet.decrease_ttl(), ttl - 1);
                assert!(packet.verify_checksum());
                let mut anew = octets;
                Ipv4Packet::new_unchecked(&mut anew[..]).fill_checksum();
                assert_eq!(octets, anew);
            }
        }
    }

    #[test]
    fn a_ttl_of_zero_does_not_wrap() {
        let mut octets = PACKET;
        octets[8] = 0;
        let before = octets;
        assert_eq!(Ipv4Packet::new_unchecked(&mut octets[..]).decrease_ttl(), 0);
        assert_eq!(octets, before);
    }

    #[test]
    fn any_flipped_bit_of_the_header_fails_the_checksum() {
        for bit in 0..24 * 8 {
            // The header length determines what is summed; a shorter header may be valid by chance.
            if (4..8).contains(&bit) {
                continue;
            }
            let mut octets = PACKET;
            octets[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(!Ipv4Packet::new_unchecked(&octets[..]).verify_checksum(), "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_named() {
        assert_eq!(
            Ipv4Packet::new_checked(&PACKET[..19]).unwrap_err(),
            Error::Truncated { needed: 20, available: 19 }
        );
        assert_eq!(
            Ipv4Packet::new_checked(&PACKET[..23]).unwrap_err(),
            Error::Truncated { needed: 24, available: 23 }
        );
        let mut octets = PACKET;
        octets[0] = 0x44;
        assert_eq!(
            Ipv4Packet::new_checked(&octets[..]).unwrap_err(),
            Error::BadHeaderLen { pointer: 0, len: 16 }
        );
    }

    #[test]
    fn payload_ends_with_the_packet_or_the_buffer() {
        let padded = [&PACKET[..], &[0; 18]].concat();
        assert_eq!(Ipv4Packet::new_unchecked(&padded).payload().len(), 4);
        assert_eq!(Ipv4Packet::new_unchecked(&PACKET[..26]).payload().len(), 2);
        let mut octets = PACKET;
        octets[3] = 23;
        assert!(Ipv4Packet::new_unchecked(&octets[..]).payload().is_empty());
    }

    #[test]
    fn kinds_of_address_end_where_they_should() {
        type Is = fn(Ipv4Addr) -> bool;
        let inside_and_around: [(Is, &str, &str, &str, &str); 7] = [
            (ipv4_is_loopback, "126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
            (ipv4_is_zeronet, "255.255.255.255", "0.0.0.0", "0.0.0.0", "0.0.0.1"),
            (ipv4_is_multicast, "223.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0"),
            (ipv4_is_local_multicast, "223.255.255.255", "224.0.0.0", "224.0.0.255", "224.0.1.0"),
            (ipv4_is_lbcast, "255.255.255.254", "255.255.255.255", "255.255.255.255", "0.0.0.0"),
            (ipv4_is_class_e, "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
            (
                ipv4_is_linklocal_169,
                "169.253.255.255",
                "169.254.0.0",
                "169.254.255.255",
                "169.255.0.0",
            ),
        ];
        for (is, below, first, last, above) in inside_and_around {
            assert!(!is(below.parse().unwrap()), "{below}");
            assert!(is(first.parse().unwrap()), "{first}");
            assert!(is(last.parse().unwrap()), "{last}");
            assert!(!is(above.parse().unwrap()), "{above}");
        }
    }
}
