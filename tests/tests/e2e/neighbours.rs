//! Neighbours that are not yet resolved, change, or do not answer.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually};

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_first_packet_waits_for_its_neighbour() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    for address in [RIGHT4, RIGHT6] {
        lab.router.run("ip neigh flush all")?;
        lab.router.run("ip -6 neigh flush all")?;
        ping_all(&lab.left, &format!("-c 1 -W 10 {address}"))?;
    }
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_neighbour_that_does_not_answer_is_reported() -> Result<()> {
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start(&lab)?;
    let result = ping(&lab.left, "-c 3 -W 8 198.18.2.99")?;
    ensure!(result.received == 0);
    ensure!(result.text.contains("Destination Host Unreachable"), "{}", result.text);
    let result = ping(&lab.left, "-c 3 -W 8 2001:db8:2::99")?;
    ensure!(result.text.contains("Address unreachable"), "{}", result.text);
    Ok(())
}

/// More than a worker holds packets for: the kernel holds the others.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn first_packets_to_many_new_hosts_arrive() -> Result<()> {
    const HOSTS: std::ops::Range<u8> = 128..254;
    let lab = Lab::up()?;
    // The right host has all of these addresses.
    lab.right.run("ip route add local 198.18.2.128/25 dev lo")?;
    let receiver = lab.right.enter(|| Ok(UdpSocket::bind("0.0.0.0:4000")?))?;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    let ferroute = Ferroute::start(&lab)?;
    let sender = lab.left.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    for host in HOSTS {
        sender.send_to(&[host], (Ipv4Addr::new(198, 18, 2, host), 4000))?;
    }
    let mut arrived = BTreeSet::new();
    let mut octet = [0];
    while arrived.len() < HOSTS.len() && receiver.recv(&mut octet).is_ok() {
        arrived.insert(octet[0]);
    }
    ensure!(arrived.len() == HOSTS.len(), "{} of {} arrive", arrived.len(), HOSTS.len());
    let punts = ferroute.json(&["stat"])?["punts"]["NEIGH_UNRESOLVED"].as_u64();
    ensure!(punts.is_some_and(|punts| punts > 0), "the kernel had none: {punts:?}");
    // Then they are known.
    for host in HOSTS {
        sender.send_to(&[host], (Ipv4Addr::new(198, 18, 2, host), 4000))?;
        receiver.recv(&mut octet)?;
    }
    let after = ferroute.json(&["stat"])?["punts"]["NEIGH_UNRESOLVED"].as_u64();
    ensure!(after == punts, "the kernel has packets to known neighbours: {punts:?}, {after:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_changed_hardware_address_is_used_at_once() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(2))?;
    ensure!(stream.flows(50));
    let neighbour = "ip neigh replace 198.18.2.2 dev rt-right nud permanent lladdr";
    lab.router.run(&format!("{neighbour} 02:00:00:00:00:99"))?;
    let stops = eventually(|| {
        let before = stream.received();
        std::thread::sleep(Duration::from_millis(300));
        stream.received() == before
    });
    ensure!(stops, "packets still go to the old address");
    lab.router.run(&format!("{neighbour} 02:f0:00:00:02:02"))?;
    ensure!(stream.flows(50), "packets do not go to the new address");
    stream.stop();
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_entry_in_use_is_kept_alive() -> Result<()> {
    let lab = Lab::up()?;
    for key in ["net/ipv4/neigh/rt-right", "net/ipv6/neigh/rt-right"] {
        lab.router.sysctl(&format!("{key}/base_reachable_time_ms"), "1000")?;
        lab.router.sysctl(&format!("{key}/delay_first_probe_time"), "1")?;
        lab.router.sysctl(&format!("{key}/gc_stale_time"), "2")?;
    }
    let ferroute = Ferroute::start(&lab)?;
    for address in [RIGHT4, RIGHT6] {
        let stream = Stream::start(&lab.left, &lab.right, address, Duration::from_millis(5))?;
        // Long enough for the entry to become stale, be probed and be confirmed several times.
        std::thread::sleep(Duration::from_secs(6));
        let report = stream.stop();
        ensure!(report.lost() == 0, "{address}: {report:?}");
    }
    ferroute.forwarded_all_itself()
}
