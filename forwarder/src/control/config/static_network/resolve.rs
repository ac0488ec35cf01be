//! Resolves the section of a file to a network: names become numbers, addresses add their routes.

use std::net::{IpAddr, Ipv6Addr};

use toml::Spanned;

use super::section::{
    ActionName, Destination, FamilyName, InterfaceSection, NexthopSection, ReplaySection,
    RouteSection, RuleSection, SysctlSection,
};
use super::{
    StaticAction, StaticNeighbour, StaticNetwork, StaticRoute, StaticRule, TABLE_LOCAL, TABLE_MAIN,
    vlan,
};
use crate::control::config::ipnet::IpNet;
use crate::control::config::{Located, check_ifname};
use crate::control::mirror::state::Family;
use crate::fib::{FibInfo, Nexthop, RouteType};
use crate::tables::{Forwarding6, InIfaddr, Inet6Ifaddr, Link, RpFilter, Sysctls};

/// Allowed IP MTUs in octets: RFC 791's minimum, and a port's maximum.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=crate::skb::JUMBO_MTU;

/// ETH_DATA_LEN.
const MTU_DEFAULT: u32 = 1500;

pub(super) fn resolve(section: &ReplaySection) -> Result<StaticNetwork, Located> {
    let mut network =
        StaticNetwork { sysctl: sysctls(&section.sysctl), ..StaticNetwork::default() };
    // Ports come first, followed by their upper interfaces; see `Links::dev`.
    let is_port = |interface: &&InterfaceSection| interface.port && interface.vlan.is_none();
    let mut devs = section.interface.iter().filter(is_port).count() as u16;
    let mut ports = 0;
    for interface in &section.interface {
        let ifindex = network.links.len() as u32 + 1;
        if network.link(interface.name.get_ref()).is_some() {
            let message = format!("interface `{}` is described twice", interface.name.get_ref());
            return Err(Located::new(interface.name.span(), message));
        }
        let link = if let Some(vlan) = &interface.vlan {
            let (lower, vlan) = vlan::resolve(&network, vlan, devs)?;
            devs += 1;
            let port = lower.port.filter(|_| interface.port);
            Link { port, vlan: Some(vlan), ..link(interface, ifindex, Some(lower))? }
        } else {
            let port = interface.port.then_some(ports);
            ports += u16::from(interface.port);
            Link { port, ..link(interface, ifindex, None)? }
        };
        if link.up {
            connected_routes(&link, &mut network.routes);
        }
        network.links.push(link);
    }
    for route in &section.route {
        let route = resolve_route(&network, route)?;
        network.routes.push(route);
    }
    for rule in &section.rule {
        let rule = resolve_rule(&network, rule)?;
        network.rules.push(rule);
    }
    for neighbour in &section.neighbour {
        network.neighbours.push(StaticNeighbour {
            oif: named(&network, &neighbour.dev)?.ifindex,
            addr: neighbour.address,
            lladdr: neighbour.lladdr.map(|mac| mac.0),
        });
    }
    Ok(network)
}

