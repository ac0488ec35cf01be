//! Shared by the BPF programs and userspace: names, map layouts, the reasons that are counted.
//!
//! The programs themselves are in `src/bin` and are built for the BPF target only
//! (`scripts/build-xdp`). This half is `no_std` and builds everywhere. Layouts are `#[repr(C)]` in
//! the machine's own byte order, as map values are; addresses and MACs are octets as on the wire.

#![no_std]

mod flow;
pub mod load;
pub mod offload;
pub mod redirect;
mod sa_gate;

pub use flow::{FLOW_SLOTS, FLOW_WORDS, FlowBucket, FlowHash, FlowKey, FlowPlace, TupleKind};
pub use sa_gate::{SA_GATE_WORDS, SaGateKey};

/// The XDP program. The kernel shows at most 15 octets of a program's name, and this one fits.
pub const PROGRAM_XDP: &str = "ferroute_xdp";
/// The classifier on the punt device.
pub const PROGRAM_PUNT: &str = "ferroute_punt";

/// XSKMAP, key: RX queue index. One for each port.
pub const MAP_SOCKETS: &str = "FR_SOCKETS";
/// ARRAY of one [`PortSettings`]. One for each port.
pub const MAP_PORT: &str = "FR_PORT";
/// PERCPU_ARRAY of [`QueueState`], key: RX queue index. One for each port.
pub const MAP_QUEUES: &str = "FR_QUEUES";
/// HASH, key: [`vlan_key`], value: [`VlanSettings`]: the VLANs whose frames are steered. One for
/// each port.
pub const MAP_VLANS: &str = "FR_VLANS";
/// ARRAY of one [`SharedSettings`], shared by all ports.
pub const MAP_SHARED: &str = "FR_SHARED";
/// ARRAY of one [`Heartbeats`], BPF_F_MMAPABLE, shared by all ports: userspace threads write it
/// through a memory mapping.
pub const MAP_HEARTBEATS: &str = "FR_HEARTBEATS";
/// HASH, key: an IPv4 address (4 octets) that is the router's own or a broadcast address of it.
pub const MAP_LOCAL4: &str = "FR_LOCAL4";
/// HASH, key: an IPv6 address (16 octets) that is the router's own.
pub const MAP_LOCAL6: &str = "FR_LOCAL6";
/// LPM_TRIE, key: prefix length, then an IPv4 address: local prefixes shorter than /32.
pub const MAP_LOCAL_PREFIX4: &str = "FR_LOCAL_PFX4";
/// LPM_TRIE, key: prefix length, then an IPv6 address: local prefixes shorter than /128.
pub const MAP_LOCAL_PREFIX6: &str = "FR_LOCAL_PFX6";
/// ARRAY of [`FlowBucket`], BPF_F_MMAPABLE, whose first entry is a [`FlowHash`]: the flows whose packets are steered
/// while [`SharedSettings::TRACK4`] or [`SharedSettings::TRACK6`] is set. Shared by all ports; userspace
/// writes it through a memory mapping. It has marks of keys, not keys: a packet of another flow is steered now and
/// then, and userspace leaves it to the kernel.
pub const MAP_FLOWS: &str = "FR_FLOWS";
/// HASH, key: [`SaGateKey`], value: u32, not used: the SAs whose packets to the router itself are steered.
/// Shared by all ports.
pub const MAP_IPSEC_SAS: &str = "FR_IPSEC_SAS";
/// HASH, key: ifindex, value: [`PuntPort`]. Used by the punt program only.
pub const MAP_PUNT_PORTS: &str = "FR_PUNT_PORTS";

/// Maximum RX queues of a port; also the size of [`MAP_SOCKETS`]. Frames of further queues are
/// passed to the kernel without being counted.
pub const QUEUES_MAX: usize = 256;
/// Entries of each hash of local addresses. Memory is allocated as entries are added.
pub const LOCAL_ADDRS_MAX: usize = 65_536;
/// Entries of each trie of local prefixes. Memory is allocated as entries are added.
pub const LOCAL_PREFIXES_MAX: usize = 16_384;
/// Maximum number of keys in [`MAP_FLOWS`]: two per flow, one for each direction. The loader lowers it to what the
/// kernel tracks.
pub const FLOW_KEYS_MAX: usize = 2_097_152;
/// Entries of [`MAP_FLOWS`]: buckets of which half of the slots are used at most, and the hash.
pub const FLOW_BUCKETS_MAX: usize = FLOW_KEYS_MAX / (FLOW_SLOTS / 2) + 1;
/// Entries of [`MAP_IPSEC_SAS`]. Memory is allocated as entries are added.
pub const IPSEC_SAS_MAX: usize = 65_536;
/// VLANs of one port. Memory is allocated as entries are added.
pub const VLANS_MAX: usize = 16_384;
/// Maximum ports of the punt program.
pub const PUNT_PORTS_MAX: usize = 1_024;

