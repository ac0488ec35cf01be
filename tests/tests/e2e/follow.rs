//! Routes, nexthops, rules and addresses are changed under traffic, and forwarding follows.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{self, ETHERTYPE_IPV4, Ipv4, be16, ethernet, udp};
use ferroute_tests::ping::ping_all;
use ferroute_tests::stream::Stream;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, eventually};

const SEND_INTERVAL: Duration = Duration::from_millis(2);
/// Nothing may arrive for this long once a route is gone.
const QUIET_TIME: Duration = Duration::from_millis(300);

/// A destination behind the right host, for each family.
const BEHIND4: &str = "203.0.113.1";
const BEHIND6: &str = "2001:db8:3::1";

fn lab_with_ferroute() -> Result<(Lab, Ferroute)> {
    let lab = Lab::up()?;
    lab.right.run(&format!("ip addr add {BEHIND4}/32 dev lo"))?;
    lab.right.run(&format!("ip addr add {BEHIND6}/128 dev lo nodad"))?;
    let ferroute = Ferroute::start(&lab)?;
    Ok((lab, ferroute))
}

/// Fails unless the stream stops arriving.
fn dries_up(stream: &Stream) -> Result<()> {
    let dry = eventually(|| {
        let before = stream.received();
        std::thread::sleep(QUIET_TIME);
        stream.received() == before
    });
    ensure!(dry, "packets still arrive");
    Ok(())
}

