//! Flows and the selectors that match them: the kernel's `flowi` and `xfrm_selector`.

use std::net::IpAddr;

use super::Family;
use super::tunnel::Kept;
use crate::wire::ipv6_ext::{FRAGMENT_HEADER_LEN, MAX_EXT_HEADERS};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol, ipv6};

/// A mark with the bits that count: `xfrm_mark`. The default matches every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The bits required.
    pub value: u32,
    /// The bits compared.
    pub mask: u32,
}

impl Mark {
    /// Whether the mark of a packet matches.
    #[inline]
    #[must_use]
    pub const fn matches(self, mark: u32) -> bool {
        mark & self.mask == self.value
    }
}

/// An address prefix. The default, of length 0, matches both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// The address.
    pub addr: IpAddr,
    /// How many of its leading bits count.
    pub len: u8,
}

impl Default for Prefix {
    fn default() -> Prefix {
        Prefix { addr: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), len: 0 }
    }
}

impl Prefix {
    /// Whether an address is in the prefix.
    #[inline]
    #[must_use]
    pub fn contains(self, addr: IpAddr) -> bool {
        self.len == 0
            || Family::of(self.addr) == Family::of(addr)
                && masked(addr, self.len) == masked(self.addr, self.len)
    }
}

/// The leading `len` bits of an address, at the high end.
#[inline]
pub(super) fn masked(addr: IpAddr, len: u8) -> u128 {
    let bits = match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()) << 96,
        IpAddr::V6(addr) => addr.to_bits(),
    };
    let host_bits = 128u32.saturating_sub(u32::from(len));
    u128::MAX.checked_shl(host_bits).map_or(0, |mask| bits & mask)
}

/// What selectors compare: addresses, protocol, ports, interface and mark of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source address.
    pub src: IpAddr,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Protocol, after IPv6 extension headers.
    pub proto: Protocol,
    /// Source port; of ICMP the type; of GRE the upper half of the key. 0: there is none.
    pub sport: u16,
    /// Destination port; of ICMP the code; of GRE the lower half of the key. 0: there is none.
    pub dport: u16,
    /// ifindex of the output interface.
    pub oif: u32,
    /// The packet's mark.
    pub mark: u32,
}

impl Flow {
    /// The flow of a packet, or of its first octets with all headers, which start with the IP header: the
    /// kernel's `xfrm_decode_session`. A fragment has no ports, not even the first one, nor has a packet with an IPv6 Fragment header. AH is the protocol
    /// of its packet, over IPv6 too: what it protects is not part of the flow before AH is removed. Octets
    /// behind the length that the header states do not count. `None`: the header cannot be read
    /// (`XfrmInHdrError` for received packets).
    #[must_use]
    pub fn of_packet(packet: &[u8], oif: u32, mark: u32) -> Option<Flow> {
        let (src, dst, proto, upper): (IpAddr, IpAddr, _, &[u8]) = match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                let end = packet.len().min(ip.total_len().into());
                let upper = packet.get(ip.header_len()..end).filter(|_| !ip.is_fragment());
                (ip.src_addr().into(), ip.dst_addr().into(), ip.protocol(), upper.unwrap_or(&[]))
            }
            6 => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                let stated = packet.get(..ip.total_len()).unwrap_or(packet);
                let (proto, upper) = upper_layer_v6(stated, ip.next_header())?;
                (ip.src_addr().into(), ip.dst_addr().into(), proto, upper)
            }
            _ => return None,
        };
        let (sport, dport) = ports(proto, upper);
        Some(Flow { src, dst, proto, sport, dport, oif, mark })
    }

    /// The flow of packets in the other direction. Only ports are swapped: type and code of ICMP, a GRE key
    /// and the type of a Mobility Header stay, as in the kernel's `decode_session4` and `decode_session6`.
    #[must_use]
    pub fn reversed(self) -> Flow {
        if !has_ports(self.proto) {
            return Flow { src: self.dst, dst: self.src, ..self };
        }
        let Flow { src, dst, sport, dport, .. } = self;
        Flow { src: dst, dst: src, sport: dport, dport: sport, ..self }
    }

    /// Family of the addresses.
    #[inline]
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.dst)
    }

    /// Whether the packet is an ICMP error that quotes a packet: the kernel's `icmp_err_packet`. Of ICMP
    /// destination unreachable and time exceeded (RFC 792), of ICMPv6 (RFC 4443) packet too big as well.
    #[inline]
    #[must_use]
    pub fn is_icmp_error(&self) -> bool {
        match (self.family(), self.proto) {
            (Family::Ipv4, Protocol::ICMP) => matches!(self.sport, 3 | 11),
            (Family::Ipv6, Protocol::ICMPV6) => matches!(self.sport, 1..=3),
            _ => false,
        }
    }
}

