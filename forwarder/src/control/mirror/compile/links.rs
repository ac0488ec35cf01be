//! Compiles interfaces and neighbours for workers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::info::Ports;
use super::vlans::{DEPTH_MAX, Devs};
use super::xfrmis;
use crate::control::mirror::state::{
    AddrState, Family, IFA_F_DEPRECATED, IFA_F_OPTIMISTIC, IFA_F_SECONDARY, IFF_LOOPBACK,
    IFF_NOARP, IFF_POINTOPOINT, LinkState, NeighState, Netconf, RouterState,
};
use crate::neigh::Neighbour;
use crate::tables::{Forwarding6, InIfaddr, Inet6Ifaddr, Link, NEIGH_TRIED_NS, RpFilter, Xfrmi};

/// NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT: NUD_VALID.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
const NUD_FAILED: u16 = 0x20;

/// Kinds of interface whose frames may have no TCP or UDP checksum yet (CHECKSUM_PARTIAL), because
/// they were never on a wire.
const KINDS_WITHOUT_WIRE: [&str; 7] =
    ["veth", "tun", "netkit", "macvlan", "macvtap", "ipvlan", "bridge"];

/// Kinds of interface that receive frames from their lower interface (rx_handler) before it routes
/// them.
pub const RX_HANDLER_KINDS: [&str; 4] = ["macvlan", "macvtap", "ipvlan", "ipvtap"];

/// Interfaces of [`RX_HANDLER_KINDS`], by the ifindex of their lower interface.
#[derive(Debug)]
pub struct RxHandlers<'a>(HashMap<u32, &'a LinkState>);

