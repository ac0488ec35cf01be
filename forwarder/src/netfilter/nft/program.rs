//! The compiled ruleset, and the counters of packets that passed it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::netfilter::{Hook, priority};
use crate::stats::Counter;

use super::classify::Classifier;
use super::device::DeviceChain;
use super::op::{Flow, Op};
use super::ruleset::Family;
use super::set::CompiledSet;

/// Maximum number of counters that one packet may pass in one journal; a packet that passes more is left to
/// the kernel.
pub const JOURNAL_MAX: usize = 256;

/// A ruleset as workers run it: immutable, shared by all of them. [`super::compile()`] makes it.
#[derive(Debug, Default)]
pub struct Program {
    pub(super) bases: Vec<Base>,
    /// For IPv4 and IPv6, for each hook: base chains in the order in which they run.
    pub(super) hooks: [[Vec<BaseChainId>; 5]; 2],
    /// Base chains at the ingress of interfaces, in the order in which they run.
    pub(super) ingress: Vec<DeviceChain>,
    /// Base chains at the egress of interfaces, which the kernel runs.
    pub(super) egress: Vec<DeviceChain>,
    pub(super) chains: Vec<CompiledChain>,
    /// The rules of all chains.
    pub(super) steps: Vec<Step>,
    /// The expressions of all rules.
    pub(super) ops: Vec<Op>,
    pub(super) classifiers: Vec<Classifier>,
    pub(super) sets: Vec<CompiledSet>,
    pub(super) counters: Vec<CounterPlace>,
    pub(super) reasons: Vec<String>,
    pub(super) unsupported: Vec<String>,
    pub(super) kernel_rules: Vec<KernelRule>,
    /// For IPv4 and IPv6: what uses connection tracking.
    pub(super) conntrack: [Option<String>; 2],
    /// For IPv4 and IPv6: what uses it at the hooks of packets to and from the router.
    pub(super) local_conntrack: [Option<String>; 2],
    /// For IPv4 and IPv6: there are chains of type nat.
    pub(super) translates: [bool; 2],
    /// See [`Program::sets_marks`].
    pub(super) sets_marks: bool,
}

/// Which packets of a family rules use connection tracking for, of those that workers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tracking {
    /// None.
    #[default]
    Off,
    /// Those at input and output: IPsec packets to and from the router.
    Local,
    /// All.
    All,
}

/// A base chain of a [`Program`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChainId(pub(super) u32);

#[derive(Debug)]
pub(super) struct Base {
    pub(super) chain: u32,
    pub(super) policy_drops: bool,
    pub(super) priority: i32,
    /// Type `route`: packets whose mark changes are routed again, which the kernel does.
    pub(super) is_route: bool,
    pub(super) name: String,
}

/// Steps of a chain, from `start` to before `end`.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompiledChain {
    pub(super) start: u32,
    pub(super) end: u32,
}

/// A rule: operations from `start` to before `end`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) start: u32,
    pub(super) end: u32,
    /// The classifier that it is part of, or [`NO_CLASSIFIER`].
    pub(super) classifier: u32,
}

pub(super) const NO_CLASSIFIER: u32 = u32::MAX;

/// The verdict of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NftVerdict {
    /// NF_ACCEPT.
    Accept,
    /// NF_DROP.
    Drop,
    /// The kernel must decide; [`Program::reason`] has the reason with this number.
    Kernel(u32),
}

/// A counter of the ruleset: where it is, and what it was when the ruleset was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterPlace {
    /// Family and name of the table, for example `inet filter`.
    pub table: String,
    /// Handle of the table.
    pub table_handle: u64,
    /// What it is.
    pub kind: CounterKind,
    /// Packets when the ruleset was read.
    pub packets: u64,
    /// Octets when the ruleset was read.
    pub octets: u64,
}

