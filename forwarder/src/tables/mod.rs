//! The immutable snapshot of tables that workers use, and its publication.
//!
//! control thread: writes; workers: read only. A worker detects a new snapshot with one atomic load per
//! burst. The longest-prefix-match tables inside are shared and updated in place (see `fib`), so that a
//! route change does not copy a table.

mod addr_label;
pub mod epochs;
mod in_ifaddr;
pub mod publish;
pub mod vlan;
pub mod xfrm;
pub mod xfrmi;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fib::{FamilyFib, Lpm4, Lpm6};
use crate::hash_table::{HashTable, Slot, mix};
use crate::neigh::NeighTable;
use crate::wire::HashFields;

pub use addr_label::{AddrLabel, AddrLabels};
pub use epochs::Epochs;
pub use in_ifaddr::{InIfaddr, Inet6Ifaddr, RT_SCOPE_HOST, RT_SCOPE_LINK};
pub use publish::{Published, Snapshot};
pub use vlan::{EgressTag, Tag, TagStack, Vlan};
pub use xfrm::{Wanted, XfrmLookup, XfrmPolicies, XfrmStates};
pub use xfrmi::{TunnelTaker, Xfrmi};

use vlan::Tagged;
use xfrmi::ByIfId;

/// ifindex of `lo` in every network namespace: the input interface of the router's own packets in lookups.
pub const LOOPBACK_IFINDEX: u32 = 1;

/// `rp_filter` of the kernel (RFC 3704).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RpFilter {
    /// No check.
    #[default]
    Off,
    /// The best reverse route leads through this interface.
    Strict,
    /// Any reverse route exists.
    Loose,
}

/// Whether IPv6 packets received on an interface are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forwarding6 {
    /// No.
    #[default]
    Off,
    /// Yes.
    On,
    /// Yes, and net.ipv6.conf.all.proxy_ndp makes the kernel answer neighbour solicitations for others:
    /// unicast neighbour discovery is punted (`ip6_forward_proxy_check`).
    WithNdProxy,
}

impl Forwarding6 {
    /// `On` or `Off`.
    pub fn plain(on: bool) -> Forwarding6 {
        if on { Forwarding6::On } else { Forwarding6::Off }
    }
}

/// An interface as the data path needs it, whether or not it is one of our ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's index of the interface.
    pub ifindex: u32,
    /// Name, for messages.
    pub name: String,
    /// Index among the worker's ports; for a VLAN sub-interface, that of its port. `None`: it belongs to
    /// the kernel only.
    pub port: Option<u16>,
    /// Set for a VLAN sub-interface.
    pub vlan: Option<Vlan>,
    /// Set for an xfrm interface that workers receive by and send by. It has no port.
    pub xfrmi: Option<Xfrmi>,
    /// It takes packets of tunnels, and is the kernel's.
    pub takes: Option<TunnelTaker>,
    /// Own MAC address.
    pub mac: [u8; 6],
    /// IP MTU in octets.
    pub mtu: u32,
    /// IPv6 MTU in octets (sysctl net.ipv6.conf.*.mtu), at most `mtu`.
    pub mtu6: u32,
    /// net.ipv6.conf.*.hop_limit, which router advertisements may set; 0: it has no IPv6.
    pub hop_limit: u8,
    /// IFF_UP and carrier: packets may be sent on it.
    pub up: bool,
    /// Point to point or without ARP (IFF_NOARP): next hops are not resolved.
    pub noarp: bool,
    /// net.ipv4.conf.*.forwarding.
    pub forwarding4: bool,
    /// net.ipv6.conf.all.forwarding, or the interface's force_forwarding.
    pub forwarding6: Forwarding6,
    /// The effective rp_filter: the larger of conf.all and the interface's own.
    pub rp_filter: RpFilter,
    /// net.ipv4.conf.*.accept_source_route, as effective (all AND own).
    pub accept_source_route: bool,
    /// net.ipv4.conf.*.send_redirects, as effective (all OR own).
    pub send_redirects: bool,
    /// net.ipv4.conf.*.route_localnet: 127/8 is not martian here.
    pub route_localnet: bool,
    /// net.ipv4.conf.*.accept_local, as effective (all OR own): our own addresses are valid sources.
    pub accept_local: bool,
    /// net.ipv4.conf.*.shared_media, as effective (all OR own): redirects may name a router of another
    /// subnet on the same link.
    pub shared_media: bool,
    /// net.ipv6.conf.*.disable_ipv6.
    pub disable_ipv6: bool,
    /// For how long the kernel tries to resolve neighbours, IPv4 and IPv6: net.ipv4.neigh.*.mcast_solicit and
    /// app_solicit times retrans_time_ms.
    pub neigh_tried_ns: [u64; 2],
    /// Frames may be received with partial TCP/UDP checksums (veth and other virtual devices), which are
    /// recognised and completed.
    pub partial_csum: bool,
    /// IPv4 addresses, primary ones first; the kernel's order.
    pub addrs4: Vec<InIfaddr>,
    /// Broadcast addresses of `addrs4`.
    pub broadcasts4: Vec<Ipv4Addr>,
    /// IPv6 addresses that may be used as a source (not tentative).
    pub addrs6: Vec<Inet6Ifaddr>,
    /// net.ipv6.conf.*.use_oif_addrs_only, as effective (all OR own): packets that it sends have no address of another
    /// interface.
    pub use_oif_addrs_only: bool,
    /// net.ipv6.conf.*.use_tempaddr is 2 or more: temporary addresses are preferred.
    pub prefers_temporary: bool,
    /// net.ipv6.conf.*.use_optimistic, as effective (all OR own): optimistic addresses are as good as others.
    pub use_optimistic: bool,
}

