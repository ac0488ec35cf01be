//! What a ruleset does with packets of a flow is the same for all of them, if the learner says so.

use proptest::prelude::*;

use super::random::{Rng, input, ruleset};
use super::*;
use crate::netfilter::Learner;
use crate::netfilter::conntrack::{Segment, TupleKind, flow_key_of};
use crate::wire::Protocol;
use crate::wire::checksum::{pseudo_header_v6, transport_checksum};

/// What the chains of a hook do with a packet that all of them accept.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    counters: Vec<u32>,
    mark: u32,
}

/// Runs all base chains of the hook. Also whether that may differ for other packets of the flow. `None`: a chain does not
/// accept.
fn learn(program: &Program, input: &Input) -> Option<(Done, bool)> {
    let mut pool = Umem::anonymous(4).into_pool();
    let mut skb = input.skb(&mut pool);
    let (mut journal, mut learner) = (Journal::new(), Learner::default());
    for chain in program.chains(input.family, input.hook) {
        let (iif, oif) = (input.iif.as_ref(), input.oif.as_ref());
        let mut packet = Packet::new(&mut skb, input.family, input.hook, iif, oif, input.now_ns);
        packet.ct = input.ct;
        match program.run_traced(*chain, &mut packet, &mut journal, &mut learner) {
            NftVerdict::Accept => {}
            _ => return None,
        }
    }
    learner.end_hook();
    let passed = journal.entries().iter().map(|(counter, _)| *counter);
    Some((Done { counters: passed.collect(), mark: skb.mark }, learner.varies))
}

/// The length of the network header.
fn hlen(input: &Input) -> usize {
    if input.family == Family::Ip { 20 } else { 40 }
}

/// What packets of the flow have besides addresses.
fn kind(input: &Input) -> Option<TupleKind> {
    flow_key_of(&input.net, input.family)?.kind()
}

/// Makes the transport header that of a packet for which a decision is used.
fn make_plain(rng: &mut Rng, input: &mut Input) {
    let (at, len) = (hlen(input), input.net.len());
    let protocol = input.net[if input.family == Family::Ip { 9 } else { 6 }];
    match protocol {
        17 => input.net[at + 4..at + 6].copy_from_slice(&((len - at) as u16).to_be_bytes()),
        6 => {
            let words = 5 + rng.below((len - at - 20).min(40) / 4 + 1);
            input.net[at + 12] = (words as u8) << 4 | rng.next() as u8 & 15;
            input.net[at + 13] = rng.next() as u8 & 0xe8 | 0x10;
        }
        _ if kind(input) == Some(TupleKind::Echo) => {
            let address =
                |at: usize| <[u8; 16]>::try_from(&input.net[at..at + 16]).expect("16 octets");
            let pseudo_header = match input.family {
                Family::Ip => 0,
                _ => {
                    let [from, to] = [8, 24].map(|at| address(at).into());
                    pseudo_header_v6(from, to, Protocol::ICMPV6, (len - at) as u32)
                }
            };
            input.net[at + 2..at + 4].fill(0);
            let check = transport_checksum(pseudo_header, &input.net[at..]);
            input.net[at + 2..at + 4].copy_from_slice(&check.to_be_bytes());
        }
        _ => {}
    }
    let segment = Segment::of(protocol, (&input.net, len), at);
    assert!(matches!(segment, Some(Segment::Plain(_))), "{input:?}");
}

/// Whether packets of this kind are carried.
pub(super) fn is_carried(input: &Input) -> bool {
    let net = &input.net;
    let is_long = net.len() >= if input.family == Family::Ip { 40 } else { 60 };
    let has_version = is_long && (input.family == Family::Ip || net[0] >> 4 == 6);
    let is_plain = has_version && flow_key_of(net, input.family).is_some();
    let is_received = input.iif.is_some() && input.mac.is_some();
    is_plain && is_received && matches!(input.ct, Ct::Established(_))
}

/// A packet of such a kind.
fn carried(rng: &mut Rng) -> Option<Input> {
    let mut input = Some(input(rng)).filter(is_carried)?;
    let at = hlen(&input);
    match input.family {
        Family::Ip6 if rng.one_in(2) => input.net[6] = 17,
        family if rng.one_in(4) => {
            let (next, [request, reply]) =
                if family == Family::Ip { (9, [8, 0]) } else { (6, [128, 129]) };
            input.net[next] = if family == Family::Ip { 1 } else { 58 };
            input.net[at] = rng.pick(&[request, reply]);
            input.net[at + 1] = 0;
        }
        _ => {}
    }
    (input.head, input.mark, input.pkt_type) = (None, 0, PktType::Host);
    make_plain(rng, &mut input);
    Some(input)
}

