//! Routes with many next hops and unusual weights, with the kernel as oracle.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::answers::{Question, chosen, same_answers, select};
use super::oracle::equals_kernel;
use super::random::Rng;
use super::{eventually, in_netns, ip_batch, ports, run, settle, try_run};
use crate::control::mirror::{Mirror, MirrorOptions};
use crate::control::netlink::message::Request;
use crate::control::netlink::rtnl::Requests;
use crate::control::netlink::socket::SockError;

const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEXTHOP: u16 = 104;
/// NLM_F_CREATE and NLM_F_REPLACE.
const SET: u16 = 0x500;
const RTA_DST: u16 = 1;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;

const HOPS: u16 = 1000;
/// Flows whose next hops are compared.
const FLOWS: u16 = 200;
/// Of the flows, how much the share of a next hop may differ between two hash functions: with equal shares of 1/2, three
/// standard deviations of the difference of two samples of 200.
const SHARE_TOLERANCE: f64 = 0.15;

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Neighbours of `va`.
fn gateway(v4: bool, n: u16) -> IpAddr {
    let [high, low] = (n + 2).to_be_bytes();
    match v4 {
        true => [10, 40, high, low].into(),
        false => [0x2001, 0xdb8, 0x40, 0, 0, 0, 0, n + 2].into(),
    }
}

/// A destination below the prefix of a route, 10.50.0.0/16 or 2001:db8:50::/48.
fn destination(v4: bool, n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    match v4 {
        true => [10, 50, high, low].into(),
        false => [0x2001, 0xdb8, 0x50, n, 0, 0, 0, 9].into(),
    }
}