/// The interface of a section, except for its port number and VLAN; `lower`: its lower interface.
fn link(section: &InterfaceSection, ifindex: u32, lower: Option<&Link>) -> Result<Link, Located> {
    let InterfaceSection { name, .. } = section;
    check_ifname(name.get_ref()).map_err(|message| Located::new(name.span(), message))?;
    let Some(mac) = section.mac.map(|mac| mac.0).or(lower.map(|lower| lower.mac)) else {
        let message = format!("interface `{}` needs a mac", name.get_ref());
        return Err(Located::new(name.span(), message));
    };
    let most = lower.map_or(*MTU_RANGE.end(), |lower| lower.mtu);
    for mtu in [&section.mtu, &section.mtu6].into_iter().flatten() {
        if !(*MTU_RANGE.start()..=most).contains(mtu.get_ref()) {
            let least = MTU_RANGE.start();
            let message = format!("mtu is {}, expected {least} to {most}", mtu.get_ref());
            return Err(Located::new(mtu.span(), message));
        }
    }
    let mtu = section.mtu.as_ref().map(|mtu| *mtu.get_ref());
    let mtu = mtu.unwrap_or(lower.map_or(MTU_DEFAULT, |lower| lower.mtu));
    let mtu6 = section.mtu6.as_ref().map_or(mtu, |mtu6| *mtu6.get_ref());
    let rp_filter = match section.rp_filter.as_ref().map(|value| (value.get_ref(), value.span())) {
        None | Some((0, _)) => RpFilter::Off,
        Some((1, _)) => RpFilter::Strict,
        Some((2, _)) => RpFilter::Loose,
        Some((other, span)) => {
            let message =
                format!("rp_filter is {other}, expected 0 (off), 1 (strict) or 2 (loose)");
            return Err(Located::new(span, message));
        }
    };
    let mut link = Link {
        mac,
        mtu,
        mtu6: mtu6.min(mtu),
        up: section.up,
        noarp: section.noarp,
        forwarding4: section.forwarding4.unwrap_or(section.forwarding),
        forwarding6: Forwarding6::plain(section.forwarding6.unwrap_or(section.forwarding)),
        rp_filter,
        accept_source_route: section.accept_source_route,
        send_redirects: section.send_redirects,
        route_localnet: section.route_localnet,
        accept_local: section.accept_local,
        shared_media: section.shared_media,
        disable_ipv6: section.disable_ipv6,
        partial_csum: section.partial_csum || lower.is_some_and(|lower| lower.partial_csum),
        ..Link::new(ifindex, name.get_ref())
    };
    for address in &section.addresses {
        match (address.get_ref().addr, address.get_ref().len) {
            (IpAddr::V4(addr), len) => link.addrs4.push(InIfaddr::new(addr, len)),
            (IpAddr::V6(addr), len) => link.addrs6.push(Inet6Ifaddr::new(addr, len)),
        }
    }
    let has_link_local = link.addrs6.iter().any(|own| own.addr.is_unicast_link_local());
    if !has_link_local && !link.disable_ipv6 {
        link.addrs6.push(Inet6Ifaddr::new(link_local(link.mac), 64));
    }
    Ok(link)
}

/// RFC 4291 appendix A: fe80:: and the interface identifier derived from the MAC address.
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f];
    octets[8] ^= 0x02;
    octets.into()
}

/// The routes that the kernel adds for an address (`fib_add_ifaddr`, `addrconf_prefix_route`,
/// `__ipv6_dev_ac_inc`).
fn connected_routes(link: &Link, routes: &mut Vec<StaticRoute>) {
    let nexthop = Nexthop {
        oif: link.ifindex,
        dev: link.dev(),
        gateway: None,
        weight: 1,
        dead: false,
        onlink: false,
    };
    let mut add = |table, dst: IpNet, kind, prefsrc: Option<IpAddr>| {
        let nexthops = [nexthop.clone()].into();
        let info = FibInfo { nexthops, prefsrc, ..FibInfo::special(kind) };
        routes.push(StaticRoute { table, dst: dst.network(), metric: 0, info });
    };
    for &InIfaddr { local: addr, prefixlen: len, .. } in &link.addrs4 {
        let net = IpNet { addr: addr.into(), len };
        let own = Some(addr.into());
        add(TABLE_LOCAL, IpNet::host(net.addr), RouteType::Local, own);
        if len < 32 {
            add(TABLE_MAIN, net, RouteType::Unicast, own);
        }
        if len < 31 {
            let broadcast = addr.to_bits() | u32::MAX.checked_shr(len.into()).unwrap_or(0);
            let broadcast = IpAddr::V4(broadcast.into());
            add(TABLE_LOCAL, IpNet::host(broadcast), RouteType::Broadcast, own);
        }
    }
    for &Inet6Ifaddr { addr, prefixlen: len, .. } in &link.addrs6 {
        let net = IpNet { addr: addr.into(), len };
        add(TABLE_LOCAL, IpNet::host(net.addr), RouteType::Local, None);
        if len < 128 {
            add(TABLE_MAIN, net, RouteType::Unicast, None);
        }
        if len < 127 && link.forwarding6 != Forwarding6::Off {
            // Subnet-Router anycast, RFC 4291 2.6.1.
            add(TABLE_LOCAL, IpNet::host(net.network().addr), RouteType::Anycast, None);
        }
    }
    if !link.addrs6.is_empty() {
        let all = IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0));
        add(TABLE_LOCAL, IpNet { addr: all, len: 8 }, RouteType::Multicast, None);
    }
}

