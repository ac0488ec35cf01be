//! Packets of carried flows for which the hook functions have decided: they pass the hooks without the functions
//! (`nf_flow_offload_ip_hook`, `nf_flow_offload_ipv6_hook` of the kernel).
//!
//! All other stages are the same. A packet is routed by its translated destination, and translated when it is
//! certain that it passes; whatever ends it before that finds it as received. Its route is then the last one of
//! [`BurstRoutes`]. `None`: the functions must run, and nothing has changed.

use std::net::{IpAddr, Ipv4Addr};

use super::burst_routes::BurstRoutes;
use super::dst::Dst;
use super::headers::{Iphdr, Ipv6hdr};
use super::ip_forward::{decrease_ttl, ip_forward_checks};
use super::ip6_forward::{decrease_hop_limit, ip6_forward_checks};
use super::post_routing::{PostRouted, passed_post_routing};
use super::route::ip_route_input;
use super::route6::ip6_route_input;
use super::{Ctx, Exit};
use crate::netfilter::Passage;
use crate::skb::SkBuff;
use crate::tables::Link;
use crate::wire::{ethernet, ipv6};

/// The passage of a packet with a transport header `offset` octets after its network header.
#[inline]
fn passage<'a>(
    skb: &SkBuff,
    transport: (u8, usize),
    routes: &BurstRoutes<'a>,
    ctx: &Ctx<'a>,
) -> Option<Passage<'a>> {
    let found = routes.flows.as_ref()?.get(routes.n)?;
    // Flows are found for frames without tags.
    if skb.network_offset() != ethernet::HEADER_LEN {
        return None;
    }
    let now_ns = ctx.state.hooks.monotonic_ns(ctx.now_ns);
    Passage::of(found, skb, transport, ctx.hooks, now_ns)
}

/// Whether nothing but fragments, or a neighbour that is not known, keeps the packet from being sent.
#[inline]
fn is_ready(skb: &SkBuff, dst: &Dst<'_>) -> bool {
    dst.fits(skb) && (dst.hh.is_some() || dst.neigh.is_some_and(|neigh| neigh.lladdr.is_some()))
}

/// An IPv4 packet that passed `ip_rcv_core`, received on `dev`.
#[inline]
pub(super) fn nf_flow_offload_ip<'a>(
    skb: &mut SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<PostRouted, Exit>> {
    let passage = passage(skb, (iph.protocol.0, usize::from(iph.header_len)), routes, ctx)?;
    let daddr = match passage.daddr() {
        Some(IpAddr::V4(daddr)) => daddr.to_bits(),
        _ => iph.daddr,
    };
    let iph = Iphdr { daddr, ..*iph };
    let dst = match ip_route_input(skb, &iph, dev, routes, ctx) {
        Ok(dst) => dst,
        Err(exit) => return Some(Err(exit)),
    };
    dst.resolve(Ipv4Addr::from_bits(daddr), ctx.tables);
    let of = (ctx.hooks, ctx.tables);
    if !is_ready(skb, dst)
        || dst.is_multipath()
        || !passage.may_pass(dev, dst.dev, of, &ctx.state.hooks)
    {
        return None;
    }
    if let Err(exit) = ip_forward_checks(skb, &iph, dst, ctx) {
        return Some(Err(exit));
    }
    let passed = passage.pass(skb, (dev, dst.dev), of, &ctx.state.hooks)?;
    decrease_ttl(skb);
    Some(Ok(passed_post_routing(skb, passed)))
}

/// An IPv6 packet that passed `ip6_rcv_core`, received on `dev`.
#[inline]
pub(super) fn nf_flow_offload_ipv6<'a>(
    skb: &mut SkBuff,
    hdr: &Ipv6hdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<PostRouted, Exit>> {
    let passage = passage(skb, (hdr.next_header.0, ipv6::HEADER_LEN), routes, ctx)?;
    let daddr = match passage.daddr() {
        Some(IpAddr::V6(daddr)) => daddr,
        _ => hdr.daddr,
    };
    let hdr = Ipv6hdr { daddr, ..*hdr };
    let dst = match ip6_route_input(skb, &hdr, dev, routes, ctx) {
        Ok(dst) => dst,
        Err(exit) => return Some(Err(exit)),
    };
    dst.resolve(daddr, ctx.tables);
    let of = (ctx.hooks, ctx.tables);
    if !is_ready(skb, dst)
        || dst.is_multipath()
        || !passage.may_pass(dev, dst.dev, of, &ctx.state.hooks)
    {
        return None;
    }
    if let Err(exit) = ip6_forward_checks(skb, &hdr, dev, dst, ctx) {
        return Some(Err(exit));
    }
    let passed = passage.pass(skb, (dev, dst.dev), of, &ctx.state.hooks)?;
    decrease_hop_limit(skb);
    Some(Ok(passed_post_routing(skb, passed)))
}
