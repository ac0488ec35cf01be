//! Rules and sets built here, and their text. `nftables/tests/root.rs` compares with `nft`.

use super::*;
use crate::netfilter::nft::ruleset::{
    BaseChain, BitwiseOp, Chain, Checksum, CmpOp, Data, Element, Expr, ExthdrOp, Family, MetaKey,
    PayloadBase, Reg, SetPayload,
};

const R1: Reg = Reg(0);

fn table(family: Family, sets: Vec<Set>) -> Table {
    Table {
        family,
        name: "t".into(),
        handle: 1,
        dormant: false,
        chains: vec![],
        sets,
        objects: vec![],
        flowtables: vec![],
    }
}

fn load(base: PayloadBase, offset: u32, len: u8) -> Expr {
    Expr::Payload { dreg: R1, base, offset, len }
}

fn net(offset: u32, len: u8) -> Expr {
    load(PayloadBase::Network, offset, len)
}

fn th(offset: u32, len: u8) -> Expr {
    load(PayloadBase::Transport, offset, len)
}

fn meta(key: MetaKey) -> Expr {
    Expr::Meta { dreg: R1, key }
}

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { sreg: R1, op, data: data.to_vec() }
}

fn eq(data: &[u8]) -> Expr {
    cmp(CmpOp::Eq, data)
}

fn mask(mask: &[u8]) -> Expr {
    let op = BitwiseOp::MaskXor { mask: mask.to_vec(), xor: vec![0; mask.len()] };
    Expr::Bitwise { sreg: R1, dreg: R1, len: mask.len() as u8, op }
}

fn l4(protocol: u8) -> [Expr; 2] {
    [meta(MetaKey::L4Proto), eq(&[protocol])]
}

fn l3(nfproto: u8) -> [Expr; 2] {
    [meta(MetaKey::NfProto), eq(&[nfproto])]
}

fn lookup(set: &str) -> Expr {
    Expr::Lookup { sreg: R1, dreg: None, is_vmap: false, set: set.into(), invert: false }
}

fn set(name: &str, flags: u32, key_len: u8, elements: Vec<Element>) -> Set {
    Set {
        name: name.into(),
        flags,
        key_len,
        data_len: 0,
        fields: vec![],
        elements,
        unsupported: None,
    }
}

fn element(key: &[u8]) -> Element {
    Element {
        key: key.to_vec(),
        key_end: None,
        is_interval_end: false,
        is_catchall: false,
        data: None,
        expires_ms: None,
    }
}

fn end(key: &[u8]) -> Element {
    Element { is_interval_end: true, ..element(key) }
}

fn text_in(table: &Table, exprs: &[Expr]) -> String {
    let rule = Rule { handle: 1, exprs: exprs.to_vec(), comment: None };
    Printer::new(table).rule(&rule, &|_| Some((3, 4)))
}

#[track_caller]
fn is(family: Family, parts: &[&[Expr]], expected: &str) {
    assert_eq!(text_in(&table(family, vec![]), &parts.concat()), expected);
}

#[track_caller]
fn inet(parts: &[&[Expr]], expected: &str) {
    is(Family::Inet, parts, expected);
}

