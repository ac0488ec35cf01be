//! IPsec policies: packets that one protects or drops are treated by the kernel, and all others as without policies.
//!
//! There are no security associations, so that what has to be protected is dropped.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ferroute_tests::conversation::nft;
use ferroute_tests::ferroute;
use ferroute_tests::rng::Rng;

use crate::BATCH_TIMEOUT;
use crate::compare::{compare, generate_from};
use crate::rulesets::Pair;

/// Databases of policies, and packets sent through each.
const DATABASES: usize = 48;
const PACKETS: usize = 192;
/// Notifications are followed at once; the machine may be busy.
const FOLLOW_TIME: Duration = Duration::from_millis(30);

/// Prefixes of sources and destinations, by family.
const PREFIXES: [&[&str]; 2] = [
    &[
        "0.0.0.0/0",
        "198.18.1.0/24",
        "198.18.1.2/32",
        "198.18.1.3/32",
        "198.18.2.0/24",
        "198.18.2.2/32",
        "198.18.2.1/32",
        "203.0.113.0/24",
        "203.0.113.5/32",
        "100.64.0.0/15",
        "198.51.100.0/24",
    ],
    &[
        "::/0",
        "2001:db8:1::/64",
        "2001:db8:1::2/128",
        "2001:db8:1::3/128",
        "2001:db8:2::/64",
        "2001:db8:2::2/128",
        "2001:db8:3::/48",
        "2001:db8:5::/64",
    ],
];
const UPPER: &[&str] = &[
    "",
    "",
    "",
    "proto udp",
    "proto udp dport 33434",
    "proto tcp dport 80",
    "proto tcp sport 80",
    "proto udp sport 1024",
    "proto tcp",
];
const ICMP: [&[&str]; 2] =
    [&["proto icmp", "proto icmp type 8"], &["proto ipv6-icmp", "proto ipv6-icmp type 128"]];

/// What policies do. `use`, `limit` and `comp` let packets pass, which only the kernel may decide.
const ACTIONS: &[&str] = &["block", "block", "allow", "protect", "use", "limit", "comp"];
/// Of these, what is the same for invalid packets of connections, which the kernel does not get.
pub const STRICT_ACTIONS: &[&str] = &["block", "block", "allow", "protect"];

/// Lines of `ip -batch` that add random policies of the namespace of a router, and their number.
pub fn random_policies(rng: &mut Rng, actions: &[&str]) -> (String, usize) {
    let (mut lines, mut selectors) = (String::new(), Vec::new());
    for family in [0, 1] {
        let any = PREFIXES[family][0];
        for direction in ["fwd", "out"] {
            // Each batch ends with such packets.
            let plain = format!("src {any} dst {any} proto udp sport 4000 dport 4001");
            let _ = writeln!(lines, "xfrm policy add dir {direction} {plain} priority 1");
            selectors.push(format!("{direction} {plain}"));
        }
        for _ in 0..rng.below(5) {
            let direction = rng.pick(&["fwd", "out", "in"]);
            let mut selector =
                format!("src {} dst {}", rng.pick(PREFIXES[family]), rng.pick(PREFIXES[family]));
            let upper = if rng.one_in(6) { rng.pick(ICMP[family]) } else { rng.pick(UPPER) };
            if rng.one_in(4) {
                let _ = write!(selector, " dev {}", rng.pick(&["rt-right", "rt-left"]));
            }
            let _ = write!(selector, " {upper}");
            let mark = rng.pick(&["", "", "", " mark 5", " mark 1 mask 0x1"]);
            let key = format!("{direction} {selector}");
            if selectors.contains(&key) {
                continue;
            }
            selectors.push(key);
            // Few, so that some are equal.
            let priority = rng.pick(&[10, 10, 20, 30]);
            let flag = if rng.one_in(6) { " flag icmp" } else { "" };
            let action = rng.pick(actions);
            let action = match action {
                "protect" => " tmpl proto esp mode transport".into(),
                "use" => " tmpl proto ah mode transport level use".into(),
                "comp" => " tmpl proto comp mode transport level use".into(),
                "limit" => " action allow limit packet-hard 1000000".into(),
                other => format!(" action {other}"),
            };
            let _ = writeln!(
                lines,
                "xfrm policy add dir {direction} {selector}{mark} priority {priority}{flag}{action}"
            );
        }
    }
    (lines, selectors.len())
}

