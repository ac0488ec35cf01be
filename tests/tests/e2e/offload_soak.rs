//! Routes, neighbours, rules, links and settings change at random while offloaded flows pass: each packet leaves by a
//! way that was valid shortly before, none twice, and none is lost while nothing changes.
//!
//! `FERROUTE_SEED` repeats a run, `FERROUTE_SOAK_SECONDS` makes it longer.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::{addr, mac};
use ferroute_tests::packet::{ETHERTYPE_IPV4, Ipv4, UDP, be16, ethernet, udp};
use ferroute_tests::rng::{Rng, seed};
use ferroute_tests::tap::{self, Tap};
use ferroute_tests::{Ferroute, Lab, ferroute};

use crate::offload::{OFFLOAD, lab_with_gro, offloaded};

/// How long a change may take until it is followed.
const DELAY: Duration = Duration::from_millis(50);
/// How long before and after a packet nothing may have changed for its loss to be an error.
const STILL: Duration = Duration::from_millis(80);
const PACE: Duration = Duration::from_micros(500);
const SECONDS: u64 = 10;

/// Two gateways, the first of which has two addresses at different times.
const GATEWAYS: [&str; 2] = ["198.18.2.2", "198.18.2.3"];
const MACS: [[u8; 6]; 3] = [mac::RIGHT, [2, 0xf0, 0, 0, 2, 0xb], [2, 0xf0, 0, 0, 2, 0xc]];
/// Destinations of one /24; the first one has a route of its own at times.
const DESTINATIONS: [[u8; 4]; 3] = [[203, 0, 113, 5], [203, 0, 113, 6], [203, 0, 113, 200]];
const NETWORK: &str = "203.0.113.0/24";
const SPECIFIC: &str = "203.0.113.5/32";

/// What the router is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// Gateway of the network, and of the first destination; `None`: a blackhole.
    network: Option<usize>,
    specific: Option<Option<usize>>,
    /// The first gateway has its other address.
    is_moved: bool,
    /// Something else lets nothing pass.
    is_closed: bool,
}

impl State {
    /// The address that packets to a destination leave to.
    fn way(&self, destination: usize) -> Option<[u8; 6]> {
        let gateway = match self.specific {
            Some(gateway) if destination == 0 => gateway,
            _ => self.network,
        };
        let gateway = gateway.filter(|_| !self.is_closed)?;
        Some(if gateway == 0 && self.is_moved { MACS[2] } else { MACS[gateway] })
    }
}

/// States, and when the commands began and ended that made them.
type History = Vec<(Instant, Instant, State)>;

/// A packet that arrived: not before the first and not after the second time.
struct Arrival {
    times: [Instant; 2],
    to: [u8; 6],
    number: u32,
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn offloaded_packets_take_the_way_that_is_valid() -> Result<()> {
    let lab = lab_with_gro()?;
    for (host, port) in [(&lab.left, "left"), (&lab.right, "right")] {
        host.run(&format!("ip addr flush dev {port}"))?;
    }
    lab.router.run(&format!(
        "ip neigh replace {} dev rt-left lladdr 02:f0:00:00:01:02 nud permanent",
        addr::LEFT4
    ))?;
    let first = State { network: Some(0), specific: None, is_moved: false, is_closed: false };
    neighbours(&lab, false)?;
    lab.router.run(&format!("ip route add {NETWORK} via {}", GATEWAYS[0]))?;
    let mut running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (seed, is_over) = (seed(), AtomicBool::new(false));
    println!("seed {seed}");
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let begun = Instant::now();
    let (sent, arrived, history) = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| send(&left, &is_over));
        let receiver = scope.spawn(|| receive(&right, &is_over));
        let history = change(&lab, first, begun, &mut Rng::new(seed));
        is_over.store(true, Relaxed);
        let sent = sender.join().expect("it does not panic")?;
        Ok((sent, receiver.join().expect("it does not panic"), history?))
    })?;
    ensure!(running.is_running(), "it has ended: {}", running.said());
    judge(&sent, &arrived, &history)?;
    let by_program = offloaded(&running)?;
    println!("{} sent, {} arrived, {by_program} offloaded", sent.len(), arrived.len());
    ensure!(by_program > arrived.len() as u64 / 3, "hardly any packet was offloaded: {by_program}");
    running.terminate()
}

fn neighbours(lab: &Lab, is_moved: bool) -> Result<()> {
    for (gateway, mac) in [(0, MACS[if is_moved { 2 } else { 0 }]), (1, MACS[1])] {
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        let gateway = GATEWAYS[gateway];
        lab.router
            .run(&format!("ip neigh replace {gateway} dev rt-right lladdr {mac} nud permanent"))?;
    }
    Ok(())
}

/// Sends numbered packets to all destinations. Returns when each was sent, and to which.
fn send(tap: &Tap, is_over: &AtomicBool) -> Result<Vec<[Instant; 2]>> {
    let source: Ipv4Addr = addr::LEFT4.parse().context("an address")?;
    let mut sent = Vec::new();
    while !is_over.load(Relaxed) {
        let to = Ipv4Addr::from(DESTINATIONS[sent.len() % DESTINATIONS.len()]);
        let data = (sent.len() as u32).to_be_bytes();
        let datagram = udp(&source.octets(), &to.octets(), (1000, 7), &data);
        let packet = Ipv4::new(source, to, UDP).packet(&datagram);
        let before = Instant::now();
        tap.send(&ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &packet))?;
        sent.push([before, Instant::now()]);
        thread::sleep(PACE);
    }
    Ok(sent)
}

