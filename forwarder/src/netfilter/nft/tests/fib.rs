//! `fib`, with routes. The oracle compares it with the kernel; here are the cases that it does not have.

use super::*;
use crate::fib::{
    FamilyFib, FibInfo, Lpm, Lpm4, Lpm6, Nexthop, Prefix4, Prefix6, RouteType, Rule as FibRule,
    RuleAction,
};
use crate::stats::PuntReason;
use crate::tables::{Links, Tables};
use std::sync::Arc;

fn nexthop(oif: u32) -> Nexthop {
    Nexthop { oif, dev: None, gateway: None, weight: 1, dead: false, onlink: false }
}

fn info(kind: RouteType, oifs: &[u32]) -> Arc<FibInfo> {
    let nexthops = oifs.iter().map(|oif| nexthop(*oif)).collect();
    Arc::new(FibInfo { nexthops, ..FibInfo::special(kind) })
}

/// Routes by leaf: 1 by eth3, 2 by eth4, 3 by both, 4 an own address at eth3, 5 a blackhole, 6 the kernel's.
fn infos() -> Arc<[Arc<FibInfo>]> {
    let punt = RouteType::Punt(PuntReason::RouteUnsupported);
    Arc::new([
        info(RouteType::Blackhole, &[]),
        info(RouteType::Unicast, &[3]),
        info(RouteType::Unicast, &[4]),
        info(RouteType::Unicast, &[3, 4]),
        info(RouteType::Local, &[3]),
        info(RouteType::Blackhole, &[]),
        info(punt, &[]),
    ])
}

/// A table with the route of 10.0.0.1 and of 2001:db8::1 that has this leaf.
fn tables(leaf: u32) -> Tables {
    let prefix4: Prefix4 = "10.0.0.1/32".parse().expect("a prefix");
    let prefix6: Prefix6 = "2001:db8::1/128".parse().expect("a prefix");
    Tables {
        links: Arc::new(Links::new(vec![Link::new(3, "eth3"), Link::new(4, "eth4")])),
        fib4: FamilyFib {
            tables: Arc::new([Lpm::from_routes([(prefix4, leaf)]).expect("a table")]),
            infos: infos(),
            ..FamilyFib::<Lpm4>::empty()
        },
        fib6: FamilyFib {
            tables: Arc::new([Lpm::from_routes([(prefix6, leaf)]).expect("a table")]),
            infos: infos(),
            ..FamilyFib::<Lpm6>::empty()
        },
        ..Tables::empty()
    }
}

fn query(key: FibKey) -> FibQuery {
    FibQuery { key, daddr: false, dev: None, mark: false, present: false }
}

const OIF: FibQuery =
    FibQuery { key: FibKey::Oif, daddr: false, dev: None, mark: false, present: false };
const BY_IIF: FibQuery = FibQuery { dev: Some(FibDev::Iif), ..OIF };

/// What a lookup gives; `None`: the kernel decides.
fn result(query: FibQuery, input: &Input, tables: &Tables) -> Option<Vec<u8>> {
    let value = |octets: &[u8]| {
        let exprs = vec![Expr::Fib { dreg: R1, query }, cmp(R1, octets), DROP];
        let program = compile(&forward(vec![rule(exprs)]), 0);
        let mut pool = Umem::anonymous(4).into_pool();
        let mut skb = input.skb(&mut pool);
        let (iif, oif) = (input.iif.as_ref(), input.oif.as_ref());
        let mut packet = Packet::new(&mut skb, input.family, input.hook, iif, oif, 0);
        packet.tables = Some(tables);
        let chain = program.chains(input.family, input.hook)[0];
        program.run(chain, &mut packet, &mut Journal::new())
    };
    let mut known: Vec<Vec<u8>> = (0u32..10).map(|n| n.to_ne_bytes().to_vec()).collect();
    if query.present {
        known = vec![vec![0], vec![1]];
    }
    if query.key == FibKey::OifName && !query.present {
        known = ["eth3", "eth4"].map(|name| [name.as_bytes(), &[0; 12]].concat()).to_vec();
    }
    if matches!(value(&known[0]), NftVerdict::Kernel(_)) {
        return None;
    }
    Some(known.into_iter().find(|octets| value(octets) == NftVerdict::Drop).expect("a value"))
}

fn number(query: FibQuery, input: &Input, tables: &Tables) -> Option<u32> {
    Some(u32::from_ne_bytes(result(query, input, tables)?.try_into().expect("a number")))
}

