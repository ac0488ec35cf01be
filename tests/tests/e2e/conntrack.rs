//! Rulesets that track connections: established connections pass through userspace, all else through the kernel.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};

/// A firewall as most routers have it.
const STATEFUL: &str = "
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related counter accept
        ct state invalid counter drop
        ct state new tcp dport 5000-6000 counter accept
        ct state new udp dport 5000-6000 counter accept
        ct state new meta l4proto { icmp, ipv6-icmp } accept
    }
}
";

/// The lines of `conntrack -L` about the conversations.
fn entries(router: &Netns) -> Result<String> {
    let listed = router.run("conntrack -L")?;
    Ok(listed
        .lines()
        .filter(|line| line.contains("dport=5001"))
        .map(|it| it.to_owned() + "\n")
        .collect())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn established_connections_are_carried_and_survive_a_kill() -> Result<()> {
    let lab = Lab::up()?;
    nft(&lab.router, STATEFUL)?;
    let mut running = Ferroute::start(&lab)?;
    let talks = [
        Conversation::start(&lab, RIGHT4, true)?,
        Conversation::start(&lab, RIGHT6, true)?,
        Conversation::start(&lab, RIGHT4, false)?,
        Conversation::start(&lab, RIGHT6, false)?,
    ];
    let all: Vec<&Conversation> = talks.iter().collect();
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    for round in 0..2 {
        ensure!(are_carried(&running, &all), "{round}: the kernel forwards: {}", running.account());
        let are_listed = || {
            entries(&lab.router).is_ok_and(|listed| {
                let count = |text: &str| listed.matches(text).count();
                (count("ESTABLISHED"), count("[ASSURED]")) == (2, 4)
            })
        };
        ensure!(eventually(are_listed), "{}", entries(&lab.router)?);
        if ferroute::by_kernel() {
            return Ok(());
        }
        let status = running.json(&["status"])?;
        ensure!(status["carried_flows"] == 4, "{status}");
        // The kernel sees no acknowledgement of the last data that it saw, and shortened the time-out.
        let is_renewed = |line: &str| {
            let seconds = line.split_whitespace().nth(2).and_then(|it| it.parse::<u32>().ok());
            line.starts_with("udp") || seconds.is_some_and(|seconds| seconds > 431_900)
        };
        let are_renewed =
            || entries(&lab.router).is_ok_and(|listed| listed.lines().all(is_renewed));
        ensure!(eventually(are_renewed), "{}", entries(&lab.router)?);
        running.kill()?;
        ensure!(all.iter().all(|it| it.goes_on()), "{round}: a connection died");
        // Entries of before the start send no events.
        running = Ferroute::start(&lab)?;
    }
    ensure!(are_carried(&running, &all), "the kernel forwards: {}", running.account());
    drop(talks);
    // FIN passed the kernel.
    let closed = || entries(&lab.router).is_ok_and(|listed| !listed.contains("ESTABLISHED"));
    ensure!(eventually(closed), "{}", entries(&lab.router)?);
    Ok(())
}

/// Counters of workers and kernel together are what passed.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_packet_is_counted_once() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    let answers = talk.stop();
    let kernel: serde_json::Value = serde_json::from_str(&lab.router.run("nft -j list ruleset")?)?;
    let mut sum = 0;
    for object in kernel["nftables"].as_array().into_iter().flatten() {
        let exprs = object["rule"]["expr"].as_array().into_iter().flatten();
        sum += exprs.filter_map(|expr| expr["counter"]["packets"].as_u64()).sum::<u64>();
    }
    let rules = running.json(&["rules", "show"])?;
    for rule in rules[0]["chains"][0]["rules"].as_array().into_iter().flatten() {
        for counter in rule["counters"].as_array().into_iter().flatten() {
            let of = |name: &str| counter[name].as_u64().unwrap_or(0);
            sum += of("packets") - of("kernel_packets");
        }
    }
    // The last message may have had no answer.
    ensure!((2 * answers..=2 * answers + 2).contains(&sum), "{sum} counted, {answers} answers");
    Ok(())
}

