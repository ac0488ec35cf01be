//! `ferroute_xdp`: decides which frames userspace forwards, and which stay with the kernel.
//!
//! The kernel keeps all but plain IP packets to be forwarded: ARP, the router's own addresses,
//! multicast, broadcast, link-local, VLANs that are not steered. Headers are not checked here:
//! malformed packets go to userspace, which counts each drop by reason. If the queue has no socket
//! the kernel gets all frames, and also while the heartbeat of the worker that serves the queue or
//! of the control thread is too old.

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
    Heartbeat, Heartbeats, LOCAL_ADDRS_MAX, LOCAL_PREFIXES_MAX, MacWords, PortSettings, QUEUES_MAX,
    QueueState, Reason, SharedSettings, VLANS_MAX, VlanKey, VlanSettings,
};

/// Addresses as in a header: 16-bit words in memory order, so that a map key can be read directly
/// from the frame.
type Ipv4Words = [u16; 2];
type Ipv6Words = [u16; 8];

/// BPF_F_NO_PREALLOC of linux/bpf.h.
const NO_PREALLOC: usize = 1;

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

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// The VLAN id in the tag control information.
const VLAN_VID_MASK: u16 = 0x0fff;
const IPPROTO_ESP: u8 = 50;
const IPPROTO_AH: u8 = 51;

/// Headers as 16-bit words: frames are 2-octet aligned, and for a type without alignment BPF would
/// load octet by octet.
#[repr(C)]
struct EthHdr {
    destination: MacWords,
    source: MacWords,
    ethertype: u16,
}

/// The part of a tag after its EtherType.
#[repr(C)]
struct VlanHdr {
    tci: u16,
    ethertype: u16,
}

/// The required fields of an IPv4 header without options.
#[repr(C)]
struct Ipv4Hdr {
    before: [u16; 4],
    ttl_protocol: [u8; 2],
    check: u16,
    source: Ipv4Words,
    destination: Ipv4Words,
}

/// Offset of the payload after one tag, and after two, in octets.
const ONE_TAG: usize = size_of::<EthHdr>() + size_of::<VlanHdr>();
const TWO_TAGS: usize = ONE_TAG + size_of::<VlanHdr>();

/// The required fields of the IPv6 fixed header.
#[repr(C)]
struct Ipv6Hdr {
    before: [u16; 3],
    next_header_hop_limit: [u8; 2],
    source: Ipv6Words,
    destination: Ipv6Words,
}

