//! The netfilter hook points of the data path (`NF_HOOK`, include/linux/netfilter.h).

use super::exit::{Exit, IcmpError};
use super::mode::Mode;
use crate::netfilter::nft::Transport;
use crate::netfilter::{Answer, Family, Hook, HookCtx, HookState, HookStates, Hooks, Verdict};
use crate::skb::SkBuff;
use crate::stats::{DropReason, PuntReason, WorkerStats};
use crate::tables::{Link, Tables};
use crate::trace::{NoTrace, Traces};

/// Whether hook functions ran. If so, they may have changed the packet, and headers must be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HooksRan {
    No,
    Yes,
}

/// What hook functions need of the context.
#[derive(Debug)]
pub(super) struct HookEnv<'a> {
    pub hooks: &'a Hooks,
    pub states: &'a mut HookStates,
    pub tables: &'a Tables,
    pub stats: &'a WorkerStats,
    pub trace: &'a mut Traces,
    pub now_ns: u64,
}

/// Input and output interface of a packet at a hook: `None`, `None` does not occur.
#[derive(Debug, Clone, Copy)]
pub(super) struct Devices<'a> {
    /// `None`: the router's own packet.
    pub iif: Option<&'a Link>,
    /// `None`: not yet known.
    pub oif: Option<&'a Link>,
}

/// Runs the functions that are registered at a hook point.
///
/// # Errors
/// How the packet ends, if the functions do not accept it: [`Exit::Drop`] with NETFILTER_DROP or
/// NETFILTER_STOLEN, [`Exit::Icmp`] if its sender is to get an error, or [`Exit::Punt`].
#[inline]
pub(super) fn nf_hook<M: Mode>(
    hook: Hook,
    skb: &mut SkBuff,
    pf: Family,
    devices: Devices<'_>,
    env: HookEnv<'_>,
) -> Result<HooksRan, Exit> {
    if !M::HOOKED || env.hooks.is_empty_at(pf, hook) {
        return Ok(HooksRan::No);
    }
    nf_hook_slow::<M>(hook, skb, pf, devices, env)
}

#[inline(never)]
fn nf_hook_slow<M: Mode>(
    hook: Hook,
    skb: &mut SkBuff,
    pf: Family,
    Devices { iif, oif }: Devices<'_>,
    HookEnv { hooks, states, tables, stats, trace, now_ns }: HookEnv<'_>,
) -> Result<HooksRan, Exit> {
    skb.headers_may_change();
    let mut at = HookState { hook, pf, iif, oif, transport: Transport::of(skb, pf) };
    let mut ctx = HookCtx { now_ns, tables, stats, worker: states.worker, answer: None };
    let verdict = match M::TRACED {
        true => hooks.run(skb, &mut at, &mut ctx, states, trace),
        false => hooks.run(skb, &mut at, &mut ctx, states, &mut NoTrace),
    };
    let reason = DropReason::NetfilterDrop;
    match verdict {
        Verdict::Accept => Ok(HooksRan::Yes),
        Verdict::Punt => Err(Exit::Punt(PuntReason::Netfilter)),
        Verdict::Stolen => Err(Exit::Drop(DropReason::NetfilterStolen)),
        Verdict::Drop | Verdict::Queue(_) | Verdict::Repeat => Err(match ctx.answer {
            Some(Answer::Icmp { icmp_type, code }) => {
                Exit::Icmp(IcmpError::new(icmp_type, code, reason))
            }
            None => Exit::Drop(reason),
        }),
    }
}
