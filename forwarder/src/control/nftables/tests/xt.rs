//! Extensions of iptables. `root` reads those that `iptables-nft` writes.

use super::{attrs, be, listed};
use crate::control::netlink::message::Attrs;
use crate::control::nftables::expr::exprs;
use crate::control::nftables::uapi::*;
use crate::control::nftables::xt::XT_REG;
use crate::netfilter::nft::ruleset::{BitwiseOp, CmpOp, CtKey, Expr, Family, MetaKey, PayloadBase};
use crate::netfilter::nft::xfrm::{AddressMatch, PolicyElem, PolicyMatch, XfrmDir};
use crate::netfilter::nft::xt::{Connmark, ConnmarkMode, HopLimitMode, Mangle, Ports, Xt};

/// The expressions of an extension.
fn decoded(family: Family, kind: &str, name: &str, revision: u32, info: &[u8]) -> Vec<Expr> {
    let name = [name.as_bytes(), b"\0"].concat();
    let data = [
        (NFTA_MATCH_NAME, &name[..]),
        (NFTA_MATCH_REV, &be(revision)[..]),
        (NFTA_MATCH_INFO, info),
    ];
    exprs(family, Attrs(&listed(kind, &attrs(&data))))
}

/// Values of 16 and 32 bits as in memory.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn padded(mut octets: Vec<u8>) -> Vec<u8> {
    octets.resize(octets.len().next_multiple_of(8), 0);
    octets
}

fn payload(offset: u32, len: u8) -> Expr {
    Expr::Payload { dreg: XT_REG, base: PayloadBase::Network, offset, len }
}

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { sreg: XT_REG, op, data: data.to_vec() }
}

fn multiport(which: u8, count: u8, ports: &[u16], ranges: &[u8], invert: u8) -> Vec<u8> {
    let mut info = vec![which, count];
    let mut all = [0u16; 15];
    all[..ports.len()].copy_from_slice(ports);
    info.extend(all.iter().flat_map(|port| port.to_ne_bytes()));
    let mut flags = [0; 15];
    flags[..ranges.len()].copy_from_slice(ranges);
    info.extend(flags);
    info.push(invert);
    info
}

#[test]
fn multiport_has_ports_and_ranges() {
    let of = |info: &[u8]| decoded(Family::Ip, "match", "multiport", 1, info);
    let info = multiport(1, 4, &[53, 100, 200, 7], &[0, 1, 0, 0], 1);
    let ranges = vec![(53, 53), (100, 200), (7, 7)];
    assert_eq!(of(&info), [Expr::Xt(Xt::Multiport { which: Ports::Dst, ranges, invert: true })]);
    let other = [Expr::Other("xt match multiport".into())];
    assert_eq!(of(&multiport(3, 1, &[53], &[], 0)), other, "unknown flag");
    assert_eq!(of(&multiport(0, 16, &[53], &[], 0)), other, "too many");
    assert_eq!(of(&multiport(0, 1, &[53], &[1], 0)), other, "a range without an end");
    assert_eq!(of(&info[..40]), other, "another size");
    assert_eq!(decoded(Family::Ip, "match", "multiport", 0, &info), other, "another revision");
    assert_eq!(decoded(Family::Inet, "match", "multiport", 1, &info), other, "another family");
}

