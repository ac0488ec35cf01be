//! The kernel's state in its own terms: links, addresses, rules, nexthop objects, neighbours,
//! netconf. Routes are in `rib`; `compile` makes the tables for workers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::rib::{Fingerprints, Rib};
pub use crate::control::netlink::rtnl::ARPHRD_ETHER;
use crate::tables::Sysctls;

/// IFF_UP of include/uapi/linux/if.h.
pub const IFF_UP: u32 = 1;
/// IFF_LOOPBACK.
pub const IFF_LOOPBACK: u32 = 1 << 3;
/// IFF_POINTOPOINT.
pub const IFF_POINTOPOINT: u32 = 1 << 4;
/// IFF_RUNNING.
pub const IFF_RUNNING: u32 = 1 << 6;
/// IFF_NOARP.
pub const IFF_NOARP: u32 = 1 << 7;
/// IFF_LOWER_UP: carrier.
pub const IFF_LOWER_UP: u32 = 1 << 16;

/// IFA_F_SECONDARY, and IFA_F_TEMPORARY of IPv6.
pub const IFA_F_SECONDARY: u32 = 0x01;
/// IFA_F_DEPRECATED.
pub const IFA_F_DEPRECATED: u32 = 0x20;
/// IFA_F_OPTIMISTIC.
pub const IFA_F_OPTIMISTIC: u32 = 0x04;
/// IFA_F_DADFAILED.
pub const IFA_F_DADFAILED: u32 = 0x08;
/// IFA_F_TENTATIVE.
pub const IFA_F_TENTATIVE: u32 = 0x40;

/// An address family that is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// Converts AF_*; `None` for other families.
    pub fn from_af(af: u8) -> Option<Family> {
        match i32::from(af) {
            libc::AF_INET => Some(Family::V4),
            libc::AF_INET6 => Some(Family::V6),
            _ => None,
        }
    }

    /// AF_INET or AF_INET6.
    pub fn af(self) -> u8 {
        match self {
            Family::V4 => libc::AF_INET as u8,
            Family::V6 => libc::AF_INET6 as u8,
        }
    }

    /// The family of an address.
    pub fn of(addr: &IpAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkState {
    /// The kernel's interface index.
    pub ifindex: u32,
    /// IFLA_IFNAME.
    pub name: String,
    /// ARPHRD_*.
    pub arphrd: u16,
    /// IFF_*.
    pub flags: u32,
    /// IP MTU in octets.
    pub mtu: u32,
    /// Link-layer address; empty when it has none.
    pub address: Vec<u8>,
    /// Link-layer broadcast address.
    pub broadcast: Vec<u8>,
    /// IFLA_QDISC.
    pub qdisc: String,
    /// IFLA_TXQLEN.
    pub txqlen: u32,
    /// IF_OPER_*.
    pub operstate: u8,
    /// IF_LINK_MODE_*.
    pub linkmode: u8,
    /// IFLA_GROUP.
    pub group: u32,
    /// IFLA_MASTER: ifindex of the bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// IFLA_LINK: the peer or the lower interface.
    pub link: Option<u32>,
    /// IFLA_LINK_NETNSID: namespace of `link`, if it is another one.
    pub link_netnsid: Option<i32>,
    /// IFLA_NEW_NETNSID: in RTM_DELLINK, the namespace that the interface was moved to.
    pub new_netnsid: Option<i32>,
    /// IFLA_INFO_KIND: "veth", "vrf", ….
    pub kind: Option<String>,
    /// IFLA_INFO_SLAVE_KIND: its type as a port of its master.
    pub slave_kind: Option<String>,
    /// IFLA_INFO_DATA of kind "vlan".
    pub vlan: Option<VlanState>,
    /// IFLA_INFO_DATA of kind "xfrm".
    pub xfrm: Option<XfrmiState>,
    /// IFLA_INFO_DATA of kinds "vti" and "vti6".
    pub vti: Option<VtiState>,
}

/// IFLA_XFRM_*: settings of an xfrm interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct XfrmiState {
    /// IFLA_XFRM_LINK: the interface by which packets leave that it has protected; 0: any.
    pub link: u32,
    /// IFLA_XFRM_IF_ID: that of its policies and SAs; 0: it has none of its own.
    pub if_id: u32,
    /// IFLA_XFRM_COLLECT_METADATA: `external`.
    pub collect_md: bool,
}

