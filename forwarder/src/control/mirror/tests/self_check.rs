//! The self-check finds differences that no event explains, and only those.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::oracle::equals_kernel;
use super::root::LAB;
use super::{LINKS, eventually, in_netns, run};
use crate::control::mirror::{Mirror, MirrorOptions};

/// Longer than all parts take in turn.
const ROUND: Duration = Duration::from_millis(2000);

fn tick_for(mirror: &mut Mirror, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let next = mirror.next_tick();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        mirror.tick(Instant::now()).expect("ticks");
    }
}

fn lab() -> Mirror {
    LINKS.iter().chain(LAB).for_each(|line| run(line));
    // Its lifetime is no difference.
    run("ip -6 route add 2001:db8:77::/48 via 2001:db8::2 expires 500");
    let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
    eventually(&mut mirror, equals_kernel).expect("equal");
    mirror
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_without_a_difference_nothing_is_corrected() {
    in_netns(|| {
        let mut mirror = lab();
        let before = mirror.counters();
        tick_for(&mut mirror, 2 * ROUND);
        for n in 0..40 {
            run(&format!("ip route add 10.99.{n}.0/24 via 10.0.0.2"));
            run(&format!("ip -6 route add 2001:db8:99:{n}::/64 via 2001:db8::2"));
            tick_for(&mut mirror, Duration::from_millis(30));
        }
        let after = mirror.counters();
        assert_eq!((after.corrections, after.unparsable), (0, before.unparsable), "{after:?}");
        eventually(&mut mirror, equals_kernel).expect("equal");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_what_no_event_told_is_corrected_and_counted() {
    type Change = fn(&mut Mirror);
    let changes: [(&str, Change); 6] = [
        ("netconf", |it| it.follower.state.netconf.clear()),
        ("rules", |it| {
            let rules = Arc::make_mut(&mut it.follower.state.rules4);
            rules.retain(|rule| rule.priority != 70);
        }),
        ("nexthops", |it| drop(it.follower.state.nexthops.remove(&2))),
        ("neighbours", |it| it.follower.state.neighs.clear()),
        ("IPv4 routes", |it| assert!(it.follower.state.routes4.flush(|body| body.priority == 5))),
        ("IPv6 routes", |it| {
            assert!(it.follower.state.routes6.flush(|body| body.priority == 1024))
        }),
    ];
    in_netns(move || {
        let mut mirror = lab();
        for (n, (what, change)) in changes.into_iter().enumerate() {
            change(&mut mirror);
            // Netconf is not shown.
            assert!(n == 0 || equals_kernel(&mirror).is_err(), "{what} are still the kernel's");
            tick_for(&mut mirror, ROUND);
            assert_eq!(mirror.counters().corrections, n as u64 + 1, "{what}");
            equals_kernel(&mirror).unwrap_or_else(|difference| panic!("{what}: {difference}"));
        }
    });
}
