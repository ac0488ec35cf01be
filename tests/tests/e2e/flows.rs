//! `conntrack show` and `count`, compared with conntrack-tools, and `flows show` and `top`, compared with what
//! was sent.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::ferroute::binary;
use ferroute_tests::lab::addr::{LEFT4, LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};
use serde_json::Value;

const STATEFUL: &str = "table inet fw { chain forward { type filter hook forward priority 0; policy drop; \
                        ct state established accept; udp dport 5001 accept; }; }";
const PORT: u16 = 5001;
/// Octets of a message, and of its packet from the IP header on.
const MESSAGE: usize = 32;
const PACKET4: u64 = 20 + 8 + MESSAGE as u64;
const PACKET6: u64 = 40 + 8 + MESSAGE as u64;

/// Two ends of a UDP connection, in the hosts of a lab.
struct Ends {
    client: UdpSocket,
    server: UdpSocket,
}

impl Ends {
    fn of(lab: &Lab, from: &str, to: &str) -> Result<Ends> {
        let socket = |netns: &Netns, address: &str, port: u16| {
            let address = (address.parse::<std::net::IpAddr>()?, port);
            netns.enter(move || Ok(UdpSocket::bind(address)?))
        };
        let (client, server) = (socket(&lab.left, from, 0)?, socket(&lab.right, to, PORT)?);
        client.connect(server.local_addr()?)?;
        server.connect(client.local_addr()?)?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(Duration::from_secs(10)))?;
        }
        Ok(Ends { client, server })
    }

    /// Sends a message and its answer.
    fn exchange(&self) -> Result<()> {
        let mut octets = [7; MESSAGE];
        self.client.send(&octets)?;
        self.server.recv(&mut octets).context("the message is lost")?;
        self.server.send(&octets)?;
        self.client.recv(&mut octets).context("the answer is lost")?;
        Ok(())
    }

    /// Exchanges messages until workers carry this many flows and every packet of this one.
    fn until_carried(&self, running: &Ferroute, flows: u64) -> Result<()> {
        let is_carried = || {
            let Ok(before) = running.forwarded_by_kernel() else { return false };
            let go_on = (0..20).all(|_| self.exchange().is_ok());
            let status = running.json(&["status"]);
            go_on
                && status.is_ok_and(|status| status["carried_flows"] == flows)
                && running.forwarded_by_kernel().is_ok_and(|after| after == before)
        };
        // UDP is assured 2 s after its first packet.
        ensure!(eventually(is_carried), "it is not carried: {}", running.account());
        Ok(())
    }
}

/// A command of Ferroute in the router, without a daemon.
fn alone(lab: &Lab, args: &str) -> Command {
    let mut command = lab.router.command(binary());
    command.args(args.split_whitespace()).env("FERROUTE_CONTROL", "/nonexistent/control.sock");
    command
}

