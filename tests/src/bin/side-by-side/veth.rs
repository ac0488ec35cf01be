//! End to end on veth: host, router, host, with different routers in the middle.
//!
//! `ferroute bench` measures every entrant in the same way: a number of packets in flight, then half of
//! that rate for the latency, then one packet every 10 ms. Each run has its own lab, so that no state of one
//! entrant remains for the next.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::{Ferroute, Lab, Netns, ferroute};
use serde_json::Value;

use crate::Plan;
use crate::dpdk::{self, Testpmd};
use crate::host::tsc_mhz;
use crate::rounds::{Entrant, Metric, Sample, Section};

const METRICS: [Metric; 8] = [
    Metric { key: "pps", title: "closed loop, 512 packets in flight, kpps", digits: 1 },
    Metric { key: "user", title: "userspace, cycles per packet", digits: 0 },
    Metric { key: "kick", title: "send system calls, cycles per packet", digits: 0 },
    Metric { key: "p50", title: "latency at half load, p50, µs", digits: 0 },
    Metric { key: "p99", title: "latency at half load, p99, µs", digits: 0 },
    Metric { key: "p999", title: "latency at half load, p99.9, µs", digits: 0 },
    Metric { key: "first50", title: "first packet after 10 ms of silence, p50, µs", digits: 0 },
    Metric { key: "first99", title: "first packet after 10 ms of silence, p99, µs", digits: 0 },
];
const RATES: [&str; 6] = ["pps", "p50", "p99", "p999", "first50", "first99"];
const NOTE: &str = "\
Frames of 64 octets (60 on veth, which has no FCS), one flow, one direction; generator and sink are \
XDP programs, and userspace entrants forward on the other CPU. Cycles are TSC cycles over turns with \
packets that took less than 1 ms; peers that do not report them have none. Half load is half of the \
entrant's own closed loop. If the machine has gaps in CPU time, latencies above the median are mostly \
these gaps. After 10 ms of silence an entrant that sleeps when idle is asleep, so this includes the \
wake-up latency. xdp_fib and the kernel forward on the generator's CPU, within its system call.";
/// Packets in flight.
const WINDOW: &str = "512";
/// Packets per second, 10 ms apart.
const SPARSE: &str = "100";
/// A capture filter that matches none of the packets.
const OTHERS: &str = "udp port 9999 and host 203.0.113.9";
/// How long an entrant may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The router in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Middle {
    /// With these arguments more, and without offload.
    Ferroute(&'static [&'static str]),
    /// With flow offload: hardly any packet reaches userspace.
    Offloaded,
    /// With a capture on all ports that has this filter, and writes what it takes to /dev/null.
    Captured(&'static str),
    Reflector,
    ReflectorXsk,
    Testpmd,
    XdpFib,
    Kernel,
}

/// The section.
pub fn section(plan: &Plan) -> Section<'_> {
    let entrant = |name: &str, middle: Middle| {
        let costs = match middle {
            Middle::Testpmd | Middle::XdpFib | Middle::Kernel | Middle::Offloaded => &[][..],
            _ => &["user", "kick"],
        };
        Entrant {
            name: name.into(),
            gives: [&RATES[..], costs].concat(),
            run: Box::new(move || measure(plan, middle)),
        }
    };
    Section {
        title: "End to end on veth".into(),
        note: NOTE.into(),
        metrics: METRICS.to_vec(),
        entrants: vec![
            entrant("Ferroute", Middle::Ferroute(&[])),
            entrant("Ferroute, --poll busy", Middle::Ferroute(&["--poll", "busy"])),
            entrant("Ferroute, --poll interrupt", Middle::Ferroute(&["--poll", "interrupt"])),
            entrant("Ferroute, --offload on", Middle::Offloaded),
            entrant("Ferroute (xsk-rs)", Middle::Ferroute(&["--driver", "xsk-rs"])),
            entrant("Ferroute, a capture that matches nothing", Middle::Captured(OTHERS)),
            entrant("Ferroute, a capture of everything", Middle::Captured("")),
            entrant("bare reflector, our AF_XDP driver", Middle::Reflector),
            entrant("bare reflector, xsk-rs", Middle::ReflectorXsk),
            entrant("DPDK testpmd mac, net_af_xdp", Middle::Testpmd),
            entrant("XDP bpf_fib_lookup + redirect", Middle::XdpFib),
            entrant("kernel forwarding", Middle::Kernel),
        ],
    }
}

