//! What rules read of the SAs of a packet.

use super::*;
use crate::ipsec::Mode;
use crate::netfilter::nft::xfrm::{
    AddressMatch, PolicyElem, PolicyMatch, SaInfo, XfrmDir, XfrmKey, XfrmQuery,
};
use crate::netfilter::nft::xt::Xt;
use crate::wire::Protocol;

const R1: Reg = Reg(0);

fn sa(ends: [&str; 2]) -> SaInfo {
    let ends = ends.map(|end| end.parse().expect("an address"));
    SaInfo { ends, protocol: Protocol::ESP, spi: 0x1234, reqid: 7, mode: Mode::Tunnel }
}

fn input(hook: Hook, received_by: Option<SaInfo>, sent_by: Option<SaInfo>) -> Input {
    let packet = [
        &[0x45, 0, 0, 28][..],
        &[0; 4],
        &[64, 17, 0, 0],
        &[10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 9, 0, 8, 0, 0],
    ];
    Input { hook, received_by, sent_by, ..Input::new(Family::Ip, packet.concat()) }
}

/// Whether a rule with these expressions drops the packet.
fn drops(exprs: Vec<Expr>, input: &Input) -> bool {
    let base = BaseChain {
        kind: "filter".into(),
        hook: input.hook as u32,
        priority: 0,
        policy_drops: false,
        devices: Vec::new(),
    };
    let exprs = [exprs, vec![Expr::Verdict(RuleVerdict::Drop)]].concat();
    let chain = Chain { name: "c".into(), base: Some(base), rules: vec![rule(exprs)] };
    let ruleset =
        Ruleset { generation: 1, tables: vec![table(Family::Ip, vec![chain], Vec::new())] };
    match run(&compile(&ruleset, 0), input).verdict {
        Verdict::Drop => true,
        Verdict::Accept => false,
        Verdict::Kernel => panic!("left to the kernel"),
    }
}

fn reads(dir: XfrmDir, spnum: u8, key: XfrmKey, value: &[u8], input: &Input) -> bool {
    let query = XfrmQuery { dir, spnum, key };
    let load = Expr::Xfrm { dreg: R1, query };
    drops(vec![load, Expr::Cmp { sreg: R1, op: CmpOp::Eq, data: value.to_vec() }], input)
}

#[test]
fn the_sa_of_each_direction_is_read() {
    use XfrmDir::{In, Out};
    let ipv4 = sa(["192.0.2.1", "192.0.2.2"]);
    let ipv6 = SaInfo { reqid: 8, spi: 9, ..sa(["2001:db8::1", "2001:db8::2"]) };
    let input = input(Hook::Forward, Some(ipv4), Some(ipv6));
    let is = |dir, key, value: &[u8]| reads(dir, 0, key, value, &input);
    assert!(is(In, XfrmKey::Reqid, &7u32.to_ne_bytes()));
    assert!(is(Out, XfrmKey::Reqid, &8u32.to_ne_bytes()));
    assert!(is(In, XfrmKey::Spi, &[0, 0, 0x12, 0x34]));
    assert!(is(Out, XfrmKey::Spi, &[0, 0, 0, 9]));
    assert!(is(In, XfrmKey::Saddr4, &[192, 0, 2, 1]));
    assert!(is(In, XfrmKey::Daddr4, &[192, 0, 2, 2]));
    let end = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("an address").octets();
    assert!(is(Out, XfrmKey::Saddr6, &end("2001:db8::1")));
    assert!(is(Out, XfrmKey::Daddr6, &end("2001:db8::2")));
    // Addresses of the other family; a second SA.
    assert!(!is(In, XfrmKey::Saddr6, &[0; 16]) && !is(Out, XfrmKey::Daddr4, &[0; 4]));
    assert!(!reads(In, 1, XfrmKey::Reqid, &7u32.to_ne_bytes(), &input));
}

#[test]
fn addresses_are_those_of_tunnels() {
    let transport = SaInfo { mode: Mode::Transport, ..sa(["192.0.2.1", "192.0.2.2"]) };
    let input = input(Hook::Forward, Some(transport), None);
    assert!(!reads(XfrmDir::In, 0, XfrmKey::Saddr4, &[192, 0, 2, 1], &input));
    assert!(reads(XfrmDir::In, 0, XfrmKey::Reqid, &7u32.to_ne_bytes(), &input));
}