#[xdp]
pub fn ferroute_xdp(ctx: XdpContext) -> u32 {
    let index = ctx.rx_queue_index();
    let Some(queue) = FR_QUEUES.get_ptr_mut(index) else {
        return XDP_PASS;
    };
    let mut reason = decide(&ctx);
    let mut action = XDP_PASS;
    if reason.is_steered() {
        reason = stalled(queue, index).unwrap_or(reason);
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
    unsafe { *(&raw mut (*queue).frames).cast::<u64>().add(reason as usize) += 1 };
    action
}

/// Why userspace cannot handle a frame now; `None`: its threads are alive.
///
/// The result is cached for the rest of the jiffy, 1 to 10 ms.
#[inline(always)]
fn stalled(queue: *mut QueueState, index: u32) -> Option<Reason> {
    // SAFETY: a helper without pointers.
    let jiffies = unsafe { bpf_jiffies64() };
    // SAFETY: this CPU's value, as in `ferroute_xdp`.
    if unsafe { (*queue).alive_jiffies } == jiffies {
        return None;
    }
    let stalled = look_for_stall(index);
    if stalled.is_none() {
        // SAFETY: as above.
        unsafe { (*queue).alive_jiffies = jiffies };
    }
    stalled
}

/// Compares the heartbeats with the clock.
#[inline(always)]
fn look_for_stall(index: u32) -> Option<Reason> {
    let (Some(shared), Some(heartbeats)) = (FR_SHARED.get(0), FR_HEARTBEATS.get_ptr(0)) else {
        return Some(Reason::PassControlStalled);
    };
    let index = index as usize;
    if index >= QUEUES_MAX {
        return Some(Reason::PassWorkerStalled);
    }
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

#[inline(always)]
fn decide(ctx: &XdpContext) -> Reason {
    let (Some(eth), Some(port), Some(shared)) =
        (header::<EthHdr>(ctx, 0), FR_PORT.get(0), FR_SHARED.get(0))
    else {
        return Reason::PassNotIp;
    };
    let ethertype = u16::from_be(eth.ethertype);
    if ethertype != ETH_P_IP && ethertype != ETH_P_IPV6 {
        return decide_tagged(ctx, eth, port, shared);
    }
    if !same_mac(&eth.destination, &port.mac) {
        return Reason::PassOtherMac;
    }
    if port.flags & PortSettings::GENERIC != 0 && same_mac(&eth.source, &port.punt_source) {
        return Reason::PassPunted;
    }
    decide_family::<{ size_of::<EthHdr>() }>(ctx, ethertype, port, shared)
}

/// Decides for a frame with one or two tags: its VLAN must be steered, and its destination one of
/// the addresses for which the kernel accepts it (`vlan_do_receive`).
#[inline(always)]
fn decide_tagged(
    ctx: &XdpContext,
    eth: &EthHdr,
    port: &PortSettings,
    shared: &SharedSettings,
) -> Reason {
    if !is_tag(eth.ethertype) {
        return Reason::PassNotIp;
    }
    let Some(outer) = header::<VlanHdr>(ctx, ONE_TAG - size_of::<VlanHdr>()) else {
        return Reason::PassNotIp;
    };
    let mut key: VlanKey = [eth.ethertype, outer.tci & VLAN_VID_MASK.to_be(), 0, 0];
    let mut ethertype = outer.ethertype;
    let twice = is_tag(ethertype);
    if twice {
        let Some(inner) = header::<VlanHdr>(ctx, TWO_TAGS - size_of::<VlanHdr>()) else {
            return Reason::PassNotIp;
        };
        key[2] = ethertype;
        key[3] = inner.tci & VLAN_VID_MASK.to_be();
        ethertype = inner.ethertype;
    }
    let ethertype = u16::from_be(ethertype);
    if ethertype != ETH_P_IP && ethertype != ETH_P_IPV6 {
        return Reason::PassNotIp;
    }
    // SAFETY: read immediately; if the value is overwritten meanwhile, the VLAN is being changed.
    let Some(vlan) = (unsafe { FR_VLANS.get(&key) }) else {
        return Reason::PassVlan;
    };
    if !same_mac(&eth.destination, &port.mac)
        && !same_mac(&eth.destination, &vlan.mac)
        && !same_mac(&eth.destination, &vlan.between)
    {
        return Reason::PassOtherMac;
    }
    if port.flags & PortSettings::GENERIC != 0 && same_mac(&eth.source, &port.punt_source) {
        return Reason::PassPunted;
    }
    if twice {
        decide_family::<TWO_TAGS>(ctx, ethertype, port, shared)
    } else {
        decide_family::<ONE_TAG>(ctx, ethertype, port, shared)
    }
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ETH_P_8021Q.to_be() || ethertype == ETH_P_8021AD.to_be()
}

/// Decides for a frame to the port whose IP header is at `OFFSET`.
#[inline(always)]
fn decide_family<const OFFSET: usize>(
    ctx: &XdpContext,
    ethertype: u16,
    port: &PortSettings,
    shared: &SharedSettings,
) -> Reason {
    if ethertype == ETH_P_IP {
        if port.flags & PortSettings::STEER_IPV4 == 0 {
            return Reason::PassFamilyOff;
        }
        decide_ipv4::<OFFSET>(ctx, shared)
    } else {
        if port.flags & PortSettings::STEER_IPV6 == 0 {
            return Reason::PassFamilyOff;
        }
        decide_ipv6::<OFFSET>(ctx, shared)
    }
}

#[inline(always)]
fn decide_ipv4<const OFFSET: usize>(ctx: &XdpContext, shared: &SharedSettings) -> Reason {
    let Some(ip) = header::<Ipv4Hdr>(ctx, OFFSET) else {
        return Reason::SteerTooShort;
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
    // SAFETY: the value is not read, so a concurrent removal is harmless.
    let mut local = unsafe { FR_LOCAL4.get(&ip.destination) }.is_some();
    if !local && shared.flags & SharedSettings::PREFIXES4 != 0 {
        local = FR_LOCAL_PFX4.get(&Key::new(32, ip.destination)).is_some();
    }
    if local {
        return decide_local(ip.ttl_protocol[1], shared);
    }
    Reason::SteerIpv4
}

#[inline(always)]
fn decide_ipv6<const OFFSET: usize>(ctx: &XdpContext, shared: &SharedSettings) -> Reason {
    let Some(ip) = header::<Ipv6Hdr>(ctx, OFFSET) else {
        return Reason::SteerTooShort;
    };
    let high = u16::from_be(ip.destination[0]);
    if high >> 8 == 0xff {
        return Reason::PassMulticast;
    }
    if high & 0xffc0 == 0xfe80 {
        return Reason::PassLinkLocal;
    }
    // SAFETY: the value is not read, so a concurrent removal is harmless.
    let mut local = unsafe { FR_LOCAL6.get(&ip.destination) }.is_some();
    if !local && shared.flags & SharedSettings::PREFIXES6 != 0 {
        local = FR_LOCAL_PFX6.get(&Key::new(128, ip.destination)).is_some();
    }
    if local {
        return decide_local(ip.next_header_hop_limit[0], shared);
    }
    Reason::SteerIpv6
}

#[inline(always)]
fn decide_local(protocol: u8, shared: &SharedSettings) -> Reason {
    let ipsec = protocol == IPPROTO_ESP || protocol == IPPROTO_AH;
    if ipsec && shared.flags & SharedSettings::IPSEC_TERMINATE != 0 {
        return Reason::SteerIpsec;
    }
    Reason::PassLocal
}

/// The header of type `T` at `offset` octets into the frame, if the frame is long enough.
#[inline(always)]
fn header<T>(ctx: &XdpContext, offset: usize) -> Option<&T> {
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
