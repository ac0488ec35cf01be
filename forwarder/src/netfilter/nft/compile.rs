//! Compiles a ruleset to a [`Program`].
//!
//! Names of chains and sets become numbers. What cannot be evaluated as the kernel does it becomes an
//! operation that leaves the packet to the kernel: unknown expressions, chains and sets, operands out of the
//! register file, chains that refer to each other in a loop (none of the latter is accepted by the kernel).

use std::collections::HashMap;

use super::classify::Run;
use super::fuse::fuse;
use super::op::{Bitwise2, DATA_MAX, Data16, Flow, Op, Write};
use super::program::{
    Base, BaseChainId, CompiledChain, CounterKind, CounterPlace, DIFFERS, FIXED_REASONS, LOOP,
    NO_CLASSIFIER, Program, Step,
};
use super::reach::of_family;
use super::ruleset::{
    BitwiseOp, Chain, CtKey, Expr, Family, MetaKey, OBJECT_COUNTER, Reg, RuleVerdict, Ruleset,
    SET_CONSTANT, Set, Table,
};
use super::set::CompiledSet;
use super::write::never_written;
use crate::netfilter::priority;

/// Hook points of IPv4 and IPv6; later numbers are other hooks, as ingress of family inet.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
const LOCAL_IN: u32 = 1;
const LOCAL_OUT: u32 = 3;

/// The end of what is said of chains whose order matters and is not known.
pub const ORDER_UNKNOWN: &str = "their order is not known";

/// Compiles a ruleset. `now_ns`: when the ruleset was read, by the clock of
/// [`Packet::now_ns`](super::Packet::now_ns); times of expiry count from then.
pub fn compile(ruleset: &Ruleset, now_ns: u64) -> Program {
    compile_with_slack(ruleset, now_ns, 0)
}

/// The same for a ruleset that took up to `slack_ns` to read: while an element may have expired in the
/// kernel or may not, packets that match it are left to the kernel.
pub fn compile_with_slack(ruleset: &Ruleset, now_ns: u64, slack_ns: u64) -> Program {
    let reasons = FIXED_REASONS.map(str::to_owned).to_vec();
    let mut program = Program { reasons, ..Program::default() };
    let mut bases: Vec<(i32, BaseChainId, Family, u32)> = Vec::new();
    for table in &ruleset.tables {
        if !table.family.is_compiled() {
            continue;
        }
        let first = program.chains.len() as u32;
        TableCompiler::new(&mut program, table, now_ns, slack_ns).compile();
        for (chain, number) in table.chains.iter().zip(first..) {
            if !super::device::register(&mut program, table, chain, number) {
                bases.extend(register(&mut program, table, chain, number));
            }
        }
    }
    super::device::order(&mut program);
    program.unsupported.extend(undecided_order(ruleset));
    // Stable, so that the order of the ruleset remains within a priority, here reversed: see `chains`.
    bases.reverse();
    bases.sort_by_key(|(priority, ..)| *priority);
    for (_, base, family, hook) in bases {
        for (hooks, own) in program.hooks.iter_mut().zip([Family::Ip, Family::Ip6]) {
            if (family == own || family == Family::Inet)
                && let Some(chains) = hooks.get_mut(hook as usize)
            {
                chains.push(base);
            }
        }
    }
    super::reach::report(&mut program, ruleset);
    program.unsupported.extend(beside_conntrack(&program));
    program
}

/// A base chain at prerouting with the priority of connection tracking: whether it sees the connection depends on
/// which of the two was registered first.
fn beside_conntrack(program: &Program) -> Option<String> {
    let tracked = program.hooks.iter().zip(program.tracked_families()).filter(|(_, is)| *is);
    let mut chains = tracked.flat_map(|(hooks, _)| &hooks[0]);
    let chain = chains.find(|chain| program.priority(**chain) == priority::CONNTRACK)?;
    let name = program.chain_name(*chain);
    Some(format!("chain {name} has the priority of connection tracking: {ORDER_UNKNOWN}"))
}

