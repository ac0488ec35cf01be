//! Results of a run: as JSON (by serde), as Markdown, and the latencies as a plot.

use std::fmt::Write as _;
use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{FrameSize, Plan, Test};
use crate::histogram::{Summary, svg};

/// Preamble, start delimiter and inter-frame gap, in octets: what a wire carries in addition to the frame.
const BETWEEN_FRAMES: f64 = 20.0;

/// A rate in packets and in bits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Packets per second.
    pub pps: f64,
    /// Megabits per second of frames with their FCS.
    pub mbps: f64,
    /// Megabits per second on a wire: with preamble and gap.
    pub wire_mbps: f64,
}

impl Rate {
    pub(super) fn of(pps: f64, size: FrameSize) -> Rate {
        let mbps = |octets: f64| pps * octets * 8.0 / 1e6;
        let octets = size.mean_octets();
        Rate { pps, mbps: mbps(octets), wire_mbps: mbps(octets + BETWEEN_FRAMES) }
    }
}

/// The highest rate with at most a given loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Throughput {
    /// Loss allowed.
    pub loss_percent: f64,
    /// `None`: the loss was higher at every rate.
    pub rate: Option<Rate>,
}

/// A closed loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClosedLoop {
    /// Maximum packets in flight.
    pub window: u64,
    /// Median of the trials.
    pub rate: Rate,
    /// Packets per second of each trial.
    pub trials_pps: Vec<f64>,
    /// Packets that never came back, of all trials.
    pub lost: u64,
    /// Latency in the last trial: a full window means a full queue.
    pub latency: Summary,
}

/// Latency under a load.
#[derive(Debug, Clone, Serialize)]
pub struct LatencyAt {
    /// In percent of the throughput, or of the closed loop's rate; `None`: the rate was given.
    pub load_percent: Option<f64>,
    /// Packets sent per second.
    pub offered_pps: f64,
    /// Loss during the measurement, in percent.
    pub loss_percent: f64,
    /// Percentiles, one way.
    #[serde(flatten)]
    pub summary: Summary,
    /// The whole distribution, for the plot.
    #[serde(skip)]
    pub histogram: Histogram<u64>,
}

impl LatencyAt {
    /// The load as printed.
    pub(super) fn load(&self) -> String {
        match self.load_percent {
            Some(percent) => format!("{percent} %"),
            None => format!("{:.0}/s", self.offered_pps),
        }
    }
}

/// A point of the loss curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossPoint {
    /// In percent of the sending port's highest rate.
    pub percent: f64,
    /// Packets sent per second.
    pub offered_pps: f64,
    /// Loss in percent of the packets sent.
    pub loss_percent: f64,
}

/// Bursts without loss (RFC 9004).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bursts {
    /// Mean length over the searches, in packets.
    pub packets: f64,
    /// The shortest.
    pub packets_min: f64,
    /// The longest.
    pub packets_max: f64,
    /// Number of searches.
    pub searches: usize,
    /// No search found a loss: the device forwards at the port's rate.
    pub without_end: bool,
    /// Buffer in seconds at the port's rate, less what the device forwarded during the burst; `None` if its
    /// throughput is not known or no burst was too long.
    pub buffer_s: Option<f64>,
}

impl Bursts {
    /// From the lengths found, of at most `longest`, sent at `pps`; the device can forward the fraction
    /// `sustained` of that rate.
    pub(super) fn of(lengths: &[f64], longest: f64, pps: f64, sustained: Option<f64>) -> Bursts {
        let packets = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
        let without_end = lengths.iter().all(|&length| length >= longest);
        let implied_s = packets / pps;
        Bursts {
            packets,
            packets_min: lengths.iter().copied().fold(f64::INFINITY, f64::min),
            packets_max: lengths.iter().copied().fold(0.0, f64::max),
            searches: lengths.len(),
            without_end,
            buffer_s: sustained.filter(|_| !without_end).map(|part| implied_s * (1.0 - part)),
        }
    }
}

/// Results of one frame size. Those not measured are absent.
#[derive(Debug, Clone, Serialize)]
pub struct SizeReport {
    /// In octets with the FCS, or imix.
    pub size: FrameSize,
    /// The sending port's highest rate.
    pub full: Option<Rate>,
    /// Without loss, then with the allowed loss.
    pub throughput: Vec<Throughput>,
    /// Closed loop.
    pub closed: Option<ClosedLoop>,
    /// One per load.
    pub latency: Vec<LatencyAt>,
    /// From the highest rate down.
    pub loss: Vec<LossPoint>,
    /// Back-to-back bursts.
    pub bursts: Option<Bursts>,
}

impl SizeReport {
    pub(super) fn new(size: FrameSize) -> SizeReport {
        SizeReport {
            size,
            full: None,
            throughput: Vec::new(),
            closed: None,
            latency: Vec::new(),
            loss: Vec::new(),
            bursts: None,
        }
    }

    pub(super) fn has_something(&self) -> bool {
        self.full.is_some() || self.closed.is_some()
    }
}

/// Results of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The sending port, for display.
    pub from: String,
    /// The receiving port, for display.
    pub to: String,
    /// Tests requested.
    pub tests: Vec<Test>,
    /// Duration of a trial in seconds.
    pub trial_s: f64,
    /// Ended by a signal: the results are incomplete.
    pub interrupted: bool,
    /// One per frame size.
    pub sizes: Vec<SizeReport>,
}

impl Report {
    pub(super) fn new(plan: &Plan) -> Report {
        Report {
            from: String::new(),
            to: String::new(),
            tests: plan.tests.clone(),
            trial_s: plan.length.as_secs_f64(),
            interrupted: false,
            sizes: Vec::new(),
        }
    }

