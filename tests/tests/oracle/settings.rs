//! Settings, rules and routes that restrict forwarding, one after another with a running Ferroute: after
//! each the kernel and Ferroute must forward the same packets by the same output.
//!
//! State that existed before Ferroute starts has its own test: the kernel remembers some of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::{EVENT_TIMEOUT, Ferroute};

use crate::probe::{self, Probe, differences, forwarded};
use crate::world::World;

/// Settings without notifications are read several times per second.
const FOLLOW_TIME: Duration = Duration::from_millis(300);

/// If more differ after one change, only their number is printed.
const DIFFERENCES_TOLD: usize = 12;

/// A change and the commands that undo it, one per line.
type Case = (&'static str, &'static str);

const SYSCTLS: &[Case] = &[
    (
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=1",
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=2",
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=3",
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=0",
    ),
    ("sysctl -qw net.ipv4.conf.all.rp_filter=1", "sysctl -qw net.ipv4.conf.all.rp_filter=0"),
    ("sysctl -qw net.ipv4.conf.all.accept_local=1", "sysctl -qw net.ipv4.conf.all.accept_local=0"),
    (
        "sysctl -qw net.ipv4.conf.rt-left.accept_local=1
         sysctl -qw net.ipv4.conf.rt-left.rp_filter=2",
        "sysctl -qw net.ipv4.conf.rt-left.accept_local=0
         sysctl -qw net.ipv4.conf.rt-left.rp_filter=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-left.route_localnet=1",
        "sysctl -qw net.ipv4.conf.rt-left.route_localnet=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.all.route_localnet=1",
        "sysctl -qw net.ipv4.conf.all.route_localnet=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-left.src_valid_mark=1",
        "sysctl -qw net.ipv4.conf.rt-left.src_valid_mark=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.all.bc_forwarding=1
         sysctl -qw net.ipv4.conf.rt-left.bc_forwarding=1",
        "sysctl -qw net.ipv4.conf.all.bc_forwarding=0
         sysctl -qw net.ipv4.conf.rt-left.bc_forwarding=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-left.drop_unicast_in_l2_multicast=1
         sysctl -qw net.ipv6.conf.rt-left.drop_unicast_in_l2_multicast=1",
        "sysctl -qw net.ipv4.conf.rt-left.drop_unicast_in_l2_multicast=0
         sysctl -qw net.ipv6.conf.rt-left.drop_unicast_in_l2_multicast=0",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-left.forwarding=0",
        "sysctl -qw net.ipv4.conf.rt-left.forwarding=1",
    ),
    (
        "sysctl -qw net.ipv4.conf.rt-right.forwarding=0",
        "sysctl -qw net.ipv4.conf.rt-right.forwarding=1",
    ),
    ("sysctl -qw net.ipv4.ip_forward_use_pmtu=1", "sysctl -qw net.ipv4.ip_forward_use_pmtu=0"),
    ("sysctl -qw net.ipv6.conf.all.forwarding=0", "sysctl -qw net.ipv6.conf.all.forwarding=1"),
    ("sysctl -qw net.ipv6.conf.all.proxy_ndp=1", "sysctl -qw net.ipv6.conf.all.proxy_ndp=0"),
    (
        "ip neigh add proxy 2001:db8:2::2 dev rt-left
         sysctl -qw net.ipv6.conf.all.proxy_ndp=1",
        "sysctl -qw net.ipv6.conf.all.proxy_ndp=0
         ip neigh del proxy 2001:db8:2::2 dev rt-left",
    ),
    ("sysctl -qw net.ipv6.max_hbh_opts_number=3", "sysctl -qw net.ipv6.max_hbh_opts_number=8"),
    ("sysctl -qw net.ipv6.max_hbh_opts_number=0", "sysctl -qw net.ipv6.max_hbh_opts_number=8"),
    ("sysctl -qw net.ipv6.max_hbh_opts_number=-4", "sysctl -qw net.ipv6.max_hbh_opts_number=8"),
    ("sysctl -qw net.ipv6.max_hbh_opts_number=100", "sysctl -qw net.ipv6.max_hbh_opts_number=8"),
    ("sysctl -qw net.ipv6.max_hbh_length=16", "sysctl -qw net.ipv6.max_hbh_length=2147483647"),
    ("sysctl -qw net.ipv6.max_hbh_length=0", "sysctl -qw net.ipv6.max_hbh_length=2147483647"),
    (
        "sysctl -qw net.ipv6.conf.rt-left.ioam6_enabled=1",
        "sysctl -qw net.ipv6.conf.rt-left.ioam6_enabled=0",
    ),
    (
        "sysctl -qw net.ipv6.conf.rt-left.seg6_enabled=1",
        "sysctl -qw net.ipv6.conf.rt-left.seg6_enabled=0",
    ),
    (
        "ip link set rt-right arp off",
        "ip link set rt-right arp on
         ip neigh replace 198.18.2.2 dev rt-right lladdr 02:f0:00:00:02:02 nud permanent
         ip neigh replace 198.18.2.3 dev rt-right lladdr 02:f0:00:00:02:02 nud permanent
         ip neigh replace 2001:db8:2::2 dev rt-right lladdr 02:f0:00:00:02:02 nud permanent
         ip neigh replace 2001:db8:2::3 dev rt-right lladdr 02:f0:00:00:02:02 nud permanent",
    ),
    (
        "sysctl -qw net.ipv6.conf.all.forwarding=0
         sysctl -qw net.ipv6.conf.rt-left.force_forwarding=1",
        "sysctl -qw net.ipv6.conf.rt-left.force_forwarding=0
         sysctl -qw net.ipv6.conf.all.forwarding=1",
    ),
];

