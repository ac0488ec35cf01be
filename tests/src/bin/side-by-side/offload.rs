//! Flow offload to XDP: few and many flows, rulesets that track them, the rate of new flows, TCP.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::nft;
use ferroute_tests::lab::addr::{LEFT4, RIGHT4, RT_RIGHT4};
use ferroute_tests::{Ferroute, Lab};
use serde_json::Value;

use crate::Plan;
use crate::connections::{restore, status_kb};
use crate::rounds::{Entrant, Metric, Sample, Section};
use crate::veth::{Middle, Program, Running, half_load, load, neighbours};

const PLAIN_NOTE: &str = "\
Frames of 64 octets (84 of IPv6), 512 packets in flight, one direction; generator and sink are XDP programs. Each \
packet has the next destination address, or UDP source port where connections are tracked. Ferroute has been told to \
offload a flow from its first packet on. 64 and 100,000 destinations are behind one route, so that an entry stands for \
256. Before the row with 60,000 flows each /24 gets a second route, and a million flows are entered into the table: \
the rate of new flows is that of the first quarter, while a generator sent one packet of each as fast as it could. Connections are UDP, added to the kernel's table by `conntrack`; the ruleset of 1000 rules tests the \
source address before it accepts established ones.";
const PLAIN: [Metric; 9] = [
    Metric { key: "v4", title: "64 destinations, IPv4, kpps", digits: 0 },
    Metric { key: "v6", title: "64 destinations, IPv6, kpps", digits: 0 },
    Metric { key: "p50", title: "64 destinations, latency at half load, p50, µs", digits: 0 },
    Metric { key: "p99", title: "the same, p99, µs", digits: 0 },
    Metric { key: "p999", title: "the same, p99.9, µs", digits: 0 },
    Metric { key: "transit", title: "100,000 destinations, kpps", digits: 0 },
    Metric {
        key: "many",
        title: "60,000 destinations, among a million in the table, kpps",
        digits: 0,
    },
    Metric { key: "new", title: "new flows, 1000 per second", digits: 0 },
    Metric { key: "rss", title: "a million flows, memory of the process, MB", digits: 0 },
];
const TRACKED: [Metric; 3] = [
    Metric { key: "few", title: "64 connections, kpps", digits: 0 },
    Metric { key: "many", title: "60,000 connections, kpps", digits: 0 },
    Metric { key: "rules", title: "64 connections, behind 1000 rules, kpps", digits: 0 },
];
const TCP: [Metric; 4] = [
    Metric { key: "one", title: "one connection, Gbit/s", digits: 2 },
    Metric { key: "eight", title: "8 connections, Gbit/s", digits: 2 },
    Metric { key: "one-back", title: "one connection, other direction, Gbit/s", digits: 2 },
    Metric { key: "eight-back", title: "8 connections, other direction, Gbit/s", digits: 2 },
];
/// Flows in the table, and those of them that have packets.
const ENTERED: u64 = 1_000_000;
const ACTIVE: u32 = 60_000;
const TRANSIT: u32 = 100_000;
const FEW: u32 = 64;

const ON: [&str; 6] = ["--offload", "on", "--offload-threshold", "1", "--offload-flows", "1048576"];

fn entrant<'a>(
    name: &str,
    gives: &[&'static str],
    run: impl FnMut() -> Result<Sample> + 'a,
) -> Entrant<'a> {
    Entrant { name: name.into(), gives: gives.to_vec(), run: Box::new(run) }
}

/// The sections.
pub fn sections(plan: &Plan) -> Vec<Section<'_>> {
    let all: Vec<&str> = PLAIN.iter().map(|metric| metric.key).collect();
    let rates = &all[..7];
    let on = Middle::Ferroute(&ON);
    let off = Middle::Ferroute(&["--offload", "off"]);
    let plain =
        |name: &str, middle, gives| entrant(name, gives, move || measure_plain(plan, middle));
    let keys: Vec<&str> = TRACKED.iter().map(|metric| metric.key).collect();
    let tracked = |name: &str, middle| entrant(name, &keys, move || measure_tracked(plan, middle));
    let streams: Vec<&str> = TCP.iter().map(|metric| metric.key).collect();
    let tcp = |name: &str, middle| entrant(name, &streams, move || measure_tcp(plan, middle));
    vec![
        Section {
            title: "Flow offload on veth".into(),
            note: PLAIN_NOTE.into(),
            metrics: PLAIN.to_vec(),
            entrants: vec![
                plain("Ferroute, --offload on", on, &all),
                plain("XDP bpf_fib_lookup + redirect", Middle::XdpFib, rates),
                plain("kernel forwarding", Middle::Kernel, rates),
                plain("DPDK testpmd mac, net_af_xdp", Middle::Testpmd, &["v4"]),
            ],
        },
        Section {
            title: "Flow offload on veth, connections with masquerade".into(),
            note: PLAIN_NOTE.into(),
            metrics: TRACKED.to_vec(),
            entrants: vec![
                tracked("Ferroute, --offload on", on),
                tracked("kernel forwarding", Middle::Kernel),
            ],
        },
        Section {
            title: "TCP between namespaces".into(),
            note: "iperf3; hosts and router have the offloads that they have by default.".into(),
            metrics: TCP.to_vec(),
            entrants: vec![
                tcp("Ferroute, --offload on", on),
                tcp("Ferroute, --offload off", off),
                tcp("kernel forwarding", Middle::Kernel),
            ],
        },
    ]
}

