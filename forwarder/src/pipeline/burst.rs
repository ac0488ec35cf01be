//! The disposition of each packet of a burst, and the last step, which applies the dispositions.
//!
//! Packets are changed in place in the burst and moved together afterwards: moving a packet right after
//! it was changed would stall on the stores. The order of packets is kept.

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
    pending: [Option<PendingOutput<'a>>; BURST],
}

impl<'a> Dispositions<'a> {
    #[inline(always)]
    pub fn new() -> Dispositions<'a> {
        Dispositions {
            of: [const { Disposition::Output }; BURST],
            pending: [const { None }; BURST],
        }
    }

    /// Sets the disposition of packet `n`.
    #[inline(always)]
    pub fn set(&mut self, n: usize, disposition: Disposition) {
        if let Some(place) = self.of.get_mut(n) {
            *place = disposition;
        }
    }

    /// Records that packet `n` still needs output processing.
    #[inline(always)]
    pub fn defer_output(&mut self, n: usize, output: PendingOutput<'a>) {
        if let Some(place) = self.pending.get_mut(n) {
            *place = Some(output);
        }
    }

    /// The port of packet `n`, if it still needs output processing.
    pub fn pending_port(&self, n: usize) -> Option<u16> {
        Some(self.pending.get(n)?.as_ref()?.dst.port)
    }

    /// Moves the first `count` packets of the burst to their queues, oldest first.
    #[inline]
    pub fn carry_out(&self, burst: &mut Burst, count: usize, ctx: &mut Ctx<'_>) {
        let dispositions = &self.of[..count];
        if count == burst.len() && xmit_together(burst, dispositions, ctx) {
            return;
        }
        for ((skb, disposition), pending) in burst.drain(count).zip(dispositions).zip(&self.pending)
        {
            match (disposition, pending) {
                (Disposition::Xmit(port, routed), _) => enqueue(skb, *port, routed, ctx),
                (Disposition::Output, Some(output)) => match output.protocol {
                    EtherType::IPV4 => ip_finish_output(skb, &output.dst, &output.routed, ctx),
                    _ => ip6_finish_output(skb, &output.dst, &output.routed, ctx),
                },
                // Unreachable: each such packet has a pending output.
                (Disposition::Output, None) => ctx.drop_output(skb, DropReason::DevNotReady),
                (Disposition::Drop(reason), _) => ctx.drop_skb(skb, *reason),
                (Disposition::Punt(reason), _) => ctx.punt_skb(skb, *reason),
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
