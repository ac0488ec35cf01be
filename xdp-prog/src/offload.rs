//! Flow offload: the flows whose packets the XDP program forwards by itself, as userspace has decided.
//!
//! A packet's key ([`FlowKey`](crate::FlowKey)) is looked up by a mark in [`MAP_MARKS`], whose position is the number
//! of its [`FlowEntry`]. The entry holds while the sum of the epochs that it depends on is what it was when userspace
//! decided: an epoch is only ever incremented, so one store voids all entries that depend on it.
//!
//! Userspace writes the maps through memory mappings while the program reads them. It writes an entry before its
//! mark, never changes an entry that has a mark, and uses the place of a removed one again after [`REST_NS`] at the
//! earliest; the program reads the mark again after it has read the entry.

use crate::flow::FLOW_WORDS;
use crate::{FLOW_SLOTS, FlowKey, MacWords, TupleKind, VlanKey};

/// ARRAY of [`FlowBucket`](crate::FlowBucket), BPF_F_MMAPABLE, whose first entry is a
/// [`FlowHash`](crate::FlowHash): the marks of offloaded flows.
pub const MAP_MARKS: &str = "FR_OFF_MARKS";
/// ARRAY of [`FlowEntry`], BPF_F_MMAPABLE. The entry of the mark in slot `s` of bucket `b` of [`MAP_MARKS`] (from 1 on)
/// has the number `(b - 1) * FLOW_SLOTS + s`.
pub const MAP_ENTRIES: &str = "FR_OFF_FLOWS";
/// ARRAY of [`Rewrite`], BPF_F_MMAPABLE, by the same number: those of IPv6.
pub const MAP_REWRITES: &str = "FR_OFF_NAT";
/// ARRAY of [`NextHop`], BPF_F_MMAPABLE.
pub const MAP_NEXT_HOPS: &str = "FR_OFF_HOPS";
/// ARRAY of one [`Epochs`], BPF_F_MMAPABLE.
pub const MAP_EPOCHS: &str = "FR_OFF_EPOCHS";
/// DEVMAP, key: number of a port, value: its ifindex.
pub const MAP_TX_PORTS: &str = "FR_TX_PORTS";

/// Maximum number of offloaded flows, each of which is one direction. The loader lowers it.
pub const OFFLOADED_MAX: usize = 1 << 21;
/// Entries of [`MAP_MARKS`].
pub const MARK_BUCKETS_MAX: usize = OFFLOADED_MAX / FLOW_SLOTS + 1;
/// Entries of [`MAP_NEXT_HOPS`].
pub const NEXT_HOPS_MAX: usize = 4096;
/// Ports in [`MAP_TX_PORTS`].
pub const TX_PORTS_MAX: usize = 1024;
/// How long the place of a removed entry is not used again, in nanoseconds. The program runs for some microseconds,
/// with interrupts of a virtual machine longer.
pub const REST_NS: u64 = 200_000_000;

/// What is done with the packets of a flow: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowEntry {
    /// The words of the packets' [`FlowKey`](crate::FlowKey). Wide entries ([`SharedSettings::WIDE4`]) have ports 0, and
    /// instead of the protocol what they are wide in: see [`Width`]. The last 16 bits (`reserved`) are the number of the
    /// interface that the packets come from, a port or a VLAN of one; they are part of what is hashed if the entry is
    /// wide.
    ///
    /// Of IPv4, the second and the fourth word, which are 0 in a key, are [`Rewrite::inline4`], so that the program reads
    /// one cache line less.
    ///
    /// [`SharedSettings::WIDE4`]: crate::SharedSettings::WIDE4
    pub key: [u64; FLOW_WORDS],
    /// The sum of the epochs that it depends on: see [`Epochs`].
    pub basis: u32,
    /// Number of the [`NextHop`].
    pub next_hop: u16,
    /// The longest packet, octets from the IP header on; bit [`FlowEntry::HAS_REWRITE`].
    pub mtu: u16,
    /// The program adds [`FlowEntry::ONE_PACKET`] and the packet's length, in octets from the IP header on, atomically
    /// and modulo 2^64. The upper part is therefore not the number of packets once octets have carried into it; use
    /// the difference between two readings: see [`FlowEntry::counted`].
    pub count: u64,
    /// TCP: the acknowledgement number of the last segment, and the sequence number after it. The program writes it.
    pub seqs: u64,
}

