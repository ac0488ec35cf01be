//! Random commands that change what is mirrored.

use super::random::Rng;

const PREFIXES4: &[&str] =
    &["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.2.0.0/16", "10.0.0.128/25", "default"];
const PREFIXES6: &[&str] = &[
    "2001:db8:5::/48",
    "2001:db8:5:1::/64",
    "2001:db8:5:1::9/128",
    "2001:db8:6::/48",
    "2001:db8::8000:0/98",
    "default",
];
const HOPS4: &[&str] = &[
    "via 10.0.0.2",
    "via 10.0.0.3",
    "via 10.0.1.2",
    "via 10.0.1.3 mtu 1300",
    "dev va",
    "dev vc src 10.0.0.1",
    "via inet6 fe80::1 dev va",
    "via 10.7.7.7 dev vc onlink",
    "nexthop via 10.0.0.2 weight 3 nexthop via 10.0.1.2",
    "nexthop via 10.0.1.2 nexthop via 10.0.0.4 nexthop via 10.0.0.5 weight 2",
    "nexthop via 10.0.0.2 weight 256 nexthop via 10.0.1.2 weight 1",
    "nexthop via inet6 fe80::1 dev va nexthop via 10.0.1.2",
    "nhid 1",
    "nhid 2",
    "nhid 7",
    "nhid 10",
];
const HOPS6: &[&str] = &[
    "via 2001:db8::2",
    "via 2001:db8::3",
    "via 2001:db8:1::2",
    "via 2001:db8:1::3 mtu 1300",
    "via fe80::5 dev vc",
    "dev va",
    "dev vc",
    "nexthop via 2001:db8::2 nexthop via 2001:db8:1::2",
    "nexthop via 2001:db8:1::4 weight 2 nexthop via 2001:db8::5 weight 3",
    "nexthop via 2001:db8:1::4 weight 256 nexthop via fe80::5 dev vc",
    "via fe80::f1 dev va",
    "nhid 3",
    "nhid 4",
    "nhid 11",
];
const SPECIAL: &[&str] = &["blackhole", "unreachable", "prohibit", "throw"];
const VERBS: &[&str] = &["add", "append", "prepend", "replace", "replace", "del", "del", "change"];

fn route(rng: &mut Rng, expires: bool) -> String {
    let v6 = rng.below(2) == 0;
    let verb = rng.pick(VERBS);
    let prefix = rng.pick(if v6 { PREFIXES6 } else { PREFIXES4 });
    let special = rng.below(5) == 0;
    let (kind, hops) = if special {
        (rng.pick(SPECIAL), "")
    } else {
        ("", rng.pick(if v6 { HOPS6 } else { HOPS4 }))
    };
    // Deletions often omit the next hop, as people do.
    let hops = if verb == "del" && rng.below(2) == 0 { "" } else { hops };
    let by_dev = v6 && (special || hops.starts_with("dev"));
    let metric = match rng.below(4) {
        // A dump of the kernel omits routes between the hops of an IPv6 multipath route
        // (fib6_dump_node), so routes that cannot be hops get another metric.
        _ if by_dev => "metric 6",
        0 => "metric 5",
        1 => rng.pick(&["metric 700", "metric 1024", "metric 0"]),
        _ => "",
    };
    let table = if rng.below(4) == 0 { "table 100" } else { "" };
    let protocol = if rng.below(5) == 0 { rng.pick(&["proto static", "proto ra"]) } else { "" };
    let expires = match (v6, rng.below(6)) {
        (true, 0) if expires => rng.pick(&["expires 1", "expires 2", "expires 900"]),
        _ => "",
    };
    let family = if v6 { "-6" } else { "-4" };
    // The attributes of the route precede its next hops.
    let (first, hops) = if hops.starts_with("nexthop") { ("", hops) } else { (hops, "") };
    format!(
        "ip {family} route {verb} {kind} {prefix} {first} {metric} {table} {protocol} {expires} {hops}"
    )
}

fn nexthop(rng: &mut Rng, is_silent: bool) -> String {
    if is_silent && rng.below(12) == 0 {
        return "ip nexthop replace id 12 group 3/4 type resilient buckets 4".to_owned();
    }
    let object = rng.pick(&[
        "id 1 via 10.0.0.9 dev va",
        "id 1 via 10.0.1.9 dev vc",
        "id 2 via 10.0.1.8 dev vc",
        "id 3 via 2001:db8::9 dev va",
        "id 4 via 2001:db8:1::9 dev vc",
        "id 7 blackhole",
        "id 10 group 1,2/2,5",
        "id 10 group 1/2",
        "id 10 group 1,255/2,1/7",
        "id 10 group 7",
        "id 10 group 1,256/2",
        "id 11 group 3/4,2",
        "id 11 group 4,255/3",
        "id 11 group 3",
        // Refused: a group of a group, of both families, with a blackhole beside others.
        "id 12 group 10",
        "id 12 group 1/3",
        "id 1 blackhole",
        "id 3 via fe80::f1 dev va",
        "id 3 dev vc",
    ]);
    match rng.below(5) {
        0 => {
            format!("ip nexthop del id {}", rng.pick(&["1", "2", "3", "4", "7", "10", "11", "12"]))
        }
        1 => format!("ip nexthop add {object}"),
        _ => format!("ip nexthop replace {object}"),
    }
}

