//! Forwarding performance of a device between two ports: RFC 2544, with the bursts of RFC 9004.
//!
//! - [`Plan`]: which tests, and for how long; [`run`] executes it and returns a [`Report`];
//! - [`Device`]: one trial; [`ports`] has the real one, tests simulate others;
//! - [`search`]: from trials to a rate or a burst length;
//! - [`sizes`]: frame sizes with the FCS, as the RFCs count them, and IMIX.
//!
//! An open loop (a rate) measures the device and the gaps in its CPU time: during gaps, packets are lost at
//! any rate. A closed loop ([`Plan::window`]) allows a limited number of packets in flight, and measures
//! how fast the device is while it runs.

pub mod ports;
mod report;
pub mod search;
pub mod sizes;

use std::time::Duration;

use hdrhistogram::Histogram;

use super::LoadError;
use crate::histogram::Summary;
use search::median;

pub use report::{Bursts, ClosedLoop, LatencyAt, LossPoint, Rate, Report, SizeReport, Throughput};
pub use sizes::FrameSize;

/// Loads of the latency test, in percent of the throughput (RFC 2544 26.2 requires the throughput itself; a
/// device at its limit queues).
const LATENCY_LOADS: [f64; 3] = [10.0, 50.0, 90.0];
/// Step of the loss curve, in percent (RFC 2544 26.3: at most 10 %).
const LOSS_STEP: u32 = 10;
/// The first burst tried, in packets: a number that a device can queue.
const BURST_FIRST: f64 = 64.0;
/// The longest burst, in seconds at full rate (RFC 2544 26.4: at least 2).
const BURST_SECONDS: f64 = 2.0;

/// The load that a trial offers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Packets per second.
    Rate(f64),
    /// As fast as the port accepts packets.
    Full,
    /// This many packets, as fast as the port accepts them.
    Burst(u64),
    /// At most this many packets in flight.
    Window(u64),
}

/// Results of a trial.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Packets sent.
    pub sent: u64,
    /// Packets that came back, during the trial or shortly after.
    pub received: u64,
    /// Packets sent per second during the trial.
    pub offered_pps: f64,
    /// Packets received per second during the trial.
    pub received_pps: f64,
    /// One-way latency in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Trial {
    /// Fraction of the packets that did not come back, 0 to 1.
    pub fn loss(&self) -> f64 {
        if self.sent == 0 {
            return 0.0;
        }
        self.sent.saturating_sub(self.received) as f64 / self.sent as f64
    }
}

/// Why the run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// Interrupted by the user.
    #[error("interrupted")]
    Interrupted,
    /// A port failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No packet came back.
    #[error(
        "{to} received none of {sent} packets sent by {from} to {destination} ({mac}): does the \
         device forward, and has it a route and a neighbour for {destination}?"
    )]
    Silent {
        /// The sending port.
        from: String,
        /// The receiving port.
        to: String,
        /// Destination address of the packets.
        destination: String,
        /// Destination MAC address of the packets.
        mac: String,
        /// How many packets were sent.
        sent: u64,
    },
}

/// Two ports and a device between them.
pub trait Device {
    /// Offers a load for a while and counts the packets that come back.
    ///
    /// # Errors
    /// See [`TrialError`].
    fn trial(&mut self, size: FrameSize, load: Load, length: Duration)
    -> Result<Trial, TrialError>;

    /// Shows progress to the user.
    fn progress(&mut self, _text: &str) {}
}

/// A test of RFC 2544.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Test {
    /// The highest rate without loss (26.1), and with no more than --loss.
    Throughput,
    /// Latency at 10, 50 and 90 % of the throughput (26.2).
    Latency,
    /// Loss over the rate (26.3).
    Loss,
    /// The longest burst without loss (26.4, RFC 9004).
    Burst,
}