/// A lab in which each port takes frames from XDP, with routes of many destinations.
fn lab(middle: Middle) -> Result<Lab> {
    let lab = Lab::up()?;
    for (host, port) in [(&lab.left, "left"), (&lab.right, "right")] {
        host.run(&format!("ethtool -K {port} gro on"))?;
    }
    neighbours(&lab, middle)?;
    for (destination, gateway) in [("10.0.0.0/8", RIGHT4), ("2001:db8:64::/48", "2001:db8:2::2")] {
        lab.router.run(&format!("ip route add {destination} via {gateway}"))?;
    }
    Ok(lab)
}

/// The options of `ferroute bench` for as many destinations.
fn to(is_ipv6: bool, destinations: u32) -> [String; 6] {
    let [first, last] = match is_ipv6 {
        false => [1, destinations].map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string()),
        true => [1, destinations].map(|n| format!("2001:db8:64::{:x}:{:x}", n >> 16, n & 0xffff)),
    };
    // pktgen's header needs 80 octets, and the FCS 4.
    let size = if is_ipv6 { "84" } else { "64" };
    let options = ["--dst", &first, "--dst-max", &last, "--sizes", size];
    options.map(str::to_owned)
}

/// Thousands of packets per second in a closed loop, after a trial that is not measured.
fn rate(plan: &Plan, lab: &Lab, more: &[&str]) -> Result<f64> {
    let trial = |seconds: &str| -> Result<f64> {
        let closed = [
            "--window",
            "512",
            "--repeat",
            "1",
            "--tests",
            "throughput",
            "--no-timestamp",
            "--duration",
        ];
        let answer = load(lab, &[&closed[..], &[seconds], more].concat())?;
        answer["closed"]["rate"]["pps"].as_f64().context("no rate")
    };
    trial("1")?;
    let pps = trial(if plan.quick { "1" } else { "3" })?;
    ensure!(pps > 0.0, "nothing came through");
    Ok(pps / 1e3)
}

fn measure_plain(plan: &Plan, middle: Middle) -> Result<Sample> {
    let lab = lab(middle)?;
    let running = Running::start(plan, &lab, middle)?;
    let few = to(false, FEW);
    let mut sample = Sample::from([("v4", rate(plan, &lab, &texts(&few))?)]);
    if middle == Middle::Testpmd {
        return Ok(sample);
    }
    sample.insert("v6", rate(plan, &lab, &texts(&to(true, FEW)))?);
    let seconds = if plan.quick { "0.5" } else { "3" };
    let closed = ["--window", "512", "--repeat", "1", "--tests", "latency", "--duration", seconds];
    let answer = load(&lab, &[&closed[..], &texts(&few)].concat())?;
    sample.extend(half_load(&answer)?);
    sample.insert("transit", rate(plan, &lab, &texts(&to(false, TRANSIT)))?);
    // Addresses around each destination have several routes: an entry stands for one only.
    let routes = (0..=ENTERED as u32 >> 8).fold(String::new(), |mut routes, prefix| {
        let host = std::net::Ipv4Addr::from(0x0a00_00ff + (prefix << 8));
        let _ = writeln!(routes, "route add {host}/32 via {RIGHT4} mtu 1499");
        routes
    });
    let file = plan.dir.join("routes");
    std::fs::write(&file, routes)?;
    lab.router.run(&format!("ip -batch {}", file.display()))?;
    if let Some(ferroute) = running.ferroute() {
        sample.insert("new", enter(&lab, ferroute)? / 1e3);
        let pid = ferroute.pid().context("no process")?;
        sample.insert("rss", status_kb(pid, "VmRSS:")? / 1e3);
    }
    sample.insert("many", rate(plan, &lab, &texts(&to(false, ACTIVE)))?);
    Ok(sample)
}

