//! Which operations packets of carried connections evaluate: found without packets, by following the base chains with what is
//! known of all such packets, or of those of one flow.
//!
//! Where a value is not known, both results of a comparison are followed. So each operation that a packet may evaluate is
//! found, perhaps with others.

use std::collections::HashMap;

use super::carried_facts::{Facts, Known, Packets};
use super::op::{Flow, Op};
use super::program::{BaseChainId, Program};
use super::ruleset::Family;
use super::xt::Xt;
use crate::netfilter::Hook;

/// The hooks that forwarded packets pass, in their order.
const FORWARDED: [Hook; 3] = [Hook::PreRouting, Hook::Forward, Hook::PostRouting];
/// Jumps within jumps. The kernel accepts 16 (NFT_JUMP_STACK_SIZE).
const DEPTH_MAX: usize = 64;

/// What packets of carried connections evaluate.
#[derive(Debug)]
pub(super) struct Carried {
    /// By operation: at a hook that forwarded packets pass.
    at_hooks: Vec<bool>,
    /// By operation: at ingress.
    at_ingress: Vec<bool>,
    /// By rule: the first operation whose result differs between packets of a connection.
    varying: Vec<Option<u32>>,
    /// By rule: the connections that `ct` of a tuple leaves to the kernel.
    left_of: Vec<LeftOf>,
    /// By chain: the base chains through which they reach it.
    bases: HashMap<u32, Vec<BaseChainId>>,
}

impl Carried {
    /// Without packets.
    pub(super) fn none(program: &Program) -> Carried {
        let none = || vec![false; program.ops.len()];
        Carried {
            at_hooks: none(),
            at_ingress: none(),
            varying: vec![None; program.steps.len()],
            left_of: vec![LeftOf::default(); program.steps.len()],
            bases: HashMap::new(),
        }
    }

    /// For all families whose connections are tracked.
    pub(super) fn of(program: &Program) -> Carried {
        let mut carried = Carried::none(program);
        let families = [Family::Ip, Family::Ip6].into_iter().zip(program.tracked_families());
        for (family, _) in families.filter(|(_, is_tracked)| *is_tracked) {
            for packets in (0..=u8::MAX).flat_map(|protocol| Packets::all(family, protocol)) {
                carried.add(program, &packets);
            }
        }
        carried
    }

    /// Adds what these packets evaluate.
    pub(super) fn add(&mut self, program: &Program, packets: &Packets<'_>) {
        let translates = program.translates(packets.family);
        for (base, hook) in bases(program, packets.family) {
            let facts = packets.facts(hook, program.priority(base));
            let Carried { at_hooks, at_ingress, varying, left_of, bases } = self;
            let reached = if hook.is_some() { at_hooks } else { at_ingress };
            let mut see = |step: u32, at: u32, op: &Op, differs: bool| {
                if let Op::CtTuple { key, .. } = op
                    && let Some(of) = left_of.get_mut(step as usize)
                {
                    facts.left_by_tuple(*key, translates, of);
                }
                if let Some(reached) = reached.get_mut(at as usize) {
                    *reached = true;
                }
                if hook.is_some()
                    && differs
                    && let Some(varying) = varying.get_mut(step as usize)
                {
                    *varying = Some(varying.map_or(at, |known| known.min(at)));
                }
                true
            };
            let mut walk = Walk::new(program, &facts, &mut see);
            walk.base(base);
            for chain in walk.ends.into_keys() {
                let of_chain = bases.entry(chain).or_default();
                if !of_chain.contains(&base) {
                    of_chain.push(base);
                }
            }
        }
    }

    /// Whether they evaluate an operation.
    pub(super) fn evaluate(&self, op: u32) -> bool {
        self.at_hooks(op) || self.at_ingress.get(op as usize) == Some(&true)
    }

    /// Whether they do so at a hook, and not only at ingress.
    pub(super) fn at_hooks(&self, op: u32) -> bool {
        self.at_hooks.get(op as usize) == Some(&true)
    }

    /// The first operation of a rule whose result differs between packets of a connection.
    pub(super) fn varying(&self, step: u32) -> Option<u32> {
        *self.varying.get(step as usize)?
    }

    /// The connections that a rule leaves to the kernel, of which others are carried.
    pub(super) fn left_of(&self, step: u32) -> LeftOf {
        self.left_of.get(step as usize).copied().unwrap_or_default()
    }

    /// The base chains through which they reach a chain.
    pub(super) fn bases(&self, chain: u32) -> &[BaseChainId] {
        self.bases.get(&chain).map_or(&[], Vec::as_slice)
    }
}

/// Connections that an address or port of a tuple (`ct original ip saddr`, `ct proto-dst`) leaves to the kernel, where a
/// packet does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOf {
    /// Those with NAT.
    pub nat: bool,
    /// Those of protocols without ports.
    pub without_ports: bool,
}

