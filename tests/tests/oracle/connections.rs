//! Rulesets that track connections: whole connections through the kernel and through Ferroute, opened, used
//! and closed packet by packet. Frames, counters and the table of connections must be the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferroute_tests::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMPV6, be16, describe};
use ferroute_tests::rng::Rng;
use ferroute_tests::{Netns, ferroute, tap};

use crate::BATCH_TIMEOUT;
use crate::connection::{
    ACK, Connection, FIN, From, PSH, RST, SYN, Segment, protocol, random_segment,
};
use crate::input::{Input, is_from_router};
use crate::policies::{STRICT_ACTIONS, load_policies, random_policies};
use crate::rulesets::{Pair, counters_of_kernel, random_stateful};
use crate::world::{Side, World};

/// See there.
const RULESETS: &str = include_str!("connections.nft");
/// Generated rulesets.
const GENERATED: usize = 100;
/// Batches of packets of established connections, and packets of a batch.
const BATCHES: usize = 3;
const BATCH: usize = 40;
/// The note of a RST with a sequence number from before what its receiver has acknowledged.
const INVALID: &str = "invalid RST";
/// Nothing more is expected after this time without a frame.
const QUIET: Duration = Duration::from_millis(15);

/// Connections whose last acknowledgement Ferroute's kernel has not seen.
static LATE: AtomicUsize = AtomicUsize::new(0);

/// What left each world, by the packet that caused it; 0: not known.
type Outputs = BTreeMap<u16, Vec<(Side, Vec<u8>)>>;

/// The packet that caused a frame of the router: its number is in the identification or the flow label.
fn cause(frame: &[u8]) -> Option<u16> {
    let network = frame.get(14..).filter(|_| is_from_router(frame))?;
    match be16(frame, 12)? {
        ETHERTYPE_IPV4 if is_error(frame) => be16(network, 20 + 8 + 4),
        ETHERTYPE_IPV4 => be16(network, 4),
        ETHERTYPE_IPV6 if is_error(frame) => be16(network, 40 + 8 + 2),
        ETHERTYPE_IPV6 => match (*network.get(6)?, *network.get(40)?) {
            // Neighbour discovery and reports of group membership.
            (ICMPV6, 130..=137 | 143) | (0, _) => None,
            _ => be16(network, 2),
        },
        _ => None,
    }
}

/// Whether a frame is an ICMP error, as the router sends them; its source may be translated, too. Those that a test sends
/// have the same number as the packet that they quote.
fn is_error(frame: &[u8]) -> bool {
    let at = |at: usize| frame.get(at).copied();
    let (next, kind) = match be16(frame, 12) {
        Some(ETHERTYPE_IPV4) => (at(14 + 9), at(14 + 20)),
        _ => (at(14 + 6), at(14 + 40)),
    };
    // Destination Unreachable, Redirect, Time Exceeded and Parameter Problem. Whatever is in later fragments is no type.
    let is_fragment = be16(frame, 12) == Some(ETHERTYPE_IPV4)
        && be16(frame, 14 + 6).is_some_and(|it| it & 0x1fff != 0);
    match (next, kind) {
        (Some(ICMP), Some(3 | 5 | 11 | 12)) => !is_fragment,
        (Some(ICMPV6), Some(kind)) => kind < 128,
        _ => false,
    }
}

/// Makes equal what may differ between two errors: the identification of IPv4, and with it the checksum of the
/// header, and the flow label.
fn normalise(mut frame: Vec<u8>) -> Vec<u8> {
    let is_ipv4 = be16(&frame, 12) == Some(ETHERTYPE_IPV4);
    let fields = if is_ipv4 { [14 + 4..14 + 6, 14 + 10..14 + 12] } else { [14 + 1..14 + 4, 0..0] };
    for field in fields {
        if let Some(octets) = frame.get_mut(field) {
            octets.fill(0);
        }
    }
    frame
}

/// Makes equal the identification of fragments of IPv6, which `ip6_fragment` chooses at random also for packets that
/// connection tracking has reassembled.
fn without_fragment_id(mut frame: Vec<u8>) -> Vec<u8> {
    const FRAGMENT: u8 = 44;
    if be16(&frame, 12) == Some(ETHERTYPE_IPV6)
        && frame.get(14 + 6) == Some(&FRAGMENT)
        && let Some(id) = frame.get_mut(14 + 40 + 4..14 + 40 + 8)
    {
        id.fill(0);
    }
    frame
}

