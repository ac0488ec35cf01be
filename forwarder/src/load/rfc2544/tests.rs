//! Tests of the RFC 2544 measurements with a simulated device.

use std::collections::VecDeque;

use super::*;

/// Forwards `limit_pps` packets per second and buffers a limited number; the port sends faster.
struct Simulated {
    limit_pps: f64,
    port_pps: f64,
    buffer: u64,
    /// Loses one packet in this many at any rate; 0: none.
    loses_one_in: u64,
    /// Number of trials until an interrupt.
    left: usize,
    loads: VecDeque<Load>,
}

impl Simulated {
    fn new(limit_pps: f64) -> Simulated {
        let (port_pps, buffer) = (1_000_000.0, 5000);
        let loads = VecDeque::new();
        Simulated { limit_pps, port_pps, buffer, loses_one_in: 0, left: usize::MAX, loads }
    }
}

impl Device for Simulated {
    fn trial(&mut self, _: FrameSize, load: Load, length: Duration) -> Result<Trial, TrialError> {
        self.loads.push_back(load);
        self.left = self.left.checked_sub(1).ok_or(TrialError::Interrupted)?;
        let (pps, sent) = match load {
            Load::Rate(pps) => (pps, pps * length.as_secs_f64()),
            Load::Full => (self.port_pps, self.port_pps * length.as_secs_f64()),
            Load::Burst(packets) => (self.port_pps, packets as f64),
            Load::Window(_) => (self.limit_pps, self.limit_pps * length.as_secs_f64()),
        };
        let seconds = sent / pps;
        let room = seconds * self.limit_pps + self.buffer as f64;
        let mut received = sent.min(room) as u64;
        if let Some(lost) = received.checked_div(self.loses_one_in) {
            received -= lost;
        }
        let mut latency = crate::histogram::histogram();
        latency.record(if pps > self.limit_pps { 1_000_000 } else { 10_000 }).expect("in bounds");
        Ok(Trial {
            sent: sent as u64,
            received,
            offered_pps: pps,
            received_pps: pps.min(self.limit_pps),
            latency,
        })
    }
}

fn plan() -> Plan {
    Plan {
        sizes: vec![FrameSize::Octets(64)],
        tests: vec![Test::Throughput, Test::Latency, Test::Loss, Test::Burst],
        length: Duration::from_secs(10),
        loss: Some(0.01),
        resolution: 0.01,
        window: None,
        rate_pps: None,
        repeat: 2,
    }
}

#[test]
fn throughput_latency_loss_and_bursts_of_a_device_are_found() {
    let mut device = Simulated::new(400_000.0);
    let (report, ended) = run(&plan(), &mut device);
    assert!(ended.is_none());
    let found = &report.sizes[0];
    // The buffer hides a loss of 500 packets per second in a trial of ten seconds.
    let rates: Vec<f64> = found.throughput.iter().map(|t| t.rate.expect("some").pps).collect();
    assert!((390_000.0..=400_500.0).contains(&rates[0]), "{rates:?}");
    assert!(rates[1] >= rates[0] && rates[1] <= 404_600.0, "{rates:?}");
    let loads: Vec<f64> = found.latency.iter().map(|at| at.offered_pps / rates[0]).collect();
    assert_eq!(loads, [0.1, 0.5, 0.9]);
    assert!(found.latency.iter().all(|at| at.summary.p50_ns < 20_000));
    // 100 % to 50 % have loss, 40 % and 30 % do not.
    assert_eq!(found.loss.len(), 8);
    assert!(found.loss[0].loss_percent > 59.0 && found.loss[7].loss_percent == 0.0);
    // A burst of N takes N/1 M seconds, in which the device forwards 0.4 N: N = 5000 / 0.6.
    let bursts = found.bursts.expect("some");
    assert!((bursts.packets - 8333.0).abs() < 100.0 && !bursts.without_end, "{bursts:?}");
}

#[test]
fn the_buffer_is_the_burst_less_what_was_forwarded_meanwhile() {
    let bursts = Bursts::of(&[8000.0, 8600.0], 2e6, 1e6, Some(0.4));
    assert_eq!((bursts.packets, bursts.packets_min, bursts.searches), (8300.0, 8000.0, 2));
    assert!((bursts.buffer_s.expect("known") - 0.004_98).abs() < 1e-9);
    assert_eq!(Bursts::of(&[2e6], 2e6, 1e6, Some(1.0)).buffer_s, None);
    assert!(Bursts::of(&[2e6], 2e6, 1e6, None).without_end);
}

