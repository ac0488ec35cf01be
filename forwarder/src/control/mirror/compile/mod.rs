//! Compiles the mirrored kernel state into the tables that workers read, and publishes them
//! whenever a change is visible to workers.

pub mod family;
pub mod info;
pub mod links;
pub mod rules;
pub mod vlans;
pub mod xfrmis;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::family::{FamilyCompiler, Stale};
use self::info::Ports;
use self::vlans::Devs;
use super::rib::Net;
use super::state::{Family, RouterState};
use crate::fib::Qsbr;
use crate::fib::qsbr::Token;
use crate::neigh::NeighTable;
use crate::tables::{Epochs, Links, Published, Tables, XfrmPolicies};

/// How long a tree update waits for workers to notice new infos. They do so within one burst, some
/// microseconds. A sleeping worker is not waited for, because it checks when it wakes up. Only a
/// worker that lost its CPU during a burst takes longer. After this time such a worker leaves
/// packets with new leaves to the kernel, and is not waited for again until it has finished that
/// burst.
const NOTICE_WAIT_MAX: Duration = Duration::from_millis(100);
/// Ids of replaced routes that may wait for a stalled reader: some 45 MB.
const PENDING_FREES_MAX: usize = 1 << 18;
/// A reader that has not been quiescent for this long is stalled. Replacing a full table frees more
/// ids than [`PENDING_FREES_MAX`] at once, but they wait only briefly.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// A reader is stalled only after this many calls of [`Compiler::reclaim`] too, so that time in
/// which the whole process was stopped does not count.
const STALLED_CALLS: u32 = 10;

/// Prefixes of a family that change together above which all offloaded flows are void.
const CHANGED_MAX: usize = 4096;

/// Parts of the state that changed since the tables were compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Touched {
    /// Interfaces, or which of them are ports.
    pub links: bool,
    /// Addresses.
    pub addrs: bool,
    /// Rules.
    pub rules: bool,
    /// Nexthop objects.
    pub nexthops: bool,
    /// Neighbours, if workers get different entries.
    pub neighs: bool,
    /// Netconf or per-interface sysctls.
    pub conf: bool,
    /// Sysctls of the namespace.
    pub sysctls: bool,
}

/// Compiles and publishes the tables.
#[derive(Debug)]
pub struct Compiler {
    published: Arc<Published<Tables>>,
    qsbr: Arc<Qsbr>,
    current: Tables,
    /// Tables published before that a worker may still hold.
    previous: Vec<Arc<Tables>>,
    fib4: FamilyCompiler<u32>,
    fib6: FamilyCompiler<u128>,
    /// Ports by ifindex.
    pub ports: Ports,
    /// Ports and their VLAN sub-interfaces, as of the last update.
    pub devs: Devs,
    /// [`NOTICE_WAIT_MAX`], except in tests that need late workers.
    pub notice_wait: Duration,
    /// [`PENDING_FREES_MAX`], except in tests that need a lower limit.
    pub pending_frees_max: usize,
    /// Readers that did not become quiescent in time: slot, and token they have not passed.
    late: Vec<(usize, Token)>,
    /// The token that the oldest ids wait for, when this was first seen, and how often since.
    oldest: Option<(Token, Instant, u32)>,
    /// Neighbours that workers used, collected from replaced tables.
    used: HashSet<(u32, IpAddr)>,
    /// Something changed that any offloaded flow may depend on.
    changed_all: bool,
    /// Neighbours changed.
    changed_neighs: bool,
}

impl Compiler {
    /// Creates empty tables for up to `readers` workers.
    pub fn new(readers: usize) -> Compiler {
        let qsbr = Qsbr::new(readers);
        let current = Tables::empty();
        Compiler {
            published: Arc::new(Published::new(Arc::new(current.clone()))),
            current,
            previous: Vec::new(),
            fib4: FamilyCompiler::new(Family::V4, Arc::clone(&qsbr)),
            fib6: FamilyCompiler::new(Family::V6, Arc::clone(&qsbr)),
            qsbr,
            ports: Ports::new(),
            devs: Devs::default(),
            notice_wait: NOTICE_WAIT_MAX,
            pending_frees_max: PENDING_FREES_MAX,
            late: Vec::new(),
            oldest: None,
            used: HashSet::new(),
            changed_all: false,
            changed_neighs: false,
        }
    }