#[test]
fn without_an_sa_ipsec_breaks_and_rt_ipsec_is_missing() {
    let rt = |value: u8, input: &Input| reads(XfrmDir::Out, 0, XfrmKey::Present, &[value], input);
    for hook in [Hook::Forward, Hook::PostRouting] {
        let (with, without) =
            (input(hook, None, Some(sa(["192.0.2.1", "192.0.2.2"]))), input(hook, None, None));
        assert!(rt(1, &with) && !rt(0, &with));
        assert!(rt(0, &without) && !rt(1, &without));
        assert!(!reads(XfrmDir::In, 0, XfrmKey::Reqid, &[0; 4], &without));
        assert!(!reads(XfrmDir::Out, 0, XfrmKey::Reqid, &[0; 4], &without));
    }
    // It has no route yet.
    let before = input(Hook::PreRouting, None, None);
    assert!(!rt(0, &before) && !rt(1, &before));
}

#[test]
fn the_match_policy_compares_the_sa() {
    let ours = sa(["192.0.2.1", "192.0.2.2"]);
    let with = input(Hook::Forward, Some(ours), None);
    let without = input(Hook::Forward, None, None);
    let end = |address: [u8; 4], mask: [u8; 4]| {
        let wide = |octets: [u8; 4]| {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&octets);
            wide
        };
        AddressMatch { address: wide(address), mask: wide(mask) }
    };
    let of = |elems: Vec<PolicyElem>| PolicyMatch {
        dir: XfrmDir::In,
        is_none: false,
        is_strict: false,
        elems,
    };
    let matches = |policy: &PolicyMatch, input: &Input| {
        drops(vec![Expr::Xt(Xt::Policy(policy.clone()))], input)
    };
    let any = PolicyElem::default;
    assert!(matches(&of(vec![any()]), &with));
    assert!(!matches(&of(vec![any()]), &without));
    assert!(!matches(&of(vec![]), &with), "no element");
    let none = PolicyMatch { is_none: true, ..of(vec![any()]) };
    assert!(matches(&none, &without) && !matches(&none, &with));
    let out = PolicyMatch { dir: XfrmDir::Out, ..of(vec![any()]) };
    assert!(!matches(&out, &with), "of the other direction");
    let strict = |elems| PolicyMatch { is_strict: true, ..of(elems) };
    assert!(matches(&strict(vec![any()]), &with));
    assert!(!matches(&strict(vec![any(), any()]), &with));
    let source = end([192, 0, 2, 0], [255, 255, 255, 0]);
    let other = end([192, 0, 3, 0], [255, 255, 255, 0]);
    for (elem, is_right) in [
        (PolicyElem { reqid: Some((7, false)), ..any() }, true),
        (PolicyElem { reqid: Some((7, true)), ..any() }, false),
        (PolicyElem { reqid: Some((8, true)), ..any() }, true),
        (PolicyElem { spi: Some((0x1234, false)), ..any() }, true),
        (PolicyElem { spi: Some((0x3412, false)), ..any() }, false),
        (PolicyElem { protocol: Some((50, false)), ..any() }, true),
        (PolicyElem { protocol: Some((51, false)), ..any() }, false),
        (PolicyElem { is_tunnel: Some((true, false)), ..any() }, true),
        (PolicyElem { is_tunnel: Some((true, true)), ..any() }, false),
        (PolicyElem { ends: [Some((source, false)), None], ..any() }, true),
        (PolicyElem { ends: [Some((source, true)), None], ..any() }, false),
        (PolicyElem { ends: [None, Some((other, false))], ..any() }, false),
        (PolicyElem { ends: [None, Some((other, true))], ..any() }, true),
    ] {
        assert_eq!(matches(&of(vec![elem.clone()]), &with), is_right, "{elem:?}");
        assert_eq!(matches(&strict(vec![elem.clone()]), &with), is_right, "{elem:?}");
        // Of several elements that need not be strict, the first is compared.
        assert_eq!(matches(&of(vec![elem.clone(), any()]), &with), is_right, "{elem:?}");
    }
}