const ROUTES: &[Case] = &[
    ("ip route add default via 198.18.2.3", "ip route del default"),
    (
        "ip route add default via 198.18.2.3
         ip route add unreachable 10.0.0.0/8 metric 4278198272",
        "ip route del default
         ip route del unreachable 10.0.0.0/8",
    ),
    (
        "ip route add blackhole default
         ip route add default via 198.18.2.3 table default",
        "ip route del blackhole default
         ip route flush table default",
    ),
    ("ip route add local 10.77.0.0/16 dev lo", "ip route del local 10.77.0.0/16 dev lo"),
    (
        "ip route add default via 198.18.2.3
         ip route add local 10.77.0.0/16 dev lo table 50",
        "ip route del default
         ip route flush table 50",
    ),
    (
        "ip route add local 10.76.0.0/14 dev lo
         ip route add 10.77.0.0/16 via 198.18.2.3",
        "ip route del local 10.76.0.0/14 dev lo
         ip route del 10.77.0.0/16",
    ),
    (
        "ip route add broadcast 10.77.0.0/16 dev rt-left table local
         ip route add default via 198.18.2.3",
        "ip route del broadcast 10.77.0.0/16 table local
         ip route del default",
    ),
    (
        "ip route add default via 198.18.2.3
         ip route add throw 10.77.0.0/16
         ip route add multicast 10.78.0.0/16 dev rt-right",
        "ip route del default
         ip route del throw 10.77.0.0/16
         ip route del multicast 10.78.0.0/16",
    ),
    (
        "ip route add 10.77.0.0/16 via 198.18.2.3 tos 0x10
         ip route add 10.78.0.0/16 dev lo",
        "ip route del 10.77.0.0/16 tos 0x10
         ip route del 10.78.0.0/16",
    ),
    (
        "ip route add 10.77.0.0/16 via 10.200.0.1 dev rt-right onlink
         ip neigh replace 10.200.0.1 dev rt-right lladdr 02:f0:00:00:02:02 nud permanent",
        "ip route del 10.77.0.0/16
         ip neigh del 10.200.0.1 dev rt-right",
    ),
    (
        "ip route add 10.77.0.0/16 via 198.18.2.3 realms 7
         ip route add 10.78.0.0/16 via 198.18.2.3",
        "ip route del 10.77.0.0/16
         ip route del 10.78.0.0/16",
    ),
    (
        "ip nexthop add id 5 group 2
         ip route add 10.77.0.0/16 nhid 5",
        "ip route del 10.77.0.0/16
         ip nexthop del id 5",
    ),
    ("ip nexthop replace id 1 blackhole", "ip nexthop replace id 1 via 198.18.2.3 dev rt-right"),
    (
        "ip addr add 198.18.1.9/24 brd 198.18.1.77 dev rt-left",
        "ip addr del 198.18.1.9/24 dev rt-left",
    ),
    ("ip addr add 10.77.0.5/32 dev lo", "ip addr del 10.77.0.5/32 dev lo"),
    (
        "ip route add blackhole 10.76.0.0/14 table local
         ip route add 10.77.0.0/16 via 198.18.2.3",
        "ip route del blackhole 10.76.0.0/14 table local
         ip route del 10.77.0.0/16",
    ),
    ("ip -6 route add default via 2001:db8:2::3", "ip -6 route del default"),
    (
        "ip -6 route add default from 2001:db8:1::/64 via 2001:db8:2::3
         ip -6 route add unreachable 2001:db8:78::/48 from 2001:db8:1::/64",
        "ip -6 route del default from 2001:db8:1::/64
         ip -6 route del unreachable 2001:db8:78::/48 from 2001:db8:1::/64",
    ),
    (
        "ip -6 route add default via 2001:db8:2::3 metric 5 pref low
         ip -6 route append default via 2001:db8:2::2 metric 5 proto ra pref high
         ip -6 route add unreachable default metric 4",
        "ip -6 route del unreachable default metric 4
         ip -6 route flush proto ra
         ip -6 route del default",
    ),
    (
        "ip -6 route add 2001:db8:77::/48 dev lo
         ip -6 route add local 2001:db8:78::/48 dev lo",
        "ip -6 route del 2001:db8:77::/48 dev lo
         ip -6 route del local 2001:db8:78::/48 dev lo",
    ),
    (
        "ip -6 route add 2001:db8:77::/48 via 2001:db8:2::3 expires 1
         sleep 1.1",
        "ip -6 route flush 2001:db8:77::/48",
    ),
    (
        "ip -6 route add anycast 2001:db8:77::/48 dev rt-right
         ip -6 route add throw 2001:db8:78::/48",
        "ip -6 route flush 2001:db8:77::/48
         ip -6 route flush 2001:db8:78::/48",
    ),
];

