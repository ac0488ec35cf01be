//! Rulesets that track connections: exchanges of ICMP echo and tunnels, which are carried, through the kernel and through
//! Ferroute.
//!
//! They are carried only after some seconds. Therefore the same exchanges go on while the filter is replaced; NAT, which
//! is chosen by the first packet, makes a group of rulesets. What is sent between is of three kinds: plain packets, all of
//! which userspace forwards; packets with anything that rules look at; and odd ones.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::account::Account;
use ferroute_tests::packet::{ICMP, ICMPV6};
use ferroute_tests::rng::Rng;
use ferroute_tests::{Netns, ferroute};

use crate::connection::{Connection, End, From, GRE, Segment, random_segment};
use crate::connections::{Share, Talk, carried_flows, delete_connections, listen};
use crate::odd::odd;
use crate::rulesets::{Pair, counters_of_kernel, random_filter};
use crate::world::Side;

/// See there.
const RULESETS: &str = include_str!("portless.nft");
/// Generated rulesets of each group.
const GENERATED: usize = 15;
/// Batches of packets under each ruleset, and packets of a batch.
const BATCHES: usize = 4;
const BATCH: usize = 120;
/// How often packets are sent until all are carried: the last one has to be younger than 3 seconds when that is decided.
const INTERVAL: Duration = Duration::from_millis(300);
/// Until all are carried. They are after 4 seconds, unless the machine stood still meanwhile: then they are tried again
/// when the table is read, every minute.
const CARRIED_MAX: Duration = Duration::from_secs(200);
/// Entries that expire as soon may have done so in one of the worlds only.
const EXPIRES_S: u32 = 5;

/// An identifier that several clients have.
const ID: u16 = 5000;

/// The exchanges of a group. `to_router`: also to its own addresses, from where rulesets translate them.
fn exchanges(to_router: bool) -> Vec<Connection> {
    let (left, right) = (Side::Left, Side::Right);
    let end = |address: &str, id: u16| -> End { (address.parse().expect("an address"), id) };
    let mut all = Vec::new();
    let mut add = |protocol: u8, side, from: &str, id, to: &str| {
        all.push(Connection::new(protocol, side, end(from, id), end(to, 0)));
    };
    for (side, from, id, to) in [
        (left, "198.18.1.2", ID, "198.18.2.2"),
        (left, "198.18.1.3", ID, "198.18.2.2"),
        (left, "198.18.1.66", 0xffff, "100.64.1.1"),
        (left, "198.18.1.2", 0xffff, "203.0.113.5"),
        (right, "198.18.2.3", 0, "198.18.1.3"),
        // Where both are translated to one server, it has to have another identifier.
        (left, "198.18.1.2", ID, "198.18.1.1"),
        (left, "198.18.1.2", ID, "198.18.2.1"),
    ] {
        add(ICMP, side, from, id, to);
    }
    for (side, from, id, to) in [
        (left, "2001:db8:1::2", ID, "2001:db8:2::2"),
        (left, "2001:db8:1::3", ID, "2001:db8:2::2"),
        (left, "2001:db8:1::2", 0xffff, "2001:db8:5::5"),
        (right, "2001:db8:2::3", 0, "2001:db8:1::3"),
        (left, "2001:db8:1::3", ID, "2001:db8:2::3"),
        (left, "2001:db8:1::3", ID, "2001:db8:2::1"),
    ] {
        add(ICMPV6, side, from, id, to);
    }
    for protocol in [4, 41, GRE, 50, 51] {
        for (side, from, to) in [
            (left, "198.18.1.2", "198.18.2.2"),
            (left, "198.18.1.3", "203.0.113.5"),
            // Where both clients are translated to one address, only one of them has a connection.
            (left, "198.18.1.3", "198.18.2.2"),
            (right, "198.18.2.3", "198.18.1.2"),
            (left, "198.18.1.2", "198.18.2.1"),
        ] {
            add(protocol, side, from, 0, to);
        }
    }
    for protocol in [4, 41, GRE, 50] {
        for (side, from, to) in [
            (left, "2001:db8:1::2", "2001:db8:2::2"),
            (right, "2001:db8:2::3", "2001:db8:1::3"),
            (left, "2001:db8:1::2", "2001:db8:2::1"),
        ] {
            add(protocol, side, from, 0, to);
        }
    }
    let routers = ["198.18.1.1", "198.18.2.1", "2001:db8:2::1"].map(|it| end(it, 0));
    all.retain(|it| to_router || !routers.contains(&it.to));
    all
}