pub(super) fn named<'a>(
    network: &'a StaticNetwork,
    name: &Spanned<String>,
) -> Result<&'a Link, Located> {
    network.link(name.get_ref()).ok_or_else(|| {
        let names: Vec<&str> = network.links.iter().map(|link| link.name.as_str()).collect();
        let message = format!(
            "interface `{}` is not described, expected one of {}",
            name.get_ref(),
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        );
        Located::new(name.span(), message)
    })
}

fn resolve_route(
    network: &StaticNetwork,
    route: &Spanned<RouteSection>,
) -> Result<StaticRoute, Located> {
    let (span, route) = (route.span(), route.get_ref());
    let gateways = || {
        let more = route.nexthop.iter().filter_map(|nexthop| nexthop.get_ref().via.as_ref());
        route.via.iter().chain(more).map(|via| *via.get_ref())
    };
    let dst = match *route.dst.get_ref() {
        // As in iproute2: the family of the next hop.
        Destination::Default => {
            IpNet::default_route(gateways().next().is_some_and(|g| g.is_ipv6()))
        }
        Destination::Net(net) if net.network() != net => {
            let message =
                format!("`{net}` has host bits set, expected the network `{}`", net.network());
            return Err(Located::new(route.dst.span(), message));
        }
        Destination::Net(net) => net,
    };
    if dst.addr.is_ipv6() && gateways().any(|gateway| gateway.is_ipv4()) {
        let message = format!("`{dst}` cannot lead through an IPv4 address");
        return Err(Located::new(span, message));
    }
    let kind = route.kind.route_type();
    let single = NexthopSection {
        via: route.via.clone(),
        dev: route.dev.clone(),
        onlink: route.onlink,
        weight: None,
    };
    let has_single = single.via.is_some() || single.dev.is_some();
    let nexthops: Vec<Nexthop> = match (has_single, route.nexthop.is_empty()) {
        (true, false) => {
            let message = "a route has either via and dev or nexthops, found both";
            return Err(Located::new(span, message));
        }
        (true, true) => vec![resolve_nexthop(network, span, &single)?],
        (false, true) if kind == RouteType::Unicast => {
            return Err(Located::new(span, "a unicast route needs via, dev or nexthops"));
        }
        (false, _) => route
            .nexthop
            .iter()
            .map(|nexthop| resolve_nexthop(network, nexthop.span(), nexthop.get_ref()))
            .collect::<Result<_, _>>()?,
    };
    let info = FibInfo {
        nexthops: nexthops.into(),
        mtu: route.mtu,
        prefsrc: route.src,
        ..FibInfo::special(kind)
    };
    Ok(StaticRoute { table: route.table.0, dst, metric: route.metric, info })
}

fn resolve_nexthop(
    network: &StaticNetwork,
    span: std::ops::Range<usize>,
    nexthop: &NexthopSection,
) -> Result<Nexthop, Located> {
    let link = match (&nexthop.dev, &nexthop.via) {
        (Some(dev), _) => named(network, dev)?,
        (None, Some(via)) => on_link(network, *via.get_ref()).ok_or_else(|| {
            let message = format!(
                "no interface has `{}` on its link, expected dev, or an interface with an address \
                 that covers it",
                via.get_ref()
            );
            Located::new(via.span(), message)
        })?,
        (None, None) => return Err(Located::new(span, "a nexthop needs via or dev")),
    };
    let weight = nexthop.weight.as_ref().map_or(1, |weight| *weight.get_ref());
    if !(1..=65536).contains(&weight) {
        let message = format!("weight is {weight}, expected 1 to 65536");
        return Err(Located::new(nexthop.weight.as_ref().map_or(span, Spanned::span), message));
    }
    Ok(Nexthop {
        oif: link.ifindex,
        dev: link.dev(),
        gateway: nexthop.via.as_ref().map(|via| *via.get_ref()),
        weight,
        dead: !link.up,
        onlink: nexthop.onlink,
    })
}