/// One measurement: the closed loop with its costs, then the latency at half of its rate, then the latency
/// of packets far apart.
fn measure(plan: &Plan, middle: Middle) -> Result<Sample> {
    let lab = Lab::up()?;
    neighbours(&lab, middle)?;
    let mut running = Running::start(plan, &lab, middle)?;
    let cost = running.cost_so_far()?;
    let seconds = if plan.quick { "2" } else { "4" };
    let closed = ["--window", WINDOW, "--repeat", "1", "--duration"];
    let answer = load(&lab, &[&closed[..], &[seconds, "--tests", "throughput"]].concat())
        .map_err(|error| running.explain(error))?;
    let pps = answer["closed"]["rate"]["pps"].as_f64().context("no rate")?;
    ensure!(pps > 0.0, "nothing came through in a closed loop");
    let mut sample = Sample::from([("pps", pps / 1e3)]);
    if let Some((user_ns, kick_ns)) = running.cost_since(cost)? {
        sample.insert("user", user_ns * tsc_mhz() / 1e3);
        sample.insert("kick", kick_ns * tsc_mhz() / 1e3);
    }
    let seconds = if plan.quick { "0.5" } else { "3" };
    let answer = load(&lab, &[&closed[..], &[seconds, "--tests", "latency"]].concat())
        .map_err(|error| running.explain(error))?;
    sample.extend(half_load(&answer)?);
    let seconds = if plan.quick { "1" } else { "5" };
    let answer = load(&lab, &["--ratep", SPARSE, "--duration", seconds])
        .map_err(|error| running.explain(error))?;
    for (key, name) in [("first50", "p50_ns"), ("first99", "p99_ns")] {
        let percentile = answer["latency"][0][name].as_f64().context("no percentiles")?;
        sample.insert(key, percentile / 1e3);
    }
    Ok(sample)
}

/// Of the results of a latency test the percentiles at half load, µs.
pub fn half_load(answer: &Value) -> Result<Sample> {
    let loads = answer["latency"].as_array().context("no latency")?;
    let half = loads.iter().find(|at| at["load_percent"].as_f64() == Some(50.0));
    let half = half.context("no latency at half load")?;
    let percentiles = [("p50", "p50_ns"), ("p99", "p99_ns"), ("p999", "p99.9_ns")];
    let percentile = |(key, name)| Ok((key, half[name].as_f64().context("no percentiles")? / 1e3));
    percentiles.into_iter().map(percentile).collect()
}

/// Has neighbours that are permanent from the start: a reflector does not answer ARP.
pub fn neighbours(lab: &Lab, middle: Middle) -> Result<()> {
    let mac = |ns: &Netns, port: &str| -> Result<String> {
        let links: Value = serde_json::from_str(&ns.run(&format!("ip -j link show dev {port}"))?)?;
        Ok(links[0]["address"].as_str().context("no MAC address")?.to_owned())
    };
    let (left, right) = (mac(&lab.left, "left")?, mac(&lab.right, "right")?);
    let (rt_left, rt_right) = (mac(&lab.router, "rt-left")?, mac(&lab.router, "rt-right")?);
    for (ns, port, address, mac) in [
        (&lab.left, "left", "198.18.1.1", &rt_left),
        (&lab.right, "right", "198.18.2.1", &rt_right),
        (&lab.router, "rt-left", "198.18.1.2", &left),
        (&lab.router, "rt-right", "198.18.2.2", &right),
        (&lab.router, "rt-right", "2001:db8:2::2", &right),
    ] {
        ns.run(&format!("ip neigh replace {address} lladdr {mac} dev {port} nud permanent"))?;
    }
    // veth takes frames from XDP at a port with a program or with GRO (veth_xdp_xmit).
    if middle == Middle::Kernel {
        for port in ["rt-left", "rt-right"] {
            lab.router.run(&format!("ethtool -K {port} gro on"))?;
        }
    }
    Ok(())
}