/// Another packet of the same flow.
fn another(rng: &mut Rng, of: &Input) -> Input {
    let mut input = of.clone();
    let transport = hlen(of);
    let fields: &[usize] = match input.family {
        // DSCP and ECN, the length, the identification, TTL, checksum.
        Family::Ip => &[1, 2, 3, 4, 5, 8, 10, 11],
        // Traffic class and flow label, the length, hop limit.
        _ => &[1, 2, 3, 4, 5, 7],
    };
    for at in fields {
        input.net[*at] = rng.next() as u8;
    }
    if input.family == Family::Ip {
        input.net[6] = rng.next() as u8 & 0xc0;
    } else {
        input.net[0] = 0x60 | rng.next() as u8 & 15;
    }
    input.net.truncate(
        transport + if input.net[if transport == 20 { 9 } else { 6 }] == 6 { 20 } else { 8 },
    );
    for _ in 0..rng.below(60) {
        input.net.push(rng.next() as u8);
    }
    // GRE of version 0 stays that.
    let kept: &[usize] = match kind(of) {
        Some(TupleKind::Ports) => &[0, 1, 2, 3],
        Some(TupleKind::Echo) => &[0, 1, 4, 5],
        _ => &[1],
    };
    for at in (transport..input.net.len()).filter(|at| !kept.contains(&(at - transport))) {
        input.net[at] = rng.next() as u8;
    }
    make_plain(rng, &mut input);
    input.mac = input.mac.map(|_| std::array::from_fn(|_| rng.next() as u8));
    input.pkt_type = rng.pick(&[PktType::Host, PktType::Multicast]);
    // Elements of sets expire.
    input.now_ns += rng.below(5) as u64 * 1_000_000;
    input
}

