//! `sink`: receives generated packets and reports on them.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::output::{self, columns};
use super::{Global, Usage};
use crate::control::process::signals::Signals;
use crate::histogram::{IntervalLog, OutFile, Summary, hgrm, svg};
use crate::io::af_xdp::BindMode;
use crate::load::Place;
use crate::load::receiver::Receiver;
use crate::load::tracker::{Tally, Tracker};

/// Explanation of the figures, printed after the help.
const NOTES: &str = "\
Counts the packets of `ferroute pktgen` and of the kernel's pktgen. All other packets go to the
kernel as before. Streams are distinguished by source MAC and generator thread (the kernel's pktgen
does not send thread numbers: give each thread a MAC, or use one thread). A stream counts as seen
from its start if the sequence number of its first packet is at most 65536. Packets lost after the
last received one are only counted with --count.

Latency is from the timestamp in a packet to when the sink took it from its ring, so both clocks must
agree: on one host they do. The resolution is that of the timestamps, a microsecond. With --rate it
is also printed corrected for coordinated omission: from when a packet was due, however long the
generator was delayed before sending it.

Ends with --count, --idle, --duration or Ctrl-C.";

/// Maximum length of a wait.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// How long emptying the rings may take at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);
/// With --count: seconds without a packet after which no more are expected.
const COUNT_IDLE_S: f64 = 5.0;
/// Interval between two lines of the log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `sink`.
#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct SinkArgs {
    /// Receive on this interface, on all its queues.
    #[arg(short, long, value_name = "IFACE")]
    interface: String,
    /// Number of packets to expect: ends when they have come, or when none came for 5 seconds (or --idle)
    /// after the first; those missing are lost.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Stop when packets came and then none did for this many seconds.
    #[arg(long, value_name = "SECONDS")]
    idle: Option<f64>,
    /// Rate at which the generator was set to send, in packets per second.
    #[arg(long, value_name = "PPS")]
    rate: Option<f64>,
    /// Number of threads with which the generator was set to send.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "rate")]
    threads: u32,
    /// Write the percentile distribution (.hgrm); - is standard output.
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Write an interval log (HdrHistogram V2), one line per second.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Plot the percentiles.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    interface: String,
    #[serde(flatten)]
    tally: Tally,
    /// From the first packet to the last, in seconds.
    seconds: f64,
    pps: f64,
    /// Frames without pktgen's header.
    other: u64,
    /// Packets dropped because the sink's own rings were full.
    overrun: u64,
    latency: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_corrected: Option<Summary>,
}

/// Files to write at the end.
struct Files {
    hgrm: Option<OutFile>,
    svg: Option<OutFile>,
    log: Option<Log>,
}

/// The interval log, and the values already in it.
struct Log {
    file: IntervalLog,
    started: Instant,
    begun: Duration,
    written: Histogram<u64>,
}

/// Receives until the end, and reports the result.
pub fn sink(global: &Global, args: &SinkArgs) -> Result<()> {
    let quiet = args.check()?;
    let signals = Signals::take()?;
    let mut files = args.files()?;
    let place = Place::here(&args.interface);
    let mut receiver = Receiver::open(&place, BindMode::Auto)?;
    let interval_ns = args.rate.map(|rate| 1e9 * f64::from(args.threads) / rate);
    let mut tracker = Tracker::new(interval_ns);
    let seconds = args.receive(&signals, &mut receiver, &mut tracker, &mut files)?;
    // Packets in the rings still count; later ones of a generator that keeps sending do not.
    let ended = Instant::now();
    while receiver.turn(&mut tracker, Duration::ZERO) > 0 && ended.elapsed() < DRAIN_TIMEOUT {}
    files.finish(&args.interface, &tracker)?;
    let mut tally = tracker.tally();
    if let Some(count) = args.count {
        tally.lost = tally.lost.max(count.saturating_sub(tally.received));
    }
    let report = Report {
        interface: args.interface.clone(),
        tally,
        seconds,
        pps: if seconds > 0.0 { (tally.received as f64 - 1.0) / seconds } else { 0.0 },
        other: receiver.other()?,
        overrun: receiver.overrun(),
        latency: Summary::of(tracker.latency()),
        latency_corrected: tracker.corrected().map(Summary::of),
    };
    let output = global.output();
    if quiet {
        // Standard output is used for a file.
    } else if output.json {
        output.json(&report)?;
    } else {
        output.text(&report.text())?;
    }
    if tally.received + tally.late == 0 {
        bail!(
            "{}: no packet with pktgen's header came; {} other frames did, and went to the kernel",
            args.interface,
            report.other
        );
    }
    Ok(())
}