/// IFLA_VTI_LOCAL and IFLA_VTI_REMOTE: the ends of tunnels whose packets it takes; `None`: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VtiState {
    /// The router's end.
    pub local: Option<IpAddr>,
    /// The other one.
    pub remote: Option<IpAddr>,
}

/// IFLA_VLAN_*: VLAN settings of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VlanState {
    /// IFLA_VLAN_PROTOCOL: the TPID, 0x8100 or 0x88a8.
    pub protocol: u16,
    /// IFLA_VLAN_ID.
    pub id: u16,
    /// VLAN_FLAG_*.
    pub flags: u32,
    /// IFLA_VLAN_INGRESS_QOS: (PCP, priority).
    pub ingress_qos: Vec<(u32, u32)>,
    /// IFLA_VLAN_EGRESS_QOS: (priority, PCP).
    pub egress_qos: Vec<(u32, u32)>,
}

impl LinkState {
    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// The kernel's test for RTNH_F_LINKDOWN (`fib_netdev_event`).
    pub fn is_running(&self) -> bool {
        self.flags & (IFF_RUNNING | IFF_LOWER_UP) != 0
    }
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddrState {
    /// Its interface.
    pub ifindex: u32,
    /// IFA_LOCAL, or IFA_ADDRESS where there is no peer.
    pub local: IpAddr,
    /// IFA_ADDRESS if it differs: the peer of a point-to-point link.
    pub peer: Option<IpAddr>,
    /// In bits.
    pub prefixlen: u8,
    /// IFA_F_*.
    pub flags: u32,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// IFA_BROADCAST.
    pub broadcast: Option<IpAddr>,
    /// IFA_LABEL; IPv4 only.
    pub label: Option<String>,
    /// IFA_PROTO.
    pub protocol: u8,
    /// Until when it is used at all.
    pub valid_lft: Lifetime,
    /// Until when it is used for new connections.
    pub preferred_lft: Lifetime,
}

/// A lifetime of an address. The kernel counts it down without events, so all that end are equal here.
#[derive(Debug, Clone, Copy)]
pub enum Lifetime {
    /// It does not end.
    Forever,
    /// Ends so many seconds after the message.
    Ends(u32, Instant),
}

impl Lifetime {
    /// A value of `struct ifa_cacheinfo` in a message that has just been received.
    pub fn received(seconds: u32) -> Lifetime {
        if seconds == u32::MAX {
            Lifetime::Forever
        } else {
            Lifetime::Ends(seconds, Instant::now())
        }
    }

    /// Seconds that are left; `u32::MAX`: it does not end.
    pub fn left(self) -> u32 {
        match self {
            Lifetime::Forever => u32::MAX,
            Lifetime::Ends(seconds, since) => {
                let passed = u32::try_from(since.elapsed().as_secs()).unwrap_or(u32::MAX);
                seconds.saturating_sub(passed)
            }
        }
    }
}

impl Lifetime {
    /// Whether it ends another second.
    fn differs(self, other: Lifetime) -> bool {
        self.left().abs_diff(other.left()) > 1
    }
}

impl PartialEq for Lifetime {
    fn eq(&self, other: &Lifetime) -> bool {
        matches!(self, Lifetime::Forever) == matches!(other, Lifetime::Forever)
    }
}

impl Eq for Lifetime {}

impl AddrState {
    /// Whether the kernel treats both as the same address.
    fn same_key(&self, other: &AddrState) -> bool {
        (self.ifindex, self.local, self.prefixlen, self.peer)
            == (other.ifindex, other.local, other.prefixlen, other.peer)
    }

