//! The Encapsulating Security Payload (RFC 4303 §2), and what UDP carries beside it (RFC 3948 §2).
//!
//! The view has the octets that are not encrypted. IV, trailer and ICV depend on the security association and
//! are read by the module `ipsec`.

use super::Error;
use super::error::require;
use super::octets::{get_u32, put_u32, slice, slice_mut};

/// Length of SPI and sequence number, in octets.
pub const HEADER_LEN: usize = 8;
/// Length of the trailer after the padding, in octets: pad length and next header.
pub const TRAILER_LEN: usize = 2;
/// The longest padding, in octets.
pub const PADDING_MAX: usize = 255;
/// UDP port of IKE and ESP behind NAT (RFC 3948 §2).
pub const UDP_PORT: u16 = 4500;

mod field {
    use crate::wire::octets::Field;

    pub const SPI: Field = 0..4;
    pub const SEQ: Field = 4..8;
}

view! {
    /// An ESP packet; the buffer ends where the IP payload does.
    EspPacket
}

impl<T: AsRef<[u8]>> EspPacket<T> {
    /// Whether the buffer has SPI and sequence number.
    #[inline]
    pub fn check_len(&self) -> Result<(), Error> {
        require(self.as_octets(), HEADER_LEN)
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

    /// IV, encrypted data and ICV.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        slice(self.as_octets(), HEADER_LEN, usize::MAX)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> EspPacket<T> {
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

    /// IV, encrypted data and ICV, writable.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        slice_mut(self.buffer.as_mut(), HEADER_LEN, usize::MAX)
    }
}

/// What a UDP datagram to a port of ESP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpEncap {
    /// ESP: its first octet is the payload's first one.
    Esp,
    /// IKE: the payload starts with the non-ESP marker, four zero octets, where ESP has its SPI (RFC 3948
    /// §2.2).
    Ike,
    /// A keepalive of NAT: one octet, 0xff (RFC 3948 §2.3).
    Keepalive,
}

impl UdpEncap {
    /// Reads the payload of the datagram. `None`: it is too short to be any of these.
    #[must_use]
    pub fn of_payload(payload: &[u8]) -> Option<UdpEncap> {
        match payload {
            [0xff] => Some(UdpEncap::Keepalive),
            [0, 0, 0, 0, ..] => Some(UdpEncap::Ike),
            // As the kernel's `udp_encap_rcv`: more than the ESP header.
            _ => (payload.len() > HEADER_LEN).then_some(UdpEncap::Esp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_at_the_headers_offsets() {
        let mut octets = [0; 10];
        let mut esp = EspPacket::new_unchecked(&mut octets[..]);
        esp.set_spi(0x0102_0304);
        esp.set_seq(0x0506_0708);
        esp.payload_mut().copy_from_slice(&[9, 10]);
        assert_eq!(octets, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let esp = EspPacket::new_checked(&octets[..]).unwrap();
        assert_eq!((esp.spi(), esp.seq()), (0x0102_0304, 0x0506_0708));
        assert_eq!(esp.payload(), [9, 10]);
        assert!(EspPacket::new_checked(&octets[..7]).is_err());
    }

    #[test]
    fn udp_carries_esp_ike_and_keepalives() {
        let of = UdpEncap::of_payload;
        assert_eq!(of(&[0xff]), Some(UdpEncap::Keepalive));
        assert_eq!(of(&[0, 0, 0, 0]), Some(UdpEncap::Ike));
        assert_eq!(of(&[0, 0, 0, 1, 0, 0, 0, 1, 0]), Some(UdpEncap::Esp));
        assert_eq!(of(&[0, 0, 0, 1, 0, 0, 0, 1]), None);
        assert_eq!(of(&[0xff, 0xff]), None);
        assert_eq!(of(&[]), None);
    }
}
