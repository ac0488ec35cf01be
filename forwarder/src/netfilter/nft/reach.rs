//! Which chains refer to which, and which rules packets can reach.

use std::collections::HashMap;

use super::op::{Flow, Op};
use super::program::{DIFFERS, KernelRule, NO_CONNECTION, Program, Step, WRITES_TUPLE};
use super::ruleset::{COUNTS_CONNECTIONS, CtKey, Expr, Family, Ruleset, Set, TupleEnd};
use super::write::may_write_tuple;

/// Hooks at which forwarded packets pass.
const FORWARDED: [usize; 3] = [0, 2, 4];
/// Hooks of packets to and from the router itself.
const LOCAL: [usize; 2] = [1, 3];
/// Hooks at which packets may be taken out of connection tracking: PRE_ROUTING and LOCAL_OUT.
const UNTRACKING: [usize; 2] = [0, 3];

/// Chains that are part of a loop or lead to one. `edges`: for each chain, the chains that it refers to.
pub(super) fn in_loops(edges: &[Vec<usize>]) -> Vec<bool> {
    // Chains without references to remaining chains are removed until there is none.
    let mut references: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut referring: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    for (from, targets) in edges.iter().enumerate() {
        for to in targets {
            if let Some(list) = referring.get_mut(*to) {
                list.push(from);
            }
        }
    }
    let mut ready: Vec<usize> =
        (0..edges.len()).filter(|chain| references.get(*chain) == Some(&0)).collect();
    let mut looped = vec![true; edges.len()];
    while let Some(chain) = ready.pop() {
        if let Some(looped) = looped.get_mut(chain) {
            *looped = false;
        }
        for from in referring.get(chain).into_iter().flatten() {
            if let Some(count) = references.get_mut(*from) {
                *count -= 1;
                if *count == 0 {
                    ready.push(*from);
                }
            }
        }
    }
    looped
}

/// Fills in the program's lists of rules that are left to the kernel or use connection tracking.
pub(super) fn report(program: &mut Program, ruleset: &Ruleset) {
    let reached = reached(program, &FORWARDED);
    let conntrack = uses_of_conntrack(ruleset, &reached);
    program.local_conntrack = uses_of_conntrack(ruleset, &self::reached(program, &LOCAL));
    // What PRE_ROUTING or OUTPUT do not track, INPUT sees: all packets are tracked then.
    let untracked = first_uses(ruleset, &self::reached(program, &UNTRACKING), |expr| {
        matches!(expr, Expr::Notrack).then_some("notrack")
    });
    let ours = Family::is_compiled;
    let rules = conntrack.into_iter().zip(untracked).zip(&program.local_conntrack);
    for (((of_rules, untracked), local), of_chains) in rules.zip(&mut program.conntrack) {
        let untracked = untracked.filter(|_| local.is_some());
        *of_chains = of_rules.or(untracked).or_else(|| of_chains.take());
    }
    for table in ruleset.tables.iter().filter(|table| ours(table.family)) {
        let counts = |set: &&Set| set.unsupported.as_deref() == Some(COUNTS_CONNECTIONS);
        if let Some(set) = table.sets.iter().find(counts) {
            let use_of = || format!("{} {} set {}: ct count", table.family, table.name, set.name);
            for first in of_family(&mut program.conntrack, table.family) {
                first.get_or_insert_with(use_of);
            }
        }
        // The kernel may still translate and forward connections that a rule, perhaps deleted since, has added.
        if let Some(flowtable) = table.flowtables.first() {
            let use_of = || format!("{} {} flowtable {flowtable}", table.family, table.name);
            for first in of_family(&mut program.conntrack, table.family) {
                first.get_or_insert_with(use_of);
            }
        }
    }
    program.kernel_rules = kernel_rules(program, ruleset, &reached);
    program.sets_marks = sets_marks(program, &reached);
}

/// For IPv4 and IPv6, the first rule of reached chains that uses connection tracking.
fn uses_of_conntrack(ruleset: &Ruleset, reached: &[bool]) -> [Option<String>; 2] {
    first_uses(ruleset, reached, tracks)
}

/// For IPv4 and IPv6, the first rule of reached chains with an expression that is found.
fn first_uses(
    ruleset: &Ruleset,
    reached: &[bool],
    find: impl Fn(&Expr) -> Option<&str>,
) -> [Option<String>; 2] {
    let tables = ruleset.tables.iter().filter(|table| table.family.is_compiled());
    let chains = tables.flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    let mut conntrack = [None, None];
    for ((table, chain), _) in chains.zip(reached).filter(|(_, reached)| **reached) {
        for rule in &chain.rules {
            let name = format!("{} {}", table.family, table.name);
            if let Some(expr) = rule.exprs.iter().find_map(&find) {
                let use_of = || format!("{name} {} handle {}: {expr}", chain.name, rule.handle);
                for first in of_family(&mut conntrack, table.family) {
                    first.get_or_insert_with(use_of);
                }
            }
        }
    }
    conntrack
}

