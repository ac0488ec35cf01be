//! `ferroute flows`: which flows are offloaded, why others are not, and their rates.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, PORT, nft};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6, RT_RIGHT4};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use serde_json::Value;

const OFFLOAD: [&str; 4] = ["--offload", "on", "--offload-threshold", "8"];
/// Only what is established, and to one port; the source is translated.
const STATEFUL: &str = "table inet fw { chain forward { type filter hook forward priority 0; policy drop; \
                        ct state established counter accept; meta l4proto { tcp, udp } th dport 5001 accept; }; \
                        chain post { type nat hook postrouting priority srcnat; \
                        oifname rt-right masquerade; }; }";

/// A lab in which the hosts' ends have GRO, without which a veth takes no redirected frames.
fn lab() -> Result<Lab> {
    let lab = Lab::up()?;
    for (host, port) in [(&lab.left, "left"), (&lab.right, "right")] {
        host.run(&format!("ethtool -K {port} gro on"))?;
    }
    Ok(lab)
}

/// A TCP connection on which nothing is sent.
fn idle_connection(lab: &Lab) -> Result<(TcpStream, TcpStream)> {
    let to = SocketAddr::new(RIGHT4.parse()?, PORT);
    let listener = lab.right.enter(|| Ok(TcpListener::bind(to)?))?;
    let client = lab.left.enter(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(5))?))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

fn rows(running: &Ferroute, verb: &[&str], filter: &[&str]) -> Result<Vec<Value>> {
    let args = [&["flows"], verb, filter].concat();
    running.json(&args)?.as_array().cloned().with_context(|| format!("{args:?}: no array"))
}

/// Rows with what entries depend on, and why there is none.
fn details(running: &Ferroute, filter: &[&str]) -> Result<Vec<Value>> {
    rows(running, &["show", "--details"], filter)
}

/// Whether each filter selects as many flows, and `count` agrees.
fn are_selected(running: &Ferroute, expected: &[(&str, usize)]) -> Result<()> {
    for (line, count) in expected {
        let filter: Vec<&str> = line.split_whitespace().collect();
        let listed = rows(running, &["show"], &filter)?;
        ensure!(listed.len() == *count, "{line}: {listed:#?}");
        let args = [&["flows", "count"], &filter[..]].concat();
        let counted = running.json(&args)?;
        ensure!(counted["flows"] == *count, "{line}: {counted}");
    }
    Ok(())
}