impl FlowEntry {
    /// In [`FlowEntry::mtu`]: packets are rewritten as the [`Rewrite`] of the same number says.
    pub const HAS_REWRITE: u16 = 1 << 15;
    /// See [`FlowEntry::count`].
    pub const PACKETS_BITS: u32 = 24;
    /// One packet in [`FlowEntry::count`].
    pub const ONE_PACKET: u64 = 1 << (u64::BITS - FlowEntry::PACKETS_BITS);

    /// Packets and octets between two readings of [`FlowEntry::count`]: the lower 40 bits of the difference are the
    /// octets, the upper 24 the packets. Exact if there were fewer than 2^40 octets and 2^24 packets between them.
    #[must_use]
    pub const fn counted(before: u64, now: u64) -> (u64, u64) {
        let difference = now.wrapping_sub(before);
        (difference / FlowEntry::ONE_PACKET, difference % FlowEntry::ONE_PACKET)
    }
}

/// The packets that a wide entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Those with these addresses.
    Addresses,
    /// Those from this address to the prefix that the destination is in.
    ToPrefix,
    /// Those from one prefix to another.
    Prefixes,
}

impl Width {
    /// Length of the prefixes, bits: those by which there are epochs.
    pub const PREFIX4: u8 = 24;
    /// The same of IPv6.
    pub const PREFIX6: u8 = 48;

    /// In place of the protocol in a key.
    #[inline(always)]
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Width::Addresses => 0,
            // Use for experimentation, and reserved (IANA): no flow with ports has them.
            Width::ToPrefix => 254,
            Width::Prefixes => 255,
        }
    }

    /// The width that a key has, by its protocol. `None`: it is not wide.
    #[must_use]
    pub const fn of(protocol: u8) -> Option<Width> {
        match protocol {
            0 => Some(Width::Addresses),
            254 => Some(Width::ToPrefix),
            255 => Some(Width::Prefixes),
            _ => None,
        }
    }

    /// Its bit in [`Epochs::widths`].
    #[inline(always)]
    #[must_use]
    pub const fn bit(self) -> u32 {
        match self {
            Width::Addresses => 1,
            Width::ToPrefix => 2,
            Width::Prefixes => 4,
        }
    }
}

/// What is written into the packets of a translated flow. Addresses and ports in memory order, as in a
/// [`FlowKey`](crate::FlowKey); those that do not change are the packets' own.
///
/// The deltas are RFC 1624's ~m + m' of the words that change: a checksum HC becomes ~(~HC + delta). They are sums over
/// those ends (source, destination) of which address or port differ: of the complement of each old word, and of each
/// new word, folded to 16 bits in memory order (RFC 1071 §2(B): sums do not depend on the byte order). The sum of such
/// an end is never 0, so its delta is 0xffff rather than 0, and the checksum never becomes 0xffff; an end that does not
/// differ adds nothing.
///
/// By [`TupleKind`]: of echo, the source port is the identifier, which is written and always adds to the delta, as
/// `icmp_manip_pkt` of the kernel does; addresses do only with the pseudo-header of ICMPv6. Without ports, nothing but the
/// addresses is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Rewrite {
    /// Source address.
    pub source: [u16; 8],
    /// Destination address.
    pub destination: [u16; 8],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// What the one's complement sum of the IPv4 header grows by: addresses. IPv6: 0.
    pub header_delta: u16,
    /// What the one's complement sum of the transport protocol grows by.
    pub transport_delta: u16,
    /// 0.
    pub reserved: [u16; 12],
}

impl Rewrite {
    /// Of packets with the key `from`, which become packets with the key `to`, of the same family and protocol.
    #[must_use]
    pub fn new(from: &FlowKey, to: &FlowKey) -> Rewrite {
        let ends = [
            (from.source, from.source_port, to.source, to.source_port),
            (from.destination, from.destination_port, to.destination, to.destination_port),
        ];
        let (mut of_addresses, mut of_ports) = (0, 0);
        let kind = TupleKind::of(from.protocol, from.family);
        let has_ports = matches!(kind, Some(TupleKind::Ports));
        for (old, old_port, new, new_port) in ends {
            if old == new && (!has_ports || old_port == new_port) {
                continue;
            }
            of_addresses += old.iter().zip(new).map(|(old, new)| delta(*old, new)).sum::<u64>();
            of_ports += if has_ports { delta(old_port, new_port) } else { 0 };
        }
        let of_transport = match kind {
            Some(TupleKind::Ports) => of_addresses + of_ports,
            Some(TupleKind::Echo) => {
                let of_pseudo_header = if from.family == 4 { 0 } else { of_addresses };
                of_pseudo_header + delta(from.source_port, to.source_port)
            }
            Some(TupleKind::Addresses) | None => 0,
        };
        Rewrite {
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
            header_delta: if from.family == 4 { fold(of_addresses) } else { 0 },
            transport_delta: fold(of_transport),
            reserved: [0; 12],
        }
    }

