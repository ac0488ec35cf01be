//! The kernel as the oracle: thousands of generated packets pass through two labs that differ only in the
//! router, the kernel or Ferroute. The output must be the same, including whole frames and errors.
//!
//! `FERROUTE_SEED` repeats a run, `FERROUTE_ORACLE_PACKETS` makes it longer (at most 65,000). Everything
//! that depends on time or on earlier packets is left out (neighbour resolution, rate limits, redirects,
//! multipath), and has its own tests.

#![forbid(unsafe_code)]

mod compare;
mod connection;
mod connections;
mod generate4;
mod generate6;
mod input;
mod normalise;
mod odd;
mod policies;
mod portless;
mod probe;
mod rulesets;
mod settings;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use compare::{Outcome, compare, generate};
use ferroute_tests::account::Account;
use ferroute_tests::{Ferroute, ferroute, rng};
use serde_json::Value;
use world::World;

/// Time-out of a batch on a busy machine.
const BATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Why Ferroute may hand packets to the kernel here, and which of the generated packets these are.
const HANDED_OVER: &[(&str, &str)] = &[
    ("LOCAL", "to the router itself, to link-local and anycast addresses"),
    ("NOT_UNICAST", "to broadcast and multicast addresses, from a broadcast address of the router"),
    ("IP_OPTION", "with a router alert, a CIPSO or a permitted source route option"),
    ("REDIRECT", "back through the interface on which they arrived"),
    ("OVERSIZE_FRAGMENT", "fragments beyond 65,535 octets that would have to be fragmented"),
];
/// Why the XDP program may pass packets to the kernel that it forwards: source routes through the router,
/// and addresses of a directed broadcast.
const PASSED: [&str; 3] = ["pass_local", "pass_broadcast", "pass_link_local"];
const PACKETS: usize = 20_000;
const PACKETS_MAX: usize = 65_000;

fn packets() -> usize {
    let given = std::env::var("FERROUTE_ORACLE_PACKETS").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(PACKETS).min(PACKETS_MAX)
}

/// Fails with one difference of each kind, or if the packets were too similar.
fn expect_equal(outcome: &Outcome, seed: u64) -> Result<()> {
    let Outcome { sent, forwarded, answered, silent, differences } = outcome;
    println!(
        "seed {seed}: {sent} packets, {forwarded} forwarded, {answered} answered, {silent} dropped"
    );
    let mut kinds: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    for (note, text) in differences {
        kinds.entry(note).or_insert((text, 0)).1 += 1;
    }
    for (note, (text, times)) in kinds {
        println!("{times} differ ({note}), the first of them:\n{text}");
    }
    ensure!(differences.is_empty(), "{} of {sent} packets differ, seed {seed}", differences.len());
    for (count, name) in [(forwarded, "forwarded"), (answered, "answered"), (silent, "dropped")] {
        ensure!(count * 10 > *sent, "hardly any packet was {name}: the generator is one-sided");
    }
    Ok(())
}

/// Compares Ferroute with the kernel after the same change to both worlds.
fn ferroute_agrees(change: impl Fn(&World) -> Result<()>, packets: usize) -> Result<()> {
    ferroute_agrees_with(&[], change, packets).map(drop)
}

/// The same with further arguments of `ferroute run`. Returns the answer to `stat`.
fn ferroute_agrees_with(
    args: &[&str],
    change: impl Fn(&World) -> Result<()>,
    packets: usize,
) -> Result<Account> {
    let (kernel, world) = (World::build()?, World::build()?);
    change(&kernel)?;
    change(&world)?;
    let mut ferroute = Ferroute::start_with(&world.lab, args)?;
    let seed = rng::seed();
    println!("seed {seed}");
    let outcome = compare(&kernel, &world, &generate(seed, packets), BATCH_TIMEOUT)?;
    ensure!(ferroute.is_running(), "ferroute has ended\n{}", ferroute.said());
    let by_kernel = ferroute.forwarded_by_kernel()?;
    println!("left to the kernel: {by_kernel:?}");
    if !ferroute::by_kernel() {
        println!("{}{}", ferroute.ask(&["stat"])?, ferroute.ask(&["stat", "--port"])?);
    }
    expect_equal(&outcome, seed)?;
    if !ferroute::by_kernel() {
        check_handed_over(&ferroute, by_kernel.v4 + by_kernel.v6)?;
    }
    let stat = if ferroute::by_kernel() { Value::Null } else { ferroute.json(&["stat"])? };
    ferroute.terminate()?;
    Ok(Account::new(stat))
}

/// Checks that the kernel forwarded no packets but those that were handed over for a reason of
/// [`HANDED_OVER`], or that the XDP program passed for one of [`PASSED`].
fn check_handed_over(ferroute: &Ferroute, by_kernel: u64) -> Result<()> {
    check_handed_over_also(ferroute, by_kernel, &[])
}

