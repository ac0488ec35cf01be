//! The TCP header (RFC 9293 §3.1). Options are not parsed.

use std::fmt;

use super::error::require;
use super::octets::{get_u8, get_u16, get_u32, put_u8, put_u16, put_u32, slice};
use super::{Error, checksum};

/// Length of a header without options, in octets.
pub const HEADER_LEN_MIN: usize = 20;

mod field {
    use crate::wire::octets::Field;

    pub const SRC_PORT: Field = 0..2;
    pub const DST_PORT: Field = 2..4;
    pub const SEQ: Field = 4..8;
    pub const ACK: Field = 8..12;
    pub const DATA_OFFSET: usize = 12;
    pub const FLAGS: usize = 13;
    pub const WINDOW: Field = 14..16;
    pub const CHECKSUM: Field = 16..18;
    pub const URGENT: Field = 18..20;
}

/// The control bits, as in the header's 14th octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment number is valid.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is valid.
    pub const URG: Self = Self(0x20);
    /// ECN echo (RFC 3168).
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced (RFC 3168).
    pub const CWR: Self = Self(0x80);

    /// Whether all bits of `other` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    #[inline]
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("none");
        }
        for (bit, letter) in "FSRP.UEW".chars().enumerate() {
            if self.0 >> bit & 1 != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

view! {
    /// A TCP segment; the buffer ends where the IP payload does. The checksum functions take the
    /// sum of the pseudo-header, from [`checksum::pseudo_header_v4`] or
    /// [`checksum::pseudo_header_v6`], over the length of the buffer.
    TcpPacket
}

impl<T: AsRef<[u8]>> TcpPacket<T> {
    /// Whether the buffer has the whole header, options included.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN_MIN)?;
        let len = self.header_len();
        if len < HEADER_LEN_MIN {
            return Err(Error::BadHeaderLen { pointer: field::DATA_OFFSET, len });
        }
        require(self.as_octets(), len)
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

    /// Sequence number.
    #[inline]
    pub fn seq(&self) -> u32 {
        get_u32(self.as_octets(), field::SEQ)
    }

    /// Acknowledgment number; valid if ACK is set.
    #[inline]
    pub fn ack(&self) -> u32 {
        get_u32(self.as_octets(), field::ACK)
    }

    /// Length of the header with its options, in octets: 0–60 and a multiple of 4. (The field,
    /// Data Offset, counts 32-bit words.)
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(get_u8(self.as_octets(), field::DATA_OFFSET) >> 4) * 4
    }

    /// The control bits.
    #[inline]
    pub fn flags(&self) -> TcpFlags {
        TcpFlags(get_u8(self.as_octets(), field::FLAGS))
    }

    /// Window field, not scaled.
    #[inline]
    pub fn window(&self) -> u16 {
        get_u16(self.as_octets(), field::WINDOW)
    }

    /// The checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.as_octets(), field::CHECKSUM)
    }

    /// Urgent pointer; valid if URG is set.
    #[inline]
    pub fn urgent(&self) -> u16 {
        get_u16(self.as_octets(), field::URGENT)
    }

    /// The octets of the options; empty if there are none.
    #[inline]
    pub fn option_octets(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN_MIN, self.header_len())
    }

    /// The payload, up to the end of the buffer.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), self.header_len(), usize::MAX)
    }

    /// Whether the checksum is valid.
    pub fn verify_checksum(&self, pseudo_header: u32) -> bool {
        checksum::is_valid(pseudo_header + checksum::ones_complement_sum(self.as_octets()))
    }

    /// Whether the checksum field holds the folded sum of the pseudo-header, which the kernel leaves
    /// there for a device to complete (`CHECKSUM_PARTIAL`). This is also true for one in 65,536 complete
    /// checksums, and completing it then does not change the value.
    #[inline]
    pub fn is_checksum_partial(&self, pseudo_header: u32) -> bool {
        self.checksum() == checksum::fold(pseudo_header)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> TcpPacket<T> {
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

    /// Sets the sequence number.
    #[inline]
    pub fn set_seq(&mut self, seq: u32) {
        put_u32(self.buffer.as_mut(), field::SEQ, seq);
    }

    /// Sets the acknowledgment number.
    #[inline]
    pub fn set_ack(&mut self, ack: u32) {
        put_u32(self.buffer.as_mut(), field::ACK, ack);
    }

    /// Sets the header length, a multiple of 4 up to 60, and clears the adjacent reserved bits.
    #[inline]
    pub fn set_header_len(&mut self, octets: usize) {
        put_u8(self.buffer.as_mut(), field::DATA_OFFSET, ((octets / 4) as u8 & 0x0f) << 4);
    }

    /// Sets the control bits.
    #[inline]
    pub fn set_flags(&mut self, flags: TcpFlags) {
        put_u8(self.buffer.as_mut(), field::FLAGS, flags.0);
    }

    /// Sets the window.
    #[inline]
    pub fn set_window(&mut self, window: u16) {
        put_u16(self.buffer.as_mut(), field::WINDOW, window);
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        put_u16(self.buffer.as_mut(), field::CHECKSUM, checksum);
    }

    /// Sets the urgent pointer.
    #[inline]
    pub fn set_urgent(&mut self, urgent: u16) {
        put_u16(self.buffer.as_mut(), field::URGENT, urgent);
    }

    /// Computes and writes the checksum.
    pub fn fill_checksum(&mut self, pseudo_header: u32) {
        self.set_checksum(0);
        let checksum = checksum::transport_checksum(pseudo_header, self.as_octets());
        self.set_checksum(checksum);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for TcpPacket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}: ", self.src_port(), self.dst_port())?;
        self.fmt_behind_ports(f)
    }
}