/// Results of `ferroute bench`, for frames of 64 octets if the arguments name no size.
pub fn load(lab: &Lab, args: &[&str]) -> Result<Value> {
    let (tx, rx) = (format!("left@{}", lab.left.name()), format!("right@{}", lab.right.name()));
    let mut command = Command::new(ferroute::binary());
    command.args(["bench", "-j", "--quiet", "--tx", &tx, "--rx", &rx, "--cpus", "0"]).args(args);
    if !args.contains(&"--sizes") {
        command.args(["--sizes", "64"]);
    }
    let answer: Value = serde_json::from_str(&dpdk::run(&mut command)?).context("reading JSON")?;
    Ok(answer["sizes"][0].clone())
}

/// The running router; dropping it ends it.
pub enum Running {
    Ferroute(Box<Ferroute>),
    /// The capture ends before what it captures.
    Captured(#[expect(dead_code, reason = "it ends when this is dropped")] Program, Box<Ferroute>),
    Offloaded(Box<Ferroute>),
    Reflector(Program),
    Testpmd(#[expect(dead_code, reason = "it ends when this is dropped")] Box<Testpmd>),
    XdpFib(Program),
    Kernel,
}

/// State of an account of costs.
enum Cost {
    Unknown,
    /// Frames, nanoseconds in userspace and in system calls.
    Ferroute([f64; 3]),
    /// Lines printed so far.
    Reflector(usize),
}

impl Running {
    pub fn start(plan: &Plan, lab: &Lab, middle: Middle) -> Result<Self> {
        let program = |target: &str, args: &[&str]| -> Result<Program> {
            let mut command = lab.router.command(plan.built.path(target)?);
            command.args(["rt-left", "rt-right"]).args(args);
            Program::start(command, 2)
        };
        let cpu = dpdk::cpu();
        let ferroute = |more: &[&str]| {
            let args = [&["--cpus", &cpu, "--account"], more].concat();
            Ferroute::start_with(lab, &args).map(Box::new)
        };
        Ok(match middle {
            Middle::Ferroute(more) => {
                let off = if more.contains(&"--offload") { &[][..] } else { &["--offload", "off"] };
                Self::Ferroute(ferroute(&[off, more].concat())?)
            }
            Middle::Offloaded => Self::Offloaded(ferroute(&["--offload", "on"])?),
            Middle::Captured(filter) => {
                let ferroute = ferroute(&["--offload", "off"])?;
                let args = ["capture", "-i", "any", "-w", "/dev/null", filter];
                let capture = Program::start(ferroute.command(&args), 1)?;
                Self::Captured(capture, ferroute)
            }
            Middle::Reflector => Self::Reflector(program("reflector", &[&cpu])?),
            Middle::ReflectorXsk => Self::Reflector(program("reflector_xsk", &[&cpu])?),
            Middle::Testpmd => {
                let vdevs = ["net_af_xdp0,iface=rt-left", "net_af_xdp1,iface=rt-right"];
                let mut testpmd = Testpmd::start(lab.router.command("env"), vdevs)?;
                testpmd.say("start")?;
                Self::Testpmd(Box::new(testpmd))
            }
            Middle::XdpFib => Self::XdpFib(program("xdp_forward", &[])?),
            Middle::Kernel => Self::Kernel,
        })
    }

    /// The daemon, if it is Ferroute.
    pub fn ferroute(&self) -> Option<&Ferroute> {
        match self {
            Self::Ferroute(ferroute) | Self::Captured(_, ferroute) | Self::Offloaded(ferroute) => {
                Some(ferroute)
            }
            _ => None,
        }
    }

    fn cost_so_far(&self) -> Result<Cost> {
        Ok(match self {
            Self::Ferroute(ferroute) | Self::Captured(_, ferroute) => {
                Cost::Ferroute(account(ferroute)?)
            }
            Self::Reflector(program) => Cost::Reflector(program.lines().len()),
            _ => Cost::Unknown,
        })
    }

    /// Nanoseconds per packet in userspace and in system calls.
    fn cost_since(&self, before: Cost) -> Result<Option<(f64, f64)>> {
        Ok(match (self, before) {
            (Self::Ferroute(ferroute) | Self::Captured(_, ferroute), Cost::Ferroute(before)) => {
                let now = account(ferroute)?;
                let [frames, user, kick] = std::array::from_fn(|at| now[at] - before[at]);
                ensure!(frames > 0.0, "ferroute forwarded nothing in userspace");
                Some((user / frames, kick / frames))
            }
            (Self::Reflector(program), Cost::Reflector(before)) => {
                busiest_second(&program.lines()[before..])
            }
            _ => None,
        })
    }

    /// Adds the program's output to an error.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self {
            Self::Reflector(program) | Self::XdpFib(program) => {
                let said = program.lines().last().cloned().unwrap_or_default();
                error.context(format!("its last output: {said:?}"))
            }
            _ => error,
        }
    }
}