fn sorted(text: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = String::from_utf8_lossy(text).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Entries of many kinds.
fn insert_entries(router: &Netns) -> Result<()> {
    router.sysctl("net/netfilter/nf_conntrack_acct", "1")?;
    for entry in [
        "-s 10.0.0.1 -d 192.0.2.1 -p tcp --sport 1024 --dport 80 --state ESTABLISHED -u ASSURED,SEEN_REPLY",
        "-s 10.0.0.2 -d 192.0.2.1 -p tcp --sport 1025 --dport 80 --state SYN_SENT",
        "-s 10.0.0.3 -d 192.0.2.2 -p tcp --sport 1026 --dport 443 --state TIME_WAIT -u ASSURED,SEEN_REPLY -m 18",
        "-s 10.0.1.1 -d 192.0.2.1 -p udp --sport 1027 --dport 53 -m 2",
        "-s 10.0.1.2 -d 192.0.2.3 -p udp --sport 1028 --dport 53 -u SEEN_REPLY --src-nat 203.0.113.9",
        "-s 10.0.1.3 -d 192.0.2.4 -p udp --sport 1029 --dport 53 -u SEEN_REPLY --dst-nat 10.9.9.9",
        "-s 2001:db8:1::1 -d 2001:db8:2::1 -p tcp --sport 1030 --dport 80 --state ESTABLISHED -u ASSURED,SEEN_REPLY",
        "-s 2001:db8:1::2 -d 2001:db8:2::1 -p udp --sport 1031 --dport 53",
    ] {
        router.run(&format!("conntrack -I -t 600 {entry}"))?;
    }
    router.run(
        "conntrack -I -t 600 -s 10.0.2.1 -d 192.0.2.1 -p icmp --icmp-type 8 --icmp-code 0 \
         --icmp-id 77",
    )?;
    router.run("conntrack -I -t 600 -s 10.0.3.1 -d 192.0.2.1 -p udp --sport 9 --dport 9 -w 5")?;
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn flows_lines_and_filters_are_those_of_conntrack() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    insert_entries(&lab.router)?;
    // How many entries each selects, so that the comparison is not one of empty lists.
    for (filter, count) in [
        ("", 10),
        ("-o extended", 10),
        ("-o extended,id", 10),
        ("-f ipv4", 8),
        ("-f ipv6", 2),
        ("-p tcp", 4),
        ("-p icmp", 1),
        ("-p 17", 5),
        ("-s 10.0.0.0/24", 3),
        ("--orig-src 10.0.0.1", 1),
        ("-s 10.0.0.0/23 -p udp", 3),
        ("-d 192.0.2.1", 5),
        ("--orig-dst 192.0.2.0/30 -p tcp", 3),
        ("-s 2001:db8:1::/64", 2),
        ("-r 10.9.9.9", 1),
        ("-q 203.0.113.9", 1),
        ("-p udp --dport 53", 4),
        ("-p udp --orig-port-dst 53 --orig-port-src 1028", 1),
        ("-p tcp --sport 1024", 1),
        ("-p tcp --state ESTABLISHED", 2),
        ("-p tcp --state TIME_WAIT", 1),
        ("-m 2", 1),
        ("-m 2/2", 2),
        ("--mark 0x12", 1),
        ("-u ASSURED", 3),
        ("-u SEEN_REPLY", 5),
        ("-n", 1),
        ("--src-nat 203.0.113.9", 1),
        ("-g", 1),
        ("--dst-nat 10.9.9.9", 1),
        ("-g 10.9.9.8", 0),
    ] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // The time-outs count down.
        let are_equal = || {
            let list = alone(&lab, &format!("conntrack show {filter}")).output();
            let Ok(list) = list else { return false };
            ours = sorted(&list.stdout);
            let list = lab.router.output(&format!("conntrack -L {filter}"));
            theirs = list.map_or_else(|_| Vec::new(), |list| sorted(&list.stdout));
            ours == theirs
        };
        ensure!(eventually(are_equal), "{filter}:\n{ours:#?}\nconntrack:\n{theirs:#?}");
        ensure!(ours.len() == count, "{filter}: {count} expected: {ours:#?}");
        if !filter.contains("-o") {
            let number = alone(&lab, &format!("conntrack count {filter}")).output()?;
            let number = String::from_utf8_lossy(&number.stdout).into_owned();
            ensure!(number == format!("{count}\n"), "{filter}: {number}");
        }
    }
    let json = alone(&lab, "conntrack show -j -p tcp -s 10.0.0.1").output()?;
    let json: Value = serde_json::from_slice(&json.stdout)?;
    let is_right = json[0]["state"] == "ESTABLISHED"
        && json[0]["original"]["sport"] == 1024
        && json[0]["status"].as_array().is_some_and(|status| status.contains(&"ASSURED".into()))
        && json[0]["carried"] == false;
    ensure!(is_right, "{json}");
    let pretty = alone(&lab, "conntrack show --pretty").output()?;
    let pretty: Value = serde_json::from_slice(&pretty.stdout)?;
    ensure!(pretty.as_array().map(Vec::len) == Some(10), "{pretty}");
    Ok(())
}

/// A user without the privilege, and one without a daemon, are told.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn flows_of_no_daemon_and_a_missing_privilege_are_reported() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = alone(&lab, "conntrack show").output()?;
    ensure!(
        output.status.success() && said(&output).contains("no ferroute runs here"),
        "{output:?}"
    );
    for args in ["conntrack show --carried", "flows show", "flows top -c 1"] {
        let output = alone(&lab, args).output()?;
        ensure!(output.status.code() == Some(1), "{args}: {output:?}");
        ensure!(said(&output).contains("no ferroute runs here"), "{args}: {output:?}");
    }
    let mut unprivileged = lab.router.command("setpriv");
    unprivileged.args(["--bounding-set", "-net_admin"]).arg(binary()).args(["conntrack", "show"]);
    let output = unprivileged.output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(said(&output).contains("CAP_NET_ADMIN: run this as root"), "{output:?}");
    Ok(())
}