/// Removes the namespace's initial rules, and adds them again with the same or another priority.
const DEFAULT_RULES: &[&str] = &[
    "del pref 0",
    "add pref 0 lookup local",
    "add pref 550 lookup local",
    "del pref 550",
    "del pref 32766",
    "add pref 32766 lookup main",
    "add pref 450 lookup main",
    "del pref 450",
    "del pref 32767",
    "add pref 32767 lookup default",
];

fn rule(rng: &mut Rng) -> String {
    let family = rng.pick(&["-4", "-6"]);
    if rng.below(5) == 0 {
        return format!("ip {family} rule {}", rng.pick(DEFAULT_RULES));
    }
    let v4 = family == "-4";
    let from = if v4 { "from 10.99.0.0/16" } else { "from 2001:db8:99::/48" };
    let to = if v4 { "to 10.1.0.0/16" } else { "to 2001:db8:5::/48" };
    let selector = rng.pick(&[
        from,
        to,
        "iif va",
        "iif nowhere",
        "iif lo",
        "oif va",
        "fwmark 1/0xff",
        "ipproto udp",
        "",
        "",
        "",
    ]);
    let not = rng.pick(&["", "", "not"]);
    let action = rng.pick(&[
        "lookup 100",
        "lookup main",
        "lookup main suppress_prefixlength 0",
        "lookup main suppress_prefixlength 16",
        "lookup main suppress_prefixlength 48",
        "lookup 100 suppress_prefixlength 0",
        "lookup 100 suppress_prefixlength 24",
        "lookup 100 suppress_prefixlength 128",
        "lookup main suppress_ifgroup 0",
        "lookup 4711",
        "goto 600",
        "goto 650",
        "goto 32766",
        // Refused: a rule goes to later ones only.
        "goto 500",
        "goto 1",
        "nop",
        "prohibit",
        "unreachable",
        "blackhole",
    ]);
    // Mostly deletions, so that there are few rules at a time.
    let verb = rng.pick(&["add", "add", "del", "del", "del"]);
    let pref = rng.pick(&["500", "500", "501", "600", "40000"]);
    if verb == "del" {
        return format!("ip {family} rule del pref {pref}");
    }
    format!("ip {family} rule add {not} {selector} pref {pref} {action}")
}

fn link(rng: &mut Rng) -> String {
    rng.pick(&[
        "ip link set va down",
        "ip link set va up",
        "ip link set vc down",
        "ip link set vc up",
        "ip link set vb down",
        "ip link set vb up",
        "ip link set va up",
        "ip link set vc up",
        "ip link set vb up",
        "ip link set va mtu 1400",
        "ip link set va mtu 1500",
        "ip link add ve type veth peer name vf",
        "ip link set ve up",
        "ip link set ve name vg",
        "ip link set vg name ve",
        "ip link del ve",
        "ip route add 10.44.0.0/16 dev ve",
        "ip route add 10.45.0.0/16 via 10.0.3.2",
    ])
    .to_owned()
}

fn addr(rng: &mut Rng) -> String {
    rng.pick(&[
        "ip addr add 10.0.0.1/24 dev va",
        "ip addr add 10.0.0.1/24 brd + dev va",
        "ip addr add 10.0.0.100/24 dev va",
        "ip addr add 10.0.1.1/24 dev vc",
        "ip addr add 10.0.1.1/24 dev vc",
        "ip addr add 10.0.3.1/24 dev ve",
        "ip addr add 10.0.5.1 peer 10.0.5.2/30 dev vc",
        "ip addr del 10.0.0.1/24 dev va",
        "ip addr del 10.0.1.1/24 dev vc",
        "ip addr del 10.0.0.100/24 dev va",
        "ip addr add 2001:db8::1/64 dev va nodad",
        "ip addr add 2001:db8:1::1/64 dev vc nodad",
        "ip addr add 2001:db8::1/64 dev va nodad",
        "ip addr add 2001:db8:1::1/64 dev vc nodad",
        "ip addr del 2001:db8::1/64 dev va",
        "ip addr add 2001:db8::7/64 dev va nodad",
        "ip addr flush dev vc scope global",
    ])
    .to_owned()
}

