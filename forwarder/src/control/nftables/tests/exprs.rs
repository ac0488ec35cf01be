//! Expressions that `nft` of Debian 12 does not make, and malformed ones.

use super::{Listed, attrs, be, listed, one, one_with_form, value, verdict};
use crate::control::netlink::message::Attrs;
use crate::control::nftables::expr::exprs;
use crate::control::nftables::uapi::*;
use crate::netfilter::conntrack::Direction;
use crate::netfilter::nft::other::Part;
use crate::netfilter::nft::ruleset::{
    BitwiseOp, Checksum, CmpOp, CtKey, Expr, ExthdrOp, Family, PayloadBase, Reg, RuleVerdict,
    SetPayload, TupleEnd,
};

fn other(text: &str) -> Expr {
    Expr::Other(text.into())
}

#[test]
fn bitwise_has_a_mask_a_number_of_bits_or_a_second_register() {
    let bitwise = |op: u32, more: &[(u16, &[u8])]| {
        let (op, four, nine) = (be(op), be(4), be(9));
        let mut list: Vec<(u16, &[u8])> = vec![
            (NFTA_BITWISE_SREG, &nine),
            (NFTA_BITWISE_DREG, &four),
            (NFTA_BITWISE_LEN, &four),
            (NFTA_BITWISE_OP, &op),
        ];
        list.extend(more);
        one("bitwise", &list)
    };
    let expected = |op| Expr::Bitwise { sreg: Reg(4), dreg: Reg(48), len: 4, op };
    let second = (NFTA_BITWISE_SREG2, &be(23)[..]);
    assert_eq!(bitwise(NFT_BITWISE_AND, &[second]), expected(BitwiseOp::And(Reg(60))));
    assert_eq!(bitwise(NFT_BITWISE_OR, &[second]), expected(BitwiseOp::Or(Reg(60))));
    assert_eq!(bitwise(NFT_BITWISE_XOR, &[second]), expected(BitwiseOp::Xor(Reg(60))));
    let bits = value(&7u32.to_ne_bytes());
    let bits = (NFTA_BITWISE_DATA, &bits[..]);
    assert_eq!(bitwise(NFT_BITWISE_LSHIFT, &[bits]), expected(BitwiseOp::Lshift(7)));
    assert_eq!(bitwise(NFT_BITWISE_RSHIFT, &[bits]), expected(BitwiseOp::Rshift(7)));
    let octets = value(&[1, 2, 3, 4]);
    let (mask, xor) = ((NFTA_BITWISE_MASK, &octets[..]), (NFTA_BITWISE_XOR, &octets[..]));
    let (a, b) = (vec![1, 2, 3, 4], vec![1, 2, 3, 4]);
    let both = bitwise(NFT_BITWISE_MASK_XOR, &[mask, xor]);
    assert_eq!(both, expected(BitwiseOp::MaskXor { mask: a, xor: b }));
    let too_far = value(&32u32.to_ne_bytes());
    let short = value(&[1, 2]);
    let wrong: [(u32, Listed<'_>); 9] = [
        (NFT_BITWISE_MASK_XOR, &[mask]),
        (NFT_BITWISE_MASK_XOR, &[mask, xor, second]),
        (NFT_BITWISE_MASK_XOR, &[mask, (NFTA_BITWISE_XOR, &short)]),
        (NFT_BITWISE_LSHIFT, &[]),
        (NFT_BITWISE_LSHIFT, &[bits, second]),
        (NFT_BITWISE_RSHIFT, &[(NFTA_BITWISE_DATA, &too_far)]),
        (NFT_BITWISE_AND, &[bits, second]),
        (NFT_BITWISE_OR, &[]),
        (6, &[second]),
    ];
    for (op, more) in wrong {
        assert_eq!(bitwise(op, more), other("bitwise"), "{op} {more:?}");
    }
}

#[test]
fn expressions_that_are_not_evaluated_have_a_name_that_users_know() {
    let key = |key: u32| be(key);
    let state = [(NFTA_CT_DREG, &be(1)[..]), (NFTA_CT_KEY, &key(0)[..])];
    assert_eq!(one("ct", &state), Expr::Ct { dreg: Reg(0), key: CtKey::State });
    let of_one = [state[0], state[1], (NFTA_CT_DIRECTION, &[1][..])];
    assert_eq!(one("ct", &of_one), other("ct state"), "of one direction only");
    let port = [(NFTA_CT_DREG, &be(1)[..]), (NFTA_CT_KEY, &key(12)[..])];
    assert_eq!(one("ct", &port), other("ct proto-dst"), "of no direction");
    let reply = [port[0], port[1], (NFTA_CT_DIRECTION, &[1][..])];
    let expected = CtKey::Port(Direction::Reply, TupleEnd::Dst);
    assert_eq!(one("ct", &reply), Expr::Ct { dreg: Reg(0), key: expected });
    let odd = [port[0], port[1], (NFTA_CT_DIRECTION, &[2][..])];
    assert_eq!(one("ct", &odd), other("ct proto-dst"));
    assert_eq!(one("ct", &[(1, &be(1)), (NFTA_CT_KEY, &key(6))]), other("ct helper"));
    let set = |number: u32| one("ct", &[(NFTA_CT_KEY, &key(number)), (NFTA_CT_SREG, &be(1))]);
    assert_eq!(set(3), Expr::SetCtMark { sreg: Reg(0) });
    assert_eq!(set(13), other("ct label set"));
    assert_eq!(one("ct", &[(1, &be(1)), (NFTA_CT_KEY, &key(99))]), other("ct 99"));
    assert_eq!(one("ct", &[]), other("ct"));
    let priority = [(NFTA_META_KEY, &key(2)[..]), (NFTA_META_SREG, &be(1)[..])];
    assert_eq!(one("meta", &priority), other("meta priority set"));
    assert_eq!(one("meta", &[(NFTA_META_KEY, &key(3))]), other("meta mark"));
    assert_eq!(one("match", &[(NFTA_MATCH_NAME, b"hashlimit\0")]), other("xt match hashlimit"));
    assert_eq!(one("target", &[(NFTA_MATCH_NAME, b"TCPMSS\0")]), other("xt target TCPMSS"));
    assert_eq!(one("match", &[]), other("xt match"));
    for name in ["limit", "quota", "log", "reject", "last", "inner", "queue"] {
        assert_eq!(one(name, &[(1, &be(1))]), other(name));
    }
    assert_eq!(one("flow_offload", &[(NFTA_FLOW_TABLE_NAME, b"ft\0")]), other("flow add @ft"));
    assert_eq!(one("flow_offload", &[]), other("flow_offload"));
    assert_eq!(one("xfrm", &[]), other("ipsec"));
    assert_eq!(one("rt", &[(1, &be(1)), (2, &be(0))]), other("rt"));
    let exthdr = |op: u32| one("exthdr", &[(1, &be(1)), (NFTA_EXTHDR_OP, &be(op))]);
    assert_eq!(exthdr(NFT_EXTHDR_OP_SCTP), other("exthdr sctp"));
    assert_eq!(exthdr(NFT_EXTHDR_OP_DCCP), other("exthdr dccp"));
    assert_eq!(one("exthdr", &[(NFTA_EXTHDR_SREG, &be(1))]), other("exthdr set"));
    assert_eq!(one("exthdr", &[(NFTA_EXTHDR_OP, &be(1))]), other("exthdr reset"));
    assert_eq!(one("payload", &[(NFTA_PAYLOAD_SREG, &be(1))]), other("payload set"));
    let inner = [(NFTA_PAYLOAD_DREG, &be(1)[..]), (NFTA_PAYLOAD_BASE, &be(3)[..])];
    assert_eq!(one("payload", &inner), other("payload @ih"));
    assert_eq!(one("objref", &[(NFTA_OBJREF_SET_SREG, &be(1))]), other("objref map"));
    let comment = listed("match", &attrs(&[(NFTA_MATCH_NAME, b"comment\0")]));
    assert!(exprs(Family::Ip, Attrs(&comment)).is_empty(), "has no effect");
}

#[test]
fn a_payload_that_is_written_has_a_checksum_that_userspace_knows() {
    let payload = |base: u32, offset: u32, kind: u32, at: u32, flags: u32| {
        one(
            "payload",
            &[
                (NFTA_PAYLOAD_SREG, &be(1)),
                (NFTA_PAYLOAD_BASE, &be(base)),
                (NFTA_PAYLOAD_OFFSET, &be(offset)),
                (NFTA_PAYLOAD_LEN, &be(4)),
                (NFTA_PAYLOAD_CSUM_TYPE, &be(kind)),
                (NFTA_PAYLOAD_CSUM_OFFSET, &be(at)),
                (NFTA_PAYLOAD_CSUM_FLAGS, &be(flags)),
            ],
        )
    };
    let set = |base, checksum, pseudo_header| {
        let (sreg, offset, len) = (Reg(0), 12, 4);
        Expr::SetPayload(SetPayload { sreg, base, offset, len, checksum, pseudo_header })
    };
    let (network, transport) = (PayloadBase::Network, PayloadBase::Transport);
    assert_eq!(payload(1, 12, 1, 10, 1), set(network, Checksum::Inet(10), true));
    assert_eq!(payload(0, 12, 0, 0, 0), set(PayloadBase::Link, Checksum::None, false));
    assert_eq!(payload(2, 12, 2, 8, 0), set(transport, Checksum::Sctp, false));
    for (base, offset, kind, at, flags) in [
        (3, 12, 0, 0, 0),
        (1, 256, 0, 0, 0),
        (1, 12, 3, 0, 0),
        (1, 12, 1, 256, 0),
        (1, 12, 2, 8, 0),
        (2, 12, 2, 6, 0),
        (1, 12, 1, 10, 2),
    ] {
        let found = payload(base, offset, kind, at, flags);
        assert_eq!(found, other("payload set"), "{base} {offset} {kind} {at} {flags}");
    }
}

#[test]
fn a_dynset_that_counts_connections_needs_them_tracked() {
    let of = |kind: u16, list: &[u8]| {
        let data = [(NFTA_DYNSET_SET_NAME, &b"s\0"[..]), (kind, list)];
        exprs(Family::Ip, Attrs(&listed("dynset", &attrs(&data))))
    };
    let named =
        |name: &str| attrs(&[(NFTA_EXPR_NAME, [name.as_bytes(), b"\0"].concat().as_slice())]);
    let counts = [other("dynset s"), other("connlimit")];
    assert_eq!(of(NFTA_DYNSET_EXPR, &named("connlimit")), counts);
    let list = attrs(&[(NFTA_LIST_ELEM, &named("counter")), (NFTA_LIST_ELEM, &named("connlimit"))]);
    assert_eq!(of(NFTA_DYNSET_EXPRESSIONS, &list), counts);
    assert_eq!(of(NFTA_DYNSET_EXPR, &named("limit")), [other("dynset s")]);
}

#[test]
fn a_register_that_does_not_exist_or_has_no_room_is_not_decoded() {
    let cmp = |sreg: u32, octets: &[u8]| {
        let data = value(octets);
        let op = be(0);
        one("cmp", &[(NFTA_CMP_SREG, &be(sreg)), (NFTA_CMP_OP, &op), (NFTA_CMP_DATA, &data)])
    };
    let data = vec![1, 2, 3, 4];
    let expected = Expr::Cmp { sreg: Reg(60), op: CmpOp::Eq, data };
    assert_eq!(cmp(23, &[1, 2, 3, 4]), expected);
    for (sreg, octets) in [(23, &[0; 5][..]), (0, &[0; 4]), (5, &[0; 4]), (24, &[0; 4]), (1, &[])] {
        assert_eq!(cmp(sreg, octets), other("cmp"), "register {sreg}, {} octets", octets.len());
    }
    let meta = |dreg: u32, key: u32| {
        one("meta", &[(NFTA_META_DREG, &be(dreg)), (NFTA_META_KEY, &be(key))])
    };
    assert!(matches!(meta(4, 6), Expr::Meta { .. }));
    assert_eq!(meta(21, 6), other("meta iifname"));
}

#[test]
fn verdicts_are_decoded_with_their_chain() {
    let immediate = |dreg: u32, data: &[u8]| {
        one("immediate", &[(NFTA_IMMEDIATE_DREG, &be(dreg)), (NFTA_IMMEDIATE_DATA, data)])
    };
    let jump = immediate(0, &verdict(NFT_JUMP, Some("web")));
    assert_eq!(jump, Expr::Verdict(RuleVerdict::Jump("web".into())));
    let codes = [
        (NF_ACCEPT, RuleVerdict::Accept),
        (NF_DROP, RuleVerdict::Drop),
        (NFT_CONTINUE, RuleVerdict::Continue),
        (NFT_BREAK, RuleVerdict::Break),
        (NFT_RETURN, RuleVerdict::Return),
        (3, RuleVerdict::Other(3)),
        (-9, RuleVerdict::Other(-9)),
    ];
    for (code, expected) in codes {
        assert_eq!(immediate(0, &verdict(code, None)), Expr::Verdict(expected));
    }
    assert_eq!(immediate(0, &verdict(NFT_GOTO, None)), other("immediate"), "no chain");
    assert_eq!(immediate(1, &verdict(NF_DROP, None)), other("immediate"), "not its register");
    assert_eq!(immediate(0, &value(&[1])), other("immediate"), "not its register");
    assert_eq!(immediate(0, &[]), other("immediate"));
}

#[test]
fn unknown_missing_and_repeated_attributes_are_not_ignored() {
    let exthdr: [(u16, &[u8]); 6] = [
        (NFTA_EXTHDR_DREG, &be(1)),
        (NFTA_EXTHDR_TYPE, &[44]),
        (NFTA_EXTHDR_OFFSET, &be(4)),
        (NFTA_EXTHDR_LEN, &be(4)),
        (NFTA_EXTHDR_FLAGS, &be(0)),
        (NFTA_EXTHDR_OP, &be(0)),
    ];
    let expected = Expr::Exthdr {
        dreg: Reg(0),
        op: ExthdrOp::Ipv6,
        kind: 44,
        offset: 4,
        len: 4,
        present: false,
    };
    assert_eq!(one("exthdr", &exthdr), expected);
    // Those of old kernels have neither flags nor an operation.
    assert_eq!(one("exthdr", &exthdr[..4]), expected);
    for missing in 0..4 {
        let mut list = exthdr.to_vec();
        list.remove(missing);
        assert!(matches!(one("exthdr", &list), Expr::Other(_)), "{missing}");
    }
    for more in [(8, &[0; 4][..]), (NFTA_EXTHDR_LEN, &be(2)), (NFTA_EXTHDR_FLAGS, &be(2))] {
        let list = [&exthdr[..], &[more]].concat();
        assert_eq!(one("exthdr", &list), other("exthdr"), "{more:?}");
    }
    assert_eq!(one("notrack", &[]), Expr::Notrack);
    assert_eq!(one("notrack", &[(1, &[])]), other("notrack"));
    let lookup = |dreg: Option<u32>, flags: u32| {
        let (dreg, flags, sreg) = (dreg.map(be), be(flags), be(1));
        let mut list = vec![(NFTA_LOOKUP_SET, &b"s\0"[..]), (NFTA_LOOKUP_SREG, &sreg[..])];
        list.extend(dreg.iter().map(|dreg| (NFTA_LOOKUP_DREG, &dreg[..])));
        list.push((NFTA_LOOKUP_FLAGS, &flags));
        one("lookup", &list)
    };
    assert!(matches!(lookup(None, 1), Expr::Lookup { invert: true, dreg: None, .. }));
    assert!(matches!(lookup(Some(2), 0), Expr::Lookup { dreg: Some(Reg(16)), is_vmap: false, .. }));
    assert!(matches!(lookup(Some(0), 0), Expr::Lookup { dreg: None, is_vmap: true, .. }));
    for (dreg, flags) in [(Some(2), 1), (None, 2), (Some(7), 0)] {
        assert_eq!(lookup(dreg, flags), other("lookup"));
    }
}

#[test]
fn a_list_that_is_malformed_ends_with_an_expression_that_is_not_evaluated() {
    let list = [listed("notrack", &[]), listed("counter", &[]), listed("limit", &[])].concat();
    let whole = exprs(Family::Ip, Attrs(&list));
    assert_eq!(whole, [Expr::Notrack, other("counter"), other("limit")]);
    for len in 0..list.len() {
        let found = exprs(Family::Ip, Attrs(&list[..len]));
        let same = found.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        assert!(found.len() <= same + 1, "{found:?}");
        assert!(found[same..].iter().all(|expr| matches!(expr, Expr::Other(_))), "{found:?}");
        let boundary = len == 0 || found.len() == same;
        assert!(boundary || found.len() == same + 1, "{len}: {found:?}");
    }
    let wrong_kind = attrs(&[(2, &[])]);
    assert_eq!(exprs(Family::Ip, Attrs(&wrong_kind)), [other("malformed expression")]);
    let nameless = attrs(&[(NFTA_LIST_ELEM, &[])]);
    assert_eq!(exprs(Family::Ip, Attrs(&nameless)), [other("malformed expression")]);
}

/// The text of a statement without registers.
fn written(family: Family, name: &str, list: Listed<'_>) -> Option<String> {
    let Expr::Other(other) = one_with_form(family, name, list) else { return None };
    let parts = other.form?.parts.into_iter().map(|part| match part {
        Part::Text(text) => Some(text),
        _ => None,
    });
    parts.collect()
}

#[test]
fn statements_of_modules_that_a_kernel_may_lack_are_written_as_nft_does() {
    let queue = |list: Listed<'_>| written(Family::Ip, "queue", list);
    let (one, four, none, both) =
        (1u16.to_be_bytes(), 4u16.to_be_bytes(), 0u16.to_be_bytes(), 3u16.to_be_bytes());
    assert_eq!(queue(&[(1, &four), (2, &one), (3, &none)]).as_deref(), Some("queue to 4"));
    let fanned = queue(&[(1, &one), (2, &four), (3, &both)]);
    assert_eq!(fanned.as_deref(), Some("queue flags bypass,fanout to 1-4"));
    assert_eq!(queue(&[]), None);

    let mss = 1460u16.to_be_bytes();
    let synproxy =
        |flags: u32| written(Family::Inet, "synproxy", &[(1, &mss), (2, &[7]), (3, &be(flags))]);
    assert_eq!(synproxy(0).as_deref(), Some("synproxy"));
    let all = "synproxy mss 1460 wscale 7 timestamp sack-perm";
    assert_eq!(synproxy(15).as_deref(), Some(all));
    assert_eq!(written(Family::Ip, "last", &[]).as_deref(), Some("last"));
    let to = written(Family::Ip, "flow_offload", &[(NFTA_FLOW_TABLE_NAME, b"ft\0")]);
    assert_eq!(to.as_deref(), Some("flow add @ft"));
}

#[test]
fn rates_and_quotas_have_the_largest_unit_that_they_are_multiples_of() {
    let quota = |octets: u64| written(Family::Ip, "quota", &[(1, &octets.to_be_bytes())]);
    for (octets, expected) in [
        (0, "quota 0 bytes"),
        (1000, "quota 1000 bytes"),
        (1024, "quota 1 kbytes"),
        (3 << 20, "quota 3 mbytes"),
        (5 << 30, "quota 5120 mbytes"),
    ] {
        assert_eq!(quota(octets).as_deref(), Some(expected));
    }
    let limit = |seconds: u64, burst: u32, kind: u32| {
        let list: Listed<'_> = &[
            (1, &2048u64.to_be_bytes()),
            (2, &seconds.to_be_bytes()),
            (3, &be(burst)),
            (4, &be(kind)),
            (5, &be(1)),
        ];
        written(Family::Ip, "limit", list)
    };
    assert_eq!(limit(60, 5, 0).as_deref(), Some("limit rate over 2048/minute"));
    assert_eq!(limit(3600, 6, 0).as_deref(), Some("limit rate over 2048/hour burst 6 packets"));
    let octets = limit(604_800, 1024, 1);
    assert_eq!(octets.as_deref(), Some("limit rate over 2 kbytes/week burst 1 kbytes"));
    // Units that nft does not have.
    assert_eq!((limit(2, 5, 0), limit(1, 5, 9)), (None, None));
    assert_eq!(written(Family::Ip, "limit", &[(1, &be(7))]), None, "too short");
}

#[test]
fn a_statement_whose_registers_are_not_known_has_no_text_and_no_other_effect() {
    // An address in a register that nothing was written to, and registers that do not exist.
    for reg in [1u32, 7, 99] {
        let list: Listed<'_> = &[(1, &be(1)), (2, &be(2)), (3, &be(reg)), (4, &be(reg))];
        let Expr::Other(other) = one_with_form(Family::Inet, "nat", list) else { panic!("nat") };
        assert_eq!((other.name.as_str(), other.form.is_some()), ("nat", reg == 1), "{reg}");
    }
}
