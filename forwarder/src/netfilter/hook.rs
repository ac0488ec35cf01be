//! Hook points, hook functions and their verdicts (include/linux/netfilter.h, net/netfilter/core.c).
//!
//! A program that uses the library implements [`NfHook`] and registers it ([`NetHooks`]). Every worker has
//! a state of its own for each function ([`HookStates`]), so that functions need no locks.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::conntrack::{Ct, FlowTable, nf_nat_packet};
use super::decision::{Basis, Decision, Learnt};
use super::hook_states::HookStates;
use super::nft::xfrm::SaInfo;
use super::nft::{Around, BaseChainId, Family, Nft, NftVerdict, Observer, Tracking, Transport};
use super::traced;
use crate::skb::SkBuff;
use crate::stats::WorkerStats;
use crate::tables::{Link, Tables};
use crate::trace::Step;
use crate::trace::step::Stage;

/// NF_INET_*: the position of a hook in the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Every packet received, before it is routed.
    PreRouting,
    /// Packets for this host. They are handed to the kernel, which has its own functions at this hook: functions
    /// run here for IPsec packets only, which are opened. Functions that a program registers do not.
    LocalIn,
    /// Packets that are forwarded.
    Forward,
    /// The router's own packets: ICMP errors, what hook functions answer with, and packets that IPsec protects.
    LocalOut,
    /// Every packet about to be sent.
    PostRouting,
}

impl Hook {
    /// All five, in numerical order.
    pub const ALL: [Hook; 5] =
        [Hook::PreRouting, Hook::LocalIn, Hook::Forward, Hook::LocalOut, Hook::PostRouting];
}

/// NF_IP_PRI_*: functions with lower numbers run earlier (include/uapi/linux/netfilter_ipv4.h).
pub mod priority {
    /// Before all others.
    pub const FIRST: i32 = i32::MIN;
    /// Before fragments are reassembled for connection tracking.
    pub const RAW_BEFORE_DEFRAG: i32 = -450;
    /// Reassembly for connection tracking.
    pub const CONNTRACK_DEFRAG: i32 = -400;
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// Connection tracking.
    pub const CONNTRACK: i32 = -200;
    /// Changes of packets.
    pub const MANGLE: i32 = -150;
    /// Translation of destinations.
    pub const NAT_DST: i32 = -100;
    /// Filters.
    pub const FILTER: i32 = 0;
    /// Mandatory access control.
    pub const SECURITY: i32 = 50;
    /// Translation of sources.
    pub const NAT_SRC: i32 = 100;
    /// Confirmation of connections.
    pub const CONNTRACK_CONFIRM: i32 = i32::MAX;
    /// After all others.
    pub const LAST: i32 = i32::MAX;
}

/// The verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// NF_DROP: it is dropped, as NETFILTER_DROP; with an answer, if the function asked for one
    /// ([`HookCtx::answer`]).
    Drop,
    /// NF_ACCEPT: continue with the next hook function, then with the data path.
    Accept,
    /// NF_STOLEN: the function has taken what it needs; the frame is freed and counts as NETFILTER_STOLEN.
    Stolen,
    /// NF_QUEUE, with the number of the queue. Only the kernel has listeners on queues; here the packet is
    /// dropped, as in the kernel when nobody listens.
    Queue(u16),
    /// NF_REPEAT: the function is called again, at most [`REPEATS_MAX`] times; after that the packet is
    /// dropped.
    Repeat,
    /// Not a verdict of the kernel: only the kernel can decide. The packet is handed to the kernel as it
    /// was received, whatever hook functions changed in the first
    /// [`RESTORED`](crate::pipeline::RESTORED) octets from the network header.
    Punt,
}

/// How often a function may request to be called again for a packet.
pub const REPEATS_MAX: usize = 16;

/// Where a packet is (`nf_hook_state`), and what is known of its headers.
#[derive(Debug, Clone, Copy)]
pub struct HookState<'a> {
    /// The hook point.
    pub hook: Hook,
    /// [`Family::Ip`] or [`Family::Ip6`].
    pub pf: Family,
    /// The input interface; `None`: the router's own packet.
    pub iif: Option<&'a Link>,
    /// The output interface; `None`: not yet known.
    pub oif: Option<&'a Link>,
    /// The transport header. Read again after a function has run.
    pub transport: Transport,
}

