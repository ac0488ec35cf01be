//! `ferroute_xdp`: decides which frames userspace forwards, and which stay with the kernel.
//!
//! The kernel keeps all but plain IP packets to be forwarded: ARP, the router's own addresses,
//! multicast, broadcast, link-local, VLANs that are not steered. Headers are not checked here:
//! malformed packets go to userspace, which counts each drop by reason. If the queue has no socket
//! the kernel gets all frames, and also while the heartbeat of the worker that serves the queue or
//! of the control thread is too old.
//!
//! While connections of a family are tracked ([`SharedSettings::TRACK4`],
//! [`SharedSettings::TRACK6`]) the kernel also keeps every packet of it that belongs to no known
//! flow, that may open a connection (TCP SYN), or from which the flow cannot be read directly. Packets of a known flow are steered also if they are for an address of the
//! router: answers to a connection whose source NAT translates.
//!
//! Otherwise, of packets to an address of the router those of SAs that userspace opens are steered (`ipsec.rs`).
//!
//! Before all this, packets of offloaded flows are forwarded by the program itself (`offload.rs`). None of them is to an
//! address of the router unless NAT translates it, which there is only while connections are tracked: userspace enters
//! no flow that it has not forwarded, and no prefix with a local route in it.

use core::arch::asm;

use crate::tuple::{Ports, ports};
use crate::{ipsec, offload};
use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE,
        xdp_action::{XDP_PASS, XDP_REDIRECT},
    },
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, XskMap, lpm_trie::Key},
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use xdp_prog::{
    FLOW_BUCKETS_MAX, FLOW_SLOTS, FLOW_WORDS, FlowBucket, FlowHash, Heartbeat, Heartbeats,
    LOCAL_ADDRS_MAX, LOCAL_PREFIXES_MAX, MacWords, PortSettings, QUEUES_MAX, QueueState, Reason,
    SharedSettings, VLANS_MAX, VlanKey, VlanSettings,
};

/// Addresses as in a header: 16-bit words in memory order, so that a map key can be read directly
/// from the frame.
pub type Ipv4Words = [u16; 2];
pub type Ipv6Words = [u16; 8];

/// BPF_F_NO_PREALLOC of linux/bpf.h.
pub const NO_PREALLOC: usize = 1;

#[btf_map]
static FR_SOCKETS: XskMap<QUEUES_MAX> = XskMap::new();
#[btf_map]
static FR_PORT: Array<PortSettings, 1> = Array::new();
#[btf_map]
static FR_QUEUES: PerCpuArray<QueueState, QUEUES_MAX> = PerCpuArray::new();
#[btf_map]
static FR_VLANS: HashMap<VlanKey, VlanSettings, VLANS_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FR_SHARED: Array<SharedSettings, 1> = Array::new();
#[btf_map]
static FR_HEARTBEATS: Array<Heartbeats, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static FR_LOCAL4: HashMap<Ipv4Words, u8, LOCAL_ADDRS_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FR_LOCAL6: HashMap<Ipv6Words, u8, LOCAL_ADDRS_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FR_LOCAL_PFX4: LpmTrie<Ipv4Words, u8, LOCAL_PREFIXES_MAX> = LpmTrie::new();
#[btf_map]
static FR_LOCAL_PFX6: LpmTrie<Ipv6Words, u8, LOCAL_PREFIXES_MAX> = LpmTrie::new();

#[btf_map]
static FR_FLOWS: Array<FlowBucket, FLOW_BUCKETS_MAX, { BPF_F_MMAPABLE as usize }> = Array::new();

pub const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// The VLAN id in the tag control information.
const VLAN_VID_MASK: u16 = 0x0fff;
pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_GRE: u8 = 47;
pub const IPPROTO_AH: u8 = 51;
pub const IPPROTO_ICMPV6: u8 = 58;

/// The first octet of an IPv4 header without options: version 4, five words.
pub const IPV4_NO_OPTIONS: u8 = 0x45;
/// More Fragments and the fragment offset: not 0 in every fragment.
pub const IPV4_FRAGMENT: u16 = 0x3fff;
pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// Headers as 16-bit words: frames are 2-octet aligned, and for a type without alignment BPF would
/// load octet by octet.
#[repr(C)]
pub struct EthHdr {
    pub destination: MacWords,
    pub source: MacWords,
    pub ethertype: u16,
}

/// The part of a tag after its EtherType.
#[repr(C)]
pub struct VlanHdr {
    pub tci: u16,
    pub ethertype: u16,
}

