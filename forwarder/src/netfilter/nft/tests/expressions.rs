//! Each expression, with values computed by hand.

use super::*;

fn payload(dreg: Reg, base: PayloadBase, offset: u32, len: u8) -> Expr {
    Expr::Payload { dreg, base, offset, len }
}

fn immediate(dreg: Reg, value: &[u8]) -> Expr {
    Expr::Immediate { dreg, value: value.to_vec() }
}

#[test]
fn payload_reads_each_header() {
    assert!(matches(&[network(12, 4), cmp(R1, &[10, 0, 0, 1])], &tcp4()));
    assert!(!matches(&[network(16, 4), cmp(R1, &[10, 0, 0, 1])], &tcp4()));
    assert!(matches(&[transport(2, 2), cmp(R1, &[0, 80])], &tcp4()));
    assert!(matches(&[transport(2, 2), cmp(R1, &[0, 80])], &tcp6()));
    let source = payload(R1, PayloadBase::Link, 6, 6);
    assert!(matches(&[source, cmp(R1, &[2, 0, 0, 0, 0, 2])], &tcp4()));
    let type_and_ip = payload(R1, PayloadBase::Link, 12, 4);
    assert!(matches(&[type_and_ip.clone(), cmp(R1, &[8, 0, 0x45, 0])], &tcp4()));
    assert!(matches(&[type_and_ip, cmp(R1, &[0x86, 0xdd, 0x60, 0])], &tcp6()));
    let beyond = payload(R1, PayloadBase::Link, 26, 4);
    assert!(matches(&[beyond, cmp(R1, &[10, 0, 0, 1])], &tcp4()));
}

#[test]
fn packets_of_our_own_have_no_link_layer_header() {
    let mut own = tcp4();
    own.mac = None;
    assert!(!matches(&[payload(R1, PayloadBase::Link, 0, 1)], &own));
}

#[test]
fn payload_zeroes_the_rest_of_the_last_word() {
    let ones = immediate(R1, &[0xff; 8]);
    let test = [ones.clone(), network(12, 1), cmp(R1, &[10, 0, 0, 0, 0xff])];
    assert!(matches(&test, &tcp4()));
    assert!(matches(&[ones, network(8, 6), cmp(R1, &[64, 6, 0, 0, 10, 0, 0, 0])], &tcp4()));
}

#[test]
fn payload_beyond_the_packet_breaks_after_zeroing() {
    assert!(!matches(&[network(37, 4)], &tcp4()));
    assert!(matches(&[network(36, 4)], &tcp4()));
    assert!(!matches(&[network(u32::MAX, 4)], &tcp4()));
    let rules = vec![
        rule(vec![immediate(R1, &[0xff; 8]), network(38, 6)]),
        rule(vec![cmp(R1, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), DROP]),
    ];
    let ruleset = forward(rules);
    assert_eq!(run(&compile(&ruleset, 0), &tcp4()).verdict, Verdict::Drop);
    assert_eq!(reference::run(&ruleset, 0, &tcp4()).verdict, Verdict::Drop);
}

#[test]
fn octets_in_later_frames_are_read() {
    let mut input = tcp4();
    input.head = Some(34);
    assert!(matches(&[transport(13, 2), cmp(R1, &[2, 0xff])], &input));
    assert!(!matches(&[transport(19, 2)], &input));
}

#[test]
fn fragments_are_the_kernels() {
    let is_kernels = |input: &Input| verdict(&[], input) == Verdict::Kernel;
    let v4 = |field| Input::new(Family::Ip, ipv4(6, field, &[], &tcp(&[])));
    assert!(is_kernels(&v4(0x2000)) && is_kernels(&v4(0x2001)) && is_kernels(&v4(1)));
    // DF alone.
    assert!(!is_kernels(&v4(0x4000)) && !is_kernels(&v4(0)));
    let fragment = |offset: u8, next| {
        let mut payload = vec![next, 0, 0, offset, 0, 0, 0, 1];
        payload.extend(tcp(&[]));
        Input::new(Family::Ip6, ipv6(44, &payload))
    };
    assert!(is_kernels(&fragment(1, 6)) && is_kernels(&fragment(9, 6)));
    assert!(!is_kernels(&tcp6()));
}

#[test]
fn ipv4_options_are_skipped() {
    let input = Input::new(Family::Ip, ipv4(6, 0, &[1, 1, 1, 0], &tcp(&[])));
    assert!(matches(&[transport(2, 2), cmp(R1, &[0, 80])], &input));
}

