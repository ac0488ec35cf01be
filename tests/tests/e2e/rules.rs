//! The nftables ruleset in userspace: how soon a change takes effect, and that userspace keeps forwarding.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, ferroute};

use crate::filters::{FOLLOW_TIME_MAX, forwards_itself, last_arrival};

/// Sets and removes `change` under load, and measures how long packets to the right still pass.
fn takes_effect(change: &[&str], undo: &[&str]) -> Result<()> {
    let lab = Lab::up()?;
    let router = &lab.router;
    router.run("nft add table inet t")?;
    router.run("nft add set inet t bad { type ipv4_addr ; flags interval ; }")?;
    router.run("nft add chain inet t f { type filter hook forward priority 0 ; }")?;
    router.run("nft add rule inet t f ip daddr @bad counter drop")?;
    router.run("nft add rule inet t f udp dport 1-65535 counter accept")?;
    let running = Ferroute::start(&lab)?;
    let dropped = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    let other = Stream::start(&lab.left, &lab.right, RIGHT6, Duration::from_millis(1))?;
    ensure!(dropped.flows(50) && other.flows(50), "nothing arrives at the start");
    running.forwarded_all_itself()?;
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        for line in change {
            router.run(line)?;
        }
        let set = Instant::now();
        longest = longest.max(last_arrival(&dropped)?.saturating_duration_since(set));
        ensure!(forwards_itself(&running, &other), "the kernel forwards: {}", running.account());
        for line in undo {
            router.run(line)?;
        }
        ensure!(dropped.flows(50), "nothing arrives after {undo:?}");
        ensure!(forwards_itself(&running, &dropped), "the kernel forwards: {}", running.account());
    }
    eprintln!("{change:?}: the last packet arrived at most {longest:?} after it was set");
    ensure!(longest < FOLLOW_TIME_MAX, "{change:?} takes effect after {longest:?}");
    if !ferroute::by_kernel() {
        let shown = running.ask(&["rules", "show"])?;
        ensure!(shown.contains("@bad"), "rules show:\n{shown}");
        ensure!(running.command(&["status"]).output()?.status.success(), "status is not well");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_rule_set_under_load_takes_effect() -> Result<()> {
    takes_effect(
        &["nft insert rule inet t f ip daddr 198.18.2.2 drop"],
        &[
            "nft flush chain inet t f",
            "nft add rule inet t f ip daddr @bad counter drop",
            "nft add rule inet t f udp dport 1-65535 counter accept",
        ],
    )
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_element_added_under_load_takes_effect() -> Result<()> {
    takes_effect(
        &["nft add element inet t bad { 198.18.2.0/24 }"],
        &["nft delete element inet t bad { 198.18.2.0/24 }"],
    )
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_policy_set_under_load_takes_effect() -> Result<()> {
    takes_effect(
        &[
            "nft add table ip t2",
            "nft add chain ip t2 f { type filter hook prerouting priority -300 ; policy drop ; }",
        ],
        &["nft delete table ip t2"],
    )
}

/// An element with a time-out lets packets pass until it expires, without a notification at that moment.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_element_expires_without_a_notification() -> Result<()> {
    let lab = Lab::up()?;
    let router = &lab.router;
    router.run("nft add table ip t")?;
    router.run("nft add set ip t ok { type ipv4_addr ; flags timeout ; }")?;
    router.run("nft add chain ip t f { type filter hook forward priority 0 ; policy drop ; }")?;
    router.run("nft add rule ip t f ip saddr @ok accept")?;
    let _running = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    let set = Instant::now();
    router.run("nft add element ip t ok { 198.18.1.2 timeout 3s }")?;
    ensure!(stream.flows(50), "nothing arrives while the element is there");
    let passed = last_arrival(&stream).context("the element does not expire")?;
    let passed = passed.saturating_duration_since(set);
    eprintln!("packets passed for {passed:?}");
    let allowed = Duration::from_millis(2500)..Duration::from_millis(3500);
    ensure!(allowed.contains(&passed), "packets passed for {passed:?}");
    Ok(())
}

/// Packets of one ruleset: the workers' counts and the kernel's are one count, also after the ruleset
/// changed.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_show_counts_what_passed() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let router = &lab.router;
    router.run("nft add table inet t")?;
    router.run("nft add chain inet t f { type filter hook forward priority 0 ; }")?;
    router.run("nft add rule inet t f udp dport 1-65535 counter accept")?;
    let running = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    ensure!(stream.flows(100));
    router.run("nft add rule inet t f tcp dport 22 counter accept")?;
    ensure!(stream.flows(100));
    ensure!(forwards_itself(&running, &stream), "the kernel forwards: {}", running.account());
    let sent = stream.stop().sent as u64;
    let rules = running.json(&["rules", "show"])?;
    let counter = &rules[0]["chains"][0]["rules"][0]["counters"][0];
    let count = |name: &str| counter[name].as_u64().with_context(|| format!("no {name}: {rules}"));
    let workers = count("packets")? - count("kernel_packets")?;
    let kernel: serde_json::Value = serde_json::from_str(&router.run("nft -j list ruleset")?)?;
    let now = kernel["nftables"].as_array().into_iter().flatten().find_map(|object| {
        object["rule"]["expr"]
            .as_array()?
            .iter()
            .find_map(|expr| expr["counter"]["packets"].as_u64())
    });
    let sum = workers + now.context("no counter")?;
    ensure!(sum == sent, "{sum} counted of {sent} sent");
    Ok(())
}
