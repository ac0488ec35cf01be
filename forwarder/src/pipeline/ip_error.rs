//! Rejection of a packet that has no route (`ip_error` of the kernel).

use super::headers::Iphdr;
use super::ip_rcv_options::ip_rcv_options;
use super::{Ctx, Exit, IcmpError};
use crate::skb::SkBuff;
use crate::stats::{DropReason, Mib};
use crate::tables::Link;
use crate::wire::icmpv4::{Icmpv4Type, unreach};

/// Why a packet has no route: `dst.error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteError {
    /// ENETUNREACH.
    NetUnreach(DropReason),
    /// EHOSTUNREACH.
    HostUnreach(DropReason),
    /// EACCES.
    Filtered,
    /// EINVAL.
    Silent(DropReason),
}

/// Rejects a packet that has no route. Its options are checked first (`ip_rcv_finish_core`); if they are
/// invalid, the packet is dropped for that instead.
#[cold]
pub(super) fn ip_error(skb: &SkBuff, error: RouteError, dev: &Link, ctx: &mut Ctx<'_>) -> Exit {
    let iph = Iphdr::of(skb);
    if iph.has_options()
        && let Err(exit) = ip_rcv_options(skb, dev, ctx)
    {
        return exit;
    }
    let (code, reason) = match error {
        RouteError::Silent(reason) => return Exit::Drop(reason),
        RouteError::HostUnreach(reason) => (unreach::HOST_UNREACH, reason),
        RouteError::NetUnreach(reason) => (unreach::NET_UNREACH, reason),
        RouteError::Filtered => (unreach::PKT_FILTERED, DropReason::Prohibit),
    };
    if !dev.forwarding4 {
        // A host sends no error, and counts the packet alike whether there is a route or not.
        ctx.mib(Mib::IpInAddrErrors);
        return Exit::Drop(DropReason::ForwardingOff);
    }
    if matches!(error, RouteError::NetUnreach(_)) {
        ctx.mib(Mib::IpInNoRoutes);
    }
    if !ctx.state.limiter.error_allow(u128::from(iph.saddr), ctx.now_ns) {
        return Exit::Drop(reason);
    }
    Exit::Icmp(IcmpError::new(Icmpv4Type::DEST_UNREACH.0, code, reason))
}
