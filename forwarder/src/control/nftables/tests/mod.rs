//! Tests of the decoded ruleset: with messages built here, and (`root_…`) with a kernel, whose ruleset
//! `nft` and `iptables-nft` load and `nft --debug=netlink` prints.

mod exprs;
mod printer;
mod root;
mod xt;

use super::uapi::*;
use super::{Ruleset, decode, expr, parse, set};
use crate::control::netlink::message::{Attrs, Message, Request};
use crate::netfilter::nft::ruleset::{
    BaseChain, Data, Element, Expr, Family, Object, Reg, RuleVerdict, SET_INTERVAL, SET_MAP, Set,
};

/// Numbers and values of attributes.
type Listed<'a> = &'a [(u16, &'a [u8])];

/// Attributes one after the other.
fn attrs(list: Listed<'_>) -> Vec<u8> {
    let request = Request::new(0, 0, &[]);
    list.iter().fold(request, |request, (kind, value)| request.attr(*kind, value)).finish(0)[16..]
        .to_vec()
}

fn be(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

/// An nf_tables message without its header.
fn payload(family: u8, list: Listed<'_>) -> Vec<u8> {
    [vec![family, 0, 0, 0], attrs(list)].concat()
}

fn message(kind: u16, payload: &[u8]) -> Message<'_> {
    Message { kind, flags: 0, seq: 0, payload }
}

/// NFTA_DATA_VALUE, as `struct nft_data` attributes have it.
fn value(octets: &[u8]) -> Vec<u8> {
    attrs(&[(NFTA_DATA_VALUE, octets)])
}

/// NFTA_DATA_VERDICT.
fn verdict(code: i32, chain: Option<&str>) -> Vec<u8> {
    let mut inner = attrs(&[(NFTA_VERDICT_CODE, &code.to_be_bytes())]);
    if let Some(chain) = chain {
        inner.extend(attrs(&[(NFTA_VERDICT_CHAIN, format!("{chain}\0").as_bytes())]));
    }
    attrs(&[(NFTA_DATA_VERDICT, &inner)])
}

/// One member of NFTA_RULE_EXPRESSIONS.
fn listed(name: &str, data: &[u8]) -> Vec<u8> {
    let name = format!("{name}\0");
    let inner = attrs(&[(NFTA_EXPR_NAME, name.as_bytes()), (NFTA_EXPR_DATA, data)]);
    attrs(&[(NFTA_LIST_ELEM, &inner)])
}

/// The messages of a small ruleset.
fn messages() -> Vec<(u16, Vec<u8>)> {
    let ip = 2;
    let devices = attrs(&[(NFTA_DEVICE_NAME, b"eth0\0"), (NFTA_DEVICE_PREFIX, b"lan\0")]);
    let hook = attrs(&[
        (NFTA_HOOK_HOOKNUM, &be(2)),
        (NFTA_HOOK_PRIORITY, &be(-5i32 as u32)),
        (NFTA_HOOK_DEV, b"eth0\0"),
        (0x8000 | NFTA_HOOK_DEVS, &devices),
    ]);
    let counter = attrs(&[
        (NFTA_COUNTER_BYTES, &100u64.to_be_bytes()),
        (NFTA_COUNTER_PACKETS, &2u64.to_be_bytes()),
    ]);
    let lookup = attrs(&[
        (NFTA_LOOKUP_SET, b"m\0"),
        (NFTA_LOOKUP_SREG, &be(1)),
        (NFTA_LOOKUP_DREG, &be(0)),
        (NFTA_LOOKUP_FLAGS, &be(0)),
    ]);
    let exprs = [listed("counter", &counter), listed("lookup", &lookup)].concat();
    let field = |len| attrs(&[(NFTA_LIST_ELEM, &attrs(&[(NFTA_SET_FIELD_LEN, &be(len))]))]);
    let desc = attrs(&[(NFTA_SET_DESC_CONCAT, &[field(4), field(2)].concat())]);
    let key = |last: u8| value(&[10, 0, 0, last, 0, 80, 0, 0]);
    let element = attrs(&[
        (NFTA_SET_ELEM_KEY, &key(1)),
        (NFTA_SET_ELEM_KEY_END, &key(9)),
        (NFTA_SET_ELEM_DATA, &verdict(NFT_JUMP, Some("c"))),
        (NFTA_SET_ELEM_EXPIRATION, &5000u64.to_be_bytes()),
    ]);
    let rest = attrs(&[
        (NFTA_SET_ELEM_FLAGS, &be(NFT_SET_ELEM_CATCHALL)),
        (NFTA_SET_ELEM_DATA, &verdict(NF_DROP, None)),
    ]);
    let elements = |one: &[u8]| attrs(&[(NFTA_LIST_ELEM, one)]);
    let of_list = |one: &[u8]| {
        payload(
            ip,
            &[
                (NFTA_SET_ELEM_LIST_TABLE, b"t\0"),
                (NFTA_SET_ELEM_LIST_SET, b"m\0"),
                (NFTA_SET_ELEM_LIST_ELEMENTS, &elements(one)),
            ],
        )
    };
    vec![
        (NFT_MSG_NEWTABLE, payload(ip, &[(NFTA_TABLE_NAME, b"t\0"), (NFTA_TABLE_FLAGS, &be(1))])),
        (
            NFT_MSG_NEWCHAIN,
            payload(
                ip,
                &[
                    (1, b"t\0"),
                    (NFTA_CHAIN_NAME, b"c\0"),
                    (0x8000 | NFTA_CHAIN_HOOK, &hook),
                    (NFTA_CHAIN_POLICY, &be(0)),
                    (NFTA_CHAIN_TYPE, b"filter\0"),
                ],
            ),
        ),
        (
            NFT_MSG_NEWRULE,
            payload(
                ip,
                &[
                    (1, b"t\0"),
                    (NFTA_RULE_CHAIN, b"c\0"),
                    (NFTA_RULE_HANDLE, &7u64.to_be_bytes()),
                    (NFTA_RULE_EXPRESSIONS, &exprs),
                    (NFTA_RULE_USERDATA, b"\x05\x01x\x00\x04abc\0"),
                ],
            ),
        ),
        (
            NFT_MSG_NEWSET,
            payload(
                ip,
                &[
                    (1, b"t\0"),
                    (NFTA_SET_NAME, b"m\0"),
                    (NFTA_SET_FLAGS, &be(SET_MAP | SET_INTERVAL)),
                    (NFTA_SET_KEY_LEN, &be(8)),
                    (NFTA_SET_DATA_TYPE, &be(NFT_DATA_VERDICT)),
                    (NFTA_SET_DATA_LEN, &be(16)),
                    (NFTA_SET_DESC, &desc),
                ],
            ),
        ),
        (NFT_MSG_NEWSETELEM, of_list(&element)),
        (NFT_MSG_NEWSETELEM, of_list(&rest)),
        (
            NFT_MSG_NEWOBJ,
            payload(
                ip,
                &[
                    (1, b"t\0"),
                    (NFTA_OBJ_NAME, b"o\0"),
                    (NFTA_OBJ_TYPE, &be(1)),
                    (NFTA_OBJ_DATA, &counter),
                ],
            ),
        ),
        (NFT_MSG_NEWFLOWTABLE, payload(ip, &[(1, b"t\0"), (NFTA_FLOWTABLE_NAME, b"f\0")])),
    ]
}

fn decoded(messages: &[(u16, Vec<u8>)]) -> std::io::Result<Ruleset> {
    decode(messages.iter().map(|(kind, payload)| message(*kind, payload)))
}

#[test]
fn a_ruleset_is_decoded() {
    let ruleset = decoded(&messages()).expect("decodes");
    let [table] = &ruleset.tables[..] else { panic!("{ruleset:?}") };
    assert_eq!((table.family, table.name.as_str(), table.dormant), (Family::Ip, "t", true));
    assert_eq!(table.flowtables, ["f"]);
    assert_eq!(table.objects, [Object { name: "o".into(), kind: 1, counter: (2, 100) }]);
    let [chain] = &table.chains[..] else { panic!("{table:?}") };
    let base = BaseChain {
        kind: "filter".into(),
        hook: 2,
        priority: -5,
        policy_drops: true,
        devices: vec!["eth0".into(), "lan*".into()],
    };
    assert_eq!((chain.name.as_str(), &chain.base), ("c", &Some(base)));
    let [rule] = &chain.rules[..] else { panic!("{chain:?}") };
    assert_eq!((rule.handle, rule.comment.as_deref()), (7, Some("abc")));
    let set = "m".to_owned();
    let lookup = Expr::Lookup { sreg: Reg(0), dreg: None, is_vmap: true, set, invert: false };
    assert_eq!(rule.exprs, [Expr::Counter { packets: 2, octets: 100 }, lookup]);
    let element = Element {
        key: vec![10, 0, 0, 1, 0, 80, 0, 0],
        key_end: Some(vec![10, 0, 0, 9, 0, 80, 0, 0]),
        is_interval_end: false,
        is_catchall: false,
        data: Some(Data::Verdict(RuleVerdict::Jump("c".into()))),
        expires_ms: Some(5000),
    };
    let rest = Element {
        key: vec![],
        key_end: None,
        is_interval_end: false,
        is_catchall: true,
        data: Some(Data::Verdict(RuleVerdict::Drop)),
        expires_ms: None,
    };
    let set = Set {
        name: "m".into(),
        flags: SET_MAP | SET_INTERVAL,
        key_len: 8,
        data_len: 0,
        fields: vec![4, 2],
        elements: vec![element, rest],
        unsupported: None,
    };
    assert_eq!(table.sets, [set]);
}

#[test]
fn truncated_messages_do_not_panic_and_do_not_decode_as_something_else() {
    let whole = decoded(&messages()).expect("decodes");
    let all_elements = &whole.tables[0].sets[0].elements;
    for at in 0..messages().len() {
        let complete = messages()[at].1.len();
        for len in 0..complete {
            let mut messages = messages();
            messages[at].1.truncate(len);
            let Ok(ruleset) = decoded(&messages) else { continue };
            let table = &ruleset.tables[0];
            let rules = table.chains.iter().flat_map(|chain| &chain.rules);
            for expr in rules.flat_map(|rule| &rule.exprs) {
                let same = whole.tables[0].chains[0].rules[0].exprs.contains(expr);
                assert!(same || matches!(expr, Expr::Other(_)), "{expr:?}");
            }
            for set in &table.sets {
                let same = set.elements.iter().all(|element| all_elements.contains(element));
                assert!(same, "{set:?}");
                let is_complete = set.elements.len() == all_elements.len();
                assert!(is_complete || set.unsupported.is_some(), "message {at}, {len} octets");
            }
        }
    }
}

#[test]
fn objects_that_are_missing_or_there_twice_mean_that_the_ruleset_changed() {
    for missing in [0, 1] {
        let mut messages = messages();
        messages.remove(missing);
        let error = decoded(&messages).expect_err("something is missing");
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted);
    }
    for twice in [0, 1, 3] {
        let mut messages = messages();
        messages.push(messages[twice].clone());
        let error = decoded(&messages).expect_err("something is there twice");
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted);
    }
    let mut messages = messages();
    messages[0].1.truncate(4);
    let error = decoded(&messages).expect_err("a table without a name");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn devices_are_read_as_each_kernel_sends_them() {
    let devices = |hook: &[u8]| {
        let payload = payload(
            5,
            &[
                (1, b"t\0"),
                (NFTA_CHAIN_NAME, b"c\0"),
                (NFTA_CHAIN_HOOK, hook),
                (NFTA_CHAIN_POLICY, &be(1)),
                (NFTA_CHAIN_TYPE, b"filter\0"),
            ],
        );
        let (_, chain) = parse::chain(&message(NFT_MSG_NEWCHAIN, &payload)).expect("a chain");
        chain.base.expect("a base chain").devices
    };
    let hook = attrs(&[(NFTA_HOOK_HOOKNUM, &be(0)), (NFTA_HOOK_PRIORITY, &be(0))]);
    let one = |kind, name: &[u8]| {
        let list = attrs(&[(kind, name)]);
        devices(&[hook.clone(), attrs(&[(NFTA_HOOK_DEVS, &list)])].concat())
    };
    assert_eq!(one(NFTA_DEVICE_NAME, b"eth0\0"), ["eth0"]);
    assert_eq!(one(NFTA_DEVICE_PREFIX, b"eth\0"), ["eth*"], "Linux 6.17");
    assert_eq!(one(NFTA_DEVICE_NAME, b"eth"), ["eth*"], "Linux 6.16");
    assert_eq!(one(NFTA_DEVICE_PREFIX, b"gr\xc3\0"), ["gr*"], "within a character");
    assert_eq!(one(3, b"whatever"), ["*"], "a newer kernel");
    let single = attrs(&[(NFTA_HOOK_DEV, b"eth1\0")]);
    assert_eq!(devices(&[hook.clone(), single].concat()), ["eth1"], "Linux 4.2 to 5.4");
    assert!(devices(&hook).is_empty());
}

#[test]
fn sets_that_cannot_be_evaluated_have_a_reason() {
    let reason = |flags: u32, more: Listed<'_>, elements: &[Vec<u8>]| {
        let mut list: Vec<(u16, &[u8])> = vec![(1, b"t\0"), (NFTA_SET_NAME, b"s\0")];
        let (flags, four) = (be(flags), be(4));
        list.extend([(NFTA_SET_FLAGS, &flags[..]), (NFTA_SET_KEY_LEN, &four[..])]);
        list.extend(more);
        let payload_of_set = payload(2, &list);
        let mut head = set::set(&message(NFT_MSG_NEWSET, &payload_of_set)).expect("a set");
        let listed: Vec<u8> =
            elements.iter().flat_map(|element| attrs(&[(NFTA_LIST_ELEM, element)])).collect();
        let payload = payload(2, &[(NFTA_SET_ELEM_LIST_ELEMENTS, &listed)]);
        head.extend(set::elements(&message(NFT_MSG_NEWSETELEM, &payload)));
        head.set.unsupported.unwrap_or_default()
    };
    let key = value(&[1, 2, 3, 4]);
    let element =
        |more: Listed<'_>| vec![[attrs(&[(NFTA_SET_ELEM_KEY, &key)]), attrs(more)].concat()];
    assert_eq!(reason(0, &[], &element(&[])), "");
    assert!(reason(0x20, &[], &[]).contains("dynamic"));
    assert!(reason(0x100, &[], &[]).contains("counters or limits"));
    assert!(reason(0, &[(NFTA_SET_EXPR, &[])], &[]).contains("counters or limits"));
    assert!(reason(0x40, &[], &[]).contains("objects"));
    assert!(reason(0x200, &[], &[]).contains("flags"));
    assert!(reason(0, &[], &element(&[(NFTA_SET_ELEM_EXPR, &[])])).contains("counters"));
    assert!(reason(0, &[], &element(&[(NFTA_SET_ELEM_EXPRESSIONS, &[])])).contains("counters"));
    assert!(reason(0, &[], &element(&[(NFTA_SET_ELEM_OBJREF, b"o\0")])).contains("objects"));
    let unknown: [Listed<'_>; 5] = [
        &[(12, &[])],
        &[(NFTA_SET_ELEM_FLAGS, &[0, 0, 0, 4])],
        &[(NFTA_SET_ELEM_KEY_END, &[1])],
        &[(NFTA_SET_ELEM_EXPIRATION, &[1])],
        &[(NFTA_SET_ELEM_DATA, &value(&[1, 2, 3, 4]))],
    ];
    for more in unknown {
        assert!(reason(0, &[], &element(more)).contains("elements"), "{more:?}");
    }
    let map = [(NFTA_SET_DATA_TYPE, &be(5)[..]), (NFTA_SET_DATA_LEN, &be(4)[..])];
    let data = |data: &[u8]| element(&[(NFTA_SET_ELEM_DATA, data)]);
    assert_eq!(reason(SET_MAP, &map, &data(&value(&[1, 2, 3, 4]))), "");
    assert!(reason(SET_MAP, &map, &data(&value(&[1, 2]))).contains("elements"));
    assert!(reason(SET_MAP, &map, &data(&verdict(NF_DROP, None))).contains("elements"));
    assert!(reason(SET_MAP, &map, &element(&[])).contains("elements"));
    let short = vec![attrs(&[(NFTA_SET_ELEM_KEY, &value(&[1, 2]))])];
    assert!(reason(0, &[], &short).contains("elements"));
}