/// Base chains of different tables with the same priority at the same hook, of which one sets the mark or writes: the
/// kernel runs them in the order of their creation, which the ruleset does not tell, and the order matters.
fn undecided_order(ruleset: &Ruleset) -> Vec<String> {
    let tables: Vec<&Table> = at_ip_hooks(ruleset).collect();
    let changes = |table: &Table| {
        exprs(table).find_map(|expr| match expr {
            Expr::SetMark { .. } | Expr::Connmark(_) => Some("set marks"),
            Expr::SetPayload(_) | Expr::Mangle(_) => Some("change packets"),
            _ => None,
        })
    };
    let mut found = Vec::new();
    for (n, one) in tables.iter().enumerate() {
        for other in tables.iter().skip(n + 1) {
            if let Some(priority) = tie(one, other)
                && let Some(what) = changes(one).or_else(|| changes(other))
            {
                found.push(format!(
                    "tables {} {} and {} {} have chains of priority {priority} at the same hook, \
                     and rules that {what}: {ORDER_UNKNOWN}",
                    one.family, one.name, other.family, other.name
                ));
            }
        }
    }
    found
}

/// Tables whose base chains at the hooks of IP run.
fn at_ip_hooks(ruleset: &Ruleset) -> impl Iterator<Item = &Table> {
    let of_ip = |table: &&Table| matches!(table.family, Family::Ip | Family::Ip6 | Family::Inet);
    ruleset.tables.iter().filter(of_ip).filter(|table| !table.dormant)
}

/// The priority of chains of both tables at the same hook.
fn tie(one: &Table, other: &Table) -> Option<i32> {
    let bases = |table: &'_ Table| -> Vec<(u32, i32)> {
        let bases = table.chains.iter().filter_map(|chain| chain.base.as_ref());
        // Those of interfaces: see `device::order`.
        let bases = bases.filter(|base| base.hook != super::device::NF_INET_INGRESS);
        bases.map(|base| (base.hook, base.priority)).collect()
    };
    let apart =
        matches!((one.family, other.family), (Family::Ip, Family::Ip6) | (Family::Ip6, Family::Ip));
    let others = bases(other);
    let tie = bases(one).into_iter().find(|base| others.contains(base));
    tie.filter(|_| !apart).map(|(_, priority)| priority)
}

/// The expressions of a table.
fn exprs(table: &Table) -> impl Iterator<Item = &Expr> {
    table.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs)
}

/// Whether a rule of the table lets the kernel's packet path change the set, without a notification.
fn is_changed_by_packets(table: &Table, set: &Set) -> bool {
    exprs(table).any(|expr| match expr {
        Expr::Other(other) => match other.name.strip_prefix("dynset") {
            Some("") => set.flags & SET_CONSTANT == 0,
            Some(name) => name.trim_start() == set.name,
            None => false,
        },
        _ => false,
    })
}

/// Adds a base chain to the program, unless it is left out.
fn register(
    program: &mut Program,
    table: &Table,
    chain: &Chain,
    number: u32,
) -> Option<(i32, BaseChainId, Family, u32)> {
    let base = chain.base.as_ref().filter(|_| !table.dormant)?;
    let hook = *HOOKS.get(base.hook as usize)?;
    let is_route = base.kind == "route";
    if base.kind != "filter" && !(is_route && base.hook == LOCAL_OUT) {
        let name = format!(
            "chain {} {} {} (type {}, hook {hook})",
            table.family, table.name, chain.name, base.kind
        );
        if base.kind == "nat" {
            // At any hook: the kernel registers the functions of all of them (`nf_nat_register_fn`), which
            // also translate connections that other chains, perhaps deleted since, have opened.
            for first in of_family(&mut program.conntrack, table.family) {
                first.get_or_insert_with(|| name.clone());
            }
            for translates in of_family(&mut program.translates, table.family) {
                *translates = true;
            }
        } else if base.hook != LOCAL_IN && base.hook != LOCAL_OUT {
            program.unsupported.push(name);
        }
        return None;
    }
    let id = BaseChainId(program.bases.len() as u32);
    program.bases.push(Base {
        chain: number,
        policy_drops: base.policy_drops,
        priority: base.priority,
        is_route,
        name: format!("{} {} {}", table.family, table.name, chain.name),
    });
    Some((base.priority, id, table.family, base.hook))
}

