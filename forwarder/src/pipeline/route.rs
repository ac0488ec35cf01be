//! The IPv4 routing decision: `ip_route_input_slow`, `__mkroute_input` and `fib_validate_source` of
//! the kernel, without its cache; and the choice of source addresses.
//!
//! What is not mirrored, or leads out by an interface that is not a port of ours, goes back to the
//! kernel before anything about the packet has changed.

use std::net::{IpAddr, Ipv4Addr};

use super::ip_forward::ip_error;
use super::ip_input::Iphdr;
use super::neigh_output::HhCache;
use super::{Ctx, Exit, RoutesKnown};
use crate::fib::{FibInfo, FibResult, Flow, Nexthop, RouteType};
use crate::neigh::Neighbour;
use crate::netfilter::Hook;
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::{Link, RpFilter, Tables};
use crate::wire::ipv4::{ipv4_is_lbcast, ipv4_is_loopback, ipv4_is_multicast, ipv4_is_zeronet};
use crate::wire::{FlowKey, Ipv4Packet};

/// ifindex of `lo` in every namespace: where the kernel has packets of our own come from.
pub(super) const LOOPBACK_IFINDEX: u32 = 1;
/// IP_MAX_MTU and IP6_MAX_MTU less what nobody uses: no packet is longer.
const MTU_MAX: u32 = 0xffff;

/// A route with the way out chosen: the kernel's `dst_entry`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dst<'a> {
    /// `None`: a link-local destination, which needs no route.
    pub info: Option<&'a FibInfo>,
    /// The way out chosen; `None`: the destination is on the link.
    pub nexthop: Option<&'a Nexthop>,
    /// The outgoing interface.
    pub dev: &'a Link,
    /// The neighbour that packets go to, once it was looked up ([`Dst::resolve`]).
    pub neigh: Option<&'a Neighbour>,
    /// How all its packets begin, if that is always the same.
    pub hh: Option<HhCache>,
    /// The port its frames leave by.
    pub port: u16,
    /// IP MTU of the way, octets.
    pub mtu: u32,
    /// What a sender's address must be like, by whence its packets come; IPv4 alone asks.
    pub sources: Sources,
    /// IPSKB_DOREDIRECT: the sender may be told of a shorter way.
    pub redirect: bool,
}

/// What `fib_validate_source` demands of a source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sources {
    /// Nothing.
    Any,
    /// That it is not one of ours, nor a broadcast address of ours.
    NotOurs,
    /// What the way back says.
    ByRoute,
}

impl Sources {
    /// Of packets that come in by `dev` and go out by `oif`. `listed`: see [`own_sources_listed`].
    #[inline]
    fn of(dev: &Link, oif: u32, listed: bool) -> Sources {
        let back = oif == dev.ifindex && dev.send_redirects;
        match (dev.accept_local, listed) {
            _ if dev.rp_filter != RpFilter::Off || back => Sources::ByRoute,
            (true, _) => Sources::Any,
            (false, true) => Sources::NotOurs,
            (false, false) => Sources::ByRoute,
        }
    }
}