#[test]
fn a_dump_with_an_element_twice_or_without_one_of_the_next_is_known() {
    let element = |key: u8, is_interval_end| Element {
        key: vec![key],
        key_end: None,
        is_interval_end,
        is_catchall: false,
        data: None,
        expires_ms: (key == 9).then_some(1),
    };
    let found = |keys: &[u8]| {
        // In two messages.
        let (first, second) = keys.split_at(keys.len() / 2);
        [first, second].map(|keys| set::Elements {
            elements: keys.iter().map(|key| element(*key, false)).collect(),
            unsupported: None,
        })
    };
    assert!(set::is_unique(&found(&[1, 2, 3, 4])));
    assert!(!set::is_unique(&found(&[1, 2, 3, 1])));
    let mut interval = found(&[1, 2]);
    interval[1].elements.push(element(1, true));
    assert!(set::is_unique(&interval), "the end of an interval is another element");
    assert!(set::includes(&found(&[1, 2, 3]), &found(&[3, 1])));
    assert!(!set::includes(&found(&[1, 2, 3]), &found(&[3, 4])));
    assert!(!set::has_timeouts(&found(&[1, 2, 3])));
    assert!(set::has_timeouts(&found(&[1, 2, 3, 9])));
}

#[test]
fn user_data_of_another_program_is_no_comment() {
    let comment = |data: &[u8]| {
        let payload = payload(
            2,
            &[
                (1, b"t\0"),
                (NFTA_RULE_CHAIN, b"c\0"),
                (NFTA_RULE_HANDLE, &[0; 8]),
                (NFTA_RULE_EXPRESSIONS, &[]),
                (NFTA_RULE_USERDATA, data),
            ],
        );
        parse::rule(&message(NFT_MSG_NEWRULE, &payload)).expect("a rule").2.comment
    };
    assert_eq!(comment(b"\x00\x03ab\x00"), Some("ab".into()));
    assert_eq!(comment(b"\x01\x02xx\x00\x02a\x00"), Some("a".into()));
    for data in [&b""[..], b"\x00", b"\x00\x09ab", b"\x01\x02x"] {
        assert_eq!(comment(data), None, "{data:?}");
    }
}

/// Decodes a list of one expression. One that is not evaluated has its name only.
fn one(name: &str, list: Listed<'_>) -> Expr {
    match one_with_form(Family::Ip, name, list) {
        Expr::Other(other) => Expr::Other(other.name.into()),
        expr => expr,
    }
}

fn one_with_form(family: Family, name: &str, list: Listed<'_>) -> Expr {
    let octets = listed(name, &attrs(list));
    let mut exprs = expr::exprs(family, Attrs(&octets));
    assert_eq!(exprs.len(), 1, "{exprs:?}");
    exprs.remove(0)
}