#[test]
fn lengths_ttls_and_classes_are_those_of_the_header() {
    let length = |family, from: u16, to: u16| {
        let info = [from.to_ne_bytes(), to.to_ne_bytes(), [1, 0], [0, 0]].concat();
        decoded(family, "match", "length", 0, &info)
    };
    let range = |from: [u8; 2], to: [u8; 2]| Expr::Range {
        sreg: XT_REG,
        invert: true,
        from: from.to_vec(),
        to: to.to_vec(),
    };
    assert_eq!(length(Family::Ip, 40, 300), [payload(2, 2), range([0, 40], [1, 44])]);
    let expected = Xt::Length6 { range: (30, 300), invert: true };
    assert_eq!(length(Family::Ip6, 30, 300), [Expr::Xt(expected)]);
    let ttl = padded(vec![2, 5]);
    let lower = |offset| [payload(offset, 1), cmp(CmpOp::Lt, &[5])];
    assert_eq!(decoded(Family::Ip, "match", "ttl", 0, &ttl), lower(8));
    assert_eq!(decoded(Family::Ip6, "match", "hl", 0, &ttl), lower(7));
    let rt = |family, len| decoded(family, "match", "rt", 0, &vec![0; len]);
    assert_eq!(rt(Family::Ip6, 280), [Expr::Xt(Xt::Rt)]);
    let other = [Expr::Other("xt match rt".into())];
    assert_eq!(rt(Family::Ip6, 272), other, "another size");
    assert_eq!(rt(Family::Ip, 280), other, "another family");
    let mask = |mask: &[u8]| Expr::Bitwise {
        sreg: XT_REG,
        dreg: XT_REG,
        len: mask.len() as u8,
        op: BitwiseOp::MaskXor { mask: mask.to_vec(), xor: vec![0; mask.len()] },
    };
    let dscp = |family| decoded(family, "match", "dscp", 0, &padded(vec![46, 1]));
    let expected = [payload(1, 1), mask(&[0xfc]), cmp(CmpOp::Neq, &[0xb8])];
    assert_eq!(dscp(Family::Ip), expected);
    let expected = [payload(0, 2), mask(&[0x0f, 0xc0]), cmp(CmpOp::Neq, &[0x0b, 0x80])];
    assert_eq!(dscp(Family::Ip6), expected);
}

#[test]
fn marks_are_set_saved_and_restored() {
    let mark = decoded(Family::Ip, "target", "MARK", 2, &words(&[5, 0xff]));
    let op = BitwiseOp::MaskXor { mask: words(&[!0xff]), xor: words(&[5]) };
    let expected = [
        Expr::Meta { dreg: XT_REG, key: MetaKey::Mark },
        Expr::Bitwise { sreg: XT_REG, dreg: XT_REG, len: 4, op },
        Expr::SetMark { sreg: XT_REG },
    ];
    assert_eq!(mark, expected);
    let connmark = |revision, shift: u8, mode: u8| {
        let last = if revision == 1 { [mode, 0, 0, 0] } else { [1, shift, mode, 0] };
        let info = [words(&[1, 2, 3]), last.to_vec()].concat();
        decoded(Family::Ip6, "target", "CONNMARK", revision, &info)
    };
    let expected = |mode| [Expr::Connmark(Connmark { mode, ctmark: 1, ctmask: 2, nfmask: 3 })];
    assert_eq!(connmark(2, 0, 0), expected(ConnmarkMode::Set));
    assert_eq!(connmark(1, 0, 1), expected(ConnmarkMode::Save));
    assert_eq!(connmark(2, 0, 2), expected(ConnmarkMode::Restore));
    let other = [Expr::Other("xt target CONNMARK".into())];
    assert_eq!(connmark(2, 4, 2), other, "shifted");
    assert_eq!(connmark(2, 0, 3), other);
}

#[test]
fn the_target_ct_is_told_apart_by_notrack() {
    // Flags, zone; then events, helper, time-out and a pointer.
    let ct = |revision, len, flags: u16| {
        let mut info = vec![0; len];
        info[..2].copy_from_slice(&flags.to_ne_bytes());
        decoded(Family::Ip, "target", "CT", revision, &info)
    };
    let other = |text: &str| [Expr::Other(text.into())];
    for (revision, len) in [(0, 40), (1, 72), (2, 72)] {
        assert_eq!(ct(revision, len, 1), other("xt target CT --notrack"), "{revision}");
        assert_eq!(ct(revision, len, 3), other("xt target CT --notrack"), "with the alias");
        assert_eq!(ct(revision, len, 0), other("xt target CT"), "{revision}");
        assert_eq!(ct(revision, len + 8, 1), other("xt target CT"), "of another size");
    }
}

