//! Every packet is counted once: Ferroute's counters are checked for consistency and against the kernel's
//! counters, while ports are closed under load and with everything else going on.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::account::{Account, count_the_stacks_packets, interface, sent_by_the_stack};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::lab::mac;
use ferroute_tests::packet::{Ipv4, ethernet, udp};
use ferroute_tests::stream::Stream;
use ferroute_tests::tap::Tap;
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How often a port is closed under load.
const CLOSINGS: usize = 12;
/// Duration of mixed traffic.
const SOAK_TIME: Duration = Duration::from_secs(40);
/// Interval between two odd packets.
const ODD_INTERVAL: Duration = Duration::from_micros(700);

fn account(ferroute: &Ferroute) -> Result<Account> {
    Ok(Account::new(ferroute.json(&["stat"])?))
}

/// The account once no packet is in flight.
pub(super) fn settled(ferroute: &Ferroute) -> Result<Account> {
    let mut last = account(ferroute)?;
    let (mut before, mut now) = (0, last.packets("received")?);
    let settled = eventually(|| {
        let Ok(account) = account(ferroute) else { return false };
        (before, now) = (now, account.packets("received").unwrap_or(0));
        last = account;
        before == now && last.is_settled().unwrap_or(false)
    });
    ensure!(settled, "packets remain in flight: {:#}", last.stat());
    Ok(last)
}

/// Disables neighbour discovery and the hosts' own packets: only forwarded packets are sent.
fn quiet(lab: &Lab) -> Result<()> {
    let hosts = [(&lab.left, "left"), (&lab.right, "right")];
    for (namespace, port) in hosts {
        namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        let (n, m) = if port == "left" { (1, 1) } else { (2, 2) };
        namespace.run(&format!(
            "ip neigh replace 198.18.{n}.1 lladdr 02:f0:00:00:0{m}:01 dev {port} nud permanent"
        ))?;
        lab.router.run(&format!(
            "ip neigh replace 198.18.{n}.2 lladdr 02:f0:00:00:0{m}:02 dev rt-{port} nud permanent"
        ))?;
    }
    lab.router.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
}

fn verb(namespace: &Netns, line: &str) -> Command {
    let mut command = namespace.command(ferroute::binary());
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn answer(child: Child) -> Result<Value> {
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON\n{said}"))
}

/// Sends load from left to right while the right port is closed and opened in turn by `steps`. Returns the
/// account at the end, and the packets that a sink on the right has received.
fn close_under_load(lab: &Lab, ferroute: &Ferroute, steps: [&str; 2]) -> Result<(Account, u64)> {
    // It runs longer than the load: packets queued for a program that is detached are lost.
    let sink = verb(&lab.right, "sink -i right -j --idle 10 --duration 900").spawn()?;
    let on = eventually(|| lab.right.run("ip link show right").is_ok_and(|t| t.contains("xdp")));
    ensure!(on, "the sink attaches no program");
    let line = format!("pktgen -i left -j --engine af_xdp --dst {RIGHT4} --ratep 50000");
    let mut load = verb(&lab.left, &line).spawn()?;
    for _ in 0..CLOSINGS {
        for step in steps {
            thread::sleep(Duration::from_millis(150));
            lab.router.run(step)?;
            account(ferroute)?.balanced()?;
        }
        // Packets pass through userspace again before the next step.
        let sent = account(ferroute)?.packets("sent")?;
        let flows = || {
            account(ferroute)
                .is_ok_and(|now| now.packets("sent").is_ok_and(|now| now > sent + 1000))
        };
        ensure!(eventually(flows), "no packet passes after `{}`\n{}", steps[1], ferroute.account());
    }
    kill(Pid::from_raw(load.id() as i32), Signal::SIGINT)?;
    load.wait()?;
    let received = answer(sink)?["received"].as_u64().context("no count")?;
    Ok((settled(ferroute)?, received))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_closed_under_load_has_sent_exactly_the_packets_that_arrived() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    quiet(&lab)?;
    lab.router.run("ip link add br0 type bridge")?;
    count_the_stacks_packets(&lab.router, "rt-right")?;
    let mut ferroute = Ferroute::start(&lab)?;
    let before = outside(&lab, "rt-right")?;
    // A member of a bridge is not a port.
    let steps = ["ip link set rt-right master br0", "ip link set rt-right nomaster"];
    let (account, received) = close_under_load(&lab, &ferroute, steps)?;
    account.agrees()?;
    for port in ["rt-left", "rt-right"] {
        account.received_what_was_steered(port)?;
    }
    let ours = account.packets("sent")?;
    let now = outside(&lab, "rt-right")?.since(&before);
    now.agrees_with(ours, account.drops("TX_ERROR")?, false)?;
    ensure!(received == now.sent, "{received} received of {now:?}\n{}", ferroute.account());
    let punts = interface(&lab.router, "ferroute0")?.rx;
    ensure!(punts == account.packets("handed_to_kernel")?, "{punts}: {:#}", account.stat());
    ferroute.terminate()
}

/// Frames from the left host, each of which is handled differently.
fn odd_frames() -> Vec<Vec<u8>> {
    let src = Ipv4Addr::new(198, 18, 1, 2);
    let frame = |header: Ipv4, len: usize| {
        let (from, to) = (header.src.octets(), header.dst.octets());
        let payload = udp(&from, &to, (5000, 9), &vec![7; len]);
        ethernet(mac::RT_LEFT, mac::LEFT, 0x0800, &header.packet(&payload))
    };
    let to = |dst: [u8; 4]| Ipv4::new(src, dst.into(), 17);
    let right = [198, 18, 2, 2];
    let mut frames = vec![
        // Forwarded, and forwarded in fragments.
        frame(to(right), 100),
        frame(to([198, 18, 9, 9]), 1400),
        // Dropped; for some an ICMP error is sent.
        frame(Ipv4 { df: true, ..to([198, 18, 9, 9]) }, 1400),
        frame(Ipv4 { ttl: 1, ..to(right) }, 20),
        frame(Ipv4 { checksum_error: 1, ..to(right) }, 20),
        frame(Ipv4 { version: 5, ..to(right) }, 20),
        frame(Ipv4 { src: Ipv4Addr::new(127, 0, 0, 1), ..to(right) }, 20),
        frame(to([203, 0, 113, 1]), 20),
        frame(to([198, 51, 100, 1]), 20),
        // Held for neighbours that do not answer.
        frame(to([198, 18, 2, 77]), 20),
        frame(to([198, 18, 2, 78]), 20),
        // Handed to the kernel: router alert, and output on an interface that is not a port.
        frame(Ipv4 { options: vec![0x94, 4, 0, 0], ..to(right) }, 20),
        frame(to([198, 18, 3, 2]), 20),
    ];
    // Truncated in its header.
    frames.push(frames[0][..24].to_vec());
    frames
}

/// Sends them in turn until stopped.
fn send_odd(tap: &Tap, stop: &AtomicBool) {
    for frame in odd_frames().iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // Refused while the port is down.
        let _ = tap.send(frame);
        thread::sleep(ODD_INTERVAL);
    }
}

