//! Packets that leave by an xfrm interface: `xfrmi_xmit2` of the kernel.
//!
//! Before a packet is changed, the policies of the interface are asked whether workers can protect it; if not, the packet
//! is the kernel's, which drops it, answers, or has an SA negotiated. When it has passed FORWARD and POST_ROUTING as one
//! that leaves by the interface, they are asked again if functions ran there: only then does the kernel ask them. It then
//! passes POST_ROUTING once more, without a connection and as one that the lower interface has and sends
//! (`xfrmi_scrub_packet`, `xfrm4_output`, `xfrm6_output`), before it is protected.

use super::dst::Dst;
use super::mode::Mode;
use super::nf_hook::Devices;
use super::post_routing::{PostRouted, post_routing};
use super::way::Way;
use super::xfrm::readable;
use super::xfrm_output::{Bundle, KERNEL, xfrm_bundle_create, xfrm_output};
use super::{Ctx, Exit};
use crate::netfilter::Family;
use crate::skb::SkBuff;
use crate::tables::XfrmLookup;
use crate::trace::step::Stage;
use crate::trace::{Step, Tracer};

/// How a packet, routed by `dst` to an xfrm interface, is to be protected.
///
/// # Errors
/// The packet is the kernel's.
#[cold]
#[inline(never)]
pub(super) fn xfrmi_lookup<'a>(
    skb: &SkBuff,
    pf: Family,
    dst: &Dst<'a>,
    ctx: &Ctx<'a>,
) -> Result<Bundle<'a>, Exit> {
    let xfrmi = dst.dev.xfrmi.as_ref().ok_or(KERNEL)?;
    // What is longer than the interface permits is cut before it leaves by it, or an error is due.
    if !dst.fits(skb) {
        return Err(KERNEL);
    }
    let flow = readable(skb.network_header(), xfrmi.link, skb.mark, ctx.tables).ok_or(KERNEL)?;
    match ctx.tables.xfrm.lookup_sent_by(xfrmi.if_id, &flow, ctx.now_s()) {
        XfrmLookup::Protect(state) => xfrm_bundle_create(skb, pf, dst, state, ctx),
        XfrmLookup::Pass | XfrmLookup::Kernel => Err(KERNEL),
    }
}

/// Sends a packet that has passed POST_ROUTING by the xfrm interface of `dst`. `ran`: hook functions have run since
/// `bundle` was looked up.
///
/// # Errors
/// As those of [`xfrm_output`].
#[inline(never)]
pub(super) fn xfrmi_xmit<'a, M: Mode>(
    skb: &mut SkBuff,
    pf: Family,
    dst: &Dst<'a>,
    (bundle, ran): (Bundle<'a>, bool),
    way: &mut Way<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<PostRouted, Exit> {
    if M::TRACED {
        ctx.out.trace.step(Step::Stage(Stage::XfrmiXmit));
    }
    let bundle = if ran { xfrmi_lookup(skb, pf, dst, ctx)? } else { bundle };
    let lower = bundle.outer.dev;
    ctx.hooks.scrub(pf, bundle.sa(), &mut ctx.state.hooks);
    let devices = Devices { iif: Some(lower), oif: Some(lower) };
    post_routing::<M>(skb, pf, devices, ctx.hook_env())?;
    if M::TRACED {
        ctx.out.trace.step(Step::Stage(Stage::XfrmOutput));
    }
    xfrm_output::<M>(skb, bundle, Some(lower), way, ctx)
}