/// Destination MAC of a frame written to the punt device: these two octets, then the ifindex of
/// the port in four octets, most significant first.
pub const PUNT_DESTINATION: [u8; 2] = [0x02, 0xfe];

/// What the XDP program did with a frame, and why: the index into [`QueueState::frames`].
///
/// `Pass…`: passed to the kernel. `Steer…`: redirected to the AF_XDP socket of its queue. `Offload…`: sent by another
/// port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Reason {
    /// No AF_XDP socket on this queue: ferroute is starting, stopping, or gone.
    PassNoSocket = 0,
    /// Neither IPv4 nor IPv6: ARP, LLDP; or shorter than an Ethernet header.
    PassNotIp,
    /// The destination MAC is not the port's: broadcast, multicast, another station's.
    PassOtherMac,
    /// A frame that userspace punted to the kernel (generic mode only).
    PassPunted,
    /// Steering is off for this family on this port.
    PassFamilyOff,
    /// The destination is one of the router's own addresses.
    PassLocal,
    /// The destination is a multicast group.
    PassMulticast,
    /// The destination is 255.255.255.255.
    PassBroadcast,
    /// The destination is link-local: 169.254.0.0/16, fe80::/10.
    PassLinkLocal,
    /// Tagged for a VLAN that is not steered.
    PassVlan,
    /// The heartbeat of the worker that serves the queue is too old: the worker is stopped, frozen,
    /// starved of CPU time, or hangs.
    PassWorkerStalled,
    /// The heartbeat of the control thread is too old: tables may differ from the kernel's.
    PassControlStalled,
    /// Connections are tracked, and the packet belongs to no known flow.
    PassNoFlow,
    /// Connections are tracked, and packets of this kind are left to the kernel's connection
    /// tracking, of any flow: fragments; with IP options or IPv6 extension headers; protocols without a
    /// [`TupleKind`]; TCP with SYN, or without ACK, FIN and RST; ICMP other than echo; with a truncated header.
    PassConntrack,
    /// IPv4, to be forwarded.
    SteerIpv4,
    /// IPv6, to be forwarded.
    SteerIpv6,
    /// Too short to contain a destination address: userspace counts the drop.
    SteerTooShort,
    /// ESP, ESP in UDP, or AH to the router itself, of an SA in [`MAP_IPSEC_SAS`], or a fragment that may be.
    SteerIpsec,
    /// IPv4, forwarded by the program: see [`offload`].
    OffloadIpv4,
    /// IPv6, forwarded by the program.
    OffloadIpv6,
}

/// The number of reasons.
pub const REASONS: usize = Reason::ALL.len();

impl Reason {
    /// Every reason, at its own index.
    pub const ALL: [Self; 20] = [
        Self::PassNoSocket,
        Self::PassNotIp,
        Self::PassOtherMac,
        Self::PassPunted,
        Self::PassFamilyOff,
        Self::PassLocal,
        Self::PassMulticast,
        Self::PassBroadcast,
        Self::PassLinkLocal,
        Self::PassVlan,
        Self::PassWorkerStalled,
        Self::PassControlStalled,
        Self::PassNoFlow,
        Self::PassConntrack,
        Self::SteerIpv4,
        Self::SteerIpv6,
        Self::SteerTooShort,
        Self::SteerIpsec,
        Self::OffloadIpv4,
        Self::OffloadIpv6,
    ];

    /// The name shown to users.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PassNoSocket => "pass_no_socket",
            Self::PassNotIp => "pass_not_ip",
            Self::PassOtherMac => "pass_other_mac",
            Self::PassPunted => "pass_punted",
            Self::PassFamilyOff => "pass_family_off",
            Self::PassLocal => "pass_local",
            Self::PassMulticast => "pass_multicast",
            Self::PassBroadcast => "pass_broadcast",
            Self::PassLinkLocal => "pass_link_local",
            Self::PassVlan => "pass_vlan",
            Self::PassWorkerStalled => "pass_worker_stalled",
            Self::PassControlStalled => "pass_control_stalled",
            Self::PassNoFlow => "pass_no_flow",
            Self::PassConntrack => "pass_conntrack",
            Self::SteerIpv4 => "steer_ipv4",
            Self::SteerIpv6 => "steer_ipv6",
            Self::SteerTooShort => "steer_too_short",
            Self::SteerIpsec => "steer_ipsec",
            Self::OffloadIpv4 => "offload_ipv4",
            Self::OffloadIpv6 => "offload_ipv6",
        }
    }

    /// Whether the frame went to userspace.
    #[must_use]
    pub const fn is_steered(self) -> bool {
        self as u32 >= Self::SteerIpv4 as u32 && !self.is_offloaded()
    }

    /// Whether the program itself forwarded the frame.
    #[must_use]
    pub const fn is_offloaded(self) -> bool {
        self as u32 >= Self::OffloadIpv4 as u32
    }
}