/// What a hook function can use besides the packet.
#[derive(Debug)]
pub struct HookCtx<'a> {
    /// The worker's clock, nanoseconds.
    pub now_ns: u64,
    /// The tables that the control thread published last.
    pub tables: &'a Tables,
    /// The worker's counters.
    pub stats: &'a WorkerStats,
    /// The worker's number.
    pub worker: usize,
    /// Set by a function that drops the packet: what its sender gets.
    pub answer: Option<Answer>,
}

/// What the sender of a dropped packet gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// An ICMP or ICMPv6 error of this type and code; the family is the packet's. It is subject to the
    /// rate limits and the rules for ICMP errors.
    Icmp {
        /// ICMP type.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
    },
}

/// A hook function. It must not block, allocate or panic.
pub trait NfHook: Send + Sync + 'static {
    /// What the function keeps between packets, one per worker.
    type State: Send + 'static;

    /// The state of one worker at the start. Runs on the thread that registers the function.
    fn state(&self, worker: usize) -> Self::State;

    /// Decides about a packet; it may change it.
    fn hook(
        &self,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        ctx: &mut HookCtx<'_>,
        state: &mut Self::State,
    ) -> Verdict;
}

/// [`NfHook`] without its type of state.
trait AnyHook: Send + Sync {
    fn any_state(&self, worker: usize) -> Box<dyn Any + Send>;

    fn run(
        &self,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        ctx: &mut HookCtx<'_>,
        state: &mut (dyn Any + Send),
    ) -> Verdict;
}

impl<F: NfHook> AnyHook for F {
    fn any_state(&self, worker: usize) -> Box<dyn Any + Send> {
        Box::new(self.state(worker))
    }

    fn run(
        &self,
        skb: &mut SkBuff,
        at: &HookState<'_>,
        ctx: &mut HookCtx<'_>,
        state: &mut (dyn Any + Send),
    ) -> Verdict {
        match state.downcast_mut() {
            Some(state) => self.hook(skb, at, ctx, state),
            // Not reachable: the state was made by this function.
            None => Verdict::Drop,
        }
    }
}

/// `nf_hook_ops`: a hook function and where it runs.
#[derive(Clone)]
pub struct NfHookOps {
    hook: Hook,
    pf: Option<Family>,
    priority: i32,
    function: Arc<dyn AnyHook>,
}

impl NfHookOps {
    /// `function` at `hook`, for IPv4 and IPv6; see [`priority`].
    pub fn new(hook: Hook, priority: i32, function: impl NfHook) -> NfHookOps {
        NfHookOps { hook, pf: None, priority, function: Arc::new(function) }
    }

    /// For one family only: [`Family::Ip`] or [`Family::Ip6`].
    #[must_use]
    pub fn only(self, pf: Family) -> NfHookOps {
        NfHookOps { pf: Some(pf), ..self }
    }
}

impl std::fmt::Debug for NfHookOps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NfHookOps { hook, pf, priority, .. } = self;
        write!(f, "NfHookOps({hook:?}, {pf:?}, priority {priority})")
    }
}

/// A registered function.
#[derive(Debug, Clone)]
pub(super) struct Registered {
    pub id: HookId,
    pub ops: NfHookOps,
    /// By worker: it has a state for the function.
    pub has_state: Arc<[AtomicBool]>,
}

/// Identifies a registered function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HookId(pub(super) u64);

/// What runs at a hook point.
enum Function {
    /// `nf_conntrack_in`, of packets received, or `ipv4_conntrack_local`, of the router's own.
    Conntrack,
    /// `nf_nat_inet_fn`.
    Nat,
    /// A base chain of the nftables ruleset.
    Nft(BaseChainId),
    /// A registered function, and the position of its state.
    Registered(Arc<dyn AnyHook>, usize),
}

struct Entry {
    priority: i32,
    function: Function,
}

