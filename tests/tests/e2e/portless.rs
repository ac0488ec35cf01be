//! Connections without ports, while the ruleset tracks connections: lasting pings, and tunnels that pass the router.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::nft;
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6, RT_RIGHT4};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{ETHERTYPE_IPV4, ICMP, Ipv4, be16, checksum, ethernet};
use ferroute_tests::ping::Pinging;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};

use crate::offload::{OFFLOAD, lab_with_gro, offloaded};

/// What is established passes, and new pings and tunnels; all that leaves on the right is masqueraded.
const STATEFUL: &str = "
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid counter drop
        ct state established counter accept
        iifname rt-left ct state new meta l4proto { 1, 4, 47, 50, 58 } accept
    }
    chain post {
        type nat hook postrouting priority srcnat;
        oifname rt-right masquerade
    }
}
";
/// Only what is established passes.
const CLOSED: &str = "
flush ruleset
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established counter accept
    }
    chain post { type nat hook postrouting priority srcnat; oifname rt-right masquerade; }
}
";

/// Whether packets of the pings bypass the kernel.
fn are_carried(running: &Ferroute, all: &[&Pinging]) -> bool {
    ferroute::by_kernel()
        || eventually(|| {
            let before = running.forwarded_by_kernel().ok();
            all.iter().all(|it| it.goes_on()) && running.forwarded_by_kernel().ok() == before
        })
}

fn carried(running: &Ferroute) -> Result<u64> {
    running.json(&["status"])?["carried_flows"].as_u64().context("a number")
}

/// Two hosts with the same identifier: the kernel changes one of them.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn pings_through_masquerade_are_carried_and_offloaded() -> Result<()> {
    let lab = lab_with_gro()?;
    for family in ["-4", "-6"] {
        lab.right.run(&format!("ip {family} route del default"))?;
    }
    lab.left.run("ip addr add 198.18.1.9/24 dev left")?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    let start =
        |args: &str, to: &str| Pinging::start(&lab.left, &format!("-i 0.02 -e 4242 {args} {to}"));
    let pings = [start("", RIGHT4)?, start("-I 198.18.1.9", RIGHT4)?, start("-s 1000", RIGHT6)?];
    let all: Vec<&Pinging> = pings.iter().collect();
    ensure!(are_carried(&running, &all), "the kernel forwards: {}", running.account());
    if ferroute::by_kernel() {
        return Ok(());
    }
    ensure!(carried(&running)? == 3, "{}", running.json(&["status"])?);
    let are_offloaded = || {
        let before = offloaded(&running).unwrap_or(u64::MAX);
        all.iter().all(|it| it.goes_on()) && offloaded(&running).is_ok_and(|it| it >= before + 60)
    };
    ensure!(eventually(are_offloaded), "{}", running.json(&["stat"])?);
    let listed = running.json(&["flows", "show"])?;
    let rows = listed.as_array().context("an array")?;
    let is_echo = |row: &&serde_json::Value| {
        row["protocol"] == "icmp" && row["original"]["id"] == 4242 && row["original"]["type"] == 8
    };
    let echo: Vec<_> = rows.iter().filter(is_echo).collect();
    ensure!(echo.len() == 2, "{listed}");
    let ids: Vec<_> = echo.iter().map(|row| row["reply"]["id"].as_u64()).collect();
    ensure!(ids[0] != ids[1] && ids.contains(&Some(4242)), "{listed}");
    ensure!(echo.iter().all(|row| row["reply"]["dst"] == RT_RIGHT4), "{listed}");
    let table = running.json(&["conntrack", "show"])?;
    let is_carried = |row: &&serde_json::Value| row["carried"] == true;
    ensure!(
        table.as_array().is_some_and(|it| it.iter().filter(is_carried).count() == 3),
        "{table}"
    );
    Ok(())
}