    /// The handle by which workers get the tables.
    pub fn published(&self) -> &Arc<Published<Tables>> {
        &self.published
    }

    /// The handle by which workers report quiescent states.
    pub fn qsbr(&self) -> &Arc<Qsbr> {
        &self.qsbr
    }

    /// The tables published last.
    pub fn tables(&self) -> &Tables {
        &self.current
    }

    /// IPv6 prefixes with several equal routes among which the kernel chooses by input interface,
    /// as (table, prefix). They are left to the kernel.
    pub fn chosen_by_iif(&self, state: &RouterState) -> Vec<(u32, Net<u128>)> {
        self.fib6.chosen_by_iif(&state.routes6)
    }

    /// Why routes could not be compiled.
    pub fn broken(&self) -> Option<String> {
        let broken = self.fib4.broken().or(self.fib6.broken())?;
        Some(broken.to_string())
    }

    /// Updates the tables from the state.
    pub fn update(&mut self, state: &mut RouterState, touched: Touched) {
        let stale = Stale {
            nexthops: touched.links || touched.nexthops || touched.conf,
            rules: touched.rules || touched.links,
        };
        if touched.links {
            self.devs = Devs::new(state, &self.ports);
        }
        self.current.epochs.changing();
        let mut publish = self.update_rest(state, touched);
        // The RIBs are taken out of the state while their bodies are read together with the rest of
        // it.
        let mut rib4 = std::mem::take(&mut state.routes4);
        let mut rib6 = std::mem::take(&mut state.routes6);
        let (dirty4, dirty6) = (rib4.take_dirty(), rib6.take_dirty());
        let prepared4 = self.fib4.prepare(state, &mut rib4, &self.devs, stale);
        let prepared6 = self.fib6.prepare(state, &mut rib6, &self.devs, stale);
        publish |= prepared4.publish | prepared6.publish;
        let mut rearranged = self.fib4.arrange(state, &rib4, &dirty4, stale);
        rearranged |= self.fib6.arrange(state, &rib6, &dirty6, stale);
        publish |= rearranged;
        if publish {
            self.publish();
            self.wait_for_workers();
        }
        let regrown4 = self.fib4.apply(&rib4, &dirty4, prepared4.all);
        let regrown6 = self.fib6.apply(&rib6, &dirty6, prepared6.all);
        let broken = self.broken().is_some();
        self.changed_all |= rearranged || prepared4.changed || prepared6.changed || broken;
        let replaced = self.fib4.reclaim(&mut rib4) | self.fib6.reclaim(&mut rib6);
        if regrown4 || regrown6 || replaced || broken {
            self.publish();
        }
        state.routes4 = rib4;
        state.routes6 = rib6;
        self.void_offloaded();
        self.current.epochs.changed();
    }

    /// Voids the offloaded flows that depend on what has changed. Workers see the change already.
    fn void_offloaded(&mut self) {
        let epochs = &self.current.epochs;
        let (changed4, changed6) = (self.fib4.take_changed(), self.fib6.take_changed());
        // Each prefix shorter than 24 bits, or 48, may cost many increments.
        let has_many = changed4.len().max(changed6.len()) > CHANGED_MAX;
        if std::mem::take(&mut self.changed_all) || has_many {
            epochs.void_all();
        } else {
            changed4.into_iter().for_each(|net| epochs.void4(net.0.into(), net.1));
            let (short, long): (Vec<_>, Vec<_>) =
                changed6.into_iter().partition(|(_, len)| *len < 32);
            if let Some((address, len)) = short.first() {
                // One of them voids all addresses.
                epochs.void6((*address).into(), *len);
            }
            long.into_iter().for_each(|net| epochs.void6(net.0.into(), net.1));
        }
        if std::mem::take(&mut self.changed_neighs) {
            epochs.note_neigh_change();
        }
    }

    /// Sets the IPsec policies, and gives them to the workers.
    pub fn set_policies(&mut self, policies: Arc<XfrmPolicies>) {
        self.current.epochs.changing();
        self.current.xfrm = policies;
        self.publish();
        self.changed_all = true;
        self.void_offloaded();
        self.current.epochs.changed();
    }

    /// Sets the SAs, with the same policies, and gives them to the workers.
    pub fn set_sas(&mut self, policies: Arc<XfrmPolicies>) {
        self.current.xfrm = policies;
        self.publish();
    }