/// The functions of every hook point, as workers read them.
#[derive(Default)]
pub struct Hooks {
    /// By family and hook.
    chains: [[Vec<Entry>; 5]; 2],
    /// Number of functions, of all hooks.
    len: usize,
    /// The nftables ruleset, if it is followed.
    pub(super) nft: Option<Arc<Nft>>,
    /// The flows that are carried, if the ruleset tracks connections.
    flows: Option<Arc<FlowTable>>,
    /// By family: which packets the ruleset tracks connections of.
    tracking: [Tracking; 2],
    /// By family: packets of carried connections with NAT are translated.
    translates: [bool; 2],
    /// By family: at which hook the functions have decided, if what they do with packets of a flow may be remembered.
    decided_at: [Option<Hook>; 2],
    /// There are functions that a program has registered.
    have_registered: bool,
    /// Identifies them in the process; 0: no functions.
    pub(super) id: u64,
    /// By worker: the states of registered functions, until the worker takes them.
    pub(super) states: Box<[std::sync::Mutex<Vec<StateSlot>>]>,
}

/// A function's state in one worker.
pub(super) struct StateSlot {
    pub(super) id: HookId,
    /// `None`: the worker has it already.
    pub(super) state: Option<Box<dyn Any + Send>>,
    pub(super) has_state: Arc<[AtomicBool]>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ipv4 = |hook: &Hook| (*hook, self.chains[0][*hook as usize].len());
        f.debug_map().entries(Hook::ALL.iter().map(ipv4)).finish()
    }
}

/// Position of a family in [`Hooks::chains`].
#[inline]
fn family_index(pf: Family) -> usize {
    usize::from(pf == Family::Ip6)
}

impl Hooks {
    /// The functions `registered`, oldest first, and the base chains of a ruleset, for `workers` workers.
    /// `flows`: those that are carried if the ruleset tracks connections.
    pub(super) fn new(
        registered: &[Registered],
        nft: Option<Arc<Nft>>,
        flows: Option<&Arc<FlowTable>>,
        workers: usize,
    ) -> Hooks {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut hooks = Hooks { id: NEXT.fetch_add(1, Ordering::Relaxed), ..Hooks::default() };
        let chains = nft.iter().flat_map(|nft| nft.base_chains());
        for (pf, hook, priority, chain) in chains {
            let entry = Entry { priority, function: Function::Nft(chain) };
            hooks.chains[family_index(pf)][hook as usize].push(entry);
            hooks.len += 1;
        }
        let tracking = nft.as_ref().map_or([Tracking::Off; 2], |nft| nft.program().tracking());
        for (pf, tracking) in [Family::Ip, Family::Ip6].into_iter().zip(tracking) {
            let received = match tracking {
                Tracking::Off => continue,
                // Before all functions at the first hook that has any for its packets.
                Tracking::Local => (Hook::LocalIn, i32::MIN),
                Tracking::All => (Hook::PreRouting, priority::CONNTRACK),
            };
            hooks.flows = flows.cloned();
            for (hook, priority) in [received, (Hook::LocalOut, priority::CONNTRACK)] {
                hooks.insert(pf, hook, priority, Function::Conntrack);
            }
        }
        hooks.tracking = tracking;
        hooks.add_nat(nft.as_deref());
        hooks.len += usize::from(nft.as_ref().is_some_and(|nft| nft.program().has_device_chains()));
        for pf in [Family::Ip, Family::Ip6] {
            hooks.decided_at[family_index(pf)] =
                hooks.last_hook(pf).filter(|_| registered.is_empty());
        }
        hooks.nft = nft;
        hooks.have_registered = !registered.is_empty();
        for (slot, Registered { ops, .. }) in registered.iter().enumerate() {
            for pf in [Family::Ip, Family::Ip6] {
                if ops.pf.is_none_or(|only| only == pf) {
                    let function = Function::Registered(Arc::clone(&ops.function), slot);
                    hooks.insert(pf, ops.hook, ops.priority, function);
                }
            }
        }
        let slot = |it: &Registered, worker: usize| StateSlot {
            id: it.id,
            state: (!it.has_state[worker].load(Ordering::Acquire))
                .then(|| it.ops.function.any_state(worker)),
            has_state: Arc::clone(&it.has_state),
        };
        let states = |worker| registered.iter().map(|it| slot(it, worker)).collect();
        hooks.states = (0..workers).map(|worker| std::sync::Mutex::new(states(worker))).collect();
        hooks
    }