impl<'a> Dst<'a> {
    /// The router to send to; `None`: the destination itself.
    #[inline]
    pub fn gateway(&self) -> Option<&'a IpAddr> {
        self.nexthop?.gateway.as_ref()
    }

    /// Whether a packet goes this way in one piece.
    #[inline]
    pub fn fits(&self, skb: &SkBuff) -> bool {
        skb.network_len() as u32 <= self.mtu
    }

    /// Looks up the neighbour that packets to `daddr` go to, unless that is known. Not before the packet
    /// is about to leave: what stands before need not wait for it. Where it is the destination itself,
    /// and hooks may still change that, it is looked up when they have.
    #[inline]
    pub fn resolve(&mut self, daddr: impl Into<IpAddr>, tables: &'a Tables) {
        if self.neigh.is_none() {
            self.find_neigh(daddr.into(), tables);
        }
    }

    #[inline(never)]
    fn find_neigh(&mut self, daddr: IpAddr, tables: &'a Tables) {
        let nexthop = match self.gateway() {
            Some(gateway) => *gateway,
            None => {
                let last = [Hook::Forward, Hook::PostRouting];
                if last.iter().any(|&hook| !tables.hooks.is_empty(hook)) {
                    return;
                }
                daddr
            }
        };
        self.neigh = tables.neigh.lookup(self.dev.ifindex, &nexthop);
        self.hh = self.neigh.and_then(|neigh| HhCache::new(neigh, self.dev));
    }

    /// The source address that the route prefers.
    pub fn prefsrc(&self) -> Option<IpAddr> {
        self.info?.prefsrc
    }

    #[inline(always)]
    pub fn new(
        info: &'a FibInfo,
        nexthop: &'a Nexthop,
        tables: &'a Tables,
    ) -> Result<Dst<'a>, Exit> {
        let dev = nexthop.dev.ok_or(Exit::Punt(PuntReason::ForeignOif))?;
        let dev = tables.links.dev(dev).ok_or(Exit::Punt(PuntReason::NotReady))?;
        let port = dev.port.ok_or(Exit::Punt(PuntReason::ForeignOif))?;
        if dev.noarp {
            // Without neighbours there is no telling what the link-layer header should be.
            return Err(Exit::Punt(PuntReason::ForeignOif));
        }
        // ip_dst_mtu_maybe_forward: the route's own MTU comes first.
        let mtu = if info.mtu != 0 { info.mtu } else { dev.mtu }.min(MTU_MAX);
        let (info, nexthop) = (Some(info), Some(nexthop));
        let sources = Sources::ByRoute;
        Ok(Dst { info, nexthop, dev, neigh: None, hh: None, port, mtu, sources, redirect: false })
    }
}

/// Why there is no way: `dst.error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteError {
    /// ENETUNREACH.
    NetUnreach(DropReason),
    /// EHOSTUNREACH.
    HostUnreach(DropReason),
    /// EACCES.
    Filtered,
    /// EINVAL.
    Silent(DropReason),
}

/// `ip_route_input`: where a packet from the wire goes, and `ip_error` where that is nowhere.
#[inline]
pub(super) fn ip_route_input<'a, 'k>(
    skb: &SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    known: &'k mut RoutesKnown<'a, '_>,
    ctx: &mut Ctx<'a>,
) -> Result<&'k mut Dst<'a>, Exit> {
    // Made where it is asked for, which is cheaper than kept.
    let flow = || Flow { saddr: iph.saddr, daddr: iph.daddr, iif: dev.ifindex, mark: skb.mark };
    if known.hint4.is_of(&flow()) {
        return known.hint4.dst();
    }
    // ip_route_input_slow.
    let tables = ctx.tables;
    let odd = |addr: u32| ODD[usize::from((addr >> 24) as u8)];
    if odd(iph.saddr) | odd(iph.daddr) {
        martians(Ipv4Addr::from_bits(iph.saddr), Ipv4Addr::from_bits(iph.daddr), dev)?;
    }
    let info = match known.ahead.v4.unicast(known.n, iph.daddr) {
        Some(info) => info,
        None => match known.ahead.v4.by_rules(flow()) {
            Ok(info) => info,
            Err(other) => return Err(ip_error(skb, refused(other)?, dev, ctx)),
        },
    };
    if !dev.forwarding4 {
        let error = RouteError::HostUnreach(DropReason::ForwardingOff);
        return Err(ip_error(skb, error, dev, ctx));
    }
    let listed = known.own_sources_listed;
    let dst = known.hint4.by(info, dev.ifindex, || {
        let hash = || multipath_hash(skb, ctx);
        let nexthop = info.select(hash).ok_or(Exit::Punt(PuntReason::RouteUnsupported))?;
        let dst = Dst::new(info, nexthop, tables)?;
        Ok(Dst { sources: Sources::of(dev, dst.dev.ifindex, listed), ..dst })
    })?;
    let scope_host = fib_validate_source(iph, dev, dst, ctx)?;
    let comes_back = scope_host && dst.dev.ifindex == dev.ifindex && dev.send_redirects;
    dst.redirect = comes_back && deserves_redirect(iph.saddr, dst);
    known.hint4.learn(flow());
    known.hint4.dst()
}

