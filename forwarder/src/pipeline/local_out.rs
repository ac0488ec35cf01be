//! Output of the router's own packets (`ip_local_out`, `ip6_local_out` of the kernel).

use super::dst::Dst;
use super::mode::{Hooked, Mode, Traced};
use super::nf_hook::{Devices, nf_hook};
use super::nf_ingress::check_egress;
use super::post_routing::{PostRouted, post_routing};
use super::xfrm::xfrm_lookup_error;
use super::{Ctx, Exit};
use crate::netfilter::{Family, Hook};
use crate::skb::SkBuff;
use crate::trace::Tracer;

/// Runs LOCAL_OUT and POST_ROUTING on a packet that answers a received one. What rules counted takes effect
/// for both, unless only the kernel can send the packet: then it gets the received one.
///
/// # Errors
/// Those of [`nf_hook`].
pub(super) fn local_out(
    reply: &mut SkBuff,
    pf: Family,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<PostRouted, Exit> {
    let routed = match ctx.out.trace.is_traced() {
        true => hooks::<Traced>(reply, pf, dst, ctx),
        false => hooks::<Hooked>(reply, pf, dst, ctx),
    };
    match &routed {
        Err(Exit::Punt(_)) => ctx.state.hooks.rollback(),
        _ => ctx.state.hooks.commit(ctx.hooks),
    }
    routed
}

fn hooks<M: Mode>(
    reply: &mut SkBuff,
    pf: Family,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<PostRouted, Exit> {
    let devices = Devices { iif: None, oif: Some(dst.dev) };
    check_egress::<M>(dst.dev, ctx)?;
    xfrm_lookup_error(reply, pf, dst, ctx)?;
    nf_hook::<M>(Hook::LocalOut, reply, pf, devices, ctx.hook_env())?;
    let (routed, _) = post_routing::<M>(reply, pf, devices, ctx.hook_env())?;
    // Also finds what functions have made of it.
    xfrm_lookup_error(reply, pf, dst, ctx)?;
    Ok(routed)
}