/// Everything that odd frames need in addition to the lab.
fn odd_routes(lab: &Lab) -> Result<()> {
    let router = lab.router.name();
    lab.right.run(&format!("ip link add third type veth peer name rt-third netns {router}"))?;
    lab.right.run("ip link set third up")?;
    lab.router.ip_batch(
        &[],
        "addr add 198.18.3.1/24 dev rt-third\nlink set rt-third up\n\
         neigh replace 198.18.3.2 lladdr 02:00:00:00:00:03 dev rt-third nud permanent\n\
         route add blackhole 203.0.113.0/24\nroute add unreachable 198.51.100.0/24\n\
         link add br0 type bridge\n",
    )?;
    routes_by_the_right(lab)
}

/// Routes that the kernel deletes when the right port goes down.
fn routes_by_the_right(lab: &Lab) -> Result<()> {
    lab.router.run("ip route replace 198.18.9.0/24 via 198.18.2.2 mtu lock 600").map(drop)
}

/// The kernel's packet counters of an interface of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outside {
    /// Sent.
    sent: u64,
    /// Given to the interface and not sent.
    dropped: u64,
    /// Packets that the qdisc of the kernel's stack has sent.
    stack: u64,
}

impl Outside {
    fn since(&self, before: &Outside) -> Outside {
        Outside {
            sent: self.sent - before.sent,
            dropped: self.dropped - before.dropped,
            stack: self.stack - before.stack,
        }
    }

    /// Fails unless `ours` were sent by Ferroute, and `refused` of Ferroute's were not sent. If a link
    /// `flaps`, some of the stack's packets are dropped after its qdisc, and others before it for lack of a
    /// carrier, where only the interface counts them (`noop_enqueue`): neither number can be negative.
    fn agrees_with(&self, ours: u64, refused: u64, flaps: bool) -> Result<()> {
        let all =
            || format!("{ours} sent by Ferroute, {refused} refused; the kernel counts {self:?}");
        let behind = (ours + self.stack).checked_sub(self.sent).with_context(all)?;
        let before = self.dropped.checked_sub(refused + behind).with_context(all)?;
        ensure!(flaps || (behind, before) == (0, 0), "{}", all());
        Ok(())
    }
}

/// All counters of one moment: no packet was sent in between.
fn outside(lab: &Lab, port: &str) -> Result<Outside> {
    let read = || -> Result<Outside> {
        let stack = sent_by_the_stack(&lab.router, port)?;
        let counted = interface(&lab.router, port)?;
        Ok(Outside { sent: counted.tx, dropped: counted.tx_dropped, stack })
    };
    let mut last = read()?;
    // The kernel sends neighbour requests all the time.
    let quiet = eventually(|| {
        let before = last;
        last = read().unwrap_or(before);
        let same = |stack| stack == last.stack;
        last == before && sent_by_the_stack(&lab.router, port).is_ok_and(same)
    });
    ensure!(quiet, "{port} keeps sending");
    Ok(last)
}