/// The rates of the only flow that has packets, compared with what was sent.
fn has_rate(
    running: &Ferroute,
    talk: Conversation,
    begun: Instant,
    filter: &[&str],
) -> Result<Value> {
    let args = [&["flows", "top", "--batch", "1", "-i", "2"], filter].concat();
    let top = running.json(&args)?;
    let mean = talk.stop() as f64 / begun.elapsed().as_secs_f64();
    let flows = top["flows"].as_array().context("no flows")?;
    let flow = flows.first().with_context(|| format!("nothing has a rate: {top}"))?;
    let direction = if flow["original"].is_null() { flow } else { &flow["original"] };
    let rate = direction["packets_per_s"].as_f64().context("no rate")?;
    ensure!((mean / 2.0..2.0 * mean).contains(&rate), "{rate}, {mean} were sent: {top}");
    ensure!(direction["offloaded"] == true, "{top}");
    Ok(top)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn connections_are_marked_selected_and_measured() -> Result<()> {
    let lab = lab()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let _idle = idle_connection(&lab)?;
    let (begun, busy) = (Instant::now(), Conversation::start(&lab, RIGHT4, false)?);
    let mut last = Vec::new();
    let is_marked = || {
        last = details(&running, &[]).unwrap_or_default();
        let of = |protocol: &str| last.iter().find(|row| row["protocol"] == protocol);
        let (Some(udp), Some(tcp)) = (of("udp"), of("tcp")) else { return false };
        let why = |at: &str| tcp[at]["not_offloaded"]["reason"] == "below_threshold";
        let is_offloaded = |at: &str| udp[at]["offloaded"] == true;
        ["original", "reply"].iter().all(|at| is_offloaded(at) && why(at))
    };
    ensure!(eventually(is_marked), "{last:#?}\n{}", running.account());
    let udp = last.iter().find(|row| row["protocol"] == "udp").context("UDP")?;
    let original = &udp["original"];
    ensure!(original["iif"] == "rt-left" && original["oif"] == "rt-right", "{udp:#}");
    ensure!(original["nexthop"] == RIGHT4 && original["lladdr"].is_string(), "{udp:#}");
    let depends = &original["depends_on"];
    ensure!(depends["connection"] == true && depends["ruleset"] == true, "{udp:#}");
    ensure!(depends["route"] == "198.18.2.0/24", "{udp:#}");
    ensure!(udp["reply"]["dst"] == RT_RIGHT4, "{udp:#}");
    let text = running.ask(&["flows", "show", "-v"])?;
    ensure!(text.matches("[OFFLOAD]").count() == 2, "{text}");
    ensure!(text.contains("not offloaded, below_threshold: "), "{text}");
    are_selected(
        &running,
        &[
            ("", 2),
            ("-p udp", 1),
            ("--offloaded", 1),
            ("--not-offloaded", 1),
            ("-p tcp --offloaded", 0),
            ("--state ESTABLISHED", 1),
            ("-s 198.18.1.0/24 --dport 5001", 2),
            (&format!("-q {RT_RIGHT4} --src-nat"), 2),
            ("--iif rt-left --oif rt-right", 2),
            ("-f ipv6", 0),
            ("-m 1", 0),
            ("-w 0", 2),
        ],
    )?;
    let counted = running.json(&["flows", "count"])?;
    ensure!(counted["carried"] == 2 && counted["offloaded"] == 1, "{counted}");
    // All entries: one for each direction.
    ensure!(rows(&running, &["offloaded"], &["-p", "udp"])?.len() == 2, "not both directions");
    let refused = running.command(&["flows", "show", "--iif", "nosuch"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("there is no interface nosuch"), "{said}");
    let top = has_rate(&running, busy, begun, &["-p", "udp"])?;
    ensure!(top["carried"] == 1 && top["entries"] == 0, "{top}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn flows_without_rules_are_marked_and_explained() -> Result<()> {
    let lab = lab()?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let (begun, busy) = (Instant::now(), Conversation::start(&lab, RIGHT4, false)?);
    ping_all(&lab.left, &format!("-c 2 -i 0.2 -W 5 {RIGHT6}"))?;
    let four = ["-s", LEFT4, "-d", RIGHT4];
    let mut last = Vec::new();
    let is_marked = || {
        last = details(&running, &four).unwrap_or_default();
        last.len() == 1 && last[0]["offloaded"] == true
    };
    ensure!(eventually(is_marked), "{last:#?}\n{}", running.account());
    ensure!(last[0]["iif"] == "rt-left" && last[0]["oif"] == "rt-right", "{last:#?}");
    ensure!(last[0]["depends_on"]["ruleset"] == false, "{last:#?}");
    ensure!(last[0]["depends_on"]["source_route"] == "198.18.1.0/24", "{last:#?}");
    let six = ["-s", LEFT6, "-d", RIGHT6];
    let why = |reason: &str| -> Result<Value> {
        let mut rows = Vec::new();
        let is_it = || {
            rows = details(&running, &six).unwrap_or_default();
            rows.len() == 1 && rows[0]["not_offloaded"]["reason"] == reason
        };
        ensure!(eventually(is_it), "{reason}: {rows:#?}");
        Ok(rows[0].clone())
    };
    let slow = why("below_threshold")?;
    ensure!(slow["not_offloaded"]["threshold"] == 8 && slow["offloaded"] == false, "{slow:#}");
    are_selected(
        &running,
        &[("-f ipv4", 2), ("-d 198.18.2.0/24", 1), ("-p udp", 0), ("-f ipv4 --oif rt-left", 1)],
    )?;
    // Reasons of the port, of a route, and of rules.
    lab.right.run("ethtool -K right gro off")?;
    why("port_without_redirect")?;
    lab.right.run("ethtool -K right gro on")?;
    why("below_threshold")?;
    lab.router.run(&format!("ip -6 route add {RIGHT6}/128 dev rt-left"))?;
    why("same_interface")?;
    lab.router.run(&format!("ip -6 route del {RIGHT6}/128 dev rt-left"))?;
    let mut capture =
        running.command(&["capture", "-w", "/dev/null", "host", "192.0.2.99"]).spawn()?;
    let paused = why("capture_running");
    capture.kill()?;
    capture.wait()?;
    paused?;
    ensure!(eventually(|| details(&running, &four)
        .is_ok_and(|rows| rows.iter().any(|row| row["offloaded"] == true))));
    let top = has_rate(&running, busy, begun, &four)?;
    ensure!(top["flows"][0]["tuple"]["protocol"] == "all", "{top}");
    nft(
        &lab.router,
        "table ip6 x { chain f { type filter hook forward priority 0; tcp dport 1 drop; }; }",
    )?;
    why("rules_without_tracking")?;
    drop(running);
    let running = Ferroute::start(&lab)?;
    let rows = details(&running, &six)?;
    ensure!(rows.len() == 1 && rows[0]["not_offloaded"]["reason"] == "offload_off", "{rows:#?}");
    Ok(())
}
