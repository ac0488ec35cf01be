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
    /// Of use for new connections only.
    New,
    /// `flow add`.
    Flowtable,
    /// The maximum segment size, which only SYN has; also `rt mtu`, to which it is set.
    Mss,
    Notrack,
    /// Writes addresses or ports.
    Nat,
    /// `-m set`.
    Ipset,
    /// Matches of iptables that look at octets of the packet.
    Octets,
    /// All others.
    Other,
}

impl Kind {
    /// By the text of [`KernelRule`].
    fn of(text: &str) -> Kind {
        let begins = |names: &[&str]| names.iter().any(|name| text.starts_with(name));
        if begins(&["ct helper", "ct timeout", "ct expectation", "connlimit", "xt match connlimit"])
        {
            Kind::New
        } else if begins(&["flow add", "flow_offload"]) {
            Kind::Flowtable
        } else if text == "rt" || begins(&["exthdr set", "xt target TCPMSS"]) {
            Kind::Mss
        } else if begins(&["notrack", "xt target NOTRACK", "xt target CT"]) {
            Kind::Notrack
        } else if text == WRITES_TUPLE_TEXT {
            Kind::Nat
        } else if begins(&["xt match set"]) {
            Kind::Ipset
        } else if begins(&["xt match u32", "xt match bpf", "xt match string"]) {
            Kind::Octets
        } else {
            Kind::Other
        }
    }
}

/// What to write instead of a rule, without connections.
fn stateless(text: &str) -> String {
    match Kind::of(text) {
        Kind::Ipset => format!("{SET}, which userspace looks up; or {FEW}"),
        Kind::Octets => format!("{OCTETS}, which userspace evaluates; or {FEW}"),
        _ => FEW.to_owned(),
    }
}

const SET: &str = "a set of nft (nft add set, ip saddr @name) instead of -m set";
const OCTETS: &str = "a raw payload expression of nft (@nh,… or @th,…) instead";

/// Whether a base chain runs before connection tracking.
fn is_early((hook, priority): (Option<Hook>, i32)) -> bool {
    hook == Some(Hook::PreRouting) && priority < priority::CONNTRACK
}

/// What to write instead of a rule that packets of carried connections reach through these base chains.
fn remedy(program: &Program, bases: &[BaseChainId], text: &str) -> String {
    let (new, established) = match text.starts_with("xt ") {
        true => ("-m conntrack --ctstate NEW in it", ACCEPT_XT),
        false => ("ct state new before it, in the same rule", ACCEPT),
    };
    let names: Vec<&str> = bases.iter().map(|base| program.chain_name(*base)).collect();
    let names = one_line(&names.join(" and "));
    let hooks = || bases.iter().map(|base| (program.hook(*base), program.priority(*base)));
    let before = if hooks().any(|(hook, _)| hook.is_none()) {
        format!(
            "at ingress connections are not known: write it at the hook prerouting or forward, \
             behind {established}"
        )
    } else if hooks().any(is_early) {
        format!(
            "before connection tracking connections are not known: write it in a chain of priority \
             mangle (-150) or later, behind {established}"
        )
    } else {
        format!("if established connections may pass it: {established} before it, in chain {names}")
    };
    match Kind::of(text) {
        // Before connection tracking all connections seem new.
        Kind::New if !hooks().any(is_early) => {
            format!("if it concerns new connections only: {new}; or, {before}")
        }
        Kind::Flowtable => {
            "delete it and the flowtable, and userspace carries these connections".to_owned()
        }
        Kind::Mss => {
            "if it sets the maximum segment size: match SYN before it (tcp flags & (syn | \
                      rst) == syn), which alone has one"
                .to_owned()
        }
        Kind::Notrack => "nothing, if these packets need not be fast: what is not tracked is the \
                          kernel's; else delete it, and userspace carries these connections"
            .to_owned(),
        Kind::Nat => {
            "a chain of type nat (snat to, dnat to), whose connections userspace carries".to_owned()
        }
        Kind::Ipset => format!("{SET}; or, {before}"),
        Kind::Octets => format!("{OCTETS}; or, {before}"),
        Kind::New | Kind::Other => before,
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
            format!("give it another priority, for example {}", priority - 1),
        )
    };
    program.beside_nat().into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_replaces_a_rule_depends_on_its_kind() {
        for (text, kind) in [
            ("limit", Kind::Other),
            ("xt target LOG", Kind::Other),
            ("ct helper ftp", Kind::New),
            ("xt match connlimit", Kind::New),
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
    fn of_many_rules_some_are_named() {
        assert_eq!(not_met(&[]), None);
        let rules: Vec<String> = (1..8).map(|n| format!("ip t f handle {n}: log")).collect();
        let said = not_met(&rules).expect("a finding").message;
        assert!(said.ends_with("handle 5: log; and 2 more (rules show)"), "{said}");
        let one = not_met(&rules[..1]).expect("a finding").message;
        assert!(one.ends_with("reaches: ip t f handle 1: log"), "{one}");
    }
}