/// Adds and removes a route to `address` by commands in the router, three times, under traffic.
fn open_and_close(address: &str, open: &str, close: &str) -> Result<()> {
    let (lab, ferroute) = lab_with_ferroute()?;
    let stream = Stream::start(&lab.left, &lab.right, address, SEND_INTERVAL)?;
    for _ in 0..3 {
        lab.router.run(open)?;
        ensure!(stream.flows(50), "nothing arrives after `{open}`");
        lab.router.run(close)?;
        dries_up(&stream).with_context(|| format!("after `{close}`"))?;
    }
    lab.router.run(open)?;
    ensure!(stream.flows(50), "nothing arrives after the last `{open}`");
    let report = stream.stop();
    ensure!(report.duplicates == 0, "{report:?}");
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_v4_route_comes_and_goes() -> Result<()> {
    let route = "203.0.113.0/24 via 198.18.2.2";
    open_and_close(BEHIND4, &format!("ip route add {route}"), &format!("ip route del {route}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_v6_route_comes_and_goes() -> Result<()> {
    let route = "2001:db8:3::/48 via 2001:db8:2::2";
    open_and_close(BEHIND6, &format!("ip route add {route}"), &format!("ip route del {route}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_route_is_replaced_in_place() -> Result<()> {
    open_and_close(
        BEHIND4,
        "ip route replace 203.0.113.0/24 via 198.18.2.2",
        "ip route replace 203.0.113.0/24 via 198.18.2.77",
    )
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_longer_prefix_wins_as_soon_as_it_is_there() -> Result<()> {
    let (lab, ferroute) = lab_with_ferroute()?;
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
    let stream = Stream::start(&lab.left, &lab.right, BEHIND4, SEND_INTERVAL)?;
    ensure!(stream.flows(50));
    lab.router.run("ip route add blackhole 203.0.113.0/25")?;
    dries_up(&stream)?;
    lab.router.run("ip route add 203.0.113.1/32 via 198.18.2.2")?;
    ensure!(stream.flows(50));
    stream.stop();
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_nexthop_object_is_replaced() -> Result<()> {
    let (lab, ferroute) = lab_with_ferroute()?;
    lab.router.run("ip nexthop add id 7 via 198.18.2.2 dev rt-right")?;
    lab.router.run("ip route add 203.0.113.0/24 nhid 7")?;
    let stream = Stream::start(&lab.left, &lab.right, BEHIND4, SEND_INTERVAL)?;
    ensure!(stream.flows(50), "nothing arrives through the nexthop");
    lab.router.run("ip nexthop replace id 7 blackhole")?;
    dries_up(&stream)?;
    lab.router.run("ip nexthop replace id 7 via 198.18.2.2 dev rt-right")?;
    ensure!(stream.flows(50), "nothing arrives after it was replaced");
    lab.router.run("ip nexthop del id 7")?;
    dries_up(&stream)?;
    stream.stop();
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_v4_route_through_a_v6_nexthop() -> Result<()> {
    open_and_close(
        BEHIND4,
        "ip route add 203.0.113.0/24 via inet6 2001:db8:2::2",
        "ip route del 203.0.113.0/24",
    )
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_rule_comes_and_goes() -> Result<()> {
    let (lab, ferroute) = lab_with_ferroute()?;
    lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2 table 100")?;
    let stream = Stream::start(&lab.left, &lab.right, BEHIND4, SEND_INTERVAL)?;
    for selector in ["from 198.18.1.2", "to 203.0.113.0/24", "iif rt-left", "from all"] {
        lab.router.run(&format!("ip rule add {selector} lookup 100 pref 100"))?;
        ensure!(stream.flows(50), "nothing arrives by the rule {selector}");
        lab.router.run("ip rule del pref 100")?;
        dries_up(&stream).with_context(|| format!("without the rule {selector}"))?;
    }
    stream.stop();
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_new_address_of_the_router_is_local_at_once() -> Result<()> {
    let (lab, _ferroute) = lab_with_ferroute()?;
    lab.router.run("ip addr add 192.0.2.1/32 dev lo")?;
    lab.router.run("ip addr add 2001:db8:9::1/128 dev lo nodad")?;
    for address in ["192.0.2.1", "2001:db8:9::1"] {
        let answered = || ping_all(&lab.left, &format!("-c 1 -W 1 {address}")).is_ok();
        ensure!(eventually(answered), "{address} does not answer");
    }
    Ok(())
}

/// Sends one packet of each of 2000 flows and counts the hardware addresses they leave with.
fn spread(lab: &Lab) -> Result<BTreeMap<u8, usize>> {
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let (src, dst) = (Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(203, 0, 113, 9));
    for port in 1..=2000u16 {
        let datagram = udp(&src.octets(), &dst.octets(), (port, 4242), b"spread");
        let packet = Ipv4::new(src, dst, packet::UDP).packet(&datagram);
        left.send(&ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &packet))?;
        if port % 64 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut counts = BTreeMap::new();
    let arrived =
        |frame: &[u8]| be16(frame, 12) == Some(ETHERTYPE_IPV4) && be16(frame, 36) == Some(4242);
    while let Some(frame) = right.wait_for(Duration::from_secs(2), arrived) {
        *counts.entry(frame[5]).or_default() += 1;
        if counts.values().sum::<usize>() == 2000 {
            break;
        }
    }
    Ok(counts)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn multipath_spreads_flows_by_weight() -> Result<()> {
    let lab = Lab::up()?;
    // By ports, not only by addresses. It is only read periodically, so it is set first.
    lab.router.sysctl("net/ipv4/fib_multipath_hash_policy", "1")?;
    let ferroute = Ferroute::start(&lab)?;
    // The path is identified by the neighbour's MAC address; the neighbour does not have to answer.
    for host in [11, 12] {
        let neighbour = format!("198.18.2.{host} dev rt-right lladdr 02:00:00:00:00:{host}");
        lab.router.run(&format!("ip neigh add {neighbour} nud permanent"))?;
    }
    lab.router.run(
        "ip route add 203.0.113.9 nexthop via 198.18.2.11 weight 1 nexthop via 198.18.2.12 weight 3",
    )?;
    let expect_quarter = |counts: BTreeMap<u8, usize>| -> Result<()> {
        let (few, many) = (counts.get(&0x11).copied(), counts.get(&0x12).copied());
        let (few, many) = (few.unwrap_or(0), many.unwrap_or(0));
        ensure!(few + many == 2000, "packets are missing: {counts:?}");
        ensure!((400..=600).contains(&few), "weights 1 and 3 gave {few} and {many}");
        Ok(())
    };
    expect_quarter(spread(&lab)?)?;
    // The same with nexthop objects in a group.
    lab.router.run("ip route del 203.0.113.9")?;
    lab.router.run("ip nexthop add id 11 via 198.18.2.11 dev rt-right")?;
    lab.router.run("ip nexthop add id 12 via 198.18.2.12 dev rt-right")?;
    lab.router.run("ip nexthop add id 13 group 11,1/12,3")?;
    lab.router.run("ip route add 203.0.113.9 nhid 13")?;
    expect_quarter(spread(&lab)?)?;
    ferroute.forwarded_all_itself()
}