/// A rule as users write it, which looks at the packet. `false`: it looks at what differs.
fn usual(rng: &mut Rng) -> (Vec<Expr>, bool) {
    use super::super::xt::{Ports, Xt};
    let masked = |load: Expr, len: usize, mask: &[u8], op: CmpOp, value: &[u8]| {
        let bitwise = BitwiseOp::MaskXor { mask: mask.to_vec(), xor: vec![0; len] };
        vec![
            load,
            Expr::Bitwise { sreg: R1, dreg: R1, len: len as u8, op: bitwise },
            Expr::Cmp { sreg: R1, op, data: value.to_vec() },
        ]
    };
    let flags = |mask: u8, op, value: u8| masked(transport(13, 1), 1, &[mask], op, &[value]);
    let xt = |xt| vec![Expr::Xt(xt)];
    let of_tcp = |exprs: Vec<Expr>| [vec![meta(MetaKey::L4Proto), cmp(R1, &[6])], exprs].concat();
    match rng.below(20) {
        // tcp flags syn; tcp flags & (syn|rst) == syn; tcp flags & (fin|syn|rst|ack) == syn
        0 => (of_tcp(flags(0x02, CmpOp::Neq, 0)), true),
        1 => (of_tcp(flags(0x06, CmpOp::Eq, 0x02)), true),
        2 => (of_tcp(flags(0x17, CmpOp::Eq, 0x02)), true),
        // tcp flags & (fin|syn|rst|psh|ack|urg) == 0; … == fin|psh|urg
        3 => (of_tcp(flags(0x3f, CmpOp::Eq, 0)), true),
        4 => (of_tcp(flags(0x3f, CmpOp::Eq, 0x29)), true),
        // tcp flags & (fin|syn|rst|ack) != syn
        5 => (of_tcp(flags(0x17, CmpOp::Neq, 0x02)), true),
        // tcp flags & psh == psh; tcp flags & (psh|ack) == ack
        6 => (of_tcp(flags(0x08, CmpOp::Eq, 0x08)), false),
        7 => (of_tcp(flags(0x18, CmpOp::Eq, 0x10)), false),
        // ip frag-off & 0x1fff != 0, of IPv4
        8 => (
            [
                vec![meta(MetaKey::NfProto), cmp(R1, &[2])],
                masked(network(6, 2), 2, &[0x1f, 0xff], CmpOp::Neq, &[0, 0]),
            ]
            .concat(),
            true,
        ),
        9 => (
            xt(Xt::Multiport {
                which: Ports::Either,
                ranges: vec![(80, 81)],
                invert: rng.one_in(2),
            }),
            true,
        ),
        10 => (of_tcp(xt(Xt::Header(20))), true),
        11 => (xt(Xt::Icmp { icmp_type: Some(8), codes: (0, 255), invert: rng.one_in(2) }), true),
        12 => (of_tcp(xt(Xt::TcpMss { range: (0, 1400), invert: rng.one_in(2) })), false),
        13 => {
            let invert = rng.one_in(2);
            let only6 = vec![meta(MetaKey::NfProto), cmp(R1, &[10])];
            ([only6, xt(Xt::Length6 { range: (0, 70), invert })].concat(), false)
        }
        14 => {
            let op = rng.pick(&[ExthdrOp::Ipv6, ExthdrOp::Ipv4]);
            let (kind, present) = (rng.pick(&[0, 43, 44, 148, 7]), true);
            (
                vec![
                    Expr::Exthdr { dreg: R1, op, kind, offset: 0, len: 1, present },
                    cmp(R1, &[1]),
                ],
                true,
            )
        }
        15 => {
            let (op, present) = (ExthdrOp::TcpOpt, rng.one_in(2));
            let load = Expr::Exthdr { dreg: R1, op, kind: 2, offset: 0, len: 1, present };
            (vec![load, cmp(R1, &[1])], false)
        }
        // An order: of the first octet of the ports and the sequence number; of the flags.
        16 => {
            let op = rng.pick(&[CmpOp::Lt, CmpOp::Gte]);
            (
                vec![
                    transport(0, 8),
                    Expr::Cmp { sreg: R1, op, data: vec![rng.pick(&[3, 200]); 8] },
                ],
                true,
            )
        }
        17 => {
            let (from, to) = rng.pick(&[(0x10, 0xf8), (0, 0x0f), (0x10, 0x18), (0, 0xff)]);
            let invert = rng.one_in(2);
            let range = Expr::Range { sreg: R1, invert, from: vec![from], to: vec![to] };
            (of_tcp(vec![transport(13, 1), range]), (from, to) != (0x10, 0x18))
        }
        // In a set: see `ruleset_of_flows`.
        18 => {
            let name = rng.pick(&["flags", "psh"]);
            let (set, invert) = (name.to_owned(), rng.one_in(2));
            let lookup = Expr::Lookup { sreg: R1, dreg: None, is_vmap: false, set, invert };
            (of_tcp(vec![transport(13, 1), lookup]), name == "flags")
        }
        _ => {
            let op = rng.pick(&[CmpOp::Eq, CmpOp::Neq]);
            (vec![meta(MetaKey::PktType), Expr::Cmp { sreg: R1, op, data: vec![0] }], false)
        }
    }
}

/// A random ruleset with rules as users write them.
fn ruleset_of_flows(rng: &mut Rng) -> Ruleset {
    let mut ruleset = ruleset(rng);
    let element = |key: Vec<u8>| Element {
        key,
        key_end: None,
        is_interval_end: false,
        is_catchall: false,
        data: None,
        expires_ms: None,
    };
    let set = |name: &str, flags: &[u8]| Set {
        name: name.to_owned(),
        flags: 0,
        key_len: 1,
        data_len: 0,
        fields: Vec::new(),
        elements: flags.iter().map(|flags| element(vec![*flags])).collect(),
        unsupported: None,
    };
    for table in &mut ruleset.tables {
        // Without and with those that packets of established connections have.
        table.sets.push(set("flags", &[0x00, 0x02, 0x29, 0xff]));
        table.sets.push(set("psh", &[0x02, 0x18]));
        for chain in &mut table.chains {
            let mut rules = Vec::new();
            for rule in chain.rules.drain(..) {
                if rng.one_in(3) {
                    let (mut exprs, _) = usual(rng);
                    exprs.push(counter());
                    if rng.one_in(4) {
                        exprs.push(ACCEPT);
                    }
                    rules.push(Rule { handle: 0, exprs, comment: None });
                }
                rules.push(rule);
            }
            (1..).zip(&mut rules).for_each(|(handle, rule)| rule.handle = handle);
            chain.rules = rules;
        }
    }
    ruleset
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn packets_of_a_flow_get_the_same_if_nothing_varies(seed: u64) {
        let mut rng = Rng(seed);
        let program = compile(&ruleset_of_flows(&mut rng), 1_000_000_000);
        let mut learnt = 0;
        for _ in 0..60 {
            let Some(first) = carried(&mut rng) else { continue };
            let Some((done, false)) = learn(&program, &first) else { continue };
            for _ in 0..8 {
                let other = another(&mut rng, &first);
                let found = learn(&program, &other);
                let expected = Some((&done, false));
                let is_same = found.as_ref().map(|(done, varies)| (done, *varies)) == expected;
                prop_assert!(is_same, "{:?}, {:?}: {:?} {:?}", found, expected, first, other);
            }
            learnt += 1;
            if learnt == 8 {
                break;
            }
        }
    }
}

