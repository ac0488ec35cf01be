//! Compares the mirror with the kernel, in the tests' own network namespaces. Tests named `root_…`
//! need root, are run by scripts/test, and fail with a message without root.

mod answers;
mod commands;
pub(super) mod leaves;
mod locals;
mod messages;
mod multipath;
mod oracle;
mod ra;
mod ra_flood;
mod random;
mod replaced;
mod root;
mod rule_lookups;
mod self_check;
mod vlans;
mod xfrmis;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Mirror;
use crate::control::netlink::test_netns;

/// Runs `test` in a new network namespace, without duplicate address detection: addresses are announced
/// only when that is complete.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    test_netns::in_netns(move || {
        for of in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"), "0")
                .expect("sysctl");
        }
        run("ip link set lo up");
        test();
    });
}

/// Runs a command, which must succeed.
fn run(line: &str) {
    assert!(try_run(line), "{line}");
}

/// Runs a command; returns whether it succeeded.
fn try_run(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command");
    let status = Command::new(program)
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("the command starts");
    status.success()
}

/// The output of `ip -j …`.
fn ip_json(args: &str) -> serde_json::Value {
    let output = Command::new("ip").arg("-j").args(args.split_whitespace()).output().expect("ip");
    assert!(output.status.success(), "ip -j {args}");
    let text = String::from_utf8(output.stdout).expect("text");
    let text = if text.trim().is_empty() { "[]" } else { &text };
    serde_json::from_str(text).expect("JSON")
}

/// Pipes `lines` to `ip -batch`.
fn ip_batch(lines: &str) {
    use std::io::Write;
    let mut child = Command::new("ip")
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ip");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("written");
    child.wait().expect("ip ends");
}

/// Lets the mirror process all events and dump doubtful parts.
fn settle(mirror: &mut Mirror) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let more = mirror.process().expect("process").more;
        let ticked = mirror.tick(Instant::now()).expect("tick").more;
        if !more && !ticked && !mirror.follower.is_in_doubt() {
            return;
        }
        assert!(Instant::now() < until, "events without end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lets the mirror do what is due, for some time.
fn tick_for(mirror: &mut Mirror, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let next = mirror.next_tick();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        mirror.tick(Instant::now()).expect("ticks");
    }
}

/// How often [`eventually`] looks at least, at first every 50 ms.
const ATTEMPTS_MIN: u32 = 5;
/// How long [`eventually`] looks at least: some changes complete after the kernel's reply (IPv6 addresses are added from a
/// work queue).
const WAIT_MIN: Duration = Duration::from_secs(10);
/// Rounds of the self-check that heal what no event told, also if the first one has begun before the change, and a
/// comparison was put off because an event came or a route was about to expire.
const ROUNDS: u64 = 3;
/// Rounds after which differences have followed each other without end.
const ROUNDS_MAX: u64 = 30;
/// By then the self-check must have made its rounds, on any machine.
const WAIT_MAX: Duration = Duration::from_secs(180);

/// Retries `holds` until a difference has lasted for [`ROUNDS`] rounds of the self-check: how long these take depends on
/// the load of the machine.
fn eventually(
    mirror: &mut Mirror,
    holds: impl Fn(&Mirror) -> Result<(), String>,
) -> Result<(), String> {
    let (begun, first_round) = (Instant::now(), mirror.counters().check_rounds());
    let mut lasting: Option<(String, u64)> = None;
    for attempt in 1.. {
        settle(mirror);
        let Err(difference) = holds(mirror) else { return Ok(()) };
        let (waited, round) = (begun.elapsed(), mirror.counters().check_rounds());
        let since = match &lasting {
            Some((last, since)) if *last == difference => *since,
            _ => round,
        };
        let has_lasted = round - since >= ROUNDS || round - first_round >= ROUNDS_MAX;
        if attempt >= ATTEMPTS_MIN && waited >= WAIT_MIN && has_lasted {
            return Err(difference);
        }
        if waited >= WAIT_MAX {
            let rounds = round - first_round;
            return Err(format!("{rounds} rounds of the self-check in {waited:?}: {difference}"));
        }
        lasting = Some((difference, since));
        // What was dumped must be compared soon, or it is dumped again.
        tick_for(mirror, Duration::from_millis(if attempt < ATTEMPTS_MIN { 50 } else { 250 }));
    }
    unreachable!("attempts without end")
}

/// Two veth pairs, up.
const LINKS: [&str; 6] = [
    "ip link add va type veth peer name vb",
    "ip link add vc type veth peer name vd",
    "ip link set va up",
    "ip link set vb up",
    "ip link set vc up",
    "ip link set vd up",
];

/// Two veth pairs with addresses at one end of each, and forwarding enabled.
fn ports() {
    LINKS.iter().for_each(|line| run(line));
    [
        "ip addr add 10.0.0.1/24 dev va",
        "ip addr add 10.0.1.1/24 dev vc",
        "ip addr add 2001:db8::1/64 dev va nodad",
        "ip addr add 2001:db8:1::1/64 dev vc nodad",
        "sysctl -w net.ipv4.ip_forward=1",
        "sysctl -w net.ipv6.conf.all.forwarding=1",
    ]
    .iter()
    .for_each(|line| run(line));
}