/// With these the kernel has had its own rules changed, which it remembers.
const RULES: &[Case] = &[
    ("ip -6 rule del pref 32766", "ip -6 rule add pref 32766 lookup main"),
    ("ip -6 rule del pref 0", "ip -6 rule add pref 0 lookup local"),
    (
        "ip route add blackhole default table 100
         ip -6 route add blackhole default table 100
         ip rule add pref 500 lookup 100 suppress_prefixlength 0
         ip -6 rule add pref 500 lookup 100 suppress_prefixlength 0",
        "ip route flush table 100
         ip -6 route flush table 100
         ip rule del pref 500
         ip -6 rule del pref 500",
    ),
    (
        "ip route add unreachable 10.0.0.0/8 table 100
         ip route add 10.77.0.0/16 via 198.18.2.3 table 100
         ip route add default via 198.18.2.2
         ip rule add pref 500 lookup 100 suppress_prefixlength 16",
        "ip route flush table 100
         ip route del default
         ip rule del pref 500",
    ),
    (
        "ip route add prohibit 10.77.0.0/16 table 100
         ip route add 10.0.0.0/8 via 198.18.2.3 table 100
         ip route add throw default table 100
         ip route add default via 198.18.2.2
         ip rule add pref 500 lookup 100 suppress_prefixlength 31",
        "ip route flush table 100
         ip route del default
         ip rule del pref 500",
    ),
    (
        "ip route add default via 198.18.2.3 table 100
         ip -6 route add default via 2001:db8:2::3 table 100
         ip rule add pref 500 lookup main suppress_prefixlength 0
         ip rule add pref 501 lookup 100 suppress_ifgroup 0
         ip rule add pref 502 unreachable
         ip -6 rule add pref 500 lookup main suppress_prefixlength 64
         ip -6 rule add pref 501 lookup 100",
        "ip route flush table 100
         ip -6 route flush table 100
         ip rule del pref 500
         ip rule del pref 501
         ip rule del pref 502
         ip -6 rule del pref 500
         ip -6 rule del pref 501",
    ),
    (
        "ip rule add pref 100 lookup local
         ip -6 rule add pref 100 lookup local
         ip rule del pref 0
         ip -6 rule del pref 0
         ip rule add pref 50 from 198.18.1.66 blackhole
         ip -6 rule add pref 50 from 2001:db8:1::66 blackhole",
        "ip rule add pref 0 lookup local
         ip -6 rule add pref 0 lookup local
         ip rule del pref 100
         ip -6 rule del pref 100
         ip rule del pref 50
         ip -6 rule del pref 50",
    ),
    (
        "ip rule del pref 0
         ip route add default via 198.18.2.3",
        "ip rule add pref 0 lookup local
         ip route del default",
    ),
    (
        "ip rule add pref 500 iif rt-left goto 600
         ip rule add pref 501 not from 198.18.1.0/24 prohibit
         ip rule add pref 502 iif lo unreachable
         ip rule add pref 503 oif rt-right unreachable
         ip rule add pref 600 to 203.0.113.0/24 unreachable
         ip rule add pref 600 to 203.0.113.0/24 lookup main",
        "ip rule del pref 500
         ip rule del pref 501
         ip rule del pref 502
         ip rule del pref 503
         ip rule del pref 600
         ip rule del pref 600",
    ),
    (
        "ip rule add pref 500 not oif rt-right to 203.0.113.0/24 prohibit
         ip rule add pref 501 goto 4000
         ip rule add pref 502 not fwmark 0/0xff unreachable
         ip rule add pref 503 lookup 4711
         ip rule add pref 504 nop",
        "ip rule del pref 500
         ip rule del pref 501
         ip rule del pref 502
         ip rule del pref 503
         ip rule del pref 504",
    ),
    (
        "ip rule add pref 500 ipproto udp dport 4001 prohibit
         ip -6 rule add pref 500 ipproto udp sport 4000-4100 prohibit",
        "ip rule del pref 500
         ip -6 rule del pref 500",
    ),
    (
        "ip rule add pref 500 not ipproto tcp blackhole
         ip rule add pref 501 uidrange 0-0 blackhole
         ip -6 rule add pref 500 tos 0x10 blackhole
         ip -6 rule add pref 501 tun_id 7 blackhole",
        "ip rule del pref 500
         ip rule del pref 501
         ip -6 rule del pref 500
         ip -6 rule del pref 501",
    ),
    (
        "ip route add local 10.77.0.0/16 dev lo table 100
         ip rule add pref 500 lookup 100
         ip route add default via 198.18.2.3",
        "ip rule del pref 500
         ip route flush table 100
         ip route del default",
    ),
    (
        "ip rule add pref 500 from 198.18.1.66 lookup 100
         ip route add default via 198.18.2.3 table 100
         sysctl -qw net.ipv4.conf.rt-left.rp_filter=1",
        "sysctl -qw net.ipv4.conf.rt-left.rp_filter=0
         ip route flush table 100
         ip rule del pref 500",
    ),
];

