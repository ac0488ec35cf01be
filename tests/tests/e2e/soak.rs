//! Traffic of every kind while links flap: afterwards every packet and every frame is accounted for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::account::Account;
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::ping::ping_all;
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually};

use crate::queues::lopsided;

const FLAPS: usize = 8;

#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_packet_and_frame_is_accounted_for() -> Result<()> {
    soak(&Lab::up()?, 1)
}

/// Packets are handed over between workers, if there is more than one.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_packet_is_accounted_for_where_ports_have_different_numbers_of_queues() -> Result<()> {
    soak(&lopsided((4, 2), (1, 1))?, 4)
}

/// Runs this many streams of every kind.
fn soak(lab: &Lab, streams: usize) -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    // Otherwise the kernel removes the IPv6 addresses of an interface that goes down.
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

/// Every packet is in one place, and no frame is lost.
fn balanced(ferroute: &Ferroute, frames_before: u64) -> Result<()> {
    let mut account = Account::new(ferroute.json(&["stat"])?);
    // Not while packets are in flight.
    let settled = eventually(|| match ferroute.json(&["stat"]) {
        Ok(now) => {
            account = Account::new(now);
            account.is_settled().unwrap_or(false)
        }
        Err(_) => false,
    });
    ensure!(settled, "packets remain in flight: {:#}", account.stat());
    let frames = account.stat()["frames"]["total"].as_u64().context("no total of frames")?;
    ensure!(frames == frames_before, "{frames_before} frames have become {frames}");
    account.agrees()
}
