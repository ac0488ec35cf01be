//! The key of a flow: one direction of a tracked connection.

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
    /// Source port in network byte order, or what [`TupleKind`] has instead.
    pub source_port: u16,
    /// Destination port, in the same way.
    pub destination_port: u16,
    /// One that has a [`TupleKind`].
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// 0.
    pub reserved: u16,
}

/// What the tuples of a protocol's connections have besides addresses (`nf_ct_get_tuple` of the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TupleKind {
    /// Source and destination port: TCP, UDP.
    Ports,
    /// ICMP or ICMPv6 echo: the identifier instead of the source port, type and code instead of the destination port.
    Echo,
    /// Nothing: the packets of tunnels, IP in IP, GRE of version 0, ESP, AH. GRE has 0 as both of its keys.
    Addresses,
}

impl TupleKind {
    /// That of a protocol in packets of a family (4 or 6). `None`: its connections are the kernel's.
    ///
    /// AH of IPv6 is an extension header to the kernel, which tracks what is behind it.
    #[inline(always)]
    #[must_use]
    pub const fn of(protocol: u8, family: u8) -> Option<TupleKind> {
        match (protocol, family) {
            (6 | 17, _) => Some(TupleKind::Ports),
            (1, 4) | (58, 6) => Some(TupleKind::Echo),
            (4 | 41 | 47 | 50, _) | (51, 4) => Some(TupleKind::Addresses),
            _ => None,
        }
    }

    /// The types of echo request and echo reply of a family, whose code is 0.
    #[inline(always)]
    #[must_use]
    pub const fn echo_types(family: u8) -> [u8; 2] {
        if family == 4 { [8, 0] } else { [128, 129] }
    }
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

    /// The words of which [`FlowHash::place`] makes a place.
    #[must_use]
    pub fn words(self) -> [u64; FLOW_WORDS] {
        let octets = self.to_bytes();
        let mut out = [0; FLOW_WORDS];
        out.iter_mut()
            .zip(octets.as_chunks().0)
            .for_each(|(to, word)| *to = u64::from_ne_bytes(*word));
        out
    }

    /// The octets, one after the other.
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

/// Length of a [`FlowKey`] in 64-bit words.
pub const FLOW_WORDS: usize = size_of::<FlowKey>() / size_of::<u64>();
/// Slots of a [`FlowBucket`].
pub const FLOW_SLOTS: usize = 16;

/// Slots of the table of flows: a cache line. A slot has the mark of a key ([`FlowPlace::mark`]), or 0: it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowBucket {
    /// The slots. Userspace writes them while the program reads them.
    pub slots: [u32; FLOW_SLOTS],
}

/// How keys are hashed, and the number of buckets: in the place of the first [`FlowBucket`].
///
/// The hash is NH (RFC 4418, section 5.2): nobody who does not know the secret can make keys whose marks and buckets
/// are the same more often than by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowHash {
    /// Random numbers.
    pub secret: [u32; 2 * FLOW_WORDS],
    /// The number of buckets, a power of two, less 1.
    pub mask: u32,
    /// 0.
    pub reserved: [u32; 5],
}

/// Where the mark of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPlace {
    /// Part of the hash, never 0. Another key may have the same.
    pub mark: u32,
    /// It is in one of these entries of the array.
    pub buckets: [u32; 2],
}

impl FlowPlace {
    /// The slot in which the mark is if that was free. A program that looks there first need not wait for the bucket before it
    /// reads what belongs to the slot.
    #[inline(always)]
    #[must_use]
    pub const fn home(&self) -> usize {
        (self.mark >> (u32::BITS - FLOW_SLOTS.ilog2())) as usize
    }
}

impl FlowHash {
    /// The place of a key with these words.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, words: &[u64; FLOW_WORDS]) -> FlowPlace {
        self.place_of(self.hash(words))
    }

    /// The hash of a key with these words: the same for all tables with this secret.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, words: &[u64; FLOW_WORDS]) -> u64 {
        let mut hash = 0u64;
        for (word, secret) in words.iter().zip(self.secret.as_chunks::<2>().0) {
            let low = (*word as u32).wrapping_add(secret[0]);
            let high = ((*word >> 32) as u32).wrapping_add(secret[1]);
            hash = hash.wrapping_add(u64::from(low).wrapping_mul(u64::from(high)));
        }
        // Every bit of the sum changes those that select bucket and mark.
        hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ hash >> 29
    }

    /// The place of a key with this hash.
    #[inline(always)]
    #[must_use]
    pub fn place_of(&self, hash: u64) -> FlowPlace {
        let first = hash as u32 & self.mask;
        let second = (hash >> 14) as u32 & self.mask;
        FlowPlace { mark: (hash >> 32) as u32 | 1, buckets: [first + 1, second + 1] }
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
    fn the_hash_has_the_size_of_a_bucket_and_spreads_keys() {
        assert_eq!((size_of::<FlowHash>(), size_of::<FlowBucket>()), (64, 64));
        let secret = core::array::from_fn(|at| 0x1234_5677u32.wrapping_mul(2 * at as u32 + 3));
        let hash = FlowHash { secret, mask: 1023, reserved: [0; 5] };
        let mut counts = [0u32; 1025];
        for n in 0..8 * 1024u32 {
            let from = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
            let key = FlowKey::new(from, address("192.0.2.1"), 1024, 53, 17).expect("IPv4");
            let place = hash.place(&key.words());
            assert!(place.mark != 0 && place.buckets.iter().all(|at| (1..=1024).contains(at)));
            place.buckets.iter().for_each(|at| counts[*at as usize] += 1);
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (2..48).contains(count)), "{counts:?}");
    }

    #[test]
    fn protocols_have_the_tuples_of_the_kernel() {
        use TupleKind::{Addresses, Echo, Ports};
        let expected = |protocol: u8, family: u8| match protocol {
            6 | 17 => Some(Ports),
            4 | 41 | 47 | 50 => Some(Addresses),
            1 if family == 4 => Some(Echo),
            51 if family == 4 => Some(Addresses),
            58 if family == 6 => Some(Echo),
            _ => None,
        };
        for (protocol, family) in (0..=255).flat_map(|protocol| [(protocol, 4), (protocol, 6)]) {
            let kind = TupleKind::of(protocol, family);
            assert_eq!(kind, expected(protocol, family), "{protocol} of IPv{family}");
        }
    }

    #[test]
    fn addresses_of_two_families_have_no_key() {
        let (v4, v6) = (address("192.0.2.1"), address("::ffff:192.0.2.1"));
        assert_eq!(FlowKey::new(v4, v6, 1, 2, 17), None);
        assert_eq!(FlowKey::new(v6, v4, 1, 2, 17), None);
        assert_ne!(FlowKey::new(v6, v6, 1, 2, 17), FlowKey::new(v4, v4, 1, 2, 17));
    }
}
