//! The road of a packet from port to port, IPv4 and IPv6, as the kernel forwards them.
//!
//! ```text
//!  eth_input ─ ip_input ── PRE_ROUTING ─ route ─ ip_options ─ ip_forward ── FORWARD ─┐
//!     │                                                                             │
//!     └─ ip6_input ─────── PRE_ROUTING ─ route6 ───────────── ip6_forward ─ FORWARD ─┤
//!                                                                                   │
//!  port ── neigh_output ── ip_fragment (IPv4) ── ip_output: POST_ROUTING ───────────┘
//!    └──── neigh_hh_output, where neither fragments nor tags are due ───┘
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
//! road ([`Exit`]); senders are told in [`leave`], and [`carry_out`] drops, hands back or sends.
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

use std::net::Ipv4Addr;

use crate::netfilter::{Hook, HookState, Verdict};
use crate::skb::burst::BURST;
use crate::skb::{Burst, SkBuff};
use crate::stats::{DropReason, PuntReason};
use crate::tables::Link;
use crate::wire::EtherType;
use eth_input::eth_input;
use icmp_send::icmp_send;
use icmp6_send::icmp6_send;
use ip_forward::{ip_forward, ip_forward_checks, ip_rcv_options};
use ip_input::{Iphdr, ip_rcv_core};
use ip_output::{PostRouted, ip_finish_output, post_routing};
use ip6_forward::{ip6_forward, ip6_forward_checks};
use ip6_input::{Ipv6hdr, ip6_rcv_core};
use ip6_output::ip6_finish_output;
use neigh_output::{enqueue, enqueue_all, neigh_hh_output};
use route::{Dst, ip_route_input, own_sources_listed};
use route_ahead::RoutesAhead;
use route_hint::RouteHint;
use route6::ip6_route_input;

/// Forwards received packets, oldest first, and leaves `burst` empty. What is to be sent, handed
/// back or asked for is in [`Ctx::out`] afterwards; the worker empties it before the next call.
///
/// The packets of a burst are changed where they lie, and moved together afterwards: moved one by one,
/// each would wait for what was just written to it. They stay in order; ICMP errors about some of them
/// go ahead, and have their frames from the pool before those that are dropped return theirs.
pub fn forward_burst(burst: &mut Burst, ctx: &mut Ctx<'_>) {
    while !burst.is_empty() {
        let count = burst.len().min(BURST);
        let packets = &mut burst.as_mut_slice()[..count];
        let ahead = RoutesAhead::look(packets, ctx.tables);
        let mut known = RoutesKnown {
            ahead: &ahead,
            n: 0,
            own_sources_listed: own_sources_listed(ctx.tables),
            hint4: RouteHint::default(),
            hint6: RouteHint::default(),
        };
        let mut todo =
            Todo { outcomes: [const { Outcome::Output }; BURST], ways: [const { None }; BURST] };
        for (n, (skb, outcome)) in packets.iter_mut().zip(&mut todo.outcomes).enumerate() {
            known.n = n;
            *outcome = forward(skb, &mut known, &mut todo.ways, ctx);
        }
        carry_out(burst, count, &todo, ctx);
    }
}

/// Hands received packets back to the kernel, oldest first and unlooked at, and leaves `burst` empty.
pub fn hand_back_burst(burst: &mut Burst, reason: PuntReason, ctx: &mut Ctx<'_>) {
    for skb in burst.drain(usize::MAX) {
        ctx.punt_skb(skb, reason);
    }
}

/// What is left to do with the packets of a burst, by position.
struct Todo<'a> {
    outcomes: [Outcome; BURST],
    ways: [Option<Way<'a>>; BURST],
}

/// What is left to do with a packet whose way is decided.
enum Outcome {
    /// Its frame is complete and leaves by this port.
    Xmit(u16, PostRouted),
    /// It leaves by a [`Way`]: in fragments, with tags, to a neighbour that is not known yet, or to one
    /// that hooks may have changed; or not at all, for there it is found too long, or the interface down.
    Output,
    /// It is dropped; its sender has been told, where that is due.
    Drop(DropReason),
    /// It goes back to the kernel.
    Punt(PuntReason),
}

/// How a packet of a protocol leaves that is not complete.
type Way<'a> = (EtherType, Dst<'a>, PostRouted);

/// Does so with the first `count` packets, oldest first.
#[inline]
fn carry_out(burst: &mut Burst, count: usize, todo: &Todo<'_>, ctx: &mut Ctx<'_>) {
    let outcomes = &todo.outcomes[..count];
    if count == burst.len()
        && let Some((port, routed)) = same_port(outcomes)
        && enqueue_all(burst, port, routed, ctx)
    {
        return;
    }
    for ((skb, outcome), way) in burst.drain(count).zip(outcomes).zip(&todo.ways) {
        match (outcome, way) {
            (Outcome::Xmit(port, routed), _) => enqueue(skb, *port, routed, ctx),
            (Outcome::Output, Some((EtherType::IPV4, dst, routed))) => {
                ip_finish_output(skb, dst, routed, ctx);
            }
            (Outcome::Output, Some((_, dst, routed))) => ip6_finish_output(skb, dst, routed, ctx),
            // Every such packet has one.
            (Outcome::Output, None) => ctx.drop_skb(skb, DropReason::DevNotReady),
            (Outcome::Drop(reason), _) => ctx.drop_skb(skb, *reason),
            (Outcome::Punt(reason), _) => ctx.punt_skb(skb, *reason),
        }
    }
}