#[test]
fn header_fields_have_their_names() {
    is(Family::Ip, &[&[net(12, 4), eq(&[192, 0, 2, 1])]], "ip saddr 192.0.2.1");
    is(Family::Ip, &[&[net(16, 1), cmp(CmpOp::Neq, &[10])]], "ip daddr != 10.0.0.0/8");
    let masked = [net(12, 4), mask(&[255, 255, 128, 0]), eq(&[10, 1, 128, 0])];
    is(Family::Ip, &[&masked], "ip saddr 10.1.128.0/17");
    let odd = [net(12, 4), mask(&[0, 0, 0, 255]), eq(&[0, 0, 0, 1])];
    is(Family::Ip, &[&odd], "ip saddr & 0.0.0.255 == 0.0.0.1");
    is(Family::Ip, &[&[net(0, 1), mask(&[0xf]), eq(&[5])]], "ip hdrlength 5");
    is(Family::Ip, &[&[net(1, 1), mask(&[0xfc]), eq(&[0xb8])]], "ip dscp ef");
    is(Family::Ip, &[&[net(8, 1), cmp(CmpOp::Lt, &[2])]], "ip ttl < 2");
    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    is(Family::Ip6, &[&[net(8, 16), eq(&addr)]], "ip6 saddr 2001:db8::");
    is(Family::Ip6, &[&[net(8, 4), eq(&addr[..4])]], "ip6 saddr 2001:db8::/32");
    is(Family::Ip6, &[&[net(0, 2), mask(&[0xf, 0xc0]), eq(&[0xb, 0x80])]], "ip6 dscp ef");
    is(Family::Ip6, &[&[net(1, 3), mask(&[0xf, 255, 255]), eq(&[0, 0, 5])]], "ip6 flowlabel 5");
    inet(&[&l4(6), &[th(12, 1), mask(&[0xf0]), eq(&[0x80])]], "tcp doff 8");
    inet(&[&l4(58), &[th(0, 1), eq(&[135])]], "icmpv6 type nd-neighbor-solicit");
    inet(&[&l4(132), &[th(4, 4), eq(&[0, 0, 0, 9])]], "sctp vtag 9");
    inet(&[&l4(108), &[th(2, 2), eq(&[0, 9])]], "comp cpi 9");
    inet(&[&[th(2, 2), eq(&[0, 53])]], "th dport 53");
    inet(&[&[load(PayloadBase::Link, 12, 2), eq(&[8, 0])]], "ether type ip");
    inet(&[&[net(1, 2), eq(&[0x12, 0x34])]], "@nh,8,16 0x1234");
}

#[test]
fn adjacent_fields_in_one_comparison_are_printed_apart() {
    inet(&[&l4(6), &[th(0, 4), eq(&[0, 1, 0, 2])]], "tcp sport 1 tcp dport 2");
    is(Family::Ip, &[&[net(12, 5), eq(&[1, 2, 3, 4, 10])]], "ip saddr 1.2.3.4 ip daddr 10.0.0.0/8");
}

#[test]
fn flags_are_printed_as_nft_does() {
    let flags = |op, with: Option<u8>, data| {
        let mask = with.map(|with| mask(&[with]));
        let exprs: Vec<Expr> =
            [th(13, 1)].into_iter().chain(mask).chain([cmp(op, &[data])]).collect();
        text_in(&table(Family::Inet, vec![]), &[&l4(6)[..], &exprs].concat())
    };
    assert_eq!(flags(CmpOp::Eq, None, 2), "tcp flags == syn");
    assert_eq!(flags(CmpOp::Neq, Some(0x12), 0), "tcp flags syn,ack");
    assert_eq!(flags(CmpOp::Eq, Some(0x12), 0), "tcp flags ! syn,ack");
    assert_eq!(flags(CmpOp::Eq, Some(0x17), 2), "tcp flags syn / fin,syn,rst,ack");
    assert_eq!(flags(CmpOp::Neq, Some(0x03), 2), "tcp flags != syn / fin,syn");
}

#[test]
fn tests_for_headers_are_hidden_where_a_field_implies_them() {
    inet(&[&l3(2), &[net(8, 1), eq(&[9])]], "ip ttl 9");
    inet(&[&l3(2), &l4(1), &[th(0, 1), eq(&[8])]], "icmp type echo-request");
    inet(&[&l3(2), &l4(6), &[th(2, 2), eq(&[0, 80])]], "meta nfproto ipv4 tcp dport 80");
    inet(&[&l3(2), &l4(6)], "meta nfproto ipv4 meta l4proto tcp");
    // `ip protocol` also tests for IPv4, except in a table of that family.
    let protocol = [net(9, 1), eq(&[6]), th(2, 2), eq(&[0, 80])];
    inet(&[&l3(2), &protocol], "ip protocol tcp tcp dport 80");
    is(Family::Ip, &[&protocol], "tcp dport 80");
    let frag =
        Expr::Exthdr { dreg: R1, op: ExthdrOp::Ipv6, kind: 44, offset: 2, len: 2, present: false };
    inet(&[&l3(10), &[frag, mask(&[0xff, 0xf8]), eq(&[0, 0x40])]], "frag frag-off 8");
    // Not the same header.
    inet(
        &[&l4(17), &[net(9, 1)]],
        "meta l4proto udp [ payload load 1b @ network header + 9 => reg 1 ]",
    );
}

