//! Where packets of carried flows leave: an exact-match cache (EMC of Open vSwitch) of the last stages' results.
//!
//! An entry holds while tables, routes and hooks are the same, and while the flow's record is not written; and for a
//! short time, so that packets without it keep the neighbour marked as used.

use super::dst::{Dst, HhCache};
use crate::netfilter::Hooks;
use crate::netfilter::conntrack::{FlowKey, FoundFlow, Rewrite4};
use crate::tables::Tables;

/// Entries of a worker: a power of two. One that another replaces is made again.
const ENTRIES: usize = 16_384;
/// Counters of an entry; flows with more are not entered.
const COUNTERS_MAX: usize = 4;
/// How long an entry holds, nanoseconds.
const HOLDS_NS: u64 = 250_000_000;
/// If more packets of a burst were not found, flows of the next one are looked up ahead.
const MISSES_MAX: usize = 8;

/// Where packets leave.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
pub(super) struct Entry {
    key: FlowKey,
    /// The flow.
    pub flow: FoundFlow,
    /// [`FlowCache::epoch`] when it was entered; 0: the entry is empty.
    epoch: u32,
    /// ifindex of the input interface.
    iif: u32,
    /// Path MTU, octets.
    mtu: u32,
    /// The port that frames leave by.
    pub port: u16,
    /// The link-layer addresses.
    pub hh: HhCache,
    /// Until when it holds, on the worker's clock.
    until_ns: u64,
    /// What counts the packets.
    counters: [u32; COUNTERS_MAX],
    len: u16,
    has_rewrite: bool,
    rewrite: Rewrite4,
}

const _: () = assert!(size_of::<Entry>() == 128, "two cache lines");

impl Entry {
    /// What is written into the packets, if that is prepared.
    #[inline]
    pub fn rewrite(&self) -> Option<&Rewrite4> {
        self.has_rewrite.then_some(&self.rewrite)
    }

    /// What counts the packets.
    #[inline]
    pub fn counters(&self) -> &[u32] {
        self.counters.get(..self.len as usize).unwrap_or(&[])
    }

    /// Whether a packet of this length, from the network header on, is sent as the entry says.
    #[inline]
    pub fn is_for(&self, len: usize, iif: u32, now_ns: u64) -> bool {
        self.iif == iif && now_ns < self.until_ns && len <= self.mtu as usize
    }
}

/// What entries depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Basis {
    tables: u64,
    hooks: u64,
    /// How often routes have changed in place: tables that are published before are the same.
    routes: [u64; 2],
}

impl Basis {
    /// Of the entries that are made after this call.
    #[inline]
    pub fn of(tables: &Tables, hooks: &Hooks) -> Basis {
        let routes = [tables.fib4.changes(), tables.fib6.changes()];
        Basis { tables: tables.generation, hooks: hooks.id(), routes }
    }
}

/// The entries of one worker.
#[derive(Debug)]
pub(super) struct FlowCache {
    entries: Box<[Entry]>,
    /// What entries depend on.
    basis: Basis,
    /// Changes with the basis.
    epoch: u32,
    /// How often the basis has changed.
    changes: u64,
    seed: u64,
    /// Packets of the current burst that passed without an entry.
    misses: usize,
}

impl FlowCache {
    /// Allocates an empty one. `seed`: random, so that nobody can choose flows that replace each other.
    pub fn new(seed: u64) -> FlowCache {
        let entries = (0..ENTRIES).map(|_| Entry::default()).collect();
        FlowCache { entries, basis: Basis::default(), epoch: 1, changes: 1, seed, misses: 0 }
    }

    /// A burst begins. Returns whether many packets of the last one were not found.
    #[inline]
    pub fn begin(&mut self, basis: Basis) -> bool {
        if self.basis != basis {
            self.basis = basis;
            self.forget();
        }
        std::mem::take(&mut self.misses) > MISSES_MAX
    }

    /// Increases when tables, routes or hooks change. At least 1.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    #[cold]
    fn forget(&mut self) {
        self.changes += 1;
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.entries.fill(Entry::default());
            self.epoch = 1;
        }
    }

    #[inline]
    fn slot(&self, key: &FlowKey) -> usize {
        (key.hash(self.seed) >> 32) as usize & (ENTRIES - 1)
    }

    /// The entry of packets with this key.
    #[inline]
    pub fn get(&self, key: &FlowKey) -> Option<&Entry> {
        let entry = self.entries.get(self.slot(key))?;
        (entry.epoch == self.epoch && entry.key.is_same(key)).then_some(entry)
    }

    /// A packet with this key was not found, and passed to `dst`: later ones leave the same way.
    #[inline(never)]
    pub fn enter(
        &mut self,
        (key, flow, rewrite): (&FlowKey, FoundFlow, Option<Rewrite4>),
        iif: u32,
        dst: &Dst<'_>,
        counted: &[u32],
        now_ns: u64,
    ) {
        self.misses += 1;
        let (Some(hh), false) = (dst.hh, dst.redirect || dst.dev.ifindex == iif) else { return };
        let mut counters = [0; COUNTERS_MAX];
        let Some(to) = counters.get_mut(..counted.len()) else { return };
        to.copy_from_slice(counted);
        let slot = self.slot(key);
        if let Some(entry) = self.entries.get_mut(slot) {
            *entry = Entry {
                key: *key,
                flow,
                epoch: self.epoch,
                iif,
                mtu: dst.mtu,
                port: dst.port,
                hh,
                until_ns: now_ns + HOLDS_NS,
                counters,
                len: counted.len() as u16,
                has_rewrite: rewrite.is_some(),
                rewrite: rewrite.unwrap_or_default(),
            };
        }
    }
}
