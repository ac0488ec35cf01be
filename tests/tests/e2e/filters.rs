//! Everything that filters forwarded packets in the kernel is reported by `run` and `doctor`, and enforced
//! when it appears while ferroute runs.
//!
//! A kind of filter that this machine's kernel does not have is skipped with a message on standard error,
//! after trying it.

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::bpf::Attached;
use ferroute_tests::freeze::{StoppedProcess, StoppedThread};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::ping_all;
use ferroute_tests::stream::Stream;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, Netns, eventually, ferroute};

const PORTS: [&str; 4] = ["-i", "rt-left", "-i", "rt-right"];
/// Maximum time from setting a filter until the last packet bypasses it. The documented time is far less; a
/// busy machine may take this long, and periodic checks a second longer.
pub const FOLLOW_TIME_MAX: Duration = Duration::from_millis(500);
/// A stream of one packet per millisecond has stopped when nothing arrived for this long.
const IDLE_TIMEOUT: Duration = Duration::from_millis(300);

/// A filter that drops packets to the right.
struct Filter<'a> {
    /// Its name in messages of `run` and `doctor`.
    name: &'a str,
    /// Destination of the packets that it drops.
    address: &'a str,
    /// Commands that must be run first, and do not filter anything.
    before: &'a [&'a str],
    /// How it is set.
    set: By<'a>,
    /// Commands that remove it.
    lift: &'a [&'a str],
    /// Whether nothing remains of it afterwards.
    is_gone: bool,
}

enum By<'a> {
    Commands(&'a [&'a str]),
    /// Arguments of [`Attached`].
    Program(&'a str),
}

/// A filter of commands that leaves nothing behind.
const PLAIN: Filter<'_> = Filter {
    name: "",
    address: RIGHT4,
    before: &[],
    set: By::Commands(&[]),
    lift: &[],
    is_gone: true,
};

impl Filter<'_> {
    /// `None`: this kernel has no such filter.
    fn set(&self, lab: &Lab) -> Result<Option<Option<Attached>>> {
        match self.set {
            By::Program(words) => Ok(Attached::new(&lab.router, words)?.map(Some)),
            By::Commands(commands) => {
                for command in commands {
                    lab.router.run(command)?;
                }
                Ok(Some(None))
            }
        }
    }

    fn lift(&self, lab: &Lab) -> Result<()> {
        self.lift.iter().try_for_each(|command| lab.router.run(command).map(drop))
    }

    /// Fails unless `run` refuses with its name, and `doctor` reports the same.
    fn is_named(&self, lab: &Lab) -> Result<()> {
        let said = Ferroute::refusal(&lab.router, &PORTS)?;
        for word in [self.name, "--ignore-firewall"] {
            ensure!(said.contains(word), "run says nothing of {word}:\n{said}");
        }
        let output = lab.router.command(ferroute::binary()).arg("doctor").args(PORTS).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let fails = |line: &str| line.starts_with("fail") && line.contains(self.name);
        ensure!(said.lines().any(fails), "doctor says nothing of {}:\n{said}", self.name);
        Ok(())
    }

    /// Sets it before the start, and while ferroute runs.
    fn check(&self) -> Result<()> {
        let lab = Lab::up()?;
        for command in self.before {
            lab.router.run(command)?;
        }
        if !ferroute::by_kernel() && self.is_gone {
            let Some(program) = self.set(&lab)? else { return Ok(()) };
            self.is_named(&lab)?;
            drop(program);
            self.lift(&lab)?;
        }
        let running = Ferroute::start(&lab)?;
        let stream = Stream::start(&lab.left, &lab.right, self.address, Duration::from_millis(1))?;
        ensure!(stream.flows(50), "nothing arrives at the start");
        running.forwarded_all_itself()?;

        let Some(program) = self.set(&lab)? else { return Ok(()) };
        let set = Instant::now();
        let last = last_arrival(&stream)?.saturating_duration_since(set);
        eprintln!("{}: the last packet arrived {last:?} after it was set", self.name);
        ensure!(last < FOLLOW_TIME_MAX, "{} takes effect after {last:?}", self.name);
        let warned = || says(&running, self.name);
        ensure!(ferroute::by_kernel() || eventually(warned), "status does not name {}", self.name);
        drop(program);
        self.lift(&lab)?;
        ensure!(stream.flows(50), "nothing arrives when {} is lifted", self.name);
        if self.is_gone {
            ensure!(
                forwards_itself(&running, &stream),
                "the kernel still forwards: {}",
                running.account()
            );
        } else if !ferroute::by_kernel() {
            self.is_named(&lab)?;
        }
        stream.stop();
        Ok(())
    }
}