/// Has a million flows entered, and returns how many there were per second in the first quarter.
fn enter(lab: &Lab, ferroute: &Ferroute) -> Result<f64> {
    let last = std::net::Ipv4Addr::from(0x0a00_0000 + ENTERED as u32).to_string();
    let mut pktgen = lab.left.command(ferroute_tests::ferroute::binary());
    pktgen.args(["pktgen", "-i", "left", "--cpus", "0", "--dst-min", "10.0.0.1", "--dst-max"]);
    pktgen.args([&last, "--duration", "60"]);
    let _pktgen = Program::start(pktgen, 0)?;
    let begun = Instant::now();
    let mut first = None;
    // A packet that finds no room in the receive ring comes again some seconds later.
    let rate = loop {
        let flows = entered(ferroute)?;
        let now = begun.elapsed().as_secs_f64();
        match first {
            None if flows >= ENTERED / 100 => first = Some((flows, now)),
            Some((from, then)) if flows >= ENTERED / 4 => {
                break (flows - from) as f64 / (now - then);
            }
            _ => {}
        }
        ensure!(now < 50.0, "only {flows} of {ENTERED} flows were entered");
        std::thread::sleep(Duration::from_millis(20));
    };
    while entered(ferroute)? < ENTERED * 9 / 10 && begun.elapsed().as_secs_f64() < 50.0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(rate)
}

/// Flows in the table.
fn entered(ferroute: &Ferroute) -> Result<u64> {
    ferroute.json(&["stat"])?["offload"]["flows"]["flows"].as_u64().context("no number of flows")
}

const MASQUERADE: &str = "
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname \"rt-right\" masquerade
    }
}
";

/// A ruleset that tracks connections and tests the source address as often before.
fn ruleset(rules: usize) -> String {
    let mut text = MASQUERADE.to_owned();
    text +=
        "table inet fw { chain forward { type filter hook forward priority filter; policy drop;\n";
    for rule in 0..rules {
        let [_, _, a, b] = (rule as u32).to_be_bytes();
        let _ = writeln!(text, "ip saddr 172.16.{a}.{b} udp dport {} drop", 1000 + rule);
    }
    text + "ct state established,related counter accept\nudp dport 9 counter accept\n}\n}\n"
}

fn measure_tracked(plan: &Plan, middle: Middle) -> Result<Sample> {
    let mut sample = Sample::new();
    for (key, connections, rules) in [("few", FEW, 0), ("many", ACTIVE, 0), ("rules", FEW, 1000)] {
        let lab = lab(middle)?;
        nft(&lab.router, &ruleset(rules))?;
        // As if a program had followed the events when they were added.
        lab.router.sysctl("net/netfilter/nf_conntrack_events", "1")?;
        let mut lines = String::new();
        for port in 1..=connections {
            writeln!(
                lines,
                "-I -p udp -s {LEFT4} -d {RIGHT4} --sport {port} --dport 9 \
                 --src-nat {RT_RIGHT4}:{port} -u ASSURED,SEEN_REPLY -t 600"
            )?;
        }
        restore(plan, &lab, &lines)?;
        let running = Running::start(plan, &lab, middle)?;
        if let Some(ferroute) = running.ferroute() {
            let end = Instant::now() + Duration::from_secs(20);
            loop {
                let carried = ferroute.json(&["status"])?["carried_flows"].as_u64();
                // Some of the last may find their buckets full.
                if carried >= Some(u64::from(connections - connections / 1000)) {
                    break;
                }
                ensure!(Instant::now() < end, "{carried:?} of {connections} are carried");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        sample.insert(key, rate(plan, &lab, &["--flows", &connections.to_string()])?);
    }
    Ok(sample)
}

fn measure_tcp(plan: &Plan, middle: Middle) -> Result<Sample> {
    let lab = lab(middle)?;
    let _running = Running::start(plan, &lab, middle)?;
    let mut server = lab.right.command("iperf3");
    server.arg("-s");
    let _server = Program::start(server, 0)?;
    std::thread::sleep(Duration::from_millis(500));
    let seconds = if plan.quick { "2" } else { "5" };
    let mut sample = Sample::new();
    for (key, streams, more) in [
        ("one", "1", None),
        ("eight", "8", None),
        ("one-back", "1", Some("-R")),
        ("eight-back", "8", Some("-R")),
    ] {
        let mut client = lab.left.command("iperf3");
        client.args(["-J", "-c", RIGHT4, "-t", seconds, "-O", "1", "-P", streams]).args(more);
        let answer: Value = serde_json::from_str(&crate::dpdk::run(&mut client)?)?;
        let bps = answer["end"]["sum_received"]["bits_per_second"].as_f64().context("no rate")?;
        sample.insert(key, bps / 1e9);
    }
    Ok(sample)
}

fn texts(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}
