//! Packets of carried flows for which the hook functions have decided: they pass the hooks without the functions
//! (`nf_flow_offload_ip_hook`, `nf_flow_offload_ipv6_hook` of the kernel).
//!
//! All other stages are the same. A packet is routed by its translated destination, and translated when it is
//! certain that it passes; whatever ends it before that finds it as received. Its route is then the last one of
//! [`BurstRoutes`]. `None`: the functions must run, and nothing has changed.

use std::net::Ipv4Addr;

use super::burst_routes::BurstRoutes;
use super::dst::Dst;
use super::headers::{Iphdr, Ipv6hdr};
use super::ip_forward::{decrease_ttl, ip_forward_checks};
use super::ip6_forward::{decrease_hop_limit, ip6_forward_checks};
use super::post_routing::{PostRouted, passed_post_routing};
use super::route::ip_route_input;
use super::route6::ip6_route_input;
use super::{Ctx, Exit};
use crate::netfilter::{Family, Passage};
use crate::skb::SkBuff;
use crate::tables::Link;
use crate::wire::ipv6;

/// Whether nothing but fragments, or a neighbour that is not known, keeps the packet from being sent.
#[inline(always)]
fn is_ready(skb: &SkBuff, dst: &Dst<'_>) -> bool {
    dst.fits(skb) && (dst.hh.is_some() || dst.neigh.is_some_and(|neigh| neigh.lladdr.is_some()))
}

/// An IPv4 packet that passed `ip_rcv_core`, received on `dev`.
#[inline(always)]
pub(super) fn nf_flow_offload_ip<'a>(
    skb: &mut SkBuff,
    iph: &Iphdr,
    dev: &'a Link,
    routes: &mut BurstRoutes<'a>,
    ctx: &mut Ctx<'a>,
) -> Option<Result<PostRouted, Exit>> {
    let transport = (iph.protocol.0, usize::from(iph.header_len));
    let own = &ctx.state.hooks;
    let passage = Passage::of(routes.n, skb, Family::Ip, transport, ctx.hooks, own, ctx.now_ns)?;
    let daddr = passage.daddr4().map_or(iph.daddr, Ipv4Addr::to_bits);
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
    let transport = (hdr.next_header.0, ipv6::HEADER_LEN);
    let own = &ctx.state.hooks;
    let passage = Passage::of(routes.n, skb, Family::Ip6, transport, ctx.hooks, own, ctx.now_ns)?;
    let daddr = passage.daddr6().unwrap_or(hdr.daddr);
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