/// Sets a rule under load, and measures how long a carried connection goes on.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_change_under_load_stops_a_carried_connection() -> Result<()> {
    let lab = Lab::up()?;
    let router = &lab.router;
    let set = "set bad { type ipv4_addr; }\nchain forward {";
    nft(
        router,
        &STATEFUL.replacen("chain forward {", set, 1).replacen(
            "ct state established",
            "ip saddr @bad drop\nct state established",
            1,
        ),
    )?;
    let running = Ferroute::start(&lab)?;
    let changes = [
        (
            "nft add element inet fw bad { 198.18.1.2 }",
            "nft delete element inet fw bad { 198.18.1.2 }",
        ),
        ("nft insert rule inet fw forward ct state established udp dport 5001 drop", ""),
    ];
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    for (change, undo) in changes {
        ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
        router.run(change)?;
        let set = Instant::now();
        let after = talk.end()?.saturating_duration_since(set);
        eprintln!("{change}: the last answer arrived {after:?} after it was set");
        ensure!(after < Duration::from_millis(100), "{change}: {after:?}");
        if !undo.is_empty() {
            router.run(undo)?;
            ensure!(talk.goes_on(), "no answers after {undo}");
        }
    }
    Ok(())
}

/// An entry that is deleted while its connection is carried: the next packets are the kernel's, for which
/// they are new.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_deleted_entry_is_not_carried() -> Result<()> {
    for before_start in [false, true] {
        let lab = Lab::up()?;
        nft(&lab.router, STATEFUL)?;
        let start = || Ferroute::start(&lab);
        let early = if before_start { None } else { Some(start()?) };
        let talk = Conversation::start(&lab, RIGHT4, false)?;
        // The kernel counts a connection as established in both directions after 2 s.
        let assured = || entries(&lab.router).is_ok_and(|listed| listed.contains("[ASSURED]"));
        ensure!(eventually(assured), "{}", entries(&lab.router)?);
        let running = early.map_or_else(start, Ok)?;
        ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
        // Nothing new is accepted from now on; the rule is followed before the entry is deleted.
        nft(
            &lab.router,
            "flush ruleset\ntable inet fw { chain forward { type filter hook forward priority 0; \
             policy drop; ct state established accept; }; }",
        )?;
        ensure!(talk.goes_on() && are_carried(&running, &[&talk]), "{}", running.account());
        lab.router.run("conntrack -D -p udp --dport 5001")?;
        let deleted = Instant::now();
        let after = talk.end()?.saturating_duration_since(deleted);
        eprintln!("before the start: {before_start}: the last answer arrived {after:?} after it");
        // Entries of before the start send no events, and are verified every second.
        let allowed = Duration::from_millis(if before_start { 2000 } else { 100 });
        ensure!(after < allowed, "{after:?}");
    }
    Ok(())
}

/// The time-out of a carried connection is renewed, and ends when it is idle.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn time_outs_are_renewed_while_packets_are_carried() -> Result<()> {
    let lab = Lab::up()?;
    nft(&lab.router, STATEFUL)?;
    let running = Ferroute::start(&lab)?;
    lab.router.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", "4")?;
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    // The kernel counts a connection as established in both directions after 2 s.
    let assured = || entries(&lab.router).is_ok_and(|listed| listed.contains("[ASSURED]"));
    ensure!(eventually(assured), "{}", entries(&lab.router)?);
    let until = Instant::now() + Duration::from_secs(7);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(500));
        let listed = entries(&lab.router)?;
        ensure!(listed.contains("[ASSURED]"), "it expired: {listed}");
    }
    drop(talk);
    let gone = || entries(&lab.router).is_ok_and(|listed| listed.is_empty());
    ensure!(eventually(gone), "it does not expire: {}", entries(&lab.router)?);
    Ok(())
}

/// As iptables writes a firewall.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn states_of_iptables_are_evaluated() -> Result<()> {
    let lab = Lab::up()?;
    for line in [
        "iptables-nft -P FORWARD DROP",
        "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "iptables-nft -A FORWARD -m state --state INVALID -j DROP",
        "iptables-nft -A FORWARD -p udp --dport 5001 -m conntrack ! --ctstate ESTABLISHED -j ACCEPT",
        "iptables-nft -A FORWARD -p tcp --dport 5001 -m conntrack --ctstate NEW -j ACCEPT",
    ] {
        lab.router.run(line)?;
    }
    let running = Ferroute::start(&lab)?;
    let talks =
        [Conversation::start(&lab, RIGHT4, true)?, Conversation::start(&lab, RIGHT4, false)?];
    ensure!(are_carried(&running, &[&talks[0], &talks[1]]), "{}", running.account());
    Ok(())
}