    /// `nf_hook_entries_grow`: adds a function before those of equal priority.
    fn insert(&mut self, pf: Family, hook: Hook, priority: i32, function: Function) {
        let chain = &mut self.chains[family_index(pf)][hook as usize];
        let at = chain.partition_point(|entry| entry.priority < priority);
        chain.insert(at, Entry { priority, function });
        self.len += 1;
    }

    /// Adds the functions that translate packets (`nf_nat_register_fn`).
    fn add_nat(&mut self, nft: Option<&Nft>) {
        const AT: [(Hook, i32); 2] =
            [(Hook::PreRouting, priority::NAT_DST), (Hook::PostRouting, priority::NAT_SRC)];
        for pf in [Family::Ip, Family::Ip6] {
            if !nft.is_some_and(|nft| nft.program().translates(pf)) {
                continue;
            }
            let chains = &self.chains[family_index(pf)];
            let is_tie = |(hook, priority): (Hook, i32)| {
                chains[hook as usize].iter().any(|entry| entry.priority == priority)
            };
            // Whether a chain of equal priority sees packets before or after NAT depends on which was
            // registered first, which is not known.
            if AT.into_iter().any(is_tie) {
                continue;
            }
            for (hook, priority) in AT {
                self.insert(pf, hook, priority, Function::Nat);
            }
            self.translates[family_index(pf)] = true;
        }
    }

    /// The last hook that has functions, of those that forwarded packets pass, if their connections are tracked.
    fn last_hook(&self, pf: Family) -> Option<Hook> {
        let chains = &self.chains[family_index(pf)];
        let passed = [Hook::PostRouting, Hook::Forward, Hook::PreRouting];
        let last = passed.into_iter().find(|hook| !chains[*hook as usize].is_empty());
        last.filter(|_| self.tracks(pf))
    }

    /// Whether functions run before connection tracking: a packet's flow is not known then.
    fn run_early(&self, pf: Family) -> bool {
        let first = self.chains[family_index(pf)][Hook::PreRouting as usize].first();
        self.tracks(pf) && first.is_some_and(|entry| !matches!(entry.function, Function::Conntrack))
    }

    /// Whether the ruleset tracks connections of forwarded packets, so that those of carried ones pass the workers.
    pub fn track_connections(&self) -> bool {
        self.tracking.contains(&Tracking::All)
    }

    /// Whether it does so of a family.
    fn tracks(&self, pf: Family) -> bool {
        self.tracking[family_index(pf)] == Tracking::All
    }

    /// The flows that are carried.
    #[inline]
    pub(super) fn flows(&self) -> Option<&FlowTable> {
        self.flows.as_deref()
    }

    /// The flows whose packets may pass the hooks as was decided before.
    #[inline]
    pub fn decided_flows(&self) -> Option<&FlowTable> {
        self.flows.as_deref().filter(|_| self.decided_at != [None; 2])
    }

    /// Whether what the functions do with packets of a flow of this family may be remembered.
    pub fn may_decide(&self, pf: Family) -> bool {
        self.flows.is_some() && self.decided_at[family_index(pf)].is_some()
    }

    /// Whether packets of connections with NAT are translated.
    #[inline]
    pub(super) fn translates(&self, pf: Family) -> bool {
        self.translates[family_index(pf)]
    }

