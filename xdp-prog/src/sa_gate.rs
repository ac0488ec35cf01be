//! The key of a security association (SA) whose packets are steered.

use core::net::IpAddr;

/// Words of a [`SaGateKey`], 64 bits each.
pub const SA_GATE_WORDS: usize = 3;

/// What the kernel finds the SA of a received packet by (`xfrm_state_lookup`), except for the mark: destination
/// address, SPI and protocol.
///
/// 24 octets without padding, because the kernel compares map keys octet by octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SaGateKey {
    /// Destination address; IPv4: the first four octets, the others are 0.
    pub destination: [u8; 16],
    /// The SPI, in network byte order; 0: the key is that of fragments.
    pub spi: [u8; 4],
    /// 50 (ESP, also in UDP) or 51 (AH).
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// 0.
    pub reserved: u16,
}

impl SaGateKey {
    /// The key of packets with this destination, SPI (as a number), and IP protocol. An IPv4-mapped IPv6 address is
    /// an IPv6 address. Packets with SPI 0 are not steered: it is reserved (RFC 4303 section 2.1).
    #[must_use]
    pub fn new(destination: IpAddr, spi: u32, protocol: u8) -> SaGateKey {
        let (family, destination) = match destination {
            IpAddr::V4(address) => {
                let mut octets = [0; 16];
                octets[..4].copy_from_slice(&address.octets());
                (4, octets)
            }
            IpAddr::V6(address) => (6, address.octets()),
        };
        SaGateKey { destination, spi: spi.to_be_bytes(), protocol, family, reserved: 0 }
    }

    /// The key of fragments of ESP or AH, not in UDP, with this destination, whatever their SPI is.
    #[must_use]
    pub fn of_fragments(destination: IpAddr, protocol: u8) -> SaGateKey {
        SaGateKey::new(destination, 0, protocol)
    }

    /// Converts it to a map key.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8 * SA_GATE_WORDS] {
        let mut out = [0; 8 * SA_GATE_WORDS];
        out[..16].copy_from_slice(&self.destination);
        out[16..20].copy_from_slice(&self.spi);
        out[20..22].copy_from_slice(&[self.protocol, self.family]);
        out[22..].copy_from_slice(&self.reserved.to_ne_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn a_key_has_no_padding() {
        assert_eq!(size_of::<SaGateKey>(), 16 + 4 + 1 + 1 + 2);
        assert_eq!(size_of::<SaGateKey>(), 8 * SA_GATE_WORDS);
        let offsets = [
            offset_of!(SaGateKey, destination),
            offset_of!(SaGateKey, spi),
            offset_of!(SaGateKey, protocol),
            offset_of!(SaGateKey, family),
            offset_of!(SaGateKey, reserved),
        ];
        assert_eq!(offsets, [0, 16, 20, 21, 22]);
    }

    #[test]
    fn a_key_has_the_octets_of_the_packet() {
        let key = SaGateKey::new(IpAddr::from([192, 0, 2, 1]), 0x0102_0304, 50).to_bytes();
        assert_eq!(key[..4], [192, 0, 2, 1]);
        assert_eq!(key[4..16], [0; 12]);
        assert_eq!(key[16..], [1, 2, 3, 4, 50, 4, 0, 0]);
        let address = [0x20, 1, 0xd, 0xb8, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let key = SaGateKey::new(IpAddr::from(address), 0xffff_fffe, 51).to_bytes();
        assert_eq!(key[..16], address);
        assert_eq!(key[16..], [255, 255, 255, 254, 51, 6, 0, 0]);
    }
}
