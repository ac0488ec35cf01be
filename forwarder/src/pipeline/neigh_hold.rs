//! Holding a packet until its neighbour is resolved (`__neigh_event_send` of the kernel).

use std::net::IpAddr;

use super::dst::Dst;
use super::post_routing::PostRouted;
use super::{Ctx, Exit};
use crate::skb::SkBuff;
use crate::stats::{DropReason, PuntReason};
use crate::trace::FinalDisposition;

/// Maximum number of frames held.
const HELD_MAX: usize = 512;
/// Interval of the check for packets that have waited too long.
pub(super) const POLL_NS: u64 = 50_000_000;

/// Before a packet is changed: finds its neighbour, and reserves room for the packet if that is not resolved, and is none
/// that packets wait for.
///
/// # Errors
/// There is no room for another neighbour, or the error would be the kernel's if it does not answer. The kernel holds the
/// packet, as received.
#[inline(always)]
pub(super) fn check_room<'a>(
    skb: &SkBuff,
    dst: &mut Dst<'a>,
    daddr: impl Into<IpAddr>,
    ctx: &mut Ctx<'a>,
) -> Result<(), Exit> {
    if dst.hh.is_some() {
        return Ok(());
    }
    let daddr = daddr.into();
    dst.resolve(daddr, ctx.tables);
    match dst.neigh.and_then(|neigh| neigh.lladdr) {
        Some(_) => Ok(()),
        None => reserve(skb, dst, daddr, ctx),
    }
}

#[cold]
#[inline(never)]
fn reserve(skb: &SkBuff, dst: &Dst<'_>, daddr: IpAddr, ctx: &mut Ctx<'_>) -> Result<(), Exit> {
    let sysctl = &ctx.tables.sysctl;
    let is_kernels_error = match daddr {
        IpAddr::V4(_) => sysctl.icmp_errors_extended || sysctl.multipath_use_neigh,
        IpAddr::V6(_) => sysctl.icmp6_errors_extended,
    };
    let addr = dst.gateway().copied().unwrap_or(daddr);
    let limit = frames_max(ctx);
    let queue = &mut ctx.state.hold;
    let is_new = !queue.has(dst.dev.ifindex, addr);
    let has_room = queue.held + queue.reserved < limit && queue.has_slot();
    if is_kernels_error || is_new && !has_room {
        return Err(Exit::Punt(PuntReason::NeighUnresolved));
    }
    if is_new {
        queue.reserved += skb.frames();
    }
    Ok(())
}

/// Forwarding has priority for frames: a scan of unused addresses must not take them all.
fn frames_max(ctx: &Ctx<'_>) -> usize {
    HELD_MAX.min(ctx.pool.total() as usize / 4)
}

/// Holds a packet, and requests resolution of its neighbour.
#[cold]
pub(super) fn hold(
    mut skb: SkBuff,
    oif: u32,
    addr: IpAddr,
    routed: &PostRouted,
    ctx: &mut Ctx<'_>,
) {
    // Different captures may be running when it is sent.
    skb.headers_may_change();
    let limit = frames_max(ctx);
    let queue = &mut ctx.state.hold;
    let scarce = queue.held >= limit;
    if queue.held == 0 {
        queue.generation = ctx.tables.generation;
        queue.poll_ns = ctx.now_ns + POLL_NS;
    }
    let (slot, new) = match queue.slot(oif, addr) {
        Some(found @ (_, new)) if !(new && scarce) => found,
        // Not held, but resolution is requested, so later packets can be sent.
        _ => {
            ctx.out.request_neigh(oif, addr);
            return ctx.drop_output(skb, DropReason::NeighQueueFull);
        }
    };
    if new {
        (slot.oif, slot.addr) = (oif, addr);
        (slot.since_ns, slot.asked_ns) = (ctx.now_ns, ctx.now_ns);
        ctx.out.request_neigh(oif, addr);
    }
    // As in the kernel, the oldest packet is dropped to make room.
    let full = scarce || slot.packets.room() == 0;
    let oldest = if full { slot.packets.drain(1).next() } else { None };
    let frames = skb.frames();
    let refused = slot.packets.push(skb, routed).err();
    queue.held += frames;
    ctx.out.trace.note(match refused {
        Some(_) => FinalDisposition::Dropped(DropReason::NeighQueueFull),
        None => FinalDisposition::Held { addr, oif },
    });
    for skb in [oldest, refused].into_iter().flatten() {
        ctx.state.hold.held -= skb.frames();
        ctx.drop_skb(skb, DropReason::NeighQueueFull);
    }
}
