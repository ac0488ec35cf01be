//! What the kernel said, as the tables workers read; published whenever something a worker can see
//! has changed.

pub mod family;
pub mod info;
pub mod links;
pub mod rules;
pub mod vlans;

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
use crate::netfilter::Hooks;
use crate::tables::{Links, Published, Tables};

/// How long a tree update waits for workers to notice new infos. They do within a burst, some
/// microseconds; one that sleeps is not waited for, it looks when it wakes. Only one that lost its
/// CPU in the middle of a burst takes longer; beyond this it leaves such packets to the kernel, and is
/// not waited for again until it has finished that burst.
const NOTICE_WAIT_MAX: Duration = Duration::from_millis(100);
/// Numbers of replaced routes that may wait for a reader that stands still: some 45 MB.
const RETIRING_MAX: usize = 1 << 18;
/// A reader stands still when it has not been quiescent for so long. The numbers of a full table that
/// is replaced at once are more, and wait for a moment.
const STANDSTILL: Duration = Duration::from_secs(2);
/// Nor between so many calls of [`Compiler::reclaim`]: time in which the whole process was stopped is
/// nobody's standstill.
const STANDSTILL_TURNS: u32 = 10;

/// What of the state changed since the tables were compiled.
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
    /// Neighbours, in a way that workers see.
    pub neighs: bool,
    /// Netconf or per-interface sysctls.
    pub conf: bool,
    /// Sysctls of the namespace.
    pub sysctls: bool,
    /// Hook functions.
    pub hooks: bool,
}

/// Keeps the published tables.
#[derive(Debug)]
pub struct Compiler {
    published: Arc<Published<Tables>>,
    qsbr: Arc<Qsbr>,
    current: Tables,
    /// Published before; a worker may still hold them.
    retired: Vec<Arc<Tables>>,
    fib4: FamilyCompiler<u32>,
    fib6: FamilyCompiler<u128>,
    /// Which interfaces are ports.
    pub ports: Ports,
    /// They and their VLAN sub-interfaces, as of the last update.
    pub devs: Devs,
    /// [`NOTICE_WAIT_MAX`], but for a test that wants late workers.
    pub notice_wait: Duration,
    /// [`RETIRING_MAX`], but for a test that wants few.
    pub retiring_max: usize,
    /// Readers that were waited for in vain: slots, and what they have not passed.
    late: Vec<(usize, Token)>,
    /// What the oldest numbers wait for, since when that is known, and how often it was found since.
    oldest: Option<(Token, Instant, u32)>,
    /// Neighbours that workers used, from tables that were replaced.
    used: HashSet<(u32, IpAddr)>,
}

impl Compiler {
    /// Tables that know nothing, for up to `readers` workers.
    pub fn new(readers: usize) -> Compiler {
        let qsbr = Qsbr::new(readers);
        let current = Tables::empty();
        Compiler {
            published: Arc::new(Published::new(Arc::new(current.clone()))),
            current,
            retired: Vec::new(),
            fib4: FamilyCompiler::new(Family::V4, Arc::clone(&qsbr)),
            fib6: FamilyCompiler::new(Family::V6, Arc::clone(&qsbr)),
            qsbr,
            ports: Ports::new(),
            devs: Devs::default(),
            notice_wait: NOTICE_WAIT_MAX,
            retiring_max: RETIRING_MAX,
            late: Vec::new(),
            oldest: None,
            used: HashSet::new(),
        }
    }

    /// Where workers find the tables.
    pub fn published(&self) -> &Arc<Published<Tables>> {
        &self.published
    }

    /// Where workers announce that they hold nothing.
    pub fn qsbr(&self) -> &Arc<Qsbr> {
        &self.qsbr
    }

    /// The tables as published last.
    pub fn tables(&self) -> &Tables {
        &self.current
    }

    /// Replaces the hook functions with the next publication.
    pub fn set_hooks(&mut self, hooks: Arc<Hooks>) {
        self.current.hooks = hooks;
    }

    /// IPv6 prefixes with several equal routes among which the incoming interface chooses: table and
    /// prefix. They are left to the kernel.
    pub fn chosen_by_iif(&self, state: &RouterState) -> Vec<(u32, Net<u128>)> {
        self.fib6.chosen_by_iif(&state.routes6)
    }

    /// What could not be compiled.
    pub fn broken(&self) -> Option<String> {
        let broken = self.fib4.broken().or(self.fib6.broken())?;
        Some(broken.to_string())
    }

