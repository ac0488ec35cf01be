//! What the tables have for lookups of nftables rules, which differ from those of packets.

use std::sync::Arc;

use super::super::compile::{Compiler, Touched};
use super::super::rib::{RTN_LOCAL, RTN_UNICAST, RouteBody, RouteNexthop};
use super::super::state::{Family, RouterState};
use super::leaves::{default_rule, state};
use crate::fib::{FibResult, RouteType};

const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
/// In 10.0.0.0/24 and 2001:db8::/32.
const ADDR4: u32 = 10 << 24 | 1;
const ADDR6: u128 = 0x2001_0db8 << 96;

fn body(kind: u8, priority: u32) -> RouteBody {
    let nexthop = RouteNexthop { oif: 2, gateway: None, weight: 1, flags: 0, encap: None };
    RouteBody { kind, priority, nexthops: Box::new([nexthop]), ..RouteBody::default() }
}

fn update(compiler: &mut Compiler, state: &mut RouterState) {
    let touched = Touched { links: true, rules: true, ..Touched::default() };
    compiler.update(state, touched);
}

/// The type that the local table has for [`ADDR4`]; `None`: no route.
fn local(compiler: &Compiler) -> Option<RouteType> {
    match compiler.tables().fib4.local_lookup(ADDR4) {
        FibResult::Route(info) => Some(info.kind),
        FibResult::NoRoute => None,
        FibResult::Rule(_) => panic!("there is a local table"),
    }
}

#[test]
fn routes_of_the_local_table_are_found_with_and_without_other_rules() {
    let (mut compiler, mut state) = (Compiler::new(1), state());
    state.routes4.add(TABLE_LOCAL, (ADDR4, 32), body(RTN_LOCAL, 0), 0);
    state.routes4.add(TABLE_MAIN, (10 << 24, 24), body(RTN_UNICAST, 0), 0);
    update(&mut compiler, &mut state);
    assert!(compiler.tables().fib4.merged);
    assert_eq!(local(&compiler), Some(RouteType::Local));
    Arc::make_mut(&mut state.rules4).insert(1, default_rule(Family::V4, 100, 254));
    update(&mut compiler, &mut state);
    assert!(!compiler.tables().fib4.merged);
    assert_eq!(local(&compiler), Some(RouteType::Local));
    state.routes4.del(TABLE_LOCAL, (ADDR4, 32), &body(RTN_LOCAL, 0));
    state.routes4.add(TABLE_LOCAL, (11 << 24, 32), body(RTN_LOCAL, 0), 0);
    update(&mut compiler, &mut state);
    assert_eq!(local(&compiler), None, "the route of main is not of the local table");
}

#[test]
fn local_routes_of_main_are_left_to_the_kernel_while_it_may_be_merged() {
    let (mut compiler, mut state) = (Compiler::new(1), state());
    state.routes4.add(TABLE_MAIN, (10 << 24, 24), body(RTN_LOCAL, 0), 0);
    update(&mut compiler, &mut state);
    assert!(matches!(local(&compiler), Some(RouteType::Punt(_))));
}

#[test]
fn ipv6_prefixes_with_several_routes_are_known() {
    let (mut compiler, mut state) = (Compiler::new(1), state());
    let rules = [(0, 255), (32766, 254)];
    let rules = rules.map(|(priority, table)| default_rule(Family::V6, priority, table));
    state.rules6 = Arc::new(rules.into());
    let net = (ADDR6, 32);
    for priority in [100, 200] {
        state.routes6.add(TABLE_MAIN, net, body(RTN_UNICAST, priority), 0);
    }
    state.routes6.add(TABLE_MAIN, (ADDR6, 48), body(RTN_UNICAST, 100), 0);
    // These are on all links.
    for priority in [1, 2] {
        state.routes6.add(TABLE_MAIN, (0xfe80 << 112, 64), body(RTN_UNICAST, priority), 0);
    }
    update(&mut compiler, &mut state);
    assert_eq!(*compiler.tables().fib6.irregular, [net]);
    state.routes6.del(TABLE_MAIN, net, &body(RTN_UNICAST, 100));
    compiler.update(&mut state, Touched::default());
    assert!(compiler.tables().fib6.irregular.is_empty());
}