/// Compiles one table.
struct TableCompiler<'a> {
    program: &'a mut Program,
    table: &'a Table,
    /// Family and name.
    name: String,
    now_ns: u64,
    slack_ns: u64,
    chains: HashMap<&'a str, u32>,
    sets: HashMap<&'a str, Result<u32, String>>,
    counters: HashMap<&'a str, u32>,
    reasons: HashMap<String, u32>,
}

impl<'a> TableCompiler<'a> {
    fn new(program: &'a mut Program, table: &'a Table, now_ns: u64, slack_ns: u64) -> Self {
        let first = program.chains.len() as u32;
        let mut chains = HashMap::new();
        for (chain, number) in table.chains.iter().zip(first..) {
            chains.entry(chain.name.as_str()).or_insert(number);
        }
        let name = format!("{} {}", table.family, table.name);
        let (sets, counters, reasons) = Default::default();
        TableCompiler { program, table, name, now_ns, slack_ns, chains, sets, counters, reasons }
    }

    fn compile(mut self) {
        for object in self.table.objects.iter().filter(|object| object.kind == OBJECT_COUNTER) {
            let (packets, octets) = object.counter;
            let kind = CounterKind::Object(object.name.clone());
            let number = self.counter(kind, packets, octets);
            self.counters.insert(&object.name, number);
        }
        let first_set = self.program.sets.len();
        for set in &self.table.sets {
            let now_ns = self.now_ns;
            let compiled = match is_changed_by_packets(self.table, set) {
                true => Err(format!("set {}: rules add elements to it", set.name)),
                false => CompiledSet::new(set, now_ns, |verdict| self.flow(verdict)),
            };
            let slack_ns = self.slack_ns;
            let number = compiled.map(|mut compiled| {
                compiled.set_slack_ns(slack_ns);
                self.program.sets.push(compiled);
                self.program.sets.len() as u32 - 1
            });
            self.sets.insert(&set.name, number);
        }
        let rules = self.rules();
        let mut chains = self.without_loops(rules, first_set);
        fuse(&mut chains, &self.program.sets);
        for rules in chains {
            self.chain(&rules);
        }
    }

    /// Adds a chain of these rules to the program.
    fn chain(&mut self, rules: &[Vec<Op>]) {
        let program = &mut *self.program;
        let start = program.steps.len() as u32;
        for ops in rules {
            let at = program.ops.len() as u32;
            program.ops.extend_from_slice(ops);
            let end = program.ops.len() as u32;
            program.steps.push(Step { start: at, end, classifier: NO_CLASSIFIER });
        }
        let end = program.steps.len() as u32;
        program.chains.push(CompiledChain { start, end });
        let mut at = 0;
        while let Some(rest) = rules.get(at..).filter(|rest| !rest.is_empty()) {
            let run = Run::of(rest);
            let first = start as usize + at;
            at += run.len.max(1);
            let Some(steps) = program.steps.get_mut(first..first + run.len) else { break };
            let ops: Vec<_> = steps.iter().map(|step| (step.start, step.end)).collect();
            if let Some(classifier) = run.classifier(first as u32, &ops) {
                let number = program.classifiers.len() as u32;
                steps.iter_mut().for_each(|step| step.classifier = number);
                program.classifiers.push(classifier);
            }
        }
    }

    /// The operations of each rule of each chain.
    fn rules(&mut self) -> Vec<Vec<Vec<Op>>> {
        let table = self.table;
        let mut chains = Vec::with_capacity(table.chains.len());
        for chain in &table.chains {
            let mut rules = Vec::with_capacity(chain.rules.len());
            for rule in &chain.rules {
                let op = |(position, expr)| {
                    let place = (chain.name.as_str(), rule.handle, position);
                    self.op(expr, place)
                };
                rules.push(rule.exprs.iter().enumerate().map(op).collect());
            }
            chains.push(rules);
        }
        chains
    }

