//! Shared by the load generator's programs and userspace: maps, layouts, and the construction of
//! packets, so that both engines of the generator send identical octets.
//!
//! A packet carries the header of the kernel's pktgen (net/core/pktgen.c, `struct pktgen_hdr`) at
//! the start of its UDP payload: magic, sequence number, seconds, microseconds, four octets each,
//! most significant first. Two octets of our own follow, with the number of the generator's thread;
//! kernel pktgen has zeros there.

/// The generator. `ferroute_pktgen` and `ferroute_sink` are programs of `load.bpf.o`.
pub const PROGRAM_PKTGEN: &str = "ferroute_pktgen";
/// The sink that counts and drops.
pub const PROGRAM_SINK: &str = "ferroute_sink";
/// The program that redirects everything to an AF_XDP socket.
pub const PROGRAM_CATCH: &str = "ferroute_catch";

/// ARRAY of one [`GeneratorConfig`]. One for each thread.
pub const MAP_CONFIG: &str = "FR_GEN_CONFIG";
/// ARRAY of one [`GeneratorState`]. One for each thread.
pub const MAP_STATE: &str = "FR_GEN_STATE";
/// ARRAY of one [`Loop`]. Shared by all generators and sinks of a run.
pub const MAP_LOOP: &str = "FR_LOOP";
/// ARRAY of one u64: packets that userspace has given up as lost. Shared like [`MAP_LOOP`].
pub const MAP_FORGIVEN: &str = "FR_FORGIVEN";
/// ARRAY of one u64: CLOCK_REALTIME − CLOCK_TAI in ns, wrapping. Shared like [`MAP_LOOP`].
pub const MAP_CLOCK: &str = "FR_CLOCK";
/// PERCPU_ARRAY of u64, [`LATENCY_BUCKETS`] of them, see [`latency_bucket`]. One for each sink.
pub const MAP_LATENCY: &str = "FR_LATENCY";
/// XSKMAP of the catching program. One for each port.
pub const MAP_CATCH: &str = "FR_CATCH";

/// `PKTGEN_MAGIC` of net/core/pktgen.c.
pub const MAGIC: u32 = 0xbe9b_e955;
/// Entries of [`GeneratorConfig::sizes`]; a power of two, so that an index can be masked.
pub const SIZES_MAX: usize = 1024;
/// Unit of [`GeneratorConfig::interval`]: 1/1024 ns.
pub const INTERVAL_SHIFT: u32 = 10;
/// Ethernet, VLAN tag, IPv6, UDP, pktgen's header and ours: 84 octets, rounded up to 8.
const HEADER_WORDS: usize = 44;
/// Word offset of the IP header, without and with a VLAN tag.
const L3: [usize; 2] = [7, 9];
/// Words of an IPv4 and of an IPv6 header.
const L3_WORDS: [usize; 2] = [10, 20];
/// Words of UDP, pktgen's header and ours.
const UDP_WORDS: usize = 13;

/// The headers of a packet as 16-bit words in memory order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Header(pub [u16; HEADER_WORDS]);

impl Default for Header {
    fn default() -> Header {
        Header([0; HEADER_WORDS])
    }
}

/// Octets from the Ethernet header to the end of our header: 60, 64 with a VLAN tag; 80 and 84 for IPv6.
#[must_use]
pub const fn header_octets(v6: bool, vlan: bool) -> usize {
    2 * (l4(v6, vlan) + UDP_WORDS)
}

/// Word offset of the UDP header.
const fn l4(v6: bool, vlan: bool) -> usize {
    L3[vlan as usize] + L3_WORDS[v6 as usize]
}

/// A varying field: an address (its low 64 bits) or a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// The first value.
    pub first: u64,
    /// Number of values; 0 and 1: constant, as in the template.
    pub span: u64,
    /// 1: values are random; 0: they are sequential.
    pub random: u64,
}

impl Range {
    /// The value for packet or flow number `index`; deterministic.
    #[inline(always)]
    fn at(&self, index: u64, salt: u64) -> u64 {
        let k = if self.random != 0 { mix(index ^ salt) } else { index };
        self.first.wrapping_add(k % self.span)
    }
}

