//! Runs random commands, and compares after every few of them what the mirror shows and what its
//! tables return with the kernel.

use super::answers::random_answers;
use super::oracle::equals_kernel;
use super::{eventually, in_netns, ports, try_run};
use crate::control::mirror::{Mirror, MirrorOptions};

/// xorshift64*, deterministic for each seed.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

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
    "nhid 3",
    "nhid 4",
    "nhid 11",
];
const SPECIAL: &[&str] = &["blackhole", "unreachable", "prohibit", "throw"];
const VERBS: &[&str] = &["add", "append", "prepend", "replace", "replace", "del", "del", "change"];

fn route(rng: &mut Rng) -> String {
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
        1 => "metric 700",
        _ => "",
    };
    let table = if rng.below(4) == 0 { "table 100" } else { "" };
    let protocol = if rng.below(5) == 0 { "proto static" } else { "" };
    let family = if v6 { "-6" } else { "-4" };
    // The attributes of the route precede its next hops.
    let (first, hops) = if hops.starts_with("nexthop") { ("", hops) } else { (hops, "") };
    format!("ip {family} route {verb} {kind} {prefix} {first} {metric} {table} {protocol} {hops}")
}

fn nexthop(rng: &mut Rng) -> String {
    let object = rng.pick(&[
        "id 1 via 10.0.0.9 dev va",
        "id 1 via 10.0.1.9 dev vc",
        "id 2 via 10.0.1.8 dev vc",
        "id 3 via 2001:db8::9 dev va",
        "id 4 via 2001:db8:1::9 dev vc",
        "id 7 blackhole",
        "id 10 group 1,2/2,5",
        "id 10 group 1/2",
        "id 11 group 3/4,2",
    ]);
    match rng.below(5) {
        0 => format!("ip nexthop del id {}", rng.pick(&["1", "2", "3", "4", "7", "10", "11"])),
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

fn other(rng: &mut Rng) -> String {
    rng.pick(&[
        "ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev va",
        "ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:03 dev va",
        "ip neigh del 10.0.0.2 dev va",
        "ip neigh replace 2001:db8::2 lladdr 02:00:00:00:00:02 dev va",
        "ip neigh del 2001:db8::2 dev va",
        "sysctl -w net.ipv4.conf.va.ignore_routes_with_linkdown=1",
        "sysctl -w net.ipv4.conf.va.ignore_routes_with_linkdown=0",
        "sysctl -w net.ipv4.conf.all.ignore_routes_with_linkdown=1",
        "sysctl -w net.ipv4.conf.all.ignore_routes_with_linkdown=0",
        "sysctl -w net.ipv6.conf.va.ignore_routes_with_linkdown=1",
        "sysctl -w net.ipv6.conf.va.ignore_routes_with_linkdown=0",
    ])
    .to_owned()
}

fn command(rng: &mut Rng) -> String {
    match rng.below(20) {
        0..=9 => route(rng),
        10..=12 => nexthop(rng),
        13 | 14 => rule(rng),
        15 | 16 => link(rng),
        17 | 18 => addr(rng),
        _ => other(rng),
    }
}

/// Runs `rounds` of up to eight commands each.
pub fn random_commands(seed: u64, rounds: usize) {
    let mut rng = Rng::new(seed);
    ports();
    let start = || Mirror::start(MirrorOptions::default()).expect("starts");
    let mut mirror = start();
    let (mut done, mut unparsable, mut failures) = (0, 0, Vec::new());
    for round in 0..rounds {
        let lines: Vec<String> = (0..=rng.below(8)).map(|_| command(&mut rng)).collect();
        let took: Vec<&String> = lines.iter().filter(|line| try_run(line)).collect();
        done += took.len();
        let compared = eventually(&mut mirror, |mirror| {
            equals_kernel(mirror)?;
            random_answers(mirror, &mut rng.clone())
        });
        if let Err(difference) = compared {
            failures.push(format!("seed {seed}, round {round}: {took:#?}: {difference}"));
            unparsable += mirror.counters().unparsable;
            mirror = start();
        }
    }
    assert!(failures.is_empty(), "{} failures: {}", failures.len(), failures.join("\n"));
    assert!(done > rounds, "most commands must take effect: {done}");
    assert_eq!(unparsable + mirror.counters().unparsable, 0);
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn root_random_commands_leave_mirror_and_kernel_equal() {
    let seed = std::env::var("FERROUTE_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    for seed in seed.map_or(1..=4, |seed| seed..=seed) {
        in_netns(move || random_commands(seed, 50));
    }
}