/// The measurements to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Frame sizes, each measured separately.
    pub sizes: Vec<FrameSize>,
    /// Tests.
    pub tests: Vec<Test>,
    /// Duration of a trial.
    pub length: Duration,
    /// Loss allowed for the partial drop rate, 0 to 1; `None`: it is not measured.
    pub loss: Option<f64>,
    /// Resolution of a search, as a fraction of the highest rate.
    pub resolution: f64,
    /// Maximum packets in flight, instead of a rate; throughput and latency only.
    pub window: Option<u64>,
    /// Rate in packets per second at which only the latency is measured.
    pub rate_pps: Option<f64>,
    /// How often closed loops and bursts are repeated.
    pub repeat: usize,
}

/// Executes the plan. The second value is the reason if it ended early; the report then has the results so
/// far.
pub fn run(plan: &Plan, device: &mut dyn Device) -> (Report, Option<TrialError>) {
    let mut report = Report::new(plan);
    for size in &plan.sizes {
        let mut of_size = SizeReport::new(*size);
        let ended = measure(plan, *size, device, &mut of_size);
        if of_size.has_something() || ended.is_ok() {
            report.sizes.push(of_size);
        }
        if let Err(error) = ended {
            return (report, Some(error));
        }
    }
    (report, None)
}

fn measure(
    plan: &Plan,
    size: FrameSize,
    device: &mut dyn Device,
    report: &mut SizeReport,
) -> Result<(), TrialError> {
    let wants = |test| plan.tests.contains(&test);
    if let Some(pps) = plan.rate_pps {
        return latency_at(None, pps, plan, size, device, report);
    }
    if let Some(window) = plan.window {
        let rate = closed_loop(plan, size, window, device, report)?;
        return if wants(Test::Latency) {
            latency(plan, size, rate, device, report)
        } else {
            Ok(())
        };
    }
    let full = device.trial(size, Load::Full, plan.length)?;
    report.full = Some(Rate::of(full.offered_pps, size));
    report_trial(device, size, "as fast as the port sends", &full);
    let mut base = None;
    if wants(Test::Throughput) || wants(Test::Latency) {
        let mut at = |allowed| search_rate(plan, size, &full, allowed, device);
        let throughput = Throughput { loss_percent: 0.0, rate: at(0.0)? };
        report.throughput.push(throughput);
        base = throughput.rate;
        if let Some(loss) = plan.loss {
            let partial = Throughput { loss_percent: loss * 100.0, rate: at(loss)? };
            report.throughput.push(partial);
            base = base.or(partial.rate);
        }
    }
    if wants(Test::Latency) {
        match base {
            Some(rate) => latency(plan, size, rate.pps, device, report)?,
            None => device.progress(&format!("{size}: no latency, as no rate was without loss")),
        }
    }
    if wants(Test::Loss) {
        loss_curve(plan, size, &full, device, report)?;
    }
    if wants(Test::Burst) {
        bursts(plan, size, &full, device, report)?;
    }
    Ok(())
}

fn search_rate(
    plan: &Plan,
    size: FrameSize,
    full: &Trial,
    allowed: f64,
    device: &mut dyn Device,
) -> Result<Option<Rate>, TrialError> {
    if full.loss() <= allowed {
        return Ok(Some(Rate::of(full.offered_pps, size)));
    }
    let first = full.received_pps;
    let found = search::highest(full.offered_pps, first, plan.resolution, |pps| {
        let trial = device.trial(size, Load::Rate(pps), plan.length)?;
        report_trial(device, size, "searching", &trial);
        Ok::<bool, TrialError>(trial.loss() <= allowed)
    })?;
    Ok(found.map(|pps| Rate::of(pps, size)))
}

/// Returns packets per second.
fn closed_loop(
    plan: &Plan,
    size: FrameSize,
    window: u64,
    device: &mut dyn Device,
    report: &mut SizeReport,
) -> Result<f64, TrialError> {
    let (mut rates, mut lost) = (Vec::new(), 0);
    for _ in 0..plan.repeat.max(1) {
        let trial = device.trial(size, Load::Window(window), plan.length)?;
        rates.push(trial.received_pps);
        lost += trial.sent.saturating_sub(trial.received);
        report_trial(device, size, &format!("{window} in flight"), &trial);
        let pps = median(&rates);
        report.closed = Some(ClosedLoop {
            window,
            rate: Rate::of(pps, size),
            trials_pps: rates.clone(),
            lost,
            latency: Summary::of(&trial.latency),
        });
    }
    Ok(median(&rates))
}

