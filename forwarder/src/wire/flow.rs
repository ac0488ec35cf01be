//! The key of a flow and its hash, which selects among equal-cost paths, so that the packets of a flow
//! use one path and stay in order.

use super::octets::{array, slice};
use super::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, Protocol};

/// A flow as a router sees it. IPv4 addresses fill the low 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address, as a number.
    pub src: u128,
    /// Destination address, as a number.
    pub dst: u128,
    /// The upper-layer protocol; in IPv6, the one after the extension headers.
    pub protocol: Protocol,
    /// Source port in the high half, destination port in the low one; the SPI for ESP and AH. Zero for
    /// protocols without ports, and for every fragment: later fragments do not contain them, and all
    /// fragments of a packet must use one path.
    pub ports: u32,
    /// IPv6 flow label; zero for IPv4.
    pub flow_label: u32,
}

/// The kernel's `fib_multipath_hash_fields`, for `fib_multipath_hash_policy` 3: FIB_MULTIPATH_HASH_FIELD_*.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashFields(pub u32);

impl HashFields {
    /// Source and destination.
    pub const ADDRESSES: Self = HashFields(0x3);
    /// Source, destination, protocol and flow label.
    pub const L3_IPV6: Self = HashFields(0xf);

    /// Whether there are fields of the packet inside a tunnel.
    #[must_use]
    pub fn have_inner(self) -> bool {
        const OUTSIDE: u32 = 0x3f;
        self.0 & !OUTSIDE != 0
    }
}

impl Default for HashFields {
    /// The kernel's default: addresses and protocol.
    fn default() -> Self {
        HashFields(0x7)
    }
}

impl FlowKey {
    /// Addresses, protocol and ports: the kernel's `fib_multipath_hash_policy` 1.
    #[inline]
    pub fn l4_ipv4<T: AsRef<[u8]>>(packet: &Ipv4Packet<T>) -> Self {
        let protocol = packet.protocol();
        let ports = if packet.is_fragment() { 0 } else { ports(protocol, packet.payload()) };
        Self { protocol, ports, ..Self::addrs_ipv4(packet) }
    }

    /// Addresses, protocol, ports and no flow label: the kernel's `fib_multipath_hash_policy` 1.
    #[inline]
    pub fn l4_ipv6<T: AsRef<[u8]>>(packet: &Ipv6Packet<T>) -> Self {
        let key = Self { flow_label: 0, ..Self::addrs_ipv6(packet) };
        let Ok(upper) = packet.upper_layer() else { return key };
        let end = packet.total_len();
        let ports = match upper.fragment {
            // An atomic fragment (RFC 6946) is a whole packet.
            Some(fragment) if fragment.offset != 0 || fragment.more_frags => 0,
            _ => ports(upper.protocol, slice(packet.as_octets(), upper.offset, end)),
        };
        Self { protocol: upper.protocol, ports, ..key }
    }

    /// Addresses only: the kernel's `fib_multipath_hash_policy` 0, its default. For an ICMP error the key
    /// is that of the quoted packet, as in `ip_multipath_l3_keys`.
    #[inline]
    pub fn l3_ipv4<T: AsRef<[u8]>>(packet: &Ipv4Packet<T>) -> Self {
        if packet.protocol() == Protocol::ICMP
            && packet.is_first_fragment()
            && let Some(quoted) = Icmpv4Packet::new_unchecked(packet.payload()).quoted()
        {
            return Self::addrs_ipv4(&quoted);
        }
        Self::addrs_ipv4(packet)
    }

    /// Addresses, flow label and protocol: the kernel's `fib_multipath_hash_policy` 0, its default. For
    /// an ICMPv6 error the key is that of the quoted packet, as in `ip6_multipath_l3_keys`.
    #[inline]
    pub fn l3_ipv6<T: AsRef<[u8]>>(packet: &Ipv6Packet<T>) -> Self {
        if packet.next_header() == Protocol::ICMPV6
            && let Some(quoted) = Icmpv6Packet::new_unchecked(packet.payload()).quoted()
        {
            return Self::addrs_ipv6(&quoted);
        }
        Self::addrs_ipv6(packet)
    }

