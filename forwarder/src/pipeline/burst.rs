//! The disposition of each packet of a burst, and the last step, which applies the dispositions.
//!
//! Packets are changed in place in the burst and moved together afterwards: moving a packet right after
//! it was changed would stall on the stores. The order of packets is kept.

use smallvec::SmallVec;

use super::Ctx;
use super::dst::Dst;
use super::ip_fragment::ip_finish_output;
use super::ip6_output::ip6_finish_output;
use super::neigh_output::enqueue;
use super::post_routing::PostRouted;
use crate::skb::Burst;
use crate::skb::burst::BURST;
use crate::stats::{DropReason, PuntReason};
use crate::wire::EtherType;

/// What is done with a packet.
#[derive(Debug)]
pub(super) enum Disposition {
    /// The frame is complete; it is sent on this port.
    Xmit(u16, PostRouted),
    /// Output is pending; see [`PendingOutput`].
    Output,
    /// It is dropped. An ICMP error, if one is due, has been sent.
    Drop(DropReason),
    /// It is handed back to the kernel.
    Punt(PuntReason),
    /// It is empty: a fragment was in its place, which waits for the others.
    Held,
}

/// Output of a packet whose frame is not complete: it needs fragments or tags, its neighbour is not known
/// or may have been changed by hooks, it is too long, or the interface is down.
#[derive(Debug)]
pub(super) struct PendingOutput<'a> {
    pub protocol: EtherType,
    pub dst: Dst<'a>,
    pub routed: PostRouted,
}

/// The dispositions of a burst's packets, by position.
#[derive(Debug)]
pub(super) struct Dispositions<'a> {
    of: [Disposition; BURST],
    /// Of the packets with [`Disposition::Output`], in their order.
    pending: SmallVec<[PendingOutput<'a>; BURST]>,
}

impl<'a> Dispositions<'a> {
    #[inline(always)]
    pub fn new() -> Dispositions<'a> {
        Dispositions { of: [const { Disposition::Output }; BURST], pending: SmallVec::new() }
    }

    /// Sets the disposition of packet `n`.
    #[inline(always)]
    pub fn set(&mut self, n: usize, disposition: Disposition) {
        if let Some(place) = self.of.get_mut(n) {
            *place = disposition;
        }
    }

    /// Records that the packet whose disposition is set next still needs output processing.
    #[cold]
    pub fn defer_output(&mut self, output: PendingOutput<'a>) {
        // There is room: at most one for each packet.
        self.pending.push(output);
    }

    /// The port of the last packet that needs output processing, if there is one.
    pub fn pending_port(&self) -> Option<u16> {
        Some(self.pending.last()?.dst.port)
    }

    /// Moves the first `count` packets of the burst to their queues, oldest first.
    #[inline]
    pub fn carry_out(&self, burst: &mut Burst, count: usize, ctx: &mut Ctx<'_>) {
        let dispositions = &self.of[..count];
        if count == burst.len() && xmit_together(burst, dispositions, ctx) {
            return;
        }
        let mut pending = self.pending.iter();
        for (skb, disposition) in burst.drain(count).zip(dispositions) {
            match disposition {
                Disposition::Xmit(port, routed) => enqueue(skb, *port, routed, ctx),
                Disposition::Output => match pending.next() {
                    Some(PendingOutput { protocol: EtherType::IPV4, dst, routed }) => {
                        ip_finish_output(skb, dst, routed, ctx);
                    }
                    Some(PendingOutput { dst, routed, .. }) => {
                        ip6_finish_output(skb, dst, routed, ctx);
                    }
                    // Unreachable: each such packet has a pending output.
                    None => ctx.drop_output(skb, DropReason::DevNotReady),
                },
                Disposition::Drop(reason) => ctx.drop_skb(skb, *reason),
                Disposition::Punt(reason) => ctx.punt_skb(skb, *reason),
                Disposition::Held => ctx.consume_skb(skb),
            }
        }
    }
}

/// Moves all packets at once if all are sent on the same port and its queue has room for them. Returns
/// whether they were moved.
#[inline]
fn xmit_together(burst: &mut Burst, dispositions: &[Disposition], ctx: &mut Ctx<'_>) -> bool {
    let Some(Disposition::Xmit(first, _)) = dispositions.first() else { return false };
    let by_first = |next: &Disposition| matches!(next, Disposition::Xmit(port, _) if port == first);
    if !dispositions.iter().all(by_first) {
        return false;
    }
    let routed = dispositions.iter().filter_map(|next| match next {
        Disposition::Xmit(_, routed) => Some(routed),
        _ => None,
    });
    let egress = ctx.out.egress.get_mut(usize::from(*first));
    egress.is_some_and(|egress| egress.append(burst, routed))
}