/// Configuration of a thread of the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct GeneratorConfig {
    /// The headers with all constant fields, checksums 0.
    pub template: Header,
    /// Source address.
    pub source: Range,
    /// Destination address.
    pub destination: Range,
    /// UDP source port.
    pub source_port: Range,
    /// UDP destination port.
    pub destination_port: Range,
    /// Packets to send; 0: unlimited.
    pub count: u64,
    /// Number of flows; 0: fields vary with every packet.
    pub flows: u64,
    /// Consecutive packets of a flow, at least 1.
    pub flow_len: u64,
    /// Number of this thread, from 0.
    pub thread: u64,
    /// Number of threads that share the flows, at least 1.
    pub threads: u64,
    /// Time between two packets in 1/1024 ns; 0: none.
    pub interval: u64,
    /// Maximum packets in flight; 0: unlimited. Needs a sink of the same run.
    pub window: u64,
    /// Bits: [`GeneratorConfig::IPV6`] and the constants after it.
    pub flags: u32,
    /// Size of the frames that the program gets, at least the largest of `sizes`.
    pub frame_max: u32,
    /// Sizes in use, 1 to [`SIZES_MAX`].
    pub sizes_len: u32,
    /// Not 0: send nothing more.
    pub stop: u32,
    /// Frame sizes in octets without the FCS, used in turn.
    pub sizes: [u16; SIZES_MAX],
}

impl GeneratorConfig {
    /// IPv6, otherwise IPv4.
    pub const IPV6: u32 = 1;
    /// With a VLAN tag.
    pub const VLAN: u32 = 2;
    /// UDP checksums over IPv4; over IPv6 they are always present.
    pub const UDP_CHECKSUM: u32 = 4;
    /// No time stamps in the packets.
    pub const NO_TIMESTAMP: u32 = 8;
    /// Flows in turn, otherwise random.
    pub const FLOWS_IN_TURN: u32 = 16;

    /// Converts it to a map value.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<GeneratorConfig>()] {
        let mut out = [0; size_of::<GeneratorConfig>()];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        self.template.0.iter().for_each(|word| put(&word.to_ne_bytes()));
        for range in [self.source, self.destination, self.source_port, self.destination_port] {
            [range.first, range.span, range.random].iter().for_each(|v| put(&v.to_ne_bytes()));
        }
        for value in [
            self.count,
            self.flows,
            self.flow_len,
            self.thread,
            self.threads,
            self.interval,
            self.window,
        ] {
            put(&value.to_ne_bytes());
        }
        for value in [self.flags, self.frame_max, self.sizes_len, self.stop] {
            put(&value.to_ne_bytes());
        }
        self.sizes.iter().for_each(|size| put(&size.to_ne_bytes()));
        out
    }

    /// Size of packet number `n` of this thread in octets without the FCS.
    #[inline(always)]
    #[must_use]
    pub fn size(&self, n: u64) -> u16 {
        if self.sizes_len <= 1 {
            return self.sizes[0];
        }
        self.sizes[(n % u64::from(self.sizes_len)) as usize & (SIZES_MAX - 1)]
    }

    /// Whether packets contain time stamps.
    #[inline(always)]
    #[must_use]
    pub fn is_stamped(&self) -> bool {
        self.flags & GeneratorConfig::NO_TIMESTAMP == 0
    }

    /// The number that determines the varying fields of packet `n` of this thread.
    #[inline(always)]
    fn index(&self, n: u64) -> u64 {
        if self.flows == 0 {
            return n.wrapping_mul(self.threads).wrapping_add(self.thread);
        }
        let run = if self.flow_len > 1 { n / self.flow_len } else { n };
        let run = run.wrapping_mul(self.threads).wrapping_add(self.thread);
        let flow = if self.flags & GeneratorConfig::FLOWS_IN_TURN != 0 { run } else { mix(run) };
        flow % self.flows
    }

    /// The headers of packet number `n` of this thread, `size` octets long, with time stamp `stamp`
    /// (seconds, microseconds). The const parameters must match the flags.
    #[inline(always)]
    #[must_use]
    pub fn header<const V6: bool, const VLAN: bool>(
        &self,
        n: u64,
        size: u16,
        stamp: (u32, u32),
    ) -> Header {
        let (l3, l4) = (const { L3[VLAN as usize] }, const { l4(V6, VLAN) });
        let mut header = self.template;
        let words = &mut header.0;
        self.fill_moving::<V6>(words, l3, l4, n);
        let ip_octets = size.wrapping_sub(2 * l3 as u16);
        let udp_octets = ip_octets.wrapping_sub(2 * (l4 - l3) as u16);
        words[l4 + 2] = udp_octets.to_be();
        put32(words, l4 + 6, (n as u32).wrapping_add(1));
        put32(words, l4 + 8, stamp.0);
        put32(words, l4 + 10, stamp.1);
        words[l4 + 12] = (self.thread as u16).to_be();
        if V6 {
            words[l3 + 2] = udp_octets.to_be();
        } else {
            words[l3 + 1] = ip_octets.to_be();
            words[l3 + 2] = (n as u16).to_be();
            words[l3 + 5] = !sum(words, l3, l3 + 10, 0);
        }
        if V6 || self.flags & GeneratorConfig::UDP_CHECKSUM != 0 {
            // The pseudo-header's protocol and length; the payload after our header is zero.
            let rest = u32::from(17u16.to_be()) + u32::from(udp_octets.to_be());
            let addresses = if V6 { l3 + 4 } else { l3 + 6 };
            let checksum = !sum(words, addresses, l4 + UDP_WORDS, rest);
            // RFC 768: zero means that there is no checksum.
            words[l4 + 3] = if checksum == 0 { 0xffff } else { checksum };
        }
        header
    }

    /// Sets the varying addresses and ports.
    #[inline(always)]
    fn fill_moving<const V6: bool>(
        &self,
        words: &mut [u16; HEADER_WORDS],
        l3: usize,
        l4: usize,
        n: u64,
    ) {
        let moving = (self.source.span | self.destination.span)
            | (self.source_port.span | self.destination_port.span);
        if moving <= 1 {
            return;
        }
        let index = self.index(n);
        // The last word of each address.
        let (source, destination) = if V6 { (l3 + 11, l3 + 19) } else { (l3 + 7, l3 + 9) };
        for (range, last, salt) in [(&self.source, source, 1), (&self.destination, destination, 2)]
        {
            if range.span > 1 {
                let value = range.at(index, salt << 60);
                put32(words, last - 1, value as u32);
                if V6 {
                    put32(words, last - 3, (value >> 32) as u32);
                }
            }
        }
        if self.source_port.span > 1 {
            words[l4] = (self.source_port.at(index, 3 << 60) as u16).to_be();
        }
        if self.destination_port.span > 1 {
            words[l4 + 1] = (self.destination_port.at(index, 4 << 60) as u16).to_be();
        }
    }
}