/// Frames, nanoseconds in userspace and in system calls, of all workers.
fn account(ferroute: &Ferroute) -> Result<[f64; 3]> {
    let stat = ferroute.json(&["stat"])?;
    let workers = stat["workers"].as_array().context("no workers")?;
    let sum = |key| workers.iter().filter_map(|worker| worker["cost"][key].as_f64()).sum();
    Ok(["frames", "user_ns", "kick_ns"].map(sum))
}

/// The line with the most packets: a reflector prints one per second, `N packets, userspace X ns, kick Y ns
/// per packet, …`.
fn busiest_second(lines: &[String]) -> Option<(f64, f64)> {
    let parse = |line: &String| -> Option<(f64, f64, f64)> {
        let after = |word: &str| {
            let rest = &line[line.find(word)? + word.len()..];
            rest.split_whitespace().next()?.parse().ok()
        };
        Some((line.split_whitespace().next()?.parse().ok()?, after("userspace")?, after("kick")?))
    };
    let seconds = lines.iter().filter_map(parse).filter(|second| second.0 > 0.0);
    seconds.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, user, kick)| (user, kick))
}

/// A running program, killed when this is dropped.
pub struct Program {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Program {
    /// Waits until it has printed the number of lines that shows that it is ready.
    pub fn start(mut command: Command, ready: usize) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting it")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as Box<_>),
            child.stderr.take().map(|err| Box::new(err) as Box<_>),
        ];
        for output in outputs.into_iter().flatten() {
            let lines = Arc::clone(&lines);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap_or_else(|poison| poison.into_inner()).push(line);
                }
            });
        }
        let mut this = Self { child, lines };
        let end = Instant::now() + START_TIMEOUT;
        while this.lines().len() < ready {
            if let Some(status) = this.child.try_wait()? {
                bail!("{status}: {}", this.lines().join(" "));
            }
            ensure!(Instant::now() < end, "it does not start: {}", this.lines().join(" "));
            thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(|poison| poison.into_inner()).clone()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reflector_is_measured_by_its_busiest_second() {
        let line = |packets, user, kick| {
            format!("{packets} packets, userspace {user} ns, kick {kick} ns per packet, 0 dropped")
        };
        let lines = [
            "rt-left: copy".to_owned(),
            line(0, "0.0", "0.0"),
            line(1000, "90.5", "2000.0"),
            line(400_000, "40.5", "1800.0"),
        ];
        assert_eq!(busiest_second(&lines), Some((40.5, 1800.0)));
        assert_eq!(busiest_second(&lines[..2]), None);
    }
}
