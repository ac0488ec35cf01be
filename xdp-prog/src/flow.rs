//! The key of a flow: one direction of a tracked TCP or UDP connection.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One direction of a connection, as its packets arrive: before NAT. The reverse direction has a key
/// of its own, which with NAT is not this one with source and destination exchanged.
///
/// 40 octets without padding, because the kernel compares map keys octet by octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Source address as 16-bit words in memory order; IPv4: the first two, the others are 0.
    pub source: [u16; 8],
    /// Destination address, in the same way.
    pub destination: [u16; 8],
    /// Source port in network byte order.
    pub source_port: u16,
    /// Destination port in network byte order.
    pub destination_port: u16,
    /// 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// 0.
    pub reserved: u16,
}

impl FlowKey {
    /// The key of packets with these addresses, ports (as numbers), and IP protocol; `None` if the
    /// addresses are not of one family. An IPv4-mapped IPv6 address is an IPv6 address.
    #[must_use]
    pub fn new(
        source: IpAddr,
        destination: IpAddr,
        source_port: u16,
        destination_port: u16,
        protocol: u8,
    ) -> Option<FlowKey> {
        let (family, source, destination) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (4, words4(source), words4(destination))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (6, words6(source), words6(destination))
            }
            _ => return None,
        };
        Some(FlowKey {
            source,
            destination,
            source_port: source_port.to_be(),
            destination_port: destination_port.to_be(),
            protocol,
            family,
            reserved: 0,
        })
    }

    /// Converts it to a map key.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 40] {
        let mut out = [0; 40];
        let ports = [self.source_port, self.destination_port];
        let words = self.source.iter().chain(&self.destination).chain(&ports);
        for (to, word) in out[..36].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out[36] = self.protocol;
        out[37] = self.family;
        out[38..].copy_from_slice(&self.reserved.to_ne_bytes());
        out
    }
}

fn words4(address: Ipv4Addr) -> [u16; 8] {
    let [a, b, c, d] = address.octets();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), 0, 0, 0, 0, 0, 0]
}

fn words6(address: Ipv6Addr) -> [u16; 8] {
    address.segments().map(u16::to_be)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    #[test]
    fn a_key_has_the_octets_of_the_headers() {
        let key = FlowKey::new(address("192.0.2.1"), address("198.51.100.2"), 0x1234, 53, 17);
        let octets = key.expect("one family").to_bytes();
        assert_eq!(octets[..4], [192, 0, 2, 1]);
        assert_eq!(octets[4..16], [0; 12]);
        assert_eq!(octets[16..20], [198, 51, 100, 2]);
        assert_eq!(octets[20..32], [0; 12]);
        assert_eq!(octets[32..], [0x12, 0x34, 0, 53, 17, 4, 0, 0]);

        let key = FlowKey::new(address("2001:db8::1"), address("2001:db8::f:2"), 443, 0xabcd, 6);
        let octets = key.expect("one family").to_bytes();
        assert_eq!(octets[..16], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(octets[16..32], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf, 0, 2]);
        assert_eq!(octets[32..], [1, 0xbb, 0xab, 0xcd, 6, 6, 0, 0]);
    }

    #[test]
    fn the_layout_is_that_of_the_octets() {
        use core::mem::offset_of;
        assert_eq!((size_of::<FlowKey>(), align_of::<FlowKey>()), (40, 2));
        assert_eq!((offset_of!(FlowKey, source), offset_of!(FlowKey, destination)), (0, 16));
        let ports = (offset_of!(FlowKey, source_port), offset_of!(FlowKey, destination_port));
        assert_eq!(ports, (32, 34));
        assert_eq!((offset_of!(FlowKey, protocol), offset_of!(FlowKey, family)), (36, 37));
        assert_eq!(offset_of!(FlowKey, reserved), 38);
    }

    #[test]
    fn addresses_of_two_families_have_no_key() {
        let (v4, v6) = (address("192.0.2.1"), address("::ffff:192.0.2.1"));
        assert_eq!(FlowKey::new(v4, v6, 1, 2, 17), None);
        assert_eq!(FlowKey::new(v6, v4, 1, 2, 17), None);
        assert_ne!(FlowKey::new(v6, v6, 1, 2, 17), FlowKey::new(v4, v4, 1, 2, 17));
    }
}