    /// The fields of an IPv4 packet that are in a set.
    #[must_use]
    pub fn of_fields_ipv4<T: AsRef<[u8]>>(packet: &Ipv4Packet<T>, fields: HashFields) -> Self {
        Self::l4_ipv4(packet).with_only(fields)
    }

    /// The fields of an IPv6 packet that are in a set.
    #[must_use]
    pub fn of_fields_ipv6<T: AsRef<[u8]>>(packet: &Ipv6Packet<T>, fields: HashFields) -> Self {
        let flow_label = packet.flow_label();
        Self { flow_label, ..Self::l4_ipv6(packet) }.with_only(fields)
    }

    fn with_only(self, HashFields(fields): HashFields) -> Self {
        let has = |bit: u32| fields >> bit & 1 != 0;
        let port_mask = (u32::from(has(4)) * 0xffff_0000) | (u32::from(has(5)) * 0xffff);
        Self {
            src: if has(0) { self.src } else { 0 },
            dst: if has(1) { self.dst } else { 0 },
            protocol: if has(2) { self.protocol } else { Protocol(0) },
            flow_label: if has(3) { self.flow_label } else { 0 },
            ports: self.ports & port_mask,
        }
    }

    #[inline]
    fn addrs_ipv4<T: AsRef<[u8]>>(packet: &Ipv4Packet<T>) -> Self {
        Self {
            src: u128::from(packet.src_addr().to_bits()),
            dst: u128::from(packet.dst_addr().to_bits()),
            protocol: Protocol(0),
            ports: 0,
            flow_label: 0,
        }
    }

    #[inline]
    fn addrs_ipv6<T: AsRef<[u8]>>(packet: &Ipv6Packet<T>) -> Self {
        Self {
            src: packet.src_addr().to_bits(),
            dst: packet.dst_addr().to_bits(),
            protocol: packet.next_header(),
            ports: 0,
            flow_label: packet.flow_label(),
        }
    }

    /// A hash that depends on every bit of the key and of `seed`, and on nothing else: the same in every
    /// run and on every machine. Not secure against someone who knows the seed.
    ///
    /// All 32 bits are equally well distributed, the high ones too, so that `hash * weights >> 32` can be
    /// used to select by weight.
    #[inline]
    #[must_use]
    pub fn hash(&self, seed: u64) -> u32 {
        let mut hash = seed;
        if self.src >> 32 == 0 && self.dst >> 32 == 0 {
            hash = mix(hash, (self.src as u64) << 32 | self.dst as u64);
        } else {
            for half in [self.src >> 64, self.src, self.dst >> 64, self.dst] {
                hash = mix(hash, half as u64);
            }
        }
        hash = mix(hash, u64::from(self.ports) << 32 | u64::from(self.flow_label));
        hash = mix(hash, u64::from(self.protocol.0));
        (hash ^ hash >> 32) as u32
    }
}

/// Mixes a word into the hash: a 64 × 64 → 128 bit multiplication, folded, lets every bit of the input
/// affect every bit of the output.
#[inline]
fn mix(hash: u64, word: u64) -> u64 {
    // The fractional parts of the golden ratio and of the square root of three, made odd: any dense odd
    // numbers would be suitable.
    const ADD: u64 = 0x9e37_79b9_7f4a_7c15;
    const MULTIPLY: u64 = 0xbb67_ae85_84ca_a73b;
    let product = u128::from((hash ^ word).wrapping_add(ADD)) * u128::from(MULTIPLY);
    (product as u64 ^ (product >> 64) as u64).wrapping_add(hash)
}

