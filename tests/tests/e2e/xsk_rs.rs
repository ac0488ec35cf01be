//! The driver xsk-rs (`run --driver xsk-rs`): it forwards as the other driver does, and reports options that
//! it does not support. With a binary that was built without it, that error message is tested instead.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT6, RIGHT4, RIGHT6};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually, ferroute};

use crate::accounting::settled;
use crate::life::replace_right;

const DRIVER: [&str; 2] = ["--driver", "xsk-rs"];

/// Whether the binary under test has the driver. One that has not must refuse it.
fn is_built(lab: &Lab) -> Result<bool> {
    if ferroute::by_kernel() {
        return Ok(false);
    }
    let said = Ferroute::refusal(&lab.router, &["-i", "absent0", "--driver", "xsk-rs"])?;
    let is_missing = said.contains("built without the driver xsk-rs");
    ensure!(is_missing == said.contains("--features xsk-rs"), "{said}");
    Ok(!is_missing)
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn both_families_pass_through_xsk_rs_and_killed_the_kernel_forwards_on() -> Result<()> {
    let lab = Lab::up()?;
    if !is_built(&lab)? {
        return Ok(());
    }
    let mut first = Ferroute::start_with(&lab, &DRIVER)?;
    let status = first.json(&["status"])?;
    ensure!(status["driver"] == "xsk-rs" && status["ports"][0]["bind_mode"] == "copy", "{status}");
    let v4 = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(10))?;
    let v6 = Stream::start(&lab.right, &lab.left, LEFT6, Duration::from_millis(10))?;
    ensure!(v4.flows(200) && v6.flows(200));
    first.forwarded_all_itself()?;
    first.kill()?;
    ensure!(v4.flows(20) && v6.flows(20), "nothing arrives after kill -9");

    let mut second = Ferroute::start_with(&lab, &DRIVER)?;
    ensure!(v4.flows(20) && v6.flows(20), "nothing arrives after the restart");
    v4.stop();
    v6.stop();
    // Larger than the neighbours' headers, and errors that the router makes itself.
    ping_all(&lab.left, &format!("-c 20 -i 0.01 -s 1400 -W 5 {RIGHT6}"))?;
    let expired = ping(&lab.left, &format!("-c 1 -t 1 -W 5 {RIGHT4}"))?;
    ensure!(expired.received == 0, "{expired:?}");
    settled(&second)?;
    second.terminate()?;
    ensure!(!second.said().contains("lost frames"), "{}", second.said());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn of_xsk_rs_only_the_port_of_the_first_socket_cannot_come_back_and_says_so() -> Result<()> {
    let lab = Lab::up()?;
    if !is_built(&lab)? {
        return Ok(());
    }
    let through = || ping(&lab.left, &format!("-c 1 -W 1 {RIGHT4}")).is_ok_and(|p| p.received == 1);
    let mut ferroute = Ferroute::start_with(&lab, &DRIVER)?;
    ensure!(eventually(through));
    lab.router.run("ip link del rt-right")?;
    replace_right(&lab)?;
    ferroute.wait_until_forwarding()?;
    ensure!(eventually(through), "the second port does not come back");
    // A port that was closed while its interface stayed: the first socket is used again.
    lab.router.run("ip link set rt-left mtu 9000")?;
    let is_refused = || says(&ferroute, "--driver xsk-rs supports one frame per packet");
    ensure!(eventually(is_refused), "{}", ferroute.said());
    lab.router.run("ip link set rt-left mtu 1500")?;
    ferroute.wait_until_forwarding()?;
    ensure!(eventually(through), "the first port does not come back");
    settled(&ferroute)?;
    ferroute.terminate()?;

    let ports = ["-i", "rt-right", "-i", "rt-left", "--driver", "xsk-rs"];
    let mut ferroute = Ferroute::start_in(&lab.router, &ports)?;
    ensure!(eventually(through));
    lab.router.run("ip link del rt-right")?;
    replace_right(&lab)?;
    let lost = || says(&ferroute, "first AF_XDP socket, rt-right, was removed");
    ensure!(eventually(lost), "{}", ferroute.said());
    ensure!(eventually(through), "the kernel does not forward instead");
    settled(&ferroute).context("with a lost socket")?;
    ferroute.terminate()
}

/// Whether `status` has these words; it ends with a failure while a port is not served.
fn says(ferroute: &Ferroute, words: &str) -> bool {
    let output = ferroute.command(&["status"]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(words))
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn what_xsk_rs_cannot_do_is_refused_at_the_start() -> Result<()> {
    let lab = Lab::up()?;
    if !is_built(&lab)? {
        return Ok(());
    }
    for (more, words) in [
        (["--mode", "zerocopy"], "copy mode only"),
        (["--poll", "busy"], "does not support busy polling"),
    ] {
        let said =
            Ferroute::refusal(&lab.router, &[&["-i", "rt-left"], &DRIVER[..], &more].concat())?;
        ensure!(said.contains(words), "{said}");
    }
    Ok(())
}