/// The required fields of an IPv4 header without options.
#[repr(C)]
pub struct Ipv4Hdr {
    pub version_ihl_tos: [u8; 2],
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl_protocol: [u8; 2],
    pub check: u16,
    pub source: Ipv4Words,
    pub destination: Ipv4Words,
}

/// Offset of the payload after one tag, and after two, in octets.
const ONE_TAG: usize = size_of::<EthHdr>() + size_of::<VlanHdr>();
const TWO_TAGS: usize = ONE_TAG + size_of::<VlanHdr>();

/// The required fields of the IPv6 fixed header.
#[repr(C)]
pub struct Ipv6Hdr {
    pub before: [u16; 2],
    pub payload_length: u16,
    pub next_header_hop_limit: [u8; 2],
    pub source: Ipv6Words,
    pub destination: Ipv6Words,
}

#[repr(C)]
pub struct UdpHdr {
    pub ports: Ports,
    pub length: u16,
    pub check: u16,
}

/// A TCP header without options.
#[repr(C)]
pub struct TcpHdr {
    pub ports: Ports,
    pub sequence_ack: [u16; 4],
    pub offset_flags: [u8; 2],
    pub after: [u16; 3],
}

/// The RX queue of a frame.
#[derive(Clone, Copy)]
pub struct RxQueue {
    index: u32,
    /// Its state on this CPU.
    state: *mut QueueState,
}

#[xdp]
#[inline(always)]
pub fn ferroute_xdp(ctx: XdpContext) -> u32 {
    let index = ctx.rx_queue_index();
    let Some(state) = FR_QUEUES.get_ptr_mut(index) else {
        return XDP_PASS;
    };
    let queue = RxQueue { index, state };
    let mut reason = decide(&ctx, queue);
    let mut action = if reason.is_offloaded() { XDP_REDIRECT } else { XDP_PASS };
    if reason.is_steered() {
        reason = stalled(queue).unwrap_or(reason);
    }
    if reason.is_steered() {
        // The flags are the action for a queue without a socket.
        match FR_SOCKETS.redirect(index, u64::from(XDP_PASS)) {
            Ok(_) => action = XDP_REDIRECT,
            Err(_) => reason = Reason::PassNoSocket,
        }
    }
    // SAFETY: the pointer is to this CPU's value, which nothing else writes while the program runs;
    // the index is a variant of the enum that determines the array's size.
    unsafe { *(&raw mut (*state).frames).cast::<u64>().add(reason as usize) += 1 };
    action
}

/// Why userspace cannot handle a frame now; `None`: its threads are alive.
///
/// The result is cached for the rest of the jiffy, 1 to 10 ms.
#[inline(always)]
pub fn stalled(queue: RxQueue) -> Option<Reason> {
    // SAFETY: a helper without pointers.
    let jiffies = unsafe { bpf_jiffies64() };
    // SAFETY: this CPU's value, as in `ferroute_xdp`.
    if unsafe { (*queue.state).alive_jiffies } == jiffies {
        return None;
    }
    let stalled = look_for_stall(queue.index);
    if stalled.is_none() {
        // SAFETY: as above.
        unsafe { (*queue.state).alive_jiffies = jiffies };
    }
    stalled
}

/// Compares the heartbeats with the clock.
#[inline(always)]
fn look_for_stall(index: u32) -> Option<Reason> {
    let (Some(shared), Some(heartbeats)) = (FR_SHARED.get(0), FR_HEARTBEATS.get_ptr(0)) else {
        return Some(Reason::PassControlStalled);
    };
    if index as usize >= QUEUES_MAX {
        return Some(Reason::PassWorkerStalled);
    }
    let index = below_queues_max(index);
    // The clock as of the last tick: cheaper to read, with an error of up to 10 ms.
    // SAFETY: a helper without pointers.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: the pointers are into the map value, and the index is inside the array; userspace
    // writes whole words at any time.
    let (control_ns, worker_ns) = unsafe {
        let queues: *const Heartbeat = (&raw const (*heartbeats).queues).cast();
        (
            (&raw const (*heartbeats).control.time_ns).read_volatile(),
            (&raw const (*queues.add(index)).time_ns).read_volatile(),
        )
    };
    if is_expired(now_ns, worker_ns, shared.worker_timeout_ns) {
        return Some(Reason::PassWorkerStalled);
    }
    if is_expired(now_ns, control_ns, shared.control_timeout_ns) {
        return Some(Reason::PassControlStalled);
    }
    None
}