impl SinkArgs {
    /// Whether one of the files is standard output.
    fn check(&self) -> Result<bool> {
        let times = [("--duration", self.duration), ("--idle", self.idle), ("--rate", self.rate)];
        for (name, value) in times {
            if value.is_some_and(|value| !(value > 0.0 && value.is_finite())) {
                return Err(Usage(format!("{name}: more than 0 is needed")).into());
            }
        }
        if self.threads == 0 || self.count == Some(0) {
            return Err(Usage("--threads and --count: at least 1".into()).into());
        }
        output::is_taken_by([&self.hgrm, &self.log, &self.svg])
    }

    fn files(&self) -> Result<Files> {
        let log = match &self.log {
            Some(path) => Some(Log {
                file: IntervalLog::create(path, SystemTime::now())?,
                started: Instant::now(),
                begun: Duration::ZERO,
                written: crate::histogram::histogram(),
            }),
            None => None,
        };
        let file = |path: &Option<PathBuf>| path.as_deref().map(OutFile::create).transpose();
        Ok(Files { hgrm: file(&self.hgrm)?, svg: file(&self.svg)?, log })
    }

    /// Receives until the end. Returns the seconds from the first packet to the last.
    fn receive(
        &self,
        signals: &Signals,
        receiver: &mut Receiver,
        tracker: &mut Tracker,
        files: &mut Files,
    ) -> Result<f64> {
        let started = Instant::now();
        let (mut first, mut last): (Option<Instant>, Instant) = (None, started);
        let over = |seconds: Option<f64>, since: Instant| {
            seconds.is_some_and(|seconds| since.elapsed().as_secs_f64() >= seconds)
        };
        let idle_s = self.idle.or(self.count.map(|_| COUNT_IDLE_S));
        let mut looked = started;
        while self.count.is_none_or(|count| tracker.tally().received < count) {
            // A burst at a time; the other conditions are checked only now and then.
            if receiver.turn(tracker, WAIT_MAX) > 0 {
                last = Instant::now();
                first.get_or_insert(last);
            }
            if looked.elapsed() < WAIT_MAX {
                continue;
            }
            looked = Instant::now();
            let idle = first.is_some() && over(idle_s, last);
            if signals.came() || idle || over(self.duration, started) {
                break;
            }
            files.interval(tracker, false)?;
        }
        Ok(first.map_or(0.0, |first| last.duration_since(first).as_secs_f64()))
    }
}

impl Files {
    fn interval(&mut self, tracker: &Tracker, last: bool) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let now = log.started.elapsed();
        if !last && now - log.begun < LOG_INTERVAL {
            return Ok(());
        }
        let mut new = tracker.latency().clone();
        // All values written came from `new`, so this cannot fail.
        let _ = new.subtract(&log.written);
        log.file.interval(log.begun, now - log.begun, [], &new)?;
        log.written.clone_from(tracker.latency());
        log.begun = now;
        Ok(())
    }

    fn finish(&mut self, interface: &str, tracker: &Tracker) -> Result<()> {
        self.interval(tracker, true)?;
        let latency = tracker.corrected().unwrap_or(tracker.latency());
        if let Some(file) = &mut self.hgrm {
            file.write(|out| hgrm::write(latency, out))?;
            file.commit()?;
        }
        if let Some(file) = &mut self.svg {
            let mut lines = vec![("latency", tracker.latency())];
            lines.extend(tracker.corrected().map(|corrected| ("corrected", corrected)));
            let title = format!("One-way latency to {interface}");
            file.write(|out| out.write_all(svg::draw(&title, &lines)?.as_bytes()))?;
            file.commit()?;
        }
        Ok(())
    }
}

impl Report {
    fn text(&self) -> String {
        let Tally { received, octets, lost, duplicated, reordered, late, .. } = self.tally;
        let mut text = format!(
            "{}: received {received} packets, {octets} octets in {:.2} s: {:.0} packets/s; \
             lost {lost}, duplicated {duplicated}, reordered {reordered}\n",
            self.interface, self.seconds, self.pps,
        );
        if late > 0 {
            text += &format!("{late} more came too late to be distinguished from duplicates\n");
        }
        if self.overrun > 0 {
            text += &format!("{} lost because the sink's rings were full\n", self.overrun);
        }
        if self.latency.count > 0 {
            let row =
                |name: &str, cells: [String; 7]| [vec![name.to_owned()], cells.into()].concat();
            let mut rows = vec![row("", Summary::TITLES.map(str::to_owned))];
            rows.push(row("latency", self.latency.cells()));
            rows.extend(self.latency_corrected.map(|summary| row("corrected", summary.cells())));
            text += &columns(&rows);
        }
        text
    }
}
