//! Leaf ids are reused while workers read: no lookup may return the info of another route.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::super::compile::{Compiler, Touched};
use super::super::rib::{RTN_UNICAST, RouteBody, RouteNexthop};
use super::super::state::{Family, IFF_LOWER_UP, IFF_UP, LinkState, RouterState, RuleState};
use crate::fib::{FibResult, Flow};
use crate::tables::Tables;

const NLM_F_REPLACE: u16 = 0x100;
const TABLE_MAIN: u32 = 254;
const ROUNDS: u32 = 20_000;

pub fn default_rule(family: Family, priority: u32, table: u32) -> RuleState {
    RuleState {
        family,
        priority,
        invert: false,
        from: None,
        to: None,
        iif: None,
        oif: None,
        fwmark: None,
        action: 1,
        table,
        goto: None,
        protocol: 2,
        tos: 0,
        suppress_prefixlen: None,
        other: Vec::new(),
    }
}

pub fn state() -> RouterState {
    let mut state = RouterState::default();
    let flags = IFF_UP | IFF_LOWER_UP;
    Arc::make_mut(&mut state.links)
        .insert(2, LinkState { ifindex: 2, flags, mtu: 1500, ..LinkState::default() });
    let rules = [(0, 255), (32766, 254), (32767, 253)];
    state.rules4 =
        Arc::new(rules.map(|(priority, table)| default_rule(Family::V4, priority, table)).into());
    state
}

/// Prefix number `n` has gateways 10.n.*.* only.
fn body(n: u32, round: u32) -> RouteBody {
    let gateway = Ipv4Addr::from_bits(10 << 24 | n << 16 | round & 0xffff);
    let nexthop =
        RouteNexthop { oif: 2, gateway: Some(gateway.into()), weight: 1, flags: 0, encap: None };
    RouteBody { kind: RTN_UNICAST, nexthops: Box::new([nexthop]), ..RouteBody::default() }
}

/// The prefix of the route that a lookup returned; `None`: left to the kernel.
fn owner(tables: &Tables, daddr: u32) -> Option<u8> {
    match tables.fib4.fib_lookup(&Flow { saddr: 0, daddr, iif: 2, mark: 0 }) {
        FibResult::Route(info) => match info.nexthops.first()?.gateway? {
            std::net::IpAddr::V4(gateway) => Some(gateway.octets()[1]),
            std::net::IpAddr::V6(_) => None,
        },
        FibResult::Rule(_) => None,
        FibResult::NoRoute => panic!("routes are replaced, never removed"),
    }
}

#[test]
fn a_reused_id_never_returns_another_route() {
    let mut state = state();
    let mut compiler = Compiler::new(4);
    compiler.notice_wait = Duration::ZERO;
    let mut change = |compiler: &mut Compiler, round: u32, touched| {
        for n in 0..8u32 {
            let net = (20 << 24 | n << 16, 16);
            state.routes4.add(TABLE_MAIN, net, body(n, round), NLM_F_REPLACE);
        }
        compiler.update(&mut state, touched);
        compiler.reclaim(&mut state, Instant::now());
        state.routes4.bodies().capacity()
    };
    change(&mut compiler, 0, Touched { links: true, rules: true, ..Touched::default() });
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let (published, qsbr) = (Arc::clone(compiler.published()), Arc::clone(compiler.qsbr()));
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let reader = qsbr.reader().expect("room for a reader");
            let mut snapshot = published.subscribe();
            let (mut right, mut kernel) = (0u64, 0u64);
            while !stop.load(Relaxed) {
                snapshot.refresh();
                // A worker that is preempted here sees trees newer than its infos.
                std::thread::sleep(Duration::from_micros(100));
                for at in 0..64u32 {
                    let n = at % 8;
                    match owner(snapshot.get(), 20 << 24 | n << 16 | at) {
                        Some(other) => assert_eq!(u32::from(other), n, "another route's info"),
                        None => kernel += 1,
                    }
                    right += 1;
                }
                reader.quiescent();
            }
            (right, kernel)
        })
    };
    let mut capacity = 0;
    for round in 1..ROUNDS {
        capacity = change(&mut compiler, round, Touched::default());
        if worker.is_finished() {
            break;
        }
    }
    stop.store(true, Relaxed);
    let (right, kernel) = worker.join().expect("every lookup returned its own route");
    assert!(right > 0 && kernel > 0, "{right} lookups; {kernel} met a tree newer than the infos");
    assert!(capacity < ROUNDS as usize * 4, "ids are reused: {capacity}");
}

