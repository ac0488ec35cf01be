//! Packets that IPsec policies of a file concern are dropped instead of handed to the kernel, which has none of their SAs
//! ([`XfrmPolicies::of_file`](crate::tables::XfrmPolicies::of_file)).
//!
//! The kernel has the same policies, and drops what it gets of these packets. Here they have a reason, and are dropped
//! even if somebody has removed the kernel's policies.

use super::dst::Dst;
use super::way::Way;
use super::xfrm::{has_long_headers, readable};
use super::{Ctx, Exit};
use crate::fib::{FibResult, Flow as RouteFlow, RouteType};
use crate::ipsec::{self, Error};
use crate::skb::SkBuff;
use crate::stats::{DropReason, PuntReason};
use crate::tables::XfrmLookup;
use crate::wire::{Ipv4Packet, Ipv6Packet};

/// How a routed packet ends that `exit` would have handed to the kernel because of a policy.
#[cold]
#[inline(never)]
pub(super) fn withheld(
    exit: Exit,
    skb: &SkBuff,
    way: &Way<'_>,
    dst: &Dst<'_>,
    ctx: &Ctx<'_>,
) -> Exit {
    let xfrm = &ctx.tables.xfrm;
    if !matches!(exit, Exit::Punt(_)) || !xfrm.are_of_file() {
        return exit;
    }
    let flow = |packet: &[u8]| readable(packet, dst.dev.ifindex, skb.mark, ctx.tables);
    let routed = flow(skb.network_header());
    let received = match way.original.as_ref() {
        Some(original) if original.is_cut() && has_long_headers(original.head()) => None,
        Some(original) => flow(original.head()),
        None => routed,
    };
    let (Some(received), Some(routed)) = (received, routed) else {
        return Exit::Drop(DropReason::XfrmInHdrError);
    };
    let state = way.secpath.map(|secpath| secpath.state);
    if let Some(error) = xfrm.refusal(&received, state).or_else(|| xfrm.refusal(&routed, state)) {
        return Exit::Drop(refused(&error));
    }
    match xfrm.lookup_sent(&routed, ctx.now_s()) {
        _ if xfrm.blocks_sent(&routed) => Exit::Drop(DropReason::XfrmOutPolBlock),
        XfrmLookup::Kernel => Exit::Drop(DropReason::XfrmOutNoStates),
        XfrmLookup::Protect(_) => Exit::Drop(DropReason::XfrmOutBundleGenError),
        // It may be an ICMP error, which the kernel judges by what it quotes, too.
        XfrmLookup::Pass => exit,
    }
}

/// Why a policy for received packets refuses one.
fn refused(error: &Error) -> DropReason {
    match error {
        Error::XfrmInNoPols => DropReason::XfrmInNoPols,
        Error::XfrmInPolBlock => DropReason::XfrmInPolBlock,
        _ => DropReason::XfrmInTmplMismatch,
    }
}

/// Why a packet must not be handed to the kernel, for whatever `reason` that was to be done. `None`: it may be. `skb`: as
/// received, or opened.
#[cold]
#[inline(never)]
pub(super) fn withhold(
    skb: &SkBuff,
    reason: PuntReason,
    way: &Way<'_>,
    ctx: &Ctx<'_>,
) -> Option<DropReason> {
    if way.secpath.is_some() {
        return Some(DropReason::XfrmInError);
    }
    // What has not been seen as a packet of IP.
    if matches!(reason, PuntReason::NotIp | PuntReason::VlanUnknown | PuntReason::NotReady) {
        return None;
    }
    let xfrm = &ctx.tables.xfrm;
    let packet = skb.network_header();
    let family = match packet.first().map(|octet| octet >> 4) {
        Some(4) => ipsec::Family::Ipv4,
        Some(6) => ipsec::Family::Ipv6,
        _ => return None,
    };
    if !xfrm.concern(family) || is_for_host(packet, skb, ctx) {
        return None;
    }
    if reason == PuntReason::Xfrm && xfrm.are_unguarded() {
        // One concerns it as it would be sent, or may do so.
        return Some(DropReason::XfrmOutError);
    }
    // By which interface it leaves makes no difference to policies of a file.
    let Some(flow) = readable(packet, 0, skb.mark, ctx.tables) else {
        return xfrm.are_unguarded().then_some(DropReason::XfrmInHdrError);
    };
    if let Some(error) = xfrm.refusal(&flow, None) {
        return Some(refused(&error));
    }
    match xfrm.concerns_sent(&flow) {
        true if xfrm.blocks_sent(&flow) => Some(DropReason::XfrmOutPolBlock),
        true => Some(DropReason::XfrmOutError),
        false => None,
    }
}

/// Whether the route of a packet is to this router itself: such packets are not forwarded.
fn is_for_host(packet: &[u8], skb: &SkBuff, ctx: &Ctx<'_>) -> bool {
    let (iif, mark) = (skb.iif, skb.mark);
    let kind = match packet.first().map(|octet| octet >> 4) {
        Some(4) => {
            let Ok(ipv4) = Ipv4Packet::new_checked(packet) else { return false };
            let [saddr, daddr] = [ipv4.src_addr(), ipv4.dst_addr()].map(|it| it.to_bits());
            match ctx.tables.fib4.fib_lookup(&RouteFlow { saddr, daddr, iif, mark }) {
                FibResult::Route(info) => Some(info.kind),
                _ => None,
            }
        }
        _ => {
            let Ok(ipv6) = Ipv6Packet::new_checked(packet) else { return false };
            let [saddr, daddr] = [ipv6.src_addr(), ipv6.dst_addr()].map(|it| it.to_bits());
            match ctx.tables.fib6.fib_lookup(&RouteFlow { saddr, daddr, iif, mark }) {
                FibResult::Route(info) => Some(info.kind),
                _ => None,
            }
        }
    };
    kind == Some(RouteType::Local)
}