/// The port by which all leave complete, if it is one.
#[inline]
fn same_port(outcomes: &[Outcome]) -> Option<(u16, &PostRouted)> {
    let Some(Outcome::Xmit(first, routed)) = outcomes.first() else { return None };
    let all = outcomes.iter().all(|next| matches!(next, Outcome::Xmit(port, _) if port == first));
    all.then_some((*first, routed))
}

/// What is known of packets' routes before they are looked up one by one.
struct RoutesKnown<'a, 'b> {
    ahead: &'b RoutesAhead<'a>,
    /// The packet's position in the burst.
    n: usize,
    own_sources_listed: bool,
    hint4: RouteHint<'a, u32>,
    hint6: RouteHint<'a, u128>,
}

/// The road of one packet. `ways` is for what is not complete at its end.
#[inline(always)]
fn forward<'a>(
    skb: &mut SkBuff,
    known: &mut RoutesKnown<'a, '_>,
    ways: &mut [Option<Way<'a>>; BURST],
    ctx: &mut Ctx<'a>,
) -> Outcome {
    let n = known.n;
    let put_off = |way| {
        if let Some(place) = ways.get_mut(n) {
            *place = Some(way);
        }
    };
    match receive(skb, ctx) {
        Ok((EtherType::IPV4, dev)) => match ip_rcv(skb, dev, known, ctx) {
            Ok((dst, routed)) => output(skb, EtherType::IPV4, dst, routed, put_off),
            Err(exit) => leave(skb, exit, ctx),
        },
        Ok((_, dev)) => match ip6_rcv(skb, dev, known, ctx) {
            Ok((dst, routed)) => output(skb, EtherType::IPV6, dst, routed, put_off),
            Err(exit) => leave(skb, exit, ctx),
        },
        Err(exit) => leave(skb, exit, ctx),
    }
}

/// Completes the frame, if it goes out as it is; what does not is put off.
#[inline(always)]
fn output<'a>(
    skb: &mut SkBuff,
    ethertype: EtherType,
    dst: &Dst<'a>,
    routed: PostRouted,
    put_off: impl FnOnce(Way<'a>),
) -> Outcome {
    if neigh_hh_output(skb, dst, &routed) {
        return Outcome::Xmit(dst.port, routed);
    }
    put_off((ethertype, *dst, routed));
    Outcome::Output
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
fn ip_rcv<'a, 'k>(
    skb: &mut SkBuff,
    dev: &'a Link,
    known: &'k mut RoutesKnown<'a, '_>,
    ctx: &mut Ctx<'a>,
) -> Result<(&'k Dst<'a>, PostRouted), Exit> {
    let mut iph = ip_rcv_core(skb, ctx.stats)?;
    if dev.partial_csum {
        csum_partial::recognise4(skb, &iph);
    }
    if nf_hook(Hook::PreRouting, skb, 0, EtherType::IPV4, ctx)? == Asked::Some {
        iph = Iphdr::of(skb);
    }
    let dst = ip_route_input(skb, &iph, dev, known, ctx)?;
    let options = match iph.has_options() {
        true => Some(ip_rcv_options(skb, dev, ctx)?),
        false => None,
    };
    ip_forward_checks(skb, &iph, dst, ctx)?;
    ip_forward(skb, options, dst, ctx)?;
    let routed = post_routing(skb, dst, EtherType::IPV4, ctx)?;
    dst.resolve(Ipv4Addr::from_bits(iph.daddr), ctx.tables);
    Ok((dst, routed))
}

/// The road of an IPv6 packet.
#[inline]
fn ip6_rcv<'a, 'k>(
    skb: &mut SkBuff,
    dev: &'a Link,
    known: &'k mut RoutesKnown<'a, '_>,
    ctx: &mut Ctx<'a>,
) -> Result<(&'k Dst<'a>, PostRouted), Exit> {
    let mut hdr = ip6_rcv_core(skb, dev, ctx)?;
    if dev.partial_csum {
        csum_partial::recognise6(skb, &hdr);
    }
    if nf_hook(Hook::PreRouting, skb, 0, EtherType::IPV6, ctx)? == Asked::Some {
        hdr = Ipv6hdr::of(skb);
    }
    let dst = ip6_route_input(skb, &hdr, dev, known, ctx)?;
    ip6_forward_checks(skb, &hdr, dev, dst, ctx)?;
    ip6_forward(skb, dst, ctx)?;
    let routed = post_routing(skb, dst, EtherType::IPV6, ctx)?;
    dst.resolve(hdr.daddr, ctx.tables);
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

/// What is to become of a packet that left the road. Its sender is told at once: how often that is done
/// depends on what was before. (What [`ip6_finish_output`] finds too long is told of later.)
#[cold]
fn leave(skb: &SkBuff, exit: Exit, ctx: &mut Ctx<'_>) -> Outcome {
    let error = match exit {
        Exit::Drop(reason) => return Outcome::Drop(reason),
        Exit::Punt(reason) => return Outcome::Punt(reason),
        Exit::Icmp(error) => error,
    };
    let told = match skb.network_header().first() {
        // An error is only about a packet whose version has been looked at.
        Some(octet) if octet >> 4 == 4 => icmp_send(skb, &error, ctx),
        _ => icmp6_send(skb, &error, ctx),
    };
    told.map_or_else(Outcome::Punt, |()| Outcome::Drop(error.reason))
}

#[cfg(test)]
pub(crate) mod tests;
