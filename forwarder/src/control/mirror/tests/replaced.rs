//! A large table that is replaced at once while neighbours change a hundred times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::answers::{Question, same_answers};
use super::oracle::equals_kernel;
use super::random::Rng;
use super::{eventually, in_netns, ip_batch, ports, settle, try_run};
use crate::control::mirror::{Mirror, MirrorOptions};

const ROUTES4: u32 = 80_000;
const ROUTES6: u32 = 20_000;

/// Lines for `ip -batch` with the next hops of a generation.
fn table(verb: &str, generation: u32) -> String {
    use std::fmt::Write;
    let mut lines = String::new();
    for n in 0..ROUTES4 {
        let hop = 2 + (n + generation) % 5;
        let [_, a, b, c] = (n << 3).to_be_bytes();
        let _ = writeln!(lines, "route {verb} 11.{a}.{b}.{c}/29 via 10.0.{}.{hop}", generation % 2);
    }
    for n in 0..ROUTES6 {
        let hop = 2 + (n + generation) % 5;
        let net = if generation.is_multiple_of(2) { "2001:db8" } else { "2001:db8:1" };
        let _ = writeln!(lines, "route {verb} 2001:db9:{n:x}::/48 via {net}::{hop}");
    }
    lines
}

fn questions(iif: u32) -> Vec<Question> {
    let mut rng = Rng::new(21);
    let v4 = |rng: &mut Rng| {
        let [_, a, b, c] = (rng.below(u64::from(ROUTES4) << 3) as u32).to_be_bytes();
        Question { dst: [11, a, b, c].into(), from: [10, 98, 0, 5].into(), iif, mark: 0 }
    };
    let v6 = |rng: &mut Rng| {
        let dst = [0x2001, 0xdb9, rng.below(ROUTES6.into()) as u16, 1, 0, 0, 0, 1].into();
        Question { dst, from: [0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 5].into(), iif, mark: 0 }
    };
    (0..2000).map(|n| if n % 2 == 0 { v4(&mut rng) } else { v6(&mut rng) }).collect()
}

/// Adds neighbours, changes their addresses, has them fail, and removes them, until `stop`.
fn flap(stop: &AtomicBool, flaps: &AtomicU32) {
    let mut rng = Rng::new(4);
    while !stop.load(Relaxed) {
        let n = 2 + rng.below(5);
        let (family, addr) = match rng.below(2) {
            0 => ("-4", format!("10.0.0.{n}")),
            _ => ("-6", format!("2001:db8::{n}")),
        };
        let line = match rng.below(4) {
            0 => format!("ip {family} neigh del {addr} dev va"),
            1 => format!("ip {family} neigh replace {addr} dev va nud failed"),
            m => format!(
                "ip {family} neigh replace {addr} lladdr 02:00:00:00:0{m}:0{n} dev va nud reachable"
            ),
        };
        try_run(&line);
        flaps.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_table_replaced_at_once_while_neighbours_flap_ends_as_the_kernels() {
    in_netns(|| {
        ports();
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        ip_batch(&table("add", 0));
        settle(&mut mirror);
        let (stop, flaps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let flapping = {
            let (stop, flaps) = (Arc::clone(&stop), Arc::clone(&flaps));
            std::thread::spawn(move || flap(&stop, &flaps))
        };
        let replacing = std::thread::spawn(|| ip_batch(&table("replace", 1)));
        while !replacing.is_finished() {
            mirror.process().expect("process");
            mirror.tick(Instant::now()).expect("tick");
        }
        replacing.join().expect("no panic");
        let iif = nix::net::if_::if_nametoindex("va").expect("va");
        // While they flap: no answer depends on neighbours here.
        let answers = eventually(&mut mirror, |mirror| {
            same_answers(mirror, &questions(iif)).map(|left| assert!(left.is_empty(), "{left:?}"))
        });
        answers.unwrap_or_else(|wrong| panic!("{wrong}"));
        stop.store(true, Relaxed);
        flapping.join().expect("no panic");
        assert!(flaps.load(Relaxed) > 20, "neighbours have hardly changed");
        eventually(&mut mirror, equals_kernel).unwrap_or_else(|difference| panic!("{difference}"));
        let routes = (ROUTES4 + ROUTES6) as usize;
        assert!(mirror.state().route_count() >= routes, "{}", mirror.state().route_count());
        assert_eq!(mirror.counters().unparsable, 0);
    });
}
