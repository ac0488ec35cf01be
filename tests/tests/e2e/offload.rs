//! Flow offload: packets of busy flows are forwarded by the XDP program, as userspace has decided, until that changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6, RT_RIGHT4};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use serde_json::Value;

/// As by default, which tests otherwise do not have; veth has no zero-copy.
const AUTO: [&str; 4] = ["--offload", "auto", "--offload-threshold", "8"];
pub const OFFLOAD: [&str; 4] = ["--offload", "on", "--offload-threshold", "8"];
const PORTS: [&str; 2] = ["rt-left", "rt-right"];
/// The default policy of the firewall, and what it accepts.
const STATEFUL: &str = "table inet fw { chain forward { type filter hook forward priority 0; policy drop; \
                        ct state established counter accept; meta l4proto { tcp, udp } th dport 5001 accept; }; \
                        chain post { type nat hook postrouting priority srcnat; \
                        oifname rt-right masquerade; }; }";

/// A lab in which the hosts' ends have GRO, without which a veth takes no redirected frames.
pub fn lab_with_gro() -> Result<Lab> {
    let lab = Lab::up()?;
    for (host, port) in [(&lab.left, "left"), (&lab.right, "right")] {
        host.run(&format!("ethtool -K {port} gro on"))?;
    }
    Ok(lab)
}

/// Frames that the programs of all ports have counted under these names.
fn xdp(running: &Ferroute, names: &[&str]) -> Result<u64> {
    let report = running.json(&["stat"])?;
    let ports = report["ports"].as_array().context("ports")?;
    let counts = ports.iter().flat_map(|port| names.iter().map(|name| &port["xdp"][name]));
    counts.map(|count| count.as_u64().context("a count of the program")).sum()
}

/// Frames that the program has forwarded itself.
pub fn offloaded(running: &Ferroute) -> Result<u64> {
    xdp(running, &["offload_ipv4", "offload_ipv6"])
}

fn mib(running: &Ferroute, name: &str) -> Result<u64> {
    running.json(&["stat"])?["mib"][name].as_u64().context("a MIB counter")
}

/// A count of what has happened to flows.
fn flows(running: &Ferroute, name: &str) -> Result<u64> {
    running.json(&["stat"])?["offload"]["flows"][name].as_u64().context("a count of flows")
}