    /// Leaves jumps of chains that are part of a loop, or lead to one, to the kernel.
    fn without_loops(
        &mut self,
        mut chains: Vec<Vec<Vec<Op>>>,
        first_set: usize,
    ) -> Vec<Vec<Vec<Op>>> {
        let first = self.program.chains.len();
        let sets = &mut self.program.sets;
        let targets = |op: &Op| -> Vec<usize> {
            let of_set = |set: &u32| sets.get(*set as usize).map_or(&[][..], CompiledSet::verdicts);
            let flows = match op {
                Op::Flow(flow) => std::slice::from_ref(flow),
                Op::Lookup { set, is_vmap: true, .. } => of_set(set),
                _ => &[],
            };
            flows.iter().filter_map(target).map(|target| target as usize - first).collect()
        };
        let edges: Vec<Vec<usize>> =
            chains.iter().map(|rules| rules.iter().flatten().flat_map(targets).collect()).collect();
        let in_loop = super::reach::in_loops(&edges);
        if !in_loop.contains(&true) {
            return chains;
        }
        let leads_on = |flow: &Flow| {
            let to = target(flow).map(|target| target as usize - first);
            to.is_some_and(|to| in_loop.get(to).is_some_and(|looped| *looped))
        };
        for op in chains.iter_mut().flatten().flatten() {
            if matches!(op, Op::Flow(flow) if leads_on(flow)) {
                *op = Op::Kernel(LOOP);
            }
        }
        let verdicts = sets.iter_mut().skip(first_set).flat_map(CompiledSet::verdicts_mut);
        verdicts.filter(|flow| leads_on(flow)).for_each(|flow| *flow = Flow::Kernel(LOOP));
        chains
    }

    fn counter(&mut self, kind: CounterKind, packets: u64, octets: u64) -> u32 {
        let table = self.name.clone();
        let table_handle = self.table.handle;
        self.program.counters.push(CounterPlace { table, table_handle, kind, packets, octets });
        self.program.counters.len() as u32 - 1
    }

    /// The number of a reason for leaving packets to the kernel.
    fn reason(&mut self, text: String) -> u32 {
        let reasons = &mut self.program.reasons;
        *self.reasons.entry(text).or_insert_with_key(|text| {
            reasons.push(text.clone());
            reasons.len() as u32 - 1
        })
    }

    fn kernel(&mut self, text: impl Into<String>) -> Op {
        Op::Kernel(self.reason(text.into()))
    }

    /// A verdict with its chain by number.
    fn flow(&mut self, verdict: &RuleVerdict) -> Flow {
        match verdict {
            RuleVerdict::Accept => Flow::Accept,
            RuleVerdict::Drop => Flow::Drop,
            RuleVerdict::Continue => Flow::Continue,
            RuleVerdict::Break => Flow::Break,
            RuleVerdict::Return => Flow::Return,
            RuleVerdict::Jump(name) | RuleVerdict::Goto(name) => {
                match (self.chains.get(name.as_str()), verdict) {
                    (Some(chain), RuleVerdict::Jump(_)) => Flow::Jump(*chain),
                    (Some(chain), _) => Flow::Goto(*chain),
                    (None, _) => Flow::Kernel(self.reason(format!("jump to unknown chain {name}"))),
                }
            }
            // NF_QUEUE has the number of the queue in its upper half.
            RuleVerdict::Other(code) if code & 0xff == 3 => {
                Flow::Kernel(self.reason("queue".to_owned()))
            }
            RuleVerdict::Other(code) => Flow::Kernel(self.reason(format!("verdict {code}"))),
        }
    }

    /// Compiles an expression.
    fn op(&mut self, expr: &Expr, place: (&str, u64, usize)) -> Op {
        match expr {
            Expr::Verdict(verdict) => match self.flow(verdict) {
                Flow::Kernel(reason) => Op::Kernel(reason),
                flow => Op::Flow(flow),
            },
            Expr::Counter { packets, octets } => {
                let (chain, handle, position) = (place.0.to_owned(), place.1, place.2);
                let kind = CounterKind::Rule { chain, handle, position };
                Op::Counter(self.counter(kind, *packets, *octets))
            }
            Expr::Objref { kind: OBJECT_COUNTER, name } => match self.counters.get(name.as_str()) {
                Some(counter) => Op::Counter(*counter),
                None => self.kernel(format!("unknown counter {name}")),
            },
            Expr::Objref { kind, name } => self.kernel(format!("{} {name}", object(*kind))),
            Expr::Lookup { sreg, dreg, is_vmap, set, invert } => {
                self.lookup(*sreg, *dreg, *is_vmap, set, *invert)
            }
            Expr::Meta { key: MetaKey::Other(key), .. } => self.kernel(format!("meta key {key}")),
            _ if self.table.family == Family::Netdev && !super::device::is_evaluated(expr) => {
                Op::Kernel(DIFFERS)
            }
            Expr::SetPayload(set) if let Some(what) = never_written(set, self.table.family) => {
                self.kernel(what)
            }
            Expr::Other(other) => self.kernel(other.name.as_str()),
            _ => match plain(expr) {
                Some(op) => op,
                None => self.kernel("operands that the kernel does not accept"),
            },
        }
    }

