//! The set of local prefixes is kept up to date as routes change: it equals the result of a full
//! walk.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::rib::{
    Dump, Net, RTN_BROADCAST, RTN_LOCAL, RTN_UNICAST, Rib, RouteBody, RouteNexthop,
};

/// One change; the values are small, so that routes collide.
#[derive(Debug, Clone)]
enum Change {
    Add { table: u32, net: u32, body: u8, flags: u16 },
    Del { table: u32, net: u32, body: u8 },
    Flush { oif: u32 },
    Dump { routes: Vec<(u32, u32, u8)>, is_taken: bool },
}

fn change() -> impl Strategy<Value = Change> {
    let (tables, nets, bodies) = (253u32..256, 0u32..4, 0u8..12);
    let flags = prop::sample::select(vec![0u16, 0x100, 0x800]);
    let route = (tables.clone(), nets.clone(), bodies.clone());
    prop_oneof![
        4 => (tables.clone(), nets.clone(), bodies.clone(), flags)
            .prop_map(|(table, net, body, flags)| Change::Add { table, net, body, flags }),
        3 => (tables, nets, bodies).prop_map(|(table, net, body)| Change::Del { table, net, body }),
        1 => (1u32..3).prop_map(|oif| Change::Flush { oif }),
        1 => (prop::collection::vec(route, 0..8), any::<bool>())
            .prop_map(|(routes, is_taken)| Change::Dump { routes, is_taken }),
    ]
}

fn net(n: u32) -> Net<u32> {
    (10 << 24 | n << 8, 24)
}

fn body(n: u8) -> RouteBody {
    let oif = u32::from(n & 1) + 1;
    let kind = [RTN_UNICAST, RTN_LOCAL, RTN_BROADCAST][usize::from(n / 2 % 3)];
    let nexthop = RouteNexthop { oif, gateway: None, weight: 1, flags: 0, encap: None };
    RouteBody {
        kind,
        priority: u32::from(n / 6),
        nexthops: Box::new([nexthop]),
        ..RouteBody::default()
    }
}

fn apply(rib: &mut Rib<u32>, change: Change) {
    match change {
        Change::Add { table, net: n, body: b, flags } => {
            rib.add(table, net(n), body(b), flags);
        }
        Change::Del { table, net: n, body: b } => {
            rib.del(table, net(n), &body(b));
        }
        Change::Flush { oif } => {
            rib.flush(|body| body.nexthops.iter().any(|nh| nh.oif == oif));
        }
        Change::Dump { routes, is_taken } => {
            let mut dump = Dump::default();
            for (table, n, b) in routes {
                rib.load(&mut dump, table, net(n), body(b));
            }
            if is_taken {
                rib.commit(dump);
            } else {
                rib.discard(dump);
            }
        }
    }
}

proptest! {
    #[test]
    fn local_prefixes_equal_the_result_of_a_walk(
        changes in prop::collection::vec(change(), 0..60),
    ) {
        let mut rib = Rib::default();
        let (mut before, mut version) = (BTreeSet::new(), rib.locals_version());
        for change in changes {
            apply(&mut rib, change);
            let locals: BTreeSet<Net<u32>> =
                rib.iter().filter(|(_, _, body)| body.is_local()).map(|(_, net, _)| net).collect();
            let kept: Vec<Net<u32>> = rib.locals().collect();
            prop_assert!(kept.iter().eq(&locals), "{kept:?}, {locals:?}");
            let is_same = version == rib.locals_version();
            if locals != before {
                prop_assert!(!is_same, "{before:?}, {locals:?}");
                prop_assert!(rib.take_locals_changed());
            }
            (before, version) = (locals, rib.locals_version());
        }
    }
}