/// First octets by which martians are told from the rest. A table, for both addresses at once.
static ODD: [bool; 256] = {
    let mut odd = [false; 256];
    let mut octet = 0;
    while octet < 256 {
        odd[octet] = matches!(octet, 0 | 127 | 224..);
        octet += 1;
    }
    odd
};

/// Destinations and sources that no lookup would refuse, in the order of `ip_route_input_slow`.
#[cold]
fn martians(saddr: Ipv4Addr, daddr: Ipv4Addr, dev: &Link) -> Result<(), Exit> {
    const SOURCE: Result<(), Exit> = Err(Exit::Drop(DropReason::IpInvalidSource));
    const DESTINATION: Result<(), Exit> = Err(Exit::Drop(DropReason::IpInvalidDest));
    if ipv4_is_multicast(daddr) {
        return Err(Exit::Punt(PuntReason::NotUnicast));
    }
    if ipv4_is_multicast(saddr) || ipv4_is_lbcast(saddr) {
        return SOURCE;
    }
    if ipv4_is_lbcast(daddr) || (saddr.is_unspecified() && daddr.is_unspecified()) {
        return Err(Exit::Punt(PuntReason::NotUnicast));
    }
    // RFC 1812 §5.3.7: 0.0.0.0 and 127/8 are not forwarded. The rest of 0/8, and 240/4, the kernel
    // forwards.
    if ipv4_is_zeronet(saddr) {
        return SOURCE;
    }
    if ipv4_is_zeronet(daddr) || (ipv4_is_loopback(daddr) && !dev.route_localnet) {
        return DESTINATION;
    }
    if ipv4_is_loopback(saddr) {
        // Is it refused as one of ours? See `local_source`.
        return if dev.route_localnet { Err(Exit::Punt(PuntReason::NotUnicast)) } else { SOURCE };
    }
    Ok(())
}

/// What a lookup that found no way to forward means; what is not an error is the kernel's.
#[cold]
fn refused(result: FibResult<'_>) -> Result<RouteError, Exit> {
    let (kind, by_rule) = match result {
        FibResult::NoRoute => return Ok(RouteError::NetUnreach(DropReason::IpNoRoute)),
        FibResult::Route(info) => (info.kind, false),
        FibResult::Rule(kind) => (kind, true),
    };
    match kind {
        RouteType::Blackhole => Ok(RouteError::Silent(DropReason::Blackhole)),
        // fib4_rule_action answers ENETUNREACH where fib_props has EHOSTUNREACH.
        RouteType::Unreachable if by_rule => Ok(RouteError::NetUnreach(DropReason::Unreachable)),
        RouteType::Unreachable => Ok(RouteError::HostUnreach(DropReason::Unreachable)),
        RouteType::Prohibit => Ok(RouteError::Filtered),
        RouteType::Local => Err(Exit::Punt(PuntReason::Local)),
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            Err(Exit::Punt(PuntReason::NotUnicast))
        }
        RouteType::Punt(reason) => Err(Exit::Punt(reason)),
        RouteType::Unicast | RouteType::Throw => Err(Exit::Punt(PuntReason::RouteUnsupported)),
    }
}

/// `fib_validate_source`: whether the source may come from here. `Ok(true)`: it is on this link.
#[inline]
fn fib_validate_source(
    iph: &Iphdr,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &Ctx<'_>,
) -> Result<bool, Exit> {
    match dst.sources {
        Sources::NotOurs if ctx.tables.links.is_local4(iph.saddr) => local_source(iph, ctx),
        Sources::Any | Sources::NotOurs => Ok(false),
        Sources::ByRoute => {
            // As a packet that goes back. The mark is left out unless src_valid_mark says otherwise,
            // which is not mirrored.
            let iif = dst.dev.ifindex;
            let flow = Flow { saddr: iph.daddr, daddr: iph.saddr, iif, mark: 0 };
            validate_source_by_route(&flow, dev, ctx)
        }
    }
}

/// Refuses a source that is ours: apart, so that for all others nothing is prepared. Whether one that is
/// a broadcast address of ours is refused depends on what no one tells (`fib4_has_custom_rules`,
/// `fib_has_custom_local_routes`, which say whether there ever were any): the kernel decides.
#[cold]
#[inline(never)]
fn local_source(iph: &Iphdr, ctx: &Ctx<'_>) -> Result<bool, Exit> {
    if ctx.tables.links.is_own4(iph.saddr) {
        return Err(Exit::Drop(DropReason::IpLocalSource));
    }
    Err(Exit::Punt(PuntReason::NotUnicast))
}

