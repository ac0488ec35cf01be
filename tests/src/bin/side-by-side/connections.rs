//! Rulesets that track connections: short connections, which the kernel has from the first packet to the last, and a
//! million connections that are carried.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::account::interface;
use ferroute_tests::bpf::Attached;
use ferroute_tests::conversation::nft;
use ferroute_tests::lab::addr::{LEFT4, RIGHT4};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{Ipv4, ethernet, tcp_segment, udp};
use ferroute_tests::{Ferroute, Lab, Netns};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket};

use crate::Plan;
use crate::rounds::{Entrant, Metric, Sample, Section};

const RULESET: &str = "
table inet fw {
    set blocked { type ipv4_addr; }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ip saddr @blocked drop
        ct state established,related counter accept
        ct state invalid counter drop
        ct state new tcp dport 5000-6000 counter accept
        ct state new udp dport 5000-6000 counter accept
    }
}
";

const SHORT_NOTE: &str = "\
Connections over veth that end before they are carried: TCP of 7 packets (SYN to the last ACK), UDP of 4. Packet \
sockets of one thread send the packets of both ends, so that the router's kernel handles each within the system call \
that sends it. All entrants, Ferroute's threads among them, share one CPU. The kernel has a program that passes all \
packets on both ports.";
const SHORT_METRICS: [Metric; 3] = [
    Metric { key: "tcp", title: "short TCP connections, 1000 per second", digits: 1 },
    Metric { key: "udp", title: "short UDP connections, 1000 per second", digits: 1 },
    Metric { key: "ct", title: "thread fr-ct, % of the CPU", digits: 1 },
];

/// Who forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Router {
    Ferroute,
    Kernel,
}

/// Short connections: Ferroute against the kernel.
pub fn short(plan: &Plan) -> Section<'_> {
    let entrant = |name: &str, router, gives: &[&'static str]| Entrant {
        name: name.into(),
        gives: gives.to_vec(),
        run: Box::new(move || measure_short(plan, router)),
    };
    Section {
        title: "Short connections through a ruleset that tracks them".into(),
        note: SHORT_NOTE.into(),
        metrics: SHORT_METRICS.to_vec(),
        entrants: vec![
            entrant("Ferroute", Router::Ferroute, &["tcp", "udp", "ct"]),
            entrant("kernel, with an XDP program", Router::Kernel, &["tcp", "udp"]),
        ],
    }
}

fn measure_short(plan: &Plan, router: Router) -> Result<Sample> {
    let lab = Lab::up()?;
    nft(&lab.router, RULESET)?;
    // So that the table does not fill up.
    for timeout in ["tcp_timeout_time_wait", "udp_timeout", "udp_timeout_stream"] {
        lab.router.sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "1")?;
    }
    silence(&lab)?;
    let mut attached = Vec::new();
    let running = match router {
        Router::Ferroute => Some(Ferroute::start_with(&lab, &["--cpus", "0", "--offload", "off"])?),
        Router::Kernel => {
            for port in ["rt-left", "rt-right"] {
                attached.push(Attached::new(&lab.router, &format!("pass xdp {port}"))?);
            }
            None
        }
    };
    let pid = running.as_ref().and_then(Ferroute::pid);
    if let Some(pid) = pid {
        pin(pid)?;
    }
    let ends = [Port::open(&lab.left, "left")?, Port::open(&lab.right, "right")?];
    let duration = Duration::from_millis(if plan.quick { 500 } else { 3000 });
    let mut sample = Sample::new();
    let (begun, before) = (Instant::now(), pid.map(fr_ct_ticks).transpose()?);
    for (key, is_tcp) in [("tcp", true), ("udp", false)] {
        let rate = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                pin(nix::unistd::gettid().as_raw() as u32)?;
                send_short(&lab, &ends, is_tcp, duration)
            });
            sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        sample.insert(key, rate / 1e3);
    }
    if let (Some(pid), Some(before)) = (pid, before) {
        let busy_s = (fr_ct_ticks(pid)? - before) as f64 / 100.0;
        sample.insert("ct", busy_s / begun.elapsed().as_secs_f64() * 100.0);
    }
    Ok(sample)
}

