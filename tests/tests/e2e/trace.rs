//! `ferroute trace`: the stages, rules and ends of packets, and that tracing changes nothing.

use std::fs::{self, File};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferroute_tests::conversation::{Conversation, PORT, are_carried, nft};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6, RT_LEFT4};
use ferroute_tests::ping::{ping, ping_each};
use ferroute_tests::{EVENT_TIMEOUT, Ferroute, Lab, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// A running `ferroute trace`.
struct Trace {
    child: Child,
    dir: TempDir,
}

impl Trace {
    /// Starts it and waits until it traces.
    fn start(ferroute: &Ferroute, args: &[&str]) -> Result<Trace> {
        let dir = tempfile::tempdir()?;
        let args: Vec<&str> = std::iter::once("trace").chain(args.iter().copied()).collect();
        let mut command = ferroute.command(&args);
        command.stdin(Stdio::null()).stdout(File::create(dir.path().join("out"))?);
        command.stderr(File::create(dir.path().join("said"))?);
        let mut this = Trace { child: command.spawn()?, dir };
        let started = eventually(|| {
            let ended = !matches!(this.child.try_wait(), Ok(None));
            ended || this.read("said").contains("tracing on")
        });
        ensure!(started && this.read("said").contains("tracing on"), "{}", this.read("said"));
        Ok(this)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for its end; returns its status, standard output and standard error.
    fn ended(mut self) -> Result<(ExitStatus, String, String)> {
        let end = Instant::now() + EVENT_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok((status, self.read("out"), self.read("said")));
            }
            ensure!(Instant::now() < end, "it does not end: {}", self.read("said"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The text of a trace that ends by itself.
    fn text(self) -> Result<String> {
        let (status, out, said) = self.ended()?;
        ensure!(status.success(), "{status}: {said}");
        Ok(out)
    }

    /// The packets of a trace with -j that ends by itself.
    fn packets(self) -> Result<Vec<Value>> {
        let text = self.text()?;
        text.lines().map(|line| serde_json::from_str(line).context("no JSON")).collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Traces while `cause` has packets forwarded.
fn traced(ferroute: &Ferroute, args: &[&str], cause: impl Fn() -> Result<()>) -> Result<Trace> {
    let trace = Trace::start(ferroute, args)?;
    cause()?;
    Ok(trace)
}

/// The steps of a stage of a packet.
fn steps<'a>(packet: &'a Value, stage: &str) -> Vec<&'a Value> {
    let stages = packet["stages"].as_array().into_iter().flatten();
    let of = stages.filter(|of| of["stage"] == stage);
    of.filter_map(|of| of["steps"].as_array()).flatten().collect()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_forwarded_packet_has_its_stages_and_rules() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(
        &lab.router,
        "table inet fw {
            set bad { type ipv4_addr; elements = { 192.0.2.1 }; }
            chain web { tcp dport { 80, 443 } accept; }
            chain forward {
                type filter hook forward priority filter; policy accept;
                ip saddr @bad drop
                iifname rt-right counter
                ip protocol icmp jump web
                meta l4proto ipv6-icmp jump web
                counter
            }
        }",
    )?;
    let running = Ferroute::start(&lab)?;
    for (address, filter) in [(RIGHT4, "icmp[0] = 8"), (RIGHT6, "ip6[40] = 128")] {
        ping_each(&lab.left, address, 1)?;
        let cause = || ping_each(&lab.left, address, 1).map(drop);
        let text = traced(&running, &["-n", "1", filter], cause)?.text()?;
        eprintln!("{text}");
        let v6 = address == RIGHT6;
        for line in [
            "packet 1, worker 0, ",
            if v6 {
                "\n  ip6_rcv_core        version 6, ttl 64"
            } else {
                "\n  ip_rcv_core         version 4, ttl 64, length 84\n"
            },
            &format!(
                "_route_input     {}{address} dev rt-right, mtu 1500\n",
                if v6 { "" } else { " " }
            ),
            "ttl 63\n",
            "\n  FORWARD             inet fw forward handle ",
            "-> no match: iifname \"rt-right\": packet has \"rt-left\"\n",
            "-> jump web\n",
            "-> no match: ",
            "inet fw web: end\n",
            "counter -> continue\n",
            "inet fw forward: policy accept\n",
            &format!("\n  neigh_output        {address} lladdr 02:"),
            "\n  sent                rt-right\n",
        ] {
            ensure!(text.contains(line), "no {line:?} in\n{text}");
        }
        let set = "ip saddr @bad drop -> no match: ip saddr @bad: packet has 198.18.1.2\n";
        ensure!(v6 || text.contains(set), "no {set:?} in\n{text}");
    }
    running.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn packets_that_are_not_forwarded_have_their_reason() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(
        &lab.router,
        "table inet fw {
            chain forward {
                type filter hook forward priority filter; policy accept;
                ip length 100 counter drop
                ip length 101 limit rate 1000/second accept
            }
        }",
    )?;
    let running = Ferroute::start(&lab)?;
    ping_each(&lab.left, RIGHT4, 1)?;
    let last = |args: &str| -> Result<Value> {
        let cause = || ping(&lab.left, args).map(drop);
        let trace = traced(&running, &["-n", "1", "-j", "icmp[0] = 8"], cause)?;
        trace.packets()?.pop().context("no packet")
    };
    let handle = |packet: &Value, result: &str| -> Result<String> {
        let rule = steps(packet, "FORWARD").into_iter().find(|step| step["result"] == result);
        let rule = rule.with_context(|| format!("no rule with {result}: {packet}"))?;
        Ok(format!("{} {} handle {}", rule["table"], rule["chain"], rule["handle"])
            .replace('"', ""))
    };

    let dropped = last(&format!("-c 1 -W 1 -s 72 {RIGHT4}"))?;
    ensure!(dropped["disposition"]["type"] == "dropped", "{dropped}");
    ensure!(dropped["disposition"]["reason"] == "NETFILTER_DROP", "{dropped}");
    ensure!(handle(&dropped, "drop")?.starts_with("inet fw forward handle"), "{dropped}");

    let left = last(&format!("-c 1 -W 5 -s 73 {RIGHT4}"))?;
    ensure!(left["disposition"]["type"] == "kernel", "{left}");
    ensure!(left["disposition"]["reason"] == "NETFILTER", "{left}");
    let why = left["disposition"]["why"].as_str().context("no reason")?;
    ensure!(why.starts_with(&handle(&left, "kernel")?) && why.contains("limit"), "{left}");

    let expired = last(&format!("-c 1 -W 1 -t 1 {RIGHT4}"))?;
    let end = &expired["disposition"];
    ensure!(end["type"] == "icmp_error" && end["protocol"] == "icmp", "{expired}");
    ensure!(end["icmp_type"] == 11 && end["code"] == 0, "{expired}");
    ensure!(end["reason"] == "TTL_EXCEEDED", "{expired}");

    let held = last("-c 1 -W 1 198.18.2.77")?;
    ensure!(held["disposition"]["type"] == "held", "{held}");
    ensure!(held["disposition"]["dst"] == "198.18.2.77", "{held}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_carried_connection_has_its_flow_and_translations() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    lab.right.run(&format!("ip route replace 198.18.1.0/24 via {}", "198.18.2.1"))?;
    nft(
        &lab.router,
        "table inet fw {
            chain forward {
                type filter hook forward priority filter; policy drop;
                tcp dport 22 drop
                ct state established,related counter accept
                ct state new tcp dport 5001 accept
            }
        }
        table ip nat {
            chain pre {
                type nat hook prerouting priority dstnat;
                iifname rt-left tcp dport 8080 dnat to 198.18.2.2:5001
            }
        }",
    )?;
    let running = Ferroute::start(&lab)?;
    let to = format!("{RT_LEFT4}:8080").parse()?;
    let at = format!("{RIGHT4}:{PORT}").parse()?;
    let talk = Conversation::between(&lab.left, to, &lab.right, at, true)?;
    ensure!(are_carried(&running, &[&talk]), "{}", running.account());
    let text = Trace::start(&running, &["-n", "1", "tcp dst port 8080"])?.text()?;
    eprintln!("{text}");
    for line in [
        "\n  PRE_ROUTING         conntrack: established, original, flow ",
        &format!("\n                      nat: destination {RT_LEFT4}:8080 -> {RIGHT4}:5001\n"),
        &format!("\n  ip_route_input      {RIGHT4} dev rt-right"),
        ": tcp dport 22 drop -> no match: tcp dport 22: packet has 5001\n",
        "established,related counter accept -> accept\n",
        "\n  sent                rt-right\n",
    ] {
        ensure!(text.contains(line), "no {line:?} in\n{text}");
    }
    let back = Trace::start(&running, &["-n", "1", "-j", "tcp src port 5001"])?.packets()?;
    let pre = steps(&back[0], "PRE_ROUTING");
    ensure!(pre.iter().any(|step| step["direction"] == "reply"), "{back:?}");
    let post = steps(&back[0], "POST_ROUTING");
    ensure!(
        post.iter().any(|step| step["type"] == "nat"
            && step["end"] == "source"
            && step["to"] == format!("{RT_LEFT4}:8080")),
        "{back:?}"
    );
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn tracing_ends_as_asked_and_changes_no_counter() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    nft(
        &lab.router,
        "table inet fw {
            chain forward {
                type filter hook forward priority filter; policy accept;
                icmp type echo-request counter
                ip saddr 198.18.1.2 counter
            }
        }",
    )?;
    let running = Ferroute::start(&lab)?;
    ping_each(&lab.left, RIGHT4, 1)?;
    let counts = || -> Result<Vec<u64>> {
        let rules = running.json(&["rules", "show"])?;
        let rules = rules[0]["chains"][0]["rules"].as_array().cloned().unwrap_or_default();
        let count = |rule: &Value| rule["counters"][0]["packets"].as_u64().context("no count");
        rules.iter().map(count).collect()
    };
    let stat = |name: &str| -> Result<u64> {
        let stat = running.json(&["stat"])?;
        stat["mib"][name].as_u64().with_context(|| format!("no {name}: {stat}"))
    };
    let measured = || -> Result<(Vec<u64>, u64)> {
        let (before, forwarded) = (counts()?, stat("IpForwDatagrams")?);
        ping_each(&lab.left, RIGHT4, 20)?;
        let after = counts()?.into_iter().zip(before).map(|(after, before)| after - before);
        Ok((after.collect(), stat("IpForwDatagrams")? - forwarded))
    };
    let without = measured()?;
    ensure!(without == (vec![20, 20], 40), "{without:?}");
    let trace = Trace::start(&running, &["-n", "1000000", "icmp"])?;
    let others = Trace::start(&running, &["-n", "3", "-j", "icmp[0] = 0"])?;
    ensure!(measured()? == without, "traced: {:?}", measured()?);

    // -n ends it; each line is a packet.
    let packets = others.packets()?;
    ensure!(packets.len() == 3, "{packets:?}");
    for (packet, number) in packets.iter().zip(1..) {
        ensure!(packet["packet"] == number && packet["port"] == "rt-right", "{packet}");
        ensure!(packet["disposition"]["type"] == "sent", "{packet}");
    }
    // Ctrl-C ends it.
    ensure!(eventually(|| trace.read("out").matches("\npacket ").count() >= 39));
    trace.signal(Signal::SIGINT)?;
    let (status, out, said) = trace.ended()?;
    ensure!(status.success() && !said.contains("not traced"), "{status}: {said}");
    ensure!(
        out.matches("sent   ").count()
            == out.matches("packet ").count() - out.matches("packet has").count(),
        "{out}"
    );

    // A killed or stopped reader holds none of the places for long.
    for _ in 0..3 {
        let many: Vec<Trace> =
            (0..8).map(|_| Trace::start(&running, &["icmp"])).collect::<Result<_>>()?;
        let output = running.command(&["trace"]).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains("8 traces are running"), "{said}");
        for trace in &many {
            trace.signal(Signal::SIGKILL)?;
        }
        drop(many);
        ensure!(eventually(|| Trace::start(&running, &["udp"]).is_ok()));
        ping_each(&lab.left, RIGHT4, 1)?;
    }
    // A reader that has stopped is disconnected.
    let stopped = Trace::start(&running, &["-n", "1000000", "icmp"])?;
    stopped.signal(Signal::SIGSTOP)?;
    ping(&lab.left, &format!("-c 600 -A -W 5 {RIGHT4}"))?;
    let all = || (0..8).map(|_| Trace::start(&running, &["udp"])).collect::<Result<Vec<_>>>();
    ensure!(all().is_err(), "the stopped reader has left its place at once");
    std::thread::sleep(Duration::from_secs(11));
    ensure!(all().is_ok(), "the stopped reader keeps its place");
    drop(stopped);
    let without_reader = measured()?;
    ensure!(without_reader == without, "{without_reader:?}");
    // Nothing matched.
    let none = Trace::start(&running, &["udp port 9"])?;
    none.signal(Signal::SIGINT)?;
    let (status, out, said) = none.ended()?;
    ensure!(status.success() && out.is_empty(), "{status}: {out}");
    ensure!(said.contains("no packet matched") && said.contains("ferroute stat"), "{said}");
    ensure!(measured()? == without, "afterwards");
    running.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn errors_of_a_trace_are_reported() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut running = Ferroute::start(&lab)?;
    let said = |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = running.command(args).stdin(Stdio::null()).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let (code, text) = said(&["trace", "host", "and"])?;
    ensure!(code == Some(2) && text.contains("syntax error"), "{text}");
    let (code, text) = said(&["trace", "-n", "0"])?;
    ensure!(code == Some(2), "{text}");
    let (code, text) = said(&["--control", "/nonexistent/x", "trace"])?;
    ensure!(code == Some(1) && text.contains("no ferroute runs here"), "{text}");
    let trace = Trace::start(&running, &[])?;
    running.kill()?;
    let (status, _, said) = trace.ended()?;
    ensure!(status.code() == Some(1) && said.contains("the daemon has ended"), "{said}");
    Ok(())
}