/// The entry lives as long as packets are carried, and ends with them.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn time_outs_of_echo_are_renewed_while_packets_are_carried() -> Result<()> {
    let lab = Lab::up()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start(&lab)?;
    lab.router.sysctl("net/netfilter/nf_conntrack_icmp_timeout", "3")?;
    let ping = Pinging::start(&lab.left, &format!("-i 0.05 {RIGHT4}"))?;
    ensure!(are_carried(&running, &[&ping]), "the kernel forwards: {}", running.account());
    let entries = || lab.router.run("conntrack -L -p icmp");
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(250));
        ensure!(entries()?.contains("id="), "it expired");
    }
    ensure!(are_carried(&running, &[&ping]), "the kernel forwards: {}", running.account());
    drop(ping);
    ensure!(eventually(|| entries().is_ok_and(|it| !it.contains("id="))), "{}", entries()?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_deleted_entry_and_a_rule_end_a_carried_ping() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    let ping = Pinging::start(&lab.left, &format!("-i 0.005 {RIGHT4}"))?;
    ensure!(are_carried(&running, &[&ping]), "the kernel forwards: {}", running.account());
    let stops = |what: &str, allowed_ms: u64| -> Result<()> {
        let done = Instant::now();
        let after = ping.end()?.saturating_duration_since(done);
        ensure!(after < Duration::from_millis(allowed_ms), "{what}: {after:?}");
        Ok(())
    };
    lab.router.run("nft insert rule inet fw forward icmp type echo-request drop")?;
    stops("a rule", 50)?;
    nft(&lab.router, &format!("flush ruleset\n{STATEFUL}"))?;
    ensure!(ping.goes_on() && are_carried(&running, &[&ping]), "{}", running.account());
    nft(&lab.router, CLOSED)?;
    ensure!(ping.goes_on() && are_carried(&running, &[&ping]), "{}", running.account());
    lab.router.run("conntrack -D -p icmp")?;
    stops("conntrack -D", 100)
}

/// An echo request as the left host sends it.
fn echo(id: u16, sequence: u16, checksum_error: u16) -> Vec<u8> {
    let [left, right] = [Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(198, 18, 2, 2)];
    let mut message = vec![8, 0, 0, 0];
    message.extend([id.to_be_bytes(), sequence.to_be_bytes()].concat());
    message.extend([7; 24]);
    let check = checksum(&message).wrapping_add(checksum_error);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let packet = Ipv4::new(left, right, ICMP).packet(&message);
    ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &packet)
}

/// The protocols of IPv4 packets that the router has sent to the right.
fn received(tap: &Tap) -> Vec<u8> {
    let frames = std::iter::from_fn(|| tap.receive());
    let sent = frames
        .filter(|frame| frame[6..12] == mac::RT_RIGHT && be16(frame, 12) == Some(ETHERTYPE_IPV4));
    sent.filter_map(|frame| frame.get(14 + 9).copied()).collect()
}

/// The kernel calls it invalid, and a rule drops it.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn echo_with_a_wrong_checksum_is_invalid() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    let ping = Pinging::start(&lab.left, &format!("-i 0.02 -e 77 {RIGHT4}"))?;
    ensure!(are_carried(&running, &[&ping]), "the kernel forwards: {}", running.account());
    drop(ping);
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let invalid = || -> Result<u64> {
        let listed = lab.router.run("nft list chain inet fw forward")?;
        let rule = listed.lines().find(|line| line.contains("invalid")).context("the rule")?;
        let count = rule.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        Ok(count.context("a count")?.parse()?)
    };
    for n in 0..20 {
        left.send(&echo(77, n, 0))?;
        left.send(&echo(77, n, 0x101))?;
        thread::sleep(Duration::from_millis(5));
    }
    ensure!(eventually(|| invalid().is_ok_and(|count| count == 20)), "{} of 20", invalid()?);
    let passed = received(&right).iter().filter(|protocol| **protocol == ICMP).count();
    ensure!(passed == 20, "{passed} of 20");
    Ok(())
}

/// Ends of tunnels on both sides of the router.
struct TunnelEnds {
    left: Tap,
    right: Tap,
}