/// Whether packets of the conversations are forwarded by the program.
pub fn are_offloaded(running: &Ferroute, all: &[&Conversation]) -> bool {
    eventually(|| {
        let others = || xdp(running, &["steer_ipv4", "steer_ipv6", "pass_no_flow"]);
        let Ok(before) = others() else { return false };
        all.iter().all(|it| it.goes_on()) && others().is_ok_and(|after| after == before)
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn busy_flows_are_offloaded_and_counted() -> Result<()> {
    let lab = lab_with_gro()?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    for (to, name) in [(RIGHT4, "IpForwDatagrams"), (RIGHT6, "Ip6OutForwDatagrams")] {
        let (before, forwarded) = (mib(&running, name)?, offloaded(&running)?);
        let result = ping_all(&lab.left, &format!("-c 300 -i 0.002 -W 5 {to}"))?;
        ensure!(result.text.matches("ttl=63").count() == 300, "not one hop:\n{}", result.text);
        let by_program = offloaded(&running)? - forwarded;
        // Requests and answers.
        ensure!((500..=600).contains(&by_program), "{by_program} of 600 were offloaded");
        let counted = mib(&running, name)? - before;
        // The hosts' neighbour discovery is not forwarded.
        ensure!(counted == 600, "{counted} of 600 are counted");
    }
    let listed = running.json(&["flows", "offloaded"])?;
    let listed = listed.as_array().context("an array")?;
    ensure!(listed.len() == 4, "{listed:?}");
    for (from, to) in [(LEFT4, RIGHT4), (RIGHT4, LEFT4), (LEFT6, RIGHT6), (RIGHT6, LEFT6)] {
        let is_it = |row: &&Value| row["tuple"]["src"] == from && row["tuple"]["dst"] == to;
        let row = listed.iter().find(is_it).with_context(|| format!("{from} to {to}"))?;
        ensure!(row["nexthop"] == to && row["tuple"]["protocol"] == "all", "{row}");
        ensure!(row["packets"].as_u64() > Some(200), "{row}");
    }
    running.forwarded_all_itself()?;
    let packets = &running.json(&["stat"])?["packets"];
    ensure!(packets["received"] == packets["sent"], "{packets}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_protocol_and_length_passes_as_before() -> Result<()> {
    let lab = lab_with_gro()?;
    let running = Ferroute::start_with(&lab, &AUTO)?;
    // The same addresses, so one flow: echo requests of all lengths, odd ones, with fragments, and with options.
    for (size, more) in
        [("0", ""), ("1", ""), ("57", ""), ("1472", "-M do"), ("3000", ""), ("56", "-R")]
    {
        let result =
            ping_all(&lab.left, &format!("-c 20 -i 0.005 -W 5 -s {size} {more} {RIGHT4}"))?;
        ensure!(result.text.contains(" 0% packet loss"), "{size} {more}:\n{}", result.text);
    }
    let traceroute = lab.left.run(&format!("traceroute -n -q 1 -w 5 {RIGHT4}"))?;
    ensure!(traceroute.lines().count() == 3, "{traceroute}");
    // Partial checksums of veth: TCP in both directions.
    for to in [RIGHT4, RIGHT6] {
        let tcp = Conversation::start(&lab, to, true)?;
        let udp = Conversation::start(&lab, to, false)?;
        ensure!(tcp.goes_on() && udp.goes_on(), "{to}\n{}", running.account());
    }
    if !ferroute::by_kernel() {
        ensure!(offloaded(&running)? > 200, "nothing was offloaded: {}", running.account());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_change_takes_effect_at_once_and_others_do_not_matter() -> Result<()> {
    let lab = lab_with_gro()?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    ensure!(are_offloaded(&running, &[&talk]), "{}", running.account());
    let voided = flows(&running, "voided")?;
    let mut batch = String::new();
    for n in 0..1000 {
        batch += &format!("route add 10.{}.{}.0/24 via 198.18.2.2\n", n / 250, n % 250);
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), batch)?;
    lab.router.run(&format!("ip -batch {}", file.path().display()))?;
    ensure!(talk.goes_on() && are_offloaded(&running, &[&talk]), "{}", running.account());
    ensure!(flows(&running, "voided")? == voided, "routes to others have voided it");
    // A route that covers it, and then one that is more specific.
    let stops = |what: &str, act: &str, undo: &str| -> Result<()> {
        let done = Instant::now();
        lab.router.run(act)?;
        let took = Instant::now();
        let last = talk.end().with_context(|| format!("{what}: {}", running.account()))?;
        let late = last.saturating_duration_since(took);
        ensure!(late < Duration::from_millis(50), "{what}: {late:?} late, {:?}", done.elapsed());
        lab.router.run(undo)?;
        ensure!(talk.goes_on(), "{what}: it does not go on");
        ensure!(are_offloaded(&running, &[&talk]), "{what}: {}", running.account());
        Ok(())
    };
    stops(
        "a route",
        "ip route add blackhole 198.18.2.2/32",
        "ip route del blackhole 198.18.2.2/32",
    )?;
    stops(
        "a rule",
        "ip rule add to 198.18.2.2 prio 10 blackhole",
        "ip rule del to 198.18.2.2 prio 10 blackhole",
    )?;
    stops(
        "a neighbour",
        "ip neigh replace 198.18.2.2 lladdr 02:f0:00:00:00:99 dev rt-right nud permanent",
        "ip neigh replace 198.18.2.2 lladdr 02:f0:00:00:02:02 dev rt-right nud reachable",
    )?;
    stops(
        "forwarding",
        "sysctl -qw net.ipv4.conf.rt-left.forwarding=0",
        "sysctl -qw net.ipv4.conf.rt-left.forwarding=1",
    )?;
    stops("a link", "ip link set rt-right down", "ip link set rt-right up")?;
    stops("an address", "ip addr add 198.18.2.2/32 dev lo", "ip addr del 198.18.2.2/32 dev lo")?;
    stops(
        "a rule of nftables",
        "nft table ip x { chain f { type filter hook forward priority 0; ip daddr 198.18.2.2 drop; }; }",
        "nft delete table ip x",
    )
}

/// Two hosts behind a gateway have one entry, as long as all addresses around them have one route.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn destinations_behind_a_gateway_share_an_entry() -> Result<()> {
    let lab = lab_with_gro()?;
    for (network, hosts) in [
        ("10.7.0.0/16", ["10.7.1.1", "10.7.1.2"]),
        ("2001:db8:77::/48", ["2001:db8:77::1", "2001:db8:77:9::2"]),
    ] {
        let gateway = if network.contains(':') { RIGHT6 } else { RIGHT4 };
        lab.router.run(&format!("ip route add {network} via {gateway}"))?;
        for host in hosts {
            lab.right.run(&format!("ip addr add {host} dev lo nodad"))?;
        }
    }
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    for (network, [one, other], specific) in [
        ("10.7.1.0", ["10.7.1.1", "10.7.1.2"], "10.7.1.2/32"),
        ("2001:db8:77::", ["2001:db8:77::1", "2001:db8:77:9::2"], "2001:db8:77:9::/64"),
    ] {
        let talks = [one, other].map(|to| Conversation::start(&lab, to, false));
        let [one, other] = talks;
        let (one, other) = (one?, other?);
        ensure!(are_offloaded(&running, &[&one, &other]), "{}", running.account());
        let to_there = || -> Result<Vec<Value>> {
            let listed = running.json(&["flows", "offloaded"])?;
            let rows = listed.as_array().context("an array")?.iter();
            let is_to = |row: &&Value| row["iif"] == "rt-left" && row["tuple"]["protocol"] == "all";
            let of_family = |row: &&Value| {
                row["tuple"]["dst"]
                    .as_str()
                    .is_some_and(|dst| dst.contains(':') == network.contains(':'))
            };
            Ok(rows.filter(is_to).filter(of_family).cloned().collect())
        };
        let rows = to_there()?;
        let dstlen = if network.contains(':') { 48 } else { 24 };
        ensure!(rows.len() == 1, "one entry for both: {rows:?}");
        ensure!(
            rows[0]["tuple"]["dst"] == network && rows[0]["tuple"]["dstlen"] == dstlen,
            "{rows:?}"
        );
        // A route of one of them: its packets take it at once, and the other one goes on.
        lab.router.run(&format!("ip route add blackhole {specific}"))?;
        let took = Instant::now();
        let last = other.end().with_context(|| format!("{specific}: {}", running.account()))?;
        let late = last.saturating_duration_since(took);
        ensure!(late < Duration::from_millis(50), "{specific}: {late:?} late");
        drop(other);
        ensure!(are_offloaded(&running, &[&one]), "the other: {}", running.account());
        let rows = to_there()?;
        ensure!(rows.iter().all(|row| row["tuple"].get("dstlen").is_none()), "{rows:?}");
    }
    // What waited in the receive ring when a flow was entered does not enter it again.
    ensure!(flows(&running, "installed")? < 30, "{}", running.account());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn connections_with_nat_are_offloaded() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, STATEFUL)?;
    lab.router.sysctl("net/netfilter/nf_conntrack_acct", "1")?;
    let mut running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let talks = [
        Conversation::start(&lab, RIGHT4, true)?,
        Conversation::start(&lab, RIGHT4, false)?,
        Conversation::start(&lab, RIGHT6, true)?,
        Conversation::start(&lab, RIGHT6, false)?,
    ];
    let all: Vec<&Conversation> = talks.iter().collect();
    ensure!(talks[0].peer.ip().to_string() == RT_RIGHT4, "{}", talks[0].peer);
    ensure!(are_carried(&running, &all), "{}", running.account());
    ensure!(are_offloaded(&running, &all), "{}", running.account());
    let listed = running.ask(&["flows", "offloaded"])?;
    ensure!(listed.lines().count() == 8 && listed.contains(" -> "), "{listed}");
    // Carried ones are those of the table of connections, and time-outs are renewed.
    let shown = running.ask(&["conntrack", "show"])?;
    ensure!(shown.matches("CARRIED").count() >= 4 || shown.lines().count() >= 4, "{shown}");
    // Killed, started again.
    running.kill()?;
    ensure!(all.iter().all(|it| it.goes_on()), "not without Ferroute");
    drop(running);
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    ensure!(all.iter().all(|it| it.goes_on()), "{}", running.account());
    ensure!(are_offloaded(&running, &all), "{}", running.account());
    // A drop rule ends one of them within 50 ms, and the others go on.
    lab.router.run("nft insert rule inet fw forward meta nfproto ipv4 tcp dport 5001 drop")?;
    let took = Instant::now();
    let late = talks[0].end()?.saturating_duration_since(took);
    ensure!(late < Duration::from_millis(50), "{late:?} late");
    ensure!(all[1..].iter().all(|it| it.goes_on()), "{}", running.account());
    // An entry that is deleted ends one that is translated.
    ensure!(are_offloaded(&running, &all[1..]), "{}", running.account());
    lab.router.run("nft insert rule inet fw forward udp dport 5001 ct state new drop")?;
    ensure!(are_offloaded(&running, &all[1..]), "{}", running.account());
    lab.router.run("conntrack -D -p udp")?;
    let took = Instant::now();
    let late = talks[1].end()?.saturating_duration_since(took);
    ensure!(late < Duration::from_millis(100), "{late:?} late");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn counters_of_rules_include_what_is_offloaded() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(
        &lab.router,
        "table inet fw { chain forward { type filter hook forward priority 0; policy drop; \
         ct state established counter accept; udp dport 5001 counter accept; }; }",
    )?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    ensure!(are_offloaded(&running, &[&talk]), "{}", running.account());
    ensure!(talk.goes_on());
    let answers = talk.stop();
    let counted = || -> Result<u64> {
        // That of the first rule, kernel's and workers' together; the kernel's alone is older.
        let kernel: Value =
            serde_json::from_str(&lab.router.run("nft -j list chain inet fw forward")?)?;
        let rule = kernel["nftables"].as_array().context("rules")?.iter().find_map(|it| {
            it["rule"]["expr"].as_array()?.iter().find_map(|e| e["counter"]["packets"].as_u64())
        });
        let ours = running.json(&["rules", "show"])?;
        let rules = ours[0]["chains"][0]["rules"].as_array().context("our rules")?;
        let counter = &rules[0]["counters"][0];
        let (all, kernels) = (counter["packets"].as_u64(), counter["kernel_packets"].as_u64());
        Ok(rule.context("a counter")? + all.context("ours")? - kernels.context("the kernel's")?)
    };
    // All but the first packet, which is new.
    let expected = 2 * answers - 1;
    ensure!(
        eventually(|| counted().is_ok_and(|count| count.abs_diff(expected) <= 2)),
        "{:?} of {expected}",
        counted()
    );
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_that_takes_no_frames_is_left_out_and_captures_see_all() -> Result<()> {
    let lab = lab_with_gro()?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    ensure!(are_offloaded(&running, &[&talk]), "{}", running.account());
    lab.right.run("ethtool -K right gro off")?;
    ensure!(talk.goes_on(), "without GRO: {}", running.account());
    let before = offloaded(&running)?;
    ensure!(talk.goes_on(), "without GRO: {}", running.account());
    // Only answers, which leave by the other port.
    let (by_program, port) =
        (offloaded(&running)? - before, &running.json(&["flows", "offloaded"])?);
    ensure!(
        port.as_array().is_some_and(|rows| rows.iter().all(|row| row["oif"] == PORTS[0])),
        "{port}"
    );
    ensure!(by_program > 0, "answers are not offloaded either");
    lab.right.run("ethtool -K right gro on")?;
    ensure!(are_offloaded(&running, &[&talk]), "{}", running.account());
    let captured = running.command(&["capture", "-c", "200", "-w", "/dev/null"]).output()?;
    ensure!(captured.status.success(), "{}", String::from_utf8_lossy(&captured.stderr));
    ensure!(are_offloaded(&running, &[&talk]), "{}", running.account());
    Ok(())
}

/// Between the moment at which a port stops to take frames and the one at which that is noticed, they are drops with a
/// name: each packet in is one out or a drop.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn frames_that_a_port_refuses_are_named_drops() -> Result<()> {
    let lab = lab_with_gro()?;
    let running = Ferroute::start_with(&lab, &OFFLOAD)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let summary = std::thread::scope(|scope| -> Result<_> {
        let pings = scope.spawn(|| ping(&lab.left, &format!("-q -c 3000 -i 0.001 -W 3 {RIGHT4}")));
        ensure!(eventually(|| offloaded(&running).is_ok_and(|frames| frames > 200)));
        lab.right.run("ethtool -K right gro off")?;
        pings.join().expect("it does not panic")
    })?;
    let lost = u64::from(summary.sent - summary.received);
    let counts = || -> Result<(u64, Value)> {
        let report = running.json(&["stat"])?;
        let refused = report["drops"]["REDIRECT_REFUSED"].as_u64().unwrap_or(0);
        Ok((refused, report))
    };
    let is_named = || counts().is_ok_and(|(refused, _)| refused == lost);
    ensure!(eventually(is_named), "{lost} lost: {:?}\n{}", counts(), summary.text);
    ensure!(lost > 0, "the change was noticed before a packet came");
    let (_, report) = counts()?;
    let packets = &report["offload"]["packets"];
    let of = |name: &str| packets[name].as_u64().unwrap_or(0);
    ensure!(of("received") == of("sent") + of("dropped") && of("dropped") == lost, "{packets}");
    let drops = running.json(&["drops"])?;
    ensure!(drops.to_string().contains("REDIRECT_REFUSED"), "{drops}");
    Ok(())
}
