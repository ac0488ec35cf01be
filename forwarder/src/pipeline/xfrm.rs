//! IPsec policies: which packets they concern. What becomes of these: [`xfrm_policy`](super::xfrm_policy).
//!
//! The kernel looks a forwarded packet up three times: among the policies of direction fwd by what was received, even if
//! it was translated since (`xfrm4_policy_check`, `nf_nat_decode_session`), among those of direction out as it is routed
//! (`xfrm4_route_forward`), and again when its source has been translated (`nf_xfrm_me_harder`). The first two
//! precede all writes here; where there are policies the third finds the original packet kept, as for hook functions.

use super::dst::Dst;
use super::{Ctx, Exit};
use crate::ipsec::{self, Flow, OutboundState};
use crate::netfilter::Family;
use crate::netfilter::conntrack::{FlowKey, TupleKind};
use crate::skb::SkBuff;
use crate::stats::PuntReason;
use crate::tables::{Tables, XfrmLookup};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol};

/// Octets of an upper-layer header in which everything is that selectors look at: GRE with checksum and key.
const UPPER_LEN: usize = 12;

/// The flow of a packet, or of its head. `None`: the kernel may find another one. It may reassemble fragments before
/// (`ip_defrag`), and then finds protocol and ports in them; what it reads of GRE and Mobility Headers depends
/// on its version.
pub(super) fn readable(packet: &[u8], oif: u32, mark: u32, tables: &Tables) -> Option<Flow> {
    let flow = Flow::of_packet(packet, oif, mark)?;
    let is_odd =
        || flow.proto == Protocol::GRE || flow.proto == Protocol::MOBILITY || is_fragment(packet);
    (!tables.xfrm.see_upper_layers() || !is_odd()).then_some(flow)
}

/// Whether it is a fragment, or may be one.
fn is_fragment(packet: &[u8]) -> bool {
    match packet.first().map(|octet| octet >> 4) {
        Some(4) => Ipv4Packet::new_unchecked(packet).is_fragment(),
        _ => {
            let upper = Ipv6Packet::new_unchecked(packet).upper_layer();
            upper.map_or(true, |upper| upper.fragment.is_some())
        }
    }
}

/// Whether what selectors look at may be behind the octets that are kept of a received packet.
pub(super) fn has_long_headers(head: &[u8]) -> bool {
    let is_ipv6 = head.first().is_some_and(|octet| octet >> 4 == 6);
    let upper = || Ipv6Packet::new_unchecked(head).upper_layer();
    is_ipv6 && upper().map_or(true, |upper| upper.offset + UPPER_LEN > head.len())
}

/// The SA that is to protect an ICMP error of the router, if one is.
///
/// # Errors
/// The kernel decides.
#[inline(always)]
pub(super) fn xfrm_lookup_error<'a>(
    reply: &SkBuff,
    pf: Family,
    dst: &Dst<'_>,
    ctx: &Ctx<'a>,
) -> Result<Option<&'a OutboundState>, Exit> {
    if !concern_sent(pf, ctx) {
        return Ok(None);
    }
    let flow = Flow::of_packet(reply.network_header(), dst.dev.ifindex, reply.mark);
    match flow.map(|flow| ctx.tables.xfrm.lookup_error(&flow, ctx.now_s())) {
        Some(XfrmLookup::Pass) => Ok(None),
        Some(XfrmLookup::Protect(state)) => Ok(Some(state)),
        Some(XfrmLookup::Kernel) | None => Err(Exit::Punt(PuntReason::Xfrm)),
    }
}

/// Passes a packet whose flow can be read and is not concerned; the kernel decides about any other.
#[inline(always)]
pub(super) fn pass(flow: Option<Flow>, concerns: impl FnOnce(&Flow) -> bool) -> Result<(), Exit> {
    match flow {
        Some(flow) if !concerns(&flow) => Ok(()),
        _ => Err(Exit::Punt(PuntReason::Xfrm)),
    }
}

/// Whether a policy may concern packets of a family that are sent, the router's own among them.
#[inline(always)]
pub(super) fn concern_sent(pf: Family, ctx: &Ctx<'_>) -> bool {
    ctx.tables.xfrm.concern_sent(family(pf))
}

#[inline(always)]
pub(super) fn family(pf: Family) -> ipsec::Family {
    match pf {
        Family::Ip6 => ipsec::Family::Ipv6,
        _ => ipsec::Family::Ipv4,
    }
}

/// Whether packets of a flow that leave by an interface pass all policies, whatever their marks. `target`: what
/// they are translated to.
#[inline(always)]
pub fn passes_policies(
    key: &FlowKey,
    target: impl FnOnce() -> Option<FlowKey>,
    oif: u32,
    tables: &Tables,
) -> bool {
    let family = if key.is_ipv4() { ipsec::Family::Ipv4 } else { ipsec::Family::Ipv6 };
    !tables.xfrm.concern(family)
        || !tables.xfrm.see_marks(family)
            && is_unconcerned(key, &target().unwrap_or(*key), oif, tables)
}

#[inline(never)]
fn is_unconcerned(key: &FlowKey, target: &FlowKey, oif: u32, tables: &Tables) -> bool {
    let received = flow_of(key, oif);
    let sent = flow_of(target, oif);
    // With the source as received: as it is routed.
    let routed = Flow { src: received.src, sport: received.sport, ..sent };
    let xfrm = &tables.xfrm;
    // What else selectors look at differs between packets of the flow: see `readable`.
    if received.proto == Protocol::GRE && xfrm.see_upper_layers() {
        return false;
    }
    ![received, routed].iter().any(|flow| xfrm.concerns_received(flow))
        && ![routed, sent].iter().any(|flow| xfrm.concerns_sent(flow))
}

fn flow_of(key: &FlowKey, oif: u32) -> Flow {
    let ([src, dst], [mut sport, mut dport]) = (key.addresses(), key.ports());
    if key.kind() == Some(TupleKind::Echo) {
        // Type and code (`xfrm_flowi_sport`, `xfrm_flowi_dport`).
        (sport, dport) = (dport >> 8, dport & 0xff);
    }
    Flow { src, dst, proto: Protocol(key.protocol()), sport, dport, oif, mark: 0 }
}
