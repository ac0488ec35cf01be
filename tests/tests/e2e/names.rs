//! Interface names that contain escape sequences or are not UTF-8: printed escaped, and served normally.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};
use serde_json::Value;

/// Switches a terminal to red.
const RED: &str = "a\x1b[31mb";
const RED_WRITTEN: &str = "a\\x1b[31mb";
/// Not UTF-8, so that no argument can be this name.
const NO_TEXT: &[u8] = b"c\x01\xff";
const NO_TEXT_WRITTEN: &str = "c\\x01\\xff";
/// The name in JSON: control characters unchanged, other octets that a string cannot contain escaped.
const NO_TEXT_TOLD: &str = "c\x01\\xff";

/// A link from the router's interface with this name to the right host.
fn wire(lab: &Lab, name: &[u8], peer: &str) -> Result<()> {
    let name = OsStr::from_bytes(name);
    let mut command = lab.router.command("ip");
    command.args(["link", "add", "name"]).arg(name).args(["type", "veth", "peer", "name", peer]);
    run(command.args(["netns", lab.right.name()]))?;
    run(lab.router.command("ip").args(["link", "set", "dev"]).arg(name).arg("up"))?;
    lab.right.run(&format!("ip link set {peer} up")).map(drop)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// Fails if a terminal would interpret a control character.
fn harmless(what: &str, text: &[u8]) -> Result<()> {
    let bad = text.iter().find(|octet| octet.is_ascii_control() && !b"\n\t".contains(octet));
    let shown = String::from_utf8_lossy(text);
    ensure!(bad.is_none(), "{what} prints {bad:x?}:\n{}", shown.escape_debug());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn names_with_escape_sequences_are_served_and_printed_escaped() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    wire(&lab, RED.as_bytes(), "odd")?;
    wire(&lab, NO_TEXT, "none")?;
    let mut address = lab.router.command("ip");
    run(address.args(["addr", "add", "198.18.4.1/24", "dev"]).arg(RED))?;
    lab.right.run("ip addr add 198.18.4.2/24 dev odd")?;
    let mut ferroute = Ferroute::start_with(&lab, &["-i", RED, "-i", "c*"])?;
    ping_all(&lab.left, "-c 3 -i 0.1 -W 5 198.18.4.2")?;
    ferroute.forwarded_all_itself()?;

    let verbs = [
        "link",
        "-d link",
        "addr",
        "route",
        "route get 198.18.4.2",
        "rule",
        "neigh",
        "status",
        "stat",
        "stat --port",
        "stat --port nothing",
        "drops",
        "latency",
        "doctor",
        "capture -i nothing",
        "link show dev nothing",
    ];
    let mut all = Vec::new();
    for verb in verbs {
        let words: Vec<&str> = verb.split(' ').collect();
        let output = ferroute.command(&words).stdin(Stdio::null()).output()?;
        for text in [output.stdout, output.stderr] {
            harmless(verb, &text)?;
            all.extend(text);
        }
    }
    for verb in ["stat --port", "link show dev", "doctor -i"] {
        let words: Vec<&str> = verb.split(' ').chain([RED]).collect();
        let output = ferroute.command(&words).stdin(Stdio::null()).output()?;
        harmless(verb, &output.stderr)?;
        harmless(verb, &output.stdout)?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.contains(RED_WRITTEN), "{verb}:\n{text}");
    }
    harmless("run", ferroute.said().as_bytes())?;
    let all = String::from_utf8(all)?;
    ensure!(all.contains(RED_WRITTEN) && all.contains(NO_TEXT_WRITTEN), "{all}");
    // An interface whose name cannot be given is left to the kernel, and this is reported.
    let status = ferroute.json(&["status"])?;
    let warnings = status["warnings"].to_string();
    ensure!(warnings.contains("not UTF-8"), "{warnings}");
    in_json(&ferroute)?;
    in_a_capture(&lab, &ferroute)?;
    ferroute.terminate()?;
    harmless("run", ferroute.said().as_bytes())
}

/// JSON has the names unescaped.
fn in_json(ferroute: &Ferroute) -> Result<()> {
    let links = ferroute.json(&["link"])?;
    let named = |name: &str| {
        links.as_array().is_some_and(|links| links.iter().any(|link| link["ifname"] == name))
    };
    ensure!(named(RED) && named(NO_TEXT_TOLD), "{links:#}");
    let stat = ferroute.json(&["stat"])?;
    let ports = stat["ports"].as_array().context("no ports")?;
    ensure!(ports.iter().any(|port| port["ifname"] == RED), "{stat:#}");
    Ok(())
}

fn in_a_capture(lab: &Lab, ferroute: &Ferroute) -> Result<()> {
    let mut capture = ferroute.command(&["capture", "-i", RED, "-c", "2", "icmp"]);
    let capture = capture.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut capture = capture.spawn()?;
    let came = eventually(|| {
        let _ = ping_all(&lab.left, "-c 1 -W 1 198.18.4.2");
        !matches!(capture.try_wait(), Ok(None))
    });
    ensure!(came, "the capture does not end");
    let output = capture.wait_with_output()?;
    harmless("capture", &output.stdout)?;
    harmless("capture", &output.stderr)?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains(RED_WRITTEN), "{text}");
    let _: Value = ferroute.json(&["status"])?;
    Ok(())
}