/// Sends packets into both worlds and collects what becomes of them.
fn exchange(pair: &Pair, inputs: &[Input]) -> Result<[Outputs; 2]> {
    let worlds: [&World; 2] = [&pair.kernel, &pair.world];
    for input in inputs {
        worlds.iter().try_for_each(|world| world.tap(input.side).send(&input.frame))?;
    }
    let mut outputs = [Outputs::new(), Outputs::new()];
    let (begun, mut last) = (Instant::now(), Instant::now());
    loop {
        let [one, other] = worlds;
        tap::wait(&[&one.left, &one.right, &other.left, &other.right], QUIET);
        for (world, outputs) in worlds.iter().zip(&mut outputs) {
            for side in [Side::Left, Side::Right] {
                while let Some(frame) = world.tap(side).receive() {
                    let Some(cause) = cause(&frame) else { continue };
                    let frame = match is_error(&frame) {
                        true => normalise(frame),
                        false => without_fragment_id(frame),
                    };
                    let frames = outputs.entry(cause).or_default();
                    frames.push((side, frame));
                    frames.sort();
                    last = Instant::now();
                }
            }
        }
        let agree = outputs[0] == outputs[1];
        let is_quiet = last.elapsed() > QUIET * 2;
        if agree && is_quiet || begun.elapsed() > BATCH_TIMEOUT {
            return Ok(outputs);
        }
    }
}

/// The connections of one ruleset.
pub struct Talk<'a> {
    pub pair: &'a mut Pair,
    pub name: String,
    pub connections: Vec<Connection>,
    /// How many packets were forwarded, and answered with an error.
    pub forwarded: usize,
    pub answered: usize,
}

