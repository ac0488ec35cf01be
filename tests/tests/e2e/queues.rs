//! Several queues: each is served, or the start is refused; no queue is lost silently.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{self, ETHERTYPE_IPV4, Ipv4, be16, ethernet, udp};
use ferroute_tests::ping::ping_all;
use ferroute_tests::tap::Tap;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, Netns, eventually};
use serde_json::Value;

/// Enough flows for every queue to get some.
const FLOWS: u16 = 400;

/// Packets per flow in tests of their order.
const ROUNDS: u16 = 10;

/// Flows whose packets are interleaved.
const GROUP: u16 = 40;

/// Maximum packets in flight: the ring of a veth's queue has room for 256, and is not emptied while a
/// thread is without its CPU. Each flow still has several packets in flight.
const WINDOW: u16 = 150;

/// A direction through the lab.
#[derive(Clone, Copy)]
pub enum Direction {
    ToRight,
    ToLeft,
}

/// Sends `rounds` packets of each flow and fails unless all arrive, those of each flow in order.
pub fn all_arrive(lab: &Lab, direction: Direction, rounds: u16) -> Result<()> {
    ping_all(&lab.left, "-c 1 -W 5 198.18.2.2")?;
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let (here, there) = (Ipv4Addr::new(198, 18, 1, 2), Ipv4Addr::new(198, 18, 2, 2));
    let (from, to, src, dst, head, router) = match direction {
        Direction::ToRight => (left, right, here, there, (mac::RT_LEFT, mac::LEFT), mac::RT_RIGHT),
        Direction::ToLeft => (right, left, there, here, (mac::RT_RIGHT, mac::RIGHT), mac::RT_LEFT),
    };
    let mut arrivals = Arrivals { tap: to, router, flows: BTreeMap::new(), count: 0 };
    let numbers = (0..FLOWS).step_by(GROUP.into()).flat_map(|first| {
        (0..rounds).flat_map(move |round| (first..first + GROUP).map(move |flow| (flow, round)))
    });
    for (sent, (flow, round)) in (0u16..).zip(numbers) {
        arrivals.wait(sent.saturating_sub(WINDOW))?;
        let datagram = udp(&src.octets(), &dst.octets(), (1000 + flow, 4242), &round.to_be_bytes());
        let packet = Ipv4::new(src, dst, packet::UDP).packet(&datagram);
        from.send(&ethernet(head.0, head.1, ETHERTYPE_IPV4, &packet))?;
    }
    arrivals.wait(FLOWS * rounds)?;
    let order: Vec<u16> = (0..rounds).collect();
    let mixed = arrivals.flows.iter().find(|(_, rounds)| **rounds != order);
    ensure!(mixed.is_none(), "a flow comes out of order: {mixed:?}");
    Ok(())
}

/// Packets received by the taps.
struct Arrivals {
    tap: Tap,
    /// MAC address of the router's port that sent them.
    router: [u8; 6],
    /// The rounds of each flow in the order of arrival.
    flows: BTreeMap<u16, Vec<u16>>,
    count: u16,
}

impl Arrivals {
    /// Waits until `wanted` packets have arrived.
    fn wait(&mut self, wanted: u16) -> Result<()> {
        let Arrivals { tap, router, flows, count } = self;
        if *count < wanted {
            tap.wait_for(EVENT_TIMEOUT, |frame| {
                let ours = be16(frame, 12) == Some(ETHERTYPE_IPV4)
                    && be16(frame, 36) == Some(4242)
                    && frame[6..12] == *router;
                if let Some((flow, round)) = be16(frame, 34).zip(be16(frame, 42)).filter(|_| ours) {
                    flows.entry(flow).or_default().push(round);
                    *count += 1;
                }
                *count >= wanted
            });
        }
        ensure!(*count >= wanted, "{count} packets arrived, expected {wanted}");
        Ok(())
    }
}

/// Numbers of receive and transmit queues.
pub type Queues = (u32, u32);

pub fn set_queues(netns: &Netns, port: &str, (rx, tx): Queues) -> Result<String> {
    netns.run(&format!("ethtool -L {port} rx {rx} tx {tx}"))
}

