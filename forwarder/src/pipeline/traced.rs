//! Steps of packets that are traced. Where the data path is compiled without tracing, nothing remains of these
//! functions.

use std::net::IpAddr;

use super::burst::Disposition;
use super::dst::Dst;
use super::icmp_send::icmp_send;
use super::icmp6_send::icmp6_send;
use super::mode::Mode;
use super::{Ctx, IcmpError};
use crate::skb::SkBuff;
use crate::stats::{DropReason, PuntReason};
use crate::trace::step::Stage;
use crate::trace::{FinalDisposition, Step, Tracer};

/// A packet begins. There is one in the slice.
pub(super) fn begin(packets: &[SkBuff], ctx: &mut Ctx<'_>) {
    let Some(skb) = packets.first() else { return };
    ctx.out.trace.begin(skb);
    let port = ctx.tables.links.port(skb.port);
    ctx.out.trace.set_origin(port.map_or(0, |port| port.ifindex), ctx.hooks.nft_id());
}

/// A stage begins.
#[inline(always)]
pub(super) fn stage<M: Mode>(stage: Stage, ctx: &mut Ctx<'_>) {
    step::<M>(|| Step::Stage(stage), ctx);
}

/// Records a step.
#[inline(always)]
pub(super) fn step<M: Mode>(step: impl FnOnce() -> Step, ctx: &mut Ctx<'_>) {
    if M::TRACED && ctx.out.trace.is_traced() {
        ctx.out.trace.step(step());
    }
}

/// Records the route.
#[inline(always)]
pub(super) fn route<M: Mode>(dst: &Dst<'_>, daddr: impl Into<IpAddr>, ctx: &mut Ctx<'_>) {
    let (gateway, oif) = (dst.gateway().copied(), dst.dev.ifindex);
    step::<M>(|| Step::Route { daddr: daddr.into(), gateway, oif, mtu: dst.mtu }, ctx);
}

/// Records the neighbour that is the next hop to `daddr`.
#[inline(always)]
pub(super) fn neigh<M: Mode>(dst: &Dst<'_>, daddr: impl Into<IpAddr>, ctx: &mut Ctx<'_>) {
    if M::TRACED && ctx.out.trace.is_traced() {
        let (addr, oif) = (dst.gateway().copied().unwrap_or(daddr.into()), dst.dev.ifindex);
        let neigh = dst.neigh.or_else(|| ctx.tables.neigh.lookup(oif, &addr));
        let lladdr = neigh.and_then(|neigh| neigh.lladdr);
        ctx.out.trace.step(Step::Stage(Stage::NeighOutput));
        ctx.out.trace.step(Step::Neigh { addr, lladdr, oif });
    }
}

/// Sends the ICMP error of a packet that is traced, or not.
#[cold]
pub(super) fn icmp(
    skb: &SkBuff,
    error: &IcmpError,
    is_ipv4: bool,
    ctx: &mut Ctx<'_>,
) -> Result<(), PuntReason> {
    let IcmpError { icmp_type, code, info, reason } = *error;
    let stage = if is_ipv4 { Stage::IcmpSend } else { Stage::Icmp6Send };
    ctx.out.trace.step(Step::Stage(stage));
    ctx.out.trace.step(Step::Icmp { icmp_type, code, info });
    let before = ctx.errors_sent();
    let sent = if is_ipv4 { icmp_send(skb, error, ctx) } else { icmp6_send(skb, error, ctx) };
    let disposition = match ctx.errors_sent() != before {
        true => FinalDisposition::IcmpError { is_ipv6: !is_ipv4, icmp_type, code, reason },
        false => FinalDisposition::Dropped(reason),
    };
    if let (FinalDisposition::Dropped(_), Ok(())) = (disposition, sent) {
        ctx.out.trace.step(Step::NoIcmp);
    }
    ctx.out.trace.intend(disposition);
    sent
}

/// It is known what is to become of the packet. `pending`: the port of one whose output is pending.
pub(super) fn intend(disposition: &Disposition, pending: Option<u16>, ctx: &mut Ctx<'_>) {
    let sent = |port: u16| {
        let link = ctx.tables.links.port(port);
        FinalDisposition::Sent { port, ifindex: link.map_or(0, |link| link.ifindex) }
    };
    let disposition = match disposition {
        Disposition::Xmit(port, _) => sent(*port),
        Disposition::Output => {
            pending.map_or(FinalDisposition::Dropped(DropReason::DevNotReady), sent)
        }
        Disposition::Punt(reason) => FinalDisposition::Kernel(*reason),
        Disposition::Held => FinalDisposition::HeldFragment,
        // `icmp` knows whether an error was sent.
        Disposition::Drop(reason) => match ctx.out.trace.disposition() {
            Some(disposition @ FinalDisposition::IcmpError { .. }) => disposition,
            _ => FinalDisposition::Dropped(*reason),
        },
    };
    ctx.out.trace.intend(disposition);
}

/// The packet has gone where its disposition says, or elsewhere.
pub(super) fn end(ctx: &mut Ctx<'_>) {
    let last = match ctx.out.trace.disposition() {
        Some(FinalDisposition::Sent { port, .. }) => {
            ctx.out.egress.get(usize::from(port)).map_or(0, |egress| egress.len())
        }
        Some(FinalDisposition::Kernel(_)) => match ctx.out.punts.is_empty() {
            true => 0,
            false => ctx.out.punt_reasons.len(),
        },
        _ => 0,
    };
    ctx.out.trace.end(last.saturating_sub(1));
}