fn neigh(rng: &mut Rng, is_silent: bool) -> String {
    let (addr, dev) = rng
        .pick(&[
            "10.0.0.2 va",
            "10.0.0.3 va",
            "10.0.1.2 vc",
            "2001:db8::2 va",
            "2001:db8:1::2 vc",
            "fe80::f1 va",
            "fe80::1 va",
        ])
        .split_once(' ')
        .expect("an address and an interface");
    if is_silent && rng.below(3) == 0 {
        let state = rng.pick(&["none", "failed", "incomplete", "delay", "probe"]);
        let verb = rng.pick(&["replace", "change"]);
        return format!("ip neigh {verb} {addr} dev {dev} nud {state}");
    }
    let states = [
        "permanent",
        "stale",
        "reachable",
        "failed",
        "noarp",
        "permanent extern_learn",
        "stale extern_learn",
        "permanent router",
    ];
    let state = rng.pick(&states);
    match rng.below(8) {
        0 => format!("ip neigh del {addr} dev {dev}"),
        1 => format!("ip neigh flush dev {dev}"),
        2 => format!("ip neigh replace proxy {addr} dev {dev}"),
        3 => format!("ip neigh del proxy {addr} dev {dev}"),
        n => format!("ip neigh replace {addr} lladdr 02:00:00:00:00:0{n} dev {dev} nud {state}"),
    }
}

fn sysctl(rng: &mut Rng) -> String {
    let of = rng.pick(&["all", "default", "va", "vc", "ve"]);
    let flag = rng.below(2);
    // Not rp_filter, which `ip route get` applies, and the lookup that is compared does not.
    match rng.below(5) {
        0 => {
            let key = rng.pick(&["ignore_routes_with_linkdown", "proxy_arp", "accept_local"]);
            format!("sysctl -w net.ipv4.conf.{of}.{key}={flag}")
        }
        1 => {
            let key = rng.pick(&[
                "send_redirects",
                "shared_media",
                "route_localnet",
                "promote_secondaries",
            ]);
            format!("sysctl -w net.ipv4.conf.{of}.{key}={flag}")
        }
        2 => {
            let key = rng.pick(&[
                "ignore_routes_with_linkdown",
                "proxy_ndp",
                "use_oif_addrs_only",
                "keep_addr_on_down",
            ]);
            format!("sysctl -w net.ipv6.conf.{of}.{key}={flag}")
        }
        3 => rng
            .pick(&[
                "sysctl -w net.ipv6.conf.va.disable_ipv6=1",
                "sysctl -w net.ipv6.conf.va.disable_ipv6=0",
                "sysctl -w net.ipv6.conf.va.disable_ipv6=0",
                "sysctl -w net.ipv6.conf.vc.disable_ipv6=1",
                "sysctl -w net.ipv6.conf.vc.disable_ipv6=0",
                "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
                "sysctl -w net.ipv6.conf.va.accept_ra=1",
                "sysctl -w net.ipv6.conf.va.accept_ra=2",
                "sysctl -w net.ipv6.conf.va.accept_ra=2",
                "sysctl -w net.ipv6.conf.va.mtu=1400",
                "sysctl -w net.ipv6.conf.va.hop_limit=37",
            ])
            .to_owned(),
        _ => rng
            .pick(&[
                "sysctl -w net.ipv4.nexthop_compat_mode=0",
                "sysctl -w net.ipv4.nexthop_compat_mode=1",
                "sysctl -w net.ipv4.fib_multipath_hash_policy=1",
                "sysctl -w net.ipv4.fib_multipath_hash_policy=3",
                "sysctl -w net.ipv6.fib_multipath_hash_policy=2",
                "sysctl -w net.ipv4.ip_default_ttl=63",
                "sysctl -w net.ipv4.icmp_ratelimit=0",
                "sysctl -w net.ipv6.icmp.ratelimit=100",
                "sysctl -w net.ipv6.route.skip_notify_on_dev_down=0",
                "sysctl -w net.ipv6.route.skip_notify_on_dev_down=1",
            ])
            .to_owned(),
    }
}

/// A command line for a program. `is_silent`: also for changes of which the kernel sends no event, such as the expiry of
/// a route, or of a neighbour without an address that becomes FAILED.
pub fn command(rng: &mut Rng, is_silent: bool) -> String {
    match rng.below(24) {
        0..=9 => route(rng, is_silent),
        10..=12 => nexthop(rng, is_silent),
        13 | 14 => rule(rng),
        15 | 16 => link(rng),
        17 | 18 => addr(rng),
        19 | 20 => neigh(rng, is_silent),
        _ => sysctl(rng),
    }
}