fn latency(
    plan: &Plan,
    size: FrameSize,
    base_pps: f64,
    device: &mut dyn Device,
    report: &mut SizeReport,
) -> Result<(), TrialError> {
    for percent in LATENCY_LOADS {
        let pps = base_pps * percent / 100.0;
        latency_at(Some(percent), pps, plan, size, device, report)?;
    }
    Ok(())
}

fn latency_at(
    load_percent: Option<f64>,
    pps: f64,
    plan: &Plan,
    size: FrameSize,
    device: &mut dyn Device,
    report: &mut SizeReport,
) -> Result<(), TrialError> {
    let trial = device.trial(size, Load::Rate(pps), plan.length)?;
    let at = LatencyAt {
        load_percent,
        offered_pps: trial.offered_pps,
        loss_percent: trial.loss() * 100.0,
        summary: Summary::of(&trial.latency),
        histogram: trial.latency.clone(),
    };
    report_trial(device, size, &format!("latency at {}", at.load()), &trial);
    report.latency.push(at);
    Ok(())
}

/// From full rate down, until two consecutive points have no loss.
fn loss_curve(
    plan: &Plan,
    size: FrameSize,
    full: &Trial,
    device: &mut dyn Device,
    report: &mut SizeReport,
) -> Result<(), TrialError> {
    let mut without = 0;
    for percent in (1..=100 / LOSS_STEP).rev().map(|n| f64::from(n * LOSS_STEP)) {
        let measured;
        let trial = if percent == 100.0 {
            full
        } else {
            let load = Load::Rate(full.offered_pps * percent / 100.0);
            measured = device.trial(size, load, plan.length)?;
            report_trial(device, size, &format!("loss at {percent} %"), &measured);
            &measured
        };
        let loss_percent = trial.loss() * 100.0;
        report.loss.push(LossPoint { percent, offered_pps: trial.offered_pps, loss_percent });
        without = if trial.loss() == 0.0 { without + 1 } else { 0 };
        if without == 2 {
            break;
        }
    }
    Ok(())
}

/// RFC 9004: the search is repeated and averaged; the buffer is the burst less what the device forwarded
/// during it (section 6.4).
fn bursts(
    plan: &Plan,
    size: FrameSize,
    full: &Trial,
    device: &mut dyn Device,
    report: &mut SizeReport,
) -> Result<(), TrialError> {
    let longest = (full.offered_pps * BURST_SECONDS).max(1.0);
    let mut lengths = Vec::new();
    for _ in 0..plan.repeat.max(1) {
        let found = search::highest_from(BURST_FIRST, longest, plan.resolution, |packets| {
            let load = Load::Burst(packets.round().max(1.0) as u64);
            let trial = device.trial(size, load, Duration::from_secs_f64(BURST_SECONDS))?;
            report_trial(device, size, "burst", &trial);
            Ok::<bool, TrialError>(trial.received >= trial.sent)
        })?;
        lengths.push(found.unwrap_or(0.0).round());
        let throughput = report.throughput.first().and_then(|found| found.rate);
        let sustained = throughput.map(|rate| rate.pps / full.offered_pps);
        report.bursts = Some(Bursts::of(&lengths, longest.round(), full.offered_pps, sustained));
    }
    Ok(())
}

fn report_trial(device: &mut dyn Device, size: FrameSize, what: &str, trial: &Trial) {
    let Trial { sent, offered_pps, received_pps, .. } = trial;
    device.progress(&format!(
        "{size}: {what}: {sent} sent at {offered_pps:.0}/s, back at {received_pps:.0}/s, {:.4} % lost",
        trial.loss() * 100.0
    ));
}

#[cfg(test)]
mod tests;
