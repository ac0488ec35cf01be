//! Decisions about flows: what the hook functions do with a packet of a carried flow, if it is the same for
//! every packet of it.
//!
//! While the functions run on a packet, a [`Learner`] watches what they look at. If that is the same for every
//! packet of the flow (addresses, ports, interfaces, the connection), the accepting verdict and the counters
//! are remembered, and later packets of the flow pass the hooks without the functions. Flows for which the same
//! was decided share a decision; the record of a flow has its identifier, which is forgotten when the connection
//! changes. The other things that can change a decision are compared for each packet: hooks, interfaces, and, if rules
//! have looked up routes, whether any may have changed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::conntrack::{Ct, CtInfo, FoundFlow, Translated};
use super::nft::{Learner, Routes};

/// Different decisions that a worker remembers: a power of two. If there are more, all are made again.
const DECISIONS: usize = 4096;
/// Set in identifiers of decisions for flows that are not to be offloaded: above the position, below the number.
pub(super) const IS_NOT_OFFLOADED: u64 = DECISIONS as u64;
/// Position of the number in an identifier.
const NUMBER_SHIFT: u32 = DECISIONS.ilog2() + 1;
/// How full the table may be.
const DECISIONS_MAX: usize = DECISIONS / 4 * 3;
/// Counters of a decision.
pub const COUNTERS_MAX: usize = 6;

/// What the functions of all hooks do with packets: they accept and count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Decision {
    /// [`Decisions::routes`] when it was made, if a rule has looked up a route; 0: none has.
    pub routes: u64,
    /// ifindex of the input interface.
    pub iif: u32,
    /// ifindex of the output interface; 0: no function looks at it.
    pub oif: u32,
    /// The mark that PRE_ROUTING leaves: by it the packet is routed.
    pub mark: u32,
    /// Numbers of the counters.
    counters: [u32; COUNTERS_MAX],
    /// Number of counters.
    len: u8,
    /// A rule has looked up the route to an address that the packet has only before or after its translation: of a
    /// change of that, the epochs of an offloaded flow tell nothing.
    pub has_other_routes: bool,
}

const _: () = assert!(size_of::<Slot>() == 64, "a cache line");

impl Decision {
    /// A packet from `iif` to `oif` was accepted, and passed these counters. `mark`: after PRE_ROUTING. `None`: there are
    /// too many counters.
    pub fn new(iif: u32, oif: u32, mark: u32, passed: &[(u32, u32)]) -> Option<Decision> {
        let mut counters = [0; COUNTERS_MAX];
        let len = passed.len() as u8;
        counters.get_mut(..passed.len())?.iter_mut().zip(passed).for_each(|(to, it)| *to = it.0);
        Some(Decision { iif, oif, mark, counters, len, ..Decision::default() })
    }

    /// The same of a packet of a connection, of rules that have looked up these routes.
    pub fn by_routes(self, read: Routes, ct: Ct, decisions: &Decisions) -> Decision {
        if !read.are_read {
            return self;
        }
        // Epochs are those of the source as received, and of the destination as routed.
        let has_other_routes = match ct {
            Ct::Established(CtInfo { status, direction, .. }) => {
                let translated = Translated::of(status, direction);
                read.to_late_source && translated.source
                    || read.to_early_destination && translated.destination
            }
            _ => true,
        };
        Decision { routes: decisions.routes, has_other_routes, ..self }
    }

    /// Whether another one is the same, but that routes may have changed in between.
    fn is_like(&self, other: &Decision) -> bool {
        let of = |it: &Decision| Decision { routes: (it.routes != 0).into(), ..*it };
        of(self) == of(other)
    }

    /// The counters.
    #[inline]
    pub fn counters(&self) -> &[u32] {
        self.counters.get(..self.len as usize).unwrap_or(&[])
    }
}

/// What decisions depend on besides the flow and the interfaces: [`Hooks::id`](super::Hooks), and
/// [`Links::id`](crate::tables::Links), because rules may look at the names of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Basis {
    pub hooks: u64,
    pub links: u64,
}

/// A decision in the table. Its identifier is never used again.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Slot {
    /// The slot's position in the lowest bits. 0: the slot is empty.
    id: u64,
    decision: Decision,
}

/// The decisions of one worker.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    slots: Box<[Slot]>,
    /// What they depend on.
    basis: Basis,
    /// Increases when a route may have changed, or whatever else a lookup depends on. At least 1.
    pub routes: u64,
    len: usize,
    /// Identifiers made so far; in the highest bits is a number that no other worker has.
    made: u64,
}

impl Decisions {
    /// Allocates those of a worker.
    pub fn new() -> Decisions {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let slots = (0..DECISIONS).map(|_| Slot::default()).collect();
        let made = NEXT.fetch_add(1, Ordering::Relaxed) << 36;
        Decisions { slots, made, routes: 1, ..Decisions::default() }
    }

