//! `bench`: RFC 2544 tests between two ports of a device under test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use super::{Global, Usage, output};
use crate::control::config::CpuList;
use crate::control::process::signals::Signals;
use crate::histogram::OutFile;
use crate::load::rfc2544::ports::Ports;
use crate::load::rfc2544::{self, FrameSize, Plan, Report, Test, TrialError};
use crate::load::{LoadError, Pace, Place, Span, Traffic, next_hop};
use crate::wire::MacAddr;

/// Explanation of the options, printed after the help.
const NOTES: &str = "\
Packets leave by --tx, pass through the device under test, and are counted at --rx. A port may be in
another network namespace: left@fr-left. Try it in the lab, with a router in the middle:
  scripts/lab up
  scripts/lab exec router ferroute run -i rt-left -i rt-right
  ferroute bench --tx left@fr-left --rx right@fr-right --sizes 64 --window 512

Frame sizes include the four octets of the FCS, as in RFC 2544; pktgen's do not. The sender is an
XDP program over live frames; the driver of its port must accept frames from XDP. The port at --rx
must have no XDP program. Packets that are not the trial's go to the kernel as before.

Without --window the loop is open: packets are offered at a rate, and those that do not come back
are lost. If a machine's CPU time has gaps (virtual machines), packets are lost in these at any rate,
and the gaps determine the throughput without loss. With --window no more than N packets are in
flight, and the result is how fast the device is while it runs; the tests are throughput and latency.

A run of all tests and sizes takes about 50 trials per size. Ctrl-C ends it with the results so far.
Exit status 0: success; 1: failure, or interrupted; 2: wrong usage.";

/// Seconds of a trial, which must be longer than the gaps in a busy machine's CPU time.
const SECONDS: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;
/// Packets per second; at lower rates hardly any packet would be sent during a trial.
const RATES: std::ops::RangeInclusive<f64> = 1.0..=1e9;
/// More packets than any ring and queue hold.
const WINDOW_MAX: u64 = 1 << 20;

/// An interface, perhaps in another namespace: `IFACE`, `IFACE@NETNS`.
#[derive(Debug, Clone)]
struct PlaceArg(Place);