    fn lookup(
        &mut self,
        sreg: Reg,
        dreg: Option<Reg>,
        is_vmap: bool,
        name: &str,
        invert: bool,
    ) -> Op {
        let number = match self.sets.get(name) {
            Some(Ok(number)) => *number,
            Some(Err(why)) => {
                let why = why.clone();
                return self.kernel(why);
            }
            None => return self.kernel(format!("unknown set {name}")),
        };
        let Some(set) = self.program.sets.get(number as usize) else { return Op::Nothing };
        let (key_len, data_len) = (set.key_len(), set.data_len());
        // An empty verdict map has no verdicts yet.
        let is_odd = (set.is_vmap() && !is_vmap) || (is_vmap && data_len > 0);
        let dreg_fits = dreg.is_none_or(|dreg| fits(dreg, data_len) && !is_vmap && !invert);
        if is_odd || !fits(sreg, key_len) || !dreg_fits || (is_vmap && invert) {
            return self.kernel(format!("set {name}: operands that the kernel does not accept"));
        }
        Op::Lookup { set: number, sreg: sreg.0, dreg: dreg.map(|dreg| dreg.0), is_vmap, invert }
    }
}

/// The chain that a verdict leads to.
fn target(flow: &Flow) -> Option<u32> {
    match flow {
        Flow::Jump(chain) | Flow::Goto(chain) => Some(*chain),
        _ => None,
    }
}

/// Kinds of stateful objects, as nft names them (NFT_OBJECT_*).
fn object(kind: u32) -> String {
    match kind {
        2 => "quota".to_owned(),
        3 => "ct helper".to_owned(),
        4 => "limit".to_owned(),
        5 => "connlimit".to_owned(),
        6 => "tunnel".to_owned(),
        7 => "ct timeout".to_owned(),
        8 => "secmark".to_owned(),
        9 => "ct expectation".to_owned(),
        10 => "synproxy".to_owned(),
        other => format!("object of kind {other}"),
    }
}

/// Whether `len` octets at a register are within the file: at least one.
fn fits(reg: Reg, len: usize) -> bool {
    len > 0 && reg.0.is_multiple_of(4) && reg.has(len)
}

/// A constant.
fn data(octets: &[u8]) -> Option<Data16> {
    let mut data = [0; DATA_MAX];
    data.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(data)
}

