//! The self-check finds differences that no event explains, and only those.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::oracle::equals_kernel;
use super::root::LAB;
use super::{LINKS, eventually, in_netns, ip_batch, run, tick_for};
use crate::control::mirror::{Mirror, MirrorOptions};
use crate::tables::AddrLabels;

/// Longer than all parts take in turn.
const ROUND: Duration = Duration::from_millis(3000);

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

/// The kernel makes the table local of a namespace when its first interface is up, and refuses to list it before.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_without_a_table_local_nothing_fails() {
    in_netns(|| {
        run("ip link set lo down");
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let before = mirror.counters().check_rounds();
        tick_for(&mut mirror, 2 * ROUND);
        let after = mirror.counters();
        assert!(after.check_rounds() > before, "{after:?}");
        assert_eq!(after.corrections, 0, "{after:?}");
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

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_address_labels_are_read_again_and_no_corrections() {
    in_netns(|| {
        let mut mirror = lab();
        let labels = |mirror: &Mirror| Arc::clone(&mirror.tables().sysctl.addr_labels);
        assert_eq!(*labels(&mirror), AddrLabels::default(), "the kernel's default is another one");
        run("ip addrlabel add prefix 2001:db8:77::/48 dev va label 50");
        run("ip addrlabel add prefix 2001:db8:77::/48 label 51");
        run("ip addrlabel del prefix ::/0 label 1");
        tick_for(&mut mirror, ROUND);
        let va = mirror.state().links.values().find(|link| link.name == "va").expect("va").ifindex;
        let label =
            |addr: &str, ifindex| labels(&mirror).label(addr.parse().expect("an address"), ifindex);
        assert_eq!((label("2001:db8:77::1", va), label("2001:db8:77::1", va + 1)), (50, 51));
        assert_eq!((label("2a00::1", va), label("fd00::1", va)), (u32::MAX, 5));
        assert_eq!(mirror.counters().corrections, 0);
    });
}

/// More than are replayed.
const LARGE: u32 = 9000;

fn lab_with_large_tables() -> Mirror {
    LINKS.iter().chain(LAB).for_each(|line| run(line));
    let mut batch = String::new();
    for n in 0..LARGE {
        let (a, b) = (n >> 8, n & 255);
        batch += &format!("route add 10.{}.{b}.0/24 via 10.0.0.2 metric {}\n", 100 + a, 1 + n % 3);
        batch += &format!("route add 2001:db9:{a:x}{b:02x}::/48 via 2001:db8::2\n");
    }
    // The kernel dumps it before all others, and the default route without a source after them.
    batch += "route add default from 2001:db8:5::/48 via 2001:db8::2\n";
    batch += "route add default via 2001:db8::3\n";
    ip_batch(&batch);
    let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
    eventually(&mut mirror, equals_kernel).expect("equal");
    let state = mirror.state();
    let large = LARGE as usize;
    assert!(state.routes4.len() > large && state.routes6.len() > large);
    mirror
}

/// Comparisons of both families' routes after which a difference must have been found, if the first one had begun before.
const COMPARISONS: u64 = 3;
/// By then they must have been made: the thread rests for some hundred times as long as a dump takes.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Ticks until so many corrections have been made, or for [`COMPARISONS`].
fn tick_until_corrected(mirror: &mut Mirror, corrections: u64) {
    let comparisons = |mirror: &Mirror| {
        let [.., routes4, routes6] = mirror.counters().compared;
        routes4.min(routes6)
    };
    let (end, enough) = (Instant::now() + WAIT_MAX, comparisons(mirror) + COMPARISONS);
    while mirror.counters().corrections < corrections && comparisons(mirror) < enough {
        assert!(Instant::now() < end, "large tables are not compared");
        tick_for(mirror, Duration::from_millis(50));
    }
    // It is mended by a dump soon after.
    tick_for(mirror, Duration::from_millis(500));
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_large_tables_are_compared_by_fingerprints() {
    in_netns(|| {
        let mut mirror = lab_with_large_tables();
        for n in 0..30 {
            run(&format!("ip route replace 10.100.{n}.0/24 via 10.0.0.3 metric 7"));
            run(&format!("ip -6 route append 2001:db9:{n:x}::/48 via 2001:db8::3"));
            tick_for(&mut mirror, Duration::from_millis(60));
        }
        assert_eq!(mirror.counters().corrections, 0);
        // The same change again is found again.
        for n in 1..=2 {
            let routes4 = &mut mirror.follower.state.routes4;
            assert!(routes4.flush(|body| body.priority == 2), "none is removed");
            tick_until_corrected(&mut mirror, n);
            assert_eq!(mirror.counters().corrections, n);
        }
        let routes6 = &mut mirror.follower.state.routes6;
        assert!(routes6.flush(|body| body.nexthops.len() == 2), "none is removed");
        tick_until_corrected(&mut mirror, 3);
        assert_eq!(mirror.counters().corrections, 3);
        equals_kernel(&mirror).expect("equal again");
    });
}
