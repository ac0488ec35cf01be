//! Faults of every kind in random order, under traffic: packets that the kernel would refuse are refused,
//! those that it would forward arrive. Afterwards userspace forwards, every packet is accounted for, and
//! memory and CPU time have not grown.
//!
//! FERROUTE_SOAK_SECONDS sets the duration, FERROUTE_SEED repeats a run.

use std::fs;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::account::Account;
use ferroute_tests::freeze::{StoppedProcess, StoppedThread};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::rng::{self, Rng};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, ferroute};
use serde_json::Value;

/// Default of FERROUTE_SOAK_SECONDS.
const SECONDS: u64 = 40;
const SEND_INTERVAL: Duration = Duration::from_millis(2);
/// The longest that a change may take to have effect, on a machine that runs other tests.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much the process may grow after its first faults, in KiB.
const GROWTH_KIB: u64 = 16 << 10;

/// Makes the kernel refuse packets to the right, and undoes it; for IPv4 only or for both families.
const REFUSALS: [(&[&str], &[&str], bool); 5] = [
    (&["ip route add blackhole 198.18.2.2"], &["ip route del blackhole 198.18.2.2"], false),
    (&["ip rule add pref 1 to 198.18.2.2 unreachable"], &["ip rule del pref 1"], false),
    (
        &["sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"],
        &["sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"],
        true,
    ),
    (
        &[
            "nft add table inet fw",
            "nft add chain inet fw f { type filter hook forward priority 0 ; policy drop ; }",
        ],
        &["nft delete table inet fw"],
        true,
    ),
    (
        &["ip xfrm policy add dir fwd src 0.0.0.0/0 dst 198.18.2.2 action block"],
        &["ip xfrm policy delete dir fwd src 0.0.0.0/0 dst 198.18.2.2"],
        false,
    ),
];

/// Commands that a script might run at any time.
const VERBS: [&[&str]; 8] = [
    &["status"],
    &["stat", "--port"],
    &["drops"],
    &["latency"],
    &["link", "show", "-d"],
    &["route", "show"],
    &["neigh", "show"],
    &["route", "get", "198.18.2.2"],
];

struct Soak {
    lab: Lab,
    ferroute: Ferroute,
    pid: u32,
    rng: Rng,
    v4: Stream,
    v6: Stream,
    /// Connected clients that are silent.
    silent: Vec<UnixStream>,
}

impl Soak {
    fn start(seed: u64) -> Result<Option<Self>> {
        let lab = Lab::up()?;
        // Otherwise the kernel removes the IPv6 addresses of an interface that goes down.
        for port in ["rt-left", "rt-right"] {
            lab.router.sysctl(&format!("net/ipv6/conf/{port}/keep_addr_on_down"), "1")?;
        }
        let limits = ["--worker-timeout", "250", "--control-timeout", "1000"];
        let ferroute = Ferroute::start_with(&lab, &limits)?;
        let Some(pid) = ferroute.pid() else { return Ok(None) };
        let v4 = Stream::start(&lab.left, &lab.right, RIGHT4, SEND_INTERVAL)?;
        let v6 = Stream::start(&lab.left, &lab.right, RIGHT6, SEND_INTERVAL)?;
        Ok(Some(Self { lab, ferroute, pid, rng: Rng::new(seed), v4, v6, silent: Vec::new() }))
    }

    fn pause(&mut self, ms_max: usize) {
        thread::sleep(Duration::from_millis(self.rng.below(ms_max) as u64));
    }

    /// One fault, or two at a time.
    fn step(&mut self) -> Result<()> {
        match self.rng.below(8) {
            0 => {
                let stopped = StoppedProcess::stop(self.pid)?;
                self.pause(1500);
                if self.rng.one_in(2) {
                    // Changes made while it is stopped are effective afterwards.
                    return self.refuse(Some(stopped));
                }
            }
            1 => {
                let name = self.rng.pick(&["ferroute", "fr-worker0", "fr-punt", "fr-control"]);
                let _stopped = StoppedThread::stop(self.pid, name)?;
                self.pause(1800);
            }
            2 => {
                let port = self.rng.pick(&["rt-left", "rt-right"]);
                self.lab.router.run(&format!("ip link set {port} down"))?;
                self.pause(200);
                self.lab.router.run(&format!("ip link set {port} up"))?;
            }
            3 => self.make_right_anew()?,
            4 => self.ask_much()?,
            5 => {
                let socket = self.ferroute.control();
                let more = self.rng.below(100);
                self.silent.extend((0..more).filter_map(|_| UnixStream::connect(&socket).ok()));
                self.silent.truncate(200);
            }
            _ => return self.refuse(None),
        }
        self.flows()
    }

    /// A refusal by the kernel, and its end. `stopped`: the process is stopped, and continued in between.
    fn refuse(&mut self, stopped: Option<StoppedProcess>) -> Result<()> {
        let (refuse, undo, both) = self.rng.pick(&REFUSALS);
        for line in refuse {
            self.lab.router.run(line)?;
        }
        drop(stopped);
        self.v4.until_dry(EVENT_TIMEOUT).with_context(|| format!("IPv4 after {refuse:?}"))?;
        if both {
            self.v6.until_dry(EVENT_TIMEOUT).with_context(|| format!("IPv6 after {refuse:?}"))?;
        }
        for line in undo {
            self.lab.router.run(line)?;
        }
        self.flows().with_context(|| format!("after {undo:?}"))
    }