impl FromStr for PlaceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<PlaceArg, String> {
        let place = match text.split_once('@') {
            None => Place::here(text),
            Some((ifname, netns)) => Place::within(netns, ifname),
        };
        if place.ifname.is_empty() || place.netns.as_deref() == Some("") {
            return Err("expected IFACE, or IFACE@NETNS for one in another namespace".into());
        }
        Ok(PlaceArg(place))
    }
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct BenchArgs {
    /// Send packets on this port.
    #[arg(long, value_name = "IFACE[@NETNS]")]
    tx: PlaceArg,
    /// Receive packets on this port.
    #[arg(long, value_name = "IFACE[@NETNS]")]
    rx: PlaceArg,
    /// Tests, separated by commas [default: all; throughput and latency with --window].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    tests: Vec<Test>,
    /// Frame sizes with the FCS, and imix, separated by commas [default:
    /// 64,128,256,512,1024,1280,1518,imix].
    #[arg(short, long, value_name = "LIST", value_delimiter = ',')]
    sizes: Vec<FrameSize>,
    /// Length of a trial; RFC 2544 requires at least 60 for published results.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    duration: f64,
    /// Also search for the highest rate with no more than this loss (partial drop rate).
    #[arg(long, value_name = "PERCENT")]
    loss: Option<f64>,
    /// Resolution of a search, in percent of the highest rate.
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    resolution: f64,
    /// Closed loop: at most this many packets in flight.
    #[arg(long, value_name = "N", conflicts_with_all = ["loss"])]
    window: Option<u64>,
    /// Measure only the latency at this rate, in packets per second: at a low rate the device is idle when
    /// each packet arrives.
    #[arg(long, value_name = "PPS", conflicts_with_all = ["tests", "loss", "window"])]
    ratep: Option<f64>,
    /// How often closed loops and burst searches are repeated.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Destination address [default: that of --rx].
    #[arg(short = 'd', long, value_name = "IP")]
    dst: Option<IpAddr>,
    /// Source address [default: that of --tx].
    #[arg(long, value_name = "IP")]
    src: Option<IpAddr>,
    /// The last destination address: each packet has the next one, from --dst on (RFC 2544, 12).
    #[arg(long, value_name = "IP", requires = "dst")]
    dst_max: Option<IpAddr>,
    /// MAC address of the device [default: that of the next hop from --tx to the destination].
    #[arg(short = 'm', long, value_name = "MAC")]
    dst_mac: Option<MacAddr>,
    /// Number of flows, which differ in the UDP source port.
    #[arg(long, value_name = "N", default_value_t = 1)]
    flows: u16,
    /// Packets carry no time stamps: the generator is faster, and nothing is known about latency.
    #[arg(long, conflicts_with = "ratep")]
    no_timestamp: bool,
    /// Number of sending threads.
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// CPUs for the sending threads, like 0-3,5.
    #[arg(long, value_name = "LIST")]
    cpus: Option<CpuList>,
    /// Write PREFIX.md, PREFIX.json and (if latency was measured) PREFIX.svg.
    #[arg(short, long, value_name = "PREFIX")]
    report: Option<PathBuf>,
    /// Do not report each trial on standard error.
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the tests and prints the results.
pub fn bench(global: &Global, args: &BenchArgs) -> Result<ExitCode> {
    let plan = args.plan()?;
    let mut files = args.report.as_deref().map(Files::create).transpose()?;
    let traffic = args.traffic(global)?;
    let sizes = args.sizes(&traffic)?;
    let plan = Plan { sizes, ..plan };
    args.check_mtu(&plan, &traffic)?;
    let signals = Signals::take()?;
    // A signal is reported once, and ends everything.
    let came = std::cell::Cell::new(false);
    let interrupted = || {
        came.set(came.get() || signals.came());
        came.get()
    };
    let mut progress = |text: &str| {
        if !args.quiet {
            output::note(format_args!("{text}"));
        }
    };
    let (tx, rx) = (args.tx.0.clone(), args.rx.0.clone());
    let cpus = args.cpus.as_ref().map_or_else(Vec::new, |list| list.cpus().to_vec());
    let pace = Pace { threads: args.threads, cpus, ..Pace::default() };
    let mut ports = Ports::open(tx, rx, traffic, pace, &interrupted, &mut progress)?;
    let size = *plan.sizes.first().context("no frame size")?;
    // A failure before the first trial leaves no report.
    ports.probe(size)?;
    let (mut report, ended) = rfc2544::run(&plan, &mut ports);
    drop(ports);
    (report.from, report.to) = (args.tx.0.to_string(), args.rx.0.to_string());
    report.interrupted = matches!(ended, Some(TrialError::Interrupted));
    if let Some(files) = &mut files {
        files.write(&report)?;
    }
    let output = global.output();
    if output.json { output.json(&report) } else { output.text(&report.markdown()) }?;
    match ended {
        None => Ok(ExitCode::SUCCESS),
        Some(TrialError::Interrupted) => Ok(ExitCode::FAILURE),
        Some(error) => Err(error.into()),
    }
}

impl BenchArgs {
    /// The part of the plan that does not depend on the ports.
    fn plan(&self) -> Result<Plan> {
        let usage = |text: String| -> Result<Plan> { Err(Usage(text).into()) };
        if !SECONDS.contains(&self.duration) {
            return usage(format!("--duration {}: from 0.1 to 86400 seconds", self.duration));
        }
        if let Some(loss) = self.loss
            && !(loss > 0.0 && loss < 100.0)
        {
            return usage(format!("--loss {loss}: a percentage between 0 and 100"));
        }
        if !(0.01..=50.0).contains(&self.resolution) {
            return usage(format!("--resolution {}: from 0.01 to 50 percent", self.resolution));
        }
        if let Some(window) = self.window
            && !(1..=WINDOW_MAX).contains(&window)
        {
            return usage(format!("--window {window}: from 1 to {WINDOW_MAX} packets"));
        }
        if let Some(pps) = self.ratep
            && !RATES.contains(&pps)
        {
            return usage(format!("--ratep {pps}: from 1 to 1e9 packets per second"));
        }
        if self.repeat == 0 || self.threads == 0 || self.flows == 0 {
            return usage("--repeat, --threads and --flows: at least 1".into());
        }
        let closed = [Test::Throughput, Test::Latency];
        let tests = match (self.tests.as_slice(), self.window) {
            ([], None) if self.ratep.is_some() => vec![Test::Latency],
            ([], Some(_)) => closed.to_vec(),
            ([], None) => vec![Test::Throughput, Test::Latency, Test::Loss, Test::Burst],
            (some, Some(_)) if some.iter().any(|test| !closed.contains(test)) => {
                return usage("--window: only throughput and latency have a closed loop".into());
            }
            (some, _) => some.to_vec(),
        };
        if self.no_timestamp && tests.contains(&Test::Latency) {
            return usage("--no-timestamp: no test of latency; see --tests".into());
        }
        Ok(Plan {
            sizes: Vec::new(),
            tests,
            length: Duration::from_secs_f64(self.duration),
            loss: self.loss.map(|percent| percent / 100.0),
            resolution: self.resolution / 100.0,
            window: self.window,
            rate_pps: self.ratep,
            repeat: self.repeat,
        })
    }

    fn sizes(&self, traffic: &Traffic) -> Result<Vec<FrameSize>> {
        if self.sizes.is_empty() {
            return Ok(FrameSize::all(traffic));
        }
        for size in &self.sizes {
            let of_size = Traffic { sizes: size.sizes(traffic.size_min()), ..traffic.clone() };
            of_size.check().map_err(|error| Usage(format!("--sizes {size}: {error}")))?;
        }
        Ok(self.sizes.clone())
    }

    /// A size that a port cannot carry is refused before the first trial, not hours later.
    fn check_mtu(&self, plan: &Plan, traffic: &Traffic) -> Result<()> {
        for place in [&self.tx.0, &self.rx.0] {
            let nic = place.usable()?;
            let max = traffic.size_limit(nic.mtu);
            for size in &plan.sizes {
                let sizes = size.sizes(traffic.size_min());
                let longest = Traffic { sizes, ..traffic.clone() }.size_max();
                if longest > max {
                    let (mtu, place) = (nic.mtu, place.to_string());
                    return Err(LoadError::TooLong { place, size: longest, mtu, max }.into());
                }
            }
        }
        Ok(())
    }

    fn traffic(&self, global: &Global) -> Result<Traffic> {
        let rx = self.rx.0.usable()?;
        let (tx_place, tx) = (&self.tx.0, self.tx.0.usable()?);
        if (&self.tx.0, tx.ifindex) == (&self.rx.0, rx.ifindex) {
            return Err(Usage("--tx and --rx are the same port".into()).into());
        }
        let dst = match self.dst {
            Some(dst) => dst,
            None => address(&self.rx.0, global)?,
        };
        let found = tx_place.run(|| Ok(next_hop::look_up(tx.ifindex, dst)))?;
        let src = match (self.src, &found) {
            (Some(src), _) => src,
            (None, Ok(way)) => way.source.with_context(|| {
                format!("{tx_place} has no address to send to {dst} from; give --src")
            })?,
            (None, Err(error)) => {
                let error = std::io::Error::from(error.kind());
                let why = format!("no route to {dst} by {tx_place}; give --src and --dst-mac");
                return Err(anyhow::Error::new(error).context(why));
            }
        };
        let mac = match self.dst_mac {
            Some(mac) => mac,
            None => {
                let hop = found
                    .with_context(|| format!("no route to {dst} by {tx_place}; give --dst-mac"))?;
                let hop = hop.next_hop;
                let asked = tx_place.run(|| Ok(next_hop::resolve(tx.ifindex, &tx.name, hop)))?;
                let silent =
                    || format!("{hop} at {tx_place} does not answer with its MAC; give --dst-mac");
                MacAddr(asked.with_context(silent)?.with_context(silent)?)
            }
        };
        let mut traffic = Traffic::new(mac.0, src, dst);
        traffic.timestamp = !self.no_timestamp;
        if let Some(max) = self.dst_max {
            traffic.destination = Span::step(dst, max);
        }
        if self.flows > 1 {
            traffic.source_port = Span::step(1, self.flows);
        }
        traffic.check().map_err(|error| Usage(error.to_string()))?;
        Ok(traffic)
    }
}

/// An address of a port, of the given family (IPv4 first).
fn address(place: &Place, global: &Global) -> Result<IpAddr> {
    let found = place.run(|| Ok(nix::ifaddrs::getifaddrs().map(Iterator::collect::<Vec<_>>)))??;
    let here = found.into_iter().filter(|entry| entry.interface_name == place.ifname);
    let mut addresses: Vec<IpAddr> = here
        .filter_map(|entry| {
            let storage = entry.address?;
            let four = storage.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            four.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .filter(|addr| !matches!(addr, IpAddr::V6(a) if a.is_unicast_link_local()))
        .filter(|addr| if global.inet6 { addr.is_ipv6() } else { addr.is_ipv4() || !global.inet })
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    let none = || format!("{place} has no such address to send to; give --dst");
    addresses.first().copied().with_context(none)
}

/// The files of a report, created before the first trial.
struct Files {
    markdown: OutFile,
    json: OutFile,
    svg: PathBuf,
}

impl Files {
    fn create(prefix: &Path) -> Result<Files> {
        let path = |extension: &str| {
            let mut name = prefix.as_os_str().to_owned();
            name.push(extension);
            PathBuf::from(name)
        };
        Ok(Files {
            markdown: OutFile::create(&path(".md"))?,
            json: OutFile::create(&path(".json"))?,
            svg: path(".svg"),
        })
    }

    fn write(&mut self, report: &Report) -> Result<()> {
        self.markdown.write(|out| out.write_all(report.markdown().as_bytes()))?;
        self.json.write(|out| Ok(serde_json::to_writer_pretty(out, report)?))?;
        self.markdown.commit()?;
        self.json.commit()?;
        if let Some(picture) = report.svg()? {
            let mut svg = OutFile::create(&self.svg)?;
            svg.write(|out| out.write_all(picture.as_bytes()))?;
            svg.commit()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn plan(line: &str) -> Result<Plan, String> {
        let words = ["bench", "--tx", "a@x", "--rx", "b"].into_iter().chain(line.split(' '));
        let cli = Cli::try_parse_from(words.filter(|word| !word.is_empty()));
        cli.map_err(|error| error.to_string())?.bench.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn ports_may_be_in_another_namespace() {
        let place: PlaceArg = "left@fr-left".parse().expect("is right");
        assert_eq!(place.0, Place::within("fr-left", "left"));
        let place: PlaceArg = "eth0".parse().expect("is right");
        assert_eq!(place.0, Place::here("eth0"));
        for wrong in ["", "@", "a@", "@a"] {
            assert!(wrong.parse::<PlaceArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_tests_are_the_default_and_a_closed_loop_has_two() {
        assert_eq!(plan("").expect("is right").tests.len(), 4);
        let closed = plan("--window 512").expect("is right").tests;
        assert_eq!(closed, [Test::Throughput, Test::Latency]);
    }

    #[test]
    fn impossible_options_are_refused() {
        for (line, says) in [
            ("--duration 0", "from 0.1"),
            ("--duration nan", "from 0.1"),
            ("--loss 100", "between 0 and 100"),
            ("--resolution 0", "from 0.01"),
            ("--window 0", "from 1 to"),
            ("--window 9999999", "from 1 to"),
            ("--repeat 0", "at least 1"),
            ("--sizes 10", "64 octets or more"),
            ("--window 5 --tests loss", "closed loop"),
            ("--window 5 --loss 1", "cannot be used with"),
            ("--tests speed", "invalid value"),
        ] {
            let error = plan(line).expect_err(line);
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