#[test]
fn a_device_that_loses_at_any_rate_has_no_throughput_and_says_so() {
    let mut device = Simulated { loses_one_in: 1000, ..Simulated::new(1e9) };
    let tests = vec![Test::Throughput, Test::Latency];
    let (report, ended) = run(&Plan { tests, ..plan() }, &mut device);
    assert!(ended.is_none());
    let found = &report.sizes[0];
    assert_eq!(found.throughput[0].rate, None);
    // With one percent allowed the port is the limit, and the latency test uses that rate.
    assert_eq!(found.throughput[1].rate.expect("some").pps, 1e6);
    assert_eq!(found.latency.len(), 3);
    assert!(report.markdown().contains("none"), "{}", report.markdown());
}

#[test]
fn a_closed_loop_is_a_median_of_trials_and_sets_the_latency_load() {
    let mut device = Simulated::new(500_000.0);
    let plan = Plan { window: Some(512), tests: vec![Test::Latency], repeat: 3, ..plan() };
    let (report, ended) = run(&plan, &mut device);
    assert!(ended.is_none());
    let closed = report.sizes[0].closed.clone().expect("some");
    assert_eq!((closed.window, closed.trials_pps.len(), closed.lost), (512, 3, 0));
    assert_eq!(closed.rate.pps, 500_000.0);
    // 64 octets, and 20 between two frames on a wire.
    assert_eq!((closed.rate.mbps, closed.rate.wire_mbps), (256.0, 336.0));
    let rates = [50_000.0, 250_000.0, 450_000.0].map(Load::Rate);
    assert_eq!(device.loads.into_iter().skip(3).collect::<Vec<_>>(), rates);
}

#[test]
fn only_the_latency_is_measured_at_a_given_rate() {
    let mut device = Simulated::new(400_000.0);
    let (report, ended) = run(&Plan { rate_pps: Some(100.0), ..plan() }, &mut device);
    assert!(ended.is_none());
    assert_eq!(device.loads, [Load::Rate(100.0)]);
    let [at] = &report.sizes[0].latency[..] else { panic!("{:?}", report.sizes[0].latency) };
    assert_eq!((at.load_percent, at.offered_pps), (None, 100.0));
    assert!(report.markdown().contains("100/s"), "{}", report.markdown());
}

#[test]
fn results_before_an_interrupt_are_reported() {
    let mut device = Simulated { left: 3, ..Simulated::new(400_000.0) };
    let sizes = vec![FrameSize::Octets(64), FrameSize::Imix];
    let plan = Plan { window: Some(64), repeat: 2, sizes, tests: vec![Test::Throughput], ..plan() };
    let (report, ended) = run(&plan, &mut device);
    assert!(matches!(ended, Some(TrialError::Interrupted)));
    let trials: Vec<usize> = report
        .sizes
        .iter()
        .map(|size| size.closed.as_ref().map_or(0, |c| c.trials_pps.len()))
        .collect();
    assert_eq!(trials, [2, 1]);
}

#[test]
fn the_report_has_a_table_for_each_test_and_a_plot() {
    let (mut report, _) = run(&plan(), &mut Simulated::new(400_000.0));
    (report.from, report.to) = ("left".into(), "right".into());
    let markdown = report.markdown();
    for title in ["# left to right", "## Throughput", "## Latency", "## Loss", "## Bursts"] {
        assert!(markdown.contains(title), "{title} in\n{markdown}");
    }
    assert!(!markdown.contains("Closed loop"), "{markdown}");
    let svg = report.svg().expect("is drawn").expect("there are latencies");
    assert!(svg.starts_with("<svg") && svg.contains("64 octets, 90 %"));
    let json = serde_json::to_value(&report).expect("writes");
    assert_eq!(json["sizes"][0]["size"], "64");
    assert_eq!(json["sizes"][0]["latency"][2]["load_percent"], 90.0);
    assert_eq!(Report::default().svg().expect("is no error"), None);
}