/// The carried connections are marked, and each of their packets is counted.
#[test]
#[ignore = "needs root: run by scripts/test"]
fn flows_that_are_carried_are_marked_and_counted() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    lab.router.run(&format!("nft {STATEFUL}"))?;
    let running = Ferroute::start(&lab)?;
    let four = Ends::of(&lab, LEFT4, RIGHT4)?;
    four.exchange()?;
    four.until_carried(&running, 1)?;
    let six = Ends::of(&lab, LEFT6, RIGHT6)?;
    six.until_carried(&running, 2)?;
    // One that is not carried.
    lab.router.run("conntrack -I -t 600 -s 10.0.0.1 -d 192.0.2.1 -p udp --sport 9 --dport 9")?;

    let (mut marked, mut theirs) = (Vec::new(), Vec::new());
    let are_equal = || {
        let Ok(list) = running.ask(&["conntrack", "show", "--carried"]) else { return false };
        marked = sorted(list.as_bytes());
        let plain = marked.iter().filter_map(|line| {
            let (line, idle) = line.split_once(" idle=")?;
            idle.strip_suffix("ms")?.parse::<u64>().ok()?;
            line.contains(" [ASSURED] [CARRIED] ").then(|| line.replace("[CARRIED] ", ""))
        });
        let plain: Vec<String> = plain.collect();
        let list = lab.router.run("conntrack -L -u ASSURED");
        theirs = list.map_or_else(|_| Vec::new(), |list| sorted(list.as_bytes()));
        plain.len() == 2 && plain == theirs
    };
    ensure!(eventually(are_equal), "{marked:#?}\nconntrack:\n{theirs:#?}");
    let all = running.json(&["conntrack", "show"])?;
    let all = all.as_array().context("no array")?;
    let carried = all.iter().filter(|entry| entry["carried"] == true).count();
    ensure!((all.len(), carried) == (3, 2), "{all:#?}");
    ensure!(running.ask(&["conntrack", "count"])? == "3 (2 carried)\n");
    let counts = [
        running.json(&["conntrack", "count"])?,
        running.json(&["conntrack", "count", "-f", "ipv6"])?,
        running.json(&["conntrack", "count", "--carried"])?,
    ];
    let of =
        |entries: u64, carried: u64| serde_json::json!({"entries": entries, "carried": carried});
    ensure!(counts == [of(3, 2), of(1, 1), of(2, 2)], "{counts:?}");

    let flow = |family: &str| -> Result<Value> { Ok(running.json(&[family, "flows"])?[0].clone()) };
    for (family, ends, octets) in [("-4", &four, PACKET4), ("-6", &six, PACKET6)] {
        let before = flow(family)?;
        for _ in 0..500 {
            ends.exchange()?;
        }
        let after = flow(family)?;
        ensure!(after["original"]["dport"] == PORT, "{after}");
        ensure!(after["idle_ms"].as_u64().is_some_and(|idle_ms| idle_ms < 10_000), "{after}");
        for direction in ["original", "reply"] {
            let more = |name: &str| -> Option<u64> {
                let count = |flow: &Value| flow[direction][name].as_u64();
                count(&after)?.checked_sub(count(&before)?)
            };
            let counted = (more("packets"), more("octets"));
            ensure!(counted == (Some(500), Some(500 * octets)), "{direction}: {before} {after}");
        }
    }
    let text = running.ask(&["flows", "show"])?;
    ensure!(text.lines().count() == 2 && text.contains(" octets="), "{text}");

    // A daemon of another network namespace knows other connections.
    let mut elsewhere = lab.left.command(binary());
    elsewhere.args(["conntrack", "show"]).env("FERROUTE_CONTROL", running.control());
    let output = elsewhere.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("another network namespace"), "{output:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn flows_top_shows_the_rates_of_what_is_sent() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    lab.router.run(&format!("nft {STATEFUL}"))?;
    let running = Ferroute::start(&lab)?;
    let idle = Ends::of(&lab, LEFT6, RIGHT6)?;
    idle.exchange()?;
    idle.until_carried(&running, 1)?;
    let ends = Ends::of(&lab, LEFT4, RIGHT4)?;
    ends.until_carried(&running, 2)?;
    let (stopping, exchanged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (is_stopping, count) = (Arc::clone(&stopping), Arc::clone(&exchanged));
    let sender = thread::spawn(move || -> Result<()> {
        while !is_stopping.load(Relaxed) {
            ends.exchange()?;
            count.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    ensure!(eventually(|| exchanged.load(Relaxed) > 100), "nothing is exchanged");
    let (begun, before) = (Instant::now(), exchanged.load(Relaxed));
    let top = running.json(&["flows", "top", "-n", "5", "-i", "2", "-c", "1"]);
    let (took, sent) = (begun.elapsed(), exchanged.load(Relaxed) - before);
    let text = running.ask(&["flows", "top", "-i", "0.5", "-c", "2"]);
    stopping.store(true, Relaxed);
    sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    let top = top?;
    let flows = top["flows"].as_array().context("no flows")?;
    ensure!(flows.len() == 1 && top["carried"] == 2, "{top}");
    let mean = sent as f64 / took.as_secs_f64();
    for direction in ["original", "reply"] {
        let of = |name: &str| flows[0][direction][name].as_f64().unwrap_or(-1.0);
        let rate = of("packets_per_s");
        ensure!((0.7 * mean..1.3 * mean).contains(&rate), "{rate}, {mean} sent: {top}");
        let bits = of("bits_per_s") / rate / 8.0;
        ensure!((bits - PACKET4 as f64).abs() < 1e-6, "{bits} octets per packet: {top}");
        ensure!(of("packets") <= (sent + 1) as f64, "{sent} sent: {top}");
    }
    let text = text?;
    ensure!(
        text.matches("packets/s").count() == 4 && text.matches("\nudp ").count() == 2,
        "{text}"
    );
    Ok(())
}