    /// No functions.
    pub fn none() -> &'static Hooks {
        static NONE: std::sync::LazyLock<Hooks> = std::sync::LazyLock::new(Hooks::default);
        &NONE
    }

    /// Whether no function is registered at any hook point.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the kernel may have to send the router's own packets: functions see them.
    #[inline]
    pub fn see_own_packets(&self, pf: Family) -> bool {
        let at_output = &self.chains[family_index(pf)][Hook::LocalOut as usize];
        let sees =
            |entry: &Entry| self.tracks(pf) || !matches!(entry.function, Function::Conntrack);
        at_output.iter().any(sees)
            || !self.is_empty_at(pf, Hook::PostRouting)
            || self.have_egress_chains()
    }

    /// Whether the functions can decide about IPsec packets, with and without their protection. Those that a program has
    /// registered know nothing of it, and chains of interfaces would see a packet once more when it was opened.
    #[inline]
    pub fn know_ipsec(&self) -> bool {
        !self.have_registered && !self.have_device_chains()
    }

    /// Whether the functions that packets to the router pass, if there are any, see reassembled ones: connections are
    /// tracked, and all functions run after `nf_defrag` then. Otherwise the kernel reassembles IPv4 before LOCAL_IN, and
    /// IPv6 after it.
    #[inline]
    pub fn see_reassembled(&self, pf: Family) -> bool {
        let before = &self.chains[family_index(pf)][Hook::PreRouting as usize];
        let is_tracked = || self.tracking[family_index(pf)] != Tracking::Off;
        let has_others = pf == Family::Ip6 && !self.is_empty_at(pf, Hook::LocalIn);
        before.is_empty() && !has_others
            || is_tracked()
                && before.iter().all(|entry| entry.priority > priority::CONNTRACK_DEFRAG)
    }

    /// Whether no function is registered at a hook point.
    #[inline]
    pub fn is_empty_at(&self, pf: Family, hook: Hook) -> bool {
        self.chains[family_index(pf)][hook as usize].is_empty()
    }

    /// The ruleset that is applied.
    pub fn nft(&self) -> Option<&Arc<Nft>> {
        self.nft.as_ref()
    }

    /// The ruleset that is applied, by its [`Nft::id`]; 0: none.
    pub fn nft_id(&self) -> u64 {
        self.nft.as_ref().map_or(0, |nft| nft.id())
    }

    /// `nf_hook_slow`: runs the functions until one does not accept.
    pub fn run<T: Observer>(
        &self,
        skb: &mut SkBuff,
        at: &mut HookState<'_>,
        ctx: &mut HookCtx<'_>,
        own: &mut HookStates,
        tracer: &mut T,
    ) -> Verdict {
        #[cfg(test)]
        {
            own.functions_ran += 1;
        }
        if tracer.is_traced() {
            tracer.step(Step::Stage(Stage::Hook(at.hook as u8)));
        }
        if matches!(at.hook, Hook::PreRouting | Hook::LocalOut) {
            own.ct = if self.tracks(at.pf) { Ct::Null } else { Ct::Off };
        }
        if at.hook == Hook::PreRouting && self.run_early(at.pf) && !tracer.is_traced() {
            self.begin_to_learn(at.pf, own);
        }
        let verdict = self.run_functions(skb, at, ctx, own, tracer);
        if verdict == Verdict::Accept && own.learnt.is_some() {
            self.learn(at, skb.mark, ctx.tables, own);
        }
        verdict
    }

    /// A packet has left by an xfrm interface, and passes POST_ROUTING once more to be protected by an SA: as one whose
    /// connection is not known.
    #[inline]
    pub fn scrub(&self, pf: Family, sent_by: SaInfo, own: &mut HookStates) {
        if !self.is_empty() {
            own.scrubbed(sent_by, if self.tracks(pf) { Ct::Null } else { Ct::Off });
        }
    }

    /// Leaves the flow of a packet that is left to the kernel to it, because others of its packets would take the
    /// same, longer way.
    pub fn close_flow(&self, own: &HookStates) {
        if let (Ct::Established(info), Some(flows)) = (own.ct, &self.flows) {
            flows.close(info.flow);
        }
    }

    /// Identifies them in the process; 0: no functions.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What decisions depend on.
    #[inline]
    pub(super) fn basis(&self, tables: &Tables) -> Basis {
        Basis { hooks: self.id, links: tables.links.id }
    }

    /// The functions of a hook have accepted a packet of which is learnt. `mark`: that which it has now.
    fn learn(&self, at: &HookState<'_>, mark: u32, tables: &Tables, own: &mut HookStates) {
        let Some(learnt) = &mut own.learnt else { return };
        learnt.learner.end_hook();
        if at.hook == Hook::PreRouting {
            learnt.mark = mark;
        }
        let Learnt { of: Some(of), passed, mark, learner } = &*learnt else { return };
        if learner.varies {
            if let Some(flows) = &self.flows {
                flows.note_varies(of);
            }
            own.learnt = None;
        } else if self.decided_at[family_index(at.pf)] == Some(at.hook) {
            let ifindex = |link: Option<&Link>| link.map_or(0, |link| link.ifindex);
            let passed = own.journal.entries().get(*passed..).unwrap_or(&[]);
            let decision = Decision::new(ifindex(at.iif), ifindex(at.oif), *mark, passed);
            let decision = decision.map(|it| it.by_routes(learner.routes, own.ct, &own.decisions));
            match (decision, &self.flows) {
                (Some(decision), Some(flows)) => {
                    flows.decide(of, own.decisions.remember(decision, self.basis(tables)));
                }
                (None, Some(flows)) => flows.note_varies(of),
                (_, None) => {}
            }
            own.learnt = None;
        }
    }

    /// Runs the functions of a hook.
    fn run_functions<T: Observer>(
        &self,
        skb: &mut SkBuff,
        at: &mut HookState<'_>,
        ctx: &mut HookCtx<'_>,
        own: &mut HookStates,
        tracer: &mut T,
    ) -> Verdict {
        for entry in &self.chains[family_index(at.pf)][at.hook as usize] {
            let verdict = match &entry.function {
                // The router's own packets are tracked by the kernel, which sends them, if rules look at it.
                Function::Conntrack if at.hook == Hook::LocalOut && !own.is_protected => {
                    if self.tracks(at.pf) { Verdict::Punt } else { Verdict::Accept }
                }
                Function::Conntrack => self.track(skb, at, ctx, own, tracer),
                Function::Nat => match (own.ct, &own.target) {
                    (Ct::Established(info), Some(target)) => {
                        let before = tracer.is_traced().then(|| traced::endpoints(skb, at));
                        let done = nf_nat_packet(skb, at, &info, target);
                        if let Some(before) = before {
                            traced::nat(before, traced::endpoints(skb, at), done, tracer);
                        }
                        done.map_or(Verdict::Punt, |()| Verdict::Accept)
                    }
                    _ => Verdict::Accept,
                },
                Function::Nft(chain) => match &self.nft {
                    Some(nft) => {
                        let now_ns = own.monotonic_ns(ctx.now_ns);
                        let around = Around {
                            ct: own.ct,
                            tables: Some(ctx.tables),
                            now_ns,
                            received_by: own.received_by,
                            sent_by: own.sent_by,
                        };
                        let journal = &mut own.journal;
                        let verdict = match &mut own.learnt {
                            Some(Learnt { learner, .. }) => {
                                nft.run(*chain, skb, at, around, journal, learner)
                            }
                            None => nft.run(*chain, skb, at, around, journal, tracer),
                        };
                        match verdict {
                            NftVerdict::Accept => Verdict::Accept,
                            NftVerdict::Drop => Verdict::Drop,
                            NftVerdict::Kernel(reason) if nft.program().is_transient(reason) => {
                                return Verdict::Punt;
                            }
                            NftVerdict::Kernel(_) => Verdict::Punt,
                        }
                    }
                    // Not reachable: chains come with their ruleset.
                    None => Verdict::Punt,
                },
                // The worker has not taken the states of these functions; see `HookStates::take`.
                Function::Registered(..) if own.of != self.id => return Verdict::Punt,
                Function::Registered(function, slot) => {
                    let Some(state) = own.slots.get_mut(*slot).and_then(|it| it.state.as_mut())
                    else {
                        // Not reachable.
                        return Verdict::Punt;
                    };
                    let mut verdict = Verdict::Repeat;
                    for _ in 0..=REPEATS_MAX {
                        verdict = function.run(skb, at, ctx, state.as_mut());
                        if verdict != Verdict::Repeat {
                            break;
                        }
                    }
                    at.transport = Transport::of(skb, at.pf);
                    if tracer.is_traced() {
                        traced::function(verdict, tracer);
                    }
                    verdict
                }
            };
            if verdict != Verdict::Accept {
                // The connection of a tunnel has packets of many others.
                let is_left = verdict == Verdict::Punt && !own.is_protected;
                if is_left && !matches!(entry.function, Function::Registered(..)) {
                    self.close_flow(own);
                }
                return verdict;
            }
        }
        Verdict::Accept
    }
}
