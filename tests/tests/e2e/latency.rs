//! `ferroute latency`: every packet is counted once for its port pair, and the public HdrHistogram tools
//! read the same values as printed.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, RIGHT4, RIGHT6};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Values that `hdrhistogram` for Python finds in a log: for each tag (`-` for none) the count, the highest
/// value, and for each percentile the values at its rank and the adjacent ranks, because it rounds ranks
/// where the original HdrHistogram takes the next higher.
const READ_LOG: &str = r#"
import json, sys
from hdrh.log import HistogramLogReader
from hdrh.histogram import HdrHistogram
reader = HistogramLogReader(sys.argv[1], HdrHistogram(1, 2**36 - 1, 3))
found = {}
while (histogram := reader.get_next_interval_histogram()) is not None:
    count = histogram.get_total_count()
    at = lambda p: histogram.get_value_at_percentile(min(max(p, 0.0), 100.0))
    near = lambda p: [at(p + by * 100.0 / count) for by in (-1, 0, 1)]
    found[histogram.get_tag() or "-"] = {
        "count": count, "max_ns": histogram.get_max_value(),
        "p50_ns": near(50.0), "p90_ns": near(90.0), "p99_ns": near(99.0),
        "p99.9_ns": near(99.9), "p99.99_ns": near(99.99)}
json.dump(found, sys.stdout)
"#;

const PERCENTILES: [&str; 5] = ["p50_ns", "p90_ns", "p99_ns", "p99.9_ns", "p99.99_ns"];

