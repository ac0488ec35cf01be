//! Compares the mirror with the kernel, in the tests' own network namespaces. Tests named `root_…`
//! need root, are run by scripts/test, and fail with a message without root.

mod answers;
mod commands;
pub(super) mod leaves;
mod locals;
mod messages;
mod oracle;
mod ra;
mod random;
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

/// How often [`eventually`] looks at least.
const ATTEMPTS_MIN: u32 = 5;

/// Retries `holds` for some seconds: some changes complete after the kernel's reply (IPv6 addresses
/// are added from a work queue).
fn eventually(
    mirror: &mut Mirror,
    holds: impl Fn(&Mirror) -> Result<(), String>,
) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(10);
    // A few times also on a machine where one takes long: routes may expire between two commands of the comparison.
    for left in (0..ATTEMPTS_MIN).rev().chain(std::iter::repeat(0)) {
        settle(mirror);
        match holds(mirror) {
            Err(_) if left != 0 || Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result,
        }
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