    /// Whether there is room for any.
    pub fn are_used(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The decision with this identifier.
    #[inline]
    pub fn get(&self, id: u64, basis: Basis) -> Option<&Decision> {
        let slot = self.slots.get(id as usize & (DECISIONS - 1))?;
        let holds = slot.decision.routes == 0 || slot.decision.routes == self.routes;
        (slot.id == id && id != 0 && self.basis == basis && holds).then_some(&slot.decision)
    }

    /// Remembers a decision, and returns its identifier. 0: it cannot be remembered.
    pub fn remember(&mut self, decision: Decision, basis: Basis) -> u64 {
        if self.basis != basis || self.len == DECISIONS_MAX {
            self.slots.fill(Slot::default());
            (self.basis, self.len) = (basis, 0);
        }
        let mut at = hash(&decision);
        loop {
            at &= DECISIONS - 1;
            // Some slots are empty, so the loop ends.
            let Some(slot) = self.slots.get_mut(at) else { return 0 };
            let is_free = slot.id == 0;
            if is_free || slot.decision.is_like(&decision) {
                if is_free || slot.decision.routes != decision.routes {
                    // Flows for which it was decided before the change have another identifier.
                    self.made += 1;
                    self.len += usize::from(is_free);
                    *slot = Slot { id: id(self.made, decision.has_other_routes, at), decision };
                }
                return slot.id;
            }
            at += 1;
        }
    }
}

/// The identifier of the decision with a number, at a position.
fn id(number: u64, has_other_routes: bool, at: usize) -> u64 {
    let flag = if has_other_routes { IS_NOT_OFFLOADED } else { 0 };
    (number << NUMBER_SHIFT) | flag | at as u64
}

fn hash(decision: &Decision) -> usize {
    // As `Decision::is_like` compares.
    let Decision { routes, iif, oif, mark, counters, len, has_other_routes } = *decision;
    let flags = u32::from(routes != 0) | u32::from(has_other_routes) << 1;
    let words = [iif, oif, mark, len.into(), flags].into_iter().chain(counters);
    words.fold(0, |hash, word| crate::hash_table::mix(hash ^ u64::from(word))) as usize >> 20
}

/// What is learnt of a packet on its way.
#[derive(Debug)]
pub(super) struct Learnt {
    /// Its flow; `None` before connection tracking.
    pub of: Option<FoundFlow>,
    /// Number of counters that it had passed before, at ingress.
    pub passed: usize,
    /// The mark that PRE_ROUTING leaves.
    pub mark: u32,
    pub learner: Learner,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIS: Basis = Basis { hooks: 1, links: 2 };

    fn decision(n: u32) -> Decision {
        Decision::new(n, 7, 0, &[(3, 60), (9, 60)]).expect("two counters")
    }

    #[test]
    fn what_was_decided_by_routes_is_decided_again_after_a_change() {
        let mut decisions = Decisions::new();
        let by_routes =
            |decisions: &Decisions| Decision { routes: decisions.routes, ..decision(1) };
        let others = decisions.remember(decision(1), BASIS);
        let first = decisions.remember(by_routes(&decisions), BASIS);
        assert_ne!(first, others);
        assert_eq!(decisions.remember(by_routes(&decisions), BASIS), first, "no change");
        for _ in 0..2 * DECISIONS {
            decisions.routes += 1;
            assert_eq!(decisions.get(first, BASIS), None);
            // Other flows have still the identifier from before the change.
            let again = decisions.remember(by_routes(&decisions), BASIS);
            assert!(decisions.get(again, BASIS).is_some() && again != first);
            assert_eq!(decisions.get(first, BASIS), None);
            assert!(decisions.get(others, BASIS).is_some(), "it does not depend on routes");
        }
        assert_eq!(decisions.len, 2, "those from before take no room");
        let id = decisions.remember(Decision { has_other_routes: true, ..decision(1) }, BASIS);
        assert_eq!([id, others].map(|id| id & IS_NOT_OFFLOADED), [IS_NOT_OFFLOADED, 0]);
    }

    #[test]
    fn equal_decisions_share_an_identifier_and_are_found_by_it() {
        let mut decisions = Decisions::new();
        let ids: Vec<u64> = (0..100).map(|n| decisions.remember(decision(n), BASIS)).collect();
        for (n, id) in (0..).zip(&ids) {
            assert_eq!(decisions.remember(decision(n), BASIS), *id);
            assert_eq!(decisions.get(*id, BASIS), Some(&decision(n)));
            assert_eq!(decisions.get(*id, Basis { links: 3, ..BASIS }), None);
        }
        assert_eq!(decisions.get(0, BASIS), None, "nothing was decided");
        assert_eq!(decision(0).counters(), [3, 9]);
        assert_eq!(Decision::new(1, 2, 0, &[(0, 1); COUNTERS_MAX + 1]), None);
    }

    #[test]
    fn identifiers_are_never_used_again() {
        let (mut decisions, mut other) = (Decisions::new(), Decisions::new());
        let mut seen = std::collections::HashSet::new();
        for n in 0..2 * DECISIONS as u32 {
            assert!(seen.insert(decisions.remember(decision(n), BASIS)), "{n}");
            assert!(seen.insert(other.remember(decision(n), BASIS)), "{n}");
        }
        let old = decisions.remember(decision(1), BASIS);
        let other_rules = Basis { hooks: 2, ..BASIS };
        let new = decisions.remember(decision(1), other_rules);
        assert!(seen.insert(new));
        assert_eq!(decisions.get(old, other_rules), None);
        assert_eq!(decisions.get(new, other_rules), Some(&decision(1)));
    }
}
