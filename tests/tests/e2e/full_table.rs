//! A large table is mirrored completely, gives the same results as the kernel's, and survives lost
//! messages.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::rng::{self, Rng};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const ROUTES4: usize = 80_000;
const ROUTES6: usize = 20_000;
const QUESTIONS: usize = 10_000;

/// Different prefixes of all the usual lengths.
struct Table {
    v4: BTreeSet<(Ipv4Addr, u8)>,
    v6: BTreeSet<(Ipv6Addr, u8)>,
}

impl Table {
    fn random(rng: &mut Rng) -> Self {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        while v4.len() < ROUTES4 {
            let len = [8 + rng.below(17) as u8, 24, 24, 32][rng.below(4)];
            // From 1.0.0.0 to 100.255.255.255: no special range except 10/8.
            let bits = ((1 + rng.below(100)) as u32) << 24 | rng.bits() as u32 & 0x00ff_ffff;
            v4.insert((Ipv4Addr::from(bits & (u32::MAX << (32 - len))), len));
        }
        while v6.len() < ROUTES6 {
            let len = [32, 48, 48, 64, 128, 20 + rng.below(45) as u8][rng.below(6)];
            let bits =
                0x2a00u128 << 112 | (u128::from(rng.bits()) << 48) | u128::from(rng.bits() >> 32);
            v6.insert((Ipv6Addr::from(bits & (u128::MAX << (128 - len))), len));
        }
        Self { v4, v6 }
    }

    /// Lines for `ip -4 -batch` and `ip -6 -batch`.
    fn lines(&self, verb: &str) -> (String, String) {
        self.lines_by(verb, 0)
    }

    /// The same with other gateways for each `shift` from 0 to 2.
    fn lines_by(&self, verb: &str, shift: usize) -> (String, String) {
        let (mut lines4, mut lines6) = (String::new(), String::new());
        for (at, (prefix, len)) in self.v4.iter().enumerate() {
            let _ = writeln!(
                lines4,
                "route {verb} {prefix}/{len} via 198.18.2.{}",
                2 + (at + shift) % 3
            );
        }
        for (at, (prefix, len)) in self.v6.iter().enumerate() {
            let _ = writeln!(
                lines6,
                "route {verb} {prefix}/{len} via 2001:db8:2::{}",
                2 + (at + shift) % 3
            );
        }
        (lines4, lines6)
    }

    /// Addresses, most of them inside a prefix.
    fn addresses(&self, rng: &mut Rng) -> Vec<IpAddr> {
        let v4: Vec<_> = self.v4.iter().copied().collect();
        let v6: Vec<_> = self.v6.iter().copied().collect();
        let address = |_| match rng.below(8) {
            0 => {
                Ipv4Addr::from(((1 + rng.below(100)) as u32) << 24 | rng.bits() as u32 >> 8).into()
            }
            1..=4 => {
                let (prefix, len) = rng.pick(&v4);
                let host = (rng.bits() as u32).checked_shr(len.into()).unwrap_or(0);
                Ipv4Addr::from(u32::from(prefix) | host).into()
            }
            _ => {
                let (prefix, len) = rng.pick(&v6);
                let host = (u128::from(rng.bits()) << 64 | u128::from(rng.bits()))
                    .checked_shr(len.into())
                    .unwrap_or(0);
                Ipv6Addr::from(u128::from(prefix) | host).into()
            }
        };
        (0..QUESTIONS).map(address).collect()
    }
}

fn lab() -> Result<Lab> {
    let lab = Lab::up()?;
    // Every lookup has a result: without a route `ip` prints an error and no JSON.
    lab.router.run("ip route add default via 198.18.2.2")?;
    lab.router.run("ip route add default via 2001:db8:2::2")?;
    Ok(lab)
}

/// The kernel's results: destination, nexthop, port, preferred source of each address.
fn kernel_answers(lab: &Lab, addresses: &[IpAddr]) -> Result<Vec<Value>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("questions");
    let mut questions = String::new();
    for address in addresses {
        let _ = writeln!(questions, "route get {address}");
    }
    std::fs::write(&file, questions)?;
    let output = lab.router.command("ip").args(["-j", "-batch"]).arg(&file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    answers.map(|answer| Ok(facts(&answer?[0]))).collect()
}