#[test]
fn targets_that_change_the_header_are_those_of_the_kernel() {
    let target = |family, name, revision, info: &[u8]| {
        decoded(family, "target", name, revision, &padded(info.to_vec()))
    };
    let mangle = |of| [Expr::Mangle(of)];
    let other = |name: &str| [Expr::Other(format!("xt target {name}").into())];
    for family in [Family::Ip, Family::Ip6] {
        let dscp = mangle(Mangle::Dsfield { keep: 3, value: 0xb8 });
        assert_eq!(target(family, "DSCP", 0, &[46]), dscp);
        let tos = mangle(Mangle::Dsfield { keep: 0xc0, value: 0x10 });
        assert_eq!(target(family, "TOS", 1, &[0x10, 0x3f]), tos);
        assert_eq!(target(family, "DSCP", 0, &[64]), other("DSCP"));
        assert_eq!(target(family, "TOS", 0, &[0x10]), other("TOS"), "another revision");
    }
    for (n, mode) in (0..).zip([HopLimitMode::Set, HopLimitMode::Inc, HopLimitMode::Dec]) {
        let [ttl, hop_limit] = [Mangle::Ttl(mode, 5), Mangle::HopLimit(mode, 5)].map(mangle);
        assert_eq!(target(Family::Ip, "TTL", 0, &[n, 5]), ttl);
        assert_eq!(target(Family::Ip6, "HL", 0, &[n, 5]), hop_limit);
    }
    assert_eq!(target(Family::Ip, "TTL", 0, &[3, 5]), other("TTL"));
    assert_eq!(target(Family::Ip6, "TTL", 0, &[0, 5]), other("TTL"), "another family");
    assert_eq!(target(Family::Inet, "DSCP", 0, &[46]), other("DSCP"), "another family");
}