/// Flows are decided, so that the comparison means something.
#[test]
fn some_flows_are_decided() {
    let (mut decided, mut all) = (0, 0);
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let program = compile(&ruleset_of_flows(&mut rng), 1_000_000_000);
        for input in (0..20).filter_map(|_| carried(&mut rng)) {
            all += 1;
            decided += u32::from(learn(&program, &input).is_some_and(|(_, varies)| !varies));
        }
    }
    assert!(all > 200 && decided > all / 20, "{decided} of {all}");
}

/// A rule as users write it is decided, or is not; whether it is fused with others or not.
#[test]
fn rules_as_users_write_them_are_decided_by_kind() {
    let mut seen = 0;
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let (mut exprs, is_constant) = usual(&mut rng);
        exprs.push(counter());
        let mut ruleset = ruleset_of_flows(&mut Rng(1));
        ruleset.tables.truncate(1);
        let table = &mut ruleset.tables[0];
        table.family = Family::Inet;
        let mut rules = vec![rule(exprs)];
        if seed % 2 == 0 {
            // A register that is read in a rule that has not loaded it.
            rules.push(rule(vec![cmp(Reg(32), &[0]), counter()]));
        }
        table.chains = vec![base("b", 2, 0, rules)];
        let program = compile(&ruleset, 0);
        // Users write rules that look at ports for protocols that have them.
        let has_ports = |input: &Input| kind(input) == Some(TupleKind::Ports);
        let mut inputs = std::iter::repeat_with(|| carried(&mut rng)).take(80).flatten();
        let Some(input) = inputs.find(has_ports) else {
            continue;
        };
        let is_ipv4 = input.family == Family::Ip;
        let is_tcp = input.net[if is_ipv4 { 9 } else { 6 }] == 6;
        let (_, varies) = learn(&program, &input).expect("it is accepted");
        // UDP has no flags and options; rules for one family do not look at packets of the other.
        if is_constant || (is_tcp && !is_ipv4) {
            seen += 1;
            assert_eq!(varies, !is_constant, "seed {seed}: {:?} {input:?}", table_rules(&ruleset));
        }
    }
    assert!(seen > 200, "{seen}");
}

fn table_rules(ruleset: &Ruleset) -> &[Rule] {
    &ruleset.tables[0].chains[0].rules
}

/// An element that does not expire, or one that is not found, is the same for all packets.
#[test]
fn what_is_found_in_a_set_counts_if_it_expires() {
    let element = |last: u8, expires_ms| Element {
        key: vec![10, 0, 0, last],
        key_end: None,
        is_interval_end: false,
        is_catchall: false,
        data: None,
        expires_ms,
    };
    let set = Set {
        name: "s".to_owned(),
        flags: 0,
        key_len: 4,
        data_len: 0,
        fields: Vec::new(),
        elements: vec![element(1, None), element(7, Some(1000)), element(9, Some(1))],
        unsupported: None,
    };
    let lookup =
        Expr::Lookup { sreg: R1, dreg: None, is_vmap: false, set: "s".to_owned(), invert: false };
    let rules = vec![rule(vec![network(12, 4), lookup, counter()])];
    let table = table(Family::Inet, vec![base("b", 2, 0, rules)], vec![set]);
    let program = compile(&Ruleset { generation: 1, tables: vec![table] }, 0);
    for (last, counted, varies) in [(1, 1, false), (7, 1, true), (8, 0, false), (9, 0, false)] {
        let mut input = tcp4();
        input.net[15] = last;
        input.now_ns = 2_000_000;
        let (done, learnt) = learn(&program, &input).expect("it is accepted");
        assert_eq!((done.counters.len(), learnt), (counted, varies), "10.0.0.{last}");
    }
}