/// The interface whose connected network covers an address.
fn on_link(network: &StaticNetwork, addr: IpAddr) -> Option<&Link> {
    let covers = |net: IpNet| net.network().covers(IpNet::host(addr));
    network.links.iter().find(|link| {
        link.addrs4.iter().any(|own| covers(IpNet { addr: own.local.into(), len: own.prefixlen }))
            || link.addrs6.iter().any(|&Inet6Ifaddr { addr, prefixlen: len, .. }| {
                // Every link has fe80::/64, which therefore selects none.
                !addr.is_unicast_link_local() && covers(IpNet { addr: addr.into(), len })
            })
    })
}

fn resolve_rule(
    network: &StaticNetwork,
    rule: &Spanned<RuleSection>,
) -> Result<StaticRule, Located> {
    let (span, rule) = (rule.span(), rule.get_ref());
    let prefix = |given: &Option<Spanned<Destination>>| match given.as_ref().map(Spanned::get_ref) {
        None | Some(Destination::Default) => None,
        Some(Destination::Net(net)) => Some(net.network()),
    };
    let (from, to) = (prefix(&rule.from), prefix(&rule.to));
    let named = rule.family.map(|name| match name {
        FamilyName::Inet => Family::V4,
        FamilyName::Inet6 => Family::V6,
    });
    let of_prefix = from.or(to).map(|net| Family::of(&net.addr));
    let family = named.or(of_prefix).unwrap_or(Family::V4);
    if [from, to].into_iter().flatten().any(|net| Family::of(&net.addr) != family) {
        return Err(Located::new(span, "a rule's family, from and to must be of one family"));
    }
    let action = match (rule.table, &rule.goto, rule.action) {
        (Some(table), None, None) => StaticAction::Lookup(table.0),
        (None, Some(target), None) if *target.get_ref() > rule.priority => {
            StaticAction::Goto(*target.get_ref())
        }
        (None, Some(target), None) => {
            let (to, from) = (target.get_ref(), rule.priority);
            let message =
                format!("goto is {to}, expected a priority beyond the rule's own, {from}");
            return Err(Located::new(target.span(), message));
        }
        (None, None, Some(ActionName::Nop)) => StaticAction::Nop,
        (None, None, Some(ActionName::Blackhole)) => StaticAction::Blackhole,
        (None, None, Some(ActionName::Unreachable)) => StaticAction::Unreachable,
        (None, None, Some(ActionName::Prohibit)) => StaticAction::Prohibit,
        _ => return Err(Located::new(span, "a rule needs one of table, goto and action")),
    };
    Ok(StaticRule {
        family,
        priority: rule.priority,
        invert: rule.not,
        from,
        to,
        // As in the kernel: a rule may name an interface that does not exist.
        iif: rule.iif.as_ref().map(|name| network.link(name).map_or(0, |link| link.ifindex)),
        fwmark: rule.fwmark.map(|mark| (mark.0, mark.1)),
        action,
    })
}

fn sysctls(section: &SysctlSection) -> Sysctls {
    let kernel = Sysctls::default();
    Sysctls {
        ip_default_ttl: section.ip_default_ttl.unwrap_or(kernel.ip_default_ttl),
        hop_limit: section.hop_limit.unwrap_or(kernel.hop_limit),
        icmp_ratelimit_ms: section.icmp_ratelimit.unwrap_or(kernel.icmp_ratelimit_ms),
        icmp_ratemask: section.icmp_ratemask.unwrap_or(kernel.icmp_ratemask),
        icmp_msgs_per_sec: section.icmp_msgs_per_sec.unwrap_or(kernel.icmp_msgs_per_sec),
        icmp_msgs_burst: section.icmp_msgs_burst.unwrap_or(kernel.icmp_msgs_burst),
        icmp_errors_use_inbound_ifaddr: section
            .icmp_errors_use_inbound_ifaddr
            .unwrap_or(kernel.icmp_errors_use_inbound_ifaddr),
        icmp6_ratelimit_ms: section.icmp6_ratelimit.unwrap_or(kernel.icmp6_ratelimit_ms),
        multipath_hash_policy4: section
            .fib_multipath_hash_policy
            .unwrap_or(kernel.multipath_hash_policy4),
        multipath_hash_policy6: section
            .fib_multipath_hash_policy6
            .unwrap_or(kernel.multipath_hash_policy6),
        ..kernel
    }
}
