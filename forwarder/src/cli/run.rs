//! `run`: starts forwarding.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::{Global, Usage};
use crate::control::config::metrics::{METRICS_DEFAULT, MetricsAddr};
use crate::control::config::offload::{OffloadFlags, OffloadMode};
use crate::control::config::source::{DEFAULT_FILE, Source};
use crate::control::config::{CpuList, Mode, RunFlags, RunOptions};
use crate::control::process::log::{LogFormat, LogLevel};
use crate::io::DriverKind;
use crate::worker::poll::PollMode;

/// Example of a file, printed after the help.
const EXAMPLE: &str = r#"Example of a FILE:
  [run]
  interfaces = ["eth0", "lan*"]
  max_ports = 12
  mode = "auto"              # zerocopy, copy, generic
  driver = "af_xdp"          # xsk-rs
  poll = "adaptive"          # busy, interrupt
  cpus = "0-3,5"
  queues = 2
  pin_irqs = false
  rx_ring = 2048             # descriptors, a power of two
  tx_ring = 2048
  latency_sample = 64
  offload = "auto"           # on, off
  offload_threshold = 64
  offload_flows = 262144
  worker_timeout_ms = 250
  control_timeout_ms = 1000
  ignore_firewall = false
  no_sandbox = false
  metrics = "127.0.0.1:9112" # or "unix:PATH"; without it there is none
  log_level = "info"         # error, warn, debug
  log_format = "auto"        # text, json
  runtime_dir = "/run/ferroute"
  state_dir = "/var/lib/ferroute"
  control = "/run/ferroute/control.sock"
`ferroute config default` prints one with all keys.

SIGHUP and `ferroute reload` have FILE read again; without -c, SIGHUP ends it.
Ends with SIGINT or SIGTERM; from then on the kernel forwards."#;

/// `--poll`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PollArg {
    Busy,
    Adaptive,
    Interrupt,
}

impl From<PollArg> for PollMode {
    fn from(arg: PollArg) -> PollMode {
        match arg {
            PollArg::Busy => PollMode::Busy,
            PollArg::Adaptive => PollMode::Adaptive,
            PollArg::Interrupt => PollMode::Interrupt,
        }
    }
}

/// `--driver`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DriverArg {
    #[value(name = "af_xdp")]
    AfXdp,
    XskRs,
}

impl From<DriverArg> for DriverKind {
    fn from(arg: DriverArg) -> DriverKind {
        match arg {
            DriverArg::AfXdp => DriverKind::AfXdp,
            DriverArg::XskRs => DriverKind::XskRs,
        }
    }
}