#[test]
fn the_interface_of_the_route_is_found() {
    for input in [tcp4(), tcp6()] {
        assert_eq!(number(OIF, &input, &tables(1)), Some(3));
        assert_eq!(number(OIF, &input, &tables(2)), Some(4));
        for (leaf, expected) in [(1, Some(3)), (2, Some(0)), (4, Some(0)), (5, Some(0)), (6, None)]
        {
            assert_eq!(number(BY_IIF, &input, &tables(leaf)), expected, "leaf {leaf}");
        }
        let present = FibQuery { present: true, ..BY_IIF };
        assert_eq!(result(present, &input, &tables(1)), Some(vec![1]));
        assert_eq!(result(present, &input, &tables(2)), Some(vec![0]));
        // No route to the destination.
        assert_eq!(number(FibQuery { daddr: true, ..OIF }, &input, &tables(1)), Some(0));
    }
}

#[test]
fn a_name_is_found_and_its_absence_is_left_to_the_kernel() {
    let name = result(query(FibKey::OifName), &tcp4(), &tables(2));
    assert_eq!(name.as_deref(), Some(&b"eth4\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    assert_eq!(result(query(FibKey::OifName), &tcp4(), &tables(5)), None);
}

#[test]
fn of_several_next_hops_ipv4_has_the_first_and_ipv6_is_left_to_the_kernel() {
    assert_eq!(number(OIF, &tcp4(), &tables(3)), Some(3));
    assert_eq!(number(BY_IIF, &tcp4(), &tables(3)), Some(3));
    assert_eq!(number(OIF, &tcp6(), &tables(3)), None);
}

#[test]
fn types_of_addresses_are_found() {
    let kind = query(FibKey::Type);
    let of_dev = |dev| FibQuery { dev: Some(dev), ..kind };
    for (leaf, expected4, expected6) in [(1, 1, 1), (4, 2, 2), (5, 1, 6)] {
        assert_eq!(number(kind, &tcp4(), &tables(leaf)), Some(expected4), "leaf {leaf}");
        assert_eq!(number(kind, &tcp6(), &tables(leaf)), Some(expected6), "leaf {leaf}");
    }
    assert_eq!(number(of_dev(FibDev::Iif), &tcp4(), &tables(4)), Some(2));
    assert_eq!(number(of_dev(FibDev::Oif), &tcp4(), &tables(4)), Some(1));
    assert_eq!(number(of_dev(FibDev::Iif), &tcp6(), &tables(4)), None);
    let no_route = FibQuery { daddr: true, ..kind };
    assert_eq!(number(no_route, &tcp4(), &tables(4)), Some(1));
    assert_eq!(number(no_route, &tcp6(), &tables(4)), Some(7));
    assert_eq!(number(kind, &tcp4(), &tables(6)), None);
}

#[test]
fn what_only_the_kernel_knows_is_left_to_it() {
    let mut tables = tables(1);
    assert_eq!(number(OIF, &tcp4(), &Tables::empty()), Some(0));
    assert_eq!(number(query(FibKey::Type), &tcp4(), &Tables::empty()), None, "no local table");
    tables.fib4.ignores_linkdown = true;
    tables.fib6.irregular = Arc::new([(0x2001_0db8 << 96, 32)]);
    assert_eq!(number(OIF, &tcp4(), &tables), None);
    assert_eq!(number(OIF, &tcp6(), &tables), None);
    assert_eq!(number(query(FibKey::Type), &tcp4(), &tables), Some(1));
    let mut link_local = tcp6();
    link_local.net[8..10].copy_from_slice(&[0xfe, 0x80]);
    assert_eq!(number(OIF, &link_local, &tables), None);
}

#[test]
fn marks_and_interfaces_choose_rules() {
    let mut by_rule = tables(1);
    let lookup = RuleAction::Lookup(Some(0));
    let blackhole = RuleAction::Answer(RouteType::Blackhole);
    by_rule.fib4.merged = false;
    by_rule.fib4.rules = Arc::new([
        FibRule { fwmark: Some((7, u32::MAX)), ..FibRule::for_all(1, blackhole) },
        FibRule::for_all(2, lookup),
    ]);
    let mut input = tcp4();
    input.mark = 7;
    assert_eq!(number(OIF, &input, &by_rule), Some(3));
    assert_eq!(number(FibQuery { mark: true, ..OIF }, &input, &by_rule), Some(0));
    // As received on the output interface.
    by_rule.fib4.rules = Arc::new([
        FibRule { iif: Some(4), ..FibRule::for_all(1, blackhole) },
        FibRule::for_all(2, lookup),
    ]);
    assert_eq!(number(BY_IIF, &input, &by_rule), None);
    assert_eq!(number(OIF, &input, &by_rule), Some(3));
    // Own addresses are in a table that no rule looks up.
    assert_eq!(number(query(FibKey::Type), &input, &by_rule), None);
    by_rule.fib4.local_table = Some(0);
    assert_eq!(number(query(FibKey::Type), &input, &by_rule), Some(1));
}