    /// Brings the tables in step with the state.
    pub fn update(&mut self, state: &mut RouterState, touched: Touched) {
        let stale = Stale {
            nexthops: touched.links || touched.nexthops || touched.conf,
            rules: touched.rules || touched.links,
        };
        if touched.links {
            self.devs = Devs::new(state, &self.ports);
        }
        let mut publish = self.update_rest(state, touched);
        // The RIBs stand apart for as long as their bodies are read beside the rest.
        let mut rib4 = std::mem::take(&mut state.routes4);
        let mut rib6 = std::mem::take(&mut state.routes6);
        let (dirty4, dirty6) = (rib4.take_dirty(), rib6.take_dirty());
        let prepared4 = self.fib4.prepare(state, &mut rib4, &self.devs, stale);
        let prepared6 = self.fib6.prepare(state, &mut rib6, &self.devs, stale);
        publish |= prepared4.publish | prepared6.publish;
        publish |= self.fib4.arrange(state, &rib4, &dirty4, stale);
        publish |= self.fib6.arrange(state, &rib6, &dirty6, stale);
        if publish {
            self.publish();
            self.wait_for_workers();
        }
        let regrown4 = self.fib4.apply(&rib4, &dirty4, prepared4.all);
        let regrown6 = self.fib6.apply(&rib6, &dirty6, prepared6.all);
        let broken = self.broken().is_some();
        let replaced = self.fib4.reclaim(&mut rib4) | self.fib6.reclaim(&mut rib6);
        if regrown4 || regrown6 || replaced || broken {
            self.publish();
        }
        state.routes4 = rib4;
        state.routes6 = rib6;
    }

    /// Frees what workers have let go of.
    pub fn reclaim(&mut self, state: &mut RouterState, now: Instant) {
        let replaced =
            self.fib4.reclaim(&mut state.routes4) | self.fib6.reclaim(&mut state.routes6);
        if replaced {
            self.publish();
        }
        self.retired.retain(|tables| Arc::strong_count(tables) > 1);
        let oldest =
            self.fib4.oldest_retiring().into_iter().chain(self.fib6.oldest_retiring()).min();
        let (since, turns) = match self.oldest {
            Some((token, since, turns)) if Some(token) == oldest => {
                (since, turns.saturating_add(1))
            }
            _ => (now, 0),
        };
        self.oldest = oldest.map(|token| (token, since, turns));
    }

    /// Numbers of replaced routes that wait for a reader which stands still, when they are more than
    /// may be kept, and for how long. They cannot be used again whatever is done: the reader may go on
    /// any moment and meet them, and a thread that stands still cannot be made to let go of them.
    pub fn overdue(&self, now: Instant) -> Option<(usize, Duration)> {
        let waiting = self.fib4.retiring() + self.fib6.retiring();
        let (_, since, turns) = self.oldest?;
        let since = now.saturating_duration_since(since);
        let stands = since >= STANDSTILL && turns >= STANDSTILL_TURNS;
        (waiting > self.retiring_max && stands).then_some((waiting, since))
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

    /// Everything but routes and rules. Whether workers can see a difference.
    fn update_rest(&mut self, state: &RouterState, touched: Touched) -> bool {
        let mut publish = touched.hooks;
        if touched.links || touched.addrs || touched.conf {
            let links = links::compile(state, &self.ports, &self.devs);
            if !self.current.links.iter().eq(links.iter()) {
                self.current.links = Arc::new(Links::new(links));
                publish = true;
            }
        }
        if touched.neighs {
            self.collect_used();
            self.current.neigh = Arc::new(NeighTable::new(links::neighbours(state)));
            publish = true;
        }
        if touched.sysctls && *self.current.sysctl != state.sysctls {
            self.current.sysctl = Arc::new(state.sysctls.clone());
            publish = true;
        }
        publish
    }

    fn publish(&mut self) {
        self.current.fib4 = self.fib4.publishable();
        self.current.fib6 = self.fib6.publishable();
        self.current.generation += 1;
        let old = self.published.publish(Arc::new(self.current.clone()));
        self.retired.push(old);
        self.retired.retain(|tables| Arc::strong_count(tables) > 1);
        self.fib4.published();
        self.fib6.published();
    }

    /// Nothing depends on it but how many packets are left to the kernel: one that was not waited for
    /// meets leaves beyond the end of its infos, or infos that say `NotReady` (see `family`).
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
