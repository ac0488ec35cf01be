//! Tests of the whole data path: octets in, octets out, and counters.
//!
//! Two ports, `left` and `right`, each with a resolved neighbour (`.2`, `::2`), one interface that
//! belongs to the kernel only, and routes of every type.

mod carried;
mod carried_rules;
mod conservation;
mod fragments;
mod hold;
mod hooks;
mod icmp4;
mod icmp6;
mod ingress;
mod ipsec;
mod ipsec_errors;
mod ipsec_of_file;
mod ipsec_rules;
mod ipv4;
mod ipv6;
mod jumbo;
mod offload;
mod options;
mod partial;
mod reassembly;
mod traced;
mod trains;
mod vlan;
mod writes;
mod xfrm;
mod xfrmi;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::*;
use crate::fib::{FamilyFib, FibInfo, Lpm4, Lpm6, Nexthop, RouteType};
use crate::ipsec::{Direction, Policy};
use crate::neigh::{NeighTable, Neighbour};
use crate::netfilter::{Hooks, NetHooks, NfHookOps};
use crate::skb::{FramePool, Umem};
use crate::stats::{Mib, WorkerStats};
use crate::tables::{
    Forwarding6, InIfaddr, Inet6Ifaddr, Links, Sysctls, Tables, XfrmPolicies, XfrmStates,
};
use crate::wire::{Ipv4Packet, Protocol, checksum};

pub const LEFT: u16 = 0;
pub const RIGHT: u16 = 1;
pub const LEFT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x01];
pub const RIGHT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x02];
pub const LEFT_HOST_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0x02];
pub const RIGHT_HOST_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0x02];
pub const FRAMES: u32 = 512;