impl Talk<'_> {
    fn reached(&self) -> Vec<usize> {
        (0..self.connections.len()).filter(|n| self.connections[*n].seen.is_some()).collect()
    }

    /// One plain packet each way. Returns how many packets were forwarded, and how many of them by the kernel.
    fn go_on(&mut self, note: &str) -> Result<Share> {
        let plain = Segment { len: 30, note: note.into(), ..Segment::default() };
        let (by_kernel, forwarded) = (self.by_kernel()?, self.forwarded);
        self.each(From::Client, |it| it.seen.is_some(), &plain)?;
        self.each(From::Server, |it| it.seen.is_some(), &plain)?;
        let kernel = self.by_kernel()? - by_kernel;
        let forwarded = (self.forwarded - forwarded) as u64;
        Ok(Share { carried: forwarded.saturating_sub(kernel), kernel })
    }

    /// How many packets the kernel has forwarded, without those because of which it sends redirects.
    fn by_kernel(&self) -> Result<u64> {
        let redirects = self.pair.punts("REDIRECT")?;
        let forwarded = self.pair.ferroute.forwarded_by_kernel()?;
        Ok((forwarded.v4 + forwarded.v6).saturating_sub(redirects))
    }

    /// How many packets the XDP program has passed to the kernel because they are of no flow, or of none that is carried.
    fn passed(&self) -> Result<u64> {
        if ferroute::by_kernel() {
            return Ok(0);
        }
        xdp(self.pair, &["pass_no_flow", "pass_conntrack"])
    }

    /// Opens the exchanges, and goes on with them until all of them are carried.
    fn begin(&mut self) -> Result<()> {
        let open = Segment { len: 30, note: "opens".into(), ..Segment::default() };
        self.each(From::Client, |_| true, &open)?;
        let begun = Instant::now();
        loop {
            let share = self.go_on("is answered")?;
            let expected = self.reached().len() as u64;
            ensure!(expected > 20, "{}: only {expected} exchanges are open", self.name);
            if ferroute::by_kernel() {
                return Ok(());
            }
            let carried = carried_flows(self.pair)?;
            if carried == Some(expected) && share.kernel == 0 {
                return Ok(());
            }
            let account = || self.pair.ferroute.account();
            let in_time = begun.elapsed() < CARRIED_MAX;
            ensure!(in_time, "{}: {carried:?} of {expected} are carried: {}", self.name, account());
            std::thread::sleep(INTERVAL);
        }
    }

    /// Packets with anything that rules look at.
    fn use_all(&mut self, rng: &mut Rng) -> Result<()> {
        let reached = self.reached();
        for _ in 0..BATCHES {
            let packets: Vec<(usize, From, Segment)> = (0..BATCH)
                .map(|_| {
                    let segment = random_segment(rng);
                    // An IP header alone is odd.
                    let segment = Segment { len: segment.len.max(6), ..segment };
                    (rng.pick(&reached), rng.pick(&[From::Client, From::Server]), segment)
                })
                .collect();
            self.send(&packets)?;
        }
        Ok(())
    }

    /// Odd packets, and plain ones among them.
    fn use_oddly(&mut self, rng: &mut Rng) -> Result<()> {
        let reached = self.reached();
        let plain = Segment { len: 20, note: "among odd ones".into(), ..Segment::default() };
        for _ in 0..BATCHES {
            let (mut inputs, mut of) = (Vec::new(), Vec::new());
            for n in 0..BATCH {
                let (at, from) = (rng.pick(&reached), rng.pick(&[From::Client, From::Server]));
                let index = self.pair.next_index();
                let connection = &mut self.connections[at];
                let some = match n % 4 {
                    0 => connection.packet(index, from, &plain).into_iter().collect(),
                    _ => odd(rng, connection, from, index),
                };
                of.extend(some.iter().map(|_| (at, from)));
                inputs.extend(some);
            }
            self.send_inputs(&inputs, &of)?;
        }
        Ok(())
    }

    fn compare_counters(&self) -> Result<()> {
        let (kernel, own) =
            (counters_of_kernel(&self.pair.kernel.lab.router)?, self.pair.counters()?);
        let differing = || {
            let differ = kernel.iter().filter(|(name, it)| own.get(*name) != Some(it));
            let lines = differ.map(|(name, it)| format!("{name}: {:?}, {it:?}", own.get(name)));
            lines.collect::<Vec<_>>().join("\n")
        };
        ensure!(kernel == own, "{}: counters and the kernel's:\n{}", self.name, differing());
        Ok(())
    }

    /// Compares the tables of connections.
    fn compare_entries(&self) -> Result<()> {
        let [kernel, own] = self.pair.routers().map(entries);
        let (kernel, own) = (kernel?, own?);
        let missing = |of: &[(u32, String)], among: &[(u32, String)]| -> Vec<String> {
            let has = |line: &String| among.iter().any(|(_, it)| it == line);
            let lasting = of.iter().filter(|(left_s, line)| *left_s > EXPIRES_S && !has(line));
            lasting.map(|(left_s, line)| format!("{left_s} {line}")).collect()
        };
        let (lost, made) = (missing(&kernel, &own), missing(&own, &kernel));
        let name = &self.name;
        ensure!(
            lost.is_empty() && made.is_empty(),
            "{name}: the kernel has {lost:#?}, not {made:#?}"
        );
        Ok(())
    }
}