/// Whether our own addresses are all that the local table has, so that they are found without it.
#[inline]
pub(super) fn own_sources_listed(tables: &Tables) -> bool {
    tables.fib4.merged && !tables.sysctl.custom_local_routes
}

/// `__fib_validate_source`: looks the way `back` up.
#[inline(never)]
fn validate_source_by_route(back: &Flow<u32>, dev: &Link, ctx: &Ctx<'_>) -> Result<bool, Exit> {
    let refuse = || {
        ctx.stats.mib(Mib::TcpExtIPReversePathFilter);
        Err(Exit::Drop(DropReason::IpRpfilter))
    };
    let info = match ctx.tables.fib4.fib_lookup(back) {
        FibResult::Route(info) => info,
        FibResult::Rule(RouteType::Punt(reason)) => return Err(Exit::Punt(reason)),
        FibResult::Rule(_) | FibResult::NoRoute if dev.rp_filter == RpFilter::Off => {
            return Ok(false);
        }
        FibResult::Rule(_) | FibResult::NoRoute => return refuse(),
    };
    match info.kind {
        RouteType::Unicast => {}
        RouteType::Local if dev.accept_local => {}
        RouteType::Local => return Err(Exit::Drop(DropReason::IpLocalSource)),
        RouteType::Punt(reason) => return Err(Exit::Punt(reason)),
        // These end the lookup with an error, as no route does.
        RouteType::Blackhole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            return if dev.rp_filter == RpFilter::Off { Ok(false) } else { refuse() };
        }
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
            return Err(Exit::Drop(DropReason::IpInvalidSource));
        }
    }
    if info.nexthops.iter().any(|nexthop| nexthop.oif == dev.ifindex) {
        // nhc_scope is RT_SCOPE_HOST: the source is a neighbour.
        let first = info.nexthops.iter().find(|nexthop| !nexthop.dead);
        return Ok(first.is_some_and(|nexthop| nexthop.gateway.is_none()));
    }
    // Without an address of its own the interface cannot tell; with one, strict means here only.
    let no_addr = dev.addrs4.is_empty();
    match dev.rp_filter {
        RpFilter::Off => Ok(false),
        RpFilter::Strict => refuse(),
        RpFilter::Loose if no_addr => refuse(),
        RpFilter::Loose => Ok(false),
    }
}

/// Whether the kernel tells the sender, a neighbour on the link that the packet leaves by again,
/// of a shorter way (IPSKB_DOREDIRECT in `__mkroute_input`). How often is for `ip_forward`.
#[cold]
fn deserves_redirect(saddr: u32, dst: &Dst<'_>) -> bool {
    let gateway = match dst.gateway() {
        Some(IpAddr::V4(gateway)) => Some(gateway.to_bits()),
        _ => None,
    };
    dst.dev.shared_media || inet_addr_onlink(dst.dev, saddr, gateway)
}

/// `inet_addr_onlink`: one of our prefixes on the interface has both.
fn inet_addr_onlink(dev: &Link, a: u32, b: Option<u32>) -> bool {
    dev.addrs4
        .iter()
        .any(|&(local, len)| in_prefix(local, len, a) && b.is_none_or(|b| in_prefix(local, len, b)))
}

fn in_prefix(local: Ipv4Addr, len: u8, addr: u32) -> bool {
    let host_bits = 32 - u32::from(len.min(32));
    (local.to_bits() ^ addr).checked_shr(host_bits).unwrap_or(0) == 0
}

/// `fib_multipath_hash`.
#[cold]
fn multipath_hash(skb: &SkBuff, ctx: &Ctx<'_>) -> u32 {
    let packet = Ipv4Packet::new_unchecked(skb.network_header());
    let key = match ctx.tables.sysctl.multipath_hash_policy4 {
        0 => FlowKey::l3_ipv4(&packet),
        _ => FlowKey::l4_ipv4(&packet),
    };
    key.hash(ctx.state.hash_seed)
}