/// A counter expression, or a named counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CounterKind {
    /// An expression of a rule.
    Rule {
        /// The chain.
        chain: String,
        /// The rule's handle.
        handle: u64,
        /// Position of the expression in the rule, from 0.
        position: usize,
    },
    /// An object with this name.
    Object(String),
}

/// A rule with an expression that is left to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelRule {
    /// Family and name of the table, for example `inet filter`.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle.
    pub handle: u64,
    /// The first such expression: what it is, or why it is left to the kernel.
    pub text: String,
    /// The number of its operation.
    pub(super) op: u32,
}

impl Program {
    /// The base chains at a hook, in the order in which the kernel runs them: by ascending priority. Of
    /// chains with the same priority the one registered last runs first (`nf_hook_entries_grow`), which is
    /// taken to be the last one of the ruleset. None for families other than IPv4 and IPv6.
    #[inline]
    pub fn chains(&self, family: Family, hook: Hook) -> &[BaseChainId] {
        match family {
            Family::Ip => &self.hooks[0][hook as usize],
            Family::Ip6 => &self.hooks[1][hook as usize],
            _ => &[],
        }
    }

    /// The priority of a base chain.
    pub fn priority(&self, chain: BaseChainId) -> i32 {
        self.bases.get(chain.0 as usize).map_or(0, |base| base.priority)
    }

    /// The hook of a base chain; `None`: it is at the ingress or egress of interfaces.
    pub fn hook(&self, chain: BaseChainId) -> Option<Hook> {
        let at =
            |hook: &Hook| self.hooks.iter().any(|hooks| hooks[*hook as usize].contains(&chain));
        Hook::ALL.into_iter().find(at)
    }

    /// The name of a base chain, for example `inet filter FORWARD`.
    pub fn chain_name(&self, chain: BaseChainId) -> &str {
        self.bases.get(chain.0 as usize).map_or("", |base| &base.name)
    }

    /// Base chains at prerouting, forward and postrouting that the program does not include, in words. Chains
    /// of dormant tables are not included and not listed.
    pub fn unsupported(&self) -> &[String] {
        &self.unsupported
    }

    /// Whether only this packet was left to the kernel, and later ones like it may not be.
    pub fn is_transient(&self, reason: u32) -> bool {
        // The kernel writes the mark, and tells it.
        reason == EXPIRES || CT_MARK == Flow::Kernel(reason)
    }

    /// Why a packet was left to the kernel.
    pub fn reason(&self, number: u32) -> &str {
        self.reasons.get(number as usize).map_or("unknown", String::as_str)
    }

    /// Rules with an expression that is left to the kernel, reachable from a base chain at prerouting,
    /// forward or postrouting.
    pub fn kernel_rules(&self) -> impl Iterator<Item = &KernelRule> {
        self.kernel_rules.iter()
    }

    /// The first rule that uses connection tracking, reachable from a base chain at prerouting, forward or
    /// postrouting: table, chain, handle and expression.
    pub fn uses_conntrack(&self) -> Option<String> {
        self.conntrack.iter().flatten().next().cloned()
    }