/// The router's configuration; change it before [`Net::lab`].
#[derive(Clone)]
pub struct Net {
    pub links: Vec<Link>,
    pub routes4: Vec<(&'static str, FibInfo)>,
    pub routes6: Vec<(&'static str, FibInfo)>,
    pub neigh: Vec<(u32, &'static str, Option<[u8; 6]>)>,
    pub sysctl: Sysctls,
    pub hooks: Vec<NfHookOps>,
    pub policies: Vec<(Direction, Policy)>,
    /// These and the SAs are of a file; whether the kernel has the policies, too.
    pub of_file: Option<bool>,
    pub states: Arc<XfrmStates>,
}

fn link(ifindex: u32, name: &str, port: Option<u16>, mac: [u8; 6]) -> Link {
    let (forwarding4, forwarding6) = (true, Forwarding6::On);
    Link { port, mac, forwarding4, forwarding6, ..Link::new(ifindex, name) }
}

/// A route through `gateway`, or on link if it is empty.
pub fn via(oif: u32, gateway: &str) -> FibInfo {
    let dev = match oif {
        2 => Some(LEFT),
        3 => Some(RIGHT),
        // VLANs.
        10.. => Some(oif as u16 - 8),
        _ => None,
    };
    let gateway = gateway.parse::<IpAddr>().ok();
    let nexthop = Nexthop { oif, dev, gateway, weight: 1, dead: false, onlink: false };
    FibInfo { nexthops: [nexthop].into(), ..FibInfo::special(RouteType::Unicast) }
}

impl Default for Net {
    fn default() -> Net {
        let mut left = link(2, "left", Some(LEFT), LEFT_MAC);
        left.addrs4 = vec![InIfaddr::new(addr4("198.18.1.1"), 24)];
        left.addrs6 = vec![
            Inet6Ifaddr::new(addr6("2001:db8:1::1"), 64),
            Inet6Ifaddr::new(addr6("fe80::1"), 64),
        ];
        let mut right = link(3, "right", Some(RIGHT), RIGHT_MAC);
        right.addrs4 = vec![InIfaddr::new(addr4("198.18.2.1"), 24)];
        right.addrs6 = vec![
            Inet6Ifaddr::new(addr6("2001:db8:2::1"), 64),
            Inet6Ifaddr::new(addr6("fe80::1"), 64),
        ];
        let mut wan = link(4, "wan", None, [2, 0, 0, 0, 0, 3]);
        wan.addrs4 = vec![InIfaddr::new(addr4("203.0.113.1"), 24)];
        let mut lo = link(1, "lo", None, [0; 6]);
        lo.addrs4 = vec![InIfaddr { scope: 254, ..InIfaddr::new(addr4("127.0.0.1"), 8) }];
        let special = FibInfo::special;
        let routes4 = vec![
            ("198.18.1.0/24", via(2, "")),
            ("198.18.2.0/24", via(3, "")),
            ("198.18.1.1/32", special(RouteType::Local)),
            ("198.18.2.1/32", special(RouteType::Local)),
            ("198.18.1.255/32", special(RouteType::Broadcast)),
            ("198.18.2.255/32", special(RouteType::Broadcast)),
            ("203.0.113.0/24", via(4, "")),
            ("10.0.0.0/8", via(3, "198.18.2.2")),
            ("10.9.0.0/16", special(RouteType::Blackhole)),
            ("10.10.0.0/16", special(RouteType::Unreachable)),
            ("10.11.0.0/16", special(RouteType::Prohibit)),
            ("10.12.0.0/16", FibInfo { mtu: 1000, ..via(3, "198.18.2.2") }),
            ("10.13.0.0/16", via(3, "2001:db8:2::2")),
            ("10.14.0.0/16", via(3, "198.18.2.77")),
        ];
        let routes6 = vec![
            ("2001:db8:1::/64", via(2, "")),
            ("2001:db8:2::/64", via(3, "")),
            ("2001:db8:1::1/128", special(RouteType::Local)),
            ("2001:db8:2::1/128", special(RouteType::Local)),
            ("2001:db8:4::/64", via(4, "")),
            ("2001:db8:a::/48", via(3, "2001:db8:2::2")),
            ("2001:db8:a:9::/64", special(RouteType::Blackhole)),
            ("2001:db8:a:10::/64", special(RouteType::Unreachable)),
            ("2001:db8:a:11::/64", special(RouteType::Prohibit)),
            ("2001:db8:a:12::/64", FibInfo { mtu: 1300, ..via(3, "2001:db8:2::2") }),
            ("2001:db8:a:14::/64", via(3, "2001:db8:2::77")),
        ];
        let neigh = vec![
            (2, "198.18.1.2", Some(LEFT_HOST_MAC)),
            (3, "198.18.2.2", Some(RIGHT_HOST_MAC)),
            (2, "2001:db8:1::2", Some(LEFT_HOST_MAC)),
            (2, "fe80::2", Some(LEFT_HOST_MAC)),
            (3, "2001:db8:2::2", Some(RIGHT_HOST_MAC)),
        ];
        let sysctl = Sysctls {
            icmp_ratelimit_ms: 0,
            icmp6_ratelimit_ms: 0,
            icmp_msgs_per_sec: 1_000_000,
            icmp_msgs_burst: 1_000_000,
            ..Sysctls::default()
        };
        let links = vec![lo, left, right, wan];
        Net {
            links,
            routes4,
            routes6,
            neigh,
            sysctl,
            hooks: Default::default(),
            policies: Vec::new(),
            of_file: None,
            states: Arc::default(),
        }
    }
}

impl Net {
    pub fn tables(&self, generation: u64) -> Tables {
        let entry = |&(oif, addr, lladdr): &(u32, &str, Option<[u8; 6]>)| {
            Neighbour::new(oif, addr.parse().expect("an address"), lladdr)
        };
        Tables {
            generation,
            links: Arc::new(Links::new(self.links.clone())),
            fib4: fib4(&self.routes4),
            fib6: fib6(&self.routes6),
            neigh: Arc::new(NeighTable::new(self.neigh.iter().map(entry).collect())),
            sysctl: Arc::new(self.sysctl.clone()),
            xfrm: Arc::new({
                let (policies, states) = (self.policies.clone(), Arc::clone(&self.states));
                let policies = XfrmPolicies::with_states(policies, states);
                match self.of_file {
                    Some(is_guarded) => policies.of_file(is_guarded),
                    None => policies,
                }
            }),
            epochs: Arc::new(crate::tables::Epochs::none()),
        }
    }

    pub fn lab(self) -> Lab {
        let mut state = PipelineState::new(0x5eed_5eed_5eed_5eed, 1);
        state.utc_offset_ns = 0;
        let mut registry = NetHooks::new(1);
        registry.nf_register_net_hooks(self.hooks.iter().rev().cloned());
        let hooks = registry.published().load();
        state.take_hook_states(&hooks);
        Lab {
            hooks,
            tables: self.tables(1),
            net: self,
            pool: Umem::anonymous(FRAMES).into_pool(),
            stats: WorkerStats::new(2),
            state,
            out: Effects::new(2),
            now_ns: 1_000_000_000_000,
        }
    }
}

macro_rules! family {
    ($name:ident, $lpm:ty) => {
        fn $name(routes: &[(&str, FibInfo)]) -> FamilyFib<$lpm> {
            let leaf = |(n, (prefix, _)): (usize, &(&str, FibInfo))| {
                (prefix.parse().expect("a prefix"), n as u32 + 1)
            };
            let table = <$lpm>::from_routes(routes.iter().enumerate().map(leaf)).expect("a table");
            let unused = std::iter::once(Arc::new(FibInfo::special(RouteType::Blackhole)));
            let infos = routes.iter().map(|(_, info)| Arc::new(info.clone()));
            let infos = unused.chain(infos).collect();
            FamilyFib { tables: Arc::new([table]), infos, ..FamilyFib::empty() }
        }
    };
}
family!(fib4, Lpm4);
family!(fib6, Lpm6);

/// A router under test.
pub struct Lab {
    pub net: Net,
    pub tables: Tables,
    pub hooks: Arc<Hooks>,
    pub pool: FramePool,
    pub stats: WorkerStats,
    pub state: PipelineState,
    pub out: Effects,
    pub now_ns: u64,
}

impl Lab {
    fn ctx<R>(&mut self, f: impl FnOnce(&mut Ctx<'_>) -> R) -> R {
        f(&mut Ctx {
            tables: &self.tables,
            hooks: &self.hooks,
            pool: &mut self.pool,
            stats: &self.stats,
            state: &mut self.state,
            out: &mut self.out,
            now_ns: self.now_ns,
        })
    }

    /// Receives frames on a port, as one burst.
    pub fn receive(&mut self, port: u16, frames: &[Vec<u8>]) {
        let skbs = frames.iter().map(|frame| SkBuff::of_octets(&mut self.pool, frame));
        let skbs = skbs.map(|skb| skb.expect("a frame")).collect();
        self.receive_skbs(port, skbs);
    }

    /// Receives packets on a port, as one burst.
    pub fn receive_skbs(&mut self, port: u16, skbs: Vec<SkBuff>) {
        let mut burst = Burst::with_capacity(skbs.len());
        for mut skb in skbs {
            (skb.port, skb.iif) = (port, u32::from(port) + 2);
            burst.push(skb).expect("room");
        }
        self.ctx(|ctx| forward_burst(&mut burst, ctx));
        assert!(burst.is_empty());
        self.assert_conserved();
    }

    pub fn poll(&mut self) {
        self.ctx(poll_held);
        self.assert_conserved();
    }

    /// New tables after a change of `net`.
    pub fn publish(&mut self) {
        self.tables = self.net.tables(self.tables.generation + 1);
    }

    /// Sent frames, in order by port; their memory returns to the pool.
    pub fn sent(&mut self) -> Vec<(u16, Vec<u8>)> {
        let mut sent = Vec::new();
        for (port, egress) in self.out.egress.iter_mut().enumerate() {
            for skb in egress.drain(usize::MAX) {
                sent.push((port as u16, flat(&skb)));
                self.pool.kfree_skb(skb);
            }
        }
        sent
    }

    /// Frames for the kernel.
    pub fn punted(&mut self) -> Vec<Vec<u8>> {
        let mut punted = Vec::new();
        let reasons = self.out.punt_reasons.drain(..);
        for (skb, reason) in self.out.punts.drain(usize::MAX).zip(reasons) {
            self.stats.punt(reason, skb.port);
            punted.push(flat(&skb));
            self.pool.kfree_skb(skb);
        }
        punted
    }

    /// Receives one frame by `left`; returns the sent frames.
    pub fn one(&mut self, frame: Vec<u8>) -> Vec<(u16, Vec<u8>)> {
        self.receive(LEFT, &[frame]);
        self.sent()
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.stats.drops[reason as usize].get()
    }

    pub fn punts(&self, reason: PuntReason) -> u64 {
        let waiting = self.out.punt_reasons.iter().filter(|&&waiting| waiting == reason).count();
        self.stats.punt_count(reason) + waiting as u64
    }

    pub fn mib(&self, name: Mib) -> u64 {
        self.stats.mib[name as usize].get()
    }

    pub fn assert_conserved(&self) {
        let frames = self.pool.available() + self.out.len() + self.state.held();
        assert_eq!(frames, self.pool.total() as usize, "free + out + held = all");
    }
}

/// A packet's octets, from all its frames.
fn flat(skb: &SkBuff) -> Vec<u8> {
    skb.slices(0, usize::MAX).flatten().copied().collect()
}

pub fn addr4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

pub fn addr6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

/// An Ethernet frame from the host on the left to the router.
pub fn eth(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = [LEFT_MAC, LEFT_HOST_MAC].concat();
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

/// An IPv4 packet to build: options padded to four octets, valid checksum.
#[derive(Clone)]
pub struct V4 {
    pub src: &'static str,
    pub dst: &'static str,
    pub ttl: u8,
    pub tos: u8,
    pub protocol: Protocol,
    pub dont_frag: bool,
    pub more_frags: bool,
    pub offset: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Default for V4 {
    fn default() -> V4 {
        V4 {
            src: "198.18.1.2",
            dst: "198.18.2.2",
            ttl: 64,
            tos: 0,
            protocol: Protocol::UDP,
            dont_frag: false,
            more_frags: false,
            offset: 0,
            options: Vec::new(),
            payload: udp(b"payload of a packet"),
        }
    }
}

impl V4 {
    pub fn to(dst: &'static str) -> V4 {
        V4 { dst, ..V4::default() }
    }

    pub fn packet(&self) -> Vec<u8> {
        let header_len = 20 + self.options.len().next_multiple_of(4);
        let mut packet = vec![0; header_len];
        packet[20..20 + self.options.len()].copy_from_slice(&self.options);
        packet.extend(&self.payload);
        let total_len = packet.len() as u16;
        let mut ipv4 = Ipv4Packet::new_unchecked(&mut packet[..]);
        ipv4.set_version_and_header_len(header_len);
        ipv4.set_tos(self.tos);
        ipv4.set_total_len(total_len);
        ipv4.set_ident(0x1234);
        ipv4.set_frag(self.dont_frag, self.more_frags, self.offset);
        ipv4.set_ttl(self.ttl);
        ipv4.set_protocol(self.protocol);
        ipv4.set_src_addr(addr4(self.src));
        ipv4.set_dst_addr(addr4(self.dst));
        ipv4.fill_checksum();
        packet
    }

    pub fn frame(&self) -> Vec<u8> {
        eth(0x0800, &self.packet())
    }
}

/// An IPv6 packet to build.
#[derive(Clone)]
pub struct V6 {
    pub src: &'static str,
    pub dst: &'static str,
    pub hop_limit: u8,
    pub next_header: Protocol,
    pub payload: Vec<u8>,
}

impl Default for V6 {
    fn default() -> V6 {
        V6 {
            src: "2001:db8:1::2",
            dst: "2001:db8:2::2",
            hop_limit: 64,
            next_header: Protocol::UDP,
            payload: udp(b"payload of a packet"),
        }
    }
}

impl V6 {
    pub fn to(dst: &'static str) -> V6 {
        V6 { dst, ..V6::default() }
    }

    pub fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((self.payload.len() as u16).to_be_bytes());
        packet.extend([self.next_header.0, self.hop_limit]);
        packet.extend(addr6(self.src).octets());
        packet.extend(addr6(self.dst).octets());
        packet.extend(&self.payload);
        packet
    }

    pub fn frame(&self) -> Vec<u8> {
        eth(0x86dd, &self.packet())
    }
}

/// A UDP datagram from port 4000 to port 9 without a checksum.
pub fn udp(data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x0f, 0xa0, 0, 9];
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

/// The IP packet of a frame whose link-layer header must be as given.
pub fn packet_to(frame: &[u8], dst: [u8; 6], src: [u8; 6], ethertype: u16) -> &[u8] {
    assert_eq!(frame[..6], dst, "destination MAC");
    assert_eq!(frame[6..12], src, "source MAC");
    assert_eq!(frame[12..14], ethertype.to_be_bytes(), "EtherType");
    &frame[14..]
}

/// The only frame of `sent`, which must have left by `right` for the host there.
pub fn forwarded(sent: &[(u16, Vec<u8>)], ethertype: u16) -> &[u8] {
    let [(RIGHT, frame)] = sent else { panic!("one frame by right, not {sent:02x?}") };
    packet_to(frame, RIGHT_HOST_MAC, RIGHT_MAC, ethertype)
}

/// The only frame of `sent`, which must have gone back to the host on the left.
pub fn answered(sent: &[(u16, Vec<u8>)], ethertype: u16) -> &[u8] {
    let [(LEFT, frame)] = sent else { panic!("one frame by left, not {sent:02x?}") };
    packet_to(frame, LEFT_HOST_MAC, LEFT_MAC, ethertype)
}

/// A packet after one hop: TTL decremented, checksum recomputed.
pub fn after_hop(mut packet: Vec<u8>) -> Vec<u8> {
    let mut ipv4 = Ipv4Packet::new_unchecked(&mut packet[..]);
    let ttl = ipv4.ttl() - 1;
    ipv4.set_ttl(ttl);
    ipv4.fill_checksum();
    packet
}
