//! UDP (RFC 768, and over IPv6 RFC 8200 §8.1).

use std::fmt;

use super::error::require;
use super::octets::{get_u16, put_u16, slice, slice_mut};
use super::{Error, checksum};

/// Length of the header, in octets.
pub const HEADER_LEN: usize = 8;

mod field {
    use crate::wire::octets::Field;

    pub const SRC_PORT: Field = 0..2;
    pub const DST_PORT: Field = 2..4;
    pub const LENGTH: Field = 4..6;
    pub const CHECKSUM: Field = 6..8;
}

view! {
    /// A UDP datagram. The checksum functions take the sum of the pseudo-header, from
    /// [`checksum::pseudo_header_v4`] or [`checksum::pseudo_header_v6`].
    UdpPacket
}

impl<T: AsRef<[u8]>> UdpPacket<T> {
    /// Whether the buffer has the 8 octets of the header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)
    }

    /// Source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        get_u16(self.as_octets(), field::SRC_PORT)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        get_u16(self.as_octets(), field::DST_PORT)
    }

    /// Length field: header and payload, in octets.
    #[inline]
    pub fn length(&self) -> u16 {
        get_u16(self.as_octets(), field::LENGTH)
    }

    /// The checksum field; zero for none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.as_octets(), field::CHECKSUM)
    }

    /// Whether the sender computed a checksum. IPv6 requires one (RFC 8200 §8.1; exception: RFC 6935).
    #[inline]
    pub fn has_checksum(&self) -> bool {
        self.checksum() != 0
    }

    /// Whether the checksum is valid or absent.
    pub fn verify_checksum(&self, pseudo_header: u32) -> bool {
        !self.has_checksum()
            || checksum::is_valid(pseudo_header + checksum::ones_complement_sum(self.datagram()))
    }

    /// Whether the checksum field holds the folded sum of the pseudo-header, which the kernel leaves
    /// there for a device to complete (`CHECKSUM_PARTIAL`). This is also true for one in 65,536 complete
    /// checksums, and completing it then does not change the value.
    #[inline]
    pub fn is_checksum_partial(&self, pseudo_header: u32) -> bool {
        self.checksum() == checksum::fold(pseudo_header)
    }

    /// The payload, up to the stated length or the end of the buffer.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, usize::from(self.length()))
    }

    fn datagram(&self) -> &[u8] {
        slice(self.as_octets(), 0, usize::from(self.length()))
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> UdpPacket<T> {
    /// Sets the source port.
    #[inline]
    pub fn set_src_port(&mut self, port: u16) {
        put_u16(self.buffer.as_mut(), field::SRC_PORT, port);
    }

    /// Sets the destination port.
    #[inline]
    pub fn set_dst_port(&mut self, port: u16) {
        put_u16(self.buffer.as_mut(), field::DST_PORT, port);
    }

    /// Sets the length of header and payload, in octets.
    #[inline]
    pub fn set_length(&mut self, octets: u16) {
        put_u16(self.buffer.as_mut(), field::LENGTH, octets);
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, checksum);
    }

    /// Computes and writes the checksum; a result of zero is written as 0xffff, because zero means none
    /// (RFC 768).
    pub fn fill_checksum(&mut self, pseudo_header: u32) {
        self.set_checksum(0);
        self.set_checksum(match checksum::transport_checksum(pseudo_header, self.datagram()) {
            0 => 0xffff,
            checksum => checksum,
        });
    }

    /// The payload, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        let end = usize::from(self.length());
        slice_mut(self.buffer.as_mut(), HEADER_LEN, end)
    }
}

impl<T: AsRef<[u8]>> fmt::Display for UdpPacket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}: ", self.src_port(), self.dst_port())?;
        self.fmt_behind_ports(f)
    }
}

impl<T: AsRef<[u8]>> UdpPacket<T> {
    /// The part that tcpdump prints after addresses and ports.
    pub(super) fn fmt_behind_ports(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::from(self.length()).checked_sub(HEADER_LEN) {
            Some(len) => write!(f, "UDP, length {len}"),
            None => write!(f, "UDP, bad length {}", self.length()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Protocol;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const SRC: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
    const DST: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 2);
    const DATAGRAM: [u8; 11] = [0x30, 0x39, 0, 53, 0, 11, 0, 0, b'a', b'b', b'c'];

    #[test]
    fn fields_are_at_the_headers_offsets() {
        let mut octets = [0u8; 11];
        let mut udp = UdpPacket::new_unchecked(&mut octets[..]);
        udp.set_src_port(12345);
        udp.set_dst_port(53);
        udp.set_length(11);
        udp.payload_mut().copy_from_slice(b"abc");
        assert_eq!(octets, DATAGRAM);
        let udp = UdpPacket::new_checked(&octets[..]).unwrap();
        assert_eq!((udp.src_port(), udp.dst_port(), udp.length()), (12345, 53, 11));
        assert_eq!(udp.payload(), b"abc");
        assert_eq!(udp.to_string(), "12345 > 53: UDP, length 3");
        assert!(UdpPacket::new_checked(&octets[..7]).is_err());
    }

    #[test]
    fn checksum_covers_pseudo_header_and_odd_payload_but_no_padding() {
        let pseudo = checksum::pseudo_header_v4(SRC, DST, Protocol::UDP, 11);
        let mut octets = [&DATAGRAM[..], &[0xff; 7]].concat();
        let mut udp = UdpPacket::new_unchecked(&mut octets[..]);
        assert!(udp.verify_checksum(pseudo), "none is as good as right");
        udp.fill_checksum(pseudo);
        // c612 + 0102 + c612 + 0202 + 11 + b + 3039 + 35 + b + 6162 + 6300 = 2841f, folded 8421.
        assert_eq!(udp.checksum(), !0x8421);
        assert!(udp.verify_checksum(pseudo));
        octets[9] ^= 1;
        assert!(!UdpPacket::new_unchecked(&octets[..]).verify_checksum(pseudo));
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_ones() {
        let pseudo =
            checksum::pseudo_header_v6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST, Protocol::UDP, 10);
        let mut octets = [0, 1, 0, 2, 0, 10, 0, 0, 0, 0];
        let sum = checksum::fold(pseudo + checksum::ones_complement_sum(&octets));
        octets[8..].copy_from_slice(&(!sum).to_be_bytes());
        let mut udp = UdpPacket::new_unchecked(&mut octets[..]);
        udp.fill_checksum(pseudo);
        assert_eq!(udp.checksum(), 0xffff);
        assert!(udp.verify_checksum(pseudo));
    }

    #[test]
    fn a_partial_checksum_is_recognised_and_completed() {
        let pseudo = checksum::pseudo_header_v4(SRC, DST, Protocol::UDP, 11);
        let mut octets = DATAGRAM;
        let mut udp = UdpPacket::new_unchecked(&mut octets[..]);
        udp.set_checksum(checksum::fold(pseudo));
        assert!(udp.is_checksum_partial(pseudo) && !udp.verify_checksum(pseudo));
        udp.fill_checksum(pseudo);
        assert!(!udp.is_checksum_partial(pseudo) && udp.verify_checksum(pseudo));
    }
}
