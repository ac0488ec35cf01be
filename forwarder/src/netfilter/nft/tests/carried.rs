//! What packets of carried connections evaluate, found without packets: never less than what packets do evaluate.

use proptest::prelude::*;

use super::constant::is_carried;
use super::random::{Rng, input, ruleset};
use super::*;
use crate::netfilter::conntrack::{FlowKey, flow_key_of};
use crate::netfilter::nft::carried::Carried;
use crate::netfilter::nft::carried_facts::Packets;
use crate::netfilter::nft::carried_rules::{By, Cause, FlowFacts, Meets, carried_rules};
use crate::netfilter::nft::xt::Xt;
use crate::trace::step::RuleResult;
use crate::trace::{Record, Step};

/// IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED.
const STATUS: u32 = 0x0e;

/// A packet of a carried connection. `None`: the random one is not made to be one.
fn carried(rng: &mut Rng) -> Option<(Input, CtInfo)> {
    let direction = if rng.one_in(2) { Direction::Original } else { Direction::Reply };
    let status = STATUS | (rng.next() as u32 & 0x30);
    let info = CtInfo { flow: 1, direction, status, mark: rng.below(3) as u32 };
    let mut input = Input {
        hook: Hook::Forward,
        pkt_type: PktType::Host,
        ct: Ct::Established(info),
        ..input(rng)
    };
    let (transport, protocol) = if input.family == Family::Ip { (20, 9) } else { (40, 6) };
    if input.net.get(protocol) == Some(&6) {
        // Neither SYN nor FIN.
        *input.net.get_mut(transport + 13)? &= !3;
    }
    (is_carried(&input) && input.head.is_none()).then_some((input, info))
}

