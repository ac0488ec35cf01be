//! The packets of a load in the vocabulary of the kernel's pktgen (Documentation/networking/pktgen.rst),
//! and checks of whether they can be sent.

use std::net::IpAddr;

use xdp_prog::load::{GeneratorConfig, Header, INTERVAL_SHIFT, MAGIC, Range, SIZES_MAX};

/// Octets of an Ethernet header.
const ETHERNET: usize = 14;
/// Octets of a VLAN tag.
const VLAN: usize = 4;
/// The longest frame in octets that BPF_PROG_RUN accepts: a page less the kernel's headers around a live
/// frame (net/bpf/test_run.c), rounded down; it also fits one UMEM frame.
pub const FRAME_MAX: usize = 3072;

/// Values of a field from `min` to `max`, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<T> {
    /// The first.
    pub min: T,
    /// The last.
    pub max: T,
    /// Random values instead of one after the other.
    pub random: bool,
}

impl<T: Copy> Span<T> {
    /// One value.
    pub fn one(value: T) -> Span<T> {
        Span { min: value, max: value, random: false }
    }

    /// From `min` to `max`, one after the other.
    pub fn step(min: T, max: T) -> Span<T> {
        Span { min, max, random: false }
    }
}

/// An 802.1Q tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlan {
    /// VLAN id, 0 to 4095.
    pub id: u16,
    /// Priority, 0 to 7.
    pub priority: u8,
}

/// Frame sizes in octets, without the FCS, as pktgen's `pkt_size` counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sizes {
    /// All the same.
    Fixed(u16),
    /// Sizes with weights, mixed evenly: after as many packets as the sum of the weights (divided by their
    /// greatest common divisor) each size has been sent exactly in proportion to its weight.
    Imix(Vec<(u16, u32)>),
}

/// The traffic to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traffic {
    /// Source MAC; `None`: the port's.
    pub source_mac: Option<[u8; 6]>,
    /// Destination MAC.
    pub destination_mac: [u8; 6],
    /// A VLAN tag.
    pub vlan: Option<Vlan>,
    /// Source address.
    pub source: Span<IpAddr>,
    /// Destination address, of the same family.
    pub destination: Span<IpAddr>,
    /// UDP source port.
    pub source_port: Span<u16>,
    /// UDP destination port.
    pub destination_port: Span<u16>,
    /// Frame sizes.
    pub sizes: Sizes,
    /// Number of flows, each with its own addresses and ports; 0: they change with every packet.
    pub flows: u64,
    /// Consecutive packets of a flow; 0 is taken as 1.
    pub flow_len: u64,
    /// Flows one after the other (FLOW_SEQ) instead of random flows.
    pub flows_in_turn: bool,
    /// UDP checksums over IPv4 (UDPCSUM); over IPv6 they are always computed (RFC 8200 8.1).
    pub udp_checksum: bool,
    /// Packets carry their send time.
    pub timestamp: bool,
    /// TOS octet or traffic class.
    pub tos: u8,
}

impl Traffic {
    /// UDP packets of 60 octets from port 9 to port 9, as kernel pktgen sends by default.
    pub fn new(destination_mac: [u8; 6], source: IpAddr, destination: IpAddr) -> Traffic {
        Traffic {
            source_mac: None,
            destination_mac,
            vlan: None,
            source: Span::one(source),
            destination: Span::one(destination),
            source_port: Span::one(9),
            destination_port: Span::one(9),
            sizes: Sizes::Fixed(if source.is_ipv4() { 60 } else { 80 }),
            flows: 0,
            flow_len: 0,
            flows_in_turn: false,
            udp_checksum: false,
            timestamp: true,
            tos: 0,
        }
    }

    /// Octets of the headers, including pktgen's: the minimum frame length.
    pub fn size_min(&self) -> usize {
        xdp_prog::load::header_octets(self.source.min.is_ipv6(), self.vlan.is_some())
    }

    /// The longest frame in octets without the FCS.
    pub fn size_max(&self) -> usize {
        match &self.sizes {
            Sizes::Fixed(size) => usize::from(*size),
            Sizes::Imix(weights) => {
                weights.iter().map(|(size, _)| usize::from(*size)).max().unwrap_or(0)
            }
        }
    }