/// Compiles an expression that refers to nothing by name. `None`: operands that the kernel does not accept.
fn plain(expr: &Expr) -> Option<Op> {
    let valid = |reg: Reg, len: usize| fits(reg, len).then_some(reg.0);
    Some(match expr {
        Expr::Immediate { dreg, value } => Op::Immediate {
            dreg: valid(*dreg, value.len())?,
            len: value.len() as u8,
            value: data(value)?,
        },
        Expr::Cmp { sreg, op, data: with } => Op::Cmp {
            sreg: valid(*sreg, with.len())?,
            op: *op,
            len: with.len() as u8,
            value: data(with)?,
        },
        Expr::Range { sreg, invert, from, to } => {
            if from.len() != to.len() {
                return None;
            }
            Op::Range {
                sreg: valid(*sreg, from.len())?,
                invert: *invert,
                len: from.len() as u8,
                from: data(from)?,
                to: data(to)?,
            }
        }
        Expr::Bitwise { sreg, dreg, len, op } => {
            let size = usize::from(*len);
            bitwise(valid(*sreg, size)?, valid(*dreg, size)?, size, op)?
        }
        Expr::Byteorder { sreg, dreg, len, size } => {
            let (sreg, dreg) = (valid(*sreg, (*len).into())?, valid(*dreg, (*len).into())?);
            // The kernel has handled more than one group of 8 octets in different ways.
            let known = matches!((size, len), (2 | 4, _) | (8, 8));
            known.then_some(Op::Byteorder { sreg, dreg, len: *len, size: *size })?
        }
        Expr::Payload { dreg, base, offset, len } => Op::Payload {
            dreg: valid(*dreg, (*len).into())?,
            base: *base,
            offset: *offset,
            len: *len,
        },
        Expr::Exthdr { dreg, op, kind, offset, len, present } => Op::Exthdr {
            dreg: valid(*dreg, if *present { 1 } else { (*len).into() })?,
            op: *op,
            kind: *kind,
            offset: *offset,
            len: *len,
            present: *present,
        },
        Expr::Meta { dreg, key } => Op::Meta { dreg: valid(*dreg, meta_len(*key))?, key: *key },
        Expr::SetPayload(set) => {
            valid(set.sreg, set.len.into())?;
            Op::Write(Box::new(Write::Payload(*set)))
        }
        Expr::Mangle(mangle) => Op::Write(Box::new(Write::Mangle(*mangle))),
        Expr::SetMark { sreg } => Op::SetMark { sreg: valid(*sreg, 4)? },
        Expr::Ct { dreg, key: key @ (CtKey::Ipv4(..) | CtKey::Ipv6(..) | CtKey::Port(..)) } => {
            Op::CtTuple { dreg: valid(*dreg, key.octets())?, key: *key }
        }
        Expr::Ct { dreg, key } => Op::Ct { dreg: valid(*dreg, 4)?, key: *key },
        Expr::Xt(of) => Op::Xt(Box::new(of.clone())),
        Expr::Connmark(target) => Op::Connmark(Box::new(*target)),
        Expr::SetCtMark { sreg } => Op::SetCtMark { sreg: valid(*sreg, 4)? },
        Expr::Fib { dreg, query } => {
            // The kernel writes 16 octets for a name, but 4 if there is no route.
            Op::Fib { dreg: valid(*dreg, query.octets())?, query: *query }
        }
        Expr::Xfrm { dreg, query } => {
            Op::Xfrm { dreg: valid(*dreg, query.octets())?, query: *query }
        }
        Expr::Notrack => Op::Notrack,
        Expr::Verdict(_)
        | Expr::Lookup { .. }
        | Expr::Counter { .. }
        | Expr::Objref { .. }
        | Expr::Other(_) => return None,
    })
}

/// Octets that a key of `meta` writes.
pub(super) fn meta_len(key: MetaKey) -> usize {
    match key {
        MetaKey::IifName | MetaKey::OifName => 16,
        _ => 4,
    }
}

fn bitwise(sreg: u8, dreg: u8, len: usize, op: &BitwiseOp) -> Option<Op> {
    let words = len.div_ceil(4) as u8;
    let two = |other: &Reg, op| {
        let sreg2 = fits(*other, len).then_some(other.0)?;
        Some(Op::Bitwise2 { sreg, sreg2, dreg, words, op })
    };
    match op {
        BitwiseOp::MaskXor { mask, xor } => {
            let same = mask.len() == len && xor.len() == len;
            let (mask, xor) = (data(mask)?, data(xor)?);
            same.then_some(Op::MaskXor { sreg, dreg, words, mask, xor })
        }
        BitwiseOp::Lshift(bits @ 1..=31) => {
            Some(Op::Shift { sreg, dreg, words, left: true, bits: *bits as u8 })
        }
        BitwiseOp::Rshift(bits @ 1..=31) => {
            Some(Op::Shift { sreg, dreg, words, left: false, bits: *bits as u8 })
        }
        BitwiseOp::Lshift(_) | BitwiseOp::Rshift(_) => None,
        BitwiseOp::And(other) => two(other, Bitwise2::And),
        BitwiseOp::Or(other) => two(other, Bitwise2::Or),
        BitwiseOp::Xor(other) => two(other, Bitwise2::Xor),
    }
}