fn facts(input: &Input, info: CtInfo) -> FlowFacts {
    let key = flow_key_of(&input.net, input.family).expect("it is carried");
    let name = |link: &Option<Link>| link.as_ref().map(|link| link.name.clone());
    FlowFacts {
        received: key,
        translated: key,
        direction: info.direction,
        status: info.status,
        mark: info.mark,
        iif: name(&input.iif),
        oif: name(&input.oif),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_packets_evaluate_is_found(seed: u64) {
        let mut rng = Rng(seed);
        let program = compile(&ruleset(&mut rng), 1_000_000_000);
        for _ in 0..20 {
            let Some((input, info)) = carried(&mut rng) else { continue };
            let facts = facts(&input, info);
            let (family, protocol) = (input.family, facts.received.protocol());
            let [mut of_all, mut of_flow] = [(); 2].map(|()| Carried::none(&program));
            for packets in Packets::all(family, protocol) {
                of_all.add(&program, &packets);
            }
            of_flow.add(&program, &Packets::of_flow(&facts));
            let mut record = Record::new();
            run_traced(&program, &input, &mut record);
            for found in record.steps() {
                let Step::Rule { step, op, result } = *found else { continue };
                let rule = program.steps[step as usize];
                let to = if result == RuleResult::Passed { rule.end } else { op + 1 };
                for op in rule.start..to {
                    prop_assert!(of_all.evaluate(op), "{} {:?} {:?}", op, found, input);
                    prop_assert!(of_flow.evaluate(op), "{} {:?} {:?}", op, found, input);
                }
            }
        }
    }
}

fn state(mask: u8) -> Vec<Expr> {
    let op = BitwiseOp::MaskXor { mask: vec![mask, 0, 0, 0], xor: vec![0; 4] };
    vec![
        Expr::Ct { dreg: R1, key: CtKey::State },
        Expr::Bitwise { sreg: R1, dreg: R1, len: 4, op },
        Expr::Cmp { sreg: R1, op: CmpOp::Neq, data: vec![0; 4] },
    ]
}

fn with(mut exprs: Vec<Expr>, more: Vec<Expr>) -> Rule {
    exprs.extend(more);
    rule(exprs)
}

fn limit() -> Expr {
    Expr::Other("limit".into())
}

/// What packets of carried connections meet in the rules, in their order.
fn meets(ruleset: &Ruleset) -> Vec<Meets> {
    let program = compile(ruleset, 0);
    carried_rules(&program, ruleset).into_iter().map(|rule| rule.meets).collect()
}

#[test]
fn rules_behind_established_are_not_reached() {
    let established = || with(state(6), vec![ACCEPT]);
    let dscp = || vec![network(1, 1), cmp(R1, &[0x28]), ACCEPT];
    assert_eq!(
        meets(&forward(vec![established(), rule(vec![limit()]), rule(dscp())])),
        [Meets::Constant, Meets::NotReached, Meets::NotReached]
    );
    assert_eq!(
        meets(&forward(vec![rule(dscp()), rule(vec![limit(), DROP]), established()])),
        [Meets::PerPacket(By::Exprs(Some(0..2))), Meets::Kernel, Meets::Constant]
    );
    // Only in the same base chain.
    let chains = vec![
        base("mangle", 2, -150, vec![established()]),
        base("filter", 2, 0, vec![rule(vec![limit()])]),
    ];
    let ruleset = ruleset_of(chains);
    assert_eq!(meets(&ruleset), [Meets::Constant, Meets::Kernel]);
    let program = compile(&ruleset, 0);
    let rules = carried_rules(&program, &ruleset);
    let names: Vec<&str> = rules[1].bases.iter().map(|base| program.chain_name(*base)).collect();
    assert_eq!(names, ["inet t filter"]);
}

fn ruleset_of(chains: Vec<Chain>) -> Ruleset {
    Ruleset { generation: 1, tables: vec![table(Family::Inet, chains, Vec::new())] }
}

#[test]
fn rules_for_other_packets_are_not_met() {
    let l4 = |number: u8| vec![meta(MetaKey::L4Proto), cmp(R1, &[number])];
    let new = || with(state(8), vec![limit()]);
    let invalid = || with(state(1), vec![limit()]);
    let protocol = |number: u8| with(l4(number), vec![limit()]);
    // Its tests are reached, and the same for all; what is left to the kernel is not.
    let rules = [new(), invalid(), protocol(132), protocol(1), protocol(47), protocol(6)];
    let expected = [Meets::Constant, Meets::Constant, Meets::Constant];
    let met = [Meets::Kernel, Meets::Kernel, Meets::Kernel];
    assert_eq!(meets(&forward(rules.to_vec())), [expected, met].concat());
    // `tcp flags & (syn | rst) == syn`.
    let mut syn = l4(6);
    let op = BitwiseOp::MaskXor { mask: vec![6], xor: vec![0] };
    syn.push(transport(13, 1));
    syn.push(Expr::Bitwise { sreg: R1, dreg: R1, len: 1, op });
    syn.extend([cmp(R1, &[2]), Expr::Other("exthdr set".into())]);
    let ruleset = forward(vec![rule(syn), new()]);
    assert_ne!(meets(&ruleset)[0], Meets::Kernel);
}

#[test]
fn rules_for_icmp_other_than_echo_are_not_met() {
    let of = |protocol: u8, compared: &[u8]| {
        let l4 = vec![meta(MetaKey::L4Proto), cmp(R1, &[protocol])];
        let kind = vec![transport(0, compared.len() as u8), cmp(R1, compared)];
        with([l4, kind].concat(), vec![limit()])
    };
    let ruleset = |family, rules| Ruleset {
        generation: 1,
        tables: vec![table(family, vec![base("f", 2, 0, rules)], Vec::new())],
    };
    let tracks = || with(state(8), vec![ACCEPT]);
    // Destination unreachable; echo request and reply; a code that echo does not have.
    let rules = vec![tracks(), of(1, &[3]), of(1, &[8]), of(1, &[0]), of(1, &[8, 1])];
    let expected = [Meets::Constant, Meets::Constant, Meets::Kernel, Meets::Kernel];
    let found = meets(&ruleset(Family::Ip, rules));
    assert_eq!(found, [&expected[..], &[Meets::Constant]].concat());
    // Neighbour solicitation; echo request.
    let found = meets(&ruleset(Family::Ip6, vec![tracks(), of(58, &[135]), of(58, &[128])]));
    assert_eq!(found, [Meets::Constant, Meets::Constant, Meets::Kernel]);
    let xt = |icmp_type, codes, invert| {
        let l4 = vec![meta(MetaKey::L4Proto), cmp(R1, &[1])];
        with(l4, vec![Expr::Xt(Xt::Icmp { icmp_type, codes, invert }), limit()])
    };
    let rules = vec![
        tracks(),
        xt(Some(3), (0, 255), false),
        xt(Some(8), (0, 255), false),
        xt(Some(3), (0, 255), true),
        xt(None, (0, 255), false),
    ];
    let expected = [Meets::Constant, Meets::Constant];
    let found = meets(&ruleset(Family::Ip, rules));
    assert_eq!(found, [&expected[..], &[Meets::Kernel, Meets::Kernel, Meets::Kernel]].concat());
}

#[test]
fn tuples_leave_connections_with_nat_and_without_ports_to_the_kernel() {
    let saddr = || Expr::Ct { dreg: R1, key: CtKey::Ipv4(Direction::Original, TupleEnd::Src) };
    let port = || Expr::Ct { dreg: R1, key: CtKey::Port(Direction::Original, TupleEnd::Dst) };
    let rules = || {
        let tcp = vec![meta(MetaKey::L4Proto), cmp(R1, &[6])];
        vec![
            rule(vec![saddr(), cmp(R1, &[10, 0, 0, 1]), DROP]),
            rule(vec![port(), cmp(R1, &[0, 80]), DROP]),
            with(tcp, vec![port(), cmp(R1, &[0, 81]), DROP]),
            with(state(6), vec![ACCEPT]),
            rule(vec![saddr(), cmp(R1, &[10, 0, 0, 1]), DROP]),
        ]
    };
    let left_of = |chains: Vec<Chain>| -> Vec<(bool, bool)> {
        let tables = vec![table(Family::Ip, chains, Vec::new())];
        let ruleset = Ruleset { generation: 1, tables };
        let program = compile(&ruleset, 0);
        let rules = carried_rules(&program, &ruleset).into_iter();
        rules.map(|rule| (rule.left_of.nat, rule.left_of.without_ports)).collect()
    };
    let chain = || base("filter", 2, 0, rules());
    let (none, ports) = ((false, false), (false, true));
    assert_eq!(left_of(vec![chain()]), [none, ports, none, none, none]);
    let mut nat = base("nat", 4, 100, Vec::new());
    nat.base.as_mut().expect("a base chain").kind = "nat".to_owned();
    let (nat_only, both) = ((true, false), (true, true));
    assert_eq!(left_of(vec![chain(), nat]), [nat_only, both, nat_only, none, none]);
}

#[test]
fn before_connection_tracking_and_at_ingress_established_is_not_known() {
    let established = || with(state(6), vec![ACCEPT]);
    let raw = base("raw", 0, -300, vec![established(), rule(vec![limit()])]);
    assert_eq!(meets(&ruleset_of(vec![raw]))[1], Meets::Kernel);
    let mut ingress = base("in", 0, 0, vec![rule(vec![counter()]), rule(vec![limit()])]);
    ingress.base.as_mut().expect("a base chain").devices = vec!["eth0".to_owned()];
    let mut ruleset = forward(vec![established()]);
    ruleset.tables.push(table(Family::Netdev, vec![ingress], Vec::new()));
    let expected = [Meets::Constant, Meets::PerPacket(By::Ingress), Meets::Kernel];
    assert_eq!(meets(&ruleset), expected);
}

#[test]
fn packets_of_a_family_without_tracking_may_reach_a_rule() {
    let of = |family, chain, rules| table(family, vec![base(chain, 2, 0, rules)], Vec::new());
    let tables = vec![
        of(Family::Ip, "a", vec![with(state(6), vec![ACCEPT]), rule(vec![limit()])]),
        of(
            Family::Inet,
            "b",
            vec![with(vec![meta(MetaKey::NfProto), cmp(R1, &[10])], vec![limit()])],
        ),
    ];
    let ruleset = Ruleset { generation: 1, tables };
    let program = compile(&ruleset, 0);
    let rules = carried_rules(&program, &ruleset);
    let found: Vec<_> = rules.iter().map(|rule| (rule.meets.clone(), rule.is_tracked)).collect();
    let expected = [(Meets::Constant, true), (Meets::NotReached, true), (Meets::Constant, false)];
    assert_eq!(found, expected);
}

#[test]
fn without_tracking_there_are_no_carried_connections() {
    assert!(meets(&forward(vec![rule(vec![limit()])])).is_empty());
}

#[test]
fn the_rule_of_a_flow_is_the_first_that_it_reaches() {
    let port = |port: u8| vec![transport(2, 2), cmp(R1, &[0, port])];
    let ttl = || vec![network(8, 1), cmp(R1, &[1]), DROP];
    let numbered = |handle, exprs| Rule { handle, exprs, comment: None };
    let of = |mut exprs: Vec<Expr>, more: Vec<Expr>| {
        exprs.extend(more);
        exprs
    };
    let rules = vec![
        numbered(1, of(state(8), vec![limit()])),
        numbered(2, of(port(22), ttl())),
        numbered(3, of(port(80), ttl())),
        numbered(4, of(port(80), vec![counter()])),
    ];
    let ruleset = forward(rules);
    let program = compile(&ruleset, 0);
    let nft = Nft::new(ruleset, program, 1, None);
    let flow = |port: u16| {
        let key = FlowKey::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, 1000, port);
        FlowFacts {
            received: key,
            translated: key,
            direction: Direction::Original,
            status: STATUS,
            mark: 0,
            iif: Some("eth0".to_owned()),
            oif: None,
        }
    };
    let handle = |port| match nft.per_packet(&flow(port)) {
        Some(Cause::Rule(found)) => (found.rule.handle, found.exprs.map(|exprs| exprs.start)),
        other => panic!("{other:?}"),
    };
    assert_eq!(handle(80), (3, Some(2)));
    assert_eq!(handle(22), (2, Some(2)));
    assert!(matches!(nft.per_packet(&flow(443)), Some(Cause::Counters(0))));
}