    /// That of IPv4 as the second and the fourth word of [`FlowEntry::key`]: source and destination address; ports,
    /// `header_delta` and `transport_delta`; 16-bit words from the lowest bits on.
    #[must_use]
    pub fn inline4(&self) -> [u64; 2] {
        let quad = |words: [u16; 4]| {
            words.iter().rev().fold(0, |quad, word| quad << 16 | u64::from(*word))
        };
        let ([from0, from1, ..], [to0, to1, ..]) = (self.source, self.destination);
        let [from, to] = [self.source_port, self.destination_port];
        [quad([from0, from1, to0, to1]), quad([from, to, self.header_delta, self.transport_delta])]
    }

    /// The octets, one after the other.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut out = [0; 64];
        let others =
            [self.source_port, self.destination_port, self.header_delta, self.transport_delta];
        let words = self.source.iter().chain(&self.destination).chain(&others);
        for (to, word) in out.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

/// ~m + m'.
fn delta(old: u16, new: u16) -> u64 {
    u64::from(!old) + u64::from(new)
}

/// Folds a one's complement sum of 16-bit words, of which there are fewer than 2^16, to 16 bits. 0 only for a sum of 0.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Where packets leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct NextHop {
    /// The neighbour's MAC address.
    pub destination: MacWords,
    /// The outgoing port's.
    pub source: MacWords,
    /// Number of the port in [`MAP_TX_PORTS`].
    pub port: u32,
    /// Incremented when any of the other fields is no longer valid: part of the sum in [`FlowEntry::basis`].
    pub epoch: u32,
    /// TPID and VID of the tags that frames get, the outermost first, as in a frame with PCP and DEI 0; 0: none, or no
    /// second one. PCP and DEI are those of the received frame's tags.
    pub tags: VlanKey,
    /// 0.
    pub reserved: u32,
}

/// Number of the epochs of one kind.
pub const EPOCHS: usize = 1 << 16;

/// What entries depend on. A change of the route of a prefix increments the epochs of all addresses in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Epochs {
    /// Everything that has no epoch of its own: interfaces, settings, policy rules, the ruleset.
    pub global: u32,
    /// The bits of each [`Width`] that entries have: others are not looked up.
    pub widths: u32,
    /// 0.
    pub reserved: [u32; 14],
    /// IPv4 prefixes shorter than 24 bits, by the first 16 bits of an address.
    pub v4_short: [u32; EPOCHS],
    /// IPv4 prefixes of 24 bits and more, by [`epoch_of`] of the first 24 bits.
    pub v4_long: [u32; EPOCHS],
    /// IPv6 prefixes of 32 to 47 bits, by [`epoch_of`] of the first 32 bits.
    pub v6_short: [u32; EPOCHS],
    /// IPv6 prefixes of 48 bits and more, by [`epoch_of`] of the first 48 bits.
    pub v6_long: [u32; EPOCHS],
}

