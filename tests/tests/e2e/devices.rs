//! `link show -d`: devices are shown as by `ip`, `ethtool` and the kernel's files, together with their
//! ports.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::LEFT4;
use ferroute_tests::ping::ping_each;
use ferroute_tests::{Ferroute, Lab, ferroute::by_kernel};
use serde_json::Value;

/// The router's left port, as shown by `link show -d`.
fn details(ferroute: &Ferroute) -> Result<Value> {
    Ok(ferroute.json(&["link", "show", "-d", "dev", "rt-left"])?[0].take())
}

/// The same, as shown by `ip`.
fn by_ip(lab: &Lab) -> Result<Value> {
    let mut links: Value = serde_json::from_str(&lab.router.run("ip -d -j link show rt-left")?)?;
    Ok(links[0].take())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_device_is_shown_as_ip_shows_it() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::with_queues(2)?;
    let ferroute = Ferroute::start(&lab)?;
    for promisc in ["off", "on"] {
        lab.router.run(&format!("ip link set rt-left promisc {promisc} allmulticast {promisc}"))?;
        let (ours, theirs) = (details(&ferroute)?, by_ip(&lab)?);
        for key in ["ifindex", "ifname", "mtu", "address", "max_mtu", "num_rx_queues"] {
            ensure!(ours[key] == theirs[key] && !ours[key].is_null(), "{key}: {ours}\n{theirs}");
        }
        // `ip` of Debian 12 does not show all of them.
        for key in ["promiscuity", "allmulti", "num_tx_queues"] {
            ensure!(theirs[key].is_null() || ours[key] == theirs[key], "{key}: {ours}\n{theirs}");
        }
        ensure!(ours["promiscuity"] == u64::from(promisc == "on"), "{ours}");
    }
    let maddr: Value = serde_json::from_str(&lab.router.run("ip -j maddr show dev rt-left")?)?;
    let theirs = maddr[0]["maddr"].as_array().context("no list")?.iter();
    let theirs: BTreeSet<&str> = theirs.filter_map(|entry| entry["link"].as_str()).collect();
    let ours = details(&ferroute)?;
    let ours = ours["multicast"].as_array().context("no list")?.iter();
    let ours: BTreeSet<&str> = ours.filter_map(|entry| entry["address"].as_str()).collect();
    ensure!(!ours.is_empty() && ours == theirs, "{ours:?} {theirs:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_device_is_shown_as_ethtool_shows_it_and_nothing_is_invented() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::with_queues(2)?;
    let ferroute = Ferroute::start(&lab)?;
    for state in ["on", "off"] {
        lab.router.run(&format!("ethtool -K rt-left tx-nocache-copy {state}"))?;
        let ours = details(&ferroute)?;
        let features = ours["features"].as_array().context("no list")?;
        let feature = features.iter().find(|feature| feature["name"] == "tx-nocache-copy");
        ensure!(
            feature.is_some_and(|f| f["on"] == (state == "on") && f["fixed"] == false),
            "{ours}"
        );
    }
    let ours = details(&ferroute)?;
    ensure!(ours["driver"]["driver"] == "veth", "{ours}");
    ensure!(ours["channels"]["now"]["rx"] == 2 && ours["channels"]["now"]["tx"] == 2, "{ours}");
    // A veth has no rings, no interrupts, no coalescing to set.
    ensure!(ours["rings"].is_null() && ours["coalescing"].is_null(), "{ours}");
    let napis = ours["napi"].as_array().context("no list")?;
    ensure!(napis.iter().all(|napi| napi["irq"].is_null()), "{ours}");
    let ids: BTreeSet<u64> = napis.iter().filter_map(|napi| napi["id"].as_u64()).collect();
    ensure!(ids.len() == napis.len() && (ids.is_empty() || ids.len() == 2), "{ours}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_is_shown_with_its_mode_sockets_and_counters() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::with_queues(2)?;
    for (mode, why) in [("auto", "veth"), ("copy", "--mode copy")] {
        let mut ferroute = Ferroute::start_with(&lab, &["--mode", mode])?;
        ping_each(&lab.right, LEFT4, 5).with_context(|| ferroute.account())?;
        let port = details(&ferroute)?["port"].take();
        ensure!(port["xdp"] == "native" && port["bind"] == "copy", "{port}");
        ensure!(port["no_zerocopy"].as_str().is_some_and(|text| text.contains(why)), "{port}");
        let sockets = port["sockets"].as_array().context("no list")?;
        let queues: BTreeSet<u64> = sockets.iter().filter_map(|s| s["queue"].as_u64()).collect();
        ensure!(queues == BTreeSet::from([0, 1]), "{port}");
        ensure!(port["rx_ring"] == 2048 && port["tx_ring"] == 2048, "{port}");
        ensure!(port["last_tx_ms"].is_u64(), "{port}");
        ensure!(port["counters"]["tx_packets"].as_u64() >= Some(5), "{port}");
        ensure!(port["counters"]["rx_packets"].as_u64() >= Some(5), "{port}");
        let text = ferroute.ask(&["link", "show", "-d"])?;
        for expected in ["promiscuity 0", "driver veth", "port forwarding", "last transmit "] {
            ensure!(text.contains(expected), "{expected}: {text}");
        }
        // Without -d no details, and an interface that is not a port has no port details.
        ensure!(!ferroute.ask(&["link", "show"])?.contains("promiscuity"));
        let lo = ferroute.json(&["link", "show", "-d", "dev", "lo"])?;
        ensure!(lo[0]["port"].is_null() && lo[0]["promiscuity"] == 0, "{lo}");
        ferroute.terminate()?;
    }
    Ok(())
}