#[test]
fn the_rule_that_looks_up_a_route_of_an_address_before_nat_is_found() {
    let fib = |handle, daddr| {
        let query = FibQuery { key: FibKey::Type, daddr, dev: None, mark: false, present: false };
        let exprs = vec![Expr::Fib { dreg: R1, query }, cmp(R1, &[2, 0, 0, 0]), ACCEPT];
        Rule { handle, exprs, comment: None }
    };
    let key = FlowKey::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, 1000, 80);
    let flow = FlowFacts {
        received: key,
        translated: key,
        direction: Direction::Original,
        status: STATUS,
        mark: 0,
        iif: None,
        oif: None,
    };
    let found = |chains: Vec<Chain>| {
        let ruleset = ruleset_of(chains);
        let program = compile(&ruleset, 0);
        let nft = Nft::new(ruleset, program, 1, None);
        nft.other_route(&flow).map(|found| found.rule.handle)
    };
    let chain = |name, hook, rules| base(name, hook, 0, rules);
    let others = || chain("a", 2, vec![with(state(8), vec![DROP]), fib(1, true), fib(2, false)]);
    assert_eq!(found(vec![others(), chain("b", 0, vec![fib(3, false)])]), None);
    assert_eq!(found(vec![others(), chain("b", 0, vec![fib(3, false), fib(4, true)])]), Some(4));
    assert_eq!(found(vec![others(), chain("b", 4, vec![fib(3, true), fib(4, false)])]), Some(4));
}

#[test]
fn whether_rules_set_marks_is_known() {
    let mark = || rule(vec![meta(MetaKey::Mark), Expr::SetMark { sreg: R1 }]);
    assert!(compile(&forward(vec![rule(vec![counter()]), mark()]), 0).sets_marks());
    assert!(!compile(&forward(vec![rule(vec![meta(MetaKey::Mark), counter()])]), 0).sets_marks());
    // No packet reaches it.
    let unreached = Chain { name: "u".to_owned(), base: None, rules: vec![mark()] };
    assert!(!compile(&ruleset_of(vec![base("f", 2, 0, Vec::new()), unreached]), 0).sets_marks());
}
