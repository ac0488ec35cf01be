//! Decisions about flows: what the hook functions do with a packet of a carried flow, if it is the same for
//! every packet of it.
//!
//! While the functions run on a packet, a [`Learner`] watches what they look at. If that is the same for every
//! packet of the flow (addresses, ports, interfaces, the connection), the accepting verdict and the counters
//! are remembered, and later packets of the flow pass the hooks without the functions. What can change a
//! decision is part of its key: hooks, tables, the connection's state, interfaces.

use crate::trace::{Step, Tracer};

/// Decisions that a worker remembers: a power of two. One that another replaces is made again.
const DECISIONS: usize = 16_384;
/// Counters of a decision.
const COUNTERS_MAX: usize = 6;
/// Hooks that a forwarded packet passes.
pub(super) const HOOKS: usize = 3;

/// For which packets a decision holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DecisionKey {
    /// [`Hooks::id`](super::Hooks).
    pub hooks: u64,
    /// [`Tables::generation`](crate::tables::Tables).
    pub tables: u64,
    /// Number of the flow, and the direction in the least significant bit.
    pub flow: u32,
    /// The sequence number of the flow's record, which changes with the connection.
    pub sequence: u32,
    /// ifindex of the input interface.
    pub iif: u32,
}

/// Packets are accepted at each hook, and counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Decision {
    key: DecisionKey,
    /// ifindex of the output interface; 0: no function looks at it.
    pub oif: u32,
    /// Numbers of the counters, those of each hook after those of the hook before.
    counters: [u32; COUNTERS_MAX],
    /// Where the counters of each hook end.
    ends: [u8; HOOKS],
}

impl Decision {
    /// Whether it was made by these hooks, see [`DecisionKey::hooks`].
    #[inline]
    pub fn is_of(&self, hooks: u64) -> bool {
        self.key.hooks == hooks
    }

    /// The counters of a hook, by position among those that a forwarded packet passes.
    pub fn counters(&self, hook: usize) -> &[u32] {
        let end = |hook: usize| self.ends.get(hook).copied().unwrap_or(0);
        let from = hook.checked_sub(1).map_or(0, end);
        self.counters.get(from.into()..end(hook).into()).unwrap_or(&[])
    }
}

/// The decisions of one worker.
#[derive(Debug, Default)]
pub(super) struct Decisions(Box<[Decision]>);

impl Decisions {
    /// Allocates them.
    pub fn new() -> Decisions {
        Decisions((0..DECISIONS).map(|_| Decision::default()).collect())
    }

    /// Whether there is room for any.
    pub fn are_used(&self) -> bool {
        !self.0.is_empty()
    }

    #[inline]
    fn slot(&self, flow: u32) -> usize {
        flow as usize & (DECISIONS - 1)
    }

    /// The decision with this key.
    #[inline]
    pub fn find(&self, key: &DecisionKey) -> Option<Decision> {
        self.0.get(self.slot(key.flow)).filter(|it| it.key == *key).copied()
    }

    /// Remembers what was learnt.
    pub fn store(&mut self, learnt: &Learnt, oif: u32) {
        let slot = self.slot(learnt.key.flow);
        if let Some(decision) = self.0.get_mut(slot) {
            let Learnt { key, counters, ends, .. } = *learnt;
            *decision = Decision { key, oif, counters, ends };
        }
    }
}

/// What is learnt of a packet on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Learnt {
    key: DecisionKey,
    counters: [u32; COUNTERS_MAX],
    ends: [u8; HOOKS],
    /// Number of counters.
    len: usize,
    /// Number of counters that it had passed before.
    before: usize,
}

impl Learnt {
    /// Nothing yet of a packet that has passed counters `before`, at ingress.
    pub fn new(key: DecisionKey, before: usize) -> Learnt {
        Learnt { key, counters: [0; COUNTERS_MAX], ends: [0; HOOKS], len: 0, before }
    }

    /// The functions of a hook have accepted the packet; it has passed these counters since the start. `None`:
    /// there are too many.
    pub fn pass(&mut self, hook: usize, passed: &[(u32, u32)]) -> Option<()> {
        for (counter, _) in passed.get(self.before + self.len..)? {
            *self.counters.get_mut(self.len)? = *counter;
            self.len += 1;
        }
        self.ends.get_mut(hook..)?.fill(self.len as u8);
        Some(())
    }
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
