//! The road of a packet from port to port, IPv4 and IPv6, as the kernel forwards them.
//!
//! ```text
//!  eth_input ─ ip_input ── PRE_ROUTING ─ route ─ ip_options ─ ip_forward ── FORWARD ─┐
//!     │                                                                             │
//!     └─ ip6_input ─────── PRE_ROUTING ─ route6 ───────────── ip6_forward ─ FORWARD ─┤
//!                                                                                   │
//!  port ── neigh_output ── ip_fragment (IPv4) ── ip_output: POST_ROUTING ───────────┘
//! ```
//! Tags are taken off and put on at the two ends of the road ([`vlan`]); between them a VLAN is an
//! interface like others.
//!
//! Before its packets go one by one, a burst's routes are looked up together ([`route_ahead`]); a
//! packet of the same flow as the one before goes its way ([`route_hint`]).
//! Each stage is a file named as the kernel names it. A stage decides, and only then acts: every
//! check stands before the first write, so that an ICMP error quotes the packet as it was received
//! (but for what record route and timestamp options noted on the way here, as in the kernel)
//! and the kernel, where it gets a packet back, gets it as it was. `?` is the only way off the
//! road ([`Exit`]); what an exit does to a packet is done in [`leave`].
//!
//! Own packets are ICMP errors only; they enter at LOCAL_OUT. Packets for this host go to the
//! kernel, before LOCAL_IN, which is the kernel's to run. Left out: reassembly, multicast routing,
//! redirects (the kernel sends them), tunnels.
//!
//! Nothing here allocates, blocks, logs or reads a clock; time comes with [`Ctx`].

mod csum_partial;
mod ctx;
mod eth_input;
mod exit;
mod hold;
mod icmp6_send;
mod icmp_send;
mod ip6_forward;
mod ip6_input;
mod ip6_output;
mod ip_forward;
mod ip_fragment;
mod ip_input;
mod ip_options;
mod ip_output;
mod neigh_output;
mod ratelimit;
mod route;
mod route6;
mod route_ahead;
mod route_hint;
mod vlan;

pub use ctx::{Ctx, EGRESS, Effects, NEIGH_REQUESTS, PipelineState};
pub use exit::{Exit, IcmpError};
pub use hold::{drop_held, poll_held};

use crate::netfilter::{Hook, HookState, Verdict};
use crate::skb::{Burst, SkBuff};
use crate::stats::{DropReason, PuntReason};
use crate::tables::Link;
use crate::wire::EtherType;
use eth_input::eth_input;
use icmp_send::icmp_send;
use icmp6_send::icmp6_send;
use ip_forward::{ip_error, ip_forward, ip_forward_checks, ip_rcv_options};
use ip_input::{Iphdr, ip_rcv_core};
use ip_output::{PostRouted, ip_finish_output, post_routing};
use ip6_forward::{ip6_forward, ip6_forward_checks};
use ip6_input::{Ipv6hdr, ip6_rcv_core};
use ip6_output::ip6_finish_output;
use route::{Dst, RouteInput, ip_route_input, own_sources_listed};
use route_ahead::RoutesAhead;
use route_hint::RouteHint;
use route6::ip6_route_input;

/// Forwards received packets, oldest first, and leaves `burst` empty. What is to be sent, handed
/// back or asked for is in [`Ctx::out`] afterwards; the worker empties it before the next call.
pub fn forward_burst(burst: &mut Burst, ctx: &mut Ctx<'_>) {
    let ahead = RoutesAhead::look(burst.as_slice(), ctx.tables);
    let mut known = RoutesKnown {
        ahead: &ahead,
        n: 0,
        own_sources_listed: own_sources_listed(ctx.tables),
        hint4: RouteHint::default(),
        hint6: RouteHint::default(),
    };
    for (n, skb) in burst.drain(usize::MAX).enumerate() {
        known.n = n;
        forward(skb, &mut known, ctx);
    }
}

/// What is known of packets' routes before they are looked up one by one.
struct RoutesKnown<'a, 'b> {
    ahead: &'b RoutesAhead,
    /// The packet's position in the burst.
    n: usize,
    own_sources_listed: bool,
    hint4: RouteHint<'a, u32>,
    hint6: RouteHint<'a, u128>,
}

#[inline(always)]
fn forward<'a>(mut skb: SkBuff, known: &mut RoutesKnown<'a, '_>, ctx: &mut Ctx<'a>) {
    let exit = match receive(&mut skb, ctx) {
        Ok((EtherType::IPV4, dev)) => match ip_rcv(&mut skb, dev, known, ctx) {
            Ok((mut dst, routed)) => {
                known.hint4.resolve(&mut dst, ctx.tables);
                return ip_finish_output(skb, &dst, &routed, ctx);
            }
            Err(exit) => exit,
        },
        Ok((_, dev)) => match ip6_rcv(&mut skb, dev, known, ctx) {
            Ok((mut dst, routed)) => {
                known.hint6.resolve(&mut dst, ctx.tables);
                return ip6_finish_output(skb, &dst, &routed, ctx);
            }
            Err(exit) => exit,
        },
        Err(exit) => exit,
    };
    leave(skb, exit, ctx);
}