/// State that existed before Ferroute started, and that the kernel remembers.
const BEFORE: &[(&str, &str)] = &[
    ("nothing", ""),
    ("a rule", "ip rule add pref 500 lookup 100\nip rule del pref 500"),
    (
        "a rule, and there is a route that the local table comes before",
        "ip rule add pref 500 lookup 100
         ip rule del pref 500
         ip route add blackhole 10.76.0.0/14 table local
         ip route add 10.77.0.0/16 via 198.18.2.3",
    ),
    ("a local route", "ip route add local 10.77.0.0/16 dev lo table 50\nip route flush table 50"),
    ("a rule of IPv6", "ip -6 rule add pref 500 lookup 100\nip -6 rule del pref 500"),
];

fn run(worlds: [&World; 2], commands: &str) -> Result<()> {
    for line in commands.lines().map(str::trim).filter(|line| !line.is_empty() && is_known(line)) {
        for world in worlds {
            world.lab.router.run(line)?;
        }
    }
    Ok(())
}

/// Older kernels do not have every sysctl.
fn is_known(line: &str) -> bool {
    let Some(key) = line.strip_prefix("sysctl -qw ").and_then(|set| set.split('=').next()) else {
        return true;
    };
    // Per-interface settings exist for every interface.
    let path = key.replace('.', "/").replace("/rt-left/", "/lo/").replace("/rt-right/", "/lo/");
    std::path::Path::new("/proc/sys").join(path).exists()
}

