//! Rules of the nftables ruleset that only the kernel evaluates: which of them keep connections in the kernel, and what to
//! write instead.

use super::Finding;
use crate::control::firewall::ruleset::Compiled;
use crate::control::nftables::print::one_line;
use crate::netfilter::nft::carried_rules::{CarriedRule, Meets, carried_rules};
use crate::netfilter::nft::{BaseChainId, KernelRule, Program, WRITES_TUPLE_TEXT};
use crate::netfilter::{Hook, priority};

/// Rules that are named in one line.
const NAMED_MAX: usize = 5;
const CHECK: &str = "firewall";
/// What established connections are accepted with, in nft's and in iptables' words.
const ACCEPT: &str = "ct state established,related accept";
const ACCEPT_XT: &str = "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
/// The target of iptables that takes packets out of connection tracking.
const XT_NOTRACK: &str = "xt target CT --notrack";
/// What is done about a rule of a ruleset that tracks no connections.
const FEW: &str = "nothing, if these are few packets; else accept the others in rules before it";

/// Findings about the rules that are left to the kernel, and about chains whose priority keeps packets there.
pub fn findings(compiled: &Compiled) -> Vec<Finding> {
    let program = &compiled.program;
    let mut findings = beside_nat(program);
    let warning = |rule: &KernelRule| {
        let message =
            format!("{}: packets that reach this rule are left to the kernel", line(rule));
        Finding::warn(CHECK, message, stateless(&rule.text))
    };
    if !program.tracks_connections() {
        findings.extend(program.kernel_rules().map(warning));
        return findings;
    }
    let mut harmless = Vec::new();
    for of in carried_rules(program, &compiled.ruleset) {
        findings.extend(met_by_some(program, &of));
        match of.left {
            Some(left) if of.meets == Meets::Kernel => findings.push(met(program, &of, left)),
            // The connections of one family are tracked, and packets of the other one may reach it.
            Some(left) if !of.is_tracked => findings.push(warning(left)),
            Some(left) => harmless.push(place(left)),
            None => {}
        }
    }
    findings.extend(not_met(&harmless));
    findings
}

/// Family and table, chain, handle and why, of a rule.
fn place(rule: &KernelRule) -> String {
    let KernelRule { table, chain, handle, text, .. } = rule;
    one_line(&format!("{table} {chain} handle {handle}: {text}"))
}

fn line(rule: &KernelRule) -> String {
    format!("nftables: {}", place(rule))
}

/// A rule that packets of carried connections reach.
fn met(program: &Program, of: &CarriedRule<'_>, left: &KernelRule) -> Finding {
    // Before connection tracking the connection is not known, and remains carried.
    let is_late = |base: &&BaseChainId| {
        let (hook, priority) = (program.hook(**base), program.priority(**base));
        hook.is_some() && !is_early((hook, priority))
    };
    let what = match of.bases.iter().find(is_late) {
        Some(_) => "connections whose packets reach this rule stay with the kernel",
        None => "packets that reach this rule are left to the kernel",
    };
    let message = format!("{}: {what}", line(left));
    Finding::warn(CHECK, message, remedy(program, &of.bases, &left.text))
}

/// A rule that leaves some of the connections that reach it to the kernel.
fn met_by_some(program: &Program, of: &CarriedRule<'_>) -> Option<Finding> {
    // Others are named with all connections.
    let which = of.left_of.text().filter(|_| of.meets != Meets::Kernel)?;
    let CarriedRule { table, chain, rule, bases, .. } = of;
    let place = format!("{} {} {} handle {}", table.family, table.name, chain.name, rule.handle);
    let message = format!(
        "nftables: {}: it looks at addresses or ports of the tuples: {which} that reach this rule \
         stay with the kernel",
        one_line(&place)
    );
    Some(Finding::warn(CHECK, message, before(program, bases, ACCEPT)))
}

/// The rules that no packet of a carried connection reaches, in one line.
fn not_met(rules: &[String]) -> Option<Finding> {
    let named = rules.get(..NAMED_MAX).unwrap_or(rules).join("; ");
    let more = match rules.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more (rules show)"),
    };
    let message = format!(
        "rules of the kernel that no packet of a carried connection reaches: {named}{more}"
    );
    (!rules.is_empty()).then(|| Finding::ok(CHECK, message))
}

/// A kind of rule, by what replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Has an effect on new connections only, which must be tracked: without one it does nothing.
    New,
    /// Counts or limits packets, or logs them: may be meant for new connections only.
    Looks,
    /// `flow add`.
    Flowtable,
    /// The maximum segment size, which only SYN has; also `rt mtu`, to which it is set.
    Mss,
    Notrack,
    /// `ct zone set`, which has an effect before connection tracking only.
    Zone,
    /// The target CT of iptables with zone, helper, time-out or events.
    Template,
    /// `meta nftrace set`.
    Trace,
    /// Writes addresses or ports.
    Nat,
    /// `-m set`.
    Ipset,
    /// Matches of iptables that look at octets of the packet, perhaps at fixed offsets.
    Octets,
    /// All others.
    Other,
}