/// A compiler with one route, and a function that replaces the route.
fn with_one_route() -> (Compiler, impl FnMut(&mut Compiler, u32, Touched)) {
    let (mut compiler, mut state) = (Compiler::new(4), state());
    let mut change = move |compiler: &mut Compiler, round: u32, touched| {
        state.routes4.add(TABLE_MAIN, (20 << 24, 16), body(0, round), NLM_F_REPLACE);
        compiler.update(&mut state, touched);
        compiler.reclaim(&mut state, Instant::now());
    };
    change(&mut compiler, 0, Touched { links: true, rules: true, ..Touched::default() });
    (compiler, change)
}

#[test]
fn a_stalled_worker_is_waited_for_once_and_a_background_reader_never() {
    let (mut compiler, mut change) = with_one_route();
    compiler.notice_wait = Duration::from_millis(200);
    let mut took = |compiler: &mut Compiler, round| {
        let begun = Instant::now();
        change(compiler, round, Touched::default());
        begun.elapsed()
    };
    let client = compiler.qsbr().background_reader().expect("room");
    assert!(took(&mut compiler, 1) < Duration::from_millis(100), "background reader");
    let worker = compiler.qsbr().reader().expect("room");
    assert!(took(&mut compiler, 2) >= Duration::from_millis(200), "worker");
    for round in 3..8 {
        assert!(took(&mut compiler, round) < Duration::from_millis(100), "not waited for again");
    }
    worker.quiescent();
    assert!(took(&mut compiler, 8) >= Duration::from_millis(200), "it resumed and stalled again");
    drop((client, worker));
}

#[test]
fn ids_that_wait_for_a_stalled_reader_are_bounded() {
    let (mut compiler, mut change) = with_one_route();
    (compiler.notice_wait, compiler.pending_frees_max) = (Duration::ZERO, 100);
    let overdue = |compiler: &Compiler, seconds| {
        compiler.overdue(Instant::now() + Duration::from_secs(seconds))
    };
    let worker = compiler.qsbr().reader().expect("room");
    for round in 1..=101 {
        assert_eq!(overdue(&compiler, 60), None, "{round}");
        change(&mut compiler, round, Touched::default());
    }
    assert_eq!(overdue(&compiler, 0), None, "it may resume soon");
    let (numbers, since) = overdue(&compiler, 60).expect("too many, for too long");
    assert!(numbers == 101 && since >= Duration::from_secs(59), "{numbers} {since:?}");
    // Once the reader resumes, the ids are freed.
    for round in 102..106 {
        worker.quiescent();
        change(&mut compiler, round, Touched::default());
    }
    assert_eq!(overdue(&compiler, 60), None);
}

/// What workers remember of a lookup depends on the generation of the tables, and on this count.
#[test]
fn a_route_that_changes_in_place_is_counted() {
    let (mut compiler, mut state) = (Compiler::new(4), state());
    let (wide, narrow) = ((20 << 24, 8), (20 << 24, 16));
    let mut known = Vec::new();
    let mut step = |change: &mut dyn FnMut(&mut RouterState), touched| {
        change(&mut state);
        compiler.update(&mut state, touched);
        let tables = compiler.tables();
        let owner = owner(tables, 20 << 24 | 1);
        let now = (tables.generation, tables.fib4.changes());
        let is_known = known.contains(&now);
        known.push(now);
        (owner, is_known)
    };
    let all = Touched { links: true, rules: true, ..Touched::default() };
    let add = |net, n| {
        move |state: &mut RouterState| {
            state.routes4.add(TABLE_MAIN, net, body(n, 0), NLM_F_REPLACE);
        }
    };
    assert_eq!(step(&mut add(wide, 1), all), (Some(1), false));
    assert_eq!(step(&mut add(narrow, 2), Touched::default()), (Some(2), false));
    let mut remove = |state: &mut RouterState| {
        state.routes4.del(TABLE_MAIN, narrow, &body(2, 0));
    };
    assert_eq!(step(&mut remove, Touched::default()), (Some(1), false), "without a publication");
    assert_eq!(step(&mut |_| (), Touched::default()), (Some(1), true), "nothing has changed");
}
