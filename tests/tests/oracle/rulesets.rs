//! nftables rulesets: the kernel and Ferroute have the same one, and must do the same with every packet and
//! count the same.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::conversation::nft;
use ferroute_tests::rng::Rng;
use ferroute_tests::{Ferroute, Netns, ferroute, rng};
use serde_json::Value;

use crate::compare::{compare, generate_from};
use crate::world::World;
use crate::{BATCH_TIMEOUT, check_handed_over_also};

/// Packets for each ruleset.
const PACKETS: usize = 192;
/// Generated rulesets.
const GENERATED: usize = 80;

/// Lets the plain packets through that each batch ends with.
const PLAIN: &str = "udp sport 4000 udp dport 4001 accept";

/// The router's own packets that `ip6_output` gives an input interface: MLD reports and, limited by time, Redirects.
const OWN6: &str = "ip6 daddr ff02::/16 accept\n    icmpv6 type nd-redirect accept";

/// Why packets are handed to the kernel because of rules.
const PUNTS: [&str; 3] = ["NETFILTER", "NETFILTER_EGRESS", "NEIGH_UNRESOLVED"];

const RULESETS: &str = include_str!("rulesets.nft");

/// What `iptables-nft` and `ip6tables-nft` write: commands, and comments.
const IPTABLES: &str = include_str!("iptables.txt");
/// Of these, it writes expressions that only the kernel evaluates, for some packets at least.
const IPTABLES_KERNEL: &[&str] = &[
    "ip6tables-nft -t mangle -A FORWARD -m rt --rt-type 0",
    "ip6tables-nft -t mangle -A FORWARD -m rt ! --rt-type 4 --rt-segsleft 0:3",
    "iptables-nft -I FORWARD 2 -p tcp -m tcp --tcp-option 2 -j DROP",
    "iptables-nft -I FORWARD 2 -p icmp -m limit --limit 1000/s --limit-burst 1000 -j ACCEPT",
];

/// Two worlds with the same ruleset, of which the second one is Ferroute's.
pub struct Pair {
    pub kernel: World,
    pub world: World,
    pub ferroute: Ferroute,
    /// Number of the next packet.
    next: u16,
    seed: u64,
}

impl Pair {
    pub fn build() -> Result<Pair> {
        let (kernel, world) = (World::build()?, World::build()?);
        for router in [&kernel.lab.router, &world.lab.router] {
            router.run("ip rule add fwmark 5 lookup 105")?;
            router.run("ip route add default via 198.18.2.3 table 105")?;
            router.run("ip -6 rule add fwmark 5 lookup 105")?;
            router.run("ip -6 route add default via 2001:db8:2::3 table 105")?;
        }
        Pair::of(kernel, world)
    }

    fn of(kernel: World, world: World) -> Result<Pair> {
        let ferroute = Ferroute::start(&world.lab)?;
        let seed = rng::seed();
        println!("seed {seed}");
        Ok(Pair { kernel, world, ferroute, next: 1, seed })
    }

