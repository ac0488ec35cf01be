//! What a service manager is told, by the protocol of sd_notify(3): the test is the manager. And the sandbox of
//! the systemd unit: it permits what a run calls.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::freeze::StoppedThread;
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::lab::repository;
use ferroute_tests::stream::Stream;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PORTS: [&str; 4] = ["-i", "rt-left", "-i", "rt-right"];
/// The time-outs after which the kernel forwards what a thread does not.
const TIMEOUTS: [&str; 4] = ["--worker-timeout", "250", "--control-timeout", "1000"];
/// The watchdog's time in microseconds, and in which there must be several pings.
const WATCHDOG_USEC: &str = "1200000";
const WATCHDOG: Duration = Duration::from_millis(1200);
const SEND_INTERVAL: Duration = Duration::from_millis(2);
const PING: &str = "WATCHDOG=1\n";

/// A manager's socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: TempDir,
}

impl Manager {
    fn new() -> Result<Manager> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Manager { socket, path, _dir: dir })
    }

    fn launch(&self, lab: &Lab, args: &[&str], watchdog: &str) -> Result<Ferroute> {
        let path = self.path.to_str().context("a path")?;
        let variables = [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", watchdog)];
        Ferroute::launch_with(&lab.router, args, &variables)
    }

    /// The next message, if one arrives in time.
    fn next(&self, timeout: Duration) -> Result<Option<String>> {
        let mut octets = [0; 4096];
        self.socket.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        match self.socket.recv(&mut octets) {
            Ok(len) => Ok(Some(String::from_utf8(octets[..len].to_vec())?)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All messages until one for which `is_wanted` is true, which is the last.
    fn until(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let end = Instant::now() + EVENT_TIMEOUT;
        let mut seen = Vec::new();
        while let Some(message) = self.next(end.saturating_duration_since(Instant::now()))? {
            seen.push(message.clone());
            if is_wanted(&message) {
                return Ok(seen);
            }
        }
        bail!("it does not arrive; what did: {seen:?}")
    }

    /// All messages that arrive in a time.
    fn during(&self, time: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + time;
        let mut seen = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.next(left)? {
                Some(message) => seen.push(message),
                None if Instant::now() >= end => return Ok(seen),
                None => {}
            }
        }
    }
}

fn pings(messages: &[String]) -> usize {
    messages.iter().filter(|message| *message == PING).count()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_manager_is_told_when_packets_are_forwarded_and_that_the_process_works() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (lab, manager) = (Lab::up()?, Manager::new()?);
    let mut ferroute = manager.launch(&lab, &PORTS, WATCHDOG_USEC)?;
    let seen = manager.until(|message| message == "READY=1\n")?;
    ensure!(ferroute.ask(&["status"]).is_ok(), "it is ready and does not forward");
    ensure!(pings(&seen) <= 1, "pings before the start has ended: {seen:?}");
    ensure!(seen.iter().any(|message| message == "STATUS=2 of 2 ports forward\n"), "{seen:?}");
    let seen = manager.during(WATCHDOG * 3)?;
    ensure!(pings(&seen) >= 4, "{seen:?}");
    ensure!(!seen.iter().any(|message| message.starts_with("READY")), "{seen:?}");
    lab.router.run("ip link set rt-right down")?;
    lab.router.run("ip link set rt-right name other")?;
    let seen = manager.until(|message| message.starts_with("STATUS=1 of 2 ports forward"))?;
    let last = seen.last().context("a message")?;
    ensure!(last.contains("; interface rt-right: "), "{last}");
    ferroute.terminate()?;
    manager.until(|message| message == "STOPPING=1\n")?;
    ensure!(manager.during(Duration::from_millis(100))?.is_empty(), "messages after the end");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_start_after_which_the_kernel_forwards_ends_too_and_says_why() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (lab, manager) = (Lab::up()?, Manager::new()?);
    let mut ferroute = manager.launch(&lab, &["-i", "none*"], WATCHDOG_USEC)?;
    let seen = manager.until(|message| message == "READY=1\n")?;
    let why = "STATUS=the kernel forwards: no interface that is up matches none*";
    ensure!(seen.iter().any(|message| message.starts_with(why)), "{seen:?}");
    ferroute.terminate()?;

    let manager = Manager::new()?;
    let mut ferroute = manager.launch(&lab, &PORTS, WATCHDOG_USEC)?;
    manager.until(|message| message == "READY=1\n")?;
    lab.router.run("iptables-legacy -A FORWARD -s 203.0.113.0/24 -j DROP")?;
    let seen = manager.until(|message| message.starts_with("STATUS=the kernel forwards: "))?;
    ensure!(seen.last().is_some_and(|message| message.contains("iptables-legacy")), "{seen:?}");
    lab.router.run("iptables-legacy -F FORWARD")?;
    lab.router.run("iptables-legacy -X")?;
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_watchdog_gets_no_ping_while_a_thread_hangs_and_the_kernel_forwards() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (lab, manager) = (Lab::up()?, Manager::new()?);
    let args = [&PORTS[..], &TIMEOUTS].concat();
    let ferroute = manager.launch(&lab, &args, WATCHDOG_USEC)?;
    manager.until(|message| message == "READY=1\n")?;
    let pid = ferroute.pid().context("a process")?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, SEND_INTERVAL)?;
    for thread in ["fr-worker0", "ferroute"] {
        stream.until_flowing(20, EVENT_TIMEOUT)?;
        manager.until(|message| message == PING)?;
        let stopped = StoppedThread::stop(pid, thread)?;
        // One may have been sent just before, and one within the worker's time-out.
        manager.during(Duration::from_millis(400))?;
        let before = ferroute.forwarded_by_kernel()?.v4;
        let seen = manager.during(WATCHDOG * 2)?;
        ensure!(pings(&seen) == 0, "{thread} does not run: {seen:?}");
        let by_kernel = ferroute.forwarded_by_kernel()?.v4 - before;
        ensure!(by_kernel > 100, "{thread} does not run, and the kernel forwards {by_kernel}");
        if thread != "ferroute" {
            let says = |message: &String| message.contains("worker 0 gives no heartbeat");
            ensure!(seen.iter().any(says), "{seen:?}");
        }
        drop(stopped);
        manager.until(|message| message == PING).context("after it runs again")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_manager_that_does_not_read_delays_nothing() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (lab, manager) = (Lab::up()?, Manager::new()?);
    // A ping in each turn.
    let mut ferroute = manager.launch(&lab, &[&PORTS[..], &TIMEOUTS].concat(), "1")?;
    ferroute.wait_until_forwarding()?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, SEND_INTERVAL)?;
    stream.until_flowing(20, EVENT_TIMEOUT)?;
    let room: usize = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen")?.trim().parse()?;
    let begun = Instant::now();
    // At least ten turns a second: its queue is full after this.
    while begun.elapsed() < Duration::from_millis(100 * (room as u64 + 20)).min(EVENT_TIMEOUT) {
        lab.router.run("ip route add 203.0.113.0/24 via 198.18.2.2")?;
        lab.router.run("ip route del 203.0.113.0/24 via 198.18.2.2")?;
    }
    let status = ferroute.json(&["status"])?;
    ensure!(status["state"] == "forwarding", "{status}");
    ensure!(status["mirror"]["stalled_ms"].is_null(), "{status}");
    ferroute.until_in_userspace(Duration::from_millis(200), EVENT_TIMEOUT)?;
    ensure!(stream.stop().duplicates == 0);
    let begun = Instant::now();
    ferroute.terminate()?;
    ensure!(begun.elapsed() < Duration::from_secs(5), "the end took {:?}", begun.elapsed());
    // The kernel lets one more wait.
    let waiting = manager.during(Duration::from_millis(200))?.len();
    ensure!(waiting > room, "the queue was not full: {waiting} messages, room for {room}");
    Ok(())
}

/// The system calls and address families that a unit permits.
fn permitted(unit: &str) -> Result<(BTreeSet<String>, Vec<String>)> {
    let values = |key: &str| -> Vec<String> {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let (mut calls, mut sets) = (BTreeSet::new(), Vec::new());
    for word in values("SystemCallFilter") {
        match word.starts_with('@') {
            true => sets.push(word),
            false => calls.extend([word]),
        }
    }
    while let Some(set) = sets.pop() {
        let output = Command::new("systemd-analyze").args(["syscall-filter", &set]).output()?;
        ensure!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
        for word in String::from_utf8(output.stdout)?.lines().map(str::trim) {
            match word.chars().next() {
                Some('@') if word != set => sets.push(word.to_owned()),
                Some('a'..='z' | '_') => calls.extend([word.to_owned()]),
                _ => {}
            }
        }
    }
    Ok((calls, values("RestrictAddressFamilies")))
}

/// The system calls in the output of strace, and the families of sockets.
fn called(trace: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let mut found = (BTreeSet::new(), BTreeSet::new());
    for line in trace.lines() {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let Some((name, arguments)) = line.split_once('(') else { continue };
        if name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            found.0.insert(name);
            if name == "socket" || name == "socketpair" {
                found.1.insert(arguments.split(',').next().unwrap_or_default());
            }
        }
    }
    found
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_unit_permits_what_a_run_calls() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let (trace, socket) = (dir.path().join("trace"), dir.path().join("control.sock"));
    let reload_trace = dir.path().join("reload");
    let mut command = lab.router.command("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).arg(ferroute::binary());
    command.arg("run").args(PORTS).args(["-i", "more*"]).args(["--offload", "on"]);
    command.arg("--runtime-dir").arg(dir.path().join("run")).arg("--control").arg(&socket);
    let strace = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let ask = |args: &[&str]| {
        let mut command = lab.router.command(ferroute::binary());
        command.arg("--control").arg(&socket).args(args).output()
    };
    let forwards = eventually(|| ask(&["status"]).is_ok_and(|output| output.status.success()));
    let facts = || -> Result<()> {
        ensure!(forwards, "it does not forward");
        lab.router.run("nft add table inet t")?;
        lab.router.run(
            "nft add chain inet t f { type filter hook forward priority 0 ; policy accept ; }",
        )?;
        lab.router.run("nft add rule inet t f ct state established,related counter accept")?;
        lab.left.run(&format!("ping -c 5 -i 0.2 {RIGHT4}"))?;
        for verb in ["status", "stat", "drops", "link", "route", "rules", "flows", "latency"] {
            ask(&[verb])?;
        }
        // Refused without a file; as ExecReload calls it.
        let mut reload = lab.router.command("strace");
        reload.args(["-f", "-qq", "-o"]).arg(&reload_trace).arg(ferroute::binary());
        let output = reload.arg("--control").arg(&socket).arg("reload").output()?;
        ensure!(String::from_utf8_lossy(&output.stderr).contains("without a configuration file"));
        lab.router.run("ip link add more0 type veth peer name other0")?;
        lab.router.run("ip link set more0 up")?;
        ensure!(eventually(|| {
            let ports = ask(&["status"]).map(|output| output.stdout).unwrap_or_default();
            String::from_utf8_lossy(&ports).contains("port more0")
        }));
        lab.router.run("ip link set rt-right down")?;
        lab.router.run("ip link set rt-right up")?;
        ensure!(eventually(|| ask(&["status"]).is_ok_and(|output| output.status.success())));
        Ok(())
    };
    let facts = facts();
    // The program's process, whose end strace waits for.
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    for pid in fs::read_to_string(children)?.split_whitespace() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGTERM)?;
    }
    let output = ferroute::ended(strace)?;
    facts.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let trace = fs::read_to_string(&trace)? + &fs::read_to_string(&reload_trace)?;
    let (calls, families) = called(&trace);
    ensure!(calls.contains("bpf") && families.contains("AF_XDP"), "{calls:?} {families:?}");
    // By the filter of the process itself. A larger buffer of a socket is only tried.
    let is_refused = |line: &str| {
        line.ends_with("= -1 EPERM (Operation not permitted)") && !line.contains("setsockopt")
    };
    // By Landlock.
    let is_forbidden = |line: &str| {
        let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "unlink", "rename", "mkdir", "truncate"];
        line.ends_with("= -1 EACCES (Permission denied)")
            && writes.iter().any(|it| line.contains(it))
    };
    let refused: Vec<&str> =
        trace.lines().filter(|line| is_refused(line) || is_forbidden(line)).collect();
    ensure!(refused.is_empty(), "refused: {refused:?}");
    let is_there = !trace.contains("LANDLOCK_CREATE_RULESET_VERSION) = -1");
    let is_restricted =
        trace.lines().any(|line| line.contains("landlock_restrict_self") && line.ends_with("= 0"));
    ensure!(
        is_restricted == is_there,
        "Landlock is in the kernel, and not used, or the other way round"
    );
    let unit = fs::read_to_string(repository().join("scripts/ferroute.service"))?;
    let (may_call, may_open) = permitted(&unit)?;
    // Root mounts a sysfs of its namespace. The unit's user may not, with or without the filter.
    let only_root = ["unshare", "mount", "umount2", "setns"];
    let more: Vec<&&str> = calls
        .iter()
        .filter(|call| !may_call.contains(**call) && !only_root.contains(call))
        .collect();
    ensure!(more.is_empty(), "the unit does not permit {more:?}");
    let may = |family: &&&str| may_open.iter().any(|one| one == **family);
    let more: Vec<&&str> = families.iter().filter(|family| !may(family)).collect();
    ensure!(more.is_empty(), "the unit does not permit sockets of {more:?}");
    Ok(())
}