/// Marks are set with the first packet, and remain: rules that restore and save them do not prevent that a
/// connection is carried. The answers of UDP pass only where the mark, the direction and the status are known.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn connections_with_marks_are_carried() -> Result<()> {
    let lab = Lab::up()?;
    for line in [
        "iptables-nft -t mangle -A PREROUTING -j CONNMARK --restore-mark",
        "iptables-nft -t mangle -A PREROUTING -m mark --mark 0 -p udp -j MARK --set-mark 7",
        "iptables-nft -t mangle -A POSTROUTING -j CONNMARK --save-mark",
        "iptables-nft -P FORWARD DROP",
        "iptables-nft -A FORWARD -p tcp -m multiport --ports 5001 -j ACCEPT",
        "iptables-nft -A FORWARD -p udp --dport 5001 -m conntrack --ctproto udp --ctdir ORIGINAL -j ACCEPT",
        "iptables-nft -A FORWARD -m connmark --mark 7 -m conntrack --ctstatus SEEN_REPLY --ctdir REPLY -j ACCEPT",
    ] {
        lab.router.run(line)?;
    }
    let running = Ferroute::start(&lab)?;
    let talks =
        [Conversation::start(&lab, RIGHT4, true)?, Conversation::start(&lab, RIGHT4, false)?];
    ensure!(are_carried(&running, &[&talks[0], &talks[1]]), "{}", running.account());
    ensure!(entries(&lab.router)?.contains("mark=7"), "{}", entries(&lab.router)?);
    Ok(())
}

/// The tuples of connections, and marks in nftables. A rule that changes the mark leaves the connection to
/// the kernel, which changes it.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn tuples_and_marks_of_connections_are_evaluated() -> Result<()> {
    let lab = Lab::up()?;
    let ruleset = "
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        meta l4proto tcp ct l3proto ipv4 ct protocol tcp ct zone 0 ct original proto-dst 5001 \
            ct original ip daddr 198.18.2.2 ct mark set 9 accept
        meta l4proto udp ct reply ip saddr 198.18.2.2 ct reply proto-src 5001 ct mark set 9 accept
        meta l4proto udp ct original ip6 daddr 2001:db8:2::2 ct reply proto-src 5001 ct mark set 9 accept
    }
}
";
    nft(&lab.router, ruleset)?;
    let running = Ferroute::start(&lab)?;
    let tcp = Conversation::start(&lab, RIGHT4, true)?;
    let udp = Conversation::start(&lab, RIGHT4, false)?;
    let udp6 = Conversation::start(&lab, RIGHT6, false)?;
    ensure!(are_carried(&running, &[&tcp, &udp, &udp6]), "{}", running.account());
    let marked = |mark: &str| Ok::<_, anyhow::Error>(entries(&lab.router)?.matches(mark).count());
    ensure!(marked("mark=9")? == 3, "{}", entries(&lab.router)?);
    nft(
        &lab.router,
        &format!("flush ruleset\n{}", ruleset.replace("ct mark set 9", "ct mark set 8")),
    )?;
    ensure!(
        eventually(|| marked("mark=8").is_ok_and(|count| count == 3)),
        "{}",
        entries(&lab.router)?
    );
    for talk in [&tcp, &udp, &udp6] {
        ensure!(talk.goes_on(), "{}", running.account());
    }
    Ok(())
}

/// A rule that only the kernel evaluates matters to the connections that reach it: they are left to it, also
/// by the XDP program, until the ruleset changes.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_connection_that_reaches_a_rule_of_the_kernel_is_left_to_it() -> Result<()> {
    let lab = Lab::up()?;
    let limit =
        "udp dport 5001 limit rate 100000/second accept\n        ct state established,related";
    nft(&lab.router, &STATEFUL.replacen("ct state established,related", limit, 1))?;
    let running = Ferroute::start(&lab)?;
    let tcp = Conversation::start(&lab, RIGHT4, true)?;
    let udp = Conversation::start(&lab, RIGHT4, false)?;
    let udp6 = Conversation::start(&lab, RIGHT6, false)?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let assured =
        || entries(&lab.router).is_ok_and(|listed| listed.matches("[ASSURED]").count() == 3);
    ensure!(eventually(assured), "{}", entries(&lab.router)?);
    // The XDP program passes them, so that userspace hands none over.
    let handed =
        || running.json(&["stat"]).ok().and_then(|stat| stat["punts"]["NETFILTER"].as_u64());
    let are_the_kernels = || {
        let status = running.json(&["status"]);
        let before = handed();
        let go_on = [&udp, &udp6, &tcp].iter().all(|it| it.goes_on());
        let is_only_tcp = status.is_ok_and(|status| status["carried_flows"] == 1);
        go_on && is_only_tcp && before.is_some() && handed() == before
    };
    ensure!(eventually(are_the_kernels), "{}", running.account());
    thread::sleep(Duration::from_secs(2));
    ensure!(are_the_kernels(), "{}", running.account());
    nft(&lab.router, &format!("flush ruleset\n{STATEFUL}"))?;
    ensure!(are_carried(&running, &[&tcp, &udp, &udp6]), "{}", running.account());
    Ok(())
}