    /// Why workers cannot run the program on IPsec packets, which pass it with and without their protection.
    pub fn ipsec_obstacle(&self) -> Option<&'static str> {
        self.has_device_chains()
            .then_some("chains of interfaces, which see a packet once more when it was opened")
    }

    /// Whether the kernel tracks connections for this ruleset: packets of flows that are not carried are the
    /// kernel's.
    pub fn tracks_connections(&self) -> bool {
        self.conntrack.iter().any(Option::is_some)
    }

    /// Of IPv4 and of IPv6, which packets it does so of that workers have.
    pub fn tracking(&self) -> [Tracking; 2] {
        let of = |at: usize| match (&self.conntrack[at], &self.local_conntrack[at]) {
            (Some(_), _) => Tracking::All,
            (None, Some(_)) => Tracking::Local,
            (None, None) => Tracking::Off,
        };
        [of(0), of(1)]
    }

    /// Whether it does so of IPv4 and of IPv6.
    pub fn tracked_families(&self) -> [bool; 2] {
        self.conntrack.each_ref().map(Option::is_some)
    }

    /// Chains with the priorities of NAT at its hooks, of families with NAT: whether they see packets before or after it is
    /// not known.
    pub fn beside_nat(&self) -> Vec<BaseChainId> {
        let mut found = Vec::new();
        for (hooks, _) in self.hooks.iter().zip(self.translates).filter(|(_, is)| *is) {
            let at = |hook: Hook, with: i32| {
                let chains = hooks[hook as usize].iter().copied();
                chains.filter(move |chain| self.priority(*chain) == with)
            };
            let sides = at(Hook::PreRouting, priority::NAT_DST)
                .chain(at(Hook::PostRouting, priority::NAT_SRC));
            for chain in sides {
                if !found.contains(&chain) {
                    found.push(chain);
                }
            }
        }
        found
    }

    /// Whether a rule sets the mark of packets that userspace forwards.
    pub fn sets_marks(&self) -> bool {
        self.sets_marks
    }

    /// Whether the kernel translates packets of connections with NAT: there is a chain of type nat for the
    /// family, at any hook.
    pub fn translates(&self, family: Family) -> bool {
        self.translates[usize::from(family == Family::Ip6)]
    }

    /// The first rule of a chain, and the end of its rules.
    #[inline]
    pub(super) fn steps_of(&self, chain: u32) -> Option<(u32, u32)> {
        let chain = self.chains.get(chain as usize)?;
        Some((chain.start, chain.end))
    }

    /// All counters; a [`CounterPage`] has them in this order.
    pub fn counters(&self) -> &[CounterPlace] {
        &self.counters
    }
}

/// The counters that a packet has passed, until it is known that its way is not the kernel's.
#[derive(Debug)]
pub struct Journal {
    entries: Vec<(u32, u32)>,
}

impl Journal {
    /// Allocates an empty journal.
    pub fn new() -> Journal {
        Journal { entries: Vec::with_capacity(JOURNAL_MAX) }
    }

    /// Empties it for the next packet.
    #[inline]
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Whether no counter was passed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The counters passed, as positions in [`Program::counters`], with the packet's octets.
    pub fn entries(&self) -> &[(u32, u32)] {
        &self.entries
    }

    /// Adds an entry; `false`: it is full.
    #[inline]
    pub(in crate::netfilter) fn push(&mut self, counter: u32, octets: u32) -> bool {
        let room = self.entries.len() < JOURNAL_MAX;
        if room {
            self.entries.push((counter, octets));
        }
        room
    }
}

impl Default for Journal {
    fn default() -> Self {
        Journal::new()
    }
}

/// A worker's counters for one program. Written by the worker, read by others.
#[derive(Debug)]
pub struct CounterPage {
    counters: Vec<Arc<WorkerCounter>>,
}

/// One counter of one worker, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct WorkerCounter {
    packets: Counter,
    octets: Counter,
}

impl CounterPage {
    /// Counters at zero for a program.
    pub fn new(program: &Program) -> CounterPage {
        CounterPage { counters: program.counters.iter().map(|_| Arc::default()).collect() }
    }

    /// Counters for a program that replaces another one: those of rules and objects that both have
    /// continue, also while a worker still runs the other program.
    pub fn continuing(&self, of: &Program, program: &Program) -> CounterPage {
        let places = of.counters.iter().map(|place| (place.table_handle, &place.kind));
        let known: HashMap<_, _> = places.zip(&self.counters).collect();
        let counter = |place: &CounterPlace| {
            known
                .get(&(place.table_handle, &place.kind))
                .map_or_else(Arc::default, |it| Arc::clone(it))
        };
        CounterPage { counters: program.counters.iter().map(counter).collect() }
    }