/// A lab with four queues everywhere, except for the given numbers on the router's ports. The hosts have no
/// more transmit queues than the ports have receive queues, as XDP on a veth requires.
pub fn lopsided(left: Queues, right: Queues) -> Result<Lab> {
    let lab = Lab::with_queues(4)?;
    for (host, name, port, queues) in
        [(&lab.left, "left", "rt-left", left), (&lab.right, "right", "rt-right", right)]
    {
        set_queues(&lab.router, port, queues)?;
        if queues.0 < 4 {
            set_queues(host, name, (4, queues.0))?;
        }
    }
    Ok(lab)
}

/// Fails unless every queue of the port has one worker, and every worker sends through one worker. Returns the
/// number of workers.
fn served_once(ferroute: &Ferroute, ifname: &str, (rx, tx): Queues) -> Result<u64> {
    let status = ferroute.json(&["status"])?;
    let workers = status["workers"].as_array().context("no workers")?;
    let port = |worker: &Value| -> Result<(Vec<u64>, u64)> {
        let ports = worker["ports"].as_array().context("no ports")?;
        let port = ports.iter().find(|port| port["ifname"] == ifname).context("no such port")?;
        let queues = port["queues"].as_array().into_iter().flatten().filter_map(Value::as_u64);
        Ok((queues.collect(), port["sends_by"].as_u64().context("no sender")?))
    };
    let ports: Vec<(Vec<u64>, u64)> = workers.iter().map(port).collect::<Result<_>>()?;
    let mut queues: Vec<u64> = ports.iter().flat_map(|(queues, _)| queues.clone()).collect();
    queues.sort_unstable();
    ensure!(queues == (0..u64::from(rx)).collect::<Vec<_>>(), "{ifname}: {status:#}");
    for (_, by) in &ports {
        let sends = ports.get(*by as usize).and_then(|(queues, _)| queues.iter().min());
        ensure!(sends.is_some_and(|queue| *queue < u64::from(tx)), "{ifname}: {status:#}");
    }
    Ok(workers.len() as u64)
}

