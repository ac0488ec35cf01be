//! Stalls: the process is stopped, a thread does not run, nobody reads its output, or the kernel is slow to
//! accept packets. The kernel forwards then, and packets that it would not forward are not forwarded.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::freeze::{StoppedProcess, StoppedThread};
use ferroute_tests::lab::addr::{LEFT4, RIGHT4, RIGHT6};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{self, ETHERTYPE_IPV4, Ipv4, ethernet, udp};
use ferroute_tests::stream::Stream;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, eventually};

/// The default time-outs.
const DEFAULT: [&str; 4] = ["--worker-timeout", "250", "--control-timeout", "1000"];
/// Far longer than any time-out here, but finite: machines that run tests are busy.
const EVENT_TIMEOUT: Duration = Duration::from_secs(5);
const SEND_INTERVAL: Duration = Duration::from_millis(2);
/// Packets that were routed but not yet sent when the process was stopped: hardly ever one at this pace.
const IN_HAND: u64 = 1;

/// How long the kernel must forward nothing.
const QUIET_TIME: Duration = Duration::from_millis(50);

fn stream(lab: &Lab, to: &str) -> Result<Stream> {
    Stream::start(&lab.left, &lab.right, to, SEND_INTERVAL)
}

/// Starts Ferroute with the default time-outs, and returns it with its process ID and a stream that it
/// forwards. `None`: the kernel forwards in this run of the tests.
fn under_traffic(lab: &Lab) -> Result<Option<(Ferroute, u32, Stream)>> {
    let ferroute = Ferroute::start_with(lab, &DEFAULT)?;
    let Some(pid) = ferroute.pid() else { return Ok(None) };
    let stream = stream(lab, RIGHT4)?;
    ensure!(stream.flows(50));
    ferroute.forwarded_all_itself()?;
    Ok(Some((ferroute, pid, stream)))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_stopped_process_leaves_its_packets_to_the_kernel_until_it_has_caught_up() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_with(&lab, &DEFAULT)?;
    let Some(pid) = ferroute.pid() else { return Ok(()) };
    let (v4, v6) = (stream(&lab, RIGHT4)?, stream(&lab, RIGHT6)?);
    ensure!(v4.flows(50) && v6.flows(50));
    ferroute.forwarded_all_itself()?;
    for _ in 0..3 {
        let stopped = StoppedProcess::stop(pid)?;
        thread::sleep(Duration::from_millis(20));
        let (taken4, taken6) =
            (v4.until_flowing(5, EVENT_TIMEOUT)?, v6.until_flowing(5, EVENT_TIMEOUT)?);
        eprintln!("stopped: the kernel forwards after {taken4:?} (IPv6: {taken6:?})");
        drop(stopped);
        eprintln!(
            "continued: userspace forwards after {:?}",
            ferroute.until_in_userspace(QUIET_TIME, EVENT_TIMEOUT)?
        );
        ensure!(v4.flows(50) && v6.flows(50), "nothing arrives after SIGCONT");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn changes_while_it_was_stopped_are_effective_from_its_first_packet_on() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_with(&lab, &DEFAULT)?;
    let Some(pid) = ferroute.pid() else { return Ok(()) };
    let changes = [
        (&["ip route add blackhole 198.18.2.2"][..], &["ip route del blackhole 198.18.2.2"][..]),
        (&["sysctl -qw net.ipv4.ip_forward=0"], &["sysctl -qw net.ipv4.ip_forward=1"]),
        (
            &[
                "nft add table inet fw",
                "nft add chain inet fw f { type filter hook forward priority 0 ; policy drop ; }",
            ],
            &["nft delete table inet fw"],
        ),
    ];
    for (change, undo) in changes {
        let stream = stream(&lab, RIGHT4)?;
        ensure!(stream.flows(50), "nothing arrives before {change:?}");
        let stopped = StoppedProcess::stop(pid)?;
        // Some of these packets are in its rings.
        thread::sleep(Duration::from_millis(100));
        for line in change {
            lab.router.run(line)?;
        }
        // Packets in flight in the kernel have arrived.
        thread::sleep(Duration::from_millis(200));
        let before = stream.received();
        thread::sleep(Duration::from_millis(1500));
        drop(stopped);
        thread::sleep(Duration::from_millis(1500));
        let after = stream.received();
        ensure!(after <= before + IN_HAND, "{change:?}: {} packets passed", after - before);
        for line in undo {
            lab.router.run(line)?;
        }
        ensure!(stream.flows(50), "nothing arrives after {undo:?}");
        ferroute.until_in_userspace(QUIET_TIME, EVENT_TIMEOUT)?;
        stream.stop();
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_stalled_control_thread_leaves_everything_to_the_kernel() -> Result<()> {
    let lab = Lab::up()?;
    let Some((ferroute, pid, stream)) = under_traffic(&lab)? else { return Ok(()) };
    let stopped = StoppedThread::stop(pid, "ferroute")?;
    lab.router.run("ip route add blackhole 198.18.2.2")?;
    eprintln!("a blackhole is effective after {:?}", stream.until_dry(EVENT_TIMEOUT)?);
    lab.router.run("ip route del blackhole 198.18.2.2")?;
    ensure!(stream.flows(50), "the kernel does not forward");
    let by_kernel = ferroute.forwarded_by_kernel()?;
    ensure!(by_kernel.v4 > 0, "the kernel does not forward");
    drop(stopped);
    eprintln!(
        "continued: userspace forwards after {:?}",
        ferroute.until_in_userspace(QUIET_TIME, EVENT_TIMEOUT)?
    );
    ensure!(stream.flows(50));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_stalled_worker_leaves_its_queue_to_the_kernel() -> Result<()> {
    let lab = Lab::up()?;
    let Some((ferroute, pid, stream)) = under_traffic(&lab)? else { return Ok(()) };
    let stopped = StoppedThread::stop(pid, "fr-worker0")?;
    thread::sleep(Duration::from_millis(20));
    eprintln!("the kernel forwards after {:?}", stream.until_flowing(5, EVENT_TIMEOUT)?);
    // It does not block the control thread.
    lab.router.run("ip link add dummy0 type veth peer name dummy1")?;
    let shown = || ferroute.ask(&["link", "show"]).is_ok_and(|text| text.contains("dummy0"));
    ensure!(eventually(shown), "the control thread no longer follows the kernel");
    drop(stopped);
    eprintln!(
        "continued: userspace forwards after {:?}",
        ferroute.until_in_userspace(QUIET_TIME, EVENT_TIMEOUT)?
    );
    ensure!(stream.flows(50));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn unread_log_messages_block_nothing() -> Result<()> {
    let lab = Lab::up()?;
    let (reader, mut writer) = std::io::pipe()?;
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096))?;
    writer.write_all(&[b'\n'; 4096])?;
    let mut ferroute = Ferroute::start_saying_to(&lab, Stdio::from(writer))?;
    if ferroute.pid().is_none() {
        return Ok(());
    }
    let stream = stream(&lab, RIGHT4)?;
    ensure!(stream.flows(50));
    // Each change makes it log a message.
    let chain = "{ type filter hook forward priority 0 ; policy drop ; }";
    for _ in 0..3 {
        lab.router.run("nft add table inet fw")?;
        lab.router.run(&format!("nft add chain inet fw f {chain}"))?;
        // Userspace cannot apply this chain.
        let ingress = "{ type filter hook ingress device rt-left priority 0 ; }";
        lab.router.run(&format!("nft add chain inet fw i {ingress}"))?;
        eprintln!("policy drop is effective after {:?}", stream.until_dry(EVENT_TIMEOUT)?);
        lab.router.run("nft delete table inet fw")?;
        ensure!(stream.flows(50), "nothing arrives without the table");
    }
    lab.router.run("ip route add blackhole 198.18.2.2")?;
    eprintln!("a blackhole is effective after {:?}", stream.until_dry(EVENT_TIMEOUT)?);
    let status = ferroute.command(&["-j", "status"]).output()?;
    ensure!(String::from_utf8_lossy(&status.stdout).contains("rt-left"), "no answer");
    ferroute.terminate()?;
    let mut said = String::new();
    // The pipe ends with the process.
    (&reader).take(8192).read_to_string(&mut said)?;
    Ok(())
}

/// A third interface of the router, which is not a port, with a ruleset that is slow to evaluate.
fn third_port(lab: &Lab) -> Result<()> {
    lab.router.run("ip link add rt-third type veth peer name third")?;
    lab.router.run("ip addr add 198.18.3.1/24 dev rt-third")?;
    lab.router.run("ip link set rt-third up")?;
    lab.router.run("ip link set third up")?;
    lab.router.run("ip neigh add 198.18.3.2 lladdr 02:00:00:00:03:02 dev rt-third")?;
    let mut rules = String::from(
        "table netdev slow {\n chain out { type filter hook egress device rt-third priority 0;\n",
    );
    for n in 0..4000 {
        rules += &format!("  ip saddr 203.0.{}.{} counter drop\n", n / 250, n % 250);
    }
    rules += " }\n}\n";
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("rules");
    std::fs::write(&file, rules)?;
    lab.router.run(&format!("nft -f {}", file.display())).map(drop)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_flood_of_packets_for_the_kernel_blocks_nothing() -> Result<()> {
    let lab = Lab::up()?;
    third_port(&lab).context("a third port")?;
    let mut ferroute = Ferroute::start(&lab)?;
    if ferroute.pid().is_none() {
        return Ok(());
    }
    let source: Ipv4Addr = LEFT4.parse()?;
    let target = Ipv4Addr::new(198, 18, 3, 2);
    let datagram = udp(&source.octets(), &target.octets(), (1, 2), b"to a third interface");
    let packet = Ipv4::new(source, target, packet::UDP).packet(&datagram);
    let frame = ethernet(mac::RT_LEFT, mac::LEFT, ETHERTYPE_IPV4, &packet);
    let left = Tap::open(&lab.left, "left")?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let _ = left.send(&frame);
                left.drain();
            }
        });
        let result = under_flood(&lab, &mut ferroute);
        done.store(true, Relaxed);
        result
    })
}

fn under_flood(lab: &Lab, ferroute: &mut Ferroute) -> Result<()> {
    let punted = || -> Result<u64> {
        let drops = ferroute.json(&["drops"])?;
        let punts = drops["punts"].as_array().context("no punts")?;
        Ok(punts.iter().filter_map(|punt| punt["count"].as_u64()).sum())
    };
    let before = punted()?;
    let stream = stream(lab, RIGHT4)?;
    ensure!(stream.flows(20), "nothing arrives under the flood");
    for _ in 0..3 {
        lab.router.run("ip route add blackhole 198.18.2.2")?;
        eprintln!("a blackhole is effective after {:?}", stream.until_dry(EVENT_TIMEOUT)?);
        lab.router.run("ip route del blackhole 198.18.2.2")?;
        ensure!(stream.flows(20), "nothing arrives without the blackhole");
    }
    let flood = punted()? - before;
    ensure!(flood > 1000, "only {flood} packets were sent");
    ferroute.ask(&["status"])?;
    ferroute.terminate()
}
