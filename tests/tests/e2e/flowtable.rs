//! A flowtable on the ports (OpenWrt's flow offload): the kernel forwards the connections that rules add to it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};

use super::tools::{carries, fw4};

/// The rule and the flowtable that firewall4 renders with `option flow_offloading 1`.
const FLOWTABLE: &str = "
    flowtable ft {
        hook ingress priority filter;
        devices = { rt-left, rt-right };
        counter;
    }

    chain forward {
        type filter hook forward priority filter; policy drop;
        meta l4proto { tcp, udp } flow add @ft;
";

/// OpenWrt's ruleset, which replaces that of before.
fn ruleset(has_flowtable: bool) -> Result<String> {
    let forward = "
    chain forward {
        type filter hook forward priority filter; policy drop;
";
    let text = fw4()?;
    ensure!(text.contains(forward), "the ruleset has no such chain");
    let text = if has_flowtable { text.replace(forward, FLOWTABLE) } else { text };
    Ok(format!("table inet fw4 {{}}\ndelete table inet fw4\n{text}"))
}

/// How many of the kernel's connections are in a flowtable.
fn offloaded(lab: &Lab) -> usize {
    let listed = |family: &str| lab.router.run(&format!("conntrack -L -f {family}"));
    let count = |text: String| text.lines().filter(|line| line.contains("[OFFLOAD]")).count();
    ["ipv4", "ipv6"].into_iter().filter_map(|family| listed(family).ok()).map(count).sum()
}

/// Connections of TCP and of UDP to a port of the right host.
fn begin(lab: &Lab, port: u16) -> Result<Vec<Conversation>> {
    let mut talks = Vec::new();
    for (to, is_tcp) in [(RIGHT4, true), (RIGHT6, true), (RIGHT4, false), (RIGHT6, false)] {
        let to = SocketAddr::new(to.parse()?, port);
        talks.push(Conversation::between(&lab.left, to, &lab.right, to, is_tcp)?);
    }
    Ok(talks)
}

fn all_go_on(talks: &[Conversation]) -> bool {
    talks.iter().all(Conversation::goes_on)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn connections_of_a_flowtable_stay_with_the_kernel_until_it_is_deleted() -> Result<()> {
    let lab = Lab::up()?;
    if let Err(error) = nft(&lab.router, &ruleset(true)?) {
        eprintln!("skipped: the kernel has no flowtables (nft_flow_offload): {error:#}");
        return Ok(());
    }
    let mut running = Ferroute::start(&lab)?;
    let mut talks = begin(&lab, 5001)?;
    for round in 0..2 {
        ensure!(all_go_on(&talks), "{round}: a connection died");
        let are_offloaded = eventually(|| offloaded(&lab) == talks.len());
        ensure!(are_offloaded, "{round}: {} are offloaded", offloaded(&lab));
        if ferroute::by_kernel() {
            break;
        }
        ensure!(eventually(|| carries(&running, 0)), "{round}: {}", running.account());
        let status = running.json(&["status"])?["warnings"].to_string();
        ensure!(status.contains("flowtable inet fw4 ft"), "{round}: {status}");
        let doctor = running.command(&["doctor", "-i", "rt-left", "-i", "rt-right"]).output()?;
        let doctor = String::from_utf8_lossy(&doctor.stdout);
        ensure!(doctor.contains("flow_offloading=0"), "{round}: {doctor}");
        running.kill()?;
        ensure!(all_go_on(&talks), "{round}: a connection died with Ferroute");
        running = Ferroute::start(&lab)?;
    }
    nft(&lab.router, &ruleset(false)?)?;
    ensure!(eventually(|| offloaded(&lab) == 0), "{} are offloaded", offloaded(&lab));
    // Linux 6.18 ends those of TCP then, also without Ferroute.
    let mut lasting = talks.split_off(2);
    ensure!(lasting.iter().all(|it| it.goes_on()), "a connection died with the flowtable");
    lasting.extend(begin(&lab, 5002)?);
    let all: Vec<&Conversation> = lasting.iter().collect();
    if !ferroute::by_kernel() {
        ensure!(eventually(|| carries(&running, all.len())), "{}", running.account());
    }
    ensure!(are_carried(&running, &all), "the kernel forwards: {}", running.account());
    // What workers carry becomes the kernel's.
    nft(&lab.router, &ruleset(true)?)?;
    ensure!(eventually(|| offloaded(&lab) == all.len()), "{} are offloaded", offloaded(&lab));
    ensure!(ferroute::by_kernel() || eventually(|| carries(&running, 0)), "{}", running.account());
    ensure!(all_go_on(&lasting), "a connection died");
    running.kill()?;
    ensure!(all_go_on(&lasting), "a connection died with Ferroute");
    Ok(())
}

/// The flowtable is there, and no rule adds to it.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_unused_flowtable_is_no_filter() -> Result<()> {
    let lab = Lab::up()?;
    let table = "table inet t {
        flowtable ft { hook ingress priority filter; devices = { rt-left, rt-right }; }
        chain f { type filter hook forward priority filter; ct state established accept; }
    }";
    if let Err(error) = nft(&lab.router, table) {
        eprintln!("skipped: the kernel has no flowtables (nft_flow_offload): {error:#}");
        return Ok(());
    }
    let running = Ferroute::start(&lab)?;
    let talks = begin(&lab, 5001)?;
    let all: Vec<&Conversation> = talks.iter().collect();
    ensure!(are_carried(&running, &all), "the kernel forwards: {}", running.account());
    Ok(())
}