    /// May be a source address: duplicate address detection is complete.
    pub fn is_usable(&self) -> bool {
        let tentative = self.flags & IFA_F_TENTATIVE != 0 && self.flags & IFA_F_OPTIMISTIC == 0;
        !tentative && self.flags & IFA_F_DADFAILED == 0
    }
}

/// A policy rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleState {
    /// Its family.
    pub family: Family,
    /// FRA_PRIORITY.
    pub priority: u32,
    /// FIB_RULE_INVERT.
    pub invert: bool,
    /// FRA_SRC.
    pub from: Option<(IpAddr, u8)>,
    /// FRA_DST.
    pub to: Option<(IpAddr, u8)>,
    /// FRA_IIFNAME.
    pub iif: Option<String>,
    /// FRA_OIFNAME.
    pub oif: Option<String>,
    /// FRA_FWMARK and FRA_FWMASK.
    pub fwmark: Option<(u32, u32)>,
    /// FR_ACT_*.
    pub action: u8,
    /// FRA_TABLE.
    pub table: u32,
    /// FRA_GOTO.
    pub goto: Option<u32>,
    /// FRA_PROTOCOL: the program that installed it.
    pub protocol: u8,
    /// `fib_rule_hdr.tos`.
    pub tos: u8,
    /// FRA_SUPPRESS_PREFIXLEN; `None`: none. The kernel accepts negative values, which suppress
    /// nothing.
    pub suppress_prefixlen: Option<i32>,
    /// All other selectors and modifiers: FRA_* and value.
    pub other: Vec<(u16, Vec<u8>)>,
}

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NexthopState {
    /// NHA_ID.
    pub id: u32,
    /// AF_*; AF_UNSPEC for groups.
    pub family: u8,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// RTPROT_*.
    pub protocol: u8,
    /// RTNH_F_ONLINK, if set.
    pub flags: u32,
    /// NHA_OIF; 0: none.
    pub oif: u32,
    /// NHA_GATEWAY.
    pub gateway: Option<IpAddr>,
    /// NHA_BLACKHOLE.
    pub blackhole: bool,
    /// NHA_FDB.
    pub fdb: bool,
    /// NHA_ENCAP_TYPE present.
    pub encap: bool,
    /// NHA_GROUP: ids and weights (1 to 65536).
    pub group: Vec<(u32, u32)>,
    /// NHA_GROUP_TYPE is resilient.
    pub resilient: bool,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeighState {
    /// Its interface.
    pub ifindex: u32,
    /// NDA_DST.
    pub dst: IpAddr,
    /// NDA_LLADDR; empty when not known.
    pub lladdr: Vec<u8>,
    /// NUD_*.
    pub state: u16,
    /// NTF_*.
    pub flags: u8,
    /// NDA_FLAGS_EXT.
    pub flags_ext: u32,
}

/// NETCONFA_* of one interface, or of "all" and "default", by attribute number; `None`: not
/// reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Netconf(pub [Option<i32>; Netconf::LEN]);

impl Netconf {
    /// Number of attributes.
    pub const LEN: usize = 7;
    /// NETCONFA_IFINDEX_ALL.
    pub const ALL: i32 = -1;
    /// NETCONFA_IFINDEX_DEFAULT.
    pub const DEFAULT: i32 = -2;
    /// NETCONFA_FORWARDING.
    pub const FORWARDING: usize = 2;
    /// NETCONFA_RP_FILTER.
    pub const RP_FILTER: usize = 3;
    /// NETCONFA_PROXY_NEIGH: proxy_arp, and proxy_ndp of IPv6.
    pub const PROXY_NEIGH: usize = 5;
    /// NETCONFA_IGNORE_ROUTES_WITH_LINKDOWN.
    pub const IGNORE_LINKDOWN: usize = 6;

    /// A setting; 0 if the kernel does not report it.
    pub fn get(&self, attr: usize) -> i32 {
        self.0.get(attr).copied().flatten().unwrap_or(0)
    }

    /// Overwrites settings that `newer` contains.
    fn merge(&mut self, newer: &Netconf) {
        for (mine, new) in self.0.iter_mut().zip(newer.0) {
            *mine = new.or(*mine);
        }
    }
}

/// Settings of one interface that are only in /proc/sys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DevSysctls {
    /// net.ipv4.conf.*.accept_source_route.
    pub accept_source_route: bool,
    /// net.ipv4.conf.*.send_redirects.
    pub send_redirects: bool,
    /// net.ipv4.conf.*.route_localnet.
    pub route_localnet: bool,
    /// net.ipv4.conf.*.accept_local.
    pub accept_local: bool,
    /// net.ipv4.conf.*.shared_media.
    pub shared_media: bool,
    /// net.ipv4.conf.*.accept_redirects.
    pub accept_redirects: bool,
    /// net.ipv4.conf.*.disable_xfrm.
    pub disable_xfrm: bool,
    /// net.ipv4.conf.*.disable_policy.
    pub disable_policy4: bool,
    /// net.ipv6.conf.*.disable_policy.
    pub disable_policy6: bool,
    /// net.ipv6.conf.*.disable_ipv6, or no IPv6 support at all.
    pub disable_ipv6: bool,
    /// net.ipv6.conf.*.force_forwarding, which netconf messages do not contain.
    pub force_forwarding: bool,
    /// net.ipv6.conf.*.mtu in octets; 0: the interface has no IPv6.
    pub mtu6: u32,
    /// net.ipv6.conf.*.hop_limit; 0: the interface has no IPv6.
    pub hop_limit: u8,
    /// net.ipv6.conf.*.use_oif_addrs_only.
    pub use_oif_addrs_only: bool,
    /// net.ipv6.conf.*.use_tempaddr is 2 or more.
    pub prefers_temporary: bool,
    /// net.ipv6.conf.*.use_optimistic.
    pub use_optimistic: bool,
}