impl Talk<'_> {
    /// Sends one packet of each of some connections, and compares what becomes of them.
    pub fn each(
        &mut self,
        from: From,
        which: impl Fn(&Connection) -> bool,
        segment: &Segment,
    ) -> Result<()> {
        let packets: Vec<(usize, From, Segment)> = self
            .connections
            .iter()
            .enumerate()
            .filter(|(_, it)| which(it))
            .map(|(n, _)| (n, from, segment.clone()))
            .collect();
        self.send(&packets)
    }

    pub fn send(&mut self, packets: &[(usize, From, Segment)]) -> Result<()> {
        let (mut inputs, mut of) = (Vec::new(), Vec::new());
        for (n, from, segment) in packets {
            let index = self.pair.next_index();
            if let Some(input) = self.connections[*n].packet(index, *from, segment) {
                inputs.push(input);
                of.push((*n, *from));
            }
        }
        self.send_inputs(&inputs, &of)
    }

    /// Sends packets of these connections and ends. Those with the same number are fragments of one packet.
    pub fn send_inputs(&mut self, inputs: &[Input], of: &[(usize, From)]) -> Result<()> {
        let outputs = exchange(self.pair, inputs)?;
        let nothing = Vec::new();
        for (input, (n, from)) in inputs.iter().zip(of.iter().copied()) {
            let [kernel, own] =
                outputs.each_ref().map(|it| it.get(&input.index).unwrap_or(&nothing));
            // An invalid packet of a carried connection is dropped where the kernel's error about it would be the
            // kernel's to send.
            let is_dropped = input.note.contains(INVALID)
                && own.is_empty()
                && kernel.iter().all(|it| is_error(&it.1));
            if kernel != own && !is_dropped {
                let list = |frames: &[(Side, Vec<u8>)]| -> String {
                    let texts = frames.iter().map(|(to, it)| format!("{to:?}: {}", describe(it)));
                    texts.collect::<Vec<_>>().join("\n  ")
                };
                bail!(
                    "{}: {} differs\nsent {}\nthe kernel sends {}\nFerroute sends {}\n{}",
                    self.name,
                    input.note,
                    describe(&input.frame),
                    list(kernel),
                    list(own),
                    self.pair.ferroute.account()
                );
            }
            if kernel.iter().any(|(_, frame)| is_error(frame)) {
                self.answered += 1;
            } else if let [(side, frame), ..] = &kernel[..] {
                self.forwarded += 1;
                if from == From::Client && self.connections[n].seen.is_none() {
                    self.connections[n].reached(*side, frame);
                }
            }
        }
        ensure!(
            outputs[0].get(&0) == outputs[1].get(&0),
            "{}: other frames differ: {:02x?}",
            self.name,
            outputs.map(|it| it.get(&0).cloned())
        );
        Ok(())
    }

    /// Opens the connections, and has the kernel take those of UDP for assured.
    fn open(&mut self) -> Result<()> {
        let data = Segment { len: 40, note: "opens".into(), ..Segment::default() };
        let syn = Segment { flags: SYN, len: 0, options: vec![2, 4, 5, 0xb4], ..data.clone() };
        self.each(From::Client, Connection::is_tcp, &syn)?;
        self.each(From::Client, |it| !it.is_tcp(), &data)?;
        self.each(From::Server, Connection::is_tcp, &Segment { flags: SYN | ACK, ..syn })?;
        self.each(From::Server, |it| !it.is_tcp(), &data)?;
        let ack = Segment { flags: ACK, len: 0, note: "is open".into(), ..Segment::default() };
        self.each(From::Client, |it| it.is_tcp() && it.seen.is_some(), &ack)?;
        for router in self.pair.routers() {
            for family in ["ipv4", "ipv6"] {
                // An error says that there is none.
                let _ = router
                    .run(&format!("conntrack -U -f {family} -p udp --status SEEN_REPLY,ASSURED"));
            }
        }
        Ok(())
    }

    /// Waits until the connections that the kernel has as established are carried. Returns how many.
    fn wait_until_carried(&self, are_carried: bool) -> Result<u64> {
        let listed = entries(&self.pair.world.lab.router)?;
        // To the router itself, for which there was no answer.
        let is_own = |line: &str| line.contains(" src=198.18.1.1 ");
        let is_open = |line: &&String| {
            line.contains("ASSURED")
                && !is_own(line)
                && (line.contains("udp") || line.contains("ESTABLISHED"))
        };
        let open = listed.iter().filter(is_open).count() as u64;
        if ferroute::by_kernel() {
            return Ok(open);
        }
        let end = Instant::now() + if are_carried { BATCH_TIMEOUT } else { QUIET * 30 };
        loop {
            let carried = carried_flows(self.pair)?;
            if carried == Some(open) || !are_carried && Instant::now() > end {
                return Ok(carried.unwrap_or(0));
            }
            ensure!(Instant::now() < end, "{}: {carried:?} of {open} are carried", self.name);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends packets of the established connections.
    fn use_them(&mut self, rng: &mut Rng) -> Result<()> {
        let open: Vec<usize> =
            (0..self.connections.len()).filter(|n| self.connections[*n].seen.is_some()).collect();
        if open.is_empty() {
            return Ok(());
        }
        // First one packet each way, which does nothing special.
        let plain =
            Segment { flags: ACK | PSH, len: 30, note: "data".into(), ..Segment::default() };
        self.each(From::Client, |it| it.seen.is_some(), &plain)?;
        self.each(From::Server, |it| it.seen.is_some(), &plain)?;
        for _ in 0..BATCHES {
            let mut packets = Vec::new();
            for _ in 0..BATCH {
                let n = rng.pick(&open);
                let from = rng.pick(&[From::Client, From::Server]);
                packets.push((n, self.connections[n].may_send(from), random_segment(rng)));
            }
            self.send(&packets)?;
        }
        Ok(())
    }

    /// Ends connections in each of the ways: FIN, RST, invalid RST, not at all.
    fn close(&mut self) -> Result<()> {
        let tcp: Vec<usize> = (0..self.connections.len())
            .filter(|n| self.connections[*n].is_tcp() && self.connections[*n].seen.is_some())
            .collect();
        let segment =
            |flags, note: &str| Segment { flags, note: note.into(), ..Segment::default() };
        // Both ends have acknowledged everything; the kernel, too, knows that of a connection that was carried until a
        // packet of it reached a rule of the kernel's: it learns an acknowledgement when it has seen what comes after
        // the acknowledged octets, or the last of them.
        let ack = segment(ACK, "acknowledges");
        for from in [From::Client, From::Server, From::Client] {
            self.send(&tcp.iter().map(|n| (*n, from, ack.clone())).collect::<Vec<_>>())?;
        }
        let by_fin: Vec<usize> = tcp.iter().copied().filter(|n| n % 3 == 0).collect();
        let by_rst: Vec<usize> = tcp.iter().copied().filter(|n| n % 3 == 1).collect();
        let turns = [
            (&by_fin, From::Client, segment(FIN | ACK, "FIN")),
            (&by_fin, From::Server, segment(FIN | ACK, "FIN")),
            (&by_fin, From::Client, segment(ACK, "last ACK")),
            (&by_rst, From::Server, Segment { seq_offset: -50, ..segment(RST, INVALID) }),
            (&by_rst, From::Client, segment(ACK, "still open")),
            (&by_rst, From::Server, segment(RST | ACK, "RST")),
        ];
        for (which, from, segment) in turns {
            self.send(&which.iter().map(|n| (*n, from, segment.clone())).collect::<Vec<_>>())?;
        }
        // A packet after 2 seconds makes a connection of UDP assured.
        let undated = |line: String| match line.starts_with("udp") {
            true => line.replace("[ASSURED] ", ""),
            false => line,
        };
        let [kernel, own] = self.pair.routers().map(|router| -> Result<Vec<String>> {
            Ok(entries(router)?.into_iter().map(undated).collect())
        });
        let (kernel, own) = (kernel?, own?);
        // On a busy machine a worker has been seen to forward the last acknowledgement itself. The kernel's entry then
        // expires sooner. More than one of hundreds of connections is a fault.
        let ended = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|line| line.replace("LAST_ACK", "TIME_WAIT")).collect()
        };
        let is_late = kernel != own && ended(&kernel) == ended(&own);
        if is_late {
            let before = LATE.fetch_add(1, Ordering::Relaxed);
            eprintln!("{}: a connection is still in LAST_ACK", self.name);
            ensure!(before == 0, "{}: connections stay in LAST_ACK: {own:#?}", self.name);
        }
        ensure!(
            kernel == own || is_late,
            "{}: entries {own:#?}, the kernel's are {kernel:#?}\n{}",
            self.name,
            self.pair.ferroute.account()
        );
        Ok(())
    }
}

