//! Extensions of iptables, and what rules read and set of connections.

use super::super::xt::{Connmark, ConnmarkMode, Ports, Xt};
use super::*;

/// What a rule of this match and `accept` does with a packet, before a rule that leaves it to the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Matches,
    Differs,
    Drops,
}

fn outcome(of: Xt, input: &Input) -> Outcome {
    let last = Expr::Other("end".into());
    let ruleset = forward(vec![rule(vec![Expr::Xt(of), ACCEPT]), rule(vec![last])]);
    match run(&compile(&ruleset, 0), input).verdict {
        Verdict::Accept => Outcome::Matches,
        Verdict::Kernel => Outcome::Differs,
        Verdict::Drop => Outcome::Drops,
    }
}

fn matched(of: Xt, input: &Input) -> bool {
    match outcome(of, input) {
        Outcome::Matches => true,
        Outcome::Differs => false,
        Outcome::Drops => panic!("dropped"),
    }
}

#[test]
fn multiport_compares_ranges_in_host_byte_order() {
    let multiport = |which, ranges: &[(u16, u16)], invert| {
        let results = [tcp4(), tcp6()]
            .map(|input| matched(Xt::Multiport { which, ranges: ranges.to_vec(), invert }, &input));
        assert_eq!(results[0], results[1]);
        results[0]
    };
    // From port 1000 to port 80.
    assert!(multiport(Ports::Src, &[(1, 5), (1000, 1000)], false));
    assert!(!multiport(Ports::Dst, &[(1, 5), (1000, 1000)], false));
    assert!(multiport(Ports::Dst, &[(79, 80)], false));
    assert!(!multiport(Ports::Dst, &[(79, 80)], true));
    assert!(multiport(Ports::Either, &[(80, 80)], false));
    assert!(multiport(Ports::Either, &[(990, 1000)], false));
    assert!(!multiport(Ports::Either, &[(81, 999)], false));
    assert!(multiport(Ports::Either, &[(81, 999)], true));
}

#[test]
fn packets_too_short_for_the_header_are_dropped() {
    let udp = |len: usize| Input::new(Family::Ip, ipv4(17, 0, &[], &vec![0; len]));
    let ports = || Xt::Multiport { which: Ports::Src, ranges: vec![(0, 0)], invert: false };
    assert_eq!(outcome(ports(), &udp(3)), Outcome::Drops);
    assert_eq!(outcome(ports(), &udp(4)), Outcome::Matches);
    assert_eq!(outcome(Xt::Header(8), &udp(7)), Outcome::Drops);
    assert_eq!(outcome(Xt::Header(8), &udp(8)), Outcome::Matches);
    let echo = |invert| Xt::Icmp { icmp_type: Some(0), codes: (0, 255), invert };
    assert_eq!(outcome(echo(false), &udp(7)), Outcome::Drops);
    assert_eq!(outcome(echo(true), &udp(8)), Outcome::Differs);
    let mss = || Xt::TcpMss { range: (0, 0), invert: true };
    assert_eq!(outcome(mss(), &udp(19)), Outcome::Drops);
    // A data offset of 0.
    assert_eq!(outcome(mss(), &udp(20)), Outcome::Drops);
    let mut input = tcp4();
    input.net[20 + 12] = 0x60;
    assert_eq!(outcome(mss(), &input), Outcome::Drops, "options that are not there");
}

#[test]
fn icmp_compares_type_and_codes() {
    let packet = |icmp_type, code| {
        Input::new(Family::Ip, ipv4(1, 0, &[], &[icmp_type, code, 0, 0, 0, 0, 0, 0]))
    };
    let icmp = |icmp_type, codes, invert| Xt::Icmp { icmp_type, codes, invert };
    assert!(matched(icmp(Some(3), (1, 3), false), &packet(3, 2)));
    assert!(!matched(icmp(Some(3), (1, 3), true), &packet(3, 2)));
    assert!(!matched(icmp(Some(3), (1, 3), false), &packet(3, 4)));
    assert!(matched(icmp(Some(3), (1, 3), true), &packet(8, 2)));
    assert!(matched(icmp(None, (0, 0), false), &packet(8, 2)));
    assert!(!matched(icmp(None, (0, 0), true), &packet(8, 2)));
}