/// Up to the protocol, and the interface that the packet counts as received by.
#[inline]
fn receive<'a>(skb: &mut SkBuff, ctx: &Ctx<'a>) -> Result<(EtherType, &'a Link), Exit> {
    let port = ctx.tables.links.port(skb.port).ok_or(Exit::Punt(PuntReason::NotReady))?;
    skb.iif = port.ifindex;
    eth_input(skb, port, ctx.tables)
}

/// The road of an IPv4 packet (RFC 1812 §5.2.1).
#[inline]
fn ip_rcv<'a>(
    skb: &mut SkBuff,
    dev: &'a Link,
    known: &mut RoutesKnown<'a, '_>,
    ctx: &mut Ctx<'a>,
) -> Result<(Dst<'a>, PostRouted), Exit> {
    let mut iph = ip_rcv_core(skb, ctx.stats)?;
    if dev.partial_csum {
        csum_partial::recognise4(skb, &iph);
    }
    if nf_hook(Hook::PreRouting, skb, 0, EtherType::IPV4, ctx)? == Asked::Some {
        iph = Iphdr::of(skb);
    }
    let route = ip_route_input(skb, &iph, dev, known, ctx)?;
    let options = match iph.has_options() {
        true => Some(ip_rcv_options(skb, &iph, dev, ctx)?),
        false => None,
    };
    let dst = match route {
        RouteInput::Forward(dst) => dst,
        RouteInput::Error(error) => return Err(ip_error(&iph, error, dev, ctx)),
    };
    ip_forward_checks(skb, &iph, &dst, ctx)?;
    ip_forward(skb, options, &dst, ctx)?;
    let routed = post_routing(skb, &dst, EtherType::IPV4, ctx)?;
    Ok((dst, routed))
}

/// The road of an IPv6 packet.
#[inline]
fn ip6_rcv<'a>(
    skb: &mut SkBuff,
    dev: &'a Link,
    known: &mut RoutesKnown<'a, '_>,
    ctx: &mut Ctx<'a>,
) -> Result<(Dst<'a>, PostRouted), Exit> {
    let mut hdr = ip6_rcv_core(skb, dev, ctx)?;
    if dev.partial_csum {
        csum_partial::recognise6(skb, &hdr);
    }
    if nf_hook(Hook::PreRouting, skb, 0, EtherType::IPV6, ctx)? == Asked::Some {
        hdr = Ipv6hdr::of(skb);
    }
    let dst = ip6_route_input(skb, &hdr, dev, known, ctx)?;
    ip6_forward_checks(skb, &hdr, dev, &dst, ctx)?;
    ip6_forward(skb, &dst, ctx)?;
    let routed = post_routing(skb, &dst, EtherType::IPV6, ctx)?;
    Ok((dst, routed))
}

/// Whether a hook point had functions: what was read of the packet before may be different now.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Nobody,
    Some,
}

/// `NF_HOOK`: asks the functions registered at a hook point.
#[inline]
fn nf_hook(
    hook: Hook,
    skb: &mut SkBuff,
    oif: u32,
    protocol: EtherType,
    ctx: &Ctx<'_>,
) -> Result<Asked, Exit> {
    if ctx.tables.hooks.is_empty(hook) {
        return Ok(Asked::Nobody);
    }
    // It may be changed there.
    skb.passed_over = 0;
    let state = HookState { hook, iif: skb.iif, oif, protocol: protocol.0 };
    match ctx.tables.hooks.run(skb, &state) {
        Verdict::Accept => Ok(Asked::Some),
        Verdict::Drop => Err(Exit::Drop(DropReason::NetfilterDrop)),
    }
}

/// What becomes of a packet that left the road.
#[cold]
fn leave(skb: SkBuff, exit: Exit, ctx: &mut Ctx<'_>) {
    let error = match exit {
        Exit::Drop(reason) => return ctx.drop_skb(skb, reason),
        Exit::Punt(reason) => return ctx.punt_skb(skb, reason),
        Exit::Icmp(error) => error,
    };
    let told = match skb.network_header().first() {
        // An error is only about a packet whose version has been looked at.
        Some(octet) if octet >> 4 == 4 => icmp_send(&skb, &error, ctx),
        _ => icmp6_send(&skb, &error, ctx),
    };
    match told {
        Ok(()) => ctx.drop_skb(skb, error.reason),
        Err(reason) => ctx.punt_skb(skb, reason),
    }
}

#[cfg(test)]
pub(crate) mod tests;
