//! Packets of carried flows for which the hook functions have decided: they pass the hooks without the functions
//! (`nf_flow_offload_ip_hook`, `nf_flow_offload_ipv6_hook` of the kernel).
//!
//! A packet is routed by its translated destination, and translated when it is certain that it passes; whatever ends
//! it before that finds it as received. Later packets of the flow leave the same way without routing
//! ([`super::flow_cache`]).

use std::net::Ipv4Addr;

use smallvec::SmallVec;

use super::burst_routes::BurstRoutes;
use super::csum_partial::skb_checksum_help;
use super::dst::Dst;
use super::encap::is_left_to_workers;
use super::eth_input::is_l2_multicast;
use super::flow_cache::Entry;
use super::headers::{Iphdr, Ipv6hdr};
use super::ip_forward::{decrease_ttl, ip_forward_checks};
use super::ip6_forward::{decrease_hop_limit, ip6_forward_checks};
use super::mode::Hooked;
use super::nf_ingress::check_egress;
use super::offload::OfferedFlow;
use super::post_routing::{PostRouted, passed_post_routing};
use super::route::ip_route_input;
use super::route6::ip6_route_input;
use super::xfrm::passes_policies;
use super::{Ctx, Exit};
use crate::netfilter::conntrack::{FlowKey, flow_key4, flow_key6};
use crate::netfilter::{Allowed, Passage, Passed};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib};
use crate::tables::Link;
use crate::wire::{Protocol, ethernet, ipv6};

/// How a packet passed.
#[derive(Debug)]
pub(super) enum Offloaded {
    /// The frame is complete; it is sent on this port.
    Xmit(u16, PostRouted),
    /// Its route is the last one of [`BurstRoutes`].
    Routed(PostRouted),
}

/// An IPv4 packet that passed `ip_rcv_core`, received on `dev`. `None`: the functions must run, and nothing has
/// changed.
///
/// # Errors
/// It ends after PRE_ROUTING, whose functions have not run.
#[inline(always)]
pub(super) fn nf_flow_offload_ip<'a>(
    skb: &mut SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<Offloaded, Exit>> {
    if !ctx.state.hooks.may_be_decided() {
        return None;
    }
    let key = flow_key4(skb.network_header())?;
    let transport = (iph.protocol.0, usize::from(iph.header_len));
    if iph.ttl > 1
        && !is_due(&key, skb, transport, dev, ctx)
        && let Some((entry, passed)) = pass_as_before(&key, skb, transport, dev, ctx)
    {
        ctx.mib(Mib::IpForwDatagrams);
        decrease_ttl(skb);
        return Some(complete(skb, entry, passed));
    }
    let own = &ctx.state.hooks;
    let packet = (skb.network_header(), skb.network_len());
    let of = (ctx.hooks, ctx.tables);
    let passage = Passage::of((routes.n, &key), packet, transport, dev, of, own, ctx.now_ns)?;
    skb.mark = passage.mark();
    let passed = route_and_pass4(passage, &key, skb, iph, dev, routes, ctx);
    if !matches!(passed, Some(Ok(_))) {
        // The functions set it.
        skb.mark = 0;
    }
    passed
}

/// The same of an IPv6 packet that passed `ip6_rcv_core`.
///
/// # Errors
/// As those of [`nf_flow_offload_ip`].
#[inline(always)]
pub(super) fn nf_flow_offload_ipv6<'a>(
    skb: &mut SkBuff,
    hdr: &Ipv6hdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<Offloaded, Exit>> {
    if !ctx.state.hooks.may_be_decided() {
        return None;
    }
    let key = flow_key6(skb.network_header())?;
    let transport = (hdr.next_header.0, ipv6::HEADER_LEN);
    if hdr.hop_limit > 1
        && !is_due(&key, skb, transport, dev, ctx)
        && let Some((entry, passed)) = pass_as_before(&key, skb, transport, dev, ctx)
    {
        ctx.mib(Mib::Ip6OutForwDatagrams);
        decrease_hop_limit(skb);
        return Some(complete(skb, entry, passed));
    }
    let own = &ctx.state.hooks;
    let packet = (skb.network_header(), skb.network_len());
    let of = (ctx.hooks, ctx.tables);
    let passage = Passage::of((routes.n, &key), packet, transport, dev, of, own, ctx.now_ns)?;
    skb.mark = passage.mark();
    let passed = route_and_pass6(passage, &key, skb, hdr, dev, routes, ctx);
    if !matches!(passed, Some(Ok(_))) {
        // The functions set it.
        skb.mark = 0;
    }
    passed
}