/// The way of a packet of our own: `ip_route_output_key` for destination `daddr`.
///
/// # Errors
/// [`Exit::Punt`] when only the kernel can send there, [`Exit::Drop`] when nobody can.
pub(super) fn ip_route_output<'a>(daddr: u32, saddr: u32, ctx: &Ctx<'a>) -> Result<Dst<'a>, Exit> {
    let flow = Flow { saddr, daddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    let info = match ctx.tables.fib4.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        FibResult::Route(&FibInfo { kind: RouteType::Punt(reason), .. })
        | FibResult::Rule(RouteType::Punt(reason)) => return Err(Exit::Punt(reason)),
        _ => return Err(Exit::Drop(DropReason::IpNoRoute)),
    };
    let hash = || mix32(ctx.state.hash_seed ^ u64::from(daddr));
    let nexthop = info.select(hash).ok_or(Exit::Punt(PuntReason::RouteUnsupported))?;
    Dst::new(info, nexthop, ctx.tables)
}

/// Fibonacci hashing.
pub(super) fn mix32(word: u64) -> u32 {
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// `fib_result_prefsrc`: the source address that goes with a route. 0: there is none.
pub(super) fn fib_result_prefsrc(tables: &Tables, dst: &Dst<'_>) -> u32 {
    match (dst.prefsrc(), dst.gateway()) {
        (Some(IpAddr::V4(prefsrc)), _) => prefsrc.to_bits(),
        (_, Some(IpAddr::V4(gateway))) => inet_select_addr(tables, dst.dev, gateway.to_bits()),
        _ => inet_select_addr(tables, dst.dev, 0),
    }
}

/// `inet_select_addr`: the interface's address on the subnet of `dst`, else its first, else the
/// first of any interface. 0: there is none.
pub(super) fn inet_select_addr(tables: &Tables, dev: &Link, dst: u32) -> u32 {
    let on_subnet = dev.addrs4.iter().find(|&&(local, len)| dst == 0 || in_prefix(local, len, dst));
    let of_dev = on_subnet.or_else(|| dev.addrs4.first());
    let of_any = || {
        let all = tables.links.iter().flat_map(|link| &link.addrs4);
        // Those of scope host do not count.
        all.into_iter().find(|addr| !ipv4_is_loopback(addr.0))
    };
    of_dev.or_else(of_any).map_or(0, |addr| addr.0.to_bits())
}

/// `fib_compute_spec_dst`: the address of ours that the sender of a forwarded packet knows us by.
pub(super) fn fib_compute_spec_dst(tables: &Tables, dev: &Link, saddr: u32) -> u32 {
    let flow = Flow { saddr: 0, daddr: saddr, iif: LOOPBACK_IFINDEX, mark: 0 };
    let way_back = match tables.fib4.fib_lookup(&flow) {
        FibResult::Route(info) if info.kind == RouteType::Unicast => info,
        _ => return inet_select_addr(tables, dev, saddr),
    };
    if let Some(IpAddr::V4(prefsrc)) = way_back.prefsrc {
        return prefsrc.to_bits();
    }
    let nexthop = way_back.nexthops.iter().find(|nexthop| !nexthop.dead);
    let oif = nexthop.and_then(|nexthop| tables.links.ifindex(nexthop.oif)).unwrap_or(dev);
    match nexthop.and_then(|nexthop| nexthop.gateway) {
        Some(IpAddr::V4(gateway)) => inet_select_addr(tables, oif, gateway.to_bits()),
        _ => inet_select_addr(tables, oif, 0),
    }
}

/// `inet_addr_type` is RTN_UNICAST: the address is some other host's.
pub(super) fn is_unicast_elsewhere(tables: &Tables, addr: u32) -> bool {
    let std = Ipv4Addr::from_bits(addr);
    if ipv4_is_zeronet(std) || ipv4_is_lbcast(std) || ipv4_is_multicast(std) {
        return false;
    }
    let flow = Flow { saddr: 0, daddr: addr, iif: LOOPBACK_IFINDEX, mark: 0 };
    !matches!(
        tables.fib4.fib_lookup(&flow),
        FibResult::Route(FibInfo { kind: RouteType::Local | RouteType::Broadcast, .. })
    )
}
