//! Connections with NAT: the kernel chooses addresses and ports, and userspace translates packets of established
//! connections.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ferroute_tests::conversation::{Conversation, PORT, are_carried, nft};
use ferroute_tests::lab::addr::{
    LEFT4, LEFT6, RIGHT4, RIGHT6, RT_LEFT4, RT_LEFT6, RT_RIGHT4, RT_RIGHT6,
};
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};

/// Forwards established connections and new ones to the server, whose address and port must have been translated
/// before.
const FILTER: &str = "
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related counter accept
        ct state new meta l4proto { tcp, udp } th dport 5001 counter accept
    }
}
";

fn at(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, port))
}

/// A translation, and who talks to whom.
struct Case {
    /// Chains of `table inet nat`.
    nat: &'static str,
    /// What the client connects to, and where its server listens, for each family.
    to: [(&'static str, u16); 2],
    at: [(&'static str, u16); 2],
    /// The client's addresses as the server sees them.
    seen: [&'static str; 2],
    /// The client's port as the server sees it; empty: any.
    ports: std::ops::Range<u16>,
}

const SERVERS: [(&str, u16); 2] = [(RIGHT4, PORT), (RIGHT6, PORT)];

const CASES: &[(&str, Case)] = &[
    (
        "masquerade",
        Case {
            nat: "chain post { type nat hook postrouting priority srcnat; \
                  oifname rt-right masquerade; }",
            to: SERVERS,
            at: SERVERS,
            seen: [RT_RIGHT4, RT_RIGHT6],
            ports: 0..0,
        },
    ),
    (
        "masquerade to other ports",
        Case {
            nat: "chain post { type nat hook postrouting priority srcnat; \
                  oifname rt-right meta l4proto { tcp, udp } masquerade to :2000-2999 random; }",
            to: SERVERS,
            at: SERVERS,
            seen: [RT_RIGHT4, RT_RIGHT6],
            ports: 2000..3000,
        },
    ),
    (
        "source NAT to a pool",
        Case {
            nat: "chain post { type nat hook postrouting priority srcnat; \
                  meta nfproto ipv4 meta l4proto { tcp, udp } snat ip to 203.0.113.5:3000-3999; \
                  meta nfproto ipv6 snat ip6 to 2001:db8:77::5; }",
            to: SERVERS,
            at: SERVERS,
            seen: ["203.0.113.5", "2001:db8:77::5"],
            ports: 0..0,
        },
    ),
    (
        "a forwarded port",
        Case {
            nat: "chain pre { type nat hook prerouting priority dstnat; \
                  iifname rt-left meta nfproto ipv4 meta l4proto { tcp, udp } th dport 8080 \
                  dnat ip to 198.18.2.2:5001; \
                  iifname rt-left meta nfproto ipv6 meta l4proto { tcp, udp } th dport 8080 \
                  dnat ip6 to [2001:db8:2::2]:5001; }",
            to: [(RT_LEFT4, 8080), (RT_LEFT6, 8080)],
            at: SERVERS,
            seen: [LEFT4, LEFT6],
            ports: 0..0,
        },
    ),
    (
        "both ends, by address of the far side",
        Case {
            nat: "chain pre { type nat hook prerouting priority dstnat; \
                  ip daddr 198.18.2.1 meta l4proto { tcp, udp } th dport 8080 \
                  dnat ip to 198.18.2.2:5001; \
                  ip6 daddr 2001:db8:2::1 meta l4proto { tcp, udp } th dport 8080 \
                  dnat ip6 to [2001:db8:2::2]:5001; }; \
                  chain post { type nat hook postrouting priority srcnat; \
                  ct status dnat masquerade; }",
            to: [(RT_RIGHT4, 8080), (RT_RIGHT6, 8080)],
            at: SERVERS,
            seen: [RT_RIGHT4, RT_RIGHT6],
            ports: 0..0,
        },
    ),
    (
        "a hairpin",
        Case {
            nat: "chain pre { type nat hook prerouting priority dstnat; \
                  ip daddr 198.18.2.1 meta l4proto { tcp, udp } th dport 8080 \
                  dnat ip to 198.18.1.9:5001; \
                  ip6 daddr 2001:db8:2::1 meta l4proto { tcp, udp } th dport 8080 \
                  dnat ip6 to [2001:db8:1::9]:5001; }; \
                  chain post { type nat hook postrouting priority srcnat; \
                  iifname rt-left oifname rt-left masquerade; }",
            to: [(RT_RIGHT4, 8080), (RT_RIGHT6, 8080)],
            at: [("198.18.1.9", PORT), ("2001:db8:1::9", PORT)],
            seen: [RT_LEFT4, RT_LEFT6],
            ports: 0..0,
        },
    ),
    (
        "whole prefixes",
        Case {
            nat: "chain pre { type nat hook prerouting priority dstnat; \
                  dnat ip prefix to ip daddr map { 192.0.2.0/24 : 198.18.2.0/24 }; \
                  dnat ip6 prefix to ip6 daddr map { 2001:db8:66::/64 : 2001:db8:2::/64 }; }; \
                  chain post { type nat hook postrouting priority srcnat; \
                  snat ip prefix to ip saddr map { 198.18.1.0/24 : 203.0.113.0/24 }; \
                  snat ip6 prefix to ip6 saddr map { 2001:db8:1::/64 : 2001:db8:77::/64 }; }",
            to: [("192.0.2.2", PORT), ("2001:db8:66::2", PORT)],
            at: SERVERS,
            seen: ["203.0.113.2", "2001:db8:77::2"],
            ports: 0..0,
        },
    ),
];

/// The lines of `conntrack -L` about the server's port, without what changes.
fn entries(router: &Netns) -> Result<Vec<String>> {
    let listed = router.run("conntrack -L -f ipv4")? + &router.run("conntrack -L -f ipv6")?;
    let lines = listed.lines().filter(|line| line.contains("port=5001"));
    let tuples = lines.map(|line| {
        let fields = line.split_whitespace();
        fields.filter(|field| field.contains("src=") || field.contains("port=")).collect()
    });
    Ok(tuples.collect())
}

fn translated(name: &str, case: &Case) -> Result<()> {
    let lab = Lab::up()?;
    // Answers return only if the source was translated, or by a route to the addresses that were chosen.
    for family in ["-4", "-6"] {
        lab.right.run(&format!("ip {family} route del default"))?;
    }
    for (route, by) in [("203.0.113.0/24", RT_RIGHT4), ("2001:db8:77::/64", RT_RIGHT6)] {
        lab.right.run(&format!("ip route add {route} via {by}"))?;
    }
    if case.seen == [LEFT4, LEFT6] {
        lab.right.run(&format!("ip route add 198.18.1.0/24 via {RT_RIGHT4}"))?;
        lab.right.run(&format!("ip route add 2001:db8:1::/64 via {RT_RIGHT6}"))?;
    }
    lab.left.run("ip addr add 198.18.1.9/24 dev left")?;
    lab.left.run("ip addr add 2001:db8:1::9/64 dev left nodad preferred_lft 0")?;
    // Redirects for packets that return to their link are the kernel's.
    for name in ["all", "rt-left"] {
        lab.router.sysctl(&format!("net/ipv4/conf/{name}/send_redirects"), "0")?;
    }
    nft(&lab.router, &format!("{FILTER}\ntable inet nat {{ {}; }}", case.nat))?;
    let mut running = Ferroute::start(&lab)?;
    let mut talks = Vec::new();
    for is_tcp in [true, false] {
        for (family, right) in SERVERS.iter().enumerate() {
            let (to, server) = (case.to[family], case.at[family]);
            let host = if server.0 == right.0 { &lab.right } else { &lab.left };
            let (to, server) = (at(to.0, to.1)?, at(server.0, server.1)?);
            let talk = Conversation::between(&lab.left, to, host, server, is_tcp)?;
            let seen: IpAddr = case.seen[family].parse()?;
            ensure!(talk.peer.ip() == seen, "{name}: the server sees {}", talk.peer);
            let is_in_range = case.ports.is_empty() || case.ports.contains(&talk.peer.port());
            ensure!(is_in_range, "{name}: the server sees {}", talk.peer);
            talks.push(talk);
        }
    }
    let all: Vec<&Conversation> = talks.iter().collect();
    let before = entries(&lab.router)?;
    ensure!(before.len() == 4, "{name}: {before:#?}");
    for round in 0..2 {
        ensure!(are_carried(&running, &all), "{name}, {round}: {}", running.account());
        ensure!(entries(&lab.router)? == before, "{name}: {:#?}", entries(&lab.router)?);
        if ferroute::by_kernel() {
            return Ok(());
        }
        let status = running.json(&["status"])?;
        ensure!(status["carried_flows"] == 4, "{name}: {status}");
        running.kill()?;
        ensure!(all.iter().all(|it| it.goes_on()), "{name}, {round}: a connection died");
        running = Ferroute::start(&lab)?;
    }
    ensure!(are_carried(&running, &all), "{name}: {}", running.account());
    drop(talks);
    let closed = || {
        lab.router.run("conntrack -L -p tcp").is_ok_and(|listed| !listed.contains("ESTABLISHED"))
    };
    ensure!(eventually(closed), "{name}: {}", lab.router.run("conntrack -L")?);
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn translated_connections_are_carried_and_survive_a_kill() -> Result<()> {
    CASES.iter().try_for_each(|(name, case)| translated(name, case))
}

/// A masqueraded connection whose route changes to another interface has the wrong source address there: the
/// kernel ends it.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_masqueraded_connection_ends_when_its_route_changes() -> Result<()> {
    let lab = Lab::up()?;
    lab.router
        .run(&format!("ip link add up2 type veth peer name up2 netns {}right", lab.prefix()))?;
    for (host, address) in [(&lab.router, "198.18.7.1"), (&lab.right, "198.18.7.2")] {
        host.run("ip link set up2 up")?;
        host.run(&format!("ip addr add {address}/24 dev up2"))?;
        host.sysctl("net/ipv4/conf/up2/rp_filter", "0")?;
    }
    lab.right.run("ip addr add 192.0.2.1/32 dev right")?;
    lab.router.run("ip route add 192.0.2.1 via 198.18.2.2")?;
    nft(
        &lab.router,
        &format!(
            "{FILTER}\ntable ip nat {{ chain post {{ type nat hook postrouting priority srcnat; \
             oifname {{ rt-right, up2 }} masquerade; }}; }}"
        ),
    )?;
    let running = Ferroute::start_with(&lab, &["-i", "up2"])?;
    let talk = Conversation::start(&lab, "192.0.2.1", true)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    lab.router.run("ip route replace 192.0.2.1 via 198.18.7.2 dev up2")?;
    let changed = Instant::now();
    let after = talk.end()?.saturating_duration_since(changed);
    ensure!(after < Duration::from_millis(100), "it goes on for {after:?}");
    Ok(())
}

/// Chains of type nat that are deleted: the kernel translates no packet any more, of no connection.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn nothing_is_translated_without_chains_of_type_nat() -> Result<()> {
    let lab = Lab::up()?;
    lab.right.run("ip route del default")?;
    nft(
        &lab.router,
        &format!(
            "{FILTER}\ntable ip nat {{ chain post {{ type nat hook postrouting priority srcnat; \
             oifname rt-right masquerade; }}; }}"
        ),
    )?;
    let running = Ferroute::start(&lab)?;
    let talk = Conversation::start(&lab, RIGHT4, false)?;
    ensure!(are_carried(&running, &[&talk]), "the kernel forwards: {}", running.account());
    lab.router.run("nft delete table ip nat")?;
    let deleted = Instant::now();
    let after = talk.end()?.saturating_duration_since(deleted);
    ensure!(after < Duration::from_millis(100), "it goes on for {after:?}");
    Ok(())
}