/// How many connections workers carry.
pub fn carried_flows(pair: &Pair) -> Result<Option<u64>> {
    // Its exit status is 1 while anything is wrong, such as a worker that answers late on a busy machine.
    let status = pair.ferroute.command(&["-j", "status"]).output()?.stdout;
    let status: serde_json::Value = serde_json::from_slice(&status).context("status")?;
    Ok(status["carried_flows"].as_u64())
}

/// Deletes all connections. Those that workers carry are carried until they have been told.
pub fn delete_connections(pair: &Pair) -> Result<()> {
    for router in pair.routers() {
        // It prints how many there were to standard error.
        let _ = router.run("conntrack -F");
    }
    let end = Instant::now() + BATCH_TIMEOUT;
    while !ferroute::by_kernel() && carried_flows(pair)? != Some(0) {
        ensure!(Instant::now() < end, "deleted connections are carried");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The entries of `conntrack -L`, without what depends on time. After a RST the kernel may keep an entry as
/// established for 10 seconds, if it saw only a part of the acknowledgements before.
fn entries(router: &Netns) -> Result<Vec<String>> {
    let listed = router.run("conntrack -L -f ipv4")? + &router.run("conntrack -L -f ipv6")?;
    let is_timed = |(n, field): (usize, &str)| n == 2 || field.starts_with("use=");
    let line = |line: &str| {
        let seconds = line.split_whitespace().nth(2).and_then(|it| it.parse::<u32>().ok());
        let is_reset = line.starts_with("tcp") && seconds.is_some_and(|seconds| seconds <= 10);
        let fields = line.split_whitespace().enumerate().filter(|it| !is_timed(*it));
        let line = fields.map(|(_, field)| field).collect::<Vec<_>>().join(" ");
        if is_reset { line.replace("ESTABLISHED", "CLOSE") } else { line }
    };
    let mut lines: Vec<String> =
        listed.lines().filter(|line| line.contains("src=")).map(line).collect();
    lines.sort();
    Ok(lines)
}

/// Connections of each protocol and family, to several destinations, and one from the right. Those to the router
/// itself only if a ruleset translates them: `forwards_ports`.
fn connections(forwards_ports: bool) -> Vec<Connection> {
    let end = |address: &str, port| (address.parse().expect("an address"), port);
    let new = |is_tcp, side, client, to| Connection::new(protocol(is_tcp), side, client, to);
    let left = Side::Left;
    let mut all = vec![
        new(true, left, end("198.18.1.2", 1024), end("198.18.2.2", 80)),
        new(true, left, end("198.18.1.3", 1100), end("203.0.113.5", 80)),
        new(true, left, end("198.18.1.66", 1200), end("100.64.1.1", 33434)),
        new(true, left, end("198.18.1.2", 40000), end("198.18.2.1", 8080)),
        new(true, Side::Right, end("198.18.2.3", 1300), end("198.18.1.3", 80)),
        new(true, left, end("2001:db8:1::2", 1024), end("2001:db8:2::2", 80)),
        new(true, left, end("2001:db8:1::3", 1100), end("2001:db8:5::5", 33434)),
        new(true, left, end("2001:db8:1::2", 40000), end("2001:db8:2::1", 8080)),
        new(false, left, end("198.18.1.2", 1024), end("198.18.2.2", 53)),
        new(false, left, end("198.18.1.3", 1050), end("198.51.100.5", 33434)),
        new(false, left, end("198.18.1.3", 1060), end("198.18.1.1", 8080)),
        new(false, left, end("2001:db8:1::2", 1024), end("2001:db8:3::5", 53)),
        new(false, Side::Right, end("2001:db8:2::3", 1300), end("2001:db8:1::3", 33434)),
    ];
    all.retain(|it| forwards_ports || it.to.1 != 8080);
    all
}

/// How many packets passed userspace, and how many the kernel forwarded.
#[derive(Debug, Default, Clone, Copy)]
pub struct Share {
    pub carried: u64,
    pub kernel: u64,
}

/// Runs the connections through a ruleset that both worlds have. `are_carried`: all that are established.
fn converse(
    pair: &mut Pair,
    (name, script): (&str, &str),
    are_carried: bool,
    rng: &mut Rng,
) -> Result<Share> {
    pair.wait_until_followed()?;
    delete_connections(pair)?;
    let mut talk = Talk {
        pair,
        name: name.to_owned(),
        connections: connections(script.contains("8080")),
        forwarded: 0,
        answered: 0,
    };
    talk.open()?;
    let open = talk.wait_until_carried(are_carried)?;
    let before = talk.pair.ferroute.forwarded_by_kernel()?;
    let redirects_before = talk.pair.punts("REDIRECT")?;
    let forwarded_before = talk.forwarded;
    talk.use_them(rng)?;
    let after = talk.pair.ferroute.forwarded_by_kernel()?;
    let redirects = talk.pair.punts("REDIRECT")? - redirects_before;
    let forwarded = (talk.forwarded - forwarded_before) as u64;
    let talk_answered = talk.answered;
    talk.close()?;
    let (kernel, own) = (counters_of_kernel(&pair.kernel.lab.router)?, pair.counters()?);
    ensure!(kernel == own, "{name}: counters {own:?}, the kernel's are {kernel:?}");
    ensure!(pair.ferroute.is_running(), "{name}: ferroute has ended\n{}", pair.ferroute.said());
    let by_kernel = after.v4 + after.v6 - before.v4 - before.v6;
    if are_carried && !ferroute::by_kernel() {
        ensure!(open > 0, "{name}: no connection is open");
        // The kernel counts packets that are too long before it refuses them, and sends the redirects.
        let refused = talk_answered as u64 + redirects;
        ensure!(
            by_kernel <= refused,
            "{name}: the kernel forwarded {by_kernel} packets of {forwarded}, {refused} were refused"
        );
    }
    Ok(Share { carried: forwarded.saturating_sub(by_kernel), kernel: by_kernel })
}

/// Has Ferroute follow the kernel's connections: entries that are made before send no events.
pub fn listen(pair: &mut Pair) -> Result<()> {
    pair.load(
        "table inet t { chain c { type filter hook forward priority 0; ct state new accept; }; }",
    )?;
    pair.wait_until_followed()?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn connections_are_treated_as_by_the_kernel() -> Result<()> {
    let mut pair = Pair::build()?;
    let mut rng = Rng::new(pair.seed());
    listen(&mut pair)?;
    let (ours, kernels) = RULESETS.split_once("\n#### kernel\n").expect("such a line");
    for (rulesets, are_carried) in [(ours, true), (kernels, false)] {
        for ruleset in rulesets.split("\n### ").skip(1) {
            let (name, script) = ruleset.split_once('\n').expect("a name");
            pair.load(script)?;
            let share = converse(&mut pair, (name, script), are_carried, &mut rng)?;
            if !are_carried && !ferroute::by_kernel() {
                ensure!(share.kernel > 0, "{name}: the kernel forwarded nothing");
            }
        }
    }
    pair.ferroute.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn connections_are_treated_as_by_the_kernel_with_generated_rulesets() -> Result<()> {
    let mut pair = Pair::build()?;
    let mut rng = Rng::new(pair.seed());
    listen(&mut pair)?;
    let (mut sum, mut refused) = (Share::default(), 0);
    for n in 0..GENERATED {
        let script = random_stateful(&mut rng);
        let name = format!("ruleset {n}:\n{script}\n");
        if let Err(error) = pair.load(&script) {
            ensure!(format!("{error:#}").contains("onflicting protocols"), "{name}{error:#}");
            refused += 1;
            continue;
        }
        let policies = match rng.one_in(4) {
            true => random_policies(&mut rng, STRICT_ACTIONS),
            false => Default::default(),
        };
        load_policies(&pair, &policies.0, policies.1)?;
        let name = format!("{name}{}", policies.0);
        let share = converse(&mut pair, (&name, &script), false, &mut rng)?;
        sum = Share { carried: sum.carried + share.carried, kernel: sum.kernel + share.kernel };
    }
    println!("{refused} of {GENERATED} rulesets were refused by nft; {sum:?}");
    ensure!(refused < GENERATED / 4, "nft refused {refused} of {GENERATED} rulesets");
    if !ferroute::by_kernel() {
        ensure!(sum.carried > 4 * sum.kernel, "too few packets were carried: {sum:?}");
    }
    pair.ferroute.terminate()
}

/// The kernel has not seen what workers carried of a connection that a rule then left to it. Its entry is liberal, and it
/// compares a RST with the highest acknowledgement of what it has seen: one exchange is sufficient.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_kernel_judges_resets_of_a_connection_that_returned_to_it() -> Result<()> {
    const LOGGED: &str = "
        table inet t {
            chain forward {
                type filter hook forward priority 0
                tcp dport 80 log prefix \"x\" group 3 counter
                ct state established counter
                ct state invalid counter
            }
        }";
    let mut pair = Pair::build()?;
    listen(&mut pair)?;
    pair.load(LOGGED)?;
    pair.wait_until_followed()?;
    delete_connections(&pair)?;
    let (connections, forwarded, answered) = (connections(false), 0, 0);
    let mut talk =
        Talk { pair: &mut pair, name: "logged".into(), connections, forwarded, answered };
    talk.open()?;
    talk.wait_until_carried(true)?;
    let to_80 = |it: &Connection| it.is_tcp() && it.to.1 == 80;
    let segment = |flags, note: &str| Segment { flags, note: note.into(), ..Segment::default() };
    // Carried: no rule of the kernel's matches the answers.
    talk.each(From::Server, to_80, &Segment { len: 100, ..segment(ACK, "data") })?;
    // The first one of these makes the connection the kernel's.
    for from in [From::Client, From::Server, From::Client] {
        talk.each(from, to_80, &segment(ACK, "acknowledges"))?;
    }
    let before = carried_flows(talk.pair)?;
    talk.each(From::Server, to_80, &Segment { seq_offset: -50, ..segment(RST, INVALID) })?;
    let (kernel, own) = (counters_of_kernel(&pair.kernel.lab.router)?, pair.counters()?);
    ensure!(kernel == own, "counters {own:?}, the kernel's are {kernel:?}; {before:?} are carried");
    pair.ferroute.terminate()
}