impl Link {
    /// An interface that is up, without addresses and without forwarding; otherwise with the kernel's
    /// defaults.
    pub fn new(ifindex: u32, name: &str) -> Link {
        Link {
            ifindex,
            name: name.to_owned(),
            port: None,
            vlan: None,
            xfrmi: None,
            takes: None,
            mac: [0; 6],
            mtu: 1500,
            mtu6: 1500,
            hop_limit: 0,
            neigh_tried_ns: [NEIGH_TRIED_NS; 2],
            up: true,
            noarp: false,
            forwarding4: false,
            forwarding6: Forwarding6::Off,
            rp_filter: RpFilter::Off,
            accept_source_route: false,
            send_redirects: true,
            route_localnet: false,
            accept_local: false,
            shared_media: true,
            disable_ipv6: false,
            partial_csum: false,
            addrs4: Vec::new(),
            broadcasts4: Vec::new(),
            addrs6: Vec::new(),
            use_oif_addrs_only: false,
            prefers_temporary: false,
            use_optimistic: false,
        }
    }

    /// Its number among the interfaces that packets are sent by; see [`Links::dev`]. For a port it is the
    /// port's number.
    pub fn dev(&self) -> Option<u16> {
        let of_port = || self.port.map(|port| self.vlan.as_ref().map_or(port, |vlan| vlan.dev));
        self.xfrmi.map(|xfrmi| xfrmi.dev).or_else(of_port)
    }

    /// Its number in keys of offloaded flows: that of a VLAN is never one that a port has or had, because the XDP
    /// program gets numbers of VLANs after they have changed. `None`: it cannot be one.
    pub fn flow_number(&self) -> Option<u16> {
        let dev = self.dev().filter(|dev| dev & VLAN_FLOWS == 0 && self.xfrmi.is_none())?;
        Some(if self.vlan.is_some() { dev | VLAN_FLOWS } else { dev })
    }
}

/// The kernel's default of [`Link::neigh_tried_ns`].
pub const NEIGH_TRIED_NS: u64 = 3_000_000_000;

/// The bit of [`Link::flow_number`] that those of VLANs have.
pub const VLAN_FLOWS: u16 = 1 << 15;