    /// Adds a packet of this length to the counter at this position in [`Program::counters`].
    #[inline]
    pub fn count(&self, counter: u32, octets: u64) {
        self.count_many(counter, 1, octets);
    }

    /// Adds several packets of this length together.
    #[inline]
    pub fn count_many(&self, counter: u32, packets: u64, octets: u64) {
        if let Some(counter) = self.counters.get(counter as usize) {
            counter.packets.add(packets);
            counter.octets.add(octets);
        }
    }

    /// Adds what a packet has passed.
    pub fn commit(&self, journal: &Journal) {
        for (counter, octets) in &journal.entries {
            self.count(*counter, u64::from(*octets));
        }
    }

    /// Packets and octets of the counter at this position in [`Program::counters`]; zero if there is none.
    pub fn get(&self, counter: usize) -> (u64, u64) {
        self.counters.get(counter).map_or((0, 0), |it| (it.packets.get(), it.octets.get()))
    }
}

/// Why a rule that writes addresses or ports is left to the kernel.
pub const WRITES_TUPLE_TEXT: &str =
    "a rule changes addresses or ports where connections are tracked";

/// Reasons that do not depend on the ruleset, in the order of their numbers.
pub(super) const FIXED_REASONS: [&str; 21] = [
    "the packet passes too many counters",
    "the packet has IPv4 options, which a rule searches",
    "a chain of type route changes the mark",
    "the chain is unknown",
    "chains refer to each other in a loop",
    "the packet is a fragment",
    "an element of a set is about to expire",
    "the packet's connection is not known",
    "the kernel may choose another route for a rule",
    "the mark of the connection changes",
    "the packet's transport header is not known",
    "the packet is a jumbogram, whose length a rule compares",
    "the packet has IPv6 extension headers, which a rule searches",
    "the order of chains at ingress is not known",
    "a rule reads the header of a VLAN",
    "an expression that differs at ingress",
    WRITES_TUPLE_TEXT,
    "a rule changes a field that only the kernel changes",
    "a rule writes beyond the headers",
    "a rule changes packets of the router itself",
    "a rule changes the type of service, of which the kernel makes the priority in the VLAN tag",
];

pub(super) const TOO_MANY_COUNTERS: Flow = Flow::Kernel(0);
pub(super) const IPV4_OPTIONS: Flow = Flow::Kernel(1);
pub(super) const REROUTE: u32 = 2;
pub(super) const UNKNOWN_CHAIN: u32 = 3;
pub(super) const LOOP: u32 = 4;
/// Whether the kernel's rules see a fragment, or the packet after its reassembly (nf_defrag_ipv4,
/// nf_defrag_ipv6), depends on what else uses connection tracking; and whether they take the payload of a
/// later fragment for a transport header, on its version.
pub(super) const FRAGMENT: u32 = 5;
pub(super) const EXPIRES: u32 = 6;
pub(super) const NO_CONNECTION: u32 = 7;
pub(super) const ROUTE: Flow = Flow::Kernel(8);
pub(super) const CT_MARK: Flow = Flow::Kernel(9);
pub(super) const NO_TRANSPORT_HEADER: u32 = 10;
pub(super) const NO_TRANSPORT: Flow = Flow::Kernel(NO_TRANSPORT_HEADER);
pub(super) const JUMBOGRAM: Flow = Flow::Kernel(11);
pub(super) const IPV6_EXTENSIONS: Flow = Flow::Kernel(12);
pub(super) const ORDER: u32 = 13;
pub(super) const VLAN_HEADER: u32 = 14;
pub(super) const DIFFERS: u32 = 15;
pub(super) const WRITES_TUPLE: u32 = 16;
pub(super) const WRITES_FIELD: Flow = Flow::Kernel(17);
pub(super) const WRITES_FAR: Flow = Flow::Kernel(18);
pub(super) const WRITES_OWN: Flow = Flow::Kernel(19);
pub(super) const WRITES_PRIORITY: Flow = Flow::Kernel(20);