impl<'a> RxHandlers<'a> {
    /// Collects them from all links.
    pub fn new(state: &'a RouterState) -> RxHandlers<'a> {
        let takes = |upper: &&LinkState| {
            upper.link_netnsid.is_none()
                && upper.kind.as_deref().is_some_and(|kind| RX_HANDLER_KINDS.contains(&kind))
        };
        let rx_handlers = state.links.values().filter(takes);
        RxHandlers(rx_handlers.filter_map(|upper| Some((upper.link?, upper))).collect())
    }
}

/// Why an interface's packets are left to the kernel; `None` if they are not.
pub fn unsupported(
    state: &RouterState,
    link: &LinkState,
    rx_handlers: &RxHandlers<'_>,
) -> Option<String> {
    if let Some(upper) = rx_handlers.0.get(&link.ifindex) {
        return Some(format!("{} on it takes its packets", upper.name));
    }
    let Some(master) = link.master else {
        let taken = state.taken.contains(&link.ifindex);
        return taken.then(|| {
            "an interface on it, perhaps in another network namespace, takes its packets".to_owned()
        });
    };
    let master = state.links.get(&master);
    let kind = link.slave_kind.as_deref().or(master.and_then(|master| master.kind.as_deref()));
    let master = master.map_or("an unknown interface", |master| &master.name);
    Some(match kind {
        Some("vrf") => format!("in the VRF {master}; VRFs are not followed"),
        Some(kind) => format!("{kind} port of {master}, which takes its packets"),
        None => format!("belongs to {master}, which takes its packets"),
    })
}

/// Compiles all interfaces.
pub fn compile(state: &RouterState, ports: &Ports, devs: &Devs) -> Vec<Link> {
    let rx_handlers = RxHandlers::new(state);
    let mut addrs = HashMap::new();
    for addr in &*state.addrs {
        addrs.entry(addr.ifindex).or_insert_with(Vec::new).push(addr);
    }
    let compiled = state.links.values().map(|link| {
        let port = ports.get(&link.ifindex).copied();
        let port = port.filter(|_| unsupported(state, link, &rx_handlers).is_none());
        let (port, vlan) = match devs.vlan(link.ifindex) {
            Some((port, vlan)) => (Some(*port), Some(vlan.clone())),
            None => (port, None),
        };
        let xfrmi = devs.xfrmi(link.ifindex).zip(link.xfrm).and_then(|(dev, xfrm)| {
            let is_followed = xfrmis::obstacle(state, link, &rx_handlers).is_none();
            is_followed.then_some(Xfrmi { dev, if_id: xfrm.if_id, link: xfrm.link })
        });
        let takes = xfrmis::taker(link);
        let addrs = addrs.get(&link.ifindex).map_or(&[][..], Vec::as_slice);
        Link { port, vlan, xfrmi, takes, ..compile_link(state, link, addrs) }
    });
    compiled.collect()
}

/// Compiles everything but port and VLAN.
fn compile_link(state: &RouterState, link: &LinkState, addrs: &[&AddrState]) -> Link {
    let own = state.sysctls_dev.get(&link.ifindex).copied().unwrap_or_default();
    let all = &state.sysctls_all;
    let ifindex = link.ifindex.cast_signed();
    let conf = |family, attr| state.conf(family, ifindex, attr);
    let all_conf = |family, attr| state.conf(family, Netconf::ALL, attr);
    let rp_filter =
        conf(Family::V4, Netconf::RP_FILTER).max(all_conf(Family::V4, Netconf::RP_FILTER));
    // ip6_forward checks conf.all and, since Linux 6.17, the interface's force_forwarding.
    let forwards6 = all_conf(Family::V6, Netconf::FORWARDING) != 0 || own.force_forwarding;
    Link {
        mac: link.address.as_slice().try_into().unwrap_or_default(),
        mtu: link.mtu,
        mtu6: if own.mtu6 == 0 { link.mtu } else { own.mtu6.min(link.mtu) },
        hop_limit: own.hop_limit,
        use_oif_addrs_only: own.use_oif_addrs_only || all.use_oif_addrs_only,
        prefers_temporary: own.prefers_temporary,
        use_optimistic: own.use_optimistic || all.use_optimistic,
        neigh_tried_ns: Family::ALL.map(|family| {
            let tried = state.neigh_tried.get(&(family, link.ifindex));
            tried.map_or(NEIGH_TRIED_NS, |it| it.as_nanos().try_into().unwrap_or(u64::MAX))
        }),
        up: link.is_up() && link.is_running(),
        noarp: link.flags & (IFF_NOARP | IFF_POINTOPOINT | IFF_LOOPBACK) != 0,
        forwarding4: conf(Family::V4, Netconf::FORWARDING) != 0,
        forwarding6: match all_conf(Family::V6, Netconf::PROXY_NEIGH) {
            0 => Forwarding6::plain(forwards6),
            _ if forwards6 => Forwarding6::WithNdProxy,
            _ => Forwarding6::Off,
        },
        // Values other than 0 and 1 mean loose mode (`__fib_validate_source`).
        rp_filter: match rp_filter {
            0 => RpFilter::Off,
            1 => RpFilter::Strict,
            _ => RpFilter::Loose,
        },
        // IN_DEV_ANDCONF, IN_DEV_ORCONF of include/linux/inetdevice.h.
        accept_source_route: own.accept_source_route && all.accept_source_route,
        send_redirects: own.send_redirects || all.send_redirects,
        route_localnet: own.route_localnet || all.route_localnet,
        accept_local: own.accept_local || all.accept_local,
        shared_media: own.shared_media || all.shared_media,
        disable_ipv6: own.disable_ipv6,
        partial_csum: KINDS_WITHOUT_WIRE.contains(&lowest_kind(state, link)),
        addrs4: addrs4(addrs),
        broadcasts4: broadcasts4(addrs),
        addrs6: addrs6(addrs),
        ..Link::new(link.ifindex, &link.name)
    }
}

/// The kind of an interface; for a VLAN, that of the lowest interface.
fn lowest_kind<'a>(state: &'a RouterState, link: &'a LinkState) -> &'a str {
    let mut at = link;
    for _ in 0..DEPTH_MAX {
        let Some(lower) = at.link.filter(|_| at.vlan.is_some()) else { break };
        let Some(lower) = state.links.get(&lower) else { break };
        at = lower;
    }
    at.kind.as_deref().unwrap_or_default()
}

fn addrs4(addrs: &[&AddrState]) -> Vec<InIfaddr> {
    let v4 = addrs.iter().filter_map(|addr| {
        let IpAddr::V4(local) = addr.local else { return None };
        let address = match addr.peer {
            Some(IpAddr::V4(peer)) => peer,
            _ => local,
        };
        let secondary = addr.flags & IFA_F_SECONDARY != 0;
        let AddrState { prefixlen, scope, .. } = **addr;
        Some(InIfaddr { local, address, prefixlen, scope, secondary })
    });
    let mut addrs: Vec<InIfaddr> = v4.collect();
    // `__inet_insert_ifa`: primary ones of narrower scope are first.
    addrs.sort_by_key(|addr| {
        (addr.secondary, if addr.secondary { 0 } else { u8::MAX - addr.scope })
    });
    addrs
}

/// Addresses that `fib_add_ifaddr` adds broadcast routes for: the configured one, and the last of
/// each subnet.
fn broadcasts4(addrs: &[&AddrState]) -> Vec<Ipv4Addr> {
    let of_addr = |addr: &&AddrState| {
        let IpAddr::V4(local) = addr.local else { return [None, None] };
        let configured = addr.broadcast.and_then(|addr| match addr {
            IpAddr::V4(addr) => Some(addr),
            IpAddr::V6(_) => None,
        });
        let host_bits = u32::MAX.checked_shr(addr.prefixlen.into()).unwrap_or(0);
        let last = (addr.prefixlen < 31).then(|| Ipv4Addr::from_bits(local.to_bits() | host_bits));
        [configured, last]
    };
    let mut all: Vec<Ipv4Addr> = addrs.iter().flat_map(of_addr).flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn addrs6(addrs: &[&AddrState]) -> Vec<Inet6Ifaddr> {
    let mine = addrs.iter().filter(|addr| addr.is_usable());
    let v6 = mine.filter_map(|own| {
        let IpAddr::V6(addr) = own.local else { return None };
        let has = |flag: u32| own.flags & flag != 0;
        Some(Inet6Ifaddr {
            addr,
            prefixlen: own.prefixlen,
            deprecated: has(IFA_F_DEPRECATED),
            temporary: has(IFA_F_SECONDARY),
            optimistic: has(IFA_F_OPTIMISTIC),
        })
    });
    v6.collect()
}

/// What workers get of a neighbour: no entry while the kernel is resolving it, a link-layer
/// address, or an entry without one if resolution failed.
pub fn visible(neigh: &NeighState) -> Option<Option<[u8; 6]>> {
    if neigh.dst.is_multicast() {
        return None;
    }
    if neigh.state & NUD_VALID != 0 {
        return Some(Some(neigh.lladdr.as_slice().try_into().ok()?));
    }
    (neigh.state & NUD_FAILED != 0).then_some(None)
}

/// All neighbours that workers get.
pub fn neighbours(state: &RouterState) -> Vec<Neighbour> {
    let see = |neigh: &NeighState| Some(Neighbour::new(neigh.ifindex, neigh.dst, visible(neigh)?));
    state.neighs.values().filter_map(see).collect()
}