/// Receives until some time after the end.
fn receive(tap: &Tap, is_over: &AtomicBool) -> Vec<Arrival> {
    let mut arrived = Vec::new();
    let mut empty = Instant::now();
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        if end.is_none() && is_over.load(Relaxed) {
            end = Some(Instant::now() + Duration::from_millis(500));
        }
        let since = empty;
        while let Some(frame) = tap.receive() {
            let is_its = frame.get(6..12) == Some(&mac::RT_RIGHT)
                && be16(&frame, 12) == Some(ETHERTYPE_IPV4)
                && be16(&frame, 36) == Some(7);
            if let (true, Some(number)) = (is_its, frame.get(42..46)) {
                arrived.push(Arrival {
                    times: [since, Instant::now()],
                    to: frame[..6].try_into().expect("six octets"),
                    number: u32::from_be_bytes(number.try_into().expect("four octets")),
                });
            }
        }
        empty = Instant::now();
        tap::wait(&[tap], Duration::from_millis(5));
    }
    arrived
}

/// Changes the router until the time is over.
fn change(lab: &Lab, first: State, begun: Instant, rng: &mut Rng) -> Result<History> {
    let seconds = std::env::var("FERROUTE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = begun + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mut history = vec![(begun, begun, first)];
    let mut state = first;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(50 + rng.below(200) as u64));
        let mut steps = Vec::new();
        let route = |prefix: &str, gateway: Option<usize>| match gateway {
            Some(gateway) => format!("ip route replace {prefix} via {}", GATEWAYS[gateway]),
            None => format!("ip route replace blackhole {prefix}"),
        };
        let any = |rng: &mut Rng| rng.pick(&[Some(0), Some(0), Some(1), Some(1), None]);
        let open = state;
        let closed = State { is_closed: true, ..state };
        match rng.below(9) {
            0 | 1 => {
                state.network = any(rng);
                steps.push((route(NETWORK, state.network), state));
            }
            2 => {
                let gateway = any(rng);
                state.specific = Some(gateway);
                steps.push((route(SPECIFIC, gateway), state));
            }
            3 if state.specific.is_some() => {
                state.specific = None;
                steps.push((format!("ip route del {SPECIFIC}"), state));
            }
            3 | 4 => {
                state.is_moved = !state.is_moved;
                let mac = MACS[if state.is_moved { 2 } else { 0 }];
                let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
                let gateway = GATEWAYS[0];
                steps.push((
                    format!("ip neigh replace {gateway} dev rt-right lladdr {mac} nud permanent"),
                    state,
                ));
            }
            5 => {
                let rule = format!("to {NETWORK} prio 10 blackhole");
                steps.push((format!("ip rule add {rule}"), closed));
                steps.push((format!("ip rule del {rule}"), open));
            }
            6 => {
                let setting = "sysctl -qw net.ipv4.conf.rt-left.forwarding";
                steps.push((format!("{setting}=0"), closed));
                steps.push((format!("{setting}=1"), open));
            }
            7 => {
                steps.push((
                    "nft table ip x { chain f { type filter hook forward priority 0; udp dport 7 drop; }; }"
                        .into(),
                    closed,
                ));
                steps.push(("nft delete table ip x".into(), open));
            }
            _ => {
                // Neither of these changes the way.
                let mtu = 1300 + rng.below(200);
                steps.push((format!("ip link set rt-right mtu {mtu}"), open));
                let n = rng.below(250);
                steps.push((format!("ip route replace 10.7.{n}.0/24 via {}", GATEWAYS[1]), open));
            }
        }
        for (command, after) in steps {
            let before = Instant::now();
            lab.router.run(&command)?;
            history.push((before, Instant::now(), after));
            thread::sleep(Duration::from_millis(rng.below(150) as u64));
        }
    }
    Ok(history)
}

/// The states that the router may have been in between two times.
fn states(history: &History, from: Instant, until: Instant) -> impl Iterator<Item = &State> {
    let ends = history.iter().skip(1).map(|(_, done, _)| Some(*done)).chain([None]);
    let all = history.iter().zip(ends);
    all.filter(move |((began, ..), end)| *began <= until && end.is_none_or(|end| end >= from))
        .map(|((.., state), _)| state)
}

fn judge(sent: &[[Instant; 2]], arrived: &[Arrival], history: &History) -> Result<()> {
    let start = history.first().context("a first state")?.0;
    let at = |time: Instant| time.saturating_duration_since(start);
    let mut times: HashMap<u32, usize> = HashMap::new();
    for arrival in arrived {
        let Arrival { times: [since, until], to, number } = arrival;
        *times.entry(*number).or_default() += 1;
        let destination = *number as usize % DESTINATIONS.len();
        let mut valid = states(history, *since - DELAY, *until);
        ensure!(
            valid.any(|state| state.way(destination) == Some(*to)),
            "packet {number} to {:?} left to {to:x?} between {:?} and {:?}: {history:#?}",
            DESTINATIONS[destination],
            at(*since),
            at(*until),
        );
    }
    ensure!(times.values().all(|count| *count == 1), "packets arrived twice");
    for (number, [before, after]) in sent.iter().enumerate() {
        let mut ways = states(history, *before - STILL, *after + STILL)
            .map(|state| state.way(number % DESTINATIONS.len()).is_some());
        ensure!(
            ways.any(|is_open| !is_open) || times.contains_key(&(number as u32)),
            "packet {number}, sent at {:?}, did not arrive although nothing was closed: {history:#?}",
            at(*before),
        );
    }
    Ok(())
}
