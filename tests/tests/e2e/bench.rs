//! `ferroute bench` through the lab's router. No particular figure is expected: the machine may be busy.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use ferroute_tests::ferroute::{binary, by_kernel};
use ferroute_tests::{Ferroute, Lab};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn command(lab: &Lab, args: &[&str]) -> Command {
    let (tx, rx) = (format!("left@{}", lab.left.name()), format!("right@{}", lab.right.name()));
    let mut command = Command::new(binary());
    command.args(["bench", "--tx", &tx, "--rx", &rx]).args(args);
    command
}

fn found(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{said}", output.status);
    serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON\n{said}"))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn bench_closes_a_loop_through_the_router_and_writes_its_report() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let ferroute = Ferroute::start(&lab)?;
    let dir = tempfile::tempdir()?;
    let prefix = dir.path().join("report");
    let prefix = prefix.to_str().context("a path in UTF-8")?;
    let args = ["-j", "--window", "64", "--sizes", "64,imix", "--duration", "0.3", "--repeat", "2"];
    let report = found(&command(&lab, &[&args[..], &["--report", prefix]].concat()).output()?)?;
    let sizes = report["sizes"].as_array().context("no sizes")?;
    ensure!(sizes.len() == 2 && sizes[1]["size"] == "imix", "{report}");
    for size in sizes {
        let closed = &size["closed"];
        ensure!(closed["window"] == 64 && closed["trials_pps"].as_array().map(Vec::len) == Some(2));
        ensure!(closed["rate"]["pps"].as_f64() > Some(0.0), "{closed}");
        let latency = size["latency"].as_array().context("no latency")?;
        ensure!(latency.len() == 3 && latency.iter().all(|at| at["count"].as_u64() > Some(0)));
    }
    ferroute.forwarded_all_itself()?;
    let read = |extension: &str| std::fs::read_to_string(format!("{prefix}.{extension}"));
    ensure!(read("md")?.contains("## Closed loop") && read("svg")?.starts_with("<svg"));
    let written: Value = serde_json::from_str(&read("json")?)?;
    ensure!(written == report, "the file differs from the output");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn bench_offers_rates_and_bursts_and_counts_returned_packets() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start(&lab)?;
    let args = ["-j", "-6", "--sizes", "128", "--duration", "0.2", "--resolution", "25"];
    let more = ["--loss", "50", "--repeat", "1", "--flows", "16", "--quiet"];
    let report = found(&command(&lab, &[args.as_slice(), more.as_slice()].concat()).output()?)?;
    let size = &report["sizes"][0];
    ensure!(size["full"]["pps"].as_f64() > Some(0.0), "{report}");
    let allowed = |at: usize| size["throughput"][at]["loss_percent"].as_f64();
    ensure!((allowed(0), allowed(1)) == (Some(0.0), Some(50.0)), "{report}");
    ensure!(size["loss"][0]["percent"].as_f64() == Some(100.0), "{report}");
    ensure!(size["bursts"]["searches"] == 1, "{report}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn bench_refuses_impossible_measurements_with_a_reason() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let (left, right) = (lab.left.name(), lab.right.name());
    let refused = |line: &str, says: &str| -> Result<()> {
        let line = line.replace("LEFT", left).replace("RIGHT", right);
        let output = Command::new(binary()).arg("bench").args(line.split(' ')).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && output.stdout.is_empty(), "{line} is not refused");
        ensure!(said.contains(says) && !said.contains("panicked"), "{line}:\n{said}");
        Ok(())
    };
    let ports = "--tx left@LEFT --rx right@RIGHT --window 8 --duration 0.1";
    refused(&format!("{ports} --sizes 2000"), "MTU is 1500")?;
    refused(&format!("{ports} --sizes 80 -6"), "octets")?;
    refused("--tx left@LEFT --rx left@LEFT", "the same port")?;
    refused("--tx none@LEFT --rx right@RIGHT", "none")?;
    refused("--tx left@nowhere --rx right@RIGHT", "nowhere")?;
    refused(&format!("{ports} --dst 192.0.2.1 --src 192.0.2.2 --dst-mac 0"), "MAC")?;
    // The router drops frames for another MAC address; something must accept the frames, which GRO does.
    lab.router.run("ethtool -K rt-left gro on")?;
    refused(&format!("{ports} --dst-mac 02:00:00:00:00:99"), "received none of")?;
    lab.right.run("ip link set right down")?;
    refused(ports, "right")?;
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn bench_ends_by_ctrl_c_with_the_results_so_far() -> Result<()> {
    if by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start(&lab)?;
    let args =
        ["-j", "--window", "64", "--sizes", "64", "--duration", "0.2", "--repeat", "1000000"];
    let mut bench = command(&lab, &args);
    let mut child = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stderr = BufReader::new(child.stderr.take().context("no standard error")?);
    let mut lines = stderr.lines();
    let first = lines.next().context("it ended without a message")??;
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    lines.for_each(drop);
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(1), "{}; {first}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["interrupted"] == true, "{report}");
    ensure!(report["sizes"][0]["closed"]["rate"]["pps"].as_f64() > Some(0.0), "{report}");
    Ok(())
}