/// Whether a rule of reached chains sets the mark of packets.
fn sets_marks(program: &Program, reached: &[bool]) -> bool {
    let chains = program.chains.iter().zip(reached).filter(|(_, reached)| **reached);
    let mut rules = chains.flat_map(|(chain, _)| chain.start..chain.end);
    rules.any(|step| {
        let rule = program.steps.get(step as usize);
        let ops = rule.and_then(|rule| program.ops.get(rule.start as usize..rule.end as usize));
        ops.unwrap_or(&[]).iter().any(|op| matches!(op, Op::SetMark { .. } | Op::Connmark(_)))
    })
}

/// The rules of reached chains that are left to the kernel.
fn kernel_rules(program: &Program, ruleset: &Ruleset, reached: &[bool]) -> Vec<KernelRule> {
    let tables = ruleset.tables.iter().filter(|table| table.family.is_compiled());
    let chains = tables.flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    let (at_ingress, mut tracked) = (self::reached(program, &[]), program.tracked_families());
    let mut rules = Vec::new();
    for (number, (table, chain)) in chains.enumerate() {
        if !reached.get(number).is_some_and(|reached| *reached) {
            continue;
        }
        let is_tracked = of_family(&mut tracked, table.family).any(|is| *is);
        let is_left = |op: &Op| {
            let is_at_ingress = at_ingress.get(number) == Some(&true);
            let is_tuple = is_tracked && may_write_tuple(op, table.family);
            match op {
                Op::Write(_) if is_at_ingress => Some(DIFFERS),
                Op::Notrack if is_tracked => Some(NO_CONNECTION),
                _ => is_tuple.then_some(WRITES_TUPLE),
            }
        };
        let kernel = kernel_reasons(program, number, is_left);
        for (at, rule) in chain.rules.iter().enumerate() {
            let Some((op, reason)) = kernel.get(&at) else { continue };
            let text = match program.ops.get(*op as usize) {
                Some(Op::Notrack) => "notrack",
                _ => program.reason(*reason),
            };
            rules.push(KernelRule {
                table: format!("{} {}", table.family, table.name),
                chain: chain.name.clone(),
                handle: rule.handle,
                text: text.to_owned(),
                op: *op,
            });
        }
    }
    rules
}

/// Of what is by family, IPv4 and IPv6, that of a table's family (`nf_ct_netns_get`).
pub(super) fn of_family<T>(all: &mut [T; 2], family: Family) -> impl Iterator<Item = &mut T> {
    let families = [Family::Ip, Family::Ip6].into_iter();
    let is_of = move |own: Family| family == own || family == Family::Inet;
    families.zip(all).filter(move |(own, _)| is_of(*own)).map(|(_, it)| it)
}

/// For each chain, whether a packet can reach it at ingress or one of these hooks.
fn reached(program: &Program, hooks: &[usize]) -> Vec<bool> {
    let mut reached = vec![false; program.chains.len()];
    let bases = (program.hooks.iter())
        .flat_map(|of_family| hooks.iter().filter_map(|hook| of_family.get(*hook)));
    let at_ingress = program.ingress.iter().map(|chain| &chain.base);
    let mut open: Vec<u32> = bases
        .flatten()
        .chain(at_ingress)
        .filter_map(|base| program.bases.get(base.0 as usize))
        .map(|base| base.chain)
        .collect();
    while let Some(chain) = open.pop() {
        let Some(seen) = reached.get_mut(chain as usize) else { continue };
        if std::mem::replace(seen, true) {
            continue;
        }
        let flows = rules(program, chain as usize).flatten().flat_map(|op| flows(program, op));
        open.extend(flows.filter_map(|flow| match flow {
            Flow::Jump(to) | Flow::Goto(to) => Some(*to),
            _ => None,
        }));
    }
    reached
}

/// The operations of each rule of a chain.
fn rules(program: &Program, chain: usize) -> impl Iterator<Item = &[Op]> {
    let chain = program.chains.get(chain).map_or(0..0, |chain| chain.start..chain.end);
    let steps = program.steps.get(chain.start as usize..chain.end as usize).unwrap_or(&[]);
    let ops = |step: &Step| program.ops.get(step.start as usize..step.end as usize);
    steps.iter().map(move |step| ops(step).unwrap_or(&[]))
}

