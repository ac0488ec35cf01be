//! Output of the router's own packets (`ip_local_out`, `ip6_local_out` of the kernel).

use super::dst::Dst;
use super::ip_fragment::ip_finish_output;
use super::ip_output::finish_output2;
use super::mode::{Hooked, Mode, Traced};
use super::nf_hook::{Devices, nf_hook};
use super::nf_ingress::check_egress;
use super::post_routing::{PostRouted, post_routing};
use super::way::Way;
use super::xfrm::xfrm_lookup_error;
use super::xfrm_output::{xfrm_bundle_create, xfrm_output};
use super::{Ctx, Exit};
use crate::netfilter::{Family, Hook};
use crate::skb::SkBuff;
use crate::stats::{DropReason, PuntReason};
use crate::trace::step::Stage;
use crate::trace::{Step, Tracer};
use crate::wire::EtherType;

/// A packet of the router that has passed the hooks, and how it is to be sent.
#[derive(Debug)]
pub(super) struct LocalOutput<'a> {
    routed: PostRouted,
    /// It has been protected: protocol and route of the outer packet.
    protected: Option<(EtherType, Dst<'a>)>,
}

impl LocalOutput<'_> {
    /// Sends the packet, which has this protocol and route if it has not been protected.
    pub(super) fn xmit(self, reply: SkBuff, protocol: EtherType, dst: &Dst<'_>, ctx: &mut Ctx<'_>) {
        let outer = self.protected.as_ref().map(|(protocol, dst)| (*protocol, dst));
        match outer.unwrap_or((protocol, dst)) {
            (EtherType::IPV4, dst) => ip_finish_output(reply, dst, &self.routed, ctx),
            // A hook may have lengthened it; no error is sent about an error.
            (_, dst) if !dst.fits(&reply) => ctx.drop_skb(reply, DropReason::PktTooBig),
            (_, dst) => finish_output2(reply, EtherType::IPV6, dst, &self.routed, ctx),
        }
    }
}

/// Runs LOCAL_OUT and POST_ROUTING on a packet that answers a received one, and protects it if a policy says so. What
/// rules counted takes effect for both, unless only the kernel can send the packet: then it gets the received one.
///
/// # Errors
/// Those of [`nf_hook`].
pub(super) fn local_out<'a>(
    reply: &mut SkBuff,
    pf: Family,
    dst: &Dst<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<LocalOutput<'a>, Exit> {
    let sent = match ctx.out.trace.is_traced() {
        true => send::<Traced>(reply, pf, dst, ctx),
        false => send::<Hooked>(reply, pf, dst, ctx),
    };
    match &sent {
        Err(Exit::Punt(_)) => ctx.state.hooks.rollback(),
        _ => ctx.state.hooks.commit(ctx.hooks, ctx.now_ns),
    }
    sent
}

fn send<'a, M: Mode>(
    reply: &mut SkBuff,
    pf: Family,
    dst: &Dst<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<LocalOutput<'a>, Exit> {
    let devices = Devices { iif: None, oif: Some(dst.dev) };
    check_egress::<M>(dst.dev, ctx)?;
    let state = xfrm_lookup_error(reply, pf, dst, ctx)?;
    let bundle = state.map(|state| xfrm_bundle_create(reply, pf, dst, state, ctx)).transpose()?;
    if bundle.as_ref().is_some_and(|bundle| reply.network_len() as u32 > bundle.dst.mtu) {
        return Err(Exit::Punt(PuntReason::Xfrm));
    }
    ctx.state.hooks.begin_own(bundle.as_ref().map(|bundle| bundle.sa()));
    nf_hook::<M>(Hook::LocalOut, reply, pf, devices, ctx.hook_env())?;
    let (routed, _) = post_routing::<M>(reply, pf, devices, ctx.hook_env())?;
    // Functions may have made it one that another policy concerns.
    let of_sent = xfrm_lookup_error(reply, pf, dst, ctx)?;
    if of_sent.map(std::ptr::from_ref) != state.map(std::ptr::from_ref) {
        return Err(Exit::Punt(PuntReason::Xfrm));
    }
    let Some(bundle) = bundle else { return Ok(LocalOutput { routed, protected: None }) };
    if M::TRACED {
        ctx.out.trace.step(Step::Stage(Stage::XfrmOutput));
    }
    let mut way = Way::default();
    let routed = xfrm_output::<M>(reply, bundle, None, &mut way, ctx)?;
    Ok(LocalOutput { routed, protected: way.protected })
}