#[test]
fn ipv6_extension_headers_are_skipped_up_to_an_authentication_header() {
    let mut payload = vec![60, 0, 1, 4, 0, 0, 0, 0, 6, 1, 1, 12];
    payload.resize(24, 0);
    payload.extend(tcp(&[]));
    let input = Input::new(Family::Ip6, ipv6(0, &payload));
    assert!(matches(&[transport(2, 2), cmp(R1, &[0, 80])], &input));
    let mut payload = vec![6, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0];
    payload.extend(tcp(&[]));
    let input = Input::new(Family::Ip6, ipv6(51, &payload));
    assert!(matches(&[meta(MetaKey::L4Proto), cmp(R1, &[51])], &input));
    assert!(matches(&[transport(4, 4), cmp(R1, &[0, 0, 0, 9])], &input));
    let truncated = Input::new(Family::Ip6, ipv6(0, &[6]));
    assert!(!matches(&[meta(MetaKey::L4Proto)], &truncated));
    let none = Input::new(Family::Ip6, ipv6(59, &[]));
    assert!(matches(&[meta(MetaKey::L4Proto), cmp(R1, &[59])], &none));
}

#[test]
fn cmp_orders_octets_as_memcmp() {
    let test = |op, data: &[u8]| {
        matches(&[network(12, 4), Expr::Cmp { sreg: R1, op, data: data.to_vec() }], &tcp4())
    };
    // The register is 10.0.0.1.
    assert!(test(CmpOp::Lt, &[10, 0, 1, 0]) && !test(CmpOp::Lt, &[10, 0, 0, 1]));
    assert!(test(CmpOp::Lte, &[10, 0, 0, 1]) && !test(CmpOp::Lte, &[9, 255, 255, 255]));
    assert!(test(CmpOp::Gt, &[10, 0, 0, 0]) && !test(CmpOp::Gt, &[10, 0, 0, 1]));
    assert!(test(CmpOp::Gte, &[10, 0, 0, 1]) && !test(CmpOp::Gte, &[10, 0, 0, 2]));
    assert!(test(CmpOp::Eq, &[10, 0]) && test(CmpOp::Neq, &[11]) && !test(CmpOp::Neq, &[10]));
}

#[test]
fn range_includes_its_limits() {
    let test = |from: u8, to: u8, invert| {
        let (from, to) = (vec![0, from], vec![0, to]);
        matches(&[transport(2, 2), Expr::Range { sreg: R1, invert, from, to }], &tcp4())
    };
    assert!(test(80, 80, false) && test(1, 80, false) && test(80, 99, false));
    assert!(!test(81, 99, false) && !test(1, 79, false) && !test(99, 1, false));
    assert!(test(81, 99, true) && !test(80, 80, true));
}

#[test]
fn bitwise_masks_and_shifts_words() {
    let bitwise = |len, op| Expr::Bitwise { sreg: R1, dreg: R2, len, op };
    let (mask, xor) = (vec![255, 255, 255, 0], vec![0, 0, 0, 7]);
    let masked = bitwise(4, BitwiseOp::MaskXor { mask, xor });
    assert!(matches(&[network(12, 4), masked, cmp(R2, &[10, 0, 0, 7])], &tcp4()));
    // The last word is masked whole.
    let (mask, xor) = (vec![255; 2], vec![0; 2]);
    let short = bitwise(2, BitwiseOp::MaskXor { mask, xor });
    let test = [network(12, 4), immediate(R2, &[9; 4]), short, cmp(R2, &[10, 0, 0, 0])];
    assert!(matches(&test, &tcp4()));

    // Words in host byte order; the first one is the most significant.
    let words = |a: u32, b: u32| [a.to_ne_bytes(), b.to_ne_bytes()].concat();
    let value = immediate(R1, &words(0x8000_0001, 0xf000_000f));
    let shifted =
        |op, a, b| matches(&[value.clone(), bitwise(8, op), cmp(R2, &words(a, b))], &tcp4());
    assert!(shifted(BitwiseOp::Lshift(4), 0x0000_001f, 0x0000_00f0));
    assert!(shifted(BitwiseOp::Rshift(4), 0x0800_0000, 0x1f00_0000));
    for bits in [0, 32] {
        let odd = [value.clone(), bitwise(8, BitwiseOp::Lshift(bits))];
        assert_eq!(verdict(&odd, &tcp4()), Verdict::Kernel);
    }
}

#[test]
fn bitwise_with_two_registers() {
    let other = Reg(32);
    let test = |op, result: u8| {
        let bitwise = Expr::Bitwise { sreg: R1, dreg: R2, len: 4, op };
        let (a, b) = (immediate(R1, &[0b1100; 4]), immediate(other, &[0b1010; 4]));
        matches(&[a, b, bitwise, cmp(R2, &[result; 4])], &tcp4())
    };
    assert!(test(BitwiseOp::And(other), 0b1000));
    assert!(test(BitwiseOp::Or(other), 0b1110));
    assert!(test(BitwiseOp::Xor(other), 0b0110));
}

