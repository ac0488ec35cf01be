//! `latency`: how long frames stayed in userspace, for each pair of ports, as percentiles; also written to files for
//! the public HdrHistogram tools.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::output::{self, columns};
use super::{Global, unexpected};
use crate::control::api::client::Client;
use crate::control::api::{LatencyReport, PairLatency, Request, Response};
use crate::control::process::signals::Signals;
use crate::control::process::terminal::printable;
use crate::histogram::{self, IntervalLog, OutFile, Summary, hgrm, svg};

/// Interval of --watch.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

const ABOUT: &str = "\
A frame's time begins when the worker has taken its burst from the RX ring and ends when it has put \
the frame on the TX ring. It includes the wait for a neighbour's address and the processing of the \
rest of the burst, but not the waits in the rings, the system call that sends, and the NIC. Packets \
that were dropped or handed to the kernel do not count; one sent in fragments counts once. `run \
--latency-sample N` sets how many frames are measured: one in N, chosen at random.

FILE is written to a temporary file and renamed when complete; `-` is standard output, instead of \
the table. With --watch, --hgrm and --svg are rewritten each second, and --log gets the intervals.";

/// Flags of `latency`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct LatencyArgs {
    /// Print again each second until interrupted.
    #[arg(short, long)]
    watch: bool,
    /// Count from zero from now on; what was counted before is printed.
    #[arg(short, long)]
    reset: bool,
    /// Only frames that came in by IN and left by OUT, one of which may be left out (`eth0:`, `:eth1`);
    /// repeat for more.
    #[arg(long = "port-pair", value_name = "IN:OUT")]
    pairs: Vec<PortPair>,
    /// Write the percentile distribution (microseconds) of all pairs together.
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write an interval log (version 2, nanoseconds): each port pair with its tag, all together without
    /// one.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Plot times over percentiles, a line for each port pair.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A selection of port pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPair {
    iif: Option<String>,
    oif: Option<String>,
}

impl FromStr for PortPair {
    type Err = String;

    fn from_str(text: &str) -> Result<PortPair, String> {
        let port = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let (iif, oif) = text.split_once(':').unwrap_or_default();
        let pair = PortPair { iif: port(iif), oif: port(oif) };
        if pair.iif.is_none() && pair.oif.is_none() || oif.contains(':') {
            return Err("expected IN:OUT, as eth0:eth1, eth0: or :eth1".to_owned());
        }
        Ok(pair)
    }
}

impl PortPair {
    fn has(&self, pair: &PairLatency) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|w| w == name);
        is(&self.iif, &pair.iif) && is(&self.oif, &pair.oif)
    }
}

/// Files to write, checked before the daemon is asked to reset.
#[derive(Default)]
struct Files {
    hgrm: Option<OutFile>,
    svg: Option<OutFile>,
}

impl LatencyArgs {
    fn files(&self) -> Result<Files> {
        let create = |path: &Option<PathBuf>| path.as_deref().map(OutFile::create).transpose();
        Ok(Files { hgrm: create(&self.hgrm)?, svg: create(&self.svg)? })
    }
}

/// Requests the report and prints it, once or each second.
pub fn latency(global: &Global, args: &LatencyArgs) -> Result<()> {
    let quiet = output::is_taken_by([&args.hgrm, &args.log, &args.svg])?;
    // Temporary files would remain if the process were killed.
    let signals = Signals::take()?;
    let mut files = args.files()?;
    let log = args.log.as_deref().map(OutFile::create).transpose()?;
    let mut client = Client::connect(&global.control())?;
    let first = ask(&mut client, args, args.reset)?;
    check_ports(args, &first)?;
    if !quiet {
        print(global, args, &first)?;
    }
    write(&mut files, &first)?;
    if !args.watch {
        let length = Duration::from_micros(first.age_us);
        let start = SystemTime::now().checked_sub(length).unwrap_or(SystemTime::UNIX_EPOCH);
        return match log {
            Some(out) => {
                interval(&mut IntervalLog::new(out, start)?, Duration::ZERO, length, &first)
            }
            None => Ok(()),
        };
    }
    let mut log = log.map(|out| IntervalLog::new(out, SystemTime::now())).transpose()?;
    let start = Instant::now();
    let (mut before, mut before_at) = (first, Duration::ZERO);
    if args.reset {
        before = LatencyReport { resets: before.resets + 1, ..LatencyReport::default() };
    }
    for tick in 1.. {
        if signals.wait((WATCH_INTERVAL * tick).saturating_sub(start.elapsed())) {
            break;
        }
        let mut files = args.files()?;
        let report = ask(&mut client, args, false)?;
        let at = start.elapsed();
        if !quiet {
            print(global, args, &report)?;
        }
        write(&mut files, &report)?;
        if let Some(log) = &mut log {
            interval(log, before_at, at - before_at, &since(&report, &before))?;
        }
        (before, before_at) = (report, at);
    }
    Ok(())
}

