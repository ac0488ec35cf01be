//! Several queues: each is served, or the start is refused; none is silently lost.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{self, ETHERTYPE_IPV4, Ipv4, be16, ethernet, udp};
use ferroute_tests::ping::ping_all;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab};

/// Flows enough that every queue gets some of them.
const FLOWS: u16 = 400;

/// Sends one packet of each flow and fails unless every one arrives.
fn all_arrive(lab: &Lab) -> Result<()> {
    ping_all(&lab.left, "-c 1 -W 5 198.18.2.2")?;
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let (src, dst) = (Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(198, 18, 2, 2));
    for port in 0..FLOWS {
        let datagram = udp(&src.octets(), &dst.octets(), (1000 + port, 4242), b"queue");
        let packet = Ipv4::new(src, dst, packet::UDP).packet(&datagram);
        left.send(&ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &packet))?;
        if port % 50 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut arrived = BTreeSet::new();
    right.wait_for(Duration::from_secs(10), |frame| {
        let ours = be16(frame, 12) == Some(ETHERTYPE_IPV4)
            && be16(frame, 36) == Some(4242)
            && frame[6..12] == mac::RT_RIGHT;
        arrived.extend(ours.then(|| be16(frame, 34)).flatten());
        arrived.len() == usize::from(FLOWS)
    });
    ensure!(arrived.len() == usize::from(FLOWS), "{} of {FLOWS} flows arrive", arrived.len());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn two_queues_are_both_served() -> Result<()> {
    let lab = Lab::with_queues(2)?;
    let ferroute = Ferroute::start(&lab)?;
    all_arrive(&lab)?;
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn more_queues_than_workers_are_served_or_refused() -> Result<()> {
    let lab = Lab::with_queues(4)?;
    if ferroute_tests::ferroute::by_kernel() {
        return all_arrive(&lab);
    }
    for more in [&["--cpus", "0"][..], &["--queues", "1"], &["--cpus", "0,1"]] {
        let args: Vec<&str> =
            ["-i", "rt-left", "-i", "rt-right"].iter().chain(more).copied().collect();
        match Ferroute::launch(&lab.router, &args)?.settled()? {
            Ok(mut running) => {
                all_arrive(&lab)?;
                running.terminate()?;
            }
            Err(said) => ensure!(said.contains("queue"), "{more:?}: {said}"),
        }
    }
    Ok(())
}