/// The entries of `conntrack -L`, and the seconds that are left to them.
fn entries(router: &Netns) -> Result<Vec<(u32, String)>> {
    let listed = router.run("conntrack -L -f ipv4")? + &router.run("conntrack -L -f ipv6")?;
    let lines = listed.lines().filter(|line| line.contains("src="));
    let entry = |line: &str| -> Result<(u32, String)> {
        let left_s = line.split_whitespace().nth(2).context("a time-out")?.parse()?;
        let fields = line.split_whitespace().enumerate();
        let fields = fields.filter(|(n, field)| *n != 2 && !field.starts_with("use="));
        Ok((left_s, fields.map(|(_, field)| field).collect::<Vec<_>>().join(" ")))
    };
    lines.map(entry).collect()
}

/// A group of rulesets: the exchanges are opened under the first one, and go on under the others.
struct Group<'a> {
    name: &'a str,
    nat: &'a str,
    /// Name and filter.
    rulesets: Vec<(&'a str, &'a str)>,
}

fn groups() -> Vec<Group<'static>> {
    let group = |text: &'static str| {
        let (name, rest) = text.split_once('\n').expect("a name");
        let mut parts = rest.split("\n### ");
        let nat = parts.next().unwrap_or_default();
        let rulesets = parts.map(|it| it.split_once('\n').expect("a name")).collect();
        Group { name, nat, rulesets }
    };
    RULESETS.split("\n#### ").skip(1).map(group).collect()
}

/// Replaces the filter while the exchanges go on.
fn replace(talk: &Talk<'_>, nat: &str, filter: &str) -> Result<()> {
    talk.pair.load(&format!("{nat}\n{filter}"))?;
    talk.pair.wait_until_followed()
}

/// Has the exchanges of a group carried, under its first ruleset.
fn begin<'a>(pair: &'a mut Pair, group: &Group<'_>) -> Result<Talk<'a>> {
    let (_, first) = group.rulesets.first().context("no ruleset")?;
    pair.load(&format!("{}\n{first}", group.nat))?;
    pair.wait_until_followed()?;
    delete_connections(pair)?;
    let connections = exchanges(group.nat.contains("dnat"));
    let name = group.name.to_owned();
    let mut talk = Talk { pair, name, connections, forwarded: 0, answered: 0 };
    talk.begin()?;
    Ok(talk)
}