/// Frames by [`Reason`], of one RX queue.
pub type QueueCounters = [u64; REASONS];

/// State of one RX queue on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QueueState {
    /// Frames by [`Reason`].
    pub frames: QueueCounters,
    /// The last jiffy in which the heartbeats were compared with the clock and found valid. They
    /// are not checked again before the next jiffy: reading the clock for each frame would cost as
    /// much as a quarter of the program.
    pub alive_jiffies: u64,
}

/// A MAC in the programs' format: three 16-bit words in memory order, because Ethernet headers are
/// 2-octet aligned and BPF would otherwise read single octets.
pub type MacWords = [u16; 3];

/// Turns six octets into [`MacWords`].
#[must_use]
pub const fn mac_words(mac: [u8; 6]) -> MacWords {
    [
        u16::from_ne_bytes([mac[0], mac[1]]),
        u16::from_ne_bytes([mac[2], mac[3]]),
        u16::from_ne_bytes([mac[4], mac[5]]),
    ]
}

/// Settings of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortSettings {
    /// The port's MAC; frames to other addresses are passed.
    pub mac: MacWords,
    /// Source MAC that marks a frame punted by userspace; only used with
    /// [`PortSettings::GENERIC`].
    pub punt_source: MacWords,
    /// Bits: [`PortSettings::STEER_IPV4`] and the constants after it.
    pub flags: u32,
}

impl PortSettings {
    /// IPv4 is steered.
    pub const STEER_IPV4: u32 = 1;
    /// IPv6 is steered.
    pub const STEER_IPV6: u32 = 2;
    /// The program runs in generic mode, in which it receives punted frames again.
    pub const GENERIC: u32 = 4;
    /// Frames may be received with partial TCP and UDP checksums, which have to be completed before another port sends
    /// them.
    pub const PARTIAL_CSUM: u32 = 8;
    /// Packets of flows in [`offload::MAP_MARKS`] that arrive on this port are forwarded by the program.
    pub const OFFLOAD: u32 = 16;
    /// The port's number, in the upper half of the flags.
    pub const NUMBER_SHIFT: u32 = 16;

    /// Converts it to a map value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        for (to, word) in
            out[..12].chunks_exact_mut(2).zip(self.mac.iter().chain(&self.punt_source))
        {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out[12..].copy_from_slice(&self.flags.to_ne_bytes());
        out
    }
}

/// Key of a VLAN: TPID and VID of the outer and of the inner tag, 16 bits each as in a frame, with
/// PCP and DEI 0. With one tag the second half is 0.
pub type VlanKey = [u16; 4];

/// The key of one or two tags (TPID, VID), the outermost first; further ones are ignored.
#[must_use]
pub fn vlan_key(tags: impl IntoIterator<Item = (u16, u16)>) -> VlanKey {
    let mut key = [0; 4];
    for (words, (tpid, vid)) in key.chunks_exact_mut(2).zip(tags) {
        words.copy_from_slice(&[tpid.to_be(), vid.to_be()]);
    }
    key
}

/// A VLAN whose frames are steered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct VlanSettings {
    /// The sub-interface's MAC: frames to it are steered, as those to the port's.
    pub mac: MacWords,
    /// With two tags, the MAC of the interface between the two; otherwise the same as `mac`.
    pub between: MacWords,
    /// The sub-interface's number in keys of offloaded flows, which is that of no port; 0: none are offloaded.
    pub number: u16,
}

impl VlanSettings {
    /// Converts it to a map value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 14] {
        let mut out = [0; 14];
        let words = self.mac.iter().chain(&self.between).chain([&self.number]);
        for (to, word) in out.chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }
}

/// Settings that all ports share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SharedSettings {
    /// Bits: [`SharedSettings::PREFIXES4`] and the constants after it.
    pub flags: u32,
    /// 0; aligns the following fields.
    pub reserved: u32,
    /// Maximum age of a worker's heartbeat, in nanoseconds; [`SharedSettings::NO_TIMEOUT_NS`]:
    /// frames are steered without one.
    pub worker_timeout_ns: u64,
    /// Maximum age of the control thread's heartbeat, in nanoseconds.
    pub control_timeout_ns: u64,
}