impl LeftOf {
    /// Which they are, if any.
    pub fn text(self) -> Option<&'static str> {
        match (self.nat, self.without_ports) {
            (false, false) => None,
            (true, false) => Some("connections with NAT"),
            (false, true) => Some("connections without ports"),
            (true, true) => Some("connections with NAT, or without ports"),
        }
    }
}

/// What decides about each packet of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PerPacket {
    /// This operation of a rule.
    Op { step: u32, op: u32 },
    /// The packets pass so many counters.
    Counters(usize),
}

/// The first operation that packets of a flow may evaluate and whose result differs between them, or else the number of
/// counters that they may pass.
pub(super) fn per_packet(program: &Program, packets: &Packets<'_>) -> PerPacket {
    let (mut found, mut counters) = (None, 0);
    for (base, hook) in bases(program, packets.family).filter(|(_, hook)| hook.is_some()) {
        let facts = packets.facts(hook, program.priority(base));
        let mut see = |step: u32, at: u32, op: &Op, differs: bool| {
            counters += usize::from(matches!(op, Op::Counter(_)));
            if differs {
                found = Some(PerPacket::Op { step, op: at });
            }
            found.is_none()
        };
        Walk::new(program, &facts, &mut see).base(base);
        if let Some(found) = found {
            return found;
        }
    }
    PerPacket::Counters(counters)
}

/// The first operation that packets of a flow may evaluate and that looks up the route to an address which they have only
/// before or after their translation ([`Routes`](super::learn::Routes)).
pub(super) fn other_route(program: &Program, packets: &Packets<'_>) -> Option<(u32, u32)> {
    let mut found = None;
    for (base, hook) in bases(program, packets.family) {
        let facts = packets.facts(hook, program.priority(base));
        let mut see = |step: u32, at: u32, op: &Op, _: bool| {
            if let Op::Fib { query, .. } = op {
                let is_other = match hook {
                    Some(Hook::PreRouting) => query.daddr,
                    Some(Hook::PostRouting) => !query.daddr,
                    _ => false,
                };
                found = is_other.then_some((step, at));
            }
            found.is_none()
        };
        Walk::new(program, &facts, &mut see).base(base);
        if found.is_some() {
            break;
        }
    }
    found
}

/// The base chains that packets of a family pass, with their hooks; `None`: ingress.
fn bases(
    program: &Program,
    family: Family,
) -> impl Iterator<Item = (BaseChainId, Option<Hook>)> + '_ {
    let at_hooks = FORWARDED.into_iter().flat_map(move |hook| {
        program.chains(family, hook).iter().map(move |base| (*base, Some(hook)))
    });
    program.ingress_chains().map(|base| (base, None)).chain(at_hooks)
}

/// What an operation may do.
enum Outcome {
    Continue,
    Break,
    Either,
    Flows(Vec<Flow>),
}

/// Follows a base chain.
struct Walk<'a, S> {
    program: &'a Program,
    facts: &'a Facts,
    /// By chain that was followed: whether packets reach its end, or return.
    ends: HashMap<u32, bool>,
    /// Is told each operation with its rule, its number, and whether its result differs between packets of a flow;
    /// `false`: no more are needed.
    see: S,
    is_done: bool,
}

