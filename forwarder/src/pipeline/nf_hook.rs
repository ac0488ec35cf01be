//! The netfilter hook points of the data path (`NF_HOOK`, include/linux/netfilter.h).

use super::Exit;
use crate::netfilter::{Hook, HookState, Verdict};
use crate::skb::SkBuff;
use crate::stats::DropReason;
use crate::tables::Tables;
use crate::wire::EtherType;

/// Whether hook functions ran. If so, they may have changed the packet, and headers must be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HooksRan {
    No,
    Yes,
}

/// Runs the functions that are registered at a hook point. `oif`: ifindex of the outgoing interface, 0
/// before it is known.
///
/// # Errors
/// [`Exit::Drop`] with NETFILTER_DROP when a function drops the packet.
#[inline]
pub(super) fn nf_hook(
    hook: Hook,
    skb: &mut SkBuff,
    oif: u32,
    protocol: EtherType,
    tables: &Tables,
) -> Result<HooksRan, Exit> {
    if tables.hooks.is_empty(hook) {
        return Ok(HooksRan::No);
    }
    skb.headers_may_change();
    let state = HookState { hook, iif: skb.iif, oif, protocol: protocol.0 };
    match tables.hooks.run(skb, &state) {
        Verdict::Accept => Ok(HooksRan::Yes),
        Verdict::Drop => Err(Exit::Drop(DropReason::NetfilterDrop)),
    }
}
