//! Tests of the mirror with a kernel whose configuration changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::answers::{Question, same_answers};
use super::oracle::equals_kernel;
use super::random::Rng;
use super::{LINKS, eventually, in_netns, ip_batch, ports, run, settle, try_run};
use crate::control::mirror::rx_handlers::Taken;
use crate::control::mirror::state::{Family, Netconf, VlanState};
use crate::control::mirror::{Mirror, MirrorOptions};
use crate::control::netlink::rtnl::Requests;
use crate::tables::Forwarding6;
use crate::wire::HashFields;

#[track_caller]
fn assert_equals_kernel(mirror: &mut Mirror) {
    eventually(mirror, equals_kernel).unwrap_or_else(|difference| panic!("{difference}"));
}

/// Checks that all lookups have the kernel's result and none is left to it.
#[track_caller]
fn assert_answers(mirror: &mut Mirror, questions: &[Question]) {
    let answers = same_answers(mirror, questions);
    assert!(answers.as_ref().is_ok_and(Vec::is_empty), "{answers:?}");
}

/// The configuration of the lab besides its links.
pub(super) const LAB: &[&str] = &[
    "ip addr add 10.0.0.1/24 brd + dev va",
    "ip addr add 10.0.1.1/24 dev vc",
    "ip addr add 2001:db8::1/64 dev va nodad",
    "ip addr add 2001:db8:1::1/64 dev vc nodad",
    "ip nexthop add id 1 via 10.0.0.9 dev va",
    "ip nexthop add id 2 via 10.0.1.8 dev vc",
    "ip nexthop add id 3 via 2001:db8::9 dev va",
    "ip nexthop add id 7 blackhole",
    "ip nexthop add id 10 group 1,2/2,5",
    "ip route add 10.1.0.0/16 via 10.0.0.2 metric 5 mtu 1400",
    "ip route add 10.1.0.0/16 via 10.0.1.2 metric 7",
    "ip route add 10.2.0.0/16 nexthop via 10.0.0.2 weight 2 nexthop via 10.0.1.3",
    "ip route add blackhole 10.3.0.0/16",
    "ip route add unreachable 10.4.0.0/16 table 100",
    "ip route add 10.5.0.0/16 nhid 10",
    "ip route add 10.6.0.0/16 nhid 1",
    "ip route add 10.7.0.0/16 nhid 7",
    "ip route add 10.8.0.0/16 via inet6 fe80::1 dev va",
    "ip route add 10.9.0.0/16 via 10.0.0.3 tos 0x10",
    "ip -6 route add 2001:db8:5::/48 via 2001:db8::2",
    "ip -6 route append 2001:db8:5::/48 via 2001:db8:1::3",
    "ip -6 route add 2001:db8:6::/48 nhid 3",
    "ip -6 route add prohibit 2001:db8:7::/48",
    "ip rule add from 10.9.0.0/16 fwmark 1/0xff lookup 100 pref 50",
    "ip rule add not to 1.2.3.4 iif va goto 32766 pref 60",
    "ip rule add blackhole pref 70 oif vb",
    "ip -6 rule add prohibit pref 75 from 2001:db8:9::/48",
    "ip rule add pref 76 ipproto udp sport 1000-2000 uidrange 5-9 lookup 100",
    "ip -6 rule add pref 77 tun_id 12 lookup main suppress_ifgroup 3",
    "ip route add 10.77.0.0/16 via 10.0.0.2 realm 3/7",
    "ip route add 10.78.0.0/16 via 10.0.0.2 realm 9",
    "ip rule add pref 80 ipproto tcp dport 80 table main suppress_prefixlength 0",
    "ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:01 dev va nud stale",
    "ip neigh add 10.0.0.78 lladdr 02:00:00:00:00:01 dev va",
    "ip neigh add proxy 10.0.0.99 dev va",
];

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_dump_shows_what_the_kernel_has() {
    in_netns(|| {
        LINKS.iter().chain(LAB).for_each(|line| run(line));
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        assert_equals_kernel(&mut mirror);
        assert_eq!(mirror.counters().unparsable, 0);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_events_show_what_the_kernel_has() {
    in_netns(|| {
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        for line in LINKS.iter().chain(LAB) {
            run(line);
            assert_equals_kernel(&mut mirror);
        }
        assert_eq!(mirror.counters().unparsable, 0);
    });
}

/// A hundred thousand routes, two thirds of them IPv4.
fn many_routes(verb: &str) -> String {
    use std::fmt::Write;
    let mut lines = String::new();
    for n in 0..66_000u32 {
        let (a, b) = (n >> 8, n & 255);
        let _ = match n % 3 {
            0 => writeln!(lines, "route {verb} 11.{}.{b}.0/24 via 10.0.0.2", a & 255),
            1 => writeln!(lines, "route {verb} 12.{}.{b}.{}/32 via 10.0.1.3", a & 255, a >> 8),
            _ => writeln!(lines, "route {verb} 13.{}.{b}.128/25 dev va metric {n}", a & 255),
        };
    }
    for n in 0..34_000u32 {
        let (hop, dev) = (2 + n % 3, if n % 2 == 0 { "va" } else { "vc" });
        let _ = writeln!(lines, "route {verb} 2001:db9:{n:x}::/48 via fe80::{hop} dev {dev}");
    }
    lines
}

/// Lets the mirror follow while the routes are added or removed.
fn batch_under_way(mirror: &mut Mirror, verb: &'static str) {
    let writer = std::thread::spawn(move || ip_batch(&many_routes(verb)));
    while !writer.is_finished() {
        mirror.process().expect("process");
        mirror.tick(Instant::now()).expect("tick");
    }
    writer.join().expect("no panic");
}

fn questions(mirror: &Mirror, count: usize) -> Vec<Question> {
    let mut rng = Rng::new(7);
    let iif = mirror.state().links.values().find(|link| link.name == "va").expect("va").ifindex;
    let mut questions = std::collections::HashMap::new();
    while questions.len() < count {
        let bits = rng.next();
        let question = if rng.below(3) == 0 {
            let [a, b, c] = [bits as u16, (bits >> 16) as u16, (bits >> 32) as u16];
            let dst = [0x2001, 0xdb9, a & 0x8fff, b, c, 0, 0, 9].into();
            let from = [0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 5].into();
            Question { dst, from, iif, mark: 0 }
        } else {
            let [a, b, c, ..] = bits.to_be_bytes();
            let dst = [11 + a % 4, b, c, if a & 64 == 0 { 0 } else { a | 128 }].into();
            Question { dst, from: [10, 98, 0, 5].into(), iif, mark: 0 }
        };
        questions.insert(question.dst, question);
    }
    questions.into_values().collect()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_hundred_thousand_routes_by_events_and_by_dump() {
    in_netns(|| {
        ports();
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        batch_under_way(&mut mirror, "add");
        assert_equals_kernel(&mut mirror);
        assert!(mirror.state().route_count() > 99_000, "{}", mirror.state().route_count());
        assert_eq!(mirror.counters().enobufs, 0);
        let questions = questions(&mirror, 10_000);
        assert_answers(&mut mirror, &questions);
        let mut dumped = Mirror::start(MirrorOptions::default()).expect("starts");
        assert_equals_kernel(&mut dumped);
        assert_answers(&mut dumped, &questions);
        // The kernel sends no events for the IPv4 routes that are removed here.
        run("ip link set va down");
        assert_equals_kernel(&mut mirror);
        ip_batch(&many_routes("del"));
        assert_equals_kernel(&mut mirror);
        assert!(mirror.state().route_count() < 100, "{}", mirror.state().route_count());
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_events_that_did_not_fit_end_in_the_same_tables() {
    in_netns(|| {
        ports();
        let options = MirrorOptions { rcvbuf_octets: 4096, ..MirrorOptions::default() };
        let mut mirror = Mirror::start(options).expect("starts");
        ip_batch(&many_routes("add"));
        settle(&mut mirror);
        let counters = mirror.counters();
        assert!(counters.enobufs > 0 && counters.resyncs > 0, "{counters:?}");
        assert_equals_kernel(&mut mirror);
        let questions = questions(&mirror, 2000);
        assert_answers(&mut mirror, &questions);
        ip_batch(&many_routes("del"));
        assert_equals_kernel(&mut mirror);
    });
}

/// Dumps during which another thread changes the dumped objects are interrupted and repeated.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_dumps_that_were_interrupted_end_in_the_same_tables() {
    in_netns(|| {
        ports();
        let addresses = |verb: &str, net: u32| -> String {
            let line = |n: u32| format!("addr {verb} 10.{net}.{}.{}/32 dev va\n", n >> 8, n & 255);
            (1..2000).map(line).collect()
        };
        ip_batch(&addresses("add", 60));
        let enough = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&enough);
        let (add, del) = (addresses("add", 61), addresses("del", 61));
        let writer = std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                ip_batch(&add);
                ip_batch(&del);
            }
        });
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        turn_until_current(&mut mirror);
        let until = Instant::now() + Duration::from_secs(60);
        mirror.follower.interrupted_max = 1;
        while mirror.is_current() && Instant::now() < until {
            mirror.resync_all(Instant::now()).expect("no error");
        }
        assert!(!mirror.is_current(), "an interrupted dump is not complete");
        let resyncs = mirror.counters().resyncs;
        mirror.process().expect("process");
        // Unless the next dump is already due.
        assert!(!mirror.is_current() || mirror.counters().resyncs > resyncs);
        enough.store(true, Relaxed);
        writer.join().expect("no panic");
        assert_ne!(mirror.counters().dump_intr, 0, "{:?}", mirror.counters());
        turn_until_current(&mut mirror);
        assert_equals_kernel(&mut mirror);
    });
}

/// Runs the control thread's loop until the mirror is current.
fn turn_until_current(mirror: &mut Mirror) -> Duration {
    let begun = Instant::now();
    while !mirror.is_current() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", mirror.counters());
        std::thread::sleep(Duration::from_millis(5));
        mirror.process().expect("process");
        mirror.tick(Instant::now()).expect("tick");
    }
    begun.elapsed()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_after_an_overrun_the_mirror_is_not_current_until_a_full_dump_succeeds() {
    in_netns(|| {
        ports();
        let options = MirrorOptions { rcvbuf_octets: 4096, ..MirrorOptions::default() };
        let mut mirror = Mirror::start(options).expect("starts");
        assert!(mirror.is_current());
        ip_batch(
            &(0..2000)
                .map(|n| format!("route add 11.0.{}.{}/32 dev va\n", n >> 8, n & 255))
                .collect::<String>(),
        );
        // Doubts are postponed, as after a slow dump, and one of them is waiting.
        mirror.follower.rest_until = Some(Instant::now() + Duration::from_secs(60));
        mirror.follower.doubt(Instant::now(), |parts| parts.rules = true);
        mirror.requests = Requests::refused();
        mirror.process().expect("process");
        assert!(mirror.counters().enobufs > 0);
        assert!(!mirror.is_current());
        mirror.tick(Instant::now()).expect("tick");
        assert!(!mirror.is_current(), "an empty socket does not restore lost messages");
        let took = turn_until_current(&mut mirror);
        assert!(took < Duration::from_secs(2), "{took:?}");
        equals_kernel(&mirror).unwrap_or_else(|difference| panic!("{difference}"));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_refused_nexthop_dump_is_not_an_empty_one() {
    in_netns(|| {
        ports();
        run("ip nexthop add id 1 via 10.0.0.9 dev va");
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let refused = mirror.follower.resync_nexthops(&mut Requests::refused());
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(mirror.state().nexthops.len(), 1);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_requested_neighbour_is_resolved() {
    in_netns(|| {
        run("ip link add va type veth peer name vb");
        run("ip link set va up");
        run("ip addr add 10.0.0.1/24 dev va");
        // The peer is in a namespace of its own and answers ARP there.
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let peer = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ready.send(nix::unistd::gettid()).expect("main thread waits");
            finished.recv().expect("main thread says when");
            run("ip addr add 10.0.0.2/24 dev vb");
            run("ip link set vb up");
            finished.recv().expect("main thread says when");
        });
        let tid = is_ready.recv().expect("peer thread");
        run(&format!("ip link set vb netns {tid}"));
        finish.send(()).expect("peer thread waits");
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let oif = mirror_link(&mirror, "va");
        let found = |mirror: &Mirror, host: u8| {
            let addr = [10, 0, 0, host].into();
            mirror.tables().neigh.lookup(oif, &addr).map(|neigh| neigh.lladdr)
        };
        let until = Instant::now() + Duration::from_secs(30);
        while found(&mirror, 2).flatten().is_none() || found(&mirror, 3) != Some(None) {
            assert!(Instant::now() < until, "no answer: {:?}", mirror.state().neighs);
            mirror.resolve(oif, [10, 0, 0, 2].into()).expect("no error");
            mirror.resolve(oif, [10, 0, 0, 3].into()).expect("no error");
            settle(&mut mirror);
            std::thread::sleep(Duration::from_millis(20));
        }
        let asked = mirror.resolve(oif, [10, 0, 0, 4].into()).expect("no error");
        let again = mirror.resolve(oif, [10, 0, 0, 4].into()).expect("no error");
        assert!(asked && !again, "not twice within the interval");
        assert!(!mirror.resolve(4711, [10, 0, 0, 4].into()).expect("no such interface"));
        finish.send(()).expect("peer thread waits");
        peer.join().expect("no panic");
    });
}

fn mirror_link(mirror: &Mirror, name: &str) -> u32 {
    mirror.state().links.values().find(|link| link.name == name).expect("the link").ifindex
}

/// A namespace that lives as long as the returned sender of command lines, and the thread in it.
fn other_netns() -> (nix::unistd::Pid, std::sync::mpsc::Sender<&'static str>, JoinHandle<()>) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (lines, todo) = std::sync::mpsc::channel::<&str>();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ready.send(nix::unistd::gettid()).expect("main thread waits");
        todo.iter().for_each(run);
    });
    (is_ready.recv().expect("the thread"), lines, thread)
}

const TAKEN: &str = "an interface on it, perhaps in another network namespace, takes its packets";

/// The port number of va in the tables, or why it is not a port.
fn port_va(mirror: &mut Mirror) -> Result<u16, String> {
    settle(mirror);
    let va = mirror_link(mirror, "va");
    let port = mirror.tables().links.ifindex(va).expect("va").port;
    port.ok_or_else(|| mirror.unmirrored().iter().map(|left| format!("{left:?}")).collect())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_port_with_a_macvlan_in_another_namespace_is_left_to_the_kernel() {
    for (kind, mode) in [("macvlan", "passthru"), ("macvlan", "bridge"), ("ipvlan", "l2")] {
        in_netns(move || {
            LINKS.iter().for_each(|line| run(line));
            // ipvlan is not available on every kernel.
            if !try_run(&format!("ip link add up0 link va type {kind}")) {
                return;
            }
            run("ip link del up0");
            let (tid, there, thread) = other_netns();
            let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
            let va = mirror_link(&mirror, "va");
            mirror.set_ports(&[(va, 3)]);
            assert_eq!(port_va(&mut mirror), Ok(3));
            let add = format!("ip link add link va name up0 type {kind} mode {mode}");
            run(&add);
            assert!(port_va(&mut mirror).is_err_and(|why| why.contains("up0 on it takes")));
            run(&format!("ip link set up0 netns {tid}"));
            let taken = |left: Result<u16, String>| left.is_err_and(|why| why.contains(TAKEN));
            assert!(taken(port_va(&mut mirror)), "{kind} {mode}: moved away");
            let mut late = Mirror::start(MirrorOptions::default()).expect("starts");
            late.set_ports(&[(va, 3)]);
            assert!(taken(port_va(&mut late)), "{kind} {mode}: it existed before");
            there.send("ip link del up0").expect("sent");
            let is_port = |mirror: &Mirror| match mirror.tables().links.ifindex(va) {
                Some(link) if link.port == Some(3) => Ok(()),
                _ => Err("no port".into()),
            };
            eventually(&mut mirror, is_port).expect("a port again");
            // Created there, for which there is no event here.
            run(&add.replace("name up0", &format!("name up1 netns {tid}")));
            std::thread::sleep(Duration::from_millis(60));
            assert!(taken(port_va(&mut mirror)), "{kind} {mode}: made there");
            drop(there);
            thread.join().expect("no panic");
            eventually(&mut mirror, is_port).expect("it is removed with its namespace");
        });
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_without_the_rx_handler_list_a_port_stays_taken_and_the_limit_is_reported() {
    in_netns(|| {
        LINKS.iter().for_each(|line| run(line));
        let (tid, _there, _thread) = other_netns();
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        mirror.taken = Taken::by(Err(std::io::Error::other("no BTF")));
        let va = mirror_link(&mirror, "va");
        mirror.set_ports(&[(va, 3)]);
        assert_eq!(port_va(&mut mirror), Ok(3));
        run("ip link add link va name up0 type macvlan mode passthru");
        assert!(port_va(&mut mirror).is_err());
        run(&format!("ip link set up0 netns {tid}"));
        let left = port_va(&mut mirror).expect_err("taken");
        assert!(left.contains(TAKEN) && left.contains("no BTF"), "{left}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_settings_are_followed() {
    in_netns(|| {
        ports();
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let va = mirror_link(&mirror, "va");
        mirror.set_ports(&[(va, 3)]);
        let link = |mirror: &Mirror| mirror.tables().links.ifindex(va).cloned().expect("va");
        assert_eq!(link(&mirror).port, Some(3));
        assert!(link(&mirror).forwarding4 && link(&mirror).forwarding6 == Forwarding6::On);
        run("sysctl -w net.ipv4.conf.va.forwarding=0");
        run("sysctl -w net.ipv4.conf.all.rp_filter=2");
        run("sysctl -w net.ipv4.conf.va.rp_filter=1");
        run("sysctl -w net.ipv6.conf.all.forwarding=0");
        run("ip link set va mtu 1400");
        settle(&mut mirror);
        assert!(!link(&mirror).forwarding4 && link(&mirror).forwarding6 == Forwarding6::Off);
        assert_eq!(link(&mirror).rp_filter, crate::tables::RpFilter::Loose);
        assert_eq!(link(&mirror).mtu, 1400);
        // These settings have no events.
        run("sysctl -w net.ipv6.conf.va.mtu=1300");
        run("sysctl -w net.ipv4.conf.va.send_redirects=0");
        run("sysctl -w net.ipv4.conf.all.send_redirects=0");
        run("sysctl -w net.ipv4.icmp_ratelimit=80");
        run("sysctl -w net.ipv4.neigh.va.mcast_solicit=5");
        run("sysctl -w net.ipv4.neigh.va.retrans_time_ms=200");
        run("sysctl -w net.ipv6.neigh.va.app_solicit=1");
        run("sysctl -w net.ipv6.conf.va.hop_limit=77");
        run("sysctl -w net.ipv4.fib_multipath_hash_policy=3");
        run("sysctl -w net.ipv4.fib_multipath_hash_fields=0x37");
        run("sysctl -w net.ipv6.auto_flowlabels=0");
        mirror.tick(Instant::now() + Duration::from_secs(3)).expect("tick");
        assert_eq!(link(&mirror).mtu6, 1300);
        assert_eq!(link(&mirror).neigh_tried_ns, [1_000_000_000, 4_000_000_000]);
        assert_eq!(link(&mirror).hop_limit, 77);
        let sysctl = &mirror.tables().sysctl;
        assert_eq!(
            (sysctl.multipath_hash_policy4, sysctl.multipath_hash_fields4),
            (3, HashFields(0x37))
        );
        assert!(!sysctl.auto_flowlabels);
        assert!(!link(&mirror).send_redirects);
        assert_eq!(mirror.tables().sysctl.icmp_ratelimit_ms, 80);
        run("ip link add br0 type bridge");
        run("ip link set va master br0");
        settle(&mut mirror);
        assert_eq!(link(&mirror).port, None, "a bridge port is not a port");
        assert_eq!(mirror.unmirrored().len(), 1);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_after_a_pause_the_settings_of_all_vlans_are_read_at_once() {
    const VLANS: u32 = 40;
    in_netns(|| {
        LINKS.iter().for_each(|line| run(line));
        let lines = (1..=VLANS).map(|n| format!("link add v{n} up type veth peer name w{n}\n"));
        ip_batch(&lines.collect::<String>());
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let va = mirror_link(&mirror, "va");
        settle(&mut mirror);
        // VLANs are not available on every kernel, so the links are marked as VLANs in the mirror. An
        // event about a link removes its mark.
        let mark = |mirror: &mut Mirror| {
            for link in Arc::make_mut(&mut mirror.follower.state.links).values_mut() {
                if let Some(id) = link.name.strip_prefix('v').and_then(|id| id.parse().ok()) {
                    link.vlan = Some(VlanState { protocol: 0x8100, id, ..VlanState::default() });
                    link.link = Some(va);
                }
            }
            mirror.follower.touched.links = true;
            mirror.compile();
        };
        mark(&mut mirror);
        mirror.set_ports(&[(va, 3)]);
        let known = |mirror: &Mirror| {
            let links = &mirror.tables().links;
            let lowered = |n: &u32| links.named(&format!("v{n}")).is_some_and(|v| v.mtu6 == 1300);
            (1..=VLANS).filter(lowered).count()
        };
        assert_eq!(known(&mirror), 0);
        for n in 1..=VLANS {
            run(&format!("sysctl -w net.ipv6.conf.v{n}.mtu=1300"));
        }
        mirror.tick(Instant::now() + Duration::from_secs(1)).expect("tick");
        assert!(known(&mirror) < VLANS as usize, "a few at a time");
        mark(&mut mirror);
        mirror.read_sysctls(Instant::now()).expect("read");
        assert!(!mirror.sysctls.has_failed(), "a setting could not be read");
        mark(&mut mirror);
        assert_eq!(known(&mirror), VLANS as usize);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_routes_and_settings_that_are_left_to_the_kernel_are_named() {
    in_netns(|| {
        ports();
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        assert!(mirror.unmirrored().is_empty(), "{:?}", mirror.unmirrored());
        run("ip nexthop add id 1 via 10.0.0.9 dev va");
        run("ip nexthop add id 2 via 10.0.1.8 dev vc");
        run("ip nexthop add id 20 group 1/2 type resilient buckets 8");
        run("ip route add 10.50.0.0/16 nhid 20");
        run("ip route add 10.51.0.0/16 nexthop via 10.0.0.2 nexthop via 10.0.1.3");
        for (key, value) in [
            ("ipv4.fib_multipath_hash_policy", "2"),
            ("ipv4.fib_multipath_use_neigh", "1"),
            ("ipv6.fib_multipath_hash_policy", "2"),
            ("ipv4.conf.all.accept_redirects", "1"),
            ("ipv4.conf.vc.accept_redirects", "0"),
            ("ipv4.conf.vc.disable_xfrm", "1"),
        ] {
            run(&format!("sysctl -w net.{key}={value}"));
        }
        let of_lab = ["va", "vc"].map(|name| mirror_link(&mirror, name));
        mirror.set_ports(&[(of_lab[0], 0), (of_lab[1], 1)]);
        settle(&mut mirror);
        mirror.read_sysctls(Instant::now()).expect("read");
        let left: Vec<_> = mirror.unmirrored().into_iter().map(|left| left.what).collect();
        // No IPv6 route has several next hops.
        let [route, policy, use_neigh] = &left[..] else { panic!("{left:?}") };
        let not_followed = mirror.not_followed();
        let named = |n: usize, name: &str| not_followed[n].starts_with(name);
        assert!(named(0, "net.ipv4.conf.va.accept_redirects: "), "{not_followed:?}");
        assert!(named(1, "net.ipv4.conf.vc.disable_xfrm is not followed"), "{not_followed:?}");
        assert_eq!(not_followed.len(), 2);
        assert!(route.contains("10.50.0.0/16"), "{route}");
        assert!(policy.ends_with("ipv4.fib_multipath_hash_policy 2"), "{policy}");
        assert!(use_neigh.ends_with("fib_multipath_use_neigh"), "{use_neigh}");
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_new_default_is_that_of_interfaces_without_a_setting_of_their_own() {
    in_netns(|| {
        LINKS.iter().for_each(|line| run(line));
        run("sysctl -w net.ipv4.conf.all.rp_filter=0");
        run("sysctl -w net.ipv4.conf.vc.rp_filter=0");
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        run("sysctl -w net.ipv4.conf.default.rp_filter=1");
        // Sooner than the self-check.
        std::thread::sleep(Duration::from_millis(1));
        settle(&mut mirror);
        let rp_filter = |name: &str| {
            let ifindex = mirror_link(&mirror, name).cast_signed();
            mirror.state().conf(Family::V4, ifindex, Netconf::RP_FILTER)
        };
        assert_eq!((rp_filter("va"), rp_filter("vc")), (1, 0));
        assert_eq!(mirror.counters().corrections, 0);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_route_follows_its_nexthop_object_that_becomes_a_blackhole_or_a_next_hop() {
    in_netns(|| {
        ports();
        run("ip nexthop add id 1 blackhole");
        run("ip nexthop add id 2 via 10.0.1.9 dev vc");
        run("ip nexthop add id 10 group 1");
        run("ip route add 10.1.0.0/16 nhid 1");
        run("ip route add 10.2.0.0/16 nhid 10");
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        let iif = mirror_link(&mirror, "va");
        let questions = [[10, 1, 0, 1], [10, 2, 0, 1]].map(|dst| Question {
            dst: dst.into(),
            from: [10, 98, 0, 5].into(),
            iif,
            mark: 0,
        });
        for line in [
            "ip nexthop replace id 1 via 10.0.1.8 dev vc",
            "ip nexthop replace id 1 blackhole",
            "ip nexthop replace id 10 group 2",
            "ip nexthop replace id 10 group 1",
        ] {
            run(line);
            // With nexthop_compat_mode=1 the kernel reports the routes, too: nothing is left to it until a dump.
            mirror.process().expect("process");
            let left = same_answers(&mirror, &questions).expect(line);
            assert!(left.is_empty(), "{line}: left to the kernel: {left:?}");
            settle(&mut mirror);
            assert_answers(&mut mirror, &questions);
            assert_equals_kernel(&mut mirror);
        }
        assert_eq!(mirror.counters().corrections, 0);
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_multipath_route_whose_first_next_hop_has_expired_is_left_to_the_kernel() {
    in_netns(|| {
        ports();
        let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
        run("ip -6 route add 2001:db8:5::/48 via 2001:db8::2 expires 1");
        run("ip -6 route append 2001:db8:5::/48 via 2001:db8:1::2");
        run("ip -6 route add unreachable 2001:db8::/32");
        let question = Question {
            dst: "2001:db8:5::1".parse().expect("an address"),
            from: "2001:db8:98::5".parse().expect("an address"),
            iif: mirror_link(&mirror, "va"),
            mark: 0,
        };
        settle(&mut mirror);
        assert_answers(&mut mirror, &[question]);
        std::thread::sleep(Duration::from_millis(1500));
        let is_left = |mirror: &Mirror| match same_answers(mirror, &[question])?.len() {
            1 => Ok(()),
            _ => Err("it is looked up here".to_owned()),
        };
        eventually(&mut mirror, is_left).expect("left to the kernel");
        // As when the kernel removes it, within 30 s.
        run("ip -6 route del 2001:db8:5::/48 via 2001:db8::2");
        mirror.process().expect("process");
        same_answers(&mirror, &[question]).expect("not the next route");
        settle(&mut mirror);
        assert_answers(&mut mirror, &[question]);
    });
}