/// An IPv4 packet, with the mark that PRE_ROUTING leaves.
#[inline(always)]
fn route_and_pass4<'a>(
    passage: Passage<'_>,
    key: &FlowKey,
    skb: &mut SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<Offloaded, Exit>> {
    let daddr = passage.daddr4().map_or(iph.daddr, Ipv4Addr::to_bits);
    let iph = Iphdr { daddr, ..*iph };
    let dst = match ip_route_input(skb, &iph, dev, routes, ctx) {
        Ok(dst) => dst,
        // Of several next hops, the translated header may select another one.
        Err(Exit::Punt(_)) => return None,
        Err(exit) => return Some(Err(exit)),
    };
    if let Err(exit) = check_egress::<Hooked>(dst.dev, ctx) {
        return Some(Err(exit));
    }
    dst.resolve(Ipv4Addr::from_bits(daddr), ctx.tables);
    if !is_ready(skb, dst) || !may_pass(&passage, key, dst, ctx) {
        return None;
    }
    if let Err(exit) = ip_forward_checks(skb, &iph, (dst, true), ctx) {
        return Some(Err(exit));
    }
    let passed = pass(passage, key, skb, dev, dst, ctx)?;
    decrease_ttl(skb);
    Some(Ok(Offloaded::Routed(passed_post_routing(skb, passed))))
}

/// The same of an IPv6 packet.
#[inline(always)]
fn route_and_pass6<'a>(
    passage: Passage<'_>,
    key: &FlowKey,
    skb: &mut SkBuff,
    hdr: &Ipv6hdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<Offloaded, Exit>> {
    let daddr = passage.daddr6().unwrap_or(hdr.daddr);
    let hdr = Ipv6hdr { daddr, ..*hdr };
    let dst = match ip6_route_input(skb, &hdr, dev, routes, ctx) {
        Ok(dst) => dst,
        // Of several next hops, the translated header may select another one.
        Err(Exit::Punt(_)) => return None,
        Err(exit) => return Some(Err(exit)),
    };
    if let Err(exit) = check_egress::<Hooked>(dst.dev, ctx) {
        return Some(Err(exit));
    }
    dst.resolve(daddr, ctx.tables);
    if !is_ready(skb, dst) || !may_pass(&passage, key, dst, ctx) {
        return None;
    }
    if let Err(exit) = ip6_forward_checks(skb, &hdr, (dev, true), dst, ctx) {
        return Some(Err(exit));
    }
    let passed = pass(passage, key, skb, dev, dst, ctx)?;
    decrease_hop_limit(skb);
    Some(Ok(Offloaded::Routed(passed_post_routing(skb, passed))))
}

/// A packet of a flow of which another has passed a short time ago.
#[inline(always)]
fn pass_as_before<'s>(
    key: &FlowKey,
    skb: &mut SkBuff,
    transport: (u8, usize),
    dev: &Link,
    ctx: &'s Ctx<'_>,
) -> Option<(&'s Entry, Passed)> {
    let state = &*ctx.state;
    let entry = state.flow_cache.get(key)?;
    let packet = (skb.network_header(), skb.network_len());
    if !is_simple(skb) || !entry.is_for(packet.1, dev.ifindex, ctx.now_ns) {
        return None;
    }
    let passage =
        Passage::again(entry.flow, packet, transport, ctx.hooks, &state.hooks, ctx.now_ns)?;
    let passed = passage.pass(skb, entry.rewrite(), entry.counters(), ctx.hooks, &state.hooks)?;
    Some((entry, passed))
}