    /// The longest frame that an IP MTU allows, in octets without the FCS.
    pub fn size_limit(&self, mtu: u32) -> usize {
        let tag = if self.vlan.is_some() { VLAN } else { 0 };
        (mtu as usize + ETHERNET + tag).min(FRAME_MAX)
    }

    /// The mean frame size in octets without the FCS.
    pub fn size_mean(&self) -> f64 {
        match &self.sizes {
            Sizes::Fixed(size) => f64::from(*size),
            Sizes::Imix(weights) => {
                let total: f64 = weights.iter().map(|(_, weight)| f64::from(*weight)).sum();
                let octets = weights.iter().map(|(s, w)| f64::from(*s) * f64::from(*w));
                octets.sum::<f64>() / total.max(1.0)
            }
        }
    }

    /// The configuration of each of `threads` threads. `port_mac` is the default source MAC.
    ///
    /// # Errors
    /// Why the traffic cannot be sent, see [`TrafficError`].
    pub fn configs(
        &self,
        pace: &Pace,
        port_mac: [u8; 6],
    ) -> Result<Vec<GeneratorConfig>, TrafficError> {
        self.check()?;
        pace.check()?;
        let threads = pace.threads.max(1) as u64;
        let sizes = self.size_table()?;
        let mut config = GeneratorConfig {
            template: self.template(self.source_mac.unwrap_or(port_mac)),
            source: address_range(&self.source),
            destination: address_range(&self.destination),
            source_port: port_range(&self.source_port),
            destination_port: port_range(&self.destination_port),
            count: 0,
            flows: self.flows,
            flow_len: self.flow_len.max(1),
            thread: 0,
            threads,
            interval: pace.interval(threads),
            window: pace.window.unwrap_or(0),
            flags: self.flags(),
            frame_max: self.size_max() as u32,
            sizes_len: sizes.len() as u32,
            stop: 0,
            sizes: [0; SIZES_MAX],
        };
        config.sizes[..sizes.len()].copy_from_slice(&sizes);
        let each = (0..threads).map(|thread| {
            config.thread = thread;
            config.count = pace.share(thread, threads);
            // A thread without a share sends nothing, but a count of 0 would mean no limit.
            config.stop = u32::from(pace.count.is_some() && config.count == 0);
            config
        });
        Ok(each.collect())
    }

    fn flags(&self) -> u32 {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        flag(self.source.min.is_ipv6(), GeneratorConfig::IPV6)
            | flag(self.vlan.is_some(), GeneratorConfig::VLAN)
            | flag(self.udp_checksum, GeneratorConfig::UDP_CHECKSUM)
            | flag(!self.timestamp, GeneratorConfig::NO_TIMESTAMP)
            | flag(self.flows_in_turn, GeneratorConfig::FLOWS_IN_TURN)
    }