impl<T: AsRef<[u8]>> TcpPacket<T> {
    /// The part that tcpdump prints after addresses and ports: sequence numbers where they matter.
    pub(super) fn fmt_behind_ports(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flags, len) = (self.flags(), self.payload().len());
        write!(f, "Flags [{flags}]")?;
        if len > 0 {
            // A payload has at most 65,515 octets.
            write!(f, ", seq {}:{}", self.seq(), self.seq().wrapping_add(len as u32))?;
        } else if flags.intersects(TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST) {
            write!(f, ", seq {}", self.seq())?;
        }
        if flags.contains(TcpFlags::ACK) {
            write!(f, ", ack {}", self.ack())?;
        }
        write!(f, ", win {}", self.window())?;
        if flags.contains(TcpFlags::URG) {
            write!(f, ", urg {}", self.urgent())?;
        }
        write!(f, ", length {len}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Protocol;
    use std::net::Ipv4Addr;

    #[rustfmt::skip]
    const SYN_ACK: [u8; 25] = [
        0x00, 0x50, 0x30, 0x39, 0, 0, 0, 1, 0, 0, 0, 2,
        0x60, 0x12, 0xfa, 0xf0, 0, 0, 0, 7,
        2, 4, 5, 0xb4,
        b'x',
    ];

    #[test]
    fn fields_are_read_at_the_headers_offsets() {
        let tcp = TcpPacket::new_checked(&SYN_ACK[..]).unwrap();
        assert_eq!((tcp.src_port(), tcp.dst_port()), (80, 12345));
        assert_eq!((tcp.seq(), tcp.ack()), (1, 2));
        assert_eq!(tcp.header_len(), 24);
        assert_eq!(tcp.flags(), TcpFlags::SYN | TcpFlags::ACK);
        assert_eq!((tcp.window(), tcp.urgent()), (64_240, 7));
        assert_eq!(tcp.option_octets(), [2, 4, 5, 0xb4]);
        assert_eq!(tcp.payload(), b"x");
    }

    #[test]
    fn setters_write_what_the_getters_read() {
        let mut octets = [0u8; 25];
        let mut tcp = TcpPacket::new_unchecked(&mut octets[..]);
        tcp.set_src_port(80);
        tcp.set_dst_port(12345);
        tcp.set_seq(1);
        tcp.set_ack(2);
        tcp.set_header_len(24);
        tcp.set_flags(TcpFlags::SYN | TcpFlags::ACK);
        tcp.set_window(64_240);
        tcp.set_urgent(7);
        octets[20..].copy_from_slice(&SYN_ACK[20..]);
        assert_eq!(octets, SYN_ACK);
    }

    #[test]
    fn checksum_is_completed_from_partial() {
        let (src, dst) = (Ipv4Addr::new(198, 18, 2, 2), Ipv4Addr::new(198, 18, 1, 2));
        let pseudo = checksum::pseudo_header_v4(src, dst, Protocol::TCP, 25);
        let mut octets = SYN_ACK;
        let mut tcp = TcpPacket::new_unchecked(&mut octets[..]);
        tcp.set_checksum(checksum::fold(pseudo));
        assert!(tcp.is_checksum_partial(pseudo) && !tcp.verify_checksum(pseudo));
        tcp.fill_checksum(pseudo);
        assert!(tcp.verify_checksum(pseudo));
        octets[24] = b'y';
        assert!(!TcpPacket::new_unchecked(&octets[..]).verify_checksum(pseudo));
    }

    #[test]
    fn lengths_that_cannot_be_are_named() {
        assert!(matches!(TcpPacket::new_checked(&SYN_ACK[..19]), Err(Error::Truncated { .. })));
        assert!(matches!(TcpPacket::new_checked(&SYN_ACK[..23]), Err(Error::Truncated { .. })));
        let mut octets = SYN_ACK;
        octets[12] = 0x40;
        let error = Error::BadHeaderLen { pointer: 12, len: 16 };
        assert_eq!(TcpPacket::new_checked(&octets[..]), Err(error));
    }

    #[test]
    fn one_line_as_tcpdump_prints_it() {
        let show = |flags: TcpFlags, octets: &[u8]| {
            let mut octets = octets.to_vec();
            let mut tcp = TcpPacket::new_unchecked(&mut octets);
            tcp.set_flags(flags);
            tcp.to_string()
        };
        let (ack, psh) = (TcpFlags::ACK, TcpFlags::PSH);
        assert_eq!(
            show(TcpFlags::SYN, &SYN_ACK[..24]),
            "80 > 12345: Flags [S], seq 1, win 64240, length 0"
        );
        assert_eq!(show(ack, &SYN_ACK[..24]), "80 > 12345: Flags [.], ack 2, win 64240, length 0");
        assert_eq!(
            show(psh | ack, &SYN_ACK),
            "80 > 12345: Flags [P.], seq 1:2, ack 2, win 64240, length 1"
        );
        assert_eq!(
            show(TcpFlags(0), &SYN_ACK[..24]),
            "80 > 12345: Flags [none], win 64240, length 0"
        );
    }
}