impl SharedSettings {
    /// No timeout; also the maximum value.
    pub const NO_TIMEOUT_NS: u64 = i64::MAX as u64;
    /// The trie of local IPv4 prefixes is not empty.
    pub const PREFIXES4: u32 = 1;
    /// The trie of local IPv6 prefixes is not empty.
    pub const PREFIXES6: u32 = 2;
    /// [`MAP_IPSEC_SAS`] is not empty.
    pub const IPSEC_SAS: u32 = 4;
    /// Connections of IPv4 are tracked: only packets of the flows in [`MAP_FLOWS`] are steered.
    pub const TRACK4: u32 = 8;
    /// The same for IPv6.
    pub const TRACK6: u32 = 16;
    /// Decisions about IPv4 packets depend on nothing but their addresses and the interface that they come from: keys of
    /// offloaded flows have no ports and no protocol.
    pub const WIDE4: u32 = 32;
    /// The same for IPv6.
    pub const WIDE6: u32 = 64;

    /// Converts it to a map value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..4].copy_from_slice(&self.flags.to_ne_bytes());
        out[8..16].copy_from_slice(&self.worker_timeout_ns.to_ne_bytes());
        out[16..].copy_from_slice(&self.control_timeout_ns.to_ne_bytes());
        out
    }
}

/// One thread's heartbeat, on its own cache line to avoid false sharing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Heartbeat {
    /// CLOCK_MONOTONIC in nanoseconds; 0: not set yet, or withdrawn.
    pub time_ns: u64,
}

/// The heartbeats of all threads: while one is older than its limit ([`SharedSettings`]), the
/// frames concerned are passed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Heartbeats {
    /// The control thread's, which shows that the tables are up to date.
    pub control: Heartbeat,
    /// By RX queue, of any port: that of the worker that serves it.
    pub queues: [Heartbeat; QUEUES_MAX],
}

/// How the punt program redirects and rewrites a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PuntPort {
    /// The port's MAC, written as the destination.
    pub mac: [u8; 6],
    /// Written as the source if `mark_source` is not 0.
    pub punt_source: [u8; 6],
    /// 1 if the port's XDP program is in generic mode and has to recognise the frame.
    pub mark_source: u32,
}

impl PuntPort {
    /// Converts it to a map value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..6].copy_from_slice(&self.mac);
        out[6..12].copy_from_slice(&self.punt_source);
        out[12..].copy_from_slice(&self.mark_source.to_ne_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_index_and_name() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(reason.is_steered(), reason.name().starts_with("steer_"));
            assert_eq!(reason.is_offloaded(), reason.name().starts_with("offload_"));
            assert!(Reason::ALL[..i].iter().all(|r| r.name() != reason.name()));
        }
    }

    #[test]
    fn map_values_have_the_size_the_program_expects() {
        assert_eq!(PortSettings::default().to_bytes().len(), size_of::<PortSettings>());
        assert_eq!(SharedSettings::default().to_bytes().len(), size_of::<SharedSettings>());
        assert_eq!(PuntPort::default().to_bytes().len(), size_of::<PuntPort>());
        assert_eq!(VlanSettings::default().to_bytes().len(), size_of::<VlanSettings>());
        assert_eq!(size_of::<Heartbeats>(), 64 * (1 + QUEUES_MAX));
        assert_eq!(size_of::<QueueState>(), 8 * (REASONS + 1));
    }

    #[test]
    fn the_key_of_a_vlan_equals_its_octets_in_a_frame() {
        let octets = |key: VlanKey| key.map(u16::to_ne_bytes);
        let one = vlan_key([(0x8100, 0x123)]);
        assert_eq!(octets(one), [[0x81, 0], [0x01, 0x23], [0, 0], [0, 0]]);
        let two = vlan_key([(0x88a8, 0xffe), (0x8100, 1)]);
        assert_eq!(octets(two), [[0x88, 0xa8], [0x0f, 0xfe], [0x81, 0], [0, 1]]);
    }

    #[test]
    fn map_values_preserve_octet_order() {
        let settings = PortSettings {
            mac: mac_words([1, 2, 3, 4, 5, 6]),
            punt_source: mac_words([7, 8, 9, 10, 11, 12]),
            flags: PortSettings::GENERIC,
        };
        let bytes = settings.to_bytes();
        assert_eq!(bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(bytes[12..], 4u32.to_ne_bytes());
    }
}
