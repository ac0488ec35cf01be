//! The rules of a ruleset by what they do with packets of carried connections, and which rule makes a flow one that is
//! decided packet by packet: for people who want to know why connections are not fast.

use std::ops::Range;

pub use super::carried::LeftOf;
use super::carried::{Carried, PerPacket, other_route, per_packet};
pub use super::carried_facts::FlowFacts;
use super::carried_facts::Packets;
use super::follow::Nft;
use super::program::{BaseChainId, KernelRule, Program};
use super::ruleset::{Chain, Family, Rule, Ruleset, Table};
use super::traced::{TracedRule, exprs_of};

/// What packets of carried connections meet in a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meets {
    /// None of them reaches the rule.
    NotReached,
    /// What it does is the same for all packets of a connection, in one direction.
    Constant,
    /// It is evaluated for each packet.
    PerPacket(By),
    /// They are left to the kernel.
    Kernel,
}

/// Why a rule is evaluated for each packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// These expressions differ between packets; `None`: not known which.
    Exprs(Option<Range<usize>>),
    /// It is in a chain at ingress.
    Ingress,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct CarriedRule<'a> {
    /// Its table.
    pub table: &'a Table,
    /// Its chain.
    pub chain: &'a Chain,
    /// The rule.
    pub rule: &'a Rule,
    /// What packets of carried connections meet.
    pub meets: Meets,
    /// All packets that may reach it are of tracked families: those of others are not the kernel's before a rule leaves
    /// them to it.
    pub is_tracked: bool,
    /// Why packets that reach it are left to the kernel, if they are.
    pub left: Option<&'a KernelRule>,
    /// Carried connections that it leaves to the kernel because of their tuples, which are not all.
    pub left_of: LeftOf,
    /// The base chains through which packets of carried connections reach its chain.
    pub bases: Vec<BaseChainId>,
}

/// The rules of a ruleset, of which `program` was made; none if it tracks no connections.
pub fn carried_rules<'a>(program: &'a Program, ruleset: &'a Ruleset) -> Vec<CarriedRule<'a>> {
    if !program.tracks_connections() {
        return Vec::new();
    }
    let carried = Carried::of(program);
    let mut left: Vec<&KernelRule> = program.kernel_rules().collect();
    left.sort_by_key(|rule| rule.op);
    let tables = ruleset.tables.iter().filter(|table| table.family.is_compiled());
    let chains = tables.flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    let mut rules = Vec::new();
    for ((table, chain), number) in chains.zip(0..) {
        let Some((start, _)) = program.steps_of(number) else { break };
        let bases = carried.bases(number);
        let [ipv4, ipv6] = program.tracked_families();
        let is_tracked = match table.family {
            Family::Ip => ipv4,
            Family::Ip6 => ipv6,
            _ => ipv4 && ipv6,
        };
        for (rule, step) in chain.rules.iter().zip(start..) {
            let Some(ops) = program.steps.get(step as usize) else { break };
            let at = left.partition_point(|rule| rule.op < ops.start);
            let left = left.get(at).filter(|rule| rule.op < ops.end).copied();
            let meets = meets(program, &carried, (chain, start), step, left);
            let (left_of, bases) = (carried.left_of(step), bases.to_vec());
            rules.push(CarriedRule { table, chain, rule, meets, is_tracked, left, left_of, bases });
        }
    }
    rules
}

fn meets(
    program: &Program,
    carried: &Carried,
    (chain, start): (&Chain, u32),
    step: u32,
    left: Option<&KernelRule>,
) -> Meets {
    let Some(ops) = program.steps.get(step as usize) else { return Meets::NotReached };
    if left.is_some_and(|rule| carried.evaluate(rule.op)) {
        return Meets::Kernel;
    }
    if !carried.evaluate(ops.start) {
        return Meets::NotReached;
    }
    if !carried.at_hooks(ops.start) {
        return Meets::PerPacket(By::Ingress);
    }
    let rule = |step: u32| chain.rules.get(step.checked_sub(start)? as usize);
    match carried.varying(step) {
        None => Meets::Constant,
        Some(op) => {
            let exprs = rule(step).and_then(|rule| exprs_of(program, step, op, &rule.exprs));
            Meets::PerPacket(By::Exprs(exprs))
        }
    }
}

/// Why a flow is decided packet by packet.
#[derive(Debug, Clone)]
pub enum Cause<'a> {
    /// The first rule whose result differs between packets, with the expressions that make it so.
    Rule(TracedRule<'a>),
    /// The packets pass so many counters.
    Counters(usize),
}

impl Nft {
    /// Why packets of a flow are decided about one by one, if they are. Where it is not known whether the flow's packets
    /// match a rule, it is taken for possible, so that the rule may be one that they do not reach.
    pub fn per_packet(&self, flow: &FlowFacts) -> Option<Cause<'_>> {
        match per_packet(self.program(), &Packets::of_flow(flow)) {
            PerPacket::Op { step, op } => self.traced_rule(step, op).map(Cause::Rule),
            PerPacket::Counters(count) => Some(Cause::Counters(count)),
        }
    }

    /// The first rule that packets of a flow may reach and that looks up the route to an address which they have only
    /// before or after NAT.
    pub fn other_route(&self, flow: &FlowFacts) -> Option<TracedRule<'_>> {
        let (step, op) = other_route(self.program(), &Packets::of_flow(flow))?;
        self.traced_rule(step, op)
    }
}