/// The same; more reasons may be expected.
fn check_handed_over_also(ferroute: &Ferroute, by_kernel: u64, also: &[&str]) -> Result<()> {
    let account = Account::new(ferroute.json(&["stat"])?);
    let punts = account.stat()["punts"].as_object().context("stat has no punts")?;
    let mut sum = 0;
    for (reason, count) in punts {
        let count = count.as_u64().context("a count that is not a number")?;
        let mut expected = HANDED_OVER.iter().map(|(expected, _)| *expected);
        let is_expected = also.contains(&reason.as_str()) || expected.any(|it| it == reason);
        ensure!(count == 0 || is_expected, "{count} packets were handed over as {reason}");
        sum += count;
    }
    for ifname in ["rt-left", "rt-right"] {
        for reason in PASSED {
            sum += account.port(ifname, "xdp", reason)?;
        }
    }
    ensure!(by_kernel <= sum, "the kernel forwarded {by_kernel} packets, and was handed {sum}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn ferroute_does_what_the_kernel_does() -> Result<()> {
    ferroute_agrees(|_| Ok(()), packets())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn also_with_default_routes_and_a_strict_reverse_path_filter() -> Result<()> {
    let change = |world: &World| {
        let router = &world.lab.router;
        router.run("ip route add default via 198.18.2.2")?;
        router.run("ip route add default via 2001:db8:2::2")?;
        router.sysctl("net/ipv4/conf/all/rp_filter", "1")
    };
    ferroute_agrees(change, packets() / 3)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn also_with_a_loose_reverse_path_filter_and_source_routes_allowed() -> Result<()> {
    let change = |world: &World| {
        let router = &world.lab.router;
        router.sysctl("net/ipv4/conf/rt-left/rp_filter", "2")?;
        for port in ["all", "rt-left", "rt-right"] {
            router.sysctl(&format!("net/ipv4/conf/{port}/accept_source_route"), "1")?;
        }
        Ok(())
    };
    ferroute_agrees(change, packets() / 3)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn also_where_one_port_does_not_forward() -> Result<()> {
    let change = |world: &World| {
        world.lab.router.sysctl("net/ipv4/conf/rt-right/forwarding", "0")?;
        world.lab.router.sysctl("net/ipv6/conf/rt-right/forwarding", "0")
    };
    ferroute_agrees(change, packets() / 3)
}

/// There are few pairs of addresses, so that most packets are between others of a flow that is offloaded: odd ones are
/// treated as without offload.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn also_while_each_flow_is_offloaded_from_its_first_packet_on() -> Result<()> {
    let gro = |world: &World| {
        // Without, a veth takes no redirected frames.
        world.lab.left.run("ethtool -K left gro on")?;
        world.lab.right.run("ethtool -K right gro on").map(drop)
    };
    let args = ["--offload", "on", "--offload-threshold", "1"];
    let account = ferroute_agrees_with(&args, gro, packets() / 2)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    for name in ["offload_ipv4", "offload_ipv6"] {
        let ports = ["rt-left", "rt-right"].map(|ifname| account.port(ifname, "xdp", name));
        let offloaded = ports.into_iter().sum::<Result<u64>>()?;
        ensure!(offloaded > packets() as u64 / 20, "hardly any packet was offloaded: {offloaded}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn kernel_does_what_the_kernel_does() -> Result<()> {
    let (one, other) = (World::build()?, World::build()?);
    let seed = rng::seed();
    expect_equal(&compare(&one, &other, &generate(seed, packets()), BATCH_TIMEOUT)?, seed)
}

/// Compares the kernel with a kernel after a change; counts the differences.
fn differences_after(change: impl FnOnce(&World) -> Result<()>) -> Result<usize> {
    let (one, other) = (World::build()?, World::build()?);
    change(&other)?;
    let outcome = compare(&one, &other, &generate(1, 4096), Duration::from_millis(200))?;
    Ok(outcome.differences.len())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn another_ttl_of_errors_is_noticed() -> Result<()> {
    let change = |world: &World| world.lab.router.sysctl("net/ipv4/ip_default_ttl", "63");
    ensure!(differences_after(change)? > 10);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn one_octet_of_mtu_is_noticed() -> Result<()> {
    let change = |world: &World| world.lab.router.run("ip link set rt-right mtu 1399").map(drop);
    ensure!(differences_after(change)? > 10);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn another_kind_of_route_is_noticed() -> Result<()> {
    let change = |world: &World| {
        let route = "ip route replace prohibit 198.51.100.64/26";
        world.lab.router.run("ip route del unreachable 198.51.100.64/26")?;
        world.lab.router.run(route).map(drop)
    };
    ensure!(differences_after(change)? > 0);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn another_neighbour_is_noticed() -> Result<()> {
    let change = |world: &World| {
        let neighbour = "ip neigh replace 198.18.2.3 dev rt-right lladdr 02:00:00:00:00:09";
        world.lab.router.run(&format!("{neighbour} nud permanent")).map(drop)
    };
    ensure!(differences_after(change)? > 10);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn source_routes_that_are_followed_are_noticed() -> Result<()> {
    let change = |world: &World| {
        world.lab.router.sysctl("net/ipv4/conf/all/accept_source_route", "1")?;
        world.lab.router.sysctl("net/ipv4/conf/rt-left/accept_source_route", "1")
    };
    ensure!(differences_after(change)? > 0);
    Ok(())
}