/// The same number, also for the verifier: Linux 6.1 forgets the comparison of a word that is read back from the stack,
/// and the compiler would remove a mask that changes nothing.
#[inline(always)]
fn below_queues_max(index: u32) -> usize {
    let mut index = u64::from(index);
    // SAFETY: an instruction that has no other effect.
    unsafe {
        asm!("{} &= {}", inout(reg) index, const QUEUES_MAX - 1, options(pure, nomem, nostack));
    }
    index as usize
}

/// Whether a heartbeat was withdrawn (0) or is not within `timeout_ns` of now. One set since the
/// last tick is in the future; one that is further ahead was set with another clock, such as that
/// of a time namespace.
#[inline(always)]
fn is_expired(now_ns: u64, time_ns: u64, timeout_ns: u64) -> bool {
    if timeout_ns >= SharedSettings::NO_TIMEOUT_NS {
        return false;
    }
    let since_earliest = now_ns.wrapping_sub(time_ns).wrapping_add(timeout_ns);
    time_ns == 0 || since_earliest > 2 * timeout_ns
}

/// What decisions depend on besides the packet.
pub struct Settings<'a> {
    pub queue: RxQueue,
    pub port: &'a PortSettings,
    pub shared: &'a SharedSettings,
    /// Number of the interface that the frame is for, the port or a VLAN of it. `None`: no flows of it are offloaded.
    number: Option<u16>,
    pub tags: Tags,
}

/// The tags of a frame.
#[derive(Clone, Copy)]
pub struct Tags {
    /// Their length, octets.
    pub octets: usize,
    /// PCP and DEI of the first two, in network byte order; without a second one, the first one's; without tags, 0.
    pub priorities: [u16; 2],
}

impl Settings<'_> {
    /// Offset of the IP header.
    #[inline(always)]
    pub fn l3(&self) -> usize {
        size_of::<EthHdr>() + self.tags.octets
    }

    /// The number that keys of the frame's flows have, if flows are offloaded.
    #[inline(always)]
    fn offload_number(&self) -> Option<u16> {
        let flags = PortSettings::OFFLOAD | PortSettings::GENERIC;
        if self.port.flags & flags == PortSettings::OFFLOAD { self.number } else { None }
    }
}

#[inline(always)]
fn decide(ctx: &XdpContext, queue: RxQueue) -> Reason {
    let (Some(eth), Some(port), Some(shared)) =
        (header::<EthHdr>(ctx, 0), FR_PORT.get(0), FR_SHARED.get(0))
    else {
        return Reason::PassNotIp;
    };
    let tags = Tags { octets: 0, priorities: [0, 0] };
    let number = Some((port.flags >> PortSettings::NUMBER_SHIFT) as u16);
    let mut settings = Settings { queue, port, shared, number, tags };
    let mut ethertype = u16::from_be(eth.ethertype);
    if ethertype == ETH_P_IP || ethertype == ETH_P_IPV6 {
        if !same_mac(&eth.destination, &port.mac) {
            return Reason::PassOtherMac;
        }
    } else {
        match read_tags(ctx, eth, &mut settings) {
            Ok(of_packet) => ethertype = of_packet,
            Err(reason) => return reason,
        }
    }
    if port.flags & PortSettings::GENERIC != 0 && same_mac(&eth.source, &port.punt_source) {
        return Reason::PassPunted;
    }
    decide_family(ctx, ethertype, &settings)
}