impl<'a, S: FnMut(u32, u32, &Op, bool) -> bool> Walk<'a, S> {
    fn new(program: &'a Program, facts: &'a Facts, see: S) -> Walk<'a, S> {
        Walk { program, facts, ends: HashMap::new(), see, is_done: false }
    }

    fn base(&mut self, base: BaseChainId) {
        if let Some(chain) = self.program.bases.get(base.0 as usize).map(|base| base.chain) {
            self.chain(chain, 0);
        }
    }

    /// Follows a chain. Returns whether packets go on behind the jump to it.
    fn chain(&mut self, chain: u32, depth: usize) -> bool {
        if let Some(ends) = self.ends.get(&chain) {
            return *ends;
        }
        // The kernel accepts neither loops, which the compiler leaves to it, nor so many chains.
        self.ends.insert(chain, true);
        let Some((start, end)) = self.program.steps_of(chain).filter(|_| depth < DEPTH_MAX) else {
            return true;
        };
        let mut returns = false;
        for step in start..end {
            let next = self.rule(step, &mut returns, depth);
            if self.is_done {
                return true;
            }
            if !next {
                self.ends.insert(chain, returns);
                return returns;
            }
        }
        true
    }

    /// Follows a rule. Returns whether packets may go on to the next one; `returns`: set if they may leave the chain.
    fn rule(&mut self, step: u32, returns: &mut bool, depth: usize) -> bool {
        let program = self.program;
        let Some(rule) = program.steps.get(step as usize) else { return true };
        let ops = program.ops.get(rule.start as usize..rule.end as usize).unwrap_or(&[]);
        let (mut regs, mut next) = (Known::new(), false);
        for (op, at) in ops.iter().zip(rule.start..) {
            let differs = self.differs(op, &regs);
            if !(self.see)(step, at, op, differs) {
                self.is_done = true;
                return true;
            }
            match self.op(op, &mut regs) {
                Outcome::Continue => {}
                Outcome::Break => return true,
                Outcome::Either => next = true,
                Outcome::Flows(flows) => {
                    let mut continues = false;
                    for flow in flows {
                        match flow {
                            Flow::Continue | Flow::Write(_) => continues = true,
                            Flow::Break => next = true,
                            Flow::Accept | Flow::Drop => {}
                            Flow::Return => *returns = true,
                            Flow::Jump(to) => next |= self.chain(to, depth + 1),
                            Flow::Goto(to) => *returns |= self.chain(to, depth + 1),
                            // Later rules are of interest, too.
                            Flow::Kernel(_) => (next, continues) = (true, true),
                        }
                        if self.is_done {
                            return true;
                        }
                    }
                    if !continues {
                        return next;
                    }
                }
            }
        }
        true
    }

    /// Whether the result of an operation differs between packets of a flow.
    fn differs(&self, op: &Op, regs: &Known) -> bool {
        match op {
            Op::Test(test) => self.facts.test_differs(test),
            Op::RangeTest(test) => self.facts.differing(test.load) != Some(0),
            Op::Cmp { .. } | Op::Range { .. } => regs.comparison_differs(op),
            Op::Lookup { set, sreg, .. } => {
                let Some(set) = self.program.sets.get(*set as usize) else { return false };
                // For packets that match an element that expires. Where that is not known, most match none.
                let found =
                    regs.value(*sreg, set.key_len()).and_then(|key| set.find(key, *sreg, 0));
                regs.differs(*sreg, set.key_len()) || found.is_some_and(|it| set.expires(it))
            }
            Op::Payload { base, offset, len, .. } => {
                self.facts.payload_differs(*base, *offset, (*len).into()).is_none()
            }
            // What they load is noted, and counts where it is compared.
            Op::Meta { .. } | Op::MaskXor { .. } | Op::Shift { .. } | Op::Bitwise2 { .. } => false,
            // What follows would look at a mark that differs.
            Op::SetMark { sreg } | Op::SetCtMark { sreg } => regs.differs(*sreg, 4),
            _ => self.facts.headers.is_none_or(|headers| headers.differs(op)),
        }
    }

    fn op(&self, op: &Op, regs: &mut Known) -> Outcome {
        let decided = |is: Option<bool>| match is {
            Some(true) => Outcome::Continue,
            Some(false) => Outcome::Break,
            None => Outcome::Either,
        };
        match op {
            Op::Test(test) => decided(self.facts.test(test)),
            Op::RangeTest(test) => decided(self.facts.range_test(test)),
            Op::Cmp { .. } | Op::Range { .. } => decided(regs.compares(op)),
            Op::Flow(flow) => Outcome::Flows(vec![*flow]),
            Op::Lookup { .. } => self.lookup(op, regs),
            Op::Kernel(_) => {
                // What it does is not known, and it may write any register.
                *regs = Known::new();
                Outcome::Either
            }
            Op::Counter(_)
            | Op::Nothing
            | Op::Notrack
            | Op::SetMark { .. }
            | Op::SetCtMark { .. }
            | Op::Connmark(_) => Outcome::Continue,
            // The packet may be too short.
            Op::Write(_) => Outcome::Either,
            Op::Xt(of) => match **of {
                Xt::Header(len) if self.facts.has_transport(len.into()) => Outcome::Continue,
                Xt::Icmp { icmp_type, codes, invert } => {
                    decided(self.facts.icmp(icmp_type, codes).map(|it| it != invert))
                }
                _ => Outcome::Either,
            },
            _ => match self.facts.write(op, regs) {
                true => Outcome::Continue,
                // The packet may have no such value.
                false => Outcome::Either,
            },
        }
    }

    fn lookup(&self, op: &Op, regs: &mut Known) -> Outcome {
        let Op::Lookup { set, sreg, dreg, is_vmap, invert } = op else { return Outcome::Either };
        let Some(set) = self.program.sets.get(*set as usize) else { return Outcome::Break };
        let key = regs.value(*sreg, set.key_len()).filter(|_| !set.has_timeouts());
        let Some(key) = key else {
            if let Some(dreg) = dreg {
                regs.forget(*dreg, set.data_len());
            }
            return match is_vmap {
                true => {
                    let mut flows = set.verdicts().to_vec();
                    flows.push(Flow::Break);
                    Outcome::Flows(flows)
                }
                false => Outcome::Either,
            };
        };
        // `nft_lookup_eval`.
        let mut element = set.find(key, *sreg, 0);
        if element.is_some() == *invert {
            element = set.catchall(0);
            if element.is_none() {
                return Outcome::Break;
            }
        }
        let Some(element) = element else { return Outcome::Continue };
        if *is_vmap {
            return Outcome::Flows(vec![set.verdict(element)]);
        }
        if let Some(dreg) = dreg {
            regs.store(*dreg, set.data(element));
        }
        Outcome::Continue
    }
}
