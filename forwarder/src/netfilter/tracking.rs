//! The function of connection tracking at PRE_ROUTING, or LOCAL_IN, and LOCAL_OUT.

use super::conntrack::{Ct, flow_key_of, may_be_masqueraded, nf_conntrack_in};
use super::decision::Learnt;
use super::hook::{Hook, HookCtx, HookState, Hooks, Verdict};
use super::hook_states::HookStates;
use super::nft::{Family, Learner};
use super::traced;
use crate::skb::SkBuff;
use crate::tables::Tables;
use crate::trace::Tracer;

impl Hooks {
    /// `nf_conntrack_in`, and what follows from it. A packet of no carried connection is left to the kernel.
    #[inline(always)]
    pub(super) fn track<T: Tracer>(
        &self,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        ctx: &HookCtx<'_>,
        own: &mut HookStates,
        tracer: &mut T,
    ) -> Verdict {
        let now_ns = own.monotonic_ns(ctx.now_ns);
        let tracked = self.flows().and_then(|flows| {
            let key = flow_key_of(skb.network_header(), at.pf)?;
            nf_conntrack_in(skb, at, &key, flows, now_ns)
        });
        let verdict = match tracked {
            Some(tracked) => {
                (own.ct, own.target) = (tracked.ct, tracked.target);
                if matches!(tracked.ct, Ct::Established(_)) {
                    own.carried.push((tracked.of, skb.network_len() as u64));
                }
                // Also of a packet that has been protected since.
                own.is_invalid |= own.ct == Ct::Invalid;
                let is_left = own.target.is_some() && !self.translates(at.pf);
                // Where functions have run before, it has begun.
                if own.learnt.is_none() && !tracer.is_traced() {
                    self.begin_to_learn(at.pf, own);
                }
                match &mut own.learnt {
                    Some(learnt) if tracked.is_plain && !own.is_invalid && !is_left => {
                        learnt.of = Some(tracked.of);
                    }
                    learnt => *learnt = None,
                }
                match is_left || self.may_end(at, own, ctx.tables) {
                    true => Verdict::Punt,
                    false => Verdict::Accept,
                }
            }
            None => Verdict::Punt,
        };
        if tracer.is_traced() {
            traced::conntrack(own.ct, verdict, tracer);
        }
        verdict
    }

    /// Whether a packet that IPsec has protected may be of a connection that the kernel would end, see
    /// [`may_be_masqueraded`].
    fn may_end(&self, at: &HookState<'_>, own: &HookStates, tables: &Tables) -> bool {
        let is_translated = self.nft.as_ref().is_some_and(|nft| nft.program().translates(at.pf));
        match (own.ct, self.flows()) {
            (Ct::Established(info), Some(flows)) if at.hook == Hook::LocalOut && is_translated => {
                may_be_masqueraded(flows, info, at.oif, tables)
            }
            _ => false,
        }
    }

    /// Begins to learn what the functions do with the packets of a flow, unless they cannot be remembered, chains at
    /// ingress have set the packet's mark, or it is of IPsec: another packet of the flow may not be. The flow may not be
    /// known yet.
    pub(super) fn begin_to_learn(&self, pf: Family, own: &mut HookStates) {
        let may_learn =
            self.may_decide(pf) && !own.is_marked && !own.is_protected && own.received_by.is_none();
        if may_learn && own.decisions.are_used() {
            let passed = own.journal.entries().len();
            own.learnt = Some(Learnt { of: None, passed, mark: 0, learner: Learner::default() });
        }
    }
}