#[test]
fn meta_keys_ranges_and_marks() {
    inet(&[&[meta(MetaKey::IifName), eq(b"eth")]], "iifname \"eth*\"");
    inet(&[&[meta(MetaKey::OifName), cmp(CmpOp::Neq, b"a\x1b\n\0")]], "oifname != \"a\\x1b\\x0a\"");
    let mark = 0x10u32.to_ne_bytes();
    let masked = [meta(MetaKey::Mark), mask(&0xf0u32.to_ne_bytes()), eq(&mark)];
    inet(&[&masked], "meta mark & 0x000000f0 == 0x00000010");
    let swap = Expr::Byteorder { sreg: R1, dreg: R1, len: 4, size: 4 };
    let (from, to) = (vec![0, 0, 0, 1], vec![0, 0, 5, 0xdc]);
    let range = Expr::Range { sreg: R1, invert: true, from: from.clone(), to: to.clone() };
    inet(&[&[meta(MetaKey::Len), swap.clone(), range]], "meta length != 1-1500");
    let both = [meta(MetaKey::Len), swap, cmp(CmpOp::Gte, &from), cmp(CmpOp::Lte, &to)];
    inet(&[&both], "meta length 1-1500");
    inet(&[&[meta(MetaKey::PktType), eq(&[1])]], "meta pkttype broadcast");
    let value = Expr::Immediate { dreg: R1, value: mark.to_vec() };
    let set_mark = Expr::SetMark { sreg: R1 };
    inet(&[&[value, set_mark.clone()]], "meta mark set 0x00000010");
    let (mask, xor) = (0xff00u32.to_ne_bytes().to_vec(), 0x17u32.to_ne_bytes().to_vec());
    let op = BitwiseOp::MaskXor { mask, xor };
    let combine = Expr::Bitwise { sreg: R1, dreg: R1, len: 4, op };
    inet(
        &[&[meta(MetaKey::Mark), combine, set_mark]],
        "meta mark set meta mark & 0x0000ff17 | 0x00000017",
    );
}

#[test]
fn statements() {
    let exprs = [
        Expr::Counter { packets: 0, octets: 0 },
        Expr::Objref { kind: 1, name: "hits".into() },
        Expr::Notrack,
        Expr::Other("limit".into()),
        Expr::Verdict(RuleVerdict::Goto("a\tb".into())),
    ];
    inet(
        &[&exprs],
        "counter packets 3 bytes 4 counter name \"hits\" notrack [ limit ] goto a\\x09b",
    );
    let rule = Rule { handle: 1, exprs: exprs[..1].to_vec(), comment: Some("x\n\u{202e}".into()) };
    let table = table(Family::Inet, vec![]);
    let text = Printer::new(&table).rule(&rule, &|_| None);
    assert_eq!(text, "counter comment \"x\\x0a\\u{202e}\"");
}

#[test]
fn unknown_forms_are_in_brackets_with_what_they_use() {
    let first = "[ payload load 4b @ network header + 12 => reg 1 ]";
    let op = BitwiseOp::And(Reg(16));
    let and = Expr::Bitwise { sreg: R1, dreg: R1, len: 4, op };
    is(
        Family::Ip,
        &[&[net(12, 4), and, eq(&[1, 2, 3, 4]), Expr::Verdict(RuleVerdict::Accept)]],
        &format!(
            "{first} [ bitwise reg 1 = ( reg 1 & reg 2 ) ] [ cmp eq reg 1 0x04030201 ] accept"
        )
        .replace("0x04030201", &format!("0x{:08x}", u32::from_ne_bytes([1, 2, 3, 4]))),
    );
    // An expression that is not decoded may have written the register.
    let other = Expr::Other("ct state".into());
    is(
        Family::Ip,
        &[&[net(8, 1), eq(&[9]), other, eq(&[0])]],
        "ip ttl 9 [ ct state ] [ cmp eq reg 1 0x00000000 ]",
    );
    // A comparison of another length than was loaded.
    is(
        Family::Ip,
        &[&[net(8, 1), eq(&[9, 9])]],
        "[ payload load 1b @ network header + 8 => reg 1 ] [ cmp eq reg 1 0x00000909 ]",
    );
    is(
        Family::Ip,
        &[&[net(12, 4), lookup("gone")]],
        &format!("{first} [ lookup reg 1 set gone 0x0 ]"),
    );
    let far = Expr::Payload { dreg: R1, base: PayloadBase::Network, offset: u32::MAX, len: 4 };
    let text = text_in(&table(Family::Ip, vec![]), &[far, eq(&[0; 4])]);
    assert!(text.starts_with("[ payload load 4b @ network header + 4294967295"), "{text}");
}