#[test]
fn the_length_of_an_ipv6_packet_is_that_of_its_header_or_the_kernel_decides() {
    let length = |range, invert, input: &Input| outcome(Xt::Length6 { range, invert }, input);
    // 60 octets.
    assert_eq!(length((60, 60), false, &tcp6()), Outcome::Matches);
    assert_eq!(length((60, 60), true, &tcp6()), Outcome::Differs);
    assert_eq!(length((41, 59), false, &tcp6()), Outcome::Differs);
    let mut jumbogram = tcp6();
    jumbogram.net[4..6].fill(0);
    for (range, expected) in
        [((60, 60), Verdict::Kernel), ((40, 40), Verdict::Kernel), ((40, 60), Verdict::Drop)]
    {
        let exprs = vec![Expr::Xt(Xt::Length6 { range, invert: false }), DROP];
        assert_eq!(run(&compile(&forward(vec![rule(exprs)]), 0), &jumbogram).verdict, expected);
    }
}

#[test]
fn rt_matches_no_packet_without_extension_headers() {
    let rt = |next_header: u8| {
        let input = Input::new(Family::Ip6, ipv6(next_header, &[0; 24]));
        let exprs = vec![Expr::Xt(Xt::Rt), DROP];
        run(&compile(&forward(vec![rule(exprs)]), 0), &input).verdict
    };
    // TCP, UDP, ICMPv6, ESP, No Next Header.
    for next_header in [6, 17, 58, 50, 59] {
        assert_eq!(rt(next_header), Verdict::Accept, "{next_header}");
    }
    // Hop-by-Hop Options, Routing, Authentication, Destination Options.
    for next_header in [0, 43, 51, 60] {
        assert_eq!(rt(next_header), Verdict::Kernel, "{next_header}");
    }
}

#[test]
fn tcpmss_finds_the_option() {
    let with = |options: &[u8]| Input::new(Family::Ip, ipv4(6, 0, &[], &tcp(options)));
    let mss = |invert| Xt::TcpMss { range: (1400, 1460), invert };
    let found = with(&[1, 2, 4, 5, 0xb4, 1, 1, 1]);
    assert!(matched(mss(false), &found));
    assert!(!matched(mss(true), &found));
    for other in [&[][..], &[2, 4, 0, 1], &[3, 3, 2, 4], &[2, 3, 5, 0xb4], &[8, 0, 1, 1]] {
        assert!(!matched(mss(false), &with(other)), "{other:?}");
        assert!(matched(mss(true), &with(other)), "{other:?}");
    }
}

/// An input of a connection with the mark 0x12.
fn carried(input: Input, direction: Direction, status: u32) -> Input {
    let info = CtInfo { flow: 0, direction, status, mark: 0x12 };
    Input { ct: Ct::Established(info), ..input }
}

#[test]
fn a_connections_mark_that_remains_is_set_and_others_are_left_to_the_kernel() {
    let set = |mark: u32, input: &Input| {
        let value = mark.to_ne_bytes().to_vec();
        verdict(&[Expr::Immediate { dreg: R1, value }, Expr::SetCtMark { sreg: R1 }], input)
    };
    let input = carried(tcp4(), Direction::Original, 0xe);
    assert_eq!(set(0x12, &input), Verdict::Drop, "continues");
    assert_eq!(set(0x13, &input), Verdict::Kernel);
    assert_eq!(set(0x13, &Input { ct: Ct::Null, ..tcp4() }), Verdict::Drop, "has no effect");
    assert_eq!(set(0x12, &tcp4()), Verdict::Kernel, "not tracked");
}

