//! Protection of packets in tunnel mode: `xfrm_bundle_create`, `xfrm4_output` and `xfrm_output_one` of the kernel.
//!
//! What could make the packet the kernel's is decided before its first change, except by functions at the hooks that the
//! outer packet passes, which is the router's own: LOCAL_OUT and POST_ROUTING. Where there are any, a copy of the packet is
//! kept until they have accepted the outer one.

use std::net::IpAddr;

use super::csum_partial::skb_checksum_help;
use super::dst::Dst;
use super::mode::Mode;
use super::nf_hook::{Devices, nf_hook};
use super::post_routing::{PostRouted, post_routing};
use super::route::ip_route_output;
use super::route6::ip6_route_output;
use super::way::Way;
use super::xfrm::family;
use super::{Ctx, Exit, IcmpError};
use crate::ipsec::{Error, Flow, OutboundState, OutputParams};
use crate::netfilter::nft::xfrm::SaInfo;
use crate::netfilter::{Family, Hook};
use crate::skb::{FRAME_SIZE, SkBuff};
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::vlan::TAGS_MAX;
use crate::tables::{Link, XfrmLookup};
use crate::wire::ethernet::{ADDRS_LEN, HEADER_LEN as LINK_LAYER_LEN};
use crate::wire::icmpv6::Icmpv6Type;
use crate::wire::ipv6::MTU_MIN;
use crate::wire::vlan::HEADER_LEN as TAG_LEN;
use crate::wire::{EtherType, Ipv4Packet, Ipv6Packet};

/// The kernel decides.
pub(super) const KERNEL: Exit = Exit::Punt(PuntReason::Xfrm);

/// A route by which packets are protected: `struct xfrm_dst`.
#[derive(Debug)]
pub(super) struct Bundle<'a> {
    state: &'a OutboundState,
    /// The route of the packet itself, with the MTU that the SA leaves of it.
    pub dst: Dst<'a>,
    /// The route of the outer packet.
    pub outer: Dst<'a>,
    /// It is that of packets which an xfrm interface has sent.
    pub by_xfrmi: bool,
}

impl Bundle<'_> {
    /// Its SA, as rules see it.
    #[inline]
    pub fn sa(&self) -> SaInfo {
        SaInfo::of(self.state.state())
    }

    /// Whether an IPv6 packet is short enough. Longer ones come here only where the kernel cannot send the error.
    #[inline(never)]
    pub fn check_len6(&self, skb: &SkBuff) -> Result<(), Exit> {
        // RFC 8200 §5: no link has less, and senders do not send less.
        let mtu = self.dst.mtu.max(MTU_MIN);
        if skb.network_len() <= mtu as usize {
            return Ok(());
        }
        let (too_big, reason) = (Icmpv6Type::PKT_TOOBIG.0, DropReason::PktTooBig);
        Err(Exit::Icmp(IcmpError::with_info(too_big, 0, mtu, reason)))
    }

    /// Whether packets of this flow are to be protected by its SA.
    #[inline(never)]
    pub fn is_for(&self, flow: &Flow, ctx: &Ctx<'_>) -> bool {
        match ctx.tables.xfrm.lookup_sent(flow, ctx.now_s()) {
            XfrmLookup::Protect(state) => std::ptr::eq(state, self.state),
            _ => false,
        }
    }
}

