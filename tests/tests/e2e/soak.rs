//! Traffic of every kind while links flap: afterwards every packet and every frame is accounted for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::ping::ping_all;
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually};
use serde_json::Value;

use crate::queues::lopsided;

const FLAPS: usize = 8;

/// The sum of an object's numbers.
fn total(object: &Value) -> u64 {
    object.as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

/// One counter of every port, added up.
fn of_ports(stat: &Value, counter: &str) -> Result<u64> {
    let ports = stat["ports"].as_array().context("no ports")?;
    let counts = ports.iter().map(|port| port["counters"][counter].as_u64());
    counts.sum::<Option<u64>>().with_context(|| format!("no {counter} in {stat}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_packet_and_frame_is_accounted_for() -> Result<()> {
    soak(&Lab::up()?, 1)
}

/// Packets cross between workers, if there is more than one.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_packet_is_accounted_for_where_ports_have_different_numbers_of_queues() -> Result<()> {
    soak(&lopsided((4, 2), (1, 1))?, 4)
}

/// So many streams of every kind.
fn soak(lab: &Lab, streams: usize) -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    // Else the kernel takes the IPv6 addresses off an interface that goes down.
    for port in ["rt-left", "rt-right"] {
        lab.router.sysctl(&format!("net/ipv6/conf/{port}/keep_addr_on_down"), "1")?;
    }
    let mut ferroute = Ferroute::start(lab)?;
    let frames_before = ferroute.json(&["stat"])?["frames"]["total"].as_u64();
    let pace = Duration::from_millis(1);
    let (left, right) = (&lab.left, &lab.right);
    let kinds =
        [(left, right, RIGHT4), (left, right, RIGHT6), (right, left, LEFT4), (right, left, LEFT6)];
    let streams = kinds.iter().cycle().take(4 * streams);
    let streams = streams.map(|(from, to, address)| Stream::start(from, to, address, pace));
    let streams: Vec<Stream> = streams.collect::<Result<_>>()?;
    for flap in 0..FLAPS {
        let port = ["rt-left", "rt-right"][flap % 2];
        lab.router.run(&format!("ip link set {port} down"))?;
        lab.router.run("ip route replace blackhole 203.0.113.0/24")?;
        std::thread::sleep(Duration::from_millis(200));
        lab.router.run(&format!("ip link set {port} up"))?;
        std::thread::sleep(Duration::from_millis(300));
    }
    for stream in &streams {
        ensure!(stream.flows(100), "nothing flows after the flaps");
    }
    for stream in streams {
        ensure!(stream.stop().duplicates == 0);
    }
    ensure!(ferroute.is_running());
    balanced(&ferroute, frames_before.context("no total of frames")?)?;
    ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT4}"))?;
    ferroute.terminate()
}

/// in + made = out + drops (before the TX ring) + punts + held, and no frame is lost.
fn balanced(ferroute: &Ferroute, frames_before: u64) -> Result<()> {
    let mut stat = Value::Null;
    let balanced = |stat: &Value| -> Result<bool> {
        let frames = &stat["frames"];
        let place = |name: &str| frames[name].as_u64().with_context(|| format!("no {name}"));
        let (all, free) = (place("total")?, place("free")?);
        let elsewhere = place("fill_and_rx")? + place("held")? + place("tx_and_completion")?;
        ensure!(all == frames_before, "{frames_before} frames have become {all}");
        ensure!(free + elsewhere == all, "frames do not add up: {frames}");

        let (rx, tx) = (of_ports(stat, "rx_packets")?, of_ports(stat, "tx_packets")?);
        // What the kernel could not send it had taken from the ring before: those count as sent, too.
        // Likewise what was on its way back to the kernel.
        let late = |reason: &str| stat["drops"][reason].as_u64().unwrap_or(0);
        let unsent = late("TX_ERROR") + late("PUNT_FAILED");
        let (drops, punts) = (total(&stat["drops"]) - unsent, total(&stat["punts"]));
        let made = stat["mib"]["IcmpOutMsgs"].as_u64().unwrap_or(0)
            + stat["mib"]["Icmp6OutMsgs"].as_u64().unwrap_or(0);
        let crossings = &stat["crossings"];
        ensure!(crossings["crossed_out"] == crossings["crossed_in"], "under way: {crossings}");
        Ok(rx + made == tx + drops + punts + place("held")?)
    };
    // Not while packets are under way.
    let settled = eventually(|| match ferroute.json(&["stat"]) {
        Ok(now) => {
            stat = now;
            balanced(&stat).unwrap_or(false)
        }
        Err(_) => false,
    });
    balanced(&stat)?;
    ensure!(settled, "in, out, drops and held do not add up: {stat:#}");
    Ok(())
}