/// Adds or replaces the route to [`destination`], with gateways and the octet `rtnh_hops`, the weight minus 1. `ip` has
/// no room for so many.
fn set_route(hops: &[(IpAddr, u8)], oif: u32) -> Result<(), SockError> {
    let v4 = hops[0].0.is_ipv4();
    let (family, len) = if v4 { (2, 16) } else { (10, 48) };
    // Of table main, by RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST.
    let header = [family, len, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    let mut multipath = Vec::new();
    for (gateway, hops) in hops {
        let gateway = octets(*gateway);
        multipath.extend((8 + 4 + gateway.len() as u16).to_ne_bytes());
        multipath.extend([0, *hops]);
        multipath.extend(oif.to_ne_bytes());
        multipath.extend((4 + gateway.len() as u16).to_ne_bytes());
        multipath.extend(RTA_GATEWAY.to_ne_bytes());
        multipath.extend(gateway);
    }
    let mut requests = Requests::open().expect("opens");
    requests.change("set a route", |flags| {
        Request::new(RTM_NEWROUTE, flags | SET, &header)
            .attr(RTA_DST, &octets(destination(v4, 0)))
            .attr(RTA_MULTIPATH, &multipath)
    })
}

/// Adds or replaces a group of nexthop objects, each with its weight minus 1.
fn set_group(id: u32, members: &[(u32, u16)]) -> Result<(), SockError> {
    let mut group = Vec::new();
    for (member, weight) in members {
        group.extend(member.to_ne_bytes());
        group.extend(weight.to_le_bytes());
        group.extend([0, 0]);
    }
    let mut requests = Requests::open().expect("opens");
    requests.change("set a group", |flags| {
        Request::new(RTM_NEWNEXTHOP, flags | SET, &[0; 8])
            .attr(NHA_ID, &id.to_ne_bytes())
            .attr(NHA_GROUP, &group)
    })
}

fn lab() -> (Mirror, u32) {
    ports();
    run("ip addr add 10.40.0.1/16 dev va");
    run("ip addr add 2001:db8:40::1/64 dev va nodad");
    let va = nix::net::if_::if_nametoindex("va").expect("va");
    let mut mirror = Mirror::start(MirrorOptions::default()).expect("starts");
    mirror.set_ports(&[(va, 0)]);
    (mirror, va)
}

fn questions(v4: bool, iif: u32) -> Vec<Question> {
    let from = match v4 {
        true => [10, 98, 0, 5].into(),
        false => [0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 5].into(),
    };
    (0..FLOWS).map(|n| Question { dst: destination(v4, n), from, iif, mark: 0 }).collect()
}

/// Fails unless the tables have these next hops by events and by a dump, and each of [`FLOWS`] flows takes one of them by
/// the kernel. (iproute2 lists no route of more than some 300 next hops.)
#[track_caller]
fn agrees(mirror: &mut Mirror, v4: bool, iif: u32, expected: &HashSet<IpAddr>) {
    let questions = questions(v4, iif);
    let has_all = |mirror: &Mirror| {
        // Evenly spaced, more than the sum of all weights.
        let hashes = (0..1u32 << 12).map(|n| n << 20);
        let ours: HashSet<IpAddr> =
            hashes.filter_map(|hash| select(mirror, &questions[0], hash)).collect();
        let (missing, beside) = (expected.difference(&ours), ours.difference(expected));
        match (missing.count(), beside.count()) {
            (0, 0) => Ok(()),
            other => Err(format!("{other:?} next hops are missing in, or only in, the tables")),
        }
    };
    let holds = |mirror: &Mirror| {
        has_all(mirror)?;
        match same_answers(mirror, &questions)? {
            left if left.is_empty() => Ok(()),
            left => Err(format!("left to the kernel: {left:?}")),
        }
    };
    eventually(mirror, holds).unwrap_or_else(|difference| panic!("{difference}"));
    assert_eq!(mirror.counters().unparsable, 0);
    let theirs: HashSet<IpAddr> = chosen(mirror, &questions).into_iter().flatten().collect();
    assert!(theirs.len() > 1 && theirs.is_subset(expected), "{theirs:?} of the kernel");
    let mut dumped = Mirror::start(MirrorOptions::default()).expect("starts");
    dumped.set_ports(&[(iif, 0)]);
    has_all(&dumped).expect("the same by a dump");
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_thousand_next_hops_of_a_route() {
    in_netns(|| {
        let (mut mirror, va) = lab();
        for v4 in [true, false] {
            let hops: Vec<_> = (0..HOPS).map(|n| (gateway(v4, n), (n % 3) as u8)).collect();
            // All, some of them, and all again.
            for hops in [&hops[..], &hops[..300], &hops[..]] {
                set_route(hops, va).expect("the kernel accepts it");
                let gateways = hops.iter().map(|(gateway, _)| *gateway).collect();
                agrees(&mut mirror, v4, va, &gateways);
            }
        }
    });
}

/// The kernel's dump of all routes ends at such a route, for IPv6 without an error.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_with_a_route_that_cannot_be_dumped_the_kernel_goes_on_alone() {
    in_netns(|| {
        let (mut mirror, va) = lab();
        for (v4, hops) in [(false, 1200), (true, 2100)] {
            let hops: Vec<_> = (0..hops).map(|n| (gateway(v4, n), 0)).collect();
            set_route(&hops, va).expect("the kernel accepts it");
            // By its event.
            settle(&mut mirror);
            let theirs = same_answers(&mirror, &questions(v4, va));
            assert!(theirs.is_ok_and(|left| left.is_empty()));
            let error = Mirror::start(MirrorOptions::default()).expect_err("is not complete");
            assert!(error.to_string().contains("Message too long"), "{error}");
            run(&format!("ip route del {}", if v4 { "10.50.0.0/16" } else { "2001:db8:50::/48" }));
            Mirror::start(MirrorOptions::default()).expect("is complete again");
        }
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_a_thousand_next_hops_of_a_group_of_objects() {
    in_netns(|| {
        let (mut mirror, va) = lab();
        for (v4, first, group) in [(true, 1000, 9001), (false, 3000, 9002)] {
            let object = |n: u16| {
                let via = gateway(v4, n);
                format!("nexthop add id {} via {via} dev va\n", first + u32::from(n))
            };
            ip_batch(&(0..HOPS).map(object).collect::<String>());
            let members: Vec<_> =
                (0..HOPS).map(|n| (first + u32::from(n), u16::from(n.is_multiple_of(2)))).collect();
            set_group(group, &members).expect("the kernel accepts it");
            let (family, prefix) =
                if v4 { ("-4", "10.50.0.0/16") } else { ("-6", "2001:db8:50::/48") };
            run(&format!("ip {family} route add {prefix} nhid {group}"));
            let mut gateways: HashSet<_> = (0..HOPS).map(|n| gateway(v4, n)).collect();
            agrees(&mut mirror, v4, va, &gateways);
            set_group(group, &members[500..]).expect("the kernel accepts it");
            gateways = (500..HOPS).map(|n| gateway(v4, n)).collect();
            agrees(&mut mirror, v4, va, &gateways);
            // Removed from the group with the object.
            run(&format!("ip nexthop del id {}", first + 700));
            gateways.remove(&gateway(v4, 700));
            agrees(&mut mirror, v4, va, &gateways);
            // Groups have no groups.
            assert!(set_group(9003, &[(group, 0)]).is_err());
            assert!(set_group(9003, &[(first, 0), (group, 0)]).is_err());
            assert!(set_group(9003, &[]).is_err());
            agrees(&mut mirror, v4, va, &gateways);
        }
    });
}

/// The share of each gateway among choices.
fn shares(chosen: impl Iterator<Item = Option<IpAddr>>) -> HashMap<IpAddr, f64> {
    let mut counts = HashMap::new();
    for gateway in chosen.flatten() {
        *counts.entry(gateway).or_insert(0.0) += 1.0 / f64::from(FLOWS);
    }
    counts
}

/// Compares how the flows are shared: each chooses by a hash with a seed of its own.
#[track_caller]
fn same_shares(mirror: &mut Mirror, v4: bool, iif: u32, what: &str) {
    settle(mirror);
    let questions = questions(v4, iif);
    let left = same_answers(mirror, &questions).unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    assert_eq!(left.len(), 0, "{what}: left to the kernel");
    let theirs = shares(chosen(mirror, &questions).into_iter());
    let mut rng = Rng::new(9);
    let ours = shares(questions.iter().map(|it| select(mirror, it, rng.next() as u32)));
    for n in 0..4 {
        let share = |of: &HashMap<IpAddr, f64>| of.get(&gateway(v4, n)).copied().unwrap_or(0.0);
        let is_near = (share(&theirs) - share(&ours)).abs() <= SHARE_TOLERANCE;
        assert!(is_near, "{what}: {theirs:?} by the kernel, {ours:?}");
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_weights_share_the_flows_as_the_kernel_does() {
    // rtnh_hops is the weight minus 1: weights of 1 and 256, equal ones, and four.
    const WEIGHTS: [&[u8]; 6] =
        [&[0, 0], &[0, 255], &[255, 255], &[254, 84], &[9, 19, 29, 39], &[0, 0, 255, 127]];
    in_netns(|| {
        let (mut mirror, va) = lab();
        for v4 in [true, false] {
            for weights in WEIGHTS {
                let hops: Vec<_> = (0..).zip(weights).map(|(n, w)| (gateway(v4, n), *w)).collect();
                set_route(&hops, va).expect("the kernel accepts it");
                eventually(&mut mirror, equals_kernel).expect("equal");
                same_shares(&mut mirror, v4, va, &format!("route {weights:?}"));
            }
            run(&format!("ip route del {}", if v4 { "10.50.0.0/16" } else { "2001:db8:50::/48" }));
            let family = if v4 { "-4" } else { "-6" };
            let prefix = if v4 { "10.50.0.0/16" } else { "2001:db8:50::/48" };
            for n in 0..4 {
                let via = gateway(v4, n);
                run(&format!("ip {family} nexthop replace id {} via {via} dev va", n + 1));
            }
            run("ip nexthop replace id 9 group 1");
            run(&format!("ip {family} route add {prefix} nhid 9"));
            for weights in WEIGHTS {
                let members: Vec<_> = (1..).zip(weights.iter().map(|w| u16::from(*w))).collect();
                // Up to Linux 6.11 a weight of 256 is refused in a group.
                if set_group(9, &members).is_ok() {
                    same_shares(&mut mirror, v4, va, &format!("group {weights:?}"));
                }
            }
            // Weights of more than an octet, since Linux 6.12; older versions of iproute2 do not show them.
            if set_group(9, &[(1, 65534), (2, 32767)]).is_ok() {
                same_shares(&mut mirror, v4, va, "group of long weights");
            }
            run(&format!("ip {family} route del {prefix}"));
            run("ip nexthop flush");
        }
        // `ip` takes no weight 0; in messages it would be -1.
        assert!(!try_run(
            "ip route add 10.51.0.0/16 nexthop via 10.40.0.2 weight 0 nexthop via 10.40.0.3"
        ));
    });
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_rules_that_go_on_to_later_rules_end_as_in_the_kernel() {
    in_netns(|| {
        let (mut mirror, va) = lab();
        for (family, prefix, via) in
            [("-4", "10.50.0.0/16", "10.40.0.2"), ("-6", "2001:db8:50::/48", "2001:db8:40::2")]
        {
            // The kernel takes no rule that goes back, nor one that goes to itself.
            assert!(!try_run(&format!("ip {family} rule add pref 500 goto 500")));
            assert!(!try_run(&format!("ip {family} rule add pref 500 goto 400")));
            run(&format!("ip {family} route add {prefix} via {via} table 100"));
            // A hundred in a row, with one that leads nowhere until its target comes.
            for pref in 500..600 {
                run(&format!("ip {family} rule add pref {pref} goto {}", pref + 1));
            }
            let v4 = family == "-4";
            let ask = |mirror: &mut Mirror| {
                eventually(mirror, |mirror| {
                    equals_kernel(mirror)?;
                    same_answers(mirror, &questions(v4, va)).map(|_| ())
                })
            };
            ask(&mut mirror).expect("without the target");
            run(&format!("ip {family} rule add pref 600 lookup 100"));
            ask(&mut mirror).expect("with the target");
            assert_eq!(
                chosen(&mirror, &questions(v4, va)).into_iter().flatten().count(),
                usize::from(FLOWS)
            );
            run(&format!("ip {family} rule del pref 550"));
            ask(&mut mirror).expect("with a gap");
            run(&format!("ip {family} rule add pref 540 blackhole"));
            ask(&mut mirror).expect("a rule beside another");
        }
    });
}

/// Equal prefixes and metrics: which one of them the kernel uses, and which one a deletion takes.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_routes_of_equal_metrics_are_those_of_the_kernel() {
    in_netns(|| {
        let (mut mirror, va) = lab();
        run("ip nexthop add id 1 via 10.40.0.9 dev va");
        run("ip nexthop add id 2 via 2001:db8:40::9 dev va");
        let mut ask = |line: String, v4: bool| {
            try_run(&line);
            let holds = |mirror: &Mirror| {
                equals_kernel(mirror)?;
                same_answers(mirror, &questions(v4, va)).map(|_| ())
            };
            eventually(&mut mirror, holds).unwrap_or_else(|wrong| panic!("{line}: {wrong}"));
        };
        for (v4, prefix, ways) in [
            (true, "10.50.0.0/16", ["via 10.40.0.2", "via 10.40.0.3", "nhid 1", "dev vc"]),
            (
                false,
                "2001:db8:50::/48",
                ["via 2001:db8:40::2", "via 2001:db8:40::3", "nhid 2", "via fe80::7 dev vc"],
            ),
        ] {
            let family = if v4 { "-4" } else { "-6" };
            for verb in ["append", "prepend", "replace", "del"] {
                for way in ways {
                    ask(format!("ip {family} route {verb} {prefix} {way}"), v4);
                }
            }
        }
    });
}