/// The route of a packet, routed by `dst`, that an SA is to protect. If that is by an xfrm interface, the interface has
/// sent it.
///
/// # Errors
/// The packet is the kernel's.
pub(super) fn xfrm_bundle_create<'a>(
    skb: &SkBuff,
    pf: Family,
    dst: &Dst<'a>,
    state: &'a OutboundState,
    ctx: &Ctx<'a>,
) -> Result<Bundle<'a>, Exit> {
    if !ctx.hooks.know_ipsec() || skb.is_nonlinear() {
        return Err(KERNEL);
    }
    if state.sequence().is_left() {
        return Err(KERNEL);
    }
    let is_of_file = ctx.tables.xfrm.are_of_file();
    if !state.sequence().has_numbers() {
        // The thread that reserves them reads this.
        state.sequence().want();
        return Err(match is_of_file {
            true => Exit::Drop(DropReason::XfrmOutStateSeqError),
            false => KERNEL,
        });
    }
    let config = state.state().config();
    let outer = match (config.dst, config.src) {
        (IpAddr::V4(daddr), IpAddr::V4(saddr)) if ctx.tables.links.is_local4(saddr.to_bits()) => {
            ip_route_output(daddr.to_bits(), saddr.to_bits(), ctx).map_err(|_| KERNEL)?
        }
        (IpAddr::V6(daddr), IpAddr::V6(_)) => {
            ip6_route_output(daddr, dst.dev, ctx).map_err(|_| KERNEL)?
        }
        _ => return Err(KERNEL),
    };
    // The kernel looks for a route by the interface that the packet itself would leave by, or by the lower one of an xfrm
    // interface, if it has one.
    let oif = dst.dev.xfrmi.map_or(dst.dev.ifindex, |xfrmi| xfrmi.link);
    let is_by_oif = outer.dev.ifindex == oif || oif == 0;
    if !is_by_oif || outer.is_multipath() || dst.is_multipath() {
        return Err(KERNEL);
    }
    let len = skb.network_len();
    let overhead = state.state().overhead(len);
    let has_room = skb.network_headroom() >= overhead.head + LINK_LAYER_LEN + TAGS_MAX * TAG_LEN
        && skb.network_headroom() + len + overhead.tail <= FRAME_SIZE;
    let of_sa = match is_of_file && pf == Family::Ip {
        // Outer packets of IPv6 are not fragmented here: senders are told what fits into one.
        true => state.state().packet_len_max(outer.mtu),
        false => state.state().mtu(outer.mtu),
    };
    let mtu = of_sa.min(dst.mtu);
    let outer_len = overhead.head + len + overhead.tail;
    let fits = len as u32 <= mtu && outer_len as u32 <= outer.mtu;
    // Others are rejected, or cut before they are protected.
    let is_cut_after = || {
        pf == Family::Ip
            && config.dst.is_ipv4()
            && !Ipv4Packet::new_unchecked(skb.network_header()).dont_frag()
    };
    if !has_room || !state.state().carries(family(pf)) {
        return Err(KERNEL);
    }
    let by_xfrmi = dst.dev.xfrmi.is_some();
    if !(fits || is_cut_after()) {
        let may_be_cut =
            pf == Family::Ip && !Ipv4Packet::new_unchecked(skb.network_header()).dont_frag();
        // An IPv6 packet of 1280 octets or less that does not fit is the kernel's, and dropped if that has no SA.
        let min = if pf == Family::Ip { 0 } else { MTU_MIN };
        return match is_of_file && !may_be_cut && len as u32 > mtu.max(min) {
            // Its sender is told by those who check its length.
            true => Ok(Bundle { state, dst: Dst { mtu, ..*dst }, outer, by_xfrmi }),
            false => Err(KERNEL),
        };
    }
    // The packet itself is not cut.
    let mtu = mtu.max(len as u32);
    Ok(Bundle { state, dst: Dst { mtu, ..*dst }, outer, by_xfrmi })
}