/// Reads one or two tags. The VLAN must be steered, and the frame's destination one of the addresses for which the
/// kernel accepts it (`vlan_do_receive`). Returns the EtherType of the packet.
#[inline(always)]
fn read_tags(ctx: &XdpContext, eth: &EthHdr, settings: &mut Settings<'_>) -> Result<u16, Reason> {
    let port = settings.port;
    if !is_tag(eth.ethertype) {
        return Err(Reason::PassNotIp);
    }
    let Some(outer) = header::<VlanHdr>(ctx, ONE_TAG - size_of::<VlanHdr>()) else {
        return Err(Reason::PassNotIp);
    };
    let mut key: VlanKey = [eth.ethertype, outer.tci & VLAN_VID_MASK.to_be(), 0, 0];
    let mut ethertype = outer.ethertype;
    let priority = outer.tci & !VLAN_VID_MASK.to_be();
    let mut tags = Tags { octets: size_of::<VlanHdr>(), priorities: [priority, priority] };
    if is_tag(ethertype) {
        let Some(inner) = header::<VlanHdr>(ctx, TWO_TAGS - size_of::<VlanHdr>()) else {
            return Err(Reason::PassNotIp);
        };
        key[2] = ethertype;
        key[3] = inner.tci & VLAN_VID_MASK.to_be();
        ethertype = inner.ethertype;
        tags.octets = 2 * size_of::<VlanHdr>();
        tags.priorities[1] = inner.tci & !VLAN_VID_MASK.to_be();
    }
    let ethertype = u16::from_be(ethertype);
    if ethertype != ETH_P_IP && ethertype != ETH_P_IPV6 {
        return Err(Reason::PassNotIp);
    }
    // SAFETY: read immediately; if the value is overwritten meanwhile, the VLAN is being changed.
    let Some(vlan) = (unsafe { FR_VLANS.get(&key) }) else {
        return Err(Reason::PassVlan);
    };
    if !same_mac(&eth.destination, &port.mac)
        && !same_mac(&eth.destination, &vlan.mac)
        && !same_mac(&eth.destination, &vlan.between)
    {
        return Err(Reason::PassOtherMac);
    }
    settings.number = if vlan.number == 0 { None } else { Some(vlan.number) };
    settings.tags = tags;
    Ok(ethertype)
}

#[inline(always)]
pub fn is_tag(ethertype: u16) -> bool {
    ethertype == ETH_P_8021Q.to_be() || ethertype == ETH_P_8021AD.to_be()
}

/// Decides for a frame to the port.
#[inline(always)]
fn decide_family(ctx: &XdpContext, ethertype: u16, settings: &Settings<'_>) -> Reason {
    let port = settings.port;
    if ethertype == ETH_P_IP {
        if port.flags & PortSettings::STEER_IPV4 == 0 {
            return Reason::PassFamilyOff;
        }
        decide_ipv4(ctx, settings)
    } else {
        if port.flags & PortSettings::STEER_IPV6 == 0 {
            return Reason::PassFamilyOff;
        }
        decide_ipv6(ctx, settings)
    }
}

#[inline(always)]
fn decide_ipv4(ctx: &XdpContext, settings: &Settings<'_>) -> Reason {
    let shared = settings.shared;
    let Some(ip) = header::<Ipv4Hdr>(ctx, settings.l3()) else {
        return decide_too_short(shared.flags & SharedSettings::TRACK4);
    };
    let high = u16::from_be(ip.destination[0]);
    if high >> 12 == 0xe {
        return Reason::PassMulticast;
    }
    if high == 0xffff && ip.destination[1] == 0xffff {
        return Reason::PassBroadcast;
    }
    if high == 0xa9fe {
        return Reason::PassLinkLocal;
    }
    let is_tracked = shared.flags & SharedSettings::TRACK4 != 0;
    let number = settings.offload_number();
    let is_wide = shared.flags & SharedSettings::WIDE4 != 0;
    // Not an `Option`, whose fields may be undefined: verifiers before Linux 6.3 refuse to read those back.
    let (mut has_flow, mut found) = (false, Flow { words: [0; FLOW_WORDS], hash: 0 });
    if (is_tracked || (number.is_some() && !is_wide))
        && let Some(words) = flow_ipv4(ctx, settings.l3(), ip)
    {
        (has_flow, found) = (true, Flow::new(words));
    }
    let flow = if has_flow { Some(&found) } else { None };
    if let Some(number) = number {
        // Without a flow although they have ports there is no entry.
        let is_of_flow = is_wide || flow.is_some();
        let of = if is_wide { None } else { flow };
        if is_of_flow && let Some(reason) = offload::ipv4(ctx, settings, number, ip, of) {
            return reason;
        }
    }
    // Also to the router's own address, which NAT may translate.
    if is_tracked
        && let Some(flow) = flow
        && is_known(flow.hash)
    {
        return Reason::SteerIpv4;
    }
    if is_local_ipv4(ip, shared) {
        return ipsec::decide_local(ctx, shared);
    }
    match flow {
        _ if !is_tracked => Reason::SteerIpv4,
        None => Reason::PassConntrack,
        Some(_) => Reason::PassNoFlow,
    }
}

