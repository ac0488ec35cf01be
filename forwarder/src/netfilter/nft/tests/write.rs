//! Expressions that write into the packet.

use super::super::xt::{HopLimitMode, Mangle};
use super::*;
use crate::netfilter::Learner;
use crate::wire::checksum::{
    fold, is_valid, ones_complement_sum, pseudo_header_v4, pseudo_header_v6, transport_checksum,
};
use crate::wire::{Ipv4Packet, Ipv6Packet, Protocol};

const IP_CHECK: Checksum = Checksum::Inet(10);

fn immediate(value: &[u8]) -> Expr {
    Expr::Immediate { dreg: R1, value: value.to_vec() }
}

fn set(base: PayloadBase, offset: u32, len: u8, checksum: Checksum, pseudo_header: bool) -> Expr {
    Expr::SetPayload(SetPayload { sreg: R1, base, offset, len, checksum, pseudo_header })
}

/// `ip saddr set` and `ip daddr set`.
fn address(offset: u32, address: [u8; 4]) -> [Expr; 2] {
    [immediate(&address), set(PayloadBase::Network, offset, 4, IP_CHECK, true)]
}

fn bits(len: u8, offset: u32, mask: &[u8], xor: &[u8], checksum: Checksum) -> [Expr; 3] {
    let op = BitwiseOp::MaskXor { mask: mask.to_vec(), xor: xor.to_vec() };
    let change = Expr::Bitwise { sreg: R1, dreg: R1, len, op };
    [network(offset, len), change, set(PayloadBase::Network, offset, len, checksum, false)]
}

/// `ip ttl set`.
fn ttl(ttl: u8) -> [Expr; 3] {
    bits(2, 8, &[0, 0xff], &[ttl, 0], IP_CHECK)
}

fn port(offset: u32, port: u16, check: u8) -> [Expr; 2] {
    let write = set(PayloadBase::Transport, offset, 2, Checksum::Inet(check), false);
    [immediate(&port.to_be_bytes()), write]
}

fn udp(check: u16) -> Vec<u8> {
    let mut header = vec![0x03, 0xe8, 0, 80, 0, 12, 0, 0];
    header[6..].copy_from_slice(&check.to_be_bytes());
    header.extend([1, 2, 3, 4]);
    header
}

/// With checksums that are right.
fn checked(mut input: Input) -> Input {
    let (net, v4) = (&mut input.net, input.family == Family::Ip);
    if v4 {
        Ipv4Packet::new_unchecked(&mut net[..20]).fill_checksum();
    }
    let (protocol, at) = if v4 { (net[9], 20) } else { (net[6], 40) };
    let field = at + if protocol == 6 { 16 } else { 6 };
    let value = transport_checksum(pseudo_header(net, v4), &net[at..]);
    net[field..field + 2].copy_from_slice(&value.to_be_bytes());
    input
}

fn pseudo_header(net: &[u8], v4: bool) -> u32 {
    match v4 {
        true => {
            let ip = Ipv4Packet::new_unchecked(net);
            let len = net.len() as u16 - 20;
            pseudo_header_v4(ip.src_addr(), ip.dst_addr(), Protocol(net[9]), len)
        }
        false => {
            let ip = Ipv6Packet::new_unchecked(net);
            let len = net.len() as u32 - 40;
            pseudo_header_v6(ip.src_addr(), ip.dst_addr(), Protocol(net[6]), len)
        }
    }
}

#[track_caller]
fn assert_checksums(net: &[u8]) {
    let v4 = net[0] >> 4 == 4;
    assert!(!v4 || is_valid(ones_complement_sum(&net[..20])), "of the IP header");
    let at = if v4 { 20 } else { 40 };
    assert!(is_valid(pseudo_header(net, v4) + ones_complement_sum(&net[at..])), "of the transport");
}

/// What rules of these expressions, each in one, make of a packet that is accepted. Checks that the reference
/// interpreter agrees.
#[track_caller]
fn written(rules: &[&[Expr]], input: &Input) -> Vec<u8> {
    let output = output(rules, input);
    assert_eq!(output.verdict, Verdict::Accept);
    output.net
}

#[track_caller]
fn output(rules: &[&[Expr]], input: &Input) -> Output {
    let ruleset = forward(rules.iter().map(|exprs| rule(exprs.to_vec())).collect());
    let output = run(&compile(&ruleset, 0), input);
    assert_eq!(output, reference::run(&ruleset, 0, input), "the reference is right");
    output
}