impl TunnelEnds {
    fn open(lab: &Lab) -> Result<TunnelEnds> {
        // Nobody answers for this one but the test.
        lab.router.run(
            "ip neigh replace 198.18.2.77 lladdr 02:f0:00:00:02:02 dev rt-right nud permanent",
        )?;
        lab.right.sysctl("net/ipv4/ip_forward", "0")?;
        Ok(TunnelEnds {
            left: Tap::open(&lab.left, "left")?,
            right: Tap::open(&lab.right, "right")?,
        })
    }

    /// Each side sends a packet of each tunnel.
    fn exchange(&self, protocols: &[u8]) -> Result<()> {
        let [host, public, peer] =
            [Ipv4Addr::new(198, 18, 1, 2), RT_RIGHT4.parse()?, Ipv4Addr::new(198, 18, 2, 77)];
        let payload = |protocol: u8| match protocol {
            // GRE of version 0, and an inner packet that nobody looks at.
            47 => [&[0, 0, 8, 0][..], &[0x45; 40]].concat(),
            _ => vec![0x45; 60],
        };
        for protocol in protocols {
            let out = Ipv4::new(host, peer, *protocol).packet(&payload(*protocol));
            self.left.send(&ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &out))?;
        }
        thread::sleep(Duration::from_millis(20));
        for protocol in protocols {
            let back = Ipv4::new(peer, public, *protocol).packet(&payload(*protocol));
            self.right.send(&ethernet(mac::RT_RIGHT, mac::RIGHT, ETHERTYPE_IPV4, &back))?;
        }
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }
}

/// Each side sends packets of a tunnel, and the kernel forwards none after some seconds.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn tunnels_that_pass_the_router_are_carried() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    let ends = TunnelEnds::open(&lab)?;
    let protocols = [4, 47, 50];
    let exchange = || ends.exchange(&protocols);
    if ferroute::by_kernel() {
        return exchange();
    }
    let are_carried = || {
        let before = running.forwarded_by_kernel().ok();
        (0..20).all(|_| exchange().is_ok())
            && running.forwarded_by_kernel().ok() == before
            && carried(&running).is_ok_and(|carried| carried == 3)
    };
    ensure!(eventually(are_carried), "{}\n{}", running.account(), lab.router.run("conntrack -L")?);
    let offloaded_before = offloaded(&running)?;
    ends.right.drain();
    for _ in 0..40 {
        exchange()?;
    }
    let passed = received(&ends.right);
    for protocol in protocols {
        let frames = passed.iter().filter(|passed| **passed == protocol).count();
        ensure!(frames == 40, "{frames} of 40 of {protocol}");
    }
    // On a veth, the program leaves tunnels with IP packets to workers; ESP is opaque.
    ensure!(offloaded(&running)? >= offloaded_before + 60, "{}", running.json(&["stat"])?);
    Ok(())
}

/// While there is a flood of pings with changing identifiers, the kernel has all of them, and workers have tunnels.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_flood_of_single_pings_leaves_echo_to_the_kernel() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start(&lab)?;
    let ends = TunnelEnds::open(&lab)?;
    let ping = Pinging::start(&lab.left, &format!("-i 0.05 {RIGHT4}"))?;
    let has = |count| carried(&running).is_ok_and(|carried| carried == count);
    let are_both_carried = || ends.exchange(&[50]).is_ok() && has(2);
    ensure!(eventually(are_both_carried), "the kernel forwards: {}", running.account());
    let mut id = 0u16;
    let is_given_up = || {
        for _ in 0..4000 {
            id = id.wrapping_add(1);
            let _sent = ends.left.send(&echo(id, 1, 0));
        }
        has(1)
    };
    ensure!(eventually(is_given_up), "{}", running.json(&["status"])?);
    ensure!(ping.goes_on(), "no answers: {}", running.account());
    drop(ping);
    let is_tunnel_carried = || {
        let before = running.forwarded_by_kernel().ok();
        (0..20).all(|_| ends.exchange(&[50]).is_ok())
            && running.forwarded_by_kernel().ok() == before
            && has(1)
    };
    ensure!(eventually(is_tunnel_carried), "the kernel forwards: {}", running.account());
    Ok(())
}