/// Waits until both forward the same packets; remaining differences are the error.
fn agree(worlds: [&World; 2], probes: &[Probe]) -> Result<usize> {
    let end = Instant::now() + EVENT_TIMEOUT / 6;
    loop {
        let both = forwarded(worlds, probes)?;
        let differences = differences(probes, &both);
        if differences.is_empty() {
            return Ok(both[0].len());
        }
        let some = &differences[..differences.len().min(DIFFERENCES_TOLD)];
        ensure!(Instant::now() < end, "{} differ:\n{}", differences.len(), some.join("\n"));
        std::thread::sleep(FOLLOW_TIME);
    }
}

/// Applies and undoes each case; the error lists all that differ.
fn cases_agree(cases: &[Case]) -> Result<()> {
    let (kernel, world) = (World::without_rules()?, World::without_rules()?);
    let worlds = [&kernel, &world];
    let mut ferroute = Ferroute::start(&world.lab)?;
    let probes = probe::all();
    let before = agree(worlds, &probes).context("before anything was changed")?;
    let mut wrong = Vec::new();
    for (change, undo) in cases {
        run(worlds, change)?;
        std::thread::sleep(FOLLOW_TIME);
        match agree(worlds, &probes) {
            Ok(forwarded) => println!("{forwarded} of {} forwarded with\n{change}", probes.len()),
            Err(error) => wrong.push(format!("with\n{change}\n{error:#}")),
        }
        run(worlds, undo)?;
    }
    std::thread::sleep(FOLLOW_TIME);
    ensure!(agree(worlds, &probes)? >= before / 2, "too little is forwarded at the end");
    ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    ensure!(ferroute.is_running(), "ferroute has ended\n{}", ferroute.said());
    ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn sysctls_let_through_what_the_kernel_does() -> Result<()> {
    cases_agree(SYSCTLS)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn routes_let_through_what_the_kernel_does() -> Result<()> {
    cases_agree(ROUTES)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rules_let_through_what_the_kernel_does() -> Result<()> {
    cases_agree(RULES)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn packets_that_depend_on_earlier_state_are_left_to_the_kernel() -> Result<()> {
    for (what, commands) in BEFORE {
        let (kernel, world) = (World::without_rules()?, World::without_rules()?);
        run([&kernel, &world], commands)?;
        let _ferroute = Ferroute::start(&world.lab)?;
        agree([&kernel, &world], &probe::all()).with_context(|| format!("there was {what}"))?;
    }
    Ok(())
}