    /// Checks whether such packets can be sent.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn check(&self) -> Result<(), TrafficError> {
        let families =
            [self.source.min, self.source.max, self.destination.min, self.destination.max];
        if families.iter().any(|a| a.is_ipv4() != self.source.min.is_ipv4()) {
            return Err(TrafficError::Families(self.source.min, self.destination.min));
        }
        check_addresses("source", &self.source)?;
        check_addresses("destination", &self.destination)?;
        for (name, span) in [("source", self.source_port), ("destination", self.destination_port)] {
            if span.min > span.max {
                return Err(TrafficError::Ports { name, min: span.min, max: span.max });
            }
        }
        if let Some(vlan) = self.vlan
            && (vlan.id > 4095 || vlan.priority > 7)
        {
            return Err(TrafficError::Vlan(vlan.id, vlan.priority));
        }
        let min = self.size_min();
        let sizes: Vec<usize> = match &self.sizes {
            Sizes::Fixed(size) => vec![usize::from(*size)],
            Sizes::Imix(weights) => weights.iter().map(|(size, _)| usize::from(*size)).collect(),
        };
        match sizes.iter().find(|size| !(min..=FRAME_MAX).contains(size)) {
            Some(&size) => Err(TrafficError::Size { size, min }),
            None => self.size_table().map(drop),
        }
    }

    /// Frame sizes in the order they are sent.
    fn size_table(&self) -> Result<Vec<u16>, TrafficError> {
        let weights = match &self.sizes {
            Sizes::Fixed(size) => return Ok(vec![*size]),
            Sizes::Imix(weights) => weights,
        };
        let common = weights.iter().map(|(_, weight)| *weight).fold(0, gcd);
        if common == 0 {
            return Err(TrafficError::NoWeights);
        }
        let weight = |weight: u32| u64::from(weight / common);
        let total: u64 = weights.iter().map(|(_, w)| weight(*w)).sum();
        if total > SIZES_MAX as u64 {
            return Err(TrafficError::Weights(total));
        }
        // In each step, the size that is furthest behind its share.
        let mut credit = vec![0i64; weights.len()];
        let table = (0..total).map(|_| {
            for (credit, (_, w)) in credit.iter_mut().zip(weights) {
                *credit += weight(*w) as i64;
            }
            let most = (0..credit.len()).max_by_key(|&i| (credit[i], usize::MAX - i)).unwrap_or(0);
            credit[most] -= total as i64;
            weights[most].0
        });
        Ok(table.collect())
    }

    /// The headers without the fields that vary, and without checksums and lengths.
    fn template(&self, source_mac: [u8; 6]) -> Header {
        let mut octets = Vec::with_capacity(88);
        octets.extend(self.destination_mac);
        octets.extend(source_mac);
        if let Some(vlan) = self.vlan {
            octets.extend(0x8100u16.to_be_bytes());
            octets.extend((u16::from(vlan.priority) << 13 | vlan.id).to_be_bytes());
        }
        match (self.source.min, self.destination.min) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                octets.extend(0x0800u16.to_be_bytes());
                octets.extend([0x45, self.tos, 0, 0, 0, 0, 0, 0, TTL, UDP, 0, 0]);
                octets.extend(source.octets());
                octets.extend(destination.octets());
            }
            (source, destination) => {
                octets.extend(0x86ddu16.to_be_bytes());
                octets.extend((6 << 28 | u32::from(self.tos) << 20).to_be_bytes());
                octets.extend([0, 0, UDP, TTL]);
                for address in [source, destination] {
                    if let IpAddr::V6(address) = address {
                        octets.extend(address.octets());
                    }
                }
            }
        }
        octets.extend(self.source_port.min.to_be_bytes());
        octets.extend(self.destination_port.min.to_be_bytes());
        octets.extend([0; 4]);
        octets.extend(MAGIC.to_be_bytes());
        octets.resize(88, 0);
        let mut header = Header::default();
        for (word, pair) in header.0.iter_mut().zip(octets.as_chunks::<2>().0) {
            *word = u16::from_ne_bytes(*pair);
        }
        header
    }
}

/// Time to live and hop limit, as kernel pktgen sets them.
const TTL: u8 = 32;
/// IPPROTO_UDP.
const UDP: u8 = 17;

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The low 64 bits of an address.
fn low(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() as u64,
    }
}

fn address_range(span: &Span<IpAddr>) -> Range {
    let (first, last) = (low(span.min), low(span.max));
    Range { first, span: last - first + 1, random: u64::from(span.random) }
}

fn port_range(span: &Span<u16>) -> Range {
    let (first, last) = (u64::from(span.min), u64::from(span.max));
    Range { first, span: last - first + 1, random: u64::from(span.random) }
}

fn check_addresses(name: &'static str, span: &Span<IpAddr>) -> Result<(), TrafficError> {
    let (min, max) = (span.min, span.max);
    if min > max {
        return Err(TrafficError::Addresses { name, min, max });
    }
    if let (IpAddr::V6(first), IpAddr::V6(last)) = (min, max) {
        let full = low(min) == 0 && low(max) == u64::MAX;
        if first.to_bits() >> 64 != last.to_bits() >> 64 || full {
            return Err(TrafficError::WideRange { name, min, max });
        }
    }
    Ok(())
}

/// How much is sent, and how fast.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pace {
    /// Total number of packets; `None`: until stopped.
    pub count: Option<u64>,
    /// Total packets per second; `None`: unlimited.
    pub rate: Option<f64>,
    /// Maximum packets in flight: a closed loop. Needs a sink of the same [`Circuit`].
    ///
    /// [`Circuit`]: super::Circuit
    pub window: Option<u64>,
    /// Number of threads; 0 is taken as 1.
    pub threads: usize,
    /// CPUs the threads are pinned to, in turn; empty: not pinned.
    pub cpus: Vec<usize>,
}

