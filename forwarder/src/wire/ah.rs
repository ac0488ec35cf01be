//! The Authentication Header (RFC 4302 §2).

use super::error::require;
use super::octets::{get_u8, get_u32, put_u8, put_u16, put_u32, slice, slice_mut};
use super::{Error, Protocol};

/// Length of the header before the ICV, in octets.
pub const HEADER_LEN: usize = 12;

mod field {
    use crate::wire::octets::Field;

    pub const NEXT_HEADER: usize = 0;
    pub const PAYLOAD_LEN: usize = 1;
    pub const RESERVED: Field = 2..4;
    pub const SPI: Field = 4..8;
    pub const SEQ: Field = 8..12;
}

view! {
    /// An Authentication Header with the authenticated payload. `check_len` requires that the stated length
    /// has room for the fixed fields, and that the buffer has the whole header, ICV included.
    AhPacket
}

impl<T: AsRef<[u8]>> AhPacket<T> {
    /// Whether the buffer has the whole header.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)?;
        let len = self.header_len();
        if len < HEADER_LEN {
            return Err(Error::BadHeaderLen { pointer: field::PAYLOAD_LEN, len });
        }
        require(self.as_octets(), len)
    }

    /// Protocol of the payload.
    #[inline]
    pub fn next_header(&self) -> Protocol {
        Protocol(get_u8(self.as_octets(), field::NEXT_HEADER))
    }

    /// Length of the header with ICV and its padding, in octets: 8–1028. (The field counts 32-bit words, less
    /// two.)
    #[inline]
    pub fn header_len(&self) -> usize {
        (usize::from(get_u8(self.as_octets(), field::PAYLOAD_LEN)) + 2) * 4
    }

    /// Security parameters index.
    #[inline]
    pub fn spi(&self) -> u32 {
        get_u32(self.as_octets(), field::SPI)
    }

    /// Sequence number: with extended ones, the low 32 bits.
    #[inline]
    pub fn seq(&self) -> u32 {
        get_u32(self.as_octets(), field::SEQ)
    }

    /// The ICV, and padding after it.
    #[inline]
    pub fn icv(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, self.header_len())
    }

    /// The octets after the header.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), self.header_len(), usize::MAX)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> AhPacket<T> {
    /// Sets the protocol of the payload.
    #[inline]
    pub fn set_next_header(&mut self, protocol: Protocol) {
        put_u8(self.buffer.as_mut(), field::NEXT_HEADER, protocol.0);
    }

    /// Sets the length of the header, in octets: a multiple of 4 from 8 to 1028. Clears the reserved field.
    #[inline]
    pub fn set_header_len(&mut self, octets: usize) {
        put_u8(self.buffer.as_mut(), field::PAYLOAD_LEN, (octets / 4).wrapping_sub(2) as u8);
        put_u16(self.buffer.as_mut(), field::RESERVED, 0);
    }

    /// Sets the security parameters index.
    #[inline]
    pub fn set_spi(&mut self, spi: u32) {
        put_u32(self.buffer.as_mut(), field::SPI, spi);
    }

    /// Sets the sequence number.
    #[inline]
    pub fn set_seq(&mut self, seq: u32) {
        put_u32(self.buffer.as_mut(), field::SEQ, seq);
    }

    /// The ICV and padding after it, writable.
    #[inline]
    pub fn icv_mut(&mut self) -> &mut [u8] {
        let end = self.header_len();
        slice_mut(self.buffer.as_mut(), HEADER_LEN, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_at_the_headers_offsets() {
        let mut octets = [0xff; 26];
        let mut ah = AhPacket::new_unchecked(&mut octets[..]);
        ah.set_next_header(Protocol::UDP);
        ah.set_header_len(24);
        ah.set_spi(0x0102_0304);
        ah.set_seq(0x0506_0708);
        ah.icv_mut().fill(9);
        assert_eq!(octets[..12], [17, 4, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(octets[12..], [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 0xff, 0xff]);
        let ah = AhPacket::new_checked(&octets[..]).unwrap();
        assert_eq!((ah.next_header(), ah.header_len()), (Protocol::UDP, 24));
        assert_eq!((ah.spi(), ah.seq()), (0x0102_0304, 0x0506_0708));
        assert_eq!((ah.icv(), ah.payload()), (&[9; 12][..], &[0xff; 2][..]));
    }

    #[test]
    fn lengths_that_cannot_be_are_named() {
        let mut octets = [0; 24];
        octets[1] = 4;
        assert!(AhPacket::new_checked(&octets[..]).is_ok());
        assert_eq!(
            AhPacket::new_checked(&octets[..23]).unwrap_err(),
            Error::Truncated { needed: 24, available: 23 }
        );
        octets[1] = 0;
        assert_eq!(
            AhPacket::new_checked(&octets[..]).unwrap_err(),
            Error::BadHeaderLen { pointer: 1, len: 8 }
        );
    }
}