    /// Recreates the right port and its link with the same ifindex, while the process is stopped or not.
    fn make_right_anew(&mut self) -> Result<()> {
        let stopped = match self.rng.one_in(2) {
            true => Some(StoppedProcess::stop(self.pid)?),
            false => None,
        };
        let shown = self.lab.router.run("ip -j link show dev rt-right")?;
        let shown: Value = serde_json::from_str(&shown)?;
        let ifindex = shown[0]["ifindex"].as_u64().context("no ifindex")?;
        self.lab.router.run("ip link del rt-right")?;
        self.pause(300);
        let right = self.lab.right.name();
        self.lab.router.run(&format!(
            "ip link add rt-right index {ifindex} address 02:f0:00:00:02:01 type veth \
             peer name right netns {right} address 02:f0:00:00:02:02"
        ))?;
        self.lab.router.ip_batch(
            &[],
            "addr add 198.18.2.1/24 dev rt-right\naddr add 2001:db8:2::1/64 dev rt-right nodad\n\
             link set rt-right up\n",
        )?;
        self.lab.router.sysctl("net/ipv6/conf/rt-right/keep_addr_on_down", "1")?;
        self.lab.right.ip_batch(
            &[],
            "addr add 198.18.2.2/24 dev right\naddr add 2001:db8:2::2/64 dev right nodad\n\
             link set right up\nroute add default via 198.18.2.1\n\
             route add default via 2001:db8:2::1\n",
        )?;
        drop(stopped);
        Ok(())
    }

    /// Several clients at a time.
    fn ask_much(&mut self) -> Result<()> {
        let mut asked = Vec::new();
        for _ in 0..4 {
            let verb = self.rng.pick(&VERBS);
            let mut command = self.ferroute.command(verb);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            asked.push(command.spawn()?);
        }
        asked.iter_mut().try_for_each(|child| child.wait().map(drop))?;
        Ok(())
    }

    fn flows(&self) -> Result<()> {
        self.v4.until_flowing(20, EVENT_TIMEOUT).context("IPv4")?;
        self.v6.until_flowing(20, EVENT_TIMEOUT).context("IPv6").map(drop)
    }

    /// The resident set, in KiB.
    fn resident_kib(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).context("no number")
    }

    /// Open descriptors.
    fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid))?.count())
    }

    /// After everything: userspace forwards, the mirror matches the kernel, the accounts balance.
    fn ends_well(mut self) -> Result<()> {
        self.silent.clear();
        self.flows()?;
        self.ferroute.until_in_userspace(Duration::from_millis(200), EVENT_TIMEOUT)?;
        self.flows()?;
        for stream in [self.v4, self.v6] {
            ensure!(stream.stop().duplicates == 0, "packets arrived twice");
        }
        mirrored(&self.lab, &self.ferroute)?;
        let balanced = || -> Result<()> {
            let account = Account::new(self.ferroute.json(&["stat"])?);
            ensure!(account.is_settled()?, "packets remain in flight: {:#}", account.stat());
            account.agrees()
        };
        ferroute_tests::eventually(|| balanced().is_ok());
        balanced()?;
        self.ferroute.terminate()
    }
}

/// Fails unless ferroute shows the same as `ip`.
fn mirrored(lab: &Lab, ferroute: &Ferroute) -> Result<()> {
    for (verb, keys) in [
        (&["route", "show"][..], &["dst", "gateway", "dev", "type"][..]),
        (&["-6", "route", "show"], &["dst", "gateway", "dev", "type"]),
        (&["rule", "show"], &["priority", "src", "dst", "table", "action"]),
    ] {
        let facts = |text: &str| -> Result<Vec<String>> {
            let list: Value = serde_json::from_str(text)?;
            let list = list.as_array().context("no list")?;
            let fact = |entry: &Value| keys.iter().map(|key| entry[key].to_string()).collect();
            let mut facts: Vec<String> = list.iter().map(fact).collect();
            facts.sort();
            Ok(facts)
        };
        let theirs = facts(&lab.router.run(&format!("ip -j {}", verb.join(" ")))?)?;
        let ours =
            || -> Result<Vec<String>> { facts(&ferroute.ask(&[&["-j"][..], verb].concat())?) };
        ferroute_tests::eventually(|| ours().is_ok_and(|ours| ours == theirs));
        ensure!(ours()? == theirs, "{verb:?}: {:?}\n{theirs:?}", ours()?);
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn faults_in_a_random_order_leave_nothing_behind() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let seconds = std::env::var("FERROUTE_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(SECONDS));
    let seed = rng::seed();
    eprintln!("FERROUTE_SEED={seed}");
    let Some(mut soak) = Soak::start(seed)? else { return Ok(()) };
    soak.flows()?;
    let (mut steps, mut at_first) = (0, None);
    while Instant::now() < end {
        soak.step().with_context(|| format!("step {steps} of seed {seed}"))?;
        ensure!(soak.ferroute.is_running(), "it ended in step {steps}\n{}", soak.ferroute.said());
        steps += 1;
        if steps == 10 {
            at_first = Some((soak.resident_kib()?, soak.descriptors()?));
        }
    }
    soak.silent.clear();
    thread::sleep(Duration::from_secs(1));
    if let Some((kib, descriptors)) = at_first {
        let (kib_now, descriptors_now) = (soak.resident_kib()?, soak.descriptors()?);
        eprintln!("{steps} faults; {kib} KiB after 10 of them, {kib_now} KiB now");
        eprintln!("descriptors: {descriptors}, {descriptors_now} now");
        ensure!(kib_now < kib + GROWTH_KIB, "memory grows: from {kib} to {kib_now} KiB");
        ensure!(descriptors_now < descriptors + 20, "descriptors are leaked");
    }
    soak.ends_well().with_context(|| format!("after {steps} steps of seed {seed}"))
}