    /// The number of the next packet.
    pub fn next_index(&mut self) -> u16 {
        let index = self.next;
        self.next = if index == u16::MAX { 1 } else { index + 1 };
        index
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn routers(&self) -> [&Netns; 2] {
        [&self.kernel.lab.router, &self.world.lab.router]
    }

    /// Replaces the ruleset of both.
    pub fn load(&self, script: &str) -> Result<()> {
        let script = format!("flush ruleset\n{}", script.replace("PLAIN", PLAIN));
        self.routers().into_iter().try_for_each(|router| nft(router, &script))
    }

    /// Waits until Ferroute applies what the kernel has.
    pub fn wait_until_followed(&self) -> Result<()> {
        if ferroute::by_kernel() {
            return Ok(());
        }
        let expected = handles_of_kernel(&self.world.lab.router)?;
        let end = Instant::now() + BATCH_TIMEOUT;
        loop {
            // Its exit status is 1 while the ruleset is not applied.
            let status = self.ferroute.command(&["-j", "status"]).output()?;
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            let pending = status.contains("the ruleset is being read");
            if !pending && handles(&self.ferroute.json(&["rules", "show"])?) == expected {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the ruleset is not followed: {status}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends packets, and compares what becomes of them, and the counters. `kernels`: some packets are left
    /// to the kernel because of the rules.
    fn check(&mut self, name: &str, kernels: bool) -> Result<()> {
        self.wait_until_followed()?;
        let punts_before = self.punts_of_rules()?;
        let by_kernel_before = self.ferroute.forwarded_by_kernel()?;
        self.seed += 1;
        let inputs = generate_from(self.next, self.seed, PACKETS);
        self.next = self.next.checked_add(PACKETS as u16).context("too many packets")?;
        let outcome = compare(&self.kernel, &self.world, &inputs, BATCH_TIMEOUT)?;
        if let Some((note, text)) = outcome.differences.first() {
            let count = outcome.differences.len();
            bail!("{name}: {count} packets differ ({note}), seed {}:\n{text}", self.seed);
        }
        let (kernel, own) = (counters_of_kernel(&self.kernel.lab.router)?, self.counters()?);
        ensure!(kernel == own, "{name}: counters {own:?}, the kernel's are {kernel:?}");
        if ferroute::by_kernel() {
            return Ok(());
        }
        ensure!(self.ferroute.is_running(), "{name}: ferroute has ended\n{}", self.ferroute.said());
        let punted = self.punts_of_rules()? - punts_before;
        let by_kernel = self.ferroute.forwarded_by_kernel()?;
        let by_kernel = by_kernel.v4 + by_kernel.v6 - by_kernel_before.v4 - by_kernel_before.v6;
        if kernels {
            ensure!(punted > 0 && punted < PACKETS as u64 / 2, "{name}: {punted} packets punted");
        } else {
            // Fragments, jumbograms, whose length versions of the kernel compare in different ways, and IPv6 packets
            // that may be too long for their route: the error about them may be the kernel's.
            let is_odd = |note: &str| note.contains("fragment") || note.contains("jumbogram");
            let is_long =
                |frame: &[u8]| frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.len() > 1294;
            let odd =
                inputs.iter().filter(|it| is_odd(&it.note) || is_long(&it.frame)).count() as u64;
            ensure!(punted <= odd, "{name}: {punted} packets were left to the kernel by rules");
            // Source routes, redirects and the like.
            ensure!(by_kernel < PACKETS as u64 / 5, "{name}: the kernel forwarded {by_kernel}");
        }
        Ok(())
    }

    /// Packets that were handed to the kernel because of rules.
    fn punts_of_rules(&self) -> Result<u64> {
        // Not those that wait for a neighbour, which depends on time.
        let by_rules = PUNTS.iter().filter(|reason| reason.starts_with("NETFILTER"));
        by_rules.map(|reason| self.punts(reason)).sum()
    }

    /// Packets that were handed to the kernel for this reason.
    pub fn punts(&self, reason: &str) -> Result<u64> {
        if ferroute::by_kernel() {
            return Ok(0);
        }
        let stat = self.ferroute.json(&["stat"])?;
        Ok(stat["punts"][reason].as_u64().unwrap_or(0))
    }

    /// Counters in Ferroute's world: the kernel's, and what the workers have counted.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = counters_of_kernel(&self.world.lab.router)?;
        if ferroute::by_kernel() {
            return Ok(counters);
        }
        let tables = self.ferroute.json(&["rules", "show"])?;
        for (key, counted) in counted_by_workers(&tables) {
            let sum = counters.get_mut(&key).with_context(|| format!("{key} is no counter"))?;
            *sum = (sum.0 + counted.0, sum.1 + counted.1);
        }
        Ok(counters)
    }

    fn finish(mut self) -> Result<()> {
        if !ferroute::by_kernel() {
            let by_kernel = self.ferroute.forwarded_by_kernel()?;
            check_handed_over_also(&self.ferroute, by_kernel.v4 + by_kernel.v6, &PUNTS)?;
        }
        self.ferroute.terminate()
    }
}

/// Packets and octets of each counter, by table, chain, handle of the rule and position, or by the name of
/// an object.
pub type Counters = BTreeMap<String, (u64, u64)>;

fn rule_name(rule: &Value) -> String {
    let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
    format!("{} {} {} {}", text("family"), text("table"), text("chain"), rule["handle"])
}

fn ruleset(router: &Netns) -> Result<Vec<Value>> {
    let mut ruleset: Value = serde_json::from_str(&router.run("nft -j list ruleset")?)?;
    Ok(std::mem::take(ruleset["nftables"].as_array_mut().context("no ruleset")?))
}

pub fn counters_of_kernel(router: &Netns) -> Result<Counters> {
    let mut counters = Counters::new();
    let values = |counter: &Value| {
        (counter["packets"].as_u64().unwrap_or(0), counter["bytes"].as_u64().unwrap_or(0))
    };
    for object in ruleset(router)? {
        if let Some(rule) = object.get("rule") {
            let exprs = rule["expr"].as_array().context("a rule without expressions")?;
            let found =
                exprs.iter().filter_map(|expr| expr.get("counter")).filter(|it| it.is_object());
            for (n, counter) in found.enumerate() {
                counters.insert(format!("{} #{n}", rule_name(rule)), values(counter));
            }
        }
        if let Some(counter) = object.get("counter") {
            let name = format!("{} {} {}", counter["family"], counter["table"], counter["name"]);
            counters.insert(name.replace('"', ""), values(counter));
        }
    }
    Ok(counters)
}

fn handles_of_kernel(router: &Netns) -> Result<Vec<String>> {
    let objects = ruleset(router)?;
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    let mut names: Vec<String> = rules.map(rule_name).collect();
    names.sort();
    Ok(names)
}

/// Calls `see` with the name of each rule that `rules show` lists, and with the rule.
fn each_rule(tables: &Value, mut see: impl FnMut(String, &Value)) {
    for table in tables.as_array().into_iter().flatten() {
        for chain in table["chains"].as_array().into_iter().flatten() {
            for rule in chain["rules"].as_array().into_iter().flatten() {
                let name = format!(
                    "{} {} {} {}",
                    table["family"], table["name"], chain["name"], rule["handle"]
                );
                see(name.replace('"', ""), rule);
            }
        }
    }
}

fn handles(tables: &Value) -> Vec<String> {
    let mut names = Vec::new();
    each_rule(tables, |name, _| names.push(name));
    names.sort();
    names
}

fn counted_by_workers(tables: &Value) -> Counters {
    let counted = |counter: &Value| {
        let of = |all: &str, kernel: &str| {
            counter[all].as_u64().unwrap_or(0).saturating_sub(counter[kernel].as_u64().unwrap_or(0))
        };
        (of("packets", "kernel_packets"), of("bytes", "kernel_bytes"))
    };
    let mut counters = Counters::new();
    each_rule(tables, |name, rule| {
        for (n, counter) in rule["counters"].as_array().into_iter().flatten().enumerate() {
            counters.insert(format!("{name} #{n}"), counted(counter));
        }
    });
    for table in tables.as_array().into_iter().flatten() {
        for object in table["objects"].as_array().into_iter().flatten() {
            let name = format!("{} {} {}", table["family"], table["name"], object["name"]);
            counters.insert(name.replace('"', ""), counted(object));
        }
    }
    counters
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rulesets_do_what_they_do_in_the_kernel() -> Result<()> {
    let mut pair = Pair::build()?;
    let (ours, kernels) = RULESETS.split_once("\n#### kernel\n").context("no such line")?;
    for (rulesets, kernels) in [(ours, false), (kernels, true)] {
        for ruleset in rulesets.split("\n### ").skip(1) {
            let (name, script) = ruleset.split_once('\n').context("a ruleset without a name")?;
            pair.load(script).with_context(|| name.to_owned())?;
            pair.check(name, kernels)?;
        }
    }
    pair.load("")?;
    pair.check("no ruleset", false)?;
    pair.finish()
}

/// Without rules for routing, the kernel has one table of local and other routes.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn rulesets_look_up_routes_as_the_kernel_without_rules_for_routing() -> Result<()> {
    let mut pair = Pair::of(World::without_rules()?, World::without_rules()?)?;
    let (ours, _) = RULESETS.split_once("\n#### kernel\n").context("no such line")?;
    let scripts = ours.split("\n### ").filter(|script| script.contains("fib "));
    for ruleset in scripts {
        let (name, script) = ruleset.split_once('\n').context("a ruleset without a name")?;
        for _ in 0..3 {
            pair.load(script)?;
            pair.check(name, false)?;
        }
    }
    pair.finish()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn rulesets_of_iptables_do_what_they_do_in_the_kernel() -> Result<()> {
    let mut pair = Pair::build()?;
    let ours =
        IPTABLES.lines().filter(|line| !line.starts_with('#')).map(|command| (command, false));
    for (command, kernels) in ours.chain(IPTABLES_KERNEL.iter().map(|command| (*command, true))) {
        for router in pair.routers() {
            router.run(command)?;
        }
        pair.check(command, kernels)?;
    }
    pair.finish()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn generated_rulesets_do_what_they_do_in_the_kernel() -> Result<()> {
    let mut pair = Pair::build()?;
    let mut rng = Rng::new(pair.seed);
    let mut refused = 0;
    for n in 0..GENERATED {
        let script = random_ruleset(&mut rng);
        let name = format!("ruleset {n}:\n{script}\n");
        if let Err(error) = pair.load(&script) {
            // Matches that contradict each other.
            ensure!(format!("{error:#}").contains("onflicting protocols"), "{name}{error:#}");
            refused += 1;
            continue;
        }
        pair.check(&name, false)?;
    }
    println!("{refused} of {GENERATED} rulesets were refused by nft");
    ensure!(refused < GENERATED / 4, "nft refused {refused} of {GENERATED} rulesets");
    pair.finish()
}

/// Matches for IPv4, for IPv6, and for both.
const MATCH4: &[&str] = &[
    "ip saddr 198.18.1.2",
    "ip saddr 198.18.1.0/30",
    "ip saddr != 198.18.1.3",
    "ip daddr 203.0.113.0/24",
    "ip daddr { 198.18.2.2, 198.18.2.3, 192.0.2.0/24 }",
    "ip daddr != { 198.18.2.2, 203.0.113.5 }",
    "ip daddr 198.18.2.2-198.18.2.9",
    "ip protocol udp",
    "ip protocol { tcp, icmp, 47 }",
    "ip ttl 63-64",
    "ip ttl > 64",
    "ip dscp 46",
    "ip dscp != 0",
    "ip length < 200",
    "ip length 200-1400",
    "ip id & 1 == 1",
    "ip hdrlength 5",
    "ip frag-off & 0x4000 != 0",
    "ip frag-off & 0x1fff == 0",
    "icmp type echo-request",
    "icmp type { 3, 5, 11, 13 }",
    "icmp id 1",
    "ip saddr . ip daddr { 198.18.1.2 . 198.18.2.2, 198.18.1.3 . 203.0.113.5 }",
    "ip saddr . ip protocol { 198.18.1.2 . udp, 198.18.1.3 . icmp }",
    "ip saddr . th sport { 198.18.1.0/24 . 1024-1500, 198.18.2.2 . 1 }",
];
const MATCH6: &[&str] = &[
    "ip6 saddr 2001:db8:1::2",
    "ip6 saddr 2001:db8:1::/64",
    "ip6 daddr != 2001:db8:2::/64",
    "ip6 daddr { 2001:db8:2::2, 2001:db8:3::/48 }",
    "ip6 nexthdr 17",
    "ip6 nexthdr { 58, 60, 44 }",
    "ip6 hoplimit 63-64",
    "ip6 dscp 46",
    "ip6 length < 100",
    "ip6 flowlabel & 1 == 0",
    "icmpv6 type { 128, 1, 3 }",
    "exthdr frag exists",
    "exthdr dst exists",
    "frag more-fragments 1",
    "ip6 saddr . ip6 nexthdr { 2001:db8:1::2 . 17, 2001:db8:1::3 . 58 }",
];
const MATCH: &[&str] = &[
    "meta l4proto udp",
    "meta l4proto { 6, 17, 58 }",
    "meta l4proto != 17",
    "udp dport 33434",
    "udp sport 1024-1400",
    "udp sport { 1024-1100, 1200, 1300-2000 }",
    "udp length > 200",
    "tcp dport 80",
    "tcp flags & (fin | syn | rst | ack) == syn | ack",
    "tcp flags { syn, ack }",
    "th dport { 7, 80, 33434 }",
    "@th,0,16 & 3 == 1",
];
/// Matches for tables of both families only.
const MATCH_INET: &[&str] =
    &["meta nfproto ipv4", "meta nfproto ipv6", "meta protocol ip6", "meta protocol ip"];
/// Matches that can stand beside any other.
const NEUTRAL: &[&str] = &[
    "meta length > 300",
    "meta length { 40-60, 100-400 }",
    "iifname \"rt-left\"",
    "iifname \"rt-r*\"",
    "iifname { \"rt-left\", \"lo\" }",
    "meta mark 0",
    "meta mark & 3 != 0",
    "meta pkttype host",
    "ether saddr 02:f0:00:00:01:02",
    "@nh,0,4 4",
    "@ll,48,8 2",
];
/// Rules that write into the packet.
const WRITE4: &[&str] = &[
    "ip dscp set ef",
    "ip ecn set ce",
    "ip ttl > 60 ip ttl set 44 counter",
    "ip saddr 198.18.1.2 ip dscp set 10",
    "ip saddr 198.18.1.3 ip daddr 203.0.113.0/24 ip daddr set 198.18.2.2",
    "ip saddr 198.18.1.3 ip saddr set 198.18.1.77",
    "ip protocol udp udp dport 33434 udp dport set 5353 counter",
    "ip protocol tcp tcp sport set 99",
];
const WRITE6: &[&str] = &[
    "ip6 dscp set ef",
    "ip6 ecn set ce",
    "ip6 hoplimit > 60 ip6 hoplimit set 44 counter",
    "ip6 saddr 2001:db8:1::3 ip6 daddr 2001:db8:3::/48 ip6 daddr set 2001:db8:2::2",
    "ip6 saddr 2001:db8:1::3 ip6 saddr set 2001:db8:1::77",
    "ip6 nexthdr udp udp dport 33434 udp dport set 5353 counter",
];
const VERDICTS: &[&str] =
    &["accept", "drop", "drop", "return", "jump one", "jump two", "goto two", ""];
const STATEMENTS: &[&str] =
    &["", "", "counter", "counter", "meta mark set 1", "meta mark set meta mark | 6"];

fn random_rule(rng: &mut Rng, matches: &[&[&str]], verdicts: &[&str]) -> String {
    let mut words: Vec<&str> = Vec::new();
    // nft rejects matches of several protocols in one rule.
    if !rng.one_in(4) {
        let list = matches[rng.below(matches.len())];
        words.push(list[rng.below(list.len())]);
    }
    if rng.one_in(2) {
        words.push(rng.pick(NEUTRAL));
    }
    words.push(rng.pick(STATEMENTS));
    // Without a match, a verdict would end the chain.
    if words.len() > 1 {
        words.push(rng.pick(verdicts));
    }
    let rule = words.join(" ");
    if rule.trim().is_empty() { "counter".into() } else { rule }
}

fn random_ruleset(rng: &mut Rng) -> String {
    let mut script = String::new();
    for table in 0..1 + rng.below(2) as i32 {
        let family = rng.pick(&["ip", "ip6", "inet", "inet"]);
        let matches: &[&[&str]] = match family {
            "ip" => &[MATCH4, MATCH4, MATCH, NEUTRAL],
            "ip6" => &[MATCH6, MATCH6, MATCH, NEUTRAL],
            _ => &[MATCH4, MATCH6, MATCH, NEUTRAL, MATCH_INET],
        };
        let writes: &[&[&str]] = match family {
            "ip" => &[WRITE4],
            "ip6" => &[WRITE6],
            _ => &[WRITE4, WRITE6],
        };
        let does_write = rng.one_in(2);
        let mut rules = |count: usize, verdicts: &[&str]| {
            let rules = (0..count).map(|_| match does_write && rng.one_in(4) {
                true => {
                    let list = rng.pick(writes);
                    rng.pick(list).to_owned()
                }
                false => random_rule(rng, matches, verdicts),
            });
            rules.collect::<Vec<_>>().join("\n    ")
        };
        let (one, two) = (
            rules(3, &["accept", "drop", "return", "jump two", ""]),
            rules(3, &["accept", "drop", ""]),
        );
        let bodies = [rules(4, VERDICTS), rules(8, VERDICTS), rules(3, VERDICTS)];
        script += &format!("table {family} t{table} {{\n  chain two {{\n    {two}\n  }}\n");
        script += &format!("  chain one {{\n    {one}\n  }}\n");
        for (hook, body) in ["prerouting", "forward", "postrouting"].iter().zip(bodies) {
            // One chain at least, or userspace would have no rules.
            if *hook != "forward" && rng.one_in(4) {
                continue;
            }
            // Different in the two tables: the kernel runs chains of equal priority in the order of their
            // creation, and userspace leaves all packets to it if they set marks.
            let priority = rng.pick(&[-150, -2, 0, 2, 50]) + table;
            let policy = if rng.one_in(6) { "drop" } else { "accept" };
            // The router's own packets: errors to itself that the kernel makes and drops are not made here.
            let mut own = "iifname != { \"rt-left\", \"rt-right\" } accept\n    ".to_owned();
            if family != "ip" {
                own += &format!("{OWN6}\n    ");
            }
            script += &format!(
                "  chain {hook}_{table} {{\n    type filter hook {hook} priority {priority}; policy {policy};\n    {own}{PLAIN}\n    {body}\n  }}\n"
            );
        }
        script += "}\n";
    }
    if rng.one_in(2) {
        script += &random_ingress(rng);
    }
    script
}

/// Chains at the ingress of the ports.
fn random_ingress(rng: &mut Rng) -> String {
    let matches: &[&[&str]] = &[MATCH4, MATCH6, MATCH, NEUTRAL];
    let mut rules = |count: usize, verdicts: &[&str]| {
        let rules = (0..count).map(|_| random_rule(rng, matches, verdicts));
        rules.collect::<Vec<_>>().join("\n    ")
    };
    let bodies =
        [rules(4, &["accept", "drop", "jump one", "goto one", ""]), rules(3, &["", "drop"])];
    let one = rules(3, &["accept", "drop", "return", ""]);
    let mut script = format!("table netdev i {{\n  chain one {{\n    {one}\n  }}\n");
    // Not what the routers and hosts send by themselves.
    let own = "meta protocol != { ip, ip6 } accept\n    ip6 daddr ff02::/16 accept";
    for (n, (devices, body)) in ["rt-left", "rt-left, rt-right"].iter().zip(bodies).enumerate() {
        script += &format!(
            "  chain c{n} {{\n    type filter hook ingress devices = {{ {devices} }} priority {n};\n    \
             {own}\n    {PLAIN}\n    {body}\n  }}\n"
        );
    }
    script + "}\n"
}

/// Rules about connections.
const CONNECTION: &[&str] = &[
    "ct state established,related counter accept",
    "ct state established counter",
    "ct state invalid counter drop",
    "ct state new counter",
    "ct state { new, established } counter",
    "ct direction reply counter",
    "ct direction original meta length > 200 counter",
    "ct status snat counter",
    "ct status dnat counter",
    "ct status & assured == assured counter",
    "ct mark 0 counter",
    "ip dscp set ef",
    "ip6 hoplimit > 60 ip6 hoplimit set 44",
    "ct state vmap { invalid : drop, established : jump one, new : jump two }",
];
/// Chains of type nat. Which port the kernel takes of a range is random, so there are none.
const NAT: &[&str] = &[
    "",
    "chain post { type nat hook postrouting priority 100; oifname rt-right masquerade; }",
    "chain post { type nat hook postrouting priority 100; \
     meta nfproto ipv4 oifname rt-right snat ip to 203.0.113.77; \
     ip6 saddr 2001:db8:1::2 snat ip6 to 2001:db8:77::7; }",
    "chain pre { type nat hook prerouting priority -100; \
     ip daddr { 198.18.1.1, 198.18.2.1 } meta l4proto { tcp, udp } th dport 8080 dnat ip to 198.18.2.2:80; \
     ip6 daddr 2001:db8:2::1 meta l4proto { tcp, udp } th dport 8080 dnat ip6 to [2001:db8:2::3]:80; }",
    "chain pre { type nat hook prerouting priority -100; \
     ip daddr { 198.18.1.1, 198.18.2.1 } meta l4proto { tcp, udp } th dport 8080 dnat ip to 198.18.1.3:80; \
     ip6 daddr 2001:db8:2::1 meta l4proto { tcp, udp } th dport 8080 dnat ip6 to [2001:db8:1::3]:80; }; \
     chain post { type nat hook postrouting priority 100; ct status dnat masquerade; }",
    "chain post { type nat hook postrouting priority 100; \
     snat ip prefix to ip saddr map { 198.18.1.0/24 : 203.0.113.0/24 }; \
     snat ip6 prefix to ip6 saddr map { 2001:db8:1::/64 : 2001:db8:77::/64 }; }",
];

/// A ruleset that tracks connections.
pub fn random_stateful(rng: &mut Rng) -> String {
    let mut script = random_filter(rng);
    let nat = rng.pick(NAT);
    if !nat.is_empty() {
        script += &format!("table inet nat {{ {nat}; }}\n");
    }
    script
}

/// The same without NAT.
pub fn random_filter(rng: &mut Rng) -> String {
    const MOSTLY: &[&str] = &["accept", "return", "jump one", "jump two", "", "", "", ""];
    const RARELY: &[&str] = &["drop", "accept", "", ""];
    let matches: &[&[&str]] = &[MATCH4, MATCH6, MATCH, NEUTRAL, MATCH_INET];
    let mut rules = |count: usize, verdicts: &[&str], tracks: bool| {
        let mut rules: Vec<String> = Vec::new();
        for _ in 0..count {
            let own = tracks && rng.one_in(2);
            rules.push(match own {
                true => rng.pick(CONNECTION).to_owned(),
                false => random_rule(rng, matches, verdicts),
            });
        }
        rules.join("\n    ")
    };
    let one = rules(3, &["accept", "return", "jump two", ""], false);
    let two = rules(3, RARELY, false);
    let bodies = [
        ("prerouting", rules(3, &["", "", "accept"], false)),
        ("forward", rules(8, MOSTLY, true)),
        ("postrouting", rules(3, &["", "accept"], true)),
    ];
    let mut script = format!("table inet t {{\n  chain two {{\n    {two}\n  }}\n");
    script += &format!("  chain one {{\n    {one}\n  }}\n");
    for (hook, body) in bodies {
        // Before, between and after connection tracking and NAT.
        let priority = rng.pick(&[-310, -150, -50, 0, 150]);
        // Not before connection tracking: the kernel takes acknowledgements of data that it has not seen for invalid,
        // which nobody would send.
        let drops = rng.one_in(3) && (hook, priority) != ("prerouting", -310);
        let (policy, last) = match drops {
            true => ("drop", "ct state established,related,new counter accept"),
            false => ("accept", ""),
        };
        let own = format!("iifname != {{ \"rt-left\", \"rt-right\" }} accept\n    {OWN6}");
        script += &format!(
            "  chain {hook} {{\n    type filter hook {hook} priority {priority}; policy {policy};\n    {own}\n    {PLAIN}\n    {body}\n    {last}\n  }}\n"
        );
    }
    script + "}\n"
}