#[test]
fn fields_of_the_ipv4_header_are_written_with_its_checksum() {
    let input = checked(tcp4());
    let dscp = bits(2, 0, &[0xff, 0x03], &[0, 0xb8], IP_CHECK);
    for (exprs, at, value) in [
        (&dscp[..], 1, 0xb8),
        (&bits(2, 0, &[0xff, 0xfc], &[0, 3], IP_CHECK), 1, 3),
        (&ttl(7), 8, 7),
        (&[immediate(&[1, 5]), set(PayloadBase::Network, 4, 2, IP_CHECK, false)], 5, 5),
        (&address(12, [192, 0, 2, 9]), 15, 9),
        (&address(16, [192, 0, 2, 9]), 19, 9),
    ] {
        let net = written(&[exprs], &input);
        assert_eq!(net[at], value, "octet {at}");
        assert_checksums(&net);
    }
}

#[test]
fn fields_of_the_ipv6_header_are_written() {
    let input = checked(tcp6());
    let none = Checksum::None;
    let net = written(&[&bits(2, 0, &[0xf0, 0x3f], &[0x0b, 0x80], none)], &input);
    assert_eq!(net[..2], [0x6b, 0x80]);
    let flow = [immediate(&[0, 0, 5]), set(PayloadBase::Network, 1, 3, none, false)];
    assert_eq!(written(&[&flow], &input)[..4], [0x60, 0, 0, 5]);
    let hop = [immediate(&[9]), set(PayloadBase::Network, 7, 1, none, false)];
    assert_eq!(written(&[&hop], &input)[7], 9);
    let other: Vec<u8> = (0..16).collect();
    let net =
        written(&[&[immediate(&other), set(PayloadBase::Network, 24, 16, none, true)]], &input);
    assert_eq!(net[24..40], other);
    assert_checksums(&net);
}

#[test]
fn ports_are_written_with_the_transport_checksum() {
    let net = written(&[&port(2, 8080, 16)], &checked(tcp4()));
    assert_eq!(net[22..24], 8080u16.to_be_bytes());
    assert_checksums(&net);
    let input = Input::new(Family::Ip, ipv4(17, 0, &[], &udp(0)));
    assert_checksums(&written(&[&port(0, 53, 6)], &checked(input)));
}

#[test]
fn a_udp_checksum_that_is_not_used_stays_zero_if_addresses_change() {
    let input = Input::new(Family::Ip, ipv4(17, 0, &[], &udp(0)));
    let net = written(&[&address(12, [192, 0, 2, 9])], &input);
    assert_eq!(net[26..28], [0, 0]);
    // As the kernel, which does not look whether there is one if ports change.
    assert_ne!(written(&[&port(0, 53, 6)], &input)[26..28], [0, 0]);
}

#[test]
fn a_partial_checksum_is_that_of_the_pseudo_header() {
    let mut input = tcp4();
    let partial = fold(pseudo_header(&input.net, true));
    input.net[36..38].copy_from_slice(&partial.to_be_bytes());
    input.is_partial = true;
    let net = written(&[&address(12, [192, 0, 2, 9]), &port(2, 8080, 16)], &input);
    assert_eq!(net[36..38], fold(pseudo_header(&net, true)).to_be_bytes());
    assert_eq!(net[22..24], 8080u16.to_be_bytes());
}

#[test]
fn what_is_written_is_read_by_later_rules_and_chains() {
    let is_ttl = |ttl: u8| [network(8, 1), cmp(R1, &[ttl]), counter()];
    let more = [network(8, 1), immediate(&[9]), cmp(R1, &[9]), counter()];
    let rules: [&[Expr]; 4] = [&ttl(7), &is_ttl(64), &is_ttl(7), &more];
    assert_eq!(output(&rules, &tcp4()).counters.len(), 2);
    // In the same rule.
    let same = [&ttl(7)[..], &is_ttl(7)].concat();
    assert_eq!(output(&[&same], &tcp4()).counters.len(), 1);
    // In a list that is searched.
    let list: Vec<Vec<Expr>> = (0..20).map(|n| [&is_ttl(n)[..], &ttl(n + 2)].concat()).collect();
    let mut rules: Vec<&[Expr]> = vec![];
    let first = ttl(3);
    rules.push(&first);
    rules.extend(list.iter().map(Vec::as_slice));
    // 3, 5, …, 19.
    assert_eq!(output(&rules, &tcp4()).counters.len(), 9);
    // In another chain.
    let chains = vec![
        base("late", 2, 5, vec![rule(is_ttl(7).to_vec())]),
        base("early", 2, 0, vec![rule(ttl(7).to_vec())]),
    ];
    let ruleset = Ruleset { generation: 1, tables: vec![table(Family::Ip, chains, vec![])] };
    assert_eq!(run(&compile(&ruleset, 0), &tcp4()).counters.len(), 1);
}