/// Every named interface must be a port or must have been one. Later it may disappear and return.
fn check_ports(args: &LatencyArgs, report: &LatencyReport) -> Result<()> {
    let counted =
        |name: &String| report.pairs.iter().any(|pair| pair.iif == *name || pair.oif == *name);
    let named = args.pairs.iter().flat_map(|pair| [&pair.iif, &pair.oif]).flatten();
    match named.into_iter().find(|name| !report.ports.contains(name) && !counted(name)) {
        Some(name) => {
            bail!("{name} is not a port of the daemon; it has {}", report.ports.join(", "))
        }
        None => Ok(()),
    }
}

/// Requests the report and keeps the selected pairs.
fn ask(client: &mut Client, args: &LatencyArgs, reset: bool) -> Result<LatencyReport> {
    let mut report = match client.ask(&Request::Latency { reset })? {
        Response::Latency(report) => report,
        other => return Err(unexpected(&other)),
    };
    if report.sample == 0 {
        bail!("latency is not measured: the daemon was started with --latency-sample 0");
    }
    if !args.pairs.is_empty() {
        report.pairs.retain(|pair| args.pairs.iter().any(|wanted| wanted.has(pair)));
    }
    Ok(report)
}

/// What was counted between two reports.
pub(super) fn since(now: &LatencyReport, before: &LatencyReport) -> LatencyReport {
    let mut since = now.clone();
    if now.resets != before.resets {
        return since;
    }
    for pair in &mut since.pairs {
        let earlier = before.pairs.iter().find(|b| (&b.iif, &b.oif) == (&pair.iif, &pair.oif));
        let counts = earlier.into_iter().flat_map(|earlier| &earlier.counts).copied();
        let earlier: BTreeMap<u64, u64> = counts.collect();
        for (value, count) in &mut pair.counts {
            *count = count.saturating_sub(earlier.get(value).copied().unwrap_or(0));
        }
        // A histogram also records the value of a zero count as its maximum.
        pair.counts.retain(|(_, count)| *count > 0);
    }
    since
}

/// Of buckets as a report has them.
pub(super) fn histogram<'a>(counts: impl IntoIterator<Item = &'a (u64, u64)>) -> Histogram<u64> {
    let mut histogram = histogram::histogram();
    for &(value, count) in counts {
        histogram.saturating_record_n(value, count);
    }
    histogram
}

/// All pairs together.
pub(super) fn whole(report: &LatencyReport) -> Histogram<u64> {
    histogram(report.pairs.iter().flat_map(|pair| &pair.counts))
}

/// The pairs as `in:out` with their histograms; interface names contain no colon. Control characters, which
/// XML does not allow, are escaped.
fn parts(report: &LatencyReport) -> Vec<(String, Histogram<u64>)> {
    let name = |pair: &PairLatency| format!("{}:{}", printable(&pair.iif), printable(&pair.oif));
    let part = |pair: &PairLatency| (name(pair), histogram(&pair.counts));
    report.pairs.iter().map(part).collect()
}

fn write(files: &mut Files, report: &LatencyReport) -> Result<()> {
    if let Some(file) = &mut files.hgrm {
        let whole = whole(report);
        file.write(|out| hgrm::write(&whole, out))?;
        file.commit()?;
    }
    if let Some(file) = &mut files.svg {
        let parts = parts(report);
        let lines: Vec<_> =
            parts.iter().map(|(name, histogram)| (name.as_str(), histogram)).collect();
        let drawing = svg::draw("Time of frames in userspace", &lines)?;
        file.write(|out| out.write_all(drawing.as_bytes()))?;
        file.commit()?;
    }
    Ok(())
}

fn interval(
    log: &mut IntervalLog,
    begin: Duration,
    length: Duration,
    report: &LatencyReport,
) -> Result<()> {
    let parts = parts(report);
    let parts = parts.iter().map(|(name, histogram)| (name.as_str(), histogram));
    Ok(log.interval(begin, length, parts, &whole(report))?)
}