/// The verdicts that an operation can give.
fn flows<'a>(program: &'a Program, op: &'a Op) -> &'a [Flow] {
    match op {
        Op::Flow(flow) => std::slice::from_ref(flow),
        Op::Lookup { set, is_vmap: true, .. } => {
            program.sets.get(*set as usize).map_or(&[], |set| set.verdicts())
        }
        _ => &[],
    }
}

/// Positions of a chain's rules that are left to the kernel, with the number of the first operation for which they are, and
/// the reason. `is_left`: why an operation is, if it is so in this chain.
fn kernel_reasons(
    program: &Program,
    chain: usize,
    is_left: impl Fn(&Op) -> Option<u32>,
) -> HashMap<usize, (u32, u32)> {
    let reason = |op: &Op| match op {
        Op::Kernel(reason) => Some(*reason),
        op => is_left(op).or_else(|| {
            flows(program, op).iter().find_map(|flow| match flow {
                Flow::Kernel(reason) => Some(*reason),
                _ => None,
            })
        }),
    };
    let first = |(start, ops): (u32, &[Op])| {
        (start..).zip(ops).find_map(|(number, op)| Some((number, reason(op)?)))
    };
    let start = program.steps_of(chain as u32).map_or(0, |(start, _)| start as usize);
    let starts = program.steps.get(start..).unwrap_or(&[]).iter().map(|step| step.start);
    let rules = starts.zip(rules(program, chain)).enumerate();
    rules.filter_map(|(at, rule)| Some((at, first(rule)?))).collect()
}

/// Beginnings of the names of expressions that use connection tracking.
const CONNTRACK: [&str; 31] = [
    "ct",
    "nat",
    "masq",
    "masquerade",
    "redir",
    "redirect",
    "flow_offload",
    "flow",
    "flow add",
    "synproxy",
    "connlimit",
    // To helpers, time-outs or expectations, perhaps.
    "objref map",
    "tproxy",
    "xt match conntrack",
    "xt match state",
    "xt match connmark",
    "xt match connlimit",
    "xt match connbytes",
    "xt match connlabel",
    "xt match helper",
    "xt match cluster",
    "xt target CT",
    "xt target CONNMARK",
    "xt target CONNSECMARK",
    "xt target SNAT",
    "xt target DNAT",
    "xt target MASQUERADE",
    "xt target REDIRECT",
    "xt target NETMAP",
    "xt target SYNPROXY",
    "xt target NOTRACK",
];

/// An expression `ct`, as nft names it.
fn ct_name(key: CtKey) -> &'static str {
    match key {
        CtKey::State => "ct state",
        CtKey::Direction => "ct direction",
        CtKey::Status => "ct status",
        CtKey::Mark => "ct mark",
        CtKey::L3Proto => "ct l3proto",
        CtKey::Protocol => "ct protocol",
        CtKey::Zone => "ct zone",
        CtKey::Ipv4(_, TupleEnd::Src) => "ct ip saddr",
        CtKey::Ipv4(_, TupleEnd::Dst) => "ct ip daddr",
        CtKey::Ipv6(_, TupleEnd::Src) => "ct ip6 saddr",
        CtKey::Ipv6(_, TupleEnd::Dst) => "ct ip6 daddr",
        CtKey::Port(_, TupleEnd::Src) => "ct proto-src",
        CtKey::Port(_, TupleEnd::Dst) => "ct proto-dst",
    }
}

/// The text of an expression that uses connection tracking.
pub(super) fn tracks(expr: &Expr) -> Option<&str> {
    let text = match expr {
        Expr::Other(other) => other.name.as_str(),
        Expr::Ct { key, .. } => return Some(ct_name(*key)),
        Expr::SetCtMark { .. } => "ct mark set",
        Expr::Connmark(_) => "xt target CONNMARK",
        // Helpers, connlimit, timeouts, expectations and synproxy (NFT_OBJECT_*).
        Expr::Objref { kind: 3, .. } => "ct helper",
        Expr::Objref { kind: 5, .. } => "connlimit",
        Expr::Objref { kind: 7, .. } => "ct timeout",
        Expr::Objref { kind: 9, .. } => "ct expectation",
        Expr::Objref { kind: 10, .. } => "synproxy",
        _ => return None,
    };
    let begins = |name: &str| {
        let rest = text.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    CONNTRACK.iter().any(|name| begins(name)).then_some(text)
}