#[test]
fn conntrack_compares_what_a_packet_without_a_connection_can_have() {
    let conntrack = |flags: u16, invert: u16, state: u16, status: u16| {
        let mut info = vec![0; 168];
        info[136] = 6;
        for (at, value) in [(146, flags), (148, invert), (150, state), (152, status)] {
            info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        decoded(Family::Ip, "match", "conntrack", 3, &info)
    };
    let keys = |exprs: Vec<Expr>| -> Option<Vec<CtKey>> {
        let is_other = exprs.iter().any(|expr| matches!(expr, Expr::Other(_)));
        let keys = exprs.into_iter().filter_map(|expr| match expr {
            Expr::Ct { key, .. } => Some(key),
            _ => None,
        });
        (!is_other).then(|| keys.collect())
    };
    let (state, proto, status, direction) = (1, 2, 1 << 6, 1 << 12);
    assert_eq!(keys(conntrack(state, 0, 2, 0)), Some(vec![CtKey::State]));
    assert_eq!(keys(conntrack(status, 0, 0, 4)), Some(vec![CtKey::Status]));
    assert_eq!(
        keys(conntrack(state | status | direction | proto, direction, 2, 4)),
        Some(vec![CtKey::State, CtKey::Status, CtKey::Direction, CtKey::Protocol])
    );
    // Where the state matches without a connection, nothing more is compared.
    assert_eq!(keys(conntrack(state | status, 0, 1, 4)), None);
    assert_eq!(keys(conntrack(state | status, state, 2, 4)), None);
    assert_eq!(keys(conntrack(state, 0, 1 << 7, 0)), None, "DNAT");
    assert_eq!(keys(conntrack(4, 0, 0, 0)), None, "addresses");
    let direction = conntrack(direction, direction, 0, 0);
    assert_eq!(direction.last(), Some(&cmp(CmpOp::Neq, &[0])), "replies");
}

#[test]
fn cut_structures_are_not_decoded() {
    let all: [(&str, &str, u32, usize); 17] = [
        ("match", "tcp", 0, 16),
        ("match", "udp", 0, 16),
        ("match", "icmp", 0, 8),
        ("match", "mark", 1, 16),
        ("match", "connmark", 1, 16),
        ("match", "mac", 0, 16),
        ("match", "pkttype", 0, 8),
        ("match", "iprange", 1, 72),
        ("match", "length", 0, 8),
        ("match", "ttl", 0, 8),
        ("match", "dscp", 0, 8),
        ("match", "tos", 1, 8),
        ("match", "tcpmss", 0, 8),
        ("match", "addrtype", 0, 16),
        ("match", "addrtype", 1, 8),
        ("target", "MARK", 2, 8),
        ("target", "CONNMARK", 1, 16),
    ];
    for (kind, name, revision, size) in all {
        let text = format!("xt {kind} {name}");
        for len in 0..size + 9 {
            let exprs = decoded(Family::Ip, kind, name, revision, &vec![0; len]);
            let is_other = exprs == [Expr::Other(text.clone().into())];
            assert_eq!(is_other, len != size, "{text} of {len} octets: {exprs:?}");
        }
        let unknown = decoded(Family::Ip, kind, name, revision + 7, &vec![0; size]);
        assert_eq!(unknown, [Expr::Other(text.into())]);
    }
}

/// `struct xt_policy_info`: the elements, each as octets, and the flags.
fn policy(elems: &[Vec<u8>], flags: u16) -> Vec<Expr> {
    let mut info = elems.concat();
    info.resize(4 * 76, 0);
    info.extend(flags.to_ne_bytes());
    info.extend((elems.len() as u16).to_ne_bytes());
    decoded(Family::Ip, "match", "policy", 0, &padded(info))
}

/// An element with these bits of what is compared, and of what must differ.
fn policy_elem(compared: u8, inverted: u8) -> Vec<u8> {
    let address = |octets: [u8; 4]| [&octets[..], &[0; 12]].concat();
    let addresses = [[192, 0, 2, 1], [255; 4], [192, 0, 2, 0], [255, 255, 255, 0]].map(address);
    let mut elem = addresses.concat();
    elem.extend([0, 0, 0x12, 0x34]);
    elem.extend(7u32.to_ne_bytes());
    elem.extend([50, 1, compared, inverted]);
    elem
}

#[test]
fn policies_are_decoded_with_what_their_elements_compare() {
    let expected = |dir, is_none, is_strict, elems| {
        [Expr::Xt(Xt::Policy(PolicyMatch { dir, is_none, is_strict, elems }))]
    };
    let any = PolicyElem::default();
    let of = |compared, flags| policy(&[policy_elem(compared, 0)], flags);
    assert_eq!(of(0, 1), expected(XfrmDir::In, false, false, vec![any.clone()]));
    assert_eq!(of(0, 2 | 4), expected(XfrmDir::Out, true, false, vec![any.clone()]));
    let address = |address: [u8; 4], mask: [u8; 4]| {
        let wide = |octets: [u8; 4]| {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&octets);
            wide
        };
        AddressMatch { address: wide(address), mask: wide(mask) }
    };
    let all = PolicyElem {
        ends: [
            Some((address([192, 0, 2, 1], [255; 4]), true)),
            Some((address([192, 0, 2, 0], [255, 255, 255, 0]), false)),
        ],
        protocol: Some((50, true)),
        is_tunnel: Some((true, false)),
        spi: Some((0x1234, true)),
        reqid: Some((7, false)),
    };
    let both = [policy_elem(0x3f, 0x15), policy_elem(0, 0)];
    assert_eq!(policy(&both, 1 | 8), expected(XfrmDir::In, false, true, vec![all, any]));
    let other = [Expr::Other("xt match policy".into())];
    for flags in [0, 3, 16] {
        assert_eq!(of(0, flags), other, "flags {flags}");
    }
    assert_eq!(of(0x40, 1), other, "an unknown field");
    let many = vec![policy_elem(0, 0); 5];
    assert_eq!(policy(&many, 1), other, "another size");
}
