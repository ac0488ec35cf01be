//! Configurations that `ferroute run` must refuse, and its messages; `doctor` reports them beforehand.

use std::fs;

use anyhow::{Result, ensure};
use ferroute_tests::lab::addr::RIGHT4;
use ferroute_tests::ping::ping_all;
use ferroute_tests::{Ferroute, Lab, ferroute};

const PORTS: [&str; 4] = ["-i", "rt-left", "-i", "rt-right"];

/// Fails unless a refusal contains every word.
fn refused(lab: &Lab, args: &[&str], words: &[&str]) -> Result<String> {
    let said = Ferroute::refusal(&lab.router, args)?;
    for word in words {
        ensure!(said.contains(word), "no word about {word}:\n{said}");
    }
    Ok(said)
}

/// Sets up a ruleset, which must be refused, found by `doctor`, and ignored on request.
fn firewall(commands: &[&str], word: &str) -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for command in commands {
        lab.router.run(command)?;
    }
    refused(&lab, &PORTS, &[word, "--ignore-firewall"])?;
    let output = lab.router.command(ferroute::binary()).args(["doctor"]).args(PORTS).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains(word), "doctor does not mention {word}:\n{text}");

    let mut running = Ferroute::start_with(&lab, &["--ignore-firewall"])?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    running.forwarded_all_itself()?;
    running.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_xfrm_default_that_blocks() -> Result<()> {
    firewall(&["ip xfrm policy setdefault fwd block"], "XFRM")
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_input_chain_is_not_refused() -> Result<()> {
    let lab = Lab::up()?;
    lab.router.run("nft add table inet fw")?;
    let chain = "{ type filter hook input priority 0 ; policy accept ; }";
    lab.router.run(&format!("nft add chain inet fw in {chain}"))?;
    let ferroute = Ferroute::start(&lab)?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_interface_that_is_not_there() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    refused(&lab, &["-i", "rt-left", "-i", "nosuch0"], &["nosuch0"])?;
    // Nothing was left half done.
    ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}")).map(drop)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_loopback_interface() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    refused(&Lab::up()?, &["-i", "rt-left", "-i", "lo"], &["lo"]).map(drop)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_mtu_beyond_jumbo_frames() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    lab.left.run("ip link set left mtu 9001")?;
    lab.router.run("ip link set rt-left mtu 9001")?;
    refused(&lab, &PORTS, &["rt-left", "9001", "ip link set rt-left mtu 9000"])?;
    ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}")).map(drop)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_second_instance_on_the_same_port() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut first = Ferroute::start(&lab)?;
    refused(&lab, &["-i", "rt-left"], &["rt-left"])?;
    ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT4}"))?;
    ensure!(first.is_running());
    first.forwarded_all_itself()?;
    first.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_second_instance_on_the_same_control_socket() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let mut first = Ferroute::start_in(&lab.router, &["-i", "rt-left"])?;
    let output = first.command(&["run", "-i", "rt-right"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("control.sock"), "{said}");
    ensure!(first.ask(&["status"]).is_ok(), "the first has lost its socket");
    first.terminate()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn no_privilege_names_the_capability() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    // Without capabilities, but still as the owner of the files: nothing else prevents the start.
    let mut command = lab.router.command("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    command.arg(ferroute::binary()).arg("run").args(PORTS);
    let output = command.env("FERROUTE_CONTROL", "/nonexistent/control.sock").output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("CAP_"), "{said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_time_namespace_whose_clock_is_not_the_kernels() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for verb in ["run", "doctor"] {
        let mut command = lab.router.command("unshare");
        command.args(["--time", "--monotonic=100000"]);
        let output = command.arg(ferroute::binary()).arg(verb).args(PORTS).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(!output.status.success(), "{verb} succeeds:\n{said}");
        ensure!(said.contains("time namespace"), "{verb}:\n{said}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_wrong_configuration_names_the_place() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("ferroute.toml");
    let file = path.to_string_lossy().into_owned();
    for (text, place, word) in [
        ("[run]\ninterfaces = [\"rt-left\"]\nqueus = 2\n", ":3:", "queus"),
        ("[run]\ninterfaces = [\"rt-left\"]\nqueues = \"two\"\n", ":3:10", "two"),
        ("[run]\nmode = \"fast\"\n", ":2:8", "zerocopy"),
        ("[run\n", ":1:", "]"),
    ] {
        fs::write(&path, text)?;
        refused(&lab, &["-c", &file], &[&format!("{file}{place}"), word])?;
    }
    refused(&lab, &["-c", "/nonexistent.toml"], &["/nonexistent.toml"]).map(drop)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_configuration_that_is_right_is_taken() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("ferroute.toml");
    fs::write(&path, "[run]\ninterfaces = [\"rt-left\", \"rt-right\"]\nmode = \"copy\"\n")?;
    let file = path.to_string_lossy().into_owned();
    let ferroute = Ferroute::start_in(&lab.router, &["-c", &file])?;
    ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn every_mode_but_zero_copy_works_on_veth() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    for mode in ["auto", "copy", "generic"] {
        let mut ferroute = Ferroute::start_with(&lab, &["--mode", mode])?;
        ping_all(&lab.left, &format!("-c 2 -i 0.1 -W 5 {RIGHT4}"))?;
        ferroute.forwarded_all_itself()?;
        ferroute.terminate()?;
    }
    let args: Vec<&str> = PORTS.into_iter().chain(["--mode", "zerocopy"]).collect();
    refused(&lab, &args, &["rt-left"]).map(drop)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_working_lab_passes_the_doctor() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let output = lab.router.command(ferroute::binary()).arg("doctor").args(PORTS).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for word in ["rt-left", "rt-right", "ok"] {
        ensure!(text.contains(word), "no word about {word}:\n{text}");
    }
    ensure!(!text.contains("fail"), "{text}");
    lab.router.sysctl("net/ipv4/ip_forward", "0")?;
    let output = lab.router.command(ferroute::binary()).arg("doctor").args(PORTS).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("net.ipv4.ip_forward=1"), "doctor overlooks ip_forward=0:\n{text}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_missing_tun_device_is_found_by_the_doctor() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    // Mounts are visible to this command only.
    let doctor = |before: &str| -> Result<String> {
        let script = format!("{before} exec \"$0\" doctor -i rt-left");
        let mut command = lab.router.command("sh");
        let output = command.arg("-c").arg(script).arg(ferroute::binary()).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let links = || lab.router.run("ip -br link");
    let before = links()?;
    let text = doctor("")?;
    let ok = |check: &str| text.lines().any(|line| line.starts_with("ok") && line.contains(check));
    ensure!(ok("tun:") && ok("classifier:"), "{text}");
    ensure!(links()? == before, "a trial is left behind: {}", links()?);
    let text = doctor("mount -t tmpfs none /dev/net &&")?;
    ensure!(text.contains("modprobe tun") && !text.contains("classifier:"), "{text}");
    Ok(())
}