fn print(global: &Global, args: &LatencyArgs, report: &LatencyReport) -> Result<()> {
    let output = global.output();
    if output.json {
        return output.json(&to_json(report));
    }
    let text = to_text(report);
    if args.watch { output.text_anew(&text) } else { output.text(&text) }
}

fn to_json(report: &LatencyReport) -> Value {
    let pair = |pair: &PairLatency| {
        let mut value = json!(Summary::of(&histogram(&pair.counts)));
        (value["iif"], value["oif"]) = (json!(pair.iif), json!(pair.oif));
        value
    };
    json!({
        "sample": report.sample,
        "seconds": report.age_us as f64 / 1e6,
        "pairs": report.pairs.iter().map(pair).collect::<Value>(),
        "total": Summary::of(&whole(report)),
        "offloaded": report.offloaded.map(|[offloaded, all]| {
            json!({"packets": offloaded, "of_received": all})
        }),
    })
}

fn to_text(report: &LatencyReport) -> String {
    let row = |iif: &str, oif: &str, cells: [String; 7]| {
        [iif.to_owned(), oif.to_owned()].into_iter().chain(cells).collect::<Vec<String>>()
    };
    let mut rows = vec![row("in", "out", Summary::TITLES.map(str::to_owned))];
    for pair in &report.pairs {
        rows.push(row(&pair.iif, &pair.oif, Summary::of(&histogram(&pair.counts)).cells()));
    }
    rows.push(row("total", "", Summary::of(&whole(report)).cells()));
    let seconds = report.age_us as f64 / 1e6;
    let sample = match report.sample {
        1 => "every frame".to_owned(),
        n => format!("one frame in {n}"),
    };
    let offloaded = match report.offloaded {
        Some([offloaded, all]) if offloaded > 0 => {
            let share = 100.0 * (all - offloaded.min(all)) as f64 / all.max(1) as f64;
            format!("; {share:.1} % of packets since the start, others are offloaded to XDP")
        }
        _ => String::new(),
    };
    format!("#{sample}, {seconds:.1} s{offloaded}\n{}", columns(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(resets: u64, counts: &[(u64, u64)]) -> LatencyReport {
        let pair = PairLatency { iif: "a".into(), oif: "b".into(), counts: counts.to_vec() };
        let (sample, age_us, ports) = (64, 1_500_000, vec!["a".into(), "b".into()]);
        LatencyReport { sample, resets, age_us, ports, pairs: vec![pair], offloaded: None }
    }

    #[test]
    fn pairs_are_named_by_either_port_or_both() {
        let pair = |text: &str| text.parse::<PortPair>();
        let named = |iif: Option<&str>, oif: Option<&str>| {
            Ok(PortPair { iif: iif.map(str::to_owned), oif: oif.map(str::to_owned) })
        };
        assert_eq!(pair("a:b"), named(Some("a"), Some("b")));
        assert_eq!(pair("a:"), named(Some("a"), None));
        assert_eq!(pair(":b"), named(None, Some("b")));
        for wrong in ["", ":", "a", "a:b:c"] {
            assert!(pair(wrong).is_err(), "{wrong:?}");
        }
        let a_to_b = &report(0, &[]).pairs[0];
        assert!(pair("a:").is_ok_and(|pair| pair.has(a_to_b)));
        assert!(!pair("b:a").is_ok_and(|pair| pair.has(a_to_b)));
    }

    #[test]
    fn an_interval_is_the_difference_unless_somebody_has_reset() {
        let before = report(0, &[(100, 5), (200, 1)]);
        let counts = |report: &LatencyReport| report.pairs[0].counts.clone();
        let after = report(0, &[(100, 7), (200, 1), (300, 2)]);
        assert_eq!(counts(&since(&after, &before)), [(100, 2), (300, 2)]);
        assert_eq!(whole(&since(&after, &before)).len(), 4);
        assert_eq!(whole(&since(&before, &before)).max(), 0);
        let after = report(1, &[(100, 1)]);
        assert_eq!(counts(&since(&after, &before)), [(100, 1)]);
    }

    #[test]
    fn the_table_has_a_row_a_pair_and_the_total() {
        assert_eq!(
            to_text(&report(0, &[(100, 99), (5000, 1)])),
            "#one frame in 64, 1.5 s\n\
             in     out  count  p50     p90     p99     p99.9    p99.99   max\n\
             a      b    100    100 ns  100 ns  100 ns  5.00 µs  5.00 µs  5.00 µs\n\
             total       100    100 ns  100 ns  100 ns  5.00 µs  5.00 µs  5.00 µs\n"
        );
    }
}