/// Four octets, most significant first, at word `at`.
#[inline(always)]
fn put32(words: &mut [u16; HEADER_WORDS], at: usize, value: u32) {
    words[at] = ((value >> 16) as u16).to_be();
    words[at + 1] = (value as u16).to_be();
}

/// The Internet checksum's sum of words `from..to` and `rest` (RFC 1071: in any byte order).
#[inline(always)]
fn sum(words: &[u16; HEADER_WORDS], from: usize, to: usize, rest: u32) -> u16 {
    let mut sum = rest;
    let mut at = from;
    while at < to {
        sum += u32::from(words[at]);
        at += 1;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Hashes a number to 64 bits (the finalizer of splitmix64).
#[inline(always)]
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Counters of a thread of the generator. Written only by its program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GeneratorState {
    /// Packets passed to the port.
    pub sent: u64,
    /// Octets of these packets.
    pub octets: u64,
    /// Times the window was full.
    pub held: u64,
    /// CLOCK_TAI in ns at the first packet; 0: none yet.
    pub first_ns: u64,
    /// CLOCK_TAI in ns at the last packet.
    pub last_ns: u64,
    /// CLOCK_REALTIME in ns at the start of `second`.
    pub second_ns: u64,
    /// Seconds of CLOCK_REALTIME.
    pub second: u64,
}

impl GeneratorState {
    /// Parses a map value.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<GeneratorState> {
        let mut words = [0; 7];
        let chunks = bytes.as_chunks::<8>().0;
        if chunks.len() != words.len() {
            return None;
        }
        for (word, chunk) in words.iter_mut().zip(chunks) {
            *word = u64::from_ne_bytes(*chunk);
        }
        let [sent, octets, held, first_ns, last_ns, second_ns, second] = words;
        Some(GeneratorState { sent, octets, held, first_ns, last_ns, second_ns, second })
    }

    /// Seconds and microseconds of a CLOCK_REALTIME in ns. Caches the start of the second: a 64-bit
    /// division for every packet costs more than the rest of the clock.
    #[inline(always)]
    #[must_use]
    pub fn stamp(&mut self, real_ns: u64) -> (u32, u32) {
        const SECOND: u64 = 1_000_000_000;
        let mut into = real_ns.wrapping_sub(self.second_ns);
        if into >= SECOND {
            self.second = real_ns / SECOND;
            self.second_ns = self.second * SECOND;
            into = real_ns - self.second_ns;
        }
        // into / 1000, for which 2^38 / 1000 is exact enough below 2^30.
        (self.second as u32, ((into * 274_877_907) >> 38) as u32)
    }
}

/// Counters shared by generators and sinks of a run: several CPUs add to them. The counters of the
/// two sides are on different cache lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Loop {
    /// Packets sent by generators with a window.
    pub sent: u64,
    _sent: [u64; 7],
    /// Packets with pktgen's header that sinks received.
    pub received: u64,
    /// Octets of these packets.
    pub received_octets: u64,
    /// Other frames that sinks passed to the kernel.
    pub other: u64,
    _received: [u64; 5],
}