/// The epoch of the first bits of an address, as a number.
#[inline(always)]
#[must_use]
pub const fn epoch_of(bits: u64) -> usize {
    (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
}

/// Positions in [`Epochs::v4_short`] and [`Epochs::v4_long`] of an IPv4 address: its first and its second half, as
/// numbers.
#[inline(always)]
#[must_use]
pub const fn epochs4([high, low]: [u16; 2]) -> [usize; 2] {
    [high as usize, epoch_of((high as u64) << 8 | (low >> 8) as u64)]
}

/// Positions in [`Epochs::v6_short`] and [`Epochs::v6_long`] of an IPv6 address: its first three 16-bit words, as
/// numbers.
#[inline(always)]
#[must_use]
pub const fn epochs6([a, b, c]: [u16; 3]) -> [usize; 2] {
    let short = (a as u64) << 16 | b as u64;
    [epoch_of(short), epoch_of(short << 16 | c as u64)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn the_layouts_are_those_of_cache_lines() {
        assert_eq!((size_of::<FlowEntry>(), size_of::<Rewrite>()), (64, 64));
        assert_eq!(size_of::<NextHop>(), 32);
        assert_eq!(offset_of!(FlowEntry, basis), 40);
        assert_eq!((offset_of!(FlowEntry, next_hop), offset_of!(FlowEntry, mtu)), (44, 46));
        assert_eq!((offset_of!(FlowEntry, count), offset_of!(FlowEntry, seqs)), (48, 56));
        assert_eq!((offset_of!(NextHop, port), offset_of!(NextHop, epoch)), (12, 16));
        assert_eq!(offset_of!(NextHop, tags), 20);
        assert_eq!(offset_of!(Rewrite, source_port), 32);
        assert_eq!(size_of::<Epochs>(), 64 + 4 * 4 * EPOCHS);
        assert_eq!(offset_of!(Epochs, v4_short), 64);
    }

    #[test]
    fn a_rewrite_of_ipv4_fits_in_the_words_that_are_0_in_a_key() {
        let rewrite = Rewrite {
            source: [1, 2, 0, 0, 0, 0, 0, 0],
            destination: [3, 4, 0, 0, 0, 0, 0, 0],
            source_port: 5,
            destination_port: 6,
            header_delta: 7,
            transport_delta: 8,
            reserved: [0; 12],
        };
        assert_eq!(rewrite.inline4(), [0x0004_0003_0002_0001, 0x0008_0007_0006_0005]);
    }

    #[test]
    fn what_is_added_to_checksums_depends_on_the_protocol() {
        let key = |from: &str, to: &str, ports: [u16; 2], protocol| {
            let [from, to] = [from, to].map(|address| address.parse().expect("an address"));
            FlowKey::new(from, to, ports[0], ports[1], protocol).expect("one family")
        };
        let deltas = |from: FlowKey, to: FlowKey| {
            let Rewrite { header_delta, transport_delta, .. } = Rewrite::new(&from, &to);
            (header_delta, transport_delta)
        };
        let sum = |words: &[[u16; 2]]| {
            fold(words.iter().map(|[old, new]| delta(old.to_be(), new.to_be())).sum())
        };
        let addresses = [[0x0a00, 0xcb00], [0x0001, 0x7101]];
        let (own, public) = ("10.0.0.1", "203.0.113.1");
        let of = |ports: [[u16; 2]; 2], protocol| {
            deltas(
                key(own, "192.0.2.1", ports[0], protocol),
                key(public, "192.0.2.1", ports[1], protocol),
            )
        };
        let with = |port: [u16; 2]| sum(&[addresses[0], addresses[1], port]);
        assert_eq!(of([[5, 53], [1024, 53]], 17), (sum(&addresses), with([5, 1024])));
        // Type and code stay what they are; there is no pseudo-header.
        assert_eq!(of([[7, 0x0800], [9, 0x0800]], 1), (sum(&addresses), sum(&[[7, 9]])));
        assert_eq!(of([[7, 0x0800]; 2], 1), (sum(&addresses), 0xffff));
        assert_eq!(of([[0, 0]; 2], 50), (sum(&addresses), 0));
        let echo6 = |id| key("2001:db8::1", "2001:db8::2", [id, 0x8000], 58);
        let other6 = key("2001:db8::9", "2001:db8::2", [9, 0x8000], 58);
        assert_eq!(deltas(echo6(7), other6), (0, sum(&[[1, 9], [7, 9]])));
        assert_eq!(deltas(echo6(7), echo6(9)), (0, sum(&[[7, 9]])));
    }

    #[test]
    fn addresses_of_one_prefix_share_its_epoch() {
        assert_eq!(epochs4([0x0a01, 0x0203])[0], 0x0a01);
        assert_eq!(epochs4([0x0a01, 0x0203]), epochs4([0x0a01, 0x02ff]));
        assert_ne!(epochs4([0x0a01, 0x0203])[1], epochs4([0x0a01, 0x0303])[1]);
        assert_ne!(epochs6([0x2001, 0xdb8, 1])[1], epochs6([0x2001, 0xdb8, 2])[1]);
        assert_eq!(epochs6([0x2001, 0xdb8, 1])[0], epochs6([0x2001, 0xdb8, 2])[0]);
        assert!(epoch_of(u64::MAX) < EPOCHS);
    }
}