#[test]
fn what_is_written_has_the_name_of_its_field() {
    let set = |base, offset, len| {
        let (sreg, checksum, pseudo_header) = (R1, Checksum::None, false);
        Expr::SetPayload(SetPayload { sreg, base, offset, len, checksum, pseudo_header })
    };
    let (network, transport) = (PayloadBase::Network, PayloadBase::Transport);
    let value = |value: &[u8]| Expr::Immediate { dreg: R1, value: value.to_vec() };
    let change = |mask: &[u8], xor: &[u8]| {
        let op = BitwiseOp::MaskXor { mask: mask.to_vec(), xor: xor.to_vec() };
        Expr::Bitwise { sreg: R1, dreg: R1, len: mask.len() as u8, op }
    };
    let (v4, v6) = (l3(2), l3(10));
    inet(&[&v4, &[value(&[192, 0, 2, 1]), set(network, 12, 4)]], "ip saddr set 192.0.2.1");
    inet(&[&v4, &[net(8, 2), change(&[0, 255], &[7, 0]), set(network, 8, 2)]], "ip ttl set 7");
    inet(&[&v4, &[net(0, 2), change(&[255, 3], &[0, 0xb8]), set(network, 0, 2)]], "ip dscp set ef");
    inet(
        &[&v4, &[net(0, 2), change(&[255, 0xfc], &[0, 0]), set(network, 0, 2)]],
        "ip ecn set not-ect",
    );
    inet(
        &[&v6, &[net(0, 2), change(&[0xf0, 0x3f], &[0x0b, 0x80]), set(network, 0, 2)]],
        "ip6 dscp set ef",
    );
    inet(&[&l4(6), &[value(&[0, 80]), set(transport, 2, 2)]], "tcp dport set 80");
    // Of another place, and not a constant.
    inet(
        &[&v4, &[net(1, 2), change(&[255, 3], &[0, 0xb8]), set(network, 0, 2)]],
        "meta nfproto ipv4 [ payload load 2b @ network header + 1 => reg 1 ] \
         [ bitwise reg 1 = ( reg 1 & 0x000003ff ) ^ 0x0000b800 ] \
         [ payload write reg 1 => 2b @ network header + 0 csum_type 0 csum_off 0 csum_flags 0x0 ]",
    );
}