/// What the kernel's flow dissector finds after the IPv6 extension headers: the protocol, and its octets if
/// they have ports. It stops at AH, and after a Fragment header, behind which it reads nothing.
fn upper_layer_v6(packet: &[u8], next: Protocol) -> Option<(Protocol, &[u8])> {
    let mut kept = Kept { len: ipv6::HEADER_LEN, next_at: ipv6::NEXT_HEADER_OFFSET, next };
    for _ in 0..MAX_EXT_HEADERS {
        match kept.next {
            Protocol::HOP_BY_HOP | Protocol::ROUTING | Protocol::DEST_OPTS => {
                kept = kept.after_options(packet)?;
            }
            Protocol::FRAGMENT => {
                let header = packet.get(kept.len..kept.len + FRAGMENT_HEADER_LEN)?;
                return Some((Protocol(*header.first()?), &[]));
            }
            protocol => return Some((protocol, packet.get(kept.len..)?)),
        }
    }
    None
}

/// Whether a protocol has ports.
const fn has_ports(proto: Protocol) -> bool {
    matches!(proto, Protocol::TCP | Protocol::UDP | Protocol::UDPLITE | Protocol::SCTP)
}

/// What selectors compare as ports: the kernel's `xfrm_flowi_sport` and `xfrm_flowi_dport`.
fn ports(proto: Protocol, upper: &[u8]) -> (u16, u16) {
    match (proto, upper) {
        (_, &[a, b, c, d, ..]) if has_ports(proto) => {
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        (Protocol::ICMP | Protocol::ICMPV6, &[kind, code, ..]) => (kind.into(), code.into()),
        (Protocol::MOBILITY, &[_, _, kind, ..]) => (kind.into(), 0),
        // RFC 2890 §2: the key follows the checksum, if there is one.
        (Protocol::GRE, &[flags, _, _, _, ref rest @ ..]) if flags & 0x20 != 0 => {
            let at = if flags & 0x80 != 0 { 4 } else { 0 };
            match rest.get(at..) {
                Some(&[a, b, c, d, ..]) => (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
                _ => (0, 0),
            }
        }
        _ => (0, 0),
    }
}

/// What packets a policy or an SA is for: `xfrm_selector`. The default matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Destination.
    pub dst: Prefix,
    /// Source.
    pub src: Prefix,
    /// Destination port, and the bits of it that count.
    pub dport: (u16, u16),
    /// Source port, and the bits of it that count.
    pub sport: (u16, u16),
    /// Protocol; 0: any.
    pub proto: u8,
    /// ifindex of the output interface; 0: any.
    pub ifindex: u32,
}

impl Selector {
    /// The kernel's `xfrm_selector_match`.
    #[inline]
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let is_port = |(port, mask): (u16, u16), of: u16| (of ^ port) & mask == 0;
        self.dst.contains(flow.dst)
            && self.src.contains(flow.src)
            && is_port(self.dport, flow.dport)
            && is_port(self.sport, flow.sport)
            && (self.proto == 0 || self.proto == flow.proto.0)
            && (self.ifindex == 0 || self.ifindex == flow.oif)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        let (src, dst) = ("192.0.2.1".parse().unwrap(), "198.51.100.200".parse().unwrap());
        Flow { src, dst, proto: Protocol::TCP, sport: 0x1234, dport: 80, oif: 3, mark: 0 }
    }

    fn prefix(addr: &str, len: u8) -> Prefix {
        Prefix { addr: addr.parse().unwrap(), len }
    }

    #[test]
    fn each_field_of_a_selector_counts() {
        let flow = flow();
        let right = Selector {
            dst: prefix("198.51.100.0", 24),
            src: prefix("192.0.2.1", 32),
            dport: (80, 0xffff),
            sport: (0x1200, 0xff00),
            proto: 6,
            ifindex: 3,
        };
        assert!(right.matches(&flow) && Selector::default().matches(&flow));
        let wrong = [
            Selector { dst: prefix("198.51.100.0", 25), ..right },
            Selector { src: prefix("192.0.2.0", 32), ..right },
            Selector { dst: prefix("c633:6400::", 24), ..right },
            Selector { dport: (81, 0xffff), ..right },
            Selector { sport: (0x1300, 0xff00), ..right },
            Selector { proto: 17, ..right },
            Selector { ifindex: 4, ..right },
        ];
        for selector in wrong {
            assert!(!selector.matches(&flow), "{selector:?}");
        }
    }

    #[test]
    fn prefixes_of_every_length_end_where_they_should() {
        for len in 1..=32u8 {
            let last_bit = 1u32 << (32 - len);
            let inside = std::net::Ipv4Addr::from_bits(0x8000_0000 ^ (last_bit - 1));
            let outside = std::net::Ipv4Addr::from_bits(0x8000_0000 ^ last_bit);
            assert!(prefix("128.0.0.0", len).contains(inside.into()), "{len}");
            assert!(!prefix("128.0.0.0", len).contains(outside.into()), "{len}");
        }
        assert!(prefix("2001:db8::", 128).contains("2001:db8::".parse().unwrap()));
        assert!(!prefix("2001:db8::", 128).contains("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn flows_are_read_from_packets() {
        let mut packet = [0u8; 32];
        packet[..20].copy_from_slice(&[
            0x45, 0, 0, 32, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 200,
        ]);
        packet[20..24].copy_from_slice(&[0x12, 0x34, 0, 80]);
        assert_eq!(Flow::of_packet(&packet, 3, 0), Some(flow()));
        packet[9] = 1;
        let icmp = Flow::of_packet(&packet, 3, 0).unwrap();
        assert_eq!((icmp.sport, icmp.dport), (0x12, 0x34));
        packet[9] = 47;
        packet[20..32].copy_from_slice(&[0xa0, 0, 8, 0, 1, 1, 0, 0, 0xab, 0xcd, 0xef, 0x01]);
        let gre = Flow::of_packet(&packet, 3, 0).unwrap();
        assert_eq!((gre.sport, gre.dport), (0xabcd, 0xef01));
        packet[7] = 1;
        let fragment = Flow::of_packet(&packet, 3, 0).unwrap();
        assert_eq!((fragment.sport, fragment.dport), (0, 0));
        assert_eq!(Flow::of_packet(&packet[..19], 3, 0), None);
    }

    #[test]
    fn fragments_and_padding_have_no_ports() {
        let mut packet = [0u8; 32];
        packet[..24].copy_from_slice(&[
            0x45, 0, 0, 32, 0, 0, 0x20, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 200, 0x12,
            0x34, 0, 80,
        ]);
        let ports = |packet: &[u8]| Flow::of_packet(packet, 3, 0).map(|it| (it.sport, it.dport));
        assert_eq!(ports(&packet), Some((0, 0)), "a first fragment");
        packet[6] = 0;
        assert_eq!(ports(&packet), Some((0x1234, 80)));
        packet[3] = 20;
        assert_eq!(ports(&packet), Some((0, 0)), "padding behind the packet");

        let mut packet = [0u8; 56];
        packet[0] = 0x60;
        (packet[5], packet[6]) = (16, 44);
        packet[40] = 17;
        packet[48..52].copy_from_slice(&[0x12, 0x34, 0, 80]);
        assert_eq!(ports(&packet), Some((0, 0)), "an atomic fragment");
        (packet[6], packet[40]) = (60, 17);
        assert_eq!(ports(&packet), Some((0x1234, 80)));
        packet[5] = 8;
        assert_eq!(ports(&packet), Some((0, 0)), "padding behind the packet");
    }

    #[test]
    fn ah_hides_the_ports_behind_it_in_both_families() {
        let ah = [17, 4, 0, 0, 1, 2, 3, 4, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];
        let udp = [0x12, 0x34, 0, 80, 0, 8, 0, 0];
        let mut v6 = [0u8; 40];
        (v6[0], v6[5], v6[6]) = (0x60, 40, 60);
        let v6 = [&v6[..], &[51, 0, 1, 4, 0, 0, 0, 0], &ah, &udp].concat();
        let mut v4 = [0u8; 20];
        (v4[0], v4[3], v4[9]) = (0x45, 52, 51);
        let v4 = [&v4[..], &ah, &udp].concat();
        for packet in [v4, v6] {
            let flow = Flow::of_packet(&packet, 0, 0).unwrap();
            assert_eq!((flow.proto, flow.sport, flow.dport), (Protocol::AH, 0, 0));
        }
    }

    #[test]
    fn nothing_is_read_behind_a_fragment_header() {
        let mut packet = [0u8; 64];
        (packet[0], packet[5], packet[6]) = (0x60, 24, 44);
        (packet[40], packet[48], packet[49]) = (60, 17, 0);
        packet[56..60].copy_from_slice(&[0x12, 0x34, 0, 80]);
        let flow = Flow::of_packet(&packet, 0, 0).unwrap();
        assert_eq!((flow.proto, flow.dport), (Protocol::DEST_OPTS, 0), "an atomic fragment");
        assert_eq!(Flow::of_packet(&packet[..44], 0, 0), None, "half a Fragment header");
    }

    #[test]
    fn icmp_errors_are_those_that_the_kernel_looks_into() {
        let types = |dst: &str, proto: Protocol| {
            let flow = Flow { dst: dst.parse().unwrap(), proto, ..flow() };
            (0..=255u16).filter(|&sport| Flow { sport, ..flow }.is_icmp_error()).collect::<Vec<_>>()
        };
        assert_eq!(types("192.0.2.1", Protocol::ICMP), [3, 11]);
        assert_eq!(types("2001:db8::1", Protocol::ICMPV6), [1, 2, 3]);
        for other in [Protocol::UDP, Protocol::ICMPV6] {
            assert_eq!(types("192.0.2.1", other), [0u16; 0]);
        }
        assert_eq!(types("2001:db8::1", Protocol::ICMP), [0u16; 0]);
    }

    #[test]
    fn only_ports_are_swapped() {
        let swapped = flow().reversed();
        assert_eq!((swapped.src, swapped.sport, swapped.dport), (flow().dst, 80, 0x1234));
        for proto in [Protocol::ICMP, Protocol::ICMPV6, Protocol::GRE, Protocol::MOBILITY] {
            let swapped = Flow { proto, ..flow() }.reversed();
            assert_eq!((swapped.src, swapped.sport, swapped.dport), (flow().dst, 0x1234, 80));
        }
    }
}