/// Runs a program of the Python tools that scripts/setup installs.
fn tool(program: &str, args: &[&str]) -> Result<Vec<u8>> {
    let dir = |name| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")));
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME is set")?;
    let path = cache.join("ferroute/hdrhistogram/bin").join(program);
    // matplotlib writes a cache, by default in the user's home directory.
    let home = tempfile::tempdir()?;
    let output = Command::new(&path).args(args).env("MPLCONFIGDIR", home.path()).output();
    let output = output.with_context(|| format!("{}: run scripts/setup", path.display()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {stderr}");
    Ok(output.stdout)
}

fn count_of(report: &Value, iif: &str, oif: &str) -> u64 {
    let mut pairs = report["pairs"].as_array().into_iter().flatten();
    let pair = pairs.find(|pair| pair["iif"] == iif && pair["oif"] == oif);
    pair.and_then(|pair| pair["count"].as_u64()).unwrap_or(0)
}

/// Frames put on the TX ring of a port.
fn sent(ferroute: &Ferroute, port: &str) -> Result<u64> {
    let ports = ferroute.json(&["stat", "--port", port])?;
    ports[0]["counters"]["tx_packets"].as_u64().context("no tx_packets")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_forwarded_packet_counts_once_under_its_ports() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start_with(&lab, &["--latency-sample", "1"])?;
    ping_all(&lab.left, &format!("-c 20 -i 0.02 -W 5 {RIGHT4}"))?;
    ping_all(&lab.left, &format!("-c 20 -i 0.02 -W 5 {RIGHT6}"))?;
    // ICMP errors that the router itself sends are not forwarded packets.
    lab.left.output(&format!("ping -t 1 -c 3 -i 0.02 -W 1 {RIGHT4}"))?;
    let report = ferroute.json(&["latency"])?;
    let there = count_of(&report, "rt-left", "rt-right");
    let back = count_of(&report, "rt-right", "rt-left");
    ensure!(there >= 40 && back >= 40, "{report}");
    ensure!(there == sent(&ferroute, "rt-right")?, "{report}");
    ensure!(report["total"]["count"] == there + back, "{report}");
    ensure!(count_of(&report, "rt-left", "rt-left") == 0, "{report}");
    let one = ferroute.json(&["latency", "--port-pair", "rt-left:"])?;
    ensure!(one["total"]["count"] == there, "{one}");

    // A reset reports the counts so far; then there are none, and later only new ones.
    let reset = ferroute.json(&["latency", "--reset"])?;
    ensure!(reset["total"]["count"].as_u64() >= Some(there + back), "{reset}");
    let mut report = Value::Null;
    let zero = eventually(|| {
        report = ferroute.json(&["latency", "--reset"]).unwrap_or_default();
        report["total"]["count"] == 0
    });
    ensure!(zero, "not zero: {report}");
    ping_all(&lab.right, &format!("-c 5 -i 0.02 -W 5 {LEFT4}"))?;
    let report = ferroute.json(&["latency"])?;
    ensure!(count_of(&report, "rt-right", "rt-left") >= 5, "{report}");
    ferroute.forwarded_all_itself()?;
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn public_tools_read_what_was_printed() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_with(&lab, &["--latency-sample", "1"])?;
    ping_all(&lab.left, &format!("-c 500 -i 0.002 -W 5 {RIGHT4}"))?;
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (hgrm, log, svg) = (path("out.hgrm"), path("out.log"), path("out.svg"));
    // A single request, so that printed and written values are the same.
    let report = ferroute.json(&["latency", "--hgrm", &hgrm, "--log", &log, "--svg", &svg])?;
    ensure!(report["total"]["count"].as_u64() >= Some(1000), "{report}");

    let read: Value = serde_json::from_slice(&tool("python3", &["-c", READ_LOG, &log])?)?;
    same(&read["-"], &report["total"])?;
    for pair in report["pairs"].as_array().context("no pairs")? {
        let (iif, oif) = (pair["iif"].as_str(), pair["oif"].as_str());
        let tag = format!("{}:{}", iif.unwrap_or_default(), oif.unwrap_or_default());
        same(&read[&tag], pair).context(tag)?;
    }
    hgrm_is_read(&hgrm, &path("out.png"), &report["total"])?;
    svg_is_well_formed(Path::new(&svg))
}

/// Compares the log's values with the printed ones.
fn same(read: &Value, printed: &Value) -> Result<()> {
    for name in ["count", "max_ns"] {
        ensure!(read[name] == printed[name], "{name}: read {read}, printed {printed}");
    }
    for name in PERCENTILES {
        let near = read[name].as_array().context("no percentile")?;
        ensure!(near.contains(&printed[name]), "{name}: read {near:?}, printed {printed}");
    }
    Ok(())
}

/// hdr-plot plots the distribution, and its last line is the highest value, in microseconds.
fn hgrm_is_read(hgrm: &str, png: &str, total: &Value) -> Result<()> {
    tool("hdr-plot", &["--units", "us", "--output", png, hgrm])?;
    ensure!(fs::read(png)?.starts_with(b"\x89PNG"), "hdr-plot drew nothing");
    let text = fs::read_to_string(hgrm)?;
    let last = text.lines().rfind(|line| !line.starts_with('#')).context("no line")?;
    let words: Vec<&str> = last.split_whitespace().collect();
    let max_us = total["max_ns"].as_u64().context("no maximum")? as f64 / 1000.0;
    let expected = [format!("{max_us:.3}"), "1.000000000000".into(), total["count"].to_string()];
    ensure!(words == expected, "{last:?}, expected {expected:?}");
    Ok(())
}

fn svg_is_well_formed(svg: &Path) -> Result<()> {
    const LABELS: &str = "import sys, xml.etree.ElementTree as tree\n\
        print('|'.join(e.text.strip() for e in tree.parse(sys.argv[1]).iter() if e.text))";
    let labels = tool("python3", &["-c", LABELS, &svg.to_string_lossy()])?;
    let labels = String::from_utf8(labels)?;
    for label in ["0%", "90%", "99%", "99.9%", "rt-left:rt-right", "rt-right:rt-left"] {
        ensure!(labels.trim().split('|').any(|l| l == label), "{label} is not in {labels}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn latency_that_is_not_measured_is_an_error() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_with(&lab, &["--latency-sample", "0"])?;
    let answer = ferroute.command(&["latency"]).output()?;
    let stderr = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.code() == Some(1) && stderr.contains("--latency-sample 0"), "{stderr}");
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_interrupted_watch_leaves_no_temporary_file() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_with(&lab, &["--latency-sample", "1"])?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("out.log").display().to_string();
    let mut command = ferroute.command(&["latency", "--watch", "--log", &log]);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    // Once it has printed, its files exist.
    let mut out = child.stdout.take().context("no output")?;
    out.read_exact(&mut [0])?;
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;
    std::io::copy(&mut out, &mut std::io::sink())?;
    let status = child.wait()?;
    ensure!(status.success(), "{status}");
    let left: Vec<_> = fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty() || left == ["out.log"], "{left:?}");
    ferroute.forwarded_all_itself()
}
