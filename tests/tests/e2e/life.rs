//! Ferroute is killed, stopped and restarted, and its ports disappear and return: forwarding continues.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{LEFT4, RIGHT4, RIGHT6};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, eventually};

/// As with `ping -i 0.1`: losses at this pace are what a user sees. A faster one would measure how long a
/// busy machine takes to end one process and start another.
const PING_INTERVAL: Duration = Duration::from_millis(100);
/// "At most a few packets" at that pace.
const FEW: usize = 10;

#[test]
#[ignore = "needs root: run by scripts/test"]
fn the_kernel_forwards_after_a_kill_under_traffic() -> Result<()> {
    let lab = Lab::up()?;
    let mut first = Ferroute::start(&lab)?;
    let v4 = Stream::start(&lab.left, &lab.right, RIGHT4, PING_INTERVAL)?;
    let v6 = Stream::start(&lab.left, &lab.right, RIGHT6, PING_INTERVAL)?;
    ensure!(v4.flows(20) && v6.flows(20));
    first.forwarded_all_itself()?;
    first.kill()?;
    ensure!(v4.flows(20) && v6.flows(20), "nothing arrives after kill -9");
    let by_kernel = first.forwarded_by_kernel()?;
    ensure!(by_kernel.v4 > 0 && by_kernel.v6 > 0, "not forwarded by the kernel: {by_kernel:?}");

    let second = Ferroute::start(&lab)?;
    // Packets that the kernel held when the second process started are gone after the first few.
    ensure!(v4.flows(5) && v6.flows(5), "nothing arrives after the restart");
    let before = second.forwarded_by_kernel()?;
    ensure!(v4.flows(20) && v6.flows(20));
    if second.pid().is_some() {
        ensure!(second.forwarded_by_kernel()? == before, "the kernel still forwards");
    }
    for (name, stream) in [("v4", v4), ("v6", v6)] {
        let report = stream.stop();
        ensure!(report.lost() <= FEW, "{name}: {report:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn sigterm_loses_nothing_that_had_arrived() -> Result<()> {
    let lab = Lab::up()?;
    for _ in 0..3 {
        let mut ferroute = Ferroute::start(&lab)?;
        let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(1))?;
        ensure!(stream.flows(200));
        ferroute.terminate()?;
        ensure!(stream.flows(100), "nothing arrives after SIGTERM");
        let report = stream.stop();
        // One packet may be inside the kernel's driver while the program is detached.
        ensure!(report.lost() <= 1, "{report:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn nothing_stays_behind() -> Result<()> {
    let lab = Lab::up()?;
    let links = || -> Result<String> {
        let text = lab.router.run("ip -o link show")?;
        // Names and what is attached, without counters and states.
        let word = |line: &str, at: usize| line.split_whitespace().nth(at).map(str::to_owned);
        let fact = |line: &str| (word(line, 1), line.contains("xdp"));
        Ok(format!("{:?}", text.lines().map(fact).collect::<Vec<_>>()))
    };
    let before = links()?;
    for kill in [false, true] {
        let mut ferroute = Ferroute::start(&lab)?;
        ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}"))?;
        if kill {
            ferroute.kill()?
        } else {
            ferroute.terminate()?
        }
        ensure!(eventually(|| links().is_ok_and(|now| now == before)), "{before}\n{}", links()?);
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_that_goes_down_and_up() -> Result<()> {
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    let through = || ping(&lab.left, &format!("-c 1 -W 1 {RIGHT4}")).is_ok_and(|p| p.received == 1);
    ensure!(eventually(through));
    for _ in 0..3 {
        lab.router.run("ip link set rt-right down")?;
        ensure!(!through(), "packets pass a port that is down");
        lab.router.run("ip link set rt-right up")?;
        ensure!(eventually(through), "nothing passes after the port is up again");
    }
    ensure!(ferroute.is_running());
    ferroute.forwarded_all_itself()
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_that_disappears_and_comes_back() -> Result<()> {
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    let through = |from: &ferroute_tests::Netns, to: &str| {
        ping(from, &format!("-c 1 -W 1 {to}")).is_ok_and(|ping| ping.received == 1)
    };
    ensure!(eventually(|| through(&lab.left, RIGHT4)));
    for _ in 0..2 {
        lab.router.run("ip link del rt-right")?;
        ensure!(!through(&lab.left, RIGHT4));
        ensure!(ferroute.is_running(), "it ended with its port\n{}", ferroute.said());
        // The router's own addresses still answer: nothing else is disturbed.
        ping_all(&lab.left, "-c 1 -W 5 198.18.1.1")?;
        replace_right(&lab)?;
        ensure!(eventually(|| through(&lab.left, RIGHT4)), "nothing passes after its return");
        ensure!(eventually(|| through(&lab.right, LEFT4)));
    }
    ferroute.wait_until_forwarding()?;
    // While the port was not served, the kernel forwarded; from now on it must not.
    let before = ferroute.forwarded_by_kernel()?;
    ping_all(&lab.left, &format!("-c 5 -i 0.1 -W 5 {RIGHT4}"))?;
    if ferroute.pid().is_some() {
        ensure!(ferroute.forwarded_by_kernel()? == before, "the kernel forwards now");
    }
    Ok(())
}

/// Creates the wire on the right again, as `scripts/lab` made it.
pub(super) fn replace_right(lab: &Lab) -> Result<()> {
    let router = lab.router.name();
    lab.right.run(&format!(
        "ip link add right address 02:f0:00:00:02:02 type veth \
         peer name rt-right netns {router} address 02:f0:00:00:02:01"
    ))?;
    lab.router.ip_batch(
        &[],
        "addr add 198.18.2.1/24 dev rt-right\naddr add 2001:db8:2::1/64 dev rt-right nodad\n\
         link set rt-right up\n",
    )?;
    lab.right.ip_batch(
        &[],
        "addr add 198.18.2.2/24 dev right\naddr add 2001:db8:2::2/64 dev right nodad\n\
         link set right up\nroute add default via 198.18.2.1\nroute add default via 2001:db8:2::1\n",
    )
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_port_that_is_down_at_the_start() -> Result<()> {
    let lab = Lab::up()?;
    lab.router.run("ip link set rt-right down")?;
    if ferroute_tests::ferroute::by_kernel() {
        return Ok(());
    }
    // It may be refused with a message that names it, or waited for.
    let args = ["-i", "rt-left", "-i", "rt-right"];
    let mut running = match Ferroute::launch(&lab.router, &args)?.settled()? {
        Err(said) => {
            ensure!(said.contains("rt-right") && said.contains("down"), "{said}");
            return Ok(());
        }
        Ok(running) => running,
    };
    lab.router.run("ip link set rt-right up")?;
    running.wait_until_forwarding().context("the port is up")?;
    ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {RIGHT4}"))?;
    Ok(())
}
