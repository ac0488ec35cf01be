//! Which part of a rule did not match a packet, and what the packet has instead, in nft's words.

use std::ops::Range;

use super::print::Printer;
use crate::netfilter::nft::ruleset::{CmpOp, Expr, MetaKey, Reg, Rule, Table};

/// An expression that did not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The expression, for example `tcp dport 22`.
    pub expression: String,
    /// The value that the packet has, for example `5001`; `None`: it has none.
    pub value: Option<String>,
}

/// The text of the expressions at these positions of a rule, of which the last one did not match, and of the octets
/// that it compared: with those of `exprs` before the comparison left out, if there are several.
pub fn mismatch(table: &Table, rule: &Rule, exprs: Range<usize>, octets: &[u8]) -> Mismatch {
    // What was not loaded was to be compared.
    let compares =
        |expr: &Expr| matches!(expr, Expr::Cmp { .. } | Expr::Range { .. } | Expr::Lookup { .. });
    let last = exprs.end.saturating_sub(1);
    let compared = rule.exprs.iter().skip(last).position(compares).map(|at| last + at + 1);
    let exprs = exprs.start..compared.unwrap_or(exprs.end);
    let before = words(table, rule.exprs.get(..exprs.start).unwrap_or(&[]).to_vec());
    let with = words(table, rule.exprs.get(..exprs.end).unwrap_or(&[]).to_vec());
    let expression = rest(&with, &before);
    let value = (!octets.is_empty()).then(|| {
        let text = value(table, rule, &exprs, octets, &before, expression);
        text.unwrap_or_else(|| hex(octets))
    });
    Mismatch { expression: expression.join(" "), value }
}

/// The value in the words of a rule that would match it.
fn value(
    table: &Table,
    rule: &Rule,
    exprs: &Range<usize>,
    octets: &[u8],
    before: &[String],
    expression: &[String],
) -> Option<String> {
    // A load is kept; a mask after it is not: the value is what was loaded.
    let kept = if exprs.len() == 1 { exprs.start } else { exprs.start + 1 };
    let mut matching = rule.exprs.get(..kept)?.to_vec();
    let fields = match rule.exprs.get(exprs.end.checked_sub(1)?)? {
        Expr::Cmp { sreg, data: with, .. } | Expr::Range { sreg, from: with, .. } => {
            let octets = match matching.last() {
                // Compared up to the length of a prefix.
                Some(Expr::Meta { key: MetaKey::IifName | MetaKey::OifName, .. }) => octets,
                _ => octets.get(..with.len()).unwrap_or(octets),
            };
            matching.push(equal(*sreg, octets));
            1
        }
        Expr::Lookup { sreg, .. } => {
            let fields = fields(&matching, *sreg, octets);
            let count = fields.len();
            matching.extend(fields);
            count
        }
        _ => return None,
    };
    let with = words(table, matching);
    let mut value = rest(&with, before);
    if fields == 1 {
        value = rest(value, expression);
        let is_operator =
            |word: &String| matches!(word.as_str(), "==" | "!=" | "<" | ">" | "<=" | ">=");
        if let Some((_, later)) = value.split_first().filter(|(first, _)| is_operator(first)) {
            value = later;
        }
    }
    let is_known = !value.is_empty() && !value.iter().any(|word| word == "[");
    is_known.then(|| value.join(" "))
}

/// Comparisons with the fields of a set's key: what was loaded from a register on.
fn fields(exprs: &[Expr], sreg: Reg, octets: &[u8]) -> Vec<Expr> {
    let start = usize::from(sreg.0);
    let loaded = |expr: &Expr| match expr {
        Expr::Payload { dreg, len, .. } | Expr::Exthdr { dreg, len, .. } => {
            Some((usize::from(dreg.0), usize::from(*len)))
        }
        Expr::Meta { dreg, key } => Some((usize::from(dreg.0), meta_len(*key))),
        Expr::Ct { dreg, .. } => Some((usize::from(dreg.0), 4)),
        _ => None,
    };
    let within = |(at, len): &(usize, usize)| *at >= start && at + len <= start + octets.len();
    // Of loads to the same register the last one counts.
    let mut found: Vec<(usize, usize)> = Vec::new();
    for load in exprs.iter().filter_map(loaded).filter(within) {
        found.retain(|(at, _)| *at != load.0);
        found.push(load);
    }
    match &found[..] {
        [] | [_] => vec![equal(sreg, octets)],
        several => {
            let field = |(at, len): &(usize, usize)| {
                let octets = octets.get(at - start..at - start + len).unwrap_or(&[]);
                equal(Reg(*at as u8), octets)
            };
            several.iter().map(field).collect()
        }
    }
}

/// Octets that a key writes.
fn meta_len(key: MetaKey) -> usize {
    match key {
        MetaKey::Protocol | MetaKey::IifType | MetaKey::OifType => 2,
        MetaKey::IifName | MetaKey::OifName => 16,
        MetaKey::NfProto | MetaKey::L4Proto | MetaKey::PktType | MetaKey::SecPath => 1,
        _ => 4,
    }
}

fn equal(sreg: Reg, octets: &[u8]) -> Expr {
    Expr::Cmp { sreg, op: CmpOp::Eq, data: octets.to_vec() }
}

/// The words of a rule with these expressions.
fn words(table: &Table, exprs: Vec<Expr>) -> Vec<String> {
    let rule = Rule { handle: 0, exprs, comment: None };
    let text = Printer::new(table).rule(&rule, &|_| None);
    text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The words after those that both begin with.
fn rest<'a>(words: &'a [String], before: &[String]) -> &'a [String] {
    let same = words.iter().zip(before).take_while(|(a, b)| a == b).count();
    words.get(same..).unwrap_or(&[])
}