/// Protects a packet that has passed POST_ROUTING; `dev`: what received it, `None`: it is the router's own.
/// The outer packet is then routed: its protocol and
/// route are `way.protected`.
///
/// # Errors
/// The SA is at its end, or the functions for the outer packet leave it to the kernel, which gets the packet as it was;
/// or it has been changed and cannot be sent.
pub(super) fn xfrm_output<'a, M: Mode>(
    skb: &mut SkBuff,
    mut bundle: Bundle<'a>,
    dev: Option<&Link>,
    way: &mut Way<'a>,
    ctx: &mut Ctx<'a>,
) -> Result<PostRouted, Exit> {
    let daddr = bundle.state.state().config().dst;
    let outer = &bundle.outer;
    let (pf, protocol, hop_limit, requests) = match daddr {
        IpAddr::V4(_) => {
            let ttl = outer.ip4_dst_hoplimit(ctx.tables);
            (Family::Ip, EtherType::IPV4, ttl, Mib::IpOutRequests)
        }
        IpAddr::V6(_) => {
            let hop_limit = outer.ip6_dst_hoplimit(ctx.tables);
            (Family::Ip6, EtherType::IPV6, hop_limit, Mib::Ip6OutRequests)
        }
    };
    let is_seen = |hook| !ctx.hooks.is_empty_at(pf, hook);
    if is_seen(Hook::LocalOut) || is_seen(Hook::PostRouting) {
        ctx.state.xfrm_unsealed.keep(skb);
    }
    let (ip_summed, len) = (skb.ip_summed, skb.network_len());
    skb_checksum_help(skb);
    let ident = ctx.state.ip_id;
    ctx.state.ip_id = ident.wrapping_add(1);
    let params = OutputParams { now_s: ctx.now_s(), hop_limit, ident };
    let (frame, packet) = skb.linear_mut().ok_or(KERNEL)?;
    let sealed = match bundle.state.seal(frame, packet, &params) {
        Ok(sealed) => sealed,
        // Octets have changed.
        Err(Error::XfrmOutStateProtoError) => return Err(Exit::Drop(DropReason::XfrmOutError)),
        Err(Error::SequenceRangeUsed | Error::XfrmOutStateSeqError)
            if ctx.tables.xfrm.are_of_file() =>
        {
            bundle.state.sequence().want();
            return Err(Exit::Drop(DropReason::XfrmOutStateSeqError));
        }
        Err(_) => {
            // With the checksum as received, which is restored.
            skb.ip_summed = ip_summed;
            return Err(KERNEL);
        }
    };
    let ethertype = sealed.start.saturating_sub(LINK_LAYER_LEN - ADDRS_LEN)..sealed.start;
    if let Some(octets) = frame.get_mut(ethertype) {
        octets.copy_from_slice(&protocol.0.to_be_bytes());
    }
    let failed = Exit::Drop(DropReason::XfrmOutError);
    skb.set_packet(sealed, LINK_LAYER_LEN).map_err(|_| failed)?;
    skb.headers_may_change();
    let routed = match pass_local_out::<M>(skb, pf, dev, bundle.outer.dev, ctx) {
        // Another destination has another neighbour, which the kernel finds.
        Ok(routed) if destination(skb) == Some(daddr) => Ok(routed),
        Ok(_) => Err(Exit::Punt(PuntReason::Netfilter)),
        Err(exit) => Err(exit),
    };
    let routed = match routed {
        Ok(routed) => routed,
        Err(Exit::Drop(reason)) => return Err(Exit::Drop(reason)),
        Err(_) if ctx.tables.xfrm.are_of_file() => {
            bundle.state.state().uncount(len);
            return Err(Exit::Drop(DropReason::XfrmOutError));
        }
        Err(exit) => {
            // The kernel sends on the SA now: workers do not, for a while.
            bundle.state.sequence().leave();
            bundle.state.state().uncount(len);
            if !ctx.state.xfrm_unsealed.restore(skb) {
                return Err(Exit::Drop(DropReason::PuntFailed));
            }
            return Err(match exit {
                Exit::Punt(reason) => Exit::Punt(reason),
                // The kernel answers.
                _ => Exit::Punt(PuntReason::Netfilter),
            });
        }
    };
    ctx.stats.mib(requests);
    bundle.outer.resolve(daddr, ctx.tables);
    way.protected = Some((protocol, bundle.outer));
    Ok(routed)
}

/// Runs the hook functions that the outer packet passes (`xfrm_output_resume`). Its input interface at POST_ROUTING is
/// that of the packet inside (`ip_output`).
///
/// # Errors
/// How it ends, if they do not accept it.
fn pass_local_out<M: Mode>(
    skb: &mut SkBuff,
    pf: Family,
    iif: Option<&Link>,
    oif: &Link,
    ctx: &mut Ctx<'_>,
) -> Result<PostRouted, Exit> {
    ctx.state.hooks.protected();
    let devices = Devices { iif: None, oif: Some(oif) };
    nf_hook::<M>(Hook::LocalOut, skb, pf, devices, ctx.hook_env())?;
    let devices = Devices { iif, oif: Some(oif) };
    let (routed, _) = post_routing::<M>(skb, pf, devices, ctx.hook_env())?;
    Ok(routed)
}

/// The destination of a packet.
fn destination(skb: &SkBuff) -> Option<IpAddr> {
    let packet = skb.network_header();
    match packet.first()? >> 4 {
        4 => Some(Ipv4Packet::new_checked(packet).ok()?.dst_addr().into()),
        _ => Some(Ipv6Packet::new_checked(packet).ok()?.dst_addr().into()),
    }
}