/// Interfaces, indexed by ifindex and by port.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Identifies them in the process; 0: there are none.
    pub id: u64,
    links: Vec<Arc<Link>>,
    /// Ports, indexed by port number.
    by_port: Vec<Option<Arc<Link>>>,
    /// Ports, their VLAN sub-interfaces and xfrm interfaces, indexed by [`Link::dev`].
    by_dev: Vec<Option<Arc<Link>>>,
    by_if_id: HashTable<ByIfId>,
    /// Of interfaces that only the kernel has.
    takers: Vec<TunnelTaker>,
    by_tags: HashTable<Tagged>,
    /// All our IPv4 addresses and broadcast addresses.
    local4: HashTable<LocalAddr>,
}

impl Links {
    /// Builds the index.
    pub fn new(links: Vec<Link>) -> Links {
        let mut links: Vec<Arc<Link>> = links.into_iter().map(Arc::new).collect();
        links.sort_by_key(|link| link.ifindex);
        let by_port = numbered(&links, |link| link.port.filter(|_| link.vlan.is_none()));
        let by_dev = numbered(&links, Link::dev);
        let stack = |link: &Arc<Link>| {
            let (port, vlan) = (link.port?, link.vlan.as_ref()?);
            Some(Tagged { stack: TagStack::of(port, vlan)?, dev: vlan.dev })
        };
        let by_tags = HashTable::new(links.iter().filter_map(stack));
        let own = links.iter().flat_map(|link| link.addrs4.iter().map(|addr| addr.local));
        let broadcasts = links.iter().flat_map(|link| link.broadcasts4.iter().copied());
        let local = own.chain(broadcasts).filter(|addr| !addr.is_unspecified());
        let local4 = HashTable::new(local.map(|addr| LocalAddr(addr.to_bits())));
        let xfrmis = links.iter().filter_map(|link| link.xfrmi);
        let by_if_id = HashTable::new(xfrmis.map(|Xfrmi { if_id, dev, .. }| ByIfId { if_id, dev }));
        let takers = links.iter().filter_map(|link| link.takes).collect();
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Links { id, links, by_port, by_dev, by_if_id, takers, by_tags, local4 }
    }

    /// Whether an IPv4 address is configured on any interface (kernel: `inet_lookup_ifaddr_rcu`). A
    /// linear search.
    pub fn is_own4(&self, addr: u32) -> bool {
        let addr = Ipv4Addr::from_bits(addr);
        self.iter().any(|link| link.addrs4.iter().any(|own| own.local == addr))
    }

    /// Whether it is one of our addresses or broadcast addresses.
    #[inline]
    pub fn is_local4(&self, addr: u32) -> bool {
        self.local4.get(addr).is_some()
    }

    /// The interface of a port.
    #[inline]
    pub fn port(&self, port: u16) -> Option<&Link> {
        self.by_port.get(port as usize)?.as_deref()
    }

    /// The interface by the number that next hops store: ports first, then VLAN sub-interfaces, which have a
    /// port, then xfrm interfaces.
    #[inline]
    pub fn dev(&self, dev: u16) -> Option<&Link> {
        self.by_dev.get(dev as usize)?.as_deref()
    }

    /// The interface with a [`Link::flow_number`].
    pub fn of_flow_number(&self, number: u16) -> Option<&Link> {
        self.dev(number & !VLAN_FLOWS).filter(|link| link.flow_number() == Some(number))
    }

    /// The VLAN sub-interface whose frames have these tags.
    #[inline]
    pub fn tagged(&self, stack: TagStack) -> Option<&Link> {
        self.dev(self.by_tags.get(stack)?)
    }

    /// The interface with a name.
    pub fn named(&self, name: &str) -> Option<&Link> {
        self.iter().find(|link| link.name == name)
    }

    /// The interface with an ifindex.
    pub fn ifindex(&self, ifindex: u32) -> Option<&Link> {
        let at = self.links.binary_search_by_key(&ifindex, |link| link.ifindex).ok()?;
        self.links.get(at).map(Arc::as_ref)
    }

    /// All, by ifindex.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().map(Arc::as_ref)
    }
}

