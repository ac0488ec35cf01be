//! IPv4 forwarding: `ip_forward` of the kernel.
//!
//! All checks precede the first write.

use super::dst::Dst;
use super::eth_input::is_l2_multicast;
use super::headers::Iphdr;
use super::inet_addr::fib_result_prefsrc;
use super::ip_options::IpOptions;
use super::mode::Mode;
use super::nf_hook::{Devices, HooksRan, nf_hook};
use super::{Ctx, Exit, IcmpError};
use crate::netfilter::{Family, Hook};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib, PuntReason};
use crate::tables::Link;
use crate::wire::icmpv4::{Icmpv4Type, exceeded, unreach};
use crate::wire::ipv4::{HEADER_LEN_MIN, Ipv4Packet};

/// `ip_forward`, up to its first write. `may_redirect`: a redirect may be due.
#[inline(always)]
pub(super) fn ip_forward_checks(
    skb: &SkBuff,
    iph: &Iphdr,
    (dst, may_redirect): (&Dst<'_>, bool),
    ctx: &mut Ctx<'_>,
) -> Result<(), Exit> {
    if is_l2_multicast(skb) {
        return Err(Exit::Drop(DropReason::UnicastInL2Multicast));
    }
    // RFC 1812 §5.3.1.
    if iph.ttl <= 1 {
        ctx.mib(Mib::IpInHdrErrors);
        let exceeded = (Icmpv4Type::TIME_EXCEEDED.0, exceeded::EXC_TTL);
        return Err(Exit::Icmp(IcmpError::new(exceeded.0, exceeded.1, DropReason::TtlExceeded)));
    }
    let is_due = dst.redirect && may_redirect;
    if is_due && ctx.state.limiter.redirect_allow(u128::from(iph.saddr), ctx.now_ns) {
        // The kernel forwards it and sends the redirect.
        return Err(Exit::Punt(PuntReason::Redirect));
    }
    ctx.mib(Mib::IpForwDatagrams);
    if u32::from(iph.tot_len) > dst.mtu {
        return exceeds_mtu(skb, dst, ctx);
    }
    Ok(())
}

/// The packet is longer than the MTU: it is fragmented if DF is not set.
#[cold]
fn exceeds_mtu(skb: &SkBuff, dst: &Dst<'_>, ctx: &Ctx<'_>) -> Result<(), Exit> {
    let ipv4 = Ipv4Packet::new_unchecked(skb.network_header());
    if ipv4.dont_frag() {
        // RFC 1191 §4.
        ctx.mib(Mib::IpFragFails);
        let (unreach, code) = (Icmpv4Type::DEST_UNREACH.0, unreach::FRAG_NEEDED);
        let reason = DropReason::PktTooBig;
        return Err(Exit::Icmp(IcmpError::with_info(unreach, code, dst.mtu, reason)));
    }
    let payload_len = ipv4.total_len().saturating_sub(ipv4.header_len() as u16);
    if ipv4.frag_offset().checked_add(payload_len).is_none() {
        // Such a packet cannot be reassembled. The kernel fragments it nevertheless, and its offsets
        // overflow into the flags; this is left to the kernel.
        return Err(Exit::Punt(PuntReason::OversizeFragment));
    }
    Ok(())
}

/// The rest of `ip_forward`, which changes the packet.
#[inline]
pub(super) fn ip_forward<M: Mode>(
    skb: &mut SkBuff,
    options: Option<IpOptions>,
    dev: &Link,
    dst: &Dst<'_>,
    ctx: &mut Ctx<'_>,
) -> Result<HooksRan, Exit> {
    decrease_ttl(skb);
    let devices = Devices { iif: Some(dev), oif: Some(dst.dev) };
    let ran = nf_hook::<M>(Hook::Forward, skb, Family::Ip, devices, ctx.hook_env())?;
    if let Some(options) = options {
        ip_forward_options(skb, options, dst, ctx);
    }
    Ok(ran)
}

/// `ip_decrease_ttl`.
#[inline(always)]
pub(super) fn decrease_ttl(skb: &mut SkBuff) {
    if let Some(fixed) = skb.network_chunk_mut::<HEADER_LEN_MIN>() {
        Ipv4Packet::new_unchecked(fixed).decrease_ttl();
    }
}

/// `ip_forward_options`.
#[cold]
fn ip_forward_options(skb: &mut SkBuff, mut options: IpOptions, dst: &Dst<'_>, ctx: &Ctx<'_>) {
    let mut ipv4 = Ipv4Packet::new_unchecked(skb.network_header_mut());
    // ip_rt_get_source: by the packet's route.
    let our_addr = || fib_result_prefsrc(ctx.tables, dst);
    if let Some(octets) = options.forwarded(our_addr) {
        let area = ipv4.option_octets_mut();
        if area.len() == octets.len() {
            area.copy_from_slice(octets);
        }
        ipv4.fill_checksum();
    }
}
