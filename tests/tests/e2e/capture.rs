//! `ferroute capture`: tshark reads every packet as it was sent; promiscuity is set and reset; errors of a
//! capture affect nothing else.

use std::fs::{self, File};
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, RIGHT4};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{ETHERTYPE_IPV4, Ipv4, UDP, ethernet, udp};
use ferroute_tests::ping::{ping, ping_all, ping_each};
use ferroute_tests::tap::Tap;
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The UDP port of these tests' packets.
const PORT: u16 = 4242;

/// A running `ferroute capture`.
pub struct Capture {
    child: Child,
    dir: TempDir,
}

impl Capture {
    /// Starts it and waits until it is capturing.
    pub fn start(ferroute: &Ferroute, args: &[&str], stdout: Stdio) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let args: Vec<&str> = std::iter::once("capture").chain(args.iter().copied()).collect();
        let mut command = ferroute.command(&args);
        command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(dir.path().join("said"))?);
        let mut this = Self { child: command.spawn()?, dir };
        let started = eventually(|| {
            let ended = !matches!(this.child.try_wait(), Ok(None));
            ended || this.said().contains("capturing on")
        });
        ensure!(started && this.said().contains("capturing on"), "{args:?}: {}", this.said());
        Ok(this)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("said")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for its end; returns its status and standard error.
    fn ended(mut self) -> Result<(ExitStatus, String)> {
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, self.said()));
            }
            ensure!(Instant::now() < end, "it does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as Ctrl-C does; returns its standard error.
    pub fn stop(self) -> Result<String> {
        self.signal(Signal::SIGINT)?;
        let (status, said) = self.ended()?;
        ensure!(status.success(), "{status}: {said}");
        Ok(said)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A packet as shown by tshark.
#[derive(Debug, PartialEq)]
pub struct Shown {
    pub port: String,
    /// `0x…1` in, `0x…2` out.
    pub flags: u32,
    comment: String,
    pub frame: Vec<u8>,
}

fn tshark(file: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new("tshark").arg("-nr").arg(file).args(args).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark: {stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

pub fn read(file: &Path) -> Result<Vec<Shown>> {
    const FIELDS: [&str; 3] = ["frame.interface_name", "frame.packet_flags", "frame.comment"];
    let mut args = vec!["-T", "fields", "-E", "separator=|"];
    FIELDS.iter().for_each(|field| args.extend(["-e", field]));
    let lines = tshark(file, &args)?;
    let raw: Value = serde_json::from_str(&tshark(file, &["-T", "jsonraw"])?)?;
    let frames = raw.as_array().context("no array")?;
    ensure!(frames.len() == lines.lines().count(), "{lines}\n{raw}");
    let shown = lines.lines().zip(frames).map(|(line, frame)| {
        let mut words = line.splitn(3, '|').map(str::to_owned);
        let mut word = || words.next().context("too few fields");
        let (port, flags, comment) = (word()?, word()?, word()?);
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16)?;
        let hex = frame["_source"]["layers"]["frame_raw"][0].as_str().context("no octets")?;
        let octet = |at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?);
        let frame = (0..hex.len()).step_by(2).map(octet).collect::<Result<_>>()?;
        Ok(Shown { port, flags, comment, frame })
    });
    shown.collect()
}

/// A packet from left to right with an IP header modified by `edit`.
fn packet(number: u16, edit: impl FnOnce(&mut Ipv4)) -> Result<Vec<u8>> {
    let (src, dst): (Ipv4Addr, Ipv4Addr) = (LEFT4.parse()?, RIGHT4.parse()?);
    let data = vec![number as u8; 18 + usize::from(number)];
    let datagram = udp(&src.octets(), &dst.octets(), (PORT, PORT), &data);
    let mut header = Ipv4 { id: number, ..Ipv4::new(src, dst, UDP) };
    edit(&mut header);
    Ok(ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &header.packet(&datagram)))
}

/// Sends frames from the left and returns the `expected` frames that arrive on the right.
fn through(lab: &Lab, frames: &[Vec<u8>], expected: usize) -> Result<Vec<Vec<u8>>> {
    let (left, right) = (Tap::open(&lab.left, "left")?, Tap::open(&lab.right, "right")?);
    let mut arrived = Vec::new();
    for frame in frames {
        left.send(frame)?;
    }
    while arrived.len() < expected {
        let frame = right.wait_for(EVENT_TIMEOUT, |frame| {
            frame.starts_with(&mac::RIGHT) && frame.get(36..38) == Some(&PORT.to_be_bytes())
        });
        arrived.push(frame.with_context(|| format!("{} of {expected} came", arrived.len()))?);
    }
    Ok(arrived)
}

pub fn file(dir: &TempDir) -> (PathBuf, String) {
    let path = dir.path().join("capture.pcapng");
    (path.clone(), path.display().to_string())
}

fn promiscuity(lab: &Lab) -> Result<u64> {
    let text = lab.router.run("ip -j -d link show rt-left")?;
    let links: Value = serde_json::from_str(&text)?;
    links[0]["promiscuity"].as_u64().with_context(|| format!("no promiscuity in {text}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tshark_reads_every_packet_as_it_was_sent() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}"))?;
    let dir = tempfile::tempdir()?;
    let (path, name) = file(&dir);
    let filter = format!("udp port {PORT}");
    let all = Capture::start(&ferroute, &["-w", &name, &filter], Stdio::null())?;
    let drops = dir.path().join("drops.pcapng");
    let name = drops.display().to_string();
    let args = ["-i", "rt-left", "-s", "34", "--direction", "drop", "-w", &name];
    let only_drops = Capture::start(&ferroute, &args, Stdio::null())?;

    let mut sent = (0..200).map(|n| packet(n, |_| {})).collect::<Result<Vec<_>>>()?;
    sent.insert(50, packet(1000, |header| header.ttl = 1)?);
    sent.insert(100, packet(1001, |header| header.checksum_error = 1)?);
    let arrived = through(&lab, &sent, 200)?;
    let said = all.stop()?;
    // 202 in, 200 out, 2 dropped; the ICMP error does not use the port.
    for line in ["404 packets captured", "404 packets received by filter", "0 packets lost"] {
        ensure!(said.contains(line), "{line} is not in {said}");
    }
    ensure!(only_drops.stop()?.contains("2 packets captured"));

    let shown = read(&path)?;
    let frames = |port: &str, flags: u32| -> Vec<&[u8]> {
        let of = shown.iter().filter(|s| s.port == port && s.flags == flags);
        of.map(|s| &s.frame[..]).collect()
    };
    // epb_flags: unicast, and the direction.
    ensure!(frames("rt-left", 0b101) == sent, "received is not what was sent");
    ensure!(frames("rt-right", 0b110) == arrived, "sent is not what arrived");
    let comments = |shown: &[Shown]| -> Vec<String> {
        let comments = shown.iter().map(|s| s.comment.clone());
        comments.filter(|comment| !comment.is_empty()).collect()
    };
    let reasons = comments(&shown);
    ensure!(reasons.len() == 2, "{reasons:?}");
    ensure!(reasons[0].starts_with("TTL_EXCEEDED: "), "{reasons:?}");
    ensure!(reasons[1].starts_with("IP_CSUM: "), "{reasons:?}");
    ensure!(frames("rt-left", 0b100) == [&sent[50][..], &sent[100][..]], "other drops");

    let shown = read(&drops)?;
    ensure!(comments(&shown) == reasons, "{shown:?}");
    ensure!(shown.iter().map(|s| &s.frame[..]).eq([&sent[50][..34], &sent[100][..34]]));
    let stamps = tshark(&path, &["-T", "fields", "-e", "frame.time_delta"])?;
    ensure!(!stamps.contains('-'), "time goes back: {stamps}");
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn promiscuity_rises_with_each_capture_and_falls_with_the_last() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}"))?;
    let before = promiscuity(&lab)?;
    let dir = tempfile::tempdir()?;
    let (path, name) = file(&dir);
    let filter = format!("udp port {PORT}");
    let args = ["-i", "rt-left", "--promisc", "-w", &name, &filter];
    let first = Capture::start(&ferroute, &args, Stdio::null())?;
    ensure!(promiscuity(&lab)? == before + 1);
    let second = Capture::start(&ferroute, &["-i", "rt-left", "--promisc"], Stdio::null())?;
    ensure!(promiscuity(&lab)? == before + 2);
    // Without the option nothing changes.
    let third = Capture::start(&ferroute, &["-i", "rt-left"], Stdio::null())?;
    ensure!(promiscuity(&lab)? == before + 2);
    third.stop()?;
    // However it ends.
    second.signal(Signal::SIGKILL)?;
    second.ended()?;
    ensure!(eventually(|| promiscuity(&lab).ok() == Some(before + 1)));

    // A frame for another station is shown but not forwarded; one for the router is forwarded.
    let ours = packet(1, |_| {})?;
    let mut other = packet(2, |_| {})?;
    other[..6].copy_from_slice(&[0x02, 0xaa, 0, 0, 0, 9]);
    let arrived = through(&lab, &[other.clone(), ours.clone()], 1)?;
    ensure!(arrived[0][14 + 4..14 + 6] == [0, 1], "the other station's frame was forwarded");
    // The two are captured by different paths: wait for the kernel's, too.
    let written = eventually(|| read(&path).is_ok_and(|shown| shown.len() == 2));
    ensure!(written, "{:?}", read(&path));
    first.stop()?;
    ensure!(eventually(|| promiscuity(&lab).ok() == Some(before)));
    let shown = read(&path)?;
    let frames = |flags| shown.iter().find(|s| s.flags == flags).map(|s| &s.frame[..]);
    ensure!(frames(0b1_0001) == Some(&other[..]), "promiscuous: {shown:?}");
    ensure!(frames(0b101) == Some(&ours[..]), "received: {shown:?}");
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn errors_of_a_capture_are_reported_and_affect_nothing_else() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    let ping = |count: u32| ping_each(&lab.left, RIGHT4, count);
    ping(1)?;
    for (args, code, words) in [
        (&["host", "and"][..], 2, "syntax error"),
        (&["host no such name"], 2, "does not compile"),
        (&["-i", "eth7"], 1, "eth7 is not a port of the daemon; it has rt-left, rt-right"),
        (&["-w", "/nonexistent/x"], 1, "cannot write /nonexistent/x: No such file"),
    ] {
        let args: Vec<&str> = std::iter::once("capture").chain(args.iter().copied()).collect();
        let output = ferroute.command(&args).stdin(Stdio::null()).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code), "{args:?}: {} {stderr}", output.status);
        ensure!(stderr.contains(words), "{args:?}: {stderr}");
    }

    let full = Capture::start(&ferroute, &["-w", "/dev/full"], Stdio::null())?;
    ping(1)?;
    let (status, said) = full.ended()?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    ensure!(said.contains("cannot write /dev/full: No space left on device"), "{said}");

    let mut gone = Capture::start(&ferroute, &["-w", "-"], Stdio::piped())?;
    drop(gone.child.stdout.take());
    ping(1)?;
    let (status, said) = gone.ended()?;
    ensure!(status.success() && !said.contains("ferroute: cannot"), "{status}: {said}");

    slow_reader(&ferroute, &lab)?;

    let left_alone = Capture::start(&ferroute, &[], Stdio::null())?;
    ferroute.kill()?;
    let (status, said) = left_alone.ended()?;
    ensure!(status.code() == Some(1) && said.contains("the daemon has ended"), "{status}: {said}");
    Ok(())
}