impl Loop {
    /// Parses a map value.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Loop> {
        let words = bytes.as_chunks::<8>().0;
        let word = |at: usize| words.get(at).map(|octets| u64::from_ne_bytes(*octets));
        Some(Loop {
            sent: word(0)?,
            received: word(8)?,
            received_octets: word(9)?,
            other: word(10)?,
            ..Loop::default()
        })
    }
}

/// Values below this many microseconds have a separate bucket each.
const LATENCY_EXACT: u64 = 256;
/// Number of buckets for each further power of two.
const LATENCY_STEPS: u64 = 128;
/// Buckets of a latency histogram: up to 2^32 µs, with an error of at most 1/128.
pub const LATENCY_BUCKETS: usize = (LATENCY_EXACT + 24 * LATENCY_STEPS) as usize;

/// The bucket of a latency in microseconds.
#[inline(always)]
#[must_use]
pub fn latency_bucket(us: u64) -> u32 {
    if us < LATENCY_EXACT {
        return us as u32;
    }
    let us = if us > 0xffff_ffff { 0xffff_ffff } else { us };
    // 1 for 256 to 511, 2 for 512 to 1023, and so on. By comparisons instead of a loop: BPF has no
    // instruction to count leading zeros.
    let (mut octave, mut rest) = (1, us >> 8);
    for (shift, reached) in [(16, 0x1_0000u64), (8, 0x100), (4, 0x10), (2, 4), (1, 2)] {
        if rest >= reached {
            rest >>= shift;
            octave += shift;
        }
    }
    let step = (us >> octave) - LATENCY_STEPS;
    (LATENCY_EXACT + (octave - 1) * LATENCY_STEPS + step) as u32
}

/// The middle of a bucket in microseconds.
#[must_use]
pub fn latency_of_bucket(bucket: u32) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < LATENCY_EXACT {
        return bucket;
    }
    let octave = (bucket - LATENCY_EXACT) / LATENCY_STEPS + 1;
    let step = (bucket - LATENCY_EXACT) % LATENCY_STEPS;
    ((step + LATENCY_STEPS) << octave) + (1 << (octave - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_ordered_and_latencies_are_within_the_error() {
        let mut last = 0;
        for us in (0..5000).chain((13..32).flat_map(|n| [(1 << n) - 1, 1 << n, (1 << n) + 1])) {
            let bucket = latency_bucket(us);
            assert!((bucket as usize) < LATENCY_BUCKETS && bucket >= last, "{us}");
            last = bucket;
            let back = latency_of_bucket(bucket);
            assert!(back.abs_diff(us) <= us / 128, "{us} became {back}");
        }
        assert_eq!(latency_bucket(u64::MAX) as usize, LATENCY_BUCKETS - 1);
    }

    #[test]
    fn time_stamps_are_seconds_and_microseconds() {
        let mut state = GeneratorState::default();
        for (ns, stamp) in [
            (1_700_000_000_000_000_999, (1_700_000_000, 0)),
            (1_700_000_000_000_001_000, (1_700_000_000, 1)),
            (1_700_000_000_999_999_999, (1_700_000_000, 999_999)),
            (1_700_000_001_000_000_000, (1_700_000_001, 0)),
            // The clock was set back.
            (1_600_000_000_123_456_789, (1_600_000_000, 123_456)),
        ] {
            assert_eq!(state.stamp(ns), stamp, "{ns}");
        }
    }

    #[test]
    fn map_values_have_the_layout_the_programs_expect() {
        let mut words = [0u64; size_of::<Loop>() / 8];
        for (n, word) in words.iter_mut().enumerate() {
            *word = n as u64;
        }
        let mut bytes = [0; size_of::<Loop>()];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        let read = Loop::from_bytes(&bytes).expect("long enough");
        assert_eq!(read.sent, (core::mem::offset_of!(Loop, sent) / 8) as u64);
        assert_eq!(read.received, (core::mem::offset_of!(Loop, received) / 8) as u64);
        assert_eq!(read.received_octets, (core::mem::offset_of!(Loop, received_octets) / 8) as u64);
        assert_eq!(read.other, (core::mem::offset_of!(Loop, other) / 8) as u64);
        assert!(Loop::from_bytes(&bytes[..80]).is_none());
        assert!(GeneratorState::from_bytes(&[0; 55]).is_none());
        assert!(GeneratorState::from_bytes(&[0; size_of::<GeneratorState>()]).is_some());
    }
}
