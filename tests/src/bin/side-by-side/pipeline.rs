//! Packets in memory, on one core: Ferroute's whole turns over ports that only copy, compared with
//! testpmd's `mac` on two `net_null` ports, which also only copy.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Plan;
use crate::dpdk::{self, Testpmd};
use crate::host::tsc_mhz;
use crate::rounds::{Entrant, Metric, Sample, Section};

const METRICS: [Metric; 6] = [
    Metric { key: "one", title: "one IPv4 route, Mpps", digits: 2 },
    Metric { key: "full", title: "full table, IPv4, random destinations, Mpps", digits: 2 },
    Metric { key: "full6", title: "full table, IPv6, random destinations, Mpps", digits: 2 },
    Metric { key: "one_cycles", title: "one IPv4 route, cycles per packet", digits: 1 },
    Metric { key: "full_cycles", title: "full table, IPv4, cycles per packet", digits: 1 },
    Metric { key: "full6_cycles", title: "full table, IPv6, cycles per packet", digits: 1 },
];
/// Names of the measurements, rate and cost, in the order in which `pipeline` prints them.
const KEYS: [(&str, &str); 3] =
    [("one", "one_cycles"), ("full", "full_cycles"), ("full6", "full6_cycles")];
const NOTE: &str = "\
Packets of 64 octets. Packets per second of the forwarding thread's CPU time (schedstat), because the \
time in which it waits for a CPU is not its own. testpmd does not route: it writes two MAC addresses, \
independently of the table, and forwards in both directions between its ports; its single figure is \
compared with each of Ferroute's.";

/// The section.
pub fn section(plan: &Plan) -> Section<'_> {
    let seconds = if plan.quick { 2 } else { 5 };
    let keys: Vec<&str> = METRICS.iter().map(|metric| metric.key).collect();
    let length = Duration::from_secs(seconds);
    let own = move || own(plan.built.path("pipeline")?, seconds);
    Section {
        title: "Pipeline in memory, one core".into(),
        note: NOTE.into(),
        metrics: METRICS.to_vec(),
        entrants: vec![
            Entrant { name: "Ferroute".into(), gives: keys.clone(), run: Box::new(own) },
            Entrant {
                name: "DPDK testpmd mac, net_null".into(),
                gives: keys,
                run: Box::new(move || theirs(length)),
            },
        ],
    }
}

const WORKERS: [Metric; 2] = [
    Metric { key: "mpps", title: "two workers, Mpps", digits: 2 },
    Metric { key: "times", title: "ratio to one alone", digits: 2 },
];
const WORKERS_NOTE: &str = "\
Two workers of one router, each with its own CPU and queue, compared with a single one: packets per \
second of their CPU time. Two independent processes show the best that two CPUs of this machine can \
give, which is less than twice that of one CPU if they share a core or its cache.";

/// The gain of a second worker.
pub fn workers(plan: &Plan) -> Section<'_> {
    let seconds = if plan.quick { 2 } else { 5 };
    let entrant = |name: &str, one: &'static str, two: &'static str| {
        let run = move || workers_of(plan.built.path("pipeline")?, seconds, one, two);
        Entrant { name: name.into(), gives: vec!["mpps", "times"], run: Box::new(run) }
    };
    Section {
        title: "Pipeline in memory, two cores".into(),
        note: WORKERS_NOTE.into(),
        metrics: WORKERS.to_vec(),
        entrants: vec![
            entrant("Ferroute, two workers", "one", "two"),
            entrant("two processes, one worker each", "process", "processes"),
        ],
    }
}

fn workers_of(program: &Path, seconds: u64, one: &str, two: &str) -> Result<Sample> {
    let mut command = Command::new(program);
    command.args(["--json", "--workers-only", "--seconds", &seconds.to_string()]);
    let text = dpdk::run(&mut command)?;
    let answer: Value = serde_json::from_str(&text)
        .with_context(|| format!("two workers need two CPUs; it said {text:?}"))?;
    let number = |key: &str| answer[key].as_f64().with_context(|| format!("no {key} in {text}"));
    let (one, two) = (number(one)?, number(two)?);
    Ok(Sample::from([("mpps", two / 1e6), ("times", two / one)]))
}

fn own(program: &Path, seconds: u64) -> Result<Sample> {
    let args = ["--json", "--turns-only", "--seconds", &seconds.to_string()];
    let text = dpdk::run(dpdk::pinned(program).args(args))?;
    let answer: Value = serde_json::from_str(&text).context("reading its JSON")?;
    let mut sample = Sample::new();
    for (at, keys) in KEYS.into_iter().enumerate() {
        let pps = answer[at]["packets_per_second"].as_f64();
        put(&mut sample, keys, pps.with_context(|| format!("no packets in {text}"))?);
    }
    Ok(sample)
}

fn theirs(length: Duration) -> Result<Sample> {
    let vdevs = ["net_null0,copy=1,size=64", "net_null1,copy=1,size=64"];
    let mut testpmd = Testpmd::start(Command::new("env"), vdevs)?;
    let (packets, cpu_ns) = testpmd.forward(length)?;
    let pps = packets as f64 * 1e9 / cpu_ns as f64;
    let mut sample = Sample::new();
    KEYS.into_iter().for_each(|keys| put(&mut sample, keys, pps));
    Ok(sample)
}

fn put(sample: &mut Sample, keys: (&'static str, &'static str), pps: f64) {
    sample.insert(keys.0, pps / 1e6);
    sample.insert(keys.1, tsc_mhz() * 1e6 / pps);
}