    /// Sets the epochs that changes increment from now on, and gives them to the workers.
    pub fn set_epochs(&mut self, epochs: Arc<Epochs>) {
        self.current.epochs = epochs;
        self.publish();
    }

    /// Frees what no worker holds any more.
    pub fn reclaim(&mut self, state: &mut RouterState, now: Instant) {
        let replaced =
            self.fib4.reclaim(&mut state.routes4) | self.fib6.reclaim(&mut state.routes6);
        if replaced {
            self.publish();
        }
        self.previous.retain(|tables| Arc::strong_count(tables) > 1);
        let oldest = self
            .fib4
            .oldest_pending_free()
            .into_iter()
            .chain(self.fib6.oldest_pending_free())
            .min();
        let (since, turns) = match self.oldest {
            Some((token, since, turns)) if Some(token) == oldest => {
                (since, turns.saturating_add(1))
            }
            _ => (now, 0),
        };
        self.oldest = oldest.map(|token| (token, since, turns));
    }

    /// The number of ids of replaced routes that wait for a stalled reader, and for how long, if
    /// they exceed the limit. They cannot be reused in any case: the reader may resume at any
    /// moment and use them, and a stalled thread cannot be made to release them.
    pub fn overdue(&self, now: Instant) -> Option<(usize, Duration)> {
        let waiting = self.fib4.pending_frees() + self.fib6.pending_frees();
        let (_, since, turns) = self.oldest?;
        let since = now.saturating_duration_since(since);
        let is_stalled = since >= STALLED_AFTER && turns >= STALLED_CALLS;
        (waiting > self.pending_frees_max && is_stalled).then_some((waiting, since))
    }

    /// Neighbours that workers sent to since the last call.
    pub fn take_used(&mut self) -> HashSet<(u32, IpAddr)> {
        self.collect_used();
        std::mem::take(&mut self.used)
    }

    fn collect_used(&mut self) {
        let used = self.current.neigh.iter().filter(|neigh| neigh.take_used());
        self.used.extend(used.map(|neigh| (neigh.oif, neigh.addr)));
    }

    /// Updates everything but routes and rules. Returns whether the difference is visible to
    /// workers.
    fn update_rest(&mut self, state: &RouterState, touched: Touched) -> bool {
        let mut publish = false;
        if touched.links || touched.addrs || touched.conf || touched.rules {
            let links = links::compile(state, &self.ports, &self.devs);
            if !self.current.links.iter().eq(links.iter()) {
                self.current.links = Arc::new(Links::new(links));
                publish = true;
                self.changed_all = true;
            }
        }
        if touched.neighs {
            self.collect_used();
            self.current.neigh = Arc::new(NeighTable::new(links::neighbours(state)));
            publish = true;
            self.changed_neighs = true;
        }
        if touched.sysctls && *self.current.sysctl != state.sysctls {
            self.current.sysctl = Arc::new(state.sysctls.clone());
            publish = true;
            self.changed_all = true;
        }
        publish
    }

    fn publish(&mut self) {
        self.current.fib4 = self.fib4.publishable();
        self.current.fib6 = self.fib6.publishable();
        self.current.generation += 1;
        let old = self.published.publish(Arc::new(self.current.clone()));
        self.previous.push(old);
        self.previous.retain(|tables| Arc::strong_count(tables) > 1);
        self.fib4.published();
        self.fib6.published();
    }

    /// This wait only reduces the number of packets left to the kernel: a worker that was not
    /// waited for finds leaves beyond the end of its infos, or infos that are `NotReady` (see
    /// `family`).
    fn wait_for_workers(&mut self) {
        let qsbr = &self.qsbr;
        let is_late = |slot, token| qsbr.late(token).any(|late| late == slot);
        self.late.retain(|(slot, token)| is_late(*slot, *token));
        let token = qsbr.advance();
        let until = Instant::now() + self.notice_wait;
        loop {
            let awaited = |slot: &usize| self.late.iter().all(|(late, _)| late != slot);
            let missing: Vec<usize> = qsbr.late(token).filter(awaited).collect();
            if missing.is_empty() {
                return;
            }
            if Instant::now() >= until {
                self.late.extend(missing.into_iter().map(|slot| (slot, token)));
                return;
            }
            std::thread::yield_now();
        }
    }
}
