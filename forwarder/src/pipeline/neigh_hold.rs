//! Holding a packet until its neighbour is resolved (`__neigh_event_send` of the kernel).

use std::net::IpAddr;

use super::Ctx;
use super::post_routing::PostRouted;
use crate::skb::SkBuff;
use crate::stats::DropReason;
use crate::trace::FinalDisposition;

/// Maximum number of frames held.
const HELD_MAX: usize = 512;
/// Interval of the check for packets that have waited too long.
pub(super) const POLL_NS: u64 = 50_000_000;

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
    let queue = &mut ctx.state.hold;
    // Forwarding has priority for frames: a scan of unused addresses must not take them all.
    let scarce = queue.held >= HELD_MAX.min(ctx.pool.total() as usize / 4);
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
