//! `-i 'rt-*'`: matching interfaces become ports when they appear, without affecting anything else.

use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::ping::{ping_all, ping_each};
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};
use serde_json::Value;

/// Packets per second. A worker that opens or closes a socket waits for the kernel's RTNL lock, which other
/// tests also take; a ring has room for the packets of ten seconds.
const PPS: u64 = 200;
/// Enough for interfaces to be added and removed meanwhile.
const PACKETS: u64 = 4000;

/// A link from the router's `port` to the right host, with subnet 198.18.`n`.0/24.
fn wire(lab: &Lab, n: u8, port: &str) -> Result<()> {
    let router = lab.router.name();
    lab.right.run(&format!("ip link add h{n} type veth peer name {port} netns {router}"))?;
    lab.right.run(&format!("ip addr add 198.18.{n}.2/24 dev h{n}"))?;
    lab.right.run(&format!("ip link set h{n} up"))?;
    lab.router.run(&format!("ip addr add 198.18.{n}.1/24 dev {port}"))?;
    lab.router.run(&format!("ip link set {port} up"))?;
    // Packets also arrive on this port.
    lab.right.run(&format!("ip route replace 198.18.1.0/24 via 198.18.{n}.1"))?;
    Ok(())
}

/// Output of `status`, whether it forwards or not.
fn status(ferroute: &Ferroute) -> Result<Value> {
    let output = ferroute.command(&["-j", "status"]).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

fn ports(ferroute: &Ferroute) -> Result<Vec<(String, String)>> {
    let status = status(ferroute)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ports = status["ports"].as_array().context("no ports")?;
    Ok(ports.iter().map(|port| (text(&port["ifname"]), text(&port["state"]))).collect())
}

fn is_port(ferroute: &Ferroute, ifname: &str) -> bool {
    let is = |(name, state): &(String, String)| name == ifname && state == "forwarding";
    ports(ferroute).is_ok_and(|ports| ports.iter().any(is))
}

fn becomes_port(ferroute: &Ferroute, ifname: &str) -> Result<()> {
    let is = eventually(|| is_port(ferroute, ifname));
    ensure!(is, "{ifname} is not a port: {:#}\n{}", status(ferroute)?, ferroute.said());
    Ok(())
}

fn warns(ferroute: &Ferroute, words: &[&str]) -> bool {
    let status = status(ferroute).unwrap_or_default();
    let mut warnings = status["warnings"].as_array().into_iter().flatten();
    warnings.any(|warning| {
        let text = warning.as_str().unwrap_or_default();
        words.iter().all(|word| text.contains(word))
    })
}

/// A counter of the port; `None`: there is no such port.
fn counted(ferroute: &Ferroute, ifname: &str, counter: &str) -> Option<u64> {
    let ports = ferroute.json(&["stat", "--port", ifname]).ok()?;
    ports[0]["counters"][counter].as_u64()
}

/// Fails unless `count` packets pass in both directions through this port, all in userspace.
fn passes(lab: &Lab, ferroute: &Ferroute, n: u8, port: &str, count: u32) -> Result<()> {
    let kernel = ferroute.forwarded_by_kernel()?;
    let counters = || {
        let of = |counter| counted(ferroute, port, counter);
        of("rx_packets").zip(of("tx_packets")).with_context(|| format!("{port} is not a port"))
    };
    let before = counters()?;
    ping_each(&lab.left, &format!("198.18.{n}.2"), count)?;
    let after = counters()?;
    ensure!(ferroute.forwarded_by_kernel()? == kernel, "by the kernel: {kernel:?}");
    let passed = (after.0 - before.0, after.1 - before.1);
    let count = u64::from(count);
    ensure!(passed == (count, count), "{port}: {before:?} {after:?}\n{}", ferroute.account());
    Ok(())
}

fn verb(namespace: &Netns, line: &str) -> Command {
    let mut command = namespace.command(ferroute::binary());
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Packets from the left to the right host for some seconds.
struct Load {
    sent: Child,
    received: Child,
}

impl Load {
    fn start(lab: &Lab) -> Result<Load> {
        ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
        let line = format!("sink -i right -j -n {PACKETS} --duration 120 --rate {PPS}");
        let received = verb(&lab.right, &line).spawn()?;
        let is_on = || lab.right.run("ip link show right").is_ok_and(|text| text.contains("xdp"));
        ensure!(eventually(is_on), "the sink attaches no program");
        let line = format!("pktgen -j -i left --dst {RIGHT4} -n {PACKETS} --ratep {PPS}");
        Ok(Load { sent: verb(&lab.left, &line).spawn()?, received })
    }

    fn is_under_way(&mut self) -> Result<bool> {
        Ok(self.sent.try_wait()?.is_none())
    }

    /// Fails unless every packet has arrived exactly once.
    fn all_arrive(self) -> Result<()> {
        let json = |output: &Output| -> Result<Value> {
            let said = String::from_utf8_lossy(&output.stderr);
            serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON\n{said}"))
        };
        let sent = json(&self.sent.wait_with_output()?)?;
        let received = json(&self.received.wait_with_output()?)?;
        let all = format!("{sent}\n{received}");
        ensure!(sent["packets"] == PACKETS && sent["port_dropped"] == 0, "{all}");
        ensure!(received["received"] == PACKETS && received["lost"] == 0, "{all}");
        ensure!(received["duplicated"] == 0 && received["late"] == 0, "{all}");
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn ports_come_and_go_while_others_forward_and_lose_nothing() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start_in(&lab.router, &["-i", "rt-*"])?;
    let mut load = Load::start(&lab)?;
    for port in ["rt-three", "rt-other"] {
        wire(&lab, 3, port)?;
        becomes_port(&ferroute, port)?;
        passes(&lab, &ferroute, 3, port, 5)?;
        lab.router.run(&format!("ip link del {port}"))?;
        let gone = eventually(|| ports(&ferroute).is_ok_and(|ports| ports.len() == 2));
        ensure!(gone, "{port} stays: {:#}", status(&ferroute)?);
    }
    ensure!(load.is_under_way()?, "the load ended too early for this test");
    load.all_arrive()?;
    ferroute.forwarded_all_itself()?;
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_takes_the_number_of_another_but_not_its_counters() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let options = ["-i", "rt-right", "-i", "rt-*", "--max-ports", "3", "--latency-sample", "1"];
    let mut ferroute = Ferroute::start_in(&lab.router, &options)?;
    wire(&lab, 3, "rt-three")?;
    becomes_port(&ferroute, "rt-three")?;
    passes(&lab, &ferroute, 3, "rt-three", 5)?;
    let measured = |name: &str| -> Result<bool> {
        let latency = ferroute.json(&["latency"])?;
        let pairs = latency["pairs"].as_array().context("no pairs")?;
        Ok(pairs.iter().any(|pair| pair["iif"] == name || pair["oif"] == name))
    };
    ensure!(measured("rt-three")?, "{}", ferroute.json(&["latency"])?);

    // It returns, and its counters continue.
    lab.router.run("ip link del rt-three")?;
    ensure!(eventually(|| !is_port(&ferroute, "rt-three")));
    wire(&lab, 3, "rt-three")?;
    becomes_port(&ferroute, "rt-three")?;
    ensure!(counted(&ferroute, "rt-three", "tx_packets") == Some(5), "{}", ferroute.account());

    // An interface for which there is no room stays with the kernel.
    wire(&lab, 4, "rt-four")?;
    let told = || warns(&ferroute, &["rt-four", "no room", "--max-ports"]);
    ensure!(eventually(told), "{:#}", status(&ferroute)?);
    let before = ferroute.forwarded_by_kernel()?;
    ping_each(&lab.left, "198.18.4.2", 5)?;
    ensure!(ferroute.forwarded_by_kernel()?.v4 >= before.v4 + 5, "the kernel does not forward");

    lab.router.run("ip link del rt-three")?;
    becomes_port(&ferroute, "rt-four")?;
    ensure!(!told(), "{:#}", status(&ferroute)?);
    for counter in ["rx_packets", "tx_packets", "punted"] {
        ensure!(counted(&ferroute, "rt-four", counter) == Some(0), "{}", ferroute.account());
    }
    ensure!(!measured("rt-three")? && !measured("rt-four")?, "{}", ferroute.json(&["latency"])?);
    passes(&lab, &ferroute, 4, "rt-four", 5)?;
    ensure!(measured("rt-four")?, "{}", ferroute.json(&["latency"])?);
    ferroute.terminate()?;
    // The totals include what was counted for the port that is gone.
    let said = ferroute.said();
    let sent: u64 = (said.split("stopped; received ").nth(1))
        .and_then(|rest| rest.split(", sent ").nth(1)?.split(',').next()?.parse().ok())
        .with_context(|| said.clone())?;
    ensure!(sent >= 20, "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_name_that_matches_later_and_interfaces_with_a_master() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    // A member of a bridge never becomes a port.
    lab.router.run("ip link add br0 type bridge")?;
    lab.router.run("ip link add rt-member type veth peer name m0")?;
    lab.router.run("ip link set rt-member master br0 up")?;
    lab.router.run("ip link set m0 up")?;
    let mut ferroute = Ferroute::start_in(&lab.router, &["-i", "rt-*"])?;
    wire(&lab, 3, "three")?;
    lab.router.run("ip link set three down")?;
    lab.router.run("ip link set three name rt-three")?;
    lab.router.run("ip link set rt-three up")?;
    becomes_port(&ferroute, "rt-three")?;
    passes(&lab, &ferroute, 3, "rt-three", 5)?;
    let names = |ferroute: &Ferroute| -> Result<Vec<String>> {
        Ok(ports(ferroute)?.into_iter().map(|(name, _)| name).collect())
    };
    ensure!(names(&ferroute)? == ["rt-left", "rt-right", "rt-three"], "{:?}", names(&ferroute)?);
    // One that becomes a member is given back, and one that no longer is a member becomes a port.
    lab.router.run("ip link set rt-three master br0")?;
    let gone = || lab.router.run("ip link show rt-three").is_ok_and(|text| !text.contains("xdp"));
    ensure!(eventually(|| gone() && !is_port(&ferroute, "rt-three")), "{:#}", status(&ferroute)?);
    lab.router.run("ip link set rt-member nomaster")?;
    becomes_port(&ferroute, "rt-member")?;
    // Renamed so that it no longer matches.
    lab.router.run("ip link set rt-member down")?;
    lab.router.run("ip link set rt-member name other")?;
    ensure!(eventually(|| names(&ferroute).is_ok_and(|names| names == ["rt-left", "rt-right"])));
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_pattern_without_matches_waits_and_unfit_interfaces_are_left_alone() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::launch(&lab.router, &["-i", "zz*"])?;
    ensure!(eventually(|| warns(&ferroute, &["no interface", "zz*"])), "{}", ferroute.said());
    ensure!(status(&ferroute)?["state"] == "starting");
    wire(&lab, 3, "zz3")?;
    ferroute.wait_until_forwarding()?;
    wire(&lab, 4, "zz4")?;
    becomes_port(&ferroute, "zz4")?;
    // A rule on one of them keeps no other from being a port, whether it was added before or later.
    let filter = |port: &str| {
        lab.router.run(&format!("tc qdisc add dev {port} clsact"))?;
        lab.router.run(&format!("tc filter add dev {port} ingress u32 match u32 0 0 classid 1:1"))
    };
    let lift = |port: &str| lab.router.run(&format!("tc qdisc del dev {port} clsact"));
    filter("zz4")?;
    let is_filtered = |port: &str| warns(&ferroute, &[port, "rules on it", "tc filter"]);
    ensure!(eventually(|| is_filtered("zz4")), "{:#}", status(&ferroute)?);
    ensure!(is_port(&ferroute, "zz3") && !is_port(&ferroute, "zz4"), "{:#}", status(&ferroute)?);
    ensure!(status(&ferroute)?["state"] == "forwarding");
    lift("zz4")?;
    becomes_port(&ferroute, "zz4")?;
    // One that has a rule before it could become a port is never a port.
    lab.router.run("ip link add zz6 type veth peer name y6")?;
    lab.router.run("ip link set y6 up")?;
    filter("zz6")?;
    lab.router.run("ip link set zz6 up")?;
    ensure!(eventually(|| is_filtered("zz6")), "{:#}", status(&ferroute)?);
    ensure!(!ferroute.said().contains("zz6 is a port"), "{}", ferroute.said());
    lift("zz6")?;
    becomes_port(&ferroute, "zz6")?;
    // An MTU longer than a port's maximum: left to the kernel, and this is reported.
    lab.router.run("ip link add zz5 type veth peer name y5")?;
    lab.router.run("ip link set y5 up")?;
    lab.router.run("ip link set zz5 mtu 9500 up")?;
    ensure!(eventually(|| warns(&ferroute, &["zz5", "MTU 9500"])), "{:#}", status(&ferroute)?);
    lab.router.run("ip link set zz5 mtu 1500")?;
    becomes_port(&ferroute, "zz5")?;
    ferroute.terminate()
}