/// The frame of a packet that passed as another one before.
#[inline(always)]
fn complete(skb: &mut SkBuff, entry: &Entry, passed: Passed) -> Result<Offloaded, Exit> {
    let Some(header) = skb.set_mac_chunk::<{ ethernet::HEADER_LEN }>() else {
        // Not reachable: a frame without tags was received with as many octets.
        return Err(Exit::Drop(DropReason::SkbNoHeadroom));
    };
    entry.hh.write(header);
    skb_checksum_help(skb);
    Ok(Offloaded::Xmit(entry.port, passed_post_routing(skb, passed)))
}

/// Whether the flow is to be offered to be offloaded with this packet.
#[inline(always)]
fn is_due(
    key: &FlowKey,
    skb: &SkBuff,
    (protocol, transport): (u8, usize),
    dev: &Link,
    ctx: &mut Ctx<'_>,
) -> bool {
    if dev.partial_csum && is_left_to_workers(skb, Protocol(protocol), transport) {
        ctx.state.offload.is_never_due();
        return false;
    }
    ctx.state.offload.is_due(key, skb.port, ctx.now_ns)
}

/// Whether nothing but fragments, or a neighbour that is not known, keeps the packet from being sent.
#[inline(always)]
fn is_ready(skb: &SkBuff, dst: &Dst<'_>) -> bool {
    dst.fits(skb) && (dst.hh.is_some() || dst.neigh.is_some_and(|neigh| neigh.lladdr.is_some()))
}

/// Whether the functions have decided that the packet passes, and no policy concerns it. One that may take several
/// routes passes them again: which one it takes depends on its translated header.
#[inline(always)]
fn may_pass(passage: &Passage<'_>, key: &FlowKey, dst: &Dst<'_>, ctx: &Ctx<'_>) -> bool {
    let of = (ctx.hooks, ctx.tables);
    let target = || passage.target_key();
    !dst.is_multipath()
        && passage.may_pass(dst.dev, of, &ctx.state.hooks).is_some()
        && passes_policies(key, target, dst.dev.ifindex, ctx.tables)
}

/// The packet passes, and later ones of the flow as it does.
#[inline(always)]
fn pass(
    passage: Passage<'_>,
    key: &FlowKey,
    skb: &mut SkBuff,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Option<Passed> {
    let of = (ctx.hooks, ctx.tables);
    let state = &mut *ctx.state;
    let Allowed { counters, may_be_offloaded } = passage.may_pass(dst.dev, of, &state.hooks)?;
    let (flow, rewrite) = (passage.flow(), passage.rewrite(key));
    if may_be_offloaded && state.offload.is_on() && !ctx.hooks.have_device_chains() {
        let offered = || OfferedFlow {
            flow,
            target: passage.target_key(),
            counters: SmallVec::from_slice(counters),
            nft_id: ctx.hooks.nft_id(),
        };
        state.offload.passes(key, offered);
    }
    let is_simple = is_simple(skb);
    let passed = passage.pass(skb, rewrite.as_ref(), counters, ctx.hooks, &state.hooks)?;
    if is_simple {
        let flow = (key, flow, rewrite);
        state.flow_cache.enter(flow, dev.ifindex, dst, counters, ctx.now_ns);
    }
    Some(passed)
}

/// Whether it came in a frame without tags, whose link-layer header is as long as that to be sent, to the router's
/// address.
#[inline(always)]
fn is_simple(skb: &SkBuff) -> bool {
    skb.network_offset() == ethernet::HEADER_LEN && !is_l2_multicast(skb)
}