/// Links indexed by a number that some of them have.
fn numbered(links: &[Arc<Link>], number: impl Fn(&Link) -> Option<u16>) -> Vec<Option<Arc<Link>>> {
    let len = links.iter().filter_map(|link| number(link)).max().map_or(0, |n| n as usize + 1);
    let mut by_number = vec![None; len];
    for link in links {
        if let Some(n) = number(link) {
            by_number[n as usize] = Some(Arc::clone(link));
        }
    }
    by_number
}

/// One of our IPv4 addresses or broadcast addresses; 0 in an empty slot (0.0.0.0 is not a host address).
#[derive(Debug, Clone, Copy, Default)]
struct LocalAddr(u32);

impl Slot for LocalAddr {
    type Key = u32;
    type Value = ();
    /// Most packets are for other hosts: the search of their addresses ends at the first empty slot.
    const SLOTS_PER_ENTRY: usize = 4;

    #[inline]
    fn key(&self) -> u32 {
        self.0
    }

    #[inline]
    fn value(&self) -> Option<()> {
        (self.0 != 0).then_some(())
    }

    #[inline]
    fn hash(addr: u32) -> usize {
        (mix(u64::from(addr)) >> 40) as usize
    }
}

/// The namespace's sysctls that affect the data path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctls {
    /// net.ipv4.ip_default_ttl, for packets of our own.
    pub ip_default_ttl: u8,
    /// net.ipv6.conf.all.hop_limit, for packets of our own where neither route nor interface has one.
    pub hop_limit: u8,
    /// net.ipv6.auto_flowlabels: whether our own packets have a flow label.
    pub auto_flowlabels: bool,
    /// net.ipv6.flowlabel_state_ranges: these labels are those from 0x80000 on.
    pub flowlabel_state_ranges: bool,
    /// net.ipv4.icmp_ratelimit: minimum milliseconds between errors to one destination; 0: no limit.
    pub icmp_ratelimit_ms: u32,
    /// net.ipv4.icmp_ratemask: bit n set: type n is limited.
    pub icmp_ratemask: u32,
    /// net.ipv4.icmp_msgs_per_sec, for all destinations together.
    pub icmp_msgs_per_sec: u32,
    /// net.ipv4.icmp_msgs_burst.
    pub icmp_msgs_burst: u32,
    /// net.ipv4.icmp_errors_use_inbound_ifaddr.
    pub icmp_errors_use_inbound_ifaddr: bool,
    /// net.ipv4.fwmark_reflect, net.ipv6.fwmark_reflect: errors have the mark of the packet that they are about.
    pub fwmark_reflect: [bool; 2],
    /// net.ipv4.icmp_errors_extension_mask is not 0: the kernel sends errors with objects of RFC 4884.
    pub icmp_errors_extended: bool,
    /// net.ipv6.icmp.errors_extension_mask is not 0.
    pub icmp6_errors_extended: bool,
    /// net.ipv6.icmp.ratelimit, milliseconds; 0: no limit.
    pub icmp6_ratelimit_ms: u32,
    /// net.ipv6.icmp.ratemask: bit n set: type n is limited. Errors are the types below 128.
    pub icmp6_ratemask: u128,
    /// net.ipv4.fib_multipath_hash_policy: 0: addresses; 1: addresses, protocol and ports; 2: addresses, those inside a
    /// tunnel if it is one; 3: [`Self::multipath_hash_fields4`].
    pub multipath_hash_policy4: u8,
    /// net.ipv6.fib_multipath_hash_policy.
    pub multipath_hash_policy6: u8,
    /// net.ipv4.fib_multipath_hash_fields.
    pub multipath_hash_fields4: HashFields,
    /// net.ipv6.fib_multipath_hash_fields.
    pub multipath_hash_fields6: HashFields,
    /// net.ipv4.fib_multipath_use_neigh: next hops whose neighbour is not reachable are left out, which is the kernel's.
    pub multipath_use_neigh: bool,
    /// net.ipv4.ip_forward_update_priority: forwarded IPv4 packets get the priority of their TOS.
    pub ip_forward_update_priority: bool,
    /// net.ipv4.ip_forward_use_pmtu. The kernel's learnt path MTUs are not mirrored: when set, IPv4 is
    /// punted.
    pub ip_forward_use_pmtu: bool,
    /// net.ipv6.max_hbh_opts_number: maximum hop-by-hop options other than padding in one packet;
    /// negative: the absolute value, and unknown options are not allowed.
    pub max_hbh_opts_number: i32,
    /// net.ipv6.max_hbh_length: maximum length of a hop-by-hop header, octets.
    pub max_hbh_length: i32,
    /// Not a sysctl, but also per namespace (`net->ipv4.fib_has_custom_local_routes`): the local table
    /// has routes other than those of our addresses, so sources are looked up in it.
    pub custom_local_routes: bool,
    /// Not sysctls either: `ip addrlabel`.
    pub addr_labels: Arc<AddrLabels>,
}

