//! nftables chains at the ingress and egress of interfaces. Whether single rules are evaluated as the kernel does is
//! left out; the oracle compares that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::{RIGHT4, RT_RIGHT4};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, ferroute, lab};
use serde_json::Value;

use super::filters::{FOLLOW_TIME_MAX, forwards_itself, last_arrival};

/// What a command adds applies from then on, and no longer when the table is deleted.
fn follows(add: &str) -> Result<()> {
    let lab = Lab::up()?;
    let running = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
    ensure!(stream.flows(50), "nothing arrives at the start");
    lab.router.run(add)?;
    let added = Instant::now();
    let last = last_arrival(&stream)?.saturating_duration_since(added);
    eprintln!("{add}: the last packet arrived {last:?} later");
    ensure!(last < FOLLOW_TIME_MAX, "{add} takes effect after {last:?}");
    lab.router.run("nft delete table netdev t")?;
    ensure!(stream.flows(50), "nothing arrives without the table");
    ensure!(forwards_itself(&running, &stream), "the kernel forwards: {}", running.account());
    stream.stop();
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_chain_of_an_interface_applies_at_once() -> Result<()> {
    for (hook, port) in [("ingress", "rt-left"), ("egress", "rt-right")] {
        follows(&format!(
            "nft add table netdev t ; add chain netdev t c {{ type filter hook {hook} device {port} \
             priority 0 ; policy drop ; }}"
        ))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_chain_of_a_wildcard_applies_to_the_ports_that_match() -> Result<()> {
    let tool = lab::repository().join("tests/tools/nft-wildcard");
    for hook in ["ingress", "egress"] {
        let add = format!("{} {hook} rt-", tool.display());
        if Lab::up()?.router.run(&add)?.contains("no such hook") {
            eprintln!("skipped: this kernel has no wildcards of devices");
            return Ok(());
        }
        follows(&add)?;
    }
    Ok(())
}

/// Packets of the counter of the only rule with one.
fn counted(lab: &Lab) -> Result<u64> {
    let listed: Value = serde_json::from_str(&lab.router.run("nft -j list ruleset")?)?;
    let objects = listed["nftables"].as_array().context("no ruleset")?;
    let exprs = objects.iter().filter_map(|it| it["rule"]["expr"].as_array()).flatten();
    exprs.filter_map(|expr| expr["counter"]["packets"].as_u64()).next().context("no counter")
}

/// A packet that workers leave to the kernel meets the chain of its port there, once.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_kernel_runs_a_chain_once_on_a_packet_that_is_left_to_it() -> Result<()> {
    let rules = |rule: &str| {
        format!(
            "flush ruleset\ntable netdev t {{ chain c {{ type filter hook ingress device rt-left \
             priority 0; {rule}; }}; }}"
        )
    };
    let lab = Lab::up()?;
    nft(&lab.router, &rules("icmp type echo-request counter limit rate 1000000/second"))?;
    let running = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 20 -i 0.02 -W 5 {RIGHT4}"))?;
    ensure!(counted(&lab)? == 20, "the kernel counted {}", counted(&lab)?);
    if !ferroute::by_kernel() {
        let forwarded = running.forwarded_by_kernel()?;
        ensure!(forwarded.v4 == 20, "the kernel forwarded {forwarded:?}");
    }
    // What the workers evaluate is not left to it.
    nft(&lab.router, &rules("icmp type echo-request counter"))?;
    std::thread::sleep(FOLLOW_TIME_MAX);
    let before = running.forwarded_by_kernel()?;
    ping_all(&lab.left, &format!("-c 20 -i 0.02 -W 5 {RIGHT4}"))?;
    let by_kernel = if ferroute::by_kernel() { 20 } else { 0 };
    ensure!(counted(&lab)? == by_kernel, "the kernel counted {}", counted(&lab)?);
    ensure!(ferroute::by_kernel() || running.forwarded_by_kernel()? == before, "not by workers");
    nft(&lab.router, &rules("icmp type echo-request counter drop"))?;
    std::thread::sleep(FOLLOW_TIME_MAX);
    let lost = ping(&lab.left, &format!("-c 5 -i 0.02 -W 1 {RIGHT4}"))?;
    ensure!(lost.received == 0, "{}", lost.text);
    Ok(())
}

/// Also on packets of a connection that pass the other hooks as was decided for it.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_chain_at_ingress_sees_each_packet_of_a_carried_connection() -> Result<()> {
    let rules = |verdict: &str| {
        format!(
            "flush ruleset
            table netdev t {{
                chain c {{
                    type filter hook ingress device rt-left priority 0;
                    tcp dport 5001 counter {verdict}
                }}
            }}
            table inet t {{
                chain f {{
                    type filter hook forward priority 0; policy drop;
                    ct state established,new counter accept
                }}
            }}"
        )
    };
    let lab = Lab::up()?;
    nft(&lab.router, &rules(""))?;
    let running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, true)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    // What the workers have counted at ingress, and at the other hook, which also sees answers.
    let counts = || -> Result<(u64, u64)> {
        let shown = running.json(&["rules", "show"])?;
        let of = |table: usize| {
            let counter = &shown[table]["chains"][0]["rules"][0]["counters"][0];
            let count = |name: &str| counter[name].as_u64().unwrap_or(0);
            count("packets") - count("kernel_packets")
        };
        Ok((of(0), of(1)))
    };
    if !ferroute::by_kernel() {
        let before = counts()?;
        ensure!(talk.goes_on(), "the connection died");
        let now = counts()?;
        let (ingress, forward) = (now.0 - before.0, now.1 - before.1);
        // Each message and each answer is one packet, besides acknowledgements.
        ensure!(ingress >= 50 && forward >= 100, "counted {ingress} and {forward} packets");
        ensure!(forward.abs_diff(2 * ingress) < 30, "counted {ingress} and {forward} packets");
    }
    nft(&lab.router, &rules("drop"))?;
    let added = Instant::now();
    let last = talk.end()?.saturating_duration_since(added);
    ensure!(last < FOLLOW_TIME_MAX, "the connection goes on for {last:?}");
    Ok(())
}