/// Whether `status` names it; while everything is left to the kernel its exit status is not 0.
fn says(running: &Ferroute, name: &str) -> bool {
    let output = running.command(&["status"]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(name))
}

/// When the last packet arrived before a silence.
pub fn last_arrival(stream: &Stream) -> Result<Instant> {
    let end = Instant::now() + EVENT_TIMEOUT;
    let (mut arrived, mut last) = (stream.received(), Instant::now());
    while last.elapsed() < IDLE_TIMEOUT {
        thread::sleep(Duration::from_micros(200));
        let now = stream.received();
        if now != arrived {
            (arrived, last) = (now, Instant::now());
        }
        ensure!(Instant::now() < end, "packets keep arriving");
    }
    Ok(last)
}

/// Whether packets of the stream bypass the kernel again.
pub fn forwards_itself(running: &Ferroute, stream: &Stream) -> bool {
    eventually(|| {
        let before = running.forwarded_by_kernel().ok();
        stream.flows(50) && before.is_some() && running.forwarded_by_kernel().ok() == before
    }) || ferroute::by_kernel()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_table_of_iptables_legacy() -> Result<()> {
    for (program, address) in [("iptables", RIGHT4), ("ip6tables", RIGHT6)] {
        // A kernel may be built without legacy tables.
        let lab = Lab::up()?;
        let legacy = format!("{program}-legacy");
        if let Err(error) = lab.left.run(&format!("{legacy} -t filter -S")) {
            eprintln!("skipped: {legacy}: {error:#}");
            continue;
        }
        Filter {
            name: &format!("{legacy}: table filter"),
            address,
            set: By::Commands(&[&format!("{legacy} -A FORWARD -j DROP")]),
            // A table remains once it was created.
            lift: &[&format!("{legacy} -F")],
            is_gone: false,
            ..PLAIN
        }
        .check()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_ipsec_default_that_blocks() -> Result<()> {
    for direction in ["fwd", "out"] {
        Filter {
            name: &format!("XFRM: forwarding is blocked by default ({direction};"),
            set: By::Commands(&[&format!("ip xfrm policy setdefault {direction} block")]),
            lift: &[&format!("ip xfrm policy setdefault {direction} accept")],
            ..PLAIN
        }
        .check()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_tc_filter_at_ingress_or_egress() -> Result<()> {
    for (hook, port) in [("ingress", "rt-left"), ("egress", "rt-right")] {
        Filter {
            name: &format!("tc filter (bpf) at the {hook} of {port}"),
            before: &[&format!("tc qdisc add dev {port} clsact")],
            set: By::Program(&format!("drop tc dev {port} {hook}")),
            lift: &[&format!("tc filter del dev {port} {hook}")],
            ..PLAIN
        }
        .check()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_tc_filter_of_a_shared_block() -> Result<()> {
    Filter {
        name: "tc filter (bpf) at the ingress of rt-left",
        before: &["tc qdisc add dev rt-left ingress_block 1 clsact"],
        set: By::Program("drop tc block 1"),
        lift: &["tc filter del block 1"],
        ..PLAIN
    }
    .check()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_tc_filter_of_a_classful_qdisc() -> Result<()> {
    let before = &[
        "tc qdisc add dev rt-right root handle 1: htb default 10",
        "tc class add dev rt-right parent 1: classid 1:1 htb rate 1gbit quantum 10000",
        "tc class add dev rt-right parent 1:1 classid 1:10 htb rate 1gbit quantum 10000",
    ];
    Filter {
        name: "tc filter (bpf) at the egress of rt-right, qdisc htb 1:",
        before,
        set: By::Program("drop tc dev rt-right parent 1:"),
        lift: &["tc filter del dev rt-right parent 1:"],
        ..PLAIN
    }
    .check()?;
    // Of an inner class: packets reach it by a filter of the root.
    let lab = Lab::up()?;
    before.iter().try_for_each(|command| lab.router.run(command).map(drop))?;
    lab.router
        .run("tc filter add dev rt-right parent 1:1 protocol ip u32 match u32 0 0 flowid 1:10")?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let name = "tc filter (u32) at the egress of rt-right, class 1:1";
    Filter { name, ..PLAIN }.is_named(&lab)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_tcx_program_with_a_link_and_without() -> Result<()> {
    for (hook, port) in [("ingress", "rt-left"), ("egress", "rt-right")] {
        let words = format!("drop tcx-link {port} {hook}");
        let name = format!("(tcx {hook}) on {port}");
        Filter { name: &name, set: By::Program(&words), ..PLAIN }.check()?;
    }
    // A program without a link stays attached to its interface.
    let lab = Lab::up()?;
    let Some(program) = Attached::new(&lab.router, "drop tcx rt-right egress")? else {
        return Ok(());
    };
    drop(program);
    if ferroute::by_kernel() {
        return Ok(());
    }
    Filter { name: "(tcx egress) on rt-right", ..PLAIN }.is_named(&lab)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_bpf_netfilter_program() -> Result<()> {
    // NF_INET_FORWARD and NF_INET_PRE_ROUTING.
    for (address, at) in [(RIGHT4, "ip 2"), (RIGHT6, "ip6 0")] {
        let words = format!("drop netfilter {at} -10");
        let name = "BPF netfilter program";
        Filter { name, address, set: By::Program(&words), ..PLAIN }.check()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_filter_of_an_interface_that_is_not_a_port_is_ignored() -> Result<()> {
    let lab = Lab::up()?;
    lab.router.run("ip link add other0 type veth peer name other1")?;
    lab.router.run("tc qdisc add dev other0 clsact")?;
    let program = Attached::new(&lab.router, "drop tc dev other0 ingress")?;
    let link = Attached::new(&lab.router, "drop tcx-link other0 egress")?;
    lab.router.run("nft add table netdev t")?;
    lab.router
        .run("nft add chain netdev t c { type filter hook ingress device other1 priority 0 ; }")?;
    // A qdisc without filters is not a filter.
    lab.router.run("tc qdisc add dev rt-right root handle 1: htb default 10")?;
    lab.router.run("tc qdisc add dev rt-left clsact")?;
    let running = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    running.forwarded_all_itself()?;
    drop((program, link));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_filter_of_one_matched_port_leaves_that_port_alone_to_the_kernel() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let running = Ferroute::start_in(&lab.router, &["-i", "rt-*"])?;
    let states = || -> Result<Vec<String>> {
        let status = running.json(&["status"])?;
        let ports = status["ports"].as_array().cloned().unwrap_or_default();
        let state = |name: &str| {
            let port = ports.iter().find(|port| port["ifname"] == name);
            port.map(|port| port["state"].to_string()).unwrap_or_default()
        };
        Ok(vec![state("rt-left"), state("rt-right")])
    };
    let active = states()?;
    ensure!(active[0] == active[1], "not both are active: {active:?}");
    let Some(link) = Attached::new(&lab.router, "pass tcx-link rt-left ingress")? else {
        return Ok(());
    };
    let left_alone =
        || states().is_ok_and(|now| now[0].contains("tcx ingress") && now[1] == active[1]);
    ensure!(eventually(left_alone), "{:?}", states());
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    drop(link);
    ensure!(eventually(|| states().is_ok_and(|now| now == active)), "{:?}", states());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_filter_of_a_matched_port_holds_while_the_port_cannot_be_closed() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let running = Ferroute::start_in(&lab.router, &["-i", "rt-*"])?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    ensure!(stream.flows(50));
    running.forwarded_all_itself()?;
    let pid = running.pid().context("no process")?;
    // As with a driver whose reset is slow.
    let stopped = StoppedThread::stop(pid, "fr-ports")?;
    let Some(link) = Attached::new(&lab.router, "drop tcx-link rt-right egress")? else {
        return Ok(());
    };
    let returned = Instant::now();
    let last = last_arrival(&stream)?;
    let late = last.saturating_duration_since(returned);
    ensure!(late < FOLLOW_TIME_MAX, "packets passed for {late:?} after the filter was there");
    drop((stopped, link));
    ensure!(forwards_itself(&running, &stream), "userspace does not forward again");
    stream.stop();
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_sysctl_that_sends_no_event() -> Result<()> {
    let lab = Lab::up()?;
    let running = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT6, Duration::from_millis(1))?;
    ensure!(stream.flows(50), "nothing arrives at the start");
    running.forwarded_all_itself()?;
    // The left port only receives: no route is lost by this.
    lab.router.sysctl("net/ipv6/conf/rt-left/disable_ipv6", "1")?;
    let set = Instant::now();
    let last = last_arrival(&stream)?.saturating_duration_since(set);
    eprintln!("disable_ipv6: the last packet arrived {last:?} after it was set");
    ensure!(last < FOLLOW_TIME_MAX, "disable_ipv6 takes effect after {last:?}");
    stream.stop();
    Ok(())
}

/// A command that is run repeatedly until this is dropped.
struct Storm {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<u64>>>,
}

impl Storm {
    /// `command`: the command line, to which the name of a file with `lines` is appended.
    fn start(namespace: &Netns, command: &'static str, lines: String) -> Storm {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, stopped) = (namespace.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || -> Result<u64> {
            let dir = tempfile::tempdir()?;
            let path = dir.path().join("lines");
            std::fs::write(&path, lines)?;
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                namespace.run(&format!("{command} {}", path.display()))?;
                rounds += 1;
            }
            Ok(rounds)
        });
        Storm { stop, thread: Some(thread) }
    }

    /// As [`Storm::start`] for `batch`, which reads lines from its standard input: one after each pause.
    fn of_lines(
        namespace: &Netns,
        batch: &'static str,
        pause: Duration,
        line: impl Fn(u64) -> String + Send + 'static,
    ) -> Result<Storm> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut child =
            namespace.command(batch).args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        let thread = thread::spawn(move || -> Result<u64> {
            let mut lines = 0;
            while !stopped.load(Ordering::Relaxed) {
                writeln!(stdin, "{}", line(lines))?;
                thread::sleep(pause);
                lines += 1;
            }
            drop(stdin);
            ensure!(child.wait()?.success(), "{batch} fails");
            Ok(lines)
        });
        Ok(Storm { stop, thread: Some(thread) })
    }

    /// Returns how often it was run, or how many lines were written.
    fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().context("it was started")?.join().expect("does not panic")
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_storm_of_rules_delays_nothing() -> Result<()> {
    let lab = Lab::up()?;
    let running = Ferroute::start(&lab)?;
    // Rules that match no forwarded packet, as fast as they can be set.
    lab.router.run("nft add table inet t")?;
    lab.router.run("nft add chain inet t i { type filter hook input priority 0 ; }")?;
    let rules = "add rule inet t i udp dport 9 accept\n".repeat(500);
    let storm = Storm::start(&lab.router, "nft -f", format!("flush chain inet t i\n{rules}"));
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    ensure!(stream.flows(500), "nothing arrives in a storm");
    let asked = Instant::now();
    running.ask(&["status"])?;
    let answered = asked.elapsed();
    // A relevant rule is still read.
    lab.router
        .run("nft add chain inet t f { type filter hook forward priority 0 ; policy drop ; }")?;
    let set = Instant::now();
    let last = last_arrival(&stream)?.saturating_duration_since(set);
    let rounds = storm.stop()?;
    eprintln!("{rounds} rounds: status took {answered:?}, the last packet came {last:?} after");
    ensure!(rounds > 0 && answered < Duration::from_secs(5), "status took {answered:?}");
    ensure!(last < FOLLOW_TIME_MAX, "takes effect after {last:?}");
    stream.stop();
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_rule_holds_while_links_change_and_an_interface_waits_to_be_a_port() -> Result<()> {
    let lab = Lab::up()?;
    // Longer than a port's MTU may be: it waits forever.
    lab.router.run("ip link add xx0 mtu 9500 type veth peer name xx1 mtu 9500")?;
    lab.router.run("ip link set xx0 up")?;
    lab.router.run("ip link add other0 type veth peer name other1")?;
    // The kernel sends no notifications of an interface that is down.
    lab.router.run("ip link set other0 up")?;
    let running = Ferroute::start_with(&lab, &["-i", "xx*"])?;
    let storm = Storm::of_lines(&lab.router, "ip", Duration::from_millis(1), |n| {
        format!("link set other0 alias a{n}")
    })?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    ensure!(stream.flows(500), "nothing arrives while links change");
    for _ in 0..5 {
        ensure!(
            forwards_itself(&running, &stream),
            "the kernel forwards while links change: {}",
            running.account()
        );
        lab.router.run("nft add table ip t")?;
        lab.router
            .run("nft add chain ip t f { type filter hook forward priority 0 ; policy drop ; }")?;
        let set = Instant::now();
        let last = last_arrival(&stream)?.saturating_duration_since(set);
        eprintln!("the last packet came {last:?} after");
        ensure!(last < FOLLOW_TIME_MAX, "takes effect after {last:?}");
        lab.router.run("nft delete table ip t")?;
    }
    // A new interface becomes a port meanwhile, unless it has a filter of its own.
    lab.router.run("ip link add xx2 type veth peer name xx3")?;
    lab.router.run("ip link add xx4 type veth peer name xx5")?;
    lab.router.run("tc qdisc add dev xx4 clsact")?;
    lab.router.run("tc filter add dev xx4 ingress protocol ip u32 match u32 0 0 flowid 1:1")?;
    for name in ["xx2", "xx3", "xx4", "xx5"] {
        lab.router.run(&format!("ip link set {name} up"))?;
    }
    let states = || -> Result<Vec<String>> {
        let status = running.json(&["status"])?;
        let ports = status["ports"].as_array().cloned().unwrap_or_default();
        let state = |name: &str| {
            let port = ports.iter().find(|port| port["ifname"] == name);
            port.map(|port| port["state"].to_string()).unwrap_or_default()
        };
        Ok(["rt-left", "xx2", "xx4"].map(state).to_vec())
    };
    let is_open = || states().is_ok_and(|now| now[0] == now[1] && now[2].contains("tc filter"));
    ensure!(ferroute::by_kernel() || eventually(is_open), "{:?}", states());
    ensure!(storm.stop()? > 0);
    stream.stop();
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn thousands_of_classes_do_not_keep_the_control_thread_busy() -> Result<()> {
    const CLASSES: u32 = 5000;
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("classes");
    let mut lines = String::from("qdisc add dev rt-right root handle 1: htb default 2\n");
    for class in 2..CLASSES + 2 {
        lines += &format!(
            "class add dev rt-right parent 1: classid 1:{class:x} htb rate 1gbit quantum 10000\n"
        );
    }
    std::fs::write(&path, lines)?;
    lab.router.run(&format!("tc -batch {}", path.display()))?;
    let running = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    ensure!(stream.flows(50), "nothing arrives at the start");
    let storm = Storm::of_lines(&lab.router, "tc", Duration::from_millis(1), |n| {
        let quantum = 10_000 + n % 1000;
        format!("class change dev rt-right parent 1: classid 1:5 htb rate 1gbit quantum {quantum}")
    })?;
    ensure!(forwards_itself(&running, &stream), "the kernel forwards: {}", running.account());
    let pid = running.pid();
    let before = pid.map(cpu_time_of_main_thread).transpose()?;
    let (from, received) = (Instant::now(), stream.received());
    thread::sleep(Duration::from_secs(3));
    let received = stream.received() - received;
    ensure!(received > 2000, "of 3,000 packets {received} arrived");
    if let (Some(pid), Some(before)) = (pid, before) {
        let share =
            (cpu_time_of_main_thread(pid)? - before).as_secs_f64() / from.elapsed().as_secs_f64();
        eprintln!("the control thread ran for {:.0} % of the time", share * 100.0);
        ensure!(share < 0.4, "the control thread runs for {:.0} % of the time", share * 100.0);
    }
    // A filter of the last class is still read.
    let last_class = format!("1:{:x}", CLASSES + 1);
    let filter = "protocol ip u32 match u32 0 0 flowid 1:2";
    lab.router.run(&format!("tc filter add dev rt-right parent {last_class} {filter}"))?;
    let set = Instant::now();
    let name = format!("tc filter (u32) at the egress of rt-right, class {last_class}");
    ensure!(ferroute::by_kernel() || eventually(|| says(&running, &name)), "{name} is not seen");
    eprintln!("status names it after {:?}", set.elapsed());
    lab.router.run(&format!("tc filter del dev rt-right parent {last_class}"))?;
    ensure!(forwards_itself(&running, &stream), "the kernel still forwards: {}", running.account());
    // After a pause with more notifications than its socket holds.
    if let Some(pid) = pid {
        let stopped = StoppedProcess::stop(pid)?;
        let changes = std::fs::read_to_string(&path)?.replace("class add", "class change");
        std::fs::write(&path, changes.lines().skip(1).collect::<Vec<_>>().join("\n"))?;
        lab.router.run(&format!("tc -batch {}", path.display()))?;
        thread::sleep(Duration::from_secs(2));
        drop(stopped);
        ensure!(
            forwards_itself(&running, &stream),
            "the kernel still forwards: {}",
            running.account()
        );
    }
    ensure!(storm.stop()? > 0);
    stream.stop();
    Ok(())
}

/// User and system time of a process's first thread.
fn cpu_time_of_main_thread(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat"))?;
    let behind_name = stat.rsplit(')').next().context("no name")?;
    let mut fields = behind_name.split_whitespace().skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("too few fields")?.parse()?) };
    let ticks = ticks()? + ticks()?;
    // USER_HZ.
    Ok(Duration::from_millis(ticks * 10))
}
