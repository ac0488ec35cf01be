//! Prints a ruleset as `nft --debug=netlink list ruleset` (libnftnl) does: each rule with its
//! expressions, each set with its elements.

use std::collections::BTreeMap;

use super::Ruleset;
use crate::control::nftables::netlink_text::{expr, verdict, words};
use crate::control::nftables::xt::XT_REG;
use crate::netfilter::nft::ruleset::{Data, Element, Expr};

/// Lines of each rule, by family, table, chain and handle, and of each set, by family, table and name.
pub type Printed = BTreeMap<String, Vec<String>>;

pub fn print(ruleset: &Ruleset) -> Printed {
    let mut printed = Printed::new();
    for table in &ruleset.tables {
        let of = format!("{} {}", table.family, table.name);
        for chain in &table.chains {
            for rule in &chain.rules {
                let lines =
                    rule.exprs.iter().filter(|expr| !is_extension(expr)).map(line).collect();
                printed.insert(format!("{of} {} {}", chain.name, rule.handle), lines);
            }
        }
        // The elements of sets that are not evaluated are not all known.
        for set in table.sets.iter().filter(|set| set.unsupported.is_none()) {
            let mut lines: Vec<String> = set.elements.iter().map(element).collect();
            lines.sort();
            printed.insert(format!("{of} @{}", set.name), lines);
        }
    }
    printed
}

/// Reads what nft printed; sets of `ruleset` that are not evaluated are left out.
pub fn of_nft(text: &str, ruleset: &Ruleset) -> Printed {
    let mut printed = Printed::new();
    let mut name = String::new();
    // The ruleset in nft's language follows.
    for line in text.lines().take_while(|line| !line.starts_with("table ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // It swaps groups of two octets, of which there is none in one octet.
            ["[", "byteorder", .., "2,", "1)", "]"] => {}
            // nft does not print what extensions of iptables do.
            ["[", "match" | "target", "name", ..] => {}
            ["[", .., "]"] => printed.get_mut(&name).expect("has a head").push(of_expr(&words)),
            ["element", ..] => {
                let text = words.join(" ");
                let end = text.find("[end]").expect("an element");
                printed.get_mut(&name).expect("has a head").push(text[..end].trim().to_owned());
            }
            [family, table, set] => {
                name = format!("{family} {table} {set}");
                printed.insert(name.clone(), Vec::new());
            }
            [family, table, chain, handle] | [family, table, chain, handle, _] => {
                name = format!("{family} {table} {chain} {handle}");
                printed.insert(name.clone(), Vec::new());
            }
            _ => {}
        }
    }
    for table in &ruleset.tables {
        for set in table.sets.iter().filter(|set| set.unsupported.is_some()) {
            printed.remove(&format!("{} {} @{}", table.family, table.name, set.name));
        }
    }
    let sets = printed.iter_mut().filter(|(name, _)| name.contains('@'));
    sets.for_each(|(_, lines)| lines.sort());
    printed
}

/// An expression that nft printed, with one text for all that the model does not have.
fn of_expr(words: &[&str]) -> String {
    let text = words.join(" ").replace("ntoh(", "hton(");
    let other = |text: &str| format!("other: {text}");
    match words[1..] {
        ["exthdr", "write", ..] => other("exthdr set"),
        ["exthdr", "load", "ipv6" | "tcpopt" | "ipv4", ..] => text,
        ["exthdr", ..] => other("exthdr sctp"),
        ["meta", "set", "mark", ..] => text,
        ["meta", "set", key, ..] => other(&format!("meta {key} set")),
        ["ct", "set", "mark", ..] => text,
        ["ct", "set", key, ..] => other(&format!("ct {key} set")),
        ["ct", "load", "label" | "expiration" | "avgpkt", ..] => other(&format!("ct {}", words[3])),
        ["objref", "sreg", ..] => other("objref map"),
        // `dynset <op> reg_key <register> set <name>`
        ["dynset", _, "reg_key", _, "set", set, ..] => other(&format!("dynset {set}")),
        ["rt", "load", "ipsec", ..] => text,
        [
            "immediate" | "cmp" | "range" | "bitwise" | "byteorder" | "lookup" | "payload" | "meta"
            | "counter" | "objref" | "notrack" | "fib" | "ct" | "xfrm",
            ..,
        ] => text,
        [name, ..] => other(name),
        [] => text,
    }
}

/// Whether it stands for an extension of iptables, or for a part of one.
fn is_extension(of: &Expr) -> bool {
    match of {
        Expr::Other(other) => other.name.starts_with("xt "),
        Expr::Xt(_) | Expr::Connmark(_) | Expr::Mangle(_) => true,
        Expr::Ct { dreg: reg, .. }
        | Expr::Meta { dreg: reg, .. }
        | Expr::Fib { dreg: reg, .. }
        | Expr::Payload { dreg: reg, .. }
        | Expr::Bitwise { sreg: reg, .. }
        | Expr::Cmp { sreg: reg, .. }
        | Expr::Range { sreg: reg, .. }
        | Expr::SetMark { sreg: reg } => *reg == XT_REG,
        _ => false,
    }
}

fn line(of: &Expr) -> String {
    match of {
        Expr::Other(other) => format!("other: {}", other.name),
        of => expr(of),
    }
}

fn element(element: &Element) -> String {
    let flags = u8::from(element.is_interval_end) | u8::from(element.is_catchall) << 1;
    let end = element.key_end.iter().map(|end| format!(" - {}", words(end, "")));
    let data = element.data.iter().map(|data| match data {
        Data::Value(value) => format!("{} ", words(value, "")),
        Data::Verdict(of) => format!("{} ", verdict(of)),
    });
    let key = words(&element.key, "") + &end.collect::<String>();
    let text = format!("element {key} : {}{flags}", data.collect::<String>());
    text.split_whitespace().collect::<Vec<&str>>().join(" ")
}