/// Neighbours by interface and address.
pub type Neighs = BTreeMap<(u32, IpAddr), NeighState>;

/// The mirrored state of the network namespace.
#[derive(Debug, Default)]
pub struct RouterState {
    /// By ifindex. Links, addresses and rules are shared with code that shows them, and copied on
    /// write.
    pub links: Arc<BTreeMap<u32, LinkState>>,
    /// In the kernel's order within an interface and family.
    pub addrs: Arc<Vec<AddrState>>,
    /// In order of evaluation, IPv4.
    pub rules4: Arc<Vec<RuleState>>,
    /// In order of evaluation, IPv6.
    pub rules6: Arc<Vec<RuleState>>,
    /// By id.
    pub nexthops: BTreeMap<u32, NexthopState>,
    /// By interface and address, in the order of output.
    pub neighs: Neighs,
    /// By family and ifindex.
    pub netconf: HashMap<(Family, i32), Netconf>,
    /// IPv4 routes.
    pub routes4: Rib<u32>,
    /// IPv6 routes.
    pub routes6: Rib<u128>,
    /// Settings of the namespace.
    pub sysctls: Sysctls,
    /// Settings of conf "all".
    pub sysctls_all: DevSysctls,
    /// Settings of each interface, by ifindex.
    pub sysctls_dev: BTreeMap<u32, DevSysctls>,
    /// By family and ifindex: for how long a neighbour is tried.
    pub neigh_tried: BTreeMap<(Family, u32), Duration>,
    /// Interfaces whose packets another interface takes, possibly one in another namespace; see
    /// `rx_handlers`.
    pub taken: BTreeSet<u32>,
    /// What filters packets of xfrm interfaces, by ifindex; empty if nothing does. Of others it is not known.
    pub xfrmi_filters: BTreeMap<u32, String>,
}

impl RouterState {
    /// Those of the routes of a family.
    pub fn fingerprints(&self, family: Family) -> &Fingerprints {
        match family {
            Family::V4 => self.routes4.fingerprints(),
            Family::V6 => self.routes6.fingerprints(),
        }
    }

    /// Adds or replaces an address at the kernel's position (`__inet_insert_ifa`). Returns whether
    /// the state changed.
    pub fn add_addr(&mut self, addr: AddrState) -> bool {
        let Some(at) = self.addrs.iter().position(|old| old.same_key(&addr)) else {
            Arc::make_mut(&mut self.addrs).push(addr);
            return true;
        };
        let old = &self.addrs[at];
        let is_new = *old != addr;
        let has_new_lifetimes =
            old.valid_lft.differs(addr.valid_lft) || old.preferred_lft.differs(addr.preferred_lft);
        if is_new || has_new_lifetimes {
            Arc::make_mut(&mut self.addrs)[at] = addr;
        }
        is_new
    }