/// Replaces the policies of both, and waits until Ferroute applies them.
pub fn load_policies(pair: &Pair, lines: &str, count: usize) -> Result<()> {
    for router in pair.routers() {
        router.ip_batch(&[], &format!("xfrm policy flush\nxfrm state flush\n{lines}"))?;
    }
    if ferroute::by_kernel() {
        return Ok(());
    }
    let end = Instant::now() + BATCH_TIMEOUT;
    // Its exit status is 1 while the ruleset is not applied.
    let followed = || -> Option<u64> {
        let status = pair.ferroute.command(&["-j", "status"]).output().ok()?.stdout;
        let status: serde_json::Value = serde_json::from_slice(&status).ok()?;
        status.get("pid")?;
        Some(status["ipsec_policies"].as_u64().unwrap_or(0))
    };
    while followed() != Some(count as u64) {
        ensure!(Instant::now() < end, "{count} policies are not followed:\n{lines}");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(FOLLOW_TIME);
    Ok(())
}

/// Sets marks at the hooks before and after routing, or has no rules.
const RULESETS: [&str; 3] = [
    "",
    "table inet m { chain p { type filter hook prerouting priority 0; \
     udp dport 33434 meta mark set 5; }; }",
    "table inet m { chain p { type filter hook forward priority 0; tcp dport 80 meta mark set 5; }; }",
];

#[test]
#[ignore = "needs root: run by scripts/test"]
fn policies_let_through_what_the_kernel_does() -> Result<()> {
    let mut pair = Pair::build()?;
    let mut rng = Rng::new(pair.seed());
    let (mut sent, mut forwarded) = (0, 0);
    let concerned_before = pair.punts("XFRM")?;
    for n in 0..DATABASES {
        let ruleset = rng.pick(&RULESETS);
        for router in pair.routers() {
            nft(router, &format!("flush ruleset\n{ruleset}"))?;
        }
        pair.wait_until_followed()?;
        let (lines, count) = random_policies(&mut rng, ACTIONS);
        load_policies(&pair, &lines, count)?;
        let numbers: Vec<u16> = (0..PACKETS).map(|_| pair.next_index()).collect();
        let first = numbers[0];
        let inputs = generate_from(first, rng.bits(), PACKETS);
        let outcome = compare(&pair.kernel, &pair.world, &inputs, BATCH_TIMEOUT)?;
        if let Some((note, text)) = outcome.differences.first() {
            let differ = outcome.differences.len();
            anyhow::bail!(
                "database {n}: {differ} packets differ ({note}):\n{text}\n{ruleset}\n{lines}"
            );
        }
        (sent, forwarded) = (sent + outcome.sent as u64, forwarded + outcome.forwarded as u64);
    }
    if !ferroute::by_kernel() {
        ensure!(pair.ferroute.is_running(), "ferroute has ended\n{}", pair.ferroute.said());
        let concerned = pair.punts("XFRM")? - concerned_before;
        let by_kernel = pair.ferroute.forwarded_by_kernel()?;
        let by_kernel = by_kernel.v4 + by_kernel.v6;
        println!(
            "{sent} sent, {concerned} left to the kernel by policies, {forwarded} forwarded, {by_kernel} by it"
        );
        ensure!(concerned > sent / 50 && concerned < sent / 2, "{concerned} of {sent} were left");
        ensure!(by_kernel < forwarded / 2, "the kernel forwarded {by_kernel} of {forwarded}");
    }
    pair.ferroute.terminate()
}
