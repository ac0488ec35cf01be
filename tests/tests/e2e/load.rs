//! `pktgen` and `sink`: every packet is accounted for with either engine; traffic that cannot be sent is
//! refused; `scripts/pktgen` reports what is missing.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, RIGHT4, RIGHT6};
use ferroute_tests::lab::{mac, repository};
use ferroute_tests::packet::{Ipv4, ethernet, udp};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, Netns, eventually, ferroute};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Packets per second. Every queue on the path holds what arrives in half a second without a CPU.
const PPS: u64 = 2000;
const PACKETS: u64 = 3000;

fn verb(namespace: &Netns, line: &str) -> Command {
    let mut command = namespace.command(ferroute::binary());
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn json(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON\n{said}"))
}

/// Starts a sink in the lab's right host and waits until its program is attached.
fn sink(lab: &Lab, options: &str) -> Result<Child> {
    let line = format!("sink -i right {options}");
    let child = verb(&lab.right, &line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let on = eventually(|| lab.right.run("ip link show right").is_ok_and(|t| t.contains("xdp")));
    ensure!(on, "`{line}` attaches no program");
    Ok(child)
}

/// Sends through Ferroute to a sink; all three must count the same.
fn accounted(options: &str, to: &str, threads: u64) -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let router = Ferroute::start(&lab)?;
    // The neighbours are resolved first: only a few packets can wait for an unresolved one.
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {to}"))?;
    let forwarded = |counter: &str| -> Result<u64> {
        Ok(router.json(&["stat"])?["mib"][counter].as_u64().unwrap_or(0))
    };
    let counter = if to == RIGHT6 { "Ip6OutForwDatagrams" } else { "IpForwDatagrams" };
    let before = forwarded(counter)?;
    let expect = format!("-j -n {PACKETS} --duration 60 --rate {PPS} --threads {threads}");
    let receiving = sink(&lab, &expect)?;
    let line = format!("pktgen -j -i left --dst {to} -n {PACKETS} --ratep {PPS} {options}");
    let sent = json(&verb(&lab.left, &line).output()?)?;
    let received = json(&receiving.wait_with_output()?)?;
    let all = format!("{sent}\n{received}");
    ensure!(sent["packets"] == PACKETS && sent["port_dropped"] == 0, "{all}");
    let count = |name: &str| received[name].as_u64().with_context(|| format!("no {name}: {all}"));
    ensure!(count("received")? + count("lost")? == PACKETS, "{all}");
    ensure!(count("lost")? == 0 && count("duplicated")? == 0 && count("late")? == 0, "{all}");
    ensure!(count("streams")? == threads && count("restarts")? == 0, "{all}");
    ensure!(sent["octets"] == received["octets"], "{all}");
    for latency in ["latency", "latency_corrected"] {
        ensure!(received[latency]["count"] == PACKETS, "{all}");
    }
    let by_router = || forwarded(counter).unwrap_or(0) - before;
    ensure!(eventually(|| by_router() == PACKETS), "forwarded {}: {all}", by_router());
    router.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn load_from_xdp_over_ipv4_is_accounted_for() -> Result<()> {
    accounted("--threads 2", RIGHT4, 2)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn load_from_xdp_over_ipv6_is_accounted_for() -> Result<()> {
    accounted("--pkt-size 200 --flows 5 --flowlen 3 --udp-src-max 20", RIGHT6, 1)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn load_from_af_xdp_over_ipv4_is_accounted_for() -> Result<()> {
    accounted("--engine af_xdp --pkt-size 1514 --flag UDPCSUM", RIGHT4, 1)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn load_from_af_xdp_over_ipv6_is_accounted_for() -> Result<()> {
    accounted("--engine af_xdp --udp-dst-min 1000 --udp-dst-max 1999", RIGHT6, 1)
}

/// Frame lengths in the order in which tcpdump sees them in the right host.
fn lengths_seen(engine: &str) -> Result<Vec<u64>> {
    const COUNT: u64 = 24;
    let lab = Lab::up()?;
    let router = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    let dir = tempfile::tempdir()?;
    let messages = dir.path().join("messages");
    let mut tcpdump = lab.right.command("timeout");
    tcpdump.args([
        "60",
        "tcpdump",
        "-i",
        "right",
        "-nnel",
        "-c",
        &COUNT.to_string(),
        "udp",
        "port",
        "9",
    ]);
    let capture = tcpdump.stdout(Stdio::piped()).stderr(File::create(&messages)?).spawn()?;
    let listening = || fs::read_to_string(&messages).is_ok_and(|said| said.contains("listening"));
    ensure!(eventually(listening), "tcpdump does not start");
    let line = format!("pktgen -j -i left --dst {RIGHT4} -n {COUNT} --ratep 500 --engine {engine}");
    let mut sender = verb(&lab.left, &line);
    json(&sender.args(["--imix-weights", "60,7 576,4 1500,1"]).output()?)?;
    let text = String::from_utf8(capture.wait_with_output()?.stdout)?;
    let length = |line: &str| line.split_once(" length ")?.1.split(':').next()?.parse().ok();
    router.forwarded_all_itself()?;
    Ok(text.lines().filter_map(length).collect())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn imix_is_on_the_wire_in_its_shares_and_the_same_from_both_engines() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let seen = lengths_seen("xdp")?;
    let count = |wanted: u64| seen.iter().filter(|length| **length == wanted).count();
    ensure!([60, 576, 1500].map(count) == [14, 8, 2], "{seen:?}");
    let other = lengths_seen("af_xdp")?;
    ensure!(seen == other, "{seen:?}\n{other:?}");
    Ok(())
}

/// A pcap file of three UDP packets without pktgen's header.
fn capture() -> Result<Vec<u8>> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_ne_bytes());
    }
    for n in 0..3 {
        let (from, to) = (LEFT4.parse()?, RIGHT4.parse()?);
        let (source, destination): (std::net::Ipv4Addr, std::net::Ipv4Addr) = (from, to);
        let data = udp(&source.octets(), &destination.octets(), (4000 + n, 9), &[7; 40]);
        let packet = Ipv4::new(source, destination, 17).packet(&data);
        let frame = ethernet(mac::RT_LEFT, mac::LEFT, 0x0800, &packet);
        for word in [1, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(frame);
    }
    Ok(file)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_capture_is_sent_and_a_sink_says_that_it_has_no_header() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let router = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("in.pcap");
    fs::write(&path, capture()?)?;
    let receiving = sink(&lab, "")?;
    let line = format!("pktgen -j -i left --replay {} --ratep 100", path.display());
    let sent = json(&verb(&lab.left, &line).output()?)?;
    ensure!(sent["packets"] == 3 && sent["engine"] == "af_xdp", "{sent}");
    let forwarded = || router.json(&["stat"]).is_ok_and(|stat| of_forwarded(&stat) >= 3);
    ensure!(eventually(forwarded), "not forwarded");
    kill(Pid::from_raw(receiving.id() as i32), Signal::SIGINT)?;
    let output = receiving.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.contains("no packet with pktgen's header came"), "{said}");
    Ok(())
}

fn of_forwarded(stat: &Value) -> u64 {
    stat["mib"]["IpForwDatagrams"].as_u64().unwrap_or(0)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_interrupt_ends_either_with_what_it_did_so_far() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let _router = Ferroute::start(&lab)?;
    let dir = tempfile::tempdir()?;
    let hgrm = dir.path().join("out.hgrm");
    let receiving = sink(&lab, &format!("-j --hgrm {}", hgrm.display()))?;
    for engine in ["xdp", "af_xdp"] {
        let sent =
            |lab: &Lab| lab.left.run("ip -s -j link show left").map(|text| tx_packets(&text));
        let before = sent(&lab)?;
        let line = format!("pktgen -j -i left --dst {RIGHT4} --ratep {PPS} --engine {engine}");
        let mut command = verb(&lab.left, &line);
        let sending = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let flows = eventually(|| sent(&lab).is_ok_and(|now| now > before + 100));
        kill(Pid::from_raw(sending.id() as i32), Signal::SIGINT)?;
        let report = json(&sending.wait_with_output()?)?;
        ensure!(flows && report["packets"].as_u64() > Some(90), "{engine}: {report}");
    }
    kill(Pid::from_raw(receiving.id() as i32), Signal::SIGTERM)?;
    let report = json(&receiving.wait_with_output()?)?;
    ensure!(report["received"].as_u64() > Some(150) && report["restarts"] == 1, "{report}");
    let text = fs::read_to_string(hgrm)?;
    ensure!(text.contains("Percentile") && text.contains("#[Max"), "{text}");
    Ok(())
}

/// From the output of `ip -s -j link`.
fn tx_packets(text: &str) -> u64 {
    let links: Value = serde_json::from_str(text).unwrap_or_default();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap_or(0)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn impossible_options_are_refused_with_a_reason() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let refused = |line: &str, words: &str| -> Result<()> {
        let output = verb(&lab.left, line).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        ensure!(matches!(code, Some(1 | 2)), "`{line}`: {:?}\n{said}", output.status.signal());
        ensure!(said.contains(words), "`{line}` without `{words}`:\n{said}");
        Ok(())
    };
    let to = "pktgen -i left --dst 198.18.2.2 --dst-mac 02:f0:00:00:01:01 -n 1";
    refused("pktgen -i left", "--dst-min")?;
    refused("pktgen -i nosuch0 --dst 198.18.2.2", "no interface nosuch0")?;
    refused("pktgen -i lo --dst 198.18.2.2", "carries no Ethernet")?;
    refused(&format!("{to} --pkt-size 59"), "at least 60")?;
    refused(&format!("{to} --pkt-size 1515"), "MTU is 1500: at most 1514")?;
    refused(&format!("{to} --imix-weights 60,0"), "no size has a weight")?;
    refused(&format!("{to} --ratep 0"), "packets per second")?;
    refused(&format!("{to} --dst-max 198.18.2.1"), "above the last")?;
    refused(&format!("{to} --udp-dst-min 20 --udp-dst-max 10"), "above the last")?;
    refused(&format!("{to} --vlan-id 4096"), "4095")?;
    refused(&format!("{to} --src-min 2001:db8::1"), "not of one family")?;
    refused(&format!("{to} --engine af_xdp --threads 2"), "a queue for each thread")?;
    refused(&format!("{to} --replay x.pcap"), "cannot be used with")?;
    refused("pktgen -i left --replay /nosuch.pcap", "/nosuch.pcap")?;
    refused("sink -i nosuch0", "no interface nosuch0")?;
    refused("sink -i left --rate 0", "--rate")?;
    // Nothing at the other end accepts live frames of this port; it sends few other packets.
    refused(&format!("{to}000"), "--engine af_xdp")?;
    lab.left.run("ip route del default")?;
    refused("pktgen -i left --dst 198.18.2.2 -n 1", "give --dst-mac")?;
    lab.left.run("ip link set left down")?;
    refused(to, "ip link set left up")?;
    refused("sink -i left", "ip link set left up")?;
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_script_for_the_kernels_pktgen_says_what_is_missing() -> Result<()> {
    let script = repository().join("scripts/pktgen");
    let run = |line: &str| Command::new(&script).args(line.split(' ')).output();
    let nothing = run("-i lo --dst 198.18.2.2 --dst-mac 02:00:00:00:00:01 --rate fast")?;
    let said = String::from_utf8_lossy(&nothing.stderr);
    ensure!(nothing.status.code() == Some(2) && said.contains("--rate"), "{said}");
    if std::path::Path::new("/proc/net/pktgen").exists() {
        return Ok(());
    }
    let output = run("-i lo --dst 198.18.2.2 --dst-mac 02:00:00:00:00:01 -n 1")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // A machine with the module loads it, and refuses the loopback interface.
    if output.status.code() == Some(3) {
        ensure!(said.contains("CONFIG_NET_PKTGEN") && said.contains("ferroute pktgen"), "{said}");
    }
    ensure!(!output.status.success(), "{said}");
    Ok(())
}