#[inline(always)]
fn is_local_ipv4(ip: &Ipv4Hdr, shared: &SharedSettings) -> bool {
    // SAFETY: the value is not read, so a concurrent removal is harmless.
    if unsafe { FR_LOCAL4.get(&ip.destination) }.is_some() {
        return true;
    }
    shared.flags & SharedSettings::PREFIXES4 != 0
        && FR_LOCAL_PFX4.get(&Key::new(32, ip.destination)).is_some()
}

#[inline(always)]
fn decide_ipv6(ctx: &XdpContext, settings: &Settings<'_>) -> Reason {
    let shared = settings.shared;
    let Some(ip) = header::<Ipv6Hdr>(ctx, settings.l3()) else {
        return decide_too_short(shared.flags & SharedSettings::TRACK6);
    };
    let high = u16::from_be(ip.destination[0]);
    if high >> 8 == 0xff {
        return Reason::PassMulticast;
    }
    if high & 0xffc0 == 0xfe80 {
        return Reason::PassLinkLocal;
    }
    let is_tracked = shared.flags & SharedSettings::TRACK6 != 0;
    let number = settings.offload_number();
    let is_wide = shared.flags & SharedSettings::WIDE6 != 0;
    // Not an `Option`, whose fields may be undefined: verifiers before Linux 6.3 refuse to read those back.
    let (mut has_flow, mut found) = (false, Flow { words: [0; FLOW_WORDS], hash: 0 });
    if (is_tracked || (number.is_some() && !is_wide))
        && let Some(words) = flow_ipv6(ctx, settings.l3(), ip)
    {
        (has_flow, found) = (true, Flow::new(words));
    }
    let flow = if has_flow { Some(&found) } else { None };
    if let Some(number) = number {
        // Without a flow although they have ports there is no entry.
        let is_of_flow = is_wide || flow.is_some();
        let of = if is_wide { None } else { flow };
        if is_of_flow && let Some(reason) = offload::ipv6(ctx, settings, number, ip, of) {
            return reason;
        }
    }
    // Also to the router's own address, which NAT may translate.
    if is_tracked
        && let Some(flow) = flow
        && is_known(flow.hash)
    {
        return Reason::SteerIpv6;
    }
    if is_local_ipv6(ip, shared) {
        return ipsec::decide_local(ctx, shared);
    }
    match flow {
        _ if !is_tracked => Reason::SteerIpv6,
        None => Reason::PassConntrack,
        Some(_) => Reason::PassNoFlow,
    }
}

#[inline(always)]
fn is_local_ipv6(ip: &Ipv6Hdr, shared: &SharedSettings) -> bool {
    // SAFETY: the value is not read, so a concurrent removal is harmless.
    if unsafe { FR_LOCAL6.get(&ip.destination) }.is_some() {
        return true;
    }
    shared.flags & SharedSettings::PREFIXES6 != 0
        && FR_LOCAL_PFX6.get(&Key::new(128, ip.destination)).is_some()
}

#[inline(always)]
fn decide_too_short(is_tracked: u32) -> Reason {
    if is_tracked != 0 { Reason::PassConntrack } else { Reason::SteerTooShort }
}

/// The flow of a packet whose IPv4 header is at `l3`; `None`: left to the kernel, see
/// [`Reason::PassConntrack`].
#[inline(always)]
fn flow_ipv4(ctx: &XdpContext, l3: usize, ip: &Ipv4Hdr) -> Option<FlowWords> {
    let is_plain =
        ip.version_ihl_tos[0] == IPV4_NO_OPTIONS && ip.fragment & IPV4_FRAGMENT.to_be() == 0;
    if !is_plain {
        return None;
    }
    let protocol = ip.ttl_protocol[1];
    let octets = u16::from_be(ip.total_length).checked_sub(size_of::<Ipv4Hdr>() as u16)?;
    let ports = ports::<4>(ctx, l3 + size_of::<Ipv4Hdr>(), protocol, octets)?;
    Some(words_ipv4(ip, ports, protocol))
}

/// The flow of a packet whose IPv6 header is at `l3`; `None` as for [`flow_ipv4`].
#[inline(always)]
fn flow_ipv6(ctx: &XdpContext, l3: usize, ip: &Ipv6Hdr) -> Option<FlowWords> {
    let protocol = ip.next_header_hop_limit[0];
    let octets = u16::from_be(ip.payload_length);
    let ports = ports::<6>(ctx, l3 + size_of::<Ipv6Hdr>(), protocol, octets)?;
    Some(words_ipv6(ip, ports, protocol))
}