    /// The report in Markdown, aligned for reading on a terminal.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# {} to {}\n\nFrame sizes in octets with the FCS; trials of {} s.\n",
            self.from, self.to, self.trial_s
        );
        if self.interrupted {
            text += "\n**Interrupted: results so far.**\n";
        }
        let rows = [
            throughput_table(&self.sizes),
            closed_table(&self.sizes),
            latency_table(&self.sizes),
            loss_table(&self.sizes),
            burst_table(&self.sizes),
        ];
        rows.iter().filter(|table| !table.rows.is_empty()).for_each(|table| table.write(&mut text));
        text
    }

    /// The percentile plot of all latencies; `None` without any.
    ///
    /// # Errors
    /// When it cannot be plotted.
    pub fn svg(&self) -> io::Result<Option<String>> {
        let each = self.sizes.iter().flat_map(|size| size.latency.iter().map(move |at| (size, at)));
        let named: Vec<(String, &Histogram<u64>)> = each
            .filter(|(_, at)| !at.histogram.is_empty())
            .map(|(size, at)| {
                let name = format!("{} octets, {}", size.size, at.load());
                (name.replace("imix octets", "IMIX"), &at.histogram)
            })
            .collect();
        if named.is_empty() {
            return Ok(None);
        }
        let lines: Vec<_> = named.iter().map(|(name, h)| (name.as_str(), *h)).collect();
        svg::draw(&format!("Latency, {} to {}", self.from, self.to), &lines).map(Some)
    }
}

/// A Markdown table.
struct Table {
    title: &'static str,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn write(&self, text: &mut String) {
        // Padding makes it readable as plain text.
        let head: Vec<String> = self.head.iter().map(|cell| (*cell).to_owned()).collect();
        let all = || std::iter::once(&head).chain(&self.rows);
        let width = |at: usize| all().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} |"));
            format!("|{}\n", cells.collect::<String>())
        };
        let rule: String =
            widths.iter().map(|width| format!(" {}: |", "-".repeat((*width).max(4) - 1))).collect();
        let _ = write!(text, "\n## {}\n\n{}|{rule}\n", self.title, line(&head));
        self.rows.iter().for_each(|row| *text += &line(row));
    }
}

fn rate_cells(rate: Option<Rate>) -> [String; 2] {
    let cell = |value: f64| format!("{value:.0}");
    rate.map_or(["none".into(), "none".into()], |rate| [cell(rate.pps), cell(rate.mbps)])
}

fn throughput_table(sizes: &[SizeReport]) -> Table {
    let mut rows = Vec::new();
    for size in sizes {
        for found in &size.throughput {
            let [pps, mbps] = rate_cells(found.rate);
            let [full, _] = rate_cells(size.full);
            rows.push(vec![
                size.size.to_string(),
                format!("{} %", found.loss_percent),
                pps,
                mbps,
                full,
            ]);
        }
    }
    let head = vec!["size", "loss allowed", "packets/s", "Mbit/s", "the port sends at most"];
    Table { title: "Throughput", head, rows }
}

fn closed_table(sizes: &[SizeReport]) -> Table {
    let row = |size: &SizeReport| {
        let closed = size.closed.as_ref()?;
        let [pps, mbps] = rate_cells(Some(closed.rate));
        let edge = |f: fn(f64, f64) -> f64| closed.trials_pps.iter().copied().reduce(f);
        let range = [edge(f64::min)?, edge(f64::max)?].map(|pps| format!("{pps:.0}")).join(" – ");
        let lost = closed.lost.to_string();
        Some(vec![size.size.to_string(), closed.window.to_string(), pps, range, mbps, lost])
    };
    let head = vec!["size", "in flight", "packets/s", "trials", "Mbit/s", "lost"];
    Table { title: "Closed loop", head, rows: sizes.iter().filter_map(row).collect() }
}

fn latency_table(sizes: &[SizeReport]) -> Table {
    let mut rows = Vec::new();
    for size in sizes {
        for at in &size.latency {
            let mut row = vec![
                size.size.to_string(),
                at.load(),
                format!("{:.0}", at.offered_pps),
                format!("{:.4} %", at.loss_percent),
            ];
            row.extend(at.summary.cells());
            rows.push(row);
        }
    }
    let mut head = vec!["size", "load", "packets/s", "lost"];
    head.extend(Summary::TITLES);
    Table { title: "Latency, one way", head, rows }
}

fn loss_table(sizes: &[SizeReport]) -> Table {
    let mut rows = Vec::new();
    for size in sizes {
        for point in &size.loss {
            rows.push(vec![
                size.size.to_string(),
                format!("{} %", point.percent),
                format!("{:.0}", point.offered_pps),
                format!("{:.4} %", point.loss_percent),
            ]);
        }
    }
    Table { title: "Loss", head: vec!["size", "load", "packets/s", "lost"], rows }
}

fn burst_table(sizes: &[SizeReport]) -> Table {
    let row = |size: &SizeReport| {
        let bursts = size.bursts?;
        let at_least = if bursts.without_end { "≥ " } else { "" };
        Some(vec![
            size.size.to_string(),
            format!("{at_least}{:.0}", bursts.packets),
            format!("{:.0} – {:.0}", bursts.packets_min, bursts.packets_max),
            bursts.searches.to_string(),
            bursts.buffer_s.map_or("-".into(), |s| format!("{:.2} ms", s * 1e3)),
        ])
    };
    let head = vec!["size", "packets", "range", "searches", "buffer"];
    Table { title: "Bursts without loss", head, rows: sizes.iter().filter_map(row).collect() }
}