/// Frames of both ports that the XDP program has treated in one of these ways.
fn xdp(pair: &Pair, names: &[&str]) -> Result<u64> {
    let account = Account::new(pair.ferroute.json(&["stat"])?);
    let of = |name: &&str| ["rt-left", "rt-right"].map(|ifname| account.port(ifname, "xdp", name));
    names.iter().flat_map(of).sum()
}

/// Fails unless the XDP program has forwarded some packets of each family, where it does so.
fn check_offloaded(pair: &Pair, expected: u64) -> Result<()> {
    if ferroute::by_kernel() || !ferroute::offloads() {
        return Ok(());
    }
    for name in ["offload_ipv4", "offload_ipv6"] {
        let count = xdp(pair, &[name])?;
        ensure!(count > expected, "{name}: {count}\n{}", pair.ferroute.account());
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn echo_and_tunnels_are_treated_as_by_the_kernel() -> Result<()> {
    let mut pair = Pair::build()?;
    let mut rng = Rng::new(pair.seed());
    listen(&mut pair)?;
    for group in groups() {
        let mut talk = begin(&mut pair, &group)?;
        for (name, filter) in &group.rulesets {
            let name = format!("{}: {name}", group.name);
            let are_carried = !name.contains(": kernel: ");
            talk.name.clone_from(&name);
            replace(&talk, group.nat, filter)?;
            let (before, passed) = (talk.by_kernel()?, talk.passed()?);
            let answered = talk.answered;
            talk.go_on("goes on")?;
            talk.use_all(&mut rng)?;
            let by_kernel = talk.by_kernel()? - before;
            let passed = talk.passed()? - passed;
            ensure!(!are_carried || passed == 0, "{name}: the XDP program passed {passed} packets");
            // The kernel counts packets that are too long before it refuses them.
            let refused = (talk.answered - answered) as u64;
            if !ferroute::by_kernel() {
                let account = || talk.pair.ferroute.account();
                let is_expected = if are_carried { by_kernel <= refused } else { by_kernel > 0 };
                ensure!(
                    is_expected,
                    "{name}: {by_kernel} by the kernel, {refused} refused: {}",
                    account()
                );
            }
            talk.use_oddly(&mut rng)?;
            let share = talk.go_on("still goes on")?;
            if are_carried && !ferroute::by_kernel() {
                ensure!(
                    share.kernel == 0,
                    "{name}: an odd packet has ended the carrying: {share:?}"
                );
            }
            talk.compare_counters()?;
            talk.compare_entries()?;
        }
    }
    ensure!(pair.ferroute.is_running(), "ferroute has ended\n{}", pair.ferroute.said());
    check_offloaded(&pair, 1000)?;
    pair.ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn echo_and_tunnels_are_treated_as_by_the_kernel_with_generated_rulesets() -> Result<()> {
    let mut pair = Pair::build()?;
    let mut rng = Rng::new(pair.seed());
    listen(&mut pair)?;
    let mut sum = Share::default();
    for group in groups() {
        let mut talk = begin(&mut pair, &group)?;
        for n in 0..GENERATED {
            let filter = random_filter(&mut rng);
            let name = format!("{}, ruleset {n}:\n{filter}\n", group.name);
            talk.name.clone_from(&name);
            if let Err(error) = replace(&talk, group.nat, &filter) {
                ensure!(format!("{error:#}").contains("onflicting protocols"), "{name}{error:#}");
                continue;
            }
            let (before, forwarded) = (talk.by_kernel()?, talk.forwarded);
            talk.go_on("goes on")?;
            talk.use_all(&mut rng)?;
            let kernel = talk.by_kernel()? - before;
            let forwarded = (talk.forwarded - forwarded) as u64;
            sum.kernel += kernel;
            sum.carried += forwarded.saturating_sub(kernel);
            talk.use_oddly(&mut rng)?;
            talk.compare_counters()?;
        }
        talk.compare_entries()?;
    }
    if !ferroute::by_kernel() {
        ensure!(sum.carried > 4 * sum.kernel, "too few packets were carried: {sum:?}");
    }
    ensure!(pair.ferroute.is_running(), "ferroute has ended\n{}", pair.ferroute.said());
    // Most of these rulesets have rules that look at each packet.
    check_offloaded(&pair, 100)?;
    pair.ferroute.terminate()
}