/// The four octets found by the kernel's `proto_ports_offset`.
#[inline]
fn ports(protocol: Protocol, payload: &[u8]) -> u32 {
    let octets = match protocol {
        Protocol::TCP
        | Protocol::UDP
        | Protocol::DCCP
        | Protocol::ESP
        | Protocol::SCTP
        | Protocol::UDPLITE => 0..4,
        Protocol::AH => 4..8,
        _ => return 0,
    };
    u32::from_be_bytes(array(payload, octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{icmpv4, ipv6_ext};

    fn ipv4(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 20];
        octets.extend_from_slice(payload);
        let total_len = octets.len() as u16;
        let mut packet = Ipv4Packet::new_unchecked(&mut octets);
        packet.set_version_and_header_len(20);
        packet.set_total_len(total_len);
        packet.set_protocol(protocol);
        packet.set_src_addr([198, 18, 1, 2].into());
        packet.set_dst_addr([198, 18, 2, 2].into());
        octets
    }

    fn ipv6(next_header: Protocol, payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; 40];
        octets.extend_from_slice(payload);
        let mut packet = Ipv6Packet::new_unchecked(&mut octets);
        packet.set_version_class_flow(0, 0x12345);
        packet.set_payload_len(payload.len() as u16);
        packet.set_next_header(next_header);
        packet.set_src_addr("2001:db8:1::2".parse().unwrap());
        packet.set_dst_addr("2001:db8:2::2".parse().unwrap());
        octets
    }

    const PORTS: [u8; 8] = [0x30, 0x39, 0, 53, 0, 8, 0, 0];

    #[test]
    fn ports_belong_to_the_flow() {
        let octets = ipv4(Protocol::UDP, &PORTS);
        let key = FlowKey::l4_ipv4(&Ipv4Packet::new_unchecked(&octets));
        assert_eq!((key.src, key.dst), (0xc612_0102, 0xc612_0202));
        assert_eq!((key.protocol, key.ports), (Protocol::UDP, 0x3039_0035));
        let octets = ipv4(Protocol::AH, &PORTS);
        assert_eq!(FlowKey::l4_ipv4(&Ipv4Packet::new_unchecked(&octets)).ports, 0x0008_0000);
        let octets = ipv4(Protocol::ICMP, &PORTS);
        assert_eq!(FlowKey::l4_ipv4(&Ipv4Packet::new_unchecked(&octets)).ports, 0);
    }

    #[test]
    fn only_the_fields_of_a_set_count() {
        let octets = ipv4(Protocol::UDP, &PORTS);
        let ipv4 = Ipv4Packet::new_unchecked(&octets);
        let key = |fields| FlowKey::of_fields_ipv4(&ipv4, HashFields(fields));
        assert_eq!(key(0x3f), FlowKey::l4_ipv4(&ipv4));
        let none = key(0);
        assert_eq!((none.src, none.dst, none.protocol, none.ports), (0, 0, Protocol(0), 0));
        assert_eq!((key(1).src, key(2).dst), (0xc612_0102, 0xc612_0202));
        assert_eq!(
            (key(4).protocol, key(0x10).ports, key(0x20).ports),
            (Protocol::UDP, 0x3039_0000, 53)
        );
        let octets = ipv6(Protocol::UDP, &PORTS);
        let ipv6 = Ipv6Packet::new_unchecked(&octets);
        let labels =
            [8, 0x37].map(|fields| FlowKey::of_fields_ipv6(&ipv6, HashFields(fields)).flow_label);
        assert_eq!(labels, [0x12345, 0]);
        assert!(HashFields(0x40).have_inner() && !HashFields(0x3f).have_inner());
    }

    #[test]
    fn all_fragments_of_a_packet_are_one_flow() {
        let mut octets = ipv4(Protocol::UDP, &PORTS);
        let mut key = |more_frags, offset| {
            let mut packet = Ipv4Packet::new_unchecked(&mut octets);
            packet.set_frag(false, more_frags, offset);
            FlowKey::l4_ipv4(&packet)
        };
        assert_eq!(key(true, 0), key(false, 1480));
        assert_ne!(key(true, 0), key(false, 0));

        let key = |offset, more_frags| {
            let mut payload = [0; 16];
            ipv6_ext::FragmentHeader::new_unchecked(&mut payload[..8]).set(
                Protocol::UDP,
                offset,
                more_frags,
                7,
            );
            payload[8..].copy_from_slice(&PORTS);
            let octets = ipv6(Protocol::FRAGMENT, &payload);
            FlowKey::l4_ipv6(&Ipv6Packet::new_unchecked(&octets))
        };
        assert_eq!(key(0, true), key(1448, false));
        assert_eq!(key(0, false).ports, 0x3039_0035);
    }

    #[test]
    fn ipv6_ports_are_found_behind_extension_headers() {
        let payload = [&[17, 0, 1, 4, 0, 0, 0, 0], &PORTS[..]].concat();
        let octets = ipv6(Protocol::DEST_OPTS, &payload);
        let key = FlowKey::l4_ipv6(&Ipv6Packet::new_unchecked(&octets));
        assert_eq!((key.protocol, key.ports), (Protocol::UDP, 0x3039_0035));
        assert_eq!(key.dst, 0x2001_0db8_0002_0000_0000_0000_0000_0002);
    }

    #[test]
    fn an_icmp_error_takes_the_path_of_the_quoted_packet() {
        let quoted = ipv4(Protocol::UDP, &PORTS);
        let mut error = [&[0; 8], &quoted[..]].concat();
        icmpv4::write_header(
            &mut error,
            icmpv4::Icmpv4Type::TIME_EXCEEDED,
            0,
            icmpv4::Rest::Unused,
        )
        .unwrap();
        let mut octets = ipv4(Protocol::ICMP, &error);
        Ipv4Packet::new_unchecked(&mut octets).set_src_addr([10, 0, 0, 1].into());
        assert_eq!(
            FlowKey::l3_ipv4(&Ipv4Packet::new_unchecked(&octets)),
            FlowKey::l3_ipv4(&Ipv4Packet::new_unchecked(&quoted))
        );
    }

    #[test]
    fn the_hash_is_the_same_everywhere_and_depends_on_the_seed() {
        let octets = ipv4(Protocol::UDP, &PORTS);
        let key = FlowKey::l4_ipv4(&Ipv4Packet::new_unchecked(&octets));
        assert_eq!(key.hash(0), key.hash(0));
        assert_ne!(key.hash(0), key.hash(1));
    }

    /// For flows that differ in one port only, as on a busy server, each of eight equal paths gets its
    /// share within a tenth; the same for adjacent addresses.
    #[test]
    fn flows_spread_evenly_by_their_high_bits_and_low_bits() {
        let octets = ipv4(Protocol::TCP, &PORTS);
        let base = FlowKey::l4_ipv4(&Ipv4Packet::new_unchecked(&octets));
        let octets = ipv6(Protocol::TCP, &PORTS);
        let base_ipv6 = FlowKey::l4_ipv6(&Ipv6Packet::new_unchecked(&octets));
        let vary: [&dyn Fn(u32) -> FlowKey; 4] = [
            &|n| FlowKey { ports: n << 16 | 443, ..base },
            &|n| FlowKey { src: base.src + u128::from(n), ..base },
            &|n| FlowKey { dst: base_ipv6.dst + u128::from(n), ..base_ipv6 },
            &|n| FlowKey { dst: base_ipv6.dst + (u128::from(n) << 64), ..base_ipv6 },
        ];
        for (which, key) in vary.iter().enumerate() {
            let (mut by_high, mut by_low) = ([0u32; 8], [0u32; 8]);
            for n in 0..32_768 {
                let hash = key(n).hash(42);
                by_high[(hash >> 29) as usize] += 1;
                by_low[(hash & 7) as usize] += 1;
            }
            for count in by_high.into_iter().chain(by_low) {
                assert!((3_686..=4_506).contains(&count), "{which}: {by_high:?} {by_low:?}");
            }
        }
    }
}