#[test]
fn a_rule_that_writes_goes_on_where_it_was() {
    let write = [&ttl(7)[..], &[counter(), Expr::Verdict(RuleVerdict::Return), DROP]].concat();
    let jump = [Expr::Verdict(RuleVerdict::Jump("sub".into()))];
    let rules = vec![rule(jump.to_vec()), rule(vec![counter(), ACCEPT])];
    let chains = vec![base("b", 2, 0, rules), regular("sub", vec![rule(write)])];
    let ruleset = Ruleset { generation: 1, tables: vec![table(Family::Ip, chains, vec![])] };
    let output = run(&compile(&ruleset, 0), &tcp4());
    assert_eq!(output, reference::run(&ruleset, 0, &tcp4()));
    assert_eq!((output.verdict, output.counters.len()), (Verdict::Accept, 2));
}

#[test]
fn a_packet_that_is_too_short_is_not_changed() {
    let mut input = tcp4();
    input.net.truncate(30);
    for exprs in [&port(14, 1, 16)[..], &port(0, 1, 16), &port(9, 1, 2)] {
        let counted = [exprs, &[counter()]].concat();
        let output = output(&[&counted], &input);
        assert_eq!((output.net, output.counters.len()), (input.net.clone(), 0));
    }
}

#[test]
fn what_decides_how_a_packet_is_parsed_is_the_kernels_to_write() {
    let whole = |offset: u32, octets: &[u8]| {
        let len = octets.len() as u8;
        [immediate(octets), set(PayloadBase::Network, offset, len, IP_CHECK, false)]
    };
    for (offset, octets) in
        [(0, &[0x46, 0][..]), (2, &[0, 50]), (6, &[0x40, 0]), (9, &[17]), (10, &[1, 2]), (20, &[9])]
    {
        let output = output(&[&whole(offset, octets)], &tcp4());
        assert_eq!(output.verdict, Verdict::Kernel, "octet {offset}");
        assert_eq!(output.net, tcp4().net);
    }
    // The same value.
    assert_eq!(written(&[&whole(0, &[0x45, 0])], &tcp4())[0], 0x45);
    let v6 = |offset: u32, value: u8| {
        [immediate(&[value]), set(PayloadBase::Network, offset, 1, Checksum::None, false)]
    };
    for (offset, value) in [(0, 0x40), (4, 1), (6, 17), (40, 1)] {
        assert_eq!(output(&[&v6(offset, value)], &tcp6()).verdict, Verdict::Kernel);
    }
    let far = set(PayloadBase::Transport, 120, 2, Checksum::None, false);
    let mut input = tcp4();
    input.net.resize(400, 0);
    assert_eq!(output(&[&[far]], &input).verdict, Verdict::Kernel, "it cannot be restored");
    let mut input = tcp4();
    input.head = Some(22);
    assert_eq!(output(&[&port(2, 1, 16)], &input).verdict, Verdict::Kernel, "in another frame");
    let sctp = set(PayloadBase::Transport, 2, 2, Checksum::Sctp, false);
    let input = Input::new(Family::Ip, ipv4(132, 0, &[], &[0; 12]));
    assert_eq!(output(&[&[sctp]], &input).verdict, Verdict::Kernel, "a CRC");
}

#[test]
fn the_routers_own_packets_are_the_kernels_to_change() {
    let own = Input { iif: None, mac: None, ..tcp4() };
    assert_eq!(output(&[&ttl(7)], &own).verdict, Verdict::Kernel);
    let mangle = Expr::Mangle(Mangle::HopLimit(HopLimitMode::Set, 7));
    assert_eq!(output(&[&[mangle]], &own).verdict, Verdict::Kernel);
}

#[test]
fn where_connections_are_tracked_addresses_and_ports_are_the_kernels_to_change() {
    let info = CtInfo { flow: 0, direction: Direction::Original, status: 0, mark: 0 };
    for ct in [Ct::Null, Ct::Established(info)] {
        let input = Input { ct, ..tcp4() };
        for exprs in [&address(12, [192, 0, 2, 9])[..], &port(2, 8080, 16)] {
            assert_eq!(output(&[exprs], &input).verdict, Verdict::Kernel);
        }
        assert_eq!(written(&[&ttl(7)], &input)[8], 7);
    }
    let state = [Expr::Ct { dreg: R1, key: CtKey::State }];
    let rules = [&ttl(7)[..], &address(12, [192, 0, 2, 9]), &port(2, 8080, 16)];
    let rules = rules.iter().map(|exprs| rule(exprs.to_vec())).enumerate();
    let mut rules: Vec<Rule> = rules.map(|(n, rule)| Rule { handle: n as u64, ..rule }).collect();
    let handles = |rules: &[Rule]| -> Vec<u64> {
        let program = compile(&forward(rules.to_vec()), 0);
        program.kernel_rules().map(|rule| rule.handle).collect()
    };
    assert_eq!(handles(&rules), Vec::<u64>::new());
    rules.push(Rule { handle: 9, ..rule(state.to_vec()) });
    assert_eq!(handles(&rules), [1, 2], "such rules are named");
}