fn hex(octets: &[u8]) -> String {
    octets.iter().fold("0x".to_owned(), |text, octet| format!("{text}{octet:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::nft::ruleset::{BitwiseOp, CtKey, Family, PayloadBase, Set};

    const R1: Reg = Reg(0);

    fn table(sets: Vec<Set>) -> Table {
        Table {
            family: Family::Inet,
            name: "t".into(),
            handle: 1,
            dormant: false,
            chains: vec![],
            sets,
            objects: vec![],
            flowtables: vec![],
        }
    }

    fn said(exprs: &[Expr], from: usize, octets: &[u8], sets: Vec<Set>) -> String {
        let rule = Rule { handle: 1, exprs: exprs.to_vec(), comment: None };
        let Mismatch { expression, value } =
            mismatch(&table(sets), &rule, from..exprs.len(), octets);
        format!("{expression}: {}", value.as_deref().unwrap_or("none"))
    }

    fn payload(dreg: Reg, base: PayloadBase, offset: u32, len: u8) -> Expr {
        Expr::Payload { dreg, base, offset, len }
    }

    #[test]
    fn the_value_is_in_the_words_of_the_expression() {
        let ip = [Expr::Meta { dreg: R1, key: MetaKey::NfProto }, equal(R1, &[2])];
        let tcp = [Expr::Meta { dreg: R1, key: MetaKey::L4Proto }, equal(R1, &[6])];
        assert_eq!(said(&tcp, 0, &[17, 0, 0, 0], vec![]), "meta l4proto tcp: udp");
        let dport = payload(R1, PayloadBase::Transport, 2, 2);
        let port = [&tcp[..], &[dport.clone(), equal(R1, &[0, 22])]].concat();
        assert_eq!(said(&port, 2, &[0x13, 0x89], vec![]), "tcp dport 22: 5001");
        assert_eq!(said(&port, 3, &[0x13, 0x89], vec![]), "tcp dport 22: 5001");
        assert_eq!(said(&port, 2, &[], vec![]), "tcp dport 22: none");
        let rule = Rule { handle: 1, exprs: port.clone(), comment: None };
        let not_loaded = mismatch(&table(vec![]), &rule, 2..3, &[]);
        assert_eq!((&*not_loaded.expression, not_loaded.value), ("tcp dport 22", None));
        let range = Expr::Range { sreg: R1, invert: false, from: vec![0, 1], to: vec![3, 255] };
        let range = [&tcp[..], &[dport.clone(), range]].concat();
        assert_eq!(said(&range, 2, &[0x13, 0x89], vec![]), "tcp dport 1-1023: 5001");
        let saddr = payload(R1, PayloadBase::Network, 12, 4);
        let op = BitwiseOp::MaskXor { mask: vec![255, 0, 0, 0], xor: vec![0; 4] };
        let mask = Expr::Bitwise { sreg: R1, dreg: R1, len: 4, op };
        let net = [&ip[..], &[saddr.clone(), mask, equal(R1, &[10, 0, 0, 0])]].concat();
        assert_eq!(said(&net, 2, &[198, 18, 1, 2], vec![]), "ip saddr 10.0.0.0/8: 198.18.1.2");
        let not = Expr::Cmp { sreg: R1, op: CmpOp::Neq, data: vec![10, 0, 0, 1] };
        let not = [&ip[..], &[saddr.clone(), not]].concat();
        assert_eq!(said(&not, 2, &[10, 0, 0, 1], vec![]), "ip saddr != 10.0.0.1: 10.0.0.1");
        let mut name = b"eth1".to_vec();
        name.resize(16, 0);
        let iif = Expr::Meta { dreg: R1, key: MetaKey::IifName };
        let prefix = [iif, equal(R1, b"lan")];
        assert_eq!(said(&prefix, 0, &name, vec![]), "iifname \"lan*\": \"eth1\"");
        let word = |value: u32| value.to_ne_bytes().to_vec();
        let state = [
            Expr::Ct { dreg: R1, key: CtKey::State },
            Expr::Bitwise {
                sreg: R1,
                dreg: R1,
                len: 4,
                op: BitwiseOp::MaskXor { mask: word(2), xor: word(0) },
            },
            Expr::Cmp { sreg: R1, op: CmpOp::Neq, data: word(0) },
        ];
        assert_eq!(said(&state, 0, &word(1), vec![]), "ct state established: invalid");
    }

    #[test]
    fn keys_of_sets_have_all_fields() {
        let set = |key_len| Set {
            name: "s".into(),
            flags: 0,
            key_len,
            data_len: 0,
            fields: vec![],
            elements: vec![],
            unsupported: None,
        };
        let lookup =
            Expr::Lookup { sreg: R1, dreg: None, is_vmap: false, set: "s".into(), invert: false };
        let ip = [Expr::Meta { dreg: R1, key: MetaKey::NfProto }, equal(R1, &[2])];
        let saddr = payload(R1, PayloadBase::Network, 12, 4);
        let one = [&ip[..], &[saddr.clone(), lookup.clone()]].concat();
        assert_eq!(said(&one, 3, &[198, 18, 1, 2], vec![set(4)]), "ip saddr @s: 198.18.1.2");
        let tcp = [Expr::Meta { dreg: R1, key: MetaKey::L4Proto }, equal(R1, &[6])];
        let dport = payload(Reg(4), PayloadBase::Transport, 2, 2);
        let two = [&ip[..], &tcp, &[saddr, dport, lookup]].concat();
        let key = [198, 18, 1, 2, 0x13, 0x89, 0, 0];
        assert_eq!(
            said(&two, 6, &key, vec![set(8)]),
            "ip saddr . tcp dport @s: ip saddr 198.18.1.2 tcp dport 5001"
        );
    }
}
