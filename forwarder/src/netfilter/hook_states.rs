//! What a worker keeps for hook functions.

use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::conntrack::{Ct, FlowsAhead, FoundFlow, NatTarget};
use super::decision::{Decisions, Learnt};
use super::hook::{Hooks, StateSlot};
use super::ingress::RememberedChains;
use super::nft::Journal;
use super::nft::xfrm::SaInfo;
use crate::skb::SkBuff;

/// What one worker keeps between packets for hook functions.
#[derive(Default)]
pub struct HookStates {
    /// The worker's number.
    pub worker: usize,
    /// Added to the worker's clock gives CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_offset_ns: u64,
    pub(super) slots: Vec<StateSlot>,
    /// [`Hooks::id`] of those that `slots` belongs to.
    pub(super) of: u64,
    /// The counters of nftables rules that the current packet passed.
    pub(super) journal: Journal,
    /// The connection of the current packet.
    pub(super) ct: Ct,
    /// The flows that it and the packets around it belong to, with their octets from the IP header on.
    pub(super) carried: SmallVec<[(FoundFlow, u64); 3]>,
    /// What NAT makes of it.
    pub(super) target: Option<NatTarget>,
    /// Its connection was [`Ct::Invalid`] at PRE_ROUTING.
    pub(super) is_invalid: bool,
    /// A chain at ingress has set its mark.
    pub(super) is_marked: bool,
    /// It is one of IPsec, to or from the router.
    pub(super) is_protected: bool,
    /// The SA whose protection it was received with, and that which it is to be protected with.
    pub(super) received_by: Option<SaInfo>,
    pub(super) sent_by: Option<SaInfo>,
    /// The chains of interfaces.
    pub(super) device_chains: RememberedChains,
    /// What is learnt of it.
    pub(super) learnt: Option<Learnt>,
    pub(super) decisions: Decisions,
    /// The flows of the packets of the current burst.
    pub(super) ahead: FlowsAhead,
    /// At how many hooks functions ran.
    #[cfg(test)]
    pub(crate) functions_ran: u64,
}

impl std::fmt::Debug for HookStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HookStates(worker {}, {} functions)", self.worker, self.slots.len())
    }
}

impl HookStates {
    /// Of a worker, by number.
    pub fn new(worker: usize) -> HookStates {
        HookStates { worker, decisions: Decisions::new(), ..HookStates::default() }
    }

    /// CLOCK_MONOTONIC, of the worker's clock.
    #[inline]
    pub fn monotonic_ns(&self, now_ns: u64) -> u64 {
        self.monotonic_offset_ns.wrapping_add(now_ns)
    }

    /// Takes the states of functions that are new, and leaves those of functions that are gone, which the
    /// control thread frees. To be called when the hooks have changed, before they are run.
    #[cold]
    pub fn take(&mut self, hooks: &Hooks) {
        if self.of == hooks.id {
            return;
        }
        let Some(slots) = hooks.states.get(self.worker) else { return };
        // Nobody else locks it while a worker may read the hooks; a poisoned lock is not possible.
        let Ok(mut slots) = slots.try_lock() else { return };
        for slot in slots.iter_mut() {
            if let Some(own) = self.slots.iter_mut().find(|own| own.id == slot.id)
                && own.state.is_some()
            {
                std::mem::swap(&mut slot.state, &mut own.state);
            }
            if let Some(has_state) = slot.has_state.get(self.worker) {
                has_state.store(true, Ordering::Release);
            }
        }
        std::mem::swap(&mut *slots, &mut self.slots);
        self.of = hooks.id;
    }

    /// A burst begins. `changes`: a number that has increased if any route, interface or rule of routing has changed.
    #[inline]
    pub fn routes_are_of(&mut self, changes: u64) {
        self.decisions.routes = changes;
    }

    /// A burst begins: where the functions may have decided about flows, finds the flows of its packets, if `finds`,
    /// or when they are needed.
    #[inline]
    pub fn look_ahead(&mut self, burst: &[SkBuff], hooks: &Hooks, finds: bool, now_ns: u64) {
        let now_ns = self.monotonic_ns(now_ns);
        self.ahead.begin(hooks.decided_flows(), now_ns);
        if let (true, Some(flows)) = (finds, hooks.decided_flows()) {
            self.ahead.look(burst, flows);
        }
    }

    /// Whether the current packet may pass as was decided for its flow.
    #[inline]
    pub fn may_be_decided(&self) -> bool {
        self.ahead.is_valid() && !self.is_marked
    }

    /// A packet begins: nothing is known of it yet.
    #[inline]
    pub fn begin(&mut self) {
        self.reset_ct();
        (self.is_invalid, self.is_marked) = (false, false);
        self.is_protected = false;
        (self.received_by, self.sent_by) = (None, None);
    }

    /// A packet of the router's own is sent in answer to the current one, by an SA if it is to be protected.
    pub fn begin_own(&mut self, sent_by: Option<SaInfo>) {
        self.begin();
        self.sent_by = sent_by;
    }

    /// `nf_reset_ct`: the current packet becomes another one, whose connection is not known yet.
    fn reset_ct(&mut self) {
        (self.ct, self.target) = (Ct::Off, None);
        self.learnt = None;
    }

    /// The current packet is one of IPsec to the router.
    #[inline]
    pub fn begin_protected(&mut self) {
        self.is_protected = true;
    }

    /// The current packet becomes the one inside it (`xfrm_input`).
    #[inline]
    pub fn opened(&mut self, by: SaInfo) {
        self.reset_ct();
        self.is_protected = false;
        self.received_by = Some(by);
    }

    /// The current packet is to be protected (`xfrm4_route_forward`). Nothing of it is remembered: later packets of its
    /// flow may not be.
    #[inline]
    pub fn is_sent_by(&mut self, sa: SaInfo) {
        self.learnt = None;
        self.sent_by = Some(sa);
    }

    /// `xfrmi_scrub_packet`: its connection is not known any more, and it is to be protected.
    pub(super) fn scrubbed(&mut self, sent_by: SaInfo, ct: Ct) {
        self.reset_ct();
        (self.ct, self.sent_by) = (ct, Some(sent_by));
    }

    /// The current packet has been protected (`xfrm_output_resume`).
    #[inline]
    pub fn protected(&mut self) {
        self.reset_ct();
        self.is_protected = true;
        (self.received_by, self.sent_by) = (None, None);
    }

    /// Whether the current packet is an invalid one of a carried connection, which the kernel must not get.
    #[inline]
    pub fn is_invalid(&self) -> bool {
        self.is_invalid
    }

    /// Whether the current packet has passed counters, is of a carried flow, or was marked.
    #[inline]
    pub fn has_effects(&self) -> bool {
        self.is_marked || !self.journal.is_empty() || !self.carried.is_empty()
    }

    /// The packet is not handed to the kernel: what its rules and its flow count takes effect.
    #[inline]
    pub fn commit(&mut self, hooks: &Hooks, now_ns: u64) {
        let now_ns = self.monotonic_ns(now_ns);
        for (of, octets) in self.carried.drain(..) {
            if let Some(found) = hooks.flows().and_then(|flows| flows.again(of)) {
                found.seen(octets, now_ns);
            }
        }
        if let Some(nft) = &hooks.nft {
            nft.commit(&mut self.journal, self.worker);
        }
    }

    /// A packet begins, or was handed to the kernel, whose rules and connections count it.
    #[inline]
    pub fn rollback(&mut self) {
        self.carried.clear();
        self.journal.clear();
    }
}
