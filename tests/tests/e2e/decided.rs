//! Rulesets as users write them, of which it is remembered what they do with an established connection: so the XDP
//! program forwards its packets, until a change that the rules look at.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, nft};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::{Ferroute, Lab, ferroute};

use crate::offload::{OFFLOAD, are_offloaded, lab_with_gro};

/// How long a change may take to have an effect.
const LATE: Duration = Duration::from_millis(50);

/// A router that clamps the MSS, as most with PPPoE do, and refuses packets of TCP that are not valid.
const CLAMPED: &str = "table inet fw {
    chain clamp {
        type filter hook forward priority mangle; policy accept;
        tcp flags syn / syn,rst counter tcp option maxseg size set rt mtu
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        tcp flags & (fin|syn) == fin|syn drop
        tcp flags & (fin|syn|rst|psh|ack|urg) == 0x0 drop
        tcp flags & (fin|syn|rst|ack) != syn ct state new counter drop
        ct state established,related counter accept
        meta l4proto { tcp, udp } th dport 5001 ct state new accept
    }
    chain post { type nat hook postrouting priority srcnat; oifname rt-right masquerade; }
}";

/// The same by iptables.
const CLAMPED_IPTABLES: [&str; 6] = [
    "iptables-nft -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "iptables-nft -A FORWARD -p tcp --tcp-flags ALL NONE -j DROP",
    "iptables-nft -A FORWARD -p tcp ! --syn -m conntrack --ctstate NEW -j DROP",
    "iptables-nft -A FORWARD -p tcp -m multiport --dports 137,138,139,445 -j DROP",
    "iptables-nft -A FORWARD -m iprange --src-range 198.51.100.1-198.51.100.9 -j DROP",
    "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
];

/// Rules that Docker 28 and later write before connection tracking, and its chain for published ports, here of packets
/// that are routed.
const DOCKER: [&str; 5] = [
    "iptables-nft -t raw -A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP",
    "iptables-nft -t raw -A PREROUTING -d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP",
    "iptables-nft -t mangle -N DOCKER",
    "iptables-nft -t mangle -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
];

/// The filter of the reverse path that firewalld writes, which runs before connection tracking.
const FIREWALLD: &str = "table inet firewalld {
    chain raw_PREROUTING {
        type filter hook prerouting priority raw + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing counter drop
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy drop;
        ct state { established, related } accept
        ct status dnat accept
        iifname \"lo\" accept
        ct state invalid drop
        meta l4proto { tcp, udp } th dport 5001 ct state new accept
    }
}";

/// A router with several uplinks: the mark of a connection selects the routing table.
const UPLINKS: &str = "table inet uplinks {
    chain marks {
        type filter hook prerouting priority mangle; policy accept;
        ct state new meta mark set 0x7 ct mark set meta mark return
        meta mark set ct mark
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        meta mark 0x7 ct state established accept
        meta mark 0x7 th dport 5001 accept
    }
}";

/// A change that ends a conversation, and the one that undoes it.
struct Change(&'static str, &'static str);

/// A rule that is added.
const RULE: Change = Change(
    "nft table inet x { chain f { type filter hook forward priority 5; th dport 5001 drop; }; }",
    "nft delete table inet x",
);

/// Conversations are offloaded, and each change ends the last one of them within 50 ms.
fn are_decided(
    lab: &Lab,
    talks: &[(&str, bool)],
    changes: &[Change],
    also: impl Fn(&Ferroute) -> Result<()>,
) -> Result<()> {
    let running = Ferroute::start_with(lab, &OFFLOAD)?;
    let talks: Vec<_> = talks
        .iter()
        .map(|(to, is_tcp)| Conversation::start(lab, to, *is_tcp))
        .collect::<Result<_>>()?;
    if ferroute::by_kernel() {
        return Ok(());
    }
    let all: Vec<&Conversation> = talks.iter().collect();
    let why = || running.ask(&["flows", "show", "-v"]).unwrap_or_default();
    ensure!(are_offloaded(&running, &all), "{}\n{}", why(), running.account());
    let last = talks.last().context("a conversation")?;
    for Change(change, undo) in changes {
        lab.router.run(change)?;
        let done = Instant::now();
        let late = last.end().context(*change)?.saturating_duration_since(done);
        ensure!(late < LATE, "{change}: {late:?} late");
        also(&running).context(*change)?;
        lab.router.run(undo)?;
        ensure!(last.goes_on(), "{undo}: {}", running.account());
        ensure!(are_offloaded(&running, &all), "{undo}: {}\n{}", why(), running.account());
    }
    Ok(())
}