#[test]
fn byteorder_swaps_groups() {
    let test = |size, len: u8, result: &[u8]| {
        let value = immediate(R1, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let swap = Expr::Byteorder { sreg: R1, dreg: R2, len, size };
        matches(&[value, swap, cmp(R2, result)], &tcp4())
    };
    assert!(cfg!(target_endian = "big") || test(2, 8, &[2, 1, 4, 3, 6, 5, 8, 7]));
    assert!(cfg!(target_endian = "big") || test(4, 8, &[4, 3, 2, 1, 8, 7, 6, 5]));
    assert!(cfg!(target_endian = "big") || test(8, 8, &[8, 7, 6, 5, 4, 3, 2, 1]));
    assert!(cfg!(target_endian = "big") || test(2, 2, &[2, 1, 0, 0]));
    let odd = Expr::Byteorder { sreg: R1, dreg: R2, len: 16, size: 8 };
    assert_eq!(verdict(&[odd], &tcp4()), Verdict::Kernel);
}

#[test]
fn meta_keys() {
    let mut input = tcp4();
    input.mark = 0x0102_0304;
    let test = |input: &Input, key, value: &[u8]| matches(&[meta(key), cmp(R1, value)], input);
    assert!(test(&input, MetaKey::Len, &40u32.to_ne_bytes()));
    assert!(test(&input, MetaKey::Protocol, &[8, 0, 0, 0]));
    assert!(test(&tcp6(), MetaKey::Protocol, &[0x86, 0xdd, 0, 0]));
    assert!(test(&input, MetaKey::Mark, &0x0102_0304u32.to_ne_bytes()));
    assert!(test(&input, MetaKey::Iif, &3u32.to_ne_bytes()));
    assert!(test(&input, MetaKey::Oif, &4u32.to_ne_bytes()));
    assert!(test(&input, MetaKey::IifName, b"eth3\0\0\0\0\0\0\0\0\0\0\0\0"));
    assert!(test(&input, MetaKey::OifName, b"eth"));
    assert!(!test(&input, MetaKey::OifName, b"eth3"));
    assert!(test(&input, MetaKey::IifType, &1u32.to_le_bytes()) || cfg!(target_endian = "big"));
    assert!(test(&input, MetaKey::NfProto, &[2, 0, 0, 0]));
    assert!(test(&tcp6(), MetaKey::NfProto, &[10, 0, 0, 0]));
    assert!(test(&input, MetaKey::L4Proto, &[6, 0, 0, 0]));
    assert!(test(&input, MetaKey::SecPath, &[0; 4]));
    assert!(!matches(&[meta(MetaKey::SkUid)], &input) && !matches(&[meta(MetaKey::SkGid)], &input));
    assert_eq!(verdict(&[meta(MetaKey::Other(3))], &input), Verdict::Kernel);
    (input.iif, input.oif) = (None, None);
    assert!(test(&input, MetaKey::Iif, &[0; 4]) && test(&input, MetaKey::OifName, &[0; 16]));
    assert!(!matches(&[meta(MetaKey::IifType)], &input));
    assert!(!matches(&[meta(MetaKey::OifType)], &input));
}

#[test]
fn meta_pkttype_distinguishes_broadcast() {
    let mut input = tcp4();
    let is = |input: &Input, kind| matches(&[meta(MetaKey::PktType), cmp(R1, &[kind, 0])], input);
    assert!(is(&input, 0));
    input.pkt_type = PktType::Multicast;
    assert!(is(&input, 2));
    input.mac = Some([0xff; 12]);
    assert!(is(&input, 1));
}

#[test]
fn meta_mark_set_changes_the_mark_at_once() {
    let set = |value: u32| [immediate(R1, &value.to_ne_bytes()), Expr::SetMark { sreg: R1 }];
    let mut exprs = set(7).to_vec();
    exprs.extend([meta(MetaKey::Mark), cmp(R1, &7u32.to_ne_bytes())]);
    assert!(matches(&exprs, &tcp4()));
    let program = compile(&forward(vec![rule(exprs)]), 0);
    assert_eq!(run(&program, &tcp4()).mark, 7);
}

#[test]
fn tcp_options() {
    // NOP, NOP, MSS 1460, window scale 7, end.
    let with = |options: &[u8]| Input::new(Family::Ip, ipv4(6, 0, &[], &tcp(options)));
    let input = with(&[1, 1, 2, 4, 5, 0xb4, 3, 3, 7, 0, 0, 0]);
    let option = |kind, offset, len, present| Expr::Exthdr {
        dreg: R1,
        op: ExthdrOp::TcpOpt,
        kind,
        offset,
        len,
        present,
    };
    assert!(matches(&[option(2, 2, 2, false), cmp(R1, &[5, 0xb4, 0, 0])], &input));
    assert!(matches(&[option(3, 2, 1, false), cmp(R1, &[7])], &input));
    assert!(!matches(&[option(3, 2, 2, false)], &input), "longer than the option");
    assert!(!matches(&[option(8, 0, 1, false)], &input));
    assert!(matches(&[option(2, 0, 1, true), cmp(R1, &[1, 0, 0, 0])], &input));
    assert!(matches(&[option(8, 0, 1, true), cmp(R1, &[0, 0, 0, 0])], &input));
    // The option exceeds the header; a length of 0 does not stop the search.
    assert!(!matches(&[option(2, 2, 2, false)], &with(&[1, 1, 2, 4])));
    assert!(matches(&[option(2, 2, 2, false)], &with(&[8, 0, 0, 0, 2, 4, 5, 0xb4])));
    let udp = Input::new(Family::Ip, ipv4(17, 0, &[], &tcp(&[2, 4, 5, 0xb4])));
    assert!(!matches(&[option(2, 2, 2, false)], &udp));
    let mut short = tcp(&[2, 4, 5, 0xb4]);
    short[12] = 0x40;
    assert!(!matches(&[option(2, 2, 2, false)], &Input::new(Family::Ip, ipv4(6, 0, &[], &short))));
}

#[test]
fn ipv6_extension_headers() {
    let mut payload = vec![60, 0, 5, 2, 0, 0, 1, 0, 6, 0, 1, 4, 0, 0, 0, 9];
    payload.extend(tcp(&[]));
    let input = Input::new(Family::Ip6, ipv6(0, &payload));
    let header = |kind, offset, len, present| Expr::Exthdr {
        dreg: R1,
        op: ExthdrOp::Ipv6,
        kind,
        offset,
        len,
        present,
    };
    assert!(matches(&[header(0, 2, 2, false), cmp(R1, &[5, 2, 0, 0])], &input));
    assert!(matches(&[header(60, 4, 4, false), cmp(R1, &[0, 0, 0, 9])], &input));
    assert!(!matches(&[header(43, 0, 1, false)], &input));
    assert!(matches(&[header(43, 0, 1, true), cmp(R1, &[0, 0, 0, 0])], &input));
    assert!(matches(&[header(60, 0, 1, true), cmp(R1, &[1, 0, 0, 0])], &input));
    assert!(!matches(&[header(60, 0, 1, true)], &tcp4()), "not IPv6");
}

#[test]
fn ipv4_options() {
    let option = |present| Expr::Exthdr {
        dreg: R1,
        op: ExthdrOp::Ipv4,
        kind: 148,
        offset: 0,
        len: 1,
        present,
    };
    assert!(!matches(&[option(false)], &tcp4()));
    assert!(matches(&[option(true), cmp(R1, &[0, 0, 0, 0])], &tcp4()));
    assert!(!matches(&[option(true)], &tcp6()));
    let input = Input::new(Family::Ip, ipv4(6, 0, &[148, 4, 0, 0], &tcp(&[])));
    assert_eq!(verdict(&[option(true)], &input), Verdict::Kernel);
}

#[test]
fn operands_that_the_kernel_does_not_accept_are_left_to_it() {
    let odd = [
        cmp(Reg(60), &[0; 8]),
        cmp(Reg(2), &[0]),
        cmp(R1, &[]),
        cmp(R1, &[0; 17]),
        immediate(Reg(200), &[0]),
        payload(Reg(0), PayloadBase::Network, 0, 65),
        payload(Reg(0), PayloadBase::Network, 0, 0),
        Expr::Meta { dreg: Reg(52), key: MetaKey::IifName },
        Expr::SetMark { sreg: Reg(64) },
        Expr::Range { sreg: R1, invert: false, from: vec![0], to: vec![0, 0] },
        Expr::Byteorder { sreg: R1, dreg: R1, len: 4, size: 0 },
        Expr::Objref { kind: OBJECT_COUNTER, name: "unknown".to_owned() },
        Expr::Objref { kind: 4, name: "limit".to_owned() },
        Expr::Other("limit".into()),
        Expr::Verdict(RuleVerdict::Other(3)),
    ];
    for expr in odd {
        assert_eq!(verdict(std::slice::from_ref(&expr), &tcp4()), Verdict::Kernel, "{expr:?}");
    }
}