/// Takes the hosts' addresses away, so that they answer nothing; the router knows their MAC addresses.
fn silence(lab: &Lab) -> Result<()> {
    for (host, port, address) in [(&lab.left, "left", LEFT4), (&lab.right, "right", RIGHT4)] {
        let links: serde_json::Value =
            serde_json::from_str(&host.run(&format!("ip -j link show dev {port}"))?)?;
        let mac = links[0]["address"].as_str().context("no MAC address")?;
        host.run(&format!("ip address flush dev {port}"))?;
        let neighbour = format!("{address} lladdr {mac} dev rt-{port} nud permanent");
        lab.router.run(&format!("ip neigh replace {neighbour}"))?;
    }
    Ok(())
}

/// Has a thread, or all threads of a process, run on the first CPU.
fn pin(pid: u32) -> Result<()> {
    let status = std::process::Command::new("taskset")
        .args(["-a", "-p", "-c", "0", &pid.to_string()])
        .stdout(Stdio::null())
        .status()
        .context("taskset")?;
    ensure!(status.success(), "taskset: {status}");
    Ok(())
}

/// Sends connections one after the other, and returns how many per second passed.
fn send_short(lab: &Lab, ends: &[Port; 2], is_tcp: bool, duration: Duration) -> Result<f64> {
    let before = interface(&lab.right, "right")?.rx;
    let (begun, mut sent, mut number) = (Instant::now(), 0u64, 0u32);
    while begun.elapsed() < duration {
        for _ in 0..64 {
            for (from, frame) in connection(number, is_tcp) {
                ends[from].send(&frame)?;
                sent += u64::from(from == 0);
            }
            number += 1;
        }
    }
    let elapsed = begun.elapsed();
    let passed = interface(&lab.right, "right")?.rx - before;
    ensure!(passed + passed / 100 >= sent, "{passed} of {sent} packets arrived");
    Ok(f64::from(number) / elapsed.as_secs_f64())
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The frames of a connection, in their order, with the end that sends them: 0 is the left one.
fn connection(number: u32, is_tcp: bool) -> Vec<(usize, Vec<u8>)> {
    let (left, right) = ([198, 18, 1, 2], [198, 18, 2, 2]);
    // The first entries have expired before their numbers are used again.
    let port = 1024 + (number % 60_000) as u16;
    let server = 5000 + (number / 60_000 % 3) as u16;
    let frame = |from: usize, transport: Vec<u8>| {
        let (src, dst, macs) = match from {
            0 => (left, right, (mac::RT_LEFT, mac::LEFT)),
            _ => (right, left, (mac::RT_RIGHT, mac::RIGHT)),
        };
        let packet = Ipv4::new(src.into(), dst.into(), if is_tcp { 6 } else { 17 });
        (from, ethernet(macs.0, macs.1, 0x0800, &packet.packet(&transport)))
    };
    if !is_tcp {
        let query = || udp(&left, &right, (port, server), b"query");
        let answer = || udp(&right, &left, (server, port), b"answer");
        return vec![frame(0, query()), frame(1, answer()), frame(0, query()), frame(1, answer())];
    }
    let segment = |from: usize, flags: u8, seq: u32, ack: u32| {
        let (src, dst, ports) = match from {
            0 => (left, right, (port, server)),
            _ => (right, left, (server, port)),
        };
        frame(from, tcp_segment(&src, &dst, ports, (seq, ack), flags, b"", b""))
    };
    vec![
        segment(0, SYN, 1, 0),
        segment(1, SYN | ACK, 1, 2),
        segment(0, ACK, 2, 2),
        segment(0, FIN | ACK, 2, 2),
        segment(1, ACK, 2, 3),
        segment(1, FIN | ACK, 2, 3),
        segment(0, ACK, 3, 3),
    ]
}

/// A packet socket that only sends.
struct Port(OwnedFd);

impl Port {
    fn open(namespace: &Netns, port: &str) -> Result<Port> {
        namespace.enter(|| {
            let address = getifaddrs()?
                .filter(|entry| entry.interface_name == port)
                .find_map(|entry| entry.address.as_ref().and_then(|a| a.as_link_addr().copied()))
                .with_context(|| format!("no port {port} in {}", namespace.name()))?;
            let (family, flags) = (AddressFamily::Packet, SockFlag::SOCK_CLOEXEC);
            // Without a protocol, it receives nothing.
            let socket = socket(family, SockType::Raw, flags, None)?;
            bind(socket.as_raw_fd(), &address)?;
            Ok(Port(socket))
        })
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).context("sending a frame")?;
        Ok(())
    }
}

