//! Decisions about flows: what the hook functions do with a packet of a carried flow, if it is the same for
//! every packet of it.
//!
//! While the functions run on a packet, a [`Learner`] watches what they look at. If that is the same for every
//! packet of the flow (addresses, ports, interfaces, the connection), the accepting verdict and the counters
//! are remembered, and later packets of the flow pass the hooks without the functions. Flows for which the same
//! was decided share a decision; the record of a flow has its identifier, which is forgotten when the connection
//! changes. The other things that can change a decision are compared for each packet: hooks, interfaces.

use std::sync::atomic::{AtomicU64, Ordering};

use super::conntrack::FoundFlow;
use crate::trace::{Step, Tracer};

/// Different decisions that a worker remembers: a power of two. If there are more, all are made again.
const DECISIONS: usize = 4096;
/// How full the table may be.
const DECISIONS_MAX: usize = DECISIONS / 4 * 3;
/// Counters of a decision.
pub const COUNTERS_MAX: usize = 6;

/// What the functions of all hooks do with packets: they accept and count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Decision {
    /// ifindex of the input interface.
    pub iif: u32,
    /// ifindex of the output interface; 0: no function looks at it.
    pub oif: u32,
    /// Numbers of the counters.
    counters: [u32; COUNTERS_MAX],
    /// Number of counters.
    len: u32,
}

impl Decision {
    /// A packet from `iif` to `oif` was accepted, and passed these counters. `None`: there are too many.
    pub fn new(iif: u32, oif: u32, passed: &[(u32, u32)]) -> Option<Decision> {
        let mut counters = [0; COUNTERS_MAX];
        let len = passed.len() as u32;
        counters.get_mut(..passed.len())?.iter_mut().zip(passed).for_each(|(to, it)| *to = it.0);
        Some(Decision { iif, oif, counters, len })
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
        Decisions { slots, made, ..Decisions::default() }
    }

    /// Whether there is room for any.
    pub fn are_used(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The decision with this identifier.
    #[inline]
    pub fn get(&self, id: u64, basis: Basis) -> Option<&Decision> {
        let slot = self.slots.get(id as usize & (DECISIONS - 1))?;
        (slot.id == id && id != 0 && self.basis == basis).then_some(&slot.decision)
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
            if slot.id == 0 {
                self.made += 1;
                self.len += 1;
                *slot = Slot { id: (self.made * DECISIONS as u64) | at as u64, decision };
            }
            if slot.decision == decision {
                return slot.id;
            }
            at += 1;
        }
    }
}

fn hash(decision: &Decision) -> usize {
    let Decision { iif, oif, counters, len } = *decision;
    let words = [iif, oif, len].into_iter().chain(counters);
    words.fold(0, |hash, word| crate::hash_table::mix(hash ^ u64::from(word))) as usize >> 20
}

/// What is learnt of a packet on its way.
#[derive(Debug)]
pub(super) struct Learnt {
    /// Its flow.
    pub of: FoundFlow,
    /// Number of counters that it had passed before, at ingress.
    pub passed: usize,
    pub learner: Learner,
}

/// Notices whether what functions do depends on more than the flow.
#[derive(Debug, Default)]
pub struct Learner {
    /// It does.
    pub varies: bool,
}

impl Tracer for Learner {
    #[inline(always)]
    fn is_traced(&self) -> bool {
        false
    }

    #[inline(always)]
    fn step(&mut self, _: Step) {}

    #[inline(always)]
    fn is_learning(&self) -> bool {
        true
    }

    #[inline(always)]
    fn varies(&mut self) {
        self.varies = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIS: Basis = Basis { hooks: 1, links: 2 };

    fn decision(n: u32) -> Decision {
        Decision::new(n, 7, &[(3, 60), (9, 60)]).expect("two counters")
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
        assert_eq!(Decision::new(1, 2, &[(0, 1); COUNTERS_MAX + 1]), None);
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