/// The port sees the tag of a packet, and then its VLAN sees the packet.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_and_its_vlan_have_chains_of_their_own() -> Result<()> {
    let lab = Lab::up()?;
    for (host, link) in [(&lab.left, "left"), (&lab.router, "rt-left")] {
        // The tag is in the frame, as on a wire.
        let _ = host.run(&format!("ethtool -K {link} rxvlan off txvlan off"));
        if let Err(error) = host.run(&format!("ip link add link {link} name v10 type vlan id 10")) {
            eprintln!("skipped: this kernel has no VLANs: {error:#}");
            return Ok(());
        }
    }
    lab.left.run("ip addr add 198.18.10.2/24 dev v10")?;
    lab.router.run("ip addr add 198.18.10.1/24 dev v10")?;
    lab.left.run("ip link set v10 up")?;
    lab.router.run("ip link set v10 up")?;
    lab.right.run(&format!("ip route add 198.18.10.0/24 via {RT_RIGHT4}"))?;
    lab.left.run(&format!("ip route add {RIGHT4}/32 via 198.18.10.1 dev v10"))?;
    let rules = |of_vlan: &str| {
        format!(
            "flush ruleset
            table netdev t {{
                chain at_port {{
                    type filter hook ingress device rt-left priority 0;
                    vlan id 10 icmp type echo-request counter
                }}
                chain at_vlan {{
                    type filter hook ingress device v10 priority 0;
                    {of_vlan}
                }}
            }}"
        )
    };
    nft(&lab.router, &rules("icmp type echo-request counter"))?;
    let running = Ferroute::start(&lab)?;
    ping(&lab.left, &format!("-c 1 -W 5 {RIGHT4}"))?;
    let before = running.forwarded_by_kernel()?;
    ping_all(&lab.left, &format!("-c 10 -i 0.02 -W 5 {RIGHT4}"))?;
    if !ferroute::by_kernel() {
        ensure!(running.forwarded_by_kernel()? == before, "not by workers: {}", running.account());
        let shown = running.json(&["rules", "show"])?;
        for n in 0..2 {
            let rule = &shown[0]["chains"][n]["rules"][0];
            let packets = rule["counters"][0]["packets"].as_u64().unwrap_or(0);
            ensure!(packets >= 10, "{n}: {shown:#}");
        }
    }
    nft(&lab.router, &rules("icmp type echo-request drop"))?;
    std::thread::sleep(FOLLOW_TIME_MAX);
    let lost = ping(&lab.left, &format!("-c 5 -i 0.02 -W 1 {RIGHT4}"))?;
    ensure!(lost.received == 0, "{}", lost.text);
    ensure!(ferroute::by_kernel() || running.forwarded_by_kernel()? == before, "not by workers");
    Ok(())
}

/// `run` accepts them, `doctor` names the chain at egress, and `rules show` lists what workers evaluate.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn chains_of_ports_are_reported() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(
        &lab.router,
        "table netdev t {
            chain in { type filter hook ingress devices = { rt-left, rt-right } priority 0; ip ttl 1 counter drop; }
            chain out { type filter hook egress device rt-right priority 0; ip ttl 1 counter drop; }
        }",
    )?;
    let running = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    let punts = running.json(&["stat"])?["punts"]["NETFILTER_EGRESS"].as_u64();
    ensure!(punts.is_some_and(|punts| punts >= 2), "{}", running.account());
    let rules = running.json(&["rules", "show"])?;
    let evaluated = |n: usize| rules[0]["chains"][n]["rules"][0]["evaluated_by"].clone();
    ensure!(evaluated(0) == "userspace" && evaluated(1) == "kernel", "{rules:#}");
    let doctor = running.command(&["doctor", "-i", "rt-left", "-i", "rt-right"]).output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    let said = "chain netdev t out (type filter, hook egress on rt-right, priority 0)";
    ensure!(doctor.contains(said) && !doctor.contains("chain netdev t in"), "{doctor}");
    Ok(())
}