/// Copies are lost and counted; packets are not lost.
fn slow_reader(ferroute: &Ferroute, lab: &Lab) -> Result<()> {
    let mut slow = Capture::start(ferroute, &["-B", "256", "-w", "-"], Stdio::piped())?;
    // Four copies of a kilobyte each: more than ring, socket and pipe hold together. One packet after the
    // other: ping's own socket overflows when it does not get its CPU.
    let pings = ping(&lab.left, &format!("-c 1000 -A -W 10 -s 1000 {RIGHT4}"))?;
    // ping limits how long it waits for the last answer.
    ensure!(pings.sent == 1000 && pings.received >= 990, "{}", pings.text);
    let mut stdout = slow.child.stdout.take().context("a pipe")?;
    let reading = std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    // Copies in flight are also written before it ends.
    slow.signal(Signal::SIGINT)?;
    let (status, said) = slow.ended()?;
    reading.join().expect("the reader does not panic")?;
    let count = |words: &str| -> Result<u64> {
        let line = said.lines().find(|line| line.contains(words));
        let number = line.and_then(|line| line.split(' ').next()?.parse().ok());
        number.with_context(|| format!("no `{words}` in {said}"))
    };
    let (captured, matched) = (count("captured")?, count("received by filter")?);
    let lost = count("lost by the capture")?;
    ensure!(status.success() && lost > 0, "{status}: {said}");
    ensure!(captured + lost == matched && (3960..=4000).contains(&matched), "{said}");
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_renamed_port_is_reported_and_captured_again_when_it_is_back() -> Result<()> {
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    let dir = tempfile::tempdir()?;
    let (path, name) = file(&dir);
    let args = ["-i", "rt-left", "--promisc", "-w", &name, "icmp"];
    let capture = Capture::start(&ferroute, &args, Stdio::null())?;
    let rename = |from: &str, to: &str| -> Result<()> {
        lab.router.run(&format!("ip link set {from} down"))?;
        lab.router.run(&format!("ip link set {from} name {to}"))?;
        lab.router.run(&format!("ip link set {to} up")).map(drop)
    };
    rename("rt-left", "other")?;
    let told = || {
        let said = capture.said();
        said.contains("rt-left is gone") || said.contains("rt-left is now other")
    };
    ensure!(eventually(told), "{}", capture.said());
    rename("other", "rt-left")?;
    ensure!(eventually(
        || capture.said().contains("rt-left is back") || capture.said().contains("is now rt-left")
    ));
    ferroute.wait_until_forwarding()?;
    ensure!(eventually(|| promiscuity(&lab).is_ok_and(|count| count >= 1)));
    // The kernel forwards until neighbours and routes are back.
    ensure!(eventually(|| ping_all(&lab.left, &format!("-c 1 -W 1 {RIGHT4}")).is_ok()));
    let counter = |ferroute: &Ferroute| -> Result<u64> {
        let ports = ferroute.json(&["stat", "--port", "rt-left"])?;
        ports[0]["counters"]["rx_packets"].as_u64().context("no rx_packets")
    };
    let before = counter(&ferroute)?;
    ping_each(&lab.left, RIGHT4, 3)?;
    ensure!(counter(&ferroute)? >= before + 3, "the kernel still forwards");
    capture.stop()?;
    let shown = read(&path)?;
    ensure!(shown.len() >= 6 && shown.iter().all(|shown| shown.port == "rt-left"), "{shown:?}");
    ferroute.terminate()
}