#[test]
fn the_targets_of_iptables_change_the_header() {
    let of = |mangle, input: &Input| written(&[&[Expr::Mangle(mangle)]], input);
    let (v4, v6) = (checked(tcp4()), checked(tcp6()));
    for mangle in [
        Mangle::Dsfield { keep: 3, value: 46 << 2 },
        Mangle::Dsfield { keep: 0xf0, value: 0x1c },
        Mangle::HopLimit(HopLimitMode::Set, 3),
        Mangle::HopLimit(HopLimitMode::Inc, 250),
        Mangle::HopLimit(HopLimitMode::Dec, 65),
    ] {
        let (net4, net6) = (of(mangle, &v4), of(mangle, &v6));
        assert_checksums(&net4);
        assert_checksums(&net6);
        let (class, hops) = (net6[0] << 4 | net6[1] >> 4, net6[7]);
        assert_eq!((net4[1], net4[8]), (class, hops), "{mangle:?}");
        let expected = match mangle {
            Mangle::Dsfield { value, .. } => (value, 64),
            Mangle::Ttl(mode, _) | Mangle::HopLimit(mode, _) => match mode {
                HopLimitMode::Set => (0, 3),
                HopLimitMode::Inc => (0, 255),
                HopLimitMode::Dec => (0, 0),
            },
        };
        assert_eq!((class, hops), expected);
    }
}

#[test]
fn the_checksum_of_each_header_stays_right() {
    let mut input = tcp4();
    let mut zeros = 0;
    for id in 0..=u16::MAX {
        input.net[4..6].copy_from_slice(&id.to_be_bytes());
        Ipv4Packet::new_unchecked(&mut input.net[..20]).fill_checksum();
        for mangle in
            [Mangle::Dsfield { keep: 3, value: 0xb8 }, Mangle::HopLimit(HopLimitMode::Dec, 9)]
        {
            let mut expected = input.clone();
            write_reference::mangle(&mut expected, mangle).expect("it is changed");
            let is_zero = [[0, 0], [0xff, 0xff]].contains(&[expected.net[10], expected.net[11]]);
            zeros += u32::from(is_zero);
            if is_zero || id % 256 == 0 {
                let net = written(&[&[Expr::Mangle(mangle)]], &input);
                assert!(is_valid(ones_complement_sum(&net[..20])), "{id}");
            }
        }
    }
    assert!(zeros >= 2, "{zeros}");
}

#[test]
fn the_kernel_forwards_where_one_of_two_chains_writes_and_their_order_is_not_known() {
    let tables = |priority| {
        let one = table(Family::Ip, vec![base("a", 2, 0, vec![rule(ttl(7).to_vec())])], vec![]);
        let mut other = table(Family::Inet, vec![base("b", 2, priority, vec![])], vec![]);
        other.name = "u".into();
        Ruleset { generation: 1, tables: vec![one, other] }
    };
    let unsupported = |ruleset: &Ruleset| compile(ruleset, 0).unsupported().to_vec();
    let [why] = &unsupported(&tables(0))[..] else { panic!("one reason") };
    assert!(why.contains("rules that change packets: their order is not known"), "{why}");
    assert!(unsupported(&tables(1)).is_empty());
}

#[test]
fn rules_whose_writes_are_always_the_kernels_are_named() {
    let named = |exprs: &[Expr]| {
        let chain = base("a", 2, 0, vec![rule(exprs.to_vec())]);
        let tables = vec![table(Family::Ip, vec![chain], vec![])];
        let program = compile(&Ruleset { generation: 1, tables }, 0);
        program.kernel_rules().map(|rule| rule.text.clone()).collect::<Vec<_>>()
    };
    let frag_off = [immediate(&[0, 0]), set(PayloadBase::Network, 6, 2, IP_CHECK, false)];
    assert_eq!(named(&frag_off), ["set of a field of an IP header that only the kernel changes"]);
    let sctp = [set(PayloadBase::Transport, 2, 2, Checksum::Sctp, false)];
    assert_eq!(named(&sctp), ["sctp set"]);
    assert_eq!(named(&ttl(7)), [""; 0]);
    assert_eq!(named(&port(2, 8080, 16)), [""; 0]);
}

#[test]
fn what_writes_is_not_remembered_for_a_connection() {
    let mut learner = Learner::default();
    let program = compile(&forward(vec![rule(vec![counter()])]), 0);
    run_traced(&program, &tcp4(), &mut learner);
    assert!(!learner.varies);
    let exprs = vec![immediate(&[0; 4]), set(PayloadBase::Network, 12, 4, IP_CHECK, true)];
    run_traced(&compile(&forward(vec![rule(exprs)]), 0), &tcp4(), &mut learner);
    assert!(learner.varies);
}