/// Flags of `run`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLE)]
pub struct RunArgs {
    /// Forward on this interface and its VLANs; repeat for each port. A pattern such as 'eth*' or
    /// 'lan[0-3]', in quotes, selects all matching Ethernet interfaces that are up, including those that
    /// appear later, but not those that belong to a bridge, bond or VRF.
    #[arg(short, long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Maximum number of ports, with a pattern: memory is allocated for this many [default: 8 more than
    /// exist at the start].
    #[arg(long, value_name = "N")]
    max_ports: Option<u16>,
    /// Read the [run] section of a TOML file; flags override it.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How to bind to the interfaces' queues [default: auto].
    #[arg(long)]
    mode: Option<Mode>,
    /// AF_XDP driver of the ports: af_xdp: Ferroute's own; xsk-rs: on the crate of that name, if this
    /// program was built with the feature xsk-rs; it supports copy mode only, no MTU above 3370 and no
    /// busy polling [default: af_xdp].
    #[arg(long, value_enum)]
    driver: Option<DriverArg>,
    /// How workers wait for frames: busy: poll always; adaptive: poll under load, sleep when there is
    /// none; interrupt: sleep whenever there are no frames [default: adaptive].
    #[arg(long, value_enum)]
    poll: Option<PollArg>,
    /// Packets that the kernel takes from a queue per poll, with --poll busy [default: 64].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    busy_budget: Option<u16>,
    /// CPUs for the workers, one each, like 0-3,5; no more are used than a port has queues [default: all
    /// allowed].
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// Serve the first N RX queues of each port. A port must have no others, or its RSS table must send no
    /// packets to them (ethtool -X IFACE equal N) [default: all it has].
    #[arg(long, value_name = "N")]
    queues: Option<u32>,
    /// Move the interrupt of each queue to its worker's CPU; they are restored at the end.
    #[arg(long)]
    pin_irqs: bool,
    /// Measure how long one in N frames stays in userspace, for `ferroute latency`; 0: none, 1: all
    /// [default: 64].
    #[arg(long, value_name = "N")]
    latency_sample: Option<u32>,
    /// Have the XDP program forward the packets of busy flows by itself, as userspace has decided: auto: of flows
    /// that arrive on a port without zero-copy; on: of all ports; off: of none [default: auto].
    #[arg(long, value_name = "WHICH")]
    offload: Option<OffloadMode>,
    /// Offload a flow when N packets of it were forwarded within 8 seconds, and one of a tracked connection when 4 were
    /// [default: 64].
    #[arg(long, value_name = "N")]
    offload_threshold: Option<u16>,
    /// Offload at most N flows, each of which is one direction; 1000 take 0.2 MB [default: 262144].
    #[arg(long, value_name = "N")]
    offload_flows: Option<u32>,
    /// Leave a worker's queues to the kernel when its last heartbeat is older than this many milliseconds,
    /// because it is stopped, frozen or does not get its CPU [default: 250].
    #[arg(long, value_name = "MS")]
    worker_timeout: Option<u32>,
    /// Leave everything to the kernel when the last heartbeat of the control thread, which follows the
    /// kernel's routes and filters, is older than this many milliseconds [default: 1000].
    #[arg(long, value_name = "MS")]
    control_timeout: Option<u32>,
    /// Time every turn of the workers: `stat -j` shows the cost of a frame. For benchmarks.
    #[arg(long, hide = true)]
    account: bool,
    /// Start even if a firewall would be bypassed; IPsec policies are ignored, too.
    #[arg(long)]
    ignore_firewall: bool,
    /// Neither filter the system calls of the process by seccomp nor protect files from it by Landlock, for debuggers
    /// and hook functions that need more.
    #[arg(long)]
    no_sandbox: bool,
    /// Serve metrics (OpenMetrics, for Prometheus) and a page with live figures over HTTP, at ADDR:PORT or at a unix
    /// socket, unix:PATH. Each client that can connect can read them [default without an address: 127.0.0.1:9112].
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = METRICS_DEFAULT)]
    metrics: Option<MetricsAddr>,
    /// Write messages of this severity, and more severe ones; debug: also each event of `ferroute monitor` [default: info].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// Write messages to standard error in this format; auto: as entries with fields if it is the journal, as text
    /// otherwise [default: auto].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

impl RunArgs {
    /// Combines flags and file.
    ///
    /// # Errors
    /// When either is invalid.
    pub fn options(&self, global: &Global) -> Result<RunOptions> {
        let flags = self.flags(global);
        match &self.config {
            Some(path) => Ok(Source::new(path, flags).read()?),
            None => Ok(RunOptions::resolve(flags, None).map_err(Usage)?),
        }
    }

    /// As [`RunArgs::options`], with the default file if neither a file nor an interface is given.
    ///
    /// # Errors
    /// When either is invalid.
    pub fn options_of_service(&self, global: &Global) -> Result<RunOptions> {
        match self.config.is_none() && self.interfaces.is_empty() {
            true => Ok(Source::new(DEFAULT_FILE.as_ref(), self.flags(global)).read()?),
            false => self.options(global),
        }
    }

    fn flags(&self, global: &Global) -> RunFlags {
        RunFlags {
            interfaces: self.interfaces.clone(),
            max_ports: self.max_ports,
            mode: self.mode,
            driver: self.driver.map(DriverKind::from),
            poll: self.poll.map(PollMode::from),
            busy_budget: self.busy_budget,
            cpus: self.cpus.clone(),
            queues: self.queues,
            pin_irqs: self.pin_irqs,
            latency_sample: self.latency_sample,
            offload: OffloadFlags {
                mode: self.offload,
                threshold: self.offload_threshold,
                flows: self.offload_flows,
            },
            worker_timeout_ms: self.worker_timeout,
            control_timeout_ms: self.control_timeout,
            account: self.account,
            ignore_firewall: self.ignore_firewall,
            no_sandbox: self.no_sandbox,
            metrics: self.metrics.clone(),
            log_level: self.log_level,
            log_format: self.log_format,
            runtime_dir: global.runtime_dir.clone(),
            control: global.control.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Config;

    #[test]
    fn the_example_in_the_help_is_right() {
        let lines = EXAMPLE.lines().skip(1).take_while(|line| !line.starts_with('`'));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        let config = Config::parse(&text, "example".as_ref()).expect("is right");
        let options = RunOptions::resolve(RunFlags::default(), config.run).expect("is right");
        assert_eq!(options.cpus.map(|list| list.cpus().len()), Some(5));
    }
}