const CARRIED_NOTE: &str = "\
Connections (TCP, ESTABLISHED, IPv4) that `conntrack` has added to the router's table before Ferroute starts. \
Maximum: 1,000,000, or what net.netfilter.nf_conntrack_max of the initial network namespace permits. Time until they \
are carried: from the start of the program. Busy: packet sockets send a packet of each connection in turn. Memory is \
that of the process (RSS) and, of it, that of the table of the XDP program (FR_FLOWS), which is mapped.";
const CARRIED_METRICS: [Metric; 6] = [
    Metric { key: "flows", title: "carried connections", digits: 0 },
    Metric { key: "start", title: "until all are carried, s", digits: 1 },
    Metric { key: "rss", title: "memory, MB", digits: 0 },
    Metric { key: "gate", title: "of it FR_FLOWS, MB", digits: 1 },
    Metric { key: "idle", title: "thread fr-ct, idle, % of a CPU", digits: 1 },
    Metric {
        key: "busy",
        title: "thread fr-ct, packets on all connections, % of a CPU",
        digits: 1,
    },
];
const CONNECTIONS: usize = 1_000_000;
const CONNECTIONS_QUICK: usize = 100_000;

/// A million carried connections.
pub fn carried(plan: &Plan) -> Section<'_> {
    Section {
        title: "Carried connections".into(),
        note: CARRIED_NOTE.into(),
        metrics: CARRIED_METRICS.to_vec(),
        entrants: vec![Entrant {
            name: "Ferroute".into(),
            gives: CARRIED_METRICS.iter().map(|metric| metric.key).collect(),
            run: Box::new(move || measure_carried(plan)),
        }],
    }
}

fn measure_carried(plan: &Plan) -> Result<Sample> {
    let max: usize =
        fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")?.trim().parse()?;
    let wanted = if plan.quick { CONNECTIONS_QUICK } else { CONNECTIONS };
    let count = if max == 0 { wanted } else { wanted.min(max - 1000) };
    let lab = Lab::up()?;
    nft(&lab.router, RULESET)?;
    // As if a program had followed the events when they were added.
    lab.router.sysctl("net/netfilter/nf_conntrack_events", "1")?;
    silence(&lab)?;
    fill(plan, &lab, count)?;
    let begun = Instant::now();
    let running = Ferroute::start_with(&lab, &["--offload", "off"])?;
    let carried = || -> Result<usize> {
        // It may be degraded while the machine is busy.
        let answer = running.command(&["-j", "status"]).output()?.stdout;
        let status: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
        Ok(status["carried_flows"].as_u64().unwrap_or(0) as usize)
    };
    // Some of the last may find their buckets full.
    while carried()? < count - count / 1000 {
        ensure!(
            begun.elapsed() < Duration::from_secs(120),
            "{} of {count} are carried",
            carried()?
        );
        thread::sleep(Duration::from_millis(250));
    }
    let start_s = begun.elapsed().as_secs_f64();
    let pid = running.pid().context("no process")?;
    let mut sample = Sample::from([("start", start_s), ("flows", carried()? as f64)]);
    sample.insert("gate", mapped_octets(pid)? / 1e6);
    thread::sleep(Duration::from_secs(5));
    let duration = Duration::from_secs(if plan.quick { 5 } else { 30 });
    sample.insert("idle", fr_ct_share(pid, duration, || Ok(()))?);
    let left = Port::open(&lab.left, "left")?;
    let mut number = 0;
    let busy = || {
        for _ in 0..64 {
            let (source, port) = endpoint(number % count);
            let to = [198, 18, 2, 2];
            let segment = tcp_segment(&source, &to, (port, 5001), (2, 2), ACK, b"", b"");
            let packet = Ipv4::new(source.into(), to.into(), 6);
            left.send(&ethernet(mac::RT_LEFT, mac::LEFT, 0x0800, &packet.packet(&segment)))?;
            number += 1;
        }
        Ok(())
    };
    sample.insert("busy", fr_ct_share(pid, duration, busy)?);
    sample.insert("rss", status_kb(pid, "VmRSS:")? / 1e3);
    Ok(sample)
}

