//! What becomes of packets that IPsec policies concern: `xfrm4_policy_check`, `xfrm6_policy_check` and
//! `__xfrm_route_forward` of the kernel. Workers apply tunnels whose SAs they have ([`xfrm_output`](super::xfrm_output),
//! [`xfrm_input`](super::xfrm_input)); all else is left to the kernel.

use super::dst::Dst;
use super::way::Way;
use super::xfrm::{concern_sent, family, has_long_headers, pass, readable};
use super::xfrm_output::{Bundle, xfrm_bundle_create};
use super::xfrm_withhold::withheld;
use super::xfrmi_xmit::xfrmi_lookup;
use super::{Ctx, Exit};
use crate::netfilter::Family;
use crate::skb::SkBuff;
use crate::stats::PuntReason;
use crate::tables::XfrmLookup;

/// The kernel decides.
const KERNEL: Result<Option<Bundle<'static>>, Exit> = Err(Exit::Punt(PuntReason::Xfrm));

/// A packet that is routed, before it is changed by anything but PRE_ROUTING: the route by which it is to be protected,
/// if it is.
///
/// # Errors
/// The kernel decides.
#[inline(always)]
pub(super) fn xfrm_policy_check<'a>(
    skb: &SkBuff,
    pf: Family,
    way: &Way<'a>,
    dst: &Dst<'a>,
    ctx: &Ctx<'a>,
) -> Result<Option<Bundle<'a>>, Exit> {
    match way.secpath.is_some() || ctx.tables.xfrm.concern(family(pf)) {
        false => Ok(None),
        true => check(skb, pf, way, dst, ctx).map_err(|exit| withheld(exit, skb, way, dst, ctx)),
    }
}

/// A packet that has passed POST_ROUTING, whose functions may have changed its source. `bundle`: how it is to be
/// protected.
///
/// # Errors
/// Another policy concerns it now.
#[inline(always)]
pub(super) fn xfrm_lookup_sent(
    skb: &SkBuff,
    pf: Family,
    dst: &Dst<'_>,
    bundle: Option<&Bundle<'_>>,
    ctx: &Ctx<'_>,
) -> Result<(), Exit> {
    if !concern_sent(pf, ctx) {
        return Ok(());
    }
    let flow = readable(skb.network_header(), dst.dev.ifindex, skb.mark, ctx.tables);
    match bundle {
        Some(bundle) if !bundle.by_xfrmi => pass(flow, |flow| !bundle.is_for(flow, ctx)),
        _ => pass(flow, |flow| ctx.tables.xfrm.concerns_sent(flow)),
    }
}

#[inline(never)]
fn check<'a>(
    skb: &SkBuff,
    pf: Family,
    way: &Way<'a>,
    dst: &Dst<'a>,
    ctx: &Ctx<'a>,
) -> Result<Option<Bundle<'a>>, Exit> {
    let tables = ctx.tables;
    let original = way.original.as_ref();
    let flow = |packet: &[u8]| readable(packet, dst.dev.ifindex, skb.mark, tables);
    let routed = flow(skb.network_header());
    let received = match original {
        Some(original) if original.is_cut() && has_long_headers(original.head()) => None,
        Some(original) => flow(original.head()),
        None => routed,
    };
    // The kernel decides about what cannot be read.
    let (Some(received), Some(routed)) = (received, routed) else { return KERNEL };
    let is_permitted = match way.secpath {
        Some(secpath) => tables.xfrm.permits_opened(&received, secpath.state),
        // What rules wrote without a connection counts, too.
        None => [received, routed].iter().all(|flow| !tables.xfrm.concerns_received(flow)),
    };
    if !is_permitted {
        return KERNEL;
    }
    match tables.xfrm.lookup_sent(&routed, ctx.now_s()) {
        XfrmLookup::Pass if dst.dev.xfrmi.is_some() => xfrmi_lookup(skb, pf, dst, ctx).map(Some),
        XfrmLookup::Pass => Ok(None),
        XfrmLookup::Protect(_) if dst.dev.xfrmi.is_some() => KERNEL,
        XfrmLookup::Protect(state) => xfrm_bundle_create(skb, pf, dst, state, ctx).map(Some),
        XfrmLookup::Kernel => KERNEL,
    }
}
