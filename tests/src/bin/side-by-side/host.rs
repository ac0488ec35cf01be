//! The machine and the commit, without which no figure has a meaning.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

/// How long the machine is watched for gaps in CPU time.
const WATCH_TIME: Duration = Duration::from_millis(500);
/// A spinning thread whose loop is delayed for this long was off its CPU.
const PREEMPTED_MIN: Duration = Duration::from_millis(1);

/// The machine and software of a measurement.
#[derive(Debug, Default, Serialize)]
pub struct Host {
    pub cpu: String,
    pub cpus: usize,
    pub tsc_mhz: f64,
    pub kernel: String,
    pub dpdk: Option<String>,
    pub commit: String,
    pub date: String,
    /// One minute's load average, before and after.
    pub load: [f64; 2],
    /// Percentage of the time that a spinning thread was off its CPU, before and after.
    pub gaps_percent: [f64; 2],
}

impl Host {
    /// The state now.
    pub fn look() -> Self {
        Self {
            cpu: cpuinfo("model name").unwrap_or_else(|| "unknown CPU".into()),
            cpus: std::thread::available_parallelism().map_or(0, Into::into),
            tsc_mhz: tsc_mhz(),
            kernel: said("uname", &["-r"]),
            dpdk: Some(said("dpkg-query", &["-W", "-f", "${Version}", "dpdk"]))
                .filter(|version| !version.is_empty()),
            commit: said("git", &["describe", "--always", "--dirty", "--exclude=*"]),
            date: said("date", &["--utc", "+%F %H:%M UTC"]),
            load: [load(), 0.0],
            gaps_percent: [gaps_percent(), 0.0],
        }
    }

    /// Records the state at the end.
    pub fn look_again(&mut self) {
        self.load[1] = load();
        self.gaps_percent[1] = gaps_percent();
    }

    /// Lines for the head of a table.
    pub fn lines(&self) -> Vec<String> {
        let dpdk =
            self.dpdk.as_deref().map_or("no DPDK".into(), |version| format!("DPDK {version}"));
        vec![
            format!("{}, {} CPUs, TSC {:.0} MHz", self.cpu, self.cpus, self.tsc_mhz),
            format!("Linux {}, {dpdk}, commit {}, {}", self.kernel, self.commit, self.date),
            format!(
                "load {:.1} before, {:.1} after; a spinning thread was off its CPU {:.0} % of the time \
                 before, {:.0} % after",
                self.load[0], self.load[1], self.gaps_percent[0], self.gaps_percent[1]
            ),
        ]
    }
}

/// The TSC's frequency, which is half of Linux's "bogomips" on x86; NaN elsewhere.
pub fn tsc_mhz() -> f64 {
    cpuinfo("bogomips")
        .and_then(|bogomips| bogomips.parse::<f64>().ok())
        .map_or(f64::NAN, |b| b / 2.0)
}

fn cpuinfo(key: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

fn gaps_percent() -> f64 {
    let (start, mut last, mut gaps) = (Instant::now(), Instant::now(), Duration::ZERO);
    while start.elapsed() < WATCH_TIME {
        let now = Instant::now();
        if now - last > PREEMPTED_MIN {
            gaps += now - last;
        }
        last = now;
    }
    100.0 * gaps.as_secs_f64() / start.elapsed().as_secs_f64()
}

/// The first line a command prints; empty if it fails.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok().filter(|out| out.status.success());
    let text = output.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    text.and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
}