/// The source address and port of a connection.
fn endpoint(number: usize) -> ([u8; 4], u16) {
    let [_, a, b, c] = (number as u32).to_be_bytes();
    ([10, a, b, c], 1024 + (number * 7 % 60_000) as u16)
}

/// Adds connections to the router's table.
fn fill(plan: &Plan, lab: &Lab, count: usize) -> Result<()> {
    let mut lines = String::new();
    for number in 0..count {
        let ([a, b, c, d], port) = endpoint(number);
        writeln!(
            lines,
            "-I -p tcp -s {a}.{b}.{c}.{d} -d 198.18.2.2 --sport {port} --dport 5001 \
             --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 432000"
        )?;
    }
    restore(plan, lab, &lines)
}

/// Has `conntrack` add the connections of these lines to the router's table.
pub fn restore(plan: &Plan, lab: &Lab, lines: &str) -> Result<()> {
    let path = plan.dir.join("connections");
    fs::write(&path, lines)?;
    let mut conntrack = lab.router.command("conntrack");
    conntrack.arg("-R").arg(&path).stdout(Stdio::null()).stderr(Stdio::null());
    let status = conntrack.status().context("conntrack")?;
    ensure!(status.success(), "conntrack -R: {status}");
    fs::remove_file(&path)?;
    Ok(())
}

/// The share of a CPU that the thread `fr-ct` has while `work` is repeated, in percent.
fn fr_ct_share(pid: u32, duration: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let (begun, before) = (Instant::now(), fr_ct_ticks(pid)?);
    while begun.elapsed() < duration {
        work()?;
        thread::sleep(Duration::from_micros(100));
    }
    let ticks = fr_ct_ticks(pid)? - before;
    Ok(ticks as f64 / begun.elapsed().as_secs_f64())
}

/// CPU time of the thread `fr-ct`, in hundredths of a second.
fn fr_ct_ticks(pid: u32) -> Result<u64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        let (name, fields) = stat.rsplit_once(')').context("no name")?;
        if name.ends_with("(fr-ct") {
            let fields: Vec<&str> = fields.split_whitespace().collect();
            let field = |at: usize| fields.get(at).and_then(|it| it.parse::<u64>().ok());
            return field(11).zip(field(12)).map(|(user, system)| user + system).context("no time");
        }
    }
    anyhow::bail!("no thread fr-ct");
}

/// A value of /proc/PID/status in KiB, in units of 1000 octets.
pub fn status_kb(pid: u32, name: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("not there")?;
    let kib: f64 = line.split_whitespace().next().context("empty")?.parse()?;
    Ok(kib * 1.024)
}

/// Octets of the largest BPF map that the process has mapped.
fn mapped_octets(pid: u32) -> Result<f64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let sizes = maps.lines().filter(|line| line.contains("bpf-map")).filter_map(|line| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let octets = |text| u64::from_str_radix(text, 16).ok();
        Some(octets(to)? - octets(from)?)
    });
    Ok(sizes.max().context("no map is mapped")? as f64)
}