impl Default for Sysctls {
    /// The kernel's defaults.
    fn default() -> Sysctls {
        Sysctls {
            ip_default_ttl: 64,
            hop_limit: 64,
            auto_flowlabels: true,
            flowlabel_state_ranges: false,
            fwmark_reflect: [false; 2],
            icmp_errors_extended: false,
            icmp6_errors_extended: false,
            icmp_ratelimit_ms: 1000,
            icmp_ratemask: 6168,
            icmp_msgs_per_sec: 1000,
            icmp_msgs_burst: 50,
            icmp_errors_use_inbound_ifaddr: false,
            icmp6_ratelimit_ms: 1000,
            // 0-1,3-127: all but Packet Too Big.
            icmp6_ratemask: !(1 << 2),
            multipath_hash_policy4: 0,
            multipath_hash_policy6: 0,
            multipath_hash_fields4: HashFields::default(),
            multipath_hash_fields6: HashFields::default(),
            multipath_use_neigh: false,
            ip_forward_update_priority: true,
            ip_forward_use_pmtu: false,
            max_hbh_opts_number: 8,
            max_hbh_length: i32::MAX,
            custom_local_routes: false,
            addr_labels: Arc::default(),
        }
    }
}

/// All tables and settings that a worker uses.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Incremented with each publication.
    pub generation: u64,
    /// Interfaces.
    pub links: Arc<Links>,
    /// IPv4 routes and rules.
    pub fib4: FamilyFib<Lpm4>,
    /// IPv6 routes and rules.
    pub fib6: FamilyFib<Lpm6>,
    /// Neighbours of both families.
    pub neigh: Arc<NeighTable>,
    /// Settings of the namespace.
    pub sysctl: Arc<Sysctls>,
    /// IPsec policies.
    pub xfrm: Arc<XfrmPolicies>,
    /// What offloaded flows depend on.
    pub epochs: Arc<Epochs>,
}

impl Tables {
    /// Empty tables: every packet is punted.
    pub fn empty() -> Tables {
        Tables {
            generation: 0,
            links: Arc::default(),
            fib4: FamilyFib::empty(),
            fib6: FamilyFib::empty(),
            neigh: Arc::default(),
            sysctl: Arc::default(),
            xfrm: Arc::default(),
            epochs: Arc::new(Epochs::none()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_found_on_every_interface() {
        let mut links = Vec::new();
        for n in 0..100u8 {
            let mut link = Link::new(n.into(), "x");
            link.addrs4 = [1, 2].map(|host| InIfaddr::new([10, n, 0, host].into(), 24)).into();
            link.broadcasts4 = vec![[10, n, 0, 3].into(), [0; 4].into()];
            links.push(link);
        }
        let links = Links::new(links);
        for n in 0..100u8 {
            for host in 0..5u8 {
                let addr = Ipv4Addr::from([10, n, 0, host]).to_bits();
                assert_eq!(links.is_local4(addr), matches!(host, 1..=3), "10.{n}.0.{host}");
                assert_eq!(links.is_own4(addr), matches!(host, 1 | 2), "10.{n}.0.{host}");
            }
        }
        assert!(!links.is_local4(0));
        assert!(!Links::default().is_local4(1));
    }
}