    /// Removes an address; returns whether it existed.
    pub fn del_addr(&mut self, addr: &AddrState) -> bool {
        let before = self.addrs.len();
        Arc::make_mut(&mut self.addrs).retain(|old| !old.same_key(addr));
        self.addrs.len() != before
    }

    /// Whether a nexthop object drops packets (`nexthop_is_blackhole`): it may also be a group of one.
    pub fn is_blackhole(&self, id: u32) -> bool {
        let drops = |id: &u32| self.nexthops.get(id).is_some_and(|nexthop| nexthop.blackhole);
        match self.nexthops.get(&id).map(|nexthop| nexthop.group.as_slice()) {
            Some([(member, _)]) => drops(member),
            _ => drops(&id),
        }
    }

    /// Whether nexthop object `id` is `member`, or a group that has it.
    pub fn leads_by(&self, id: u32, member: u32) -> bool {
        let group = self.nexthops.get(&id).map_or(&[][..], |nexthop| &nexthop.group);
        id == member || group.iter().any(|(of_group, _)| *of_group == member)
    }

    /// Rules of a family.
    pub fn rules(&self, family: Family) -> &Vec<RuleState> {
        match family {
            Family::V4 => &self.rules4,
            Family::V6 => &self.rules6,
        }
    }

    fn rules_mut(&mut self, family: Family) -> &mut Vec<RuleState> {
        match family {
            Family::V4 => Arc::make_mut(&mut self.rules4),
            Family::V6 => Arc::make_mut(&mut self.rules6),
        }
    }

    /// Adds a rule after those of its priority (`fib_nl_newrule`). Returns whether it is new: the
    /// kernel may report a rule twice.
    pub fn add_rule(&mut self, rule: RuleState) -> bool {
        if self.rules(rule.family).contains(&rule) {
            return false;
        }
        let rules = self.rules_mut(rule.family);
        let at = rules.partition_point(|old| old.priority <= rule.priority);
        rules.insert(at, rule);
        true
    }

    /// Removes a rule; returns whether it existed.
    pub fn del_rule(&mut self, rule: &RuleState) -> bool {
        let rules = self.rules(rule.family);
        let Some(at) = rules.iter().position(|old| old == rule) else { return false };
        self.rules_mut(rule.family).remove(at);
        true
    }

    /// Applies a netconf message. Returns whether a setting changed.
    pub fn add_netconf(&mut self, family: Family, ifindex: i32, conf: &Netconf) -> bool {
        let mine = self.netconf.entry((family, ifindex)).or_default();
        let before = *mine;
        mine.merge(conf);
        *mine != before
    }

    /// A netconf setting; 0 if the kernel does not report it.
    pub fn conf(&self, family: Family, ifindex: i32, attr: usize) -> i32 {
        self.netconf.get(&(family, ifindex)).map_or(0, |conf| conf.get(attr))
    }

    /// Whether a next hop on `oif` is dead: its interface is down (RTNH_F_DEAD), or has no carrier
    /// and ignore_routes_with_linkdown is set (RTNH_F_LINKDOWN). Derived from the interface,
    /// because the kernel changes these flags without an event.
    pub fn nexthop_is_dead(&self, family: Family, oif: u32) -> bool {
        let Some(link) = self.links.get(&oif) else { return oif != 0 };
        let conf = |of| self.conf(family, of, Netconf::IGNORE_LINKDOWN) != 0;
        // IPv4 also checks conf.all (IN_DEV_ORCONF); IPv6 copies it to the interfaces.
        let ignore = || conf(oif.cast_signed()) || (family == Family::V4 && conf(Netconf::ALL));
        !link.is_up() || (!link.is_running() && ignore())
    }

    /// Routes of both families.
    pub fn route_count(&self) -> usize {
        self.routes4.len() + self.routes6.len()
    }

    /// The name of an interface, or its ifindex if it is gone.
    pub fn ifname(&self, ifindex: u32) -> String {
        self.links.get(&ifindex).map_or_else(|| format!("if{ifindex}"), |link| link.name.clone())
    }
}