impl Kind {
    /// By the text of [`KernelRule`].
    fn of(text: &str) -> Kind {
        let begins = |names: &[&str]| names.iter().any(|name| text.starts_with(name));
        match text {
            "rt" => return Kind::Mss,
            "ct zone set" => return Kind::Zone,
            "meta nftrace set" => return Kind::Trace,
            WRITES_TUPLE_TEXT => return Kind::Nat,
            "xt target CT" => return Kind::Template,
            _ => {}
        }
        if begins(&NEW) {
            Kind::New
        } else if begins(&LOOKS) {
            Kind::Looks
        } else if begins(&["flow add", "flow_offload"]) {
            Kind::Flowtable
        } else if begins(&["exthdr set", "xt target TCPMSS"]) {
            Kind::Mss
        } else if begins(&["notrack", "xt target NOTRACK", XT_NOTRACK]) {
            Kind::Notrack
        } else if begins(&["xt match set"]) {
            Kind::Ipset
        } else if begins(&["xt match u32", "xt match bpf"]) {
            Kind::Octets
        } else {
            Kind::Other
        }
    }
}

/// `nft_ct_helper_obj_eval`, `nft_ct_timeout_obj_eval` and `nft_ct_expect_obj_eval` do nothing for packets without a
/// connection or of one that is confirmed; the kernel keeps events and labels of a connection.
const NEW: [&str; 5] =
    ["ct helper", "ct timeout", "ct expectation", "ct event set", "ct label set"];
const LOOKS: [&str; 14] = [
    "limit",
    "log",
    "quota",
    "last",
    "dynset",
    // A lookup in one whose elements have counters, or that rules add elements to.
    "set ",
    "connlimit",
    "xt match connlimit",
    "xt match limit",
    "xt match hashlimit",
    "xt match recent",
    "xt match quota",
    "xt target LOG",
    "xt target NFLOG",
];

/// What to write instead of a rule, without connections.
fn stateless(text: &str) -> String {
    match Kind::of(text) {
        Kind::Ipset => format!("{SET}, which userspace looks up; or {FEW}"),
        Kind::Octets => format!("{OCTETS}, which userspace evaluates; or {FEW}"),
        _ => FEW.to_owned(),
    }
}

const SET: &str = "a set of nft (nft add set, ip saddr @name) instead of -m set, and let what fills \
                   the ipset fill it";
const OCTETS: &str =
    "if it looks at fixed offsets: a raw payload expression of nft (@nh,… or @th,…) instead";

/// Whether a base chain runs before connection tracking.
fn is_early((hook, priority): (Option<Hook>, i32)) -> bool {
    hook == Some(Hook::PreRouting) && priority < priority::CONNTRACK
}

/// Where a rule is moved, or what is put before it, so that packets of carried connections do not reach it through these
/// base chains.
fn before(program: &Program, bases: &[BaseChainId], established: &str) -> String {
    let names: Vec<&str> = bases.iter().map(|base| program.chain_name(*base)).collect();
    let names = one_line(&names.join(" and "));
    let mut hooks = bases.iter().map(|base| (program.hook(*base), program.priority(*base)));
    let (unknown, to) = if hooks.clone().any(|(hook, _)| hook.is_none()) {
        ("at ingress", "at the hook prerouting or forward")
    } else if hooks.any(is_early) {
        ("before connection tracking", "in a chain of priority mangle (-150) or later")
    } else {
        return format!(
            "if established connections may pass it and all rules behind it in the chain: \
             {established} before it, in chain {names}"
        );
    };
    format!(
        "{unknown} connections are not known: if established connections may pass it, write it \
         {to}, behind {established} (it then runs after connection tracking, and no longer \
         protects the connection table)"
    )
}

/// What is known of the base chains through which a rule is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Behind connection tracking.
    Late,
    /// Before it, or at ingress: all connections seem new.
    Early,
}

/// What to write instead of a rule that packets of carried connections reach through these base chains.
fn remedy(program: &Program, bases: &[BaseChainId], text: &str) -> String {
    let established = if text.starts_with("xt ") { ACCEPT_XT } else { ACCEPT };
    let at = |base: &BaseChainId| (program.hook(*base), program.priority(*base));
    let is_early = |base: &BaseChainId| at(base).0.is_none() || is_early(at(base));
    let place = if bases.iter().any(is_early) { Place::Early } else { Place::Late };
    instead(text, place, &before(program, bases, established))
}