/// Allowed packets per second. At lower rates the interval would overflow its 64 bits after a long time; at
/// higher rates it would be less than a nanosecond.
const RATES: std::ops::RangeInclusive<f64> = 0.001..=1e9;

impl Pace {
    /// Checks whether this is possible.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self) -> Result<(), TrafficError> {
        match (self.rate, self.count, self.window) {
            (Some(rate), _, _) if !RATES.contains(&rate) => Err(TrafficError::Rate(rate)),
            (_, Some(0), _) => Err(TrafficError::NoPackets),
            (_, _, Some(0)) => Err(TrafficError::NoWindow),
            _ if self.threads > THREADS_MAX => Err(TrafficError::Threads(self.threads)),
            _ => Ok(()),
        }
    }

    /// The CPU of a thread.
    pub(super) fn cpu(&self, thread: usize) -> Option<usize> {
        self.cpus.get(thread % self.cpus.len().max(1)).copied()
    }

    /// Time between two packets of one of `threads` threads, in 1/1024 ns.
    pub(super) fn interval(&self, threads: u64) -> u64 {
        let unit = 1e9 * (1u64 << INTERVAL_SHIFT) as f64;
        self.rate.map_or(0, |rate| (unit * threads as f64 / rate).round() as u64)
    }

    /// Number of packets of one thread; 0: no limit, or no packets.
    pub(super) fn share(&self, thread: u64, threads: u64) -> u64 {
        let count = self.count.unwrap_or(0);
        count / threads + u64::from(thread < count % threads)
    }
}

/// Maximum threads of a generator.
pub const THREADS_MAX: usize = 256;

/// Why traffic cannot be sent.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrafficError {
    /// IPv4 and IPv6 mixed.
    #[error("source {0} and destination {1} are not of one family")]
    Families(IpAddr, IpAddr),
    /// The range is reversed.
    #[error("{name} addresses {min} to {max}: the first is above the last")]
    Addresses {
        /// `source` or `destination`.
        name: &'static str,
        /// First.
        min: IpAddr,
        /// Last.
        max: IpAddr,
    },
    /// The range varies more than the low 64 bits.
    #[error("{name} addresses {min} to {max}: a range must be within one /64, and smaller")]
    WideRange {
        /// `source` or `destination`.
        name: &'static str,
        /// First.
        min: IpAddr,
        /// Last.
        max: IpAddr,
    },
    /// The range is reversed.
    #[error("UDP {name} ports {min} to {max}: the first is above the last")]
    Ports {
        /// `source` or `destination`.
        name: &'static str,
        /// First.
        min: u16,
        /// Last.
        max: u16,
    },
    /// The VLAN ID or priority is out of range.
    #[error("VLAN id {0} with priority {1}: ids go to 4095, priorities to 7")]
    Vlan(u16, u8),
    /// Too short for the headers, or longer than a frame may be.
    #[error(
        "frames of {size} octets: at least {min}, for the headers and pktgen's, and at most \
         {FRAME_MAX}; sizes are counted without the FCS, as pktgen counts them"
    )]
    Size {
        /// The size requested.
        size: usize,
        /// The minimum size.
        min: usize,
    },
    /// All weights are 0, or there are none.
    #[error("IMIX: no size has a weight")]
    NoWeights,
    /// The weights need too long a table.
    #[error("IMIX: weights sum up to {0}, divided by their common divisor; at most {SIZES_MAX}")]
    Weights(u64),
    /// The rate is too low, too high or not a number.
    #[error("{0} packets per second: expected 0.001 to 1e9")]
    Rate(f64),
    /// The count is 0.
    #[error("a count of 0 packets; leave the count out to send until stopped")]
    NoPackets,
    /// The window is 0.
    #[error("a window of 0 packets lets nothing through")]
    NoWindow,
    /// A window with the AF_XDP engine.
    #[error("a closed loop needs the XDP engine")]
    WindowNeedsXdp,
    /// Too many threads.
    #[error("{0} threads: at most {THREADS_MAX}")]
    Threads(usize),
}