/// The key of an offloaded flow while keys have addresses only ([`SharedSettings::WIDE4`]).
#[inline(always)]
pub fn wide_ipv4(ip: &Ipv4Hdr) -> FlowWords {
    words_ipv4(ip, Ports { source: 0, destination: 0 }, 0)
}

/// The same for IPv6.
#[inline(always)]
pub fn wide_ipv6(ip: &Ipv6Hdr) -> FlowWords {
    words_ipv6(ip, Ports { source: 0, destination: 0 }, 0)
}

#[inline(always)]
fn words_ipv4(ip: &Ipv4Hdr, ports: Ports, protocol: u8) -> FlowWords {
    let words = |address: Ipv4Words| [quad([address[0], address[1], 0, 0]), 0];
    flow_words(words(ip.source), words(ip.destination), ports, protocol, 4)
}

#[inline(always)]
fn words_ipv6(ip: &Ipv6Hdr, ports: Ports, protocol: u8) -> FlowWords {
    let words = |a: &Ipv6Words| [quad([a[0], a[1], a[2], a[3]]), quad([a[4], a[5], a[6], a[7]])];
    flow_words(words(&ip.source), words(&ip.destination), ports, protocol, 6)
}

/// A [`xdp_prog::FlowKey`] in 64-bit words.
pub type FlowWords = [u64; FLOW_WORDS];

/// A key and its hash, which is that of all tables of flows.
#[derive(Clone, Copy)]
pub struct Flow {
    pub words: FlowWords,
    pub hash: u64,
}

impl Flow {
    #[inline(always)]
    pub fn new(words: FlowWords) -> Flow {
        // No `Option` for a lookup that cannot fail: the compiler leaves the fields of `None` undefined and stores them,
        // which the verifier of Linux 6.12 refuses.
        let hash = match FR_FLOWS.get_ptr(0) {
            // SAFETY: the first entry is a `FlowHash`. Userspace writes its mask, a whole word; any value leads into the array or
            // to none.
            Some(hash) => unsafe { &*hash.cast::<FlowHash>() }.hash(&words),
            None => 0,
        };
        Flow { words, hash }
    }
}

#[inline(always)]
fn flow_words(
    source: [u64; 2],
    destination: [u64; 2],
    ports: Ports,
    protocol: u8,
    family: u8,
) -> FlowWords {
    let kind = u16::from_ne_bytes([protocol, family]);
    let last = quad([ports.source, ports.destination, kind, 0]);
    [source[0], source[1], destination[0], destination[1], last]
}

/// Four 16-bit words in memory order as one: `bpfel` is little-endian.
#[inline(always)]
pub fn quad(words: [u16; 4]) -> u64 {
    let [a, b, c, d] = words.map(u64::from);
    a | b << 16 | c << 32 | d << 48
}

/// Whether packets of the flow with this hash are steered. While an entry is added or removed the result may be
/// that of before or after.
#[inline(always)]
fn is_known(of_key: u64) -> bool {
    let Some(hash) = FR_FLOWS.get_ptr(0) else {
        return false;
    };
    // SAFETY: the first entry is a `FlowHash`. Userspace writes its mask, a whole word; any value leads into the array or
    // to none.
    let place = unsafe { &*hash.cast::<FlowHash>() }.place_of(of_key);
    has_mark(place.buckets[0], place.mark) || has_mark(place.buckets[1], place.mark)
}

#[inline(always)]
fn has_mark(bucket: u32, mark: u32) -> bool {
    let Some(bucket) = FR_FLOWS.get_ptr(bucket) else {
        return false;
    };
    let mut differ = u64::MAX;
    for at in 0..FLOW_SLOTS {
        // SAFETY: inside the map's value; userspace writes whole words at any time.
        let slot = unsafe { (&raw const (*bucket).slots).cast::<u32>().add(at).read_volatile() };
        // 0 if they are the same, otherwise positive.
        let difference = u64::from(slot ^ mark);
        // The lowest one is 0 if any is.
        differ = if difference < differ { difference } else { differ };
    }
    differ == 0
}

/// The header of type `T` at `offset` octets into the frame, if the frame is long enough.
#[inline(always)]
pub fn header<T>(ctx: &XdpContext, offset: usize) -> Option<&T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: inside the frame, as just checked; frames are 2-octet aligned as `T` is, and every
    // bit pattern is a `T`.
    Some(unsafe { &*(start as *const T) })
}

#[inline(always)]
fn same_mac(a: &MacWords, b: &MacWords) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) == 0
}
