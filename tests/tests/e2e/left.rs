//! Traffic that Ferroute cannot handle, or should not touch, stays in the kernel, and this is reported.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferroute_tests::lab::addr::{RIGHT4, RIGHT6};
use ferroute_tests::ping::{ping, ping_all};
use ferroute_tests::stream::Stream;
use ferroute_tests::{Ferroute, Lab, ferroute};

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_rule_that_is_not_mirrored_is_still_applied() -> Result<()> {
    let lab = Lab::up()?;
    let mut ferroute = Ferroute::start(&lab)?;
    let stream = Stream::start(&lab.left, &lab.right, RIGHT4, Duration::from_millis(5))?;
    ensure!(stream.flows(50));
    ferroute.forwarded_all_itself()?;

    // Ferroute does not support selectors of protocol and ports.
    lab.router.run("ip rule add pref 50 iif rt-left ipproto icmp prohibit")?;
    let filtered = ferroute_tests::eventually(|| {
        let result = ping(&lab.left, &format!("-c 1 -W 1 {RIGHT4}"));
        result.is_ok_and(|ping| ping.received == 0 && ping.text.contains("Packet filtered"))
    });
    ensure!(filtered, "the rule is overlooked");
    let before = ferroute.forwarded_by_kernel()?;
    ensure!(stream.flows(50), "packets that the rule does not match are lost");
    ensure!(ferroute.forwarded_by_kernel()?.v4 > before.v4, "the kernel does not forward");
    if !ferroute::by_kernel() {
        let status = ferroute.json(&["status"])?;
        let unmirrored = status["mirror"]["unmirrored"].as_array().context("no list")?;
        ensure!(!unmirrored.is_empty(), "status does not say so: {status:#}");
    }

    lab.router.run("ip rule del pref 50")?;
    ensure!(stream.flows(50));
    let back = ferroute::by_kernel()
        || ferroute_tests::eventually(|| {
            let before = ferroute.forwarded_by_kernel();
            stream.flows(50) && ferroute.forwarded_by_kernel().ok() == before.ok()
        });
    ensure!(back, "the kernel still forwards");
    stream.stop();
    ensure!(ferroute.is_running());
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn an_output_interface_that_is_not_a_port() -> Result<()> {
    let lab = Lab::up()?;
    let ferroute = Ferroute::start_in(&lab.router, &["-i", "rt-left"])?;
    for address in [RIGHT4, RIGHT6] {
        ping_all(&lab.left, &format!("-c 3 -i 0.1 -W 5 {address}"))?;
    }
    let by_kernel = ferroute.forwarded_by_kernel()?;
    ensure!(by_kernel.v4 >= 6 && by_kernel.v6 >= 6, "{by_kernel:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn services_of_the_router_are_reached_by_tcp() -> Result<()> {
    let lab = Lab::up()?;
    let _ferroute = Ferroute::start(&lab)?;
    for address in ["198.18.1.1", "198.18.2.1", "[2001:db8:2::1]"] {
        let listener = lab.router.enter(|| {
            let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            Ok(std::net::TcpListener::bind(any)?)
        })?;
        let target = format!("{address}:{}", listener.local_addr()?.port()).parse()?;
        let connect = || {
            std::net::TcpStream::connect_timeout(&target, Duration::from_secs(10))
                .with_context(|| format!("connecting to {target}"))
        };
        lab.left.enter(connect)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by scripts/test"]
fn a_foreign_xdp_program_is_not_replaced() -> Result<()> {
    if ferroute::by_kernel() {
        return Ok(());
    }
    let lab = Lab::up()?;
    let object = ferroute_tests::lab::repository().join("xdp-prog/ferroute.bpf.o");
    let attach = format!("ip link set dev rt-right xdp obj {} sec xdp", object.display());
    lab.router.run(&attach)?;
    let before = lab.router.run("ip -d link show rt-right")?;
    let said = Ferroute::refusal(&lab.router, &["-i", "rt-left", "-i", "rt-right"])?;
    ensure!(said.contains("rt-right") && said.contains("XDP"), "{said}");
    let program =
        |text: &str| text.lines().find(|line| line.contains("prog/xdp")).map(str::to_owned);
    let after = lab.router.run("ip -d link show rt-right")?;
    ensure!(program(&after).is_some() && program(&after) == program(&before), "{before}\n{after}");
    // The program was also detached from the other port.
    ensure!(!lab.router.run("ip -d link show rt-left")?.contains("prog/xdp"));
    ping_all(&lab.left, &format!("-c 1 -W 5 {RIGHT4}")).map(drop)
}