/// What happens to the right port during the traffic.
fn disturb(lab: &Lab, n: usize) -> Result<()> {
    let pause = || thread::sleep(Duration::from_millis(300));
    let (namespace, first, then) = match n % 4 {
        // It is closed, and opened again.
        0 | 2 => (&lab.router, "ip link set rt-right master br0", "ip link set rt-right nomaster"),
        // It loses its carrier: the kernel accepts packets and refuses to send them.
        1 => (&lab.right, "ip link set right down", "ip link set right up"),
        _ => (&lab.router, "ip link set rt-right down", "ip link set rt-right up"),
    };
    namespace.run(first)?;
    pause();
    namespace.run(then)?;
    lab.right.output("ip route replace default via 198.18.2.1")?;
    lab.right.output("ip route replace default via 2001:db8:2::1")?;
    let routes = eventually(|| routes_by_the_right(lab).is_ok());
    ensure!(routes, "the route by rt-right cannot be put back");
    pause();
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn mixed_traffic_while_ports_close_and_captures_run_is_fully_accounted_for() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for port in ["rt-left", "rt-right"] {
        // Otherwise the kernel removes the IPv6 addresses of an interface that goes down.
        lab.router.sysctl(&format!("net/ipv6/conf/{port}/keep_addr_on_down"), "1")?;
        count_the_stacks_packets(&lab.router, port)?;
    }
    lab.right.sysctl("net/ipv6/conf/right/keep_addr_on_down", "1")?;
    odd_routes(&lab)?;
    let mut ferroute = Ferroute::start(&lab)?;
    let before = [outside(&lab, "rt-left")?, outside(&lab, "rt-right")?];
    let handed = account(&ferroute)?.packets("handed_to_kernel")?;
    let handed_before = interface(&lab.router, "ferroute0")?.rx - handed;

    let (left, right, pace) = (&lab.left, &lab.right, Duration::from_micros(500));
    let kinds =
        [(left, right, RIGHT4), (left, right, RIGHT6), (right, left, LEFT4), (right, left, LEFT6)];
    let streams = kinds.map(|(from, to, address)| Stream::start(from, to, address, pace));
    let streams: Vec<Stream> = streams.into_iter().collect::<Result<_>>()?;
    let (tap, stop) = (Tap::open(left, "left")?, AtomicBool::new(false));
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| send_odd(&tap, &stop));
        let run = || -> Result<()> {
            let begun = Instant::now();
            let mut n = 0;
            while begun.elapsed() < SOAK_TIME {
                let capture = ferroute.command(&["capture", "-w", "/dev/null"]);
                let mut capture = { capture }.stderr(Stdio::null()).spawn()?;
                disturb(&lab, n)?;
                // At any moment, and however often it is requested.
                (0..5).try_for_each(|_| account(&ferroute)?.balanced())?;
                ferroute.json(&["drops"])?;
                kill(Pid::from_raw(capture.id() as i32), Signal::SIGINT)?;
                capture.wait()?;
                n += 1;
            }
            Ok(())
        };
        let ran = run();
        stop.store(true, Ordering::Relaxed);
        ran
    })?;
    for stream in &streams {
        ensure!(stream.flows(100), "nothing flows at the end\n{}", ferroute.account());
    }
    streams.into_iter().for_each(|stream| {
        let _ = stream.stop();
    });

    let account = settled(&ferroute)?;
    account.agrees()?;
    // Only the right link goes down, so only there the kernel accepts packets and refuses to send them.
    let refused = [0, account.drops("TX_ERROR")?];
    for ((port, before), refused) in ["rt-left", "rt-right"].into_iter().zip(before).zip(refused) {
        account.received_what_was_steered(port)?;
        let ours = account.port(port, "counters", "tx_packets")?;
        outside(&lab, port)?
            .since(&before)
            .agrees_with(ours, refused, port == "rt-right")
            .with_context(|| format!("{port}: {:#}", account.stat()))?;
    }
    let handed = interface(&lab.router, "ferroute0")?.rx - handed_before;
    ensure!(handed == account.packets("handed_to_kernel")?, "{handed}: {:#}", account.stat());
    met_every_fate(&account)?;
    ferroute.terminate()
}

/// Fails unless every kind of handling occurred.
fn met_every_fate(account: &Account) -> Result<()> {
    for reason in ["PKT_TOO_BIG", "TTL_EXCEEDED", "IP_CSUM", "BLACKHOLE", "UNREACHABLE"] {
        ensure!(account.drops(reason)? > 0, "no {reason}: {:#}", account.stat());
    }
    for reason in ["NEIGH_FAILED", "IP_INVALID_SOURCE", "PKT_TOO_SMALL", "TX_ERROR", "DEV_READY"] {
        ensure!(account.drops(reason)? > 0, "no {reason}: {:#}", account.stat());
    }
    for reason in ["IP_OPTION", "FOREIGN_OIF"] {
        ensure!(account.punts(reason)? > 0, "no {reason}: {:#}", account.stat());
    }
    for counter in ["IpFragCreates", "IcmpOutMsgs", "Ip6OutForwDatagrams"] {
        ensure!(account.mib(counter)? > 0, "no {counter}: {:#}", account.stat());
    }
    Ok(())
}