/// The same. `before`: see [`before`].
fn instead(text: &str, place: Place, before: &str) -> String {
    let new = match text.starts_with("xt ") {
        true => "-m conntrack --ctstate NEW in it",
        false => "ct state new before it, in the same rule",
    };
    match (Kind::of(text), place) {
        (Kind::New, Place::Early) => {
            "delete it: before connection tracking it has no effect".to_owned()
        }
        (Kind::New | Kind::Looks, Place::Late) => {
            format!("if it concerns new connections only: {new}; or, {before}")
        }
        (Kind::Flowtable, _) => {
            "delete it and the flowtable, and userspace carries these connections".to_owned()
        }
        (Kind::Mss, _) => {
            "if it sets the maximum segment size: match SYN before it (tcp flags & (syn | \
             rst) == syn), which alone has one"
                .to_owned()
        }
        (Kind::Notrack, _) => {
            "nothing, if these packets need not be fast: what is not tracked is the \
                               kernel's; else delete it, and userspace carries these connections"
                .to_owned()
        }
        (Kind::Zone, Place::Early) => {
            "nothing: only connections of the default zone are carried".to_owned()
        }
        (Kind::Zone, Place::Late) => {
            "delete it: behind connection tracking it has no effect".to_owned()
        }
        (Kind::Template, _) => {
            "nothing: it sets the zone, helper, time-out or events of connections; \
                                match no more packets than need that (protocol and port)"
                .to_owned()
        }
        (Kind::Trace, _) => {
            "delete it when nothing is traced any more: the kernel traces what it matches"
                .to_owned()
        }
        (Kind::Nat, _) => {
            "a chain of type nat (snat to, dnat to), whose connections userspace carries".to_owned()
        }
        (Kind::Ipset, _) => format!("{SET}; or, {before}"),
        (Kind::Octets, _) => format!("{OCTETS}; or, {before}"),
        (Kind::Looks, Place::Early) | (Kind::Other, _) => before.to_owned(),
    }
}

/// Chains that run beside NAT: it is not known which of the two is first.
fn beside_nat(program: &Program) -> Vec<Finding> {
    let finding = |base: BaseChainId| {
        let (name, priority) = (one_line(program.chain_name(base)), program.priority(base));
        Finding::warn(
            CHECK,
            format!(
                "nftables: chain {name} has the priority of NAT ({priority}), and their order is not \
                 known: connections with NAT stay with the kernel"
            ),
            beside(priority),
        )
    };
    program.beside_nat().into_iter().map(finding).collect()
}

/// Priorities on both sides of NAT, one of which is the chain's.
fn beside(priority: i32) -> String {
    format!(
        "give it another priority: {}, if its rules are for addresses before they are translated, {} \
         if for those after",
        priority - 1,
        priority + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replaces_a_rule_depends_on_its_kind() {
        for (text, kind) in [
            ("limit", Kind::Looks),
            ("set s: elements with counters", Kind::Looks),
            ("xt target LOG", Kind::Looks),
            ("ct helper ftp", Kind::New),
            ("ct event set", Kind::New),
            ("xt match connlimit", Kind::Looks),
            ("ct zone set", Kind::Zone),
            ("meta nftrace set", Kind::Trace),
            ("xt target CT", Kind::Template),
            ("xt target CT --notrack", Kind::Notrack),
            ("xt match string", Kind::Other),
            ("reject", Kind::Other),
            ("flow add @ft", Kind::Flowtable),
            ("exthdr set", Kind::Mss),
            ("rt", Kind::Mss),
            ("xt target TCPMSS", Kind::Mss),
            ("notrack", Kind::Notrack),
            ("xt match set", Kind::Ipset),
            ("xt match u32", Kind::Octets),
            (WRITES_TUPLE_TEXT, Kind::Nat),
        ] {
            assert_eq!(Kind::of(text), kind, "{text}");
        }
        assert!(stateless("xt match set").starts_with("a set of nft"));
        assert_eq!(stateless("log"), FEW);
    }

    #[test]
    fn what_is_said_depends_on_the_place() {
        let early = |text| instead(text, Place::Early, "MOVED");
        let late = |text| instead(text, Place::Late, "ACCEPTED");
        assert!(early("ct zone set").starts_with("nothing: only connections of the default zone"));
        assert!(late("ct zone set").starts_with("delete it"));
        assert!(early("ct label set").starts_with("delete it"));
        assert_eq!([early("limit"), early("reject")], ["MOVED", "MOVED"]);
        let new = "if it concerns new connections only: ct state new before it, in the same rule; or, ACCEPTED";
        assert_eq!([late("limit"), late("ct helper ftp")], [new, new]);
        assert_eq!([late("reject"), late("xt match string")], ["ACCEPTED", "ACCEPTED"]);
        for place in [Place::Early, Place::Late] {
            let said = instead("xt target CT", place, "");
            assert!(said.starts_with("nothing: ") && !said.contains("delete"), "{said}");
            let said = instead("xt target CT --notrack", place, "");
            assert!(said.contains("else delete it"), "{said}");
        }
    }

    #[test]
    fn both_sides_of_nat_are_named() {
        let said = beside(priority::NAT_DST);
        assert!(said.contains("-101, if its rules are for addresses before"), "{said}");
        assert!(said.ends_with("-99 if for those after"), "{said}");
    }

    #[test]
    fn of_many_rules_some_are_named() {
        assert_eq!(not_met(&[]), None);
        let rules: Vec<String> = (1..8).map(|n| format!("ip t f handle {n}: log")).collect();
        let said = not_met(&rules).expect("a finding").message;
        assert!(said.ends_with("handle 5: log; and 2 more (rules show)"), "{said}");
        let one = not_met(&rules[..1]).expect("a finding").message;
        assert!(one.ends_with("reaches: ip t f handle 1: log"), "{one}");
    }
}