/// The number of packets handed over between workers; none may be lost in the handoff.
fn crossed(ferroute: &Ferroute) -> Result<u64> {
    let settled = || {
        let stat = ferroute.json(&["stat"]).ok()?;
        let handoffs = &stat["handoffs"];
        let out = handoffs["handed_over_out"].as_u64()?;
        (handoffs["handed_over_in"].as_u64()? == out && stat["drops"]["CPU_BACKLOG"] == 0)
            .then_some(out)
    };
    ensure!(eventually(|| settled().is_some()), "{}", ferroute.account());
    settled().context("packets are still being handed over")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn two_queues_are_both_served() -> Result<()> {
    let lab = Lab::with_queues(2)?;
    let ferroute = Ferroute::start(&lab)?;
    all_arrive(&lab, Direction::ToRight, ROUNDS)?;
    if !ferroute_tests::ferroute::by_kernel() {
        served_once(&ferroute, "rt-left", (2, 2))?;
        ensure!(crossed(&ferroute)? == 0, "a worker has a queue on either port");
    }
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn ports_with_different_numbers_of_queues_are_served_and_flows_stay_in_order() -> Result<()> {
    for (left, right) in [((4, 4), (1, 1)), ((4, 1), (2, 2)), ((3, 2), (4, 4))] {
        let lab = lopsided(left, right)?;
        let mut ferroute = Ferroute::start(&lab)?;
        all_arrive(&lab, Direction::ToRight, ROUNDS).with_context(|| ferroute.account())?;
        all_arrive(&lab, Direction::ToLeft, ROUNDS).with_context(|| ferroute.account())?;
        if ferroute_tests::ferroute::by_kernel() {
            continue;
        }
        let workers = served_once(&ferroute, "rt-left", left)?;
        served_once(&ferroute, "rt-right", right)?;
        // Of 400 flows every worker gets some.
        let few = u64::from(left.0.min(left.1).min(right.0).min(right.1));
        let crossed = crossed(&ferroute)?;
        ensure!((crossed > 0) == (workers > few), "{crossed} of {workers} workers crossed");
        ferroute.forwarded_all_itself()?;
        ferroute.terminate()?;
        ensure!(!ferroute.said().contains("lost frames"), "{}", ferroute.said());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn added_queues_are_served_and_those_in_use_cannot_be_removed() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = lopsided((4, 4), (1, 1))?;
    let mut ferroute = Ferroute::start(&lab)?;
    all_arrive(&lab, Direction::ToRight, 1)?;
    set_queues(&lab.router, "rt-right", (4, 4))?;
    set_queues(&lab.right, "right", (4, 4))?;
    let grown = || served_once(&ferroute, "rt-right", (4, 4)).is_ok();
    ensure!(eventually(grown), "{}", ferroute.ask(&["status"])?);
    all_arrive(&lab, Direction::ToRight, ROUNDS).with_context(|| ferroute.account())?;
    let itself = ferroute.forwarded_by_kernel()?;
    all_arrive(&lab, Direction::ToLeft, ROUNDS).with_context(|| ferroute.account())?;
    // A change that the driver refuses has no effect.
    ensure!(set_queues(&lab.router, "rt-right", (1, 1)).is_err(), "a queue in use was taken away");
    ensure!(set_queues(&lab.router, "rt-left", (99, 99)).is_err(), "there are 99 queues");
    all_arrive(&lab, Direction::ToRight, ROUNDS).with_context(|| ferroute.account())?;
    let now = ferroute.forwarded_by_kernel()?;
    ensure!(now == itself, "the kernel forwards: {itself:?}, {now:?}\n{}", ferroute.account());
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn impossible_queues_and_cpus_are_refused() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::with_queues(2)?;
    for (more, said) in [
        ("--queues 1", "set the number (ethtool -L rt-left rx 1 tx 1), or leave --queues out"),
        ("--queues 3", "can have 2 at most"),
        ("--queues 0", "expected 1 to 256"),
        ("--queues 257", "expected 1 to 256"),
        ("--queues two", "two"),
        ("--cpus 8191", "cannot run a worker on CPU 8191"),
        ("--cpus 9999", "is too large"),
        ("--cpus 0,0", "named twice"),
        ("--cpus 1-", "expected CPU numbers"),
    ] {
        let args = format!("-i rt-left -i rt-right {more}");
        let args: Vec<&str> = args.split_whitespace().collect();
        let refusal = Ferroute::refusal(&lab.router, &args)?;
        ensure!(refusal.contains(said), "{more}: {refusal}");
    }
    // Nothing was left behind.
    Ferroute::start_with(&lab, &["--queues", "2"])?.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn more_queues_than_workers_are_served_or_refused() -> Result<()> {
    let lab = Lab::with_queues(4)?;
    if ferroute_tests::ferroute::by_kernel() {
        return all_arrive(&lab, Direction::ToRight, 1);
    }
    for more in [&["--cpus", "0"][..], &["--queues", "1"], &["--cpus", "0,1"]] {
        let args: Vec<&str> =
            ["-i", "rt-left", "-i", "rt-right"].iter().chain(more).copied().collect();
        match Ferroute::launch(&lab.router, &args)?.settled()? {
            Ok(mut running) => {
                all_arrive(&lab, Direction::ToRight, 1)?;
                running.terminate()?;
            }
            Err(said) => ensure!(said.contains("queue"), "{more:?}: {said}"),
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn missing_veth_features_are_reported_and_the_doctor_knows_the_workers_queues() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::with_queues(2)?;
    let mut ferroute = Ferroute::start_with(&lab, &["--pin-irqs"])?;
    all_arrive(&lab, Direction::ToRight, 1)?;
    ensure!(ferroute.said().contains("rt-left: no interrupt to pin"), "{}", ferroute.said());
    let output = ferroute.command(&["-j", "doctor", "-i", "rt-left"]).output()?;
    let findings: Value = serde_json::from_slice(&output.stdout)?;
    for check in ["queues", "rss", "irq"] {
        let found = findings.as_array().into_iter().flatten().find(|f| f["check"] == check);
        let level = found.map(|finding| &finding["level"]);
        ensure!(level.is_some_and(|level| level == "ok"), "{check}: {findings:#}");
    }
    ferroute.terminate()
}
