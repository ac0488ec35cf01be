//! What `doctor`, `rules show` and `flows show` say of rules that keep connections in the kernel or decide about each
//! packet, and that it is right: with a ruleset that follows the advice, connections are carried.

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, are_carried, nft};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};
use serde_json::Value;

use super::tools::carries;

/// A rule before those for established connections, and what `doctor` says of it.
struct Case {
    /// What is run before, with the rule in the end.
    before: &'static [&'static str],
    /// What is run to follow the advice.
    after: &'static [&'static str],
    /// Parts of what `doctor` says before.
    said: &'static [&'static str],
    /// A part of what it says no more after.
    unsaid: &'static str,
    /// Before, the connection is not carried; otherwise packets are left to the kernel one by one.
    stays: bool,
}

const CHAIN: &str = "add table inet fw ; add chain inet fw forward { type filter hook forward priority filter ; policy drop ; }";

/// nft's arguments, or another command.
fn run(router: &Netns, line: &str) -> Result<()> {
    match line.strip_prefix("iptables-nft ") {
        Some(_) => router.run(line).map(drop),
        None => nft(router, line),
    }
}

fn doctor(running: &Ferroute) -> Result<String> {
    let output = running.command(&["doctor", "-i", "rt-left", "-i", "rt-right"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A connection stays with the kernel; when the advice is followed, it is carried.
fn follow(case: &Case) -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for line in case.before {
        run(&lab.router, line)?;
    }
    let running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, true)?;
    ensure!(talk.goes_on(), "the connection died");
    let is_left = || {
        let punts = running.json(&["stat"]).map(|stat| stat["punts"]["NETFILTER"].as_u64());
        punts.is_ok_and(|punts| punts.is_some_and(|punts| punts > 0))
            && (!case.stays || carries(&running, 0))
    };
    ensure!(eventually(is_left), "it does not stay with the kernel: {}", running.account());
    let found = doctor(&running)?;
    for part in case.said {
        ensure!(found.contains(part), "`{part}` is not in:\n{found}");
    }
    for line in case.after {
        run(&lab.router, line)?;
    }
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    ensure!(eventually(|| carries(&running, 1)), "{}", running.account());
    let found = doctor(&running)?;
    ensure!(!found.contains(case.unsaid), "`{}` is still in:\n{found}", case.unsaid);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn advice_for_a_limit_before_established_connections() -> Result<()> {
    follow(&Case {
        before: &[
            CHAIN,
            "add rule inet fw forward tcp dport 5001 limit rate 1000/second accept",
            "add rule inet fw forward ct state established,related accept",
            "add rule inet fw forward ct state new accept",
        ],
        after: &["insert rule inet fw forward ct state established,related accept"],
        said: &[
            "warn firewall: nftables: inet fw forward handle 2: limit: connections whose packets reach this rule stay \
             with the kernel\n     do: if it concerns new connections only: ct state new before it, in the same rule; \
             or, if established connections may pass it and all rules behind it in the chain: ct state \
             established,related accept before it, in chain inet fw forward\n",
        ],
        unsaid: "stay with the kernel",
        stays: true,
    })
}

/// In a chain that another one jumps to.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn advice_for_a_log_in_iptables() -> Result<()> {
    follow(&Case {
        before: &[
            "iptables-nft -N LOGGED",
            "iptables-nft -A LOGGED -m limit --limit 1000/s -j RETURN",
            "iptables-nft -A FORWARD -p tcp -j LOGGED",
            "iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "iptables-nft -A FORWARD -p tcp --dport 5001 -j ACCEPT",
            "iptables-nft -P FORWARD DROP",
        ],
        after: &["iptables-nft -I FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"],
        said: &["ip filter LOGGED handle ", "in chain ip filter FORWARD\n"],
        unsaid: "stay with the kernel",
        stays: true,
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn advice_for_the_maximum_segment_size() -> Result<()> {
    follow(&Case {
        before: &[
            CHAIN,
            "add rule inet fw forward tcp option maxseg size set rt mtu",
            "add rule inet fw forward ct state { new, established, related } accept",
        ],
        after: &[
            "insert rule inet fw forward tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            "delete rule inet fw forward handle 2",
        ],
        said: &[
            "forward handle 2: rt: ",
            "do: if it sets the maximum segment size: match SYN before it",
        ],
        unsaid: "stay with the kernel",
        stays: true,
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn advice_for_a_limit_of_connections() -> Result<()> {
    follow(&Case {
        before: &[
            CHAIN,
            "add rule inet fw forward ct count over 1000 drop",
            "add rule inet fw forward ct state { new, established, related } accept",
        ],
        after: &[
            "insert rule inet fw forward ct state new ct count over 1000 drop",
            "delete rule inet fw forward handle 2",
        ],
        said: &[
            "forward handle 2: connlimit: ",
            "do: if it concerns new connections only: ct state new before it, in the same rule",
        ],
        unsaid: "stay with the kernel",
        stays: true,
    })
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn advice_for_rules_before_connection_tracking() -> Result<()> {
    follow(&Case {
        before: &[
            CHAIN,
            "add rule inet fw forward ct state { new, established, related } accept",
            "add chain inet fw raw { type filter hook prerouting priority raw ; }",
            "add rule inet fw raw tcp dport 5001 limit rate over 100000/second drop",
        ],
        after: &[
            "delete chain inet fw raw",
            "add chain inet fw mangle { type filter hook prerouting priority mangle ; }",
            "add rule inet fw mangle ct state established,related accept",
            "add rule inet fw mangle tcp dport 5001 limit rate over 100000/second drop",
        ],
        said: &[
            "inet fw raw handle ",
            "do: before connection tracking connections are not known: if established connections may \
             pass it, write it in a chain of priority mangle (-150) or later, behind ct state \
             established,related accept (it then runs after connection tracking",
        ],
        unsaid: "packets that reach this rule",
        stays: false,
    })
}

/// At egress the packets are handed over one by one, and at POSTROUTING they are not.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn advice_for_chains_at_egress_and_of_equal_priority() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(
        &lab.router,
        "table inet fw {
            chain forward { type filter hook forward priority filter; ct state established,related accept; }
        }
        table netdev t {
            chain out {
                type filter hook egress device rt-right priority 0;
                ip ttl 1 drop
            }
        }",
    )?;
    let mut running = Ferroute::start(&lab)?;
    let found = doctor(&running)?;
    let said = "do: filter at ingress, or at the hook forward or postrouting, instead";
    ensure!(found.contains(said), "{found}");
    nft(
        &lab.router,
        "delete table netdev t
        add chain inet fw out { type filter hook postrouting priority filter; }
        add rule inet fw out oifname rt-right ip ttl 1 drop",
    )?;
    let talk = Conversation::start(&lab, RIGHT4, true)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    // Not yet known to Ferroute, which does not start then.
    running.kill()?;
    let marks = |priority: &str| {
        format!(
            "table ip marks {{}}
            delete table ip marks
            table ip marks {{
                chain forward {{ type filter hook forward priority {priority}; meta mark set 1; }}
            }}"
        )
    };
    nft(&lab.router, &marks("filter"))?;
    let doctor_alone = || {
        let output =
            lab.router.command(ferroute::binary()).args(["doctor", "-i", "rt-left"]).output()?;
        anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let found = doctor_alone()?;
    ensure!(
        found.contains(
            "their order is not known\n     do: give these chains different priorities\n"
        ),
        "{found}"
    );
    nft(&lab.router, &marks("filter - 1"))?;
    let found = doctor_alone()?;
    ensure!(!found.contains("different priorities"), "{found}");
    running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, true)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    Ok(())
}

/// Rules behind those for established connections, for protocols that are not carried, for ICMP other than echo and at
/// input are named in one line, which is no warning.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_that_no_carried_packet_reaches_are_no_warnings() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(
        &lab.router,
        r#"table inet fw {
            chain raw { type filter hook prerouting priority raw; meta l4proto sctp notrack; }
            chain input { type filter hook input priority filter; limit rate 10/second accept; }
            chain forward {
                type filter hook forward priority filter; policy drop;
                icmp type destination-unreachable limit rate 10/second accept
                ct state vmap { established : accept, related : accept, invalid : drop }
                tcp dport 5001 limit rate 100/second accept
                log prefix "dropped: "
            }
            chain clamp {
                type filter hook forward priority mangle;
                tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
            }
        }"#,
    )?;
    let running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, true)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    let found = doctor(&running)?;
    let said =
        found.lines().find(|line| line.contains("that no packet of a carried connection reaches"));
    let said = said.with_context(|| found.clone())?;
    for rule in ["notrack", "fw forward handle ", "limit", "log", "fw clamp handle "] {
        ensure!(said.contains(rule), "{rule}: {said}");
    }
    ensure!(said.starts_with("ok   firewall: ") && !said.contains("fw input"), "{said}");
    ensure!(said.matches(": limit").count() == 2, "{said}");
    ensure!(!found.contains("stay with the kernel"), "{found}");
    let shown = running.ask(&["rules", "show"])?;
    let log = r#"log prefix "dropped: ""#;
    let log = shown.lines().find(|line| line.contains(log)).with_context(|| shown.clone())?;
    ensure!(log.ends_with(", left to the kernel: log (reached by no carried packet)"), "{shown}");
    Ok(())
}

fn rule<'a>(shown: &'a Value, text: &str) -> Result<&'a Value> {
    let chains = shown[0]["chains"].as_array().into_iter().flatten();
    let mut rules = chains.flat_map(|chain| chain["rules"].as_array().into_iter().flatten());
    let is_it = |rule: &&Value| rule["text"].as_str().is_some_and(|own| own.contains(text));
    rules.find(is_it).with_context(|| format!("no {text}: {shown:#}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_rule_that_looks_at_each_packet_is_named() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    // Without GRO at its other end a veth takes no redirected frames.
    for (host, port) in [(&lab.left, "left"), (&lab.right, "right")] {
        host.run(&format!("ethtool -K {port} gro on"))?;
    }
    nft(
        &lab.router,
        "table inet fw {
            chain forward {
                type filter hook forward priority filter; policy drop;
                udp dport 5001 ip dscp ef counter accept
                tcp dport 22 meta length > 1400 drop
                tcp dport 5001 ip ttl < 10 counter drop
                ct state established,related accept
                ct state new accept
                ip dscp ef drop
            }
        }",
    )?;
    let running = Ferroute::start_with(&lab, &["--offload", "on"])?;
    let talk = Conversation::start(&lab, RIGHT4, true)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    let shown = running.json(&["rules", "show"])?;
    for (text, carried, differs) in [
        ("udp dport 5001", "per_packet", Value::from("ip dscp")),
        ("tcp dport 22", "per_packet", Value::from("meta length")),
        ("ip ttl", "per_packet", Value::from("ip ttl")),
        ("ct state established,related", "constant", Value::Null),
        ("ct state new", "not_reached", Value::Null),
        ("ip dscp ef drop", "not_reached", Value::Null),
    ] {
        let found = rule(&shown, text)?;
        ensure!(found["carried"] == carried && found["differs"] == differs, "{text}: {found}");
        ensure!(found["evaluated_by"] == "userspace", "{text}: {found}");
    }
    let text = running.ask(&["rules", "show"])?;
    let handle = rule(&shown, "ip ttl")?["handle"].as_u64().context("no handle")?;
    let line = format!(" # handle {handle}, per packet: ip ttl\n");
    ensure!(text.contains(&line), "{text}");
    ensure!(text.matches(", per packet: ").count() == 3, "{text}");

    // The rule that packets of this flow reach, in one direction.
    let named = format!(": inet fw forward handle {handle}: ip ttl");
    let is_named = |line: &str| {
        line.trim_start().starts_with("original: not offloaded, rules_per_packet: ")
            && line.ends_with(&named)
    };
    let flows = || running.ask(&["flows", "show", "-v"]).unwrap_or_default();
    ensure!(eventually(|| flows().lines().any(is_named)), "`{named}` is not in:\n{}", flows());
    let flows = running.json(&["flows", "show", "-v"])?;
    let rule = &flows[0]["original"]["not_offloaded"]["rule"];
    ensure!(*rule == format!("inet fw forward handle {handle}: ip ttl"), "{flows:#}");
    Ok(())
}