fn run_all(lab: &Lab, lines: &[&str]) -> Result<()> {
    lines.iter().try_for_each(|line| lab.router.run(line).map(drop))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_for_packets_that_open_connections_do_not_matter_later() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, CLAMPED)?;
    let talks = [(RIGHT4, false), (RIGHT6, true), (RIGHT4, true)];
    are_decided(&lab, &talks, &[RULE], |_| Ok(()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_same_rules_by_iptables() -> Result<()> {
    let lab = lab_with_gro()?;
    run_all(&lab, &CLAMPED_IPTABLES)?;
    let rule = "iptables-nft -I FORWARD -p tcp -m multiport --ports 5000:5001 -j DROP";
    let undo = "iptables-nft -D FORWARD -p tcp -m multiport --ports 5000:5001 -j DROP";
    are_decided(&lab, &[(RIGHT4, false), (RIGHT4, true)], &[Change(rule, undo)], |_| Ok(()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_of_docker_before_connection_tracking_are_remembered() -> Result<()> {
    let lab = lab_with_gro()?;
    run_all(&lab, &DOCKER)?;
    // An address that becomes the router's own is not forwarded to. (The kernel would reset a connection of TCP.)
    let own = Change("ip addr add 198.18.2.2/32 dev lo", "ip addr del 198.18.2.2/32 dev lo");
    let raw = Change(
        "iptables-nft -t raw -A PREROUTING -d 198.18.2.2/32 ! -i docker0 -j DROP",
        "iptables-nft -t raw -D PREROUTING -d 198.18.2.2/32 ! -i docker0 -j DROP",
    );
    are_decided(&lab, &[(RIGHT4, false)], &[own, raw], |_| Ok(()))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_filter_of_the_reverse_path_follows_routes() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, FIREWALLD)?;
    // To the client, by the other interface.
    let route = Change(
        "ip -6 route add 2001:db8:1::2/128 dev rt-right",
        "ip -6 route del 2001:db8:1::2/128 dev rt-right",
    );
    let dropped = |running: &Ferroute| {
        let rules = running.json(&["rules", "show"])?;
        let chains = rules[0]["chains"].as_array().context("chains")?;
        let raw = chains.iter().find(|chain| chain["name"] == "raw_PREROUTING");
        let counter = &raw.context("raw")?["rules"][1]["counters"][0];
        ensure!(counter["packets"].as_u64() > Some(0), "it is not the filter that drops: {raw:?}");
        Ok(())
    };
    are_decided(&lab, &[(RIGHT4, true), (RIGHT6, true), (RIGHT6, false)], &[route], dropped)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn packets_with_the_mark_of_their_connection_are_routed_by_it() -> Result<()> {
    let lab = lab_with_gro()?;
    nft(&lab.router, UPLINKS)?;
    run_all(
        &lab,
        &[
            "ip route add 198.18.2.0/24 dev rt-right table 100",
            "ip route add 198.18.1.0/24 dev rt-left table 100",
            "ip rule add fwmark 7 lookup 100 prio 100",
        ],
    )?;
    let route = Change(
        "ip route add blackhole 198.18.2.2/32 table 100",
        "ip route del blackhole 198.18.2.2/32 table 100",
    );
    let rule =
        Change("ip rule add fwmark 7 blackhole prio 50", "ip rule del fwmark 7 blackhole prio 50");
    are_decided(&lab, &[(RIGHT4, true), (RIGHT4, false)], &[route, rule], |_| Ok(()))
}