#[test]
fn connmark_restores_and_saves() {
    let target = |mode, ctmark, ctmask, nfmask, ct: Ct| {
        let target = Connmark { mode, ctmark, ctmask, nfmask };
        let input = Input { ct, mark: 0x32, ..tcp4() };
        let output = run(&compile(&forward(vec![rule(vec![Expr::Connmark(target)])]), 0), &input);
        (output.verdict, output.mark)
    };
    let ct = carried(tcp4(), Direction::Original, 0xe).ct;
    let (set, save, restore) = (ConnmarkMode::Set, ConnmarkMode::Save, ConnmarkMode::Restore);
    let all = u32::MAX;
    assert_eq!(target(restore, 0, all, all, ct), (Verdict::Accept, 0x12));
    assert_eq!(target(restore, 0, 0xf0, 0xf0, ct), (Verdict::Accept, 0x12));
    assert_eq!(target(restore, 0, 0x0f, 0x0f, ct), (Verdict::Accept, 0x32));
    assert_eq!(target(restore, 0, all, all, Ct::Null), (Verdict::Accept, 0x32));
    assert_eq!(target(save, 0, all, all, ct).0, Verdict::Kernel);
    assert_eq!(target(save, 0, 0x0f, 0x0f, ct), (Verdict::Accept, 0x32));
    assert_eq!(target(set, 0x12, all, 0, ct), (Verdict::Accept, 0x32));
    assert_eq!(target(set, 0x13, all, 0, ct).0, Verdict::Kernel);
    assert_eq!(target(set, 0x13, all, 0, Ct::Null), (Verdict::Accept, 0x32));
}

#[test]
fn tuples_are_those_of_the_packet_or_of_its_answer() {
    use Direction::{Original, Reply};
    use TupleEnd::{Dst, Src};
    let of = |input: &Input, key: CtKey, value: &[u8]| {
        let exprs = vec![Expr::Ct { dreg: R1, key }, cmp(R1, value), DROP];
        run(&compile(&forward(vec![rule(exprs)]), 0), input).verdict
    };
    // From 10.0.0.1 port 1000 to 10.0.0.2 port 80.
    let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    for (is, other) in [(Original, Reply), (Reply, Original)] {
        let input = carried(tcp4(), is, 0xe);
        assert_eq!(of(&input, CtKey::Ipv4(is, Src), &one), Verdict::Drop);
        assert_eq!(of(&input, CtKey::Ipv4(is, Dst), &two), Verdict::Drop);
        assert_eq!(of(&input, CtKey::Ipv4(other, Src), &two), Verdict::Drop);
        assert_eq!(of(&input, CtKey::Ipv4(other, Dst), &one), Verdict::Drop);
        assert_eq!(of(&input, CtKey::Port(is, Dst), &80u16.to_be_bytes()), Verdict::Drop);
        assert_eq!(of(&input, CtKey::Port(other, Dst), &1000u16.to_be_bytes()), Verdict::Drop);
        assert_eq!(of(&input, CtKey::Ipv6(is, Src), &[0; 16]), Verdict::Accept, "breaks");
    }
    let translated = carried(tcp4(), Original, 0xe | 0x10);
    assert_eq!(of(&translated, CtKey::Ipv4(Reply, Src), &two), Verdict::Kernel);
    let last: Vec<u8> = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[2]].concat();
    let six = carried(tcp6(), Original, 0xe);
    assert_eq!(of(&six, CtKey::Ipv6(Reply, Src), &last), Verdict::Drop);
    assert_eq!(of(&six, CtKey::Ipv4(Reply, Src), &two), Verdict::Accept, "breaks");
    assert_eq!(of(&six, CtKey::L3Proto, &[10]), Verdict::Drop);
    assert_eq!(of(&six, CtKey::Protocol, &[6]), Verdict::Drop);
    assert_eq!(of(&six, CtKey::Zone, &[0, 0]), Verdict::Drop);
    assert_eq!(of(&Input { ct: Ct::Null, ..tcp4() }, CtKey::Zone, &[0, 0]), Verdict::Accept);
}

#[test]
fn rules_of_connections_need_them_tracked() {
    let connmark =
        Connmark { mode: ConnmarkMode::Restore, ctmark: 0, ctmask: u32::MAX, nfmask: u32::MAX };
    for expr in [Expr::Connmark(connmark), Expr::SetCtMark { sreg: R1 }] {
        let program = compile(&forward(vec![rule(vec![expr])]), 0);
        assert!(program.tracks_connections());
    }
}