#[test]
fn sets_have_their_elements() {
    let verdict = |of: RuleVerdict| Some(Data::Verdict(of));
    let anonymous = set("__set0", SET_ANONYMOUS, 2, vec![element(&[1, 187]), element(&[0, 80])]);
    let nets =
        vec![end(&[0; 4]), element(&[10, 0, 0, 0]), end(&[11, 0, 0, 0]), element(&[255, 0, 0, 0])];
    let nets = set("nets", SET_INTERVAL, 4, nets);
    let names = [(&b"va\0"[..], &b"va\0"[..]), (b"wan", b"wao")].map(|(from, to)| {
        let padded = |name: &[u8]| {
            let mut key = [0; 16];
            key[..name.len()].copy_from_slice(name);
            key
        };
        let mut after = padded(to);
        after[15] = u8::from(to == b"va\0");
        [element(&padded(from)), end(&after)]
    });
    let names = set("__set1", SET_INTERVAL | SET_ANONYMOUS, 16, names.concat());
    let boxes = Element {
        key_end: Some(vec![10, 255, 255, 255, 3, 255, 0, 0]),
        ..element(&[10, 0, 0, 0, 0, 1, 0, 0])
    };
    let boxes = Set { fields: vec![4, 2], ..set("boxes", SET_INTERVAL, 8, vec![boxes]) };
    let web = Element { data: verdict(RuleVerdict::Jump("web".into())), ..element(&[0, 22]) };
    let rest = Element { is_catchall: true, data: verdict(RuleVerdict::Drop), ..element(&[]) };
    let verdicts = set("__map0", SET_MAP | SET_ANONYMOUS, 2, vec![rest, web]);
    let one = Element { data: Some(Data::Value(7u32.to_ne_bytes().to_vec())), ..element(&[0, 5]) };
    let marks = Set { data_len: 4, ..set("marks", SET_MAP, 2, vec![one]) };
    let unused = set("unused", 0, 3, vec![element(&[0, 1, 2])]);
    let bad = Set { unsupported: Some("flag\ndynamic".into()), ..set("bad", SET_EVAL, 2, vec![]) };
    let mut table =
        table(Family::Inet, vec![anonymous, nets, names, boxes, verdicts, marks, unused, bad]);
    let vmap =
        Expr::Lookup { sreg: R1, dreg: None, is_vmap: true, set: "__map0".into(), invert: false };
    let map = Expr::Lookup {
        sreg: R1,
        dreg: Some(R1),
        is_vmap: false,
        set: "marks".into(),
        invert: false,
    };
    let second = Expr::Payload { dreg: Reg(4), base: PayloadBase::Transport, offset: 2, len: 2 };
    let not =
        Expr::Lookup { sreg: R1, dreg: None, is_vmap: false, set: "nets".into(), invert: true };
    let udp = l4(17);
    let rules: Vec<(Vec<Expr>, &str)> = vec![
        ([&udp[..], &[th(2, 2), lookup("__set0")]].concat(), "udp dport { 80, 443 }"),
        ([&l3(2)[..], &[net(12, 4), not]].concat(), "ip saddr != @nets"),
        (vec![meta(MetaKey::IifName), lookup("__set1")], "iifname { \"va\", \"wan*\" }"),
        (
            [&l3(2)[..], &udp, &[net(16, 4), second, lookup("boxes")]].concat(),
            "ip daddr . udp dport @boxes",
        ),
        ([&udp[..], &[th(2, 2), vmap]].concat(), "udp dport vmap { 22 : jump web, * : drop }"),
        (
            [&udp[..], &[th(2, 2), map, Expr::SetMark { sreg: R1 }]].concat(),
            "meta mark set udp dport map @marks",
        ),
    ];
    for (exprs, expected) in &rules {
        assert_eq!(text_in(&table, exprs), *expected);
    }
    let rules = rules.into_iter().map(|(exprs, _)| Rule { handle: 1, exprs, comment: None });
    table.chains = vec![Chain { name: "c".into(), base: None, rules: rules.collect() }];
    let expected = [
        "set nets {\n\ttype ipv4_addr\n\tflags interval\n\telements = { 10.0.0.0/8, 255.0.0.0/8 }\n}",
        "set boxes {\n\ttype ipv4_addr . inet_service\n\tflags interval\n\telements = { 10.0.0.0/8 . 1-1023 }\n}",
        "map marks {\n\ttype inet_service : mark\n\telements = { 5 : 0x00000007 }\n}",
        "set unused {\n\t# keys of 3 octets, which no rule here looks up\n\telements = { 0x102 }\n}",
        "set bad {\n\t# keys of 2 octets, which no rule here looks up\n\tflags dynamic\n\t# left to the kernel: flag\\x0adynamic\n}",
    ];
    let printed: Vec<String> = Printer::new(&table).sets().map(|set| set.join("\n")).collect();
    assert_eq!(printed, expected);
}

#[test]
fn a_large_set_is_cut() {
    let elements = (0..300_000u32).map(|key| element(&key.to_be_bytes())).collect();
    let table = table(Family::Ip, vec![set("__set0", SET_ANONYMOUS, 4, elements)]);
    let text = text_in(&table, &[net(12, 4), lookup("__set0")]);
    assert!(text.len() < 2 << 20, "{}", text.len());
    let end = &text[text.len() - 40..];
    assert!(end.contains("… ") && end.ends_with(" more }"), "{end}");
}

#[test]
fn base_chains_have_named_priorities() {
    let of = |family, hook, priority| {
        let base = BaseChain {
            kind: "filter".into(),
            hook,
            priority,
            policy_drops: true,
            devices: if family == Family::Netdev { vec!["a".into(), "b*".into()] } else { vec![] },
        };
        base_chain(family, &base)
    };
    for (priority, expected) in [
        (0, "filter"),
        (-5, "filter - 5"),
        (11, "11"),
        (-140, "mangle + 10"),
        (-100, "-100"),
        (i32::MIN, "-2147483648"),
    ] {
        let expected = format!("type filter hook forward priority {expected}; policy drop;");
        assert_eq!(of(Family::Inet, 2, priority), expected);
    }
    assert!(of(Family::Ip, 0, -100).contains("hook prerouting priority dstnat;"));
    assert_eq!(
        of(Family::Netdev, 0, -500),
        "type filter hook ingress devices = { \"a\", \"b*\" } priority -500; policy drop;"
    );
}