/// Results of `ferroute -j route get -`, in the same form.
fn our_answers(ferroute: &Ferroute, addresses: &[IpAddr]) -> Result<Vec<Value>> {
    let mut command = ferroute.command(&["-j", "route", "get", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut questions = child.stdin.take().context("stdin")?;
    let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    let writing = std::thread::spawn(move || questions.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    writing.join().expect("the writer does not panic")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    Ok(answers.iter().map(facts).collect())
}

fn facts(answer: &Value) -> Value {
    let fields = ["type", "dst", "gateway", "via", "dev", "prefsrc"];
    let present = fields.iter().filter(|field| !answer[**field].is_null());
    present.map(|field| ((*field).to_owned(), answer[*field].clone())).collect()
}

/// Compares both for random addresses and fails with the first difference.
fn answers_agree(lab: &Lab, ferroute: &Ferroute, addresses: &[IpAddr]) -> Result<()> {
    let (kernel, ours) = (kernel_answers(lab, addresses)?, our_answers(ferroute, addresses)?);
    ensure!(kernel.len() == addresses.len() && ours.len() == addresses.len());
    let wrong: Vec<String> = (addresses.iter().zip(&kernel).zip(&ours))
        .filter(|((_, kernel), ours)| kernel != ours)
        .map(|((address, kernel), ours)| format!("{address}: {kernel} but {ours}"))
        .collect();
    ensure!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(10)].join("\n")
    );
    Ok(())
}

/// The prefixes of the main table, from the kernel's or Ferroute's output.
fn prefixes(text: &str) -> Result<BTreeSet<String>> {
    let routes: Vec<Value> = serde_json::from_str(text)?;
    Ok(routes.iter().map(|route| format!("{} {}", route["dst"], route["gateway"])).collect())
}

/// Waits until both have the same routes; a remaining difference is the error.
pub fn tables_agree(lab: &Lab, ferroute: &Ferroute) -> Result<()> {
    for family in ["-4", "-6"] {
        let kernel = prefixes(&lab.router.run(&format!("ip -j {family} route show table main"))?)?;
        let ours = || prefixes(&ferroute.ask(&["-j", family, "route", "show", "table", "main"])?);
        let same = eventually(|| ours().is_ok_and(|ours| ours == kernel));
        if !same {
            let ours = ours()?;
            let missing: Vec<_> = kernel.difference(&ours).take(5).collect();
            let surplus: Vec<_> = ours.difference(&kernel).take(5).collect();
            anyhow::bail!(
                "{family}: the kernel has {}, Ferroute has {}; missing {missing:?}, too many {surplus:?}",
                kernel.len(),
                ours.len()
            );
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_hundred_thousand_routes_answer_as_the_kernel_does() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let seed = rng::seed();
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let table = Table::random(&mut rng);
    let lab = lab()?;
    // Half of them exist at the start and are dumped, the others are added later.
    let (lines4, lines6) = table.lines("add");
    lab.router.ip_batch(&["-6"], &lines6)?;
    let ferroute = Ferroute::start(&lab)?;
    lab.router.ip_batch(&["-4"], &lines4)?;
    tables_agree(&lab, &ferroute)?;
    answers_agree(&lab, &ferroute, &table.addresses(&mut rng))?;

    let (lines4, lines6) = table.lines("del");
    lab.router.ip_batch(&["-4"], &lines4)?;
    lab.router.ip_batch(&["-6"], &lines6)?;
    tables_agree(&lab, &ferroute)?;
    answers_agree(&lab, &ferroute, &table.addresses(&mut rng)[..100])
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn lost_messages_end_in_the_same_table() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let table = Table::random(&mut Rng::new(7));
    let lab = lab()?;
    let ferroute = Ferroute::start(&lab)?;
    let resyncs = |status: &Value| status["mirror"]["resyncs"].as_u64();
    let before = resyncs(&ferroute.json(&["status"])?).context("no resyncs")?;

    // It cannot read while it is stopped: the socket's buffer overflows and messages are lost.
    let pid = Pid::from_raw(ferroute.pid().context("no process")? as i32);
    kill(pid, Signal::SIGSTOP)?;
    let changed = (|| {
        let (lines4, lines6) = table.lines("add");
        lab.router.ip_batch(&["-4"], &lines4)?;
        lab.router.ip_batch(&["-6"], &lines6)?;
        let half = |lines: &str| -> String {
            lines.lines().step_by(2).map(|line| format!("{line}\n")).collect()
        };
        let (lines4, lines6) = table.lines("del");
        lab.router.ip_batch(&["-4"], &half(&lines4))?;
        lab.router.ip_batch(&["-6"], &half(&lines6))
    })();
    kill(pid, Signal::SIGCONT)?;
    changed?;

    tables_agree(&lab, &ferroute)?;
    let after = resyncs(&ferroute.json(&["status"])?).context("no resyncs")?;
    ensure!(after > before, "no message was lost, so nothing was tested: {before} resyncs");
    let mut rng = Rng::new(8);
    answers_agree(&lab, &ferroute, &table.addresses(&mut rng)[..1000])
}

/// Changes neighbours that no stream uses, about a hundred times a second, until `stop`. Returns how many changes were made.
fn flap(lab: &Lab, stop: &AtomicBool) -> Result<usize> {
    let mut rng = Rng::new(31);
    let mut changes = 0;
    while !stop.load(Relaxed) {
        let host = 3 + rng.below(2);
        let address =
            [format!("198.18.2.{host}"), format!("2001:db8:2::{host}")][rng.below(2)].clone();
        let (verb, state) = [
            ("replace", "lladdr 02:00:00:00:00:01 nud reachable"),
            ("replace", "lladdr 02:00:00:00:00:02 nud stale"),
            ("replace", "nud failed"),
            ("del", ""),
        ][rng.below(4)];
        // Some are refused: there is no such neighbour.
        let output =
            lab.router.output(&format!("ip neigh {verb} {address} dev rt-right {state}"))?;
        changes += usize::from(output.status.success());
        std::thread::sleep(Duration::from_millis(8));
    }
    Ok(changes)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_table_replaced_at_once_while_neighbours_flap_stops_no_packet() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    // One packet of so many may be lost: where the kernel takes over, and where a loaded machine takes the CPUs away.
    const ONE_OF: usize = 100;
    let mut rng = Rng::new(9);
    let table = Table::random(&mut rng);
    let lab = lab()?;
    let (lines4, lines6) = table.lines("add");
    lab.router.ip_batch(&["-4"], &lines4)?;
    lab.router.ip_batch(&["-6"], &lines6)?;
    let ferroute = Ferroute::start(&lab)?;
    let stream = |address| Stream::start(&lab.left, &lab.right, address, Duration::from_millis(5));
    let streams = [stream(RIGHT4)?, stream(RIGHT6)?];
    let stop = AtomicBool::new(false);
    let changes = std::thread::scope(|scope| -> Result<usize> {
        let flapping = scope.spawn(|| flap(&lab, &stop));
        let (lines4, lines6) = table.lines_by("replace", 1);
        let replaced = lab.router.ip_batch(&["-4"], &lines4);
        let replaced = replaced.and_then(|()| lab.router.ip_batch(&["-6"], &lines6));
        stop.store(true, Relaxed);
        replaced?;
        flapping.join().expect("it does not panic")
    })?;
    ensure!(changes > 20, "neighbours have changed {changes} times");
    for stream in streams {
        ensure!(stream.flows(50), "nothing is forwarded\n{}", ferroute.account());
        let report = stream.stop();
        ensure!(report.lost() * ONE_OF <= report.sent, "{report:?}\n{}", ferroute.account());
    }
    tables_agree(&lab, &ferroute)?;
    answers_agree(&lab, &ferroute, &table.addresses(&mut rng)[..2000])
}
